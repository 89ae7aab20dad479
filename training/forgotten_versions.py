"""Forgetting in the model registry: what forgot becomes a version, and what did not is revoked.

A version in the registry is a copy, which no forgetting on the disk changes, and an alias points services to
it. So each bundle that forgetting made is registered, and takes the place of the champion if it was made from
that. It is, byte for byte, the same model fitted without the subjects: nothing is chosen anew, so nothing is
measured anew. Versions that hold the subjects, or may, get a deadline, which services follow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consentier.consent import Tier
from consentier.errors import BundleMissing, TrackingError, TrainingError
from consentier.features.gate import HOLDERS
from consentier.models.bundle import Bundle, open_bundle, read_run
from consentier.serving.registry import CHAMPION, DIGEST_TAG, ROLLED_BACK_TAG
from consentier.serving.revocation import Revocations, revoke
from consentier.training.config import Config
from consentier.training.counted import Subject, one_at_a_time
from consentier.training.forget import ForgetResult
from consentier.training.model_registry import (
    FORGOT_TAG,
    MADE_FROM_TAG,
    PREVIOUS_TAG,
    REVOKED_TAG,
    ModelRegistry,
    Version,
    version_tags,
)
from consentier.training.record import MEASUREMENT_FILE, unrecorded
from consentier.training.restricted import Restricted
from consentier.training.track import ended, opened_store
from consentier.training.withdrawal import DEFAULT_DEADLINE

__all__ = ["RegisteredTier", "register_forgotten"]


@dataclasses.dataclass(frozen=True, slots=True)
class RegisteredTier:
    """What forgetting did to the versions of one tier.

    Attributes
    ----------
    tier
        Which.
    version
        The version of the bundle that forgot; None where it was not made by forgetting, or from no version.
    made_from
        The newest version that it was made from.
    champion
        The version that the alias points to; None where there is none.
    revoked
        Versions that hold, or may hold, the subjects, the newest first.
    deadline
        From when on the champion must not answer, where it is among these.
    """

    tier: Tier
    version: str | None
    made_from: str | None
    champion: str | None
    revoked: tuple[str, ...]
    deadline: dt.datetime | None


def register_forgotten(
    config: Config,
    out: Path,
    restricted: Restricted,
    subjects: Sequence[Subject],
    result: ForgetResult,
    *,
    tiers: Iterable[Tier],
    at: dt.datetime,
) -> list[RegisteredTier]:
    """Bring the registry to what forgetting made of the bundles.

    In this order, tier by tier: the new version, the alias, the revocations. Safe to kill and to run again,
    with the same subjects or others: what each bundle was made from stands in its ``run.json``.

    Parameters
    ----------
    config
        Its ``tracking`` names the registry.
    out, restricted
        The bundles, and what the trainer keeps of them.
    subjects
        Who was forgotten.
    result
        What became of the bundles.
    tiers
        Of which tiers.
    at
        The moment. Versions from which a bundle was made stop answering then; others that hold or may hold a
        subject stop 30 days later, unless they have an earlier deadline.

    Returns
    -------
    list
        One entry for each tier that has versions and reads of this kind of subjects.

    Raises
    ------
    TrainingError
        If the registry cannot be told. The bundles have forgotten all the same; run it again.

    Notes
    -----
    Each bundle that forgot is uploaded once. Beyond that some looks at a tier's versions, and two writes for
    each that is revoked.
    """
    kinds = {kind for kind, _ in subjects}
    before = {each.tier: each.before for each in result.tiers if each.after is None}
    with one_at_a_time(restricted), _told():
        client, experiment = opened_store(config.tracking, out)
        store = _Store(client, experiment, ModelRegistry(client, config.tracking.experiment), config, out)
        held = _held(restricted, subjects)
        return [
            _registered(tier, store, held, before.get(tier), at)
            for tier in tiers
            if kinds & set(HOLDERS[tier]) and store.registry.versions(tier)
        ]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except TrackingError as error:
        raise TrainingError(
            f"the bundles have forgotten, but the registry could not be told: {error}. Until then versions "
            "that hold the subjects may serve on"
        ) from error


@dataclasses.dataclass(frozen=True, slots=True)
class _Store:
    """Where versions are kept, and which bundles they are of."""

    client: Any
    experiment: str
    registry: ModelRegistry
    config: Config
    out: Path


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    """Bundles of which the lineage can tell whom they hold, and those that hold a subject."""

    known: frozenset[str]
    holding: frozenset[str]

    def may_hold(self, digest: str | None) -> bool:
        """Whether a bundle holds a subject; of which that cannot be told, it may hold anybody."""
        return digest in self.holding or digest not in self.known


def _held(restricted: Restricted, subjects: Iterable[Subject]) -> _Held:
    lineage = restricted.lineage()
    holding = {bundle.digest for subject in subjects for bundle in lineage.bundles_of(*subject)}
    return _Held(lineage.legible(), frozenset(holding))


def _registered(
    tier: Tier, store: _Store, held: _Held, removed: str | None, at: dt.datetime
) -> RegisteredTier:
    bundle, facts = _standing(store.out / tier)
    origins = set(facts.get("forgot_from", ()))
    made = None if bundle is None or not origins else _version(tier, store, bundle, facts, origins)
    if made is not None:
        _take_the_place(tier, store.registry, made, origins)
    stands = None if bundle is None else bundle.digest
    gone = {*origins, *([] if removed is None else [removed])}
    revoked = _revoke(tier, store, held, gone, stands, "" if made is None else made.number, at)
    champion = store.registry.aliased(tier, CHAMPION)
    deadline = None
    if champion is not None and champion.digest is not None and champion.number in revoked:
        deadline = Revocations.open(store.out).deadline_of(champion.digest)
    return RegisteredTier(
        tier,
        None if made is None else made.number,
        None if made is None else made.tags.get(MADE_FROM_TAG),
        None if champion is None else champion.number,
        revoked,
        deadline,
    )


def _standing(path: Path) -> tuple[Bundle | None, Mapping[str, Any]]:
    """The bundle that stands now, and what its run says of it."""
    try:
        return open_bundle(path, verify=False), read_run(path)
    except BundleMissing:
        return None, {}


def _version(
    tier: Tier, store: _Store, bundle: Bundle, facts: Mapping[str, Any], origins: Collection[str]
) -> Version | None:
    """The version of a bundle that forgetting made; it is made if it is missing, and if it comes from one."""
    missing = unrecorded(store.config, store.out, {str(tier): bundle.digest})
    versions = store.registry.versions(tier)
    if not missing:
        return next(version for version in versions if version.digest == bundle.digest)
    made_from = next((version for version in versions if version.digest in origins), None)
    if made_from is None:
        return None  # nor was what it was made from: 'consentier retrain' records it
    told = {
        **version_tags(bundle.manifest, bundle.digest, {**made_from.tags, **facts}),
        MADE_FROM_TAG: made_from.number,
        FORGOT_TAG: str(facts["forgot"]),
    }
    tags = {
        "mlflow.source.name": "consentier forget",
        **{name: told[name] for name in ("tier", DIGEST_TAG, MADE_FROM_TAG, FORGOT_TAG)},
    }
    run = store.client.create_run(store.experiment, run_name=f"forget {tier}", tags=tags).info
    with ended(store.client, run.run_id):
        store.client.log_dict(run.run_id, dict(facts), "run.json")
        _take_figures(store, made_from, run.run_id)
        store.client.log_artifacts(run.run_id, str(bundle.path), "bundle")
        return store.registry.register(tier, run.run_id, f"{run.artifact_uri}/bundle", told)


def _take_figures(store: _Store, made_from: Version, run_id: str) -> None:
    """Take over what was measured: figures of groups, for the configuration; no bundle is judged itself."""
    with tempfile.TemporaryDirectory(prefix="consentier-forget-") as folder:
        try:
            figures = json.loads(store.registry.read(made_from, MEASUREMENT_FILE, Path(folder)))
        except (TrackingError, OSError, ValueError):
            return  # then promotion says that there are none
    figures["notes"].append(
        f"These are the figures of version {made_from.number}, of which this one is made."
    )
    store.client.log_dict(run_id, figures, MEASUREMENT_FILE)


def _take_the_place(tier: Tier, registry: ModelRegistry, made: Version, origins: Collection[str]) -> None:
    """Let the alias ``champion`` point to a version if it points to one that it was made from."""
    champion = registry.aliased(tier, CHAMPION)
    if champion is not None and champion.digest in origins:
        # What it takes over: where to go back to, and that it was gone back to.
        taken = {name: champion.tags.get(name, "") for name in (PREVIOUS_TAG, ROLLED_BACK_TAG)}
        registry.tag(made, **taken)
        registry.point(tier, CHAMPION, made.number)
    if tier is Tier.FUSED:
        numbers = {version.number for version in registry.versions(tier) if version.digest in origins}
        registry.move_level_3(numbers, made.number)


def _revoke(
    tier: Tier,
    store: _Store,
    held: _Held,
    gone: Collection[str],
    stands: str | None,
    in_place: str,
    at: dt.datetime,
) -> tuple[str, ...]:
    """Give versions that hold, or may hold, a subject a deadline and a tag; return their numbers."""
    stale = [
        version
        for version in store.registry.versions(tier)
        if version.digest != stands and (version.digest in gone or held.may_hold(version.digest))
    ]
    replaced = [version for version in stale if version.digest in gone]
    others = [version for version in stale if version.digest not in gone]
    for versions, deadline in ((replaced, at), (others, at + DEFAULT_DEADLINE)):
        revoke(
            store.out, [each.digest for each in versions if each.digest is not None], deadline, "forgotten"
        )
    store.registry.note_deadlines(tier, Revocations.open(store.out).current())
    told = f"forgotten {at.isoformat(timespec='seconds')}; "
    for version in stale:
        if REVOKED_TAG not in version.tags:
            place = f"version {in_place} stands in its place" if in_place else "nothing stands in its place"
            why = place if version in replaced else "it holds, or may hold, a subject"
            store.registry.tag(version, **{REVOKED_TAG: told + why})
    return tuple(version.number for version in stale)
