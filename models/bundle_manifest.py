"""What a bundle says of itself: the manifest, in the one form that is valid, and the headers of its arrays.

What is read here trusts nothing: what is not as ``docs/bundle-format.md`` says is refused by name and reason.
`models.bundle` reads bundles with it, `models.bundle_writing` writes them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

import numpy as np

from consentier.errors import BundleMalformed, BundleUnsupported

__all__ = [
    "ARRAY_NAME",
    "DTYPES",
    "FORMAT_VERSION",
    "JSON",
    "MANIFEST_FILE",
    "MAX_DIMENSIONS",
    "MAX_MANIFEST_BYTES",
    "MAX_RUN_BYTES",
    "PARTIAL",
    "RUN_FILE",
    "TIERS",
    "FileEntry",
    "Manifest",
    "canonical_json",
    "digest_of",
    "malformed",
    "npy_header",
    "npy_size",
    "parse_json",
    "parse_manifest",
    "plain_json",
    "shown",
    "utc_text",
]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

#: The version that this release writes, and the only one it reads.
FORMAT_VERSION = 1

MANIFEST_FILE = "manifest.json"
RUN_FILE = "run.json"
PARTIAL = ".partial"  # being written

MAX_MANIFEST_BYTES = 1 << 20
MAX_RUN_BYTES = 16 << 20
_MAX_JSON_DEPTH = 32
MAX_DIMENSIONS = 4
_MAX_ARRAYS = 64  # each that is mapped holds a file descriptor

DTYPES = frozenset({"|b1", "|u1", "|i1", "<u2", "<u4", "<u8", "<i4", "<i8", "<f4", "<f8"})
ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NPY_ALIGNMENT = 64

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


def malformed(path: Path, file_name: str, reason: str) -> NoReturn:
    """Refuse a file of a bundle.

    Raises
    ------
    BundleMalformed
        Always.
    """
    raise BundleMalformed(f"bundle {path}: {file_name} {reason}")


def shown(value: object) -> str:
    """Return a short, printable form: what is wrong in a file may be long or hold control characters."""
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def digest_of(manifest: bytes) -> str:
    """The digest of a bundle, from the content of its manifest."""
    return "sha256:" + hashlib.sha256(manifest).hexdigest()


def canonical_json(document: Mapping[str, JSON]) -> bytes:
    """A document in the one form that a manifest may have, byte for byte."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def parse_json(path: Path, file_name: str, payload: bytes) -> dict[str, Any]:
    """Read a JSON object: no key twice, no number that is none, no deeper than the format allows.

    Parameters
    ----------
    path, file_name
        The bundle and the file, for messages.
    payload
        The file's content.

    Raises
    ------
    BundleMalformed
        It is something else.
    """
    try:
        document = json.loads(
            payload.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
        plain_json("the document", document)
    except RecursionError:
        malformed(path, file_name, f"is nested deeper than {_MAX_JSON_DEPTH} levels")
    except (ValueError, TypeError) as error:
        malformed(path, file_name, f"is not the JSON that the format allows: {error}")
    if not isinstance(document, dict):
        malformed(path, file_name, f"must be a JSON object, got {type(document).__name__}")
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"the key {shown(key)} stands twice in one object")
        document[key] = value
    return document


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")


