"""The files of a batch: recommendations as Parquet, ordered by person and rank, in one file or in parts.

Their metadata say for which channel, instant and policy it was scored, so that `deliver` can ask again. A
directory of parts has a file of its own that says what the whole batch is. The columns:

=============== ============== ===============================================================================
customer_id     string         the person; ``visitor_id`` on the online side
rank            int32          from 1
item_id         string
score           float64        0 for items that fill up the list
tier            string         who answered; the same for all rows of a person
at              timestamp[us]  the instant whose permissions and histories counted, UTC
bundle_digest   string         the bundle that the item comes from
policy_version  string
devices         int32          how many linked devices a fused answer rests on; null for every other tier
=============== ============== ===============================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from consentier.consent import Channel, Side, Tier, microseconds
from consentier.errors import DataError
from consentier.writing import whole_file

if TYPE_CHECKING:
    import pyarrow as pa

    from consentier.serving.batch_job import PartCounts
    from consentier.serving.batch_table import BatchTable

__all__ = [
    "DELIVERED",
    "JOB_FILE",
    "SCORED",
    "BatchFacts",
    "BatchReader",
    "PersonRows",
    "opened_batch",
    "part_facts",
    "part_file",
    "part_metadata",
    "written_table",
]

SCORED = "recommendations"
"""A file that `score` wrote: to be checked before it is sent."""

DELIVERED = "delivery"
"""A file that `deliver` wrote: checked, and without what only the check needs."""

JOB_FILE = "batch.json"
"""What a directory of parts is."""

_FORMAT = 1
_METADATA = b"consentier"
_PART = b"consentier-part"
_FIELDS = ("format", "kind", "channel", "side", "key", "policy_version", "at")
_ROWS_PER_READ = 50_000
_ANSWERING = frozenset(str(tier) for tier in Tier if tier is not Tier.NONE)


@dataclasses.dataclass(frozen=True, slots=True)
class BatchFacts:
    """What is true of a whole file, and stands in its metadata."""

    channel: Channel
    policy_version: str
    at: dt.datetime

    @property
    def key(self) -> str:
        """The column that names the person."""
        return "customer_id" if self.channel.side is Side.CRM else "visitor_id"

    def schema(self, kind: str) -> pa.Schema:
        """Columns and metadata of a file."""
        import pyarrow as pa

        columns = [
            (self.key, pa.string()),
            ("rank", pa.int32()),
            ("item_id", pa.string()),
            ("score", pa.float64()),
            ("tier", pa.string()),
            ("at", pa.timestamp("us", "UTC")),
            ("bundle_digest", pa.string()),
            ("policy_version", pa.string()),
        ]
        if kind == SCORED:
            columns.append(("devices", pa.int32()))
        values = (
            _FORMAT,
            kind,
            str(self.channel),
            str(self.channel.side),
            self.key,
            self.policy_version,
            self.at.isoformat(),
        )
        return pa.schema(columns, {_METADATA: json.dumps(dict(zip(_FIELDS, values, strict=True)))})


@contextlib.contextmanager
def written_table(out: Path, schema: pa.Schema) -> Iterator[Any]:
    """A Parquet file to write tables to, beside its place; renamed at the end, removed if anything fails.

    Only its owner may read it: it names persons.
    """
    import pyarrow.parquet as pq

    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out, private=True) as beside, pq.ParquetWriter(beside, schema) as file:
        yield file


def part_file(directory: Path, part: int) -> Path:
    """Where a part of a batch stands."""
    return directory / f"part-{part:05}.parquet"


def part_metadata(schema: pa.Schema, job: str, part: int, counts: PartCounts) -> pa.Schema:
    """The schema of a part, which says of which batch it is and what became of its persons."""
    told = json.dumps({"job": job, "part": part, "counts": counts.to_text()}, sort_keys=True)
    return schema.with_metadata({**(schema.metadata or {}), _PART: told.encode()})


def part_facts(path: Path, job: str, part: int) -> PartCounts:
    """What a part says of itself.

    Raises
    ------
    DataError
        If it is no part, or one of another batch.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from consentier.serving.batch_job import PartCounts

    try:
        told = json.loads((pq.read_schema(path).metadata or {})[_PART])
        if (told["job"], told["part"]) != (job, part):
            raise DataError(f"{path}: is of another batch; move it away, and resume")
        return PartCounts.from_text(told["counts"], str(path))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: is no part of a batch ({type(error).__name__}); move it away, and resume"
        ) from error


