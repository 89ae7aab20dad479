"""What a fit on Apache Spark counted, kept as Parquet tables so that persons can be subtracted from it again.

The tables lie where the statistics of one machine would, in the restricted directory, which driver and
executors see under the same name: the co-occurrences before any were dropped, by the numbers of the inputs,
and a keyed fingerprint of each person. Executors write them into a hidden directory while the tier is fitted;
the driver renames it when the bundle stands. No table names anybody: ids are hashed where they are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession

from consentier.consent import Tier
from consentier.consent.keyring import Keyring
from consentier.models.bundle import Bundle
from consentier.models.item_index import ItemIndex
from consentier.models.statistics import StatisticsError, read_manifest, require_unaltered, write_manifest
from consentier.training.counted import OTHER_BUNDLE
from consentier.training.decrement import NotExactError
from consentier.training.fingerprints import attribute_hashes, new_key, row_hashes, text_hashes
from consentier.training.lineage import subject_name
from consentier.training.restricted import Restricted
from consentier.writing import flush, put_directory, workplace

__all__ = ["Draft", "HashedRows", "TablesOnSpark", "facts_of", "tables_of"]

_MANIFEST = "tables.json"
"""Another name than that of statistics in arrays: neither engine takes the other's for its own."""

_COUNTS, _PERSONS, _ITEMS, _MEMBERS = "counts", "persons", "items", "members"

_HASHES = "person_hash long, row_hash long"


# ---- Fingerprints ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class HashedRows:
    """Permitted rows with the keyed hashes by which a later run knows them again.

    Attributes
    ----------
    rows
        The columns of `PermittedRows.rows`, and person_hash and row_hash.
    attributes
        Columns person and one per attribute; None where the tier uses none.
    hashes
        Columns person, person_hash and row_hash: one row per customer with attributes; None likewise.
    """

    rows: DataFrame
    attributes: DataFrame | None
    hashes: DataFrame | None

    @classmethod
    def of(cls, rows: DataFrame, attributes: DataFrame | None, key: bytes) -> Self:
        """Take the hashes, where the rows are."""
        columns = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in rows.schema.fields)
        hashed = rows.mapInArrow(functools.partial(_hash_rows, key=key), f"{columns}, {_HASHES}")
        if attributes is None:
            return cls(hashed, None, None)
        hash_attributes = functools.partial(_hash_attributes, key=key)
        return cls(hashed, attributes, attributes.mapInArrow(hash_attributes, f"person string, {_HASHES}"))

    def of_persons(self, persons: DataFrame) -> HashedRows:
        """The rows of some persons: column person_hash, each once."""
        rows = self.rows.join(persons, "person_hash", "left_semi")
        if self.attributes is None or self.hashes is None:
            return HashedRows(rows, None, None)
        hashes = self.hashes.join(persons, "person_hash", "left_semi")
        return HashedRows(rows, self.attributes.join(hashes.select("person"), "person", "left_semi"), hashes)

    def plain(self) -> DataFrame:
        """The rows without their hashes."""
        return self.rows.drop("person_hash", "row_hash")

    def together_with(self, others: HashedRows) -> HashedRows:
        """The rows of these persons and of different ones."""
        pairs = ((mine, theirs) for mine, theirs in zip(self._frames(), others._frames(), strict=True))
        return HashedRows(
            *(None if mine is None or theirs is None else mine.unionByName(theirs) for mine, theirs in pairs)
        )

    def fingerprints(self) -> DataFrame:
        """The fingerprint of each person, as on one machine: columns person_hash and fingerprint.

        Hashes are added modulo 2**64 in two halves, since a sum that does not fit is an error to Spark.
        """
        parts = self.rows.select("person_hash", "row_hash")
        if self.hashes is not None:
            parts = parts.unionAll(self.hashes.select("person_hash", "row_hash"))
        halves = parts.selectExpr(
            "person_hash", "row_hash & 4294967295 AS low", "shiftrightunsigned(row_hash, 32) AS high"
        )
        sums = halves.groupBy("person_hash").sum("low", "high")
        return sums.toDF("person_hash", "low", "high").selectExpr(
            "person_hash",
            "shiftleft(high + shiftrightunsigned(low, 32), 32) | (low & 4294967295) AS fingerprint",
        )

    def _frames(self) -> tuple[DataFrame | None, ...]:
        return self.rows, self.attributes, self.hashes


