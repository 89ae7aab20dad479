"""Small files that lie where others may write: read with a limit, and never waited for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["read_regular"]


def read_regular(path: Path, most: int) -> bytes:
    """Read a regular file, or what a link leads to if it is one.

    Parameters
    ----------
    path
        The file. A pipe, device or socket in its place is refused: reading one could wait for ever.
    most
        Bytes that are read at most.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    OSError
        If it cannot be read, is no regular file, or is longer.
    """
    # Non-blocking, or opening a pipe that nobody writes to would wait already.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        payload = file.read(most + 1)
    if len(payload) > most:
        raise OSError(errno.EFBIG, f"it is longer than {most} bytes", str(path))
    return payload
