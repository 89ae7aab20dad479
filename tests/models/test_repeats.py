"""How sessions return to what they saw: counts, and what is published of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consentier.models.repeats import LONGEST_SESSION, RepeatCounts, repeat_counts

drawn_sessions = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=30), min_size=1, max_size=6)


def counted(sessions: list[list[int]], owners: NDArray[np.int64]) -> RepeatCounts:
    numbers = np.repeat(np.arange(len(sessions)), [len(items) for items in sessions])
    items = np.array([item for session in sessions for item in session], dtype=np.int64)
    return repeat_counts(numbers.astype(np.int64), items, owners)


def by_hand(sessions: list[list[int]], owners: NDArray[np.int64]) -> RepeatCounts:
    shape = (LONGEST_SESSION, LONGEST_SESSION + 1)
    events, behind = (
        np.zeros(shape, np.int64),
        [[set[int]() for _ in range(shape[1])] for _ in range(shape[0])],
    )
    for items, owner in zip(sessions, owners.tolist(), strict=True):
        for end in range(1, len(items)):
            seen = list(dict.fromkeys(reversed(items[:end])))  # the latest one first
            row = min(len(seen), LONGEST_SESSION) - 1
            column = min(seen.index(items[end]), LONGEST_SESSION) if items[end] in seen else LONGEST_SESSION
            events[row, column] += 1
            behind[row][column].add(owner)
    return RepeatCounts(events, np.array([[len(persons) for persons in row] for row in behind]))


def assert_same(one: RepeatCounts, other: RepeatCounts) -> None:
    np.testing.assert_array_equal(one.events, other.events)
    np.testing.assert_array_equal(one.persons, other.persons)


@settings(deadline=None)  # the first call compiles
@given(drawn_sessions)
def test_counts_are_those_of_a_plain_loop(sessions: list[list[int]]) -> None:
    owners = np.arange(len(sessions), dtype=np.int64) // 2
    assert_same(counted(sessions, owners), by_hand(sessions, owners))


@settings(deadline=None)
@given(drawn_sessions, st.integers(0, 7))
def test_a_person_can_be_subtracted(sessions: list[list[int]], gone: int) -> None:
    owners = np.arange(len(sessions), dtype=np.int64) // 2
    leaves = np.array([bool(gone >> owner & 1) for owner in owners])
    leaving, staying = (
        counted([sessions[row] for row in np.flatnonzero(rows)], owners[rows]) for rows in (leaves, ~leaves)
    )
    everybody = counted(sessions, owners)
    assert_same(everybody.without(leaving), staying)
    assert_same(staying.together_with(leaving), everybody)


def test_probabilities_have_enough_persons_behind_them() -> None:
    counts = counted([[1, 1], [1, 1], [2, 3, 2], [4, 5]], np.array([0, 0, 1, 2]))
    # After one item, two of four sessions returned at once, both of one person.
    assert counts.probabilities(1)[0, 0] == np.float32(2 / 5)
    assert counts.probabilities(2)[0, 0] == 0
    assert counts.probabilities(1)[1, 1] == np.float32(1 / 2)
    assert counts.probabilities(1).shape == (LONGEST_SESSION, LONGEST_SESSION)
    assert (counts.probabilities(1)[2:] == 0).all()
