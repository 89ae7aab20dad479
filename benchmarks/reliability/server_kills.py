"""kill -9 of the servers: PostgreSQL under a ledger, Redis under profiles, at random moments.

A thread writes as the product does, and repeats what failed until it is acknowledged; another asks, all the
time. The server is killed and started again, and then it is checked that

- what was acknowledged is there, once; that no half of an append is; that the ledger verifies;
- nobody was granted what no record grants, before, while and after the server was down, and that whoever
  asked then was told that there is no answer;
- a profile that was purged stays so, however the server keeps what it holds.

Prints Markdown tables, writes JSON, and ends with status 1 if anything did not survive. Needs the extras
``postgresql`` and ``redis``, and the programs of both servers.

Run: ``python -m benchmarks.reliability.server_kills [--kills 60] [--seed 1] [--only NAME] [--out FILE]``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import os
import platform
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import redis

from benchmarks.reliability.servers import Cluster, RedisServer, running_postgresql, running_redis
from consentier.consent import ConsentRecord, Ledger, Verification
from consentier.errors import ConsentierError, DataError, LedgerError
from consentier.serving import Event
from consentier.serving.redis_profiles import RedisProfiles

__all__ = ["KEEPING", "LEDGER_KILLS", "Result", "kill_postgresql", "kill_redis"]

RESULTS = Path(__file__).parents[1] / "results" / "reliability" / "server_kills.json"

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LATER = AT + dt.timedelta(days=1)
SIZE = 20
PATIENCE = 60.0
PAUSE = 0.01


@dataclasses.dataclass(slots=True)
class Result:
    """What became of the kills of one kind.

    Attributes
    ----------
    acknowledged
        Appends, or changes of profiles, that were acknowledged.
    failed
        Those that failed, and were repeated.
    repeated
        Of those, the appends that were found done when they were repeated.
    lost
        Acknowledged profiles that are not there after a restart, where the server need not keep them.
    answers, denied
        How often somebody asked, and how often there was no answer.
    errors
        What was raised, and how often, without what differs from time to time.
    """

    name: str
    kills: int = 0
    survived: int = 0
    acknowledged: int = 0
    failed: int = 0
    repeated: int = 0
    lost: int = 0
    answers: int = 0
    denied: int = 0
    seconds: float = 0.0
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)

    def note(self, error: ConsentierError) -> None:
        """Count what was raised, by its first line without places and numbers."""
        told = re.sub(r"\S*/\S*|\d+", "…", str(error).partition(": ")[2].partition("\n")[0])
        self.errors[told] = self.errors.get(told, 0) + 1


class _Together(contextlib.ExitStack):
    """Threads that run until the block ends; what one of them raises, the block raises."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()
        self._raised: list[BaseException] = []

    def start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._run, args=(work,))
        thread.start()
        self.callback(self._end, thread)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised where the thread is waited for
            self._raised.append(error)

    def _end(self, thread: threading.Thread) -> None:
        self.ended.set()
        thread.join(PATIENCE)
        if thread.is_alive():
            raise RuntimeError("a thread does not end")
        if self._raised:
            raise self._raised[0]


# ---- PostgreSQL --------------------------------------------------------------------------------------------


def _kill_backends(cluster: Cluster) -> None:
    """Kill what serves clients, and wait until the postmaster lets clients in again."""
    if not cluster.kill_backends():
        raise RuntimeError("no process serves a client")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            psycopg.connect(cluster.url).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)
        else:
            return


def _kill_all(cluster: Cluster) -> None:
    cluster.kill(backends=True)
    cluster.start()


def _kill_postmaster(cluster: Cluster) -> None:
    cluster.kill(backends=False)
    cluster.start()


LEDGER_KILLS: dict[str, Callable[[Cluster], None]] = {
    "PostgreSQL, all its processes": _kill_all,
    "PostgreSQL, its first process only": _kill_postmaster,
    "PostgreSQL, those that serve clients": _kill_backends,
}
"""By name: kills, and returns when the server takes clients again."""


