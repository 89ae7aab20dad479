from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.training.significance import RANDOMISATIONS, holm, randomisation_test


def exact(differences: list[float]) -> float:
    """The p-value over all assignments of signs: what the drawn ones estimate."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * each for sign, each in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(each >= observed - 1e-9 for each in sums) / len(sums)


@pytest.mark.parametrize(
    "differences",
    [
        [1.0] * 8,  # 2 of 256
        [0.3, 0.1, -0.2, 0.4, 0.25, -0.05, 0.15],
        [0.1, 0.2, -0.3],  # a sum of 0: every assignment is at least as far
        [0.1] * 3 + [-0.1] * 2,
    ],
)
def test_the_p_value_is_the_share_of_signs_that_lie_as_far(differences: list[float]) -> None:
    found = randomisation_test(np.array(differences)[:, None], samples=20_000, rng=3)
    assert found == pytest.approx(exact(differences), abs=0.012)


def test_equal_recommenders_have_a_p_value_of_one_and_none_is_ever_zero() -> None:
    differences = np.stack([np.zeros(60), np.ones(60)], axis=1)
    assert randomisation_test(differences, samples=999, rng=0).tolist() == [1.0, 0.001]
    assert randomisation_test(differences, rng=0)[1] == 1 / (RANDOMISATIONS + 1)


def test_p_values_are_uniform_where_nothing_differs() -> None:
    """So that "below 5 %" happens in 5 % of the cases."""
    rng = np.random.default_rng(11)
    # 400 tests of 30 customers each; dependent signs would show as a share far from 5 %.
    found = [randomisation_test(rng.normal(size=(30, 1)), samples=400, rng=rng)[0] for _ in range(400)]
    assert 0.025 <= np.mean(np.array(found) <= 0.05) <= 0.085
    assert 0.42 <= np.mean(np.array(found) <= 0.5) <= 0.58


def test_requests_of_one_customer_change_sign_together() -> None:
    # 4 customers with 25 equal requests each: 2 of 16 assignments lie as far, not 2 of 2 ** 100.
    differences, clusters = np.ones((100, 1)), np.repeat(np.arange(4), 25)
    assert randomisation_test(differences, clusters, rng=0) == pytest.approx(2 / 16, abs=0.01)
    assert randomisation_test(differences, rng=0) < 0.001


def test_a_test_does_not_depend_on_which_others_it_stands_with() -> None:
    differences = np.random.default_rng(4).normal(0.1, size=(50, 5))
    together = randomisation_test(differences, rng=9)
    alone = [randomisation_test(differences[:, [column]], rng=9)[0] for column in range(5)]
    assert together.tolist() == alone
    assert randomisation_test(differences, rng=9).tolist() == together.tolist()
    assert randomisation_test(differences, rng=10).tolist() != together.tolist()
    assert randomisation_test(np.zeros((9, 0)), rng=9).shape == (0,)


@given(st.lists(st.sampled_from([-0.5, -1 / 3, 0.0, 0.1, 1 / 3, 0.7]), min_size=1, max_size=40))
def test_the_scale_and_the_direction_do_not_matter(values: list[float]) -> None:
    """Ties stay ties, whatever the rounding of the single differences."""
    differences = np.array(values)[:, None]
    found = randomisation_test(differences, samples=200, rng=1)
    for factor in (-1.0, 4.0):
        assert randomisation_test(factor * differences, samples=200, rng=1) == found


def test_holm_on_his_own_terms() -> None:
    # Smallest first: 0.01 × 4, 0.02 × 3, max(0.06, 0.03 × 2), max(0.06, 0.05 × 1).
    assert holm([0.03, 0.01, 0.05, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    assert holm([0.04]).tolist() == [0.04]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_lies_between_the_raw_value_and_bonferroni(values: list[float]) -> None:
    adjusted = holm(values)
    raw = np.array(values)
    assert np.all(adjusted >= raw)
    assert np.all(adjusted <= np.minimum(raw * len(raw), 1.0))
    assert np.all(np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0)


@pytest.mark.parametrize(
    ("differences", "options", "message"),
    [
        ([1.0, 2.0], {}, "two dimensions"),
        ([[np.nan]], {}, "finite"),
        ([[1.0]], {"samples": 0}, "samples must be 1 or more"),
        ([[1.0]], {"clusters": [1, 2]}, "clusters has shape"),
    ],
)
def test_what_cannot_be_tested_is_refused(differences: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        randomisation_test(differences, rng=0, **options)


@pytest.mark.parametrize("values", [[1.5], [-0.1], [[0.5]], [float("nan")]])
def test_what_is_no_p_value_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm(values)
