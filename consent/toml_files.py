"""Settings that a person wrote in TOML: read in one way, with messages that name the file and the key."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from consentier.errors import ConsentierError, suggestion

__all__ = ["read_toml", "require_known_keys"]

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 32
_TOO_DEEP = f"is nested deeper than {_MAX_DEPTH} levels"


def read_toml(path: str | Path, origin: str, error_type: type[ConsentierError]) -> dict[str, Any]:
    """What a TOML file holds.

    Parameters
    ----------
    path
        The file.
    origin
        What to call it in a message.
    error_type
        What to raise if it cannot be read, is no TOML in UTF-8, or is longer than 1 MiB or nested deeper than
        32 levels.
    """
    try:
        with Path(path).open("rb") as file:
            payload = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise error_type(f"{origin}: cannot be read: {error.strerror or error}") from error
    if len(payload) > _MAX_BYTES:
        raise error_type(f"{origin}: is longer than {_MAX_BYTES} bytes, so it is no file of settings")
    try:
        document = tomllib.loads(payload.decode("utf-8"))
    except RecursionError:
        raise error_type(f"{origin}: {_TOO_DEEP}") from None
    except ValueError as error:  # also for a number of more digits than Python reads
        raise error_type(f"{origin}: is not valid TOML in UTF-8: {error}") from error
    if _is_deeper_than(document, _MAX_DEPTH):
        raise error_type(f"{origin}: {_TOO_DEEP}")
    return document


def _is_deeper_than(document: Mapping[str, Any], most: int) -> bool:
    """Whether tables and lists stand in each other more often than so; without recursion, as it may be so."""
    level: list[Any] = [document]
    for _ in range(most):
        parts = [value.values() if isinstance(value, dict) else value for value in level]
        level = [each for part in parts for each in part if isinstance(each, dict | list)]
    return bool(level)


def require_known_keys(
    document: Mapping[str, Any], known: Iterable[str], where: str, error_type: type[ConsentierError]
) -> None:
    """Refuse a key that nothing reads, and name the one that was probably meant."""
    allowed = list(known)
    for key in document:
        if key not in allowed:
            raise error_type(f"{where}: unknown key {key!r}{suggestion(key, allowed)}")
