"""``consentier score``: recommendations for a whole channel, as a file, in parts, or in a database."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consentier.addresses import shown_url
from consentier.cli.ledgers import TrainingLedgerUrl, opened_ledger, shop_and_ledger
from consentier.cli.options import (
    AsJson,
    At,
    BadRows,
    BundlesPath,
    EngineChoice,
    EngineOption,
    LifetimesPath,
    MasterUrl,
    OnBadRowsOption,
    PolicyPath,
    RulesPath,
    ShopData,
    TableName,
)
from consentier.cli.output import note, place_of, print_json, print_table, say
from consentier.cli.recommend import warn_of_problems
from consentier.cli.spark import require_no_master, spark_shop
from consentier.consent import Channel, Ledger, Tier

if TYPE_CHECKING:
    from consentier.features.tables import ShopTables
    from consentier.serving.batch import BatchSummary
    from consentier.serving.batch_table import BatchTable

_NOT_WRITTEN = frozenset({".csv", ".json", ".jsonl", ".tsv", ".xlsx"})
"""Endings of files that would become directories of parts."""


def score(
    data: ShopData,
    bundles: BundlesPath,
    channel: Annotated[Channel, typer.Option("--channel", help="Where the answers will go.")],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="PLACE",
            help="A file, if it ends in .parquet; a directory of parts; or SQLAlchemy's URL of a database.",
        ),
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="Items per person.")] = 10,
    rules: RulesPath = None,
    table: TableName = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a batch in parts, or in a database, that was interrupted."),
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads; by default all cores.")
    ] = None,
    policy: PolicyPath = None,
    ledger: TrainingLedgerUrl = None,
    lifetimes: LifetimesPath = None,
    at: At = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    engine: EngineOption = EngineChoice.EMBEDDED,
    master: MasterUrl = None,
    as_json: AsJson = False,
) -> None:
    """Score everyone whom a channel may reach, and write the lists as Parquet or into a database.

    Customers without contact permission for the channel get no row.
    What may be read about the others is decided for each, as in the shop.

    A batch in a directory of parts, or in a database, can be killed and resumed: the rows are the same, each
    once. Permissions and histories are those of one instant, --at; the resumed batch keeps its own.

    On Apache Spark, DATA and PLACE are directories that driver and executors share; see docs/spark.md.
    """
    if "://" not in out and Path(out).suffix.casefold() in _NOT_WRITTEN:
        raise typer.BadParameter(
            f"{shown_url(out)}: lists are written as Parquet: end the name in .parquet", param_hint="'--out'"
        )
    from consentier.serving.rules import Rules

    asked: dict[str, Any] = {
        "channel": channel,
        "at": at,
        "n": n,
        "resume": resume,
        "rules": None if rules is None else Rules.load(rules),
        "policy": policy,
    }
    if engine is EngineChoice.SPARK:
        embedded_only = {
            "--table": table is not None,
            "--workers": workers is not None,
            "--on-bad-rows drop": on_bad_rows is not BadRows.ERROR,
            f"--out {shown_url(out)}": "://" in out or out.endswith(".parquet"),
        }
        if refused := [name for name, given in embedded_only.items() if given]:
            raise typer.BadParameter(
                f"{', '.join(refused)}: for the embedded engine. On Spark --out is a directory of parts, the "
                "master says how many tasks work at once, and a bad row ends the run"
            )
        shown: object = out
        with opened_ledger(ledger, lifetimes) as opened:
            session, tables = spark_shop(data, master, on_bad_rows)
            from consentier.serving.spark_batch import score_on_spark

            summary = score_on_spark(session, tables, bundles, out=Path(out), ledger=opened, **asked)
    else:
        require_no_master(master)
        shown = place = place_of(out, table)
        summary = _embedded(data, bundles, place, on_bad_rows, workers, ledger, lifetimes, asked)
    if as_json:
        told = dataclasses.asdict(summary)
        print_json({"out": str(shown), **told, "at": summary.at.isoformat()})
        return
    outcomes = [[f"answered by {tier}", count] for tier, count in summary.by_tier.items()]
    outcomes += [[f"no row: {reason}", count] for reason, count in summary.skipped.items()]
    print_table(["outcome", "persons"], outcomes)
    if not summary.customers:
        note(
            f"nobody was given a list on the channel {channel}: look at the contact permissions, and at --at"
        )
    say(f"\n{summary.rows:,} rows for {summary.customers:,} persons written to {shown}")


def _embedded(
    data: str,
    bundles: Path,
    place: Path | BatchTable,
    on_bad_rows: BadRows,
    workers: int | None,
    ledger: str | None,
    lifetimes: Path | None,
    asked: dict[str, Any],
) -> BatchSummary:
    from consentier.features.tables import read_shop

    if ledger is None and lifetimes is None:  # the entries of the tables, as they are
        shop = read_shop(data, on_bad_rows=on_bad_rows.value)
        return _scored(shop, None, bundles, place, workers, asked)
    with shop_and_ledger(data, on_bad_rows, ledger, lifetimes) as (shop, opened):
        return _scored(shop, opened, bundles, place, workers, asked)


def _scored(
    shop: ShopTables,
    ledger: Ledger | None,
    bundles: Path,
    place: Path | BatchTable,
    workers: int | None,
    asked: dict[str, Any],
) -> BatchSummary:
    from consentier.serving import Recommender
    from consentier.serving.batch import catalogue_of, score_customers
    from consentier.serving.rules import Rules

    chosen = asked.pop("rules") or Rules()
    recommender = Recommender.load(
        bundles, policy=asked.pop("policy"), catalogue=catalogue_of(shop, chosen.columns), rules=chosen
    )
    warn_of_problems(recommender)
    _tell_of_another_shop(shop, bundles, recommender.scorers)
    return score_customers(shop, recommender, ledger, out=place, workers=workers, **asked)


def _tell_of_another_shop(shop: ShopTables, bundles: Path, tiers: Iterable[Tier]) -> None:
    """A bundle says of no shop that it is of that: its items do."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from consentier.models.bundle import open_bundle
    from consentier.training.evaluate_judge import items_of

    listed = shop.items["item_id"]
    for tier in tiers:
        known = pa.array(items_of(open_bundle(bundles / tier, verify=False)), pa.string())
        there = pc.sum(pc.is_in(known, value_set=pc.unique(listed))).as_py() or 0
        if len(listed) and 2 * there < len(known):
            note(
                f"{there:,} of the {len(known):,} items of the {tier} bundle stand in the table items: "
                "was it trained on another shop?"
            )
            return  # the other tiers would say the same
