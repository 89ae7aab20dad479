"""What readers of JSON signals share: how a field is read, and how a shop's own ids map to permissions.

Consent platforms leave it to the shop what their categories, purposes and services are called. Which of them
a permission needs is therefore a setting, and without it nothing is granted.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from consentier.consent.signals.reading import Decision
from consentier.errors import SignalError, suggestion

__all__ = [
    "among",
    "answers",
    "instant",
    "instant_of_milliseconds",
    "listed",
    "member",
    "names",
    "needed",
    "objects",
    "refusals",
    "require_delay",
]

_LONGEST_INSTANT = 64
_EARLIEST_MILLISECONDS = 946_684_800_000  # the year 2000: smaller numbers are seconds, or no times at all
_LATEST_MILLISECONDS = 253_402_300_799_999  # the end of the year 9999, where datetime ends


# Fields of a payload


def member(value: Any, *path: str) -> Any:
    """The value at a path of nested objects; None where it is missing or null.

    Raises
    ------
    SignalError
        If what should be an object is none.
    """
    walked = "the payload"
    for name in path:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise SignalError(f"{walked} is no object")
        value, walked = value.get(name), name
    return value


def listed(value: Any, name: str) -> list[Any]:
    """A list as it is; an empty one where it is missing. Raises `SignalError` if it is none."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise SignalError(f"{name} is no list")
    return value


def objects(value: Any, name: str) -> list[dict[str, Any]]:
    """A list of objects. Raises `SignalError` if it is none, or holds anything else."""
    found = listed(value, name)
    if not all(isinstance(item, dict) for item in found):
        raise SignalError(f"{name} holds what is no object")
    return found


def among(value: Any, accepted: Collection[str]) -> bool:
    """Whether a value of any type is one of some texts."""
    return isinstance(value, str) and value in accepted


def instant(value: Any, name: str) -> dt.datetime | None:
    """An instant in ISO 8601, with its offset; None where it is missing.

    Raises
    ------
    SignalError
        If it is no such text. A time without an offset would mean another instant on another machine, and a
        date alone could be any instant of its day.
    """
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _LONGEST_INSTANT:
        raise SignalError(f"{name} is no time")
    try:
        parsed = dt.datetime.fromisoformat(value)
        if parsed.utcoffset() is None:
            raise SignalError(f"{name} is no time with an offset from UTC")
        return parsed.astimezone(dt.UTC)
    except (ValueError, OverflowError) as error:
        raise SignalError(f"{name} is no time") from error


def instant_of_milliseconds(value: Any, name: str) -> dt.datetime:
    """An instant as milliseconds since the Unix epoch. Raises `SignalError` if it is missing or none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SignalError(f"{name} is no number of milliseconds")
    if not _EARLIEST_MILLISECONDS <= value <= _LATEST_MILLISECONDS:
        raise SignalError(f"{name} is out of range for milliseconds since 1970")
    return dt.datetime.fromtimestamp(value // 1000, dt.UTC).replace(microsecond=value % 1000 * 1000)


# What fields amount to


def answers(permission: str, unmet: Collection[str], *, at: dt.datetime | None = None) -> list[Decision]:
    """Grant a permission of which nothing is unmet; refuse it otherwise, naming what is.

    Parameters
    ----------
    permission
        What is asked.
    unmet
        What it needs and the signal does not grant, in words.
    at
        The instant that the signal states, if it states one.
    """
    if unmet:
        return refusals(permission, "; ".join(unmet), at=at)
    return [Decision(permission=permission, state="granted", at=at)]


def refusals(
    permission: str,
    reason: str,
    *,
    at: dt.datetime | None = None,
    again_at: dt.datetime | None = None,
    state: str = "denied",
) -> list[Decision]:
    """Refuse a permission from the instant that the signal states, and again from its receipt.

    A grant takes effect when it was received. A refusal given after it may state an instant before that,
    because the grant was long on its way or the sender's clock is slow: dated there alone, it would lose
    against that grant.

    Parameters
    ----------
    permission, reason, state
        What is refused, why, and how.
    at
        The instant that the signal states, if it states one.
    again_at
        When it is refused again: not before any instant to which the grant may have been dated that the
        signal takes back. None: at its receipt. Named only where grants are dated to stated instants too.
    """
    again = Decision(permission=permission, state=state, reason=reason, at=again_at)
    if at is None or at == again_at:
        return [again]
    return [Decision(permission=permission, state=state, reason=reason, at=at), again]


# Settings


def needed(mapping: object, decidable: Iterable[str], setting: str) -> Mapping[str, frozenset[str]]:
    """A checked mapping from permissions to the ids that each needs, all of them.

    Raises
    ------
    TypeError, ValueError
        If a permission is none that signals of the kind can decide, or needs nothing.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{setting} must map permissions to ids, not be a {type(mapping).__name__}")
    known = sorted(decidable)
    checked: dict[str, frozenset[str]] = {}
    for permission, ids in mapping.items():
        if permission not in known:
            near = suggestion(str(permission), known)
            raise ValueError(f"{setting}: signals of this kind do not decide {permission!r}{near}")
        checked[permission] = names(ids, f"{setting}[{permission!r}]")
        if not checked[permission]:
            raise ValueError(
                f"{setting}[{permission!r}] is empty: a permission that needs nothing is no consent"
            )
    return MappingProxyType(checked)


def names(ids: object, setting: str) -> frozenset[str]:
    """A checked set of ids. Raises TypeError or ValueError if it is none."""
    if isinstance(ids, str) or not isinstance(ids, Collection):
        raise TypeError(f"{setting} must be a collection of ids, not {ids!r}")
    for name in ids:
        if not isinstance(name, str):
            raise TypeError(f"{setting} must hold strings, not {name!r}")
        if not name:
            raise ValueError(f"{setting} holds an empty id")
    return frozenset(ids)


def require_delay(delay: object) -> None:
    """Raise TypeError or ValueError if a setting is no length of time."""
    if not isinstance(delay, dt.timedelta):
        raise TypeError(f"longest_delay must be a timedelta, not {type(delay).__name__}")
    if delay < dt.timedelta(0):
        raise ValueError(f"longest_delay must not be negative, but is {delay}")
