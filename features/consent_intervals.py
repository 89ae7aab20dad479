"""Since when each subject permits what a tier needs: the rules of the ledger as one set of Ibis expressions.

The ledger answers for one subject at a time. Training asks for all of them at once, and here the same rules
stand as operations on whole tables, so that one definition runs embedded on DuckDB and unchanged on Spark.

Instead of the times at which a permission is held, its *hindrances* are collected: half-open intervals
``[start, end)`` in which something stands in the way, be it silence, a refusal, an expiry, an objection,
minority or a purpose that was not granted. Up to the cut-off, a permission has been held without
interruption since the last of its hindrances ended; one that lasts beyond the cut-off is the reason why it is
not held. Whatever must hold together is held since the latest of its parts.

Times are int64 microseconds since the Unix epoch. Nothing is null, since engines do not agree on what becomes
of nulls on their way in (on one of them a missing text arrived as the text "NaN", and counted as evidence):
`FOREVER` stands for "no end" and for a login without a time, `MISSING` for a text that is not there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc

from consentier.consent import Ledger, Source
from consentier.consent.lifetimes import Lifetimes
from consentier.consent.records import PARENTAL
from consentier.consent.timeline import CLOCK_SKEW
from consentier.features.schemas import RECORD_CONTENT, SCHEMAS, ColumnType, TableSchema
from consentier.features.tables import ShopTables

__all__ = [
    "BEGINNING",
    "FOREVER",
    "KIND_OF_GRANT",
    "MISSING",
    "REFUSING",
    "ConsentTables",
    "hindrances",
    "lawful_links",
    "lifetime_table",
    "standings",
]

FOREVER = 2**62
"""Later than any time."""

BEGINNING = -(2**62)
"""Earlier than any time."""

MISSING = "\ufdd0"
"""No text of anybody: one of the code points that Unicode keeps out of texts, for programs to use inside."""

KIND_OF_GRANT = ("collected_by", "jurisdiction", "permission")
"""What the lifetime of a grant depends on."""

_SUBJECT = ("subject_kind", "subject_id")

_STERNNESS = (
    "conflicting",
    "denied",
    "objected",
    "withdrawn",
    "future-dated",
    "lifted without evidence",
    "lifted",
    "granted",
    "unknown",
)
"""What a claim can come to. Among claims with one start the first of these speaks."""

REFUSING = ("conflicting", "denied", "objected", "withdrawn")
"""The reasons of a hindrance that are a no, to whatever permission it was said."""

_SPACES = "\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space: evidence of nothing else is none. Engines differ in what their patterns call so."""


