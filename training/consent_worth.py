"""What each permission is worth: accuracy, coverage and reach by level, and how many stand where.

The estimand is that of the evaluation: customers with *both* permissions and a lawful link, each asked as if
only some of it were permitted. What others would gain by consenting is not identified by such data. It can
only be bounded, and the bounds are wide (Manski 1990, "Nonparametric bounds on treatment effects").

Rows have passed the gate of the end of the test period; levels and reach are counts out of the ledger.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from consentier.consent import Ledger, Lifetimes, Policy, Tier
from consentier.consent.records import SubjectKind
from consentier.errors import TrainingError
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.tables import ShopTables
from consentier.models.bundle import open_bundle
from consentier.progress import progress
from consentier.serving import Answer, Recommender
from consentier.training.bundles import train_bundles
from consentier.training.config import Config, EvaluationConfig
from consentier.training.consent_levels import (
    Interval,
    LevelCounts,
    ReachRow,
    counts_over_time,
    reach_by_level,
)
from consentier.training.evaluate_cases import Case, linked_cases, links_of, sample
from consentier.training.evaluate_judge import (
    Judged,
    Lists,
    World,
    contrast,
    items_of,
    judge,
    targets_of,
    with_holm,
    world_of,
)
from consentier.training.evaluate_requests import answers_of, ask_restricted
from consentier.training.evaluation_result import MINIMUM_GROUP, Contrast, IntervalFigures
from consentier.training.metrics import Relevant
from consentier.training.suppression import published_share
from consentier.writing import scratch

__all__ = ["LEVEL_TIERS", "WORTH_VERSION", "Bounds", "Coverage", "Worth", "bounds_of", "consent_worth"]

WORTH_VERSION = 1
"""Of the result's shape."""

LEVEL_TIERS: Mapping[str, Tier] = {
    "none": Tier.SESSION,
    "online": Tier.ONLINE,
    "crm": Tier.CRM,
    "both": Tier.FUSED,
}
"""Which tier answers at each level of permission."""

_ADDITIONS = (
    (Tier.ONLINE, Tier.SESSION),
    (Tier.CRM, Tier.SESSION),
    (Tier.FUSED, Tier.ONLINE),
    (Tier.FUSED, Tier.CRM),
    (Tier.FUSED, Tier.SESSION),
)
"""A tier and the one with less permission: what the permission between them adds."""


class Coverage(TypedDict):
    """What the answers of one level are made of."""

    level: str
    own_tier: dict[str, float | str | None]
    """Share of the customers whom the level's own tier answered: a `suppression.PublishedShare`."""
    own_places: float
    """Share of all places in lists that the answering tier filled itself, not the popular list."""
    catalogue: float
    """Share of the items that stand in at least one list."""


class Bounds(TypedDict):
    """What is known about one addition for customers whether or not they consented."""

    better: str
    baseline: str
    metric: str
    asked: IntervalFigures
    """Of the customers who were asked: all have both permissions."""
    least_share: float
    """Share of these among all who count, if everybody else should order too."""
    low: float
    high: float


class WorthData(TypedDict):
    """Which data these figures are of."""

    name: str
    cutoff: str
    end: str
    horizon_days: float


class Worth(TypedDict):
    """The whole report."""

    version: int
    data: WorthData
    minimum_group: int
    metric: str
    customers: int | None
    """Asked; None: too few, and then there are no figures of accuracy."""
    designs: list[Contrast]
    """As the engine is run, and with one model for all; see docs/evaluation.md."""
    coverage: list[Coverage]
    bounds: list[Bounds]
    levels: dict[SubjectKind, list[LevelCounts]]
    every: Interval
    now: LevelCounts
    """The customers' levels at the end of the test period."""
    reach: list[ReachRow]
    notes: list[str]


