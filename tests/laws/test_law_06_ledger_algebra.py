"""Sixth law: what a ledger answers depends on what was decided, never on how the news arrived.

Records may come in any order, several times, late, or contradicting each other. The decision with the latest
start governs alone; its end revives nothing; on a tie no means no; a record id that stands for two contents
counts as a refusal and is reported; an objection stands until it is lifted with evidence; consent is never
inherited across a link; and what a request claims can only take away from what the ledger says.

The ledger is compared with a second, naive telling of these rules (`tests/support/consent_rulebook.py`).
"""

from __future__ import annotations

import dataclasses
import itertools

from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, LAST_TICK, Case, at_tick, cases, said
from consent_rulebook import Rulebook, customer, visitor
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import (
    CONTACT_CHANNELS,
    ConsentRecord,
    Ledger,
    Permission,
    Resolution,
    Source,
    timeline,
)
from consentier.consent.memory_store import MemoryStore
from consentier.consent.records import PURPOSES


def history(*records: ConsentRecord) -> Case:
    """These records, asked about at the last tick."""
    return Case(records, (), at_tick(LAST_TICK))


PAIRS = list(itertools.product((None, *IDS), (None, *IDS)))


def check_stated_rules(case: Case) -> None:
    """Every answer of the ledger is the one that the rulebook gives."""
    ledger, book = case.ledger(), Rulebook(case)
    assert ledger.conflicts == book.conflicts()
    for subject_id in IDS:
        of_device = ledger.permission(subject_id, kind="visitor", **case.when)
        of_person = ledger.permission(subject_id, kind="customer", **case.when)
        assert bool(of_device) == book.permitted(visitor(subject_id), case.at)
        assert bool(of_person) == book.permitted(customer(subject_id), case.at)
        assert of_device in Permission.ONLINE
        assert of_person in Permission.CRM
    for visitor_id, customer_id in PAIRS:
        check_resolution(ledger, book, visitor_id, customer_id)


def check_resolution(ledger: Ledger, book: Rulebook, visitor_id: str | None, customer_id: str | None) -> None:
    """One request's resolution, field by field; whether it is linked is the seventh law's matter."""
    case, now = book.case, book.case.at
    found = ledger.resolve(visitor_id=visitor_id, customer_id=customer_id, at=case.at, known_at=case.known_at)
    device = None if visitor_id is None else visitor(visitor_id)
    person = None if customer_id is None else customer(customer_id)
    subjects = [subject for subject in (device, person) if subject is not None]
    assert found.online == (
        device is not None
        and book.permitted(device, now)
        and (person is None or book.verdict(person, "online", now) != "refused")
    )
    assert found.crm == (
        person is not None
        and book.permitted(person, now)
        and (device is None or book.verdict(device, "crm", now) != "refused")
    )
    assert found.objected == any(book.objected(subject, now) for subject in subjects)
    assert found.minor == any(book.minor(subject, now) for subject in subjects)
    assert found.contact == frozenset(
        str(channel)
        for channel in CONTACT_CHANNELS
        if person is not None and book.verdict(person, f"contact:{channel}", now) == "granted"
    )
    for purpose in PURPOSES:
        verdicts = {book.verdict(subject, purpose, now) for subject in subjects} - {"unknown"}
        assert (purpose in found.granted_purposes) == (verdicts == {"granted"})
        assert (purpose in found.denied_purposes) == bool(verdicts - {"granted"})


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_ledger_answers_by_the_stated_rules(case: Case) -> None:
    check_stated_rules(case)


