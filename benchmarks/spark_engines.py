"""Embedded and Apache Spark: do they make the same bundles and lists, and which size does which engine suit?

    python -m benchmarks.spark_engines --simulate 130000
    python -m benchmarks.spark_engines --data DATA --set taobao --set online_retail

For each shop, `consentier train` and `consentier score` run once on either engine, in processes of their own
with the whole machine. Told are the digest of every bundle, whether the lists of all persons are the same
rows, wall and processor seconds of all processes of a command (Spark's virtual machine and its Python workers
with it), and the largest memory that they held at one time (proportional set size: a page that several map
counts once; read once a second). Of Spark also what its event log tells of the tasks (`spark_event_log`).

``--data`` is a directory of published data sets (see docs/benchmarks.md), each of which is imported first;
``--shop`` takes a shop's own directory. Published data sets hold no contact permissions, without which nobody
is mailed: their customers are given one for e-mail each, for this comparison only. Scored are the channels of
``--channel``; by default ``shop`` where there are events, and ``email`` where there are orders.
Spark runs as ``local[2]``; its memory is set by ``--driver-memory``, for local mode has one process for all.

Prints a Markdown row a shop and engine and, with ``--out``, writes them as JSON lines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.spark_event_log import LOGGED, Tasks, read_event_logs

ENGINES = ("embedded", "spark")
FOLDERS = {
    "diginetica": "session/diginetica",
    "retailrocket": "session/retailrocket",
    "gowalla": "cf/gowalla",
    "movielens1m": "cf/movielens1m",
    "taobao": "twosource/taobao",
    "jdata": "shop/jdata",
    "online_retail": "shop/online_retail",
    "complete_journey": "shop/complete_journey",
}
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What a command cost, with all processes that it started."""

    wall_seconds: float
    cpu_seconds: float
    peak_megabytes: float
    tasks: Tasks | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """What one engine made of a shop."""

    digests: dict[str, str]
    training: Cost
    lists: dict[str, pa.Table]
    scoring: dict[str, Cost]


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shop", type=Path, action="append", default=[], help="A shop's directory.")
    parser.add_argument("--simulate", type=int, metavar="CUSTOMERS", action="append", default=[])
    parser.add_argument("--items", type=int, default=5000, help="Items of simulated shops.")
    parser.add_argument("--data", type=Path, help="Directory of published data sets.")
    parser.add_argument("--set", choices=FOLDERS, action="append", default=[])
    parser.add_argument("--tier", action="append", default=[], help="Only these; by default all.")
    parser.add_argument("--channel", action="append", default=[], help="Only these channels.")
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--driver-memory", default="4g")
    parser.add_argument("--out", type=Path, help="Append JSON lines to this file.")
    arguments = parser.parse_args()
    if arguments.set and arguments.data is None:
        parser.error("--set needs --data")
    with tempfile.TemporaryDirectory() as folder:
        print("| shop | rows | engine | command | s | CPU s | MB | tasks, s | no task, s | equal |")
        print("|---|---:|---|---|---:|---:|---:|---:|---:|---|")
        for name, shop in shops(arguments, Path(folder)):
            told = compared(name, shop, arguments, Path(folder) / "results")
            print("\n".join(table_rows(told)), flush=True)
            if arguments.out is not None:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(told) + "\n")
            shutil.rmtree(Path(folder) / "results")


