"""Profiles in SQLite: what a shop holds about its customers, one file per source.

A file holds the events of one source, by the ids of that source, and knows no other id: nothing leads from
the online file to the CRM file. The CRM file holds the attributes too, so that one `purge` forgets both::

    online, crm = SqliteProfiles("online.db"), SqliteProfiles("crm.db")
    profiles = Profiles(online=online, crm=crm, attributes=crm.attributes)

What is purged is overwritten, in the file and in its write-ahead log. Backups and snapshots of the file, and
blocks that the file system gave back, are out of reach.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from consentier.errors import DataError, StoreTimeout
from consentier.serving.clock import utc_now
from consentier.serving.profile_base import READ_SECONDS, WRITE_SECONDS, EventRow, ProfileStore

__all__ = ["SqliteProfiles"]

_APPLICATION = 0x436F5072  # "CoPr", in the header of each file
_VERSION = 1
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS events (
    subject TEXT NOT NULL,
    ts INTEGER NOT NULL,  -- microseconds since the Unix epoch
    item_id TEXT NOT NULL,
    event_type TEXT,
    quantity REAL
) STRICT;
CREATE INDEX IF NOT EXISTS events_by_subject ON events (subject, ts);
CREATE INDEX IF NOT EXISTS events_by_time ON events (ts);
CREATE TABLE IF NOT EXISTS attributes (
    subject TEXT PRIMARY KEY,
    ts INTEGER NOT NULL,
    content TEXT NOT NULL
) STRICT, WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""

_EVENTS_OF = (
    "SELECT ts, item_id, event_type, quantity FROM events WHERE subject = ? AND ts >= ? ORDER BY ts, rowid"
)
_ATTRIBUTES_OF = "SELECT ts, content FROM attributes WHERE subject = ? AND ts >= ?"

_LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

_Result = TypeVar("_Result")


class SqliteProfiles(ProfileStore):
    """Events by subject, oldest first, in one SQLite file; with the subjects' attributes beside them.

    Fits `Profiles` as it is. Safe to use from any number of threads and processes; reading never waits for
    writing.

    Parameters
    ----------
    path
        The file.
    create
        Make the file if there is none (readable by its owner only).
    ttl, clock
        How old what is stored may grow, and who says what time it is: see `ProfileStore`.
    read_seconds
        How long a look-up waits where another program has locked the whole file.
    write_seconds
        How long a change waits for the changes of others.

    Raises
    ------
    DataError
        If the file is missing (and `create` is False), is no profile store, or is one of a later release.

    Notes
    -----
    A look-up costs 6 µs and 3 µs per event. `append` costs one synced write however many events it
    gets. A disk that hangs holds up whoever reads it: keep the file on a disk of the machine itself.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        create: bool = True,
        ttl: dt.timedelta | None = None,
        read_seconds: float = READ_SECONDS,
        write_seconds: float = WRITE_SECONDS,
        clock: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self._path = Path(path)
        self.answers_within = read_seconds
        self._write_seconds = write_seconds
        super().__init__(str(self._path.absolute()), ttl=ttl, clock=clock)
        # By process and waiting time. A connection must not pass into a forked process, nor be closed there.
        self._idle: dict[tuple[int, float], list[sqlite3.Connection]] = {}
        if not self._path.exists():
            if not create:
                raise DataError(f"{self._path}: there is no such profile store")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with self._connection(write_seconds) as file:
            _prepare(file)

    def close(self) -> None:
        """Give back what is held open. The store opens anew when it is used again."""
        for key in [key for key in list(self._idle) if key[0] == os.getpid()]:
            for connection in self._idle.pop(key, []):
                connection.close()

    def _events(self, subject: str, since: int) -> Sequence[tuple[int, str, str | None, float | None]]:
        return self._rows(_EVENTS_OF, subject, since)

    def _attributes(self, subject: str, since: int) -> tuple[int, str] | None:
        found = self._rows(_ATTRIBUTES_OF, subject, since)
        return found[0] if found else None

    def _subjects(self, kind: str, since: int) -> list[str]:
        return [name for (name,) in self._rows(f"SELECT DISTINCT subject FROM {kind} WHERE ts >= ?", since)]

    def _add(self, subject: str, rows: Sequence[EventRow]) -> None:
        told = [(subject, *row) for row in rows]
        self._write(lambda file: file.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", told))

    def _replace_attributes(self, subject: str, ts: int, content: str) -> None:
        row = (subject, ts, content)
        self._write(lambda file: file.execute("INSERT OR REPLACE INTO attributes VALUES (?, ?, ?)", row))

    def _delete(self, subject: str) -> int:
        """Delete and overwrite.

        Another connection may still read an older state of the file: then the rows are gone for every reader,
        but not yet from the log, and a `DataError` says so.
        """
        count = self._write(lambda file: _delete(file, "subject = ?", subject))
        self._overwrite_log()
        return count

    def _delete_before(self, limit: int) -> int:
        count = self._write(lambda file: _delete(file, "ts < ?", limit))
        self._overwrite_log()
        return count

    def _rows(self, question: str, *values: object) -> list[tuple[Any, ...]]:
        with self._connection(self.answers_within or READ_SECONDS) as file:
            return file.execute(question, values).fetchall()

    def _write(self, change: Callable[[sqlite3.Connection], _Result]) -> _Result:
        with self._connection(self._write_seconds) as file:
            file.execute("BEGIN IMMEDIATE")
            result = change(file)  # a fault closes the connection, and so takes back what was done
            file.execute("COMMIT")
            return result

    def _overwrite_log(self) -> None:
        """Bring the zeros into the file itself, and empty the log, which may hold what was deleted."""
        with self._connection(self._write_seconds) as file:
            busy, _, _ = file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise DataError(
                f"profile store {self._path}: the rows are deleted, but the log could not be emptied while "
                "another connection reads: do it again"
            )

    @contextlib.contextmanager
    def _connection(self, wait: float) -> Iterator[sqlite3.Connection]:
        """A connection of its own for as long as it is used; given back unless something went wrong."""
        idle = self._idle.setdefault((os.getpid(), wait), [])
        connection = None
        try:
            connection = _taken(idle) or _connect(self._path, wait)
            yield connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            # A message of SQLite that quotes a damaged file need not be text.
            if isinstance(error, sqlite3.Error | UnicodeDecodeError):
                late = getattr(error, "sqlite_errorcode", 0) & 0xFF in _LOCKED
                raise (StoreTimeout if late else DataError)(f"profile store {self._path}: {error}") from error
            raise
        idle.append(connection)


def _taken(idle: list[sqlite3.Connection]) -> sqlite3.Connection | None:
    try:
        return idle.pop()
    except IndexError:
        return None


def _connect(path: Path, wait: float) -> sqlite3.Connection:
    """Open the file; a file that has been moved away is not made anew."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=wait,
        isolation_level=None,
        check_same_thread=False,  # one thread at a time uses it
    )
    try:
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(file: sqlite3.Connection) -> None:
    """Check that the file is a profile store, or make one of an empty file."""
    application = file.execute("PRAGMA application_id").fetchone()[0]
    version = file.execute("PRAGMA user_version").fetchone()[0]
    tables = file.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if (application, version, tables) == (0, 0, 0):
        file.execute("PRAGMA journal_mode = WAL")
        file.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    elif application != _APPLICATION:
        raise sqlite3.DatabaseError("is no profile store, but another SQLite file")
    elif version != _VERSION:
        raise sqlite3.DatabaseError(f"has version {version}; this release reads {_VERSION}")


def _delete(file: sqlite3.Connection, condition: str, value: object) -> int:
    return sum(
        file.execute(f"DELETE FROM {table} WHERE {condition}", (value,)).rowcount
        for table in ("events", "attributes")
    )
