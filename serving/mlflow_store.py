"""MLflow's client, as everything here uses it: it loads no pickle, and what fails says which store failed.

What MLflow and what lies below it raise quotes the store's address, with user and password, so nothing of it
goes further than this.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

from consentier.addresses import shown_url, without_credentials
from consentier.errors import TrackingError, TrackingMissing

__all__ = ["mlflow_client", "prepare_mlflow", "store_failures_told"]

_MISSING = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"})
_MOST_TOLD = 300
"""How much is told of what MLflow says, in characters."""


def prepare_mlflow() -> None:
    """Set what MLflow must find before it is imported: nothing that it loads may be a pickle."""
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def mlflow_client(tracking_uri: str | None) -> Any:
    """A client of a tracking server that is its own model registry; it loads no pickle.

    Parameters
    ----------
    tracking_uri
        The store's address; None: MLflow's own setting.

    Returns
    -------
    Any
        As ``mlflow.MlflowClient``, but its methods raise `TrackingError` in the place of what MLflow, SQL and
        HTTP raise, and `TrackingMissing` where the store has no such thing.

    Raises
    ------
    TrackingError
        If it is the address of no store, or of a database that cannot be reached.
    ModuleNotFoundError
        If MLflow is not installed.
    """
    prepare_mlflow()
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its notes on new tables are of no use here
    uri = mlflow.get_tracking_uri() if tracking_uri is None else tracking_uri
    with store_failures_told(uri):
        return _Client(mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri), uri)


class _Client:
    """Passes everything on to MLflow's client."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client = client
        self._uri = uri

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        @functools.wraps(found)
        def called(*args: Any, **options: Any) -> Any:
            with store_failures_told(self._uri):
                return found(*args, **options)

        return called


@contextlib.contextmanager
def store_failures_told(uri: str) -> Iterator[None]:
    """Tell which store failed and how, for what MLflow does outside of its client too.

    Raises
    ------
    TrackingError, TrackingMissing
        In the place of what MLflow, SQL and HTTP raise.
    """
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, requests.RequestException) as error:
        said = _said(error, uri)
        if getattr(error, "error_code", None) in _MISSING:
            raise TrackingMissing(f"MLflow store {shown_url(uri)}: {said}") from None
        raise TrackingError(
            f"MLflow store {shown_url(uri)} cannot be used: {said}. Check its address (tracking.uri), and "
            "that it can be reached from here; then try again"
        ) from None


def _said(error: Exception, uri: str) -> str:
    """The first line of what MLflow or the database says, without user and password."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__]
    return without_credentials(lines[0], uri)[:_MOST_TOLD].rstrip(". ")
