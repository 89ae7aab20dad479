"""Fitting one tier: from permitted rows to the weights and settings that a bundle holds."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeGuard, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
import scipy.sparse as sp
from numpy.typing import NDArray

from consentier.consent import Policy, Side, Tier
from consentier.errors import NothingPermitted
from consentier.features.attributes import fit_attributes
from consentier.features.gate import ConsentGate, Funnel, PermittedRows
from consentier.features.interactions import CodedRows, Interactions, interactions, person_counts
from consentier.models.als import ALS
from consentier.models.attribute_encoding import AttributeEncoder, category_text
from consentier.models.bpr import BPR
from consentier.models.factor_scoring import FoldIn
from consentier.models.factors import FactorModel
from consentier.models.gram import GramStatistics
from consentier.models.item_index import ItemIndex
from consentier.models.item_knn import ItemKNN
from consentier.models.local_ridge import LocalRidge
from consentier.models.recency import microseconds_of_days
from consentier.models.repeats import RepeatCounts
from consentier.models.spectral import Spectral
from consentier.models.statistics import Statistics, ValueCounts, write_statistics
from consentier.progress import progress
from consentier.serving.factor_scorer import FACTOR_ALGORITHMS
from consentier.serving.scoring_settings import ScoringSettings
from consentier.training.cold_items import Borrowing, borrowing
from consentier.training.config import TierConfig
from consentier.training.fingerprints import fingerprints, new_key, text_hashes
from consentier.training.restricted import Restricted

__all__ = [
    "ANONYMOUS",
    "PERSONS",
    "Counted",
    "FittedTier",
    "GateSettings",
    "TierRows",
    "attribute_counts",
    "counted_tier",
    "counts_of",
    "distinct_persons",
    "encoder_of_counts",
    "estimator",
    "factor_arrays",
    "factor_tier",
    "fit_facts",
    "fit_popular",
    "fit_tier",
    "keep_statistics",
    "linear_tier",
    "linked_devices",
    "matrix_settings",
    "nothing_to_train_on",
    "popular_arrays",
    "popular_counts",
    "published_counts",
    "solves_counts",
    "tier_arrays",
    "tier_interactions",
    "with_repeats",
]

_T = TypeVar("_T")

PERSONS = "persons"
"""Name of a model's counts of distinct persons in its statistics; the popular list has one per side."""

ANONYMOUS = "anonymous"
"""Name of the popular list's counts of sessions of visitors who were never asked."""


@dataclasses.dataclass(frozen=True, slots=True)
class FittedTier:
    """What a bundle is written from.

    Attributes
    ----------
    item_count
        Items that the model knows.
    arrays
        The bundle's arrays.
    scoring
        The bundle's scoring settings, as plain values.
    statistics
        What the arrays were computed from, for `keep_statistics`; None where that was not asked for. It never
        goes into a bundle.
    facts
        What the manifest's parameters say besides the configuration: ``item_metadata``, where items borrow.
    run
        What ``run.json`` says of the fit besides: ``solver``, where it was not one of `models`.
    """

    item_count: int
    arrays: dict[str, NDArray[Any]]
    scoring: dict[str, Any]
    statistics: Statistics | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """What was counted for a model: co-occurrences, where it is a function of them; repeats in sessions."""

    gram: GramStatistics | None
    repeats: RepeatCounts | None


def fit_tier(
    tier: Tier,
    permitted: PermittedRows,
    config: TierConfig,
    *,
    min_persons: int,
    threads: int | None,
    seed: int = 0,
    show_progress: bool = False,
    keep: bool = False,
) -> FittedTier:
    """Fit one of the four models.

    Parameters
    ----------
    tier
        Which.
    permitted
        What the gate let through for it.
    config
        Algorithm and its parameters.
    min_persons
        Distinct persons that must stand behind each published item and pair.
    threads
        Threads of the solver; the result does not depend on it. None: all cores.
    seed
        Seed of what factor models draw at random.
    show_progress
        Report progress on standard error.
    keep
        Give the statistics too, so that persons can be subtracted later.

    Raises
    ------
    NothingPermitted
        If nothing is left to train on.
    TrainingError
        If the fit has no stable solution.

    Notes
    -----
    See `models.gram`, `models.local_ridge` and `models.als` for the costs.
    """
    rows = TierRows(tier, permitted, min_persons)
    fitted, counted = rows.fit(config, threads=threads, seed=seed, show_progress=show_progress)
    statistics = _tier_statistics(permitted, config, counted) if keep else None
    return dataclasses.replace(fitted, statistics=statistics)


