"""The consent gate of training: from a shop's tables, exactly the rows that a tier may be trained on.

A row passes if the permission held at every instant from the row to the training cut-off (the third law of
the engine). `consent_intervals` works out in which half-open interval up to the cut-off each subject has held
it without interruption; the gate joins the rows with these intervals. Both are expressions for a table
engine, and only rows that pass, and counts of the others, leave it. What comes out is all that features,
training, tuning and evaluation ever see of a table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consentier.consent import ConsentRecord, Ledger, Lifetimes, Link, Policy, Source, Tier, microseconds
from consentier.consent.records import OWNER, SubjectKind
from consentier.features.consent_intervals import BEGINNING, ConsentTables, lawful_links, standings
from consentier.features.embedded_engine import embedded_engine
from consentier.features.tables import ShopTables

__all__ = [
    "CANONICAL_ORDER",
    "HOLDERS",
    "ConsentGate",
    "Funnel",
    "GateTables",
    "PermittedRows",
    "anonymous_standings",
    "gate_expression",
    "holders_of",
    "joint_standings",
    "judged_rows",
    "judged_strangers",
    "ledger_of",
    "metadata_of",
    "own_standings",
    "passed_rows",
    "passed_subjects",
    "purchase_rows",
    "require_persons",
    "sensitive_items",
    "standings_of_attributes",
    "verdicts_of",
]

_INTEREST = ("view", "click", "cart", "favourite", "order")
"""Event types that show interest. Taking something out of a cart or off a list does not."""

_BOUGHT = ("ordered", "usage")
"""Of customers: orders that stand, and products in use."""

_OF_PERSONS = frozenset({Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED})
"""The tiers that are trained on rows of persons."""

HOLDERS: Mapping[Tier, tuple[SubjectKind, ...]] = {
    Tier.SESSION: ("visitor",),
    Tier.ONLINE: ("visitor",),
    Tier.CRM: ("customer",),
    Tier.FUSED: ("visitor", "customer"),
    Tier.POPULAR: ("visitor", "customer"),
}
"""Whose rows a tier can rest on."""

_PASSED = "passed"

_SORTED_AT_ONCE = 1_000_000
"""Rows. Sorting takes more memory than what is sorted; each part takes another look at all rows."""

_ROWS = pa.schema(
    [
        ("person", pa.string()),
        ("session_id", pa.string()),
        ("item_id", pa.string()),
        ("ts", pa.int64()),
        ("event_type", pa.string()),
        ("source", pa.string()),
    ]
)

CANONICAL_ORDER = ("person", "ts", "item_id", "event_type", "source", "session_id")
"""One order for one set of rows, whatever order they came in: by UTF-8 bytes, ascending, nulls last."""


@dataclasses.dataclass(frozen=True, slots=True)
class Funnel:
    """How many rows of a source came to the gate for a tier, how many passed, and why the others did not."""

    tier: str
    source: str
    rows_in: int
    rows_kept: int
    excluded: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class PermittedRows:
    """What one tier may be trained on.

    Attributes
    ----------
    rows
        Columns person, session_id (null for orders), item_id, ts (microseconds since the epoch), event_type
        and source (``online`` or ``crm``), in canonical order. `person` is a pseudonym within this table: the
        kind and id of a visitor, of a customer, or of a customer with the linked visitors.
    attributes
        Columns person and one per attribute; None where the tier reads none.
    funnel
        What the gate kept out, by source and reason.
    subjects
        Columns kind (``visitor`` or ``customer``) and subject_id: whose rows and attributes these are, each
        once. For the index of who is in which bundle, and nothing else. Nobody is behind anonymous rows.
    until
        Microseconds since the epoch: all rows are from before it.
    items
        Column item_id and the metadata of items, without sensitive ones; None where the shop has none. No
        person is in them, so that every tier may read them.
    """

    rows: pa.Table
    attributes: pa.Table | None
    funnel: tuple[Funnel, ...]
    subjects: pa.Table
    until: int
    items: pa.Table | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Attributes:
    """Attributes that a tier may be trained on, and of which customers."""

    table: pa.Table
    customer_ids: pa.ChunkedArray


@dataclasses.dataclass(frozen=True, slots=True)
class ConsentGate:
    """Cuts out of a shop's tables what each tier may be trained on.

    Parameters
    ----------
    shop
        The shop's tables.
    ledger
        Its consents and links: a ledger, or its entries as tables. It is asked about everybody once, when the
        gate is made: later entries are not seen.
    cutoff
        The cut-off: the instant up to which the permissions must have held. Rows at or after it stay out.
    policy
        Its switches say which purposes the shop's notice separates.
    until
        Rows at or after this instant stay out; the cut-off by default. Evaluation trains on rows until the
        start of its test period, of those who permit it to the end of that period.
    engine
        The Ibis backend that does the work; by default a DuckDB in this process. What comes out is the same.

    Notes
    -----
    n log n in the ledger's entries and in the rows that pass, linear in all others. Memory: the entries, a
    few hundred bytes per subject, and the rows that pass.
    """

    shop: ShopTables
    ledger: Ledger | ConsentTables
    cutoff: dt.datetime
    policy: Policy
    until: dt.datetime | None = None
    engine: ibis.BaseBackend | None = None
    _subjects: pa.Table = dataclasses.field(init=False, repr=False, compare=False)
    _links: pa.Table = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        with self._running() as engine:
            subjects, links = self._ask(engine)
        object.__setattr__(self, "_subjects", subjects)
        object.__setattr__(self, "_links", links)

    @property
    def links(self) -> pa.Table:
        """The links that hold at the cut-off and may be learnt from: visitor_id, customer_id, since."""
        return self._links

    def permitted(self, tier: Tier) -> PermittedRows:
        """The rows and attributes that one of the four tiers may be trained on."""
        require_persons(tier)
        tables = self._tables()
        with self._running() as engine:
            readable = standings_of_attributes(tables, tier, self.policy)
            attributes = None if readable is None else self._attributes(engine, readable)
            judged = judged_rows(tables, tier, self.policy, self._until())
            found = _released(engine, tier, self._until(), judged, attributes)
        return dataclasses.replace(found, items=metadata_of(self.shop.items))

    def holders(self, tier: Tier) -> pa.Table:
        """All whose data a tier may use at the cut-off, whether or not they have any.

        Returns
        -------
        pyarrow.Table
            Columns kind (``visitor`` or ``customer``), subject_id and since (int64 microseconds since the
            epoch): from when on the permission has held without interruption.
        """
        subjects, links = ibis.memtable(self._subjects), ibis.memtable(self._links)
        with self._running() as engine:
            found = [
                engine.to_pyarrow(holders_of(subjects, links, tier, kind, self.policy))
                for kind in HOLDERS[tier]
            ]
        return pa.concat_tables(found)

    def standing_counts(self, tier: Tier) -> dict[str, dict[str, int]]:
        """How many of those whose data a tier can rest on stand how at the cut-off, by kind and reason.

        The reason is ``granted`` where the permission holds. Counts of decisions: no row is read.
        """
        found: dict[str, dict[str, int]] = {}
        for kind in HOLDERS[tier]:
            of_kind = self._subjects.filter(pc.equal(self._subjects["subject_kind"], kind))
            counted = of_kind.group_by("reason").aggregate([([], "count_all")])
            reasons, counts = counted["reason"].to_pylist(), counted["count_all"].to_pylist()
            found[kind] = dict(sorted(zip(reasons, counts, strict=True)))
        return found

    def anonymous_rows(self) -> PermittedRows:
        """Rows of visitors who were never asked, for counts without any key; none under the strict policy."""
        with self._running() as engine:
            judged = judged_strangers(self._tables(), self.policy, self._until())
            rows = _released(engine, Tier.POPULAR, self._until(), judged)
        return dataclasses.replace(rows, subjects=rows.subjects.slice(0, 0))

    def _ask(self, engine: ibis.BaseBackend) -> tuple[pa.Table, pa.Table]:
        """How all subjects stand at the cut-off, and which links hold."""
        consents = self.ledger if isinstance(self.ledger, ConsentTables) else ConsentTables.of(self.ledger)
        at = microseconds(self.cutoff)
        found = standings(
            ibis.memtable(consents.records),
            ibis.memtable(consents.lifetimes),
            at=at,
            model_purpose=self.policy.switches.model_purpose,
            fusion_purpose=self.policy.switches.fusion_purpose,
        )
        subjects = engine.to_pyarrow(found)
        links = lawful_links(ibis.memtable(subjects), ibis.memtable(consents.links), at=at)
        return subjects, engine.to_pyarrow(links)

    @contextlib.contextmanager
    def _running(self) -> Iterator[ibis.BaseBackend]:
        if self.engine is not None:
            yield self.engine
            return
        with embedded_engine() as own:
            yield own

    def _tables(self) -> GateTables:
        events = ("visitor_id", "session_id", "item_id", "ts", "event_type")
        orders, usage = (
            ibis.memtable(_in_microseconds(table.select(["customer_id", "item_id", "ts", *more])))
            for table, more in ((self.shop.orders, ["status"]), (self.shop.product_usage, []))
        )
        return GateTables(
            events=ibis.memtable(_in_microseconds(self.shop.events.select(events))),
            purchases=purchase_rows(orders, usage),
            sensitive=ibis.memtable(sensitive_items(self.shop.items)),
            subjects=ibis.memtable(self._subjects),
            links=ibis.memtable(self._links),
        )

    def _until(self) -> int:
        return microseconds(self.until or self.cutoff)

    def _attributes(self, engine: ibis.BaseBackend, standings: ibis.Table) -> _Attributes:
        """Attributes of the customers whose CRM permission holds at the cut-off."""
        customers = self.shop.customers
        held = engine.to_pyarrow(standings.filter(standings.held).select("subject", "person"))
        position = pc.index_in(customers["customer_id"], value_set=held["subject"])
        kept = customers.filter(pc.is_valid(position))
        persons = held["person"].take(pc.drop_null(position))
        table = kept.drop_columns(["customer_id"]).add_column(0, "person", persons).sort_by("person")
        return _Attributes(table, kept["customer_id"])


def ledger_of(shop: ShopTables, lifetimes: Lifetimes | None = None) -> Ledger:
    """The consent ledger of a shop's ``consents`` and ``identities`` tables, in memory.

    Parameters
    ----------
    shop
        The shop's tables.
    lifetimes
        How old grants may grow; as Consentier ships it by default.
    """
    return Ledger(
        (ConsentRecord(**row) for row in _rows(shop.consents)),
        (Link(**row) for row in _rows(shop.identities)),
        lifetimes=lifetimes,
    )


def _rows(table: pa.Table) -> Iterable[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=65_536):
        yield from batch.to_pylist()


def require_persons(tier: Tier) -> None:
    """Refuse a tier that is not trained on rows of persons."""
    if tier not in _OF_PERSONS:
        raise ValueError(f"the {tier} tier is not trained on rows of persons")


def sensitive_items(items: pa.Table) -> pa.Table:
    """Items of a special category: without explicit consent to it they enter nothing. Column item_id."""
    if "sensitive" not in items.column_names:
        return pa.table({"item_id": pa.array([], pa.string())})
    return items.filter(pc.fill_null(items["sensitive"], False)).select(["item_id"])


def metadata_of(items: pa.Table) -> pa.Table | None:
    """What the items are, apart from those of a special category; None where nothing is known of any."""
    if "sensitive" in items.column_names:
        items = items.filter(pc.invert(pc.fill_null(items["sensitive"], False)))
    columns = [name for name in items.column_names if name not in ("available", "sensitive")]
    return items.select(columns) if items.num_rows else None


# ---- The expressions ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class GateTables:
    """What the gate's expressions read, as tables of one engine. Times are microseconds since the epoch.

    Attributes
    ----------
    events
        Columns visitor_id, session_id, item_id, ts and event_type.
    purchases
        From `purchase_rows`.
    sensitive
        Column item_id, see `sensitive_items`.
    subjects, links
        What `consent_intervals.standings` and `lawful_links` say at the cut-off.
    """

    events: ibis.Table
    purchases: ibis.Table
    sensitive: ibis.Table
    subjects: ibis.Table
    links: ibis.Table


def purchase_rows(orders: ibis.Table, usage: ibis.Table) -> ibis.Table:
    """Orders and product usage, under one set of columns with the events.

    Parameters
    ----------
    orders, usage
        Columns customer_id, item_id, ts (int64 microseconds); of orders also status.
    """
    return ibis.union(
        *(
            table.select(
                "item_id", "ts", subject="customer_id", session_id=ibis.null("string"), event_type=what
            )
            for table, what in ((orders, orders.status), (usage, ibis.literal("usage")))
        )
    )


def judged_rows(tables: GateTables, tier: Tier, policy: Policy, until: int) -> dict[Source, ibis.Table]:
    """All rows that a tier of persons might be trained on, each with its verdict, by source.

    Parameters
    ----------
    tables
        What is judged, and by what.
    tier
        Session, online, CRM or fused.
    policy
        Its switches say whether subjects without a lawful link take part in the fused tier.
    until
        Rows from here on stay out; microseconds since the epoch.
    """
    require_persons(tier)
    judged: dict[Source, ibis.Table] = {}
    if tier is not Tier.CRM:
        visitors = _standings(tables.subjects, tables.links, tier, "visitor", policy)
        events = tables.events.rename(subject="visitor_id")
        judged[Source.ONLINE] = _judged(tables, events, visitors, _INTEREST, until)
    if tier in (Tier.CRM, Tier.FUSED):
        customers = _standings(tables.subjects, tables.links, tier, "customer", policy)
        judged[Source.CRM] = _judged(tables, tables.purchases, customers, _BOUGHT, until)
    return judged


def judged_strangers(tables: GateTables, policy: Policy, until: int) -> dict[Source, ibis.Table]:
    """The rows of visitors who were never asked, with verdicts: none passes under the strict policy."""
    events = tables.events.rename(subject="visitor_id")
    strangers = anonymous_standings(events, own_standings(tables.subjects, "visitor"))
    if not policy.switches.anonymous_statistics:
        strangers = strangers.limit(0)
    return {Source.ONLINE: _judged(tables, events, strangers, _INTEREST, until)}


def standings_of_attributes(tables: GateTables, tier: Tier, policy: Policy) -> ibis.Table | None:
    """How the customers stand whose attributes a tier may read; None where it reads none."""
    return (
        _standings(tables.subjects, tables.links, tier, "customer", policy)
        if tier in (Tier.CRM, Tier.FUSED)
        else None
    )


def holders_of(
    subjects: ibis.Table, links: ibis.Table, tier: Tier, kind: SubjectKind, policy: Policy
) -> ibis.Table:
    """All visitors, or all customers, whose data a tier may use: columns kind, subject_id and since."""
    standing = _standings(subjects, links, tier, kind, policy)
    return standing.filter(standing.held).select("since", kind=ibis.literal(kind), subject_id="subject")[
        "kind", "subject_id", "since"
    ]


def passed_rows(judged: Mapping[Source, ibis.Table]) -> ibis.Table:
    """Of judged rows those that passed, of all sources together: the columns of `PermittedRows.rows`."""
    return ibis.union(
        *(
            rows.filter(rows.verdict == _PASSED).select(
                "person",
                "session_id",
                "item_id",
                "ts",
                event_type=rows.event_type.cases(("ordered", "order"), else_=rows.event_type),
                source=ibis.literal(str(source)),
            )
            for source, rows in judged.items()
        )
    )


def passed_subjects(judged: Mapping[Source, ibis.Table]) -> ibis.Table:
    """Whose rows passed, of judged rows: columns kind and subject_id. They repeat."""
    return ibis.union(
        *(
            rows.filter(rows.verdict == _PASSED).select(
                kind=ibis.literal(OWNER[source]), subject_id="subject"
            )
            for source, rows in judged.items()
        )
    )


def _standings(subjects: ibis.Table, links: ibis.Table, tier: Tier, kind: str, policy: Policy) -> ibis.Table:
    if tier is not Tier.FUSED:
        return own_standings(subjects, kind)
    alone_too = policy.switches.include_single_source_in_fused
    return joint_standings(subjects, links, kind, alone_too=alone_too)


def _judged(
    tables: GateTables, rows: ibis.Table, standings: ibis.Table, interest: Iterable[str], until: int
) -> ibis.Table:
    shows_interest = rows.event_type.isin(tuple(interest))
    return gate_expression(rows, standings, tables.sensitive, until, shows_interest)


def own_standings(subjects: ibis.Table, kind: str) -> ibis.Table:
    """How all visitors, or all customers, stand with their own source.

    Parameters
    ----------
    subjects
        What `consent_intervals.standings` says.
    kind
        ``visitor`` or ``customer``.

    Returns
    -------
    ibis.Table
        Columns subject, person (its pseudonym), held, since (without meaning where not held) and reason.
    """
    return subjects.filter(subjects.subject_kind == kind).select(
        "held", "since", "reason", subject="subject_id", person=_person(kind, subjects.subject_id)
    )


def joint_standings(subjects: ibis.Table, links: ibis.Table, kind: str, *, alone_too: bool) -> ibis.Table:
    """How all visitors, or all customers, stand where sources are joined.

    Parameters
    ----------
    subjects, links
        What `consent_intervals.standings` and `lawful_links` say.
    kind
        ``visitor`` or ``customer``.
    alone_too
        Whether subjects without a lawful link take part, unjoined.

    Returns
    -------
    ibis.Table
        The columns of `own_standings`. A linked visitor goes by the customer's pseudonym, and a customer has
        been joined since the first of the linked devices was.
    """
    side = links[f"{kind}_id"]
    joined = links.group_by(subject=side).aggregate(
        customer_id=links.customer_id.max(), joined_since=links.since.min()
    )
    both = own_standings(subjects, kind).left_join(joined, "subject")
    linked = both.customer_id.notnull()
    alone = both.held & alone_too
    return both.select(
        "subject",
        person=linked.ifelse(_person("customer", both.customer_id), both.person),
        held=linked | alone,
        since=linked.ifelse(both.joined_since, both.since),
        reason=ibis.cases((linked, "granted"), (both.held & ~alone, "unlinked"), else_=both.reason),
    )


def anonymous_standings(rows: ibis.Table, asked: ibis.Table) -> ibis.Table:
    """All subjects of some rows who were never asked, under one pseudonym."""
    strangers = rows.select("subject").distinct().anti_join(asked, "subject")
    return strangers.select(
        "subject",
        person=ibis.literal("anonymous"),
        held=ibis.literal(True),
        since=ibis.literal(BEGINNING, "int64"),
        reason=ibis.literal("granted"),
    )


def gate_expression(
    rows: ibis.Table,
    standings: ibis.Table,
    sensitive: ibis.Table,
    until: int,
    shows_interest: ibis.expr.types.BooleanValue,
) -> ibis.Table:
    """The gate itself: each row with its subject, its person and its verdict.

    Parameters
    ----------
    rows
        Columns subject, ts (int64 microseconds), item_id and more.
    standings
        Columns subject, person, held, since and reason, as `own_standings` says them.
    sensitive
        Column item_id.
    until
        Rows from here on stay out; microseconds since the Unix epoch.
    shows_interest
        A condition on `rows`.
    """
    marked = rows.mutate(shows_interest=shows_interest)
    joined = marked.left_join(standings, "subject").drop("subject_right")
    sensitive = sensitive.distinct().mutate(is_sensitive=True)
    joined = joined.left_join(sensitive, "item_id").drop("item_id_right")
    verdict = ibis.cases(
        (joined.reason.isnull(), "no consent record"),
        (~joined.held, joined.reason),
        (joined.ts >= until, "after the cut-off"),
        (joined.ts < joined.since, "no permission then"),
        (joined.is_sensitive.notnull(), "sensitive item"),
        (~joined.shows_interest, "no sign of interest"),
        else_=_PASSED,
    )
    return joined.mutate(verdict=verdict).drop("held", "since", "reason", "is_sensitive", "shows_interest")


def _person(kind: str, subject: ibis.expr.types.StringValue) -> ibis.expr.types.StringValue:
    return ibis.literal(f"{kind}:").concat(subject)


def _released(
    engine: ibis.BaseBackend,
    tier: Tier,
    until: int,
    judged: Mapping[Source, ibis.Table],
    attributes: _Attributes | None = None,
) -> PermittedRows:
    """Run the expressions: count the verdicts, and fetch the rows that pass."""
    passed = passed_rows(judged)
    counts = {source: engine.to_pyarrow(_counted(rows)) for source, rows in judged.items()}
    kept = {source: counted.filter(pc.field("verdict") == _PASSED) for source, counted in counts.items()}
    spans = _spans(pa.concat_tables(kept.values()))
    parts = (
        [passed]
        if len(spans) == 1
        else [passed.filter(passed.person.between(first, last)) for first, last in spans]
    )
    in_order = [engine.to_pyarrow(part.order_by(*CANONICAL_ORDER)).cast(_ROWS) for part in parts]
    return PermittedRows(
        rows=pa.concat_tables([_ROWS.empty_table(), *in_order]),
        attributes=None if attributes is None else attributes.table,
        funnel=tuple(verdicts_of(tier, source, counted) for source, counted in counts.items()),
        subjects=_subjects_behind(kept, attributes),
        until=until,
    )


def _counted(judged: ibis.Table) -> ibis.Table:
    """How many rows got which verdict; of those that pass, how many each subject has. It names no other."""
    subject = (judged.verdict == _PASSED).ifelse(judged.subject, "")
    return judged.group_by("verdict", subject=subject).aggregate(
        person=judged.person.max(where=judged.verdict == _PASSED), rows=judged.count()
    )


def verdicts_of(tier: Tier, source: Source, counted: pa.Table) -> Funnel:
    """The funnel of a source, from counts of its judged rows: columns verdict and rows."""
    totals = counted.group_by("verdict").aggregate([("rows", "sum")])
    verdicts = dict(zip(totals["verdict"].to_pylist(), totals["rows_sum"].to_pylist(), strict=True))
    excluded = {verdict: verdicts[verdict] for verdict in sorted(verdicts) if verdict != _PASSED}
    return Funnel(str(tier), str(source), sum(verdicts.values()), verdicts.get(_PASSED, 0), excluded)


def _spans(kept: pa.Table) -> list[tuple[str, str]]:
    """First and last person of each part: parts have few rows, unless one person has more."""
    counted = kept.group_by("person").aggregate([("rows", "sum")]).sort_by("person")
    persons = counted["person"].to_pylist()
    part = (np.cumsum(counted["rows_sum"].to_numpy()) - 1) // _SORTED_AT_ONCE
    starts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(persons)]
    return [(persons[start], persons[end - 1]) for start, end in itertools.pairwise(starts) if start < end]


def _subjects_behind(kept: Mapping[Source, pa.Table], attributes: _Attributes | None) -> pa.Table:
    """Whose rows these are, and whose attributes."""
    ids = [(OWNER[source], counted["subject"]) for source, counted in kept.items()]
    if attributes is not None:
        ids.append((OWNER[Source.CRM], attributes.customer_ids))
    named = [
        pa.table({"kind": pa.repeat(pa.scalar(kind), len(column)), "subject_id": column})
        for kind, column in ids
    ]
    distinct = pa.concat_tables(named).group_by(["kind", "subject_id"]).aggregate([])
    return distinct.sort_by([("kind", "ascending"), ("subject_id", "ascending")])


def _in_microseconds(rows: pa.Table) -> pa.Table:
    instants = rows["ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return rows.set_column(rows.schema.get_field_index("ts"), "ts", instants)
