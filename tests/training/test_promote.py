"""From the run to what serves: the record, promotion check by check, refusals with reasons, going back."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.consent import ConsentRecord, Ledger, Permission, Policy, Tier
from consentier.errors import DataError
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.schemas import SCHEMAS
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.models.bundle import open_bundle
from consentier.serving import Recommender, Request
from consentier.serving.registry import RegistrySource
from consentier.serving.reloading import Outcome, ReloadingRecommender
from consentier.serving.revocation import PAST_DEADLINE, revoke
from consentier.training import promote as promotion
from consentier.training.bundles import train_bundles
from consentier.training.config import Config, config_hash, load_config
from consentier.training.drift_result import DriftResult
from consentier.training.measure import Champion, Measurement, Periods, empty_measurement, measure
from consentier.training.model_registry import CHECKS_TAG, OUTCOME_TAG, PREVIOUS_TAG, ModelRegistry, Version
from consentier.training.promote import (
    Check,
    Promotion,
    better_than_popular,
    decide_level_3,
    not_worse_than_champion,
    not_worse_than_single_source,
    promote,
    rollback,
    training_cutoff,
)
from consentier.training.restricted import Restricted
from consentier.training.stale_runs import end_stale_runs, trainer_tags
from consentier.training.track import store_client
from consentier.training.train import TRAINED_TIERS, TrainingResult, train

MARKER = "Qsubject-"
"""Stands before every id of a person, so that it is found wherever it stands."""

THREE_DAYS = dt.timedelta(days=3)
BOTH = Permission.ONLINE | Permission.CRM


def marked(shop: ShopTables) -> dict[str, pa.Table]:
    """The tables of a shop, with names of persons that can be searched for."""
    tables: dict[str, pa.Table] = {name: getattr(shop, name) for name in SCHEMAS}
    for name, table in tables.items():
        for column in sorted(
            {"visitor_id", "customer_id", "subject_id", "record_id"} & set(table.column_names)
        ):
            ids = pc.binary_join_element_wise(MARKER, table[column], "")
            position = table.schema.get_field_index(column)
            tables[name] = table = table.set_column(position, column, ids)
    return tables


@dataclasses.dataclass(frozen=True)
class Works:
    """A shop with three runs: a good one of all tiers, one that is worse, and a good one some days later."""

    folder: Path
    shop: ShopTables
    config: Config
    ledger: Ledger
    runs: list[TrainingResult]

    @property
    def out(self) -> Path:
        return self.folder / "bundles"

    @property
    def restricted(self) -> Restricted:
        return Restricted.beside(self.out)

    @property
    def at(self) -> dt.datetime:
        """The cut-off of the first two runs."""
        assert self.config.training.cutoff is not None
        return self.config.training.cutoff

    @property
    def later(self) -> dt.datetime:
        """The cut-off of the last run, by which some consents have lapsed."""
        return self.at + THREE_DAYS

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.out / 'mlflow.db'}"

    @functools.cached_property
    def client(self) -> Any:
        return store_client(self.config.tracking, self.out)

    def train(self, config: Config, *tiers: Tier) -> None:
        self.runs.append(
            train(
                self.shop,
                config,
                self.out,
                tiers=tiers,
                force=True,
                ledger=self.ledger,
                restricted=self.restricted,
                show_progress=False,
            )
        )

    def changed(self, **changes: Any) -> Config:
        """The configuration with other settings of the session and the fused tier."""
        tiers = {tier: getattr(self.config, tier).model_copy(update=changes) for tier in ("session", "fused")}
        return self.config.model_copy(update=tiers)


GOOD, WORSE, LATER = range(3)


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Works:
    folder = tmp_path_factory.mktemp("works")
    size = SimulationConfig(customers=500, items=40, days=50, horizon_days=7, seed=5)
    write_shop(simulate(size), folder / "shop")
    for name, table in marked(read_shop(folder / "shop")).items():
        pq.write_table(table, folder / "shop" / f"{name}.parquet")
    shop = read_shop(folder / "shop")
    config = load_config(data=folder / "shop")
    judged = config.evaluation.model_copy(update={"bootstrap_samples": 200, "horizon_days": 10})
    config = config.model_copy(update={"evaluation": judged})
    works = Works(folder, shop, config, ledger_of(shop), [])
    works.train(config, *TRAINED_TIERS)
    registry = ModelRegistry(works.client, "consentier")
    for tier in TRAINED_TIERS:
        registry.point(tier, "champion", "1")
    bad = works.changed(
        neighbours=1, repeat_weight=0.0, second_hop_weight=0.0, hide=("crm", "online", "session")
    )
    works.train(bad, Tier.SESSION, Tier.FUSED)
    works.train(config.with_cutoff(works.later), Tier.SESSION)
    return works


class Slot:
    """A registry of this test's own in the same store, with versions out of the runs."""

    def __init__(self, works: Works, name: str) -> None:
        self.works, self.name = works, name
        self.registry = ModelRegistry(works.client, name)

    def register(self, run: int, tier: Tier, artifact: str | None = None, **tags: str) -> Version:
        """A version of what a run made; of its tier, unless the tags say otherwise."""
        run_id = self.works.runs[run].run_ids[str(tier)]
        original = ModelRegistry(self.works.client, "consentier").version(
            tier, self.works.runs[run].versions[str(tier)]
        )
        source = artifact or f"{self.works.client.get_run(run_id).info.artifact_uri}/bundle"
        return self.registry.register(tier, run_id, source, {**original.tags, **tags})

    def promote(self, tier: Tier, **options: Any) -> Promotion:
        given: dict[str, Any] = {
            "bundles": self.works.out,
            "lineage": self.works.restricted.lineage(),
            "ledger": self.works.ledger,
            "policy": Policy.default(),
            "at": self.works.at,
        }
        return promote(self.registry, tier, **(given | options))

    def champion(self, tier: Tier) -> str | None:
        found = self.registry.aliased(tier, "champion")
        return None if found is None else found.number

    def source(self, folder: Path, *tiers: Tier) -> RegistrySource:
        models = {str(tier): f"models:/{self.registry.name(tier)}@champion" for tier in tiers}
        return RegistrySource(models, folder, tracking_uri=self.works.uri)


