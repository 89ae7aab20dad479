"""What is published is what was measured: the page's tables, the results and the parameters say the same."""

from __future__ import annotations

import argparse
import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from benchmarks.quality.benchmark import PARAMETERS, _compare
from benchmarks.quality.gowalla import BENCHMARK
from benchmarks.quality.tables import replaced, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = sorted(path for path in RESULTS.glob("*.json") if "machine" in json.loads(path.read_text("utf-8")))
WITH_PARAMETERS = [path for path in MEASURED if (RESULTS / f"tuning-{path.stem}.json").exists()]


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_a_table_of_the_page_is_that_of_its_results(path: Path) -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert replaced(page, path.stem, table(read(path))) == page, (
        f"run: python -m benchmarks.quality.tables --into docs/benchmarks.md {path.relative_to(ROOT)}"
    )


@pytest.mark.parametrize("path", WITH_PARAMETERS, ids=lambda path: path.stem)
def test_rows_were_measured_with_the_parameters_that_are_published_and_chosen(path: Path) -> None:
    published = tomllib.loads(PARAMETERS.read_text("utf-8"))[path.stem]
    tried = read(RESULTS / f"tuning-{path.stem}.json")
    for name, row in read(path)["rows"].items():
        assert row["parameters"] == {key: value for key, value in published[name].items() if key != "model"}
        if name in tried:  # a row may leave a parameter at its default
            assert row["parameters"].items() <= tried[name]["chosen"].items(), name


# ---- Differences in pairs, where the values of another machine's rows are not at hand ----------------------


def compared(results: dict[str, Any], former: dict[str, Any], folder: Path, against: str | None) -> Any:
    """The difference of our row afterwards."""
    _compare(BENCHMARK, results, former, argparse.Namespace(out=folder, against=against))
    return results["rows"]["ours"].get("difference")


def test_a_difference_stays_only_while_both_rows_are_what_they_were(tmp_path: Path) -> None:
    def row(mean: float, *, ours: bool) -> dict[str, Any]:
        return {"ours": ours, "metrics": {BENCHMARK.objective: {"mean": mean}}}

    before = {
        "dataset": "gowalla",
        "against": "peer",
        "rows": {
            "peer": row(0.2, ours=False),
            "other": row(0.1, ours=False),
            "ours": {**row(0.3, ours=True), "difference": "of before"},
        },
    }
    rows = before["rows"]
    assert isinstance(rows, dict)
    for name, mean, against, expected in (
        ("ours", 0.3, None, "of before"),  # measured once more, to the same end
        ("peer", 0.2, None, "of before"),
        ("ours", 0.4, None, None),
        ("peer", 0.25, None, None),
        ("other", 0.9, None, None),  # the best peer is another
        ("ours", 0.3, "other", None),
    ):
        now = copy.deepcopy(before)
        now["rows"][name] = row(mean, ours=name == "ours")  # type: ignore[index]
        assert compared(now, copy.deepcopy(rows), tmp_path, against) == expected, (name, mean, against)
