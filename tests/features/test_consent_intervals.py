"""Consent intervals worked out by a table engine: the same as the ledger says of each subject by itself."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
import sys
import zoneinfo
from collections.abc import Iterator
from typing import Any

import ibis
import pyarrow as pa
import pytest
from breaking import Break, assert_breaks, breaks
from consent_cases import LAST_TICK, TICK, Case, at_tick, said
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import consent, day, link, shop
from towns import Town, town_of, towns

from consentier.consent import ConsentRecord, Ledger, Link, Source, microseconds
from consentier.consent.lifetimes import Lifetime, Lifetimes
from consentier.consent.records import PERMISSIONS
from consentier.features import consent_intervals
from consentier.features.consent_intervals import MISSING, ConsentTables, lawful_links, standings

LIFETIMES = Lifetimes.default()
KINDS = {Source.ONLINE: "visitor", Source.CRM: "customer"}


@dataclasses.dataclass(frozen=True)
class Purposes:
    """For what the shop's notice asks separately."""

    model_purpose: bool = False
    fusion_purpose: bool = False


Question = tuple[Town, Purposes]
questions: st.SearchStrategy[Question] = st.tuples(towns(), st.builds(Purposes, st.booleans(), st.booleans()))


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    """One DuckDB for all tests here."""
    before = ibis.options.default_backend
    ibis.options.default_backend = connection = ibis.duckdb.connect()
    yield
    ibis.options.default_backend = before
    connection.disconnect()


Answers = tuple[dict[tuple[str, str], tuple[int | None, str]], dict[str, tuple[str, int]]]
"""By kind and id of the subject: since when, and why (not). By visitor: linked with whom, since when."""


def by_the_engine(tables: ConsentTables, at: dt.datetime, purposes: Purposes = Purposes()) -> Answers:
    """What the expressions say."""
    instant = microseconds(at)
    found = standings(
        ibis.memtable(tables.records),
        ibis.memtable(tables.lifetimes),
        at=instant,
        **dataclasses.asdict(purposes),
    ).to_pyarrow()
    links = lawful_links(ibis.memtable(found), ibis.memtable(tables.links), at=instant).to_pyarrow()
    subjects = {
        (row["subject_kind"], row["subject_id"]): (row["since"] if row["held"] else None, row["reason"])
        for row in found.to_pylist()
    }
    assert len(subjects) == found.num_rows
    return subjects, {row["visitor_id"]: (row["customer_id"], row["since"]) for row in links.to_pylist()}


def by_the_ledger(ledger: Ledger, at: dt.datetime, purposes: Purposes = Purposes()) -> Answers:
    """What the ledger says, one subject after the other."""
    subjects = {}
    for source, kind in KINDS.items():
        for subject in ledger.subjects(source):
            one = ledger.standing(source, subject, at=at, model_purpose=purposes.model_purpose)
            subjects[kind, subject] = (one.since, one.reason)
    links = ledger.lawful_links(at=at, **dataclasses.asdict(purposes))
    return subjects, {visitor: (one.customer_id, one.since) for visitor, one in links.items()}


def tables_of(town: Town, lifetimes: Lifetimes = LIFETIMES) -> ConsentTables:
    """The entries as a shop's tables hold them, with nothing that a ledger would work out beforehand."""
    consents = [dataclasses.asdict(record) for record in town.records]
    identities = [dataclasses.asdict(each) for each in town.links]
    return ConsentTables.of_shop(shop(consents=consents, identities=identities), lifetimes)


def check_engine_and_ledger_agree(question: Question) -> None:
    """On everybody's standing and on every link."""
    town, purposes = question
    assert by_the_engine(tables_of(town), town.at, purposes) == by_the_ledger(
        town.ledger(), town.at, purposes
    )


@settings(max_examples=20, deadline=None)
@given(questions)
def test_the_engine_says_of_everybody_what_the_ledger_says_of_each(question: Question) -> None:
    check_engine_and_ledger_agree(question)


@settings(max_examples=6, deadline=None)
@given(towns(), st.randoms(use_true_random=False))
def test_order_and_repetition_of_rows_change_nothing(town: Town, chance: random.Random) -> None:
    """A table may hold the same record many times, where a ledger takes it in once."""
    tables = tables_of(town)
    mixed = dataclasses.replace(
        tables,
        records=tables.records.take(_twice(tables.records, chance)),
        links=tables.links.take(_twice(tables.links, chance)),
    )
    assert by_the_engine(mixed, town.at) == by_the_engine(tables, town.at)


