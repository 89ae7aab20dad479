"""Co-occurrences of sessions: pairs weighed by direction, distance and age, in integers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.gram import (
    GRAM_UNIT,
    GramStatistics,
    GramTruncated,
    SessionOrder,
    gram_statistics,
)
from consentier.models.gram_arithmetic import add, select_inputs, subtract
from consentier.models.item_index import ItemIndex
from consentier.models.local_ridge import LocalRidge, solve_local_ridge, touched_targets
from consentier.models.statistics import Fingerprints, Statistics, read_statistics, write_statistics

INPUTS = 7
untimed = settings(deadline=None)  # the first call compiles

Sessions = tuple[sparse.csr_matrix, SessionOrder]


def matrix_of(
    sessions: list[list[int]], scale: NDArray[np.float64] | None = None, inputs: int = INPUTS
) -> Sessions:
    """Sessions of distinct items, in order, as a canonical matrix of ones and the items' positions."""
    starts = np.concatenate(([0], np.cumsum([len(items) for items in sessions]))).astype(np.int32)
    indices, positions = [], []
    for items in sessions:
        indices += sorted(items)
        positions += [items.index(item) for item in sorted(items)]
    matrix = sparse.csr_matrix(
        (np.ones(len(indices), np.float32), np.array(indices, np.int32), starts),
        shape=(len(sessions), inputs),
    )
    scale = np.ones(len(sessions)) if scale is None else scale
    return matrix, SessionOrder(np.array(positions, np.int64), scale)


def part_of(sessions: Sessions, rows: NDArray[np.bool_]) -> Sessions:
    matrix, order = sessions
    entries = np.repeat(rows, np.diff(matrix.indptr))
    return matrix[rows], SessionOrder(order.positions[entries], order.row_scale[rows])


def count(sessions: Sessions, **settings: Any) -> GramStatistics:
    given_settings = {"row_exponent": 0.15, "threads": 1, "distance_decay": 2.0, **settings}
    return gram_statistics(sessions[0], order=sessions[1], **given_settings)


