"""Session-based nearest neighbours, compiled: plain references to compare with.

- VSKNN: Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", UMUAI 2018.
- VMIS-kNN: Kersbergen, Sprangers and Schelter, "Serenade", SIGMOD 2022: per item an index of its most recent
  sessions, and a bounded set of candidates that is filled from the last click backwards.
- VSTAN: Garg et al., "Sequence and time aware neighborhood for session-based recommendations: STAN", SIGIR
  2019, with the vector similarity and inverse document frequency of VSKNN (Ludewig et al., "Empirical
  analysis of session-based recommendation algorithms", UMUAI 2021).

All three take neighbours among past sessions that share an item with the running one and add up the
neighbours' items. Equal similarities go to the more recent session, equal scores to the smaller item number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.splits import Sessions
from consentier.models.compiled import compiled

__all__ = ["VMIS", "VSKNN", "VSTAN"]


class _Index(NamedTuple):
    """Past sessions in the order of their last click, the oldest first."""

    session_starts: NDArray[np.int64]
    session_items: NDArray[np.int64]
    distinct: NDArray[np.int64]  # number of distinct items of each session
    last_times: NDArray[np.float64]
    item_starts: NDArray[np.int64]
    item_sessions: NDArray[np.int64]  # ascending within an item
    idf: NDArray[np.float64]


class _Scratch(NamedTuple):
    """What would else be allocated per request: all but `similarity` are zeros before and after an answer."""

    similarity: NDArray[np.float64]  # (sessions,)
    marked: NDArray[np.bool_]  # (sessions,)
    score: NDArray[np.float64]  # (items,)
    place: NDArray[np.int64]  # (items,): last position in the running session, from 1


def _index(sessions: Sessions, item_count: int) -> _Index:
    ordered = sessions.chosen(np.argsort(sessions.last_times(), kind="stable").astype(np.int64))
    owner = np.repeat(np.arange(len(ordered)), np.diff(ordered.starts))
    pairs = np.unique(ordered.items * len(ordered) + owner)
    item, session = pairs // len(ordered), pairs % len(ordered)
    frequency = np.bincount(item, minlength=item_count)
    return _Index(
        session_starts=ordered.starts,
        session_items=ordered.items,
        distinct=np.bincount(session, minlength=len(ordered)).astype(np.int64),
        last_times=ordered.last_times(),
        item_starts=np.concatenate(([0], np.cumsum(frequency))),
        item_sessions=session,
        idf=np.log(len(ordered) / np.maximum(frequency, 1)),
    )


@dataclass(kw_only=True)
class _SessionKNN(ABC):
    """Parameters and state that the three share."""

    item_count: int
    neighbours: int = 500
    """Past sessions whose items are added up (k)."""
    sample_size: int = 1000
    """Most recent candidates among which the neighbours are taken (m)."""
    idf_weight: float = 1.0
    """An item's score is multiplied by 1 + this × log(sessions / sessions with the item)."""

    _sessions: _Index = field(init=False, repr=False)
    _scratch: _Scratch = field(init=False, repr=False)

    def fit(self, sessions: Sessions) -> None:
        """Index the past sessions."""
        self._sessions = _index(sessions, self.item_count)
        self._scratch = _Scratch(
            np.zeros(len(sessions)),
            np.zeros(len(sessions), dtype=np.bool_),
            np.zeros(self.item_count),
            np.zeros(self.item_count, dtype=np.int64),
        )

    @abstractmethod
    def recommend(self, prefix: NDArray[np.int64], now: float, count: int) -> NDArray[np.int64]:
        """At most `count` items after the clicks of `prefix`, the last at `now` seconds."""


@dataclass(kw_only=True)
class VSKNN(_SessionKNN):
    """Similarity: the mean of the weights position / length of the shared items.

    An item's score is the sum over the neighbours that hold it of their similarity, divided by the distance
    of the last shared click from the end of the running session (1 for the last click).
    """

    def recommend(self, prefix: NDArray[np.int64], now: float, count: int) -> NDArray[np.int64]:
        """See the base class."""
        return _vsknn(
            self._sessions,
            self._scratch,
            prefix,
            self.neighbours,
            self.sample_size,
            float(self.idf_weight),
            count,
        )


