"""Public data sets, brought into the data contract.

Each adapter reads the Parquet files of one data set and returns the tables of the contract; `import_dataset`
writes them as a shop's directory, with a configuration that holds the data set's own temporal split. The page
``docs/datasets.md`` says which files and columns each adapter reads, and what in the result is not original.

None of these data sets says who permitted what, and without consents there is no training. So every subject
gets one grant, and each says what it is: ``collected_by`` and ``policy_version`` are ``benchmark``, ``basis``
is ``synthetic``, and `SYNTHETIC_EVIDENCE` is the evidence. The gate treats them as any other record.

Cost: linear in the rows, and vectorised. Memory: the data set, some three times.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from consentier.errors import DataError
from consentier.features.directories import require_free, write_text, written_beside
from consentier.features.schemas import SCHEMAS
from consentier.features.tables import write_tables
from consentier.features.validation import validate_table

__all__ = ["ADAPTERS", "SYNTHETIC_EVIDENCE", "Adapter", "import_dataset"]

SYNTHETIC_EVIDENCE = "synthetic: data set has no consents; for benchmarking only"
"""The evidence of every grant that an adapter makes up."""

Tables = dict[str, pa.Table]

_TIME = pa.timestamp("us", tz="UTC")
_YEAR_10000 = 253_402_300_800  # seconds since the Unix epoch; the contract's times end before it
_CONFIG_FILE = "consentier.toml"

# Data sets that tell no times. Each part of their published split stands on one day; the year is far from any
# real one, so that nobody takes the times for data.
_TRAINING_DAY = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_VALIDATION_DAY = dt.datetime(2000, 1, 2, tzinfo=dt.UTC)
_TEST_DAY = dt.datetime(2000, 1, 3, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class Adapter:
    """How one public data set becomes a shop.

    Attributes
    ----------
    name, doc
        What it is called, and one line on what it holds.
    convert
        From the folder of the data set to validated tables of the contract, by name. Raises `DataError`.
    cutoff, horizon_days
        The data set's temporal split: rows before `cutoff` are for training, those of the `horizon_days` days
        from it on are for testing.
    """

    name: str
    doc: str
    convert: Callable[[Path], Tables]
    cutoff: dt.datetime
    horizon_days: int


def import_dataset(name: str, source: str | Path, out: str | Path, *, force: bool = False) -> dict[str, int]:
    """Convert a public data set and write it as a shop's directory.

    `out` gets one Parquet file per table and ``consentier.toml`` with the cut-off and the horizon of the
    split. All of it appears by one rename, or nothing does.

    Parameters
    ----------
    name
        One of `ADAPTERS`.
    source
        The folder that holds the data set's files.
    out
        The directory to write; its parents are made where absent.
    force
        Replace `out` as a whole, whatever it holds. Otherwise it must be absent or empty.

    Returns
    -------
    dict
        Rows by table.

    Raises
    ------
    DataError
        If no adapter has that name, a file or column is missing or of another type, the rows break the data
        contract or do not fit the split, or `out` is in the way or cannot be written.
    TypeError
        If `source` or `out` is no path.
    """
    adapter = _adapter(name)
    source, out = Path(source), Path(out).resolve()
    require_free(out, force=force)  # before any work
    tables = adapter.convert(source)
    _require_split(adapter, source, tables)
    with written_beside(out, force=force) as beside:
        write_tables(tables, beside)
        write_text(beside / _CONFIG_FILE, _config_text(adapter))
    return {table: rows.num_rows for table, rows in tables.items()}


def _adapter(name: str) -> Adapter:
    if name in ADAPTERS:
        return ADAPTERS[name]
    near = difflib.get_close_matches(name.casefold().replace("-", "_"), ADAPTERS, n=1, cutoff=0.5)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"there is no adapter for a data set {name!r}.{meant} There are: {', '.join(ADAPTERS)}")


def _require_split(adapter: Adapter, source: Path, tables: Tables) -> None:
    """Refuse rows that the split does not fit: the evaluation would be about something else."""
    times = _times_of(tables)
    earliest, latest = (instant.as_py() for instant in pc.min_max(times).values())
    end = adapter.cutoff + dt.timedelta(days=adapter.horizon_days)
    if not earliest < adapter.cutoff <= latest < end:
        raise DataError(
            f"{source}: column ts: the rows lie between {earliest.isoformat()} and {latest.isoformat()}, but "
            f"{adapter.name} is split at {adapter.cutoff.isoformat()} and ends before {end.isoformat()}: "
            "give the whole data set, and nothing else"
        )


def _times_of(tables: Mapping[str, pa.Table]) -> pa.ChunkedArray:
    named = ("events", "orders", "product_usage")
    return pa.chunked_array(
        [chunk for name in named if name in tables for chunk in tables[name]["ts"].chunks], _TIME
    )


# --- writing ----------------------------------------------------------------------------------------------


def _config_text(adapter: Adapter) -> str:
    return (
        f"# The temporal split of the data set {adapter.name}. Its consents are synthetic.\n"
        f"[training]\ncutoff = {adapter.cutoff.isoformat()}\n\n"
        f"[evaluation]\nhorizon_days = {adapter.horizon_days}\n"
    )


# --- reading ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """A type that a column of a source may have, and the one in which it is read."""

    expected: str
    accepts: Callable[[pa.DataType], bool]
    arrow: pa.DataType


def _is_text(type_: pa.DataType) -> bool:
    if pt.is_dictionary(type_):
        type_ = type_.value_type
    return bool(pt.is_string(type_) or pt.is_large_string(type_))


_INTEGER = _Kind("integers", pt.is_integer, pa.int64())
_NUMBER = _Kind("numbers", lambda type_: pt.is_integer(type_) or pt.is_floating(type_), pa.float64())
_SECONDS = _Kind("seconds since the Unix epoch", _NUMBER.accepts, pa.float64())
_TEXT = _Kind("texts", _is_text, pa.string())
_INSTANT = _Kind(
    "instants (timestamp in UTC)",
    lambda type_: pt.is_timestamp(type_) and type_.tz in ("UTC", "+00:00"),
    _TIME,
)
_DATE = _Kind("dates", pt.is_date, pa.date32())


def _read(path: Path, columns: Mapping[str, _Kind]) -> pa.Table:
    """Read the named columns of a Parquet file, in their order; at least one row."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file: give the folder of the data set; this file must have the columns "
            f"{', '.join(columns)}"
        )
    try:
        there = pq.read_schema(path)
        _check_columns(path, there, columns)
        table = pq.read_table(path, columns=list(columns))
        table = table.select(list(columns))
        table = table.cast(pa.schema([(name, kind.arrow) for name, kind in columns.items()]))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}. Write it again as Parquet") from error
    if not table.num_rows:
        raise DataError(f"{path}: empty table: it must have at least one row")
    for name, kind in columns.items():
        if kind is _NUMBER:
            _require(path, name, pc.is_finite(table[name]), "a finite number")
        elif kind is _SECONDS:
            past, future = pc.less(table[name], 0), pc.greater_equal(table[name], _YEAR_10000)
            good = pc.and_(pc.is_finite(table[name]), pc.invert(pc.or_(past, future)))
            _require(path, name, good, "seconds since the Unix epoch, up to the year 9999")
    return table


