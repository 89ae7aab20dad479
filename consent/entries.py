"""What a ledger holds: consent records, links, and what is left behind when some of them are erased.

Each entry has one form as a row, in which all stores keep it: its fields in order, times in microseconds
since the Unix epoch.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from consentier.consent.records import ConsentRecord, Link, microseconds
from consentier.errors import LedgerError

__all__ = [
    "ENTRY_COLUMNS",
    "LINK_COLUMNS",
    "RECORD_COLUMNS",
    "Entry",
    "ErasedLogin",
    "ErasedVersion",
    "Erasure",
    "Remnant",
    "Row",
    "StoredEntry",
    "columns_of",
    "datetime_of",
    "link_of",
    "record_of",
    "row_of",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Erasure:
    """Says which entries were erased, and when. It holds nothing about a person.

    Attributes
    ----------
    positions
        The erased entries, ascending.
    erased_at
        Microseconds since the Unix epoch.
    """

    positions: tuple[int, ...]
    erased_at: int


@dataclasses.dataclass(frozen=True, slots=True)
class ErasedVersion:
    """Keeps a record id contradicted after the record of one of its subjects was erased.

    Attributes
    ----------
    record_id
        The id, which another subject's record bears too.
    recorded_at
        When the erased record had been recorded, in microseconds since the Unix epoch.
    of
        The position of the erased record.
    """

    record_id: str
    recorded_at: int
    of: int


@dataclasses.dataclass(frozen=True, slots=True)
class ErasedLogin:
    """Keeps a shared device unlinkable after a customer seen on it was erased. It does not say which.

    Attributes
    ----------
    visitor_id
        The device.
    linked_at
        When the erased link had been made, in microseconds since the Unix epoch.
    of
        The position of the erased link.
    """

    visitor_id: str
    linked_at: int
    of: int


Remnant = ErasedVersion | ErasedLogin
Entry = ConsentRecord | Link | Erasure | ErasedVersion | ErasedLogin

Row = tuple[Any, ...]
"""The fields of an entry in the order of `ENTRY_COLUMNS`, times in microseconds."""

RECORD_COLUMNS = (
    "record_id",
    "subject_id",
    "subject_kind",
    "permission",
    "state",
    "valid_from",
    "valid_to",
    "recorded_at",
    "basis",
    "jurisdiction",
    "double_opt_in_at",
    "collected_by",
    "policy_version",
    "evidence",
)
"""The columns of ``consents`` in the data contract."""

LINK_COLUMNS = ("visitor_id", "customer_id", "linked_at", "evidence")
"""The columns of ``identities`` in the data contract."""

ENTRY_COLUMNS: dict[str, tuple[str, ...]] = {
    "ConsentRecord": RECORD_COLUMNS,
    "Link": LINK_COLUMNS,
    "Erasure": ("positions", "erased_at"),
    "ErasedVersion": ("record_id", "recorded_at", "of"),
    "ErasedLogin": ("visitor_id", "linked_at", "of"),
}
"""By kind of entry, the columns of its row."""

_TIMES = frozenset({"valid_from", "valid_to", "recorded_at", "double_opt_in_at", "linked_at"})

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class StoredEntry(NamedTuple):
    """One entry as it stands in the chain. `salt` and `row` are None once it is erased.

    The row is told as it was found, not checked: what reads it must expect that somebody changed it.
    """

    position: int
    kind: str
    salt: bytes | None
    commitment: bytes
    chain: bytes
    row: Row | None


def row_of(entry: Entry) -> Row:
    """The row of an entry."""
    if isinstance(entry, ConsentRecord):
        return (
            entry.record_id,
            entry.subject_id,
            entry.subject_kind,
            entry.permission,
            entry.state,
            microseconds(entry.valid_from),
            None if entry.valid_to is None else microseconds(entry.valid_to),
            microseconds(entry.recorded_at),
            entry.basis,
            entry.jurisdiction,
            None if entry.double_opt_in_at is None else microseconds(entry.double_opt_in_at),
            entry.collected_by,
            entry.policy_version,
            entry.evidence,
        )
    if isinstance(entry, Link):
        linked_at = None if entry.linked_at is None else microseconds(entry.linked_at)
        return entry.visitor_id, entry.customer_id, linked_at, entry.evidence
    return tuple(getattr(entry, name) for name in ENTRY_COLUMNS[type(entry).__name__])


def record_of(row: Row) -> ConsentRecord:
    """The consent record of a row.

    Raises
    ------
    LedgerError
        If the row is none, because somebody changed it.
    """
    return ConsentRecord(**_fields("consent record", RECORD_COLUMNS, row))


def link_of(row: Row) -> Link:
    """The link of a row.

    Raises
    ------
    LedgerError
        If the row is none, because somebody changed it.
    """
    return Link(**_fields("identity link", LINK_COLUMNS, row))


def _fields(what: str, names: Sequence[str], row: Row) -> dict[str, Any]:
    """The fields of a row by name, times as such."""
    try:
        fields = dict(zip(names, row, strict=True))
        for name in _TIMES.intersection(names):
            fields[name] = datetime_of(fields[name])
    except (TypeError, ValueError, OverflowError) as error:
        raise LedgerError(
            f"{what}: what is stored is none ({type(error).__name__}), so somebody changed it: "
            "verify the ledger"
        ) from error
    return fields


def datetime_of(instant: int | None) -> dt.datetime | None:
    """The time, in UTC, of microseconds since the Unix epoch."""
    return None if instant is None else _EPOCH + dt.timedelta(microseconds=instant)


def columns_of(names: Sequence[str], rows: Iterable[Row]) -> dict[str, list[Any]]:
    """Rows turned into columns; each name has one, if there are no rows too."""
    columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    return dict(zip(names, columns, strict=True))
