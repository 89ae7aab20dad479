"""What `pip install consentier` gives, without extras: answers from a bundle, with NumPy alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

WRITE_BUNDLES = """
import datetime as dt, sys
from pathlib import Path
import numpy as np
from consentier.models.bundle import write_bundle
from consentier.models.item_index import ItemIndex
from consentier.serving.scoring_settings import ScoringSettings

out = Path(sys.argv[1])
out.mkdir()
index = ItemIndex.from_ids(["boots", "hat", "laces", "polish"])
common = dict(parameters={}, item_count=4, cutoff=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
# Boots go with laces, and less so with polish.
weights = dict(
    indptr=np.array([0, 2, 2, 3, 3], dtype=np.int64),
    indices=np.array([2, 3, 0], dtype=np.int32),
    data=np.array([0.75, 0.25, 0.5], dtype=np.float32),
)
for tier, sources, permission in [
    ("session", ["session"], []),
    ("crm", ["crm"], ["crm"]),
]:
    settings = ScoringSettings(source_weights={sources[0]: 1.0}, hide=tuple(sources)).to_json()
    write_bundle(
        out / tier, tier=tier, sources=sources, permission=permission, algorithm="test",
        scoring={**settings, "attributes": []}, arrays={**index.arrays(), **weights}, **common,
    )
counts = dict(online_counts=np.array([1, 9, 2, 3]), crm_counts=np.array([4, 3, 2, 1]))
write_bundle(
    out / "popular", tier="popular", sources=[], permission=[], algorithm="popularity", scoring={},
    arrays={**index.arrays(), **counts}, **common,
)
"""

ASK = """
import json, sys
import consentier as c

recommender = c.Recommender.load(sys.argv[1])
asked = {
    "none": c.Request(session=["boots"], crm_history=["laces"], permission=c.Permission.NONE, n=3),
    "crm": c.Request(crm_history=["laces"], permission=c.Permission.CRM, channel="email", n=3),
}
answers = {name: recommender.recommend(request) for name, request in asked.items()}
print(json.dumps({name: [str(answer.tier), *answer.items] for name, answer in answers.items()}))
"""


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A fresh environment with the wheel and what it needs itself; NumPy as in this environment."""
    environment = tmp_path_factory.mktemp("core") / "venv"
    venv.create(environment, with_pip=False)
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--python",
        str(environment),
    ]
    subprocess.run([*command, "install", str(wheel), f"numpy=={version('numpy')}"], check=True)
    return environment / "bin"


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run in the environment as a shop would, without settings of this one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(python), *arguments], env=environment, cwd=python.parent, capture_output=True, text=True
    )


def test_only_numpy_is_installed_beside_it(core: Path) -> None:
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(core.parent)}))
    found = {path.name.split("-")[0] for path in packages.glob("*.dist-info")}
    assert found == {"consentier", "numpy"}


def test_a_bundle_answers(core: Path, tmp_path: Path) -> None:
    bundles = str(tmp_path / "bundles")
    written = run(core / "python", "-c", WRITE_BUNDLES, bundles)
    assert written.returncode == 0, written.stderr
    asked = run(core / "python", "-c", ASK, bundles)
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout) == {
        # Boots lead to laces and polish; the list is filled up with what most visitors saw.
        "none": ["session", "laces", "polish", "hat"],
        # Laces lead to boots; the list is filled up with what most customers bought.
        "crm": ["crm", "boots", "hat", "polish"],
    }


def test_the_command_says_what_is_missing(core: Path) -> None:
    done = run(core / "consentier", "--version")
    assert done.returncode == 3
    assert "pip install 'consentier[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
