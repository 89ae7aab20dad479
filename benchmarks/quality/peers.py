"""Peers on user-item matrices: implicit, irspack, popularity, and dense EASE in NumPy.

All score with one thread in blocks of users and take the best with the same code, so that throughput and
latency compare the scoring. RecTools' EASE is the same closed form as here; RecTools itself needs attrs below
24, which the lock does not allow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.quality.splits import Interactions

__all__ = [
    "EASE",
    "ImplicitALS",
    "ImplicitBPR",
    "ImplicitKNN",
    "IrspackEDLAE",
    "IrspackIALS",
    "IrspackRP3beta",
    "IrspackSLIM",
    "Popularity",
    "SegmentPopularity",
    "joined",
]

_BLOCK = 256
_SEED = 7

Scores = NDArray[np.float32]


def joined(rows: Interactions, order_weight: float, cart_weight: float) -> sparse.csr_matrix:
    """One matrix of both sources; of the only source, where there is one."""
    if rows.carts is None or cart_weight == 0:
        return rows.items * np.float32(order_weight)
    matrix = sparse.csr_matrix(
        rows.items * np.float32(order_weight) + rows.carts * np.float32(cart_weight), dtype=np.float32
    )
    matrix.eliminate_zeros()
    return matrix


def best(scores: Scores, hidden: sparse.csr_matrix, count: int) -> NDArray[np.int64]:
    """The items with the highest scores that are not hidden, equal ones by ascending number; -1 beyond."""
    for row in range(len(scores)):
        scores[row, hidden.indices[hidden.indptr[row] : hidden.indptr[row + 1]]] = -np.inf
    lists = np.full((len(scores), count), -1, dtype=np.int64)
    width = min(count, scores.shape[1])
    chosen = np.sort(np.argpartition(-scores, width - 1, axis=1)[:, :width], axis=1)
    values = np.take_along_axis(scores, chosen, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    shown = ~np.isneginf(np.take_along_axis(values, order, axis=1))
    lists[:, :width] = np.where(shown, np.take_along_axis(chosen, order, axis=1), -1)
    return lists


@dataclass(kw_only=True)
class _Peer(ABC):
    """Scores all items for blocks of users."""

    item_count: int
    order_weight: float = 1.0
    cart_weight: float = 0.0
    """What an entry of the second source counts, where there is one."""

    _popularity: Scores = field(init=False, repr=False)

    def fit(self, train: Interactions) -> None:
        """Learn from users."""
        self._popularity = np.asarray(train.items.sum(axis=0), dtype=np.float32).ravel()
        self._fit(joined(train, self.order_weight, self.cart_weight), train)

    def recommend(self, histories: Interactions, hidden: sparse.csr_matrix, count: int) -> NDArray[np.int64]:
        """See `matrix.MatrixModel`; users of whom nothing is known get the popular items."""
        lists = []
        for start in range(0, len(histories), _BLOCK):
            block = slice(start, start + _BLOCK)
            rows = histories.rows(block)
            scores = self._scores(joined(rows, self.order_weight, self.cart_weight), rows)
            scores[~scores.any(axis=1)] = self._popularity
            lists.append(best(scores, hidden[block], count))
        return np.concatenate(lists)

    @abstractmethod
    def _fit(self, matrix: sparse.csr_matrix, train: Interactions) -> None:
        """Learn from a matrix, or from the sources."""

    @abstractmethod
    def _scores(self, matrix: sparse.csr_matrix, rows: Interactions) -> Scores:
        """Scores of all items, float32 (users, items), that may be written to."""


@dataclass(kw_only=True)
class Popularity(_Peer):
    """The items that most users have."""

    def _fit(self, matrix: sparse.csr_matrix, train: Interactions) -> None:
        pass

    def _scores(self, matrix: sparse.csr_matrix, rows: Interactions) -> Scores:
        return np.zeros(matrix.shape, dtype=np.float32)


@dataclass(kw_only=True)
class SegmentPopularity(_Peer):
    """Popularity among users with the same attribute values, averaged over the attributes.

    The rate of an item among the users with a value is drawn towards its rate among all users, as by so many
    users of average taste.
    """

    prior_users: float = 50.0

    def _fit(self, matrix: sparse.csr_matrix, train: Interactions) -> None:
        if train.attributes is None:
            raise ValueError("segment popularity needs attributes, which this set does not have")
        overall = np.asarray(matrix.mean(axis=0)).ravel()
        counts = (train.attributes.T @ matrix).toarray()
        users = np.asarray(train.attributes.sum(axis=0)).ravel()
        self._rates = (counts + self.prior_users * overall) / (users + self.prior_users)[:, None]

    def _scores(self, matrix: sparse.csr_matrix, rows: Interactions) -> Scores:
        return np.asarray(rows.attributes @ self._rates, dtype=np.float32)


@dataclass(kw_only=True)
class EASE(_Peer):
    """Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, equation 8, in NumPy.

    Attribute values are further inputs with `attribute_weight`, where that is not 0.
    """

    regularisation: float
    attribute_weight: float = 0.0

    _weights: Scores = field(init=False, repr=False)

    def _fit(self, matrix: sparse.csr_matrix, train: Interactions) -> None:
        inputs = self._inputs(matrix, train)
        gram = np.asarray((inputs.T @ inputs).toarray(), dtype=np.float64)
        gram[np.diag_indices_from(gram)] += self.regularisation
        inverse = np.linalg.inv(gram)
        weights = inverse / -np.diagonal(inverse)
        np.fill_diagonal(weights, 0.0)
        self._weights = weights[:, : self.item_count].astype(np.float32)

    def _scores(self, matrix: sparse.csr_matrix, rows: Interactions) -> Scores:
        return np.asarray(self._inputs(matrix, rows) @ self._weights, dtype=np.float32)

    def _inputs(self, matrix: sparse.csr_matrix, rows: Interactions) -> sparse.csr_matrix:
        if self.attribute_weight == 0 or rows.attributes is None:
            return matrix
        return sparse.csr_matrix(sparse.hstack([matrix, rows.attributes * np.float32(self.attribute_weight)]))


@dataclass(kw_only=True)
class _ImplicitFactors(_Peer):
    """Factor models of implicit score all items by products with the users' factors."""

    factors: int = 100
    regularisation: float = 0.01
    iterations: int = 15

    def _fit(self, matrix: sparse.csr_matrix, train: Interactions) -> None:
        self._model = self._made(
            factors=self.factors,
            regularization=self.regularisation,
            iterations=self.iterations,
            num_threads=1,
            random_state=_SEED,
            use_gpu=False,
        )
        self._model.fit(matrix, show_progress=False)

    def _scores(self, matrix: sparse.csr_matrix, rows: Interactions) -> Scores:
        return np.asarray(self._users(matrix, rows) @ self._model.item_factors.T, dtype=np.float32)

    @abstractmethod
    def _made(self, **settings: Any) -> Any:
        """The model, not fitted yet."""

    @abstractmethod
    def _users(self, matrix: sparse.csr_matrix, rows: Interactions) -> Scores:
        """The users' factors, float32 (users, factors)."""


