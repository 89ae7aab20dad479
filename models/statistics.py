"""What a fit counted, kept so that a person can be subtracted from it again.

The statistics are personal data of all persons together, with a keyed fingerprint of each. They stay on the
training side and never come near a bundle. A directory holds them as plain arrays and a manifest with the
SHA-256 of each array and of itself; no pickle. Statistics name the bundle that they belong to: with any other
they are of no use, and so are statistics that were altered.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from consentier.errors import BundleMalformed, ConsentierError
from consentier.models.bundle_manifest import JSON
from consentier.models.gram import GramStatistics
from consentier.models.item_index import ItemIndex
from consentier.models.repeats import RepeatCounts
from consentier.writing import flush, put_directory, workplace, write_new

__all__ = [
    "Fingerprints",
    "KeptStatistics",
    "Statistics",
    "StatisticsError",
    "ValueCounts",
    "among",
    "read_manifest",
    "read_statistics",
    "require_unaltered",
    "write_manifest",
    "write_statistics",
]

_FORMAT = 1
_MANIFEST = "manifest.json"

ValueCounts = Mapping[str, int] | Mapping[float, int]
"""How many persons have each value of an attribute: texts of a category, or numbers."""


class StatisticsError(ConsentierError):
    """Kept statistics are missing, were altered, or are not of this release's format."""


