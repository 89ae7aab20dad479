"""The spectral model against the formulas of its documentation, written with dense matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.spectral import Spectral


def users(rows: int, items: int, seed: int, attributes: int = 0) -> sparse.csr_matrix:
    """Weighted rows, the attributes (one or two of each row) behind the items; item 2 is nobody's."""
    rng = np.random.default_rng(seed)
    tastes = rng.random((rows, 3)) @ rng.random((3, items))
    held = (rng.random((rows, items)) < tastes / 2) * rng.integers(1, 4, (rows, items))
    held[:, 2] = 0
    known = np.zeros((rows, attributes))
    for column in rng.integers(0, max(attributes, 1), (2, rows)) if attributes else ():
        known[np.arange(rows), column] = 1
    return sparse.csr_matrix(np.hstack([held, known]), dtype=np.float32)


def spectrum(held: NDArray[np.float64], model: Spectral) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues, descending, and vectors of the weighted co-occurrences."""
    totals, counts = held.sum(axis=1), np.count_nonzero(held, axis=0)
    rows = np.where(totals > 0, np.maximum(totals, 1) ** (-2 * model.row_exponent), 0)
    columns = np.where(counts > 0, np.maximum(counts, 1.0) ** -model.item_exponent, 0)
    values, vectors = np.linalg.eigh(columns[:, None] * (held.T @ (rows[:, None] * held)) * columns)
    return values[::-1], vectors[:, ::-1]


@pytest.mark.parametrize(("items", "factors"), [(30, 5), (30, 12), (9, 20)])
@pytest.mark.parametrize("exponents", [(0.3, 0.3, 1.5), (0.5, 0.0, 0.7)])
def test_products_of_factors_are_those_of_the_strongest_directions(
    items: int, factors: int, exponents: tuple[float, float, float]
) -> None:
    row, item, spectral = exponents
    model = Spectral(
        factors=factors, row_exponent=row, item_exponent=item, spectral_exponent=spectral, unit_rank=4
    )
    histories = users(80, items, seed=1)
    model.fit(histories, show_progress=False)
    values, vectors = spectrum(histories.toarray().astype(np.float64), model)
    kept = values[:factors] > 1e-8 * values[0]
    values, vectors = values[:factors][kept], vectors[:, :factors][:, kept]
    expected = vectors @ np.diag((values / values[3]) ** spectral) @ vectors.T
    assert model.item_factors.shape == (items, kept.sum())
    np.testing.assert_allclose(
        model.item_factors.astype(np.float64) @ model.item_factors.T, expected, rtol=1e-4, atol=1e-5
    )
    assert not model.item_factors[2].any()


def test_fewer_directions_than_asked_for_are_enough() -> None:
    """Two kinds of users have two directions; nobody has none, and everything is popular alike."""
    two = sparse.csr_matrix(np.kron(np.eye(2), np.ones((10, 4))), dtype=np.float32)
    model = Spectral(factors=6).fit(two, show_progress=False)
    assert model.item_factors.shape == (8, 2)
    ids, scores = model.recommend(0, two[0], N=8, filter_already_liked_items=False)
    assert set(ids[:4].tolist()) == {0, 1, 2, 3}
    assert scores[3] > 0.1 > scores[4]
    nothing = Spectral().fit(sparse.csr_matrix((3, 5), dtype=np.float32), show_progress=False)
    assert nothing.recommend(0, two[0, :5], N=5)[0].size == 1


def expectation(held: NDArray[np.float64], known: NDArray[np.float64], model: Spectral) -> Any:
    """What the attributes of somebody let expect of each item, projected on the model's directions."""
    totals = held.sum(axis=1)
    scaled = np.where(totals[:, None] > 0, held / np.maximum(totals, 1)[:, None] ** model.row_exponent, 0)
    mean, average = known.mean(axis=0), scaled.mean(axis=0)
    around = known - mean
    added = np.linalg.solve(around.T @ around + 100 * np.eye(known.shape[1]), around.T @ scaled)
    factors = model.item_factors.astype(np.float64)
    onto = factors @ np.diag(1 / np.square(factors).sum(axis=0)) @ factors.T
    scale = held.sum() / scaled.sum()
    return lambda values: scale * onto @ (average + (values - mean) @ added)


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_attributes_let_expect_what_a_ridge_regression_says(seed: int) -> None:
    histories = users(150, 20, seed, attributes=4)
    model = Spectral(factors=6, item_count=20, history_offset=1.0).fit(histories, show_progress=False)
    dense = histories.toarray().astype(np.float64)
    expected = expectation(dense[:, :20], dense[:, 20:], model)
    for values in ([1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0]):
        row = np.zeros((1, 24), np.float32)
        row[0, 20:] = np.array(values) / sum(values)  # together they count 1
        asked = sparse.csr_matrix(row)
        ids, scores = model.recommend(0, asked, N=20)
        wanted = expected(np.array(values, dtype=np.float64))
        positive = scores > 0
        np.testing.assert_allclose(scores[positive], wanted[ids[positive]], rtol=1e-3, atol=1e-4)
        assert positive.sum() == np.count_nonzero(wanted > 1e-4) or np.abs(wanted).min() < 1e-3


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_items_and_attributes_together_explain_the_score(seed: int) -> None:
    histories = users(60, 20, seed, attributes=4)
    model = Spectral(factors=6, item_count=20).fit(histories, show_progress=False)
    batch, scores = model.recommend(np.arange(60), histories, N=20, filter_already_liked_items=False)
    for user in range(5):
        one, alone = model.recommend(user, histories[user], N=20, filter_already_liked_items=False)
        assert one.tolist() == batch[user].tolist()
        assert alone.tobytes() == scores[user].tobytes()
        for item, listed in zip(one.tolist(), alone.tolist(), strict=True):
            score, contributions = model.explain(user, histories[user], item)
            assert score == listed
            assert sum(part for _, part in contributions) == pytest.approx(score, abs=1e-9)
            if listed:
                assert {each for each, _ in contributions} == set(histories[user].indices.tolist())


def test_settings_that_make_no_sense_are_refused() -> None:
    for name, value in (("unit_rank", 0), ("spectral_exponent", 0.0), ("history_offset", -1.0)):
        with pytest.raises(ValueError, match=name):
            Spectral(**{name: value})
    factors = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="beside prior_factors"):
        Spectral().set_fitted(factors, np.ones(2, np.int64), np.ones((2, 3)))
    with pytest.raises(ValueError, match="not finite"):
        Spectral().set_fitted(factors, np.ones(3, np.int64), np.full((2, 3), np.nan))
