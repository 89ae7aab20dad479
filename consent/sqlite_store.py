"""A ledger's entries in one SQLite file, with the standard library alone.

What was acknowledged survives the loss of power: the write-ahead log is synchronised at every commit. Writers
of several processes queue for the file's one write lock; readers never wait. What is erased is overwritten
(``secure_delete``), and the log that may still hold it is cut off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consentier.consent.chain import GENESIS, stored, verify_chain
from consentier.consent.entries import (
    ENTRY_COLUMNS,
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
from consentier.consent.store import Facts, LinkRow, Verification, Version
from consentier.errors import LedgerError
from consentier.writing import flush

__all__ = ["SqliteStore", "write_backup"]

_APPLICATION_ID = 0x436E7372
_OLDEST_SQLITE = (3, 37, 0)
_BUSY_SECONDS = 30.0
_CACHE_KIBIBYTES = 32_768
_PATIENCE_MS = 5_000
"""How long to wait for readers before the log is left as it is."""

_AT_ONCE = 1000
_RECORDED_AT = RECORD_COLUMNS.index("recorded_at")
_ALL = 2**63 - 1
"""As `until`: no limit."""

_MIGRATIONS = (
    """
CREATE TABLE entries (
    position INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    salt BLOB,
    commitment BLOB NOT NULL,
    chain BLOB NOT NULL
) STRICT;
CREATE TABLE records (
    position INTEGER PRIMARY KEY,
    record_id TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    subject_kind TEXT NOT NULL,
    permission TEXT NOT NULL,
    state TEXT NOT NULL,
    valid_from INTEGER NOT NULL,
    valid_to INTEGER,
    recorded_at INTEGER NOT NULL,
    basis TEXT,
    jurisdiction TEXT,
    double_opt_in_at INTEGER,
    collected_by TEXT,
    policy_version TEXT,
    evidence TEXT
) STRICT;
CREATE INDEX records_by_subject ON records (subject_id, subject_kind);
CREATE INDEX records_by_id ON records (record_id);
CREATE TABLE links (
    position INTEGER PRIMARY KEY,
    visitor_id TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    linked_at INTEGER,
    evidence TEXT
) STRICT;
CREATE INDEX links_by_visitor ON links (visitor_id);
CREATE INDEX links_by_customer ON links (customer_id);
CREATE TABLE erasures (
    position INTEGER PRIMARY KEY,
    positions TEXT NOT NULL,
    erased_at INTEGER NOT NULL
) STRICT;
CREATE TABLE erased_versions (
    position INTEGER PRIMARY KEY,
    record_id TEXT NOT NULL,
    recorded_at INTEGER NOT NULL,
    of INTEGER NOT NULL
) STRICT;
CREATE INDEX erased_versions_by_id ON erased_versions (record_id);
CREATE TABLE erased_logins (
    position INTEGER PRIMARY KEY,
    visitor_id TEXT NOT NULL,
    linked_at INTEGER NOT NULL,
    of INTEGER NOT NULL
) STRICT;
CREATE INDEX erased_logins_by_visitor ON erased_logins (visitor_id);
CREATE TABLE contested (
    record_id TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
""",
)
"""By version of the schema, what leads there from the version before."""

_TABLE_OF = {
    "ConsentRecord": "records",
    "Link": "links",
    "Erasure": "erasures",
    "ErasedVersion": "erased_versions",
    "ErasedLogin": "erased_logins",
}

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

_KNOWN = {
    "ConsentRecord": f"SELECT {', '.join(RECORD_COLUMNS)} FROM records WHERE record_id = ?",
    "Link": f"SELECT {', '.join(LINK_COLUMNS)} FROM links WHERE visitor_id = ?",
}

_SCHEMA = (
    "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name"
)

_VERSION = (
    "record_id, subject_kind, subject_id, permission, state, valid_from, valid_to, recorded_at, "
    "CASE state WHEN 'lifted' THEN evidence END, collected_by, jurisdiction"
)
_LEFT_VERSION = "record_id, NULL, NULL, '', '', 0, NULL, recorded_at, NULL, NULL, NULL"
_CONTENT = ", ".join(name for name in RECORD_COLUMNS if name != "recorded_at")

# One statement, so that it sees one moment. Column 12 is what the row tells of; those of links are padded.
_ABOUT = f"""
SELECT max(position), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'position' FROM entries WHERE position <= :until
UNION ALL
SELECT {_VERSION}, record_id IN contested, position, position, 'visitor' FROM records
WHERE subject_id = :visitor AND subject_kind = 'visitor' AND position <= :until
UNION ALL
SELECT {_VERSION}, record_id IN contested, position, position, 'customer' FROM records
WHERE subject_id = :customer AND subject_kind = 'customer' AND position <= :until
UNION ALL
SELECT visitor_id, customer_id, linked_at, position, position, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'link' FROM links
WHERE visitor_id = :visitor AND position <= :until
UNION ALL
SELECT visitor_id, NULL, linked_at, of, position, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'link' FROM erased_logins
WHERE visitor_id = :visitor AND of <= :until
"""


_STORED = f"""
SELECT e.position, e.kind, e.salt, e.commitment, e.chain,
{
    ", ".join(
        f"{table}.position, " + ", ".join(f"{table}.{name}" for name in ENTRY_COLUMNS[kind])
        for kind, table in _TABLE_OF.items()
    )
}
FROM entries AS e
{" ".join(f"LEFT JOIN {table} ON {table}.position = e.position" for table in _TABLE_OF.values())}
WHERE e.position > ? AND e.position <= ? ORDER BY e.position
"""

_PLACES = {
    kind: (1 + offset, 1 + offset + len(ENTRY_COLUMNS[kind]))
    for kind, offset in zip(
        _TABLE_OF,
        itertools.accumulate((1 + len(ENTRY_COLUMNS[kind]) for kind in _TABLE_OF), initial=0),
        strict=False,
    )
}
"""Where in a row of the statement above the columns of each kind stand; its position stands before them."""

# Record ids with more than one content. What is left of an erased version is a content of its own.
_CONTESTED = f"""
SELECT record_id FROM (
    SELECT DISTINCT {_CONTENT}, 0 FROM records WHERE record_id IN (
        SELECT record_id FROM records GROUP BY record_id HAVING count(*) > 1
        UNION SELECT record_id FROM erased_versions
    )
    UNION ALL
    SELECT record_id{", NULL" * (len(RECORD_COLUMNS) - 2)}, position FROM erased_versions
)
GROUP BY record_id HAVING count(*) > 1 ORDER BY record_id
"""


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
            batch = _Batch(connection)
            for kind, row in rows:
                batch.add_new(kind, row)
            return batch.write()

    def erase(self, entries: Sequence[int], remnants: Sequence[Remnant], erased_at: int) -> int:
        """Delete content and salt of entries, and append that this was done."""
        with self._failures_told("erased from"), self._writing() as connection:
            erased, names = _emptied(connection, entries)
            if erased:
                batch = _Batch(connection)
                for remnant in remnants:
                    if remnant.of in erased:
                        batch.add(type(remnant).__name__, row_of(remnant))
                batch.add("Erasure", row_of(Erasure(tuple(sorted(erased)), erased_at)))
                batch.write()
                for name in names:
                    if len({version.content for version in _siblings(connection, name, _ALL)}) < 2:
                        connection.execute("DELETE FROM contested WHERE record_id = ?", (name,))
        if erased:
            self._cut_log()
        return len(erased)

    def load(self, entries: Iterable[StoredEntry]) -> None:
        """Take over all entries of another store."""
        with self._failures_told("restored into"), self._writing() as connection:
            if _last(connection, _ALL)[0]:
                raise LedgerError(
                    f"ledger {self._path}: a ledger is restored into an empty one only; this one has entries"
                )
            batch = _Batch(connection)
            for entry in entries:
                batch.take_over(entry)
            batch.write()
            connection.execute(f"INSERT OR IGNORE INTO contested {_CONTESTED}")

    def settle(self) -> None:
        """Give up the log, so that the file alone holds everything; for one that is not written to again."""
        with self._failures_told("written to"):
            self._connection().execute("PRAGMA journal_mode = DELETE").fetchall()

    # ---- Looking up --------------------------------------------------------------------------------------

    def last(self, until: int | None = None) -> tuple[int, bytes]:
        """Position of the last entry, and the chain's value there."""
        with self._failures_told("read"):
            return _last(self._connection(), _limit(until))

    def about(self, visitor_id: str | None, customer_id: str | None, until: int | None = None) -> Facts:
        """All that concerns a visitor and a customer, in one statement."""
        asked = {"visitor": visitor_id, "customer": customer_id, "until": _limit(until)}
        try:  # not _failures_told: every request comes by here
            facts, contested = _facts(self._connection().execute(_ABOUT, asked))
        except (sqlite3.Error, UnicodeError) as error:
            raise self._failure("read", error) from error
        if not contested:
            return facts
        with self._failures_told("read"), _one_moment(self._connection()) as connection:
            facts, contested = _facts(connection.execute(_ABOUT, asked))
            siblings = {name: _siblings(connection, name, _limit(until)) for name in contested}
        return facts._replace(
            visitor=_with_siblings(facts.visitor, siblings),
            customer=_with_siblings(facts.customer, siblings),
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
            return _conflicts(connection, until)

    def entries(self, after: int = 0, until: int | None = None) -> Iterator[StoredEntry]:
        """All entries after a position."""
        with self._failures_told("read"), self._stream() as connection:
            yield from _stored(connection, after, _limit(until))

    def columns(self, table: str, until: int | None = None) -> dict[str, list[Any]]:
        """All records or links as columns of the data contract."""
        with self._failures_told("read"), self._stream() as connection:
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
            conflicting = set(_conflicts(connection, until))
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
            found = verify_chain(_stored(connection, 0, _ALL), anchor)
            problem = found.problem or _stray(connection) or _disagreement(connection)
        return dataclasses.replace(found, ok=problem is None, problem=problem)

    def close(self) -> None:
        """Close all connections, those of other threads too."""
        self._closed = True
        with self._lock:
            for connection in self._open:
                connection.sqlite.close()

    # ---- Connections -------------------------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        if self._process != os.getpid():
            self._leave_to_parent()
        held: _Connection | None = getattr(self._local, "connection", None)
        if held is None:
            held = self._local.connection = self._connect()
        return held.sqlite

    def _connect(self) -> _Connection:
        if self._closed:
            raise LedgerError(f"ledger {self._path}: it was closed")
        mode = "ro" if self._read_only else "rw"
        connection = _Connection(
            sqlite3.connect(
                f"{self._path.as_uri()}?mode={mode}",
                uri=True,
                timeout=_BUSY_SECONDS,
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
        self._of_parent += [self._local, *self._open]
        self._local = threading.local()
        self._open = weakref.WeakSet()
        self._lock = threading.Lock()  # whoever held the other one is not here
        self._process = os.getpid()  # last: until then no thread takes a connection for its own

    @contextlib.contextmanager
    def _stream(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own: a statement that is still being read must not hold up this thread's."""
        connection = self._connect()
        try:
            yield connection.sqlite
        finally:
            connection.sqlite.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the file's write lock from the beginning."""
        if self._read_only:
            raise LedgerError(f"ledger {self._path}: it was opened for reading only")
        connection = self._connection()
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
        return LedgerError(f"ledger {self._path}: could not be {what}: {error} ({name}){hint}")

    # ---- The file ----------------------------------------------------------------------------------------

    def _prepare(self, *, create: bool) -> None:
        if not self._path.exists():
            if not create:
                raise LedgerError(
                    f"ledger {self._path}: there is none; check the path, or make it by 'consentier consent "
                    "import' or Ledger.open(…, create=True)"
                )
            self._make_file()
        connection = self._connection()
        version = self._version(connection)
        if self._read_only:
            if version < len(_MIGRATIONS):
                raise LedgerError(
                    f"ledger {self._path}: was made by an older release; open it once for writing"
                )
            return
        if version < len(_MIGRATIONS) and not create:
            raise LedgerError(
                f"ledger {self._path}: has no tables or those of an older release; open it with create=True"
            )
        _use_log(connection)
        if version < len(_MIGRATIONS):
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
            for version in range(self._version(connection), len(_MIGRATIONS)):
                for statement in _MIGRATIONS[version].split(";\n"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

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
        if version > len(_MIGRATIONS):
            raise LedgerError(
                f"ledger {self._path}: was made by a newer release (schema {version}; this one knows "
                f"{len(_MIGRATIONS)}): update Consentier"
            )
        return version

    def _cut_log(self) -> None:
        """Write the log into the file and cut it off: it may hold what was erased.

        Where readers hold it for long it is done by the next one to do so, or when the ledger is closed.
        """
        with self._failures_told("erased from"):
            connection = self._connection()
            connection.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")


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


class _Batch:
    """New entries of one transaction, chained one after the other."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._position, self._head = _last(connection, _ALL)
        self._written = 0
        self._waiting: list[StoredEntry] = []
        self._copies: dict[tuple[str, str], list[Row]] = {}
        self._contested: set[str] = set()

    def add_new(self, kind: str, row: Row) -> None:
        """Add a record or a link, if it is not known."""
        copies = self._copies.get((kind, row[0]))
        if copies is None:
            copies = self._copies[kind, row[0]] = self._connection.execute(_KNOWN[kind], row[:1]).fetchall()
        if row in copies:
            return
        if kind == "ConsentRecord" and any(_content(copy) != _content(row) for copy in copies):
            self._contested.add(row[0])
        copies.append(row)
        self.add(kind, row)

    def add(self, kind: str, row: Row) -> None:
        """Add an entry."""
        self.take_over(stored(self._head, self._position + 1, kind, row))

    def take_over(self, entry: StoredEntry) -> None:
        """Add an entry that stands in a chain already."""
        self._position, self._head = entry.position, entry.chain
        self._waiting.append(entry)
        if len(self._waiting) >= _AT_ONCE:
            self.write()

    def write(self) -> int:
        """Write what waits; return how many entries the batch wrote in all."""
        execute = self._connection.executemany
        execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (entry[:5] for entry in self._waiting))
        by_kind: dict[str, list[Row]] = {}
        for entry in self._waiting:
            if entry.row is not None:
                by_kind.setdefault(entry.kind, []).append((entry.position, *_as_kept(entry.kind, entry.row)))
        for kind, rows in by_kind.items():
            execute(f"INSERT INTO {_TABLE_OF[kind]} VALUES (?{', ?' * len(ENTRY_COLUMNS[kind])})", rows)
        execute("INSERT OR IGNORE INTO contested VALUES (?)", ((name,) for name in self._contested))
        self._written += len(self._waiting)
        self._waiting.clear()
        self._copies.clear()
        self._contested.clear()
        return self._written


def _as_kept(kind: str, row: Row) -> Row:
    return (json.dumps(row[0]), row[1]) if kind == "Erasure" else row


def _as_told(kind: str, row: Row) -> Row:
    if kind != "Erasure":
        return row
    try:
        return json.loads(row[0]), row[1]
    except ValueError:
        return row


def _content(row: Row) -> Row:
    """All that the row of a record states, without when it was recorded."""
    return row[:_RECORDED_AT] + row[_RECORDED_AT + 1 :]


def _limit(until: int | None) -> int:
    return _ALL if until is None else until


@contextlib.contextmanager
def _one_moment(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Several statements that see the same entries."""
    connection.execute("BEGIN")
    try:
        yield connection
    finally:
        connection.execute("COMMIT")


def _last(connection: sqlite3.Connection, until: int) -> tuple[int, bytes]:
    found: tuple[int, bytes] | None = connection.execute(
        "SELECT position, chain FROM entries WHERE position <= ? ORDER BY position DESC LIMIT 1", (until,)
    ).fetchone()
    return found or (0, GENESIS)


def _facts(rows: Iterable[Row]) -> tuple[Facts, set[str]]:
    """What was found of visitor and customer, and the record ids whose other versions are wanted."""
    position = 0
    versions: dict[str, list[Version]] = {"visitor": [], "customer": []}
    links: list[LinkRow] = []
    contested: set[str] = set()
    for row in rows:
        of = row[-1]
        if of == "link":
            links.append(LinkRow._make(row[:5]))
        elif of == "position":
            position = row[0] or 0
        else:
            version = Version._make(row[:-1])
            versions[of].append(version)
            if version.content:
                contested.add(version.record_id)
    return Facts(position, versions["visitor"], versions["customer"], links), contested


def _siblings(connection: sqlite3.Connection, record_id: str, until: int) -> list[Version]:
    """All versions of a record id, each with what it states."""
    found = connection.execute(
        f"SELECT {_VERSION}, position, {', '.join(RECORD_COLUMNS)} FROM records "
        "WHERE record_id = ? AND position <= ? ORDER BY position",
        (record_id, until),
    )
    siblings = [Version._make((*row[:11], _content(row[12:]), row[11], row[11])) for row in found]
    left = connection.execute(
        f"SELECT {_LEFT_VERSION}, of, position FROM erased_versions WHERE record_id = ? AND of <= ?",
        (record_id, until),
    )
    return siblings + [Version._make((*row[:11], ("erased", row[11]), row[11], row[12])) for row in left]


def _with_siblings(own: Sequence[Version], siblings: Mapping[str, Sequence[Version]]) -> list[Version]:
    wanted = {version.record_id for version in own if version.record_id in siblings}
    alone = [version for version in own if version.record_id not in siblings]
    return alone + [sibling for name in sorted(wanted) for sibling in siblings[name]]


def _conflicts(connection: sqlite3.Connection, until: int | None) -> list[str]:
    names = [name for (name,) in connection.execute("SELECT record_id FROM contested ORDER BY record_id")]
    if until is None:
        return names
    return [
        name for name in names if len({version.content for version in _siblings(connection, name, until)}) > 1
    ]


def _stored(connection: sqlite3.Connection, after: int, until: int) -> Iterator[StoredEntry]:
    for position, kind, salt, committed, chain, *contents in connection.execute(_STORED, (after, until)):
        start, end = _PLACES.get(kind, (0, 0))
        row = (
            None
            if start == end or contents[start - 1] is None
            else _as_told(kind, tuple(contents[start:end]))
        )
        yield StoredEntry(position, kind, salt, committed, chain, row)


def _emptied(connection: sqlite3.Connection, positions: Iterable[int]) -> tuple[set[int], set[str]]:
    """Delete content and salt of entries; say which had any, and which record ids they bore."""
    erased: set[int] = set()
    names: set[str] = set()
    for position in positions:
        found = connection.execute(
            "SELECT kind FROM entries WHERE position = ? AND salt IS NOT NULL", (position,)
        ).fetchone()
        if found is None:
            continue
        kind: str = found[0]
        table = _TABLE_OF.get(kind)
        if table is None or kind == "Erasure":
            raise LedgerError(f"entry {position} is none that can be erased, but a {kind}: verify the ledger")
        if kind in ("ConsentRecord", "ErasedVersion"):
            borne = connection.execute(f"SELECT record_id FROM {table} WHERE position = ?", (position,))
            names.update(name for (name,) in borne)
        connection.execute(f"DELETE FROM {table} WHERE position = ?", (position,))
        connection.execute("UPDATE entries SET salt = NULL WHERE position = ?", (position,))
        erased.add(position)
    return erased, names


def _stray(connection: sqlite3.Connection) -> str | None:
    """A row for which there is no entry, or one of another kind."""
    for kind, table in _TABLE_OF.items():
        found = connection.execute(
            f"SELECT {table}.position FROM {table} LEFT JOIN entries AS e ON e.position = {table}.position "
            f"WHERE e.kind IS NOT ? ORDER BY {table}.position LIMIT 1",
            (kind,),
        ).fetchone()
        if found is not None:
            return f"entry {found[0]} is no {kind}, but the table {table!r} has a row for it: put in later"
    return None


def _disagreement(connection: sqlite3.Connection) -> str | None:
    """What look-ups rest on besides the entries, if it does not agree with them."""
    noted = connection.execute("SELECT record_id FROM contested ORDER BY record_id").fetchall()
    if noted != connection.execute(_CONTESTED).fetchall():
        return "the list of contradicted record ids is not what the records say: it was altered"
    if connection.execute(_SCHEMA).fetchall() != _expected_schema():
        return "tables, indexes or triggers are not those of a ledger: the schema was altered"
    damage: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    return None if damage == "ok" else f"the file is damaged: {damage}"


@functools.cache
def _expected_schema() -> list[Row]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for script in _MIGRATIONS:
            connection.executescript(script)
        return connection.execute(_SCHEMA).fetchall()


def _use_log(connection: sqlite3.Connection) -> None:
    """Turn to the write-ahead log. SQLite does not wait here while another process does the same."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise LedgerError(
            f"a ledger needs SQLite's write-ahead log, which this file cannot have (journal mode {mode!r}): "
            "keep it on a local disk"
        )
