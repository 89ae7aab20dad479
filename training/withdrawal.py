"""A withdrawal from end to end: the ledger, the bundles, the profiles, the links.

The order matters. The withdrawal is recorded first: from then on every answer, every delivery and every
training run denies, whatever becomes of the rest. What follows removes what was kept under the permission,
and can be run again until it is done.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from consentier.consent import Channel, ConsentRecord, Ledger, Source, Tier, microseconds
from consentier.consent.permissions import CONTACT_CHANNELS
from consentier.consent.records import OWNER, SubjectKind
from consentier.errors import BundleError, DataError
from consentier.models.bundle import open_bundle
from consentier.serving.revocation import revoke
from consentier.training.lineage import HeldBundle, Lineage

READERS = {
    Source.ONLINE: frozenset({Tier.SESSION, Tier.ONLINE, Tier.FUSED, Tier.POPULAR}),
    Source.CRM: frozenset({Tier.CRM, Tier.FUSED, Tier.POPULAR}),
}
"""Which bundles rest on a source."""

__all__ = [
    "DEFAULT_DEADLINE",
    "READERS",
    "ProfileStore",
    "Withdrawal",
    "bundles_in",
    "withdraw",
    "withdraw_contact",
]

DEFAULT_DEADLINE = dt.timedelta(days=30)
"""By when a bundle that holds the subject must be gone: the month of GDPR 12(3), in its shortest reading."""


class ProfileStore(Protocol):
    """What a withdrawal asks of a store of profiles."""

    def purge(self, subject: str) -> int:
        """Delete all that is stored of a subject; say how many rows it was."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Withdrawal:
    """What a withdrawal did.

    Attributes
    ----------
    recorded
        Entries that are new in the ledger; 0 where the withdrawal was on record already.
    subjects
        Whose permission was withdrawn: the subject, and with a customer's online permission the devices that
        were lawfully linked.
    links_dissolved
        Identity links that were deleted.
    profile_rows_purged
        Rows deleted from the stores of the withdrawn source.
    bundles
        Bundles that read the source and hold, or may hold, the subject.
    deadline
        When these stop answering; None where there are none.
    """

    recorded: int
    subjects: tuple[tuple[SubjectKind, str], ...]
    links_dissolved: int
    profile_rows_purged: int
    bundles: tuple[HeldBundle, ...]
    deadline: dt.datetime | None


def withdraw(
    ledger: Ledger,
    subject_id: str,
    *,
    kind: SubjectKind,
    source: Source,
    at: dt.datetime,
    profiles: Mapping[Source, Sequence[ProfileStore]] | None = None,
    bundles: Iterable[tuple[Path, Lineage | None]] = (),
    deadline: dt.timedelta = DEFAULT_DEADLINE,
    evidence: str | None = None,
) -> Withdrawal:
    """Withdraw one permission of one subject, with all that follows from it.

    Safe to run again: what was done already is found done, and the first deadline stands.

    Parameters
    ----------
    ledger
        Where to record it.
    subject_id, kind
        Who withdraws.
    source
        Which permission: online or crm. A customer who withdraws online does so for the devices that are
        lawfully linked at `at` too; a device never withdraws for a customer.
    at
        From when on. What is recorded says that it was learnt of now, or at `at` if that lies ahead.
        Grants that begin later still are withdrawn too: a clock that was ahead of this one recorded them.
    profiles
        Stores of profiles by source.
    bundles
        Directories of bundles, each with the index of whom its bundles hold; looked at once the withdrawal is
        on record. A bundle that the index does not know, or whose members it cannot name any more, and that
        reads the source, gets the deadline too: it may hold anybody.
    deadline
        How long after `at` the bundles may still answer.
    evidence
        What proves the withdrawal.

    Raises
    ------
    ValueError
        If `source` is neither online nor crm.
    LedgerError
        If the ledger cannot record it; then nothing else was done.
    DataError
        If a store of profiles cannot be purged. All else was done but for the links; run it again, with the
        same `at`, when the store can be reached.
    """
    if source not in (Source.ONLINE, Source.CRM):
        raise ValueError(f"a withdrawal is of online or crm, not of {source!r}")
    if deadline < dt.timedelta(0):
        raise ValueError("the deadline lies before the withdrawal")
    subjects = _subjects(ledger, kind, subject_id, source, at)
    recorded = ledger.append(_new_records(ledger, subjects, source.value, at, evidence))
    held: dict[str, HeldBundle] = {}
    for directory, lineage in bundles:
        found = _held(directory, lineage, subjects, source)
        revoke(directory, [bundle.digest for bundle in found], at + deadline, "withdrawal")
        held.update((bundle.digest, bundle) for bundle in found)
    owners = [name for owner, name in subjects if owner == OWNER[source]]
    purged = _purge((profiles or {}).get(source, ()), owners, at)
    # Last, because the devices that are to be purged are found by their links.
    dissolved = sum(_dissolve(ledger, subject) for subject in subjects)
    ordered = tuple(sorted(held.values(), key=lambda bundle: (bundle.tier, bundle.digest)))
    return Withdrawal(recorded, subjects, dissolved, purged, ordered, at + deadline if held else None)