@dataclass(kw_only=True)
class ImplicitALS(_ImplicitFactors):
    """Alternating least squares of implicit; users are folded in."""

    alpha: float = 1.0

    def _made(self, **settings: Any) -> Any:
        from implicit.als import AlternatingLeastSquares

        return AlternatingLeastSquares(alpha=self.alpha, **settings)

    def _users(self, matrix: sparse.csr_matrix, rows: Interactions) -> Scores:
        folded: Scores = self._model.recalculate_user(np.arange(len(rows)), matrix)
        return folded


@dataclass(kw_only=True)
class ImplicitBPR(_ImplicitFactors):
    """Bayesian personalised ranking of implicit, for users that were learned from."""

    learning_rate: float = 0.01

    def _made(self, **settings: Any) -> Any:
        from implicit.bpr import BayesianPersonalizedRanking

        return BayesianPersonalizedRanking(learning_rate=self.learning_rate, **settings)

    def _users(self, matrix: sparse.csr_matrix, rows: Interactions) -> Scores:
        if rows.users is None:
            raise ValueError("BPR has no factors for users that it has not learned from")
        known: Scores = self._model.user_factors[rows.users]
        return known


@dataclass(kw_only=True)
class ImplicitKNN(_Peer):
    """Item-to-item neighbours of implicit: cosine, TF-IDF or BM25."""

    weighting: str = "cosine"
    neighbours: int = 20
    k1: float = 1.2
    b: float = 0.75

    def _fit(self, matrix: sparse.csr_matrix, train: Interactions) -> None:
        from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender

        if self.weighting == "bm25":
            model = BM25Recommender(K=self.neighbours, K1=self.k1, B=self.b, num_threads=1)
        else:
            classes = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender}
            model = classes[self.weighting](K=self.neighbours, num_threads=1)
        model.fit(matrix, show_progress=False)
        self._similarity = sparse.csr_matrix(model.similarity)

    def _scores(self, matrix: sparse.csr_matrix, rows: Interactions) -> Scores:
        return np.asarray((matrix @ self._similarity).toarray(), dtype=np.float32)


