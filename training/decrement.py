"""The arithmetic of forgetting: a model without the rows of some persons, from the statistics that were kept.

Rows are exchanged in the statistics, and what they bear on is solved again. Where that would not give what a
fit gives, byte for byte, it is refused (`NotExactError`). Whose rows these are, and what is written, is the
matter of `training.forget`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from numpy.typing import NDArray
from pydantic import ValidationError

from consentier.consent import Side, Source, Tier
from consentier.errors import BundleUnsupported, TrainingError
from consentier.features.gate import PermittedRows
from consentier.features.interactions import Interactions
from consentier.models.attribute_encoding import AttributeEncoder
from consentier.models.bundle import Bundle
from consentier.models.gram import GramStatistics, add, select_inputs, subtract
from consentier.models.item_index import ItemIndex
from consentier.models.local_ridge import LocalRidge, touched_targets
from consentier.models.repeats import RepeatCounts
from consentier.models.statistics import Fingerprints, Statistics, ValueCounts
from consentier.training.cold_items import Borrowing, borrowing
from consentier.training.config import TierConfig
from consentier.training.fit import (
    PERSONS,
    FittedTier,
    attribute_counts,
    distinct_persons,
    encoder_of_counts,
    estimator,
    linear_tier,
    popular_arrays,
    published_counts,
    solves_counts,
    tier_interactions,
    with_repeats,
)

__all__ = [
    "CHANGED",
    "Exchange",
    "NotExactError",
    "config_of",
    "decremented",
    "min_persons_of",
    "seed_of",
]


class NotExactError(Exception):
    """Subtracting would not give what a fit gives; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Exchange:
    """The rows that go, and those that come in their place where a history lost a part of itself.

    Attributes
    ----------
    removed, added
        The rows.
    left, entered
        The fingerprints of the persons whose rows they are.
    devices
        uint64, ascending: hashes of the devices that stay part of a customer.
    """

    removed: PermittedRows
    added: PermittedRows
    left: Fingerprints
    entered: Fingerprints
    devices: NDArray[np.uint64]


CHANGED = "the rows that were counted are not there any more, or have changed"


def decremented(
    tier: Tier, bundle: Bundle, statistics: Statistics, exchange: Exchange, threads: int | None
) -> tuple[FittedTier, int | None]:
    """The model from the statistics without what goes, and how many items were solved again.

    None in place of that number where a model is not a matter of single items.

    Raises
    ------
    NotExactError
        Subtracting would not give what a fit gives.
    TrainingError
        Nothing is left to train on.
    BundleUnsupported
        Another release fitted the bundle.
    """
    if tier is Tier.POPULAR:
        return _decremented_popular(bundle, statistics, exchange), None
    return _decremented_model(tier, bundle, statistics, exchange, threads)


def _decremented_popular(bundle: Bundle, statistics: Statistics, exchange: Exchange) -> FittedTier:
    counts = dict(statistics.counts)
    for side, source in ((Side.ONLINE, Source.ONLINE), (Side.CRM, Source.CRM)):
        counts[str(side)] = _exchanged_counts(statistics, str(side), exchange, str(source))
    kept = np.logical_or.reduce([of_side > 0 for of_side in counts.values()])
    items = _kept_items(statistics.items, kept)
    counts = {name: of_side[kept] for name, of_side in counts.items()}
    index, arrays = popular_arrays(items, counts, min_persons_of(bundle))
    return FittedTier(len(index), arrays, {}, _renewed(statistics, exchange, items, counts, None, {}))


def _decremented_model(
    tier: Tier, bundle: Bundle, statistics: Statistics, exchange: Exchange, threads: int | None
) -> tuple[FittedTier, int]:
    if statistics.gram is None:
        raise NotExactError(f"{bundle.manifest.algorithm} is no function of counts")
    config, min_persons = config_of(bundle), min_persons_of(bundle)
    published = statistics.counts[PERSONS] >= min_persons
    remaining = _remaining_persons(statistics, exchange, published, min_persons)
    kept = remaining[published] > 0
    if not kept.any():
        raise TrainingError(
            f"the {tier} tier has no permitted rows to train on: everybody in it was forgotten"
        )
    old_encoder = AttributeEncoder.from_json(
        bundle.manifest.scoring.get("attributes"), first_input=bundle.manifest.item_count
    )
    encoder = old_encoder.moved_to(int(kept.sum()))
    attributes = _remaining_attributes(statistics, exchange, encoder, config, min_persons)
    columns = _Columns(statistics.items, published, old_encoder)
    parts = [
        (columns.interactions(tier, rows, config), step)
        for rows, step in ((exchange.removed, subtract), (exchange.added, add))
    ]
    reduced, changed = _exchanged_gram(statistics.gram, parts)
    gram = select_inputs(reduced, np.append(kept, np.ones(encoder.input_count, np.bool_)))
    model = estimator(tier, config, int(kept.sum()), min_persons, threads)
    if not solves_counts(model):
        raise NotExactError(f"{bundle.manifest.algorithm} is no function of counts")
    borrow = _same_borrowing(bundle, config, exchange.removed)
    # What was borrowed is mixed into the bundle's weights: they are no solutions to keep.
    if isinstance(model, LocalRidge) and borrow is None:
        touched = touched_targets(
            statistics.gram,
            reduced,
            changed,
            targets=kept.size,
            neighbours=config.neighbours,
            item_exponent=config.item_exponent,
            reverse_weight=model.reverse_weight,
        )
        weights, solved = _solved_again(model, bundle, gram, kept, touched)
    else:
        weights, solved = model.solve(gram), int(kept.sum())
    items = _kept_items(statistics.items, remaining > 0)
    index = _kept_items(statistics.items, published & (remaining > 0))
    weights = with_repeats(tier, model, weights, config.repeat_weight)
    persons = published_counts(gram, len(index))
    fitted = linear_tier(tier, config, index, weights, persons, encoder, borrow, threads)
    repeats = _exchanged_repeats(statistics.repeats, *(data.repeats for data, _ in parts))
    if repeats is not None:
        fitted.arrays["repeats"] = repeats.probabilities(min_persons)
    renewed = _renewed(statistics, exchange, items, {PERSONS: remaining[remaining > 0]}, gram, attributes)
    return dataclasses.replace(fitted, statistics=dataclasses.replace(renewed, repeats=repeats)), solved


