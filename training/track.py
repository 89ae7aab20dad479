"""Runs in MLflow: one parent per training run, one child per tier, the bundle as its artifact."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consentier.progress import progress
from consentier.training.config import Config

__all__ = ["track_run"]


def track_run(
    config: Config,
    out: Path,
    digests: Mapping[str, str],
    runs: Mapping[str, Mapping[str, Any]],
    *,
    show_progress: bool,
) -> dict[str, str]:
    """Record a training run.

    Parameters
    ----------
    config
        The resolved configuration; its ``tracking`` says where to.
    out
        Directory of the bundles.
    digests
        Bundle digest by tier.
    runs
        Run facts by tier, as they stand beside each bundle.
    show_progress
        Say on standard error what is being done.

    Returns
    -------
    dict
        MLflow run id by tier, and of the parent under ``run``; empty where tracking is switched off.

    Notes
    -----
    The first use of a fresh SQLite store creates its tables, which takes MLflow some seconds.
    """
    if not config.tracking.enabled:
        return {}
    # Before MLflow is imported: nothing that we load from a store may be a pickle.
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    with progress("recording the run in MLflow", len(digests), enabled=show_progress) as advance:
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # its notes on new tables are of no use here
        client = mlflow.MlflowClient(tracking_uri=config.tracking.uri or _local_store(out))
        experiment = _experiment(client, config.tracking.experiment, out)
        parent = client.create_run(
            experiment, run_name="train", tags={"mlflow.source.name": "consentier train"}
        )
        run_ids = {"run": parent.info.run_id}
        client.log_dict(parent.info.run_id, config.resolved(), "config.json")
        for tier, digest in digests.items():
            tags = {"mlflow.parentRunId": parent.info.run_id, "tier": tier, "bundle_digest": digest}
            child = client.create_run(experiment, run_name=tier, tags=tags)
            run_ids[tier] = child.info.run_id
            _record(client, child.info.run_id, tier, config, runs[tier])
            client.log_artifacts(child.info.run_id, str(out / tier), "bundle")
            client.set_terminated(child.info.run_id)
            advance()
        client.set_terminated(parent.info.run_id)
    return run_ids


def _local_store(out: Path) -> str:
    return f"sqlite:///{out.absolute() / 'mlflow.db'}"


def _experiment(client: Any, name: str, out: Path) -> str:
    existing = client.get_experiment_by_name(name)
    if existing is not None:
        return str(existing.experiment_id)
    return str(client.create_experiment(name, artifact_location=(out.absolute() / "mlartifacts").as_uri()))


def _record(client: Any, run_id: str, tier: str, config: Config, facts: Mapping[str, Any]) -> None:
    for name, value in config.resolved().get(tier, {}).items():
        client.log_param(run_id, name, value)
    client.log_param(run_id, "ledger_position", facts["ledger_position"])
    client.log_param(run_id, "config_hash", facts["config_hash"])
    client.log_metric(run_id, "seconds", facts["seconds"])
    for row in facts["funnel"]:
        client.log_metric(run_id, f"rows_in.{row['source']}", row["rows_in"])
        client.log_metric(run_id, f"rows_kept.{row['source']}", row["rows_kept"])
    client.log_dict(run_id, dict(facts), "run.json")
