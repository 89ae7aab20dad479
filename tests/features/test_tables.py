"""Reading shops from directories and databases, and writing tables."""

from __future__ import annotations

import math
import shutil
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consentier.errors import DataError, ShopInvalid
from consentier.features import tables as tables_module
from consentier.features.schemas import SCHEMAS, arrow_schema
from consentier.features.tables import read_shop, write_tables
from consentier.features.validation import Rule

CONSENTS = (
    "record_id,subject_id,subject_kind,permission,state,valid_from,valid_to,recorded_at,evidence\n"
    'r1,v1,visitor,online,granted,2026-01-01T00:00:00Z,,2026-01-01T00:00:00Z,"He said ""yes"",\nand more"\n'
    "r2,c1,customer,crm,withdrawn,2026-01-02T00:00:00Z,,2026-01-02T00:00:00Z,\n"
)
EVENTS = (
    "visitor_id,session_id,ts,item_id,event_type\n"
    "v1,s1,2026-01-05T10:00:00Z,Schuh-ä,view\n"
    "v1,s1,2026-01-05T11:00:00+01:00,0012,cart\n"
    "v2,s2,2026-01-05 10:00:01.5,i2,view\n"
)
ITEMS = "item_id,category,price,available,sensitive,brand\ni2,shoes,9.5,true,,b\n0012,,,false,true,\n"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    for name, text in (("consents", CONSENTS), ("events", EVENTS), ("items", ITEMS)):
        (folder / f"{name}.csv").write_text(text, encoding="utf-8", newline="")
    return folder


def write_sqlite(path: Path, tables: dict[str, pa.Table]) -> str:
    with sqlite3.connect(path) as connection:
        for name, table in tables.items():
            connection.execute(f"CREATE TABLE {name} ({', '.join(table.column_names)})")
            rows = [
                tuple(value.isoformat() if hasattr(value, "isoformat") else value for value in row.values())
                for row in table.to_pylist()
            ]
            marks = ", ".join("?" * table.num_columns)
            connection.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
    connection.close()
    return f"sqlite:///{path}"


def as_tables(folder: Path) -> dict[str, pa.Table]:
    read = read_shop(folder)
    return {name: getattr(read, name) for name in ("consents", "events", "items")}


def test_csv_is_read_into_the_types_of_the_contract(shop: Path) -> None:
    read = read_shop(shop)
    assert read.report.ok
    assert read.report.rows_in == {"events": 3, "items": 2, "consents": 2}
    assert read.events["item_id"].to_pylist() == ["Schuh-ä", "0012", "i2"]
    assert [time.isoformat() for time in read.events["ts"].to_pylist()] == [
        "2026-01-05T10:00:00+00:00", "2026-01-05T10:00:00+00:00", "2026-01-05T10:00:01.500000+00:00",
    ]  # fmt: skip
    assert read.items["available"].to_pylist() == [True, False]
    assert read.items["brand"].to_pylist() == ["b", ""], "attributes stay as they are"
    assert read.consents["evidence"].to_pylist() == ['He said "yes",\nand more', None]
    for name in ("orders", "product_usage", "identities"):
        assert getattr(read, name).equals(arrow_schema(name).empty_table())


@pytest.mark.parametrize("source", ["parquet", "csv", "parts", "sqlite"])
def test_every_kind_of_source_gives_the_same_tables(shop: Path, tmp_path: Path, source: str) -> None:
    expected = as_tables(shop)
    place: str | Path = tmp_path / "copy"
    if source == "sqlite":
        place = write_sqlite(tmp_path / "shop.db", expected)
    else:
        write_tables(expected, Path(place), "csv" if source == "csv" else "parquet")
    if source == "parts":
        (Path(place) / "events.parquet").unlink()
        (Path(place) / "events").mkdir()
        for number in range(3):
            pq.write_table(expected["events"].slice(number, 1), Path(place) / "events" / f"{number}.parquet")
    read = read_shop(place)
    for name, table in expected.items():
        assert getattr(read, name).to_pylist() == table.to_pylist()
        assert getattr(read, name).schema.equals(table.schema)


