"""Borrowing by metadata: from whom, how much, and what it leaves alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from consentier.models.item_metadata import borrowing_shares, with_borrowed


def matrix(*rows: str) -> sparse.csr_matrix:
    """Levels of items, told as letters."""
    letters = sorted(set("".join(rows)))
    dense = np.array([[letter in row for letter in letters] for row in rows], dtype=np.bool_)
    return sparse.csr_matrix(dense.reshape(len(rows), len(letters)))


def counts(*persons: int) -> NDArray[np.int64]:
    return np.array(persons, dtype=np.int64)


def expected_shares(
    levels: sparse.csr_matrix, persons: NDArray[np.int64], enough: int, neighbours: int
) -> NDArray[np.float64]:
    """The documentation, item by item."""
    dense = levels.toarray()
    items = len(dense)
    worth = np.maximum(
        np.rint(1024 * np.log2((items + 1) / np.maximum(dense.sum(axis=0), 1))), 1
    )  # fmt: skip
    shares = np.zeros((items, items))
    for item in np.flatnonzero(persons < enough):
        near = {}
        for other in range(items):
            both = worth[dense[item] & dense[other]].sum()
            if other != item and persons[other] and both:
                near[other] = both / worth[dense[item] | dense[other]].sum()
        donors = sorted(near, key=lambda other: (-near[other], -persons[other], other))[:neighbours]
        counted = np.array([near[each] ** 2 * min(persons[each] / enough, 1) for each in donors])
        if donors:
            shares[item, donors] = counted / counted.sum() * (1 - persons[item] / enough)
            shares[item, item] += persons[item] / enough
    return shares


_texts = st.lists(st.text("abcdef", max_size=4), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)  # the first call compiles
@given(_texts, st.data(), st.integers(1, 12), st.integers(1, 6))
def test_shares_are_those_of_the_documentation(
    rows: list[str], data: st.DataObject, enough: int, neighbours: int
) -> None:
    levels = matrix(*rows)
    persons = np.array(data.draw(st.lists(st.integers(0, 14), min_size=len(rows), max_size=len(rows))))

    shares = borrowing_shares(levels, persons, enough=enough, neighbours=neighbours)

    expected = expected_shares(levels, persons, enough, neighbours)
    np.testing.assert_allclose(shares.toarray(), expected, atol=1e-12)
    borrowing = np.diff(shares.indptr) > 0
    np.testing.assert_allclose(shares.toarray().sum(axis=1)[borrowing], 1.0)
    assert not borrowing[persons >= enough].any()
    assert not shares.toarray()[:, persons == 0].any(), "an item that nobody had lends nothing"


def test_the_rarest_level_counts_most() -> None:
    """The first item shares a level that three have with the second, one that two have with the third."""
    shares = borrowing_shares(matrix("ab", "a", "b", "a"), counts(0, 9, 9, 9), enough=5, neighbours=3)
    nearest = shares.toarray()[0]
    assert nearest[2] > nearest[1] == nearest[3] > 0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 10))
def test_what_is_borrowed_fades_with_evidence(seed: int, enough: int) -> None:
    """With each further person, the weights come nearer to the item's own; with enough they are its own."""
    weights, levels = random_weights(seed), matrix("a", "a", "a", "ab", "b", "b", "b", "c")
    own = weights.toarray()
    distances = []
    for persons in range(enough + 2):
        shares = borrowing_shares(levels, counts(persons, *[20] * 7), enough=enough, neighbours=5)
        mixed = with_borrowed(weights, shares, kept=99, threads=1)
        distances.append(np.abs(mixed.toarray() - own).max())
        if persons >= enough:
            assert same_bytes(mixed, weights)
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(distances))
    assert distances[0] > 0


def random_weights(seed: int, inputs: int = 10, items: int = 8) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((inputs, items)) < 0.6, rng.normal(size=(inputs, items)), 0)
    np.fill_diagonal(dense, 0)
    return sparse.csr_matrix(dense.astype(np.float32))


def same_bytes(one: sparse.csr_matrix, other: sparse.csr_matrix) -> bool:
    return one.shape == other.shape and all(
        getattr(one, part).astype(kind).tobytes() == getattr(other, part).astype(kind).tobytes()
        for part, kind in (("indptr", "i8"), ("indices", "i8"), ("data", "f4"))
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.lists(st.integers(0, 9), min_size=8, max_size=8))
def test_weights_are_mixed_on_both_sides(seed: int, persons: list[int]) -> None:
    weights, levels = random_weights(seed), matrix("a", "a", "ab", "b", "b", "bc", "c", "d")
    shares = borrowing_shares(levels, counts(*persons), enough=6, neighbours=3)

    mixed = with_borrowed(weights, shares, kept=99, threads=1)

    whole = np.eye(8)
    borrows = np.diff(shares.indptr) > 0
    whole[borrows] = shares.toarray()[borrows]
    of_inputs = np.eye(10)
    of_inputs[:8, :8] = whole
    columns = weights.toarray() @ whole.T
    np.fill_diagonal(columns[:, :], np.where(borrows, 0, np.diagonal(columns)))
    expected = of_inputs @ columns
    np.fill_diagonal(expected, np.where(borrows, 0, np.diagonal(expected)))
    np.testing.assert_allclose(mixed.toarray(), expected, atol=1e-5)
    untouched = np.ix_(np.append(~borrows, [True, True]), ~borrows)
    assert (mixed.toarray()[untouched] == weights.toarray()[untouched]).all()
    assert not mixed.diagonal()[:8].any()


@pytest.mark.parametrize("kept", [1, 3])
def test_only_the_largest_weights_are_kept(kept: int) -> None:
    weights = random_weights(3)
    shares = borrowing_shares(matrix(*"aaaabbbb"), counts(0, 9, 9, 9, 0, 9, 9, 9), enough=5, neighbours=3)
    mixed = with_borrowed(weights, shares, kept=kept, threads=1)
    assert np.diff(mixed.indptr)[[0, 4]].max() <= kept


def test_threads_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((700, 700)) < 0.05, rng.normal(size=(700, 700)), 0)
    np.fill_diagonal(dense, 0)
    weights = sparse.csr_matrix(dense.astype(np.float32))
    levels = sparse.csr_matrix(rng.random((700, 12)) < 0.2)
    shares = borrowing_shares(levels, rng.integers(0, 12, 700), enough=10, neighbours=20)
    assert np.count_nonzero(np.diff(shares.indptr)) > 512, "more than one chunk per thread"
    one, several = (with_borrowed(weights, shares, kept=30, threads=threads) for threads in (1, 3))
    assert same_bytes(one, several)


def test_without_metadata_or_without_donors_nothing_changes() -> None:
    weights = random_weights(1)
    nobody = borrowing_shares(matrix(*"aaaabbbb"), counts(*[0] * 8), enough=5, neighbours=3)
    nothing = borrowing_shares(
        sparse.csr_matrix((8, 0), dtype=np.bool_), counts(*range(8)), enough=5, neighbours=3
    )
    for shares in (nobody, nothing):
        assert not shares.nnz
        assert same_bytes(with_borrowed(weights, shares, kept=3, threads=1), weights)