@dataclass(kw_only=True)
class VMIS(_SessionKNN):
    """Similarity: the sum of the weights position / length of the shared items.

    An item's score is the sum over the neighbours that hold it of their similarity times 1 - distance / 10 of
    the last shared click from the end of the running session (0 beyond).
    """

    def recommend(self, prefix: NDArray[np.int64], now: float, count: int) -> NDArray[np.int64]:
        """See the base class."""
        return _vmis(
            self._sessions,
            self._scratch,
            prefix,
            self.neighbours,
            self.sample_size,
            float(self.idf_weight),
            count,
        )


@dataclass(kw_only=True)
class VSTAN(_SessionKNN):
    """Similarity: the cosine with exponential weights by position, fading with the neighbour's age.

    An item's score is the sum over the neighbours that hold it of their similarity, fading with the distance
    of the item from the last shared click within the neighbour, and of that click from the end of the running
    session.
    """

    position_decay: float = 1.0
    """Clicks after which a click of the running session weighs 1 / e in the similarity (λ1, λ_spw)."""
    age_decay_days: float = 40.0
    """Days after which a neighbour weighs 1 / e (λ2, λ_snh); inf: no fading."""
    neighbour_decay: float = 2.0
    """Positions from the last shared click after which a neighbour's item weighs 1 / e (λ3, λ_inh)."""
    match_decay: float = 1.0
    """Clicks from the session's end after which a neighbour's last shared click weighs 1 / e (λ_ipw)."""

    def recommend(self, prefix: NDArray[np.int64], now: float, count: int) -> NDArray[np.int64]:
        """See the base class."""
        return _vstan(
            self._sessions,
            self._scratch,
            prefix,
            now,
            self.neighbours,
            self.sample_size,
            float(self.idf_weight),
            (
                float(self.position_decay),
                86_400.0 * self.age_decay_days,
                float(self.neighbour_decay),
                float(self.match_decay),
            ),
            count,
        )


@compiled
def _vsknn(
    index: _Index,
    scratch: _Scratch,
    prefix: NDArray[np.int64],
    neighbours: int,
    sample_size: int,
    idf_weight: float,
    count: int,
) -> NDArray[np.int64]:
    items = _place(scratch, prefix)
    candidates = _recent_sessions(index, scratch, items, scratch.place[items].astype(np.float64), sample_size)
    similarity = np.zeros(candidates.size)
    for c in range(candidates.size):
        similarity[c] = scratch.similarity[candidates[c]] / (items.size * prefix.size)
    nearest, similarity = _nearest(candidates, similarity, neighbours)
    weight = np.empty(nearest.size)
    for n in range(nearest.size):
        weight[n] = similarity[n] / (prefix.size - _last_match(index, scratch, nearest[n]) + 1)
    return _sum_items(index, scratch, items, nearest, weight, idf_weight, 0.0, count)


@compiled
def _vmis(
    index: _Index,
    scratch: _Scratch,
    prefix: NDArray[np.int64],
    neighbours: int,
    sample_size: int,
    idf_weight: float,
    count: int,
) -> NDArray[np.int64]:
    items = _place(scratch, prefix)
    candidates = np.empty(sample_size, dtype=np.int64)
    size = 0
    # From the last click backwards; session numbers ascend with their time, so the oldest is the smallest.
    for item in items[np.argsort(-scratch.place[items])]:
        start = index.item_starts[item]
        stop = index.item_starts[item + 1]
        for k in range(stop - 1, max(start, stop - sample_size) - 1, -1):
            session = index.item_sessions[k]
            if scratch.marked[session]:
                scratch.similarity[session] += scratch.place[item]
                continue
            if size == sample_size:
                if session < candidates[0]:
                    break
                scratch.marked[candidates[0]] = False
                scratch.similarity[candidates[0]] = 0.0
                _replace_smallest(candidates, session)
            else:
                _push(candidates, size, session)
                size += 1
            scratch.marked[session] = True
            scratch.similarity[session] = scratch.place[item]
    found = np.sort(candidates[:size])
    # Positions are summed and then divided, so that equal similarities are equal to the last bit.
    similarity = scratch.similarity[found] / prefix.size
    for session in found:
        scratch.marked[session] = False
        scratch.similarity[session] = 0.0
    nearest, similarity = _nearest(found, similarity, neighbours)
    weight = np.empty(nearest.size)
    for n in range(nearest.size):
        distance = prefix.size - _last_match(index, scratch, nearest[n]) + 1
        weight[n] = similarity[n] * max(0.0, 1.0 - 0.1 * distance)
    return _sum_items(index, scratch, items, nearest, weight, idf_weight, 0.0, count)


