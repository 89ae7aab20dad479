from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender
from implicit.utils import ParameterWarning
from scipy import sparse

from consentier.models.gram_arithmetic import subtract
from consentier.models.item_knn import ItemKNN


def history(seed: int = 1, rows: int = 150, inputs: int = 40) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    bought = rng.random((rows, inputs)) < 0.12
    return sparse.csr_matrix(bought * rng.integers(1, 7, (rows, inputs)) / 2)


def test_the_cosine_is_that_of_implicit() -> None:
    user_items = history()
    peer = CosineRecommender(K=11, num_threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterWarning)
        peer.fit(user_items, show_progress=False)
    expected = peer.similarity.toarray()
    np.fill_diagonal(expected, 0)

    weights = ItemKNN(neighbours=10).fit(user_items, show_progress=False).weights

    np.testing.assert_allclose(weights.toarray(), expected, rtol=1e-6)
    assert weights.has_canonical_format


def test_equal_neighbours_are_taken_by_ascending_item() -> None:
    twins = sparse.csr_matrix(np.ones((3, 4)))
    weights = ItemKNN(neighbours=2).fit(twins, show_progress=False).weights.toarray()
    assert np.argwhere(weights).tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1], [3, 0], [3, 1]]
    assert set(weights[weights > 0].tolist()) == {1.0}


@pytest.mark.parametrize("min_persons", [1, 3])
def test_counts_without_a_person_give_the_fit_without_them(min_persons: int) -> None:
    user_items = history()
    model = ItemKNN(neighbours=5, min_persons=min_persons, item_count=30)

    weights = model.solve(subtract(model.count(user_items), user_items[:7]))

    expected = model.fit(user_items[7:], show_progress=False).weights
    assert weights.shape == expected.shape == (40, 30)
    assert (weights != expected).nnz == 0
    assert weights.data.tobytes() == expected.data.tobytes()


def test_tfidf_weighs_nothing_where_it_cannot() -> None:
    """Whoever has all items but one weighs log(1) by implicit's rule, and no similarity rests on 0 / 0."""
    user_items = sparse.csr_matrix([[1.0, 1, 0], [1, 1, 0], [1, 0, 0]])
    weights = ItemKNN(similarity="tfidf").fit(user_items, show_progress=False).weights
    assert np.isfinite(weights.data).all()


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.1, 0.75), (0.0, 0.0), (3.0, 1.0)])
def test_bm25_is_that_of_implicit(k1: float, b: float) -> None:
    user_items = history()
    peer = BM25Recommender(K=40, K1=k1, B=b, num_threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterWarning)
        peer.fit(user_items, show_progress=False)
    expected = peer.similarity.toarray()
    np.fill_diagonal(expected, 0)

    model = ItemKNN(similarity="bm25", neighbours=39, k1=k1, b=b)

    np.testing.assert_allclose(model.fit(user_items, show_progress=False).weights.toarray(), expected)


@pytest.mark.parametrize(("name", "value"), [("k1", -0.1), ("k1", math.inf), ("b", 1.1), ("b", math.nan)])
def test_bm25_has_parameters_in_bounds(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        ItemKNN(similarity="bm25", **{name: value})  # type: ignore[arg-type]


def test_only_the_cosine_is_a_function_of_counts() -> None:
    counted = ItemKNN().count(history())
    with pytest.raises(ValueError, match="no function"):
        ItemKNN(similarity="bm25").solve(counted)
    with pytest.raises(ValueError, match="min_persons"):
        ItemKNN(min_persons=2).solve(counted)
