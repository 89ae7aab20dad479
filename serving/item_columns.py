"""Attributes of items, column by column, and filters over them as small expressions.

An expression is evaluated once for all items into a bitmap, never per item and request::

    category == "shoes" and price < 100 and not clearance
    brand in ("north", "south") or 10 <= weight < 20
    colour is not None

It may name columns and constants and combine them by ``and``, ``or``, ``not``, comparisons, ``in`` and
``is None``; there is nothing to call and nothing to look up. The syntax is Python's, parsed by its `ast` and
never run.

A missing value makes a comparison unknown, as in SQL: neither it nor its negation is true. What is not known
to be true is not shown.
"""

from __future__ import annotations

import ast
import bisect
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consentier.errors import suggestion

__all__ = ["Expression", "FilterError", "ItemColumns", "Value"]

Value = str | float | bool | None

_LONGEST = 4000
"""Characters of an expression."""
_DEEPEST = 40
"""Parts within parts of an expression."""
_MOST_TERMS = 200
"""Comparisons, and columns that stand alone: each is a pass over all items."""
_SHOWN = 200
"""Characters of an expression that a message quotes."""

_Bits = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Numbers:
    values: NDArray[np.float64]  # NaN: missing

    kind = "numbers"

    @property
    def missing(self) -> _Bits:
        return np.isnan(self.values)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Flags:
    values: NDArray[np.int8]  # -1: missing

    kind = "truth values"

    @property
    def missing(self) -> _Bits:
        return self.values < 0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Texts:
    codes: NDArray[np.int32]  # -1: missing
    levels: tuple[str, ...]  # ascending

    kind = "texts"

    @property
    def missing(self) -> _Bits:
        return self.codes < 0


_Column = _Numbers | _Flags | _Texts


class FilterError(ValueError):
    """A filter names an attribute that items do not have, or compares it with a value of another kind."""


class ItemColumns:
    """Attributes of items, in the order of some list of items; a column is made when it is first asked for.

    Parameters
    ----------
    rows
        Attributes by item id.
    items
        The items, in the order that bitmaps shall have. Those that are not in `rows` have no attributes.
    unread
        Attributes that items have elsewhere: named as such where somebody asks for one.

    Notes
    -----
    A column is one of numbers, of truth values, or (also where values are mixed) of texts; all of `rows`
    decide that, so it is the same for every list of items. O(rows + items) for each column.
    """

    def __init__(
        self,
        rows: Mapping[str, Mapping[str, Value]],
        items: Sequence[str],
        unread: frozenset[str] = frozenset(),
    ) -> None:
        self.item_count = len(items)
        self._unread = unread
        self._rows, self._items = rows, items
        self._names = sorted({name for row in rows.values() for name in row})
        self._columns: dict[str, _Column] = {}

    def codes(self, name: str) -> NDArray[np.int64]:
        """Number the distinct values of a column: int64, shape (item_count,), -1 where it is missing.

        Raises
        ------
        FilterError
            There is no such column.
        """
        column = self._column(name)
        if isinstance(column, _Texts):
            return column.codes.astype(np.int64)
        if isinstance(column, _Flags):
            return column.values.astype(np.int64)
        known = ~column.missing
        codes = np.full(self.item_count, -1, dtype=np.int64)
        codes[known] = np.unique(column.values[known], return_inverse=True)[1]
        return codes

    def values(self, name: str) -> list[Value]:
        """The values of a column, None where it is missing.

        Raises
        ------
        FilterError
            There is no such column.
        """
        column = self._column(name)
        if isinstance(column, _Texts):
            return [None if code < 0 else column.levels[code] for code in column.codes.tolist()]
        if isinstance(column, _Flags):
            return [None if flag < 0 else bool(flag) for flag in column.values.tolist()]
        return [None if math.isnan(number) else number for number in column.values.tolist()]

    def _column(self, name: str) -> _Column:
        if name not in self._columns:
            if name not in self._names and name in self._unread:
                raise FilterError(f"the items' attribute {_shown(name)} was not read: name it in filter_by")
            if name not in self._names:
                known = sorted({*self._names, *self._unread})
                hint = suggestion(name, known) if known else "; the catalogue holds no attributes"
                raise FilterError(f"items have no attribute {_shown(name)}{hint}")
            nothing: Mapping[str, Value] = {}
            values = [self._rows.get(item, nothing).get(name) for item in self._items]
            self._columns[name] = _column(values, [row.get(name) for row in self._rows.values()])
        return self._columns[name]


