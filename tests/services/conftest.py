"""Real services, started for the tests. Where one cannot be had, its tests fail and say what to install."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_NEEDED = (
    "PostgreSQL is not here: install its server programs (Debian, Ubuntu: apt-get install postgresql), "
    "or set CONSENTIER_TEST_POSTGRESQL to the URL of an empty database for tests"
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


@contextlib.contextmanager
def _cluster() -> Iterator[str]:
    """A PostgreSQL server of our own: a temporary directory, a socket in it, no network port."""
    programs, user = _server_programs(), _server_user()
    # Not pytest's own directory: the server's user may not enter that.
    with tempfile.TemporaryDirectory(prefix="consentier-pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if user is not None:
            shutil.chown(folder, user)

        def run(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [programs / program, *arguments],
                user=user, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            if done.returncode:
                log = folder / "log"
                pytest.fail(f"{program} failed: {done.stdout}{log.read_text() if log.exists() else ''}")

        data = str(folder / "data")
        how = ("--username=consentier", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        run("initdb", "--pgdata", data, *how)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        # The log goes to a file: a server that held our pipe would keep `run` waiting.
        run("pg_ctl", "--pgdata", data, "--wait", "--log", str(folder / "log"), "--options", options, "start")
        try:
            yield f"postgresql://consentier@/postgres?host={folder}"
        finally:
            run("pg_ctl", "--pgdata", data, "--wait", "--mode=immediate", "stop")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL database for tests."""
    url = os.environ.get("CONSENTIER_TEST_POSTGRESQL")
    if url:
        yield url
        return
    with _cluster() as own:
        yield own