def test_byte_order_mark_windows_line_ends_and_blank_lines_are_fine(shop: Path) -> None:
    (shop / "events.csv").write_bytes(b"\xef\xbb\xbf" + EVENTS.replace("\n", "\r\n\r\n").encode())
    assert read_shop(shop).events.num_rows == 3


Spoil = Callable[[Path], Any]


def replaced(name: str, old: str, new: str) -> Spoil:
    def spoil(shop: Path) -> None:
        text = (shop / name).read_text(encoding="utf-8")
        assert old in text
        (shop / name).write_text(text.replace(old, new, 1), encoding="utf-8", newline="")

    return spoil


def bytes_replaced(name: str, old: bytes, new: bytes) -> Spoil:
    return lambda shop: (shop / name).write_bytes((shop / name).read_bytes().replace(old, new, 1))


def events_as_empty_folder(shop: Path) -> None:
    (shop / "events.csv").unlink()
    (shop / "events").mkdir()


STRUCTURAL: dict[str, tuple[Spoil, str]] = {
    "no consents": (
        lambda shop: (shop / "consents.csv").rename(shop / "consent.csv"),
        r"table consents: missing table: no consents, no training.*'consent' meant",
    ),
    "exports under their own names": (
        lambda shop: [path.rename(shop / f"export_{path.name}") for path in sorted(shop.iterdir())],
        r"missing table: no consents.* the name of a table of the data contract: export_consents, export_ev",
    ),
    "an empty directory": (
        lambda shop: [path.unlink() for path in sorted(shop.iterdir())],
        r"missing table: no consents.*It holds nothing",
    ),
    "neither events nor orders": (lambda shop: (shop / "events.csv").unlink(), "events and orders: missing"),
    "two files": (
        lambda shop: pq.write_table(pa.table({"a": [1]}), shop / "events.parquet"),
        r"table events: events\.parquet and events\.csv",
    ),
    "missing column": (
        replaced("events.csv", "session_id", "sessions"),
        r"table events \(events\.csv\): missing column session_id .*rename 'sessions'",
    ),
    "column twice": (replaced("events.csv", "session_id", "ts"), "column ts stands more than once"),
    "wrong encoding": (
        bytes_replaced("events.csv", "ä".encode(), b"\xe4"),
        r"table events \(events\.csv\), row 2: wrong encoding",
    ),
    "utf-16": (
        lambda shop: (shop / "events.csv").write_text(EVENTS, encoding="utf-16"),
        "row 1: wrong encoding",
    ),
    "long line": (
        lambda shop: (shop / "events.csv").write_text(EVENTS + "x" * (1 << 20) + "\n"),
        "row 5: line too long",
    ),
    "long field": (replaced("events.csv", "0012", "x" * 200_000), "row 3: unreadable row"),
    "open quote": (replaced("events.csv", "0012", '"0012'), "row 3: unreadable row"),
    "quotes that swallow rows": (
        lambda shop: (shop / "events.csv").write_text(
            EVENTS.replace("0012", '"0012').replace(",i2", ',"i2"')
        ),
        "row 3: unreadable row",
    ),
    "empty file": (lambda shop: (shop / "events.csv").write_text(""), r"\(events\.csv\): empty table"),
    "header only": (
        lambda shop: (shop / "events.csv").write_text(EVENTS.splitlines()[0]),
        "table events: empty table",
    ),
    "empty folder": (
        events_as_empty_folder,
        r"table events: events/ has no \.parquet part",
    ),
    "no parquet": (
        lambda shop: (shop / "events.csv").rename(shop / "events.parquet"),
        r"table events \(events\.parquet\): unreadable file",
    ),
}


