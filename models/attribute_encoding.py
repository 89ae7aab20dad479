"""Attributes of a customer as inputs of a model, encoded with NumPy alone.

Training fits scikit-learn transformers and writes down what they learnt (levels, bin edges); this module
applies it at request time. `features.attributes` tests that both give the same inputs.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from consentier.errors import BundleMalformed

__all__ = ["AttributeEncoder", "AttributeValue", "CategoryColumn", "NumberColumn", "category_text"]

AttributeValue = str | float | bool | None


@dataclasses.dataclass(frozen=True, slots=True)
class CategoryColumn:
    """One input per level that enough persons have; where there are `rare` ones, all other texts share one.

    Rare levels are not listed: what few persons have may tell who they are.
    """

    name: str
    levels: tuple[str, ...]
    rare: bool
    first_input: int

    @property
    def input_count(self) -> int:
        """Number of inputs of the column."""
        return len(self.levels) + self.rare

    def input_of(self, value: AttributeValue) -> int | None:
        """The input that a value switches on; None where there is none. Cost: log of the levels."""
        text = category_text(value)
        if text is None:
            return None
        position = bisect.bisect_left(self.levels, text)
        if position < len(self.levels) and self.levels[position] == text:
            return self.first_input + position
        return self.first_input + len(self.levels) if self.rare else None


@dataclasses.dataclass(frozen=True, slots=True)
class NumberColumn:
    """One input per bin. `edges` are the inner edges, ascending; a bin includes its lower edge."""

    name: str
    edges: tuple[float, ...]
    first_input: int

    @property
    def input_count(self) -> int:
        """Number of inputs of the column."""
        return len(self.edges) + 1

    def input_of(self, value: AttributeValue) -> int | None:
        """The input of the bin that a number falls into; None for what is no finite number."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return self.first_input + bisect.bisect_right(self.edges, float(value))


@dataclasses.dataclass(frozen=True, slots=True)
class AttributeEncoder:
    """From a customer's attributes to the inputs of a model. A missing attribute has no input."""

    columns: tuple[CategoryColumn | NumberColumn, ...]

    @property
    def input_count(self) -> int:
        """Number of inputs of all columns together."""
        return sum(column.input_count for column in self.columns)

    def inputs(self, attributes: Mapping[str, AttributeValue]) -> list[int]:
        """Ascending inputs that a customer's attributes switch on. Cost: log of the levels, per column."""
        found = (column.input_of(attributes.get(column.name)) for column in self.columns)
        return sorted(number for number in found if number is not None)

    def moved_to(self, first_input: int) -> AttributeEncoder:
        """The same encoder behind another number of items."""
        columns, following = [], first_input
        for column in self.columns:
            columns.append(dataclasses.replace(column, first_input=following))
            following += column.input_count
        return AttributeEncoder(tuple(columns))

    def to_json(self) -> list[dict[str, Any]]:
        """The encoder as plain values for a bundle's manifest."""
        return [_column_to_json(column) for column in self.columns]

    @classmethod
    def from_json(cls, value: object, *, first_input: int) -> AttributeEncoder:
        """Read an encoder from a manifest.

        Raises
        ------
        BundleMalformed
            If a column is not of the form that `to_json` writes, or inputs overlap.
        """
        if not isinstance(value, list):
            raise BundleMalformed("scoring.attributes must be a list of columns")
        columns = tuple(_column_from_json(entry) for entry in value)
        expected = first_input
        for column in columns:
            if column.first_input != expected:
                raise BundleMalformed(
                    f"scoring.attributes: column {column.name!r} begins at input {column.first_input}, "
                    f"expected {expected}"
                )
            expected += column.input_count
        return cls(columns)


def category_text(value: AttributeValue) -> str | None:
    """Category levels are texts: truth values read true and false, whole numbers lose their point."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def _column_to_json(column: CategoryColumn | NumberColumn) -> dict[str, Any]:
    if isinstance(column, CategoryColumn):
        return {
            "name": column.name,
            "kind": "category",
            "levels": list(column.levels),
            "rare": column.rare,
            "first_input": column.first_input,
        }
    return {
        "name": column.name,
        "kind": "number",
        "edges": list(column.edges),
        "first_input": column.first_input,
    }


def _column_from_json(entry: object) -> CategoryColumn | NumberColumn:
    if not isinstance(entry, Mapping):
        raise BundleMalformed("scoring.attributes: a column must be an object")
    name, first_input = entry.get("name"), entry.get("first_input")
    if not isinstance(name, str) or not isinstance(first_input, int):
        raise BundleMalformed("scoring.attributes: a column needs a name and its first_input")
    if entry.get("kind") == "category":
        levels, rare = _texts(entry, "levels"), entry.get("rare")
        if not isinstance(rare, bool):
            raise BundleMalformed(f"scoring.attributes: {name!r} must say whether there are rare levels")
        if list(levels) != sorted(set(levels)):
            raise BundleMalformed(f"scoring.attributes: the levels of {name!r} must ascend")
        return CategoryColumn(name, levels, rare, first_input)
    if entry.get("kind") == "number":
        edges = entry.get("edges")
        if not isinstance(edges, list) or not all(
            isinstance(edge, int | float) and math.isfinite(edge) for edge in edges
        ):
            raise BundleMalformed(f"scoring.attributes: the edges of {name!r} must be numbers")
        if list(edges) != sorted(edges):
            raise BundleMalformed(f"scoring.attributes: the edges of {name!r} must ascend")
        return NumberColumn(name, tuple(float(edge) for edge in edges), first_input)
    raise BundleMalformed(f"scoring.attributes: column {name!r} is of unknown kind {entry.get('kind')!r}")


def _texts(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = entry.get(key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BundleMalformed(f"scoring.attributes: {key} must be a list of texts")
    return tuple(value)
