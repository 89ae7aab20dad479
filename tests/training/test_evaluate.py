"""Whole evaluations of small shops whose right answer is known by hand."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from shops import consent, day, event, link, order, shop
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.consent import ConsentRecord, Ledger, Tier
from consentier.errors import TrainingError
from consentier.features.gate import ledger_of
from consentier.features.tables import ShopTables, write_tables
from consentier.training import bundles as training
from consentier.training.config import Config, EvaluationConfig, TierConfig, TrackingConfig, TrainingConfig
from consentier.training.evaluate import evaluate
from consentier.training.evaluation_result import EVALUATION_VERSION, EvaluationResult, check_evaluation
from consentier.training.fit import fit_tier

START = 100


def config(*, cutoffs: tuple[int, ...] = (1, 3), **tiers: Any) -> Config:
    small = {"neighbours": 5, "regularisation": 1.0, "repeat_weight": 0.0, "item_exponent": 0.0}
    return Config(
        training=TrainingConfig(cutoff=day(START), threads=1),
        tracking=TrackingConfig(enabled=False),
        evaluation=EvaluationConfig(cutoffs=cutoffs, bootstrap_samples=100),
        **{
            tier: TierConfig(**{**small, **tiers.get(tier, {})})
            for tier in ("session", "online", "crm", "fused")
        },
    )


def evaluated(tables: ShopTables, settings: Config) -> EvaluationResult:
    result = evaluate(tables, settings, name="shop", show_progress=False)
    return check_evaluation(json.loads(json.dumps(result)))


def hits(result: EvaluationResult, tier: str) -> float:
    (found,) = [each for each in result["tiers"] if each["tier"] == tier]
    return found["metrics"]["hit_rate@1"]["mean"]


def forgetful_shop() -> ShopTables:
    """Who bought "a" buys "p" next, who bought "b" buys "q"; 25 customers bought "b" last."""
    orders = []
    for number in range(30):
        orders += [order(f"c-p{number}", "a", 90), order(f"c-p{number}", "p", 90)]
        orders += [order(f"c-q{number}", "b", 90), order(f"c-q{number}", "q", 90)]
    for number in range(25):
        orders += [order(f"c-{number}", "a", 10), order(f"c-{number}", "b", 99)]
        orders += [order(f"c-{number}", "q", START + 1)]
    customers = sorted({row["customer_id"] for row in orders})
    return shop(orders=orders, consents=[consent(name, "crm", at=1) for name in customers])


def test_a_ledger_decides_in_place_of_the_tables() -> None:
    """A withdrawal that only the ledger knows takes the customer out of training and test."""
    tables = forgetful_shop()
    ledger = ledger_of(tables)
    withdrawn = day(START + 1)
    ledger.append(
        [
            ConsentRecord(
                "w", "c-0", "customer", "crm", "withdrawn", valid_from=withdrawn, recorded_at=withdrawn
            )
        ]
    )
    result = evaluate(tables, config(), ledger=ledger, name="shop", show_progress=False)
    assert result["customers"] == evaluated(tables, config())["customers"] - 1


def test_older_events_count_less_in_the_evaluation_too() -> None:
    """Without the times of the histories "p" and "q" would have equal scores, and the id decides for "p"."""
    forgetting = config(crm={"recency_half_life": 5.0, "hide": ("crm",)})
    result = evaluated(forgetful_shop(), forgetting)
    assert (result["population"], result["customers"]) == ("orders", 25)
    assert hits(result, "crm") == 1.0
    assert hits(evaluated(forgetful_shop(), config(crm={"hide": ("crm",)})), "crm") == 0.0


def test_without_a_cutoff_the_test_period_ends_now() -> None:
    today = (dt.datetime.now(dt.UTC) - day(0)).days
    orders = []
    for number in range(25):
        orders += [order(f"c{number}", "a", today - 40), order(f"c{number}", "b", today - 30)]
        orders += [order(f"c{number}", "b", today - 1)]
    settings = config().model_copy(update={"training": TrainingConfig(threads=1)})
    result = evaluated(
        shop(orders=orders, consents=[consent(f"c{number}", "crm", at=today - 60) for number in range(25)]),
        settings,
    )
    assert (result["population"], result["customers"]) == ("orders", 25)
    since = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(result["data"]["cutoff"])
    assert dt.timedelta(days=14) < since < dt.timedelta(days=15)


def test_items_that_nobody_had_before_are_found_by_their_metadata() -> None:
    """Who bought "a" buys "new" next, on sale since the cut-off. "p", which it is like, goes with "a"."""
    orders = []
    for number in range(30):
        orders += [order(f"c-p{number}", "a", 90), order(f"c-p{number}", "p", 90)]
    for number in range(25):
        orders += [order(f"c-{number}", "a", 90), order(f"c-{number}", "p", 91)]
        orders += [order(f"c-{number}", "new", START + 1)]
    customers = sorted({row["customer_id"] for row in orders})
    kinds = {"a": "one", "p": "other", "new": "other", "never sold": "one"}
    tables = shop(
        orders=orders,
        consents=[consent(name, "crm", at=1) for name in customers],
        items=[{"item_id": item, "category": kind} for item, kind in kinds.items()],
    )
    for persons, found in ((0, 0.0), (5, 1.0)):
        result = evaluated(tables, config(crm={"hide": ("crm",), "metadata_persons": persons}))
        (tier,) = [each for each in result["tiers"] if each["tier"] == "crm"]
        assert tier["metrics"]["hit_rate@3"]["mean"] == found
        (model,) = [each for each in result["models"] if each["tier"] == "crm"]
        assert any("category" in sentence for sentence in model["parameters"]) == bool(persons)


def joint_shop(*, crm_only: int = 0) -> ShopTables:
    """40 linked customers. What they ordered tells what they order next; what they looked at tells nothing.

    30 customers without a target teach the CRM tier what follows what. Those of `crm_only` order something
    else after the cut-off.
    """
    orders, events = [], []
    for number in range(40):
        before, after = ("ap", "bq")[number % 2]
        orders += [order(f"c{number}", before, 50), order(f"c{number}", after, START + 1)]
        for place, at in enumerate((40, 45, START + 2)):
            events.append(event(f"v{number}", "xyw"[(number // 2 + place) % 3], at, session=f"s{at}"))
    for number in range(30):
        orders += [order(f"cteacher{number}", item, 50) for item in ("ap", "bq")[number % 2]]
    for number in range(crm_only):
        orders += [order(f"calone{number}", "a", 50), order(f"calone{number}", "z", START + 1)]
    customers = sorted({row["customer_id"] for row in orders})
    return shop(
        orders=orders,
        events=events,
        identities=[link(f"v{number}", f"c{number}", 5) for number in range(40)],
        consents=[
            *(consent(name, "crm", at=1) for name in customers),
            *(consent(f"v{number}", "online", at=1) for number in range(40)),
        ],
    )


@pytest.fixture(scope="module")
def joint() -> EvaluationResult:
    return evaluated(joint_shop(), config())


def test_one_tier_stands_on_both_groups_that_it_may_answer() -> None:
    """The CRM tier is right for every linked customer and wrong for all others: selection, not quality."""
    result = evaluated(joint_shop(crm_only=21), config())
    assert result["population"] == "permissions"
    found = {(row["group"], row["side"], row["tier"]): row for row in result["by_permission_group"]}
    assert {tier for group, side, tier in found if (group, side) == ("crm_only", "crm")} == {"popular", "crm"}
    linked, alone = found["both_linked", "crm", "crm"], found["crm_only", "crm", "crm"]
    assert (linked["customers"], alone["customers"]) == (40, 21)
    assert linked["metrics"]["hit_rate@1"]["mean"] == 1.0
    assert alone["metrics"]["hit_rate@1"]["mean"] == 0.0
    # The linked ones are those of the headline.
    (headline,) = [each for each in result["tiers"] if each["tier"] == "crm"]
    assert linked["metrics"] == headline["metrics"]
    assert {tier for group, side, tier in found if (group, side) == ("both_linked", "online")} == {
        "popular", "session", "online", "fused",
    }  # fmt: skip


def test_who_withdrew_in_the_ledger_is_not_judged_although_the_tables_do_not_know() -> None:
    tables = forgetful_shop()
    ledger = ledger_of(tables)
    at = day(START + 2)
    ledger.append([ConsentRecord("w", "c-7", "customer", "crm", "withdrawn", valid_from=at, recorded_at=at)])
    result = evaluate(tables, config(), ledger=ledger, name="shop", show_progress=False)
    assert result["customers"] == evaluated(tables, config())["customers"] - 1 == 24


def test_the_command_asks_the_ledger_that_is_named(tmp_path: Path) -> None:
    tables = forgetful_shop()
    names = [field.name for field in dataclasses.fields(tables) if field.name != "report"]
    found = {name: getattr(tables, name) for name in names if getattr(tables, name).num_rows}
    write_tables(found, tmp_path / "shop")
    url = f"sqlite:///{tmp_path / 'consents.db'}"
    Ledger.open(url).close()  # in which nobody has permitted anything
    for command in ("evaluate", "worth"):
        arguments = [
            command,
            str(tmp_path / "shop"),
            "--cutoff",
            day(START).isoformat(),
            "--out",
            str(tmp_path / "out"),
        ]
        done = CliRunner().invoke(app, [*arguments, "--ledger", url])
        assert done.exit_code == 2
        assert "no permitted rows" in done.stderr


def test_small_groups_are_counted_and_not_judged() -> None:
    result = evaluated(joint_shop(crm_only=19), config())
    rows = [row for row in result["by_permission_group"] if row["group"] == "crm_only"]
    assert [(row["customers"], row["metrics"]) for row in rows] == [(19, {}), (19, {})]


def test_contrasts_are_tested_and_corrected_as_one_family(joint: EvaluationResult) -> None:
    rows = [row for contrast in joint["contrasts"] for row in contrast["rows"]]
    assert all(1 / (joint["randomisations"] + 1) <= row["p_value"] <= row["p_holm"] <= 1 for row in rows)
    smallest = min(row["p_value"] for row in rows)
    assert min(row["p_holm"] for row in rows) == pytest.approx(smallest * len(rows))
    equal = [row for row in rows if row["difference"]["low"] == row["difference"]["high"] == 0]
    assert all(row["p_value"] == 1.0 for row in equal)
    sure = [row for row in rows if row["difference"]["low"] > 0.3]
    assert sure
    assert all(row["p_value"] < 0.001 for row in sure)
    assert evaluated(joint_shop(), config()) == joint


def test_a_fused_tier_that_loses_is_said_to_lose() -> None:
    """The fused model is told to listen to what the customers looked at only; the orders tell everything."""
    deaf = {"source_weights": {"session": 1.0, "online": 1.0, "crm": 0.0}}
    result = evaluated(joint_shop(), config(fused=deaf))
    assert [verdict["beats"] for verdict in result["fusion"]] == [False, False]
    assert {verdict["best_other"] for verdict in result["fusion"]} == {"crm"}
    assert result["fusion"][0]["difference"]["high"] < 0
    assert "In lists of 1, fused is worse than crm" in result["notes"][0]
    assert "Serve level 3 by crm" in result["notes"][0]


def test_a_tier_that_the_popular_list_beats_is_named() -> None:
    """The fused model is asked to hide what is ordered again; nobody orders anything else."""
    deaf = {"source_weights": {"session": 0.0, "online": 1.0, "crm": 0.0}}
    told = [note for note in evaluated(joint_shop(), config(fused=deaf))["notes"] if "popular list" in note]
    said = [note.partition(" than the popular list")[0] for note in told]
    assert "The fused tier is not better" in said or "The fused tier is worse" in said
    assert not any("The crm tier" in note for note in told)
    assert all("difference in ndcg@1 " in note and "consentier tune" in note for note in told)


def test_without_a_fused_model_nothing_is_told_of_one_model_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def unless_fused(tier: Tier, *args: Any, **options: Any) -> Any:
        if tier is Tier.FUSED:
            raise TrainingError("the ridge system of item 3 has no stable solution")
        return fit_tier(tier, *args, **options)

    monkeypatch.setitem(training.fit_one.__kwdefaults__, "fit_model", unless_fused)
    result = evaluated(joint_shop(), config())
    assert [each["name"] for each in result["contrasts"]] == ["each tier's own training rows"]
    assert any("fused tier was not trained" in note for note in result["notes"])


def test_the_result_says_what_the_models_weigh() -> None:
    weights = {"recency_half_life": 30.0, "source_weights": {"session": 5.0, "online": 1.0, "crm": 4.0}}
    result = evaluated(joint_shop(), config(fused=weights))
    models = {model["tier"]: model for model in result["models"]}
    assert list(models) == ["session", "online", "crm", "fused", "popular"]
    fused = models["fused"]
    assert fused["algorithm"] == "local_ridge"
    assert fused["source_weights"] == {"session": 5.0, "online": 1.0, "crm": 4.0}
    assert fused["event_weights"]["cart"] == 2.0
    assert fused["recency_half_life"] == 30.0
    # There are no attributes in this shop to weigh.
    assert fused["attribute_weight"] == 0.0
    assert any("30 days older" in sentence for sentence in fused["parameters"])
    assert models["popular"]["source_weights"] == {}
    assert models["crm"]["recency_half_life"] is None
    # The weights of sources that the tier cannot read say nothing.
    assert models["crm"]["source_weights"] == {"crm": 1.0}


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "carries no version"), (1, "is of version 1"), (EVALUATION_VERSION + 1, "is of version 3")],
)
def test_results_of_other_versions_are_refused(
    joint: EvaluationResult, version: int | None, message: str
) -> None:
    result: Any = dict(joint)
    if version is None:
        del result["version"]
    else:
        result["version"] = version
    with pytest.raises(ValueError, match=rf"{message}.*run 'consentier evaluate' again"):
        check_evaluation(result)
