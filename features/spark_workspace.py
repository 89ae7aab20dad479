"""Tables of Apache Spark's as Ibis knows them, the other way round, and what is kept there meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import ibis
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, SparkSession, functions

from consentier.consent.lifetimes import Lifetimes
from consentier.consent.records import SubjectKind
from consentier.features.consent_intervals import KIND_OF_GRANT, ConsentTables, lifetime_table
from consentier.features.spark_tables import Mask, SparkTables, rows_where, rows_without, values_in

__all__ = ["LedgerOnSpark", "SparkWorkspace", "rows_before"]

_IN_FITTING_PARTS = "spark.sql.optimizer.canChangeCachedPlanOutputPartitioning"
"""Off in Spark 4.0, where a kept table of ten rows has 200 partitions, and each costs a task per query."""


@dataclasses.dataclass(frozen=True, slots=True)
class LedgerOnSpark:
    """A ledger's entries, as `standings` and `lawful_links` take them."""

    records: ibis.Table
    lifetimes: ibis.Table
    links: ibis.Table


class SparkWorkspace:
    """Names for tables and queries, and what the executors keep. A context manager: it frees all of it.

    Parameters
    ----------
    session
        Spark. Its session time zone is set to UTC.
    """

    def __init__(self, session: SparkSession) -> None:
        self.session = session
        self._engine = ibis.pyspark.connect(session)
        self._prefix = f"consentier_{uuid.uuid4().hex}"
        self._numbers = itertools.count()
        self._kept: list[DataFrame] = []
        self._views: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free(0)
        for name in self._views:
            self.session.catalog.dropTempView(name)

    def table(self, frame: DataFrame) -> ibis.Table:
        """A table of Spark's as one of Ibis's."""
        name = self._name()
        frame.createOrReplaceTempView(name)
        return self._engine.table(name)

    def frame(self, expression: ibis.Table) -> DataFrame:
        """An expression of Ibis's as a table of Spark's."""
        name = self._name()
        self._engine.create_view(name, expression)
        return self.session.table(name)

    def keep(self, frame: DataFrame) -> DataFrame:
        """Keep a table on the executors, in memory and on their disks, until the workspace is closed.

        It is kept in as many parts as its size suggests, and not in as many as Spark shuffles into.
        """
        before = self.session.conf.get(_IN_FITTING_PARTS)
        self.session.conf.set(_IN_FITTING_PARTS, "true")
        try:
            self._kept.append(frame.persist())
        finally:
            self.session.conf.set(_IN_FITTING_PARTS, before or "false")
        return frame

    def kept_table(self, expression: ibis.Table) -> ibis.Table:
        """What an expression gives, computed once and kept on the executors."""
        return self.table(self.keep(self.frame(expression)))

    @contextlib.contextmanager
    def freeing(self) -> Iterator[None]:
        """Let go, at the end of the block, of what is kept within it."""
        before = len(self._kept)
        try:
            yield
        finally:
            self._free(before)

    def ledger(self, shop: SparkTables, consents: ConsentTables | None) -> LedgerOnSpark:
        """The entries that are asked: a ledger's, or the shop's own ``consents`` and ``identities``.

        The shop's own are kept: how subjects stand asks for them a dozen times, and each time they would be
        read and checked again.
        """
        if consents is not None:
            told = (consents.records, consents.lifetimes, consents.links)
            return LedgerOnSpark(*(ibis.memtable(table) for table in told))
        records = shop.consents.selectExpr("*", "recorded_at AS first_recorded", "false AS conflicting")
        kinds = shop.consents.select(*KIND_OF_GRANT).distinct().toArrow()
        lifetimes = ibis.memtable(lifetime_table(kinds, Lifetimes.default()))
        links = self.keep(shop.identities)
        return LedgerOnSpark(self.table(self.keep(records)), lifetimes, self.table(links))

    def ledger_without(
        self, ledger: LedgerOnSpark, subjects: Mapping[SubjectKind, Sequence[str]]
    ) -> LedgerOnSpark:
        """The entries without those of some subjects, given as ids by kind.

        As for tables in memory, two things stay known: that a record's id was used by somebody else too, and
        that a device was shared with somebody else. Which these are is fetched, for they are few; worked out
        by joins they would stand a dozen times in each plan, and planning would take longer than the work.
        """
        visitors, customers = (subjects.get(kind, ()) for kind in ("visitor", "customer"))
        links = rows_without(self.frame(ledger.links), "visitor_id", visitors)
        is_subject = functools.partial(_is_subject, subjects=subjects)
        return dataclasses.replace(
            ledger,
            records=self._unless(self.frame(ledger.records), is_subject, "record_id"),
            links=self._unless(
                links, functools.partial(values_in, column="customer_id", values=customers), "visitor_id"
            ),
        )

    def _unless(self, table: DataFrame, leaves: Mask, column: str) -> ibis.Table:
        """The rows that do not leave, and of the others those whose value in a column stays in use."""
        stays = functools.partial(_stays, leaves=leaves, column=column)
        leaving, others = rows_where(table, leaves), rows_where(table, functools.partial(stays, in_use=()))
        shared = leaving.join(others, column, "left_semi").select(column).distinct().toArrow()
        staying = functools.partial(stays, in_use=shared[column].to_pylist())
        return self.table(self.keep(rows_where(table, staying)))

    def _free(self, but: int) -> None:
        while len(self._kept) > but:
            self._kept.pop().unpersist()

    def _name(self) -> str:
        self._views.append(f"{self._prefix}_{next(self._numbers)}")
        return self._views[-1]


def _is_subject(batch: pa.RecordBatch, subjects: Mapping[SubjectKind, Sequence[str]]) -> pa.Array:
    found = pa.repeat(pa.scalar(False), batch.num_rows)
    for kind, ids in subjects.items():
        of_kind = pc.equal(batch.column("subject_kind"), kind)
        found = pc.or_(found, pc.and_(of_kind, values_in(batch, "subject_id", ids)))
    return found


def _stays(batch: pa.RecordBatch, leaves: Mask, column: str, in_use: Sequence[str]) -> pa.Array:
    return pc.or_(pc.invert(leaves(batch)), values_in(batch, column, in_use))


def rows_before(sizes: Mapping[int, int], partition: Column) -> Column:
    """How many rows the partitions before a row's own have together, as a whole number of 64 bits.

    Parameters
    ----------
    sizes
        Rows of each partition that has any.
    partition
        The number of a row's partition.
    """
    starts, start = [], 0
    for number in range(max(sizes, default=0) + 1):
        starts.append(functions.lit(start).cast("long"))
        start += sizes.get(number, 0)
    return functions.element_at(functions.array(*starts), partition + 1)
