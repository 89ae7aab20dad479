"""Items with little evidence borrow the weights of items with the same metadata.

An item that few persons had has weights that say little, and one that nobody had yet has none. Their place
is taken by the mean of the weights of *donors*: items with evidence that share metadata with it (a category,
a price band, …). It fades linearly as evidence grows; from `enough` persons on an item stands on its own, and
its weights are not touched. A map from metadata to parameters is often learnt (Gantner et al., "Learning
attribute-to-feature mappings for cold-start recommendations", ICDM 2010: their kNN mapping is the nearest to
this one); here it is a mean over neighbours, so that it can be worked out again, to the last bit, from counts
and metadata alone.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.compiled import compiled
from consentier.models.local_ridge import largest_weights

__all__ = ["borrowing_shares", "with_borrowed"]

_LINES_PER_CHUNK = 256
# Levels weigh whole numbers, so that sums do not depend on an order and equal similarities are equal.
_LEVEL_UNIT = 1024.0


def borrowing_shares(
    levels: sparse.csr_matrix, persons: NDArray[np.int64], *, enough: int, neighbours: int
) -> sparse.csr_matrix:
    """Work out from whom each item borrows, and how much.

    A level weighs ``log2((n + 1) / c)``, in whole 1024ths, if c of n items have it: the rarest counts most.
    The similarity of two items is the weight of the levels that both have, divided by the weight of those
    that either has (weighted Jaccard). The `neighbours` most similar items that anybody had are an item's
    donors (equal ones: those with more persons, then by ascending number). A donor k with similarity s and
    n_k persons counts ``s² min(n_k / enough, 1)``.

    Parameters
    ----------
    levels
        Shape (items, levels), canonical: an entry where an item has a level.
    persons
        int64, shape (items,): distinct persons behind each item's weights. Where it is 0, weights must not be
        passed on: that is how `min_persons` keeps an item out.
    enough
        Persons with which an item stands on its own.
    neighbours
        Donors of an item at most.

    Returns
    -------
    csr_matrix of float64
        Shape (items, items). The row of an item that borrows sums to 1: ``persons / enough`` of its own, and
        the rest from its donors. Items that do not, and those without a donor, have an empty row.

    Notes
    -----
    O(sum over the distinct sets of levels of the donors that share a level). Independent of threads.
    """
    items = levels.shape[0]
    of_level = np.bincount(levels.indices, minlength=levels.shape[1])
    exact = _LEVEL_UNIT * np.log2((items + 1) / np.maximum(of_level, 1))
    weights = np.maximum(np.rint(exact), 1).astype(np.int64)
    totals = np.add.reduceat(np.append(weights[levels.indices], 0), levels.indptr[:-1])
    totals[np.diff(levels.indptr) == 0] = 0
    borrowers = np.flatnonzero(persons < enough)
    ranked = np.lexsort((np.arange(items), -persons))[: np.count_nonzero(persons)]
    donated = sparse.csc_matrix(levels[ranked])
    donated.sort_indices()
    profiles, of_borrower = _profiles(levels, borrowers)
    found, similarities = _nearest_donors(
        profiles.indptr.astype(np.int64),
        profiles.indices.astype(np.int64),
        donated.indptr.astype(np.int64),
        donated.indices.astype(np.int64),
        weights,
        totals[ranked].astype(np.int64),
        neighbours + 1,  # an item may find itself
    )
    starts, indices, data = _shares(
        borrowers, of_borrower, found, similarities, ranked, persons, enough, neighbours
    )
    lengths = np.zeros(items, dtype=np.int64)
    lengths[borrowers] = np.diff(starts)
    shares = sparse.csr_matrix((data, indices, np.append(0, np.cumsum(lengths))), shape=(items, items))
    shares.sort_indices()
    return shares


def with_borrowed(
    weights: sparse.csr_matrix, shares: sparse.csr_matrix, *, kept: int, threads: int | None = None
) -> sparse.csr_matrix:
    """Mix what is borrowed into item weights: ``R W R^T``, with R the shares of items that borrow.

    First the items that borrow are predicted as their donors are (columns), then they predict what their
    donors predict (rows). No item is made to predict itself.

    Parameters
    ----------
    weights
        Shape (n_inputs, n_items), canonical, zero on the diagonal.
    shares
        From `borrowing_shares`.
    kept
        Weights of largest size that are kept of each column, and of each row, that borrows.
    threads
        Threads to use; all cores by default. The result does not depend on it.

    Returns
    -------
    csr_matrix of float32
        Of the shape of `weights`, canonical. Where neither the input nor the item borrows, the weights are
        those that came in, to the last bit.

    Notes
    -----
    O(entries in the columns and rows of all donors of all items that borrow), added up in a fixed order.
    """
    by_item = sparse.csr_matrix(weights.T)
    predicted = sparse.csr_matrix(_mixed(by_item, shares, kept, threads).T)
    mixed = _mixed(predicted, shares, kept, threads)
    mixed.sort_indices()
    return mixed


def _profiles(
    levels: sparse.csr_matrix, items: NDArray[np.int64]
) -> tuple[sparse.csr_matrix, NDArray[np.int64]]:
    """The distinct sets of levels among some items, and which of them each item has."""
    chosen = sparse.csr_matrix(levels[items])
    chosen.sort_indices()
    numbers: dict[bytes, int] = {}
    first: list[int] = []
    of_item = np.empty(items.size, dtype=np.int64)
    for place, (start, end) in enumerate(pairwise(chosen.indptr.tolist())):
        key = chosen.indices[start:end].tobytes()
        if key not in numbers:
            numbers[key] = len(numbers)
            first.append(place)
        of_item[place] = numbers[key]
    return sparse.csr_matrix(chosen[np.array(first, dtype=np.int64)]), of_item


def _mixed(
    lines: sparse.csr_matrix, shares: sparse.csr_matrix, kept: int, threads: int | None
) -> sparse.csr_matrix:
    """Put in the place of each line that borrows the mean, by its shares, of the lines it borrows from."""
    lines.sort_indices()
    chosen = np.flatnonzero(np.diff(shares.indptr))
    arrays = (lines.indptr.astype(np.int64), lines.indices, lines.data)
    parts = (shares.indptr.astype(np.int64), shares.indices, shares.data)
    chunks = [chosen[k : k + _LINES_PER_CHUNK] for k in range(0, chosen.size, _LINES_PER_CHUNK)]
    found = Parallel(n_jobs=-1 if threads is None else threads, prefer="threads")(
        delayed(_means)(*arrays, *parts, chunk, lines.shape[1], kept) for chunk in chunks
    )
    lengths = np.zeros(lines.shape[0], dtype=np.int64)
    lengths[chosen] = np.concatenate([np.zeros(0, np.int64), *(sizes for sizes, _, _ in found)])
    fresh = sparse.csr_matrix(
        (
            np.concatenate([np.zeros(0, np.float32), *(data for _, _, data in found)]),
            np.concatenate([np.zeros(0, np.int32), *(indices for _, indices, _ in found)]),
            np.append(0, np.cumsum(lengths)),
        ),
        shape=lines.shape,
    )
    stays = np.ones(lines.shape[0], dtype=np.bool_)
    stays[chosen] = False
    entries = np.repeat(stays, np.diff(lines.indptr))
    untouched = sparse.csr_matrix(
        (
            lines.data[entries],
            lines.indices[entries],
            np.append(0, np.cumsum(np.where(stays, np.diff(lines.indptr), 0))),
        ),
        shape=lines.shape,
    )
    return sparse.csr_matrix(untouched + fresh)  # no row has entries of both


@compiled
def _nearest_donors(
    profile_starts: NDArray[np.int64],
    profile_levels: NDArray[np.int64],
    donor_starts: NDArray[np.int64],
    donors: NDArray[np.int64],
    level_weights: NDArray[np.int64],
    totals: NDArray[np.int64],
    limit: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The donors, by rank, that are most similar to each set of levels, the nearest first; padded with -1."""
    profiles = profile_starts.size - 1
    found = np.full((profiles, limit), -1, dtype=np.int64)
    similarities = np.zeros((profiles, limit), dtype=np.float64)
    shared = np.zeros(totals.size, dtype=np.int64)
    touched = np.empty(totals.size, dtype=np.int64)
    for p in range(profiles):
        count, own = 0, 0
        for k in range(profile_starts[p], profile_starts[p + 1]):
            level = profile_levels[k]
            own += level_weights[level]
            for entry in range(donor_starts[level], donor_starts[level + 1]):
                donor = donors[entry]
                if shared[donor] == 0:
                    touched[count] = donor
                    count += 1
                shared[donor] += level_weights[level]
        candidates = np.sort(touched[:count])
        values = np.empty(count, dtype=np.float64)
        for k in range(count):
            donor = candidates[k]
            values[k] = shared[donor] / (own + totals[donor] - shared[donor])
            shared[donor] = 0
        threshold, ties = -1.0, 0
        if count > limit:
            threshold = np.partition(values, count - limit)[count - limit]
            ties = limit - (values > threshold).sum()
        filled = 0
        for k in range(count):
            if values[k] > threshold or (values[k] == threshold and ties > 0):
                if values[k] == threshold:
                    ties -= 1
                found[p, filled] = candidates[k]
                similarities[p, filled] = values[k]
                filled += 1
        order = np.argsort(-similarities[p, :filled], kind="mergesort")  # stable: equal ones stay by rank
        found[p, :filled] = found[p, :filled][order]
        similarities[p, :filled] = similarities[p, :filled][order]
    return found, similarities


