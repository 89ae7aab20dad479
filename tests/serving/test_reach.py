"""How the ledger is asked about the persons of a file."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

from consent_cases import LAST_TICK, Case, at_tick, cases, instants_between
from consent_rulebook import Rulebook, customer, visitor
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import consent, day, link, shop

from consentier.consent import Channel, Ledger, Policy
from consentier.features.gate import ledger_of
from consentier.serving.reach import held_throughout, linked_throughout, reach

_ticks = st.integers(0, LAST_TICK)


@settings(max_examples=150)
@given(
    case=cases(), span=st.tuples(_ticks, _ticks).map(sorted), kind=st.sampled_from(("visitor", "customer"))
)
def test_no_gap_in_a_permission_is_missed(case: Case, span: list[int], kind: Any) -> None:
    ledger, (first, last) = case.ledger(), map(at_tick, span)
    every = instants_between(first, last)
    every += [at - dt.timedelta(microseconds=1) for at in every if at > first]
    book = Rulebook(dataclasses.replace(case, at=last, known_at=None))
    expected = all(book.permitted((kind, "a"), at) for at in every)
    assert held_throughout(ledger, "a", kind=kind, first=first, last=last) == expected
    both = all(book.permitted(subject, at) for subject in (visitor("a"), customer("a")) for at in every)
    for separate in (False, True):
        linked = all("a" in ledger.linked_visitors("a", at=at, fusion_purpose=separate) for at in every)
        assert (linked and both) == linked_throughout(
            ledger, "a", ["a"], first=first, last=last, fusion_purpose=separate
        )


def everything() -> Ledger:
    return ledger_of(
        shop(
            consents=[
                *(consent(who, "online") for who in ("v1", "v2")),
                *(consent("c1", what) for what in ("crm", "contact:email")),
                consent("v2", "fusion"),
            ],
            identities=[link("v1", "c1"), link("v2", "c1"), link("v3", "c1")],
        )
    )


def policy(**switches: bool) -> Policy:
    default = Policy.default()
    return Policy("test", default.matrix, dataclasses.replace(default.switches, **switches))


def test_a_customer_is_known_with_the_lawfully_linked_devices() -> None:
    found = reach(everything(), policy(), "c1", Channel.EMAIL, day(5))
    assert (found.visitor_id, found.customer_id, found.devices) == ("v1", "c1", ("v1", "v2"))
    assert found.resolution.linked
    assert found.barrier == ""
    assert (
        reach(everything(), policy(), "c1", Channel.PRINT, day(5)).barrier
        == "no contact permission for print"
    )


def test_where_joining_needs_a_purpose_of_its_own_only_devices_with_it_are_joined() -> None:
    found = reach(everything(), policy(fusion_purpose=True), "c1", Channel.EMAIL, day(5))
    assert (found.visitor_id, found.devices) == ("v2", ("v2",))


def test_a_visitor_is_known_with_the_customer_only_where_no_login_is_asked_for() -> None:
    alone = reach(everything(), policy(), "v1", Channel.SHOP, day(5))
    assert (alone.visitor_id, alone.customer_id, alone.devices) == ("v1", None, ())
    joined = reach(everything(), policy(shared_device_login=False), "v1", Channel.SHOP, day(5))
    assert (joined.customer_id, joined.devices) == ("c1", ("v1", "v2"))
    unlawful = reach(everything(), policy(shared_device_login=False), "v3", Channel.SHOP, day(5))
    assert (unlawful.customer_id, unlawful.barrier) == (None, "no online permission")
