"""Intervals over customers: the percentile bootstrap, resampling customers with all their requests.

Requests of one customer resemble each other, so they are drawn together ("cluster bootstrap", Davison and
Hinkley 1997, "Bootstrap methods and their application", section 3.8); treating them as independent gives
intervals that are too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consentier.errors import TrainingError
from consentier.training.evaluation_result import IntervalFigures

__all__ = ["Interval", "RNGLike", "bootstrap_mean", "paired_difference", "sums_by_cluster"]

RNGLike = int | np.random.SeedSequence | np.random.BitGenerator | np.random.Generator
"""A seed, or a generator that is used as it is (SPEC 7)."""

_DRAWS_AT_ONCE = 1 << 16
"""Clusters drawn before they are summed: half a megabyte, and as much gathered, stays in the cache."""


@dataclass(frozen=True)
class Interval:
    """A mean over requests with its bootstrap confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> IntervalFigures:
        """The three figures as a JSON-able dictionary."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def bootstrap_mean(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    rng: RNGLike,
) -> Interval:
    """Mean of ``values`` with a percentile interval from resampled clusters.

    Every sample draws as many clusters as there are, with replacement, and divides the sum of their values
    by their number of values. Same clusters, samples and seed draw the same clusters, whatever the values.

    Parameters
    ----------
    values
        Finite float (requests,).
    clusters
        (requests,), the customer of each request as integers or strings; None makes each value its own.
    samples
        Number of resamples, 1 or more.
    confidence
        Share of the resampled means within the interval, above 0 and below 1.
    rng
        A seed, or a generator that is used as it is and moves on (SPEC 7).

    Raises
    ------
    ValueError
        If an argument is not as described.
    TrainingError
        If there are fewer than two clusters: an interval needs at least two.

    Notes
    -----
    Costs O(clusters × samples) time; the requests are summed up once. Percentile intervals are somewhat
    narrow below some 50 clusters.
    """
    array = _values(values, "values")
    if samples < 1:
        raise ValueError(f"samples must be 1 or more, not {samples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, not {confidence}")
    sums, sizes = sums_by_cluster(array, clusters)
    if len(sums) < 2:
        raise TrainingError(
            f"a confidence interval needs at least 2 customers, not {len(sums)}: evaluate on more customers"
        )
    means = _resampled_means(sums, sizes, samples, np.random.default_rng(rng))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(array.mean()), float(low), float(high))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    rng: RNGLike,
) -> Interval:
    """Mean of ``a - b`` over the same requests, with both sides in the same resamples.

    Parameters
    ----------
    a, b
        Finite float (requests,): one metric of two recommenders, request by request.
    clusters, samples, confidence, rng
        As in :func:`bootstrap_mean`, with the same errors, cost and draws.
    """
    first, second = _values(a, "a"), _values(b, "b")
    if first.shape != second.shape:
        raise ValueError(
            f"a has {len(first)} requests and b has {len(second)}: they must be the same requests"
        )
    return bootstrap_mean(first - second, clusters, samples=samples, confidence=confidence, rng=rng)


def sums_by_cluster(
    values: NDArray[np.float64], clusters: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum and number of the values of each cluster, in ascending order of the clusters.

    Parameters
    ----------
    values
        float64 (requests,).
    clusters
        (requests,), as in :func:`bootstrap_mean`.

    Returns
    -------
    tuple of numpy.ndarray
        float64 (clusters,) and int64 (clusters,).

    Raises
    ------
    ValueError
        If `clusters` does not name one cluster for each value.
    """
    if clusters is None:
        return values, np.ones(len(values), dtype=np.int64)
    labels = np.asarray(clusters)
    if labels.shape != values.shape:
        raise ValueError(
            f"clusters has shape {labels.shape}: it must name the cluster of {len(values)} values"
        )
    _, index = np.unique(labels, return_inverse=True)
    sums = np.bincount(index, weights=values).astype(np.float64, copy=False)
    return sums, np.bincount(index).astype(np.int64, copy=False)


def _resampled_means(
    sums: NDArray[np.float64], sizes: NDArray[np.int64], samples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """float64 (samples,): the mean over requests in each resample of clusters."""
    clusters = len(sums)
    means = np.empty(samples)
    step = max(1, _DRAWS_AT_ONCE // clusters)
    alike = bool(np.all(sizes == sizes[0]))  # as where each customer is asked for once
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        drawn = generator.integers(clusters, size=(stop - start, clusters))
        requests = clusters * sizes[0] if alike else sizes.take(drawn).sum(axis=1)
        means[start:stop] = sums.take(drawn).sum(axis=1) / requests
    return means


def _values(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not {array.ndim}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(array)))}] is not finite")
    return array
