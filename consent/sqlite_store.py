"""A ledger's entries in one SQLite file, with the standard library alone.

What was acknowledged survives the loss of power: the write-ahead log is synchronised at every commit. Writers
of several processes queue for the file's one write lock; readers never wait. What is erased is overwritten
(``secure_delete``), and the log that may still hold it is cut off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from consentier.consent import sqlite_queries as queries
from consentier.consent.chain import verify_chain
from consentier.consent.entries import (
    LINK_COLUMNS,
    RECORD_COLUMNS,
    Erasure,
    Remnant,
    Row,
    StoredEntry,
    columns_of,
    row_of,
)
from consentier.consent.records import ConsentRecord, Link, SubjectKind
from consentier.consent.store import Facts, LinkRow, Verification
from consentier.errors import LedgerError, LedgerTimeout
from consentier.writing import flush

__all__ = ["LOOKUP_SECONDS", "SqliteStore", "write_backup"]

LOOKUP_SECONDS = 0.25
"""So long a look-up waits where another program has locked the whole file. It never waits for writers."""

_APPLICATION_ID = 0x436E7372
_OLDEST_SQLITE = (3, 37, 0)
_BUSY_SECONDS = 30.0
_CACHE_KIBIBYTES = 32_768
_PATIENCE_SECONDS = 5.0
"""How long to wait for readers before the log is left as it is."""

_HINTS = {
    "SQLITE_FULL": "; the disk is full: what was acknowledged before is kept, this was not",
    "SQLITE_BUSY": "; another process held the ledger for too long",
    "SQLITE_READONLY": "; it may not be written to: check the rights of the file and of its directory",
    "SQLITE_CANTOPEN": "; check that its directory exists and may be written to",
    "SQLITE_IOERR": "; the disk failed or is full: what was acknowledged before is kept, this was not",
    "SQLITE_NOTADB": "; choose another file",
    "SQLITE_CORRUPT": "; restore it from a backup",
}
"""What to do, by the beginning of SQLite's name for the error."""


