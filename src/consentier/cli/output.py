"""What all commands say, and how: tables, JSON, and errors as one line each.

Results go to standard output; progress, notes and errors to standard error, so that ``--json`` can be piped.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consentier.addresses import shown_url
from consentier.errors import ConsentierError, DataError
from consentier.logs import bound, log_line, shows_progress
from consentier.writing import whole_file

if TYPE_CHECKING:
    from consentier.serving.batch_table import BatchTable

__all__ = [
    "CHECK_FAILED",
    "INTERRUPTED",
    "MISSING_EXTRA",
    "NOT_JUDGED",
    "STRANGER",
    "USER_ERROR",
    "guarded",
    "name_of",
    "note",
    "place_of",
    "plain",
    "print_json",
    "print_table",
    "require_file",
    "say",
    "set_debug",
    "short",
    "write_json",
    "written_beside",
]

CHECK_FAILED = 1
USER_ERROR = 2
MISSING_EXTRA = 3
NOT_JUDGED = 4
"""A check could not be made, because there is nothing to judge by."""

INTERRUPTED = 130

STRANGER = "The ledger had no record of this subject: check the id, and --kind"

_Parameters = ParamSpec("_Parameters")

_PIPED_WIDTH = 120

# What a terminal obeys rather than shows, what turns the direction of a text, and halves of surrogate pairs:
# an id that comes from a supplier's table must be seen and must do nothing.
_OBEYED = {
    number: f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
    for number in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(number) not in "\t\n"
} | {number: f"\\u{number:04x}" for number in range(0xD800, 0xE000)}


class _Settings:
    """Settings of the whole command line."""

    debug = False


def set_debug(debug: bool) -> None:
    """Whether errors show their traceback."""
    _Settings.debug = debug


def guarded(command: Callable[_Parameters, None], typed: str | None = None) -> Callable[_Parameters, None]:
    """Turn what goes wrong in a command into a line on standard error and an exit code.

    Parameters
    ----------
    command
        The command.
    typed
        What is typed to call it, which lines of JSON name: ``consent import``. By default its own name.
    """

    @functools.wraps(command)
    def run(*args: _Parameters.args, **options: _Parameters.kwargs) -> None:
        try:
            with bound(command=typed or command.__name__, run=secrets.token_hex(4)):
                command(*args, **options)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            _error("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # whoever reads the output has enough: not an error of ours
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package == "consentier":
                raise
            _show_traceback()
            _error(f"{package} is not installed; this command needs it: pip install 'consentier[train]'")
            raise typer.Exit(MISSING_EXTRA) from error
        except (ConsentierError, OSError, ValueError) as error:
            _show_traceback()
            if type(error).__module__.startswith("pyarrow"):  # a value that cannot be converted, in full
                _error(f"a table cannot be converted: {type(error).__name__} (--debug shows what and where)")
                raise typer.Exit(USER_ERROR) from error
            _error(_in_words(error))
            raise typer.Exit(USER_ERROR) from error
        except Exception as error:
            _show_traceback()
            # Not in its own words: they may be a key that was not found, such as a customer's id.
            hint = "" if _Settings.debug else " (--debug shows what and where; please report it)"
            _error(f"unexpected {type(error).__name__}{hint}")
            raise typer.Exit(USER_ERROR) from error

    return run


def _show_traceback() -> None:
    if _Settings.debug:
        import traceback

        traceback.print_exc()


def _error(message: str) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for line in message.splitlines() or [""]:
        console.print(_text(f"error: {line}", style="red"))


def note(message: str) -> None:
    """Say something on standard error: in words on a terminal, as a line of JSON elsewhere."""
    if not shows_progress():
        return
    if not sys.stderr.isatty():
        log_line(sys.stderr, event="note", message=message.strip())
        return
    Console(stderr=True, soft_wrap=True, highlight=False).print(_text(message, style="dim"))


def say(message: str = "", style: str = "") -> None:
    """Print one line of a result."""
    Console(soft_wrap=True, highlight=False).print(_text(message, style=style))


def _text(shown: str, style: str = "") -> Text:
    """A text for a terminal: no mark-up in it is read, and no control character obeyed."""
    return Text(shown.translate(_OBEYED), style=style)


def print_json(value: object) -> None:
    """Print a result as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Plain values for JSON: times in ISO 8601, sets in order."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.isoformat() if isinstance(value, dt.datetime) else value


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
) -> None:
    """Print rows as a table; numbers stand to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.show_header = any(columns)
    for position, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[position], int | float) for row in rows)
        # Names and figures are never broken; long texts are.
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(_cell(value)) for value in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def short(digest: str | None) -> str:
    """A digest cut down to what the eye compares."""
    return "-" if digest is None else digest.removeprefix("sha256:")[:12]


def _in_words(error: Exception) -> str:
    """What an error says; of the system's errors the file first, and no number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def name_of(data: str) -> str:
    """What to call a shop's data in reports: the last part of the path, or the name of the database."""
    if "://" in data:
        return shown_url(data).partition("?")[0].rstrip("/").rpartition("/")[2]
    return Path(data).resolve().name


def require_file(path: Path | None) -> None:
    """Refuse a place where no file can be written, before the work that is to end there.

    Raises
    ------
    DataError
        If it is a directory, or lies in a place where none can be made.
    """
    if path is None:
        return
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name a file")
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir():
        raise DataError(f"{path}: cannot be written, for {folder} is a file; name another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{path}: cannot be written, for nothing may be made in {folder}; name another place")


@contextlib.contextmanager
def written_beside(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A place to write a file in, which is renamed to `path` when all is well and removed when it is not."""
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, private=private) as beside:
        yield beside


def write_json(path: Path, value: Mapping[str, Any], *, private: bool = False) -> None:
    """Write a result as a JSON file, for its owner only if it names persons: the whole of it, or nothing."""
    with written_beside(path, private=private) as beside:
        beside.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def place_of(where: str, table: str | None) -> Path | BatchTable:
    """Where a batch is: the path that a text names, or a table of the database at a URL."""
    if "://" not in where:
        if table is not None:
            raise typer.BadParameter(f"{shown_url(where)} is no database", param_hint="'--table'")
        return Path(where)
    from consentier.serving.batch_table import BatchTable

    try:
        return BatchTable(where) if table is None else BatchTable(where, table)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--table'") from None
