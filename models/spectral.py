"""Factors from the spectrum of the co-occurrences: no iterations towards a loss, no random start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh
from threadpoolctl import threadpool_limits

from consentier.models.factor_scoring import FoldIn
from consentier.models.factors import FactorModel, Fitted
from consentier.progress import Advance

__all__ = ["Spectral"]

_PERSONS_OF_DOUBT = 100.0
"""As many persons without an attribute's level, so to speak, stand against those who have it."""
_LEAST_EIGENVALUE = 1e-8  # of the largest one: what is below is rounding
_ROWS_PER_BLOCK = 8192


@dataclass(kw_only=True, eq=False)
class Spectral(FactorModel):
    """Items described by the strongest eigenvectors of their weighted co-occurrences; histories folded in.

    With n_u the total weight of user u's row x_u and c_i the number of rows that hold item i, let
    ``G = D (Σ_u n_u^(-2 row_exponent) x_u x_u^T) D`` with ``D = diag(c^(-item_exponent))``, and (U, s) its
    strongest eigenpairs. Item factors are ``V = U diag((s / s_unit)^(spectral_exponent / 2))``, s_unit being
    the eigenvalue number `unit_rank`, and a history is folded in by least squares with a ridge penalty of
    `unobserved_weight`, see `factor_scoring.fold_in`. A high exponent trusts few directions, a low one many.

    The eigenvectors are those of the item-item graph on which GF-CF filters (Shen et al., "How powerful is
    graph convolution for recommendation?", CIKM 2021), there with exponents of .5; the fold-in is that of
    iALS (Rendle et al., "Revisiting the performance of iALS on item recommendation benchmarks", RecSys 2022),
    whose penalty that grows with frequency appears here as the power of the eigenvalues.

    Inputs behind the items are attributes. They are no items: their `prior_factors` say what is expected of
    whoever has them, by a ridge regression of the users' scaled rows on them, and a history moves away from
    that expectation (Agarwal and Chen, "Regression-based latent factor models", KDD 2009). Their weight in a
    history is how much that expectation counts; it should fade as the history grows.

    Notes
    -----
    A fit takes some 4 · factors products of the matrix with a vector, that is, about
    16 · factors · entries multiplications and additions, and about 8 · n_items · factors² for orthogonal
    vectors, bound by reading 16 · factors · n_items bytes at each step. One thread. Equal rows give equal
    bits on one build and kind of processor, in whatever order they come.
    """

    factors: int = 256
    """Number of factors; fewer are kept where the matrix has a smaller rank."""
    row_exponent: float = 0.3
    """How much less each item of a long row counts."""
    item_exponent: float = 0.3
    """How much less frequent items count."""
    spectral_exponent: float = 1.5
    """How fast weak directions are shrunk, above 0."""
    unit_rank: int = 20
    """The direction whose factors have length 1: those before it are freer in a fold-in, others less."""
    unobserved_weight: float = 0.03
    """Weight in least squares of each item, and ridge penalty, above 0."""
    history_exponent: float = 0.5
    """How much less each item of a long history counts when it is folded in."""
    history_offset: float = 12.0
    """Total weight up to which histories count as short."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.unit_rank >= 1, "unit_rank", "at least 1")
        self._require_above_0("spectral_exponent")
        self._require_no_less_than_0("row_exponent", "item_exponent", "history_exponent", "history_offset")

    @property
    def folding(self) -> FoldIn:
        """See the base class."""
        return FoldIn(
            unobserved_weight=self.unobserved_weight,
            regularisation=self.unobserved_weight,
            frequency_exponent=0.0,
            history_exponent=self.history_exponent,
            history_offset=self.history_offset,
        )

    def _fit(self, user_items: sparse.csr_matrix, advance: Advance) -> Fitted:
        items = user_items.shape[1] if self.item_count is None else self.item_count
        rows = user_items[:, :items].astype(np.float64)
        scaled = sparse.csr_matrix(sparse.diags_array(self._row_scales(rows)) @ rows)
        with threadpool_limits(limits=1, user_api="blas"):
            values, vectors = self._spectrum(scaled)
            lengths = (values / values[-min(self.unit_rank, values.size)]) ** self.spectral_exponent
            factors = (vectors * np.sqrt(lengths)).astype(np.float32)
            priors: NDArray[np.float32] | None = None
            if user_items.shape[1] > items:
                sizes = float(rows.sum()), float(scaled.sum())
                found = _priors(scaled, user_items[:, items:], vectors / np.sqrt(lengths))
                priors = (found * (sizes[0] / sizes[1] if sizes[1] else 0.0)).astype(np.float32)
        advance(items)
        return Fitted(factors, priors)

    def _row_scales(self, rows: sparse.csr_matrix) -> NDArray[np.float64]:
        totals = np.asarray(rows.sum(axis=1)).ravel()
        scales = np.zeros(totals.size)
        scales[totals > 0] = totals[totals > 0] ** -self.row_exponent
        return scales

    def _spectrum(self, scaled: sparse.csr_matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Largest eigenvalues, ascending, and their vectors, shape (n_items, kept)."""
        frequencies = np.bincount(scaled.indices, minlength=scaled.shape[1])
        there = np.flatnonzero(frequencies)
        if not there.size:
            return np.ones(1), np.zeros((scaled.shape[1], 1))
        weights = frequencies[there] ** -self.item_exponent
        values, found = _strongest(
            sparse.csr_matrix(scaled[:, there] @ sparse.diags_array(weights)), self.factors
        )
        vectors = np.zeros((scaled.shape[1], values.size))
        vectors[there] = found
        return values, vectors