class SqliteStore:
    """Keeps entries in an SQLite file.

    Parameters
    ----------
    path
        The file. A new one is readable for its owner only.
    create
        Make the file if it is missing, and bring an older one to this release's schema.
    read_only
        Change nothing, not even the file's journal.

    Raises
    ------
    LedgerError
        If the file is missing, cannot be opened, is no ledger, or is one of a newer release.
    """

    answers_within: float | None = LOOKUP_SECONDS

    def __init__(self, path: Path, *, create: bool = True, read_only: bool = False) -> None:
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise LedgerError(
                f"ledger {path}: Python's SQLite is {sqlite3.sqlite_version}, and a ledger needs "
                f"{'.'.join(map(str, _OLDEST_SQLITE))} or newer"
            )
        self._path = path.absolute()
        self._read_only = read_only
        self._closed = False
        self._process = os.getpid()
        self._local = threading.local()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._of_parent: list[object] = []
        with self._failures_told("opened"):
            self._prepare(create=create)

    # ---- Taking in ---------------------------------------------------------------------------------------

    def append(self, records: Sequence[ConsentRecord], links: Sequence[Link]) -> int:
        """Append what is new, in one transaction."""
        if not records and not links:
            return 0
        rows = [("ConsentRecord", row_of(record)) for record in records]
        rows += [("Link", row_of(link)) for link in links]
        with self._failures_told("written to"), self._writing() as connection:
            batch = queries.Batch(connection)
            for kind, row in rows:
                batch.add_new(kind, row)
            return batch.write()

    def erase(self, entries: Sequence[int], remnants: Sequence[Remnant], erased_at: int) -> int:
        """Delete content and salt of entries, and append that this was done."""
        with self._failures_told("erased from"), self._writing() as connection:
            erased, names = queries.emptied(connection, entries)
            if erased:
                batch = queries.Batch(connection)
                for remnant in remnants:
                    if remnant.of in erased:
                        batch.add(type(remnant).__name__, row_of(remnant))
                batch.add("Erasure", row_of(Erasure(tuple(sorted(erased)), erased_at)))
                batch.write()
                for name in names:
                    if not queries.contradicts_itself(connection, name, queries.ALL):
                        connection.execute("DELETE FROM contested WHERE record_id = ?", (name,))
        if erased:
            self._cut_log()
        return len(erased)

    def load(self, entries: Iterable[StoredEntry]) -> None:
        """Take over all entries of another store."""
        with self._failures_told("restored into"), self._writing() as connection:
            if queries.last(connection, queries.ALL)[0]:
                raise LedgerError(
                    f"ledger {self._path}: a ledger is restored into an empty one only; this one has entries"
                )
            batch = queries.Batch(connection)
            for entry in entries:
                batch.take_over(entry)
            batch.write()
            connection.execute(f"INSERT OR IGNORE INTO contested {queries.CONTESTED}")

    def settle(self) -> None:
        """Give up the log, so that the file alone holds everything; for one that is not written to again."""
        with self._failures_told("written to"), self._patient(_BUSY_SECONDS) as connection:
            connection.execute("PRAGMA journal_mode = DELETE").fetchall()

    # ---- Looking up --------------------------------------------------------------------------------------

    def last(self, until: int | None = None) -> tuple[int, bytes]:
        """Position of the last entry, and the chain's value there."""
        with self._failures_told("read"):
            return queries.last(self._connection(), _limit(until))

    def about(self, visitor_id: str | None, customer_id: str | None, until: int | None = None) -> Facts:
        """All that concerns a visitor and a customer, in one statement."""
        asked = {"visitor": visitor_id, "customer": customer_id, "until": _limit(until)}
        try:  # not _failures_told: every request comes by here
            facts, contested = queries.facts_of(self._connection().execute(queries.ABOUT, asked))
        except (sqlite3.Error, UnicodeError) as error:
            raise self._failure("read", error) from error
        if not contested:
            return facts
        with self._failures_told("read"), _one_moment(self._connection()) as connection:
            facts, contested = queries.facts_of(connection.execute(queries.ABOUT, asked))
            siblings = {name: queries.siblings_of(connection, name, _limit(until)) for name in contested}
        return facts._replace(
            visitor=queries.with_siblings(facts.visitor, siblings),
            customer=queries.with_siblings(facts.customer, siblings),
        )

    def links_of_customer(self, customer_id: str, until: int | None = None) -> Sequence[LinkRow]:
        """All links of a customer."""
        found = self._fetched(
            "SELECT visitor_id, customer_id, linked_at, position, position FROM links "
            "WHERE customer_id = ? AND position <= ? ORDER BY position",
            (customer_id, _limit(until)),
        )
        return [LinkRow._make(row) for row in found]

    def rows_about(self, kind: SubjectKind, subject_id: str, until: int | None = None) -> list[Row]:
        """The rows of all records of a subject."""
        return self._fetched(
            f"SELECT {', '.join(RECORD_COLUMNS)} FROM records "
            "WHERE subject_id = ? AND subject_kind = ? AND position <= ? ORDER BY position",
            (subject_id, kind, _limit(until)),
        )

    def link_rows_about(self, kind: SubjectKind, subject_id: str, until: int | None = None) -> list[Row]:
        """The rows of all links of a subject."""
        return self._fetched(
            f"SELECT {', '.join(LINK_COLUMNS)} FROM links WHERE {kind}_id = ? AND position <= ? "
            "ORDER BY position",
            (subject_id, _limit(until)),
        )

    def subjects(self, kind: SubjectKind, until: int | None = None) -> Iterator[str]:
        """Ids of all subjects of a kind that have records."""
        return self._names(
            "SELECT DISTINCT subject_id FROM records WHERE subject_kind = ? AND position <= ?",
            (kind, _limit(until)),
        )

    def linked_devices(self, until: int | None = None) -> Iterator[str]:
        """Ids of all visitors that have links."""
        return self._names("SELECT DISTINCT visitor_id FROM links WHERE position <= ?", (_limit(until),))

    def conflicts(self, until: int | None = None) -> list[str]:
        """Record ids that stand for more than one content."""
        with self._failures_told("read"), _one_moment(self._connection()) as connection:
            return queries.conflicts(connection, _limit(until))

    def entries(self, after: int = 0, until: int | None = None) -> Iterator[StoredEntry]:
        """All entries after a position."""
        with self._failures_told("read"), self._stream() as connection:
            yield from queries.stored_entries(connection, after, _limit(until))

    def columns(self, table: str, until: int | None = None) -> dict[str, list[Any]]:
        """All records or links as columns of the data contract."""
        with self._failures_told("read"), self._stream() as connection, _one_moment(connection):
            limit = _limit(until)
            if table == "links":
                found = connection.execute(
                    f"SELECT {', '.join(LINK_COLUMNS)} FROM links WHERE position <= :until UNION ALL "
                    "SELECT visitor_id, NULL, linked_at, NULL FROM erased_logins WHERE of <= :until",
                    {"until": limit},
                )
                return columns_of(LINK_COLUMNS, found)
            found = connection.execute(
                f"SELECT {', '.join(RECORD_COLUMNS)} FROM records WHERE position <= ? ORDER BY position",
                (limit,),
            )
            columns = columns_of(RECORD_COLUMNS, found)
            conflicting = set(queries.conflicts(connection, limit))
            first = dict(
                connection.execute(
                    "SELECT record_id, min(recorded_at) FROM ("
                    "SELECT record_id, recorded_at FROM records WHERE position <= :until UNION ALL "
                    "SELECT record_id, recorded_at FROM erased_versions WHERE of <= :until"
                    ") GROUP BY record_id HAVING count(*) > 1",
                    {"until": limit},
                ).fetchall()
            )
        ids = columns["record_id"]
        columns["conflicting"] = [record_id in conflicting for record_id in ids]
        columns["first_recorded"] = [
            first.get(record_id, recorded)
            for record_id, recorded in zip(ids, columns["recorded_at"], strict=True)
        ]
        return columns

    # ---- Checking ----------------------------------------------------------------------------------------

    def verify(self, anchor: tuple[int, str] | None = None) -> Verification:
        """Check the chain, and that indexes and derived tables agree with it."""
        with self._failures_told("verified"), self._stream() as connection, _one_moment(connection):
            # Whatever bytes somebody put there: they are to be found wrong, not to stop the walk.
            connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            found = verify_chain(queries.stored_entries(connection, 0, queries.ALL), anchor)
            problem = found.problem or queries.stray(connection) or queries.disagreement(connection)
        return dataclasses.replace(found, ok=problem is None, problem=problem)

    def close(self) -> None:
        """Close all connections, those of other threads too; in a forked process, none of its parent's."""
        self._leave_to_parent()
        self._closed = True
        with self._lock:
            for connection in self._open:
                connection.sqlite.close()

    # ---- Connections -------------------------------------------------------------------------------------

    def _connection(self, wait: float = LOOKUP_SECONDS) -> sqlite3.Connection:
        """This thread's connection; if it must be made, it waits so long for others."""
        self._leave_to_parent()
        held: _Connection | None = getattr(self._local, "connection", None)
        if held is None:
            held = self._local.connection = self._connect(wait)
        return held.sqlite

    def _connect(self, wait: float) -> _Connection:
        if self._closed:
            raise LedgerError(f"ledger {self._path}: it was closed")
        mode = "ro" if self._read_only else "rw"
        connection = _Connection(
            sqlite3.connect(
                f"{self._path.as_uri()}?mode={mode}",
                uri=True,
                timeout=wait,
                isolation_level=None,
                check_same_thread=False,
            )
        )
        connection.sqlite.execute("PRAGMA synchronous = FULL")
        connection.sqlite.execute("PRAGMA secure_delete = ON")
        connection.sqlite.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
        with self._lock:
            self._open.add(connection)
        return connection

    def _leave_to_parent(self) -> None:
        """After a fork: an SQLite connection may not be used, nor closed, by a child process."""
        if self._process == os.getpid():
            return
        self._of_parent += [self._local, *self._open]
        self._local = threading.local()
        self._open = weakref.WeakSet()
        self._lock = threading.Lock()  # whoever held the other one is not here
        self._process = os.getpid()  # last: until then no thread takes a connection for its own

    @contextlib.contextmanager
    def _patient(self, seconds: float) -> Iterator[sqlite3.Connection]:
        """This thread's connection, while it waits longer for others than a look-up may."""
        connection = self._connection(seconds)
        connection.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
        try:
            yield connection
        finally:
            with contextlib.suppress(sqlite3.Error):  # if it was closed meanwhile, that has been told
                connection.execute(f"PRAGMA busy_timeout = {int(LOOKUP_SECONDS * 1000)}")

    @contextlib.contextmanager
    def _stream(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own: a statement that is still being read must not hold up this thread's."""
        self._leave_to_parent()
        connection = self._connect(_BUSY_SECONDS)
        try:
            yield connection.sqlite
        finally:
            connection.sqlite.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the file's write lock from the beginning."""
        if self._read_only:
            raise LedgerError(f"ledger {self._path}: it was opened for reading only")
        with self._patient(_BUSY_SECONDS) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
                        connection.execute("ROLLBACK")
                raise

    def _fetched(self, statement: str, asked: Sequence[object]) -> list[Row]:
        with self._failures_told("read"):
            return self._connection().execute(statement, asked).fetchall()

    def _names(self, statement: str, asked: Sequence[object]) -> Iterator[str]:
        with self._failures_told("read"), self._stream() as connection:
            for (name,) in connection.execute(statement, asked):
                yield name

    @contextlib.contextmanager
    def _failures_told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeError) as error:
            raise self._failure(what, error) from error

    def _failure(self, what: str, error: sqlite3.Error | UnicodeError) -> LedgerError:
        if isinstance(error, UnicodeEncodeError):
            return LedgerError(
                f"ledger {self._path}: could not be {what}: a text holds half a character (a lone surrogate, "
                f"in place {error.start + 1}), which no file can keep; mend it where it comes from"
            )
        name = getattr(error, "sqlite_errorname", None) or type(error).__name__
        hint = next((hint for prefix, hint in _HINTS.items() if name.startswith(prefix)), "")
        kind = LedgerTimeout if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) else LedgerError
        return kind(f"ledger {self._path}: could not be {what}: {error} ({name}){hint}")

    # ---- The file ----------------------------------------------------------------------------------------

    def _prepare(self, *, create: bool) -> None:
        if not self._path.exists():
            if not create:
                raise LedgerError(
                    f"ledger {self._path}: there is none; check the path, or make it by 'consentier consent "
                    "import' or Ledger.open(…, create=True)"
                )
            self._make_file()
        with self._patient(_BUSY_SECONDS) as connection:
            self._prepare_tables(connection, create=create)

    def _prepare_tables(self, connection: sqlite3.Connection, *, create: bool) -> None:
        version = self._version(connection)
        if self._read_only:
            if version == 0:
                raise LedgerError(f"ledger {self._path}: the file is empty, so there is no ledger in it")
            if version < len(queries.MIGRATIONS):
                raise LedgerError(
                    f"ledger {self._path}: was made by an older release; open it once for writing"
                )
            return
        if version < len(queries.MIGRATIONS) and not create:
            raise LedgerError(
                f"ledger {self._path}: has no tables or those of an older release; open it with create=True"
            )
        _use_log(connection)
        if version < len(queries.MIGRATIONS):
            self._migrate()

    def _make_file(self) -> None:
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError as error:
            raise LedgerError(
                f"ledger {self._path}: cannot be made: {os.strerror(error.errno or errno.EIO)}"
            ) from error

    def _migrate(self) -> None:
        with self._writing() as connection:
            for version in range(self._version(connection), len(queries.MIGRATIONS)):
                for statement in queries.MIGRATIONS[version].split(";\n"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(queries.MIGRATIONS)}")

    def _version(self, connection: sqlite3.Connection) -> int:
        """The version of the schema: 0 for an empty file."""
        version: int
        # In one statement, so that all three are of one state: others may be making the tables.
        application, version, tables = connection.execute(
            "SELECT application_id, user_version, EXISTS (SELECT 1 FROM sqlite_master) "
            "FROM pragma_application_id, pragma_user_version"
        ).fetchone()
        if application != _APPLICATION_ID:
            if application or version or tables:
                raise LedgerError(f"ledger {self._path}: the file is an SQLite database, but no ledger")
            return 0
        if version > len(queries.MIGRATIONS):
            raise LedgerError(
                f"ledger {self._path}: was made by a newer release (schema {version}; this one knows "
                f"{len(queries.MIGRATIONS)}): update Consentier"
            )
        return version

    def _cut_log(self) -> None:
        """Write the log into the file and cut it off: it may hold what was erased.

        Where readers hold it for long it is done by the next one to do so, or when the ledger is closed.
        """
        with (
            self._failures_told("erased from"),
            self._patient(_PATIENCE_SECONDS) as connection,
        ):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def write_backup(entries: Iterable[StoredEntry], path: Path) -> None:
    """Write a ledger's entries into a new SQLite file, complete or not at all.

    Raises
    ------
    LedgerError
        If the file exists, or cannot be written.
    """
    if path.exists():
        raise LedgerError(f"backup {path}: exists already; choose another name or remove it")
    partial = path.with_name(path.name + ".partial")
    _remove(partial)
    try:
        store = SqliteStore(partial)
        try:
            store.load(entries)
            store.settle()
        finally:
            store.close()
        partial.replace(path)
        flush(path.parent)
    except OSError as error:
        raise LedgerError(f"backup {path}: cannot be written: {error.strerror or error}") from error
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()


class _Connection:
    """A connection that is closed with the thread that used it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.sqlite = connection

    def __del__(self) -> None:
        self.sqlite.close()


def _limit(until: int | None) -> int:
    return queries.ALL if until is None else until


@contextlib.contextmanager
def _one_moment(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Several statements that see the same entries."""
    connection.execute("BEGIN")
    try:
        yield connection
    finally:
        if connection.in_transaction:  # a failure may have ended it, and is the one to tell
            connection.execute("COMMIT")


def _use_log(connection: sqlite3.Connection) -> None:
    """Turn to the write-ahead log. SQLite does not wait here while another process does the same."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            name = getattr(error, "sqlite_errorname", None) or ""
            held_by_others = name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
            if not held_by_others or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise LedgerError(
            f"a ledger needs SQLite's write-ahead log, which this file cannot have (journal mode {mode!r}): "
            "keep it on a local disk"
        )