def shops(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """The shops to compare on, each made when its turn comes."""
    for path in arguments.shop:
        yield path.name, path
    for name in arguments.set:
        shop = folder / name
        consentier("import", name, arguments.data / FOLDERS[name], shop)
        permit_mail(shop)
        yield name, shop
        shutil.rmtree(shop)
    for customers in arguments.simulate:
        shop = folder / f"simulated-{customers}"
        consentier("simulate", shop, "--customers", customers, "--items", arguments.items)
        yield f"simulated, {customers:,} customers", shop
        shutil.rmtree(shop)


def permit_mail(shop: Path) -> None:
    """Give each customer with a CRM permission one for e-mail."""
    path = shop / "consents.parquet"
    consents = pq.read_table(path)
    granted = consents.filter(pc.equal(consents["permission"], "crm"))
    for name, column in (
        ("record_id", pc.binary_join_element_wise("email", granted["record_id"], " ")),
        ("permission", pa.repeat(pa.scalar("contact:email"), granted.num_rows)),
    ):
        place = granted.schema.get_field_index(name)
        granted = granted.set_column(
            place, granted.schema.field(name), column.cast(granted.schema.types[place])
        )
    pq.write_table(pa.concat_tables([consents, granted]), path)


def compared(name: str, shop: Path, arguments: argparse.Namespace, results: Path) -> dict[str, Any]:
    """Train and score on both engines, and say what agrees."""
    results.mkdir()
    channels = arguments.channel or [
        channel
        for channel, table in (("shop", "events"), ("email", "orders"))
        if (shop / f"{table}.parquet").exists()
    ]
    made = {engine: trained(engine, shop, channels, arguments, results) for engine in ENGINES}
    one, other = made.values()
    return {
        "shop": name,
        "rows": {table.stem: pq.read_metadata(table).num_rows for table in sorted(shop.glob("*.parquet"))},
        "digests": one.digests,
        "digests_equal": one.digests == other.digests,
        "lists": {channel: rows.num_rows for channel, rows in one.lists.items()},
        "lists_equal": {channel: one.lists[channel].equals(other.lists[channel]) for channel in channels},
        "engines": {
            engine: {
                "train": dataclasses.asdict(each.training),
                **{f"score {channel}": dataclasses.asdict(cost) for channel, cost in each.scoring.items()},
            }
            for engine, each in made.items()
        },
    }


def trained(
    engine: str, shop: Path, channels: Sequence[str], arguments: argparse.Namespace, results: Path
) -> Trained:
    """Train, and score the channels, with one engine."""
    on_spark = ["--engine", "spark", "--master", arguments.master] if engine == "spark" else []
    bundles = results / f"bundles-{engine}"
    tiers = [word for tier in arguments.tier for word in ("--tier", tier)]
    said, training = consentier(
        "train", shop, "--out", bundles, "--json", *tiers, *on_spark, memory=arguments.driver_memory
    )
    made = Trained(json.loads(said)["digests"], training, {}, {})
    for channel in channels:
        out = results / f"lists-{engine}-{channel}"
        _, made.scoring[channel] = consentier(
            "score", shop, "--bundles", bundles, "--channel", channel, "--out", out, "--at", cutoff_of(shop),
            *on_spark, memory=arguments.driver_memory,
        )  # fmt: skip
        made.lists[channel] = rows_of(out)
    return made


def cutoff_of(shop: Path) -> str:
    """The cut-off that the shop's configuration names."""
    found = re.search(r"^cutoff\s*=\s*\"?([^\s\"]+)", (shop / "consentier.toml").read_text("utf-8"), re.M)
    if found is None:
        raise SystemExit(f"{shop}/consentier.toml names no cut-off")
    return found[1]


def rows_of(lists: Path) -> pa.Table:
    """All rows of a batch, in one order."""
    rows = ds.dataset(sorted(str(part) for part in lists.rglob("*.parquet"))).to_table()
    simple = [name for name in rows.column_names if not pa.types.is_nested(rows.schema.field(name).type)]
    order = pc.sort_indices(rows, sort_keys=[(name, "ascending") for name in simple])
    return rows.take(order).combine_chunks()


def consentier(*words: object, memory: str = "4g") -> tuple[str, Cost]:
    """Run a command; give what it printed and what it cost."""
    command = [sys.executable, "-m", "consentier", *map(str, words)]
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as log,
        tempfile.TemporaryFile("w+") as said,
        tempfile.TemporaryFile("w+") as errors,
    ):
        environment = {
            **os.environ,
            "CONSENTIER__TRACKING__ENABLED": "false",
            "PYSPARK_SUBMIT_ARGS": f"--driver-memory {memory} --conf spark.ui.enabled=false "
            f"{LOGGED.format(folder=log)} pyspark-shell",
        }
        process = subprocess.Popen(
            command, stdout=said, stderr=errors, env=environment, start_new_session=True
        )
        cost = watched(process, started)
        said.seek(0)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)}: code {process.returncode}\n{errors.read()[-4000:]}")
        if any(Path(log).iterdir()):
            cost = dataclasses.replace(cost, tasks=read_event_logs(Path(log)))
        return said.read(), cost


def watched(process: subprocess.Popen[bytes], started: float) -> Cost:
    """Wait for a command, and read what its session of processes uses, once a second."""
    cpu: dict[int, float] = {}
    peak = 0.0
    while process.poll() is None:
        members = list(session_members(process.pid))
        cpu.update(members)
        peak = max(peak, sum(proportional_megabytes(pid) for pid, _ in members))
        time.sleep(1.0)
    return Cost(round(time.perf_counter() - started, 2), round(sum(cpu.values()), 2), round(peak, 1))


def session_members(session: int) -> Iterator[tuple[int, float]]:
    """Processes of a session, and the processor seconds of each."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session:
            yield int(stat.parent.name), (int(fields[11]) + int(fields[12])) / _TICKS


def proportional_megabytes(pid: int) -> float:
    """The memory of a process; none if it has just ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(number) for number in re.findall(r"^Pss:\s+(\d+)", text, re.M)) / 1024


def table_rows(told: dict[str, Any]) -> Iterator[str]:
    """Markdown rows of a shop."""
    for engine, commands in told["engines"].items():
        for command, cost in commands.items():
            if command == "train":
                equal = f"{len(told['digests'])} digests: {'yes' if told['digests_equal'] else 'NO'}"
            else:
                channel = command.removeprefix("score ")
                same = "yes" if told["lists_equal"][channel] else "NO"
                equal = f"{told['lists'][channel]:,} rows: {same}"
            measured = [cost[name] for name in ("wall_seconds", "cpu_seconds", "peak_megabytes")]
            cells = [f"{value:,.0f}" for value in measured] + ["", ""]
            if (tasks := cost["tasks"]) is not None:
                alone = tasks["span_seconds"] - tasks["busy_seconds"]
                cells[-2:] = [f"{tasks['task_seconds']:,.0f}", f"{alone:,.0f}"]
            rows = f"{sum(told['rows'].values()):,}"
            yield f"| {' | '.join([told['shop'], rows, engine, command, *cells, equal])} |"


if __name__ == "__main__":
    main()
