from __future__ import annotations

import warnings
from dataclasses import replace
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
    gram_parts,
    gram_statistics,
    row_weights,
)
from consentier.models.gram_arithmetic import add, select_inputs, subtract


@st.composite
def histories(draw: st.DrawFn, max_rows: int = 12, inputs: int = 7) -> sparse.csr_matrix:
    """Draw a small user-by-item matrix with event weights of half steps."""
    rows = draw(st.integers(1, max_rows))
    halves = draw(st.lists(st.integers(0, 4), min_size=rows * inputs, max_size=rows * inputs))
    return sparse.csr_matrix(np.reshape(halves, (rows, inputs)) * np.float32(0.5))


untimed = settings(deadline=None)  # the first call compiles
exponents = st.sampled_from([0.0, 0.15, 0.5])


def brute_force_persons(user_items: sparse.csr_matrix, persons: NDArray[np.int64]) -> NDArray[np.int64]:
    present = user_items.toarray() > 0
    inputs = present.shape[1]
    counts = np.zeros((inputs, inputs), dtype=np.int64)
    for i in range(inputs):
        for j in range(inputs):
            counts[i, j] = np.unique(persons[present[:, i] & present[:, j]]).size
    return counts


def assert_same_bytes(one: GramStatistics, other: GramStatistics) -> None:
    assert one.gram.indptr.tobytes() == other.gram.indptr.tobytes()
    assert one.gram.indices.tobytes() == other.gram.indices.tobytes()
    assert one.gram.data.tobytes() == other.gram.data.tobytes()
    assert one.counts.tobytes() == other.counts.tobytes()
    assert (one.persons is None) == (other.persons is None)
    if one.persons is not None and other.persons is not None:
        assert one.persons.tobytes() == other.persons.tobytes()
    assert one.digest() == other.digest()


@untimed
@given(histories())
def test_equals_the_matrix_product(user_items: sparse.csr_matrix) -> None:
    statistics = gram_statistics(user_items, row_exponent=0.0, threads=1)

    np.testing.assert_array_equal(
        statistics.gram.toarray() * GRAM_UNIT, (user_items.T @ user_items).toarray().astype(np.float64)
    )
    assert statistics.gram.has_canonical_format
    assert (statistics.gram.data > 0).all()
    np.testing.assert_array_equal(statistics.counts, (user_items.toarray() > 0).sum(axis=0))


@untimed
@given(histories(), exponents)
def test_row_weights_divide_by_the_length(user_items: sparse.csr_matrix, exponent: float) -> None:
    lengths = np.diff(user_items.tocsr().indptr)
    scaled = sparse.diags_array(np.maximum(lengths, 1.0) ** -exponent) @ user_items
    expected = (scaled.T @ scaled).toarray()

    statistics = gram_statistics(user_items, row_exponent=exponent, threads=1)

    # a row's weight is off by half a step at most, and a product is at most 4
    np.testing.assert_allclose(statistics.gram.toarray() * GRAM_UNIT, expected, atol=12 * 4 * 2.0**-17)


def test_row_weights_are_steps_of_two_to_the_minus_sixteen() -> None:
    assert row_weights(np.array([1, 2, 4, 1_000_000]), 0.5).tolist() == [65536, 32768, 16384, 1]
    assert row_weights(np.array([0, 3]), 0.0).tolist() == [65536, 65536]
    with pytest.raises(ValueError, match="row_exponent"):
        row_weights(np.array([1]), -0.1)


@untimed
@given(histories(), exponents, st.randoms(use_true_random=False), st.sampled_from([1, 2]))
def test_order_of_rows_does_not_change_a_byte(
    user_items: sparse.csr_matrix, exponent: float, random: object, min_persons: int
) -> None:
    order = list(range(user_items.shape[0]))
    random.shuffle(order)  # type: ignore[attr-defined]
    persons = np.arange(user_items.shape[0]) // 2

    one = gram_statistics(
        user_items, row_exponent=exponent, persons=persons, min_persons=min_persons, threads=1
    )
    other = gram_statistics(
        user_items[order], row_exponent=exponent, persons=persons[order], min_persons=min_persons, threads=2
    )

    assert_same_bytes(one, other)


@untimed
@given(histories(), exponents, st.data(), st.sampled_from([1, 3]))
def test_subtracting_a_person_equals_a_fit_without_them(
    user_items: sparse.csr_matrix, exponent: float, data: st.DataObject, min_persons: int
) -> None:
    persons = np.arange(user_items.shape[0]) // 2
    leaving = data.draw(st.lists(st.sampled_from(persons.tolist()), min_size=1))
    gone = np.isin(persons, leaving)
    keep: dict[str, Any] = {"row_exponent": exponent, "min_persons": min_persons, "threads": 1}

    everyone = gram_statistics(user_items, persons=persons, **keep)
    before = everyone.digest()
    decremented = subtract(everyone, user_items[gone], persons=persons[gone])

    assert_same_bytes(decremented, gram_statistics(user_items[~gone], persons=persons[~gone], **keep))
    assert everyone.digest() == before


