"""Compiled loops and NumPy answer alike, bit for bit."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from consentier.models import row_scorer
from consentier.models.compiled_histories import weighted_histories
from consentier.models.row_scorer import RowScorer, compiled_kernel

# Few values, so that scores tie, cancel and are 0 often; some that no sum of others equals.
WEIGHTS = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 0.5, 1.0, 1.0, 0.1, 1e-30, 3e38])
HOPS = st.sampled_from([0.0, 0.0, 0.3, 1.0, 1e300])


class Case(types.SimpleNamespace):
    """A matrix, and one request."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    items = draw(st.integers(1, 40))
    inputs = items + draw(st.integers(0, 3))
    columns = st.sets(st.integers(0, items - 1), max_size=items)
    chosen = [sorted(draw(columns)) for _ in range(inputs)]
    indices = np.array([item for row in chosen for item in row], dtype=np.int32)
    some = st.lists(st.integers(0, items - 1), unique=True).map(sorted)
    rows = sorted(draw(st.sets(st.integers(0, inputs - 1), max_size=8)))
    added = draw(st.lists(st.integers(0, items - 1), unique=True, max_size=5))
    return Case(
        indptr=np.cumsum([0, *map(len, chosen)], dtype=np.int64),
        indices=indices,
        data=np.array([draw(WEIGHTS) for _ in range(indices.size)], dtype=np.float32),
        hidden=np.array([draw(st.booleans()) for _ in range(items)]) & draw(st.booleans()),
        silent=np.array([draw(st.booleans()) for _ in range(items)]) & draw(st.booleans()),
        hop_weight=draw(HOPS),
        hop_items=draw(st.integers(1, 50)),
        rows=np.array(rows, dtype=np.int64),
        weights=np.array([draw(WEIGHTS) for _ in rows], dtype=np.float32),
        n=draw(st.one_of(st.integers(1, 6), st.sampled_from([10, 10**12]))),
        asked={
            "added_items": np.array(added, dtype=np.int64),
            "added": np.array([abs(draw(WEIGHTS)) for _ in added], dtype=np.float64),
            "barred": np.array(draw(some), dtype=np.int64),
            "allowed": draw(st.none() | some.map(lambda ids: np.array(ids, dtype=np.int64))),
        },
    )


def scorer_of(case: Case, *, compiled: bool) -> RowScorer:
    scorer = RowScorer(
        case.indptr,
        case.indices,
        case.data,
        hidden=case.hidden,
        silent=case.silent,
        hop_weight=case.hop_weight,
        hop_items=case.hop_items,
        compiled=compiled,
    )
    assert scorer.compiled is compiled
    return scorer


