"""Filters over items: what they mean, against an oracle item by item, and what they refuse."""

from __future__ import annotations

import ast
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.serving.item_columns import Expression, FilterError, ItemColumns

ITEMS = ("a", "b", "c", "d", "e")
ROWS: dict[str, dict[str, Any]] = {
    "a": {"category": "shoes", "price": 80.0, "sale": True},
    "b": {"category": "shoes", "price": 120, "sale": False},
    "c": {"category": "hats", "price": None, "sale": True},
    "d": {"category": "", "price": math.nan},
}
COLUMNS = ItemColumns(ROWS, ITEMS)


def shown(text: str, columns: ItemColumns = COLUMNS) -> str:
    return "".join(
        item for item, true in zip(ITEMS, Expression(text).true_for(columns).tolist(), strict=True) if true
    )


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("category == 'shoes'", "ab"),
        ("'shoes' == category", "ab"),
        ("category != 'shoes'", "c"),
        ("not category == 'shoes'", "c"),
        ("category in ('hats', 'coats')", "c"),
        ("category not in ['hats']", "ab"),
        ("price < 100", "a"),
        ("100 > price", "a"),
        ("price >= 80", "ab"),
        ("80 < price <= 120", "b"),
        ("price > -1", "ab"),
        ("not price > -1", ""),
        ("price is None", "cde"),
        ("price is not None", "ab"),
        ("sale", "ac"),
        ("not sale", "b"),
        ("sale == False", "b"),
        ("sale or price > 100", "abc"),
        ("category == 'shoes' and (price < 100 or sale)", "a"),
        ("not (category == 'shoes' and price < 100)", "bc"),
        ("category in ()", ""),
        ("category not in ()", "abc"),
        ("category == 'no such'", ""),
    ],
)
def test_what_is_known_to_be_true_is_shown(text: str, items: str) -> None:
    assert shown(text) == items


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read"),
        ("price <", "cannot be read"),
        ("price = 3", "cannot be read"),
        ("__import__('os').system('true')", "neither a comparison"),
        ("price.real == 1", "must compare one attribute with one constant"),
        ("rows['a'] == 1", "must compare one attribute with one constant"),
        ("price + 1 < 3", "must compare one attribute with one constant"),
        ("price < price", "must compare one attribute with one constant"),
        ("1 < 2", "must compare one attribute with one constant"),
        ("category in price", "must compare one attribute with one constant"),
        ("category is 'shoes'", "must compare one attribute with one constant"),
        ("category == f'{price}'", "must compare one attribute with one constant"),
        ("lambda: 1", "neither a comparison"),
        ("'shoes'", "neither a comparison"),
        ("(yield)", "neither a comparison"),
        ("prize < 3", "did you mean 'price'"),
        ("price == 'low'", "price holds numbers; it cannot equal 'low'"),
        ("category < 3", "category holds texts; only numbers"),
        ("category", "category holds texts; compare it"),
        ("sale == 1", "sale holds truth values; it cannot equal 1"),
        ("price", "price holds numbers; compare it"),
        ("not " * 60 + "sale", "too deeply nested"),
        ("(" * 900 + "sale" + ")" * 900, "cannot be read|deeply"),
        ("sale or " * 1000 + "sale", "longer than"),
        ("a\0b", "cannot be read"),
    ],
)
def test_what_cannot_be_understood_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        shown(text)


def test_a_filter_is_a_string() -> None:
    with pytest.raises(TypeError, match="must be a string"):
        Expression(3)  # type: ignore[arg-type]


def test_no_attributes_are_said_to_be_none() -> None:
    with pytest.raises(ValueError, match="holds no attributes"):
        shown("price < 3", ItemColumns({}, ITEMS))


def test_distinct_values_are_numbered() -> None:
    assert COLUMNS.codes("category").tolist() == [1, 1, 0, -1, -1]
    assert COLUMNS.codes("price").tolist() == [0, 1, -1, -1, -1]
    assert COLUMNS.codes("sale").tolist() == [1, 0, 1, -1, -1]
    with pytest.raises(ValueError, match="category"):
        COLUMNS.codes("categories")


# ---- Against an oracle in three-valued logic ---------------------------------------------------------------

values = st.none() | st.integers(-2, 2)
rows = st.fixed_dictionaries({"x": values, "y": values, "flag": st.none() | st.booleans()})
leaves = st.builds(
    lambda name, operator, number: f"{name} {operator} {number}",
    st.sampled_from("xy"),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    st.integers(-2, 2),
) | st.sampled_from(["flag", "x is None", "y is not None", "x in (0, 1)", "y not in (-1, 2)", "-1 <= x < 2"])
expressions = st.recursive(
    leaves,
    lambda inner: (
        st.builds(lambda a, b: f"({a} and {b})", inner, inner)
        | st.builds(lambda a, b: f"({a} or {b})", inner, inner)
        | st.builds(lambda a: f"(not {a})", inner)
    ),
    max_leaves=6,
)


def truth(text: str, row: dict[str, Any]) -> bool | None:
    """Kleene's logic, one item at a time, over the same syntax."""

    def of(node: ast.expr) -> bool | None:
        if isinstance(node, ast.BoolOp):
            parts = [of(part) for part in node.values]
            decisive = isinstance(node.op, ast.Or)
            if decisive in parts:
                return decisive
            return None if None in parts else not decisive
        if isinstance(node, ast.UnaryOp):
            inner = of(node.operand)
            return None if inner is None else not inner
        if isinstance(node, ast.Name):
            return None if row[node.id] is None else bool(row[node.id])
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot):
            return bool(eval(ast.unparse(node), {}, row))  # noqa: S307 - a text of our own
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        if any(row[name] is None for name in names):
            return None
        return bool(eval(ast.unparse(node), {}, row))  # noqa: S307 - a text of our own

    return of(ast.parse(text, mode="eval").body)


@given(st.lists(rows, min_size=5, max_size=5), expressions)
def test_filters_follow_three_valued_logic(items: list[dict[str, Any]], text: str) -> None:
    columns = ItemColumns(dict(zip(ITEMS, items, strict=True)), ITEMS)
    expected = [truth(text, row) is True for row in items]
    assert Expression(text).true_for(columns).tolist() == expected


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (f"price < {'9' * 400}", "ab"),
        (f"price > -{'9' * 400}", "ab"),
        (f"price == {'9' * 3000}", ""),
        (f"price in (80, {'9' * 400})", "a"),
    ],
)
def test_a_number_beyond_all_others_is_compared_as_such(text: str, items: str) -> None:
    assert shown(text) == items


def test_a_filter_has_so_many_comparisons_and_no_more() -> None:
    assert shown(" or ".join(["price<9"] * 199 + ["sale"])) == "ac"
    with pytest.raises(ValueError, match="more than 200 comparisons"):
        Expression(" or ".join(["a<9"] * 201))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 1900 + "price" + ")" * 1900,
        "not " * 900 + "price",
        "-" * 3900 + "1 < price",
        "-" * 1200 + "1 < price",
        "f(" * 1300 + ")" * 1300,
        "\x00" * 3000,
        "'" + "\ud800" * 3000,
        "price < " + "x" * 3900,
        "xxxx." * 700 + "y < 1",
    ],
)
def test_a_hostile_filter_is_refused_in_a_short_message(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Expression(text).true_for(COLUMNS)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_a_filter_that_names_no_attribute_is_not_quoted_at_length() -> None:
    with pytest.raises(FilterError) as caught:
        Expression("x" * 3000 + " < 1").true_for(COLUMNS)
    assert len(str(caught.value)) < 1000
