"""Forgetting in the registry: new versions, moved aliases, revoked copies; killed at each step, run twice."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dying_client import Dying, Killed
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.consent import Channel, Permission, Tier
from consentier.errors import DataError, TrackingError, TrainingError
from consentier.features.gate import ledger_of
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.models.bundle import open_bundle, read_run
from consentier.serving import Request
from consentier.serving.registry import DEADLINE_TAG, DIGEST_TAG, RegistrySource
from consentier.serving.reloading import ReloadingRecommender
from consentier.serving.revocation import PAST_DEADLINE, Deadlines
from consentier.training import forget as forgetting
from consentier.training import forgotten_versions as telling
from consentier.training import record as recording
from consentier.training.bundles import train_bundles
from consentier.training.config import Config, load_config
from consentier.training.config_file import config_toml
from consentier.training.forget import ForgetResult, forget
from consentier.training.forgotten_versions import RegisteredTier, register_forgotten
from consentier.training.model_registry import ModelRegistry, Version, version_tags
from consentier.training.promote import rollback
from consentier.training.restricted import Restricted
from consentier.training.retrain import retrain
from consentier.training.track import opened_store, store_client
from consentier.training.train import train

TIERS = (Tier.CRM, Tier.FUSED)
NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
FIGURES = {"version": 1, "notes": []}


@dataclasses.dataclass(frozen=True)
class Works:
    """A shop, its bundles, and a registry of a test's own."""

    data: Path
    shop: ShopTables
    config: Config
    out: Path
    customer: str
    items: list[str]

    @property
    def restricted(self) -> Restricted:
        return Restricted.beside(self.out)

    @property
    def registry(self) -> ModelRegistry:
        return ModelRegistry(self.client, self.config.tracking.experiment)

    @property
    def client(self) -> Any:
        return store_client(self.config.tracking, self.out)

    def train(self, config: Config, *tiers: Tier) -> None:
        train_bundles(
            self.shop,
            config,
            self.out,
            tiers=tiers,
            restricted=self.restricted,
            force=True,
            show_progress=False,
        )

    def register(self, tier: Tier) -> Version:
        """The bundle that stands, as a training run registers it."""
        client, experiment = opened_store(self.config.tracking, self.out)
        bundle = open_bundle(self.out / tier)
        run = client.create_run(experiment, tags={"bundle_digest": bundle.digest}).info
        client.log_artifacts(run.run_id, str(bundle.path), "bundle")
        client.log_dict(run.run_id, FIGURES, "measurement.json")
        client.set_terminated(run.run_id)
        told = version_tags(bundle.manifest, bundle.digest, read_run(bundle.path))
        return self.registry.register(tier, run.run_id, f"{run.artifact_uri}/bundle", told)

    def forget(self, **options: Any) -> ForgetResult:
        options.setdefault("tiers", TIERS)
        subjects = [("customer", self.customer)]
        return forget(self.shop, subjects, self.out, self.restricted, show_progress=False, **options)

    def tell(self, result: ForgetResult, *, at: dt.datetime = NOW) -> dict[Tier, RegisteredTier]:
        told = register_forgotten(
            self.config, self.out, self.restricted, [("customer", self.customer)], result, tiers=TIERS, at=at
        )
        return {each.tier: each for each in told}

    def champion(self, tier: Tier) -> Version | None:
        return self.registry.aliased(tier, "champion")

    def served(
        self, folder: Path, *tiers: Tier, clock: Callable[[], dt.datetime] = lambda: NOW
    ) -> ReloadingRecommender:
        models = {str(tier): f"models:/{self.registry.name(tier)}@champion" for tier in tiers}
        source = RegistrySource(models, folder, tracking_uri=self.config.tracking.uri)
        return ReloadingRecommender(source, clock=clock)

    def asking(self) -> Request:
        return Request(crm_history=self.items[:3], permission=Permission.CRM, channel=Channel.EMAIL, n=5)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Works:
    folder = tmp_path_factory.mktemp("forgotten")
    write_shop(simulate(SimulationConfig(customers=150, items=40, days=40, horizon_days=7)), folder / "shop")
    shop, config = read_shop(folder / "shop"), load_config(data=folder / "shop")
    tracking = config.tracking.model_copy(update={"uri": f"sqlite:///{folder / 'mlflow.db'}"})
    # Without attributes, whose groups a single person can shift.
    tiers = {str(tier): getattr(config, tier).model_copy(update={"attribute_weight": 0.0}) for tier in TIERS}
    config = config.model_copy(update={"tracking": tracking, **tiers})
    assert config.training.cutoff is not None
    linked = {link.customer_id for link in ledger_of(shop).lawful_links(at=config.training.cutoff).values()}
    orders = Counter(shop.orders["customer_id"].to_pylist())
    customer = max(sorted(linked), key=lambda each: orders[each])
    works = Works(
        folder / "shop", shop, config, folder / "bundles", customer, shop.items["item_id"].to_pylist()
    )
    works.train(config, *TIERS)
    return works


