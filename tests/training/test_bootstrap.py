from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from consentier.errors import TrainingError
from consentier.training import bootstrap
from consentier.training.bootstrap import Interval, bootstrap_mean, paired_difference


def clustered(rng: np.random.Generator, customers: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Requests of customers who differ from each other; the true mean is 0."""
    clusters = np.repeat(np.arange(customers), rng.integers(1, 6, size=customers))
    return rng.normal(size=customers)[clusters] + 0.3 * rng.normal(size=len(clusters)), clusters


def test_intervals_contain_the_true_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(20240607)
    by_customer = by_request = 0
    repetitions = 400
    for _ in range(repetitions):
        values, clusters = clustered(rng, customers=80)
        interval = bootstrap_mean(values, clusters, samples=400, rng=rng)
        by_customer += interval.low <= 0.0 <= interval.high
        interval = bootstrap_mean(values, samples=400, rng=rng)
        by_request += interval.low <= 0.0 <= interval.high
    assert 0.92 <= by_customer / repetitions <= 0.975
    # Taking requests of one customer as independent is overconfident: the reason for clusters.
    assert by_request / repetitions < 0.80


def test_width_equals_the_normal_interval_of_a_mean() -> None:
    values = np.random.default_rng(5).normal(size=2000)
    interval = bootstrap_mean(values, samples=4000, confidence=0.9, rng=1)
    half = 1.6449 * values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_resamples_equal_those_of_whole_requests() -> None:
    """Sums by cluster give what gathering all requests of the drawn clusters gives."""
    values, clusters = clustered(np.random.default_rng(8), customers=7)
    drawn = np.random.default_rng(42).integers(7, size=(50, 7))
    means = [np.concatenate([values[clusters == each] for each in row]).mean() for row in drawn]
    interval = bootstrap_mean(values, clusters, samples=50, confidence=0.8, rng=42)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])))


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = clustered(np.random.default_rng(8), customers=33)
    whole = bootstrap_mean(values, clusters, samples=101, rng=3)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 70)
    assert bootstrap_mean(values, clusters, samples=101, rng=3) == whole


@given(st.integers(0, 2**32), st.permutations(range(12)))
def test_the_order_of_requests_does_not_matter(seed: int, order: list[int]) -> None:
    values, clusters = np.arange(12.0) ** 2, np.array(["a", "b", "c", "d"] * 3)
    expected = bootstrap_mean(values, clusters, samples=40, rng=seed)
    assert bootstrap_mean(values[order], clusters[order], samples=40, rng=seed) == expected


def test_a_seed_repeats_and_a_generator_moves_on() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(values, rng=7) == bootstrap_mean(values, rng=7)
    assert bootstrap_mean(values, rng=7) == bootstrap_mean(values, rng=np.random.default_rng(7))
    generator = np.random.default_rng(7)
    assert bootstrap_mean(values, rng=generator) != bootstrap_mean(values, rng=generator)


def test_paired_difference_is_the_interval_of_the_differences() -> None:
    rng = np.random.default_rng(9)
    noise, clusters = clustered(rng, customers=60)
    a, b = noise + 0.1, noise + 0.01 * rng.normal(size=len(noise))
    paired = paired_difference(a, b, clusters, rng=5)
    assert paired == bootstrap_mean(a - b, clusters, rng=5)
    assert paired.mean == pytest.approx(float(a.mean() - b.mean()))
    # What both share cancels out: the pair shows a lift that the two intervals hide.
    assert paired.low > 0
    assert bootstrap_mean(a, clusters, rng=5).low < bootstrap_mean(b, clusters, rng=5).high


def test_equal_values_have_no_width() -> None:
    assert bootstrap_mean([0.5] * 6, [1, 1, 1, 2, 2, 3], rng=0) == Interval(0.5, 0.5, 0.5)
    assert Interval(0.5, 0.25, 0.75).to_dict() == {"mean": 0.5, "low": 0.25, "high": 0.75}


@pytest.mark.parametrize(
    ("values", "clusters", "options", "error", "message"),
    [
        ([], None, {}, TrainingError, "at least 2 customers, not 0"),
        ([1.0, 2.0], [3, 3], {}, TrainingError, "at least 2 customers, not 1"),
        ([1.0, np.nan], None, {}, ValueError, r"values\[1\] is not finite"),
        ([[1.0]], None, {}, ValueError, "one dimension"),
        ([1.0, 2.0], [1], {}, ValueError, "clusters has shape"),
        ([1.0, 2.0], None, {"samples": 0}, ValueError, "samples"),
        ([1.0, 2.0], None, {"confidence": 95}, ValueError, "confidence"),
    ],
)
def test_what_cannot_be_resampled_is_refused(
    values: Any, clusters: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bootstrap_mean(values, clusters, rng=0, **options)


def test_a_pair_must_be_of_the_same_requests() -> None:
    with pytest.raises(ValueError, match="same requests"):
        paired_difference([1.0, 2.0], [1.0], rng=0)