@breaks(
    Break(
        "a tie goes to the grant",
        timeline._stated,
        "if others:",
        "if len(others) == len(group):",
        history(said("yes", "granted", 3), said("no", "denied", 3)),
    ),
    Break(
        "a lift in a tie hides a refusal",
        timeline._mildness,
        "state not in _REFUSING, state",
        "state != 'lifted', state",
        history(
            said("no consent of the parents", "withdrawn", 1, permission="parental"),
            said("of age", "lifted", 1, permission="parental", evidence="letter"),
        ),
    ),
    Break(
        "the end of a grant goes unnoticed",
        timeline._stated,
        "following is None or end < following",
        "end is None",
        history(said("for a while", "granted", 1, until=4)),
    ),
    Break(
        "the end of a grant revives the grant before it",
        timeline._stated,
        'reason="expired"',
        'reason="expired") if len(segments) < 2 else Segment(max(end, start), held=True, reason="granted"',
        history(said("first", "granted", 0), said("second", "granted", 2, until=4)),
    ),
    Break(
        "the earliest start governs",
        timeline._stated,
        "if others:",
        "if start != starts[0]:\n            continue\n        if others:",
        history(said("yes", "granted", 1), said("no", "withdrawn", 3)),
    ),
    Break(
        "a conflicting record id is believed",
        timeline._claims_in,
        "if conflicting:",
        "if False:",
    ),
    Break(
        "a record id with two contents goes unreported",
        MemoryStore.conflicts,
        "> 1",
        "> 2",
    ),
    Break(
        "one record id for two subjects is believed of each",
        timeline.claims_of,
        "contents = {version.content: version for version in copies}",
        "contents = {version.content: version for version in copies"
        " if (version.subject_kind, version.subject_id) == subject}",
    ),
    Break(
        "a later grant ends an objection",
        timeline.objections,
        'claim.state == "lifted"',
        'claim.state in {"lifted", "granted"}',
        history(said("objection", "objected", 2), said("banner", "granted", 4)),
    ),
    Break(
        "a lift without evidence lifts",
        timeline._claims_in,
        "version.evidence and version.evidence.strip()",
        "True",
        history(said("objection", "objected", 2), said("lift", "lifted", 3, evidence=" ")),
    ),
    Break(
        "an objection and a lift at one instant: the lift wins",
        timeline.objections,
        "standing = start in raised",
        "standing = start not in {claim.start for claim in own if claim.state == 'lifted'}",
        history(said("objection", "objected", 2), said("lift", "lifted", 2, evidence="letter")),
    ),
    Break(
        "a grant dated ahead takes force",
        timeline._claims_in,
        "start > recorded + CLOCK_SKEW",
        "start > recorded + 99 * CLOCK_SKEW",
        history(said("from 6 on", "granted", 6, learnt=1)),
    ),
    Break(
        "a refusal dated ahead is not heeded at once",
        timeline._claims_in,
        "recorded < start",
        "recorded > start",
    ),
    Break(
        "a refusal dated ahead is forgotten once another grant came",
        timeline._claims_in,
        "claims = [Claim(state, start, end)]",
        "claims = [Claim(state, min(start, recorded) if state in _REFUSING else start, end)]",
        history(said("stop at 6", "withdrawn", 6, learnt=1), said("banner", "granted", 3)),
    ),
    Break(
        "a customer inherits the visitor's consent",
        Ledger.resolve,
        "crm_held = crm.held and",
        "crm_held = (crm.held or (online.held and customer_id is not None)) and",
    ),
    Break(
        "a customer's own no to online data is not heard",
        Ledger.resolve,
        'online_held = online.held and not refusals(customer, "online").at(instant).held',
        "online_held = online.held",
        history(
            said("cookies", "granted", 1),
            said("no cookies", "denied", 2, permission="online", kind="customer"),
        ),
    ),
    Break(
        "an objection counts for one of two subjects only",
        Ledger.resolve,
        "_objected(visitor).at(instant).held or",
        "",
    ),
    Break(
        "who refuses to contribute to models is refused an own answer",
        Ledger.permission,
        "_visitor_timeline(claims, instant)",
        "_trainable(Source.ONLINE, claims, False, instant)",
        history(said("yes", "granted", 1), said("models", "denied", 2, permission="model")),
    ),
    Break(
        "a minor counts as grown up once anything is on record",
        timeline.minority,
        'not segment.held and segment.reason != "lifted"',
        "False",
    ),
    Break(
        "what was learnt later is used in looking back",
        timeline.claims_of,
        "if known is None or version.recorded <= known:",
        "if True:",
    ),
)
def test_a_broken_rule_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_stated_rules, cases(), broken)


@dataclasses.dataclass(frozen=True)
class Delivery:
    """One case, and its entries once more: in another order, some repeated, in two batches."""

    case: Case
    again: Case
    first: int

    def ledger(self) -> Ledger:
        """The ledger after both batches."""
        ledger = Ledger(self.again.records[: self.first], self.again.links[: self.first])
        ledger.append(self.again.records[self.first :])
        ledger.append_links(self.again.links[self.first :])
        return ledger


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    """A case and another way for the same news to arrive."""
    case = draw(cases())
    again = dataclasses.replace(
        case,
        records=tuple(draw(st.permutations([*case.records, *case.records[:2]]))),
        links=tuple(draw(st.permutations([*case.links, *case.links[:1]]))),
    )
    return Delivery(case, again, draw(st.integers(0, 6)))


def other_order(*records: ConsentRecord) -> Delivery:
    """These records, and once more the other way round."""
    return Delivery(history(*records), history(*reversed(records)), 0)


def check_arrival(delivery: Delivery) -> None:
    """The same news in another order, repeated and in two batches, gives the same answers."""
    assert everything(delivery.ledger(), delivery.case) == everything(delivery.case.ledger(), delivery.case)


