"""``consentier disclose``: records of processing and main parameters, generated from the policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consentier.cli.options import AsJson, LifetimesPath, PolicyPath, RulesPath
from consentier.cli.output import name_of, print_json, write_json, written_beside

if TYPE_CHECKING:
    from consentier.serving.disclosures import Kept
    from consentier.training.retention_schedule import Rule

_HOW_LONG = {
    "table": "{days:g} days",
    "profiles": "{days:g} days",
    "audit": "as each line says",
    "files": "{days:g} days after they were last written",
    "bundles": "until their withdrawal deadline",
    "mlflow": "{days:g} days after they ended",
    "keys": "{keep_days:g} days after they were followed by a new one",
}


def disclose(
    bundles: Annotated[
        Path | None,
        typer.Option("--bundles", help="The bundles that answer, for the main parameters of each tier."),
    ] = None,
    retention: Annotated[
        Path | None, typer.Option("--retention", help="The retention schedule (TOML).")
    ] = None,
    lifetimes: LifetimesPath = None,
    rules: RulesPath = None,
    trending_share: Annotated[
        float | None,
        typer.Option(
            "--trending-share",
            min=0.0,
            max=1.0,
            help="The share of the popular list that goes to trending items, where the service counts them.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write; by default standard output.")
    ] = None,
    policy: PolicyPath = None,
    as_json: AsJson = False,
) -> None:
    """Write the records of processing and each tier's main parameters, as Markdown or JSON.

    All of it is derived from policy, bundles, rules and schedules. What they do not say is listed, for you
    to add.
    """
    from consentier.consent import Policy
    from consentier.consent.lifetimes import Lifetimes
    from consentier.serving.disclosures import disclosures, to_markdown
    from consentier.serving.rules import Rules

    document = disclosures(
        Policy.default() if policy is None else Policy.load(policy),
        bundles=bundles,
        retention=() if retention is None else _schedule(retention),
        lifetimes=Lifetimes.default() if lifetimes is None else Lifetimes.load(lifetimes),
        rules=None if rules is None else Rules.load(rules),
        trending_share=trending_share,
    )
    if out is None:
        print_json(document) if as_json else typer.echo(to_markdown(document), nl=False)
    elif as_json:
        write_json(out, document)
    else:
        with written_beside(out) as beside:
            beside.write_text(to_markdown(document), "utf-8")


def _schedule(path: Path) -> list[Kept]:
    from consentier.serving.disclosures import Kept
    from consentier.training.retention_schedule import load_schedule

    return [Kept(rule.what, _where(rule), _how_long(rule)) for rule in load_schedule(path).keep]


def _where(rule: Rule) -> str:
    """What a rule is about, without this machine's directories, and without the password of an address."""
    from consentier.addresses import shown_url

    address = getattr(rule, "url", None) or getattr(rule, "uri", None)
    return name_of(str(getattr(rule, "path", "")) if address is None else shown_url(address))


def _how_long(rule: Rule) -> str:
    return _HOW_LONG[rule.what].format(**rule.model_dump())