def consent_worth(
    shop: ShopTables,
    config: Config,
    *,
    policy: Policy | None = None,
    lifetimes: Lifetimes | None = None,
    name: str,
    minimum_group: int = 50,
    every: Interval = "month",
    periods: int = 13,
    show_progress: bool = True,
) -> Worth:
    """Train on the time before the cut-off, ask the linked customers as each level, count the levels.

    Parameters
    ----------
    shop
        The shop's tables.
    config
        The configuration; ``training.cutoff`` is the start of the test period and must be given.
    policy
        The routing policy; the default one otherwise.
    lifetimes
        How old grants may grow; as Consentier ships it by default.
    name
        What to call the data in the report.
    minimum_group
        Groups of fewer persons are not shown, nor what would give them away.
    every, periods
        How often, and how often at the most, levels are counted, back from the end of the test period.
    show_progress
        Say on standard error what is being done.

    Raises
    ------
    TrainingError
        If there is no cut-off, or nothing to train on.
    ValueError
        If `minimum_group` is below ``MINIMUM_GROUP``.

    Notes
    -----
    One training run, eight requests per test customer, and for each instant n log n in the ledger's entries.
    """
    if config.training.cutoff is None:
        raise TrainingError(
            "the report needs a cut-off before the end of the data: set training.cutoff in the "
            "configuration, or pass --cutoff"
        )
    if minimum_group < MINIMUM_GROUP:
        raise ValueError(
            f"minimum_group is {minimum_group}; groups of fewer than {MINIMUM_GROUP} are never shown"
        )
    policy = Policy.default() if policy is None else policy
    start = config.training.cutoff
    end = start + dt.timedelta(days=config.evaluation.horizon_days)
    ledger = ledger_of(shop, lifetimes)
    with scratch("worth") as folder:
        trained = train_bundles(
            shop,
            config.with_cutoff(end),
            folder,
            tiers=[*LEVEL_TIERS.values(), Tier.POPULAR],
            policy=policy,
            show_progress=show_progress,
            until=start,
            ledger=ledger,
        )
        asked = _Asked.of(shop, config.evaluation, trained.out, ledger, policy, (start, end))
        accuracy = _accuracy(asked, minimum_group, show_progress)
    with progress("counting levels", None, enabled=show_progress):
        levels = counts_over_time(ledger, policy, end, every=every, periods=periods, threshold=minimum_group)
        now, reach = reach_by_level(ledger, policy, end, threshold=minimum_group)
    skipped = [f"The {tier} tier was not trained: {why}" for tier, why in trained.skipped.items()]
    return {
        "version": WORTH_VERSION,
        "data": {
            "name": name,
            "cutoff": start.isoformat(),
            "end": end.isoformat(),
            "horizon_days": float(config.evaluation.horizon_days),
        },
        "minimum_group": minimum_group,
        "metric": f"ndcg@{config.evaluation.cutoffs[0]}",
        "customers": accuracy.customers,
        "designs": accuracy.designs,
        "coverage": accuracy.coverage,
        "bounds": bounds_of(accuracy.designs, len(asked.cases), _others(now)),
        "levels": levels,
        "every": every,
        "now": now,
        "reach": reach,
        "notes": [*accuracy.notes, *skipped],
    }


def bounds_of(designs: Sequence[Contrast], eligible: int, others: int | None) -> list[Bounds]:
    """What an addition could be at the worst and at the best if everybody else had consented too.

    Nothing is known about the others but that a ranking metric lies between 0 and 1, so that a difference of
    two lies between -1 and 1. How many of them would have ordered is not known either: the bounds are widest
    if all of them did, so that is what they suppose. They begin and end at the ends of the interval of those
    who were asked, so that chance is in them too (conservatively: Imbens and Manski 2004).

    Parameters
    ----------
    designs
        The comparisons, as the engine is run first: that is the one of which bounds are taken.
    eligible
        Customers with both permissions and a target, asked or not.
    others
        Customers without both permissions; None where their number is withheld.

    Returns
    -------
    list of Bounds
        Empty where either is unknown.
    """
    if not designs or not others:
        return []
    share = eligible / (eligible + others)
    return [
        {
            "better": row["better"],
            "baseline": row["baseline"],
            "metric": row["metric"],
            "asked": row["difference"],
            "least_share": share,
            "low": share * row["difference"]["low"] - (1 - share),
            "high": share * row["difference"]["high"] + (1 - share),
        }
        for row in designs[0]["rows"]
    ]


