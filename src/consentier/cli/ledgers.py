"""Which ledger a command asks: options, and the ledger that they name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consentier.cli.options import BadRows
from consentier.consent import Ledger, Lifetimes

if TYPE_CHECKING:
    from consentier.features.tables import ShopTables

__all__ = [
    "DataForLedger",
    "LedgerUrl",
    "OptionalLedgerUrl",
    "TrainingLedgerUrl",
    "ledger_at",
    "ledger_from",
    "lifetimes_in",
    "opened_ledger",
    "shop_and_ledger",
]

LedgerUrl = Annotated[
    str,
    typer.Option("--ledger", metavar="URL", help="The consent ledger: sqlite:///FILE or postgresql://…"),
]
OptionalLedgerUrl = Annotated[
    str | None,
    typer.Option("--ledger", metavar="URL", help="The consent ledger: sqlite:///FILE or postgresql://…"),
]
DataForLedger = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DATA", help="In place of --ledger: the shop's tables, with their consents."
    ),
]
TrainingLedgerUrl = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        metavar="URL",
        help="The consent ledger, sqlite:///FILE or postgresql://…; by default the tables consents and "
        "identities of DATA.",
    ),
]


@contextlib.contextmanager
def ledger_from(url: str | None, data: str | None, lifetimes: Path | None) -> Iterator[Ledger]:
    """The ledger at a URL, or that of a shop's tables; under a file's rules on how old grants may grow."""
    if (url is None) == (data is None):
        raise typer.BadParameter("name the ledger by --ledger URL, or the shop's tables by --data DATA")
    if url is not None:
        with ledger_at(url, lifetimes) as opened:
            yield opened
        return
    with shop_and_ledger(str(data), BadRows.ERROR, None, lifetimes) as (_, opened):
        yield opened


def ledger_at(url: str, lifetimes: Path | None) -> Ledger:
    """The ledger at a URL, for reading."""
    return Ledger.open(url, create=False, lifetimes=lifetimes_in(lifetimes))


def opened_ledger(
    url: str | None, lifetimes: Path | None
) -> contextlib.AbstractContextManager[Ledger | None]:
    """The ledger at a URL, if one is named."""
    if url is not None:
        return ledger_at(url, lifetimes)
    if lifetimes is not None:
        raise typer.BadParameter(
            "here --lifetimes needs --ledger: the tables of DATA are read under the default rules"
        )
    return contextlib.nullcontext()


@contextlib.contextmanager
def shop_and_ledger(
    data: str, on_bad_rows: BadRows, url: str | None, lifetimes: Path | None
) -> Iterator[tuple[ShopTables, Ledger]]:
    """A shop's tables with the ledger at a URL, which is opened before they are read, or else their own."""
    rules = lifetimes_in(lifetimes)
    with (
        contextlib.nullcontext() if url is None else Ledger.open(url, create=False, lifetimes=rules) as named
    ):
        from consentier.features.gate import ledger_of
        from consentier.features.tables import read_shop

        shop = read_shop(data, on_bad_rows=on_bad_rows.value)
        yield shop, ledger_of(shop, rules) if named is None else named


def lifetimes_in(path: Path | None) -> Lifetimes | None:
    """The rules of a file on how old grants may grow, if one is named."""
    return None if path is None else Lifetimes.load(path)
