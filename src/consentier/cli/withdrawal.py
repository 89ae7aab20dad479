"""``consentier consent withdraw``, ``enforce`` and ``lineage``: what a permission that ended takes along."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
from collections.abc import Iterator, Sequence
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
    LifetimesPath,
    PolicyPath,
    RestrictedPath,
    Subject,
    WithdrawnAt,
    instant_of,
)
from consentier.cli.output import STRANGER, note, plain, print_json, print_table, say, short
from consentier.consent import Channel, Policy, Source
from consentier.errors import AuditError, DataError, TrackingError

if TYPE_CHECKING:
    from consentier.serving.profile_base import ProfileStore
    from consentier.training.ended_permissions import JudgedBundle, PurgedProfiles
    from consentier.training.lineage import Lineage


class Withdrawable(enum.StrEnum):
    """The permissions that can be withdrawn."""

    ONLINE = "online"
    CRM = "crm"
    EMAIL = "contact:email"
    PRINT = "contact:print"
    CALL_CENTER = "contact:call_center"
    PUSH = "contact:push"


ServedBundles = Annotated[
    list[Path] | None,
    typer.Option("--bundles", help="A directory of bundles that serves answers; may be given several times."),
]
DeadlineDays = Annotated[
    float,
    typer.Option(
        "--deadline-days", min=0, help="How long bundles that hold the subject may still answer, in days."
    ),
]
OnlineProfiles = Annotated[
    list[str] | None, typer.Option("--online-profiles", help="A store of online profiles: path or URL.")
]
CrmProfiles = Annotated[
    list[str] | None, typer.Option("--crm-profiles", help="A store of CRM profiles: path or URL.")
]
ToRegistry = Annotated[
    bool,
    typer.Option(
        "--registry", help="Write the deadlines into the model registry too, for services elsewhere."
    ),
]


def withdraw(
    subject: Subject,
    permission: Annotated[
        Withdrawable, typer.Option("--permission", "--source", help="Which permission is withdrawn.")
    ],
    ledger: LedgerUrl,
    kind: KindOption = Kind.CUSTOMER,
    bundles: ServedBundles = None,
    restricted: RestrictedPath = None,
    online_profiles: OnlineProfiles = None,
    crm_profiles: CrmProfiles = None,
    deadline_days: DeadlineDays = 30,
    evidence: Annotated[str | None, typer.Option("--evidence", help="What proves the withdrawal.")] = None,
    registry: ToRegistry = False,
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
    from consentier.training.withdrawal import withdraw as withdraw_permission

    instant = instant_of(at)
    channel = permission.value.removeprefix("contact:")
    if channel != permission.value:
        if kind is Kind.VISITOR:
            raise DataError(f"{permission.value} is a customer's permission: name the customer's id")
        _unsubscribe(subject, Channel(channel), ledger, lifetimes, instant, evidence, as_json=as_json)
        _tell_ahead(instant, "")
        return
    directories = bundles or []
    stores = {
        Source.ONLINE: [_store(place) for place in online_profiles or []],
        Source.CRM: [_store(place) for place in crm_profiles or []],
    }
    for directory in directories:
        _require_directory(directory)
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
    _tell_empty(directories)
    _tell_ahead(
        instant,
        "; what is stored until then is purged by 'consentier consent enforce', or by this command, run "
        "again then",
    )
    if as_json:
        print_json(plain(dataclasses.asdict(done)))
        return
    rows = [
        ["new in the ledger", done.recorded],
        ["identity links dissolved", done.links_dissolved],
        ["profile rows purged", done.profile_rows_purged],
        ["bundles that hold, or may hold, the subject", len(done.bundles)],
    ]
    print_table(["", ""], rows)
    if stranger:
        say(STRANGER, style="yellow")
    if done.deadline is not None:
        _print_bundles([dataclasses.asdict(bundle) for bundle in done.bundles])
        note(f"they stop answering at {done.deadline.isoformat()}; next: consentier forget, or train anew")


def enforce(
    ledger: LedgerUrl,
    bundles: ServedBundles = None,
    restricted: RestrictedPath = None,
    online_profiles: OnlineProfiles = None,
    crm_profiles: CrmProfiles = None,
    deadline_days: DeadlineDays = 30,
    policy: PolicyPath = None,
    lifetimes: LifetimesPath = None,
    registry: ToRegistry = False,
    config: ConfigPath = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Where a permission has ended, however it ended: a deadline for bundles, and profiles are purged.

    'consent withdraw' does so at once. Run this each day for what comes to the ledger in other ways: signals,
    objections, lapses, imports, parental consent, erasures. Each bundle that holds somebody who permits it no
    more gets a deadline; one that stands is never prolonged.
    """
    from consentier.training.ended_permissions import purge_ended, set_deadlines

    directories, instant = bundles or [], instant_of(at)
    places = [(Source.ONLINE, online_profiles or []), (Source.CRM, crm_profiles or [])]
    stores = [(source, _store(place)) for source, named in places for place in named]
    if not directories and not stores:
        raise typer.BadParameter("name what to look through: --bundles, --online-profiles or --crm-profiles")
    with ledger_at(ledger, lifetimes) as opened:
        judged = set_deadlines(
            opened,
            bundles=[(directory, _lineage(directory, restricted)) for directory in directories],
            policy=Policy.default() if policy is None else Policy.load(policy),
            at=instant,
            deadline=dt.timedelta(days=deadline_days),
        )
        purged = []
        for source, unopened in stores:
            with unopened.opened() as store:
                purged.append(purge_ended(opened, store, source=source, at=instant))
    if registry:
        try:
            _tell_registry(directories, config)
        except TrackingError as error:
            raise DataError(
                f"the deadlines stand beside the bundles, but the registry could not be told of them: {error}"
            ) from error
    _tell_empty(directories)
    if as_json:
        print_json(
            plain(
                {
                    "bundles": [dataclasses.asdict(bundle) for bundle in judged],
                    "profiles": [dataclasses.asdict(store) for store in purged],
                }
            )
        )
        return
    _print_judged(judged)
    _print_purged(purged)


