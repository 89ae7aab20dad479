"""What `tune` searches: one table, from a tier's parameters to the range in which each is sought."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import optuna
import pyarrow.compute as pc
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from consentier.consent import Tier
from consentier.features.gate import PermittedRows
from consentier.features.item_metadata import metadata_columns
from consentier.serving.factor_scorer import FACTOR_ALGORITHMS
from consentier.training.config import Algorithm, TierConfig, TuningConfig

__all__ = ["SPACE", "Facts", "Parameter", "configured", "facts_of", "space_of", "values_of"]

_ON = "?"
"""Marks the choice whether an optional parameter is used at all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What of a tier's rows decides which parameters can matter.

    Attributes
    ----------
    tier
        Whose rows.
    event_types
        The types of events that occur, the most frequent one first.
    sources
        The sources that occur.
    attributes
        Whether there are any.
    aged
        Whether the rows are from more than one instant.
    metadata
        Whether anything is known of what items are like.
    """

    tier: Tier
    event_types: tuple[str, ...]
    sources: frozenset[str]
    attributes: bool
    aged: bool
    metadata: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One line of the table.

    Attributes
    ----------
    name
        The field of `TierConfig`, or one entry of a table of weights such as ``source_weights.crm``.
        ``event_weights.*`` stands for each type of event that occurs, apart from the most frequent one:
        only ratios of weights matter.
    distribution
        Where it is sought. A current value outside widens it.
    tiers
        The tiers that have it.
    algorithms
        The algorithms that have it; None: all.
    off
        For an optional parameter, a tuple with the one value that switches it off; None: not optional.
    matters
        Whether it can matter on given rows.
    """

    name: str
    distribution: BaseDistribution
    tiers: frozenset[Tier]
    algorithms: frozenset[str] | None = None
    off: tuple[Any] | None = None
    matters: Callable[[Facts], bool] = lambda facts: True

    @property
    def key(self) -> str:
        """Its name in a study, where one field that two algorithms seek in two ranges is two parameters."""
        if self.algorithms is None:
            return self.name
        return f"{self.name} of {', '.join(sorted(self.algorithms))}"

    def belongs_to(self, algorithm: str) -> bool:
        """Whether an algorithm has it."""
        return self.algorithms is None or algorithm in self.algorithms


_ALL = frozenset({Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED})
_SESSION = frozenset({Tier.SESSION})
_PERSONS = _ALL - {Tier.SESSION}
_RUNNING = _ALL - {Tier.CRM}
_RIDGE = frozenset({"local_ridge"})
_BM25 = frozenset({"bm25"})
_LINEAR = _RIDGE | _BM25 | {"cosine", "tfidf"}
_ALS, _BPR, _SPECTRAL = frozenset({"als"}), frozenset({"bpr"}), frozenset({"spectral"})
_WEIGHT = FloatDistribution(0.1, 10, log=True)


def _has_attributes(facts: Facts) -> bool:
    return facts.attributes


_ONLY_WITH = {"attribute_fade": "attribute_weight", "metadata_neighbours": "metadata_persons"}
"""Parameters that say nothing where another one is 0."""


