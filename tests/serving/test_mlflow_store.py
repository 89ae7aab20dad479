"""What fails in MLflow says which store failed, and how, without user and password."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
import sqlalchemy.exc
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.cli.output import USER_ERROR
from consentier.consent import Tier
from consentier.errors import TrackingError, TrackingMissing
from consentier.serving.mlflow_store import mlflow_client
from consentier.training.model_registry import ModelRegistry

SECRET = "s3cret"
SERVER = f"http://shop:{SECRET}@127.0.0.1:9"
SHOWN = "http://127.0.0.1:9"


@pytest.fixture
def no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.usefixtures("no_second_try")
def test_a_server_that_cannot_be_reached_is_named_without_its_password() -> None:
    with pytest.raises(TrackingError, match=f"MLflow store {SHOWN} cannot be used: ") as told:
        mlflow_client(SERVER).get_experiment_by_name("consentier")
    assert "API request to" in str(told.value), "what failed"
    assert "tracking.uri" in str(told.value), "what to do"
    assert SECRET not in str(told.value)
    assert told.value.__cause__ is None
    assert told.value.__suppress_context__


def test_an_address_of_no_store_is_told_when_it_is_opened() -> None:
    with pytest.raises(TrackingError, match="MLflow store nosuch://host/store cannot be used") as told:
        mlflow_client(f"nosuch://shop:{SECRET}@host/store")
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    "error",
    [
        MlflowException(f"no access to {SERVER}/api\nwith more lines"),
        sqlalchemy.exc.OperationalError("SELECT secret", {}, Exception(f"no access to {SERVER}/api")),
        requests.HTTPError(f"no access to {SERVER}/api"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_lies_below_is_told_in_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(mlflow.MlflowClient, "get_run", fail)
    with pytest.raises(TrackingError) as told:
        mlflow_client(SERVER).get_run("1")
    assert f"{SHOWN} cannot be used: no access to {SHOWN}/api. Check" in str(told.value)


def test_what_a_store_does_not_have_is_another_thing(tmp_path: Path) -> None:
    client = mlflow_client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(TrackingMissing, match=r"mlflow\.db: "):
        client.get_registered_model("nothing")
    registry = ModelRegistry(client, "consentier")
    assert registry.versions(Tier.CRM) == []
    assert registry.aliased(Tier.CRM, "champion") is None


def test_what_is_no_failure_of_the_store_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("run")

    monkeypatch.setattr(mlflow.MlflowClient, "get_run", fail)
    with pytest.raises(KeyError):
        mlflow_client(SERVER).get_run("1")


@pytest.mark.usefixtures("no_second_try")
def test_the_command_line_says_it_in_words(tmp_path: Path) -> None:
    schedule = tmp_path / "schedule.toml"
    schedule.write_text(f'[[keep]]\nwhat = "mlflow"\nuri = "{SERVER}"\ndays = 3\n')
    run = CliRunner().invoke(app, ["retention", str(schedule)])
    assert run.exit_code == USER_ERROR, run.stderr
    assert f"MLflow store {SHOWN} cannot be used" in run.stderr
    assert "unexpected" not in run.stderr
    assert SECRET not in run.stderr
