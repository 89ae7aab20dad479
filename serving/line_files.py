"""Files of JSON lines that are kept for some days: what the audit log and the log of outcomes share.

The name of a file says from which day on it may be deleted, so that whole files are.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from consentier.errors import AuditError

__all__ = ["expire_segments", "line_of", "retention_of", "segments_of"]

_T = TypeVar("_T")

_READ_AT_ONCE = 1 << 20


def retention_of(days: int) -> dt.timedelta:
    """How long a line is kept: so many days, to the end of the last one.

    Raises
    ------
    TypeError, ValueError
        If it is not a whole number of at least 1.
    """
    if isinstance(days, bool) or not isinstance(days, int):
        raise TypeError(f"retention_days must be a whole number, not {type(days).__name__}")
    if days < 1:
        raise ValueError(f"retention_days must be at least 1, not {days}")
    return dt.timedelta(days=days + 1)


def segments_of(path: Path, name: re.Pattern[str]) -> dict[Path, dt.datetime]:
    """The files of a directory, with the instant from which on each may be deleted.

    Parameters
    ----------
    path
        The directory.
    name
        Matches the names of its files; its first group is the day, ISO 8601.
    """
    return {
        file: dt.datetime.combine(day, dt.time(), dt.UTC)
        for file in path.iterdir()
        if (match := name.fullmatch(file.name)) and (day := _day(match[1])) is not None and file.is_file()
    }


def _day(text: str) -> dt.date | None:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:  # such as the 30th of February: the name of no file of ours
        return None


def expire_segments(path: str | Path, name: re.Pattern[str], before: dt.datetime, what: str) -> int:
    """Delete the files of a directory whose lines are past their retention; say how many lines.

    Reads what it deletes, to count it, a megabyte at a time.

    Raises
    ------
    AuditError
        If there is no such directory.
    """
    path = Path(path)
    if not path.is_dir():
        raise AuditError(f"{what} {path}: there is no such directory")
    over = 0
    for segment, until in segments_of(path, name).items():
        if until <= before:
            with contextlib.suppress(FileNotFoundError):  # somebody else deletes them, too
                lines = _lines_in(segment)
                segment.unlink()
                over += lines
    return over


def _lines_in(file: Path) -> int:
    with file.open("rb") as opened:
        return sum(part.count(b"\n") for part in iter(functools.partial(opened.read, _READ_AT_ONCE), b""))


def line_of(
    text: str | bytes, version: int, made: Callable[[dict[str, Any]], _T], where: str, what: str
) -> _T:
    """Read one line.

    Parameters
    ----------
    text
        The line.
    version
        The one format that is read.
    made
        Checks the other fields and makes something of them; raises `ValueError` or `TypeError`.
    where, what
        For messages: where the line stands, and what it should be.

    Raises
    ------
    AuditError
        If it is none, or of another format.
    """
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise TypeError("it is no JSON object")
        if fields.pop("format", None) != version:
            raise ValueError(f"its format is not {version}, the one that this release reads")
        return made(fields)
    except (ValueError, TypeError, RecursionError) as error:
        reason = "it is no JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else error
        raise AuditError(f"{where}: cannot be read as {what}: {reason}") from error
