"""``consentier promote`` and ``consentier rollback``: which version of a tier's model serves."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consentier.cli.ledgers import DataForLedger, OptionalLedgerUrl, ledger_from
from consentier.cli.options import (
    AsJson,
    At,
    ConfigPath,
    LifetimesPath,
    PolicyPath,
    RestrictedPath,
    TierChoice,
    chosen_tiers,
)
from consentier.cli.output import CHECK_FAILED, note, print_json, print_table, say
from consentier.consent import Policy, Tier
from consentier.errors import DataError

if TYPE_CHECKING:
    from consentier.training.model_registry import ModelRegistry
    from consentier.training.promote import Check, Promotion


class OneTier(enum.StrEnum):
    """The tiers with a registered model."""

    SESSION = "session"
    ONLINE = "online"
    CRM = "crm"
    FUSED = "fused"
    POPULAR = "popular"


Bundles = Annotated[
    Path,
    typer.Option("--bundles", help="The directory that 'consentier train' wrote, with its revocation list."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check, and write nothing.")]


def promote(
    bundles: Bundles,
    tier: Annotated[
        list[TierChoice] | None,
        typer.Option("--tier", help="Whose challenger; may be given more than once. By default all."),
    ] = None,
    ledger: OptionalLedgerUrl = None,
    data: DataForLedger = None,
    config: ConfigPath = None,
    policy: PolicyPath = None,
    lifetimes: LifetimesPath = None,
    restricted: RestrictedPath = None,
    max_latency: Annotated[
        float | None,
        typer.Option(
            "--max-latency", min=0.001, help="Milliseconds that the slowest of a hundred answers may take."
        ),
    ] = None,
    at: At = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make the newest version of a tier's model the one that serves, if all checks pass.

    All reasons are printed and stored with the version. Exits with 1 unless every tier asked for is promoted.
    Where fused is worth less than the best tier of a single source, level 3 is answered by that.
    """
    from consentier.training.model_registry import CHALLENGER
    from consentier.training.promote import LATENCY_BUDGET, PROMOTED_TIERS
    from consentier.training.promote import promote as promote_tier
    from consentier.training.restricted import Restricted

    place = Restricted.beside(bundles) if restricted is None else Restricted(restricted)
    if not place.path.is_dir():
        raise DataError(f"{place.path}: there is no restricted directory: who is in a bundle is not known")
    registry = registry_of(bundles, config, data)
    wanted = chosen_tiers(tier or [])
    if not tier:
        wanted = [each for each in wanted if registry.aliased(each, CHALLENGER) is not None]
    if not wanted:
        raise DataError("no version is registered; 'consentier train' registers each bundle that it writes")
    with ledger_from(ledger, data, lifetimes) as opened:
        results = [
            promote_tier(
                registry,
                each,
                bundles=bundles,
                lineage=place.lineage(),
                ledger=opened,
                policy=Policy.default() if policy is None else Policy.load(policy),
                at=at or dt.datetime.now(dt.UTC),
                latency_budget=LATENCY_BUDGET if max_latency is None else max_latency,
                dry_run=dry_run,
            )
            for each in PROMOTED_TIERS
            if each in wanted
        ]
    if as_json:
        print_json({"dry_run": dry_run, "tiers": [dataclasses.asdict(result) for result in results]})
    else:
        for result in results:
            _print_promotion(result, registry, dry_run=dry_run)
    if not all(result.promoted for result in results):
        raise typer.Exit(CHECK_FAILED)


def rollback(
    tier: Annotated[OneTier, typer.Argument(metavar="TIER", help="Which tier.")],
    bundles: Bundles,
    config: ConfigPath = None,
    at: At = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make the version that served before serve again: if it is whole and not past a withdrawal deadline."""
    from consentier.training.promote import rollback as roll_back

    wanted = Tier(tier.value)
    registry = registry_of(bundles, config, None)
    result = roll_back(registry, wanted, bundles=bundles, at=at or dt.datetime.now(dt.UTC), dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **dataclasses.asdict(result)})
    else:
        _print_checks(f"{registry.name(wanted)}: version {result.version} back to {result.to}", result.checks)
        outcome = _outcome("rolled back", result.done, dry_run=dry_run)
        say(outcome, style="green" if result.done else "red")
    if not result.done:
        raise typer.Exit(CHECK_FAILED)


def registry_of(bundles: Path, config: Path | None, data: str | None) -> ModelRegistry:
    """The registry that the configuration of the training names."""
    from consentier.training.config import load_config
    from consentier.training.model_registry import ModelRegistry
    from consentier.training.track import has_store, store_client

    settings = load_config(config, data=data, environ=os.environ)
    if not has_store(settings.tracking, bundles):
        raise DataError(
            f"{bundles}: holds no mlflow.db with a record of runs; name the server in tracking.uri"
        )
    return ModelRegistry(store_client(settings.tracking, bundles), settings.tracking.experiment)


def _print_promotion(result: Promotion, registry: ModelRegistry, *, dry_run: bool) -> None:
    before = "" if result.before is None else f", champion {result.before}"
    version = "no version" if result.version is None else f"version {result.version}"
    _print_checks(f"{registry.name(Tier(result.tier))}: {version}{before}", result.checks)
    if result.checks:
        outcome = _outcome("promoted", result.promoted, dry_run=dry_run)
        say(outcome, style="green" if result.promoted else "red")
    if result.note:
        note(f"it would be: {result.note}" if dry_run else result.note)
    say()


def _print_checks(title: str, checks: Sequence[Check]) -> None:
    if not checks:
        say(title, style="bold")
        return
    rows = [[check.name, "yes" if check.passed else "NO", check.seen, check.needed] for check in checks]
    print_table(["check", "passed", "seen", "needed"], rows, title=title)


def _outcome(done: str, holds: bool, *, dry_run: bool) -> str:
    if dry_run:
        return f"would be {done}" if holds else f"would not be {done}"
    return done if holds else f"not {done}"
