"""What happens is stored under the permission of that moment, or not at all; whatever fails is told."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import ITEMS, engine
from profile_conformance import AT, DAY, Clock, event

from consentier.consent import ConsentRecord, Ledger, Permission, Resolution, Source, Tier
from consentier.serving import Event, Profiles, Recommender, Request
from consentier.serving.clock import utc_now
from consentier.serving.profile_store import SqliteProfiles

CLICK = Event(ITEMS[2], event_type="view")


def said(state: str, day: float, *, kind: Any = "visitor", permission: str = "online", who: str = "v") -> Any:
    at = AT + day * DAY
    return ConsentRecord(f"{who} {permission} {state} {day}", who, kind, permission, state, at, at)


@dataclasses.dataclass
class Shop:
    """A shop with two stores, a ledger and a clock."""

    online: SqliteProfiles
    crm: SqliteProfiles
    ledger: Any
    clock: Clock = dataclasses.field(default_factory=Clock)

    def recommender(self) -> Recommender:
        profiles = Profiles(online=self.online, crm=self.crm, attributes=self.crm.attributes, deadline=30)
        return dataclasses.replace(engine(), ledger=self.ledger, profiles=profiles, clock=self.clock)

    def stored(self) -> list[Any]:
        return [*self.online.items(), *self.crm.items()]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    ledger = Ledger([said("granted", -9), said("granted", -9, kind="customer", permission="crm", who="c")])
    return Shop(SqliteProfiles(tmp_path / "online.db"), SqliteProfiles(tmp_path / "crm.db"), ledger)


def test_each_source_goes_into_its_own_store(shop: Shop) -> None:
    seen = shop.recommender().observe(CLICK, visitor_id="v")
    assert (seen.stored, seen.source, seen.reason) == (True, Source.ONLINE, "permitted")
    assert seen.ledger_position == 2
    bought = shop.recommender().observe(Event(ITEMS[5], AT - DAY, "order", 2), customer_id="c")
    assert (bought.stored, bought.source) == (True, Source.CRM)
    assert shop.stored() == [
        ("v", (dataclasses.replace(CLICK, ts=AT),)),
        ("c", (Event(ITEMS[5], AT - DAY, "order", 2.0),)),
    ]


def test_the_next_request_sees_the_last_click(shop: Shop) -> None:
    asked = shop.recommender()
    for number in range(1, 4):
        assert asked.observe(Event(ITEMS[number]), visitor_id="v").stored
        shop.clock.now += dt.timedelta(seconds=1)
        answer = asked.recommend(Request(visitor_id="v"))
        clicks = [Event(ITEMS[each], AT + dt.timedelta(seconds=each - 1)) for each in range(1, number + 1)]
        brought = asked.recommend(Request(visitor_id="v", online_history=clicks))
        assert answer.tier is Tier.ONLINE
        assert answer == brought


def denied(*records: ConsentRecord) -> Callable[[Shop], None]:
    return lambda shop: shop.ledger.append(records)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (denied(said("denied", -1)), "online: denied"),
        (denied(said("withdrawn", -1)), "online: withdrawn"),
        (denied(said("objected", -1)), "an objection stands"),
        (denied(said("denied", -1, permission="parental")), "a minor without parental consent"),
        (lambda shop: setattr(shop, "ledger", Ledger()), "online: unknown"),
        (lambda shop: setattr(shop, "ledger", None), "no permission declared and no ledger"),
    ],
)
def test_without_permission_nothing_is_stored(
    shop: Shop, prepare: Callable[[Shop], None], reason: str
) -> None:
    prepare(shop)
    seen = shop.recommender().observe(CLICK, visitor_id="v")
    assert not seen.stored
    assert reason in seen.reason
    assert shop.stored() == []


def test_one_permission_is_not_the_other(shop: Shop) -> None:
    asked = shop.recommender()
    assert not asked.observe(CLICK, customer_id="v").stored
    assert not asked.observe(CLICK, visitor_id="c").stored
    assert not asked.observe(CLICK, visitor_id="v", permission=Permission.CRM).stored
    shop.ledger = None
    asked = shop.recommender()
    assert not asked.observe(CLICK, visitor_id="v", permission=Permission.CRM).stored
    assert not asked.observe(CLICK, customer_id="c", permission=Permission.ONLINE).stored
    assert shop.stored() == []
    assert asked.observe(CLICK, visitor_id="v", permission=Permission.ONLINE).stored


def test_a_late_event_needs_a_permission_that_held_since_it_happened(shop: Shop) -> None:
    asked = shop.recommender()
    assert not asked.observe(event(ITEMS[0], -10), visitor_id="v").stored, "before the grant"
    assert asked.observe(event(ITEMS[1], -8), visitor_id="v").stored
    shop.ledger.append([said("withdrawn", -6), said("granted", -4)])
    assert not asked.observe(event(ITEMS[2], -7), visitor_id="v").stored, "a later grant legalises nothing"
    late = asked.observe(Event(ITEMS[2]), visitor_id="v", at=AT - 5 * DAY)
    assert (late.stored, late.reason) == (False, "not permitted from the event until now")
    assert asked.observe(event(ITEMS[3], -3), visitor_id="v").stored
    ahead = asked.observe(event(ITEMS[4], 1), visitor_id="v")
    assert (ahead.stored, ahead.reason) == (False, "the event lies in the future")
    assert [each.item_id for each in shop.online["v"]] == [ITEMS[1], ITEMS[3]]


def test_what_has_outlived_its_time_is_not_stored(shop: Shop, tmp_path: Path) -> None:
    shop.online = SqliteProfiles(tmp_path / "short.db", ttl=DAY, clock=shop.clock)
    seen = shop.recommender().observe(event(ITEMS[1], -2), visitor_id="v")
    assert (seen.stored, seen.reason) == (False, "older than the store keeps anything")
    assert shop.stored() == []


class Crossing(SqliteProfiles):
    """While an event is being stored, somebody withdraws, and the store is purged."""

    meanwhile: Callable[[], object]

    def append(self, subject: str, events: Any) -> None:
        self.meanwhile()
        super().append(subject, events)


def test_a_withdrawal_that_crosses_an_event_leaves_nothing_of_it(shop: Shop, tmp_path: Path) -> None:
    store = Crossing(tmp_path / "crossing.db")
    shop.online = store

    def withdraw() -> None:
        shop.clock.now += DAY
        shop.ledger.append([said("withdrawn", 0.5)])
        store.purge("v")

    store.meanwhile = withdraw
    seen = shop.recommender().observe(CLICK, visitor_id="v")
    assert not seen.stored
    assert seen.reason.endswith("purged")
    assert store.export("v") == []


def test_a_ledger_that_fails_after_it_permitted_takes_nothing_back(shop: Shop, tmp_path: Path) -> None:
    store = Crossing(tmp_path / "crossing.db")
    shop.online = store
    store.append = super(Crossing, store).append  # type: ignore[method-assign]
    assert shop.recommender().observe(CLICK, visitor_id="v").stored
    ledger = shop.ledger

    class Once:
        asked = 0

        def resolve(self, **question: Any) -> Resolution:
            self.asked += 1
            if self.asked > 1:
                raise ConnectionError("visitor v")
            resolution: Resolution = ledger.resolve(**question)
            return resolution

    shop.ledger = Once()
    assert shop.recommender().observe(CLICK, visitor_id="v").stored
    assert len(store["v"]) == 2


class Broken:
    """Fails whatever it is asked, or says what is no answer."""

    def __init__(self, answer: object = None, error: type[Exception] | None = ConnectionError) -> None:
        self.answer, self.error = answer, error

    def resolve(self, **question: Any) -> Any:
        if self.error is not None:
            raise self.error("visitor v bought pills")
        return self.answer


@pytest.mark.parametrize("ledger", [Broken(), Broken(error=KeyError), Broken(True, None), Broken(None, None)])
def test_a_ledger_that_fails_denies(shop: Shop, ledger: Any) -> None:
    shop.ledger = ledger
    seen = shop.recommender().observe(CLICK, visitor_id="v", permission=Permission.ONLINE)
    assert not seen.stored
    assert seen.reason.startswith("ledger: failed with ")
    assert "pills" not in seen.reason
    assert shop.stored() == []


def test_a_ledger_that_cannot_tell_since_when_denies_what_is_late(shop: Shop) -> None:
    shop.ledger = Broken(Resolution(online=True), None)
    late = shop.recommender().observe(event(ITEMS[0], -1), visitor_id="v")
    assert (late.stored, late.reason) == (False, "the ledger does not say since when that is permitted")
    asked = dataclasses.replace(shop.recommender(), clock=utc_now)  # goes on while the event is taken in
    assert asked.observe(CLICK, visitor_id="v").stored


def test_a_store_that_fails_or_is_none_is_told(shop: Shop, tmp_path: Path) -> None:
    shop.online.close()
    (tmp_path / "online.db").write_bytes(b"broken" * 1000)
    seen = shop.recommender().observe(CLICK, visitor_id="v")
    assert (seen.stored, seen.reason) == (False, "online profiles: failed with DataError")
    nowhere = "there is no store of online profiles that takes events"
    for profiles in (None, Profiles(), Profiles(online={"v": ()})):
        asked = dataclasses.replace(shop.recommender(), profiles=profiles)
        assert asked.observe(CLICK, visitor_id="v").reason == nowhere


def test_wrong_arguments_are_mistakes(shop: Shop) -> None:
    asked = shop.recommender()
    with pytest.raises(ValueError, match="either visitor_id or customer_id"):
        asked.observe(CLICK)
    with pytest.raises(ValueError, match="either visitor_id or customer_id"):
        asked.observe(CLICK, visitor_id="v", customer_id="c")
    with pytest.raises(TypeError, match="takes a consentier"):
        asked.observe("item-01", visitor_id="v")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="id must be a string"):
        asked.observe(CLICK, visitor_id=7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="permission must be"):
        asked.observe(CLICK, visitor_id="v", permission=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no time zone"):
        asked.observe(CLICK, visitor_id="v", at=dt.datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="a time of its own"):
        asked.observe(event("a"), visitor_id="v", at=AT - DAY)
    assert shop.stored() == []
