"""What may be shown at this moment: availability and sensitivity of items. No person is read here."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import decimal
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from consentier.errors import DataError
from consentier.serving.item_columns import Value

__all__ = ["Catalogue"]

_TRUE = frozenset({"true", "t", "yes", "y", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "0"})
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_OWN = frozenset({"item_id", "available", "sensitive"})
_LONGEST_LINE = 1 << 20
_MOST_COLUMNS = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Catalogue:
    """The items that may be shown.

    Attributes
    ----------
    available
        Ids of the items that can be bought now and are not sensitive. Nothing else is ever recommended.
    sensitive
        Ids of items that enter no history, answer or explanation.
    attributes
        By item id: category, price, whatever business rules ask for.
    unread
        Attributes that the source has and that were not asked for.
    """

    available: frozenset[str]
    sensitive: frozenset[str] = frozenset()
    attributes: Mapping[str, Mapping[str, Value]] = dataclasses.field(default_factory=dict, hash=False)
    unread: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("available", "sensitive"):
            value: object = getattr(self, name)
            if isinstance(value, str | bytes) or not isinstance(value, Iterable):
                raise TypeError(f"Catalogue: {name} must be a collection of item ids, not {value!r}")
            ids = frozenset(value)
            for item in ids:
                if not isinstance(item, str):
                    raise TypeError(f"Catalogue: {name} holds {item!r}; item ids are strings")
            object.__setattr__(self, name, ids)
        object.__setattr__(self, "available", self.available - self.sensitive)

    @classmethod
    def of(
        cls,
        source: Catalogue | Mapping[str, Mapping[str, Any]] | Iterable[str] | str | Path,
        attributes: Collection[str] | None = None,
    ) -> Catalogue:
        """Make a catalogue out of what a shop has at hand.

        Parameters
        ----------
        source
            A catalogue; item ids (all available); a mapping from item id to ``{"available": …, "sensitive":
            …, "category": …}``; or the path of an ``items`` table as CSV or Parquet (Parquet needs pyarrow).
            Each row of a CSV file has as many cells as its header, no column stands twice, and none has the
            name of ``item_id``, ``available`` or ``sensitive`` in another spelling: a flag that is not read
            as such would hide nothing. In a CSV file a column is one of numbers where each value is one and
            none begins with a 0 that means something (007), of truth values where each is true or false, and
            of texts elsewhere.
        attributes
            Names of the attributes to keep, as far as there are such; None: all. Of a Parquet file no other
            column is read, of a CSV file none other kept. A catalogue stays as it is.

        Raises
        ------
        DataError
            If the table cannot be read, or a row names no item or is neither true nor false where it must be.
        TypeError
            If an item id is no string.
        """
        if isinstance(source, Catalogue):
            return source
        if isinstance(source, str | Path):
            rows, names = _read(Path(source), attributes)
            return cls._from_rows(rows, f"catalogue {source}", _left_out(names, attributes))
        if isinstance(source, Mapping):
            left_out = _left_out({name for facts in source.values() for name in facts}, attributes)
            rows = (
                {**{name: facts[name] for name in facts if name not in left_out}, "item_id": item}
                for item, facts in source.items()
            )
            return cls._from_rows(rows, "catalogue", left_out)
        return cls(frozenset(source))

    @classmethod
    def _from_rows(cls, rows: Iterable[Mapping[str, Any]], origin: str, unread: frozenset[str]) -> Catalogue:
        available, sensitive = set(), set()
        attributes: dict[str, Mapping[str, Value]] = {}
        for number, row in enumerate(rows, start=1):
            item = row.get("item_id")
            if not isinstance(item, str) or not item:
                raise DataError(f"{origin}: row {number}: item_id is missing; every item needs one")
            if _flag(row.get("available"), default=True, where=f"{origin}: row {number}: available"):
                available.add(item)
            if _flag(row.get("sensitive"), default=False, where=f"{origin}: row {number}: sensitive"):
                sensitive.add(item)
            if further := {name: value for name, value in row.items() if name not in _OWN}:
                attributes[item] = {
                    name: _value(value, f"{origin}: row {number}: {name}") for name, value in further.items()
                }
        return cls(frozenset(available), frozenset(sensitive), attributes, unread)


def _left_out(names: Iterable[str], attributes: Collection[str] | None) -> frozenset[str]:
    """Which of the names there are were not asked for."""
    return frozenset() if attributes is None else frozenset(names) - frozenset(attributes) - _OWN


def _flag(value: object, *, default: bool, where: str) -> bool:
    if value is None or value == "":
        return default
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise DataError(f"{where}: {value!r} is neither true nor false")


_Rows = Iterable[Mapping[str, Any]]


def _read(path: Path, attributes: Collection[str] | None) -> tuple[_Rows, Sequence[str]]:
    """The rows of a table, with the columns that are asked for, and the names of all columns."""
    if not path.is_file():
        raise DataError(f"catalogue {path}: there is no such file")
    try:
        return _rows_of(path, attributes)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"catalogue {path}: cannot be read: {error}") from error


def _rows_of(path: Path, attributes: Collection[str] | None) -> tuple[_Rows, Sequence[str]]:
    if path.suffix == ".parquet":
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq

            from consentier.features.parquet_files import bounded_batches
        except ImportError:
            raise DataError(
                f"catalogue {path}: reading Parquet needs pyarrow (pip install 'consentier[train]'); "
                "a CSV file needs nothing more"
            ) from None
        try:
            names: Sequence[str] = pq.read_schema(path).names
            _check_names(names)
            left_out = _left_out(names, attributes)
            batches = bounded_batches(path, [name for name in names if name not in left_out])
            return [row for batch in batches for row in batch.to_pylist()], names
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(_short_lines(file), strict=True)
        names = next(reader, [])
        _check_names(names)
        left_out = _left_out(names, attributes)
        kept = [(place, name) for place, name in enumerate(names) if name not in left_out]
        rows = []
        for row in filter(None, reader):
            if len(row) != len(names):
                raise ValueError(f"line {reader.line_num} has {len(row)} cells, the header {len(names)}")
            rows.append({name: row[place] for place, name in kept})
        return _typed(rows), names


def _short_lines(file: IO[str]) -> Iterator[str]:
    """The lines of a file, none of them longer than those of a table are."""
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"a line is longer than {_LONGEST_LINE} characters")
        yield line


def _check_names(names: Sequence[str]) -> None:
    """Refuse names that would leave a flag unread."""
    if len(names) > _MOST_COLUMNS:
        raise ValueError(f"there are {len(names)} columns; at most {_MOST_COLUMNS} are read")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the column {name!r} stands twice; keep one of them")
        seen.add(name)
        folded = "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))
        for own in _OWN - {name}:
            if folded == own.replace("_", ""):
                raise ValueError(f"the column {name!r} must be called {own}: rename it")


def _typed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of texts, with the columns of numbers and truth values read as such."""
    for name in {name for row in rows for name in row} - _OWN:
        texts = [row.get(name) for row in rows]
        for read in (_as_flag, _as_number):
            values = [None if text in (None, "") else read(text) for text in texts]
            if all(
                value is not None or text in (None, "") for value, text in zip(values, texts, strict=True)
            ):
                for row, value in zip(rows, values, strict=True):
                    row[name] = value
                break
    return rows


def _as_flag(text: object) -> bool | None:
    return {"true": True, "false": False}.get(str(text).strip().lower())


def _as_number(text: object) -> float | None:
    """The number that a text writes as numbers are written."""
    match = _NUMBER.fullmatch(str(text).strip())
    return None if match is None else float(match.group())


def _value(value: object, where: str) -> Value:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, list | tuple | dict):
        return None  # rules compare single values
    raise DataError(f"{where}: {value!r} is no text, number or truth value")
