"""The arrays of a bundle that have a meaning in the format, and whether they keep it.

Item index, weights as a sparse matrix, factors, what attributes let expect: see ``docs/bundle-format.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.errors import BundleMalformed
from consentier.models.bundle_manifest import Manifest
from consentier.models.item_index import ItemIndex

__all__ = ["check_csr", "check_factors", "check_prior_factors", "reserved_findings"]

_ROWS_PER_CHUNK = 4096
_ENTRIES_AT_ONCE = 1 << 20

# Arrays that stand together and have a meaning in the format.
_ITEM_INDEX = frozenset({"item_ids", "item_offsets"})
_WEIGHTS = frozenset({"indptr", "indices", "data"})
_FACTORS = frozenset({"factors", "factor_gram"})
_PRIOR_FACTORS = _FACTORS | {"prior_factors"}


def check_csr(
    indptr: NDArray[Any],
    indices: NDArray[Any],
    data: NDArray[Any],
    shape: tuple[int, int],
) -> None:
    """Check that three arrays are a canonical compressed sparse row matrix.

    Parameters
    ----------
    indptr
        Integer, shape (rows + 1,): row ``i`` holds the entries ``indptr[i]`` to ``indptr[i + 1]``.
    indices
        Integer, shape (entries,): column of each entry, ascending and unique within a row.
    data
        Float or integer, shape (entries,), finite.
    shape
        Rows and columns.

    Raises
    ------
    BundleMalformed
        They are not; the message names the array and the row.

    Notes
    -----
    O(rows + entries) time; temporary memory of some 4 MB, and 8 bytes a row. On one core of a small virtual
    machine some .5 s for 100 million entries.
    """
    rows, columns = shape
    for part, array, kinds in (("indptr", indptr, "iu"), ("indices", indices, "iu"), ("data", data, "fiu")):
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise BundleMalformed(
                f"{part} must be one-dimensional {'numbers' if 'f' in kinds else 'integers'}, got "
                f"{array.dtype} of shape {array.shape}"
            )
    entries = indices.size
    if not indptr.size or indptr.size != rows + 1:
        raise BundleMalformed(f"indptr has {indptr.size} entries; {rows} rows need {rows + 1}")
    if data.size != entries:
        raise BundleMalformed(f"data has {data.size} entries and indices {entries}")
    if indptr[0] != 0 or indptr[-1] != entries:
        raise BundleMalformed(
            f"indptr runs from {indptr[0]} to {indptr[-1]}; expected 0 to {entries}, the number of entries"
        )
    descending = np.flatnonzero(indptr[1:] < indptr[:-1])
    if descending.size:
        raise BundleMalformed(f"indptr descends at row {descending[0]}")
    _check_columns(indptr, indices, columns)
    for start in range(0, entries, _ENTRIES_AT_ONCE):
        infinite = np.flatnonzero(~np.isfinite(data[start : start + _ENTRIES_AT_ONCE]))
        if infinite.size:
            place = start + int(infinite[0])
            raise BundleMalformed(
                f"data holds {data[place]} in row {_row_of(indptr, place)}; weights must be finite"
            )


def check_factors(factors: NDArray[Any], gram: NDArray[Any], inputs: int) -> None:
    """Check that two arrays are the factors of a model's inputs and the diagonal of their Gram matrix.

    Parameters
    ----------
    factors
        float32, shape (inputs, factors), finite.
    gram
        float64, shape (factors,): the sums of the squares of its columns.
    inputs
        Number of inputs.

    Raises
    ------
    BundleMalformed
        They are not; the message names the array and the row or column.

    Notes
    -----
    O(size of factors).
    """
    if factors.ndim != 2 or factors.dtype != np.float32 or factors.shape[0] != inputs or not factors.shape[1]:
        raise BundleMalformed(
            f"factors must be float32 with {inputs} rows and at least one column, got {factors.dtype} of "
            f"shape {factors.shape}"
        )
    if gram.dtype != np.float64 or gram.shape != (factors.shape[1],):
        raise BundleMalformed(
            f"factor_gram must be float64 with one entry for each of {factors.shape[1]} factors, got "
            f"{gram.dtype} of shape {gram.shape}"
        )
    squares = np.zeros(factors.shape[1])
    for start in range(0, inputs, _ROWS_PER_CHUNK):
        chunk = factors[start : start + _ROWS_PER_CHUNK].astype(np.float64)
        infinite = np.flatnonzero(~np.isfinite(chunk).all(axis=1))
        if infinite.size:
            row = start + infinite[0]
            raise BundleMalformed(f"factors of row {row} hold a number that is not finite")
        squares += np.square(chunk).sum(axis=0)
    wrong = np.flatnonzero(~(np.abs(gram - squares) <= 1e-6 * squares))
    if wrong.size:
        raise BundleMalformed(
            f"factor_gram is {gram[wrong[0]]} for factor {wrong[0]}, whose squares sum to {squares[wrong[0]]}"
        )


def check_prior_factors(
    priors: NDArray[Any], factors: tuple[int, ...], attribute_inputs: int, items: int
) -> None:
    """Check that an array says what attributes let expect, beside factors of items alone.

    Parameters
    ----------
    priors
        float32, shape (attribute_inputs + 1, factors), finite.
    factors
        Shape of the items' factors.
    attribute_inputs, items
        Number of inputs behind the items, and of items.

    Raises
    ------
    BundleMalformed
        It is not.

    Notes
    -----
    O(size of priors).
    """
    if factors[0] != items:
        raise BundleMalformed(f"beside prior_factors, factors have {factors[0]} rows for {items} items")
    expected = (attribute_inputs + 1, factors[1])
    if priors.shape != expected or priors.dtype != np.float32 or attribute_inputs < 0:
        raise BundleMalformed(
            f"prior_factors must be float32 of shape {expected}, got {priors.dtype} of shape {priors.shape}"
        )
    if not np.isfinite(priors).all():
        raise BundleMalformed("prior_factors hold a number that is not finite")


def _check_columns(indptr: NDArray[Any], indices: NDArray[Any], columns: int) -> None:
    """Check columns block by block, so that each is read from memory once."""
    for start in range(0, indices.size, _ENTRIES_AT_ONCE):
        block = indices[start : start + _ENTRIES_AT_ONCE + 1]  # one more: the next one must ascend too
        if not (block.min() >= 0 and block.max() < columns):
            place = start + int(np.flatnonzero((block < 0) | (block >= columns))[0])
            raise BundleMalformed(
                f"indices holds column {indices[place]} in row {_row_of(indptr, place)}; the "
                f"matrix has {columns} columns"
            )
        places = start + 1 + np.flatnonzero(block[1:] <= block[:-1])
        # Only the first entry of a row may be less than the one before it.
        bad = places[indptr[np.searchsorted(indptr, places)] != places]
        if bad.size:
            row = _row_of(indptr, bad[0])
            raise BundleMalformed(f"indices of row {row} do not ascend without duplicates")


def _row_of(indptr: NDArray[Any], position: int | np.integer) -> int:
    return int(np.searchsorted(indptr, position, side="right")) - 1


def reserved_findings(
    path: Path, manifest: Manifest, arrays: Mapping[str, NDArray[Any]]
) -> Iterator[BundleMalformed]:
    """Check the content of the arrays that have a meaning in the format: item index, weights, factors."""
    checks = (
        (_ITEM_INDEX, _check_item_index),
        (_WEIGHTS, _check_weights),
        (_FACTORS, _check_factors),
        (_PRIOR_FACTORS, _check_prior_factors),
    )
    for group, check in checks:
        if arrays.keys() >= group:
            try:
                check(manifest, arrays)
            except BundleMalformed as error:
                yield BundleMalformed(f"bundle {path}: {error}")


def _check_item_index(_: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    ItemIndex(arrays["item_ids"], arrays["item_offsets"])


def _check_weights(manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    indptr = arrays["indptr"]
    check_csr(indptr, arrays["indices"], arrays["data"], (indptr.shape[0] - 1, manifest.item_count))


def _check_factors(manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    rows = arrays["factors"].shape[0]
    check_factors(arrays["factors"], arrays["factor_gram"], rows)
    if rows < manifest.item_count:
        raise BundleMalformed(f"factors have {rows} rows for {manifest.item_count} items")


def _check_prior_factors(manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> None:
    priors, factors = arrays["prior_factors"], arrays["factors"]
    check_prior_factors(priors, factors.shape, priors.shape[0] - 1, manifest.item_count)
