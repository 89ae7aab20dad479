"""``consentier consent …``: what the ledger holds, and its backups."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from consentier.cli.ledgers import LedgerUrl, ledger_at
from consentier.cli.options import (
    AsJson,
    At,
    Kind,
    KindOption,
    KnownAt,
    LifetimesPath,
    ReceivedAt,
    Subject,
    instant_of,
)
from consentier.cli.output import (
    CHECK_FAILED,
    STRANGER,
    note,
    plain,
    print_json,
    print_table,
    say,
    written_beside,
)
from consentier.consent import ConsentRecord, Ledger
from consentier.consent.chain import head_bytes
from consentier.consent.signals import SIGNALS, read_signal
from consentier.errors import DataError, LedgerError


def import_records(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="A directory with the tables consents and identities (Parquet or CSV)."
        ),
    ],
    ledger: LedgerUrl,
    as_json: AsJson = False,
) -> None:
    """Import consent records and identity links into a ledger, which is made if it is missing.

    What the ledger holds already is passed over, so an import can be run again.
    """
    from consentier.features.ledger_tables import import_tables

    with Ledger.open(ledger) as opened:
        imported = import_tables(opened, data)
    if as_json:
        print_json(dataclasses.asdict(imported))
        return
    print_table(["", "entries"], [[name, count] for name, count in dataclasses.asdict(imported).items()])
    if imported.record_ids_conflicting:
        say(
            "\nA record id that stands for several decisions denies what each of them speaks of: give every "
            "decision an id of its own",
            style="yellow",
        )


def record_signal(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="tcf, gpp, gpc, shopify, salesforce, …")],
    payload: Annotated[
        str, typer.Argument(metavar="PAYLOAD", help="The signal: text, JSON, @FILE, or - for standard input.")
    ],
    subject: Annotated[str, typer.Option("--subject", help="Id of the visitor or customer who sent it.")],
    ledger: LedgerUrl,
    subject_kind: KindOption = Kind.VISITOR,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the kind, as text or JSON, longest_delay in seconds; may be given several "
            "times.",
        ),
    ] = None,
    at: ReceivedAt = None,
    as_json: AsJson = False,
) -> None:
    """Read one consent signal and append what it says to the ledger, which is made if it is missing.

    A signal that cannot be read is recorded as a denial, with the reason.
    """
    try:
        records = read_signal(
            kind,
            _payload(kind, payload),
            subject_id=subject,
            subject_kind=subject_kind.value,
            received_at=instant_of(at),
            **_settings(settings or []),
        )
    except TypeError as error:
        raise DataError(
            f"--set: {error} (write a text that looks like a number in quotes: --set 'NAME=\"2026\"')"
        ) from error
    with Ledger.open(ledger) as opened:
        new = opened.append(records)
    if as_json:
        print_json({"new": new, "records": [_shown(record) for record in records]})
        return
    _print_records(records)
    told = [json.loads(record.evidence or "{}").get("reason", "") for record in records]
    for reason in sorted({text for text in told if text.startswith("refused: ")}):
        say(f"recorded as denied: {reason.removeprefix('refused: ')}", style="yellow")
    say(f"\n{new} of {len(records)} new in the ledger")


def show(
    subject: Subject,
    ledger: LedgerUrl,
    kind: KindOption = Kind.CUSTOMER,
    at: At = None,
    known_at: KnownAt = None,
    lifetimes: LifetimesPath = None,
    as_json: AsJson = False,
) -> None:
    """Show how a subject stands at an instant, and the records that say so."""
    instant = instant_of(at)
    with ledger_at(ledger, lifetimes) as opened:
        visitor, customer = (subject, None) if kind is Kind.VISITOR else (None, subject)
        found = opened.resolve(visitor_id=visitor, customer_id=customer, at=instant, known_at=known_at)
        records = opened.records_of(subject, kind=kind.value)
        links = opened.links_of(subject, kind=kind.value)
    if as_json:
        print_json(
            {
                "at": instant.isoformat(),
                "resolution": plain(dataclasses.asdict(found)),
                "records": [_shown(record) for record in records],
                "links": [plain(dataclasses.asdict(link)) for link in links],
            }
        )
        return
    own = found.online if kind is Kind.VISITOR else found.crm
    rows: list[list[object]] = [["online" if kind is Kind.VISITOR else "crm", own]]
    rows += [["objection", found.objected], ["minor without parental consent", found.minor]]
    rows += [["may be contacted by", ", ".join(sorted(found.contact or ())) or "-"]]
    print_table([f"at {instant.isoformat()}", ""], rows)
    say()
    _print_records(records)
    say(f"\n{len(links)} identity links on record")
    if not records and not links:
        say(STRANGER, style="yellow")


def erase(
    subject: Subject,
    ledger: LedgerUrl,
    kind: KindOption = Kind.CUSTOMER,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete all that the ledger holds of a subject. The chain still verifies; the rest is gone for good.

    Without records a subject is a stranger: everything is denied, and objections are gone too. Withdraw and
    forget first.
    """
    if not yes and not typer.confirm(f"Erase all records and links of {kind.value} {subject}?", err=True):
        raise typer.Abort
    with Ledger.open(ledger, create=False) as opened:
        erased = opened.erase(subject, kind=kind.value)
    if as_json:
        print_json({"erased": erased})
    else:
        say(f"{erased} entries erased")


