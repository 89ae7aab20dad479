"""Customers' attributes as inputs of a model: what scikit-learn would learn, written down plainly."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from sklearn.preprocessing import OneHotEncoder

from consentier.models.attribute_encoding import (
    AttributeEncoder,
    CategoryColumn,
    NumberColumn,
    category_text,
)

__all__ = ["fit_attributes"]


def fit_attributes(
    attributes: pa.Table, *, first_input: int, bins: int = 5, min_persons: int = 10
) -> AttributeEncoder:
    """Learn levels and bin edges from the permitted customers' attributes.

    Texts and truth values become one input per level (`OneHotEncoder`); levels with fewer than `min_persons`
    persons share one. Numbers become quantile bins, those of scikit-learn's `KBinsDiscretizer` where few
    customers have the same number; elsewhere quantiles coincide, and an edge is kept only where it leaves at
    least `min_persons` persons in each bin. A missing value has no input. Neither has a column of numbers
    that are all alike, nor one of texts that fewer than `min_persons` have.

    Parameters
    ----------
    attributes
        Column person and one column per attribute, as the gate lets them through.
    first_input
        Number of the first input: the attributes stand behind the items.
    bins
        Bins of a number, at most.
    min_persons
        Persons that a level or bin needs for an input of its own.

    Returns
    -------
    AttributeEncoder
        The columns in the order of the table, without those of times and nested values, which say nothing
        that a model here could use.

    Notes
    -----
    n log n in the values of each column.
    """
    columns: list[CategoryColumn | NumberColumn] = []
    following = first_input
    for name in attributes.column_names:
        if name == "person":
            continue
        values = attributes[name].drop_null()
        column = _fit_column(name, values, following, bins, min_persons)
        if column is not None:
            columns.append(column)
            following += column.input_count
    return AttributeEncoder(tuple(columns))


def _fit_column(
    name: str, values: pa.ChunkedArray, first_input: int, bins: int, min_persons: int
) -> CategoryColumn | NumberColumn | None:
    kind = values.type
    if pt.is_floating(kind) or pt.is_integer(kind):
        return _fit_number(name, values, first_input, bins, min_persons)
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_boolean(kind) or pt.is_dictionary(kind):
        return _fit_category(name, values, first_input, min_persons)
    return None


def _fit_number(
    name: str, values: pa.ChunkedArray, first_input: int, bins: int, min_persons: int
) -> NumberColumn | None:
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
    # With 0 added, -0 and 0 are one number: else the first of them, in whatever order, would be the edge.
    numbers = numbers[np.isfinite(numbers)] + 0.0
    if not numbers.size:
        return None
    parts = np.linspace(0, 100, bins + 1)[1:-1]
    quantiles = np.unique(np.percentile(numbers, parts, method="averaged_inverted_cdf"))
    below = np.searchsorted(np.sort(numbers), quantiles, side="left").tolist()
    edges, left = [], 0
    for edge, count in zip(quantiles.tolist(), below, strict=True):
        if min(count - left, numbers.size - count) >= min_persons:
            edges.append(edge)
            left = count
    return NumberColumn(name, tuple(edges), first_input) if edges else None


def _fit_category(
    name: str, values: pa.ChunkedArray, first_input: int, min_persons: int
) -> CategoryColumn | None:
    texts = np.array([category_text(value) for value in values.to_pylist()], dtype=object)
    if texts.size < min_persons:
        return None
    encoder = OneHotEncoder(min_frequency=min_persons, handle_unknown="infrequent_if_exist")
    encoder.fit(texts.reshape(-1, 1))
    infrequent = encoder.infrequent_categories_[0]
    rare = frozenset() if infrequent is None else frozenset(map(str, infrequent))
    levels = tuple(sorted(str(level) for level in encoder.categories_[0] if str(level) not in rare))
    return CategoryColumn(name, levels, bool(rare), first_input)