def everything(ledger: Ledger, case: Case) -> tuple[object, ...]:
    """All that a ledger can be asked."""
    when = case.when
    return (
        ledger.position,
        ledger.conflicts,
        [ledger.resolve(visitor_id=v, customer_id=c, **when) for v, c in PAIRS],
        [
            ledger.standing(source, subject, **when)
            for source in (Source.ONLINE, Source.CRM)
            for subject in IDS
        ],
        ledger.lawful_links(**when),
        [ledger.linked_visitors(customer, **when) for customer in IDS],
    )


@settings(max_examples=60, deadline=None)
@given(deliveries())
def test_order_and_repetition_change_nothing(delivery: Delivery) -> None:
    check_arrival(delivery)


@breaks(
    Break(
        "what arrives last is believed",
        timeline._stated,
        "sorted(by_start)",
        "list(by_start)",
        other_order(said("r1", "granted", 1), said("r2", "withdrawn", 3)),
    ),
    Break("a repetition is counted", MemoryStore._append_record, "if row in known:", "if False:"),
    Break(
        "the first of two conflicting contents is believed",
        timeline.claims_of,
        "for version in contents.values():",
        "for version in copies[:1]:",
        other_order(said("r1", "denied", 3), said("r1", "objected", 3)),
    ),
    Break(
        "the last copy to arrive says when it was learnt",
        timeline.claims_of,
        "min(version.recorded for version in copies)",
        "copies[-1].recorded",
        other_order(said("r1", "granted", 3, learnt=1), said("r1", "granted", 3)),
    ),
)
def test_a_ledger_that_minds_the_order_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_arrival, deliveries(), broken)


def check_late_copies(case: Case) -> None:
    """A copy of a record that is learnt of later, however late, changes nothing."""
    late = [dataclasses.replace(record, recorded_at=at_tick(LAST_TICK + 9)) for record in case.records]
    whole = dataclasses.replace(case, known_at=None)
    before, after = Ledger(case.records, case.links), Ledger([*late, *case.records], case.links)
    assert everything(before, whole)[1:2] == everything(after, whole)[1:2]
    for visitor_id, customer_id in PAIRS:
        first = before.resolve(visitor_id=visitor_id, customer_id=customer_id, at=case.at)
        second = after.resolve(visitor_id=visitor_id, customer_id=customer_id, at=case.at)
        assert dataclasses.replace(second, ledger_position=first.ledger_position) == first


@settings(max_examples=60, deadline=None)
@given(cases())
def test_late_copies_change_nothing(case: Case) -> None:
    check_late_copies(case)


@breaks(
    Break(
        "the first copy to arrive says when it was learnt",
        timeline.claims_of,
        "min(version.recorded for version in copies)",
        "copies[0].recorded",
    ),
    Break(
        "a late copy counts as another content",
        MemoryStore._content,
        "row[:_RECORDED_AT] + row[_RECORDED_AT + 1 :]",
        "row",
    ),
)
def test_a_ledger_that_minds_late_copies_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_late_copies, cases(), broken)


Claimed = tuple[Resolution, Permission]

claimed: st.SearchStrategy[Claimed] = st.tuples(
    st.builds(
        Resolution, online=st.booleans(), crm=st.booleans(), objected=st.booleans(), minor=st.booleans()
    ).flatmap(
        lambda found: st.sampled_from([found, dataclasses.replace(found, linked=found.online and found.crm)])
    ),
    st.sampled_from([Permission.NONE, Permission.ONLINE, Permission.CRM, Permission.ONLINE | Permission.CRM]),
)


def check_claim_only_narrows(case: Claimed) -> None:
    """What a request claims is intersected with what the ledger says; nothing else of it changes."""
    found, claim = case
    narrowed = found.intersected(claim)
    assert narrowed.permission == found.permission & claim
    assert (narrowed.online, narrowed.crm) == (
        found.online and Permission.ONLINE in claim,
        found.crm and Permission.CRM in claim,
    )
    assert narrowed.linked == (found.linked and claim.level == 3)
    assert (narrowed.objected, narrowed.minor) == (found.objected, found.minor)


@given(claimed)
def test_a_claim_in_the_request_never_outranks_the_ledger(case: Claimed) -> None:
    check_claim_only_narrows(case)


@breaks(
    Break(
        "the request's claim is believed",
        Resolution.intersected,
        "crm = self.crm and Permission.CRM in permission",
        "crm = self.crm or Permission.CRM in permission",
    ),
    Break(
        "a link outlives the claim that leaves one permission out",
        Resolution.intersected,
        "linked=self.linked and online and crm",
        "linked=self.linked",
    ),
)
def test_a_claim_that_widens_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_claim_only_narrows, claimed, broken)