def verify(
    ledger: LedgerUrl,
    anchor: Annotated[
        str | None,
        typer.Option(
            "--anchor", metavar="POSITION:HEAD", help="What an earlier run printed; finds a cut-off end too."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that no entry of the ledger was altered, removed or re-ordered; exit with 1 if one was.

    Note what it prints as anchor somewhere else: without one, entries cut off the end leave no trace.
    """
    with Ledger.open(ledger, create=False) as opened:
        found = opened.verify(anchor=None if anchor is None else _anchor(anchor))
    if as_json:
        print_json(dataclasses.asdict(found))
    elif found.ok:
        say("the chain holds", style="green")
        print_table(["", ""], [["entries", found.entries], ["of these erased", found.erased]])
        say(f"anchor: {found.position}:{found.head}")
    else:
        say(f"altered: {found.problem}", style="red")
    if not found.ok:
        raise typer.Exit(CHECK_FAILED)


def backup(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; must not exist.")], ledger: LedgerUrl
) -> None:
    """Copy a ledger, at one instant and while it is written to, into one SQLite file."""
    with Ledger.open(ledger, create=False) as opened:
        opened.backup(out)
        say(f"{opened.position:,} entries copied to {out}")


def erased(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; an earlier list is replaced.")],
    ledger: LedgerUrl,
) -> None:
    """Write a list of what was erased, which names nobody: a restored backup needs it.

    Keep it beside the backups, and write it anew after each erasure.
    """
    with Ledger.open(ledger, create=False) as opened:
        commitments = opened.erased()
    with written_beside(out) as beside:
        beside.write_text("".join(f"{commitment}\n" for commitment in commitments), "utf-8")
    say(f"{len(commitments):,} erased entries listed in {out}")


def restore(
    backup_file: Annotated[Path, typer.Argument(metavar="FILE", help="What 'consent backup' wrote.")],
    ledger: LedgerUrl,
    erased_list: Annotated[
        Path | None, typer.Option("--erased", help="What 'consent erased' wrote: it is erased again.")
    ] = None,
) -> None:
    """Make a ledger, which must not exist or be empty, from a backup that verifies.

    Without the list of --erased, what was erased after the backup is back.
    """
    commitments = [] if erased_list is None else _commitments(erased_list)
    with Ledger.restore(backup_file, ledger) as restored:
        again = restored.erase_again(commitments)
        say(f"{restored.position:,} entries restored, {again:,} erased again")
    if erased_list is None:
        note(
            "what was erased after the backup is back: name the list that 'consent erased' wrote by --erased"
        )


def _payload(kind: str, told: str) -> object:
    """The payload as the reader of the kind wants it. What cannot be read is for that to refuse.

    So JSON stays as it came: parsed here, a key that is named twice would count once.
    """
    raw = told.encode("utf-8", "surrogateescape")
    if told == "-":
        raw = sys.stdin.buffer.read()
    elif told.startswith("@"):
        raw = Path(told[1:]).read_bytes()
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        return raw
    if kind not in SIGNALS or SIGNALS[kind].structured or not text.startswith("{"):
        return text
    try:
        return json.loads(text, object_pairs_hook=_headers)
    except (ValueError, RecursionError):
        return text


def _headers(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    headers = dict(pairs)
    if len(headers) != len(pairs):
        raise ValueError("a header is named twice")
    return headers


def _settings(pairs: list[str]) -> dict[str, Any]:
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise DataError(f"--set {pair!r}: write NAME=VALUE")
        try:
            settings[name] = json.loads(value)
            if name == "longest_delay":
                settings[name] = dt.timedelta(seconds=settings[name])
        except OverflowError as error:
            raise DataError(f"--set {pair!r}: no such length of time: {error}") from error
        except (ValueError, RecursionError):
            settings[name] = value
    return settings


def _commitments(path: Path) -> list[str]:
    """What a list of erased entries holds, checked before anything is restored that it must take back."""
    commitments = path.read_text("utf-8", "replace").split()
    for number, commitment in enumerate(commitments, start=1):
        try:
            head_bytes(commitment)
        except ValueError as error:
            raise DataError(
                f"{path}: entry {number}: {error}; name what 'consent erased' wrote. Nothing was restored"
            ) from error
    return commitments


def _anchor(text: str) -> tuple[int, str]:
    position, _, head = text.partition(":")
    try:
        head_bytes(head)
        if not (position.isascii() and position.isdigit()):
            raise ValueError(f"{position!r} is no position")
        return int(position), head
    except ValueError as error:
        raise LedgerError(
            f"--anchor {text!r}: write what 'consent verify' printed, POSITION:sha256:…"
        ) from error


def _shown(record: ConsentRecord) -> dict[str, Any]:
    shown: dict[str, Any] = plain(dataclasses.asdict(record))
    return shown


def _print_records(records: list[ConsentRecord]) -> None:
    print_table(
        ["permission", "state", "valid from", "valid to", "recorded", "collected by"],
        [
            [
                record.permission,
                record.state,
                record.valid_from.isoformat(),
                None if record.valid_to is None else record.valid_to.isoformat(),
                record.recorded_at.isoformat(),
                record.collected_by,
            ]
            for record in records
        ],
    )
