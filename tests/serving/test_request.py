"""Requests: what is taken, what is refused, and that a request does not change afterwards."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from typing import Any

import pytest

from consentier.consent import Channel, Permission
from consentier.serving import Event, Request

AT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def test_items_become_events_and_iterables_are_read_once() -> None:
    items: list[str | Event] = ["a", Event("b", event_type="cart")]
    request = Request(session=iter(items), exclude=["a", "a"])
    assert request.session == (Event("a"), Event("b", event_type="cart"))
    assert request.exclude == {"a"}
    assert request.online_history is None
    assert Request(online_history=[]).online_history == ()


def test_a_channel_may_be_named_by_its_text() -> None:
    assert Request(channel="email").channel is Channel.EMAIL  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no channel 'fax'; channels are shop, .*push"):
        Request(channel="fax")  # type: ignore[arg-type]


def test_changing_what_was_handed_over_changes_no_request() -> None:
    attributes: dict[str, Any] = {"age": 4}
    session = ["a"]
    request = Request(session=session, attributes=attributes)
    attributes["age"] = 5
    session.append("b")
    assert request.attributes == {"age": 4}
    assert request.session == (Event("a"),)
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.n = 3  # type: ignore[misc]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_reads_as_missing(number: float) -> None:
    assert Request(attributes={"age": number}).attributes == {"age": None}


def test_the_instant_is_kept_in_utc() -> None:
    request = Request(at=AT.astimezone(dt.timezone(dt.timedelta(hours=5))))
    assert request.at == AT
    assert request.at is not None
    assert request.at.utcoffset() == dt.timedelta(0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"session": "item"}, "session must be a sequence of item ids or Events, not str"),
        ({"session": {"item": 1}}, "session must be a sequence"),
        ({"session": 3}, "session must be a sequence"),
        ({"session": ["a", None]}, "session holds NoneType"),
        ({"online_history": b"item"}, "online_history must be a sequence"),
        ({"crm_history": [("a", AT)]}, "crm_history holds tuple"),
        ({"permission": 3}, "permission must be a consentier.Permission"),
        ({"permission": "online"}, "permission must be a consentier.Permission"),
        ({"linked": 1}, "linked must be True or False"),
        ({"linked": "no"}, "linked must be True or False"),
        ({"channel": None}, "channel must be a consentier.Channel"),
        ({"customer_id": 17}, "customer_id must be a string or None"),
        ({"visitor_id": b"v"}, "visitor_id must be a string or None"),
        ({"placement": 1}, "placement must be a string or None"),
        ({"attributes": [("age", 4)]}, "attributes must be a mapping"),
        ({"attributes": {1: "x"}}, "attributes must have strings as names"),
        ({"attributes": {"tags": ["x"]}}, "attribute 'tags' must be text, a number"),
        ({"at": "2026-03-01"}, "expected a datetime"),
        ({"at": dt.date(2026, 3, 1)}, "expected a datetime"),
        ({"n": 2.0}, "n must be a whole number"),
        ({"n": True}, "n must be a whole number"),
        ({"exclude": "item"}, "exclude must be a collection"),
        ({"exclude": [1]}, "exclude holds int"),
        ({"allow": {"a": 1}}, "allow must be a collection"),
        ({"allow": 7}, "allow must be a collection"),
    ],
)
@pytest.mark.parametrize("permission", [Permission.NONE, Permission.ONLINE | Permission.CRM])
def test_a_wrong_type_is_refused_whatever_is_permitted(
    wrong: dict[str, Any], message: str, permission: Permission
) -> None:
    with pytest.raises(TypeError, match=message):
        Request(**{"permission": permission, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n must be at least 1, not 0"),
        ({"n": -4}, "n must be at least 1"),
        ({"at": dt.datetime(2026, 3, 1)}, "no time zone"),
        (
            {"at": dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-5)))},
            "no calendar holds in UTC",
        ),
    ],
)
def test_a_wrong_value_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Request(**wrong)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"item_id": 4}, TypeError),
        ({"item_id": "a", "ts": "now"}, TypeError),
        ({"item_id": "a", "ts": dt.datetime(2026, 3, 1)}, ValueError),
        ({"item_id": "a", "event_type": 1}, TypeError),
        ({"item_id": "a", "quantity": "2"}, TypeError),
        ({"item_id": "a", "quantity": True}, TypeError),
    ],
)
def test_wrong_events_are_refused(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Event(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 10**9}, "n is more than 1000"),
        ({"n": 10**5000}, "n is more than 1000"),
        ({"session": itertools.repeat("a")}, "session holds more than 100000 events"),
        ({"online_history": itertools.repeat(Event("a"))}, "online_history holds more than 100000 events"),
        ({"crm_history": itertools.repeat("a")}, "crm_history holds more than 100000 events"),
        ({"exclude": map(str, itertools.count())}, "exclude holds more than 1000000 ids"),
        ({"allow": map(str, itertools.count())}, "allow holds more than 1000000 ids"),
        ({"session": ["x" * 1_000_000]}, "item_id has 1000000 characters; at most 1024"),
        ({"exclude": ["x" * 1025]}, "exclude: an id has 1025 characters"),
        ({"visitor_id": "x" * 1025}, "visitor_id has 1025 characters"),
        ({"customer_id": "x" * 1025}, "customer_id has 1025 characters"),
        ({"placement": "x" * 1025}, "placement has 1025 characters"),
        ({"attributes": dict.fromkeys(map(str, range(1001)))}, "1001 attributes; at most 1000"),
        ({"attributes": {"x" * 10_001: 1}}, "the name of an attribute has 10001 characters"),
        ({"attributes": {"a": "x" * 10_001}}, "the text of an attribute has 10001 characters"),
    ],
)
@pytest.mark.parametrize("permission", [Permission.NONE, Permission.ONLINE | Permission.CRM])
def test_more_than_the_limits_allow_is_refused_without_being_read_to_its_end(
    wrong: dict[str, Any], message: str, permission: Permission
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Request(**{"permission": permission, **wrong})
    assert len(str(caught.value)) < 200


def test_as_much_as_the_limits_allow_is_taken() -> None:
    ids = [f"{number:01024}" for number in range(10)]
    request = Request(
        session=["a"] * 100_000, exclude=ids, visitor_id=ids[0], n=1000,
        attributes={"x" * 10_000: "y" * 10_000},
    )  # fmt: skip
    assert len(request.session) == 100_000  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [10**400, -(10**5000)], ids=["positive", "negative"])
def test_a_whole_number_that_no_float_holds_is_no_attribute_and_no_quantity(number: int) -> None:
    assert Request(attributes={"age": number}).attributes == {"age": None}
    assert Request(attributes={"age": 2**1023}).attributes == {"age": 2**1023}
    with pytest.raises(ValueError, match="quantity is beyond what a 64-bit float holds"):
        Event("a", quantity=number)


@pytest.mark.parametrize("text", ["event_type", "item_id"])
def test_an_event_has_short_texts(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text} has 1025 characters; at most 1024 are allowed"):
        Event(**{"item_id": "a", text: "x" * 1025})
