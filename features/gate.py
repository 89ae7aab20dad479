"""The consent gate of training: from a shop's tables, exactly the rows that a tier may be trained on.

A row passes if the permission held at every instant from the row to the training cut-off (the third law of
the engine). The ledger says since when each subject has held it without interruption; the gate joins that to
the rows. What comes out is all that features, training, tuning and evaluation ever see of a table.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc

from consentier.consent import (
    ConsentRecord,
    Ledger,
    Link,
    Policy,
    Source,
    Standing,
    Tier,
    microseconds,
)
from consentier.features.tables import ShopTables

__all__ = ["ConsentGate", "Funnel", "PermittedRows", "ledger_of"]

_INTEREST = ("view", "click", "cart", "favourite", "order")
"""Event types that show interest. Taking something out of a cart or off a list does not."""

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
    """

    rows: pa.Table
    attributes: pa.Table | None
    funnel: tuple[Funnel, ...]


def ledger_of(shop: ShopTables) -> Ledger:
    """The consent ledger of a shop's ``consents`` and ``identities`` tables, in memory."""
    return Ledger(
        (ConsentRecord(**row) for row in _rows(shop.consents)),
        (Link(**row) for row in _rows(shop.identities)),
    )


def _rows(table: pa.Table) -> Iterable[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=65_536):
        yield from batch.to_pylist()