def _twice(table: pa.Table, chance: random.Random) -> pa.Array:
    rows = [*range(table.num_rows)] * 2
    return pa.array(chance.sample(rows, len(rows)), pa.int64())


@settings(max_examples=10, deadline=None)
@given(towns(), st.data())
def test_what_a_ledger_remembers_of_erased_subjects_counts(town: Town, data: st.DataObject) -> None:
    """A contradicted record stays contradicted and a shared device shared when one of the two is erased."""
    ledger = town.ledger()
    subjects = [(record.subject_kind, record.subject_id) for record in town.records]
    subjects += [("customer", each.customer_id) for each in town.links]
    if subjects:
        for kind, subject in data.draw(st.lists(st.sampled_from(subjects), max_size=3, unique=True)):
            ledger.erase(subject, kind=kind)
    assert by_the_engine(ConsentTables.of(ledger), town.at) == by_the_ledger(ledger, town.at)


SHORT_LIVED = Lifetimes(
    "test",
    (
        Lifetime(frozenset({"online", "crm"}), None, "x", collected_by=frozenset({"letter"})),
        Lifetime(frozenset(PERMISSIONS), 1, "x", jurisdictions=frozenset({"FR"})),
        Lifetime(frozenset(PERMISSIONS), 3, "x"),
    ),
)


def in_days(town: Town, chance: random.Random) -> Town:
    """The same town with days for ticks, collected by several systems under several laws."""
    kinds = [
        {"collected_by": by, "jurisdiction": law} for by in (None, "letter") for law in (None, "fr", "DE")
    ]
    kind_of = {record.record_id: chance.choice(kinds) for record in town.records}

    def later(when: dt.datetime) -> dt.datetime:
        return at_tick(0) + (when - at_tick(0)) * (dt.timedelta(days=1) / TICK)

    def slower(house: Case) -> Case:
        records = [
            dataclasses.replace(
                record,
                valid_from=later(record.valid_from),
                recorded_at=later(record.recorded_at),
                valid_to=None if record.valid_to is None else later(record.valid_to),
                **kind_of[record.record_id],
            )
            for record in house.records
        ]
        return Case(tuple(records), (), later(house.at))

    return Town(tuple(slower(house) for house in town.houses))


def check_grants_expire_by_age(town: Town) -> None:
    """As the ledger lets them."""
    ledger = Ledger(town.records, lifetimes=SHORT_LIVED)
    assert by_the_engine(tables_of(town, SHORT_LIVED), town.at) == by_the_ledger(ledger, town.at)


@settings(max_examples=10, deadline=None)
@given(towns(), st.randoms(use_true_random=False))
def test_grants_expire_by_age_as_in_the_ledger(town: Town, chance: random.Random) -> None:
    check_grants_expire_by_age(in_days(town, chance))


OLD = dataclasses.replace(said("first", "granted", 0), jurisdiction="FR")


@breaks(
    Break(
        "age does not matter",
        consent_intervals._claims,
        "ibis.least(joined.valid_to, joined.valid_from + joined.lifetime.fill_null(0))",
        "joined.valid_to",
        Town((Case((OLD,), (), at_tick(0) + dt.timedelta(days=1)),)),
    ),
    Break(
        "a grant lives twice as long as it may",
        consent_intervals._claims,
        "joined.lifetime.fill_null(0)",
        "joined.lifetime.fill_null(0) * 2",
        Town((Case((OLD,), (), at_tick(0) + dt.timedelta(days=1)),)),
    ),
)
def test_a_broken_lifetime_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_grants_expire_by_age, towns(), broken)


def test_a_kind_of_grant_that_no_lifetime_is_told_for_expires_at_once() -> None:
    tables = tables_of(town_of(Case((said("first", "granted", 0),), (), at_tick(1))))
    forgotten = dataclasses.replace(tables, lifetimes=tables.lifetimes.slice(0, 0))
    assert by_the_engine(forgotten, at_tick(1))[0] == {("visitor", "0/a"): (None, "expired")}


# ---- Mutants -----------------------------------------------------------------------------------------------


def asked(*records: ConsentRecord, links: tuple[Link, ...] = (), **purposes: bool) -> Question:
    """These records, asked about at the last tick."""
    return town_of(Case(records, links, at_tick(LAST_TICK))), Purposes(**purposes)


GRANTED = said("first", "granted", 0)
BOTH = (GRANTED, said("crm", "granted", 0, permission="crm", kind="customer"))
LOGIN = (Link("a", "a", at_tick(3)),)
PARENTS = said("parents", "granted", 5, permission="parental")
LIFT = said("lift", "lifted", 5, evidence="letter")


