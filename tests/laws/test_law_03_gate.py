"""Third law, at the gate: a row passes only if permission held at every instant from event to cut-off.

What training gets to see of a shop's tables is compared, row by row, with a rulebook that looks at one
instant at a time. A withdrawal ends the time that counts for good: who grants anew begins anew.
"""

from __future__ import annotations

import datetime as dt
import functools
import itertools
from collections.abc import Callable, Sequence

import pytest
from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, LAST_TICK, TICK, Case, at_tick, instants_between, said
from consent_rulebook import Rulebook, Subject, customer, visitor
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import consent, day, event, order, shop
from towns import Town, town_of, towns

from consentier.consent import ConsentRecord, Ledger, Link, Policy, Switches, Tier, microseconds
from consentier.features import consent_intervals, gate
from consentier.features.gate import ConsentGate, PermittedRows, ledger_of
from consentier.features.tables import ShopTables

Kept = set[tuple[str, str, int]]
"""Person, source and instant of each row that passed."""

GateCase = tuple[Tier, Town, Switches]
gate_cases: st.SearchStrategy[GateCase] = st.tuples(
    st.sampled_from((Tier.ONLINE, Tier.CRM, Tier.FUSED)),
    towns(),
    st.builds(
        Switches,
        model_purpose=st.booleans(),
        fusion_purpose=st.booleans(),
        include_single_source_in_fused=st.booleans(),
    ),
)


def instants() -> list[dt.datetime]:
    """When something happened: at and between all ticks, up to the cut-off and beyond."""
    return [*instants_between(at_tick(-1), at_tick(LAST_TICK)), at_tick(LAST_TICK) + TICK]


@functools.cache
def busy_shop(houses: int) -> ShopTables:
    """Everybody in some houses does something at each of these instants, online and as a customer."""
    everybody = [f"{house}/{who}" for house in range(houses) for who in IDS]
    moments = instants()
    events = [{**event(who, "item", 0), "ts": when} for who in everybody for when in moments]
    orders = [
        {**order(who, "item", 0), "ts": when, "line_id": str(line)}
        for who in everybody
        for line, when in enumerate(moments)
    ]
    return shop(events=events, orders=orders)


def through_the_gate(town: Town, switches: Switches, tier: Tier) -> Kept:
    """What passes for a tier."""
    policy = Policy("test", Policy.default().matrix, switches)
    rows = ConsentGate(busy_shop(len(town.houses)), town.ledger(), town.at, policy).permitted(tier).rows
    return {(row["person"], row["source"], row["ts"]) for row in rows.to_pylist()}


def by_the_rulebook(town: Town, switches: Switches, tier: Tier) -> Kept:
    """What should pass, one house and one instant at a time."""
    kept: Kept = set()
    for number, house in enumerate(town.houses):
        book, ids = Rulebook(house), [f"{number}/{who}" for who in IDS]
        if tier is Tier.FUSED:
            kept |= _joint(book, ids, switches, house)
            continue
        kind = customer if tier is Tier.CRM else visitor
        for who in ids:
            kept |= _alone(book, kind(who), switches, house)
    return kept


def _alone(book: Rulebook, subject: Subject, switches: Switches, case: Case) -> Kept:
    """One subject's own rows, by its own permission."""
    moments = _since(lambda when: book.learnable(subject, when, model_purpose=switches.model_purpose), case)
    return _rows(subject, "online" if subject[0] == "visitor" else "crm", moments)


def _joint(book: Rulebook, ids: Sequence[str], switches: Switches, case: Case) -> Kept:
    """Rows of linked devices and customers since joining was lawful; others as the switch says."""
    kept: Kept = set()
    linked: set[Subject] = set()
    for device in ids:
        owner = book.customer_of(device)
        if owner is None:
            continue
        pair = visitor(device), customer(owner)

        def lawful(when: dt.datetime, pair: tuple[Subject, Subject] = pair) -> bool:
            learnable = (book.learnable(each, when, model_purpose=switches.model_purpose) for each in pair)
            fusible = book.fusible(*pair, when, required=switches.fusion_purpose)
            return book.joinable(*pair, when) and all(learnable) and fusible

        if lawful(case.at):
            linked.update(pair)
            moments = _since(lawful, case)
            kept |= _rows(customer(owner), "online", moments) | _rows(customer(owner), "crm", moments)
    if switches.include_single_source_in_fused:
        for subject in (*map(visitor, ids), *map(customer, ids)):
            kept |= set() if subject in linked else _alone(book, subject, switches, case)
    return kept


def _since(lawful: Callable[[dt.datetime], bool], case: Case) -> list[dt.datetime]:
    """Back from the cut-off, the instants before it from which on something was lawful throughout."""
    back = [case.at, *sorted((when for when in instants() if when < case.at), reverse=True)]
    return list(itertools.takewhile(lawful, back))[1:]


