"""Factor models: the arithmetic, compiled and with NumPy alone, and ALS against ``implicit``."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from consentier.models import factor_scoring
from consentier.models.als import ALS
from consentier.models.factor_scoring import (
    FoldIn,
    exact_scores,
    fold_in,
    largest_norm,
    positive_items,
    repeats,
)
from consentier.models.factor_solver import fold_in_rows, gram_diagonal, principal_axes


def histories(rows: int, inputs: int, seed: int = 0, longest: int | None = None) -> sparse.csr_matrix:
    """Rows of very different lengths, among them an empty one, with weights."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, (longest or inputs) + 1, rows)
    lengths[0] = 0
    chosen = [np.sort(rng.choice(inputs, length, replace=False)) for length in lengths]
    data = rng.random(lengths.sum()).astype(np.float32) * 3
    indices = np.concatenate(chosen).astype(np.int32)
    return sparse.csr_matrix((data, indices, np.append(0, np.cumsum(lengths))), shape=(rows, inputs))


def axes(inputs: int, size: int, seed: int = 1) -> NDArray[np.float32]:
    return principal_axes(np.random.default_rng(seed).standard_normal((inputs, size)) / np.sqrt(size))


settings = st.builds(
    FoldIn,
    unobserved_weight=st.sampled_from([0.001, 0.1, 2.0]),
    regularisation=st.sampled_from([1e-6, 0.01, 10.0]),
    frequency_exponent=st.sampled_from([0.0, 0.5, 1.0]),
    history_exponent=st.sampled_from([0.0, 0.5, 1.0]),
    history_offset=st.sampled_from([0.0, 7.0]),
    entry_regularisation=st.sampled_from([0.0, 0.3]),
    observed_weight=st.sampled_from([0.0, 0.1]),
)


@given(st.integers(1, 24), st.integers(1, 60), settings, st.integers(0, 99), st.booleans())
def test_the_compiled_solver_equals_the_plain_one_in_every_bit(
    size: int, inputs: int, folding: FoldIn, seed: int, expecting: bool
) -> None:
    matrix, factors, priors = histories(12, inputs, seed), axes(inputs, size, seed), None
    if expecting:
        items = max(1, inputs - 5)
        factors = axes(items, size, seed)
        priors = np.random.default_rng(seed).standard_normal((inputs - items + 1, size)).astype(np.float32)
    gram = gram_diagonal(factors)
    together = fold_in_rows(matrix, factors, gram, folding, priors=priors, threads=1)
    for row, solved in enumerate(together):
        own = slice(matrix.indptr[row], matrix.indptr[row + 1])
        inside = matrix.indices[own].astype(np.int64)
        one = fold_in(factors, gram, inside, matrix.data[own], folding, priors)
        assert one.tobytes() == solved.tobytes()


@given(st.integers(1, 12), st.integers(1, 30), settings, st.integers(0, 99))
def test_a_history_moves_away_from_what_attributes_let_expect(
    size: int, items: int, folding: FoldIn, seed: int
) -> None:
    """Against the normal equations of the penalised squares, with the expectation as their mean."""
    if folding.regularisation < 1e-5:
        return  # too near to a singular system to compare
    rng = np.random.default_rng(seed)
    factors, matrix = axes(items, size, seed), histories(4, items + 3, seed)
    priors = rng.standard_normal((4, size)).astype(np.float32)
    gram, exact = gram_diagonal(factors), factors.astype(np.float64)
    for solved, row in zip(
        fold_in_rows(matrix, factors, gram, folding, priors=priors), matrix.toarray(), strict=True
    ):
        known, attributes = row[:items].astype(np.float64), row[items:].astype(np.float64)
        mean = attributes @ priors[:3] * np.count_nonzero(attributes) + attributes.sum() * priors[3]
        total = known.sum()
        ridge = folding.regularisation * (total + folding.unobserved_weight * items) ** (
            folding.frequency_exponent
        )
        ridge += folding.entry_regularisation * np.count_nonzero(known)
        if total + folding.history_offset > 0:
            known /= (total + folding.history_offset) ** folding.history_exponent
        system = exact.T @ (known[:, None] * exact) + np.diag(folding.unobserved_weight * gram + ridge)
        right = exact.T @ (with_observed(known, folding) * (1 - exact @ mean))
        np.testing.assert_allclose(system @ (solved - mean), right, rtol=1e-6, atol=1e-8)


