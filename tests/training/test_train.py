"""A training run: what it writes, what it leaves, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from consentier.consent import Permission, Tier
from consentier.errors import TrainingError
from consentier.features.gate import Funnel
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.models.bundle import open_bundle, read_run
from consentier.serving import Recommender, Request
from consentier.training import bundles as training
from consentier.training.config import Config, TrackingConfig, load_config
from consentier.training.fit import nothing_to_train_on
from consentier.training.restricted import Restricted
from consentier.training.train import TRAINED_TIERS, train

BOTH = Permission.ONLINE | Permission.CRM


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    write_shop(simulate(SimulationConfig(customers=120, items=60, days=40, horizon_days=7)), folder)
    return folder


@pytest.fixture(scope="module")
def shop(data: Path) -> ShopTables:
    return read_shop(data)


@pytest.fixture(scope="module")
def config(data: Path) -> Config:
    return load_config(data=data).model_copy(update={"tracking": TrackingConfig(enabled=False)})


def without_customers(shop: ShopTables) -> ShopTables:
    """The same shop after its last CRM customer said no: nobody's orders may be used."""
    crm = shop.consents["permission"].to_pylist()
    kept = [permission != "crm" for permission in crm]
    return ShopTables(
        **{
            name: getattr(shop, name)
            for name in ("events", "orders", "product_usage", "customers", "items", "identities", "report")
        },
        consents=shop.consents.filter(kept),
    )


def test_each_bundle_declares_its_tier_and_its_run_stands_beside_it(
    shop: ShopTables, config: Config, tmp_path: Path
) -> None:
    result = train(shop, config, tmp_path, tiers=TRAINED_TIERS, show_progress=False)
    assert set(result.digests) == {str(tier) for tier in TRAINED_TIERS}
    for tier, digest in result.digests.items():
        bundle = open_bundle(tmp_path / tier)
        assert (bundle.manifest.tier, bundle.digest) == (tier, digest)
        facts = read_run(tmp_path / tier)
        assert facts["ledger_position"] > 0
        for row in facts["funnel"]:
            assert row["rows_kept"] + sum(row["excluded"].values()) == row["rows_in"]


@pytest.mark.parametrize("algorithm", ["local_ridge", "cosine", "tfidf", "bm25"])
def test_every_algorithm_fills_the_same_bundle(
    shop: ShopTables, config: Config, tmp_path: Path, algorithm: str
) -> None:
    tier = config.fused.model_copy(update={"algorithm": algorithm})
    chosen = config.model_copy(update={"fused": tier})
    train(shop, chosen, tmp_path, tiers=[Tier.FUSED], show_progress=False)
    bundle = open_bundle(tmp_path / "fused")
    assert bundle.manifest.algorithm == algorithm
    assert bundle.arrays["data"].size > 0


@pytest.mark.parametrize("algorithm", ["als", "bpr"])
def test_factor_models_fill_a_bundle_of_their_own(
    shop: ShopTables, config: Config, tmp_path: Path, algorithm: str
) -> None:
    tier = config.fused.model_copy(update={"algorithm": algorithm, "factors": 8, "iterations": 3})
    digests = {}
    for name, seed, threads in (("one", 1, 1), ("two", 1, 2), ("other", 2, 1)):
        training = config.training.model_copy(update={"seed": seed, "threads": threads})
        chosen = config.model_copy(update={"fused": tier, "training": training})
        result = train(shop, chosen, tmp_path / name, tiers=[Tier.FUSED], show_progress=False)
        digests[name] = result.digests["fused"]
    assert digests["one"] == digests["two"] != digests["other"]
    bundle = open_bundle(tmp_path / "one" / "fused")
    assert (bundle.manifest.algorithm, bundle.manifest.parameters["seed"]) == (algorithm, 1)
    assert set(bundle.arrays) == {"item_ids", "item_offsets", "factors", "factor_gram"}
    answer = Recommender.load(tmp_path / "one").recommend(
        Request(crm_history=shop.orders["item_id"][:3].to_pylist(), permission=BOTH, linked=True, n=5)
    )
    assert (answer.tier, len(answer.items)) == (Tier.FUSED, 5)


def test_a_spectral_model_says_what_attributes_let_expect(
    shop: ShopTables, config: Config, tmp_path: Path
) -> None:
    tier = config.fused.model_copy(
        update={"algorithm": "spectral", "factors": 8, "attribute_weight": 0.5, "attribute_min_persons": 2}
    )
    chosen = config.model_copy(update={"fused": tier})
    train(shop, chosen, tmp_path, tiers=[Tier.FUSED], show_progress=False)
    bundle = open_bundle(tmp_path / "fused")
    assert set(bundle.arrays) == {
        "item_ids", "item_offsets", "factors", "factor_gram", "prior_factors",
    }  # fmt: skip
    assert bundle.arrays["factors"].shape[0] == bundle.manifest.item_count
    column = shop.customers["region"].drop_null()[0].as_py()
    request = Request(attributes={"region": column}, permission=BOTH, linked=True, n=5)
    answer = Recommender.load(tmp_path).recommend(request)
    assert (answer.tier, len(answer.items)) == (Tier.FUSED, 5)


