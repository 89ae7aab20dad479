"""What holds of every store of profiles, wherever it keeps them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime as dt
import json
import multiprocessing
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from engines import ITEMS, engine
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from consentier.consent import ConsentRecord, Ledger, Permission, Source, Tier
from consentier.serving import Event, Profiles, Request
from consentier.serving.profile_base import ProfileStore
from consentier.training.withdrawal import withdraw

__all__ = ["AT", "DAY", "Clock", "MakeStore", "ProfileStoreConformance", "event"]

AT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


class MakeStore(Protocol):
    """Opens an empty store."""

    def __call__(self, **options: Any) -> ProfileStore: ...


@dataclasses.dataclass
class Clock:
    """A clock that a test sets."""

    now: dt.datetime = AT

    def __call__(self) -> dt.datetime:
        return self.now


def event(item: str, day: float = 0, **more: Any) -> Event:
    """Something that happened with an item, so many days after `AT`."""
    return Event(item, ts=AT + day * DAY, **more)


_texts = st.text(max_size=5).filter(lambda text: text.isprintable() or "\x00" in text)
_days = st.integers(-4, 4)
_events = st.builds(
    Event,
    _texts,
    ts=_days.map(lambda day: AT + day * DAY),
    event_type=st.none() | _texts,
    quantity=st.none() | st.floats(allow_nan=False) | st.integers(0, 9),
)
_appended = st.lists(st.tuples(_texts, st.lists(_events, max_size=4)), max_size=5)
# `make_store` empties the store for each example; the kinds of stores are told apart by their classes.
_often = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


class ProfileStoreConformance:
    """The suite. A subclass says, by the fixture `make_store`, which kind of store it is about."""

    keeps_nul = True

    @pytest.fixture
    def make_store(self) -> Iterator[MakeStore]:
        raise NotImplementedError

    @pytest.fixture
    def store(self, make_store: MakeStore) -> ProfileStore:
        return make_store()

    # ---- What comes out ----------------------------------------------------------------------------------

    @_often
    @given(appended=_appended, purged=_texts)
    @example(
        appended=[("v", [event("twice"), event("twice"), event("late"), event("early", -1)])], purged="w"
    )
    @example(appended=[("a:b*[c]", [event("x")]), ("a", [event("y")])], purged="a")
    def test_it_is_a_mapping_of_what_was_appended_oldest_first(
        self, make_store: MakeStore, appended: list[tuple[str, list[Event]]], purged: str
    ) -> None:
        store = make_store()
        expected: dict[str, list[Event]] = {}
        for subject, events in [(self.text(name), list(map(self.plain, each))) for name, each in appended]:
            store.append(subject, events)
            expected.setdefault(subject, []).extend(events)
        stored = {
            subject: tuple(sorted(events, key=lambda each: each.ts or AT))
            for subject, events in expected.items()
            if events
        }
        purged = self.text(purged)
        assert dict(store) == stored
        assert len(store) == len(stored)
        assert store.purge(purged) == len(stored.pop(purged, ()))
        assert dict(store) == stored
        assert purged not in store
        assert store.get(purged, ()) == ()

    def text(self, text: str) -> str:
        return text if self.keeps_nul else text.replace("\0", "0")

    def plain(self, each: Event) -> Event:
        kind = None if each.event_type is None else self.text(each.event_type)
        return dataclasses.replace(each, item_id=self.text(each.item_id), event_type=kind)

    def test_attributes_stand_beside_the_events(self, store: ProfileStore) -> None:
        attributes = {"region": "north", "age": 40, "member": True, "score": 1.5, "name": None}
        store.set_attributes("c", {"old": 1}, at=AT)
        store.set_attributes("c", attributes, at=AT)
        assert store.attributes["c"] == attributes
        assert dict(store.attributes) == {"c": attributes}
        assert len(store.attributes) == 1
        assert store.attributes.get("nobody", {}) == {}
        assert list(store) == []

    @pytest.mark.parametrize("nobody", ["", "v\0", "\ud800", "v*", 7, None, ("v",)])
    def test_whoever_is_not_there_is_not_found(self, store: ProfileStore, nobody: Any) -> None:
        store.append("v", [event("a")])
        store.set_attributes("v", {"age": 1}, at=AT)
        assert store.get(nobody, ()) == ()
        assert store.attributes.get(nobody, {}) == {}

    def test_export_is_plain_json(self, store: ProfileStore) -> None:
        store.append("c", [event("item-01", event_type="order", quantity=2), event("item-00", -1)])
        store.set_attributes("c", {"age": 40}, at=AT)
        assert json.loads(json.dumps(store.export("c"))) == [
            {"item_id": "item-00", "ts": "2026-02-28T00:00:00+00:00", "event_type": None, "quantity": None},
            {"item_id": "item-01", "ts": "2026-03-01T00:00:00+00:00", "event_type": "order", "quantity": 2.0},
            {"ts": "2026-03-01T00:00:00+00:00", "attributes": {"age": 40}},
        ]

    # ---- What goes in ------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("subject", "events", "error"),
        [
            ("v", [event("a"), Event("no time")], ValueError),
            ("v", [event("a"), "item-01"], TypeError),
            (7, [event("a")], TypeError),
            ("\ud800", [event("a")], ValueError),
            ("v", [event("a"), event("\udfff")], ValueError),
            ("v", [event("a"), event("b", event_type="\ud800")], ValueError),
        ],
    )
    def test_wrong_events_store_nothing(
        self, store: ProfileStore, subject: Any, events: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            store.append(subject, events)
        assert dict(store) == {}

    def test_wrong_attributes_and_times_store_nothing(self, store: ProfileStore) -> None:
        with pytest.raises(TypeError, match="attribute 'age'"):
            store.set_attributes("c", {"age": [1]}, at=AT)  # type: ignore[dict-item]
        with pytest.raises(ValueError, match="no time zone"):
            store.set_attributes("c", {"age": 1}, at=dt.datetime(2026, 1, 1))
        with pytest.raises(ValueError, match="no time zone"):
            store.expire(dt.datetime(2026, 1, 1))
        assert dict(store.attributes) == {}

    def test_a_number_that_is_none_says_nothing(self, store: ProfileStore) -> None:
        store.append("c", [event("a", quantity=float("nan")), event("b", 1, quantity=float("inf"))])
        assert [each.quantity for each in store["c"]] == [None, float("inf")]

    # ---- Forgetting --------------------------------------------------------------------------------------

    def test_purge_forgets_events_and_attributes_of_one_subject(self, store: ProfileStore) -> None:
        for subject in ("c", "d"):
            store.append(subject, [event("item-01"), event("item-02")])
            store.set_attributes(subject, {"age": 1}, at=AT)
        assert store.purge("c") == 3
        assert store.purge("c") == 0
        assert (list(store), list(store.attributes)) == (["d"], ["d"])
        assert store.export("c") == []

    def test_expire_goes_by_time_and_keeps_what_is_as_old_as_the_limit(self, store: ProfileStore) -> None:
        store.append("v", [event("old", -2), event("limit"), event("new", 2)])
        store.set_attributes("v", {"age": 1}, at=AT - DAY)
        store.set_attributes("w", {"age": 1}, at=AT)
        assert store.expire(AT) == 2
        assert [each.item_id for each in store["v"]] == ["limit", "new"]
        assert list(store.attributes) == ["w"]
        with pytest.raises(ValueError, match="no ttl"):
            store.expire()

    @_often
    @given(appended=_appended, later=st.integers(0, 6), ttl=st.integers(1, 5))
    def test_nothing_older_than_its_time_is_returned_whether_or_not_it_is_deleted(
        self, make_store: MakeStore, appended: list[tuple[str, list[Event]]], later: int, ttl: int
    ) -> None:
        clock = Clock()
        store = make_store(ttl=ttl * DAY, clock=clock)
        kept: dict[str, list[Event]] = {}
        for subject, events in [(self.text(name), list(map(self.plain, each))) for name, each in appended]:
            store.append(subject, events)
            kept.setdefault(subject, []).extend(each for each in events if store.keeps(each))
        store.set_attributes("c", {"age": 1}, at=AT - 2 * DAY)
        clock.now += later * DAY
        young = {
            subject: tuple(sorted((each for each in events if store.keeps(each)), key=lambda e: e.ts or AT))
            for subject, events in kept.items()
        }
        young = {subject: events for subject, events in young.items() if events}
        for again in range(2):
            assert dict(store) == young
            assert len(store) == len(young)
            assert dict(store.attributes) == ({"c": {"age": 1}} if later + 2 <= ttl else {})
            if not again:
                store.expire()
        assert store.expire() == 0

    def test_the_age_that_is_allowed_is_allowed_to_the_microsecond(self, make_store: MakeStore) -> None:
        clock = Clock()
        store = make_store(ttl=DAY, clock=clock)
        store.append("v", [event("a")])
        clock.now = AT + DAY
        assert [each.item_id for each in store["v"]] == ["a"]
        clock.now += dt.timedelta(microseconds=1)
        assert "v" not in store
        assert not store.keeps(event("a"))
        with pytest.raises(ValueError, match="ttl must be positive"):
            make_store(ttl=dt.timedelta(0))

    # ---- From several places -----------------------------------------------------------------------------

    def test_many_threads_read_while_another_writes(self, make_store: MakeStore) -> None:
        store = make_store(read_seconds=10.0)
        store.append("v", [event("first")])

        def read(_: int) -> bool:
            items = [each.item_id for each in store["v"]]
            return items == ["first", *(f"item-{number}" for number in range(len(items) - 1))]

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            reads = threads.map(read, range(200))
            for number in range(20):
                store.append("v", [event(f"item-{number}", 1 + number)])
            assert all(reads)
        assert len(store["v"]) == 21

    def test_a_forked_worker_uses_connections_of_its_own(self, make_store: MakeStore) -> None:
        store = make_store(read_seconds=10.0)
        store.append("v", [event("parent")])
        context = multiprocessing.get_context("fork")
        workers = [
            context.Process(target=_append_one, args=(store, f"child-{number}")) for number in range(3)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        assert {each.item_id for each in store["v"]} == {"parent", "child-0", "child-1", "child-2"}

    def test_closed_it_opens_anew(self, store: ProfileStore) -> None:
        store.append("v", [event("a")])
        store.close()
        assert len(store["v"]) == 1
        store.close()

    # ---- In the engine -----------------------------------------------------------------------------------

    def test_the_recommender_answers_from_it_as_from_histories_in_the_request(
        self, make_store: MakeStore, make_other: MakeStore
    ) -> None:
        online, crm = make_store(), make_other()
        online.append("v", [event(ITEMS[2], 1), event(ITEMS[3], 0)])
        crm.append("c", [event(ITEMS[5], 2, event_type="order", quantity=1)])
        crm.set_attributes("c", {"region": "north"}, at=AT)
        both = Permission.ONLINE | Permission.CRM
        asked = Request(
            permission=both, linked=True, visitor_id="v", customer_id="c", session=ITEMS[:1], at=AT + 9 * DAY
        )
        profiles = Profiles(online=online, crm=crm, attributes=crm.attributes, deadline=30)
        answer = dataclasses.replace(engine(), profiles=profiles).recommend(asked)
        brought = dataclasses.replace(
            asked, online_history=online["v"], crm_history=crm["c"], attributes={"region": "north"}
        )
        assert answer.tier is Tier.FUSED
        assert answer == engine().recommend(brought)

    @pytest.fixture
    def make_other(self, make_store: MakeStore) -> MakeStore:
        """Opens a store of another place."""
        raise NotImplementedError

    def test_one_place_cannot_hold_both_sources(self, make_store: MakeStore, make_other: MakeStore) -> None:
        one = make_store()
        Profiles(online=one, crm=make_other())
        with pytest.raises(ValueError, match="one store cannot hold online and CRM profiles"):
            Profiles(online=one, crm=one)
        with pytest.raises(ValueError, match="give each its own"):
            Profiles(online=one, attributes=make_store().attributes)

    def test_what_is_observed_is_read_next_and_a_withdrawal_purges_it(self, make_store: MakeStore) -> None:
        store, clock = make_store(), Clock()
        ledger = Ledger([ConsentRecord("r", "v", "visitor", "online", "granted", AT - DAY, AT - DAY)])
        profiles = Profiles(online=store, deadline=30)
        shop = dataclasses.replace(engine(), ledger=ledger, profiles=profiles, clock=clock)

        def ask() -> Any:
            return shop.recommend(Request(visitor_id="v"))

        assert ask().tier is Tier.POPULAR
        assert shop.observe(Event(ITEMS[2], event_type="view"), visitor_id="v").stored
        assert ask().tier is Tier.ONLINE
        assert [each.item_id for each in store["v"]] == [ITEMS[2]]
        clock.now += DAY
        done = withdraw(
            ledger, "v", kind="visitor", source=Source.ONLINE, at=clock.now, profiles={Source.ONLINE: [store]}
        )
        assert done.profile_rows_purged == 1
        assert store.export("v") == []
        assert ask().tier is Tier.POPULAR
        refused = shop.observe(Event(ITEMS[2]), visitor_id="v")
        assert not refused.stored
        assert "online: withdrawn" in refused.reason
        assert store.export("v") == []


def _append_one(store: ProfileStore, item: str) -> None:
    store.append("v", [event(item)])
