"""What a comparison of today's data with those of training says, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

__all__ = ["DRIFT_COLUMNS", "DRIFT_VERSION", "DriftCheck", "DriftResult", "drift_rows"]

DRIFT_VERSION = 2
"""Of the result's shape."""

DRIFT_COLUMNS = ("tier", "check", "then", "now", "distance", "allowed", "", "")
"""Heads of the columns of `drift_rows`."""


class DriftCheck(TypedDict):
    """One figure of today against that of training."""

    tier: str
    check: str
    then: float | None
    """In training; None where that is not a number."""
    now: float | None
    distance: float | None
    """What is held against the threshold; None where there is nothing to measure."""
    threshold: float | None
    breached: bool
    says: str


class DriftResult(TypedDict):
    """All checks of all bundles."""

    version: int
    at: str
    window_days: int
    checks: list[DriftCheck]
    breached: bool
    not_judged: dict[str, str]
    """By tier: why there is nothing to compare with, and what to do. It says nothing about drift."""


def drift_rows(checks: Iterable[DriftCheck]) -> list[list[str]]:
    """Checks as rows of texts, under `DRIFT_COLUMNS`."""
    return [
        [
            check["tier"],
            check["check"],
            *(_text(value) for value in (check["then"], check["now"], check["distance"], check["threshold"])),
            "BREACHED" if check["breached"] else "ok",
            check["says"],
        ]
        for check in checks
    ]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:,g}"
