"""What the quality benchmarks share: contenders, the search for parameters, and the command line."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.quality import splits
from benchmarks.quality.measure import (
    ROOT,
    Measured,
    Task,
    Values,
    differences,
    in_a_fresh_process,
    intervals,
    machine,
    read_values,
    versions,
    write_values,
)
from benchmarks.quality.tables import table

__all__ = ["Benchmark", "Contender", "descend", "run"]

PARAMETERS = Path(__file__).with_name("parameters.toml")
GRIDS = Path(__file__).with_name("grids.toml")

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A class of models that a benchmark can fit.

    Attributes
    ----------
    make
        Makes an unfitted model from the number of items and the parameters.
    ours
        Whether it is Consentier's.
    package
        What must be installed for it.
    """

    make: Callable[..., Any]
    ours: bool = False
    package: str | None = None


class Benchmark(ABC):
    """One table per set: which models there are, and how one of them is measured."""

    name: ClassVar[str]
    """The module's name, and that of the results' file."""
    sets: ClassVar[tuple[str, ...]]
    """The sets it runs on."""
    unit: ClassVar[str]
    """What a limit counts: sessions or users."""
    objective: ClassVar[str]
    """The metric by which parameters are chosen on validation."""
    contenders: ClassVar[Mapping[str, Contender]]

    @abstractmethod
    def files(self, dataset: str) -> tuple[str, ...]:
        """The files that a set needs, relative to the directory of all sets."""

    @abstractmethod
    def measure(self, task: Task) -> Measured:
        """Fit and judge one model in this process."""

    @abstractmethod
    def quality(self, task: Task, split: Any, parameters: Parameters) -> Values:
        """Fit with these parameters and judge, without measuring costs."""

    @abstractmethod
    def split(self, task: Task) -> Any:
        """Read the split of a task."""

    def search(self, task: Task) -> Measured:
        """Search parameters on the validation split, see `descend`."""
        split = self.split(dataclasses.replace(task, part=splits.VALIDATION))

        def judge(parameters: Parameters) -> float:
            figure = float(np.mean(self.quality(task, split, parameters)[self.objective]))
            print(f"{task.dataset} {task.model} {figure:.5f} {parameters}", file=sys.stderr, flush=True)
            return figure

        best, tried = descend(task.parameters, task.grid, judge)
        facts = {"objective": self.objective, "chosen": best, "figure": max(f for _, f in tried)}
        return Measured({**facts, "tried": [{"parameters": p, self.objective: f} for p, f in tried]}, {})


def descend(
    start: Parameters,
    grid: Mapping[str, Sequence[Any]],
    judge: Callable[[Parameters], float],
    passes: int = 3,
) -> tuple[Parameters, list[tuple[Parameters, float]]]:
    """Coordinate descent over a grid: the best value of one parameter after the other, until none changes.

    Parameters
    ----------
    start
        Where to begin; parameters that the grid does not name stay.
    grid
        The values to try, by parameter, in the order in which they are searched.
    judge
        The figure of a setting, the larger the better; asked once for each.
    passes
        How often each parameter is searched at most.

    Returns
    -------
    best : dict
        The first of the settings with the largest figure.
    tried : list of (dict, float)
        All settings with their figures, in the order in which they were tried.
    """
    tried: list[tuple[Parameters, float]] = []

    def figure(parameters: Parameters) -> float:
        for known, value in tried:
            if known == parameters:
                return value
        tried.append((parameters, judge(parameters)))
        return tried[-1][1]

    best = dict(start)
    figure(best)
    for _ in range(passes):
        before = best
        for name, values in grid.items():
            for value in values:
                if figure({**best, name: value}) > figure(best):
                    best = {**best, name: value}
        if best == before:
            break
    return best, tried


# --- the command ------------------------------------------------------------------------------------------


