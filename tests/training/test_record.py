"""A record that a kill cut short is made good by the next run: killed at each step, and run twice."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dying_client import Dying, Killed
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.consent import Policy, Tier
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.training import record as recording
from consentier.training import retrain as retraining
from consentier.training.config import Config, TrackingConfig, load_config
from consentier.training.config_file import config_toml
from consentier.training.model_registry import ModelRegistry
from consentier.training.restricted import Restricted
from consentier.training.retrain import RetrainResult, retrain
from consentier.training.track import store_client
from consentier.training.train import TrainingResult, train

TIERS = (Tier.SESSION, Tier.POPULAR)


@dataclasses.dataclass
class Works:
    """A shop, and bundles that were written without a record."""

    data: Path
    shop: ShopTables
    config: Config
    out: Path

    @property
    def restricted(self) -> Restricted:
        return Restricted.beside(self.out)

    @functools.cached_property
    def client(self) -> Any:
        return store_client(self.config.tracking, self.out)

    def named(self, experiment: str) -> Config:
        """The configuration with an experiment, and so a registry, of its own."""
        tracking = self.config.tracking.model_copy(update={"experiment": experiment})
        return self.config.model_copy(update={"tracking": tracking})

    def record(self, config: Config, *tiers: Tier) -> TrainingResult:
        """The last part of a retraining that finds the bundles of some tiers unchanged."""
        assert config.training.cutoff is not None
        ledger = ledger_of(self.shop)
        gate = ConsentGate(self.shop, ledger, config.training.cutoff, Policy.default())
        run = retraining._Run(self.shop, config, self.out, self.restricted, ledger, gate, show_progress=False)
        nothing = TrainingResult(self.out, {}, {}, [], {}, gate.cutoff)
        return retraining._recorded(run, nothing, {tier: self.digests[tier] for tier in tiers}, "shop")

    def retrain(self, config: Config) -> RetrainResult:
        return retrain(self.shop, config, self.out, self.restricted, tiers=TIERS, show_progress=False)

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        return {str(tier): retraining.open_bundle(self.out / tier).digest for tier in TIERS}

    def state(self, experiment: str) -> dict[str, Any]:
        """Versions by tier, aliases, and how many runs ended in which way."""
        registry = ModelRegistry(self.client, experiment)
        found = self.client.get_experiment_by_name(experiment)
        runs = [] if found is None else self.client.search_runs([found.experiment_id])
        challengers = {tier: registry.aliased(tier, "challenger") for tier in TIERS}
        return {
            "versions": {str(tier): [each.digest for each in registry.versions(tier)] for tier in TIERS},
            "challengers": {str(tier): each and each.number for tier, each in challengers.items()},
            "runs": Counter(run.info.status for run in runs),
        }


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Works:
    folder = tmp_path_factory.mktemp("record")
    write_shop(simulate(SimulationConfig(customers=150, items=40, days=40, horizon_days=7)), folder / "shop")
    config = load_config(data=folder / "shop")
    judged = config.evaluation.model_copy(update={"bootstrap_samples": 100})
    session = config.session.model_copy(update={"session_half_life": 0.0})
    config = config.model_copy(update={"evaluation": judged, "session": session})
    (folder / "retrain.toml").write_text(config_toml(config), "utf-8")
    shop, out = read_shop(folder / "shop"), folder / "bundles"
    silent = config.model_copy(update={"tracking": TrackingConfig(enabled=False)})
    train(shop, silent, out, tiers=TIERS, restricted=Restricted.beside(out), show_progress=False)
    return Works(folder / "shop", shop, config, out)


@pytest.fixture
def dying(works: Works, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Dying]:
    """Let the process die after so many steps that write."""
    opened = recording.opened_store

    def after(steps: int) -> Dying:
        client = Dying(works.client, steps)

        def store(tracking: TrackingConfig, folder: Path) -> tuple[Any, str]:
            return client, opened(tracking, folder)[1]

        monkeypatch.setattr(recording, "opened_store", store)
        return client

    return after


@pytest.fixture
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is not what these tests are about, and takes longest."""
    measured, found = recording._measured, []

    def once(*args: Any) -> Any:
        if not found:
            found.append(measured(*args))
        return found[0]

    monkeypatch.setattr(recording, "_measured", once)


