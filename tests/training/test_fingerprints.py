from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.features.gate import PermittedRows
from consentier.training.fingerprints import fingerprints, new_key, rows_by_person, text_hashes

KEY = bytes(range(16))

ROWS = [
    ("visitor:1", "s", "a", 10, "view", "online"),
    ("visitor:1", "s", "a", 10, "view", "online"),
    ("visitor:1", "t", "b", 11, "cart", "online"),
    ("customer:1", None, "b", 12, "order", "crm"),
]
COLUMNS = ("person", "session_id", "item_id", "ts", "event_type", "source")


def permitted(
    rows: list[tuple[object, ...]], attributes: dict[str, list[object]] | None = None
) -> PermittedRows:
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    types = [pa.int64() if name == "ts" else pa.string() for name in COLUMNS]
    table = pa.table(
        {name: pa.array(values, kind) for name, values, kind in zip(COLUMNS, columns, types, strict=True)}
    )
    nobody = pa.table({"kind": pa.array([], pa.string()), "subject_id": pa.array([], pa.string())})
    return PermittedRows(table, None if attributes is None else pa.table(attributes), (), nobody, until=1)


def test_texts_are_hashed_by_siphash() -> None:
    """The vectors that the authors of SipHash-2-4 publish: key 00 … 0f, texts of bytes 00, 01, …"""
    texts = pa.array(["".join(map(chr, range(length))) for length in (0, 1, 7, 8, 15, 63)])
    assert [f"{value:016x}" for value in text_hashes(texts, KEY).tolist()] == [
        "726fdb47dd0e0e31", "74f839c593dc67fd", "ab0200f58b01d137", "93f5f5799a932462",
        "a129ca6149be45e5", "958a324ceb064572",
    ]  # fmt: skip


@given(st.lists(st.none() | st.text(max_size=20), min_size=1), st.data())
def test_slices_and_chunks_are_hashed_as_the_texts_in_them(
    texts: list[str | None], data: st.DataObject
) -> None:
    column = pa.array(texts, pa.string())
    cut = data.draw(st.integers(0, len(texts)))
    chunked = pa.chunked_array([column[:cut], column[cut:]])
    expected = [int(text_hashes(pa.array([text], pa.string()), KEY)[0]) for text in texts]
    assert text_hashes(chunked, KEY).tolist() == expected
    assert [value == 0 for value in expected] == [text is None for text in texts]


@pytest.mark.parametrize("column", range(1, 6))
def test_every_change_of_a_row_shows(column: int) -> None:
    before = rows_by_person(permitted(ROWS), KEY)
    changed = list(ROWS[2])
    changed[column] = 99 if COLUMNS[column] == "ts" else "changed"
    after = rows_by_person(permitted([*ROWS[:2], tuple(changed), ROWS[3]]), KEY)
    assert after["customer:1"] == before["customer:1"]
    assert after["visitor:1"] != before["visitor:1"]


def test_repeated_and_missing_rows_show_and_order_does_not() -> None:
    before = rows_by_person(permitted(ROWS), KEY)
    assert rows_by_person(permitted(ROWS[::-1]), KEY) == before
    assert rows_by_person(permitted(ROWS[1:]), KEY)["visitor:1"] != before["visitor:1"]


def test_attributes_are_part_of_it() -> None:
    some: dict[str, list[object]] = {
        "person": ["customer:1", "customer:2"], "age": [30, None], "vip": [True, None],
    }  # fmt: skip
    before = rows_by_person(permitted(ROWS, some), KEY)
    assert set(before) == {"visitor:1", "customer:1", "customer:2"}
    assert before["customer:1"] != rows_by_person(permitted(ROWS), KEY)["customer:1"]
    for name, values in (("age", [31, None]), ("vip", [False, None]), ("age", [None, 30])):
        assert rows_by_person(permitted(ROWS, {**some, name: values}), KEY) != before  # type: ignore[dict-item]


def test_persons_ascend_by_their_fingerprint_and_the_key_matters() -> None:
    one = fingerprints(permitted(ROWS), KEY)
    assert len(one) == 2
    assert (np.diff(one.persons.astype(object)) > 0).all()
    assert one.matches(dataclasses.replace(one))
    other = fingerprints(permitted(ROWS), new_key())
    assert not one.holds(other.persons).any()
    assert len(fingerprints(permitted([]), KEY)) == 0