@given(st.integers(1, 24), st.integers(1, 60), settings, st.integers(0, 99))
def test_folding_in_solves_the_normal_equations(size: int, inputs: int, folding: FoldIn, seed: int) -> None:
    matrix, factors = histories(6, inputs, seed), axes(inputs, size, seed)
    gram = gram_diagonal(factors)
    exact = factors.astype(np.float64)
    for row, solved in enumerate(fold_in_rows(matrix, factors, gram, folding)):
        weights = matrix[row].toarray().ravel().astype(np.float64)
        total = weights.sum()
        ridge = (
            folding.regularisation
            * (total + folding.unobserved_weight * inputs) ** folding.frequency_exponent
        ) + folding.entry_regularisation * np.count_nonzero(weights)
        if total + folding.history_offset > 0:
            weights /= (total + folding.history_offset) ** folding.history_exponent
        if ridge < 1e-5:
            continue  # too near to a singular system to compare
        system = exact.T @ (weights[:, None] * exact) + np.diag(folding.unobserved_weight * gram + ridge)
        right = exact.T @ with_observed(weights, folding)
        np.testing.assert_allclose(system @ solved, right, rtol=1e-8, atol=1e-10)


def with_observed(weights: NDArray[np.float64], folding: FoldIn) -> NDArray[np.float64]:
    """What each input counts for 1: its weight, and what it gets of the unobserved weight."""
    return weights + folding.observed_weight * (weights > 0)


@given(st.integers(1, 12), st.integers(1, 30), settings, st.integers(0, 99))
def test_contributions_sum_to_the_score(size: int, inputs: int, folding: FoldIn, seed: int) -> None:
    if folding.regularisation < 1e-5:
        return  # too near to a singular system to compare
    matrix, factors = histories(4, inputs, seed), axes(inputs, size, seed)
    gram, items = gram_diagonal(factors), np.arange(inputs)
    for row in range(4):
        own = slice(matrix.indptr[row], matrix.indptr[row + 1])
        inside, weights = matrix.indices[own].astype(np.int64), matrix.data[own].copy()
        weights[::3] = 0  # not there
        found = factor_scoring.contributions(factors, gram, inside, weights, folding, None, items)
        vector = fold_in(factors, gram, inside, weights, folding)
        np.testing.assert_allclose(
            found.sum(axis=0), factors.astype(np.float64) @ vector, rtol=1e-6, atol=1e-8
        )
        assert not found[::3].any()
        there = weights > 0
        same = fold_in(factors, gram, inside[there], weights[there], folding)
        np.testing.assert_allclose(vector, same, rtol=1e-9, atol=1e-12)


def test_a_history_is_folded_in_as_hu_koren_and_volinsky_do() -> None:
    """With all of the unobserved weight, what a history holds is not pulled to 0."""
    factors = axes(9, 4)
    exact = factors.astype(np.float64)
    inputs, weights = np.array([1, 3, 8]), np.array([1, 0.25, 4], np.float32)
    folding = FoldIn(
        unobserved_weight=0.2, regularisation=1e-12, frequency_exponent=0.0,
        entry_regularisation=0.06, observed_weight=0.2,
    )  # fmt: skip
    confidence, wanted = np.ones(9), np.zeros(9)
    confidence[inputs], wanted[inputs] = 1 + weights / 0.2, 1
    system = exact.T @ (confidence[:, None] * exact) + 3 * 0.06 / 0.2 * np.eye(4)
    expected = np.linalg.solve(system, exact.T @ (confidence * wanted))
    found = fold_in(factors, gram_diagonal(factors), inputs, weights, folding)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_long_and_short_histories_are_one_formula() -> None:
    """On either side of as many items as factors, where another system is solved."""
    factors = axes(80, 20)
    gram, folding = (
        gram_diagonal(factors),
        FoldIn(unobserved_weight=0.3, regularisation=0.05, frequency_exponent=1.0),
    )
    for count in (18, 19, 20, 21, 22):
        inputs, weights = np.arange(count), np.ones(count, np.float32)
        system = factor_scoring.system_matrix(factors, gram, inputs, weights, folding)
        expected = np.linalg.solve(system, factors[:count].astype(np.float64).sum(axis=0))
        np.testing.assert_allclose(fold_in(factors, gram, inputs, weights, folding), expected, rtol=1e-9)