def withdraw_contact(
    ledger: Ledger, customer_id: str, channel: Channel, *, at: dt.datetime, evidence: str | None = None
) -> Withdrawal:
    """Withdraw the permission to contact a customer in one channel: somebody unsubscribes.

    What is scored and delivered for the channel asks the ledger, so the record is all that it takes: no
    model, profile or link rests on it. Safe to run again.

    Parameters
    ----------
    ledger, at, evidence
        As for `withdraw`.
    customer_id
        Who unsubscribes.
    channel
        Where from: email, print, call_center or push.

    Raises
    ------
    ValueError
        If nobody is contacted in the channel.
    LedgerError
        If the ledger cannot record it.
    """
    if channel not in CONTACT_CHANNELS:
        raise ValueError(f"nobody is contacted in {channel!r}; name one of {sorted(CONTACT_CHANNELS)}")
    subjects: tuple[tuple[SubjectKind, str], ...] = (("customer", customer_id),)
    recorded = ledger.append(_new_records(ledger, subjects, f"contact:{channel}", at, evidence))
    return Withdrawal(recorded, subjects, 0, 0, (), None)


def _subjects(
    ledger: Ledger, kind: SubjectKind, subject_id: str, source: Source, at: dt.datetime
) -> tuple[tuple[SubjectKind, str], ...]:
    devices: set[str] = set()
    if (kind, source) == ("customer", Source.ONLINE):
        # Just before, too: when it is run again, the withdrawal is on record already.
        for instant in (at - dt.timedelta(microseconds=1), at):
            devices.update(ledger.linked_visitors(subject_id, at=instant))
    return ((kind, subject_id), *(("visitor", device) for device in sorted(devices)))


def _purge(stores: Sequence[ProfileStore], owners: Sequence[str], at: dt.datetime) -> int:
    """Purge all stores, and only then say that one of them could not be."""
    purged, failure = 0, None
    for store in stores:
        for owner in owners:
            try:
                purged += store.purge(owner)
            except DataError as error:
                failure = failure or error
    if failure is not None:
        raise DataError(
            f"the withdrawal is recorded, but not all profiles are purged: {failure}; run it again, at "
            f"{at.isoformat()}"
        ) from failure
    return purged


def _new_records(
    ledger: Ledger,
    subjects: Iterable[tuple[SubjectKind, str]],
    permission: str,
    at: dt.datetime,
    evidence: str | None,
) -> list[ConsentRecord]:
    recorded_at = max(at, dt.datetime.now(dt.UTC))
    records = []
    for kind, subject_id in subjects:
        known = ledger.records_of(subject_id, kind=kind)
        ahead = {
            each.valid_from
            for each in known
            if each.permission == permission and each.state == "granted" and each.valid_from > recorded_at
        }
        for valid_from in (at, *sorted(ahead)):
            # The same withdrawal has the same id, however often the call is made.
            name = json.dumps([kind, subject_id, permission, microseconds(valid_from), evidence])
            record_id = f"withdrawal:{hashlib.sha256(name.encode()).hexdigest()}"
            if all(each.record_id != record_id for each in known):
                records.append(
                    ConsentRecord(
                        record_id,
                        subject_id,
                        kind,
                        permission,
                        "withdrawn",
                        valid_from=valid_from,
                        recorded_at=recorded_at,
                        collected_by="consentier",
                        evidence=evidence,
                    )
                )
    return records


def _dissolve(ledger: Ledger, subject: tuple[SubjectKind, str]) -> int:
    kind, subject_id = subject
    if kind == "visitor":
        return ledger.dissolve_links(visitor_id=subject_id)
    return ledger.dissolve_links(customer_id=subject_id)


def _held(
    directory: Path, lineage: Lineage | None, subjects: Iterable[tuple[SubjectKind, str]], source: Source
) -> list[HeldBundle]:
    known = frozenset[str]() if lineage is None else lineage.legible()
    found = [
        bundle
        for bundle in bundles_in(directory)
        if bundle.tier in READERS[source] and bundle.digest not in known
    ]
    if lineage is None:
        return found
    for kind, subject_id in subjects:
        # Under the other source's owner, only the fused bundle holds data of this one.
        readers = READERS[source] if kind == OWNER[source] else {Tier.FUSED}
        found += [bundle for bundle in lineage.bundles_of(kind, subject_id) if bundle.tier in readers]
    return found


def bundles_in(directory: Path) -> Iterator[HeldBundle]:
    """The bundles of a directory that can be opened, whoever is in them."""
    for tier in Tier:
        try:
            bundle = open_bundle(directory / tier, verify=False)
        except BundleError:
            continue  # absent, or answering nothing
        cutoff = dt.datetime.fromisoformat(bundle.manifest.cutoff)
        yield HeldBundle(bundle.digest, str(tier), cutoff, ledger_position=0)