def answer_of(case: Case, *, compiled: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    with np.errstate(over="ignore", invalid="ignore"):
        return scorer_of(case, compiled=compiled).best(case.rows, case.weights, case.n, **case.asked)


@given(case=cases())
def test_compiled_loops_and_numpy_give_the_same_bits(case: Case) -> None:
    expected, got = (answer_of(case, compiled=compiled) for compiled in (False, True))
    assert [array.dtype for array in got] == [array.dtype for array in expected]
    assert got[0].tolist() == expected[0].tolist()
    assert got[1].tobytes() == expected[1].tobytes()


@given(case=cases())
def test_an_answer_holds_what_may_be_shown_in_order(case: Case) -> None:
    ids, scores = answer_of(case, compiled=True)
    assert (scores > 0).all()
    assert sorted(zip(-scores, ids, strict=True)) == list(zip(-scores, ids, strict=True))
    assert not case.hidden[ids].any()
    assert not np.isin(ids, case.asked["barred"]).any()
    assert case.asked["allowed"] is None or np.isin(ids, case.asked["allowed"]).all()
    assert ids.size <= case.n


@given(drawn=st.lists(cases(), min_size=1, max_size=4))
def test_many_requests_at_once_are_answered_like_each_of_them(drawn: list[Case]) -> None:
    model = drawn[0]
    items = model.hidden.size
    scorer = scorer_of(model, compiled=True)
    requests = [
        Case(
            rows=case.rows[case.rows < model.indptr.size - 1],
            weights=case.weights[case.rows < model.indptr.size - 1],
            **{name: case.asked[name][case.asked[name] < items] for name in ("added_items", "barred")},
            added=case.asked["added"][case.asked["added_items"] < items],
        )
        for case in drawn
    ]

    def joined(name: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
        parts = [getattr(request, name) for request in requests]
        return np.cumsum([0, *map(len, parts)], dtype=np.int64), np.concatenate(parts)

    lists, scores = scorer.lists(
        (*joined("rows"), joined("weights")[1]),
        (*joined("added_items"), joined("added")[1]),
        joined("barred"),
        5,
        0,
        len(requests),
    )
    for request, items_of, scores_of in zip(requests, lists, scores, strict=True):
        request.asked = {name: getattr(request, name) for name in ("added_items", "added", "barred")}
        expected, best = answer_of(Case(**{**vars(model), **vars(request), "n": 5}), compiled=False)
        if not request.rows.size:
            expected, best = expected[:0], best[:0]
        assert items_of.tolist() == [*expected.tolist(), *[-1] * (5 - expected.size)]
        assert scores_of.tolist() == [*best.tolist(), *[0.0] * (5 - best.size)]


@given(drawn=st.lists(cases(), min_size=1, max_size=4), data=st.data())
def test_a_batch_with_one_array_of_sums_answers_like_each_request(
    drawn: list[Case], data: st.DataObject
) -> None:
    """One after the other in the same scratch memory; some may be shown items of some groups only."""
    model = drawn[0]
    items = model.hidden.size
    groups = np.array([data.draw(st.integers(-1, 2)) for _ in range(items)], dtype=np.int64)
    limited = np.array([data.draw(st.booleans()) for _ in drawn])
    opened = [sorted(data.draw(st.sets(st.integers(0, 2)))) for _ in drawn]
    kept = [case.rows < model.indptr.size - 1 for case in drawn]
    rows = [case.rows[own] for case, own in zip(drawn, kept, strict=True)]
    weights = [case.weights[own] for case, own in zip(drawn, kept, strict=True)]
    barred = [case.asked["barred"][case.asked["barred"] < items] for case in drawn]

    def joined(parts: list[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        return np.cumsum([0, *map(len, parts)], dtype=np.int64), np.concatenate(parts)

    starts, chosen = joined([np.array(each, dtype=np.int64) for each in opened])
    with np.errstate(over="ignore", invalid="ignore"):
        lists, scores = scorer_of(model, compiled=True).dense_lists(
            (*joined(rows), joined(weights)[1]), joined(barred), (groups, limited, starts, chosen), 5
        )
    for k in range(len(drawn)):
        allowed = np.flatnonzero(np.isin(groups, opened[k])) if limited[k] else None
        asked = {"barred": barred[k], "allowed": allowed}
        request = Case(**{**vars(model), "rows": rows[k], "weights": weights[k], "n": 5, "asked": asked})
        expected, best = answer_of(request, compiled=False)
        assert lists[k].tolist() == [*expected.tolist(), *[-1] * (5 - expected.size)]
        assert scores[k].tolist() == [*best.tolist(), *[0.0] * (5 - best.size)]


def large() -> Case:
    """Long lists of strong ties among many items, and a second hop."""
    rng = np.random.default_rng(5)
    items, entries = 5_000, 200
    rows = np.sort(rng.choice(items, 60, replace=False)).astype(np.int64)
    return Case(
        indptr=np.arange(items + 1, dtype=np.int64) * entries,
        indices=np.concatenate([np.sort(rng.choice(items, entries, replace=False)) for _ in range(items)])
        .astype(np.int32),
        data=(rng.integers(-3, 9, items * entries) / 8).astype(np.float32),
        hidden=rng.random(items) < 0.1,
        silent=rng.random(items) < 0.1,
        hop_weight=0.25,
        hop_items=50,
        rows=rows,
        weights=(rng.integers(1, 5, rows.size) / 4).astype(np.float32),
        n=700,
        asked={"barred": rows, "allowed": np.flatnonzero(rng.random(items) < 0.8)},
    )  # fmt: skip


def test_they_agree_on_long_histories_too() -> None:
    case = large()
    expected, got = (answer_of(case, compiled=compiled) for compiled in (False, True))
    assert got[0].size == 700
    assert got[0].tolist() == expected[0].tolist()
    assert got[1].tobytes() == expected[1].tobytes()


def test_threads_share_nothing() -> None:
    case = large()
    scorer = scorer_of(case, compiled=True)

    def answer(seed: int) -> tuple[bytes, bytes]:
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(5_000, 20, replace=False)).astype(np.int64)
        ids, scores = scorer.best(rows, rng.random(20, dtype=np.float32), 50)
        return ids.tobytes(), scores.tobytes()

    alone = [answer(seed) for seed in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, range(200))) == alone


def test_the_loops_run_without_the_interpreters_lock() -> None:
    kernel = compiled_kernel()
    assert kernel is not None
    assert kernel.best_items.targetoptions["nogil"]
    for loop in (kernel.best_lists, kernel.dense_lists, kernel.filled_lists, weighted_histories):
        assert loop.targetoptions["nogil"]


def test_mapped_arrays_are_read_where_they_are(tmp_path: Path) -> None:
    case = large()
    for name in ("indptr", "indices", "data"):
        np.save(tmp_path / f"{name}.npy", getattr(case, name))
        setattr(case, name, np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    scorer = scorer_of(case, compiled=True)
    matrix = scorer._model[:3]
    assert all(np.shares_memory(one, getattr(case, name)) for one, name in zip(
        matrix, ("indptr", "indices", "data"), strict=True))  # fmt: skip
    expected = answer_of(case, compiled=False)
    got = answer_of(case, compiled=True)
    assert got[1].tobytes() == expected[1].tobytes()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("row", [-1, 5_000])
def test_a_row_outside_the_matrix_is_an_error(compiled: bool, row: int) -> None:
    scorer = scorer_of(large(), compiled=compiled)
    with pytest.raises(IndexError):
        scorer.best(np.array([row]), np.ones(1, np.float32), 3)


def test_arrays_of_other_types_are_answered_by_numpy() -> None:
    case = large()
    case.data = case.data.astype(np.float64)
    scorer = RowScorer(case.indptr, case.indices, case.data, hidden=case.hidden, silent=case.silent)
    assert not scorer.compiled
    assert scorer.best(case.rows, case.weights, 3)[0].size == 3
    with pytest.raises(RuntimeError, match=r"install consentier\[train\]"):
        scorer.lists((case.rows,) * 3, (case.rows,) * 3, (case.rows,) * 2, 3, 0, 1)  # type: ignore[arg-type]


@pytest.fixture
def no_kernel_yet() -> Iterator[None]:
    """As in a new process."""
    compiled_kernel.cache_clear()
    yield
    compiled_kernel.cache_clear()


@pytest.mark.usefixtures("no_kernel_yet")
def test_without_numba_numpy_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_scorer.importlib.util, "find_spec", lambda _: None)
    assert compiled_kernel() is None


@pytest.mark.usefixtures("no_kernel_yet")
@pytest.mark.parametrize("fault", [ImportError("Numba needs another NumPy"), RuntimeError("no locator")])
def test_a_numba_that_does_not_work_is_told_of_and_numpy_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    def fails(*_: object) -> None:
        raise fault

    monkeypatch.setattr(row_scorer, "_run_once", fails)
    with caplog.at_level(logging.WARNING, "consentier.models"):
        assert compiled_kernel() is None
    assert str(fault) in caplog.text


def test_the_first_answer_waits_for_no_compiler() -> None:
    kernel = compiled_kernel()
    assert kernel is not None
    assert sys.modules["consentier.models.compiled_scoring"] is kernel
    before = len(kernel.best_items.signatures)
    answer_of(large(), compiled=True)
    assert len(kernel.best_items.signatures) == before
