"""A service with several workers: memory that they share, threads, latency, and what faults do.

Both services of ``examples/workers`` under Gunicorn, over a bundle of some hundred megabytes, a ledger with
permissions, and profiles. Whoever asks is a process of its own, with a few connections that stay open. A
request for nothing goes the same way as one for recommendations and tells what the framework costs: on a busy
machine compare the two, and the processor time, rather than milliseconds.

With two workers and ``preload_app``, new connections ask while bundles are replaced, a worker is killed,
Gunicorn reloads (SIGHUP), and Redis, which holds the profiles then, hangs.

Prints Markdown tables, then one line of JSON. Needs the extra ``services`` and redis-server.

Run: ``python -m benchmarks.service_workers [--items 300000]``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_latency import write_model
from consentier import ConsentRecord, Event, Ledger
from consentier.models.bundle import open_bundle
from consentier.serving.profile_base import ProfileStore
from consentier.serving.profile_opening import open_profiles
from consentier.writing import put_directory

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "examples" / "workers" / "gunicorn_conf.py"
SERVICES = {
    "FastAPI": ("-k", "uvicorn_worker.UvicornWorker", "examples.workers.fastapi_shop:app"),
    "Django": ("-k", "gthread", "--threads", "4", "examples.workers.django_shop:application"),
}
VISITORS, EVENTS = 200, 20
CONNECTIONS, REQUESTS = 4, 1_000
TICKS = os.sysconf("SC_CLK_TCK")


# ---- The service -------------------------------------------------------------------------------------------


class Service:
    """Gunicorn with one of the services."""

    def __init__(self, name: str, workers: int, folder: Path, *, preload: bool, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "gunicorn.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "gunicorn", "--config", str(CONFIGURATION),
                    "--bind", f"127.0.0.1:{self.port}", "--workers", str(workers), *SERVICES[name],
                ],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "SHOP_BUNDLES": str(folder / "bundles"),
                    "SHOP_STATE": str(folder / "state"),
                    "SHOP_RELOAD_SECONDS": "1",
                    "SHOP_PRELOAD": "yes" if preload else "no",
                    **environment,
                },
            )  # fmt: skip
        self.workers = workers

    def __enter__(self) -> Service:
        self.wait_for(lambda told: len(told) == self.workers)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def pids(self) -> list[int]:
        """The workers."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def ask(self, path: str, body: bytes | None = None) -> Any:
        """One answer, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET" if body is None else "POST", path, body, HEADERS)
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise OSError(f"{response.status}: {text[:200]!r}")
            return json.loads(text)
        finally:
            connection.close()

    def wait_for(self, holds: Callable[[dict[int, Any]], bool]) -> float:
        """Ask until what the workers said last fulfils something; say after how many seconds."""
        told: dict[int, Any] = {}
        started = time.monotonic()
        while not holds({pid: told[pid] for pid in self.pids() if pid in told}):
            if time.monotonic() > started + 120 or self.process.poll() is not None:
                raise SystemExit(f"the service did not become what it should: {self.log.read_text()}")
            with contextlib.suppress(OSError):
                found = self.ask("/health")
                told[found["worker"]] = found["bundles"]
        return time.monotonic() - started


HEADERS = {"Content-Type": "application/json"}


def body_of(number: int, items: int) -> bytes:
    """A question of one of the visitors."""
    rng = np.random.default_rng(number)
    session = [f"item-{item:07d}" for item in rng.integers(0, items, 5)]
    return json.dumps({"session": session, "visitor_id": f"visitor-{number % VISITORS}"}).encode()


def prepare(folder: Path, items: int) -> None:
    """A bundle, visitors who have permitted, and what they looked at."""
    write_model(folder / "bundles", items, 0.0)
    (folder / "state").mkdir()
    now = dt.datetime.now(dt.UTC)
    names = [f"visitor-{number}" for number in range(VISITORS)]
    with Ledger.open(f"sqlite:///{folder / 'state' / 'consents.db'}") as ledger:
        ledger.append([ConsentRecord(name, name, "visitor", "online", "granted", now, now) for name in names])
    fill(open_profiles(folder / "state" / "online.db"), items)


def fill(online: ProfileStore, items: int) -> None:
    """What the visitors looked at."""
    rng = np.random.default_rng(3)
    now = dt.datetime.now(dt.UTC)
    for number in range(VISITORS):
        seen = rng.integers(0, items, EVENTS)
        online.append(f"visitor-{number}", [Event(f"item-{item:07d}", now) for item in seen])


# ---- Whoever asks ------------------------------------------------------------------------------------------


def load(port: int, path: str, items: int, requests: int) -> None:
    """Ask on connections that stay open, and print the milliseconds that each answer took."""
    bodies = [body_of(number, items) for number in range(VISITORS)]

    def ask(first: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        taken = []
        for number in range(first, requests, CONNECTIONS):
            started = time.perf_counter()
            connection.request("POST", path, bodies[number % VISITORS], HEADERS)
            response = connection.getresponse()
            response.read()
            taken.append(1000 * (time.perf_counter() - started))
            if response.status != 200:
                raise SystemExit(f"{path}: {response.status}")
        return taken

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        taken = [each for part in pool.map(ask, range(CONNECTIONS)) for each in part]
    print(json.dumps(taken))


def asked(service: Service, path: str, items: int, requests: int = REQUESTS) -> dict[str, float]:
    """Median and 99th percentile, and the workers' processor time, of one load."""
    before = sum(map(processor_seconds, service.pids()))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.service_workers", "--load", str(service.port), path,
         "--items", str(items), "--requests", str(requests)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    spent = sum(map(processor_seconds, service.pids())) - before
    taken = json.loads(done.stdout)
    return {
        "p50": float(np.percentile(taken, 50)),
        "p99": float(np.percentile(taken, 99)),
        "cpu": 1000 * spent / requests,
    }


