"""From tables to bundles, each tier through its own gate. Nothing here knows of a record of runs."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from consentier.consent import Ledger, Policy, Tier
from consentier.errors import BundleError, NothingPermitted, TrainingError
from consentier.features.gate import ConsentGate, Funnel, PermittedRows, ledger_of
from consentier.features.tables import ShopTables
from consentier.logs import bound
from consentier.models.bundle import TIERS, open_bundle, write_bundle
from consentier.progress import progress
from consentier.serving.factor_scorer import FACTOR_ALGORITHMS
from consentier.training.config import Config, TierConfig
from consentier.training.data_summary import DataSummary, data_summary
from consentier.training.fit import FittedTier, fit_popular, fit_tier, keep_statistics
from consentier.training.restricted import Restricted
from consentier.training.run_facts import rows_digest, run_facts
from consentier.writing import remove_directory, remove_remnants_in

__all__ = [
    "RETIRED",
    "TRAINED_TIERS",
    "Fit",
    "FitModel",
    "TrainingResult",
    "fit_each",
    "fit_one",
    "parameters_of",
    "permitted_to",
    "publish",
    "put",
    "require_free_slots",
    "retire",
    "train_bundles",
    "write_tier",
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
    cutoff
        The training cut-off.
    run_ids
        MLflow run ids by tier, and of the whole run under ``run``; empty without tracking.
    versions
        The version of each tier's registered model, by tier; empty without tracking.
    """

    out: Path
    digests: dict[str, str]
    skipped: dict[str, str]
    funnel: list[dict[str, Any]]
    seconds: dict[str, float]
    cutoff: dt.datetime
    run_ids: dict[str, str] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)


def train_bundles(
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
    retiring: Callable[[Tier], object] | None = None,
) -> TrainingResult:
    """Train tiers and write one bundle each, without a record of the run.

    Parameters
    ----------
    shop
        The shop's tables.
    config
        Resolved configuration.
    out
        Where the bundles go: ``out/TIER``.
    tiers
        Which to train. A tier without permitted rows, or whose fit has no stable solution, is skipped with
        its reason where several are asked for.
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
    retiring
        Called with each tier that has no permitted rows any more, before its bundle is removed.

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
        tiers, lambda tier: fit_one(tier, gate, config, show_progress, keep=restricted is not None)
    )

    def write(tier: Tier, fit: Fit) -> str:
        run = run_facts(config, ledger, fit.funnel, fit.rows_digest, fit.seconds)
        run["data_summary"] = fit.summary
        return put(tier, fit, run, out, gate=gate, ledger=ledger, restricted=restricted, force=force)

    return publish(fitted, skipped, out, cutoff, write, restricted=restricted, retiring=retiring)


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
    tiers: Sequence[Tier], fit: Callable[[Tier], Fit]
) -> tuple[dict[Tier, Fit], dict[Tier, TrainingError]]:
    """Fit tiers; those that have nothing to train on, or no stable solution, are skipped, with the reason."""
    fitted: dict[Tier, Fit] = {}
    skipped: dict[Tier, TrainingError] = {}
    for tier in tiers:
        try:
            with bound(tier=str(tier)):
                fitted[tier] = fit(tier)
        except TrainingError as error:
            skipped[tier] = error
    return fitted, skipped


def publish(
    fitted: Mapping[Tier, Fit],
    skipped: Mapping[Tier, TrainingError],
    out: Path,
    cutoff: dt.datetime,
    write: Callable[[Tier, Fit], str],
    *,
    restricted: Restricted | None = None,
    retiring: Callable[[Tier], object] | None = None,
) -> TrainingResult:
    """Write the bundles of a run, and remove those of tiers of which nothing may be learnt any more.

    Nothing is written before all is fitted: an interrupted run leaves the earlier bundles as they were.

    Parameters
    ----------
    fitted, skipped
        From `fit_each`.
    out, cutoff
        As in `TrainingResult`.
    write
        Puts a tier's bundle into its slot, and gives its digest.
    restricted
        Where statistics and lineage are kept: those of tiers whose bundle is removed go too.
    retiring
        Called with each of these tiers before its bundle goes.

    Raises
    ------
    TrainingError
        If nothing was fitted.
    """
    reasons = {str(tier): str(error) for tier, error in skipped.items()}
    for tier in (each for each, error in skipped.items() if isinstance(error, NothingPermitted)):
        if retiring is not None:
            retiring(tier)
        if retire(tier, out, restricted):
            reasons[str(tier)] += RETIRED
    if not fitted:
        raise TrainingError("; ".join(reasons.values()))
    remove_remnants_in(out)
    digests = {str(tier): write(tier, fit) for tier, fit in fitted.items()}
    rows = [dataclasses.asdict(funnel) for fit in fitted.values() for funnel in fit.funnel]
    seconds = {str(tier): fit.seconds for tier, fit in fitted.items()}
    return TrainingResult(out, digests, reasons, rows, seconds, cutoff)


RETIRED = "; the earlier bundle, which rests on rows that may not be used any more, was removed"
"""What is said of a tier that lost its bundle."""


class FitModel(Protocol):
    """Fits one of the four models, as `fit_tier` does."""

    def __call__(
        self,
        tier: Tier,
        permitted: PermittedRows,
        config: TierConfig,
        /,
        *,
        min_persons: int,
        threads: int | None,
        seed: int,
        show_progress: bool,
        keep: bool,
    ) -> FittedTier:
        """The model of a tier from what the gate let through."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
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
    summary
        What drift is measured against; None where nobody counted it.
    seconds
        Fitting time.
    """

    model: FittedTier
    parameters: Mapping[str, Any]
    funnel: tuple[Funnel, ...]
    subjects: pa.Table | None
    rows_digest: str | None
    summary: DataSummary | None
    seconds: float


def fit_one(
    tier: Tier,
    gate: ConsentGate,
    config: Config,
    show_progress: bool,
    *,
    keep: bool,
    fit_model: FitModel = fit_tier,
) -> Fit:
    """Fit one tier on what the gate lets through.

    Parameters
    ----------
    tier, gate, config, show_progress
        Which, on what and how.
    keep
        With its statistics.
    fit_model
        How a model comes out of permitted rows; the popular list is always counted.

    Raises
    ------
    TrainingError
        If nothing is left to train on.
    """
    started = time.perf_counter()
    if tier is Tier.POPULAR:
        model, parameters, permitted = _fit_popular(tier, gate, config, show_progress, keep)
    else:
        model, parameters, permitted = _fit_model(tier, gate, config, show_progress, keep, fit_model)
    return Fit(
        model,
        parameters,
        tuple(dataclasses.replace(funnel, tier=str(tier)) for part in permitted for funnel in part.funnel),
        pa.concat_tables([part.subjects for part in permitted]),
        rows_digest(permitted),
        data_summary(permitted, gate.standing_counts(tier), config.drift.window_days),
        round(time.perf_counter() - started, 3),
    )


_Parts = tuple[FittedTier, Mapping[str, Any], tuple[PermittedRows, ...]]


def _fit_popular(tier: Tier, gate: ConsentGate, config: Config, show_progress: bool, keep: bool) -> _Parts:
    with progress(f"gate for the {tier} tier", None, enabled=show_progress):
        online, crm = permitted_to(tier, gate)
        anonymous = gate.anonymous_rows()
    model = fit_popular(online, crm, anonymous, min_persons=config.training.min_persons, keep=keep)
    # Whoever was never asked is not in the ledger.
    return model, parameters_of(tier, config), (online, crm)


def permitted_to(tier: Tier, gate: ConsentGate) -> tuple[PermittedRows, ...]:
    """What a tier is fitted on: the popular list on rows of both sides, and on no attributes."""
    if tier is Tier.POPULAR:
        crm = dataclasses.replace(gate.permitted(Tier.CRM), attributes=None)
        return gate.permitted(Tier.ONLINE), crm
    return (gate.permitted(tier),)


def _fit_model(
    tier: Tier, gate: ConsentGate, config: Config, show_progress: bool, keep: bool, fit_model: FitModel
) -> _Parts:
    with progress(f"gate for the {tier} tier", None, enabled=show_progress):
        (permitted,) = permitted_to(tier, gate)
    tier_config: TierConfig = getattr(config, tier)
    model = fit_model(
        tier,
        permitted,
        tier_config,
        min_persons=config.training.min_persons,
        threads=config.training.threads,
        seed=config.training.seed,
        show_progress=show_progress,
        keep=keep,
    )
    return model, {**parameters_of(tier, config), **model.facts}, (permitted,)


def parameters_of(tier: Tier, config: Config) -> dict[str, Any]:
    """What a manifest says of a tier's configuration."""
    if tier is Tier.POPULAR:
        return {"min_persons": config.training.min_persons}
    tier_config: TierConfig = getattr(config, tier)
    parameters = {**tier_config.model_dump(mode="json"), "min_persons": config.training.min_persons}
    if tier_config.algorithm in FACTOR_ALGORITHMS:
        parameters["seed"] = config.training.seed
    return parameters


