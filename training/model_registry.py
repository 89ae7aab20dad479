"""The writer's side of the model registry: one registered model per tier, its versions, aliases and tags.

A version is a bundle: the directory that a run logged, with tags that say what it needs and rests on. The
newest one has the alias ``challenger``, the one that serves ``champion``. The reader's side, which needs none
of this, is `consentier.serving.registry`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from consentier.consent import Tier
from consentier.errors import TrackingMissing
from consentier.models.bundle import Manifest
from consentier.serving.mlflow_store import store_failures_told
from consentier.serving.registry import (
    DEADLINE_TAG,
    DIGEST_TAG,
    LEVEL_3_TAG,
    bundle_in,
    deadline_of_tag,
)
from consentier.serving.revocation import Deadlines
from consentier.writing import scratch

__all__ = [
    "CHALLENGER",
    "CHECKS_TAG",
    "FORGOT_TAG",
    "MADE_FROM_TAG",
    "OUTCOME_TAG",
    "PREVIOUS_TAG",
    "REVOKED_TAG",
    "ModelRegistry",
    "Version",
    "version_tags",
]

CHALLENGER = "challenger"
"""The alias of the newest version."""

PREVIOUS_TAG = "previous_champion"
"""On a version: the champion in whose place it was put; empty where there was none."""

CHECKS_TAG = "promotion_checks"
"""On a version: the last promotion's checks, as JSON."""

OUTCOME_TAG = "promotion"
"""On a version: ``promoted`` or ``refused``, and when."""

MADE_FROM_TAG = "made_from"
"""On a version that forgetting made: the version that it was made from."""

FORGOT_TAG = "forgot"
"""On a version that forgetting made: how many subjects were forgotten since it was fitted."""

REVOKED_TAG = "revoked"
"""On a version that holds, or may hold, somebody who was forgotten: when, and what stands in its place."""


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """One version of a registered model.

    Attributes
    ----------
    tier, number
        Which.
    run_id
        The run that made it.
    tags
        What it needs and rests on.
    """

    tier: Tier
    number: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def digest(self) -> str | None:
        """The digest that its bundle must have."""
        return self.tags.get(DIGEST_TAG)


