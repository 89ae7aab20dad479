"""A service that forks its workers: threads and locks that were there before the fork hold nobody up."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import ITEMS, LINEAR, bundles, engine, write_linear
from forks import in_forked_process

from consentier.consent import Ledger, Permission, Tier
from consentier.models.bundle import open_bundle
from consentier.serving import Request
from consentier.serving.asynchronous import AsyncRecommender
from consentier.serving.clock import forward_only, utc_now
from consentier.serving.experiment import Experiment
from consentier.serving.outcomes import OutcomeLog, outcome_lines
from consentier.serving.reloading import ReloadingRecommender
from consentier.serving.trending import Trending
from consentier.writing import put_directory

QUESTION = Request(session=ITEMS[:2], permission=Permission.NONE, n=5)
FOR_EVER = 10**6
"""Seconds between two looks: a look that comes is not one that was due."""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with bundles of all tiers."""
    return shutil.copytree(bundles(), tmp_path / "bundles")


def publish(shop: Path) -> str:
    """Replace the bundle of the session tier; say the new one's digest."""
    digest = write_linear(shop.parent / "new", Tier.SESSION, seed=50)
    former = put_directory(shop.parent / "new", shop / Tier.SESSION)
    assert former is not None
    shutil.rmtree(former)
    return digest


def digest_of(asked: ReloadingRecommender) -> str | None:
    return asked.recommend(QUESTION).basis.bundle_digest


def reloading_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "consentier-reload"]


def wait_until(holds: Callable[[], bool]) -> None:
    """Whoever waits in vain is ended by `in_forked_process`."""
    while not holds():
        time.sleep(0.005)


def test_the_thread_starts_again_with_the_first_request_and_looks_at_once(shop: Path) -> None:
    with ReloadingRecommender(shop, every=FOR_EVER) as asked:
        new = publish(shop)

        def follows() -> None:
            assert reloading_threads() == []
            assert digest_of(asked) in {new, open_bundle(bundles() / "session").digest}
            wait_until(lambda: digest_of(asked) == new)
            assert len(reloading_threads()) == 1
            asked.stop()
            assert reloading_threads() == []

        in_forked_process(follows)
        assert digest_of(asked) != new
        assert len(reloading_threads()) == 1


def test_one_that_starts_in_the_forked_process_looks_at_once_too(shop: Path) -> None:
    asked = ReloadingRecommender(shop, every=FOR_EVER)
    new = publish(shop)

    def follows() -> None:
        digest_of(asked)
        assert reloading_threads() == [], "nobody has started it"
        with asked:
            wait_until(lambda: digest_of(asked) == new)

    in_forked_process(follows)


def test_many_requests_at_once_start_one_thread(shop: Path) -> None:
    with ReloadingRecommender(shop, every=FOR_EVER) as asked:

        def one() -> None:
            threads = [threading.Thread(target=digest_of, args=(asked,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(reloading_threads()) == 1

        in_forked_process(one)


def test_a_forked_process_may_fork_again(shop: Path) -> None:
    with ReloadingRecommender(shop, every=FOR_EVER) as asked:
        new = publish(shop)
        in_forked_process(lambda: in_forked_process(lambda: wait_until(lambda: digest_of(asked) == new)))


def test_stopped_before_or_in_the_forked_process_it_stays_stopped(shop: Path) -> None:
    def stays() -> None:
        asked.stop()
        digest_of(asked)
        assert reloading_threads() == []

    asked = ReloadingRecommender(shop, every=FOR_EVER)
    asked.start()
    in_forked_process(stays)
    asked.stop()
    in_forked_process(stays)


def test_a_request_is_answered_also_where_no_thread_can_be_started(
    shop: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with ReloadingRecommender(shop, every=FOR_EVER) as asked:

        def answers() -> None:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse)
                assert asked.recommend(QUESTION).tier is Tier.SESSION
            assert "bundles are not followed: can't start new thread" in caplog.text
            digest_of(asked)
            assert len(reloading_threads()) == 1

        in_forked_process(answers)


def test_a_fork_in_the_middle_of_a_look_leaves_no_lock_behind(shop: Path) -> None:
    class Source:
        directory = shop

        def __init__(self) -> None:
            self.within, self.go_on = threading.Event(), threading.Event()
            self.go_on.set()

        def fetch(self) -> dict[Tier, str]:
            self.within.set()
            self.go_on.wait()
            return {}

    source = Source()
    asked = ReloadingRecommender(source, every=FOR_EVER)
    source.within.clear()
    source.go_on.clear()
    looking = threading.Thread(target=asked.check)
    looking.start()
    source.within.wait()

    def looks() -> None:
        source.go_on.set()
        assert len(asked.check()) == len(LINEAR) + 1

    in_forked_process(looks)
    source.go_on.set()
    looking.join()


def test_a_clock_that_a_thread_was_reading_can_be_read() -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Instant(type(utc_now())):  # type: ignore[misc]
        """Takes its time to be compared, which a clock does under its lock."""

        def __ge__(self, other: Any) -> bool:
            inside.set()
            go_on.wait()
            return True

    told: Iterator[Any] = iter([Instant.now(utc_now().tzinfo), utc_now()])
    clock = forward_only(lambda: next(told))
    reading = threading.Thread(target=clock)
    reading.start()
    inside.wait()
    in_forked_process(clock)
    go_on.set()
    reading.join()


def test_answers_for_asyncio_do_not_wait_for_threads_that_stayed_behind() -> None:
    asked = AsyncRecommender(engine(), threads=1)

    def answers() -> None:
        assert asyncio.run(asked.recommend(QUESTION)) == engine().recommend(QUESTION)
        asyncio.run(asked.close())

    asyncio.run(asked.recommend(QUESTION))  # from here on a thread waits for work
    in_forked_process(answers)
    asyncio.run(asked.close())


def test_a_closed_one_stays_closed_in_a_forked_process() -> None:
    asked = AsyncRecommender(engine(), threads=1)
    asyncio.run(asked.close())

    def refuses() -> None:
        with pytest.raises(RuntimeError, match="shutdown"):
            asyncio.run(asked.recommend(QUESTION))

    in_forked_process(refuses)


def test_outcomes_that_wait_are_written_once_and_their_lock_holds_up_nobody(tmp_path: Path) -> None:
    experiment = Experiment("halves", "a salt for tests only", {"current": 0.5, "new": 0.5})
    log = OutcomeLog(tmp_path, experiment, every=FOR_EVER)
    shown = experiment.answer_id("new", Tier.ONLINE, named=False, bucket=None)

    def clicks() -> None:
        assert log.click(shown)
        log.flush()

    log.impression(shown)
    with log._lock:
        in_forked_process(clicks)
    log.flush()
    assert sorted((line.kind, line.count) for line in outcome_lines(tmp_path)) == [
        ("click", 1),
        ("impression", 1),
    ]


def test_counts_of_what_is_trending_stay_with_their_process_and_their_lock_holds_up_nobody() -> None:
    trending = Trending(min_visitors=1, every=0)

    def counts() -> None:
        assert trending.current().items == (), "nobody could be taken out of counts that stayed behind"
        assert trending.count("v-2", "b", utc_now())
        assert trending.current().items == ("b",)

    assert trending.count("v-1", "a", utc_now())
    with trending._lock:
        in_forked_process(counts)
    assert trending.current().items == ("a",)


def test_a_ledger_whose_connections_a_thread_was_noting_opens_its_own(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path / 'consents.db'}") as ledger:
        with ledger._store._lock:  # type: ignore[attr-defined]
            in_forked_process(lambda: ledger.position)
        assert ledger.position == 0
