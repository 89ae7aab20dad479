"""The adapters for public data sets, on tiny files of the same shape, and on the real ones where they are."""

from __future__ import annotations

import datetime as dt
import json
import os
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from consentier import writing
from consentier.cli.app import app
from consentier.consent import Permission
from consentier.errors import DataError
from consentier.features.adapters import ADAPTERS, SYNTHETIC_EVIDENCE, import_dataset
from consentier.features.gate import ledger_of
from consentier.features.tables import read_shop

ROOT = Path(__file__).resolve().parents[2]
UTC = dt.UTC


def texts(*values: str | None) -> pa.Array:
    return pa.array(values, pa.large_string())


def words(*values: str | None) -> pa.Array:
    return pa.array(values, pa.string()).dictionary_encode()


def integers(*values: int | None) -> pa.Array:
    return pa.array(values, pa.int32())


def times(*values: str) -> pa.Array:
    instants = [dt.datetime.fromisoformat(value).replace(tzinfo=UTC) for value in values]
    return pa.array(instants, pa.timestamp("us", tz="UTC"))


def clicks(cutoff: dt.datetime) -> dict[str, pa.Table]:
    start = cutoff.timestamp()

    def part(session: int, first: float) -> pa.Table:
        return pa.table(
            {
                "session_id": integers(session, session, session),
                "item_id": integers(30, 9, 30),
                "pos": pa.array([0, 1, 2], pa.int16()),
                "ts": pa.array([first, first, first + 1.5], pa.float64()),
            }
        )

    return {"train": part(0, start - 100), "test": part(1, start)}


def pairs(*rows: tuple[int, int]) -> pa.Table:
    users, items = zip(*rows, strict=True)
    return pa.table({"user_id": integers(*users), "item_id": integers(*items)})


def movielens() -> dict[str, pa.Table]:
    return {
        "train": pairs((1, 10), (1, 11)),
        "val_foldin": pairs((2, 10)),
        "val_heldout": pairs((2, 12)),
        "test_foldin": pairs((3, 11)),
        "test_heldout": pairs((3, 12)),
        "users": pa.table(
            {
                "user_id": pa.array([1, 2, 3, 4]),
                "gender": texts("F", "M", "M", "F"),
                "age": pa.array([1, 56, 25, 35]),
                "occupation": pa.array([10, 20, 0, 12]),
                "zip": texts("48067", "70072", "00231", "99945-1234"),
            }
        ),
        "movies": pa.table(
            {
                "item_id": pa.array([10, 11, 12]),
                "title": texts("Toy Story (1995)", "Jumanji (1995)", "Alien (1979)"),
                "genres": texts("Animation/Comedy", "Adventure", "Action/Horror/Sci-Fi"),
            }
        ),
    }


def jdata() -> dict[str, pa.Table]:
    return {
        "events": pa.table(
            {
                "visitor_id": texts("va", "va", "va", "vb"),
                "session_id": texts("va-1", "va-1", "va-1", "vb-1"),
                "ts": times("2016-02-01T00:05", "2016-02-01T00:06", "2016-02-01T00:07", "2016-04-01T00:30"),
                "item_id": texts("i1", "i1", "i2", "i1"),
                "event_type": texts("view", "cart", "remove_from_cart", "favourite"),
                "model_id": integers(None, 0, 1, 2),
            }
        ),
        "orders": pa.table(
            {
                "customer_id": texts("ca", "ca", "cc"),
                "order_id": texts("o1", "o1", "o2"),
                "ts": times("2016-02-01T00:01", "2016-02-01T00:01", "2016-03-01T00:00"),
                "item_id": texts("i1", "i1", "i2"),
                "quantity": integers(1, 1, 1),
                "price": pa.array([None, None, None], pa.float64()),
            }
        ),
        "identities": pa.table(
            {"visitor_id": texts("va", "vb", "vc", "vd"), "customer_id": texts("ca", "cb", "cc", "cd")}
        ),
        "customers": pa.table(
            {
                "customer_id": texts("ca", "cb"),
                "age_band": texts("26-35", None),
                "gender": texts("f", None),
                "member_level": pa.array([3, None], pa.int8()),
                "registered_on": pa.array([dt.date(2010, 5, 1), None], pa.date32()),
                "has_profile": pa.array([True, False]),
            }
        ),
        "items": pa.table(
            {
                "item_id": texts("i1", "i2"),
                "category": texts("cat9", "cat7"),
                "brand": texts("b1", "b2"),
                "price": pa.array([None, None], pa.float64()),
                "a1": pa.array([3, None]),
                "a2": pa.array([-1, None]),
                "a3": pa.array([2, None]),
            }
        ),
    }