@breaks(
    Break(
        "silence is no hindrance",
        consent_intervals._silence,
        "_own_permission(subjects))",
        'ibis.literal("ads"))',
        asked(said("other", "granted", 0, permission="contact:email")),
    ),
    Break(
        "a permission is held since its first grant, whatever came between",
        standings,
        "since=found.end.max(where=learning)",
        "since=found.end.min(where=learning)",
        asked(GRANTED, said("stop", "withdrawn", 2), said("again", "granted", 4)),
    ),
    Break(
        "a grant never expires",
        consent_intervals.hindrances,
        "ibis.greatest(moments.start, moments.expiry)",
        "moments.end",
        asked(said("first", "granted", 0, until=2)),
    ),
    Break(
        "of two records with one start the mildest speaks",
        consent_intervals.hindrances,
        'rank=claims["rank"].min()',
        'rank=claims["rank"].max()',
        asked(GRANTED, said("no", "denied", 0)),
    ),
    Break(
        "of two grants with one start the later end counts",
        consent_intervals.hindrances,
        "expiry=claims.expiry.min()",
        "expiry=claims.expiry.max()",
        asked(GRANTED, said("short", "granted", 0, until=2)),
    ),
    Break(
        "a later grant ends an objection",
        consent_intervals.hindrances,
        "(moments.last_raised >= moments.last_lifted)",
        "moments.raised",
        asked(GRANTED, said("stop", "objected", 2), said("again", "granted", 4)),
    ),
    Break(
        "an objection and a lift with one start: the lift speaks",
        consent_intervals.hindrances,
        "moments.last_raised >= moments.last_lifted",
        "moments.last_raised > moments.last_lifted",
        asked(
            GRANTED,
            said("other", "granted", 6, permission="crm"),
            said("stop", "objected", 5, permission="crm"),
            dataclasses.replace(LIFT, permission="crm"),
        ),
    ),
    Break(
        "what begins later counts today",
        consent_intervals.hindrances,
        "claims.filter(claims.start <= at)",
        "claims",
        asked(said("no", "denied", 0), said("later", "granted", LAST_TICK + 1)),
    ),
    Break(
        "an objection to the other source is not heard",
        standings,
        "own | objection | minority",
        "own | minority",
        asked(GRANTED, said("stop", "objected", 2, permission="crm")),
    ),
    Break(
        "a minor without parental consent counts",
        standings,
        "own | objection | minority",
        "own | objection",
        asked(GRANTED, said("child", "denied", 2, permission="parental")),
    ),
    Break(
        "who was a minor remains one",
        standings,
        '(found.permission == PARENTAL) & (found.reason != "lifted")',
        "found.permission == PARENTAL",
        asked(GRANTED, dataclasses.replace(LIFT, permission="parental")),
    ),
    Break(
        "a child's own consent carries the time before parents were heard of",
        consent_intervals.hindrances,
        'childhood = ~silent | (spans.following != _rank("lifted"))',
        "childhood = ~silent",
        asked(GRANTED, PARENTS),
    ),
    Break(
        "a link that a child made holds once the parents consent",
        consent_intervals.hindrances,
        'childhood = ~silent | (spans.following != _rank("lifted"))',
        "childhood = ~silent",
        asked(*BOTH, dataclasses.replace(PARENTS, subject_kind="customer"), links=LOGIN),
    ),
    Break(
        "who was never a child was one before the lift",
        consent_intervals.hindrances,
        '~silent | (spans.following != _rank("lifted"))',
        "spans.end != FOREVER",
        asked(GRANTED, dataclasses.replace(LIFT, permission="parental")),
    ),
    Break(
        "that a child's parents will be heard of is known before",
        consent_intervals.hindrances,
        '.fill_null(_rank("lifted"))',
        ".fill_null(0)",
        asked(GRANTED, dataclasses.replace(PARENTS, valid_from=at_tick(LAST_TICK + 1))),
    ),
    Break(
        "a refusal to contribute to models is not heard",
        standings,
        "learning = personal | model",
        "learning = personal",
        asked(GRANTED, said("models", "denied", 2, permission="model")),
    ),
    Break(
        "silence on models counts as consent where the notice asks",
        standings,
        '("model", model_purpose)',
        '("model", False)',
        asked(GRANTED, model_purpose=True),
    ),
    Break(
        "silence on joining counts as consent where the notice asks",
        standings,
        '("fusion", fusion_purpose)',
        '("fusion", False)',
        asked(*BOTH, links=LOGIN, fusion_purpose=True),
    ),
    Break(
        "joining must be granted by both",
        lawful_links,
        "ibis.least(pairs.visitor_fusion_since",
        "ibis.greatest(pairs.visitor_fusion_since",
        asked(*BOTH, said("join", "granted", 1, permission="fusion"), links=LOGIN, fusion_purpose=True),
    ),
    Break(
        "a refusal of joining is not heard",
        standings,
        "model | (fusion & ~silence)",
        "model",
        asked(*BOTH, said("apart", "denied", 2, permission="fusion"), links=LOGIN),
    ),
    Break(
        "nobody's word on the other source is heard",
        standings,
        "personal | (source & found.reason.isin(REFUSING))",
        "personal",
        asked(*BOTH, said("no", "denied", 2, permission="crm"), links=LOGIN),
    ),
    Break(
        "a link holds although a permission was missing when it was made",
        lawful_links,
        "pairs.linkable <= pairs.linked_at, ",
        "",
        asked(GRANTED, said("late", "granted", 4, permission="crm", kind="customer"), links=LOGIN),
    ),
    Break(
        "a shared device links with one of its users",
        lawful_links,
        "devices.customer_id == devices.first_customer, ",
        "",
        asked(
            *BOTH,
            links=(Link("a", "0", at_tick(3)), *LOGIN),
        ),
    ),
    Break(
        "a login of tomorrow links today",
        lawful_links,
        "links.filter(links.linked_at <= at)",
        "links",
        asked(*BOTH, links=(Link("a", "a", at_tick(LAST_TICK + 1)),)),
    ),
    Break(
        "a link is made whatever the customer says",
        lawful_links,
        "pairs.customer_joinable_since,",
        "",
        asked(*BOTH, said("models", "denied", 4, permission="model", kind="customer"), links=LOGIN),
    ),
    Break(
        "a record id with two contents proves both",
        consent_intervals._claims,
        "conflicting = joined.known | (joined.contents.fill_null(1) > 1)",
        "conflicting = joined.known",
        asked(GRANTED, said("first", "granted", 1)),
    ),
    Break(
        "a contradiction ends as one of the contents says",
        consent_intervals._claims,
        '(conflicting & (joined.state != "objected"), "conflicting")',
        '(conflicting & (joined.state != "objected"), "denied")',
        asked(GRANTED, said("first", "granted", 1)),
    ),
    Break(
        "a record that comes again with a later time counts as told then",
        consent_intervals._claims,
        "recorded=records.first_recorded.min()",
        "recorded=records.first_recorded.max()",
        asked(said("first", "granted", 4, learnt=2), said("first", "granted", 4, learnt=4)),
    ),
    Break(
        "a lift without evidence ends an objection",
        consent_intervals._claims,
        '((joined.state == "lifted") & ~evidenced, "lifted without evidence"),',
        "",
        asked(
            GRANTED, said("stop", "objected", 2, permission="crm"), said("x", "lifted", 4, permission="crm")
        ),
    ),
    Break(
        "a grant that was recorded before its start counts",
        consent_intervals._claims,
        "joined.recorded + CLOCK_SKEW",
        "joined.recorded + FOREVER // 2",
        asked(said("first", "granted", 4, learnt=2)),
    ),
    Break(
        "clocks must not differ at all",
        consent_intervals._claims,
        "joined.recorded + CLOCK_SKEW",
        "joined.recorded",
        asked(said("first", "granted", 4, learnt=3)),
    ),
    Break(
        "a refusal is heeded only when the start that it names has come",
        consent_intervals._claims,
        'for claims, begun in ((told, "valid_from"), (refusals, "recorded"))',
        'for claims, begun in ((told, "valid_from"),)',
        asked(GRANTED, said("stop", "withdrawn", LAST_TICK + 5, learnt=2)),
    ),
    Break(
        "a refusal is forgotten when the start that it names has come",
        consent_intervals._claims,
        'for claims, begun in ((told, "valid_from"), (refusals, "recorded"))',
        'for claims, begun in ((told.filter(told["rank"] > 3), "valid_from"), (refusals, "recorded"))',
        asked(GRANTED, said("stop", "withdrawn", 6, learnt=2), said("between", "granted", 4)),
    ),
)
def test_a_broken_interval_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_engine_and_ledger_agree, questions, broken)