def hindrances(
    records: ibis.Table, lifetimes: ibis.Table, *, at: int, silence_hinders: Sequence[str] = ()
) -> ibis.Table:
    """When, and why, subjects did not hold what they could have granted.

    Parameters
    ----------
    records
        The columns of ``consents``, and two of what the ledger remembers beyond them: `conflicting` (bool),
        whether the record id stands for several contents, and `first_recorded`, when it was first heard of.
    lifetimes
        Columns collected_by, jurisdiction, permission and lifetime (microseconds; `FOREVER`: unlimited):
        after how long a grant of this kind expires, one row for each kind. A kind without one expires at
        once.
    at
        What starts after this instant is left out. An interval that includes it ends at `FOREVER`.
    silence_hinders
        Permissions other than the subject's own of which silence is a hindrance as well.

    Returns
    -------
    ibis.Table
        Columns subject_kind, subject_id, permission, reason, start and end. Every subject with any record has
        one row at least: until a visitor says something on ``online``, or a customer on ``crm``, the reason
        is ``unknown``. So it is on ``parental`` until the first record, of those of whom there is one by `at`
        which is no lift.
    """
    claims = ibis.union(_claims(records, lifetimes), *_silence(records, silence_hinders))
    moments = (
        claims.filter(claims.start <= at)
        .group_by(*_SUBJECT, "permission", "start")
        .aggregate(
            rank=claims["rank"].min(),
            expiry=claims.expiry.min(),
            raised=(claims["rank"] == _rank("objected")).any(),
            lifted=(claims["rank"] == _rank("lifted")).any(),
        )
    )
    in_order = {"group_by": [*_SUBJECT, "permission"], "order_by": "start"}
    until_now = ibis.cumulative_window(**in_order)
    moments = moments.mutate(
        end=moments.start.lead().over(**in_order).fill_null(FOREVER),
        following=moments["rank"].lead().over(**in_order).fill_null(_rank("lifted")),
        last_raised=moments.raised.ifelse(moments.start, BEGINNING).max().over(until_now),
        last_lifted=moments.lifted.ifelse(moments.start, BEGINNING).max().over(until_now),
    )
    # An objection stands until a lift that starts after it: of two with one start the objection speaks.
    objected = (moments.last_raised > BEGINNING) & (moments.last_raised >= moments.last_lifted)
    granted = (moments["rank"] == _rank("granted")) & ~objected
    spans = moments.mutate(
        reason=ibis.cases((objected, "objected"), (granted, "expired"), else_=_named(moments["rank"])),
        start=granted.ifelse(ibis.greatest(moments.start, moments.expiry), moments.start),
    )
    # A child's own consent carries nothing. Silence on parents speaks of a child once somebody has broken it,
    # unless by a lift: that one is none.
    silent = (spans.permission == PARENTAL) & (spans["rank"] == _rank("unknown"))
    childhood = ~silent | (spans.following != _rank("lifted"))
    return spans.filter(spans.start < spans.end, spans.start <= at, childhood).select(
        *_SUBJECT, "permission", "reason", "start", "end"
    )


def standings(
    records: ibis.Table,
    lifetimes: ibis.Table,
    *,
    at: int,
    model_purpose: bool = False,
    fusion_purpose: bool = False,
) -> ibis.Table:
    """How all subjects stand at an instant, as `Ledger.standing` says it of one.

    Parameters
    ----------
    records, lifetimes
        As for `hindrances`.
    at
        The instant.
    model_purpose, fusion_purpose
        Whether the shop's notice asks separately for contributing to models, and for joining sources.

    Returns
    -------
    ibis.Table
        One row per subject. Columns subject_kind, subject_id; held (bool): whether its rows may be learnt
        from; since: from when on; reason; and, of use to `lawful_links` only, linkable_since, joinable_since
        and fusion_since.

    Notes
    -----
    Sorts the records once by subject and start: n log n, in parallel and out of core where the engine is.
    """
    silence_hinders = [
        name for name, asked in (("model", model_purpose), ("fusion", fusion_purpose)) if asked
    ]
    found = hindrances(records, lifetimes, at=at, silence_hinders=silence_hinders)
    source = found.permission.isin((str(Source.ONLINE), str(Source.CRM)))
    own = found.permission == _own_permission(found)
    objection = source & (found.reason == "objected")  # to either source: it counts for both
    minority = (found.permission == PARENTAL) & (found.reason != "lifted")
    model = found.permission == "model"
    fusion = found.permission == "fusion"
    silence = found.reason == "unknown"
    personal = own | objection | minority
    linking = personal | (source & found.reason.isin(REFUSING))
    learning = personal | model
    joining = linking | model | (fusion & ~silence)
    now = found.end == FOREVER
    text = ibis.cases(
        (model, ibis.literal("model purpose ").concat(found.reason)),
        (minority, "minor without parental consent"),
        else_=found.reason,
    )
    by_strength = (model, objection, minority, own)
    by_subject = found.group_by(*_SUBJECT).aggregate(
        since=found.end.max(where=learning),
        # What stands in the way now, in each part one reason at the most.
        reason=ibis.coalesce(*(text.max(where=part & now) for part in by_strength), "granted"),
        linkable_since=found.end.max(where=linking),
        joinable_since=found.end.max(where=joining),
        fusion_since=found.end.max(where=fusion & silence).fill_null(BEGINNING),
    )
    return by_subject.mutate(held=(by_subject.since < FOREVER).fill_null(False))


