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

import collections
import dataclasses
import difflib
import enum
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consentier.consent.permissions import CONTACT_CHANNELS
from consentier.errors import DataError
from consentier.features.schemas import Column, ColumnType, TableSchema

__all__ = [
    "Chunk",
    "FailureCount",
    "OnBadRows",
    "RowFailure",
    "Rule",
    "TableValidator",
    "ValidationReport",
    "check_header",
    "validate_table",
]

OnBadRows = Literal["error", "drop"]

_Mask = npt.NDArray[np.bool_]
_Found = tuple["Rule", _Mask]

WHOLE_ROW: Final = "*"
"""Stands for the column where a rule is about the row as such."""

MOST_COLUMNS = 10_000
"""Columns of a table."""

_EXCERPT = 60
_BATCH_ROWS = 65_536
_LAST_MICROSECOND = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z, the last that Python can show
_MICROSECONDS_PER_TICK = {"s": 1_000_000, "ms": 1_000, "us": 1}
_LARGEST_EXACT_FLOAT = 2.0**53

_LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    r"(?:\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME_OF_DAY = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,9})?)?"
_OFFSET = r"(?:Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)"
_INSTANT = rf"^{_DATE}[T ]{_TIME_OF_DAY}{_OFFSET}?$"
_NUMBER = r"^-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?$"
_WHOLE = r"^-?\d{1,18}$"

_OTHER_DELIMITERS = {";": "semicolon", "\t": "tab", "|": "vertical bar"}

_DROPPABLE_PERMISSIONS = ["online", "crm", *sorted(f"contact:{channel}" for channel in CONTACT_CHANNELS)]


class Rule(enum.StrEnum):
    """What a row can break."""

    NULL = "null"
    WRONG_TYPE = "wrong type"
    UNPARSABLE_TIME = "unparsable time"
    BEFORE_EPOCH = "before epoch"
    AFTER_LAST_YEAR = "after year 9999"
    NOT_FINITE = "not finite"
    BELOW_MINIMUM = "below minimum"
    UNKNOWN_VALUE = "unknown value"
    DUPLICATE_KEY = "duplicate key"
    FIELD_COUNT = "field count"
    BESIDE_A_BAD_ROW = "dropped beside a bad row"


@dataclasses.dataclass(frozen=True, slots=True)
class RowFailure:
    """One row that broke one rule.

    Attributes
    ----------
    table, column, rule
        What was broken. The column is ``*`` where the rule is about the whole row; key columns stand joined.
    row
        Counted from 1; in a CSV file, the line on which the row begins, the header being line 1.
    value
        What stood there, at most 60 characters, where the table is of items. None elsewhere: a shifted column
        puts an address where a time should be.
    form
        The form of what stood there, in every other table: each letter an ``a`` or ``A``, each digit a ``9``.
        None in a column that tells people apart.
    file
        The file or database table, and so the place in which `row` counts.
    """

    table: str
    column: str
    rule: Rule
    row: int
    value: str | None = None
    form: str | None = None
    file: str = ""

    def __str__(self) -> str:
        where = f" of {self.file}" if self.file else ""
        value = "" if self.value is None else f": {self.value!r}"
        form = "" if self.form is None else f" of the form {self.form!r}"
        return f"table {self.table}, column {self.column}, row {self.row}{where}: {self.rule}{value}{form}"


@dataclasses.dataclass(frozen=True, slots=True)
class FailureCount:
    """How many rows broke a rule in a column, and the first of them."""

    table: str
    column: str
    rule: Rule
    count: int
    first: RowFailure


