"""Files and directories that appear whole, by one rename, or not at all.

They are written in a hidden place beside theirs, flushed to the disk, and renamed. Whoever looks meanwhile
sees the old one; whatever fails leaves the old one. A process that is killed leaves its hidden place behind:
the next one that writes the same thing removes it. A lock that ends with its process tells a remnant from
the place of a writer who is still at work.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "REPLACED",
    "flush",
    "put_directory",
    "remnants",
    "remove_directory",
    "remove_remnants",
    "remove_remnants_in",
    "scratch",
    "sibling",
    "whole_file",
    "workplace",
    "write_new",
]

REPLACED = ".replaced"
"""How the hidden name of a directory ends that a newer one has replaced."""

_REMOVED = ".removed"
_TOKEN = r"[0-9a-f]{16}"
_SUFFIX = r"(\.[a-z.]+)?"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


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


# ---- Hidden places -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def workplace(path: Path, suffix: str = "", *, mode: int = 0o777, sweep: bool = True) -> Iterator[Path]:
    """A new hidden directory beside a path, which is gone afterwards unless it was renamed.

    Parameters
    ----------
    path
        What is to be written.
    suffix
        How the hidden name ends.
    mode
        Rights of the directory, less the process's umask.
    sweep
        Remove first what killed writers of the same path left. False where `remove_remnants_in` was called
        for the whole folder: it spares listing it for each of many files.

    Raises
    ------
    OSError
        If it cannot be made.

    Notes
    -----
    The directory is locked (``flock``) for as long as the block lasts. Where the file system has no locks,
    remnants stay, and so does what others are writing.
    """
    if sweep:
        remove_remnants(path)
    place, descriptor = _new_locked(path, suffix, mode)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(descriptor)


def remove_remnants(path: Path) -> None:
    """Remove the hidden places beside a path whose writers were killed, if they are this user's.

    Notes
    -----
    Lists the directory of the path.
    """
    _remove_unlocked(path.parent, _hidden_names(path))


def remnants(path: Path) -> list[Path]:
    """The hidden places beside a path whose writers were killed, if they are this user's."""
    return list(_unlocked(path.parent, _hidden_names(path)))


def _hidden_names(path: Path) -> re.Pattern[str]:
    return re.compile(re.escape(f".{path.name}.") + _TOKEN + _SUFFIX)


def remove_remnants_in(folder: Path) -> None:
    """As `remove_remnants`, for whatever was to be written into a folder that is ours alone."""
    _remove_unlocked(folder, re.compile(r"\..+\." + _TOKEN + _SUFFIX))


@contextlib.contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A directory for temporary files, for this user only, which is gone afterwards.

    Parameters
    ----------
    purpose
        Part of its name. What killed processes left under the same name is removed first.
    """
    with workplace(Path(tempfile.gettempdir()) / f"consentier-{purpose}", mode=0o700) as place:
        yield place


@contextlib.contextmanager
def whole_file(path: Path, *, sweep: bool = True, private: bool = False) -> Iterator[Path]:
    """A place to write a file in, which takes the name `path` when the block ends without an error.

    Parameters
    ----------
    path
        The file.
    sweep
        As for `workplace`.
    private
        Let its owner alone read it: it names persons. Otherwise the process's umask decides.

    Raises
    ------
    OSError
        If it cannot be renamed or brought to the disk. What was written is removed then; a file that stood
        at `path` still stands.
    """
    with contextlib.ExitStack() as stack:
        with _told_of(path):
            place = stack.enter_context(workplace(path, ".tmp", mode=0o700, sweep=sweep))
        beside = place / path.name
        yield beside
        if private:
            beside.chmod(0o600)
        flush(beside)
        with _told_of(path):
            beside.replace(path)
            flush(path.parent)


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Tell what fails of the file that is to be, and not of a hidden place that nobody knows."""
    try:
        yield
    except OSError as error:
        why = f"cannot be written: {error.strerror or error}"
        raise OSError(error.errno or errno.EIO, why, str(path)) from error


def _new_locked(path: Path, suffix: str, mode: int) -> tuple[Path, int]:
    """A new hidden directory, and the open descriptor that holds its lock."""
    while True:
        place = sibling(path, suffix)
        place.mkdir(mode)
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # somebody took it for a remnant before it was locked
        if not _lock(descriptor) or not place.exists():
            os.close(descriptor)
            continue
        return place, descriptor


def _lock(descriptor: int) -> bool:
    """Lock what is open, if nobody else has; True also where the file system has no locks."""
    import fcntl  # here, for only writers need it: answering works where there is none

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.ENOSYS):
            return True
        raise
    return True


def _remove_unlocked(folder: Path, name: re.Pattern[str]) -> None:
    """Remove what has such a name in a directory, is this user's, and is locked by nobody."""
    for remnant in _unlocked(folder, name):
        with contextlib.suppress(OSError):
            if remnant.is_dir():
                shutil.rmtree(remnant, ignore_errors=True)
            else:
                remnant.unlink()


def _unlocked(folder: Path, name: re.Pattern[str]) -> Iterator[Path]:
    """What has such a name, is this user's, and is locked by nobody: locked while the caller looks at it."""
    import fcntl

    try:
        found = [Path(entry) for entry in os.scandir(folder) if name.fullmatch(entry.name)]
    except OSError:
        return
    for remnant in found:
        # It may be a link that somebody put there, or gone already.
        with contextlib.suppress(OSError):
            descriptor = os.open(remnant, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if os.fstat(descriptor).st_uid != os.geteuid():
                    continue
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield remnant
            finally:
                os.close(descriptor)


# ---- Directories that take the place of another ------------------------------------------------------------


def put_directory(partial: Path, target: Path) -> Path | None:
    """Rename a new directory to `target` and make that durable; on an error everything is put back.

    Returns
    -------
    Path or None
        Where the directory that stood there before stands now, for the caller to delete; None without one.

    Notes
    -----
    On Linux the two directories change places in one step, on the file systems that can (ext4, XFS, Btrfs,
    tmpfs). Elsewhere there is a moment between two renames in which `target` is missing; who is killed in it
    leaves it missing.
    """
    if not target.exists():
        partial.rename(target)
        try:
            flush(target.parent)
        except BaseException:
            target.rename(partial)
            raise
        return None
    aside = sibling(target, REPLACED)
    if _exchanged(partial, target):
        try:
            flush(target.parent)
            partial.rename(aside)
        except BaseException:
            _exchanged(partial, target)
            raise
        return aside
    with _held(target):
        target.rename(aside)
        try:
            partial.rename(target)
            try:
                flush(target.parent)
            except BaseException:
                target.rename(partial)
                raise
        except BaseException:
            aside.rename(target)
            raise
    return aside


def remove_directory(path: Path) -> None:
    """Delete a directory so that nobody sees a part of it; remnants of killed writers go too.

    Raises
    ------
    OSError
        If it cannot be renamed or deleted. What is renamed already, the next writer of the same path removes.
    """
    remove_remnants(path)
    aside = sibling(path, _REMOVED)
    with _held(path):
        path.rename(aside)
        shutil.rmtree(aside)


def _exchanged(one: Path, two: Path) -> bool:
    """Let two names change places in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two))
    if renameat2(*names, _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(two))


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Keep a directory from being taken for a remnant, whatever its name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)
