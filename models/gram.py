"""Co-occurrence statistics in fixed point, from which a customer can be subtracted exactly.

The Gram matrix of the interactions, ``G = sum over rows u of r(u) x(u) x(u)^T``, is all that the linear
item models need to know of the data. It is kept in integers. Integer sums do not depend on the order of the
rows, on threads or on the machine, so the same permitted rows give the same bytes, and statistics from which
a customer's rows were subtracted are, bit for bit, those of a fit without that customer.

Here they are counted, by the loops of `models.compiled_gram`. `models.gram_arithmetic` subtracts and adds.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, localcontext
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.compiled_gram import (
    DISTANCE_STEPS,
    Source,
    count_persons,
    fill_rows,
    positions_in,
    row_lengths,
)

__all__ = [
    "ENTRY_UNIT",
    "GRAM_UNIT",
    "LARGEST_SUM",
    "ROW_UNIT",
    "GramPart",
    "GramStatistics",
    "GramTruncated",
    "SessionOrder",
    "entry_positions",
    "gram_matrix",
    "gram_parts",
    "gram_statistics",
    "largest_rows",
    "last_positions",
    "require_budget",
    "require_sums_fit",
    "row_weights",
    "same_entries",
]

ENTRY_UNIT = 2.0**-8
"""Step of an interaction's weight: event weights such as 0.5, 1 and 1.5 are exact."""

ROW_UNIT = 2.0**-16
"""Step of the weight of a whole row."""

GRAM_UNIT = ROW_UNIT * ENTRY_UNIT**2
"""Step of a Gram matrix: an interaction of weight 1 in a row of weight 1 counts 2**32 of them."""

LARGEST_SUM = 2.0**62
"""Half of what int64 holds: the check adds up in float64, which may be off in its last places."""

_CHUNKS_PER_THREAD = 16


class GramTruncated(UserWarning):
    """The Gram matrix did not fit its budget; its weakest entries were dropped."""

    @classmethod
    def of(cls, *, total: int, budget: int, left: int) -> GramTruncated:
        """The warning, with the entries that there were, might have been, and are left."""
        return cls(
            f"the Gram matrix has {total:,} entries and its budget is {budget:,}: the weakest were "
            f"dropped, {left:,} are left, and customers cannot be subtracted from it. Raise "
            "max_gram_entries, or train on fewer items or a shorter period."
        )


@dataclass(frozen=True, eq=False)
class SessionOrder:
    """In which order the items of rows came, where rows are sessions, and how much each session counts.

    Attributes
    ----------
    positions
        int64, aligned with the entries of the canonical matrix of sessions: 0 for the first item of its row,
        1 for the next.
    row_scale
        float64, shape (n_rows,), in (0, 1]: what the weight of each row is multiplied by.
    """

    positions: NDArray[np.int64]
    row_scale: NDArray[np.float64]


