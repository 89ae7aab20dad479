"""Runs of MLflow whose process was killed: they are marked as running until somebody ends them.

A run of training bears a keyed digest that only this trainer's restricted directory can make. Whoever trains
there next, one at a time, knows that what it began before and did not end has died. Of searches, several may
go on at once: each holds a locked place of its own, which its runs name. Whoever searches next beside it
finds the places that nobody holds any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consentier.training.restricted import Restricted
from consentier.writing import remnants, remove_remnants, workplace

__all__ = ["end_stale_runs", "end_stale_searches", "search_tags", "trainer_tags"]

_TAG = "consentier_trainer"
_DOMAIN, _VALUE = "trainer", "runs"

_SEARCH_TAG = "consentier_search"
_SEARCH_PLACE = "consentier-search"


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


@contextlib.contextmanager
def search_tags(folder: Path) -> Iterator[dict[str, str]]:
    """The tags by which it is known, while the block lasts, that a search is going on.

    Parameters
    ----------
    folder
        Where its place is.
    """
    with workplace(folder / _SEARCH_PLACE, sweep=False) as place:
        yield {_SEARCH_TAG: place.name}


def end_stale_searches(client: Any, experiment: str, folder: Path) -> int:
    """Mark as killed the runs of searches that died beside here; say how many runs.

    Parameters
    ----------
    client
        Of the tracking server.
    experiment
        Id of the experiment.
    folder
        Where the places of the searches are. What was searched elsewhere is left alone.
    """
    ended = 0
    for place in remnants(folder / _SEARCH_PLACE):
        wanted = f"attributes.status = 'RUNNING' and tags.{_SEARCH_TAG} = '{place.name}'"
        for run in client.search_runs([experiment], wanted):
            client.set_terminated(run.info.run_id, status="KILLED")
            ended += 1
    remove_remnants(folder / _SEARCH_PLACE)
    return ended
