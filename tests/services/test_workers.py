"""FastAPI and Django under Gunicorn: nobody notices new bundles, nor that a worker was killed.

A connection that stays open belongs to one worker, so that what fails can be told from what may fail: only a
connection to the worker that is killed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from engines import ITEMS, bundles, write_linear

from consentier.consent import Tier
from consentier.writing import put_directory

pytestmark = pytest.mark.service("gunicorn")

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "examples" / "workers" / "gunicorn_conf.py"
WORKERS = 2
SERVICES = {
    "fastapi": ("-k", "uvicorn_worker.UvicornWorker", "examples.workers.fastapi_shop:app"),
    "django": ("-k", "gthread", "--threads", "4", "examples.workers.django_shop:application"),
}
MOST_THREADS = 1 + 1 + 1 + 4
"""Its own, the one that follows the bundles, one that verifies new ones, and those that answer."""

QUESTION = json.dumps({"session": ITEMS[:2]})
_SECONDS = 300
"""Whatever is waited for, a service that has not done it by then never will."""


class Service:
    """Gunicorn with one of the services, over a copy of the small bundles."""

    def __init__(self, name: str, folder: Path, *, preload: bool) -> None:
        self.bundles = shutil.copytree(bundles(), folder / "bundles")
        self.log = folder / "gunicorn.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "gunicorn", "--config", str(CONFIGURATION),
                    "--bind", f"127.0.0.1:{self.port}", "--workers", str(WORKERS), "--timeout", "0",
                    "--keep-alive", "600", *SERVICES[name],
                ],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "SHOP_BUNDLES": str(self.bundles),
                    "SHOP_STATE": str(folder / "state"),
                    "SHOP_RELOAD_SECONDS": "0.1",
                    "SHOP_PRELOAD": "yes" if preload else "no",
                },
            )  # fmt: skip

    def workers(self) -> set[int]:
        """The processes that answer."""
        master = self.process.pid
        return {int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()}

    def connected(self) -> http.client.HTTPConnection:
        """A connection, which stays with the worker that takes it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=_SECONDS)

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Wait until something is so."""
        limit = time.monotonic() + _SECONDS
        while not holds():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.02)

    def told(self) -> Mapping[int, Any]:
        """The bundles of each worker: asked on new connections until all have said it."""
        found: dict[int, Any] = {}

        def all_said() -> bool:
            with contextlib.suppress(ConnectionRefusedError):  # not yet, at the start
                connection = self.connected()
                said = ask(connection, "/health")
                connection.close()
                found[said["worker"]] = said["bundles"]
            return len(self.workers()) == WORKERS and found.keys() >= self.workers()

        self.wait_for(all_said)
        return {pid: found[pid] for pid in self.workers()}


def ask(connection: http.client.HTTPConnection, path: str, body: str | None = None) -> Any:
    """One answer; a connection that was closed is not opened again."""
    connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"})
    connection.auto_open = False
    response = connection.getresponse()
    text = response.read()
    assert response.status == 200, text
    return json.loads(text)


class Asking:
    """Asks one worker all the time, on one connection."""

    def __init__(self, service: Service) -> None:
        self._connection = service.connected()
        self.worker: int = ask(self._connection, "/health")["worker"]
        self.answers = 0
        self.failed: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._connection.close()

    def _ask(self) -> None:
        while not self._ended.is_set():
            try:
                assert ask(self._connection, "/recommendations", QUESTION)["tier"] == "session"
            except (OSError, AssertionError, ValueError, http.client.HTTPException) as error:
                self.failed = error
                return
            self.answers += 1


@contextlib.contextmanager
def asking_each(service: Service) -> Iterator[dict[int, Asking]]:
    """Ask each worker all the time."""
    found: dict[int, Asking] = {}
    try:
        while len(found) < WORKERS:
            each = Asking(service)
            if each.worker in found:
                each.end()
            else:
                found[each.worker] = each
        for each in found.values():
            each.start()
        yield found
    finally:
        for each in found.values():
            each.end()


@pytest.fixture(params=[(name, preload) for name in SERVICES for preload in (True, False)], ids=str)
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    name, preload = request.param
    started = Service(name, tmp_path, preload=preload)
    try:
        started.told()
        yield started
    finally:
        started.process.terminate()
        started.process.wait()


def publish(service: Service) -> str:
    """Replace the bundle of the session tier, as a trainer does; say the new one's digest."""
    beside = service.bundles.parent / "new"
    digest = write_linear(beside, Tier.SESSION, seed=50)
    former = put_directory(beside, service.bundles / Tier.SESSION)
    assert former is not None
    shutil.rmtree(former)
    return digest


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_new_bundles_and_a_killed_worker_fail_no_request_of_the_other(service: Service) -> None:
    with asking_each(service) as asked:
        # New bundles, in both, while each answers.
        digest = publish(service)
        service.wait_for(lambda: all(each["session"] == digest for each in service.told().values()))
        assert len({json.dumps(each) for each in service.told().values()}) == 1
        for each in asked.values():
            before = each.answers
            service.wait_for(lambda each=each, before=before: each.answers > before or each.failed)
            assert each.failed is None
        assert max(map(threads_of, service.workers())) <= MOST_THREADS

        # A worker is killed, and another one takes its place with the bundles of now.
        victim, survivor = asked
        os.kill(victim, signal.SIGKILL)
        service.wait_for(lambda: victim not in service.workers())
        before = asked[survivor].answers
        told = service.told()  # on new connections, none of which fails
        assert {json.dumps(each) for each in told.values()} == {json.dumps(told[survivor])}
        service.wait_for(lambda: asked[survivor].answers > before or asked[survivor].failed is not None)
        assert asked[survivor].failed is None
        assert told[survivor]["session"] == digest
