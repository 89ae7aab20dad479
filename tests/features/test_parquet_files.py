"""Parquet files that are far larger than they look: refused before their content is in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consentier.errors import DataError
from consentier.features.parquet_files import bounded_batches
from consentier.features.schemas import SCHEMAS
from consentier.features.tables import reader_of
from consentier.serving import Catalogue


def long_text(path: Path) -> Path:
    """65,536 rows and more that all refer to one text of a megabyte: 64 GiB in 47 kB."""
    references = pa.array(np.zeros(200_000, np.int32))
    texts = pa.DictionaryArray.from_arrays(references, pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"item_id": texts}), path, store_schema=False)
    return path


def many_rows(path: Path) -> Path:
    """40 million equal rows: 1 GB in some hundred kilobytes."""
    rows = pa.table({"item_id": pa.array(["item-0000000000000000001"] * 1_000_000)})
    with pq.ParquetWriter(path, rows.schema, compression="zstd") as writer:
        for _ in range(40):
            writer.write_table(rows)
    return path


@pytest.mark.parametrize("bomb", [long_text, many_rows])
def test_content_out_of_proportion_to_the_file_is_refused(
    tmp_path: Path, bomb: Callable[[Path], Path]
) -> None:
    path = bomb(tmp_path / "items.parquet")
    before = pa.total_allocated_bytes()
    allocated = (pa.total_allocated_bytes() - before for _ in bounded_batches(path, ["item_id"]))
    with pytest.raises(DataError, match="out of proportion"):
        assert all(size < 1 << 28 for size in allocated)
    with pytest.raises(DataError, match="out of proportion"):
        Catalogue.of(path)
    with pytest.raises(DataError, match="out of proportion"):
        list(reader_of(path)(SCHEMAS["items"]))


def test_what_is_in_proportion_comes_out_as_it_was_written(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["a", None, "", "ä"] * 500,
            "long": pa.array(["b", None] * 1000, pa.large_string()),
            "kind": pa.array(["x", "y"] * 1000).dictionary_encode(),
            "tags": [["p", "q"], None] * 1000,
            "number": range(2000),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    found = pa.Table.from_batches(bounded_batches(tmp_path / "t.parquet", table.column_names))
    assert found.schema.types == table.schema.types
    assert found.to_pylist() == table.to_pylist()
    chosen = pa.Table.from_batches(bounded_batches(tmp_path / "t.parquet", ["number", "text"]))
    assert set(chosen.column_names) == {"number", "text"}


def test_no_text_that_is_none_gets_through(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 1, 2], np.int32))
    text = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xffa")])
    pq.write_table(pa.table({"a": text}), tmp_path / "t.parquet")
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        list(bounded_batches(tmp_path / "t.parquet", ["a"]))
