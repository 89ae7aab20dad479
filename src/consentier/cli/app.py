"""The command line: one module per command, registered here with an example of its use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from consentier import __version__
from consentier.cli import config, consent, experiment, features, withdrawal
from consentier.cli.deliver import deliver
from consentier.cli.demo import demo
from consentier.cli.disclose import disclose
from consentier.cli.doctor import doctor
from consentier.cli.drift import drift
from consentier.cli.evaluate import evaluate
from consentier.cli.export import export
from consentier.cli.exposure import exposure
from consentier.cli.forget import forget
from consentier.cli.import_data import import_data
from consentier.cli.inspect import inspect
from consentier.cli.output import guarded, set_debug
from consentier.cli.package import package
from consentier.cli.promote import promote, rollback
from consentier.cli.recommend import recommend
from consentier.cli.replay import replay
from consentier.cli.report import report
from consentier.cli.retention import retention
from consentier.cli.retrain import retrain
from consentier.cli.score import score
from consentier.cli.simulate import simulate
from consentier.cli.train import train
from consentier.cli.tune import tune
from consentier.cli.validate import validate
from consentier.cli.worth import worth
from consentier.logs import configured

__all__ = ["app"]

app = typer.Typer(
    name="consentier",
    help="Recommendations that follow each customer's permission level.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 wrong input, 3 a package is missing, "
    "4 nothing to judge by, 130 interrupted.",
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
    promote: "consentier promote --bundles bundles --ledger sqlite:///consents.db --dry-run",
    rollback: "consentier rollback fused --bundles bundles",
    retrain: "consentier retrain shop --bundles bundles",
    drift: "consentier drift shop --bundles bundles",
    tune: "consentier tune shop --tier crm --trials 40 --out tuned.toml",
    evaluate: "consentier evaluate shop --out evaluation.json",
    report: "consentier report evaluation.json --out report.html",
    worth: "consentier worth shop --out worth.html --figures worth.json",
    recommend: "consentier recommend --bundles bundles --session i00012,i00040 --permission none",
    score: "consentier score shop --bundles bundles --channel email --out recs.parquet",
    package: "consentier package bundles --out model --catalogue items.csv",
    deliver: (
        "consentier deliver recs.parquet --ledger sqlite:///consents.db --bundles bundles --out send.parquet"
    ),
    forget: "consentier forget c-42 --data shop --bundles bundles",
    replay: "consentier replay line.json --bundles bundles --inputs inputs.json",
    export: "consentier export c-42 --ledger sqlite:///consents.db",
    exposure: "consentier exposure --ledger sqlite:///consents.db --audit audit --bundles bundles",
    disclose: "consentier disclose --bundles bundles",
    retention: "consentier retention retention.toml --dry-run",
    inspect: "consentier inspect bundles",
    doctor: "consentier doctor",
}

_CONSENT_EXAMPLES: dict[Callable[..., None], str] = {
    consent.import_records: "consentier consent import shop --ledger sqlite:///consents.db",
    consent.record_signal: "consentier consent signal gpc 1 --subject v-9 --ledger sqlite:///consents.db",
    consent.show: "consentier consent show c-42 --ledger sqlite:///consents.db",
    withdrawal.withdraw: (
        "consentier consent withdraw c-42 --permission crm --ledger sqlite:///consents.db --bundles bundles"
    ),
    withdrawal.enforce: "consentier consent enforce --ledger sqlite:///consents.db --bundles bundles",
    consent.erase: "consentier consent erase c-42 --ledger sqlite:///consents.db",
    consent.verify: "consentier consent verify --ledger sqlite:///consents.db",
    consent.backup: "consentier consent backup consents-backup.db --ledger sqlite:///consents.db",
    consent.erased: "consentier consent erased erased.txt --ledger sqlite:///consents.db",
    consent.restore: (
        "consentier consent restore consents-backup.db --ledger sqlite:///restored.db --erased erased.txt"
    ),
    withdrawal.lineage: "consentier consent lineage c-42 --bundles bundles",
}

_CONFIG_EXAMPLES: dict[Callable[..., None], str] = {
    config.init: "consentier config init shop/consentier.toml",
    config.check: "consentier config check shop/consentier.toml",
    config.show: "CONSENTIER__CRM__NEIGHBOURS=300 consentier config show shop",
    config.schema: "consentier config schema",
}

_FEATURES_EXAMPLES: dict[Callable[..., None], str] = {
    features.sql: "consentier features sql --tier fused --dialect snowflake --cutoff 2026-11-01",
}

_AB_EXAMPLES: dict[Callable[..., None], str] = {
    experiment.report: "consentier ab report outcomes --control current",
}

# Names that a function cannot have, or had better not.
_NAMES: dict[Callable[..., None], str] = {
    import_data: "import",
    consent.import_records: "import",
    consent.record_signal: "signal",
}

_consent_app = typer.Typer(
    name="consent", help="The consent ledger and what follows from it.", no_args_is_help=True
)

_config_app = typer.Typer(name="config", help="The configuration of training.", no_args_is_help=True)

_features_app = typer.Typer(
    name="features", help="What models are trained on, where the data lie.", no_args_is_help=True
)

_ab_app = typer.Typer(name="ab", help="Experiments between versions of the bundles.", no_args_is_help=True)

for _group, _commands in (
    (app, _EXAMPLES),
    (_consent_app, _CONSENT_EXAMPLES),
    (_config_app, _CONFIG_EXAMPLES),
    (_features_app, _FEATURES_EXAMPLES),
    (_ab_app, _AB_EXAMPLES),
):
    for _command, _example in _commands.items():
        _name = _NAMES.get(_command, _command.__name__)
        _typed = _name if _group is app else f"{_group.info.name} {_name}"
        _group.command(_name, epilog=f"Example: {_example}")(guarded(_command, _typed))

app.add_typer(_consent_app)
app.add_typer(_config_app)
app.add_typer(_features_app)
app.add_typer(_ab_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"consentier {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    verbose: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, help="Say what happens; twice: in detail."),
    ] = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing but results and errors: no progress, no notes.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    set_debug(debug)
    context.with_resource(configured(-1 if quiet else verbose))
