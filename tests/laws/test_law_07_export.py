"""Seventh law, in what a person is told about themselves: an export crosses no link that does not hold.

A customer is told what is held of a device only while the two are lawfully linked. Whoever holds a device is
told nothing of a customer, and nobody is told anything of somebody else who used the same device.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, LAST_TICK, Case, at_tick, cases, said
from consent_rulebook import Rulebook, customer, visitor
from hypothesis import given, settings
from shops import event, order, shop

from consentier.consent import Link
from consentier.consent.records import SubjectKind
from consentier.serving import data_subject_export
from consentier.serving.data_subject_export import export_subject

# The same rows and profiles in every case: each names whose it is.
TABLES = shop(
    events=[event(name, f"row-of-visitor-{name}", 1) for name in IDS],
    orders=[order(name, f"row-of-customer-{name}", 1) for name in IDS],
)


class Store:
    """A profile store whose only content is a mark of the subject."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def export(self, subject: str) -> list[dict[str, Any]]:
        """The mark."""
        return [{"item_id": f"profile-of-{self._kind}-{subject}"}]


SUBJECTS = [*(visitor(name) for name in IDS), *(customer(name) for name in IDS)]
STORES: dict[SubjectKind, Store] = {"visitor": Store("visitor"), "customer": Store("customer")}


def check_exports_cross_lawful_links_only(case: Case) -> None:
    """An export holds the own data, and a customer's those of the devices that the rulebook links."""
    ledger, book = case.ledger(), Rulebook(dataclasses.replace(case, known_at=None))
    linked = {
        (visitor_id, customer_id)
        for visitor_id in IDS
        for customer_id in IDS
        if book.customer_of(visitor_id) == customer_id
        and book.fusible(visitor(visitor_id), customer(customer_id), case.at, required=False)
    }
    for kind, own in SUBJECTS:
        found = export_subject(own, kind=kind, ledger=ledger, at=case.at, profiles=STORES, shop=TABLES)
        text = json.dumps(found)
        for other_kind, other in SUBJECTS:
            expected = (other_kind, other) == (kind, own) or (
                (kind, other_kind) == ("customer", "visitor") and (other, own) in linked
            )
            for mark in (f"row-of-{other_kind}-{other}", f"profile-of-{other_kind}-{other}"):
                assert (mark in text) == expected, mark
        for section in (found["subject"], *found["linked_devices"]):
            assert all((link["visitor_id"], link["customer_id"]) in linked for link in section["links"])


@settings(max_examples=60, deadline=None)
@given(cases())
def test_an_export_crosses_lawful_links_only(case: Case) -> None:
    check_exports_cross_lawful_links_only(case)


ONLINE, CRM = said("online", "granted", 1), said("crm", "granted", 1, permission="crm", kind="customer")


def ended(*records: Any, links: tuple[Link, ...] = (Link("a", "a", at_tick(2)),)) -> Case:
    """A household whose link ended, asked about at the last tick."""
    return Case((ONLINE, CRM, *records), links, at_tick(LAST_TICK))


@breaks(
    Break(
        "a customer is told of every device that was ever seen with them",
        data_subject_export._devices_of,
        "ledger.linked_visitors(subject_id, at=at)",
        "{link.visitor_id for link in ledger.links_of(subject_id, kind=kind)}",
        ended(said("stop", "withdrawn", 4)),
    ),
    Break(
        "a customer is told of a device that others used too",
        data_subject_export._devices_of,
        "ledger.linked_visitors(subject_id, at=at)",
        "{link.visitor_id for link in ledger.links_of(subject_id, kind=kind)}",
        ended(links=(Link("a", "a", at_tick(2)), Link("a", "b", at_tick(3)))),
    ),
    Break(
        "links that do not hold are told",
        data_subject_export._links,
        "if link.visitor_id in ledger.linked_visitors(link.customer_id, at=at)",
        "",
        ended(said("stop", "withdrawn", 4)),
    ),
    Break(
        "rows of the tables are told whosesoever they are",
        data_subject_export._tables,
        "_rows(table.filter(pc.equal(table[column], subject_id)))",
        "_rows(table)",
    ),
)
def test_an_export_that_told_more_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_exports_cross_lawful_links_only, cases(), broken, examples=50)
