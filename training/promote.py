"""Promotion: whether the challenger of a tier may take the champion's place, and going back.

Each check is a small function that says what was seen and what was needed. All of them are made and shown,
whatever the first one says. The alias ``champion`` is set last and in one step: whoever is interrupted leaves
the old champion.

The figures are those of the run that made the challenger (`training.measure`). What may have changed since is
asked now: whether the bundle is whole, whether all whom it holds still permit it, its deadline, how long it
takes to answer, and whether the champion is still the one that it was held against.

Where the fused challenger is worse than the best tier of a single source, level 3 is answered by that source:
see `decide_level_3`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from consentier.consent import Channel, Ledger, Permission, Policy, Tier
from consentier.errors import BundleError, ConsentierError, DataError
from consentier.models.bundle import TIERS, Bundle, Manifest, open_bundle, verify_bundle
from consentier.models.item_index import ItemIndex
from consentier.serving import Recommender, Request
from consentier.serving.loading import OpenedBundles, open_tier, problem_of
from consentier.serving.registry import CHAMPION, DEADLINE_TAG, ROLLED_BACK_TAG, deadline_of_tag
from consentier.serving.revocation import Deadlines, Revocations
from consentier.training.consent_now import ConsentNow, Standing
from consentier.training.evaluation_result import mean_with_bounds
from consentier.training.lineage import Lineage
from consentier.training.measure import CHAMPION as CHAMPION_FIGURES
from consentier.training.measure import MEASUREMENT_VERSION, POPULAR, Difference, Measurement
from consentier.training.model_registry import (
    CHALLENGER,
    CHECKS_TAG,
    OUTCOME_TAG,
    PREVIOUS_TAG,
    ModelRegistry,
    Version,
)
from consentier.training.record import MEASUREMENT_FILE
from consentier.writing import scratch

__all__ = [
    "LATENCY_BUDGET",
    "PROMOTED_TIERS",
    "Check",
    "Promotion",
    "Rollback",
    "promote",
    "rollback",
]

PROMOTED_TIERS = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.POPULAR, Tier.FUSED)
"""All tiers, in the order in which they are promoted: fused last."""

LATENCY_BUDGET = 50.0
"""Milliseconds on the processor that the slowest of a hundred answers may take, by default. Answers take well
below one (docs/benchmarks.md), those of factor models grow with the catalogue. So it stops what no page can
wait for."""

_REQUESTS, _ROUNDS = 200, 3
_LONGEST_HISTORY = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One condition of a promotion.

    Attributes
    ----------
    name
        What it is about.
    passed
        Whether it holds.
    seen, needed
        What was found, and what would have been right.
    """

    name: str
    passed: bool
    seen: str
    needed: str