def _rows(person: Subject, source: str, moments: list[dt.datetime]) -> Kept:
    return {(":".join(person), source, microseconds(when)) for when in moments}


def check_gate(case: GateCase) -> None:
    """Exactly the rows that the rulebook lets pass."""
    tier, town, switches = case
    assert through_the_gate(town, switches, tier) == by_the_rulebook(town, switches, tier)


@settings(max_examples=15, deadline=None)
@given(gate_cases)
def test_exactly_the_rows_pass_whose_permission_held_to_the_cutoff(case: GateCase) -> None:
    check_gate(case)


def one_visitor(*records: ConsentRecord, **switches: bool) -> GateCase:
    """What visitor a decided; a cut-off at the last tick."""
    return Tier.ONLINE, town_of(Case(records, (), at_tick(LAST_TICK))), Switches(**switches)


def one_person(*records: ConsentRecord, login: int | None = 3, **switches: bool) -> GateCase:
    """Visitor a logged in as customer a; both permit, and then these records; a cut-off at the last tick."""
    consents = (said("online", "granted", 0), said("crm", "granted", 0, permission="crm", kind="customer"))
    links = () if login is None else (Link("a", "a", at_tick(login)),)
    case = Case((*consents, *records), links, at_tick(LAST_TICK))
    return Tier.FUSED, town_of(case), Switches(**switches)


GRANTED_LATE = one_visitor(said("late", "granted", 2))
GRANTED_AGAIN = one_visitor(
    said("first", "granted", 0), said("stop", "withdrawn", 2), said("again", "granted", 4)
)


@breaks(
    Break(
        "rows from before the permission pass",
        gate.gate_expression,
        '(joined.ts < joined.since, "no permission then"),',
        "",
        GRANTED_LATE,
    ),
    Break(
        "the instant of the grant itself is left out",
        gate.gate_expression,
        "joined.ts < joined.since",
        "joined.ts <= joined.since",
        GRANTED_LATE,
    ),
    Break(
        "the instant of the cut-off passes",
        gate.gate_expression,
        "joined.ts >= until",
        "joined.ts > until",
        GRANTED_LATE,
    ),
    Break(
        "a later grant makes earlier rows lawful",
        consent_intervals.standings,
        "since=found.end.max(where=learning)",
        "since=found.end.min(where=learning)",
        GRANTED_AGAIN,
    ),
    Break(
        "a lapse before a renewal is bridged",
        consent_intervals.hindrances,
        "ibis.greatest(moments.start, moments.expiry)",
        "moments.end",
        one_visitor(said("first", "granted", 0, until=2), said("renewed", "granted", 4)),
    ),
    Break(
        "a past objection is forgotten",
        consent_intervals.standings,
        "own | objection | minority",
        "own | minority",
        one_visitor(
            said("first", "granted", 0),
            said("objection", "objected", 2, permission="crm"),
            said("lift", "lifted", 3, permission="crm", evidence="letter"),
        ),
    ),
    Break(
        "time as a minor without parental consent counts",
        consent_intervals.standings,
        "own | objection | minority",
        "own | objection",
        one_visitor(
            said("first", "granted", 0),
            said("child", "denied", 2, permission="parental"),
            said("parent", "granted", 3, permission="parental"),
        ),
    ),
    Break(
        "a child's own consent carries the time before parents were heard of",
        consent_intervals.hindrances,
        'childhood = ~silent | (spans.following != _rank("lifted"))',
        "childhood = ~silent",
        one_visitor(said("first", "granted", 0), said("parent", "granted", 3, permission="parental")),
    ),
    Break(
        "a contradicted record still permits",
        consent_intervals._claims,
        "conflicting = joined.known | (joined.contents.fill_null(1) > 1)",
        "conflicting = ibis.literal(False)",
        one_visitor(said("twice", "granted", 0), said("twice", "granted", 0, until=LAST_TICK + 1)),
    ),
    Break(
        "whoever is not permitted any more is learnt from until then",
        consent_intervals.standings,
        "held=(by_subject.since < FOREVER).fill_null(False)",
        "held=True, since=by_subject.linkable_since % FOREVER",
        one_visitor(said("first", "granted", 0), said("stop", "withdrawn", 4)),
    ),
    Break(
        "the model purpose is not asked about",
        ConsentGate._ask,
        "model_purpose=self.policy.switches.model_purpose",
        "model_purpose=False",
        one_visitor(said("late", "granted", 2), model_purpose=True),
    ),
    Break(
        "the fusion purpose is not asked about",
        ConsentGate._ask,
        "fusion_purpose=self.policy.switches.fusion_purpose",
        "fusion_purpose=False",
        one_person(fusion_purpose=True),
    ),
    Break(
        "joint rows from before joining was lawful pass",
        gate.joint_standings,
        "since=linked.ifelse(both.joined_since, both.since)",
        "since=both.since",
        one_person(
            said("apart", "denied", 4, permission="fusion"), said("again", "granted", 5, permission="fusion")
        ),
    ),
    Break(
        "a link from before both permissions is lawful",
        consent_intervals.lawful_links,
        "pairs.linkable <= pairs.linked_at, ",
        "",
        one_person(
            said("stop", "withdrawn", 4, permission="crm", kind="customer"),
            said("again", "granted", 5, permission="crm", kind="customer"),
        ),
    ),
    Break(
        "single sources take part in the joint model unasked",
        gate.joint_standings,
        "both.held & alone_too",
        "both.held",
        one_person(login=None),
    ),
)
def test_a_broken_gate_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_gate, gate_cases, broken)