@dataclasses.dataclass(frozen=True, slots=True)
class PersonRows:
    """The rows of one person within a table: where they stand, and what they have in common."""

    person: str
    tier: Tier
    devices: int | None
    digests: frozenset[str]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, slots=True)
class BatchReader:
    """A file of recommendations, or a directory of parts, opened and known to be one.

    Attributes
    ----------
    facts
        What its metadata say.
    rows
        How many rows it has.
    """

    facts: BatchFacts
    rows: int
    _path: object
    _files: Sequence[Any]

    def tables(self) -> Iterator[tuple[pa.Table, list[PersonRows]]]:
        """All rows in pieces, each holding the whole of its persons.

        Memory: one piece of some 50,000 rows, and the rows of one person.

        Raises
        ------
        DataError
            If the file cannot be read to its end, or its rows are not those of a file that `score` wrote.
        """
        import pyarrow as pa

        checks = _RowChecks(self._path, self.facts)
        rest = None
        for batch in self._batches():
            piece = pa.Table.from_batches([batch])
            table = piece if rest is None else pa.concat_tables([rest, piece])
            persons = checks.persons(table)
            # The last person may go on in the next piece.
            rest = table.slice(persons[-1].start)
            if len(persons) > 1:
                yield table.slice(0, persons[-1].start), persons[:-1]
            checks.done(persons[:-1])
        if rest is not None:
            yield rest, checks.persons(rest)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        schema = self.facts.schema(SCORED)
        for file in self._files:
            batches = file.iter_batches(batch_size=_ROWS_PER_READ)
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    raise DataError(f"{self._path}: cannot be read to its end: {error}") from error
                if batch is None:
                    break
                if batch.num_rows:
                    yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)


@contextlib.contextmanager
def opened_batch(path: Path | BatchTable) -> Iterator[BatchReader]:
    """Open a file of recommendations, a directory of parts, or the latest batch of a table.

    Raises
    ------
    DataError
        If there is none, or it is no Parquet file, or not one that `score` wrote, or if parts are missing.
    """
    with contextlib.ExitStack() as stack:
        if not isinstance(path, Path):
            from consentier.serving.batch_table import opened_table

            yield stack.enter_context(opened_table(path))
            return
        if path.is_dir():
            facts, paths = _parts(path)
        else:
            facts, paths = None, [path]
        files = []
        for each in paths:
            file, found = _opened(each)
            stack.enter_context(file)
            if facts is not None and found != facts:
                raise DataError(f"{each}: was scored for something else than {path / JOB_FILE} says")
            facts = found
            if file.num_row_groups:  # pyarrow 18 does not go through a file without any: a list for nobody
                files.append(file)
        assert facts is not None
        yield BatchReader(facts, sum(file.metadata.num_rows for file in files), path, files)


def _parts(path: Path) -> tuple[BatchFacts, list[Path]]:
    """What a directory says that it is, and all of its parts."""
    from consentier.serving.batch_job import BatchJob

    try:
        text = (path / JOB_FILE).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: has no {JOB_FILE} that can be read; 'consentier score' writes one"
        ) from error
    job = BatchJob.from_text(text, str(path / JOB_FILE))
    # Of a number of parts that no directory holds, none is looked for.
    paths = [part_file(path, part) for part in range(min(job.parts, sum(1 for _ in path.iterdir())))]
    if missing := job.parts - sum(each.is_file() for each in paths):
        raise DataError(
            f"{path}: {missing} of {job.parts} parts are missing; 'consentier score --resume' writes them"
        )
    for part, each in enumerate(paths):
        part_facts(each, job.name, part)
    return job.facts, paths


