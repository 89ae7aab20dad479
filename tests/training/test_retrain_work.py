"""Whether rows are exchanged or a tier is fitted from scratch: the estimate of both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from scipy import sparse

from consentier.features.gate import PermittedRows
from consentier.models.gram import gram_statistics
from consentier.models.gram_arithmetic import add
from consentier.models.item_index import ItemIndex
from consentier.models.local_ridge import LocalRidge, touched_targets
from consentier.models.statistics import Fingerprints, Statistics
from consentier.training.fit import PERSONS
from consentier.training.retrain_work import Extent, estimated

BLOCKS, WIDTH = 5, 200
MODEL = LocalRidge(neighbours=WIDTH)


def names(items: np.ndarray) -> list[str]:
    return [f"item {item:04}" for item in items.tolist()]


def matrix() -> sparse.csr_matrix:
    """One person per block of the catalogue, who has every item of it."""
    return sparse.csr_matrix(np.kron(np.eye(BLOCKS), np.ones((1, WIDTH))))


def statistics() -> Statistics:
    items = ItemIndex.from_ids(names(np.arange(BLOCKS * WIDTH)))
    nobody = np.zeros(0, dtype=np.uint64)
    gram = gram_statistics(matrix(), row_exponent=MODEL.row_exponent)
    return Statistics(items, {PERSONS: gram.counts}, gram, {}, Fingerprints(bytes(16), nobody, nobody))


def rows(histories: dict[str, list[str]]) -> PermittedRows:
    pairs = [(person, item) for person, items in histories.items() for item in items]
    persons, items = zip(*pairs, strict=True)
    table = pa.table({"person": list(persons), "session_id": list(persons), "item_id": list(items)})
    nothing = pa.table({})
    return PermittedRows(rows=table, attributes=None, funnel=(), subjects=nothing, until=0)


OLD = {f"visitor:{block}": names(block * WIDTH + np.arange(WIDTH)) for block in range(BLOCKS)}
NEW = {"visitor:new": [*names(np.array([3])), "never seen before"]}
EXTENT = Extent(rows({**OLD, **NEW}), rows(NEW), by_session=False, all_again=False, records=1000)


def test_an_exchange_that_touches_little_is_less_work() -> None:
    estimate = estimated(statistics(), MODEL, EXTENT)
    assert (estimate.looked_at, estimate.touched) == (500, 100)  # every second item, of one block in five
    assert estimate.exchange < estimate.fit
    assert estimate.exchange_is_less
    assert str(estimate).startswith("of 500 items looked at an exchange touches 100; ")


def test_no_more_items_are_taken_for_touched_than_are() -> None:
    before = statistics().gram
    assert before is not None
    coming = sparse.csr_matrix(([1.0], ([0], [3])), shape=(1, BLOCKS * WIDTH))
    touched = touched_targets(
        before, add(before, coming), np.array([3]),
        targets=BLOCKS * WIDTH, neighbours=WIDTH, item_exponent=MODEL.item_exponent,
    )  # fmt: skip
    estimate = estimated(statistics(), MODEL, EXTENT)
    assert estimate.touched / estimate.looked_at <= touched.size / (BLOCKS * WIDTH)


def test_where_all_items_are_solved_again_a_fit_is_less_work() -> None:
    borrowing = dataclasses.replace(EXTENT, all_again=True)
    everything = dataclasses.replace(MODEL, neighbours=BLOCKS * WIDTH)
    for model, extent in ((MODEL, borrowing), (everything, EXTENT)):
        estimate = estimated(statistics(), model, extent)
        assert estimate.touched == estimate.looked_at
        assert not estimate.exchange_is_less


def test_what_both_ways_solve_alike_is_left_out() -> None:
    estimate = estimated(statistics(), None, EXTENT)
    assert (estimate.looked_at, estimate.touched) == (0, 0)
    assert not estimate.exchange_is_less
    assert str(estimate).startswith("an exchange is estimated at ")


def test_a_long_ledger_makes_an_exchange_dear() -> None:
    long = dataclasses.replace(EXTENT, records=10_000_000)
    assert not estimated(statistics(), MODEL, long).exchange_is_less
