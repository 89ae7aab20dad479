"""Attributes: what is learnt is what scikit-learn learns, and is applied as scikit-learn applies it."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder

from consentier.errors import BundleMalformed
from consentier.features.attributes import fit_attributes
from consentier.models.attribute_encoding import AttributeEncoder, CategoryColumn, NumberColumn


def fitted(values: Any, *, kind: pa.DataType | None = None, **options: int) -> AttributeEncoder:
    """The encoder of one column x."""
    persons = [f"p{number}" for number in range(len(values))]
    return fit_attributes(
        pa.table({"person": persons, "x": pa.array(values, kind)}),
        **{"first_input": 7, "min_persons": 1, **options},
    )


_distinct = st.lists(st.integers(-1000, 1000), min_size=8, max_size=60, unique=True)


@settings(max_examples=60)
@given(values=_distinct, others=st.lists(st.floats(-2000, 2000)), bins=st.integers(2, 6))
def test_numbers_fall_into_the_bins_of_scikit_learn(
    values: list[int], others: list[float], bins: int
) -> None:
    reference = KBinsDiscretizer(
        n_bins=bins, encode="ordinal", strategy="quantile",
        quantile_method="averaged_inverted_cdf", subsample=None,
    )  # fmt: skip
    reference.fit(np.array(values, dtype=float).reshape(-1, 1))
    expected = reference.transform(np.array([*values, *others]).reshape(-1, 1)).ravel()
    encoder = fitted(values, bins=bins)
    assert encoder.input_count == bins
    assert [encoder.inputs({"x": value}) for value in (*values, *others)] == [
        [7 + int(number)] for number in expected
    ]


@settings(max_examples=100)
@given(
    values=st.lists(st.sampled_from((0.0, 0.5, 1.0, 2.0, 1e-12, 1e9)), max_size=60),
    bins=st.integers(2, 6),
    least=st.integers(1, 8),
)
def test_every_bin_holds_enough_persons_however_many_numbers_are_equal(
    values: list[float], bins: int, least: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = fitted(values, kind=pa.float64(), bins=bins, min_persons=least)
    if not encoder.columns:
        return
    persons = Counter(number for value in values for number in encoder.inputs({"x": value}))
    assert sorted(persons) == list(range(7, 7 + encoder.input_count))
    assert 2 <= len(persons) <= bins
    assert min(persons.values()) >= least


@settings(max_examples=40)
@given(
    values=st.lists(st.sampled_from(("a", "b", "c", "é", "")), min_size=1, max_size=40),
    least=st.integers(1, 5),
)
def test_levels_are_those_of_scikit_learn(values: list[str], least: int) -> None:
    encoder = fitted(values, min_persons=least)
    if len(values) < least:
        assert encoder.columns == ()
        return
    reference = OneHotEncoder(min_frequency=least, handle_unknown="infrequent_if_exist", sparse_output=False)
    reference.fit(np.array(values, dtype=object).reshape(-1, 1))
    for value in (*"abcé", "", "never seen"):
        expected = np.flatnonzero(reference.transform(np.array([[value]], dtype=object))[0])
        assert encoder.inputs({"x": value}) == [7 + number for number in expected]


@pytest.mark.parametrize(
    ("values", "edges"),
    [
        ([0] * 70 + [1] * 30, (1.0,)),
        ([0] * 30 + [1] * 70, (1.0,)),
        ([0] * 70 + [1] * 10 + [5] * 20, (3.0,)),
        ([0] * 10 + [1] * 80 + [5] * 10, (1.0,)),
        ([3] * 99 + [4], ()),
        ([3] * 50, ()),
    ],
)
def test_a_number_that_many_have_is_told_from_the_others(values: list[int], edges: tuple[float, ...]) -> None:
    columns = fitted(values, min_persons=5).columns
    assert (
        tuple(edge for column in columns if isinstance(column, NumberColumn) for edge in column.edges)
        == edges
    )


@pytest.mark.parametrize("zeros", [[0.0] * 8, [-0.0] * 8, [0.0, -0.0] * 4, [-0.0, 0.0] * 4])
def test_a_zero_below_nought_is_a_zero(zeros: list[float]) -> None:
    """A bundle must not tell, by the sign of an edge, whether somebody had it who is forgotten."""
    encoder = fitted([*zeros, -1.0, -2.0, -3.0, 4.0], bins=2)
    assert json.dumps(encoder.to_json()[0]["edges"]) == "[0.0]"


def test_each_type_of_column_is_read_as_what_it_is() -> None:
    table = pa.table(
        {
            "person": [f"p{number}" for number in range(4)],
            "region": pa.array(["n", "s", "n", None]).dictionary_encode(),
            "vip": [True, False, None, True],
            "visits": pa.array([1, 2, 3, None], pa.int64()),
            "score": [0.5, float("nan"), 2.5, float("inf")],
            "joined": pa.array([0, 1, 2, 3], pa.timestamp("us", "UTC")),
            "tags": [["a"], [], None, ["b"]],
            "empty": pa.array([None] * 4, pa.string()),
        }
    )
    encoder = fit_attributes(table, first_input=10, bins=2, min_persons=1)
    assert [(column.name, type(column), column.first_input) for column in encoder.columns] == [
        ("region", CategoryColumn, 10),
        ("vip", CategoryColumn, 12),
        ("visits", NumberColumn, 14),
        ("score", NumberColumn, 16),
    ]
    assert encoder.inputs({"region": "s", "vip": True, "visits": 1, "score": 9.0}) == [11, 13, 14, 17]
    assert encoder.inputs({"region": None, "vip": None, "score": float("nan"), "visits": True}) == []
    assert encoder.inputs({"vip": "true", "visits": "3", "unheard of": 1}) == [13]


def test_rare_levels_share_one_input_and_columns_of_few_persons_have_none() -> None:
    encoder = fitted(["n"] * 10 + ["s"] * 3 + ["w"], min_persons=5)
    assert encoder.input_count == 2
    assert encoder.inputs({"x": "s"}) == encoder.inputs({"x": "w"}) == [8]
    assert encoder.inputs({"x": "e"}) == [
        8
    ]  # nobody's level is listed, so that any other text is like a rare one
    assert fitted(["n"] * 10, min_persons=5).inputs({"x": "e"}) == []
    assert fitted(["n"] * 4, min_persons=5).columns == ()
    assert fitted([1.0, 2.0, 3.0], min_persons=5).columns == ()


@pytest.mark.parametrize("values", [["b", "a", "a"], [1.0, 5.0, 9.0], [True, False, True]])
def test_an_encoder_reads_back_as_it_was_written(values: Any) -> None:
    encoder = fitted(values)
    assert AttributeEncoder.from_json(json.loads(json.dumps(encoder.to_json())), first_input=7) == encoder


@pytest.mark.parametrize(
    "columns",
    [
        "",
        [{"name": "x", "kind": "category", "levels": "ab", "rare": False, "first_input": 7}],
        [{"name": "x", "kind": "number", "edges": "", "first_input": 7}],
    ],
)
def test_a_text_is_no_list_of_columns_levels_or_edges(columns: Any) -> None:
    with pytest.raises(BundleMalformed, match=r"scoring\.attributes"):
        AttributeEncoder.from_json(columns, first_input=7)


@given(st.permutations(list(range(30))))
def test_the_order_of_customers_does_not_matter(order: list[int]) -> None:
    values = [number**2 % 11 / 3 for number in range(30)]
    assert fitted([values[number] for number in order]) == fitted(values)