def last_positions(
    rows: NDArray[np.int64], items: NDArray[np.int64], item_count: int, entries: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Place the items of sessions by their last event: the positions of a `SessionOrder`.

    Parameters
    ----------
    rows, items
        int64, shape (events,): session and item of each event; session by session, oldest first.
    item_count
        Above every item's number.
    entries
        int64, ascending: ``row * item_count + item`` of each entry of the matrix of sessions. Each must occur
        among the events.

    Returns
    -------
    ndarray of int64
        Aligned with `entries`: 0 for the first of its row, and 1 more for each item between. O(n log n).
    """
    if not entries.size:
        return np.empty(0, dtype=np.int64)
    pairs = rows * item_count + items
    # Of the events backwards, the first one of each pair is the last one that names it.
    distinct, last = np.unique(pairs[::-1], return_index=True)
    places = np.empty(distinct.size, dtype=np.int64)
    places[np.argsort(pairs.size - 1 - last)] = np.arange(distinct.size)
    found = places[np.searchsorted(distinct, entries)]
    owners = entries // item_count
    starts = np.flatnonzero(np.append(True, owners[1:] != owners[:-1]))
    first = np.minimum.reduceat(found, starts)
    positions: NDArray[np.int64] = found - np.repeat(first, np.diff(np.append(starts, entries.size)))
    return positions


@dataclass(frozen=True)
class GramStatistics:
    """What the linear item models know of the interactions.

    Personal data of all customers together: kept on the training side, never published.

    Attributes
    ----------
    gram
        int64, shape (n_inputs, n_inputs), in units of `GRAM_UNIT`; symmetric, canonical (indices sorted, no
        stored zeros).
    counts
        int64, shape (n_inputs,): distinct persons with each input.
    persons
        int64, aligned with ``gram.data``: distinct persons behind each entry; None where `min_persons` is 1.
    row_exponent
        Exponent of the row weights, see `row_weights`.
    min_persons
        Entries and inputs with fewer distinct persons are kept here (a subtraction needs them) and left out
        of every model. ``dataclasses.replace`` may change it where `persons` is present.
    truncated
        The weakest entries were dropped. Rows cannot be subtracted any more: fit again.
    forward
        int64, aligned with ``gram.data``: the part of each entry that comes from rows in which the entry's
        row came before its column. None where the rows had no order.
    distance_decay
        How fast the weight of a pair falls with the items between its two; None where it does not.
    """

    gram: sparse.csr_matrix
    counts: NDArray[np.int64]
    persons: NDArray[np.int64] | None
    row_exponent: float
    min_persons: int
    truncated: bool = False
    forward: NDArray[np.int64] | None = None
    distance_decay: float | None = None

    def __post_init__(self) -> None:
        _require_positive("min_persons", self.min_persons)
        if self.min_persons > 1 and self.persons is None:
            raise ValueError(
                "min_persons is above 1, but persons were not counted: compute the statistics with "
                "min_persons=2 or more"
            )

    def supported(self) -> NDArray[np.bool_]:
        """Mark the entries, aligned with ``gram.data``, behind which there are `min_persons` or more."""
        if self.persons is None:
            return np.ones(self.gram.nnz, dtype=np.bool_)
        return np.asarray(self.persons >= self.min_persons)

    def digest(self) -> str:
        """Return the SHA-256 of the statistics, in hexadecimal; equal wherever they are computed."""
        settings = f"{self.row_exponent!r} {self.min_persons} {self.truncated} {self.distance_decay!r}"
        sha = hashlib.sha256(settings.encode())
        arrays = [self.gram.indptr, self.gram.indices, self.gram.data, self.counts]
        arrays += [array for array in (self.persons, self.forward) if array is not None]
        for array in arrays:
            sha.update(array.size.to_bytes(8, "little"))
            sha.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return sha.hexdigest()


def row_weights(lengths: NDArray[np.integer], exponent: float) -> NDArray[np.int64]:
    """Weigh rows by ``length ** (-2 * exponent)``, in steps of `ROW_UNIT`, and at least one step.

    A row that is multiplied by ``length ** -exponent`` enters the Gram matrix with the square of that. With
    the exponent .5, a row's products add up to its length instead of the square of it, so that long histories
    do not drown short ones.

    Parameters
    ----------
    lengths
        Integers, shape (n_rows,): inputs per row.
    exponent
        At least 0; 0 weighs all rows alike.

    Returns
    -------
    ndarray of int64
        Shape (n_rows,), between 1 and 65,536.

    Raises
    ------
    ValueError
        The exponent is negative or not finite.

    Notes
    -----
    Powers are taken in decimal arithmetic, once per distinct length: unlike those of a C library or of vector
    instructions, they are the same on every machine.
    """
    if not (math.isfinite(exponent) and exponent >= 0):
        raise ValueError(f"row_exponent must be a finite number of at least 0, got {exponent!r}")
    distinct, inverse = np.unique(lengths, return_inverse=True)
    with localcontext() as context:
        context.prec = 34
        power = Decimal(repr(float(-2 * exponent)))
        steps = [
            max(1, int((Decimal(max(length, 1)) ** power * 2**16).to_integral_value()))
            for length in distinct.tolist()
        ]
    return np.array(steps, dtype=np.int64)[inverse]


def gram_statistics(
    user_items: sparse.csr_matrix,
    *,
    row_exponent: float,
    persons: NDArray[np.integer] | None = None,
    min_persons: int = 1,
    max_gram_entries: int | None = None,
    threads: int | None = None,
    order: SessionOrder | None = None,
    distance_decay: float | None = None,
) -> GramStatistics:
    """Count co-occurrences.

    Parameters
    ----------
    user_items
        Shape (n_rows, n_inputs), weights of at least 0. They are rounded to steps of `ENTRY_UNIT`; those that
        round to 0 are left out.
    row_exponent
        Rows are weighted by ``length ** (-2 * row_exponent)``, see `row_weights`.
    persons
        Integers, shape (n_rows,): whose row it is, where one person has several rows (sessions, say). By
        default every row is a person of its own.
    min_persons
        Recorded in the result; above 1, the distinct persons behind each entry are counted.
    max_gram_entries
        Budget of stored entries. When there are more, the weakest of the longest rows are dropped (an entry
        stays when it is strong enough in its row or in its column; the diagonal always stays).
    threads
        Threads to use; all cores by default. The result does not depend on it.
    order
        The order of each row's items, and its weight. The matrix must then be canonical.
    distance_decay
        Two items of a row with d others between them count ``exp(-d / distance_decay)``, in steps of 1/256
        and at least one; by default 1. Needs `order`.

    Returns
    -------
    GramStatistics

    Raises
    ------
    ValueError
        A weight is negative or not finite, or an argument is out of its range.
    OverflowError
        The sums would not fit int64.

    Warns
    -----
    GramTruncated
        The budget did not hold all entries.

    Notes
    -----
    O(sum of squared row lengths) time, twice (a counting pass allocates exactly). Memory: 12 bytes an entry
    of the result, 8 more with persons and 8 more with an order, and some 30 bytes an input and thread.
    """
    _require_positive("min_persons", min_persons)
    require_budget(max_gram_entries, user_items.shape[1])
    source, rows = _counted(user_items, row_exponent, persons, order, distance_decay)
    bounds = _equal_work(rows, threads)
    lengths = _gram_lengths(source, bounds, threads)
    total = int(lengths.sum())
    truncated = max_gram_entries is not None and total > max_gram_entries
    if max_gram_entries is not None and truncated:
        lengths = np.minimum(lengths, largest_rows(lengths, max_gram_entries))
    gram, entry_persons, forward = _gram(
        source, lengths, bounds, threads, count_persons=min_persons > 1, ordered=order is not None
    )
    if max_gram_entries is not None and truncated:
        gram, entry_persons, forward = _symmetric(gram, entry_persons, forward)
        warnings.warn(GramTruncated.of(total=total, budget=max_gram_entries, left=gram.nnz), stacklevel=2)
    return GramStatistics(
        gram=gram,
        counts=count_persons(source),
        persons=entry_persons,
        row_exponent=float(row_exponent),
        min_persons=min_persons,
        truncated=truncated,
        forward=forward,
        distance_decay=distance_decay,
    )


class GramPart(NamedTuple):
    """Some rows of a Gram matrix, on and above its diagonal; the lower half is their mirror image.

    Attributes
    ----------
    rows, columns
        int32, ascending by row, then column; no column is below its row.
    values, persons, forward
        int64, aligned with them, as in `GramStatistics`; 0 throughout where not counted.
    """

    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: NDArray[np.int64]
    persons: NDArray[np.int64]
    forward: NDArray[np.int64]


def gram_parts(
    user_items: sparse.csr_matrix,
    *,
    row_exponent: float,
    persons: NDArray[np.integer] | None = None,
    min_persons: int = 1,
    order: SessionOrder | None = None,
    distance_decay: float | None = None,
    most_entries: int = 1_000_000,
) -> tuple[NDArray[np.int64], Iterator[GramPart]]:
    """Count co-occurrences of whole persons, some rows of the Gram matrix at a time.

    Added up over any partition of the persons, values, persons and forward parts are those of
    `gram_statistics` of all together, bit for bit.

    Parameters
    ----------
    user_items, row_exponent, persons, min_persons, order, distance_decay
        As for `gram_statistics`; all rows of each person.
    most_entries
        Of one part, unless a single row of the Gram matrix has more.

    Returns
    -------
    counts, parts : ndarray of int64, iterator of GramPart
        Distinct persons with each input; the entries.

    Raises
    ------
    ValueError, OverflowError
        As from `gram_statistics`.

    Notes
    -----
    The time of `gram_statistics`, on one thread. Memory: 28 bytes an entry of one part (up to `inputs` more
    entries than asked for), whatever the length of the longest history, and some 30 bytes an input.
    """
    _require_positive("min_persons", min_persons)
    source, rows = _counted(user_items, row_exponent, persons, order, distance_decay)
    lengths = row_lengths(source, 0, rows.shape[1])
    cuts = (np.cumsum(lengths) - 1) // most_entries
    edges = [0, *(np.flatnonzero(np.diff(cuts)) + 1).tolist(), rows.shape[1]]

    def parts() -> Iterator[GramPart]:
        for start, stop in pairwise(edges):
            yield _part(
                source, lengths, start, stop, count_persons=min_persons > 1, ordered=order is not None
            )

    return count_persons(source), parts()


def _part(
    source: Source, lengths: NDArray[np.int64], start: int, stop: int, *, count_persons: bool, ordered: bool
) -> GramPart:
    starts = np.zeros(lengths.size + 1, dtype=np.int64)
    starts[start + 1 : stop + 1] = np.cumsum(lengths[start:stop])
    entries = int(starts[stop])
    columns, values = np.empty(entries, dtype=np.int32), np.empty(entries, dtype=np.int64)
    persons = np.zeros(entries, dtype=np.int64)
    forward = np.zeros(entries if ordered else 0, dtype=np.int64)
    fill_rows(source, start, stop, starts, columns, values, persons, count_persons, forward)
    rows = np.repeat(np.arange(start, stop, dtype=np.int32), lengths[start:stop])
    upper = columns >= rows
    return GramPart(
        rows[upper],
        columns[upper],
        values[upper],
        persons[upper],
        forward[upper] if ordered else np.zeros(int(upper.sum()), dtype=np.int64),
    )


def _quantised(
    user_items: sparse.csr_matrix, order: SessionOrder | None
) -> tuple[sparse.csr_matrix, sparse.csr_matrix | None, NDArray[np.float64]]:
    """Copy the matrix in steps of `ENTRY_UNIT`: canonical, int64, without stored zeros.

    With it, one of the same entries with their positions, from 1, and the scale of the rows.
    """
    matrix = sparse.csr_matrix(user_items, dtype=np.float64, copy=True)
    if order is not None:
        _check_order(matrix, order)
    matrix.sum_duplicates()
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        raise ValueError(
            "user_items holds weights that are negative or not finite; weights must be at least 0"
        )
    steps = np.rint(matrix.data / ENTRY_UNIT)
    if steps.size and steps.max() > 2.0**31:
        raise OverflowError(
            f"user_items holds a weight of {matrix.data.max():.6g}, more than the fixed-point sums can take: "
            "scale the weights so that one interaction weighs about 1"
        )
    rows = sparse.csr_matrix((steps.astype(np.int64), matrix.indices, matrix.indptr), shape=matrix.shape)
    if order is None:
        rows.eliminate_zeros()
        return rows, None, np.ones(rows.shape[0])
    kept = steps > 0
    starts = np.concatenate(([0], np.cumsum(kept)))[rows.indptr]
    entries = (rows.indices[kept], starts)
    return (
        sparse.csr_matrix((rows.data[kept], *entries), shape=rows.shape),
        sparse.csr_matrix((order.positions[kept] + 1, *entries), shape=rows.shape),
        order.row_scale,
    )


def _check_order(matrix: sparse.csr_matrix, order: SessionOrder) -> None:
    if not matrix.has_canonical_format:
        raise ValueError("rows with an order must be canonical: call user_items.sum_duplicates() before")
    if order.positions.shape != matrix.data.shape or (order.positions < 0).any():
        raise ValueError(
            f"order.positions must hold a position of at least 0 for each of {matrix.nnz} entries, "
            f"got shape {order.positions.shape}"
        )
    if order.row_scale.shape != (matrix.shape[0],) or not (
        (order.row_scale > 0).all() and (order.row_scale <= 1).all()
    ):
        raise ValueError(f"order.row_scale must hold a number in (0, 1] for each of {matrix.shape[0]} rows")


def _by_person(rows: int, persons: NDArray[np.integer] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An order of rows that brings those of each person together, and the persons' ascending numbers."""
    if persons is None:
        return np.arange(rows, dtype=np.int64), np.arange(rows, dtype=np.int64)
    persons = np.asarray(persons)
    if persons.shape != (rows,):
        raise ValueError(f"persons must have one entry for each of {rows} rows, got shape {persons.shape}")
    _, numbers = np.unique(persons, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    return order, numbers[order].astype(np.int64)


def _distance_weights(places: sparse.csr_matrix | None, distance_decay: float | None) -> NDArray[np.int64]:
    """What pairs of items count by the distance of their positions, in steps of 1/256."""
    if distance_decay is None:
        return np.zeros(0, dtype=np.int64)
    if places is None:
        raise ValueError("distance_decay needs the order of the rows: pass order")
    if not (math.isfinite(distance_decay) and distance_decay > 0):
        raise ValueError(f"distance_decay must be a finite number above 0, got {distance_decay!r}")
    # In decimal arithmetic, as in `row_weights`: the same on every machine.
    with localcontext() as context:
        context.prec = 34
        slope = -1 / Decimal(repr(float(distance_decay)))
        farthest = int(places.data.max(initial=1))
        steps = [DISTANCE_STEPS]
        while len(steps) < farthest and steps[-1] > 1:
            weight = (slope * (len(steps) - 1)).exp() * DISTANCE_STEPS
            steps.append(max(1, int(weight.to_integral_value())))
    return np.array(steps, dtype=np.int64)


def _counted(
    user_items: sparse.csr_matrix,
    row_exponent: float,
    persons: NDArray[np.integer] | None,
    order: SessionOrder | None,
    distance_decay: float | None,
) -> tuple[Source, sparse.csr_matrix]:
    """The interactions as the compiled loops read them, and the quantised matrix, by person."""
    rows, places, scale = _quantised(user_items, order)
    row_order, row_person = _by_person(rows.shape[0], persons)
    if persons is not None:
        rows, scale = rows[row_order], scale[row_order]
        places = None if places is None else places[row_order]
    weights = row_weights(np.diff(rows.indptr), row_exponent)
    if order is not None:
        weights = np.maximum(np.rint(weights * scale), 1).astype(np.int64)
    _check_sums(rows, weights)
    return _source(rows, weights, row_person, places, _distance_weights(places, distance_decay)), rows


def _check_sums(rows: sparse.csr_matrix, weights: NDArray[np.int64]) -> None:
    """Refuse sums beyond int64. By Cauchy and Schwarz, no entry exceeds the largest of the diagonal."""
    values = rows.data.astype(np.float64)
    squares = np.repeat(weights.astype(np.float64), np.diff(rows.indptr)) * values * values
    diagonal = np.bincount(rows.indices, weights=squares, minlength=rows.shape[1])
    require_sums_fit(diagonal.astype(np.float64))


def require_sums_fit(diagonal: NDArray[np.float64]) -> None:
    """Refuse a Gram matrix by its diagonal, in units of `GRAM_UNIT`, where sums would not fit int64.

    Raises
    ------
    OverflowError
        An entry of the diagonal is more than half of what int64 holds.
    """
    if diagonal.size and diagonal.max() > LARGEST_SUM:
        worst = int(diagonal.argmax())
        raise OverflowError(
            f"the weights of input {worst} add up to {diagonal[worst] * GRAM_UNIT:.3g} full interactions, "
            f"more than the {LARGEST_SUM * GRAM_UNIT:.3g} that fixed-point sums take: lower the weights, "
            "raise row_exponent, or train on a shorter period"
        )


def _source(
    rows: sparse.csr_matrix,
    weights: NDArray[np.int64],
    row_person: NDArray[np.int64],
    places: sparse.csr_matrix | None,
    distance_weights: NDArray[np.int64],
) -> Source:
    columns = rows.tocsc()
    nowhere = np.zeros(0, dtype=np.int64)
    return Source(
        row_starts=rows.indptr.astype(np.int64),
        row_inputs=rows.indices.astype(np.int32),
        row_values=rows.data,
        input_starts=columns.indptr.astype(np.int64),
        input_rows=columns.indices.astype(np.int64),
        input_values=columns.data * weights[columns.indices],
        row_person=row_person,
        row_places=nowhere if places is None else places.data,
        input_places=nowhere if places is None else places.tocsc().data,
        distance_weights=distance_weights,
    )


def _jobs(threads: int | None) -> int:
    if threads is None:
        return -1
    _require_positive("threads", threads)
    return threads


def _equal_work(rows: sparse.csr_matrix, threads: int | None) -> list[tuple[int, int]]:
    """Cut the inputs into ranges of about the same number of products."""
    lengths = np.diff(rows.indptr)
    work = np.bincount(rows.indices, weights=np.repeat(lengths, lengths), minlength=rows.shape[1]) + 1
    ends = np.cumsum(work)
    pieces = _CHUNKS_PER_THREAD * (threads or 8)
    cuts = np.searchsorted(ends, np.linspace(0, ends[-1] if ends.size else 0, pieces + 1)[1:-1])
    edges = np.unique(np.concatenate(([0], cuts, [rows.shape[1]])))
    return list(pairwise(edges.tolist()))


def _gram_lengths(source: Source, bounds: list[tuple[int, int]], threads: int | None) -> NDArray[np.int64]:
    parts = Parallel(n_jobs=_jobs(threads), prefer="threads")(
        delayed(row_lengths)(source, start, stop) for start, stop in bounds
    )
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def _gram(
    source: Source,
    lengths: NDArray[np.int64],
    bounds: list[tuple[int, int]],
    threads: int | None,
    *,
    count_persons: bool,
    ordered: bool,
) -> tuple[sparse.csr_matrix, NDArray[np.int64] | None, NDArray[np.int64] | None]:
    starts = np.concatenate(([0], np.cumsum(lengths)))
    indices = np.empty(starts[-1], dtype=np.int32)
    data = np.empty(starts[-1], dtype=np.int64)
    entry_persons = np.empty(starts[-1] if count_persons else 0, dtype=np.int64)
    forward = np.empty(starts[-1] if ordered else 0, dtype=np.int64)
    # Each range of inputs writes its own part of the arrays.
    Parallel(n_jobs=_jobs(threads), prefer="threads", require="sharedmem")(
        delayed(fill_rows)(source, start, stop, starts, indices, data, entry_persons, count_persons, forward)
        for start, stop in bounds
    )
    return (
        gram_matrix(data, indices, starts, lengths.size),
        entry_persons if count_persons else None,
        forward if ordered else None,
    )


def require_budget(max_gram_entries: int | None, inputs: int) -> None:
    """Refuse a budget in which the diagonal, and as much again, has no room."""
    if max_gram_entries is not None and max_gram_entries < 2 * inputs:
        raise ValueError(
            f"max_gram_entries must be at least twice the number of inputs, {inputs}, got {max_gram_entries}"
        )


def largest_rows(lengths: NDArray[np.int64], max_gram_entries: int) -> int:
    """Entries that are kept of a row of a Gram matrix at most, so that it fits its budget.

    Parameters
    ----------
    lengths
        int64, shape (n_inputs,): entries of each row.
    max_gram_entries
        The budget. Half of it is spent: the mirror images of what is kept come back.
    """
    budget = max_gram_entries // 2
    ascending = np.sort(lengths)
    # total[k]: entries left when every row is cut to the k-th shortest
    total = np.cumsum(ascending) + ascending * np.arange(ascending.size - 1, -1, -1)
    whole = int(np.searchsorted(total, budget, side="right"))
    return max(1, (budget - int(ascending[:whole].sum())) // max(1, ascending.size - whole))


def _symmetric(
    gram: sparse.csr_matrix, entry_persons: NDArray[np.int64] | None, forward: NDArray[np.int64] | None
) -> tuple[sparse.csr_matrix, NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Put back the mirror image of every entry that was kept."""
    whole = gram.maximum(gram.T.tocsr())
    if entry_persons is not None:
        persons = same_entries(gram, entry_persons)
        entry_persons = persons.maximum(persons.T.tocsr()).data
    if forward is not None:
        # What came forward in an entry came backward in its mirror image.
        mirrored = same_entries(gram, np.arange(1, gram.nnz + 1)).T.tocsr()
        backward = (gram.data - forward)[mirrored.data - 1]
        kept, forward = forward, np.zeros(whole.nnz, dtype=np.int64)
        forward[entry_positions(whole, mirrored)] = backward
        forward[entry_positions(whole, gram)] = kept
    return whole, entry_persons, forward


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")


def entry_positions(whole: sparse.csr_matrix, part: sparse.csr_matrix) -> NDArray[np.int64]:
    """Where the entries of a matrix stand in another one; -1 where they do not."""
    return positions_in(whole.indptr, whole.indices, part.indptr, part.indices)


def same_entries(gram: sparse.csr_matrix, values: NDArray[np.int64]) -> sparse.csr_matrix:
    """Other values of the same entries."""
    return sparse.csr_matrix((values, gram.indices, gram.indptr), shape=gram.shape)


def gram_matrix(
    data: NDArray[np.int64], indices: NDArray[np.int32], starts: NDArray[np.int64], inputs: int
) -> sparse.csr_matrix:
    """The matrix of some entries, whose index arrays are not copied where that can be spared."""
    # SciPy wants one type for both index arrays, and picks int32 wherever that suffices: so do we, or it
    # would copy all indices to int64 and back.
    if starts[-1] <= np.iinfo(np.int32).max:
        starts = starts.astype(np.int32)
    return sparse.csr_matrix((data, indices.astype(starts.dtype, copy=False), starts), shape=(inputs, inputs))