@dataclasses.dataclass(frozen=True, slots=True)
class ValidationReport:
    """What validation found: rows in and rows kept per table, and failures by table, column and rule."""

    rows_in: dict[str, int] = dataclasses.field(default_factory=dict)
    rows_kept: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: tuple[FailureCount, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no row broke any rule."""
        return not self.failures

    @classmethod
    def merged(cls, reports: Iterable[ValidationReport]) -> ValidationReport:
        """One report on several tables."""
        rows_in: dict[str, int] = {}
        rows_kept: dict[str, int] = {}
        failures: list[FailureCount] = []
        for report in reports:
            rows_in |= report.rows_in
            rows_kept |= report.rows_kept
            failures.extend(report.failures)
        return cls(rows_in, rows_kept, tuple(failures))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return dataclasses.asdict(self) | {"ok": self.ok}


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
        others as they were.

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


def check_header(schema: TableSchema, names: Sequence[str], file: str = "") -> None:
    """Check the column names of a table.

    Raises
    ------
    DataError
        If a required column is missing, a column stands twice, or a column carries the name of an absent
        optional one in another spelling (a misspelt ``sensitive`` would flag nothing).
    """
    place = f"table {schema.name}" + (f" ({file})" if file else "")
    if len(names) > MOST_COLUMNS:
        raise DataError(f"{place}: {len(names)} columns; at most {MOST_COLUMNS} are read: is it this table?")
    known = schema.column_names
    others = {_folded(name): name for name in names if name not in known}
    if not {*names, *others} & {*known, *map(_folded, known)}:
        # A file without a header begins with a person, whom no message may name.
        raise DataError(
            f"{place}: none of its {len(names)} columns has a name of the contract: the first line must be a "
            f"header, with {', '.join(column.name for column in schema.columns if column.required)}"
            + _delimiter_hint(names)
        )
    repeated = sorted(name for name, count in collections.Counter(names).items() if count > 1)
    if repeated:
        raise DataError(f"{place}: column {repeated[0]} stands more than once: keep one of them")
    for column in schema.columns:
        if column.name in names:
            continue
        folded = _folded(column.name)
        near = [folded] if folded in others else []
        if column.required:
            near = near or difflib.get_close_matches(folded, others, n=1, cutoff=0.6)
            raise DataError(
                f"{place}: missing column {column.name} ({column.type}): {_remedy(column, others, near)}"
            )
        if near:
            raise DataError(f"{place}: column {others[near[0]]!r} must be called {column.name}: rename it")


def _delimiter_hint(names: Sequence[str]) -> str:
    """What to say of a header that came out as one column, because something else than a comma divides it."""
    found = [word for sign, word in _OTHER_DELIMITERS.items() if len(names) == 1 and sign in names[0]]
    return f". Its one column holds a {found[0]}: separate the columns by commas" if found else ""


def _remedy(column: Column, others: Mapping[str, str], near: Sequence[str]) -> str:
    """What to do about a missing column, given the names that the contract does not know."""
    if near:
        return f"rename {others[near[0]]!r}?"
    if not 1 <= len(others) <= 5:
        return f"it holds {column.doc}"
    names = ", ".join(map(repr, others.values()))
    return f"it holds {column.doc}: rename {'one of ' if len(others) > 1 else ''}{names}?"


def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name).casefold()  # wide letters and the like are a spelling, too
    return "".join(character for character in plain if character.isalnum())


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
                f"the first: {next(iter(self._counts.values())).first}"
            )
        report = ValidationReport({name: self._rows_in}, {name: table.num_rows}, tuple(self._counts.values()))
        return table, report

    def _normalised(self, batch: pa.RecordBatch) -> tuple[pa.Table, list[tuple[Column, Rule, _Mask]]]:
        columns: dict[str, pa.Array] = {}
        found: list[tuple[Column, Rule, _Mask]] = []
        for column in self._schema.columns:
            if column.name not in batch.schema.names:
                columns[column.name] = pa.nulls(batch.num_rows, column.type.arrow)
                continue
            columns[column.name], broken = _checked(column, batch.column(column.name))
            found.extend((column, rule, mask) for rule, mask in broken)
        if self._schema.open_columns:
            columns |= {name: batch.column(name) for name in batch.schema.names if name not in columns}
        return pa.table(columns), found

    def _judge(self, chunk: Chunk, table: pa.Table, found: list[tuple[Column, Rule, _Mask]]) -> None:
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
        column = next((column for column in self._schema.columns if column.name == failure.column), None)
        message = f"{failure}; {_expectation(failure.rule, column)}"
        if self._drop:
            return DataError(f"{message}. It may not be dropped: {_WHY_PROTECTED[self._schema.name]}")
        return DataError(f"{message}. Mend the row, or have bad rows dropped (--on-bad-rows drop)")

    def _protected(self, table: pa.Table, found: list[tuple[Column, Rule, _Mask]]) -> _Mask:
        """Rows that may not be dropped even where bad rows may."""
        if self._schema.name == "consents":
            return ~(_is_droppable_grant(table) & _mask(table["subject_id"].is_valid()))
        if self._schema.name == "identities":
            return _mask(table["visitor_id"].is_null())
        protected = np.zeros(table.num_rows, dtype=np.bool_)
        if self._schema.name == "items":
            protected |= _mask(table["sensitive"])
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
        beside = _mask(pc.is_in(table[column], value_set=dropped[column]))
        if self._schema.name == "consents":
            beside &= _is_droppable_grant(table)
            dropped_ids = pa.concat_tables([dropped, table.filter(pa.array(beside))])["record_id"].drop_null()
            hidden = ~beside & _mask(pc.is_in(table["record_id"], value_set=dropped_ids))
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

    def _filtered(self, table: pa.Table, keep: _Mask) -> pa.Table:
        start, places = 0, []
        for file, rows in self._places:
            places.append((file, rows[keep[start : start + len(rows)]]))
            start += len(rows)
        self._places = places
        return table.filter(pa.array(keep))

    def _at(self, mask: _Mask, column: str, rule: Rule) -> RowFailure:
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
    return str(value.as_py())[:_EXCERPT]


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


def _is_droppable_grant(consents: pa.Table) -> _Mask:
    """Grants whose loss permits nothing, provided that the subject's other such grants go with them."""
    granted = _mask(pc.equal(consents["state"], "granted"))
    return granted & _mask(pc.is_in(consents["permission"], value_set=pa.array(_DROPPABLE_PERMISSIONS)))


def _mask(values: pa.Array | pa.ChunkedArray) -> _Mask:
    """A boolean array as NumPy's, null as False."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    mask: _Mask = pc.fill_null(values, fill_value=False).to_numpy(zero_copy_only=False)
    return mask.astype(np.bool_, copy=False)


def _only(values: pa.Array, mask: _Mask) -> pa.Array:
    """The values where the mask holds, null elsewhere."""
    return values if mask.all() else pc.if_else(pa.array(mask), values, pa.scalar(None, values.type))


def _checked(column: Column, raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    """A column in its type, null where a value was refused, and the refusals by rule."""
    raw = _plain(raw)
    values, found = _READERS[column.type](raw)
    if not column.nullable:
        found.append((Rule.NULL, _mask(raw.is_null())))
    if column.allowed is not None:
        known = pc.is_in(values, value_set=pa.array(sorted(column.allowed), pa.string()))
        found.append((Rule.UNKNOWN_VALUE, _mask(pc.and_(values.is_valid(), pc.invert(known)))))
    if column.minimum is not None:
        found.append((Rule.BELOW_MINIMUM, _mask(pc.less(values, column.minimum))))
    found = [(rule, mask) for rule, mask in found if mask.any()]
    for _, mask in found:
        values = _only(values, ~mask)
    return values, found


def _plain(raw: pa.Array) -> pa.Array:
    """Encoded and large texts as plain ones, and empty texts as nulls."""
    if pa.types.is_dictionary(raw.type):
        raw = raw.dictionary_decode()
    if pa.types.is_large_string(raw.type) or pa.types.is_string_view(raw.type):
        raw = raw.cast(pa.string())
    if pa.types.is_string(raw.type):
        return _only(raw, ~_mask(pc.equal(raw, "")))
    return raw


def _refused(raw: pa.Array, to: ColumnType) -> tuple[pa.Array, list[_Found]]:
    return pa.nulls(len(raw), to.arrow), [(Rule.WRONG_TYPE, _mask(raw.is_valid()))]


def _read_text(raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    if pa.types.is_string(raw.type):
        return raw, []
    if pa.types.is_integer(raw.type):
        return raw.cast(pa.string()), []
    return _refused(raw, ColumnType.TEXT)


def _read_time(raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    found: list[_Found] = []
    if pa.types.is_string(raw.type):
        raw, unparsable = _parsed_instants(raw)
        found.append((Rule.UNPARSABLE_TIME, unparsable))
    elif not pa.types.is_timestamp(raw.type):
        return _refused(raw, ColumnType.TIME)
    # Ticks since the epoch in UTC: a time without a zone is read as UTC, one with a zone is stored so.
    ticks = raw.cast(pa.int64())
    if raw.type.unit == "ns":
        ticks, per_tick = pc.divide(ticks, 1_000), 1
    else:
        per_tick = _MICROSECONDS_PER_TICK[raw.type.unit]
    early, late = _mask(pc.less(ticks, 0)), _mask(pc.greater(ticks, _LAST_MICROSECOND // per_tick))
    found += [(Rule.BEFORE_EPOCH, early), (Rule.AFTER_LAST_YEAR, late)]
    microseconds = pc.multiply(_only(ticks, ~(early | late)), per_tick)
    return microseconds.cast(ColumnType.TIME.arrow), found


def _parsed_instants(texts: pa.Array) -> tuple[pa.Array, _Mask]:
    good = _mask(pc.match_substring_regex(texts, _INSTANT))
    unparsable = ~good & _mask(texts.is_valid())
    texts = _only(texts, good)
    if pc.any(pc.match_substring_regex(texts, r"\.\d{7}")).as_py():
        texts = pc.replace_substring_regex(texts, r"(\.\d{6})\d+", r"\1")
    has_offset = pc.match_substring_regex(texts, f"{_OFFSET}$")
    if not pc.all(has_offset).as_py():
        texts = pc.if_else(has_offset, texts, pc.binary_join_element_wise(texts, "Z", ""))
    return texts.cast(pa.timestamp("us", tz="UTC")), unparsable


def _read_number(raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    wrong = np.zeros(len(raw), dtype=np.bool_)
    if pa.types.is_string(raw.type):
        raw, wrong = _matching(raw, _NUMBER)
    elif not (
        pa.types.is_integer(raw.type) or pa.types.is_floating(raw.type) or pa.types.is_decimal(raw.type)
    ):
        return _refused(raw, ColumnType.NUMBER)
    numbers = raw.cast(pa.float64(), safe=False)
    infinite = _mask(pc.invert(pc.is_finite(numbers)))
    return _only(numbers, ~infinite), [(Rule.WRONG_TYPE, wrong), (Rule.NOT_FINITE, infinite)]


def _read_whole(raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    if pa.types.is_string(raw.type):
        digits, wrong = _matching(raw, _WHOLE)
        return digits.cast(pa.int64()), [(Rule.WRONG_TYPE, wrong)]
    if pa.types.is_integer(raw.type) and not pa.types.is_uint64(raw.type):
        return raw.cast(pa.int64()), []
    numbers, found = _read_number(raw)
    exact = pc.and_(
        pc.equal(numbers, pc.floor(numbers)), pc.less_equal(pc.abs(numbers), _LARGEST_EXACT_FLOAT)
    )
    broken = _mask(pc.invert(exact))
    found.append((Rule.WRONG_TYPE, broken))
    return _only(numbers, ~broken).cast(pa.int64()), found


def _read_flag(raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    if pa.types.is_boolean(raw.type):
        return raw, []
    if not (pa.types.is_string(raw.type) or pa.types.is_integer(raw.type)):
        return _refused(raw, ColumnType.FLAG)
    words = pc.utf8_lower(raw.cast(pa.string()))
    yes = pc.is_in(words, value_set=pa.array(["true", "1"]))
    no = pc.is_in(words, value_set=pa.array(["false", "0"]))
    read = _mask(pc.or_(yes, no))
    return _only(yes, read), [(Rule.WRONG_TYPE, ~read & _mask(raw.is_valid()))]


def _matching(texts: pa.Array, pattern: str) -> tuple[pa.Array, _Mask]:
    """The texts that match, and a mask of those that do not."""
    good = _mask(pc.match_substring_regex(texts, pattern))
    return _only(texts, good), ~good & _mask(texts.is_valid())


_READERS: dict[ColumnType, Callable[[pa.Array], tuple[pa.Array, list[_Found]]]] = {
    ColumnType.TEXT: _read_text,
    ColumnType.TIME: _read_time,
    ColumnType.NUMBER: _read_number,
    ColumnType.WHOLE: _read_whole,
    ColumnType.FLAG: _read_flag,
}
