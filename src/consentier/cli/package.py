"""``consentier package``: the whole router as one MLflow model."""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from consentier.cli.options import AsJson, PolicyPath, ReplaceOut, RulesPath
from consentier.cli.output import note, print_json, print_table, say, short


def package(
    bundles: Annotated[
        Path, typer.Argument(metavar="BUNDLES", help="The directory that 'consentier train' wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The model directory to write.")],
    policy: PolicyPath = None,
    catalogue: Annotated[
        Path | None,
        typer.Option("--catalogue", help="What may be shown: an items table, CSV or Parquet."),
    ] = None,
    rules: RulesPath = None,
    days: Annotated[
        int,
        typer.Option("--days", min=1, max=3650, help="For how many days the copy answers."),
    ] = 30,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="Log the model into this MLflow store, too.")
    ] = None,
    experiment: Annotated[
        str, typer.Option("--experiment", help="The MLflow experiment to log it in.")
    ] = "consentier",
    register: Annotated[
        str | None,
        typer.Option("--register", help="Register it under this name; needs --tracking-uri."),
    ] = None,
    force: ReplaceOut = False,
    as_json: AsJson = False,
) -> None:
    """Write the router with its bundles as one MLflow model, for 'mlflow models serve' and Spark."""
    from consentier.training.config import TrackingConfig
    from consentier.training.package import log_model, write_model

    if register is not None and tracking_uri is None:
        raise typer.BadParameter("name the registry with --tracking-uri", param_hint="'--register'")
    model = write_model(
        bundles,
        out,
        policy=policy,
        catalogue=catalogue,
        rules=rules,
        answers_for=dt.timedelta(days=days),
        force=force,
    )
    for tier, problem in model.problems.items():
        note(f"the {tier} tier has no model: {problem}")
    logged = None
    if tracking_uri is not None:
        tracking = TrackingConfig(uri=tracking_uri, experiment=experiment)
        logged = log_model(model, tracking, out.parent, name="consentier-router", register=register)
    if as_json:
        print_json(
            {
                "out": str(out),
                "digests": dict(model.digests),
                "problems": dict(model.problems),
                "answers_until": model.answers_until.isoformat(),
                "logged": None if logged is None else dataclasses.asdict(logged),
            }
        )
        return
    rows = [[tier, short(digest)] for tier, digest in model.digests.items()]
    print_table(["tier", "bundle"], rows)
    say(f"\nwritten to {out}; it answers until {model.answers_until:%Y-%m-%d %H:%M} UTC")
    if logged is not None:
        say(f"logged as {logged.uri}" + (f", {register} version {logged.version}" if register else ""))
    say(f"serve it: mlflow models serve -m {out} --env-manager local --port 5000", style="dim")
