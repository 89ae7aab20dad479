"""Payloads to start from: of each kind at least one that grants, so that the fuzzer works near the border."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable

from platform_signals import GRANTING, RECEIVED

__all__ = ["ALPHABET", "seeds_of"]

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def seeds_of(kind: str) -> list[bytes]:
    """Payloads of a kind, as text."""
    if kind in GRANTING:
        case = GRANTING[kind]
        return [json.dumps(case.payload).encode(), json.dumps([case.payload, case.payload]).encode()]
    if kind in ("gpc", "dnt"):
        return [b"1", b"0", b"1, 0", b""]
    strings = [_tc_string(purposes) for purposes in (range(1, 12), (1, 5, 6), (3, 4, 10))]
    if kind != "gpp":
        return [string.encode() for string in strings]
    sections = {2: strings[0], 6: "1YYN", 7: "BAAAAAAAAAA.QA"}
    return [
        f"{_gpp_header(sections)}~{'~'.join(sections.values())}".encode(),
        b"DBAA",
        *map(str.encode, strings),
    ]


def _tc_string(purposes: Iterable[int]) -> str:
    """A TC string, two days old, that grants purposes to the publisher and to vendors 1 to 7."""
    deciseconds = int((RECEIVED - dt.timedelta(days=2)).timestamp() * 10)
    consents = "".join("1" if purpose in purposes else "0" for purpose in range(1, 25))
    vendors = f"{7:016b}0{'1' * 7}"
    core = (
        f"{2:06b}{deciseconds:036b}{deciseconds:036b}{31:012b}{1:012b}{1:06b}{4:06b}{13:06b}{100:012b}{5:06b}"
        f"10{0:012b}{consents}{0:024b}0{3:06b}{4:06b}{vendors}{0:016b}0{0:012b}"
    )
    return ".".join(map(_text, (core, f"001{vendors}", f"011{consents}{0:024b}{0:06b}")))


def _gpp_header(sections: Iterable[int]) -> str:
    bits = f"{3:06b}{1:06b}{len(list(sections)):012b}"
    last = 0
    for section in sections:
        bits += "0" + _fibonacci(section - last)
        last = section
    return _text(bits)


def _fibonacci(number: int) -> str:
    terms = [1, 2]
    while terms[-1] <= number:
        terms.append(terms[-1] + terms[-2])
    digits = ""
    for term in reversed(terms[:-1]):
        digits += "1" if term <= number else "0"
        number -= term if term <= number else 0
    return digits[::-1] + "1"


def _text(bits: str) -> str:
    bits += "0" * (-len(bits) % 6)
    return "".join(ALPHABET[int(bits[start : start + 6], 2)] for start in range(0, len(bits), 6))