@untimed
@given(histories(), st.sampled_from([1, 2, 3]))
def test_persons_are_counted_once_however_many_rows_they_have(
    user_items: sparse.csr_matrix, rows_per_person: int
) -> None:
    persons = np.arange(user_items.shape[0]) % (1 + user_items.shape[0] // rows_per_person)

    statistics = gram_statistics(user_items, row_exponent=0.5, persons=persons, min_persons=2, threads=1)

    expected = brute_force_persons(user_items, persons)
    assert statistics.persons is not None
    found = sparse.csr_matrix(
        (statistics.persons, statistics.gram.indices, statistics.gram.indptr), shape=expected.shape
    )
    np.testing.assert_array_equal(found.toarray(), expected)
    np.testing.assert_array_equal(statistics.counts, np.diagonal(expected))
    np.testing.assert_array_equal(statistics.supported(), statistics.persons >= 2)


def test_rows_that_were_not_counted_cannot_be_subtracted() -> None:
    statistics = gram_statistics(sparse.csr_matrix([[1.0, 1, 0], [0, 1, 1]]), row_exponent=0.5)

    with pytest.raises(ValueError, match="not counted"):
        subtract(statistics, sparse.csr_matrix([[1.0, 0, 1]]))
    with pytest.raises(ValueError, match="not counted"):
        subtract(statistics, sparse.csr_matrix([[2.0, 1, 0]]))
    with pytest.raises(ValueError, match="3 inputs"):
        subtract(statistics, sparse.csr_matrix([[1.0, 1]]))


def dense_history(rows: int = 40, inputs: int = 30) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.random.default_rng(3).random((rows, inputs)) < 0.5).astype(np.float32))


@pytest.mark.parametrize("min_persons", [1, 2])
def test_a_budget_drops_the_weakest_entries_and_says_so(min_persons: int) -> None:
    user_items = dense_history()
    whole = gram_statistics(user_items, row_exponent=0.5, min_persons=min_persons)
    budget = whole.gram.nnz // 2

    with pytest.warns(GramTruncated, match="max_gram_entries"):
        cut = gram_statistics(user_items, row_exponent=0.5, min_persons=min_persons, max_gram_entries=budget)

    assert cut.truncated
    assert user_items.shape[1] < cut.gram.nnz <= budget
    kept, dense = cut.gram.toarray(), whole.gram.toarray()
    np.testing.assert_array_equal(kept, kept.T)
    np.testing.assert_array_equal(kept[kept > 0], dense[kept > 0])
    np.testing.assert_array_equal(np.diagonal(kept), np.diagonal(dense))
    for row, full in zip(kept, dense, strict=True):
        assert row.argsort()[-2] in np.flatnonzero(full == np.sort(full)[-2]), "the strongest pair is kept"
    if cut.persons is not None and whole.persons is not None:
        assert cut.persons.shape == cut.gram.data.shape
        persons = sparse.csr_matrix((whole.persons, whole.gram.indices, whole.gram.indptr), whole.gram.shape)
        np.testing.assert_array_equal(cut.persons, persons.toarray()[kept > 0])
    with pytest.raises(ValueError, match="truncated"):
        subtract(cut, user_items[:1])


