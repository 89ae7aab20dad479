"""Ranking metrics and statistics of recommendation lists. NumPy only.

Every ranking metric compares ranked lists with sets of relevant items under full ranking (no sampled
candidates) and returns one float64 per request, so that intervals can be drawn over customers
(:mod:`consentier.training.bootstrap`). With one relevant item a request, ``hit_rate``, ``mrr`` and ``ndcg``
are the usual HR@k, MRR@k and NDCG@k of next-item prediction.

All of them cost O(requests × k + relevant × log relevant) time and O(requests × k) memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Relevant",
    "average_precision",
    "capped_recall",
    "coverage",
    "exposure_gini",
    "hit_rate",
    "intra_list_diversity",
    "mrr",
    "ndcg",
    "novelty",
    "popularity_bias",
    "rank_metrics",
    "recall",
]

PADDING = -1
"""Fills a list that is shorter than the array is wide; stands only at a list's end."""


@dataclass(frozen=True)
class Relevant:
    """The relevant items of each request, ragged, as in a CSR matrix.

    Parameters
    ----------
    indptr
        int64 (requests + 1,); request ``r`` owns ``items[indptr[r]:indptr[r + 1]]``.
    items
        int64 (relevant items in total,); distinct within a request.

    Raises
    ------
    ValueError
        If the arrays do not fit together, an item is negative or stands twice in one request, or a request
        has no relevant item (no ranking metric is defined there: leave such requests out).
    """

    indptr: NDArray[np.int64]
    items: NDArray[np.int64]

    def __post_init__(self) -> None:
        indptr = _integers(self.indptr, "indptr", dimensions=1)
        items = _integers(self.items, "items", dimensions=1)
        if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(items):
            raise ValueError(f"indptr must run from 0 to the number of relevant items, {len(items)}")
        counts = np.diff(indptr)
        if np.any(counts < 0):
            raise ValueError(f"indptr falls after request {int(np.argmax(counts < 0))}")
        if np.any(counts == 0):
            raise ValueError(
                f"request {int(np.argmax(counts == 0))} has no relevant item: its metrics are undefined, "
                "leave it out"
            )
        if np.any(items < 0):
            raise ValueError("relevant items must be item numbers of 0 and above")
        order = np.lexsort((items, np.repeat(np.arange(len(counts)), counts)))
        repeated = np.diff(items[order]) == 0
        # Neighbours across a request's border are no repetition.
        repeated[indptr[1:-1] - 1] = False
        if np.any(repeated):
            raise ValueError(f"item {items[order][np.argmax(repeated)]} stands twice in one relevant set")
        object.__setattr__(self, "indptr", indptr)
        object.__setattr__(self, "items", items)

    @classmethod
    def from_lists(cls, lists: Sequence[ArrayLike]) -> Relevant:
        """Join one array of distinct items for each request."""
        arrays = [_integers(items, f"relevant[{row}]", dimensions=1) for row, items in enumerate(lists)]
        indptr = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(items) for items in arrays], out=indptr[1:])
        return cls(indptr, np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of relevant items of each request, int64 (requests,)."""
        return np.diff(self.indptr)

    def __len__(self) -> int:
        return len(self.indptr) - 1


def hit_rate(
    recommended: ArrayLike, relevant: Relevant | Sequence[ArrayLike], cutoff: int
) -> NDArray[np.float64]:
    """1 where a relevant item is among the first ``cutoff``, else 0 (HR@k).

    Parameters
    ----------
    recommended
        Integer (requests × k): item numbers, best first, distinct within a row, padded with -1 at the end.
    relevant
        The relevant items of each request: :class:`Relevant`, or one array of distinct items a request.
    cutoff
        Length of the list that is judged, 1 to k. A list that is shorter than that because of padding is
        judged as it is.

    Returns
    -------
    numpy.ndarray
        float64 (requests,), each in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    """
    return _hit_rate(*_judge(recommended, relevant, cutoff), cutoff)


def recall(
    recommended: ArrayLike, relevant: Relevant | Sequence[ArrayLike], cutoff: int
) -> NDArray[np.float64]:
    """Share of the relevant items that are among the first ``cutoff`` (Recall@k).

    Divides by the number of relevant items, as LightGCN's and most published tables do; it cannot reach 1
    where there are more than ``cutoff``. :func:`capped_recall` is the other convention. Parameters, result
    and errors as in :func:`hit_rate`.
    """
    return _recall(*_judge(recommended, relevant, cutoff), cutoff)


def capped_recall(
    recommended: ArrayLike, relevant: Relevant | Sequence[ArrayLike], cutoff: int
) -> NDArray[np.float64]:
    """Hits among the first ``cutoff``, divided by ``min(cutoff, relevant)``.

    The recall of Liang et al. 2018 ("Variational autoencoders for collaborative filtering", section 4.2):
    1 for the best list that is possible. Parameters, result and errors as in :func:`hit_rate`.
    """
    return _capped_recall(*_judge(recommended, relevant, cutoff), cutoff)


def ndcg(
    recommended: ArrayLike, relevant: Relevant | Sequence[ArrayLike], cutoff: int
) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain with binary relevance (NDCG@k).

    A hit at rank r counts 1 / log2(r + 1) (Järvelin and Kekäläinen 2002); the ideal is the best list of
    ``cutoff`` items, so its sum stops at ``min(cutoff, relevant)`` hits. Parameters, result and errors as in
    :func:`hit_rate`.
    """
    return _ndcg(*_judge(recommended, relevant, cutoff), cutoff)


def mrr(recommended: ArrayLike, relevant: Relevant | Sequence[ArrayLike], cutoff: int) -> NDArray[np.float64]:
    """Reciprocal rank of the first hit, 0 without one among the first ``cutoff``; its mean is MRR@k.

    Parameters, result and errors as in :func:`hit_rate`.
    """
    return _mrr(*_judge(recommended, relevant, cutoff), cutoff)


def average_precision(
    recommended: ArrayLike, relevant: Relevant | Sequence[ArrayLike], cutoff: int
) -> NDArray[np.float64]:
    """Average precision of the first ``cutoff``; its mean is MAP@k.

    The sum of the precision at each hit's rank, divided by ``min(cutoff, relevant)``, so that the best
    possible list has 1. Parameters, result and errors as in :func:`hit_rate`.
    """
    return _average_precision(*_judge(recommended, relevant, cutoff), cutoff)


def rank_metrics(
    recommended: ArrayLike,
    relevant: Relevant | Sequence[ArrayLike],
    cutoffs: Sequence[int] = (5, 10, 20),
) -> dict[str, NDArray[np.float64]]:
    """All ranking metrics at all cutoffs, from one look-up of the hits.

    Parameters and errors as in :func:`hit_rate`.

    Returns
    -------
    dict
        ``"hit_rate@5"``, ``"recall@5"``, ``"capped_recall@5"``, ``"ndcg@5"``, ``"mrr@5"``, ``"map@5"``,
        ``"hit_rate@10"``, …: float64 (requests,) each.
    """
    hits, counts = _judge(recommended, relevant, *cutoffs)
    return {
        f"{name}@{cutoff}": kernel(hits, counts, cutoff)
        for cutoff in cutoffs
        for name, kernel in _KERNELS.items()
    }


def coverage(recommended: ArrayLike, item_count: int) -> float:
    """Share of the ``item_count`` items that stand in at least one list (catalogue coverage).

    Raises
    ------
    ValueError
        If ``item_count`` is below 1 or a list names an item beyond it.
    """
    lists = _lists(recommended, item_count)
    return len(np.unique(lists[lists != PADDING])) / item_count


def novelty(recommended: ArrayLike, popularity: ArrayLike) -> float | None:
    """Mean self-information of the recommended items, in bits.

    -log2 p(i), averaged over each list and then over the lists that are not empty (Zhou et al. 2010,
    "Solving the apparent diversity-accuracy dilemma of recommender systems"). p(i) is the item's share of
    the training interactions with one interaction added to every item, so that an item without any has a
    finite value.

    Parameters
    ----------
    recommended
        As in :func:`hit_rate`.
    popularity
        Training interactions of each item, (items,), none negative.

    Returns
    -------
    float or None
        None where every list is empty.
    """
    counts = _popularity(popularity)
    information = np.log2(counts.sum() + len(counts)) - np.log2(counts + 1.0)
    return _mean_over_lists(_lists(recommended, len(counts)), information)


def popularity_bias(recommended: ArrayLike, popularity: ArrayLike) -> float | None:
    """How many times as popular as the average item the recommended items are.

    Average recommendation popularity (Abdollahpouri et al. 2019, "The unfairness of popularity bias in
    recommendation"), the mean training popularity within a list averaged over the lists that are not empty,
    divided by the mean popularity of all items. Lists drawn at random have 1.

    Parameters
    ----------
    recommended, popularity
        As in :func:`novelty`.

    Returns
    -------
    float or None
        None where every list is empty, or no item has a training interaction.
    """
    counts = _popularity(popularity)
    average = _mean_over_lists(_lists(recommended, len(counts)), counts)
    catalogue = float(counts.mean())
    return None if average is None or catalogue == 0 else average / catalogue


def exposure_gini(recommended: ArrayLike, item_count: int) -> float | None:
    """Gini coefficient of how often each of the ``item_count`` items is recommended.

    0 where all items are shown equally often; ``1 - 1 / item_count`` where one item takes every place.

    Returns
    -------
    float or None
        None where every list is empty.
    """
    lists = _lists(recommended, item_count)
    exposure = np.sort(np.bincount(lists[lists != PADDING], minlength=item_count))
    total = int(exposure.sum())
    if total == 0:
        return None
    ranks = np.arange(1, item_count + 1)
    return float(np.sum((2 * ranks - item_count - 1) * exposure) / (item_count * total))


def intra_list_diversity(recommended: ArrayLike, categories: ArrayLike) -> float | None:
    """Share of the pairs within a list whose items are of different categories, averaged over lists.

    Intra-list diversity (Ziegler et al. 2005, "Improving recommendation lists through topic
    diversification") with the distance 0 or 1 of a category.

    Parameters
    ----------
    recommended
        As in :func:`hit_rate`.
    categories
        Integer (items,): category number of each item, -1 where unknown. Items of unknown category are left
        out, and so are lists with fewer than two items of known category.

    Returns
    -------
    float or None
        None where no list has two items of known category.
    """
    category_of = _integers(categories, "categories", dimensions=1)
    if np.any(category_of < -1):
        raise ValueError("categories must be numbers of 0 and above, or -1 where unknown")
    lists = _lists(recommended, len(category_of))
    rows, columns = np.nonzero(lists != PADDING)
    category = category_of[lists[rows, columns]]
    rows, category = rows[category >= 0], category[category >= 0]
    size = np.bincount(rows, minlength=len(lists))
    listed = size >= 2
    if not np.any(listed):
        return None
    groups, group_size = np.unique(np.stack([rows, category]), axis=1, return_counts=True)
    same = np.bincount(groups[0], weights=group_size * (group_size - 1) / 2, minlength=len(lists))
    pairs = size[listed] * (size[listed] - 1) / 2
    return float(np.mean(1.0 - same[listed] / pairs))


def _hit_rate(hits: NDArray[np.bool_], counts: NDArray[np.int64], cutoff: int) -> NDArray[np.float64]:  # noqa: ARG001
    return np.asarray(hits[:, :cutoff].any(axis=1), dtype=np.float64)


def _recall(hits: NDArray[np.bool_], counts: NDArray[np.int64], cutoff: int) -> NDArray[np.float64]:
    result: NDArray[np.float64] = hits[:, :cutoff].sum(axis=1) / counts
    return result


def _capped_recall(hits: NDArray[np.bool_], counts: NDArray[np.int64], cutoff: int) -> NDArray[np.float64]:
    result: NDArray[np.float64] = hits[:, :cutoff].sum(axis=1) / np.minimum(counts, cutoff)
    return result


def _ndcg(hits: NDArray[np.bool_], counts: NDArray[np.int64], cutoff: int) -> NDArray[np.float64]:
    discounts = 1.0 / np.log2(np.arange(2, cutoff + 2))
    # Gain and ideal are added up in the same order, so that a perfect list has exactly 1.
    gain = np.cumsum(hits[:, :cutoff] * discounts, axis=1)[:, -1]
    ideal = np.cumsum(discounts)[np.minimum(counts, cutoff) - 1]
    result: NDArray[np.float64] = gain / ideal
    return result


def _mrr(hits: NDArray[np.bool_], counts: NDArray[np.int64], cutoff: int) -> NDArray[np.float64]:  # noqa: ARG001
    shown = hits[:, :cutoff]
    return np.where(shown.any(axis=1), 1.0 / (shown.argmax(axis=1) + 1), 0.0)


def _average_precision(
    hits: NDArray[np.bool_], counts: NDArray[np.int64], cutoff: int
) -> NDArray[np.float64]:
    shown = hits[:, :cutoff]
    precision = np.cumsum(shown, axis=1) / np.arange(1, cutoff + 1)
    result: NDArray[np.float64] = (precision * shown).sum(axis=1) / np.minimum(counts, cutoff)
    return result


_KERNELS: dict[str, Callable[[NDArray[np.bool_], NDArray[np.int64], int], NDArray[np.float64]]] = {
    "hit_rate": _hit_rate,
    "recall": _recall,
    "capped_recall": _capped_recall,
    "ndcg": _ndcg,
    "mrr": _mrr,
    "map": _average_precision,
}


def _judge(
    recommended: ArrayLike, relevant: Relevant | Sequence[ArrayLike], *cutoffs: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which places hold a relevant item, bool (requests × k), and the number relevant, int64 (requests,)."""
    lists = _lists(recommended)
    targets = relevant if isinstance(relevant, Relevant) else Relevant.from_lists(relevant)
    if len(lists) != len(targets):
        raise ValueError(f"{len(lists)} lists were recommended for {len(targets)} requests")
    for cutoff in cutoffs:
        if isinstance(cutoff, bool) or not isinstance(cutoff, int | np.integer):
            raise TypeError(f"a cutoff must be an integer, not {cutoff!r}")
        if not 1 <= cutoff <= lists.shape[1]:
            raise ValueError(
                f"cutoff {cutoff} is not within 1 to {lists.shape[1]}, the number of places recommended"
            )
    counts = targets.counts
    requests = np.arange(len(lists))
    span = 1 + max(int(lists.max(initial=0)), int(targets.items.max(initial=0)))
    wanted = np.sort(np.repeat(requests, counts) * span + targets.items)
    shown = requests[:, None] * span + lists
    place = np.minimum(np.searchsorted(wanted, shown), len(wanted) - 1)
    return (wanted[place] == shown) & (lists != PADDING), counts


def _lists(recommended: ArrayLike, item_count: int | None = None) -> NDArray[np.int64]:
    """Check ranked lists and return them as int64 (requests × k)."""
    lists = _integers(recommended, "recommended", dimensions=2)
    if np.any(lists < PADDING):
        raise ValueError("recommended must hold item numbers of 0 and above, or -1 as padding")
    padded = lists == PADDING
    broken = (padded[:, :-1] & ~padded[:, 1:]).any(axis=1)
    if np.any(broken):
        raise ValueError(f"recommended[{int(np.argmax(broken))}] has padding before an item")
    ordered = np.sort(lists, axis=1)
    repeated = ((np.diff(ordered, axis=1) == 0) & (ordered[:, 1:] != PADDING)).any(axis=1)
    if np.any(repeated):
        raise ValueError(f"recommended[{int(np.argmax(repeated))}] names an item twice")
    if item_count is not None:
        if item_count < 1:
            raise ValueError(f"there must be at least one item, not {item_count}")
        if lists.max(initial=PADDING) >= item_count:
            raise ValueError(f"recommended names item {lists.max()}, but there are only {item_count} items")
    return lists


def _popularity(popularity: ArrayLike) -> NDArray[np.float64]:
    counts: NDArray[np.float64] = np.asarray(popularity, dtype=np.float64)
    if counts.ndim != 1 or not np.all(np.isfinite(counts)) or np.any(counts < 0):
        raise ValueError("popularity must be one finite count of 0 or more for each item")
    return counts


def _mean_over_lists(lists: NDArray[np.int64], value: NDArray[np.float64]) -> float | None:
    """Mean over non-empty lists of the mean value of a list's items."""
    filled = lists[(lists != PADDING).any(axis=1)]
    if len(filled) == 0:
        return None
    listed = filled != PADDING
    # Padding reads the last item's value, which the mask sets to 0.
    totals = np.where(listed, value[filled], 0.0).sum(axis=1)
    return float(np.mean(totals / listed.sum(axis=1)))


def _integers(values: Any, name: str, *, dimensions: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size == 0 and array.ndim == dimensions:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, not {array.dtype}")
    if array.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimension(s), not {array.ndim}")
    return array.astype(np.int64, copy=False)
