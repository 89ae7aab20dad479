"""The arithmetic of forgetting and of training on: a model from kept statistics in which rows were exchanged.

Rows are exchanged in the statistics, and what they bear on is solved again. Where that would not give what a
fit gives, byte for byte, it is refused (`NotExactError`). Whose rows these are, and what is written, is the
matter of `training.forget` and `training.retrain`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from numpy.typing import NDArray
from pydantic import ValidationError

from consentier.consent import Side, Source, Tier
from consentier.errors import BundleUnsupported, NothingPermitted
from consentier.features.gate import PermittedRows
from consentier.features.interactions import Interactions
from consentier.models.attribute_encoding import AttributeEncoder, CategoryColumn
from consentier.models.bundle import Bundle
from consentier.models.gram import GramStatistics
from consentier.models.gram_arithmetic import add, insert_inputs, select_inputs, subtract
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
    "AttributePlaces",
    "Columns",
    "Exchange",
    "NotExactError",
    "Renewed",
    "attribute_places",
    "config_of",
    "decremented",
    "encoder_of",
    "exchanged",
    "exchanged_counts",
    "min_persons_of",
    "seed_of",
    "spanned",
    "with_items",
]


class NotExactError(Exception):
    """Subtracting would not give what a fit gives; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Exchange:
    """The rows that go, and those that come: of each person who is in it the whole history.

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


@dataclasses.dataclass(frozen=True, slots=True)
class Renewed:
    """What a model is to know of its data after an exchange.

    Attributes
    ----------
    items
        Every item with permitted rows.
    persons
        int64, shape (len(items),): distinct persons with each.
    encoder
        Of attributes, as a fit on the persons that are there then learns it.
    attributes
        How many of them have each value, by attribute.
    borrow
        How items borrow; None: not at all.
    """

    items: ItemIndex
    persons: NDArray[np.int64]
    encoder: AttributeEncoder
    attributes: Mapping[str, ValueCounts]
    borrow: Borrowing | None


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
    NothingPermitted
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
        counts[str(side)] = exchanged_counts(statistics, str(side), exchange, str(source))
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
    remaining = exchanged_counts(statistics, PERSONS, exchange)
    kept = remaining > 0
    if not (remaining >= min_persons).any():
        raise NothingPermitted(
            f"the {tier} tier has no permitted rows to train on: everybody in it was forgotten"
        )
    encoder = encoder_of(bundle).moved_to(int((remaining >= min_persons).sum()))
    after = Renewed(
        _kept_items(statistics.items, kept),
        remaining[kept],
        encoder,
        _remaining_attributes(statistics, exchange, encoder, config, min_persons),
        _same_borrowing(bundle, config, exchange.removed),
    )
    return exchanged(tier, bundle, statistics, exchange, after, threads)


def exchanged(
    tier: Tier,
    bundle: Bundle,
    statistics: Statistics,
    exchange: Exchange,
    after: Renewed,
    threads: int | None,
) -> tuple[FittedTier, int]:
    """The model after an exchange, with its statistics, and how many items were solved again.

    Parameters
    ----------
    tier, bundle, statistics
        The model, and what it was computed from.
    exchange
        Must hold everybody whose history is not the same before and after, be it only because an item of it
        is published in one case and not in the other, or because an attribute has another input.
    after
        What the model is to know of its data then.
    threads
        Threads of the solver; the result does not depend on it. None: all cores.

    Raises
    ------
    NotExactError
        The rows to be removed were not counted, or the model is no function of counts.

    Notes
    -----
    O(entries of the statistics + squared lengths of the exchanged histories), and what is solved.
    """
    config, min_persons = config_of(bundle), min_persons_of(bundle)
    old, new = spanned(
        _published(statistics.items, statistics.counts[PERSONS], min_persons),
        encoder_of(bundle),
        _published(after.items, after.persons, min_persons),
        after.encoder,
    )
    model = estimator(tier, config, len(new.shown), min_persons, threads)
    if statistics.gram is None or not solves_counts(model):
        raise NotExactError(f"{bundle.manifest.algorithm} is no function of counts")
    parts = [
        (columns.interactions(tier, rows, config), step)
        for columns, rows, step in ((old, exchange.removed, subtract), (new, exchange.added, add))
    ]
    before = insert_inputs(statistics.gram, old.places, old.size)
    counted, changed = _exchanged_gram(before, parts)
    gram = _selected(counted, new.places)
    # What was borrowed is mixed into the bundle's weights: they are no solutions to keep.
    if isinstance(model, LocalRidge) and after.borrow is None and not _borrowed(bundle):
        touched = touched_targets(
            before,
            counted,
            changed,
            targets=old.items,
            neighbours=config.neighbours,
            item_exponent=config.item_exponent,
            reverse_weight=model.reverse_weight,
        )
        weights, solved = _solved_again(model, bundle, gram, old, new, touched)
    else:
        weights, solved = model.solve(gram), len(new.shown)
    weights = with_repeats(tier, model, weights, config.repeat_weight)
    persons = published_counts(gram, len(new.shown))
    encoder = after.encoder.moved_to(len(new.shown))
    fitted = linear_tier(tier, config, new.shown, weights, persons, encoder, after.borrow, threads)
    repeats = _exchanged_repeats(statistics.repeats, *(data.repeats for data, _ in parts))
    if repeats is not None:
        fitted.arrays["repeats"] = repeats.probabilities(min_persons)
    renewed = _renewed(statistics, exchange, after.items, {PERSONS: after.persons}, gram, after.attributes)
    return dataclasses.replace(fitted, statistics=dataclasses.replace(renewed, repeats=repeats)), solved


def _same_borrowing(bundle: Bundle, config: TierConfig, permitted: PermittedRows) -> Borrowing | None:
    """How items borrowed in the fit.

    Raises `NotExactError` where their metadata are others now.
    """
    borrow = borrowing(config, permitted.items)
    facts = None if borrow is None else borrow.facts()
    if facts != _borrowed(bundle):
        raise NotExactError("the items' metadata are not those of the fit")
    return borrow


def _borrowed(bundle: Bundle) -> object:
    """From which metadata the items of a bundle borrowed; None where they did not."""
    return bundle.manifest.parameters.get("item_metadata")


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
class AttributePlaces:
    """Where the inputs of two encoders stand among those of both together.

    Attributes
    ----------
    old, new
        int64, ascending: place of each input of either.
    size
        How many there are of both together.
    """

    old: NDArray[np.int64]
    new: NDArray[np.int64]
    size: int


def attribute_places(old: AttributeEncoder, new: AttributeEncoder) -> AttributePlaces:
    """Match the inputs of two encoders: levels by their text, the rare ones' and bins by their place.

    Raises
    ------
    NotExactError
        The attributes come in another order.
    """
    before, after = _input_keys(old), _input_keys(new)
    shared = set(before) & set(after)
    if [key for key in before if key in shared] != [key for key in after if key in shared]:
        raise NotExactError("the attributes come in another order than those of the fit")
    together: dict[tuple[str, ...], int] = {}
    left = iter(after)
    for key in before:
        if key in shared:
            for other in left:
                together.setdefault(other, len(together))
                if other == key:
                    break
        else:
            together.setdefault(key, len(together))
    for other in left:
        together.setdefault(other, len(together))
    placed, placed_after = (
        np.array([together[key] for key in keys], dtype=np.int64) for keys in (before, after)
    )
    return AttributePlaces(placed, placed_after, len(together))


def _input_keys(encoder: AttributeEncoder) -> list[tuple[str, ...]]:
    """What an input stands for, in the order of the inputs."""
    keys: list[tuple[str, ...]] = []
    for column in encoder.columns:
        if isinstance(column, CategoryColumn):
            keys += [(column.name, "level", level) for level in column.levels]
            keys += [(column.name, "rare")] if column.rare else []
        else:
            keys += [(column.name, "bin", str(number)) for number in range(column.input_count)]
    return keys


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """The inputs of a model, its published items and the attributes behind them, among those of two models.

    Attributes
    ----------
    shown, encoder
        The items, and the attributes' encoder.
    places
        int64, ascending: place of each input among those of both models.
    items, size
        Items, and inputs, of both models together.
    """

    shown: ItemIndex
    encoder: AttributeEncoder
    places: NDArray[np.int64]
    items: int
    size: int

    def interactions(self, tier: Tier, permitted: PermittedRows, config: TierConfig) -> Interactions:
        """The histories in some rows over the inputs of both models."""
        names = self.shown.ids(np.arange(len(self.shown)))
        rows = permitted.rows.filter(
            pc.is_in(permitted.rows["item_id"], value_set=pa.array(names, pa.string()))
        )
        few = len(pc.unique(rows["item_id"]))
        data = tier_interactions(
            tier, dataclasses.replace(permitted, rows=rows), config, self.encoder.moved_to(few)
        )
        # Sessions have no attributes, and so no columns for them.
        behind = len(self.shown) + np.arange(data.matrix.shape[1] - few)
        inputs = self.places[np.append(self.shown.indices(data.item_ids), behind)]
        matrix = data.matrix
        # Inputs keep their order, so that what is aligned with the entries stays so.
        over_inputs = sp.csr_matrix(
            (matrix.data, inputs[matrix.indices], matrix.indptr), shape=(matrix.shape[0], self.size)
        )
        return dataclasses.replace(data, matrix=over_inputs)


def spanned(
    shown: ItemIndex, encoder: AttributeEncoder, shown_after: ItemIndex, encoder_after: AttributeEncoder
) -> tuple[Columns, Columns]:
    """The inputs of a model before and after an exchange, in one order that both keep.

    Raises
    ------
    NotExactError
        The attributes come in another order.
    """
    before, after = (items.ids(np.arange(len(items))) for items in (shown, shown_after))
    together = shown if before == after else ItemIndex.from_ids({*before, *after})
    attributes = attribute_places(encoder, encoder_after)
    items, size = len(together), len(together) + attributes.size
    old, new = (
        np.append(together.indices(ids), items + places)
        for ids, places in ((before, attributes.old), (after, attributes.new))
    )
    return (
        Columns(shown, encoder, old, items, size),
        Columns(shown_after, encoder_after, new, items, size),
    )


def _selected(gram: GramStatistics, places: NDArray[np.int64]) -> GramStatistics:
    """The co-occurrences of some inputs.

    Raises `NotExactError` where somebody has another one.
    """
    kept = np.zeros(gram.gram.shape[0], dtype=np.bool_)
    kept[places] = True
    try:
        return select_inputs(gram, kept)
    except ValueError as error:
        raise NotExactError(
            f"an item is left with fewer than min_persons={gram.min_persons} persons, so that histories of "
            "others get shorter"
        ) from error


def _solved_again(
    model: LocalRidge,
    bundle: Bundle,
    gram: GramStatistics,
    old: Columns,
    new: Columns,
    touched: NDArray[np.int64],
) -> tuple[sp.csr_matrix, int]:
    """The old weights with the touched items' replaced, and how many these are."""
    numbers = np.full(old.size, -1, dtype=np.int64)
    numbers[new.places] = np.arange(new.places.size)
    again = numbers[touched]
    again = again[again >= 0]
    solved = model.solve(gram, columns=again)
    inputs = numbers[old.places]
    items = inputs[: len(old.shown)]
    stays = items >= 0
    stays[np.isin(old.places[: len(old.shown)], touched)] = False
    starts, targets, data = (bundle.arrays[name] for name in ("indptr", "indices", "data"))
    entries = stays[targets]
    lengths = np.zeros(new.places.size, dtype=np.int64)
    # The inputs that vanished stood in touched items only: nothing is left in their rows.
    there = inputs >= 0
    lengths[inputs[there]] = np.diff(np.append(0, np.cumsum(entries))[starts])[there]
    untouched = sp.csr_matrix(
        (data[entries], items[targets[entries]], np.append(0, np.cumsum(lengths))), shape=solved.shape
    )
    return sp.csr_matrix(untouched + solved), again.size


