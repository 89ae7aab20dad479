"""The search: never worse than what there was, the same on any machine, recorded, and stopped in time."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from consentier.cli.tune import print_tuning
from consentier.consent import Policy, Tier
from consentier.errors import TrainingError
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.simulator import SimulationConfig, simulate
from consentier.features.tables import ShopTables
from consentier.features.validation import ValidationReport
from consentier.training import tune as tuning
from consentier.training.config import Config, TierConfig, TrackingConfig, TuningConfig, load_config
from consentier.training.fit import TierRows
from consentier.training.search_space import facts_of, space_of
from consentier.training.stale_runs import end_stale_searches, search_tags
from consentier.training.track import opened_store
from consentier.training.tune import (
    TUNED_TIERS,
    Objective,
    TuningResult,
    popular_ahead,
    search,
    tune,
    tuned_toml,
)
from consentier.training.validation import ValidationSet, validation_set


@pytest.fixture(scope="module")
def shop() -> ShopTables:
    found = simulate(SimulationConfig(customers=250, items=50, days=60, horizon_days=7, seed=5))
    return ShopTables(**found.tables, report=ValidationReport())


def config_of(shop: ShopTables, **settings: Any) -> Config:
    end = max(shop.orders["ts"].to_pylist()) - dt.timedelta(days=7)
    return (
        Config()
        .with_cutoff(end)
        .model_copy(
            update={
                "tuning": TuningConfig(horizon_days=14, max_persons=80, **{"trials": 6, **settings}),
                "tracking": TrackingConfig(enabled=False),
            }
        )
    )


def tuned(shop: ShopTables, config: Config | None = None, **options: Any) -> TuningResult:
    return tune(shop, config or config_of(shop), show_progress=False, **options)


@pytest.fixture(scope="module")
def data(shop: ShopTables) -> ValidationSet:
    config = config_of(shop)
    end = config.training.cutoff
    assert end is not None
    gate = ConsentGate(shop, ledger_of(shop), end, Policy.default())
    start = end - dt.timedelta(days=14)
    return validation_set(Tier.CRM, gate.permitted(Tier.CRM), start, end, max_persons=80, seed=0)


@pytest.fixture(scope="module")
def result(shop: ShopTables) -> TuningResult:
    return tuned(shop)


def told(result: TuningResult) -> list[Any]:
    """All of a result but its seconds."""
    return [
        (each.tier, each.config, each.best, each.figures, each.stopped,
         [(trial.parameters, trial.value, trial.state) for trial in each.trials])
        for each in result.tiers
    ]  # fmt: skip


# ---- What is found -----------------------------------------------------------------------------------------


def test_every_tier_is_tuned_and_none_becomes_worse(result: TuningResult) -> None:
    assert [each.tier for each in result.tiers] == list(TUNED_TIERS)
    assert not result.skipped
    for each in result.tiers:
        first, best = each.trials[0], each.trials[each.best]
        assert (first.parameters, first.state) == ({}, "complete")
        assert first.value == pytest.approx(each.figures["current"].mean)
        assert best.value == pytest.approx(each.figures["chosen"].mean)
        assert best.value == max(trial.value or 0 for trial in each.trials if trial.state == "complete")
        assert each.figures["difference"].mean >= 0
        assert len(each.trials) == 6
        assert getattr(result.config, each.tier) == each.config


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(shop: ShopTables, result: TuningResult, threads: int) -> None:
    config = config_of(shop)
    training = config.training.model_copy(update={"threads": threads})
    tiers = (Tier.CRM, Tier.FUSED)
    again = tuned(shop, config.model_copy(update={"training": training}), tiers=tiers)
    assert told(again) == [each for each in told(result) if each[0] in tiers]


def test_factor_models_are_tuned_the_same_on_any_number_of_threads(shop: ShopTables) -> None:
    config = config_of(shop, algorithms=("als",), trials=4)
    als = config.fused.model_copy(update={"algorithm": "als", "factors": 16})
    one, two = (
        tuned(
            shop,
            config.model_copy(
                update={"fused": als, "training": config.training.model_copy(update={"threads": threads})}
            ),
            tiers=[Tier.FUSED],
        )
        for threads in (1, 2)
    )
    assert told(one) == told(two)
    (found,) = one.tiers
    assert found.config.algorithm == "als"
    assert len({trial.parameters.get("unobserved_weight") for trial in found.trials}) == 4
    assert not any("regularisation" in trial.parameters for trial in found.trials)


def test_a_trial_is_fitted_with_the_seed_that_training_uses(
    shop: ShopTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seeds = TierRows.fit, []

    def recorded_fit(self: TierRows, config: TierConfig, **options: Any) -> Any:
        seeds.append(options["seed"])
        return real(self, config, **options)

    monkeypatch.setattr(TierRows, "fit", recorded_fit)
    config = config_of(shop, trials=2)
    training = config.training.model_copy(update={"seed": 7})
    tuned(shop, config.model_copy(update={"training": training}), tiers=[Tier.CRM])
    assert seeds == [7, 7]


def test_the_seed_decides_what_is_tried(shop: ShopTables, result: TuningResult) -> None:
    config = config_of(shop)
    training = config.training.model_copy(update={"seed": 1})
    other = tuned(shop, config.model_copy(update={"training": training}), tiers=[Tier.CRM])
    assert other.tiers[0].trials[1].parameters != result.tiers[2].trials[1].parameters


def test_a_search_finds_what_a_bad_configuration_lacks(data: ValidationSet) -> None:
    objective = Objective(data, "ndcg@20", min_persons=1, threads=1)
    bad = Config().crm.model_copy(update={"neighbours": 1, "repeat_weight": 0.0, "max_history": 1})
    found = search(
        objective, bad, space_of(facts_of(Tier.CRM, data.rows), bad), seed=0, trials=12, patience=12
    )
    assert found.best > 0
    assert found.values.mean() > 1.2 * objective.values(bad).mean()


def test_a_configuration_is_worth_the_same_whatever_was_tried_before(data: ValidationSet) -> None:
    base = Config().crm
    changes: list[dict[str, Any]] = [
        {}, {"row_exponent": 0.5}, {"algorithm": "cosine"}, {"recency_half_life": 9.0},
        {"attribute_weight": 0.0}, {"algorithm": "bm25"}, {"event_weights": {"usage": 3.0}}, {},
        {"algorithm": "als", "factors": 8}, {"attribute_min_persons": 1}, {"neighbours": 3},
    ]  # fmt: skip
    kept = Objective(data, "mrr@10", min_persons=1, threads=1)
    for change in changes:
        config = base.model_copy(update=change)
        anew = Objective(data, "mrr@10", min_persons=1, threads=1)
        np.testing.assert_array_equal(kept.values(config), anew.values(config))


def test_the_file_is_what_load_config_reads(shop: ShopTables, tmp_path: Path) -> None:
    base = config_of(shop).model_copy(update={"online": TierConfig(neighbours=17)})
    found = tuned(shop, base, tiers=[Tier.CRM])
    path = tmp_path / "tuned.toml"
    path.write_text(tuned_toml(found, base, name="shop"), "utf-8")
    assert load_config(path) == found.config
    assert found.config.online.neighbours == 17
    head = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    assert "'shop'" in head[0]
    assert found.start.isoformat() in head[1]
    assert head[-1].startswith("# crm: ")
    assert "6 trials" in head[-1]


# ---- When it stops -----------------------------------------------------------------------------------------


class Worth:
    """An objective that says what it is told: of trial k, the value ``values[k]``."""

    def __init__(self, data: ValidationSet, values: list[float]) -> None:
        self.data, self._values = data, iter(values)
        self.groups = data.persons

    def parts(self, config: TierConfig) -> Iterator[NDArray[np.float64]]:
        value = next(self._values)
        if value < 0:
            raise TrainingError("no stable solution")
        rng = np.random.default_rng(0)
        size, first = self.groups.size, self.groups.size // 2
        values = value + rng.random(size) / 1000
        yield values[:first]
        yield values[first:]


def searched(data: ValidationSet, values: list[float], **options: Any) -> tuning.Search:
    base = Config().crm
    space = space_of(facts_of(Tier.CRM, data.rows), base)
    options = {"trials": len(values), "patience": 99, **options}
    return search(Worth(data, values), base, space, seed=0, **options)  # type: ignore[arg-type]


def test_the_file_holds_no_password(shop: ShopTables, result: TuningResult, tmp_path: Path) -> None:
    """It lies beside others and may be committed; what the environment said of the store is not for it."""
    secret = TrackingConfig(uri="postgresql://mlflow:hunter2@db/runs")
    file = tuned_toml(result, config_of(shop).model_copy(update={"tracking": secret}), name="shop")
    assert "hunter2" not in file
    assert "CONSENTIER__TRACKING__URI" in file
    (tmp_path / "tuned.toml").write_text(file)
    assert load_config(tmp_path / "tuned.toml").tracking.uri == "postgresql://db/runs"


def test_a_search_without_progress_ends(data: ValidationSet) -> None:
    found = searched(data, [0.5, 0.1, 0.6, 0.2, 0.3, 0.7], patience=2)
    assert (len(found.trials), found.best, found.stopped) == (5, 2, "no better one in 2 trials")


def test_time_is_up_after_the_first_trial_at_the_earliest(data: ValidationSet) -> None:
    found = searched(data, [0.5, 0.6], timeout=0.0)
    assert (len(found.trials), found.best, found.stopped) == (1, 0, "after 0 seconds")


def test_what_is_clearly_worse_is_given_up_and_what_is_better_is_not(data: ValidationSet) -> None:
    found = searched(data, [0.5, 0.1, 0.6, 0.2])
    assert [trial.state for trial in found.trials] == ["complete", "pruned", "complete", "pruned"]
    assert found.best == 2


def test_a_fit_that_fails_is_a_trial_like_any_other(data: ValidationSet) -> None:
    found = searched(data, [-1, 0.4, -1])
    assert [trial.state for trial in found.trials] == ["failed", "complete", "failed"]
    assert (found.best, found.current) == (1, None)


def test_without_a_fit_of_the_current_configuration_nothing_is_told_over_it(
    shop: ShopTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Objective.parts, []

    def unstable_at_first(self: Objective, config: TierConfig) -> Iterator[NDArray[np.float64]]:
        calls.append(config)
        if len(calls) == 1:
            raise TrainingError("no stable solution")
        return real(self, config)

    monkeypatch.setattr(Objective, "parts", unstable_at_first)
    config = config_of(shop, trials=2)
    found = tuned(shop, config, tiers=[Tier.CRM])
    assert set(found.tiers[0].figures) == {"popular", "chosen"}
    assert "the configuration before has no stable solution" in tuned_toml(found, config, name="shop")
    print_tuning(found)


def test_a_tier_that_never_beats_the_popular_list_says_so_in_words(
    result: TuningResult, capsys: pytest.CaptureFixture[str], shop: ShopTables
) -> None:
    """Also where they are level: then the tier is work for nothing."""
    level = dataclasses.replace(
        result.tiers[0], figures={**result.tiers[0].figures, "popular": result.tiers[0].figures["chosen"]}
    )
    beaten = dataclasses.replace(result, tiers=(level, *result.tiers[1:]))
    said = f"{level.tier}: no setting that was tried was better than the popular list on validation (ndcg@20 "
    print_tuning(beaten)
    assert said in " ".join(capsys.readouterr().out.split())
    file = tuned_toml(beaten, config_of(shop), name="shop")
    head = [line.removeprefix("# ") for line in file.splitlines() if line.startswith("# ")]
    assert said in " ".join(head)
    for each in result.tiers:
        ahead = each.figures["popular"].mean >= each.figures["chosen"].mean
        assert (popular_ahead(each, "ndcg@20") is not None) == ahead


def test_equal_values_leave_the_earlier_one(data: ValidationSet) -> None:
    assert searched(data, [0.5, 0.5]).best == 0


# ---- What cannot be tuned ----------------------------------------------------------------------------------


def test_without_a_cutoff_there_is_no_validation_period(shop: ShopTables) -> None:
    with pytest.raises(TrainingError, match=r"training\.cutoff"):
        tuned(shop, Config())


def test_the_popular_list_has_no_parameters(shop: ShopTables) -> None:
    with pytest.raises(ValueError, match="popular"):
        tuned(shop, tiers=[Tier.POPULAR])


def test_a_tier_without_rows_is_skipped_and_alone_it_is_an_error(shop: ShopTables) -> None:
    crm = [permission != "crm" for permission in shop.consents["permission"].to_pylist()]
    refused = dataclasses.replace(shop, consents=shop.consents.filter(crm))
    found = tuned(refused, config_of(shop, trials=1), tiers=[Tier.SESSION, Tier.CRM])
    assert [each.tier for each in found.tiers] == [Tier.SESSION]
    assert "persons to judge by" in found.skipped["crm"]
    with pytest.raises(TrainingError, match="persons to judge by"):
        tuned(refused, tiers=[Tier.CRM])


# ---- What is recorded --------------------------------------------------------------------------------------


def test_each_trial_is_a_child_run_with_its_parameters_and_value(shop: ShopTables, tmp_path: Path) -> None:
    config = config_of(shop, trials=3).model_copy(update={"tracking": TrackingConfig()})
    found = tuned(shop, config, tiers=[Tier.CRM], tracking_folder=tmp_path / "new").tiers[0]
    parent, children = recorded(tmp_path / "new")
    assert parent.info.status == "FINISHED"
    assert parent.data.params["metric"] == "ndcg@20"
    assert parent.data.metrics["best"] == pytest.approx(found.figures["chosen"].mean)
    assert len(children) == 3
    for child, trial in zip(children, found.trials, strict=True):
        assert child.data.tags["state"] == trial.state
        assert child.data.metrics["value"] == trial.value
        assert child.data.metrics["seconds"] == trial.seconds
        assert child.data.params == {name: str(value) for name, value in trial.parameters.items()}


def test_an_interrupted_search_leaves_its_trials_and_a_killed_parent(
    shop: ShopTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Objective.parts, []

    def interrupted(self: Objective, config: TierConfig) -> Iterator[NDArray[np.float64]]:
        calls.append(config)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, config)

    monkeypatch.setattr(Objective, "parts", interrupted)
    config = config_of(shop).model_copy(update={"tracking": TrackingConfig()})
    with pytest.raises(KeyboardInterrupt):
        tuned(shop, config, tiers=[Tier.CRM], tracking_folder=tmp_path)
    parent, children = recorded(tmp_path)
    assert parent.info.status == "KILLED"
    assert len(children) == 1


def test_a_search_that_fails_leaves_a_failed_parent(
    shop: ShopTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Objective, "parts", failing)
    config = config_of(shop).model_copy(update={"tracking": TrackingConfig()})
    with pytest.raises(MemoryError):
        tuned(shop, config, tiers=[Tier.CRM], tracking_folder=tmp_path)
    parent, _ = recorded(tmp_path)
    assert parent.info.status == "FAILED"


def test_a_search_ends_the_runs_of_those_that_were_killed_and_no_others(tmp_path: Path) -> None:
    client, experiment = opened_store(TrackingConfig(), tmp_path)
    elsewhere = {"consentier_search": ".consentier-search.0123456789abcdef"}
    dead = {"consentier_search": ".consentier-search.fedcba9876543210"}
    (tmp_path / dead["consentier_search"]).mkdir()  # what a process leaves that is killed
    with search_tags(tmp_path) as going_on:
        runs = [
            client.create_run(experiment, tags=tags).info.run_id for tags in (dead, dead, elsewhere, going_on)
        ]
        client.set_terminated(runs[1], status="FINISHED")
        assert end_stale_searches(client, experiment, tmp_path) == 1
        statuses = [client.get_run(run).info.status for run in runs]
        assert statuses == ["KILLED", "FINISHED", "RUNNING", "RUNNING"]
        assert end_stale_searches(client, experiment, tmp_path) == 0
        places = [path.name for path in tmp_path.glob(".consentier-search.*")]
        assert places == [going_on["consentier_search"]]
    assert not list(tmp_path.glob(".consentier-search.*"))


def recorded(folder: Path) -> tuple[Any, list[Any]]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("consentier")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, sorted(children, key=lambda run: int(run.info.run_name.split()[1]))
