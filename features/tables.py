"""Reads the shop's tables from a directory or a database, and writes tables to a directory.

A directory holds, for each table of the contract, ``NAME.parquet``, ``NAME.csv`` or a folder ``NAME/`` of
Parquet parts (read in the order of their names; what begins with ``_`` or ``.`` is none). CSV files are UTF-8
with a header, comma-separated, quoted with ``"``. Values in attribute columns of a CSV file stay texts: a
type guessed from all rows would let rows that a model may not read change what it sees. A database holds one
table or view per table of the contract; all are read in one transaction, so that consents and events are of
one moment.

Sources are read in chunks. Memory: the validated tables, 8 bytes a row, and one chunk.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime as dt
import difflib
import itertools
import math
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from consentier.addresses import shown_url
from consentier.errors import DataError, ShopInvalid
from consentier.features.directories import written_beside
from consentier.features.headers import check_header, folded
from consentier.features.parquet_files import bounded_batches
from consentier.features.schemas import SCHEMAS, Column, ColumnType, TableSchema, arrow_schema
from consentier.features.validation import (
    Chunk,
    OnBadRows,
    TableValidator,
    ValidationReport,
)

if TYPE_CHECKING:
    import sqlalchemy

__all__ = [
    "Chunks",
    "OnBadRows",
    "ShopTables",
    "Source",
    "misnamed",
    "open_directory",
    "raise_problems",
    "read_shop",
    "reader_of",
    "refuse_misnamed",
    "require_directory",
    "write_tables",
]

TableFormat = Literal["parquet", "csv"]

LONGEST_LINE = 1 << 20
"""Bytes. A longer line is no row of a table but a file of another kind, or a quote that was never closed."""

_OTHERS_NAMED = 8
_CONFIG = "consentier.toml"  # stands among the tables, and looks like a misspelt "consents"

_PYTHON_CHUNK_ROWS = 8_192  # rows as Python values: more of them cost time in the garbage collector


@dataclasses.dataclass(frozen=True, slots=True)
class ShopTables:
    """The tables of a shop, validated.

    Each has the columns of its schema in their order (`arrow_schema`), ``customers`` and ``items`` also their
    attributes. A table that the shop does not have is empty.
    """

    events: pa.Table
    orders: pa.Table
    product_usage: pa.Table
    customers: pa.Table
    items: pa.Table
    identities: pa.Table
    consents: pa.Table
    report: ValidationReport

    @classmethod
    def empty(cls) -> ShopTables:
        """A shop without any row: for a gate that is asked how subjects stand, and for no rows."""
        return cls(**{name: arrow_schema(name).empty_table() for name in SCHEMAS}, report=ValidationReport())


def read_shop(source: str | Path, *, on_bad_rows: OnBadRows = "error") -> ShopTables:
    """Read and validate all tables of a shop.

    Parameters
    ----------
    source
        A directory, or the SQLAlchemy URL of a database (``sqlite:///shop.db``,
        ``postgresql://user@host/shop``).
    on_bad_rows
        ``"error"`` stops at the first bad row of a table. ``"drop"`` leaves bad rows out and counts them in
        the report, as far as that cannot permit anything: see `consentier.features.validation`.

    Returns
    -------
    ShopTables

    Raises
    ------
    DataError
        If the source cannot be read, `consents` is missing, both `events` and `orders` are, a table has a
        name that is spelt otherwise, the wrong columns, an unreadable file, an overlong line or no rows where
        it must have some, or a row is bad. The message names table, column, row and rule. `ShopInvalid` where
        that is so of several tables: one does not hide what is wrong with the others.
    TypeError, ValueError
        If an argument is none of those allowed.

    Notes
    -----
    Linear in the cells, apart from the order of rows, which is that of the source.
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"source must be a path or a database URL, got {type(source).__name__}")
    if on_bad_rows not in get_args(OnBadRows):
        raise ValueError(f"on_bad_rows is {on_bad_rows!r}; it must be one of {get_args(OnBadRows)}")
    opened = _database if isinstance(source, str) and "://" in source else open_directory
    tables: dict[str, pa.Table] = {}
    reports = []
    with opened(str(source)) as shop:
        problems = [*_missing_tables(shop), *shop.faults.values()]
        for name, schema in SCHEMAS.items():
            if name not in shop.tables:
                tables[name] = arrow_schema(name).empty_table()
                continue
            try:
                tables[name], report = _validated(schema, shop.tables[name], on_bad_rows)
            except _SourceFailed as error:
                problems.append(error)
                break  # nothing can be said of the tables that follow
            except DataError as error:
                problems.append(error)
            else:
                reports.append(report)
        unread = _near_misses(shop)
    raise_problems(problems)
    return ShopTables(**tables, report=dataclasses.replace(ValidationReport.merged(reports), unread=unread))


