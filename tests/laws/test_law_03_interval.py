"""Third law: a row may be learnt from only if permission held at every instant from the event to the cut-off.

A withdrawal, an objection or a lapse ends that time for good: a later grant never makes earlier rows lawful
again. Rows of two sources may be joined only if all that joining needs held for as long.

The ledger names the instant since when permission has held; here every sampled instant is asked instead.
"""

from __future__ import annotations

import datetime as dt

from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, LAST_TICK, Case, at_tick, cases, instants_between, said
from consent_rulebook import Rulebook, customer, visitor
from hypothesis import given, settings

from consentier.consent import ConsentRecord, Ledger, Link, Source, ledger, microseconds, timeline

SUBJECT_OF = {Source.ONLINE: visitor, Source.CRM: customer}
SWITCH = (False, True)


def kept(since: int | None, event: dt.datetime) -> bool:
    """Whether a row is used in training, by what the ledger says."""
    return since is not None and microseconds(event) >= since


def check_rows_of_one_source(case: Case) -> None:
    """A row of one subject is kept if and only if its use was permitted from the event to the cut-off."""
    book, asked = Rulebook(case), case.ledger()
    for source, subject_of in SUBJECT_OF.items():
        for subject_id in IDS:
            for model_purpose in SWITCH:
                standing = asked.standing(source, subject_id, **case.when, model_purpose=model_purpose)
                lawful = True
                for event in reversed(instants_between(at_tick(-1), case.at)):
                    lawful = lawful and book.learnable(
                        subject_of(subject_id), event, model_purpose=model_purpose
                    )
                    assert kept(standing.since, event) == lawful


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_row_is_kept_only_if_permission_held_from_event_to_cutoff(case: Case) -> None:
    check_rows_of_one_source(case)


def cut_off_after(*records: ConsentRecord) -> Case:
    """These records of one visitor, and a cut-off at the last tick."""
    return Case(records, (), at_tick(LAST_TICK))


WITHDRAWN_AND_GRANTED_AGAIN = cut_off_after(
    said("first", "granted", 0), said("stop", "withdrawn", 2), said("again", "granted", 4)
)


@breaks(
    Break(
        "a later grant makes earlier rows lawful",
        timeline.Timeline.held_since,
        "while position > 0 and self.segments[position - 1].held:",
        "while position > 1:",
        WITHDRAWN_AND_GRANTED_AGAIN,
    ),
    Break(
        "rows are lawful only from the latest grant on",
        timeline.Timeline.held_since,
        "while position > 0 and self.segments[position - 1].held:",
        "while False:",
        cut_off_after(said("first", "granted", 0), said("renewed", "granted", 4)),
    ),
    Break(
        "a lapse before a renewal is bridged",
        timeline._stated,
        "following is None or end < following",
        "following is None",
        cut_off_after(said("first", "granted", 0, until=2), said("renewed", "granted", 4)),
    ),
    Break(
        "a past objection is forgotten",
        ledger._unhindered,
        'inverted(_objected(claims), "objected"),',
        "",
        cut_off_after(
            said("first", "granted", 0),
            said("objection", "objected", 2, permission="crm"),
            said("lift", "lifted", 3, permission="crm", evidence="letter"),
        ),
    ),
    Break(
        "time as a minor without parental consent counts",
        ledger._unhindered,
        'inverted(minority(claims, instant), "minor without parental consent"),',
        "",
        cut_off_after(
            said("first", "granted", 0),
            said("child", "denied", 2, permission="parental"),
            said("parent", "granted", 3, permission="parental"),
        ),
    ),
    Break(
        "a child's own consent carries the time before parents were heard of",
        timeline.minority,
        'child = told[0].start <= instant and told[0].reason != "lifted"',
        "child = False",
    ),
    Break(
        "who was never a child was one before the lift",
        timeline.minority,
        ' and told[0].reason != "lifted"',
        "",
        cut_off_after(
            said("first", "granted", 0), said("of age", "lifted", 3, permission="parental", evidence="id")
        ),
    ),
    Break(
        "that a child's parents will be heard of is known before",
        timeline.minority,
        "told[0].start <= instant and ",
        "",
        Case(
            (said("first", "granted", 0), said("parent", "granted", 5, permission="parental")), (), at_tick(3)
        ),
    ),
    Break(
        "a refusal to contribute to models is not heard",
        ledger._trainable,
        'combine((held, covered(claims, "model", required=model_purpose)), "granted")',
        "held",
        cut_off_after(said("first", "granted", 0), said("models", "denied", 2, permission="model")),
    ),
    Break(
        "silence on models counts as consent where the notice asks",
        timeline.covered,
        'segment.reason == "unknown" and not required',
        'segment.reason == "unknown"',
        cut_off_after(said("first", "granted", 0)),
    ),
)
def test_a_broken_interval_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_rows_of_one_source, cases(), broken)


