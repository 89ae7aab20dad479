"""Temporary files stand in memory where it has room, and elsewhere where it has not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from memory_files import keep_in_memory


@pytest.fixture(autouse=True)
def _asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())


def test_a_large_place_is_taken_by_this_process_and_those_that_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment: dict[str, str] = {}
    keep_in_memory(environment, tmp_path, room=1)
    assert environment == {"TMPDIR": str(tmp_path)}
    monkeypatch.setenv("TMPDIR", environment["TMPDIR"])
    assert tempfile.gettempdir() == str(tmp_path)


@pytest.mark.parametrize(
    ("named", "missing", "room"),
    [
        pytest.param({"TMPDIR": "/elsewhere"}, False, 1, id="another place is asked for"),
        pytest.param({}, True, 1, id="there is none"),
        pytest.param({}, False, 2**62, id="it is too small"),
    ],
)
def test_otherwise_files_stay_where_they_would_be(
    tmp_path: Path, named: dict[str, str], missing: bool, room: int
) -> None:
    before, environment = tempfile.gettempdir(), dict(named)
    keep_in_memory(environment, tmp_path / "missing" if missing else tmp_path, room)
    assert environment == named
    assert tempfile.gettempdir() == before
