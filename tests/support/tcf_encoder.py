"""Writes TC strings, and tells from a description what they must grant, in the tests' own words."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

__all__ = ["ALPHABET", "RECEIVED_AT", "Description", "descriptions", "encode", "encode_bits", "expected"]

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

RECEIVED_AT = dt.datetime(2026, 6, 15, 12, 30, tzinfo=dt.UTC)

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_SKEW = dt.timedelta(minutes=5)

Restricted = tuple[int, int, frozenset[int]]
"""Purpose, kind of restriction, vendors."""


@dataclass(frozen=True)
class Description:
    """What a TC string is to say. The optional segments are written if they are not None, in `order`."""

    updated: dt.datetime = dt.datetime(2026, 6, 15, tzinfo=dt.UTC)
    created: dt.datetime | None = None
    policy: int = 5
    service_specific: bool = True
    purposes: frozenset[int] = frozenset(range(1, 12))
    legitimate_interests: frozenset[int] = frozenset()
    purpose_one_treatment: bool = False
    country: str = "DE"
    vendors: frozenset[int] = frozenset({3, 4, 5, 90})
    ranges: bool = False
    restrictions: tuple[Restricted, ...] = ()
    disclosed: frozenset[int] | None = frozenset({3, 4, 5, 90, 200})
    publisher: frozenset[int] | None = frozenset(range(1, 12))
    custom: int = 0
    unknown_segment: bool = False
    order: tuple[str, ...] = ("disclosed", "publisher", "unknown")


def encode(said: Description) -> str:
    """Write the TC string."""
    segments = {
        "disclosed": None if said.disclosed is None else "001" + _vendors(said.disclosed, said.ranges),
        "publisher": None if said.publisher is None else "011" + _publisher(said),
        "unknown": "110" + "10110" if said.unknown_segment else None,
    }
    written = [segments[name] for name in said.order]
    return ".".join(encode_bits(bits) for bits in (_core(said), *written) if bits is not None)


def encode_bits(bits: str) -> str:
    """Six bits a character, filled up with zeros."""
    bits += "0" * (-len(bits) % 6)
    return "".join(ALPHABET[int(bits[start : start + 6], 2)] for start in range(0, len(bits), 6))


def _core(said: Description) -> str:
    return "".join(
        (
            f"{2:06b}",
            _instant(said.created or said.updated),
            _instant(said.updated),
            f"{31:012b}{2:012b}{1:06b}",
            _letters("EN"),
            f"{141:012b}{said.policy:06b}",
            f"{said.service_specific:b}{False:b}",
            _flags((), 12),
            _flags(said.purposes, 24),
            _flags(said.legitimate_interests, 24),
            f"{said.purpose_one_treatment:b}",
            _letters(said.country),
            _vendors(said.vendors, said.ranges),
            _vendors(frozenset(), said.ranges),
            f"{len(said.restrictions):012b}",
            *(f"{purpose:06b}{kind:02b}{_entries(vendors)}" for purpose, kind, vendors in said.restrictions),
        )
    )


def _publisher(said: Description) -> str:
    custom = _flags(range(1, said.custom + 1), said.custom)
    return f"{_flags(said.publisher or (), 24)}{_flags((), 24)}{said.custom:06b}{custom}{custom}"


def _vendors(ids: frozenset[int], ranges: bool) -> str:
    highest = max(ids, default=0)
    return f"{highest:016b}{ranges:b}" + (_entries(ids) if ranges else _flags(ids, highest))


def _entries(ids: frozenset[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return f"{len(runs):012b}" + "".join(
        f"1{run[0]:016b}{run[-1]:016b}" if len(run) > 1 else f"0{run[0]:016b}" for run in runs
    )


def _flags(numbers: Iterable[int], count: int) -> str:
    return "".join("1" if number in set(numbers) else "0" for number in range(1, count + 1))


def _instant(instant: dt.datetime) -> str:
    return f"{(instant - _EPOCH) // dt.timedelta(milliseconds=100):036b}"


def _letters(text: str) -> str:
    return "".join(f"{ord(letter) - ord('A'):06b}" for letter in text)


def expected(
    said: Description, received_at: dt.datetime, *, vendor_id: int | None, model_purpose: int, exempt: bool
) -> set[str]:
    """The permissions that the string must grant, told afresh from the rules."""
    end = said.updated.replace(year=said.updated.year + 1)
    end = end.replace(year=end.year + end.month // 12, month=end.month % 12 + 1)
    reliable = (
        2 <= said.policy <= 5
        and said.service_specific
        and (said.created is None or said.created <= said.updated)
        and said.updated <= received_at + _SKEW
        and received_at < end
    )
    if vendor_id is None:
        reliable = reliable and said.publisher is not None
        given = set(said.publisher or ())
    else:
        reliable = reliable and vendor_id in said.vendors
        reliable = reliable and (said.policy < 5 or vendor_id in (said.disclosed or ()))
        given = set(said.purposes)
    if said.purpose_one_treatment:
        given = given | {1} if exempt else given - {1}
    if vendor_id is not None:
        given -= {
            purpose for purpose, kind, vendors in said.restrictions if kind != 1 and vendor_id in vendors
        }
    if not reliable:
        return set()
    needed = {"online": {1, 5, 6}, "ads": {3, 4}, "model": {model_purpose}}
    return {permission for permission, purposes in needed.items() if purposes <= given}


def descriptions() -> SearchStrategy[Description]:
    """Strings that mostly grant something, each with some cause to grant less."""
    most = st.frozensets(st.integers(1, 11), max_size=3).map(
        lambda refused: frozenset(range(1, 12)) - refused
    )
    vendors = st.frozensets(st.integers(1, 40), min_size=1, max_size=6).map(lambda ids: ids | {3})
    midnight = dt.datetime(2026, 6, 15, tzinfo=dt.UTC)
    updated = st.sampled_from((0, 0, 0, 1, 40, 394, 396, 400, -1)).map(
        lambda age: midnight - dt.timedelta(days=age)
    )
    restriction = st.tuples(
        st.integers(1, 11), st.integers(0, 3), st.frozensets(st.integers(1, 6), min_size=1)
    )
    return st.builds(
        Description,
        updated=updated,
        created=st.one_of(st.none(), st.none(), updated),
        policy=st.sampled_from((5, 5, 5, 4, 4, 2, 1, 6)),
        service_specific=st.sampled_from((True, True, True, False)),
        purposes=most,
        legitimate_interests=most,
        purpose_one_treatment=st.sampled_from((False, False, True)),
        country=st.sampled_from(("DE", "FR")),
        vendors=vendors,
        ranges=st.booleans(),
        restrictions=st.lists(restriction, max_size=2).map(tuple),
        disclosed=st.one_of(vendors, vendors, st.none(), st.just(frozenset({7}))),
        publisher=st.one_of(most, most, st.none()),
        custom=st.integers(0, 8),
        unknown_segment=st.booleans(),
        order=st.permutations(("disclosed", "publisher", "unknown")).map(tuple),
    )
