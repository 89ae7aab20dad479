"""Fifth law: taking a permission away never widens what is read.

This holds for every policy that a shop can put into force, on every channel, for every way to take
something away: a permission, the link, a purpose, a contact permission, the login, or by objecting. And it
holds for the ledger: no refusal, whoever it comes from, gives anybody more than before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, LAST_TICK, Case, at_tick, refused_cases, said
from hypothesis import given, settings
from policy_cases import PolicyCase, ShopPolicy, policy_cases

from consentier.consent import (
    Channel,
    Ledger,
    Link,
    Permission,
    Policy,
    Resolution,
    Route,
    Source,
    Switches,
    sources_of,
    timeline,
)


def narrower(resolution: Resolution) -> Iterator[Resolution]:
    """Every resolution that has one thing less than this one, or one refusal more."""
    yield dataclasses.replace(resolution, online=False)
    yield dataclasses.replace(resolution, crm=False)
    yield dataclasses.replace(resolution, linked=False)
    yield dataclasses.replace(resolution, objected=True)
    yield dataclasses.replace(resolution, minor=True)
    for purpose in ("ads", "fusion", "model"):
        granted, denied = resolution.granted_purposes, resolution.denied_purposes
        yield dataclasses.replace(resolution, granted_purposes=granted - {purpose})
        yield dataclasses.replace(resolution, denied_purposes=denied | {purpose})
    for channel in resolution.contact or ():
        yield dataclasses.replace(resolution, contact=(resolution.contact or frozenset()) - {channel})
    for permission in (Permission.NONE, Permission.ONLINE, Permission.CRM):
        yield resolution.intersected(permission)


def read_on(route: Route) -> frozenset[Source]:
    """All sources that some tier of a route reads."""
    return frozenset[Source]().union(*(sources_of(tier, route.side) for tier in route.tiers))


def check_routes(case: PolicyCase) -> None:
    """Whatever is taken away from a request, its route reads nothing that it did not read before."""
    policy = case.policy()
    if policy is None:
        return  # the shop's policy was refused: it routes nothing
    whole = read_on(policy.route(case.resolution, case.channel, vouched=case.vouched))
    assert read_on(policy.route(case.resolution, case.channel, vouched=False)) <= whole
    for less in narrower(case.resolution):
        route = policy.route(less, case.channel, vouched=case.vouched)
        assert read_on(route) <= whole
        assert read_on(route) <= policy.readable(route.state, route.side)


@settings(max_examples=200, deadline=None)
@given(policy_cases)
def test_taking_something_away_never_widens_what_is_read(case: PolicyCase) -> None:
    check_routes(case)


@breaks(
    Break(
        "a matrix that widens is accepted",
        Policy.__post_init__,
        "self.readable(less, side) - self.readable(more, side)",
        "frozenset()",
    ),
    Break(
        "the check leaves out what the switches add",
        Policy.readable,
        "self.tiers(state, side)",
        "self.matrix[state, side]",
    ),
    Break(
        "without a link the joined model answers",
        Policy._joined,
        "if not resolution.linked:",
        "if resolution.linked:",
        PolicyCase(
            ShopPolicy(Policy.default().matrix, Switches()),
            Resolution(online=True, crm=True, linked=True),
            Channel.EMAIL,
            vouched=False,
        ),
    ),
    Break(
        "without a login the joined model answers",
        Policy._joined,
        "and not vouched",
        "and vouched",
        PolicyCase(
            ShopPolicy(Policy.default().matrix, Switches()),
            Resolution(online=True, crm=True, linked=True),
            Channel.SHOP,
            vouched=True,
        ),
    ),
    Break(
        "a refused purpose counts as granted",
        Policy._covered,
        "return False",
        "return True",
    ),
)
def test_a_policy_that_widens_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_routes, policy_cases, broken, examples=3000)


def check_refusal(pair: tuple[Case, Case]) -> None:
    """After one more refusal, or one more contradiction, nobody has more than before."""
    before, after = pair
    when = before.when
    old, new = before.ledger(), after.ledger()
    for visitor_id in (None, *IDS):
        for customer_id in (None, *IDS):
            whole = old.resolve(visitor_id=visitor_id, customer_id=customer_id, **when)
            less = new.resolve(visitor_id=visitor_id, customer_id=customer_id, **when)
            assert less.permission in whole.permission
            assert less.linked <= whole.linked
            assert begins_no_earlier(less.online_since, whole.online_since)
            assert begins_no_earlier(less.crm_since, whole.crm_since)
            assert whole.objected <= less.objected
            assert whole.minor <= less.minor
            assert (less.contact or frozenset()) <= (whole.contact or frozenset())
            assert less.granted_purposes <= whole.granted_purposes
            assert whole.denied_purposes <= less.denied_purposes
    check_training_narrows(old, new, before)


def begins_no_earlier(less: int | None, whole: int | None) -> bool:
    """Whether what has been held since one instant has been held since another, too."""
    return less is None or (whole is not None and whole <= less)


def check_training_narrows(old: Ledger, new: Ledger, case: Case) -> None:
    """No row, and no join of rows, becomes lawful by a refusal."""
    when = case.when
    for source in (Source.ONLINE, Source.CRM):
        for subject_id in IDS:
            whole = old.standing(source, subject_id, **when).since
            less = new.standing(source, subject_id, **when).since
            assert begins_no_earlier(less, whole)
    wide, narrow = old.lawful_links(**when), new.lawful_links(**when)
    for visitor_id, link in narrow.items():
        assert visitor_id in wide
        assert wide[visitor_id].customer_id == link.customer_id
        assert wide[visitor_id].since <= link.since
    for customer_id in IDS:
        devices = new.linked_since(customer_id, **when)
        assert set(devices) == set(new.linked_visitors(customer_id, **when))
        wide_since = old.linked_since(customer_id, **when)
        assert all(begins_no_earlier(since, wide_since.get(each)) for each, since in devices.items())


@settings(max_examples=80, deadline=None)
@given(refused_cases())
def test_a_refusal_gives_nobody_more(pair: tuple[Case, Case]) -> None:
    check_refusal(pair)


CONSENTS = tuple(
    record
    for subject in IDS
    for record in (
        said(f"online {subject}", "granted", 0, subject=subject),
        said(f"crm {subject}", "granted", 0, permission="crm", kind="customer", subject=subject),
    )
)
SHARED_DEVICE = Case(CONSENTS, (Link("a", "a", at_tick(1)), Link("a", "b", at_tick(2))), at_tick(LAST_TICK))


@breaks(
    Break(
        "when one user of a shared device withdraws, it becomes the other's",
        Ledger._linked_customer,
        "_sole_login(links, instant, known)",
        "_sole_login([link for link in links if _customer_timeline("
        "self._claims(('customer', link.customer_id), known), instant).at(instant).held], instant, known)",
        (
            SHARED_DEVICE,
            dataclasses.replace(
                SHARED_DEVICE,
                records=(
                    *CONSENTS,
                    said("stop", "withdrawn", 4, permission="crm", kind="customer", subject="b"),
                ),
            ),
        ),
    ),
    Break(
        "the refusal that came first hides the one dated ahead",
        timeline._claims_in,
        "claims = [Claim(state, start, end)]",
        "claims = [] if conflicting and recorded < start else [Claim(state, start, end)]",
        (
            Case((said("old", "granted", 3), said("ahead", "granted", 6, learnt=1)), (), at_tick(LAST_TICK)),
            Case(
                (
                    said("old", "granted", 3),
                    said("ahead", "granted", 6, learnt=1),
                    said("ahead", "denied", 2, learnt=1),
                ),
                (),
                at_tick(LAST_TICK),
            ),
        ),
    ),
)
def test_a_refusal_that_widens_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_refusal, refused_cases(), broken)
