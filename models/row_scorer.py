"""Answers from the sparse rows of a linear model: by compiled loops where there are some, or by NumPy.

Both give the same items and the same scores, bit for bit.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.models.scoring import best_items

__all__ = ["RowScorer", "compiled_ids", "compiled_kernel", "plain"]

_log = logging.getLogger("consentier.models")

_NO_ITEMS = np.empty(0, dtype=np.int64)
_NO_SCORES = np.empty(0, dtype=np.float64)
_COMPILED_FOR = ("int64", "int32", "float32")


class RowScorer:
    """The best items of weighted rows of one matrix. Immutable; safe to use from any number of threads.

    Parameters
    ----------
    indptr, indices, data
        The matrix, as for `models.scoring.score_rows`. Memory-mapped arrays are read where they are.
    hidden, silent, hop_weight, hop_items
        As for `models.scoring.best_items`.
    compiled
        Use compiled loops where they can be had and the arrays are of the types that bundles of this package
        have (int64, int32, float32). They are compiled, or read from the disk, before this returns: see
        `compiled_kernel`.
    """

    def __init__(
        self,
        indptr: NDArray[Any],
        indices: NDArray[Any],
        data: NDArray[Any],
        *,
        hidden: NDArray[np.bool_],
        silent: NDArray[np.bool_],
        hop_weight: float = 0.0,
        hop_items: int = 50,
        compiled: bool = True,
    ) -> None:
        matrix = plain(indptr), plain(indices), plain(data)
        self._model = (*matrix, plain(hidden), plain(silent), float(hop_weight), hop_items)
        fits = tuple(str(array.dtype) for array in matrix) == _COMPILED_FOR
        self._kernel = compiled_kernel() if compiled and fits else None

    @property
    def compiled(self) -> bool:
        """Whether compiled loops answer."""
        return self._kernel is not None

    def best(
        self,
        rows: NDArray[np.int64],
        weights: NDArray[np.float32],
        n: int,
        *,
        added_items: NDArray[np.int64] = _NO_ITEMS,
        added: NDArray[np.float64] = _NO_SCORES,
        barred: NDArray[np.int64] = _NO_ITEMS,
        allowed: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The best items; arguments and result are those of `models.scoring.best_items`.

        Raises
        ------
        IndexError
            A row is outside the matrix.
        """
        asked = rows, weights, added_items, added, barred
        if self._kernel is None:
            return best_items(*self._model, *asked, allowed, n)
        limited = allowed is not None
        found: tuple[NDArray[np.int64], NDArray[np.float64]] = self._kernel.best_items(
            *self._model, *asked, allowed if limited else _NO_ITEMS, limited, n
        )
        return found

    def lists(
        self,
        inputs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]],
        added: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
        barred: tuple[NDArray[np.int64], NDArray[np.int64]],
        n: int,
        first: int,
        last: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """`best` for many requests, in compiled loops only; see `models.compiled_scoring.best_lists`.

        Raises
        ------
        RuntimeError
            Compiled loops cannot be had.
        """
        if self._kernel is None:
            raise RuntimeError("many requests at once need compiled loops: install consentier[train]")
        found: tuple[NDArray[np.int64], NDArray[np.float64]] = self._kernel.best_lists(
            *self._model, *inputs, *added, *barred, n, first, last
        )
        return found

    def dense_lists(
        self,
        inputs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]],
        barred: tuple[NDArray[np.int64], NDArray[np.int64]],
        limits: tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]],
        n: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """`best` for all requests of a batch, `n` at least 1; see `models.compiled_scoring.dense_lists`.

        Raises
        ------
        RuntimeError
            Compiled loops cannot be had.
        """
        if self._kernel is None:
            raise RuntimeError("many requests at once need compiled loops: install consentier[train]")
        found: tuple[NDArray[np.int64], NDArray[np.float64]] = self._kernel.dense_lists(
            *self._model, *inputs, *barred, *limits, n
        )
        return found


@functools.cache
def compiled_kernel() -> ModuleType | None:
    """The compiled loops, ready to run; None where Numba is not installed or does not work.

    Notes
    -----
    The first call in a process imports Numba and compiles the loops, or reads them from Numba's cache on the
    disk; docs/benchmarks.md says how long that takes. Every later call is free.
    """
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        from consentier.models import compiled_ids, compiled_scoring

        _run_once(compiled_scoring, compiled_ids)
    except (ImportError, RuntimeError, OSError) as error:
        # It does not work with this NumPy, or finds no place for its cache. NumPy gives the same answers.
        _log.warning("numba cannot be used, scoring with NumPy: %s: %s", type(error).__name__, error)
        return None
    return compiled_scoring


def compiled_ids() -> ModuleType | None:
    """The compiled look-ups of ids, ready to run; None where `compiled_kernel` is."""
    if compiled_kernel() is None:
        return None
    from consentier.models import compiled_ids

    return compiled_ids


def _run_once(kernel: ModuleType, look_ups: ModuleType) -> None:
    """One answer from an empty matrix, of the types that real ones have: it compiles all of them need."""
    no_flags = np.empty(0, np.bool_)
    arrays = np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), no_flags, no_flags
    asked = _NO_ITEMS, np.empty(0, np.float32), _NO_ITEMS, _NO_SCORES, _NO_ITEMS, _NO_ITEMS
    kernel.best_items(*[plain(array) for array in arrays], 0.0, 1, *asked, False, 1)
    codes = kernel.quantised(plain(np.zeros((1, 1), np.float32)))
    kernel.near_items(*codes, np.ones(1, np.bool_), np.zeros(1, np.int16), 0.0, 0.0, 0.0, 1)
    text = plain(np.empty(0, np.uint8)), plain(np.zeros(1, np.int64))
    table, shift = look_ups.id_table(*text)
    look_ups.numbers_of(text[0], 0, *text, plain(table), shift)
    look_ups.ids_of(_NO_ITEMS, *text)


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers as a plain, read-only array.

    A slice of a memory-mapped array costs microseconds; and loops are compiled once for arrays of one type.
    """
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view
