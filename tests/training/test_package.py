"""The packaged model: what is in it, how long it answers, and how MLflow loads, serves and registers it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import importlib.resources
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from engines import ITEMS, bundles, engine
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.consent import Permission, Tier
from consentier.errors import BundleMissing, DataError
from consentier.models.bundle import open_bundle, write_bundle
from consentier.serving import Recommender, Request
from consentier.serving.loading import TIERS
from consentier.serving.pyfunc import load
from consentier.serving.revocation import PAST_DEADLINE, Revocations, revoke
from consentier.training import package
from consentier.training.config import TrackingConfig
from consentier.training.package import PackagedModel, log_model, write_model

DAY = dt.timedelta(days=1)
ROW: dict[str, Any] = {
    "permission": "both", "channel": "shop", "linked": True, "session": json.dumps(ITEMS[:1]),
    "online_history": json.dumps(ITEMS[1:3]), "crm_history": json.dumps(ITEMS[3:5]),
    "attributes": '{"region": "north", "age": 40}', "n": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackagedModel:
    """The small bundles as a model."""
    return write_model(bundles(), tmp_path_factory.mktemp("package") / "model")


def predict(path: Path | str, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    import pandas as pd

    answers: list[dict[str, Any]] = (
        mlflow.pyfunc.load_model(str(path)).predict(pd.DataFrame(list(rows))).to_dict("records")
    )
    return answers


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- What is in it -----------------------------------------------------------------------------------------


def test_it_holds_no_pickle_no_path_and_no_facts_of_the_run(model: PackagedModel) -> None:
    files = files_of(model.path)
    assert {Path(name).suffix for name in files} <= {"", ".json", ".npy", ".py", ".txt", ".yaml"}
    assert not [name for name in files if name.endswith("run.json")]
    texts = [content for name, content in files.items() if not name.endswith(".npy")]
    for place in (str(bundles()), str(model.path.parent), "/tmp", sys.prefix, str(Path.home())):
        assert not [text for text in texts if place.encode() in text]
    assert all(not content.startswith(b"\x80") for content in files.values())


def test_its_signature_says_which_columns_must_be_there(model: PackagedModel) -> None:
    signature = mlflow.models.get_model_info(str(model.path)).signature
    assert [column.name for column in signature.inputs if column.required] == ["permission", "channel"]
    assert [column.name for column in signature.outputs] == [
        "items", "scores", "tier", "reason", "bundle_digest", "basis",
    ]  # fmt: skip


def test_it_says_which_bundles_it_holds(model: PackagedModel) -> None:
    assert model.digests == {str(tier): open_bundle(bundles() / tier).digest for tier in TIERS}
    assert model.problems == {}


def test_it_loads_and_answers_where_pickles_are_refused(model: PackagedModel) -> None:
    code = (
        "import mlflow, pandas as pd, sys; model = mlflow.pyfunc.load_model(sys.argv[1]);"
        "print(model.predict(pd.DataFrame([{'permission': 'none', 'channel': 'email'}])).tier[0])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:mlflow.pyfunc", "-c", code, str(model.path)],
        env={"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "popular", done.stderr


def test_it_answers_as_the_embedded_recommender_does(model: PackagedModel) -> None:
    request = Request(
        permission=Permission.ONLINE | Permission.CRM, linked=True, session=ITEMS[:1],
        online_history=ITEMS[1:3], crm_history=ITEMS[3:5], attributes={"region": "north", "age": 40}, n=4,
    )  # fmt: skip
    expected = engine().recommend(request)
    (answer,) = predict(model.path, ROW)
    assert (answer["items"], answer["scores"]) == (list(expected.items), list(expected.scores))
    assert (answer["tier"], answer["reason"]) == (str(expected.tier), expected.basis.reason)


def test_catalogue_rules_and_policy_go_with_it(tmp_path: Path) -> None:
    catalogue = tmp_path / "items.csv"
    catalogue.write_text("item_id,category\n" + "".join(f"{item},{item[-1]}\n" for item in ITEMS[:6]))
    rules = tmp_path / "rules.toml"
    rules.write_text(f'deny = ["{ITEMS[2]}"]\n')
    policy = tmp_path / "policy.toml"
    policy.write_text(default_policy().replace("consentier-default-1", "shop-policy-7"))
    packaged = write_model(bundles(), tmp_path / "model", catalogue=catalogue, rules=rules, policy=policy)
    for path in (catalogue, rules, policy):
        path.unlink()
    (answer,) = predict(packaged.path, {**ROW, "permission": "none", "n": 9})
    assert set(answer["items"]) == set(ITEMS[:6]) - {ITEMS[2]}
    assert json.loads(answer["basis"])["policy_version"] == "shop-policy-7"


def default_policy() -> str:
    return importlib.resources.files("consentier.consent").joinpath("default_policy.toml").read_text("utf-8")


# ---- How long it answers -----------------------------------------------------------------------------------


def test_a_copy_stops_when_its_time_is_over(tmp_path: Path) -> None:
    over = write_model(bundles(), tmp_path / "model", answers_for=dt.timedelta(microseconds=1))
    with pytest.raises(BundleMissing, match=PAST_DEADLINE):
        predict(over.path, ROW)


def test_a_loaded_copy_stops_at_its_deadline(tmp_path: Path) -> None:
    import pandas as pd

    packaged = write_model(bundles(), tmp_path / "model")
    loaded = mlflow.pyfunc.load_model(str(packaged.path))
    table = pd.DataFrame([ROW])
    assert loaded.predict(table).tier[0] == "fused"
    yesterday = dt.datetime.now(dt.UTC) - DAY
    copies = packaged.path / "artifacts" / "bundles"
    revoke(copies, [packaged.digests["fused"]], yesterday, "withdrawal")
    assert loaded.predict(table).tier[0] == "online"
    revoke(copies, packaged.digests.values(), yesterday, "withdrawal")
    answer = loaded.predict(table).to_dict("records")[0]
    assert (answer["items"], answer["tier"]) == ([], "none")


def test_an_earlier_deadline_goes_with_the_copy(tmp_path: Path) -> None:
    shutil.copytree(bundles(), tmp_path / "bundles")
    soon = dt.datetime.now(dt.UTC) + DAY
    revoke(tmp_path / "bundles", [open_bundle(bundles() / "crm").digest], soon, "withdrawal")
    packaged = write_model(tmp_path / "bundles", tmp_path / "model")
    listed = json.loads((packaged.path / "artifacts" / "bundles" / "revocations.json").read_text("utf-8"))
    deadlines = {entry["bundle_digest"]: entry["deadline"] for entry in listed["revocations"]}
    assert set(deadlines) == set(packaged.digests.values())
    assert deadlines.pop(packaged.digests["crm"]) == soon.isoformat()
    assert set(deadlines.values()) == {packaged.answers_until.isoformat()}


def test_a_bundle_that_came_while_it_was_packaged_has_a_deadline_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundles(), tmp_path / "bundles")

    def retrained(folder: Path, **files: Path) -> Recommender:
        loaded = load(folder, **files)
        standing = open_bundle(folder / "crm")
        manifest = standing.manifest
        write_bundle(
            standing.path, tier="crm", sources=manifest.sources, permission=manifest.permission,
            algorithm=manifest.algorithm, parameters={**manifest.parameters, "later": True},
            scoring=manifest.scoring, item_count=manifest.item_count, overwrite=True,
            cutoff=dt.datetime.fromisoformat(manifest.cutoff) + DAY,
            arrays={name: array.copy() for name, array in standing.arrays.items()},
        )  # fmt: skip
        return loaded

    monkeypatch.setattr(package, "load", retrained)
    packaged = write_model(tmp_path / "bundles", tmp_path / "model")
    copies = packaged.path / "artifacts" / "bundles"
    assert (
        packaged.digests["crm"] == open_bundle(copies / "crm").digest != open_bundle(bundles() / "crm").digest
    )
    for tier in packaged.digests:
        assert Revocations.open(copies).deadline_of(open_bundle(copies / tier).digest) is not None


def test_a_revoked_bundle_stays_out(tmp_path: Path) -> None:
    shutil.copytree(bundles(), tmp_path / "bundles")
    yesterday = dt.datetime.now(dt.UTC) - DAY
    revoke(tmp_path / "bundles", [open_bundle(bundles() / "fused").digest], yesterday, "withdrawal")
    packaged = write_model(tmp_path / "bundles", tmp_path / "model")
    assert "fused" not in packaged.digests
    assert packaged.problems["fused"] == PAST_DEADLINE
    assert not (packaged.path / "artifacts" / "bundles" / "fused").exists()
    (answer,) = predict(packaged.path, ROW)
    assert answer["tier"] == "online"


def test_a_time_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="positive"):
        write_model(bundles(), tmp_path / "model", answers_for=dt.timedelta(0))


# ---- Writing -----------------------------------------------------------------------------------------------


def test_what_is_there_is_replaced_only_on_request_and_only_by_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    write_model(bundles(), out)
    before = files_of(out)
    with pytest.raises(DataError, match="exists already"):
        write_model(bundles(), out)
    with monkeypatch.context() as broken:
        broken.setattr("consentier.training.package._without_paths", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_model(bundles(), out, force=True)
    assert files_of(out) == before
    write_model(bundles(), out, force=True)
    assert files_of(out).keys() == before.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_without_bundles_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing):
        write_model(tmp_path / "nothing", tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ---- MLflow's scoring server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(model: PackagedModel) -> Iterator[Any]:
    """What `mlflow models serve` runs, in this process."""
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    with TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(model.path)))) as client:
        yield client


def test_the_scoring_server_answers_each_row_under_its_own_permission(server: Any) -> None:
    rows = [{**ROW, "permission": said} for said in ("both", "crm", "online", "none", None, "all")]
    asked = server.post("/invocations", json={"dataframe_records": [*rows, {"permission": "both"}]})
    assert asked.status_code == 200
    *answers, last = asked.json()["predictions"]
    assert [answer["tier"] for answer in answers] == [
        "fused", "session", "online", "session", "session", "session",
    ]  # fmt: skip
    assert [len(answer["items"]) for answer in answers] == [4] * 6
    assert last["reason"].startswith("the row was not answered: channel is none of")


def test_the_scoring_server_takes_a_table_of_nothing_but_gaps(server: Any) -> None:
    split = {
        "columns": ["permission", "channel", "n"],
        "data": [[None, "email", None], [None, "email", None]],
    }
    asked = server.post("/invocations", json={"dataframe_split": split})
    assert [answer["tier"] for answer in asked.json()["predictions"]] == ["popular", "popular"]


@pytest.mark.parametrize("missing", ["permission", "channel"])
def test_a_table_without_its_required_columns_is_refused(server: Any, missing: str) -> None:
    row = {name: value for name, value in ROW.items() if name != missing}
    asked = server.post("/invocations", json={"dataframe_records": [row]})
    assert asked.status_code == 400
    assert re.search(rf"missing inputs \['{missing}'\]", asked.json()["message"])


# ---- Tracking and registry ---------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """A fresh store, which is MLflow's own for the test."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(before)


