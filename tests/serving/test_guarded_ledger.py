"""A ledger that hangs, fails or comes and goes: requests wait only so long, and doubt denies."""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import ITEMS, engine
from forks import in_forked_process
from standing_clock import Clock

from consentier.consent import ConsentRecord, Ledger, Permission, Resolution, Tier
from consentier.errors import LedgerError, LedgerTimeout, StoreTimeout
from consentier.serving import Answer, Event, Profiles, Recommender, Request
from consentier.serving.guarded_ledger import LEDGER_SECONDS, GuardedLedger
from consentier.serving.metrics import ReasonClass, reason_of
from consentier.serving.patience import LATE_IN_A_ROW, NOT_ASKED, PAUSE_SECONDS
from consentier.serving.trending import Trending

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HISTORY = (Event(ITEMS[2], AT), Event(ITEMS[3], AT))
ASKED = Request(visitor_id="v", session=ITEMS[:1], online_history=HISTORY, at=AT)
YES = Resolution(online=True, crm=True, linked=True)
NO_ANSWER = "ledger: no answer within 50 ms"
GAVE_UP = "ledger: no answer within the store's own deadline"
LEFT_ALONE = f"ledger: {NOT_ASKED}"


class Asked:
    """A ledger that permits everything, once its current behaviour is over; it counts."""

    def __init__(self, behaviour: Callable[[], object] = lambda: None) -> None:
        self.behaviour = behaviour
        self.asked = 0
        self.threads: set[str] = set()

    def resolve(self, **question: Any) -> Resolution:
        self.asked += 1
        self.threads.add(threading.current_thread().name)
        self.behaviour()
        return YES

    def linked_since(self, customer_id: str, **question: Any) -> dict[str, int]:
        self.asked += 1
        self.behaviour()
        return {"v": 0}


class InPlace(Asked):
    """Gives up by itself in time, so that it is asked where the request runs."""

    answers_within = 0.01


def shop(ledger: Any, deadline: float = 0.05, **more: Any) -> Recommender:
    return dataclasses.replace(engine(), ledger=ledger, ledger_deadline=deadline, **more)


def give_up() -> None:
    raise LedgerTimeout("visitor v bought pills")


def fail() -> None:
    raise LedgerError("visitor v bought pills")


def denied(answer: Answer, reason: str) -> bool:
    """Whether an answer is the session's, reads nothing more, and says why."""
    assert (answer.tier, answer.basis.sources) == (Tier.SESSION, ("session",))
    assert answer.basis.ledger_position is None
    assert answer.basis.reasons[0] == "the consent ledger failed"
    assert "pills" not in " ".join(answer.basis.reasons)
    return reason in answer.basis.reasons


@pytest.mark.usefixtures("clock")
def test_one_that_hangs_is_waited_for_three_times_and_then_requests_are_denied_at_once(
    hung: threading.Event,
) -> None:
    ledger = Asked(hung.wait)
    asked = shop(ledger)
    answers = [asked.recommend(ASKED) for _ in range(20)]
    assert all(denied(answer, NO_ANSWER) for answer in answers[:LATE_IN_A_ROW])
    assert all(denied(answer, LEFT_ALONE) for answer in answers[LATE_IN_A_ROW:])
    assert ledger.asked == LATE_IN_A_ROW
    assert {reason_of(answer) for answer in answers[:LATE_IN_A_ROW]} == {ReasonClass.LEDGER_FAULT}
    assert {reason_of(answer) for answer in answers[LATE_IN_A_ROW:]} == {ReasonClass.LEDGER_NOT_ASKED}


@pytest.mark.parametrize("error", [LedgerTimeout, StoreTimeout, TimeoutError])
def test_one_that_gives_up_by_itself_is_left_alone_until_a_probe_succeeds(
    error: type[Exception], clock: Clock
) -> None:
    def behave() -> None:
        raise error("visitor v bought pills")

    ledger = InPlace(behave)
    asked = shop(ledger)
    for _ in range(10):
        asked.recommend(ASKED)
    assert ledger.asked == LATE_IN_A_ROW
    clock.now += PAUSE_SECONDS
    for _ in range(10):
        asked.recommend(ASKED)
    assert ledger.asked == LATE_IN_A_ROW + 1, "one probe, which failed"
    clock.now += PAUSE_SECONDS
    ledger.behaviour = lambda: None
    assert [asked.recommend(ASKED).tier for _ in range(3)] == [Tier.ONLINE] * 3
    assert ledger.asked == LATE_IN_A_ROW + 4
    assert ledger.threads == {threading.current_thread().name}


def test_an_answer_that_comes_too_late_permits_nothing_then_or_later(
    hung: threading.Event, clock: Clock
) -> None:
    ledger = Asked(hung.wait)
    asked = shop(ledger)
    for _ in range(LATE_IN_A_ROW):
        assert denied(asked.recommend(ASKED), NO_ANSWER)
    hung.set()  # all of them say yes now, and nobody listens
    ledger.behaviour = fail
    clock.now += PAUSE_SECONDS
    for _ in range(3):
        assert denied(asked.recommend(ASKED), "ledger: failed with LedgerError")


def test_what_was_permitted_a_moment_ago_is_not_while_the_ledger_is_silent() -> None:
    ledger = InPlace()
    asked = shop(ledger)
    assert asked.recommend(ASKED).tier is Tier.ONLINE
    ledger.behaviour = give_up
    for _ in range(LATE_IN_A_ROW):
        assert denied(asked.recommend(ASKED), GAVE_UP)