def _check_columns(path: Path, there: pa.Schema, columns: Mapping[str, _Kind]) -> None:
    for name, kind in columns.items():
        if name not in there.names:
            raise DataError(
                f"{path}: missing column {name}: it must hold {kind.expected}; the file has "
                f"{', '.join(there.names)}"
            )
        if not kind.accepts(there.field(name).type):
            raise DataError(
                f"{path}, column {name}: wrong type {there.field(name).type}: it must hold {kind.expected}"
            )


def _require(path: Path, column: str, good: pa.ChunkedArray, expected: str) -> None:
    """Refuse the first row that is not good. Nulls are judged by the contract instead."""
    bad = pc.fill_null(pc.invert(good), False)
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py() + 1
        raise DataError(f"{path}, column {column}, row {row}: must be {expected}")


# --- building ---------------------------------------------------------------------------------------------


def _shop(source: Path, **tables: pa.Table) -> Tables:
    """Hold tables to the contract and add a grant for every subject."""
    try:
        valid = {
            name: validate_table(tables[name], schema)[0]
            for name, schema in SCHEMAS.items()
            if name in tables
        }
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    return valid | {"consents": _grants(valid)}


def _grants(tables: Tables) -> pa.Table:
    """One grant per visitor (online) and customer (crm), from a day before the first row, without end."""
    since = pc.min(_times_of(tables)).as_py() - dt.timedelta(days=1)
    parts = []
    for kind, permission in (("visitor", "online"), ("customer", "crm")):
        subjects = _distinct(
            [table[f"{kind}_id"] for table in tables.values() if f"{kind}_id" in table.column_names]
        )
        parts.append(_grants_of(subjects, kind, permission, since))
    return pa.concat_tables(parts)


