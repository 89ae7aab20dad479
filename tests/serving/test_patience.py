"""A store that is slow, hangs, fails or comes and goes costs a question its deadline at most, and tiers."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import heapq
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from engines import ITEMS, engine
from hypothesis import given, settings
from hypothesis import strategies as st
from standing_clock import Clock

from consentier.consent import Permission, Tier
from consentier.errors import DataError, StoreTimeout
from consentier.serving import Event, Profiles, Recommender, Request, patience
from consentier.serving.patience import LATE_IN_A_ROW, PAUSE_SECONDS, Guard, StoreUnread

HISTORY = (Event(ITEMS[2]), Event(ITEMS[3]))
BOTH = Permission.ONLINE | Permission.CRM
ASKED = Request(permission=BOTH, linked=True, visitor_id="v", customer_id="c", session=ITEMS[:1])
DEADLINE = 0.1
NO_ANSWER = "no answer within 100 ms"
GAVE_UP = "no answer within the store's own deadline"
NOT_ASKED = "not asked, as it has just given no answer in time"


class Store(Mapping[str, Any]):
    """Answers as its current behaviour does, and counts."""

    def __init__(self, behaviour: Callable[[], object] = lambda: None) -> None:
        self.behaviour = behaviour
        self.asked = 0
        self.inside = 0
        self.most_inside = 0
        self._lock = threading.Lock()

    def __getitem__(self, key: str) -> Any:
        with self._lock:
            self.asked += 1
            self.inside += 1
            self.most_inside = max(self.inside, self.most_inside)
        try:
            self.behaviour()
        finally:
            with self._lock:
                self.inside -= 1
        return HISTORY

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class InTime(Store):
    """Gives up by itself in time."""

    answers_within = 0.01


def fail() -> None:
    raise ConnectionError("visitor v bought pills")


def give_up() -> None:
    raise StoreTimeout("visitor v bought pills")


def shop(online: Any, **more: Any) -> Recommender:
    return dataclasses.replace(
        engine(), profiles=Profiles(online, **{"crm": {"c": HISTORY}, "deadline": DEADLINE, **more})
    )


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.monotonic()
    return call(), time.monotonic() - started


def test_a_store_that_hangs_lowers_the_tier_at_its_deadline(hung: threading.Event) -> None:
    store = Store(hung.wait)
    asked = shop(store)
    answer, seconds = timed(lambda: asked.recommend(ASKED))
    assert answer.tier is Tier.CRM, "neither fused nor online could be read"
    assert answer.basis.sources == ("crm",)
    assert f"fused: online profiles: {NO_ANSWER}" in answer.basis.reasons
    assert f"online: online profiles: {NO_ANSWER}" in answer.basis.reasons
    assert 2 * DEADLINE <= seconds < 2 * DEADLINE + 1
    again = asked.recommend(ASKED)
    assert f"fused: online profiles: {NO_ANSWER}" in again.basis.reasons
    assert f"online: online profiles: {NOT_ASKED}" in again.basis.reasons
    assert store.asked == LATE_IN_A_ROW


def test_a_hanging_store_of_attributes_lowers_the_tier_too(hung: threading.Event) -> None:
    answer = shop({"v": HISTORY}, attributes=Store(hung.wait)).recommend(ASKED)
    assert answer.tier is Tier.ONLINE
    assert f"fused: attributes: {NO_ANSWER}" in answer.basis.reasons


def test_only_what_may_be_read_is_waited_for(hung: threading.Event) -> None:
    store = Store(hung.wait)
    asked = shop(store)
    assert asked.recommend(dataclasses.replace(ASKED, permission=Permission.NONE)).tier is Tier.SESSION
    assert asked.recommend(dataclasses.replace(ASKED, permission=Permission.CRM)).tier is Tier.SESSION
    assert asked.recommend(dataclasses.replace(ASKED, online_history=HISTORY)).tier is Tier.FUSED
    assert store.asked == 0


@pytest.mark.usefixtures("clock")
def test_until_the_late_answer_is_there_or_a_pause_is_over_it_is_not_asked_again(
    hung: threading.Event,
) -> None:
    store = Store(hung.wait)
    asked = shop(store)
    for _ in range(20):
        assert asked.recommend(ASKED).tier is Tier.CRM
    assert store.asked == LATE_IN_A_ROW
    hung.set()
    wait_for(lambda: store.inside == 0)
    wait_for(lambda: asked.recommend(ASKED).tier is Tier.FUSED)


def test_after_a_pause_one_request_finds_out_for_all(hung: threading.Event, clock: Clock) -> None:
    store = Store(hung.wait)
    asked = shop(store)
    for _ in range(2):
        asked.recommend(ASKED)
    clock.now += PAUSE_SECONDS
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(asked.recommend, [ASKED] * 6))
    assert {answer.tier for answer in answers} == {Tier.CRM}
    assert store.asked == LATE_IN_A_ROW + 1


def ask_often(guard: Guard, clock: Clock, in_time: Callable[[int], bool], times: int) -> Counter[str]:
    """Ask so often, a tick after another; count what came of it."""
    found: Counter[str] = Counter()
    for number in range(times):

        def question(number: int = number) -> None:
            if not in_time(number):
                clock.now += DEADLINE
                raise StoreTimeout

        try:
            guard.ask(question, DEADLINE)
        except StoreUnread as unread:
            found[str(unread).removeprefix("online profiles: ")] += 1
        else:
            found["answered"] += 1
        clock.now += 0.001
    return found


@pytest.mark.parametrize("every", [2, 10, 100])
def test_late_answers_between_others_cost_their_own_requests_the_profile_and_no_more(
    every: int, clock: Clock
) -> None:
    guard = Guard("online profiles", InTime())
    found = ask_often(guard, clock, lambda number: number % every > 0, 1000)
    assert found == {"answered": 1000 - 1000 // every, GAVE_UP: 1000 // every}


def test_a_store_that_answers_every_third_time_is_asked_on(clock: Clock) -> None:
    guard = Guard("online profiles", InTime())
    found = ask_often(guard, clock, lambda number: number % LATE_IN_A_ROW == 0, 300)
    assert found == {"answered": 100, GAVE_UP: 200}


def test_one_that_hangs_costs_three_deadlines_and_then_one_a_pause(clock: Clock) -> None:
    guard = Guard("online profiles", InTime())
    found = ask_often(guard, clock, lambda _: False, 10_000)
    pauses = int((clock.now - LATE_IN_A_ROW * DEADLINE) / PAUSE_SECONDS)
    assert LATE_IN_A_ROW + pauses * 0.9 - 1 <= found[GAVE_UP] <= LATE_IN_A_ROW + 3 + pauses
    assert found[GAVE_UP] + found[NOT_ASKED] == 10_000
    clock.now += PAUSE_SECONDS
    assert ask_often(guard, clock, lambda _: True, 100) == {"answered": 100}, "one finds out for all"


def test_what_one_stall_makes_late_counts_once(clock: Clock) -> None:
    state = patience._State()
    for stall in range(1, LATE_IN_A_ROW + 1):
        began = clock.now
        clock.now += DEADLINE
        assert state.resume_at is None
        for _ in range(8):
            state.was_late(began, None)
        assert state.late_in_a_row == stall
    for pause in (1 / 8, 1 / 4, 1 / 2, 1, 1, 1):
        assert state.resume_at == clock.now + pause * PAUSE_SECONDS
        clock.now = state.resume_at
        assert state.may_try()
        state.was_late(clock.now, None)


@given(
    starts=st.lists(st.floats(0, 0.2), min_size=1, max_size=8),
    gaps=st.lists(st.floats(0, 0.05), min_size=1, max_size=9),
)
def test_as_long_as_nobody_is_answered_each_thread_waits_three_times_and_then_one_at_a_time(
    starts: list[float], gaps: list[float]
) -> None:
    """Threads that ask a hanging store again and again, whenever they happen to."""
    clock, state, gap = Clock(), patience._State(), itertools.cycle(gaps)
    left_alone_at = float("inf")
    first: Counter[int] = Counter()
    later: list[tuple[float, float]] = []
    # When, a number that no two have, which thread, and when it asked what it gives up now (None: it asks).
    number = itertools.count()
    due: list[tuple[float, int, int, float | None]] = []
    for thread, start in enumerate(starts):
        due.append((start, next(number), thread, None))
    heapq.heapify(due)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "time", clock)
        while clock.now < 5:
            clock.now, _, thread, began = heapq.heappop(due)
            if began is not None:
                state.was_late(began, None)
                if began <= left_alone_at:
                    first[thread] += 1
                else:
                    later.append((began, clock.now))
                if state.resume_at is not None:
                    left_alone_at = min(left_alone_at, clock.now)
            elif state.resume_at is None or state.may_try():
                heapq.heappush(due, (clock.now + DEADLINE, next(number), thread, clock.now))
                continue
            heapq.heappush(due, (clock.now + next(gap) + 0.001, next(number), thread, None))
    assert max(first.values()) <= LATE_IN_A_ROW
    assert first.total() >= LATE_IN_A_ROW
    assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(later)), "one at a time"
    assert len(later) <= 3 + 5 / PAUSE_SECONDS, "of the pauses before the long ones three are shorter"


def test_of_several_that_wait_for_the_late_answer_one_asks_again(hung: threading.Event, clock: Clock) -> None:
    state = patience._State()
    late = state.threads.start(hung.wait)
    wait_for(late.running)
    for _ in range(LATE_IN_A_ROW):
        state.was_late(clock.now, late)
    assert not state.may_try()
    hung.set()
    assert late.result(30)
    assert state.may_try()
    assert not state.may_try(), "it is not known yet whether the next answer comes in time"
    state.came(clock.now, DEADLINE)
    assert state.may_try()


@pytest.mark.parametrize("fails", [False, True], ids=["answers", "fails"])
def test_what_no_deadline_cuts_short_counts_by_the_clock(fails: bool, clock: Clock) -> None:
    """A disk that hangs, say, or a name server; a busy machine is not meant."""

    def slow(seconds: float) -> str:
        clock.now += seconds
        if fails:
            raise ConnectionError("no such host")
        return "the profile"

    guard = Guard("online profiles", InTime())
    for seconds in [PAUSE_SECONDS] * LATE_IN_A_ROW + [5.0] * LATE_IN_A_ROW:
        question = functools.partial(slow, seconds)
        if fails:
            with pytest.raises(StoreUnread, match="failed with ConnectionError"):
                guard.ask(question, DEADLINE)
        else:
            assert guard.ask(question, DEADLINE) == "the profile", "it is here, so it is used"
    with pytest.raises(StoreUnread, match=NOT_ASKED):
        guard.ask(question, DEADLINE)
    clock.now += PAUSE_SECONDS
    assert ask_often(guard, clock, lambda _: True, 10) == {"answered": 10}


def test_a_store_that_never_answers_holds_up_few_threads_and_not_the_end_of_the_process(
    hung: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.0)  # it is asked again each time
    store = Store(hung.wait)
    asked = shop(store, deadline=0.01)
    for _ in range(100):
        assert asked.recommend(ASKED).tier is Tier.CRM
    assert store.most_inside == patience._THREADS
    assert asked.profiles is not None
    assert asked.profiles._guards["online"]._state.threads._running == patience._THREADS
    mine = [thread for thread in threading.enumerate() if thread.name == "consentier-stores"]
    assert all(thread.daemon for thread in mine)


def test_threads_that_have_nothing_to_do_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_IDLE_SECONDS", 0.05)
    store = Store()
    guard = Guard("online profiles", store)
    for _ in range(3):
        assert guard.ask(lambda: store["v"], 30) == HISTORY
        wait_for(lambda: guard._state.threads._running == 0)


def test_a_failing_store_is_asked_each_time_and_quotes_nobody() -> None:
    store = Store(fail)
    asked = shop(store)
    for _ in range(3):
        answer = asked.recommend(ASKED)
        assert answer.tier is Tier.CRM
        assert "fused: online profiles: failed with ConnectionError" in answer.basis.reasons
        assert "pills" not in " ".join(answer.basis.reasons)
    assert store.asked == 6
    store.behaviour = lambda: None
    assert asked.recommend(ASKED).tier is Tier.FUSED


@pytest.mark.parametrize(("error", "told"), [(StoreTimeout, GAVE_UP), (TimeoutError, NO_ANSWER)])
def test_a_store_that_gives_up_by_itself_is_asked_without_a_thread_and_then_left_alone(
    error: type[Exception], told: str, clock: Clock
) -> None:
    seen: list[str] = []

    def behave() -> None:
        seen.append(threading.current_thread().name)
        if len(seen) <= LATE_IN_A_ROW:
            raise error("visitor v bought pills")

    store = InTime(behave)
    asked = shop(store)
    answer = asked.recommend(ASKED)
    assert f"fused: online profiles: {told}" in answer.basis.reasons
    for _ in range(3):
        assert asked.recommend(ASKED).tier is Tier.CRM
    assert store.asked == LATE_IN_A_ROW
    clock.now += PAUSE_SECONDS
    assert asked.recommend(ASKED).tier is Tier.FUSED
    assert set(seen) == {threading.current_thread().name}


def test_a_store_whose_own_deadline_is_longer_gets_a_thread(hung: threading.Event) -> None:
    store = InTime(hung.wait)
    asked = shop(store, deadline=0.005)
    answer, seconds = timed(lambda: asked.recommend(ASKED))
    assert answer.tier is Tier.CRM
    assert seconds < 1


def test_dictionaries_and_histories_in_the_request_get_no_thread() -> None:
    before = threading.active_count()
    asked = shop(MappingProxyType({"v": HISTORY}), attributes={"c": {"age": 30}})
    assert asked.recommend(ASKED).tier is Tier.FUSED
    assert asked.profiles is not None
    assert all(guard._state.threads._running == 0 for guard in asked.profiles._guards.values())
    assert threading.active_count() <= before


def test_all_devices_are_read_within_one_deadline() -> None:
    store = InTime(lambda: time.sleep(0.06))
    profiles = Profiles(store, deadline=DEADLINE)
    assert len(profiles.online_of(["a"])) == 1
    store.asked = 0
    with pytest.raises(StoreUnread, match="no answer within"):
        profiles.online_of([f"device-{number}" for number in range(50)])
    assert store.asked < 5


def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    guard = Guard("online profiles", store)
    assert guard.ask(lambda: store["v"], 30) == HISTORY
    monkeypatch.setattr(os, "getpid", lambda: -1)
    first = guard._state
    assert guard.ask(lambda: store["v"], 30) == HISTORY
    assert guard._state is not first


def test_more_questions_than_could_be_answered_are_refused(hung: threading.Event) -> None:
    threads = patience._Threads()
    futures = [threads.start(hung.wait) for _ in range(patience._QUESTIONS)]
    with pytest.raises(TimeoutError):
        threads.start(hung.wait)
    hung.set()
    assert all(future.result(30) for future in futures)
    assert threads.start(lambda: 7).result(30) == 7


def test_the_deadline_is_an_option_and_the_stores_stay_known(hung: threading.Event) -> None:
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a positive number of seconds"):
            Profiles(deadline=wrong)
        with pytest.raises(ValueError, match="must be a positive number of seconds"):
            Profiles().within(wrong)
    first = Profiles(Store(hung.wait), deadline=0.01)
    for _ in range(LATE_IN_A_ROW):
        with pytest.raises(StoreUnread, match="no answer within 10 ms"):
            first.online_of(["v"])
    other = first.within(5.0)
    assert (other.deadline, first.deadline) == (5.0, 0.01)
    with pytest.raises(StoreUnread, match="not asked"):
        other.online_of(["v"])


BEHAVIOURS = {"sound": lambda: None, "failing": fail, "slow": lambda: time.sleep(0.004), "late": give_up}


@settings(max_examples=15)
@given(
    script=st.lists(st.sampled_from(sorted(BEHAVIOURS)), min_size=1, max_size=12),
    own=st.booleans(),
    threads=st.integers(1, 4),
)
def test_a_store_that_comes_and_goes_never_raises_anything_but_the_tier_that_it_allows(
    script: list[str], own: bool, threads: int
) -> None:
    """From several threads: each answer is the sound one, or one of a lower tier that says why."""
    steps = iter(script * 50)
    lock = threading.Lock()

    def behave() -> None:
        with lock:
            name = next(steps, "sound")
        BEHAVIOURS[name]()

    store = (InTime if own else Store)(behave)
    asked = shop(store, deadline=0.05)
    sound = {
        Tier.FUSED: shop({"v": HISTORY}).recommend(ASKED),
        Tier.ONLINE: dataclasses.replace(shop({"v": HISTORY}), scorers=without(Tier.FUSED)).recommend(ASKED),
        Tier.CRM: shop(Store(fail)).recommend(ASKED),
    }
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(asked.recommend, [ASKED] * 12))
    for answer in answers:
        expected = sound[answer.tier]
        assert (answer.items, answer.scores) == (expected.items, expected.scores)
        if answer.tier is not Tier.FUSED:
            assert any("online profiles: " in reason for reason in answer.basis.reasons)
    wait_for(lambda: store.inside == 0)
    steps = iter(())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "PAUSE_SECONDS", 0.0)
        wait_for(lambda: asked.recommend(ASKED).tier is Tier.FUSED)


def without(tier: Tier) -> dict[Tier, Any]:
    return {name: scorer for name, scorer in engine().scorers.items() if name is not tier}


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)


def test_what_a_store_raises_is_never_what_the_shop_sees() -> None:
    for error in (DataError, LookupError, RuntimeError, MemoryError):

        def behave(error: type[Exception] = error) -> None:
            raise error("visitor v bought pills")

        answer = shop(Store(behave)).recommend(ASKED)
        assert f"fused: online profiles: failed with {error.__name__}" in answer.basis.reasons
