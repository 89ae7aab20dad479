"""Histories of many persons as weighted inputs of a linear or factor model, in compiled loops.

As in `models.compiled_scoring`, all that is compiled for this stands in one file.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from consentier.models.compiled import compiled

__all__ = ["weighted_histories"]


@compiled
def weighted_histories(
    starts: NDArray[np.int64],
    items: NDArray[np.int32],
    kinds: NDArray[np.int8],
    times: NDArray[np.int64],
    numbers: NDArray[np.int64],
    item_count: int,
    scales: NDArray[np.float64],
    kind_weights: NDArray[np.float64],
    interest: NDArray[np.bool_],
    max_history: int,
    half_life: int,
    fractions: NDArray[np.float64],
    attribute_inputs: NDArray[np.int64],
    attribute_weight: float,
    attribute_fade: float,
    again: NDArray[np.int64],
    intervals: NDArray[np.int64],
    order_kind: int,
    at: int,
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float32],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int32],
]:
    """Weigh the histories of many persons, as `serving.scorer.ItemScorer` weighs one.

    Parameters
    ----------
    starts
        int64, shape (sources, persons + 1): where each person's events of each source begin.
    items, kinds, times
        Of each event: code of its item and of its type, and microseconds since the Unix epoch. Those of a
        person and source stand together, oldest first.
    numbers
        int64, by code of an item: the model's number, -1 where it has none.
    item_count
        Items of the model.
    scales, kind_weights
        What an event of a source, and of a type, counts.
    interest
        By type: whether it shows an interest.
    max_history
        The latest events of each source that are read.
    half_life
        Microseconds; 0: age does not matter.
    fractions
        ``2 ** (-k / 8)`` for k from 0 to 7, as `models.recency` rounds them.
    attribute_inputs
        int64, shape (persons, columns): inputs that attributes switch on, ascending, -1 where there is none.
    attribute_weight, attribute_fade
        As in the scoring settings.
    again
        int64, shape (sources,): 0 where items of the source may be shown again, 1 where they may not, 2 where
        `intervals` decide.
    intervals
        int64, by code of an item: microseconds after a purchase before it may be shown again; -1: never.
    order_kind
        The type of event that is a purchase.
    at
        The instant, in microseconds since the Unix epoch.

    Returns
    -------
    row_starts, rows, weights
        The inputs of each person, ascending.
    barred_starts, barred
        The model's numbers of what each must not be shown, ascending.
    hidden_starts, hidden
        The same as codes of items, some of them more than once, and also those that the model does not know.

    Notes
    -----
    O(events), and a sort of each person's items.
    """
    persons = starts.shape[1] - 1
    sources = starts.shape[0]
    room = items.size + attribute_inputs.size
    row_starts = np.zeros(persons + 1, np.int64)
    barred_starts = np.zeros(persons + 1, np.int64)
    hidden_starts = np.zeros(persons + 1, np.int64)
    rows = np.empty(room, np.int64)
    weights = np.empty(room, np.float32)
    barred = np.empty(items.size, np.int64)
    hidden = np.empty(items.size, np.int32)
    best = np.zeros(item_count, np.float64)
    total = np.zeros(item_count, np.float64)
    found = np.empty(item_count, np.int64)
    seen = np.empty(item_count, np.int64)
    for k in range(persons):
        newest = np.int64(-1)
        if half_life > 0:
            for source in range(sources):
                read = 0
                for event in range(starts[source, k + 1] - 1, starts[source, k] - 1, -1):
                    if interest[kinds[event]] and read < max_history:
                        read += 1
                        newest = max(newest, times[event])
        known = 0
        for source in range(sources):
            read = 0
            fresh = 0
            for event in range(starts[source, k + 1] - 1, starts[source, k] - 1, -1):
                if read == max_history:
                    break
                if not interest[kinds[event]]:
                    continue
                read += 1
                number = numbers[items[event]]
                if number < 0:
                    continue
                weight = scales[source] * kind_weights[kinds[event]]
                if half_life > 0:
                    weight *= _recency(newest - times[event], half_life, fractions)
                if weight > best[number]:
                    if best[number] == 0.0:
                        seen[fresh] = number
                        fresh += 1
                    best[number] = weight
            for place in range(fresh):
                number = seen[place]
                if total[number] == 0.0:
                    found[known] = number
                    known += 1
                total[number] += best[number]
                best[number] = 0.0
        end = row_starts[k]
        rows[end : end + known] = found[:known]
        rows[end : end + known].sort()
        for place in range(end, end + known):
            weights[place] = np.float32(total[rows[place]])
            total[rows[place]] = 0.0
        end += known
        switched = 0
        for column in range(attribute_inputs.shape[1]):
            switched += attribute_inputs[k, column] >= 0
        if switched:
            share = attribute_weight / (1 + known / attribute_fade)
            for column in range(attribute_inputs.shape[1]):
                if attribute_inputs[k, column] >= 0:
                    rows[end] = attribute_inputs[k, column]
                    weights[end] = np.float32(share / switched)
                    end += 1
        row_starts[k + 1] = end
        out = hidden_starts[k]
        for source in range(sources):
            if again[source] == 0:
                continue
            for event in range(starts[source, k], starts[source, k + 1]):
                if again[source] == 2:
                    interval = intervals[items[event]]
                    if kinds[event] != order_kind or not (
                        interval < 0 or (interval > 0 and at - times[event] < interval)
                    ):
                        continue
                hidden[out] = items[event]
                out += 1
        hidden_starts[k + 1] = out
        end = barred_starts[k]
        first = end
        for place in range(hidden_starts[k], out):
            if numbers[hidden[place]] >= 0:
                barred[end] = numbers[hidden[place]]
                end += 1
        barred[first:end].sort()
        barred_starts[k + 1] = end
    return (
        row_starts,
        rows[: row_starts[persons]],
        weights[: row_starts[persons]],
        barred_starts,
        barred[: barred_starts[persons]],
        hidden_starts,
        hidden[: hidden_starts[persons]],
    )


@compiled
def _recency(age: int, half_life: int, fractions: NDArray[np.float64]) -> float:
    """`models.recency.recency_weight`."""
    steps = 8 * age // half_life
    return math.ldexp(fractions[steps % 8], -min(steps // 8, 2000))
