"""Forgetting: the command, what it writes and refuses, and what a kill in between leaves."""

from __future__ import annotations

import dataclasses
import datetime as dt
import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import typer
from typer.testing import CliRunner

from consentier.cli.forget import forget as command
from consentier.cli.output import guarded
from consentier.consent import ConsentRecord, Policy, Tier
from consentier.consent.policy import Switches
from consentier.errors import BundleMissing, BundleUnsupported, TrainingError
from consentier.features.gate import ledger_of
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.models.bundle import open_bundle, read_run, write_bundle, write_run
from consentier.models.statistics import StatisticsError, read_statistics
from consentier.serving.revocation import Revocations, revoke
from consentier.training import forget as forgetting
from consentier.training import retrain as retraining
from consentier.training import train as training
from consentier.training.config import Config, TrackingConfig, load_config
from consentier.training.forget import ForgottenTier, Subject, forget
from consentier.training.lineage import Lineage
from consentier.training.restricted import Restricted
from consentier.training.train import TRAINED_TIERS, train
from consentier.writing import sibling


@dataclasses.dataclass(frozen=True)
class Trained:
    """A simulated shop, bundles trained on it, and two of its people."""

    data: Path
    shop: ShopTables
    config: Config
    out: Path
    visitor: str
    customer: str

    @property
    def restricted(self) -> Restricted:
        return Restricted.beside(self.out)

    def forget(self, *subjects: Subject, **options: Any) -> dict[Tier, ForgottenTier]:
        shop = options.pop("shop", self.shop)
        result = forget(shop, subjects, self.out, self.restricted, show_progress=False, **options)
        return {each.tier: each for each in result.tiers}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("forget")
    write_shop(simulate(SimulationConfig(customers=150, items=60, days=40, horizon_days=7)), folder / "shop")
    shop = read_shop(folder / "shop")
    config = load_config(data=folder / "shop")
    config = config.model_copy(
        update={
            "tracking": TrackingConfig(enabled=False),
            # Without attributes, whose groups a single person can shift.
            "crm": config.crm.model_copy(update={"attribute_weight": 0.0}),
            "fused": config.fused.model_copy(update={"attribute_weight": 0.0}),
        }
    )
    out = folder / "bundles"
    train(shop, config, out, tiers=TRAINED_TIERS, restricted=Restricted.beside(out), show_progress=False)
    assert config.training.cutoff is not None
    links = ledger_of(shop).lawful_links(at=config.training.cutoff)
    orders = Counter(shop.orders["customer_id"].to_pylist())
    clicks = set(shop.events["visitor_id"].to_pylist())
    visitor = max(sorted(links.keys() & clicks), key=lambda each: orders[links[each].customer_id])
    return Trained(folder / "shop", shop, config, out, visitor, links[visitor].customer_id)


@pytest.fixture
def trained(workshop: Trained, tmp_path: Path) -> Trained:
    """The same, free to be changed."""
    out = tmp_path / "bundles"
    shutil.copytree(workshop.out, out)
    shutil.copytree(workshop.restricted.path, Restricted.beside(out).path)
    return dataclasses.replace(workshop, out=out)


def fitted_without(trained: Trained, tier: Tier, *gone: Subject) -> str:
    """The digest of a fit on the shop without all rows of some subjects."""
    shop = trained.shop
    for name in ("events", "orders", "product_usage", "customers", "identities"):
        table = getattr(shop, name)
        for kind, subject in gone:
            if f"{kind}_id" in table.column_names:
                table = table.filter(pc.not_equal(table[f"{kind}_id"], subject))
        shop = dataclasses.replace(shop, **{name: table})
    subjects = zip(
        shop.consents["subject_kind"].to_pylist(), shop.consents["subject_id"].to_pylist(), strict=True
    )
    stays = pa.array([subject not in gone for subject in subjects])
    shop = dataclasses.replace(shop, consents=shop.consents.filter(stays))
    out = trained.out.with_name(f"without-{tier}")
    return train(shop, trained.config, out, tiers=[tier], show_progress=False).digests[str(tier)]


def digests(out: Path) -> dict[str, str]:
    return {str(tier): open_bundle(out / tier).digest for tier in TRAINED_TIERS if (out / tier).exists()}


