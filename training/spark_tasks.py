"""What runs on the executors of Apache Spark: rows of whole persons to counts, and counts to weights.

It is the code that trains on one machine (`features.interactions`, `models.gram`, `models.local_ridge`), fed
with some of the persons, or asked for some of the items. Counts are integers, so that Spark may add them up
in any order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from numpy.typing import NDArray

from consentier.features.gate import CANONICAL_ORDER, PermittedRows
from consentier.features.interactions import CodedRows, Interactions
from consentier.models.attribute_encoding import AttributeEncoder
from consentier.models.gram import GramStatistics, gram_parts
from consentier.models.local_ridge import LocalRidge

__all__ = [
    "COUNTED",
    "ENTRY",
    "INPUT",
    "REPEAT",
    "SOLVED",
    "Coding",
    "Counting",
    "GramFiles",
    "Solving",
    "count_batches",
    "encode_batches",
    "interactions_of",
    "solve_batches",
    "whole_persons",
]

ENTRY, INPUT, REPEAT = 0, 1, 2
"""Kinds of counts: of an entry of the Gram matrix, of an input, of a cell of the table of repeats."""

COUNTED = "kind byte, i int, j int, value long, forward long, persons long"
"""Columns of what `count_batches` gives."""

SOLVED = "item int, input int, weight float"
"""Columns of what `solve_batches` gives."""

_COUNTED = pa.schema(
    [
        ("kind", pa.int8()),
        ("i", pa.int32()),
        ("j", pa.int32()),
        ("value", pa.int64()),
        ("forward", pa.int64()),
        ("persons", pa.int64()),
    ]
)
_NOBODY = pa.table({"kind": pa.array([], pa.string()), "subject_id": pa.array([], pa.string())})


@dataclasses.dataclass(frozen=True, slots=True)
class Coding:
    """How rows of persons become a matrix.

    Attributes
    ----------
    item_ids
        All items that are published, ascending by UTF-8 bytes.
    attribute_inputs
        How many inputs stand behind the items.
    until
        Microseconds since the epoch: all rows are from before it.
    by_session
        One history per session, or per person.
    matrix
        What the matrix depends on besides rows and attributes: arguments of `CodedRows.interactions`.
    block_rows
        Rows that are taken at once, and more only where one person has more.
    """

    item_ids: tuple[str, ...]
    attribute_inputs: int
    until: int
    by_session: bool
    matrix: Mapping[str, Any]
    block_rows: int = 50_000


@dataclasses.dataclass(frozen=True, slots=True)
class Counting:
    """How rows are counted.

    Attributes
    ----------
    coding
        How they become a matrix.
    row_exponent, min_persons, distance_decay
        As for `gram_statistics`.
    ordered
        Whether the order of sessions counts.
    """

    coding: Coding
    row_exponent: float
    min_persons: int
    distance_decay: float | None
    ordered: bool


def encode_batches(batches: Iterator[pa.RecordBatch], encoder: AttributeEncoder) -> Iterator[pa.RecordBatch]:
    """Customers' attributes as the numbers of their inputs: columns person and inputs."""
    for batch in batches:
        names = [name for name in batch.schema.names if name != "person"]
        inputs = [encoder.inputs({name: row[name] for name in names}) for row in batch.to_pylist()]
        lists = pa.array([list(each) for each in inputs], pa.list_(pa.int32()))
        yield pa.RecordBatch.from_arrays([batch.column("person"), lists], names=["person", "inputs"])


def count_batches(batches: Iterator[pa.RecordBatch], counting: Counting) -> Iterator[pa.RecordBatch]:
    """Count what stands in rows of whole persons.

    Parameters
    ----------
    batches
        The columns of `PermittedRows.rows` and inputs (null in rows; a person's attributes are a row with
        nothing else), sorted by person.
    counting
        How.

    Notes
    -----
    The time of `gram_statistics`. Memory: a block of rows, or all rows of one person, and 1,000,000 entries
    of 28 bytes.
    """
    for rows in whole_persons(batches, counting.coding.block_rows):
        yield from _counted(rows, counting)


def whole_persons(batches: Iterator[pa.RecordBatch], most_rows: int) -> Iterator[pa.Table]:
    """Cut rows that are sorted by person into tables of whole persons.

    Parameters
    ----------
    batches
        Column person, in which the rows of each stand together, and more.
    most_rows
        How many rows are collected before they are cut. One person's rows stay together, however many.
    """
    pending: list[pa.RecordBatch] = []
    count, limit = 0, most_rows
    for batch in batches:
        pending.append(batch)
        count += batch.num_rows
        if count < limit:
            continue
        table = pa.Table.from_batches(pending)
        last = pc.index(table["person"], table["person"][-1]).as_py()
        if last:
            yield table.slice(0, last)
        rest = table.slice(last)
        pending, count = rest.to_batches(), rest.num_rows
        limit = max(most_rows, 2 * count)  # a person with very many rows is looked through a few times only
    if count:
        yield pa.Table.from_batches(pending)


