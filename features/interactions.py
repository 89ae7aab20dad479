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
from consentier.models.gram import SessionOrder, last_positions
from consentier.models.recency import recency_weights
from consentier.models.repeats import RepeatCounts, repeat_counts

__all__ = ["CodedRows", "Interactions", "interactions", "largest_then_summed", "person_counts"]


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
    order
        Where histories are sessions: the order of their items, and how much each session counts.
    repeats
        Where histories are sessions: how often they went on with an item that they had seen.
    """

    item_ids: tuple[str, ...]
    matrix: sp.csr_matrix
    persons: NDArray[np.int64]
    order: SessionOrder | None = None
    repeats: RepeatCounts | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CodedRows:
    """Permitted rows with numbers for their texts, of which matrices with other weights can be made quickly.

    Attributes
    ----------
    item_ids, person_ids
        Ascending by UTF-8 bytes.
    source_names, event_types
        What the codes of sources and event types stand for.
    items, histories, sources, types
        int64, shape (rows,): number of each row's item, history, source and event type.
    ages
        int64, shape (rows,): microseconds between each row and the newest one of its history.
    owners
        int64, shape (histories,): number of each history's person.
    before_end
        int64, shape (histories,): microseconds from the newest row of each history to the end of all rows.
    by_session
        Whether a history is one session, or all that a person has.
    """

    item_ids: tuple[str, ...]
    person_ids: tuple[str, ...]
    source_names: tuple[str, ...]
    event_types: tuple[str, ...]
    items: NDArray[np.int64]
    histories: NDArray[np.int64]
    sources: NDArray[np.int64]
    types: NDArray[np.int64]
    ages: NDArray[np.int64]
    owners: NDArray[np.int64]
    before_end: NDArray[np.int64]
    by_session: bool

    @classmethod
    def of(
        cls, permitted: PermittedRows, *, by_session: bool, item_ids: tuple[str, ...] | None = None
    ) -> CodedRows:
        """Number the rows. n log n in the distinct texts.

        Parameters
        ----------
        permitted
            The rows: of whole persons.
        by_session
            One history per session (True) or per person.
        item_ids
            Ascending by UTF-8 bytes: items to number by, where these rows are some of many. All of the
            rows' items must be among them.
        """
        rows = permitted.rows
        if item_ids is None:
            item_ids, items = _codes(rows["item_id"])
        else:
            items = _positions(rows["item_id"], pa.array(item_ids, pa.string()))
        person_ids, person_of_row = _codes(rows["person"])
        histories, owners = person_of_row, np.arange(len(person_ids), dtype=np.int64)
        if by_session:
            histories, owners = _sessions(rows, person_of_row)
        source_names, sources = _codes(rows["source"])
        event_types, types = _codes(rows["event_type"])
        times = rows["ts"].to_numpy(zero_copy_only=False).astype(np.int64)
        newest = np.full(owners.size, np.iinfo(np.int64).min)
        np.maximum.at(newest, histories, times)
        return cls(
            item_ids, person_ids, source_names, event_types, items, histories, sources, types,
            newest[histories] - times, owners, permitted.until - newest, by_session,
        )  # fmt: skip

    def interactions(
        self,
        *,
        source_weights: Mapping[str, float],
        event_weights: Mapping[str, float],
        attributes: sp.csr_matrix | None = None,
        half_life: int | None = None,
        session_half_life: int | None = None,
    ) -> Interactions:
        """Build the matrix as `interactions` does; `attributes` comes from `attribute_inputs`."""
        weights = self._weights(source_weights, event_weights)
        if half_life is not None:
            weights = weights * recency_weights(self.ages, half_life)
        entries, values = largest_then_summed(
            self.histories, self.items, self.sources, weights, len(self.item_ids)
        )
        row, column = np.divmod(entries, max(len(self.item_ids), 1))
        shape = (self.owners.size, len(self.item_ids))
        matrix = sp.csr_matrix((values.astype(np.float32), (row, column)), shape=shape)
        matrix.eliminate_zeros()
        if attributes is not None:
            matrix = sp.csr_matrix(sp.hstack([matrix, attributes], format="csr"))
        if not self.by_session:
            return Interactions(self.item_ids, matrix, self.owners)
        latest = self._in_order()
        order = SessionOrder(self._positions(matrix, latest), self._row_scale(session_half_life))
        repeats = repeat_counts(self.histories[latest], self.items[latest], self.owners)
        return Interactions(self.item_ids, matrix, self.owners, order, repeats)

    def _in_order(self) -> NDArray[np.int64]:
        """The rows by history, oldest first; the given order decides between rows of one instant."""
        return np.lexsort((-self.ages, self.histories))

    def _positions(self, matrix: sp.csr_matrix, latest: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each entry's item stands in its history, by the last row that names it."""
        rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
        entries = rows * len(self.item_ids) + matrix.indices
        return last_positions(self.histories[latest], self.items[latest], len(self.item_ids), entries)

    def _row_scale(self, half_life: int | None) -> NDArray[np.float64]:
        if half_life is None:
            return np.ones(self.owners.size)
        # The weights of very old sessions round to the smallest step of a row, which is above 0.
        return np.maximum(recency_weights(self.before_end, half_life), 2.0**-16)

    def attribute_inputs(
        self, attributes: pa.Table | None, encoder: AttributeEncoder | None
    ) -> sp.csr_matrix | None:
        """One row per person, one column per attribute input; None where a history is a session."""
        if encoder is None or attributes is None or self.by_session:
            return None
        return _attribute_inputs(self.person_ids, attributes, encoder, len(self.item_ids))

    def _weights(
        self, source_weights: Mapping[str, float], event_weights: Mapping[str, float]
    ) -> NDArray[np.float64]:
        if not self.items.size:
            return np.empty(0)
        by_source = np.array([source_weights.get(name, 0.0) for name in self.source_names])
        by_type = np.array([event_weights.get(name, 1.0) for name in self.event_types])
        weights: NDArray[np.float64] = by_source[self.sources] * by_type[self.types]
        return weights


