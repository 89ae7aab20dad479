"""A shop's tables as Apache Spark reads them: checked where they lie, row by row, by the same validator.

Spark reads each table from Parquet, and the tasks that read it run `TableValidator` over every batch, so that
a row which breaks the data contract stops the run here as it does on one machine. Nothing is collected but
``items``, which holds no person.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession, functions, types

from consentier.consent.records import SubjectKind
from consentier.errors import DataError
from consentier.features.consent_intervals import FOREVER, MISSING
from consentier.features.headers import check_header
from consentier.features.schemas import SCHEMAS, ColumnType, TableSchema, arrow_schema
from consentier.features.tables import refuse_misnamed
from consentier.features.validation import Chunk, TableValidator, validate_table

__all__ = ["Mask", "SparkTables", "read_spark_tables", "rows_where", "rows_without", "values_in"]

_SPARK_TYPES = {
    ColumnType.TEXT: types.StringType(),
    ColumnType.TIME: types.LongType(),
    ColumnType.NUMBER: types.DoubleType(),
    ColumnType.WHOLE: types.LongType(),
    ColumnType.FLAG: types.BooleanType(),
}
_PLACE = "a batch of Spark's"
_NOWHERE = "PATH_NOT_FOUND"
_ON_SPARK = "on Spark tables are NAME.parquet, or NAME/ with Parquet parts"


@dataclasses.dataclass(frozen=True, slots=True)
class SparkTables:
    """The tables of a shop on Spark. Make them with `of`, which has every row checked.

    Attributes
    ----------
    events, orders, product_usage, customers
        The columns of the contract, times in microseconds since the epoch (int64); of customers also their
        attributes.
    consents, identities
        Likewise without nulls: `FOREVER` for a time, `MISSING` for a text.
    items
        In memory.
    """

    events: DataFrame
    orders: DataFrame
    product_usage: DataFrame
    customers: DataFrame
    consents: DataFrame
    identities: DataFrame
    items: pa.Table

    @classmethod
    def of(cls, session: SparkSession, **tables: DataFrame) -> SparkTables:
        """Take tables of the contract by name, from wherever Spark reads them.

        Parameters
        ----------
        session
            The session that reads them.
        tables
            ``events``, ``orders``, ``product_usage``, ``customers``, ``items``, ``identities``, ``consents``;
            those that the shop does not have are left out.

        Raises
        ------
        DataError
            ``consents``, or both ``events`` and ``orders``, are missing, ``consents`` is empty, a column is
            missing, or keys repeat. A bad row is found later, by the task that reads it.

        Notes
        -----
        Looks for repeated keys in orders, customers and identities: one aggregation of each.
        """
        unknown = sorted(tables.keys() - SCHEMAS.keys())
        if unknown:
            raise DataError(f"tables {', '.join(unknown)}: the data contract has {', '.join(SCHEMAS)}")
        if "consents" not in tables:
            raise DataError("table consents: missing table: no consents, no training")
        if "events" not in tables and "orders" not in tables:
            raise DataError("tables events and orders: missing table: supply at least one of the two")
        read = {
            name: _checked(session, SCHEMAS[name], tables.get(name)) for name in SCHEMAS if name != "items"
        }
        for name, frame in read.items():
            _require_distinct_keys(SCHEMAS[name], frame)
        for name in ("consents", "identities"):
            read[name] = _without_nulls(SCHEMAS[name], read[name])
        if read["consents"].isEmpty():
            raise DataError("table consents: empty table: it must have at least one row")
        return cls(**read, items=_items(tables.get("items")))

    def entries(self) -> int:
        """How many entries a ledger of these consents and links has: its position. Two aggregations."""
        return sum(int(table.distinct().count()) for table in (self.consents, self.identities))

    def without(self, subjects: Mapping[SubjectKind, Sequence[str]]) -> SparkTables:
        """The tables without the rows of some subjects, given as ids by kind. Consents and links stay."""
        if not any(subjects.values()):
            return self
        visitors, customers = (list(subjects.get(kind, ())) for kind in ("visitor", "customer"))
        return dataclasses.replace(
            self,
            events=rows_without(self.events, "visitor_id", visitors),
            **{
                name: rows_without(getattr(self, name), "customer_id", customers)
                for name in ("orders", "product_usage", "customers")
            },
        )


def read_spark_tables(session: SparkSession, folder: str) -> SparkTables:
    """Read a shop's directory of Parquet files, or of directories of them.

    Parameters
    ----------
    session
        Spark.
    folder
        A path or URL that driver and executors can read. ``NAME.parquet`` or ``NAME/`` for each table.

    Raises
    ------
    DataError
        There is no table, one stands there twice or in a form that Spark does not read here, or as from
        `SparkTables.of`.
    """
    # Spark's own working directory is that in which its virtual machine was started.
    local = Path(folder).absolute() if Path(folder).is_dir() else None
    folder = folder if local is None else str(local)
    found = {}
    for name in SCHEMAS:
        places = (f"{folder}/{name}.parquet", f"{folder}/{name}")
        there = {path: frame for path in places if (frame := _parquet(session, name, path)) is not None}
        if len(there) > 1:
            raise DataError(f"table {name}: {' and '.join(there)} stand beside each other: keep one of them")
        # Left unread, the flags of its sensitive items would be lost.
        if _is_there(session, f"{folder}/{name}.csv"):
            raise DataError(f"table {name}: {folder}/{name}.csv is not read: {_ON_SPARK}: convert it")
        for frame in there.values():
            found[name] = frame
    if local is not None:
        names = [path.name for path in local.iterdir()]
        refuse_misnamed(SCHEMAS.keys() - found.keys(), names, f"{_ON_SPARK}: convert or rename it")
    if not found:
        raise DataError(f"{folder}: no table there: {_ON_SPARK}")
    return SparkTables.of(session, **found)


def _parquet(session: SparkSession, name: str, path: str) -> DataFrame | None:
    """A table's file, or directory of files; None where there is none."""
    try:
        return session.read.parquet(path)
    except AnalysisException as error:
        if error.getCondition() == _NOWHERE:
            return None
        raise DataError(f"table {name} ({path}): unreadable: {error}") from error


