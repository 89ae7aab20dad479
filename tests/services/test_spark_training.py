"""Training on Apache Spark: the same bundles as on one machine, to the last byte."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from shops import day, event
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.consent import ConsentRecord, Ledger, Policy, Switches, Tier
from consentier.errors import ConfigError, DataError, TrainingError
from consentier.features.gate import CANONICAL_ORDER, ConsentGate, ledger_of
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.models.bundle import open_bundle, read_run
from consentier.models.gram import GramTruncated
from consentier.training.config import Config, TrackingConfig, load_config
from consentier.training.train import TRAINED_TIERS, TrainingResult, train

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.service("spark")

EVERY_SWITCH = Policy(
    "test",
    Policy.default().matrix,
    Switches(include_single_source_in_fused=True, anonymous_statistics=True),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    write_shop(simulate(SimulationConfig(customers=100, items=50, days=40, horizon_days=7)), folder)
    return folder


@pytest.fixture(scope="module")
def shop(data: Path) -> ShopTables:
    return read_shop(data)


@pytest.fixture(scope="module")
def config(data: Path) -> Config:
    return load_config(data=data).model_copy(update={"tracking": TrackingConfig(enabled=False)})


def changed(config: Config, tier: Tier | None = None, **values: Any) -> Config:
    """The configuration with other values, of one tier or for all; also values too small for a file."""
    name = "training" if tier is None else str(tier)
    return config.model_copy(update={name: getattr(config, name).model_copy(update=values)})


def on_spark(
    session: SparkSession, source: Path | ShopTables, config: Config, out: Path, **options: Any
) -> TrainingResult:
    from consentier.features.spark_tables import SparkTables, read_spark_tables
    from consentier.training.spark_training import train_on_spark

    if isinstance(source, Path):
        tables = read_spark_tables(session, str(source))
    else:
        frames = {
            field.name: session.createDataFrame(getattr(source, field.name))
            for field in dataclasses.fields(source)
            if field.name != "report" and getattr(source, field.name).num_rows
        }
        tables = SparkTables.of(session, **frames)
    return train_on_spark(session, tables, config, out, show_progress=False, **options)


def test_every_tier_has_the_same_bundle(
    session: SparkSession, data: Path, shop: ShopTables, config: Config, tmp_path: Path
) -> None:
    """Sessions with order and repeats, attributes, rare items left out, popular items of strangers."""
    config = changed(config, min_persons=2)
    embedded = train(
        shop, config, tmp_path / "one", tiers=TRAINED_TIERS, policy=EVERY_SWITCH, show_progress=False
    )
    spread = on_spark(session, data, config, tmp_path / "many", tiers=TRAINED_TIERS, policy=EVERY_SWITCH)
    assert spread.digests == embedded.digests
    assert spread.funnel == embedded.funnel
    assert set(spread.digests) == {str(tier) for tier in TRAINED_TIERS}
    assert open_bundle(tmp_path / "many" / "session").arrays["repeats"].any()
    assert open_bundle(tmp_path / "many" / "crm").manifest.scoring["attributes"]
    one, many = (read_run(tmp_path / name / "crm")["ledger_position"] for name in ("one", "many"))
    assert one == many


def test_cosines_are_the_same(
    session: SparkSession, data: Path, shop: ShopTables, config: Config, tmp_path: Path
) -> None:
    """Also with a ledger in place of the shop's tables, of which somebody has withdrawn meanwhile."""
    config = changed(config, Tier.CRM, algorithm="cosine")
    ledger = ledger_of(shop)
    gone = embedded_customers(shop, ledger, config)[0]
    ledger = withdrawn(ledger, gone, config)
    embedded = train(shop, config, tmp_path / "one", tiers=[Tier.CRM], ledger=ledger, show_progress=False)
    spread = on_spark(session, data, config, tmp_path / "many", tiers=[Tier.CRM], ledger=ledger)
    assert spread.digests == embedded.digests
    assert read_run(tmp_path / "many" / "crm")["ledger_position"] == ledger.position


