"""Which ledger a command asks: options, and the ledger that they name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from consentier.consent import Ledger

if TYPE_CHECKING:
    from consentier.features.tables import ShopTables

__all__ = [
    "DataForLedger",
    "LedgerUrl",
    "OptionalLedgerUrl",
    "TrainingLedgerUrl",
    "ledger_for",
    "ledger_from",
    "opened_ledger",
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
def ledger_from(url: str | None, data: str | None) -> Iterator[Ledger]:
    """The ledger at a URL, or that of a shop's tables."""
    if (url is None) == (data is None):
        raise typer.BadParameter("name the ledger by --ledger URL, or the shop's tables by --data DATA")
    if url is not None:
        with Ledger.open(url, create=False) as opened:
            yield opened
        return
    from consentier.features.tables import read_shop

    with ledger_for(read_shop(str(data)), None) as opened:
        yield opened


def opened_ledger(url: str | None) -> contextlib.AbstractContextManager[Ledger | None]:
    """The ledger at a URL, if one is named."""
    return contextlib.nullcontext() if url is None else Ledger.open(url, create=False)


@contextlib.contextmanager
def ledger_for(shop: ShopTables, url: str | None) -> Iterator[Ledger]:
    """The ledger at a URL, or else that of the shop's own tables."""
    if url is not None:
        with Ledger.open(url, create=False) as opened:
            yield opened
        return
    from consentier.features.gate import ledger_of

    yield ledger_of(shop)
