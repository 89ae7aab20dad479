"""The simulator plants what each permission is worth; the evaluation must find that, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import read_shop
from consentier.training.config import load_config
from consentier.training.evaluate import evaluate
from consentier.training.evaluation_result import ContrastRow, EvaluationResult, check_evaluation

METRIC = "ndcg@20"


def evaluated(folder: Path, config: SimulationConfig) -> EvaluationResult:
    write_shop(simulate(config), folder)
    shop = read_shop(folder)
    return check_evaluation(evaluate(shop, load_config(data=folder), name="simulated", show_progress=False))


def differences(result: EvaluationResult, contrast: int) -> dict[tuple[str, str], ContrastRow]:
    rows = result["contrasts"][contrast]["rows"]
    return {(row["baseline"], row["better"]): row for row in rows if row["metric"] == METRIC}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> EvaluationResult:
    return evaluated(tmp_path_factory.mktemp("planted") / "shop", SimulationConfig(seed=31))


@pytest.fixture(scope="module")
def unplanted(tmp_path_factory: pytest.TempPathFactory) -> EvaluationResult:
    folder = tmp_path_factory.mktemp("unplanted") / "shop"
    return evaluated(folder, SimulationConfig(seed=31, crm_signal=0.0))


@pytest.mark.parametrize("contrast", [0, 1])
@pytest.mark.parametrize(
    "pair",
    [
        ("popular", "session"),
        ("session", "online"),
        ("popular", "crm"),
        ("online", "fused"),
        ("crm", "fused"),
    ],
)
def test_each_permission_is_worth_what_was_planted(
    planted: EvaluationResult, contrast: int, pair: tuple[str, str]
) -> None:
    difference = differences(planted, contrast)[pair]["difference"]
    assert difference["low"] > 0, (planted["contrasts"][contrast]["name"], difference)


@pytest.mark.parametrize("contrast", [0, 1])
def test_without_a_signal_in_the_crm_data_fusion_adds_nothing(
    unplanted: EvaluationResult, contrast: int
) -> None:
    found = differences(unplanted, contrast)
    assert found["online", "fused"]["difference"]["low"] <= 0
    # The evaluation is not blind on this shop: it still finds what browsing tells.
    assert found["session", "online"]["difference"]["low"] > 0


def test_the_same_customers_are_asked_in_every_tier(planted: EvaluationResult) -> None:
    assert planted["customers"] == planted["requests"] > 500
    assert {figures["tier"] for figures in planted["tiers"]} == {
        "random", "popular", "session", "online", "crm", "fused",
    }  # fmt: skip
