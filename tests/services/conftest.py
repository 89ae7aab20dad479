"""Real services, started for the tests. Where one cannot be had, its tests fail and say what to install."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from spark_sessions import spark_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_NEEDED = (
    "PostgreSQL is not here: install its server programs (Debian, Ubuntu: apt-get install postgresql), "
    "or set CONSENTIER_TEST_POSTGRESQL to the URL of an empty database for tests"
)

_REDIS_NEEDED = (
    "Redis is not here: install its server program (Debian, Ubuntu: apt-get install redis-server), "
    "or set CONSENTIER_TEST_REDIS to the URL of an empty database for tests"
)


def _server_programs() -> Path:
    """The directory of initdb and pg_ctl, the newest release first."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    releases = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not releases:
        pytest.fail(_NEEDED, pytrace=False)
    return max(releases, key=lambda folder: int(folder.parent.name))


def _server_user() -> str | None:
    """PostgreSQL refuses to run as root; Debian's package brings a user for it."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    pytest.fail("PostgreSQL refuses to run as root, and there is no user postgres or nobody", pytrace=False)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A PostgreSQL server of our own: a temporary directory, a socket in it, no network port."""

    folder: Path
    programs: Path
    user: str | None

    @property
    def url(self) -> str:
        """The URL of its database, for the user who may do everything."""
        return self.url_for("consentier")

    def url_for(self, role: str) -> str:
        """The URL of its database for a role; nobody is asked for a password."""
        return f"postgresql://{role}@/postgres?host={self.folder}"

    def create(self) -> None:
        """Make the directory of its data."""
        how = ("--username=consentier", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        self._run("initdb", *how)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        # The log goes to a file: a server that held our pipe would keep `_run` waiting.
        self._run("pg_ctl", "--wait", "--log", str(self.folder / "log"), "--options", options, "start")

    def stop(self) -> None:
        """Stop it as a crash would: clients are cut off, and the next start recovers from the log."""
        self._run("pg_ctl", "--wait", "--mode=immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.programs / program, "--pgdata", str(self.folder / "data"), *arguments],
            user=self.user, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            log = self.folder / "log"
            pytest.fail(f"{program} failed: {done.stdout}{log.read_text() if log.exists() else ''}")


@contextlib.contextmanager
def _running() -> Iterator[Cluster]:
    programs, user = _server_programs(), _server_user()
    # Not pytest's own directory: the server's user may not enter that.
    with tempfile.TemporaryDirectory(prefix="consentier-pg-", ignore_cleanup_errors=True) as name:
        if user is not None:
            shutil.chown(name, user)
        cluster = Cluster(Path(name), programs, user)
        cluster.create()
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL database for tests."""
    url = os.environ.get("CONSENTIER_TEST_POSTGRESQL")
    if url:
        yield url
        return
    with _running() as cluster:
        yield cluster.url


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server that a test may stop and start, and give roles."""
    with _running() as own:
        yield own


@dataclasses.dataclass
class RedisServer:
    """A Redis server of our own: a temporary directory, a socket in it, no network port, nothing on disk."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of its first database."""
        return f"unix://{self.folder}/socket?db=0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail(_REDIS_NEEDED, pytrace=False)
        where = ("--port", "0", "--unixsocket", f"{self.folder}/socket", "--dir", self.folder)
        self.process = subprocess.Popen(
            [program, *where, "--save", ""],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(200):
            if (self.folder / "socket").exists():
                return
            time.sleep(0.05)
        pytest.fail(f"{program} did not start")

    def hang(self) -> None:
        """Let it answer nothing, until `go_on`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop it as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        (self.folder / "socket").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis database for tests."""
    url = os.environ.get("CONSENTIER_TEST_REDIS")
    if url:
        yield url
        return
    with _redis() as server:
        yield server.url


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server that a test may stop and start."""
    with _redis() as server:
        yield server


@contextlib.contextmanager
def _redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="consentier-redis-") as name:
        server = RedisServer(Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module")
def session() -> Iterator[SparkSession]:
    """Apache Spark, of the tests of one file."""
    with spark_session() as opened:
        yield opened
