"""``consentier consent …``: the ledger and what follows from it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consentier.addresses import shown_url
from consentier.cli.ledgers import LedgerUrl, ledger_at
from consentier.cli.options import (
    AsJson,
    At,
    ConfigPath,
    Kind,
    KindOption,
    KnownAt,
    LifetimesPath,
    ReceivedAt,
    RestrictedPath,
    WithdrawnAt,
)
from consentier.cli.output import CHECK_FAILED, note, print_json, print_table, say, short, written_beside
from consentier.consent import Channel, ConsentRecord, Ledger, Source
from consentier.consent.chain import head_bytes
from consentier.consent.signals import SIGNALS, read_signal
from consentier.errors import AuditError, DataError, LedgerError, TrackingError

if TYPE_CHECKING:
    from consentier.training.lineage import Lineage
    from consentier.training.withdrawal import ProfileStore

Subject = Annotated[str, typer.Argument(metavar="SUBJECT", help="Id of the visitor or customer.")]


class Withdrawable(enum.StrEnum):
    """The permissions that can be withdrawn."""

    ONLINE = "online"
    CRM = "crm"
    EMAIL = "contact:email"
    PRINT = "contact:print"
    CALL_CENTER = "contact:call_center"
    PUSH = "contact:push"


_STRANGER = "The ledger had no record of this subject: check the id, and --kind"


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
            received_at=_instant(at),
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
    instant = _instant(at)
    with ledger_at(ledger, lifetimes) as opened:
        visitor, customer = (subject, None) if kind is Kind.VISITOR else (None, subject)
        found = opened.resolve(visitor_id=visitor, customer_id=customer, at=instant, known_at=known_at)
        records = opened.records_of(subject, kind=kind.value)
        links = opened.links_of(subject, kind=kind.value)
    if as_json:
        print_json(
            {
                "at": instant.isoformat(),
                "resolution": _plain(dataclasses.asdict(found)),
                "records": [_shown(record) for record in records],
                "links": [_plain(dataclasses.asdict(link)) for link in links],
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
        say(_STRANGER, style="yellow")


def withdraw(
    subject: Subject,
    permission: Annotated[
        Withdrawable, typer.Option("--permission", "--source", help="Which permission is withdrawn.")
    ],
    ledger: LedgerUrl,
    kind: KindOption = Kind.CUSTOMER,
    bundles: Annotated[
        list[Path] | None,
        typer.Option(
            "--bundles", help="A directory of bundles that serves answers; may be given several times."
        ),
    ] = None,
    restricted: RestrictedPath = None,
    online_profiles: Annotated[
        list[str] | None, typer.Option("--online-profiles", help="A store of online profiles: path or URL.")
    ] = None,
    crm_profiles: Annotated[
        list[str] | None, typer.Option("--crm-profiles", help="A store of CRM profiles: path or URL.")
    ] = None,
    deadline_days: Annotated[
        float,
        typer.Option("--deadline-days", min=0, help="How long bundles that hold SUBJECT may still answer."),
    ] = 30,
    evidence: Annotated[str | None, typer.Option("--evidence", help="What proves the withdrawal.")] = None,
    registry: Annotated[
        bool,
        typer.Option(
            "--registry", help="Write the deadlines into the model registry too, for services elsewhere."
        ),
    ] = False,
    config: ConfigPath = None,
    lifetimes: LifetimesPath = None,
    at: WithdrawnAt = None,
    as_json: AsJson = False,
) -> None:
    """Withdraw a permission: ledger, links, profiles, and a deadline for the bundles that hold SUBJECT.

    From the moment of the record on every answer, delivery and training run denies. Can be run again safely.
    A contact permission (somebody unsubscribes) takes the record only: no bundle or profile rests on it.
    """
    from consentier.training.lineage import LineageError
    from consentier.training.withdrawal import bundles_in
    from consentier.training.withdrawal import withdraw as withdraw_permission

    channel = permission.value.removeprefix("contact:")
    if channel != permission.value:
        if kind is Kind.VISITOR:
            raise DataError(f"{permission.value} is a customer's permission: name the customer's id")
        _unsubscribe(subject, Channel(channel), ledger, lifetimes, _instant(at), evidence, as_json=as_json)
        return
    directories = bundles or []
    stores = {
        Source.ONLINE: [_store(place) for place in online_profiles or []],
        Source.CRM: [_store(place) for place in crm_profiles or []],
    }
    for directory in directories:
        _require_directory(directory)
    instant = _instant(at)
    with ledger_at(ledger, lifetimes) as opened:
        stranger = not opened.records_of(subject, kind=kind.value)
        try:
            done = withdraw_permission(
                opened,
                subject,
                kind=kind.value,
                source=Source(permission.value),
                at=instant,
                profiles=stores,
                bundles=((directory, _lineage(directory, restricted)) for directory in directories),
                deadline=dt.timedelta(days=deadline_days),
                evidence=evidence,
            )
        except (AuditError, LineageError) as error:  # indexes are opened when the withdrawal is on record
            raise DataError(
                f"the withdrawal is recorded, but who is in the bundles cannot be read: {error}; mend that "
                f"and run it again, at {instant.isoformat()}"
            ) from error
    if registry:
        try:
            _tell_registry(directories, config)
        except TrackingError as error:
            raise DataError(
                "the withdrawal is recorded, but the registry could not be told of the deadlines: "
                f"{error}, at {instant.isoformat()}"
            ) from error
    for directory in directories:
        if not any(bundles_in(directory)):
            note(
                f"{directory}: holds no bundle that can be opened, so none there got a deadline; if another "
                "directory serves, one that 'consentier train' wrote, run this again with it"
            )
    if as_json:
        print_json(_plain(dataclasses.asdict(done)))
        return
    rows = [
        ["new in the ledger", done.recorded],
        ["identity links dissolved", done.links_dissolved],
        ["profile rows purged", done.profile_rows_purged],
        ["bundles that hold, or may hold, the subject", len(done.bundles)],
    ]
    print_table(["", ""], rows)
    if stranger:
        say(_STRANGER, style="yellow")
    if done.deadline is not None:
        _print_bundles([dataclasses.asdict(bundle) for bundle in done.bundles])
        note(f"they stop answering at {done.deadline.isoformat()}; next: consentier forget, or train anew")


def _unsubscribe(
    subject: str,
    channel: Channel,
    ledger: str,
    lifetimes: Path | None,
    at: dt.datetime,
    evidence: str | None,
    *,
    as_json: bool,
) -> None:
    from consentier.training.withdrawal import withdraw_contact

    with ledger_at(ledger, lifetimes) as opened:
        stranger = not opened.records_of(subject, kind="customer")
        done = withdraw_contact(opened, subject, channel, at=at, evidence=evidence)
    if as_json:
        print_json(_plain(dataclasses.asdict(done)))
        return
    print_table(["", ""], [["new in the ledger", done.recorded]])
    if stranger:
        say(_STRANGER, style="yellow")
    note(f"score writes no row for {channel}, and deliver holds back rows that were scored before")


def _tell_registry(directories: Sequence[Path], config: Path | None) -> None:
    """Bring the deadlines of some directories into the tags of the registered versions."""
    from consentier.cli.promote import registry_of
    from consentier.serving.loading import TIERS
    from consentier.serving.revocation import Revocations

    for directory in directories:
        registry, deadlines = registry_of(directory, config, None), Revocations.open(directory).current()
        for tier in TIERS:
            registry.note_deadlines(tier, deadlines)


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


def lineage(
    subject: Subject,
    bundles: Annotated[
        list[Path], typer.Option("--bundles", help="A directory of bundles; may be given several times.")
    ],
    kind: KindOption = Kind.CUSTOMER,
    restricted: RestrictedPath = None,
    as_json: AsJson = False,
) -> None:
    """Show which bundles were fitted on a subject's data.

    It names the bundles of which that cannot be told: they may hold anybody.
    """
    from consentier.training.withdrawal import bundles_in

    held, untold = [], []
    for directory in bundles:
        index = _lineage(directory, restricted)
        if index is None:
            raise DataError(
                f"{directory}: there is no lineage index beside it; name the trainer's --restricted directory"
            )
        held += [
            {"directory": str(directory), **dataclasses.asdict(bundle)}
            for bundle in index.bundles_of(kind.value, subject)
        ]
        told = index.legible()
        untold += [f"{directory / each.tier}" for each in bundles_in(directory) if each.digest not in told]
    for place in untold:
        (note if as_json else say)(
            f"{place}: may hold anybody: the index does not know it, or a key that named its members is gone"
        )
    if as_json:
        print_json(_plain(held))
    elif held:
        _print_bundles(held)
    else:
        say("no other bundle holds the subject" if untold else "no bundle holds the subject")


def _lineage(directory: Path, restricted: Path | None) -> Lineage | None:
    from consentier.training.restricted import Restricted as RestrictedDirectory

    _require_directory(directory)
    place = RestrictedDirectory.beside(directory) if restricted is None else RestrictedDirectory(restricted)
    return place.lineage() if place.path.is_dir() else None


def _require_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise DataError(f"{directory}: there is no such directory of bundles")


def _store(place: str) -> ProfileStore:
    """A store to purge. It is opened then: if that fails, the withdrawal is on record already."""
    if "://" not in place and not Path(place).exists():
        raise DataError(f"profiles {shown_url(place)}: no such profile store: name its file, or its URL")
    return _Unopened(place)


@dataclasses.dataclass(frozen=True)
class _Unopened:
    place: str

    def purge(self, subject: str) -> int:
        """Delete all that is stored of a subject; say how many rows it was."""
        from consentier.serving.profile_opening import open_profiles

        try:
            store = open_profiles(self.place, create=False)
        except ValueError as error:
            raise DataError(str(error)) from None
        try:
            return store.purge(subject)
        finally:
            store.close()


def _instant(at: dt.datetime | None) -> dt.datetime:
    return dt.datetime.now(dt.UTC) if at is None else at


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
    shown: dict[str, Any] = _plain(dataclasses.asdict(record))
    return shown


def _plain(value: Any) -> Any:
    """Plain values for JSON: times in ISO 8601, sets in order."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.isoformat() if isinstance(value, dt.datetime) else value


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


def _print_bundles(bundles: list[dict[str, Any]]) -> None:
    print_table(
        ["tier", "bundle", "training cut-off", "ledger position"],
        [
            [each["tier"], short(each["digest"]), each["cutoff"].isoformat(), each["ledger_position"]]
            for each in bundles
        ],
    )
