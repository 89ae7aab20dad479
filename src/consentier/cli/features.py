"""``consentier features``: what models are trained on, for the systems in which the data lie."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from consentier.cli.options import Cutoff, LifetimesPath, PersonTier, PolicyPath, instant_of
from consentier.consent import Policy, Tier


class DialectChoice(enum.StrEnum):
    """Whose SQL."""

    BIGQUERY = "bigquery"
    DATABRICKS = "databricks"
    DUCKDB = "duckdb"
    SNOWFLAKE = "snowflake"


class ShownChoice(enum.StrEnum):
    """What the query gives."""

    ROWS = "rows"
    VERDICTS = "verdicts"
    HOLDERS = "holders"


def sql(
    tier: Annotated[PersonTier, typer.Option("--tier", help="Whose rows.")],
    dialect: Annotated[DialectChoice, typer.Option("--dialect", help="Whose SQL.")],
    show: Annotated[
        ShownChoice,
        typer.Option(
            "--show",
            help="The rows that pass; how many rows got which verdict; or all whose data the tier may use.",
        ),
    ] = ShownChoice.ROWS,
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table",
            metavar="TABLE=NAME",
            help="What the warehouse calls a table of the data contract; may be given more than once.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="TABLE[.COLUMN]",
            help="An optional table or column that the shop does not have; may be given more than once.",
        ),
    ] = None,
    cutoff: Cutoff = None,
    policy: PolicyPath = None,
    lifetimes: LifetimesPath = None,
) -> None:
    """Print the consent gate of a tier as one SELECT, for the warehouse that holds the shop's tables.

    Nothing is read and nothing is run. Without --cutoff, permissions count as they are now.
    """
    from consentier.consent.lifetimes import Lifetimes
    from consentier.features.warehouse_sql import Dialect, Shown, gate_sql

    at = instant_of(cutoff)
    routing = Policy.default() if policy is None else Policy.load(policy)
    ages = Lifetimes.default() if lifetimes is None else Lifetimes.load(lifetimes)
    query = gate_sql(
        Tier(tier),
        cutoff=at,
        policy=routing,
        lifetimes=ages,
        dialect=Dialect(dialect),
        shown=Shown(show),
        names=dict(_named(each) for each in table or []),
        without=without or [],
    )
    typer.echo(f"-- {show} of the {tier} tier's gate, as permitted at {at.isoformat()}")
    typer.echo("-- times in microseconds since 1970")
    typer.echo(f"-- policy {_on_one_line(routing.version)}, lifetimes {_on_one_line(ages.version)}")
    typer.echo(f"{query};")


def _named(option: str) -> tuple[str, str]:
    name, equals, place = option.partition("=")
    if not equals:
        raise typer.BadParameter(f"--table {option}: say TABLE=NAME, such as events=web.events")
    return name, place


def _on_one_line(name: str) -> str:
    """A name that comes from a file does not end a comment."""
    return " ".join(name.split())