def online_retail() -> dict[str, pa.Table]:
    return {
        "orders": pa.table(
            {
                "customer_id": texts("c1", "c1", "c1", "c1", "c2"),
                "order_id": texts("536365", "536365", "536365", "C536379", "581000"),
                "ts": times(*["2010-12-01T08:26"] * 3, "2010-12-02T09:00", "2011-12-01T10:00"),
                "item_id": texts("85123A", "85123A", "POST", "85123A", "22698"),
                "quantity": integers(6, 6, 1, -6, 2),
                "price": pa.array([2.55, 2.55, 18.0, 2.55, None], pa.float64()),
            }
        ),
        "customers": pa.table(
            {
                "customer_id": texts("c1", "c2"),
                "region": texts("United Kingdom", "France"),
                "first_order_ts": times("2010-12-01T08:26", "2011-12-01T10:00"),
            }
        ),
        "items": pa.table(
            {
                "item_id": texts("22698", "85123A", "POST"),
                "name": texts("TEACUP", "HEART", "POSTAGE"),
                "price": pa.array([2.95, 2.55, 18.0]),
            }
        ),
    }


def complete_journey() -> dict[str, pa.Table]:
    household = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp")
    return {
        "orders": pa.table(
            {
                "customer_id": texts("906", "906", "7", "7"),
                "order_id": texts("31", "31", "32", "33"),
                "ts": times("2017-01-01T12:30", "2017-01-01T12:30", "2017-06-01T10:00", "2017-12-31T10:00"),
                "item_id": texts("1", "2", "1", "3"),
                "quantity": integers(2, 0, 1, 1),
                "line_value": pa.array([3.0, 0.0, 1.5, 4.0]),
                "retail_disc": pa.array([0.0, 0.0, 0.0, 0.0]),
                "coupon_disc": pa.array([0.0, 0.0, 0.0, 0.0]),
            }
        ),
        "customers": pa.table(
            {
                "customer_id": texts("906"),
                **{name: words("x" if name != "marital_status" else None) for name in household},
                "kids_count": words("3+"),
            }
        ),
        "items": pa.table(
            {
                "manufacturer_id": texts("69", "69", "5"),
                "department": texts("GROCERY", "DRUG GM", "GROCERY"),
                "brand": words("Private", "National", "National"),
                "product_category": texts("EGGS", "ANALGESICS", None),
                "product_type": texts("EGGS - X-LARGE", "HEADACHE", None),
                "package_size": texts("1 DZ", None, None),
                "item_id": texts("1", "2", "3"),
            }
        ),
    }


FIXTURES: dict[str, Callable[[], dict[str, pa.Table]]] = {
    "diginetica": lambda: clicks(ADAPTERS["diginetica"].cutoff),
    "retailrocket": lambda: clicks(ADAPTERS["retailrocket"].cutoff),
    "gowalla": lambda: {"train": pairs((0, 5), (0, 6), (1, 5)), "test": pairs((0, 7), (1, 6))},
    "movielens1m": movielens,
    "taobao": lambda: {
        "carts": pairs((0, 5), (0, 6), (2, 5)),
        "orders_train": pairs((0, 7), (1, 5)),
        "orders_test": pairs((0, 8), (1, 6), (2, 6)),
    },
    "jdata": jdata,
    "online_retail": online_retail,
    "complete_journey": complete_journey,
}