@dataclass(kw_only=True)
class _Irspack(_Peer):
    """irspack's models score users that they have not learned from by their histories."""

    def _fit(self, matrix: sparse.csr_matrix, train: Interactions) -> None:
        self._model = self._made(sparse.csr_matrix(matrix, dtype=np.float64), train)
        self._model.learn()

    @abstractmethod
    def _made(self, matrix: sparse.csr_matrix, train: Interactions) -> Any:
        """The model, not learned yet."""

    def _scores(self, matrix: sparse.csr_matrix, rows: Interactions) -> Scores:
        histories = sparse.csr_matrix(matrix, dtype=np.float64)
        return np.array(self._model.get_score_cold_user(histories, *self._besides(rows)), dtype=np.float32)

    def _besides(self, rows: Interactions) -> tuple[sparse.csr_matrix | None, ...]:
        """What the model reads of users besides their histories."""
        return ()


@dataclass(kw_only=True)
class IrspackIALS(_Irspack):
    """iALS, iALS++ (``solver = "IALSPP"``), or feature-aware iALS (``feature_weight`` above 0)."""

    factors: int = 128
    alpha: float = 0.1
    regularisation: float = 0.003
    exponent: float = 1.0
    """ν: how the penalty grows with what a user or an item has."""
    solver: Literal["CG", "CHOLESKY", "IALSPP"] = "CG"
    iterations: int = 16
    feature_weight: float = 0.0
    """Penalty of the features' factors; 0: no features."""

    def _made(self, matrix: sparse.csr_matrix, train: Interactions) -> Any:
        from irspack.recommenders import IALSRecommender

        features: dict[str, Any] = {}
        if self.feature_weight > 0:
            features = {"user_features": train.attributes, "lambda_user_feature": self.feature_weight}
        return IALSRecommender(
            matrix,
            n_components=self.factors,
            alpha0=self.alpha,
            reg=self.regularisation,
            nu=self.exponent,
            solver_type=self.solver,
            train_epochs=self.iterations,
            n_threads=1,
            random_seed=_SEED,
            **features,
        )

    def _besides(self, rows: Interactions) -> tuple[sparse.csr_matrix | None, ...]:
        return (rows.attributes,) if self.feature_weight > 0 else ()


@dataclass(kw_only=True)
class IrspackEDLAE(_Irspack):
    """Steck, "Autoencoders that don't overfit towards the identity", NeurIPS 2020."""

    regularisation: float = 1.0
    dropout: float = 0.1

    def _made(self, matrix: sparse.csr_matrix, train: Interactions) -> Any:
        from irspack.recommenders import EDLAERecommender

        return EDLAERecommender(matrix, reg=self.regularisation, dropout_p=self.dropout)


@dataclass(kw_only=True)
class IrspackSLIM(_Irspack):
    """Ning and Karypis, "SLIM: sparse linear methods for top-N recommender systems", ICDM 2011."""

    alpha: float = 0.05
    l1_ratio: float = 0.01

    def _made(self, matrix: sparse.csr_matrix, train: Interactions) -> Any:
        from irspack.recommenders import SLIMRecommender

        return SLIMRecommender(matrix, alpha=self.alpha, l1_ratio=self.l1_ratio, n_threads=1)


@dataclass(kw_only=True)
class IrspackRP3beta(_Irspack):
    """Paudel et al., "Updatable, accurate, diverse, and scalable recommendations", TiiS 2017."""

    alpha: float = 1.0
    beta: float = 0.6
    neighbours: int = 100
    normalise: bool = False

    def _made(self, matrix: sparse.csr_matrix, train: Interactions) -> Any:
        from irspack.recommenders import RP3betaRecommender

        return RP3betaRecommender(
            matrix,
            alpha=self.alpha,
            beta=self.beta,
            top_k=self.neighbours,
            normalize_weight=self.normalise,
            n_threads=1,
        )
