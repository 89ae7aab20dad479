"""Metadata of items as levels that items share: categories, price bands and the like. No person is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
import scipy.sparse as sp
from numpy.typing import NDArray

from consentier.errors import ConfigError, suggestion
from consentier.features.attributes import fit_attributes
from consentier.models.attribute_encoding import category_text

__all__ = ["ItemLevels", "item_levels", "metadata_columns"]

_BINS = 5
"""Bands of a number, such as a price: fifths of the items that have one."""


@dataclasses.dataclass(frozen=True, slots=True)
class ItemLevels:
    """Which items have which levels.

    Attributes
    ----------
    columns
        The columns of the items table that were read.
    item_ids
        The items that have a level, ascending by UTF-8 bytes.
    matrix
        CSR, bool, shape (items, levels): the levels of each item.
    digest
        SHA-256 over all this: other metadata have another.
    """

    columns: tuple[str, ...]
    item_ids: tuple[str, ...]
    matrix: sp.csr_matrix
    digest: str


def metadata_columns(items: pa.Table) -> tuple[str, ...]:
    """The columns of the gate's items that can be read as levels and hold any.

    Texts, truth values and numbers, and lists of texts, of which each is a level.
    """
    names = (name for name in items.column_names if name != "item_id")
    return tuple(name for name in names if _readable(items[name].type) and _holds_any(items[name]))


def item_levels(items: pa.Table | None, columns: Sequence[str] = ()) -> ItemLevels | None:
    """Read the levels of items.

    A text or truth value is one level, each text of a list one; of a number the band is, fifths of the items
    as `fit_attributes` finds them. A missing value is no level.

    Parameters
    ----------
    items
        Column item_id and others, as the gate lets them through; None where there are none.
    columns
        Which to read; empty: all that can be read.

    Returns
    -------
    ItemLevels or None
        None where there is nothing to read.

    Raises
    ------
    ConfigError
        A column that was asked for is not there, or cannot be read as levels.

    Notes
    -----
    Linear in the values, some microseconds each.
    """
    if items is None or not items.num_rows:
        return None
    known = metadata_columns(items)
    for name in columns:
        if name not in items.column_names or not _readable(items[name].type):
            raise ConfigError(
                f"metadata_columns names {name!r}, which is no column of the items table that can be read as "
                f"levels (texts, truth values, numbers or lists of texts){suggestion(name, known)}"
            )
    chosen = tuple(sorted(columns or known))
    numbers: dict[str, int] = {}
    pairs: set[tuple[int, int]] = set()
    for name in chosen:
        for row, level in _levels(name, items[name]):
            pairs.add((row, numbers.setdefault(json.dumps([name, level]), len(numbers))))
    if not pairs:
        return None
    return _sorted(chosen, items["item_id"].to_pylist(), list(numbers), np.array(sorted(pairs), np.int64))


def _sorted(
    columns: tuple[str, ...], ids: Sequence[str], names: Sequence[str], pairs: NDArray[np.int64]
) -> ItemLevels:
    """Items and levels in ascending order, whatever order the table had."""
    place_of_level = np.empty(len(names), dtype=np.int64)
    place_of_level[sorted(range(len(names)), key=lambda number: _utf8(names[number]))] = range(len(names))
    rows = np.unique(pairs[:, 0])
    order = sorted(rows.tolist(), key=lambda row: _utf8(ids[row]))
    place_of_row = np.zeros(len(ids), dtype=np.int64)
    place_of_row[order] = range(len(order))
    matrix = sp.csr_matrix(
        (np.ones(len(pairs), np.bool_), (place_of_row[pairs[:, 0]], place_of_level[pairs[:, 1]])),
        shape=(len(order), len(names)),
    )
    matrix.sort_indices()
    item_ids = tuple(ids[row] for row in order)
    digest = hashlib.sha256(json.dumps([columns, item_ids, sorted(names, key=_utf8)]).encode("ascii"))
    for array in (matrix.indptr, matrix.indices):
        digest.update(array.astype("<i8").tobytes())
    return ItemLevels(columns, item_ids, matrix, f"sha256:{digest.hexdigest()}")


def _readable(kind: pa.DataType) -> bool:
    if _is_list(kind):
        return _is_text(kind.value_type)
    return _is_text(kind) or _is_number(kind) or bool(pt.is_boolean(kind) or pt.is_dictionary(kind))


def _holds_any(values: pa.ChunkedArray) -> bool:
    return int(values.null_count) < len(values)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_floating(kind) or pt.is_integer(kind))


def _levels(name: str, values: pa.ChunkedArray) -> Iterator[tuple[int, str | int]]:
    """Each row with each of its levels."""
    if _is_list(values.type):
        for row, texts in enumerate(values.to_pylist()):
            for text in texts or ():
                if text:
                    yield row, text
    elif _is_number(values.type):
        encoder = fit_attributes(pa.table({name: values}), first_input=0, bins=_BINS, min_persons=1)
        for row, value in enumerate(values.to_pylist() if encoder.columns else ()):
            for band in encoder.inputs({name: value}):
                yield row, band
    else:
        for row, value in enumerate(values.to_pylist()):
            category = category_text(value)
            if category:
                yield row, category


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
