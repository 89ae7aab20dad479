"""Beside the ninth law: what goes wrong with a person's row is told without the row.

We promise: whatever stands in a table of persons, in whichever column, a message about it quotes none of it,
nor does the report of what was dropped. That holds where a column is shifted, a header is missing, a text
has another encoding, a database fails in its own words, or our own code does.
"""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import typer
from breaking import Break, assert_breaks, breaks
from hypothesis import given
from hypothesis import strategies as st

from consentier.cli.output import guarded
from consentier.errors import DataError
from consentier.features.headers import check_header
from consentier.features.schemas import SCHEMAS
from consentier.features.tables import read_shop
from consentier.features.validation import TableValidator, _form, validate_table

PERSON = "anna.k7@example.org"
"""What must not be said."""

GOOD = {
    "visitor_id": "v",
    "customer_id": "c",
    "session_id": "s",
    "item_id": "i",
    "order_id": "o",
    "line_id": "l",
    "event_type": "view",
    "usage_type": "hours",
    "quantity": "1",
    "price": "1.5",
    "status": "ordered",
    "record_id": "r",
    "subject_id": "v",
    "subject_kind": "visitor",
    "permission": "online",
    "state": "granted",
}

TIME = "2026-01-05T10:00:00Z"

OF_PERSONS = [name for name in SCHEMAS if name != "items"]

CELLS = [(name, column.name) for name in OF_PERSONS for column in SCHEMAS[name].columns]

Case = tuple[str, str, str, str]
"""Table, column, what stands there, and what is done with bad rows."""


def row(table: str) -> dict[str, str]:
    return {column.name: GOOD.get(column.name, TIME) for column in SCHEMAS[table].columns}


def told(case: Case) -> str:
    """All that is said of a table whose second row has a wrong value."""
    table, column, value, on_bad_rows = case
    rows = [row(table), row(table) | {column: value}]
    content = pa.table({name: [each[name] for each in rows] for name in rows[0]})
    try:
        _, report = validate_table(content, SCHEMAS[table], on_bad_rows)  # type: ignore[arg-type]
    except DataError as error:
        return f"{error} {error.__cause__!r}"
    failures = " ".join(str(failure.first) for failure in report.failures)
    return failures + json.dumps(report.to_dict())


def check_that_no_value_is_told(case: Case) -> None:
    """Not even the letters that a value begins with stand in what is said."""
    assert re.split("[^A-Za-z]", case[2])[0] not in told(case)


persons = st.from_regex(r"[A-Z][b-z]{5,9}[0-9]{2}@[b-z]{6}\.org", fullmatch=True)
cases = st.tuples(st.sampled_from(CELLS), persons, st.sampled_from(["error", "drop"])).map(
    lambda drawn: (*drawn[0], *drawn[1:])
)


@given(cases)
def test_no_message_quotes_a_cell_of_a_table_of_persons(case: Case) -> None:
    check_that_no_value_is_told(case)


@pytest.mark.parametrize(("table", "column"), CELLS)
def test_a_message_says_where_it_is_wrong_in_every_column(table: str, column: str) -> None:
    said = told((table, column, PERSON, "error"))
    assert PERSON not in said
    checked = next(each for each in SCHEMAS[table].columns if each.name == column)
    if checked.allowed is not None or checked.type != "text":
        assert f"column {column}, row 2" in said
        assert "of the form 'aaaa.a9@aaaaaaa.aaa'" in said


@breaks(
    Break(
        "what tells nobody apart is quoted",
        TableValidator._failure,
        'if self._schema.name == "items":',
        "if True:",
        ("events", "ts", PERSON, "error"),
    ),
    Break(
        "letters stay letters",
        _form,
        'else "a"',
        "else character",
        ("events", "event_type", PERSON, "error"),
    ),
)
def test_a_quoted_cell_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_that_no_value_is_told, cases, broken)


def header_told(cells: list[str]) -> str:
    try:
        check_header(SCHEMAS["events"], cells, "events.csv")
    except DataError as error:
        return str(error)
    return ""


def check_that_no_first_row_is_told(cells: list[str]) -> None:
    """A row in the place of the header is not quoted."""
    said = header_told(cells)
    assert said
    assert [cell for cell in cells if cell in said] == []


rows = st.lists(persons, min_size=1, max_size=5)


@given(rows)
def test_a_file_without_a_header_is_refused_without_its_first_row(cells: list[str]) -> None:
    check_that_no_first_row_is_told(cells)
    check_that_no_first_row_is_told([*cells, cells[0]])


@breaks(
    Break(
        "a first row is taken for names",
        check_header,
        "if not {*names, *others} & {*known, *map(folded, known)}:",
        "if False:",
        [PERSON, PERSON],
    )
)
def test_a_quoted_first_row_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_that_no_first_row_is_told, rows, broken)


def test_a_header_with_other_names_is_still_helped() -> None:
    assert "rename 'VisitorID'" in header_told(["VisitorID", "session_id", "ts", "item_id", "event_type"])


@pytest.mark.parametrize("table", OF_PERSONS)
def test_a_csv_file_without_a_header_names_nobody(table: str, tmp_path: Path) -> None:
    for name in {"consents", "events", table}:
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            if name != table:
                writer.writerow(row(name))
            writer.writerow([PERSON, *row(name).values()])
    with pytest.raises(DataError) as caught:
        read_shop(tmp_path)
    assert PERSON not in str(caught.value)


def sqlite_shop(path: Path, cell: str) -> str:
    """A shop in SQLite, whose subject is what an SQL expression says."""
    with sqlite3.connect(path) as connection:
        for name in ("events", "consents"):
            cells = row(name)
            columns = ", ".join(cells)
            connection.execute(f"CREATE TABLE {name} ({columns})")
            values = [cell if column == "subject_id" else f"'{value}'" for column, value in cells.items()]
            connection.execute(f"INSERT INTO {name} VALUES ({', '.join(values)})")
    connection.close()
    return f"sqlite:///{path}"


def test_a_text_of_another_encoding_in_a_database_is_not_quoted(tmp_path: Path) -> None:
    umlaut = PERSON.replace("k7", "ä").encode("latin-1").hex()
    with pytest.raises(DataError, match=r"table consents: .*OperationalError.*UTF-8") as caught:
        read_shop(sqlite_shop(tmp_path / "shop.db", f"CAST(x'{umlaut}' AS TEXT)"))
    assert "example" not in str(caught.value)
    assert caught.value.__cause__ is None


def fails_with(error: Exception) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize("error", [KeyError(PERSON), RuntimeError(PERSON), pa.ArrowInvalid(PERSON)])
def test_a_fault_of_ours_is_not_told_in_its_own_words(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        guarded(fails_with(error))()
    said = "".join(capsys.readouterr())
    assert type(error).__name__ in said
    assert PERSON not in said