@contextlib.contextmanager
def asking(service: Service, items: int) -> Iterator[dict[str, Any]]:
    """Ask all the while, each time on a new connection; in the end, how often and what failed."""
    ended = threading.Event()
    found: dict[str, Any] = {"requests": 0, "failed": [], "taken": [], "tiers": {}}
    bodies = [body_of(number, items) for number in range(VISITORS)]

    def ask(first: int) -> None:
        number = first
        while not ended.is_set():
            number += 1
            started = time.perf_counter()
            try:
                answer = service.ask("/recommendations", bodies[number % VISITORS])
            except (OSError, http.client.HTTPException) as error:
                found["failed"].append(f"{type(error).__name__}")
            else:
                found["tiers"][answer["tier"]] = found["tiers"].get(answer["tier"], 0) + 1
            found["taken"].append(1000 * (time.perf_counter() - started))
            found["requests"] += 1

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    found["p50"], found["p99"] = (float(np.percentile(found["taken"], each)) for each in (50, 99))
    del found["taken"]


# ---- What a process holds ----------------------------------------------------------------------------------


def processor_seconds(pid: int) -> float:
    """Of user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def megabytes(pid: int) -> dict[str, float]:
    """Resident, proportional and private memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"rss": kilobytes["Rss"] / 1024, "pss": kilobytes["Pss"] / 1024, "private": private / 1024}


def threads_of(pid: int) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


# ---- Measuring ---------------------------------------------------------------------------------------------


def measured(folder: Path, items: int, name: str, workers: int, *, preload: bool) -> dict[str, Any]:
    """Memory, threads and latency of one configuration."""
    with Service(name, workers, folder, preload=preload) as service:
        asked(service, "/recommendations", items)  # warm up, on every worker
        loads = [
            (asked(service, "/nothing", items), asked(service, "/recommendations", items)) for _ in range(3)
        ]
        held = [megabytes(pid) for pid in service.pids()]
        row = {
            "service": name, "workers": workers, "preload": preload,
            **{key: statistics.mean(each[key] for each in held) for key in ("rss", "pss", "private")},
            "all": sum(each["pss"] for each in held) + megabytes(service.process.pid)["pss"],
            "threads": max(map(threads_of, service.pids())),
        }  # fmt: skip
    for place, kind in enumerate(("nothing", "recommendations")):
        row[kind] = {
            key: statistics.median(pair[place][key] for pair in loads) for key in ("p50", "p99", "cpu")
        }
    row["ratio"] = statistics.median(pair[1]["p50"] / pair[0]["p50"] for pair in loads)
    return row


def replace_bundle(folder: Path) -> str:
    """Put the bundle that stands beside in the place of the one in use; say its digest."""
    former = put_directory(folder / "beside" / "online", folder / "bundles" / "online")
    if former is not None:
        shutil.rmtree(former)
    return open_bundle(folder / "bundles" / "online", verify=False).digest


