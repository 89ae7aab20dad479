from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from consentier.errors import TrainingError
from consentier.models.gram import GRAM_UNIT, GramStatistics, gram_statistics
from consentier.models.gram_arithmetic import subtract
from consentier.models.local_ridge import LocalRidge, dense_ease, solve_local_ridge, touched_targets


def history(rows: int = 200, inputs: int = 40, density: float = 0.15, seed: int = 0) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    # popularity falls with the index, so that columns differ in length
    chance = density * 2 * (1 - np.arange(inputs) / inputs)
    return sparse.csr_matrix((rng.random((rows, inputs)) < chance).astype(np.float32))


def brute_force(
    statistics: GramStatistics,
    targets: int,
    neighbours: int,
    regularisation: float,
    exponent: float,
    popularity_regularisation: float,
) -> NDArray[np.float64]:
    """Solve each system as the documentation states it, with NumPy's solver."""
    gram = statistics.gram.toarray() * GRAM_UNIT
    scale = np.maximum(statistics.counts, 1.0) ** -exponent
    scaled = gram * scale[:, None] * scale[None, :]
    weights = np.zeros((gram.shape[0], targets))
    for j in range(targets):
        ranked = np.lexsort((np.arange(gram.shape[0]), -scaled[:, j]))
        order = [i for i in ranked if i != j and (scaled[i, j] or neighbours >= gram.shape[0])]
        chosen = np.array(sorted(order[:neighbours]), dtype=np.int64)
        block = scaled[np.ix_(chosen, chosen)]
        block = block + regularisation * np.eye(chosen.size)
        block += popularity_regularisation * np.diag(np.diagonal(scaled)[chosen])
        weights[chosen, j] = np.linalg.solve(block, scaled[chosen, j]) * scale[chosen] / scale[j]
    return weights


def same_bytes(one: sparse.csr_matrix, other: sparse.csr_matrix) -> bool:
    return all(
        getattr(one, part).tobytes() == getattr(other, part).tobytes()
        for part in ("indptr", "indices", "data")
    )


@settings(deadline=None)  # the first call compiles
@given(
    seed=st.integers(0, 1000),
    inputs=st.integers(2, 25),
    regularisation=st.sampled_from([0.5, 3.0, 50.0]),
    popularity_regularisation=st.sampled_from([0.0, 0.3]),
)
def test_with_all_inputs_it_is_ease(
    seed: int, inputs: int, regularisation: float, popularity_regularisation: float
) -> None:
    user_items = history(rows=60, inputs=inputs, seed=seed)
    statistics = gram_statistics(user_items, row_exponent=0.0, threads=1)

    weights = solve_local_ridge(
        statistics,
        targets=inputs,
        neighbours=inputs,
        regularisation=regularisation,
        popularity_regularisation=popularity_regularisation,
        threads=1,
    )

    dense = user_items.toarray().astype(np.float64)
    expected = dense_ease(dense.T @ dense, regularisation, popularity_regularisation)
    np.testing.assert_allclose(weights.toarray(), expected, atol=1e-6)
    assert (weights.diagonal() == 0).all()


@pytest.mark.parametrize("neighbours", [1, 5, 12, 100])
@pytest.mark.parametrize(("row_exponent", "item_exponent"), [(0.0, 0.0), (0.5, 0.3)])
@pytest.mark.parametrize("popularity_regularisation", [0.0, 0.2])
def test_equals_the_systems_as_documented(
    neighbours: int, row_exponent: float, item_exponent: float, popularity_regularisation: float
) -> None:
    statistics = gram_statistics(history(), row_exponent=row_exponent)

    weights = solve_local_ridge(
        statistics,
        targets=30,
        neighbours=neighbours,
        regularisation=1.0,
        item_exponent=item_exponent,
        popularity_regularisation=popularity_regularisation,
    )

    expected = brute_force(statistics, 30, neighbours, 1.0, item_exponent, popularity_regularisation)
    assert weights.shape == (40, 30)
    assert weights.dtype == np.float32
    assert weights.has_canonical_format
    np.testing.assert_allclose(weights.toarray(), expected, atol=1e-6)


def test_threads_do_not_change_a_byte() -> None:
    statistics = gram_statistics(history(rows=300, inputs=400, density=0.05), row_exponent=0.5)
    settings: dict[str, Any] = {
        "targets": 400, "neighbours": 30, "regularisation": 1.0, "item_exponent": 0.3
    }  # fmt: skip

    one, two, four = (solve_local_ridge(statistics, threads=threads, **settings) for threads in (1, 2, 4))

    assert same_bytes(one, two)
    assert same_bytes(one, four)


def test_top_keeps_the_largest_weights_of_each_target() -> None:
    statistics = gram_statistics(history(), row_exponent=0.5)
    whole = solve_local_ridge(statistics, targets=40, neighbours=20, regularisation=1.0).toarray()

    cut = solve_local_ridge(statistics, targets=40, neighbours=20, regularisation=1.0, top=5).toarray()

    for j in range(40):
        kept = np.flatnonzero(cut[:, j])
        assert set(kept) == set(np.lexsort((np.arange(40), -np.abs(whole[:, j])))[:5])
        np.testing.assert_array_equal(cut[kept, j], whole[kept, j])


