"""Time of one answer: the scoring kernel and the whole of ``Recommender.recommend``, compiled and by NumPy.

The model has random neighbours, and requests random items: rows come from memory that no cache holds, which
is the hard case. In one process the contenders take turns, some hundred requests each, so that a busy machine
slows all of them. Times are processor time: on a shared machine, the wall clock's 99th percentile is that of
the neighbours. implicit's item-kNN recommender answers such histories, as sparse rows that stand ready, from
the same matrix.

Prints Markdown tables, then one line of JSON. Needs the extra ``train``.

Run: ``python benchmarks/serving_latency.py [--items 100000]``. A million items need 5 GB of memory, and
1.7 GB in the directory for temporary files.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from consentier import Permission, Recommender, Request
from consentier.models.bundle import Bundle, open_bundle, write_bundle
from consentier.models.item_index import ItemIndex
from consentier.models.row_scorer import RowScorer
from consentier.serving.scoring_settings import ScoringSettings

NEIGHBOURS = 100
LENGTHS = (5, 50)
HOP_WEIGHT = 0.3
N = 10
REQUESTS, ROUNDS = 400, 5

Rows = NDArray[np.int64]


def write_model(out: Path, items: int, hop_weight: float) -> None:
    """A model of the online tier with random neighbours for every item."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    index = ItemIndex.from_ids(f"item-{number:07d}" for number in range(items))
    # One random item of each stretch of the catalogue: ascending and unique without a sort.
    edges = np.linspace(0, items, NEIGHBOURS + 1).astype(np.int64)
    indices = rng.integers(edges[:-1], edges[1:], (items, NEIGHBOURS)).astype(np.int32)
    settings = ScoringSettings(
        source_weights={"session": 1.0, "online": 1.0},
        hide=("session", "online"),
        second_hop_weight=hop_weight,
    )
    write_bundle(
        out / "online",
        tier="online",
        sources=["session", "online"],
        permission=["online"],
        algorithm="random-weights",
        parameters={},
        scoring={**settings.to_json(), "attributes": []},
        item_count=items,
        cutoff=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        arrays={
            **index.arrays(),
            "indptr": np.arange(items + 1, dtype=np.int64) * NEIGHBOURS,
            "indices": indices.reshape(-1),
            "data": rng.random(items * NEIGHBOURS, dtype=np.float32),
        },
    )


def kernel(bundle: Bundle, hop_weight: float, *, compiled: bool) -> Callable[[Rows], object]:
    """The kernel alone: numbers in, numbers out."""
    arrays = bundle.arrays
    none = np.zeros(bundle.manifest.item_count, np.bool_)
    scorer = RowScorer(
        arrays["indptr"], arrays["indices"], arrays["data"],
        hidden=none, silent=none, hop_weight=hop_weight, compiled=compiled,
    )  # fmt: skip
    if scorer.compiled is not compiled:
        raise SystemExit("Numba is not installed, or does not work: there is nothing to compare")
    return lambda rows: scorer.best(rows, np.ones(rows.size, np.float32), N, barred=rows)


PEER = "implicit, item-kNN"


def peer(bundle: Bundle) -> Callable[[sparse.csr_matrix], object]:
    """The item-kNN recommender of implicit on the same matrix; it takes a sparse row."""
    from implicit._nearest_neighbours import NearestNeighboursScorer
    from implicit.nearest_neighbours import ItemItemRecommender

    items = bundle.manifest.item_count
    data, indices, indptr = (np.array(bundle.arrays[name]) for name in ("data", "indices", "indptr"))
    model = ItemItemRecommender(K=NEIGHBOURS)
    model.similarity = sparse.csr_matrix(
        (data.astype(np.float64), indices, indptr.astype(np.int32)), shape=(items, items)
    )
    model.scorer = NearestNeighboursScorer(model.similarity)
    return lambda history: model.recommend(0, history, N=N)


def sparse_row(rows: Rows, items: int) -> sparse.csr_matrix:
    """A history as implicit takes it, made before the clock starts."""
    ends = np.array([0, rows.size], np.int32)
    return sparse.csr_matrix((np.ones(rows.size), rows.astype(np.int32), ends), shape=(1, items))


