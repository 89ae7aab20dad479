"""Factors in one byte a number, to find the best items by a quarter of the memory, and exactly.

A request to a factor model reads the factors of all items, and that takes as long as memory needs. Whole
numbers of a step per item say nearly as much. What they leave out is known in length, so the score of an
item is known within a bound: only items that may be among the best by that are scored by their factors. The
list is the same, bit for bit, as that of a scan of all factors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.models.row_scorer import compiled_kernel, plain

__all__ = ["QuantisedFactors"]

_LARGEST_CODE = 127
_LARGEST_WHOLE = 32_767
_LARGEST_SUM = 2**31 - 1


class QuantisedFactors:
    """The factors of some items, rounded to whole numbers of a step. Immutable; safe to use from any thread.

    Parameters
    ----------
    factors
        float32, shape (items, factors), finite. Memory-mapped arrays are read where they are.

    Raises
    ------
    RuntimeError
        Compiled loops cannot be had.

    Notes
    -----
    O(size) time and ``factors + 8`` bytes an item.
    """

    def __init__(self, factors: NDArray[np.float32]) -> None:
        kernel = compiled_kernel()
        if kernel is None:
            raise RuntimeError("quantised factors need compiled loops: install consentier[fast]")
        self._kernel: Any = kernel
        self._codes, self._steps, self._residuals = kernel.quantised(plain(factors))
        # A code is at most 127 steps, and its rounding leaves less than a step out.
        largest = float(self._steps.max(initial=0.0)) * (_LARGEST_CODE + 1)
        self._norm = largest * math.sqrt(factors.shape[1])
        """No row is longer."""

    def near(
        self, vector: NDArray[np.float64], visible: NDArray[np.bool_], n: int
    ) -> NDArray[np.int64] | None:
        """Every visible item that may be one of the `n` best of positive score by `exact_scores`.

        With ``f = s c + r`` for an item (step s, codes c, residual r) and ``y = u w + e`` for the history
        (unit u, whole numbers w), the score ``f · y`` is ``s u (c · w)``, but for ``r · y``, which is at most
        ``|r| |y|``, and ``s c · e``, which is at most ``|s c| |e|``. An item is left out only if n visible
        others have at least the score that it has at most.

        Parameters
        ----------
        vector
            float64, shape (factors,): the history, see `factor_scoring.fold_in`.
        visible
            bool, shape (items,).
        n
            How many items at most, at least 1.

        Returns
        -------
        ndarray of int64, or None
            Ascending; None where numbers are too large for the bound.

        Notes
        -----
        O(items · factors), bound by the memory that the codes take, a byte each.
        """
        size = vector.size
        largest = float(np.abs(vector).max(initial=0.0))
        levels = min(_LARGEST_WHOLE, _LARGEST_SUM // (_LARGEST_CODE * max(size, 1)))
        unit = largest / levels
        length = math.sqrt(size) * largest
        if not (math.isfinite(self._norm * length) and unit > np.finfo(np.float64).tiny):
            return None
        length = min(length, _length(vector))
        whole = np.rint(vector / unit)
        left = _length(vector - whole * unit)
        # The last term: sums of exact scores and of lengths are rounded, too.
        slack = self._norm * (left + length * (size + 4) * 2.0**-50)
        found: NDArray[np.int64] = self._kernel.near_items(
            self._codes,
            self._steps,
            self._residuals,
            visible,
            whole.astype(np.int16),
            unit,
            length,
            slack,
            max(1, min(n, visible.size)),
        )
        return found


def _length(vector: NDArray[np.float64]) -> float:
    """Euclidean length, without overflow and, where it is above all numbers near 0, without underflow."""
    return math.hypot(*vector.tolist())
