"""Least squares for many rows of a factor model at once: `fold_in`, compiled, with the same bits."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from consentier.models.compiled import compiled
from consentier.models.factor_scoring import FoldIn, expected_factors

__all__ = ["fold_in_rows", "gram_diagonal", "principal_axes"]

_PIECES_PER_THREAD = 8
_LEAST_WORK = 1e8  # of one piece, in multiplications and additions
_ROWS_PER_BLOCK = 8192


def fold_in_rows(
    matrix: sparse.csr_matrix,
    factors: NDArray[np.float32],
    gram: NDArray[np.float64],
    settings: FoldIn,
    *,
    priors: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Solve for the factors of each row of a matrix, the factors of its columns being given.

    Parameters
    ----------
    matrix
        Shape (rows, columns): canonical, weights of at least 0.
    factors, gram, settings, priors
        As for `factor_scoring.fold_in`.
    threads
        Threads to use; all cores by default. The result does not depend on it.

    Returns
    -------
    ndarray of float64
        Shape (rows, factors): of each row what `fold_in` gives for it, bit for bit.

    Notes
    -----
    For a row of n entries, with k factors and m the smaller of n and k: n k m + m³ / 3 multiplications and
    additions in float64, on one thread, without BLAS.
    """
    if priors is not None:
        expected = _expected(matrix, priors, factors.shape[0])
        matrix = sparse.csr_matrix(matrix[:, : factors.shape[0]])
    rows, size = matrix.shape[0], factors.shape[1]
    solved = np.zeros((rows, size))
    weights = matrix.data.astype(np.float32)
    # Exact sums and powers in one place: compiled powers may differ in the last bit.
    others = factors.shape[0]
    totals = _exact_totals(matrix.indptr, weights)
    entries = _entries_above_0(matrix.indptr, weights)
    ridges = np.array(
        [settings.ridge(total, others, count) for total, count in zip(totals, entries, strict=True)]
    )
    scales = np.array([settings.scale(total) for total in totals])
    roots = np.sqrt(weights.astype(np.float64) * np.repeat(scales, np.diff(matrix.indptr)))
    missing = settings.missing(roots)
    if priors is not None:
        missing = missing.copy()
        _take_expected_away(matrix.indptr, matrix.indices, factors, expected, missing)
    scaled_gram = settings.unobserved_weight * gram
    given = (matrix.indptr, matrix.indices, roots, missing, factors, scaled_gram, ridges)
    bounds = _equal_work(matrix.indptr, size, threads)
    pieces = list(pairwise(bounds.tolist()))
    if len(pieces) <= 1:  # a request, say, for which threads would cost more than they save
        for start, stop in pieces:
            _solve_rows(*given, start, stop, solved)
        return solved if priors is None else solved + expected
    Parallel(n_jobs=-1 if threads is None else threads, prefer="threads", require="sharedmem")(
        delayed(_solve_rows)(*given, start, stop, solved) for start, stop in pieces
    )
    return solved if priors is None else solved + expected


