"""Batches in a table of a database: each part is one transaction, together with the note that it is there.

Three tables: ``NAME`` holds the rows, by batch, person and rank; ``NAME_jobs`` what each batch is, as JSON,
with its channel and instant; ``NAME_parts`` the parts that are written. Whoever is interrupted leaves whole
parts, and whoever resumes writes the others: no row is lost, and none is there twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import re
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from consentier.consent import Channel, microseconds
from consentier.errors import DataError
from consentier.serving.batch_file import SCORED, BatchReader
from consentier.serving.batch_job import BatchJob, PartCounts

try:
    import sqlalchemy as sa
except ImportError as missing:
    raise DataError(
        f"a batch in a database needs packages that are not installed ({missing}): "
        "pip install 'consentier[train]', for PostgreSQL 'consentier[train,postgresql]'"
    ) from missing

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BatchTable", "TableSink", "opened_table"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,50}")
_ROWS_AT_ONCE = 5_000


@dataclasses.dataclass(frozen=True, slots=True)
class BatchTable:
    """A table of a database.

    Attributes
    ----------
    url
        SQLAlchemy's URL of the database: ``sqlite:///recs.db``, ``postgresql://USER@HOST/DATABASE``.
    name
        The table's name: letters, digits and underscores.

    Raises
    ------
    ValueError
        If it is no such name.
    """

    url: str = dataclasses.field(repr=False)  # it may hold a password
    name: str = "recommendations"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r} names no table: take up to 51 letters, digits and underscores, a letter first"
            )

    def __str__(self) -> str:
        return f"table {self.name}"


class _Tables:
    """The three tables of a name."""

    def __init__(self, name: str) -> None:
        self.metadata = sa.MetaData()
        # Texts are compared by their bytes, as persons are ordered in a batch.
        text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
        self.rows = sa.Table(
            name,
            self.metadata,
            sa.Column("job", text, primary_key=True),
            sa.Column("person", text, primary_key=True),
            sa.Column("rank", sa.Integer, primary_key=True),
            sa.Column("item_id", sa.Text, nullable=False),
            sa.Column("score", sa.Double, nullable=False),
            sa.Column("tier", sa.Text, nullable=False),
            sa.Column("bundle_digest", sa.Text, nullable=False),
            sa.Column("devices", sa.Integer),
        )
        self.jobs = sa.Table(
            f"{name}_jobs",
            self.metadata,
            sa.Column("job", text, primary_key=True),
            sa.Column("channel", sa.Text, nullable=False),
            sa.Column("at", sa.BigInteger, nullable=False, comment="microseconds since the Unix epoch"),
            sa.Column("finished", sa.Boolean, nullable=False),
            sa.Column("content", sa.Text, nullable=False),
        )
        self.parts = sa.Table(
            f"{name}_parts",
            self.metadata,
            sa.Column("job", text, primary_key=True),
            sa.Column("part", sa.Integer, primary_key=True),
            sa.Column("counts", sa.Text, nullable=False),
        )


@contextlib.contextmanager
def _engine(place: BatchTable) -> Iterator[sa.Engine]:
    """A connection pool; whatever fails in the database is told without its address."""
    try:
        url = sa.make_url(place.url)
        if url.drivername == "postgresql":  # for which SQLAlchemy would take another driver than ours
            url = url.set(drivername="postgresql+psycopg")
        engine = sa.create_engine(url, hide_parameters=True)
    except (sa.exc.ArgumentError, ValueError):
        raise DataError(
            f"{place}: the URL of its database cannot be read: write sqlite:///FILE or "
            "postgresql://USER@HOST/DATABASE"
        ) from None
    except ImportError as missing:
        raise DataError(
            f"{place}: its database needs a package that is not installed ({missing}); for PostgreSQL: "
            "pip install 'consentier[train,postgresql]'"
        ) from None
    try:
        yield engine
    except sa.exc.SQLAlchemyError as error:
        raise DataError(f"{place}: the database failed: {type(error).__name__}") from error
    finally:
        engine.dispose()


def _make_private(url: sa.URL) -> None:
    """Make the file of an SQLite database, if there is none, readable for its owner only."""
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        with contextlib.suppress(OSError):  # it is there; or cannot be made, as SQLite will say
            os.close(os.open(str(url.database), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


class TableSink:
    """Writes a batch into a table."""

    def __init__(self, place: BatchTable, engine: sa.Engine, channel: Channel, *, resume: bool) -> None:
        self._place, self._engine, self._channel, self._resume = place, engine, channel, resume
        self._tables = _Tables(place.name)
        self._tables.metadata.create_all(engine)
        self._lock = threading.Lock()
        self._job: BatchJob | None = None

    @classmethod
    @contextlib.contextmanager
    def opened(cls, place: BatchTable, channel: Channel, *, resume: bool) -> Iterator[TableSink]:
        """Open the database, and make the tables if there are none."""
        with _engine(place) as engine:
            _make_private(engine.url)
            yield cls(place, engine, channel, resume=resume)

    def begun(self, at: dt.datetime | None) -> BatchJob | None:
        """The one batch of the channel (and instant) that is not finished."""
        if not self._resume:
            return None
        jobs = self._tables.jobs
        found = sa.select(jobs.c.content).where(jobs.c.channel == str(self._channel), ~jobs.c.finished)
        if at is not None:
            found = found.where(jobs.c.at == microseconds(at))
        finished = sa.select(jobs.c.job).where(jobs.c.channel == str(self._channel), jobs.c.finished).limit(1)
        with self._engine.connect() as connection:
            contents = connection.scalars(found).all()
            if at is None and not contents and connection.scalar(finished) is not None:
                raise DataError(
                    f"{self._place}: no batch for {self._channel} is unfinished; to begin one, do not resume"
                )
        if len(contents) > 1:
            raise DataError(
                f"{self._place}: {len(contents)} batches for {self._channel} are not finished; say by the "
                "instant which one to resume"
            )
        return BatchJob.from_text(contents[0], f"{self._place}_jobs") if contents else None

    def start(self, job: BatchJob) -> None:
        """Note the batch, or find it."""
        jobs = self._tables.jobs
        with self._engine.begin() as connection:
            found = connection.scalar(sa.select(jobs.c.content).where(jobs.c.job == job.name))
            if found is None and (begun := self.begun(job.at)) is not None:
                job.require_same(begun, str(self._place))
            if found is not None and not self._resume:
                raise DataError(
                    f"{self._place}: holds this batch already; resume it, or take another instant"
                )
            if found is None:
                connection.execute(
                    sa.insert(jobs).values(
                        job=job.name,
                        channel=str(job.facts.channel),
                        at=microseconds(job.at),
                        finished=False,
                        content=job.to_text(),
                    )
                )
        self._job = job

    def written(self) -> dict[int, PartCounts]:
        """The parts that are there."""
        parts = self._tables.parts
        found = sa.select(parts.c.part, parts.c.counts).where(parts.c.job == self._name())
        with self._engine.connect() as connection:
            return {
                part: PartCounts.from_text(counts, f"{self._place}_parts")
                for part, counts in connection.execute(found)
            }

    def write(self, part: int, rows: pa.Table, counts: PartCounts) -> None:
        """Write a part and the note that it is there, or neither."""
        job = self._name()
        key = rows.column_names[0]
        named = rows.select([key, *_COLUMNS]).rename_columns(["person", *_COLUMNS])
        with self._lock, self._engine.begin() as connection:
            # First, so that of two processes the slower one fails before it writes a row.
            note = {"job": job, "part": part, "counts": counts.to_text()}
            connection.execute(sa.insert(self._tables.parts), [note])
            for batch in named.to_batches(max_chunksize=_ROWS_AT_ONCE):
                connection.execute(
                    sa.insert(self._tables.rows), [{"job": job, **row} for row in batch.to_pylist()]
                )

    def abandon(self, error: BaseException) -> None:
        """Nobody waits."""

    def finish(self) -> None:
        """Note that nothing is missing."""
        jobs = self._tables.jobs
        with self._engine.begin() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.job == self._name()).values(finished=True))

    def _name(self) -> str:
        assert self._job is not None
        return self._job.name


_COLUMNS = ("rank", "item_id", "score", "tier", "bundle_digest", "devices")


@contextlib.contextmanager
def opened_table(place: BatchTable) -> Iterator[BatchReader]:
    """Open the batch of a table that has the latest instant.

    Raises
    ------
    DataError
        If there is none, or it is not finished.
    """
    tables = _Tables(place.name)
    jobs = tables.jobs
    with _engine(place) as engine, engine.connect() as connection:
        if not sa.inspect(engine).has_table(jobs.name):
            raise DataError(f"{place}: there is no batch in it; 'consentier score' writes one")
        latest = sa.select(jobs.c.content, jobs.c.finished).order_by(jobs.c.at.desc(), jobs.c.job).limit(1)
        found = connection.execute(latest).first()
        if found is None:
            raise DataError(f"{place}: there is no batch in it; 'consentier score' writes one")
        job = BatchJob.from_text(found.content, f"{place}_jobs")
        if not found.finished:
            raise DataError(f"{place}: the latest batch is not finished; 'consentier score --resume' does it")
        rows = tables.rows
        count = connection.scalar(sa.select(sa.func.count()).where(rows.c.job == job.name)) or 0
        yield BatchReader(job.facts, count, place, [_TableRows(connection, tables, job)])


class _TableRows:
    """The rows of a batch in a table, read as a file of them is read."""

    def __init__(self, connection: sa.Connection, tables: _Tables, job: BatchJob) -> None:
        self._connection, self._rows, self._job = connection, tables.rows, job

    def iter_batches(self, batch_size: int) -> Iterator[pa.RecordBatch]:
        """All rows in order, so many at a time."""
        import pyarrow as pa

        rows, facts = self._rows, self._job.facts
        schema = facts.schema(SCORED)
        ordered = sa.select(rows).where(rows.c.job == self._job.name).order_by(rows.c.person, rows.c.rank)
        found = self._connection.execution_options(yield_per=batch_size).execute(ordered)
        same: Mapping[str, Any] = {"at": facts.at, "policy_version": facts.policy_version}
        for part in found.mappings().partitions():
            columns = [
                pa.array(
                    [same[name]] * len(part)
                    if name in same
                    else [row["person" if name == facts.key else name] for row in part],
                    schema.field(name).type,
                )
                for name in schema.names
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
