"""The gate as SQL: it parses, names only what the tier may read, and on DuckDB lets the same rows pass."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import itertools
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import sqlglot
from breaking import Break, assert_breaks, breaks
from decided_shops import decided_shop
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import consent, day, event, link, order, shop

from consentier.consent import Policy, Switches, Tier
from consentier.consent.lifetimes import Lifetimes
from consentier.errors import ConfigError
from consentier.features import warehouse_sql
from consentier.features.consent_intervals import ConsentTables
from consentier.features.gate import ConsentGate, PermittedRows
from consentier.features.tables import ShopTables
from consentier.features.warehouse_sql import MALFORMED, Dialect, Shown, gate_sql

CUTOFF = 60
TIERS = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED)
MAY_READ = {
    Tier.SESSION: {"events", "items", "consents"},
    Tier.ONLINE: {"events", "items", "consents"},
    Tier.CRM: {"orders", "product_usage", "items", "consents"},
    Tier.FUSED: {"events", "orders", "product_usage", "items", "consents", "identities"},
}
NAMES = ("events", "orders", "product_usage", "items", "identities", "consents")


@functools.cache
def _compiled_once(tier: Tier, dialect: Dialect, shown: Shown, switches: Switches) -> str:
    return compiled(tier, dialect, shown=shown, switches=dataclasses.asdict(switches))


def query_of(
    tier: Tier, dialect: Dialect = Dialect.DUCKDB, shown: Shown = Shown.ROWS, **switches: bool
) -> str:
    """As `compiled`, which costs more than all that DuckDB does, and more than the parser: once each."""
    return _compiled_once(tier, dialect, shown, Switches(**switches))


def compiled(tier: Tier, dialect: Dialect = Dialect.DUCKDB, **options: Any) -> str:
    switches = Switches(**options.pop("switches", {}))
    arguments: dict[str, Any] = {
        "cutoff": day(CUTOFF), "lifetimes": Lifetimes.default(),
        "policy": Policy("test", Policy.default().matrix, switches), **options,
    }  # fmt: skip
    return gate_sql(tier, dialect=dialect, **arguments)


def asked(tables: Mapping[str, pa.Table], query: str) -> list[tuple[Any, ...]]:
    """What DuckDB answers, whose tables are those of a shop."""
    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return connection.execute(query).fetchall()


def in_warehouse(tables: ShopTables) -> dict[str, pa.Table]:
    return {name: getattr(tables, name) for name in NAMES}


def gate(tables: ShopTables, **switches: bool) -> ConsentGate:
    policy = Policy("test", Policy.default().matrix, Switches(**switches))
    return ConsentGate(tables, ConsentTables.of_shop(tables, Lifetimes.default()), day(CUTOFF), policy)


def rows_of(permitted: PermittedRows) -> list[tuple[Any, ...]]:
    names = ("person", "session_id", "item_id", "ts", "event_type", "source")
    return sorted(
        map(tuple, zip(*(permitted.rows[name].to_pylist() for name in names), strict=True)), key=repr
    )


# --- what it names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "tier", "shown"),
    [
        (dialect, tier, shown)
        for dialect, tier, shown in itertools.product(Dialect, TIERS, Shown)
        # What is shown is one operation more, and nowhere else so many tables as for fused.
        if Dialect.DUCKDB is dialect or Tier.FUSED is tier or Shown.ROWS is shown
    ],
)
def test_it_is_one_query_of_the_tables_that_the_tier_may_read(
    dialect: Dialect, tier: Tier, shown: Shown
) -> None:
    (query,) = sqlglot.parse(query_of(tier, dialect, shown), read=dialect.value)
    assert isinstance(query, sqlglot.exp.Query)
    within = {each.alias for each in query.find_all(sqlglot.exp.CTE)}
    named = {table.name.lower() for table in query.find_all(sqlglot.exp.Table)} - within
    assert named <= MAY_READ[tier]
    if shown is Shown.ROWS:
        assert named == MAY_READ[tier]


@pytest.mark.parametrize("dialect", Dialect)
def test_tables_go_by_the_warehouses_names_and_missing_ones_are_not_named(dialect: Dialect) -> None:
    left_out = ["product_usage", "items", "consents.jurisdiction", "consents.evidence"]
    query = compiled(Tier.CRM, dialect, names={"orders": "lake.shop.sales"}, without=left_out)
    tables = list(sqlglot.parse_one(query, read=dialect.value).find_all(sqlglot.exp.Table))
    assert [table.name for table in tables if table.db] == ["sales"]
    assert [(table.catalog, table.db) for table in tables if table.db] == [("lake", "shop")]
    assert not {"product_usage", "items", "PRODUCT_USAGE", "ITEMS"} & {table.name for table in tables}
    read = {
        column.name.lower()
        for column in sqlglot.parse_one(query, read=dialect.value).find_all(sqlglot.exp.Column)
    }
    assert {"recorded_at", "valid_from", "customer_id"} <= read


def test_snowflake_is_asked_for_names_in_upper_case() -> None:
    query = sqlglot.parse_one(compiled(Tier.ONLINE, Dialect.SNOWFLAKE), read="snowflake")
    (events,) = (table for table in query.find_all(sqlglot.exp.Table) if table.name == "EVENTS")
    asked_of_it = {
        column.name for column in events.find_ancestor(sqlglot.exp.Select).find_all(sqlglot.exp.Column)
    }  # type: ignore[union-attr]
    assert {"VISITOR_ID", "SESSION_ID", "TS", "ITEM_ID", "EVENT_TYPE"} == {
        name for name in asked_of_it if name.isupper()
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"names": {"event": "web.events"}}, "no table 'event' that the gate reads.*'events'"),
        ({"names": {"events": "a.b.c.d"}}, "'a.b.c.d' is no name"),
        ({"names": {"customers": "crm.customers"}}, "no table 'customers'"),
        ({"names": {"events": ".events"}}, "is no name"),
        ({"without": ["consents"]}, "consents cannot be left out"),
        ({"without": ["events.ts"]}, "events.ts cannot be left out"),
        ({"without": ["consents.jurisdictio"]}, "cannot be left out.*'consents.jurisdiction'"),
    ],
)
def test_what_it_cannot_do_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        compiled(Tier.ONLINE, **options)


def test_the_popular_list_has_no_gate_of_its_own() -> None:
    with pytest.raises(ValueError, match="not trained on rows of persons"):
        compiled(Tier.POPULAR)


def test_a_name_is_no_way_into_the_query() -> None:
    query = compiled(Tier.ONLINE, names={"events": 'events" WHERE 1=1; DROP TABLE x --'})
    (parsed,) = sqlglot.parse(query, read="duckdb")
    assert 'events" WHERE 1=1; DROP TABLE x --' in {
        table.name
        for table in parsed.find_all(sqlglot.exp.Table)  # type: ignore[union-attr]
    }


# --- what it answers ----------------------------------------------------------------------------------------


def check_the_same_rows_pass(seed: int, separate: bool) -> None:
    """In each tier; where purposes are `separate`, those of one source alone take part in fused too."""
    tables = decided_shop(random.Random(seed), people=12, events=120)
    names = ("include_single_source_in_fused", "model_purpose", "fusion_purpose")
    switches = dict.fromkeys(names, separate)
    embedded, warehouse = gate(tables, **switches), in_warehouse(tables)
    for tier in TIERS:
        permitted, known = embedded.permitted(tier), embedded.holders(tier)
        rows, verdicts, holders = (
            asked(warehouse, query_of(tier, shown=shown, **switches))
            for shown in (Shown.ROWS, Shown.VERDICTS, Shown.HOLDERS)
        )
        assert sorted(rows, key=repr) == rows_of(permitted)
        assert {(source, verdict): count for source, verdict, count in verdicts} == {
            (funnel.source, verdict): count
            for funnel in permitted.funnel
            for verdict, count in {**funnel.excluded, "passed": funnel.rows_kept}.items()
            if count
        }
        assert sorted(holders) == sorted(
            zip(*(known[name].to_pylist() for name in known.column_names), strict=True)
        )


@settings(max_examples=4)
@given(st.integers(0, 10_000), st.booleans())
def test_the_same_rows_pass_as_where_models_are_trained(seed: int, separate: bool) -> None:
    check_the_same_rows_pass(seed, separate)


def test_the_shops_are_worth_comparing() -> None:
    """Rows pass in every tier, and others stay out for most reasons."""
    reasons = set()
    for seed in range(2):
        tables = decided_shop(random.Random(seed), people=12, events=120)
        embedded = gate(tables, include_single_source_in_fused=True)
        for tier in TIERS:
            permitted = embedded.permitted(tier)
            assert permitted.rows.num_rows
            reasons |= {reason for funnel in permitted.funnel for reason in funnel.excluded}
    assert {"denied", "withdrawn", "objected", "no consent record", "after the cut-off", "no permission then",
            "sensitive item", "no sign of interest", "minor without parental consent"} <= reasons  # fmt: skip


# --- rows that nobody validated -----------------------------------------------------------------------------


def raw(rows: Sequence[Mapping[str, Any]], like: pa.Table) -> pa.Table:
    """Rows as a warehouse may hold them, broken or not."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=like.schema)


