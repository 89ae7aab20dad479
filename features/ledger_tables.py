"""Imports a shop's ``consents`` and ``identities`` into a ledger.

Everything is validated before the first entry is appended: a bad row leaves the ledger as it was. Then the
rows are appended in chunks, each all or nothing. An import that was interrupted is run again; what the ledger
holds already is passed over.

An interrupted import must not permit what the whole one does not, so the order is not that of the tables:

1. record ids that stand for several contents: they count as denials, but only if all contents are there;
2. all that is no plain grant: refusals, objections and their lifts, minority, separated purposes;
3. grants of ``online``, ``crm`` and contact;
4. links.

No chunk ends within the rows of one record id (1), one subject (2, 3) or one device (4): half of a subject's
grants may be more than all of them, because a later one that has expired replaces an earlier one that has
not.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from consentier.consent import ConsentRecord, Ledger, Link
from consentier.errors import DataError
from consentier.features.schemas import PLAIN_PERMISSIONS, RECORD_CONTENT, SCHEMAS
from consentier.features.tables import Chunks, open_directory, raise_problems, reader_of
from consentier.features.validation import TableValidator
from consentier.progress import progress

__all__ = ["Imported", "import_tables"]

_TABLES = ("consents", "identities")

_CHUNK_ROWS = 50_000
"""Rows that are appended at once, if no subject has more. About 1 kB each while they are."""


@dataclasses.dataclass(frozen=True, slots=True)
class Imported:
    """What an import brought.

    Attributes
    ----------
    records_new, links_new
        Rows that became entries.
    records_known, links_known
        Rows that the ledger held already, or that stand in the table twice.
    record_ids_conflicting
        Record ids of the table that stand for several contents, in the table or together with what the ledger
        holds. They count as denials.
    """

    records_new: int
    records_known: int
    links_new: int
    links_known: int
    record_ids_conflicting: int


def import_tables(ledger: Ledger, data: str | Path, *, show_progress: bool = True) -> Imported:
    """Append the rows of ``consents`` and ``identities`` to a ledger.

    Parameters
    ----------
    ledger
        The ledger.
    data
        A directory that holds one of the tables or both, as `read_shop` reads it (other tables in it are not
        read), or one file of the name of its table: ``consents.parquet``, ``identities.csv``.
    show_progress
        Report progress on standard error.

    Returns
    -------
    Imported

    Raises
    ------
    DataError
        If there is no such table, or a row of one is bad; nothing was appended then. The message names table,
        column, row and rule.
    LedgerError
        If the ledger cannot be appended to. What was appended before stays, and permits nothing that the
        whole would not: run the import again.

    Notes
    -----
    n log n in the rows. Memory: the validated tables, and one chunk.
    """
    with _opened(Path(data)) as readers:
        tables = {name: _validated(name, chunks, show_progress) for name, chunks in readers.items()}
    consents, identities = (tables.get(name) for name in _TABLES)
    records_new = links_new = conflicting = 0
    total = sum(table.num_rows for table in tables.values())
    with progress("importing consents and links", total, enabled=show_progress) as advance:
        if consents is not None:
            for chunk in _consent_chunks(consents):
                records_new += ledger.append(ConsentRecord(**row) for row in chunk.to_pylist())
                advance(chunk.num_rows)
            ids = pa.array(ledger.conflicts, pa.string())
            conflicting = pc.sum(pc.is_in(pc.unique(consents["record_id"]), value_set=ids)).as_py() or 0
        if identities is not None:
            for chunk in _whole_chunks(identities, ["visitor_id"]):
                links_new += ledger.append_links(Link(**row) for row in chunk.to_pylist())
                advance(chunk.num_rows)
    return Imported(
        records_new=records_new,
        records_known=_rows(consents) - records_new,
        links_new=links_new,
        links_known=_rows(identities) - links_new,
        record_ids_conflicting=conflicting,
    )


@contextlib.contextmanager
def _opened(data: Path) -> Iterator[dict[str, Chunks]]:
    """What reads each table that there is."""
    if data.is_file():
        if data.stem not in _TABLES or data.suffix not in (".parquet", ".csv"):
            raise DataError(
                f"{data}: a file must be called {' or '.join(_TABLES)}, with .parquet or .csv: rename it, or "
                "give the directory of the tables"
            )
        yield {data.stem: reader_of(data)}
        return
    with open_directory(str(data), _TABLES) as source:
        raise_problems([*source.faults.values()])
        if not source.tables:
            raise DataError(f"{data}: holds neither consents nor identities, as .parquet or .csv")
        yield dict(source.tables)


def _validated(name: str, chunks: Chunks, show_progress: bool) -> pa.Table:
    validator = TableValidator(SCHEMAS[name])
    with progress(f"reading {name}", None, enabled=show_progress) as advance:
        for chunk in chunks(SCHEMAS[name]):
            validator.add(chunk)
            advance(chunk.batch.num_rows)
    table, _ = validator.finish()
    return table


def _rows(table: pa.Table | None) -> int:
    return 0 if table is None else int(table.num_rows)


def _consent_chunks(consents: pa.Table) -> Iterator[pa.Table]:
    """The records in an order in which what came in permits no more than what is still to come."""
    contradicted = pc.is_in(consents["record_id"], value_set=_contradicted_ids(consents))
    plain = pc.and_(
        pc.equal(consents["state"], "granted"), pc.is_in(consents["permission"], pa.array(PLAIN_PERMISSIONS))
    )
    others = pc.invert(contradicted)
    yield from _whole_chunks(consents.filter(contradicted), ["record_id"])
    yield from _whole_chunks(consents.filter(pc.and_not(others, plain)), ["subject_kind", "subject_id"])
    yield from _whole_chunks(consents.filter(pc.and_(others, plain)), ["subject_kind", "subject_id"])


def _contradicted_ids(consents: pa.Table) -> pa.Array:
    """Record ids that stand for several contents in one table."""
    repeated = _ids_with_several(consents.select(["record_id"]))
    rows = consents.filter(pc.is_in(consents["record_id"], value_set=repeated))
    return _ids_with_several(rows.group_by(list(RECORD_CONTENT)).aggregate([]))


def _ids_with_several(rows: pa.Table) -> pa.Array:
    counted = rows.group_by("record_id").aggregate([([], "count_all")])
    return counted.filter(pc.greater(counted["count_all"], 1))["record_id"].combine_chunks()


def _whole_chunks(table: pa.Table, keys: Sequence[str]) -> Iterator[pa.Table]:
    """Cut a table into chunks; rows with the same keys stay together."""
    table = table.sort_by([(name, "ascending") for name in keys])
    ends = _ends(table, keys)
    first = 0
    for end in ends:
        if end - first >= _CHUNK_ROWS or end == table.num_rows:
            yield table.slice(first, end - first)
            first = end


def _ends(table: pa.Table, keys: Sequence[str]) -> list[int]:
    """Behind which rows of a sorted table other keys begin, and the end."""
    if not table.num_rows:
        return []
    changes = pa.repeat(False, table.num_rows - 1)
    for name in keys:
        column = table[name].combine_chunks()
        changes = pc.or_(changes, pc.not_equal(column[1:], column[:-1]))
    ends: list[int] = pc.add(pc.indices_nonzero(changes), 1).to_pylist()
    return [*ends, table.num_rows]
