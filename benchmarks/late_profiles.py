"""How many look-ups go without the profile where a machine has too much to do, though the store answers.

``python -m benchmarks.late_profiles --busy 16``: four threads ask a Redis of this machine again and again,
beside so many processes that compute; once as if one late answer were enough to leave a store alone for a
second, once as it is (`serving.patience`). Needs the extra ``redis`` and redis-server.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import multiprocessing
import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from consentier.serving import Event, Profiles, patience
from consentier.serving.redis_profiles import RedisProfiles

THREADS = 4
VISITORS = 50
EVENTS = 20
BETWEEN = 0.01
"""Seconds between two look-ups of a thread."""


def compute() -> None:
    """Take a core's time, for good."""
    while True:
        pass


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute."""
    started = [multiprocessing.Process(target=compute, daemon=True) for _ in range(processes)]
    for each in started:
        each.start()
    try:
        yield
    finally:
        for each in started:
            each.kill()


@contextlib.contextmanager
def redis() -> Iterator[RedisProfiles]:
    """A Redis of our own, with some profiles."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "redis.socket"
        command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--dir", folder, "--save", ""]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not path.exists():
                time.sleep(0.05)
            store = RedisProfiles(f"unix://{path}?db=0&prefix=online")
            now = dt.datetime.now(dt.UTC)
            for visitor in range(VISITORS):
                store.append(f"v-{visitor}", [Event(f"i-{item}", ts=now) for item in range(EVENTS)])
            yield store
            store.close()
        finally:
            server.terminate()
            server.wait()


def asked(profiles: Profiles, seconds: float) -> Counter[str]:
    """What came of look-ups, by several threads, for so long."""
    found: Counter[str] = Counter()
    ends = time.monotonic() + seconds

    def ask(first: int) -> None:
        own: Counter[str] = Counter()
        number = first
        while time.monotonic() < ends:
            number += 1
            try:
                profiles.online_of([f"v-{number % VISITORS}"])
            except patience.StoreUnread as unread:
                own[str(unread).partition(": ")[2]] += 1
            else:
                own["answered"] += 1
            time.sleep(BETWEEN)
        found.update(own)

    threads = [threading.Thread(target=ask, args=(7 * number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main() -> None:
    """Print what came of the look-ups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=16, help="processes that compute")
    parser.add_argument("--seconds", type=float, default=25.0, help="of each run")
    chosen = parser.parse_args()
    as_it_is = patience.LATE_IN_A_ROW, patience._DOUBLINGS
    for told, settings in (("one late answer", (1, 0)), ("as it is", as_it_is)):
        patience.LATE_IN_A_ROW, patience._DOUBLINGS = settings
        with redis() as store, busy(chosen.busy):
            found = asked(Profiles(online=store), chosen.seconds)
        without = 1 - found["answered"] / found.total()
        print(f"{told}: {without:.1%} without the profile, load {os.getloadavg()[0]:.0f}: {dict(found)}")


if __name__ == "__main__":
    main()
