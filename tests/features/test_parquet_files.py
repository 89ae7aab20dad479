"""Parquet files that are far larger than they look: refused before their content is in memory."""

from __future__ import annotations

import base64
import decimal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consentier.errors import DataError
from consentier.features import parquet_files
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


def long_text_of_another_type(path: Path) -> Path:
    """As `long_text`, in a file that says that its texts are large ones, as those of pandas and Polars do."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200_000, np.int32)), pa.array(["x" * 1_000_000]))
    said = base64.b64encode(pa.schema([("item_id", pa.large_string())]).serialize())
    table = pa.table({"item_id": texts})
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"ARROW:schema": said})
    assert pq.read_schema(path).field("item_id").type == pa.large_string()
    return path


def long_bytes(path: Path) -> Path:
    """As `long_text`, of bytes that are no text."""
    values = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(200_000, np.int32)), pa.array([b"x" * 1_000_000])
    )
    pq.write_table(pa.table({"item_id": values}), path, store_schema=False)
    return path


def lists_of_a_long_text(path: Path) -> Path:
    """As `long_text`, each reference in a list of its own."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200_000, np.int32)), pa.array(["x" * 1_000_000]))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(200_001, dtype=np.int32)), texts)
    pq.write_table(pa.table({"item_id": lists}), path, store_schema=False)
    return path


@pytest.mark.parametrize(
    "bomb",
    [long_text, many_rows, long_text_of_another_type, long_bytes, lists_of_a_long_text],
)
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


def test_a_row_of_any_number_of_values_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "_ANY_FILE", 1 << 20)
    values = pa.array(np.zeros(4_000_000, np.int8))
    row = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    pq.write_table(pa.table({"tags": row, "item_id": ["a"]}), tmp_path / "t.parquet")
    monkeypatch.setattr(pq, "ParquetFile", None)  # not opened
    with pytest.raises(DataError, match="out of proportion"):
        list(bounded_batches(tmp_path / "t.parquet", ["tags", "item_id"]))
    monkeypatch.undo()
    assert [batch.to_pylist() for batch in bounded_batches(tmp_path / "t.parquet", ["item_id"])] == [
        [{"item_id": "a"}]
    ]


def test_what_is_in_proportion_comes_out_as_it_was_written(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["a", None, "", "ä"] * 500,
            "long": pa.array(["b", None] * 1000, pa.large_string()),
            "kind": pa.array(["x", "y"] * 1000).dictionary_encode(),
            "tags": [["p", "q"], None] * 1000,
            "deep": [[{"a": "p"}], []] * 1000,
            "map": pa.array([[("p", "q")], None] * 1000, pa.map_(pa.string(), pa.string())),
            "bytes": [b"\xff", None] * 1000,
            "fixed": pa.array([b"\xff", None] * 1000, pa.binary(1)),
            "decimal": pa.array([decimal.Decimal("1.50"), None] * 1000),
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
