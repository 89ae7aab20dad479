"""Whether all whom a bundle holds still permit it, at this moment and without interruption since."""

from __future__ import annotations

import dataclasses
import datetime as dt

from consentier.consent import Ledger, Policy, Tier
from consentier.consent.records import SubjectKind
from consentier.features.gate import ConsentGate
from consentier.features.tables import ShopTables
from consentier.training.lineage import Lineage, LineageError

__all__ = ["Standing", "standing_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """How those stand whom a bundle holds.

    Attributes
    ----------
    members
        How many they are.
    ended
        How many of them do not hold the permission any more, or not without interruption since the rows that
        the bundle was fitted on, or are not known to the ledger (or under a key of the lineage) any more.
    problem
        Why this cannot be known; empty if it can.
    """

    members: int = 0
    ended: int = 0
    problem: str = ""

    @property
    def clean(self) -> bool:
        """Whether the bundle rests on nothing that may not be used now."""
        return not self.problem and not self.ended


def standing_of(
    digest: str, tier: Tier, *, lineage: Lineage, ledger: Ledger, policy: Policy, at: dt.datetime
) -> Standing:
    """Ask the ledger about everybody whom a bundle holds.

    A member counts as permitting if the permission holds at `at` and has held since the instant from which it
    counted when the bundle was fitted, by all that the ledger knows now: a withdrawal that was recorded late
    is found too, also where a later grant followed.

    Parameters
    ----------
    digest, tier
        Which bundle.
    lineage
        The index of whom bundles hold.
    ledger
        The ledger under which it was fitted, as it is now.
    policy
        Its switches decide what counts.
    at
        The moment. Before the bundle's cut-off nothing can be said.

    Notes
    -----
    The ledger's subjects are judged at once, twice; then some microseconds for each who may be learnt from.
    """
    try:
        fitted = lineage.bundle(digest)
        members = lineage.members(digest)
    except LineageError as error:
        return Standing(problem=str(error))
    if at < fitted.cutoff:
        cutoff = fitted.cutoff.isoformat()
        return Standing(len(members), problem=f"{at.isoformat()} is before the training cut-off, {cutoff}")
    try:
        then = ledger.as_of(fitted.ledger_position)
    except ValueError:
        return Standing(
            len(members),
            problem=f"the ledger is at position {ledger.position}, the bundle was fitted at "
            f"{fitted.ledger_position}: it is another ledger",
        )
    shop = ShopTables.empty()
    before = _since(ConsentGate(shop, then, fitted.cutoff, policy), tier)
    permitting = {
        name
        for subject, since in _since(ConsentGate(shop, ledger, at, policy), tier).items()
        if subject in before and since <= before[subject]
        for name in lineage.names(*subject)
    }
    return Standing(len(members), len(members - permitting))


def _since(gate: ConsentGate, tier: Tier) -> dict[tuple[SubjectKind, str], int]:
    """From when on each subject has permitted, by kind and id."""
    held = gate.holders(tier)
    subjects = zip(held["kind"].to_pylist(), held["subject_id"].to_pylist(), strict=True)
    return dict(zip(subjects, held["since"].to_pylist(), strict=True))