def raise_problems(problems: Sequence[DataError]) -> None:
    """Raise what is wrong with one table, or `ShopInvalid` for several; nothing for none."""
    if len(problems) > 1:
        raise ShopInvalid([str(problem) for problem in problems])
    for problem in problems:
        raise problem


def _validated(
    schema: TableSchema, chunks: Chunks, on_bad_rows: OnBadRows
) -> tuple[pa.Table, ValidationReport]:
    validator = TableValidator(schema, on_bad_rows)
    for chunk in chunks(schema):
        validator.add(chunk)
    return validator.finish()


Chunks = Callable[[TableSchema], Iterator[Chunk]]
"""How to read one table: its schema in, its rows out, some at a time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """The tables of a source.

    Attributes
    ----------
    tables
        How to read each table, by name.
    others
        The names of whatever else it holds.
    faults
        Why a table that seems to be there cannot be read, by its name.
    """

    tables: Mapping[str, Chunks]
    others: Sequence[str]
    faults: Mapping[str, DataError]


def _missing_tables(source: Source) -> list[DataError]:
    problems = []
    there = {*source.tables, *source.faults}
    if "consents" not in there:
        problems.append(
            DataError(
                "table consents: missing table: no consents, no training. Supply consents.parquet, "
                "consents.csv or a database table consents, one row per "
                f"decision{_near_miss('consents', source.others)}" + ("" if there else _unread(source.others))
            )
        )
    if there and not {"events", "orders"} & there:
        near = _near_miss("events", source.others) or _near_miss("orders", source.others)
        problems.append(
            DataError(f"tables events and orders: missing table: supply at least one of the two{near}")
        )
    return problems


def misnamed(absent: Iterable[str], others: Iterable[str], remedy: str) -> dict[str, DataError]:
    """Find what carries the name of an absent table, and would not be read: a flag in it would be lost.

    Parameters
    ----------
    absent
        Tables of the contract that are not there.
    others
        The names of whatever else stands there: of a file, up to its first point what table it might be.
    remedy
        What to do about one.

    Returns
    -------
    dict
        For each table after which others are called, in whatever spelling, the error that says so.
    """
    spelt = {folded(name): name for name in absent}
    found: dict[str, list[str]] = {}
    for other in sorted(others):
        name = spelt.get(folded(other.partition(".")[0]))
        if name is not None:
            found.setdefault(name, []).append(repr(other))
    return {
        name: DataError(
            f"table {name}: {' and '.join(alike)} {'is' if len(alike) == 1 else 'are'} not read: {remedy}"
        )
        for name, alike in found.items()
    }


def refuse_misnamed(absent: Iterable[str], others: Iterable[str], remedy: str) -> None:
    """Raise what `misnamed` finds."""
    raise_problems([*misnamed(absent, others, remedy).values()])


def _near_miss(name: str, others: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.75)
    return f" (is {near[0]!r} meant for it?)" if near else ""


def _near_misses(source: Source) -> tuple[tuple[str, str], ...]:
    """What is not read and has nearly the name of a table that is not there: its name, and the table's."""
    absent = [name for name in SCHEMAS if name not in source.tables]
    near = [(difflib.get_close_matches(name, source.others, n=1, cutoff=0.75), name) for name in absent]
    return tuple((found[0], name) for found, name in near if found)


def _unread(others: Sequence[str]) -> str:
    """What a source without any table of the contract holds instead: exports under their own names."""
    if not others:
        return ". It holds nothing"
    named = ", ".join(others[:_OTHERS_NAMED]) + (", …" if len(others) > _OTHERS_NAMED else "")
    return f". Nothing in it has the name of a table of the data contract: {named}"


def _columns_to_read(schema: TableSchema, names: Sequence[str]) -> list[str]:
    return [name for name in names if schema.open_columns or name in schema.column_names]


