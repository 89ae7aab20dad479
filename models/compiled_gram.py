"""The loops that count co-occurrences, compiled; see `models.gram`.

As in `models.compiled_scoring`, all that is compiled for this stands in one file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from consentier.models.compiled import compiled

__all__ = ["DISTANCE_STEPS", "Source", "count_persons", "fill_rows", "positions_in", "row_lengths"]

DISTANCE_STEPS = 256
"""Steps of what a pair counts by the distance of its items."""


class Source(NamedTuple):
    """The interactions by row and by input, as the compiled loops read them."""

    row_starts: NDArray[np.int64]
    row_inputs: NDArray[np.int32]
    row_values: NDArray[np.int64]
    input_starts: NDArray[np.int64]
    input_rows: NDArray[np.int64]
    input_values: NDArray[np.int64]  # already times the row's weight
    row_person: NDArray[np.int64]  # ascending
    row_places: NDArray[np.int64]  # positions; empty where rows have no order
    input_places: NDArray[np.int64]
    distance_weights: NDArray[np.int64]  # in steps of 1/256, by the distance of two positions


@compiled
def row_lengths(source: Source, start: int, stop: int) -> NDArray[np.int64]:
    """Count the entries of each Gram row from `start` to `stop`."""
    lengths = np.zeros(stop - start, dtype=np.int64)
    seen_by = np.full(source.input_starts.size - 1, -1, dtype=np.int64)
    for i in range(start, stop):
        for k in range(source.input_starts[i], source.input_starts[i + 1]):
            row = source.input_rows[k]
            for m in range(source.row_starts[row], source.row_starts[row + 1]):
                j = source.row_inputs[m]
                if seen_by[j] != i:
                    seen_by[j] = i
                    lengths[i - start] += 1
    return lengths


@compiled
def fill_rows(
    source: Source,
    start: int,
    stop: int,
    starts: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.int64],
    entry_persons: NDArray[np.int64],
    count_persons: bool,
    forward: NDArray[np.int64],
) -> None:
    """Write the Gram rows from `start` to `stop`; a row with less room than entries keeps its strongest."""
    inputs = source.input_starts.size - 1
    sums = np.zeros(inputs, dtype=np.int64)
    last_person = np.full(inputs, -1, dtype=np.int64)
    distinct = np.zeros(inputs, dtype=np.int64)
    found = np.empty(inputs, dtype=np.int32)
    ordered = source.row_places.size > 0
    earlier = np.zeros(inputs if ordered else 0, dtype=np.int64)
    for i in range(start, stop):
        count = 0
        for k in range(source.input_starts[i], source.input_starts[i + 1]):
            row, value = source.input_rows[k], source.input_values[k]
            person = source.row_person[row]
            for m in range(source.row_starts[row], source.row_starts[row + 1]):
                j = source.row_inputs[m]
                if sums[j] == 0:  # every product is positive
                    found[count] = j
                    count += 1
                product = value * source.row_values[m]
                if ordered:
                    distance = source.row_places[m] - source.input_places[k]
                    product = _at_distance(source.distance_weights, product, distance)
                    if distance > 0:
                        earlier[j] += product
                sums[j] += product
                if count_persons and last_person[j] != person:
                    last_person[j] = person
                    distinct[j] += 1
        found[:count].sort()
        room = starts[i + 1] - starts[i]
        kept = found[:count] if room == count else _strongest(found[:count], sums, room, i)
        for k in range(kept.size):
            indices[starts[i] + k] = kept[k]
            data[starts[i] + k] = sums[kept[k]]
            if ordered:
                forward[starts[i] + k] = earlier[kept[k]]
            if count_persons:
                entry_persons[starts[i] + k] = distinct[kept[k]]
        for k in range(count):
            j = found[k]
            sums[j] = 0
            last_person[j] = -1
            distinct[j] = 0
            if ordered:
                earlier[j] = 0


@compiled
def _at_distance(distance_weights: NDArray[np.int64], product: int, distance: int) -> int:
    """Let a pair count less the farther its items are apart, and at least one step."""
    if distance_weights.size == 0:
        return product
    place = min(abs(distance), distance_weights.size - 1)
    weighed: int = product // DISTANCE_STEPS * distance_weights[place]
    return max(1, weighed)


@compiled
def _strongest(
    found: NDArray[np.int32], sums: NDArray[np.int64], room: int, diagonal: int
) -> NDArray[np.int32]:
    """Choose the `room` largest sums, the diagonal always among them, equal sums by ascending input."""
    values = sums[found]
    values[np.searchsorted(found, diagonal)] = np.iinfo(np.int64).max
    threshold = np.partition(values, values.size - room)[values.size - room]
    ties = room - (values > threshold).sum()
    kept = np.empty(room, dtype=np.int32)
    count = 0
    for k in range(found.size):
        if values[k] > threshold or (values[k] == threshold and ties > 0):
            if values[k] == threshold:
                ties -= 1
            kept[count] = found[k]
            count += 1
    return kept


@compiled
def count_persons(source: Source) -> NDArray[np.int64]:
    """Count the distinct persons with each input."""
    counts = np.zeros(source.input_starts.size - 1, dtype=np.int64)
    for i in range(counts.size):
        last = -1
        for k in range(source.input_starts[i], source.input_starts[i + 1]):
            person = source.row_person[source.input_rows[k]]
            if person != last:
                last = person
                counts[i] += 1
    return counts


@compiled
def positions_in(
    starts: NDArray[np.integer],
    indices: NDArray[np.integer],
    part_starts: NDArray[np.integer],
    part_indices: NDArray[np.integer],
) -> NDArray[np.int64]:
    """Find the entries of one matrix in another with sorted rows; -1 where there is none."""
    positions = np.full(part_indices.size, -1, dtype=np.int64)
    for i in range(part_starts.size - 1):
        row = indices[starts[i] : starts[i + 1]]
        for k in range(part_starts[i], part_starts[i + 1]):
            place = np.searchsorted(row, part_indices[k])
            if place < row.size and row[place] == part_indices[k]:
                positions[k] = starts[i] + place
    return positions
