"""``consentier drift``: do today's data still look like those that the bundles were fitted on?"""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Annotated

import typer

from consentier.cli.ledgers import TrainingLedgerUrl, shop_and_ledger
from consentier.cli.options import (
    AsJson,
    BadRows,
    BundlesPath,
    ConfigPath,
    Cutoff,
    LifetimesPath,
    OnBadRowsOption,
    PolicyPath,
    ShopData,
)
from consentier.cli.output import (
    CHECK_FAILED,
    NOT_JUDGED,
    print_json,
    print_table,
    require_file,
    say,
    write_json,
)
from consentier.consent import Policy


def drift(
    data: ShopData,
    bundles: BundlesPath,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the result to this file too, as JSON.")
    ] = None,
    config: ConfigPath = None,
    cutoff: Cutoff = None,
    policy: PolicyPath = None,
    ledger: TrainingLedgerUrl = None,
    lifetimes: LifetimesPath = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    as_json: AsJson = False,
) -> None:
    """Compare today's permitted data with those of the bundles.

    Permissions and rows count as of --cutoff, or now: not as of the configuration's cut-off.
    Exits with 1 if a threshold is breached; else with 4 if a bundle says nothing about its data, so that
    there is nothing to compare with.
    """
    from consentier.training.config import load_config
    from consentier.training.drift import drift as compare
    from consentier.training.drift_result import DRIFT_COLUMNS, drift_rows

    require_file(out)
    settings = load_config(config, data=data, environ=os.environ)
    with shop_and_ledger(data, on_bad_rows, ledger, lifetimes) as (shop, opened):
        result = compare(
            shop,
            bundles,
            settings.drift,
            # Not the configuration's cut-off, which is that of the bundles: the question is about now.
            at=cutoff or dt.datetime.now(dt.UTC),
            policy=None if policy is None else Policy.load(policy),
            ledger=opened,
        )
    if out is not None:
        write_json(out, result)
    if as_json:
        print_json(result)
    else:
        print_table(DRIFT_COLUMNS, drift_rows(result["checks"]))
        for text in result["not_judged"].values():
            say(f"\nnot judged: {text}", style="yellow")
    if result["breached"]:
        raise typer.Exit(CHECK_FAILED)
    if result["not_judged"]:
        raise typer.Exit(NOT_JUDGED)
