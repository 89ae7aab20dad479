"""A tier of which nothing may be learnt any more, in the model registry: its versions stop where they serve.

Training takes the bundle of such a tier out of its directory. A version in the registry is a copy, to which
an alias points services: it would answer on, from rows that nobody permits any more.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from consentier.consent import Tier
from consentier.serving.revocation import Deadlines
from consentier.training.config import TrackingConfig
from consentier.training.model_registry import ModelRegistry
from consentier.training.restricted import Restricted
from consentier.training.track import has_store, store_client

__all__ = ["stop_versions"]


def stop_versions(tracking: TrackingConfig, out: Path, restricted: Restricted, tier: Tier) -> int:
    """Give the versions of a tier's bundles a deadline that has passed; say how many had none so early.

    Parameters
    ----------
    tracking
        Which registry. Where there is none, nothing is done. Whether this run is recorded does not matter:
        versions of earlier ones serve all the same.
    out
        The directory of the bundles.
    restricted
        Whose lineage knows the bundles: those of another trainer in the same registry are left alone.
    tier
        Which.

    Notes
    -----
    To be called while the lineage still knows the bundles. Safe to run again.
    """
    if not has_store(tracking, out):
        return 0
    digests = restricted.lineage().digests(str(tier))
    if not digests:
        return 0
    registry = ModelRegistry(store_client(tracking, out), tracking.experiment)
    return registry.note_deadlines(tier, Deadlines(dict.fromkeys(digests, dt.datetime.now(dt.UTC))))