@given(
    st.integers(1, 40),
    st.integers(1, 200),
    st.integers(0, 12),
    st.integers(0, 999),
    st.sampled_from([1e-20, 1.0, 1e18]),
    st.booleans(),
)
def test_the_best_items_are_exact_whatever_the_products_are(
    size: int, items: int, n: int, seed: int, scale: float, rounded: bool
) -> None:
    rng = np.random.default_rng(seed)
    factors = (rng.standard_normal((items, size)) * scale).astype(np.float32)
    if rounded:  # many equal scores
        factors = (np.sign(factors) * scale).astype(np.float32)
    vector, visible = rng.standard_normal(size).round(1), rng.random(items) < 0.8
    everything = exact_scores(factors, np.arange(items), vector)
    order = np.lexsort((np.arange(items), -everything))
    expected = [item for item in order if visible[item] and everything[item] > 0][:n]

    found, scores = positive_items(factors, largest_norm(factors), vector, visible, n)

    assert found.tolist() == expected
    assert scores.tobytes() == everything[found].tobytes()
    # The products may come from anywhere, added in any order: backwards, say.
    backwards = factors[:, ::-1] @ vector[::-1].astype(np.float32)
    again, _ = positive_items(
        factors, largest_norm(factors), vector, visible, n, approximate=np.ascontiguousarray(backwards)
    )
    assert again.tolist() == expected


@given(
    st.integers(1, 40),
    st.integers(0, 40),
    st.integers(0, 12),
    st.integers(0, 999),
    st.sampled_from([0.0, 0.5, 3.0]),
)
@example(37, 3, 2, 503, 3.0)  # an item of the history and another of equal score
def test_the_best_items_are_exact_where_those_of_the_history_gain(
    items: int, seen: int, n: int, seed: int, repeat_weight: float
) -> None:
    rng = np.random.default_rng(seed)
    factors = np.sign(rng.standard_normal((items, 3))).astype(np.float32)  # many equal scores
    factors[rng.random(items) < 0.2] = 0
    vector, visible = rng.standard_normal(3).round(1), rng.random(items) < 0.8
    inputs = np.sort(rng.permutation(items + 2)[:seen]).astype(np.int64)  # two attributes
    weights = rng.integers(1, 4, inputs.size).astype(np.float32)
    everything = exact_scores(factors, np.arange(items), vector)
    for number, weight in zip(inputs.tolist(), weights.tolist(), strict=True):
        if number < items and factors[number].any():
            everything[number] += repeat_weight * weight
    order = np.lexsort((np.arange(items), -everything))
    expected = [item for item in order if visible[item] and everything[item] > 0][:n]

    again = repeats(factors, inputs, weights, repeat_weight, items)
    found, scores = positive_items(factors, largest_norm(factors), vector, visible, n, added=again)

    assert found.tolist() == expected
    assert scores.tobytes() == everything[found].tobytes()


def test_products_that_overflow_do_not_hide_items() -> None:
    factors = np.array([[3e38, 3e38], [1.0, 0.0], [-3e38, 0.0]], np.float32)
    found, scores = positive_items(
        factors, largest_norm(factors), np.array([10.0, 10.0]), np.ones(3, np.bool_), 3
    )
    assert found.tolist() == [0, 1]
    assert np.isfinite(scores).all()


def test_exact_scores_are_added_in_the_order_of_the_factors() -> None:
    factors = np.array([[1e8, 1.0, -1e8]], np.float32)
    vector = np.array([1e9, 1.0, 1e9])
    assert exact_scores(factors, np.array([0]), vector).tolist() == [(1e17 + 1.0) - 1e17]
    assert exact_scores(factors[:, ::-1], np.array([0]), vector[::-1]).tolist() == [(-1e17 + 1.0) + 1e17]


def test_principal_axes_keep_all_products() -> None:
    factors = np.random.default_rng(0).standard_normal((9000, 12)) @ np.diag(np.arange(12))
    turned = principal_axes(factors)
    np.testing.assert_allclose(turned[:50].astype(np.float64) @ turned.T, factors[:50] @ factors.T, atol=1e-3)
    gram = turned.T.astype(np.float64) @ turned
    np.testing.assert_allclose(gram, np.diag(gram_diagonal(turned)), atol=0.1)
    with threadpool_limits(limits=2):
        assert principal_axes(factors).tobytes() == turned.tobytes()


