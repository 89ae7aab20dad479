"""The quality benchmarks run on tiny made-up data, so that they do not rot; figures are checked by hand."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.quality import splits
from benchmarks.quality.benchmark import descend, run
from benchmarks.quality.measure import Task, intervals, one_thread
from benchmarks.quality.simulation import simulated
from benchmarks.quality.tables import replaced, table
from published_splits import write_published

from consentier.models.local_ridge import dense_ease

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["session", "gowalla", "movielens", "movielens_attributes", "taobao"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published"))


def benchmark(name: str) -> Any:
    return importlib.import_module(f"benchmarks.quality.{name}").BENCHMARK


def task(name: str, data: Path, dataset: str, model: str, **parameters: Any) -> Task:
    return Task(name, dataset, model, parameters, str(data), latency_requests=5)


# --- the commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_measures_in_a_fresh_process_and_writes_json(name: str, data: Path, tmp_path: Path) -> None:
    dataset = benchmark(name).sets[0]
    out = tmp_path / "results"
    arguments = ["--data", str(data), "--set", dataset, "--models", "popularity", "--out", str(out)]
    run(benchmark(name), [*arguments, "--latency-requests", "5"])
    results = json.loads((out / f"{dataset}.json").read_text(encoding="utf-8"))
    row = results["rows"]["popularity"]
    assert {"fit", "batch", "single", "metrics", "parameters"} <= set(row)
    assert row["fit"]["peak_memory_mb"] > 0
    assert results["versions"]["numpy"] == np.__version__
    for figures in row["metrics"].values():
        assert 0 <= figures["low"] <= figures["mean"] <= figures["high"] <= 1
    assert "| popularity |" in table(results)


def test_rows_are_added_and_compared_in_pairs(data: Path, tmp_path: Path) -> None:
    parameters = tmp_path / "parameters.toml"
    parameters.write_text(
        "[gowalla.popularity]\n[gowalla.ours]\nmodel = 'local_ridge'\nneighbours = 5\nregularisation = 1.0\n"
        "row_exponent = 0.5\nitem_exponent = 0.3\n",
        encoding="utf-8",
    )
    arguments = ["--data", str(data), "--parameters", str(parameters), "--out", str(tmp_path / "results")]
    for models in ("popularity", "ours"):
        run(benchmark("gowalla"), [*arguments, "--models", models, "--latency-requests", "5"])
    results = json.loads((tmp_path / "results" / "gowalla.json").read_text(encoding="utf-8"))
    assert set(results["rows"]) == {"popularity", "ours"}
    assert results["against"] == "popularity"
    difference = results["rows"]["ours"]["difference"]["ndcg@20"]
    means = [results["rows"][name]["metrics"]["ndcg@20"]["mean"] for name in ("ours", "popularity")]
    assert difference["mean"] == pytest.approx(means[0] - means[1])
    # Values stand beside the results they belong to: those of another directory cannot be taken for them.
    assert (tmp_path / "results" / ".values" / "gowalla" / "ours.npz").is_file()


def test_rows_of_another_split_are_not_put_into_one_table(data: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(data), "--models", "popularity", "--out", str(tmp_path)]
    run(benchmark("gowalla"), arguments)
    with pytest.raises(SystemExit, match="another split"):
        run(benchmark("gowalla"), [*arguments, "--max-users", "10"])


@pytest.mark.parametrize("name", COMMANDS)
def test_absent_data_are_named_with_exit_code_2(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.quality.{name}", "--data", str(tmp_path / "nowhere")],
        cwd=ROOT, env=one_thread(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "--data" in done.stderr


def test_tuning_writes_the_best_setting_and_keeps_comments(data: Path, tmp_path: Path) -> None:
    parameters, grids = tmp_path / "parameters.toml", tmp_path / "grids.toml"
    start = "neighbours = 1\nsample_size = 1\nidf_weight = 1.0\n"
    parameters.write_text(f"# kept\n[diginetica.vsknn]\n{start}[diginetica.popularity]\n", encoding="utf-8")
    grids.write_text("[session.vsknn]\nneighbours = [1, 50]\n", encoding="utf-8")
    run(
        benchmark("session"),
        [
            "--data", str(data), "--set", "diginetica", "--models", "vsknn", "--tune", "--out", str(tmp_path),
            "--parameters", str(parameters), "--grids", str(grids),
        ],
    )  # fmt: skip
    found = json.loads((tmp_path / "tuning-diginetica.json").read_text(encoding="utf-8"))["vsknn"]
    figures = [each["ndcg@20"] for each in found["tried"]]
    assert found["figure"] == max(figures)
    text = parameters.read_text(encoding="utf-8")
    assert text.startswith("# kept\n")
    assert "[diginetica.popularity]" in text
    assert f"neighbours = {found['chosen']['neighbours']}" in text


# --- every model ------------------------------------------------------------------------------------------

MATRIX_MODELS: dict[str, dict[str, Any]] = {
    "popularity": {},
    "ease": {"regularisation": 1.0},
    "implicit_als": {"factors": 4},
    "implicit_knn": {"neighbours": 5, "weighting": "bm25"},
    "irspack_ials": {"factors": 4},
    "irspack_edlae": {},
    "irspack_slim": {},
    "irspack_rp3beta": {},
    "local_ridge": {
        "neighbours": 5, "regularisation": 1.0, "row_exponent": 0.5, "item_exponent": 0.3, "cart_weight": 0.5,
        "second_hop_weight": 0.5,
    },
    "neighbours": {"neighbours": 5, "k1": 0.1, "b": 0.5, "cart_weight": 0.5, "repeat_weight": 10.0},
    "als": {
        "factors": 4, "iterations": 3, "regularisation": 0.1, "unobserved_weight": 0.1, "repeat_weight": 1.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("model", MATRIX_MODELS)
@pytest.mark.parametrize("name", ["movielens", "taobao"])
def test_a_model_recommends_what_is_not_hidden(name: str, model: str, data: Path) -> None:
    tested = benchmark(name)
    package = tested.contenders[model].package
    if package is not None:
        pytest.importorskip(package)
    asked = task(name, data, tested.sets[0], model, **MATRIX_MODELS[model])
    fitted = tested.contenders[model].make(item_count=20, **MATRIX_MODELS[model])
    for case in tested.split(asked).values():
        fitted.fit(case.train)
        lists = fitted.recommend(case.histories, case.hidden, 10)
        assert lists.shape == (len(case.histories), 10)
        hidden = case.hidden.toarray()
        for user, items in enumerate(lists):
            shown = items[items >= 0]
            assert not hidden[user, shown].any()
            assert len(set(shown.tolist())) == len(shown) == min(10, int((~hidden[user]).sum()))


@pytest.mark.parametrize("model", ["segment_popularity", "ease", "irspack_ials", "local_ridge"])
def test_attributes_are_read(model: str, data: Path) -> None:
    tested = benchmark("movielens_attributes")
    package = tested.contenders[model].package
    if package is not None:
        pytest.importorskip(package)
    parameters: dict[str, Any] = {
        "segment_popularity": {"prior_users": 0.1},
        "ease": {"regularisation": 1.0, "attribute_weight": 2.0},
        "irspack_ials": {"factors": 4, "feature_weight": 0.01},
        "local_ridge": MATRIX_MODELS["local_ridge"] | {"neighbours": 30, "attribute_weight": 2.0},
    }[model]
    parameters.pop("cart_weight", None)
    cases = tested.split(task("movielens_attributes", data, tested.sets[0], model))
    case = cases["0 films/"]
    assert case.histories.items.nnz == 0
    fitted = tested.contenders[model].make(item_count=20, **parameters)
    fitted.fit(case.train)
    lists = fitted.recommend(case.histories, case.hidden, 10)
    assert len(np.unique(lists, axis=0)) > 1  # nothing but the attributes tells these users apart


def test_bayesian_personalised_ranking_ranks_for_users_of_train(data: Path) -> None:
    tested = benchmark("gowalla")
    measured = tested.measure(task("gowalla", data, "gowalla", "implicit_bpr", factors=4, iterations=2))
    assert 0 < intervals(measured.values)["recall@20"]["mean"] <= 1


# --- splits -----------------------------------------------------------------------------------------------


def test_session_validation_is_the_end_of_train_and_as_long_as_the_test(data: Path) -> None:
    published = splits.read_sessions(data, "diginetica")
    validation = splits.read_sessions(data, "diginetica", splits.VALIDATION)
    assert validation.train.last_times().max() < validation.test.times.min()
    assert validation.test.last_times().max() == published.train.last_times().max()
    days = np.ceil(np.ptp(published.test.times) / 86_400)
    assert np.ptp(validation.test.last_times()) < days * 86_400
    assert len(validation.train) + len(validation.test) <= len(published.train)
    assert set(validation.test.items) <= set(validation.train.items) <= set(range(validation.item_count))


def test_matrix_validation_never_reads_the_test(data: Path) -> None:
    for read, held in ((splits.read_gowalla, 30), (splits.read_taobao, None)):
        published, validation = read(data), read(data, splits.VALIDATION)
        more = published.train.items - validation.train.items
        assert more.data.min() > 0  # a part of train ...
        for user, row in enumerate(validation.histories.users.tolist()):
            first, last = validation.held_out.indptr[user : user + 2]
            assert set(validation.held_out.items[first:last]) <= set(more[row].indices)  # ... is held out
        if held is not None:
            assert len(validation.histories) == held
            assert more.nnz == len(validation.held_out.items) == 30  # a fifth of 6 is 1


def test_short_histories_are_drawn_with_the_users_id(data: Path) -> None:
    everything = splits.read_movielens(data)
    short = splits.read_movielens(data, history=3, attributes=True)
    assert np.asarray(short.histories.items.sum(axis=1)).ravel().tolist() == [3.0] * len(short.histories)
    assert (everything.histories.items - short.histories.items).min() >= 0
    assert short.histories.attributes.sum(axis=1).tolist() == [[4.0]] * len(short.histories)


def test_carted_targets_are_left_out_only_in_the_mode_of_new_items(data: Path) -> None:
    new, everything = (splits.read_taobao(data, new_items_only=mode) for mode in (True, False))
    assert len(everything.histories) == 30
    for case, carted in ((new, False), (everything, True)):
        owners = case.histories.users[np.repeat(np.arange(len(case.histories)), case.held_out.counts)]
        in_cart = np.asarray(everything.train.carts[owners, case.held_out.items]).ravel() > 0
        assert in_cart.any() == carted
    carted = everything.train.carts[new.histories.users].toarray() > 0
    assert new.hidden.toarray()[carted].all()


def test_users_without_a_cart_are_learned_from_but_not_judged_where_both_sources_are_asked_for(
    data: Path,
) -> None:
    everybody, both = (
        splits.read_taobao(data, new_items_only=False, both_sources_only=only) for only in (False, True)
    )
    assert len(everybody.histories) == 30
    assert both.histories.users is not None
    assert both.histories.users.tolist() == list(range(24))
    assert len(both.train) == 30


def test_carts_may_count_something_else_at_request_than_in_the_fit(data: Path) -> None:
    (case, *_) = benchmark("taobao").split(task("taobao", data, "taobao", "local_ridge")).values()

    def answers(histories: splits.Interactions, **parameters: float) -> list[list[int]]:
        model = (
            benchmark("taobao")
            .contenders["local_ridge"]
            .make(item_count=20, **{**MATRIX_MODELS["local_ridge"], **parameters})
        )
        model.fit(case.train)
        lists: list[list[int]] = model.recommend(histories, case.hidden, 10).tolist()
        return lists

    without_carts = dataclasses.replace(case.histories, carts=None)
    assert answers(case.histories, request_cart_weight=0.0) == answers(without_carts)
    assert answers(case.histories) != answers(without_carts)


def test_factor_lists_of_blocks_are_those_of_single_users(data: Path) -> None:
    (case, *_) = benchmark("taobao").split(task("taobao", data, "taobao", "als")).values()
    model = benchmark("taobao").contenders["als"].make(item_count=20, cart_weight=0.5, **MATRIX_MODELS["als"])
    model.fit(case.train)
    together = model.recommend(case.histories, case.hidden, 10)
    one_by_one = super(type(model), model).recommend(case.histories, case.hidden, 10)
    np.testing.assert_array_equal(together, one_by_one)


def test_a_table_replaces_the_one_between_its_marks() -> None:
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    once = replaced(page, "x", "new")
    assert once == "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n"
    assert replaced(once, "x", "new") == once
    with pytest.raises(ValueError, match="<!-- y -->"):
        replaced(page, "y", "new")


# --- the search -------------------------------------------------------------------------------------------


def test_descent_finds_the_best_of_a_separable_grid() -> None:
    grid = {"a": [1, 2, 3], "b": [10, 20, 30]}
    best, tried = descend({"a": 1, "b": 30}, grid, lambda p: -((p["a"] - 2) ** 2) - abs(p["b"] - 20))
    assert best == {"a": 2, "b": 20}
    assert len(tried) == len({tuple(parameters.items()) for parameters, _ in tried})


# --- costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("scaling", ["--items", "500,1000"]),
        ("fit_cost", ["--items", "200", "--final-items", "400", "--models", "ease_float32"]),
    ],
)
def test_costs_are_measured_and_written(name: str, arguments: list[str], tmp_path: Path) -> None:
    importlib.import_module(f"benchmarks.quality.{name}").main([*arguments, "--out", str(tmp_path)])
    results = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert len(results["rows"]) == 2
    for row in results["rows"].values():
        assert row["peak_mb"] > 0
    assert table(results).count("\n| ") >= 3


def test_dense_closed_forms_solve_what_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    fit_cost = importlib.import_module("benchmarks.quality.fit_cost")
    monkeypatch.setattr(fit_cost, "_BLOCK", 16)
    matrix = simulated(40, 400)
    gram = (matrix.T @ matrix).toarray().astype(np.float64)
    found = fit_cost.ease(matrix, np.dtype(np.float64))
    assert found == pytest.approx(dense_ease(gram, 10.0))
    # With nothing but same-session pairs, SLIST is EASE (Choi et al., section 3).
    assert fit_cost.slist(matrix, np.dtype(np.float64), share=1.0) == pytest.approx(found)


def test_extrapolation_is_cubic_in_time_and_quadratic_in_memory() -> None:
    fit_cost = importlib.import_module("benchmarks.quality.fit_cost")
    row = {"items": 10, "cpu_seconds": 2.0, "peak_mb": 50, "above_mb": 40, "how": "measured"}
    assert fit_cost.extrapolated(row, 20) == {
        "items": 20, "cpu_seconds": 16.0, "peak_mb": 180, "above_mb": 160, "how": "extrapolated",
    }  # fmt: skip


def test_simulated_interactions_are_canonical_seeded_and_skewed() -> None:
    matrix = simulated(1000, 30_000)
    assert matrix.has_canonical_format
    assert (matrix != simulated(1000, 30_000)).nnz == 0
    assert 25_000 < matrix.nnz <= 30_100
    counts = np.sort(np.asarray(matrix.sum(axis=0)).ravel())[::-1]
    assert counts[:100].sum() > 0.3 * counts.sum()
    assert np.diff(matrix.indptr).min() >= 1
