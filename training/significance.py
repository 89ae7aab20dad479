"""Paired tests of one recommender against another, and what many of them at once are worth. NumPy only.

The test is Fisher's randomisation test for pairs, which Smucker, Allan and Carterette (2007, "A comparison of
statistical significance tests for information retrieval evaluation") recommend for means of ranking metrics:
if two recommenders are equally good, each customer's difference could as well have had the other sign. It
supposes no distribution. :func:`holm` corrects for the number of tests (Holm 1979, "A simple sequentially
rejective multiple test procedure").
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consentier.training.bootstrap import RNGLike, sums_by_cluster

__all__ = ["RANDOMISATIONS", "holm", "randomisation_test"]

RANDOMISATIONS = 10_000
"""Assignments of signs that are drawn: the smallest p-value is about a ten thousandth."""

_SIGNS_AT_ONCE = 1 << 20
"""Signs drawn before they are summed: bounds the memory at a few times 8 MB."""

_FINEST_STEP = 2.0**-40
"""Differences of metrics are rounded to steps of at least this."""


def randomisation_test(
    differences: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    samples: int = RANDOMISATIONS,
    rng: RNGLike,
) -> NDArray[np.float64]:
    """Two-sided p-values of the hypothesis that the mean difference is 0, by flipped signs.

    Every sample gives each cluster's differences a sign at random, all of a cluster the same one. The p-value
    is ``(1 + samples at least as far from 0) / (1 + samples)``, which counts the observed signs in and so is
    never 0 (Phipson and Smyth 2010, "Permutation p-values should never be zero").

    Parameters
    ----------
    differences
        Finite float (requests, tests): one column per pair of recommenders and metric.
    clusters
        (requests,), the customer of each request as integers or strings; None makes each request its own.
    samples
        Number of assignments of signs, 1 or more.
    rng
        A seed, or a generator that is used as it is and moves on (SPEC 7). All columns share the signs, so a
        column's p-value does not depend on which others it is tested with.

    Returns
    -------
    numpy.ndarray
        float64 (tests,), each in (0, 1].

    Raises
    ------
    ValueError
        If an argument is not as described.

    Notes
    -----
    Costs O(clusters × tests × samples) time. No number of threads changes a p-value: differences are rounded
    to steps, a power of two, such that every sum of them is a whole number below 2^53 and so is exact.
    """
    array = np.asarray(differences, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"differences must have two dimensions, not {array.ndim}")
    if not np.all(np.isfinite(array)):
        raise ValueError("differences must be finite")
    if samples < 1:
        raise ValueError(f"samples must be 1 or more, not {samples}")
    if array.shape[1] == 0:
        return np.zeros(0)
    columns = [_whole_numbers(sums_by_cluster(column, clusters)[0]) for column in array.T]
    sums = np.stack(columns, axis=1)
    # Every value was rounded by half a step at most: sums that near are ties.
    observed = np.abs(sums.sum(axis=0)) - len(sums)
    generator = np.random.default_rng(rng)
    as_far = np.zeros(sums.shape[1], dtype=np.int64)
    step = max(1, _SIGNS_AT_ONCE // max(len(sums), 1))
    for start in range(0, samples, step):
        count = min(step, samples - start)
        signs = 2.0 * generator.integers(2, size=(count, len(sums)), dtype=np.int8) - 1.0
        as_far += np.sum(np.abs(signs @ sums) >= observed, axis=0)
    return np.asarray((1.0 + as_far) / (1.0 + samples), dtype=np.float64)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values after Holm (1979): compared with a level, they keep the family's error rate below it.

    The k-th smallest of m p-values is multiplied by m - k + 1, made no smaller than the one before it, and at
    most 1. Holds whatever the dependence between the tests; it is never weaker than Bonferroni's correction.

    Parameters
    ----------
    p_values
        Float (tests,), each in [0, 1]: the whole family.

    Returns
    -------
    numpy.ndarray
        float64 (tests,), in the order given.

    Raises
    ------
    ValueError
        If they are not as described.
    """
    array = np.asarray(p_values, dtype=np.float64)
    if array.ndim != 1 or not np.all((array >= 0) & (array <= 1)):
        raise ValueError("p_values must be numbers from 0 to 1, in one dimension")
    order = np.argsort(array, kind="stable")
    raised = np.maximum.accumulate(array[order] * np.arange(len(array), 0, -1))
    adjusted = np.empty(len(array))
    adjusted[order] = np.minimum(raised, 1.0)
    return adjusted


def _whole_numbers(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values in steps of a power of two, such that no sum of them with any signs is rounded."""
    total = float(np.abs(values).sum())
    # One bit of room for the rounding of each value.
    step = max(_FINEST_STEP, 2.0 ** (math.frexp(total)[1] - 51))
    return np.rint(values / step)
