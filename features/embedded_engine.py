"""DuckDB in this process, for tables that it reads and forgets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ibis

from consentier.writing import scratch

__all__ = ["embedded_engine"]


@contextlib.contextmanager
def embedded_engine() -> Iterator[ibis.BaseBackend]:
    """Open a DuckDB in memory, and close it.

    Yields
    ------
    ibis.BaseBackend
        What does not fit into its memory it writes into a directory for temporary files that only this user
        may read, and that is gone afterwards. (Left to itself DuckDB takes ``.tmp`` where the process was
        started, with rows of persons in it, and leaves it behind when the process is killed.)

    Raises
    ------
    OSError
        If there is no such directory (``TMPDIR``).
    """
    with scratch("tables") as folder:
        engine = ibis.duckdb.connect(temp_directory=str(folder))
        try:
            yield engine
        finally:
            engine.disconnect()
