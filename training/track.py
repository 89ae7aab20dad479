"""The MLflow store, and the record of a search for parameters. Training runs: `training.record`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from consentier.progress import progress
from consentier.serving.mlflow_store import mlflow_client
from consentier.training.config import Config, TrackingConfig
from consentier.training.stale_runs import end_stale_searches, search_tags

__all__ = [
    "RecordTrial",
    "ended",
    "has_store",
    "not_recorded",
    "opened_store",
    "store_client",
    "tracked_search",
]

_LOCAL_STORE = "mlflow.db"


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
    A search that is interrupted leaves the trials that it had finished, and a parent marked as killed; one
    that fails a parent marked as failed. One that is ended by force is marked as killed by the next.
    """
    if not config.tracking.enabled:
        yield not_recorded
        return
    with progress("opening the MLflow store", None, enabled=show_progress):
        folder.mkdir(parents=True, exist_ok=True)
        client, experiment = opened_store(config.tracking, folder)
        end_stale_searches(client, experiment, folder)
    with search_tags(folder) as tags, _search_run(client, experiment, {**tags, "tier": tier}) as parent:
        client.log_dict(parent, config.recorded(), "config.json")
        client.log_batch(parent, params=_params(facts))
        yield _recorder(client, experiment, parent, {**tags, "tier": tier})


@contextlib.contextmanager
def _search_run(client: Any, experiment: str, tags: Mapping[str, str]) -> Iterator[str]:
    """The parent of a search: its id."""
    tags = {"mlflow.source.name": "consentier tune", **tags}
    parent = client.create_run(experiment, run_name=f"tune {tags['tier']}", tags=tags).info.run_id
    with ended(client, parent):
        yield parent


@contextlib.contextmanager
def ended(client: Any, run_id: str) -> Iterator[None]:
    """A run that has ended when the block has, and says how."""
    status = "KILLED"
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        client.set_terminated(run_id, status=status)


def _recorder(client: Any, experiment: str, parent: str, tags: Mapping[str, str]) -> RecordTrial:
    """Records each trial as a child of a run."""
    from mlflow.entities import Metric

    best: float | None = None

    def record(
        number: int, parameters: Mapping[str, Any], value: float | None, state: str, seconds: float
    ) -> None:
        nonlocal best
        told = {**tags, "mlflow.parentRunId": parent, "state": state}
        child = client.create_run(experiment, run_name=f"{tags['tier']} {number}", tags=told).info.run_id
        figures = {"seconds": seconds} if value is None else {"seconds": seconds, "value": value}
        now = int(time.time() * 1000)
        client.log_batch(
            child,
            metrics=[Metric(name, figure, now, 0) for name, figure in figures.items()],
            params=_params(parameters),
        )
        client.set_terminated(child, status="FAILED" if state == "failed" else "FINISHED")
        if state == "complete" and value is not None and (best is None or value > best):
            best = value
            client.log_metric(parent, "best", best, step=number)

    return record


def _params(values: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, str(value)) for name, value in values.items()]


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


def has_store(tracking: TrackingConfig, folder: Path) -> bool:
    """Whether the configuration names a store, or there is one in the folder."""
    return bool(tracking.uri) or (folder / _LOCAL_STORE).is_file()


def _local_store(out: Path) -> str:
    return f"sqlite:///{out.absolute() / _LOCAL_STORE}"


def _experiment(client: Any, name: str, out: Path) -> str:
    existing = client.get_experiment_by_name(name)
    if existing is not None:
        return str(existing.experiment_id)
    return str(client.create_experiment(name, artifact_location=(out.absolute() / "mlartifacts").as_uri()))