@pytest.mark.parametrize("case", STRUCTURAL)
@pytest.mark.parametrize("on_bad_rows", ["error", "drop"])
def test_broken_files_stop_the_reading_in_either_mode(shop: Path, case: str, on_bad_rows: Any) -> None:
    spoil, message = STRUCTURAL[case]
    spoil(shop)
    with pytest.raises(DataError, match=message):
        read_shop(shop, on_bad_rows=on_bad_rows)


def test_a_bad_table_does_not_hide_what_is_wrong_with_the_others(shop: Path) -> None:
    (shop / "events.csv").write_text(EVENTS.replace("2026-01-05T10", "05.01.2026 10"))
    (shop / "items.csv").write_text(ITEMS.replace("item_id", "product"))
    with pytest.raises(ShopInvalid) as found:
        read_shop(shop)
    first, second = found.value.problems
    assert first.startswith("table events, column ts, row 2 of events.csv: unparsable time")
    assert second.startswith("table items (items.csv): missing column item_id")
    (shop / "events.csv").rename(shop / "clicks.csv")
    (shop / "consents.csv").unlink()
    with pytest.raises(ShopInvalid, match=r"(?s)3 tables break .*table consents.*tables events and.*items"):
        read_shop(shop)


def test_a_file_misnamed_or_double_does_not_hide_what_is_wrong_with_the_others(shop: Path) -> None:
    (shop / "consents.csv").rename(shop / "Consents.csv")
    pq.write_table(pa.table({"a": [1]}), shop / "events.parquet")
    (shop / "items.csv").write_text(ITEMS.replace("9.5", "cheap"))
    with pytest.raises(ShopInvalid) as found:
        read_shop(shop)
    events, consents, items = found.value.problems
    assert events.startswith("table events: events.parquet and events.csv stand beside each other")
    assert consents.startswith("table consents: 'Consents.csv' is not read")
    assert items.startswith("table items, column price, row 2 of items.csv: ")
    (shop / "CONSENTS.csv").touch()
    (shop / "items.csv").unlink()
    with pytest.raises(ShopInvalid, match=r"2 tables .*\n.*\n.*'CONSENTS\.csv' and 'Consents\.csv' are not"):
        read_shop(shop)


def test_a_table_of_a_database_misnamed_does_not_hide_the_others(shop: Path, tmp_path: Path) -> None:
    tables = as_tables(shop)
    tables["Events"] = tables.pop("events")
    url = write_sqlite(tmp_path / "shop.db", tables)
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("UPDATE items SET item_id = CAST(X'ff' AS TEXT)")
    connection.close()
    with pytest.raises(ShopInvalid) as found:
        read_shop(url)
    misnamed, failed = found.value.problems
    assert misnamed.startswith("table events: 'Events' is not read")
    assert failed.startswith("table items: the database cannot be read")


def test_the_configuration_beside_the_tables_is_taken_for_no_table(shop: Path) -> None:
    (shop / "consentier.toml").touch()
    (shop / "consents.csv").unlink()
    with pytest.raises(DataError, match="table consents: missing table") as found:
        read_shop(shop)
    assert "meant for it" not in str(found.value)


def test_a_database_that_gives_up_is_not_asked_for_the_other_tables(shop: Path, tmp_path: Path) -> None:
    """PostgreSQL refuses whatever follows a failure in a transaction: that says nothing of those tables."""
    url = write_sqlite(tmp_path / "shop.db", as_tables(shop))
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        for table in ("events", "items"):  # texts that are no UTF-8
            connection.execute(f"UPDATE {table} SET item_id = CAST(X'ff' AS TEXT)")
    connection.close()
    with pytest.raises(DataError, match="table events: the database cannot be read") as found:
        read_shop(url)
    assert not isinstance(found.value, ShopInvalid)


def test_row_is_the_line_on_which_it_begins(shop: Path) -> None:
    replaced("consents.csv", "withdrawn", "gone")(shop)  # below a record of two lines
    with pytest.raises(
        DataError, match=r"table consents, column state, row 4 of consents\.csv: unknown value"
    ):
        read_shop(shop)