SPACE: tuple[Parameter, ...] = (
    Parameter("algorithm", CategoricalDistribution(get_args(Algorithm)), _ALL),
    Parameter("neighbours", IntDistribution(20, 400, log=True), _ALL, _LINEAR),
    Parameter("bm25_k1", FloatDistribution(0.01, 10, log=True), _ALL, _BM25),
    Parameter("bm25_b", FloatDistribution(0, 1), _ALL, _BM25),
    Parameter("regularisation", FloatDistribution(0.3, 1000, log=True), _ALL, _RIDGE),
    Parameter("popularity_regularisation", FloatDistribution(0, 2), _ALL, _RIDGE),
    Parameter("row_exponent", FloatDistribution(0, 0.75), _ALL, _RIDGE | _SPECTRAL),
    Parameter("item_exponent", FloatDistribution(0, 0.75), _ALL, _RIDGE | _SPECTRAL),
    Parameter("second_hop_weight", FloatDistribution(0.1, 30, log=True), _ALL, _LINEAR, off=(0.0,)),
    Parameter("second_hop_items", IntDistribution(10, 400, log=True), _ALL, _LINEAR),
    Parameter("distance_decay", FloatDistribution(1, 50, log=True), _SESSION, _RIDGE, off=(0.0,)),
    Parameter("reverse_weight", FloatDistribution(0, 1), _SESSION, _RIDGE),
    Parameter(
        "session_half_life",
        FloatDistribution(5, 500, log=True),
        _SESSION,
        _RIDGE,
        off=(0.0,),
        matters=lambda facts: facts.aged,
    ),
    Parameter("repeat_weight", FloatDistribution(0, 2), _ALL, _LINEAR - _BM25),
    # Its scores are sums of products of two inverse frequencies; in sessions it weighs a probability.
    Parameter("repeat_weight", FloatDistribution(1, 10_000, log=True), _ALL, _BM25, off=(0.0,)),
    Parameter("repeat_weight", FloatDistribution(0, 1), _PERSONS, FACTOR_ALGORITHMS),
    Parameter("factors", CategoricalDistribution((32, 64, 128, 256, 512)), _PERSONS, FACTOR_ALGORITHMS),
    Parameter("factor_regularisation", FloatDistribution(1e-4, 0.3, log=True), _PERSONS, _ALS),
    Parameter("factor_regularisation", FloatDistribution(0.1, 1000, log=True), _PERSONS, _BPR),
    Parameter("unobserved_weight", FloatDistribution(0.003, 1, log=True), _PERSONS, FACTOR_ALGORITHMS),
    Parameter("frequency_exponent", FloatDistribution(0, 1), _PERSONS, _ALS | _BPR),
    Parameter("spectral_exponent", FloatDistribution(0.5, 3), _PERSONS, _SPECTRAL),
    Parameter("unit_rank", IntDistribution(5, 100, log=True), _PERSONS, _SPECTRAL),
    Parameter("history_exponent", FloatDistribution(0, 1), _PERSONS, _SPECTRAL),
    Parameter("history_offset", FloatDistribution(0, 30), _PERSONS, _SPECTRAL),
    Parameter("learning_rate", FloatDistribution(0.005, 0.5, log=True), _PERSONS, _BPR),
    Parameter("step_regularisation", FloatDistribution(1e-4, 0.1, log=True), _PERSONS, _BPR),
    Parameter("session_decay", FloatDistribution(0.5, 50, log=True), _RUNNING),
    Parameter("max_history", IntDistribution(5, 500, log=True), _ALL),
    Parameter(
        "recency_half_life",
        FloatDistribution(2, 500, log=True),
        _PERSONS,
        off=(None,),
        matters=lambda facts: facts.aged,
    ),
    Parameter("source_weights.session", _WEIGHT, frozenset({Tier.ONLINE, Tier.FUSED})),
    Parameter("source_weights.crm", _WEIGHT, frozenset({Tier.FUSED})),
    Parameter("event_weights.*", _WEIGHT, _ALL),
    Parameter(
        "attribute_weight",
        FloatDistribution(0.05, 5, log=True),
        frozenset({Tier.CRM, Tier.FUSED}),
        off=(0.0,),
        matters=_has_attributes,
    ),
    Parameter(
        "attribute_fade",
        FloatDistribution(1, 50, log=True),
        frozenset({Tier.CRM, Tier.FUSED}),
        matters=_has_attributes,
    ),
    Parameter(
        "metadata_persons",
        IntDistribution(2, 200, log=True),
        _ALL,
        _LINEAR,
        off=(0,),
        matters=lambda facts: facts.metadata,
    ),
    Parameter(
        "metadata_neighbours",
        IntDistribution(20, 500, log=True),
        _ALL,
        _LINEAR,
        matters=lambda facts: facts.metadata,
    ),
)
"""All parameters, in the order in which a trial draws them; the first one decides which others there are."""


def facts_of(tier: Tier, permitted: PermittedRows) -> Facts:
    """What of these rows decides which parameters can matter. O(rows)."""
    rows, attributes = permitted.rows, permitted.attributes
    counts = Counter(
        {pair["values"]: pair["counts"] for pair in pc.value_counts(rows["event_type"]).to_pylist()}
    )
    span = pc.min_max(rows["ts"]).as_py()
    return Facts(
        tier=tier,
        event_types=tuple(sorted(counts, key=lambda name: (-counts[name], name))),
        sources=frozenset(pc.unique(rows["source"]).to_pylist()),
        attributes=attributes is not None and attributes.num_rows > 0 and attributes.num_columns > 1,
        aged=span["min"] != span["max"],
        metadata=permitted.items is not None and bool(metadata_columns(permitted.items)),
    )