# ---- The edges, told as examples ---------------------------------------------------------------------------


def kept(tables: ShopTables, tier: Tier = Tier.ONLINE, **options: dt.datetime) -> PermittedRows:
    """What passes with a cut-off on day 20, under the default policy."""
    cutoff = options.pop("cutoff", day(20))
    return ConsentGate(tables, ledger_of(tables), cutoff, Policy.default(), **options).permitted(tier)


def days(permitted: PermittedRows) -> list[float]:
    """The days on which the rows that passed happened."""
    return [(when - microseconds(day(0))) / 86_400_000_000 for when in permitted.rows["ts"].to_pylist()]


MICROSECOND = 1 / 86_400_000_000


def test_permission_is_half_open_at_both_ends() -> None:
    moments = [5 - MICROSECOND, 5, 5 + MICROSECOND, 20 - MICROSECOND, 20, 20 + MICROSECOND]
    events = [event("v1", "item", moment) for moment in moments]
    tables = shop(events=events, consents=[consent("v1", "online", at=5)])
    assert kept(tables).rows["ts"].to_pylist() == [microseconds(day(moment)) for moment in moments[1:4]]


@pytest.mark.parametrize(("until", "passes"), [(20, False), (20 + MICROSECOND, True), (19, False)])
def test_a_permission_that_ends_at_the_cutoff_has_ended(until: float, passes: bool) -> None:
    tables = shop(events=[event("v1", "item", 8)], consents=[consent("v1", "online", at=5, until=until)])
    assert bool(kept(tables).rows.num_rows) is passes


def test_who_grants_anew_begins_anew() -> None:
    decisions = [
        consent("v1", "online"),
        consent("v1", "online", "withdrawn", 7),
        consent("v1", "online", at=12),
    ]
    tables = shop(events=[event("v1", "item", moment) for moment in range(1, 18)], consents=decisions)
    assert days(kept(tables)) == [12, 13, 14, 15, 16, 17]
    funnel = kept(tables).funnel[0]
    assert (funnel.rows_in, funnel.rows_kept, funnel.excluded) == (17, 6, {"no permission then": 11})


def test_a_renewal_before_the_end_interrupts_nothing() -> None:
    decisions = [consent("v1", "online", until=9), consent("v1", "online", at=8)]
    tables = shop(events=[event("v1", "item", moment) for moment in (1, 8, 9, 10)], consents=decisions)
    assert days(kept(tables)) == [1, 8, 9, 10]


def test_rows_until_the_test_period_of_those_who_permit_it_to_its_end() -> None:
    decisions = [consent("v1", "online"), consent("v2", "online"), consent("v2", "online", "withdrawn", 15)]
    events = [event(who, "item", moment) for who in ("v1", "v2") for moment in (5, 10, 12)]
    permitted = kept(shop(events=events, consents=decisions), until=day(10))
    assert days(permitted) == [5]
    assert permitted.rows["person"].to_pylist() == ["visitor:v1"]


def test_a_person_who_permits_only_from_the_cutoff_on_adds_no_row() -> None:
    tables = shop(orders=[order("c1", "item", 5)], consents=[consent("c1", "crm", at=20)])
    assert kept(tables, Tier.CRM).rows.num_rows == 0


def test_an_empty_ledger_lets_nothing_pass() -> None:
    tables = shop(events=[event("v1", "item", 5)], orders=[order("c1", "item", 5)])
    empty = ConsentGate(tables, Ledger(), day(20), Policy.default())
    for tier in (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED):
        permitted = empty.permitted(tier)
        assert permitted.rows.num_rows == 0
        assert {reason for funnel in permitted.funnel for reason in funnel.excluded} == {"no consent record"}
        assert not permitted.attributes
