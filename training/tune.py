"""The search for a tier's parameters: on a validation period before the cut-off, and on nothing after it.

Tuning is a use of data like any other. A tier is tuned on what its own gate lets through at the training
cut-off, the end of the validation period: rows before the period are fitted on, rows in it are judged by,
and no row at or after the cut-off, where `evaluate` begins to test, is looked at.

The first trial is the current configuration, so that the outcome is never worse than it on the validation
period. The others are drawn by the tree-structured Parzen estimator (Bergstra et al., "Algorithms for
hyper-parameter optimization", NeurIPS 2011) as Optuna implements it, over the table in
`training.search_space`. The same rows, configuration and seed give the same trials, on any number of threads.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from consentier.consent import Ledger, Policy, Tier
from consentier.errors import TrainingError
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.tables import ShopTables
from consentier.progress import progress
from consentier.training.bootstrap import Interval, bootstrap_mean, paired_difference
from consentier.training.config import Config, TierConfig
from consentier.training.config_file import config_toml
from consentier.training.evaluation_result import mean_with_bounds
from consentier.training.factor_validation import batch_scorer
from consentier.training.fit import TierRows
from consentier.training.metrics import Relevant, rank_metrics
from consentier.training.search_space import Parameter, configured, facts_of, space_of, values_of
from consentier.training.track import RecordTrial, not_recorded, tracked_search
from consentier.training.validation import ValidationSet, validation_set

__all__ = [
    "TUNED_TIERS",
    "Objective",
    "Search",
    "TierTuning",
    "Trial",
    "TuningResult",
    "popular_ahead",
    "search",
    "tune",
    "tuned_toml",
]

TUNED_TIERS = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED)
"""The tiers with parameters to tune, in this order."""

_SHARES = (0.1, 0.3, 1.0)
"""Shares of the persons after whose requests a trial may be given up."""

_GROUPS = 100
"""Groups of persons by whose means two trials are compared, pair by pair."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One configuration that was tried.

    Attributes
    ----------
    number
        0 is the current configuration.
    parameters
        The fields of `TierConfig` in which it differs from the current one.
    value
        The metric: of all requests where the trial is ``complete``, of those that were judged where it is
        ``pruned``, None where its fit ``failed``.
    state
        ``complete``, ``pruned`` or ``failed``.
    seconds
        How long it took.
    """

    number: int
    parameters: Mapping[str, Any]
    value: float | None
    state: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class TierTuning:
    """The outcome for one tier.

    Attributes
    ----------
    tier
        Which.
    config
        The best configuration found.
    trials
        All that were tried.
    best
        The number of the best one.
    requests, persons
        How many it was judged by.
    stopped
        Why there were not more trials.
    figures
        Intervals of the metric for the ``popular`` list, the ``current`` and the ``chosen`` configuration,
        and of the paired ``difference`` of the last two. Without a fit of the ``current`` one: neither.
    """

    tier: Tier
    config: TierConfig
    trials: tuple[Trial, ...]
    best: int
    requests: int
    persons: int
    stopped: str
    figures: Mapping[str, Interval]


@dataclasses.dataclass(frozen=True, slots=True)
class TuningResult:
    """The outcome for all tiers.

    Attributes
    ----------
    config
        The configuration that was given, with the tiers' best ones in it.
    metric, start, end, seed
        What was maximised, in which validation period, and the seed of the search.
    tiers
        The outcome for each tier.
    skipped
        Why a tier was not tuned, by tier.
    """

    config: Config
    metric: str
    start: dt.datetime
    end: dt.datetime
    seed: int
    tiers: tuple[TierTuning, ...]
    skipped: Mapping[str, str]


def tune(
    shop: ShopTables,
    config: Config,
    *,
    tiers: Sequence[Tier] = TUNED_TIERS,
    policy: Policy | None = None,
    ledger: Ledger | None = None,
    timeout: float | None = None,
    tracking_folder: Path | None = None,
    show_progress: bool = True,
) -> TuningResult:
    """Search for the best parameters of some tiers, one tier after the other.

    Parameters
    ----------
    shop
        The shop's tables.
    config
        The configuration to begin with. Its ``training.cutoff`` is the end of the validation period and must
        be given; ``tuning`` says how to search.
    tiers
        Which of the four that have a model. One that cannot be tuned is skipped with its reason where several
        are asked for.
    policy
        Its switches decide which rows may be used; the default policy otherwise.
    ledger
        Consents and links; by default those of the shop's tables.
    timeout
        Seconds after which no further trial of a tier begins. With it, the outcome depends on the machine.
    tracking_folder
        Where the MLflow store is, unless the configuration names one; None: nothing is recorded.
    show_progress
        Say on standard error what is being done.

    Raises
    ------
    TrainingError
        If there is no cut-off, or no tier can be tuned.
    ValueError
        If one of the tiers has no parameters.

    Notes
    -----
    The gate and the requests of a tier once, then a fit and an answer to every request per trial.
    """
    for tier in tiers:
        if tier not in TUNED_TIERS:
            raise ValueError(f"the {tier} tier has no parameters to tune")
    end = config.training.cutoff
    if end is None:
        raise TrainingError(
            "tuning needs the end of its validation period: set training.cutoff in the configuration, or "
            "pass --cutoff"
        )
    start = end - dt.timedelta(days=config.tuning.horizon_days or config.evaluation.horizon_days)
    gate = ConsentGate(shop, ledger_of(shop) if ledger is None else ledger, end, policy or Policy.default())
    found: list[TierTuning] = []
    skipped: dict[str, str] = {}
    for tier in tiers:
        try:
            data = _validation(tier, gate, start, end, config, show_progress)
            found.append(_tuned(data, config, timeout, tracking_folder, show_progress))
        except TrainingError as error:
            skipped[str(tier)] = str(error)
    if not found:
        raise TrainingError("; ".join(skipped.values()))
    chosen = config.model_copy(update={str(each.tier): each.config for each in found})
    return TuningResult(chosen, config.tuning.metric, start, end, config.training.seed, tuple(found), skipped)


def tuned_toml(result: TuningResult, base: Config, *, name: str) -> str:
    """The file that `train` takes: the base configuration with the chosen tiers, and how they were found.

    Parameters
    ----------
    result
        The outcome of `tune`.
    base
        What to keep of the other settings: what a file said, without what was said for this search alone.
        The address of the MLflow store is written without user and password.
    name
        What to call the data.
    """
    head = [
        f"Written by consentier tune {metadata.version('consentier')} on the data {name!r}.",
        f"Validation period: {result.start.isoformat()} to {result.end.isoformat()}.",
        f"Chosen for {result.metric} with the seed {result.seed}; the values are those of the validation",
        "period, which flatter what was chosen by them: the test period of consentier evaluate says more.",
    ]
    for each in result.tiers:
        gain = "the configuration before has no stable solution"
        if "difference" in each.figures:
            over = mean_with_bounds(each.figures["difference"].to_dict(), sign="+")
            gain = f"{over} over the configuration before"
        head.append(
            f"{each.tier}: {mean_with_bounds(each.figures['chosen'].to_dict())}, {gain}; "
            f"{len(each.trials)} trials, {each.persons} persons, {each.requests} requests."
        )
        ahead = popular_ahead(each, result.metric)
        head += [] if ahead is None else textwrap.wrap(f"{ahead}.", 110)
    if base.shown() != base:
        head.append("tracking.uri stands here without user, password and options: give it whole by the")
        head.append("environment's CONSENTIER__TRACKING__URI.")
    merged = base.shown().model_copy(update={str(each.tier): each.config for each in result.tiers})
    return "".join(f"# {line}\n" for line in head) + "\n" + config_toml(merged)


def popular_ahead(each: TierTuning, metric: str) -> str | None:
    """Say that no setting of a tier was better than the popular list on validation, and what to do then.

    None where one was.
    """
    popular, chosen = each.figures["popular"], each.figures["chosen"]
    if chosen.mean > popular.mean:
        return None
    return (
        f"{each.tier}: no setting that was tried was better than the popular list on validation ({metric} "
        f"{mean_with_bounds(chosen.to_dict())} against {mean_with_bounds(popular.to_dict())}). Search on "
        "with more trials (--trials) or other algorithms (--algorithms), or judge by a longer period "
        "(--horizon). "
        "Where consentier evaluate says the same, leave the tier out of train (--tier names the others): the "
        "next one of the routing, at last the popular list, answers in its place"
    )


def _validation(
    tier: Tier, gate: ConsentGate, start: dt.datetime, end: dt.datetime, config: Config, show_progress: bool
) -> ValidationSet:
    with progress(f"gate and requests for the {tier} tier", None, enabled=show_progress):
        return validation_set(
            tier,
            gate.permitted(tier),
            start,
            end,
            max_persons=config.tuning.max_persons,
            seed=config.training.seed,
        )


# ---- Judging one configuration -----------------------------------------------------------------------------


class Objective:
    """What a configuration is worth on the validation period of one tier.

    `groups` says to which group of persons each request belongs, int64 (requests,), ascending.

    Parameters
    ----------
    data
        What to fit on and what to judge by.
    metric
        A name such as ``ndcg@20``.
    min_persons, threads, seed
        As in the configuration of training.

    Raises
    ------
    TrainingError
        If there is nothing to fit on.
    """

    def __init__(
        self, data: ValidationSet, metric: str, *, min_persons: int, threads: int | None, seed: int = 0
    ) -> None:
        self.data = data
        self.rows = TierRows(data.tier, data.rows, min_persons)
        self.metric, self.threads, self.seed = metric, threads, seed
        self._width = int(metric.partition("@")[2])
        persons = int(data.persons[-1]) + 1
        self.groups = data.persons * min(_GROUPS, persons) // persons
        ends = [0, *(data.requests_of(share) for share in _SHARES)]
        self._parts = [(first, last, _some(data.targets, first, last)) for first, last in pairwise(ends)]

    def parts(self, config: TierConfig) -> Iterator[NDArray[np.float64]]:
        """The metric of each request, for one share of the persons after the other.

        Raises
        ------
        TrainingError
            If the fit has no solution.
        """
        fitted, _ = self.rows.fit(config, threads=self.threads, seed=self.seed)
        scorer = batch_scorer(fitted.arrays, fitted.scoring)
        for first, last, targets in self._parts:
            lists = self.data.lists_of(scorer, self._width, first=first, last=last, threads=self.threads)
            yield self._judged(lists, targets)

    def values(self, config: TierConfig) -> NDArray[np.float64]:
        """The metric of each request, float64 (requests,)."""
        return np.concatenate(list(self.parts(config)))

    def popular(self) -> NDArray[np.float64]:
        """The metric of each request for the popular list, float64 (requests,)."""
        return self._judged(self.data.popular_lists(self._width), self.data.targets)

    def _judged(self, lists: NDArray[np.int64], targets: Relevant) -> NDArray[np.float64]:
        if not len(targets):
            return np.empty(0)
        return rank_metrics(lists, targets, (self._width,))[self.metric]


def _some(targets: Relevant, first: int, last: int) -> Relevant:
    indptr = targets.indptr[first : last + 1]
    return Relevant(indptr - indptr[0], targets.items[indptr[0] : indptr[-1]])


# ---- Searching ---------------------------------------------------------------------------------------------


def _tuned(
    data: ValidationSet,
    config: Config,
    timeout: float | None,
    tracking_folder: Path | None,
    show_progress: bool,
) -> TierTuning:
    training, settings = config.training, config.tuning
    objective = Objective(
        data,
        settings.metric,
        min_persons=training.min_persons,
        threads=training.threads,
        seed=training.seed,
    )
    base: TierConfig = getattr(config, data.tier)
    space = space_of(facts_of(data.tier, data.rows), base, settings.algorithms)
    facts = {
        "metric": settings.metric,
        "validation_start": data.start.isoformat(),
        "validation_end": data.end.isoformat(),
        "seed": training.seed,
        "requests": len(data.requests),
        "algorithms": ", ".join(settings.algorithms),
    }
    tracked = tracking_folder is not None
    recording = config if tracked else _untracked(config)
    folder = tracking_folder or Path()
    with (
        tracked_search(recording, folder, data.tier, facts, show_progress=show_progress) as record,
        progress(f"tuning the {data.tier} tier", settings.trials, enabled=show_progress) as advance,
    ):
        found = search(
            objective,
            base,
            space,
            seed=training.seed,
            trials=settings.trials,
            patience=settings.patience,
            timeout=timeout,
            record=record,
            report=lambda best: advance(note=f"best {settings.metric} {best:.4f}"),
        )
    return _outcome(found, config)


def _untracked(config: Config) -> Config:
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"enabled": False})})


def search(
    objective: Objective,
    base: TierConfig,
    space: Sequence[Parameter],
    *,
    seed: int,
    trials: int,
    patience: int,
    timeout: float | None = None,
    record: RecordTrial | None = None,
    report: Callable[[float], None] | None = None,
) -> Search:
    """Search a space for the configuration that is worth most.

    Parameters
    ----------
    objective
        What a configuration is worth.
    base
        The configuration to begin with, and to take everything from that is not searched.
    space
        What to search.
    seed
        Of the sampler.
    trials, patience, timeout
        When to stop: after so many trials, after so many without a better one, after so many seconds.
    record, report
        Called after each trial, with the trial and with the best value so far.
    """
    found = Search(objective, base, space, seed)
    found.run(trials, patience, timeout, record or not_recorded, report or (lambda best: None))
    return found


class Search:
    """The trials of one tier: see `search`.

    Attributes
    ----------
    trials
        In order.
    best, config, values
        The number of the best one, -1 before there is one; its configuration; its metric for each request.
    current
        The metric of each request for the configuration to begin with; None if its fit failed.
    stopped
        Why there are no more trials.
    """

    def __init__(self, objective: Objective, base: TierConfig, space: Sequence[Parameter], seed: int) -> None:
        self.objective, self._base, self._space = objective, base, space
        self.trials: list[Trial] = []
        self.best = -1
        self.config = base
        self.values: NDArray[np.float64] = np.empty(0)
        self.current: NDArray[np.float64] | None = None
        self.stopped = ""
        self._study = _study(seed)
        self._study.enqueue_trial(values_of(space, base))

    def run(
        self,
        trials: int,
        patience: int,
        timeout: float | None,
        record: RecordTrial,
        report: Callable[[float], None],
    ) -> None:
        """Try configurations until there is a reason to stop."""
        started = time.monotonic()
        self.stopped = "all trials done"
        for number in range(trials):
            if number and timeout is not None and time.monotonic() - started > timeout:
                self.stopped = f"after {timeout:g} seconds"
                break
            if number - max(self.best, 0) > patience:
                self.stopped = f"no better one in {patience} trials"
                break
            trial = self._try(number)
            self.trials.append(trial)
            record(number, trial.parameters, trial.value, trial.state, trial.seconds)
            report(self._best_value())

    def _best_value(self) -> float:
        value = self.trials[self.best].value if self.best >= 0 else None
        return 0.0 if value is None else value

    def _try(self, number: int) -> Trial:
        asked = self._study.ask()
        drawn = configured(self._space, self._base, asked)
        # The first one is the current configuration as it is, not as the search space would draw it.
        config = drawn if number else self._base
        started = time.perf_counter()
        try:
            values, complete = self._judged(config, asked, number)
            state = TrialState.COMPLETE if complete else TrialState.PRUNED
        except TrainingError:  # no stable solution: that is what is to be learnt of it
            values, state = np.empty(0), TrialState.FAIL
        seconds = round(time.perf_counter() - started, 3)
        value = float(values.mean()) if values.size else None
        self._study.tell(asked, value if state is TrialState.COMPLETE else None, state=state)
        if state is TrialState.COMPLETE and value is not None:
            self._keep(number, config, values, value)
        return Trial(number, _differences(config, self._base), value, _STATES[state], seconds)

    def _judged(
        self, config: TierConfig, asked: optuna.Trial, number: int
    ) -> tuple[NDArray[np.float64], bool]:
        """The values of the requests, and whether these are all."""
        values, reported = np.empty(0), 0
        groups = self.objective.groups
        for part in self.objective.parts(config):
            values = np.concatenate([values, part])
            means = _means(values, groups[: values.size])
            # The last group may go on in the next part.
            whole = len(means) if values.size == groups.size else len(means) - 1
            for group in range(reported, whole):
                asked.report(means[group], group)
            reported = whole
            if number and values.size < groups.size and asked.should_prune():
                return values, False
        return values, True

    def _keep(self, number: int, config: TierConfig, values: NDArray[np.float64], value: float) -> None:
        if number == 0:
            self.current = values
        if self.best < 0 or value > self._best_value():
            self.best, self.config, self.values = number, config, values


_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def _means(values: NDArray[np.float64], groups: NDArray[np.int64]) -> list[float]:
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    means: list[float] = (sums / sizes).tolist()
    return means


def _study(seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # its lines name every trial
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed % 2**32, multivariate=True, group=True)
        # Gives up what is worse than the best trial by a signed-rank test over the groups judged so far.
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    return optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)


def _differences(config: TierConfig, base: TierConfig) -> dict[str, Any]:
    """The fields of a configuration that are not those of another, tables of weights by entry."""
    changes: dict[str, Any] = {}
    before = base.model_dump(mode="json")
    for name, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            changes |= {f"{name}.{key}": each for key, each in value.items() if before[name].get(key) != each}
        elif value != before[name]:
            changes[name] = value
    return changes


def _outcome(found: Search, config: Config) -> TierTuning:
    data = found.objective.data
    if found.best < 0:
        raise TrainingError(f"no configuration that was tried for the {data.tier} tier has a stable solution")
    samples, seed = config.evaluation.bootstrap_samples, config.training.seed
    judged = {"popular": found.objective.popular(), "chosen": found.values}
    if found.current is not None:
        judged["current"] = found.current
    figures = {
        name: bootstrap_mean(values, data.persons, samples=samples, rng=seed)
        for name, values in judged.items()
    }
    if found.current is not None:
        figures["difference"] = paired_difference(
            found.values, found.current, data.persons, samples=samples, rng=seed
        )
    return TierTuning(
        data.tier,
        found.config,
        tuple(found.trials),
        found.best,
        len(data.requests),
        int(data.persons[-1]) + 1,
        found.stopped,
        figures,
    )
