"""Reads the columns of a table into the types of the data contract: each value exactly, or not at all.

How values are read, `features.validation` says.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consentier.features.schemas import Column, ColumnType
from consentier.features.validation_report import Rule

__all__ = ["Mask", "as_mask", "attribute_column", "checked_column"]

Mask = npt.NDArray[np.bool_]
_Found = tuple[Rule, Mask]

_LAST_MICROSECOND = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z, the last that Python can show
_MICROSECONDS_PER_TICK = {"s": 1_000_000, "ms": 1_000, "us": 1}
_LARGEST_EXACT_FLOAT = 2.0**53

_LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    r"(?:\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME_OF_DAY = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,9})?)?"
_OFFSET = r"(?:Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)"
_INSTANT = rf"^{_DATE}[T ]{_TIME_OF_DAY}{_OFFSET}?$"
_NUMBER = r"^-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?$"
_WHOLE = r"^-?\d{1,18}$"


def as_mask(values: pa.Array | pa.ChunkedArray) -> Mask:
    """A boolean array as NumPy's, null as False."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    mask: Mask = pc.fill_null(values, fill_value=False).to_numpy(zero_copy_only=False)
    return mask.astype(np.bool_, copy=False)


def only_where(values: pa.Array, mask: Mask) -> pa.Array:
    """The values where the mask holds, null elsewhere."""
    return values if mask.all() else pc.if_else(pa.array(mask), values, pa.scalar(None, values.type))