def test_row_numbers_hold_in_later_chunks(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "_PYTHON_CHUNK_ROWS", 2)
    replaced("events.csv", "i2,view", "i2,stare")(shop)
    with pytest.raises(
        DataError, match=r"table events, column event_type, row 4 of events\.csv: unknown value"
    ):
        read_shop(shop)


def test_row_with_a_wrong_number_of_fields_is_a_bad_row(shop: Path) -> None:
    replaced("events.csv", "0012,cart", "0012,cart,more")(shop)
    with pytest.raises(DataError, match=r"table events, column \*, row 3 of events\.csv: field count"):
        read_shop(shop)
    read = read_shop(shop, on_bad_rows="drop")
    assert read.events["item_id"].to_pylist() == ["Schuh-ä", "i2"]
    assert read.report.rows_in["events"] == 3
    assert [(failure.rule, failure.first.row) for failure in read.report.failures] == [(Rule.FIELD_COUNT, 3)]


def test_ragged_consent_row_is_never_dropped(shop: Path) -> None:
    replaced("consents.csv", "r2,", "r2,,")(shop)
    with pytest.raises(DataError, match=r"table consents, column \*, row 4 .*may not be dropped"):
        read_shop(shop, on_bad_rows="drop")


def test_parquet_text_that_is_no_utf8_is_unreadable(shop: Path) -> None:
    (shop / "events.csv").unlink()
    table = pa.table({name: pa.array([b"\xff\xfe"]) for name in SCHEMAS["events"].column_names})
    broken = pa.table({name: column.combine_chunks().view(pa.string()) for name, column in
                       zip(table.column_names, table.columns, strict=True)})  # fmt: skip
    pq.write_table(broken, shop / "events.parquet")
    with pytest.raises(DataError, match=r"table events \(events\.parquet\): unreadable file"):
        read_shop(shop)


def test_attribute_with_two_types_in_two_parts_is_an_error(shop: Path) -> None:
    (shop / "customers").mkdir()
    pq.write_table(pa.table({"customer_id": ["c1"], "age": [1]}), shop / "customers" / "1.parquet")
    pq.write_table(pa.table({"customer_id": ["c2"], "age": ["x"]}), shop / "customers" / "2.parquet")
    with pytest.raises(DataError, match="table customers: a column has one type in one part"):
        read_shop(shop)


@pytest.mark.parametrize(
    "name", ["Items.csv", "ITEMS.CSV", "items.CSV", "items.csv.gz", "items.tsv", "items.pq", "items"]
)
def test_a_table_that_would_not_be_read_for_its_name_is_refused(shop: Path, name: str) -> None:
    """Left unread, its sensitive items would pass for any others."""
    (shop / "items.csv").rename(shop / name)
    with pytest.raises(DataError, match=rf"table items: '{name}' is not read: .* rename it"):
        read_shop(shop)


@pytest.mark.parametrize("name", ["2.PARQUET", "2.csv", "2.parquet.bak", "day=2"])
def test_a_part_that_would_not_be_read_is_refused(shop: Path, name: str) -> None:
    """Left unread, a withdrawal in it would be lost."""
    consents = read_shop(shop).consents
    (shop / "consents.csv").unlink()
    (shop / "consents").mkdir()
    for part in ("1.parquet", "_SUCCESS", ".1.parquet.crc"):
        pq.write_table(consents, shop / "consents" / part)
    assert read_shop(shop).consents.equals(consents)
    (shop / "consents" / name).mkdir()
    with pytest.raises(DataError, match=f"table consents: consents/ holds '{name}', which is not read"):
        read_shop(shop)