def run(benchmark: Benchmark, arguments: Sequence[str] | None = None) -> None:
    """Run a benchmark from the command line: print the table, write the results."""
    options = _options(benchmark, arguments)
    for dataset in options.set or benchmark.sets:
        splits.require_data(options.data, *benchmark.files(dataset))
        rows = _rows(benchmark, dataset, options)
        if options.tune:
            _tune(benchmark, dataset, rows, options)
        else:
            results = _measure(benchmark, dataset, rows, options)
            print(f"\n{table(results)}", flush=True)


def _options(benchmark: Benchmark, arguments: Sequence[str] | None) -> argparse.Namespace:
    module = sys.modules[type(benchmark).__module__]
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.quality.{benchmark.name}",
        description=(module.__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--data", type=Path, default=splits.DEFAULT_DATA, help="directory of the splits")
    parser.add_argument("--set", action="append", choices=benchmark.sets, help="by default all")
    parser.add_argument("--models", help="rows to measure, separated by commas (default: all in the file)")
    parser.add_argument(f"--max-{benchmark.unit}", type=int, dest="limit", help="judge so many at most")
    parser.add_argument("--parameters", type=Path, default=PARAMETERS, help="TOML file of the rows")
    parser.add_argument("--grids", type=Path, default=GRIDS, help="TOML file of what --tune tries")
    parser.add_argument("--tune", action="store_true", help="search parameters on validation and write them")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="directory of the JSON"
    )
    parser.add_argument("--latency-requests", type=int, default=2000, help="single requests to time")
    parser.add_argument("--against", help="row to compare with in pairs (default: the best peer)")
    return parser.parse_args(arguments)


def _rows(benchmark: Benchmark, dataset: str, options: argparse.Namespace) -> dict[str, Parameters]:
    """The rows to measure with their parameters, checked."""
    known = tomllib.loads(options.parameters.read_text(encoding="utf-8")).get(dataset, {})
    chosen = list(known) if options.models is None else options.models.split(",")
    for name in chosen:
        if name not in known:
            raise SystemExit(
                f"{options.parameters} has no table [{dataset}.{name}]; it has {', '.join(known)}"
            )
        model = known[name].get("model", name)
        contender = benchmark.contenders.get(model)
        if contender is None:
            raise SystemExit(
                f"[{dataset}.{name}] names the model {model!r}; there are {', '.join(benchmark.contenders)}"
            )
        if contender.package is not None and importlib.util.find_spec(contender.package) is None:
            print(
                f"{name} needs {contender.package}, which is not installed: install the bench extra "
                "(make bench-env), or leave the row out with --models.",
                file=sys.stderr,
            )
            raise SystemExit(2)
    return {name: known[name] for name in chosen}


def _task(
    benchmark: Benchmark, dataset: str, name: str, row: Parameters, options: argparse.Namespace
) -> Task:
    parameters = {key: value for key, value in row.items() if key != "model"}
    return Task(
        benchmark=benchmark.name,
        dataset=dataset,
        model=row.get("model", name),
        parameters=parameters,
        data=str(options.data.resolve()),
        limit=options.limit,
        latency_requests=options.latency_requests,
    )


def _measure(
    benchmark: Benchmark, dataset: str, rows: Mapping[str, Parameters], options: argparse.Namespace
) -> dict[str, Any]:
    path = options.out / f"{dataset}.json"
    results: dict[str, Any] = {}
    former: dict[str, Any] = {}
    for name, row in rows.items():
        print(f"{dataset}: {name}", file=sys.stderr, flush=True)
        task = _task(benchmark, dataset, name, row, options)
        measured = in_a_fresh_process(task)
        header = {
            "benchmark": benchmark.name,
            "dataset": dataset,
            "split": measured.facts.pop("split"),
            "machine": machine(),
            "versions": versions(),
        }
        if not results:
            results = _kept(path, header)
            former = dict(results["rows"])
        figures = {
            "model": task.model,
            "ours": benchmark.contenders[task.model].ours,
            "parameters": task.parameters,
            "metrics": intervals(measured.values),
            **measured.facts,
        }
        results["rows"][name] = figures
        _keep_values(options.out, dataset, name, measured.values)
        _write_json(path, results)
    _compare(benchmark, results, former, options)
    _write_json(path, results)
    return results


