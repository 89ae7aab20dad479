"""What an experiment says: rates of clicks and purchases by arm, and their differences, with intervals.

Outcomes that name their answer give the share of answers that were clicked. A person is in one arm with all
their answers, and these resemble each other; so the binomial interval (Wilson 1927) takes an effective number
of answers, from the variance between buckets of persons (the design effect of Kish 1965, "Survey sampling").
Outcomes that are only counted give clicks per impression; their arms were drawn answer by answer, and the
interval is the score interval of a Poisson rate. Differences combine the intervals of both arms (Newcombe
1998, "Interval estimation for the difference between independent proportions", method 10; for other rates
Zou and Donner 2008, "Construction of confidence limits about effect measures").
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from consentier.errors import DataError, suggestion
from consentier.serving.outcomes import OutcomeKind, OutcomeLine

__all__ = [
    "ALL_TIERS",
    "ArmFigures",
    "Difference",
    "ExperimentReport",
    "Rate",
    "Stratum",
    "experiment_report",
]

ALL_TIERS = "all"
"""The row that takes all tiers together."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """A rate, or a difference of two, with its interval."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True)
class ArmFigures:
    """One arm.

    Attributes
    ----------
    impressions, clicks, purchases
        Numbers of answers; in a stratum of counts, of outcomes.
    click_rate, conversion_rate
        Clicks and purchases per impression.
    """

    arm: str
    impressions: int
    clicks: int
    purchases: int
    click_rate: Rate
    conversion_rate: Rate


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """An arm less the control arm."""

    arm: str
    against: str
    click_rate: Rate
    conversion_rate: Rate


