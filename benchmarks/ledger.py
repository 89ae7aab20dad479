"""Rates and latencies of the consent ledger, beside what SQLite does bare in the same run.

One SQLite file with as many subjects as asked for: visitors and customers in pairs, each with one to four
decisions of the last year, three in four pairs linked by a login.

* Appending, in batches and one by one, beside an insert of the same rows into a plain table with the same
  indexes, in transactions of the same size, on the same disk, with the same settings. The ledger's rate
  includes looking for repetitions, canonical form, salts and the chain.
* `resolve` of a random pair, beside the look-up of a random row by its primary key in the same file, turn by
  turn. Once in random order over all subjects, and once for a thousand subjects that keep coming back.
* `resolve` of a ledger in memory.
* `verify`, and the size of the file.

Prints a Markdown table, then one line of JSON.

Run: ``python benchmarks/ledger.py`` (needs the standard library only, some 2 GB of disk and 5 minutes).
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import json
import platform
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from consentier.consent import ConsentRecord, Ledger, Link, Resolution
from consentier.consent.entries import RECORD_COLUMNS, row_of

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
AT = START + dt.timedelta(days=365)

SETTINGS = ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", "cache_size = -32768")


def decisions(pair: int) -> list[ConsentRecord]:
    """What one visitor and one customer decided in the course of a year."""
    rng = random.Random(pair)
    records = []
    for kind, subject, permission in (
        ("visitor", f"v{pair:09}", "online"),
        ("customer", f"c{pair:09}", "crm"),
    ):
        days = sorted(rng.sample(range(300), rng.choice((1, 1, 1, 2, 2, 4))))
        for number, day in enumerate(days):
            at = START + dt.timedelta(days=day, seconds=rng.randrange(86_400))
            state = "granted" if number % 2 == 0 else rng.choice(("granted", "withdrawn"))
            records.append(
                ConsentRecord(
                    record_id=f"{subject}-{number}",
                    subject_id=subject,
                    subject_kind=kind,  # type: ignore[arg-type]
                    permission=permission,
                    state=state,
                    valid_from=at,
                    recorded_at=at,
                    collected_by="cmp",
                    jurisdiction="DE",
                    policy_version="2026-01",
                    evidence="banner 7, button 'accept all'",
                )
            )
    return records


def login(pair: int) -> Link | None:
    """A login of three in four pairs."""
    if pair % 4 == 0:
        return None
    return Link(f"v{pair:09}", f"c{pair:09}", START + dt.timedelta(days=301), "session")


def batches(pairs: range, size: int) -> Iterator[list[ConsentRecord]]:
    """All decisions, some at a time."""
    batch: list[ConsentRecord] = []
    for pair in pairs:
        batch += decisions(pair)
        while len(batch) >= size:
            yield batch[:size]
            del batch[:size]
    yield batch


def plain_table(path: Path) -> sqlite3.Connection:
    """A table as one would make it without a ledger: the same columns and look-ups."""
    connection = sqlite3.connect(path, isolation_level=None)
    for setting in SETTINGS:
        connection.execute(f"PRAGMA {setting}")
    connection.execute(f"CREATE TABLE records (position INTEGER PRIMARY KEY, {', '.join(RECORD_COLUMNS)})")
    connection.execute("CREATE INDEX by_subject ON records (subject_id, subject_kind)")
    connection.execute("CREATE UNIQUE INDEX by_id ON records (record_id)")
    return connection


def insert(connection: sqlite3.Connection, records: list[ConsentRecord]) -> None:
    """Insert rows, in one transaction."""
    names = ", ".join(RECORD_COLUMNS)
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        f"INSERT INTO records ({names}) VALUES ({', '.join('?' * len(RECORD_COLUMNS))})", map(row_of, records)
    )
    connection.execute("COMMIT")


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Stopwatch:
    """Times of one kind of question: of the clock, and of the processor alone.

    On a machine that is shared, the clock also counts the time in which somebody else was served; a long
    question is interrupted more often than a short one, which shows at the 99th percentile.
    """

    def __init__(self) -> None:
        self.clock: list[float] = []
        self.processor: list[float] = []

    def ask(self, question: Callable[[], object]) -> None:
        """Time one question."""
        clock, processor = time.perf_counter(), time.thread_time()
        question()
        self.processor.append(time.thread_time() - processor)
        self.clock.append(time.perf_counter() - clock)

    def percentiles(self) -> dict[str, float]:
        """Medians and 99th percentiles, in microseconds."""
        return {
            f"{name} {label}": 1e6 * statistics.quantiles(times, n=100)[cut]
            for name, times in (("clock", self.clock), ("processor", self.processor))
            for label, cut in (("p50", 49), ("p99", 98))
        }


def appending(directory: Path, ledger: Ledger, pairs: int, size: int, singles: int) -> dict[str, float]:
    """Rates of appending, in entries a second."""
    plain = plain_table(directory / "plain.db")
    taken = {"ledger": 0.0, "plain": 0.0}
    entries = 0
    for batch in batches(range(pairs), size):
        entries += len(batch)
        taken["ledger"] += seconds(functools.partial(ledger.append, batch))
        taken["plain"] += seconds(functools.partial(insert, plain, batch))
        progress(f"{entries} records")
    links = [link for link in map(login, range(pairs)) if link is not None]
    linking = seconds(
        lambda: [ledger.append_links(links[at : at + size]) for at in range(0, len(links), size)]
    )
    one_by_one = [record for batch in batches(range(pairs, pairs + singles), singles) for record in batch][
        :singles
    ]
    alone = {"ledger": 0.0, "plain": 0.0}
    for record in one_by_one:
        alone["ledger"] += seconds(functools.partial(ledger.append, [record]))
        alone["plain"] += seconds(functools.partial(insert, plain, [record]))
    plain.close()
    return {
        "records": entries,
        "ledger_batches": entries / taken["ledger"],
        "plain_batches": entries / taken["plain"],
        "ledger_links": len(links) / linking,
        "ledger_singles": singles / alone["ledger"],
        "plain_singles": singles / alone["plain"],
    }


def asked_of(ledger: Ledger, pair: int) -> Callable[[], Resolution]:
    """The question whether a visitor and a customer may be served, and from what."""
    return functools.partial(ledger.resolve, visitor_id=f"v{pair:09}", customer_id=f"c{pair:09}", at=AT)


def resolving(
    path: Path, ledger: Ledger, pairs: list[int], questions: int, seed: int
) -> dict[str, dict[str, float]]:
    """Latencies of `resolve` and of a bare look-up, turn by turn."""
    rng = random.Random(seed)
    bare = sqlite3.connect(path, isolation_level=None)
    bare.execute(f"PRAGMA {SETTINGS[-1]}")
    last = ledger.position

    def look_up(position: int) -> object:
        return bare.execute("SELECT chain FROM entries WHERE position = ?", (position,)).fetchone()

    times = {"resolve": Stopwatch(), "bare": Stopwatch()}
    for _ in range(questions):
        pair = rng.choice(pairs)
        times["resolve"].ask(asked_of(ledger, pair))
        times["bare"].ask(functools.partial(look_up, rng.randint(1, last)))
    bare.close()
    return {name: found.percentiles() for name, found in times.items()}


def progress(text: str) -> None:
    """Say how far it is."""
    print(f"\r{text:<40}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--subjects", type=int, default=1_000_000)
    parser.add_argument("--in-memory", type=int, default=50_000, help="subjects of the ledger in memory")
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--singles", type=int, default=1_000)
    parser.add_argument("--questions", type=int, default=50_000)
    parser.add_argument("--directory", type=Path, help="where to put the files (default: the temporary one)")
    asked = parser.parse_args()
    pairs = asked.subjects // 2
    with tempfile.TemporaryDirectory(dir=asked.directory) as name:
        directory = Path(name)
        path = directory / "ledger.db"
        with Ledger.open(f"sqlite:///{path}") as ledger:
            rates = appending(directory, ledger, pairs, asked.batch, asked.singles)
            progress("resolving")
            everywhere = resolving(path, ledger, list(range(pairs)), asked.questions, 1)
            few = random.Random(2).sample(range(pairs), min(1000, pairs))
            again = resolving(path, ledger, few, asked.questions, 3)
            linked = sum(asked_of(ledger, pair)().linked for pair in few)
            progress("verifying")
            start = time.perf_counter()
            if not ledger.verify().ok:
                sys.exit("the ledger does not verify")
            verifying = time.perf_counter() - start
            entries = ledger.position
        size = path.stat().st_size
    in_memory = Ledger()
    for batch in batches(range(asked.in_memory // 2), asked.batch):
        in_memory.append(batch)
    in_memory.append_links(link for link in map(login, range(asked.in_memory // 2)) if link is not None)
    rng = random.Random(4)
    times = Stopwatch()
    for _ in range(asked.questions):
        times.ask(asked_of(in_memory, rng.randrange(asked.in_memory // 2)))
    report(asked.subjects, entries, rates, everywhere, again, times.percentiles(), verifying, size)
    figures = {
        "subjects": asked.subjects,
        "entries": entries,
        "linked_share": linked / len(few),
        "append": rates,
        "resolve": everywhere,
        "resolve_again": again,
        "resolve_in_memory": times.percentiles(),
        "verify_seconds": verifying,
        "bytes": size,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    print(json.dumps(figures))


def report(
    subjects: int,
    entries: int,
    rates: dict[str, float],
    everywhere: dict[str, dict[str, float]],
    again: dict[str, dict[str, float]],
    in_memory: dict[str, float],
    verifying: float,
    size: int,
) -> None:
    """Print the tables."""
    progress("")
    print(f"\r{subjects:,} subjects, {entries:,} entries, {size / 1e6:,.0f} MB\n")
    print("| appending, entries a second | ledger | plain insert | ratio |")
    print("|---|---:|---:|---:|")
    for name, kind in (("in batches", "batches"), ("one by one", "singles")):
        ledger, plain = rates[f"ledger_{kind}"], rates[f"plain_{kind}"]
        print(f"| {name} | {ledger:,.0f} | {plain:,.0f} | {ledger / plain:.2f} |")
    print("\n| looking up, µs | p50 | p99 | processor p50 | processor p99 |")
    print("|---|---:|---:|---:|---:|")
    rows = (
        ("`resolve`, any subject", everywhere["resolve"]),
        ("bare look-up by primary key, any row", everywhere["bare"]),
        ("`resolve`, a thousand subjects", again["resolve"]),
        ("bare look-up in between", again["bare"]),
        ("`resolve`, in memory", in_memory),
    )
    for name, found in rows:
        print(f"| {name} | {' | '.join(f'{time:.0f}' for time in found.values())} |")
    print(f"\n`verify`: {verifying:.1f} s, {1e6 * verifying / entries:.1f} µs an entry\n")


if __name__ == "__main__":
    main()
