"""The command `tune`: what it writes and prints, what `train` makes of it, and what it leaves alone."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.models.bundle import open_bundle
from consentier.training.config import load_config
from consentier.training.tune import Objective


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "140"})
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "shop"
    code, _, err = run("simulate", folder, "--customers", 300, "--items", 50, "--days", 60, "--seed", 3)
    assert code == 0, err
    settings = folder / "consentier.toml"
    settings.write_text(
        settings.read_text("utf-8")
        + "\n[tracking]\nenabled = false\n\n[tuning]\nmax_persons = 60\n\n[crm]\nneighbours = 20\n"
    )
    return folder


def test_train_takes_what_tune_writes_and_other_settings_are_kept(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "tuned.toml"
    code, printed, err = run(
        "tune", shop, "--tier", "crm", "--tier", "session", "--trials", 3, "--out", out,
        "--horizon", 20, "--seed", 5,
    )  # fmt: skip
    assert code == 0, err
    before, after = load_config(data=shop), load_config(out)
    assert after.model_copy(update={"crm": before.crm, "session": before.session}) == before
    assert "chosen over before" in printed
    assert "consentier evaluate" in printed
    assert f"written to {out}" in printed.replace("\n", "")
    text = out.read_text("utf-8")
    assert "seed 5" in text
    gains = [line.split()[1] for line in text.splitlines() if " over the configuration before; " in line]
    assert gains == ["session:", "crm:"]
    work = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    best = [line["note"] for line in work if line["event"] == "running"]
    assert best[0].startswith("best ndcg@20 0.")
    assert list(out.parent.iterdir()) == [out]
    code, _, err = run("train", shop, "--config", out, "--out", tmp_path / "bundles", "--tier", "crm")
    assert code == 0, err
    parameters = open_bundle(tmp_path / "bundles" / "crm").manifest.parameters
    assert parameters == {**after.crm.model_dump(mode="json"), "min_persons": 1}


def test_json_holds_every_trial_and_options_of_the_search_stay_out_of_the_file(
    shop: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned.toml"
    cutoff = load_config(data=shop).training.cutoff
    assert cutoff is not None
    earlier = cutoff - dt.timedelta(days=3)
    code, printed, err = run(
        "tune", shop, "--tier", "crm", "--trials", 2, "--cutoff", earlier.isoformat(), "--out", out, "--json"
    )
    assert code == 0, err
    result: dict[str, Any] = json.loads(printed)
    assert result["end"] == earlier.isoformat()
    assert [trial["number"] for trial in result["tiers"]["crm"]["trials"]] == [0, 1]
    assert set(result["tiers"]["crm"]["figures"]) == {"popular", "current", "chosen", "difference"}
    assert load_config(out).training.cutoff == cutoff
    assert load_config(out).tuning.trials == 40


def test_the_algorithms_that_are_tried_can_be_named(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.toml"
    code, printed, err = run(
        "tune", shop, "--tier", "crm", "--trials", 12, "--algorithms", "als, bpr", "--out", out, "--json"
    )
    assert code == 0, err
    tried = [trial["parameters"].get("algorithm") for trial in json.loads(printed)["tiers"]["crm"]["trials"]]
    assert tried[0] is None
    assert {"als", "bpr"} <= set(tried) <= {None, "als", "bpr"}
    assert load_config(out).tuning.algorithms == load_config(data=shop).tuning.algorithms
    code, _, err = run("tune", shop, "--algorithms", "als,cosin", "--out", tmp_path / "other.toml")
    assert code == 2
    assert "did you mean 'cosine'?" in err


def test_a_file_in_the_way_is_replaced_only_by_force(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.toml"
    out.write_text("# mine\n")
    code, _, err = run("tune", shop, "--tier", "crm", "--trials", 1, "--out", out)
    assert code == 2
    assert "--force" in err
    assert out.read_text() == "# mine\n"
    code, printed, err = run("tune", shop, "--tier", "crm", "--trials", 1, "--out", out, "--force")
    assert code == 0, err
    assert "nothing was better than the configuration before" in printed
    assert out.read_text() != "# mine\n"


def test_an_interrupted_search_writes_nothing(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Objective.parts, []

    def interrupted(self: Objective, config: Any) -> Iterator[Any]:
        calls.append(config)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, config)

    monkeypatch.setattr(Objective, "parts", interrupted)
    code, _, err = run("tune", shop, "--tier", "crm", "--out", tmp_path / "tuned.toml")
    assert code == 130
    assert "interrupted" in err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_tuned_is_an_error(shop: Path, tmp_path: Path) -> None:
    code, _, err = run("tune", shop, "--tier", "popular", "--out", tmp_path / "tuned.toml")
    assert code == 2
    assert "popular" in err
    long = tmp_path / "long.toml"
    long.write_text("[training]\ncutoff = 2001-01-01T00:00:00Z\n")
    code, _, err = run("tune", shop, "--config", long, "--out", tmp_path / "tuned.toml")
    assert code == 2
    assert "persons to judge by" in err
    assert "no permitted row of it is from then; let the period end (--cutoff) where the data do" in err
    code, _, err = run("tune", shop, "--tier", "crm", "--horizon", 400, "--out", tmp_path / "tuned.toml")
    assert code == 2
    assert "no permitted rows to fit on from before the validation period" in err
    assert not (tmp_path / "tuned.toml").exists()
    code, _, err = run("tune", shop, "--out", tmp_path, "--force")
    assert (code, "is a directory; name a file" in err, "started" in err) == (2, True, False)


def test_algorithms_that_the_session_tier_cannot_have_are_told(shop: Path, tmp_path: Path) -> None:
    tried = ("--trials", 1, "--algorithms", "als")
    code, _, err = run("tune", shop, "--tier", "session", *tried, "--out", tmp_path / "session.toml")
    assert code == 0, err
    assert "als, bpr, spectral are not tried in the session tier" in err
    code, _, err = run("tune", shop, "--tier", "crm", *tried, "--out", tmp_path / "crm.toml")
    assert code == 0, err
    assert "not tried" not in err


def test_a_local_store_is_never_among_the_tables(shop: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from consentier.cli.tune import _store_folder

    monkeypatch.chdir(tmp_path)
    assert _store_folder(shop / "tuned.toml", str(shop)) == tmp_path
    assert _store_folder(Path("tuned.toml"), str(shop)) == tmp_path
    assert _store_folder(tmp_path / "a" / "tuned.toml", "sqlite:///shop.db") == tmp_path / "a"
