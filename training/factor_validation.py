"""Answers of a factor model to all requests of a validation period, as the served scorer gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from joblib import Parallel, delayed
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from consentier.models.factor_scoring import FoldIn, largest_norm, positive_items, repeats
from consentier.models.factor_solver import fold_in_rows
from consentier.serving.factor_scorer import take_folding
from consentier.training.linear_validation import BatchScorer, Requests

__all__ = ["FactorBatchScorer", "batch_scorer"]

_SCORES_AT_ONCE = 1 << 22  # 16 MB of float32 per thread


def batch_scorer(arrays: Mapping[str, NDArray[Any]], scoring: Mapping[str, Any]) -> BatchScorer:
    """The batch scorer for a bundle's arrays and scoring settings, whichever kind of model they are of."""
    return (FactorBatchScorer if "factors" in arrays else BatchScorer)(arrays, scoring)


class FactorBatchScorer(BatchScorer):
    """Answers many requests by a factor model as `serving.factor_scorer.FactorScorer` answers each of them.

    Parameters
    ----------
    arrays
        The arrays of a bundle of a factor model.
    scoring
        The scoring settings of its manifest.

    Notes
    -----
    Lists are equal to the last bit of a score: histories are folded in by the compiled solver, whose bits are
    those of the served one, and products of matrices find candidates only.
    """

    _folding: FoldIn

    def _own_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        self._folding = take_folding(settings)
        return settings

    def _read(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._factors, self._gram = arrays["factors"], arrays["factor_gram"]
        self._priors = arrays.get("prior_factors")
        self._norm = largest_norm(self._factors[: len(self.index)])

    def lists(
        self,
        requests: Requests,
        n: int,
        *,
        first: int = 0,
        last: int | None = None,
        threads: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Answer the requests from `first` up to (not including) `last` with up to `n` items each.

        Arguments and results are those of `BatchScorer.lists`.

        Notes
        -----
        `fold_in_rows` for the histories, and O(item_count · factors) for each request.
        """
        last = len(requests) if last is None else last
        inputs, hidden, _ = self._prepare(requests)
        vectors = fold_in_rows(
            inputs[first:last],
            self._factors,
            self._gram,
            self._folding,
            priors=self._priors,
            threads=threads,
        )
        size = max(1, _SCORES_AT_ONCE // max(len(self.index), 1))
        bounds = [(k, min(k + size, last)) for k in range(first, last, size)]
        with threadpool_limits(limits=1, user_api="blas"):  # the threads are those of the blocks
            parts = Parallel(n_jobs=-1 if threads is None else threads, prefer="threads")(
                delayed(self._best)(vectors[a - first : b - first], inputs[a:b], hidden[a:b], n)
                for a, b in bounds
            )
        if not parts:
            return np.empty((0, n), np.int64), np.empty((0, n))
        return np.concatenate([items for items, _ in parts]), np.concatenate([each for _, each in parts])

    def _best(
        self, vectors: NDArray[np.float64], inputs: sp.csr_matrix, hidden: sp.csr_matrix, n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The best items of some requests, given their factors, history and what is not to be shown."""
        items, scores = np.full((len(vectors), n), -1, np.int64), np.zeros((len(vectors), n))
        with np.errstate(over="ignore", invalid="ignore"):  # such products are not relied on
            products = vectors.astype(np.float32) @ self._factors[: len(self.index)].T
        for k in np.flatnonzero(np.diff(inputs.indptr)):
            visible = np.ones(len(self.index), np.bool_)
            visible[hidden.indices[hidden.indptr[k] : hidden.indptr[k + 1]]] = False
            own = slice(inputs.indptr[k], inputs.indptr[k + 1])
            again = repeats(
                self._factors,
                inputs.indices[own].astype(np.int64),
                inputs.data[own].astype(np.float32),
                self._settings.repeat_weight,
                len(self.index),
            )
            ids, best = positive_items(
                self._factors, self._norm, vectors[k], visible, n, approximate=products[k], added=again
            )
            items[k, : ids.size], scores[k, : ids.size] = ids, best
        return items, scores