def _opened(path: Path) -> tuple[Any, BatchFacts]:
    """One file, and what its metadata say, if its columns are those of a scored file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"{path}: there is no such file; 'consentier score' writes one")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no Parquet file: {error}") from error
    schema = file.schema_arrow
    facts = _facts(path, (schema.metadata or {}).get(_METADATA))
    expected = facts.schema(SCORED)
    for field in expected:
        if field.name not in schema.names:
            raise DataError(f"{path}: column {field.name} is missing; score again")
        if schema.field(field.name).type != field.type:
            raise DataError(
                f"{path}: column {field.name} holds {schema.field(field.name).type}, not {field.type}; "
                "score again"
            )
    if schema.names != expected.names:
        raise DataError(f"{path}: columns must be {', '.join(expected.names)}; score again")
    return file, facts


def _facts(path: Path, metadata: bytes | None) -> BatchFacts:
    """What the metadata say, if they say exactly what `score` writes."""
    if metadata is None:
        raise DataError(
            f"{path}: does not say for which channel it was scored; hand over the file that this release's "
            "'consentier score' wrote, as it is"
        )
    try:
        values = json.loads(metadata)
        found, kind, channel, side, key, policy_version, text = (values[name] for name in _FIELDS)
        at = dt.datetime.fromisoformat(text)
        microseconds(at)
        facts = BatchFacts(Channel(channel), policy_version, at.astimezone(dt.UTC))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: its metadata were altered ({type(error).__name__}); score again") from error
    if found != _FORMAT:
        raise DataError(f"{path}: has format {found!r}; this release reads {_FORMAT}: score again")
    if kind == DELIVERED:
        raise DataError(f"{path}: was delivered already; deliver the file that 'consentier score' wrote")
    if (
        kind != SCORED
        or (side, key) != (facts.channel.side, facts.key)
        or not isinstance(policy_version, str)
    ):
        raise DataError(f"{path}: its metadata contradict each other; score again")
    return facts


class _RowChecks:
    """Checks that rows are ordered and marked as `score` does it, piece by piece."""

    def __init__(self, path: object, facts: BatchFacts) -> None:
        self._path, self._facts = path, facts
        self._before = 0
        self._last: str | None = None

    def done(self, persons: list[PersonRows]) -> None:
        """Go on after these persons."""
        if persons:
            self._before += persons[-1].stop
            self._last = persons[-1].person

    def persons(self, table: pa.Table) -> list[PersonRows]:
        """The persons of a table, in order.

        Raises
        ------
        DataError
            If a row is not as it must be, with its number in the file.
        """
        self._check_values(table)
        names = (self._facts.key, "tier", "devices", "rank", "bundle_digest")
        columns = {name: table[name].to_pylist() for name in names}
        keys = columns[self._facts.key]
        starts = [number for number, key in enumerate(keys) if not number or key != keys[number - 1]]
        last, found = self._last, []
        for start, stop in zip(starts, [*starts[1:], len(keys)], strict=True):
            if last is not None and keys[start] <= last:
                self._refuse(start, self._facts.key, "is not in ascending order")
            last = keys[start]
            found.append(self._person(columns, start, stop))
        return found

    def _check_values(self, table: pa.Table) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        for column in table.column_names:
            if column != "devices" and table[column].null_count:
                self._refuse(pc.index(pc.is_null(table[column]), True).as_py(), column, "has no value")
        for column, value in (("at", self._facts.at), ("policy_version", self._facts.policy_version)):
            same = pc.equal(table[column], pa.scalar(value, table[column].type))
            if (number := pc.index(same, False).as_py()) >= 0:
                self._refuse(number, column, "is not what the file's metadata say")

    def _person(self, columns: Mapping[str, list[Any]], start: int, stop: int) -> PersonRows:
        tier, devices = columns["tier"][start], columns["devices"][start]
        if tier not in _ANSWERING:
            self._refuse(start, "tier", f"is {tier!r}, which is no tier")
        if (devices is None) == (tier == Tier.FUSED):
            self._refuse(start, "devices", "must have a value for the fused tier, and for no other")
        for number in range(start, stop):
            if columns["rank"][number] != number - start + 1:
                self._refuse(number, "rank", f"is not {number - start + 1}")
            for name, value in (("tier", tier), ("devices", devices)):
                if columns[name][number] != value:
                    self._refuse(number, name, "changes within a person")
        digests = frozenset(columns["bundle_digest"][start:stop])
        person = columns[self._facts.key][start]
        return PersonRows(person, Tier(tier), devices, digests, start, stop)

    def _refuse(self, number: int, column: str, what: str) -> NoReturn:
        raise DataError(
            f"{self._path}: row {self._before + number}, column {column}: {what}; hand over the file as "
            "'consentier score' wrote it"
        )
