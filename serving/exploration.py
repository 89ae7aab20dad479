"""Slots of a list for what is new: items that nobody has had yet get seen, by chance and on record.

Which items are drawn depends on a random seed of the request and on what may be shown, on nobody's data. The
seed stands in the answer's basis, so that the draw can be made again, with the probability that it had.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence

from consentier.serving.answer import Answer, Exploration
from consentier.serving.explanations import NEW

__all__ = ["draws", "new_seed", "renewed", "slots_of", "with_explored"]


def new_seed() -> str:
    """A seed for one request, from the system's source of randomness."""
    return secrets.token_hex(8)


def slots_of(share: float, n: int, seed: str) -> int:
    """How many slots of n are for what is new: share · n on average over seeds, rounded up or down."""
    exact = share * n
    return math.floor(exact) + (_uniform(f"{seed}:slots") < exact % 1)


def draws(seed: str, size: int) -> Iterator[int]:
    """The numbers below `size` in a random order that the seed decides, each once.

    A Fisher-Yates shuffle, as far as it is looked at; its random numbers are SHA-256 of the seed and a
    counter, so the order is the same with every version of every library.
    """
    moved: dict[int, int] = {}
    for place in range(size):
        other = place + int(_uniform(f"{seed}:{place}") * (size - place))
        yield moved.get(other, other)
        moved[other] = moved.get(place, place)


def with_explored(
    listed: Sequence[str], n: int, slots: int, drawn: Iterable[str], fits: Callable[[str], bool]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put new items into the last slots of a list.

    Parameters
    ----------
    listed
        The list without them, best first.
    n
        How many items the list may have.
    slots
        How many of them are for what is new.
    drawn
        New items in the order in which they were drawn; none stands among the first ``n - slots``.
    fits
        Whether one more item keeps to the caps; if so, it is counted.

    Returns
    -------
    listed, explored
        What stays of the list, and the new items that stand behind it. Where caps would leave the list
        shorter than it was, it stays as it was.
    """
    kept, rest = listed[: n - slots], listed[n - slots :]
    for item in kept:
        fits(item)
    explored = _as_many_as(slots, drawn, fits)
    others = (item for item in rest if item not in explored)
    stays = _as_many_as(n - len(kept) - len(explored), others, fits)
    if len(kept) + len(stays) + len(explored) < len(listed):
        return tuple(listed), ()
    return (*kept, *stays), tuple(explored)


def _as_many_as(most: int, items: Iterable[str], fits: Callable[[str], bool]) -> list[str]:
    found: list[str] = []
    for item in items:
        if len(found) == most:
            break
        if fits(item):
            found.append(item)
    return found


def renewed(answer: Answer, listed: Sequence[str], exploration: Exploration, drawn_from: str) -> Answer:
    """An answer with what stays of its list, and what was drawn behind it.

    Parameters
    ----------
    answer
        Without anything drawn.
    listed
        What stays of its items.
    exploration
        What was drawn.
    drawn_from
        Digest of the popular bundle, whose counts say what is new.
    """
    places = {item: place for place, item in enumerate(answer.items)}
    stay = [places[item] for item in listed]
    scored = len(answer.items) - answer.basis.filled
    new = exploration.items
    whys = answer.explanations
    return dataclasses.replace(
        answer,
        items=(*listed, *new),
        scores=(*(answer.scores[place] for place in stay), *(0.0,) * len(new)),
        explanations=None if whys is None else (*(whys[place] for place in stay), *(NEW,) * len(new)),
        basis=dataclasses.replace(
            answer.basis,
            filled=sum(place >= scored for place in stay),
            fill_digest=drawn_from,
            exploration=exploration,
        ),
    )


def _uniform(text: str) -> float:
    """A number of at least 0 and below 1."""
    return (int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big") >> 11) / 2**53
