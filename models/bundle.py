"""The bundle: one trained model as a directory of plain arrays and a manifest, without pickle.

::

    my-model/
    ├── manifest.json      what the model is, what it read, and the SHA-256 of every array
    ├── item_ids.npy       C-order, little-endian, memory-mapped on load
    ├── …
    └── run.json           optional facts of the run, outside the digest

The *digest* of a bundle is the SHA-256 of its manifest. The manifest holds the SHA-256 of every array, so the
digest covers the manifest and the arrays exactly, and nothing else: not the time, the place or the run. The
same permitted rows give the same digest.

Reading trusts nothing: what the manifest does not announce is refused, by name and reason, and array headers
are compared with the manifest, never parsed. Hashes prove integrity, not authorship. Anybody who can write
the directory can write a consistent one; so pin the digest where the bundle is registered and pass it as
`expected_digest`.

Here bundles are read. `models.bundle_writing` writes them; `models.bundle_manifest` knows what a manifest and
the header of an array must be, `models.bundle_arrays` what the arrays of the format must hold.

The format is specified in ``docs/bundle-format.md``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.errors import BundleAltered, BundleError, BundleMalformed, BundleMissing
from consentier.models.bundle_arrays import reserved_findings
from consentier.models.bundle_manifest import (
    DTYPES,
    FORMAT_VERSION,
    JSON,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    MAX_RUN_BYTES,
    PARTIAL,
    RUN_FILE,
    TIERS,
    FileEntry,
    Manifest,
    canonical_json,
    digest_of,
    malformed,
    npy_header,
    parse_json,
    parse_manifest,
    shown,
)
from consentier.models.bundle_writing import write_bundle, write_run
from consentier.writing import REPLACED

__all__ = [
    "FORMAT_VERSION",
    "JSON",
    "TIERS",
    "Bundle",
    "FileEntry",
    "Manifest",
    "open_bundle",
    "read_run",
    "verify_bundle",
    "write_bundle",
    "write_run",
]

_OPEN_ATTEMPTS = 20

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([^']*)', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)


@dataclass(frozen=True, eq=False)
class Bundle:
    """An open bundle.

    Parameters
    ----------
    path
        The directory.
    manifest
        Its manifest.
    digest
        ``"sha256:"`` and the hexadecimal SHA-256 of the manifest file.
    arrays
        Array name to a read-only array over the mapped file. The mappings stay valid when the directory is
        replaced or deleted.
    """

    path: Path
    manifest: Manifest
    digest: str
    arrays: Mapping[str, NDArray[Any]]


def open_bundle(
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    expected_digest: str | None = None,
    threads: int | None = None,
) -> Bundle:
    """Open a bundle and map its arrays.

    Parameters
    ----------
    path
        The directory. It may itself be a symbolic link; nothing inside it may.
    verify
        Read every array once: compare its SHA-256 and check the reserved ones (item index, weights, factors).
        False checks manifest, listing, sizes and headers only and reads no payload.
    expected_digest
        The digest that a registry pinned. It is compared before the manifest is parsed.
    threads
        How many verify at once. By default one a core, as fast as it gets; with 1, whatever else the machine
        does is held up least.

    Returns
    -------
    Bundle
        Its arrays are read-only plain arrays whose base is an ``np.memmap``.

    Raises
    ------
    BundleMissing
        There is no bundle at `path`.
    BundleAltered
        The digest is not `expected_digest`, or a file was changed after the bundle was written.
    BundleMalformed
        The manifest or an array is not what the format says, or there are files that do not belong.
    BundleUnsupported
        The format version is not one that this release reads.
    BundleError
        The operating system cannot read it (its message is included).
    ValueError
        `expected_digest` is not of the form ``sha256:<64 hexadecimal digits>``.

    Notes
    -----
    Without `verify` below a millisecond, whatever the size. With it, about the time of one SHA-256 over all
    files. No array is copied: processes on one machine share the pages.
    """
    if expected_digest is not None and not _DIGEST.fullmatch(expected_digest):
        raise ValueError(
            f"expected_digest must be 'sha256:' and 64 hexadecimal digits, got {expected_digest!r}"
        )
    directory = Path(path)
    for _ in range(_OPEN_ATTEMPTS - 1):
        before = _identity(directory)
        try:
            return _open_once(directory, verify, expected_digest, threads)
        except BundleError:
            # A writer that replaces the bundle renames twice; look again at what it leaves.
            if _identity(directory) == before and (before is not None or not _moved_aside(directory)):
                raise
            time.sleep(0.01)
    return _open_once(directory, verify, expected_digest, threads)


def verify_bundle(path: str | os.PathLike[str]) -> list[str]:
    """Check everything in a bundle and go on after a finding.

    Returns
    -------
    list of str
        What is wrong, one text per file or rule; empty for an intact bundle.

    Raises
    ------
    BundleMissing
        There is no bundle at `path`.
    BundleError
        The operating system cannot read it.
    """
    directory = Path(path)
    findings: list[str] = []
    with _opened_directory(directory) as descriptor:
        try:
            manifest, _ = _read_manifest(directory, descriptor, None)
        except BundleMissing:
            raise
        except BundleError as error:
            return [str(error)]
        try:
            _check_listing(directory, descriptor, manifest)
        except BundleError as error:
            findings.append(str(error))
        arrays: dict[str, NDArray[Any]] = {}
        for name, entry in manifest.files.items():
            try:
                arrays[name] = _map_array(directory, descriptor, name, entry, verify=True)
            except BundleError as error:
                findings.append(str(error))
    findings.extend(str(finding) for finding in reserved_findings(directory, manifest, arrays))
    return findings


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the side-car ``run.json`` of a bundle.

    Raises
    ------
    BundleMissing
        There is no bundle at `path`, or it has no ``run.json``.
    BundleMalformed
        ``run.json`` is not a JSON object.
    """
    directory = Path(path)
    with _opened_directory(directory) as descriptor:
        payload = _read_small(directory, descriptor, RUN_FILE, MAX_RUN_BYTES)
    return parse_json(directory, RUN_FILE, payload)


