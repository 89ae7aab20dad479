"""Files and directories that appear whole, by one rename, or not at all.

They are written under another name in the same directory, flushed to the disk, and renamed. Whoever looks
meanwhile sees the old one; whatever fails leaves the old one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["REPLACED", "flush", "put_directory", "remove_directory", "sibling", "whole_file", "write_new"]

REPLACED = ".replaced"
"""How the hidden name of a directory ends that a newer one has replaced."""


def sibling(path: Path, suffix: str = "") -> Path:
    """A hidden name beside a path that nothing has yet: ``.NAME.`` and 16 hexadecimal digits."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{suffix}")


def flush(path: Path) -> None:
    """Bring a file's content, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, payload: bytes, *, mode: int = 0o666) -> None:
    """Write a file that must not exist yet, and bring it to the disk.

    Raises
    ------
    FileExistsError
        If it exists, be it as a link.
    OSError
        If it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place to write a file in, which takes the name `path` when the block ends without an error.

    Raises
    ------
    OSError
        If it cannot be renamed or brought to the disk. What was written is removed then; a file that stood
        at `path` still stands.
    """
    beside = sibling(path, ".tmp")
    try:
        yield beside
        flush(beside)
        beside.replace(path)
        flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def put_directory(partial: Path, target: Path) -> Path | None:
    """Rename a new directory to `target` and make that durable; on an error everything is put back.

    Returns
    -------
    Path or None
        Where the directory that stood there before stands now, for the caller to delete; None without one.
    """
    aside = sibling(target, REPLACED) if target.exists() else None
    if aside is not None:
        target.rename(aside)
    try:
        partial.rename(target)
        try:
            flush(target.parent)
        except BaseException:
            target.rename(partial)
            raise
    except BaseException:
        if aside is not None:
            aside.rename(target)
        raise
    return aside


def remove_directory(path: Path) -> None:
    """Delete a directory so that nobody sees a part of it."""
    aside = sibling(path, REPLACED)
    path.rename(aside)
    shutil.rmtree(aside)
