"""Time and memory of a fit beside dense closed forms: EASE, and SLIST's.

Simulated users as in the benchmark `scaling`. Dense EASE inverts the Gram matrix of all items (by Cholesky's
method, in place); SLIST (Choi et al., "Session-aware linear item-item models for session-based
recommendation", WWW 2021) solves for next items and same-session items together: two dense Gram matrices, an
inverse, and a product. Both are measured at sizes that fit, and extrapolated to 40,000 items by the law that
they follow: the cube of the items in time, the square in memory. Rows that were not measured say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from benchmarks.quality.costs import Row, in_a_process, measured, options, report
from benchmarks.quality.measure import Clock
from benchmarks.quality.simulation import simulated
from consentier.models.local_ridge import LocalRidge

COLUMNS = {
    "items": "items",
    "cpu_seconds": "fit, CPU s",
    "peak_mb": "peak, MB",
    "above_mb": "above the data, MB",
    "how": "",
}
NOTE = (
    "Extrapolated rows: time by the cube of the items, memory above the data by the square, from the largest "
    "measured."
)
METHODS = ("local_ridge", "ease_float32", "ease_float64", "slist_float32")
_REGULARISATION = 10.0
_FINAL_ITEMS = 40_000
_BLOCK = 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each method and size, extrapolate what is asked for, print the table and write the results."""
    parser = options(__doc__ or "", "fit_cost")
    parser.add_argument("--models", default=",".join(METHODS))
    parser.add_argument("--items", default="10000,20000", help="sizes to measure")
    parser.add_argument("--final-items", type=int, default=_FINAL_ITEMS, help="size to extrapolate to")
    parser.add_argument("--interactions-per-item", type=int, default=50)
    chosen = parser.parse_args(arguments)
    if measured(chosen.case, measure):
        return
    rows: dict[str, Row] = {}
    for method in chosen.models.split(","):
        sizes = [int(items) for items in chosen.items.split(",")]
        if method == "local_ridge" and chosen.final_items not in sizes:
            sizes.append(chosen.final_items)
        for items in sizes:
            case = {"method": method, "items": items, "interactions": items * chosen.interactions_per_item}
            rows[f"{method}, {items:,}"] = in_a_process("fit_cost", case)
            report("fit_cost", chosen.out, COLUMNS, rows, NOTE)
        if chosen.final_items not in sizes:
            largest = rows[f"{method}, {max(sizes):,}"]
            rows[f"{method}, {chosen.final_items:,}"] = extrapolated(largest, chosen.final_items)
            report("fit_cost", chosen.out, COLUMNS, rows, NOTE)


def extrapolated(row: Row, items: int) -> Row:
    """What a dense method costs at another size: time by the cube, memory by the square."""
    ratio = items / row["items"]
    data = row["peak_mb"] - row["above_mb"]
    above = round(row["above_mb"] * ratio**2)
    return {
        "items": items,
        "cpu_seconds": row["cpu_seconds"] * ratio**3,
        "peak_mb": round(data * ratio) + above,
        "above_mb": above,
        "how": "extrapolated",
    }


def measure(case: Row) -> Row:
    """Fit one method at one size in this process, after a tiny fit."""
    methods: dict[str, Callable[[sparse.csr_matrix], object]] = {
        "local_ridge": fit_local_ridge,
        "ease_float32": lambda matrix: ease(matrix, np.dtype(np.float32)),
        "ease_float64": lambda matrix: ease(matrix, np.dtype(np.float64)),
        "slist_float32": lambda matrix: slist(matrix, np.dtype(np.float32)),
    }
    fit = methods[case["method"]]
    fit(simulated(100, 1000))
    interactions = simulated(case["items"], case["interactions"])
    clock = Clock()
    with clock.running():
        fit(interactions)
    return {
        "items": case["items"],
        "cpu_seconds": clock.cpu_seconds,
        "peak_mb": round(clock.peak_memory_mb),
        "above_mb": round(clock.peak_memory_mb - clock.memory_before_mb),
        "how": "measured",
    }


def fit_local_ridge(matrix: sparse.csr_matrix) -> None:
    """Consentier's, with 100 neighbours."""
    LocalRidge(neighbours=100, regularisation=1.0, threads=1).fit(matrix, show_progress=False)


def ease(matrix: sparse.csr_matrix, dtype: np.dtype[np.floating]) -> NDArray[np.floating]:
    """Dense EASE, in place."""
    weights = _inverse(_dense_gram(matrix, matrix, dtype))
    weights /= -np.diagonal(weights)
    np.fill_diagonal(weights, 0.0)
    return weights


def slist(
    matrix: sparse.csr_matrix, dtype: np.dtype[np.floating], share: float = 0.5
) -> NDArray[np.floating]:
    """SLIST's closed form: items of the same session, and later from earlier ones, in one system.

    Each row is split in the middle: the first half is past, the second future. That stands in for the order
    of clicks, which does not bear on the cost.
    """
    past, future = _halves(matrix)
    system = _dense_gram(matrix, matrix, dtype)
    system *= share
    system += (1.0 - share) * _dense_gram(past, past, dtype, 0.0)
    system = _inverse(system)
    right = _dense_gram(matrix, matrix, dtype, 0.0)
    right *= share
    right += (1.0 - share) * _dense_gram(past, future, dtype, 0.0)
    weights = system @ right
    # The Lagrange multipliers of "no item explains itself by more than a bound" scale the inverse's columns.
    weights -= system * (np.diagonal(weights) / np.diagonal(system))
    return np.asarray(weights)


def _inverse(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """Invert a symmetric positive definite matrix in its place, in its precision, by Cholesky's method.

    `numpy.linalg.inv` computes in float64, whatever it is given, and takes thrice the operations.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite.
    """
    factorise, invert = linalg.get_lapack_funcs(("potrf", "potri"), (matrix,))  # type: ignore[misc]
    factor, failed = factorise(matrix.T, lower=True, clean=False, overwrite_a=True)
    inverse, singular = invert(factor, lower=True, overwrite_c=True)
    if failed or singular:
        raise np.linalg.LinAlgError("the Gram matrix is not positive definite")
    upper: NDArray[np.floating] = inverse.T
    for start in range(0, len(upper), _BLOCK):
        stop = start + _BLOCK
        block = np.triu(upper[start:stop, start:stop])
        upper[start:stop, start:stop] = block + np.triu(block, 1).T
        upper[stop:, start:stop] = upper[start:stop, stop:].T
    return upper


def _dense_gram(
    left: sparse.csr_matrix,
    right: sparse.csr_matrix,
    dtype: np.dtype[np.floating],
    regularisation: float = _REGULARISATION,
) -> NDArray[np.floating]:
    gram = (left.T @ right).tocsr().astype(dtype).toarray()
    gram[np.diag_indices_from(gram)] += regularisation
    return np.asarray(gram)


def _halves(matrix: sparse.csr_matrix) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    position = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    first = position < np.repeat(np.diff(matrix.indptr), np.diff(matrix.indptr)) / 2
    past, future = matrix.copy(), matrix.copy()
    past.data = matrix.data * first
    future.data = matrix.data * ~first
    past.eliminate_zeros()
    future.eliminate_zeros()
    return past, future


if __name__ == "__main__":
    main()
