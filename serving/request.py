"""What a shop asks: one validated, immutable request."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Literal, cast

from consentier.consent import Channel, Permission, microseconds
from consentier.models.attribute_encoding import AttributeValue
from consentier.serving.item_columns import Expression

__all__ = [
    "MAX_ATTRIBUTES",
    "MAX_EVENTS",
    "MAX_FILTER_IDS",
    "MAX_ID_CHARACTERS",
    "MAX_N",
    "MAX_TEXT_CHARACTERS",
    "ChannelName",
    "Event",
    "Item",
    "Request",
    "attributes_of",
    "events_from_json",
    "events_of",
]

# What may come from outside is bounded here, before anything is computed with it.

MAX_N = 1000
"""Items that a request may ask for."""

MAX_EVENTS = 100_000
"""Events of one history of a request, its session too."""

MAX_FILTER_IDS = 1_000_000
"""Ids in `exclude`, and in `allow`."""

MAX_ID_CHARACTERS = 1024
"""Characters of an id, an event type or a placement: the id of an item has at most so many bytes."""

MAX_ATTRIBUTES = 1000
"""Attributes of one customer."""

MAX_TEXT_CHARACTERS = 10_000
"""Characters of an attribute's name or text."""


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened with one item.

    Attributes
    ----------
    item_id
        The shop's id of the item.
    ts
        When; None where the shop does not say. Times put the histories of several devices into one order.
    event_type
        ``view``, ``cart``, ``order``, … ; None counts as the source's ordinary event.
    quantity
        How many, for orders.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, a time without a zone, a text longer than `MAX_ID_CHARACTERS`, or a quantity that
        no 64-bit float holds.
    """

    item_id: str
    ts: dt.datetime | None = None
    event_type: str | None = None
    quantity: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.item_id, str):
            raise TypeError(f"Event: item_id must be a string, not {type(self.item_id).__name__}")
        _check_length(self.item_id, "Event: item_id")
        if self.ts is not None:
            microseconds(self.ts)
        if self.event_type is not None:
            if not isinstance(self.event_type, str):
                raise TypeError(f"Event: event_type must be a string, not {type(self.event_type).__name__}")
            _check_length(self.event_type, "Event: event_type")
        if self.quantity is not None:
            if not _is_number(self.quantity):
                raise TypeError(f"Event: quantity must be a number, not {type(self.quantity).__name__}")
            if not _is_representable(self.quantity):
                raise ValueError("Event: quantity is beyond what a 64-bit float holds")


Item = str | Event

ChannelName = Literal["shop", "app", "ads", "email", "print", "call_center", "push"]
"""What a `Channel` may be written as."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One question to the recommender. All data about the person are used only as far as permitted.

    Attributes
    ----------
    session
        Items of the running session, oldest first. Any tier on the online side may read them.
    permission
        What the customer permitted. None: ask the ledger; without a ledger that means NONE. With a ledger,
        what counts is the intersection.
    linked
        The shop vouches that visitor and customer are one person in this session (a login). A ledger must
        agree.
    channel
        Where the answer goes: a `Channel`, or its name. The request holds the former.
    customer_id, visitor_id
        Whom the ledger and the profile stores are asked about.
    online_history, crm_history
        What the shop holds, oldest first. None: ask the profile store, if there is one.
    attributes
        Master data (CRM data).
    placement
        Where on the page the answer is shown. On ``product`` the last item of the session is the one that the
        customer is looking at, and no tier on the online side recommends it.
    at
        The instant of the request, kept in UTC; now by default. One that is past counts as now, by the clock
        of the recommender: what was withdrawn since is not read because a request came late. To look at data
        of the past, set that clock back (``Recommender.load(…, clock=…)``).
    n
        How many items.
    exclude, allow
        Items never to show; the only items to show (None: no such limit).
    where
        A filter over the items' attributes, ``category == "shoes" and price < 100``, say: see
        `serving.item_columns`.
    explain
        Whether the answer shall say why each item is in it.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, or more of something than the limits of this module allow; whether or not the
        permission would let it be read.

    Notes
    -----
    Linear in what is handed over, at most up to the limits: what is beyond them is not read.
    """

    session: Iterable[Item] = ()
    permission: Permission | None = None
    linked: bool = False
    channel: Channel | ChannelName = Channel.SHOP
    customer_id: str | None = None
    visitor_id: str | None = None
    online_history: Iterable[Item] | None = None
    crm_history: Iterable[Item] | None = None
    attributes: Mapping[str, AttributeValue] | None = None
    placement: str | None = None
    at: dt.datetime | None = None
    n: int = 10
    exclude: Iterable[str] = ()
    allow: Iterable[str] | None = None
    where: str | Expression | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "session", events_of(self.session, "session", most=MAX_EVENTS))
        for name in ("online_history", "crm_history"):
            value = getattr(self, name)
            set_field(self, name, None if value is None else events_of(value, name, most=MAX_EVENTS))
        if self.permission is not None and not isinstance(self.permission, Permission):
            raise TypeError(
                f"Request: permission must be a consentier.Permission or None, not {self.permission!r}"
            )
        for name in ("linked", "explain"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"Request: {name} must be True or False, not {getattr(self, name)!r}")
        set_field(self, "channel", _channel(self.channel))
        for name in ("customer_id", "visitor_id", "placement"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"Request: {name} must be a string or None, not {type(value).__name__}")
            _check_length(value or "", f"Request: {name}")
        if self.attributes is not None:
            set_field(self, "attributes", attributes_of(self.attributes))
        if self.at is not None:
            set_field(self, "at", _in_utc(self.at))
        if self.where is not None and not isinstance(self.where, Expression):
            set_field(self, "where", Expression(self.where))
        if isinstance(self.n, bool) or not isinstance(self.n, int):
            raise TypeError(f"Request: n must be a whole number, not {type(self.n).__name__}")
        if self.n < 1:
            raise ValueError(f"Request: n must be at least 1, not {self.n}")
        if self.n > MAX_N:
            raise ValueError(f"Request: n is more than {MAX_N}, the most items that one answer may have")
        set_field(self, "exclude", _ids(self.exclude, "exclude"))
        if self.allow is not None:
            set_field(self, "allow", _ids(self.allow, "allow"))


def _in_utc(at: dt.datetime) -> dt.datetime:
    microseconds(at)
    try:
        return at.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError(f"Request: at is {at.isoformat()}, which no calendar holds in UTC") from None


def events_of(value: Iterable[Item], name: str, *, most: int | None = None) -> tuple[Event, ...]:
    """Check a history and turn its items into events.

    Raises
    ------
    TypeError, ValueError
        If it is no sequence of item ids or events, or holds more than `most`.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(
            f"Request: {name} must be a sequence of item ids or Events, not {type(value).__name__}"
        )
    events = (item if isinstance(item, Event) else _event(item, name) for item in value)
    if most is None:
        return tuple(events)
    found = tuple(itertools.islice(events, most + 1))
    if len(found) > most:
        raise ValueError(f"Request: {name} holds more than {most} events; hand over the latest ones")
    return found


