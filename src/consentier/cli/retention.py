"""``consentier retention``: delete what is kept no longer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from consentier.cli.options import AgesAt, AsJson, instant_of
from consentier.cli.output import print_json, print_table, say


def retention(
    schedule: Annotated[Path, typer.Argument(metavar="FILE", help="The schedule (TOML).")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    at: AgesAt = None,
    as_json: AsJson = False,
) -> None:
    """Delete tables' rows, profiles, audit lines, outcomes, files, runs, bundles and keys as a schedule says.

    docs/retention.md shows a schedule. Run it daily.
    """
    from consentier.training.retention import apply_retention
    from consentier.training.retention_schedule import load_schedule

    instant = instant_of(at)
    outcomes = apply_retention(load_schedule(schedule), now=instant, dry_run=dry_run)
    if as_json:
        print_json([dataclasses.asdict(outcome) for outcome in outcomes])
        return
    print_table(
        ["what", "where", "would be deleted" if dry_run else "deleted"],
        [[outcome.what, outcome.where, outcome.deleted] for outcome in outcomes],
    )
    for outcome in outcomes:
        for told in outcome.kept:
            say(f"kept: {told}", style="yellow")
