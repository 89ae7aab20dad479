"""New stores of MLflow in SQLite are copies of the first one that a test process made.

A store is made by all of MLflow's migrations, one after the other: some seconds, whatever it will hold. All
that are made by one version of MLflow are the same file.
"""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

__all__ = ["migrate_once"]


def migrate_once() -> None:
    """Make MLflow bring the tables of a new store to their present form once in this process."""
    from mlflow.store.db import utils

    if not hasattr(utils._upgrade_db, "__wrapped__"):
        utils._upgrade_db = _copying(utils._upgrade_db)


def _copying(upgrade: Callable[[Any], None]) -> Callable[[Any], None]:
    first = tempfile.TemporaryDirectory(prefix="consentier-tests-")
    template = Path(first.name) / "mlflow.db"

    @functools.wraps(upgrade)
    def upgraded(engine: Any) -> None:
        place = engine.url.database
        if engine.dialect.name != "sqlite" or place in (None, "", ":memory:") or _was_migrated(place):
            upgrade(engine)  # some versions of MLflow ask for it again, of a store that holds runs
        elif template.exists():
            engine.dispose()
            _copied(template, place)
        else:
            upgrade(engine)
            _copied(place, template)

    upgraded.folder = first  # type: ignore[attr-defined]  # removed with the process
    return upgraded


def _was_migrated(place: str) -> bool:
    with closing(sqlite3.connect(place)) as store:
        asked = "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"
        return bool(store.execute(asked).fetchone()[0])


def _copied(source: str | Path, target: str | Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)