def _is_there(session: SparkSession, path: str) -> bool:
    try:
        session.read.text(path)
    except AnalysisException as error:
        return bool(error.getCondition() != _NOWHERE)
    return True


Mask = Callable[[pa.RecordBatch], pa.Array]
"""Says of each row of a batch whether it is taken."""


def rows_where(frame: DataFrame, mask: Mask) -> DataFrame:
    """The rows of which a function says so.

    Values that it compares with travel with it. In a condition they would stand in the plan of the query,
    which Spark writes into its log and shows on its pages: these may be ids of persons.
    """
    return frame.mapInArrow(functools.partial(_taken, mask=mask), frame.schema)


def rows_without(frame: DataFrame, column: str, values: Collection[str]) -> DataFrame:
    """The rows that have none of some values in a column; see `rows_where`."""
    return rows_where(frame, functools.partial(_values_not_in, column=column, values=values))


def values_in(batch: pa.RecordBatch, column: str, values: Collection[str] | Collection[int]) -> pa.Array:
    """Whether each row of a batch has one of some values in a column."""
    found = batch.column(column)
    return pc.is_in(found, value_set=pa.array(list(values), found.type))


def _values_not_in(batch: pa.RecordBatch, column: str, values: Collection[str]) -> pa.Array:
    return pc.invert(values_in(batch, column, values))


def _taken(batches: Iterator[pa.RecordBatch], mask: Mask) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch.filter(mask(batch))


def _checked(session: SparkSession, schema: TableSchema, frame: DataFrame | None) -> DataFrame:
    """The rows of a table, each checked by the task that reads it."""
    if frame is None:
        return session.createDataFrame([], _spark_schema(schema, []))
    check_header(schema, frame.columns)
    pointed = [name for name in frame.columns if "." in name or "`" in name]
    if pointed and schema.open_columns:
        raise DataError(
            f"table {schema.name}, column {pointed[0]!r}: Spark takes a point in a name for the way into a "
            "structure: rename the column, or leave it out"
        )
    others = [_attribute(field) for field in frame.schema.fields if field.name not in schema.column_names]
    read = [name for name in frame.columns if name in schema.column_names or schema.open_columns]
    check = functools.partial(_checked_batches, table=schema.name)
    return frame.select(*read).mapInArrow(check, _spark_schema(schema, others if schema.open_columns else []))


def _spark_schema(schema: TableSchema, others: list[types.StructField]) -> types.StructType:
    return types.StructType(
        [types.StructField(c.name, _SPARK_TYPES[c.type]) for c in schema.columns] + others
    )


def _attribute(field: types.StructField) -> types.StructField:
    """A column beyond the contract as the validator gives it: it makes numbers of decimals."""
    is_decimal = isinstance(field.dataType, types.DecimalType)
    return types.StructField(field.name, types.DoubleType()) if is_decimal else field


def _checked_batches(batches: Iterator[pa.RecordBatch], table: str) -> Iterator[pa.RecordBatch]:
    """Check batches against the contract; times come out in microseconds."""
    schema = SCHEMAS[table]
    times = [column.name for column in schema.columns if column.type is ColumnType.TIME]
    for batch in batches:
        if not batch.num_rows:
            continue
        validator = TableValidator(schema)
        validator.add(Chunk(batch, np.arange(1, batch.num_rows + 1), _PLACE))
        checked, _ = validator.finish()
        for name in times:
            place = checked.schema.get_field_index(name)
            checked = checked.set_column(place, name, checked[name].cast(pa.int64()))
        yield from checked.to_batches()


def _require_distinct_keys(schema: TableSchema, frame: DataFrame) -> None:
    if not schema.key:
        return
    repeated = frame.groupBy(*schema.key).count().filter("count > 1").count()
    if repeated:
        raise DataError(
            f"table {schema.name}, column {', '.join(schema.key)}: duplicate key: {repeated:,} keys stand in "
            "several rows. Keep one row of each"
        )


def _without_nulls(schema: TableSchema, frame: DataFrame) -> DataFrame:
    """Fill in as `ConsentTables` does."""
    return frame.select(
        *(
            functions.coalesce(
                functions.col(column.name),
                functions.lit(FOREVER if column.type is ColumnType.TIME else MISSING),
            ).alias(column.name)
            for column in schema.columns
        )
    )


def _items(frame: DataFrame | None) -> pa.Table:
    if frame is None:
        return arrow_schema("items").empty_table()
    return validate_table(frame.toArrow(), SCHEMAS["items"])[0]
