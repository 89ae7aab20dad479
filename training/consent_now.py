"""Whether all whom a bundle holds still permit it, at this moment and without interruption since."""

from __future__ import annotations

import dataclasses
import datetime as dt

from consentier.consent import Ledger, Policy, Tier
from consentier.consent.records import SubjectKind
from consentier.features.gate import ConsentGate
from consentier.features.tables import ShopTables
from consentier.training.lineage import Lineage, LineageError

__all__ = ["ConsentNow", "Standing"]


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


class ConsentNow:
    """Asks one ledger about everybody whom bundles hold; what was found for one bundle serves the next.

    Parameters
    ----------
    ledger
        The ledger under which the bundles were fitted, as it is now.
    policy
        Its switches decide what counts.

    Notes
    -----
    Bundles of one run, asked one after the other, share two questions about all of the ledger's subjects: how
    they stood when the run began, and how they stand. Then some 20 µs for each bundle and subject that may be
    learnt from.
    """

    def __init__(self, ledger: Ledger, policy: Policy) -> None:
        self._ledger, self._policy = ledger, policy
        self._kept: dict[bool, tuple[tuple[int | None, dt.datetime], ConsentGate]] = {}

    def standing(self, digest: str, tier: Tier, *, lineage: Lineage, at: dt.datetime) -> Standing:
        """How those stand whom a bundle holds.

        A member counts as permitting if the permission holds at `at` and has held since the instant from
        which it counted when the bundle was fitted, by all that the ledger knows now: a withdrawal that was
        recorded late is found too, also where a later grant followed.

        Parameters
        ----------
        digest, tier
            Which bundle.
        lineage
            The index of whom bundles hold.
        at
            The moment. Before the bundle's cut-off nothing can be said.
        """
        try:
            fitted = lineage.bundle(digest)
            members = lineage.members(digest)
        except LineageError as error:
            return Standing(problem=str(error))
        if at < fitted.cutoff:
            cutoff = fitted.cutoff.isoformat()
            return Standing(
                len(members), problem=f"{at.isoformat()} is before the training cut-off, {cutoff}"
            )
        if fitted.ledger_position > self._ledger.position:
            return Standing(
                len(members),
                problem=f"the ledger is at position {self._ledger.position}, the bundle was fitted at "
                f"{fitted.ledger_position}: it is another ledger",
            )
        before = _since(self._gate(fitted.ledger_position, fitted.cutoff), tier)
        permitting = {
            name
            for subject, since in _since(self._gate(None, at), tier).items()
            if subject in before and since <= before[subject]
            for name in lineage.names(*subject)
        }
        return Standing(len(members), len(members - permitting))

    def _gate(self, position: int | None, at: dt.datetime) -> ConsentGate:
        """The gate at an instant, by what the ledger held at a position; None: by all that it holds.

        The last one of then and the last one of now are kept: each holds a row for every subject.
        """
        wanted, kept = (position, at), self._kept.get(position is None)
        if kept is None or kept[0] != wanted:
            ledger = self._ledger if position is None else self._ledger.as_of(position)
            kept = wanted, ConsentGate(ShopTables.empty(), ledger, at, self._policy)
            self._kept[position is None] = kept
        return kept[1]


def _since(gate: ConsentGate, tier: Tier) -> dict[tuple[SubjectKind, str], int]:
    """From when on each subject has permitted, by kind and id."""
    held = gate.holders(tier)
    subjects = zip(held["kind"].to_pylist(), held["subject_id"].to_pylist(), strict=True)
    return dict(zip(subjects, held["since"].to_pylist(), strict=True))
