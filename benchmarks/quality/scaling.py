"""Time and memory of a fit as the catalogue grows: the cost follows the Gram matrix's entries.

Simulated users with power-law popularity, fifty draws an item; `LocalRidge` with one thread. A dense Gram
matrix of 1,000,000 items would hold a million million entries.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.quality.costs import Row, in_a_process, measured, options, report
from benchmarks.quality.measure import Clock
from benchmarks.quality.simulation import simulated
from consentier.models.local_ridge import LocalRidge

COLUMNS = {
    "items": "items",
    "interactions": "interactions",
    "gram_entries": "Gram entries",
    "share": "of items², %",
    "count_seconds": "count, CPU s",
    "solve_seconds": "solve, CPU s",
    "microseconds_per_entry": "fit, CPU µs an entry",
    "data_mb": "before the fit, MB",
    "peak_mb": "peak, MB",
}
NOTE = "Each row is a process of its own; `before the fit` is the process with the interactions in memory."


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each size, print the table and write the results."""
    parser = options(__doc__ or "", "scaling")
    parser.add_argument("--items", default="10000,30000,100000,300000,1000000", help="sizes of the catalogue")
    parser.add_argument("--interactions-per-item", type=int, default=50)
    parser.add_argument("--neighbours", type=int, default=100)
    parser.add_argument("--max-gram-entries", type=int, help="budget of the Gram matrix (default: none)")
    chosen = parser.parse_args(arguments)
    if measured(chosen.case, measure):
        return
    rows = {}
    for items in map(int, chosen.items.split(",")):
        case = {
            "items": items,
            "interactions": items * chosen.interactions_per_item,
            "neighbours": chosen.neighbours,
            "max_gram_entries": chosen.max_gram_entries,
        }
        rows[f"{items:,} items"] = in_a_process("scaling", case)
        report("scaling", chosen.out, COLUMNS, rows, NOTE)


def measure(case: Row) -> Row:
    """Fit one size in this process, after a tiny one has compiled the loops."""
    settings = {"neighbours": case["neighbours"], "regularisation": 1.0, "threads": 1}
    LocalRidge(**settings).fit(simulated(100, 1000), show_progress=False)
    model = LocalRidge(**settings, max_gram_entries=case["max_gram_entries"])
    interactions = simulated(case["items"], case["interactions"])
    counting, solving = Clock(), Clock()
    with counting.running():
        statistics = model.count(interactions)
    entries = int(statistics.gram.nnz)
    with solving.running():
        model.solve(statistics)
    seconds = counting.cpu_seconds + solving.cpu_seconds
    return {
        "items": case["items"],
        "interactions": int(interactions.nnz),
        "gram_entries": entries,
        "share": 100.0 * entries / case["items"] ** 2,
        "count_seconds": counting.cpu_seconds,
        "solve_seconds": solving.cpu_seconds,
        "microseconds_per_entry": 1e6 * seconds / entries,
        "data_mb": round(counting.memory_before_mb),
        "peak_mb": round(max(counting.peak_memory_mb, solving.peak_memory_mb)),
    }


if __name__ == "__main__":
    main()