class TierRows:
    """What one tier may publish, ready to be fitted with one configuration after the other.

    What two fits in a row have in common is computed once: the numbered rows always, the inputs of the
    attributes, the matrix and the co-occurrence counts as long as no parameter changes them.

    Parameters
    ----------
    tier
        Which.
    permitted
        What the gate let through for it.
    min_persons
        Distinct persons that must stand behind each published item and pair.

    Raises
    ------
    NothingPermitted
        If nothing is left to train on.
    """

    def __init__(self, tier: Tier, permitted: PermittedRows, min_persons: int) -> None:
        published = _without_rare_items(permitted, min_persons)
        if not published.rows.num_rows:
            raise nothing_to_train_on(tier, permitted.funnel)
        self.tier = tier
        self.published = published
        self.min_persons = min_persons
        self.coded = CodedRows.of(published, by_session=tier is Tier.SESSION)
        self._last: dict[str, tuple[object, Any]] = {}

    def fit(
        self, config: TierConfig, *, threads: int | None, seed: int = 0, show_progress: bool = False
    ) -> tuple[FittedTier, Counted]:
        """Fit the tier's model; also what was counted for it.

        Parameters
        ----------
        config
            Algorithm and its parameters.
        threads
            Threads of the solver; the result does not depend on it. None: all cores.
        seed
            Seed of what is drawn at random (factor models only).
        show_progress
            Report progress on standard error.
        """
        encoder, data = self._data(config)
        items = len(data.item_ids)
        index = ItemIndex.from_ids(data.item_ids)
        model = estimator(self.tier, config, items, self.min_persons, threads, seed)
        if isinstance(model, FactorModel):
            model.fit(data.matrix, show_progress, persons=data.persons)
            fitted = factor_tier(self.tier, config, index, model, model.folding, encoder)
            return fitted, Counted(None, None)
        gram = None
        if solves_counts(model):
            with progress(f"Fitting {type(model).__name__}", items, enabled=show_progress) as advance:
                gram = self._counts(model, data)
                weights = model.solve(gram, advance=advance)
        else:
            weights = model.fit(data.matrix, show_progress, persons=data.persons).weights
        borrow = self._unless_same(
            "borrowing", _borrowing_settings(config), lambda: borrowing(config, self.published.items)
        )
        persons = model.popularity if gram is None else published_counts(gram, items)
        fitted = counted_tier(
            self.tier, config, model, index, weights, persons, encoder, borrow, data.repeats
        )
        return fitted, Counted(gram, data.repeats)

    def _data(self, config: TierConfig) -> tuple[AttributeEncoder, Interactions]:
        """The matrix, and the encoder of its attributes."""
        attributes = self.published.attributes
        known = bool(config.attribute_weight) and config.attribute_min_persons

        def encoded() -> tuple[AttributeEncoder, sp.csr_matrix | None]:
            encoder = _encoder(self.published, config, self.min_persons)
            return encoder, self.coded.attribute_inputs(attributes, encoder)

        encoder, inputs = self._unless_same("attributes", known, encoded)
        settings = matrix_settings(self.tier, config)
        key = (
            known,
            *(sorted(each.items()) if isinstance(each, dict) else each for each in settings.values()),
        )
        data = self._unless_same("data", key, lambda: self.coded.interactions(attributes=inputs, **settings))
        return encoder, data

    def _counts(self, model: LocalRidge | ItemKNN, data: Interactions) -> GramStatistics:
        matrix, _ = self._last["data"]
        settings = ("row_exponent", "max_gram_entries", "distance_decay")
        key = (matrix, *(getattr(model, name, None) for name in settings))
        return self._unless_same("counts", key, lambda: counts_of(model, data))

    def _unless_same(self, name: str, key: object, compute: Callable[[], _T]) -> _T:
        """What was computed last under this name, if the key is still the same."""
        found = self._last.get(name)
        if found is not None and found[0] == key:
            return cast("_T", found[1])
        self._last.pop(name, None)  # not two of them in memory
        value = compute()
        self._last[name] = (key, value)
        return value