@dataclasses.dataclass(frozen=True, slots=True)
class ConsentGate:
    """Cuts out of a shop's tables what each tier may be trained on.

    Parameters
    ----------
    shop
        The shop's tables.
    ledger
        Its consents and links.
    cutoff
        The cut-off: the instant up to which the permissions must have held. Rows at or after it stay out.
    policy
        Its switches say which purposes the shop's notice separates.
    until
        Rows at or after this instant stay out; the cut-off by default. Evaluation trains on rows until the
        start of its test period, of those who permit it to the end of that period.

    Notes
    -----
    One standing per subject from the ledger, then a hash join in DuckDB: linear in rows and records.
    """

    shop: ShopTables
    ledger: Ledger
    cutoff: dt.datetime
    policy: Policy
    until: dt.datetime | None = None

    def permitted(self, tier: Tier) -> PermittedRows:
        """The rows and attributes that one of the four tiers may be trained on."""
        if tier in (Tier.SESSION, Tier.ONLINE):
            rows, funnel = self._online(tier, self._standings(Source.ONLINE, "visitor"))
            return PermittedRows(_canonical(rows), None, (funnel,))
        if tier is Tier.CRM:
            standings = self._standings(Source.CRM, "customer")
            rows, funnel = self._crm(tier, standings)
            return PermittedRows(_canonical(rows), self._attributes(standings), (funnel,))
        if tier is Tier.FUSED:
            return self._fused()
        raise ValueError(f"the {tier} tier is not trained on rows of persons")

    def anonymous_rows(self) -> PermittedRows:
        """Rows of visitors who were never asked, for counts without any key; none under the strict policy."""
        standings = {}
        if self.policy.switches.anonymous_statistics:
            asked = set(self.ledger.subjects(Source.ONLINE))
            everybody = pc.unique(self.shop.events["visitor_id"]).to_pylist()
            standings = {
                visitor: ("anonymous", Standing(0, "granted"))
                for visitor in everybody
                if visitor not in asked
            }
        rows, funnel = self._online(Tier.POPULAR, standings)
        return PermittedRows(_canonical(rows), None, (funnel,))

    def _fused(self) -> PermittedRows:
        switches = self.policy.switches
        links = self.ledger.lawful_links(
            at=self.cutoff,
            model_purpose=switches.model_purpose,
            fusion_purpose=switches.fusion_purpose,
        )
        visitors = self._standings(Source.ONLINE, "visitor")
        customers = self._standings(Source.CRM, "customer")
        since: dict[str, int] = {}
        for link in links.values():
            since[link.customer_id] = min(link.since, since.get(link.customer_id, link.since))
        joined_visitors = {
            visitor: (
                _person("customer", links[visitor].customer_id),
                Standing(links[visitor].since, "granted"),
            )
            if visitor in links
            else self._alone(standing)
            for visitor, standing in visitors.items()
        }
        joined_customers = {
            customer: (_person("customer", customer), Standing(since[customer], "granted"))
            if customer in since
            else self._alone(standing)
            for customer, standing in customers.items()
        }
        online, online_funnel = self._online(Tier.FUSED, joined_visitors)
        crm, crm_funnel = self._crm(Tier.FUSED, joined_customers)
        return PermittedRows(
            _canonical(pa.concat_tables([online, crm])),
            self._attributes(joined_customers),
            (online_funnel, crm_funnel),
        )

    def _alone(self, entry: tuple[str, Standing]) -> tuple[str, Standing]:
        """A subject without a lawful link: out, or in but unjoined, as the policy says."""
        person, standing = entry
        if standing.since is None or self.policy.switches.include_single_source_in_fused:
            return entry
        return person, Standing(None, "unlinked")

    def _standings(self, source: Source, kind: str) -> dict[str, tuple[str, Standing]]:
        """Pseudonym and standing of every subject that the ledger knows."""
        return {
            subject: (
                _person(kind, subject),
                self.ledger.standing(
                    source, subject, at=self.cutoff, model_purpose=self.policy.switches.model_purpose
                ),
            )
            for subject in self.ledger.subjects(source)
        }

    def _online(self, tier: Tier, standings: Mapping[str, tuple[str, Standing]]) -> tuple[pa.Table, Funnel]:
        events = self.shop.events.select(["visitor_id", "session_id", "item_id", "ts", "event_type"])
        events = events.rename_columns(["subject", "session_id", "item_id", "ts", "event_type"])
        return self._pass(
            tier, Source.ONLINE, events, standings, lambda rows: rows.event_type.isin(_INTEREST)
        )

    def _crm(self, tier: Tier, standings: Mapping[str, tuple[str, Standing]]) -> tuple[pa.Table, Funnel]:
        orders = self.shop.orders.select(["customer_id", "item_id", "ts", "status"])
        usage = self.shop.product_usage.select(["customer_id", "item_id", "ts"])
        rows = pa.concat_tables(
            [
                orders.rename_columns(["subject", "item_id", "ts", "event_type"]),
                usage.rename_columns(["subject", "item_id", "ts"]).append_column(
                    "event_type", pa.array(["usage"] * usage.num_rows, pa.string())
                ),
            ]
        )
        rows = rows.append_column("session_id", pa.nulls(rows.num_rows, pa.string()))
        return self._pass(
            tier, Source.CRM, rows, standings, lambda table: table.event_type.isin(("ordered", "usage"))
        )

    def _pass(
        self,
        tier: Tier,
        source: Source,
        rows: pa.Table,
        standings: Mapping[str, tuple[str, Standing]],
        shows_interest: Callable[[ibis.Table], ibis.expr.types.BooleanValue],
    ) -> tuple[pa.Table, Funnel]:
        """Join rows with standings; split them into those that pass and counts of the reasons."""
        rows = rows.set_column(
            rows.schema.get_field_index("ts"),
            "ts",
            rows["ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()),
        )
        connection = ibis.duckdb.connect()
        try:
            table = ibis.memtable(rows)
            judged = connection.to_pyarrow(
                gate_expression(
                    table,
                    ibis.memtable(_standing_table(standings)),
                    ibis.memtable(self._sensitive()),
                    microseconds(self.until or self.cutoff),
                    shows_interest(table),
                )
            )
        finally:
            connection.disconnect()
        verdicts = {
            entry["values"]: entry["counts"] for entry in pc.value_counts(judged["verdict"]).to_pylist()
        }
        passed = judged.filter(pc.equal(judged["verdict"], _PASSED))
        excluded = {verdict: count for verdict, count in sorted(verdicts.items()) if verdict != _PASSED}
        funnel = Funnel(str(tier), str(source), rows.num_rows, passed.num_rows, excluded)
        event_type = passed["event_type"]
        if source is Source.CRM:
            event_type = pc.if_else(pc.equal(event_type, "ordered"), "order", event_type)
        return pa.table(
            {
                "person": passed["person"],
                "session_id": passed["session_id"],
                "item_id": passed["item_id"],
                "ts": passed["ts"],
                "event_type": event_type,
                "source": pa.array([str(source)] * passed.num_rows, pa.string()),
            },
            schema=_ROWS,
        ), funnel

    def _sensitive(self) -> pa.Table:
        """Items of a special category: without explicit consent to it they enter nothing."""
        items = self.shop.items
        if "sensitive" not in items.column_names:
            return pa.table({"item_id": pa.array([], pa.string())})
        return items.filter(pc.fill_null(items["sensitive"], False)).select(["item_id"])

    def _attributes(self, standings: Mapping[str, tuple[str, Standing]]) -> pa.Table:
        """Attributes of the customers whose CRM permission holds at the cut-off."""
        customers = self.shop.customers
        held = {
            customer: person
            for customer, (person, standing) in standings.items()
            if standing.since is not None
        }
        ids = customers["customer_id"]
        kept = customers.filter(pc.is_in(ids, value_set=pa.array(sorted(held), pa.string())))
        persons = pa.array([held[customer] for customer in kept["customer_id"].to_pylist()], pa.string())
        return kept.drop_columns(["customer_id"]).add_column(0, "person", persons).sort_by("person")


_PASSED = "passed"


def gate_expression(
    rows: ibis.Table,
    standings: ibis.Table,
    sensitive: ibis.Table,
    until: int,
    shows_interest: ibis.expr.types.BooleanValue,
) -> ibis.Table:
    """The gate itself, as one Ibis expression: each row with its person and its verdict.

    Parameters
    ----------
    rows
        Columns subject, ts (int64 microseconds), item_id and more.
    standings
        Columns subject, person, held (bool), since (int64 microseconds; without meaning where not held) and
        reason. No column has nulls: engines do not agree on what a missing integer becomes on its way in.
    sensitive
        Column item_id.
    until
        Rows from here on stay out; microseconds since the Unix epoch.
    shows_interest
        A condition on `rows`.
    """
    marked = rows.mutate(shows_interest=shows_interest)
    joined = marked.left_join(standings, "subject").drop("subject_right")
    sensitive = sensitive.mutate(is_sensitive=True)
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
    return joined.mutate(verdict=verdict).drop(
        "held", "since", "reason", "is_sensitive", "shows_interest", "subject"
    )


def _standing_table(standings: Mapping[str, tuple[str, Standing]]) -> pa.Table:
    return pa.table(
        {
            "subject": pa.array(list(standings), pa.string()),
            "person": pa.array([person for person, _ in standings.values()], pa.string()),
            "held": pa.array([standing.since is not None for _, standing in standings.values()], pa.bool_()),
            "since": pa.array([standing.since or 0 for _, standing in standings.values()], pa.int64()),
            "reason": pa.array([standing.reason for _, standing in standings.values()], pa.string()),
        }
    )


def _person(kind: str, subject: str) -> str:
    return f"{kind}:{subject}"


def _canonical(rows: pa.Table) -> pa.Table:
    """One order for one set of rows, whatever order they came in."""
    return rows.sort_by(
        [(name, "ascending") for name in ("person", "ts", "item_id", "event_type", "source", "session_id")]
    )
