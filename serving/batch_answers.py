"""The lists of persons of a batch, given what is known about them: who answers each, and with what.

`BulkReach` says as whom each person is known, and which tiers may answer in that state; `views_of` cuts out
what a tier may read, and only that reaches a model. The lists of some persons depend on their own histories
and reach, and not on who else there is.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Source, Tier, microseconds, sources_of
from consentier.errors import BundleError
from consentier.serving.batch_file import SCORED, BatchFacts
from consentier.serving.batch_job import PartCounts
from consentier.serving.batch_scorers import Filler, TierScorer
from consentier.serving.batch_views import Histories, views_of
from consentier.serving.bulk_reach import BulkReach
from consentier.serving.query import Query
from consentier.serving.recommender import Recommender, answer_reason
from consentier.serving.shop_rows import hash_values
from consentier.serving.similar_goods import SimilarGoods

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BatchAnswers", "answering_bundles", "require_same_deadlines", "shown_into"]


@dataclasses.dataclass(frozen=True)
class BatchAnswers:
    """All that the persons of a batch have in common. Immutable, and read by all workers."""

    facts: BatchFacts
    n: int
    recommender: Recommender
    reach: BulkReach
    histories: Histories
    scorers: Mapping[Tier, TierScorer]
    filler: Filler | None
    popular: Sequence[int]
    query: Query
    stopped: Mapping[str, str]
    names: _Names

    @classmethod
    def of(
        cls,
        recommender: Recommender,
        reach: BulkReach,
        histories: Histories,
        goods: SimilarGoods,
        facts: BatchFacts,
        n: int,
        stopped: Mapping[str, str],
    ) -> BatchAnswers:
        """Take the models that may answer.

        Parameters
        ----------
        recommender
            Bundles and policy.
        reach, histories
            Persons, and what there is about them.
        goods
            Which goods are alike.
        facts
            Channel, policy and instant.
        n
            Items per person, at most.
        stopped
            What `Recommender.stopped_bundles` said when the batch began.
        """
        query = Query(n=n, side=facts.channel.side, at=microseconds(facts.at))
        popular = recommender.popular
        filler = None
        if popular is not None and not stopped[popular.digest]:
            filler = Filler(popular, histories, facts.channel.side, goods)
        scorers = {
            tier: TierScorer(scorer, histories, filler, goods)
            for tier, scorer in recommender.scorers.items()
            if not stopped[scorer.digest]
        }
        top = [] if filler is None else filler.top(query, frozenset(), None)
        names = _Names.of(scorers, filler)
        return cls(facts, n, recommender, reach, histories, scorers, filler, top, query, stopped, names)

    def lists(self, start: int, stop: int) -> tuple[pa.Table, PartCounts]:
        """Score the persons from one position in `reach` to another, in their order.

        Raises
        ------
        BundleError
            If a bundle has passed its withdrawal deadline since the batch began.
        """
        require_same_deadlines(self.recommender, self.facts.at, self.stopped)
        states = self.reach.states
        cells = self.reach.cells[start:stop]
        answered = _Answered.nobody(stop - start, self.n)
        barred = np.array([bool(state.barrier) for state in states], np.bool_)[cells]
        pending = ~barred
        for place in range(max((len(state.route.tiers) for state in states), default=0)):
            for tier in Tier:
                asked = [
                    len(state.route.tiers) > place and state.route.tiers[place] is tier for state in states
                ]
                chosen = np.flatnonzero(pending & np.array(asked, np.bool_)[cells])
                if chosen.size:
                    self._answer(tier, chosen, start, answered)
            pending = ~barred & (answered.tiers < 0)
        return self._table(answered, start), self._counts(
            answered, cells, barred, self.reach.similar_only[start:stop]
        )

    def _answer(self, tier: Tier, chosen: NDArray[np.int64], start: int, answered: _Answered) -> None:
        """Have one tier answer some persons of a part; those for whom it has nothing stay open."""
        if tier is Tier.POPULAR:
            # It reads no purchases, so that it cannot know what is like them.
            chosen = chosen[~self.reach.similar_only[chosen + start]]
            if self.popular:
                row = np.full(self.n, -1, np.int64)
                row[: len(self.popular)] = np.array(self.popular) + self.names.base_of(tier)
                same = np.tile(row, (chosen.size, 1))
                answered.take(chosen, tier, same, np.zeros(same.shape))
            return
        scorer = self.scorers.get(tier)
        if scorer is None:
            return
        states = self.reach.states
        filled = np.array([Tier.POPULAR in state.route.tiers for state in states], np.bool_)
        persons = chosen + start
        sources = sources_of(tier, self.facts.channel.side) - {Source.SESSION}
        views = views_of(self.histories, self.reach, persons, sources, fused=tier is Tier.FUSED)
        limited = self.reach.similar_only[persons]
        lists = scorer.lists(views, self.query, filled[self.reach.cells[persons]], limited)
        found = np.flatnonzero(lists.items[:, 0] >= 0)
        items = self.names.numbered(tier, lists.items[found])
        answered.take(chosen[found], tier, items, lists.scores[found])

    def _table(self, answered: _Answered, start: int) -> pa.Table:
        """The rows of a part."""
        import pyarrow as pa

        there = answered.items >= 0
        count = there.sum(axis=1)
        persons = np.repeat(np.arange(len(count)), count)
        ranks = (np.arange(there.shape[1], dtype=np.int32) + 1)[None, :].repeat(len(count), axis=0)[there]
        numbers = answered.items[there]
        facts, rows = self.facts, len(numbers)
        fused = answered.tiers == _TIERS.index(Tier.FUSED)
        devices = np.where(fused, self._device_counts(start, len(count)), -1)[persons]
        schema = facts.schema(SCORED)
        columns = [
            self.reach.persons.take(pa.array(persons + start)),
            pa.array(ranks),
            self.names.items.take(pa.array(numbers)),
            pa.array(answered.scores[there]),
            pa.array([str(tier) for tier in _TIERS], pa.string()).take(pa.array(answered.tiers[persons])),
            pa.repeat(pa.scalar(facts.at, schema.field("at").type), rows),
            self.names.digests.take(pa.array(self.names.segments[numbers])),
            pa.repeat(pa.scalar(facts.policy_version, pa.string()), rows),
            pa.array(devices.astype(np.int32), mask=devices < 0),
        ]
        return pa.Table.from_arrays(columns, schema=schema)

    def _device_counts(self, start: int, count: int) -> NDArray[np.int64]:
        starts = self.reach.device_starts
        return starts[start + 1 : start + count + 1] - starts[start : start + count]

    def _counts(
        self,
        answered: _Answered,
        cells: NDArray[np.int64],
        barred: NDArray[np.bool_],
        similar_only: NDArray[np.bool_],
    ) -> PartCounts:
        """How many persons of a part each tier answered, and why the others have no rows."""
        skipped: Counter[str] = Counter()
        without = (answered.tiers < 0) & (barred | ~similar_only)
        if unlike := int(((answered.tiers < 0) & ~barred & similar_only).sum()):
            skipped["only goods like those bought may be advertised, and none are known"] = unlike
        for number, persons in enumerate(np.bincount(cells[without], minlength=len(self.reach.states))):
            state = self.reach.states[number]
            if persons:
                skipped[state.barrier or answer_reason(state.route, Tier.NONE)] += int(persons)
        by_tier = {
            str(tier): int(persons)
            for tier, persons in zip(
                _TIERS, np.bincount(answered.tiers[answered.tiers >= 0], minlength=len(_TIERS)), strict=True
            )
            if persons
        }
        return PartCounts(len(cells), int((answered.items >= 0).sum()), by_tier, dict(skipped))


_TIERS = tuple(Tier)


@dataclasses.dataclass(frozen=True, slots=True)
class _Answered:
    """The lists of the persons of a part, as far as they have some.

    Attributes
    ----------
    tiers
        int64, shape (persons,): position of each one's tier among all tiers; -1: nobody has answered.
    items, scores
        Shape (persons, n): numbers of `_Names`, padded with -1, and scores.
    """

    tiers: NDArray[np.int64]
    items: NDArray[np.int64]
    scores: NDArray[np.float64]

    @classmethod
    def nobody(cls, persons: int, n: int) -> _Answered:
        """Nobody has a list yet."""
        shape = (persons, n)
        return cls(np.full(persons, -1, np.int64), np.full(shape, -1, np.int64), np.zeros(shape))

    def take(
        self,
        chosen: NDArray[np.int64],
        tier: Tier,
        items: NDArray[np.int64],
        scores: NDArray[np.float64],
    ) -> None:
        """Note one tier's lists."""
        self.tiers[chosen] = _TIERS.index(tier)
        self.items[chosen] = items
        self.scores[chosen] = scores