@pytest.fixture
def slot(works: Works, request: pytest.FixtureRequest) -> Slot:
    return Slot(works, request.node.name.replace("[", "-").replace("]", ""))


def failed(result: Promotion) -> dict[str, Check]:
    return {check.name: check for check in result.checks if not check.passed}


def asking(works: Works) -> Request:
    """A request of level 3, of which every source says something."""
    items = works.shop.items["item_id"].to_pylist()
    return Request(
        session=items[:2], online_history=items[2:6], crm_history=items[6:9], linked=True, n=5,
        permission=BOTH,
    )  # fmt: skip


# ---- The record --------------------------------------------------------------------------------------------


def test_one_command_leaves_one_record(works: Works) -> None:
    result = works.runs[GOOD]
    parent = works.client.get_run(result.run_ids["run"])
    assert parent.info.status == "FINISHED"
    assert {found.path for found in works.client.list_artifacts(parent.info.run_id)} == {
        "config.json", "drift.json", "evaluation.json", "report.html",
    }  # fmt: skip
    for tier, digest in result.digests.items():
        child = works.client.get_run(result.run_ids[tier])
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params["config_hash"] == config_hash(works.config)
        assert child.data.params["ledger_head"] == works.ledger.head
        assert "version.numpy" in child.data.params
        assert any(name.startswith("excluded.") for name in child.data.metrics)
        (given,) = child.inputs.dataset_inputs
        kept = sum(json.loads(given.dataset.profile)["rows"].values())
        assert kept == sum(row["rows_kept"] for row in result.funnel if row["tier"] == tier)
        names = {found.path for found in works.client.list_artifacts(child.info.run_id)}
        assert {"bundle", "config.json", "measurement.json", "model_card.md", "run.json"} <= names
        version = ModelRegistry(works.client, "consentier").version(Tier(tier), result.versions[tier])
        manifest = open_bundle(works.out / tier, verify=False).manifest
        assert version.digest == digest
        assert version.tags["permission"].split() == list(manifest.permission)
        assert version.tags["ledger_position"] == str(works.ledger.position)


@pytest.mark.parametrize("tier", ["session", "online", "crm", "fused"])
def test_each_tier_is_measured_on_both_periods_with_bounds(works: Works, tier: str) -> None:
    run_id = works.runs[GOOD].run_ids[tier]
    metrics = works.client.get_run(run_id).data.metrics
    for period in ("validation", "test"):
        for of in ("", "popular."):
            name = f"{period}.{of}ndcg_at_10"
            assert 0 < metrics[f"{name}.low"] <= metrics[name] <= metrics[f"{name}.high"] < 1
    assert metrics["test.over_popular.ndcg_at_10.low"] < metrics["test.over_popular.ndcg_at_10.high"]
    plots = {found.path for found in works.client.list_artifacts(run_id, "plots")}
    assert plots == {"plots/learning.svg", "plots/lift.svg"}


def test_the_learning_curve_ends_with_the_model_itself(works: Works) -> None:
    measured = measurement(works, GOOD, Tier.SESSION)
    assert [point["share"] for point in measured["learning"]] == [0.25, 0.5, 1.0]
    first, *_, last = measured["learning"]
    assert first["persons"] * 4 == pytest.approx(last["persons"], abs=2)
    test = next(period for period in measured["periods"] if period["name"] == "test")
    assert last["score"] == test["figures"]["model"]["ndcg@10"]
    assert last["score"] != first["score"]


def test_the_model_in_use_is_measured_on_the_same_requests(works: Works) -> None:
    good, worse = measurement(works, GOOD, Tier.SESSION), measurement(works, WORSE, Tier.SESSION)
    assert worse["champion"] is not None
    assert (worse["champion"]["version"], worse["champion"]["how"]) == ("1", "fitted again")
    (before,) = [period for period in good["periods"] if period["name"] == "test"]
    (after,) = [period for period in worse["periods"] if period["name"] == "test"]
    # The same configuration, rows and requests: the champion's figures are those of its own run.
    assert after["figures"]["champion"] == before["figures"]["model"]
    assert after["requests"] == before["requests"]