@pytest.fixture
def works(workshop: Works, tmp_path: Path, request: pytest.FixtureRequest) -> Works:
    """The same bundles, free to be changed, and a registry without versions."""
    out = tmp_path / "bundles"
    shutil.copytree(workshop.out, out)
    shutil.copytree(workshop.restricted.path, Restricted.beside(out).path)
    tracking = workshop.config.tracking.model_copy(update={"experiment": request.node.name})
    return dataclasses.replace(
        workshop, out=out, config=workshop.config.model_copy(update={"tracking": tracking})
    )


def test_the_bundle_that_forgot_takes_the_champions_place(works: Works, tmp_path: Path) -> None:
    old = works.register(Tier.CRM)
    works.registry.point(Tier.CRM, "champion", old.number)
    served = works.served(tmp_path / "served", Tier.CRM)
    assert served.recommend(works.asking()).basis.bundle_digest == old.digest
    told = works.tell(works.forget())
    assert told == {Tier.CRM: RegisteredTier(Tier.CRM, "2", "1", "2", ("1",), None)}
    new = works.champion(Tier.CRM)
    assert new is not None
    assert works.registry.aliased(Tier.CRM, "challenger") == new
    assert new.digest == open_bundle(works.out / "crm").digest != old.digest
    same = ("tier", "permission", "sources", "cutoff", "ledger_position", "ledger_head", "config_hash")
    assert {name: new.tags[name] for name in same} == {name: old.tags[name] for name in same}
    assert (new.tags["made_from"], new.tags["forgot"], new.tags["withdrawal_deadline"]) == ("1", "1", "")
    revoked = works.registry.version(Tier.CRM, "1").tags
    assert revoked["withdrawal_deadline"] == NOW.isoformat()
    assert revoked["revoked"] == f"forgotten {NOW.isoformat()}; version 2 stands in its place"
    served.check()
    assert served.recommend(works.asking()).basis.bundle_digest == new.digest
    # What was measured holds for the configuration; the version says whose figures they are.
    figures = json.loads(works.registry.read(new, "measurement.json", tmp_path))
    assert figures["notes"] == ["These are the figures of version 1, of which this one is made."]
    # Nothing leads back, and nothing is left to do.
    with pytest.raises(DataError, match="version 2 is the first champion"):
        rollback(works.registry, Tier.CRM, bundles=works.out, at=NOW)
    again = works.tell(works.forget(), at=NOW + dt.timedelta(days=1))
    assert again == told
    assert works.registry.version(Tier.CRM, "1").tags == revoked
    assert len(works.registry.versions(Tier.CRM)) == 2


