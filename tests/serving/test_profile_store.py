"""Profiles in SQLite: what goes in comes out, what is purged is gone, and a broken file lowers the tier."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime as dt
import json
import multiprocessing
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import ITEMS, engine
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import Channel, Permission, Tier
from consentier.errors import DataError
from consentier.serving import Event, Profiles, Request
from consentier.serving.profile_store import SqliteProfiles

AT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def event(item: str, day: int = 0, **more: Any) -> Event:
    return Event(item, ts=AT + day * DAY, **more)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteProfiles]:
    opened = SqliteProfiles(tmp_path / "profiles.db")
    yield opened
    opened.close()


_texts = st.text(max_size=5).filter(lambda text: text.isprintable() or "\x00" in text)
_events = st.builds(
    Event,
    _texts,
    ts=st.integers(-4, 4).map(lambda day: AT + day * DAY),
    event_type=st.none() | _texts,
    quantity=st.none() | st.floats(allow_nan=False) | st.integers(0, 9),
)


@settings(max_examples=60)
@given(appended=st.lists(st.tuples(_texts, st.lists(_events, max_size=4)), max_size=5), purged=_texts)
def test_it_is_a_mapping_of_what_was_appended_oldest_first(
    tmp_path_factory: pytest.TempPathFactory, appended: list[tuple[str, list[Event]]], purged: str
) -> None:
    store = SqliteProfiles(tmp_path_factory.mktemp("store") / "profiles.db")
    expected: dict[str, list[Event]] = {}
    for subject, events in appended:
        store.append(subject, events)
        expected.setdefault(subject, []).extend(events)
    stored = {
        subject: tuple(sorted(events, key=lambda each: each.ts or AT))
        for subject, events in expected.items()
        if events
    }
    assert dict(store) == stored
    assert len(store) == len(stored)
    assert store.purge(purged) == len(stored.pop(purged, ()))
    assert dict(store) == stored
    assert purged not in store
    assert store.get(purged, ()) == ()
    store.close()


def test_attributes_stand_beside_the_events(store: SqliteProfiles) -> None:
    attributes = {"region": "north", "age": 40, "member": True, "score": 1.5, "name": None}
    store.set_attributes("c", {"old": 1}, at=AT)
    store.set_attributes("c", attributes, at=AT)
    assert store.attributes["c"] == attributes
    assert dict(store.attributes) == {"c": attributes}
    assert len(store.attributes) == 1
    assert store.attributes.get("nobody", {}) == {}
    assert list(store) == []


def test_purge_forgets_events_and_attributes_of_one_subject(store: SqliteProfiles) -> None:
    for subject in ("c", "d"):
        store.append(subject, [event("item-01"), event("item-02")])
        store.set_attributes(subject, {"age": 1}, at=AT)
    assert store.purge("c") == 3
    assert store.purge("c") == 0
    assert (list(store), list(store.attributes)) == (["d"], ["d"])
    assert store.export("c") == []


def test_what_is_purged_is_not_in_the_files_any_more(tmp_path: Path, store: SqliteProfiles) -> None:
    store.append("c-marker-person", [event(f"marker-{number}", number) for number in range(500)])
    store.append("d", [event("other", 3)])
    store.set_attributes("c-marker-person", {"note": "marker-note"}, at=AT)
    assert store["c-marker-person"]  # a reader that stays connected

    def found() -> bool:
        return any(b"marker" in path.read_bytes() for path in tmp_path.iterdir())

    assert found()
    store.purge("c-marker-person")
    assert not found()
    store.append("d", [event("marker-late", -9)])
    assert store.expire(AT) == 1
    assert not found()
    assert [each.item_id for each in store["d"]] == ["other"]


def test_a_reader_that_holds_on_is_reported_and_the_purge_can_be_done_again(
    tmp_path: Path, store: SqliteProfiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consentier.serving.profile_store._WRITE_WAIT", 0.05)
    store.append("c", [event("marker")])
    with sqlite3.connect(tmp_path / "profiles.db", isolation_level=None) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        with pytest.raises(DataError, match="do it again"):
            store.purge("c")
        assert "c" not in store
        reader.execute("COMMIT")
    reader.close()
    assert store.purge("c") == 0
    assert not any(b"marker" in path.read_bytes() for path in tmp_path.iterdir())


def test_expire_goes_by_time_and_keeps_what_is_as_old_as_the_limit(store: SqliteProfiles) -> None:
    store.append("v", [event("old", -2), event("limit"), event("new", 2)])
    store.set_attributes("v", {"age": 1}, at=AT - DAY)
    store.set_attributes("w", {"age": 1}, at=AT)
    assert store.expire(AT) == 2
    assert [each.item_id for each in store["v"]] == ["limit", "new"]
    assert list(store.attributes) == ["w"]


def test_export_is_plain_json(store: SqliteProfiles) -> None:
    store.append("c", [event("item-01", event_type="order", quantity=2), event("item-00", -1)])
    store.set_attributes("c", {"age": 40}, at=AT)
    assert json.loads(json.dumps(store.export("c"))) == [
        {"item_id": "item-00", "ts": "2026-02-28T00:00:00+00:00", "event_type": None, "quantity": None},
        {"item_id": "item-01", "ts": "2026-03-01T00:00:00+00:00", "event_type": "order", "quantity": 2.0},
        {"ts": "2026-03-01T00:00:00+00:00", "attributes": {"age": 40}},
    ]


@pytest.mark.parametrize(
    ("subject", "events", "error"),
    [
        ("v", [event("a"), Event("no time")], ValueError),
        ("v", [event("a"), "item-01"], TypeError),
        (7, [event("a")], TypeError),
        ("v", [event("a"), event("b", quantity=10**400)], ValueError),
        ("\ud800", [event("a")], ValueError),
    ],
)
def test_wrong_events_store_nothing(
    store: SqliteProfiles, subject: Any, events: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        store.append(subject, events)
    assert dict(store) == {}


def test_wrong_attributes_and_times_store_nothing(store: SqliteProfiles) -> None:
    with pytest.raises(TypeError, match="attribute 'age'"):
        store.set_attributes("c", {"age": [1]}, at=AT)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="no time zone"):
        store.set_attributes("c", {"age": 1}, at=dt.datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="no time zone"):
        store.expire(dt.datetime(2026, 1, 1))
    assert dict(store.attributes) == {}


def test_only_its_owner_may_read_the_file(tmp_path: Path, store: SqliteProfiles) -> None:
    store.append("v", [event("a")])
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


def test_files_that_are_no_profile_stores_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such profile store"):
        SqliteProfiles(tmp_path / "missing.db", create=False)
    (tmp_path / "text.db").write_text("no database at all " * 100)
    with pytest.raises(DataError, match=r"text\.db"):
        SqliteProfiles(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE customers (id TEXT)")
    other.close()
    with pytest.raises(DataError, match="another SQLite file"):
        SqliteProfiles(tmp_path / "other.db")
    SqliteProfiles(tmp_path / "later.db").close()
    with sqlite3.connect(tmp_path / "later.db") as later:
        later.execute("PRAGMA user_version = 9")
    later.close()
    with pytest.raises(DataError, match="version 9"):
        SqliteProfiles(tmp_path / "later.db")
    assert not (tmp_path / "missing.db").exists()


def test_many_threads_read_while_another_writes(store: SqliteProfiles) -> None:
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


def _append_one(store: SqliteProfiles, item: str) -> None:
    store.append("v", [event(item)])


def test_a_forked_worker_uses_connections_of_its_own(store: SqliteProfiles) -> None:
    store.append("v", [event("parent")])
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_one, args=(store, f"child-{number}")) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert {each.item_id for each in store["v"]} == {"parent", "child-0", "child-1", "child-2"}


# --- in the recommender -------------------------------------------------------------------------------------

BOTH = Permission.ONLINE | Permission.CRM
ASKED = Request(
    permission=BOTH, linked=True, visitor_id="v", customer_id="c", session=ITEMS[:1], at=AT + 9 * DAY
)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[SqliteProfiles, SqliteProfiles]]:
    online, crm = SqliteProfiles(tmp_path / "online.db"), SqliteProfiles(tmp_path / "crm.db")
    online.append("v", [event(ITEMS[2], 1), event(ITEMS[3], 0)])
    crm.append("c", [event(ITEMS[5], 2, event_type="order", quantity=1)])
    crm.set_attributes("c", {"region": "north"}, at=AT)
    yield online, crm
    online.close()
    crm.close()


def test_the_recommender_answers_from_it_as_from_histories_in_the_request(
    stores: tuple[SqliteProfiles, SqliteProfiles],
) -> None:
    online, crm = stores
    profiles = Profiles(online=online, crm=crm, attributes=crm.attributes)
    answer = dataclasses.replace(engine(), profiles=profiles).recommend(ASKED)
    brought = dataclasses.replace(
        ASKED, online_history=online["v"], crm_history=crm["c"], attributes={"region": "north"}
    )
    assert answer.tier is Tier.FUSED
    assert answer == engine().recommend(brought)


def test_a_locked_or_broken_store_lowers_the_tier(
    tmp_path: Path, stores: tuple[SqliteProfiles, SqliteProfiles]
) -> None:
    online, crm = stores
    asked = dataclasses.replace(
        engine(), profiles=Profiles(online=online, crm=crm, attributes=crm.attributes)
    )
    online.close()
    locker = sqlite3.connect(tmp_path / "online.db", isolation_level=None)
    locker.execute("PRAGMA locking_mode = EXCLUSIVE")
    locker.execute("BEGIN EXCLUSIVE")
    answer = asked.recommend(ASKED)
    locker.close()
    assert answer.tier is Tier.CRM  # neither fused nor online could be read
    assert "fused: failed with DataError" in answer.basis.reasons
    assert asked.recommend(ASKED).tier is Tier.FUSED

    crm.close()
    (tmp_path / "crm.db").write_bytes(b"broken" * 1000)
    assert asked.recommend(ASKED).tier is Tier.ONLINE
    emailed = asked.recommend(dataclasses.replace(ASKED, channel=Channel.EMAIL))
    assert emailed.tier is Tier.POPULAR
    assert "crm: failed with DataError" in emailed.basis.reasons
    online.close()
    (tmp_path / "online.db").rename(tmp_path / "moved.db")
    assert asked.recommend(ASKED).tier is Tier.SESSION
    assert not (tmp_path / "online.db").exists()