def _strongest(matrix: sparse.csr_matrix, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest eigenvalues of ``matrix^T matrix`` above rounding, ascending, and their vectors."""
    items, transposed = matrix.shape[1], sparse.csr_matrix(matrix.T)
    if items <= 4 * count:  # all at once is faster
        values, vectors = np.linalg.eigh((transposed @ matrix).toarray())
        values, vectors = values[-count:], vectors[:, -count:]
    else:
        product = LinearOperator((items, items), matvec=lambda x: transposed @ (matrix @ x), dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(items)  # any, but always the same
        values, vectors = eigsh(product, k=count, v0=start)
        order = np.argsort(values, kind="stable")
        values, vectors = values[order], vectors[:, order]
    kept = values > _LEAST_EIGENVALUE * values[-1]
    return values[kept], vectors[:, kept]


def _priors(
    scaled: sparse.csr_matrix, known: sparse.csr_matrix, dual: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Ridge regression of the rows' projections on what is known of them.

    Parameters
    ----------
    scaled
        Shape (users, items): the users' rows, each scaled.
    known
        Shape (users, attribute inputs): what is known of each; only whether an entry is there counts.
    dual
        Shape (items, factors): a row's product with it gives the factors whose scores are nearest to the row.

    Returns
    -------
    ndarray of float64
        Shape (attribute inputs + 1, factors), see `factor_scoring.expected_factors`.
    """
    users, inputs = max(known.shape[0], 1), known.shape[1]
    present = sparse.csr_matrix((np.ones(known.nnz), known.indices, known.indptr), shape=known.shape)
    mean = np.asarray(present.sum(axis=0)).ravel() / users
    together = (present.T @ present).toarray() - users * np.outer(mean, mean)
    cross, total = np.zeros((inputs, dual.shape[1])), np.zeros(dual.shape[1])
    for start in range(0, known.shape[0], _ROWS_PER_BLOCK):
        projected = scaled[start : start + _ROWS_PER_BLOCK] @ dual
        cross += present[start : start + _ROWS_PER_BLOCK].T @ projected
        total += projected.sum(axis=0)
    average = total / users
    added = np.linalg.solve(
        together + _PERSONS_OF_DOUBT * np.eye(inputs), cross - users * np.outer(mean, average)
    )
    return np.vstack([added, average - mean @ added])