@dataclasses.dataclass(frozen=True, slots=True)
class Expression:
    """A filter over items.

    Attributes
    ----------
    text
        The expression.

    Raises
    ------
    TypeError
        The text is no string.
    ValueError
        It is no expression of the kind that the module describes; the message says where.
    """

    text: str
    _tree: ast.expr = dataclasses.field(init=False, repr=False, compare=False)

    def __str__(self) -> str:
        return self.text

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise TypeError(f"a filter must be a string, not {type(self.text).__name__}")
        if len(self.text) > _LONGEST:
            raise ValueError(f"a filter of {len(self.text)} characters is longer than {_LONGEST}")
        try:
            tree = ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"the filter {_shown(self.text)} cannot be read: {_words(error)}") from None
        terms = sum(isinstance(node, ast.cmpop | ast.Name) for node in ast.walk(tree))
        if terms > 2 * _MOST_TERMS:  # a comparison has an operator and a column
            raise ValueError(f"the filter {_shown(self.text)} has more than {_MOST_TERMS} comparisons")
        _check(tree, self.text, 0)
        object.__setattr__(self, "_tree", tree)

    @property
    def names(self) -> frozenset[str]:
        """The columns that it reads."""
        return frozenset(node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name))

    def true_for(self, items: ItemColumns) -> _Bits:
        """For which items the expression is known to be true: bool, shape (item_count,).

        Raises
        ------
        FilterError
            A column is not there, or is compared with a value of another kind.

        Notes
        -----
        A pass over the items for each comparison.
        """
        try:
            return _evaluated(self._tree, items)[0]
        except FilterError as error:
            raise FilterError(f"the filter {_shown(self.text)}: {error}") from None


# What is true and what is false of each item; what is neither is unknown.
_Truth = tuple[_Bits, _Bits]


def _words(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.msg} (at character {error.offset})"
    return "it is too deeply nested" if isinstance(error, RecursionError | MemoryError) else str(error)


def _shown(value: object) -> str:
    """What stands in an expression, in a message: the beginning of what is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _source(node: ast.expr) -> str:
    """Part of an expression in a message."""
    try:
        text = ast.unparse(node)
    except RecursionError:
        return "…"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _column(values: Sequence[Value], everywhere: Iterable[Value]) -> _Column:
    """Values as a column, of the kind that all the values there are have in common."""
    known = [value for value in everywhere if not _is_missing(value)]
    if known and all(isinstance(value, bool) for value in known):
        return _Flags(np.array([-1 if _is_missing(value) else int(bool(value)) for value in values], np.int8))
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return _Numbers(np.array([math.nan if _is_missing(value) else float(value or 0) for value in values]))
    texts = [None if _is_missing(value) else str(value) for value in values]
    levels = sorted({text for text in texts if text is not None})
    numbers = {level: number for number, level in enumerate(levels)}
    codes = [-1 if text is None else numbers[text] for text in texts]
    return _Texts(np.array(codes, dtype=np.int32), tuple(levels))


def _is_missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


# ---- What may stand in an expression -----------------------------------------------------------------------

_ORDER: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}
_MIRRORED: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}


def _check(node: ast.expr, text: str, depth: int) -> None:
    """Refuse what is not in the language; constants and columns are looked at when they are compared."""
    if depth > _DEEPEST:
        raise ValueError(f"the filter {_shown(text)} is too deeply nested")
    if isinstance(node, ast.BoolOp):
        parts: Iterable[ast.expr] = node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        parts = (node.operand,)
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            _check_comparison(left, operator, right, text)
        return
    elif isinstance(node, ast.Name):
        return
    else:
        raise _refused(node, text)
    for part in parts:
        _check(part, text, depth + 1)


def _check_comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr, text: str) -> None:
    if isinstance(operator, ast.In | ast.NotIn):
        fine = isinstance(left, ast.Name) and _constants(right) is not None
    elif isinstance(operator, ast.Is | ast.IsNot):
        fine = isinstance(left, ast.Name) and isinstance(right, ast.Constant) and right.value is None
    else:
        fine = (isinstance(left, ast.Name) and _is_constant(right)) or (
            _is_constant(left) and isinstance(right, ast.Name)
        )
    if not fine:
        raise ValueError(
            f"the filter {_shown(text)}: `{_source(left)} … {_source(right)}` (at character "
            f"{left.col_offset + 1}) must compare one attribute with one constant, or be `attribute in (…)` "
            "or `attribute is None`"
        )


def _refused(node: ast.expr, text: str) -> ValueError:
    return ValueError(
        f"the filter {_shown(text)}: `{_source(node)}` (at character {node.col_offset + 1}) is neither a "
        "comparison, nor an attribute, nor these combined by and, or, not"
    )


def _is_constant(node: ast.expr) -> bool:
    return _constant(node) is not None


def _constant(node: ast.expr) -> str | float | bool | None:
    """The value of a constant, of one sign at most; None where it is none."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = None if isinstance(node.operand, ast.UnaryOp) else _constant(node.operand)
        return -value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bool | float):
        return node.value
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value if abs(node.value) <= sys.float_info.max else math.inf
    return None


