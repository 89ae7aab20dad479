"""The MLflow store, and the record of a search for parameters. Training runs: `training.record`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from consentier.progress import progress
from consentier.serving.registry import mlflow_client
from consentier.training.config import Config, TrackingConfig

__all__ = ["RecordTrial", "not_recorded", "opened_store", "store_client", "tracked_search"]


class RecordTrial(Protocol):
    """Called with each trial of a search when it has ended."""

    def __call__(
        self, number: int, parameters: Mapping[str, Any], value: float | None, state: str, seconds: float
    ) -> None: ...


@contextlib.contextmanager
def tracked_search(
    config: Config, folder: Path, tier: str, facts: Mapping[str, Any], *, show_progress: bool
) -> Iterator[RecordTrial]:
    """Record the search for a tier's parameters: one run, with one child for each trial.

    Parameters
    ----------
    config
        The resolved configuration; its ``tracking`` says where to.
    folder
        Where the SQLite file is, if it names no other place.
    tier
        Whose parameters.
    facts
        What to record of the search as a whole.
    show_progress
        Say on standard error what is being done.

    Yields
    ------
    RecordTrial
        Records one trial; does nothing where tracking is switched off.

    Notes
    -----
    A search that is interrupted leaves the trials that it had finished, and a parent marked as killed.
    """
    if not config.tracking.enabled:
        yield not_recorded
        return
    with progress("opening the MLflow store", None, enabled=show_progress):
        folder.mkdir(parents=True, exist_ok=True)
        client, experiment = opened_store(config.tracking, folder)
        from mlflow.entities import Metric, Param
    parent = client.create_run(
        experiment,
        run_name=f"tune {tier}",
        tags={"mlflow.source.name": "consentier tune", "tier": tier},
    ).info.run_id
    client.log_dict(parent, config.resolved(), "config.json")
    client.log_batch(parent, params=[Param(name, str(value)) for name, value in facts.items()])
    best: float | None = None

    def record(
        number: int, parameters: Mapping[str, Any], value: float | None, state: str, seconds: float
    ) -> None:
        nonlocal best
        tags = {"mlflow.parentRunId": parent, "tier": tier, "state": state}
        child = client.create_run(experiment, run_name=f"{tier} {number}", tags=tags).info.run_id
        figures = {"seconds": seconds} if value is None else {"seconds": seconds, "value": value}
        now = int(time.time() * 1000)
        client.log_batch(
            child,
            metrics=[Metric(name, figure, now, 0) for name, figure in figures.items()],
            params=[Param(name, str(each)) for name, each in parameters.items()],
        )
        client.set_terminated(child, status="FAILED" if state == "failed" else "FINISHED")
        if state == "complete" and value is not None and (best is None or value > best):
            best = value
            client.log_metric(parent, "best", best, step=number)

    status = "KILLED"
    try:
        yield record
        status = "FINISHED"
    finally:
        client.set_terminated(parent, status=status)


def not_recorded(
    number: int, parameters: Mapping[str, Any], value: float | None, state: str, seconds: float
) -> None:
    """Record nothing."""


def opened_store(tracking: TrackingConfig, folder: Path) -> tuple[Any, str]:
    """A client of the store that the configuration names, and the id of the experiment.

    Parameters
    ----------
    tracking
        Which store, which experiment; both are made where they are missing.
    folder
        Where the SQLite file is, if no store is named.

    Notes
    -----
    The first use of a fresh SQLite store creates its tables, which takes MLflow some seconds.
    """
    client = store_client(tracking, folder)
    return client, _experiment(client, tracking.experiment, folder)


def store_client(tracking: TrackingConfig, folder: Path) -> Any:
    """A client of the store alone; nothing is made in it."""
    return mlflow_client(tracking.uri or _local_store(folder))


def _local_store(out: Path) -> str:
    return f"sqlite:///{out.absolute() / 'mlflow.db'}"


def _experiment(client: Any, name: str, out: Path) -> str:
    existing = client.get_experiment_by_name(name)
    if existing is not None:
        return str(existing.experiment_id)
    return str(client.create_experiment(name, artifact_location=(out.absolute() / "mlartifacts").as_uri()))
