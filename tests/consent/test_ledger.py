"""The ledger: taking in, looking up, and what its answers say."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest
from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, Case, at_tick, cases, said
from consent_rulebook import Rulebook, customer, visitor
from hypothesis import given, settings

from consentier.consent import (
    CONTACT_CHANNELS,
    ConsentRecord,
    Ledger,
    Link,
    LinkStanding,
    Permission,
    Resolution,
    Source,
    Standing,
    microseconds,
)
from consentier.consent.entries import RECORD_COLUMNS

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
        lifetimes_version="consentier-default-1",
        online_since=microseconds(at_tick(1)),
        crm_since=microseconds(at_tick(2)),
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


# ---- Logins ------------------------------------------------------------------------------------------------


def test_a_login_writes_a_link_where_both_permit() -> None:
    ledger = Ledger(CONSENTS)
    assert ledger.login("a", "a", at=at_tick(3), evidence="session 7")
    assert ledger.links_of("a", kind="visitor") == [Link("a", "a", at_tick(3), "session 7")]
    assert ledger.login("a", "a", at=at_tick(3), evidence="session 7")
    assert ledger.position == 3
    assert ledger.resolve(visitor_id="a", customer_id="a", at=at_tick(4)).linked


@pytest.mark.parametrize(
    "extra",
    [
        said("no cookies", "withdrawn", 2),
        said("no crm", "withdrawn", 2, permission="crm", kind="customer"),
        said("device: no crm", "denied", 2, permission="crm"),
        said("person: no cookies", "denied", 2, permission="online", kind="customer"),
        said("apart", "denied", 2, permission="fusion"),
        said("person: apart", "withdrawn", 2, permission="fusion", kind="customer"),
        said("objection", "objected", 2, permission="online", kind="customer"),
        said("child", "denied", 2, permission="parental"),
    ],
    ids=lambda record: str(record.record_id),
)
def test_a_login_writes_nothing_where_anything_forbids_it(extra: ConsentRecord) -> None:
    ledger = Ledger([*CONSENTS, extra])
    assert not ledger.login("a", "a", at=at_tick(3))
    assert ledger.position == 3
    assert ledger.links_of("a", kind="visitor") == ledger.links_of("a", kind="customer") == []


def check_login(case: Case) -> None:
    """A login is written exactly where, at that instant, the two may be one person."""
    book = Rulebook(dataclasses.replace(case, known_at=None))
    for visitor_id in IDS:
        for customer_id in IDS:
            ledger = case.ledger()
            before = ledger.position
            written = ledger.login(visitor_id, customer_id, at=case.at, evidence="this login")
            subjects = visitor(visitor_id), customer(customer_id)
            assert written == (
                book.joinable(*subjects, case.at)
                and not any(book.objected(subject, case.at) for subject in subjects)
                and book.fusible(*subjects, case.at, required=False)
            )
            assert ledger.position == before + written


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_login_is_written_exactly_where_it_is_lawful(case: Case) -> None:
    check_login(case)


@breaks(
    Break(
        "one permission suffices", Ledger.login, "found.permission.level < 3", "found.permission.level < 2"
    ),
    Break("a refusal of joining is not heard", Ledger.login, '"fusion" in found.denied_purposes', "False"),
    Break("every login is written", Ledger.login, "return False", "pass"),
)
def test_a_login_that_writes_too_much_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_login, cases(), broken)


# ---- What is held ------------------------------------------------------------------------------------------


def test_all_versions_are_told_in_order() -> None:
    versions = [said("r", "granted", 1), said("r", "granted", 1, learnt=4), said("r", "denied", 2)]
    ledger = Ledger([versions[0], said("x", "granted", 1, subject="b"), *versions[1:]], [LOGIN])
    assert ledger.records_of("a", kind="visitor") == versions
    assert ledger.records_of("a", kind="customer") == []
    assert list(ledger.entries(after=3)) == [(4, versions[2]), (5, LOGIN)]
    assert ledger.as_of(3).records_of("a", kind="visitor") == versions[:2]
    assert ledger.as_of(3).conflicts == []
    assert ledger.conflicts == ["r"]


def test_columns_are_those_of_the_contract_and_two_more() -> None:
    ledger = Ledger([said("r", "granted", 1, learnt=4), said("r", "denied", 2, until=3)], [LOGIN])
    columns = ledger.columns("records")
    assert tuple(columns) == (*RECORD_COLUMNS, "conflicting", "first_recorded")
    assert columns["valid_to"] == [None, microseconds(at_tick(3))]
    assert columns["conflicting"] == [True, True]
    assert columns["first_recorded"] == [microseconds(at_tick(2))] * 2
    assert ledger.columns("links") == {
        "visitor_id": ["a"],
        "customer_id": ["a"],
        "linked_at": [microseconds(at_tick(3))],
        "evidence": [None],
    }
    assert ledger.as_of(1).columns("records")["conflicting"] == [False]
    with pytest.raises(ValueError, match="'records' and 'links', not 'consents'"):
        ledger.columns("consents")  # type: ignore[arg-type]


def test_a_view_is_what_the_ledger_was() -> None:
    ledger, heads = Ledger(), []
    answers = []
    for record in (*CONSENTS, said("stop", "withdrawn", 3)):
        answers.append(ledger.resolve(visitor_id="a", customer_id="a", at=at_tick(4)))
        heads.append(ledger.head)
        ledger.append([record])
    for position, answer in enumerate(answers):
        view = ledger.as_of(position)
        assert (view.position, view.head) == (position, heads[position])
        assert view.resolve(visitor_id="a", customer_id="a", at=at_tick(4)) == answer
    for position in (-1, 4):
        with pytest.raises(ValueError, match="stands at position 3"):
            ledger.as_of(position)


def test_a_kind_or_source_of_nobody_is_refused_not_answered() -> None:
    """Nothing found would be a wrong answer to whoever asks what is held of them."""
    ledger = Ledger(CONSENTS)
    for ask in (ledger.records_of, ledger.links_of, ledger.erase):
        with pytest.raises(ValueError, match="'visitor' or 'customer', not 'costumer'"):
            ask("a", kind="costumer")  # type: ignore[operator]
    with pytest.raises(ValueError, match="online or crm"):
        ledger.standing(Source.SESSION, "a", at=at_tick(3))
    with pytest.raises(ValueError, match="online or crm"):
        ledger.subjects(Source.SESSION)
