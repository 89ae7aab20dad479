"""Settings of the environment: ``CONSENTIER__CRM__NEIGHBOURS=300`` for ``neighbours = 300`` in ``[crm]``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

__all__ = ["PREFIX", "with_environment"]

PREFIX = "CONSENTIER__"
"""How the names of variables begin that set something; two underscores part the names of tables and keys."""


def with_environment(
    document: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """Put settings of the environment over those of a file.

    Parameters
    ----------
    document
        What the file holds.
    environ
        The environment. Values are written as in TOML; what is no TOML is a text (``bm25`` for ``"bm25"``).

    Returns
    -------
    document : dict
        Both together.
    names : dict
        By place (section, key, …): the variable that it comes from.
    """
    merged: dict[str, Any] = {key: _copied(value) for key, value in document.items()}
    names: dict[tuple[str, ...], str] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX):
            continue
        place = tuple(name.removeprefix(PREFIX).lower().split("__"))
        table: Any = merged
        for part in place[:-1]:
            table = table.setdefault(part, {}) if isinstance(table, dict) else None
        if isinstance(table, dict):  # else the file has a value where a table belongs, and is told so
            table[place[-1]] = _value(environ[name])
            names[place] = name
    return merged, names


def _copied(value: Any) -> Any:
    return {key: _copied(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if set(parsed) == {"value"} else text
