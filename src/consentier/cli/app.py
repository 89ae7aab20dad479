"""The command line: one module per command, registered here with an example of its use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from consentier import __version__
from consentier.cli.demo import demo
from consentier.cli.doctor import doctor
from consentier.cli.evaluate import evaluate
from consentier.cli.import_data import import_data
from consentier.cli.inspect import inspect
from consentier.cli.output import guarded, set_debug
from consentier.cli.recommend import recommend
from consentier.cli.report import report
from consentier.cli.score import score
from consentier.cli.simulate import simulate
from consentier.cli.train import train
from consentier.cli.validate import validate

__all__ = ["app"]

app = typer.Typer(
    name="consentier",
    help="Recommendations that follow each customer's permission level.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 wrong input, 3 a package is missing, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EXAMPLES: dict[Callable[..., None], str] = {
    demo: "consentier demo --out demo-output",
    simulate: "consentier simulate shop --customers 4000 --seed 7",
    import_data: "consentier import online_retail downloads/online_retail shop",
    validate: "consentier validate shop --on-bad-rows drop",
    train: "consentier train shop --out bundles --tier all",
    evaluate: "consentier evaluate shop --out evaluation.json",
    report: "consentier report evaluation.json --out report.html",
    recommend: "consentier recommend --bundles bundles --session i00012,i00040 --permission none",
    score: "consentier score shop --bundles bundles --channel email --out recs.parquet",
    inspect: "consentier inspect bundles",
    doctor: "consentier doctor",
}

for _command, _example in _EXAMPLES.items():
    _name = "import" if _command is import_data else None  # ``import`` cannot be a function's name
    app.command(_name, epilog=f"Example: {_example}")(guarded(_command))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"consentier {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    set_debug(debug)
