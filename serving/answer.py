"""What a shop gets back: items, the tier that answered, and what the answer rests on."""

from __future__ import annotations

import dataclasses
from typing import Any

from consentier.consent import Tier
from consentier.serving.explanations import Explanation

__all__ = ["Answer", "Basis", "Exploration"]


@dataclasses.dataclass(frozen=True, slots=True)
class Exploration:
    """What an answer holds by chance, because it is new.

    Attributes
    ----------
    seed
        What was drawn with: 16 hexadecimal digits, random for each request.
    pool
        How many new items there were to draw from, all as likely.
    slots
        How many were to be drawn.
    items
        Which of them stand in the answer, behind all others. Caps may have kept some out.
    """

    seed: str
    pool: int
    slots: int
    items: tuple[str, ...]

    @property
    def propensity(self) -> float:
        """With which probability each item of the pool was drawn, the number of slots given; before caps."""
        return min(1.0, self.slots / self.pool)


@dataclasses.dataclass(frozen=True, slots=True)
class Basis:
    """What an answer rests on: enough to account for it, and to give it again from the same inputs.

    Attributes
    ----------
    reason
        Why this tier answered, in one sentence.
    reasons
        Every step on the way: permissions, routing, each tier that was passed over and why.
    state, side
        The cell of the routing matrix.
    policy_version
        The policy that chose.
    bundle_digest
        The bundle that scored; None where no model did.
    fill_digest
        The popular bundle, where its items fill up the list, or it says what is new.
    sources
        What was read about the person.
    input_digests
        Keyed digests of what was read, by source. Empty where no permission was given: at the first level an
        answer carries nothing by which a person or a session could be recognised.
    ledger_position
        The ledger's position; None without a ledger.
    contact
        Channels in which the person may be contacted; None where no ledger says.
    unknown_items
        Items of the permitted history that the model does not know.
    filled
        Items of the answer that are not scored by the tier but fill up the list.
    at
        The instant that the request named, ISO 8601; None where it named none, or one that was past: the
        answer is one of now then.
    lifetimes_version
        Which rules said how old a grant may grow; None without a ledger.
    experiment, arm
        The experiment that the answer took part in, and the arm that gave it; None without one.
    trending_digest
        The snapshot of what is trending, where it bore on what fills up the list; None elsewhere.
    exploration
        What was drawn by chance because it is new; None where nothing was.
    """

    reason: str
    reasons: tuple[str, ...]
    state: str
    side: str
    policy_version: str
    bundle_digest: str | None
    fill_digest: str | None
    sources: tuple[str, ...]
    input_digests: dict[str, str]
    ledger_position: int | None
    contact: tuple[str, ...] | None
    unknown_items: int
    filled: int
    at: str | None
    lifetimes_version: str | None = None
    experiment: str | None = None
    arm: str | None = None
    trending_digest: str | None = None
    exploration: Exploration | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Recommended items, best first, with their scores and their basis.

    `scores` never increase, but where business rules ask for diversity; items that only fill up the list have
    score 0. `answer_id`, in an experiment, is what impressions, clicks and purchases name; it is random, and
    two equal answers may differ in it. `explanations`, one per item, and the `main_parameters` of the tier in
    plain words are there where the request asks for them.
    """

    items: tuple[str, ...]
    scores: tuple[float, ...]
    tier: Tier
    basis: Basis
    answer_id: str | None = dataclasses.field(default=None, compare=False)
    explanations: tuple[Explanation, ...] | None = None
    main_parameters: tuple[str, ...] | None = None

    @property
    def scored(self) -> int:
        """How many items, the first ones, the tier scored; what fills up follows, then what is new."""
        if self.tier is Tier.POPULAR:
            return 0
        drawn = self.basis.exploration
        return len(self.items) - self.basis.filled - (0 if drawn is None else len(drawn.items))

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain values for JSON."""
        return dataclasses.asdict(self)
