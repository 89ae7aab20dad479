"""Temporary files of tests stand in memory, where there is a file system for it that is large enough.

What consentier writes it flushes to the disk, thousands of times in these tests, and each time waits some
milliseconds. No test asks what becomes of files when the power fails: what one kills, or gives too little
room, is a process, and its files are the same on any file system.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["keep_in_memory"]

_PLACE = Path("/dev/shm")  # of Linux; in a container often 64 MB, and closed to programs

_ROOM = 2 * 2**30
"""Bytes: several times what all tests hold at once."""


def keep_in_memory(environment: MutableMapping[str, str], place: Path = _PLACE, room: int = _ROOM) -> None:
    """Have this process, and those that it starts, make temporary files in memory.

    Parameters
    ----------
    environment
        The variables of this process. Where they name a place already (``TMPDIR``), it stays.
    place
        Where a file system in memory may be found.
    room
        How many bytes must be free there.
    """
    if "TMPDIR" in environment or not _is_fit(place, room):
        return
    environment["TMPDIR"] = str(place)
    tempfile.tempdir = None  # asked anew


def _is_fit(place: Path, room: int) -> bool:
    return (
        place.is_dir()
        and os.access(place, os.W_OK | os.X_OK)
        and shutil.disk_usage(place).free >= room
        and not os.statvfs(place).f_flag & os.ST_NOEXEC
    )