class ModelRegistry:
    """The registered models of one shop.

    Parameters
    ----------
    client
        Of a tracking server that is its own registry: of `consentier.serving.mlflow_store`.
    experiment
        Name of the experiment; the models are called after it: ``EXPERIMENT-TIER``.
    """

    def __init__(self, client: Any, experiment: str) -> None:
        self._client = client
        self._prefix = re.sub(r"[^\w.-]+", "-", experiment)

    def name(self, tier: Tier) -> str:
        """What the registered model of a tier is called."""
        return f"{self._prefix}-{tier}"

    def aliased(self, tier: Tier, alias: str) -> Version | None:
        """The version that has an alias; None where none has."""
        registered = self._registered(tier)
        if registered is None or alias not in registered.aliases:
            return None
        return self.version(tier, str(registered.aliases[alias]))

    def version(self, tier: Tier, number: str) -> Version:
        """A version by its number."""
        found = self._client.get_model_version(self.name(tier), number)
        return Version(tier, str(found.version), str(found.run_id), dict(found.tags))

    def versions(self, tier: Tier) -> list[Version]:
        """All versions of a tier's model, the newest first."""
        found = self._client.search_model_versions(f"name = '{self.name(tier)}'")
        made = [Version(tier, str(each.version), str(each.run_id), dict(each.tags)) for each in found]
        return sorted(made, key=lambda version: -int(version.number))

    def register(self, tier: Tier, run_id: str, artifact: str, tags: Mapping[str, str]) -> Version:
        """Make a new version of a run's bundle; the alias ``challenger`` is set last."""
        if self._registered(tier) is None:
            self._client.create_registered_model(
                self.name(tier), description=f"The {tier} tier of Consentier: one bundle per version."
            )
        made = self._client.create_model_version(self.name(tier), artifact, run_id=run_id, tags=dict(tags))
        self.point(tier, CHALLENGER, str(made.version))
        return Version(tier, str(made.version), run_id, dict(tags))

    def download(self, version: Version, folder: Path) -> Path:
        """Bring a version's bundle into a folder; say where it is.

        Raises
        ------
        BundleMissing
            If the artifact does not hold exactly one bundle.
        TrackingError, OSError
            If it cannot be fetched.
        """
        from mlflow.artifacts import download_artifacts

        uri = self._client.get_model_version_download_uri(self.name(version.tier), version.number)
        folder.mkdir(parents=True, exist_ok=True)
        store = self._client.tracking_uri
        with store_failures_told(store):
            where = download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=store)
        return bundle_in(Path(where))

    def tag(self, version: Version, **tags: str) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(self.name(version.tier), version.number, key, value)

    def point(self, tier: Tier, alias: str, number: str) -> None:
        """Let an alias point to a version: one step, which happens or does not."""
        self._client.set_registered_model_alias(self.name(tier), alias, number)

    def decide_level_3(self, value: str) -> None:
        """Note which tier answers linked customers in the place of fused; see `LEVEL_3_TAG`."""
        self._client.set_registered_model_tag(self.name(Tier.FUSED), LEVEL_3_TAG, value)

    def move_level_3(self, numbers: Collection[str], number: str) -> None:
        """Let a decision about one of some champions be about another one, which took its place unasked."""
        registered = self._registered(Tier.FUSED)
        told = None if registered is None else registered.tags.get(LEVEL_3_TAG)
        if told is not None:
            decided = json.loads(told)
            if decided["instead_of"] in numbers:
                self.decide_level_3(json.dumps({**decided, "instead_of": number}))

    def deadlines(self, tier: Tier, listed: Deadlines) -> Deadlines:
        """The earliest deadline of each bundle, by a list and by the tags of all versions of a tier.

        A version has that of an earlier one of the same bundle: what serves goes by its digest.
        """
        earliest = dict(listed.by_digest)
        for version in self.versions(tier):
            told, digest = version.tags.get(DEADLINE_TAG), version.digest
            if told and digest is not None:
                deadline = deadline_of_tag(told)
                earliest[digest] = min(deadline, earliest.get(digest, deadline))
        return dataclasses.replace(listed, by_digest=earliest)

    def note_deadlines(self, tier: Tier, listed: Deadlines) -> int:
        """Write withdrawal deadlines into the tags of the versions that have one; say how many are new.

        A version that has an earlier one keeps it; so what was stopped once stays stopped.

        Notes
        -----
        Two looks at all versions of the tier, and a write for each new deadline.
        """
        if self._registered(tier) is None:
            return 0
        deadlines, new = self.deadlines(tier, listed), 0
        for version in self.versions(tier):
            deadline = deadlines.by_digest.get(version.digest or "")
            told = version.tags.get(DEADLINE_TAG)
            if deadline is not None and (not told or deadline < deadline_of_tag(told)):
                self.tag(version, **{DEADLINE_TAG: deadline.isoformat()})
                new += 1
        return new

    def note(self, version: Version, document: Mapping[str, Any], artifact: str) -> None:
        """Keep a document with the run that made a version."""
        folder, _, name = artifact.rpartition("/")
        # Not `log_dict`: if the process is killed, its temporary file would stay for ever.
        with scratch("note") as place:
            (place / name).write_text(json.dumps(document, indent=2), "utf-8")
            self._client.log_artifact(version.run_id, str(place / name), folder or None)

    def read(self, version: Version, artifact: str, folder: Path) -> str:
        """A text that the run of a version logged.

        Raises
        ------
        TrackingError, OSError
            If there is none.
        """
        where = self._client.download_artifacts(version.run_id, artifact, str(folder))
        return Path(where).read_text("utf-8")

    def _registered(self, tier: Tier) -> Any:
        try:
            return self._client.get_registered_model(self.name(tier))
        except TrackingMissing:
            return None


def version_tags(manifest: Manifest, digest: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """What the tags of a version say of a bundle."""
    return {
        "tier": manifest.tier,
        "permission": " ".join(manifest.permission),
        "sources": " ".join(manifest.sources),
        "cutoff": manifest.cutoff,
        "ledger_position": str(facts["ledger_position"]),
        "ledger_head": str(facts["ledger_head"]),
        "config_hash": str(facts["config_hash"]),
        DIGEST_TAG: digest,
        DEADLINE_TAG: "",
    }
