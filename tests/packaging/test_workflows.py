"""The workflows of continuous integration may read and nothing else, and run what there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded = yaml.safe_load(request.param.read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_there_are_a_gate_and_a_nightly_run() -> None:
    assert [path.stem for path in WORKFLOWS] == ["gate", "nightly"]


def test_they_may_read_the_code_and_nothing_else(workflow: dict[str, Any]) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    triggers = workflow[True]  # YAML takes `on` for a truth value
    assert "pull_request_target" not in triggers
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 120
    for step in steps(workflow):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_actions_are_pinned_to_commits_and_secrets_are_not_asked_for(workflow: dict[str, Any]) -> None:
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
    assert "secrets." not in str(workflow)


def test_each_action_is_named_by_its_version_and_has_one_in_all_workflows() -> None:
    used = [
        line.partition("uses:")[2].strip()
        for path in WORKFLOWS
        for line in path.read_text("utf-8").splitlines()
        if "uses:" in line
    ]
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", name) for name in used)
    assert len(set(used)) == len({name.partition("@")[0] for name in used})


def test_nothing_that_an_outsider_writes_is_put_into_a_command(workflow: dict[str, Any]) -> None:
    for step in steps(workflow):
        inserted = re.findall(r"\$\{\{\s*([^}]*?)\s*\}\}", step.get("run", ""))
        assert all(name.startswith("matrix.") for name in inserted)


def test_every_target_that_they_make_is_in_the_makefile(workflow: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    text = " ".join(step.get("run", "") for step in steps(workflow))
    asked = set(re.findall(r"\bmake ([a-z-]+)", text))
    for job in workflow["jobs"].values():
        asked |= {each["target"] for each in job.get("strategy", {}).get("matrix", {}).get("include", [])}
    assert asked
    assert asked <= targets


_PROFILES = """
import json, runpy, sys
from hypothesis import settings
runpy.run_path(sys.argv[1])
print(json.dumps({name: settings.get_profile(name).derandomize for name in ("gate", "develop", "explore")}))
"""


@pytest.mark.parametrize("variable", [{}, {"CI": "true"}], ids=["here", "on GitHub"])
def test_the_gate_tries_the_same_examples_and_the_nightly_run_new_ones(variable: dict[str, str]) -> None:
    """Hypothesis makes all profiles repeatable that do not say otherwise, where it finds itself on GitHub."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "GITHUB_ACTIONS")}
    environment["PYTHONPATH"] = str(ROOT / "tests" / "support")
    done = subprocess.run(
        [sys.executable, "-c", _PROFILES, str(ROOT / "tests" / "conftest.py")],
        env=environment | variable, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"gate": True, "develop": False, "explore": False}