def test_the_card_says_what_the_tier_is_and_is_worth(works: Works) -> None:
    card = artifact(works, GOOD, Tier.CRM, "model_card.md")
    for said in (
        "# Model card: crm tier",
        "| permission needed to be answered | CRM permission |",
        "| sources read of the person asked for | CRM data",
        works.runs[GOOD].digests["crm"],
        "What the consent gate kept out",
        "### Test period",
        "### By length of history (items)",
        "## Limits",
        "## Main parameters",
        "Weight of an event by its type",
    ):
        assert said in card
    excluded = next(row for row in works.runs[GOOD].funnel if row["tier"] == "crm")["excluded"]
    for reason, count in excluded.items():
        assert f"| {reason} | {count:,} |" in card


def test_the_record_says_how_the_data_differ_from_those_of_the_model_in_use(works: Works) -> None:
    first, second, later = (drift_of(works, run) for run in (GOOD, WORSE, LATER))
    assert set(first["not_judged"]) == set(works.runs[GOOD].digests)
    none = "There is no champion of the crm tier to compare its data with."
    assert none == first["not_judged"]["crm"]
    assert none in artifact(works, GOOD, Tier.CRM, "model_card.md")
    # The same data at the same cut-off.
    assert second["not_judged"] == {}
    assert {check["tier"] for check in second["checks"]} == {"session", "fused"}
    assert {check["distance"] for check in second["checks"] if check["check"] != "volume"} <= {0.0, None}
    assert later["checks"] != [check for check in second["checks"] if check["tier"] == "session"]
    card = artifact(works, WORSE, Tier.SESSION, "model_card.md")
    assert "0 of 5 checks are beyond their threshold." in card
    (volume,) = [
        check for check in second["checks"] if (check["tier"], check["check"]) == ("session", "volume")
    ]
    assert f"| volume | {volume['then']:,g} | {volume['now']:,g} | 1 | 2 | ok |" in card
    assert "fused" not in card.partition("## Drift")[2].partition("## Limits")[0]
    page = run_artifact(works, works.runs[WORSE].run_ids["run"], "report.html")
    assert "Drift since the models in use" in page
    assert "0 of 11 checks are beyond their threshold." in page


def drift_of(works: Works, run: int) -> DriftResult:
    found: DriftResult = json.loads(run_artifact(works, works.runs[run].run_ids["run"], "drift.json"))
    return found


def test_nothing_of_a_person_is_in_the_record(works: Works) -> None:
    assert MARKER in works.shop.events["visitor_id"][0].as_py()
    searched = 0
    for path in works.out.rglob("*"):
        if path.is_file():
            searched += 1
            assert MARKER.encode() not in path.read_bytes(), path
    assert searched > 50


def test_threads_change_neither_a_bundle_nor_a_figure(works: Works, tmp_path: Path) -> None:
    one = works.config.model_copy(
        update={"training": works.config.training.model_copy(update={"threads": 1})}
    )
    again = train(
        works.shop, one, tmp_path, tiers=[Tier.SESSION, Tier.CRM], ledger=works.ledger, show_progress=False
    )
    for tier in ("session", "crm"):
        assert again.digests[tier] == works.runs[GOOD].digests[tier]
        found = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").download_artifacts(
            again.run_ids[tier], "measurement.json", str(tmp_path)
        )
        assert json.loads(Path(found).read_text()) == measurement(works, GOOD, Tier(tier))


def artifact(works: Works, run: int, tier: Tier, name: str) -> str:
    return run_artifact(works, works.runs[run].run_ids[str(tier)], name)


def run_artifact(works: Works, run_id: str, name: str) -> str:
    return Path(
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=works.uri)
    ).read_text("utf-8")


def measurement(works: Works, run: int, tier: Tier) -> Measurement:
    found: Measurement = json.loads(artifact(works, run, tier, "measurement.json"))
    return found


# ---- Promotion, from end to end ----------------------------------------------------------------------------


def test_the_first_good_version_is_promoted_and_served(slot: Slot, works: Works, tmp_path: Path) -> None:
    slot.register(GOOD, Tier.SESSION)
    dry = slot.promote(Tier.SESSION, dry_run=True)
    assert (dry.promoted, slot.champion(Tier.SESSION)) == (True, None)
    assert OUTCOME_TAG not in slot.registry.version(Tier.SESSION, "1").tags
    result = slot.promote(Tier.SESSION)
    assert (result.promoted, failed(result), slot.champion(Tier.SESSION)) == (True, {}, "1")
    told = slot.registry.version(Tier.SESSION, "1").tags
    assert told[OUTCOME_TAG].startswith("promoted ")
    assert [check["name"] for check in json.loads(told[CHECKS_TAG])] == [
        check.name for check in result.checks
    ]
    served = ReloadingRecommender(slot.source(tmp_path / "served", Tier.SESSION))
    answer = served.recommend(dataclasses.replace(asking(works), permission=Permission.NONE))
    assert answer.basis.bundle_digest == works.runs[GOOD].digests["session"]
    again = slot.promote(Tier.SESSION)
    assert (again.promoted, again.checks, again.note) == (True, (), "it is the champion already")


