"""A ledger's entries in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from consentier.consent.chain import GENESIS, stored, verify_chain
from consentier.consent.entries import (
    LINK_COLUMNS,
    RECORD_COLUMNS,
    ErasedLogin,
    ErasedVersion,
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

__all__ = ["MemoryStore"]

_RECORDED_AT = RECORD_COLUMNS.index("recorded_at")


class MemoryStore:
    """Keeps entries in dictionaries. What it hands out is never changed afterwards.

    The chain is computed when it is first asked for: most ledgers in memory are never verified.
    """

    answers_within: float | None = 0.0

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._kinds: list[str] = []
        self._rows: list[Row | None] = []
        self._chain: list[StoredEntry] = []
        """Entries that stand in the chain already; their row is told by `_rows`."""
        self._versions: dict[str, tuple[Version, ...]] = {}
        self._about: dict[tuple[SubjectKind, str], tuple[Version, ...]] = {}
        self._contested: set[str] = set()
        self._by_visitor: dict[str, tuple[LinkRow, ...]] = {}
        self._by_customer: dict[str, tuple[LinkRow, ...]] = {}

    def append(self, records: Sequence[ConsentRecord], links: Sequence[Link]) -> int:
        """Append what is new."""
        with self._lock:
            before = len(self._rows)
            for record in records:
                self._append_record(row_of(record))
            for link in links:
                self._append_link(row_of(link))
            return len(self._rows) - before

    def last(self, until: int | None = None) -> tuple[int, bytes]:
        """Position of the last entry, and the chain's value there."""
        with self._lock:
            position = len(self._rows) if until is None else min(until, len(self._rows))
            self._complete_chain()
            return position, self._chain[position - 1].chain if position else GENESIS

    def about(self, visitor_id: str | None, customer_id: str | None, until: int | None = None) -> Facts:
        """All that concerns a visitor and a customer."""
        with self._lock:
            return Facts(
                len(self._rows) if until is None else min(until, len(self._rows)),
                () if visitor_id is None else self._versions_about("visitor", visitor_id, until),
                () if customer_id is None else self._versions_about("customer", customer_id, until),
                () if visitor_id is None else _before(self._by_visitor.get(visitor_id, ()), until),
            )

    def links_of_customer(self, customer_id: str, until: int | None = None) -> Sequence[LinkRow]:
        """All links of a customer."""
        return _before(self._by_customer.get(customer_id, ()), until)

    def rows_about(self, kind: SubjectKind, subject_id: str, until: int | None = None) -> list[Row]:
        """The rows of all records of a subject."""
        with self._lock:
            versions = _before(self._about.get((kind, subject_id), ()), until)
            return [self._row(version.entry) for version in versions]

    def link_rows_about(self, kind: SubjectKind, subject_id: str, until: int | None = None) -> list[Row]:
        """The rows of all links of a subject."""
        with self._lock:
            found = self._by_visitor if kind == "visitor" else self._by_customer
            links = _before(found.get(subject_id, ()), until)
            return [self._row(link.entry) for link in links if link.customer_id is not None]

    def subjects(self, kind: SubjectKind, until: int | None = None) -> Iterator[str]:
        """Ids of all subjects of a kind that have records."""
        with self._lock:
            about = list(self._about.items())
        return (name for (of, name), versions in about if of == kind and _before(versions, until))

    def linked_devices(self, until: int | None = None) -> Iterator[str]:
        """Ids of all visitors that have links."""
        with self._lock:
            by_visitor = list(self._by_visitor.items())
        return (visitor_id for visitor_id, links in by_visitor if _before(links, until))

    def conflicts(self, until: int | None = None) -> list[str]:
        """Record ids that stand for more than one content."""
        with self._lock:
            return sorted(
                record_id
                for record_id in self._contested
                if len({version.content for version in self._siblings(record_id, until)}) > 1
            )

    def entries(self, after: int = 0, until: int | None = None) -> Iterator[StoredEntry]:
        """All entries after a position."""
        with self._lock:
            self._complete_chain()
            return iter(self._chain[after:until])

    def columns(self, table: str, until: int | None = None) -> dict[str, list[Any]]:
        """All records or links as columns of the data contract."""
        with self._lock:
            kind = {"records": "ConsentRecord", "links": "Link"}[table]
            rows = [row for of, row in self._contents(until) if of == kind]
            if table == "links":
                remnants = (row for of, row in self._contents(None) if of == "ErasedLogin")
                rows += [
                    (visitor_id, None, linked_at, None)
                    for visitor_id, linked_at, of in remnants
                    if until is None or of <= until
                ]
                return columns_of(LINK_COLUMNS, rows)
            conflicting = set(self.conflicts(until))
            first = {
                record_id: min((version.recorded for version in _before(versions, until)), default=0)
                for record_id, versions in self._versions.items()
                if len(versions) > 1
            }
            columns = columns_of(RECORD_COLUMNS, rows)
            ids = columns["record_id"]
            columns["conflicting"] = [record_id in conflicting for record_id in ids]
            columns["first_recorded"] = [
                first.get(record_id, recorded)
                for record_id, recorded in zip(ids, columns["recorded_at"], strict=True)
            ]
            return columns

    def erase(self, entries: Sequence[int], remnants: Sequence[Remnant], erased_at: int) -> int:
        """Delete content and salt of entries, and append that this was done."""
        with self._lock:
            self._complete_chain()
            erased = {entry for entry in entries if self._rows[entry - 1] is not None}
            if not erased:
                return 0
            for remnant in remnants:
                if remnant.of in erased:
                    self._append_remnant(remnant)
            self._push("Erasure", row_of(Erasure(tuple(sorted(erased)), erased_at)))
            for entry in erased:
                self._forget(entry)
            return len(erased)

    def load(self, entries: Iterable[StoredEntry]) -> None:
        """Take over all entries of another store."""
        with self._lock:
            if self._rows:
                raise LedgerError("a ledger is restored into an empty one only; this one has entries")
            for entry in entries:
                if entry.row is None:
                    self._kinds.append(entry.kind)
                    self._rows.append(None)
                elif entry.kind == "ConsentRecord":
                    self._append_record(entry.row)
                elif entry.kind == "Link":
                    self._append_link(entry.row)
                elif entry.kind == "ErasedVersion":
                    self._append_remnant(ErasedVersion(*entry.row))
                elif entry.kind == "ErasedLogin":
                    self._append_remnant(ErasedLogin(*entry.row))
                else:
                    self._push(entry.kind, entry.row)
                self._chain.append(entry)

    def verify(self, anchor: tuple[int, str] | None = None) -> Verification:
        """Check the chain."""
        return verify_chain(self.entries(), anchor)

    def close(self) -> None:
        """Nothing is held open."""

    # ---- Taking in ---------------------------------------------------------------------------------------

    def _append_record(self, row: Row) -> None:
        record_id = row[0]
        copies = self._versions.get(record_id, ())
        known = [self._rows[version.entry - 1] for version in copies]
        if row in known:
            return
        position = self._push("ConsentRecord", row)
        version = _version(row, position)
        self._versions[record_id] = (*copies, version)
        subject: tuple[SubjectKind, str] = (row[2], row[1])
        self._about[subject] = (*self._about.get(subject, ()), version)
        if copies:
            self._judge(record_id)

    def _append_link(self, row: Row) -> None:
        visitor_id, customer_id, linked_at, _ = row
        links = self._by_visitor.get(visitor_id, ())
        if any(self._rows[link.entry - 1] == row for link in links):
            return
        position = self._push("Link", row)
        link = LinkRow(visitor_id, customer_id, linked_at, position, position)
        self._by_visitor[visitor_id] = (*links, link)
        self._by_customer[customer_id] = (*self._by_customer.get(customer_id, ()), link)

    def _append_remnant(self, remnant: Remnant) -> None:
        entry = self._push(type(remnant).__name__, row_of(remnant))
        if isinstance(remnant, ErasedLogin):
            link = LinkRow(remnant.visitor_id, None, remnant.linked_at, remnant.of, entry)
            self._by_visitor[link.visitor_id] = (*self._by_visitor.get(link.visitor_id, ()), link)
            return
        copies = self._versions.get(remnant.record_id, ())
        self._versions[remnant.record_id] = (*copies, _left_of(remnant, entry))
        self._judge(remnant.record_id)

    def _push(self, kind: str, row: Row) -> int:
        self._kinds.append(kind)
        self._rows.append(row)
        return len(self._rows)

    def _judge(self, record_id: str) -> None:
        """Note whether a record id stands for more than one content."""
        if len({version.content for version in self._siblings(record_id, None)}) > 1:
            self._contested.add(record_id)
        else:
            self._contested.discard(record_id)

    # ---- Giving out --------------------------------------------------------------------------------------

    def _versions_about(self, kind: SubjectKind, subject_id: str, until: int | None) -> tuple[Version, ...]:
        own = _before(self._about.get((kind, subject_id), ()), until)
        if not self._contested:
            return own
        contested = {version.record_id for version in own} & self._contested
        if not contested:
            return own
        siblings = [version for name in sorted(contested) for version in self._siblings(name, until)]
        return (*(version for version in own if version.record_id not in contested), *siblings)

    def _siblings(self, record_id: str, until: int | None) -> list[Version]:
        """All versions of a record id, each with what it states."""
        versions = _before(self._versions.get(record_id, ()), until)
        return [version._replace(content=self._content(version)) for version in versions]

    def _content(self, version: Version) -> object:
        row = self._row(version.entry)
        if version.subject_kind is None:
            return "erased", version.position
        return row[:_RECORDED_AT] + row[_RECORDED_AT + 1 :]

    def _row(self, entry: int) -> Row:
        row = self._rows[entry - 1]
        if row is None:
            raise LedgerError(f"entry {entry} is erased and still looked up: the ledger's memory is damaged")
        return row

    def _contents(self, until: int | None) -> Iterator[tuple[str, Row]]:
        for kind, row in zip(self._kinds[:until], self._rows[:until], strict=True):
            if row is not None:
                yield kind, row

    def _complete_chain(self) -> None:
        head = self._chain[-1].chain if self._chain else GENESIS
        for position in range(len(self._chain) + 1, len(self._rows) + 1):
            entry = stored(head, position, self._kinds[position - 1], self._row(position))
            self._chain.append(entry)
            head = entry.chain

    # ---- Forgetting --------------------------------------------------------------------------------------

    def _forget(self, entry: int) -> None:
        kind, row = self._kinds[entry - 1], self._row(entry)
        self._rows[entry - 1] = None
        self._chain[entry - 1] = self._chain[entry - 1]._replace(salt=None, row=None)
        if kind in ("Link", "ErasedLogin"):
            _drop(self._by_visitor, row[0], entry)
            if kind == "Link":
                _drop(self._by_customer, row[1], entry)
            return
        _drop(self._versions, row[0], entry)
        if kind == "ConsentRecord":
            _drop(self._about, (row[2], row[1]), entry)
        self._judge(row[0])


