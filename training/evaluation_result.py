"""The result of an evaluation, as JSON-able dictionaries.

The evaluation fills it, the report and the run tracker read it. :func:`check_evaluation` proves that a
dictionary (such as one read from JSON) has exactly this shape, in this version.
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
    "EVALUATION_VERSION",
    "HISTORY_BUCKETS",
    "MINIMUM_GROUP",
    "POPULARITY_BANDS",
    "PROMOTION_RULE",
    "Contrast",
    "ContrastRow",
    "DataFigures",
    "EvaluationResult",
    "FunnelRow",
    "FusionVerdict",
    "GroupRow",
    "HistoryRow",
    "IntervalFigures",
    "ModelFigures",
    "PermissionGroup",
    "PopularityBand",
    "PopularityRow",
    "Population",
    "TargetSide",
    "TierFigures",
    "check_evaluation",
    "mean_with_bounds",
]

EVALUATION_VERSION = 2
"""Of the result's shape. Version 1 had no number; it lacked the models, tests, bands and groups."""

HistoryBucket = Literal["0", "1-2", "3-5", "6-10", "11-20", "21+"]
HISTORY_BUCKETS: tuple[HistoryBucket, ...] = get_args(HistoryBucket)
"""Lengths of history, in items, that scores are broken down by; ascending."""

PopularityBand = Literal["head", "middle", "tail", "new"]
POPULARITY_BANDS: tuple[PopularityBand, ...] = get_args(PopularityBand)
"""Items by popularity in training: about a third of the interactions each; "new" items have none."""

PermissionGroup = Literal["crm_only", "online_only", "both_unlinked", "both_linked"]
"""How a person stood at the cut-off. Where no link may be read, two persons have one permission each."""

TargetSide = Literal["crm", "online"]
"""What a group is judged by: its orders, or the items that it shows interest in online."""

Population = Literal["permissions", "orders", "next_item"]
"""Who was asked what: linked customers of level 3 in each tier; customers with the CRM permission, for their
orders; sessions, for their next items."""

MINIMUM_GROUP = 20
"""Groups of fewer customers are not shown: their figures are noise, and close to figures about persons."""

PROMOTION_RULE = (
    "The advice on joining asks for a gain that is shown. 'consentier promote' has a rule of its own and may "
    "pass a fused model that the advice is against: by the figures of the training run it refuses fused only "
    "where that is shown to be worse than the better of online and crm (docs/training.md, Level 3 by a "
    "single source)."
)
"""Why a report may advise against a model that promotion passes."""


class IntervalFigures(TypedDict):
    """A mean with its 95 % confidence interval; low <= high."""

    mean: float
    low: float
    high: float


def mean_with_bounds(figures: IntervalFigures, sign: str = "") -> str:
    """A mean with its interval, as all pages and tables write it; ``sign`` is ``+`` for differences."""
    return f"{figures['mean']:{sign}.4f} [{figures['low']:{sign}.4f}, {figures['high']:{sign}.4f}]"


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
    p_value: float
    """Of the paired randomisation test, two-sided."""
    p_holm: float
    """The same, corrected after Holm for all rows of all contrasts of the evaluation."""


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


class PopularityRow(TypedDict):
    """Scores of one tier for the targets in one band of popularity."""

    tier: str
    band: PopularityBand
    items: int
    """Items in the band."""
    targets: int
    customers: int
    """Customers (or sessions) with a target in the band."""
    metrics: dict[str, IntervalFigures]
    """Recall and NDCG; empty where ``customers`` is below ``MINIMUM_GROUP``."""


class GroupRow(TypedDict):
    """Scores of one tier for the persons in one state of permission."""

    group: PermissionGroup
    side: TargetSide
    tier: str
    customers: int
    """Customers on the CRM side; on the online side visitors, or customers where they are linked."""
    metrics: dict[str, IntervalFigures]
    """Empty where ``customers`` is below ``MINIMUM_GROUP``."""


class ModelFigures(TypedDict):
    """What a tier's model was fitted and asked with, out of its manifest."""

    tier: str
    algorithm: str
    source_weights: dict[str, float]
    """How much an event of each source that the tier reads counts; empty where nothing is weighed."""
    event_weights: dict[str, float]
    recency_half_life: float | None
    """Days; None: age does not matter."""
    attribute_weight: float
    parameters: list[str]
    """All of it in plain words, one sentence each."""


class FusionVerdict(TypedDict):
    """Whether the fused tier beats the best tier with less permission, at one cutoff, on one cohort."""

    metric: str
    best_other: str
    difference: IntervalFigures
    """Fused less the other."""
    beats: bool
    """Whether the interval lies above 0."""
    text: str


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

    version: int
    """``EVALUATION_VERSION``."""
    data: DataFigures
    population: Population
    cutoffs: list[int]
    customers: int
    """Who is resampled: test customers, or test sessions."""
    requests: int
    tiers: list[TierFigures]
    models: list[ModelFigures]
    contrasts: list[Contrast]
    randomisations: int
    """Assignments of signs behind each p-value."""
    fusion: list[FusionVerdict]
    """One per cutoff; empty where there is no fused tier to judge."""
    by_history_length: list[HistoryRow]
    by_popularity: list[PopularityRow]
    by_permission_group: list[GroupRow]
    consent_funnel: list[FunnelRow]
    notes: list[str]


def check_evaluation(value: Mapping[str, Any]) -> EvaluationResult:
    """Return ``value`` if it is an evaluation result.

    Raises
    ------
    ValueError
        If it is of another version, or naming the field that is missing, unknown, of the wrong type, not
        finite or contradictory.
    """
    found = value.get("version")
    if found != EVALUATION_VERSION:
        written = "carries no version" if found is None else f"is of version {found!r}"
        raise ValueError(
            f"this evaluation {written}, and this release reads version {EVALUATION_VERSION}: it was written "
            "by another release of Consentier; run 'consentier evaluate' again"
        )
    _check(value, EvaluationResult, "evaluation")
    evaluation = cast(EvaluationResult, value)
    _require(bool(evaluation["cutoffs"]), "evaluation.cutoffs is empty: name at least one")
    _require(bool(evaluation["tiers"]), "evaluation.tiers is empty: there is nothing to report")
    for position, tier in enumerate(evaluation["tiers"]):
        _require(bool(tier["metrics"]), f"evaluation.tiers[{position}].metrics is empty")
    for number, contrast in enumerate(evaluation["contrasts"]):
        for place, difference in enumerate(contrast["rows"]):
            where = f"evaluation.contrasts[{number}].rows[{place}]"
            holds = 0 < difference["p_value"] <= difference["p_holm"] <= 1
            _require(holds, f"{where}: p_value must be above 0, p_holm no smaller than it and at most 1")
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
