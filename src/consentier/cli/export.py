"""``consentier export``: all that is held of one subject, for the subject."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consentier.cli.ledgers import LedgerUrl, ledger_at
from consentier.cli.options import (
    At,
    KeyringPath,
    Kind,
    KindOption,
    LifetimesPath,
    RestrictedPath,
    instant_of,
)
from consentier.cli.output import note, print_json, require_file, write_json
from consentier.cli.replay import keyring_beside
from consentier.errors import DataError

if TYPE_CHECKING:
    from consentier.consent.records import SubjectKind
    from consentier.features.tables import ShopTables
    from consentier.serving.data_subject_export import Lineage, ProfileStore


def export(
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="The id of a visitor or customer.")],
    ledger: LedgerUrl,
    kind: KindOption = Kind.CUSTOMER,
    online_profiles: Annotated[
        str | None, typer.Option("--online-profiles", help="The store of online profiles: path or URL.")
    ] = None,
    crm_profiles: Annotated[
        str | None, typer.Option("--crm-profiles", help="The store of CRM profiles: path or URL.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Directory of the shop's tables, or the URL of a database.", metavar="DATA"
        ),
    ] = None,
    audit: Annotated[Path | None, typer.Option("--audit", help="The directory of the audit log.")] = None,
    bundles: Annotated[
        list[Path] | None,
        typer.Option("--bundles", help="A directory of bundles; may be given several times."),
    ] = None,
    restricted: RestrictedPath = None,
    keys: KeyringPath = None,
    lifetimes: LifetimesPath = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The JSON file to write; by default standard output.")
    ] = None,
    at: At = None,
) -> None:
    """Write all that is held of SUBJECT as JSON: records, links, profiles, tables' rows, decisions, bundles.

    A customer's export holds the data of devices that are lawfully linked at that instant, and of no others.
    """
    from consentier.consent.keyring import Keyring
    from consentier.serving.data_subject_export import AuditLog, export_subject

    require_file(out)
    with ledger_at(ledger, lifetimes) as opened:
        document = export_subject(
            subject,
            kind=kind.value,
            ledger=opened,
            at=instant_of(at),
            profiles=_stores(visitor=online_profiles, customer=crm_profiles),
            shop=None if data is None else _shop(data),
            audit=None
            if audit is None
            else AuditLog(audit, Keyring.open(keys or keyring_beside(audit), create=False)),
            lineage=None if bundles is None else _lineage(bundles, restricted),
        )
    if not document["subject"]["records"]:
        note("the ledger has no record of this subject: check the id, and --kind")
    if out is None:
        print_json(document)
    else:
        write_json(out, document, private=True)


def _shop(data: str) -> ShopTables:
    from consentier.features.tables import read_shop

    return read_shop(data)


def _stores(**places: str | None) -> dict[SubjectKind, ProfileStore]:
    from consentier.serving.profile_opening import open_profiles

    return {
        Kind(name).value: open_profiles(place, create=False)
        for name, place in places.items()
        if place is not None
    }


def _lineage(directories: list[Path], restricted: Path | None) -> Lineage:
    from consentier.training.restricted import Restricted

    if restricted is None:
        places = [Restricted.beside(directory) for directory in directories]
    else:
        places = [Restricted(restricted)]
    for place in places:
        if not place.path.is_dir():
            raise DataError(
                f"{place.path}: there is no lineage index; name the trainer's --restricted directory"
            )
    indexes = [place.lineage() for place in places]
    return lambda kind, subject: [held for index in indexes for held in index.bundles_of(kind, subject)]