@pytest.mark.usefixtures("clock")
def test_one_that_gives_up_by_itself_before_a_long_deadline_is_left_alone_too() -> None:
    ledger = Asked(give_up)
    asked = shop(ledger, deadline=30.0)
    answers = [asked.recommend(ASKED) for _ in range(LATE_IN_A_ROW + 3)]
    assert [denied(answer, LEFT_ALONE) for answer in answers] == [False] * LATE_IN_A_ROW + [True] * 3
    assert ledger.asked == LATE_IN_A_ROW


@pytest.mark.usefixtures("clock")
def test_one_that_fails_at_once_is_asked_each_time_and_quotes_nobody() -> None:
    ledger = InPlace(fail)
    asked = shop(ledger)
    for _ in range(10):
        assert denied(asked.recommend(ASKED), "ledger: failed with LedgerError")
    assert ledger.asked == 10
    ledger.behaviour = lambda: None
    assert asked.recommend(ASKED).tier is Tier.ONLINE


@pytest.mark.usefixtures("clock")
def test_where_the_devices_cannot_be_told_fused_does_not_answer() -> None:
    class LinksHang(InPlace):
        def linked_since(self, customer_id: str, **question: Any) -> dict[str, int]:
            raise LedgerTimeout

    asked = shop(LinksHang(), profiles=Profiles(online={"v": HISTORY}, crm={"c": HISTORY}))
    question = dataclasses.replace(ASKED, customer_id="c", linked=True, online_history=None)
    answer = asked.recommend(question)
    assert answer.tier is Tier.ONLINE
    assert f"fused: {GAVE_UP}" in answer.basis.reasons
    assert reason_of(answer) is ReasonClass.FAULT


@pytest.mark.usefixtures("clock")
def test_what_is_known_of_a_ledger_goes_where_the_ledger_goes() -> None:
    """Into the recommenders that reloading and experiments make, and into none over another ledger."""
    ledger = InPlace(give_up)
    asked = shop(ledger)
    for _ in range(LATE_IN_A_ROW):
        asked.recommend(ASKED)
    for other in (dataclasses.replace(asked, problems={}), dataclasses.replace(asked, ledger_deadline=2.0)):
        assert denied(other.recommend(ASKED), LEFT_ALONE)
    assert dataclasses.replace(asked, ledger=InPlace()).recommend(ASKED).tier is Tier.ONLINE
    assert dataclasses.replace(asked, ledger=None).guarded is None


@pytest.mark.usefixtures("clock")
def test_events_are_not_stored_while_it_is_left_alone() -> None:
    class Store(dict[str, Any]):
        def append(self, subject: str, events: object) -> None:
            raise AssertionError("the event was stored")

        def purge(self, subject: str) -> int:
            return 0

    ledger = InPlace(give_up)
    asked = shop(ledger, profiles=Profiles(online=Store()))
    reasons = [asked.observe(Event(ITEMS[0]), visitor_id="v").reason for _ in range(LATE_IN_A_ROW + 1)]
    assert reasons == [GAVE_UP] * LATE_IN_A_ROW + [LEFT_ALONE]
    assert denied(asked.recommend(ASKED), LEFT_ALONE)


@pytest.mark.usefixtures("clock")
def test_whether_it_answers_can_be_asked_without_a_person() -> None:
    ledger = InPlace()
    asked = shop(ledger)
    assert asked.ledger_problem() == ""
    ledger.behaviour = give_up
    problems = [asked.ledger_problem() for _ in range(LATE_IN_A_ROW + 1)]
    assert problems == [GAVE_UP] * LATE_IN_A_ROW + [LEFT_ALONE]
    assert engine().ledger_problem() == "", "there is none"


@pytest.mark.usefixtures("clock")
def test_a_forked_process_makes_up_its_own_mind() -> None:
    ledger = Asked()
    asked = shop(ledger, deadline=30.0)
    assert asked.recommend(ASKED).tier is Tier.ONLINE, "there is a thread now, which stays here"
    ledger.behaviour = give_up
    for _ in range(LATE_IN_A_ROW):
        asked.recommend(ASKED)
    assert denied(asked.recommend(ASKED), LEFT_ALONE)
    ledger.behaviour = lambda: None

    def answers() -> None:
        assert asked.recommend(ASKED).tier is Tier.ONLINE

    in_forked_process(answers)
    assert denied(asked.recommend(ASKED), LEFT_ALONE)


def test_our_ledgers_in_memory_and_in_a_file_are_asked_where_the_request_runs(tmp_path: Path) -> None:
    grant = ConsentRecord("r", "v", "visitor", "online", "granted", AT - dt.timedelta(days=1), AT)
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as kept:
        kept.append([grant])
        for ledger in (Ledger([grant]), kept):
            asked = shop(ledger, deadline=LEDGER_SECONDS)
            assert asked.recommend(ASKED).tier is Tier.ONLINE
            assert asked.guarded is not None
            assert asked.guarded._guard._state.threads._running == 0


@pytest.mark.parametrize("deadline", [0, -1.0, float("inf"), float("nan")])
def test_a_deadline_is_a_positive_number_of_seconds(deadline: float) -> None:
    with pytest.raises(ValueError, match="a deadline for the ledger must be a positive number"):
        GuardedLedger(Ledger(), deadline)
    with pytest.raises(ValueError, match="a deadline for the ledger must be a positive number"):
        shop(Ledger(), deadline)


def test_permission_in_the_request_does_not_stand_in_for_the_ledger() -> None:
    asked = shop(InPlace(give_up))
    assert denied(asked.recommend(dataclasses.replace(ASKED, permission=Permission.ONLINE)), GAVE_UP)


@pytest.mark.usefixtures("clock")
def test_without_standing_nothing_counts_for_what_is_trending_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = shop(InPlace(), trending=Trending())
    seen = asked.observe(Event(ITEMS[2]), visitor_id="v")
    assert not seen.counted
    assert "ledger: has no method 'standing', so it cannot say what statistics may rest on" in caplog.text
