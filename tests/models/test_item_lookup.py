"""Compiled look-ups give what the index itself gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.models.item_index import ItemIndex
from consentier.models.item_lookup import ItemLookup

# Few characters, so that ids are each other's beginnings; of one, two, three and four bytes.
CHARACTERS = st.sampled_from("aabbcé€😀")
IDS = st.text(CHARACTERS, min_size=1, max_size=6)
ASKED = st.one_of(IDS, st.just(""), st.text(max_size=4), st.sampled_from(["a\0b", "\0", "\ud800", "a\ud800"]))


@given(st.sets(IDS), st.lists(ASKED, max_size=12))
def test_numbers_are_those_of_the_index(known: set[str], asked: list[str]) -> None:
    index = ItemIndex.from_ids(known)
    expected = [index.index(item) for item in asked]
    for compiled in (True, False):
        assert ItemLookup(index, compiled=compiled).numbers(asked) == expected


@given(st.sets(IDS, min_size=1), st.data())
def test_ids_are_those_of_the_index(known: set[str], data: st.DataObject) -> None:
    index = ItemIndex.from_ids(known)
    numbers = np.array(data.draw(st.lists(st.integers(0, len(known) - 1), max_size=12)), dtype=np.int64)
    for compiled in (True, False):
        assert ItemLookup(index, compiled=compiled).ids(numbers) == index.ids(numbers)


def test_every_id_of_a_large_index_is_found_again() -> None:
    index = ItemIndex.from_ids(f"item-{number}" for number in range(70_000))
    lookup = ItemLookup(index)
    numbers = np.arange(len(index))
    assert lookup.numbers(lookup.ids(numbers)) == numbers.tolist()
    assert lookup.numbers([f"other-{number}" for number in range(1_000)]) == [-1] * 1_000


@pytest.mark.parametrize("compiled", [True, False])
def test_a_number_without_an_item_is_an_error(compiled: bool) -> None:
    lookup = ItemLookup(ItemIndex.from_ids(["a", "b"]), compiled=compiled)
    for number in (-1, 2):
        with pytest.raises(IndexError):
            lookup.ids(np.array([0, number]))


@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_no_string_is_an_error(compiled: bool) -> None:
    with pytest.raises(TypeError):
        ItemLookup(ItemIndex.from_ids(["a"]), compiled=compiled).numbers(["a", 1])  # type: ignore[list-item]