def _open_once(path: Path, verify: bool, expected_digest: str | None, threads: int | None) -> Bundle:
    # Every file is opened relative to one descriptor, so a directory that is swapped meanwhile cannot mix.
    with _opened_directory(path) as descriptor:
        manifest, digest = _read_manifest(path, descriptor, expected_digest)
        _check_listing(path, descriptor, manifest)
        # SHA-256 runs without the interpreter's lock.
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            mapped = pool.map(
                lambda file: _map_array(path, descriptor, *file, verify=verify), manifest.files.items()
            )
            arrays = dict(zip(manifest.files, mapped, strict=True))
    if verify:
        for finding in reserved_findings(path, manifest, arrays):
            raise finding
    return Bundle(path, manifest, digest, MappingProxyType(arrays))


@contextmanager
def _opened_directory(path: Path) -> Iterator[int]:
    real = Path(os.path.realpath(path)).name  # unlike Path.resolve it bears a loop of links
    if real.startswith(".") and real.endswith(PARTIAL):
        raise BundleMalformed(
            f"bundle {path}: half-written, its writer was interrupted; delete it and publish the model again"
        )
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        aside = _moved_aside(path)
        hint = "check the path, or train and publish first"
        if aside:
            hint = f"an interrupted replacement left the former one at {aside[0]}; rename it back"
        raise BundleMissing(f"bundle {path}: there is no such directory; {hint}") from None
    except NotADirectoryError:
        raise BundleMissing(f"bundle {path}: not a directory; give the directory of the bundle") from None
    except OSError as error:
        raise BundleError(f"bundle {path}: cannot be opened ({error.strerror})") from error
    try:
        yield descriptor
    except OSError as error:
        raise BundleError(f"bundle {path}: cannot be read ({error})") from error
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Which directory stands there: one that was removed may have left its number to the next."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _moved_aside(path: Path) -> list[Path]:
    """Bundles that a replacement of `path` renamed away and did not delete yet."""
    target = Path(os.path.realpath(path))
    pattern = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{16}" + re.escape(REPLACED))
    try:
        return sorted(entry for entry in target.parent.iterdir() if pattern.fullmatch(entry.name))
    except OSError:
        return []


