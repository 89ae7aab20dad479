"""How much less an older event counts: the same bits in training, in serving and on every machine."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["FRACTIONS", "MICROSECONDS_PER_DAY", "microseconds_of_days", "recency_weight", "recency_weights"]

MICROSECONDS_PER_DAY = 86_400_000_000

_STEPS = 8
# 2 ** (-k / 8): square roots and products are rounded alike everywhere, powers of a C library are not.
_EIGHTH = math.sqrt(math.sqrt(math.sqrt(0.5)))
_QUARTER, _HALF = math.sqrt(math.sqrt(0.5)), math.sqrt(0.5)
FRACTIONS = (
    1.0,
    _EIGHTH,
    _QUARTER,
    _QUARTER * _EIGHTH,
    _HALF,
    _HALF * _EIGHTH,
    _HALF * _QUARTER,
    _HALF * _QUARTER * _EIGHTH,
)
"""``2 ** (-k / 8)`` for k from 0 to 7."""


def microseconds_of_days(days: float) -> int:
    """A half-life in whole microseconds, at least one.

    Raises
    ------
    ValueError
        Not a number above 0 and at most a million.
    """
    if not 0 < days <= 1e6:
        raise ValueError(f"a half-life must be a number of days above 0 and at most a million, got {days!r}")
    return max(1, round(days * MICROSECONDS_PER_DAY))


def recency_weight(age: int, half_life: int) -> float:
    """Weigh one event by ``2 ** (-age / half_life)``, with the age rounded down to eighths of a half-life.

    Parameters
    ----------
    age
        Microseconds before the newest event of the same history; at least 0.
    half_life
        Microseconds, above 0.

    Returns
    -------
    float
        In (0, 1], or 0 for ages beyond a thousand half-lives.
    """
    halvings, eighths = divmod(_STEPS * age // half_life, _STEPS)
    return math.ldexp(FRACTIONS[eighths], -halvings)


def recency_weights(ages: NDArray[np.int64], half_life: int) -> NDArray[np.float64]:
    """Weigh many events as `recency_weight` does.

    Parameters
    ----------
    ages
        int64, shape (n,): microseconds, at least 0.
    half_life
        Microseconds, above 0.

    Returns
    -------
    ndarray of float64
        Shape (n,). O(n).
    """
    halvings, eighths = np.divmod(_STEPS * ages // half_life, _STEPS)
    weights: NDArray[np.float64] = np.ldexp(np.array(FRACTIONS)[eighths], -np.minimum(halvings, 2000))
    return weights