def test_going_back_leads_past_what_was_revoked(works: Works) -> None:
    works.register(Tier.CRM)
    works.registry.tag(works.registry.version(Tier.CRM, "1"), previous_champion="7", rolled_back_from="9")
    works.registry.point(Tier.CRM, "champion", "1")
    works.tell(works.forget())
    champion = works.champion(Tier.CRM)
    assert champion is not None
    assert (champion.number, champion.tags["previous_champion"]) == ("2", "7")
    assert champion.tags["rolled_back_from"] == "9", "what serves must take its earlier cut-off, too"


def test_an_older_champion_that_holds_the_subject_stays_with_a_deadline(works: Works, tmp_path: Path) -> None:
    cutoff = works.config.training.cutoff
    assert cutoff is not None
    works.train(works.config.with_cutoff(cutoff - dt.timedelta(days=1)), Tier.CRM)
    works.registry.point(Tier.CRM, "champion", works.register(Tier.CRM).number)
    works.train(works.config, Tier.CRM)
    works.register(Tier.CRM)
    served = works.served(tmp_path / "served", Tier.CRM)
    told = works.tell(works.forget())[Tier.CRM]
    deadline = NOW + dt.timedelta(days=30)
    assert told == RegisteredTier(Tier.CRM, "3", "2", "1", ("2", "1"), deadline)
    assert works.registry.version(Tier.CRM, "1").tags["withdrawal_deadline"] == deadline.isoformat()
    assert "holds, or may hold" in works.registry.version(Tier.CRM, "1").tags["revoked"]
    assert works.registry.version(Tier.CRM, "2").tags["withdrawal_deadline"] == NOW.isoformat()
    served.check()
    revocations = json.loads((tmp_path / "served" / "revocations.json").read_text())["revocations"]
    assert [each["deadline"] for each in revocations] == [deadline.isoformat()], "what serves follows it"


def test_versions_without_the_subject_are_left_alone(works: Works) -> None:
    lineage = works.restricted.lineage()
    holding = {held.digest for held in lineage.bundles_of("customer", works.customer)}
    other = next(
        customer
        for customer in sorted(set(works.shop.orders["customer_id"].to_pylist()))
        if not lineage.bundles_of("customer", customer)
    )
    assert open_bundle(works.out / "crm").digest in holding
    works.registry.point(Tier.CRM, "champion", works.register(Tier.CRM).number)
    stranger = dataclasses.replace(works, customer=other)
    assert stranger.tell(stranger.forget()) == {Tier.CRM: RegisteredTier(Tier.CRM, None, None, "1", (), None)}
    assert not (works.out / "revocations.json").exists()


def test_a_tier_of_which_nothing_is_left_stops_where_it_serves(works: Works, tmp_path: Path) -> None:
    works.registry.point(Tier.CRM, "champion", works.register(Tier.CRM).number)
    served = works.served(tmp_path / "served", Tier.CRM)
    mine = works.shop.orders["customer_id"].to_pylist()
    alone = works.shop.orders.filter([customer == works.customer for customer in mine])
    usage = works.shop.product_usage.slice(0, 0)
    works = dataclasses.replace(
        works, shop=dataclasses.replace(works.shop, orders=alone, product_usage=usage)
    )
    shutil.rmtree(works.restricted.statistics(Tier.CRM))
    result = works.forget(tiers=[Tier.CRM])
    assert [each.how for each in result.tiers] == ["removed"]
    assert works.tell(result)[Tier.CRM] == RegisteredTier(Tier.CRM, None, None, "1", ("1",), NOW)
    assert works.registry.version(Tier.CRM, "1").tags["revoked"].endswith("nothing stands in its place")
    served.check()
    answer = served.recommend(works.asking())
    assert answer.tier is not Tier.CRM
    assert any(PAST_DEADLINE in reason for reason in answer.basis.reasons)


