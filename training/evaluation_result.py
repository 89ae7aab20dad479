"""The result of an evaluation, as JSON-able dictionaries.

The evaluation fills it, the report and the run tracker read it. :func:`check_evaluation` proves that a
dictionary (such as one read from JSON) has exactly this shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    TypedDict,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

__all__ = [
    "HISTORY_BUCKETS",
    "MINIMUM_GROUP",
    "Contrast",
    "ContrastRow",
    "DataFigures",
    "EvaluationResult",
    "FunnelRow",
    "HistoryRow",
    "IntervalFigures",
    "Population",
    "TierFigures",
    "check_evaluation",
]

HistoryBucket = Literal["0", "1-2", "3-5", "6-10", "11-20", "21+"]
HISTORY_BUCKETS: tuple[HistoryBucket, ...] = get_args(HistoryBucket)
"""Lengths of history, in items, that scores are broken down by; ascending."""

Population = Literal["permissions", "orders", "next_item"]
"""Who was asked what: linked customers of level 3 in each tier; customers with the CRM permission, for their
orders; sessions, for their next items."""

MINIMUM_GROUP = 20
"""Groups of fewer customers are not shown: their figures are noise, and close to figures about persons."""


class IntervalFigures(TypedDict):
    """A mean with its 95 % confidence interval; low <= high."""

    mean: float
    low: float
    high: float


class DataFigures(TypedDict):
    """Which data were evaluated on."""

    name: str
    cutoff: str
    """Training cut-off, ISO 8601 in UTC."""
    horizon_days: float
    """Length of the period after a request whose orders are its target."""
    fingerprint: NotRequired[str]


class TierFigures(TypedDict):
    """What one tier (or baseline) scored on the test requests."""

    tier: str
    metrics: dict[str, IntervalFigures]
    """By name and cutoff, such as ``"ndcg@10"``."""
    coverage: float | None
    novelty: float | None
    diversity: float | None
    popularity_bias: float | None
    exposure_gini: NotRequired[float | None]


class ContrastRow(TypedDict):
    """One tier against another on the same requests."""

    better: str
    """The tier with more permission, which is expected to be better."""
    baseline: str
    metric: str
    difference: IntervalFigures
    relative: float | None
    """Mean difference divided by the baseline's mean; None where that is 0."""


class Contrast(TypedDict):
    """One design of the comparison between tiers."""

    name: str
    explanation: str
    rows: list[ContrastRow]
    tiers: list[TierFigures]


class HistoryRow(TypedDict):
    """Scores of one tier for the customers with one length of history."""

    tier: str
    bucket: HistoryBucket
    customers: int
    metrics: dict[str, IntervalFigures]
    """May be empty where ``customers`` is below ``MINIMUM_GROUP``."""


class FunnelRow(TypedDict):
    """What the consent gate let through to one tier from one source."""

    tier: str
    source: str
    rows_in: int
    rows_kept: int
    excluded: dict[str, int]
    """Rows by the first reason that excluded them: with ``rows_kept`` they add up to ``rows_in``."""


class EvaluationResult(TypedDict):
    """A whole evaluation."""

    data: DataFigures
    population: Population
    cutoffs: list[int]
    customers: int
    """Who is resampled: test customers, or test sessions."""
    requests: int
    tiers: list[TierFigures]
    contrasts: list[Contrast]
    by_history_length: list[HistoryRow]
    consent_funnel: list[FunnelRow]
    notes: list[str]


def check_evaluation(value: Mapping[str, Any]) -> EvaluationResult:
    """Return ``value`` if it is an evaluation result.

    Raises
    ------
    ValueError
        Naming the field that is missing, unknown, of the wrong type, not finite or contradictory.
    """
    _check(value, EvaluationResult, "evaluation")
    evaluation = cast(EvaluationResult, value)
    _require(bool(evaluation["cutoffs"]), "evaluation.cutoffs is empty: name at least one")
    _require(bool(evaluation["tiers"]), "evaluation.tiers is empty: there is nothing to report")
    for position, tier in enumerate(evaluation["tiers"]):
        _require(bool(tier["metrics"]), f"evaluation.tiers[{position}].metrics is empty")
    for position, row in enumerate(evaluation["consent_funnel"]):
        total = row["rows_kept"] + sum(row["excluded"].values())
        if total != row["rows_in"] or min(row["rows_kept"], *row["excluded"].values(), 0) < 0:
            raise ValueError(
                f"evaluation.consent_funnel[{position}]: rows kept and excluded add up to {total}, "
                f"not to rows_in, {row['rows_in']}; count each row once, under its first reason"
            )
    return evaluation


def _check(value: object, expected: Any, where: str) -> None:
    """Compare ``value`` with a type made of the forms that occur in this module."""
    origin, arguments = get_origin(expected), get_args(expected)
    if is_typeddict(expected):
        _check_fields(value, expected, where)
    elif origin is Literal:
        _require(value in arguments, f"{where} is {value!r}, not one of {', '.join(arguments)}")
    elif origin is UnionType:
        if value is not None or NoneType not in arguments:
            _check(value, arguments[0], where)
    elif origin is list:
        _require(isinstance(value, list), f"{where} must be a list")
        for position, item in enumerate(cast(list[object], value)):
            _check(item, arguments[0], f"{where}[{position}]")
    elif origin is dict:
        _require(isinstance(value, Mapping), f"{where} must be a dictionary")
        for key, item in cast(Mapping[object, object], value).items():
            _check(key, arguments[0], f"{where}: key {key!r}")
            _check(item, arguments[1], f"{where}[{key!r}]")
    elif expected is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        _require(number, f"{where} must be a finite number, not {value!r}")
    elif expected is int:
        _require(isinstance(value, int) and not isinstance(value, bool), f"{where} must be a whole number")
    else:
        _require(isinstance(value, expected), f"{where} must be of type {expected.__name__}")


def _check_fields(value: object, expected: Any, where: str) -> None:
    _require(isinstance(value, Mapping), f"{where} must be a dictionary")
    fields = cast(Mapping[str, object], value)
    # Resolved here: with postponed annotations a TypedDict's __required_keys__ ignores NotRequired.
    hints = get_type_hints(expected, include_extras=True)
    for name, hint in hints.items():
        optional = get_origin(hint) is NotRequired
        if name in fields:
            _check(fields[name], get_args(hint)[0] if optional else hint, f"{where}.{name}")
        else:
            _require(optional, f"{where}.{name} is missing")
    for name in fields:
        _require(name in hints, f"{where}.{name} is not a known field")
    if expected is IntervalFigures:
        interval = cast(IntervalFigures, fields)
        _require(interval["low"] <= interval["high"], f"{where}: low is above high")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
