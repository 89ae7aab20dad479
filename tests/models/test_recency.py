"""Recency weights: by definition, and alike in both forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.models.recency import MICROSECONDS_PER_DAY, recency_weight, recency_weights

ages = st.integers(0, 100 * 365 * MICROSECONDS_PER_DAY)
half_lives = st.integers(1, 10_000 * MICROSECONDS_PER_DAY)


def test_a_half_life_halves_and_time_between_counts_in_eighths() -> None:
    day = MICROSECONDS_PER_DAY
    assert [recency_weight(age * day, 8 * day) for age in (0, 8, 16, 80)] == [1, 0.5, 0.25, 2.0**-10]
    for age in range(64):
        assert recency_weight(age * day, 8 * day) == pytest.approx(2 ** (-age / 8), rel=1e-15)
        assert recency_weight(age * day + day - 1, 8 * day) == recency_weight(age * day, 8 * day)


@given(st.lists(ages, max_size=20), half_lives)
def test_many_weigh_as_each_does(many: list[int], half_life: int) -> None:
    found = recency_weights(np.array(many, dtype=np.int64), half_life)
    assert found.tolist() == [recency_weight(age, half_life) for age in many]


@given(ages, ages, half_lives)
def test_an_older_event_never_counts_more(one: int, other: int, half_life: int) -> None:
    newer, older = sorted((one, other))
    assert 0 <= recency_weight(older, half_life) <= recency_weight(newer, half_life) <= 1