def write_source(folder: Path, tables: dict[str, pa.Table]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: write_source(tmp_path / "source" / name, FIXTURES[name]())


def converted(source: Callable[[str], Path], name: str) -> dict[str, list[dict[str, Any]]]:
    return {table: rows.to_pylist() for table, rows in ADAPTERS[name].convert(source(name)).items()}


def test_every_adapter_has_a_fixture() -> None:
    assert FIXTURES.keys() == ADAPTERS.keys()


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_imported_data_set_is_a_valid_shop_with_its_split(
    name: str, source: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = import_dataset(name, source(name), tmp_path / "deep" / "out")
    shop = read_shop(tmp_path / "deep" / "out")
    assert shop.report.ok
    assert shop.report.rows_kept == rows
    config = tomllib.loads((tmp_path / "deep" / "out" / "consentier.toml").read_text("utf-8"))
    cutoff, days = config["training"]["cutoff"], config["evaluation"]["horizon_days"]
    assert (cutoff, days) == (ADAPTERS[name].cutoff, ADAPTERS[name].horizon_days)
    instants = [*shop.events["ts"].to_pylist(), *shop.orders["ts"].to_pylist()]
    assert min(instants) < cutoff <= max(instants) < cutoff + dt.timedelta(days=days)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_subject_has_one_grant_that_says_it_is_synthetic(
    name: str, source: Callable[[str], Path], tmp_path: Path
) -> None:
    import_dataset(name, source(name), tmp_path / "out")
    shop = read_shop(tmp_path / "out")
    subjects = {
        (kind, subject)
        for table in (shop.events, shop.orders, shop.customers, shop.identities)
        for kind in ("visitor", "customer")
        if f"{kind}_id" in table.column_names
        for subject in table[f"{kind}_id"].to_pylist()
    }
    records = shop.consents.to_pylist()
    granted = [(record["subject_kind"], record["subject_id"]) for record in records]
    assert sorted(granted) == sorted(subjects)
    first = min([*shop.events["ts"].to_pylist(), *shop.orders["ts"].to_pylist()])
    for record in records:
        assert record["permission"] == {"visitor": "online", "customer": "crm"}[record["subject_kind"]]
        assert (record["state"], record["valid_to"]) == ("granted", None)
        assert record["valid_from"] < first
        assert (record["collected_by"], record["policy_version"]) == ("benchmark", "benchmark")
        assert record["evidence"] == SYNTHETIC_EVIDENCE
    ledger = ledger_of(shop)
    assert ledger.conflicts == []
    for kind, subject in subjects:
        expected = Permission.ONLINE if kind == "visitor" else Permission.CRM
        assert ledger.permission(subject, kind=kind, at=ADAPTERS[name].cutoff) == expected


def test_clicks_of_one_second_keep_their_order(source: Callable[[str], Path]) -> None:
    events = converted(source, "diginetica")["events"]
    first = [event for event in events if event["session_id"] == "0"]
    assert {event["visitor_id"] for event in first} == {"0"}
    assert [event["item_id"] for event in sorted(first, key=lambda event: event["ts"])] == ["30", "9", "30"]
    assert len({event["ts"] for event in first}) == 3
    assert {event["event_type"] for event in events} == {"view"}


def test_movielens_keeps_each_part_of_the_split_on_its_day(source: Callable[[str], Path]) -> None:
    tables = converted(source, "movielens1m")
    days = {(row["customer_id"], row["item_id"]): row["ts"].date().isoformat() for row in tables["orders"]}
    assert days == {
        ("1", "10"): "2000-01-01",
        ("1", "11"): "2000-01-01",
        ("2", "10"): "2000-01-01",
        ("2", "12"): "2000-01-02",
        ("3", "11"): "2000-01-01",
        ("3", "12"): "2000-01-03",
    }
    assert tables["customers"][0] == {
        "customer_id": "1",
        "gender": "F",
        "age_band": "under 18",
        "occupation": "K-12 student",
        "region": "4",
    }
    assert [item["category"] for item in tables["items"]] == ["Animation", "Adventure", "Action"]


def test_taobao_is_joined_by_its_links_alone(source: Callable[[str], Path]) -> None:
    tables = converted(source, "taobao")
    visitors = {event["visitor_id"] for event in tables["events"]}
    customers = {order["customer_id"] for order in tables["orders"]}
    links = {link["visitor_id"]: link["customer_id"] for link in tables["identities"]}
    assert links.keys() == visitors
    assert set(links.values()) == {"0", "2"}
    assert not visitors & customers
    carts = {(links[event["visitor_id"]], event["item_id"]) for event in tables["events"]}
    assert carts == {("0", "5"), ("0", "6"), ("2", "5")}
    assert {event["event_type"] for event in tables["events"]} == {"cart"}
    assert len({event["session_id"] for event in tables["events"]}) == 3


def test_jdata_maps_types_attributes_and_links(source: Callable[[str], Path]) -> None:
    tables = converted(source, "jdata")
    assert [event["event_type"] for event in tables["events"]] == ["view", "cart", "remove", "favourite"]
    assert [order["line_id"] for order in tables["orders"]] == ["1", "2", "1"]
    assert {order["price"] for order in tables["orders"]} == {None}
    assert tables["customers"] == [
        {"customer_id": "ca", "age_band": "26-35", "gender": "f", "member_level": 3, "registered_year": 2010},
        {
            "customer_id": "cb",
            "age_band": None,
            "gender": None,
            "member_level": None,
            "registered_year": None,
        },
    ]
    linked = {link["visitor_id"]: link["linked_at"] for link in tables["identities"]}
    assert linked == {
        "va": dt.datetime(2016, 2, 1, 0, 1, tzinfo=UTC),  # the order came first
        "vb": dt.datetime(2016, 4, 1, 0, 30, tzinfo=UTC),
        "vc": dt.datetime(2016, 3, 1, tzinfo=UTC),  # no events
        "vd": None,  # nothing at all: no link
    }


def test_online_retail_maps_cancellations_and_numbers_repeated_lines(source: Callable[[str], Path]) -> None:
    tables = converted(source, "online_retail")
    lines = [(row["order_id"], row["line_id"], row["quantity"], row["status"]) for row in tables["orders"]]
    assert lines == [
        ("536365", "1", 6, "ordered"),
        ("536365", "2", 6, "ordered"),
        ("536365", "3", 1, "ordered"),
        ("C536379", "1", 6, "cancelled"),
        ("581000", "1", 2, "ordered"),
    ]
    assert [row["price"] for row in tables["orders"]] == [2.55, 2.55, 18.0, 2.55, None]
    assert {item["item_id"]: item["available"] for item in tables["items"]} == {
        "22698": None,
        "85123A": None,
        "POST": False,
    }
    assert tables["customers"][0] == {
        "customer_id": "c1",
        "region": "United Kingdom",
    }  # nothing of the future


@settings(max_examples=25, deadline=None)
@given(
    lines=st.lists(
        st.tuples(
            st.sampled_from(["c1", "c2"]), st.sampled_from(["1", "C2"]), st.integers(-3, 3).filter(bool)
        ),
        min_size=1,
        max_size=20,
    )
)
def test_no_order_line_is_lost_or_merged(
    lines: list[tuple[str, str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    customers, orders, quantities = zip(*lines, strict=True)
    folder = write_source(tmp_path_factory.mktemp("lines"), online_retail())
    table = pa.table(
        {
            "customer_id": texts(*customers),
            "order_id": texts(*orders),
            "ts": times(*["2011-01-01T00:00"] * len(lines)),
            "item_id": texts(*["22698"] * len(lines)),
            "quantity": integers(*quantities),
            "price": pa.array([1.0] * len(lines)),
        }
    )
    pq.write_table(table, folder / "orders.parquet")
    kept = ADAPTERS["online_retail"].convert(folder)["orders"].to_pylist()
    assert [(row["customer_id"], row["order_id"], row["quantity"]) for row in kept] == [
        (customer, order, abs(quantity)) for customer, order, quantity in lines
    ]
    assert [row["status"] == "cancelled" for row in kept] == [
        quantity < 0 or order == "C2" for _, order, quantity in lines
    ]
    numbers: dict[tuple[str, str], list[int]] = {}
    for row in kept:
        numbers.setdefault((row["customer_id"], row["order_id"]), []).append(int(row["line_id"]))
    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values())


def test_complete_journey_prices_pieces_and_flags_health(source: Callable[[str], Path]) -> None:
    tables = converted(source, "complete_journey")
    assert [(row["item_id"], row["quantity"], row["price"]) for row in tables["orders"]] == [
        ("1", 2, 1.5),
        ("1", 1, 1.5),
        ("3", 1, 4.0),
    ]
    flags = {item["item_id"]: (item["category"], item["sensitive"]) for item in tables["items"]}
    assert flags == {"1": ("EGGS", False), "2": ("ANALGESICS", True), "3": (None, False)}
    assert tables["customers"][0]["kids_count"] == "3+"
    assert tables["customers"][0]["marital_status"] is None


# --- refusals ---------------------------------------------------------------------------------------------


def break_column(folder: Path, file: str, column: str, values: pa.Array | None) -> None:
    table = pq.read_table(folder / file)
    position = table.column_names.index(column)
    table = table.remove_column(position)
    if values is not None:
        table = table.add_column(position, column, values)
    pq.write_table(table, folder / file)


@pytest.mark.parametrize(
    ("name", "file", "column", "values", "expected"),
    [
        ("gowalla", "test.parquet", "item_id", None, "missing column item_id: it must hold integers"),
        (
            "gowalla",
            "test.parquet",
            "item_id",
            pa.array([1.0, 2.0]),
            "wrong type double: it must hold integers",
        ),
        ("gowalla", "train.parquet", "user_id", integers(0, None, 1), "column customer_id, row 2: null"),
        ("jdata", "orders.parquet", "ts", texts("a", "b", "c"), "it must hold instants"),
        (
            "jdata",
            "events.parquet",
            "event_type",
            texts("view", "look", "cart", "view"),
            "row 2: unknown value",
        ),
        ("online_retail", "orders.parquet", "quantity", integers(1, 2, 0, 1, 1), "row 3: below minimum"),
        (
            "online_retail",
            "orders.parquet",
            "price",
            pa.array([1.0, float("nan"), 1.0, 1.0, 1.0]),
            "orders.parquet, column price, row 2: must be a finite number",
        ),
        ("online_retail", "customers.parquet", "customer_id", texts("c1", "c1"), "duplicate key"),
        (
            "movielens1m",
            "users.parquet",
            "age",
            pa.array([1, 2, 25, 35]),
            "column age, row 2: must be one of 1, 18",
        ),
        ("diginetica", "test.parquet", "ts", pa.array([0.0, 1.0, 2.0]), "test.parquet, column ts, row 1"),
        (
            "diginetica",
            "train.parquet",
            "ts",
            pa.array([1e18, 1e18, 1e18]),
            "train.parquet, column ts, row 1",
        ),
        (
            "diginetica",
            "test.parquet",
            "ts",
            pa.array([1e18, 1e18, 1e18]),
            "test.parquet, column ts, row 1: must be",
        ),
        (
            "complete_journey",
            "orders.parquet",
            "ts",
            times(*["2017-01-01T00:00"] * 4),
            "complete_journey is split at 2017-12-05",
        ),
    ],
)
def test_a_source_of_another_shape_is_refused_and_nothing_written(
    name: str,
    file: str,
    column: str,
    values: pa.Array | None,
    expected: str,
    source: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = source(name)
    break_column(folder, file, column, values)
    with pytest.raises(DataError) as refusal:
        import_dataset(name, folder, tmp_path / "out")
    assert expected in str(refusal.value)
    assert str(folder) in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_missing_file_is_named_with_its_columns(source: Callable[[str], Path], tmp_path: Path) -> None:
    folder = source("taobao")
    (folder / "carts.parquet").unlink()
    with pytest.raises(DataError, match=r"carts\.parquet: no such file: .* columns user_id, item_id"):
        import_dataset("taobao", folder, tmp_path / "out")


def test_a_file_that_is_no_parquet_is_refused(source: Callable[[str], Path], tmp_path: Path) -> None:
    folder = source("taobao")
    (folder / "carts.parquet").write_text("user_id,item_id\n", "utf-8")
    with pytest.raises(DataError, match=r"carts\.parquet: cannot be read"):
        import_dataset("taobao", folder, tmp_path / "out")


def test_an_empty_file_is_refused(source: Callable[[str], Path], tmp_path: Path) -> None:
    folder = source("gowalla")
    pq.write_table(pairs((0, 1)).slice(0, 0), folder / "test.parquet")
    with pytest.raises(DataError, match=r"test\.parquet: empty table"):
        import_dataset("gowalla", folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "meant"), [("movielens", "movielens1m"), ("Online-Retail", "online_retail"), ("JDATA", "jdata")]
)
def test_an_unknown_name_is_answered_with_the_near_one(given: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{given!r}\. Did you mean {meant!r}"):
        import_dataset(given, tmp_path, tmp_path / "out")


def test_a_name_like_no_other_lists_the_adapters(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There are: diginetica, retailrocket") as refusal:
        import_dataset("xyzzy", tmp_path, tmp_path / "out")
    assert "Did you mean" not in str(refusal.value)


def test_what_is_there_stays_unless_forced(source: Callable[[str], Path], tmp_path: Path) -> None:
    folder, out = source("gowalla"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine", "utf-8")
    with pytest.raises(DataError, match="is not empty"):
        import_dataset("gowalla", folder, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    import_dataset("gowalla", folder, out, force=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "consentier.toml",
        "consents.parquet",
        "orders.parquet",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_failed_replacement_puts_the_old_directory_back(
    source: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    folder, out = source("gowalla"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine", "utf-8")
    rename = Path.rename

    def refuse_the_new(self: Path, target: Path) -> Path:
        to_its_place = target == out and not self.name.endswith(".replaced")
        if to_its_place if not exchanges else target.name.endswith(".replaced"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    if not exchanges:
        monkeypatch.setattr(writing, "_exchanged", lambda *_: False)
    with pytest.raises(DataError, match=r"cannot be written: .*No space left"):
        import_dataset("gowalla", folder, out, force=True)
    assert (out / "mine.txt").read_text("utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_the_documentation_names_every_adapter_and_its_split() -> None:
    page = (ROOT / "docs" / "datasets.md").read_text("utf-8")
    for adapter in ADAPTERS.values():
        assert f"## {adapter.name}" in page
        section = page.split(f"## {adapter.name}\n")[1].split("\n## ")[0]
        assert adapter.cutoff.strftime("%Y-%m-%dT%H:%M:%SZ") in section
        assert f"{adapter.horizon_days} day" in section


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_imports_and_reports(source: Callable[[str], Path], tmp_path: Path) -> None:
    command = ["import", "online_retail", str(source("online_retail")), str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "out": str(tmp_path / "out"),
        "rows": {"orders": 5, "customers": 2, "items": 3, "consents": 2},
        "cutoff": "2011-11-12T00:00:00+00:00",
        "horizon_days": 28,
    }
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "is not empty" in again.stderr
    assert CliRunner().invoke(app, [*command, "--force"]).exit_code == 0


def test_the_command_says_that_consents_are_synthetic(source: Callable[[str], Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["import", "gowalla", str(source("gowalla")), str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert "orders" in result.stdout
    assert "consents are synthetic" in result.stderr


def test_the_command_suggests_the_near_name(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["import", "gowala", str(tmp_path), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "Did you mean 'gowalla'?" in result.stderr
    assert "Traceback" not in result.stderr


# --- the real data sets -----------------------------------------------------------------------------------


def real_data(folder: str) -> Path:
    root = Path(os.environ.get("CONSENTIER_TEST_DATA", ROOT.parent / "shared" / "data"))
    path = root / folder
    if not path.is_dir():
        pytest.skip(f"{path} is absent")
    return path


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "rows"),
    [
        ("session/diginetica", {"events": 982_961, "consents": 202_633}),
        ("session/retailrocket", {"events": 710_666, "consents": 130_943}),
        ("cf/gowalla", {"orders": 1_027_370, "consents": 29_858}),
        ("cf/movielens1m", {"orders": 575_192, "customers": 6_040, "items": 3_883, "consents": 6_040}),
        (
            "twosource/taobao",
            {"events": 193_747, "orders": 259_771, "identities": 37_689, "consents": 86_438},
        ),
        (
            "shop/jdata",
            {
                "events": 65_928,
                "orders": 199,
                "customers": 3_009,
                "items": 3_366,
                "identities": 3_009,
                "consents": 6_018,
            },
        ),
        ("shop/online_retail", {"orders": 406_829, "customers": 4_372, "items": 3_684, "consents": 4_372}),
        ("shop/complete_journey", {"orders": 74_584, "customers": 801, "items": 20_897, "consents": 2_373}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_real_data_set_imports_whole(folder: str, rows: dict[str, int], tmp_path: Path) -> None:
    source = real_data(folder)
    assert import_dataset(source.name, source, tmp_path / "out") == rows


@pytest.mark.real_data
def test_real_sessions_keep_the_order_of_their_clicks() -> None:
    source = real_data("session/retailrocket")
    events = ADAPTERS["retailrocket"].convert(source)["events"]
    original = pq.read_table(source / "test.parquet").sort_by(
        [("session_id", "ascending"), ("pos", "ascending")]
    )
    test = events.slice(events.num_rows - original.num_rows)
    test = test.append_column("session", test["session_id"].cast(pa.int64()))
    ordered = test.sort_by([("session", "ascending"), ("ts", "ascending")])
    assert ordered["item_id"].cast(pa.int64()).equals(original["item_id"].cast(pa.int64()))


@pytest.mark.real_data
def test_real_cancellations_are_those_of_the_source() -> None:
    source = real_data("shop/online_retail")
    original = pq.read_table(source / "orders.parquet")
    cancelled = pc.sum(pc.less(original["quantity"], 0)).as_py()
    orders = ADAPTERS["online_retail"].convert(source)["orders"]
    assert Counter(orders["status"].to_pylist()) == {
        "cancelled": cancelled,
        "ordered": original.num_rows - cancelled,
    }
    assert pc.sum(orders["quantity"]).as_py() == pc.sum(pc.abs(original["quantity"])).as_py()