def _told(excluded: Mapping[str, int]) -> str:
    return ", ".join(f"{rows} {reason}" for reason, rows in excluded.items()) or "none"


def nothing_to_train_on(tier: Tier, funnels: Iterable[Funnel]) -> NothingPermitted:
    """The error that says what became of a tier's rows."""
    reasons = "; ".join(
        f"{funnel.source}: {funnel.rows_in} rows came in, kept out: {_told(funnel.excluded)}"
        for funnel in funnels
    )
    return NothingPermitted(
        f"the {tier} tier has no permitted rows to train on ({reasons}): look at the consents, and at the "
        "cut-off, until which permissions must hold"
    )


def fit_popular(
    online: PermittedRows,
    crm: PermittedRows,
    anonymous: PermittedRows,
    *,
    min_persons: int,
    keep: bool = False,
) -> FittedTier:
    """Count the distinct permitted persons behind each item, per side.

    Parameters
    ----------
    online, crm
        What the gate let through for these tiers.
    anonymous
        Rows of visitors who were never asked; each session counts on the online side.
    min_persons
        Smaller counts are not published.
    keep
        Give the statistics too, so that persons can be subtracted later.

    Raises
    ------
    NothingPermitted
        If no item has enough persons behind it.
    """
    items, counts = popular_counts(
        person_counts(online), person_counts(crm), person_counts(anonymous, by_session=True)
    )
    index, arrays = popular_arrays(items, counts, min_persons)
    statistics = None
    if keep:
        rows = pa.concat_tables([online.rows, crm.rows])
        everybody = dataclasses.replace(online, rows=rows, attributes=None)
        statistics = Statistics(items, counts, None, {}, fingerprints(everybody, new_key()))
    return FittedTier(len(index), arrays, {}, statistics)


def popular_counts(
    online: Mapping[str, int], crm: Mapping[str, int], anonymous: Mapping[str, int]
) -> tuple[ItemIndex, dict[str, NDArray[np.int64]]]:
    """The counts behind each item, of all items together.

    Parameters
    ----------
    online, crm
        Distinct permitted persons by item.
    anonymous
        Distinct sessions, by item, of visitors who were never asked.
    """
    counted = {str(Side.ONLINE): online, str(Side.CRM): crm, ANONYMOUS: anonymous}
    items = ItemIndex.from_ids(set[str]().union(*counted.values()))
    names = items.ids(np.arange(len(items)))
    counts = {
        name: np.array([of_name.get(item, 0) for item in names], dtype=np.int64)
        for name, of_name in counted.items()
    }
    return items, counts


def popular_arrays(
    items: ItemIndex, counts: Mapping[str, NDArray[np.int64]], min_persons: int
) -> tuple[ItemIndex, dict[str, NDArray[Any]]]:
    """The popular list's items and arrays, from all counts.

    Raises
    ------
    NothingPermitted
        If no item has enough persons behind it.
    """
    sides = {
        Side.ONLINE: counts[str(Side.ONLINE)] + counts[ANONYMOUS],
        Side.CRM: counts[str(Side.CRM)],
    }
    published = {side: np.where(of_side >= min_persons, of_side, 0) for side, of_side in sides.items()}
    listed = np.flatnonzero(np.logical_or.reduce(list(published.values())))
    if not listed.size:
        raise NothingPermitted("no item has enough permitted persons behind it for the popular list")
    index = ItemIndex.from_ids(items.ids(listed))
    return index, {
        **index.arrays(),
        **{f"{side}_counts": of_side[listed] for side, of_side in published.items()},
    }


