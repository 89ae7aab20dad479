"""``consentier score``: recommendations for a whole channel, as one file."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
from pathlib import Path
from typing import Annotated

import typer

from consentier.cli.ledgers import TrainingLedgerUrl, ledger_for
from consentier.cli.output import (
    AsJson,
    At,
    BadRows,
    OnBadRowsOption,
    PolicyPath,
    print_json,
    print_table,
    say,
)
from consentier.cli.recommend import warn_of_problems
from consentier.consent import Channel


def score(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Directory of the shop's tables, or the URL of a database.")
    ],
    bundles: Annotated[Path, typer.Option("--bundles", help="The directory that 'consentier train' wrote.")],
    channel: Annotated[Channel, typer.Option("--channel", help="Where the answers will go.")],
    out: Annotated[Path, typer.Option("--out", help="The Parquet file to write.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Items per person.")] = 10,
    rules: Annotated[
        Path | None, typer.Option("--rules", help="Business rules: a TOML file, see docs/rules.md.")
    ] = None,
    policy: PolicyPath = None,
    ledger: TrainingLedgerUrl = None,
    at: At = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    as_json: AsJson = False,
) -> None:
    """Score everyone whom a channel may reach, and write one Parquet file.

    Customers without contact permission for the channel get no row.
    What may be read about the others is decided one by one, as in the shop.
    """
    from consentier.features.tables import read_shop
    from consentier.serving import Recommender
    from consentier.serving.batch import catalogue_of, score_customers
    from consentier.serving.rules import Rules

    logging.getLogger("consentier.serving").addHandler(logging.NullHandler())
    shop = read_shop(data, on_bad_rows=on_bad_rows.value)
    chosen = Rules() if rules is None else Rules.load(rules)
    recommender = Recommender.load(
        bundles, policy=policy, catalogue=catalogue_of(shop, chosen.columns), rules=chosen
    )
    warn_of_problems(recommender)
    instant = dt.datetime.now(dt.UTC) if at is None else at
    with ledger_for(shop, ledger) as opened:
        summary = score_customers(shop, recommender, opened, channel=channel, at=instant, n=n, out=out)
    if as_json:
        print_json({"out": str(out), "at": instant.isoformat(), **dataclasses.asdict(summary)})
        return
    outcomes = [[f"answered by {tier}", count] for tier, count in summary.by_tier.items()]
    outcomes += [[f"no row: {reason}", count] for reason, count in summary.skipped.items()]
    print_table(["outcome", "persons"], outcomes)
    say(f"\n{summary.rows:,} rows for {summary.customers:,} persons written to {out}")
