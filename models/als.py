"""Alternating least squares for implicit feedback, with a penalty that grows with the frequency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.factor_solver import fold_in_rows, gram_diagonal, principal_axes
from consentier.models.factors import Fitted, IterativeFactorModel
from consentier.progress import Advance

__all__ = ["ALS"]

_START = 0.1
"""Standard deviation of a starting row's length, as in Rendle et al. (2022), section 4.3."""


@dataclass(kw_only=True, eq=False)
class ALS(IterativeFactorModel):
    """Matrix factorisation by alternating least squares ("iALS").

    With ``c_ui`` the weight of an entry and ``a`` the unobserved weight, it minimises
    ``Σ c_ui (w_u · h_i - 1)² + a Σ_all (w_u · h_i)² + Σ_u r_u |w_u|² + Σ_i r_i |h_i|²``, first over all
    users, then over all inputs. The penalty r of a row is ``regularisation · b ** frequency_exponent`` with
    ``b`` its total weight plus a times the number of columns (Rendle, Krichene, Zhang and Koren, "Revisiting
    the performance of iALS on item recommendation benchmarks", RecSys 2022). With exponent 0 this is what
    ``implicit`` minimises (Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets",
    ICDM 2008), in other words; its solver takes the same penalty for all rows.

    Notes
    -----
    An iteration takes, for each user and each input with n entries, n k m + m³ / 3 multiplications and
    additions (k factors, m the smaller of n and k), and k² for each user and input, all in float64: short
    rows are solved in their own space, so many factors cost little where histories are short. Memory:
    8 k bytes for each user and input. The result depends neither on the number of threads nor on the order of
    the users; LAPACK finds the principal axes, so bits are those of one build on one kind of processor.
    """

    def _fit(self, user_items: sparse.csr_matrix, advance: Advance) -> Fitted:
        rng = np.random.default_rng(self.seed)
        inputs = user_items.shape[1]
        items = inputs if self.item_count is None else self.item_count
        found: NDArray[np.floating] = rng.standard_normal((inputs, self.factors)) * (
            _START / np.sqrt(self.factors)
        )
        found[np.diff(user_items.tocsc().indptr) == 0] = 0
        if not user_items.shape[0]:  # nothing to solve, nor a penalty above 0 to solve it with
            advance(items)
            return Fitted(principal_axes(found))
        item_users = sparse.csr_matrix(user_items.T)
        item_users.sort_indices()
        for iteration in range(self.iterations):
            for matrix in (user_items, item_users):
                given = principal_axes(found)
                found = fold_in_rows(matrix, given, gram_diagonal(given), self.folding, threads=self.threads)
            advance(items * (iteration + 1) // self.iterations - items * iteration // self.iterations)
        return Fitted(principal_axes(found))