def among(digests: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Mark the digests that are among others: O(n log n).

    By sorting, because the offsets of the table that NumPy 2.0 takes where there are few overflow.
    """
    return np.isin(digests, others, kind="sort")


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprints:
    """Who was counted, and with what: enough to recognise a person's rows, not enough to read them.

    Attributes
    ----------
    key
        16 bytes, drawn at random for each fit; the fingerprints are keyed with it.
    persons
        uint64, ascending: fingerprint of each person's name.
    rows
        uint64, aligned with `persons`: fingerprint of all that was counted of the person.
    """

    key: bytes
    persons: NDArray[np.uint64]
    rows: NDArray[np.uint64]

    def __len__(self) -> int:
        return int(self.persons.size)

    def holds(self, persons: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Mark those of some persons who were counted."""
        return among(persons, self.persons)

    def matches(self, others: Fingerprints) -> bool:
        """Whether all of some persons were counted, each with the very same rows."""
        places = np.searchsorted(self.persons, others.persons)
        if places.size and places[-1] == self.persons.size:
            return False
        return bool(
            (self.persons[places] == others.persons).all() and (self.rows[places] == others.rows).all()
        )

    def exchanged(self, removed: Fingerprints, added: Fingerprints) -> Fingerprints:
        """The fingerprints after some persons left and others, or the same with other rows, came in."""
        kept = ~among(self.persons, removed.persons)
        persons = np.concatenate([self.persons[kept], added.persons])
        rows = np.concatenate([self.rows[kept], added.rows])
        order = np.argsort(persons, kind="stable")
        return Fingerprints(self.key, persons[order], rows[order])


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """All that one model was computed from.

    Attributes
    ----------
    items
        Every item with permitted rows, also those that too few persons have for it to be published.
    counts
        By name, int64 of shape (len(items),): distinct persons with each item.
    gram
        Co-occurrences of the published items, in their order, and of the attributes' inputs behind them; None
        where the model is not a function of these.
    attributes
        How many persons have each value, by attribute, in the order of the attributes.
    fingerprints
        Of everybody who was counted.
    devices
        uint64, ascending: fingerprints of the names of devices that were counted as part of another person.
    repeats
        How sessions went on; None for models of persons.
    """

    items: ItemIndex
    counts: Mapping[str, NDArray[np.int64]]
    gram: GramStatistics | None
    attributes: Mapping[str, ValueCounts]
    fingerprints: Fingerprints
    devices: NDArray[np.uint64] = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    repeats: RepeatCounts | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class KeptStatistics:
    """Statistics as they were kept.

    Attributes
    ----------
    statistics
        What was counted.
    bundle_digest
        The bundle that was computed from them.
    facts
        What whoever kept them noted of the fit.
    """

    statistics: Statistics
    bundle_digest: str
    facts: Mapping[str, Any]


def write_statistics(
    path: Path, statistics: Statistics, *, bundle_digest: str, facts: Mapping[str, JSON]
) -> None:
    """Keep statistics in a directory: written beside it, flushed to the disk, and renamed into place.

    Parameters
    ----------
    path
        The directory, for its owner only. What stands there is replaced; what an interrupted writer left
        beside it is deleted. There must not be two writers at a time.
    statistics
        What was counted.
    bundle_digest
        The bundle that was computed from them.
    facts
        What is to be known when they are used again, as plain values.

    Raises
    ------
    StatisticsError
        They cannot be written. What stood at `path` still stands.

    Notes
    -----
    O(bytes): 12 an entry of the Gram matrix, 8 more where persons are counted and 8 more where rows have an
    order, and 16 a person.
    """
    arrays = _arrays(statistics)
    document: dict[str, Any] = {
        "bundle_digest": bundle_digest,
        "facts": dict(facts),
        "counts": sorted(statistics.counts),
        "attributes": [
            {"name": name, "values": list(counts), "counts": list(counts.values())}
            for name, counts in statistics.attributes.items()
        ],
        "gram": _gram_document(statistics.gram),
        "key": statistics.fingerprints.key.hex(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with workplace(path, mode=0o700) as partial:
            document["files"] = {name: _write_array(partial, name, array) for name, array in arrays.items()}
            write_manifest(partial / _MANIFEST, document)
            flush(partial)
            replaced = put_directory(partial, path)
        if replaced is not None:
            shutil.rmtree(replaced)
    except OSError as error:
        raise StatisticsError(f"statistics {path}: cannot be written: {error}") from error


def read_statistics(path: Path) -> KeptStatistics:
    """Read kept statistics, and check that they are what was written.

    Raises
    ------
    StatisticsError
        There are none, they were altered, or another release wrote them. Fit again.

    Notes
    -----
    O(bytes), with one SHA-256 over all of them.
    """
    document = read_manifest(path / _MANIFEST)
    try:
        arrays = {name: _read_array(path, name, sha256) for name, sha256 in document["files"].items()}
        return KeptStatistics(
            Statistics(
                items=ItemIndex(arrays["item_ids"], arrays["item_offsets"]),
                counts={name: arrays[f"counts_{name}"] for name in document["counts"]},
                gram=_read_gram(document["gram"], arrays),
                attributes={
                    entry["name"]: dict(zip(entry["values"], entry["counts"], strict=True))
                    for entry in document["attributes"]
                },
                fingerprints=Fingerprints(
                    bytes.fromhex(document["key"]), arrays["persons"], arrays["person_rows"]
                ),
                devices=arrays["devices"],
                repeats=_read_repeats(arrays),
            ),
            document["bundle_digest"],
            document["facts"],
        )
    except (KeyError, TypeError, ValueError, BundleMalformed) as error:
        raise StatisticsError(f"statistics {path}: are malformed ({error}): fit again") from error


def _arrays(statistics: Statistics) -> dict[str, NDArray[Any]]:
    fingerprints, gram = statistics.fingerprints, statistics.gram
    arrays: dict[str, NDArray[Any]] = {
        **statistics.items.arrays(),
        **{f"counts_{name}": counts for name, counts in statistics.counts.items()},
        "persons": fingerprints.persons,
        "person_rows": fingerprints.rows,
        "devices": statistics.devices,
    }
    if statistics.repeats is not None:
        arrays["repeat_events"] = statistics.repeats.events
        arrays["repeat_persons"] = statistics.repeats.persons
    if gram is not None:
        arrays["gram_starts"] = gram.gram.indptr.astype(np.int64)
        arrays["gram_inputs"] = gram.gram.indices.astype(np.int32)
        arrays["gram_values"] = gram.gram.data
        arrays["gram_counts"] = gram.counts
        if gram.persons is not None:
            arrays["gram_persons"] = gram.persons
        if gram.forward is not None:
            arrays["gram_forward"] = gram.forward
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _gram_document(gram: GramStatistics | None) -> dict[str, Any] | None:
    if gram is None:
        return None
    return {
        "row_exponent": gram.row_exponent,
        "min_persons": gram.min_persons,
        "truncated": gram.truncated,
        "distance_decay": gram.distance_decay,
    }


def _read_gram(
    document: Mapping[str, Any] | None, arrays: Mapping[str, NDArray[Any]]
) -> GramStatistics | None:
    if document is None:
        return None
    inputs = arrays["gram_counts"].size
    return GramStatistics(
        gram=sparse.csr_matrix(
            (arrays["gram_values"], arrays["gram_inputs"], arrays["gram_starts"]), shape=(inputs, inputs)
        ),
        counts=arrays["gram_counts"],
        persons=arrays.get("gram_persons"),
        row_exponent=float(document["row_exponent"]),
        min_persons=int(document["min_persons"]),
        truncated=bool(document["truncated"]),
        forward=arrays.get("gram_forward"),
        distance_decay=document["distance_decay"],
    )


def _read_repeats(arrays: Mapping[str, NDArray[Any]]) -> RepeatCounts | None:
    if "repeat_events" not in arrays:
        return None
    return RepeatCounts(arrays["repeat_events"], arrays["repeat_persons"])


def _write_array(folder: Path, name: str, array: NDArray[Any]) -> str:
    """Write one array; return the SHA-256 of its file."""
    with (folder / f"{name}.npy").open("x+b") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_array(path: Path, name: str, sha256: str) -> NDArray[Any]:
    place = path / f"{name}.npy"
    try:
        with place.open("rb") as file:
            # Before it is parsed: NumPy reads headers of files that nobody altered.
            require_unaltered(file, place.name, path, sha256)
            file.seek(0)
            return np.asarray(np.load(file, allow_pickle=False))
    except OSError as error:
        raise StatisticsError(
            f"statistics {path}: {place.name} cannot be read ({error}): fit again"
        ) from error


def require_unaltered(file: BufferedReader, name: str, path: Path, sha256: str) -> None:
    """Check a file, which is open at its beginning, of the statistics in a directory.

    Raises
    ------
    StatisticsError
        Its SHA-256 is another one.
    """
    if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
        raise StatisticsError(f"statistics {path}: {name} was altered after it was written: fit again")


def write_manifest(file: Path, document: Mapping[str, Any]) -> None:
    """Write what is to be known of statistics, with a digest of itself, into a file that is not there yet."""
    document = {**document, "format": _FORMAT}
    write_new(file, _canonical({**document, "digest": _digest(document)}))


def read_manifest(file: Path) -> dict[str, Any]:
    """Read what `write_manifest` wrote.

    Raises
    ------
    StatisticsError
        There is none, it was altered, or another release wrote it.
    """
    path, name = file.parent, file.name
    try:
        payload = file.read_bytes()
    except FileNotFoundError:
        raise StatisticsError(f"statistics {path}: there are none") from None
    except OSError as error:
        raise StatisticsError(f"statistics {path}: cannot be read: {error}") from error
    try:
        document = json.loads(payload)
        if document["format"] != _FORMAT:
            raise StatisticsError(
                f"statistics {path}: format {document['format']!r} is not read by this release: fit again"
            )
        digest = document.pop("digest")
        found = _digest(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StatisticsError(f"statistics {path}: {name} is malformed: fit again") from error
    if digest != found:
        raise StatisticsError(f"statistics {path}: {name} was altered after it was written: fit again")
    return dict(document)


def _digest(document: Mapping[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(_canonical(document)).hexdigest()


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
