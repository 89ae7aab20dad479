"""Training on and forgetting on Apache Spark: from kept tables, the bundles of a run from scratch."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from marked_shops import marked_shop, naming
from shops import consent, link, shop

from consentier.consent import ConsentRecord, Ledger, Policy, Tier
from consentier.consent.lifetimes import Lifetimes
from consentier.consent.records import SubjectKind
from consentier.features.consent_intervals import ConsentTables
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.simulator import SimulationConfig
from consentier.features.tables import ShopTables, read_shop
from consentier.models.bundle import open_bundle, read_run
from consentier.models.statistics import StatisticsError
from consentier.training.config import Config, TrackingConfig, load_config
from consentier.training.counted import OTHER_BUNDLE, distinct
from consentier.training.decrement import CHANGED
from consentier.training.fingerprints import fingerprints
from consentier.training.forget import Subject, forget, without_subjects
from consentier.training.restricted import Restricted
from consentier.training.retrain import COUNTED_ANEW
from consentier.training.train import train

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from consentier.features.spark_tables import SparkTables
    from consentier.training.retrain import RetrainedTier

pytestmark = pytest.mark.service("spark")

SUBJECT, LINK = ("kind", "subject_id"), ("visitor_id", "customer_id")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A simulated shop, and bundles that were trained on it on Spark a day before its cut-off."""

    session: SparkSession
    data: Path
    shop: ShopTables
    config: Config
    out: Path

    @property
    def restricted(self) -> Restricted:
        return Restricted.beside(self.out)

    @property
    def cutoff(self) -> dt.datetime:
        assert self.config.training.cutoff is not None
        return self.config.training.cutoff

    @property
    def earlier(self) -> Config:
        return self.config.with_cutoff(self.cutoff - dt.timedelta(days=1))

    def tables(self, events: pa.Table | None = None) -> SparkTables:
        from pyspark.sql import functions

        from consentier.features.spark_tables import read_spark_tables

        found = read_spark_tables(self.session, str(self.data))
        if events is None:
            return found
        frame = self.session.createDataFrame(events).withColumn("ts", functions.unix_micros("ts"))
        return dataclasses.replace(found, events=frame)

    def retrain(self, tier: Tier, **options: Any) -> RetrainedTier:
        (done,) = self.retrain_each([tier], **options).values()
        return done

    def retrain_each(self, tiers: list[Tier], **options: Any) -> dict[Tier, RetrainedTier]:
        from consentier.training.spark_retraining import retrain_on_spark

        tables = options.pop("tables", None) or self.tables()
        result = retrain_on_spark(
            self.session, tables, self.config, self.out, self.restricted,
            tiers=tiers, show_progress=False, **options,
        )  # fmt: skip
        return {each.tier: each for each in result.tiers}

    def from_scratch(self, tiers: list[Tier], config: Config | None = None, **options: Any) -> dict[str, str]:
        shop = options.pop("shop", self.shop)
        out = self.out.with_name("scratch")
        place = Restricted.beside(out)
        return train(
            shop, config or self.config, out, tiers=tiers, restricted=place, show_progress=False,
            force=True, **options,
        ).digests  # fmt: skip


