"""What runs on the executors of Spark, without Spark."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from consentier.training.spark_tasks import whole_persons


@given(
    st.lists(st.integers(1, 9), max_size=12),
    st.integers(1, 12),
    st.lists(st.integers(1, 7), min_size=60, max_size=60),
)
def test_tables_of_whole_persons(lengths: list[int], most_rows: int, sizes: list[int]) -> None:
    """However batches are cut: every row comes once, in order, and no person is in two tables."""
    persons = [f"p{number:02}" for number, length in enumerate(lengths) for _ in range(length)]
    batches, start = [], 0
    for size in sizes:
        batches.append(pa.record_batch({"person": pa.array(persons[start : start + size], pa.string())}))
        start += size
    tables = [table["person"].to_pylist() for table in whole_persons(iter(batches), most_rows)]
    cut = [person for table in tables for person in table]
    assert cut == persons[:start]
    owners = [set(table) for table in tables]
    assert sum(map(len, owners)) == len(set(cut))
    assert all(owners)
