"""Timelines: step functions of time, and how records become one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import pytest
from consent_cases import at_tick, said
from hypothesis import given
from hypothesis import strategies as st

from consentier.consent import ConsentRecord, microseconds
from consentier.consent.memory_store import MemoryStore
from consentier.consent.timeline import (
    CLOCK_SKEW,
    Claims,
    Segment,
    Timeline,
    claims_of,
    combine,
    covered,
    either,
    inverted,
    minority,
    objections,
    refusals,
    timeline_of,
)

BEGINNING = -(2**63)
LAST = 8


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Any step function that changes at small integers."""
    starts = [BEGINNING, *sorted(draw(st.sets(st.integers(0, LAST))))]
    return Timeline(tuple(Segment(start, held=draw(st.booleans()), reason=f"at {start}") for start in starts))


def held_at(timeline: Timeline) -> list[bool]:
    return [timeline.at(instant).held for instant in range(-1, LAST + 2)]


def claims(*records: ConsentRecord, subject: str = "a") -> Claims:
    """The claims that a visitor makes in these records."""
    store = MemoryStore()
    store.append(records, ())
    return claims_of(store.about(subject, None).visitor, ("visitor", subject))


def reasons(timeline: Timeline) -> list[tuple[int | None, bool, str]]:
    """Start tick (None: the beginning), held and reason of each segment."""
    tick = microseconds(at_tick(1)) - microseconds(at_tick(0))
    return [
        (
            None if segment.start == BEGINNING else (segment.start - microseconds(at_tick(0))) // tick,
            segment.held,
            segment.reason,
        )
        for segment in timeline.segments
    ]


@given(st.lists(timelines(), min_size=1, max_size=3))
def test_combinations_are_held_as_logic_says(several: Sequence[Timeline]) -> None:
    columns = list(zip(*map(held_at, several), strict=True))
    assert held_at(combine(several, "all")) == [all(column) for column in columns]
    assert held_at(either(several, "some")) == [any(column) for column in columns]
    assert held_at(inverted(several[0], "not")) == [not column[0] for column in columns]


@given(timelines(), st.integers(-1, LAST + 1))
def test_held_since_is_the_first_instant_of_the_unbroken_time(timeline: Timeline, instant: int) -> None:
    since = timeline.held_since(instant)
    if since is None:
        assert not timeline.at(instant).held
        return
    assert since <= instant
    assert all(timeline.at(moment).held for moment in range(max(since, -1), instant + 1))
    assert since == BEGINNING or not timeline.at(since - 1).held


@given(timelines())
def test_the_last_of_the_missing_gives_the_reason(timeline: Timeline) -> None:
    never = Timeline((Segment(BEGINNING, held=False, reason="never"),))
    assert {segment.reason for segment in combine((timeline, never), "all").segments} == {"never"}


def test_no_records_mean_unknown() -> None:
    assert reasons(timeline_of({}, "online")) == [(None, False, "unknown")]


def test_a_grant_holds_until_it_expires() -> None:
    timeline = timeline_of(claims(said("r1", "granted", 1, until=3)), "online")
    assert reasons(timeline) == [(None, False, "unknown"), (1, True, "granted"), (3, False, "expired")]


def test_a_grant_that_ends_before_it_starts_never_holds() -> None:
    timeline = timeline_of(claims(said("r1", "granted", 3, until=1)), "online")
    assert reasons(timeline) == [(None, False, "unknown"), (3, False, "expired")]


def test_a_renewal_in_time_leaves_no_gap() -> None:
    timeline = timeline_of(claims(said("r1", "granted", 1, until=3), said("r2", "granted", 3)), "online")
    assert timeline.held_since(microseconds(at_tick(5))) == microseconds(at_tick(1))


def test_a_grant_may_lie_ahead_by_the_clock_skew_and_no_more() -> None:
    recorded, skew = at_tick(0), dt.timedelta(microseconds=CLOCK_SKEW)
    for ahead, held in ((skew, True), (skew + dt.timedelta(microseconds=1), False)):
        record = ConsentRecord("r1", "a", "visitor", "online", "granted", recorded + ahead, recorded)
        segment = timeline_of(claims(record), "online").at(microseconds(recorded + ahead))
        assert (segment.held, segment.reason) == (held, "granted" if held else "future-dated")