def test_a_tier_without_a_stable_solution_stops_where_it_serves(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unstable(*_: object, **__: object) -> None:
        raise TrainingError("the ridge system of item 3 has no stable solution")

    works.registry.point(Tier.CRM, "champion", works.register(Tier.CRM).number)
    monkeypatch.setattr(forgetting, "decremented", unstable)
    result = works.forget(tiers=[Tier.CRM])
    assert [each.how for each in result.tiers] == ["unsolved"]
    assert works.tell(result)[Tier.CRM] == RegisteredTier(Tier.CRM, None, None, "1", ("1",), NOW)


def test_killed_between_the_last_bundle_and_the_registry_the_next_run_tells_it(
    works: Works, tmp_path: Path
) -> None:
    works.registry.point(Tier.CRM, "champion", works.register(Tier.CRM).number)
    shutil.rmtree(works.out / "fused")
    mine = works.shop.orders["customer_id"].to_pylist()
    alone = works.shop.orders.filter([customer == works.customer for customer in mine])
    shop = dataclasses.replace(works.shop, orders=alone, product_usage=works.shop.product_usage.slice(0, 0))
    shutil.rmtree(works.restricted.statistics(Tier.CRM))
    result = dataclasses.replace(works, shop=shop).forget(tiers=[Tier.CRM])
    assert [each.how for each in result.tiers] == ["removed"]
    (tmp_path / "config.toml").write_text(config_toml(works.config), "utf-8")
    command = ["forget", works.customer, "--data", str(works.data), "--bundles", str(works.out)]
    run = CliRunner().invoke(app, [*command, "--config", str(tmp_path / "config.toml"), "--json"])
    assert run.exit_code == 0, run.stderr
    (told,) = json.loads(run.stdout)["registry"]
    assert (told["tier"], told["champion"], told["revoked"]) == ("crm", "1", ["1"])
    assert works.registry.version(Tier.CRM, "1").tags[DEADLINE_TAG]
    # Where there is nothing to forget anybody in, in no registry either, it is an error as ever.
    nowhere = ["forget", works.customer, "--data", str(works.data), "--bundles", str(tmp_path / "typo")]
    refused = CliRunner().invoke(app, [*nowhere, "--config", str(tmp_path / "config.toml")])
    assert refused.exit_code == 2
    assert "there is no bundle" in refused.stderr


def test_a_digest_that_was_stopped_stays_so_in_later_versions(works: Works, tmp_path: Path) -> None:
    """What serves goes by the digest: a version without the deadline would be promoted, and not answer."""
    first = works.register(Tier.CRM)
    works.registry.point(Tier.CRM, "champion", first.number)
    served = works.served(tmp_path / "served", Tier.CRM)
    assert served.recommend(works.asking()).tier is Tier.CRM
    works.registry.tag(first, **{DEADLINE_TAG: NOW.isoformat()})
    served.check()
    assert served.recommend(works.asking()).tier is not Tier.CRM
    again = works.register(Tier.CRM)
    works.registry.point(Tier.CRM, "champion", again.number)
    assert again.digest == first.digest
    assert works.registry.note_deadlines(Tier.CRM, Deadlines()) == 1
    assert works.registry.version(Tier.CRM, again.number).tags[DEADLINE_TAG] == NOW.isoformat()
    assert works.registry.note_deadlines(Tier.CRM, Deadlines()) == 0
    served.check()
    assert served.recommend(works.asking()).tier is not Tier.CRM


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("how", ["train", "retrain"])
def test_a_tier_that_nobody_permits_any_more_stops_where_it_serves(
    works: Works, tmp_path: Path, how: str, recorded: bool
) -> None:
    tracking = works.config.tracking.model_copy(update={"enabled": recorded})
    works = dataclasses.replace(works, config=works.config.model_copy(update={"tracking": tracking}))
    ours = works.register(Tier.CRM)
    works.registry.point(Tier.CRM, "champion", ours.number)
    served = works.served(tmp_path / "served", Tier.CRM, clock=lambda: dt.datetime.now(dt.UTC))
    assert served.recommend(works.asking()).tier is Tier.CRM
    of_another_trainer = {**ours.tags, DIGEST_TAG: f"sha256:{'0' * 64}"}
    artifact = f"{works.client.get_run(ours.run_id).info.artifact_uri}/bundle"
    works.registry.register(Tier.CRM, ours.run_id, artifact, of_another_trainer)
    nothing = {name: getattr(works.shop, name).slice(0, 0) for name in ("orders", "product_usage")}
    shop = dataclasses.replace(works.shop, **nothing)

    runs = {
        "retrain": functools.partial(retrain, shop, works.config, works.out, works.restricted),
        "train": functools.partial(
            train, shop, works.config, works.out, restricted=works.restricted, force=True
        ),
    }

    def run() -> None:
        with pytest.raises(TrainingError, match="no permitted rows"):
            runs[how](tiers=[Tier.CRM], show_progress=False)

    run()
    assert ours.digest not in works.restricted.lineage().digests()
    told = works.registry.version(Tier.CRM, ours.number).tags[DEADLINE_TAG]
    assert dt.datetime.fromisoformat(told) <= dt.datetime.now(dt.UTC)
    assert works.registry.version(Tier.CRM, "2").tags[DEADLINE_TAG] == ""
    served.check()
    assert served.recommend(works.asking()).tier is not Tier.CRM
    run()
    assert works.registry.version(Tier.CRM, ours.number).tags[DEADLINE_TAG] == told


def test_who_answers_level_3_stays_decided(works: Works) -> None:
    works.registry.point(Tier.FUSED, "champion", works.register(Tier.FUSED).number)
    works.registry.decide_level_3(json.dumps({"by": "crm", "instead_of": "1"}))
    works.tell(works.forget())
    tags = works.client.get_registered_model(works.registry.name(Tier.FUSED)).tags
    assert json.loads(tags["level_3"]) == {"by": "crm", "instead_of": "2"}
    works.registry.decide_level_3(json.dumps({"by": "online", "instead_of": "9"}))
    works.tell(works.forget())
    tags = works.client.get_registered_model(works.registry.name(Tier.FUSED)).tags
    assert json.loads(tags["level_3"]) == {"by": "online", "instead_of": "9"}


def test_what_was_never_registered_is_not_made_a_version(works: Works) -> None:
    assert works.tell(works.forget()) == {}
    assert works.registry.versions(Tier.CRM) == []


def test_forgotten_twice_before_the_registry_was_told_it_is_known_what_was_replaced(works: Works) -> None:
    old = works.register(Tier.CRM)
    works.registry.point(Tier.CRM, "champion", old.number)
    works.forget()
    lineage = works.restricted.lineage()
    second = next(
        customer
        for customer in works.shop.orders["customer_id"].to_pylist()
        if "crm" in {held.tier for held in lineage.bundles_of("customer", customer)}
    )
    after = dataclasses.replace(works, customer=second)
    told = after.tell(after.forget())[Tier.CRM]
    assert (told.version, told.made_from, told.champion, told.revoked) == ("2", "1", "2", ("1",))
    assert works.registry.version(Tier.CRM, "2").tags["forgot"] == "2"


def test_killed_at_any_step_the_next_run_brings_the_registry_to_the_same(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = works.forget()
    forgotten = works.out
    old = works.out.with_name("old")
    shutil.copytree(Path(works.data).parent / "bundles", old)

    def begun(name: str) -> Works:
        """The bundles that forgot, and a registry in which their predecessors are champions."""
        tracking = works.config.tracking.model_copy(update={"experiment": name})
        config = works.config.model_copy(update={"tracking": tracking})
        before = dataclasses.replace(works, config=config, out=old)
        before.registry.point(Tier.FUSED, "champion", before.register(Tier.FUSED).number)
        before.registry.decide_level_3(json.dumps({"by": "crm", "instead_of": "1"}))
        return dataclasses.replace(before, out=forgotten)

    def dying(steps: int) -> Dying:
        client = Dying(works.client, steps)
        for module in (telling, recording):
            monkeypatch.setattr(module, "opened_store", lambda *given: (client, opened_store(*given)[1]))
        return client

    def state(at: Works) -> object:
        model = at.client.get_registered_model(at.registry.name(Tier.FUSED))
        versions = [(each.number, each.digest, dict(each.tags)) for each in at.registry.versions(Tier.FUSED)]
        return versions, dict(model.aliases), dict(model.tags)

    whole, client = begun("whole"), dying(10_000)
    whole.tell(result)
    steps = client.steps
    assert steps.count("set_registered_model_alias") == 2
    for step in range(len(steps)):
        at = begun(f"killed-before-{step}")
        dying(step)
        with pytest.raises(Killed):
            at.tell(result)
        client = dying(10_000)
        at.tell(result)
        assert state(at) == state(whole), (step, steps[step])
        client = dying(10_000)
        at.tell(result)
        assert state(at) == state(whole)
        assert "create_run" not in client.steps


def test_a_registry_that_cannot_be_told_is_an_error_that_says_what_was_done(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    works.register(Tier.CRM)
    result = works.forget()

    def away(*_: object) -> None:
        raise TrackingError("MLflow store http://mlflow.example cannot be used: no connection")

    monkeypatch.setattr(ModelRegistry, "register", away)
    with pytest.raises(TrainingError, match="bundles have forgotten, but the registry could not be told"):
        works.tell(result)


def test_the_command_tells_the_registry_and_names_nobody(works: Works, tmp_path: Path) -> None:
    cutoff = works.config.training.cutoff
    assert cutoff is not None
    works.train(works.config.with_cutoff(cutoff - dt.timedelta(days=1)), Tier.CRM)
    works.registry.point(Tier.CRM, "champion", works.register(Tier.CRM).number)
    works.train(works.config, Tier.CRM)
    works.register(Tier.CRM)
    works.registry.point(Tier.FUSED, "champion", works.register(Tier.FUSED).number)
    (tmp_path / "config.toml").write_text(config_toml(works.config), "utf-8")
    command = ["forget", works.customer, "--data", str(works.data), "--bundles", str(works.out)]
    run = CliRunner().invoke(
        app, [*command, "--config", str(tmp_path / "config.toml")], env={"COLUMNS": "200"}
    )
    assert run.exit_code == 0, run.stderr
    rows = [line.split() for line in run.stdout.splitlines()]
    assert ["crm", "3", "2", "1", "2,", "1"] in rows
    assert ["fused", "2", "1", "2", "1"] in rows
    assert "version 1 is the champion of crm and holds, or may hold, who was to be forgotten" in run.stdout
    assert "champion of fused" not in run.stdout
    assert "No bundle holds any of them" not in run.stdout
    again = CliRunner().invoke(app, [*command, "--config", str(tmp_path / "config.toml")])
    assert "No bundle holds any of them" in again.stdout
    for tier in TIERS:
        for version in works.registry.versions(tier):
            assert works.customer not in json.dumps(dict(version.tags))


def test_forgetting_somebody_whom_nothing_holds_is_told_in_one_line(works: Works, tmp_path: Path) -> None:
    works.registry.point(Tier.CRM, "champion", works.register(Tier.CRM).number)
    (tmp_path / "config.toml").write_text(config_toml(works.config), "utf-8")
    command = ["forget", "nobody", "--data", str(works.data), "--bundles", str(works.out)]
    run = CliRunner().invoke(app, [*command, "--config", str(tmp_path / "config.toml")])
    assert run.exit_code == 0, run.stderr
    (line,) = run.stdout.splitlines()
    assert line.startswith("No bundle holds any of them, nor do the statistics")
    assert line.endswith("nothing was changed. If one should: check the id, and --kind")
