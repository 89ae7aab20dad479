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

The format is specified in ``docs/bundle-format.md``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from consentier.errors import (
    BundleAltered,
    BundleError,
    BundleMalformed,
    BundleMissing,
    BundleUnsupported,
)
from consentier.models.item_index import ItemIndex
from consentier.writing import REPLACED, flush, put_directory, workplace, write_new

__all__ = [
    "FORMAT_VERSION",
    "JSON",
    "TIERS",
    "Bundle",
    "FileEntry",
    "Manifest",
    "check_csr",
    "check_factors",
    "check_prior_factors",
    "open_bundle",
    "read_run",
    "verify_bundle",
    "write_bundle",
    "write_run",
]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

#: The version that this release writes, and the only one it reads.
FORMAT_VERSION = 1

_MANIFEST = "manifest.json"
_RUN = "run.json"
_PARTIAL = ".partial"  # being written

_MAX_MANIFEST_BYTES = 1 << 20
_MAX_RUN_BYTES = 16 << 20
_MAX_JSON_DEPTH = 32
_MAX_DIMENSIONS = 4
_MAX_ARRAYS = 64  # each that is mapped holds a file descriptor
_CHUNK_ELEMENTS = 1 << 20
_ROWS_PER_CHUNK = 4096
_OPEN_ATTEMPTS = 20
_ENTRIES_AT_ONCE = 1 << 20

_DTYPES = frozenset({"|b1", "|u1", "|i1", "<u2", "<u4", "<u8", "<i4", "<i8", "<f4", "<f8"})
_ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([^']*)', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)
_NPY_ALIGNMENT = 64

# Arrays that stand together and have a meaning in the format.
_ITEM_INDEX = frozenset({"item_ids", "item_offsets"})
_WEIGHTS = frozenset({"indptr", "indices", "data"})
_FACTORS = frozenset({"factors", "factor_gram"})
_PRIOR_FACTORS = _FACTORS | {"prior_factors"}

# What each tier reads, and the permission that takes: no other combination is a bundle.
TIERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "session": (("session",), ()),
        "online": (("online", "session"), ("online",)),
        "crm": (("crm",), ("crm",)),
        "fused": (("crm", "online", "session"), ("crm", "online")),
        "popular": ((), ()),
    }
)


@dataclass(frozen=True)
class FileEntry:
    """One array of a bundle, as the manifest announces it.

    Parameters
    ----------
    dtype
        NumPy type string, little-endian, such as ``"<f4"``.
    shape
        One to four dimensions.
    bytes
        Size of the file: header and payload.
    sha256
        Lower-case hexadecimal SHA-256 of the whole file.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a bundle is.

    Parameters
    ----------
    format_version
        Version of the bundle format.
    tier
        ``"session"``, ``"online"``, ``"crm"``, ``"fused"`` or ``"popular"``.
    sources
        What the model was trained on and reads when it answers, sorted; fixed by the tier.
    permission
        The permissions that a person must have given for this model to answer, sorted; fixed by the tier.
    algorithm
        Name of the estimator.
    parameters
        Its resolved training parameters.
    scoring
        What a scorer needs beside the arrays.
    item_count
        Number of items that the model knows.
    cutoff
        Training cut-off, UTC, as ``"2025-01-31T00:00:00.000000Z"``.
    files
        Array name to its entry; the file is ``<name>.npy``.
    """

    format_version: int
    tier: str
    sources: tuple[str, ...]
    permission: tuple[str, ...]
    algorithm: str
    parameters: Mapping[str, JSON]
    scoring: Mapping[str, JSON]
    item_count: int
    cutoff: str
    files: Mapping[str, FileEntry]


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