def dense(statistics: GramStatistics, values: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    gram = statistics.gram
    data = gram.data if values is None else values
    return sparse.csr_matrix((data, gram.indices, gram.indptr), shape=gram.shape).toarray() * GRAM_UNIT


drawn_sessions = st.lists(
    st.permutations(range(INPUTS)).flatmap(lambda items: st.integers(1, 5).map(lambda n: items[:n])),
    min_size=1,
    max_size=9,
)


def assert_same(one: GramStatistics, other: GramStatistics) -> None:
    assert one.digest() == other.digest()
    assert one.forward is not None
    assert other.forward is not None
    assert one.forward.tobytes() == other.forward.tobytes()


@untimed
@given(drawn_sessions, st.sampled_from([None, 0.7, 5.0]), st.sampled_from([0.0, 0.15, 0.5]))
def test_pairs_count_by_distance_and_direction(
    sessions: list[list[int]], decay: float | None, exponent: float
) -> None:
    scale = 1.0 / (1 + np.arange(len(sessions)))
    statistics = count(matrix_of(sessions, scale), distance_decay=decay, row_exponent=exponent)

    expected, forward = np.zeros((INPUTS, INPUTS)), np.zeros((INPUTS, INPUTS))
    for items, weight in zip(sessions, scale, strict=True):
        weight *= len(items) ** (-2 * exponent)
        for p, first in enumerate(items):
            expected[first, first] += weight
            for q in range(p + 1, len(items)):
                value = weight * (1 if decay is None else math.exp(-(q - p - 1) / decay))
                expected[[first, items[q]], [items[q], first]] += value
                forward[first, items[q]] += value
    # Row weights are off by half a step of 2**-16, distances by half a step of 2**-8, or one step at the end.
    tolerance = len(sessions) * 2.0**-7
    np.testing.assert_allclose(dense(statistics), expected, atol=tolerance)
    np.testing.assert_allclose(dense(statistics, statistics.forward), forward, atol=tolerance)
    np.testing.assert_array_equal(
        dense(statistics), dense(statistics, statistics.forward) + dense(statistics, statistics.forward).T
        + np.diag(np.diagonal(dense(statistics))),
    )  # fmt: skip


def test_the_distance_counts_others_between() -> None:
    near, far = matrix_of([[0, 1]]), matrix_of([[0, 2, 3, 1]])
    decayed = (dense(count(each, row_exponent=0.0))[0, 1] for each in (near, far))
    assert list(decayed) == [1.0, pytest.approx(math.exp(-1), abs=2.0**-8)]


@untimed
@given(drawn_sessions, st.integers(0, 2**8 - 1), st.sampled_from([1, 2]))
def test_a_person_can_be_subtracted_and_added_bit_for_bit(
    sessions: list[list[int]], gone: int, min_persons: int
) -> None:
    everything = matrix_of(sessions, 2.0 ** -(np.arange(len(sessions)) % 3))
    persons = np.arange(len(sessions)) // 2
    leaving = np.array([bool(gone >> person & 1) for person in persons])
    some, others = part_of(everything, leaving), part_of(everything, ~leaving)
    whole = count(everything, persons=persons, min_persons=min_persons)
    expected = count(others, persons=persons[~leaving], min_persons=min_persons)

    without = subtract(whole, some[0], persons=persons[leaving], order=some[1])
    assert_same(without, expected)
    assert_same(add(expected, some[0], persons=persons[leaving], order=some[1]), whole)
    had = without.counts > 0
    assert_same(
        select_inputs(without, had),
        gram_statistics(
            others[0][:, had], row_exponent=0.15, persons=persons[~leaving], min_persons=min_persons,
            order=others[1], distance_decay=2.0, threads=2,
        ),
    )  # fmt: skip


@untimed
@given(drawn_sessions, st.permutations(range(9)))
def test_neither_the_order_of_sessions_nor_threads_change_a_byte(
    sessions: list[list[int]], shuffled: list[int]
) -> None:
    order = [row for row in shuffled if row < len(sessions)]
    scale = 1.0 / (1 + np.arange(len(sessions)))
    assert_same(
        count(matrix_of(sessions, scale)),
        count(matrix_of([sessions[row] for row in order], scale[order]), threads=2),
    )


def test_a_budget_keeps_both_directions() -> None:
    rng = np.random.default_rng(2)
    sessions = matrix_of([rng.permutation(30)[:12].tolist() for _ in range(60)], inputs=30)
    whole = count(sessions, min_persons=2)
    with pytest.warns(GramTruncated):
        cut = count(sessions, min_persons=2, max_gram_entries=whole.gram.nnz // 2)
    kept = cut.gram.toarray() > 0
    assert kept.sum() < whole.gram.nnz
    np.testing.assert_array_equal(dense(cut), np.where(kept, dense(whole), 0))
    np.testing.assert_array_equal(dense(cut, cut.forward), np.where(kept, dense(whole, whole.forward), 0))


@pytest.mark.parametrize("reverse_weight", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("neighbours", [4, 100])
def test_what_came_later_is_predicted(reverse_weight: float, neighbours: int) -> None:
    rng = np.random.default_rng(7)
    sessions = matrix_of([rng.permutation(12)[: rng.integers(2, 6)].tolist() for _ in range(200)], inputs=12)
    statistics = count(sessions)
    gram, forward = dense(statistics), dense(statistics, statistics.forward)
    scale = np.maximum(statistics.counts, 1.0) ** -0.3
    right = (forward + reverse_weight * forward.T) * scale[:, None] * scale[None, :]
    left = gram * scale[:, None] * scale[None, :]

    weights = solve_local_ridge(
        statistics, targets=12, neighbours=neighbours, regularisation=2.0, item_exponent=0.3,
        reverse_weight=reverse_weight, threads=1,
    ).toarray()  # fmt: skip

    for j in range(12):
        others = [i for i in np.lexsort((np.arange(12), -right[:, j])) if i != j]
        chosen = np.array(sorted([i for i in others if neighbours > 12 or right[i, j] > 0][:neighbours]))
        block = left[np.ix_(chosen, chosen)] + 2.0 * np.eye(chosen.size)
        expected = np.linalg.solve(block, right[chosen, j]) * scale[chosen] / scale[j]
        np.testing.assert_allclose(weights[chosen, j], expected, atol=1e-6)


def test_items_that_a_change_touches_are_found_in_sessions_too() -> None:
    rng = np.random.default_rng(11)
    sessions = matrix_of([rng.permutation(40)[:4].tolist() for _ in range(150)], inputs=40)
    rows = np.zeros(150, dtype=np.bool_)
    rows[3] = True
    some, others = part_of(sessions, rows), part_of(sessions, ~rows)
    settings = {"targets": 40, "neighbours": 5, "item_exponent": 0.3, "reverse_weight": 0.4}
    before = count(sessions)
    after = subtract(before, some[0], order=some[1])
    solve = {"regularisation": 1.0, "threads": 1, **settings}
    one, other = solve_local_ridge(before, **solve), solve_local_ridge(count(others), **solve)
    changed = np.flatnonzero(np.abs(one - other).sum(axis=0))
    touched = touched_targets(before, after, some[0].indices, **settings)
    assert set(changed) <= set(touched.tolist())
    assert touched.size < 40


def test_statistics_with_an_order_are_kept(tmp_path: Path) -> None:
    gram = count(matrix_of([[2, 0, 1], [1, 2]], inputs=3))
    nobody = np.zeros(0, dtype=np.uint64)
    kept = Statistics(
        ItemIndex.from_ids(["a", "b", "c"]), {}, gram, {}, Fingerprints(bytes(16), nobody, nobody)
    )
    write_statistics(tmp_path / "session", kept, bundle_digest="sha256:1", facts={})
    read = read_statistics(tmp_path / "session").statistics.gram
    assert read is not None
    assert_same(read, gram)
    assert read.distance_decay == gram.distance_decay


def test_orders_are_checked() -> None:
    matrix, order = matrix_of([[0, 1], [2, 0]])
    plain = gram_statistics(matrix, row_exponent=0.0)
    with pytest.raises(ValueError, match="needs the order"):
        gram_statistics(matrix, row_exponent=0.0, distance_decay=1.0)
    with pytest.raises(ValueError, match="distance_decay must be"):
        gram_statistics(matrix, row_exponent=0.0, order=order, distance_decay=-1.0)
    with pytest.raises(ValueError, match="a position of at least 0 for each of 4 entries"):
        gram_statistics(matrix, row_exponent=0.0, order=SessionOrder(np.arange(3), np.ones(2)))
    with pytest.raises(ValueError, match="for each of 2 rows"):
        gram_statistics(matrix, row_exponent=0.0, order=SessionOrder(np.arange(4), np.array([1.0, 2.0])))
    unsorted = sparse.csr_matrix((np.ones(2), np.array([1, 0]), np.array([0, 2])), shape=(1, 2))
    with pytest.raises(ValueError, match="canonical"):
        gram_statistics(unsorted, row_exponent=0.0, order=SessionOrder(np.arange(2), np.ones(1)))
    with pytest.raises(ValueError, match="with their order where the statistics were"):
        subtract(plain, matrix, order=order)
    with pytest.raises(ValueError, match="reverse_weight"):
        solve_local_ridge(plain, targets=INPUTS, neighbours=2, regularisation=1.0, reverse_weight=0.5)
    with pytest.raises(ValueError, match="reverse_weight"):
        LocalRidge(reverse_weight=1.5)
