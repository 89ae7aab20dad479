"""Training on: the command, what it writes, what a kill in between leaves, and what a second run does."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import typer
from typer.testing import CliRunner

from consentier.cli.output import guarded
from consentier.cli.retrain import retrain as command
from consentier.consent import ConsentRecord, Ledger, Tier
from consentier.errors import TrainingError
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.models.bundle import open_bundle, read_run
from consentier.models.statistics import read_statistics
from consentier.training import bundles as writing
from consentier.training import retrain as retraining
from consentier.training.config import Config, TrackingConfig, load_config
from consentier.training.config_file import config_toml
from consentier.training.restricted import Restricted
from consentier.training.retrain import RetrainedTier, retrain
from consentier.training.train import TRAINED_TIERS, train

MODELS = tuple(tier for tier in TRAINED_TIERS if tier is not Tier.POPULAR)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A simulated shop, and bundles trained on it a week before its cut-off."""

    data: Path
    shop: ShopTables
    config: Config
    out: Path

    @property
    def restricted(self) -> Restricted:
        return Restricted.beside(self.out)

    def retrain(self, **options: Any) -> dict[Tier, RetrainedTier]:
        shop, config = options.pop("shop", self.shop), options.pop("config", self.config)
        result = retrain(shop, config, self.out, self.restricted, show_progress=False, **options)
        return {each.tier: each for each in result.tiers}

    def from_scratch(self, **options: Any) -> dict[str, str]:
        shop, config = options.pop("shop", self.shop), options.pop("config", self.config)
        out = self.out.with_name("scratch")
        options.setdefault("tiers", TRAINED_TIERS)
        return train(shop, config, out, show_progress=False, force=True, **options).digests


def earlier(config: Config) -> Config:
    assert config.training.cutoff is not None
    return config.with_cutoff(config.training.cutoff - retraining.dt.timedelta(days=1))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("retrain")
    write_shop(simulate(SimulationConfig(customers=150, items=60, days=40, horizon_days=7)), folder / "shop")
    config = load_config(data=folder / "shop")
    # Otherwise every session counts differently a day later.
    session = config.session.model_copy(update={"session_half_life": 0.0})
    config = config.model_copy(update={"tracking": TrackingConfig(enabled=False), "session": session})
    (folder / "retrain.toml").write_text(config_toml(config), "utf-8")
    shop, out = read_shop(folder / "shop"), folder / "bundles"
    before = earlier(config)
    train(shop, before, out, tiers=TRAINED_TIERS, restricted=Restricted.beside(out), show_progress=False)
    return Trained(folder / "shop", shop, config, out)


@pytest.fixture
def trained(workshop: Trained, tmp_path: Path) -> Trained:
    """The same, free to be changed."""
    out = tmp_path / "bundles"
    shutil.copytree(workshop.out, out)
    shutil.copytree(workshop.restricted.path, Restricted.beside(out).path)
    return dataclasses.replace(workshop, out=out)


