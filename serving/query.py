"""What a scorer is asked, and what it gives: neither names a person."""

from __future__ import annotations

import dataclasses

from consentier.consent import Side
from consentier.serving.explanations import Explanation
from consentier.serving.item_columns import Expression
from consentier.serving.rules import Mixture

__all__ = ["Query", "Scored"]


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """What is asked, apart from the person: how many items, and which may be shown."""

    n: int
    side: Side
    exclude: frozenset[str] = frozenset()
    allow: frozenset[str] | None = None
    where: Expression | None = None
    explain: bool = False
    at: int = 0
    """The instant, in microseconds since the Unix epoch: what was bought may come again some time after."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """Items with their scores, in the order of the list.

    Attributes
    ----------
    items, scores
        Of the list. Scores descend, but where rules mix.
    unknown_items
        How many items of the history the model does not know.
    mixture
        What the list holds of each capped value, for whoever fills it up; None: nothing yet.
    explanations
        Of each item, where the query asks for them.
    not_again
        Items of the permitted history that are not recommended again, scored or not.
    """

    items: tuple[str, ...]
    scores: tuple[float, ...]
    unknown_items: int = 0
    mixture: Mixture | None = dataclasses.field(default=None, compare=False)
    explanations: tuple[Explanation, ...] | None = None
    not_again: frozenset[str] = frozenset()
