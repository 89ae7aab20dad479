"""Where tables go that do not fit into memory: out of sight, and away when all is done."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest
from ibis.backends.duckdb import Backend

import consentier.features
import consentier.serving
from consentier.features.embedded_engine import embedded_engine


def test_what_does_not_fit_into_memory_is_for_its_owner_only_and_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, working = tmp_path / "temporary", tmp_path / "working"
    temporary.mkdir()
    working.mkdir()
    monkeypatch.setattr(Backend, "do_connect", Backend.do_connect.__wrapped__)  # as outside these tests
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(working)
    with embedded_engine() as engine:
        engine.raw_sql("SET memory_limit = '24MB'")
        engine.raw_sql("SET threads = 1")
        engine.raw_sql(
            "CREATE TEMP TABLE rows AS SELECT md5(number::VARCHAR) AS who FROM range(1000000) t(number)"
        )
        (folder,) = temporary.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert sum(path.stat().st_size for path in folder.rglob("*")) > 1_000_000
    assert list(temporary.iterdir()) == []
    assert list(working.iterdir()) == []


@pytest.mark.parametrize("package", [consentier.features, consentier.serving])
def test_no_other_code_opens_one(package: object) -> None:
    (folder,) = package.__path__  # type: ignore[attr-defined]
    opening = [
        path.name for path in Path(folder).glob("*.py") if "duckdb.connect(" in path.read_text("utf-8")
    ]
    assert opening == (["embedded_engine.py"] if package is consentier.features else [])
