"""First law, where items are trending: whoever does not permit it changes nothing that anybody is shown.

What is published are counts of visitors whose permission holds from the event until it counts no more, so
that every level may see it. A visitor counts once per item; sensitive items never.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import given, settings
from hypothesis import strategies as st
from trending_world import START, Step, World, expected_counts, expected_items, steps

from consentier.consent import Channel, ConsentRecord, Permission, Policy, Tier
from consentier.serving import Answer, Event, Request, observing
from consentier.serving.trending import Trending

Case = tuple[list[Step], bool]
cases = st.tuples(steps, st.booleans())


def text(answer: Answer) -> str:
    return json.dumps(answer.to_dict(), sort_keys=True)


def check_counts_are_of_those_who_permit_it(case: Case) -> None:
    """The counts are those that a second, slower reading of the rules gives."""
    happened, follows = case
    world = World(follows=follows)
    told = [observed.counted for observed in world.run(happened) if observed is not None]
    expected_told, expected = expected_counts(happened)
    assert told == expected_told
    assert world.counts() == expected
    assert world.trending.current().items == expected_items(expected, world.now)


def check_the_unpermitted_change_no_answer(case: Case) -> None:
    """Without the clicks that may not count, every answer is the same, byte for byte."""
    happened, follows = case
    told, _ = expected_counts(happened)
    lawful = iter(told)
    silent, pause = [], 0
    for step in happened:
        clicks = step.does not in ("agree", "withdraw", "refuse")
        if clicks and not next(lawful):
            pause += step.minutes
        else:
            silent.append(Step(step.visitor, step.does, step.item, step.minutes + pause))
            pause = 0
    answers = []
    for run, rest in ((happened, 0), (silent, pause)):
        world = World(follows=follows)
        world.run(run)
        world.now += dt.timedelta(minutes=rest)
        world.renew()
        asked = [Request(session=session, n=4, explain=True) for session in ((), ("item-03",))]
        answers.append([text(world.recommender.recommend(request)) for request in asked])
    assert answers[0] == answers[1]


@settings(max_examples=150)
@given(cases)
def test_counts_are_of_those_who_permit_it(case: Case) -> None:
    check_counts_are_of_those_who_permit_it(case)


@settings(max_examples=60)
@given(cases)
def test_the_unpermitted_change_no_answer(case: Case) -> None:
    check_the_unpermitted_change_no_answer(case)


AGREED = Step("ann", "agree")
REFUSED = ([AGREED, Step("ann", "refuse"), Step("ann", "click")], False)
PILLS = ([AGREED, Step("ann", "click", "pills")], False)


@breaks(
    Break(
        "contributing may be refused",
        observing._Arrival.count,
        " and self.contributes(counting)",
        "",
        REFUSED,
    ),
    Break(
        "sensitive items count",
        observing._Arrival.count,
        "counting.shows(self.event.item_id) and ",
        "",
        PILLS,
    ),
    Break(
        "what ends an interest counts",
        observing._Arrival.count,
        "if counting is None or self.event.event_type in NO_INTEREST:",
        "if counting is None:",
        ([AGREED, Step("ann", "remove")], False),
    ),
    Break(
        "a visitor counts in each bucket",
        Trending._counted,
        "self._discard(number, other, visitor_id, {item_id})",
        "pass",
        ([AGREED, *[Step("ann", "click", minutes=6)] * 2], False),
    ),
    Break(
        "an older click outlives a newer one",
        Trending._counted,
        "any(number >= own",
        "any(number == own",
        ([AGREED, Step("ann", "click", minutes=10), Step("ann", "late click")], False),
    ),
)
def test_a_count_that_may_not_be_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_counts_are_of_those_who_permit_it, cases, broken)


def check_what_is_declared_decides(declared: Permission | None) -> None:
    """Without a ledger, the shop's own word; and none where models need a word of their own."""
    for model_purpose in (False, True):
        world = World()
        policy = Policy.default()
        switches = dataclasses.replace(policy.switches, model_purpose=model_purpose)
        recommender = dataclasses.replace(
            world.recommender, ledger=None, policy=dataclasses.replace(policy, switches=switches)
        )
        told = recommender.observe(Event("item-01"), visitor_id="ann", permission=declared)
        permitted = declared is not None and Permission.ONLINE in declared and not model_purpose
        assert told.counted == permitted == bool(world.counts())


BOTH = Permission.ONLINE | Permission.CRM


@pytest.mark.parametrize("declared", [None, Permission.NONE, Permission.ONLINE, Permission.CRM, BOTH])
def test_what_is_declared_decides(declared: Permission | None) -> None:
    check_what_is_declared_decides(declared)


@breaks(
    Break(
        "the permission is not looked at",
        observing._Arrival.refusal,
        "if _NEEDED[self.source] not in resolution.permission:",
        "if False:",
        Permission.NONE,
    ),
    Break(
        "silence lets contribute",
        observing._Arrival.contributes,
        "return not counting.model_purpose",
        "return True",
        Permission.ONLINE,
    ),
)
def test_a_count_that_nobody_declared_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_what_is_declared_decides, st.none(), broken)


def test_orders_of_customers_do_not_count() -> None:
    world = World()
    told = dataclasses.replace(world.recommender, ledger=None).observe(
        Event("item-01"), customer_id="ann", permission=BOTH
    )
    assert not told.counted
    assert world.counts() == {}


@pytest.mark.parametrize("ends", [10, 19])
def test_a_grant_that_ends_before_the_count_does_lets_nothing_count(ends: int) -> None:
    world = World()
    world.ledger.append(
        [
            ConsentRecord(
                "short", "ann", "visitor", "online", "granted", START, START,
                valid_to=START + dt.timedelta(minutes=ends),
            )
        ]
    )  # fmt: skip
    assert not world.recommender.observe(Event("item-01"), visitor_id="ann").counted
    assert world.counts() == {}


@pytest.mark.parametrize(
    ("channel", "trending"), [(Channel.SHOP, True), (Channel.EMAIL, False), (Channel.PRINT, False)]
)
def test_what_visitors_do_says_nothing_about_letters(channel: Channel, trending: bool) -> None:
    world = World()
    world.run([Step("ann", "agree"), Step("ann", "click", "brand-new")])
    anybody = dataclasses.replace(world.recommender, ledger=None)
    request = Request(permission=Permission.CRM, channel=channel, n=3, crm_history=["?"])
    answer = anybody.recommend(request)
    assert answer.tier in (Tier.POPULAR, Tier.SESSION)
    assert ("brand-new" in answer.items) == trending
    assert (answer.basis.trending_digest is not None) == trending