def _same_borrowing(bundle: Bundle, config: TierConfig, permitted: PermittedRows) -> Borrowing | None:
    """How items borrowed in the fit.

    Raises `NotExactError` where their metadata are others now.
    """
    borrow = borrowing(config, permitted.items)
    facts = None if borrow is None else borrow.facts()
    if facts != bundle.manifest.parameters.get("item_metadata"):
        raise NotExactError("the items' metadata are not those of the fit")
    return borrow


def _remaining_persons(
    statistics: Statistics, exchange: Exchange, published: NDArray[np.bool_], min_persons: int
) -> NDArray[np.int64]:
    """How many persons have each item without those who go. Items may vanish, but not from others' histories.

    Raises `NotExactError` where an item would.
    """
    remaining = _exchanged_counts(statistics, PERSONS, exchange)
    if ((remaining >= min_persons) != (published & (remaining > 0))).any():
        raise NotExactError(
            f"an item is left with fewer than min_persons={min_persons} persons, so that histories of others "
            "get shorter"
        )
    return remaining


def _remaining_attributes(
    statistics: Statistics,
    exchange: Exchange,
    encoder: AttributeEncoder,
    config: TierConfig,
    min_persons: int,
) -> dict[str, ValueCounts]:
    """How many persons have each value without those who go, where others keep their groups.

    Raises `NotExactError` where they do not.
    """
    attributes = _exchanged_attributes(statistics.attributes, exchange)
    if attributes != statistics.attributes:
        learnt = _fitted_encoder(attributes, encoder, config, min_persons)
        if learnt != encoder:
            raise NotExactError("the remaining persons' attributes have other levels or limits")
    return attributes


def _exchanged_gram(
    gram: GramStatistics, parts: Sequence[tuple[Interactions, Callable[..., GramStatistics]]]
) -> tuple[GramStatistics, NDArray[np.int64]]:
    """The co-occurrences with rows subtracted and added, of the same inputs, and the inputs of these rows."""
    changed = [np.zeros(0, dtype=np.int64)]
    try:
        for data, step in parts:
            if data.matrix.nnz:
                order = None if gram.forward is None else data.order
                gram = step(gram, data.matrix, persons=data.persons, order=order)
                changed.append(data.matrix.indices.astype(np.int64))
    except (ValueError, OverflowError) as error:
        raise NotExactError(str(error)) from error
    return gram, np.unique(np.concatenate(changed))


def _exchanged_repeats(
    counted: RepeatCounts | None, removed: RepeatCounts | None, added: RepeatCounts | None
) -> RepeatCounts | None:
    if counted is None or removed is None or added is None:
        return None
    return counted.without(removed).together_with(added)


@dataclasses.dataclass(frozen=True, slots=True)
class _Columns:
    """The inputs of a model: its published items, and the attributes behind them."""

    items: ItemIndex
    published: NDArray[np.bool_]
    encoder: AttributeEncoder

    def interactions(self, tier: Tier, permitted: PermittedRows, config: TierConfig) -> Interactions:
        """The histories in some rows over these inputs."""
        shown = self.items.ids(np.flatnonzero(self.published))
        rows = permitted.rows.filter(
            pc.is_in(permitted.rows["item_id"], value_set=pa.array(shown, pa.string()))
        )
        few = len(pc.unique(rows["item_id"]))
        data = tier_interactions(
            tier, dataclasses.replace(permitted, rows=rows), config, self.encoder.moved_to(few)
        )
        numbers = np.cumsum(self.published) - 1
        items = numbers[self.items.indices(data.item_ids)]
        # Sessions have no attributes, and so no columns for them.
        inputs = np.append(items, len(shown) + np.arange(data.matrix.shape[1] - few))
        matrix = data.matrix
        shape = (matrix.shape[0], len(shown) + self.encoder.input_count)
        # Inputs keep their order, so that what is aligned with the entries stays so.
        over_inputs = sp.csr_matrix((matrix.data, inputs[matrix.indices], matrix.indptr), shape=shape)
        return dataclasses.replace(data, matrix=over_inputs)