def test_it_is_logged_and_registered(store: str, model: PackagedModel, tmp_path: Path) -> None:
    tracking = TrackingConfig(uri=store, experiment="routers")
    logged = log_model(model, tracking, tmp_path, name="router", register="shop-router")
    again = log_model(model, tracking, tmp_path, name="router", register="shop-router")
    assert (logged.version, again.version) == ("1", "2")
    for uri in (logged.uri, "models:/shop-router/2"):
        (answer,) = predict(uri, ROW)
        assert answer["tier"] == "fused"
    version = mlflow.MlflowClient().get_model_version("shop-router", "2")
    assert version.tags["bundle_digest.fused"] == model.digests["fused"]
    assert version.tags["answers_until"] == model.answers_until.isoformat()


def test_the_command_writes_logs_and_says_what_it_did(store: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    arguments = ["package", str(bundles()), "--out", str(out), "--days", "2", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--tracking-uri", store, "--register", "by-command"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["digests"]["session"] == open_bundle(bundles() / Tier.SESSION).digest
    assert told["logged"]["version"] == "1"
    left = dt.datetime.fromisoformat(told["answers_until"]) - dt.datetime.now(dt.UTC)
    assert DAY < left <= 2 * DAY
    (answer,) = predict(out, ROW)
    assert answer["tier"] == "fused"
    refused = CliRunner().invoke(app, [*arguments, "--register", "x"])
    assert refused.exit_code == 2
    assert "--tracking-uri" in refused.output


def test_what_is_told_of_a_model_is_plain(model: PackagedModel) -> None:
    assert json.dumps(dataclasses.asdict(model), default=str)