def plain_json(where: str, value: object, depth: int = 0) -> Any:
    """Return `value` in dictionaries, lists and scalars, or say which part of it JSON cannot hold exactly.

    Parameters
    ----------
    where
        What the value is called in messages.
    value
        Anything.
    depth
        How deep it stands already.

    Raises
    ------
    TypeError, ValueError
        A part of it is of another type, not finite, too large, too deep, or no Unicode text.
    """
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
                raise TypeError(f"{where} has the key {shown(key)}; keys must be strings of Unicode text")
        return {key: plain_json(f"{where}[{shown(key)}]", part, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(f"{where}[{i}]", part, depth + 1) for i, part in enumerate(value)]
    raise TypeError(f"{where} is of type {type(value).__name__}, which JSON cannot hold; convert it first")


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def parse_manifest(path: Path, document: Mapping[str, Any]) -> Manifest:
    """Check a manifest, key by key.

    Parameters
    ----------
    path
        The bundle, for messages.
    document
        From `parse_json`.

    Raises
    ------
    BundleMalformed
        It is not as the format says.
    BundleUnsupported
        It has another version of the format.
    """
    version = document.get("format_version")
    if type(version) is not int:
        malformed(path, MANIFEST_FILE, "has no integer format_version")
    if version != FORMAT_VERSION:
        raise BundleUnsupported(
            f"bundle {path}: {MANIFEST_FILE} has format version {version}; this release reads "
            f"{FORMAT_VERSION}: install a release that reads it, or publish the model again"
        )
    _check_keys(path, "", document, set(Manifest.__annotations__))
    tier, sources, permission = _parse_access(path, document)
    if not isinstance(document["algorithm"], str) or not re.fullmatch(r"[!-~]{1,128}", document["algorithm"]):
        malformed(path, MANIFEST_FILE, "algorithm must be 1 to 128 printable ASCII characters without spaces")
    for key in ("parameters", "scoring", "files"):
        if not isinstance(document[key], dict):
            malformed(path, MANIFEST_FILE, f"{key} must be an object")
    if len(document["files"]) > _MAX_ARRAYS:
        malformed(
            path, MANIFEST_FILE, f"lists {len(document['files'])} arrays; at most {_MAX_ARRAYS} are allowed"
        )
    _check_count(path, "item_count", document["item_count"])
    _check_cutoff(path, document["cutoff"])
    files = {name: _parse_entry(path, name, entry) for name, entry in document["files"].items()}
    offsets = files.get("item_offsets")
    if offsets is not None and offsets.shape != (document["item_count"] + 1,):
        malformed(
            path, MANIFEST_FILE,
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
        malformed(path, MANIFEST_FILE, f"lacks {where}{key}")
    for key in sorted(document.keys() - expected):
        malformed(path, MANIFEST_FILE, f"has the unknown key {where}{shown(key)}")


def _parse_access(path: Path, document: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Check that tier, sources and permission are one of the five combinations that exist."""
    tier = document["tier"]
    if not isinstance(tier, str) or tier not in TIERS:
        malformed(path, MANIFEST_FILE, f"declares the tier {shown(tier)}; there are {', '.join(TIERS)}")
    for key, expected in zip(("sources", "permission"), TIERS[tier], strict=True):
        if document[key] != list(expected):
            malformed(
                path, MANIFEST_FILE,
                f"declares tier {tier!r} but {key} {shown(document[key])}; that tier has {list(expected)!r}",
            )  # fmt: skip
    return tier, *TIERS[tier]


def _check_count(path: Path, key: str, value: object) -> None:
    if type(value) is not int or value < 0:
        malformed(path, MANIFEST_FILE, f"{key} must be an integer of at least 0, got {shown(value)}")


def _check_cutoff(path: Path, value: object) -> None:
    try:
        valid = isinstance(value, str) and utc_text(datetime.fromisoformat(value)) == value
    except (ValueError, OverflowError):  # the last hours of the calendar have no UTC
        valid = False
    if not valid:
        malformed(
            path, MANIFEST_FILE, f"cutoff must be a time like 2025-01-31T00:00:00.000000Z, got {shown(value)}"
        )


def _parse_entry(path: Path, name: str, entry: object) -> FileEntry:
    where = f"files[{shown(name)}]"
    if not ARRAY_NAME.fullmatch(name):
        malformed(path, MANIFEST_FILE, f"lists {where}; array names match {ARRAY_NAME.pattern}")
    if not isinstance(entry, dict):
        malformed(path, MANIFEST_FILE, f"{where} must be an object")
    _check_keys(path, f"{where}.", entry, set(FileEntry.__annotations__))
    dtype, shape, size, sha256 = entry["dtype"], entry["shape"], entry["bytes"], entry["sha256"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        malformed(
            path, MANIFEST_FILE, f"{where}.dtype is {shown(dtype)}; allowed are {', '.join(sorted(DTYPES))}"
        )
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DIMENSIONS:
        malformed(path, MANIFEST_FILE, f"{where}.shape must be a list of 1 to {MAX_DIMENSIONS} lengths")
    for length in shape:
        _check_count(path, f"{where}.shape", length)
    # Empty dimensions count as 1, as in NumPy's own limit.
    if math.prod(max(length, 1) for length in shape) * np.dtype(dtype).itemsize >= 2**63:
        malformed(path, MANIFEST_FILE, f"{where}.shape {shape} is larger than any array can be")
    _check_count(path, f"{where}.bytes", size)
    expected = npy_size(dtype, tuple(shape))
    if size != expected:
        malformed(path, MANIFEST_FILE, f"{where}.bytes is {size}; its dtype and shape make {expected}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        malformed(path, MANIFEST_FILE, f"{where}.sha256 must be 64 lower-case hexadecimal digits")
    return FileEntry(dtype, tuple(shape), size, sha256)


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the one .npy header (version 1.0) for this type and shape.

    Written here rather than by NumPy, whose padding has changed between releases: the digest must not depend
    on the release.
    """
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}".encode("ascii")
    padding = -(10 + len(text) + 1) % _NPY_ALIGNMENT
    length = len(text) + padding + 1
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text + b" " * padding + b"\n"


def npy_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of the file of an array."""
    return len(npy_header(dtype, shape)) + math.prod(shape) * np.dtype(dtype).itemsize


def utc_text(moment: datetime) -> str:
    """A time as a manifest has it, such as ``2025-01-31T00:00:00.000000Z``.

    Raises
    ------
    TypeError, ValueError
        It is no datetime, or has no time zone.
    """
    if not isinstance(moment, datetime):
        raise TypeError(f"cutoff must be a datetime, got {type(moment).__name__}")
    if moment.utcoffset() is None:
        raise ValueError(f"cutoff {moment.isoformat()} has no time zone; use datetime(…, tzinfo=UTC)")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
