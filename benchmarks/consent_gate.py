"""Time and memory of the consent gate, beside a plain interval join in SQL in the same run.

A simulated shop: events of visitors, and a ledger of grants, refusals, withdrawals, expiries and records that
were delivered twice. The gate lets pass what the online tier may be trained on, sorted, and counts the rest
by reason. The peer is what one would write by hand for DuckDB: the next record ends the one before (LEAD),
then a range join of events with the grants in force at the cut-off. It knows no objections, minors, purposes,
contradictions, late or early records, and sorts and counts nothing; on this ledger, which holds nothing of
that kind, both must let the same rows pass.

Each run is a process of its own that loads the tables into memory and then starts the clock; cases take
turns. The memory is that of the whole process, interpreter, libraries and tables included.
Prints a Markdown table, then one line of JSON.

Run: ``python benchmarks/consent_gate.py`` where consentier is installed with its train extra.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from consentier.consent import Policy, Tier
from consentier.consent.lifetimes import Lifetimes
from consentier.features.consent_intervals import ConsentTables
from consentier.features.gate import ConsentGate
from consentier.features.schemas import SCHEMAS, arrow_schema
from consentier.features.tables import ShopTables
from consentier.features.validation import ValidationReport

CASES = ("load the tables", "gate", "plain SQL")
SIMULATION = "simulate"

_DAY = 86_400_000_000
_START = 1_735_689_600_000_000  # 2025-01-01
_DAYS = 365
CUTOFF = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

_PLAIN = """
WITH spans AS (
    SELECT subject_id, state, epoch_us(valid_from) AS start, least(
        coalesce(epoch_us(valid_to), 9e18::BIGINT),
        lead(epoch_us(valid_from), 1, 9e18::BIGINT) OVER (PARTITION BY subject_id ORDER BY valid_from)
    ) AS stop
    FROM consents WHERE subject_kind = 'visitor' AND permission = 'online'
)
SELECT visitor_id, session_id, item_id, epoch_us(ts) AS ts, event_type
FROM events JOIN spans ON visitor_id = subject_id AND epoch_us(ts) >= start AND epoch_us(ts) < $cutoff
WHERE state = 'granted' AND start <= $cutoff AND stop > $cutoff AND event_type <> 'remove'
"""


def sizes(scale: float) -> dict[str, int]:
    """How many rows there are of what."""
    full = {"events": 5_000_000, "subjects": 200_000, "records": 600_000}
    return {name: int(count * scale) for name, count in full.items()}


def write_shop(folder: Path, *, events: int, subjects: int, records: int) -> None:
    """Simulate events and consents, and write them as Parquet."""
    rng = np.random.default_rng(1)
    visitor = rng.integers(0, subjects, events)
    when = _START + rng.integers(0, (_DAYS + 10) * _DAY, events)
    pq.write_table(
        pa.table(
            {
                "visitor_id": _named("v", visitor),
                "session_id": _named("s", visitor * 16 + when // (30 * _DAY) % 16),
                "ts": pa.array(when).cast(pa.timestamp("us", "UTC")),
                "item_id": _named("i", np.minimum(rng.zipf(1.3, events), 50_000)),
                "event_type": pa.array(["view", "cart", "remove"]).take(
                    pa.array(rng.choice(3, events, p=[0.8, 0.15, 0.05]))
                ),
            }
        ),
        folder / "events.parquet",
    )
    pq.write_table(_consents(rng, subjects, records), folder / "consents.parquet")


def _consents(rng: np.random.Generator, subjects: int, records: int) -> pa.Table:
    """Each subject grants and withdraws in turn, or refuses; one record in fifty is delivered twice."""
    twice = records // 50
    once = records - twice
    subject = np.sort(np.arange(once) % subjects)
    turn = np.arange(once) - np.searchsorted(subject, subject)
    refuses = rng.random(subjects)[subject] < 0.1
    state = np.where(refuses, 1, np.where(turn % 2 == 0, 0, 2))
    start = _START + turn * 90 * _DAY + rng.integers(0, 60 * _DAY, once)
    ends = (state == 0) & (rng.random(once) < 0.25)
    end = pa.array(start + rng.integers(_DAY, 400 * _DAY, once), mask=~ends)
    order = rng.permutation(np.concatenate([np.arange(once), rng.integers(0, once, twice)]))
    recorded = start[order] + rng.integers(0, 60_000_000, records)
    instant = pa.timestamp("us", "UTC")
    columns = {
        "record_id": _named("r", order),
        "subject_id": _named("v", subject[order]),
        "subject_kind": pa.array(np.full(records, "visitor")),
        "permission": pa.array(np.full(records, "online")),
        "state": pa.array(["granted", "denied", "withdrawn"]).take(pa.array(state[order])),
        "valid_from": pa.array(start[order]).cast(instant),
        "valid_to": end.take(pa.array(order)).cast(instant),
        "recorded_at": pa.array(recorded).cast(instant),
        "collected_by": pa.array(np.full(records, "benchmark")),
        "evidence": _named("form ", order),
    }
    schema = arrow_schema("consents")
    return pa.table(
        {name: columns.get(name, pa.nulls(records, schema.field(name).type)) for name in schema.names}
    )


def _named(prefix: str, numbers: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Array:
    return pa.array(np.char.add(prefix, numbers.astype("U12")))


def run(case: str, folder: Path, scale: float) -> dict[str, float]:
    """One run of one case, in this process."""
    if case == SIMULATION:
        write_shop(folder, **sizes(scale))
        return {}
    tables = {name: arrow_schema(name).empty_table() for name in SCHEMAS}
    for name in ("events", "consents"):
        chunks = pq.ParquetFile(folder / f"{name}.parquet").iter_batches(65_536)
        tables[name] = pa.Table.from_batches(chunks).select(tables[name].column_names)
    pa.default_memory_pool().release_unused()
    start, worked = time.perf_counter(), time.process_time()
    rows = {"load the tables": lambda _: 0, "gate": _gate, "plain SQL": _plain}[case](tables)
    seconds, cpu = time.perf_counter() - start, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak / 1024, "rows": rows}


def _gate(tables: dict[str, pa.Table]) -> int:
    shop = ShopTables(**tables, report=ValidationReport())
    gate = ConsentGate(shop, ConsentTables.of_shop(shop, Lifetimes.default()), CUTOFF, Policy.default())
    return int(gate.permitted(Tier.ONLINE).rows.num_rows)


def _plain(tables: dict[str, pa.Table]) -> int:
    with duckdb.connect() as connection:
        for name in ("events", "consents"):
            connection.register(name, tables[name])
        cutoff = int(CUTOFF.timestamp()) * 1_000_000
        return int(connection.sql(_PLAIN, params={"cutoff": cutoff}).to_arrow_table().num_rows)


def in_a_process(case: str, folder: Path, scale: float) -> dict[str, float]:
    """One run of one case, in a process of its own."""
    command = [sys.executable, __file__, "--case", case, "--shop", str(folder), "--scale", str(scale)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(folder: Path, repetitions: int, scale: float) -> dict[str, dict[str, float]]:
    """Medians over the repetitions; the most memory of all of them."""
    in_a_process(SIMULATION, folder, scale)  # not here: the peak of a process begins with that of its parent
    runs: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    for _ in range(repetitions):
        for case in CASES:
            runs[case].append(in_a_process(case, folder, scale))
    return {
        case: {
            "seconds": round(statistics.median(each["seconds"] for each in found), 2),
            "cpu_seconds": round(statistics.median(each["cpu_seconds"] for each in found), 2),
            "peak_mb": round(max(each["peak_mb"] for each in found)),
            "rows": found[0]["rows"],
        }
        for case, found in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size (default: 1)")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each case (default: 3)")
    parser.add_argument("--case", choices=(*CASES, SIMULATION), help=argparse.SUPPRESS)
    parser.add_argument("--shop", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run(arguments.case, arguments.shop, arguments.scale)))
        return
    with tempfile.TemporaryDirectory() as folder:
        table = measure(Path(folder), arguments.repetitions, arguments.scale)
    if table["gate"]["rows"] != table["plain SQL"]["rows"]:
        sys.exit(f"the gate and the plain join let different rows pass: {table}")
    ratio = table["gate"]["seconds"] / table["plain SQL"]["seconds"]
    print("| case | median, s | CPU time of all threads, s | peak memory of the process, MB | rows |")
    print("|---|---:|---:|---:|---:|")
    for case, row in table.items():
        times = f"{row['seconds']:.2f} | {row['cpu_seconds']:.2f}"
        print(f"| {case} | {times} | {row['peak_mb']:.0f} | {row['rows']:,.0f} |")
    print(f"\nThe gate took {ratio:.1f} times as long as the plain join.")
    facts = {
        "benchmark": "consent_gate",
        "repetitions": arguments.repetitions,
        "python": platform.python_version(),
        "duckdb": duckdb.__version__,
        "ibis": ibis.__version__,
        **sizes(arguments.scale),
        "cases": table,
        "ratio": round(ratio, 2),
    }
    print(f"\n{json.dumps(facts, ensure_ascii=False)}")


if __name__ == "__main__":
    main()
