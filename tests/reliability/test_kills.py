"""Killed before any step that changes a file: old or new, whole; and the next run clears up."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path

import pytest
from benchmarks.reliability.killing import run
from writers import WRITERS, Writer

from consentier import writing
from consentier.consent import Tier
from consentier.training.model_registry import ModelRegistry, Version

REPLACES_A_DIRECTORY = ("bundle", "statistics", "shop")
CASES = [(writer, True) for writer in WRITERS]
CASES += [(writer, False) for writer in WRITERS if writer.name in REPLACES_A_DIRECTORY]


@pytest.mark.parametrize(
    ("writer", "exchanges"),
    CASES,
    ids=[f"{writer.name}{'' if each else ', two renames'}" for writer, each in CASES],
)
def test_killed_before_any_step_the_old_or_the_new_state_is_there_and_the_next_run_clears_up(
    tmp_path: Path, writer: Writer, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanges = exchanges and _exchangeable(tmp_path / "exchangeable")
    if not exchanges:  # as on file systems where two directories cannot change places in one step
        monkeypatch.setattr(writing, "_exchanged", lambda *_: False)
    steps = _steps(tmp_path / "undisturbed", writer)
    assert steps >= 3
    seen = set()
    for step in range(steps):
        place = tmp_path / str(step)
        place.mkdir()
        writer.write(place, 0)
        outcome = run(lambda _, place=place: writer.write(place, 1), before_step=step)
        assert outcome.killed
        if exchanges or (place / (writer.names or [""])[0]).exists():
            seen.add(writer.read(place))
        writer.write(place, 1)
        assert writer.read(place) == 1
        if writer.names is not None:
            assert sorted(path.name for path in place.iterdir()) == writer.names
        assert not list(place.rglob(".*"))
    assert 0 in seen


def _exchangeable(place: Path) -> bool:
    """Whether this file system can do it."""
    one, other = place / "one", place / "other"
    one.mkdir(parents=True)
    other.mkdir()
    return writing._exchanged(one, other)


def _steps(place: Path, writer: Writer) -> int:
    # Once here before: what is imported on the way, the first time, tries to write byte code, a step that no
    # other run has.
    for each in (place.with_name("before"), place):
        each.mkdir()
        writer.write(each, 0)
    writer.write(place.with_name("before"), 1)
    outcome = run(lambda _: writer.write(place, 1))
    assert not outcome.error, outcome.error
    assert writer.read(place) == 1
    return outcome.steps


class _Killed:
    """A client of MLflow's that is killed while it copies."""

    def log_artifact(self, _run_id: str, _path: str, _folder: str | None) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class _Copying:
    """A client of MLflow's that keeps what it is given."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, str, str | None, object]] = []

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        told = json.loads(Path(path).read_text("utf-8"))
        self.kept.append((run_id, Path(path).name, folder, told))


def test_a_note_of_the_registry_leaves_nothing_once_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    version = Version(Tier.POPULAR, "2", "run-2", {})
    note = {"outcome": "promoted"}
    outcome = run(lambda _: ModelRegistry(_Killed(), "shop").note(version, note, "promotion/now.json"))
    assert outcome.killed
    assert list(tmp_path.iterdir())
    client = _Copying()
    ModelRegistry(client, "shop").note(version, note, "promotion/now.json")
    assert client.kept == [("run-2", "now.json", "promotion", note)]
    assert not list(tmp_path.iterdir())
