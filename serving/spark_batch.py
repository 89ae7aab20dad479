"""Batch scoring on Apache Spark: the rows of `score_customers`, where the tables do not fit one machine.

Permissions are resolved on the executors, by the expressions that `bulk_reach` uses. To a task comes a part:
whole persons, and of their histories what the tiers may read that can answer them; everything else is left
where it is stored. The tasks write the parts into a directory that all machines share.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import hashlib
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession, functions

from consentier.consent import Channel, Ledger, Policy, Side, Source, Tier, microseconds, sources_of
from consentier.errors import DataError
from consentier.features.consent_intervals import BEGINNING, ConsentTables
from consentier.features.spark_session import errors_of_tasks
from consentier.features.spark_tables import SparkTables
from consentier.features.spark_workspace import LedgerOnSpark, SparkWorkspace, rows_before
from consentier.progress import progress
from consentier.serving.batch import BatchSummary, ledger_as_of
from consentier.serving.batch_answers import answering_bundles, require_same_deadlines, shown_into
from consentier.serving.batch_file import BatchFacts
from consentier.serving.batch_job import BatchJob, PartCounts
from consentier.serving.batch_sinks import BatchSink, sink_for
from consentier.serving.bulk_reach import (
    STANDING,
    Cell,
    cell_of,
    links_now,
    sold_to,
    standing_now,
    unknown_standing,
)
from consentier.serving.recommender import Recommender, policy_of
from consentier.serving.request import Request
from consentier.serving.rules import Rules
from consentier.serving.shop_rows import HISTORY_TABLES, sensitive_items
from consentier.serving.spark_batch_tasks import (
    ATTRIBUTES,
    BUNDLES,
    CODED,
    CRM,
    DEVICE,
    HISTORY,
    ITEMS,
    ONLINE,
    PERSON,
    WRITTEN,
    Scoring,
    code_batches,
    digests_of,
    history_batches,
    recommender_over,
    score_part,
)
from consentier.writing import scratch

__all__ = ["score_on_spark"]

_PERSONS_PER_PART = 10_000
"""A task holds the permitted histories of so many persons in memory."""

_ROWS_PER_PART = 500_000


def score_on_spark(
    session: SparkSession,
    shop: SparkTables,
    bundles: Path,
    *,
    channel: Channel,
    at: dt.datetime | None,
    n: int,
    out: Path,
    policy: Policy | Path | None = None,
    rules: Rules | None = None,
    ledger: Ledger | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> BatchSummary:
    """Write recommendations for everyone whom a channel may reach: the rows of `score_customers`.

    Parameters
    ----------
    session
        Spark. Its session time zone is set to UTC. The executors must have `consentier[spark]` installed.
    shop
        The shop's tables, from `read_spark_tables` or `SparkTables.of`.
    bundles
        The directory that ``consentier train --out`` wrote. The executors get a copy.
    channel, at, n, resume, show_progress
        As for `score_customers`.
    out
        A directory that the driver and all executors see under this name.
    policy, rules
        As for `Recommender.load`.
    ledger
        Consents and links; by default those of the shop's tables.

    Returns
    -------
    BatchSummary
        Of the whole job, what was written before an interruption included.

    Raises
    ------
    TypeError, ValueError
        If `channel`, `at` or `n` is not what it should be.
    DataError
        If a row breaks the data contract; if `out` is in the way, is not shared, or holds another job than
        the one that is to be resumed.
    BundleMissing, BundleError
        If no bundle can be used, or one passes its withdrawal deadline while the job runs.

    Notes
    -----
    A part depends on nothing but its persons. A task that is run again writes the same bytes in the same
    place, by one rename.

    Memory of the driver: the items, the bundles, one number for each partition and each part. Of a task: the
    permitted histories of 10,000 persons, or of fewer where `n` is above 50.
    """
    if not isinstance(channel, Channel):
        raise TypeError(f"channel must be a consentier.Channel, not {channel!r}")
    Request(channel=channel, at=at, n=n)  # refuses a wrong instant or number before anything is done
    if out.suffix == ".parquet":
        raise DataError(f"{out}: on Spark a batch is a directory of parts; name one without .parquet")
    chosen, shown = policy_of(policy), Rules() if rules is None else rules
    recommender = recommender_over(bundles, shop.items, chosen, shown)
    out = out.absolute()
    with (
        sink_for(out, channel, resume=resume) as sink,
        errors_of_tasks(),
        SparkWorkspace(session) as space,
        scratch("batch") as folder,
        progress(f"scoring for {channel} on Spark", None, enabled=show_progress),
    ):
        begun = sink.begun(at)
        instant = begun.at if begun else (recommender.clock() if at is None else at).astimezone(dt.UTC)
        known = ledger if begun is None else ledger_as_of(ledger, begun.ledger_position)
        facts = BatchFacts(channel, recommender.policy.version, instant)
        batch = _SparkBatch(space, shop, recommender, facts, n, recommender.stopped_bundles(instant))
        job, rows = batch.prepared(known)
        sink.start(job)
        counts = sink.written()
        if left := sorted(set(range(job.parts)) - counts.keys()):
            archive = folder / f"consentier-{uuid.uuid4().hex}.zip"
            _pack(archive, bundles, recommender, shop.items)
            session.sparkContext.addArchive(str(archive))
            digests = digests_of(recommender)
            scoring = Scoring(archive.name, job, str(out), chosen, shown, digests, batch.stopped)
            counts |= _scored(rows, left, scoring)
        _require_whole(sink, job, out)
        require_same_deadlines(recommender, instant, batch.stopped)
        sink.finish()
    return BatchSummary.of(counts.values(), job)


def _pack(archive: Path, bundles: Path, recommender: Recommender, items: pa.Table) -> None:
    """What the executors need, in one file, uncompressed."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for path in bundles.glob("*.json"):  # withdrawal deadlines, and what a registry has decided
            packed.write(path, f"{BUNDLES}/{path.name}")
        for tier in digests_of(recommender):
            for path in (bundles / tier).iterdir():
                packed.write(path, f"{BUNDLES}/{tier}/{path.name}")
        with packed.open(ITEMS, "w", force_zip64=True) as file:
            pq.write_table(items, file)


