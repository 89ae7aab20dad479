"""A configuration as the TOML file that `load_config` reads it from."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from consentier.errors import ConfigError
from consentier.training.config import Config, TierConfig

__all__ = ["config_toml"]


def config_toml(config: Config) -> str:
    """Write down what differs from the defaults, each section under its name.

    Raises
    ------
    ConfigError
        A field is absent that has a value by default: TOML cannot say so.
    """
    sections = []
    for name, field in Config.model_fields.items():
        section = getattr(config, name)
        defaults = field.default
        if isinstance(section, TierConfig):
            defaults = Config.defaults_of(name, section.algorithm)
        lines = _lines(name, section, defaults)
        if lines:
            sections.append("\n".join([f"[{name}]", *lines]) + "\n")
    return "\n".join(sections)


def _lines(section: str, values: BaseModel, defaults: BaseModel) -> list[str]:
    lines = []
    for name in type(values).model_fields:
        value, default = getattr(values, name), getattr(defaults, name)
        if value == default:
            continue
        if value is None:
            raise ConfigError(f"{section}.{name} has the default {default!r}: a file cannot take it away")
        if isinstance(value, Mapping):
            # A table of weights changes the entries that it names.
            value = {entry: weight for entry, weight in value.items() if default.get(entry) != weight}
            if not value:
                continue
        lines.append(f"{name} = {_toml(value)}")
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(entry)}" for name, entry in value.items()) + " }"
    if isinstance(value, Sequence):
        return f"[{', '.join(_toml(entry) for entry in value)}]"
    raise TypeError(f"cannot write a {type(value).__name__} as TOML")