def keep_statistics(
    restricted: Restricted, tier: Tier, fitted: FittedTier, *, bundle_digest: str, gate: ConsentGate
) -> None:
    """Keep what a bundle was computed from, once the bundle stands.

    Parameters
    ----------
    restricted
        The trainer's restricted directory.
    tier, fitted
        The model, fitted with `keep`.
    bundle_digest
        The digest of its bundle: with any other the statistics are not used.
    gate
        What the rows passed.

    Raises
    ------
    StatisticsError
        They cannot be written.
    ValueError
        The model was fitted without `keep`.
    """
    statistics = fitted.statistics
    if statistics is None:
        raise ValueError("there are no statistics: fit with keep=True")
    if tier is Tier.FUSED:
        devices = pa.array([f"visitor:{visitor}" for visitor in linked_devices(gate)], pa.string())
        hashes = np.sort(text_hashes(devices, statistics.fingerprints.key))
        statistics = dataclasses.replace(statistics, devices=hashes)
    restricted.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_statistics(
        restricted.statistics(tier), statistics, bundle_digest=bundle_digest, facts=fit_facts(gate)
    )


def linked_devices(gate: ConsentGate) -> dict[str, str]:
    """The devices whose rows the gate joins to those of a customer, each with the customer."""
    links = gate.links
    return dict(zip(links["visitor_id"].to_pylist(), links["customer_id"].to_pylist(), strict=True))


class GateSettings(Protocol):
    """What decides which rows pass a gate, on any engine."""

    @property
    def cutoff(self) -> dt.datetime: ...

    @property
    def until(self) -> dt.datetime | None: ...

    @property
    def policy(self) -> Policy: ...


def fit_facts(gate: GateSettings) -> dict[str, Any]:
    """What a later run must know of the gate, so that the same rows pass again."""
    return {
        "cutoff": gate.cutoff.isoformat(),
        "until": None if gate.until is None else gate.until.isoformat(),
        "switches": dataclasses.asdict(gate.policy.switches),
    }


def tier_interactions(
    tier: Tier, permitted: PermittedRows, config: TierConfig, encoder: AttributeEncoder
) -> Interactions:
    """The matrix that a tier's model is fitted on."""
    return interactions(
        permitted,
        by_session=tier is Tier.SESSION,
        encoder=encoder,
        **matrix_settings(tier, config),
    )


def matrix_settings(tier: Tier, config: TierConfig) -> dict[str, Any]:
    """What a tier's matrix depends on besides its rows and the attributes' encoder."""
    session = tier is Tier.SESSION
    return {
        "source_weights": {"online": 1.0} if session else config.source_weights,
        "event_weights": config.event_weights,
        "half_life": None if session else _half_life(config.recency_half_life),
        "session_half_life": _half_life(config.session_half_life or None) if session else None,
    }


def _half_life(days: float | None) -> int | None:
    return None if days is None else microseconds_of_days(days)