@pytest.mark.parametrize(("weight", "unobserved"), [(1.0, 1.0), (1.0, 0.1), (2.0, 0.5)])
def test_without_frequencies_it_is_what_implicit_computes(weight: float, unobserved: float) -> None:
    """The same objective in other words, and so the same factors from the same start.

    With an own weight c and an unobserved weight a, ours is ``a`` times theirs for the confidence 1 + c / a
    and the target 1 / s, where s = (1 + c / a) / (c / a). They aim at 1: their factors are longer by sqrt(s).
    """
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 6, 90)
    chance = np.where(groups[:, None] == np.arange(48) // 8, 0.7, 0.05)
    bought = sparse.csr_matrix((rng.random((90, 48)) < chance).astype(np.float32))
    weighted = bought * np.float32(weight)
    confidence = 1 + weight / unobserved
    scale = confidence / (weight / unobserved)
    own = ALS(factors=8, iterations=6, regularisation=0.7, unobserved_weight=unobserved, frequency_exponent=0)
    peer = AlternatingLeastSquares(
        factors=8,
        regularization=0.7 / unobserved * scale,
        alpha=confidence,
        iterations=6,
        use_cg=False,
        dtype=np.float64,
        num_threads=1,
    )
    start = np.random.default_rng(0).standard_normal((48, 8)) * (0.1 / np.sqrt(8))
    peer.item_factors, peer.user_factors = start * np.sqrt(scale), np.zeros((90, 8))

    own.fit(weighted, show_progress=False)
    with threadpool_limits(limits=1, user_api="blas"):
        peer.fit(bought, show_progress=False)
    # Theirs ended with the items: solve for the users once more.
    users = peer.recalculate_user(np.arange(90), bought)
    theirs = users @ peer.item_factors.T / scale
    vectors = fold_in_rows(weighted, own.item_factors, own.factor_gram, own.folding)
    np.testing.assert_allclose(vectors @ own.item_factors.T, theirs, atol=1e-4 * np.abs(theirs).max())
    ids, _ = own.recommend(np.arange(90), weighted, N=5)
    best = np.argsort(-np.where(bought.toarray() > 0, -np.inf, theirs), axis=1)[:, :5]
    assert (ids == best).mean() > 0.98


def objective(bought: sparse.csr_matrix, model: ALS) -> float:
    """The loss at the model's item factors, with the best user factors for them."""
    items = model.item_factors.astype(np.float64)
    users = fold_in_rows(bought, model.item_factors, model.factor_gram, model.folding)
    dense, products = bought.toarray().astype(np.float64), users @ items.T
    loss = (dense * (products - 1) ** 2).sum() + model.unobserved_weight * (products**2).sum()
    for side, own, others in ((users, dense, dense.shape[1]), (items, dense.T, dense.shape[0])):
        frequency = own.sum(axis=1) + model.unobserved_weight * others
        loss += (model.regularisation * frequency**model.frequency_exponent * (side**2).sum(axis=1)).sum()
    return float(loss)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_every_iteration_lowers_the_loss(exponent: float) -> None:
    bought = histories(60, 40, longest=12)
    losses = [
        objective(
            bought,
            ALS(factors=6, iterations=count, frequency_exponent=exponent).fit(bought, show_progress=False),
        )
        for count in range(1, 9)
    ]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(losses))
    assert losses[-1] < losses[0]


def test_the_penalty_of_popular_items_grows_with_their_frequency() -> None:
    bought = histories(200, 30, longest=10)
    bought = sparse.csr_matrix(bought.toarray() * (np.arange(30) < np.arange(200)[:, None] % 30 + 1))
    often = np.argsort(-np.diff(bought.tocsc().indptr))[:3]

    def share(exponent: float) -> float:
        model = ALS(factors=4, frequency_exponent=exponent, regularisation=0.3, unobserved_weight=0.1)
        norms = (model.fit(bought, show_progress=False).item_factors ** 2).sum(axis=1)
        return float(norms[often].sum() / norms.sum())

    assert share(1.0) < share(0.0)


_FIT = """
import sys, hashlib
import numpy as np
from scipy import sparse
from consentier.models.als import ALS
rng = np.random.default_rng(0)
bought = sparse.csr_matrix((rng.random((400, 300)) < 0.1).astype(np.float32))
model = ALS(factors=70, iterations=2, threads=int(sys.argv[1])).fit(bought, show_progress=False)
ids, scores = model.recommend(np.arange(400), bought, N=10)
print(*(hashlib.sha256(array.tobytes()).hexdigest() for array in (model.item_factors, ids, scores)))
"""


def test_neither_our_threads_nor_those_of_the_libraries_change_a_bit() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", _FIT, threads],
            env={**os.environ, "OPENBLAS_NUM_THREADS": blas, "OMP_NUM_THREADS": blas},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for threads, blas in (("1", "1"), ("3", "2"))
    }
    assert len(found) == 1
