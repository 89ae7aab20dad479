"""From permitted rows to the matrices that models are fitted on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from numpy.typing import NDArray

from consentier.features.gate import PermittedRows
from consentier.models.attribute_encoding import AttributeEncoder
from consentier.models.recency import recency_weights

__all__ = ["Interactions", "interactions", "person_counts"]


@dataclasses.dataclass(frozen=True, slots=True)
class Interactions:
    """One tier's training matrix.

    Attributes
    ----------
    item_ids
        The items, ascending by UTF-8 bytes: the first columns.
    matrix
        CSR, float32, shape (histories, items + attribute inputs).
    persons
        int64, shape (histories,): whose history each row is, as an arbitrary number.
    """

    item_ids: tuple[str, ...]
    matrix: sp.csr_matrix
    persons: NDArray[np.int64]


def interactions(
    permitted: PermittedRows,
    *,
    by_session: bool,
    source_weights: Mapping[str, float],
    event_weights: Mapping[str, float],
    encoder: AttributeEncoder | None = None,
    half_life: int | None = None,
) -> Interactions:
    """Build the matrix of histories × items.

    An entry is, as in serving, the largest weight that the item has within a source, summed over the sources;
    an event's weight is its source's times its type's (1 for types not named), and less the older it is than
    the newest event of the same history.

    Parameters
    ----------
    permitted
        What the gate let through.
    by_session
        One history per session (True) or per person.
    source_weights, event_weights
        Weights by name. A source that is not named counts 0.
    encoder
        Encoder of attributes whose inputs start behind the items; None for no attributes. Sessions have none.
    half_life
        Microseconds in which an event's weight halves, see `recency_weight`; None: age does not matter.

    Notes
    -----
    n log n in the rows.
    """
    rows = permitted.rows
    item_ids, items = _codes(rows["item_id"])
    persons, person_of_row = _codes(rows["person"])
    histories, owners = person_of_row, np.arange(len(persons), dtype=np.int64)
    if by_session:
        histories, owners = _sessions(rows, person_of_row)
    weights = _weights(rows, source_weights, event_weights)
    if half_life is not None:
        weights = weights * recency_weights(_ages(rows, histories, owners.size), half_life)
    entries, values = _largest_then_summed(
        histories, items, _codes(rows["source"])[1], weights, len(item_ids)
    )
    row, column = np.divmod(entries, max(len(item_ids), 1))
    shape = (owners.size, len(item_ids))
    matrix = sp.csr_matrix((values.astype(np.float32), (row, column)), shape=shape)
    matrix.eliminate_zeros()
    if encoder is not None and permitted.attributes is not None and not by_session:
        matrix = _with_attributes(matrix, persons, permitted.attributes, encoder)
    return Interactions(item_ids, matrix, owners)


def person_counts(permitted: PermittedRows, *, by_session: bool = False) -> dict[str, int]:
    """How many distinct persons (or sessions, for rows without a person's key) stand behind each item."""
    key = "session_id" if by_session else "person"
    pairs = permitted.rows.group_by(["item_id", key]).aggregate([])
    counted = pairs.group_by("item_id").aggregate([([], "count_all")])
    return dict(zip(counted["item_id"].to_pylist(), counted["count_all"].to_pylist(), strict=True))


def _codes(column: pa.ChunkedArray) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Distinct values, ascending by UTF-8 bytes, and the position of each row's value among them."""
    distinct = pc.unique(column)
    distinct = distinct.take(pc.sort_indices(distinct))
    codes = pc.index_in(column, value_set=distinct)
    return tuple(distinct.to_pylist()), codes.to_numpy(zero_copy_only=False).astype(np.int64)


def _sessions(
    rows: pa.Table, person_of_row: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Session of each row and person of each session; no session belongs to two visitors."""
    ids, id_of_row = _codes(pc.fill_null(rows["session_id"], ""))
    pairs, session_of_row = np.unique(person_of_row * len(ids) + id_of_row, return_inverse=True)
    return session_of_row.astype(np.int64), pairs // max(len(ids), 1)


def _weights(
    rows: pa.Table, source_weights: Mapping[str, float], event_weights: Mapping[str, float]
) -> NDArray[np.float64]:
    sources, source_codes = _codes(rows["source"])
    types, type_codes = _codes(rows["event_type"])
    by_source = np.array([source_weights.get(name, 0.0) for name in sources])
    by_type = np.array([event_weights.get(name, 1.0) for name in types])
    if not rows.num_rows:
        return np.empty(0)
    weights: NDArray[np.float64] = by_source[source_codes] * by_type[type_codes]
    return weights


def _ages(rows: pa.Table, histories: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Microseconds between each event and the newest one of its history."""
    times = rows["ts"].to_numpy(zero_copy_only=False).astype(np.int64)
    newest = np.full(count, np.iinfo(np.int64).min)
    np.maximum.at(newest, histories, times)
    ages: NDArray[np.int64] = newest[histories] - times
    return ages


def _largest_then_summed(
    histories: NDArray[np.int64],
    items: NDArray[np.int64],
    sources: NDArray[np.int64],
    weights: NDArray[np.float64],
    item_count: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Entries (history × item_count + item), ascending, with their values."""
    if not histories.size:
        return np.empty(0, np.int64), np.empty(0)
    entries = histories * item_count + items
    order = np.lexsort((weights, sources, entries))
    entries, sources, weights = entries[order], sources[order], weights[order]
    last = np.append((entries[1:] != entries[:-1]) | (sources[1:] != sources[:-1]), True)
    entries, weights = entries[last], weights[last]
    first = np.flatnonzero(np.append(True, entries[1:] != entries[:-1]))
    return entries[first], np.add.reduceat(weights, first)


def _with_attributes(
    matrix: sp.csr_matrix, persons: tuple[str, ...], attributes: pa.Table, encoder: AttributeEncoder
) -> sp.csr_matrix:
    """Append one column per attribute input; customers without rows of their own add nothing."""
    position = {person: number for number, person in enumerate(persons)}
    row, column = [], []
    names = [name for name in attributes.column_names if name != "person"]
    for entry in attributes.to_pylist():
        number = position.get(entry["person"])
        if number is None:
            continue
        inputs = encoder.inputs({name: entry[name] for name in names})
        row.extend([number] * len(inputs))
        column.extend(inputs)
    first = matrix.shape[1]
    block = sp.csr_matrix(
        (np.ones(len(row), np.float32), (np.array(row, np.int64), np.array(column, np.int64) - first)),
        shape=(matrix.shape[0], encoder.input_count),
    )
    return sp.csr_matrix(sp.hstack([matrix, block], format="csr"))