def write_bundle(
    path: str | os.PathLike[str],
    *,
    tier: str,
    sources: Sequence[str],
    permission: Sequence[str],
    algorithm: str,
    parameters: Mapping[str, JSON],
    scoring: Mapping[str, JSON],
    item_count: int,
    cutoff: datetime,
    arrays: Mapping[str, NDArray[Any]],
    run: Mapping[str, JSON] | None = None,
    overwrite: bool = False,
) -> str:
    """Write a bundle: beside the target, synchronised to disk, then renamed into place.

    Parameters
    ----------
    path
        The directory to create; its parent must exist.
    tier, sources, permission, algorithm, parameters, scoring, item_count
        As in `Manifest`. `sources` and `permission` may come in any order.
    cutoff
        Training cut-off, timezone-aware.
    arrays
        Array name (``[a-z][a-z0-9_]{0,63}``) to array: boolean, integer (8, 32 or 64 bits, unsigned also 16)
        or float (32 or 64 bits), one to four dimensions. Stored in C order, little-endian.
    run
        The side-car ``run.json``, which appears with the bundle: see `write_run`. None: without one.
    overwrite
        Replace a bundle that stands at `path`. Only a directory that looks like a bundle is ever replaced.
        The old one is renamed away and the new one renamed in, so a reader gets one of the two, whole.

    Returns
    -------
    str
        The digest.

    Raises
    ------
    FileExistsError
        There is something at `path` and `overwrite` is False, or it is not a bundle.
    TypeError, ValueError
        An argument is not what the format allows. Nothing is written.
    OSError
        Writing failed. What was written is removed; a bundle that stood at `path` still stands.

    Notes
    -----
    O(bytes). Copies at most 8 MiB of an array at a time, more only where its order or byte order must change.
    """
    target = Path(os.path.abspath(path))  # noqa: PTH100 - keeps a symbolic link to refuse it
    prepared = {_array_name(name): _plain_array(name, array) for name, array in arrays.items()}
    fields: dict[str, JSON] = {
        "format_version": FORMAT_VERSION,
        "tier": tier,
        "sources": sorted(_texts("sources", sources)),
        "permission": sorted(_texts("permission", permission)),
        "algorithm": algorithm,
        "parameters": parameters,
        "scoring": scoring,
        "item_count": item_count,
        "cutoff": _utc_text(cutoff),
    }
    # Announced with empty hashes first, so that every wrong argument is found before anything is written.
    draft = {name: _entry(array, sha256="0" * 64) for name, array in prepared.items()}
    _checked_manifest_bytes(fields, draft)
    facts = None if run is None else _run_bytes(run)
    _check_target(target, overwrite)
    with workplace(target, _PARTIAL) as partial:
        entries = {name: _write_array(partial / f"{name}.npy", array) for name, array in prepared.items()}
        manifest = _checked_manifest_bytes(fields, entries)
        write_new(partial / _MANIFEST, manifest)
        if facts is not None:
            write_new(partial / _RUN, facts)
        flush(partial)
        _check_target(target, overwrite)  # again: another writer may have come first
        replaced = put_directory(partial, target)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
    return _digest(manifest)


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
    findings.extend(str(finding) for finding in _reserved_findings(directory, manifest, arrays))
    return findings


def write_run(path: str | os.PathLike[str], facts: Mapping[str, JSON]) -> None:
    """Write or replace the side-car ``run.json`` of a bundle, atomically.

    It holds facts that must not touch the digest: when and by what the bundle was made, ledger position,
    exclusion counts, metrics.

    Raises
    ------
    BundleMissing
        There is no bundle at `path`.
    TypeError, ValueError
        `facts` is not JSON, holds NaN or infinity, or exceeds 16 MiB.
    """
    payload = _run_bytes(facts)
    directory = Path(os.path.realpath(path))
    if not (directory / _MANIFEST).is_file():
        raise BundleMissing(f"bundle {path}: there is no {_MANIFEST}; write the bundle before its {_RUN}")
    # Beside the bundle, not in it: a reader that lists the bundle meanwhile must not find a stray file.
    with workplace(directory, f".run{_PARTIAL}") as place:
        write_new(place / _RUN, payload)
        (place / _RUN).replace(directory / _RUN)
    flush(directory)


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
        payload = _read_small(directory, descriptor, _RUN, _MAX_RUN_BYTES)
    return _parse_json(directory, _RUN, payload)