@dataclasses.dataclass(frozen=True, slots=True)
class _Names:
    """The items of all bundles, numbered one bundle after the other, the popular list last.

    Attributes
    ----------
    items
        Arrow strings: their ids.
    segments
        int64: of each, the position of its bundle in `digests`.
    digests
        Arrow strings: the bundles.
    bases
        Where each tier's items begin.
    sizes
        How many items it has.
    """

    items: pa.Array
    segments: NDArray[np.int64]
    digests: pa.Array
    bases: Mapping[Tier, int]
    sizes: Mapping[Tier, int]

    @classmethod
    def of(cls, scorers: Mapping[Tier, TierScorer], filler: Filler | None) -> _Names:
        import pyarrow as pa

        bundles: list[tuple[Tier, Any]] = list(scorers.items())
        bundles += [] if filler is None else [(Tier.POPULAR, filler)]
        sizes = {tier: len(bundle.item_ids) for tier, bundle in bundles}
        ends = np.cumsum(list(sizes.values()), dtype=np.int64)
        ids = [pa.array(bundle.item_ids, pa.string()) for _, bundle in bundles]
        return cls(
            pa.concat_arrays(ids) if ids else pa.array([], pa.string()),
            np.repeat(np.arange(len(bundles)), list(sizes.values())),
            pa.array([bundle.digest for _, bundle in bundles], pa.string()),
            {tier: int(end) - sizes[tier] for (tier, _), end in zip(bundles, ends, strict=True)},
            sizes,
        )

    def base_of(self, tier: Tier) -> int:
        """Where a tier's items begin; for a tier without any, where nothing does."""
        return self.bases.get(tier, 0)

    def numbered(self, tier: Tier, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of a tier's lists (its own items, and behind them those of the popular list) among all."""
        own = self.sizes[tier]
        moved = np.where(items < own, items + self.bases[tier], items - own + self.base_of(Tier.POPULAR))
        return np.where(items < 0, -1, moved)


def require_same_deadlines(recommender: Recommender, at: dt.datetime, stopped: Mapping[str, str]) -> None:
    """Refuse to go on with a batch once other bundles have stopped than when it began.

    Raises
    ------
    BundleError
        If a bundle has passed its withdrawal deadline since, or the revocation list cannot be read.
    """
    if recommender.stopped_bundles(at) != stopped:
        raise BundleError(
            "a bundle has passed its withdrawal deadline since the batch began, or the revocation list "
            "cannot be read: what was scored must not be sent; start a new batch"
        )


def answering_bundles(recommender: Recommender, stopped: Mapping[str, str]) -> dict[str, str]:
    """Digests by tier, of the bundles that are not stopped."""
    models: dict[Tier, Any] = {**recommender.scorers, Tier.POPULAR: recommender.popular}
    return {
        str(tier): model.digest
        for tier, model in models.items()
        if model is not None and not stopped[model.digest]
    }


def shown_into(digest: Any, recommender: Recommender, items: pa.Table) -> None:
    """Feed to a hash what lists depend on besides persons and bundles: items, and what may be shown."""
    for name in items.column_names:
        hash_values(digest, items[name])
    for scorer in recommender.scorers.values():
        scorer.digest_into(digest)
    if recommender.popular is not None:
        recommender.popular.digest_into(digest)