@compiled
def _shares(
    borrowers: NDArray[np.int64],
    profiles: NDArray[np.int64],
    found: NDArray[np.int64],
    similarities: NDArray[np.float64],
    ranked: NDArray[np.int64],
    persons: NDArray[np.int64],
    enough: int,
    neighbours: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The shares of each item that borrows: how many in a row, of which items, how much."""
    starts = np.zeros(borrowers.size + 1, dtype=np.int64)
    indices = np.empty(borrowers.size * (neighbours + 1), dtype=np.int64)
    data = np.empty(indices.size, dtype=np.float64)
    filled = 0
    for b in range(borrowers.size):
        item = borrowers[b]
        first, total = filled, 0.0
        for k in range(found.shape[1]):
            rank = found[profiles[b], k]
            # Where the item itself is not among them, there is one too many.
            if rank < 0 or filled - first == neighbours:
                break
            if ranked[rank] == item:
                continue
            similarity = similarities[profiles[b], k]
            indices[filled] = ranked[rank]
            data[filled] = similarity * similarity * min(persons[ranked[rank]] / enough, 1.0)
            total += data[filled]
            filled += 1
        if filled > first:
            own = persons[item] / enough
            for k in range(first, filled):
                data[k] = data[k] / total * (1.0 - own)
            if own > 0.0:
                indices[filled] = item
                data[filled] = own
                filled += 1
        starts[b + 1] = filled
    return starts, indices[:filled], data[:filled]


@compiled
def _means(
    starts: NDArray[np.int64],
    indices: NDArray[np.integer],
    data: NDArray[np.float32],
    share_starts: NDArray[np.int64],
    share_indices: NDArray[np.integer],
    share_data: NDArray[np.float64],
    chosen: NDArray[np.int64],
    width: int,
    kept: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """The means of some lines: how many entries each has, where (ascending), and how much."""
    sums = np.zeros(width, dtype=np.float64)
    seen = np.zeros(width, dtype=np.bool_)
    touched = np.empty(width, dtype=np.int64)
    lengths = np.zeros(chosen.size, dtype=np.int64)
    places = np.empty(chosen.size * min(kept, width), dtype=np.int32)
    values = np.empty(places.size, dtype=np.float32)
    filled = 0
    for c in range(chosen.size):
        line = chosen[c]
        count = 0
        for share in range(share_starts[line], share_starts[line + 1]):
            source = share_indices[share]
            for entry in range(starts[source], starts[source + 1]):
                place = indices[entry]
                if not seen[place]:
                    seen[place] = True
                    touched[count] = place
                    count += 1
                sums[place] += share_data[share] * np.float64(data[entry])
        ordered = np.sort(touched[:count])
        means = np.empty(count, dtype=np.float32)
        for k in range(count):
            place = ordered[k]
            means[k] = 0.0 if place == line else sums[place]
            sums[place] = 0.0
            seen[place] = False
        stay = largest_weights(means, kept)
        for k in range(count):
            if stay[k]:
                places[filled] = ordered[k]
                values[filled] = means[k]
                filled += 1
                lengths[c] += 1
    return lengths, places[:filled], values[:filled]