def test_a_worse_one_is_refused_and_the_old_one_serves_on(slot: Slot, works: Works, tmp_path: Path) -> None:
    slot.register(GOOD, Tier.SESSION)
    assert slot.promote(Tier.SESSION).promoted
    slot.register(WORSE, Tier.SESSION)
    served = ReloadingRecommender(slot.source(tmp_path / "served", Tier.SESSION))
    result = slot.promote(Tier.SESSION)
    assert not result.promoted
    assert "not worse than the champion" in failed(result)
    assert slot.champion(Tier.SESSION) == "1"
    told = slot.registry.version(Tier.SESSION, "2").tags
    assert told[OUTCOME_TAG].startswith("refused ")
    stored = {check["name"]: check for check in json.loads(told[CHECKS_TAG])}
    assert stored["not worse than the champion"]["seen"].startswith("ndcg@10 -")
    run_id = works.runs[WORSE].run_ids["session"]
    assert works.client.list_artifacts(run_id, "promotion")
    assert served.check()[Tier.SESSION].outcome is Outcome.UNCHANGED


def test_the_next_good_one_takes_over_and_one_command_goes_back(
    slot: Slot, works: Works, tmp_path: Path
) -> None:
    slot.register(GOOD, Tier.SESSION)
    assert slot.promote(Tier.SESSION).promoted
    served = ReloadingRecommender(slot.source(tmp_path / "served", Tier.SESSION))
    slot.register(LATER, Tier.SESSION)
    assert slot.promote(Tier.SESSION, at=works.later).promoted
    assert served.check()[Tier.SESSION].digest == works.runs[LATER].digests["session"]
    dry = rollback(slot.registry, Tier.SESSION, bundles=works.out, at=works.at, dry_run=True)
    assert (dry.done, dry.to, slot.champion(Tier.SESSION)) == (True, "1", "2")
    back = rollback(slot.registry, Tier.SESSION, bundles=works.out, at=works.at)
    assert (back.done, slot.champion(Tier.SESSION)) == (True, "1")
    # Its cut-off is earlier, and what serves takes it all the same; also after a restart.
    assert served.check()[Tier.SESSION].digest == works.runs[GOOD].digests["session"]
    again = ReloadingRecommender(slot.source(tmp_path / "served", Tier.SESSION))
    assert again.check()[Tier.SESSION].digest == works.runs[GOOD].digests["session"]
    with pytest.raises(DataError, match="version 1 is the first champion"):
        rollback(slot.registry, Tier.SESSION, bundles=works.out, at=works.at)
    assert slot.promote(Tier.SESSION, at=works.later).promoted, "the later one may come again"
    assert served.check()[Tier.SESSION].digest == works.runs[LATER].digests["session"]