def faults(folder: Path, items: int, name: str, hop_weight: float) -> list[dict[str, Any]]:
    """What whoever asks on new connections sees of each fault; the new bundle gets another weight."""
    rows = []
    write_model(folder / "beside", items, hop_weight)
    with Service(name, 2, folder, preload=True) as service:

        def seen(what: str, happen: Callable[[], float]) -> None:
            with asking(service, items) as found:
                seconds = happen()
                while found["requests"] < REQUESTS:
                    time.sleep(0.1)
            rows.append({"service": name, "what": what, "seconds": seconds, **found})

        def nothing() -> float:
            time.sleep(10)
            return 10.0

        def exchange() -> float:
            digest = replace_bundle(folder)
            return service.wait_for(lambda told: equal(told, digest))

        def kill() -> float:
            victim, digest = service.pids()[0], digest_of(folder)
            os.kill(victim, signal.SIGKILL)
            return service.wait_for(lambda told: victim not in service.pids() and equal(told, digest))

        def reload() -> float:
            old, digest = set(service.pids()), digest_of(folder)
            service.process.send_signal(signal.SIGHUP)
            return service.wait_for(lambda told: not old & set(service.pids()) and equal(told, digest))

        def equal(told: dict[int, Any], digest: str) -> bool:
            return len(told) == 2 and all(each["online"] == digest for each in told.values())

        seen("nothing", nothing)
        seen("new bundle in both workers", exchange)
        seen("worker killed (SIGKILL)", kill)
        seen("graceful reload (SIGHUP)", reload)
    return rows


def digest_of(folder: Path) -> str:
    """Of the bundle that stands there."""
    return open_bundle(folder / "bundles" / "online", verify=False).digest


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Redis server of our own."""
    path = folder / "redis.socket"
    process = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        while not path.exists():
            time.sleep(0.05)
        yield f"unix://{path}?db=0", process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait()


def hanging(folder: Path, items: int, name: str) -> list[dict[str, Any]]:
    """Latency while the store of profiles answers, and while it hangs."""
    rows = []
    with redis(folder) as (url, process):
        fill(open_profiles(f"{url}&prefix=online"), items)
        stores = {"SHOP_ONLINE_PROFILES": f"{url}&prefix=online", "SHOP_CRM_PROFILES": f"{url}&prefix=crm"}
        with Service(name, 2, folder, preload=True, **stores) as service:
            asked(service, "/recommendations", items)
            for what in ("Redis answers", "Redis hangs"):
                if what == "Redis hangs":
                    process.send_signal(signal.SIGSTOP)
                with asking(service, items) as found:
                    time.sleep(15)
                rows.append({"service": name, "what": what, "seconds": 15.0, **found})
    return rows


# ---- Telling -----------------------------------------------------------------------------------------------


def show(rows: list[dict[str, Any]], happened: list[dict[str, Any]]) -> None:
    """Print the tables."""
    print("| service | workers | preload | RSS MB | PSS MB | private MB | all, PSS MB | threads |", end="")
    print(" nothing p50/p99 ms | recommend p50/p99 ms | ratio of p50 | CPU ms nothing / recommend |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        nothing, found = row["nothing"], row["recommendations"]
        print(
            f"| {row['service']} | {row['workers']} | {'yes' if row['preload'] else 'no'} | {row['rss']:.0f} "
            f"| {row['pss']:.0f} | {row['private']:.0f} | {row['all']:.0f} | {row['threads']} "
            f"| {nothing['p50']:.1f} / {nothing['p99']:.1f} | {found['p50']:.1f} / {found['p99']:.1f} "
            f"| {row['ratio']:.2f} | {nothing['cpu']:.2f} / {found['cpu']:.2f} |"
        )
    print("\n| service | what happened | over after s | requests | failed | p50/p99 ms | tiers |")
    print("|---|---|---:|---:|---:|---:|---|")
    for row in happened:
        tiers = ", ".join(f"{tier} {count}" for tier, count in sorted(row["tiers"].items()))
        failed = ", ".join(f"{count} {kind}" for kind, count in Counter(row["failed"]).items()) or "0"
        print(
            f"| {row['service']} | {row['what']} | {row['seconds']:.1f} | {row['requests']:,} | {failed} "
            f"| {row['p50']:.1f} / {row['p99']:.1f} | {tiers} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Several workers")
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--requests", type=int, default=REQUESTS, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=2, metavar=("PORT", "PATH"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.load:
        load(int(chosen.load[0]), chosen.load[1], chosen.items, chosen.requests)
        return
    rows: list[dict[str, Any]] = []
    happened: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, chosen.items)
        for service in SERVICES:
            for workers in chosen.workers:
                rows += [
                    measured(folder, chosen.items, service, workers, preload=preload)
                    for preload in (False, True)
                ]
        for number, service in enumerate(SERVICES, start=1):
            happened += faults(folder, chosen.items, service, 0.1 * number)
            happened += hanging(folder, chosen.items, service)
    show(rows, happened)
    print("\n" + json.dumps({"load": os.getloadavg(), "rows": rows, "faults": happened}))


if __name__ == "__main__":
    main()
