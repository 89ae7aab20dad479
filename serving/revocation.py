"""Withdrawal deadlines of bundles: the revocation list that stands beside them.

A withdrawal gives every bundle that holds the subject a deadline, in ``revocations.json`` in the directory of
the bundles. The list names bundles by digest, never a subject. The recommender looks here at load and before
each answer, so that a model that is in memory already stops like any other.

What cannot be read stops everything: a list that is malformed, out of reach, or gone after it was seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import errno
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from consentier.consent import microseconds
from consentier.errors import BundleError, BundleMalformed
from consentier.reading import read_regular
from consentier.writing import remove_remnants, whole_file, write_new

__all__ = ["PAST_DEADLINE", "Deadlines", "Revocations", "revoke"]

PAST_DEADLINE = "past its withdrawal deadline"
"""Why a bundle does not answer."""

_NAME = "revocations.json"
_FORMAT = 1
_FIELDS = ("bundle_digest", "deadline", "reason")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_BYTES = 16 << 20
_MAX_REASON = 100

_SETTLED = 2 * 10**9
"""Nanoseconds after which two versions of a file cannot have the same time of change any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Deadlines:
    """The list as it stood at one moment.

    Attributes
    ----------
    by_digest
        Deadline of each bundle that has one.
    fault
        Why the list cannot be used; empty if it can. Then every bundle counts as stopped.
    """

    by_digest: Mapping[str, dt.datetime] = dataclasses.field(default_factory=dict)
    fault: str = ""

    def problem_of(self, digest: str, at: dt.datetime) -> str:
        """Why a bundle may not answer at an instant; empty if it may."""
        if self.fault:
            return self.fault
        deadline = self.by_digest.get(digest)
        return PAST_DEADLINE if deadline is not None and deadline <= at else ""


_Stamp = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """What was read, from which version of the file; read again each time while that is not settled."""

    stamp: _Stamp | None
    settled: bool
    deadlines: Deadlines


class Revocations:
    """The revocation list of a directory of bundles, read again whenever the file changes.

    Safe to use from several threads. A look costs one ``stat`` of the file (2 µs) while nothing changes.

    Parameters
    ----------
    path
        The list itself; see `open`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _Seen(None, settled=False, deadlines=Deadlines())
        self._existed = False

    @classmethod
    def open(cls, bundles: str | Path) -> Revocations:
        """The list of a directory of bundles. A directory without a list has no deadlines, so far."""
        revocations = cls(Path(bundles) / _NAME)
        revocations.current()
        return revocations

    def current(self) -> Deadlines:
        """The deadlines as they stand now; with a fault, where they cannot be known."""
        try:
            stamp = _stamp(self._path)
        except OSError as error:
            return self._fault(f"cannot be read: {error.strerror or type(error).__name__}")
        if stamp is None:
            return self._fault("is gone") if self._existed else Deadlines()
        self._existed = True
        seen = self._seen
        if seen.stamp == stamp and seen.settled:
            return seen.deadlines
        # Judged by the clock before reading: what changes while it is read is read again.
        settled = max(stamp[:2]) + _SETTLED < time.time_ns()
        try:
            deadlines = Deadlines(MappingProxyType({key: entry.deadline for key, entry in _read(self._path)}))
        except FileNotFoundError:
            return self._fault("is gone")
        except BundleError as error:
            deadlines = Deadlines(fault=str(error))
        except OSError as error:
            return self._fault(f"cannot be read: {error.strerror or type(error).__name__}")
        self._seen = _Seen(stamp, settled, deadlines)
        return deadlines

    def deadline_of(self, digest: str) -> dt.datetime | None:
        """When a bundle stops answering; None if it has no deadline.

        Raises
        ------
        BundleError
            If the list cannot be read: what is deleted by deadlines must not be deleted for want of them.
        """
        deadlines = self.current()
        if deadlines.fault:
            raise BundleError(deadlines.fault)
        return deadlines.by_digest.get(digest)

    def stopped(self, digest: str, at: dt.datetime) -> bool:
        """Whether a bundle may not answer at an instant: past its deadline, or the list cannot be read."""
        return bool(self.current().problem_of(digest, at))

    def _fault(self, what: str) -> Deadlines:
        return Deadlines(fault=f"the revocation list {self._path.name} {what}")


def revoke(bundles: str | Path, digests: Iterable[str], deadline: dt.datetime, reason: str) -> int:
    """Give bundles a deadline, past which they stop answering.

    Parameters
    ----------
    bundles
        The directory of the bundles.
    digests
        Which of them; bundles that are not there (any more) may be named.
    deadline
        From when on. A bundle that has an earlier deadline keeps it.
    reason
        Why, in a few words that name nobody: ``withdrawal``.

    Returns
    -------
    int
        How many bundles got a deadline, or an earlier one than they had.

    Raises
    ------
    TypeError, ValueError
        If a digest is none, `deadline` has no time zone, or `reason` is empty or long.
    BundleMalformed
        If the list that is there cannot be understood. It stays as it is, and all bundles stopped.
    OSError
        If the list cannot be written; the old one stays.

    Notes
    -----
    The list is on disk when this returns. It is written beside its place and renamed, under a lock on the
    directory, so that several writers lose nothing of each other's.
    """
    microseconds(deadline)
    moment = deadline.astimezone(dt.UTC)
    if not 0 < len(reason) <= _MAX_REASON or not reason.isprintable():
        raise ValueError(f"reason must be a text of 1 to {_MAX_REASON} printable characters")
    wanted = sorted(set(digests))
    for digest in wanted:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is no bundle digest (sha256: and 64 hexadecimal digits)")
    if not wanted:
        return 0
    path = Path(bundles) / _NAME
    with _locked(path.parent):
        entries = dict(_read(path)) if path.exists() else {}
        earlier = [digest for digest in wanted if digest not in entries or moment < entries[digest].deadline]
        if earlier:
            entries.update((digest, _Entry(moment, reason)) for digest in earlier)
            _write(path, entries)
        else:
            remove_remnants(path)
    return len(earlier)


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    deadline: dt.datetime
    reason: str


def _stamp(path: Path) -> _Stamp | None:
    """What tells one version of a file from another; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - each answer pays for it, and Path.stat takes twice as long
    except FileNotFoundError:
        return None
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)


