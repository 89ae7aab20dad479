"""Why an item is in a list: the items of the permitted history that speak for it, and how much each does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from consentier.consent import Source

__all__ = ["FILLED", "NEW", "TITLES", "TRENDING", "Cause", "Explanation", "explained"]

TITLES = ("name", "title")
"""The attributes that say what to call an item; the first that it has."""

_NAMED = 2
"""Causes that a sentence names."""
_LISTED = 5
"""Causes that an explanation holds."""

_VERBS: Mapping[str, str] = {
    Source.SESSION: "you are looking at",
    Source.ONLINE: "you looked at",
    Source.CRM: "you bought or use",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Cause:
    """What speaks for an item.

    Attributes
    ----------
    source
        ``session``, ``online`` or ``crm``; ``attribute`` for master data.
    name
        The id of an item of the history, or the name of an attribute.
    share
        Its part of all that speaks for the item, above 0 and at most 1.
    """

    source: str
    name: str
    share: float


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """Why an item is in a list.

    Attributes
    ----------
    causes
        The strongest first, five at most; what may not be shown is not named. Empty where nothing of the
        person was read for the item.
    text
        A sentence for a shop's page.
    """

    causes: tuple[Cause, ...]
    text: str


FILLED = Explanation((), "Popular in this shop")
NEW = Explanation((), "New in this shop")
TRENDING = Explanation((), "Popular in this shop right now")


def explained(causes: Sequence[Cause], names: Mapping[str, str]) -> Explanation:
    """Put the causes of an item in order and in words.

    Parameters
    ----------
    causes
        All that may be named, with their shares.
    names
        What to call items in a sentence, by id; others are called by their ids.
    """
    strongest = sorted(causes, key=lambda cause: (-cause.share, cause.source, cause.name))[:_LISTED]
    items = [cause for cause in strongest if cause.source != "attribute"][:_NAMED]
    if items:
        parts = [f"{_VERBS[cause.source]} {names.get(cause.name, cause.name)}" for cause in items]
        text = f"Because {' and '.join(dict.fromkeys(parts))}"
    elif strongest:
        text = "Chosen for customers like you"
    else:
        text = "Goes with what is read for this list"
    return Explanation(tuple(strongest), text)
