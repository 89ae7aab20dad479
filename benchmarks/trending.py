"""Cost of counting what is trending: an hour of events, told as fast as they can be taken in.

Visitors come evenly, items by a skewed distribution. Times are processor time of one thread.

Prints one figure a line. Needs NumPy only.

Run: ``python benchmarks/trending.py [--events 300000]``.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import time
from pathlib import Path

import numpy as np

from consentier.serving.trending import Trending

VISITORS, ITEMS = 60_000, 20_000
STATM = Path("/proc/self/statm")


def memory() -> float:
    """Resident memory, in MB (Linux)."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--events", type=int, default=300_000)
    events = parser.parse_args().events
    rng = np.random.default_rng(1)
    visitors = [f"visitor-{number}" for number in rng.integers(0, VISITORS, events).tolist()]
    items = [f"item-{number:05d}" for number in (ITEMS * rng.random(events) ** 3).astype(int).tolist()]
    now = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    trending = Trending(clock=lambda: now)
    before, taken = memory(), []
    for visitor, item in zip(visitors, items, strict=True):
        now += dt.timedelta(hours=1) / events
        started = time.thread_time_ns()
        trending.count(visitor, item, now)
        taken.append((time.thread_time_ns() - started) / 1e3)
    pairs = sum(bucket.entries for bucket in trending._buckets.values())
    grown = memory() - before
    print(f"count: p50 {np.percentile(taken, 50):.1f} µs, p99 {np.percentile(taken, 99):.1f} µs")
    print(f"first event of a bucket: {max(taken) / 1e3:.0f} ms at most")
    print(f"{pairs} pairs: {grown:.0f} MB, {grown * 1e6 / pairs:.0f} bytes each")
    started = time.thread_time_ns()
    trending.purge("visitor-7")
    print(f"purge and renew: {(time.thread_time_ns() - started) / 1e6:.1f} ms")
    started = time.thread_time_ns()
    for _ in range(100_000):
        trending.current()
    print(f"read: {(time.thread_time_ns() - started) / 1e8:.3f} µs")


if __name__ == "__main__":
    main()
