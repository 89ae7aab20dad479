"""The folders at the root are parts of consentier, and importable under no other name."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["consent", "features", "models", "serving", "training"])
def test_a_folder_of_the_root_is_no_module(folder: str) -> None:
    assert (ROOT / folder / "__init__.py").is_file()
    assert importlib.util.find_spec(folder) is None
    assert importlib.util.find_spec(f"consentier.{folder}") is not None


def test_the_guard_holds_where_the_root_is_on_the_path() -> None:
    """`python -m pytest` in the root puts the root on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    found = subprocess.run(
        [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('models') is not None)"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == "True", "there is something to guard against"
    guarded = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "is_no_module", __file__],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert guarded.returncode == 0, guarded.stdout
    assert "5 passed" in guarded.stdout
