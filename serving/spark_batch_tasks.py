"""What runs on the executors of Apache Spark in a batch: the rows of whole persons to a part of the batch.

It is the code that scores on one machine (`serving.batch_answers`), fed with the persons of one part. Bundles
come as files, which each worker verifies and maps into memory once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consentier.consent import Channel, Policy, Side
from consentier.errors import BundleError, DataError
from consentier.serving.batch import catalogue_of_items
from consentier.serving.batch_answers import BatchAnswers
from consentier.serving.batch_file import JOB_FILE
from consentier.serving.batch_job import BatchJob
from consentier.serving.batch_sinks import write_part
from consentier.serving.batch_views import Histories
from consentier.serving.bulk_reach import STANDING, BulkReach, cells_of, state_codes
from consentier.serving.recommender import Recommender
from consentier.serving.rules import Rules
from consentier.serving.shop_rows import ShopRows, history_rows, plain_attributes
from consentier.serving.similar_goods import SimilarGoods

__all__ = [
    "ATTRIBUTES",
    "BUNDLES",
    "CODED",
    "CRM",
    "DEVICE",
    "HISTORY",
    "ITEMS",
    "ONLINE",
    "PERSON",
    "WRITTEN",
    "Scoring",
    "code_batches",
    "digests_of",
    "history_batches",
    "recommender_over",
    "score_part",
]

PERSON, DEVICE, ONLINE, CRM, ATTRIBUTES = range(5)
"""Kinds of rows that a task gets: a person, one of their devices, an event of either source, attributes."""

HISTORY = "subject string, ts long, item_id string, event_type string"
"""Columns of what `history_batches` gives."""

CODED = "person string, customer string, code long, similar boolean, online_since long, crm_since long"
"""Columns of what `code_batches` gives."""

WRITTEN = "part int, counts string"
"""Columns of what `score_part` gives."""

BUNDLES, ITEMS = "bundles", "items.parquet"
"""What the archive of a batch holds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scoring:
    """One batch, as its tasks know it.

    Attributes
    ----------
    archive
        The name under which Spark distributes the bundles and the items; no two batches have the same.
    job
        What the batch is.
    out
        The directory, as all machines see it.
    policy, rules
        What decides besides the bundles.
    digests
        By tier, of the bundles that there are.
    stopped
        Why each of them may not answer: see `Recommender.stopped_bundles`.
    """

    archive: str
    job: BatchJob = dataclasses.field(compare=False)
    out: str = dataclasses.field(compare=False)
    policy: Policy = dataclasses.field(compare=False)
    rules: Rules = dataclasses.field(compare=False)
    digests: Mapping[str, str] = dataclasses.field(compare=False)
    stopped: Mapping[str, str] = dataclasses.field(compare=False)


