"""Whether a change of the data is noticed, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from shops import day, event
from typer.testing import CliRunner
from unreadable_rows import CUTOFF, LINKED, PERMITTED, Noise, shop_with

from consentier.cli.app import app
from consentier.consent import ConsentRecord, Ledger, Link, Policy, Tier
from consentier.errors import BundleMissing
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.tables import ShopTables, write_tables
from consentier.models.bundle import read_run, write_run
from consentier.training.bundles import TRAINED_TIERS, train_bundles
from consentier.training.config import Config, DriftConfig, TierConfig, TrackingConfig
from consentier.training.data_summary import _shares, data_summary
from consentier.training.drift import _checks, _mix, _NewItems, drift
from consentier.training.drift_result import DriftCheck, DriftResult

_TIER = TierConfig(neighbours=5, regularisation=1.0)
CONFIG = Config(
    tracking=TrackingConfig(enabled=False),
    drift=DriftConfig(window_days=40),
    session=_TIER,
    online=_TIER,
    crm=_TIER,
    fused=_TIER,
).with_cutoff(day(CUTOFF))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drift") / "bundles"
    trained = train_bundles(shop_with([]), CONFIG, out, tiers=TRAINED_TIERS, show_progress=False)
    assert not trained.skipped
    return out


def compared(tables: ShopTables, bundles: Path, *, days_later: int = 0) -> DriftResult:
    return drift(tables, bundles, CONFIG.drift, at=day(CUTOFF + days_later))


def breached(result: DriftResult) -> set[tuple[str, str]]:
    return {(check["tier"], check["check"]) for check in result["checks"] if check["breached"]}


def test_the_data_of_training_do_not_drift(bundles: Path) -> None:
    result = compared(shop_with([]), bundles)
    assert not breached(result)
    assert not result["breached"]
    assert not result["not_judged"]
    assert {check["tier"] for check in result["checks"]} == {str(tier) for tier in TRAINED_TIERS}
    distances = {check["check"]: check["distance"] for check in result["checks"]}
    assert distances["volume"] == 1.0
    assert distances["new items"] == distances["event mix"] == 0.0


def test_more_rows_of_other_kinds_on_new_items_are_noticed_where_they_may_be_read(bundles: Path) -> None:
    more: list[Noise] = [
        ("events", event(f"v{name}", f"new-{step}", CUTOFF - 2, kind="favourite", session=f"n-{name}"))
        for name in PERMITTED
        for step in range(20)
    ]
    found = breached(compared(shop_with(more), bundles))
    for tier in ("session", "online", "fused", "popular"):
        assert {(tier, "volume"), (tier, "new items"), (tier, "event mix")} <= found
    assert not {check for tier, check in found if tier == "crm"}


def test_withdrawals_are_noticed() -> None:
    permitted = ConsentGate(shop_with([]), ledger_of(shop_with([])), day(CUTOFF), Policy.default())
    rows = permitted.permitted(Tier.CRM)
    then, now = (
        data_summary([rows], {"customer": {"granted": granted, "withdrawn": 100 - granted}}, 40)
        for granted in (75, 60)
    )
    assert then is not None
    assert now is not None
    found = {check["check"]: check for check in _checks(Tier.CRM, then, now, _NewItems(0.0, 0), CONFIG.drift)}
    assert found["permissions of customers"]["distance"] == 0.15
    assert [name for name, check in found.items() if check["breached"]] == ["permissions of customers"]


def test_too_few_persons_are_a_breach_and_get_no_figure(bundles: Path) -> None:
    result = compared(shop_with([]), bundles, days_later=60)
    (check,) = (check for check in result["checks"] if check["tier"] == "crm")
    assert check["breached"]
    assert check["now"] is None


def test_columns_that_went_are_noticed_and_new_ones_are_told(tmp_path: Path) -> None:
    def with_attributes(*names: str) -> ShopTables:
        rows = [{"customer_id": f"c{name}", **dict.fromkeys(names, "x")} for name in LINKED]
        return dataclasses.replace(shop_with([]), customers=pa.Table.from_pylist(rows))

    train_bundles(
        with_attributes("region", "size"), CONFIG, tmp_path / "out", tiers=[Tier.CRM], show_progress=False
    )
    (check,) = (
        check
        for check in compared(with_attributes("region", "age"), tmp_path / "out")["checks"]
        if check["check"] == "columns"
    )
    assert check["breached"]
    assert check["says"] == "missing: customers.size; new: customers.age"
    new = compared(with_attributes("region", "size", "age"), tmp_path / "out")
    assert not breached(new)


def test_the_popular_list_reads_no_attributes_and_is_told_of_none(bundles: Path) -> None:
    customers = pa.table({"customer_id": [f"c{name}" for name in LINKED], "region": ["x"] * len(LINKED)})
    checks = compared(dataclasses.replace(shop_with([]), customers=customers), bundles)["checks"]
    told = {check["tier"]: check["says"] for check in checks if check["check"] == "columns"}
    assert told["crm"] == "new: customers.region"
    assert told["popular"] == "no change"


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ("absent", "'consentier retrain' or 'consentier train --force'"),
        ({"version": 0}, "'consentier retrain' or 'consentier train --force'"),
        (None, "more window_days in [drift]"),
    ],
)
def test_a_bundle_without_a_summary_is_not_judged(
    bundles: Path, tmp_path: Path, summary: object, said: str
) -> None:
    shutil.copytree(bundles, tmp_path / "bundles")
    facts = read_run(tmp_path / "bundles" / "crm")
    del facts["data_summary"]
    if summary != "absent":
        facts["data_summary"] = summary
    write_run(tmp_path / "bundles" / "crm", facts)
    result = compared(shop_with([]), tmp_path / "bundles")
    assert list(result["not_judged"]) == ["crm"]
    assert said in result["not_judged"]["crm"]
    assert "crm" not in {check["tier"] for check in result["checks"]}
    (tmp_path / "bundles" / "crm" / "run.json").unlink()
    assert list(compared(shop_with([]), tmp_path / "bundles")["not_judged"]) == ["crm"]


def test_without_a_bundle_there_is_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match="nothing: there is no such directory"):
        compared(shop_with([]), tmp_path / "nothing")
    with pytest.raises(BundleMissing, match=r"it holds none of session, .* 'consentier train' wrote"):
        compared(shop_with([]), tmp_path)
    (tmp_path / "manifest.json").touch()
    with pytest.raises(BundleMissing, match="this is one itself; name the directory above it"):
        compared(shop_with([]), tmp_path)


def test_a_share_of_few_persons_is_not_told_but_counts(bundles: Path) -> None:
    few: list[Noise] = [
        ("events", event(f"v{name}", "new", CUTOFF - 2, session=f"n-{name}-{step}"))
        for name in PERMITTED[:19]
        for step in range(60)
    ]
    found = {(check["tier"], check["check"]): check for check in compared(shop_with(few), bundles)["checks"]}
    new = found["online", "new items"]
    assert (new["now"], new["distance"], new["breached"]) == (None, None, True)
    assert "fewer than 20 persons, not shown" in new["says"]
    assert found["crm", "new items"]["distance"] == 0.0


def test_small_groups_are_in_no_summary(bundles: Path) -> None:
    counts = {"a": 60, "b": 30, "c": 9}
    pooled = {"a": 0.606, "all others": 0.394}
    assert _shares(counts, {"a": 50, "b": 19, "c": 3}, lambda pool: 10 * len(pool)) == pooled
    assert _shares(counts, {"a": 50, "b": 19, "c": 3}, lambda pool: 19) == {"a": 1.0}
    assert _shares(counts, {"a": 50, "b": 40, "c": 3}, lambda pool: 3) == {"a": 0.667, "b": 0.333}
    for tier in TRAINED_TIERS:
        summary = json.dumps(read_run(bundles / tier)["data_summary"])
        # Of each kind of refusal there is one person.
        assert "withdrawn" not in summary
        assert "denied" not in summary


def test_a_pool_of_the_same_few_persons_is_in_no_summary() -> None:
    """Who is behind two rare types of event counts once: twelve persons are no twenty-four."""

    def event_mix(clicked: list[str], liked: list[str]) -> set[str]:
        rare: list[Noise] = [
            ("events", event(f"v{name}", "i1", CUTOFF - 2, kind=kind, session=f"n-{name}"))
            for kind, names in (("click", clicked), ("favourite", liked))
            for name in names
        ]
        shop = shop_with(rare)
        gate = ConsentGate(shop, ledger_of(shop), day(CUTOFF), Policy.default())
        found = data_summary([gate.permitted(Tier.ONLINE)], {}, 40)
        assert found is not None
        return set(found["event_mix"])

    assert event_mix(PERMITTED[:12], PERMITTED[:12]) == {"view", "cart"}
    assert event_mix(PERMITTED[:12], PERMITTED[12:24]) == {"view", "cart", "all others"}


def test_total_variation_is_half_the_sum_of_the_differences() -> None:
    check: DriftCheck = _mix(Tier.CRM, "event mix", {"a": 0.5, "b": 0.5}, {"a": 0.2, "c": 0.8}, 0.79)
    assert check["distance"] == 0.8
    assert check["breached"]
    assert check["says"] == "c 0.0% → 80.0%, b 50.0% → 0.0%, a 50.0% → 20.0%"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop of the bundles, as files."""
    folder, tables = tmp_path_factory.mktemp("data") / "shop", shop_with([])
    names = {field.name for field in dataclasses.fields(tables)} - {"report"}
    write_tables({name: getattr(tables, name) for name in names}, folder)
    return folder


