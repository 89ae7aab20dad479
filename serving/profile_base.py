"""What every store of profiles is: events and attributes by subject, with a limit to their age.

A store holds one source, by the ids of that source, and knows no other id. The kinds differ in where the rows
lie; what may go in, what comes out, and how old it may be, is decided here, once for all of them.
"""

from __future__ import annotations

import abc
import datetime as dt
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from consentier.consent import microseconds
from consentier.errors import DataError
from consentier.models.attribute_encoding import AttributeValue
from consentier.serving.clock import utc_now
from consentier.serving.request import Event, attributes_of

__all__ = ["READ_SECONDS", "WRITE_SECONDS", "EventRow", "ProfileStore", "StoredAttributes"]

READ_SECONDS = 0.02
"""So long an answer waits for a store before it goes without the profile."""

WRITE_SECONDS = 10.0
"""So long what changes a store waits for it."""

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_BEGINNING = -(2**62)

# What reading a row raises that no store of ours has written.
_FOREIGN = (ValueError, TypeError, OverflowError, RecursionError)


class EventRow(NamedTuple):
    """An event as it is stored; `ts` in microseconds since the Unix epoch."""

    ts: int
    item_id: str
    event_type: str | None
    quantity: float | None


class ProfileStore(Mapping[str, Sequence[Event]], abc.ABC):
    """Events by subject, oldest first; with the subjects' attributes beside them.

    Safe to use from any number of threads, and after a fork.

    Parameters
    ----------
    place
        Where the store is, in words that hold no password. Two stores of one place are one store.
    ttl
        How old events and attributes may grow. What is older is returned to nobody, from that instant on, and
        deleted later: by `expire`, or by the store itself. None: no limit.
    clock
        Says what time it is.

    Attributes
    ----------
    answers_within
        Seconds after which a look-up gives up by itself; None where the store cannot promise that. Such a
        store is asked from a thread of its own.
    attributes
        The attributes by subject.

    Raises
    ------
    ValueError
        If `ttl` is not positive.
    """

    answers_within: float | None = None

    def __init__(
        self, place: str, *, ttl: dt.timedelta | None, clock: Callable[[], dt.datetime] = utc_now
    ) -> None:
        if ttl is not None and ttl <= dt.timedelta(0):
            raise ValueError(f"profile store {place}: ttl must be positive, not {ttl}")
        self.place = place
        self._ttl = ttl
        self._clock = clock
        self.attributes: Mapping[str, Mapping[str, AttributeValue]] = StoredAttributes(self)

    # ---- Looking up --------------------------------------------------------------------------------------

    def __getitem__(self, subject: str) -> tuple[Event, ...]:
        rows = self._events(subject, self._since()) if _is_text(subject) else ()
        if not rows:
            raise KeyError(subject)
        try:
            return tuple(
                [Event(item, _time(ts), event_type, quantity) for ts, item, event_type, quantity in rows]
            )
        except _FOREIGN as error:
            raise self._foreign(error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._subjects("events", self._since()))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def export(self, subject: str) -> list[dict[str, Any]]:
        """All that is stored of a subject, as values for JSON: events, oldest first, then attributes.

        What has outlived its time and is not deleted yet is held all the same, and so stands here too.
        """
        rows = [EventRow._make(row) for row in self._events(_subject(subject), _BEGINNING)]
        known = self._attributes(subject, _BEGINNING)
        try:
            events = [{**row._asdict(), "ts": _time(row.ts).isoformat()} for row in rows]
            if known is None:
                return events
            ts, content = known
            return [*events, {"ts": _time(ts).isoformat(), "attributes": json.loads(content)}]
        except _FOREIGN as error:
            raise self._foreign(error) from error

    # ---- Changing ----------------------------------------------------------------------------------------

    def append(self, subject: str, events: Iterable[Event]) -> None:
        """Store events of one subject: all of them, or (if something is wrong) none.

        Those that have outlived the store's `ttl` already are left out.

        Raises
        ------
        TypeError, ValueError
            If an event is none, has no time (retention goes by it), or holds what no store can keep.
        DataError
            If the store cannot be written.
        """
        name, since = _subject(subject), self._since()
        rows = [row for row in [_row(event) for event in events] if row.ts >= since]
        if rows:
            self._add(name, rows)

    def set_attributes(
        self, subject: str, attributes: Mapping[str, AttributeValue], *, at: dt.datetime
    ) -> None:
        """Replace the attributes of one subject by what was known of it at an instant.

        Raises
        ------
        TypeError, ValueError
            If the attributes are not what a request may bring, or `at` has no time zone.
        DataError
            If the store cannot be written.
        """
        content = json.dumps(attributes_of(attributes), sort_keys=True)
        self._replace_attributes(_subject(subject), microseconds(at), content)

    def purge(self, subject: str) -> int:
        """Delete all that is stored of a subject, attributes too; return how many rows it was.

        Raises
        ------
        DataError
            If the store cannot be written, or not everything could be deleted yet. Purge again.
        """
        return self._delete(_subject(subject))

    def expire(self, before: dt.datetime | None = None) -> int:
        """Delete what is older than an instant; return how many rows it was.

        Parameters
        ----------
        before
            The instant; by default, what has outlived the store's `ttl` goes. Attributes are as old as
            `set_attributes` said when they were last replaced.

        Raises
        ------
        ValueError
            If neither an instant nor a `ttl` says what is too old.
        DataError
            If the store cannot be written.
        """
        if before is None and self._ttl is None:
            raise ValueError(f"profile store {self.place}: it has no ttl: say expire(before=…)")
        return self._delete_before(self._since() if before is None else microseconds(before))

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what is held open. The store opens anew when it is used again."""

    def keeps(self, event: Event) -> bool:
        """Whether an event is young enough to be stored."""
        return event.ts is None or microseconds(event.ts) >= self._since()

    # ---- What each kind of store does for itself ---------------------------------------------------------

    @abc.abstractmethod
    def _events(self, subject: str, since: int) -> Sequence[tuple[int, str, str | None, float | None]]:
        """The events of a subject that are not older than an instant, oldest first, else as appended."""

    @abc.abstractmethod
    def _attributes(self, subject: str, since: int) -> tuple[int, str] | None:
        """Time and JSON of a subject's attributes, unless they are older than an instant."""

    @abc.abstractmethod
    def _subjects(self, kind: str, since: int) -> Iterable[str]:
        """Who has ``events``, or ``attributes``, that are not older than an instant."""

    @abc.abstractmethod
    def _add(self, subject: str, rows: Sequence[EventRow]) -> None:
        """Store events: all, or none."""

    @abc.abstractmethod
    def _replace_attributes(self, subject: str, ts: int, content: str) -> None:
        """Store attributes in the place of those that were there."""

    @abc.abstractmethod
    def _delete(self, subject: str) -> int:
        """Delete all of a subject; say how many rows it was."""

    @abc.abstractmethod
    def _delete_before(self, limit: int) -> int:
        """Delete what is older than an instant; say how many rows it was."""

    def _foreign(self, error: Exception) -> DataError:
        """What to raise where a row is none of ours; its content, which is about a person, is not quoted."""
        return DataError(
            f"profile store {self.place}: a row holds what Consentier did not write ({type(error).__name__})"
        )

    def _since(self) -> int:
        return _BEGINNING if self._ttl is None else microseconds(self._clock() - self._ttl)