def test_threads_do_not_change_a_bit(shop: ShopTables, config: Config, tmp_path: Path) -> None:
    digests = []
    for threads in (1, 2):
        chosen = config.model_copy(
            update={"training": config.training.model_copy(update={"threads": threads})}
        )
        result = train(shop, chosen, tmp_path / str(threads), tiers=TRAINED_TIERS, show_progress=False)
        digests.append(result.digests)
    assert digests[0] == digests[1]


def test_a_bundle_in_the_way_is_replaced_only_by_force(
    shop: ShopTables, config: Config, tmp_path: Path
) -> None:
    first = train(shop, config, tmp_path, tiers=[Tier.CRM], show_progress=False)
    with pytest.raises(FileExistsError, match="--force"):
        train(shop, config, tmp_path, tiers=[Tier.CRM], show_progress=False)
    again = train(shop, config, tmp_path, tiers=[Tier.CRM], force=True, show_progress=False)
    assert again.digests == first.digests


def test_a_tier_that_may_use_nothing_any_more_loses_its_earlier_bundle(
    shop: ShopTables, config: Config, tmp_path: Path
) -> None:
    train(shop, config, tmp_path, tiers=TRAINED_TIERS, show_progress=False)
    result = train(
        without_customers(shop), config, tmp_path, tiers=TRAINED_TIERS, force=True, show_progress=False
    )
    assert set(result.skipped) == {"crm", "fused"}
    assert "removed" in result.skipped["crm"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["online", "popular", "session"]


def test_nothing_is_kept_of_whom_the_removed_bundle_held(
    shop: ShopTables, config: Config, tmp_path: Path
) -> None:
    out = tmp_path / "bundles"
    kept = Restricted.beside(out)
    before = train(
        shop, config, out, tiers=[Tier.CRM, Tier.POPULAR], restricted=kept, show_progress=False
    ).digests
    train(
        without_customers(shop), config, out, tiers=[Tier.CRM, Tier.POPULAR], force=True, restricted=kept,
        show_progress=False,
    )  # fmt: skip
    assert before["crm"] not in kept.lineage().digests()
    assert not kept.statistics(Tier.CRM).exists()


def test_so_does_the_only_tier_that_was_asked_for(shop: ShopTables, config: Config, tmp_path: Path) -> None:
    train(shop, config, tmp_path, tiers=[Tier.CRM], show_progress=False)
    with pytest.raises(TrainingError, match=r"the earlier bundle.*was removed"):
        train(without_customers(shop), config, tmp_path, tiers=[Tier.CRM], force=True, show_progress=False)
    assert not any(tmp_path.iterdir())


def test_a_fit_without_a_stable_solution_leaves_the_earlier_bundle(
    shop: ShopTables, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers = [Tier.CRM, Tier.POPULAR]
    before = train(shop, config, tmp_path, tiers=tiers, show_progress=False).digests

    def unstable(*_: object) -> None:
        raise TrainingError("the ridge system of item 3 has no stable solution")

    monkeypatch.setattr(training, "_fit_model", unstable)
    result = train(shop, config, tmp_path, tiers=tiers, force=True, show_progress=False)
    assert result.skipped == {"crm": "the ridge system of item 3 has no stable solution"}
    assert open_bundle(tmp_path / "crm").digest == before["crm"]


def test_an_interrupted_run_leaves_the_earlier_bundles(
    shop: ShopTables, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = train(shop, config, tmp_path / "kept", tiers=TRAINED_TIERS, show_progress=False)
    real = training._fit_model

    def interrupted(tier: Tier, *arguments: object, **options: object) -> object:
        if tier is Tier.FUSED:
            raise KeyboardInterrupt
        return real(tier, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_fit_model", interrupted)
    harsher = config.model_copy(update={"session": config.session.model_copy(update={"neighbours": 3})})
    with pytest.raises(KeyboardInterrupt):
        train(shop, harsher, tmp_path / "kept", tiers=TRAINED_TIERS, force=True, show_progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(shop, harsher, tmp_path / "new", tiers=TRAINED_TIERS, show_progress=False)
    for tier, digest in before.digests.items():
        assert open_bundle(tmp_path / "kept" / tier).digest == digest
    assert not (tmp_path / "new").exists()


def test_nothing_permitted_is_an_error_that_says_why(
    shop: ShopTables, config: Config, tmp_path: Path
) -> None:
    nobody = ShopTables(
        **{
            name: getattr(shop, name)
            for name in ("events", "orders", "product_usage", "customers", "items", "identities", "report")
        },
        consents=shop.consents.slice(0, 0),
    )
    with pytest.raises(TrainingError, match="no consent record"):
        train(nobody, config, tmp_path / "out", tiers=TRAINED_TIERS, show_progress=False)
    assert not (tmp_path / "out").exists()


def test_what_was_kept_out_is_told_in_words() -> None:
    kept_out = Funnel("fused", "online", 7, 0, {"denied": 3, "unlinked": 4})
    error = nothing_to_train_on(Tier.FUSED, [kept_out, Funnel("fused", "crm", 0, 0, {})])
    assert str(error) == (
        "the fused tier has no permitted rows to train on (online: 7 rows came in, kept out: 3 denied, "
        "4 unlinked; crm: 0 rows came in, kept out: none): look at the consents, and at the cut-off, until "
        "which permissions must hold"
    )
