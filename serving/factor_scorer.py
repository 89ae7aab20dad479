"""The scorer of factor models: the history is folded in at each request, and nobody is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.errors import BundleMalformed
from consentier.models.bundle_arrays import check_factors, check_prior_factors
from consentier.models.factor_scoring import (
    MAY_BE_LEFT_OUT,
    FoldIn,
    approximate_scores,
    contributions,
    fold_in,
    largest_norm,
    positive_items,
    repeats,
)
from consentier.models.quantised_factors import QuantisedFactors
from consentier.models.row_scorer import compiled_kernel
from consentier.serving.query import Query
from consentier.serving.rules import Ranking
from consentier.serving.scorer import ItemScorer

__all__ = ["FACTOR_ALGORITHMS", "FactorScorer", "take_folding"]

FACTOR_ALGORITHMS = frozenset({"als", "bpr", "spectral"})
"""Algorithms whose bundles hold factors."""


_MAY_BE_0 = {"frequency_exponent", "history_exponent", "history_offset"} | MAY_BE_LEFT_OUT


class FactorScorer(ItemScorer):
    """Scores ``y · f``, with the factors f of the items, and y of the history, which is folded in.

    Notes
    -----
    A request costs `models.factor_scoring.fold_in` and `positive_items`, which reads the factors of all items
    once: in one byte a number where there are compiled loops. Given the bundle and the history, scores are
    the same in every bit whatever the machine, the threads and the BLAS library, compiled or not.
    """

    _folding: FoldIn

    def _own_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        self._folding = take_folding(settings)
        return settings

    def _read(self, arrays: Mapping[str, NDArray[Any]], inputs: int, items: int) -> None:
        self._factors, self._gram = arrays["factors"], arrays["factor_gram"]
        self._priors = arrays.get("prior_factors")
        check_factors(self._factors, self._gram, inputs if self._priors is None else items)
        if self._priors is not None:
            check_prior_factors(self._priors, self._factors.shape, inputs - items, items)
        self._norm = largest_norm(self._factors[:items])
        loops = self._compiled and compiled_kernel() is not None
        self._quantised = QuantisedFactors(self._factors[:items]) if loops else None
        self._items = np.arange(items, dtype=np.int64)

    def _contributions(
        self, rows: NDArray[np.int64], weights: NDArray[np.float32], items: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        found = contributions(self._factors, self._gram, rows, weights, self._folding, self._priors, items)
        again, added = repeats(self._factors, rows, weights, self._settings.repeat_weight, self._items.size)
        for item, gain in zip(again.tolist(), added.tolist(), strict=True):
            found[np.ix_(rows == item, items == item)] += gain
        return found

    def _ranking(
        self,
        rows: NDArray[np.int64],
        weights: NDArray[np.float32],
        query: Query,
        hidden: Iterable[int],
    ) -> Ranking:
        vector = fold_in(self._factors, self._gram, rows, weights, self._folding, self._priors)
        visible = self._shelf.visible(self._items, query, hidden)
        again = repeats(self._factors, rows, weights, self._settings.repeat_weight, self._items.size)
        # Codes are so quick to read that a longer list, which few requests ask for, may read them again.
        near = approximate_scores(self._factors, vector, visible.size) if self._quantised is None else None
        return lambda n: positive_items(
            self._factors,
            self._norm,
            vector,
            visible,
            n,
            approximate=near,
            quantised=self._quantised,
            added=again,
        )


def take_folding(settings: dict[str, Any]) -> FoldIn:
    """Take out of a manifest's scoring settings how histories are folded in.

    Raises
    ------
    BundleMalformed
        If that is missing, incomplete or out of range.
    """
    value = settings.pop("fold_in", None)
    names = {field.name for field in dataclasses.fields(FoldIn)}
    needed = names - MAY_BE_LEFT_OUT
    if not isinstance(value, Mapping) or not needed <= set(value) <= names:
        raise BundleMalformed(
            f"manifest: scoring.fold_in must name {', '.join(sorted(needed))}, and nothing but these and "
            f"{', '.join(sorted(MAY_BE_LEFT_OUT))}"
        )
    for name, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e9:
            raise BundleMalformed(f"manifest: scoring.fold_in.{name} must be a number of at least 0")
        # Without a penalty, or without a weight for what is not there, a history may have no one solution.
        if not number and name not in _MAY_BE_0:
            raise BundleMalformed(f"manifest: scoring.fold_in.{name} must be above 0")
    return FoldIn(**{name: float(number) for name, number in value.items()})
