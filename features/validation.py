"""Checks tables against the data contract and brings them into its types.

Every value is either read exactly or refused; nothing is guessed. How values are read:

=========  =================================================================================================
type       accepted
=========  =================================================================================================
text       texts; integers, as their decimal digits. Never floats: 12 and 12.0 would be two ids.
time       timestamps of any unit; texts in ISO 8601 with date and time of day (``2026-01-05T10:00:00Z``,
           ``2026-01-05 10:00:00.25+01:00``). Without an offset they are read as UTC. Finer digits than
           microseconds are cut off. From 1970 to 9999.
number     finite numbers, also as texts (``12``, ``0.5``, ``1e3``)
whole      integers, also as texts (``12``), and floats without a fraction
flag       booleans, 0 and 1, ``true`` and ``false``
=========  =================================================================================================

An empty text is a null. Cost: linear in the cells, vectorised.

**Dropping fails closed.** Where the shop lets bad rows be dropped, a row may still be refused for good,
because leaving it out could permit what the whole table forbids:

* ``consents``: only grants of ``online``, ``crm`` and contact can be dropped. A bad row that is, or might be,
  a refusal, an objection, a statement about minors or about a separated purpose stops the reading. With a
  bad grant go all such grants of its subject, because the bad one might have replaced or ended them; and its
  record id may not occur on any row that is kept, because that would hide a conflict.
* ``items``: a bad row of an item that is, or might be, sensitive stops the reading.
* ``identities``: with a bad link go all links of its visitor, because a device of two customers links to
  neither; a bad row without a readable visitor stops the reading.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consentier.errors import DataError
from consentier.features.column_values import Mask, as_mask, attribute_column, checked_column
from consentier.features.headers import check_header
from consentier.features.schemas import PLAIN_PERMISSIONS, Column, ColumnType, TableSchema
from consentier.features.validation_report import FailureCount, RowFailure, Rule, ValidationReport

__all__ = ["Chunk", "OnBadRows", "Rule", "TableValidator", "ValidationReport", "validate_table"]

OnBadRows = Literal["error", "drop"]

WHOLE_ROW: Final = "*"
"""Stands for the column where a rule is about the row as such."""

_EXCERPT = 60
_BATCH_ROWS = 65_536


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows as a source delivered them.

    Attributes
    ----------
    batch
        The columns that were read, in the source's types.
    rows : ndarray of int64, shape (rows,)
        Number of each row in its file.
    file
        The file or database table.
    ragged
        Numbers of rows that are not in `batch` because they had too many or too few fields.
    """

    batch: pa.RecordBatch
    rows: npt.NDArray[np.int64]
    file: str = ""
    ragged: Sequence[int] = ()


def validate_table(
    table: pa.Table, schema: TableSchema, on_bad_rows: OnBadRows = "error"
) -> tuple[pa.Table, ValidationReport]:
    """Check one table and bring it into the types of its schema.

    Parameters
    ----------
    table
        Any column order and any types of the table in the module's documentation.
    schema
        What it is checked against.
    on_bad_rows
        ``"error"`` stops at the first bad row; ``"drop"`` leaves bad rows out and counts them.

    Returns
    -------
    table, report
        The good rows in their order, with the columns of the schema first and then, in an open table, all
        others as they were (decimals as float64, which models read).

    Raises
    ------
    DataError
        If a column is missing, a table that must not be empty is, a row is bad, or (with ``"drop"``) a row is
        bad that may not be dropped. The message names table, column, row and rule.
    """
    check_header(schema, table.column_names)
    validator = TableValidator(schema, on_bad_rows)
    first = 1
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        validator.add(Chunk(batch, np.arange(first, first + batch.num_rows, dtype=np.int64)))
        first += batch.num_rows
    return validator.finish()