# --- directories ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_directory(source: str, names: Collection[str] = tuple(SCHEMAS)) -> Iterator[Source]:
    """The tables of the contract that a directory holds, as Parquet or CSV.

    Parameters
    ----------
    source
        The directory.
    names
        Tables that are wanted; no other is looked at.

    Yields
    ------
    Source
        Its `faults` are tables that stand there twice, or in a form or under a spelling that is not read.

    Raises
    ------
    DataError
        If there is no such directory, or it cannot be read.
    """
    folder = Path(source)
    try:
        require_directory(source)
        tables, faults = _tables_in(folder, names)
        others = [path.name for path in folder.iterdir() if path.name != _CONFIG]
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error}") from error
    remedy = "a table is NAME.csv, NAME.parquet or NAME/: convert or rename it"
    there = {*tables, *faults}
    faults |= misnamed([name for name in names if name not in there], others, remedy)
    yield Source(tables, sorted({other.partition(".")[0] for other in others} - there), faults)


def _tables_in(folder: Path, names: Collection[str]) -> tuple[dict[str, Chunks], dict[str, DataError]]:
    """What reads each table, and which stand there twice."""
    tables: dict[str, Chunks] = {}
    faults: dict[str, DataError] = {}
    for name in names:
        candidates = [
            path
            for path, there in (
                (folder / f"{name}.parquet", Path.is_file),
                (folder / f"{name}.csv", Path.is_file),
                (folder / name, Path.is_dir),
            )
            if there(path)
        ]
        if len(candidates) > 1:
            both = " and ".join(path.name for path in candidates)
            faults[name] = DataError(f"table {name}: {both} stand beside each other: keep one of them")
        elif candidates:
            tables[name] = reader_of(candidates[0])
    return tables, faults


def require_directory(source: str) -> None:
    """Raise `DataError` unless a source that is no URL is a directory."""
    folder = Path(source)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such directory"
        raise DataError(f"{shown_url(source)}: {what}: give the directory that holds the shop's tables")


def reader_of(path: Path) -> Chunks:
    """How to read one table's file, or directory of Parquet files, in chunks."""
    if path.is_dir():
        return lambda schema: _parquet_parts(path, schema)
    if path.suffix == ".csv":
        return lambda schema: _csv_chunks(path, schema)
    return lambda schema: _parquet_chunks(path, path.name, schema)


def _parquet_parts(folder: Path, schema: TableSchema) -> Iterator[Chunk]:
    try:
        parts = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    except OSError as error:
        raise DataError(f"table {schema.name}: {folder.name}/ cannot be read: {error}") from error
    if not parts:
        raise DataError(f"table {schema.name}: {folder.name}/ has no .parquet part: put one in or remove it")
    for part in parts:
        if part.suffix != ".parquet":  # left unread, a refusal in it would be lost
            raise DataError(
                f"table {schema.name}: {folder.name}/ holds {part.name!r}, which is not read: its parts are "
                "files NAME.parquet: rename it, or put it elsewhere"
            )
    for part in parts:
        yield from _parquet_chunks(part, f"{folder.name}/{part.name}", schema)


def _parquet_chunks(path: Path, label: str, schema: TableSchema) -> Iterator[Chunk]:
    place = f"table {schema.name} ({label})"
    try:
        names = pq.read_schema(path).names
        check_header(schema, names, label)
        first = 1
        for batch in bounded_batches(path, _columns_to_read(schema, names)):
            yield Chunk(batch, np.arange(first, first + batch.num_rows, dtype=np.int64), label)
            first += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: unreadable file: {error}. Write it again as Parquet") from error


def _csv_chunks(path: Path, schema: TableSchema) -> Iterator[Chunk]:
    place = f"table {schema.name} ({path.name})"
    try:
        with path.open("rb") as file:
            records = _csv_records(file, place)
            _, header = next(records, (1, []))
            if not any(header):
                raise DataError(f"{place}: empty table: the file must at least have a header")
            check_header(schema, header, path.name)
            read = _columns_to_read(schema, header)
            positions = [header.index(name) for name in read]
            yield from _csv_batches(records, read, positions, len(header), path.name)
    except OSError as error:
        raise DataError(f"{place}: unreadable file: {error}") from error


