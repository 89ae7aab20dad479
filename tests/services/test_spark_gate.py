"""The consent gate on Apache Spark: the same expressions let the same rows pass as on DuckDB."""

from __future__ import annotations

import dataclasses
import decimal
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import ibis
import pyarrow as pa
import pytest
from decided_shops import decided_shop
from shops import consent, day, event, link, shop
from spark_sessions import spark_session

from consentier.consent import Policy, Switches, Tier
from consentier.consent.lifetimes import Lifetimes
from consentier.errors import DataError
from consentier.features.consent_intervals import MISSING, ConsentTables
from consentier.features.gate import ConsentGate, PermittedRows
from consentier.features.tables import ShopTables, write_tables

pytestmark = pytest.mark.service("spark")

CUTOFF = 60


@pytest.fixture(scope="module")
def spark() -> Iterator[ibis.BaseBackend]:
    """A Spark in this process."""
    with spark_session() as session:
        yield ibis.pyspark.connect(session)


@pytest.fixture(scope="module")
def tables() -> ShopTables:
    """Some thousand rows."""
    return decided_shop(random.Random(5), people=100, events=2_000)


def gates(tables: ShopTables, spark: ibis.BaseBackend, **switches: bool) -> tuple[ConsentGate, ConsentGate]:
    """The same gate on DuckDB and on Spark."""
    policy = Policy("test", Policy.default().matrix, Switches(**switches))
    embedded = ConsentGate(tables, ConsentTables.of_shop(tables, Lifetimes.default()), day(CUTOFF), policy)
    return embedded, dataclasses.replace(embedded, engine=spark)


def assert_same(one: PermittedRows, other: PermittedRows) -> None:
    """Row by row, in one order, and count by count."""
    assert one.funnel == other.funnel
    assert one.rows.equals(other.rows)
    assert one.attributes == other.attributes


def test_every_tier_gets_the_same_rows(tables: ShopTables, spark: ibis.BaseBackend) -> None:
    embedded, spread = gates(tables, spark)
    reasons: set[str] = set()
    for tier in (Tier.ONLINE, Tier.CRM, Tier.FUSED):
        permitted = embedded.permitted(tier)
        assert_same(permitted, spread.permitted(tier))
        assert permitted.rows.num_rows > 50
        reasons |= {reason for funnel in permitted.funnel for reason in funnel.excluded}
    assert reasons >= {
        "no consent record", "unknown", "denied", "withdrawn", "expired", "objected", "conflicting",
        "minor without parental consent", "model purpose denied", "unlinked", "after the cut-off",
        "no permission then", "sensitive item", "no sign of interest",
    }  # fmt: skip


def test_every_switch_means_the_same(tables: ShopTables, spark: ibis.BaseBackend) -> None:
    switches = ("model_purpose", "fusion_purpose", "include_single_source_in_fused", "anonymous_statistics")
    embedded, spread = gates(tables, spark, **dict.fromkeys(switches, True))
    assert_same(embedded.permitted(Tier.FUSED), spread.permitted(Tier.FUSED))
    strangers = embedded.anonymous_rows()
    assert_same(strangers, spread.anonymous_rows())
    assert strangers.rows.num_rows


def test_a_text_that_is_missing_is_missing_there_too(spark: ibis.BaseBackend) -> None:
    """A shared device is marked by a login without a customer, a record may come without evidence."""
    tables = shop(
        events=[event("v1", "a", 5), event("v2", "a", 5)],
        identities=[link("v1", "c1"), link("v2", "c2")],
        consents=[consent(who, permission) for who, permission in _BOTH]
        + [{**consent("v2", "online", "objected", 3), "evidence": None}]
        + [{**consent("v2", "online", "lifted", 4), "evidence": None}],
    )
    taken = ConsentTables.of_shop(tables, Lifetimes.default())
    shared = {"visitor_id": ["v1"], "customer_id": [MISSING], "linked_at": [0], "evidence": [MISSING]}
    marked = pa.concat_tables([taken.links, pa.table(shared, schema=taken.links.schema)])
    consents = dataclasses.replace(taken, links=marked)
    embedded = ConsentGate(tables, consents, day(CUTOFF), Policy.default())
    there = dataclasses.replace(embedded, engine=spark).permitted(Tier.FUSED)
    assert_same(embedded.permitted(Tier.FUSED), there)
    assert there.funnel[0].excluded == {"unlinked": 1, "objected": 1}


def test_a_table_that_spark_would_not_read_is_refused(
    tables: ShopTables, spark: ibis.BaseBackend, tmp_path: Path
) -> None:
    """Left unread, the sensitive items of a CSV file would pass for any others."""
    from consentier.features.spark_tables import read_spark_tables

    folder = tmp_path / "shop"
    write_tables({name: getattr(tables, name) for name in ("events", "consents", "items")}, folder)
    items = folder / "items.parquet"
    for beside, refused in (
        ("items.csv", r"table items: .*/items\.csv is not read"),
        ("Orders.parquet", r"table orders: 'Orders\.parquet' is not read"),
        ("items", r"table items: .*items\.parquet and .*items stand beside each other"),
    ):
        (folder / beside).mkdir()
        shutil.copy(items, folder / beside)
        with pytest.raises(DataError, match=refused):
            read_spark_tables(spark._session, str(folder))
        shutil.rmtree(folder / beside)
    assert read_spark_tables(spark._session, str(folder)).items.num_rows == tables.items.num_rows


def test_a_gate_that_cannot_be_made_keeps_nothing(
    tables: ShopTables, spark: ibis.BaseBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from consentier.features.spark_gate import SparkGate
    from consentier.features.spark_tables import SparkTables

    def fail(*_: object) -> None:
        raise RuntimeError("no room")

    session = spark._session
    frames = {
        name: session.createDataFrame(getattr(tables, name)) for name in ("events", "consents", "identities")
    }
    monkeypatch.setattr(SparkGate, "_read", fail)
    with pytest.raises(RuntimeError, match="no room"):
        SparkGate(session, SparkTables.of(session, **frames), day(CUTOFF), Policy.default())
    views = session.sql("SHOW TABLES").toArrow()["tableName"].to_pylist()
    assert not [name for name in views if name.startswith("consentier_")]


def test_attributes_that_are_decimals_come_as_numbers(spark: ibis.BaseBackend) -> None:
    from consentier.features.spark_tables import SparkTables

    tables = shop(events=[event("v1", "a", 5)], consents=[consent("v1", "online")])
    customers = pa.table({"customer_id": ["c1"], "income": [decimal.Decimal("1234.50")]})
    made = {"events": tables.events, "consents": tables.consents, "customers": customers}
    frames = {name: spark._session.createDataFrame(table) for name, table in made.items()}
    read = SparkTables.of(spark._session, **frames).customers.toArrow()
    assert read["income"].to_pylist() == [1234.5]
    assert pa.types.is_float64(read["income"].type)


_BOTH = (("v1", "online"), ("v2", "online"), ("c1", "crm"), ("c2", "crm"))