def checked_column(column: Column, raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    """A column in its type, null where a value was refused, and the refusals by rule."""
    raw = _plain(raw)
    values, found = _READERS[column.type](raw)
    if not column.nullable:
        found.append((Rule.NULL, as_mask(raw.is_null())))
    if column.allowed is not None:
        known = pc.is_in(values, value_set=pa.array(sorted(column.allowed), pa.string()))
        found.append((Rule.UNKNOWN_VALUE, as_mask(pc.and_(values.is_valid(), pc.invert(known)))))
    if column.minimum is not None:
        found.append((Rule.BELOW_MINIMUM, as_mask(pc.less(values, column.minimum))))
    found = [(rule, mask) for rule, mask in found if mask.any()]
    for _, mask in found:
        values = only_where(values, ~mask)
    return values, found


def _plain(raw: pa.Array) -> pa.Array:
    """Encoded and large texts as plain ones, and empty texts as nulls."""
    if pa.types.is_dictionary(raw.type):
        raw = raw.dictionary_decode()
    if pa.types.is_large_string(raw.type) or pa.types.is_string_view(raw.type):
        raw = raw.cast(pa.string())
    if pa.types.is_string(raw.type):
        return only_where(raw, ~as_mask(pc.equal(raw, "")))
    return raw


def attribute_column(raw: pa.Array) -> pa.Array:
    """A column beyond the contract as it is, in a type that models read: no decimals, no views of texts."""
    if pa.types.is_decimal(raw.type):
        return raw.cast(pa.float64())
    return raw.cast(pa.string()) if pa.types.is_string_view(raw.type) else raw


def _refused(raw: pa.Array, to: ColumnType) -> tuple[pa.Array, list[_Found]]:
    return pa.nulls(len(raw), to.arrow), [(Rule.WRONG_TYPE, as_mask(raw.is_valid()))]


def _read_text(raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    if pa.types.is_string(raw.type):
        return raw, []
    if pa.types.is_integer(raw.type):
        return raw.cast(pa.string()), []
    return _refused(raw, ColumnType.TEXT)


def _read_time(raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    found: list[_Found] = []
    if pa.types.is_string(raw.type):
        raw, unparsable = _parsed_instants(raw)
        found.append((Rule.UNPARSABLE_TIME, unparsable))
    elif not pa.types.is_timestamp(raw.type):
        return _refused(raw, ColumnType.TIME)
    # Ticks since the epoch in UTC: a time without a zone is read as UTC, one with a zone is stored so.
    ticks = raw.cast(pa.int64())
    if raw.type.unit == "ns":
        ticks, per_tick = pc.divide(ticks, 1_000), 1
    else:
        per_tick = _MICROSECONDS_PER_TICK[raw.type.unit]
    early, late = as_mask(pc.less(ticks, 0)), as_mask(pc.greater(ticks, _LAST_MICROSECOND // per_tick))
    found += [(Rule.BEFORE_EPOCH, early), (Rule.AFTER_LAST_YEAR, late)]
    microseconds = pc.multiply(only_where(ticks, ~(early | late)), per_tick)
    return microseconds.cast(ColumnType.TIME.arrow), found


def _parsed_instants(texts: pa.Array) -> tuple[pa.Array, Mask]:
    good = as_mask(pc.match_substring_regex(texts, _INSTANT))
    unparsable = ~good & as_mask(texts.is_valid())
    texts = only_where(texts, good)
    if pc.any(pc.match_substring_regex(texts, r"\.\d{7}")).as_py():
        texts = pc.replace_substring_regex(texts, r"(\.\d{6})\d+", r"\1")
    has_offset = pc.match_substring_regex(texts, f"{_OFFSET}$")
    if not pc.all(has_offset).as_py():
        texts = pc.if_else(has_offset, texts, pc.binary_join_element_wise(texts, "Z", ""))
    return texts.cast(pa.timestamp("us", tz="UTC")), unparsable


def _read_number(raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    wrong = np.zeros(len(raw), dtype=np.bool_)
    if pa.types.is_string(raw.type):
        raw, wrong = _matching(raw, _NUMBER)
    elif not (
        pa.types.is_integer(raw.type) or pa.types.is_floating(raw.type) or pa.types.is_decimal(raw.type)
    ):
        return _refused(raw, ColumnType.NUMBER)
    numbers = raw.cast(pa.float64(), safe=False)
    infinite = as_mask(pc.invert(pc.is_finite(numbers)))
    return only_where(numbers, ~infinite), [(Rule.WRONG_TYPE, wrong), (Rule.NOT_FINITE, infinite)]


def _read_whole(raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    if pa.types.is_string(raw.type):
        digits, wrong = _matching(raw, _WHOLE)
        return digits.cast(pa.int64()), [(Rule.WRONG_TYPE, wrong)]
    if pa.types.is_integer(raw.type) and not pa.types.is_uint64(raw.type):
        return raw.cast(pa.int64()), []
    numbers, found = _read_number(raw)
    exact = pc.and_(
        pc.equal(numbers, pc.floor(numbers)), pc.less_equal(pc.abs(numbers), _LARGEST_EXACT_FLOAT)
    )
    broken = as_mask(pc.invert(exact))
    found.append((Rule.WRONG_TYPE, broken))
    return only_where(numbers, ~broken).cast(pa.int64()), found


def _read_flag(raw: pa.Array) -> tuple[pa.Array, list[_Found]]:
    if pa.types.is_boolean(raw.type):
        return raw, []
    if not (pa.types.is_string(raw.type) or pa.types.is_integer(raw.type)):
        return _refused(raw, ColumnType.FLAG)
    words = pc.utf8_lower(raw.cast(pa.string()))
    yes = pc.is_in(words, value_set=pa.array(["true", "1"]))
    no = pc.is_in(words, value_set=pa.array(["false", "0"]))
    read = as_mask(pc.or_(yes, no))
    return only_where(yes, read), [(Rule.WRONG_TYPE, ~read & as_mask(raw.is_valid()))]


def _matching(texts: pa.Array, pattern: str) -> tuple[pa.Array, Mask]:
    """The texts that match, and a mask of those that do not."""
    good = as_mask(pc.match_substring_regex(texts, pattern))
    return only_where(texts, good), ~good & as_mask(texts.is_valid())


_READERS: dict[ColumnType, Callable[[pa.Array], tuple[pa.Array, list[_Found]]]] = {
    ColumnType.TEXT: _read_text,
    ColumnType.TIME: _read_time,
    ColumnType.NUMBER: _read_number,
    ColumnType.WHOLE: _read_whole,
    ColumnType.FLAG: _read_flag,
}
