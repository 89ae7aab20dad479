"""The scoring kernel in compiled loops: what `models.scoring.best_items` gives, bit for bit.

The sums of a request stand in a small table of its own, which grows with the entries of its rows and not with
the catalogue. So there is no scratch memory to share: any number of threads may call it, without a lock, and
without the interpreter's.

All that is compiled for scoring stands in this one file: Numba's cache on the disk knows a function by the
file that it stands in, and would not notice a change in another file that it calls.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from consentier.models.compiled import compiled

__all__ = [
    "best_items",
    "best_lists",
    "dense_lists",
    "filled_lists",
    "near_items",
    "quantised",
]

_TOUCHED, _BARRED = np.uint8(1), np.uint8(2)
"""What is noted of an item while one request is scored."""

_Number = TypeVar("_Number", np.int64, np.float64)


@compiled
def best_items(
    starts: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    hidden: NDArray[np.bool_],
    silent: NDArray[np.bool_],
    hop_weight: float,
    hop_items: int,
    rows: NDArray[np.int64],
    weights: NDArray[np.float32],
    added_items: NDArray[np.int64],
    added: NDArray[np.float64],
    barred: NDArray[np.int64],
    allowed: NDArray[np.int64],
    limited: bool,
    n: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Add up weighted rows, and choose the best items. See `models.scoring.best_items`.

    Notes
    -----
    O(entries + n log n) time, and 24 to 32 bytes an entry. `allowed` counts where `limited` is True.
    """
    capacity = _entries(starts, rows) + added_items.size
    table, shift = _table(capacity)
    items = np.empty(capacity, np.int64)
    sums = np.empty(capacity, np.float64)
    count = _add_rows(table, shift, items, sums, 0, starts, indices, data, rows, weights)
    if hop_weight > 0.0:
        nothing = np.empty(0, np.int64)
        passing, scores = _top(items, sums, count, hop_items, silent, rows, nothing, False)
        passed = _weights_in_order(passing, scores, hop_weight)
        capacity += _entries(starts, passing)
        table, shift = _table(capacity)
        items, sums = _longer(items, capacity), _longer(sums, capacity)
        for slot in range(count):
            _slot(table, shift, items, slot, items[slot])
        count = _add_rows(table, shift, items, sums, count, starts, indices, data, passing, passed)
    for k in range(added_items.size):
        slot = _slot(table, shift, items, count, added_items[k])
        if slot == count:
            sums[slot] = 0.0
            count += 1
        sums[slot] += added[k]
    return _top(items, sums, count, n, hidden, barred, allowed, limited)