def retire(tier: Tier, out: Path, restricted: Restricted | None) -> bool:
    """Take a tier's bundle out of its slot, and what was kept of its fitting; whether there was one.

    It is of persons who may not be learnt from any more. The bundle goes last, so that a run after a kill
    finds it again.
    """
    path = out / tier
    if restricted is not None:
        shutil.rmtree(restricted.statistics(tier), ignore_errors=True)
        with contextlib.suppress(BundleError):  # whom a bundle holds that cannot be read, nobody can tell
            restricted.lineage().drop([open_bundle(path, verify=False).digest])
    if not (path / "manifest.json").is_file():
        return False
    remove_directory(path)
    return True


def put(
    tier: Tier,
    fit: Fit,
    run: Mapping[str, Any],
    out: Path,
    *,
    gate: ConsentGate,
    ledger: Ledger,
    restricted: Restricted | None,
    force: bool,
) -> str:
    """Write a tier's bundle, and then what is kept of it on the training side; return its digest.

    The statistics come last: where they belong to the bundle, all else is in place.
    """
    digest = write_tier(tier, fit, run, out, gate.cutoff, force=force)
    if restricted is not None:
        _keep(restricted, tier, fit, digest, gate, ledger)
    return digest


def write_tier(
    tier: Tier, fit: Fit, run: Mapping[str, Any], out: Path, cutoff: dt.datetime, *, force: bool
) -> str:
    """Write a tier's bundle into its slot, with the facts of its run beside it; return its digest."""
    sources, permission = TIERS[tier]
    out.mkdir(parents=True, exist_ok=True)
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
        run=run,
        overwrite=force,
    )


def _keep(
    restricted: Restricted, tier: Tier, fit: Fit, digest: str, gate: ConsentGate, ledger: Ledger
) -> None:
    """Keep, on the training side, whom a bundle holds and what its weights were computed from."""
    if fit.subjects is None:
        raise ValueError("nobody noted whose rows the model was fitted on")
    kinds, ids = (fit.subjects[name].to_pylist() for name in ("kind", "subject_id"))
    subjects = zip(kinds, ids, strict=True)
    position = ledger.position
    restricted.lineage().record(digest, str(tier), subjects, cutoff=gate.cutoff, ledger_position=position)
    keep_statistics(restricted, tier, fit.model, bundle_digest=digest, gate=gate)
