"""One training run: tables in, bundles out, each tier through its own gate."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from consentier.consent import Ledger, Policy, Tier
from consentier.errors import TrainingError
from consentier.features.gate import ConsentGate, Funnel, PermittedRows, ledger_of
from consentier.features.tables import ShopTables
from consentier.models.bundle import TIERS, write_bundle, write_run
from consentier.progress import progress
from consentier.serving.factor_scorer import FACTOR_ALGORITHMS
from consentier.training.config import Config, TierConfig
from consentier.training.fit import FittedTier, fit_popular, fit_tier, keep_statistics
from consentier.training.restricted import Restricted
from consentier.training.run_facts import rows_digest, run_facts
from consentier.training.track import track_run
from consentier.writing import remove_directory

__all__ = [
    "TRAINED_TIERS",
    "TierFit",
    "TrainingResult",
    "fit_each",
    "model_parameters",
    "publish",
    "require_free_slots",
    "train",
]

TRAINED_TIERS = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED, Tier.POPULAR)
"""All that a full run trains, in this order."""


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
    ledger: Ledger | None = None,
    restricted: Restricted | None = None,
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
        Replace bundles that are there already. The bundle of a tier that has no permitted rows any more is
        removed.
    show_progress
        Say on standard error what is being done.
    until
        Rows at or after this instant stay out; by default the cut-off itself. Evaluation uses it.
    ledger
        Consents and links; by default those of the shop's tables.
    restricted
        Where to keep whom each bundle holds, and the statistics from which a person can be subtracted again.
        None keeps neither: forgetting then fits anew, and a withdrawal takes each bundle to hold everybody.

    Raises
    ------
    TrainingError
        If no tier has anything to train on.
    FileExistsError
        If a bundle is in the way and `force` is not set.

    Notes
    -----
    All models are held in memory until the last one is fitted. Then each bundle is written beside its place
    and renamed into it: a reader sees the old one or the new one.
    """
    policy = Policy.default() if policy is None else policy
    cutoff = config.training.cutoff or dt.datetime.now(dt.UTC)
    require_free_slots(out, tiers, force=force)
    ledger = ledger_of(shop) if ledger is None else ledger
    gate = ConsentGate(shop, ledger, cutoff, policy, until)
    fitted, skipped = fit_each(
        tiers, lambda tier: _fit(tier, gate, config, show_progress, keep=restricted is not None)
    )
    runs = {
        tier: run_facts(config, ledger, fit.funnel, fit.rows_digest, fit.seconds)
        for tier, fit in fitted.items()
    }

    def keep(tier: Tier, digest: str) -> None:
        if restricted is not None:
            _keep(restricted, tier, fitted[tier], digest, gate, ledger)

    return publish(
        fitted, skipped, runs, config, cutoff, out, force=force, show_progress=show_progress, keep=keep
    )


@dataclasses.dataclass(frozen=True, slots=True)
class TierFit:
    """One tier's model, what it was fitted with and on whom, and what the gate kept out of it.

    Attributes
    ----------
    model, parameters
        The model, and what its manifest says of its configuration.
    funnel
        What the gate kept out.
    subjects
        Whose rows and attributes it was fitted on, as in `PermittedRows`; None where nobody keeps that.
    rows_digest
        Of the rows that it was fitted on; None where no one process saw them all.
    seconds
        Fitting time.
    """

    model: FittedTier
    parameters: Mapping[str, Any]
    funnel: tuple[Funnel, ...]
    subjects: pa.Table | None
    rows_digest: str | None
    seconds: float


def require_free_slots(out: Path, tiers: Sequence[Tier], *, force: bool) -> None:
    """Check that no bundle is in the way, before anything is computed.

    Raises
    ------
    FileExistsError
        There is one, and `force` is not set.
    """
    occupied = [str(out / tier) for tier in tiers if (out / tier).exists()]
    if occupied and not force:
        raise FileExistsError(f"{', '.join(occupied)}: there is a bundle already; use --force to replace it")


def fit_each(
    tiers: Sequence[Tier], fit: Callable[[Tier], TierFit]
) -> tuple[dict[Tier, TierFit], dict[Tier, str]]:
    """Fit tiers; those that have nothing to train on are skipped, with the reason."""
    fitted: dict[Tier, TierFit] = {}
    skipped: dict[Tier, str] = {}
    for tier in tiers:
        try:
            fitted[tier] = fit(tier)
        except TrainingError as error:
            skipped[tier] = str(error)
    return fitted, skipped


