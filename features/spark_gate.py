"""The consent gate on Apache Spark: the same expressions, and rows that never leave the cluster.

`ConsentGate` with an engine of Spark's works on tables in memory and fetches what passes. Here tables are
read by Spark, and so is the ledger; the standings of all subjects, the verdicts and the rows that pass stay
there. Only counts per verdict, items and values of attributes come to the driver.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import ibis
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession, functions

from consentier.consent import Policy, Source, Tier, microseconds
from consentier.consent.records import SubjectKind
from consentier.features.consent_intervals import ConsentTables, lawful_links, standings
from consentier.features.gate import (
    Funnel,
    GateTables,
    judged_rows,
    judged_strangers,
    metadata_of,
    passed_rows,
    passed_subjects,
    purchase_rows,
    sensitive_items,
    standings_of_attributes,
    verdicts_of,
)
from consentier.features.spark_tables import SparkTables
from consentier.features.spark_workspace import LedgerOnSpark, SparkWorkspace

__all__ = ["SparkGate", "SparkRows"]


@dataclasses.dataclass(frozen=True, slots=True)
class SparkRows:
    """What one tier may be trained on, on Spark: `PermittedRows` without a row in this process.

    Attributes
    ----------
    rows
        The columns of `PermittedRows.rows`, in no order.
    attributes
        Columns person and one per attribute; None where the tier reads none.
    subjects
        Columns kind and subject_id, which repeat: whose rows and attributes these are.
    funnel, until, items
        As in `PermittedRows`.
    """

    rows: DataFrame
    attributes: DataFrame | None
    subjects: DataFrame
    funnel: tuple[Funnel, ...]
    until: int
    items: pa.Table | None


class SparkGate:
    """Cuts out of tables on Spark what each tier may be trained on. A context manager: it frees what it kept.

    Parameters
    ----------
    session
        Spark. Its session time zone is set to UTC.
    shop
        The shop's tables.
    cutoff, policy, until
        As for `ConsentGate`.
    consents
        The ledger's entries; by default the shop's own ``consents`` and ``identities``.
    without
        Ids of subjects, by kind, who are taken not to be there: what a fit without them sees.

    Notes
    -----
    The standings are computed once and kept on the executors until the gate is closed. `session`,
    `cutoff`, `policy` and `until` are attributes too.
    """

    def __init__(
        self,
        session: SparkSession,
        shop: SparkTables,
        cutoff: dt.datetime,
        policy: Policy,
        *,
        until: dt.datetime | None = None,
        consents: ConsentTables | None = None,
        without: Mapping[SubjectKind, Sequence[str]] | None = None,
    ) -> None:
        self.session = session
        self.cutoff = cutoff
        self.policy = policy
        self.until = until
        without = without or {}
        self._shop = shop.without(without)
        with contextlib.ExitStack() as failing:
            self._space = failing.enter_context(SparkWorkspace(session))
            ledger = self._space.ledger(self._shop, consents)
            if any(without.values()):
                ledger = self._space.ledger_without(ledger, without)
            self._tables = self._read(ledger)
            failing.pop_all()  # what is kept is freed by `__exit__`

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._space.__exit__(kind, error, trace)

    def permitted(self, tier: Tier) -> SparkRows:
        """The rows and attributes that one of the four tiers may be trained on."""
        judged = judged_rows(self._tables, tier, self.policy, self._end)
        readable = standings_of_attributes(self._tables, tier, self.policy)
        found = self._released(tier, judged)
        if readable is None:
            return found
        customers, attributes = self._attributes(readable)
        return dataclasses.replace(found, attributes=attributes, subjects=found.subjects.unionAll(customers))

    def anonymous_rows(self) -> SparkRows:
        """Rows of visitors who were never asked, for counts without any key; none under the strict policy."""
        return self._released(Tier.POPULAR, judged_strangers(self._tables, self.policy, self._end))

    def keep(self, frame: DataFrame) -> DataFrame:
        """Keep a table on the executors, in memory and on their disks, until the gate is closed."""
        return self._space.keep(frame)

    def freeing(self) -> contextlib.AbstractContextManager[None]:
        """Let go, at the end of a block, of what is kept within it."""
        return self._space.freeing()

    @property
    def _end(self) -> int:
        return microseconds(self.until or self.cutoff)

    def _read(self, ledger: LedgerOnSpark) -> GateTables:
        """What the gate's expressions read."""
        shop = self._shop
        subjects, links = self._standings(ledger)
        orders, usage = (
            self._space.table(frame.select("customer_id", "item_id", "ts", *more))
            for frame, more in ((shop.orders, ["status"]), (shop.product_usage, []))
        )
        return GateTables(
            events=self._space.table(shop.events),
            purchases=purchase_rows(orders, usage),
            sensitive=ibis.memtable(sensitive_items(shop.items)),
            subjects=subjects,
            links=links,
        )

    def _standings(self, ledger: LedgerOnSpark) -> tuple[ibis.Table, ibis.Table]:
        """How all subjects stand at the cut-off, and which links hold."""
        at = microseconds(self.cutoff)
        switches = self.policy.switches
        found = standings(
            ledger.records,
            ledger.lifetimes,
            at=at,
            model_purpose=switches.model_purpose,
            fusion_purpose=switches.fusion_purpose,
        )
        subjects = self._space.kept_table(found)
        return subjects, self._space.kept_table(lawful_links(subjects, ledger.links, at=at))

    def _released(self, tier: Tier, judged: Mapping[Source, ibis.Table]) -> SparkRows:
        verdicts = (
            rows.group_by("verdict").aggregate(rows=rows.count()).mutate(source=ibis.literal(str(source)))
            for source, rows in judged.items()
        )
        counted = self._space.frame(ibis.union(*verdicts)).toArrow()
        return SparkRows(
            rows=self._space.frame(passed_rows(judged)),
            attributes=None,
            subjects=self._space.frame(passed_subjects(judged)),
            funnel=tuple(
                verdicts_of(tier, source, counted.filter(pc.field("source") == str(source)))
                for source in judged
            ),
            until=self._end,
            items=metadata_of(self._shop.items),
        )

    def _attributes(self, readable: ibis.Table) -> tuple[DataFrame, DataFrame]:
        """The customers whose CRM permission holds at the cut-off, and their attributes."""
        held = self._space.frame(readable.filter(readable.held).select("subject", "person"))
        customers = self._shop.customers
        names = [name for name in customers.columns if name != "customer_id"]
        joined = customers.join(held, customers["customer_id"] == held["subject"])
        kind = functions.lit("customer").alias("kind")
        return (
            joined.select(kind, held["subject"].alias("subject_id")),
            joined.select(held["person"], *(customers[name] for name in names)),
        )