@pytest.fixture(scope="module")
def workshop(session: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from consentier.training.spark_training import train_on_spark

    folder = tmp_path_factory.mktemp("incremental")
    marked_shop(folder, SimulationConfig(customers=100, items=50, days=40, horizon_days=7))
    config = load_config(data=folder / "shop")
    # Otherwise every session counts differently a day later.
    session_tier = config.session.model_copy(update={"session_half_life": 0.0})
    training = config.training.model_copy(update={"min_persons": 2})
    config = config.model_copy(
        update={"tracking": TrackingConfig(enabled=False), "session": session_tier, "training": training}
    )
    shop = read_shop(folder / "shop")
    made = Trained(session, folder / "shop", shop, config, folder / "bundles")
    train_on_spark(
        session, made.tables(), made.earlier, made.out, tiers=[Tier.SESSION, Tier.FUSED],
        restricted=made.restricted, show_progress=False,
    )  # fmt: skip
    return made


@pytest.fixture
def trained(workshop: Trained, tmp_path: Path) -> Trained:
    """The same, free to be changed."""
    out = tmp_path / "bundles"
    shutil.copytree(workshop.out, out)
    shutil.copytree(workshop.restricted.path, Restricted.beside(out).path)
    return dataclasses.replace(workshop, out=out)


def holders(trained: Trained, tier: Tier) -> list[tuple[str, str]]:
    """Who was counted, and may still be at the later cut-off."""
    found = [
        ConsentGate(trained.shop, ledger_of(trained.shop), cutoff, Policy.default()).permitted(tier).subjects
        for cutoff in (trained.cutoff - dt.timedelta(days=1), trained.cutoff)
    ]
    both = [set(zip(*(each[name].to_pylist() for name in SUBJECT), strict=True)) for each in found]
    return sorted(both[0] & both[1])


def withdrawn(trained: Trained, customer: str) -> Ledger:
    """The ledger in which a customer withdrew between the two cut-offs."""
    at = trained.cutoff - dt.timedelta(hours=1)
    ledger = ledger_of(trained.shop)
    ledger.append(
        [ConsentRecord("w", customer, "customer", "crm", "withdrawn", valid_from=at, recorded_at=at)]
    )
    return ledger


def members(trained: Trained, out: Path, digest: str) -> set[tuple[str, str]]:
    """Whom the index of a directory of bundles has in a bundle."""
    lineage = Restricted.beside(out).lineage()
    known = lineage.members(digest)
    columns = {"visitor": ("events", "visitor_id"), "customer": ("customers", "customer_id")}
    return {
        (kind, subject)
        for kind, (table, column) in columns.items()
        for subject in pc.unique(getattr(trained.shop, table)[column]).to_pylist()
        if not known.isdisjoint(lineage.names(kind, subject))
    }


def test_a_day_later_the_bundles_are_those_of_a_run_from_scratch(trained: Trained) -> None:
    """With persons who changed, came, and withdrew; items that come to be published; attributes."""
    tiers = [Tier.SESSION, Tier.FUSED]
    customer = next(each for kind, each in holders(trained, Tier.FUSED) if kind == "customer")
    ledger = withdrawn(trained, customer)
    expected = trained.from_scratch(tiers, ledger=ledger)
    done = trained.retrain_each(tiers, ledger=ledger)
    assert {str(tier): each.after for tier, each in done.items()} == expected
    assert {tier: (each.how, each.reason) for tier, each in done.items()} == dict.fromkeys(
        tiers, ("incremental", None)
    )
    assert done[Tier.FUSED].gone == 1
    for tier, each in done.items():
        assert each.changed
        assert each.new
        assert open_bundle(trained.out / tier).digest == each.after != each.before
        run = read_run(trained.out / tier)
        assert (run["retrained"], run["ledger_position"]) == ("incremental", ledger.position)
        assert each.after is not None
        in_it = members(trained, trained.out, each.after)
        assert in_it == members(trained, trained.out.with_name("scratch"), each.after)
        assert ("customer", customer) not in in_it


def test_a_bundle_that_forgot_is_one_that_never_knew(trained: Trained) -> None:
    from consentier.training.spark_forgetting import forget_on_spark

    customer = next(each for kind, each in holders(trained, Tier.FUSED) if kind == "customer")
    told = ConsentTables.of(ledger_of(trained.shop))
    shop, consents = without_subjects(trained.shop, told, [("customer", customer)])
    records = pc.is_in(shop.consents["record_id"], value_set=distinct(consents.records["record_id"]))
    links = set(zip(*(consents.links[name].to_pylist() for name in LINK), strict=True))
    logins = zip(*(shop.identities[name].to_pylist() for name in LINK), strict=True)
    shop = dataclasses.replace(
        shop,
        consents=shop.consents.filter(records),
        identities=shop.identities.filter(pa.array([login in links for login in logins])),
    )
    expected = trained.from_scratch([Tier.FUSED], trained.earlier, shop=shop)["fused"]
    before = open_bundle(trained.out / Tier.FUSED).digest
    done = forget_on_spark(
        trained.session, trained.tables(), [("customer", customer)], trained.out, trained.restricted,
        tiers=[Tier.SESSION, Tier.FUSED], show_progress=False,
    )  # fmt: skip
    session, fused = done.tiers
    assert (session.how, session.after) == ("unchanged", open_bundle(trained.out / Tier.SESSION).digest)
    assert (fused.how, fused.reason) == ("decremented", None)
    assert (fused.before, fused.after) == (before, expected)
    assert open_bundle(trained.out / Tier.FUSED).digest == expected
    assert before not in trained.restricted.lineage().digests()
    assert ("customer", customer) not in members(trained, trained.out, expected)
    assert members(trained, trained.out, expected)
    files = list(trained.restricted.statistics(Tier.FUSED).glob("counts/*.parquet"))
    assert files
    assert not list(trained.restricted.statistics(Tier.FUSED).parent.glob(".*"))


def test_killed_before_its_tables_are_in_place_the_next_run_fits_from_scratch(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from consentier.training.spark_statistics import Draft

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            trained.retrain(Tier.SESSION)
    expected = trained.from_scratch([Tier.SESSION])["session"]
    assert open_bundle(trained.out / Tier.SESSION).digest == expected
    done = trained.retrain(Tier.SESSION)
    assert (done.how, done.reason, done.after) == ("refitted", OTHER_BUNDLE, expected)


def test_rows_that_were_deleted_make_it_a_fit(trained: Trained) -> None:
    """As after an erasure: what was counted cannot be found again."""
    visitor = next(each for kind, each in holders(trained, Tier.SESSION) if kind == "visitor")
    events = trained.shop.events.filter(pc.not_equal(trained.shop.events["visitor_id"], visitor))
    expected = trained.from_scratch([Tier.SESSION], shop=dataclasses.replace(trained.shop, events=events))
    done = trained.retrain(Tier.SESSION, tables=trained.tables(events=events))
    assert (done.how, done.reason) == ("refitted", CHANGED)
    assert {"session": done.after} == expected


def test_what_is_not_subtracted_would_be_noticed(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    from consentier.training import spark_retraining

    renumbered = spark_retraining._renumbered

    def careless(counts: DataFrame, places: Any, sign: int) -> DataFrame:
        return renumbered(counts.limit(0) if sign < 0 else counts, places, sign)

    monkeypatch.setattr(spark_retraining, "_renumbered", careless)
    done = trained.retrain(Tier.SESSION)
    assert done.how == "incremental"
    assert {"session": done.after} != trained.from_scratch([Tier.SESSION])


def test_no_id_of_a_person_stands_in_what_is_kept(workshop: Trained) -> None:
    """And the fingerprints are those of one machine, under the same key."""
    private = workshop.restricted.path
    assert naming(workshop.data) != []
    assert naming(private) == []
    columns = [
        (name, table[name].type)
        for table in map(pq.read_table, sorted(private.rglob("*.parquet")))
        for name in table.column_names
    ]
    assert {name for name, kind in columns if not pa.types.is_integer(kind)} == {"item_id"}

    place = workshop.restricted.statistics(Tier.SESSION)
    key = bytes.fromhex(json.loads((place / "tables.json").read_bytes())["key"])
    before = workshop.cutoff - dt.timedelta(days=1)
    gate = ConsentGate(workshop.shop, ledger_of(workshop.shop), before, Policy.default())
    expected = fingerprints(gate.permitted(Tier.SESSION), key)
    kept = pq.read_table(place / "persons")
    persons, rows = (kept[name].to_numpy().view(np.uint64) for name in ("person_hash", "fingerprint"))
    order = np.argsort(persons)
    assert np.array_equal(persons[order], expected.persons)
    assert np.array_equal(rows[order], expected.rows)


def test_an_executor_that_does_not_share_the_directory_ends_the_run(tmp_path: Path) -> None:
    """It would write its part of a table where nobody looks for it."""
    from consentier.training.spark_statistics import _where_shared

    batches = [pa.RecordBatch.from_pydict({"value": [1]})]
    assert list(_where_shared(iter(batches), tmp_path)) == batches
    with pytest.raises(StatisticsError, match="an executor does not see"):
        list(_where_shared(iter(batches), tmp_path / "elsewhere"))


def test_a_ledger_without_some_subjects_is_that_of_one_machine(session: SparkSession) -> None:
    """It goes on to know that a record's id was used by others, and that a device was shared with others."""
    from consentier.features.spark_workspace import LedgerOnSpark, SparkWorkspace

    told = ConsentTables.of_shop(
        shop(
            consents=[
                consent("c1", "crm", record_id="shared"), consent("c2", "crm", record_id="shared"),
                consent("c1", "crm", at=2), consent("v1", "online"), consent("v3", "online"),
                consent("c3", "crm"),
            ],
            identities=[
                link("v1", "c1"), link("v1", "c2"), link("v2", "c1"), link("v3", "c3"), link("v4", "c3"),
            ],
        ),
        Lifetimes.default(),
    )  # fmt: skip
    gone: dict[SubjectKind, list[str]] = {"customer": ["c1"], "visitor": ["v3"]}
    _, expected = without_subjects(
        ShopTables.empty(), told, [(kind, each) for kind, ids in gone.items() for each in ids]
    )
    with SparkWorkspace(session) as space:
        ledger = LedgerOnSpark(*(ibis.memtable(each) for each in (told.records, told.lifetimes, told.links)))
        found = space.ledger_without(ledger, gone)
        for mine, theirs, count in ((found.records, expected.records, 4), (found.links, expected.links, 3)):
            rows = space.frame(mine).toArrow().to_pylist()
            assert sorted(map(repr, rows)) == sorted(map(repr, theirs.to_pylist()))
            assert len(rows) == count
            plan = space.frame(mine)._jdf.queryExecution().toString()
            assert "partial(" in plan
            assert not re.search(r"\b(c1|v3|shared)\b", plan)  # Spark keeps plans in its event log


def test_the_popular_list_is_counted_anew_without_the_forgotten(trained: Trained) -> None:
    from consentier.training.spark_forgetting import forget_on_spark
    from consentier.training.spark_training import train_on_spark

    train_on_spark(
        trained.session, trained.tables(), trained.earlier, trained.out, tiers=[Tier.POPULAR],
        restricted=trained.restricted, show_progress=False,
    )  # fmt: skip
    subjects: list[Subject] = [("customer", trained.shop.orders["customer_id"][0].as_py())]
    done = forget_on_spark(
        trained.session, trained.tables(), subjects, trained.out, trained.restricted,
        tiers=[Tier.POPULAR], show_progress=False,
    )  # fmt: skip
    trained.from_scratch([Tier.POPULAR], trained.earlier)
    out = trained.out.with_name("scratch")
    expected = forget(
        trained.shop, subjects, out, Restricted.beside(out), tiers=[Tier.POPULAR], show_progress=False
    )
    assert (done.tiers[0].how, done.tiers[0].reason) == ("refitted", COUNTED_ANEW)
    assert done.tiers[0].before == expected.tiers[0].before
    assert done.tiers[0].after == expected.tiers[0].after != done.tiers[0].before
