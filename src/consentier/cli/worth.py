"""``consentier worth``: what is consent worth?"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from consentier.cli.ledgers import TrainingLedgerUrl, shop_and_ledger
from consentier.cli.options import (
    AsJson,
    BadRows,
    ConfigPath,
    Cutoff,
    LifetimesPath,
    OnBadRowsOption,
    PolicyPath,
    ShopData,
)
from consentier.cli.output import name_of, print_json, print_table, require_file, say, write_json
from consentier.cli.settings import settings_of
from consentier.consent import Policy


class Every(enum.StrEnum):
    """The distance between two counts of the levels."""

    WEEK = "week"
    MONTH = "month"


def worth(
    data: ShopData,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("worth.html"),
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Write the figures to this file too, as JSON.")
    ] = None,
    min_group: Annotated[
        int, typer.Option("--min-group", min=20, help="Groups of fewer persons are withheld.")
    ] = 50,
    every: Annotated[
        Every, typer.Option("--every", help="How far apart levels are counted: a week, or 30 days.")
    ] = Every.MONTH,
    periods: Annotated[
        int, typer.Option("--periods", min=1, max=120, help="How often levels are counted at the most.")
    ] = 13,
    config: ConfigPath = None,
    cutoff: Cutoff = None,
    policy: PolicyPath = None,
    ledger: TrainingLedgerUrl = None,
    lifetimes: LifetimesPath = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    as_json: AsJson = False,
) -> None:
    """Show what each permission adds on the same customers, and how many customers stand at each level."""
    from consentier.training.consent_worth import consent_worth
    from consentier.training.consent_worth_report import LEVEL_NAMES, finding, render_worth
    from consentier.training.pages import write_page

    require_file(out)
    require_file(figures)
    settings = settings_of(config, data, cutoff)
    routing = None if policy is None else Policy.load(policy)
    with shop_and_ledger(data, on_bad_rows, ledger, lifetimes) as (shop, opened):
        result = consent_worth(
            shop,
            settings,
            policy=routing,
            ledger=opened,
            name=name_of(data),
            minimum_group=min_group,
            every=every.value,
            periods=periods,
        )
    write_page(out, render_worth(result))
    if figures is not None:
        write_json(figures, result)
    if as_json:
        print_json(result)
        return
    for design in result["designs"][:1]:
        say(f"{result['customers']:,} customers with both permissions, {design['name']}:")
        for row in design["rows"]:
            if row["metric"] == result["metric"]:
                say(f"  {finding(row)}")
        say()
    print_table(
        ["permitted", "customers"],
        [
            [LEVEL_NAMES[level], "withheld" if count is None else f"{count:,}"]
            for level, count in result["now"]["levels"].items()
        ],
        title=f"at {result['now']['at'][:10]}",
    )
    for text in result["notes"]:
        say(f"\nnote: {text}")
    say(f"\nwritten to {out}")
