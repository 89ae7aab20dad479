"""Bundles from the model registry of MLflow, on a real store."""

from __future__ import annotations

import datetime as dt
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from engines import ITEMS, bundles, write_linear

from consentier.consent import Permission, Tier
from consentier.models.bundle import open_bundle
from consentier.serving import Request
from consentier.serving.registry import RegistrySource
from consentier.serving.reloading import Outcome, ReloadingRecommender
from consentier.serving.revocation import PAST_DEADLINE, revoke

EARLIER = dt.datetime(2025, 12, 1, tzinfo=dt.UTC)
LATER = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
FUSED = Request(
    session=ITEMS[:2],
    online_history=ITEMS[2:4],
    crm_history=ITEMS[4:6],
    linked=True,
    permission=Permission.ONLINE | Permission.CRM,
    n=5,
)


class Registry:
    """A registry in a SQLite file: runs with bundles as artifacts, as `consentier train` records them."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.experiment = self.client.create_experiment("tests", (folder / "artifacts").as_uri())
        self.folder = folder

    def register(
        self, name: str, bundle: Path, *, within: str = "bundle", source: str = "bundle", **tags: str
    ) -> str:
        """Record a run with a bundle, register it as a new version, and make that the champion."""
        run = self.client.create_run(self.experiment, tags=tags)
        self.client.log_artifacts(run.info.run_id, str(bundle), within)
        if not [known for known in self.client.search_registered_models() if known.name == name]:
            self.client.create_registered_model(name)
        made = self.client.create_model_version(
            name, f"{run.info.artifact_uri}/{source}", run_id=run.info.run_id
        )
        self.client.set_registered_model_alias(name, "champion", made.version)
        return str(made.version)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def name(registry: Registry, request: pytest.FixtureRequest) -> str:
    """A model of this test's own, whose champion is the fused bundle of the tests."""
    model = "fused-" + re.sub("[^a-z]+", "-", request.node.name)
    registry.register(model, bundles() / "fused", bundle_digest=open_bundle(bundles() / "fused").digest)
    return model


def new_bundle(folder: Path, seed: int, tier: Tier = Tier.FUSED, cutoff: dt.datetime = LATER) -> Path:
    path = folder / f"{tier}-{seed}"
    write_linear(path, tier, seed=seed, cutoff=cutoff)
    return path


def source_of(registry: Registry, model: str, folder: Path) -> RegistrySource:
    return RegistrySource({"fused": model}, folder / "bundles", tracking_uri=registry.uri)


def test_the_champion_answers_and_the_next_one_takes_over(
    registry: Registry, name: str, tmp_path: Path
) -> None:
    asked = ReloadingRecommender(source_of(registry, f"models:/{name}@champion", tmp_path))
    first = asked.recommend(FUSED)
    assert (first.tier, first.basis.bundle_digest) == (Tier.FUSED, open_bundle(bundles() / "fused").digest)
    assert asked.check()[Tier.FUSED].outcome is Outcome.UNCHANGED
    bundle = new_bundle(tmp_path, 50)
    registry.register(name, bundle)
    assert asked.check()[Tier.FUSED].outcome is Outcome.REPLACED
    assert asked.recommend(FUSED).basis.bundle_digest == open_bundle(bundle).digest
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == ["fused"]


def test_a_version_is_a_version_and_an_artifact_may_hold_the_bundle_deeper(
    registry: Registry, name: str, tmp_path: Path
) -> None:
    bundle = new_bundle(tmp_path, 51)
    number = registry.register(name, bundle, within="model/artifacts/bundle", source="model")
    registry.register(name, new_bundle(tmp_path, 52))
    asked = ReloadingRecommender(source_of(registry, f"models:/{name}/{number}", tmp_path))
    assert asked.recommend(FUSED).basis.bundle_digest == open_bundle(bundle).digest


def altered(folder: Path) -> tuple[Path, dict[str, str]]:
    bundle = new_bundle(folder, 60)
    payload = bytearray((bundle / "data.npy").read_bytes())
    payload[-1] ^= 1
    (bundle / "data.npy").write_bytes(payload)
    return bundle, {}


def not_the_pinned(folder: Path) -> tuple[Path, dict[str, str]]:
    return new_bundle(folder, 61), {"bundle_digest": "sha256:" + "0" * 64}


def not_a_pin(folder: Path) -> tuple[Path, dict[str, str]]:
    return new_bundle(folder, 61), {"bundle_digest": "latest"}


def stale(folder: Path) -> tuple[Path, dict[str, str]]:
    return new_bundle(folder, 62, cutoff=EARLIER), {}


def of_another_tier(folder: Path) -> tuple[Path, dict[str, str]]:
    return new_bundle(folder, 63, tier=Tier.ONLINE), {}


def several(folder: Path) -> tuple[Path, dict[str, str]]:
    (folder / "both").mkdir()
    for seed in (64, 65):
        new_bundle(folder, seed).rename(folder / "both" / str(seed))
    return folder / "both", {}


