"""Batches on Apache Spark: the same rows as on one machine, whole and each once."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from engines import write_factors
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.consent import Channel, ConsentRecord, Ledger, Policy, Switches, Tier, microseconds
from consentier.errors import BundleError, DataError
from consentier.features.gate import ledger_of
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.serving import Recommender
from consentier.serving.batch import BatchSummary, catalogue_of, score_customers
from consentier.serving.batch_file import opened_batch
from consentier.serving.batch_job import BatchJob
from consentier.serving.reach import EXISTING_CUSTOMER
from consentier.serving.rules import Rules
from consentier.training.config import TrackingConfig, load_config
from consentier.training.train import TRAINED_TIERS, train

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from consentier.features.spark_tables import SparkTables

pytestmark = pytest.mark.service("spark")

OPEN = Policy(
    "open", Policy.default().matrix, Switches(crm_on_site=True, shared_device_login=False, ads_purpose=True)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated shop: some contact rests on a sale, some items are sensitive or sold out.

    Some persons withdrew for a day, and permitted anew.
    """
    folder = tmp_path_factory.mktemp("data") / "shop"
    write_shop(simulate(SimulationConfig(customers=60, items=40, days=40, horizon_days=7)), folder)
    consents = pq.read_table(folder / "consents.parquet").to_pylist()
    for number, row in enumerate(consents):
        if row["permission"].startswith("contact:") and number % 3 == 0:
            row["basis"] = EXISTING_CUSTOMER
    consents += renewals([row for row in consents if row["permission"] in ("online", "crm")][::4])
    schema = pq.read_schema(folder / "consents.parquet")
    pq.write_table(pa.Table.from_pylist(consents, schema), folder / "consents.parquet")
    items = pq.read_table(folder / "items.parquet").to_pylist()
    marked = [{**row, "sensitive": n == 3, "available": n != 5} for n, row in enumerate(items)]
    pq.write_table(pa.Table.from_pylist(marked), folder / "items.parquet")
    return folder