def _read(path: Path) -> list[tuple[str, _Entry]]:
    """All entries of the list.

    Raises
    ------
    BundleMalformed
        If it is not exactly what `revoke` writes. A list that is half understood might miss a deadline.
    """
    try:
        payload = read_regular(path, _MAX_BYTES)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise _malformed("is longer than any list of bundles") from error
    try:
        document = json.loads(payload.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _malformed("is no JSON in UTF-8") from error
    if not isinstance(document, dict) or set(document) != {"format", "revocations"}:
        raise _malformed("must hold format and revocations, and nothing else")
    if document["format"] != _FORMAT or isinstance(document["format"], bool):
        raise _malformed(f"has another format than {_FORMAT}, the one that this release reads")
    if not isinstance(document["revocations"], list):
        raise _malformed("must hold a list of revocations")
    entries = [_entry(number, value) for number, value in enumerate(document["revocations"])]
    if len({digest for digest, _ in entries}) != len(entries):
        raise _malformed("names a bundle twice")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _entry(number: int, value: object) -> tuple[str, _Entry]:
    if not isinstance(value, dict) or set(value) != set(_FIELDS):
        raise _malformed(f"revocation {number} must hold exactly {', '.join(_FIELDS)}")
    digest, text, reason = (value[name] for name in _FIELDS)
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _malformed(f"revocation {number} names no bundle digest")
    if not isinstance(reason, str):
        raise _malformed(f"revocation {number} has a reason that is no text")
    try:
        deadline = dt.datetime.fromisoformat(text)
        microseconds(deadline)
        return digest, _Entry(deadline.astimezone(dt.UTC), reason)
    except (TypeError, ValueError, OverflowError) as error:
        raise _malformed(f"revocation {number} has no deadline with a time zone") from error


def _malformed(what: str) -> BundleMalformed:
    return BundleMalformed(
        f"the revocation list {_NAME} {what}: no bundle beside it answers until it is restored"
    )


def _write(path: Path, entries: Mapping[str, _Entry]) -> None:
    document = {
        "format": _FORMAT,
        "revocations": [
            {
                "bundle_digest": digest,
                "deadline": entries[digest].deadline.isoformat(),
                "reason": entries[digest].reason,
            }
            for digest in sorted(entries)
        ],
    }
    with whole_file(path) as beside:
        write_new(beside, (json.dumps(document, indent=2) + "\n").encode("utf-8"))


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One writer at a time, also across processes; the lock ends with the process that holds it."""
    import fcntl  # here, for only writers need it: answering works where there is none

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
