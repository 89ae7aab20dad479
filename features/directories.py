"""Directories that appear whole, by one rename, or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from consentier.errors import DataError
from consentier.writing import flush, put_directory, workplace, write_new

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
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with workplace(out) as beside:
            yield beside
            flush(beside)
            require_free(out, force=force)
            replaced = put_directory(beside, out)
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a new UTF-8 file and flush it to the disk."""
    write_new(path, text.encode("utf-8"))