def run(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(guarded(command))
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def test_a_customer_leaves_the_tiers_that_read_orders(trained: Trained) -> None:
    gone: Subject = ("customer", trained.customer)
    before = digests(trained.out)

    done = trained.forget(gone)

    assert {tier: each.how for tier, each in done.items()} == {
        Tier.SESSION: "unchanged",
        Tier.ONLINE: "unchanged",
        Tier.CRM: "decremented",
        Tier.FUSED: "decremented",
        Tier.POPULAR: "decremented",
    }
    assert digests(trained.out) == {str(tier): each.after for tier, each in done.items()}
    for tier in (Tier.CRM, Tier.FUSED):
        assert done[tier].after == fitted_without(trained, tier, gone)
        assert done[tier].before == before[tier] != done[tier].after
    again = trained.forget(gone)
    assert {each.how for each in again.values()} == {"unchanged"}


def test_a_device_leaves_the_tiers_that_read_clicks(trained: Trained) -> None:
    gone: Subject = ("visitor", trained.visitor)
    done = trained.forget(gone)
    assert {tier for tier, each in done.items() if each.how == "unchanged"} == {Tier.CRM}
    for tier in (Tier.SESSION, Tier.ONLINE, Tier.FUSED):
        assert done[tier].how == "decremented"
        assert done[tier].after == fitted_without(trained, tier, gone)


def test_the_run_counts_the_forgotten_and_names_nobody(trained: Trained) -> None:
    trained.forget(("customer", trained.customer), tiers=[Tier.CRM])
    second = next(
        customer
        for customer in trained.shop.orders["customer_id"].to_pylist()
        if trained.restricted.lineage().bundles_of("customer", customer) and customer != trained.customer
    )
    trained.forget(("customer", second), tiers=[Tier.CRM])
    run_facts = read_run(trained.out / Tier.CRM)
    assert run_facts["forgot"] == 2
    assert "rows_digest" not in run_facts
    text = (trained.out / Tier.CRM / "run.json").read_text("utf-8")
    assert trained.customer not in text
    assert second not in text


def test_the_index_of_members_follows(trained: Trained) -> None:
    lineage = trained.restricted.lineage()
    held = {bundle.tier for bundle in lineage.bundles_of("customer", trained.customer)}
    assert held >= {"crm", "fused"}
    after = trained.forget(("customer", trained.customer))
    assert lineage.bundles_of("customer", trained.customer) == []
    assert after[Tier.CRM].after in lineage.digests()
    # What was joined to the customer's history has left the joint model too.
    assert "fused" not in {bundle.tier for bundle in lineage.bundles_of("visitor", trained.visitor)}


def test_the_deadline_stays_while_somebody_else_who_refused_is_in_it(trained: Trained) -> None:
    lineage, ledger = trained.restricted.lineage(), ledger_of(trained.shop)
    before = open_bundle(trained.out / Tier.CRM).digest
    others = [
        customer
        for customer in sorted(set(trained.shop.orders["customer_id"].to_pylist()) - {trained.customer})
        if before in {held.digest for held in lineage.bundles_of("customer", customer)}
    ]
    at = trained.config.training.cutoff
    assert at is not None

    def decided(customer: str, permission: str, state: Any, hours: int) -> ConsentRecord:
        instant = at + dt.timedelta(hours=hours)
        return ConsentRecord(
            f"{customer}-{permission}-{state}", customer, "customer", permission, state, valid_from=instant,
            recorded_at=instant, basis="form",
        )  # fmt: skip

    second, contact, again, child = others[:4]
    ledger.append(
        [
            decided(trained.customer, "crm", "withdrawn", 1),
            decided(second, "crm", "withdrawn", 1),
            decided(second, "crm", "granted", 2),  # which does not legalise the rows of before
            decided(contact, "contact:email", "withdrawn", 1),
            decided(again, "crm", "granted", 1),
            decided(child, "parental", "granted", 1),  # which does not carry the rows of before either
        ]
    )
    deadline = at + dt.timedelta(days=30)
    revoke(trained.out, [before], deadline, "withdrawal")
    options: dict[str, Any] = {"ledger": ledger, "tiers": [Tier.CRM]}
    for gone, left in ((trained.customer, deadline), (second, deadline), (child, None)):
        done = trained.forget(("customer", gone), **options)[Tier.CRM]
        assert done.after != done.before
        assert Revocations.open(trained.out).deadline_of(str(done.after)) == left


@pytest.mark.parametrize("unknown", ["lineage", "ledger"])
def test_the_deadline_stays_where_it_cannot_be_known_whose_it_is(trained: Trained, unknown: str) -> None:
    before = open_bundle(trained.out / Tier.CRM).digest
    deadline = dt.datetime(2026, 9, 1, tzinfo=dt.UTC)
    revoke(trained.out, [before], deadline, "withdrawal")
    if unknown == "lineage":
        trained.restricted.lineage().drop([before])
        done = trained.forget(("customer", trained.customer), tiers=[Tier.CRM])[Tier.CRM]
    else:
        place = trained.restricted.statistics(Tier.CRM)
        shutil.rmtree(place)  # so that it is fitted again, whatever the ledger is
        lineage = trained.restricted.lineage()
        lineage.record(
            before, "crm", [("customer", trained.customer)], cutoff=deadline, ledger_position=10**9
        )
        done = trained.forget(("customer", trained.customer), tiers=[Tier.CRM])[Tier.CRM]
    assert done.after != before
    assert Revocations.open(trained.out).deadline_of(str(done.after)) == deadline


def test_rows_that_were_purged_or_changed_make_it_a_fit(trained: Trained) -> None:
    gone: Subject = ("customer", trained.customer)
    theirs = pc.equal(trained.shop.orders["customer_id"], trained.customer)
    purged = dataclasses.replace(trained.shop, orders=trained.shop.orders.filter(pc.invert(theirs)))
    path = trained.out / Tier.CRM
    write_run(path, {**read_run(path), "solver": {"library": "another than that of the new fit"}})
    done = trained.forget(gone, shop=purged, tiers=[Tier.CRM])[Tier.CRM]
    assert done.how == "refitted"
    assert "not there any more, or have changed" in str(done.reason)
    assert done.after == fitted_without(trained, Tier.CRM, gone)
    facts = read_run(trained.out / Tier.CRM)
    assert facts["ledger_position"] == ledger_of(purged).position
    assert facts["rows_digest"].startswith("sha256:")
    assert "solver" not in facts


def test_a_dissolved_link_makes_the_joint_model_a_fit(trained: Trained) -> None:
    """As after a withdrawal: nothing says any more whose history the device was part of."""
    ledger = ledger_of(trained.shop)
    assert ledger.dissolve_links(visitor_id=trained.visitor) > 0
    gone: Subject = ("visitor", trained.visitor)
    done = trained.forget(gone, ledger=ledger)
    assert (done[Tier.ONLINE].how, done[Tier.FUSED].how) == ("decremented", "refitted")
    assert done[Tier.FUSED].after == fitted_without(trained, Tier.FUSED, gone)


@pytest.mark.parametrize("file", ["gram_values.npy", "persons.npy", "manifest.json"])
def test_statistics_that_were_altered_are_refused(trained: Trained, file: str) -> None:
    path = trained.restricted.statistics(Tier.ONLINE) / file
    altered = bytearray(path.read_bytes())
    altered[-20] ^= 1
    path.write_bytes(bytes(altered))
    with pytest.raises(StatisticsError, match=r"altered|malformed"):
        read_statistics(path.parent)
    gone: Subject = ("visitor", trained.visitor)
    done = trained.forget(gone, tiers=[Tier.ONLINE])[Tier.ONLINE]
    assert done.how == "refitted"
    assert done.after == fitted_without(trained, Tier.ONLINE, gone)
    assert read_statistics(path.parent).bundle_digest == done.after


@pytest.mark.parametrize("where", ["write_bundle", "write_run", "write_statistics"])
def test_a_kill_between_the_writes_is_made_good_by_the_next_run(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    gone: Subject = ("visitor", trained.visitor)
    before = open_bundle(trained.out / Tier.ONLINE).digest
    with monkeypatch.context() as patch:
        patch.setattr(forgetting, where, killed)
        with pytest.raises(KeyboardInterrupt):
            trained.forget(gone, tiers=[Tier.ONLINE])
    expected = fitted_without(trained, Tier.ONLINE, gone)
    assert open_bundle(trained.out / Tier.ONLINE).digest == (before if where == "write_bundle" else expected)
    again = trained.forget(gone, tiers=[Tier.ONLINE])[Tier.ONLINE]
    assert again.how == ("decremented" if where == "write_bundle" else "refitted")
    assert again.after == expected
    assert read_statistics(trained.restricted.statistics(Tier.ONLINE)).bundle_digest == expected


@pytest.mark.parametrize("first", ["the same", "another"])
def test_a_kill_before_the_index_knows_is_made_good_by_the_next_run(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    gone: Subject = ("visitor", trained.visitor)
    lineage = trained.restricted.lineage()
    before = open_bundle(trained.out / Tier.ONLINE).digest
    with monkeypatch.context() as patch:
        patch.setattr(Lineage, "replaced", killed)
        with pytest.raises(KeyboardInterrupt):
            trained.forget(gone, tiers=[Tier.ONLINE])
    after = open_bundle(trained.out / Tier.ONLINE).digest
    assert after != before
    assert after not in lineage.digests()
    if first == "another":  # it is fitted again on all rows, theirs too: the index must say so
        trained.forget(("visitor", "nobody"), tiers=[Tier.ONLINE])
        assert open_bundle(trained.out / Tier.ONLINE).digest in lineage.digests()
        assert Tier.ONLINE in {held.tier for held in lineage.bundles_of(*gone)}
        return
    done = trained.forget(gone, tiers=[Tier.ONLINE])[Tier.ONLINE]
    assert (done.how, done.after) == ("refitted", after)
    assert before not in lineage.digests()
    assert after in lineage.digests()
    assert Tier.ONLINE not in {held.tier for held in lineage.bundles_of(*gone)}


def test_a_former_bundle_that_a_kill_left_goes_although_nothing_is_left_to_do(trained: Trained) -> None:
    gone: Subject = ("visitor", trained.visitor)
    trained.forget(gone, tiers=[Tier.ONLINE])
    left = [
        sibling(trained.out / Tier.ONLINE, ".replaced"), sibling(trained.restricted.statistics(Tier.ONLINE)),
    ]  # fmt: skip
    for remnant in left:
        remnant.mkdir()
    assert trained.forget(gone, tiers=[Tier.ONLINE])[Tier.ONLINE].how == "unchanged"
    assert not any(remnant.exists() for remnant in left)


def test_trainings_and_forgettings_of_one_directory_wait_for_each_other(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []

    def looked(name: str) -> Callable[..., Any]:
        def look(*_: object, **__: object) -> None:
            with (trained.restricted.path / "forget.lock").open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.append(name)
            raise KeyboardInterrupt

        return look

    monkeypatch.setattr(forgetting, "_forget_in", looked("forget"))
    monkeypatch.setattr(retraining, "_retrained", looked("retrain"))
    monkeypatch.setattr(training, "train_bundles", looked("train"))
    for work in (
        lambda: trained.forget(("visitor", trained.visitor)),
        lambda: retraining.retrain(trained.shop, trained.config, trained.out, trained.restricted),
        lambda: train(
            trained.shop, trained.config, trained.out, tiers=[Tier.CRM], restricted=trained.restricted
        ),
    ):
        with pytest.raises(KeyboardInterrupt):
            work()
    assert held == ["forget", "retrain", "train"]


def test_another_policy_than_that_of_the_fit_makes_it_a_fit(trained: Trained) -> None:
    other = dataclasses.replace(Policy.default(), switches=Switches(model_purpose=True))
    done = trained.forget(("visitor", trained.visitor), tiers=[Tier.ONLINE], policy=other)[Tier.ONLINE]
    assert (done.how, done.after) == ("removed", None)  # nobody granted contributing to models by itself
    assert not (trained.out / Tier.ONLINE).exists()
    assert not trained.restricted.statistics(Tier.ONLINE).exists()


@pytest.mark.parametrize("way", ["decremented", "fit_tier"])
def test_without_a_stable_solution_the_bundle_goes_and_the_reason_is_that(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """It holds whom it was to forget; training without a solution leaves the bundle that stands."""

    def unstable(*_: object, **__: object) -> None:
        raise TrainingError("the ridge system of item 3 has no stable solution")

    before = open_bundle(trained.out / Tier.CRM).digest
    if way == "fit_tier":
        shutil.rmtree(trained.restricted.statistics(Tier.CRM))
    monkeypatch.setattr(forgetting, way, unstable)
    command = [trained.customer, "--data", trained.data, "--bundles", trained.out / Tier.CRM]
    done = run(*command)
    assert done.exit_code == 1
    assert "crm has no bundle any more: the ridge system of item 3 has no stable solution" in done.stdout
    assert "permitted" not in done.stdout
    assert not (trained.out / Tier.CRM).exists()
    assert not trained.restricted.statistics(Tier.CRM).exists()
    assert before not in trained.restricted.lineage().digests()
    again = train(
        trained.shop, trained.config, trained.out, tiers=[Tier.CRM], restricted=trained.restricted,
        show_progress=False,
    )  # fmt: skip
    assert again.digests == {"crm": before}
    (told,) = trained.forget(("customer", trained.customer), tiers=[Tier.CRM]).values()
    if way == "decremented":
        assert (told.how, told.after, told.items) == ("unsolved", None, 0)


def test_a_bundle_of_sparks_als_says_whose_als_takes_its_place(trained: Trained) -> None:
    als = trained.config.crm.model_copy(update={"algorithm": "als", "factors": 4, "iterations": 2})
    trained = dataclasses.replace(trained, config=trained.config.model_copy(update={"crm": als}))
    train(trained.shop, trained.config, trained.out, tiers=[Tier.CRM], force=True, show_progress=False)
    bundle = open_bundle(trained.out / Tier.CRM)
    manifest = bundle.manifest
    of_spark = {**manifest.scoring["fold_in"], "observed_weight": 0.1, "entry_regularisation": 0.5}
    write_bundle(
        bundle.path, tier="crm", sources=manifest.sources, permission=manifest.permission,
        algorithm="als", parameters=manifest.parameters, scoring={**manifest.scoring, "fold_in": of_spark},
        item_count=manifest.item_count, cutoff=trained.config.training.cutoff,  # type: ignore[arg-type]
        arrays={name: np.array(array) for name, array in bundle.arrays.items()}, overwrite=True,
    )  # fmt: skip
    gone: Subject = ("customer", trained.customer)
    done = trained.forget(gone, tiers=[Tier.CRM])[Tier.CRM]
    assert done.how == "refitted"
    assert "pyspark.ml fitted it" in str(done.reason)
    assert "the ALS of one machine takes its place" in str(done.reason)
    assert done.after == fitted_without(trained, Tier.CRM, gone)


def test_statistics_are_for_their_owner_only_and_name_nobody(trained: Trained) -> None:
    folder = trained.restricted.statistics(Tier.FUSED)
    assert folder.stat().st_mode & 0o077 == 0
    for file in folder.iterdir():
        assert trained.customer.encode() not in file.read_bytes()
        assert trained.visitor.encode() not in file.read_bytes()


def test_threads_do_not_matter(trained: Trained, tmp_path: Path) -> None:
    other = dataclasses.replace(trained, out=tmp_path / "other")
    shutil.copytree(trained.out, other.out)
    shutil.copytree(trained.restricted.path, other.restricted.path)
    gone: Subject = ("customer", trained.customer)
    one, two = (each.forget(gone, tiers=[Tier.CRM], threads=n) for n, each in enumerate((trained, other), 1))
    assert one[Tier.CRM].after == two[Tier.CRM].after


def test_arguments_are_checked(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="somebody"):
        trained.forget()
    with pytest.raises(ValueError, match="subject is"):
        trained.forget(("customer", ""))
    with pytest.raises(ValueError, match="subject is"):
        trained.forget(("person", "c1"))  # type: ignore[arg-type]
    with pytest.raises(BundleMissing, match="train first"):
        forget(trained.shop, [("customer", "c1")], tmp_path / "no", trained.restricted)


def test_a_bundle_of_another_release_is_refused_and_stays(trained: Trained) -> None:
    bundle = open_bundle(trained.out / Tier.CRM)
    manifest = bundle.manifest
    arrays = {name: np.array(array) for name, array in bundle.arrays.items()}
    digest = write_bundle(
        trained.out / Tier.CRM, tier="crm", sources=manifest.sources, permission=manifest.permission,
        algorithm=manifest.algorithm, parameters={**manifest.parameters, "of_the_future": 1},
        scoring=manifest.scoring, item_count=manifest.item_count, arrays=arrays,
        cutoff=trained.config.training.cutoff, overwrite=True,  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(BundleUnsupported, match="train again"):
        trained.forget(("customer", trained.customer), tiers=[Tier.CRM])
    assert open_bundle(trained.out / Tier.CRM).digest == digest


# ---- The command -------------------------------------------------------------------------------------------


def test_the_command_says_which_way_it_went(trained: Trained) -> None:
    shutil.rmtree(trained.restricted.statistics(Tier.FUSED))
    done = run(trained.customer, "--data", trained.data, "--bundles", trained.out)
    assert done.exit_code == 0, done.stderr
    assert "decremented" in done.stdout
    assert "fused was refitted" in done.stdout
    assert "there are none" in done.stdout


def test_the_command_takes_several_subjects_and_a_single_bundle(trained: Trained) -> None:
    before = digests(trained.out)
    others = pc.unique(trained.shop.events["visitor_id"]).to_pylist()[:2]
    subjects = [trained.visitor, *others]
    bundle = trained.out / Tier.SESSION
    done = run(*subjects, "--kind", "visitor", "--data", trained.data, "--bundle", bundle, "--json")
    assert done.exit_code == 0, done.stderr
    (tier,) = json.loads(done.stdout)["tiers"]
    assert (tier["tier"], tier["how"]) == ("session", "decremented")
    assert tier["after"] == fitted_without(trained, Tier.SESSION, *(("visitor", each) for each in subjects))
    assert digests(trained.out) == {**before, "session": tier["after"]}


def test_the_command_fails_with_one_line(trained: Trained, tmp_path: Path) -> None:
    done = run("c1", "--data", trained.data, "--bundles", tmp_path / "none")
    assert done.exit_code == 2
    assert "there is no bundle" in done.stderr
