"""The arguments and options that several commands have, each with its one help text."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from consentier.consent import Tier

__all__ = [
    "AgesAt",
    "AsJson",
    "At",
    "BadRows",
    "BundlesPath",
    "ConfigPath",
    "Cutoff",
    "EngineChoice",
    "EngineOption",
    "KeyringPath",
    "Kind",
    "KindOption",
    "KnownAt",
    "LifetimesPath",
    "MasterUrl",
    "OnBadRowsOption",
    "PersonTier",
    "PolicyPath",
    "ReceivedAt",
    "ReplaceFile",
    "ReplaceOut",
    "RestrictedPath",
    "RulesPath",
    "ShopData",
    "Subject",
    "TableName",
    "TierChoice",
    "TiersToTrain",
    "WithdrawnAt",
    "chosen_tiers",
    "instant_of",
]


class BadRows(enum.StrEnum):
    """What to do with rows that break the data contract."""

    ERROR = "error"
    DROP = "drop"


class EngineChoice(enum.StrEnum):
    """Where the work is done."""

    EMBEDDED = "embedded"
    SPARK = "spark"


class TierChoice(enum.StrEnum):
    """What can be trained."""

    SESSION = "session"
    ONLINE = "online"
    CRM = "crm"
    FUSED = "fused"
    POPULAR = "popular"
    ALL = "all"


class PersonTier(enum.StrEnum):
    """The tiers that are trained on rows of persons."""

    SESSION = "session"
    ONLINE = "online"
    CRM = "crm"
    FUSED = "fused"


class Kind(enum.StrEnum):
    """The kinds of subjects."""

    VISITOR = "visitor"
    CUSTOMER = "customer"


def _instant(text: str) -> dt.datetime:
    try:
        instant = dt.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no date and time in ISO 8601, such as 2026-01-31T12:00:00Z"
        ) from None
    return instant.replace(tzinfo=dt.UTC) if instant.tzinfo is None else instant.astimezone(dt.UTC)


def _time(name: str, meaning: str) -> Any:
    return typer.Option(name, parser=_instant, metavar="TIME", help=meaning)


ShopData = Annotated[
    str, typer.Argument(metavar="DATA", help="Directory of the shop's tables, or the URL of a database.")
]
BundlesPath = Annotated[Path, typer.Option("--bundles", help="The directory that 'consentier train' wrote.")]
KeyringPath = Annotated[
    Path | None,
    typer.Option("--keys", help="The keyring of the audit. By default keys.json in its directory."),
]
TiersToTrain = Annotated[
    list[TierChoice] | None,
    typer.Option("--tier", help="What to train; may be given more than once. By default all."),
]
ReplaceOut = Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")]
ReplaceFile = Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration (TOML). By default DATA/consentier.toml, if there is one."),
]
PolicyPath = Annotated[
    Path | None, typer.Option("--policy", help="Routing policy (TOML). By default the strict one.")
]
LifetimesPath = Annotated[
    Path | None,
    typer.Option("--lifetimes", help="How old grants may grow (TOML). By default as Consentier ships it."),
]
RulesPath = Annotated[
    Path | None, typer.Option("--rules", help="Business rules: a TOML file, see docs/rules.md.")
]
RestrictedPath = Annotated[
    Path | None,
    typer.Option("--restricted", help="The trainer's restricted directory. By default BUNDLES-restricted."),
]
Subject = Annotated[str, typer.Argument(metavar="SUBJECT", help="Id of the visitor or customer.")]
TableName = Annotated[
    str | None,
    typer.Option(
        "--table", metavar="NAME", help="With the URL of a database: the table; by default recommendations."
    ),
]
Cutoff = Annotated[
    dt.datetime | None,
    _time(
        "--cutoff",
        "Training cut-off, ISO 8601, in UTC unless it says otherwise; overrides the configuration.",
    ),
]
EngineOption = Annotated[
    EngineChoice,
    typer.Option("--engine", help="Where the work is done: in this process, or on Apache Spark."),
]
MasterUrl = Annotated[
    str | None,
    typer.Option(
        "--master",
        metavar="URL",
        help="Spark's master, such as local[4] or spark://HOST:7077. By default what Spark is configured to.",
    ),
]
KindOption = Annotated[
    Kind,
    typer.Option("--kind", help="Whether SUBJECT is a visitor (cookie, device) or a customer (account)."),
]
At = Annotated[
    dt.datetime | None,
    _time("--at", "The instant whose permissions and histories count, ISO 8601. By default now."),
]
ReceivedAt = Annotated[
    dt.datetime | None,
    _time("--at", "When the signal was received, ISO 8601: a grant takes effect then. By default now."),
]
WithdrawnAt = Annotated[
    dt.datetime | None,
    _time("--at", "When it was withdrawn, ISO 8601: the permission ends then. By default now."),
]
AgesAt = Annotated[
    dt.datetime | None,
    _time("--at", "The instant at which ages and deadlines are looked at, ISO 8601. By default now."),
]
KnownAt = Annotated[
    dt.datetime | None,
    _time("--known-at", "Use only what had been recorded by then, ISO 8601. By default all."),
]
OnBadRowsOption = Annotated[
    BadRows,
    typer.Option(
        "--on-bad-rows",
        help="Stop at a row that breaks the data contract, or leave such rows out and count them.",
    ),
]


def chosen_tiers(choices: Sequence[TierChoice]) -> list[Tier]:
    """The chosen tiers, each once, in the order of a full run."""
    wanted = set(choices) or {TierChoice.ALL}
    trained = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED, Tier.POPULAR)
    return [tier for tier in trained if TierChoice.ALL in wanted or TierChoice(tier.value) in wanted]


def instant_of(at: dt.datetime | None) -> dt.datetime:
    """The instant that an option names; now, where it names none."""
    return dt.datetime.now(dt.UTC) if at is None else at