def lawful_links(subjects: ibis.Table, links: ibis.Table, *, at: int) -> ibis.Table:
    """The links that hold at an instant and may be learnt from, as `Ledger.lawful_links` says them.

    Parameters
    ----------
    subjects
        What `standings` says, at the same instant.
    links
        Columns visitor_id, customer_id and linked_at; `MISSING` for the customer stands for one who is not
        known any more, but was seen on the device.

    Returns
    -------
    ibis.Table
        Columns visitor_id, customer_id and since, one row per visitor.
    """
    logins = links.filter(links.linked_at <= at)
    devices = logins.group_by("visitor_id").aggregate(
        customer_id=logins.customer_id.max(),
        first_customer=logins.customer_id.min(),
        linked_at=logins.linked_at.max(),
    )
    alone = devices.filter(devices.customer_id == devices.first_customer, devices.customer_id != MISSING)
    sides = ("linkable_since", "joinable_since", "fusion_since")
    visitor, customer = (
        subjects.filter(subjects.subject_kind == kind).select(
            **{f"{kind}_id": "subject_id"}, **{f"{kind}_{side}": side for side in sides}
        )
        for kind in ("visitor", "customer")
    )
    pairs = alone.inner_join(visitor, "visitor_id").inner_join(customer, "customer_id")
    pairs = pairs.mutate(
        linkable=ibis.greatest(pairs.visitor_linkable_since, pairs.customer_linkable_since),
        since=ibis.greatest(
            pairs.visitor_joinable_since,
            pairs.customer_joinable_since,
            # A grant of joining by either of them ends the silence of both.
            ibis.least(pairs.visitor_fusion_since, pairs.customer_fusion_since),
        ),
    )
    return pairs.filter(pairs.linkable <= pairs.linked_at, pairs.since < FOREVER).select(
        "visitor_id", "customer_id", "since"
    )


def _claims(records: ibis.Table, lifetimes: ibis.Table) -> ibis.Table:
    """What each record says, after repetitions were merged and contradictions found."""
    by_id = records.group_by("record_id").aggregate(
        recorded=records.first_recorded.min(), versions=records.count(), known=records.conflicting.any()
    )
    contents = (
        records.select(*RECORD_CONTENT).semi_join(by_id.filter(by_id.versions > 1), "record_id").distinct()
    )
    contradicted = contents.group_by("record_id").aggregate(contents=contents.count())
    joined = records.inner_join(by_id, "record_id").left_join(contradicted, "record_id")
    joined = joined.left_join(lifetimes, KIND_OF_GRANT)
    conflicting = joined.known | (joined.contents.fill_null(1) > 1)
    evidenced = joined.evidence.re_search(f"[^{_SPACES}{MISSING}]")
    ahead = joined.valid_from > joined.recorded + CLOCK_SKEW
    state = ibis.cases(
        (conflicting & (joined.state != "objected"), "conflicting"),
        ((joined.state == "lifted") & ~evidenced, "lifted without evidence"),
        (joined.state.isin(("granted", "lifted")) & ahead, "future-dated"),
        else_=joined.state,
    )
    told = joined.select(
        *_SUBJECT,
        "permission",
        "valid_from",
        "recorded",
        rank=state.cases(*((name, _rank(name)) for name in _STERNNESS), else_=_rank("conflicting")),
        expiry=ibis.least(joined.valid_to, joined.valid_from + joined.lifetime.fill_null(0)),
    )
    refusals = told.filter(
        told["rank"].isin([_rank(name) for name in REFUSING]), told.recorded < told.valid_from
    )
    # A refusal is heeded at once; and a grant given meanwhile does not outlive the start that it names.
    return ibis.union(
        *(
            claims.select(*_SUBJECT, "permission", "rank", "expiry", start=begun)
            for claims, begun in ((told, "valid_from"), (refusals, "recorded"))
        )
    )


