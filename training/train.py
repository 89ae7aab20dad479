"""One training run: tables in, bundles out, each tier through its own gate."""

from __future__ import annotations

import dataclasses
import datetime as dt
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from consentier.consent import Ledger, Policy, Tier
from consentier.errors import TrainingError
from consentier.features.gate import ConsentGate, Funnel, ledger_of
from consentier.features.tables import ShopTables
from consentier.models.bundle import TIERS, write_bundle, write_run
from consentier.progress import progress
from consentier.training.config import Config, TierConfig, config_hash
from consentier.training.fit import FittedTier, fit_popular, fit_tier
from consentier.training.track import track_run

__all__ = ["TRAINED_TIERS", "TrainingResult", "train"]

TRAINED_TIERS = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED, Tier.POPULAR)
"""All that a full run trains, in this order."""

_PACKAGES = ("consentier", "numpy", "scipy", "numba", "scikit-learn", "implicit", "duckdb", "ibis-framework")


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run made.

    Attributes
    ----------
    out
        Directory of the bundles.
    digests
        Bundle digest by tier.
    skipped
        Why a tier has no bundle, by tier.
    funnel
        What the gate kept out, one row per tier and source.
    seconds
        Fitting time by tier.
    run_ids
        MLflow run ids by tier, and of the whole run under ``run``; empty without tracking.
    """

    out: Path
    digests: dict[str, str]
    skipped: dict[str, str]
    funnel: list[dict[str, Any]]
    seconds: dict[str, float]
    run_ids: dict[str, str]


def train(
    shop: ShopTables,
    config: Config,
    out: Path,
    *,
    tiers: Sequence[Tier],
    policy: Policy | None = None,
    force: bool = False,
    show_progress: bool = True,
    until: dt.datetime | None = None,
) -> TrainingResult:
    """Train tiers and write one bundle each.

    Parameters
    ----------
    shop
        The shop's tables.
    config
        Resolved configuration.
    out
        Where the bundles go: ``out/TIER``.
    tiers
        Which to train. A tier without permitted rows is skipped with its reason where several are asked for.
    policy
        Its switches decide which rows may be used; the default policy otherwise.
    force
        Replace bundles that are there already.
    show_progress
        Say on standard error what is being done.
    until
        Rows at or after this instant stay out; by default the cut-off itself. Evaluation uses it.

    Raises
    ------
    TrainingError
        If no tier has anything to train on.
    FileExistsError
        If a bundle is in the way and `force` is not set.

    Notes
    -----
    A bundle is written beside its place and renamed into it: a reader sees the old one or the new one.
    """
    policy = Policy.default() if policy is None else policy
    cutoff = config.training.cutoff or dt.datetime.now(dt.UTC)
    out.mkdir(parents=True, exist_ok=True)
    occupied = [str(out / tier) for tier in tiers if (out / tier).exists()]
    if occupied and not force:
        raise FileExistsError(f"{', '.join(occupied)}: there is a bundle already; use --force to replace it")
    ledger = ledger_of(shop)
    gate = ConsentGate(shop, ledger, cutoff, policy, until)
    digests, skipped, seconds, runs = {}, {}, {}, {}
    funnels: list[Funnel] = []
    for tier in tiers:
        started = time.perf_counter()
        try:
            fitted, parameters, funnel = _fit(tier, gate, config, show_progress)
        except TrainingError as error:
            if len(tiers) == 1:
                raise
            skipped[str(tier)] = str(error)
            continue
        funnels.extend(funnel)
        seconds[str(tier)] = round(time.perf_counter() - started, 3)
        digests[str(tier)] = _write(tier, fitted, parameters, cutoff, out, force)
        runs[str(tier)] = _run_facts(config, ledger, funnel, seconds[str(tier)])
        write_run(out / tier, runs[str(tier)])
    if not digests:
        raise TrainingError("; ".join(skipped.values()))
    run_ids = track_run(config, out, digests, runs, show_progress=show_progress)
    rows = [dataclasses.asdict(funnel) for funnel in funnels]
    return TrainingResult(out, digests, skipped, rows, seconds, run_ids)


def _fit(
    tier: Tier, gate: ConsentGate, config: Config, show_progress: bool
) -> tuple[FittedTier, Mapping[str, Any], tuple[Funnel, ...]]:
    with progress(f"gate for the {tier} tier", None, enabled=show_progress):
        if tier is Tier.POPULAR:
            online, crm = gate.permitted(Tier.ONLINE), gate.permitted(Tier.CRM)
            anonymous = gate.anonymous_rows()
        else:
            permitted = gate.permitted(tier)
    if tier is Tier.POPULAR:
        fitted = fit_popular(online, crm, anonymous, min_persons=config.training.min_persons)
        funnel = tuple(
            dataclasses.replace(each, tier=str(Tier.POPULAR)) for each in (*online.funnel, *crm.funnel)
        )
        return fitted, {"min_persons": config.training.min_persons}, funnel
    tier_config: TierConfig = getattr(config, tier)
    fitted = fit_tier(
        tier,
        permitted,
        tier_config,
        min_persons=config.training.min_persons,
        threads=config.training.threads,
        show_progress=show_progress,
    )
    parameters = {**tier_config.model_dump(mode="json"), "min_persons": config.training.min_persons}
    return fitted, parameters, permitted.funnel


def _write(
    tier: Tier,
    fitted: FittedTier,
    parameters: Mapping[str, Any],
    cutoff: dt.datetime,
    out: Path,
    force: bool,
) -> str:
    sources, permission = TIERS[tier]
    return write_bundle(
        out / tier,
        tier=tier,
        sources=sources,
        permission=permission,
        algorithm=parameters.get("algorithm", "popularity"),
        parameters=parameters,
        scoring=fitted.scoring,
        item_count=fitted.item_count,
        cutoff=cutoff,
        arrays=fitted.arrays,
        overwrite=force,
    )


def _run_facts(config: Config, ledger: Ledger, funnel: Sequence[Funnel], seconds: float) -> dict[str, Any]:
    """What is true of the run but not of the model; stands beside the bundle, outside its digest."""
    return {
        "created_at": dt.datetime.now(dt.UTC).isoformat(),
        "config_hash": config_hash(config),
        "ledger_position": ledger.position,
        "ledger_conflicts": len(ledger.conflicts),
        "funnel": [dataclasses.asdict(each) for each in funnel],
        "seconds": seconds,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
