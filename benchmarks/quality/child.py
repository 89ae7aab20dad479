"""The process in which one model is measured: reads a task as JSON, writes facts and values."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import cast

from benchmarks.quality.benchmark import Benchmark
from benchmarks.quality.measure import Task, write_values


def main() -> None:
    """Measure, or search a grid, and write what was found to the two files named."""
    facts, values = map(Path, sys.argv[1:])
    task = Task(**json.load(sys.stdin))
    benchmark = cast("Benchmark", importlib.import_module(f"benchmarks.quality.{task.benchmark}").BENCHMARK)
    measured = benchmark.search(task) if task.grid else benchmark.measure(task)
    facts.write_text(json.dumps(measured.facts), encoding="utf-8")
    write_values(values, measured.values)


if __name__ == "__main__":
    main()