def estimator(
    tier: Tier, config: TierConfig, item_count: int, min_persons: int, threads: int | None, seed: int = 0
) -> LocalRidge | ItemKNN | FactorModel:
    """The model that a tier's configuration asks for, not fitted."""
    session = tier is Tier.SESSION
    if config.algorithm == "local_ridge":
        return LocalRidge(
            neighbours=config.neighbours,
            regularisation=config.regularisation,
            popularity_regularisation=config.popularity_regularisation,
            row_exponent=config.row_exponent,
            item_exponent=config.item_exponent,
            repeat_weight=0.0 if session else config.repeat_weight,
            reverse_weight=config.reverse_weight if session else 1.0,
            distance_decay=(config.distance_decay or None) if session else None,
            second_hop_weight=config.second_hop_weight,
            second_hop_items=config.second_hop_items,
            max_gram_entries=config.max_gram_entries,
            item_count=item_count,
            min_persons=min_persons,
            threads=threads,
        )
    if config.algorithm == "spectral":
        return Spectral(
            factors=config.factors,
            row_exponent=config.row_exponent,
            item_exponent=config.item_exponent,
            spectral_exponent=config.spectral_exponent,
            unit_rank=config.unit_rank,
            unobserved_weight=config.unobserved_weight,
            history_exponent=config.history_exponent,
            history_offset=config.history_offset,
            repeat_weight=config.repeat_weight,
            item_count=item_count,
            min_persons=min_persons,
            threads=threads,
        )
    if config.algorithm == "als" or config.algorithm == "bpr":
        return _factor_model(config, item_count, min_persons, threads, seed)
    return ItemKNN(
        similarity=config.algorithm,
        neighbours=config.neighbours,
        k1=config.bm25_k1,
        b=config.bm25_b,
        item_count=item_count,
        min_persons=min_persons,
        threads=threads,
    )


def _factor_model(
    config: TierConfig, item_count: int, min_persons: int, threads: int | None, seed: int
) -> FactorModel:
    shared: dict[str, Any] = {
        "factors": config.factors,
        "iterations": config.iterations,
        "regularisation": config.factor_regularisation,
        "unobserved_weight": config.unobserved_weight,
        "frequency_exponent": config.frequency_exponent,
        "repeat_weight": config.repeat_weight,
        "seed": seed,
        "item_count": item_count,
        "min_persons": min_persons,
        "threads": threads,
    }
    if config.algorithm == "als":
        return ALS(**shared)
    return BPR(learning_rate=config.learning_rate, step_regularisation=config.step_regularisation, **shared)


def counts_of(model: LocalRidge | ItemKNN, data: Interactions) -> GramStatistics:
    """What a model counts in the matrix of a tier; only the ridge knows the order of sessions."""
    if isinstance(model, LocalRidge):
        return model.count(data.matrix, persons=data.persons, order=data.order)
    return model.count(data.matrix, persons=data.persons)


def solves_counts(model: LocalRidge | ItemKNN | FactorModel) -> TypeGuard[LocalRidge | ItemKNN]:
    """Whether a model is a function of co-occurrence counts, from which persons can be subtracted."""
    return isinstance(model, LocalRidge) or (isinstance(model, ItemKNN) and model.similarity == "cosine")


def with_repeats(
    tier: Tier, model: LocalRidge | ItemKNN, weights: sp.csr_matrix, repeat_weight: float
) -> sp.csr_matrix:
    """A model's item weights, inputs × items, with each item's weight for itself; sessions have a table."""
    if isinstance(model, ItemKNN) and repeat_weight and tier is not Tier.SESSION:
        repeats = np.full(weights.shape[1], repeat_weight, np.float32)
        weights = sp.csr_matrix(weights + sp.diags_array(repeats, shape=weights.shape))
    weights.sort_indices()
    return weights


def tier_arrays(index: ItemIndex, weights: sp.csr_matrix) -> dict[str, NDArray[Any]]:
    """The arrays of a linear model's bundle."""
    return {
        **index.arrays(),
        "indptr": weights.indptr.astype(np.int64),
        "indices": weights.indices.astype(np.int32),
        "data": weights.data.astype(np.float32),
    }


def counted_tier(
    tier: Tier,
    config: TierConfig,
    model: LocalRidge | ItemKNN,
    index: ItemIndex,
    weights: sp.csr_matrix,
    persons: NDArray[np.int64],
    encoder: AttributeEncoder,
    borrow: Borrowing | None,
    repeats: RepeatCounts | None,
) -> FittedTier:
    """A linear model's tier, in which items with few persons borrow if they are to.

    Parameters
    ----------
    tier, config
        Which, and its configuration.
    model
        The estimator.
    index
        The items that the model was fitted to.
    weights
        What it solved, inputs × items.
    persons
        int64, shape (items,): from `published_counts`.
    encoder
        Of attributes, behind these items.
    borrow
        How items borrow; None: not at all.
    repeats
        How sessions went on; None for models of persons.
    """
    weights = with_repeats(tier, model, weights, config.repeat_weight)
    fitted = linear_tier(tier, config, index, weights, persons, encoder, borrow, model.threads)
    if repeats is not None:
        fitted.arrays["repeats"] = repeats.probabilities(model.min_persons)
    return fitted