class TableValidator:
    """Checks one table chunk by chunk, so that a source need not be in memory as a whole.

    Parameters
    ----------
    schema
        What to check against. The headers must have passed `check_header`.
    on_bad_rows
        As for `validate_table`.
    """

    def __init__(self, schema: TableSchema, on_bad_rows: OnBadRows = "error") -> None:
        if on_bad_rows not in get_args(OnBadRows):
            raise ValueError(f"on_bad_rows is {on_bad_rows!r}; it must be one of {get_args(OnBadRows)}")
        self._schema = schema
        self._drop = on_bad_rows == "drop"
        self._rows_in = 0
        self._kept: list[pa.Table] = []
        self._places: list[tuple[str, npt.NDArray[np.int64]]] = []
        self._dropped: list[pa.Table] = []
        self._counts: dict[tuple[str, Rule], FailureCount] = {}

    def add(self, chunk: Chunk) -> None:
        """Check the next rows.

        Raises
        ------
        DataError
            At the first bad row, unless bad rows are to be dropped and this one may be.
        """
        self._rows_in += chunk.batch.num_rows + len(chunk.ragged)
        table, found = self._normalised(chunk.batch)
        bad = np.zeros(table.num_rows, dtype=np.bool_)
        for _, _, mask in found:
            bad |= mask
        if chunk.ragged or bad.any():
            self._judge(chunk, table, found)
            self._dropped.append(table.filter(pa.array(bad)))
            table = table.filter(pa.array(~bad))
        self._kept.append(table)
        self._places.append((chunk.file, chunk.rows[~bad]))

    def finish(self) -> tuple[pa.Table, ValidationReport]:
        """Check what only all rows together can show, and return the good rows with the report.

        Raises
        ------
        DataError
            If the table is empty and must not be, keys repeat, or dropping would not fail closed.
        """
        name = self._schema.name
        if not self._rows_in and not self._schema.optional:
            raise DataError(f"table {name}: empty table: it must have at least one row")
        table = self._joined()
        table = self._without_companions(table)
        table = self._without_repeated_keys(table)
        if self._rows_in and not table.num_rows and not self._schema.optional:
            raise DataError(
                f"table {name}: empty table: none of its {self._rows_in} rows keeps the contract; "
                f"the first: {self._told(next(iter(self._counts.values())).first)}"
            )
        report = ValidationReport({name: self._rows_in}, {name: table.num_rows}, tuple(self._counts.values()))
        return table, report

    def _normalised(self, batch: pa.RecordBatch) -> tuple[pa.Table, list[tuple[Column, Rule, Mask]]]:
        columns: dict[str, pa.Array] = {}
        found: list[tuple[Column, Rule, Mask]] = []
        for column in self._schema.columns:
            if column.name not in batch.schema.names:
                columns[column.name] = pa.nulls(batch.num_rows, column.type.arrow)
                continue
            columns[column.name], broken = checked_column(column, batch.column(column.name))
            found.extend((column, rule, mask) for rule, mask in broken)
        if self._schema.open_columns:
            columns |= {
                name: attribute_column(batch.column(name))
                for name in batch.schema.names
                if name not in columns
            }
        return pa.table(columns), found

    def _judge(self, chunk: Chunk, table: pa.Table, found: list[tuple[Column, Rule, Mask]]) -> None:
        """Count the bad rows of a chunk; raise at the first one that may not be dropped."""
        protected = self._protected(table, found) if self._drop else np.ones(table.num_rows, dtype=np.bool_)
        fatal: list[RowFailure] = []
        for row in chunk.ragged[:1]:
            failure = RowFailure(self._schema.name, WHOLE_ROW, Rule.FIELD_COUNT, row, file=chunk.file)
            self._count(failure, len(chunk.ragged))
            if not self._drop or self._schema.name in _WHY_PROTECTED:
                fatal.append(failure)
        for column, rule, mask in found:
            self._count(self._failure(chunk, column, rule, int(mask.argmax())), int(mask.sum()))
            forbidden = mask & protected
            if forbidden.any():
                fatal.append(self._failure(chunk, column, rule, int(forbidden.argmax())))
        if fatal:
            raise self._error(min(fatal, key=lambda failure: failure.row))

    def _failure(self, chunk: Chunk, column: Column, rule: Rule, index: int) -> RowFailure:
        failure = RowFailure(self._schema.name, column.name, rule, int(chunk.rows[index]), file=chunk.file)
        if rule not in _QUOTING or column.personal:
            return failure
        excerpt = _excerpt(chunk.batch.column(column.name)[index])
        if self._schema.name == "items":
            return dataclasses.replace(failure, value=excerpt)
        return dataclasses.replace(failure, form=None if excerpt is None else _form(excerpt))

    def _count(self, failure: RowFailure, count: int) -> None:
        key = (failure.column, failure.rule)
        earlier = self._counts.get(key)
        self._counts[key] = (
            FailureCount(self._schema.name, failure.column, failure.rule, count, failure)
            if earlier is None
            else dataclasses.replace(earlier, count=earlier.count + count)
        )

    def _error(self, failure: RowFailure) -> DataError:
        message = self._told(failure)
        if self._drop:
            return DataError(f"{message}. It may not be dropped: {_WHY_PROTECTED[self._schema.name]}")
        return DataError(f"{message}. Mend the row, or have bad rows dropped (--on-bad-rows drop)")

    def _told(self, failure: RowFailure) -> str:
        """What is wrong with a row, and what the contract wants there."""
        column = next((column for column in self._schema.columns if column.name == failure.column), None)
        message = f"{failure}; {_expectation(failure.rule, column)}"
        unit = _epoch_unit(failure.form) if column is not None and column.type is ColumnType.TIME else None
        if unit is None:
            return message
        name, divisor = unit
        return (
            f"{message}. It looks like {name} since 1970; in Python "
            f"datetime.fromtimestamp(float(value){divisor}, timezone.utc).isoformat() converts it"
        )

    def _protected(self, table: pa.Table, found: list[tuple[Column, Rule, Mask]]) -> Mask:
        """Rows that may not be dropped even where bad rows may."""
        if self._schema.name == "consents":
            return ~(_is_droppable_grant(table) & as_mask(table["subject_id"].is_valid()))
        if self._schema.name == "identities":
            return as_mask(table["visitor_id"].is_null())
        protected = np.zeros(table.num_rows, dtype=np.bool_)
        if self._schema.name == "items":
            protected |= as_mask(table["sensitive"])
            for column, _, mask in found:
                if column.name == "sensitive":
                    protected |= mask
        return protected

    def _joined(self) -> pa.Table:
        if not self._kept:
            return pa.schema([pa.field(c.name, c.type.arrow) for c in self._schema.columns]).empty_table()
        try:
            return pa.concat_tables(self._kept, promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(
                f"table {self._schema.name}: a column has one type in one part and another elsewhere "
                f"({error}): give it one type"
            ) from error

    def _without_companions(self, table: pa.Table) -> pa.Table:
        """Drop what may not stand once a bad row is gone (see the module's documentation)."""
        dropped = pa.concat_tables(self._dropped) if self._dropped else None
        if dropped is None or not dropped.num_rows or self._schema.name not in ("consents", "identities"):
            return table
        column = "subject_id" if self._schema.name == "consents" else "visitor_id"
        beside = as_mask(pc.is_in(table[column], value_set=dropped[column]))
        if self._schema.name == "consents":
            beside &= _is_droppable_grant(table)
            dropped_ids = pa.concat_tables([dropped, table.filter(pa.array(beside))])["record_id"].drop_null()
            hidden = ~beside & as_mask(pc.is_in(table["record_id"], value_set=dropped_ids))
            if hidden.any():
                raise DataError(
                    f"{self._at(hidden, 'record_id', Rule.DUPLICATE_KEY)}; a bad row has the same record_id, "
                    "and dropping it would hide that the two differ. Mend the bad row"
                )
        if beside.any():
            self._count(self._at(beside, column, Rule.BESIDE_A_BAD_ROW), int(beside.sum()))
        return self._filtered(table, ~beside)

    def _without_repeated_keys(self, table: pa.Table) -> pa.Table:
        key = list(self._schema.key)
        if not key or table.num_rows < 2:
            return table
        positions = pa.array(np.arange(table.num_rows))
        first = (
            table.select(key)
            .append_column("position", positions)
            .group_by(key)
            .aggregate([("position", "min")])
        )
        if first.num_rows == table.num_rows:
            return table
        repeated = np.ones(table.num_rows, dtype=np.bool_)
        repeated[first["position_min"].to_numpy()] = False
        failure = self._at(repeated, ", ".join(key), Rule.DUPLICATE_KEY)
        if not self._drop:
            raise self._error(failure)
        protected = repeated & self._protected(table, [])
        if protected.any():
            raise self._error(self._at(protected, ", ".join(key), Rule.DUPLICATE_KEY))
        self._count(failure, int(repeated.sum()))
        return self._filtered(table, ~repeated)

    def _filtered(self, table: pa.Table, keep: Mask) -> pa.Table:
        start, places = 0, []
        for file, rows in self._places:
            places.append((file, rows[keep[start : start + len(rows)]]))
            start += len(rows)
        self._places = places
        return table.filter(pa.array(keep))

    def _at(self, mask: Mask, column: str, rule: Rule) -> RowFailure:
        """The failure of the first row of a mask over all rows kept so far."""
        index = int(mask.argmax())
        for file, rows in self._places:
            if index < len(rows):
                return RowFailure(self._schema.name, column, rule, int(rows[index]), file=file)
            index -= len(rows)
        raise IndexError(index)


_WHY_PROTECTED = {
    "consents": (
        "it is not plainly a grant of online, crm or contact by a known subject, "
        "and what it forbids would be lost"
    ),
    "items": "its item is, or might be, sensitive, and the flag would be lost",
    "identities": "its visitor is unknown, and a device of two customers could pass for one customer's",
}

_QUOTING = frozenset(Rule) - {Rule.NULL, Rule.DUPLICATE_KEY, Rule.FIELD_COUNT, Rule.BESIDE_A_BAD_ROW}


def _expectation(rule: Rule, column: Column | None) -> str:
    """What the contract wants in place of a bad value."""
    if rule is Rule.DUPLICATE_KEY:
        return "an earlier row has the same key"
    if rule is Rule.FIELD_COUNT or column is None:
        return "the row has not as many fields as the header: look for a missing or unquoted delimiter"
    if rule is Rule.NULL:
        return f"every row must have {column.doc}"
    if rule is Rule.UNKNOWN_VALUE and column.allowed is not None:
        return f"allowed are {', '.join(sorted(column.allowed))}"
    if rule is Rule.BELOW_MINIMUM:
        return f"the least is {column.minimum:g}"
    return f"expected {_EXPECTED[column.type]}"


_EXPECTED = {
    ColumnType.TEXT: "text or integers (a float is no id: 12 and 12.0 would differ)",
    ColumnType.TIME: "a time from 1970 to 9999 with date and time of day, such as 2026-01-05T10:00:00Z",
    ColumnType.NUMBER: "a finite number, such as 1234.50",
    ColumnType.WHOLE: "an integer",
    ColumnType.FLAG: "true or false",
}


def _excerpt(value: pa.Scalar) -> str | None:
    """The beginning of a value as text; None for a nested one, and for a time that Python may not know."""
    if pa.types.is_nested(value.type) or pa.types.is_timestamp(value.type):
        return None
    try:
        return str(value.as_py())[:_EXCERPT]
    except (OverflowError, ValueError):  # a date beyond Python's calendar
        return None


def _form(text: str) -> str:
    """A text with each letter and digit as any other: what is wrong with a value, and not what it says."""
    return "".join(
        "9"
        if character.isnumeric()
        else ("A" if character.isupper() else "a")
        if character.isalpha()
        else character
        for character in text
    )


_EPOCH_UNITS = {
    10: ("seconds", ""),
    13: ("milliseconds", " / 1_000"),
    16: ("microseconds", " / 1_000_000"),
    19: ("nanoseconds", " / 1_000_000_000"),
}
"""By the digits that times from 2001 to 2286 have since 1970, and what makes seconds of them."""


def _epoch_unit(form: str | None) -> tuple[str, str] | None:
    """In which unit since 1970 a time of this form may be; None where it is of none."""
    whole, _, fraction = (form or "").partition(".")
    return _EPOCH_UNITS.get(len(whole)) if set(whole + fraction) == {"9"} else None


def _is_droppable_grant(consents: pa.Table) -> Mask:
    """Grants whose loss permits nothing, provided that the subject's other such grants go with them."""
    granted = as_mask(pc.equal(consents["state"], "granted"))
    return granted & as_mask(pc.is_in(consents["permission"], value_set=pa.array(PLAIN_PERMISSIONS)))
