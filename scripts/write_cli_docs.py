"""Writes ``docs/cli.md`` from the command line itself: every command, argument and option with its help.

Run: ``python scripts/write_cli_docs.py`` where consentier is installed with the extra ``cli``. A test fails
while the page differs from the commands.
"""

from __future__ import annotations

import enum
import inspect
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

from typer.models import ArgumentInfo, CommandInfo, OptionInfo, ParameterInfo
from typer.utils import get_params_from_function

from consentier.cli.app import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"

_INTRODUCTION = """\
# The command line

`pip install 'consentier[cli]'` brings the command `consentier`. Commands that read a shop's tables, train or
evaluate need `consentier[train]`, and say so. `consentier COMMAND --help` shows what this page shows.

Results go to standard output; progress, notes and errors to standard error. With `--json` the result is one
JSON document. A command that fails leaves no half-written output behind.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a check failed (`validate`, `inspect`, `doctor`, `drift`, `promote`, `rollback`, `replay`, \
`consent verify`), or a question was answered with no |
| 2 | wrong input: an option, a file, a row |
| 3 | a package is missing; the message names the extra to install |
| 4 | there is nothing to judge by: `drift`, of bundles that say nothing about their data |
| 130 | interrupted |

<!-- Written by scripts/write_cli_docs.py from the commands themselves: change those, and run it again. -->
"""
_TYPES: dict[Any, str] = {int: "integer", float: "number"}


def page() -> str:
    """The whole page as Markdown."""
    commands = [_command(info) for info in app.registered_commands]
    for group in app.registered_groups:
        if group.typer_instance is None:
            raise RuntimeError("a group of commands has no commands")
        name = str(group.typer_instance.info.name)
        commands += [_command(info, f"{name} ") for info in group.typer_instance.registered_commands]
    callback = app.registered_callback
    if callback is None or callback.callback is None:
        raise RuntimeError("consentier.cli.app has no callback: the options of all commands are gone")
    common = ["## Options of all commands", "", "They stand before the command.", ""]
    common += _table("option", _rows(callback.callback, OptionInfo))
    text = "\n".join([_INTRODUCTION, *common, "", *("\n".join(lines) for lines in commands)])
    return f"{text.rstrip()}\n"


def _command(info: CommandInfo, group: str = "") -> list[str]:
    callback = info.callback
    if callback is None:
        raise RuntimeError(f"the command {info.name!r} has no function")
    function = inspect.unwrap(callback)
    name = group + (info.name or function.__name__)
    arguments, options = _rows(function, ArgumentInfo), _rows(function, OptionInfo)
    usage = " ".join([f"consentier {name}", *(names.strip("`") for names, *_ in arguments), "[OPTIONS]"])
    lines = [f"## {name}", "", inspect.getdoc(function) or "", "", "```text", usage, "```", ""]
    if arguments:
        lines += [*_table("argument", arguments), ""]
    lines += [*_table("option", options), ""]
    if info.epilog:
        lines += [f"{info.epilog.replace('Example: ', 'Example: `', 1)}`", ""]
    return lines


def _table(kind: str, rows: list[tuple[str, ...]]) -> list[str]:
    head = (kind, "value", "default", "meaning")
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def _rows(function: Callable[..., None], kind: type[ParameterInfo]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for parameter in get_params_from_function(function).values():
        info = parameter.default
        if isinstance(info, kind):
            names = f"`{_names(parameter.name, info)}`"
            plain = _plain(parameter.annotation)
            rows.append((names, _value(plain, info), _default(plain, info), _escaped(info.help or "")))
    return rows


def _names(name: str, info: ParameterInfo) -> str:
    if isinstance(info, ArgumentInfo):
        return str(info.metavar or name.upper())
    return ", ".join(info.param_decls or (f"--{name.replace('_', '-')}",))


def _plain(hint: Any) -> Any:
    """The type without ``| None``."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        return next(member for member in get_args(hint) if member is not types.NoneType)
    return hint


def _value(plain: Any, info: ParameterInfo) -> str:
    """What to write after the option."""
    repeatable = " (repeatable)" if get_origin(plain) is list else ""
    if repeatable:
        (plain,) = get_args(plain)
    if plain is bool:
        return "flag"
    if isinstance(plain, type) and issubclass(plain, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in plain) + repeatable
    if info.metavar and isinstance(info, OptionInfo):
        return f"{info.metavar}{repeatable}"
    if plain is Path:
        return f"path{repeatable}"
    limits = [
        f"{word} {limit:g}" for word, limit in (("from", info.min), ("to", info.max)) if limit is not None
    ]
    return " ".join([_TYPES.get(plain, "text") + repeatable, *limits])


def _default(plain: Any, info: ParameterInfo) -> str:
    if info.default is ...:
        return "required"
    if info.default is None or plain is bool:
        return "-"
    return f"`{info.default.value if isinstance(info.default, enum.Enum) else info.default}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    sys.stderr.write(f"written to {PAGE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
