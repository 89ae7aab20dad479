"""Settings that a person wrote in TOML: read in one way, with messages that name the file and the key."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from consentier.errors import ConsentierError, suggestion

__all__ = ["read_toml", "require_known_keys"]


def read_toml(path: str | Path, origin: str, error_type: type[ConsentierError]) -> dict[str, Any]:
    """What a TOML file holds.

    Parameters
    ----------
    path
        The file.
    origin
        What to call it in a message.
    error_type
        What to raise if it cannot be read, or is no TOML in UTF-8.
    """
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise error_type(f"{origin}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise error_type(f"{origin}: is not valid TOML in UTF-8: {error}") from error


def require_known_keys(
    document: Mapping[str, Any], known: Iterable[str], where: str, error_type: type[ConsentierError]
) -> None:
    """Refuse a key that nothing reads, and name the one that was probably meant."""
    allowed = list(known)
    for key in document:
        if key not in allowed:
            raise error_type(f"{where}: unknown key {key!r}{suggestion(key, allowed)}")
