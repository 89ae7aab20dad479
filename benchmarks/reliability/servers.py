"""PostgreSQL and Redis of our own, in temporary directories: started, killed and started again.

They listen on sockets in their directory and on no port of the network. Who starts one stops it; only
processes that were started here are ever killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Cluster", "RedisServer", "ServerError", "running_postgresql", "running_redis"]

_POSTGRESQL_NEEDED = (
    "PostgreSQL is not here: install its server programs (Debian, Ubuntu: apt-get install postgresql), "
    "or set CONSENTIER_TEST_POSTGRESQL to the URL of an empty database for tests"
)

_REDIS_NEEDED = (
    "Redis is not here: install its server program (Debian, Ubuntu: apt-get install redis-server), "
    "or set CONSENTIER_TEST_REDIS to the URL of an empty database for tests"
)

_PATIENCE = 60.0
_PAUSE = 0.02


class ServerError(RuntimeError):
    """A server's programs are missing, or it does not start; says what to do."""


# ---- PostgreSQL --------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Cluster:
    """A PostgreSQL server: its directory, its programs, and the user it runs as.

    Attributes
    ----------
    fsync
        Whether it brings to the disk what it writes, which only a crash of the machine could tell.
    """

    folder: Path
    programs: Path
    user: str | None
    fsync: bool = False
    process: subprocess.Popen[bytes] | None = None

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
        done = subprocess.run(
            [self.programs / "initdb", "--pgdata", str(self.folder / "data"), *how],
            user=self.user, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            raise ServerError(f"initdb failed: {done.stdout}")

    def start(self) -> None:
        """Start it, and wait until it answers.

        As a child of this process, which then learns of its end: to PostgreSQL, a process that nobody has
        asked after runs still.
        """
        options = (
            f"listen_addresses= unix_socket_directories={self.folder} fsync={'on' if self.fsync else 'off'}"
        )
        settings = [part for option in options.split() for part in ("-c", option)]
        # The log goes to a file: nobody would read a pipe.
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", str(self.folder / "data"), *settings],
                user=self.user, cwd=self.folder, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _PATIENCE
        asked: list[str | Path] = [self.programs / "pg_isready", "--quiet", "--host", str(self.folder)]
        while subprocess.run(asked, check=False).returncode:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise ServerError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()}")
            time.sleep(_PAUSE)

    def stop(self) -> None:
        """Stop it as a crash would: clients are cut off, and the next start recovers from the log."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(_PATIENCE)
            self.process = None

    def kill(self, *, backends: bool) -> None:
        """End the postmaster by ``kill -9``, and its processes too, or leave those to find out.

        Returns when all of them are gone: before that the server cannot be started again.
        """
        postmaster = _running(self.process)
        processes = _children(postmaster.pid)
        _kill([postmaster.pid, *(processes if backends else [])])
        postmaster.wait()
        self.process = None
        _wait_until_gone(processes)

    def kill_backends(self) -> int:
        """End those processes by ``kill -9`` that serve clients; the postmaster recovers by itself.

        Returns
        -------
        How many there were.
        """
        serving = [
            pid for pid in _children(_running(self.process).pid) if b"consentier postgres" in _command(pid)
        ]
        _kill(serving)
        return len(serving)


@contextlib.contextmanager
def running_postgresql(*, fsync: bool = False) -> Iterator[Cluster]:
    """A server that runs, and is stopped in the end."""
    programs, user = _server_programs(), _server_user()
    # Not pytest's own directory: the server's user may not enter that.
    with tempfile.TemporaryDirectory(prefix="consentier-pg-", ignore_cleanup_errors=True) as name:
        if user is not None:
            shutil.chown(name, user)
        cluster = Cluster(Path(name), programs, user, fsync)
        cluster.create()
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()


def _server_programs() -> Path:
    """The directory of initdb and pg_ctl, the newest release first."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    releases = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not releases:
        raise ServerError(_POSTGRESQL_NEEDED)
    return max(releases, key=lambda folder: int(folder.parent.name))


def _server_user() -> str | None:
    """PostgreSQL refuses to run as root; Debian's package brings a user for it."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ServerError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


# ---- Redis -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class RedisServer:
    """A Redis server: its directory, and how it keeps what it holds; by default not at all."""

    folder: Path
    keeping: tuple[str, ...] = ("--save", "")
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of its first database."""
        return f"unix://{self.folder}/socket?db=0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = shutil.which("redis-server")
        if program is None:
            raise ServerError(_REDIS_NEEDED)
        where = ("--port", "0", "--unixsocket", f"{self.folder}/socket", "--dir", str(self.folder))
        self.process = subprocess.Popen(
            [program, *where, *self.keeping],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise ServerError(f"{program} did not start")
            time.sleep(_PAUSE)

    def _answers(self) -> bool:
        """Whether it has read what it starts from, and takes clients."""
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.settimeout(_PATIENCE)
            client.connect(str(self.folder / "socket"))
            client.sendall(b"PING\r\n")
            return client.recv(100).startswith(b"+PONG")
        return False

    def hang(self) -> None:
        """Let it answer nothing, until `go_on`."""
        _running(self.process).send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        _running(self.process).send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, and what it has forked to write a file, by ``kill -9``."""
        if self.process is not None:
            children = _children(self.process.pid)
            self.process.kill()
            self.process.wait()
            _kill(children)
            _wait_until_gone(children)
            self.process = None
        (self.folder / "socket").unlink(missing_ok=True)


@contextlib.contextmanager
def running_redis(*keeping: str) -> Iterator[RedisServer]:
    """A server that runs, with options that say how it keeps what it holds, and is stopped in the end."""
    with tempfile.TemporaryDirectory(prefix="consentier-redis-") as name:
        server = RedisServer(Path(name), keeping or ("--save", ""))
        server.start()
        try:
            yield server
        finally:
            server.stop()


# ---- Processes ---------------------------------------------------------------------------------------------


def _running(process: subprocess.Popen[bytes] | None) -> subprocess.Popen[bytes]:
    if process is None:
        raise ServerError("the server does not run")
    return process


def _children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                # The name of the program, in brackets, may hold anything.
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(folder.name))
    return found


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _kill(processes: list[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + _PATIENCE
    for pid in processes:
        while _runs(pid):
            if time.monotonic() > deadline:
                raise ServerError(f"process {pid} does not end")
            time.sleep(_PAUSE)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
