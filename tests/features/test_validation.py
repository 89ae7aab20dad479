"""Validation: each rule, exact places, and dropping that fails closed."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.errors import DataError
from consentier.features.schemas import SCHEMAS, ColumnType, arrow_schema
from consentier.features.validation import Rule, ValidationReport, validate_table

Rows = dict[str, list[Any]]

TIME = "2026-01-05T10:00:00Z"
INSTANT = dt.datetime(2026, 1, 5, 10, tzinfo=dt.UTC)

VALID: dict[str, Rows] = {
    "events": {
        "visitor_id": ["v1", "v2", "v1"],
        "session_id": ["s1", "s2", "s1"],
        "ts": [TIME] * 3,
        "item_id": ["i1", "i2", "i3"],
        "event_type": ["view", "cart", "order"],
    },
    "orders": {
        "customer_id": ["c1", "c1", "c2"],
        "order_id": ["o1", "o1", "o2"],
        "line_id": ["1", "2", "1"],
        "ts": [TIME] * 3,
        "item_id": ["i1", "i2", "i3"],
        "quantity": ["1", "2", "3"],
        "price": ["1.5", None, "0"],
        "status": ["ordered", "cancelled", "returned"],
    },
    "product_usage": {
        "customer_id": ["c1", "c2"],
        "ts": [TIME] * 2,
        "item_id": ["i1", "i2"],
        "usage_type": ["stream", "stream"],
        "quantity": ["0.5", "3"],
    },
    "customers": {"customer_id": ["c1", "c2"], "age_band": ["18-25", None]},
    "items": {
        "item_id": ["i1", "i2"],
        "category": ["shoes", None],
        "price": ["10", None],
        "available": ["true", "0"],
        "sensitive": [None, "false"],
    },
    "identities": {"visitor_id": ["v1", "v2"], "customer_id": ["c1", "c2"], "linked_at": [TIME, None]},
    "consents": {
        "record_id": ["r1", "r2", "r3"],
        "subject_id": ["v1", "c1", "c2"],
        "subject_kind": ["visitor", "customer", "customer"],
        "permission": ["online", "crm", "contact:email"],
        "state": ["granted", "granted", "withdrawn"],
        "valid_from": [TIME] * 3,
        "valid_to": [None] * 3,
        "recorded_at": [TIME] * 3,
    },
}


def texts(rows: Rows) -> pa.Table:
    return pa.table({name: pa.array(values, pa.string()) for name, values in rows.items()})


def changed(table: str, column: str, value: Any, row: int = 0) -> Rows:
    rows = {name: list(values) for name, values in VALID[table].items()}
    rows[column][row] = value
    return rows


def validated(table: str, rows: Rows, on_bad_rows: Any = "error") -> tuple[pa.Table, ValidationReport]:
    return validate_table(texts(rows), SCHEMAS[table], on_bad_rows)


def consents(*rows: tuple[str, str, str, str, str]) -> Rows:
    """Consent rows from record id, subject, permission, state and start."""
    record_id, subject_id, permission, state, valid_from = (
        list(values) for values in zip(*rows, strict=True)
    )
    return {
        "record_id": record_id,
        "subject_id": subject_id,
        "subject_kind": ["customer"] * len(rows),
        "permission": permission,
        "state": state,
        "valid_from": valid_from,
        "valid_to": [None] * len(rows),
        "recorded_at": [TIME] * len(rows),
    }


@pytest.mark.parametrize("name", SCHEMAS)
def test_valid_table_keeps_every_row_in_the_types_of_the_contract(name: str) -> None:
    table, report = validated(name, VALID[name])
    rows = len(next(iter(VALID[name].values())))
    assert report.ok
    assert report.rows_in == report.rows_kept == {name: rows}
    contract = arrow_schema(name)
    assert table.schema.names[: len(contract)] == contract.names
    assert all(table.schema.field(field.name).type == field.type for field in contract)


BAD_CELLS = [
    ("events", "visitor_id", "", Rule.NULL),
    ("events", "item_id", None, Rule.NULL),
    ("events", "event_type", "viewed", Rule.UNKNOWN_VALUE),
    ("events", "ts", "yesterday", Rule.UNPARSABLE_TIME),
    ("events", "ts", "2026-01-05", Rule.UNPARSABLE_TIME),
    ("events", "ts", "2026-02-29T10:00:00Z", Rule.UNPARSABLE_TIME),
    ("events", "ts", "2026-04-31T10:00:00Z", Rule.UNPARSABLE_TIME),
    ("events", "ts", "2026-01-05T24:00:00Z", Rule.UNPARSABLE_TIME),
    ("events", "ts", "2026-01-05T10:00:00Z\n", Rule.UNPARSABLE_TIME),
    ("orders", "ts", "1969-12-31T23:59:59Z", Rule.BEFORE_EPOCH),
    ("orders", "ts", "1970-01-01T00:59:59+01:00", Rule.BEFORE_EPOCH),
    ("orders", "ts", "9999-12-31T23:59:59-01:00", Rule.AFTER_LAST_YEAR),
    ("orders", "quantity", "-1", Rule.BELOW_MINIMUM),
    ("orders", "quantity", "0", Rule.BELOW_MINIMUM),
    ("orders", "quantity", "1.5", Rule.WRONG_TYPE),
    ("orders", "quantity", "9999999999999999999", Rule.WRONG_TYPE),
    ("orders", "quantity", None, Rule.NULL),
    ("orders", "price", "-0.01", Rule.BELOW_MINIMUM),
    ("orders", "price", "nan", Rule.WRONG_TYPE),
    ("orders", "price", "1e999", Rule.NOT_FINITE),
    ("orders", "price", "1,50", Rule.WRONG_TYPE),
    ("orders", "status", "Ordered", Rule.UNKNOWN_VALUE),
    ("items", "available", "maybe", Rule.WRONG_TYPE),
    ("consents", "permission", "contact:fax", Rule.UNKNOWN_VALUE),
    ("consents", "state", "grnated", Rule.UNKNOWN_VALUE),
    ("consents", "subject_kind", "cookie", Rule.UNKNOWN_VALUE),
]


@pytest.mark.parametrize(("table", "column", "value", "rule"), BAD_CELLS)
def test_bad_cell_names_table_column_row_and_rule(
    table: str, column: str, value: str | None, rule: Rule
) -> None:
    with pytest.raises(DataError) as caught:
        validated(table, changed(table, column, value, row=1))
    assert f"table {table}, column {column}, row 2: {rule}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-01-05T10:00:00Z", INSTANT),
        ("2026-01-05 10:00", INSTANT),
        ("2026-01-05T10:00:00", INSTANT),
        ("2026-01-05T12:30:00+02:30", INSTANT),
        ("2026-01-05 05:00:00-05", INSTANT),
        ("2026-01-05T10:00:00.1234569Z", INSTANT.replace(microsecond=123456)),
        ("2024-02-29T00:00:00Z", dt.datetime(2024, 2, 29, tzinfo=dt.UTC)),
        ("1970-01-01T00:00:00Z", dt.datetime(1970, 1, 1, tzinfo=dt.UTC)),
        ("9999-12-31T23:59:59.999999Z", dt.datetime.max.replace(tzinfo=dt.UTC)),
    ],
)
def test_times_are_read_exactly(text: str, instant: dt.datetime) -> None:
    table, _ = validated("events", changed("events", "ts", text))
    assert table["ts"][0].as_py() == instant


@given(
    st.datetimes(dt.datetime(1970, 1, 2), dt.datetime(9999, 12, 30)),
    st.integers(-23 * 60, 23 * 60),
    st.sampled_from("T "),
)
def test_every_iso_time_is_read_as_python_reads_it(moment: dt.datetime, offset: int, separator: str) -> None:
    moment = moment.replace(tzinfo=dt.timezone(dt.timedelta(minutes=offset)))
    table, _ = validated("events", changed("events", "ts", moment.isoformat(separator)))
    assert table["ts"][0].as_py() == moment


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_timestamps_of_any_unit_are_the_same_instants(unit: str, zone: str | None) -> None:
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit] * int(INSTANT.timestamp())
    rows = texts(VALID["events"])
    rows = rows.set_column(2, "ts", pa.array([ticks] * 3, pa.timestamp(unit, tz=zone)))
    table, _ = validate_table(rows, SCHEMAS["events"])
    assert table["ts"].to_pylist() == [INSTANT] * 3


@pytest.mark.parametrize(("seconds", "rule"), [(-1, Rule.BEFORE_EPOCH), (2**60, Rule.AFTER_LAST_YEAR)])
def test_timestamps_out_of_range_are_refused(seconds: int, rule: Rule) -> None:
    rows = texts(VALID["events"]).set_column(2, "ts", pa.array([0, seconds, 0], pa.timestamp("s")))
    with pytest.raises(DataError, match=f"column ts, row 2: {rule}"):
        validate_table(rows, SCHEMAS["events"])


@pytest.mark.parametrize(
    "dates",
    [
        pa.array([2**31 - 1] * 3, pa.int32()).view(pa.date32()),
        pa.array([2**62] * 3, pa.int64()).view(pa.date64()),
        pa.array([2**62] * 3, pa.int64()).view(pa.duration("s")),
    ],
)
def test_a_date_beyond_any_calendar_is_refused_by_its_row(dates: pa.Array) -> None:
    rows = texts(VALID["events"]).set_column(2, "ts", dates)
    with pytest.raises(DataError, match="column ts, row 1: wrong type"):
        validate_table(rows, SCHEMAS["events"])


def test_integer_ids_become_their_digits_and_floats_are_refused() -> None:
    rows = texts(VALID["events"])
    whole = rows.set_column(3, "item_id", pa.array([7, 8, 9], pa.int32()))
    assert validate_table(whole, SCHEMAS["events"])[0]["item_id"].to_pylist() == ["7", "8", "9"]
    floats = rows.set_column(3, "item_id", pa.array([7.0, 8.0, 9.0]))
    with pytest.raises(DataError, match=r"column item_id, row 1: wrong type of the form '9\.9'"):
        validate_table(floats, SCHEMAS["events"])


def test_encoded_and_large_texts_are_texts() -> None:
    rows = texts(VALID["events"])
    encoded = rows.set_column(4, "event_type", rows["event_type"].dictionary_encode())
    encoded = encoded.set_column(0, "visitor_id", rows["visitor_id"].cast(pa.large_string()))
    assert validate_table(encoded, SCHEMAS["events"])[0].equals(validated("events", VALID["events"])[0])


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (pa.array([1.0, 2.0, 3.0]), [1, 2, 3]),
        (pa.array([1, 2, 3], pa.uint64()), [1, 2, 3]),
        (pa.array(["1", "2", "3"]), [1, 2, 3]),
    ],
)
def test_whole_numbers_in_other_types_are_read(values: pa.Array, read: list[int]) -> None:
    rows = texts(VALID["orders"]).set_column(5, "quantity", values)
    assert validate_table(rows, SCHEMAS["orders"])[0]["quantity"].to_pylist() == read


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_prices_that_are_no_numbers_are_refused(value: float) -> None:
    rows = texts(VALID["orders"]).set_column(6, "price", pa.array([1.0, None, value]))
    with pytest.raises(DataError, match="column price, row 3: not finite"):
        validate_table(rows, SCHEMAS["orders"])


@pytest.mark.parametrize(("sign", "named"), [(";", "semicolon"), ("\t", "tab"), ("|", "vertical bar")])
def test_a_header_that_is_divided_otherwise_is_told_so(sign: str, named: str) -> None:
    one_column = pa.table({sign.join(["visitor", "session", "time"]): ["a"]})
    with pytest.raises(DataError, match=f"Its one column holds a {named}: separate the columns by commas"):
        validate_table(one_column, SCHEMAS["events"])


def test_missing_column_suggests_the_near_miss() -> None:
    rows = texts(VALID["events"]).rename_columns(["visitorId", "session_id", "ts", "item", "event_type"])
    with pytest.raises(DataError, match=r"missing column visitor_id .*rename 'visitorId'"):
        validate_table(rows, SCHEMAS["events"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["visitor_id", "session_id", "ts", "product", "event_type"], "rename 'product'?"),
        (["visitor_id", "session_id", "ts", "product", "what"], "rename one of 'product', 'what'?"),
        (["visitor_id", "session_id", "ts", "event_type"], "it holds the item"),
    ],
)
def test_missing_column_names_those_that_may_hold_it(names: list[str], said: str) -> None:
    rows = pa.table({name: pa.array(["x"]) for name in names})
    with pytest.raises(DataError, match=rf"missing column item_id .*{re.escape(said)}$"):
        validate_table(rows, SCHEMAS["events"])


def test_misspelt_optional_column_is_no_attribute() -> None:
    rows = texts(VALID["items"]).rename_columns(["item_id", "category", "price", "available", "Sensitive"])
    with pytest.raises(DataError, match="column 'Sensitive' must be called sensitive"):
        validate_table(rows, SCHEMAS["items"])


def test_absent_end_of_consents_is_an_error() -> None:
    rows = {name: values for name, values in VALID["consents"].items() if name != "valid_to"}
    with pytest.raises(DataError, match="missing column valid_to"):
        validated("consents", rows, "drop")


def test_column_that_stands_twice_is_an_error() -> None:
    rows = texts(VALID["events"]).append_column("ts", pa.array([TIME] * 3))
    with pytest.raises(DataError, match="column ts stands more than once"):
        validate_table(rows, SCHEMAS["events"])


def test_attributes_stay_as_they_are_and_other_extra_columns_go() -> None:
    ages = pa.array([30, None], pa.int8())
    table, _ = validate_table(texts(VALID["customers"]).append_column("age", ages), SCHEMAS["customers"])
    assert table.column_names == ["customer_id", "age_band", "age"]
    assert table["age"].combine_chunks().equals(ages)
    events = texts(VALID["events"]).append_column("referrer", pa.array(["a", "b", "c"]))
    assert validate_table(events, SCHEMAS["events"])[0].column_names == list(VALID["events"])


def test_attributes_come_in_types_that_models_read() -> None:
    decimals = pa.array([decimal.Decimal("1234.50"), None])
    views = pa.array(["a", None]).cast(pa.string_view())
    rows = texts(VALID["customers"]).append_column("income", decimals).append_column("city", views)
    table, _ = validate_table(rows, SCHEMAS["customers"])
    assert table["income"].combine_chunks().equals(pa.array([1234.5, None]))
    assert table["city"].combine_chunks().equals(pa.array(["a", None]))


@pytest.mark.parametrize("name", ["events", "orders", "consents"])
@pytest.mark.parametrize("on_bad_rows", ["error", "drop"])
def test_empty_required_table_is_an_error(name: str, on_bad_rows: str) -> None:
    with pytest.raises(DataError, match=f"table {name}: empty table"):
        validated(name, {column: [] for column in VALID[name]}, on_bad_rows)


def test_empty_optional_table_is_fine() -> None:
    table, report = validated("items", {column: [] for column in VALID["items"]})
    assert table.num_rows == 0
    assert report.ok


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="on_bad_rows"):
        validated("events", VALID["events"], "ignore")


@pytest.mark.parametrize(
    ("name", "key"),
    [("orders", "customer_id, order_id, line_id"), ("items", "item_id"), ("customers", "customer_id"),
     ("identities", "visitor_id, customer_id, linked_at")],
)  # fmt: skip
def test_repeated_key_is_an_error_and_the_first_row_stays(name: str, key: str) -> None:
    rows = texts(VALID[name])
    twice = pa.concat_tables([rows, rows])
    with pytest.raises(DataError) as caught:
        validate_table(twice, SCHEMAS[name])
    assert f"table {name}, column {key}, row {rows.num_rows + 1}: duplicate key" in str(caught.value)
    table, report = validate_table(twice, SCHEMAS[name], "drop")
    assert table.equals(validate_table(rows, SCHEMAS[name])[0])
    assert [failure.count for failure in report.failures] == [rows.num_rows]


def test_repeated_consent_records_are_left_to_the_ledger() -> None:
    rows = texts(VALID["consents"])
    assert (
        validate_table(pa.concat_tables([rows, rows]), SCHEMAS["consents"])[0].num_rows == 2 * rows.num_rows
    )


def test_dropping_counts_by_rule_and_names_the_first() -> None:
    rows = changed("orders", "quantity", "-5", row=1)
    rows["status"][1] = "lost"
    rows["quantity"][2] = "-6"
    table, report = validated("orders", rows, "drop")
    assert table["order_id"].to_pylist() == ["o1"]
    assert report.rows_in == {"orders": 3}
    assert report.rows_kept == {"orders": 1}
    found = {
        (failure.column, failure.rule): (failure.count, failure.first.row, failure.first.form)
        for failure in report.failures
    }
    assert found == {
        ("quantity", Rule.BELOW_MINIMUM): (2, 2, "-9"),
        ("status", Rule.UNKNOWN_VALUE): (1, 2, "aaaa"),
    }
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


def test_a_table_of_which_no_row_is_left_is_an_error() -> None:
    rows = changed("events", "ts", "?", row=0)
    rows["ts"] = ["?"] * 3
    with pytest.raises(DataError, match="none of its 3 rows keeps the contract"):
        validated("events", rows, "drop")


def test_long_values_are_cut_and_persons_are_never_quoted() -> None:
    _, report = validated("events", changed("events", "event_type", "x" * 500), "drop")
    assert (report.failures[0].first.value, report.failures[0].first.form) == (None, "a" * 60)
    items = changed("items", "price", "x" * 500)
    assert validated("items", items, "drop")[1].failures[0].first.value == "x" * 60
    ids = pa.array([1234.5, 1.0, 2.0])
    rows = texts(VALID["events"]).set_column(0, "visitor_id", ids)
    with pytest.raises(DataError) as caught:
        validate_table(rows, SCHEMAS["events"])
    assert "column visitor_id, row 1: wrong type" in str(caught.value)
    assert "1234.5" not in str(caught.value)


# --- dropping fails closed -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["denied", "withdrawn", "objected", "lifted", "grnated", None])
def test_a_bad_consent_row_that_may_forbid_is_never_dropped(state: str | None) -> None:
    rows = changed("consents", "valid_from", "soon")
    rows["state"][0] = state
    with pytest.raises(DataError, match=r"table consents, column .*, row 1: .*may not be dropped"):
        validated("consents", rows, "drop")


@pytest.mark.parametrize("permission", ["parental", "fusion", "ads", "model", "newsletter", None])
def test_a_bad_grant_that_can_forbid_when_it_ends_is_never_dropped(permission: str | None) -> None:
    rows = changed("consents", "valid_from", "soon")
    rows["permission"][0] = permission
    with pytest.raises(DataError, match="may not be dropped"):
        validated("consents", rows, "drop")


def test_a_bad_grant_of_an_unknown_subject_is_never_dropped() -> None:
    with pytest.raises(DataError, match="may not be dropped"):
        validated("consents", changed("consents", "subject_id", None), "drop")


def test_with_a_bad_grant_go_the_other_grants_of_its_subject() -> None:
    # The bad grant may have been the later one, and have ended: the earlier one may not come back to life.
    rows = consents(
        ("r1", "c1", "crm", "granted", TIME),
        ("r2", "c1", "crm", "granted", "soon"),
        ("r3", "c1", "contact:email", "withdrawn", TIME),
        ("r4", "c2", "crm", "granted", TIME),
    )
    table, report = validated("consents", rows, "drop")
    assert table["record_id"].to_pylist() == ["r3", "r4"]
    assert {(failure.rule, failure.count) for failure in report.failures} == {
        (Rule.UNPARSABLE_TIME, 1),
        (Rule.BESIDE_A_BAD_ROW, 1),
    }


def test_a_bad_grant_may_not_hide_a_conflict_of_record_ids() -> None:
    rows = consents(("r1", "c1", "crm", "granted", TIME), ("r1", "c2", "crm", "granted", "soon"))
    with pytest.raises(DataError, match="row 1: duplicate key; a bad row has the same record_id"):
        validated("consents", rows, "drop")


@given(st.data())
def test_dropping_never_leaves_a_subject_more_grants_and_loses_no_refusal(data: st.DataObject) -> None:
    row = st.tuples(
        st.sampled_from(["c1", "c2", "c3"]),
        st.sampled_from(["crm", "contact:email", "fusion", "parental", "nonsense"]),
        st.sampled_from(["granted", "denied", "withdrawn", "objected", "what"]),
        st.sampled_from([TIME, TIME, TIME, "bad"]),
    )
    drawn = data.draw(st.lists(row, min_size=1, max_size=8))
    rows = consents(*((f"r{number}", *values) for number, values in enumerate(drawn)))
    try:
        table, _ = validated("consents", rows, "drop")
    except DataError:
        return
    kept = set(table["record_id"].to_pylist())
    harmed = {values[0] for number, values in enumerate(drawn) if f"r{number}" not in kept}
    for number, (subject, permission, state, _) in enumerate(drawn):
        if state != "granted" or permission in ("fusion", "parental"):
            assert f"r{number}" in kept
        if subject in harmed and permission in ("crm", "contact:email") and state == "granted":
            assert f"r{number}" not in kept


@pytest.mark.parametrize(
    ("sensitive", "may_go"), [("true", False), ("yes", False), ("false", True), (None, True)]
)
def test_a_bad_item_row_goes_only_if_it_is_not_sensitive(sensitive: str | None, may_go: bool) -> None:
    rows = changed("items", "price", "-1")
    rows["sensitive"][0] = sensitive
    if may_go:
        assert validated("items", rows, "drop")[0]["item_id"].to_pylist() == ["i2"]
    else:
        with pytest.raises(DataError, match=r"row 1: .*might be, sensitive"):
            validated("items", rows, "drop")


def test_a_repeated_sensitive_item_is_never_dropped() -> None:
    rows = {name: [*values, values[0]] for name, values in VALID["items"].items()}
    rows["sensitive"][2] = "true"
    with pytest.raises(DataError, match="row 3: duplicate key"):
        validated("items", rows, "drop")


def test_with_a_bad_link_go_all_links_of_its_visitor() -> None:
    rows = {
        "visitor_id": ["v1", "v1", "v2"],
        "customer_id": ["c1", "c2", "c3"],
        "linked_at": [TIME, "bad", TIME],
    }
    table, _ = validated("identities", rows, "drop")
    assert table["visitor_id"].to_pylist() == ["v2"]


def test_a_bad_link_of_an_unknown_visitor_is_never_dropped() -> None:
    with pytest.raises(DataError, match=r"column visitor_id, row 1: null.*may not be dropped"):
        validated("identities", changed("identities", "visitor_id", None), "drop")


# --- any single cell -----------------------------------------------------------------------------------

CELLS = [
    (name, column) for name, rows in VALID.items() for column in rows if column in SCHEMAS[name].column_names
]
JUNK = st.one_of(
    st.none(),
    st.text(max_size=12),
    st.sampled_from(
        ["nan", "-1", "1e999", "0", "1.0", "true", "2026-13-01T00:00:00Z", "1969-01-01T00:00:00Z", TIME]
    ),
)


@given(st.sampled_from(CELLS), st.data(), JUNK)
def test_any_changed_cell_is_accepted_or_gives_one_failure_at_its_place(
    cell: tuple[str, str], data: st.DataObject, value: str | None
) -> None:
    name, column = cell
    row = data.draw(st.integers(0, len(VALID[name][column]) - 1))
    rows = changed(name, column, value, row)
    refusal = ""
    try:
        table, report = validated(name, rows, "drop")
    except DataError as error:  # a row that may not be dropped
        refusal = str(error)
    if refusal:
        assert f"table {name}, column {column}, row {row + 1}: " in refusal
        return
    own = [failure for failure in report.failures if failure.rule is not Rule.BESIDE_A_BAD_ROW]
    if not own:
        assert table.num_rows == len(rows[column])
        kept = table[column][row].as_py()
        if SCHEMAS[name].columns[SCHEMAS[name].column_names.index(column)].type is ColumnType.TEXT:
            assert kept == (value or None)
        return
    (failure,) = own
    assert failure.count == 1
    assert column in failure.column.split(", ")
    if failure.rule is not Rule.DUPLICATE_KEY:
        assert failure.first.row == row + 1


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        (["1793610060000"], "milliseconds"),
        ([1793610060000], "milliseconds"),
        ([1793610060000.0], "milliseconds"),
        (["1793610060"], "seconds"),
        ([1793610060], "seconds"),
        (["1793610060.125"], "seconds"),
        ([1793610060000000], "microseconds"),
        ([1793610060000000000], "nanoseconds"),
    ],
)
@pytest.mark.parametrize("on_bad_rows", ["error", "drop"])
def test_times_since_1970_are_told_by_their_unit(times: list[Any], unit: str, on_bad_rows: Any) -> None:
    rows = {name: values[:1] for name, values in VALID["events"].items()} | {"ts": times}
    with pytest.raises(DataError, match=f"It looks like {unit} since 1970; in Python ") as found:
        validate_table(pa.table(rows), SCHEMAS["events"], on_bad_rows)
    converted = re.search(r"Python (.*) converts it", str(found.value))
    assert converted is not None
    names = {"datetime": dt.datetime, "timezone": dt.timezone, "value": times[0]}
    assert eval(converted[1], names).startswith("2026-11-02T09:01:00")  # noqa: S307 - ours


@pytest.mark.parametrize("time", ["20260105100000", "05.01.2026", "1793610060000x", "-1793610060000"])
def test_other_times_are_not_taken_for_times_since_1970(time: str) -> None:
    rows = VALID["events"] | {"ts": [time] * 3}
    with pytest.raises(DataError, match="unparsable time") as found:
        validate_table(pa.table(rows), SCHEMAS["events"])
    assert "1970;" not in str(found.value)


def test_numbers_of_as_many_digits_are_no_times() -> None:
    rows = VALID["orders"] | {"quantity": ["1793610060.5"] * 3}
    with pytest.raises(DataError, match="wrong type") as found:
        validate_table(pa.table(rows), SCHEMAS["orders"])
    assert "1970" not in str(found.value)