def request_of(rows: Rows) -> Request:
    """A request with its permission: the items are the running session, or else the stored history."""
    ids = [f"item-{number:07d}" for number in rows.tolist()]
    if rows.size <= LENGTHS[0]:
        return Request(session=ids, permission=Permission.ONLINE, n=N)
    return Request(online_history=ids, permission=Permission.ONLINE, n=N)


def round_of(
    answers: Mapping[str, Callable[[Any], object]], length: int, items: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Median and 99th percentile of each contender, in microseconds. No two answer the same request."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, answer in answers.items():
        taken = []
        for asked in requests_for(name, rng, length, items, REQUESTS):
            started = time.thread_time_ns()
            answer(asked)
            taken.append((time.thread_time_ns() - started) / 1e3)
        found[name] = float(np.percentile(taken, 50)), float(np.percentile(taken, 99))
    return found


def requests_for(name: str, rng: np.random.Generator, length: int, items: int, count: int) -> list[Any]:
    """Random histories, as the contender of some name takes them."""
    drawn = [np.sort(rng.choice(items, length, replace=False)).astype(np.int64) for _ in range(count)]
    if name == PEER:
        return [sparse_row(rows, items) for rows in drawn]
    return [request_of(rows) for rows in drawn] if name.startswith("recommend") else drawn


def contenders(path: Path, items: int, hop_weight: float) -> dict[str, Callable[[Any], object]]:
    """All that answer, by name; implicit has no second hop."""
    write_model(path, items, hop_weight)
    bundle = open_bundle(path / "online")
    return {
        "kernel, NumPy": kernel(bundle, hop_weight, compiled=False),
        "kernel, compiled": kernel(bundle, hop_weight, compiled=True),
        **({} if hop_weight else {PEER: peer(bundle)}),
        "recommend, NumPy": Recommender.load(path, compiled=False).recommend,
        "recommend, compiled": Recommender.load(path).recommend,
    }


def measured(folder: Path, items: int) -> list[dict[str, Any]]:
    """One row per length of history, second hop and contender; and one per number of threads."""
    rows = []
    for hop_weight in (0.0, HOP_WEIGHT):
        path = folder / f"{items}-{hop_weight}"
        answers = contenders(path, items, hop_weight)
        for length in LENGTHS:
            rounds = [round_of(answers, length, items, seed) for seed in range(ROUNDS)]
            for name in answers:
                p50, p99 = ([each[name][place] for each in rounds] for place in (0, 1))
                against = "recommend, compiled" if name.startswith("recommend") else "kernel, compiled"
                ratios = [each[name][0] / each[against][0] for each in rounds]
                rows.append(
                    {"items": items, "hop": bool(hop_weight), "length": length, "name": name,
                     "p50": p50, "p99": p99, "ratio": ratios}
                )  # fmt: skip
        if not hop_weight:
            rows += throughput(answers, items)
            rows += cold_starts(path, items)
        shutil.rmtree(path)
    return rows


def throughput(answers: Mapping[str, Callable[[Any], object]], items: int) -> list[dict[str, Any]]:
    """Answers a second of one thread and of two, by the wall clock."""
    rng = np.random.default_rng(9)
    rows = []
    for name in ("kernel, NumPy", "kernel, compiled", "recommend, compiled"):
        asked = requests_for(name, rng, LENGTHS[1], items, 4 * REQUESTS)
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for threads, found in rates.items():
                found.append(rate(answers[name], asked, threads))
        rows.append({"items": items, "name": name, "one": rates[1], "two": rates[2]})
    return rows


def rate(answer: Callable[[Any], object], asked: list[Any], threads: int) -> float:
    """Answers a second of all threads together."""

    def answer_all(part: list[Any]) -> None:
        for each in part:
            answer(each)

    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(answer_all, [asked[place::threads] for place in range(threads)]))
        return len(asked) / (time.perf_counter() - started)