@dataclasses.dataclass
class _Ledger:
    """A ledger that is written to and asked; even appends grant, the next odd one withdraws half of them."""

    ledger: Ledger
    result: Result
    ended: threading.Event
    acknowledged: int = 0
    """How many appends were, counted from the first."""

    def write(self) -> None:
        while not self.ended.is_set():
            told = _append(self.acknowledged)
            failed = False
            while True:
                try:
                    new = self.ledger.append(told)
                    break
                except LedgerError as error:
                    if self.ended.is_set():
                        return
                    failed = True
                    self.result.failed += 1
                    self.result.note(error)
                    time.sleep(PAUSE)
            if new not in ((0, len(told)) if failed else (len(told),)):
                self.result.problems.append(f"{new} of {len(told)} records of an append were new")
            self.result.repeated += failed and not new
            self.result.acknowledged += 1
            self.acknowledged += 1

    def ask(self) -> None:
        chance = random.Random(0)
        while not self.ended.is_set():
            known = self.acknowledged
            # From what is written now to what nobody will write.
            number = chance.randrange(2 * known + 2)
            each = chance.randrange(SIZE)
            self.result.answers += 1
            try:
                online = self.ledger.resolve(visitor_id=_name(number - number % 2, each), at=LATER).online
            except LedgerError:
                self.result.denied += 1
                time.sleep(PAUSE)
                continue
            pair = number - number % 2
            if online and (pair > self.acknowledged or (pair + 1 < known and not each % 2)):
                self.result.problems.append(f"granted what no record grants: {pair}, {each}")
            if not online and pair < known and each % 2:
                self.result.problems.append(f"denied what was acknowledged: {pair}, {each}")
            time.sleep(PAUSE / 10)


def _append(number: int) -> list[ConsentRecord]:
    """The records of an append: grants, or withdrawals of every second of the grants before."""
    grants = number % 2 == 0
    state, since = ("granted", AT) if grants else ("withdrawn", AT + dt.timedelta(hours=1))
    chosen = range(SIZE) if grants else range(0, SIZE, 2)
    names = [_name(number - number % 2, each) for each in chosen]
    return [
        ConsentRecord(f"{name}/{number % 2}", name, "visitor", "online", state, since, since)
        for name in names
    ]


def _name(number: int, each: int) -> str:
    return f"w/{number}/{each}"


def kill_postgresql(cluster: Cluster, name: str, kills: int, seed: int) -> Result:
    """Kill the server while a ledger is written to, so often.

    Each time with a ledger of its own, in a schema.
    """
    chance, result = random.Random(f"{seed} {name}"), Result(name)
    began = time.perf_counter()
    for number in range(kills):
        before = len(result.problems)
        schema = f"kill_{number}"
        with psycopg.connect(cluster.url, autocommit=True) as direct:
            direct.execute(f"CREATE SCHEMA {schema}".encode())
        url = f"{cluster.url}&options=-c%20search_path={schema}"
        with Ledger.open(url) as ledger, _Together() as together:
            of = _Ledger(ledger, result, together.ended)
            for work in (of.write, of.ask, of.ask):
                together.start(work)
            _wait_for(lambda of=of: of.acknowledged > 1)  # type: ignore[misc]
            time.sleep(chance.uniform(0, 0.3))
            LEDGER_KILLS[name](cluster)
            result.kills += 1
            _wait_for(lambda of=of, known=of.acknowledged: of.acknowledged > known + 1)  # type: ignore[misc]
        with Ledger.open(url, create=False) as ledger:
            result.problems += _wrong_in(ledger, of.acknowledged)
        with psycopg.connect(cluster.url, autocommit=True) as direct:
            direct.execute(f"DROP SCHEMA {schema} CASCADE".encode())
        result.survived += len(result.problems) == before
    result.seconds = round(time.perf_counter() - began, 1)
    return result


def _wrong_in(ledger: Ledger, acknowledged: int) -> Iterator[str]:
    """What is wrong with a ledger in which so many appends were acknowledged, and no other was begun."""
    verified: Verification = ledger.verify()
    if not verified.ok:
        yield f"the ledger does not verify: {verified.problem}"
    there = Counter(ledger.columns("records")["record_id"])
    told = Counter(record.record_id for number in range(acknowledged) for record in _append(number))
    for what, names in (("lost", told - there), ("there twice, or never told", there - told)):
        if names:
            yield f"{len(names)} records are {what}: {sorted(names)[:3]}"


# ---- Redis -------------------------------------------------------------------------------------------------

KEEPING: dict[str, tuple[str, ...]] = {
    "Redis, nothing on disk": ("--save", ""),
    "Redis, snapshots": ("--save", "3600 1 300 100 60 10000"),
    "Redis, append-only file, synced each second": ("--save", "", "--appendonly", "yes"),
    "Redis, append-only file, synced always": (
        "--save", "", "--appendonly", "yes", "--appendfsync", "always",
    ),
}  # fmt: skip
"""How the server keeps what it holds."""