def _solved_again(
    model: LocalRidge,
    bundle: Bundle,
    gram: GramStatistics,
    kept: NDArray[np.bool_],
    touched: NDArray[np.int64],
) -> tuple[sp.csr_matrix, int]:
    """The old weights with the touched items' replaced, and how many these are."""
    numbers = np.cumsum(kept) - 1
    again = numbers[touched[kept[touched]]]
    solved = model.solve(gram, columns=again)
    stays = kept.copy()
    stays[touched] = False
    starts, old, data = (bundle.arrays[name] for name in ("indptr", "indices", "data"))
    entries = stays[old]
    # The inputs that vanished stood in touched items only: their rows are empty now.
    inputs = np.append(kept, np.ones(starts.size - 1 - kept.size, np.bool_))
    lengths = np.diff(np.append(0, np.cumsum(entries))[starts])[inputs]
    untouched = sp.csr_matrix(
        (data[entries], numbers[old[entries]], np.append(0, np.cumsum(lengths))), shape=solved.shape
    )
    return sp.csr_matrix(untouched + solved), again.size


def _exchanged_counts(
    statistics: Statistics, name: str, exchange: Exchange, source: str | None = None
) -> NDArray[np.int64]:
    counts = statistics.counts[name].copy()
    for permitted, sign in ((exchange.removed, -1), (exchange.added, 1)):
        rows = permitted.rows
        if source is not None:
            rows = rows.filter(pc.equal(rows["source"], source))
        items, persons = distinct_persons(rows)
        places = statistics.items.indices(items.ids(np.arange(len(items))))
        if (places < 0).any():
            raise NotExactError(CHANGED)
        counts[places] += sign * persons
    if (counts < 0).any():
        raise NotExactError(CHANGED)
    return counts


def _exchanged_attributes(
    attributes: Mapping[str, ValueCounts], exchange: Exchange
) -> dict[str, ValueCounts]:
    changed: dict[str, dict[Any, int]] = {name: dict(counts) for name, counts in attributes.items()}
    for permitted, sign in ((exchange.removed, -1), (exchange.added, 1)):
        if permitted.attributes is None:
            continue
        for name, counts in attribute_counts(permitted.attributes).items():
            for value, count in counts.items():
                changed[name][value] = changed[name].get(value, 0) + sign * count
    if any(count < 0 for counts in changed.values() for count in counts.values()):
        raise NotExactError(CHANGED)
    return {
        name: {value: count for value, count in counts.items() if count} for name, counts in changed.items()
    }


def _fitted_encoder(
    attributes: Mapping[str, ValueCounts], old: AttributeEncoder, config: TierConfig, min_persons: int
) -> AttributeEncoder:
    """The encoder that a fit on persons with these values would learn."""
    first = old.columns[0].first_input if old.columns else 0
    return encoder_of_counts(attributes, first_input=first, config=config, min_persons=min_persons)


def _kept_items(items: ItemIndex, kept: NDArray[np.bool_]) -> ItemIndex:
    return items if kept.all() else ItemIndex.from_ids(items.ids(np.flatnonzero(kept)))


def _renewed(
    statistics: Statistics,
    exchange: Exchange,
    items: ItemIndex,
    counts: Mapping[str, NDArray[np.int64]],
    gram: GramStatistics | None,
    attributes: Mapping[str, ValueCounts],
) -> Statistics:
    fingerprints = statistics.fingerprints.exchanged(exchange.left, exchange.entered)
    return Statistics(items, counts, gram, attributes, fingerprints, exchange.devices)


# ---- What a bundle says of its fit -------------------------------------------------------------------------


def config_of(bundle: Bundle) -> TierConfig:
    """The configuration that a bundle was fitted with: its own account of it."""
    others = {"min_persons", "seed", "item_metadata"}
    parameters = {name: value for name, value in bundle.manifest.parameters.items() if name not in others}
    try:
        return TierConfig.model_validate(parameters)
    except ValidationError as error:
        raise BundleUnsupported(
            f"bundle {bundle.path}: its parameters are not those of this release: train again"
        ) from error


def min_persons_of(bundle: Bundle) -> int:
    value = bundle.manifest.parameters.get("min_persons")
    if not isinstance(value, int):
        raise BundleUnsupported(f"bundle {bundle.path}: its parameters lack min_persons: train again")
    return value


def seed_of(bundle: Bundle) -> int:
    value = bundle.manifest.parameters.get("seed", 0)  # only models that draw at random have one
    if not isinstance(value, int):
        raise BundleUnsupported(f"bundle {bundle.path}: its seed is no whole number: train again")
    return value