def test_equal_inputs_are_chosen_by_ascending_index() -> None:
    # Inputs 1, 2 and 3 occur in the same rows: nothing but the index tells them apart.
    user_items = sparse.csr_matrix([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    weights = solve_local_ridge(
        gram_statistics(user_items, row_exponent=0.0), targets=4, neighbours=2, regularisation=1.0
    )
    assert np.flatnonzero(weights.toarray()[:, 0]).tolist() == [1, 2]


@pytest.mark.parametrize("min_persons", [2, 4])
def test_min_persons_leaves_pairs_out_as_if_they_had_never_met(min_persons: int) -> None:
    user_items = history(rows=60)
    statistics = gram_statistics(user_items, row_exponent=0.5, min_persons=min_persons)
    present = user_items.toarray() > 0
    together = present.T.astype(int) @ present.astype(int)
    gram = statistics.gram.toarray()
    gram[together < min_persons] = 0
    without = replace(statistics, gram=sparse.csr_matrix(gram), persons=None, min_persons=1)
    assert without.gram.nnz < statistics.gram.nnz
    settings: dict[str, Any] = {
        "targets": 40, "neighbours": 10, "regularisation": 5.0, "item_exponent": 0.3
    }  # fmt: skip

    weights = solve_local_ridge(statistics, **settings)

    assert (together[weights.toarray() != 0] >= min_persons).all()
    assert same_bytes(weights, solve_local_ridge(without, **settings))


def test_after_a_withdrawal_only_the_touched_targets_differ() -> None:
    user_items = history(rows=80, inputs=120, density=0.02)
    model = LocalRidge(neighbours=10)
    before = gram_statistics(user_items, row_exponent=model.row_exponent)
    gone = user_items[:1]
    after = subtract(before, gone)

    settings: dict[str, Any] = {"targets": 120, "item_exponent": model.item_exponent}
    touched = touched_targets(before, after, gone.indices, neighbours=10, **settings)
    again = model.solve(after, columns=touched)

    assert 0 < touched.size < 120
    assert touched_targets(before, after, gone.indices, neighbours=119, **settings).size == 120
    expected, old = model.solve(after).toarray(), model.solve(before).toarray()
    merged = old.copy()
    merged[:, touched] = again.toarray()[:, touched]
    np.testing.assert_array_equal(merged, expected)
    assert (old != expected).any()
    assert not again.toarray()[:, np.setdiff1d(np.arange(120), touched)].any()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_persons", [1, 2])
def test_targets_that_are_not_touched_keep_every_byte(seed: int, min_persons: int) -> None:
    rng = np.random.default_rng(seed)
    user_items = sparse.csr_matrix((rng.random((60, 50)) < 0.08) * 1.0)
    model = LocalRidge(neighbours=4, min_persons=min_persons, repeat_weight=0.5)
    before = model.count(user_items)
    gone = user_items[:2]
    after = subtract(before, gone)

    touched = touched_targets(
        before, after, gone.indices, targets=50, neighbours=4, item_exponent=model.item_exponent
    )

    untouched = np.setdiff1d(np.arange(50), touched)
    assert untouched.size
    assert same_bytes(model.solve(before)[:, untouched], model.solve(after)[:, untouched])
    merged = model.solve(after, columns=touched) + model.solve(before, columns=untouched)
    assert same_bytes(sparse.csr_matrix(merged), model.solve(after))


def test_a_fit_equals_its_statistics_solved() -> None:
    user_items = history()
    model = LocalRidge(neighbours=10, repeat_weight=0.25, item_count=30).fit(user_items, show_progress=False)
    statistics = gram_statistics(user_items, row_exponent=model.row_exponent)

    assert same_bytes(model.weights, model.solve(statistics))
    np.testing.assert_array_equal(model.weights.diagonal(), np.full(30, 0.25, dtype=np.float32))
    with pytest.raises(ValueError, match="row_exponent"):
        model.solve(gram_statistics(user_items, row_exponent=0.0))


def test_without_penalty_identical_inputs_still_get_a_finite_solution() -> None:
    user_items = sparse.csr_matrix([[1.0, 1, 1], [1, 1, 1], [1, 0, 0]])  # inputs 1 and 2 are the same
    weights = solve_local_ridge(
        gram_statistics(user_items, row_exponent=0.0), targets=3, neighbours=2, regularisation=0.0
    ).toarray()
    assert np.isfinite(weights).all()
    assert weights[1, 0] + weights[2, 0] == pytest.approx(1.0, abs=1e-4)


def test_a_system_without_solution_is_named() -> None:
    statistics = gram_statistics(sparse.csr_matrix(np.ones((2, 4))), row_exponent=0.0)
    impossible = statistics.gram.toarray()
    impossible[1, 2] = impossible[2, 1] = impossible[1, 1] * 1000  # no data give that
    broken = replace(statistics, gram=sparse.csr_matrix(impossible))
    with pytest.raises(TrainingError, match=r"item 0 .* regularisation"):
        solve_local_ridge(broken, targets=1, neighbours=3, regularisation=0.0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("targets", 5), ("neighbours", 0), ("regularisation", -1.0), ("regularisation", float("nan")),
        ("item_exponent", -0.5), ("popularity_regularisation", float("inf")), ("top", 0),
        ("columns", np.array([4])),
    ],
)  # fmt: skip
def test_arguments_are_checked(argument: str, value: object) -> None:
    statistics = gram_statistics(sparse.csr_matrix(np.eye(4)), row_exponent=0.0)
    arguments: dict[str, Any] = {"targets": 4, "neighbours": 2, "regularisation": 1.0, argument: value}
    with pytest.raises(ValueError, match=argument):
        solve_local_ridge(statistics, **arguments)


def test_progress_counts_every_target() -> None:
    statistics = gram_statistics(history(inputs=300, density=0.02), row_exponent=0.5)
    steps: list[int] = []
    solve_local_ridge(
        statistics, targets=300, neighbours=5, regularisation=1.0, advance=lambda n=1, /: steps.append(n)
    )
    assert sum(steps) == 300
    assert len(steps) > 1