_COLD_START = """
import sys, time
from consentier import Permission, Recommender, Request
def private():  # megabytes that this process shares with no other, and no file holds
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024
imported, compiled = time.process_time(), sys.argv[2] == "compiled"
if compiled:
    from consentier.models.row_scorer import compiled_kernel
    compiled_kernel()
ready, before = time.process_time(), private()
recommender = Recommender.load(sys.argv[1], compiled=compiled)
opened, after = time.process_time(), private()
recommender.recommend(Request(session=["item-0000001"], permission=Permission.ONLINE))
print(imported, ready - imported, opened - ready, time.process_time() - opened, after - before)
"""


def cold_starts(path: Path, items: int) -> list[dict[str, Any]]:
    """Processor seconds of a new process up to its first answer, and private megabytes of a bundle."""
    rows = []
    for name in ("compiled", "NumPy"):
        found = []
        for _ in range(ROUNDS):
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", _COLD_START, str(path), name],
                capture_output=True,
                text=True,
                check=True,
            )
            found.append([float(each) for each in done.stdout.split()])
        rows.append({"items": items, "name": name, "cold": [list(each) for each in zip(*found, strict=True)]})
    return rows


def startup() -> dict[str, list[float]]:
    """Processor seconds until compiled loops are ready in a fresh process, without and with Numba's cache."""
    numba = "import time, numpy\nstarted = time.process_time()\nimport numba\n"
    loops = (
        "import time, consentier.serving.scorer\nfrom consentier.models.row_scorer import compiled_kernel\n"
        "started = time.process_time()\nassert compiled_kernel() is not None\n"
    )
    found: dict[str, list[float]] = {"import of Numba": [], "compiled anew": [], "from the cache": []}
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            found["import of Numba"].append(seconds(numba, cache))
            found["compiled anew"].append(seconds(loops, cache))
            found["from the cache"].append(seconds(loops, cache))
    return found


def seconds(code: str, cache: str) -> float:
    """What some code takes from ``started`` on, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(time.process_time() - started)"],
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def show(rows: list[dict[str, Any]], started: Mapping[str, list[float]]) -> None:
    """Print the tables."""
    print("| items | history | second hop | answers | p50 µs | p99 µs | times as long as compiled |")
    print("|---:|---:|---|---|---:|---:|---:|")
    for row in rows:
        if "p50" in row:
            print(
                f"| {row['items']:,} | {row['length']} | {'yes' if row['hop'] else 'no'} | {row['name']} "
                f"| {spread(row['p50'])} | {spread(row['p99'])} | {spread(row['ratio'])} |"
            )
    print("\n| items | answers | one thread, 1/s | two threads, 1/s | ratio |")
    print("|---:|---|---:|---:|---:|")
    for row in rows:
        if "one" in row:
            ratios = [two / one for one, two in zip(row["one"], row["two"], strict=True)]
            rates = " | ".join(f"{statistics.median(row[name]):,.0f}" for name in ("one", "two"))
            print(f"| {row['items']:,} | {row['name']} | {rates} | {spread(ratios)} |")
    print("\n| items | answers | start, import s | loops ready s | open s | first answer s | private MB |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for row in rows:
        if "cold" in row:
            print(f"| {row['items']:,} | {row['name']} | {' | '.join(map(spread, row['cold']))} |")
    print("\n| until compiled loops are ready | s |\n|---|---:|")
    for name, taken in started.items():
        print(f"| {name} | {spread(taken)} |")


def spread(values: list[float]) -> str:
    """Median, and least to largest."""
    digits = 0 if min(values) >= 100 else 1 if min(values) >= 5 else 2
    shown = [f"{each:.{digits}f}" for each in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time of one answer")
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # only one tier has a model
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for items in arguments.items for row in measured(Path(folder), items)]
    started = startup()
    show(rows, started)
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "numba", "implicit")}
    about = {"python": platform.python_version(), "machine": platform.machine(), **versions}
    print("\n" + json.dumps({**about, "rows": rows, "startup": started}))


if __name__ == "__main__":
    main()
