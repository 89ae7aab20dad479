"""What may be shown at this moment: availability and sensitivity of items. No person is read here."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from consentier.errors import DataError

__all__ = ["Catalogue"]

_TRUE = frozenset({"true", "t", "yes", "y", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "0"})


@dataclasses.dataclass(frozen=True, slots=True)
class Catalogue:
    """The items that may be shown.

    Attributes
    ----------
    available
        Ids of the items that can be bought now and are not sensitive. Nothing else is ever recommended.
    sensitive
        Ids of items that enter no history, answer or explanation.
    """

    available: frozenset[str]
    sensitive: frozenset[str] = frozenset()

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
        cls, source: Catalogue | Mapping[str, Mapping[str, Any]] | Iterable[str] | str | Path
    ) -> Catalogue:
        """Make a catalogue out of what a shop has at hand.

        Parameters
        ----------
        source
            A catalogue; item ids (all available); a mapping from item id to ``{"available": …, "sensitive":
            …}``; or the path of an ``items`` table as CSV or Parquet (Parquet needs pyarrow).

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
            return cls._from_rows(_read(Path(source)), f"catalogue {source}")
        if isinstance(source, Mapping):
            return cls._from_rows(({**facts, "item_id": item} for item, facts in source.items()), "catalogue")
        return cls(frozenset(source))

    @classmethod
    def _from_rows(cls, rows: Iterable[Mapping[str, Any]], origin: str) -> Catalogue:
        available, sensitive = set(), set()
        for number, row in enumerate(rows, start=1):
            item = row.get("item_id")
            if not isinstance(item, str) or not item:
                raise DataError(f"{origin}: row {number}: item_id is missing; every item needs one")
            if _flag(row.get("available"), default=True, where=f"{origin}: row {number}: available"):
                available.add(item)
            if _flag(row.get("sensitive"), default=False, where=f"{origin}: row {number}: sensitive"):
                sensitive.add(item)
        return cls(frozenset(available), frozenset(sensitive))


def _flag(value: object, *, default: bool, where: str) -> bool:
    if value is None or value == "":
        return default
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise DataError(f"{where}: {value!r} is neither true nor false")


def _read(path: Path) -> Iterable[Mapping[str, Any]]:
    if not path.is_file():
        raise DataError(f"catalogue {path}: there is no such file")
    try:
        return _rows_of(path)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"catalogue {path}: cannot be read: {error}") from error


def _rows_of(path: Path) -> Iterable[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise DataError(
                f"catalogue {path}: reading Parquet needs pyarrow (pip install 'consentier[train]'); "
                "a CSV file needs nothing more"
            ) from None
        names = pq.read_schema(path).names
        columns = [name for name in ("item_id", "available", "sensitive") if name in names]
        rows: list[Mapping[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
        return rows
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
