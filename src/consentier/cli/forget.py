"""``consentier forget``: subjects out of the bundles, exactly."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from consentier.cli.ledgers import TrainingLedgerUrl
from consentier.cli.output import (
    AsJson,
    BadRows,
    Kind,
    KindOption,
    OnBadRowsOption,
    note,
    print_json,
    print_table,
    say,
    short,
)
from consentier.consent import Ledger, Policy


def forget(
    subjects: Annotated[list[str], typer.Argument(metavar="SUBJECT...", help="Ids of those to forget.")],
    data: Annotated[
        str,
        typer.Option(
            "--data", help="The shop's tables, with the subjects' rows: a directory or the URL of a database."
        ),
    ],
    bundles: Annotated[
        Path,
        typer.Option(
            "--bundles",
            "--bundle",
            help="The directory that 'consentier train' wrote, or the bundle of one tier in it.",
        ),
    ],
    kind: KindOption = Kind.CUSTOMER,
    restricted: Annotated[
        Path | None,
        typer.Option(
            "--restricted", help="The trainer's restricted directory. By default BUNDLES-restricted."
        ),
    ] = None,
    ledger: TrainingLedgerUrl = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            help="Routing policy (TOML) that the bundles were fitted under. By default what the kept "
            "statistics say, else the strict one.",
        ),
    ] = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    as_json: AsJson = False,
) -> None:
    """Take subjects out of the bundles: each becomes, byte for byte, what a fit without them gives.

    It says per tier whether the subjects were subtracted or the tier had to be fitted again, and why.
    Run it before the subjects' rows are deleted.
    """
    from consentier.features.tables import read_shop
    from consentier.training.bundles import TRAINED_TIERS
    from consentier.training.forget import forget as forget_in_bundles
    from consentier.training.restricted import Restricted

    tiers = list(TRAINED_TIERS)
    out = bundles
    if (bundles / "manifest.json").is_file():
        out = bundles.absolute().parent
        tiers = [tier for tier in TRAINED_TIERS if tier == bundles.absolute().name]
    shop = read_shop(data, on_bad_rows=on_bad_rows.value)
    opening = contextlib.nullcontext() if ledger is None else Ledger.open(ledger, create=False)
    with opening as opened:
        result = forget_in_bundles(
            shop,
            [(kind.value, subject) for subject in subjects],
            out,
            Restricted.beside(out) if restricted is None else Restricted(restricted),
            ledger=opened,
            tiers=tiers,
            policy=None if policy is None else Policy.load(policy),
        )
    if as_json:
        print_json(dataclasses.asdict(result))
        return
    print_table(
        ["tier", "how", "before", "after", "items solved", "seconds"],
        [
            [each.tier, each.how, short(each.before), short(each.after), each.solved, each.seconds]
            for each in result.tiers
        ],
    )
    for each in result.tiers:
        if each.reason is not None and each.how != "unchanged":
            say(f"\n{each.tier} was {each.how}: {each.reason}", style="yellow")
    if kind is Kind.CUSTOMER:
        note("devices are subjects of their own: --kind visitor forgets what they did in the online models")
