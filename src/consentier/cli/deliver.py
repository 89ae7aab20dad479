"""``consentier deliver``: what may still be sent of a scored batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from consentier.cli.ledgers import DataForLedger, OptionalLedgerUrl, ledger_from
from consentier.cli.options import AsJson, At, LifetimesPath, PolicyPath, TableName
from consentier.cli.output import place_of, print_json, print_table, say
from consentier.consent import Policy


def deliver(
    recommendations: Annotated[
        str,
        typer.Argument(
            metavar="RECS",
            help="What 'consentier score' wrote: a file, a directory of parts, or the URL of a database.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The Parquet file to hand over.")],
    bundles: Annotated[
        Path, typer.Option("--bundles", help="The directory of the bundles, for their withdrawal deadlines.")
    ],
    ledger: OptionalLedgerUrl = None,
    data: DataForLedger = None,
    table: TableName = None,
    policy: PolicyPath = None,
    lifetimes: LifetimesPath = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Check every row of a scored batch against the ledger again, and write what may be sent.

    Of the batches in a database the one with the latest instant counts. A person's list goes out whole or not
    at all. --at is the time of sending; one that has passed counts as now.
    """
    from consentier.serving.deliver import deliver as deliver_file
    from consentier.serving.revocation import Revocations

    if not bundles.is_dir():
        raise typer.BadParameter(f"{bundles} is no directory", param_hint="'--bundles'")
    with ledger_from(ledger, data, lifetimes) as opened:
        summary = deliver_file(
            place_of(recommendations, table),
            opened,
            out=out,
            policy=Policy.default() if policy is None else Policy.load(policy),
            revocations=Revocations.open(bundles),
            at=at,
        )
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(summary)})
        return
    outcomes: list[list[object]] = [["handed over", summary.persons]]
    outcomes += [[f"held back: {reason}", count] for reason, count in summary.dropped.items()]
    print_table(["outcome", "persons"], outcomes)
    say(f"\n{summary.rows:,} rows written to {out}, {summary.dropped_rows:,} held back")