def check_csr(
    indptr: NDArray[Any],
    indices: NDArray[Any],
    data: NDArray[Any],
    shape: tuple[int, int],
    *,
    prefix: str = "",
) -> None:
    """Check that three arrays are a canonical compressed sparse row matrix.

    Parameters
    ----------
    indptr
        Integer, shape (rows + 1,): row ``i`` holds the entries ``indptr[i]`` to ``indptr[i + 1]``.
    indices
        Integer, shape (entries,): column of each entry, ascending and unique within a row.
    data
        Float or integer, shape (entries,), finite.
    shape
        Rows and columns.
    prefix
        What stands before ``indptr``, ``indices`` and ``data`` in the names of the arrays, for messages.

    Raises
    ------
    BundleMalformed
        They are not; the message names the array and the row.

    Notes
    -----
    O(rows + entries) time; temporary memory of some 4 MB, and 8 bytes a row. On one core of a small virtual
    machine some .5 s for 100 million entries.
    """
    rows, columns = shape
    for part, array, kinds in (("indptr", indptr, "iu"), ("indices", indices, "iu"), ("data", data, "fiu")):
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise BundleMalformed(
                f"{prefix}{part} must be one-dimensional {'numbers' if 'f' in kinds else 'integers'}, got "
                f"{array.dtype} of shape {array.shape}"
            )
    entries = indices.size
    if not indptr.size or indptr.size != rows + 1:
        raise BundleMalformed(f"{prefix}indptr has {indptr.size} entries; {rows} rows need {rows + 1}")
    if data.size != entries:
        raise BundleMalformed(f"{prefix}data has {data.size} entries and {prefix}indices {entries}")
    if indptr[0] != 0 or indptr[-1] != entries:
        raise BundleMalformed(
            f"{prefix}indptr runs from {indptr[0]} to {indptr[-1]}; expected 0 to {entries}, the number of "
            "entries"
        )
    descending = np.flatnonzero(indptr[1:] < indptr[:-1])
    if descending.size:
        raise BundleMalformed(f"{prefix}indptr descends at row {descending[0]}")
    _check_columns(indptr, indices, columns, prefix)
    for start in range(0, entries, _ENTRIES_AT_ONCE):
        infinite = np.flatnonzero(~np.isfinite(data[start : start + _ENTRIES_AT_ONCE]))
        if infinite.size:
            place = start + int(infinite[0])
            raise BundleMalformed(
                f"{prefix}data holds {data[place]} in row {_row_of(indptr, place)}; weights must be finite"
            )


def check_factors(factors: NDArray[Any], gram: NDArray[Any], inputs: int) -> None:
    """Check that two arrays are the factors of a model's inputs and the diagonal of their Gram matrix.

    Parameters
    ----------
    factors
        float32, shape (inputs, factors), finite.
    gram
        float64, shape (factors,): the sums of the squares of its columns.
    inputs
        Number of inputs.

    Raises
    ------
    BundleMalformed
        They are not; the message names the array and the row or column.

    Notes
    -----
    O(size of factors).
    """
    if factors.ndim != 2 or factors.dtype != np.float32 or factors.shape[0] != inputs or not factors.shape[1]:
        raise BundleMalformed(
            f"factors must be float32 with {inputs} rows and at least one column, got {factors.dtype} of "
            f"shape {factors.shape}"
        )
    if gram.dtype != np.float64 or gram.shape != (factors.shape[1],):
        raise BundleMalformed(
            f"factor_gram must be float64 with one entry for each of {factors.shape[1]} factors, got "
            f"{gram.dtype} of shape {gram.shape}"
        )
    squares = np.zeros(factors.shape[1])
    for start in range(0, inputs, _ROWS_PER_CHUNK):
        chunk = factors[start : start + _ROWS_PER_CHUNK].astype(np.float64)
        infinite = np.flatnonzero(~np.isfinite(chunk).all(axis=1))
        if infinite.size:
            row = start + infinite[0]
            raise BundleMalformed(f"factors of row {row} hold a number that is not finite")
        squares += np.square(chunk).sum(axis=0)
    wrong = np.flatnonzero(~(np.abs(gram - squares) <= 1e-6 * squares))
    if wrong.size:
        raise BundleMalformed(
            f"factor_gram is {gram[wrong[0]]} for factor {wrong[0]}, whose squares sum to {squares[wrong[0]]}"
        )


