"""Co-occurrence statistics after persons left, or came in, and with other inputs; exactly, in integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.gram import (
    LARGEST_SUM,
    GramStatistics,
    SessionOrder,
    entry_positions,
    gram_matrix,
    gram_statistics,
    same_entries,
)

__all__ = ["add", "insert_inputs", "select_inputs", "subtract"]

_NOT_COUNTED = (
    "the rows to subtract were not counted in these statistics: pass them exactly as they were when the "
    "statistics were computed"
)


def subtract(
    statistics: GramStatistics,
    user_items: sparse.csr_matrix,
    *,
    persons: NDArray[np.integer] | None = None,
    order: SessionOrder | None = None,
) -> GramStatistics:
    """Take rows out again: the result equals, bit for bit, the statistics of the other rows alone.

    Its inverse is `add`. To change a history, subtract the old one and add the new one.

    Parameters
    ----------
    statistics
        The statistics; they are not changed.
    user_items
        The rows as they were (or, to add, are to be) counted, and all rows of each person among them: a row's
        weight and the count of persons depend on the whole.
    persons, order
        As for `gram_statistics`.

    Returns
    -------
    GramStatistics

    Raises
    ------
    ValueError
        The statistics were truncated or counted otherwise (inputs, order), or the rows were not counted in
        them.

    Notes
    -----
    O(entries of the statistics + sum of squared lengths of the rows).
    """
    removed = _counted_alike(statistics, user_items, persons, order)
    gram = statistics.gram
    positions = entry_positions(gram, removed.gram)
    if (positions < 0).any():
        raise ValueError(_NOT_COUNTED)
    data, counts = gram.data.copy(), statistics.counts - removed.counts
    data[positions] -= removed.gram.data
    if (data[positions] < 0).any() or (counts < 0).any():
        raise ValueError(_NOT_COUNTED)
    entry_persons = _less(statistics.persons, positions, removed.persons)
    forward = _less(statistics.forward, positions, removed.forward)
    kept = data != 0
    starts = np.concatenate(([0], np.cumsum(kept)))[gram.indptr]
    return replace(
        statistics,
        gram=gram_matrix(data[kept], gram.indices[kept], starts, gram.shape[0]),
        counts=counts,
        persons=None if entry_persons is None else entry_persons[kept],
        forward=None if forward is None else forward[kept],
    )


def add(
    statistics: GramStatistics,
    user_items: sparse.csr_matrix,
    *,
    persons: NDArray[np.integer] | None = None,
    order: SessionOrder | None = None,
) -> GramStatistics:
    """Count the rows of further persons: equals, bit for bit, the statistics of all rows together.

    The inverse of `subtract`, whose parameters, refusals and cost these are.

    Raises
    ------
    OverflowError
        The sums would not fit int64.
    """
    counted = _counted_alike(statistics, user_items, persons, order)
    diagonal = statistics.gram.diagonal().astype(np.float64) + counted.gram.diagonal()
    if diagonal.size and diagonal.max() > LARGEST_SUM:
        raise OverflowError(
            "with the further rows the sums would not fit: lower the weights, or train on a shorter period"
        )
    entry_persons = None
    if statistics.persons is not None and counted.persons is not None:
        # Behind every entry stands a person, so that both sums have the same entries.
        entry_persons = (
            same_entries(statistics.gram, statistics.persons) + same_entries(counted.gram, counted.persons)
        ).data
    gram = statistics.gram + counted.gram
    forward = None
    if statistics.forward is not None and counted.forward is not None:
        forward = np.zeros(gram.nnz, dtype=np.int64)
        for part in (statistics, counted):
            forward[entry_positions(gram, part.gram)] += part.forward
    return replace(
        statistics,
        gram=gram,
        counts=statistics.counts + counted.counts,
        persons=entry_persons,
        forward=forward,
    )


def select_inputs(statistics: GramStatistics, kept: NDArray[np.bool_]) -> GramStatistics:
    """Leave inputs out that nobody has; the others keep their order.

    Parameters
    ----------
    statistics
        The statistics; they are not changed.
    kept
        Shape (n_inputs,): the inputs to keep.

    Raises
    ------
    ValueError
        Somebody has one of the inputs that are to be left out: the lengths of histories would change.
    """
    if statistics.counts[~kept].any():
        raise ValueError("only inputs that nobody has can be left out of statistics")
    if kept.all():
        return statistics
    numbers = np.cumsum(kept) - 1
    gram = statistics.gram
    starts = np.append(gram.indptr[:-1][kept], gram.indptr[-1])
    return replace(
        statistics,
        gram=gram_matrix(gram.data, numbers[gram.indices].astype(np.int32), starts, int(kept.sum())),
        counts=statistics.counts[kept],
    )


def insert_inputs(statistics: GramStatistics, places: NDArray[np.integer], inputs: int) -> GramStatistics:
    """Make room for inputs that nobody has yet: the inverse of `select_inputs`.

    Parameters
    ----------
    statistics
        The statistics; they are not changed.
    places
        Ascending, shape (n_inputs,): the new number of each input.
    inputs
        How many there are to be.

    Raises
    ------
    ValueError
        The places do not ascend, or lie outside of the new inputs.

    Notes
    -----
    O(entries of the statistics); none are copied where there is nothing to insert.
    """
    gram = statistics.gram
    given = np.concatenate([[-1], places, [inputs]])
    if places.size != gram.shape[0] or (np.diff(given) <= 0).any():
        raise ValueError(f"the {gram.shape[0]} inputs need as many ascending places below {inputs}")
    if inputs == gram.shape[0]:
        return statistics
    lengths = np.zeros(inputs, dtype=np.int64)
    lengths[places] = np.diff(gram.indptr)
    counts = np.zeros(inputs, dtype=np.int64)
    counts[places] = statistics.counts
    return replace(
        statistics,
        gram=gram_matrix(
            gram.data, places[gram.indices].astype(np.int32), np.append(0, np.cumsum(lengths)), inputs
        ),
        counts=counts,
    )


def _counted_alike(
    statistics: GramStatistics,
    user_items: sparse.csr_matrix,
    persons: NDArray[np.integer] | None,
    order: SessionOrder | None,
) -> GramStatistics:
    """Count rows as those of some statistics were counted."""
    if statistics.truncated:
        raise ValueError(
            "these statistics were truncated to max_gram_entries, so rows can be neither subtracted nor "
            "added: compute them again"
        )
    if user_items.shape[1] != statistics.gram.shape[0]:
        raise ValueError(
            f"user_items has {user_items.shape[1]} columns, but the statistics have "
            f"{statistics.gram.shape[0]} inputs"
        )
    if (order is None) != (statistics.forward is None):
        raise ValueError(
            "rows are counted with their order where the statistics were, and without it where they were not"
        )
    return gram_statistics(
        user_items,
        row_exponent=statistics.row_exponent,
        persons=persons,
        min_persons=1 if statistics.persons is None else 2,
        threads=1,
        order=order,
        distance_decay=statistics.distance_decay,
    )


def _less(
    values: NDArray[np.int64] | None, positions: NDArray[np.int64], removed: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    """Values from which others were subtracted at some positions; None where there are none."""
    if values is None or removed is None:
        return None
    left = values.copy()
    left[positions] -= removed
    return left
