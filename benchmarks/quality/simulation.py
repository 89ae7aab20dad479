"""Interactions of a large catalogue, drawn with little memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["simulated"]

_ROWS_AT_ONCE = 100_000


def simulated(
    items: int, interactions: int, *, exponent: float = 0.8, groups: int | None = None, seed: int = 1
) -> sparse.csr_matrix:
    """Draw users with some taste among items with power-law popularity.

    The k-th item of a group of related items is drawn with weight ``k ** -exponent``. A user has 2 to 48
    items (geometric, 10 on average before doubles are taken out): four fifths from one group, the rest from
    all.

    Parameters
    ----------
    items
        Number of items.
    interactions
        Draws in total; doubles within a user count once, so a few per cent fewer remain.
    exponent
        Of the popularity's power law.
    groups
        Number of groups of related items; by default one per 500 items.
    seed
        Of the generator; the draw does not depend on anything else.

    Returns
    -------
    csr_matrix of float32
        Ones, shape (users, items), canonical.

    Notes
    -----
    Memory: 8 bytes an interaction for the result, and that of 100,000 users at a time besides.
    """
    generator = np.random.default_rng(seed)
    groups = max(1, items // 500) if groups is None else groups
    size = items // groups
    cumulated = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -exponent)
    cumulated /= cumulated[-1]
    blocks, lengths, drawn = [], [], 0
    while drawn < interactions:
        counts = np.minimum(2 + generator.geometric(1 / 9, _ROWS_AT_ONCE) - 1, 48)
        counts = counts[: int(np.searchsorted(np.cumsum(counts), interactions - drawn)) + 1]
        drawn += int(counts.sum())
        block, kept = _draw(generator, counts, groups, size, cumulated)
        blocks.append(block)
        lengths.append(kept)
    indices = np.concatenate(blocks)
    blocks.clear()
    starts = np.concatenate(([0], np.cumsum(np.concatenate(lengths), dtype=np.int64)))
    shape = (len(starts) - 1, items)
    return sparse.csr_matrix((np.ones(len(indices), dtype=np.float32), indices, starts), shape=shape)


def _draw(
    generator: np.random.Generator,
    counts: NDArray[np.int64],
    groups: int,
    size: int,
    cumulated: NDArray[np.float64],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Items of some users, ascending and distinct within a user, and how many each has."""
    user = np.repeat(np.arange(len(counts)), counts)
    group = np.repeat(generator.integers(0, groups, len(counts)), counts)
    wanders = generator.random(len(user)) < 0.2
    group[wanders] = generator.integers(0, groups, int(wanders.sum()))
    rank = np.searchsorted(cumulated, generator.random(len(user)))
    # Popular items stand all over the catalogue, not side by side.
    item = np.minimum(rank, size - 1) * groups + group
    pairs = np.unique(user * np.int64(size * groups) + item)
    return (pairs % (size * groups)).astype(np.int32), np.bincount(
        pairs // (size * groups), minlength=len(counts)
    )
