"""The item index: an exact, ordered dictionary over two arrays."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.errors import BundleMalformed
from consentier.models.item_index import MAX_ID_BYTES, ItemIndex

item_ids = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)
# A small alphabet makes shared prefixes, also beyond the eight bytes that are compared at a time.
similar_ids = st.text("aé€😀", min_size=1, max_size=12)
id_sets = st.lists(item_ids | similar_ids, max_size=30)


def raw_index(*parts: bytes) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    return np.frombuffer(b"".join(parts), dtype=np.uint8), offsets


@given(id_sets)
def test_maps_every_id_to_its_rank_by_utf8_bytes_and_back(ids: list[str]) -> None:
    index = ItemIndex.from_ids(ids)
    expected = sorted(set(ids), key=lambda item_id: item_id.encode("utf-8"))
    assert len(index) == len(expected)
    assert index.ids(np.arange(len(index))) == expected
    assert [index.index(item_id) for item_id in expected] == list(range(len(expected)))
    assert index.indices(expected).dtype == np.int64


@given(id_sets, item_ids | similar_ids)
def test_contains_what_a_set_contains(ids: list[str], probe: str) -> None:
    index = ItemIndex.from_ids(ids)
    assert (probe in index) == (probe in set(ids))
    assert (index.index(probe) == -1) == (probe not in set(ids))


@given(id_sets)
def test_its_arrays_pass_the_full_check_and_make_the_same_index(ids: list[str]) -> None:
    index = ItemIndex.from_ids(ids)
    arrays = index.arrays()
    again = ItemIndex(arrays["item_ids"], arrays["item_offsets"])
    assert again.ids(np.arange(len(again))) == index.ids(np.arange(len(index)))
    assert not arrays["item_ids"].flags.writeable
    assert not arrays["item_offsets"].flags.writeable


@given(st.lists(similar_ids | item_ids, min_size=2, max_size=12))
def test_accepts_exactly_the_strictly_ascending_sequences(ids: list[str]) -> None:
    parts = [item_id.encode("utf-8") for item_id in ids]
    blob, offsets = raw_index(*parts)
    if all(left < right for left, right in pairwise(parts)):
        assert ItemIndex(blob, offsets).ids(np.arange(len(ids))) == ids
    else:
        with pytest.raises(BundleMalformed, match="must ascend"):
            ItemIndex(blob, offsets)


@given(st.binary(max_size=24), st.lists(st.integers(-3, 27), max_size=6))
def test_any_bytes_are_an_index_or_are_refused(blob: bytes, cuts: list[int]) -> None:
    parts_array, offsets = np.frombuffer(blob, dtype=np.uint8), np.array(cuts, dtype=np.int64)
    try:
        index = ItemIndex(parts_array, offsets)
    except BundleMalformed:
        return
    ids = index.ids(np.arange(len(index)))
    assert "".join(ids).encode("utf-8") == blob
    assert ids == sorted(set(ids))


def test_an_empty_index_knows_nothing() -> None:
    index = ItemIndex.from_ids([])
    assert len(index) == 0
    assert index.index("a") == -1
    assert index.indices(["a", "b"]).tolist() == [-1, -1]


def test_unknown_items_are_minus_one_among_known_ones() -> None:
    index = ItemIndex.from_ids(["b", "a", "b"])
    assert index.indices(["b", "c", "", "a", "\ud800"]).tolist() == [1, -1, -1, 0, -1]
    assert 3 not in index


@pytest.mark.parametrize("position", [-1, 2])
def test_an_integer_outside_the_index_is_an_error(position: int) -> None:
    with pytest.raises(IndexError, match="outside the index of 2 items"):
        ItemIndex.from_ids(["a", "b"]).id(position)


@pytest.mark.parametrize(
    ("item_id", "reason"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("\ud800", "surrogate"),
        ("x" * (MAX_ID_BYTES + 1), "bytes"),
    ],
)
def test_from_ids_refuses_ids_that_are_no_text(item_id: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ItemIndex.from_ids(["fine", item_id])


def test_wrong_argument_types_are_type_errors() -> None:
    with pytest.raises(TypeError, match="string"):
        ItemIndex.from_ids([1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="single string"):
        ItemIndex.from_ids("abc")
    with pytest.raises(TypeError, match="single string"):
        ItemIndex.from_ids(["a"]).indices("a")
    with pytest.raises(TypeError, match="string"):
        ItemIndex.from_ids(["a"]).index(b"a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="NumPy array"):
        ItemIndex(b"a", np.array([0, 1]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("blob", "offsets", "reason"),
    [
        (b"ab", [], "empty"),
        (b"ab", [0, 1], "expected 0 to 2"),
        (b"ab", [0, 3], "expected 0 to 2"),
        (b"ab", [1, 2], "expected 0 to 2"),
        (b"ab", [0, 0, 2], "item 0"),
        (b"abc", [0, 2, 1, 3], "item 1"),
        (b"ab", [0, -(2**63), 2], "item 0"),
        (b"ab", [0, 2**63 - 1, 2], "item 1"),
        (b"x" * 1025, [0, 1025], "longer than 1024"),
    ],
)
def test_offsets_are_checked_even_without_verification(blob: bytes, offsets: list[int], reason: str) -> None:
    for verify in (True, False):
        with pytest.raises(BundleMalformed, match=reason):
            ItemIndex(np.frombuffer(blob, dtype=np.uint8), np.array(offsets, dtype=np.int64), verify=verify)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((b"a", b"b\0"), "NUL byte in item 1"),
        ((b"a", b"\xff"), "UTF-8 in item 1"),
        ((b"a", b"b\xc3"), "UTF-8 in item 1"),
        ((b"a", b"\xed\xa0\x80"), "UTF-8 in item 1"),  # an encoded surrogate
        ((b"a", b"\xc0\x80"), "UTF-8 in item 1"),  # an overlong NUL
        ((b"a\xc3", b"\xa9"), "cut a UTF-8 character in two at item 1"),
        ((b"a", b"a"), "items 0 and 1"),
        ((b"a", b"c", b"b"), "items 1 and 2"),
        ((b"12345678", b"12345678"), "items 0 and 1"),
        ((b"123456789", b"12345678"), "items 0 and 1"),
    ],
)
def test_content_is_checked(parts: tuple[bytes, ...], reason: str) -> None:
    with pytest.raises(BundleMalformed, match=reason):
        ItemIndex(*raw_index(*parts))


def test_names_the_item_of_a_character_that_spans_two_chunks() -> None:
    ids = [b"%07d" % number for number in range(149_796)]  # 1,048,572 bytes, four short of a chunk
    good, offsets = raw_index(*ids, b"abc" + "é".encode())
    assert len(ItemIndex(good, offsets)) == 149_797
    bad, offsets = raw_index(*ids, b"abc\xc3", b"b")
    with pytest.raises(BundleMalformed, match="UTF-8 in item 149796"):
        ItemIndex(bad, offsets)


@pytest.mark.parametrize(
    ("blob", "offsets"),
    [
        (np.zeros((1, 1), np.uint8), np.array([0, 1])),
        (np.zeros(1, np.int8), np.array([0, 1])),
        (np.zeros(1, np.uint8), np.array([0, 1], np.int32)),
        (np.frombuffer(b"axbx", np.uint8)[::2], np.array([0, 1, 2])),
    ],
)
def test_other_types_and_layouts_are_refused(blob: np.ndarray, offsets: np.ndarray) -> None:
    with pytest.raises(BundleMalformed, match=r"item_(ids|offsets) must be"):
        ItemIndex(blob, offsets)


def test_unverified_content_still_fails_with_a_bundle_error() -> None:
    index = ItemIndex(*raw_index(b"\xff"), verify=False)
    with pytest.raises(BundleMalformed, match="UTF-8"):
        index.id(0)