@compiled
def best_lists(
    starts: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    hidden: NDArray[np.bool_],
    silent: NDArray[np.bool_],
    hop_weight: float,
    hop_items: int,
    row_starts: NDArray[np.int64],
    rows: NDArray[np.int64],
    weights: NDArray[np.float32],
    added_starts: NDArray[np.int64],
    added_items: NDArray[np.int64],
    added: NDArray[np.float64],
    barred_starts: NDArray[np.int64],
    barred: NDArray[np.int64],
    n: int,
    first: int,
    last: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`best_items` for the requests from `first` up to (not including) `last`.

    Rows, additions and barred items of all requests stand one after the other, those of request k from
    ``starts[k]`` on. Returns int64 and float64, shape (requests, n): lists are padded with -1 and score 0. A
    request without rows has an empty list.
    """
    lists = np.full((last - first, n), -1, np.int64)
    best = np.zeros((last - first, n), np.float64)
    nothing = np.empty(0, np.int64)
    for k in range(first, last):
        if row_starts[k] == row_starts[k + 1]:
            continue
        items, scores = best_items(
            starts,
            indices,
            data,
            hidden,
            silent,
            hop_weight,
            hop_items,
            rows[row_starts[k] : row_starts[k + 1]],
            weights[row_starts[k] : row_starts[k + 1]],
            added_items[added_starts[k] : added_starts[k + 1]],
            added[added_starts[k] : added_starts[k + 1]],
            barred[barred_starts[k] : barred_starts[k + 1]],
            nothing,
            False,
            n,
        )
        lists[k - first, : items.size] = items
        best[k - first, : items.size] = scores
    return lists, best


@compiled
def dense_lists(
    starts: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    hidden: NDArray[np.bool_],
    silent: NDArray[np.bool_],
    hop_weight: float,
    hop_items: int,
    row_starts: NDArray[np.int64],
    rows: NDArray[np.int64],
    weights: NDArray[np.float32],
    barred_starts: NDArray[np.int64],
    barred: NDArray[np.int64],
    groups: NDArray[np.int64],
    limited: NDArray[np.bool_],
    open_starts: NDArray[np.int64],
    opened: NDArray[np.int64],
    n: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`best_lists` for all requests of a batch, with sums that stand in one array over all items.

    That array is scratch memory which the requests share: 13 bytes an item, and no table of hashes for each
    request. Nothing is added to scores but what rows say, and n must be at least 1. Request k, where it is
    `limited`, holds only items of the groups that are opened to it, which ascend; `groups` has the group of
    each item.
    """
    lists = np.full((row_starts.size - 1, n), -1, np.int64)
    best = np.zeros((row_starts.size - 1, n), np.float64)
    sums = np.zeros(hidden.size, np.float64)
    marks = np.zeros(hidden.size, np.uint8)
    touched = np.empty(hidden.size + 1, np.uint32)
    for k in range(row_starts.size - 1):
        own = rows[row_starts[k] : row_starts[k + 1]]
        _entries(starts, own)  # which checks that they are rows of the matrix
        count = _add_dense(
            sums,
            marks,
            touched,
            np.uint64(0),
            starts,
            indices,
            data,
            own,
            weights[row_starts[k] : row_starts[k + 1]],
        )
        if hop_weight > 0.0:
            items = touched[:count].astype(np.int64)
            passing, scores = _top(
                items, sums[items], items.size, hop_items, silent, own, np.empty(0, np.int64), False
            )
            passed = _weights_in_order(passing, scores, hop_weight)
            count = _add_dense(sums, marks, touched, count, starts, indices, data, passing, passed)
        out = barred[barred_starts[k] : barred_starts[k + 1]]
        for item in out:
            marks[item] |= _BARRED
        own_groups = opened[open_starts[k] : open_starts[k + 1]]
        found = _take_best(
            lists[k], best[k], sums, marks, touched, count, hidden, groups, limited[k], own_groups
        )
        for item in out:
            marks[item] = 0
        for end in range(found - 1, 0, -1):
            last, score = lists[k, end], best[k, end]
            lists[k, end], best[k, end] = lists[k, 0], best[k, 0]
            _sink(lists[k], best[k], end, last, score)
    return lists, best


@compiled
def filled_lists(
    lists: NDArray[np.int64],
    names: NDArray[np.int64],
    hidden_starts: NDArray[np.int64],
    hidden: NDArray[np.int32],
    hidden_names: NDArray[np.int64],
    order: NDArray[np.int64],
    groups: NDArray[np.int64],
    limited: NDArray[np.bool_],
    open_starts: NDArray[np.int64],
    opened: NDArray[np.int64],
    offset: int,
    last: int,
) -> None:
    """Fill lists up from a ranking that is the same for all, in place.

    Parameters
    ----------
    lists
        int64, shape (persons, n): items, in the numbering that the result has, padded with -1.
    names
        int64: what the ranking calls each of these items; -1: it does not hold it.
    hidden_starts, hidden, hidden_names
        What each person must not be shown, by code, and what the ranking calls each code.
    order
        int64: what may be shown to anybody, best first, as the ranking calls it.
    groups, limited, open_starts, opened
        As for `dense_lists`, the groups of what the ranking holds.
    offset
        What is added to the name of an item to number it as in `lists`.
    last
        Greatest name, at least.
    """
    taken = np.full(last + 2, -1, np.int64)
    for k in range(lists.shape[0]):
        count = 0
        while count < lists.shape[1] and lists[k, count] >= 0:
            taken[names[lists[k, count]] + 1] = k
            count += 1
        if count == lists.shape[1]:
            continue
        for place in range(hidden_starts[k], hidden_starts[k + 1]):
            taken[hidden_names[hidden[place]] + 1] = k
        for place in range(order.size):
            if count == lists.shape[1]:
                break
            name = order[place]
            if taken[name + 1] == k:
                continue
            if limited[k] and not _among(opened[open_starts[k] : open_starts[k + 1]], groups[name]):
                continue
            lists[k, count] = name + offset
            count += 1


@compiled
def _add_dense(
    sums: NDArray[np.float64],
    marks: NDArray[np.uint8],
    touched: NDArray[np.uint32],
    count: np.uint64,
    starts: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    rows: NDArray[np.int64],
    weights: NDArray[np.float32],
) -> np.uint64:
    """Add weighted rows to the sums, one after the other. Returns how many items have one now.

    Whether an item is new is hard to foresee, so there is no branch that asks: its name is written in any
    case, and counted if it is new. Unsigned numbers spare the look for negative indices.
    """
    for k in range(rows.size):
        weight = np.float64(weights[k])
        for entry in range(np.uint64(starts[rows[k]]), np.uint64(starts[rows[k] + 1])):
            item = np.uint32(indices[entry])
            sums[item] += weight * np.float64(data[entry])
            touched[count] = item
            count += np.uint64((marks[item] & _TOUCHED) == 0)
            marks[item] |= _TOUCHED
    return count


@compiled
def _take_best(
    best: NDArray[np.int64],
    scores: NDArray[np.float64],
    sums: NDArray[np.float64],
    marks: NDArray[np.uint8],
    touched: NDArray[np.uint32],
    count: np.uint64,
    hidden: NDArray[np.bool_],
    groups: NDArray[np.int64],
    limited: bool,
    opened: NDArray[np.int64],
) -> int:
    """Put the best items into a heap with the worst on top, as `_top` does; clear sums and marks.

    Returns how many there are.
    """
    n, found, bar = best.size, 0, 0.0
    for place in range(count):
        item = touched[place]
        score, mark = sums[item], marks[item]
        sums[item] = 0.0
        marks[item] = 0
        if not score > bar and not (found == n and score == bar and item < best[0]):
            continue
        if mark & _BARRED or hidden[item] or (limited and not _among(opened, groups[item])):
            continue
        if found < n:
            _rise(best, scores, found, int(item), score)
            found += 1
        else:
            _sink(best, scores, n, int(item), score)
        if found == n:
            bar = scores[0]
    return found


@compiled
def quantised(
    factors: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Each row as whole numbers of steps. See `models.quantised_factors.QuantisedFactors`.

    Returns the numbers, int8 (rows, factors), the size of each row's step, and at least the length of what
    the numbers leave out. O(size).
    """
    rows, size = factors.shape
    codes = np.zeros((rows, size), np.int8)
    steps = np.zeros(rows, np.float32)
    residuals = np.zeros(rows, np.float32)
    for row in range(rows):
        largest = np.float32(0.0)
        for k in range(size):
            largest = max(largest, abs(factors[row, k]))
        steps[row] = largest / np.float32(127.0)
        step, squares = np.float64(steps[row]), 0.0
        for k in range(size):
            value = np.float64(factors[row, k])
            if step > 0.0:
                codes[row, k] = np.int8(min(max(np.rint(value / step), -127.0), 127.0))
            left = value - step * codes[row, k]
            squares += left * left
        # float32 is off by half of 2 ** -23 at most, but near 0.
        residuals[row] = np.float32(np.sqrt(squares) * (1.0 + 2.0**-22) + 1e-44)
    return codes, steps, residuals


@compiled
def near_items(
    codes: NDArray[np.int8],
    steps: NDArray[np.float32],
    residuals: NDArray[np.float32],
    visible: NDArray[np.bool_],
    whole: NDArray[np.int16],
    unit: float,
    length: float,
    slack: float,
    n: int,
) -> NDArray[np.int64]:
    """Every visible item that may be one of the `n` best of positive score, ascending.

    The score of an item lies within ``residual · length + slack`` of ``unit · step · (codes · whole)``; sums
    of `codes` and `whole` must fit 32 bits, and n must be at least 1. See
    `models.quantised_factors.QuantisedFactors.near`.

    Notes
    -----
    One pass over the codes, in whole numbers, which no order of addition can change. The bar that an item has
    to reach only rises, so few are remembered.
    """
    best, lows = np.empty(n, np.int64), np.empty(n, np.float64)
    near, highs = np.empty(visible.size, np.int64), np.empty(visible.size, np.float64)
    found, count, bar = 0, 0, 0.0
    for item in range(visible.size):
        total = np.int32(0)
        for k in range(whole.size):
            total += np.int32(codes[item, k]) * np.int32(whole[k])
        product = np.float64(total) * np.float64(steps[item]) * unit
        error = np.float64(residuals[item]) * length + slack
        if not visible[item] or product + error < bar:
            continue
        near[count], highs[count] = item, product + error
        count += 1
        low = product - error
        if found < n:
            _rise(best, lows, found, item, low)
            found += 1
        elif low > lows[0]:
            _sink(best, lows, n, item, low)
        if found == n:
            bar = max(lows[0], 0.0)
    kept = 0
    for k in range(count):
        if highs[k] >= bar:
            near[kept] = near[k]
            kept += 1
    return near[:kept].copy()


@compiled
def _entries(starts: NDArray[np.int64], rows: NDArray[np.int64]) -> int:
    """How many entries some rows have together."""
    total = 0
    for k in range(rows.size):
        if rows[k] < 0 or rows[k] >= starts.size - 1:
            raise IndexError("a row is outside the matrix")
        total += starts[rows[k] + 1] - starts[rows[k]]
    return total


@compiled
def _table(entries: int) -> tuple[NDArray[np.int32], int]:
    """A hash table from items to slots, at most half full, and the shift that takes a hash into it."""
    size, shift = 16, 60
    while size < 2 * entries:
        size *= 2
        shift -= 1
    return np.full(size, -1, np.int32), shift


@compiled
def _slot(table: NDArray[np.int32], shift: int, items: NDArray[np.int64], count: int, item: int) -> int:
    """The slot of an item; a new one, `count`, if it has none yet."""
    # Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4): the high bits are well spread.
    at = np.int64((np.uint64(item) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift))
    while True:
        slot = table[at]
        if slot < 0:
            table[at] = count
            items[count] = item
            return count
        if items[slot] == item:
            return int(slot)
        at = (at + 1) & (table.size - 1)


@compiled
def _longer(values: NDArray[_Number], size: int) -> NDArray[_Number]:
    """The same values at the start of a longer array."""
    longer = np.empty(size, values.dtype)
    for k in range(values.size):
        longer[k] = values[k]
    return longer


@compiled
def _weights_in_order(
    passing: NDArray[np.int64], scores: NDArray[np.float64], hop_weight: float
) -> NDArray[np.float32]:
    """Put the items that pass on into ascending order, and return their weights as inputs.

    They are few: sorting by insertion is quick, and quick to compile.
    """
    passed = np.empty(passing.size, np.float32)
    for k in range(passing.size):
        item, weight = passing[k], np.float32(hop_weight * scores[k])
        place = k
        while place > 0 and passing[place - 1] > item:
            passing[place], passed[place] = passing[place - 1], passed[place - 1]
            place -= 1
        passing[place], passed[place] = item, weight
    return passed


@compiled
def _add_rows(
    table: NDArray[np.int32],
    shift: int,
    items: NDArray[np.int64],
    sums: NDArray[np.float64],
    count: int,
    starts: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    rows: NDArray[np.int64],
    weights: NDArray[np.float32],
) -> int:
    """Add weighted rows to the sums, one after the other. Returns how many items have one now."""
    for k in range(rows.size):
        weight = np.float64(weights[k])
        for entry in range(starts[rows[k]], starts[rows[k] + 1]):
            slot = _slot(table, shift, items, count, int(indices[entry]))
            if slot == count:
                sums[slot] = 0.0
                count += 1
            sums[slot] += weight * np.float64(data[entry])
    return count


@compiled
def _top(
    items: NDArray[np.int64],
    sums: NDArray[np.float64],
    count: int,
    n: int,
    masked: NDArray[np.bool_],
    without: NDArray[np.int64],
    allowed: NDArray[np.int64],
    limited: bool,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The best items of positive score that may be chosen, best first; equal scores by ascending item.

    They are kept in a heap with the worst on top. Whether an item may be chosen is asked only of those that
    would enter it. `without` and `allowed` ascend.
    """
    n = min(n, count)
    best = np.empty(n, np.int64)
    scores = np.empty(n, np.float64)
    found = 0
    for slot in range(count):
        item, score = items[slot], sums[slot]
        if not score > 0.0 or n == 0:
            continue
        if found == n and not _before(score, item, scores[0], best[0]):
            continue
        if masked[item] or _among(without, item) or (limited and not _among(allowed, item)):
            continue
        if found < n:
            _rise(best, scores, found, item, score)
            found += 1
        else:
            _sink(best, scores, n, item, score)
    for end in range(found - 1, 0, -1):
        item, score = best[end], scores[end]
        best[end], scores[end] = best[0], scores[0]
        _sink(best, scores, end, item, score)
    return best[:found], scores[:found]


@compiled
def _before(score: float, item: int, other_score: float, other_item: int) -> bool:
    """Whether an item stands before another one in a list."""
    return score > other_score or (score == other_score and item < other_item)


@compiled
def _among(ascending: NDArray[np.int64], item: int) -> bool:
    low, high = 0, ascending.size
    while low < high:
        middle = (low + high) >> 1
        if ascending[middle] < item:
            low = middle + 1
        else:
            high = middle
    return bool(low < ascending.size and ascending[low] == item)


@compiled
def _rise(best: NDArray[np.int64], scores: NDArray[np.float64], place: int, item: int, score: float) -> None:
    """Put an item at the end of the heap."""
    while place > 0:
        above = (place - 1) >> 1
        if not _before(scores[above], best[above], score, item):
            break
        best[place], scores[place] = best[above], scores[above]
        place = above
    best[place], scores[place] = item, score


@compiled
def _sink(best: NDArray[np.int64], scores: NDArray[np.float64], size: int, item: int, score: float) -> None:
    """Put an item in the place of the one on top of a heap of some size."""
    place = 0
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and _before(scores[below], best[below], scores[below + 1], best[below + 1]):
            below += 1
        if not _before(score, item, scores[below], best[below]):
            break
        best[place], scores[place] = best[below], scores[below]
        place = below
    best[place], scores[place] = item, score