class StoredAttributes(Mapping[str, Mapping[str, AttributeValue]]):
    """Attributes by subject, out of a store of profiles."""

    def __init__(self, store: ProfileStore) -> None:
        self.store = store
        self.answers_within = store.answers_within

    def __getitem__(self, subject: str) -> Mapping[str, AttributeValue]:
        found = self.store._attributes(subject, self.store._since()) if _is_text(subject) else None
        if found is None:
            raise KeyError(subject)
        try:
            content: Mapping[str, AttributeValue] = json.loads(found[1])
        except _FOREIGN as error:
            raise self.store._foreign(error) from error
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self.store._subjects("attributes", self.store._since()))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _is_text(subject: object) -> bool:
    """Whether something can be a stored subject's id: half a surrogate pair is no text."""
    return isinstance(subject, str) and (
        subject.isascii() or not any("\ud800" <= character <= "\udfff" for character in subject)
    )


def _subject(subject: object) -> str:
    if not isinstance(subject, str):
        raise TypeError(f"a subject's id must be a string, not {type(subject).__name__}")
    if not _is_text(subject):
        raise ValueError("a subject's id holds half a surrogate pair, which is no text")
    return subject


def _row(event: object) -> EventRow:
    if not isinstance(event, Event):
        raise TypeError(f"a profile store takes Events, not {type(event).__name__}")
    if event.ts is None:
        raise ValueError("an event without a time cannot be stored: it could never expire")
    if not _is_text(event.item_id) or not (event.event_type is None or _is_text(event.event_type)):
        raise ValueError("an event holds half a surrogate pair, which is no text")
    quantity = None if event.quantity is None else float(event.quantity)
    if quantity is not None and math.isnan(quantity):
        quantity = None  # a number that is none says nothing
    return EventRow(microseconds(event.ts), event.item_id, event.event_type, quantity)


def _time(ts: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(microseconds=ts)
