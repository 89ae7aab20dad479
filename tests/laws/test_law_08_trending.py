"""Eighth law, where items are trending: after a withdrawal the counts are those without the visitor.

At once where the withdrawal is taken in, with the next snapshot where another process did; for as long as a
bucket lives. Afterwards its key is gone, and with it every digest that was made under it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import given, settings
from hypothesis import strategies as st
from trending_world import BUCKET, BUCKETS, VISITORS, Step, World, steps

from consentier.consent import ConsentRecord, Resolution, Source
from consentier.serving import Event, Profiles, observing
from consentier.serving.trending import Trending, TrendingSnapshot, _Bucket
from consentier.training.withdrawal import withdraw

Case = tuple[list[Step], str, str]
"""What happens, who withdraws in the end, and how the counts learn of it."""

cases = st.tuples(steps, st.sampled_from(VISITORS), st.sampled_from(["told", "follows", "clicks again"]))


def held(world: World) -> tuple[Any, ...]:
    """All that is held, but for the keys and the digests under them."""
    counts = world.counts()
    buckets = {
        number: (bucket.entries, sorted(sorted(items) for items in bucket.visitors.values()))
        for number, bucket in world.trending._buckets.items()
        if bucket.visitors
    }
    return counts, buckets, world.trending.current()


def check_nothing_is_left_of_who_withdrew(case: Case) -> None:
    happened, who, how = case
    worlds = World(follows=how == "follows"), World(follows=how == "follows")
    with_, without = worlds
    with_.run(happened)
    without.run(
        [dataclasses.replace(step, does="rest") if step.visitor == who else step for step in happened]
    )
    for world in worlds:
        world.now += dt.timedelta(minutes=1)
    withdraw(
        with_.ledger,
        who,
        kind="visitor",
        source=Source.ONLINE,
        at=with_.now,
        profiles={Source.ONLINE: [with_.trending]} if how == "told" else None,
    )
    if how == "clicks again":
        with_.step(Step(who, "click", minutes=0))
    assert held(with_) == held(without)


@settings(max_examples=150)
@given(cases)
def test_nothing_is_left_of_who_withdrew(case: Case) -> None:
    check_nothing_is_left_of_who_withdrew(case)


AGREED, CLICKED = Step("ann", "agree"), Step("ann", "click")


@breaks(
    Break(
        "only the running bucket is looked through",
        Trending._without,
        "in self._living()",
        "in [*self._living()][-1:]",
        ([AGREED, CLICKED, Step("ann", "click", "item-01", 6)], "ann", "told"),
    ),
    Break(
        "counts stay",
        _Bucket.discard,
        "self.counts[item] -= 1",
        "pass",
        ([AGREED, CLICKED], "ann", "told"),
    ),
    Break(
        "digests stay",
        _Bucket.discard,
        "self.visitors.pop(name, None)",
        "pass",
        ([AGREED, CLICKED], "ann", "told"),
    ),
    Break(
        "other processes' withdrawals are not read",
        Trending._take_withdrawals,
        "if self._ledger is None:",
        "if True:",
        ([AGREED, CLICKED], "ann", "follows"),
    ),
    Break(
        "who withdrew and clicks is not taken out",
        observing.observe,
        "_take_back(arrival, counting)",
        "pass",
        ([AGREED, CLICKED], "ann", "clicks again"),
    ),
)
def test_what_is_left_of_who_withdrew_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_nothing_is_left_of_who_withdrew, cases, broken)


def test_a_new_grant_between_two_looks_legalises_nothing_earlier() -> None:
    world = World(follows=True)
    world.run([AGREED, CLICKED])
    world.trending._every = dt.timedelta(hours=1)
    for does in ("withdraw", "agree"):
        world.step(Step("ann", does))
    assert world.counts() == {}
    world.step(CLICKED)
    assert [*world.counts().values()] == [{"item-00": 1}]


@pytest.mark.parametrize(("said", "left"), [("granted", {}), ("lifted", {"item-00": 1})])
def test_what_a_child_counts_goes_when_its_parents_are_heard_of(said: str, left: dict[str, int]) -> None:
    """Unless what is heard is that it is none."""
    world = World(follows=True)
    world.run([AGREED, CLICKED])
    world.now += dt.timedelta(minutes=1)
    world.ledger.append(
        [ConsentRecord("r", "ann", "visitor", "parental", said, world.now, world.now, evidence="letter")]
    )
    assert [*world.counts().values()] == ([left] if left else [])


def check_an_event_that_a_withdrawal_crosses_leaves_nothing(world: World) -> None:
    """The withdrawal is taken in after the permission was looked at and before the event is counted."""
    world.step(AGREED)
    count = world.trending.count

    def crossed(*arguments: Any) -> bool:
        world.step(Step("ann", "withdraw", minutes=0))
        return count(*arguments)

    world.trending.count = crossed  # type: ignore[method-assign]
    told = world.step(CLICKED)
    assert told is not None
    assert not told.counted
    assert world.counts() == {}


def test_an_event_that_a_withdrawal_crosses_leaves_nothing() -> None:
    check_an_event_that_a_withdrawal_crosses_leaves_nothing(World())


def test_a_crossing_that_leaves_something_would_be_noticed() -> None:
    broken = Break("nothing is taken back", observing._taken_in, "_take_back(arrival, counting)", "pass")
    with broken.applied():
        try:
            check_an_event_that_a_withdrawal_crosses_leaves_nothing(World())
        except AssertionError:
            return
    raise AssertionError("a count that outlives a withdrawal was not noticed")


def test_a_ledger_that_cannot_tell_lets_nothing_count_and_is_asked_again_all_the_same() -> None:
    """A fault in counting must not leave in the store what a withdrawal has crossed."""

    class Tells:
        """What the router asks of a ledger, and no more: nobody knows since when a permission holds."""

        online = True

        def resolve(self, **_: Any) -> Resolution:
            return Resolution(online=self.online)

    class Store(dict[str, Any]):
        def append(self, subject: str, events: Any) -> None:
            self[subject] = events
            ledger.online = False

        def purge(self, subject: str) -> int:
            return len(self.pop(subject, ()))

    ledger, store = Tells(), Store()
    world = World()
    asked: Any = dataclasses.replace(world.recommender, ledger=ledger)  # type: ignore[arg-type]
    assert not asked.observe(Event("item-00"), visitor_id="ann").counted
    told = dataclasses.replace(asked, profiles=Profiles(online=store)).observe(
        Event("item-00"), visitor_id="ann"
    )
    assert (told.stored, told.counted, store) == (False, False, {})
    assert world.counts() == {}


def test_a_ledger_that_fails_lets_nothing_trend() -> None:
    world = World(follows=True)
    world.run([AGREED, CLICKED])
    assert world.trending.current().items == ("item-00",)
    world.trending._ledger = None
    world.renew()
    assert world.trending.current().items == ("item-00",)
    world.trending._ledger = object()
    world.renew()
    assert world.trending.current() == TrendingSnapshot()


def test_after_the_window_nothing_is_held() -> None:
    world = World()
    world.run([AGREED, CLICKED])
    keys = [bucket._key for bucket in world.trending._buckets.values()]
    world.now += BUCKET * BUCKETS
    assert world.trending.current().items == ()
    assert world.trending._buckets == {}
    world.run([CLICKED])
    assert all(bucket._key not in keys for bucket in world.trending._buckets.values())
    assert "ann" not in repr([bucket.visitors for bucket in world.trending._buckets.values()])