# ---- The edges, told as examples ---------------------------------------------------------------------------


def standing(*records: ConsentRecord, at: dt.datetime) -> tuple[int | None, str]:
    """How one visitor stands."""
    ((_, answer),) = by_the_engine(ConsentTables.of(Ledger(records)), at)[0].items()
    return answer


MICROSECOND = dt.timedelta(microseconds=1)


def test_intervals_are_half_open() -> None:
    granted = said("first", "granted", 2, until=4)
    since = microseconds(at_tick(2))
    assert standing(granted, at=at_tick(2) - MICROSECOND) == (None, "unknown")
    assert standing(granted, at=at_tick(2)) == (since, "granted")
    assert standing(granted, at=at_tick(4) - MICROSECOND) == (since, "granted")
    assert standing(granted, at=at_tick(4)) == (None, "expired")


def test_a_renewal_at_the_very_end_leaves_no_gap() -> None:
    records = said("first", "granted", 2, until=4), said("second", "granted", 4)
    assert standing(*records, at=at_tick(5)) == (microseconds(at_tick(2)), "granted")
    late = dataclasses.replace(records[1], valid_from=at_tick(4) + MICROSECOND)
    assert standing(records[0], late, at=at_tick(5)) == (microseconds(at_tick(4)) + 1, "granted")