@dataclasses.dataclass(frozen=True, slots=True)
class Promotion:
    """What became of the challenger of one tier.

    Attributes
    ----------
    tier
        Which.
    version
        The challenger; None where there is none.
    before
        The champion before; None where there was none.
    promoted
        Whether the challenger is the champion now, or with a dry run would be.
    checks
        All conditions; empty where the challenger is the champion already, or there is none.
    level_3
        Of the fused tier: who answers linked customers now, where this run decided it.
    note
        What else there is to say.
    """

    tier: Tier
    version: str | None
    before: str | None
    promoted: bool
    checks: tuple[Check, ...] = ()
    level_3: Tier | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Rollback:
    """What became of going back to the champion before.

    Attributes
    ----------
    tier
        Which.
    version, to
        The champion, and the one before it.
    done
        Whether that is the champion again, or with a dry run would be.
    checks
        All conditions.
    """

    tier: Tier
    version: str
    to: str
    done: bool
    checks: tuple[Check, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Candidate:
    """A version with its bundle, as far as it can be opened."""

    version: Version
    path: Path | None
    bundle: Bundle | None
    problem: str

    @property
    def manifest(self) -> Manifest | None:
        return None if self.bundle is None else self.bundle.manifest


def promote(
    registry: ModelRegistry,
    tier: Tier,
    *,
    bundles: Path,
    lineage: Lineage,
    ledger: Ledger,
    policy: Policy,
    at: dt.datetime,
    latency_budget: float = LATENCY_BUDGET,
    dry_run: bool = False,
) -> Promotion:
    """Make the challenger of a tier the champion, if all checks pass.

    Parameters
    ----------
    registry
        The registered models.
    tier
        Which.
    bundles
        The trainer's directory of bundles, whose revocation list counts.
    lineage
        The trainer's index of whom bundles hold.
    ledger, policy
        What the challenger was trained under, as it is now.
    at
        The moment at which consents must hold.
    latency_budget
        Milliseconds that the slowest of a hundred answers may take.
    dry_run
        Check and write nothing.

    Notes
    -----
    The checks and their outcome are stored in the tags of the version and as an artifact of its run before
    the alias is set. The bundle is downloaded once, hashed, and asked 800 times.
    """
    deadlines = registry.deadlines(tier, Revocations.open(bundles).current())
    if not dry_run:
        registry.note_deadlines(tier, deadlines)
    challenger, champion = registry.aliased(tier, CHALLENGER), registry.aliased(tier, CHAMPION)
    before = None if champion is None else champion.number
    if challenger is None:
        return Promotion(tier, None, before, False, note="no version is registered: train one")
    if champion is not None and champion.number == challenger.number:
        return Promotion(tier, before, before, True, note="it is the champion already")
    with scratch("promote") as folder:
        candidate = _fetched(registry, challenger, folder / "version")
        measurement, problem = _measurement(registry, challenger, folder / "run")
        standing = _standing(candidate, lineage, ledger, policy, at)
        checks = [
            declared_permission(tier, candidate.manifest, challenger, candidate.problem),
            bundle_integrity(candidate.path, challenger, candidate.problem),
            *_figures(tier, measurement, champion, problem),
            consents_hold(standing, at),
            no_deadline(challenger, deadlines),
            training_cutoff(challenger, champion),
            latency(_latency(tier, candidate, folder), latency_budget),
        ]
    promoted = all(check.passed for check in checks)
    level_3 = None
    if tier is Tier.FUSED and measurement is not None:
        level_3 = decide_level_3(measurement, champion, challenger_wins=promoted)
    result = Promotion(
        tier, challenger.number, before, promoted, tuple(checks), level_3, _note(level_3, champion)
    )
    if not dry_run:
        _store(registry, challenger, champion, result, at)
    return result


def rollback(
    registry: ModelRegistry, tier: Tier, *, bundles: Path, at: dt.datetime, dry_run: bool = False
) -> Rollback:
    """Make the champion before the present one the champion again.

    Parameters
    ----------
    registry, tier, bundles, dry_run
        As in `promote`.
    at
        The moment by which no deadline may have passed.

    Raises
    ------
    DataError
        If there is no champion, or it is the first one.

    Notes
    -----
    The bundle is downloaded once, and hashed.
    """
    deadlines = registry.deadlines(tier, Revocations.open(bundles).current())
    if not dry_run:
        registry.note_deadlines(tier, deadlines)
    champion = registry.aliased(tier, CHAMPION)
    if champion is None:
        raise DataError(f"{registry.name(tier)} has no champion to go back from")
    number = champion.tags.get(PREVIOUS_TAG, "")
    if not number:
        raise DataError(
            f"{registry.name(tier)}: version {champion.number} is the first champion; there is none before it"
        )
    previous = registry.version(tier, number)
    with scratch("rollback") as folder:
        candidate = _fetched(registry, previous, folder)
        checks = (
            declared_permission(tier, candidate.manifest, previous, candidate.problem),
            bundle_integrity(candidate.path, previous, candidate.problem),
            deadline_ahead(previous, deadlines, at),
        )
    done = all(check.passed for check in checks)
    if done and not dry_run:
        # Before the alias: what serves must know that the earlier cut-off is meant.
        registry.tag(previous, **{ROLLED_BACK_TAG: champion.number})
        registry.point(tier, CHAMPION, previous.number)
    return Rollback(tier, champion.number, previous.number, done, checks)


# ---- The checks --------------------------------------------------------------------------------------------


def declared_permission(tier: Tier, manifest: Manifest | None, version: Version, problem: str) -> Check:
    """The bundle, and the tags of its version, declare the tier of the slot and just what that needs."""
    sources, permission = TIERS[tier]
    needed = _declared(str(tier), permission, sources)
    if manifest is None:
        return Check("declared permission", False, problem, needed)
    seen = _declared(manifest.tier, manifest.permission, manifest.sources)
    tags = version.tags
    tagged = _declared(
        tags.get("tier", ""), tags.get("permission", "").split(), tags.get("sources", "").split()
    )
    if seen != tagged:
        seen = f"the bundle: {seen}; the registry: {tagged}"
    return Check("declared permission", seen == needed, seen, needed)


def _declared(tier: str, permission: Sequence[str], sources: Sequence[str]) -> str:
    return f"{tier}: permission {'+'.join(permission) or 'none'}, reads {'+'.join(sources) or 'nothing'}"


def bundle_integrity(path: Path | None, version: Version, problem: str) -> Check:
    """The bundle is whole, and the very one that was registered."""
    name, needed = "bundle integrity", "whole, with the digest that is registered"
    if path is None:
        return Check(name, False, problem, needed)
    if version.digest is None:
        return Check(name, False, "the version pins no digest", "the tag bundle_digest")
    try:
        findings = verify_bundle(path)
        if not findings:
            open_bundle(path, expected_digest=version.digest)
    except (BundleError, ValueError) as error:
        findings = [str(error)]
    return Check(name, not findings, "; ".join(findings) or "whole", needed)


def better_than_popular(measurement: Measurement) -> Check:
    """The interval of the difference to the popular list lies above 0, in the test period."""
    name, needed = "better than popular", "an interval above 0"
    found = _difference(measurement, POPULAR)
    if found is None:
        return Check(name, False, _not_measured(measurement), needed)
    return Check(name, found["difference"]["low"] > 0, _difference_text(found), needed)


def not_worse_than_champion(measurement: Measurement, champion: Version | None) -> Check:
    """The interval of the difference to the model in use does not lie below 0, on the same test customers."""
    name, needed = "not worse than the champion", "an interval that does not lie below 0"
    if champion is None:
        return Check(name, True, "there is no champion", needed)
    held, found = measurement["champion"], _against(measurement, champion)
    if held is None or found is None:
        seen = _not_measured(measurement)
        if held is not None:
            seen = f"it was held against version {held['version']}, not against {champion.number}"
        return Check(name, False, seen, f"figures of version {champion.number}: train again")
    seen = f"{_difference_text(found)} (the champion {held['how']})"
    return Check(name, found["difference"]["high"] >= 0, seen, needed)


def not_worse_than_single_source(measurement: Measurement) -> Check:
    """Fused: the interval of the difference to the best tier of one source does not lie below 0.

    On the same linked customers, each tier with its own training rows.
    """
    name, needed = "not worse than the best single source", "an interval that does not lie below 0"
    single = measurement["single_source"]
    if single is None:
        return Check(name, False, _not_measured(measurement), needed)
    seen = (
        f"{single['metric']} {mean_with_bounds(single['difference'], sign='+')} over {single['best']}, "
        f"p {single['p_value']:.4f}, {single['customers']:,} customers"
    )
    return Check(name, single["difference"]["high"] >= 0, seen, needed)


def consents_hold(standing: Standing, at: dt.datetime) -> Check:
    """All whom the bundle holds permit it now, and have since it was fitted."""
    needed = f"all permit it without interruption up to {at.isoformat(timespec='seconds')}"
    seen = standing.problem or f"{standing.members - standing.ended:,} of {standing.members:,} permit it"
    return Check("consents hold", standing.clean, seen, needed)


def no_deadline(version: Version, deadlines: Deadlines) -> Check:
    """No withdrawal has given the bundle a deadline."""
    name, needed = "no withdrawal deadline", "none: train again without those who withdrew"
    if deadlines.fault:
        return Check(name, False, deadlines.fault, needed)
    deadline = _deadline(version, deadlines)
    return Check(name, deadline is None, "none" if deadline is None else deadline.isoformat(), needed)


def deadline_ahead(version: Version, deadlines: Deadlines, at: dt.datetime) -> Check:
    """No withdrawal deadline of the bundle has passed."""
    name, needed = "withdrawal deadline", f"none, or one after {at.isoformat(timespec='seconds')}"
    if deadlines.fault:
        return Check(name, False, deadlines.fault, needed)
    deadline = _deadline(version, deadlines)
    passed = deadline is None or deadline > at
    return Check(name, passed, "none" if deadline is None else deadline.isoformat(), needed)


def training_cutoff(version: Version, champion: Version | None) -> Check:
    """The training cut-off is not before the champion's: what serves would not take it."""
    name, seen = "training cut-off", version.tags.get("cutoff", "")
    if champion is None:
        return Check(name, bool(seen), seen, "a cut-off")
    needed = champion.tags.get("cutoff", "")
    return Check(name, bool(seen) and seen >= needed, seen, f"not before {needed}, the champion's")


def latency(milliseconds: float | None, budget: float) -> Check:
    """The slowest of a hundred answers takes no longer than the budget."""
    seen = "it gave no answer" if milliseconds is None else f"p99 {milliseconds:.2f} ms of processor time"
    passed = milliseconds is not None and milliseconds <= budget
    return Check("latency", passed, seen, f"at most {budget:g} ms")


def decide_level_3(
    measurement: Measurement, champion: Version | None, *, challenger_wins: bool
) -> Tier | None:
    """Who answers linked customers: fused, the best tier of a single source, or None: it stays as it is.

    Parameters
    ----------
    measurement
        Of the fused challenger.
    champion
        The fused model in use; None: there is none.
    challenger_wins
        Whether the challenger takes over.

    Notes
    -----
    A challenger that is worse than the best single source speaks against the champion too, where that was
    held against it and is not shown to be better.
    """
    if challenger_wins:
        return Tier.FUSED
    single = measurement["single_source"]
    if single is None or single["difference"]["high"] >= 0:
        return None
    if champion is not None:
        against = _against(measurement, champion)
        if against is None or against["difference"]["high"] < 0:
            return None
    return Tier(single["best"])


def _figures(
    tier: Tier, measurement: Measurement | None, champion: Version | None, problem: str
) -> list[Check]:
    """What the figures of the run say; nothing of the popular list, which is what the others are held to."""
    if tier is Tier.POPULAR:
        return []
    if measurement is None:
        return [Check("measured", False, problem, "figures of the run that made it")]
    checks = [better_than_popular(measurement), not_worse_than_champion(measurement, champion)]
    return [*checks, not_worse_than_single_source(measurement)] if tier is Tier.FUSED else checks


def _against(measurement: Measurement, champion: Version) -> Difference | None:
    """The difference to the champion, if it was held against this one."""
    held = measurement["champion"]
    if held is None or (held["version"], held["digest"]) != (champion.number, champion.digest):
        return None
    return _difference(measurement, CHAMPION_FIGURES)


def _difference(measurement: Measurement, against: str) -> Difference | None:
    for found in measurement["differences"]:
        if (found["against"], found["metric"]) == (against, measurement["metric"]):
            return found
    return None


def _difference_text(found: Difference) -> str:
    return f"{found['metric']} {mean_with_bounds(found['difference'], sign='+')}, p {found['p_value']:.4f}"


def _not_measured(measurement: Measurement) -> str:
    return " ".join(measurement["notes"]) or "it was not measured"


def _deadline(version: Version, deadlines: Deadlines) -> dt.datetime | None:
    """The earliest deadline that the revocation list, or the registry, gives a version."""
    told = version.tags.get(DEADLINE_TAG)
    found = [deadlines.by_digest.get(version.digest or ""), deadline_of_tag(told) if told else None]
    return min((deadline for deadline in found if deadline is not None), default=None)


# ---- What is looked at -------------------------------------------------------------------------------------


def _fetched(registry: ModelRegistry, version: Version, folder: Path) -> _Candidate:
    try:
        path = registry.download(version, folder)
    except Exception as error:  # noqa: BLE001 - whatever a registry raises, the version is refused for it
        return _Candidate(version, None, None, f"it cannot be fetched: {problem_of(error)}")
    try:
        return _Candidate(version, path, open_bundle(path, verify=False), "")
    except BundleError as error:
        return _Candidate(version, path, None, str(error))


def _measurement(registry: ModelRegistry, version: Version, folder: Path) -> tuple[Measurement | None, str]:
    folder.mkdir()
    try:
        found = json.loads(registry.read(version, MEASUREMENT_FILE, folder))
        if found["version"] != MEASUREMENT_VERSION or found["tier"] != version.tier:
            return None, f"its figures are of version {found['version']} and of the {found['tier']} tier"
    except Exception as error:  # noqa: BLE001 - whatever a registry raises, the version is refused for it
        return None, f"its run has no figures that can be read: {problem_of(error)}"
    return cast(Measurement, found), ""


def _standing(
    candidate: _Candidate, lineage: Lineage, ledger: Ledger, policy: Policy, at: dt.datetime
) -> Standing:
    digest = candidate.version.digest
    if digest is None:
        return Standing(problem="the version pins no digest: it may hold anybody")
    try:
        return ConsentNow(ledger, policy).standing(digest, candidate.version.tier, lineage=lineage, at=at)
    except ConsentierError as error:
        return Standing(problem=str(error))


def _latency(tier: Tier, candidate: _Candidate, no_deadlines: Path) -> float | None:
    """Milliseconds that the slowest of a hundred answers takes on the processor, in the best of a few rounds.

    Time on the processor, not on the wall: what else the machine does decides nothing. The requests hold
    items of the bundle, drawn at random: nobody's.
    """
    if candidate.path is None or candidate.bundle is None:
        return None
    now = dt.datetime.now(dt.UTC)
    try:
        opened = open_tier(candidate.path, tier, None, Deadlines(), now)
    except BundleError:
        return None
    recommender = Recommender.over(OpenedBundles({tier: opened}, {}), Revocations.open(no_deadlines))
    requests = _requests(tier, candidate.bundle)
    answers = [recommender.recommend(request) for request in requests]
    if not any(answer.tier is tier for answer in answers):
        return None
    rounds = []
    for _ in range(_ROUNDS):
        times = []
        for request in requests:
            started = time.thread_time()
            recommender.recommend(request)
            times.append(time.thread_time() - started)
        times.sort()
        rounds.append(times[math.ceil(0.99 * len(times)) - 1])
    return 1000 * min(rounds)


def _requests(tier: Tier, bundle: Bundle) -> list[Request]:
    index = ItemIndex(bundle.arrays["item_ids"], bundle.arrays["item_offsets"], verify=False)
    if not len(index):
        return []
    items = index.ids(np.arange(len(index)))
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, min(_LONGEST_HISTORY, len(items)), endpoint=True, size=_REQUESTS)
    histories = [
        [items[number] for number in rng.choice(len(items), length, replace=False).tolist()]
        for length in lengths.tolist()
    ]
    if tier is Tier.POPULAR:
        both_sides = (Channel.SHOP, Channel.EMAIL)
        return [Request(permission=Permission.NONE, channel=both_sides[n % 2]) for n in range(_REQUESTS)]
    return [_request(tier, history) for history in histories]


