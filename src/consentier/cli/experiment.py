"""``consentier ab``: what an experiment between versions of the bundles says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consentier.cli.options import AsJson
from consentier.cli.output import note, print_json, print_table, say, write_json

if TYPE_CHECKING:
    from consentier.training.experiment_report import ExperimentReport, Rate, Stratum


def report(
    log: Annotated[
        Path, typer.Argument(metavar="LOG", help="The directory of the outcome log, or one of its files.")
    ],
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="Which one, if LOG holds several.")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option("--control", help="The arm to compare with. By default the first by name."),
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", help="Of each interval, above 0 and below 1.")
    ] = 0.95,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the report there, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the arms of an experiment: clicks and purchases per impression, with intervals, by tier.

    Outcomes that name their answer stand apart from those that are only counted: their rates differ in kind.
    """
    from consentier.serving.outcomes import outcome_lines
    from consentier.training.experiment_report import experiment_report

    found = experiment_report(
        outcome_lines(log), experiment=experiment, control=control, confidence=confidence
    )
    if out is not None:
        write_json(out, found.to_dict())
    if as_json:
        print_json(found.to_dict())
        return
    _print(found)
    if out is not None:
        say(f"\nwritten to {out}")


def _print(found: ExperimentReport) -> None:
    say(
        f"{found.experiment}: {found.first_day} to {found.last_day}; intervals of {found.confidence:.0%}, "
        f"each by itself; differences from {found.control}"
    )
    for stratum in found.strata:
        say()
        _print_stratum(stratum)
    if found.unmatched_clicks or found.unmatched_purchases:
        note(
            f"left out, for no impression of theirs is in the log: {found.unmatched_clicks:,} answers with "
            f"clicks, {found.unmatched_purchases:,} with purchases"
        )


def _print_stratum(stratum: Stratum) -> None:
    differences = {each.arm: each for each in stratum.differences}
    rows = []
    for figures in stratum.arms:
        difference = differences.get(figures.arm)
        rows.append(
            [
                figures.arm,
                f"{figures.impressions:,}",
                f"{figures.clicks:,}",
                _rate(figures.click_rate),
                "-" if difference is None else _rate(difference.click_rate, signed=True),
                f"{figures.purchases:,}",
                _rate(figures.conversion_rate),
                "-" if difference is None else _rate(difference.conversion_rate, signed=True),
            ]
        )
    what = {"answers": "answers with an outcome, per answer shown", "counts": "outcomes per impression"}
    print_table(
        ["arm", "shown", "clicks", "click rate, %", "difference", "purchases", "conversion, %", "difference"],
        rows,
        title=f"{'all tiers' if stratum.tier == 'all' else stratum.tier}: {what[stratum.recorded]}",
    )


def _rate(rate: Rate, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    mean, low, high = (f"{100 * bound:{sign}.2f}" for bound in (rate.mean, rate.low, rate.high))
    return f"{mean} [{low}, {high}]"