def _others(now: LevelCounts) -> int | None:
    """Customers without both permissions, out of what is published of the levels."""
    known, both = now["known"], now["levels"]["both"]
    return None if known is None or both is None else known - both


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """The test customers and what they are asked with."""

    recommender: Recommender
    world: World
    cases: Sequence[Case]

    @classmethod
    def of(
        cls,
        shop: ShopTables,
        settings: EvaluationConfig,
        bundles: Path,
        ledger: Ledger,
        policy: Policy,
        period: tuple[dt.datetime, dt.datetime],
    ) -> _Asked:
        start, end = period
        gate = ConsentGate(shop, ledger, end, policy)
        online, crm = gate.permitted(Tier.ONLINE), gate.permitted(Tier.CRM)
        recommender = Recommender.load(bundles, policy=policy)
        known = (item for tier in recommender.scorers for item in items_of(open_bundle(bundles / tier)))
        cases = linked_cases(online, crm, links_of(ledger, start, end, policy).held, start)
        return cls(
            recommender,
            world_of(shop, online, crm, start, settings, known),
            # As in the evaluation: who was never seen online cannot be asked by what they did there.
            [case for case in cases if case.all_history or case.session],
        )

    @property
    def missing(self) -> list[str]:
        """Levels without a model of their own."""
        return [level for level, tier in LEVEL_TIERS.items() if tier not in self.recommender.scorers]


@dataclasses.dataclass(frozen=True, slots=True)
class _Accuracy:
    """What the test customers showed."""

    customers: int | None = None
    designs: list[Contrast] = dataclasses.field(default_factory=list)
    coverage: list[Coverage] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def _accuracy(asked: _Asked, minimum_group: int, show_progress: bool) -> _Accuracy:
    if len(asked.cases) < minimum_group:
        note = (
            f"Fewer than {minimum_group} customers have both permissions, a lawful link, a visit before the "
            "cut-off and an order after it: what a permission adds cannot be shown."
        )
        return _Accuracy(notes=[note])
    if asked.missing:
        without = ", ".join(asked.missing)
        note = f"What a permission adds needs a model at every level; there is none for: {without}."
        return _Accuracy(notes=[note])
    cases = sample(asked.cases, asked.world.settings)
    tiers = list(LEVEL_TIERS.values())
    with progress("asking the test customers", 2 * len(tiers) * len(cases), enabled=show_progress) as advance:
        answers = {tier: answers_of(asked.recommender, tier, cases, asked.world, advance) for tier in tiers}
        restricted = ask_restricted(asked.recommender, tiers, cases, asked.world, advance)
    own = {
        str(tier): asked.world.numbers([answer.items for answer in found]) for tier, found in answers.items()
    }
    targets = targets_of((case.target for case in cases), asked.world)
    designs = [
        contrast(
            name, explanation, lists, _judged(lists, targets, asked.world), asked.world, pairs=_ADDITIONS
        )
        for name, explanation, lists in (
            (
                "each level's own model",
                "Each level is answered by its own model, fitted on all rows that it may read: what a "
                "permission adds as the engine is run.",
                own,
            ),
            (
                "one model for all levels",
                "One model, fitted on the customers with both permissions, answers every level; it is shown "
                "only what the level permits: what the data of a permission add to one answer.",
                restricted,
            ),
        )
    ]
    coverage = [
        _coverage(level, tier, answers[tier], figures["coverage"], minimum_group)
        for (level, tier), figures in zip(LEVEL_TIERS.items(), designs[0]["tiers"], strict=True)
    ]
    return _Accuracy(len(cases), with_holm(designs), coverage)


def _judged(lists: Mapping[str, Lists], targets: Relevant, world: World) -> dict[str, Judged]:
    return {tier: judge(found, targets, world) for tier, found in lists.items()}


def _coverage(
    level: str, tier: Tier, answers: Sequence[Answer], catalogue: float | None, minimum_group: int
) -> Coverage:
    own = [answer for answer in answers if answer.tier is tier]
    places = sum(len(answer.items) for answer in answers)
    filled = sum(len(answer.items) - answer.basis.filled for answer in own)
    share = published_share(len(own), len(answers), minimum_group)
    return {
        "level": level,
        "own_tier": dataclasses.asdict(share),
        "own_places": filled / places if places else 0.0,
        "catalogue": catalogue or 0.0,
    }
