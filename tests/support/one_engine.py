"""All engines of a process are connections to one DuckDB.

The gate opens a DuckDB for each thing that it is asked, and closes it, thousands of times in these tests. To
make one takes longer than many a question; a further connection to one that stands takes next to nothing.
Tables in memory are registered with a connection, and no other one sees them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["open_once"]

_IN_MEMORY = ":memory:"


def open_once() -> None:
    """Make Ibis connect to one DuckDB of this process wherever it is asked for one in memory."""
    from ibis.backends.duckdb import Backend

    if not hasattr(Backend.do_connect, "__wrapped__"):
        Backend.do_connect = _connecting(Backend.do_connect)


def _connecting(do_connect: Callable[..., None]) -> Callable[..., None]:
    import duckdb

    standing: dict[int, Any] = {}  # by process: of the one before a fork, only memory is left

    @functools.wraps(do_connect)
    def connecting(
        self: Any,
        database: str = _IN_MEMORY,
        read_only: bool = False,
        extensions: Sequence[str] | None = None,
        **config: Any,
    ) -> None:
        if database != _IN_MEMORY or read_only or set(config) - {"temp_directory"}:
            do_connect(self, database, read_only, extensions, **config)
            return
        process = os.getpid()
        if process not in standing:
            standing[process] = duckdb.connect(_IN_MEMORY, config={"temp_directory": ""})
        self.con = standing[process].cursor()
        self._post_connect(extensions)

    return connecting