@compiled
def _vstan(
    index: _Index,
    scratch: _Scratch,
    prefix: NDArray[np.int64],
    now: float,
    neighbours: int,
    sample_size: int,
    idf_weight: float,
    decays: tuple[float, float, float, float],
    count: int,
) -> NDArray[np.int64]:
    position_decay, age_decay, neighbour_decay, match_decay = decays
    items = _place(scratch, prefix)
    squares = 0.0
    weights = np.empty(items.size)
    for p in range(items.size):
        weights[p] = math.exp((scratch.place[items[p]] - prefix.size) / position_decay)
        squares += math.exp(2 * (scratch.place[items[p]] - prefix.size) / position_decay)
    candidates = _recent_sessions(index, scratch, items, weights, sample_size)
    similarity = np.zeros(candidates.size)
    for c in range(candidates.size):
        session = candidates[c]
        similarity[c] = (
            scratch.similarity[session]
            / math.sqrt(squares * index.distinct[session])
            * math.exp(-(now - index.last_times[session]) / age_decay)
        )
    nearest, similarity = _nearest(candidates, similarity, neighbours)
    weight = np.empty(nearest.size)
    for n in range(nearest.size):
        distance = prefix.size - _last_match(index, scratch, nearest[n])
        weight[n] = similarity[n] * math.exp(-distance / match_decay)
    return _sum_items(index, scratch, items, nearest, weight, idf_weight, neighbour_decay, count)


@compiled
def _place(scratch: _Scratch, prefix: NDArray[np.int64]) -> NDArray[np.int64]:
    """Note the last position of each item of the running session; return its distinct items."""
    items = np.empty(prefix.size, dtype=np.int64)
    size = 0
    for p in range(prefix.size):
        if scratch.place[prefix[p]] == 0:
            items[size] = prefix[p]
            size += 1
        scratch.place[prefix[p]] = p + 1
    return items[:size]


@compiled
def _recent_sessions(
    index: _Index,
    scratch: _Scratch,
    items: NDArray[np.int64],
    weights: NDArray[np.float64],
    sample_size: int,
) -> NDArray[np.int64]:
    """The most recent sessions that share an item, ascending; `similarity` sums its items' weights."""
    candidates = _sharing(index, scratch, items, sample_size)
    for session in candidates:
        scratch.similarity[session] = 0.0
    for p in range(items.size):
        _add_to_sharing(index, scratch, items[p], candidates, weights[p])
    return candidates


@compiled
def _sharing(
    index: _Index, scratch: _Scratch, items: NDArray[np.int64], sample_size: int
) -> NDArray[np.int64]:
    room = 0
    for item in items:
        room += min(sample_size, index.item_starts[item + 1] - index.item_starts[item])
    found = np.empty(room, dtype=np.int64)
    size = 0
    for item in items:
        stop = index.item_starts[item + 1]
        # The most recent of all are among the most recent of each item.
        for k in range(max(index.item_starts[item], stop - sample_size), stop):
            session = index.item_sessions[k]
            if not scratch.marked[session]:
                scratch.marked[session] = True
                found[size] = session
                size += 1
    found = np.sort(found[:size])
    for session in found:
        scratch.marked[session] = False
    return found[max(0, size - sample_size) :]