def embedded_customers(shop: ShopTables, ledger: Ledger, config: Config) -> list[str]:
    cutoff = config.training.cutoff
    assert cutoff is not None
    found = ConsentGate(shop, ledger, cutoff, Policy.default()).permitted(Tier.CRM).subjects
    return list(found["subject_id"].to_pylist())


def withdrawn(ledger: Ledger, customer: str, config: Config) -> Ledger:
    cutoff = config.training.cutoff
    assert cutoff is not None
    before = cutoff - dt.timedelta(days=1)
    record = ConsentRecord(
        record_id="withdrawal", subject_id=customer, subject_kind="customer", permission="crm",
        state="withdrawn", valid_from=before, valid_to=None, recorded_at=before,
    )  # fmt: skip
    ledger.append([record])
    return ledger


def test_a_budget_drops_the_same_entries_and_a_task_that_fails_changes_nothing(
    session: SparkSession,
    data: Path,
    shop: ShopTables,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from consentier.training import spark_tasks, spark_training

    config = changed(config, Tier.SESSION, max_gram_entries=500)
    with pytest.warns(GramTruncated):
        embedded = train(shop, config, tmp_path / "one", tiers=[Tier.SESSION], show_progress=False)
    failures = tmp_path / "failures"
    failures.mkdir()
    monkeypatch.setattr(spark_training, "_FETCHED_AT_ONCE", 300)  # several parts, that must fit together
    for name in ("count_batches", "solve_batches"):
        monkeypatch.setattr(spark_training, name, failing_once(getattr(spark_tasks, name), failures / name))
    with pytest.warns(GramTruncated):
        spread = on_spark(session, data, config, tmp_path / "many", tiers=[Tier.SESSION])
    assert spread.digests == embedded.digests
    assert sorted(path.name for path in failures.iterdir()) == ["count_batches", "solve_batches"]


def failing_once(run: Any, mark: Path) -> Any:
    """The same work, whose first task dies after it has handed out its first results."""

    def work(batches: Any, **settings: Any) -> Any:
        for number, batch in enumerate(run(batches, **settings)):
            yield batch
            if number == 0:
                try:
                    mark.touch(exist_ok=False)
                except FileExistsError:
                    continue
                import os

                os._exit(1)  # as if the machine was gone: no exception, no clean end

    return work


def test_rows_that_may_not_be_read_change_nothing(
    session: SparkSession, shop: ShopTables, config: Config, tmp_path: Path
) -> None:
    """Rows of refused visitors are exchanged for others; one row more of a permitted one is noticed."""
    cutoff = config.training.cutoff
    assert cutoff is not None
    permitted = ConsentGate(shop, ledger_of(shop), cutoff, Policy.default()).permitted(Tier.ONLINE)
    allowed = permitted.subjects["subject_id"]
    kept = shop.events.filter(pc.is_in(shop.events["visitor_id"], value_set=allowed))
    assert kept.num_rows < shop.events.num_rows
    row = permitted.rows.slice(0, 1).to_pylist()[0]
    one_more = {
        **event(row["person"].removeprefix("visitor:"), "a new item", 0),
        "ts": dt.datetime.fromtimestamp(row["ts"] / 1e6, dt.UTC),
    }
    strangers = [event(f"v-unknown-{n}", shop.items["item_id"][0].as_py(), 1) for n in range(30)]

    def with_events(*tables: pa.Table) -> ShopTables:
        return dataclasses.replace(shop, events=pa.concat_tables(tables))

    more, unknown = (pa.Table.from_pylist(rows, kept.schema) for rows in ([one_more], strangers))
    before = train(shop, config, tmp_path / "before", tiers=[Tier.ONLINE], show_progress=False)
    noticed = train(
        with_events(shop.events, more), config, tmp_path / "noticed", tiers=[Tier.ONLINE], show_progress=False
    )
    spread = on_spark(
        session, with_events(unknown, kept, more), config, tmp_path / "many", tiers=[Tier.ONLINE]
    )
    assert spread.digests == noticed.digests != before.digests


def test_a_row_that_breaks_the_contract_ends_the_run(
    session: SparkSession, shop: ShopTables, config: Config, tmp_path: Path
) -> None:
    nameless = shop.events.slice(0, 1).to_pylist()[0] | {"item_id": None}
    events = pa.concat_tables([shop.events, pa.Table.from_pylist([nameless], schema=shop.events.schema)])
    broken = dataclasses.replace(shop, events=events)
    with pytest.raises(DataError, match=r"table events, column item_id, row .*null"):
        on_spark(session, broken, config, tmp_path, tiers=[Tier.ONLINE])
    twice = dataclasses.replace(shop, orders=pa.concat_tables([shop.orders, shop.orders.slice(0, 1)]))
    with pytest.raises(DataError, match=r"table orders.*duplicate key"):
        on_spark(session, twice, config, tmp_path, tiers=[Tier.CRM])
    assert not list(tmp_path.iterdir())


def test_what_spark_does_not_do_is_refused(
    session: SparkSession, shop: ShopTables, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"fused\.algorithm is 'bpr'"):
        on_spark(session, shop, changed(config, Tier.FUSED, algorithm="bpr"), tmp_path, tiers=[Tier.FUSED])
    nobody = dataclasses.replace(shop, consents=shop.consents.slice(0, 0))
    with pytest.raises(DataError, match="no consents, no training"):
        on_spark(session, nobody, config, tmp_path, tiers=[Tier.CRM])
    names = ["likes.news" if name == "newsletter" else name for name in shop.customers.column_names]
    pointed = dataclasses.replace(shop, customers=shop.customers.rename_columns(names))
    with pytest.raises(DataError, match=r"table customers, column 'likes\.news'"):
        on_spark(session, pointed, config, tmp_path, tiers=[Tier.CRM])
    early = changed(config, cutoff=day(-3000))
    with pytest.raises(TrainingError, match="crm tier has no permitted rows"):
        on_spark(session, shop, early, tmp_path, tiers=[Tier.CRM])


@pytest.mark.usefixtures("session")
def test_the_commands_of_the_readme_run(data: Path, shop: ShopTables, config: Config, tmp_path: Path) -> None:
    """With the tier that is quickest; it takes the session that is open."""
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    (block,) = re.findall(r"```shell\n(.*?)```", text, re.DOTALL)
    install, train_there, inspect = (shlex.split(line) for line in block.splitlines())
    assert install == ["pip", "install", "consentier[spark]"]
    embedded = train(shop, config, tmp_path / "one", tiers=[Tier.POPULAR], show_progress=False)
    (tmp_path / "shop").symlink_to(data)
    with contextlib.chdir(tmp_path):
        environment = {"CONSENTIER__TRACKING__ENABLED": "false", "COLUMNS": "200"}
        for command in ([*train_there, "--tier", "popular"], inspect):
            result = CliRunner().invoke(app, command[1:], env=environment)
            assert result.exit_code == 0, result.output
            assert embedded.digests["popular"].removeprefix("sha256:")[:8] in result.output
    assert open_bundle(tmp_path / "bundles-spark" / "popular").digest == embedded.digests["popular"]


def test_the_gate_keeps_the_rows_on_the_cluster(
    session: SparkSession, data: Path, shop: ShopTables, config: Config
) -> None:
    """The rows that pass are those of the embedded gate; attributes too."""
    from consentier.features.spark_gate import SparkGate
    from consentier.features.spark_tables import read_spark_tables

    cutoff = config.training.cutoff
    assert cutoff is not None
    embedded = ConsentGate(shop, ledger_of(shop), cutoff, Policy.default()).permitted(Tier.FUSED)
    with SparkGate(session, read_spark_tables(session, str(data)), cutoff, Policy.default()) as gate:
        spread = gate.permitted(Tier.FUSED)
        assert spread.funnel == embedded.funnel
        rows = spread.rows.toArrow().select(embedded.rows.column_names).cast(embedded.rows.schema)
        assert rows.sort_by([(name, "ascending") for name in CANONICAL_ORDER]).equals(embedded.rows)
        assert spread.attributes is not None
        assert embedded.attributes is not None
        assert spread.attributes.toArrow().sort_by("person").to_pylist() == embedded.attributes.to_pylist()
    assert not session.sql("SHOW VIEWS LIKE 'consentier_*'").collect()