def principal_axes(factors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Turn factors so that their Gram matrix is diagonal; products between rows stay what they are.

    Parameters
    ----------
    factors
        Shape (rows, factors).

    Returns
    -------
    ndarray of float32
        Same shape, columns by ascending length.

    Notes
    -----
    O(rows · factors² + factors³), by LAPACK on one thread, so that the bits depend on its build and the kind
    of processor only.
    """
    size = factors.shape[1]
    turned = np.empty(factors.shape, dtype=np.float32)
    blocks = [slice(start, start + _ROWS_PER_BLOCK) for start in range(0, factors.shape[0], _ROWS_PER_BLOCK)]
    with threadpool_limits(limits=1, user_api="blas"):
        gram = np.zeros((size, size))
        for block in blocks:
            part = factors[block].astype(np.float64)
            gram += part.T @ part
        _, axes = np.linalg.eigh(gram)
        for block in blocks:
            turned[block] = factors[block].astype(np.float64) @ axes
    return turned


def gram_diagonal(factors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum the squares of each column, in the order of the rows: float64, shape (factors,)."""
    total = np.zeros(factors.shape[1])
    _add_squares(np.ascontiguousarray(factors), total)
    return total


def _expected(matrix: sparse.csr_matrix, priors: NDArray[np.float32], items: int) -> NDArray[np.float64]:
    """What the attributes of each row let expect, shape (rows, factors)."""
    expected = np.zeros((matrix.shape[0], priors.shape[1]))
    attributes = sparse.csr_matrix(matrix[:, items:])
    for row in np.flatnonzero(np.diff(attributes.indptr)):
        own = slice(attributes.indptr[row], attributes.indptr[row + 1])
        prior = expected_factors(
            priors, attributes.indices[own].astype(np.int64), attributes.data[own].astype(np.float32)
        )
        expected[row] = 0.0 if prior is None else prior
    return expected


def _exact_totals(starts: NDArray[np.integer], weights: NDArray[np.float32]) -> list[float]:
    """Correctly rounded sums of the rows' weights, which no order of addition can change."""
    values, bounds = weights.tolist(), starts.tolist()
    return [math.fsum(values[a:b]) for a, b in pairwise(bounds)]


def _entries_above_0(starts: NDArray[np.integer], weights: NDArray[np.float32]) -> list[int]:
    """How many entries of each row are above 0."""
    before = np.concatenate(([0], np.cumsum(weights > 0)))
    counts: list[int] = np.diff(before[starts]).tolist()
    return counts


def _equal_work(starts: NDArray[np.integer], size: int, threads: int | None) -> NDArray[np.int64]:
    """Bounds of runs of rows that take about the same time."""
    lengths = np.diff(starts).astype(np.float64)
    inner = np.minimum(lengths, size)
    work = np.cumsum(lengths * size * inner + inner**3 / 3 + size)
    total = work[-1] if work.size else 0.0
    pieces = 1 if threads == 1 else int(min(_PIECES_PER_THREAD * (threads or 8), 1 + total // _LEAST_WORK))
    inside = np.searchsorted(work, total * np.arange(1, pieces) / pieces)
    return np.unique(np.concatenate([[0], inside, [lengths.size]])).astype(np.int64)


@compiled
def _add_squares(factors: NDArray[np.float32], total: NDArray[np.float64]) -> None:
    for row in factors:
        for f in range(total.size):
            total[f] += np.float64(row[f]) * np.float64(row[f])


@compiled
def _take_expected_away(
    starts: NDArray[np.integer],
    indices: NDArray[np.integer],
    factors: NDArray[np.float32],
    priors: NDArray[np.float64],
    roots: NDArray[np.float64],
) -> None:
    """Multiply each entry's root by what was not expected of it, with the sums of `exact_scores`."""
    for row in range(starts.size - 1):
        prior = priors[row]
        for entry in range(starts[row], starts[row + 1]):
            given = factors[indices[entry]]
            expected = 0.0
            for f in range(prior.size):
                expected += np.float64(given[f]) * prior[f]
            roots[entry] *= 1.0 - expected


@compiled
def _solve_rows(
    starts: NDArray[np.integer],
    indices: NDArray[np.integer],
    roots: NDArray[np.float64],
    missing: NDArray[np.float64],
    factors: NDArray[np.float32],
    gram: NDArray[np.float64],
    ridges: NDArray[np.float64],
    start: int,
    stop: int,
    solved: NDArray[np.float64],
) -> None:
    size = gram.size
    shrink = np.empty(size)
    for row in range(start, stop):
        first, count = starts[row], starts[row + 1] - starts[row]
        for f in range(size):
            shrink[f] = 1.0 / np.sqrt(gram[f] + ridges[row])
        scaled = np.empty((count, size))
        for i in range(count):
            line, root, given = scaled[i], roots[first + i], factors[indices[first + i]]
            for f in range(size):
                line[f] = (np.float64(given[f]) * root) * shrink[f]
        total = np.zeros(size)
        if count < size:
            right = missing[first : first + count].copy()
            _solve(np.ascontiguousarray(scaled.T), right)
            _add_weighted(scaled, right, total)
        else:
            _add_weighted(scaled, missing[first : first + count], total)
            _solve(scaled, total)
        for f in range(size):
            solved[row, f] = shrink[f] * total[f]


@compiled
def _add_weighted(
    rows: NDArray[np.float64], weights: NDArray[np.float64], total: NDArray[np.float64]
) -> None:
    for i in range(rows.shape[0]):
        _add_multiple(total, rows[i], weights[i])


@compiled
def _solve(rows: NDArray[np.float64], right: NDArray[np.float64]) -> None:
    """Solve ``(I + rows^T rows) x = right`` in place, every sum in the order in which `fold_in` adds it.

    Only the upper triangle is computed. Loops run over slices that start at 0, without which they are not
    vectorised.
    """
    size = rows.shape[1]
    matrix = np.zeros((size, size))
    for j in range(size):
        matrix[j, j] = 1.0
    _add_products(rows, matrix, 0, 1.0)
    _factorise(matrix)
    for j in range(size):
        right[j] /= matrix[j, j]
        _add_multiple(right[j + 1 :], matrix[j, j + 1 :], -right[j])
    for j in range(size - 1, -1, -1):
        right[j] /= matrix[j, j]
        x = right[j]
        for a in range(j):
            right[a] -= matrix[a, j] * x


@compiled
def _factorise(matrix: NDArray[np.float64]) -> None:
    """Put Cholesky's factor U, with U^T U the matrix, in the place of the upper triangle."""
    size = matrix.shape[0]
    for first in range(0, size, 4):
        last = min(first + 4, size)
        for j in range(first, last):
            line = matrix[j, j:]
            pivot = np.sqrt(line[0])
            for b in range(line.size):
                line[b] /= pivot
            for a in range(j + 1, last):
                _add_multiple(matrix[a, a:], matrix[j, a:], -matrix[j, a])
        _add_products(matrix[first:last], matrix, last, -1.0)


@compiled
def _add_products(rows: NDArray[np.float64], matrix: NDArray[np.float64], first: int, sign: float) -> None:
    """Add the products of each row with itself (or take them away), four rows in one pass."""
    size, count = matrix.shape[0], rows.shape[0]
    whole = count - count % 4
    for p in range(0, whole, 4):
        for a in range(first, size):
            target = matrix[a, a:]
            r0, r1, r2, r3 = rows[p, a:], rows[p + 1, a:], rows[p + 2, a:], rows[p + 3, a:]
            x0, x1, x2, x3 = sign * r0[0], sign * r1[0], sign * r2[0], sign * r3[0]
            for b in range(target.size):
                target[b] = target[b] + x0 * r0[b] + x1 * r1[b] + x2 * r2[b] + x3 * r3[b]
    for p in range(whole, count):
        for a in range(first, size):
            _add_multiple(matrix[a, a:], rows[p, a:], sign * rows[p, a])


@compiled
def _add_multiple(target: NDArray[np.float64], line: NDArray[np.float64], factor: float) -> None:
    for b in range(target.size):
        target[b] += factor * line[b]