def interactions(
    permitted: PermittedRows,
    *,
    by_session: bool,
    source_weights: Mapping[str, float],
    event_weights: Mapping[str, float],
    encoder: AttributeEncoder | None = None,
    half_life: int | None = None,
    session_half_life: int | None = None,
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
    session_half_life
        Microseconds before the end of the rows in which a session's weight halves; None: age does not matter.

    Notes
    -----
    n log n in the rows.
    """
    coded = CodedRows.of(permitted, by_session=by_session)
    return coded.interactions(
        source_weights=source_weights,
        event_weights=event_weights,
        attributes=coded.attribute_inputs(permitted.attributes, encoder),
        half_life=half_life,
        session_half_life=session_half_life,
    )


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
    return tuple(distinct.to_pylist()), _positions(column, distinct)


def _positions(column: pa.ChunkedArray, values: pa.Array) -> NDArray[np.int64]:
    positions = pc.index_in(column, value_set=values).to_numpy(zero_copy_only=False)
    numbers: NDArray[np.int64] = positions.astype(np.int64)
    return numbers


def _sessions(
    rows: pa.Table, person_of_row: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Session of each row and person of each session; no session belongs to two visitors."""
    ids, id_of_row = _codes(pc.fill_null(rows["session_id"], ""))
    pairs, session_of_row = np.unique(person_of_row * len(ids) + id_of_row, return_inverse=True)
    return session_of_row.astype(np.int64), pairs // max(len(ids), 1)


def largest_then_summed(
    histories: NDArray[np.int64],
    items: NDArray[np.int64],
    sources: NDArray[np.int64],
    weights: NDArray[np.float64],
    item_count: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Take the largest weight of an item within a source of a history, and add those of its sources.

    Parameters
    ----------
    histories, items, sources
        int64, shape (n,): numbers. The sources of an item are added in ascending order.
    weights
        float64, shape (n,).
    item_count
        Above every item's number.

    Returns
    -------
    entries, values : ndarray of int64, ndarray of float64
        ``history * item_count + item``, ascending, and the sums. O(n log n).
    """
    if not histories.size:
        return np.empty(0, np.int64), np.empty(0)
    entries = histories * item_count + items
    order = np.lexsort((weights, sources, entries))
    entries, sources, weights = entries[order], sources[order], weights[order]
    last = np.append((entries[1:] != entries[:-1]) | (sources[1:] != sources[:-1]), True)
    entries, weights = entries[last], weights[last]
    first = np.flatnonzero(np.append(True, entries[1:] != entries[:-1]))
    return entries[first], np.add.reduceat(weights, first)


def _attribute_inputs(
    persons: tuple[str, ...], attributes: pa.Table, encoder: AttributeEncoder, first: int
) -> sp.csr_matrix:
    """The columns that stand behind the items; customers without rows of their own have none."""
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
    return sp.csr_matrix(
        (np.ones(len(row), np.float32), (np.array(row, np.int64), np.array(column, np.int64) - first)),
        shape=(len(persons), encoder.input_count),
    )