def _grants_of(subjects: pa.Array, kind: str, permission: str, since: dt.datetime) -> pa.Table:
    def every(value: object, type_: pa.DataType | None = None) -> pa.Array:
        return pa.repeat(pa.scalar(value, type_ or pa.string()), len(subjects))

    return pa.table(
        {
            "record_id": _prefixed(f"benchmark:{kind}:", subjects),
            "subject_id": subjects,
            "subject_kind": every(kind),
            "permission": every(permission),
            "state": every("granted"),
            "valid_from": every(since, _TIME),
            "valid_to": every(None, _TIME),
            "recorded_at": every(since, _TIME),
            "basis": every("synthetic"),
            "jurisdiction": every(None),
            "double_opt_in_at": every(None, _TIME),
            "collected_by": every("benchmark"),
            "policy_version": every("benchmark"),
            "evidence": every(SYNTHETIC_EVIDENCE),
        }
    )


def _distinct(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    chunks = [chunk for column in columns for chunk in column.chunks]
    values = pc.unique(pa.chunked_array(chunks, pa.string()))
    return values.take(pc.sort_indices(values))


def _prefixed(prefix: str, texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.binary_join_element_wise(prefix, texts, "")


def _ids(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    return numbers.cast(pa.string())


def _every(value: str | int | None, table: pa.Table, type_: pa.DataType | None = None) -> pa.Array:
    """A column for `table` with one value throughout."""
    return pa.repeat(pa.scalar(value, type_), table.num_rows)


def _noon(day: dt.datetime, table: pa.Table) -> pa.Array:
    """A column for `table` with the middle of a synthetic day throughout."""
    return pa.repeat(pa.scalar(day + dt.timedelta(hours=12), _TIME), table.num_rows)


def _line_numbers(*keys: pa.ChunkedArray) -> pa.Array:
    """Number the rows that share their keys, from 1 and in the order in which they stand."""
    joined = pc.binary_join_element_wise(*keys, "\x1f", null_handling="replace")
    codes = joined.combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.searchsorted(ordered, ordered, side="left")
    numbers = np.empty(codes.size, np.int64)
    numbers[order] = np.arange(1, codes.size + 1) - first
    return pa.array(numbers).cast(pa.string())


def _decoded(path: Path, column: str, codes: pa.ChunkedArray, words: Mapping[int, str]) -> pa.ChunkedArray:
    places = pc.index_in(codes, value_set=pa.array(list(words), pa.int64()))
    _require(path, column, pc.or_(places.is_valid(), codes.is_null()), f"one of {', '.join(map(str, words))}")
    return pa.chunked_array([pa.array(list(words.values()))]).take(places)


def _first_seen(visitors: pa.Table, tables: Mapping[str, pa.Table]) -> pa.ChunkedArray:
    """For each pair of visitor and customer, the first row of either: the two are one from the beginning."""
    times = []
    for key, table in tables.items():
        first = table.group_by(key).aggregate([("ts", "min")])
        micros = first["ts_min"].cast(pa.int64())
        times.append(micros.take(pc.index_in(visitors[key], value_set=first[key])))
    return pc.min_element_wise(*times).cast(_TIME)


# --- click logs -------------------------------------------------------------------------------------------

_CLICKS = {"session_id": _INTEGER, "item_id": _INTEGER, "pos": _INTEGER, "ts": _SECONDS}


def _click_log(cutoff: dt.datetime) -> Callable[[Path], Tables]:
    """An adapter for sessions of clicks whose published split is that instant. There are no users."""

    def convert(source: Path) -> Tables:
        train, test = (_read(source / f"{part}.parquet", _CLICKS) for part in ("train", "test"))
        instant = cutoff.timestamp()
        _require(
            source / "train.parquet", "ts", pc.less(train["ts"], instant), f"before {cutoff.isoformat()}"
        )
        _require(
            source / "test.parquet", "ts", pc.greater_equal(test["ts"], instant), "after all of training"
        )
        clicks = pa.concat_tables([train, test])
        microseconds = pc.round(pc.multiply(clicks["ts"], 1e6)).cast(pa.int64())
        # The position breaks ties, so that clicks of one second keep their order within the session.
        ts = pc.add(microseconds, clicks["pos"]).cast(_TIME)
        sessions = _ids(clicks["session_id"])
        return _shop(source, events=_events(sessions, sessions, ts, clicks, "view"))

    return convert


def _events(
    visitors: pa.ChunkedArray,
    sessions: pa.Array | pa.ChunkedArray,
    ts: pa.Array | pa.ChunkedArray,
    rows: pa.Table,
    event_type: str,
) -> pa.Table:
    return pa.table(
        {
            "visitor_id": visitors,
            "session_id": sessions,
            "ts": ts,
            "item_id": _ids(rows["item_id"]),
            "event_type": _every(event_type, rows),
        }
    )


# --- pairs of user and item, without times ----------------------------------------------------------------

_PAIRS = {"user_id": _INTEGER, "item_id": _INTEGER}


def _gowalla(source: Path) -> Tables:
    return _shop(source, orders=_orders_of_parts(source, {"train": _TRAINING_DAY, "test": _TEST_DAY}))


_AGE_BANDS = {
    1: "under 18",
    18: "18-24",
    25: "25-34",
    35: "35-44",
    45: "45-49",
    50: "50-55",
    56: "56 and over",
}
_OCCUPATIONS = dict(
    enumerate(
        (
            "other", "academic or educator", "artist", "clerical or administration",
            "college or graduate student", "customer service", "doctor or health care",
            "executive or managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer",
            "retired", "sales or marketing", "scientist", "self-employed", "technician or engineer",
            "tradesman or craftsman", "unemployed", "writer",
        )
    )
)  # fmt: skip


def _movielens1m(source: Path) -> Tables:
    days = {
        "train": _TRAINING_DAY,
        "val_foldin": _TRAINING_DAY,
        "test_foldin": _TRAINING_DAY,
        "val_heldout": _VALIDATION_DAY,
        "test_heldout": _TEST_DAY,
    }
    return _shop(
        source,
        orders=_orders_of_parts(source, days),
        customers=_movielens_customers(source / "users.parquet"),
        items=_movielens_items(source / "movies.parquet"),
    )


def _orders_of_parts(source: Path, days: Mapping[str, dt.datetime]) -> pa.Table:
    """The pairs of each part of a split, all on the day of that part."""
    parts = []
    for part, day in days.items():
        pairs = _read(source / f"{part}.parquet", _PAIRS)
        parts.append(_single_line_orders(pairs, _noon(day, pairs), part))
    return pa.concat_tables(parts)


def _single_line_orders(pairs: pa.Table, ts: pa.Array, part: str) -> pa.Table:
    """An order per pair: nothing says which were bought together."""
    numbers = pa.array(np.arange(1, pairs.num_rows + 1)).cast(pa.string())
    return pa.table(
        {
            "customer_id": _ids(pairs["user_id"]),
            "order_id": _prefixed(f"{part}-", numbers),
            "line_id": _every("1", pairs),
            "ts": ts,
            "item_id": _ids(pairs["item_id"]),
            "quantity": _every(1, pairs),
            "price": _every(None, pairs, pa.float64()),
            "status": _every("ordered", pairs),
        }
    )


def _movielens_customers(path: Path) -> pa.Table:
    users = _read(
        path, {"user_id": _INTEGER, "gender": _TEXT, "age": _INTEGER, "occupation": _INTEGER, "zip": _TEXT}
    )
    return pa.table(
        {
            "customer_id": _ids(users["user_id"]),
            "gender": users["gender"],
            "age_band": _decoded(path, "age", users["age"], _AGE_BANDS),
            "occupation": _decoded(path, "occupation", users["occupation"], _OCCUPATIONS),
            "region": pc.utf8_slice_codeunits(users["zip"], 0, 1),
        }
    )


def _movielens_items(path: Path) -> pa.Table:
    movies = _read(path, {"item_id": _INTEGER, "title": _TEXT, "genres": _TEXT})
    return pa.table(
        {
            "item_id": _ids(movies["item_id"]),
            "category": pc.list_element(pc.split_pattern(movies["genres"], "/"), 0),
            "title": movies["title"],
            "genres": movies["genres"],
        }
    )


def _taobao(source: Path) -> Tables:
    carts = _read(source / "carts.parquet", _PAIRS)
    orders = _orders_of_parts(source, {"orders_train": _TRAINING_DAY, "orders_test": _TEST_DAY})
    visitors = _pseudonyms(carts["user_id"])
    # A visit per cart, as an order per pair: nothing says which belong together.
    visits = pc.binary_join_element_wise(visitors, _line_numbers(visitors), "-")
    events = _events(visitors, visits, _noon(_TRAINING_DAY, carts), carts, "cart")
    users = pc.unique(carts["user_id"])
    identities = pa.table(
        {
            "visitor_id": _pseudonyms(pa.chunked_array([users])),
            "customer_id": users.cast(pa.string()),
            "linked_at": pa.repeat(pc.min(events["ts"]), len(users)),
            "evidence": pa.repeat("synthetic: one user of the data set", len(users)),
        }
    )
    return _shop(source, events=events, orders=orders, identities=identities)


def _pseudonyms(users: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids for visitors that do not show the user's number, so that only the link joins the two."""
    known = pc.unique(users)
    names = [f"v{hashlib.sha256(f'taobao:{user}'.encode()).hexdigest()[:16]}" for user in known.to_pylist()]
    return pa.chunked_array([pa.array(names, pa.string())]).take(pc.index_in(users, value_set=known))


# --- shops ------------------------------------------------------------------------------------------------

_ORDER_LINES = {
    "customer_id": _TEXT, "order_id": _TEXT, "ts": _INSTANT, "item_id": _TEXT, "quantity": _INTEGER,
}  # fmt: skip


def _jdata(source: Path) -> Tables:
    orders = _read(source / "orders.parquet", _ORDER_LINES | {"price": _NUMBER})
    events = _jdata_events(source / "events.parquet")
    links = _read(source / "identities.parquet", {"visitor_id": _TEXT, "customer_id": _TEXT})
    customers = _read(
        source / "customers.parquet",
        {"customer_id": _TEXT, "age_band": _TEXT, "gender": _TEXT, "member_level": _INTEGER,
         "registered_on": _DATE},
    )  # fmt: skip
    registered = customers.column_names.index("registered_on")
    customers = customers.set_column(registered, "registered_year", pc.year(customers["registered_on"]))
    items = _read(
        source / "items.parquet",
        {"item_id": _TEXT, "category": _TEXT, "brand": _TEXT, "price": _NUMBER}
        | dict.fromkeys(("a1", "a2", "a3"), _INTEGER),
    )
    first_seen = _first_seen(links, {"visitor_id": events, "customer_id": orders})
    links = links.append_column("linked_at", first_seen)
    links = links.append_column("evidence", _every("synthetic: one user of the data set", links))
    return _shop(
        source,
        events=events,
        orders=_with_lines(orders, _every("ordered", orders)),
        customers=customers,
        items=items,
        identities=links,
    )


def _jdata_events(path: Path) -> pa.Table:
    events = _read(
        path,
        {"visitor_id": _TEXT, "session_id": _TEXT, "ts": _INSTANT, "item_id": _TEXT, "event_type": _TEXT},
    )
    types = events["event_type"]
    types = pc.if_else(pc.equal(types, "remove_from_cart"), "remove", types)
    return events.set_column(events.column_names.index("event_type"), "event_type", types)


def _with_lines(orders: pa.Table, status: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Lines that repeat an item of their order are lines of their own, as the source has them."""
    lines = _line_numbers(orders["customer_id"], orders["order_id"])
    return orders.append_column("line_id", lines).append_column("status", status)


_BOOKKEEPING = ("POST", "DOT", "C2", "M", "D", "BANK CHARGES", "CRUK")
"""Codes of Online Retail for postage, carriage, corrections, discounts and charges: nothing to recommend."""


def _online_retail(source: Path) -> Tables:
    orders = _read(source / "orders.parquet", _ORDER_LINES | {"price": _NUMBER})
    cancelled = pc.or_(pc.less(orders["quantity"], 0), pc.starts_with(orders["order_id"], "C"))
    quantity = orders.column_names.index("quantity")
    orders = orders.set_column(quantity, "quantity", pc.abs(orders["quantity"]))
    items = _read(source / "items.parquet", {"item_id": _TEXT, "name": _TEXT, "price": _NUMBER})
    bookkeeping = pc.is_in(items["item_id"], value_set=pa.array(_BOOKKEEPING))
    return _shop(
        source,
        orders=_with_lines(orders, pc.if_else(cancelled, "cancelled", "ordered")),
        customers=_read(source / "customers.parquet", {"customer_id": _TEXT, "region": _TEXT}),
        items=items.append_column("available", pc.if_else(bookkeeping, False, pa.scalar(None, pa.bool_()))),
    )


_HEALTH_CATEGORIES = (
    "ADULT INCONTINENCE", "ANALGESICS", "ANTACIDS", "COLD AND FLU", "EYE AND EAR CARE PRODUCTS",
    "FAMILY PLANNING", "LAXATIVES", "PHARMACY", "SINUS AND ALLERGY", "SMOKING CESSATIONS",
)  # fmt: skip
"""Categories of Complete Journey that tell about a person's health (CJEU C-21/23): sensitive items."""

_HOUSEHOLD = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp",
              "kids_count")  # fmt: skip
_PRODUCT = ("product_category", "department", "brand", "product_type", "package_size", "manufacturer_id")


def _complete_journey(source: Path) -> Tables:
    orders = _read(source / "orders.parquet", _ORDER_LINES | {"line_value": _NUMBER})
    # Lines of no pieces stand for coupons and the like; the contract's orders are of at least one piece.
    orders = orders.filter(pc.fill_null(pc.not_equal(orders["quantity"], 0), True))
    orders = orders.append_column(
        "price", pc.divide(orders["line_value"], orders["quantity"].cast(pa.float64()))
    )
    items = _read(source / "items.parquet", {"item_id": _TEXT} | dict.fromkeys(_PRODUCT, _TEXT))
    items = items.rename_columns(["item_id", "category", *_PRODUCT[1:]])
    sensitive = pc.is_in(items["category"], value_set=pa.array(_HEALTH_CATEGORIES))
    return _shop(
        source,
        orders=_with_lines(orders, _every("ordered", orders)),
        customers=_read(
            source / "customers.parquet", {"customer_id": _TEXT} | dict.fromkeys(_HOUSEHOLD, _TEXT)
        ),
        items=items.append_column("sensitive", sensitive),
    )


# --- the adapters -----------------------------------------------------------------------------------------

_DIGINETICA_SPLIT = dt.datetime(2016, 5, 25, 0, 1, tzinfo=dt.UTC)
_RETAILROCKET_SPLIT = dt.datetime(2015, 9, 11, 1, 34, tzinfo=dt.UTC)

ADAPTERS: Mapping[str, Adapter] = MappingProxyType(
    {
        adapter.name: adapter
        for adapter in (
            Adapter(
                "diginetica",
                "clicks of a web shop in sessions, without users",
                _click_log(_DIGINETICA_SPLIT),
                _DIGINETICA_SPLIT,
                7,
            ),
            Adapter(
                "retailrocket",
                "views of a web shop in sessions, without users",
                _click_log(_RETAILROCKET_SPLIT),
                _RETAILROCKET_SPLIT,
                8,
            ),
            Adapter("gowalla", "places that users visited, without times", _gowalla, _TEST_DAY, 1),
            Adapter(
                "movielens1m",
                "films that users liked, and attributes of the users, without times",
                _movielens1m,
                _TEST_DAY,
                1,
            ),
            Adapter("taobao", "carts and orders of the same users, without times", _taobao, _TEST_DAY, 1),
            Adapter(
                "jdata",
                "events, orders and attributes of the same users, in three short windows",
                _jdata,
                dt.datetime(2016, 3, 31, tzinfo=dt.UTC),
                2,
            ),
            Adapter(
                "online_retail",
                "a year of orders with cancellations",
                _online_retail,
                dt.datetime(2011, 11, 12, tzinfo=dt.UTC),
                28,
            ),
            Adapter(
                "complete_journey",
                "a year of purchases of households, some with attributes",
                _complete_journey,
                dt.datetime(2017, 12, 5, tzinfo=dt.UTC),
                28,
            ),
        )
    }
)
"""All adapters by name."""