@compiled
def _add_to_sharing(
    index: _Index, scratch: _Scratch, item: int, candidates: NDArray[np.int64], weight: float
) -> None:
    if candidates.size == 0:
        return
    oldest = candidates[0]
    for k in range(index.item_starts[item + 1] - 1, index.item_starts[item] - 1, -1):
        session = index.item_sessions[k]
        if session < oldest:
            break
        scratch.similarity[session] += weight


@compiled
def _nearest(
    candidates: NDArray[np.int64], similarity: NDArray[np.float64], neighbours: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The `neighbours` most similar candidates, which come ascending; equal ones by recency."""
    if candidates.size <= neighbours:
        return candidates, similarity
    threshold = np.partition(similarity, candidates.size - neighbours)[candidates.size - neighbours]
    ties = neighbours
    for value in similarity:
        if value > threshold:
            ties -= 1
    kept = np.zeros(candidates.size, dtype=np.bool_)
    for c in range(candidates.size - 1, -1, -1):
        if similarity[c] > threshold:
            kept[c] = True
        elif similarity[c] == threshold and ties > 0:
            kept[c] = True
            ties -= 1
    return candidates[kept], similarity[kept]


@compiled
def _last_match(index: _Index, scratch: _Scratch, session: int) -> int:
    """The last position in the running session, from 1, of an item that the past session holds."""
    last = 0
    for k in range(index.session_starts[session], index.session_starts[session + 1]):
        last = max(last, scratch.place[index.session_items[k]])
    return last


@compiled
def _sum_items(
    index: _Index,
    scratch: _Scratch,
    items: NDArray[np.int64],
    nearest: NDArray[np.int64],
    weight: NDArray[np.float64],
    idf_weight: float,
    neighbour_decay: float,
    count: int,
) -> NDArray[np.int64]:
    """Add up the neighbours' items, clear the scratch, and return the best.

    Each item counts once a neighbour, at its last position there. With `neighbour_decay` above 0 it fades
    with the distance from the neighbour's last shared click.
    """
    room = 0
    for session in nearest:
        room += index.session_starts[session + 1] - index.session_starts[session]
    ids = np.empty(room, dtype=np.int64)
    size = 0
    for n in range(nearest.size):
        start = index.session_starts[nearest[n]]
        stop = index.session_starts[nearest[n] + 1]
        shared = start
        if neighbour_decay > 0:
            for k in range(start, stop):
                if scratch.place[index.session_items[k]] > 0:
                    shared = k
        for k in range(start, stop):
            item = index.session_items[k]
            if _again(index.session_items, item, k + 1, stop):
                continue
            value = weight[n] * (1.0 + idf_weight * index.idf[item])
            if neighbour_decay > 0:
                value *= math.exp(-abs(k - shared) / neighbour_decay)
            if scratch.score[item] == 0.0 and value != 0.0:
                ids[size] = item
                size += 1
            scratch.score[item] += value
    ids = np.sort(ids[:size])
    scores = scratch.score[ids]
    for item in ids:
        scratch.score[item] = 0.0
    for item in items:
        scratch.place[item] = 0
    return _best(ids, scores, count)


@compiled
def _again(items: NDArray[np.int64], item: int, start: int, stop: int) -> bool:
    k = start
    while k < stop and items[k] != item:
        k += 1
    return k < stop


@compiled
def _best(ids: NDArray[np.int64], scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The best ids, equal scores by ascending id; `ids` come ascending."""
    if ids.size > count:
        kept = scores >= np.partition(scores, ids.size - count)[ids.size - count]
        ids, scores = ids[kept], scores[kept]
    return ids[np.argsort(-scores, kind="mergesort")[:count]]


@compiled
def _push(heap: NDArray[np.int64], size: int, value: int) -> None:
    """Add to a heap with the smallest in front."""
    k = size
    while k > 0 and heap[(k - 1) // 2] > value:
        heap[k] = heap[(k - 1) // 2]
        k = (k - 1) // 2
    heap[k] = value


@compiled
def _replace_smallest(heap: NDArray[np.int64], value: int) -> None:
    """Replace the smallest of a full heap."""
    k = 0
    while 2 * k + 1 < heap.size:
        child = 2 * k + 1
        if child + 1 < heap.size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[k] = heap[child]
        k = child
    heap[k] = value
