"""``consentier retrain``: bundles brought to a later cut-off, from what the earlier fit counted."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from consentier.cli.ledgers import TrainingLedgerUrl, opened_ledger, shop_and_ledger
from consentier.cli.options import (
    AsJson,
    BadRows,
    BundlesPath,
    ConfigPath,
    Cutoff,
    EngineChoice,
    EngineOption,
    LifetimesPath,
    MasterUrl,
    OnBadRowsOption,
    PolicyPath,
    RestrictedPath,
    ShopData,
    TiersToTrain,
    chosen_tiers,
)
from consentier.cli.output import CHECK_FAILED, name_of, note, print_json, print_table, say, short
from consentier.cli.settings import settings_of
from consentier.cli.spark import require_no_master, spark_shop
from consentier.cli.train import tell_of_deadlines
from consentier.consent import Policy

if TYPE_CHECKING:
    from consentier.training.config import Config
    from consentier.training.restricted import Restricted
    from consentier.training.retrain import RetrainResult


def retrain(
    data: ShopData,
    bundles: BundlesPath,
    tier: TiersToTrain = None,
    config: ConfigPath = None,
    cutoff: Cutoff = None,
    policy: PolicyPath = None,
    ledger: TrainingLedgerUrl = None,
    lifetimes: LifetimesPath = None,
    restricted: RestrictedPath = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    engine: EngineOption = EngineChoice.EMBEDDED,
    master: MasterUrl = None,
    as_json: AsJson = False,
) -> None:
    """Bring the bundles to a new cut-off: each becomes, byte for byte, what 'consentier train' would make.

    Rows that changed are exchanged in the statistics of the earlier fit, where that is exact and less work;
    else the tier is fitted from scratch. It says which, and why. May be killed at any moment, and run again.
    Exit with 1 if the fit of a tier has no stable solution: its bundle stays as it was.
    """
    from consentier.training.restricted import Restricted
    from consentier.training.withdrawal import bundles_in

    settings = settings_of(config, data, cutoff)
    before = max((bundle.cutoff for bundle in bundles_in(bundles)), default=None)
    rows_before = _rows_before(bundles)
    place = Restricted.beside(bundles) if restricted is None else Restricted(restricted.absolute())
    run: dict[str, Any] = {
        "tiers": chosen_tiers(tier or []),
        "policy": None if policy is None else Policy.load(policy),
    }
    if engine is EngineChoice.SPARK:
        result = _on_spark(data, settings, bundles, place, on_bad_rows, master, ledger, lifetimes, run)
    else:
        require_no_master(master)
        result = _embedded(data, settings, bundles, place, on_bad_rows, ledger, lifetimes, run)
    _print(result, bundles, as_json=as_json)
    tell_of_deadlines(bundles)
    _tell_of_lost_rows(rows_before, _most_rows(result.training.funnel))
    _tell_of_the_cutoff(result, before, configured=cutoff is None and settings.training.cutoff is not None)
    if any(each.how == "unsolved" for each in result.tiers):
        raise typer.Exit(CHECK_FAILED)


def _print(result: RetrainResult, bundles: Path, *, as_json: bool) -> None:
    if as_json:
        told = dataclasses.asdict(result)
        print_json({**told, "training": {**told["training"], "out": str(bundles)}})
        return
    print_table(
        ["tier", "how", "bundle", "changed", "new", "gone", "items solved", "seconds"],
        [
            [
                each.tier, each.how, None if each.after is None else short(each.after),
                each.changed, each.new, each.gone, each.solved, each.seconds,
            ]
            for each in result.tiers
        ],
    )  # fmt: skip
    for each in result.tiers:
        if each.reason is not None:
            bad = each.how == "unsolved"
            how = "could not be fitted, and is as it was" if bad else f"was {each.how}"
            say(f"\n{each.tier} {how}: {each.reason}", style="red" if bad else "yellow")
        elif each.how == "incremental" and each.estimate is not None:
            say(f"\n{each.tier} was incremental: {each.estimate}")
    versions = result.training.versions
    if versions:
        say(f"\nregistered as challengers, by version: {', '.join(f'{t} {v}' for t, v in versions.items())}")
    late = ", ".join(tier for tier in versions if tier not in result.training.digests)
    if late:
        say(f"an earlier run was killed before it recorded these: {late}")


def _rows_before(bundles: Path) -> dict[str, int]:
    """How many rows came to the gate when the bundles were made, by source, as far as they say so."""
    from consentier.errors import BundleError
    from consentier.models.bundle import read_run
    from consentier.training.withdrawal import bundles_in

    told: list[Mapping[str, Any]] = []
    for each in bundles_in(bundles):
        try:
            told += read_run(bundles / each.tier).get("funnel", [])
        except BundleError:
            continue  # without facts there is nothing to compare with
    return _most_rows(told)


def _most_rows(funnel: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Rows that came in by source: of the tiers, the most."""
    most: dict[str, int] = {}
    for row in funnel:
        most[row["source"]] = max(most.get(row["source"], 0), row["rows_in"])
    return most


def _tell_of_lost_rows(before: Mapping[str, int], now: Mapping[str, int]) -> None:
    """A shop without one of its tables is a valid one, and trained on what is left."""
    for source, rows in sorted(now.items()):
        if 2 * rows < before.get(source, 0):
            note(
                f"{rows:,} rows of the source {source} came in, where there were {before[source]:,}: is a "
                "table missing? 'consentier drift' says what changed"
            )


def _tell_of_the_cutoff(result: RetrainResult, before: dt.datetime | None, *, configured: bool) -> None:
    """A cut-off that does not go on in time: rows that came meanwhile would be missed without a word."""
    now = result.training.cutoff
    if before is not None and now < before:
        note(
            f"the cut-off {now.isoformat()} lies before that of the bundles until now, {before.isoformat()}: "
            "they know less than they did, and do not take the place of champions of a later one"
        )
    elif configured and all(each.how == "unchanged" for each in result.tiers):
        note(
            f"nothing changed up to the cut-off {now.isoformat()}, which the configuration sets; --cutoff "
            "gives a later one"
        )


def _embedded(
    data: str,
    settings: Config,
    bundles: Path,
    restricted: Restricted,
    on_bad_rows: BadRows,
    ledger: str | None,
    lifetimes: Path | None,
    run: Mapping[str, Any],
) -> RetrainResult:
    from consentier.training.retrain import retrain as retrain_bundles

    with shop_and_ledger(data, on_bad_rows, ledger, lifetimes) as (shop, opened):
        return retrain_bundles(shop, settings, bundles, restricted, ledger=opened, name=name_of(data), **run)


def _on_spark(
    data: str,
    settings: Config,
    bundles: Path,
    restricted: Restricted,
    on_bad_rows: BadRows,
    master: str | None,
    ledger: str | None,
    lifetimes: Path | None,
    run: Mapping[str, Any],
) -> RetrainResult:
    with opened_ledger(ledger, lifetimes) as opened:
        session, shop = spark_shop(data, master, on_bad_rows)
        from consentier.training.spark_retraining import retrain_on_spark

        return retrain_on_spark(session, shop, settings, bundles, restricted, ledger=opened, **run)
