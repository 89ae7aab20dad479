"""Tamper evidence that survives erasure: a hash chain over salted commitments.

Each entry of a ledger is represented in the chain by a commitment, SHA-256 over a random salt and the entry's
canonical form. Each link of the chain is SHA-256 over the link before, the position and the commitment. An
entry is erased by deleting its row *and* its salt: what stays tells nothing about anybody (a guess at the
content cannot be tried without the salt), and the chain still holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable

from consentier.consent.entries import ENTRY_COLUMNS, Entry, Row, StoredEntry, row_of
from consentier.consent.store import Verification

__all__ = [
    "GENESIS",
    "SALT_BYTES",
    "canonical",
    "canonical_row",
    "chained",
    "commitment",
    "head_bytes",
    "head_text",
    "new_salt",
    "stored",
    "verify_chain",
]

GENESIS = bytes(32)
"""What stands before the first entry."""

SALT_BYTES = 32

_COMMITMENT = b"consentier ledger commitment 1\0"
_CHAIN = b"consentier ledger chain 1\0"
_HEAD = "sha256:"
_HEAD_TEXT = re.compile(_HEAD + r"[0-9A-Fa-f]{64}")

_encode = json.JSONEncoder(ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode


def canonical(entry: Entry) -> bytes:
    """The one form of an entry that is committed to: JSON with sorted keys, times in microseconds."""
    return canonical_row(type(entry).__name__, row_of(entry))


def canonical_row(kind: str, row: Row) -> bytes:
    """The canonical form of an entry whose row is known.

    Raises
    ------
    ValueError
        If `kind` is no kind of entry, or the row has another number of fields.
    TypeError
        If a field is of no type that an entry has.
    """
    if kind not in ENTRY_COLUMNS:
        raise ValueError(f"there is no kind of entry {kind!r}")
    fields = dict(zip(ENTRY_COLUMNS[kind], row, strict=True))
    return _encode({"kind": kind, **fields}).encode("ascii")


def new_salt() -> bytes:
    """Draw a salt from the operating system's random source."""
    return os.urandom(SALT_BYTES)  # `secrets` would do the same, after importing `random`


def commitment(salt: bytes, content: bytes) -> bytes:
    """What the chain holds of an entry, 32 bytes. Without the salt it tells nothing of the entry."""
    return hashlib.sha256(_COMMITMENT + salt + content).digest()


def chained(previous: bytes, position: int, committed: bytes) -> bytes:
    """The chain's next link, 32 bytes."""
    return hashlib.sha256(_CHAIN + previous + position.to_bytes(8, "big") + committed).digest()


def stored(previous: bytes, position: int, kind: str, row: Row) -> StoredEntry:
    """An entry with a fresh salt, as it is to stand in the chain after `previous`."""
    salt = new_salt()
    committed = commitment(salt, canonical_row(kind, row))
    return StoredEntry(position, kind, salt, committed, chained(previous, position, committed), row)


def head_text(head: bytes) -> str:
    """A link of the chain, or a commitment, as text."""
    return _HEAD + head.hex()


def head_bytes(text: str) -> bytes:
    """The link of the chain, or the commitment, that was noted as text.

    Raises
    ------
    ValueError
        If the text is none.
    """
    if not _HEAD_TEXT.fullmatch(text):
        raise ValueError(f"expected 'sha256:' and 64 hexadecimal digits, not {text!r}")
    return bytes.fromhex(text.removeprefix(_HEAD))


def verify_chain(entries: Iterable[StoredEntry], anchor: tuple[int, str] | None = None) -> Verification:
    """Walk along a chain and find the first entry that is not what it was.

    Parameters
    ----------
    entries
        All entries, by position.
    anchor
        A position and the chain's value there, noted earlier and elsewhere. Without one, entries that were
        cut off at the end are not missed, nor is a chain that was computed anew from some entry on.

    Raises
    ------
    ValueError
        If the anchor's value is none.

    Notes
    -----
    Two SHA-256 per entry; memory for the positions of erased entries.
    """
    walk = _Walk(anchor)
    for entry in entries:
        walk.pass_by(entry)
    return walk.result()


class _Walk:
    """The state of a walk along a chain."""

    def __init__(self, anchor: tuple[int, str] | None) -> None:
        self._anchor = None if anchor is None else (anchor[0], head_bytes(anchor[1]))
        if self._anchor == (0, GENESIS):
            self._anchor = None
        self._position = 0
        self._head = GENESIS
        self._entries = 0
        self._missing: set[int] = set()
        self._erased: dict[int, int] = {}
        self._problems: dict[int, str] = {}

    def pass_by(self, entry: StoredEntry) -> None:
        """Compare the next entry with the chain."""
        expected = self._position + 1
        if not _is_entry(entry):
            self._fault(expected, "was altered: it is no entry")
            return
        if entry.position != expected:
            self._fault(expected, "is missing")
        elif chained(self._head, entry.position, entry.commitment) != entry.chain:
            self._fault(entry.position, "does not follow from the entry before it: moved, or put in later")
        if entry.row is None and entry.salt is None and entry.kind != "Erasure":
            self._missing.add(entry.position)
        elif not _holds(entry):
            self._fault(entry.position, "was altered: it is not what was committed to")
        elif entry.kind == "Erasure" and entry.row is not None:
            self._erase(entry.position, entry.row[0])
        if self._anchor == (entry.position, entry.chain):
            self._anchor = None
        self._position, self._head = entry.position, entry.chain
        self._entries += 1

    def _erase(self, at: int, positions: object) -> None:
        if not isinstance(positions, list | tuple) or not all(isinstance(each, int) for each in positions):
            self._fault(at, "was altered: it names no positions")
            return
        for position in positions:
            if position in self._missing:
                self._erased[position] = at
            else:
                self._fault(position, f"was erased, says entry {at}, and is there again")

    def result(self) -> Verification:
        """What was found, once all entries have passed."""
        if self._anchor is not None:
            position = self._anchor[0]
            if position > self._position:
                self._fault(self._position + 1, f"is missing: the ledger once had {position} entries")
            elif not self._problems:
                self._fault(position, "is not, or what comes before it is not, what was noted of it")
        unexplained = self._missing - self._erased.keys()
        if unexplained and not self._problems:  # else the note of it may be what was altered or removed
            self._fault(min(unexplained), "was emptied, and no entry says that it was lawfully erased")
        first = min(self._problems, default=None)
        return Verification(
            ok=first is None,
            position=self._position,
            head=head_text(self._head),
            entries=self._entries,
            erased=len(self._erased),
            problem=None if first is None else f"entry {first} {self._problems[first]}",
        )

    def _fault(self, position: int, what: str) -> None:
        self._problems.setdefault(position, what)


def _is_entry(entry: StoredEntry) -> bool:
    """Whether an entry has the types of one: in a file that was written to by hand it need not."""
    values: tuple[object, ...] = (entry.commitment, entry.chain, b"" if entry.salt is None else entry.salt)
    return all(isinstance(value, bytes) for value in values)


def _holds(entry: StoredEntry) -> bool:
    """Whether an entry's content is what was committed to."""
    if entry.row is None or entry.salt is None:
        return False
    try:
        content = canonical_row(entry.kind, entry.row)
    except (ValueError, TypeError):
        return False
    return commitment(entry.salt, content) == entry.commitment