def revoked(folder: Path) -> tuple[Path, dict[str, str]]:
    bundle = new_bundle(folder, 66)
    revoke(folder / "bundles", [open_bundle(bundle).digest], LATER, "withdrawal")
    return bundle, {}


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        (altered, "SHA-256"),
        (not_the_pinned, "expected sha256:000"),
        (not_a_pin, "expected_digest must be"),
        (stale, "training cut-off"),
        (of_another_tier, "declares tier online"),
        (several, "holds 2 bundles"),
        (revoked, PAST_DEADLINE),
    ],
)
def test_a_bad_version_stays_out_also_of_the_directory(
    registry: Registry,
    name: str,
    tmp_path: Path,
    spoilt: Callable[[Path], tuple[Path, dict[str, str]]],
    why: str,
) -> None:
    asked = ReloadingRecommender(source_of(registry, f"models:/{name}@champion", tmp_path))
    before = asked.recommend(FUSED)
    bundle, tags = spoilt(tmp_path)
    registry.register(name, bundle, **tags)
    told = asked.check()[Tier.FUSED]
    assert told.outcome is Outcome.KEPT
    assert why in told.problem
    after = asked.recommend(FUSED)
    assert (after.items, after.basis.bundle_digest) == (before.items, before.basis.bundle_digest)
    standing = {path.name for path in (tmp_path / "bundles").iterdir()} - {"revocations.json"}
    assert standing == {"fused"}
    assert open_bundle(tmp_path / "bundles" / "fused").digest == before.basis.bundle_digest


def test_a_bad_pin_on_the_version_counts_before_that_of_the_run(
    registry: Registry, name: str, tmp_path: Path
) -> None:
    asked = ReloadingRecommender(source_of(registry, f"models:/{name}@champion", tmp_path))
    bundle = new_bundle(tmp_path, 50)
    number = registry.register(name, bundle, bundle_digest=open_bundle(bundle).digest)
    registry.client.set_model_version_tag(name, number, "bundle_digest", "sha256:" + "1" * 64)
    assert "expected sha256:111" in asked.check()[Tier.FUSED].problem


PAST = dt.datetime(2026, 1, 1, tzinfo=dt.UTC).isoformat()


def assert_stopped(asked: ReloadingRecommender) -> None:
    """The fused tier is past its deadline. Of files this fresh it may be said that they changed, too."""
    answer = asked.recommend(FUSED)
    assert answer.tier is not Tier.FUSED
    assert any(reason.startswith("fused: ") and PAST_DEADLINE in reason for reason in answer.basis.reasons)


def test_what_stays_because_the_next_one_is_bad_stops_at_its_own_deadline(
    registry: Registry, name: str, tmp_path: Path
) -> None:
    """As after a forgetting whose bundle does not arrive: the former version holds the forgotten."""
    asked = ReloadingRecommender(source_of(registry, f"models:/{name}@champion", tmp_path))
    standing = asked.recommend(FUSED).basis.bundle_digest
    bundle, tags = altered(tmp_path)
    registry.register(name, bundle, **tags)
    asked.check()
    assert asked.recommend(FUSED).basis.bundle_digest == standing
    registry.client.set_model_version_tag(name, "1", "withdrawal_deadline", PAST)
    asked.check()
    assert_stopped(asked)


def test_a_deadline_is_followed_also_where_a_decision_cannot_be_read(
    registry: Registry, name: str, tmp_path: Path
) -> None:
    asked = ReloadingRecommender(source_of(registry, f"models:/{name}@champion", tmp_path))
    registry.client.set_registered_model_tag(name, "level_3", "nonsense")
    registry.client.set_model_version_tag(name, "1", "withdrawal_deadline", PAST)
    asked.check()
    assert_stopped(asked)


def test_a_deadline_of_a_version_without_a_pin_is_followed(registry: Registry, tmp_path: Path) -> None:
    registry.register("unpinned", new_bundle(tmp_path, 70))
    asked = ReloadingRecommender(source_of(registry, "models:/unpinned@champion", tmp_path))
    assert asked.recommend(FUSED).tier is Tier.FUSED
    registry.client.set_model_version_tag("unpinned", "1", "withdrawal_deadline", PAST)
    asked.check()
    assert_stopped(asked)


def test_while_the_registry_is_away_what_stands_in_the_directory_answers(
    registry: Registry, name: str, tmp_path: Path
) -> None:
    source = source_of(registry, f"models:/{name}@champion", tmp_path)
    ReloadingRecommender(source)

    class Away:
        def __getattr__(self, method: str) -> Any:
            raise ConnectionError("no route to the registry")

    source._client = Away()
    asked = ReloadingRecommender(source)
    assert asked.recommend(FUSED).tier is Tier.FUSED
    assert "no route to the registry" in asked.problems[Tier.FUSED]


def test_what_is_in_place_already_is_not_downloaded_again(
    registry: Registry, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundles() / "fused", tmp_path / "bundles" / "fused")
    source = source_of(registry, f"models:/{name}@champion", tmp_path)
    monkeypatch.setattr(source, "_replace", lambda *_: pytest.fail("it was downloaded"))
    assert source.fetch() == {}
    assert source.fetch() == {}


def test_a_model_or_alias_that_is_not_registered_is_a_problem(registry: Registry, tmp_path: Path) -> None:
    source = source_of(registry, "models:/nobody@champion", tmp_path)
    assert "models:/nobody@champion" in source.fetch()[Tier.FUSED]


@pytest.mark.parametrize(
    "model", ["", "consentier-fused", "models:/a", "models:/a/b", "models:/a/0", "models:/a@b@c", "runs:/1/b"]
)
def test_what_names_no_model_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no model"):
        RegistrySource({"fused": model}, tmp_path)


def test_tiers_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'fused'"):
        RegistrySource({"fuesd": "models:/a@champion"}, tmp_path)
    with pytest.raises(ValueError, match="names no model"):
        RegistrySource({}, tmp_path)
