"""``consentier config``, as a person at a terminal meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consentier.cli.app import app


def run(*arguments: object, **environ: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments], env=environ)
    return result.exit_code, result.output


def test_a_new_file_is_fine_and_comes_with_a_schema(tmp_path: Path) -> None:
    path = tmp_path / "consentier.toml"
    assert run("config", "init", path)[0] == 0
    assert (
        json.loads((tmp_path / "consentier.schema.json").read_text())["title"] == "Consentier configuration"
    )
    code, output = run("config", "check", path)
    assert code == 0
    assert "fine" in output
    code, output = run("config", "init", path)
    assert code == 2
    assert "--force" in output
    assert run("config", "init", path, "--force")[0] == 0


def test_a_directory_that_is_missing_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "shop" / "consentier.toml"
    assert run("config", "init", path)[0] == 0
    assert run("config", "check", path)[0] == 0


def test_what_holds_is_shown_with_what_differs(tmp_path: Path) -> None:
    (tmp_path / "consentier.toml").write_text("[crm]\nneighbours = 7\n")
    code, output = run("config", "show", tmp_path, CONSENTIER__ONLINE__ALGORITHM="bm25")
    assert code == 0
    assert "neighbours = 7  # default: 200" in output
    assert 'algorithm = "bm25"  # default: "local_ridge"' in output
    code, output = run("config", "show", tmp_path, "--json")
    assert json.loads(output)["config"]["crm"]["neighbours"] == 7


@pytest.mark.parametrize("content", ["[crm]\nneighbors = 7\n", "[crm\n", "crm = 1\n"])
def test_a_wrong_file_is_told_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(content)
    code, output = run("config", "check", path)
    assert code == 2
    assert "own.toml" in output


def test_the_environment_counts_in_a_check(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("")
    code, output = run("config", "check", path, CONSENTIER__CRM__NEIGHBORS="3")
    assert code == 2
    assert "CONSENTIER__CRM__NEIGHBORS" in output.replace("\n", "")


def test_a_schema_is_printed() -> None:
    code, output = run("config", "schema")
    assert code == 0
    assert "session" in json.loads(output)["properties"]


def test_an_address_is_shown_without_its_password(tmp_path: Path) -> None:
    uri = "postgresql://mlflow:hunter2@db:5432/runs"
    (tmp_path / "consentier.toml").write_text(f'[tracking]\nuri = "{uri}"\n')
    code, output = run("config", "show", tmp_path)
    assert code == 0
    assert 'uri = "postgresql://db:5432/runs"' in output
    assert "without user, password" in output
    code, as_json = run("config", "show", tmp_path, "--json")
    assert json.loads(as_json)["config"]["tracking"]["uri"] == "postgresql://db:5432/runs"
    code, overridden = run("config", "show", CONSENTIER__TRACKING__URI=uri)
    assert "postgresql://db:5432/runs" in overridden
    assert "hunter2" not in output + as_json + overridden