def test_the_command_exits_with_1_if_a_threshold_is_breached(
    bundles: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "shop")
    (tmp_path / "shop" / "consentier.toml").write_text("[drift]\nvolume_ratio = 1.5\n")
    command = ["drift", str(tmp_path / "shop"), "--bundles", str(bundles), "--cutoff"]
    run = CliRunner().invoke(app, [*command, day(CUTOFF).isoformat(), "--out", str(tmp_path / "drift.json")])
    assert run.exit_code == 0, run.output
    assert not json.loads((tmp_path / "drift.json").read_text())["breached"]
    late = CliRunner().invoke(app, [*command, day(CUTOFF + 30).isoformat(), "--json"])
    assert late.exit_code == 1
    assert json.loads(late.stdout)["breached"]


def test_nothing_to_compare_with_is_not_no_drift(bundles: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(bundles, tmp_path / "bundles")
    (tmp_path / "bundles" / "online" / "run.json").unlink()
    command = ["drift", str(data), "--bundles", str(tmp_path / "bundles"), "--cutoff"]
    run = CliRunner().invoke(app, [*command, day(CUTOFF).isoformat()])
    assert run.exit_code == 4
    assert "not judged: The online bundle" in run.stdout
    # A breach of another tier is the stronger news.
    late = CliRunner().invoke(app, [*command, day(CUTOFF + 30).isoformat(), "--json"])
    assert late.exit_code == 1
    assert list(json.loads(late.stdout)["not_judged"]) == ["online"]


def test_permissions_may_come_from_a_ledger(bundles: Path, data: Path, tmp_path: Path) -> None:
    """As in training: what the tables say of consents does not count then."""
    url = f"sqlite:///{tmp_path / 'consents.db'}"
    command = ["drift", str(data), "--bundles", str(bundles), "--cutoff", day(CUTOFF).isoformat(), "--json"]
    with Ledger.open(url) as ledger:
        told = [entry for _, entry in ledger_of(shop_with([])).entries()]
        ledger.append([entry for entry in told if isinstance(entry, ConsentRecord)])
        ledger.append_links([entry for entry in told if isinstance(entry, Link)])
        same = CliRunner().invoke(app, [*command, "--ledger", url])
        gone = [
            ConsentRecord(
                f"w{name}", f"c{name}", "customer", "crm", "withdrawn",
                valid_from=day(CUTOFF - 1), recorded_at=day(CUTOFF - 1),
            )
            for name in PERMITTED[:10]
        ]  # fmt: skip
        ledger.append(gone)
    assert same.exit_code == 0, same.output
    after = CliRunner().invoke(app, [*command, "--ledger", url])
    breaches = breached(json.loads(after.stdout))
    assert after.exit_code == 1
    assert ("fused", "volume") in breaches, "fewer than 20 are left"
    assert not {check for tier, check in breaches if tier in ("session", "online")}
    missing = CliRunner().invoke(app, [*command, "--ledger", f"sqlite:///{tmp_path / 'none.db'}"])
    assert missing.exit_code == 2


def test_the_shop_of_these_tests_has_rows_in_the_window() -> None:
    assert pc.max(shop_with([]).events["ts"]).as_py() > day(CUTOFF - 20)
