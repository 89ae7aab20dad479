"""Scorers: one bundle each, from a permitted view to scored items.

A scorer gets a `PermittedView` and a `Query` that names no person. It cannot reach the request.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Side, Source, microseconds
from consentier.errors import BundleMalformed
from consentier.models.attribute_encoding import AttributeEncoder
from consentier.models.bundle import Bundle
from consentier.models.item_index import ItemIndex
from consentier.models.item_lookup import ItemLookup
from consentier.models.recency import microseconds_of_days, recency_weight
from consentier.models.row_scorer import RowScorer
from consentier.models.scoring import contributions
from consentier.serving.answer import Exploration
from consentier.serving.catalogue import Catalogue
from consentier.serving.explanations import TITLES, Cause, Explanation, explained
from consentier.serving.exploration import draws, slots_of, with_explored
from consentier.serving.item_columns import Expression, ItemColumns
from consentier.serving.main_parameters import main_parameters, rule_parameters
from consentier.serving.request import Event
from consentier.serving.rules import Mixture, Ranking, Rules, ShelfRules
from consentier.serving.trending import TrendingSnapshot
from consentier.serving.view import PermittedView

__all__ = [
    "NO_INTEREST",
    "ItemScorer",
    "LinearScorer",
    "PopularScorer",
    "Query",
    "Scored",
    "ScoringSettings",
    "read_scoring",
]

NO_INTEREST = frozenset({"remove", "unfavourite", "cancelled", "returned"})
"""Types of events that end an interest: training leaves them out, and so does the input of a model."""


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """What is asked, apart from the person: how many items, and which may be shown."""

    n: int
    side: Side
    exclude: frozenset[str] = frozenset()
    allow: frozenset[str] | None = None
    where: Expression | None = None
    explain: bool = False
    at: int = 0
    """The instant, in microseconds since the Unix epoch: what was bought may come again some time after."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """Items with their scores, in the order of the list.

    Attributes
    ----------
    items, scores
        Of the list. Scores descend, but where rules mix.
    unknown_items
        How many items of the history the model does not know.
    mixture
        What the list holds of each capped value, for whoever fills it up; None: nothing yet.
    explanations
        Of each item, where the query asks for them.
    not_again
        Items of the permitted history that are not recommended again, scored or not.
    """

    items: tuple[str, ...]
    scores: tuple[float, ...]
    unknown_items: int = 0
    mixture: Mixture | None = dataclasses.field(default=None, compare=False)
    explanations: tuple[Explanation, ...] | None = None
    not_again: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class ScoringSettings:
    """How a history becomes the inputs of a model; stands in the bundle's manifest.

    Attributes
    ----------
    source_weights
        How much an event of a source counts.
    event_weights
        How much an event type counts; types not named count 1.
    session_decay
        An item of the session that came d distinct known items before the last one counts
        exp(-d / session_decay).
    hide
        Sources whose items are not recommended again.
    max_history
        The latest events of each source that are read.
    recency_half_life
        Days after which an event counts half as much as the newest one of the history; None: age does not
        matter. Events without a time count as new.
    second_hop_weight, second_hop_items
        The so many best items of a first score pass on so much of it; see `models.scoring.with_second_hop`.
    repeat_weight
        What the learnt probability that a session returns to an item adds to its score; in factor models,
        what an item of the history gains, times its weight there.
    attribute_weight, attribute_fade
        Attributes together count ``attribute_weight / (1 + known items of the history / attribute_fade)``.
    """

    source_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    event_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    session_decay: float = 3.0
    hide: tuple[str, ...] = ()
    max_history: int = 200
    recency_half_life: float | None = None
    second_hop_weight: float = 0.0
    second_hop_items: int = 50
    repeat_weight: float = 0.0
    attribute_weight: float = 0.0
    attribute_fade: float = 5.0

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values for a manifest."""
        values = dataclasses.asdict(self)
        values["hide"] = list(self.hide)
        return values

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ScoringSettings:
        """Read settings from a manifest.

        Raises
        ------
        BundleMalformed
            If a setting is unknown, missing or of the wrong type.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(value) - {"attributes"} != names:
            raise BundleMalformed(
                f"manifest: scoring must name exactly {', '.join(sorted(names))} (and attributes)"
            )
        for name in ("source_weights", "event_weights"):
            table = value[name]
            if not isinstance(table, Mapping) or not all(_is_weight(weight) for weight in table.values()):
                raise BundleMalformed(f"manifest: scoring.{name} must map names to numbers of at least 0")
        for name in ("session_decay", "attribute_fade"):
            if not _is_weight(value[name]) or not value[name]:
                raise BundleMalformed(f"manifest: scoring.{name} must be a number above 0")
        half_life = value["recency_half_life"]
        if half_life is not None and not (_is_weight(half_life) and 0 < half_life <= 1e6):
            raise BundleMalformed(
                "manifest: scoring.recency_half_life must be null, or days above 0 and up to a million"
            )
        for name in ("attribute_weight", "second_hop_weight", "repeat_weight"):
            if not _is_weight(value[name]):
                raise BundleMalformed(f"manifest: scoring.{name} must be a number of at least 0")
        for name in ("max_history", "second_hop_items"):
            if isinstance(value[name], bool) or not isinstance(value[name], int):
                raise BundleMalformed(f"manifest: scoring.{name} must be a whole number")
            if value[name] < 1:
                raise BundleMalformed(f"manifest: scoring.{name} must be at least 1")
        hide = value["hide"]
        if not isinstance(hide, list) or not set(hide) <= {source.value for source in Source}:
            raise BundleMalformed("manifest: scoring.hide must be a list of sources")
        return cls(
            source_weights=dict(value["source_weights"]),
            event_weights=dict(value["event_weights"]),
            session_decay=float(value["session_decay"]),
            hide=tuple(hide),
            max_history=value["max_history"],
            recency_half_life=value["recency_half_life"],
            second_hop_weight=float(value["second_hop_weight"]),
            second_hop_items=value["second_hop_items"],
            repeat_weight=float(value["repeat_weight"]),
            attribute_weight=float(value["attribute_weight"]),
            attribute_fade=float(value["attribute_fade"]),
        )


def read_scoring(settings: Mapping[str, Any], item_count: int) -> tuple[ScoringSettings, AttributeEncoder]:
    """Read what all models of histories have in common out of a manifest's scoring settings.

    Parameters
    ----------
    settings
        Without those that only one kind of model has.
    item_count
        Items of the model; the inputs of attributes stand behind them.

    Raises
    ------
    BundleMalformed
        If a setting is unknown, missing or of the wrong type.
    """
    encoder = AttributeEncoder.from_json(settings.get("attributes", []), first_input=item_count)
    return ScoringSettings.from_json(settings), encoder


def _is_weight(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value < float("inf")


_POPULAR_AT_ONCE = 256
_FILTERS_KEPT = 256
_FILTER_BYTES = 64 << 20
"""Filters of requests whose items are kept, per bundle, and the memory that they may take."""


def _told(bundle: Bundle, rules: Rules | None) -> tuple[str, ...]:
    """What decides the order, in words."""
    return (*main_parameters(bundle.manifest), *(() if rules is None else rule_parameters(rules)))


class _Shelf:
    """The items of one bundle, and which of them may be shown at all."""

    def __init__(
        self,
        index: ItemIndex,
        lookup: ItemLookup,
        catalogue: Catalogue | None,
        rules: Rules | None,
        further: Sequence[str] = (),
    ) -> None:
        self.index = index
        self.lookup = lookup
        self._further = further
        self._catalogue = catalogue
        self._columns: ItemColumns | None = None
        self._filtered: dict[str, tuple[NDArray[np.bool_], NDArray[np.int64]]] = {}
        self._filter_bytes = 0
        self.sensitive = frozenset[str]() if catalogue is None else catalogue.sensitive
        self.hidden = np.zeros(len(index) + len(further), dtype=np.bool_)
        self.silent = np.zeros(len(index), dtype=np.bool_)
        if catalogue is not None:
            self.hidden[: len(index)] = True
            self.hidden[_ascending_numbers(self.lookup.numbers(list(catalogue.available)))] = False
            self.silent[_ascending_numbers(self.lookup.numbers(list(self.sensitive)))] = True
        self.rules = None if rules is None else ShelfRules(rules, self._attributes(), self._items())
        if self.rules is not None:
            self.hidden |= self.rules.hidden

    def _items(self) -> list[str]:
        return [*self.lookup.ids(np.arange(len(self.index))), *self._further]

    def _attributes(self) -> ItemColumns:
        """The attributes of the items, which most shelves never need."""
        if self._columns is None:
            known = Catalogue(frozenset()) if self._catalogue is None else self._catalogue
            self._columns = ItemColumns(known.attributes, self._items(), known.unread)
        return self._columns

    def digest_into(self, digest: Any) -> None:
        """Feed what may be shown, and in which mixture, to a hash."""
        digest.update(self.hidden)
        digest.update(self.silent)
        if self.rules is not None:
            self.rules.digest_into(digest)

    def titles(self, items: Iterable[str]) -> dict[str, str]:
        """What the catalogue calls some items: their name or title, where it has such an attribute."""
        rows = {} if self._catalogue is None else self._catalogue.attributes
        found = {}
        for item in items:
            row = rows.get(item, {})
            title = next((row[name] for name in TITLES if row.get(name)), None)
            if title is not None:
                found[item] = str(title)
        return found

    @property
    def mixes(self) -> bool:
        """Whether a list is more than the best scores in their order."""
        return self.rules is not None and self.rules.rules.mixes

    def fitting(self, where: Expression) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """The items for which a filter is true: as a bitmap, and their numbers, ascending.

        Raises
        ------
        FilterError
            It names an attribute that items do not have.
        """
        found = self._filtered.get(where.text)
        if found is None:
            fits = where.true_for(self._attributes())
            found = fits, np.flatnonzero(fits).astype(np.int64)
            size = fits.nbytes + found[1].nbytes
            if len(self._filtered) >= _FILTERS_KEPT or self._filter_bytes + size > _FILTER_BYTES:
                self._filter_bytes = 0
                self._filtered = {}  # another thread may still read the old one
            self._filter_bytes += size
            self._filtered[where.text] = found
        return found

    def visible(self, ids: NDArray[np.int64], query: Query, hidden: Iterable[int] = ()) -> NDArray[np.bool_]:
        """Which of some items (ascending) may be shown in answer to a query."""
        mask = ~self.hidden[ids]
        barred, allowed = self.limits(query, hidden)
        if barred.size:
            mask &= ~np.isin(ids, barred)
        if allowed is not None:
            mask &= np.isin(ids, allowed)
        return mask

    def limits(
        self, query: Query, hidden: Iterable[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """The items that an answer must not hold, and the only ones that it may, each ascending."""
        excluded = self.lookup.numbers(list(query.exclude)) if query.exclude else ()
        barred = _ascending_numbers([*hidden, *excluded])
        allowed = None if query.allow is None else _ascending_numbers(self.lookup.numbers(list(query.allow)))
        if query.where is None:
            return barred, allowed
        _, fitting = self.fitting(query.where)
        return barred, fitting if allowed is None else np.intersect1d(allowed, fitting, assume_unique=True)


_USUAL_SESSION = 200
"""Distinct items of a session for which the decay is worked out in advance."""


def _decay(distance: int, session_decay: float) -> float:
    return float(np.exp(-distance / session_decay))


class _Numbers(dict[str, int]):
    """The numbers of the items of one view, each looked up once."""

    def __init__(self, number: Callable[[str], int]) -> None:
        super().__init__()
        self._number = number

    def __missing__(self, item: str) -> int:
        found = self[item] = self._number(item)
        return found


def _ascending_numbers(numbers: Iterable[int]) -> NDArray[np.int64]:
    """Numbers of known items, each once."""
    return np.array(sorted({number for number in numbers if number >= 0}), dtype=np.int64)


class ItemScorer(ABC):
    """What all scorers of a history do: weigh it, and show the best items that may be shown.

    Parameters
    ----------
    bundle
        A bundle of a session, online, crm or fused model.
    catalogue
        What may be shown now; None: all items of the bundle.
    rules
        The shop's business rules; None: there are none.
    compiled
        Use compiled loops where Numba is installed; they are ready when this returns. Answers are the same,
        bit for bit.
    """

    def __init__(
        self,
        bundle: Bundle,
        catalogue: Catalogue | None,
        rules: Rules | None = None,
        *,
        compiled: bool = True,
    ) -> None:
        arrays = bundle.arrays
        self.digest = bundle.digest
        self._compiled = compiled
        index = ItemIndex(arrays["item_ids"], arrays["item_offsets"], verify=False)  # open_bundle did
        settings = self._own_settings(dict(bundle.manifest.scoring))
        self._settings, self._attributes = read_scoring(settings, len(index))
        days = self._settings.recency_half_life
        self._half_life = None if days is None else microseconds_of_days(days)
        self._decays = [_decay(distance, self._settings.session_decay) for distance in range(_USUAL_SESSION)]
        self._shelf = _Shelf(index, ItemLookup(index, compiled=compiled), catalogue, rules)
        self.main_parameters = _told(bundle, rules)
        self._read(arrays, len(index) + self._attributes.input_count, len(index))

    def _own_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Take out of a manifest's settings those that only this kind of model has; return the others."""
        return settings

    @abstractmethod
    def _read(self, arrays: Mapping[str, NDArray[Any]], inputs: int, items: int) -> None:
        """Take the model's arrays out of the bundle, and check them."""

    @abstractmethod
    def _ranking(
        self,
        rows: NDArray[np.int64],
        weights: NDArray[np.float32],
        query: Query,
        hidden: Iterable[int],
    ) -> Ranking:
        """The items of positive score for some weighted inputs (ascending), among those on show."""

    def _ranking_for(
        self,
        view: PermittedView,
        numbers: Mapping[str, int],
        rows: NDArray[np.int64],
        weights: NDArray[np.float32],
        query: Query,
        hidden: Iterable[int],
    ) -> Ranking:
        """The same where a view is behind the inputs, of which a model may read more than its history."""
        return self._ranking(rows, weights, query, hidden)

    def answer(self, view: PermittedView, query: Query) -> Scored | None:
        """Score the items for one view; None where the view holds nothing that the model knows.

        Only items with a positive score are returned, at most ``query.n``.
        """
        numbers = self._numbers(view)
        weights, unknown = self._history(view, numbers)
        inputs = dict(weights)
        attributes = self._attributes.inputs(view.attributes)
        if attributes:
            share = self._settings.attribute_weight / (1 + len(weights) / self._settings.attribute_fade)
            inputs.update(dict.fromkeys(attributes, share / len(attributes)))
        if not inputs:
            return None
        not_again = self._not_again(view, query)
        hidden = [numbers[item] for item in not_again]
        given = _ascending(inputs)
        ranking = self._ranking_for(view, numbers, *given, query, hidden)
        scored = self._scored(ranking, query, unknown, not_again)
        if not query.explain:
            return scored
        return dataclasses.replace(scored, explanations=self._explained(view, numbers, *given, scored.items))

    @abstractmethod
    def _contributions(
        self, rows: NDArray[np.int64], weights: NDArray[np.float32], items: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """What each input adds to the scores of some items, shape (inputs, items)."""

    def _explained(
        self,
        view: PermittedView,
        numbers: Mapping[str, int],
        rows: NDArray[np.int64],
        weights: NDArray[np.float32],
        items: Sequence[str],
    ) -> tuple[Explanation, ...]:
        """Why each of some items is in the list, by what the view holds and no other data.

        What only speaks against an item is no cause. Items that may not be shown, whose names would say what
        the shop hides, are not named either.
        """
        targets = np.array([numbers[item] for item in items], dtype=np.int64)
        parts = np.maximum(self._contributions(rows, weights, targets), 0.0)
        for item, added in self._repeats(view, numbers).items():
            parts[rows == item, targets == item] += added
        totals = parts.sum(axis=0)
        names = self._cause_names(view, numbers)
        found = []
        for column, total in zip(parts.T, totals.tolist(), strict=True):
            causes = [
                Cause(*names[row], share=float(part) / total)
                for row, part in zip(rows.tolist(), column.tolist(), strict=True)
                if part > 0 and row in names
            ]
            found.append(explained(causes, self._shelf.titles([cause.name for cause in causes])))
        return tuple(found)

    def _cause_names(self, view: PermittedView, numbers: Mapping[str, int]) -> dict[int, tuple[str, str]]:
        """Source and name of each input that may be named."""
        names: dict[int, tuple[str, str]] = {}
        for source, events in reversed(_by_source(view)):  # the session is the nearest cause
            for event in events:
                number = numbers[event.item_id]
                if number >= 0 and not self._shelf.hidden[number]:
                    names[number] = (str(source), event.item_id)
        for column in self._attributes.columns:
            for number in range(column.first_input, column.first_input + column.input_count):
                names[number] = ("attribute", column.name)
        return names

    def _repeats(self, view: PermittedView, numbers: Mapping[str, int]) -> Mapping[int, float]:
        """What is added to the scores of items of the session, because sessions return to what they saw."""
        return {}

    # ---- For batches, whose histories are weighed all together ---------------------------------------------

    @property
    def settings(self) -> ScoringSettings:
        """How a history becomes the inputs of the model."""
        return self._settings

    @property
    def attribute_encoder(self) -> AttributeEncoder:
        """How attributes become inputs of the model."""
        return self._attributes

    @property
    def item_ids(self) -> list[str]:
        """The model's items, ascending."""
        return self._shelf.lookup.ids(np.arange(len(self._shelf.index)))

    @property
    def rules(self) -> ShelfRules | None:
        """The shop's business rules, worked out for the model's items."""
        return self._shelf.rules

    def numbers(self, items: Iterable[str]) -> NDArray[np.int64]:
        """The model's number of each item; -1 where it has none that may enter a history."""
        names = list(items)
        numbers = np.array(self._shelf.lookup.numbers(names), dtype=np.int64)
        numbers[[item in self._shelf.sensitive for item in names]] = -1
        return numbers

    def digest_into(self, digest: Any) -> None:
        """Feed what lists depend on beside the bundle and the person to a hash."""
        self._shelf.digest_into(digest)

    def rebuy_intervals(self, items: Iterable[str]) -> list[int | None]:
        """Microseconds after a purchase before each item may come again, by the shop's rules; None: never."""
        rules = self._shelf.rules
        numbers = self._shelf.lookup.numbers(list(items))
        return [0 if rules is None else rules.rebuy_interval(number) for number in numbers]

    def answer_to(
        self,
        rows: NDArray[np.int64],
        weights: NDArray[np.float32],
        query: Query,
        barred: NDArray[np.int64],
    ) -> Scored:
        """What `answer` gives for a view whose history was weighed already.

        Parameters
        ----------
        rows, weights
            The inputs of the model, ascending; at least one.
        query
            What is asked.
        barred
            The model's numbers of what is not recommended again.
        """
        return self._scored(self._ranking(rows, weights, query, barred.tolist()), query, 0)

    # ---- What goes with items ------------------------------------------------------------------------------

    def related(self, items: Iterable[str], query: Query) -> Scored | None:
        """Items that go with some items; no person is read."""
        numbers = {number for item in items if (number := self._number(item)) >= 0}
        if not numbers:
            return None
        given = _ascending(dict.fromkeys(numbers, 1.0))
        return self._scored(self._ranking(*given, query, numbers), query, 0)

    def _history(self, view: PermittedView, numbers: Mapping[str, int]) -> tuple[dict[int, float], int]:
        """Weight of each known item: the largest within a source, summed over the sources."""
        total: dict[int, float] = {}
        unknown = 0
        read = [(source, self._latest(events)) for source, events in _by_source(view) if events]
        newest = self._newest(event for _, events in read for event in events)
        for source, events in read:
            known = [(number, event) for event in reversed(events) if (number := numbers[event.item_id]) >= 0]
            unknown += len(events) - len(known)
            for number, weight in self._weights(source, known, newest).items():
                total[number] = total.get(number, 0.0) + weight
        return total, unknown

    def _weights(self, source: Source, events: Iterable[tuple[int, Event]], newest: int) -> dict[int, float]:
        """The largest weight of each item of one source, the latest events first."""
        scale = self._settings.source_weights.get(source, 0.0)
        of_type, in_session, ages = self._settings.event_weights, source is Source.SESSION, self._half_life
        weights: dict[int, float] = {}
        places: dict[int, int] = {}
        for number, event in events:
            weight = of_type.get(event.event_type or "", 1.0)
            if in_session:
                weight *= self._decay(places.setdefault(number, len(places)))
            weight *= scale
            if ages is not None:
                weight *= self._recency(event, newest)
            if weight > weights.get(number, 0.0):
                weights[number] = weight
        return weights

    def _latest(self, events: tuple[Event, ...]) -> Sequence[Event]:
        """The latest events of a source that show an interest, oldest first."""
        shown = [event for event in events if event.event_type not in NO_INTEREST]
        return shown[-self._settings.max_history :]

    def _decay(self, distance: int) -> float:
        """What an item counts after which so many others of the session came."""
        if distance < len(self._decays):
            return self._decays[distance]
        return _decay(distance, self._settings.session_decay)

    def _newest(self, events: Iterable[Event]) -> int:
        """When the newest of some events was, in microseconds; 0 where age does not matter."""
        if self._half_life is None:
            return 0
        return max((microseconds(event.ts) for event in events if event.ts is not None), default=0)

    def _recency(self, event: Event, newest: int) -> float:
        if self._half_life is None or event.ts is None:
            return 1.0
        return recency_weight(newest - microseconds(event.ts), self._half_life)

    def _number(self, item: str) -> int:
        return -1 if item in self._shelf.sensitive else self._shelf.index.index(item)

    def _numbers(self, view: PermittedView) -> _Numbers:
        """The numbers of all items of a view, looked up together."""
        names = list({event.item_id for _, events in _by_source(view) for event in events})
        numbers = _Numbers(self._number)
        numbers.update(zip(names, self._shelf.lookup.numbers(names), strict=True))
        if self._shelf.sensitive:
            numbers.update(dict.fromkeys(self._shelf.sensitive.intersection(names), -1))
        return numbers

    def _not_again(self, view: PermittedView, query: Query) -> frozenset[str]:
        rules = self._shelf.rules
        again = rules is not None and rules.rules.rebuy is not None
        hidden = {
            event.item_id
            for source, events in _by_source(view)
            if events and source in self._settings.hide and not (again and source is Source.CRM)
            for event in events
        }
        if rules is not None and again:
            hidden |= _bought_too_recently(view.crm_history, rules, self._shelf.lookup, query.at)
        return frozenset(hidden)

    def _scored(
        self, ranking: Ranking, query: Query, unknown: int, not_again: frozenset[str] = frozenset()
    ) -> Scored:
        mixture = None
        if self._shelf.rules is not None and self._shelf.mixes:
            ids, scores, mixture = self._shelf.rules.list_of(ranking, query.n, len(self._shelf.index))
        else:
            ids, scores = ranking(query.n)
        return Scored(
            tuple(self._shelf.lookup.ids(ids)), tuple(scores.tolist()), unknown, mixture, not_again=not_again
        )


def _bought_too_recently(events: Iterable[Event], rules: ShelfRules, lookup: ItemLookup, at: int) -> set[str]:
    """What was bought, and may not come again yet. A purchase without a time is one of this moment."""
    orders = [event for event in events if event.event_type in (None, "order")]
    numbers = lookup.numbers([event.item_id for event in orders])
    found = set()
    for event, number in zip(orders, numbers, strict=True):
        interval = rules.rebuy_interval(number)
        if interval is None or (interval and (event.ts is None or at - microseconds(event.ts) < interval)):
            found.add(event.item_id)
    return found


class LinearScorer(ItemScorer):
    """Scores ``x · W``: the weighted history times the sparse matrix of a linear item-to-item model.

    Notes
    -----
    A request costs what `models.scoring.score_rows` costs for the rows of its history, and with a second hop
    the same again for these and the items that pass on.
    """

    def _read(self, arrays: Mapping[str, NDArray[Any]], inputs: int, items: int) -> None:
        matrix = arrays["indptr"], arrays["indices"], arrays["data"]
        if matrix[0].size != inputs + 1:  # all else about them has been checked when the bundle was opened
            raise BundleMalformed(f"indptr has {matrix[0].size} entries; {inputs} inputs need {inputs + 1}")
        if matrix[0].dtype == np.uint64:  # which no signed number can be added to
            matrix = matrix[0].astype(np.int64), *matrix[1:]
        self._matrix = matrix
        self._rows = RowScorer(
            *matrix,
            hidden=self._shelf.hidden,
            silent=self._shelf.silent,  # no inference through sensitive items, even where a bundle knows them
            hop_weight=self._settings.second_hop_weight,
            hop_items=self._settings.second_hop_items,
            compiled=self._compiled,
        )
        self._returns = _returns(arrays.get("repeats"))

    @property
    def row_scorer(self) -> RowScorer | None:
        """What scores many requests at once; None without compiled loops, or where rules mix the lists."""
        return self._rows if self._rows.compiled and not self._shelf.mixes else None

    def _repeats(self, view: PermittedView, numbers: Mapping[str, int]) -> Mapping[int, float]:
        """What is added to the scores of items of the session, because sessions return to what they saw."""
        if self._returns is None or not self._settings.repeat_weight:
            return {}
        read = (numbers[event.item_id] for event in reversed(self._latest(view.session)))
        seen = list(dict.fromkeys(number for number in read if number >= 0))
        if not seen:
            return {}
        chances = self._returns[min(len(seen), len(self._returns)) - 1]
        return {
            number: self._settings.repeat_weight * chance
            for number, chance in zip(seen, chances, strict=False)
        }

    def _contributions(
        self, rows: NDArray[np.int64], weights: NDArray[np.float32], items: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return contributions(
            *self._matrix,
            self._shelf.silent,
            self._settings.second_hop_weight,
            self._settings.second_hop_items,
            rows,
            weights,
            items,
        )

    def _ranking(
        self,
        rows: NDArray[np.int64],
        weights: NDArray[np.float32],
        query: Query,
        hidden: Iterable[int],
    ) -> Ranking:
        barred, allowed = self._shelf.limits(query, hidden)
        return lambda n: self._rows.best(rows, weights, n, barred=barred, allowed=allowed)

    def _ranking_for(
        self,
        view: PermittedView,
        numbers: Mapping[str, int],
        rows: NDArray[np.int64],
        weights: NDArray[np.float32],
        query: Query,
        hidden: Iterable[int],
    ) -> Ranking:
        repeats = self._repeats(view, numbers)
        if not repeats:
            return self._ranking(rows, weights, query, hidden)
        barred, allowed = self._shelf.limits(query, hidden)
        added_items = np.array(list(repeats), dtype=np.int64)
        added = np.array(list(repeats.values()), dtype=np.float64)
        return lambda n: self._rows.best(
            rows, weights, n, added_items=added_items, added=added, barred=barred, allowed=allowed
        )


def _ascending(inputs: Mapping[int, float]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ascending inputs: the sum does not depend on the order in which a store returns a history."""
    rows = sorted(inputs)
    return np.array(rows, dtype=np.int64), np.array([inputs[row] for row in rows], dtype=np.float32)


def _returns(table: NDArray[Any] | None) -> list[list[float]] | None:
    """The learnt probabilities of repeats, checked, as plain numbers."""
    if table is None:
        return None
    if table.ndim != 2 or not table.size or table.shape[0] != table.shape[1] or table.dtype != np.float32:
        raise BundleMalformed(
            f"repeats.npy has shape {table.shape} and type {table.dtype}, not a square table"
        )
    if not ((table >= 0) & (table <= 1)).all():
        raise BundleMalformed("repeats.npy holds something else than probabilities")
    return [[float(chance) for chance in row] for row in table]


class PopularScorer:
    """The non-personal list: items by the number of permitted persons, per side; then all others by id.

    Parameters
    ----------
    bundle
        An opened bundle of the popular model.
    catalogue
        What may be shown now. Its available items that no count knows come last.
    rules
        The shop's business rules; None: there are none.
    compiled
        Use compiled loops where Numba is installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        catalogue: Catalogue | None,
        rules: Rules | None = None,
        *,
        compiled: bool = True,
    ) -> None:
        self.digest = bundle.digest
        self.main_parameters = _told(bundle, rules)
        index = ItemIndex(bundle.arrays["item_ids"], bundle.arrays["item_offsets"], verify=False)
        lookup = ItemLookup(index, compiled=compiled)
        self._uncounted = [] if catalogue is None else _unknown(catalogue.available, lookup)
        self._shelf = _Shelf(index, lookup, catalogue, rules, self._uncounted)
        self._further = {item: number for number, item in enumerate(self._uncounted, start=len(index))}
        everything = np.arange(len(index), len(index) + len(self._uncounted))
        self._order = {side: np.concatenate([self._ranking(bundle, side), everything]) for side in Side}
        self._explore = None if rules is None else rules.explore
        self._new = self._few(bundle.arrays[f"{Side.ONLINE}_counts"])

    def _few(self, counts: NDArray[Any]) -> NDArray[np.int64]:
        """What may be shown and too few persons had, ascending."""
        if self._explore is None:
            return np.empty(0, dtype=np.int64)
        few = np.concatenate([counts < self._explore.persons, np.ones(len(self._uncounted), np.bool_)])
        return np.flatnonzero(few & ~self._shelf.hidden).astype(np.int64)

    def _ranking(self, bundle: Bundle, side: Side) -> NDArray[np.int64]:
        counts = bundle.arrays[f"{side}_counts"]
        if counts.shape != (len(self._shelf.index),) or counts.dtype.kind not in "iu":
            raise BundleMalformed(
                f"{side}_counts.npy has shape {counts.shape} and type {counts.dtype}, not one count per item"
            )
        return np.argsort(-counts.astype(np.int64), kind="stable").astype(np.int64)

    def shows(self, item_id: str) -> bool:
        """Whether an item may be shown at all, as far as catalogue and rules say."""
        number = self._number(item_id)
        return number >= 0 and not self._shelf.hidden[number]

    def top(
        self,
        query: Query,
        *,
        without: frozenset[str] = frozenset(),
        mixture: Mixture | None = None,
        trending: TrendingSnapshot | None = None,
    ) -> list[str]:
        """The first items of the list that may be shown and are not in `without`.

        Parameters
        ----------
        query
            What is asked.
        without
            Items that are in the list already, or must not be.
        mixture
            What the list holds already.
        trending
            Its items come first, as many as its share allows; the others stay in their order.

        Notes
        -----
        Linear in the items that are passed over.
        """
        barred = query.exclude | without
        mixture = Mixture() if mixture is None else mixture
        ordered = _in_parts(self._order[query.side])
        if trending is None:
            return self._first(ordered, query.n, query, barred, mixture)
        known = [number for item in trending.items if (number := self._number(item)) >= 0]
        found = self._first(known, trending.slots(query.n), query, barred, mixture)
        return found + self._first(ordered, query.n - len(found), query, barred | set(found), mixture)

    @property
    def explores(self) -> bool:
        """Whether the shop gives slots to what is new."""
        return self._explore is not None

    def explored(
        self, listed: Sequence[str], query: Query, seed: str, *, without: frozenset[str]
    ) -> tuple[tuple[str, ...], Exploration | None]:
        """Give slots of a list to new items, which a seed draws; see `serving.exploration`.

        Parameters
        ----------
        listed
            The list without them.
        query
            What is asked.
        seed
            What to draw with.
        without
            Items that must not be drawn.

        Returns
        -------
        listed, exploration
            What stays of the list, and what was drawn; all of it and None where nothing was.

        Notes
        -----
        A pass over the new items for each limit of the query.
        """
        share = 0.0 if self._explore is None else self._explore.share
        slots = slots_of(share, query.n, seed)
        pool = self._pool(query, without.union(listed[: query.n - slots])) if slots else self._new[:0]
        drawn = (self._item(int(pool[place])) for place in draws(seed, pool.size))
        rules, mixture = self._shelf.rules, Mixture()

        def fits(item: str) -> bool:
            number = self._number(item)
            return rules is None or number < 0 or rules.offer(number, mixture)

        kept, new = with_explored(listed, query.n, slots, drawn, fits)
        return kept, Exploration(seed, int(pool.size), slots, new) if new else None

    def _pool(self, query: Query, barred: frozenset[str]) -> NDArray[np.int64]:
        """The new items that may be drawn for a query."""
        pool = self._new if self._shelf.rules is None else self._shelf.rules.recent(self._new, query.at)
        if query.where is not None:
            pool = pool[self._shelf.fitting(query.where)[0][pool]]
        if query.allow is not None:
            pool = pool[np.isin(pool, _ascending_numbers(map(self._number, query.allow)))]
        return pool[~np.isin(pool, _ascending_numbers(map(self._number, barred | query.exclude)))]

    def _first(
        self, numbers: Iterable[int], n: int, query: Query, barred: frozenset[str], mixture: Mixture
    ) -> list[str]:
        """The first n of some items that may stand in a list."""
        fits = None if query.where is None else self._shelf.fitting(query.where)[0]
        found: list[str] = []
        for number in numbers:
            if len(found) == n:
                break
            if self._shelf.hidden[number] or not (fits is None or fits[number]):
                continue
            item = self._item(number)
            if item in barred or not (query.allow is None or item in query.allow):
                continue
            if self._shelf.rules is None or self._shelf.rules.offer(number, mixture):
                found.append(item)
        return found

    def _number(self, item_id: str) -> int:
        number = self._shelf.index.index(item_id)
        return number if number >= 0 else self._further.get(item_id, -1)

    @property
    def item_ids(self) -> list[str]:
        """All items of the list: those of the bundle, then those that only the catalogue knows."""
        return [*self._shelf.lookup.ids(np.arange(len(self._shelf.index))), *self._uncounted]

    def digest_into(self, digest: Any) -> None:
        """Feed what the list depends on beside the bundle to a hash."""
        digest.update(repr(self._uncounted).encode())
        self._shelf.digest_into(digest)

    def shown(self, side: Side) -> NDArray[np.int64] | None:
        """The numbers of the items that may be shown to anybody, best first; None where rules cap them."""
        if self._shelf.rules is not None and self._shelf.rules.rules.caps:
            return None
        order = self._order[side]
        shown: NDArray[np.int64] = order[~self._shelf.hidden[order]]
        return shown

    def _item(self, number: int) -> str:
        known = len(self._shelf.index)
        return self._shelf.index.id(number) if number < known else self._uncounted[number - known]


def _in_parts(numbers: NDArray[np.int64]) -> Iterator[int]:
    """The numbers, of which as a rule only the first are looked at."""
    for start in range(0, numbers.size, _POPULAR_AT_ONCE):
        yield from numbers[start : start + _POPULAR_AT_ONCE].tolist()


def _by_source(view: PermittedView) -> tuple[tuple[Source, tuple[Event, ...]], ...]:
    return (
        (Source.SESSION, view.session),
        (Source.ONLINE, view.online_history),
        (Source.CRM, view.crm_history),
    )


def _unknown(items: Iterable[str], lookup: ItemLookup) -> list[str]:
    """Those of some items that have no number, by id."""
    names = list(items)
    numbers = lookup.numbers(names)
    return sorted((item for item, number in zip(names, numbers, strict=True) if number < 0), key=_utf8)


def _utf8(item: str) -> bytes:
    return item.encode("utf-8", "surrogatepass")
