"""Profiles in Redis and PostgreSQL: what holds of all stores holds of them, and what is theirs alone."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
import redis
from engines import ITEMS, engine
from postgresql_schemas import new_schema, with_options
from profile_conformance import AT, DAY, MakeStore, ProfileStoreConformance, event

from consentier.consent import ConsentRecord, Ledger, Permission, Tier
from consentier.errors import DataError, StoreTimeout
from consentier.serving import Profiles, Recommender, Request, redis_profiles, sqlalchemy_profiles
from consentier.serving.patience import LATE_IN_A_ROW, PAUSE_SECONDS
from consentier.serving.profile_base import ProfileStore
from consentier.serving.profile_opening import open_profiles
from consentier.serving.redis_profiles import RedisProfiles
from consentier.serving.sqlalchemy_profiles import SqlAlchemyProfiles

PATIENT = 10.0  # seconds: these tests are not about speed


class Cluster(Protocol):
    """A PostgreSQL server of our own (see `conftest`)."""

    url: str

    def url_for(self, role: str) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


class RedisServer(Protocol):
    """A Redis server of our own (see `conftest`)."""

    url: str
    folder: Path

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def hang(self) -> None: ...
    def go_on(self) -> None: ...


# ---- The suite ---------------------------------------------------------------------------------------------


def with_prefix(url: str, prefix: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}prefix={prefix}"


def opening_redis(url: str, prefix: str) -> Iterator[MakeStore]:
    direct = redis.Redis.from_url(url)
    opened: list[RedisProfiles] = []

    def make(**options: Any) -> RedisProfiles:
        for key in direct.scan_iter(match=f"{prefix}:*"):
            direct.delete(key)
        opened.append(RedisProfiles(with_prefix(url, prefix), **{"read_seconds": PATIENT, **options}))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
    direct.close()


@pytest.mark.service("redis")
class TestRedisProfiles(ProfileStoreConformance):
    @pytest.fixture
    def make_store(self, redis_url: str) -> Iterator[MakeStore]:
        yield from opening_redis(redis_url, "here")

    @pytest.fixture
    def make_other(self, redis_url: str) -> Iterator[MakeStore]:
        yield from opening_redis(redis_url, "elsewhere")


def opening_postgresql(url: str) -> Iterator[MakeStore]:
    opened: list[SqlAlchemyProfiles] = []
    with psycopg.connect(url, autocommit=True) as direct:

        def make(**options: Any) -> SqlAlchemyProfiles:
            while opened:
                opened.pop().close()
            opened.append(SqlAlchemyProfiles(url, **{"read_seconds": PATIENT, **options}))
            direct.execute("TRUNCATE consentier_profile_events, consentier_profile_attributes")
            return opened[-1]

        yield make
    for store in opened:
        store.close()


@pytest.mark.service("postgresql")
class TestSqlAlchemyProfiles(ProfileStoreConformance):
    keeps_nul = False

    @pytest.fixture
    def make_store(self, postgresql: str) -> Iterator[MakeStore]:
        with new_schema(postgresql) as url:
            yield from opening_postgresql(url)

    @pytest.fixture
    def make_other(self, postgresql: str) -> Iterator[MakeStore]:
        with new_schema(postgresql) as url:
            yield from opening_postgresql(url)


# ---- Redis -------------------------------------------------------------------------------------------------


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    redis.Redis.from_url(redis_server.url).flushdb()
    return redis_server


@pytest.mark.service("redis")
def test_redis_forgets_by_itself_what_has_outlived_its_time(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_profiles, "GRACE_MILLISECONDS", 0)
    now = dt.datetime.now(dt.UTC)
    half = dt.timedelta(seconds=0.5)
    store = RedisProfiles(server.url, ttl=4 * half, read_seconds=PATIENT)
    direct = redis.Redis.from_url(server.url)
    store.append("v", [event("x", (now - AT) / DAY)])
    store.append("v", [event("late", (now - half - AT) / DAY)])
    store.set_attributes("v", {"age": 1}, at=now)
    kept = {b"consentier:events:v", b"consentier:attributes:v"}
    assert {key for key in direct.scan_iter() if key != b"consentier:number"} == kept
    left = direct.pttl("consentier:events:v")
    assert isinstance(left, int)
    assert 500 < left <= 2000, "the late event took no time from the others"
    time.sleep(2.1)
    assert [key for key in direct.scan_iter() if key != b"consentier:number"] == []


@pytest.mark.service("redis")
def test_redis_drops_what_is_old_when_something_new_comes(server: RedisServer) -> None:
    clock_at = [AT]
    store = RedisProfiles(server.url, ttl=2 * DAY, read_seconds=PATIENT, clock=lambda: clock_at[0])
    store.append("v", [event("old")])
    clock_at[0] = AT + 3 * DAY
    store.append("v", [event("new", 3)])
    direct = redis.Redis.from_url(server.url)
    assert direct.zcard("consentier:events:v") == 1


@pytest.mark.service("redis")
def test_redis_keeps_two_prefixes_apart_and_a_stranger_out(server: RedisServer) -> None:
    one, other = (RedisProfiles(with_prefix(server.url, name), read_seconds=PATIENT) for name in ("a", "a.b"))
    one.append("v", [event("mine")])
    other.append("v", [event("other")])
    assert one.purge("v") == 1
    assert [each.item_id for each in other["v"]] == ["other"]
    assert one.expire(AT + DAY) == 0
    direct = redis.Redis.from_url(server.url)
    direct.set("a:events:w", "a stranger's")
    with pytest.raises(DataError, match="WRONGTYPE") as failure:
        one["w"]
    assert "stranger" not in str(failure.value)
    direct.zadd("a:events:x", {"no json at all, and longer than that": AT.timestamp() * 1e6})
    with pytest.raises(DataError, match="did not write"):
        one["x"]
    for wrong in ("http://localhost", with_prefix(server.url, "a:b"), with_prefix(server.url, "")):
        with pytest.raises(ValueError, match=r"profile store in Redis|prefix"):
            RedisProfiles(wrong)
    direct.zadd("a:events:y", {"0" * 16 + '["no time", "item", null, null]': AT.timestamp() * 1e6})
    with pytest.raises(DataError, match="did not write"):
        one["y"]
    nowhere = "unix://:hunter2@/nonexistent?db=1"
    with pytest.raises(DataError) as failure:
        RedisProfiles(nowhere)
    assert "hunter2" not in str(failure.value)


@pytest.mark.service("redis")
def test_redis_does_not_store_one_half_of_an_append(server: RedisServer) -> None:
    store = RedisProfiles(server.url, read_seconds=PATIENT)
    redis.Redis.from_url(server.url).set("consentier:events:v", "in the way")
    with pytest.raises(DataError):
        store.append("v", [event("a"), event("b", 1)])
    assert redis.Redis.from_url(server.url).get("consentier:events:v") == b"in the way"


@pytest.mark.service("redis")
def test_what_redis_refuses_is_told_with_what_to_do_and_quotes_nobody(server: RedisServer) -> None:
    """A pipeline puts the command, keys and all, before what the server says."""
    store, direct = RedisProfiles(server.url, read_seconds=PATIENT), redis.Redis.from_url(server.url)
    changes = (
        lambda: store.append("alice", [event("pills")]),
        lambda: store.set_attributes("alice", {"age": 1}, at=AT),
        lambda: store.purge("alice"),
        lambda: store.expire(AT + DAY),
    )

    def refused(change: Callable[[], object], said: str) -> None:
        with pytest.raises(DataError, match=said) as failure:
            change()
        assert not any(word in str(failure.value) for word in ("alice", "pills", "Command", "events:"))

    store.append("alice", [event("pills")])
    in_the_way = server.folder / "dump.rdb"
    in_the_way.mkdir()  # so that no snapshot can take its name
    direct.config_set("save", "3600 1")
    try:
        direct.bgsave()
        while direct.info("persistence")["rdb_bgsave_in_progress"]:
            time.sleep(0.01)
        for change in changes:
            refused(change, r"the server refuses \(MISCONF\): it takes no changes, .* disk\. Make room")
        assert len(store["alice"]) == 1
    finally:
        in_the_way.rmdir()
        direct.config_set("save", "")
    direct.config_set("maxmemory", 1)
    try:
        refused(changes[0], r"refuses \(OOM\): its memory is full up to maxmemory")
    finally:
        direct.config_set("maxmemory", 0)
    direct.replicaof("127.0.0.1", "1")
    try:
        for change in changes[:3]:
            refused(change, r"refuses \(READONLY\): it is a replica")
    finally:
        direct.replicaof("NO", "ONE")
    direct.acl_setuser("reads", enabled=True, nopass=True, keys=["*"], commands=["+info", "+scan"])
    limited = RedisProfiles(server.url.replace("unix://", "unix://reads:any@"), read_seconds=PATIENT)
    refused(lambda: limited["alice"], r"refuses \(NOPERM\): its user may not do this")
    direct.acl_deluser("reads")


# ---- PostgreSQL --------------------------------------------------------------------------------------------


@pytest.mark.service("postgresql")
def test_postgresql_messages_quote_nobody_and_a_failed_append_leaves_nothing(postgresql: str) -> None:
    with new_schema(postgresql) as url, psycopg.connect(url, autocommit=True) as direct:
        store = SqlAlchemyProfiles(url, read_seconds=PATIENT)
        direct.execute("ALTER TABLE consentier_profile_events ADD CHECK (item_id <> 'pills')")
        with pytest.raises(DataError, match="check constraint") as failure:
            store.append("alice", [event("a"), event("pills")])
        assert "alice" not in str(failure.value)
        with pytest.raises(DataError, match="NUL character"):
            store.append("alice", [event("a"), event("b\0")])
        assert store.get("alice", ()) == ()
        store.close()


@pytest.mark.service("postgresql")
def test_a_purge_from_postgresql_is_durable_whatever_the_session_says(postgresql: str) -> None:
    """What the transaction that deletes had set is noted by a trigger."""
    with new_schema(postgresql) as url, psycopg.connect(url, autocommit=True) as direct:
        store = SqlAlchemyProfiles(with_options(url, "-c synchronous_commit=off"), read_seconds=PATIENT)
        direct.execute("CREATE TABLE noted (setting text)")
        direct.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN INSERT INTO noted SELECT current_setting('synchronous_commit'); RETURN OLD; END$$"
        )
        direct.execute(
            "CREATE TRIGGER note BEFORE DELETE ON consentier_profile_events "
            "FOR EACH ROW EXECUTE FUNCTION note()"
        )
        store.append("v", [event("a")])
        assert store.purge("v") == 1
        store.close()
        assert direct.execute("SELECT setting FROM noted").fetchall() == [("on",)]


@pytest.mark.service("postgresql")
def test_postgresql_stores_are_made_once_and_only_when_asked_for(postgresql: str) -> None:
    with new_schema(postgresql) as url:
        with pytest.raises(DataError, match="there is none"):
            SqlAlchemyProfiles(url, create=False)
        SqlAlchemyProfiles(url, read_seconds=PATIENT).append("v", [event("a")])
        again = SqlAlchemyProfiles(url, create=False, read_seconds=PATIENT)
        assert list(again) == ["v"]
    with pytest.raises(DataError, match="no schema that exists"):
        SqlAlchemyProfiles(with_options(postgresql, "-c search_path=nowhere"))
    with pytest.raises(ValueError, match="write postgresql"):
        SqlAlchemyProfiles("not a url")


@pytest.mark.service("postgresql")
def test_postgresql_gives_a_look_up_up_in_time_and_a_stale_connection_is_replaced(postgresql: str) -> None:
    with new_schema(postgresql) as url, psycopg.connect(url, autocommit=True) as direct:
        store = SqlAlchemyProfiles(url, read_seconds=0.2)
        store.append("v", [event("a")])
        with direct.transaction():
            direct.execute("LOCK TABLE consentier_profile_events IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreTimeout):
                store["v"]
        for use in (lambda: store["v"], lambda: store.purge("nobody")):
            direct.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            )
            use()
        store.close()


@pytest.mark.service("postgresql")
def test_postgresql_roles_can_do_what_the_page_says_and_no_more(cluster: Cluster) -> None:
    with new_schema(cluster.url) as url, psycopg.connect(url, autocommit=True) as direct:
        SqlAlchemyProfiles(url, read_seconds=PATIENT).set_attributes("v", {"age": 1}, at=AT)
        found = direct.execute("SELECT current_schema()").fetchone()
        assert found is not None
        tables = "consentier_profile_events, consentier_profile_attributes"
        rights = {"answers": "SELECT", "observes": "SELECT, INSERT, DELETE", "stranger": ""}
        stores = {}
        for role, granted in rights.items():
            direct.execute(f"CREATE ROLE {role} LOGIN")
            direct.execute(f"GRANT USAGE ON SCHEMA {found[0]} TO {role}")
            if granted:
                direct.execute(f"GRANT {granted} ON {tables} TO {role}")
            place = with_options(cluster.url_for(role), f"-c search_path={found[0]}")
            stores[role] = SqlAlchemyProfiles(place, read_seconds=PATIENT)
        stores["observes"].append("v", [event("a")])
        assert len(stores["answers"]["v"]) == 1
        assert stores["answers"].attributes["v"] == {"age": 1}
        for refused in (
            lambda: stores["answers"].append("v", [event("a")]),
            lambda: stores["answers"].purge("v"),
            lambda: stores["observes"].set_attributes("v", {}, at=AT),
            lambda: stores["stranger"]["v"],
        ):
            with pytest.raises(DataError, match="permission denied"):
                refused()
        assert stores["observes"].purge("v") == 2
        for store in stores.values():
            store.close()
        for role in rights:
            direct.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# ---- A server that fails or hangs, in the recommender ------------------------------------------------------

ASKED = Request(permission=Permission.ONLINE, visitor_id="v", session=ITEMS[:1])


def recommender(online: ProfileStore, deadline: float = 0.25) -> Recommender:
    shop = engine()
    profiles = Profiles(online=online).within(deadline)
    return Recommender(
        shop.scorers, shop.popular, shop.policy, profiles=profiles, audit_key=b"a key for tests only"
    )


def check_hanging(store: ProfileStore, hang: Callable[[], None], go_on: Callable[[], None]) -> None:
    """A server that hangs costs some deadlines, then nothing; when it goes on it is read again."""
    store.append("v", [event(ITEMS[2])])
    shop = recommender(store)
    assert shop.recommend(ASKED).tier is Tier.ONLINE
    hang()
    try:
        started = time.monotonic()
        for _ in range(LATE_IN_A_ROW):
            answer = shop.recommend(ASKED)
            assert answer.tier is Tier.SESSION
            assert "online: online profiles: no answer within" in " ".join(answer.basis.reasons)
        assert time.monotonic() - started < 3
        started = time.monotonic()
        for _ in range(5):
            assert shop.recommend(ASKED).tier is Tier.SESSION
        assert time.monotonic() - started < 1
    finally:
        go_on()
    time.sleep(PAUSE_SECONDS + 0.1)
    assert shop.recommend(ASKED).tier is Tier.ONLINE
    assert shop.observe(event(ITEMS[3]), visitor_id="v", permission=Permission.ONLINE).stored
    store.close()


@pytest.mark.service("redis")
def test_a_redis_that_hangs_lowers_the_tier(server: RedisServer) -> None:
    check_hanging(RedisProfiles(server.url, read_seconds=0.25), server.hang, server.go_on)


@pytest.mark.service("postgresql")
def test_a_postgresql_that_hangs_lowers_the_tier(postgresql: str) -> None:
    with new_schema(postgresql) as url, psycopg.connect(url) as direct:
        store = SqlAlchemyProfiles(
            url, read_seconds=PATIENT
        )  # so that only the recommender's deadline counts

        def hang() -> None:
            direct.execute("LOCK TABLE consentier_profile_events IN ACCESS EXCLUSIVE MODE")

        check_hanging(store, hang, direct.rollback)


@pytest.mark.service("postgresql")
def test_a_postgresql_that_is_stuck_is_given_up_by_the_client(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlalchemy_profiles, "PATIENCE_SECONDS", 0.3)
    with new_schema(cluster.url) as url, psycopg.connect(url, autocommit=True) as direct:
        store = SqlAlchemyProfiles(url)
        store.append("v", [event(ITEMS[2])])
        found = direct.execute(
            "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COMMIT%' OR query LIKE '%consentier%'"
        )
        stuck = [pid for (pid,) in found.fetchall() if pid != direct.info.backend_pid]
        assert stuck
        for pid in stuck:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreTimeout, match="no answer in time"):
                store["v"]
            monkeypatch.undo()
            assert len(store["v"]) == 1, "on a new connection"
        finally:
            for pid in stuck:
                os.kill(pid, signal.SIGCONT)
            store.close()


@pytest.mark.service("redis")
def test_a_redis_that_is_down_lowers_the_tier_and_comes_back(server: RedisServer) -> None:
    store = RedisProfiles(server.url, read_seconds=PATIENT)
    shop = recommender(store, deadline=PATIENT)
    store.append("v", [event(ITEMS[2])])
    server.stop()
    try:
        answer = shop.recommend(ASKED)
        seen = shop.observe(event(ITEMS[2]), visitor_id="v", permission=Permission.ONLINE)
    finally:
        server.start()
    assert answer.tier is Tier.SESSION
    assert "online: online profiles: failed with DataError" in answer.basis.reasons
    assert (seen.stored, seen.reason) == (False, "online profiles: failed with DataError")
    assert shop.observe(event(ITEMS[2]), visitor_id="v", permission=Permission.ONLINE).stored
    assert shop.recommend(ASKED).tier is Tier.ONLINE


@pytest.mark.service("postgresql")
def test_a_postgresql_that_is_down_lowers_the_tier_and_comes_back(cluster: Cluster) -> None:
    with new_schema(cluster.url) as url:
        store = SqlAlchemyProfiles(url, read_seconds=PATIENT)
        shop = recommender(store, deadline=PATIENT)
        store.append("v", [event(ITEMS[2])])
        cluster.stop()
        try:
            answer = shop.recommend(ASKED)
        finally:
            cluster.start()
        assert answer.tier is Tier.SESSION
        assert "online: online profiles: failed with DataError" in answer.basis.reasons
        assert shop.recommend(ASKED).tier is Tier.ONLINE
        store.close()


# ---- By URL ------------------------------------------------------------------------------------------------


@pytest.mark.service("redis")
def test_the_command_line_purges_stores_by_url(tmp_path: Path, redis_url: str, postgresql: str) -> None:
    from typer.testing import CliRunner

    from consentier.cli.app import app

    ledger = f"sqlite:///{tmp_path / 'consents.db'}"
    with Ledger.open(ledger) as opened:
        opened.append([ConsentRecord("r", "v", "visitor", "online", "granted", AT, AT)])
    with new_schema(postgresql) as url:
        urls = [with_prefix(redis_url, "cli"), url]
        for each in urls:
            store = open_profiles(each)
            store.append("v", [event("a")])
            store.close()
        options = [part for each in urls for part in ("--online-profiles", each)]
        command = ["consent", "withdraw", "v", "--source", "online", "--kind", "visitor", "--ledger", ledger]
        done = CliRunner().invoke(app, [*command, *options, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["profile_rows_purged"] == 2
        for each in urls:
            store = open_profiles(each, create=False)
            assert store.export("v") == []
            store.close()
