"""Look-ups of item ids in compiled loops: a hash table over the mapped bytes of an `ItemIndex`.

The table holds numbers of items and nothing of their text: a look-up compares bytes where they are mapped.
As in `models.compiled_scoring`, all that is compiled for this stands in one file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from consentier.models.compiled import compiled

__all__ = ["id_table", "ids_of", "numbers_of"]


@compiled
def id_table(blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[NDArray[np.int32], int]:
    """A hash table from ids to numbers, at most half full, and the shift that takes a hash into it.

    O(bytes of the ids) time; 8 to 16 bytes an item.
    """
    items = offsets.size - 1
    size, shift = 16, 60
    while size < 2 * items:
        size *= 2
        shift -= 1
    table = np.full(size, -1, np.int32)
    for item in range(items):
        at = _hash(blob, offsets[item], offsets[item + 1], shift)
        while table[at] >= 0:
            at = (at + 1) & (size - 1)
        table[at] = item
    return table, shift


@compiled
def numbers_of(
    keys: NDArray[np.uint8],
    count: int,
    blob: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    table: NDArray[np.int32],
    shift: int,
) -> NDArray[np.int64]:
    """The number of each of `count` ids, -1 for unknown ones.

    The ids stand in `keys` as UTF-8, with a NUL between two of them. Where there are more or fewer than
    `count`, because an id holds a NUL itself, the result is empty.
    """
    numbers = np.empty(count, np.int64)
    done, start = 0, 0
    for end in range(keys.size + 1):
        if end < keys.size and keys[end] != 0:
            continue
        if done == count:
            return numbers[:0]
        numbers[done] = _number(keys, start, end, blob, offsets, table, shift)
        done += 1
        start = end + 1
    return numbers if done == count else numbers[:0]


@compiled
def ids_of(
    numbers: NDArray[np.int64], blob: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """The ids of some items as UTF-8, with a NUL between two of them; empty where a number has no item."""
    size = 0
    for k in range(numbers.size):
        if numbers[k] < 0 or numbers[k] >= offsets.size - 1:
            return np.empty(0, np.uint8)
        size += 1 + offsets[numbers[k] + 1] - offsets[numbers[k]]
    text = np.zeros(max(size - 1, 0), np.uint8)
    place = 0
    for k in range(numbers.size):
        for at in range(offsets[numbers[k]], offsets[numbers[k] + 1]):
            text[place] = blob[at]
            place += 1
        place += 1
    return text


@compiled
def _number(
    keys: NDArray[np.uint8],
    start: int,
    end: int,
    blob: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    table: NDArray[np.int32],
    shift: int,
) -> int:
    at = _hash(keys, start, end, shift)
    while table[at] >= 0:
        item = table[at]
        first = offsets[item]
        if offsets[item + 1] - first == end - start:
            place = start
            while place < end and keys[place] == blob[first + place - start]:
                place += 1
            if place == end:
                return int(item)
        at = (at + 1) & (table.size - 1)
    return -1


@compiled
def _hash(text: NDArray[np.uint8], start: int, end: int, shift: int) -> int:
    """FNV-1a, and Fibonacci hashing after it: its high bits are not well spread for short texts."""
    value = np.uint64(0xCBF29CE484222325)
    for at in range(start, end):
        value = (value ^ np.uint64(text[at])) * np.uint64(0x100000001B3)
    return int(np.int64((value * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift)))
