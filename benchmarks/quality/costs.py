"""What the tables of costs share: a figure per fresh process, results as JSON, a plain Markdown table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality.measure import ROOT, machine, one_thread, versions
from benchmarks.quality.tables import table

__all__ = ["Row", "in_a_process", "measured", "options", "report"]

Row = dict[str, Any]


def options(doc: str, name: str) -> argparse.ArgumentParser:
    """A parser with what both commands have in common."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.quality.{name}", description=doc.partition("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="directory of the JSON"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser


def in_a_process(name: str, case: Row) -> Row:
    """Measure one case in a fresh process with one thread."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.quality.{name}", "--case", json.dumps(case)],
        env=one_thread(), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def report(
    name: str, out: Path, columns: Mapping[str, str], rows: Mapping[str, Row], note: str
) -> dict[str, Any]:
    """Write the results, add to those of the same versions and machine, and print the table."""
    path = out / f"{name}.json"
    results: dict[str, Any] = {
        "benchmark": name,
        "machine": machine(),
        "versions": versions(),
        "columns": dict(columns),
        "note": note,
    }
    known: Mapping[str, Row] = {}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(found.get(key) == results[key] for key in ("machine", "versions", "columns")):
            known = found["rows"]
    results["rows"] = {**known, **rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{table(results)}", flush=True)
    return results


def measured(case: str | None, measure: Callable[[Row], Row]) -> bool:
    """In the process of one case: measure it and print what was found."""
    if case is None:
        return False
    print(json.dumps(measure(json.loads(case))))
    return True
