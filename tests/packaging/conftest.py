"""Distributions built from the tree, for the tests that look into them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(out: Path, *options: str) -> Path:
    """Run the project's own build; return the wheel."""
    script = ROOT / "scripts" / "build_distributions.py"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run([sys.executable, str(script), str(out), *options], env=environment, check=True)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it is published: made from the sdist, which stands beside it."""
    return build(tmp_path_factory.mktemp("published"))


@pytest.fixture
def direct_wheel(tmp_path: Path) -> Path:
    """The wheel made straight from the tree, as `pip install .` does."""
    return build(tmp_path / "direct", "--without-sdist")
