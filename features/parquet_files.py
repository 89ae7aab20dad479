"""Reads Parquet files whose content may be far larger than they are.

A few kilobytes of Parquet can stand for any number of bytes: a long text once in a dictionary and a million
references to it, or a value that is said to repeat a billion times. So texts are read as references first,
and what they come to is counted before it is written out.
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
    that the format allows) as it is unpacked. Costs some 0.2 µs a text more than without the count.
    """
    size = path.stat().st_size
    left = most = _ANY_FILE + _PER_BYTE * size
    fields = [field for field in pq.read_schema(path) if field.name in columns]
    texts = [field.name for field in fields if pa.types.is_string(field.type)]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
            batch.validate(full=True)
            left -= sum(map(_written_out, batch.columns))
            if left < 0:
                raise DataError(
                    f"{path}: the content is out of proportion to the {size} bytes of the file: more than "
                    f"{most} bytes. Look at who made it; a file that is right can be compressed less"
                )
            yield pa.RecordBatch.from_arrays(
                [
                    column.dictionary_decode() if name in texts else column
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                ],
                names=batch.schema.names,
            )


def _written_out(column: pa.Array) -> int:
    """Bytes of a column without references."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    values = column.dictionary
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return int(column.indices.nbytes)
    lengths = pc.take(pc.binary_length(values), column.indices)
    return int(pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0) + 4 * len(column)
