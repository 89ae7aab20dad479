"""Bundles from the model registry of MLflow, for a recommender that reloads.

MLflow is imported here only, and only when a source is made: nothing else that answers needs it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
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
from consentier.serving.mlflow_store import mlflow_client, store_failures_told
from consentier.serving.revocation import Revocations, revoke
from consentier.serving.routing import Routing, read_routing, write_routing
from consentier.writing import put_directory, remove_remnants_in, workplace

__all__ = [
    "CHAMPION",
    "DEADLINE_TAG",
    "DIGEST_TAG",
    "LEVEL_3_TAG",
    "ROLLED_BACK_TAG",
    "RegistrySource",
    "bundle_in",
    "deadline_of_tag",
]

_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[1-9][0-9]*))")
_MANIFEST = "manifest.json"

CHAMPION = "champion"
"""The alias whose version serves."""

DIGEST_TAG = "bundle_digest"
"""On a model version or its run: the digest that its bundle must have."""

DEADLINE_TAG = "withdrawal_deadline"
"""On a model version: the instant from which it must not answer; empty or absent where there is none."""

ROLLED_BACK_TAG = "rolled_back_from"
"""On a model version: the one in whose place it was put again. It may take over with an earlier cut-off."""

LEVEL_3_TAG = "level_3"
"""On the registered model of the fused tier, as JSON: ``by``, the tier that answers linked customers in its
place, and ``instead_of``, the champion of that moment (empty: none). It counts only as long as that is the
champion, so that the next promotion ends it in the same step."""


class RegistrySource:
    """The bundles of registered models, brought into a directory as soon as an alias points elsewhere.

    A new version is downloaded beside the bundle in place, verified (also against the digest in the tag
    ``bundle_digest`` of the model version or of its run, where there is one), and renamed into place. What is
    not good, or has an earlier training cut-off than the bundle in place, stays out, unless the registry says
    that it was rolled back to. The directory outlives the process: while the registry is out of reach, what
    stands there answers. A withdrawal deadline in the tags of a version goes into the directory's revocation
    list: of the version that is wanted, and if that does not arrive, of the one that stays. For models named
    by the alias ``champion``, the decision to answer level 3 by a single source is followed too
    (`serving.routing`).

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
    TrackingError
        If the store is a database that cannot be reached.
    ModuleNotFoundError
        If MLflow is not installed.
    """

    def __init__(
        self, models: Mapping[str, str], directory: str | Path, *, tracking_uri: str | None = None
    ) -> None:
        self._models = {_tier(tier): _named(model) for tier, model in models.items()}
        if not self._models:
            raise ValueError("models names no model; give {'fused': 'models:/consentier-fused@champion'}")
        self._client = mlflow_client(tracking_uri)
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        remove_remnants_in(self._directory)
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
            steps = [functools.partial(self._fetch, tier, model)]
            if tier is Tier.FUSED and model["alias"] == CHAMPION:
                steps.append(functools.partial(self._follow_level_3, model["name"]))
            for step in steps:  # each for itself: a decision that cannot be read must hold up no deadline
                try:
                    step()
                except Exception as error:  # noqa: BLE001 - whatever a registry raises, what is in place stays
                    problems[tier] = f"{model.group(0)}: {problem_of(error)}"
        return MappingProxyType(problems)

    def _fetch(self, tier: Tier, model: re.Match[str]) -> None:
        version = self._version(model)
        wanted = (str(version.name), str(version.version))
        target = self._directory / tier
        pinned = self._pinned(version)
        self._follow_deadline(version, pinned)
        back = {tier: pinned} if pinned is not None and version.tags.get(ROLLED_BACK_TAG) else {}
        self._decide(rolled_back=_changed(read_routing(self._directory).rolled_back, tier, back))
        if self._in_place.get(tier) != wanted or not target.exists():
            if pinned is None or not _stands(target, pinned):
                try:
                    self._replace(tier, target, version, pinned)
                except Exception:
                    self._follow_deadline_of_what_stays(tier, wanted[0])
                    raise
            self._in_place[tier] = wanted
        if pinned is None:
            self._follow_deadline(version, _digest(target))

    def _follow_deadline_of_what_stays(self, tier: Tier, name: str) -> None:
        """A bundle that should have been replaced by now, for it holds somebody, say, must not answer on."""
        standing = _digest(self._directory / tier)
        for version in self._client.search_model_versions(f"name = '{name}'"):
            if version.tags.get(DEADLINE_TAG) and self._pinned(version) == standing:
                self._follow_deadline(version, standing)

    def _follow_level_3(self, name: str) -> None:
        """Which tier answers linked customers in the place of fused, as the registry says it."""
        registered = self._client.get_registered_model(name)
        told = registered.tags.get(LEVEL_3_TAG)
        champion = registered.aliases.get(CHAMPION)
        self._decide(level_3=_level_3(told, "" if champion is None else str(champion)))

    def _follow_deadline(self, version: Any, digest: str | None) -> None:
        told = version.tags.get(DEADLINE_TAG)
        if told and digest is not None:
            revoke(self._directory, [digest], deadline_of_tag(told), "withdrawal")

    def _decide(self, **changes: Any) -> None:
        """Note a decision beside the bundles, if it is a new one."""
        standing = read_routing(self._directory)
        wanted = dataclasses.replace(Routing() if standing.fault else standing, **changes)
        if wanted != standing:
            write_routing(self._directory, wanted)

    def _version(self, model: re.Match[str]) -> Any:
        if model["alias"] is not None:
            return self._client.get_model_version_by_alias(model["name"], model["alias"])
        return self._client.get_model_version(model["name"], model["version"])

    def _pinned(self, version: Any) -> str | None:
        """The digest that the registry names."""
        if DIGEST_TAG in version.tags:
            return str(version.tags[DIGEST_TAG])
        if not version.run_id:
            return None
        digest = self._client.get_run(version.run_id).data.tags.get(DIGEST_TAG)
        return None if digest is None else str(digest)

    def _replace(self, tier: Tier, target: Path, version: Any, pinned: str | None) -> None:
        """Download, verify, rename into place."""
        from mlflow.artifacts import download_artifacts

        with workplace(target, ".download") as download:
            uri = self._client.get_model_version_download_uri(version.name, version.version)
            store = self._client.tracking_uri
            with store_failures_told(store):
                where = download_artifacts(artifact_uri=uri, dst_path=str(download), tracking_uri=store)
            found = bundle_in(Path(where))
            if not found.resolve().is_relative_to(download.resolve()):
                raise BundleError(f"{uri} was not copied: what stands in the registry is not moved away")
            now = dt.datetime.now(dt.UTC)
            new = open_tier(found, tier, None, self._revocations.current(), now, expected_digest=pinned)
            standing = _cutoff(target)
            back = new.cutoff < standing
            if back and not read_routing(self._directory).may_go_back(tier, new.digest):
                raise BundleError(
                    f"the training cut-off {new.cutoff} is before {standing}, that of the bundle in place"
                )
            former = put_directory(found, target)
            if former is not None:
                shutil.rmtree(former, ignore_errors=True)


def deadline_of_tag(told: str) -> dt.datetime:
    """The instant of a deadline; one that cannot be understood has passed."""
    try:
        found = dt.datetime.fromisoformat(told)
    except ValueError:
        return dt.datetime.now(dt.UTC)
    return dt.datetime.now(dt.UTC) if found.tzinfo is None else found


def _level_3(told: str | None, champion: str) -> Tier | None:
    """The tier in the place of fused; None where the decision was about another champion, or there is none.

    Raises
    ------
    ValueError
        If the tag is not what `consentier promote` writes.
    """
    if told is None:
        return None
    decided = json.loads(told)
    if not isinstance(decided, dict) or set(decided) != {"by", "instead_of"}:
        raise ValueError(f"the tag {LEVEL_3_TAG} must name by and instead_of")
    if decided["by"] not in (Tier.ONLINE, Tier.CRM):
        raise ValueError(
            f"the tag {LEVEL_3_TAG} names {decided['by']!r}, which is no tier of a single source"
        )
    return Tier(decided["by"]) if decided["instead_of"] == champion else None


def _changed(standing: Mapping[Tier, str], tier: Tier, new: Mapping[Tier, str]) -> Mapping[Tier, str]:
    """The same by tier, but for what is said of one."""
    return MappingProxyType({**{each: digest for each, digest in standing.items() if each != tier}, **new})


def _tier(name: str) -> Tier:
    if name not in TIERS:
        raise ValueError(f"there is no tier {name!r}{suggestion(name, [str(tier) for tier in TIERS])}")
    return Tier(name)


def _named(model: str) -> re.Match[str]:
    match = _MODEL.fullmatch(model)
    if match is None:
        raise ValueError(f"{model!r} names no model: write models:/NAME@ALIAS or models:/NAME/VERSION")
    return match


def bundle_in(artifact: Path) -> Path:
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


def _digest(target: Path) -> str | None:
    """The digest that what is in place says of itself; None where there is no bundle."""
    try:
        return open_bundle(target, verify=False).digest
    except BundleError:
        return None


def _cutoff(target: Path) -> str:
    """The training cut-off of what is in place, whatever its arrays hold; empty where there is none."""
    try:
        return open_bundle(target, verify=False).manifest.cutoff
    except BundleError:
        return ""
