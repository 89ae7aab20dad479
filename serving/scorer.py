"""Scorers of histories: one bundle each, from a permitted view to scored items.

A scorer gets a `PermittedView` and a `Query` that names no person. It cannot reach the request.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Source, microseconds
from consentier.errors import BundleMalformed
from consentier.models.attribute_encoding import AttributeEncoder
from consentier.models.bundle import Bundle
from consentier.models.item_index import ItemIndex
from consentier.models.item_lookup import ItemLookup
from consentier.models.recency import microseconds_of_days, recency_weight
from consentier.models.row_scorer import RowScorer
from consentier.models.scoring import contributions
from consentier.serving.catalogue import Catalogue
from consentier.serving.explanations import Cause, Explanation, explained
from consentier.serving.query import Query, Scored
from consentier.serving.request import Event
from consentier.serving.rules import Ranking, Rules, ShelfRules
from consentier.serving.scoring_settings import NO_INTEREST, ScoringSettings, read_scoring
from consentier.serving.shelf import Shelf, told
from consentier.serving.view import PermittedView

__all__ = ["ItemScorer", "LinearScorer"]

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
        self._shelf = Shelf(index, ItemLookup(index, compiled=compiled), catalogue, rules)
        self.main_parameters = told(bundle, rules)
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


def _by_source(view: PermittedView) -> tuple[tuple[Source, tuple[Event, ...]], ...]:
    return (
        (Source.SESSION, view.session),
        (Source.ONLINE, view.online_history),
        (Source.CRM, view.crm_history),
    )