def test_a_sufficient_budget_changes_nothing() -> None:
    user_items = dense_history()
    whole = gram_statistics(user_items, row_exponent=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = gram_statistics(user_items, row_exponent=0.5, max_gram_entries=whole.gram.nnz)
    assert_same_bytes(whole, same)


@pytest.mark.parametrize("weight", [1e8, 2.0**17, 1e300])
def test_sums_beyond_int64_are_refused_beforehand(weight: float) -> None:
    with pytest.raises(OverflowError, match="weight"):
        gram_statistics(sparse.csr_matrix([[weight, 1.0]]), row_exponent=0.0)


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_weights_must_be_finite_and_not_negative(weight: float) -> None:
    with pytest.raises(ValueError, match="negative or not finite"):
        gram_statistics(sparse.csr_matrix([[weight, 1.0]]), row_exponent=0.0)


def test_arguments_are_checked() -> None:
    user_items = sparse.csr_matrix([[1.0, 1.0]])
    with pytest.raises(ValueError, match="min_persons"):
        gram_statistics(user_items, row_exponent=0.0, min_persons=0)
    with pytest.raises(ValueError, match="max_gram_entries"):
        gram_statistics(user_items, row_exponent=0.0, max_gram_entries=3)
    with pytest.raises(ValueError, match="persons"):
        gram_statistics(user_items, row_exponent=0.0, persons=np.arange(2))
    with pytest.raises(ValueError, match="threads"):
        gram_statistics(user_items, row_exponent=0.0, threads=0)
    with pytest.raises(ValueError, match="were not counted"):
        replace(gram_statistics(user_items, row_exponent=0.0), min_persons=2)


def test_no_rows_and_no_inputs() -> None:
    assert gram_statistics(sparse.csr_matrix((0, 3)), row_exponent=0.5).gram.nnz == 0
    assert gram_statistics(sparse.csr_matrix((2, 0)), row_exponent=0.5).gram.shape == (0, 0)


@untimed
@given(histories(), histories(max_rows=4), exponents, st.sampled_from([1, 2]))
def test_adding_rows_equals_counting_all(
    some: sparse.csr_matrix, others: sparse.csr_matrix, exponent: float, min_persons: int
) -> None:
    keep: dict[str, Any] = {"row_exponent": exponent, "min_persons": min_persons, "threads": 1}
    together = gram_statistics(sparse.csr_matrix(sparse.vstack([some, others])), **keep)

    added = add(gram_statistics(some, **keep), others)

    assert_same_bytes(added, together)
    assert_same_bytes(subtract(added, others), gram_statistics(some, **keep))


@untimed
@given(histories(inputs=9), st.sampled_from([1, 2]))
def test_inputs_that_nobody_has_can_be_left_out(user_items: sparse.csr_matrix, min_persons: int) -> None:
    keep: dict[str, Any] = {"row_exponent": 0.25, "min_persons": min_persons, "threads": 1}
    everything = gram_statistics(user_items, **keep)
    had = everything.counts > 0

    assert_same_bytes(select_inputs(everything, had), gram_statistics(user_items[:, had], **keep))
    if had.any():
        with pytest.raises(ValueError, match="nobody has"):
            select_inputs(everything, ~had)


def test_sums_beyond_int64_are_refused_when_rows_are_added() -> None:
    heavy = sparse.csr_matrix(np.full((1, 2), 2.0**14.9))
    statistics = gram_statistics(heavy, row_exponent=0.0, threads=1)
    with pytest.raises(OverflowError, match="not fit"):
        add(statistics, heavy)


@untimed
@given(histories(), st.data(), exponents, st.integers(1, 60), st.booleans())
def test_parts_of_some_persons_add_up_to_the_whole(
    user_items: sparse.csr_matrix, data: st.DataObject, exponent: float, most_entries: int, ordered: bool
) -> None:
    """However persons are spread, and however few entries a part may hold."""
    rows, inputs = user_items.shape
    user_items.eliminate_zeros()
    persons = np.array(data.draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows)))
    task_of_person = np.array(data.draw(st.lists(st.integers(0, 2), min_size=5, max_size=5)))
    chance = np.random.default_rng(data.draw(st.integers(0, 9)))
    places = [chance.permutation(count) for count in np.diff(user_items.indptr)]
    decay = 2.0 if ordered else None

    def order_of(chosen: NDArray[np.int64]) -> SessionOrder | None:
        if not ordered:
            return None
        positions = np.concatenate([np.zeros(0, np.int64), *(places[row] for row in chosen)])
        return SessionOrder(positions.astype(np.int64), 0.5 ** (1.0 + chosen % 3))

    everybody = np.arange(rows)
    whole = gram_statistics(
        user_items, row_exponent=exponent, persons=persons, min_persons=2, threads=1,
        order=order_of(everybody), distance_decay=decay,
    )  # fmt: skip
    sums = np.zeros((3, inputs, inputs), dtype=np.int64)
    counts = np.zeros(inputs, dtype=np.int64)
    for task in range(3):
        chosen = everybody[task_of_person[persons] == task]
        behind, parts = gram_parts(
            user_items[chosen], row_exponent=exponent, persons=persons[chosen], min_persons=2,
            order=order_of(chosen), distance_decay=decay, most_entries=most_entries,
        )  # fmt: skip
        counts += behind
        for part in parts:
            assert (part.columns >= part.rows).all()
            for values, summed in zip((part.values, part.persons, part.forward), sums, strict=True):
                np.add.at(summed, (part.rows, part.columns), values)
    np.testing.assert_array_equal(counts, whole.counts)
    upper = np.triu(np.ones((inputs, inputs), dtype=np.bool_))
    assert whole.persons is not None
    expected = [whole.gram.data, whole.persons]
    if whole.forward is not None:
        expected.append(whole.forward)
    for values, summed in zip(expected, sums, strict=False):
        dense = sparse.csr_matrix((values, whole.gram.indices, whole.gram.indptr), shape=(inputs, inputs))
        np.testing.assert_array_equal(np.where(upper, dense.toarray(), 0), summed)
