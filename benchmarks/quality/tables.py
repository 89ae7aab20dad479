"""Renders results as the Markdown tables of docs/benchmarks.md.

    python -m benchmarks.quality.tables benchmarks/results/*.json
    python -m benchmarks.quality.tables --into docs/benchmarks.md benchmarks/results/*.json

The table of ``NAME.json`` stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["main", "replaced", "table"]

_HEADINGS = {
    "hit_rate@20": "HR@20",
    "mrr@20": "MRR@20",
    "ndcg@20": "NDCG@20",
    "ndcg@100": "NDCG@100",
    "recall@20": "Recall@20",
    "recall@50": "Recall@50",
}


def main() -> None:
    """Print a table for each file, or write it into a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", help="JSON files that the benchmarks wrote")
    parser.add_argument("--into", type=Path, help="Markdown page whose tables are replaced")
    arguments = parser.parse_args()
    for path in arguments.results:
        results = json.loads(path.read_text(encoding="utf-8"))
        if "machine" not in results:  # what was tried while tuning
            continue
        if arguments.into is None:
            print(f"{table(results)}\n")
            continue
        page = arguments.into.read_text(encoding="utf-8")
        arguments.into.write_text(replaced(page, path.stem, table(results)), encoding="utf-8")


def replaced(page: str, name: str, content: str) -> str:
    """The page with new content between the marks of a name.

    Raises
    ------
    ValueError
        If the page has no such marks.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(
            f"the page has no {begin.strip()} ... {end}: add the two lines where the table belongs"
        )
    return f"{before}{begin}\n{content}\n\n{end}{after}"


def table(results: Mapping[str, Any]) -> str:
    """One set's results: what was judged, the table, and on what it was measured."""
    rows: dict[str, dict[str, Any]] = results["rows"]
    if not rows:
        return "nothing was measured"
    if "columns" in results:
        return _plain(results)
    metrics = list(next(iter(rows.values()))["metrics"])
    ordered = sorted(rows.items(), key=lambda pair: -pair[1]["metrics"][metrics[0]]["mean"])
    head = [
        "",
        *(_heading(name) for name in metrics),
        "fit, CPU s",
        "peak, MB",
        "requests/CPU s",
        "p50/p99, CPU µs",
    ]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for name, row in ordered:
        label = f"**{name}**" if row["ours"] else name
        lines.append(_line([label, *(_interval(row["metrics"][each]) for each in metrics), *_costs(row)]))
    return "\n".join([_split(results), "", *lines, "", *_differences(results), _where(results)])


def _plain(results: Mapping[str, Any]) -> str:
    columns: dict[str, str] = results["columns"]
    lines = [_line(["", *columns.values()]), _line(["---", *["---:"] * len(columns)])]
    for name, row in results["rows"].items():
        lines.append(_line([name, *(_plain_cell(row.get(key)) for key in columns)]))
    notes = [results["note"], ""] if "note" in results else []
    return "\n".join([*lines, "", *notes, _where(results)])


def _plain_cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def _heading(name: str) -> str:
    group, _, metric = name.rpartition("/")
    metric = metric.removeprefix("capped_")
    heading = _HEADINGS.get(metric, metric)
    return f"{heading}, {group}" if group else heading


def _interval(figures: Mapping[str, float]) -> str:
    mean, half = figures["mean"], (figures["high"] - figures["low"]) / 2
    return f"{_decimal(mean)} ±{_decimal(half)}"


def _decimal(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".", 1)


def _costs(row: Mapping[str, Any]) -> list[str]:
    fit, answers, single = row["fit"], row["batch"], row["single"]
    seconds = fit["cpu_seconds"]
    return [
        f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}",
        f"{fit['peak_memory_mb']:,.0f}",
        f"{answers['requests_per_cpu_second']:,.0f}",
        f"{single['cpu_us_p50']:,.0f}/{single['cpu_us_p99']:,.0f}",
    ]


def _differences(results: Mapping[str, Any]) -> list[str]:
    """A sentence on each row of ours beside the best peer."""
    sentences = []
    for name, row in results["rows"].items():
        if row["ours"] and "difference" in row:
            found = ", ".join(_difference(metric, each) for metric, each in row["difference"].items())
            sentences.append(f"{name} less {results['against']}, in pairs: {found}.")
    return [*sentences, ""] if sentences else []


def _difference(metric: str, figures: Mapping[str, float]) -> str:
    mean, low, high = (_signed(figures[name]) for name in ("mean", "low", "high"))
    return f"{_heading(metric)} {mean} ({low} to {high})"


def _signed(value: float) -> str:
    return ("−" if value < 0 else "+") + _decimal(abs(value))


def _split(results: Mapping[str, Any]) -> str:
    facts = dict(results["split"])
    name = facts.pop("set")
    sizes = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in facts.items())
    return f"{name}: {sizes}."


def _where(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    found = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"{machine['cpu']}, one thread; {found}."


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
