"""Runs of MLflow whose trainer was killed: they are marked as running until somebody ends them.

A run bears a keyed digest that only this trainer's restricted directory can make. Whoever trains there next,
one at a time, knows that what it began before and did not end has died.
"""

from __future__ import annotations

from typing import Any

from consentier.training.restricted import Restricted

__all__ = ["end_stale_runs", "trainer_tags"]

_TAG = "consentier_trainer"
_DOMAIN, _VALUE = "trainer", "runs"


def trainer_tags(restricted: Restricted | None) -> dict[str, str]:
    """The tags by which a trainer knows its runs again; none without a restricted directory."""
    return {} if restricted is None else {_TAG: restricted.keyring().digest(_DOMAIN, _VALUE)}


def end_stale_runs(client: Any, experiment: str, restricted: Restricted | None) -> int:
    """Mark as killed what this trainer began and did not end; say how many runs.

    Parameters
    ----------
    client
        Of the tracking server.
    experiment
        Id of the experiment.
    restricted
        The trainer's restricted directory. Without one nobody knows whose a run is, and nothing is done.

    Notes
    -----
    A run that is still going on, of a trainer that had no lock, ends with its own status all the same.
    """
    if restricted is None:
        return 0
    ended = 0
    for digest in restricted.keyring().digests(_DOMAIN, _VALUE):
        wanted = f"attributes.status = 'RUNNING' and tags.{_TAG} = '{digest}'"
        for run in client.search_runs([experiment], wanted):
            client.set_terminated(run.info.run_id, status="KILLED")
            ended += 1
    return ended