def _version(row: Row, position: int) -> Version:
    return Version(
        record_id=row[0],
        subject_kind=row[2],
        subject_id=row[1],
        permission=row[3],
        state=row[4],
        start=row[5],
        end=row[6],
        recorded=row[7],
        evidence=row[13],
        collected_by=row[11],
        jurisdiction=row[9],
        content=0,
        position=position,
        entry=position,
    )


def _left_of(remnant: ErasedVersion, entry: int) -> Version:
    return Version(
        record_id=remnant.record_id,
        subject_kind=None,
        subject_id=None,
        permission="",
        state="",
        start=0,
        end=None,
        recorded=remnant.recorded_at,
        evidence=None,
        collected_by=None,
        jurisdiction=None,
        content=0,
        position=remnant.of,
        entry=entry,
    )


_Placed = TypeVar("_Placed", Version, LinkRow)
_Key = TypeVar("_Key")


def _before(placed: tuple[_Placed, ...], until: int | None) -> tuple[_Placed, ...]:
    return placed if until is None else tuple(each for each in placed if each.position <= until)


def _drop(index: dict[_Key, tuple[_Placed, ...]], key: _Key, entry: int) -> None:
    """Take an entry out of an index, and the key with the last of them."""
    left = tuple(each for each in index[key] if each.entry != entry)
    if left:
        index[key] = left
    else:
        del index[key]
