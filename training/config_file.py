"""A configuration as the TOML file that `load_config` reads it from."""

from __future__ import annotations

import datetime as dt
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from consentier.errors import ConfigError
from consentier.training.config import Config, TierConfig

__all__ = ["config_schema", "config_template", "config_toml", "resolved_toml"]

_WIDTH = 100


def config_toml(config: Config) -> str:
    """Write down what differs from the defaults, each section under its name.

    Raises
    ------
    ConfigError
        A field is absent that has a value by default: TOML cannot say so.
    """
    sections = []
    for name in Config.model_fields:
        lines = _lines(name, getattr(config, name), _defaults(config, name))
        if lines:
            sections.append("\n".join([f"[{name}]", *lines]) + "\n")
    return "\n".join(sections)


def resolved_toml(config: Config) -> str:
    """Write down every field that has a value, defaults included; a mark on those that differ from them.

    For people to read: the address of a store stands there without user and password.
    """
    sections, config = [], config.shown()
    for section in Config.model_fields:
        values, defaults, lines = getattr(config, section), _defaults(config, section), [f"[{section}]"]
        for name in type(values).model_fields:
            value, default = getattr(values, name), getattr(defaults, name)
            if value is not None:
                shown = _toml(default) if default is not None else "absent"
                lines.append(f"{name} = {_toml(value)}{'' if value == default else f'  # default: {shown}'}")
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def config_template(schema: str | None = None) -> str:
    """A file to begin with: every field with what it means, at its default and switched off.

    Parameters
    ----------
    schema
        Where an editor finds the schema of `config_schema`: a path or an address; None: it is not told.
    """
    head = [] if schema is None else [f"#:schema {schema}"]
    head.append("# Consentier. What is switched off by '#' has the value shown.")
    sections = ["\n".join(head) + "\n"]
    explained: set[type[BaseModel]] = set()
    for section, field in Config.model_fields.items():
        kind = type(field.default)
        lines = [f"[{section}]"]
        for name, described in kind.model_fields.items():
            # The tiers have the same fields: each is explained once.
            if kind not in explained and described.description:
                lines += ["", *(f"# {line}" for line in textwrap.wrap(described.description, _WIDTH))]
            value = getattr(field.default, name)
            lines.append(f"# {name} = {'...' if value is None else _toml(value)}")
        explained.add(kind)
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def config_schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors: names, types, limits, meanings, and each tier's defaults."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Consentier configuration"
    return schema


def _defaults(config: Config, section: str) -> BaseModel:
    """What a section has where a file names none of its fields but the algorithm."""
    values = getattr(config, section)
    if isinstance(values, TierConfig):
        return Config.defaults_of(section, values.algorithm)
    defaults: BaseModel = Config.model_fields[section].default
    return defaults


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