def interactions_of(rows: pa.Table, coding: Coding) -> Interactions | None:
    """The matrix of the persons whose rows these are; None where they are of customers without any.

    Parameters
    ----------
    rows
        A table from `whole_persons`, with the columns of `count_batches`.
    coding
        How.
    """
    attributes = rows.filter(rows["inputs"].is_valid())
    events = rows.filter(rows["inputs"].is_null()).drop_columns(["inputs"])
    if not events.num_rows:
        return None
    in_order = events.sort_by([(name, "ascending") for name in CANONICAL_ORDER])
    permitted = PermittedRows(in_order, None, (), _NOBODY, coding.until)
    coded = CodedRows.of(permitted, by_session=coding.by_session, item_ids=coding.item_ids)
    behind = _attribute_matrix(coded, attributes, coding.attribute_inputs)
    return coded.interactions(attributes=behind, **coding.matrix)


def _counted(rows: pa.Table, counting: Counting) -> Iterator[pa.RecordBatch]:
    data = interactions_of(rows, counting.coding)
    if data is None:
        return
    counts, parts = gram_parts(
        data.matrix,
        row_exponent=counting.row_exponent,
        persons=data.persons,
        min_persons=counting.min_persons,
        order=data.order if counting.ordered else None,
        distance_decay=counting.distance_decay,
    )
    inputs = np.flatnonzero(counts)
    yield _batch(INPUT, inputs, np.zeros_like(inputs), counts[inputs])
    if data.repeats is not None:
        seen, since = np.nonzero(data.repeats.events)
        cells = seen, since
        yield _batch(REPEAT, seen, since, data.repeats.events[cells], persons=data.repeats.persons[cells])
    for part in parts:
        yield _batch(ENTRY, part.rows, part.columns, part.values, part.forward, part.persons)


def _attribute_matrix(coded: CodedRows, attributes: pa.Table, inputs_behind: int) -> sp.csr_matrix | None:
    if not inputs_behind:
        return None
    positions = pc.index_in(attributes["person"], value_set=pa.array(coded.person_ids, pa.string()))
    known = attributes.filter(positions.is_valid())
    lengths = pc.list_value_length(known["inputs"]).to_numpy().astype(np.int64)
    rows = np.repeat(positions.drop_null().to_numpy().astype(np.int64), lengths)
    inputs = pc.list_flatten(known["inputs"]).to_numpy().astype(np.int64) - len(coded.item_ids)
    shape = (len(coded.person_ids), inputs_behind)
    return sp.csr_matrix((np.ones(rows.size, np.float32), (rows, inputs)), shape=shape)


def _batch(
    kind: int,
    i: NDArray[np.integer],
    j: NDArray[np.integer],
    value: NDArray[np.int64],
    forward: NDArray[np.int64] | None = None,
    persons: NDArray[np.int64] | None = None,
) -> pa.RecordBatch:
    nothing = np.zeros(i.size, dtype=np.int64)
    columns = (
        np.full(i.size, kind, dtype=np.int8),
        i.astype(np.int32),
        j.astype(np.int32),
        value,
        nothing if forward is None else forward,
        nothing if persons is None else persons,
    )
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=_COUNTED)


@dataclasses.dataclass(frozen=True, slots=True)
class GramFiles:
    """Statistics as files that every executor holds a copy of, to be mapped into memory.

    Attributes
    ----------
    names
        By array of `GramStatistics` (``data``, ``indices``, ``indptr``, ``counts``, and where they are
        counted ``persons`` and ``forward``): the name under which Spark distributes its ``.npy`` file.
    row_exponent, min_persons, truncated, distance_decay
        As in `GramStatistics`.
    """

    names: Mapping[str, str]
    row_exponent: float
    min_persons: int
    truncated: bool
    distance_decay: float | None

    def statistics(self, folder: Path) -> GramStatistics:
        """Map them from a directory. Memory: none beyond the page cache, which the tasks of a host share."""
        arrays = {
            name: np.load(folder / file, mmap_mode="r", allow_pickle=False)
            for name, file in self.names.items()
        }
        inputs = arrays["counts"].size
        gram = sp.csr_matrix(
            (arrays["data"], arrays["indices"], arrays["indptr"]), shape=(inputs, inputs), copy=False
        )
        return GramStatistics(
            gram=gram,
            counts=arrays["counts"],
            persons=arrays.get("persons"),
            row_exponent=self.row_exponent,
            min_persons=self.min_persons,
            truncated=self.truncated,
            forward=arrays.get("forward"),
            distance_decay=self.distance_decay,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Solving:
    """What is solved: every `chunks`-th item of each chunk, from the statistics in the files."""

    model: LocalRidge
    files: GramFiles
    items: int
    chunks: int


def solve_batches(batches: Iterator[pa.RecordBatch], solving: Solving) -> Iterator[pa.RecordBatch]:
    """Solve the items of some chunks.

    Parameters
    ----------
    batches
        Column chunk: whole numbers below `Solving.chunks`.
    solving
        What.
    """
    from pyspark import SparkFiles

    statistics = solving.files.statistics(Path(SparkFiles.getRootDirectory()))
    for batch in batches:
        for chunk in batch.column("chunk").to_pylist():
            columns = np.arange(chunk, solving.items, solving.chunks)
            weights = solving.model.solve(statistics, columns=columns).tocsc()
            items = np.repeat(np.arange(solving.items, dtype=np.int32), np.diff(weights.indptr))
            yield pa.RecordBatch.from_arrays(
                [pa.array(items), pa.array(weights.indices.astype(np.int32)), pa.array(weights.data)],
                names=["item", "input", "weight"],
            )