def check_prior_factors(
    priors: NDArray[Any], factors: tuple[int, ...], attribute_inputs: int, items: int
) -> None:
    """Check that an array says what attributes let expect, beside factors of items alone.

    Parameters
    ----------
    priors
        float32, shape (attribute_inputs + 1, factors), finite.
    factors
        Shape of the items' factors.
    attribute_inputs, items
        Number of inputs behind the items, and of items.

    Raises
    ------
    BundleMalformed
        It is not.

    Notes
    -----
    O(size of priors).
    """
    if factors[0] != items:
        raise BundleMalformed(f"beside prior_factors, factors have {factors[0]} rows for {items} items")
    expected = (attribute_inputs + 1, factors[1])
    if priors.shape != expected or priors.dtype != np.float32 or attribute_inputs < 0:
        raise BundleMalformed(
            f"prior_factors must be float32 of shape {expected}, got {priors.dtype} of shape {priors.shape}"
        )
    if not np.isfinite(priors).all():
        raise BundleMalformed("prior_factors hold a number that is not finite")


def _check_columns(indptr: NDArray[Any], indices: NDArray[Any], columns: int, prefix: str) -> None:
    """Check columns block by block, so that each is read from memory once."""
    for start in range(0, indices.size, _ENTRIES_AT_ONCE):
        block = indices[start : start + _ENTRIES_AT_ONCE + 1]  # one more: the next one must ascend too
        if not (block.min() >= 0 and block.max() < columns):
            place = start + int(np.flatnonzero((block < 0) | (block >= columns))[0])
            raise BundleMalformed(
                f"{prefix}indices holds column {indices[place]} in row {_row_of(indptr, place)}; the "
                f"matrix has {columns} columns"
            )
        places = start + 1 + np.flatnonzero(block[1:] <= block[:-1])
        # Only the first entry of a row may be less than the one before it.
        bad = places[indptr[np.searchsorted(indptr, places)] != places]
        if bad.size:
            row = _row_of(indptr, bad[0])
            raise BundleMalformed(f"{prefix}indices of row {row} do not ascend without duplicates")


def _row_of(indptr: NDArray[Any], position: int | np.integer) -> int:
    return int(np.searchsorted(indptr, position, side="right")) - 1


# --- Opening --------------------------------------------------------------------------------------


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
        for finding in _reserved_findings(path, manifest, arrays):
            raise finding
    return Bundle(path, manifest, digest, MappingProxyType(arrays))


@contextmanager
def _opened_directory(path: Path) -> Iterator[int]:
    real = Path(os.path.realpath(path)).name  # unlike Path.resolve it bears a loop of links
    if real.startswith(".") and real.endswith(_PARTIAL):
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
        _malformed(path, name, "is not a regular file")
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            _malformed(path, name, "is not a regular file")
        yield file


def _read_small(path: Path, descriptor: int, name: str, limit: int) -> bytes:
    with _opened_file(path, descriptor, name) as file:
        payload = file.read(limit + 1)
    if len(payload) > limit:
        _malformed(path, name, f"is larger than {limit} bytes")
    return payload


