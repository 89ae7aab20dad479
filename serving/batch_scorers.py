"""The lists of many persons at once, by the models that answer requests one by one.

Histories are weighed in compiled loops for a whole block of persons. A linear model then scores them in
compiled loops too; a model or a list that needs more (factors, rules that mix lists) is asked person by
person with the weighed history. Where there are no compiled loops, it is asked with the view. All ways give
the items and scores of `Recommender.recommend`, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Side, Source
from consentier.models.recency import FRACTIONS, microseconds_of_days
from consentier.models.row_scorer import compiled_kernel
from consentier.serving.batch_views import SOURCES, BatchViews, Histories
from consentier.serving.popular_scorer import PopularScorer
from consentier.serving.query import Query, Scored
from consentier.serving.rules import Mixture
from consentier.serving.scorer import ItemScorer, LinearScorer
from consentier.serving.scoring_settings import NO_INTEREST
from consentier.serving.similar_goods import SimilarGoods
from consentier.serving.view import PermittedView

__all__ = ["Filler", "Lists", "TierScorer"]

_Whole = TypeVar("_Whole", np.int32, np.int64)

_NEVER = -1
_LONGEST = 2**62


@dataclasses.dataclass(frozen=True, slots=True)
class Lists:
    """Lists of some persons.

    Attributes
    ----------
    items
        int64, shape (persons, n): numbers of items, padded with -1: a tier's own from 0, behind them those of
        the popular list.
    scores
        float64, same shape; 0 for items that fill up, and for padding.
    """

    items: NDArray[np.int64]
    scores: NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class _Weighed:
    """The weighed histories of some persons; see `models.compiled_histories.weighted_histories`."""

    row_starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    barred_starts: NDArray[np.int64]
    barred: NDArray[np.int64]
    hidden_starts: NDArray[np.int64]
    hidden: NDArray[np.int32]


@dataclasses.dataclass(frozen=True, slots=True)
class _Limits:
    """Who may be shown only goods of some groups, and of which: see `SimilarGoods.bought`."""

    limited: NDArray[np.bool_]
    starts: NDArray[np.int64]
    groups: NDArray[np.int64]


class Filler:
    """Fills lists up from the popular list.

    Parameters
    ----------
    popular
        The list.
    histories
        Whose items a person may not be shown again.
    side
        The side of the channel.
    goods
        Which goods are alike.
    """

    def __init__(self, popular: PopularScorer, histories: Histories, side: Side, goods: SimilarGoods) -> None:
        self._popular = popular
        self.item_ids = popular.item_ids
        self._numbers = {item: number for number, item in enumerate(self.item_ids)}
        self._of_codes = self.numbers(histories.item_ids.to_pylist())
        kernel = compiled_kernel()
        order = popular.shown(side)
        self._kernel = None if order is None else kernel
        self._order = np.empty(0, np.int64) if order is None else order
        self._groups = goods.groups(self.item_ids)

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self._popular.digest

    @property
    def at_once(self) -> bool:
        """Whether `fill` can be asked; else lists must be filled one by one, with their mixture."""
        return self._kernel is not None

    def numbers(self, items: Sequence[str]) -> NDArray[np.int64]:
        """The popular list's number of each item; -1 where it has none."""
        return np.array([self._numbers.get(item, -1) for item in items], dtype=np.int64)

    def top(self, query: Query, without: frozenset[str], mixture: Mixture | None) -> list[int]:
        """Numbers of the first items that may be shown."""
        found = self._popular.top(query, without=without, mixture=mixture)
        return [self._numbers[item] for item in found]

    def fill(
        self,
        lists: NDArray[np.int64],
        names: NDArray[np.int64],
        weighed: _Weighed,
        limits: _Limits,
        chosen: NDArray[np.int64],
    ) -> None:
        """Fill up the lists of some persons (their positions in `lists` are `chosen`), in place."""
        assert self._kernel is not None
        filled = np.ascontiguousarray(lists[chosen])
        self._kernel.filled_lists(
            filled,
            names,
            *_spans(weighed.hidden_starts, weighed.hidden, chosen),
            self._of_codes,
            self._order,
            self._groups,
            limits.limited[chosen],
            *_spans(limits.starts, limits.groups, chosen),
            names.size,
            len(self.item_ids),
        )
        lists[chosen] = filled


def _spans(
    starts: NDArray[np.int64], values: NDArray[_Whole], chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[_Whole]]:
    """The values of some persons, one after the other."""
    count = np.diff(starts)[chosen]
    ends = np.cumsum(count)
    places = np.arange(ends[-1] if ends.size else 0) + np.repeat(starts[chosen] - ends + count, count)
    found: NDArray[_Whole] = values[places]
    return np.concatenate([[0], ends]).astype(np.int64), found


class Answers(Protocol):
    """What a batch asks of a model that answers requests."""

    digest: str

    @property
    def item_ids(self) -> Sequence[str]:
        """All that it can recommend."""
        ...

    def answer(self, view: PermittedView, query: Query) -> Scored | None:
        """Score the items for one view."""
        ...


