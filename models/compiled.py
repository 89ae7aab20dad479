"""The one way in which this package compiles numeric loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

__all__ = ["compiled"]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def compiled(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Compile a loop with Numba, release the interpreter lock in it, and cache the machine code on disk.

    ``fastmath`` stays off: sums are added in the order written, and products are not fused into them, so
    results do not depend on vector width.
    """
    return cast(
        "Callable[_Parameters, _Result]", numba.njit(nogil=True, cache=True, fastmath=False)(function)
    )
