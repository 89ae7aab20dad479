"""New stores of MLflow are copies of the first one; what one holds stays, however often it is upgraded."""

from __future__ import annotations

from pathlib import Path

import mlflow
import sqlalchemy as sa
from mlflow.store.db import utils
from mlflow_stores import migrate_once


def test_a_store_that_holds_runs_is_not_overwritten(tmp_path: Path) -> None:
    migrate_once()
    for name in ("first", "second"):
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path / name}.db")
        experiment = client.create_experiment(name)
        run = client.create_run(experiment)
        engine = sa.create_engine(f"sqlite:///{tmp_path / name}.db")
        utils._upgrade_db(engine)
        engine.dispose()
        assert client.get_run(run.info.run_id).info.experiment_id == experiment