def renewals(grants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records that end permissions after two days, and give them again a day later."""
    changes = (("withdrawn", dt.timedelta(days=2)), ("granted", dt.timedelta(days=3)))
    return [
        {
            **row,
            "record_id": f"{row['record_id']}, {state}",
            "state": state,
            "valid_from": row["valid_from"] + later,
            "recorded_at": row["recorded_at"] + later,
        }
        for row in grants
        for state, later in changes
    ]


@pytest.fixture(scope="module")
def tables(session: SparkSession, data: Path) -> SparkTables:
    from consentier.features.spark_tables import read_spark_tables

    return read_spark_tables(session, str(data))


@pytest.fixture(scope="module")
def shop(data: Path) -> ShopTables:
    return read_shop(data)


@pytest.fixture(scope="module")
def at(shop: ShopTables) -> dt.datetime:
    latest: dt.datetime = pc.max(shop.orders["ts"]).as_py()
    return latest - dt.timedelta(days=2)


@pytest.fixture(scope="module")
def bundles(data: Path, shop: ShopTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "bundles"
    config = load_config(data=data).model_copy(update={"tracking": TrackingConfig(enabled=False)})
    train(shop, config, out, tiers=TRAINED_TIERS, show_progress=False)
    return out


RULES = """
show = "price < 60"
[caps]
category = 2
"""


@pytest.fixture(scope="module")
def rules(data: Path) -> Path:
    path = data.parent / "rules.toml"
    path.write_text(RULES)
    return path


@pytest.fixture(scope="module")
def asked(at: dt.datetime, rules: Path) -> dict[str, Any]:
    """A mailing."""
    return {"channel": Channel.EMAIL, "at": at, "n": 5, "rules": Rules.load(rules)}


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consentier.serving.spark_batch._PERSONS_PER_PART", 17)
        yield


@dataclasses.dataclass(frozen=True)
class Whole:
    """A mailing that nothing interrupted."""

    out: Path
    summary: BatchSummary


@pytest.fixture(scope="module")
def whole(
    tables: SparkTables,
    bundles: Path,
    asked: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Whole:
    out = tmp_path_factory.mktemp("whole") / "recs"
    return Whole(out, on_spark(tables, bundles, out, **asked))


def on_spark(tables: SparkTables, bundles: Path, out: Path, **options: Any) -> BatchSummary:
    from pyspark.sql import SparkSession

    from consentier.serving.spark_batch import score_on_spark

    session = SparkSession.active()
    return score_on_spark(session, tables, bundles, out=out, show_progress=False, **options)


def embedded(
    shop: ShopTables,
    bundles: Path,
    out: Path,
    *,
    rules: Rules | None = None,
    policy: Policy | None = None,
    ledger: Ledger | None = None,
    **options: Any,
) -> BatchSummary:
    chosen = rules or Rules()
    catalogue = catalogue_of(shop, chosen.columns)
    recommender = Recommender.load(bundles, policy=policy, catalogue=catalogue, rules=chosen)
    return score_customers(shop, recommender, ledger, out=out, show_progress=False, **options)


def rows_of(out: Path) -> pa.Table:
    """All rows in the order in which `deliver` reads them, and what the batch says of itself."""
    with opened_batch(out) as batch:
        return pa.concat_tables([table for table, _ in batch.tables()])


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_mailing_has_the_rows_of_one_machine(
    data: Path, shop: ShopTables, bundles: Path, asked: dict[str, Any], whole: Whole, tmp_path: Path
) -> None:
    """With rules, items that are sensitive or sold out, and contact that rests on a sale; in parts."""
    one = tmp_path / "one.parquet"
    assert embedded(shop, bundles, one, **asked) == whole.summary
    assert rows_of(whole.out).equals(rows_of(one), check_metadata=True)
    assert {"crm", "fused"} <= set(whole.summary.by_tier)
    unlike = "only goods like those bought may be advertised, and none are known"
    assert {unlike, "no contact permission for email"} <= set(whole.summary.skipped)
    assert len(list(whole.out.glob("part-*.parquet"))) > 3
    sent = [tmp_path / "one-sent.parquet", tmp_path / "many-sent.parquet"]
    for scored, out in zip((one, whole.out), sent, strict=True):
        command = ["deliver", str(scored), "--data", str(data), "--out", str(out)]
        done = CliRunner().invoke(app, [*command, "--bundles", str(bundles), "--at", asked["at"].isoformat()])
        assert done.exit_code == 0, done.output
    one_sent, many_sent = (pq.read_table(path) for path in sent)
    assert many_sent.equals(one_sent, check_metadata=True)
    assert many_sent.num_rows


def test_a_cache_of_the_shop_has_the_rows_of_one_machine(
    tables: SparkTables, shop: ShopTables, bundles: Path, at: dt.datetime, tmp_path: Path
) -> None:
    """Visitors with several devices, every switch open, a factor model, a ledger with a withdrawal."""
    ledger = ledger_of(shop)
    bundles = with_factors(bundles, shop, tmp_path / "bundles")
    asked: dict[str, Any] = {"channel": Channel.SHOP, "at": at, "n": 4, "policy": OPEN, "ledger": ledger}
    before = embedded(shop, bundles, tmp_path / "before.parquet", **asked)
    fused = rows_of(tmp_path / "before.parquet").filter(pc.field("tier") == "fused")
    ledger.append([withdrawal(fused["visitor_id"][0].as_py(), at - dt.timedelta(hours=1))])
    one = embedded(shop, bundles, tmp_path / "one.parquet", **asked)
    many = on_spark(tables, bundles, tmp_path / "many", **asked)
    assert many == one != before
    assert rows_of(tmp_path / "many").equals(rows_of(tmp_path / "one.parquet"), check_metadata=True)
    assert {"online", "fused"} <= set(many.by_tier)
    told = json.loads((tmp_path / "many" / "batch.json").read_text())
    assert told["ledger_position"] == ledger.position


def with_factors(bundles: Path, shop: ShopTables, out: Path) -> Path:
    """The same bundles, but a factor model for the online tier."""
    shutil.copytree(bundles, out)
    shutil.rmtree(out / "online")
    write_factors(out / "online", Tier.ONLINE, items=shop.items["item_id"].to_pylist(), hide=("online",))
    return out


def withdrawal(visitor: str, at: dt.datetime) -> ConsentRecord:
    return ConsentRecord(
        record_id="withdrawal", subject_id=visitor, subject_kind="visitor", permission="online",
        state="withdrawn", valid_from=at, valid_to=None, recorded_at=at,
    )  # fmt: skip


def test_interruptions_dying_tasks_and_rows_that_may_not_be_read_change_no_byte(
    tables: SparkTables,
    data: Path,
    bundles: Path,
    rules: Path,
    asked: dict[str, Any],
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job fails for good. It is resumed in another shop, as far as rows go that no task may get.

    All rows that tasks get are fingerprinted, and a batch is resumed only if they are the same. Exchanged are
    the events of visitors who never gave permission, and orders and attributes of customers who may not be
    written to. Workers die meanwhile.
    """
    from pyspark.errors import PySparkException

    from consentier.serving import spark_batch, spark_batch_tasks

    out, marks = tmp_path / "recs", tmp_path / "marks"
    marks.mkdir()
    score = spark_batch_tasks.score_part
    monkeypatch.setattr(spark_batch, "score_part", failing(score, 2))
    with pytest.raises(PySparkException, match="no space left"):
        on_spark(tables, bundles, out, **asked)
    assert not (out / "part-00002.parquet").exists()
    with pytest.raises(DataError, match="parts are missing"):
        rows_of(out)
    for part in (0, 1):  # whichever were written are written again
        (out / f"part-{part:05}.parquet").unlink(missing_ok=True)
    monkeypatch.setattr(spark_batch, "score_part", dying(score, marks))
    other = with_other_forbidden_rows(data, tmp_path / "shop")
    question = f"--bundles {bundles} --channel email --n 5 --rules {rules}".split()
    where = f"--out {out} --engine spark --resume --json".split()
    done = CliRunner().invoke(app, ["score", str(other), *question, *where])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == whole.summary.rows
    assert sorted(path.name for path in marks.iterdir()) == ["after", "amid"]
    assert files_of(out) == files_of(whole.out)


def failing(score: Any, unlucky: int) -> Any:
    """The same work, which always fails for one part."""

    def work(key: Any, rows: Any, scoring: Any) -> Any:
        if key[0].as_py() == unlucky:
            raise OSError("no space left")
        return score(key, rows, scoring)

    return work


def dying(score: Any, marks: Path) -> Any:
    """The same work, whose worker dies once while it writes a part, and once when it has written another."""

    def work(key: Any, rows: Any, scoring: Any) -> Any:
        import os

        part = key[0].as_py()
        moment = {0: "amid", 1: "after"}.get(part)
        dies = moment is not None and not (marks / moment).exists()
        if dies:
            (marks / moment).touch()
        if dies and moment == "amid":
            (Path(scoring.out) / ".part-00000.parquet.0123456789abcdef.tmp").write_text("half")
            os._exit(1)  # as if the machine was gone: no exception, no clean end
        told = score(key, rows, scoring)
        if dies:
            os._exit(1)
        return told

    return work


def with_other_forbidden_rows(data: Path, folder: Path) -> Path:
    """A copy of the shop, in which everything differs that a mailing may not read."""
    shutil.copytree(data, folder)
    consents = pq.read_table(data / "consents.parquet").filter(pc.field("state") == "granted")

    def granted(permission: str) -> set[str]:
        return set(consents.filter(pc.field("permission") == permission)["subject_id"].to_pylist())

    online, reached = granted("online"), granted("crm") & granted("contact:email")
    assert rewrite(folder, "events", "visitor_id", online, {"item_id": "i00001"})
    assert rewrite(folder, "orders", "customer_id", reached, {"item_id": "i00001", "quantity": 9})
    assert rewrite(folder, "customers", "customer_id", reached, {"region": "elsewhere"})
    return folder


def rewrite(folder: Path, table: str, key: str, but: set[str], values: dict[str, Any]) -> int:
    """Change the rows of all but some persons; how many there are."""
    path = folder / f"{table}.parquet"
    rows = pq.read_table(path)
    changed = [row if row[key] in but else {**row, **values} for row in rows.to_pylist()]
    pq.write_table(pa.Table.from_pylist(changed, rows.schema), path)
    return sum(row[key] not in but for row in changed)


def test_a_batch_that_was_begun_on_one_machine_is_refused_here(
    tables: SparkTables,
    shop: ShopTables,
    bundles: Path,
    asked: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Although the parts have the same persons: a digest of the rows is made in another way on each engine.

    The other way round: tests/serving/test_batch_parts.py.
    """
    monkeypatch.setattr("consentier.serving.batch._PERSONS_PER_PART", 17)
    out = tmp_path / "recs"
    embedded(shop, bundles, out, **asked)
    (out / "part-00001.parquet").unlink()
    before = files_of(out)
    with pytest.raises(DataError, match="another batch than the one to be resumed: it was begun on the"):
        on_spark(tables, bundles, out, resume=True, **asked)
    assert files_of(out) == before


def test_one_more_row_that_may_be_read_is_noticed(
    tables: SparkTables, bundles: Path, asked: dict[str, Any], whole: Whole, tmp_path: Path
) -> None:
    from pyspark.sql import functions

    shutil.copytree(whole.out, tmp_path / "recs")
    person = rows_of(whole.out).filter(pc.field("tier") == "crm")["customer_id"][0].as_py()
    stands = tables.orders.filter("status = 'ordered' AND item_id = 'i00021'").limit(1)
    just_now = microseconds(asked["at"]) - 1  # what is older than the person's permission may not be read
    values = {
        "customer_id": functions.lit(person),
        "order_id": functions.lit("one more"),
        "ts": functions.lit(just_now),
    }
    more = dataclasses.replace(tables, orders=tables.orders.unionByName(stands.withColumns(values)))
    with pytest.raises(DataError, match="permissions, histories or the items on show have changed"):
        on_spark(more, bundles, tmp_path / "recs", resume=True, **asked)


@pytest.mark.usefixtures("session")
def test_an_executor_with_another_directory_or_other_bundles_writes_nothing(
    shop: ShopTables, bundles: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from consentier.serving.spark_batch_tasks import BUNDLES, ITEMS, Scoring, score_part

    text = (whole.out / "batch.json").read_text()
    job = BatchJob.from_text(text, "batch.json")
    scoring = Scoring(
        "unpacked", job, str(tmp_path / "recs"), Policy.default(), Rules(), {"crm": "other"}, {}
    )
    with pytest.raises(DataError, match="name a directory that the driver and all executors share"):
        score_part((pa.scalar(0),), pa.table({}), scoring)
    (tmp_path / "recs").mkdir()
    (tmp_path / "recs" / "batch.json").write_text(text)
    (tmp_path / BUNDLES).symlink_to(bundles)
    pq.write_table(shop.items, tmp_path / ITEMS)
    monkeypatch.setattr("pyspark.SparkFiles.get", lambda name: str(tmp_path))
    with pytest.raises(BundleError, match="other bundles than those with which the batch began"):
        score_part((pa.scalar(0),), pa.table({}), scoring)
    assert list(files_of(tmp_path / "recs")) == ["batch.json"]
