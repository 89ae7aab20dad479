"""What a tier's permitted data looked like: shares that stand in a bundle's run facts, for `drift`.

Nothing in it is about a person. Groups of fewer than ``MINIMUM_GROUP`` persons are pooled, and the pool is
left out if it is too small itself; shares are of what is shown, rounded, so that no difference tells more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from consentier.features.gate import PermittedRows
from consentier.training.evaluation_result import MINIMUM_GROUP

__all__ = ["SUMMARY_VERSION", "DataSummary", "data_summary", "window_rows"]

SUMMARY_VERSION = 1

_DAY = 86_400_000_000

_POOL = "all others"


class DataSummary(TypedDict):
    """What was permitted to one tier in the last days before a cut-off."""

    version: int
    window_days: int
    rows_per_day: float
    event_mix: dict[str, float]
    """Share of the rows by type of event."""
    permission_mix: dict[str, dict[str, float]]
    """By kind of subject: share of all whom the ledger knows, by how they stand at the cut-off."""
    columns: dict[str, str]
    """Attributes of customers and metadata of items that the tier reads, with their types."""


def data_summary(
    permitted: Sequence[PermittedRows], standings: Mapping[str, Mapping[str, int]], window_days: int
) -> DataSummary | None:
    """Sum up what a tier may read.

    Parameters
    ----------
    permitted
        What the gate let through to it.
    standings
        Persons by kind and by how their permission stands: `ConsentGate.standing_counts`.
    window_days
        How many days before the cut-off are looked at.

    Returns
    -------
    DataSummary or None
        None where fewer than ``MINIMUM_GROUP`` persons have rows in the window.

    Notes
    -----
    O(rows), in Arrow.
    """
    rows = window_rows(permitted, window_days)
    if pc.count_distinct(rows["person"]).as_py() < MINIMUM_GROUP:
        return None
    by_type = rows.group_by("event_type").aggregate([("person", "count"), ("person", "count_distinct")])
    types, counts, persons = (
        by_type[name].to_pylist() for name in ("event_type", "person_count", "person_count_distinct")
    )
    return {
        "version": SUMMARY_VERSION,
        "window_days": window_days,
        "rows_per_day": round(rows.num_rows / window_days, 1),
        "event_mix": _shares(
            dict(zip(types, counts, strict=True)),
            dict(zip(types, persons, strict=True)),
            lambda pool: _persons_with(rows, pool),
        ),
        "permission_mix": {
            kind: _shares(counted, counted, _each_in_one(counted)) for kind, counted in standings.items()
        },
        "columns": _columns(permitted),
    }


def window_rows(permitted: Sequence[PermittedRows], window_days: int) -> pa.Table:
    """The rows of the last days before the cut-off: person, item and type of event."""
    recent = [
        part.rows.filter(pc.greater_equal(part.rows["ts"], part.until - window_days * _DAY))
        for part in permitted
    ]
    return pa.concat_tables([rows.select(["person", "item_id", "event_type"]) for rows in recent])


def _persons_with(rows: pa.Table, types: Sequence[str]) -> int:
    """Who has rows of one of these types, each counted once."""
    chosen = rows.filter(pc.is_in(rows["event_type"], value_set=pa.array(types, pa.string())))
    found: int = pc.count_distinct(chosen["person"]).as_py()
    return found


def _each_in_one(persons: Mapping[str, int]) -> Callable[[Sequence[str]], int]:
    """How many persons are in some groups of which nobody is in two."""
    return lambda pool: sum(persons[name] for name in pool)


def _shares(
    counts: Mapping[str, int], persons: Mapping[str, int], persons_in: Callable[[Sequence[str]], int]
) -> dict[str, float]:
    """Shares of what at least ``MINIMUM_GROUP`` persons stand behind; the rest is pooled, or left out.

    `persons_in` says how many stand behind several names together: somebody may stand behind each.
    """
    pool = [name for name in counts if persons[name] < MINIMUM_GROUP]
    shown = Counter({name: count for name, count in counts.items() if name not in pool})
    if pool and persons_in(pool) >= MINIMUM_GROUP:
        shown[_POOL] = sum(counts[name] for name in pool)
    total = shown.total()
    return {name: round(count / total, 3) for name, count in sorted(shown.items())}


def _columns(permitted: Sequence[PermittedRows]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in permitted:
        tables = {"customers": part.attributes, "items": part.items}
        for name, table in tables.items():
            if table is not None:
                fields = (field for field in table.schema if field.name not in ("person", "item_id"))
                found.update({f"{name}.{field.name}": str(field.type) for field in fields})
    return dict(sorted(found.items()))