class TierScorer:
    """The lists of one tier.

    Parameters
    ----------
    scorer
        The tier's model.
    histories
        What the batch reads: its items are numbered once for the model.
    filler
        What lists are filled up from; None: there is nothing.
    goods
        Which goods are alike.
    """

    def __init__(
        self, scorer: Answers, histories: Histories, filler: Filler | None, goods: SimilarGoods
    ) -> None:
        self._scorer, self._filler, self._goods = scorer, filler, goods
        self._ids = histories.item_ids.to_pylist()
        compiled = compiled_kernel() is not None
        self._model = scorer if isinstance(scorer, ItemScorer) and compiled else None
        self._rows = self._model.row_scorer if isinstance(self._model, LinearScorer) else None
        self.item_ids = scorer.item_ids
        self._code_groups, self._groups = goods.groups(self._ids), goods.groups(self.item_ids)
        self._number_of = {item: number for number, item in enumerate(self.item_ids)}
        self._names = np.empty(0, np.int64) if filler is None else filler.numbers(self.item_ids)
        if self._model is not None:
            self._prepare(self._model, histories)

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self._scorer.digest

    def _prepare(self, model: ItemScorer, histories: Histories) -> None:
        settings, rules = model.settings, model.rules
        kinds = histories.kinds.to_pylist()
        rebuy = rules is not None and rules.rules.rebuy is not None
        self._numbers = model.numbers(self._ids)
        self._scales = np.array([settings.source_weights.get(source, 0.0) for source in SOURCES])
        self._kind_weights = np.array([settings.event_weights.get(kind, 1.0) for kind in kinds], np.float64)
        self._interest = np.array([kind not in NO_INTEREST for kind in kinds], np.bool_)
        days = settings.recency_half_life
        self._half_life = 0 if days is None else microseconds_of_days(days)
        self._again = np.array([int(source in settings.hide) for source in SOURCES], np.int64)
        if rebuy:
            self._again[SOURCES.index(Source.CRM)] = 2
        intervals = model.rebuy_intervals(self._ids) if rebuy else []
        self._intervals = np.array(
            [_NEVER if each is None else min(each, _LONGEST) for each in intervals], np.int64
        )
        self._order_kind = kinds.index("order") if "order" in kinds else -1

    def lists(
        self, views: BatchViews, query: Query, fill: NDArray[np.bool_], limited: NDArray[np.bool_]
    ) -> Lists:
        """Score and fill up.

        Parameters
        ----------
        views
            What may be read about each person.
        query
            What is asked, the same for all.
        fill
            bool, shape (persons,): whose lists are filled up, if there is anything in them.
        limited
            bool, shape (persons,): who may be shown only goods like those they bought.
        """
        limits = _Limits(limited, *self._goods.bought(views, self._code_groups))
        if self._filler is None:
            fill = np.zeros(len(views), np.bool_)
        if self._model is None:
            return self._one_by_one(views, None, query, fill, limits)
        weighed = self._weighed(self._model, views, query)
        if self._rows is None:
            return self._one_by_one(views, weighed, query, fill, limits)
        items, scores = self._rows.dense_lists(
            (weighed.row_starts, weighed.rows, weighed.weights),
            (weighed.barred_starts, weighed.barred),
            (self._groups, limits.limited, limits.starts, limits.groups),
            query.n,
        )
        short = np.flatnonzero(fill & (items[:, 0] >= 0) & (items[:, -1] < 0))
        if short.size:
            assert self._filler is not None
            if not self._filler.at_once:
                return self._one_by_one(views, weighed, query, fill, limits)
            self._filler.fill(items, self._names, weighed, limits, short)
        return Lists(items, scores)

    def _weighed(self, model: ItemScorer, views: BatchViews, query: Query) -> _Weighed:
        from consentier.models.compiled_histories import weighted_histories  # which needs Numba

        settings = model.settings
        return _Weighed(
            *weighted_histories(
                views.starts,
                views.items,
                views.kind_codes,
                views.times,
                self._numbers,
                len(self.item_ids),
                self._scales,
                self._kind_weights,
                self._interest,
                settings.max_history,
                self._half_life,
                np.array(FRACTIONS),
                views.attribute_inputs(model.attribute_encoder),
                settings.attribute_weight,
                settings.attribute_fade,
                self._again,
                self._intervals,
                self._order_kind,
                query.at,
            )
        )

    def _one_by_one(
        self,
        views: BatchViews,
        weighed: _Weighed | None,
        everybodys: Query,
        fill: NDArray[np.bool_],
        limits: _Limits,
    ) -> Lists:
        """The same, one person after the other; with the weighed history, where there is one."""
        items = np.full((len(views), everybodys.n), -1, np.int64)
        scores = np.zeros((len(views), everybodys.n))
        for person in range(len(views)):
            query = everybodys
            if limits.limited[person]:
                groups = limits.groups[limits.starts[person] : limits.starts[person + 1]]
                query = dataclasses.replace(everybodys, allow=self._goods.members(groups.tolist()))
            scored: Scored | None
            if weighed is None or self._model is None:
                view = views.view(person)
                scored = self._scorer.answer(view, query)
                not_again = frozenset() if scored is None else scored.not_again
            else:
                own = slice(weighed.row_starts[person], weighed.row_starts[person + 1])
                if own.start == own.stop:
                    continue
                barred = weighed.barred[weighed.barred_starts[person] : weighed.barred_starts[person + 1]]
                scored = self._model.answer_to(weighed.rows[own], weighed.weights[own], query, barred)
                hidden = weighed.hidden[weighed.hidden_starts[person] : weighed.hidden_starts[person + 1]]
                not_again = frozenset(self._ids[code] for code in hidden.tolist())
            if scored is None or not scored.items:
                continue
            found = [self._number_of[item] for item in scored.items]
            if fill[person] and len(found) < query.n:
                assert self._filler is not None
                missing = dataclasses.replace(query, n=query.n - len(found))
                without = frozenset(scored.items) | not_again
                more = self._filler.top(missing, without, scored.mixture)
                found += [len(self.item_ids) + number for number in more]
            items[person, : len(found)] = found
            scores[person, : len(scored.scores)] = scored.scores
        return Lists(items, scores)
