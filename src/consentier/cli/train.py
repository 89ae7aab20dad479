"""``consentier train``: from the shop's tables to bundles."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consentier.cli.ledgers import TrainingLedgerUrl, opened_ledger, shop_and_ledger
from consentier.cli.options import (
    AsJson,
    BadRows,
    ConfigPath,
    Cutoff,
    EngineChoice,
    EngineOption,
    LifetimesPath,
    MasterUrl,
    OnBadRowsOption,
    PolicyPath,
    ShopData,
    TiersToTrain,
    chosen_tiers,
)
from consentier.cli.output import name_of, note, print_json, print_table, say, short
from consentier.cli.settings import settings_of
from consentier.cli.spark import require_no_master, spark_shop
from consentier.consent import Policy, Tier
from consentier.errors import DataError

if TYPE_CHECKING:
    from consentier.training.config import Config
    from consentier.training.train import TrainingResult


def train(
    data: ShopData,
    out: Annotated[Path, typer.Option("--out", help="Where the bundles go, one directory per tier.")],
    tier: TiersToTrain = None,
    config: ConfigPath = None,
    cutoff: Cutoff = None,
    policy: PolicyPath = None,
    ledger: TrainingLedgerUrl = None,
    lifetimes: LifetimesPath = None,
    restricted: Annotated[
        Path | None,
        typer.Option(
            "--restricted",
            help="Where to keep what forgetting and lineage need of persons. By default OUT-restricted.",
        ),
    ] = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    engine: EngineOption = EngineChoice.EMBEDDED,
    master: MasterUrl = None,
    force: Annotated[bool, typer.Option("--force", help="Replace bundles that are there already.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train the tiers, each on the rows that it may read, and write one bundle per tier."""
    if out.is_file():
        raise DataError(f"{out}: is a file; name a directory for the bundles")
    settings = settings_of(config, data, cutoff)
    run: dict[str, Any] = {
        "tiers": chosen_tiers(tier or []),
        "policy": None if policy is None else Policy.load(policy),
        "force": force,
    }
    if engine is EngineChoice.SPARK:
        result = _on_spark(data, settings, out, restricted, on_bad_rows, master, ledger, lifetimes, run)
    else:
        require_no_master(master)
        result = _embedded(data, settings, out, restricted, on_bad_rows, ledger, lifetimes, run)
    tell_of_deadlines(result.out)
    if as_json:
        print_json({**dataclasses.asdict(result), "out": str(result.out)})
        return
    print_training(result)
    note(f"next: consentier recommend --bundles {out} --session ITEM,ITEM")


def _embedded(
    data: str,
    settings: Config,
    out: Path,
    restricted: Path | None,
    on_bad_rows: BadRows,
    ledger: str | None,
    lifetimes: Path | None,
    run: Mapping[str, Any],
) -> TrainingResult:
    from consentier.training.restricted import Restricted
    from consentier.training.train import train as train_bundles

    place = Restricted.beside(out) if restricted is None else Restricted(restricted)
    with shop_and_ledger(data, on_bad_rows, ledger, lifetimes) as (shop, opened):
        _warn_of_dropped(shop.report.failures)
        return train_bundles(shop, settings, out, ledger=opened, restricted=place, name=name_of(data), **run)


def _on_spark(
    data: str,
    settings: Config,
    out: Path,
    restricted: Path | None,
    on_bad_rows: BadRows,
    master: str | None,
    ledger: str | None,
    lifetimes: Path | None,
    run: Mapping[str, Any],
) -> TrainingResult:
    with opened_ledger(ledger, lifetimes) as opened:
        session, shop = spark_shop(data, master, on_bad_rows)
        from consentier.training.restricted import Restricted
        from consentier.training.spark_training import train_on_spark

        place = Restricted.beside(out) if restricted is None else Restricted(restricted.absolute())
        return train_on_spark(session, shop, settings, out, ledger=opened, restricted=place, **run)


def print_training(result: TrainingResult) -> None:
    """Print what a training run made, and what the consent gate kept out of it."""
    print_table(
        ["tier", "bundle", "seconds"],
        [[tier, short(digest), result.seconds.get(tier)] for tier, digest in result.digests.items()],
    )
    say()
    print_table(
        ["tier", "source", "rows in", "rows kept", "kept out, by first reason"],
        [
            [row["tier"], row["source"], row["rows_in"], row["rows_kept"], _reasons(row["excluded"])]
            for row in result.funnel
            if row["tier"] != Tier.POPULAR  # counts what online and crm may read
        ],
    )
    for tier, reason in result.skipped.items():
        say(f"\n{tier} was not trained: {reason}", style="yellow")
    say(f"\nbundles in {result.out}")
    if result.versions:
        versions = ", ".join(f"{tier} {number}" for tier, number in result.versions.items())
        say(f"registered as challengers, by version: {versions}")


def tell_of_deadlines(bundles: Path) -> None:
    """Say which bundles in place stop answering: a run gave again what holds somebody who is to be gone."""
    from consentier.serving.revocation import Revocations
    from consentier.training.withdrawal import bundles_in

    deadlines, now = Revocations.open(bundles).current().by_digest, dt.datetime.now(dt.UTC)
    for bundle in bundles_in(bundles):
        deadline = deadlines.get(bundle.digest)
        if deadline is None:
            continue
        when = "answers nobody" if deadline <= now else f"stops answering at {deadline.isoformat()}"
        note(
            f"the {bundle.tier} bundle {when}: it is the same as one that holds somebody who was forgotten, "
            "or whose permission has ended. Are their rows still in DATA, and permitted by the ledger up to "
            "the cut-off? Delete them, record the withdrawal, or move the cut-off; then run this again"
        )


def _reasons(excluded: Mapping[str, int]) -> str:
    ordered = sorted(excluded.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered) or "-"


def _warn_of_dropped(failures: Iterable[Any]) -> None:
    count = sum(failure.count for failure in failures)
    if count:
        note(f"{count:,} rows that break the data contract were left out; 'consentier validate' lists them")
