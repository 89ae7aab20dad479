"""What validation found: which rows broke which rule of the data contract, and where. It quotes no person."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Any

__all__ = ["FailureCount", "RowFailure", "Rule", "ValidationReport"]


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
    """What validation found: rows in and rows kept per table, and failures by table, column and rule.

    `unread` are names of what was left aside and is called nearly like a table that the shop does not have,
    each with that table's.
    """

    rows_in: dict[str, int] = dataclasses.field(default_factory=dict)
    rows_kept: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: tuple[FailureCount, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()

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