def _hash_rows(batches: Iterator[pa.RecordBatch], key: bytes) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        table = pa.Table.from_batches([batch])
        yield from _with_hashes(table, table, row_hashes(table, key), key)


def _hash_attributes(batches: Iterator[pa.RecordBatch], key: bytes) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        table = pa.Table.from_batches([batch])
        yield from _with_hashes(table.select(["person"]), table, attribute_hashes(table, key), key)


def _with_hashes(
    table: pa.Table, of: pa.Table, hashes: NDArray[np.uint64], key: bytes
) -> list[pa.RecordBatch]:
    persons = text_hashes(of["person"], key)
    for name, column in (("person_hash", persons), ("row_hash", hashes)):
        table = table.append_column(name, pa.array(column.view(np.int64)))
    batches: list[pa.RecordBatch] = table.combine_chunks().to_batches()
    return batches


# ---- Writing -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Draft:
    """What one fit is to keep, in a hidden directory until its bundle stands.

    Attributes
    ----------
    session, restricted, tier
        Who writes, where, and of what.
    place
        The hidden directory.
    key
        Keys the fingerprints: new, or that of the statistics in which rows are exchanged.
    tables
        Whether there are tables to be kept, besides the members.
    """

    session: SparkSession
    restricted: Restricted
    tier: Tier
    place: Path
    key: bytes = dataclasses.field(default_factory=new_key)
    tables: bool = False

    @classmethod
    @contextlib.contextmanager
    def open(cls, session: SparkSession, restricted: Restricted, tier: Tier) -> Iterator[Self]:
        """A draft that is gone at the end of the block unless it was kept.

        Raises
        ------
        OSError
            The directory cannot be made.
        """
        target = restricted.statistics(tier)
        restricted.keyring()  # before the executors look for it
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with workplace(target, mode=0o700) as place:
            yield cls(session, restricted, tier, place)

    def write_members(self, subjects: DataFrame) -> None:
        """Name those whose rows these are as the index of members does: columns kind and subject_id."""
        name = functools.partial(_keyed_names, keyring=self.restricted.path / "keys.json")
        names = subjects.distinct().mapInArrow(name, "name string")
        self._write(names, _MEMBERS)

    def write_tables(self, counted: DataFrame, fingerprints: DataFrame, behind: Mapping[str, int]) -> None:
        """Write what was counted.

        Parameters
        ----------
        counted
            All counts, summed, before any were dropped: the columns of `COUNTED`.
        fingerprints
            Of everybody who was counted, under `key`.
        behind
            Distinct persons by item, of all items with permitted rows.
        """
        self._write(counted, _COUNTS)
        self._write(fingerprints, _PERSONS)
        items = pa.table({"item_id": list(behind), "persons": pa.array(behind.values(), pa.int64())})
        (self.place / _ITEMS).mkdir()
        pq.write_table(items, self.place / _ITEMS / "part.parquet")
        self.tables = True

    def clear_unless_tables(self) -> None:
        """Before the bundle is written, delete statistics in whose place no others will be put.

        The bundle may have the digest of that to which they belong, and yet be of other persons.
        """
        if not self.tables:
            shutil.rmtree(self.restricted.statistics(self.tier), ignore_errors=True)

    def members(self) -> Iterator[str]:
        """The names of those who were counted, in pieces."""
        for file in _parts(self.place / _MEMBERS):
            with pq.ParquetFile(file) as opened:
                if not opened.num_row_groups:  # pyarrow 18 does not go through such a file
                    continue
                for batch in opened.iter_batches():
                    yield from batch.column("name").to_pylist()

    def keep(self, digest: str, facts: Mapping[str, Any]) -> None:
        """Put what was written into place, once the bundle of this digest stands and the index knows it.

        Without tables, as for the popular list, only the facts are kept.

        Raises
        ------
        StatisticsError
            They cannot be put there.
        """
        target = self.restricted.statistics(self.tier)
        try:
            shutil.rmtree(self.place / _MEMBERS)
            files = {}
            for folder in (_COUNTS, _PERSONS, _ITEMS) if self.tables else ():
                for file in _parts(self.place / folder):
                    flush(file)
                    with file.open("rb") as opened:
                        files[f"{folder}/{file.name}"] = hashlib.file_digest(opened, "sha256").hexdigest()
                flush(self.place / folder)
            document = {
                "bundle_digest": digest,
                "facts": dict(facts),
                "key": self.key.hex(),
                "files": files,
            }
            write_manifest(self.place / _MANIFEST, document)
            flush(self.place)
            replaced = put_directory(self.place, target)
            if replaced is not None:
                shutil.rmtree(replaced)
        except OSError as error:
            raise StatisticsError(f"statistics {target}: cannot be written: {error}") from error

    def _write(self, frame: DataFrame, name: str) -> None:
        """Have the executors write a table; one that would write it where nobody looks ends the run."""
        shared = frame.mapInArrow(functools.partial(_where_shared, place=self.place), frame.schema)
        shared.write.parquet(_url(self.place / name))