def check_joined_rows(case: Case) -> None:
    """A joined row is kept if and only if all that joining needs held from the event to the cut-off."""
    book, asked = Rulebook(case), case.ledger()
    linked = {visitor_id: book.customer_of(visitor_id) for visitor_id in IDS}
    for model_purpose in SWITCH:
        for fusion_purpose in SWITCH:
            links = asked.lawful_links(
                **case.when,
                model_purpose=model_purpose,
                fusion_purpose=fusion_purpose,
            )
            for visitor_id, customer_id in linked.items():
                standing = links.get(visitor_id)
                assert standing is None or standing.customer_id == customer_id
                lawful = customer_id is not None
                for event in reversed(instants_between(at_tick(-1), case.at)):
                    lawful = lawful and may_join(
                        book,
                        visitor_id,
                        str(customer_id),
                        event,
                        model_purpose=model_purpose,
                        fusion_purpose=fusion_purpose,
                    )
                    assert kept(standing.since if standing else None, event) == lawful


def may_join(
    book: Rulebook,
    visitor_id: str,
    customer_id: str,
    now: dt.datetime,
    *,
    model_purpose: bool,
    fusion_purpose: bool,
) -> bool:
    """Whether, at one instant, the data of a device and of a customer may be learnt from together."""
    device, person = visitor(visitor_id), customer(customer_id)
    return (
        book.joinable(device, person, now)
        and book.learnable(device, now, model_purpose=model_purpose)
        and book.learnable(person, now, model_purpose=model_purpose)
        and book.fusible(device, person, now, required=fusion_purpose)
    )


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_joined_row_is_kept_only_if_joining_was_lawful_ever_since(case: Case) -> None:
    check_joined_rows(case)


def linked_after(*records: ConsentRecord) -> Case:
    """A visitor who consented, logged in as a customer who consented, and then these records."""
    consents = (said("online", "granted", 0), said("crm", "granted", 0, permission="crm", kind="customer"))
    return Case((*consents, *records), (Link("a", "a", at_tick(7)),), at_tick(LAST_TICK))


@breaks(
    Break(
        "the customer's permission does not matter",
        Ledger.lawful_links,
        "_trainable(Source.CRM, customer, model_purpose, instant),",
        "",
        linked_after(said("models", "denied", 2, permission="model", kind="customer")),
    ),
    Break(
        "a refusal of joining is not heard",
        Ledger.lawful_links,
        "_fusion(visitor, customer, required=fusion_purpose),",
        "",
        linked_after(said("apart", "denied", 2, permission="fusion")),
    ),
    Break(
        "silence on joining counts as consent where the notice asks",
        ledger._fusion,
        "if required:",
        "if False:",
        linked_after(),
    ),
    Break(
        "a past refusal by the customer of what the device granted is forgotten",
        Ledger.lawful_links,
        "_joinable(visitor, customer),",
        "",
        linked_after(
            said("no cookies", "denied", 2, permission="online", kind="customer"),
            said("cookies", "granted", 4, permission="online", kind="customer"),
        ),
    ),
)
def test_a_broken_joint_interval_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_joined_rows, cases(), broken)