def _event(item: object, name: str) -> Event:
    if not isinstance(item, str):
        raise TypeError(f"Request: {name} holds {type(item).__name__}; items are strings or Events")
    return Event(item)


def events_from_json(name: str, value: object) -> tuple[Event, ...]:
    """Read a history that came as JSON: a list of item ids, or of objects with the fields of an event.

    Raises
    ------
    TypeError, ValueError
        If it is something else, or a time is none in ISO 8601 with its zone.
    """
    if not isinstance(value, list):
        raise TypeError(f"{name} must be a list")
    return tuple(_event_from_json(name, each) for each in value)


def _event_from_json(name: str, value: object) -> Event:
    if isinstance(value, str):
        return Event(value)
    if not isinstance(value, dict) or not {"item_id"} <= set(value) <= _EVENT_FIELDS:
        raise TypeError(f"{name} holds what is neither an item id nor an event")
    moment = value.get("ts")
    return Event(**{**value, "ts": None if moment is None else dt.datetime.fromisoformat(moment)})


_EVENT_FIELDS = frozenset(field.name for field in dataclasses.fields(Event))


def _ids(value: Iterable[str], name: str) -> frozenset[str]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"Request: {name} must be a collection of item ids, not {type(value).__name__}")
    ids = list(itertools.islice(value, MAX_FILTER_IDS + 1))
    if len(ids) > MAX_FILTER_IDS:
        raise ValueError(f"Request: {name} holds more than {MAX_FILTER_IDS} ids; use where, or the catalogue")
    for item in ids:
        if not isinstance(item, str):
            raise TypeError(f"Request: {name} holds {type(item).__name__}; item ids are strings")
        _check_length(item, f"Request: {name}: an id")
    return frozenset(ids)


def _channel(value: object) -> Channel:
    if isinstance(value, Channel):
        return value
    if isinstance(value, str):
        try:
            return Channel(value)
        except ValueError:
            raise ValueError(
                f"Request: there is no channel {value!r}; channels are {', '.join(Channel)}"
            ) from None
    raise TypeError(f"Request: channel must be a consentier.Channel, not {type(value).__name__}")


def attributes_of(value: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """Check and copy attributes.

    Raises
    ------
    TypeError, ValueError
        If they are no mapping of names to texts, numbers, truth values and None, or more or longer than the
        limits of this module allow.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"Request: attributes must be a mapping, not {type(value).__name__}")
    if len(value) > MAX_ATTRIBUTES:
        raise ValueError(f"Request: there are {len(value)} attributes; at most {MAX_ATTRIBUTES} are read")
    for name, content in value.items():
        if not isinstance(name, str):
            raise TypeError("Request: attributes must have strings as names")
        _check_length(name, "Request: the name of an attribute", MAX_TEXT_CHARACTERS)
        if isinstance(content, str):
            _check_length(content, "Request: the text of an attribute", MAX_TEXT_CHARACTERS)
        if content is not None and not isinstance(content, str | bool) and not _is_number(content):
            raise TypeError(
                f"Request: attribute {name!r} must be text, a number, a truth value or None, "
                f"not {type(content).__name__}"
            )
    # A number that is none says nothing about the customer: it is read as missing.
    return {
        name: None if _is_number(content) and not _is_finite(content) else content
        for name, content in value.items()
    }


def _check_length(text: str, what: str, most: int = MAX_ID_CHARACTERS) -> None:
    if len(text) > most:
        raise ValueError(f"{what} has {len(text)} characters; at most {most} are allowed")


def _is_representable(number: object) -> bool:
    """Whether a number is a float, or a whole one that can be: Python's own have no limit."""
    return isinstance(number, float) or abs(cast("int", number)) <= sys.float_info.max


def _is_finite(number: object) -> bool:
    return _is_representable(number) and math.isfinite(cast("float", number))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