def _where_shared(batches: Iterator[pa.RecordBatch], place: Path) -> Iterator[pa.RecordBatch]:
    if not place.is_dir():
        raise StatisticsError(
            f"statistics {place.parent}: an executor does not see what the driver made there: put the "
            "restricted directory where all machines see it under one name"
        )
    yield from batches


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part*.parquet"))


def _url(path: Path) -> str:
    """A path as Spark takes it, whatever file system it reads from by default."""
    return f"file://{path.absolute()}"


def _keyed_names(batches: Iterator[pa.RecordBatch], keyring: Path) -> Iterator[pa.RecordBatch]:
    keys = Keyring.open(keyring, create=False)
    for batch in batches:
        subjects = zip(*(batch.column(name).to_pylist() for name in ("kind", "subject_id")), strict=True)
        names = [keys.digest("lineage", subject_name(*subject)) for subject in subjects]
        yield pa.RecordBatch.from_arrays([pa.array(names, pa.string())], names=["name"])


# ---- Reading -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class TablesOnSpark:
    """What a bundle was computed from.

    Attributes
    ----------
    counts
        The columns of `COUNTED`, by the numbers of the published items and of the attributes behind them.
    fingerprints
        Columns person_hash and fingerprint.
    behind
        Distinct persons by item, of all items that had permitted rows.
    key
        Of the fingerprints.
    facts
        What whoever kept them noted of the fit.
    """

    counts: DataFrame
    fingerprints: DataFrame
    behind: Mapping[str, int]
    key: bytes
    facts: Mapping[str, Any]

    def published(self, min_persons: int) -> ItemIndex:
        """The items that were published."""
        return ItemIndex.from_ids(item for item, count in self.behind.items() if count >= min_persons)


def facts_of(tier: Tier, bundle: Bundle, restricted: Restricted) -> Mapping[str, Any]:
    """What was noted of the fit of a bundle.

    Raises
    ------
    NotExactError
        Nothing was, it was altered, or belongs to another bundle.
    """
    facts: Mapping[str, Any] = _document(restricted.statistics(tier), bundle)["facts"]
    return facts


def _document(path: Path, bundle: Bundle) -> dict[str, Any]:
    try:
        document = read_manifest(path / _MANIFEST)
    except StatisticsError as error:
        raise NotExactError(str(error)) from error
    if document["bundle_digest"] != bundle.digest:
        raise NotExactError(OTHER_BUNDLE)
    return document


def tables_of(session: SparkSession, tier: Tier, bundle: Bundle, restricted: Restricted) -> TablesOnSpark:
    """What a bundle was computed from.

    Raises
    ------
    NotExactError
        There are no tables, they were altered, or they belong to another bundle.

    Notes
    -----
    One SHA-256 over all files, in the driver.
    """
    path = restricted.statistics(tier)
    document = _document(path, bundle)
    try:
        files: Mapping[str, str] = document["files"]
        for name, sha256 in files.items():
            with (path / name).open("rb") as file:
                require_unaltered(file, name, path, sha256)
        items = pq.read_table(path / _ITEMS / "part.parquet")
        counts, fingerprints = (
            session.read.parquet(*(_url(path / name) for name in files if name.startswith(f"{folder}/")))
            for folder in (_COUNTS, _PERSONS)
        )
        return TablesOnSpark(
            counts,
            fingerprints,
            dict(zip(items["item_id"].to_pylist(), items["persons"].to_pylist(), strict=True)),
            bytes.fromhex(document["key"]),
            document["facts"],
        )
    except StatisticsError as error:
        raise NotExactError(str(error)) from error
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise NotExactError(f"statistics {path}: cannot be read ({error}): fit again") from error
