"""What a ledger in an SQLite file consists of: its schema, what is asked and written, how rows are read.

All of it works on a connection that is given, within its transaction; the file, its connections and its
transactions are the store's. ``until`` limits what is seen to what counts up to that position.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence

from consentier.consent.chain import GENESIS, stored
from consentier.consent.entries import ENTRY_COLUMNS, LINK_COLUMNS, RECORD_COLUMNS, Row, StoredEntry
from consentier.consent.store import Facts, LinkRow, Version
from consentier.errors import LedgerError

__all__ = [
    "ABOUT",
    "ALL",
    "CONTESTED",
    "MIGRATIONS",
    "Batch",
    "conflicts",
    "contradicts_itself",
    "disagreement",
    "emptied",
    "expected_schema",
    "facts_of",
    "last",
    "siblings_of",
    "stored_entries",
    "stray",
    "with_siblings",
]

_AT_ONCE = 1000
_RECORDED_AT = RECORD_COLUMNS.index("recorded_at")
ALL = 2**63 - 1
"""As `until`: no limit."""

MIGRATIONS = (
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

# Column 12 is what the row tells of; those of links are padded.
ABOUT = f"""
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
"""All on one visitor and one customer, in one statement: as of one moment."""

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

CONTESTED = f"""
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
"""Record ids with more than one content. What is left of an erased version is a content of its own."""


class Batch:
    """New entries of one transaction, chained one after the other."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._position, self._head = last(connection, ALL)
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
    except (ValueError, RecursionError):
        return row


def _content(row: Row) -> Row:
    """All that the row of a record states, without when it was recorded."""
    return row[:_RECORDED_AT] + row[_RECORDED_AT + 1 :]


def last(connection: sqlite3.Connection, until: int) -> tuple[int, bytes]:
    """Position of the last entry, and the chain's value there."""
    found: tuple[int, bytes] | None = connection.execute(
        "SELECT position, chain FROM entries WHERE position <= ? ORDER BY position DESC LIMIT 1", (until,)
    ).fetchone()
    return found or (0, GENESIS)


def facts_of(rows: Iterable[Row]) -> tuple[Facts, set[str]]:
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


def siblings_of(connection: sqlite3.Connection, record_id: str, until: int) -> list[Version]:
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


def with_siblings(own: Sequence[Version], siblings: Mapping[str, Sequence[Version]]) -> list[Version]:
    """A subject's versions, those of a contested record id together with all others of it."""
    wanted = {version.record_id for version in own if version.record_id in siblings}
    alone = [version for version in own if version.record_id not in siblings]
    return alone + [sibling for name in sorted(wanted) for sibling in siblings[name]]


def conflicts(connection: sqlite3.Connection, until: int) -> list[str]:
    """Record ids that stand for more than one content, sorted."""
    names = [name for (name,) in connection.execute("SELECT record_id FROM contested ORDER BY record_id")]
    if until == ALL:
        return names
    return [name for name in names if contradicts_itself(connection, name, until)]


def contradicts_itself(connection: sqlite3.Connection, record_id: str, until: int) -> bool:
    """Whether a record id stands for more than one content."""
    return len({version.content for version in siblings_of(connection, record_id, until)}) > 1


def stored_entries(connection: sqlite3.Connection, after: int, until: int) -> Iterator[StoredEntry]:
    """Entries after a position as they stand in the chain, in order."""
    for position, kind, salt, committed, chain, *contents in connection.execute(_STORED, (after, until)):
        start, end = _PLACES.get(kind, (0, 0))
        row = (
            None
            if start == end or contents[start - 1] is None
            else _as_told(kind, tuple(contents[start:end]))
        )
        yield StoredEntry(position, kind, salt, committed, chain, row)


def emptied(connection: sqlite3.Connection, positions: Iterable[int]) -> tuple[set[int], set[str]]:
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


def stray(connection: sqlite3.Connection) -> str | None:
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


def disagreement(connection: sqlite3.Connection) -> str | None:
    """What look-ups rest on besides the entries, if it does not agree with them."""
    noted = connection.execute("SELECT record_id FROM contested ORDER BY record_id").fetchall()
    if noted != connection.execute(CONTESTED).fetchall():
        return "the list of contradicted record ids is not what the records say: it was altered"
    if connection.execute(_SCHEMA).fetchall() != expected_schema():
        return "tables, indexes or triggers are not those of a ledger: the schema was altered"
    damage: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    return None if damage == "ok" else f"the file is damaged: {damage}"


@functools.cache
def expected_schema() -> list[Row]:
    """The tables, indexes and triggers of a ledger, as SQLite tells them."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for script in MIGRATIONS:
            connection.executescript(script)
        return connection.execute(_SCHEMA).fetchall()
