"""The ledger: taking in, looking up, and what its answers say."""

from __future__ import annotations

import datetime as dt

import pytest
from consent_cases import at_tick, said

from consentier.consent import (
    CONTACT_CHANNELS,
    Ledger,
    Link,
    LinkStanding,
    Permission,
    Resolution,
    Source,
    Standing,
    microseconds,
)

CONSENTS = (said("online", "granted", 1), said("crm", "granted", 2, permission="crm", kind="customer"))
LOGIN = Link("a", "a", at_tick(3))


def test_position_counts_distinct_records_and_links() -> None:
    ledger = Ledger()
    assert ledger.append(CONSENTS) == 2
    assert ledger.append(CONSENTS) == 0
    assert ledger.append_links([LOGIN, LOGIN]) == 1
    assert ledger.position == 3


def test_a_batch_with_a_stranger_in_it_leaves_nothing_behind() -> None:
    ledger = Ledger()
    with pytest.raises(TypeError, match="expected a ConsentRecord, got Link"):
        ledger.append([CONSENTS[0], LOGIN])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected a Link, got tuple"):
        ledger.append_links([LOGIN, ("a", "a")])  # type: ignore[list-item]
    assert ledger.position == 0
    assert not ledger.permission("a", kind="visitor", at=at_tick(4))


def test_conflicting_record_ids_are_reported_in_order() -> None:
    ledger = Ledger(
        [
            said("r2", "granted", 1),
            said("r2", "denied", 1),
            said("r1", "granted", 1),
            said("r1", "granted", 2),
        ]
    )
    assert ledger.conflicts == ["r1", "r2"]


def test_permission_is_per_kind_of_subject() -> None:
    ledger = Ledger(CONSENTS)
    assert ledger.permission("a", kind="visitor", at=at_tick(4)) is Permission.ONLINE
    assert ledger.permission("a", kind="customer", at=at_tick(4)) is Permission.CRM
    assert ledger.permission("b", kind="visitor", at=at_tick(4)) is Permission.NONE
    with pytest.raises(ValueError, match=r"visitor.*customer.*'household'"):
        ledger.permission("a", kind="household", at=at_tick(4))  # type: ignore[arg-type]


def test_refusing_to_contribute_to_models_leaves_the_permission() -> None:
    ledger = Ledger([*CONSENTS, said("models", "denied", 2, permission="model")])
    assert ledger.permission("a", kind="visitor", at=at_tick(4)) is Permission.ONLINE
    assert ledger.standing(Source.ONLINE, "a", at=at_tick(4)) == Standing(None, "model purpose denied")


def test_a_full_resolution() -> None:
    contacts = [
        said(f"may {channel}", "granted", 1, permission=f"contact:{channel}", kind="customer")
        for channel in CONTACT_CHANNELS
    ]
    purposes = [said("ads", "denied", 1, permission="ads"), said("joined", "granted", 1, permission="fusion")]
    ledger = Ledger([*CONSENTS, *contacts, *purposes], [LOGIN])
    assert ledger.resolve(visitor_id="a", customer_id="a", at=at_tick(4)) == Resolution(
        online=True,
        crm=True,
        linked=True,
        contact=frozenset(map(str, CONTACT_CHANNELS)),
        granted_purposes=frozenset({"fusion"}),
        denied_purposes=frozenset({"ads"}),
        reasons=("online: granted", "crm: granted"),
        ledger_position=9,
    )


def test_the_reasons_say_why_not() -> None:
    ledger = Ledger([*CONSENTS, said("no cookies", "denied", 3, permission="online", kind="customer")])
    refused = ledger.resolve(visitor_id="a", customer_id="a", at=at_tick(4))
    assert refused.reasons == ("online: refused by the customer", "crm: granted")
    nobody = ledger.resolve(at=at_tick(4))
    assert nobody.reasons == ("online: unknown", "crm: unknown")
    assert nobody.permission is Permission.NONE


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        Ledger(CONSENTS).resolve(visitor_id="a", at=dt.datetime(2025, 3, 1))


def test_looking_back_uses_only_what_was_known() -> None:
    late = said("late stop", "withdrawn", 2, learnt=6)
    ledger = Ledger([*CONSENTS, late], [LOGIN])
    assert ledger.resolve(visitor_id="a", at=at_tick(4), known_at=at_tick(5)).online
    assert not ledger.resolve(visitor_id="a", at=at_tick(4)).online
    assert ledger.linked_visitors("a", at=at_tick(4), known_at=at_tick(5)) == ["a"]
    assert ledger.linked_visitors("a", at=at_tick(4), known_at=at_tick(2)) == []


def test_standings_and_links_say_since_when() -> None:
    ledger = Ledger(CONSENTS, [LOGIN])
    assert ledger.standing(Source.ONLINE, "a", at=at_tick(4)) == Standing(microseconds(at_tick(1)), "granted")
    assert ledger.lawful_links(at=at_tick(4)) == {"a": LinkStanding("a", microseconds(at_tick(2)))}
    assert ledger.lawful_links(at=at_tick(2)) == {}


def test_a_refusal_of_joining_takes_one_device_out() -> None:
    other = said("online b", "granted", 1, subject="b")
    ledger = Ledger([*CONSENTS, other], [LOGIN, Link("b", "a", at_tick(3))])
    assert ledger.linked_visitors("a", at=at_tick(5)) == ["a", "b"]
    assert ledger.linked_visitors("a", at=at_tick(5), fusion_purpose=True) == []
    ledger.append([said("apart", "denied", 4, permission="fusion", subject="b")])
    assert ledger.linked_visitors("a", at=at_tick(5)) == ["a"]


def test_subjects_are_those_with_records_of_the_source() -> None:
    ledger = Ledger([*CONSENTS, said("other", "denied", 1, subject="b")])
    assert sorted(ledger.subjects(Source.ONLINE)) == ["a", "b"]
    assert sorted(ledger.subjects(Source.CRM)) == ["a"]