def publish(
    fitted: Mapping[Tier, TierFit],
    skipped: Mapping[Tier, str],
    runs: Mapping[Tier, Mapping[str, Any]],
    config: Config,
    cutoff: dt.datetime,
    out: Path,
    *,
    force: bool,
    show_progress: bool,
    keep: Callable[[Tier, str], None] | None = None,
) -> TrainingResult:
    """Write the bundles of a run and record it.

    Nothing is written before all is fitted: an interrupted run leaves the earlier bundles as they were. The
    bundle of a skipped tier is removed.

    Parameters
    ----------
    fitted, skipped
        From `fit_each`.
    runs
        The facts that stand beside each bundle.
    config, cutoff
        What the run was made with.
    out, force, show_progress
        As for `train`.
    keep
        Called with each tier and the digest of its bundle, once that stands.

    Raises
    ------
    TrainingError
        If nothing was fitted.
    """
    reasons = {str(tier): reason for tier, reason in skipped.items()}
    for name in reasons:
        if _retire(out / name):
            reasons[name] += (
                "; the earlier bundle, which rests on rows that may not be used any more, was removed"
            )
    if not fitted:
        raise TrainingError("; ".join(reasons.values()))
    out.mkdir(parents=True, exist_ok=True)
    digests = {}
    for tier, fit in fitted.items():
        digests[str(tier)] = _write(tier, fit, cutoff, out, force)
        write_run(out / tier, runs[tier])
        if keep is not None:
            keep(tier, digests[str(tier)])
    run_ids = track_run(
        config, out, digests, {str(tier): run for tier, run in runs.items()}, show_progress=show_progress
    )
    rows = [dataclasses.asdict(funnel) for fit in fitted.values() for funnel in fit.funnel]
    seconds = {str(tier): fit.seconds for tier, fit in fitted.items()}
    return TrainingResult(out, digests, reasons, rows, seconds, run_ids)


def _fit(tier: Tier, gate: ConsentGate, config: Config, show_progress: bool, *, keep: bool) -> TierFit:
    started = time.perf_counter()
    fit_one = _fit_popular if tier is Tier.POPULAR else _fit_model
    model, parameters, permitted = fit_one(tier, gate, config, show_progress, keep)
    return TierFit(
        model,
        parameters,
        tuple(dataclasses.replace(funnel, tier=str(tier)) for part in permitted for funnel in part.funnel),
        pa.concat_tables([part.subjects for part in permitted]),
        rows_digest(permitted),
        round(time.perf_counter() - started, 3),
    )


_Parts = tuple[FittedTier, Mapping[str, Any], tuple[PermittedRows, ...]]


def _fit_popular(tier: Tier, gate: ConsentGate, config: Config, show_progress: bool, keep: bool) -> _Parts:
    with progress(f"gate for the {tier} tier", None, enabled=show_progress):
        online, crm = gate.permitted(Tier.ONLINE), gate.permitted(Tier.CRM)
        anonymous = gate.anonymous_rows()
    min_persons = config.training.min_persons
    model = fit_popular(online, crm, anonymous, min_persons=min_persons, keep=keep)
    # The popular list reads no attributes, and whoever was never asked is not in the ledger.
    return model, {"min_persons": min_persons}, (online, dataclasses.replace(crm, attributes=None))


def _fit_model(tier: Tier, gate: ConsentGate, config: Config, show_progress: bool, keep: bool) -> _Parts:
    with progress(f"gate for the {tier} tier", None, enabled=show_progress):
        permitted = gate.permitted(tier)
    tier_config: TierConfig = getattr(config, tier)
    model = fit_tier(
        tier,
        permitted,
        tier_config,
        min_persons=config.training.min_persons,
        threads=config.training.threads,
        seed=config.training.seed,
        show_progress=show_progress,
        keep=keep,
    )
    parameters = model_parameters(tier_config, config.training.min_persons, model)
    if tier_config.algorithm in FACTOR_ALGORITHMS:
        parameters["seed"] = config.training.seed
    return model, parameters, (permitted,)


def model_parameters(config: TierConfig, min_persons: int, model: FittedTier) -> dict[str, Any]:
    """What a manifest says of the parameters of a model without chance."""
    return {**config.model_dump(mode="json"), "min_persons": min_persons, **model.facts}


def _retire(path: Path) -> bool:
    """Take a bundle out of its slot, if there is one; whether there was."""
    if not (path / "manifest.json").is_file():
        return False
    remove_directory(path)
    return True


def _write(tier: Tier, fit: TierFit, cutoff: dt.datetime, out: Path, force: bool) -> str:
    sources, permission = TIERS[tier]
    return write_bundle(
        out / tier,
        tier=tier,
        sources=sources,
        permission=permission,
        algorithm=fit.parameters.get("algorithm", "popularity"),
        parameters=fit.parameters,
        scoring=fit.model.scoring,
        item_count=fit.model.item_count,
        cutoff=cutoff,
        arrays=fit.model.arrays,
        overwrite=force,
    )


def _keep(
    restricted: Restricted, tier: Tier, fit: TierFit, digest: str, gate: ConsentGate, ledger: Ledger
) -> None:
    """Keep, on the training side, whom a bundle holds and what its weights were computed from."""
    if fit.subjects is None:
        raise ValueError("nobody noted whose rows the model was fitted on")
    kinds, ids = (fit.subjects[name].to_pylist() for name in ("kind", "subject_id"))
    subjects = zip(kinds, ids, strict=True)
    position = ledger.position
    restricted.lineage().record(digest, str(tier), subjects, cutoff=gate.cutoff, ledger_position=position)
    keep_statistics(restricted, tier, fit.model, bundle_digest=digest, gate=gate)
