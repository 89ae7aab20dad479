"""Which bundles hold this subject? An index on the training side, keyed so that it names nobody.

A bundle itself holds no list of members. The index holds keyed digests of the subjects whose rows or
attributes a bundle was fitted on; without the key, or after erasure, it answers nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from consentier.consent import microseconds
from consentier.consent.keyring import Keyring
from consentier.consent.records import SubjectKind
from consentier.errors import ConsentierError

__all__ = ["HeldBundle", "Lineage", "LineageError", "subject_name"]

_VERSION = 1

_SCHEMA = f"""
CREATE TABLE bundles (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    tier TEXT NOT NULL,
    cutoff INTEGER NOT NULL,
    ledger_position INTEGER NOT NULL
) STRICT;
CREATE TABLE members (
    subject TEXT NOT NULL,
    bundle INTEGER NOT NULL REFERENCES bundles (id) ON DELETE CASCADE,
    PRIMARY KEY (subject, bundle)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_by_bundle ON members (bundle);
PRAGMA user_version = {_VERSION};
"""


class LineageError(ConsentierError):
    """The index of who is in which bundle cannot be used."""


@dataclasses.dataclass(frozen=True, slots=True)
class HeldBundle:
    """A bundle that was fitted on a subject's data.

    Attributes
    ----------
    digest, tier
        Which bundle.
    cutoff
        Its training cut-off.
    ledger_position
        The ledger's position when it was fitted.
    """

    digest: str
    tier: str
    cutoff: dt.datetime
    ledger_position: int


class Lineage:
    """The index in one SQLite file. What is deleted is overwritten, not only unlinked.

    Parameters
    ----------
    path
        The file; made if it is missing.
    keyring
        Keys that name subjects.

    Raises
    ------
    LineageError
        If the file is no index, or cannot be opened.
    """

    def __init__(self, path: Path, keyring: Keyring) -> None:
        self._path = path
        self._keyring = keyring
        with self._transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == _VERSION:
                return
            if version or connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                raise LineageError(
                    f"lineage {path}: is no lineage index of this release (version {version}); move it away "
                    "and train again: until then each bundle counts as one that may hold anybody"
                )
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)

    def record(
        self,
        digest: str,
        tier: str,
        subjects: Iterable[tuple[SubjectKind, str]],
        *,
        cutoff: dt.datetime,
        ledger_position: int,
    ) -> int:
        """Note on whom a bundle was fitted, in place of what was noted of it before; say how many they are.

        Costs about 5 µs and 100 bytes a subject.
        """
        # In their order they go in twice as quickly.
        names = sorted(self._keyring.digest("lineage", subject_name(*subject)) for subject in subjects)
        return self.record_names(digest, tier, names, cutoff=cutoff, ledger_position=ledger_position)

    def record_names(
        self, digest: str, tier: str, names: Iterable[str], *, cutoff: dt.datetime, ledger_position: int
    ) -> int:
        """As `record`, of subjects who were named elsewhere already, under the current key (`names`)."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM bundles WHERE digest = ?", (digest,))
            bundle = connection.execute(
                "INSERT INTO bundles (digest, tier, cutoff, ledger_position) VALUES (?, ?, ?, ?)",
                (digest, tier, microseconds(cutoff), ledger_position),
            ).lastrowid
            before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO members (subject, bundle) VALUES (?, ?)",
                ((name, bundle) for name in names),
            )
            return connection.total_changes - before

    def bundles_of(self, kind: SubjectKind, subject_id: str) -> list[HeldBundle]:
        """The bundles that hold a subject, by tier and digest."""
        found: set[tuple[str, str, int, int]] = set()
        with self._transaction() as connection:
            for digest in self.names(kind, subject_id):
                found.update(
                    connection.execute(
                        "SELECT digest, tier, cutoff, ledger_position FROM members "
                        "JOIN bundles ON bundles.id = members.bundle WHERE subject = ?",
                        (digest,),
                    )
                )
        return [_held(*row) for row in sorted(found, key=lambda row: (row[1], row[0]))]

    def bundle(self, digest: str) -> HeldBundle:
        """What is noted of a bundle itself.

        Raises
        ------
        LineageError
            If the index does not know the bundle, or a key that names its members is gone: it may hold
            anybody.
        """
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT digest, tier, cutoff, ledger_position, id FROM bundles WHERE digest = ?", (digest,)
            ).fetchone()
            if row is None:
                raise LineageError(f"lineage {self._path}: does not know the bundle {digest}")
            if not _keys_in(connection, row[-1]) <= set(self._keyring.ids):
                raise LineageError(
                    f"lineage {self._path}: whom the bundle {digest} holds can be told no more, as a key "
                    "that names them was thrown away: train anew"
                )
        return _held(*row[:-1])

    def members(self, digest: str) -> frozenset[str]:
        """Keyed digests of all whom a bundle holds, to be compared with those of subjects (`names`)."""
        with self._transaction() as connection:
            found = connection.execute(
                "SELECT subject FROM members JOIN bundles ON bundles.id = members.bundle WHERE digest = ?",
                (digest,),
            )
            return frozenset(subject for (subject,) in found)

    def names(self, kind: SubjectKind, subject_id: str) -> list[str]:
        """What a subject is called in the index, under every key that is still held."""
        return self._keyring.digests("lineage", subject_name(kind, subject_id))

    def replaced(
        self, old_digest: str, new_digest: str, *, without: Iterable[tuple[SubjectKind, str]]
    ) -> None:
        """Note that a bundle took the place of another, fitted on the same persons but some."""
        with self._transaction() as connection:
            row = connection.execute("SELECT id FROM bundles WHERE digest = ?", (old_digest,)).fetchone()
            if row is None:
                return
            connection.executemany(
                "DELETE FROM members WHERE bundle = ? AND subject = ?",
                ((row[0], digest) for subject in without for digest in self.names(*subject)),
            )
            if new_digest != old_digest:
                connection.execute("DELETE FROM bundles WHERE digest = ?", (new_digest,))
                connection.execute("UPDATE bundles SET digest = ? WHERE id = ?", (new_digest, row[0]))

    def erase(self, kind: SubjectKind, subject_id: str) -> int:
        """Delete all that is noted of a subject; say how many entries went."""
        with self._transaction() as connection:
            return sum(
                connection.execute("DELETE FROM members WHERE subject = ?", (digest,)).rowcount
                for digest in self.names(kind, subject_id)
            )

    def drop(self, digests: Iterable[str]) -> int:
        """Delete what is noted of bundles that exist no more; say how many there were."""
        with self._transaction() as connection:
            return sum(
                connection.execute("DELETE FROM bundles WHERE digest = ?", (digest,)).rowcount
                for digest in digests
            )

    def digests(self, tier: str | None = None) -> list[str]:
        """Digests of all bundles, or those of one tier, that the index knows, sorted."""
        with self._transaction() as connection:
            found = connection.execute(
                "SELECT digest FROM bundles WHERE ? IN (tier, '') ORDER BY digest", (tier or "",)
            )
            return [digest for (digest,) in found]

    def bundles(self) -> list[HeldBundle]:
        """All bundles that the index knows, by tier and digest, whether it can name their members or not."""
        with self._transaction() as connection:
            found = connection.execute(
                "SELECT digest, tier, cutoff, ledger_position FROM bundles ORDER BY tier, digest"
            )
            return [_held(*row) for row in found]

    def legible(self) -> frozenset[str]:
        """Digests of the bundles of which the index can tell whom they hold.

        Any other may hold anybody: one that it does not know, and one with members under a key that was
        thrown away. Costs a look-up for each bundle and key, however many its members are.
        """
        keys = set(self._keyring.ids)
        with self._transaction() as connection:
            bundles = connection.execute("SELECT id, digest FROM bundles").fetchall()
            return frozenset(digest for number, digest in bundles if _keys_in(connection, number) <= keys)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(
                sqlite3.connect(self._path, timeout=30, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute("BEGIN IMMEDIATE")
                with connection:
                    yield connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise LineageError(f"lineage {self._path}: {error}") from error


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _held(digest: str, tier: str, cutoff: int, position: int) -> HeldBundle:
    return HeldBundle(digest, tier, _EPOCH + dt.timedelta(microseconds=cutoff), position)


def _keys_in(connection: sqlite3.Connection, bundle: int) -> set[str]:
    """Ids of the keys under which the members of a bundle are named."""
    keys: set[str] = set()
    after = ""
    while True:
        (name,) = connection.execute(
            "SELECT min(subject) FROM members WHERE bundle = ? AND subject > ?", (bundle, after)
        ).fetchone()
        if name is None:
            return keys
        keys.add(name.partition(":")[0])
        after = f"{name.partition(':')[0]};"  # beyond all that begin with KEY:


def subject_name(kind: str, subject_id: str) -> str:
    """What a subject is called before a key makes that unreadable."""
    return f"{kind}:{subject_id}"
