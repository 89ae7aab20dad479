"""Profiles in SQLite: what goes in comes out, what is purged is gone, and a broken file lowers the tier."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import ITEMS, engine
from profile_conformance import AT, DAY, MakeStore, ProfileStoreConformance, event

from consentier.consent import Channel, Permission, Tier
from consentier.errors import DataError
from consentier.serving import Profiles, Request
from consentier.serving.profile_opening import open_profiles
from consentier.serving.profile_store import SqliteProfiles


class TestSqliteProfiles(ProfileStoreConformance):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Iterator[MakeStore]:
        yield from _opening(tmp_path / "here")

    @pytest.fixture
    def make_other(self, tmp_path: Path) -> Iterator[MakeStore]:
        yield from _opening(tmp_path / "elsewhere")


def _opening(folder: Path) -> Iterator[MakeStore]:
    stores: list[SqliteProfiles] = []

    def make(**options: Any) -> SqliteProfiles:
        while stores:
            stores.pop().close()
        shutil.rmtree(folder, ignore_errors=True)
        stores.append(SqliteProfiles(folder / "profiles.db", **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteProfiles]:
    opened = SqliteProfiles(tmp_path / "profiles.db")
    yield opened
    opened.close()


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
    tmp_path: Path,
) -> None:
    store = SqliteProfiles(tmp_path / "profiles.db", write_seconds=0.05)
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
    store.close()
    assert not any(b"marker" in path.read_bytes() for path in tmp_path.iterdir())


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


def test_a_locked_or_broken_store_lowers_the_tier(
    tmp_path: Path, stores: tuple[SqliteProfiles, SqliteProfiles]
) -> None:
    online, crm = stores
    asked = dataclasses.replace(
        engine(), profiles=Profiles(online=online, crm=crm, attributes=crm.attributes, deadline=0.5)
    )
    online.close()
    locker = sqlite3.connect(tmp_path / "online.db", isolation_level=None)
    locker.execute("PRAGMA locking_mode = EXCLUSIVE")
    locker.execute("BEGIN EXCLUSIVE")
    answer = asked.recommend(ASKED)
    locker.close()
    assert answer.tier is Tier.CRM  # neither fused nor online could be read
    for tier in ("fused", "online"):
        assert f"{tier}: online profiles: no answer within the store's own deadline" in answer.basis.reasons
    assert asked.recommend(ASKED).tier is Tier.FUSED

    crm.close()
    (tmp_path / "crm.db").write_bytes(b"broken" * 1000)
    assert asked.recommend(ASKED).tier is Tier.ONLINE
    emailed = asked.recommend(dataclasses.replace(ASKED, channel=Channel.EMAIL))
    assert emailed.tier is Tier.POPULAR
    assert "crm: CRM profiles: failed with DataError" in emailed.basis.reasons
    online.close()
    (tmp_path / "online.db").rename(tmp_path / "moved.db")
    assert asked.recommend(ASKED).tier is Tier.SESSION
    assert not (tmp_path / "online.db").exists()


def test_a_redis_url_that_cannot_be_read_is_refused_without_its_password() -> None:
    pytest.importorskip("redis")
    with pytest.raises(ValueError, match="URL of a profile store in Redis cannot be read") as failure:
        open_profiles("redis://shop:hunter2/x@127.0.0.1/0")
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("events", ("s", 2**62, "item-01", None, None)),
        ("events", ("s", 0, "x" * 1025, None, None)),
        ("attributes", ("s", 0, "{")),
        ("attributes", ("s", 0, "[" * 100_000)),
    ],
)
def test_a_row_that_no_store_wrote_is_refused_unquoted_and_lowers_the_tier(
    tmp_path: Path, table: str, row: tuple[object, ...]
) -> None:
    store = SqliteProfiles(tmp_path / "profiles.db")
    with sqlite3.connect(tmp_path / "profiles.db") as connection:
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    connection.close()
    with pytest.raises(DataError, match=r"a row holds what Consentier did not write \([A-Za-z]+\)$"):
        store.get("s") if table == "events" else store.attributes.get("s")
    asked = dataclasses.replace(
        engine(), profiles=Profiles(crm=store, attributes=store.attributes, deadline=60.0)
    )
    request = Request(customer_id="s", permission=Permission.CRM, channel=Channel.EMAIL)
    assert asked.recommend(request).tier is Tier.POPULAR
    store.close()