def linear_tier(
    tier: Tier,
    config: TierConfig,
    index: ItemIndex,
    weights: sp.csr_matrix,
    persons: NDArray[np.int64],
    encoder: AttributeEncoder,
    borrow: Borrowing | None,
    threads: int | None,
) -> FittedTier:
    """A linear model's tier, in which items with few persons borrow if they are to.

    Parameters
    ----------
    tier, config
        Which, and its configuration.
    index
        The items that the model was fitted to.
    weights
        The model's, with each item's weight for itself.
    persons
        int64, shape (items,): from `published_counts`.
    encoder
        Of attributes, behind these items.
    borrow
        How items borrow; None: not at all.
    threads
        Threads to use; None: all cores. The result does not depend on it.
    """
    facts: dict[str, Any] = {}
    if borrow is not None:
        repeat_weight = 0.0 if tier is Tier.SESSION else config.repeat_weight
        index, weights = borrow.applied(index, weights, persons, repeat_weight=repeat_weight, threads=threads)
        encoder = encoder.moved_to(len(index))
        facts = {"item_metadata": borrow.facts()}
    return FittedTier(len(index), tier_arrays(index, weights), _scoring(tier, config, encoder), facts=facts)


def published_counts(gram: GramStatistics, items: int) -> NDArray[np.int64]:
    """Distinct persons behind each item's weights; 0 where they are too few to publish any."""
    counts = gram.counts[:items]
    return np.where(counts >= gram.min_persons, counts, 0)


def _borrowing_settings(config: TierConfig) -> tuple[object, ...]:
    return config.metadata_persons, config.metadata_neighbours, config.metadata_columns, config.neighbours


def factor_tier(
    tier: Tier,
    config: TierConfig,
    index: ItemIndex,
    model: FactorModel,
    folding: FoldIn,
    encoder: AttributeEncoder,
) -> FittedTier:
    """A factor model's tier.

    Parameters
    ----------
    tier, config
        Which, and its configuration.
    index
        The items that the model was fitted to.
    model
        The model, fitted.
    folding
        How histories are folded into its factors.
    encoder
        Of attributes, behind these items.
    """
    scoring = {**_scoring(tier, config, encoder), "fold_in": folding.to_json()}
    return FittedTier(len(index), factor_arrays(index, model), scoring)


def factor_arrays(index: ItemIndex, model: FactorModel) -> dict[str, NDArray[Any]]:
    """The arrays of a factor model's bundle."""
    arrays = {**index.arrays(), "factors": model.item_factors, "factor_gram": model.factor_gram}
    return arrays if model.prior_factors is None else {**arrays, "prior_factors": model.prior_factors}


def distinct_persons(rows: pa.Table) -> tuple[ItemIndex, NDArray[np.int64]]:
    """The items of some rows, and how many distinct persons have each. O(rows)."""
    index = ItemIndex.from_ids(pc.unique(rows["item_id"]).to_pylist())
    items, persons = (
        pc.index_in(rows[name], value_set=values).to_numpy(zero_copy_only=False).astype(np.int64)
        for name, values in (
            ("item_id", pa.array(index.ids(np.arange(len(index))), pa.string())),
            ("person", pc.unique(rows["person"])),
        )
    )
    shape = (int(persons.max(initial=-1)) + 1, len(index))
    pairs = sp.csr_matrix((np.ones(items.size, np.bool_), (persons, items)), shape=shape)
    pairs.sum_duplicates()
    return index, np.bincount(pairs.indices, minlength=len(index)).astype(np.int64)