@pytest.mark.parametrize("fold", [0, 1])
def test_the_hour_that_comes_twice_is_two_hours(fold: int) -> None:
    """When summer time ends, half past two comes twice: before a withdrawal, and after it."""
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    granted, stopped = (
        dataclasses.replace(said("x", state, 0), record_id=state, valid_from=when, recorded_at=when)
        for state, when in (
            ("granted", dt.datetime(2025, 10, 26, 1, 0, tzinfo=berlin)),
            ("withdrawn", dt.datetime(2025, 10, 26, 2, 45, tzinfo=berlin)),
        )
    )
    asked_at = dt.datetime(2025, 10, 26, 2, 30, tzinfo=berlin, fold=fold)
    since = microseconds(dt.datetime(2025, 10, 25, 23, 0, tzinfo=dt.UTC))
    assert standing(granted, stopped, at=asked_at) == ((None, "withdrawn") if fold else (since, "granted"))


def test_a_contradiction_that_only_the_ledger_remembers_is_still_one() -> None:
    """After one of two contents was erased, the other still proves nothing."""
    tables = ConsentTables.of(Ledger([said("first", "granted", 0)]))
    position = tables.records.schema.get_field_index("conflicting")
    remembered = tables.records.set_column(position, "conflicting", pa.array([True]))
    subjects, _ = by_the_engine(dataclasses.replace(tables, records=remembered), at_tick(4))
    assert subjects == {("visitor", "a"): (None, "conflicting")}


def test_a_device_that_the_ledger_remembers_as_shared_links_to_nobody() -> None:
    """After the second customer was erased, the first is still not the only one."""
    tables = ConsentTables.of(Ledger(BOTH, LOGIN))
    assert by_the_engine(tables, at_tick(LAST_TICK))[1] == {"a": ("a", microseconds(at_tick(0)))}
    mark = pa.table(
        {"visitor_id": ["a"], "customer_id": [MISSING], "linked_at": [0], "evidence": [MISSING]},
        schema=tables.links.schema,
    )
    marked = dataclasses.replace(tables, links=pa.concat_tables([tables.links, mark]))
    assert by_the_engine(marked, at_tick(LAST_TICK))[1] == {}


def test_white_space_of_any_kind_is_no_evidence() -> None:
    """Engines differ in what they take for white space; Python's `str.strip` is what the ledger goes by."""
    spaces = [chr(code) for code in range(sys.maxunicode + 1) if not chr(code).strip()]
    evidence = [*spaces, "".join(spaces), "\u200b", "x", " x\n", ""]
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(evidence):
        rows.append({**consent(f"v{number}", "online"), "record_id": f"{number} granted"})
        rows.append({**consent(f"v{number}", "crm", "objected", 1), "record_id": f"{number} objected"})
        lift = consent(f"v{number}", "crm", "lifted", 2)
        rows.append({**lift, "record_id": f"{number} lifted", "evidence": text})
    subjects, _ = by_the_engine(ConsentTables.of_shop(shop(consents=rows), LIFETIMES), day(3))
    found = {evidence[int(name[1:])]: reason for (_, name), (_, reason) in subjects.items()}
    assert found == {text: "granted" if text.strip() else "objected" for text in evidence}


def test_nobody_and_nothing() -> None:
    assert by_the_engine(ConsentTables.of(Ledger()), day(1)) == ({}, {})
    alone = shop(identities=[link("v1", "c1")])
    assert by_the_engine(ConsentTables.of_shop(alone, LIFETIMES), day(2)) == ({}, {})