def _silence(records: ibis.Table, permissions: Sequence[str]) -> list[ibis.Table]:
    """Everybody begins unknown: on the own source, and on purposes that must be granted.

    On parents, too, whoever has a record about them.
    """
    subjects = records.select(*_SUBJECT).distinct()
    children = records.filter(records.permission == PARENTAL).select(*_SUBJECT).distinct()
    about: list[tuple[ibis.Table, ibis.expr.types.StringValue]] = [
        (subjects, _own_permission(subjects)),
        (children, ibis.literal(PARENTAL)),
        *((subjects, ibis.literal(name)) for name in permissions),
    ]
    return [
        who.select(
            *_SUBJECT,
            permission=permission,
            rank=ibis.literal(_rank("unknown"), "int8"),
            expiry=ibis.literal(FOREVER, "int64"),
            start=ibis.literal(BEGINNING, "int64"),
        )
        for who, permission in about
    ]


def _own_permission(subjects: ibis.Table) -> ibis.expr.types.StringValue:
    """A visitor decides on online data, a customer on CRM data."""
    return (subjects.subject_kind == "visitor").ifelse(str(Source.ONLINE), str(Source.CRM))


def _rank(state: str) -> int:
    return _STERNNESS.index(state)


def _named(rank: ibis.expr.types.IntegerValue) -> ibis.expr.types.StringValue:
    return rank.cases(*((_rank(name), name) for name in _STERNNESS), else_="conflicting")


# ---- A ledger's entries as tables --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class ConsentTables:
    """A ledger's entries at one moment, as `standings` and `lawful_links` take them.

    Attributes
    ----------
    records, links, lifetimes
        Arrow tables without nulls.
    """

    records: pa.Table
    links: pa.Table
    lifetimes: pa.Table

    @classmethod
    def of(cls, ledger: Ledger) -> ConsentTables:
        """Take down what a ledger holds now. Cost: one copy of its columns."""
        told = ledger.columns("records")
        records = _without_nulls(told, SCHEMAS["consents"])
        records = records.append_column("first_recorded", pa.array(told["first_recorded"], pa.int64()))
        records = records.append_column("conflicting", pa.array(told["conflicting"], pa.bool_()))
        links = _without_nulls(ledger.columns("links"), SCHEMAS["identities"])
        return cls(records, links, lifetime_table(records, ledger.lifetimes))

    @classmethod
    def of_shop(cls, shop: ShopTables, lifetimes: Lifetimes) -> ConsentTables:
        """A shop's ``consents`` and ``identities`` as they are, with no Python object per record."""
        records = _without_nulls(shop.consents, SCHEMAS["consents"])
        records = records.append_column("first_recorded", records["recorded_at"])
        records = records.append_column("conflicting", pa.repeat(False, records.num_rows))
        links = _without_nulls(shop.identities, SCHEMAS["identities"])
        return cls(records, links, lifetime_table(records, lifetimes))


def _without_nulls(told: Mapping[str, list[Any]] | pa.Table, schema: TableSchema) -> pa.Table:
    """The columns of the contract, times in microseconds."""
    columns = {}
    for column in schema.columns:
        values = told[column.name]
        if column.type is ColumnType.TIME:
            if isinstance(values, pa.ChunkedArray):
                values = values.cast(column.type.arrow).cast(pa.int64())
            columns[column.name] = pc.fill_null(_array(values, pa.int64()), FOREVER)
        else:
            columns[column.name] = pc.fill_null(_array(values, column.type.arrow), MISSING)
    return pa.table(columns)


def _array(values: list[Any] | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    return values.cast(kind) if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


def lifetime_table(records: pa.Table, lifetimes: Lifetimes) -> pa.Table:
    """After how long each kind of grant that there is expires: the lifetimes that `hindrances` takes.

    Parameters
    ----------
    records
        The columns of `KIND_OF_GRANT`, `MISSING` where a text is not there. Kinds may repeat.
    lifetimes
        The rules.
    """
    kinds = records.group_by(list(KIND_OF_GRANT)).aggregate([]).select(KIND_OF_GRANT)
    ages = [
        lifetimes.max_age(
            kind["permission"],
            collected_by=_known(kind["collected_by"]),
            jurisdiction=_known(kind["jurisdiction"]),
        )
        for kind in kinds.to_pylist()
    ]
    limits = [FOREVER if age is None else age for age in ages]
    return kinds.append_column("lifetime", pa.array(limits, pa.int64()))


def _known(text: str) -> str | None:
    return None if text == MISSING else text
