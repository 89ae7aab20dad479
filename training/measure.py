"""What a tier's model is worth, by the tier's own permitted rows: the figures that a run is recorded with.

Two periods before the training cut-off are held out, each as long as the evaluation's horizon. The *test*
period ends at the cut-off, the *validation* period where the test period begins. For each, a model of the
same configuration is fitted on what was before it. All rows have passed the gate of the cut-off; no row of
another tier, and none at or after the cut-off, is looked at. The published bundle itself is fitted on
everything up to the cut-off, so its own figures can only be known later.

Whoever tunes with the beginning of the test period as cut-off has chosen parameters on the validation period,
and nothing on the test period.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from consentier.consent import Tier, microseconds
from consentier.errors import BundleError, ConfigError, TrainingError
from consentier.features.gate import PermittedRows
from consentier.features.interactions import person_counts
from consentier.models.bundle import Bundle
from consentier.training.bootstrap import paired_difference
from consentier.training.config import Config, TierConfig
from consentier.training.decrement import config_of, min_persons_of, seed_of
from consentier.training.evaluate_groups import by_history, by_popularity
from consentier.training.evaluate_judge import Judged, Lists, World, interval, judge
from consentier.training.evaluation_result import HistoryRow, IntervalFigures, PopularityRow
from consentier.training.factor_validation import batch_scorer
from consentier.training.fit import TierRows
from consentier.training.linear_validation import BatchScorer
from consentier.training.significance import randomisation_test
from consentier.training.validation import ValidationSet, validation_set

__all__ = [
    "CHAMPION",
    "MEASUREMENT_VERSION",
    "MODEL",
    "POPULAR",
    "Champion",
    "ChampionFacts",
    "Difference",
    "LearningPoint",
    "Measurement",
    "PeriodFigures",
    "Periods",
    "SingleSource",
    "empty_measurement",
    "measure",
]

MEASUREMENT_VERSION = 1
"""Of the shape of a measurement."""

MODEL, POPULAR, CHAMPION = "model", "popular", "champion"
"""What is measured: the model of this run, the popular list of the same rows, and the model in use before."""

_SHARES = (0.25, 0.5)
"""Shares of the training persons at which the learning curve is taken, besides all of them."""


class PeriodFigures(TypedDict):
    """What was measured in one held-out period."""

    name: Literal["validation", "test"]
    start: str
    """ISO 8601 in UTC."""
    end: str
    persons: int
    """Whom the intervals resample: visitors or customers."""
    requests: int
    figures: dict[str, dict[str, IntervalFigures]]
    """By what was measured (``model``, ``popular``, ``champion``), then by metric."""


class Difference(TypedDict):
    """The model less a baseline, on the same requests of the test period."""

    against: str
    metric: str
    difference: IntervalFigures
    p_value: float
    """Of the paired randomisation test, two-sided; not corrected for several tests."""


class LearningPoint(TypedDict):
    """The model's score in the test period when it was fitted on a part of the persons."""

    share: float
    persons: int
    score: IntervalFigures


class ChampionFacts(TypedDict):
    """What the model was held against, besides the popular list."""

    version: str
    digest: str
    how: Literal["as it is", "fitted again"]
    """``as it is``: the bundle itself, which ends before the test period and rests on nothing that may not be
    used now. Otherwise its configuration, fitted on the rows that this run's model was fitted on."""


class SingleSource(TypedDict):
    """Fused less the best tier of a single source, on the same requests of the same linked customers."""

    best: str
    """``online`` or ``crm``: chosen by its mean on these customers, which flatters it."""
    metric: str
    customers: int
    difference: IntervalFigures
    p_value: float


class Measurement(TypedDict):
    """All figures of one tier in one run."""

    version: int
    tier: str
    metric: str
    """The headline: what promotion goes by."""
    periods: list[PeriodFigures]
    """Empty, or without ``test``, where nothing could be measured: `notes` say why."""
    differences: list[Difference]
    champion: ChampionFacts | None
    single_source: SingleSource | None
    """Of the fused tier only; None where it could not be compared."""
    learning: list[LearningPoint]
    by_history_length: list[HistoryRow]
    by_popularity: list[PopularityRow]
    notes: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Periods:
    """The held-out periods before a training cut-off."""

    validation: dt.datetime
    test: dt.datetime
    end: dt.datetime

    @classmethod
    def before(cls, cutoff: dt.datetime, config: Config) -> Periods:
        """Two periods of the evaluation's horizon that end with the cut-off."""
        horizon = dt.timedelta(days=config.evaluation.horizon_days)
        return cls(cutoff - 2 * horizon, cutoff - horizon, cutoff)


