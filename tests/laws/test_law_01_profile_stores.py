"""First law, with histories in stores: what lies in a store and may not be read changes no byte of an answer.

Neither its content, nor whether it is slow, broken or gone, nor what has outlived its time there.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from engines import ITEMS, engine
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import Channel, ConsentRecord, Ledger, Link
from consentier.serving import Event, Profiles, Request
from consentier.serving.profile_base import ProfileStore
from consentier.serving.profile_store import SqliteProfiles

AT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
LONG_AGO = AT - dt.timedelta(days=300)
TTL = dt.timedelta(days=30)
DAY = dt.timedelta(days=1)

# Which stores an answer may rest on: by what was permitted, and by the side of the shop.
READABLE = {
    (False, False, "online"): set(),
    (False, False, "crm"): set(),
    (True, False, "online"): {"online"},
    (True, False, "crm"): set(),
    (False, True, "online"): set(),
    (False, True, "crm"): {"crm"},
    (True, True, "online"): {"online", "crm"},
    (True, True, "crm"): {"online", "crm"},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A situation, and two contents of the stores."""

    online: bool
    crm: bool
    channel: Channel
    histories: tuple[tuple[Event, ...], tuple[Event, ...]]
    others: tuple[tuple[Event, ...], tuple[Event, ...]]
    attributes: tuple[dict[str, Any], dict[str, Any]]
    old: tuple[Event, ...]


_events = st.lists(
    st.builds(
        Event, st.sampled_from(ITEMS), ts=st.integers(0, 29).map(lambda day: AT - dt.timedelta(days=day))
    ),
    max_size=5,
).map(tuple)
_old = _events.map(lambda events: tuple(dataclasses.replace(each, ts=each.ts - TTL - DAY) for each in events))
_attributes = st.fixed_dictionaries(
    {}, optional={"region": st.sampled_from(("north", "east")), "age": st.integers(18, 90)}
)
cases = st.builds(
    Case,
    online=st.booleans(),
    crm=st.booleans(),
    channel=st.sampled_from((Channel.SHOP, Channel.EMAIL)),
    histories=st.tuples(_events, _events),
    others=st.tuples(_events, _events),
    attributes=st.tuples(_attributes, _attributes),
    old=_old,
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="consentier-stores-") as name:
        yield Path(name)


class Stores:
    """Two stores in files, filled anew for each case."""

    def __init__(self, folder: Path) -> None:
        self.now = AT
        self.online, self.crm = (
            SqliteProfiles(folder / name, ttl=TTL, clock=lambda: self.now) for name in ("on.db", "crm.db")
        )

    def fill(self, case: Case, *, others: frozenset[str], old: bool) -> None:
        """Fill both; those named with the other content, and with what is too old on top."""
        for place, (name, store, subject) in enumerate(
            (("online", self.online, "v"), ("crm", self.crm, "c"))
        ):
            other = name in others
            store.purge(subject)
            store.append(subject, (case.others if other else case.histories)[place])
            if old:
                self._grow_old(store, subject, case.old)
            if name == "crm":
                store.set_attributes(subject, case.attributes[other], at=AT)

    def _grow_old(self, store: SqliteProfiles, subject: str, events: tuple[Event, ...]) -> None:
        self.now, now = AT - 2 * TTL, self.now
        store.append(subject, events)
        self.now = now


@pytest.fixture(scope="module")
def stores(folder: Path) -> Stores:
    return Stores(folder)


def ledger_of(case: Case) -> Ledger:
    records = [
        ConsentRecord(kind, who, kind, what, "granted" if yes else "denied", LONG_AGO, LONG_AGO)  # type: ignore[arg-type]
        for kind, who, what, yes in (
            ("visitor", "v", "online", case.online),
            ("customer", "c", "crm", case.crm),
        )
    ]
    ledger = Ledger(records)
    ledger.append_links([Link("v", "c", LONG_AGO)])
    return ledger


def answer(case: Case, online: Any, crm: Any, attributes: Any) -> str:
    """An answer to the last byte."""
    profiles = Profiles(online, crm, attributes, deadline=30)
    asked = dataclasses.replace(engine(), profiles=profiles, ledger=ledger_of(case))
    request = Request(
        visitor_id="v", customer_id="c", linked=True, channel=case.channel, at=AT, n=5, session=ITEMS[:1]
    )
    return json.dumps(asked.recommend(request).to_dict(), sort_keys=True)


class Untouchable:
    """A store that fails whoever asks it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "answers_within":
            raise AttributeError(name)
        return self._touched

    def _touched(self, *arguments: Any) -> Any:
        raise OSError("the store was asked")


def checking(stores: Stores) -> Callable[[Case], None]:
    def check(case: Case) -> None:
        """What may not be read, or is too old, is replaced, added or broken: the answer stays as it is."""
        readable = READABLE[case.online, case.crm, str(case.channel.side)]
        stores.fill(case, others=frozenset(), old=False)
        said = answer(case, stores.online, stores.crm, stores.crm.attributes)
        stores.fill(case, others=frozenset({"online", "crm"} - readable), old=True)
        assert answer(case, stores.online, stores.crm, stores.crm.attributes) == said
        broken: Any = Untouchable()
        online = stores.online if "online" in readable else broken
        crm = stores.crm if "crm" in readable else broken
        assert answer(case, online, crm, stores.crm.attributes if "crm" in readable else broken) == said

    return check


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_what_may_not_be_read_changes_no_byte(stores: Stores, case: Case) -> None:
    checking(stores)(case)


WITNESS = Case(
    online=True,
    crm=True,
    channel=Channel.SHOP,
    histories=((Event(ITEMS[2], AT),), (Event(ITEMS[3], AT),)),
    others=((Event(ITEMS[4], AT),), (Event(ITEMS[5], AT),)),
    attributes=({"region": "north"}, {"region": "east"}),
    old=(Event(ITEMS[6], AT - TTL - DAY), Event(ITEMS[7], AT - TTL - 2 * DAY)),
)


@breaks(
    Break(
        "what has outlived its time is read",
        ProfileStore.__getitem__,
        "self._events(subject, self._since())",
        "self._events(subject, -(2**62))",
        WITNESS,
    ),
    Break(
        "a customer's profile is read on the site of an anonymous visitor",
        Profiles.online_of,
        "self.online.get(visitor, ())",
        '(*self.online.get(visitor, ()), *self.crm.get("c", ()))',
        dataclasses.replace(WITNESS, crm=False),
    ),
)
def test_reading_more_than_is_permitted_would_be_noticed(stores: Stores, broken: Break) -> None:
    assert_breaks(checking(stores), cases, broken)
