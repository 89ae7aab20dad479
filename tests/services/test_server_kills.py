"""kill -9 of PostgreSQL and Redis: nobody is granted what no record grants, nobody who was purged comes back.

Some kills of the campaign (`benchmarks.reliability.server_kills`), and what it found, each by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from benchmarks.reliability.server_kills import KEEPING, LEDGER_KILLS, kill_postgresql, kill_redis
from benchmarks.reliability.servers import Cluster, RedisServer, running_redis
from engines import ITEMS, engine
from postgresql_schemas import new_schema
from profile_conformance import AT, event

from consentier.consent import ConsentRecord, Ledger, Tier
from consentier.errors import DataError, LedgerError
from consentier.serving import Recommender, Request
from consentier.serving.redis_profiles import RedisProfiles

PATIENT = 10.0  # seconds: these tests are not about speed

SNAPSHOTS = KEEPING["Redis, snapshots"]


# ---- PostgreSQL under a ledger -----------------------------------------------------------------------------


@pytest.mark.service("postgresql")
@pytest.mark.parametrize("name", LEDGER_KILLS)
def test_a_killed_postgresql_loses_nothing_and_grants_nothing(cluster: Cluster, name: str) -> None:
    result = kill_postgresql(cluster, name, kills=2, seed=1)
    assert result.problems == []
    assert result.survived == 2
    assert result.acknowledged > 4
    assert result.answers > result.denied


@pytest.mark.service("postgresql")
def test_while_postgresql_is_killed_a_lower_tier_answers(cluster: Cluster) -> None:
    shop = engine()
    asked = Request(visitor_id="v", session=ITEMS[:1], online_history=ITEMS[2:4], at=AT)
    with new_schema(cluster.url) as url, Ledger.open(url) as ledger:
        ledger.append([ConsentRecord("r", "v", "visitor", "online", "granted", AT, AT)])
        recommender = Recommender(
            shop.scorers, shop.popular, shop.policy, ledger=ledger, audit_key=b"a key for tests only"
        )
        assert recommender.recommend(asked).tier is Tier.ONLINE
        cluster.kill(backends=True)
        try:
            answer = recommender.recommend(asked)
            with pytest.raises(LedgerError, match="connection"):
                ledger.append([ConsentRecord("s", "v", "visitor", "online", "withdrawn", AT, AT)])
        finally:
            cluster.start()
        assert answer.tier is Tier.SESSION
        assert recommender.recommend(asked).tier is Tier.ONLINE, "a withdrawal that failed is not there"
        assert ledger.position == 1


# ---- Redis under profiles ----------------------------------------------------------------------------------


@pytest.mark.service("redis")
@pytest.mark.parametrize("name", KEEPING)
def test_a_killed_redis_brings_back_nobody_who_was_purged(redis_url: str, name: str) -> None:
    del redis_url  # says what to install
    result = kill_redis(name, kills=3, seed=1)
    assert result.problems == []
    assert result.survived == 3


@pytest.fixture
def snapshots(redis_url: str) -> Iterator[RedisServer]:
    """A server that keeps snapshots and no append-only file."""
    del redis_url  # says what to install
    with running_redis(*SNAPSHOTS) as server:
        yield server


@pytest.fixture
def direct(snapshots: RedisServer) -> Iterator[redis.Redis]:
    """A connection past the store."""
    with redis.Redis.from_url(snapshots.url) as client:
        yield client


def killed(server: RedisServer) -> None:
    server.stop()
    server.start()


def filled(server: RedisServer, **options: Any) -> RedisProfiles:
    """A store with profiles of v and w."""
    store = RedisProfiles(server.url, read_seconds=PATIENT, **options)
    for subject in "vw":
        store.append(subject, [event("a")])
        store.set_attributes(subject, {"age": 1}, at=AT)
    return store


@pytest.mark.service("redis")
def test_the_snapshot_of_before_does_not_bring_back_who_was_purged(
    snapshots: RedisServer, direct: redis.Redis
) -> None:
    store = filled(snapshots)
    direct.save()
    assert store.purge("v") == 2
    killed(snapshots)
    assert store.export("v") == []
    assert len(store["w"]) == 1, "the snapshot was read"
    killed(snapshots)
    assert store.purge("w") == 2, "also of those that were there when it started"
    killed(snapshots)
    assert list(store) == []


@pytest.mark.service("redis")
def test_a_snapshot_that_was_begun_before_is_not_enough(snapshots: RedisServer, direct: redis.Redis) -> None:
    store = filled(snapshots)
    direct.config_set("rdb-key-save-delay", 100_000)  # microseconds for each of five keys
    direct.bgsave()
    assert store.purge("v") == 2
    killed(snapshots)
    assert store.export("v") == []
    assert len(store["w"]) == 1


@pytest.mark.service("redis")
def test_what_nobody_snapshots_needs_no_snapshot(snapshots: RedisServer, direct: redis.Redis) -> None:
    store = filled(snapshots)
    assert store.purge("v") == 2
    assert direct.info("persistence")["rdb_saves"] == 0
    direct.save()
    assert store.purge("nobody") == 0
    assert direct.info("persistence")["rdb_saves"] == 1, "the last one is as new as the data"


@pytest.mark.service("redis")
def test_a_purge_that_a_snapshot_may_undo_is_not_acknowledged(
    snapshots: RedisServer, direct: redis.Redis
) -> None:
    store = filled(snapshots)
    direct.save()
    snapshot = snapshots.folder / "dump.rdb"
    snapshot.unlink()
    snapshot.mkdir()  # so that the next one cannot take its name
    with pytest.raises(DataError, match=r"rows are deleted, but .* the new snapshot failed"):
        store.purge("v")
    assert store.export("v") == []
    snapshot.rmdir()
    direct.save()
    assert store.purge("v") == 0
    killed(snapshots)
    assert store.export("v") == []


@pytest.mark.service("redis")
def test_a_server_that_refuses_a_snapshot_is_complained_of(redis_url: str) -> None:
    del redis_url  # says what to install
    with running_redis(*SNAPSHOTS, "--rename-command", "BGSAVE", "") as server:
        store = filled(server)
        with redis.Redis.from_url(server.url) as direct:
            direct.save()
            with pytest.raises(DataError, match=r"a new snapshot is refused") as failure:
                store.purge("v")
            assert "docs/profiles.md" in str(failure.value)
            direct.save()
        assert store.purge("v") == 0, "once its keeper has had one written"
        store.close()


@pytest.mark.service("redis")
def test_a_purge_waits_until_the_append_only_file_is_written(
    snapshots: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(snapshots, write_seconds=0.2)
    told = [(100, 50), (120, 60), (150, 10)]  # bytes that are written, bytes that wait

    def info(_section: str) -> dict[str, int]:
        written, waiting = told.pop(0) if len(told) > 1 else told[0]
        return {"aof_enabled": 1, "aof_current_size": written, "aof_buffer_length": waiting}

    monkeypatch.setattr(store._writer, "info", info)
    monkeypatch.setattr("consentier.serving.redis_profiles._POLL_SECONDS", 0.0)
    assert store.purge("v") == 2
    assert told == [(150, 10)]
    told[:] = [(200, 0)]
    assert store.purge("v") == 0, "nothing waits"
    told[:] = [(200, 50), (30, 50), (40, 0)]
    assert store.purge("v") == 0, "the file was written anew meanwhile"
    told[:] = [(200, 50), (200, 70)]
    with pytest.raises(DataError, match="append-only file is not written in time"):
        store.purge("v")


@pytest.mark.service("redis")
def test_a_server_that_does_not_tell_how_it_keeps_things_is_complained_of(
    snapshots: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(snapshots)
    monkeypatch.setattr(store._writer, "info", lambda _section: {"aof_enabled": 0})
    with pytest.raises(DataError, match="it does not tell 'rdb_saves'"):
        store.purge("v")
    assert store.export("v") == []
