"""Plain baselines for sessions, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.quality.session_baselines import (
    ItemNeighbours,
    Popularity,
    SequentialRules,
    SessionPopularity,
)
from benchmarks.quality.splits import Sessions


def sessions(*clicks: list[int]) -> Sessions:
    items = np.array([item for each in clicks for item in each], dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum([len(each) for each in clicks])))
    return Sessions(starts.astype(np.int64), items, np.arange(len(items), dtype=np.float64))


PAST = sessions([0, 1, 2], [3, 1], [1, 1, 2], [0, 4])


def recommended(model: Popularity | SequentialRules | ItemNeighbours, prefix: list[int]) -> list[int]:
    model.fit(PAST)
    return model.recommend(np.array(prefix, dtype=np.int64), 0.0, 4).tolist()


def test_popular_items_are_the_most_clicked() -> None:
    assert recommended(Popularity(item_count=5), [3]) == [1, 0, 2, 3]


@pytest.mark.parametrize(
    ("prefix", "expected"), [([3], [3, 1, 0, 2]), ([2, 4, 2, 3], [2, 3, 4, 1]), ([4, 3], [3, 4, 1, 0])]
)
def test_sessions_return_to_what_they_clicked_most_and_last(prefix: list[int], expected: list[int]) -> None:
    assert recommended(SessionPopularity(item_count=5), prefix) == expected


@pytest.mark.parametrize(("steps", "expected"), [(1, [1, 4]), (2, [1, 4, 2])])
def test_rules_weigh_by_the_steps_and_stay_within_a_session(steps: int, expected: list[int]) -> None:
    # After 0 came 1 and 4 at once, 2 in two steps.
    assert recommended(SequentialRules(item_count=5, steps=steps), [2, 0]) == expected


def test_repeated_clicks_are_rules_too() -> None:
    model = SequentialRules(item_count=5, steps=10)
    # After 1: 2 twice at once and once in two steps; 1 once.
    assert recommended(model, [1]) == [2, 1]


def test_neighbours_are_those_of_the_last_item() -> None:
    # 1 is in three sessions, two of them with 2, one with 0 and one with 3.
    assert recommended(ItemNeighbours(item_count=5, neighbours=2), [0, 1]) == [2, 3]
