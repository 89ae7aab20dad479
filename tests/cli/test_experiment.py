"""The command that reports on an experiment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from engines import ITEMS, engine
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.consent import Permission
from consentier.serving import Request
from consentier.serving.experiment import Experiment, ExperimentRecommender
from consentier.serving.outcomes import OutcomeLog

EXPERIMENT = Experiment("ranking", "a salt for tests only", {"current": 0.5, "new": 0.5})


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Twenty answers with the online permission and twenty without any; every other one was clicked."""
    asked = ExperimentRecommender(EXPERIMENT, {"current": engine(), "new": engine()})
    with OutcomeLog(tmp_path / "outcomes", EXPERIMENT) as outcomes:
        for number in range(40):
            permission = Permission.ONLINE if number < 20 else Permission.NONE
            answer = asked.recommend(
                Request(
                    session=ITEMS[:2],
                    online_history=ITEMS[2:4],
                    visitor_id=f"v-{number}",
                    permission=permission,
                )
            )
            outcomes.impression(answer.answer_id)
            if number % 2:
                outcomes.click(answer.answer_id)
    return tmp_path / "outcomes"


def test_the_report_is_printed_and_written(log: Path, tmp_path: Path) -> None:
    done = run("ab", "report", log, "--out", tmp_path / "report.json")
    assert done.exit_code == 0, done.output
    assert "ranking: " in done.stdout
    assert "all tiers: answers with an outcome" in done.stdout
    assert "session: outcomes per impression" in done.stdout
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    printed = run("ab", "report", log, "--json")
    assert json.loads(printed.stdout) == written
    shown = {
        (stratum["recorded"], stratum["tier"]): sum(arm["impressions"] for arm in stratum["arms"])
        for stratum in written["strata"]
    }
    assert shown == {
        ("answers", "all"): 20, ("answers", "online"): 20, ("counts", "all"): 20, ("counts", "session"): 20,
    }  # fmt: skip
    assert sum(arm["clicks"] for arm in written["strata"][0]["arms"]) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--control", "nwe"], "did you mean 'new'"),
        (["--experiment", "other"], "no outcomes of experiment 'other'"),
        (["--confidence", "95"], "confidence must be above 0"),
    ],
)
def test_what_is_wrong_is_said(log: Path, options: list[str], message: str) -> None:
    done = run("ab", "report", log, *options)
    assert done.exit_code == 2
    assert message in done.stderr


def test_without_a_log_there_is_no_report(tmp_path: Path) -> None:
    done = run("ab", "report", tmp_path / "none")
    assert done.exit_code == 2
    assert "there are none; name the directory of the outcome log" in done.stderr
