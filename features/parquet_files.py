"""Reads Parquet files whose content may be far larger than they are.

A few kilobytes of Parquet can stand for any number of bytes: a long text once in a dictionary and a million
references to it, or a value that is said to repeat a billion times. So texts, those within lists too, are
read as references first, and what they come to is counted before it is written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consentier.errors import DataError

__all__ = ["bounded_batches"]

_BATCH_ROWS = 65_536
_ANY_FILE, _PER_BYTE = 1 << 28, 1000
"""Bytes that the content of a file may come to, whatever its size, and those on top for each of its bytes."""
_OF_A_VALUE = 4
"""Bytes that a value within a list takes at least, be it an offset, once it is read."""


def bounded_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read columns of a Parquet file, some rows at a time, while they are in proportion to its size.

    Parameters
    ----------
    path
        The file.
    columns
        Those that are read.

    Raises
    ------
    DataError
        If the content comes to more than 256 MiB and 1000 bytes for each byte of the file.
    pyarrow.ArrowException, OSError
        If it cannot be read.

    Notes
    -----
    Memory: one batch of at most 65,536 rows, its longest texts once, and a page (at most 2 GiB, which is all
    that the format allows) as it is unpacked. Costs some 0.2 µs a text more than without the count. The
    values within lists are counted by what the file says of itself before they are read, and once they are.
    """
    size = path.stat().st_size
    left = most = _ANY_FILE + _PER_BYTE * size
    metadata = pq.read_metadata(path)
    if _in_lists(metadata, columns) > most:
        raise _out_of_proportion(path, size, most)
    kinds = metadata.schema.to_arrow_schema()
    leaves = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    texts = [
        leaf.path
        for leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL"
    ]
    widest = max((leaf.length for leaf in leaves), default=0)  # of those whose values have one length
    rows = max(1, min(_BATCH_ROWS, _ANY_FILE // max(widest, 1)))
    if not metadata.num_row_groups:  # pyarrow 18 does not go through such a file
        return
    with pq.ParquetFile(path, metadata=metadata, read_dictionary=texts) as file:
        for batch in file.iter_batches(rows, columns=list(columns)):
            batch.validate(full=True)
            left -= sum(map(_written_out, batch.columns))
            if left < 0:
                raise _out_of_proportion(path, size, most)
            yield pa.RecordBatch.from_arrays(
                [
                    _without_references(column, kinds.field(name).type)
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                ],
                names=batch.schema.names,
            )


def _out_of_proportion(path: Path, size: int, most: int) -> DataError:
    return DataError(
        f"{path}: the content is out of proportion to the {size} bytes of the file: more than {most} bytes. "
        "Look at who made it; a file that is right can be compressed less"
    )


def _in_lists(metadata: pq.FileMetaData, columns: Sequence[str]) -> int:
    """Bytes that values within lists come to at least: a single row of them can have any number."""
    wanted = set(columns)
    repeated = []
    for place in range(metadata.num_columns):
        leaf = metadata.schema.column(place)
        parts = leaf.path.split(".")
        read = any(".".join(parts[:end]) in wanted for end in range(1, len(parts) + 1))
        if leaf.max_repetition_level and read:
            repeated.append((place, max(leaf.length, _OF_A_VALUE)))
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups if repeated else 0))
    return sum(group.column(place).num_values * length for group in groups for place, length in repeated)


def _written_out(column: pa.Array) -> int:
    """Bytes of a column without references."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        values = column.dictionary
        if not (_is_text(values.type) or _is_binary(values.type)):
            return int(column.indices.nbytes)
        lengths = pc.take(pc.binary_length(values), column.indices)
        return int(pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0) + 4 * len(column)
    if pa.types.is_map(kind):
        return _OF_A_VALUE * len(column) + _written_out(column.keys) + _written_out(column.items)
    if pa.types.is_struct(kind):
        return sum(map(_written_out, column.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _OF_A_VALUE * len(column) + _written_out(column.flatten())
    return int(column.nbytes)


def _without_references(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column in its type in the file; views of texts as plain texts, categories as references."""
    if pa.types.is_dictionary(kind):
        return column
    if pa.types.is_string_view(kind):
        kind = pa.string()
    elif pa.types.is_binary_view(kind):
        kind = pa.binary()
    return column if column.type == kind else column.cast(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
