"""Batch scoring: recommendations for all whom a channel may reach.

Two questions are kept apart. Whether a person gets rows at all is decided by the contact permission of the
channel (CRM side) or the online permission (online side). What may be read about the person is decided by the
policy for the state in which the person stands, as for a single request: `bulk_reach` asks for all at once,
`views_of` cuts out what the tier may read, and only that reaches a model.

Persons are scored in parts of the same size, in their order. A part depends on nothing but its persons, so
that neither the number of workers nor an interruption changes a byte.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Channel, Ledger, Side
from consentier.consent.lifetimes import Lifetimes
from consentier.errors import DataError
from consentier.models.attribute_encoding import AttributeValue
from consentier.progress import progress
from consentier.serving.batch_answers import BatchAnswers, answering_bundles, shown_into
from consentier.serving.batch_file import BatchFacts
from consentier.serving.batch_job import BatchJob, PartCounts
from consentier.serving.batch_sinks import BatchSink, sink_for
from consentier.serving.batch_views import Histories, plain_value
from consentier.serving.bulk_reach import BulkReach, bulk_reach
from consentier.serving.catalogue import Catalogue
from consentier.serving.recommender import Recommender
from consentier.serving.request import Event, Request
from consentier.serving.shop_rows import sensitive_items, shop_rows
from consentier.serving.similar_goods import SimilarGoods
from consentier.serving.view import Profiles

if TYPE_CHECKING:
    import pyarrow as pa

    from consentier.features.consent_intervals import ConsentTables
    from consentier.features.tables import ShopTables
    from consentier.serving.batch_table import BatchTable

__all__ = [
    "BatchSummary",
    "catalogue_of",
    "catalogue_of_items",
    "ledger_as_of",
    "profiles_of",
    "score_customers",
]

_ROWS_PER_PART = 500_000
"""Rows that a part has at the most, and that a worker holds in memory."""

_PERSONS_PER_PART = 50_000


@dataclasses.dataclass(frozen=True, slots=True)
class BatchSummary:
    """What a batch wrote, in counts.

    Attributes
    ----------
    rows
        Rows that were written: one per recommended item.
    customers
        Persons who have rows (visitors, on the online side).
    by_tier
        Of these, how many each tier answered.
    skipped
        How many have no rows, by reason.
    at
        The instant whose permissions and histories counted.
    """

    rows: int
    customers: int
    by_tier: dict[str, int]
    skipped: dict[str, int]
    at: dt.datetime

    @classmethod
    def of(cls, parts: Iterable[PartCounts], job: BatchJob) -> BatchSummary:
        """Add up the parts of a job."""
        total = PartCounts.total(parts)
        return cls(total.rows, sum(total.by_tier.values()), total.by_tier, total.skipped, job.at)


def score_customers(
    shop: ShopTables,
    recommender: Recommender,
    ledger: Ledger | None,
    *,
    channel: Channel,
    at: dt.datetime | None,
    n: int,
    out: Path | BatchTable,
    workers: int | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> BatchSummary:
    """Write recommendations for everyone whom a channel may reach.

    On the CRM side rows are keyed by ``customer_id``; customers without the channel's contact permission get
    none. On the online side they are keyed by ``visitor_id``, for visitors with an online permission; all
    others are answered at request time, from their session, and no file names them.

    Parameters
    ----------
    shop
        The shop's tables: whom there is to score, and their histories before `at`.
    recommender
        Bundles and policy. Its ledger and profiles are not asked, but `ledger` and the tables of `shop`.
    ledger
        Who is asked about permissions, contact and links; None: the tables ``consents`` and ``identities`` of
        `shop`, which saves making a ledger of them.
    channel
        Where the answers will go.
    at
        The instant whose permissions and histories count. None: that of the job which is resumed, or now.
    n
        Items per person, at most.
    out
        A file, if its name ends in ``.parquet``: there is the old one, or the whole new one. Any other path
        is a directory of parts, and a `BatchTable` a table of a database; both can be resumed.
    workers
        Threads; all cores by default. What is written does not depend on it.
    resume
        Go on with a job that was interrupted. Parts that are written stay as they are, and permissions are
        those that the ledger held when the job began.
    show_progress
        Report progress on standard error.

    Returns
    -------
    BatchSummary
        Of the whole job, what was written before an interruption included.

    Raises
    ------
    TypeError, ValueError
        If `channel`, `at`, `n` or `workers` is not what it should be.
    DataError
        If `out` is in the way, or holds another job than the one that is to be resumed; or if the tables
        hold more than 127 types of events.
    BundleError
        If a bundle passes its withdrawal deadline while the job runs.
    OSError
        If something cannot be written; an earlier file stays as it was.

    Notes
    -----
    The columns are those of `serving.batch_file`. Ordered by person and rank. Before it is sent, permissions
    may end: `serving.deliver` checks every row again.

    n log n in the rows of the shop and the ledger, then linear in the entries of the models that histories
    meet. Memory: 13 bytes an event, some hundred a person, and one part for each worker.
    """
    if not isinstance(channel, Channel):
        raise TypeError(f"channel must be a consentier.Channel, not {channel!r}")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int)):
        raise TypeError(f"workers must be a whole number or None, not {workers!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    Request(channel=channel, at=at, n=n)  # refuses a wrong instant or number before anything is done
    with sink_for(out, channel, resume=resume) as sink:
        begun = sink.begun(at)
        instant = begun.at if begun else (recommender.clock() if at is None else at).astimezone(dt.UTC)
        known = ledger if begun is None else ledger_as_of(ledger, begun.ledger_position)
        batch = _Batch.prepared(shop, recommender, known, channel=channel, at=instant, n=n)
        sink.start(batch.job)
        return _run(batch, sink, workers, show_progress=show_progress)


def ledger_as_of(ledger: Ledger | None, position: int | None) -> Ledger | None:
    """The ledger as it was when a batch began.

    Raises
    ------
    DataError
        If it is another ledger.
    """
    if ledger is None or position is None:
        return ledger
    try:
        return ledger.as_of(position)
    except ValueError as error:
        raise DataError(f"the batch to be resumed began with another ledger: {error}") from error


def _run(batch: _Batch, sink: BatchSink, workers: int | None, *, show_progress: bool) -> BatchSummary:
    """Score and write all parts that are not written yet."""
    from joblib import Parallel, delayed

    job = batch.job
    counts = sink.written()
    left = [part for part in range(job.parts) if part not in counts]
    done = sum(each.persons for each in counts.values())

    def work(part: int) -> tuple[int, PartCounts]:
        try:
            table, found = batch.part(part)
            sink.write(part, table, found)
        except BaseException as error:
            sink.abandon(error)
            raise
        return part, found

    with progress(f"scoring for {job.facts.channel}", job.persons, enabled=show_progress) as advance:
        advance(done)
        started, scored = time.monotonic(), 0
        # Threads share the mapped bundles and the histories; the loops give back the interpreter's lock.
        results = Parallel(
            n_jobs=-1 if workers is None else workers, prefer="threads", return_as="generator_unordered"
        )(delayed(work)(part) for part in left)
        try:
            for part, found in results:
                counts[part] = found
                scored += found.persons
                rate = scored / max(time.monotonic() - started, 1e-9)
                advance(found.persons, note=f"{rate:,.0f} persons/s")
        except BaseException as error:  # an interruption, say: no worker is to wait for another
            sink.abandon(error)
            raise
    sink.finish()
    return BatchSummary.of(counts.values(), job)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """A job, and what answers everybody in it. Immutable, and read by all workers."""

    job: BatchJob
    answers: BatchAnswers

    @classmethod
    def prepared(
        cls,
        shop: ShopTables,
        recommender: Recommender,
        ledger: Ledger | None,
        *,
        channel: Channel,
        at: dt.datetime,
        n: int,
    ) -> _Batch:
        """Ask the ledger about everybody, number the histories, and take the models that may answer."""
        from consentier.features.consent_intervals import ConsentTables

        if ledger is None:
            position, consents = None, ConsentTables.of_shop(shop, Lifetimes.default())
        else:
            position, consents = ledger.position, ConsentTables.of(ledger)
        rows = shop_rows(shop, at)
        persons = _persons(shop, consents, channel.side)
        reach = bulk_reach(consents, recommender.policy, persons, channel, at)
        histories = Histories.of(rows)
        facts = BatchFacts(channel, recommender.policy.version, at)
        stopped = recommender.stopped_bundles(at)
        answers = BatchAnswers.of(recommender, reach, histories, SimilarGoods(shop.items), facts, n, stopped)
        job = BatchJob(
            facts=facts,
            n=n,
            persons=len(reach),
            persons_per_part=max(1, min(_PERSONS_PER_PART, _ROWS_PER_PART // n)),
            ledger_position=position,
            bundles=answering_bundles(recommender, stopped),
            inputs=_fingerprint(recommender, reach, histories, shop.items),
        )
        return cls(job, answers)

    def part(self, number: int) -> tuple[pa.Table, PartCounts]:
        """Score one part."""
        start = number * self.job.persons_per_part
        return self.answers.lists(start, min(start + self.job.persons_per_part, self.job.persons))


def _fingerprint(recommender: Recommender, reach: BulkReach, histories: Histories, items: pa.Table) -> str:
    """A digest of all that lists depend on, apart from the bundles."""
    digest = hashlib.blake2b(digest_size=32)
    histories.digest_into(digest)
    reach.digest_into(digest)
    shown_into(digest, recommender, items)
    return digest.hexdigest()


def catalogue_of(shop: ShopTables, attributes: Collection[str] | None = None) -> Catalogue | None:
    """What the shop's ``items`` table says may be shown; None where the shop has no such table.

    Parameters
    ----------
    shop
        The shop's tables.
    attributes
        Names of the attributes to keep; None: all.
    """
    return catalogue_of_items(shop.items, attributes)


def catalogue_of_items(items: pa.Table, attributes: Collection[str] | None = None) -> Catalogue | None:
    """The same, of the table itself."""
    if not items.num_rows:
        return None
    ids = items["item_id"].to_pylist()
    available = items["available"].to_pylist()
    others = [name for name in items.column_names if name not in ("item_id", "available", "sensitive")]
    kept = [name for name in others if attributes is None or name in attributes]
    rows = items.select(kept).to_pylist()
    known = Catalogue.of(dict(zip(ids, rows, strict=True))) if kept else Catalogue(frozenset())
    return Catalogue(
        frozenset(item for item, sold in zip(ids, available, strict=True) if sold is not False),
        sensitive_items(items),
        known.attributes,
        frozenset(others) - frozenset(kept),
    )


def profiles_of(shop: ShopTables, at: dt.datetime) -> Profiles:
    """The histories that a shop holds at an instant, as stores that the recommender can ask.

    Online: what visitors did, removals left out. CRM: order lines that stand (``order``) and product usage
    (``usage``). Attributes are those of the customers table. Nothing at or after `at`, and no sensitive item.

    Parameters
    ----------
    shop
        The shop's tables.
    at
        Rows at or after it stay out.

    Raises
    ------
    TypeError, ValueError
        If `at` is no datetime, or has no time zone.

    Notes
    -----
    Sorts the rows once (n log n, in Arrow); a history is turned into events when it is asked for. Memory: one
    sorted copy of the columns needed.
    """
    rows = shop_rows(shop, at)
    return Profiles(
        online=_Histories(rows.online), crm=_Histories(rows.crm), attributes=_Attributes(rows.attributes)
    )


class _Histories(Mapping[str, Sequence[Event]]):
    """Histories by person, oldest first, turned into events when they are asked for."""

    answers_within = 0.0  # seconds: it lies in memory

    def __init__(self, rows: pa.Table) -> None:
        order = [(name, "ascending") for name in ("person", "ts", "item_id", "event_type", "quantity")]
        self._rows = rows.sort_by(order).combine_chunks().drop_columns(["person"])
        self._bounds = _bounds(rows["person"])

    def __getitem__(self, person: str) -> tuple[Event, ...]:
        start, stop = self._bounds[person]
        rows = self._rows.slice(start, stop - start).to_pylist()
        return tuple(Event(**row) for row in rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)


def _bounds(persons: Any) -> dict[str, tuple[int, int]]:
    """First row and end of each person's rows in a table that is sorted by person."""
    counted, lengths_of = persons.value_counts().flatten()
    names, lengths = counted.to_pylist(), lengths_of.to_numpy()
    order = sorted(range(len(names)), key=names.__getitem__)
    ends: NDArray[np.int64] = np.cumsum(lengths[order])
    starts = ends - lengths[order]
    return {
        names[position]: (start, end)
        for position, start, end in zip(order, starts.tolist(), ends.tolist(), strict=True)
    }


