"""Counts of persons that are too small to publish, and what else must stay out so that nobody subtracts them.

A total and its parts are published together, so one withheld part would be the total less the others.
Further parts are withheld until that difference says little: it holds at least two parts, and at least three
times the threshold ("complementary suppression"; Hundepool et al. 2012, "Statistical disclosure control",
chapter 4). They are taken in the order in which they stand, whatever their counts. To take the smallest would
cost the reader less, but tells who knows that rule how the parts compare: some tables could be worked out.

Zero counts as small: "nobody of these" is a statement about each one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

__all__ = ["PublishedShare", "published_counts", "published_share"]


def published_counts(counts: Sequence[int], threshold: int) -> tuple[int | None, list[int | None]]:
    """The total and its parts as they may be published.

    Parameters
    ----------
    counts
        Persons in each part; every person is in one.
    threshold
        Smaller counts are withheld; 1 or more.

    Returns
    -------
    total : int or None
        None if it is withheld, and with it every part.
    parts : list of int or None
        None where a part is withheld. The parts withheld are two or more, and add up to three times the
        threshold or more where there are enough parts, so that no difference tells one of them.

    Raises
    ------
    ValueError
        If the threshold is below 1 or a count is negative.
    """
    if threshold < 1 or min(counts, default=0) < 0:
        raise ValueError("the threshold must be 1 or more, and no count negative")
    total = sum(counts)
    nothing: list[int | None] = [None] * len(counts)
    if total < threshold:
        return None, nothing
    out = {number for number, count in enumerate(counts) if count < threshold}
    others = [number for number in range(len(counts)) if number not in out]
    while out and others and (len(out) < 2 or sum(counts[number] for number in out) < 3 * threshold):
        out.add(others.pop(0))
    return total, [None if number in out else count for number, count in enumerate(counts)]


@dataclasses.dataclass(frozen=True, slots=True)
class PublishedShare:
    """A share of a group as it may be published.

    Attributes
    ----------
    value
        The share, or the bound of it; None where nothing is said.
    says
        ``exactly``; ``above`` or ``below`` where the few on the other side are too few to be counted out;
        ``nothing`` where the whole group is too small for that.
    """

    value: float | None
    says: Literal["exactly", "above", "below", "nothing"]


def published_share(part: int, whole: int | None, threshold: int) -> PublishedShare:
    """How large a part of a group is, unless that would count out fewer than the threshold.

    Parameters
    ----------
    part
        Persons in the part.
    whole
        Persons in the group; None where their number is withheld.
    threshold
        As in `published_counts`. Where the part, or the rest, is smaller, only that is said. A group of less
        than twice the threshold gets no figure.
    """
    if whole is None or whole < 2 * threshold:
        return PublishedShare(None, "nothing")
    if part < threshold:
        return PublishedShare(threshold / whole, "below")
    if whole - part < threshold:
        return PublishedShare(1 - threshold / whole, "above")
    return PublishedShare(part / whole, "exactly")