def sound_shop() -> ShopTables:
    return shop(
        events=[event("v1", "a", 20), event("v2", "b", 21)],
        orders=[order("c1", "a", 20)],
        items=[{"item_id": "pills", "sensitive": True}],
        identities=[link("v1", "c1", 5)],
        consents=[consent("v1", "online"), consent("v2", "online"), consent("c1", "crm")],
    )


@pytest.mark.parametrize(
    "broken",
    [
        {"item_id": None}, {"item_id": ""}, {"ts": None}, {"ts": dt.datetime(1969, 5, 1, tzinfo=dt.UTC)},
        {"visitor_id": None}, {"visitor_id": ""}, {"session_id": None}, {"event_type": "poke"},
        {"event_type": None},
    ],
)  # fmt: skip
def test_rows_that_break_the_contract_stay_out(broken: Mapping[str, Any]) -> None:
    warehouse = in_warehouse(sound_shop())
    (row, other) = warehouse["events"].to_pylist()
    warehouse["events"] = raw([{**row, **broken}, other], warehouse["events"])
    assert [passed[0] for passed in asked(warehouse, query_of(Tier.ONLINE))] == ["visitor:v2"]


@pytest.mark.parametrize(
    "broken",
    [
        {"record_id": None}, {"subject_id": ""}, {"subject_kind": "user"}, {"permission": "onlin"},
        {"permission": None}, {"state": "revoked"}, {"state": ""}, {"valid_from": None},
        {"recorded_at": None}, {"valid_from": dt.datetime(1960, 1, 1, tzinfo=dt.UTC)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("tier", [Tier.FUSED])
def test_while_a_decision_cannot_be_read_nobody_permits_anything(
    tier: Tier, broken: Mapping[str, Any]
) -> None:
    warehouse = in_warehouse(sound_shop())
    query = query_of(tier, include_single_source_in_fused=True)
    assert asked(warehouse, query)
    unreadable = {**warehouse["consents"].to_pylist()[0], "record_id": "r9", **broken}
    warehouse["consents"] = raw([*warehouse["consents"].to_pylist(), unreadable], warehouse["consents"])
    assert asked(warehouse, query) == []
    assert asked(warehouse, query_of(tier, shown=Shown.HOLDERS)) == []
    verdicts = asked(warehouse, query_of(tier, shown=Shown.VERDICTS))
    assert {verdict for _, verdict, _ in verdicts} == {MALFORMED}


@pytest.mark.parametrize("tier", [Tier.SESSION, Tier.ONLINE, Tier.CRM])
def test_that_holds_for_every_tier(tier: Tier) -> None:
    test_while_a_decision_cannot_be_read_nobody_permits_anything(tier, {"subject_id": ""})


@pytest.mark.parametrize("visitor", [None, ""])
def test_while_a_login_names_no_device_nobody_is_joined(visitor: str | None) -> None:
    """It might be the second customer of a device, which then links to neither."""
    warehouse = in_warehouse(sound_shop())
    assert asked(warehouse, query_of(Tier.FUSED))
    login = {**warehouse["identities"].to_pylist()[0], "visitor_id": visitor, "customer_id": "c2"}
    warehouse["identities"] = raw([*warehouse["identities"].to_pylist(), login], warehouse["identities"])
    assert asked(warehouse, query_of(Tier.FUSED)) == []
    assert {verdict for _, verdict, _ in asked(warehouse, query_of(Tier.FUSED, shown=Shown.VERDICTS))} == {
        "unlinked"
    }
    assert asked(warehouse, query_of(Tier.CRM))


def without(table: pa.Table, names: Collection[str]) -> pa.Table:
    return table.drop_columns(list(names))


def test_optional_tables_and_columns_need_not_be_there() -> None:
    tables = sound_shop()
    gone = ["basis", "jurisdiction", "double_opt_in_at", "collected_by", "policy_version", "evidence"]
    warehouse = {
        "events": tables.events, "orders": tables.orders, "consents": without(tables.consents, gone),
    }  # fmt: skip
    left_out = ["items", "product_usage", "identities", *(f"consents.{name}" for name in gone)]
    for tier in (Tier.ONLINE, Tier.CRM):
        assert sorted(asked(warehouse, compiled(tier, without=left_out)), key=repr) == rows_of(
            gate(tables).permitted(tier)
        )
    assert asked(warehouse, compiled(Tier.FUSED, without=left_out)) == []


# --- would the tests notice? --------------------------------------------------------------------------------


@breaks(
    Break(
        "an unreadable decision is passed over",
        warehouse_sql._Warehouse.gate_tables,
        "held = subjects.held & sound",
        "held = subjects.held",
        lambda: test_while_a_decision_cannot_be_read_nobody_permits_anything(
            Tier.ONLINE, {"state": "revoked"}
        ),
    ),
    Break(
        "links hold beside an unreadable decision",
        warehouse_sql._Warehouse.gate_tables,
        "links=links.filter(sound)",
        "links=links",
        lambda: test_while_a_decision_cannot_be_read_nobody_permits_anything(Tier.FUSED, {"subject_id": ""}),
    ),
    Break(
        "links hold beside a login on an unknown device",
        warehouse_sql._Warehouse._standings,
        "links.filter(known)",
        "links",
        lambda: test_while_a_login_names_no_device_nobody_is_joined(None),
    ),
    Break(
        "rows without an item pass",
        warehouse_sql._Warehouse._sound_usage,
        "table.ts >= 0, *(table[column].notnull() for column in table.columns)",
        "table.ts >= 0",
        lambda: test_rows_that_break_the_contract_stay_out({"item_id": ""}),
    ),
    Break(
        "grants do not age",
        warehouse_sql._lifetime_expression,
        "else rule.days * DAY",
        "else FOREVER",
        lambda: check_an_old_grant_has_expired(),
    ),
)
def test_a_weaker_query_would_be_noticed(broken: Break) -> None:
    def check(run: Callable[[], None]) -> None:
        _compiled_once.cache_clear()
        run()

    assert_breaks(check, st.nothing(), broken)
    _compiled_once.cache_clear()


def check_an_old_grant_has_expired() -> None:
    tables = shop(
        events=[event("v1", "a", 20)],
        consents=[{**consent("v1", "online", at=-500), "collected_by": "banner"}],
    )
    assert (
        asked(in_warehouse(tables), query_of(Tier.ONLINE))
        == rows_of(gate(tables).permitted(Tier.ONLINE))
        == []
    )


def test_an_old_grant_has_expired() -> None:
    check_an_old_grant_has_expired()
