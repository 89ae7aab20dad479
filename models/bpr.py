"""Bayesian personalised ranking, as ``implicit`` fits it; users are folded in by least squares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy import sparse

from consentier.models.factor_solver import principal_axes
from consentier.models.factors import Fitted, IterativeFactorModel
from consentier.progress import Advance

__all__ = ["BPR"]


@dataclass(kw_only=True, eq=False)
class BPR(IterativeFactorModel):
    """Matrix factorisation that ranks pairs: Bayesian personalised ranking.

    Stochastic steps towards a higher score for an item of a user than for another one that is drawn at random
    (Rendle, Freudenthaler, Gantner and Schmidt-Thieme, "BPR: Bayesian personalized ranking from implicit
    feedback", UAI 2009). ``implicit`` takes them, on one thread, so that a seed gives the same factors. Only
    whether an entry is there counts, not its weight, while histories that are folded in keep their weights.

    An item's bias is one more factor. The users' factors of the fit are dropped; a history is folded in by
    least squares on the items' factors, which are first scaled to a mean square length of 1. No gradient is
    followed at request time, so an answer is a function of the history alone, and linear in its items.

    Notes
    -----
    O(iterations · entries · factors) on one thread, whatever `threads` is.
    """

    regularisation: float = 10.0
    """Ridge penalty with which a history is folded in, above 0."""
    unobserved_weight: float = 0.01
    """Weight of each input when a history is folded in, above 0."""
    frequency_exponent: float = 0.0
    """As for all factor models. The defaults of these three did best on MovieLens-1M (validation)."""
    learning_rate: float = 0.05
    """Size of a step."""
    step_regularisation: float = 0.01
    """Penalty of factors in each step, at least 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            math.isfinite(self.learning_rate) and self.learning_rate > 0, "learning_rate", "a number above 0"
        )
        self._require(
            math.isfinite(self.step_regularisation) and self.step_regularisation >= 0,
            "step_regularisation",
            "a finite number of at least 0",
        )

    def _fit(self, user_items: sparse.csr_matrix, advance: Advance) -> Fitted:
        # On one thread: several would update the same factors in an order that nobody can repeat.
        peer = BayesianPersonalizedRanking(
            factors=self.factors,
            learning_rate=self.learning_rate,
            regularization=self.step_regularisation,
            iterations=self.iterations,
            num_threads=1,
            random_state=self.seed,
        )
        peer.fit(user_items, show_progress=False)
        factors = np.asarray(peer.item_factors, dtype=np.float64)
        advance(user_items.shape[1] if self.item_count is None else self.item_count)
        scale = float(np.sqrt(np.square(factors).sum(axis=1).mean()))
        scaled = factors / scale if scale > 0 else factors
        scaled[np.bincount(user_items.indices, minlength=len(scaled)) == 0] = 0
        return Fitted(principal_axes(scaled))