def attribute_counts(attributes: pa.Table) -> dict[str, ValueCounts]:
    """How many persons have each value of each attribute that a model can use."""
    counts: dict[str, ValueCounts] = {}
    for name in attributes.column_names:
        values = attributes[name].drop_null()
        if name == "person":
            continue
        if pt.is_floating(values.type) or pt.is_integer(values.type):
            numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
            distinct, times = np.unique(numbers[np.isfinite(numbers)], return_counts=True)
            counts[name] = dict(zip(distinct.tolist(), times.tolist(), strict=True))
        elif (
            pt.is_string(values.type)
            or pt.is_large_string(values.type)
            or pt.is_boolean(values.type)
            or pt.is_dictionary(values.type)
        ):
            counts[name] = dict(sorted(_texts_of(values.to_pylist()).items()))
    return counts


def _texts_of(values: Iterable[Any]) -> Counter[str]:
    return Counter(text for value in values if (text := category_text(value)) is not None)


def _tier_statistics(permitted: PermittedRows, config: TierConfig, counted: Counted) -> Statistics:
    if not config.attribute_weight:
        permitted = dataclasses.replace(permitted, attributes=None)
    items, persons = distinct_persons(permitted.rows)
    attributes = {} if permitted.attributes is None else attribute_counts(permitted.attributes)
    return Statistics(
        items,
        {PERSONS: persons},
        counted.gram,
        attributes,
        fingerprints(permitted, new_key()),
        repeats=counted.repeats,
    )


def _scoring(tier: Tier, config: TierConfig, encoder: AttributeEncoder) -> dict[str, Any]:
    settings = ScoringSettings(
        source_weights=dict(config.source_weights),
        event_weights=dict(config.event_weights),
        session_decay=config.session_decay,
        hide=tuple(config.hide),
        max_history=config.max_history,
        recency_half_life=None if tier is Tier.SESSION else config.recency_half_life,
        attribute_weight=config.attribute_weight,
        attribute_fade=config.attribute_fade,
        second_hop_weight=config.second_hop_weight,
        second_hop_items=config.second_hop_items,
        # The item weights of the other linear models hold it already.
        repeat_weight=config.repeat_weight
        if tier is Tier.SESSION or config.algorithm in FACTOR_ALGORITHMS
        else 0.0,
    )
    return {**settings.to_json(), "attributes": encoder.to_json()}


def _without_rare_items(permitted: PermittedRows, min_persons: int) -> PermittedRows:
    """Leave out items with too few persons behind them; their ids must not be published either."""
    if min_persons == 1:
        return permitted
    counts = person_counts(permitted)
    kept = [item for item, count in counts.items() if count >= min_persons]
    rows = permitted.rows
    return dataclasses.replace(
        permitted, rows=rows.filter(pc.is_in(rows["item_id"], pa.array(kept, pa.string())))
    )


def encoder_of_counts(
    attributes: Mapping[str, ValueCounts], *, first_input: int, config: TierConfig, min_persons: int
) -> AttributeEncoder:
    """The encoder that a fit on persons with these values would learn; `first_input` is its first."""
    values = {
        name: np.repeat(np.array(list(counts), dtype=object), list(counts.values())).tolist()
        for name, counts in attributes.items()
    }
    longest = max(map(len, values.values()), default=0)
    table = pa.table({name: column + [None] * (longest - len(column)) for name, column in values.items()})
    return fit_attributes(
        table, first_input=first_input, min_persons=max(min_persons, config.attribute_min_persons)
    )


def _encoder(permitted: PermittedRows, config: TierConfig, min_persons: int) -> AttributeEncoder:
    if permitted.attributes is None or not config.attribute_weight:
        return AttributeEncoder(())
    item_count = len(permitted.rows["item_id"].unique())
    return fit_attributes(
        permitted.attributes,
        first_input=item_count,
        min_persons=max(min_persons, config.attribute_min_persons),
    )