def _read_manifest(path: Path, descriptor: int, expected_digest: str | None) -> tuple[Manifest, str]:
    payload = _read_small(path, descriptor, _MANIFEST, _MAX_MANIFEST_BYTES)
    digest = _digest(payload)
    if expected_digest is not None and digest != expected_digest:
        raise BundleAltered(
            f"bundle {path}: {_MANIFEST} has the digest {digest}, expected {expected_digest}; it is another "
            "bundle or was changed: fetch it again from where it was registered"
        )
    document = _parse_json(path, _MANIFEST, payload)
    manifest = _parse_manifest(path, document)
    if _canonical(document) != payload:
        raise BundleAltered(
            f"bundle {path}: {_MANIFEST} is not in canonical form, so it was edited after it was written; "
            "publish the model again"
        )
    return manifest, digest


def _check_listing(path: Path, descriptor: int, manifest: Manifest) -> None:
    expected = {_MANIFEST, _RUN, *(f"{name}.npy" for name in manifest.files)}
    with os.scandir(descriptor) as listing:
        for entry in listing:
            if entry.name not in expected:
                _malformed(
                    path, _shown(entry.name), "does not belong to the bundle; remove it or publish again"
                )
            if not entry.is_file(follow_symlinks=False):
                _malformed(path, entry.name, "is not a regular file")


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
            header = _npy_header(entry.dtype, entry.shape)
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
        _malformed(path, file_name, "does not start with the array header that the format prescribes")
    dtype, fortran_order, shape = (part.decode("latin-1") for part in match.groups())
    if fortran_order == "True":
        _malformed(path, file_name, "is in Fortran order; the format prescribes C order")
    if dtype not in _DTYPES:
        _malformed(path, file_name, f"has dtype {_shown(dtype)}, which the format does not allow")
    _malformed(path, file_name, f"has a header ({dtype}, shape ({shape})) that differs from the manifest")


def _reserved_findings(
    path: Path, manifest: Manifest, arrays: Mapping[str, NDArray[Any]]
) -> Iterator[BundleMalformed]:
    """Check the content of the arrays that have a meaning in the format: item index, weights, factors."""
    checks = (
        (_ITEM_INDEX, _check_item_index),
        (_WEIGHTS, _check_weights),
        (_FACTORS, _check_factors),
        (_PRIOR_FACTORS, _check_prior_factors),
    )
    for group, check in checks:
        if arrays.keys() >= group:
            try:
                check(manifest, arrays)
            except BundleMalformed as error:
                yield BundleMalformed(f"bundle {path}: {error}")


