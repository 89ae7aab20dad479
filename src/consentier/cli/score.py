"""``consentier score``: recommendations for a whole channel, as a file, in parts, or in a database."""

from __future__ import annotations

import contextlib
import dataclasses
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
    TableName,
    place_of,
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
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="PLACE",
            help="A file, if it ends in .parquet; a directory of parts; or SQLAlchemy's URL of a database.",
        ),
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="Items per person.")] = 10,
    rules: Annotated[
        Path | None, typer.Option("--rules", help="Business rules: a TOML file, see docs/rules.md.")
    ] = None,
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
    at: At = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    as_json: AsJson = False,
) -> None:
    """Score everyone whom a channel may reach, and write the lists as Parquet or into a database.

    Customers without contact permission for the channel get no row.
    What may be read about the others is decided for each, as in the shop.

    A batch in a directory of parts, or in a database, can be killed and resumed: the rows are the same, each
    once. Permissions and histories are those of one instant, --at; the resumed batch keeps its own.
    """
    from consentier.features.tables import read_shop
    from consentier.serving import Recommender
    from consentier.serving.batch import catalogue_of, score_customers
    from consentier.serving.batch_table import BatchTable
    from consentier.serving.rules import Rules

    shop = read_shop(data, on_bad_rows=on_bad_rows.value)
    chosen = Rules() if rules is None else Rules.load(rules)
    recommender = Recommender.load(
        bundles, policy=policy, catalogue=catalogue_of(shop, chosen.columns), rules=chosen
    )
    warn_of_problems(recommender)
    place = place_of(out, table)
    with contextlib.ExitStack() as stack:
        opened = None if ledger is None else stack.enter_context(ledger_for(shop, ledger))
        summary = score_customers(
            shop, recommender, opened, channel=channel, at=at, n=n, out=place, workers=workers, resume=resume
        )
    shown = place if isinstance(place, BatchTable) else out
    if as_json:
        told = dataclasses.asdict(summary)
        print_json({"out": str(shown), **told, "at": summary.at.isoformat()})
        return
    outcomes = [[f"answered by {tier}", count] for tier, count in summary.by_tier.items()]
    outcomes += [[f"no row: {reason}", count] for reason, count in summary.skipped.items()]
    print_table(["outcome", "persons"], outcomes)
    say(f"\n{summary.rows:,} rows for {summary.customers:,} persons written to {shown}")
