"""Fourth law, for ledger and policy: what is not certain is denied.

Unknown, missing, ended, dated ahead, contradictory or malformed: none of it permits anything. A policy that
would let a request read more than was permitted is refused when it is loaded, and never put into force.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, LAST_TICK, TICK, Case, at_tick, cases, said
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import PolicyCase, ShopPolicy, policy_cases

from consentier.consent import (
    Channel,
    ConsentRecord,
    Ledger,
    Policy,
    Resolution,
    Side,
    Source,
    State,
    Switches,
    Tier,
    ledger,
    sources_of,
    timeline,
)
from consentier.errors import LedgerError


def check_grant_behind_every_permission(case: Case) -> None:
    """Where permission is given, a grant of that very subject is in force and is contradicted by nothing."""
    asked = case.ledger()
    contradicted = set(asked.conflicts)
    for visitor_id in IDS:
        for customer_id in IDS:
            found = asked.resolve(visitor_id=visitor_id, customer_id=customer_id, at=case.at)
            grants = [record for record in case.records if in_force(record, case.at)]
            proven = {
                (grant.subject_kind, grant.subject_id, grant.permission)
                for grant in grants
                if grant.record_id not in contradicted
            }
            assert not found.online or ("visitor", visitor_id, "online") in proven
            assert not found.crm or ("customer", customer_id, "crm") in proven
            for channel in found.contact or ():
                assert ("customer", customer_id, f"contact:{channel}") in proven
            for purpose in found.granted_purposes:
                assert {("visitor", visitor_id, purpose), ("customer", customer_id, purpose)} & proven


def in_force(record: ConsentRecord, now: dt.datetime) -> bool:
    """Whether a record grants, has begun, has not ended, and was not dated ahead."""
    return (
        record.state == "granted"
        and record.valid_from <= now
        and (record.valid_to is None or now < record.valid_to)
        and record.valid_from - record.recorded_at <= TICK
    )


@settings(max_examples=100, deadline=None)
@given(cases())
def test_no_permission_without_a_grant_in_force(case: Case) -> None:
    check_grant_behind_every_permission(case)


def one_record(**wrong: Any) -> Case:
    """A ledger with one record, asked at the last tick."""
    return Case((said("only", "granted", 1, **wrong),), (), at_tick(LAST_TICK))


@breaks(
    Break(
        "a subject that nobody knows is permitted",
        timeline.timeline_of,
        "if not own:\n        return _UNKNOWN",
        'if not own:\n        return Timeline((Segment(_BEGINNING, held=True, reason="unknown"),))',
    ),
    Break(
        "a grant that has ended still counts",
        timeline._claims_in,
        "version.start, version.end",
        "version.start, None",
        one_record(until=4),
    ),
    Break(
        "a grant dated ahead counts",
        timeline._claims_in,
        "start > recorded + CLOCK_SKEW",
        "False",
        Case((said("ahead", "granted", 6, learnt=1),), (), at_tick(LAST_TICK)),
    ),
    Break(
        "a contradicted grant counts",
        timeline._claims_in,
        "if conflicting:",
        "if False:",
        Case((said("one id", "granted", 2), said("one id", "denied", 1)), (), at_tick(LAST_TICK)),
    ),
    Break(
        "a visitor speaks for the customer",
        Ledger.resolve,
        "self._facts(visitor_id, customer_id, known)",
        "(lambda facts, device: facts._replace(customer=device.visitor))("
        "self._facts(visitor_id, customer_id, known), self._facts(customer_id, None, known))",
    ),
    Break(
        "a refused channel of contact counts",
        ledger._contact,
        "if timeline_of",
        "if not timeline_of",
    ),
)
def test_a_permission_without_grant_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_grant_behind_every_permission, cases(), broken)


def check_route_within_permission(case: PolicyCase) -> None:
    """Every tier of every route in force reads only what the resolution permits there."""
    policy = case.policy()
    if policy is None:
        return  # refused when it was loaded
    route = policy.route(case.resolution, case.channel, vouched=case.vouched)
    for tier in route.tiers:
        assert sources_of(tier, case.channel.side) <= may_read(case, policy)
        assert tier is not Tier.FUSED or may_join(case, policy)
    if case.resolution.objected or case.resolution.minor:
        assert case.channel.side is Side.ONLINE or route.tiers == ()


def may_read(case: PolicyCase, policy: Policy) -> set[Source]:
    """The sources that one request may read, told afresh from the text of the law."""
    found, on_site = case.resolution, case.channel.side is Side.ONLINE
    readable = {Source.SESSION} if on_site else set()
    if found.objected or found.minor or (case.channel is Channel.ADS and not covers(case, policy, "ads")):
        return readable
    if found.online and (on_site or may_join(case, policy)):
        readable.add(Source.ONLINE)
    if found.crm and (not on_site or policy.switches.crm_on_site or may_join(case, policy)):
        readable.add(Source.CRM)
    return readable


def may_join(case: PolicyCase, policy: Policy) -> bool:
    """Whether one request may read both sources together."""
    found = case.resolution
    logged_in = case.vouched or case.channel.side is Side.CRM or not policy.switches.shared_device_login
    return found.online and found.crm and found.linked and logged_in and covers(case, policy, "fusion")


def covers(case: PolicyCase, policy: Policy, purpose: str) -> bool:
    """Whether a purpose was not refused, and was granted where the notice asks for it."""
    asked_for = {"ads": policy.switches.ads_purpose, "fusion": policy.switches.fusion_purpose}[purpose]
    refused = purpose in case.resolution.denied_purposes
    return not refused and (purpose in case.resolution.granted_purposes or not asked_for)


def by_default(resolution: Resolution) -> PolicyCase:
    """A visit to the shop under the default policy."""
    return PolicyCase(
        ShopPolicy(Policy.default().matrix, Switches()), resolution, Channel.SHOP, vouched=False
    )


@settings(max_examples=200, deadline=None)
@given(policy_cases)
def test_no_route_reads_more_than_is_permitted(case: PolicyCase) -> None:
    check_route_within_permission(case)


@breaks(
    Break(
        "a matrix may name any tier",
        Policy.__post_init__,
        "if tier not in lawful:",
        "if False:",
        PolicyCase(
            ShopPolicy(
                {**Policy.default().matrix, (State.BOTH_UNLINKED, Side.CRM): (Tier.FUSED,)}, Switches()
            ),
            Resolution(online=True, crm=True),
            Channel.EMAIL,
            vouched=False,
        ),
    ),
    Break(
        "an objection is not looked at",
        Policy._state,
        "if resolution.objected:",
        "if False:",
        by_default(Resolution(online=True, objected=True)),
    ),
    Break(
        "minority is not looked at",
        Policy._state,
        "if resolution.minor:",
        "if False:",
        by_default(Resolution(online=True, minor=True)),
    ),
    Break(
        "advertising needs no purpose",
        Policy._state,
        "channel is Channel.ADS and",
        "False and",
    ),
    Break(
        "both permissions without a link are joined",
        Policy._joined,
        "if not resolution.linked:",
        "if False:",
    ),
    Break("no login is asked for", Policy._joined, "and not vouched", "and False"),
    Break("joining needs no purpose", Policy._covered, "not required or", "True or"),
    Break("a refused purpose is not heard", Policy._covered, "in resolution.denied_purposes", "in ()"),
    Break(
        "CRM data show on the site although the switch is off",
        Policy.tiers,
        "not self.switches.crm_on_site or",
        "",
    ),
)
def test_a_route_that_reads_too_much_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_route_within_permission, policy_cases, broken, examples=3000)


@pytest.mark.parametrize("channel", list(Channel))
def test_nobody_asked_and_nothing_known_reads_the_running_session_at_most(channel: Channel) -> None:
    nothing = Ledger().resolve(visitor_id="stranger", customer_id="stranger", at=at_tick(0))
    for resolution in (nothing, Resolution()):
        route = Policy.default().route(resolution, channel, vouched=True)
        read = {source for tier in route.tiers for source in sources_of(tier, route.side)}
        assert read <= ({Source.SESSION} if channel.side is Side.ONLINE else set())


MALFORMED: dict[str, st.SearchStrategy[Any]] = {
    "record_id": st.sampled_from(("", None, 7)),
    "subject_id": st.sampled_from(("", None, 7, ["a"])),
    "subject_kind": st.sampled_from(("Visitor", "", None, "household")),
    "permission": st.sampled_from(("Online", "", None, "contact", "contact:fax", "everything")),
    "state": st.sampled_from(("GRANTED", "", None, True, ["granted"], "unknown")),
    "valid_from": st.sampled_from((None, "2025-03-01", 0, dt.datetime(2025, 3, 1), dt.date(2025, 3, 1))),
    "recorded_at": st.sampled_from((None, "2025-03-01", 0, dt.datetime(2025, 3, 1))),
    "valid_to": st.sampled_from(("2025-03-01", 0, dt.datetime(2025, 3, 1))),
    "evidence": st.sampled_from((True, 3, {"form": "letter"}, ["letter"])),
}

malformed: st.SearchStrategy[tuple[str, Any]] = st.sampled_from(sorted(MALFORMED)).flatmap(
    lambda name: st.tuples(st.just(name), MALFORMED[name])
)


def check_malformed_is_refused(case: tuple[str, Any]) -> None:
    """A malformed record does not come into being, and the message names the field."""
    name, value = case
    fields: dict[str, Any] = {
        "record_id": "r1",
        "subject_id": "a",
        "subject_kind": "visitor",
        "permission": "online",
        "state": "granted",
        "valid_from": at_tick(0),
        "recorded_at": at_tick(0),
    }
    message = ""
    try:
        ConsentRecord(**{**fields, name: value})
    except LedgerError as error:
        message = str(error)
    assert name in message, f"{name}={value!r} was taken for a consent record"


@given(malformed)
def test_a_malformed_record_is_refused(case: tuple[str, Any]) -> None:
    check_malformed_is_refused(case)


@breaks(
    Break(
        "any word is taken for a state",
        ConsentRecord._require_one_of,
        "if not isinstance(value, str) or value not in allowed:",
        "if False:",
    ),
    Break(
        "a missing id is taken",
        ConsentRecord.__post_init__,
        "or not value:",
        "and False:",
    ),
    Break(
        "any evidence is taken",
        ConsentRecord.__post_init__,
        "if value is not None and not isinstance(value, str):",
        "if False:",
    ),
)
def test_a_malformed_record_that_is_taken_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_malformed_is_refused, malformed, broken)