def test_a_refusal_dated_ahead_is_heeded_at_once_and_from_its_start() -> None:
    timeline = timeline_of(
        claims(said("stop", "withdrawn", 6, learnt=1), said("banner", "granted", 3)), "online"
    )
    assert reasons(timeline) == [
        (None, False, "unknown"),
        (1, False, "withdrawn"),
        (3, True, "granted"),
        (6, False, "withdrawn"),
    ]


@pytest.mark.parametrize("second", ["lifted", "withdrawn", "objected"])
def test_a_refusal_speaks_for_a_tie(second: str) -> None:
    tie = claims(said("r1", "withdrawn", 1), said("r2", second, 1, evidence="letter"))
    assert refusals(tie, "online").at(microseconds(at_tick(2))).held


def test_an_objection_stands_until_a_later_evidenced_lift() -> None:
    raised = said("r1", "objected", 2)
    for lift, standing in (
        (said("r2", "lifted", 4, evidence="letter"), False),
        (said("r2", "lifted", 4), True),
        (said("r2", "lifted", 2, evidence="letter"), True),
        (said("r2", "lifted", 1, evidence="letter"), True),
    ):
        assert objections(claims(raised, lift)["online"]).at(microseconds(at_tick(5))).held is standing


def test_a_lift_grants_nothing() -> None:
    history = claims(
        said("r1", "granted", 0), said("r2", "objected", 1), said("r3", "lifted", 2, evidence="letter")
    )
    assert reasons(timeline_of(history, "online"))[-1] == (2, False, "lifted")


@pytest.mark.parametrize(
    ("state", "evidence", "minor"),
    [
        ("denied", None, True),
        ("withdrawn", None, True),
        ("objected", None, True),
        ("granted", None, False),
        ("lifted", "letter", False),
        ("lifted", None, True),
    ],
)
def test_who_is_a_minor_without_parental_consent(state: str, evidence: str | None, minor: bool) -> None:
    record = said("r1", state, 1, permission="parental", evidence=evidence)
    before, after = (microseconds(at_tick(tick)) for tick in (0, 2))
    assert minority(claims(record), after).at(after).held is minor
    assert not minority(claims(record), before).at(before).held, "nobody knew"


@pytest.mark.parametrize(
    ("history", "child"),
    [
        ([said("r1", "granted", 3, permission="parental")], True),
        ([said("r1", "denied", 3, permission="parental")], True),
        ([said("r1", "granted", 3, permission="parental", until=4)], True),
        ([said("r1", "granted", 3, permission="parental", until=2)], True),
        ([said("r1", "lifted", 3, permission="parental")], True),
        ([said("r1", "lifted", 3, permission="parental", evidence="id")], False),
        ([said("r1", "granted", 0, permission="parental", learnt=3)], False),
        (
            [
                said("r1", "lifted", 3, permission="parental", evidence="id"),
                said("r2", "denied", 4, permission="parental"),
            ],
            False,
        ),
        (
            [
                said("r1", "lifted", 3, permission="parental", evidence="id"),
                said("r2", "granted", 2, permission="parental", learnt=4),
            ],
            True,
        ),
    ],
)
def test_the_time_before_the_first_word_on_parents_is_a_childs(
    history: list[ConsentRecord], child: bool
) -> None:
    told, before = claims(*history), microseconds(at_tick(1))
    assert minority(told, microseconds(at_tick(5))).at(before).held is child
    assert minority(told, before).at(before).held is False


@pytest.mark.parametrize(
    ("history", "free", "asked"),
    [
        ([], True, False),
        ([said("r1", "granted", 1, permission="model")], True, True),
        ([said("r1", "denied", 1, permission="model")], False, False),
        ([said("r1", "granted", 1, permission="model", until=2)], False, False),
    ],
)
def test_a_purpose_that_is_not_separated_needs_no_grant(
    history: list[ConsentRecord], free: bool, asked: bool
) -> None:
    now = microseconds(at_tick(3))
    assert covered(claims(*history), "model", required=False).at(now).held is free
    assert covered(claims(*history), "model", required=True).at(now).held is asked


def test_one_record_id_for_two_subjects_is_a_refusal_for_both() -> None:
    versions = [said("r1", "granted", 1), said("r1", "granted", 1, subject="b")]
    for subject in ("a", "b"):
        assert [claim.state for claim in claims(*versions, subject=subject)["online"]] == ["conflicting"]
