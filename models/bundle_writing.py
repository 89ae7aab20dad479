"""Writes bundles, and the facts of a run beside them: whole and at once, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.errors import BundleMalformed, BundleMissing
from consentier.models.bundle_manifest import (
    ARRAY_NAME,
    DTYPES,
    FORMAT_VERSION,
    JSON,
    MANIFEST_FILE,
    MAX_DIMENSIONS,
    MAX_MANIFEST_BYTES,
    MAX_RUN_BYTES,
    PARTIAL,
    RUN_FILE,
    FileEntry,
    canonical_json,
    digest_of,
    npy_header,
    npy_size,
    parse_manifest,
    plain_json,
    utc_text,
)
from consentier.writing import flush, put_directory, workplace, write_new

__all__ = ["write_bundle", "write_run"]

_CHUNK_ELEMENTS = 1 << 20


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
        "cutoff": utc_text(cutoff),
    }
    # Announced with empty hashes first, so that every wrong argument is found before anything is written.
    draft = {name: _entry(array, sha256="0" * 64) for name, array in prepared.items()}
    _checked_manifest_bytes(fields, draft)
    facts = None if run is None else _run_bytes(run)
    _check_target(target, overwrite)
    with workplace(target, PARTIAL) as partial:
        entries = {name: _write_array(partial / f"{name}.npy", array) for name, array in prepared.items()}
        manifest = _checked_manifest_bytes(fields, entries)
        write_new(partial / MANIFEST_FILE, manifest)
        if facts is not None:
            write_new(partial / RUN_FILE, facts)
        flush(partial)
        _check_target(target, overwrite)  # again: another writer may have come first
        replaced = put_directory(partial, target)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)
    return digest_of(manifest)


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
    if not (directory / MANIFEST_FILE).is_file():
        raise BundleMissing(
            f"bundle {path}: there is no {MANIFEST_FILE}; write the bundle before its {RUN_FILE}"
        )
    # Beside the bundle, not in it: a reader that lists the bundle meanwhile must not find a stray file.
    with workplace(directory, f".run{PARTIAL}") as place:
        write_new(place / RUN_FILE, payload)
        (place / RUN_FILE).replace(directory / RUN_FILE)
    flush(directory)


def _entry(array: NDArray[Any], sha256: str) -> FileEntry:
    return FileEntry(array.dtype.str, array.shape, npy_size(array.dtype.str, array.shape), sha256)


def _array_name(name: object) -> str:
    if not isinstance(name, str) or not ARRAY_NAME.fullmatch(name):
        raise ValueError(f"array name {name!r} is not allowed; names match {ARRAY_NAME.pattern}")
    return name


def _plain_array(name: str, array: object) -> NDArray[Any]:
    """Return the array in C order, little-endian."""
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"array {name} must be a plain NumPy array, got {type(array).__name__}")
    dtype = array.dtype.newbyteorder("<")
    if dtype.str not in DTYPES:
        raise ValueError(
            f"array {name} has dtype {array.dtype}, which a bundle cannot hold; convert it to one of "
            f"{', '.join(sorted(DTYPES))}"
        )
    if not 1 <= array.ndim <= MAX_DIMENSIONS:
        raise ValueError(
            f"array {name} has {array.ndim} dimensions, a bundle holds 1 to {MAX_DIMENSIONS}; put single "
            "numbers into `scoring`"
        )
    return np.ascontiguousarray(array, dtype=dtype)


def _write_array(path: Path, array: NDArray[Any]) -> FileEntry:
    hasher = hashlib.sha256()
    flat = array.reshape(-1)
    with path.open("xb") as file:
        header = npy_header(array.dtype.str, array.shape)
        hasher.update(header)
        file.write(header)
        for start in range(0, flat.size, _CHUNK_ELEMENTS):
            chunk = flat[start : start + _CHUNK_ELEMENTS].tobytes()
            hasher.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return _entry(array, hasher.hexdigest())


def _texts(name: str, values: object) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Sequence | frozenset | set):
        raise TypeError(f"{name} must be a sequence of strings, got {values!r}")
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} must hold strings, got {value!r}")
    return list(values)


def _checked_manifest_bytes(fields: Mapping[str, JSON], entries: Mapping[str, FileEntry]) -> bytes:
    """Return the canonical manifest, after the reader's own checks have passed on it."""
    files: dict[str, JSON] = {
        name: {"bytes": entry.bytes, "dtype": entry.dtype, "sha256": entry.sha256, "shape": list(entry.shape)}
        for name, entry in entries.items()
    }
    document = {key: plain_json(key, value, depth=1) for key, value in {**fields, "files": files}.items()}
    try:
        parse_manifest(Path("to be written"), document)
    except BundleMalformed as error:
        raise ValueError(str(error)) from None
    manifest = canonical_json(document)
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise ValueError(
            f"the manifest would take {len(manifest)} bytes, at most {MAX_MANIFEST_BYTES} are allowed; put "
            "large values into arrays"
        )
    return manifest


def _run_bytes(facts: Mapping[str, JSON]) -> bytes:
    """The content of ``run.json``."""
    if not isinstance(facts, Mapping):
        raise TypeError(f"facts must be a mapping, got {type(facts).__name__}")
    text = json.dumps(
        plain_json("facts", facts), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False
    )
    payload = (text + "\n").encode("utf-8")
    if len(payload) > MAX_RUN_BYTES:
        raise ValueError(f"facts take {len(payload)} bytes as JSON; at most {MAX_RUN_BYTES} are allowed")
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
    if strangers or MANIFEST_FILE not in names:
        what = f"holds {strangers[0]!r}" if strangers else f"has no {MANIFEST_FILE}"
        raise FileExistsError(f"{target} {what}, so it is no bundle and is not replaced; choose another path")


def _may_be_ours(file_name: str) -> bool:
    stem, dot, suffix = file_name.partition(".")
    return file_name in (MANIFEST_FILE, RUN_FILE) or (
        dot + suffix == ".npy" and bool(ARRAY_NAME.fullmatch(stem))
    )
