"""What follows where a permission has ended, however it ended: bundles get a deadline, profiles are purged.

`withdraw` sees to both at once. A permission ends in other ways too: by a signal of a browser or consent
manager, an objection, a lapse, an imported table, a record on parental consent, or by an erasure. Of these
nothing reaches bundles and profiles until somebody asks the ledger about all whom they hold.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from consentier.consent import Ledger, Policy, Source, Tier
from consentier.consent.records import OWNER
from consentier.serving.profile_base import ProfileStore
from consentier.serving.revocation import Revocations, revoke
from consentier.training.consent_now import ConsentNow, Standing
from consentier.training.lineage import HeldBundle, Lineage
from consentier.training.withdrawal import DEFAULT_DEADLINE, bundles_in

__all__ = ["JudgedBundle", "PurgedProfiles", "purge_ended", "set_deadlines"]


@dataclasses.dataclass(frozen=True, slots=True)
class JudgedBundle:
    """How those stand whom a bundle holds, and when it stops.

    Attributes
    ----------
    directory
        The directory beside whose bundles the deadline stands.
    digest, tier
        Which bundle.
    served
        Whether it lies in the directory. False: a newer one replaced it, and copies may lie elsewhere.
    members, ended
        How many subjects it holds, and of how many the permission has ended.
    problem
        Why that cannot be told, so that it may hold anybody; empty if it can.
    deadline
        When it stops answering; None if all whom it holds still permit it and nothing else stops it.
    """

    directory: str
    digest: str
    tier: str
    served: bool
    members: int
    ended: int
    problem: str
    deadline: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class PurgedProfiles:
    """What was deleted from a store of profiles.

    Attributes
    ----------
    place
        Which store.
    subjects, rows
        How many subjects were purged, and how many rows that were.
    unknown
        How many subjects stand in the store of whom the ledger knows nothing. They are kept, for a ledger
        that knows nothing may be the wrong one; no answer reads them.
    """

    place: str
    subjects: int
    rows: int
    unknown: int


def set_deadlines(
    ledger: Ledger,
    *,
    bundles: Iterable[tuple[Path, Lineage | None]],
    policy: Policy,
    at: dt.datetime,
    deadline: dt.timedelta = DEFAULT_DEADLINE,
) -> tuple[JudgedBundle, ...]:
    """Give a deadline to each bundle that holds somebody who does not permit it any more.

    Meant to be run each day: the deadline counts from the run that finds the end of a permission. A bundle
    that has an earlier deadline keeps it, so that further runs prolong nothing. A permission that ended and
    was given again has ended all the same: what was learnt before may not be learnt again (the third law).

    Parameters
    ----------
    ledger
        The ledger under which the bundles were fitted, as it is now.
    bundles
        Directories of bundles, each with the index of whom its bundles hold. Without an index, and where it
        does not know a bundle or can name its members no more, the bundle may hold anybody, and gets the
        deadline.
    policy
        Its switches decide what counts.
    at
        The moment: what has ended by then counts.
    deadline
        How long after `at` such bundles may still answer.

    Raises
    ------
    ValueError
        If `deadline` is negative.
    BundleError, OSError
        If a list of deadlines cannot be read or written. Directories before it are done.

    Notes
    -----
    Two questions to the ledger about all of its subjects for each training run, and some 20 µs for each
    subject that may be learnt from, and bundle (`ConsentNow`).
    """
    if deadline < dt.timedelta(0):
        raise ValueError("the deadline lies before the moment of the question")
    now = ConsentNow(ledger, policy)
    judged: list[JudgedBundle] = []
    for directory, lineage in bundles:
        found = [
            (bundle, served, _standing(bundle, lineage, now, at))
            for bundle, served in _known(directory, lineage)
        ]
        ended = [bundle.digest for bundle, _, standing in found if not standing.clean]
        revoke(directory, ended, at + deadline, "permission ended")
        revocations = Revocations.open(directory)
        judged += [
            JudgedBundle(
                str(directory),
                bundle.digest,
                bundle.tier,
                served,
                standing.members,
                standing.ended,
                standing.problem,
                revocations.deadline_of(bundle.digest),
            )
            for bundle, served, standing in found
        ]
    return tuple(judged)


def purge_ended(ledger: Ledger, store: ProfileStore, *, source: Source, at: dt.datetime) -> PurgedProfiles:
    """Delete from a store of profiles whoever does not permit its source any more.

    Safe to run again, and while events are stored: `observe` stores none without permission.

    Parameters
    ----------
    ledger
        Says who permits it.
    store
        Profiles of visitors if `source` is online, else of customers.
    at
        The moment.

    Raises
    ------
    ValueError
        If `source` is neither online nor crm.
    DataError
        If the store cannot be read or written. Those before are purged; run it again.

    Notes
    -----
    One question to the ledger for each subject of the store, some 20 µs if it lies in memory, and one more
    for each without permission. What is older than a permission that was ended and given again stays: `purge`
    deletes all of a subject or nothing, and no answer reads it (the third law).
    """
    if source not in OWNER:
        raise ValueError(f"profiles are of online or crm, not of {source!r}")
    kind = OWNER[source]
    subjects = rows = unknown = 0
    for subject in _subjects_of(store):
        if ledger.permission(subject, kind=kind, at=at):
            continue
        if not ledger.records_of(subject, kind=kind):
            unknown += 1
            continue
        rows += store.purge(subject)
        subjects += 1
    return PurgedProfiles(store.place, subjects, rows, unknown)


def _subjects_of(store: ProfileStore) -> Sequence[str]:
    """Who stands in a store; all at once, as they are deleted while one goes through them."""
    return sorted({*store, *store.attributes})


def _known(directory: Path, lineage: Lineage | None) -> Iterator[tuple[HeldBundle, bool]]:
    """The bundles of a directory, and those that its index knows beside them; of one run together."""
    indexed = {} if lineage is None else {bundle.digest: bundle for bundle in lineage.bundles()}
    for bundle in bundles_in(directory):
        yield indexed.pop(bundle.digest, bundle), True
    for bundle in sorted(indexed.values(), key=lambda bundle: (bundle.ledger_position, bundle.cutoff)):
        yield bundle, False


def _standing(bundle: HeldBundle, lineage: Lineage | None, now: ConsentNow, at: dt.datetime) -> Standing:
    if lineage is None:
        return Standing(problem="there is no index of whom it holds")
    # The trainer's clock may be a little ahead of this one's.
    return now.standing(bundle.digest, Tier(bundle.tier), lineage=lineage, at=max(at, bundle.cutoff))
