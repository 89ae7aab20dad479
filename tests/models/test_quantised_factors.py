"""Factors in one byte a number find the same best items as the factors themselves, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from consentier.models.factor_scoring import exact_scores, largest_norm, positive_items
from consentier.models.quantised_factors import QuantisedFactors

Found = tuple[list[int], bytes]


def found(
    factors: NDArray[np.float32],
    vector: NDArray[np.float64],
    visible: NDArray[np.bool_],
    n: int,
    quantised: QuantisedFactors | None,
    added: tuple[NDArray[np.int64], NDArray[np.float64]] | None = None,
) -> Found:
    ids, scores = positive_items(
        factors, largest_norm(factors), vector, visible, n, quantised=quantised, added=added
    )
    return ids.tolist(), scores.tobytes()


@st.composite
def cases(
    draw: st.DrawFn,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], int]:
    """Factors of any scale, many of them equal or nearly so, zeros, and lists of any length."""
    items, size = draw(st.integers(1, 60)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    factors = rng.standard_normal((items, size))
    factors = factors.round(draw(st.integers(0, 2)))
    factors += draw(st.sampled_from([0.0, 1e-3, 1e-7])) * rng.standard_normal((items, size))
    factors *= 10.0 ** rng.integers(*draw(st.sampled_from([(0, 1), (-3, 3), (-45, -38)])), (items, 1))
    factors[rng.random(items) < 0.1] = 0
    vector = rng.standard_normal(size) * 10.0 ** draw(st.sampled_from([0, -8, 8, -320, 100]))
    vector[rng.random(size) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0
    return factors.astype(np.float32), vector, rng.random(items) < 0.8, draw(st.integers(0, 70))


@given(cases())
def test_the_best_items_are_those_of_the_factors_themselves(
    case: tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], int],
) -> None:
    factors = case[0]
    quantised = QuantisedFactors(factors)
    assert found(*case, quantised) == found(*case, None)
    some = np.arange(0, len(factors), 3)
    added = some, np.linspace(0, 2, some.size)
    assert found(*case, quantised, added) == found(*case, None, added)


@given(cases())
def test_no_item_of_the_list_is_left_out_of_the_candidates(
    case: tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], int],
) -> None:
    factors, vector, visible, n = case
    near = QuantisedFactors(factors).near(vector, visible, max(n, 1))
    if near is None:
        return
    assert near.tolist() == sorted(set(near.tolist()))
    assert visible[near].all()
    scores = exact_scores(factors, np.arange(len(factors)), vector)
    scores[~visible] = 0
    best = np.lexsort((np.arange(len(factors)), -scores))[: max(n, 1)]
    assert set(best[scores[best] > 0].tolist()) <= set(near.tolist())


def test_few_items_are_scored_again() -> None:
    rng = np.random.default_rng(3)
    factors = rng.standard_normal((5000, 32)).astype(np.float32)
    near = QuantisedFactors(factors).near(rng.standard_normal(32), np.ones(5000, np.bool_), 20)
    assert near is not None
    assert 20 <= near.size <= 60


def test_without_the_bound_the_list_would_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would notice a bound that is too small."""
    # In whole steps the first item has 11, more than the second, whose steps are finer; it is worse.
    factors = np.array([[127.0, 10.51], [12.7, 10.9]], np.float32)
    vector, visible = np.array([0.0, 1.0]), np.ones(2, np.bool_)
    quantised = QuantisedFactors(factors)
    expected = found(factors, vector, visible, 1, None)
    assert expected[0] == [1]
    assert found(factors, vector, visible, 1, quantised) == expected
    monkeypatch.setattr(quantised, "_residuals", np.zeros(2, np.float32))
    assert found(factors, vector, visible, 1, quantised) != expected


@pytest.mark.parametrize("size", [1, 516, 517, 2048])
def test_whole_numbers_never_overflow(size: int) -> None:
    factors = np.full((3, size), 3.0, np.float32)
    factors[1] *= 1.001
    quantised, vector, visible = QuantisedFactors(factors), np.full(size, 7.0), np.ones(3, np.bool_)
    assert found(factors, vector, visible, 1, quantised)[0] == [1]
    assert found(-factors, -vector, visible, 1, QuantisedFactors(-factors))[0] == [1]


@pytest.mark.parametrize("vector", [[0.0, 0.0], [np.inf, 1.0], [1e308, 1e308], [5e-324, 0.0]])
def test_vectors_that_are_too_large_or_too_small_are_left_to_the_factors(vector: list[float]) -> None:
    factors = np.array([[3e38, 3e38], [1.0, 0.0], [-3e38, 0.0]], np.float32)
    assert QuantisedFactors(factors).near(np.array(vector), np.ones(3, np.bool_), 2) is None