def _kept(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    """Results whose other rows stay: those of the same split, versions and machine."""
    if not path.exists():
        return {**header, "rows": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    different = [key for key, value in header.items() if found.get(key) != value]
    if different:
        raise SystemExit(
            f"{path} holds rows with another {' and '.join(different)}, which must not stand in one table: "
            "move it away, or name another directory with --out."
        )
    return found


def _compare(
    benchmark: Benchmark,
    results: dict[str, Any],
    former: Mapping[str, Mapping[str, Any]],
    options: argparse.Namespace,
) -> None:
    """Add to each row its difference from the best peer, in pairs, where its values are at hand.

    Where they are not (they are no part of the repository), the difference of before stays, if it was from
    the same peer and neither row has other metrics than before (`former`).
    """
    rows = results["rows"]
    peers = {
        name: row["metrics"][benchmark.objective]["mean"] for name, row in rows.items() if not row["ours"]
    }
    against = options.against or max(peers, key=lambda name: peers[name], default=None)
    if against is None:
        return
    others = _kept_values(options.out, results["dataset"], against)
    same = {name: row for name, row in former.items() if row["metrics"] == rows[name]["metrics"]}
    kept = {name: row["difference"] for name, row in same.items() if "difference" in row}
    if against not in same or results.get("against") != against:
        kept = {}
    results["against"] = against
    for name, row in rows.items():
        values = _kept_values(options.out, results["dataset"], name)
        row.pop("difference", None)
        if name == against:
            continue
        if others is not None and values is not None:
            row["difference"] = differences(values, others)
        elif name in kept:
            row["difference"] = kept[name]


def _values_path(out: Path, dataset: str, name: str) -> Path:
    """Values per request are large and kept out of the repository, beside the results they belong to."""
    return out / ".values" / dataset / f"{name}.npz"


def _keep_values(out: Path, dataset: str, name: str, values: Values) -> None:
    path = _values_path(out, dataset, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_values(path, values)


def _kept_values(out: Path, dataset: str, name: str) -> Values | None:
    path = _values_path(out, dataset, name)
    return read_values(path) if path.exists() else None


def _tune(
    benchmark: Benchmark, dataset: str, rows: Mapping[str, Parameters], options: argparse.Namespace
) -> None:
    grids = tomllib.loads(options.grids.read_text(encoding="utf-8"))
    path = options.out / f"tuning-{dataset}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, row in rows.items():
        task = _task(benchmark, dataset, name, row, options)
        grid = grids.get(benchmark.name, {}).get(name)
        if grid is None:
            print(
                f"{dataset}: {name} has no table [{benchmark.name}.{name}] in {options.grids}",
                file=sys.stderr,
            )
            continue
        found[name] = in_a_fresh_process(dataclasses.replace(task, grid=grid)).facts
        _write_tried(path, found)
        _write_parameters(options.parameters, dataset, name, {**row, **found[name]["chosen"]})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tried(path: Path, found: Mapping[str, Any]) -> None:
    """Write what was tried, a line per row of the table."""
    lines = [f"{json.dumps(name)}: {json.dumps(facts)}" for name, facts in found.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _write_parameters(path: Path, dataset: str, name: str, parameters: Parameters) -> None:
    """Write one table anew; comments at the file's top stay."""
    text = path.read_text(encoding="utf-8")
    document = tomllib.loads(text)
    document.setdefault(dataset, {})[name] = parameters
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    tables = [
        f"[{dataset}.{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in row.items())
        for dataset, rows in document.items()
        for name, row in rows.items()
    ]
    path.write_text(comments + "\n" + "\n".join(tables), encoding="utf-8")


def _toml(value: bool | int | float | str) -> str:
    return json.dumps(value) if isinstance(value, bool | str) else repr(value)