def _request(tier: Tier, history: Sequence[str]) -> Request:
    both = Permission.ONLINE | Permission.CRM
    if tier is Tier.SESSION:
        return Request(session=history, permission=Permission.NONE)
    if tier is Tier.ONLINE:
        return Request(online_history=history, permission=Permission.ONLINE)
    if tier is Tier.CRM:
        return Request(crm_history=history, permission=Permission.CRM, channel=Channel.EMAIL)
    half = len(history) // 2
    return Request(online_history=history[:half], crm_history=history[half:], permission=both, linked=True)


# ---- What is written ---------------------------------------------------------------------------------------


def _note(level_3: Tier | None, champion: Version | None) -> str:
    if level_3 is None:
        return ""
    if level_3 is Tier.FUSED:
        return "level 3 is answered by fused"
    held = "" if champion is None else f", also in place of version {champion.number}"
    return f"level 3 is answered by {level_3}{held}: on the same customers it is better than fused"


def _store(
    registry: ModelRegistry, challenger: Version, champion: Version | None, result: Promotion, at: dt.datetime
) -> None:
    before = "" if champion is None else champion.number
    outcome = "promoted" if result.promoted else "refused"
    document: Mapping[str, Any] = {
        "at": at.isoformat(),
        "tier": str(result.tier),
        "version": challenger.number,
        "champion_before": before,
        "outcome": outcome,
        "checks": [dataclasses.asdict(check) for check in result.checks],
        "level_3": None if result.level_3 is None else str(result.level_3),
        "note": result.note,
    }
    registry.note(challenger, document, f"promotion/{at:%Y%m%dT%H%M%S%f}.json")
    tags = {
        CHECKS_TAG: json.dumps(document["checks"]),
        OUTCOME_TAG: f"{outcome} {at.isoformat(timespec='seconds')}",
    }
    if result.promoted:
        # What an earlier stay as champion left behind.
        tags |= {PREVIOUS_TAG: before, ROLLED_BACK_TAG: ""}
    registry.tag(challenger, **tags)
    if result.promoted:
        registry.point(result.tier, CHAMPION, challenger.number)
    elif result.level_3 is not None:
        registry.decide_level_3(json.dumps({"by": str(result.level_3), "instead_of": before}))
