"""Directories that appear whole, by one rename, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from consentier.errors import DataError

__all__ = ["require_free", "write_text", "written_beside"]


def require_free(out: Path, *, force: bool) -> None:
    """Check that a directory may be written.

    Raises
    ------
    DataError
        If it is a file, or holds something and `force` is False.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file: give a directory")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise DataError(f"{out}: is not empty: give another directory, or use --force to replace it")


@contextlib.contextmanager
def written_beside(out: Path, *, force: bool) -> Iterator[Path]:
    """Fill a directory beside `out`, which takes its place when the block ends without an error.

    Parameters
    ----------
    out
        The directory to make; its parents are made where absent.
    force
        Replace `out` as a whole, whatever it holds. Otherwise it must be absent or empty.

    Yields
    ------
    Path
        An empty directory to write into. Files in it must be flushed by who writes them (`write_text`).

    Raises
    ------
    DataError
        If `out` is in the way, or anything cannot be written. Nothing is left then; what stood at `out`
        still stands.
    """
    out = Path(out).resolve()
    require_free(out, force=force)
    beside = out.parent / f".{out.name}.{uuid.uuid4().hex}"
    try:
        beside.mkdir(parents=True)
        yield beside
        _flush(beside)
        require_free(out, force=force)
        _move_into_place(beside, out)
        _flush(out.parent)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a new UTF-8 file and flush it to the disk."""
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_into_place(beside: Path, out: Path) -> None:
    """Rename onto `out`; what was there is put back if that fails."""
    if not out.exists():
        beside.rename(out)
        return
    old = beside.with_suffix(".old")
    out.rename(old)
    try:
        beside.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
