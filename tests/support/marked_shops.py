"""A shop in which everybody's name can be found again, and a search for it in files and in what they pack."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from consentier.features.schemas import SCHEMAS
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import read_shop

__all__ = ["MARKER", "MOTTO", "content", "marked_shop", "naming"]

MARKER = "nemo7f3a"
"""It begins every id of a person, of a session and of a record."""

MOTTO = "motto5e11"
"""It begins an attribute that each customer has another of."""

_IDS = ("visitor_id", "customer_id", "session_id", "subject_id", "record_id", "order_id", "evidence")


_SHOP = SimulationConfig(customers=160, items=50, days=40, horizon_days=7, seed=5)


def marked_shop(folder: Path, config: SimulationConfig = _SHOP) -> Path:
    """A simulated shop in which everybody's name can be found again, ``folder / "shop"``.

    What stands there is no hexadecimal number, so no digest holds it by chance.
    """
    plain, marked = folder / "plain", folder / "shop"
    write_shop(simulate(config), plain)
    tables = read_shop(plain)
    marked.mkdir()
    shutil.copy(plain / "consentier.toml", marked)
    for name in SCHEMAS:
        table: pa.Table = getattr(tables, name)
        for place, column in enumerate(table.column_names):
            if column in _IDS and table[column].type == pa.string():
                values = [
                    None if value is None else f"{MARKER}-{value}" for value in table[column].to_pylist()
                ]
                table = table.set_column(place, column, pa.array(values, pa.string()))
        if name == "customers":
            words = [f"{MOTTO}-{number}" for number in range(table.num_rows)]
            table = table.append_column("motto", pa.array(words))
        pq.write_table(table, marked / f"{name}.parquet")
    return marked


def content(path: Path) -> Iterator[bytes]:
    """What stands in a file, and in what it packs."""
    raw = path.read_bytes()
    yield raw
    if raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from map(archive.read, archive.namelist())
    if raw.startswith(b"PAR1"):
        yield str(pq.read_table(path).to_pydict()).encode()


def naming(folder: Path, marker: str = MARKER) -> list[str]:
    """The files below a directory that hold a word, in their content or their own name."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if marker in path.name or (path.is_file() and any(marker.encode() in part for part in content(path)))
    ]