def _csv_records(file: BinaryIO, place: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file, each with the line on which it begins. Blank lines are no records."""
    # Strict: a stray quote would otherwise swallow the rows that follow into one cell.
    reader = csv.reader(_csv_lines(file, place), strict=True)
    first = 1
    try:
        for record in reader:
            if record:
                yield first, record
            first = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{place}, row {first}: unreadable row: {error}. Look there for a quote that is not closed or "
            'not doubled (a quote within a quoted field is written "")'
        ) from error


def _csv_lines(file: BinaryIO, place: str) -> Iterator[str]:
    """Decode a file line by line; a byte order mark at its start is skipped."""
    encoding = "utf-8-sig"
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{place}, row {number}: line too long: more than {LONGEST_LINE} bytes. "
                "End each row with a newline"
            )
        try:
            yield line.decode(encoding)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{place}, row {number}: wrong encoding: byte {error.start + 1} of the line is not UTF-8. "
                "Save the file as UTF-8"
            ) from error
        encoding = "utf-8"


def _csv_batches(
    records: Iterator[tuple[int, list[str]]],
    names: Sequence[str],
    positions: Sequence[int],
    width: int,
    label: str,
) -> Iterator[Chunk]:
    """Cut the records of a CSV file into chunks."""
    while block := list(itertools.islice(records, _PYTHON_CHUNK_ROWS)):
        whole = [entry for entry in block if len(entry[1]) == width]
        cells = list(zip(*(record for _, record in whole), strict=True)) or [()] * width
        yield Chunk(
            pa.RecordBatch.from_arrays(
                [pa.array(cells[position], pa.string()) for position in positions], names=list(names)
            ),
            np.array([row for row, _ in whole], dtype=np.int64),
            label,
            [row for row, record in block if len(record) != width],
        )


# --- databases --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _database(url: str) -> Iterator[Source]:
    import sqlalchemy

    try:
        engine = _engine(url)
    except (sqlalchemy.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise DataError(
            f"the database URL cannot be used: {error}. Give one such as sqlite:///shop.db or "
            "postgresql://user@host/shop, and install the driver (PostgreSQL: psycopg)"
        ) from error
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise DataError(
            f"the database URL {shown_url(url)!r} cannot be read: give one such as sqlite:///shop.db or "
            "postgresql://user@host/shop"
        ) from None
    shown = shown_url(url)
    try:
        with engine.connect() as connection, _snapshot(connection):
            inspector = sqlalchemy.inspect(connection)
            there = [*inspector.get_table_names(), *inspector.get_view_names()]
            tables: dict[str, Chunks] = {}
            for name in SCHEMAS:
                if name in there:
                    columns = [column["name"] for column in inspector.get_columns(name)]
                    tables[name] = _table_reader(connection, columns)
            others = sorted(set(there) - tables.keys())
            absent = [name for name in SCHEMAS if name not in tables]
            yield Source(tables, others, misnamed(absent, others, "rename it, or make a view of that name"))
    except sqlalchemy.exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise DataError(f"{shown}: the database cannot be read: {cause}") from error
    finally:
        engine.dispose()


def _engine(url: str) -> sqlalchemy.Engine:
    import sqlalchemy

    parsed = sqlalchemy.make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return sqlalchemy.create_engine(parsed, hide_parameters=True)
    path = Path(str(parsed.database))
    if not path.is_file():  # SQLite would make an empty database there
        raise DataError(f"{path}: no such SQLite file")
    uri = f"file:{quote(str(path.resolve()))}?mode=ro"
    return sqlalchemy.create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True))


@contextlib.contextmanager
def _snapshot(connection: sqlalchemy.Connection) -> Iterator[None]:
    """Let all tables be read as they stood at one moment."""
    if connection.dialect.name == "postgresql":
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    elif connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN")  # the driver begins by itself only before writing
    try:
        yield
    finally:
        connection.rollback()


def _table_reader(connection: sqlalchemy.Connection, names: Sequence[str]) -> Chunks:
    import sqlalchemy

    def chunks(schema: TableSchema) -> Iterator[Chunk]:
        check_header(schema, names)
        read = _columns_to_read(schema, names)
        columns = [{column.name: column for column in schema.columns}.get(name) for name in read]
        # Columns without a declared type: values arrive as the driver gives them, and are checked here.
        query = sqlalchemy.table(schema.name, *(sqlalchemy.column(name) for name in read)).select()
        first = 1
        with _quoting_no_row(schema.name):
            result = connection.execution_options(stream_results=True).execute(query)
            for rows in result.partitions(_PYTHON_CHUNK_ROWS):
                for part in _batches(list(zip(*rows, strict=True)), read, columns):
                    numbers = np.arange(first, first + part.num_rows, dtype=np.int64)
                    yield Chunk(part, numbers)
                    first += part.num_rows

    return chunks


@contextlib.contextmanager
def _quoting_no_row(table: str) -> Iterator[None]:
    """Tell what fails while rows are read without the database's own words: they may quote a row."""
    import sqlalchemy

    try:
        yield
    except sqlalchemy.exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
        told = type(cause).__name__ if code is None else f"{type(cause).__name__} ({code})"
        raise _SourceFailed(
            f"table {table}: the database cannot be read: {told} while its rows were read. Look for a text "
            "that is not UTF-8, a view that fails, or a missing right"
        ) from None


def _batches(
    cells: Sequence[Sequence[object]], names: Sequence[str], columns: Sequence[Column | None]
) -> Iterator[pa.RecordBatch]:
    """Turn columns of Python values into batches.

    A column of one batch has one type. Where a database lets types mix within a column (SQLite does), the
    rows are halved until they do not, so that the row of the odd value can be named.
    """
    try:
        arrays = [_array(values, column) for values, column in zip(cells, columns, strict=True)]
    except _MixedTypesError:
        half = len(cells[0]) // 2
        yield from _batches([values[:half] for values in cells], names, columns)
        yield from _batches([values[half:] for values in cells], names, columns)
        return
    yield pa.RecordBatch.from_arrays(arrays, names=list(names))


class _SourceFailed(DataError):  # noqa: N818 - reads as what happened
    """A database that gave up while rows were read: what is read after that fails too."""


class _MixedTypesError(Exception):
    """The values of a column have no common type."""


def _array(values: Sequence[object], column: Column | None) -> pa.Array:
    types = set(map(type, values)) - {type(None)}
    if not types <= _PLAIN_TYPES:
        values = [_plain_value(value) for value in values]
        types = set(map(type, values)) - {type(None)}
    a_number = column is None or column.type is ColumnType.NUMBER
    if types == {int, float} and a_number:
        return _floats(values)
    if len(types) > 1:
        raise _MixedTypesError
    try:
        return pa.array(values)
    except OverflowError:  # integers beyond 64 bits: numbers like the others, or an id of so many digits
        if a_number:
            return _floats(values)
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _floats(numbers: Sequence[Any]) -> pa.Array:
    """Numbers as float64, those beyond it as infinite."""
    return pa.array([None if number is None else _float(number) for number in numbers], pa.float64())


def _float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


_PLAIN_TYPES = {str, int, float, bool, bytes, dt.datetime, dt.date}


def _plain_value(value: object) -> object:
    """A driver's value as one that Arrow knows."""
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, memoryview):
        return bytes(value)
    if value is None or type(value) in _PLAIN_TYPES:
        return value
    return str(value)


