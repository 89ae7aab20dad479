"""Targets of the Makefile that would do nothing where something is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_FUZZER = """#!/bin/sh
case "$2" in
    --list) echo one; echo two; exit {listing} ;;
    *) echo "$2" >>fuzzed; exit {fuzzing} ;;
esac
"""


@pytest.mark.parametrize(
    ("listing", "fuzzing", "succeeds", "fuzzed"),
    [(0, 0, True, 4), (1, 0, False, 0), (0, 1, False, 1)],
    ids=["nothing is found", "the targets cannot be listed", "something is found"],
)
def test_fuzzing_fails_where_a_target_fails_and_where_there_is_none(
    listing: int, fuzzing: int, succeeds: bool, fuzzed: int, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    program = tmp_path / ".venv-fuzz" / "bin" / "python"
    program.parent.mkdir(parents=True)
    (tmp_path / ".build").mkdir()
    program.write_text(_FUZZER.format(listing=listing, fuzzing=fuzzing), encoding="utf-8")
    program.chmod(0o755)
    environment_is_there = ("--old-file", ".venv-fuzz/.wheel")
    done = subprocess.run(
        ["make", *environment_is_there, "fuzz"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == succeeds, done.stdout + done.stderr
    tried = tmp_path / "fuzzed"
    named = tried.read_text("utf-8").split() if tried.exists() else []
    assert named == ["one", "two", "one", "two"][:fuzzed]
