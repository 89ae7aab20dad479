"""Column names of tables, and how a name that is spelt otherwise is told from one that is not there."""

from __future__ import annotations

import collections
import difflib
import unicodedata
from collections.abc import Mapping, Sequence

from consentier.errors import DataError
from consentier.features.schemas import Column, TableSchema

__all__ = ["MOST_COLUMNS", "check_header", "folded"]

MOST_COLUMNS = 10_000
"""Columns of a table."""

_OTHER_DELIMITERS = {";": "semicolon", "\t": "tab", "|": "vertical bar"}


def check_header(schema: TableSchema, names: Sequence[str], file: str = "") -> None:
    """Check the column names of a table.

    Raises
    ------
    DataError
        If a required column is missing, a column stands twice, or a column carries the name of an absent
        optional one in another spelling (a misspelt ``sensitive`` would flag nothing).
    """
    place = f"table {schema.name}" + (f" ({file})" if file else "")
    if len(names) > MOST_COLUMNS:
        raise DataError(f"{place}: {len(names)} columns; at most {MOST_COLUMNS} are read: is it this table?")
    known = schema.column_names
    others = {folded(name): name for name in names if name not in known}
    if not {*names, *others} & {*known, *map(folded, known)}:
        # A file without a header begins with a person, whom no message may name.
        raise DataError(
            f"{place}: none of its {len(names)} columns has a name of the contract: the first line must be a "
            f"header, with {', '.join(column.name for column in schema.columns if column.required)}"
            + _delimiter_hint(names)
        )
    repeated = sorted(name for name, count in collections.Counter(names).items() if count > 1)
    if repeated:
        raise DataError(f"{place}: column {repeated[0]} stands more than once: keep one of them")
    for column in schema.columns:
        if column.name in names:
            continue
        plain = folded(column.name)
        near = [plain] if plain in others else []
        if column.required:
            near = near or difflib.get_close_matches(plain, others, n=1, cutoff=0.6)
            raise DataError(
                f"{place}: missing column {column.name} ({column.type}): {_remedy(column, others, near)}"
            )
        if near:
            raise DataError(f"{place}: column {others[near[0]]!r} must be called {column.name}: rename it")


def _delimiter_hint(names: Sequence[str]) -> str:
    """What to say of a header that came out as one column, because something else than a comma divides it."""
    found = [word for sign, word in _OTHER_DELIMITERS.items() if len(names) == 1 and sign in names[0]]
    return f". Its one column holds a {found[0]}: separate the columns by commas" if found else ""


def _remedy(column: Column, others: Mapping[str, str], near: Sequence[str]) -> str:
    """What to do about a missing column, given the names that the contract does not know."""
    if near:
        return f"rename {others[near[0]]!r}?"
    if not 1 <= len(others) <= 5:
        return f"it holds {column.doc}"
    names = ", ".join(map(repr, others.values()))
    return f"it holds {column.doc}: rename {'one of ' if len(others) > 1 else ''}{names}?"


def folded(name: str) -> str:
    """A name without what tells its spellings apart: case, width, spaces and punctuation."""
    plain = unicodedata.normalize("NFKC", name).casefold()  # wide letters and the like are a spelling, too
    return "".join(character for character in plain if character.isalnum())