def _print_judged(judged: Sequence[JudgedBundle]) -> None:
    rows: list[list[object]] = [
        [
            bundle.tier if bundle.served else f"{bundle.tier}, replaced",
            short(bundle.digest),
            bundle.members,
            "?" if bundle.problem else bundle.ended,
            "-" if bundle.deadline is None else bundle.deadline.isoformat(timespec="seconds"),
        ]
        for bundle in judged
    ]
    if rows:
        print_table(["tier", "bundle", "subjects", "ended", "stops answering at"], rows)
    for bundle in judged:
        if bundle.problem:
            note(f"{bundle.directory}/{bundle.tier}: may hold anybody: {bundle.problem}")
    if any(bundle.served and bundle.deadline is not None for bundle in judged):
        note("next: consentier retrain, which leaves out whose permission has ended, or consentier forget")


def _print_purged(purged: Sequence[PurgedProfiles]) -> None:
    if purged:
        rows = [[store.place, store.subjects, store.rows] for store in purged]
        print_table(["profiles", "subjects purged", "rows"], rows)
    for store in purged:
        if store.unknown:
            note(
                f"{store.place}: {store.unknown:,} subjects are unknown to the ledger and were kept: if it "
                "is the right ledger, they were stored without permission"
            )


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
        print_json(plain(dataclasses.asdict(done)))
        return
    print_table(["", ""], [["new in the ledger", done.recorded]])
    if stranger:
        say(STRANGER, style="yellow")
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
        print_json(plain(held))
    elif held:
        _print_bundles(held)
    else:
        say("no other bundle holds the subject" if untold else "no bundle holds the subject")


def _lineage(directory: Path, restricted: Path | None) -> Lineage | None:
    from consentier.training.restricted import Restricted as RestrictedDirectory

    _require_directory(directory)
    place = RestrictedDirectory.beside(directory) if restricted is None else RestrictedDirectory(restricted)
    return place.lineage() if place.path.is_dir() else None


def _tell_ahead(instant: dt.datetime, what_follows: str) -> None:
    if instant > instant_of(None):
        note(f"the permission goes on until {instant.isoformat()}, which is ahead{what_follows}")


def _tell_empty(directories: Sequence[Path]) -> None:
    from consentier.training.withdrawal import bundles_in

    for directory in directories:
        if not any(bundles_in(directory)):
            note(
                f"{directory}: holds no bundle that can be opened, so none there got a deadline; if another "
                "directory serves, one that 'consentier train' wrote, run this again with it"
            )


def _require_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise DataError(f"{directory}: there is no such directory of bundles")


def _store(place: str) -> _Unopened:
    """A store to purge. It is opened then: if that fails, the withdrawal is on record already."""
    if "://" not in place and not Path(place).exists():
        raise DataError(f"profiles {shown_url(place)}: no such profile store: name its file, or its URL")
    return _Unopened(place)


@dataclasses.dataclass(frozen=True)
class _Unopened:
    place: str

    def purge(self, subject: str) -> int:
        """Delete all that is stored of a subject; say how many rows it was."""
        with self.opened() as store:
            return store.purge(subject)

    @contextlib.contextmanager
    def opened(self) -> Iterator[ProfileStore]:
        """The store, closed at the end."""
        from consentier.serving.profile_opening import open_profiles

        try:
            store = open_profiles(self.place, create=False)
        except ValueError as error:
            raise DataError(str(error)) from None
        with contextlib.closing(store):
            yield store


def _print_bundles(bundles: list[dict[str, Any]]) -> None:
    print_table(
        ["tier", "bundle", "training cut-off", "ledger position"],
        [
            [each["tier"], short(each["digest"]), each["cutoff"].isoformat(), each["ledger_position"]]
            for each in bundles
        ],
    )