@pytest.fixture
def exchanging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are exchanged wherever that is exact: in so small a shop a fit is always the quicker way."""
    monkeypatch.setattr(retraining, "require_less_work", lambda _: None)


exchanges = pytest.mark.usefixtures("exchanging")


def digests(out: Path) -> dict[str, str]:
    return {str(tier): open_bundle(out / tier).digest for tier in TRAINED_TIERS if (out / tier).exists()}


def without_orders_of(shop: ShopTables, customer: str) -> ShopTables:
    kept = pc.not_equal(shop.orders["customer_id"], customer)
    return dataclasses.replace(shop, orders=shop.orders.filter(kept))


@exchanges
def test_a_day_later_the_bundles_are_those_of_a_run_from_scratch(trained: Trained) -> None:
    before = digests(trained.out)
    done = trained.retrain()
    assert {tier: each.how for tier, each in done.items()} == {
        **dict.fromkeys(MODELS, "incremental"), Tier.POPULAR: "refitted",
    }  # fmt: skip
    assert (
        digests(trained.out)
        == trained.from_scratch()
        == {str(tier): each.after for tier, each in done.items()}
    )
    for tier in MODELS:
        assert done[tier].before == before[tier]
        assert (done[tier].changed or 0) + (done[tier].new or 0) > 0
        assert read_run(trained.out / tier)["retrained"] == "incremental"
        assert read_statistics(trained.restricted.statistics(tier)).bundle_digest == done[tier].after
    written = {file: file.stat().st_mtime_ns for file in trained.out.rglob("*") if file.is_file()}
    assert {each.how for each in trained.retrain().values()} == {"unchanged"}
    assert written == {file: file.stat().st_mtime_ns for file in trained.out.rglob("*") if file.is_file()}


@exchanges
def test_the_index_of_members_follows(trained: Trained) -> None:
    buyer = trained.shop.orders["customer_id"].to_pylist()[0]
    cutoff = trained.config.training.cutoff
    assert cutoff is not None
    withdrawal = ConsentRecord(
        "w", buyer, "customer", "crm", "withdrawn", valid_from=cutoff - retraining.dt.timedelta(hours=1),
        recorded_at=cutoff,
    )  # fmt: skip
    ledger = retraining.ledger_of(trained.shop)
    lineage = trained.restricted.lineage()
    old = open_bundle(trained.out / Tier.CRM).digest
    assert old in {held.digest for held in lineage.bundles_of("customer", buyer)}
    ledger.append([withdrawal])
    done = trained.retrain(ledger=ledger, tiers=[Tier.CRM])[Tier.CRM]
    assert (done.how, done.gone) == ("incremental", 1)
    assert {"crm": done.after} == trained.from_scratch(ledger=ledger, tiers=[Tier.CRM])
    assert done.after not in {held.digest for held in lineage.bundles_of("customer", buyer)}
    assert done.after in lineage.digests()


@exchanges
def test_a_durable_ledger_is_asked_what_it_held_at_the_fit(trained: Trained, tmp_path: Path) -> None:
    """A record that reaches back before the earlier cut-off would hide the rows that were counted."""
    buyer = trained.shop.orders["customer_id"].to_pylist()[0]
    cutoff = trained.config.training.cutoff
    assert cutoff is not None
    out = tmp_path / "durable"
    trained = dataclasses.replace(trained, out=out)
    with Ledger.open(f"sqlite:///{tmp_path / 'consents.db'}") as ledger:
        told = retraining.ledger_of(trained.shop)
        ledger.append([entry for _, entry in told.entries() if isinstance(entry, ConsentRecord)])
        train(
            trained.shop, earlier(trained.config), out, tiers=[Tier.CRM], restricted=trained.restricted,
            ledger=ledger, show_progress=False,
        )  # fmt: skip
        late = ConsentRecord(
            "w", buyer, "customer", "crm", "withdrawn", valid_from=cutoff - retraining.dt.timedelta(days=9),
            recorded_at=cutoff,
        )  # fmt: skip
        ledger.append([late])
        done = trained.retrain(ledger=ledger, tiers=[Tier.CRM])[Tier.CRM]
        assert (done.how, done.gone) == ("incremental", 1)
        assert {"crm": done.after} == trained.from_scratch(ledger=ledger, tiers=[Tier.CRM])


@exchanges
def test_rows_that_were_deleted_make_it_a_fit(trained: Trained) -> None:
    """As after an erasure: what was counted cannot be read any more."""
    shop = without_orders_of(trained.shop, trained.shop.orders["customer_id"].to_pylist()[0])
    done = trained.retrain(shop=shop, tiers=[Tier.CRM])[Tier.CRM]
    assert done.how == "refitted"
    assert "not there any more, or have changed" in str(done.reason)
    assert {"crm": done.after} == trained.from_scratch(shop=shop, tiers=[Tier.CRM])


def test_where_a_fit_is_less_work_it_is_taken(trained: Trained) -> None:
    done = trained.retrain(tiers=[Tier.ONLINE])[Tier.ONLINE]
    assert done.how == "refitted"
    assert done.estimate is not None
    assert done.estimate.fit < done.estimate.exchange
    assert done.reason == f"a fit is as quick: {done.estimate}"
    assert {"online": done.after} == trained.from_scratch(tiers=[Tier.ONLINE])


def test_a_tier_without_bundle_is_trained_and_one_without_rows_removed(trained: Trained) -> None:
    shutil.rmtree(trained.out / Tier.SESSION)
    nothing = {name: getattr(trained.shop, name).slice(0, 0) for name in ("orders", "product_usage")}
    shop = dataclasses.replace(trained.shop, **nothing)
    done = trained.retrain(shop=shop, tiers=[Tier.SESSION, Tier.CRM])
    assert (done[Tier.SESSION].how, done[Tier.SESSION].reason) == ("refitted", "there is no bundle yet")
    assert (done[Tier.CRM].how, done[Tier.CRM].after) == ("removed", None)
    assert not (trained.out / Tier.CRM).exists()
    assert not trained.restricted.statistics(Tier.CRM).exists()
    with pytest.raises(TrainingError, match="no permitted rows"):
        trained.retrain(shop=shop, tiers=[Tier.CRM])


@exchanges
def test_a_tier_without_a_stable_solution_stays_as_it_was_and_keeps_no_other_from_anything(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unstable(*_: object, **__: object) -> None:
        raise TrainingError("the ridge system of item 3 has no stable solution")

    before = digests(trained.out)
    shutil.rmtree(trained.restricted.statistics(Tier.ONLINE))
    monkeypatch.setattr(retraining, "fit_tier", unstable)
    options = ["--bundles", trained.out, "--config", trained.data.parent / "retrain.toml"]
    done = run(trained.data, *options, "--tier", "online", "--tier", "crm")
    assert done.exit_code == 1
    assert "online could not be fitted, and is as it was: the ridge system" in done.stdout
    after = digests(trained.out)
    assert after["online"] == before["online"]
    assert after["crm"] != before["crm"]
    assert before["online"] in trained.restricted.lineage().digests()
    with pytest.raises(TrainingError, match="no stable solution"):
        trained.retrain(tiers=[Tier.ONLINE])


def test_the_first_bundles_of_a_shop_may_come_from_training_on(trained: Trained) -> None:
    """As after a first run that had nothing to train on: then there is not even a directory."""
    shutil.rmtree(trained.out)
    trained.retrain(tiers=[Tier.CRM])
    assert digests(trained.out)["crm"] == trained.from_scratch()["crm"]


@exchanges
@pytest.mark.parametrize("where", ["write_bundle", "keep_statistics"])
def test_an_interruption_between_the_writes_is_made_good_by_the_next_run(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, where, killed)
        with pytest.raises(KeyboardInterrupt):
            trained.retrain(tiers=[Tier.ONLINE])
    done = trained.retrain(tiers=[Tier.ONLINE])[Tier.ONLINE]
    assert done.how == ("incremental" if where == "write_bundle" else "refitted")
    assert {"online": done.after} == trained.from_scratch(tiers=[Tier.ONLINE])
    assert trained.retrain(tiers=[Tier.ONLINE])[Tier.ONLINE].how == "unchanged"


_KILLED = """
import os, signal, sys, traceback
import ibis.backends.duckdb
import consentier.training.retrain
from consentier.cli.app import app
from consentier.training import retrain
retrain.require_less_work = lambda estimate: None
flush = os.fsync
def counted(descriptor):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(descriptor)
os.fsync = counted
for line in sys.stdin:
    left = int(line)
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        try:
            app(sys.argv[1:])
        except SystemExit as ended:
            os._exit(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs the command once for each number of files that it reads, in a process of its own."""


def test_killed_at_any_moment_and_run_again_the_bundles_are_those_of_a_run_from_scratch(
    trained: Trained,
) -> None:
    """Killed when it is about to bring a file to the disk, as often as that takes three goes."""
    tiers = [Tier.SESSION, Tier.POPULAR]
    arguments = ["retrain", str(trained.data), "--bundles", str(trained.out)]
    arguments += ["--config", str(trained.data.parent / "retrain.toml")]
    arguments += [part for tier in tiers for part in ("--tier", str(tier))]
    draw = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID", "0"))
    command = [sys.executable, "-c", _KILLED, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for _ in range(3):
            print(draw.randrange(60), file=running.stdin, flush=True)
            assert int(running.stdout.readline()) in (0, -signal.SIGKILL)
            for tier in tiers:
                open_bundle(trained.out / tier)
        print(9999, file=running.stdin, flush=True)
        assert int(running.stdout.readline()) == 0
    scratch = trained.from_scratch(tiers=tiers)
    assert {name: each for name, each in digests(trained.out).items() if name in scratch} == scratch
    assert {each.how for each in trained.retrain(tiers=tiers).values()} == {"unchanged"}
    assert not list(trained.restricted.statistics(Tier.SESSION).parent.glob(".*"))


@exchanges
def test_threads_do_not_matter(trained: Trained) -> None:
    training = trained.config.training.model_copy(update={"threads": 1})
    one = trained.config.model_copy(update={"training": training})
    assert trained.retrain(config=one, tiers=[Tier.FUSED])[Tier.FUSED].how == "incremental"
    assert {"fused": digests(trained.out)["fused"]} == trained.from_scratch(tiers=[Tier.FUSED])


# ---- The command -------------------------------------------------------------------------------------------


def run(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(guarded(command))
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


@exchanges
def test_the_command_says_which_way_it_went(trained: Trained) -> None:
    shutil.rmtree(trained.restricted.statistics(Tier.CRM))
    config = trained.data.parent / "retrain.toml"
    options = ["--bundles", trained.out, "--config", config, "--tier", "crm", "--tier", "online"]
    done = run(trained.data, *options)
    assert done.exit_code == 0, done.stderr
    assert "online was incremental: of " in " ".join(done.stdout.split())
    assert "crm was refitted" in done.stdout
    assert "there are none" in done.stdout
    again = run(trained.data, *options, "--json")
    told = json.loads(again.stdout)
    assert [(tier["tier"], tier["how"]) for tier in told["tiers"]] == [
        ("online", "unchanged"),
        ("crm", "unchanged"),
    ]
    assert told["training"]["digests"] == {}


def test_a_cutoff_that_does_not_go_on_in_time_is_told(trained: Trained) -> None:
    """A configuration that pins it would let the rows that came meanwhile be missed without a word."""
    options = [
        "--bundles",
        trained.out,
        "--config",
        trained.data.parent / "retrain.toml",
        "--tier",
        "popular",
    ]
    pinned = "which the configuration sets; --cutoff gives a later one"
    assert pinned not in run(trained.data, *options).stderr
    again = run(trained.data, *options)
    assert (again.exit_code, pinned in again.stderr) == (0, True), again.stderr
    back = earlier(earlier(trained.config)).training.cutoff
    assert back is not None
    gone_back = run(trained.data, *options, "--cutoff", back.isoformat())
    assert gone_back.exit_code == 0, gone_back.stderr
    assert "lies before that of the bundles until now" in gone_back.stderr
    assert pinned not in gone_back.stderr


def test_a_table_that_is_missing_is_told(trained: Trained, tmp_path: Path) -> None:
    """The shop is valid without it, and the crm tier is fitted on what usage is left."""
    config = trained.data.parent / "retrain.toml"
    options = ["--bundles", trained.out, "--config", config, "--tier", "crm", "--tier", "online"]
    whole = run(trained.data, *options)
    assert "is a table missing?" not in whole.stderr
    shutil.copytree(trained.data, tmp_path / "shop")
    (tmp_path / "shop" / "orders.parquet").unlink()
    without = run(tmp_path / "shop", *options)
    assert without.exit_code == 0, without.stderr
    assert "rows of the source crm came in, where there were" in without.stderr
    assert "rows of the source online" not in without.stderr