class _Attributes(Mapping[str, Mapping[str, AttributeValue]]):
    """Attributes by customer: the texts, numbers and truth values of the customers table."""

    answers_within = 0.0  # seconds: it lies in memory

    def __init__(self, customers: pa.Table) -> None:
        self._rows = customers.drop_columns(["customer_id"])
        ids = customers["customer_id"].to_pylist()
        self._position = {customer: position for position, customer in enumerate(ids)}

    def __getitem__(self, customer: str) -> Mapping[str, AttributeValue]:
        position = self._position[customer]
        row = self._rows.slice(position, 1).to_pydict()
        return {name: plain_value(values[0]) for name, values in row.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._position)

    def __len__(self) -> int:
        return len(self._position)


def _persons(shop: ShopTables, consents: ConsentTables, side: Side) -> pa.Array:
    """Everyone whom the tables or the ledger know, ascending."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if side is Side.CRM:
        kind = "customer"
        tables = [shop.orders, shop.product_usage, shop.customers]
        columns = [table["customer_id"] for table in tables]
    else:
        kind, columns = "visitor", [shop.events["visitor_id"]]
    records = consents.records
    columns.append(records.filter(pc.equal(records["subject_kind"], kind))["subject_id"])
    found = pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()))
    return found.take(pc.sort_indices(found))