@dataclasses.dataclass(frozen=True, slots=True)
class Stratum:
    """Outcomes that may be compared: recorded in one way, from one tier or all.

    Attributes
    ----------
    recorded
        ``answers`` where outcomes name their answer, ``counts`` where they are only counted.
    tier
        The tier that answered; ``all`` for all of them.
    arms, differences
        The figures, arms in ascending order of their names.
    """

    recorded: str
    tier: str
    arms: tuple[ArmFigures, ...]
    differences: tuple[Difference, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ExperimentReport:
    """The whole report.

    Attributes
    ----------
    experiment, control
        What was compared, and with which arm.
    first_day, last_day
        The days of the outcomes.
    confidence
        Of each interval by itself.
    strata
        First all tiers together, then each.
    unmatched_clicks, unmatched_purchases
        Answers that were clicked or bought from without an impression in the log; they count nowhere.
    """

    experiment: str
    control: str
    first_day: dt.date
    last_day: dt.date
    confidence: float
    strata: tuple[Stratum, ...]
    unmatched_clicks: int
    unmatched_purchases: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        days = {"first_day": self.first_day.isoformat(), "last_day": self.last_day.isoformat()}
        return {**dataclasses.asdict(self), **days}


@dataclasses.dataclass(slots=True)
class _Answer:
    """What became of one answer that is named."""

    arm: str
    tier: str
    bucket: int
    kinds: set[OutcomeKind] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(slots=True)
class _Counts:
    """Counted outcomes of one arm and tier."""

    arm: str
    tier: str
    by_kind: dict[OutcomeKind, int] = dataclasses.field(default_factory=dict)


def experiment_report(
    lines: Iterable[OutcomeLine],
    *,
    experiment: str | None = None,
    control: str | None = None,
    confidence: float = 0.95,
) -> ExperimentReport:
    """Compare the arms of an experiment.

    Parameters
    ----------
    lines
        The outcomes.
    experiment
        Which one; None: the only one that there is.
    control
        The arm that the others are compared with; None: the first by name.
    confidence
        Of each interval, above 0 and below 1. Intervals are not widened for their number.

    Raises
    ------
    ValueError
        If `confidence` is not as described.
    DataError
        If there is no such experiment or arm, or no impression.

    Notes
    -----
    Keeps one small object per named answer in memory.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, not {confidence}")
    known = list(lines)
    name = _one_of(sorted({line.experiment for line in known}), experiment)
    mine = [line for line in known if line.experiment == name]
    answers, counts = _answers(mine), _counts(mine)
    shown = [answer for answer in answers if OutcomeKind.IMPRESSION in answer.kinds]
    arms = sorted({line.arm for line in mine})
    if control is not None and control not in arms:
        raise DataError(f"experiment {name!r} has no outcomes of arm {control!r}{suggestion(control, arms)}")
    against = arms[0] if control is None else control
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    strata = [
        stratum
        for stratum in (*_named_strata(shown, against, z), *_counted_strata(counts, against, z))
        if stratum.arms
    ]
    if not strata:
        raise DataError(f"experiment {name!r} has no impressions: log them, for rates are per impression")
    unmatched = [answer for answer in answers if OutcomeKind.IMPRESSION not in answer.kinds]
    return ExperimentReport(
        experiment=name,
        control=against,
        first_day=min(line.day for line in mine),
        last_day=max(line.day for line in mine),
        confidence=confidence,
        strata=tuple(strata),
        unmatched_clicks=sum(OutcomeKind.CLICK in answer.kinds for answer in unmatched),
        unmatched_purchases=sum(OutcomeKind.PURCHASE in answer.kinds for answer in unmatched),
    )


def _one_of(names: Sequence[str], wanted: str | None) -> str:
    if not names:
        raise DataError(
            "there are no outcomes: is this the directory of the outcome log, and were any written? A "
            "service writes them with an OutcomeLog (docs/experiments.md)"
        )
    if wanted is None:
        if len(names) > 1:
            raise DataError(f"there are outcomes of {', '.join(names)}: name one experiment")
        return names[0]
    if wanted not in names:
        raise DataError(f"there are no outcomes of experiment {wanted!r}{suggestion(wanted, names)}")
    return wanted


def _answers(lines: Iterable[OutcomeLine]) -> list[_Answer]:
    by_key: dict[str, _Answer] = {}
    for line in lines:
        if line.key:
            answer = by_key.setdefault(line.key, _Answer(line.arm, line.tier, line.bucket))
            answer.kinds.add(line.kind)
    return list(by_key.values())


def _counts(lines: Iterable[OutcomeLine]) -> list[_Counts]:
    found: dict[tuple[str, str], _Counts] = {}
    for line in lines:
        if not line.key:
            counts = found.setdefault((line.arm, line.tier), _Counts(line.arm, line.tier))
            counts.by_kind[line.kind] = counts.by_kind.get(line.kind, 0) + line.count
    return list(found.values())


def _named_strata(shown: Sequence[_Answer], against: str, z: float) -> list[Stratum]:
    strata = []
    for tier in (ALL_TIERS, *sorted({answer.tier for answer in shown})):
        arms = []
        for arm in sorted({answer.arm for answer in shown}):
            group = [answer for answer in shown if answer.arm == arm and tier in (ALL_TIERS, answer.tier)]
            if group:
                arms.append(
                    _figures(
                        arm,
                        len(group),
                        *(
                            (sum(kind in answer.kinds for answer in group), _share(group, kind, z))
                            for kind in (OutcomeKind.CLICK, OutcomeKind.PURCHASE)
                        ),
                    )
                )
        strata.append(Stratum("answers", tier, tuple(arms), _differences(arms, against)))
    return strata


def _counted_strata(counts: Sequence[_Counts], against: str, z: float) -> list[Stratum]:
    strata = []
    for tier in (ALL_TIERS, *sorted({each.tier for each in counts})):
        arms = []
        for arm in sorted({each.arm for each in counts}):
            group = [each.by_kind for each in counts if each.arm == arm and tier in (ALL_TIERS, each.tier)]
            total = {kind: sum(by_kind.get(kind, 0) for by_kind in group) for kind in OutcomeKind}
            shown = total[OutcomeKind.IMPRESSION]
            if shown:
                arms.append(
                    _figures(
                        arm,
                        shown,
                        *(
                            (total[kind], _per_impression(total[kind], shown, z))
                            for kind in (OutcomeKind.CLICK, OutcomeKind.PURCHASE)
                        ),
                    )
                )
        strata.append(Stratum("counts", tier, tuple(arms), _differences(arms, against)))
    return strata


def _figures(arm: str, shown: int, clicks: tuple[int, Rate], purchases: tuple[int, Rate]) -> ArmFigures:
    return ArmFigures(arm, shown, clicks[0], purchases[0], clicks[1], purchases[1])


def _share(group: Sequence[_Answer], kind: OutcomeKind, z: float) -> Rate:
    """The share of answers with an outcome, allowing for answers of one bucket that resemble each other."""
    sums: dict[object, list[int]] = {}
    for number, answer in enumerate(group):
        # Arms that were drawn were drawn for each answer by itself.
        cluster = (number,) if answer.bucket < 0 else answer.bucket
        entry = sums.setdefault(cluster, [0, 0])
        entry[0] += kind in answer.kinds
        entry[1] += 1
    hits = sum(entry[0] for entry in sums.values())
    return _wilson(hits, len(group), _design_effect(sums), z)


def _design_effect(sums: Mapping[object, Sequence[int]]) -> float:
    """Variance of a share over clusters as a multiple of that of as many independent answers; at least 1."""
    answers = sum(size for _, size in sums.values())
    share = sum(hits for hits, _ in sums.values()) / answers
    clusters = len(sums)
    if clusters < 2 or clusters == answers or not 0 < share < 1:
        return 1.0
    residuals = math.fsum((hits - share * size) ** 2 for hits, size in sums.values())
    variance = residuals * clusters / (clusters - 1) / answers**2
    return max(1.0, variance / (share * (1 - share) / answers))


def _wilson(hits: int, answers: int, design_effect: float, z: float) -> Rate:
    size, share = answers / design_effect, hits / answers
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return Rate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def _per_impression(count: int, shown: int, z: float) -> Rate:
    centre, half = count + z * z / 2, z * math.sqrt(count + z * z / 4)
    return Rate(count / shown, max(0.0, centre - half) / shown, (centre + half) / shown)


def _differences(arms: Sequence[ArmFigures], against: str) -> tuple[Difference, ...]:
    base = next((each for each in arms if each.arm == against), None)
    if base is None:
        return ()
    return tuple(
        Difference(
            each.arm,
            against,
            _difference(each.click_rate, base.click_rate),
            _difference(each.conversion_rate, base.conversion_rate),
        )
        for each in arms
        if each is not base
    )


def _difference(rate: Rate, base: Rate) -> Rate:
    mean = rate.mean - base.mean
    return Rate(
        mean,
        mean - math.hypot(rate.mean - rate.low, base.high - base.mean),
        mean + math.hypot(rate.high - rate.mean, base.mean - base.low),
    )