def _check_item_index(_: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    ItemIndex(arrays["item_ids"], arrays["item_offsets"])


def _check_weights(manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    indptr = arrays["indptr"]
    check_csr(indptr, arrays["indices"], arrays["data"], (indptr.shape[0] - 1, manifest.item_count))


def _check_factors(manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    rows = arrays["factors"].shape[0]
    check_factors(arrays["factors"], arrays["factor_gram"], rows)
    if rows < manifest.item_count:
        raise BundleMalformed(f"factors have {rows} rows for {manifest.item_count} items")


def _check_prior_factors(manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    priors, factors = arrays["prior_factors"], arrays["factors"]
    check_prior_factors(priors, factors.shape, priors.shape[0] - 1, manifest.item_count)


# --- Manifest -------------------------------------------------------------------------------------


def _malformed(path: Path, file_name: str, reason: str) -> NoReturn:
    raise BundleMalformed(f"bundle {path}: {file_name} {reason}")


def _shown(value: object) -> str:
    """Return a short, printable form: what is wrong in a file may be long or hold control characters."""
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _digest(manifest: bytes) -> str:
    return "sha256:" + hashlib.sha256(manifest).hexdigest()


def _canonical(document: Mapping[str, JSON]) -> bytes:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def _parse_json(path: Path, file_name: str, payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(
            payload.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
        _plain_json("the document", document)
    except RecursionError:
        _malformed(path, file_name, f"is nested deeper than {_MAX_JSON_DEPTH} levels")
    except (ValueError, TypeError) as error:
        _malformed(path, file_name, f"is not the JSON that the format allows: {error}")
    if not isinstance(document, dict):
        _malformed(path, file_name, f"must be a JSON object, got {type(document).__name__}")
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"the key {_shown(key)} stands twice in one object")
        document[key] = value
    return document


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")


def _plain_json(where: str, value: object, depth: int = 0) -> Any:
    """Return `value` in dictionaries, lists and scalars, or say which part of it JSON cannot hold exactly."""
    if depth > _MAX_JSON_DEPTH:
        raise ValueError(f"{where} is nested deeper than {_MAX_JSON_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not _is_unicode(value):
            raise ValueError(f"{where} holds a lone surrogate, which is not Unicode text")
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{where} is outside the range of 64-bit integers")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; only finite numbers can be stored")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or not _is_unicode(key):
                raise TypeError(f"{where} has the key {_shown(key)}; keys must be strings of Unicode text")
        return {key: _plain_json(f"{where}[{_shown(key)}]", part, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(f"{where}[{i}]", part, depth + 1) for i, part in enumerate(value)]
    raise TypeError(f"{where} is of type {type(value).__name__}, which JSON cannot hold; convert it first")


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _parse_manifest(path: Path, document: Mapping[str, Any]) -> Manifest:
    version = document.get("format_version")
    if type(version) is not int:
        _malformed(path, _MANIFEST, "has no integer format_version")
    if version != FORMAT_VERSION:
        raise BundleUnsupported(
            f"bundle {path}: {_MANIFEST} has format version {version}; this release reads {FORMAT_VERSION}: "
            "install a release that reads it, or publish the model again"
        )
    _check_keys(path, "", document, set(Manifest.__annotations__))
    tier, sources, permission = _parse_access(path, document)
    if not isinstance(document["algorithm"], str) or not re.fullmatch(r"[!-~]{1,128}", document["algorithm"]):
        _malformed(path, _MANIFEST, "algorithm must be 1 to 128 printable ASCII characters without spaces")
    for key in ("parameters", "scoring", "files"):
        if not isinstance(document[key], dict):
            _malformed(path, _MANIFEST, f"{key} must be an object")
    if len(document["files"]) > _MAX_ARRAYS:
        _malformed(
            path, _MANIFEST, f"lists {len(document['files'])} arrays; at most {_MAX_ARRAYS} are allowed"
        )
    _check_count(path, "item_count", document["item_count"])
    _check_cutoff(path, document["cutoff"])
    files = {name: _parse_entry(path, name, entry) for name, entry in document["files"].items()}
    offsets = files.get("item_offsets")
    if offsets is not None and offsets.shape != (document["item_count"] + 1,):
        _malformed(
            path, _MANIFEST,
            f"announces {document['item_count']} items, but item_offsets has the shape {offsets.shape}",
        )  # fmt: skip
    return Manifest(
        format_version=version,
        tier=tier,
        sources=sources,
        permission=permission,
        algorithm=document["algorithm"],
        parameters=MappingProxyType(document["parameters"]),
        scoring=MappingProxyType(document["scoring"]),
        item_count=document["item_count"],
        cutoff=document["cutoff"],
        files=MappingProxyType(files),
    )


def _check_keys(path: Path, where: str, document: Mapping[str, Any], expected: set[str]) -> None:
    for key in sorted(expected - document.keys()):
        _malformed(path, _MANIFEST, f"lacks {where}{key}")
    for key in sorted(document.keys() - expected):
        _malformed(path, _MANIFEST, f"has the unknown key {where}{_shown(key)}")


def _parse_access(path: Path, document: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Check that tier, sources and permission are one of the five combinations that exist."""
    tier = document["tier"]
    if not isinstance(tier, str) or tier not in TIERS:
        _malformed(path, _MANIFEST, f"declares the tier {_shown(tier)}; there are {', '.join(TIERS)}")
    for key, expected in zip(("sources", "permission"), TIERS[tier], strict=True):
        if document[key] != list(expected):
            _malformed(
                path, _MANIFEST,
                f"declares tier {tier!r} but {key} {_shown(document[key])}; that tier has {list(expected)!r}",
            )  # fmt: skip
    return tier, *TIERS[tier]


def _check_count(path: Path, key: str, value: object) -> None:
    if type(value) is not int or value < 0:
        _malformed(path, _MANIFEST, f"{key} must be an integer of at least 0, got {_shown(value)}")


def _check_cutoff(path: Path, value: object) -> None:
    try:
        valid = isinstance(value, str) and _utc_text(datetime.fromisoformat(value)) == value
    except (ValueError, OverflowError):  # the last hours of the calendar have no UTC
        valid = False
    if not valid:
        _malformed(
            path, _MANIFEST, f"cutoff must be a time like 2025-01-31T00:00:00.000000Z, got {_shown(value)}"
        )


def _parse_entry(path: Path, name: str, entry: object) -> FileEntry:
    where = f"files[{_shown(name)}]"
    if not _ARRAY_NAME.fullmatch(name):
        _malformed(path, _MANIFEST, f"lists {where}; array names match {_ARRAY_NAME.pattern}")
    if not isinstance(entry, dict):
        _malformed(path, _MANIFEST, f"{where} must be an object")
    _check_keys(path, f"{where}.", entry, set(FileEntry.__annotations__))
    dtype, shape, size, sha256 = entry["dtype"], entry["shape"], entry["bytes"], entry["sha256"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        _malformed(
            path, _MANIFEST, f"{where}.dtype is {_shown(dtype)}; allowed are {', '.join(sorted(_DTYPES))}"
        )
    if not isinstance(shape, list) or not 1 <= len(shape) <= _MAX_DIMENSIONS:
        _malformed(path, _MANIFEST, f"{where}.shape must be a list of 1 to {_MAX_DIMENSIONS} lengths")
    for length in shape:
        _check_count(path, f"{where}.shape", length)
    # Empty dimensions count as 1, as in NumPy's own limit.
    if math.prod(max(length, 1) for length in shape) * np.dtype(dtype).itemsize >= 2**63:
        _malformed(path, _MANIFEST, f"{where}.shape {shape} is larger than any array can be")
    _check_count(path, f"{where}.bytes", size)
    expected = _npy_size(dtype, tuple(shape))
    if size != expected:
        _malformed(path, _MANIFEST, f"{where}.bytes is {size}; its dtype and shape make {expected}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        _malformed(path, _MANIFEST, f"{where}.sha256 must be 64 lower-case hexadecimal digits")
    return FileEntry(dtype, tuple(shape), size, sha256)


# --- Array files ----------------------------------------------------------------------------------


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the one .npy header (version 1.0) for this type and shape.

    Written here rather than by NumPy, whose padding has changed between releases: the digest must not depend
    on the release.
    """
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}".encode("ascii")
    padding = -(10 + len(text) + 1) % _NPY_ALIGNMENT
    length = len(text) + padding + 1
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text + b" " * padding + b"\n"


def _npy_size(dtype: str, shape: tuple[int, ...]) -> int:
    return len(_npy_header(dtype, shape)) + math.prod(shape) * np.dtype(dtype).itemsize


def _entry(array: NDArray[Any], sha256: str) -> FileEntry:
    return FileEntry(array.dtype.str, array.shape, _npy_size(array.dtype.str, array.shape), sha256)


def _array_name(name: object) -> str:
    if not isinstance(name, str) or not _ARRAY_NAME.fullmatch(name):
        raise ValueError(f"array name {name!r} is not allowed; names match {_ARRAY_NAME.pattern}")
    return name


def _plain_array(name: str, array: object) -> NDArray[Any]:
    """Return the array in C order, little-endian."""
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"array {name} must be a plain NumPy array, got {type(array).__name__}")
    dtype = array.dtype.newbyteorder("<")
    if dtype.str not in _DTYPES:
        raise ValueError(
            f"array {name} has dtype {array.dtype}, which a bundle cannot hold; convert it to one of "
            f"{', '.join(sorted(_DTYPES))}"
        )
    if not 1 <= array.ndim <= _MAX_DIMENSIONS:
        raise ValueError(
            f"array {name} has {array.ndim} dimensions, a bundle holds 1 to {_MAX_DIMENSIONS}; put single "
            "numbers into `scoring`"
        )
    return np.ascontiguousarray(array, dtype=dtype)


def _write_array(path: Path, array: NDArray[Any]) -> FileEntry:
    hasher = hashlib.sha256()
    flat = array.reshape(-1)
    with path.open("xb") as file:
        header = _npy_header(array.dtype.str, array.shape)
        hasher.update(header)
        file.write(header)
        for start in range(0, flat.size, _CHUNK_ELEMENTS):
            chunk = flat[start : start + _CHUNK_ELEMENTS].tobytes()
            hasher.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return _entry(array, hasher.hexdigest())


# --- Writing --------------------------------------------------------------------------------------


def _texts(name: str, values: object) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Sequence | frozenset | set):
        raise TypeError(f"{name} must be a sequence of strings, got {values!r}")
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} must hold strings, got {value!r}")
    return list(values)


def _utc_text(moment: datetime) -> str:
    if not isinstance(moment, datetime):
        raise TypeError(f"cutoff must be a datetime, got {type(moment).__name__}")
    if moment.utcoffset() is None:
        raise ValueError(f"cutoff {moment.isoformat()} has no time zone; use datetime(…, tzinfo=UTC)")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _checked_manifest_bytes(fields: Mapping[str, JSON], entries: Mapping[str, FileEntry]) -> bytes:
    """Return the canonical manifest, after the reader's own checks have passed on it."""
    files: dict[str, JSON] = {
        name: {"bytes": entry.bytes, "dtype": entry.dtype, "sha256": entry.sha256, "shape": list(entry.shape)}
        for name, entry in entries.items()
    }
    document = {key: _plain_json(key, value, depth=1) for key, value in {**fields, "files": files}.items()}
    try:
        _parse_manifest(Path("to be written"), document)
    except BundleMalformed as error:
        raise ValueError(str(error)) from None
    manifest = _canonical(document)
    if len(manifest) > _MAX_MANIFEST_BYTES:
        raise ValueError(
            f"the manifest would take {len(manifest)} bytes, at most {_MAX_MANIFEST_BYTES} are allowed; put "
            "large values into arrays"
        )
    return manifest


def _run_bytes(facts: Mapping[str, JSON]) -> bytes:
    """The content of ``run.json``."""
    if not isinstance(facts, Mapping):
        raise TypeError(f"facts must be a mapping, got {type(facts).__name__}")
    text = json.dumps(
        _plain_json("facts", facts), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False
    )
    payload = (text + "\n").encode("utf-8")
    if len(payload) > _MAX_RUN_BYTES:
        raise ValueError(f"facts take {len(payload)} bytes as JSON; at most {_MAX_RUN_BYTES} are allowed")
    return payload


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.name:
        raise ValueError(f"{target} is not a path for a bundle")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(
            f"{target} exists; choose another path, or pass overwrite=True to replace a bundle"
        )
    # Whoever mistypes a path must not lose a directory of something else.
    if target.is_symlink() or not target.is_dir():
        raise FileExistsError(f"{target} is not a bundle directory and is not replaced; choose another path")
    names = {entry.name for entry in target.iterdir()}
    strangers = sorted(name for name in names if not _may_be_ours(name))
    if strangers or _MANIFEST not in names:
        what = f"holds {strangers[0]!r}" if strangers else f"has no {_MANIFEST}"
        raise FileExistsError(f"{target} {what}, so it is no bundle and is not replaced; choose another path")


def _may_be_ours(file_name: str) -> bool:
    stem, dot, suffix = file_name.partition(".")
    return file_name in (_MANIFEST, _RUN) or (dot + suffix == ".npy" and bool(_ARRAY_NAME.fullmatch(stem)))