def history_batches(
    batches: Iterator[pa.RecordBatch], table: str, before: int, banned: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The rows of a table that histories are made of.

    Parameters
    ----------
    batches
        Rows of the table, times in microseconds since the epoch.
    table, before, banned
        As for `history_rows`.
    """
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        place = rows.column_names.index("ts")
        rows = rows.set_column(place, "ts", rows["ts"].cast(pa.timestamp("us", "UTC")))
        kept = history_rows(table, rows, before, banned)
        columns = (kept["person"], kept["ts"].cast(pa.int64()), kept["item_id"], kept["event_type"])
        yield from pa.table(columns, names=["subject", "ts", "item_id", "event_type"]).to_batches()


def code_batches(batches: Iterator[pa.RecordBatch], channel: Channel) -> Iterator[pa.RecordBatch]:
    """Number the state of each person: see `state_codes`.

    Parameters
    ----------
    batches
        Columns person, customer, similar, linked, online_since and crm_since, and those of `STANDING` with
        ``own_`` and ``their_`` before their names.
    channel
        Where the answers will go.
    """
    for batch in batches:
        own, theirs = (
            {name: batch.column(whose + name).to_numpy() for name in STANDING} for whose in ("own_", "their_")
        )
        codes = state_codes(channel, own, theirs, batch.column("linked").to_numpy())
        names = ["person", "customer", "similar", "online_since", "crm_since"]
        yield pa.RecordBatch.from_arrays(
            [*(batch.column(name) for name in names[:2]), pa.array(codes)]
            + [batch.column(name) for name in names[2:]],
            names=[*names[:2], "code", *names[2:]],
        )


def score_part(key: tuple[pa.Scalar, ...], rows: pa.Table, scoring: Scoring) -> pa.Table:
    """Score the persons of a part, and write it.

    Parameters
    ----------
    key
        The number of the part.
    rows
        All rows of it, in any order.
    scoring
        The batch.

    Returns
    -------
    pa.Table
        The number, and what became of the persons.

    Raises
    ------
    DataError
        If the directory of the batch is not here.
    BundleError
        If the bundles are not those with which the batch began, or one has passed its withdrawal deadline.
    """
    (part,) = (value.as_py() for value in key)
    out = Path(scoring.out)
    _require_shared(out, scoring.job)
    models = _models(scoring)
    reach = _reach(rows, part, scoring.job, models.recommender.policy)
    answers = BatchAnswers.of(
        models.recommender,
        reach,
        _histories(rows),
        models.goods,
        scoring.job.facts,
        scoring.job.n,
        scoring.stopped,
    )
    lists, counts = answers.lists(0, len(reach))
    write_part(out, scoring.job.name, part, lists, counts)
    return pa.table({"part": pa.array([part], pa.int32()), "counts": [counts.to_text()]})


def _require_shared(out: Path, job: BatchJob) -> None:
    """Refuse to write into a directory that only looks like the driver's."""
    try:
        same = (out / JOB_FILE).read_text("utf-8") == job.to_text()
    except OSError:
        same = False
    if not same:
        raise DataError(
            f"{out}: an executor finds no {JOB_FILE} of this batch there; name a directory that the driver "
            "and all executors share"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Models:
    """What a worker has opened."""

    recommender: Recommender
    goods: SimilarGoods


@functools.lru_cache(maxsize=1)  # a worker runs the tasks of one batch after the other
def _models(scoring: Scoring) -> _Models:
    from pyspark import SparkFiles

    folder = Path(SparkFiles.get(scoring.archive))
    items = pq.read_table(folder / ITEMS)
    recommender = recommender_over(folder / BUNDLES, items, scoring.policy, scoring.rules)
    found = digests_of(recommender)
    if found != scoring.digests:
        raise BundleError(
            f"an executor has other bundles than those with which the batch began: {found}, not "
            f"{dict(scoring.digests)}; start again when nobody writes them"
        )
    return _Models(recommender, SimilarGoods(items))


def recommender_over(bundles: Path, items: pa.Table, policy: Policy, rules: Rules) -> Recommender:
    """What answers in a batch: the bundles, and what the shop's items and rules let it show."""
    catalogue = catalogue_of_items(items, rules.columns)
    return Recommender.load(bundles, policy=policy, catalogue=catalogue, rules=rules)


def digests_of(recommender: Recommender) -> dict[str, str]:
    """The bundles that there are, by tier."""
    found = {str(tier): scorer.digest for tier, scorer in recommender.scorers.items()}
    return found if recommender.popular is None else {**found, "popular": recommender.popular.digest}


def _of_kind(rows: pa.Table, kind: int) -> pa.Table:
    return rows.filter(pc.equal(rows["kind"], kind))


def _reach(rows: pa.Table, part: int, job: BatchJob, policy: Policy) -> BulkReach:
    """The persons of a part: `bulk_reach` of them."""
    persons = _of_kind(rows, PERSON).sort_by("place").combine_chunks()
    start = part * job.persons_per_part
    places = np.arange(start, min(start + job.persons_per_part, job.persons))
    if not np.array_equal(persons["place"].to_numpy(), places):
        raise RuntimeError(f"part {part}: has {persons.num_rows} persons, not all {places.size} of its own")
    devices = _of_kind(rows, DEVICE).sort_by([("place", "ascending"), ("subject", "ascending")])
    per_person = np.bincount(devices["place"].to_numpy() - start, minlength=places.size)
    channel = job.facts.channel
    cells, states = cells_of(policy, channel, persons["code"].to_numpy())
    names = _texts(persons["subject"])
    return BulkReach(
        persons=names,
        cells=cells,
        states=states,
        visitors=names if channel.side is Side.ONLINE else pa.nulls(len(names), pa.string()),
        customers=_texts(persons["customer"]),
        device_starts=np.concatenate([[0], np.cumsum(per_person)]).astype(np.int64),
        devices=_texts(devices["subject"]),
        similar_only=persons["similar"].to_numpy(),
        online_since=persons["online_since"].to_numpy(),
        crm_since=persons["crm_since"].to_numpy(),
        devices_since=devices["online_since"].to_numpy(),
    )


def _texts(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().cast(pa.string())


def _histories(rows: pa.Table) -> Histories:
    events = rows.rename_columns({"subject": "person"}).select(
        ["kind", "person", "ts", "item_id", "event_type"]
    )
    online, crm = (_of_kind(events, kind) for kind in (ONLINE, CRM))
    known = _of_kind(rows, ATTRIBUTES)
    columns = {"customer_id": known["subject"]}
    if "attributes" in rows.column_names:
        values = known["attributes"].combine_chunks()
        columns |= dict(zip((field.name for field in values.type), values.flatten(), strict=True))
    return Histories.of(ShopRows(online, crm, plain_attributes(pa.table(columns))))