def test_a_directory_that_cannot_be_listed_is_a_data_error(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read: .*Permission denied"):
        read_shop(shop)


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="source"):
        read_shop(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_bad_rows"):
        read_shop(tmp_path, on_bad_rows="warn")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no such directory"):
        read_shop(tmp_path / "nowhere")


# --- databases -----------------------------------------------------------------------------------------


def test_mixed_types_in_sqlite_are_found_row_by_row(shop: Path, tmp_path: Path) -> None:
    tables = as_tables(shop)
    url = write_sqlite(tmp_path / "shop.db", tables)
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("UPDATE events SET item_id = 12 WHERE item_id = '0012'")
        connection.execute("UPDATE events SET item_id = 12.5 WHERE item_id = 'i2'")
    connection.close()
    with pytest.raises(
        DataError, match=r"table events, column item_id, row 3: wrong type of the form '99\.9'"
    ):
        read_shop(url)
    assert read_shop(url, on_bad_rows="drop").events["item_id"].to_pylist() == ["Schuh-ä", "12"]


def test_a_table_of_a_database_in_another_spelling_is_refused(shop: Path, tmp_path: Path) -> None:
    tables = as_tables(shop)
    url = write_sqlite(tmp_path / "shop.db", {**tables, "Product_Usage": tables["items"]})
    with pytest.raises(DataError, match="table product_usage: 'Product_Usage' is not read: rename it"):
        read_shop(url)


@pytest.mark.parametrize("other", [Decimal(3), Decimal("0.5"), None])
@pytest.mark.parametrize(("number", "read"), [(10**20, 1e20), (10**400, math.inf), (-(10**400), -math.inf)])
def test_numbers_beyond_64_bits_are_numbers_like_others(
    number: int, read: float, other: Decimal | None
) -> None:
    """As texts they would make a category of all numbers of their column, whoever's they are."""
    price = SCHEMAS["items"].columns[2]
    cells = [Decimal(number), other]
    for column in (None, price):  # an attribute, and a number of the contract
        (batch,) = tables_module._batches([cells], ["price"], [column])
        assert batch.column("price").type == pa.float64()
        assert batch.column("price").to_pylist() == [read, None if other is None else float(other)]


def test_an_id_beyond_64_bits_is_its_digits() -> None:
    (batch,) = tables_module._batches([[Decimal(10**20)]], ["item_id"], [SCHEMAS["items"].columns[0]])
    assert batch.column("item_id").to_pylist() == ["1" + 20 * "0"]


def test_database_faults_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such SQLite file"):
        read_shop(f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(DataError, match="the database cannot be read"):
        read_shop(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(DataError, match="database URL cannot be used"):
        read_shop("nosuch://somewhere/shop")


def test_database_without_consents_is_refused(shop: Path, tmp_path: Path) -> None:
    url = write_sqlite(tmp_path / "shop.db", {"events": as_tables(shop)["events"]})
    with pytest.raises(DataError, match="no consents, no training"):
        read_shop(url)


def test_password_is_never_shown() -> None:
    with pytest.raises(DataError, match="the database cannot be read") as caught:
        read_shop("postgresql://shop:s3cret@127.0.0.1:1/shop")
    assert "s3cret" not in str(caught.value)


# --- writing -------------------------------------------------------------------------------------------

SMALL = {"events": pa.table({"a": [1, 2]}), "truth": pa.table({"b": ["x", None]})}


def test_written_tables_can_be_replaced_only_by_force(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    write_tables(SMALL, out)
    assert sorted(path.name for path in out.iterdir()) == ["events.parquet", "truth.parquet"]
    with pytest.raises(DataError, match="is not empty"):
        write_tables(SMALL, out, "csv")
    write_tables(SMALL, out, "csv", force=True)
    assert sorted(path.name for path in out.iterdir()) == ["events.csv", "truth.csv"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_empty_directory_is_free_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_tables(SMALL, tmp_path / "empty")
    assert pq.read_table(tmp_path / "empty" / "events.parquet").equals(SMALL["events"])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        write_tables(SMALL, tmp_path / "file", force=True)


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_no_debris_and_the_old_directory(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    if force:
        write_tables(SMALL, out)
    nested = {"events": SMALL["events"], "truth": pa.table({"a": [[1]]})}  # no CSV of lists
    with pytest.raises(DataError, match="cannot be written"):
        write_tables(nested, out, "csv", force=force)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if force else [])
    if force:
        assert (out / "truth.parquet").is_file()


def test_a_failed_replacement_puts_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_tables(SMALL, out)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.startswith(".out.") and not self.name.endswith(".replaced"):
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(DataError, match="disk on fire"):
        write_tables(SMALL, out, "csv", force=True)
    assert sorted(path.name for path in out.iterdir()) == ["events.parquet", "truth.parquet"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_names_and_formats_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name for a table"):
        write_tables({"../events": SMALL["events"]}, tmp_path / "out")
    with pytest.raises(ValueError, match="format"):
        write_tables(SMALL, tmp_path / "out", "orc")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.real_data
def test_real_shop_tables_are_read(tmp_path: Path) -> None:
    jdata = Path(__file__).parents[3] / "shared" / "data" / "shop" / "jdata"
    if not jdata.is_dir():
        pytest.skip("the real data sets are not beside the repository")
    for name in ("events", "customers", "items"):
        shutil.copy(jdata / f"{name}.parquet", tmp_path)
    (tmp_path / "consents.csv").write_text(CONSENTS, encoding="utf-8", newline="")
    read = read_shop(tmp_path, on_bad_rows="drop")
    # Its own word for a removal, which an adapter would translate, is the only thing amiss.
    assert {(failure.column, failure.first.form) for failure in read.report.failures} == {
        ("event_type", "aaaaaa_aaaa_aaaa")
    }
    assert read.events.num_rows + sum(failure.count for failure in read.report.failures) == 65_928
    assert read.customers.num_rows == 3_009
    assert read.customers.schema.field("member_level").type == pa.int8()


# --- hostile files ---------------------------------------------------------------------------------------


def test_rows_with_half_a_million_columns_are_refused_at_once(shop: Path) -> None:
    (shop / "items.csv").write_text("item_id," + "a," * 500_000 + "b\n")
    with pytest.raises(DataError, match=r"items.*500002 columns; at most 10000 are read"):
        read_shop(shop)


def test_a_line_without_an_end_is_not_read_to_it(shop: Path) -> None:
    with (shop / "events.csv").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="line too long"):
        read_shop(shop)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Sensitive", "must be called sensitive"),
        (" sensitive ", "must be called sensitive"),
        ("sen\u200bsitive", "must be called sensitive"),
        ("\uff53\uff45\uff4e\uff53\uff49\uff54\uff49\uff56\uff45", "must be called sensitive"),
    ],
)
def test_a_flag_in_another_spelling_is_no_attribute(shop: Path, name: str, reason: str) -> None:
    (shop / "items.csv").write_text(f"item_id,{name}\ni1,true\n")
    with pytest.raises(DataError, match=reason):
        read_shop(shop)


HOSTILE_TEXTS = (
    "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "'; DROP TABLE events; --", '"; --', "{{7*7}}",
    "${7*7}",
    "<script>alert(1)</script>", "\x1b[2J", "\u202eevil", "a\x00b", "NULL", "\\",  "é\u0301", "\ufeffi",
)  # fmt: skip


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_texts_that_other_programs_obey_are_texts_here_and_come_back_as_they_were(
    tmp_path: Path, form: Any
) -> None:
    """An id is written as it is: with a mark against spreadsheets before it, it would be another id."""
    items = pa.table(
        {
            "item_id": HOSTILE_TEXTS,
            "category": HOSTILE_TEXTS,
            "=1+1": HOSTILE_TEXTS,
            'x"; DROP TABLE items; --': HOSTILE_TEXTS,
        }
    )
    write_tables({"items": items}, tmp_path / "shop", form)
    chunks = list(tables_module.reader_of(tmp_path / "shop" / f"items.{form}")(SCHEMAS["items"]))
    found = pa.Table.from_batches([chunk.batch for chunk in chunks])
    assert {name: found[name].to_pylist() for name in items.column_names} == items.to_pydict()