def _scored(rows: DataFrame, left: Sequence[int], scoring: Scoring) -> dict[int, PartCounts]:
    """Have the parts scored and written that are left; what became of their persons."""
    if len(left) < scoring.job.parts:
        rows = rows.filter(functions.col("part").isin(*left))
    score = functools.partial(score_part, scoring=scoring)
    by_part = rows.repartition(len(left), "part").groupBy("part")
    told = by_part.applyInArrow(score, WRITTEN).toArrow()
    counts = zip(told["part"].to_pylist(), told["counts"].to_pylist(), strict=True)
    return {part: PartCounts.from_text(text, f"part {part}") for part, text in counts}


def _require_whole(sink: BatchSink, job: BatchJob, out: Path) -> None:
    if missing := job.parts - len(sink.written()):
        raise DataError(
            f"{out}: {missing} of {job.parts} parts are not there after all tasks have ended; name a "
            "directory that the driver and all executors share"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Readers:
    """The states in which somebody reads what."""

    own: tuple[int, ...]
    """The visitor's own events."""
    joined: tuple[int, ...]
    """Those of all linked devices."""
    crm: tuple[int, ...]
    """The customer's CRM data."""

    @classmethod
    def of(cls, cells: Mapping[int, Cell], answering: frozenset[Tier], side: Side) -> _Readers:
        """What the tiers may read that can answer; nothing where the channel does not reach the person."""
        own, joined, crm = [], [], []
        for code, cell in sorted(cells.items()):
            tiers = frozenset() if cell.barrier else answering & set(cell.route.tiers)
            read = {tier: sources_of(tier, side) for tier in tiers}
            if side is Side.ONLINE and any(
                Source.ONLINE in sources for tier, sources in read.items() if tier is not Tier.FUSED
            ):
                own.append(code)
            if Tier.FUSED in tiers:
                joined.append(code)
            if any(Source.CRM in sources for sources in read.values()):
                crm.append(code)
        return cls(tuple(own), tuple(joined), tuple(crm))


@dataclasses.dataclass(frozen=True, slots=True)
class _SparkBatch:
    """What a batch is, and the rows that its tasks get."""

    space: SparkWorkspace
    shop: SparkTables
    recommender: Recommender
    facts: BatchFacts
    n: int
    stopped: Mapping[str, str]

    def prepared(self, ledger: Ledger | None) -> tuple[BatchJob, DataFrame]:
        """Ask about everybody, and choose the rows that may be read.

        Returns
        -------
        job, rows
            The job, and what its tasks get: rows of five kinds (`PERSON` and so on), by part.
        """
        entries = self.space.ledger(self.shop, None if ledger is None else ConsentTables.of(ledger))
        channel, at = self.facts.channel, self.facts.at
        links = links_now(
            entries.records, entries.lifetimes, entries.links, self.recommender.policy, channel, at
        )
        standing = self._standing(entries)
        linked = self.space.keep(_with_since(self.space.frame(links), standing))
        size = max(1, min(_PERSONS_PER_PART, _ROWS_PER_PART // self.n))
        persons, codes = self._numbered(self._states(entries, standing, linked), size)
        cells = {code: cell_of(code, self.recommender.policy, channel) for code in codes}
        rows = self.space.keep(self._rows(persons, linked, cells))
        job = BatchJob(
            facts=self.facts,
            n=self.n,
            persons=sum(codes.values()),
            persons_per_part=size,
            ledger_position=None if ledger is None else ledger.position,
            bundles=answering_bundles(self.recommender, self.stopped),
            inputs=self._fingerprint(rows, cells),
        )
        return job, rows

    def _standing(self, entries: LedgerOnSpark) -> DataFrame:
        """How everybody stands: `standing_now`."""
        found = standing_now(entries.records, entries.lifetimes, self.facts.channel, self.facts.at)
        return self.space.keep(self.space.frame(found).select("subject_kind", "subject_id", *STANDING))

    def _states(self, entries: LedgerOnSpark, standing: DataFrame, links: DataFrame) -> DataFrame:
        """Everybody whom the tables or the ledger know, and how they stand: columns of `CODED`."""
        channel, at = self.facts.channel, self.facts.at
        side = channel.side
        kind = "customer" if side is Side.CRM else "visitor"
        persons = self._persons(kind, entries)
        if side is Side.CRM:
            known = links.groupBy(functions.col("customer_id").alias("person")).agg(
                functions.min_by("opposed_until", "visitor_id").alias("first_opposed_until")
            )
            sold = self.space.frame(sold_to(entries.records, channel, at))
            sold = sold.select(functions.col("subject_id").alias("person"), functions.lit(True).alias("sold"))
            persons = persons.join(known.withColumn("link", functions.lit(1)), "person", "left")
            persons = persons.join(sold, "person", "left").withColumn("customer", functions.col("person"))
        else:
            owners = links.select(
                functions.col("visitor_id").alias("person"), functions.col("customer_id").alias("customer")
            )
            persons = persons.join(owners, "person", "left").withColumns(
                {
                    "link": functions.col("customer").isNotNull(),
                    "sold": functions.lit(False),
                    "first_opposed_until": functions.lit(BEGINNING),
                }
            )
        persons = persons.join(_named(standing, kind, "person", "own_"), "person", "left")
        persons = persons.join(_named(standing, "customer", "customer", "their_"), "customer", "left")
        told = {
            whose + name: _or_unknown(functions.col(whose + name), name)
            for whose in ("own_", "their_")
            for name in STANDING
        }
        if side is Side.CRM:
            first = functions.coalesce("first_opposed_until", functions.lit(BEGINNING))
            since = (functions.lit(BEGINNING), functions.greatest(told["own_since"], first))
        else:
            since = (
                functions.greatest(told["own_since"], told["their_opposed_until"]),
                functions.greatest(told["their_since"], told["own_opposed_until"]),
            )
        columns = persons.select(
            "person",
            "customer",
            functions.coalesce("sold", functions.lit(False)).alias("similar"),
            functions.coalesce(functions.col("link").cast("long"), functions.lit(0)).alias("linked"),
            *(column.alias(name) for name, column in told.items()),
            since[0].alias("online_since"),
            since[1].alias("crm_since"),
        )
        return columns.mapInArrow(functools.partial(code_batches, channel=channel), CODED)

    def _persons(self, kind: str, entries: LedgerOnSpark) -> DataFrame:
        """Everyone whom the tables or the ledger know, each once."""
        shop = self.shop
        tables = [shop.events] if kind == "visitor" else [shop.orders, shop.product_usage, shop.customers]
        records = entries.records.filter(entries.records.subject_kind == kind)
        found = self.space.frame(records.select(person="subject_id"))
        for table in tables:
            found = found.unionAll(table.select(functions.col(f"{kind}_id").alias("person")))
        return found.distinct()

    def _numbered(self, persons: DataFrame, size: int) -> tuple[DataFrame, dict[int, int]]:
        """Number everybody in order, by UTF-8 bytes, and cut the parts.

        Returns
        -------
        persons, codes
            Columns of `CODED`, place and part; and how many persons stand in each state.
        """
        # Kept before it is sorted, too: Spark looks through what it sorts twice.
        in_order = self.space.keep(self.space.keep(persons).orderBy("person"))
        partition_id = functions.spark_partition_id()
        counted = in_order.groupBy(partition_id.alias("partition"), "code").count().toArrow()
        sizes: dict[int, int] = {}
        codes: dict[int, int] = {}
        for row in counted.to_pylist():
            sizes[row["partition"]] = sizes.get(row["partition"], 0) + row["count"]
            codes[row["code"]] = codes.get(row["code"], 0) + row["count"]
        # The lower 33 bits count the rows of a partition.
        within = functions.monotonically_increasing_id().bitwiseAND(2**33 - 1)
        placed = in_order.withColumn("place", rows_before(sizes, partition_id) + within)
        part = functions.floor(functions.col("place") / size).cast("int")
        return self.space.keep(placed.withColumn("part", part)), codes

    def _rows(self, persons: DataFrame, links: DataFrame, cells: Mapping[int, Cell]) -> DataFrame:
        """All that the tasks get."""
        side = self.facts.channel.side
        answering = frozenset(Tier(tier) for tier in answering_bundles(self.recommender, self.stopped))
        readers = _Readers.of(cells, answering, side)
        code = functions.col("code")
        devices = persons.filter(code.isin(*readers.joined)).join(
            links.withColumnRenamed("customer_id", "customer"), "customer"
        )
        devices = devices.select(
            "part",
            "place",
            functions.col("visitor_id").alias("subject"),
            functions.col("since").alias("online_since"),
        )
        own, crm = (
            persons.filter(code.isin(*states)).select(
                "part", functions.col(name).alias("subject"), functions.col(f"{source}_since").alias("since")
            )
            for states, name, source in (
                (readers.own, "person", Source.ONLINE),
                (readers.crm, "customer", Source.CRM),
            )
        )
        joined = devices.select("part", "subject", functions.col("online_since").alias("since"))
        customer = functions.when(code.isin(*readers.crm), functions.col("customer"))
        events, orders, usage = (self._history(name) for name in HISTORY_TABLES)
        kinds = {
            PERSON: persons.withColumn("customer", customer).withColumnRenamed("person", "subject"),
            DEVICE: devices,
            ONLINE: _begun(events, own.unionAll(joined)),
            CRM: _begun(orders.unionByName(usage), crm),
            ATTRIBUTES: self._attributes().join(crm.select("part", "subject").distinct(), "subject"),
        }
        tables = [table.withColumn("kind", functions.lit(kind).cast("byte")) for kind, table in kinds.items()]
        return functools.reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), tables)

    def _history(self, table: str) -> DataFrame:
        """The rows of a table that histories are made of: columns of `HISTORY`."""
        take = functools.partial(
            history_batches,
            table=table,
            before=microseconds(self.facts.at),
            banned=sorted(sensitive_items(self.shop.items)),
        )
        frame: DataFrame = getattr(self.shop, table)
        return frame.mapInArrow(take, HISTORY)

    def _attributes(self) -> DataFrame:
        """Columns subject and, where the shop has some, attributes: a struct of them."""
        customers = self.shop.customers
        names = [name for name in customers.columns if name != "customer_id"]
        columns = [functions.col("customer_id").alias("subject")]
        if names:
            columns.append(functions.struct(*(_quoted(name) for name in names)).alias("attributes"))
        return customers.select(*columns)

    def _fingerprint(self, rows: DataFrame, cells: Mapping[int, Cell]) -> str:
        """A digest of all that lists depend on, apart from the bundles; in whatever order rows come."""
        row = functions.xxhash64(functions.to_json(functions.struct("*")))
        (told,) = (
            rows.select(row.alias("hash"))
            .agg(
                functions.count("*"),
                functions.sum(functions.col("hash").cast("decimal(38,0)")),
                functions.bit_xor("hash"),
            )
            .collect()
        )
        digest = hashlib.blake2b(digest_size=32)
        digest.update(repr((tuple(map(str, told)), sorted(cells.items()))).encode())
        shown_into(digest, self.recommender, self.shop.items)
        return f"spark {digest.hexdigest()}"


def _quoted(name: str) -> str:
    """A column by its name, whatever stands in it."""
    return f"`{name.replace('`', '``')}`"


def _or_unknown(column: Column, name: str) -> Column:
    """A column of `STANDING`, and of those of whom nothing is known what that comes to."""
    return functions.coalesce(column.cast("long"), functions.lit(unknown_standing(name)))


def _begun(events: DataFrame, readable: DataFrame) -> DataFrame:
    """The events of subjects that some person of a part may read; who may read fewer gets fewer there."""
    since = readable.groupBy("part", "subject").agg(functions.min("since").alias("since"))
    return events.join(since, "subject").filter(functions.col("ts") >= functions.col("since")).drop("since")


def _with_since(links: DataFrame, standing: DataFrame) -> DataFrame:
    """Links, with the time since when each device may be read, and until when it opposed the customer."""
    visitor, customer = (
        standing.filter(functions.col("subject_kind") == kind).select(
            functions.col("subject_id").alias(f"{kind}_id"),
            *(functions.col(name).alias(f"{kind}_{name}") for name in ("since", "opposed_until")),
        )
        for kind in ("visitor", "customer")
    )
    return (
        links.join(visitor, "visitor_id")
        .join(customer, "customer_id")
        .select(
            "visitor_id",
            "customer_id",
            functions.greatest("visitor_since", "customer_opposed_until").alias("since"),
            functions.col("visitor_opposed_until").alias("opposed_until"),
        )
    )


def _named(standing: DataFrame, kind: str, key: str, prefix: str) -> DataFrame:
    """How the subjects of a kind stand, under other names."""
    own = standing.filter(functions.col("subject_kind") == kind)
    columns = [functions.col(name).alias(prefix + name) for name in STANDING]
    return own.select(functions.col("subject_id").alias(key), *columns)
