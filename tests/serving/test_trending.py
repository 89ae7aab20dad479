"""What is trending: who counts how much, what is published, and where it shows."""

from __future__ import annotations

import dataclasses
import datetime as dt
import sys
import threading
from typing import Any

import pytest
from engines import CATALOGUE, ITEMS, bundles

from consentier.consent import ConsentRecord, Ledger, Permission, Tier
from consentier.serving import Event, Recommender, Request, patience
from consentier.serving import trending as trending_module
from consentier.serving.popular_scorer import PopularScorer
from consentier.serving.rules import Rules
from consentier.serving.trending import Trending, TrendingSnapshot

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)


class Clock:
    """Says what it was told."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> dt.datetime:
        return self.now


def counted(settings: dict[str, Any] | None = None) -> tuple[Trending, Clock]:
    clock = Clock()
    return Trending(**{"min_visitors": 1, "every": 0, **(settings or {})}, clock=clock), clock


def visit(trending: Trending, item: str, visitors: int, at: dt.datetime, first: int = 0) -> None:
    for number in range(first, first + visitors):
        assert trending.count(f"v-{number}", item, at)


def test_the_latest_count_most_and_nothing_counts_beyond_the_window() -> None:
    trending, clock = counted()
    visit(trending, "hour-ago", 6, NOON - 50 * MINUTE)
    visit(trending, "now", 2, NOON)
    assert trending.current().items == ("now", "hour-ago"), "50 minutes halve 6 visitors two and a half times"
    visit(trending, "hour-ago", 7, NOON - 50 * MINUTE, first=6)
    assert trending.current().items == ("hour-ago", "now")
    assert not trending.count("v-99", "too-old", NOON - 61 * MINUTE)
    clock.now += 15 * MINUTE
    assert trending.current().items == ("now",)
    clock.now += 60 * MINUTE
    assert trending.current().items == ()


def test_one_visitor_counts_once_however_often_they_click() -> None:
    trending, _ = counted({"min_visitors": 2})
    for minute in range(50):
        assert trending.count("v-1", "a", NOON - minute * MINUTE)
    for number in range(1000):
        trending.count("v-1", f"item-{number}", NOON)
    assert trending.current().items == ()
    assert trending.left_out == 1000 - 99, "a visitor counts for 100 items of a bucket"
    assert trending.count("v-2", "a", NOON)
    assert trending.current().items == ("a",)


def test_few_visitors_are_not_published_and_equal_items_stand_by_id() -> None:
    trending, _ = counted({"min_visitors": 3, "most_items": 2})
    for item, visitors in (("d", 3), ("b", 3), ("c", 3), ("a", 2)):
        visit(trending, item, visitors, NOON)
    assert trending.current().items == ("b", "c")


def test_unless_told_otherwise_four_visitors_are_too_few() -> None:
    trending = Trending(every=0, clock=Clock())
    visit(trending, "a", 4, NOON)
    visit(trending, "b", 5, NOON)
    assert trending.current().items == ("b",)


def test_a_full_bucket_takes_no_more_and_says_so() -> None:
    trending, clock = counted({"entries_per_bucket": 4})
    visit(trending, "a", 4, NOON)
    assert not trending.count("v-9", "a", NOON)
    assert trending.count("v-1", "a", NOON), "who counts already goes on counting"
    assert trending.left_out == 1
    clock.now += 5 * MINUTE
    assert trending.count("v-9", "a", clock.now)
    assert trending.purge("v-0") == 1
    assert sum(bucket.entries for bucket in trending._buckets.values()) == 4


def test_a_snapshot_lasts_its_seconds_and_whoever_wants_to_replay_is_told_of_each() -> None:
    told: list[TrendingSnapshot] = []
    trending, clock = counted({"every": 5.0, "published": told.append})
    assert trending.current().items == ()
    trending.count("v-1", "a", NOON)
    assert trending.current().items == ()
    clock.now += dt.timedelta(seconds=5)
    trending.count("v-1", "b", clock.now)
    assert trending.current().items == ("a", "b")
    trending.count("v-2", "c", clock.now)
    assert trending.current().items == ("a", "b")
    assert trending.purge("v-1") == 2, "a withdrawal is published at once"
    assert trending.current().items == ("c",)
    assert [snapshot.items for snapshot in told] == [("a", "b"), ("c",)]
    assert len({snapshot.digest for snapshot in told}) == 2


def test_a_reader_renews_what_no_event_has_renewed_and_never_waits() -> None:
    trending, clock = counted()
    visit(trending, "a", 1, NOON)
    held = trending.current()
    clock.now += 59 * MINUTE
    with trending._lock:
        assert trending.current() is held, "somebody else is at it"
    clock.now += 6 * MINUTE
    assert trending.current().items == ()


def test_whoever_is_told_may_fail() -> None:
    def fail(_: TrendingSnapshot) -> None:
        raise OSError("the disk is full")

    trending, _ = counted({"published": fail})
    assert trending.count("v-1", "a", NOON)
    assert trending.current().items == ("a",)


def test_many_threads_count_what_one_would() -> None:
    trending, _ = counted()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(part: int) -> None:
        for number in range(200):
            trending.count(f"v-{number}", f"item-{number % 7}", NOON - (number % 3) * 5 * MINUTE)
            trending.current()
            if number % 4 == part:
                trending.purge(f"other-{number}")

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    alone, _ = counted()
    for number in range(200):
        alone.count(f"v-{number}", f"item-{number % 7}", NOON - (number % 3) * 5 * MINUTE)
    assert trending.current() == alone.current()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"window": 7 * MINUTE}, ValueError, "multiple of bucket"),
        ({"half_life": dt.timedelta(0)}, ValueError, "half_life must be positive"),
        ({"every": -1}, ValueError, "every must be"),
        ({"min_visitors": 0}, ValueError, "min_visitors must be at least 1"),
        ({"most_items": 1.5}, TypeError, "most_items must be a whole number"),
        ({"share": 0}, ValueError, "above 0 and at most 1"),
        ({"share": "half"}, TypeError, "must be a number"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Trending(**settings)


# ---- Where it shows ----------------------------------------------------------------------------------------


def engine(**options: Any) -> Recommender:
    return Recommender.load(bundles(), **{"catalogue": CATALOGUE, "audit_key": b"key", **options})


HOT = TrendingSnapshot(("item-09", "pills", "sold-out", "unheard-of", "brand-new", "item-08", "item-00"), 0.5)


def test_what_is_trending_takes_its_share_of_the_popular_list() -> None:
    answer = engine(trending=HOT).recommend(Request(n=5, explain=True))
    assert answer.tier is Tier.POPULAR
    assert answer.items == ("item-09", "brand-new", "item-08", "item-00", "item-01")
    assert answer.basis.trending_digest == HOT.digest
    assert answer.explanations is not None
    assert [why.text for why in answer.explanations] == [
        *["Popular in this shop right now"] * 4,
        "Popular in this shop",
    ]
    assert answer.scores == (0.0,) * 5


def test_what_is_trending_fills_up_and_bars_what_is_in_the_list() -> None:
    plain, hot = engine(), engine(trending=dataclasses.replace(HOT, share=1.0))
    request = Request(session=["item-03"], n=13, exclude=["item-08"])
    before, after = plain.recommend(request), hot.recommend(request)
    scored = len(before.items) - before.basis.filled
    assert before.items[:scored] == after.items[:scored]
    assert sorted(before.items) == sorted(after.items)
    hot_items = [item for item in HOT.items if item in after.items[scored:]]
    assert list(after.items[scored:][: len(hot_items)]) == hot_items
    assert before.basis.trending_digest is None
    assert after.basis.trending_digest is not None


def test_caps_and_filters_hold_over_what_is_trending() -> None:
    facts = {item: {"kind": "a" if number % 2 else "b"} for number, item in enumerate(ITEMS)}
    rules = Rules.from_document({"caps": {"kind": 2}, "deny": ["item-09"]})
    hot = TrendingSnapshot(("item-09", "item-07", "item-05", "item-03", "item-02"), 1.0)
    capped = engine(catalogue=facts, rules=rules, trending=hot)
    assert capped.recommend(Request(n=9)).items == ("item-07", "item-05", "item-02", "item-00")
    filtered = engine(catalogue=facts, filter_by=["kind"], trending=hot).recommend(
        Request(n=3, where="kind == 'b'", exclude=["item-02"])
    )
    assert filtered.items == ("item-00", "item-04", "item-06")


def test_an_answer_that_nothing_fills_up_names_no_snapshot() -> None:
    answer = engine(trending=HOT).recommend(Request(session=["item-03"], n=1))
    assert answer.basis.filled == 0
    assert answer.basis.trending_digest is None
    assert engine(trending=TrendingSnapshot()).recommend(Request(n=3)).basis.trending_digest is None


def test_trends_that_fail_leave_what_is_popular() -> None:
    class Fails:
        def current(self) -> TrendingSnapshot:
            raise OSError("no connection")

    assert engine(trending=Fails()).recommend(Request(n=3)).items == engine().recommend(Request(n=3)).items


def test_a_service_counts_and_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    trending, clock = counted()
    service = engine(trending=trending, clock=clock)
    told = service.observe(Event("brand-new"), visitor_id="v-1", permission=Permission.ONLINE)
    assert (told.stored, told.counted) == (False, True)
    assert "no store" in told.reason
    assert service.recommend(Request(n=2)).items[0] == "brand-new"
    assert not service.observe(Event("brand-new"), visitor_id="v-2", permission=Permission.NONE).counted
    monkeypatch.setattr(PopularScorer, "shows", lambda self, item: False)
    assert not service.observe(Event("item-01"), visitor_id="v-2", permission=Permission.ONLINE).counted


def test_a_snapshot_holds_item_ids() -> None:
    with pytest.raises(TypeError, match="item ids are strings"):
        TrendingSnapshot((3,))  # type: ignore[arg-type]
    assert TrendingSnapshot(("a",), 0.5).digest != TrendingSnapshot(("a",), 0.4).digest


def test_a_ledger_that_hangs_holds_up_few_events_and_empties_the_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hung = threading.Event()

    class Hangs:
        position = 0
        asked = 0

        def entries(self, after: int) -> Any:
            self.asked += 1
            hung.wait()
            return iter(())

    ledger = Hangs()
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 3600.0)
    monkeypatch.setattr(trending_module, "_LEDGER_SECONDS", 0.05)
    trending, _ = counted({"ledger": ledger})
    try:
        visit(trending, "a", 20, NOON)
        assert trending.current().items == ()
        assert ledger.asked == patience.LATE_IN_A_ROW
    finally:
        hung.set()


def test_however_much_is_new_in_the_ledger_all_of_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trending_module, "_ENTRIES_AT_ONCE", 3)
    ledger = Ledger()
    trending, _ = counted({"ledger": ledger})
    visit(trending, "a", 9, NOON)
    for number in range(7):
        record = ConsentRecord(f"r{number}", f"v-{number}", "visitor", "online", "withdrawn", NOON, NOON)
        ledger.append([record])
    visit(trending, "b", 1, NOON, first=9)
    assert trending._position == ledger.position == 7
    assert trending._visitors == {"a": 2, "b": 1}
