"""``consentier report``: an evaluation as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from consentier.cli.options import AsJson
from consentier.cli.output import print_json, say
from consentier.errors import DataError


def report(
    evaluation: Annotated[
        Path, typer.Argument(metavar="EVALUATION", help="What 'consentier evaluate' wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    as_json: AsJson = False,
) -> None:
    """Write an evaluation as one HTML page: tables, figures and intervals, without scripts."""
    from consentier.training.report import write_report

    try:
        result = json.loads(evaluation.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{evaluation}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{evaluation}: is no JSON: {error}; 'consentier evaluate' writes it") from error
    if not isinstance(result, dict):
        raise DataError(f"{evaluation}: is no evaluation; 'consentier evaluate' writes one")
    try:
        write_report(out, result)
    except ValueError as error:
        raise DataError(f"{evaluation}: {error}") from error
    if as_json:
        print_json({"out": str(out)})
    else:
        say(f"written to {out}")