def _constants(node: ast.expr) -> list[str | float | bool] | None:
    if not isinstance(node, ast.Tuple | ast.List | ast.Set):
        return None
    values = [_constant(element) for element in node.elts]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


# ---- What it means -----------------------------------------------------------------------------------------


def _evaluated(node: ast.expr, items: ItemColumns) -> _Truth:
    if isinstance(node, ast.BoolOp):
        join = _both if isinstance(node.op, ast.And) else _either
        return functools.reduce(join, (_evaluated(part, items) for part in node.values))
    if isinstance(node, ast.UnaryOp):
        true, false = _evaluated(node.operand, items)
        return false, true
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        pairs = zip(sides, node.ops, sides[1:], strict=False)
        return functools.reduce(_both, (_compared(*pair, items) for pair in pairs))
    assert isinstance(node, ast.Name)  # `_check` let nothing else pass
    column = items._column(node.id)
    if column.missing.all():
        return _unknown(items)
    if not isinstance(column, _Flags):
        raise FilterError(f"{node.id} holds {column.kind}; compare it with something")
    return column.values == 1, column.values == 0


def _both(one: _Truth, other: _Truth) -> _Truth:
    return one[0] & other[0], one[1] | other[1]


def _either(one: _Truth, other: _Truth) -> _Truth:
    return one[0] | other[0], one[1] & other[1]


def _compared(left: ast.expr, operator: ast.cmpop, right: ast.expr, items: ItemColumns) -> _Truth:
    if not isinstance(left, ast.Name):
        left, right, operator = right, left, _MIRRORED[type(operator)]()
    assert isinstance(left, ast.Name)
    column = items._column(left.id)
    missing = column.missing
    if isinstance(operator, ast.Is | ast.IsNot):
        return (missing, ~missing) if isinstance(operator, ast.Is) else (~missing, missing)
    if missing.all():  # such a column is of no kind
        return _unknown(items)
    if isinstance(operator, ast.In | ast.NotIn):
        values = _constants(right) or ()
        if isinstance(column, _Numbers) and not any(isinstance(value, str | bool) for value in values):
            found = np.isin(column.values, [float(value) for value in values])
        else:
            found = np.zeros(items.item_count, dtype=np.bool_)
            for value in values:
                found |= _equal(left.id, column, value)
    elif isinstance(operator, ast.Eq | ast.NotEq):
        found = _equal(left.id, column, _given(right))
    else:
        value = _given(right)
        if not isinstance(column, _Numbers) or isinstance(value, str | bool):
            raise FilterError(
                f"{left.id} holds {column.kind}; only numbers can be less or more than a number"
            )
        found = _ORDER[type(operator)](column.values, value)
    if isinstance(operator, ast.NotEq | ast.NotIn):
        found = ~found
    return found & ~missing, ~found & ~missing


def _unknown(items: ItemColumns) -> _Truth:
    return np.zeros(items.item_count, dtype=np.bool_), np.zeros(items.item_count, dtype=np.bool_)


def _given(node: ast.expr) -> str | float | bool:
    value = _constant(node)
    assert value is not None  # `_check` let nothing else pass
    return value


def _equal(name: str, column: _Column, value: str | float | bool) -> _Bits:
    if isinstance(column, _Flags) and isinstance(value, bool):
        return np.equal(column.values, int(value))
    if isinstance(column, _Numbers) and not isinstance(value, str | bool):
        return np.equal(column.values, value)
    if isinstance(column, _Texts) and isinstance(value, str):
        place = bisect.bisect_left(column.levels, value)
        there = place < len(column.levels) and column.levels[place] == value
        return column.codes == place if there else np.zeros(column.codes.size, dtype=np.bool_)
    raise FilterError(f"{name} holds {column.kind}; it cannot equal {_shown(value)}")
