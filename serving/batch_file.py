"""The file of a batch: one Parquet file of recommendations, ordered by person and rank.

Its metadata say for which channel, instant and policy it was scored, so that `deliver` can ask again. Its
columns:

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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from consentier.consent import Channel, Side, Tier, microseconds
from consentier.errors import DataError
from consentier.serving.answer import Answer
from consentier.writing import whole_file

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "DELIVERED",
    "SCORED",
    "BatchFacts",
    "BatchReader",
    "PersonRows",
    "RowWriter",
    "opened_batch",
    "written_batch",
    "written_table",
]

SCORED = "recommendations"
"""A file that `score` wrote: to be checked before it is sent."""

DELIVERED = "delivery"
"""A file that `deliver` wrote: checked, and without what only the check needs."""

_FORMAT = 1
_METADATA = b"consentier"
_FIELDS = ("format", "kind", "channel", "side", "key", "policy_version", "at")
_ROWS_PER_GROUP = 100_000
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


class RowWriter:
    """Collects answers and writes them, one row group at a time."""

    def __init__(self, file: Any, schema: pa.Schema) -> None:
        self._file, self._schema = file, schema
        self._columns: list[list[Any]] = [[] for _ in schema.names]
        self.rows = 0

    def __call__(self, person: str, answer: Answer, at: dt.datetime, devices: int | None) -> None:
        count = len(answer.items)
        self._extend(
            [person] * count,
            range(1, count + 1),
            answer.items,
            answer.scores,
            [str(answer.tier)] * count,
            [at] * count,
            _digests(answer),
            [answer.basis.policy_version] * count,
            [devices] * count,
        )
        self.rows += count
        if len(self._columns[0]) >= _ROWS_PER_GROUP:
            self.flush()

    def _extend(self, *values: Iterable[Any]) -> None:
        for column, added in zip(self._columns, values, strict=True):
            column.extend(added)

    def flush(self) -> None:
        """Write what has been collected."""
        import pyarrow as pa

        if self._columns[0]:
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(self._columns, self._schema, strict=True)
            ]
            self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
            self._columns = [[] for _ in self._columns]


def _digests(answer: Answer) -> list[str | None]:
    """The bundle behind each item: the tier's, and the popular list's for those that fill up."""
    filled = len(answer.items) - answer.scored
    return [answer.basis.bundle_digest] * answer.scored + [answer.basis.fill_digest] * filled


@contextlib.contextmanager
def written_table(out: Path, schema: pa.Schema) -> Iterator[Any]:
    """A Parquet file to write tables to, beside its place; renamed at the end, removed if anything fails."""
    import pyarrow.parquet as pq

    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as beside, pq.ParquetWriter(beside, schema) as file:
        yield file


@contextlib.contextmanager
def written_batch(out: Path, facts: BatchFacts) -> Iterator[RowWriter]:
    """A file of recommendations to write answers to: there is the old one, or the whole new one."""
    schema = facts.schema(SCORED)
    with written_table(out, schema) as file:
        writer = RowWriter(file, schema)
        yield writer
        writer.flush()


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
    """A file of recommendations, opened and known to be one.

    Attributes
    ----------
    facts
        What its metadata say.
    rows
        How many rows it has.
    """

    facts: BatchFacts
    rows: int
    _path: Path
    _file: Any

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

        batches = self._file.iter_batches(batch_size=_ROWS_PER_READ)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self._path}: cannot be read to its end: {error}") from error
            if batch is None:
                return
            if batch.num_rows:
                yield batch


@contextlib.contextmanager
def opened_batch(path: Path) -> Iterator[BatchReader]:
    """Open a file of recommendations.

    Raises
    ------
    DataError
        If there is none, or it is no Parquet file, or not one that `score` wrote.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"{path}: there is no such file; 'consentier score' writes one")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no Parquet file: {error}") from error
    with file:
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
        yield BatchReader(facts, file.metadata.num_rows, path, file)


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

    def __init__(self, path: Path, facts: BatchFacts) -> None:
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
