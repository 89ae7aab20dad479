from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.scoring import score_rows, top_items, with_second_hop


def weights_matrix(inputs: int, items: int, density: float, seed: int) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(inputs, items)) * (rng.random((inputs, items)) < density)
    return sparse.csr_matrix(dense.astype(np.float32))


def added_one_by_one(
    matrix: sparse.csr_matrix, rows: NDArray[np.int64], weights: NDArray[np.float32]
) -> dict[int, float]:
    sums: dict[int, float] = {}
    for row, weight in zip(rows.tolist(), weights.tolist(), strict=True):
        for k in range(matrix.indptr[row], matrix.indptr[row + 1]):
            item = int(matrix.indices[k])
            sums[item] = sums.get(item, 0.0) + weight * float(matrix.data[k])
    return sums


@given(seed=st.integers(0, 1000), hop_items=st.integers(1, 12), length=st.integers(0, 4))
def test_the_best_items_speak_too(seed: int, hop_items: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = weights_matrix(10, 10, 0.4, seed)
    rows = np.sort(rng.permutation(10)[:length]).astype(np.int64)
    weights = rng.integers(1, 4, length).astype(np.float32)
    ids, scores = score_rows(matrix.indptr, matrix.indices, matrix.data, rows, weights, 10)

    both, both_weights = with_second_hop(rows, weights, ids, scores, hop_weight=0.5, hop_items=hop_items)

    first = np.zeros(10)
    first[ids] = scores
    ranked = [item for item in np.lexsort((np.arange(10), -first)) if first[item] > 0 and item not in rows]
    passed = sorted(ranked[:hop_items])
    assert both.tolist() == [*rows.tolist(), *passed]
    np.testing.assert_array_equal(
        both_weights, [*weights, *(np.float32(0.5) * first[passed].astype(np.float32))]
    )
    assert both_weights.dtype == np.float32


@given(
    seed=st.integers(0, 10_000),
    items=st.sampled_from([1, 5, 40, 2000]),
    density=st.sampled_from([0.0, 0.02, 0.5]),
    length=st.integers(0, 12),
)
def test_equals_a_sequential_sum_in_every_bit(seed: int, items: int, density: float, length: int) -> None:
    # 2,000 items with few entries take the slot table, few items the dense sum
    matrix = weights_matrix(8, items, density, seed)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 8, length)
    weights = rng.normal(size=length).astype(np.float32)

    ids, scores = score_rows(matrix.indptr, matrix.indices, matrix.data, rows, weights, items)

    expected = added_one_by_one(matrix, rows, weights)
    assert ids.dtype == np.int64
    assert scores.dtype == np.float64
    assert ids.tolist() == sorted(expected)
    assert scores.tolist() == [expected[item] for item in sorted(expected)]


def test_threads_do_not_disturb_each_other() -> None:
    matrix = weights_matrix(500, 500, 0.1, 0)
    rng = np.random.default_rng(1)
    requests = [(rng.integers(0, 500, 9), rng.random(9).astype(np.float32)) for _ in range(200)]

    def answer(request: tuple[NDArray[np.int64], NDArray[np.float32]]) -> bytes:
        ids, scores = score_rows(matrix.indptr, matrix.indices, matrix.data, *request, 500)
        return ids.tobytes() + scores.tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, requests)) == [answer(request) for request in requests]


@pytest.mark.parametrize("row", [-1, 4])
def test_rows_outside_the_matrix_are_refused(row: int) -> None:
    matrix = weights_matrix(4, 4, 0.5, 0)
    with pytest.raises(IndexError, match=r"\[0, 4\)"):
        score_rows(
            matrix.indptr, matrix.indices, matrix.data, np.array([row]), np.ones(1, dtype=np.float32), 4
        )


def test_rows_and_weights_must_agree() -> None:
    matrix = weights_matrix(4, 4, 0.5, 0)
    with pytest.raises(ValueError, match="equally long"):
        score_rows(
            matrix.indptr, matrix.indices, matrix.data, np.array([1, 2]), np.ones(1, dtype=np.float32), 4
        )


@given(
    scores=st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 2.0]), max_size=30),
    n=st.integers(0, 35),
    hidden=st.sets(st.integers(0, 59)),
)
def test_best_first_and_ties_by_ascending_id(scores: list[float], n: int, hidden: set[int]) -> None:
    ids = np.arange(0, 2 * len(scores), 2)
    mask = np.zeros(60, dtype=np.bool_)
    mask[sorted(hidden)] = True

    best, best_scores = top_items(ids, np.array(scores), n, hidden=mask)

    pairs = [(item, score) for item, score in zip(ids.tolist(), scores, strict=True) if item not in hidden]
    expected = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:n]
    assert list(zip(best.tolist(), best_scores.tolist(), strict=True)) == expected


def test_top_items_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match="negative"):
        top_items(np.arange(3), np.zeros(3), -1)
    with pytest.raises(ValueError, match="equally long"):
        top_items(np.arange(3), np.zeros(2), 1)