# --- writing ----------------------------------------------------------------------------------------------


def write_tables(
    tables: Mapping[str, pa.Table],
    out: Path,
    format: TableFormat = "parquet",
    force: bool = False,
) -> None:
    """Write tables as ``NAME.parquet`` or ``NAME.csv`` into a directory, all of them or none.

    They are written beside `out`, flushed to the disk, and renamed into place at once.

    Parameters
    ----------
    tables
        By name. They are not validated.
    out
        The directory; its parents are made where absent.
    format
        ``"parquet"`` or ``"csv"``.
    force
        Replace `out` as a whole, whatever it holds. Otherwise it must be absent or empty.

    Raises
    ------
    DataError
        If `out` is a file, holds something and `force` is False, or cannot be written.
    ValueError
        If the format is unknown, or a table's name cannot be a file's.
    """
    if format not in get_args(TableFormat):
        raise ValueError(f"format is {format!r}; it must be one of {get_args(TableFormat)}")
    for name in tables:
        if not name.isidentifier():
            raise ValueError(f"{name!r} is no name for a table: use letters, digits and underscores")
    with written_beside(out, force=force) as beside:
        try:
            for name, table in tables.items():
                _write_table(table, beside / f"{name}.{format}", format)
        except pa.ArrowException as error:
            raise DataError(f"{out}: the tables cannot be written: {error}") from error


def _write_table(table: pa.Table, path: Path, format: TableFormat) -> None:
    with path.open("xb") as file:
        if format == "parquet":
            pq.write_table(table, file)
        else:
            pyarrow.csv.write_csv(table, file)
        file.flush()
        os.fsync(file.fileno())