def test_going_back_to_what_is_past_its_deadline_or_not_whole_is_refused(
    slot: Slot, works: Works, tmp_path: Path
) -> None:
    copy = shutil.copytree(works.out / "session", tmp_path / "altered")
    with (copy / "data.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    slot.register(GOOD, Tier.SESSION, artifact=copy.as_uri())
    slot.registry.point(Tier.SESSION, "champion", "1")
    slot.register(LATER, Tier.SESSION, previous_champion="1")
    slot.registry.point(Tier.SESSION, "champion", "2")
    back = rollback(slot.registry, Tier.SESSION, bundles=works.out, at=works.at)
    assert {check.name for check in back.checks if not check.passed} == {"bundle integrity"}
    past = (works.at - dt.timedelta(hours=1)).isoformat()
    slot.registry.tag(slot.registry.version(Tier.SESSION, "1"), withdrawal_deadline=past)
    back = rollback(slot.registry, Tier.SESSION, bundles=works.out, at=works.at)
    assert "withdrawal deadline" in {check.name for check in back.checks if not check.passed}
    assert slot.champion(Tier.SESSION) == "2"


# ---- Refusals ----------------------------------------------------------------------------------------------


def test_a_bundle_that_declares_another_permission_than_its_slot_is_refused(slot: Slot, works: Works) -> None:
    crm = works.runs[GOOD].run_ids["crm"]
    slot.register(
        GOOD,
        Tier.SESSION,
        artifact=f"{works.client.get_run(crm).info.artifact_uri}/bundle",
        bundle_digest=works.runs[GOOD].digests["crm"],
    )
    result = slot.promote(Tier.SESSION)
    check = failed(result)["declared permission"]
    assert "crm: permission crm" in check.seen
    assert slot.champion(Tier.SESSION) is None


def test_tags_that_say_less_than_the_bundle_needs_are_refused(slot: Slot) -> None:
    slot.register(GOOD, Tier.FUSED, permission="online")
    assert (
        "the registry: fused: permission online"
        in failed(slot.promote(Tier.FUSED))["declared permission"].seen
    )


def test_an_altered_bundle_is_refused(slot: Slot, works: Works, tmp_path: Path) -> None:
    other = shutil.copytree(works.out / "online", tmp_path / "online")
    payload = bytearray((other / "indices.npy").read_bytes())
    payload[-4] ^= 1
    (other / "indices.npy").write_bytes(payload)
    slot.register(GOOD, Tier.ONLINE, artifact=other.as_uri())
    assert "indices" in failed(slot.promote(Tier.ONLINE))["bundle integrity"].seen


def test_another_whole_bundle_than_the_registered_one_is_refused(slot: Slot, works: Works) -> None:
    slot.register(GOOD, Tier.SESSION, bundle_digest=works.runs[LATER].digests["session"])
    assert "bundle integrity" in failed(slot.promote(Tier.SESSION))


def member(works: Works) -> tuple[str, int]:
    """A visitor whom the session bundle of the first run holds, and how many it holds."""
    gate = ConsentGate(works.shop, works.ledger, works.at, Policy.default())
    subjects = gate.permitted(Tier.SESSION).subjects["subject_id"].to_pylist()
    return subjects[0], len(subjects)


def decided(visitor: str, state: str, at: dt.datetime, *, learnt: dt.datetime) -> ConsentRecord:
    return ConsentRecord(
        f"{state}-{at}", visitor, "visitor", "online", state,  # type: ignore[arg-type]
        valid_from=at, recorded_at=learnt, evidence="form",
    )  # fmt: skip


HOUR = dt.timedelta(hours=1)


@pytest.mark.parametrize("case", ["withdrawn", "withdrawn and granted again", "withdrawn earlier, told late"])
def test_whoever_withdrew_since_training_stands_against_it(slot: Slot, works: Works, case: str) -> None:
    visitor, members = member(works)
    ledger = ledger_of(works.shop)
    assert ledger.position == works.ledger.position
    before = works.at - 5 * HOUR
    if "late" in case:
        before = works.at - THREE_DAYS - HOUR
    records = [decided(visitor, "withdrawn", before, learnt=works.at - HOUR)]
    if case != "withdrawn":
        records.append(decided(visitor, "granted", before + HOUR / 2, learnt=works.at - HOUR))
    slot.register(GOOD, Tier.SESSION)
    assert slot.promote(Tier.SESSION, ledger=ledger, dry_run=True).promoted
    ledger.append(records)
    check = failed(slot.promote(Tier.SESSION, ledger=ledger))["consents hold"]
    assert check.seen == f"{members - 1:,} of {members:,} permit it"
    assert visitor not in json.dumps(slot.registry.version(Tier.SESSION, "1").tags)


def test_what_the_lineage_or_the_ledger_does_not_know_is_refused(slot: Slot, tmp_path: Path) -> None:
    slot.register(GOOD, Tier.SESSION)
    empty = Restricted(tmp_path / "restricted").lineage()
    assert (
        "does not know the bundle" in failed(slot.promote(Tier.SESSION, lineage=empty))["consents hold"].seen
    )
    other = failed(slot.promote(Tier.SESSION, ledger=Ledger([])))["consents hold"]
    assert "it is another ledger" in other.seen


def test_a_deadline_is_carried_to_what_serves_elsewhere(slot: Slot, works: Works, tmp_path: Path) -> None:
    slot.register(GOOD, Tier.SESSION)
    assert slot.promote(Tier.SESSION).promoted
    now = [works.at]
    served = ReloadingRecommender(slot.source(tmp_path / "served", Tier.SESSION), clock=lambda: now[0])
    asked = dataclasses.replace(asking(works), permission=Permission.NONE)
    assert served.recommend(asked).tier is Tier.SESSION
    with revoked(works, works.runs[GOOD].digests["session"], works.at + HOUR):
        slot.register(GOOD, Tier.SESSION)
        result = slot.promote(Tier.SESSION)
        assert failed(result)["no withdrawal deadline"].seen == (works.at + HOUR).isoformat()
    served.check()
    assert served.recommend(asked).tier is Tier.SESSION
    now[0] += 2 * HOUR
    answer = served.recommend(asked)
    assert answer.tier is Tier.NONE
    assert f"session: {PAST_DEADLINE}" in answer.basis.reasons


@contextlib.contextmanager
def revoked(works: Works, digest: str, deadline: dt.datetime) -> Iterator[None]:
    revoke(works.out, [digest], deadline, "withdrawal")
    try:
        yield
    finally:
        (works.out / "revocations.json").unlink()


def test_a_latency_budget_that_is_not_kept_is_refused(slot: Slot) -> None:
    slot.register(GOOD, Tier.SESSION)
    check = failed(slot.promote(Tier.SESSION, latency_budget=1e-6))["latency"]
    assert check.needed == "at most 1e-06 ms"


def test_a_run_without_figures_is_refused(slot: Slot, works: Works) -> None:
    run = works.client.create_run(works.client.get_experiment_by_name("consentier").experiment_id)
    source = f"{works.client.get_run(works.runs[GOOD].run_ids['crm']).info.artifact_uri}/bundle"
    slot.registry.register(Tier.CRM, run.info.run_id, source, {"bundle_digest": "sha256:" + "0" * 64})
    assert "no figures" in failed(slot.promote(Tier.CRM))["measured"].seen


def test_who_is_interrupted_leaves_the_old_champion(
    slot: Slot, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot.register(GOOD, Tier.SESSION)
    assert slot.promote(Tier.SESSION).promoted
    slot.register(LATER, Tier.SESSION)
    for step in ("note", "tag", "point"):
        with monkeypatch.context() as patch:
            patch.setattr(slot.registry, step, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                slot.promote(Tier.SESSION, at=works.later)
        assert slot.champion(Tier.SESSION) == "1"
    assert slot.promote(Tier.SESSION, at=works.later).promoted
    assert slot.registry.version(Tier.SESSION, "2").tags["previous_champion"] == "1"


# ---- The commands ------------------------------------------------------------------------------------------


def command(works: Works, name: str, *arguments: object) -> tuple[int, str, str]:
    given = [name, *arguments, "--bundles", works.out]
    result = CliRunner().invoke(app, [str(argument) for argument in given], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def test_promote_prints_every_check_and_exits_with_0_only_if_all_hold(works: Works) -> None:
    data = ("--data", works.folder / "shop", "--dry-run", "--at", works.later.isoformat())
    code, out, _ = command(works, "promote", "--tier", "session", *data)
    assert (code, out.rstrip().splitlines()[-1]) == (0, "would be promoted")
    assert "consentier-session: version 3, champion 1" in out
    code, out, _ = command(works, "promote", "--tier", "session", "--tier", "fused", *data, "--json")
    found = {each["tier"]: each for each in json.loads(out)["tiers"]}
    assert (code, found["session"]["promoted"], found["fused"]["promoted"]) == (1, True, False)
    refused = {check["name"] for check in found["fused"]["checks"] if not check["passed"]}
    assert "not worse than the champion" in refused
    assert ModelRegistry(works.client, "consentier").aliased(Tier.SESSION, "champion") is not None
    assert CHECKS_TAG not in ModelRegistry(works.client, "consentier").version(Tier.SESSION, "3").tags


def test_what_cannot_be_promoted_from_says_so(works: Works, tmp_path: Path) -> None:
    code, _, err = command(works, "rollback", "session")
    assert (code, "version 1 is the first champion" in err) == (2, True)
    result = CliRunner().invoke(app, ["promote", "--bundles", str(tmp_path), "--data", "nowhere"])
    assert (result.exit_code, "there is no restricted directory" in result.stderr) == (2, True)
    (tmp_path / "b-restricted").mkdir()
    result = CliRunner().invoke(app, ["rollback", "fused", "--bundles", str(tmp_path / "b")])
    assert (result.exit_code, "holds no mlflow.db" in result.stderr) == (2, True)


def test_a_withdrawal_tells_the_registry(works: Works, tmp_path: Path) -> None:
    """On a copy of the store, since it gives all bundles of a visitor a deadline."""
    out = shutil.copytree(works.out, tmp_path / "bundles")
    shutil.copytree(works.restricted.path, tmp_path / "bundles-restricted")
    url = f"sqlite:///{tmp_path / 'consents.db'}"
    with Ledger.open(url) as ledger:
        ledger.append(record for _, record in works.ledger.entries() if isinstance(record, ConsentRecord))
    visitor, _ = member(works)
    arguments = ["consent", "withdraw", visitor, "--kind", "visitor", "--source", "online", "--ledger", url]
    options = ["--bundles", str(out), "--registry", "--at", works.at.isoformat()]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0, result.stderr
    registry = ModelRegistry(store_client(works.config.tracking, out), "consentier")
    deadline = (works.at + dt.timedelta(days=30)).isoformat()
    assert registry.version(Tier.SESSION, "1").tags["withdrawal_deadline"] == deadline
    assert registry.version(Tier.CRM, "1").tags["withdrawal_deadline"] == ""


# ---- The model in use --------------------------------------------------------------------------------------


def test_a_model_in_use_is_asked_as_it_is_only_if_that_is_fair_and_lawful(
    works: Works, tmp_path: Path
) -> None:
    """It is not if it has seen the test period, or rests on somebody who withdrew."""
    periods = Periods.before(works.at, works.config)
    permitted = ConsentGate(works.shop, works.ledger, works.at, Policy.default()).permitted(Tier.SESSION)
    earlier = works.config.with_cutoff(periods.test)
    train_bundles(works.shop, earlier, tmp_path, tiers=[Tier.SESSION], show_progress=False)
    before, after = open_bundle(tmp_path / "session"), open_bundle(works.out / "session")
    found = {}
    for name, bundle, may_be_asked in (
        ("fair", before, True),
        ("held", before, False),
        ("seen", after, True),
    ):
        champion = Champion("7", bundle, may_be_asked)
        measured = measure(Tier.SESSION, permitted, works.config, periods, fitted=before, champion=champion)
        assert measured["champion"] is not None
        found[name] = measured["champion"]["how"]
        assert {each["against"] for each in measured["differences"]} == {"popular", "champion"}
        if name == "fair":
            against = [
                each["difference"] for each in measured["differences"] if each["against"] == "champion"
            ]
            assert all(each == {"mean": 0.0, "low": 0.0, "high": 0.0} for each in against), "it is the model"
    assert found == {"fair": "as it is", "held": "fitted again", "seen": "fitted again"}


def test_a_model_in_use_that_cannot_be_fitted_again_ends_nothing(works: Works, tmp_path: Path) -> None:
    """It borrowed by a column that the items table has no more."""
    items = works.shop.items
    fancy = dataclasses.replace(works.shop, items=items.append_column("fancy", items["category"]))
    before = works.at - dt.timedelta(days=10)
    borrows = works.config.session.model_copy(update={"metadata_persons": 5, "metadata_columns": ("fancy",)})
    config = works.config.model_copy(update={"session": borrows})
    train_bundles(fancy, config, tmp_path, tiers=[Tier.SESSION], show_progress=False)
    champion = Champion("7", open_bundle(tmp_path / "session"), may_be_asked=False)
    permitted = ConsentGate(works.shop, works.ledger, works.at, Policy.default()).permitted(Tier.SESSION)
    fitted = train_bundles(
        works.shop, works.config.with_cutoff(works.at), tmp_path / "earlier", tiers=[Tier.SESSION],
        until=before, show_progress=False,
    )  # fmt: skip
    measured = measure(
        Tier.SESSION, permitted, works.config, Periods.before(works.at, works.config),
        fitted=open_bundle(fitted.out / "session"), champion=champion,
    )  # fmt: skip
    assert measured["champion"] is None
    assert any("could not be measured: " in note and "fancy" in note for note in measured["notes"])
    assert {period["name"] for period in measured["periods"]} == {"validation", "test"}


# ---- Level 3 -----------------------------------------------------------------------------------------------


def test_where_fused_does_not_pay_level_3_is_served_by_the_best_single_source(
    slot: Slot, works: Works, tmp_path: Path
) -> None:
    for tier in (Tier.ONLINE, Tier.CRM):
        slot.register(GOOD, tier)
        slot.registry.point(tier, "champion", "1")
    slot.register(WORSE, Tier.FUSED)
    best = measurement(works, WORSE, Tier.FUSED)["single_source"]
    assert best is not None
    dry = slot.promote(Tier.FUSED, dry_run=True)
    assert "level_3" not in works.client.get_registered_model(slot.registry.name(Tier.FUSED)).tags
    result = slot.promote(Tier.FUSED)
    assert (result.promoted, result.level_3, result.checks) == (False, dry.level_3, result.checks)
    assert result.level_3 == best["best"]
    assert "not worse than the best single source" in failed(result)
    served = ReloadingRecommender(slot.source(tmp_path / "served", Tier.ONLINE, Tier.CRM, Tier.FUSED))
    answer = served.recommend(asking(works))
    assert answer.tier is result.level_3
    assert answer.basis.sources == {"online": ("online", "session"), "crm": ("crm",)}[best["best"]]
    assert answer.basis.policy_version == f"consentier-default-1; level 3 by {best['best']}"
    # Also while the registry is away, after a restart.
    assert Recommender.load(tmp_path / "served").recommend(asking(works)).tier is result.level_3
    # A fused version that is promoted ends it, in the same step.
    slot.register(GOOD, Tier.FUSED)
    slot.registry.point(Tier.FUSED, "champion", "2")
    served.check()
    answer = served.recommend(asking(works))
    assert (answer.tier, answer.basis.policy_version) == (Tier.FUSED, "consentier-default-1")


def test_a_champion_that_is_better_than_the_challenger_stays(slot: Slot, works: Works) -> None:
    slot.register(GOOD, Tier.FUSED)
    slot.registry.point(Tier.FUSED, "champion", "1")
    slot.register(WORSE, Tier.FUSED)
    result = slot.promote(Tier.FUSED)
    assert {"not worse than the champion", "not worse than the best single source"} <= set(failed(result))
    assert (result.promoted, result.level_3, slot.champion(Tier.FUSED)) == (False, None, "1")
    assert "level_3" not in works.client.get_registered_model(slot.registry.name(Tier.FUSED)).tags


# ---- The checks by themselves ------------------------------------------------------------------------------

CHAMPION = Version(Tier.FUSED, "4", "run", {"bundle_digest": "sha256:4", "cutoff": "2026-02-01"})


def figures(*, popular: float = 0.1, champion: float = 0.0, single: float = 0.0) -> Measurement:
    """Mean differences, each with an interval of 0.02 to both sides."""

    def interval(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}

    found = empty_measurement(Tier.FUSED, Config())
    found["champion"] = {"version": "4", "digest": "sha256:4", "how": "as it is"}
    for against, mean in (("popular", popular), ("champion", champion)):
        found["differences"].append(
            {"against": against, "metric": "ndcg@10", "difference": interval(mean), "p_value": 0.5}  # type: ignore[typeddict-item]
        )
    found["single_source"] = {
        "best": "crm", "metric": "ndcg@10", "customers": 99, "difference": interval(single), "p_value": 0.5,  # type: ignore[typeddict-item]
    }  # fmt: skip
    return found


@pytest.mark.parametrize(("popular", "passes"), [(0.021, True), (0.019, False), (-0.1, False)])
def test_popular_must_be_beaten_beyond_the_interval(popular: float, passes: bool) -> None:
    assert better_than_popular(figures(popular=popular)).passed is passes


@pytest.mark.parametrize(("difference", "passes"), [(0.1, True), (-0.019, True), (-0.021, False)])
def test_champion_and_single_source_may_not_be_better_beyond_the_interval(
    difference: float, passes: bool
) -> None:
    assert not_worse_than_champion(figures(champion=difference), CHAMPION).passed is passes
    assert not_worse_than_single_source(figures(single=difference)).passed is passes


def test_what_was_not_measured_does_not_pass() -> None:
    nothing = empty_measurement(Tier.FUSED, Config())
    nothing["notes"].append("Too few persons.")
    checks = [
        better_than_popular(nothing),
        not_worse_than_champion(nothing, CHAMPION),
        not_worse_than_single_source(nothing),
    ]
    assert [(check.passed, check.seen) for check in checks] == [(False, "Too few persons.")] * 3
    assert not_worse_than_champion(nothing, None).passed


@pytest.mark.parametrize("changed", [{"number": "5"}, {"tags": {"bundle_digest": "sha256:5"}}])
def test_figures_against_another_champion_do_not_count(changed: dict[str, Any]) -> None:
    check = not_worse_than_champion(figures(), dataclasses.replace(CHAMPION, **changed))
    assert not check.passed
    assert "held against version 4" in check.seen


def test_an_earlier_cutoff_than_the_champions_is_refused() -> None:
    earlier = dataclasses.replace(CHAMPION, tags={"cutoff": "2026-01-31"})
    assert not training_cutoff(earlier, CHAMPION).passed
    assert training_cutoff(CHAMPION, earlier).passed
    assert not training_cutoff(dataclasses.replace(CHAMPION, tags={}), None).passed


@pytest.mark.parametrize(
    ("measured", "champion", "wins", "level_3"),
    [
        (figures(), CHAMPION, True, Tier.FUSED),
        (figures(single=-0.1), None, False, Tier.CRM),
        (figures(single=-0.1), CHAMPION, False, Tier.CRM),
        (figures(single=-0.1, champion=-0.1), CHAMPION, False, None),
        (figures(single=-0.01), None, False, None),
        (figures(single=-0.1), dataclasses.replace(CHAMPION, number="3"), False, None),
    ],
)
def test_who_answers_level_3(
    measured: Measurement, champion: Version | None, wins: bool, level_3: Tier | None
) -> None:
    assert decide_level_3(measured, champion, challenger_wins=wins) is level_3


# ---- Bad luck ----------------------------------------------------------------------------------------------


def test_two_promotions_at_once_end_as_one(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    slot.register(GOOD, Tier.POPULAR)
    assert slot.promote(Tier.POPULAR).promoted
    slot.register(GOOD, Tier.POPULAR)
    store = promotion._store
    inner: list[Promotion] = []

    def meanwhile(*arguments: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(promotion, "_store", store)
            inner.append(slot.promote(Tier.POPULAR))
        store(*arguments)

    monkeypatch.setattr(promotion, "_store", meanwhile)
    outer = slot.promote(Tier.POPULAR)
    assert [(each.promoted, each.version, each.before) for each in (outer, *inner)] == [(True, "2", "1")] * 2
    assert slot.champion(Tier.POPULAR) == "2"
    assert slot.registry.version(Tier.POPULAR, "2").tags[PREVIOUS_TAG] == "1"
    monkeypatch.setattr(promotion, "_store", store)
    assert "already" in slot.promote(Tier.POPULAR).note


@pytest.fixture
def impatient() -> Iterator[list[str]]:
    """MLflow waits 20 seconds for a database that is locked; meanwhile 0.1. Holds what it was to wait."""
    patience = []

    def shortened(_: object, __: object, statement: str, parameters: Any, *___: object) -> tuple[str, Any]:
        if "busy_timeout" in statement:
            patience.append(statement)
            statement = "PRAGMA busy_timeout = 100"
        return statement, parameters

    sa.event.listen(sa.Engine, "before_cursor_execute", shortened, retval=True)
    yield patience
    sa.event.remove(sa.Engine, "before_cursor_execute", shortened)


def test_a_service_goes_on_while_the_registry_is_locked(
    slot: Slot, tmp_path: Path, impatient: list[str]
) -> None:
    slot.register(GOOD, Tier.POPULAR)
    assert slot.promote(Tier.POPULAR).promoted
    source = slot.source(tmp_path / "served", Tier.POPULAR)
    assert source.fetch() == {}
    before = open_bundle(tmp_path / "served" / "popular").digest
    with contextlib.closing(sqlite3.connect(slot.works.out / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "locked" in source.fetch()[Tier.POPULAR]
        assert impatient
        other.execute("ROLLBACK")
    assert open_bundle(tmp_path / "served" / "popular").digest == before
    assert source.fetch() == {}


def test_a_trainer_ends_the_runs_that_it_was_killed_in_and_no_others(works: Works) -> None:
    experiment = works.client.create_experiment("stale")
    ours, done, of_others = (
        works.client.create_run(experiment, tags=tags).info.run_id
        for tags in (trainer_tags(works.restricted), trainer_tags(works.restricted), trainer_tags(None))
    )
    works.client.set_terminated(done, status="FINISHED")
    works.restricted.keyring().rotate(works.at)
    assert end_stale_runs(works.client, experiment, None) == 0
    assert end_stale_runs(works.client, experiment, works.restricted) == 1
    statuses = [works.client.get_run(run).info.status for run in (ours, done, of_others)]
    assert statuses == ["KILLED", "FINISHED", "RUNNING"]