def space_of(
    facts: Facts, base: TierConfig, algorithms: Sequence[str] = TuningConfig().algorithms
) -> tuple[Parameter, ...]:
    """The lines of the table that can matter for a tier, each widened to hold its current value.

    Parameters
    ----------
    facts
        What of the tier's rows decides it.
    base
        The current configuration.
    algorithms
        Which to try besides the current one; factor models are left out where the tier can have none.
    """
    tried = [name for name in get_args(Algorithm) if _can_be_tried(name, facts, base, algorithms)]
    found = []
    for line in SPACE:
        if facts.tier not in line.tiers or not line.matters(facts):
            continue
        if line.name == "algorithm":
            found.append(dataclasses.replace(line, distribution=CategoricalDistribution(tried)))
        elif any(map(line.belongs_to, tried)):
            found += [_widened(each, base) for each in _written_out(line, facts)]
    return tuple(found)


def _can_be_tried(name: str, facts: Facts, base: TierConfig, algorithms: Sequence[str]) -> bool:
    if name == base.algorithm:
        return True
    return name in algorithms and (facts.tier in _PERSONS or name not in FACTOR_ALGORITHMS)


def _written_out(line: Parameter, facts: Facts) -> Sequence[Parameter]:
    table, _, entry = line.name.partition(".")
    if table == "event_weights" and entry == "*":
        return [dataclasses.replace(line, name=f"{table}.{kind}") for kind in facts.event_types[1:]]
    if table == "source_weights":
        # A running session is a part of the online source; with one source alone there are no ratios.
        needed = {"session": "online"}.get(entry, entry)
        return [line] if {needed, "online"} <= facts.sources else []
    return [line]


def _widened(line: Parameter, base: TierConfig) -> Parameter:
    value, kind = _current(line.name, base), line.distribution
    if line.off == (value,) or not line.belongs_to(base.algorithm):
        return line
    if isinstance(kind, CategoricalDistribution):
        added = () if value in kind.choices else (value,)
        return dataclasses.replace(line, distribution=CategoricalDistribution((*kind.choices, *added)))
    if not isinstance(kind, FloatDistribution | IntDistribution) or (kind.log and value <= 0):
        return line
    low, high = min(kind.low, value), max(kind.high, value)
    return dataclasses.replace(line, distribution=type(kind)(low, high, log=kind.log))


def _current(name: str, config: TierConfig) -> Any:
    table, _, entry = name.partition(".")
    value = getattr(config, table)
    return value.get(entry, 1.0) if entry else value


def values_of(space: Sequence[Parameter], config: TierConfig) -> dict[str, CategoricalChoiceType]:
    """The point of the space at which a configuration stands: what a study is told to try first."""
    point: dict[str, CategoricalChoiceType] = {}
    for line in space:
        if not line.belongs_to(config.algorithm):
            continue
        value = _current(line.name, config)
        if line.off is not None:
            point[line.key + _ON] = line.off != (value,)
        kind = line.distribution
        if isinstance(kind, CategoricalDistribution):
            point[line.key] = value
        elif isinstance(kind, FloatDistribution | IntDistribution) and value is not None:
            point[line.key] = min(max(value, kind.low), kind.high)
    return point


def configured(space: Sequence[Parameter], base: TierConfig, trial: optuna.Trial) -> TierConfig:
    """Draw a trial's parameters, and set them in a configuration.

    Numbers are rounded to three digits before they are used: what is tried is what a file will say.
    """
    changes: dict[str, Any] = {}
    algorithm = base.algorithm
    for line in space:
        if not line.belongs_to(algorithm):
            continue
        needed = _ONLY_WITH.get(line.name)
        if needed is not None and changes.get(needed, getattr(base, needed)) == 0:
            continue
        value = _drawn(line, trial)
        if line.name == "algorithm":
            algorithm = value
        table, _, entry = line.name.partition(".")
        if entry:
            weights: Mapping[str, float] = changes.get(table, getattr(base, table))
            changes[table] = {**weights, entry: value}
        else:
            changes[table] = value
    return TierConfig.model_validate({**base.model_dump(), **changes})


def _drawn(line: Parameter, trial: optuna.Trial) -> Any:
    if line.off is not None and not trial.suggest_categorical(line.key + _ON, (True, False)):
        return line.off[0]
    kind = line.distribution
    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(line.key, kind.choices)
    if isinstance(kind, IntDistribution):
        return trial.suggest_int(line.key, kind.low, kind.high, log=kind.log)
    if isinstance(kind, FloatDistribution):
        return float(f"{trial.suggest_float(line.key, kind.low, kind.high, log=kind.log):.3g}")
    raise TypeError(f"{line.name}: cannot draw from a {type(kind).__name__}")