def with_items(statistics: Statistics, ids: Iterable[str]) -> Statistics:
    """Statistics that know further items, which nobody has yet. The co-occurrences are those of before."""
    known = statistics.items.ids(np.arange(len(statistics.items)))
    items = ItemIndex.from_ids({*known, *ids})
    if len(items) == len(known):
        return statistics
    places = items.indices(known)
    counts = {name: np.zeros(len(items), dtype=np.int64) for name in statistics.counts}
    for name, of_name in statistics.counts.items():
        counts[name][places] = of_name
    return dataclasses.replace(statistics, items=items, counts=counts)


def exchanged_counts(
    statistics: Statistics, name: str, exchange: Exchange, source: str | None = None
) -> NDArray[np.int64]:
    """How many distinct persons have each item after an exchange.

    Parameters
    ----------
    statistics
        They must know all items of the exchange, see `with_items`.
    name
        Of the counts.
    source
        Count rows of this source only.

    Raises
    ------
    NotExactError
        The rows to be removed were not counted.
    """
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


def _published(items: ItemIndex, persons: NDArray[np.int64], min_persons: int) -> ItemIndex:
    return _kept_items(items, persons >= min_persons)


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


def encoder_of(bundle: Bundle) -> AttributeEncoder:
    """The encoder of a bundle's attributes."""
    return AttributeEncoder.from_json(
        bundle.manifest.scoring.get("attributes"), first_input=bundle.manifest.item_count
    )


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