@dataclasses.dataclass(frozen=True, slots=True)
class Champion:
    """The bundle in use when a run begins.

    Attributes
    ----------
    version
        Of the registered model.
    bundle
        The bundle.
    may_be_asked
        Whether it rests on nothing that may not be used now. If not, or if it has seen the test period, its
        configuration is fitted again instead.
    """

    version: str
    bundle: Bundle
    may_be_asked: bool


def measure(
    tier: Tier,
    permitted: PermittedRows,
    config: Config,
    periods: Periods,
    *,
    fitted: Bundle | None,
    champion: Champion | None = None,
) -> Measurement:
    """Measure a tier's model in both periods, beside the popular list and the model in use.

    Parameters
    ----------
    tier
        Session, online, crm or fused.
    permitted
        What the gate of the cut-off lets through for it.
    config
        The configuration of the run.
    periods
        The held-out periods.
    fitted
        The model that was fitted on what was before the test period; None: it could not be fitted.
    champion
        The model in use; None: there is none.

    Notes
    -----
    Three fits (validation, and two of the learning curve), one more where the champion is fitted again, and
    an answer to each request for each of them.
    """
    result = empty_measurement(tier, config)
    early = _before(permitted, periods.test)
    for name, rows, start, end in (
        ("validation", early, periods.validation, periods.test),
        ("test", permitted, periods.test, periods.end),
    ):
        try:
            asked = _Asked.of(tier, rows, config, start, end)
            if name == "validation":
                _validate(asked, config, result)
            elif fitted is not None:
                _test(asked, config, fitted, champion, result)
        except TrainingError as error:
            result["notes"].append(f"Nothing was measured in the {name} period: {error}.")
    return result


def empty_measurement(tier: Tier, config: Config) -> Measurement:
    """What is known of a tier of which nothing was measured."""
    return {
        "version": MEASUREMENT_VERSION,
        "tier": str(tier),
        "metric": f"ndcg@{config.evaluation.cutoffs[0]}",
        "periods": [],
        "differences": [],
        "champion": None,
        "single_source": None,
        "learning": [],
        "by_history_length": [],
        "by_popularity": [],
        "notes": [],
    }


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """The requests of one period, and what they are judged by."""

    data: ValidationSet
    world: World

    @classmethod
    def of(
        cls, tier: Tier, permitted: PermittedRows, config: Config, start: dt.datetime, end: dt.datetime
    ) -> _Asked:
        settings = config.evaluation
        data = validation_set(
            tier, permitted, start, end, max_persons=settings.max_customers, seed=settings.seed
        )
        counts = person_counts(data.rows)
        items = MappingProxyType({item: number for number, item in enumerate(data.item_ids)})
        popularity = np.array([counts.get(item, 0) for item in data.item_ids], dtype=np.int64)
        categories = np.full(len(data.item_ids), -1, dtype=np.int64)
        return cls(data, World(items, popularity, categories, settings))

    @property
    def persons(self) -> int:
        return int(self.data.persons[-1]) + 1

    def lists(self, scorer: BatchScorer, config: Config) -> Lists:
        count = len(self.data.requests)
        found: Lists = self.data.lists_of(
            scorer, self.world.width, first=0, last=count, threads=config.training.threads
        )
        return found

    def judged(self, lists: Lists) -> Judged:
        return judge(lists, self.data.targets, self.world)

    def interval(self, values: NDArray[np.float64]) -> IntervalFigures:
        return interval(values, self.world, self.data.persons)

    def figures(self, name: Literal["validation", "test"], judged: Mapping[str, Judged]) -> PeriodFigures:
        return {
            "name": name,
            "start": self.data.start.isoformat(),
            "end": self.data.end.isoformat(),
            "persons": self.persons,
            "requests": len(self.data.requests),
            "figures": {
                what: {metric: self.interval(values) for metric, values in each.items()}
                for what, each in judged.items()
            },
        }


def _validate(asked: _Asked, config: Config, result: Measurement) -> None:
    scorer = _fit(asked.data.tier, asked.data.rows, config)
    judged = {
        MODEL: asked.judged(asked.lists(scorer, config)),
        POPULAR: asked.judged(asked.data.popular_lists(asked.world.width)),
    }
    result["periods"].append(asked.figures("validation", judged))


