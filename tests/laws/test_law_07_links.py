"""Seventh law: that a device and a customer are one person is personal data too.

A link holds only while both permissions hold, and have held since it was made. A device on which two
customers were seen belongs to neither. No question about one source alone makes use of a link.
"""

from __future__ import annotations

import dataclasses
import itertools

from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, LAST_TICK, Case, at_tick, cases, said
from consent_rulebook import Rulebook, customer, visitor
from hypothesis import given, settings

from consentier.consent import ConsentRecord, Ledger, Link, Source, ledger, timeline

PAIRS = list(itertools.product(IDS, IDS))
ONLINE = said("online", "granted", 1)
CRM = said("crm", "granted", 1, permission="crm", kind="customer")


def asked(records: tuple[ConsentRecord, ...], *links: Link) -> Case:
    """These records and logins, asked about at the last tick."""
    return Case(records, links, at_tick(LAST_TICK))


def login(tick: int | None, *, visitor: str = "a", customer: str = "a") -> Link:
    """A login, by tick."""
    return Link(visitor, customer, None if tick is None else at_tick(tick))


def check_links(case: Case) -> None:
    """A link holds, wherever it is asked for, exactly as the rulebook says."""
    asked_of, book = case.ledger(), Rulebook(case)
    owner = {visitor_id: book.customer_of(visitor_id) for visitor_id in IDS}
    for visitor_id, customer_id in PAIRS:
        found = asked_of.resolve(visitor_id=visitor_id, customer_id=customer_id, **case.when)
        assert found.linked == (owner[visitor_id] == customer_id)
    lawful = asked_of.lawful_links(**case.when)
    assert all(owner[visitor_id] == link.customer_id for visitor_id, link in lawful.items())
    for customer_id in IDS:
        for fusion_purpose in (False, True):
            devices = asked_of.linked_visitors(customer_id, **case.when, fusion_purpose=fusion_purpose)
            assert devices == [
                visitor_id
                for visitor_id in IDS
                if owner[visitor_id] == customer_id
                and book.fusible(visitor(visitor_id), customer(customer_id), case.at, required=fusion_purpose)
            ]


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_link_holds_only_while_both_permissions_hold(case: Case) -> None:
    check_links(case)


@breaks(
    Break(
        "the link does not ask for the CRM permission",
        Ledger._linked_customer,
        "_customer_timeline(customer, instant),",
        "",
    ),
    Break(
        "the link does not ask for the online permission",
        Ledger._linked_customer,
        "_visitor_timeline(visitor, instant),",
        "",
    ),
    Break(
        "the link does not ask whether one refused what the other granted",
        Ledger._linked_customer,
        "_joinable(visitor, customer),",
        "",
        asked((ONLINE, CRM, said("no crm", "denied", 4, permission="crm")), login(2)),
    ),
    Break(
        "a link made before permission was given holds afterwards",
        ledger._held_since_login,
        "since <= login.linked_at",
        "True",
        asked((ONLINE, CRM), login(0)),
    ),
    Break(
        "a link that a child made holds once the parents consent",
        timeline.minority,
        'child = told[0].start <= instant and told[0].reason != "lifted"',
        "child = False",
        asked((ONLINE, CRM, said("parent", "granted", 4, permission="parental")), login(2)),
    ),
    Break(
        "a link revives with a permission that was withdrawn and given again",
        timeline.held_together_since,
        "timeline.held_since(instant)",
        "timeline.segments[min(1, len(timeline.segments) - 1)].start",
        asked((ONLINE, CRM, said("stop", "withdrawn", 3), said("again", "granted", 5)), login(2)),
    ),
    Break(
        "a shared device links to its latest user",
        ledger._sole_login,
        "!= 1",
        "== 0",
        asked(
            (ONLINE, CRM, said("crm b", "granted", 1, permission="crm", kind="customer", subject="b")),
            login(2),
            login(4, customer="b"),
        ),
    ),
    Break(
        "a login that is yet to come links already",
        ledger._sole_login,
        "<= horizon",
        "<= horizon + 10**12",
        Case((ONLINE, CRM), (login(6),), at_tick(4)),
    ),
    Break(
        "a login that was not known yet is used in looking back",
        ledger._sole_login,
        "instant if known is None else min(instant, known)",
        "instant",
        Case((ONLINE, CRM), (login(6),), at_tick(7), at_tick(4)),
    ),
    Break(
        "one device's refusal of joining is not heard on the others",
        Ledger.linked_since,
        ".at(instant).held",
        ".at(instant).reason",
        asked((ONLINE, CRM, said("apart", "denied", 4, permission="fusion")), login(2)),
    ),
    Break(
        "a request is linked by any login there ever was",
        Ledger.resolve,
        "login.customer_id == customer_id\n",
        "bool(self._store.links_of_customer(customer_id or ''))\n",
    ),
)
def test_a_broken_link_rule_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_links, cases(), broken)


def single_source_answers(asked_of: Ledger, subject_id: str, case: Case) -> list[object]:
    """All that can be asked about one source of one subject."""
    of_device = asked_of.resolve(visitor_id=subject_id, at=case.at)
    of_person = asked_of.resolve(customer_id=subject_id, at=case.at)
    return [
        asked_of.standing(Source.ONLINE, subject_id, at=case.at),
        asked_of.standing(Source.CRM, subject_id, at=case.at),
        asked_of.permission(subject_id, kind="visitor", at=case.at),
        asked_of.permission(subject_id, kind="customer", at=case.at),
        dataclasses.replace(of_device, ledger_position=None),
        dataclasses.replace(of_person, ledger_position=None),
    ]


def check_single_sources_know_no_link(case: Case) -> None:
    """What is asked about one source alone is answered as if there were no links."""
    linked, unlinked = case.ledger(), dataclasses.replace(case, links=()).ledger()
    for subject_id in IDS:
        assert single_source_answers(linked, subject_id, case) == single_source_answers(
            unlinked, subject_id, case
        )
    assert sorted(linked.subjects(Source.ONLINE)) == sorted(unlinked.subjects(Source.ONLINE))
    assert sorted(linked.subjects(Source.CRM)) == sorted(unlinked.subjects(Source.CRM))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_questions_about_one_source_make_no_use_of_links(case: Case) -> None:
    check_single_sources_know_no_link(case)


@breaks(
    Break(
        "a visitor stands as the customer it is linked to",
        Ledger.standing,
        "(_owner_of(source), subject_id)",
        "(_owner_of(source), next((link.customer_id for link in self._store.about(subject_id, None).links),"
        " subject_id))",
    ),
    Break(
        "the permission of a linked customer is looked up for a visitor",
        Ledger.permission,
        "(kind, subject_id)",
        "next((('customer', link.customer_id) for link in self._store.about(subject_id, None).links),"
        " (kind, subject_id))",
    ),
    Break(
        "a request with a cookie alone finds the customer",
        Ledger.resolve,
        "position, visitor, customer, links = self",
        "customer_id = customer_id or next("
        "(link.customer_id for link in self._store.about(visitor_id, None).links), None)\n"
        "    position, visitor, customer, links = self",
    ),
)
def test_a_single_source_path_that_resolves_a_link_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_single_sources_know_no_link, cases(), broken)
