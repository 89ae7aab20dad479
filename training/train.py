"""One training run: tables in, bundles out, each tier through its own gate; and its record."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from consentier.consent import Ledger, Policy, Tier
from consentier.features.gate import ledger_of
from consentier.features.tables import ShopTables
from consentier.training.bundles import TRAINED_TIERS, TrainingResult, train_bundles
from consentier.training.config import Config
from consentier.training.counted import one_at_a_time
from consentier.training.record import record_run
from consentier.training.restricted import Restricted
from consentier.training.retired_versions import stop_versions

__all__ = ["TRAINED_TIERS", "TrainingResult", "train"]


def train(
    shop: ShopTables,
    config: Config,
    out: Path,
    *,
    tiers: Sequence[Tier],
    policy: Policy | None = None,
    force: bool = False,
    show_progress: bool = True,
    ledger: Ledger | None = None,
    restricted: Restricted | None = None,
    name: str = "shop",
) -> TrainingResult:
    """Train tiers, write one bundle each, and record the run where tracking is on.

    Parameters
    ----------
    shop, config, out, tiers, policy, force, show_progress, ledger, restricted
        As in `train_bundles`.
    name
        What to call the data in the record.

    Raises
    ------
    TrainingError
        If no tier has anything to train on.
    FileExistsError
        If a bundle is in the way and `force` is not set.

    Notes
    -----
    The bundles are in place before anything is recorded. A record measures the models on held-out periods,
    which takes several fits more: see `record_run`. ``tracking.enabled = false`` spares both. With a
    restricted directory, trainings and forgettings wait for each other, and registered versions of a tier
    that has no permitted rows any more stop answering.
    """
    policy = Policy.default() if policy is None else policy
    ledger = ledger_of(shop) if ledger is None else ledger
    with contextlib.nullcontext() if restricted is None else one_at_a_time(restricted):
        trained = train_bundles(
            shop,
            config,
            out,
            tiers=tiers,
            policy=policy,
            force=force,
            show_progress=show_progress,
            ledger=ledger,
            restricted=restricted,
            retiring=None if restricted is None else partial(stop_versions, config.tracking, out, restricted),
        )
        if not config.tracking.enabled:
            return trained
        return record_run(
            shop,
            config,
            trained,
            policy=policy,
            ledger=ledger,
            restricted=restricted,
            name=name,
            show_progress=show_progress,
        )
