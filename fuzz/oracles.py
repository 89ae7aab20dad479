"""What a payload may grant at most, said a second time: see `platform_oracle` for the platforms.

For TC strings the oracle reads the few fixed bits that a grant cannot do without. Headers and GPP strings
grant nothing.
"""

from __future__ import annotations

import datetime as dt

from platform_oracle import may_grant_of_text
from platform_signals import GRANTING, RECEIVED
from seeds import ALPHABET

__all__ = ["VENDOR_ID", "may_grant"]

VENDOR_ID = 3
"""The vendor of the target ``tcf_vendor``."""

_NEEDED = {"online": {1, 5, 6}, "ads": {3, 4}, "model": {10}}
_POLICY_WITH_DISCLOSURE = 5


def may_grant(target: str, payload: bytes) -> frozenset[str]:
    """The permissions that a payload may grant."""
    if target in GRANTING:
        return may_grant_of_text(target, payload)
    if target in ("tcf", "tcf_vendor"):
        return _tc_string(payload, to_vendor=target == "tcf_vendor")
    return frozenset()


def _tc_string(payload: bytes, *, to_vendor: bool) -> frozenset[str]:
    segments = [_bits(segment) for segment in payload.decode("latin-1").split(".")]
    core, others = segments[0], segments[1:]
    if len(core) < 200 or core[:6] != "000010" or core[138] != "1":
        return frozenset()
    age = RECEIVED.timestamp() - int(core[42:78], 2) / 10
    if not -300 <= age <= dt.timedelta(days=397).total_seconds():
        return frozenset()
    if to_vendor:
        if int(core[132:138], 2) >= _POLICY_WITH_DISCLOSURE and not any(bits[:3] == "001" for bits in others):
            return frozenset()
        consented = _numbers(core[152:176])
    else:
        publisher = [bits[3:27] for bits in others if bits[:3] == "011" and len(bits) >= 27]
        consented = _numbers(publisher[0]) if publisher else set()
    if core[200:201] == "1":
        consented -= {1}
    return frozenset(permission for permission, needed in _NEEDED.items() if needed <= consented)


def _bits(segment: str) -> str:
    return "".join(f"{ALPHABET.index(letter):06b}" for letter in segment.rstrip("=") if letter in ALPHABET)


def _numbers(bits: str) -> set[int]:
    return {number for number, bit in enumerate(bits, 1) if bit == "1"}
