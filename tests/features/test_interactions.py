"""Interaction matrices: entries by hand and against a plain loop."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from consentier.features.gate import PermittedRows
from consentier.features.interactions import interactions, person_counts
from consentier.models.attribute_encoding import AttributeEncoder, CategoryColumn

Row = tuple[str, str | None, str, str, str]
"""Person, session, item, event type, source."""

NAMES = ("person", "session_id", "item_id", "event_type", "source")


NOBODY = pa.table({"kind": pa.array([], pa.string()), "subject_id": pa.array([], pa.string())})


def permitted(rows: list[Row], attributes: pa.Table | None = None) -> PermittedRows:
    columns: dict[str, Any] = {
        name: pa.array([row[position] for row in rows], pa.string()) for position, name in enumerate(NAMES)
    }
    times = pa.array([0] * len(rows), pa.int64())
    return PermittedRows(pa.table({**columns, "ts": times}), attributes, (), NOBODY, until=1)


def test_of_one_source_the_largest_weight_counts_and_sources_are_summed() -> None:
    rows: list[Row] = [
        ("p", "s", "b", "view", "online"),
        ("p", "s", "b", "cart", "online"),
        ("p", None, "b", "order", "crm"),
        ("p", None, "a", "order", "crm"),
        ("q", "s", "c", "view", "elsewhere"),
    ]
    found = interactions(
        permitted(rows), by_session=False, source_weights={"online": 1, "crm": 4}, event_weights={"cart": 2.5}
    )
    assert found.item_ids == ("a", "b", "c")
    assert found.matrix.toarray().tolist() == [[4, 6.5, 0], [0, 0, 0]]
    assert found.matrix.nnz == 2
    assert found.matrix.dtype == np.float32
    assert found.persons.tolist() == [0, 1]


def test_older_events_weigh_less_than_the_newest_of_the_same_person() -> None:
    rows: list[Row] = [
        ("p", "s", "a", "view", "online"),
        ("p", None, "a", "order", "crm"),
        ("p", None, "b", "order", "crm"),
        ("q", None, "b", "order", "crm"),
    ]
    day = 86_400_000_000
    given_rows = permitted(rows)
    table = given_rows.rows.set_column(5, "ts", pa.array([30 * day, 20 * day, 10 * day, 0], pa.int64()))
    found = interactions(
        dataclasses.replace(given_rows, rows=table),
        by_session=False,
        source_weights={"online": 1, "crm": 4},
        event_weights={},
        half_life=10 * day,
    )
    assert found.matrix.toarray().tolist() == [[1 + 4 / 2, 4 / 4], [0, 4]]


def test_a_session_knows_the_order_of_its_items_and_its_age() -> None:
    day = 86_400_000_000
    visits = [("s", "c", 1), ("s", "a", 2), ("s", "c", 3), ("s", "b", 3), ("t", "b", 12), ("t", "a", 11)]
    rows: list[Row] = [("p", session, item, "view", "online") for session, item, _ in visits]
    given_rows = permitted(rows)
    times = pa.array([at * day for *_, at in visits], pa.int64())
    found = interactions(
        dataclasses.replace(given_rows, rows=given_rows.rows.set_column(5, "ts", times), until=23 * day),
        by_session=True,
        source_weights={"online": 1},
        event_weights={},
        session_half_life=10 * day,
    )
    assert found.order is not None
    # By the last time that each item was seen: a, then c and b, of one instant, in the given order.
    assert found.matrix.toarray().tolist() == [[1, 1, 1], [1, 1, 0]]
    assert found.order.positions.tolist() == [0, 2, 1, 0, 1]
    # Sessions are as old as their last event: 20 and 11 days, the second in steps of an eighth of a halving.
    assert found.order.row_scale.tolist() == [0.25, 2.0**-1]
    assert found.repeats is not None
    # a and b are new; c comes back after one other item.
    assert found.repeats.events[1, 1] == 1
    assert found.repeats.events.sum() == 4


def test_items_of_weight_zero_have_no_place_in_the_order() -> None:
    rows: list[Row] = [
        ("p", "s", "a", "view", "online"),
        ("p", "s", "b", "click", "online"),
        ("p", "s", "c", "view", "online"),
    ]
    found = interactions(
        permitted(rows), by_session=True, source_weights={"online": 1}, event_weights={"click": 0}
    )
    assert found.order is not None
    assert found.matrix.indices.tolist() == [0, 2]
    assert found.order.positions.tolist() == [0, 2]
    assert found.order.row_scale.tolist() == [1]


def test_histories_of_persons_have_no_order() -> None:
    found = interactions(
        permitted([("p", "s", "a", "view", "online")]),
        by_session=False,
        source_weights={"online": 1},
        event_weights={},
    )
    assert found.order is None
    assert found.repeats is None


def test_sessions_of_two_visitors_are_two_whatever_their_ids() -> None:
    rows: list[Row] = [
        ("visitor:a", "x\x1fb", "i", "view", "online"),
        ("visitor:a\x1fx", "b", "j", "view", "online"),
        ("visitor:a", "b", "k", "view", "online"),
        ("visitor:z", "b", "i", "view", "online"),
        ("visitor:z", None, "j", "view", "online"),
        ("visitor:z", "b", "k", "view", "online"),
    ]
    found = interactions(permitted(rows), by_session=True, source_weights={"online": 1}, event_weights={})
    histories = {tuple(row) for row in found.matrix.toarray().tolist()}
    assert found.matrix.shape == (5, 3)
    assert histories == {(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)}
    assert sorted(found.persons.tolist()) == [0, 0, 1, 2, 2]


def test_items_ascend_by_their_bytes() -> None:
    items = ["b", "Z", "é", "a\U0001f600", "a￿", "10", "9"]
    rows: list[Row] = [("p", "s", item, "view", "online") for item in items]
    found = interactions(permitted(rows), by_session=False, source_weights={"online": 1}, event_weights={})
    assert list(found.item_ids) == sorted(items, key=str.encode)


def test_attributes_stand_behind_the_items_and_only_beside_a_history() -> None:
    attributes = pa.table({"person": ["p", "q", "r"], "region": ["south", None, "north"]})
    encoder = AttributeEncoder((CategoryColumn("region", ("north", "south"), False, 2),))
    rows: list[Row] = [("p", None, "a", "order", "crm"), ("q", None, "b", "order", "crm")]
    options: dict[str, Any] = {"source_weights": {"crm": 3}, "event_weights": {}, "encoder": encoder}
    found = interactions(permitted(rows, attributes), by_session=False, **options)
    assert found.matrix.toarray().tolist() == [[3, 0, 0, 1], [0, 3, 0, 0]]
    assert interactions(permitted(rows, attributes), by_session=True, **options).matrix.shape == (2, 2)


def test_no_rows_make_an_empty_matrix() -> None:
    for by_session in (False, True):
        found = interactions(permitted([]), by_session=by_session, source_weights={}, event_weights={})
        assert (found.item_ids, found.matrix.shape, found.persons.size) == ((), (0, 0), 0)


def test_persons_are_counted_once_per_item() -> None:
    rows: list[Row] = [
        ("p", "s", "a", "view", "online"), ("p", "t", "a", "cart", "online"),
        ("q", "s", "a", "view", "online"), ("q", "s", "b", "view", "online"),
    ]  # fmt: skip
    assert person_counts(permitted(rows)) == {"a": 2, "b": 1}
    assert person_counts(permitted(rows), by_session=True) == {"a": 2, "b": 1}
    assert person_counts(permitted([])) == {}


_rows = st.lists(
    st.tuples(
        st.sampled_from("pqr"), st.sampled_from(("s", "t", None)), st.sampled_from("abcd"),
        st.sampled_from(("view", "cart")), st.sampled_from(("online", "crm")),
    ),
    max_size=30,
)  # fmt: skip


@given(_rows, st.booleans())
def test_the_matrix_is_what_a_plain_loop_says(rows: list[Row], by_session: bool) -> None:
    sources, types = {"online": 1.0, "crm": 2.0}, {"cart": 3.0}
    largest: dict[tuple[Any, str, str], float] = {}
    for person, session, item, kind, source in rows:
        key = ((person, session or "") if by_session else person, item, source)
        largest[key] = max(largest.get(key, 0), sources[source] * types.get(kind, 1.0))
    expected: dict[Any, dict[str, float]] = {}
    for (history, item, _), weight in largest.items():
        entries = expected.setdefault(history, {})
        entries[item] = entries.get(item, 0) + weight
    found = interactions(permitted(rows), by_session=by_session, source_weights=sources, event_weights=types)
    actual = [
        {found.item_ids[column]: value for column, value in enumerate(row) if value}
        for row in found.matrix.toarray().tolist()
    ]
    assert actual == [expected[history] for history in sorted(expected)]
    persons = sorted({row[0] for row in rows})
    owners = [history[0] if by_session else history for history in sorted(expected)]
    assert [persons[number] for number in found.persons.tolist()] == owners
