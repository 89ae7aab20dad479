"""A soak: millions of requests while bundles are exchanged, permissions flip and stores fail and come back.

A simulated shop is trained once. Processes with several threads each answer a mix of requests from one
`ReloadingRecommender` over a SQLite ledger and SQLite profiles, and meanwhile

- one thread of the parent puts new bundles into the directory, good ones, altered ones and none, and sets
  withdrawal deadlines that are over;
- ledger and stores fail or hang for some seconds, one after the other;
- each worker grants and withdraws the permissions of subjects that only it asks about, so that it knows for
  certain what the next answer may rest on.

Each answer is judged: no exception, no tier and no source above the permission, no hidden or excluded item,
no item twice, no bundle past its deadline. A tier that is the routing's first choice for some requests must
have answered in the end. Memory that no file holds is read once a second. Prints a Markdown table, then one
line of JSON; ends with status 1 if a judgement failed, and says on standard error which. Needs the extra
``train``.

Run: ``python benchmarks/soak.py [--requests 5000000] [--processes 2] [--threads 4]``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import logging
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier import ReloadingRecommender, Request
from consentier.consent import Channel, ConsentRecord, Ledger, Link, Resolution, Side, Tier
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import read_shop
from consentier.models.bundle import open_bundle, write_bundle
from consentier.serving import Answer, Catalogue, Event, Profiles
from consentier.serving.profile_store import SqliteProfiles
from consentier.serving.revocation import revoke
from consentier.training.config import load_config
from consentier.training.train import train
from consentier.writing import put_directory, remove_directory

TIERS = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED, Tier.POPULAR)
SUBJECTS = 50
"""Customers, each with one device, of each thread."""
FLIP, OBSERVE = 1 / 400, 1 / 50
HIDDEN_SHARE = 0.05
TROUBLES = ("", "ledger raises", "ledger hangs", "online raises", "online hangs", "crm raises", "crm hangs")
HANG = 0.1
TIMES = 200_000

# Who may answer on a side, by whether online and CRM are permitted, and joined by a link and a login.
_NOBODY, _ALWAYS = {Tier.POPULAR, Tier.NONE}, {Tier.SESSION, Tier.POPULAR, Tier.NONE}
ALLOWED = {
    (Side.ONLINE, False, False, False): _ALWAYS,
    (Side.ONLINE, True, False, False): {Tier.ONLINE, *_ALWAYS},
    (Side.ONLINE, False, True, False): _ALWAYS,
    (Side.ONLINE, True, True, False): {Tier.ONLINE, *_ALWAYS},
    (Side.ONLINE, True, True, True): {Tier.FUSED, Tier.ONLINE, Tier.CRM, *_ALWAYS},
    (Side.CRM, False, False, False): _NOBODY,
    (Side.CRM, True, False, False): _NOBODY,
    (Side.CRM, False, True, False): {Tier.CRM, *_NOBODY},
    (Side.CRM, True, True, False): {Tier.CRM, *_NOBODY},
    (Side.CRM, True, True, True): {Tier.FUSED, Tier.CRM, *_NOBODY},
}

CHOICE = (Tier.FUSED, Tier.ONLINE, Tier.CRM, Tier.SESSION, Tier.POPULAR, Tier.NONE)
"""Of those that may answer, who is asked first."""


class Trouble:
    """What is broken at the moment, shared by all processes."""

    def __init__(self, context: SpawnContext) -> None:
        self._now = context.Value("i", 0)

    def set(self, name: str) -> None:
        self._now.value = TROUBLES.index(name)

    def strike(self, who: str) -> None:
        """Raise or hang, if that is what `who` does now."""
        now = TROUBLES[self._now.value]
        if now == f"{who} raises":
            raise OSError("the disk is gone")
        if now == f"{who} hangs":
            time.sleep(HANG)


class FailingLedger:
    """A ledger that fails for a while."""

    def __init__(self, ledger: Ledger, trouble: Trouble) -> None:
        self._ledger, self._trouble = ledger, trouble

    def resolve(self, **asked: Any) -> Resolution:
        self._trouble.strike("ledger")
        return self._ledger.resolve(**asked)

    def linked_visitors(self, customer_id: str, **asked: Any) -> Sequence[str]:
        self._trouble.strike("ledger")
        return self._ledger.linked_visitors(customer_id, **asked)

    def linked_since(self, customer_id: str, **asked: Any) -> Mapping[str, int]:
        self._trouble.strike("ledger")
        return self._ledger.linked_since(customer_id, **asked)


class FailingProfiles(SqliteProfiles):
    """A profile store that fails for a while; like one behind a network, it promises no time."""

    def __init__(self, path: Path, who: str, trouble: Trouble) -> None:
        super().__init__(path)
        self.answers_within = None
        self._who, self._trouble = who, trouble

    def _events(self, subject: str, since: int) -> Sequence[tuple[int, str, str | None, float | None]]:
        self._trouble.strike(self._who)
        return super()._events(subject, since)


@dataclasses.dataclass
class Person:
    """One customer with one device, and what they permit at the moment."""

    name: str
    online: bool
    crm: bool

    @property
    def visitor(self) -> str:
        return f"v-{self.name}"

    @property
    def customer(self) -> str:
        return f"c-{self.name}"

    def record(self, permission: str, granted: bool, at: dt.datetime | None = None) -> ConsentRecord:
        now = at or dt.datetime.now(dt.UTC)
        online = permission == "online"
        return ConsentRecord(
            record_id=f"{self.name}-{permission}-{time.monotonic_ns()}",
            subject_id=self.visitor if online else self.customer,
            subject_kind="visitor" if online else "customer",
            permission=permission,
            state="granted" if granted else "withdrawn",
            valid_from=now,
            recorded_at=now,
            collected_by="soak",
            evidence="soak",
        )


@dataclasses.dataclass
class Found:
    """What one thread has seen."""

    tiers: Counter[str] = dataclasses.field(default_factory=Counter)
    expected: Counter[str] = dataclasses.field(default_factory=Counter)
    """Requests by the tier that is asked first for them."""
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    times: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros(TIMES, np.int64))
    """Answers by time, in steps of 10 µs: its memory does not grow."""
    flips: int = 0
    observed: int = 0
    stored: int = 0
    """Of the observed events, those that went into a profile."""


class Worker:
    """One thread: flips, asks, judges."""

    def __init__(
        self, number: int, recommender: ReloadingRecommender, ledger: Ledger, root: Path, items: list[str]
    ) -> None:
        self.found = Found()
        self._random = random.Random(number)
        self._recommender, self._ledger, self._items = recommender, ledger, items
        self._revoked = root / "revoked.txt"
        self._over: frozenset[str] = frozenset()
        self._hidden = frozenset(hidden_of(items))
        self._people = [
            Person(f"{number}-{place}", self._random.random() < 0.7, self._random.random() < 0.7)
            for place in range(SUBJECTS)
        ]
        self._enrol()

    def _enrol(self) -> None:
        before = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)  # else no stored event was ever permitted
        records = [
            record
            for person in self._people
            for permission, granted in (("online", person.online), ("crm", person.crm))
            if granted
            for record in [person.record(permission, granted=True, at=before)]
        ]
        self._ledger.append(records)
        for person in self._people:
            self._log_in(person)

    def _log_in(self, person: Person) -> None:
        """Link device and account, where both permissions hold: a link of before them joins nothing."""
        if person.online and person.crm:
            now = dt.datetime.now(dt.UTC)
            self._ledger.append_links([Link(person.visitor, person.customer, now, "login")])

    def run(self, requests: int) -> None:
        for number in range(requests):
            if number % 500 == 0:
                self._over = frozenset(self._revoked.read_text().split())
            person = self._random.choice(self._people)
            draw = self._random.random()
            try:
                if draw < FLIP:
                    self._flip(person)
                elif draw < FLIP + OBSERVE:
                    self._observe(person)
                self._ask(person)
            except Exception as error:  # noqa: BLE001 - that none comes is what is tested
                self.found.faults[f"{type(error).__name__}: {error}"] += 1

    def _flip(self, person: Person) -> None:
        permission = self._random.choice(("online", "crm"))
        granted = not getattr(person, permission)
        self._ledger.append([person.record(permission, granted)])
        setattr(person, permission, granted)
        self._log_in(person)
        self.found.flips += 1

    def _observe(self, person: Person) -> None:
        online = self._random.random() < 0.5
        event = Event(
            self._random.choice(self._items), dt.datetime.now(dt.UTC), "view" if online else "order"
        )
        observed = self._recommender.current.observe(
            event,
            visitor_id=person.visitor if online else None,
            customer_id=None if online else person.customer,
        )
        self.found.observed += 1
        self.found.stored += observed.stored
        if observed.stored and not (person.online if online else person.crm):
            self.found.faults["an event was stored without a permission"] += 1

    def _ask(self, person: Person) -> None:
        draw = self._random
        channel = draw.choice((Channel.SHOP, Channel.SHOP, Channel.SHOP, Channel.APP, Channel.EMAIL))
        request = Request(
            session=draw.sample(self._items, draw.choice((0, 1, 3, 5))),
            visitor_id=person.visitor,
            customer_id=None if draw.random() < 0.2 else person.customer,
            linked=draw.random() < 0.9,
            channel=channel,
            n=draw.choice((3, 10, 30)),
            exclude=draw.sample(self._items, 2) if draw.random() < 0.2 else (),
            placement="product" if draw.random() < 0.2 else None,
            explain=draw.random() < 0.05,
        )
        self.found.expected[str(first_choice(person, request))] += 1
        started = time.perf_counter()
        answer = self._recommender.recommend(request)
        self.found.times[min(int(1e5 * (time.perf_counter() - started)), TIMES - 1)] += 1
        self.found.tiers[str(answer.tier)] += 1
        for fault in self._faults_of(person, request, answer):
            self.found.faults[fault] += 1

    def _faults_of(self, person: Person, request: Request, answer: Answer) -> list[str]:
        side, _, crm, joined = standing = standing_of(person, request)
        faults = []
        if answer.tier not in ALLOWED[standing]:
            faults.append(f"{answer.tier} for online={person.online}, crm={crm}, joined={joined}")
        readable = {
            "session": side is Side.ONLINE,
            "online": person.online and (joined or side is Side.ONLINE),
            "crm": crm and (joined or side is Side.CRM),
        }
        if not all(readable[source] for source in answer.basis.sources):
            faults.append(f"{answer.basis.sources} read for online={person.online}, crm={crm}")
        if self._hidden & set(answer.items) or set(request.exclude) & set(answer.items):
            faults.append("an item was shown that may not be")
        if len(set(answer.items)) != len(answer.items) or len(answer.items) > request.n:
            faults.append("an item came twice, or one too many")
        if {answer.basis.bundle_digest, answer.basis.fill_digest} & self._over:
            faults.append("a bundle answered past its deadline")
        return faults


def standing_of(person: Person, request: Request) -> tuple[Side, bool, bool, bool]:
    """By what it is decided who may answer: the key of `ALLOWED`."""
    # A customer who is not named cannot have permitted anything; on the CRM side there is no login.
    side = Channel(request.channel).side
    crm = person.crm and request.customer_id is not None
    return side, person.online, crm, person.online and crm and (request.linked or side is Side.CRM)


def first_choice(person: Person, request: Request) -> Tier:
    """Who is to answer, where everything is there and works."""
    choice = min(ALLOWED[standing_of(person, request)], key=CHOICE.index)
    return choice if request.session or choice is not Tier.SESSION else Tier.POPULAR


def never_answered(found: Sequence[Found]) -> Counter[str]:
    """A fault for each tier that was expected to answer, and that no thread has seen."""
    expected = sum((each.expected for each in found), Counter[str]())
    answered = sum((each.tiers for each in found), Counter[str]())
    return Counter(
        {
            f"{tier} never answered, though asked first": n
            for tier, n in expected.items()
            if not answered[tier]
        }
    )


def never_stored(found: Sequence[Found]) -> Counter[str]:
    """A fault where events were observed and not one of them was stored, though most people permit it."""
    observed = sum(each.observed for each in found)
    return Counter() if sum(each.stored for each in found) else +Counter({"no event was stored": observed})


def hidden_of(items: list[str]) -> list[str]:
    return random.Random(1).sample(items, round(HIDDEN_SHARE * len(items)))


def answering(
    number: int, root: Path, threads: int, requests: int, trouble: Trouble, out: Connection
) -> None:
    """One process."""
    logging.disable(logging.CRITICAL)
    items = (root / "items.txt").read_text().split()
    ledger = Ledger.open(f"sqlite:///{root / 'ledger.db'}")
    profiles = Profiles(
        online=FailingProfiles(root / "online.db", "online", trouble),
        crm=FailingProfiles(root / "crm.db", "crm", trouble),
    )
    shown = sorted(set(items) - set(hidden_of(items)))
    with ReloadingRecommender(
        root / "bundles",
        every=1.0,
        ledger=FailingLedger(ledger, trouble),
        profiles=profiles,
        catalogue=Catalogue(frozenset(shown)),
    ) as recommender:
        workers = [
            Worker(number * threads + each, recommender, ledger, root, items) for each in range(threads)
        ]
        running = [threading.Thread(target=each.run, args=(requests // threads,)) for each in workers]
        for each in running:
            each.start()
        for each in running:
            each.join()
    out.send([each.found for each in workers])


class Deployer(threading.Thread):
    """Puts bundles into the directory, good and bad, until it is told to stop; and breaks the stores."""

    def __init__(self, root: Path, trouble: Trouble) -> None:
        super().__init__(daemon=True)
        self.done: Counter[str] = Counter()
        self._root, self._trouble, self._ending = root, trouble, threading.Event()
        self._random, self._versions = random.Random(7), Counter[Tier]()

    def stop(self) -> None:
        self._ending.set()
        self.join()

    def run(self) -> None:
        while not self._ending.wait(1.0):
            tier = self._random.choice(TIERS)
            what = self._random.choice(("replaced", "altered", "removed", "revoked"))
            getattr(self, f"_{what}")(tier)
            self.done[what] += 1
            self._ending.wait(2.0)
            self._replaced(tier)
            trouble = self._random.choice(TROUBLES) if self._random.random() < 0.5 else ""
            self._trouble.set(trouble)
            self.done[trouble or "no trouble"] += 1

    def _replaced(self, tier: Tier) -> None:
        """A new bundle of the same content with a later cut-off, so that its digest is another one."""
        self._versions[tier] += 1
        manifest = (base := open_bundle(self._root / "base" / tier)).manifest
        write_bundle(
            self._root / "bundles" / tier,
            tier=manifest.tier,
            sources=manifest.sources,
            permission=manifest.permission,
            algorithm=manifest.algorithm,
            parameters=manifest.parameters,
            scoring=manifest.scoring,
            item_count=manifest.item_count,
            cutoff=dt.datetime.fromisoformat(manifest.cutoff) + dt.timedelta(seconds=self._versions[tier]),
            arrays=base.arrays,
            overwrite=True,
        )

    def _altered(self, tier: Tier) -> None:
        self._replaced(tier)
        target, beside = self._root / "bundles" / tier, self._root / "altered"
        shutil.copytree(target, beside)
        name = next(path for path in sorted(beside.glob("*.npy")) if path.stat().st_size > 256)
        content = bytearray(name.read_bytes())
        content[-1] ^= 255
        name.write_bytes(content)
        aside = put_directory(beside, target)
        if aside is not None:
            shutil.rmtree(aside)

    def _removed(self, tier: Tier) -> None:
        remove_directory(self._root / "bundles" / tier)

    def _revoked(self, tier: Tier) -> None:
        self._replaced(tier)
        digest = open_bundle(self._root / "bundles" / tier).digest
        self._ending.wait(2.0)  # it is in use by then
        revoke(self._root / "bundles", [digest], dt.datetime.now(dt.UTC), "soak")
        with (self._root / "revoked.txt").open("a") as file:
            file.write(f"{digest}\n")


def prepared(root: Path, customers: int) -> None:
    """A trained shop: bundles, items, histories of the people who will ask."""
    write_shop(simulate(SimulationConfig(customers=customers, seed=3)), root / "shop")
    shop = read_shop(root / "shop")
    train(shop, load_config(data=root / "shop"), root / "base", tiers=TIERS, show_progress=False)
    shutil.copytree(root / "base", root / "bundles")
    items = sorted(shop.items["item_id"].to_pylist())
    (root / "items.txt").write_text("\n".join(items))
    (root / "revoked.txt").touch()


def filled(root: Path, people: int, items: list[str]) -> None:
    """Histories of 20 events for everybody who will ask, on each side."""
    draw, now = random.Random(5), dt.datetime.now(dt.UTC)
    for side, kind in (("online", "view"), ("crm", "order")):
        with_events = SqliteProfiles(root / f"{side}.db")
        for worker in range(people):
            for place in range(SUBJECTS):
                with_events.append(
                    f"{'v' if side == 'online' else 'c'}-{worker}-{place}",
                    [Event(item, now, kind) for item in draw.sample(items, 20)],
                )
        with_events.close()


def private_megabytes(process: int) -> float:
    """Memory of a process that no file holds."""
    with Path(f"/proc/{process}/smaps_rollup").open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def soaked(root: Path, requests: int, processes: int, threads: int) -> dict[str, Any]:
    """Run it; all that was seen."""
    items = (root / "items.txt").read_text().split()
    filled(root, processes * threads, items)
    Ledger.open(f"sqlite:///{root / 'ledger.db'}").close()
    context = multiprocessing.get_context("spawn")
    trouble = Trouble(context)
    deployer = Deployer(root, trouble)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    running = [
        context.Process(
            target=answering, args=(number, root, threads, requests // processes, trouble, pipes[number][1])
        )
        for number in range(processes)
    ]
    started = time.perf_counter()
    for each in running:
        each.start()
    deployer.start()
    memory: list[list[float]] = [[] for _ in running]
    found: list[Found] = []
    waiting = {number: pipe for number, (pipe, _) in enumerate(pipes)}
    while waiting:
        time.sleep(1.0)
        for number, pipe in list(waiting.items()):
            if pipe.poll():
                found += pipe.recv()
                del waiting[number]
            elif not running[number].is_alive():
                raise SystemExit(f"a process ended with status {running[number].exitcode}")
            else:
                memory[number].append(private_megabytes(running[number].pid or 0))
    taken = time.perf_counter() - started
    deployer.stop()
    for each in running:
        each.join()
    times = np.cumsum(np.sum([each.times for each in found], axis=0))
    requests, steps = int(times[-1]), np.array([0.5, 0.99, 0.999])
    p50, p99, p999 = (np.searchsorted(times, steps * requests) / 100).tolist()
    return {
        "requests": requests,
        "processes": processes,
        "threads": threads,
        "seconds": taken,
        "rate": requests / taken,
        "p50_ms": p50,
        "p99_ms": p99,
        "p999_ms": p999,
        "flips": sum(each.flips for each in found),
        "observed": sum(each.observed for each in found),
        "stored": sum(each.stored for each in found),
        "tiers": dict(sum((each.tiers for each in found), Counter())),
        "events": dict(deployer.done),
        "faults": dict(sum((each.faults for each in found), never_answered(found) + never_stored(found))),
        "memory_mb": [quarters(each) for each in memory],
    }


def quarters(values: list[float]) -> list[float]:
    """Median of each quarter of the run."""
    size = max(1, len(values) // 4)
    return [round(statistics.median(values[place : place + size]), 1) for place in range(0, 4 * size, size)]


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{what} {count:,}" for what, count in sorted(counts.items()))


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print("| what | seen |\n|---|---|")
    shown = {
        "requests": f"{result['requests']:,} by {result['processes']} × {result['threads']} threads",
        "requests a second": f"{result['rate']:,.0f}",
        "p50 / p99 / p99.9, ms": " / ".join(
            f"{result[name]:.2f}" for name in ("p50_ms", "p99_ms", "p999_ms")
        ),
        "answers by tier": ", ".join(f"{tier} {count:,}" for tier, count in sorted(result["tiers"].items())),
        "permissions flipped": f"{result['flips']:,}",
        "events observed, stored": f"{result['observed']:,}, {result['stored']:,}",
        "bundles and stores": ", ".join(
            f"{what} {count:,}" for what, count in sorted(result["events"].items())
        ),
        "private memory, MB, by quarter": "; ".join(
            " → ".join(f"{each:.0f}" for each in values) for values in result["memory_mb"]
        ),
        "faults": str(sum(result["faults"].values())),
    }
    for what, seen in shown.items():
        print(f"| {what} | {seen} |")


def main() -> None:
    """Soak and print."""
    parser = argparse.ArgumentParser(description="Soak the recommender")
    parser.add_argument("--requests", type=int, default=5_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--customers", type=int, default=2_000)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        prepared(Path(folder), arguments.customers)
        result = soaked(Path(folder), arguments.requests, arguments.processes, arguments.threads)
    show(result)
    print("\n" + json.dumps(result))
    for fault, count in result["faults"].items():
        print(f"fault, {count:,} times: {fault}", file=sys.stderr)
    sys.exit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
