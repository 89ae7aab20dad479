"""Bundles from the model registry of MLflow, for a recommender that reloads.

MLflow is imported here only, and only when a source is made: nothing else that answers needs it.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from consentier.consent import Tier
from consentier.errors import BundleError, BundleMissing, suggestion
from consentier.models.bundle import open_bundle
from consentier.serving.loading import TIERS, open_tier, problem_of
from consentier.serving.revocation import Revocations
from consentier.writing import put_directory, sibling

__all__ = ["RegistrySource", "prepare_mlflow"]

_log = logging.getLogger("consentier.serving")

_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[1-9][0-9]*))")
_MANIFEST = "manifest.json"
_DIGEST_TAG = "bundle_digest"


class RegistrySource:
    """The bundles of registered models, brought into a directory as soon as an alias points elsewhere.

    A new version is downloaded beside the bundle in place, verified (also against the digest in the tag
    ``bundle_digest`` of the model version or of its run, where there is one), and renamed into place. What is
    not good, or has an earlier training cut-off than the bundle in place, stays out. The directory outlives
    the process: while the registry is out of reach, what stands there answers.

    Parameters
    ----------
    models
        By tier: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, whose artifact is a bundle or holds one.
    directory
        Where the bundles go; made if it is missing. Its revocation list counts as everywhere.
    tracking_uri
        Of the MLflow server; MLflow's own setting by default.

    Raises
    ------
    ValueError
        If a model is not named so, or there is no such tier.
    ModuleNotFoundError
        If MLflow is not installed.
    """

    def __init__(
        self, models: Mapping[str, str], directory: str | Path, *, tracking_uri: str | None = None
    ) -> None:
        self._models = {_tier(tier): _named(model) for tier, model in models.items()}
        if not self._models:
            raise ValueError("models names no model; give {'fused': 'models:/consentier-fused@champion'}")
        self._client = _client(tracking_uri)
        self._tracking_uri = tracking_uri
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._revocations = Revocations.open(self._directory)
        self._in_place: dict[Tier, tuple[str, str]] = {}
        """Name and version that were fetched and found good, by tier."""

    @property
    def directory(self) -> Path:
        """Where the bundles stand."""
        return self._directory

    def fetch(self) -> Mapping[Tier, str]:
        """Bring what is new into the directory; say by tier what failed. Never raises."""
        problems: dict[Tier, str] = {}
        for tier, model in self._models.items():
            try:
                self._fetch(tier, model)
            except Exception as error:  # noqa: BLE001 - whatever a registry raises, what is in place stays
                named = model.group(0)
                problems[tier] = f"{named}: {problem_of(error)}"
        return MappingProxyType(problems)

    def _fetch(self, tier: Tier, model: re.Match[str]) -> None:
        version = self._version(model)
        wanted = (str(version.name), str(version.version))
        target = self._directory / tier
        if self._in_place.get(tier) == wanted and target.exists():
            return
        pinned = self._pinned(version)
        if pinned is None or not _stands(target, pinned):
            self._replace(tier, target, version, pinned)
        self._in_place[tier] = wanted

    def _version(self, model: re.Match[str]) -> Any:
        if model["alias"] is not None:
            return self._client.get_model_version_by_alias(model["name"], model["alias"])
        return self._client.get_model_version(model["name"], model["version"])

    def _pinned(self, version: Any) -> str | None:
        """The digest that the registry names."""
        if _DIGEST_TAG in version.tags:
            return str(version.tags[_DIGEST_TAG])
        if not version.run_id:
            return None
        digest = self._client.get_run(version.run_id).data.tags.get(_DIGEST_TAG)
        return None if digest is None else str(digest)

    def _replace(self, tier: Tier, target: Path, version: Any, pinned: str | None) -> None:
        """Download, verify, rename into place."""
        from mlflow.artifacts import download_artifacts

        download = sibling(target, ".download")
        download.mkdir()
        try:
            uri = self._client.get_model_version_download_uri(version.name, version.version)
            where = download_artifacts(
                artifact_uri=uri, dst_path=str(download), tracking_uri=self._tracking_uri
            )
            found = _bundle_in(Path(where))
            if not found.resolve().is_relative_to(download.resolve()):
                raise BundleError(f"{uri} was not copied: what stands in the registry is not moved away")
            now = dt.datetime.now(dt.UTC)
            new = open_tier(found, tier, None, self._revocations.current(), now, expected_digest=pinned)
            standing = _cutoff(target)
            if new.cutoff < standing:
                raise BundleError(
                    f"the training cut-off {new.cutoff} is before {standing}, that of the bundle in place"
                )
            former = put_directory(found, target)
            if former is not None:
                shutil.rmtree(former, ignore_errors=True)
        finally:
            shutil.rmtree(download, ignore_errors=True)


def _tier(name: str) -> Tier:
    if name not in TIERS:
        raise ValueError(f"there is no tier {name!r}{suggestion(name, [str(tier) for tier in TIERS])}")
    return Tier(name)


def _named(model: str) -> re.Match[str]:
    match = _MODEL.fullmatch(model)
    if match is None:
        raise ValueError(f"{model!r} names no model: write models:/NAME@ALIAS or models:/NAME/VERSION")
    return match


def prepare_mlflow() -> None:
    """Set what MLflow must find before it is imported: nothing that it loads may be a pickle."""
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def _client(tracking_uri: str | None) -> Any:
    prepare_mlflow()
    import mlflow

    return mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def _bundle_in(artifact: Path) -> Path:
    """The one bundle of an artifact.

    Raises
    ------
    BundleMissing
        If there is none, or more than one.
    """
    found = sorted(path.parent for path in artifact.rglob(_MANIFEST))  # follows no links
    if len(found) != 1:
        raise BundleMissing(f"the artifact holds {len(found)} bundles; register a model that holds one")
    return found[0]


def _stands(target: Path, digest: str) -> bool:
    """Whether the very bundle is in place already, from an earlier run of the service."""
    try:
        open_bundle(target, expected_digest=digest)
    except BundleError:
        return False
    return True


def _cutoff(target: Path) -> str:
    """The training cut-off of what is in place, whatever its arrays hold; empty where there is none."""
    try:
        return open_bundle(target, verify=False).manifest.cutoff
    except BundleError:
        return ""