@pytest.mark.usefixtures("measured_once")
def test_killed_at_any_step_the_next_run_makes_the_record_whole(
    works: Works, dying: Callable[[int], Dying]
) -> None:
    """Again and again until the version is made, on one record; then at each step after it, on its own."""
    client = dying(10_000)
    works.record(works.named("whole"), Tier.POPULAR)
    steps, whole = client.steps, works.state("whole")
    assert {"create_run", "log_artifacts", "create_model_version", "set_registered_model_alias"} <= set(steps)
    assert whole["versions"] == {"session": [], "popular": [works.digests["popular"]]}
    assert whole["runs"] == {"FINISHED": 2}
    made = steps.index("create_model_version")
    names = [f"killed-after-{step}" if step > made else "killed-before" for step in range(len(steps))]
    assert names[-3:] == [f"killed-after-{step}" for step in range(len(steps) - 3, len(steps))]
    for step, name in enumerate(names):
        dying(step)
        with pytest.raises(Killed):
            works.record(works.named(name), Tier.POPULAR)
    for name in dict.fromkeys(names):
        dying(10_000)
        works.record(works.named(name), Tier.POPULAR)
        after = works.state(name)
        assert after["versions"] == whole["versions"], name
        assert after["challengers"] == whole["challengers"] == {"session": None, "popular": "1"}
        assert set(after["runs"]) <= {"FINISHED", "KILLED"}
        client = dying(10_000)
        again = works.record(works.named(name), Tier.POPULAR)
        assert (again.versions, client.steps) == ({}, []), "nothing is left to do"


@pytest.mark.usefixtures("measured_once")
def test_killed_between_two_tiers_only_the_second_is_recorded_again(
    works: Works, dying: Callable[[int], Dying]
) -> None:
    client = dying(10_000)
    works.record(works.named("counted"), *TIERS)
    dying(client.steps.index("create_model_version") + 1)
    with pytest.raises(Killed):
        works.record(works.named("twice"), *TIERS)
    assert works.state("twice")["challengers"] == {"session": None, "popular": None}
    dying(10_000)
    assert works.record(works.named("twice"), *TIERS).versions == {"popular": "1"}
    state = works.state("twice")
    assert state["versions"] == {tier: [digest] for tier, digest in works.digests.items()}
    assert state["challengers"] == {"session": "1", "popular": "1"}


def test_a_retraining_that_finds_all_unchanged_records_what_has_no_record(
    works: Works, dying: Callable[[int], Dying], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = works.named("from-end-to-end")
    with monkeypatch.context() as patch:
        patch.setattr(retraining, "unrecorded", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            works.retrain(config)
    result = works.retrain(config)
    assert {each.how for each in result.tiers} == {"unchanged"}
    assert result.training.digests == {}
    assert result.training.versions == {"session": "1", "popular": "1"}
    measured = works.client.download_artifacts(result.training.run_ids["session"], "measurement.json")
    assert {period["name"] for period in json.loads(Path(measured).read_text())["periods"]} == {
        "validation", "test",
    }  # fmt: skip
    assert works.retrain(config).training.versions == {}
    # Whoever does not want a record gets none.
    silent = config.model_copy(update={"tracking": TrackingConfig(enabled=False)})
    client = dying(0)
    assert works.retrain(silent).training.versions == {}
    assert client.steps == []


def test_the_command_says_what_it_recorded(works: Works) -> None:
    command = ["retrain", str(works.data), "--bundles", str(works.out), "--tier", "popular"]
    result = CliRunner().invoke(app, [*command, "--config", str(works.data.parent / "retrain.toml")])
    assert result.exit_code == 0, result.stderr
    assert "registered as challengers, by version: popular 1" in result.stdout
    assert "an earlier run was killed before it recorded these: popular" in result.stdout
    again = CliRunner().invoke(app, [*command, "--config", str(works.data.parent / "retrain.toml")])
    assert "registered" not in again.stdout
