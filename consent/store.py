"""What a ledger asks of the place that keeps its entries, in memory, in SQLite or in PostgreSQL.

A store knows nothing of permissions. It keeps entries in order of their positions, finds those that concern
one subject, and tells them as they stand in the chain. All that decides about permissions stands in
``ledger`` and ``timeline``, once, whatever the store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from consentier.consent.entries import Remnant, Row, StoredEntry
from consentier.consent.records import ConsentRecord, Link, SubjectKind

__all__ = ["Facts", "LinkRow", "Store", "Verification", "Version"]


class Version(NamedTuple):
    """One stored version of a consent record, as resolving needs it. Times in microseconds since the epoch.

    Attributes
    ----------
    record_id, subject_kind, subject_id, permission, state, collected_by, jurisdiction
        As in the record. For what is left of an erased record (see `ErasedVersion`), kind and id of the
        subject are None, permission and state empty.
    start, end, recorded
        Its `valid_from`, `valid_to` and `recorded_at`.
    evidence
        As in the record where the state is ``lifted``; elsewhere it may be left out.
    content
        Two versions of one record id state the same if, and only if, this is equal: all fields but
        `recorded_at`. A constant where no version of the id ever stated anything else.
    position
        From which position on it counts.
    entry
        The entry that holds it: another than `position` for what is left of an erased record.
    """

    record_id: str
    subject_kind: SubjectKind | None
    subject_id: str | None
    permission: str
    state: str
    start: int
    end: int | None
    recorded: int
    evidence: str | None
    collected_by: str | None
    jurisdiction: str | None
    content: object
    position: int
    entry: int


class LinkRow(NamedTuple):
    """One stored link. For what is left of an erased one (see `ErasedLogin`) the customer is None.

    `position` and `entry` are as in `Version`.
    """

    visitor_id: str
    customer_id: str | None
    linked_at: int | None
    position: int
    entry: int


class Facts(NamedTuple):
    """What a store holds on one visitor and one customer at one moment.

    Attributes
    ----------
    position
        The last entry's.
    visitor, customer
        All versions of the subject's records, and of a record id that stands for several contents all
        versions, whomever they concern.
    links
        All links of the visitor.
    """

    position: int
    visitor: Sequence[Version]
    customer: Sequence[Version]
    links: Sequence[LinkRow]


@dataclasses.dataclass(frozen=True, slots=True)
class Verification:
    """What a walk along the chain found.

    Attributes
    ----------
    ok
        Whether every entry is what it was when it was appended, or was lawfully erased.
    position, head
        The last entry, and the chain's value there: an anchor, if it is noted elsewhere.
    entries, erased
        How many entries there are, and how many of them were erased.
    problem
        The first fault, in words that quote no content; None where all is well.
    """

    ok: bool
    position: int
    head: str
    entries: int
    erased: int
    problem: str | None = None


class Store(Protocol):
    """Keeps entries. Safe to use from several threads.

    `until` everywhere limits what is seen to what counts up to that position (None: all). Whatever goes wrong
    in the place where the entries are kept is raised as a `LedgerError`.
    """

    @property
    def answers_within(self) -> float | None:
        """Seconds after which a look-up gives up by itself; None where it cannot promise that."""
        ...

    def append(self, records: Sequence[ConsentRecord], links: Sequence[Link]) -> int:
        """Append what is new, all or nothing and durable on return; say how many entries were new.

        A record (or link) that is equal in all fields to a stored one is not new.
        """
        ...

    def last(self, until: int | None = None) -> tuple[int, bytes]:
        """Position of the last entry, and the chain's value there; ``(0, GENESIS)`` where there is none."""
        ...

    def about(self, visitor_id: str | None, customer_id: str | None, until: int | None = None) -> Facts:
        """All that concerns a visitor and a customer, as of one moment. For None there is nothing."""
        ...

    def links_of_customer(self, customer_id: str, until: int | None = None) -> Sequence[LinkRow]:
        """All links of a customer, by position."""
        ...

    def rows_about(self, kind: SubjectKind, subject_id: str, until: int | None = None) -> list[Row]:
        """The rows of all records of a subject, by position."""
        ...

    def link_rows_about(self, kind: SubjectKind, subject_id: str, until: int | None = None) -> list[Row]:
        """The rows of all links of a subject, by position; none for what is left of erased ones."""
        ...

    def subjects(self, kind: SubjectKind, until: int | None = None) -> Iterator[str]:
        """Ids of all subjects of a kind that have records, each once."""
        ...

    def linked_devices(self, until: int | None = None) -> Iterator[str]:
        """Ids of all visitors that have links, each once."""
        ...

    def conflicts(self, until: int | None = None) -> list[str]:
        """Record ids that stand for more than one content, sorted."""
        ...

    def entries(self, after: int = 0, until: int | None = None) -> Iterator[StoredEntry]:
        """All entries after a position, in order."""
        ...

    def columns(self, table: str, until: int | None = None) -> dict[str, list[Any]]:
        """All ``records`` or ``links`` as columns of the data contract, by position; times in microseconds.

        Records have two more columns: `conflicting`, whether their id stands for more than one content, and
        `first_recorded`, the earliest `recorded_at` of any version of it. Among the links stand those that
        are left of erased ones; their `customer_id` is None.
        """
        ...

    def erase(self, entries: Sequence[int], remnants: Sequence[Remnant], erased_at: int) -> int:
        """Delete content and salt of entries, and append that this was done, in one transaction.

        Entries that are erased already are passed over, and so is what is to be left of them. Returns how
        many were erased; where none was, nothing is appended.
        """
        ...

    def load(self, entries: Iterable[StoredEntry]) -> None:
        """Take over all entries of another store as they are, into this one, which must be empty."""
        ...

    def verify(self, anchor: tuple[int, str] | None = None) -> Verification:
        """Check the chain, and that all that look-ups rest on agrees with it. Cost: two SHA-256 per entry."""
        ...

    def close(self) -> None:
        """Give back what the store holds open."""
        ...
