"""What a shop gets back: items, the tier that answered, and what the answer rests on."""

from __future__ import annotations

import dataclasses
from typing import Any

from consentier.consent import Tier
from consentier.serving.explanations import Explanation

__all__ = ["Answer", "Basis"]


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
        The instant that the request named, ISO 8601; None where it named none.
    lifetimes_version
        Which rules said how old a grant may grow; None without a ledger.
    experiment, arm
        The experiment that the answer took part in, and the arm that gave it; None without one.
    trending_digest
        The snapshot of what is trending, where it bore on what fills up the list; None elsewhere.
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

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain values for JSON."""
        return dataclasses.asdict(self)