@dataclasses.dataclass
class _Profiles:
    """Profiles that are written: each visitor gets events, and every second visitor is purged."""

    store: RedisProfiles
    result: Result
    ended: threading.Event
    stored: list[str] = dataclasses.field(default_factory=list)
    purged: list[str] = dataclasses.field(default_factory=list)

    def write(self) -> None:
        number = 0
        while not self.ended.is_set():
            name = f"visitor-{number}"
            # What is repeated may be there twice: the store says so, and a profile bears it.
            self._until_done(lambda name=name: self.store.append(name, EVENTS))  # type: ignore[misc]
            if number % 2:
                self._until_done(lambda name=name: self.store.purge(name))  # type: ignore[misc]
                self.purged.append(name)
            else:
                self.stored.append(name)
            number += 1

    def ask(self) -> None:
        chance = random.Random(0)
        while not self.ended.is_set():
            gone = len(self.purged)
            name = chance.choice(self.purged[:gone]) if gone else "nobody"
            self.result.answers += 1
            try:
                if self.store.get(name):
                    self.result.problems.append(f"{name} was purged, and is read")
            except DataError:
                self.result.denied += 1
                time.sleep(PAUSE)
            time.sleep(PAUSE / 10)

    def _until_done(self, change: Callable[[], object]) -> None:
        while not self.ended.is_set():
            try:
                change()
            except DataError as error:
                self.result.failed += 1
                self.result.note(error)
                time.sleep(PAUSE)
            else:
                self.result.acknowledged += 1
                return


EVENTS = [Event(f"i{each}", AT + dt.timedelta(seconds=each)) for each in range(5)]


def kill_redis(name: str, kills: int, seed: int) -> Result:
    """Kill the server while profiles are written and purged, so often.

    The server is empty each time. Snapshots are asked for at random moments, besides those it writes itself.
    """
    chance, result = random.Random(f"{seed} {name}"), Result(name)
    began = time.perf_counter()
    for _ in range(kills):
        before = len(result.problems)
        with running_redis(*KEEPING[name]) as server, _Together() as together:
            store = RedisProfiles(server.url, read_seconds=1.0)
            together.callback(store.close)
            of = _Profiles(store, result, together.ended)
            together.start(of.write)
            together.start(of.ask)
            _wait_for(lambda of=of: len(of.purged) > 1)  # type: ignore[misc]
            for _ in range(chance.randrange(3)):
                time.sleep(chance.uniform(0, 0.1))
                if "snapshots" in name:
                    _begin_snapshot(server)
            time.sleep(chance.uniform(0, 0.1))
            server.stop()
            stored, purged = len(of.stored), len(of.purged)
            server.start()
            result.kills += 1
            result.problems += _wrong_with(of, stored, purged, must_keep=name.endswith("always"))
            known = len(of.purged)
            _wait_for(lambda of=of, known=known: len(of.purged) > known)  # type: ignore[misc]
        result.survived += len(result.problems) == before
    result.seconds = round(time.perf_counter() - began, 1)
    return result


def _begin_snapshot(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client, contextlib.suppress(redis.ResponseError):
        client.bgsave()  # refused while another one is being written


def _wrong_with(of: _Profiles, stored: int, purged: int, *, must_keep: bool) -> Iterator[str]:
    """What is wrong after a restart with those that were stored, and purged, before the kill."""
    for name in of.purged[:purged]:
        if of.store.get(name):
            yield f"{name} was purged, and is there again"
    for name in of.stored[:stored]:
        found = len(of.store.get(name, ()))
        if found % len(EVENTS):
            yield f"{name} has {found} events: one half of an append"
        if not found:
            of.result.lost += 1
            if must_keep:
                yield f"{name} was stored, and is lost"


# ---- The campaign ------------------------------------------------------------------------------------------


def _wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError("nothing goes on any more")
        time.sleep(PAUSE)


def main() -> int:
    """Run the campaign; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=60, help="of each kind")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--only", action="append", help="a kind; may be given several times")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the figures")
    asked = parser.parse_args()
    chosen = [name for name in (*LEDGER_KILLS, *KEEPING) if not asked.only or name in asked.only]
    results = []
    heads = ("server killed", "kills", "survived", "acknowledged", "failed", "lost", "asked", "no answer")
    print("| " + " | ".join(heads) + " |\n|---|" + "--:|" * (len(heads) - 1), flush=True)
    for name in chosen:
        if name in LEDGER_KILLS:
            with running_postgresql(fsync=True) as cluster:
                results.append(kill_postgresql(cluster, name, asked.kills, asked.seed))
        else:
            results.append(kill_redis(name, asked.kills, asked.seed))
        _tell(results[-1])
        _write(results, asked)
    return 0 if all(each.survived == each.kills for each in results) else 1


def _tell(result: Result) -> None:
    row = (
        result.name, result.kills, result.survived, result.acknowledged, result.failed, result.lost,
        result.answers, result.denied,
    )  # fmt: skip
    print("| " + " | ".join(map(str, row)) + " |", flush=True)
    for problem in result.problems[:10]:
        print(f"  {problem}", file=sys.stderr, flush=True)


def _write(results: Sequence[Result], asked: argparse.Namespace) -> None:
    """The figures so far."""
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    document = {
        "seed": asked.seed,
        "machine": machine,
        "kills": sum(result.kills for result in results),
        "survived": sum(result.survived for result in results),
        "servers": [dataclasses.asdict(result) for result in results],
    }
    asked.out.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
