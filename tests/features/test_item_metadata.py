"""Metadata of items as levels."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.errors import ConfigError
from consentier.features.item_metadata import ItemLevels, item_levels, metadata_columns


def items(**columns: Any) -> pa.Table:
    count = len(next(iter(columns.values())))
    return pa.table({"item_id": [f"i{number}" for number in range(count)], **columns})


def read(table: pa.Table | None, *columns: str) -> ItemLevels:
    found = item_levels(table, columns)
    assert found is not None
    return found


def alike(levels: ItemLevels, one: str, other: str) -> int:
    """How many levels two items share."""
    rows = levels.matrix.toarray()
    return int((rows[levels.item_ids.index(one)] & rows[levels.item_ids.index(other)]).sum())


def test_each_text_is_a_level_and_a_missing_one_is_none() -> None:
    levels = read(items(category=["shoes", "hats", "shoes", None]))
    assert levels.columns == ("category",)
    assert levels.item_ids == ("i0", "i1", "i2")
    assert alike(levels, "i0", "i2") == 1
    assert alike(levels, "i0", "i1") == 0


def test_equal_texts_of_two_columns_are_two_levels() -> None:
    levels = read(items(colour=["red", "blue"], brand=["blue", "red"]))
    assert alike(levels, "i0", "i1") == 0


def test_each_text_of_a_list_is_a_level() -> None:
    levels = read(items(genres=[["war", "drama"], ["war"], ["comedy", "drama"], []]))
    assert alike(levels, "i0", "i1") == alike(levels, "i0", "i2") == 1
    assert alike(levels, "i1", "i2") == 0
    assert "i3" not in levels.item_ids


def test_a_number_is_the_fifth_of_the_items_in_which_it_lies() -> None:
    levels = read(items(price=[float(price) for price in range(1, 101)]))
    assert levels.matrix.shape == (100, 5)
    assert levels.matrix.sum(axis=0).tolist() == [[20] * 5]
    assert alike(levels, "i0", "i19") == 1
    assert alike(levels, "i19", "i20") == 0


def test_truth_values_are_levels() -> None:
    levels = read(items(organic=[True, False, True, None]))
    assert alike(levels, "i0", "i2") == 1
    assert levels.matrix.shape == (3, 2)


def test_columns_that_say_nothing_readable_are_left_out_or_refused_by_name() -> None:
    table = items(category=["a", "b"], since=pa.array([1, 2], pa.timestamp("us")), empty=pa.nulls(2))
    assert metadata_columns(table) == ("category",)
    with pytest.raises(ConfigError, match="metadata_columns names 'since', which is no column"):
        item_levels(table, ("since",))
    with pytest.raises(ConfigError, match=r"names 'categry'.*did you mean 'category'"):
        item_levels(table, ("categry",))


@pytest.mark.parametrize("table", [None, items(category=["a"]).slice(0, 0), items(category=[None, None])])
def test_without_metadata_there_are_no_levels(table: pa.Table | None) -> None:
    assert item_levels(table) is None


_rows = st.lists(
    st.tuples(st.sampled_from(("x", "y", None)), st.integers(0, 9), st.lists(st.sampled_from("pqr"))),
    min_size=1,
    max_size=10,
)


@given(_rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_columns_does_not_matter(rows: list[Any], random: Any) -> None:
    schema = pa.schema(
        [
            ("item_id", pa.string()),
            ("kind", pa.string()),
            ("size", pa.int64()),
            ("tags", pa.list_(pa.string())),
        ]
    )
    table = pa.Table.from_pylist(
        [
            dict(zip(schema.names, (f"i{number}", *row), strict=True))
            for number, row in enumerate(rows)
        ],
        schema=schema,
    )  # fmt: skip
    order = list(range(len(rows)))
    random.shuffle(order)
    other = table.take(order).select(["tags", "item_id", "size", "kind"])
    one, same = item_levels(table), item_levels(other)
    if one is None or same is None:
        assert one is same
        return
    assert (one.columns, one.item_ids, one.digest) == (same.columns, same.item_ids, same.digest)
    assert (one.matrix != same.matrix).nnz == 0


def test_other_metadata_have_another_digest() -> None:
    found = {
        read(items(category=["a", "a", "b"])).digest,
        read(items(category=["a", "b", "b"])).digest,
        read(items(category=["a", "a", "c"])).digest,
        read(items(kind=["a", "a", "b"])).digest,
    }
    assert len(found) == 4
