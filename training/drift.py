"""Whether today's permitted data still look like those that the bundles were fitted on.

Checking is a use of the data like training: today's rows come through the gate of today, and what they are
compared with are shares and counts that the training run left beside its bundle (`data_summary`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from consentier.consent import Ledger, Policy, Tier
from consentier.errors import BundleMissing, TrainingError
from consentier.features.gate import HOLDERS, ConsentGate, PermittedRows, ledger_of
from consentier.features.tables import ShopTables
from consentier.models.bundle import open_bundle, read_run
from consentier.training.bundles import TRAINED_TIERS
from consentier.training.config import DriftConfig
from consentier.training.data_summary import SUMMARY_VERSION, DataSummary, data_summary, window_rows
from consentier.training.evaluate_judge import items_of
from consentier.training.evaluation_result import MINIMUM_GROUP

__all__ = ["DRIFT_VERSION", "DriftCheck", "DriftResult", "drift"]

DRIFT_VERSION = 1
"""Of the result's shape."""


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
    notes: list[str]


def drift(
    shop: ShopTables,
    bundles: Path,
    settings: DriftConfig,
    *,
    at: dt.datetime,
    policy: Policy | None = None,
    ledger: Ledger | None = None,
) -> DriftResult:
    """Compare today's permitted data with those of the bundles in a directory.

    Parameters
    ----------
    shop
        The shop's tables as they are today.
    bundles
        Directory of the bundles, ``bundles/TIER``.
    settings
        The thresholds.
    at
        The instant up to which rows count, and permissions must hold.
    policy
        Its switches decide which rows may be used; the default policy otherwise.
    ledger
        Consents and links; by default those of the shop's tables.

    Raises
    ------
    TrainingError
        If there is no bundle.
    BundleError
        If a bundle is damaged.

    Notes
    -----
    As much as a training run takes before it fits anything.
    """
    policy = Policy.default() if policy is None else policy
    ledger = ledger_of(shop) if ledger is None else ledger
    tiers = [tier for tier in TRAINED_TIERS if (bundles / tier / "manifest.json").is_file()]
    if not tiers:
        raise TrainingError(f"{bundles}: there is no bundle; 'consentier train' writes them")
    gate = ConsentGate(shop, ledger, at, policy)
    checks: list[DriftCheck] = []
    notes: list[str] = []
    for tier in tiers:
        then = _summary_of(bundles / tier)
        if then is None:
            notes.append(
                f"The {tier} bundle says nothing about its data: they are of fewer than {MINIMUM_GROUP} "
                "persons, or it is of an earlier release; train again."
            )
            continue
        permitted = _permitted(gate, tier)
        now = data_summary(permitted, gate.standing_counts(tier), then["window_days"])
        known = items_of(open_bundle(bundles / tier))
        checks += _checks(tier, then, now, _new_items(permitted, known, then["window_days"]), settings)
    return {
        "version": DRIFT_VERSION,
        "at": at.isoformat(),
        "window_days": settings.window_days,
        "checks": checks,
        "breached": any(check["breached"] for check in checks),
        "notes": notes,
    }


def _summary_of(bundle: Path) -> DataSummary | None:
    try:
        found: Any = read_run(bundle).get("data_summary")
    except BundleMissing:
        return None
    if not isinstance(found, dict) or found.get("version") != SUMMARY_VERSION:
        return None
    return found  # type: ignore[return-value]


def _permitted(gate: ConsentGate, tier: Tier) -> tuple[PermittedRows, ...]:
    """What the tier would be fitted on today."""
    if tier is Tier.POPULAR:
        return gate.permitted(Tier.ONLINE), gate.permitted(Tier.CRM)
    return (gate.permitted(tier),)


def _new_items(permitted: tuple[PermittedRows, ...], known: list[str], window_days: int) -> float:
    """Share of the rows that are on items that a bundle does not know."""
    items = window_rows(permitted, window_days)["item_id"]
    if not len(items):
        return 0.0
    unknown = pc.invert(pc.is_in(items, value_set=pa.array(known, pa.string())))
    return round(float(pc.mean(unknown.cast(pa.float64())).as_py()), 3)


def _checks(
    tier: Tier, then: DataSummary, now: DataSummary | None, new_items: float, settings: DriftConfig
) -> list[DriftCheck]:
    if now is None:
        says = (
            f"fewer than {MINIMUM_GROUP} persons have permitted rows in the last {then['window_days']} days"
        )
        return [_check(tier, "volume", then["rows_per_day"], None, None, None, says, breached=True)]
    most = max(now["rows_per_day"], then["rows_per_day"])
    least = min(now["rows_per_day"], then["rows_per_day"])
    ratio = round(most / least, 3) if least else None
    checks = [
        _check(
            tier,
            "volume",
            then["rows_per_day"],
            now["rows_per_day"],
            ratio,
            settings.volume_ratio,
            "rows per day, and how many times one is the other",
            breached=ratio is None or ratio > settings.volume_ratio,
        ),
        _check(
            tier,
            "new items",
            None,
            new_items,
            new_items,
            settings.new_item_share,
            "share of the rows on items that the bundle does not know",
        ),
        _mix(tier, "event mix", then["event_mix"], now["event_mix"], settings.event_mix_distance),
    ]
    for kind in HOLDERS[tier]:
        before, after = (summary["permission_mix"].get(kind, {}) for summary in (then, now))
        name = f"permissions of {kind}s"
        checks.append(_mix(tier, name, before, after, settings.permission_mix_distance))
    return [*checks, _columns(tier, then["columns"], now["columns"])]


def _mix(
    tier: Tier, name: str, then: Mapping[str, float], now: Mapping[str, float], threshold: float
) -> DriftCheck:
    """Total variation distance between two sets of shares."""
    changes = {part: now.get(part, 0.0) - then.get(part, 0.0) for part in sorted({*then, *now})}
    distance = round(sum(abs(change) for change in changes.values()) / 2, 3)
    largest = sorted(changes, key=lambda part: (-abs(changes[part]), part))[:3]
    says = ", ".join(
        f"{part} {then.get(part, 0.0):.1%} → {now.get(part, 0.0):.1%}" for part in largest if changes[part]
    )
    return _check(tier, name, None, None, distance, threshold, says or "no change")


def _columns(tier: Tier, then: Mapping[str, str], now: Mapping[str, str]) -> DriftCheck:
    """Missing columns, and columns of another type, change what a model is fitted on; new ones do not yet."""
    missing = [name for name in then if name not in now]
    other = [
        f"{name} ({then[name]} → {now[name]})" for name in then if now.get(name, then[name]) != then[name]
    ]
    new = [name for name in now if name not in then]
    parts = [("missing", missing), ("other type", other), ("new", new)]
    says = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)
    return _check(
        tier, "columns", None, None, None, None, says or "no change", breached=bool(missing or other)
    )


def _check(
    tier: Tier,
    check: str,
    then: float | None,
    now: float | None,
    distance: float | None,
    threshold: float | None,
    says: str,
    *,
    breached: bool | None = None,
) -> DriftCheck:
    if breached is None:
        breached = distance is not None and threshold is not None and distance > threshold
    return {
        "tier": str(tier),
        "check": check,
        "then": then,
        "now": now,
        "distance": distance,
        "threshold": threshold,
        "breached": breached,
        "says": says,
    }