def _test(
    asked: _Asked, config: Config, fitted: Bundle, champion: Champion | None, result: Measurement
) -> None:
    scorer = batch_scorer(fitted.arrays, fitted.manifest.scoring)
    lists = {
        MODEL: asked.lists(scorer, config),
        POPULAR: asked.data.popular_lists(asked.world.width),
    }
    if champion is not None:
        try:
            rival, result["champion"] = _rival(asked, config, champion)
            lists[CHAMPION] = asked.lists(rival, config)
        except (BundleError, ConfigError, TrainingError) as error:
            result["notes"].append(f"The model in use could not be measured: {error}.")
    judged = {what: asked.judged(each) for what, each in lists.items()}
    result["periods"].append(asked.figures("test", judged))
    result["differences"] = _differences(asked, judged)
    result["learning"] = _learning(asked, config, judged[MODEL][result["metric"]], result["metric"])
    lengths = [
        len({event.item_id for event in (*view.session, *view.online_history, *view.crm_history)})
        for view in asked.data.views
    ]
    clusters = asked.data.persons
    result["by_history_length"] = by_history(lengths, judged, asked.world, clusters=clusters)
    result["by_popularity"] = by_popularity(lists, asked.data.targets, asked.world, clusters=clusters)


def _rival(asked: _Asked, config: Config, champion: Champion) -> tuple[BatchScorer, ChampionFacts]:
    """The model in use, as it is or fitted again."""
    bundle = champion.bundle
    unseen = dt.datetime.fromisoformat(bundle.manifest.cutoff) <= asked.data.start
    as_it_is = unseen and champion.may_be_asked
    facts: ChampionFacts = {
        "version": champion.version,
        "digest": bundle.digest,
        "how": "as it is" if as_it_is else "fitted again",
    }
    if as_it_is:
        return batch_scorer(bundle.arrays, bundle.manifest.scoring), facts
    rows = TierRows(asked.data.tier, asked.data.rows, min_persons_of(bundle))
    model, _ = rows.fit(config_of(bundle), threads=config.training.threads, seed=seed_of(bundle))
    return batch_scorer(model.arrays, model.scoring), facts


def _differences(asked: _Asked, judged: Mapping[str, Judged]) -> list[Difference]:
    settings, clusters = asked.world.settings, asked.data.persons
    compared = [
        (against, f"ndcg@{cutoff}")
        for against in (POPULAR, CHAMPION)
        if against in judged
        for cutoff in settings.cutoffs
    ]
    differences = [judged[MODEL][metric] - judged[against][metric] for against, metric in compared]
    p_values = randomisation_test(np.stack(differences, axis=1), clusters, rng=settings.seed)
    return [
        {
            "against": against,
            "metric": metric,
            "difference": paired_difference(
                judged[MODEL][metric],
                judged[against][metric],
                clusters,
                samples=settings.bootstrap_samples,
                rng=settings.seed,
            ).to_dict(),
            "p_value": p_value,
        }
        for (against, metric), p_value in zip(compared, p_values.tolist(), strict=True)
    ]


def _learning(asked: _Asked, config: Config, whole: NDArray[np.float64], metric: str) -> list[LearningPoint]:
    """Scores of models that were fitted on a part of the persons, drawn by the seed; each holds the last."""
    rows = asked.data.rows
    names = pc.unique(rows.rows["person"]).to_pylist()
    order = np.random.default_rng(config.training.seed).permutation(len(names))
    points: list[LearningPoint] = []
    for share in _SHARES:
        count = round(share * len(names))
        chosen = [names[number] for number in order[:count].tolist()]
        try:
            scorer = _fit(asked.data.tier, _of_persons(rows, chosen), config)
        except TrainingError:
            continue  # too few for a model: the curve begins further right
        values = asked.judged(asked.lists(scorer, config))[metric]
        points.append({"share": share, "persons": count, "score": asked.interval(values)})
    points.append({"share": 1.0, "persons": len(names), "score": asked.interval(whole)})
    return points


def _fit(tier: Tier, rows: PermittedRows, config: Config) -> BatchScorer:
    training = config.training
    chosen: TierConfig = getattr(config, tier)
    fitted, _ = TierRows(tier, rows, training.min_persons).fit(
        chosen, threads=training.threads, seed=training.seed
    )
    return batch_scorer(fitted.arrays, fitted.scoring)


def _before(permitted: PermittedRows, end: dt.datetime) -> PermittedRows:
    instant = microseconds(end)
    rows = permitted.rows.filter(pc.less(permitted.rows["ts"], instant))
    return dataclasses.replace(permitted, rows=rows, until=instant)


def _of_persons(permitted: PermittedRows, persons: Sequence[str]) -> PermittedRows:
    names, attributes = pa.array(persons, pa.string()), permitted.attributes
    if attributes is not None:
        attributes = attributes.filter(pc.is_in(attributes["person"], names))
    rows = permitted.rows.filter(pc.is_in(permitted.rows["person"], names))
    return dataclasses.replace(permitted, rows=rows, attributes=attributes)