@contextmanager
def _opened_file(path: Path, descriptor: int, name: str) -> Iterator[BufferedReader]:
    """Open a regular file of the bundle, and nothing else: no link, pipe or device."""

    def opener(_: str, flags: int) -> int:
        # Non-blocking, so that a pipe in the place of a file cannot hang the reader.
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)

    try:
        file = open(str(path / name), "rb", opener=opener)  # noqa: SIM115 - Path.open takes no opener
    except FileNotFoundError:
        raise BundleMissing(
            f"bundle {path}: {name} is missing; check the path, or publish the model again"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # link, socket, directory
            raise
        malformed(path, name, "is not a regular file")
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            malformed(path, name, "is not a regular file")
        yield file


def _read_small(path: Path, descriptor: int, name: str, limit: int) -> bytes:
    with _opened_file(path, descriptor, name) as file:
        payload = file.read(limit + 1)
    if len(payload) > limit:
        malformed(path, name, f"is larger than {limit} bytes")
    return payload


def _read_manifest(path: Path, descriptor: int, expected_digest: str | None) -> tuple[Manifest, str]:
    payload = _read_small(path, descriptor, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    digest = digest_of(payload)
    if expected_digest is not None and digest != expected_digest:
        raise BundleAltered(
            f"bundle {path}: {MANIFEST_FILE} has the digest {digest}, expected {expected_digest}; it is "
            "another bundle or was changed: fetch it again from where it was registered"
        )
    document = parse_json(path, MANIFEST_FILE, payload)
    manifest = parse_manifest(path, document)
    if canonical_json(document) != payload:
        raise BundleAltered(
            f"bundle {path}: {MANIFEST_FILE} is not in canonical form, so it was edited after it was "
            "written; publish the model again"
        )
    return manifest, digest


def _check_listing(path: Path, descriptor: int, manifest: Manifest) -> None:
    expected = {MANIFEST_FILE, RUN_FILE, *(f"{name}.npy" for name in manifest.files)}
    with os.scandir(descriptor) as listing:
        for entry in listing:
            if entry.name not in expected:
                malformed(
                    path, shown(entry.name), "does not belong to the bundle; remove it or publish again"
                )
            if not entry.is_file(follow_symlinks=False):
                malformed(path, entry.name, "is not a regular file")


def _map_array(path: Path, descriptor: int, name: str, entry: FileEntry, *, verify: bool) -> NDArray[Any]:
    file_name = f"{name}.npy"
    try:
        with _opened_file(path, descriptor, file_name) as file:
            before = os.fstat(file.fileno())
            if before.st_size != entry.bytes:
                raise BundleAltered(
                    f"bundle {path}: {file_name} has {before.st_size} bytes, the manifest says "
                    f"{entry.bytes}; it was cut, extended or exchanged: publish the model again"
                )
            header = npy_header(entry.dtype, entry.shape)
            _compare_header(path, file_name, file.read(len(header)), header)
            if verify:
                file.seek(0)
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    raise BundleAltered(
                        f"bundle {path}: {file_name} does not have the SHA-256 of the manifest; it was "
                        "changed after it was written: publish the model again"
                    )
            mapped = np.memmap(file, entry.dtype, mode="r", offset=len(header), shape=entry.shape, order="C")
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise BundleAltered(
                    f"bundle {path}: {file_name} was written to while it was read; replace bundles by "
                    "renaming a new directory into their place, and publish the model again"
                )
    except BundleMissing as error:  # the bundle is there, only not whole
        raise BundleMalformed(str(error)) from None
    return np.asarray(mapped)  # np.memmap makes every slice slow


def _compare_header(path: Path, file_name: str, found: bytes, expected: bytes) -> None:
    """Compare bytes: a header is never parsed to map a file, only to say what is wrong with it."""
    if found == expected:
        return
    match = _HEADER.fullmatch(found)
    if match is None:
        malformed(path, file_name, "does not start with the array header that the format prescribes")
    dtype, fortran_order, shape = (part.decode("latin-1") for part in match.groups())
    if fortran_order == "True":
        malformed(path, file_name, "is in Fortran order; the format prescribes C order")
    if dtype not in DTYPES:
        malformed(path, file_name, f"has dtype {shown(dtype)}, which the format does not allow")
    malformed(path, file_name, f"has a header ({dtype}, shape ({shape})) that differs from the manifest")
