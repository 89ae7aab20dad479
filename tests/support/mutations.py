"""Payloads one step away from well-formed ones: what fuzzing and property tests of readers start from."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from platform_signals import altered, paths, value_at

__all__ = ["mutate_bytes", "mutate_json", "texts_in"]

JUNK = (
    None,
    True,
    False,
    0,
    1,
    -1,
    10**18,
    10**400,
    1.5,
    1e308,
    "",
    "yes",
    "y",
    "n",
    "granted",
    "denied",
    "2026-06-01T11:59:00Z",
    "2026-06-01T12:01:00Z",
    "2026-06-01T12:06:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "\ud800",
    "\x00",
    [],
    {},
    [[]],
)

_PIECES = (
    b"", b"-", b"9", b"{", b"}", b"[", b"]", b'"', b"'", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n",
    b",", b"=",
    b"null", b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"[" * 3000, b"[" * 60 + b"]" * 60, b'{"a":' * 3000,
    b"\\ud800", b"2026-02-30", b"0001-01-01T00:00:00+14:00", b'""', b"true", b"x" * 200_000,
)  # fmt: skip


def mutate_json(data: bytes, random_: random.Random, words: Sequence[str]) -> bytes | None:
    """Replace, remove or transplant up to three places of a JSON payload; None where it is none."""
    try:
        payload = json.loads(data)
        for _ in range(random_.randint(1, 3)):
            places = list(paths(payload))
            path = random_.choice(places)
            new = random_.choice([*JUNK, random_.choice(words), value_at(payload, random_.choice(places))])
            payload = altered(payload, path, new) if random_.random() < 0.8 else altered(payload, path)
        return json.dumps(payload).encode()
    except (ValueError, RecursionError, TypeError):
        return None


def mutate_bytes(data: bytes, random_: random.Random) -> bytes:
    """Put up to three pieces that readers trip over into a payload, or cut it off."""
    changed = bytearray(data)
    for _ in range(random_.randint(1, 3)):
        start = random_.randint(0, len(changed))
        changed[start : start + random_.choice((0, 0, 1, 4, 16))] = random_.choice(_PIECES)
    return bytes(changed[: random_.randint(0, len(changed))] if random_.random() < 0.1 else changed)


def texts_in(seed: bytes) -> set[str]:
    """The keys and texts of a JSON payload; none where it is none."""
    try:
        payload = json.loads(seed)
    except ValueError:
        return set()
    values = {value_at(payload, path) for path in paths(payload) if isinstance(value_at(payload, path), str)}
    return values | {step for path in paths(payload) for step in path if isinstance(step, str)}
