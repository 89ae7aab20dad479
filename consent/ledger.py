"""The consent ledger: append-only, idempotent, independent of the order of arrival."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from consentier.addresses import shown_url
from consentier.consent.chain import head_bytes, head_text
from consentier.consent.entries import ErasedLogin, ErasedVersion, Remnant, link_of, record_of
from consentier.consent.lifetimes import Lifetimes
from consentier.consent.memory_store import MemoryStore
from consentier.consent.permissions import CONTACT_CHANNELS, Permission, Source
from consentier.consent.records import (
    OWNER,
    PARENTAL,
    PURPOSES,
    ConsentRecord,
    Link,
    SubjectKind,
    microseconds,
)
from consentier.consent.resolution import Resolution
from consentier.consent.store import Facts, LinkRow, Store, Verification, Version
from consentier.consent.timeline import (
    ALWAYS,
    NO_OBJECTION,
    Claims,
    Subject,
    Timeline,
    claims_of,
    combine,
    covered,
    either,
    held_together_since,
    inverted,
    minority,
    objections,
    refusals,
    timeline_of,
)
from consentier.errors import LedgerError

__all__ = ["Ledger", "LinkStanding", "Standing"]

_Entry = TypeVar("_Entry", ConsentRecord, Link)

_CHANNEL_OF = {f"contact:{channel}": str(channel) for channel in CONTACT_CHANNELS}


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """How a subject stands at one instant: permitted without interruption since, or why not.

    `since` is in microseconds since the Unix epoch; None where the permission does not hold.
    """

    since: int | None
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class LinkStanding:
    """A lawful link: to whom, and since when (microseconds) all that joining needs has held."""

    customer_id: str
    since: int


class _Facts(NamedTuple):
    """What is known of a visitor and a customer: their claims, and the device's logins."""

    position: int
    visitor: Claims
    customer: Claims
    links: Sequence[LinkRow]


class Ledger:
    """Consent records and identity links, and the only code that resolves them.

    Append-only. `append` is idempotent by `record_id`; the resolved state depends on the set of records, not
    on order, repetition or lateness. Resolving costs n log n in the records of the subjects asked for.

    This constructor makes a ledger in memory; `open` keeps one in a file or a database. A ledger may be used
    by several threads, and those in files and databases by several processes.

    Parameters
    ----------
    records, links
        What to begin with.
    lifetimes
        How old grants may grow (default: `Lifetimes.default`).
    """

    def __init__(
        self,
        records: Iterable[ConsentRecord] = (),
        links: Iterable[Link] = (),
        *,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self._store: Store = MemoryStore()
        self._lifetimes = lifetimes or Lifetimes.default()
        self._until: int | None = None
        self.append(records)
        self.append_links(links)

    # ---- Opening, keeping and checking -------------------------------------------------------------------

    @classmethod
    def open(cls, url: str, *, create: bool = True, lifetimes: Lifetimes | None = None) -> Ledger:
        """Open the ledger that is kept in a file or a database.

        Parameters
        ----------
        url
            ``sqlite:///consents.db`` for a file (four slashes for an absolute path), or a PostgreSQL URL.
        create
            Make the ledger if there is none, and bring an older one to this release's form.
        lifetimes
            How old grants may grow (default: `Lifetimes.default`).

        Raises
        ------
        LedgerError
            If there is no such ledger, it cannot be opened, is something else, or is one of a newer release.
        ValueError
            If the URL is of no kind that a ledger can be kept in.
        """
        return cls._over(_store_at(url, create=create), lifetimes or Lifetimes.default())

    @classmethod
    def restore(cls, path: str | Path, url: str, *, lifetimes: Lifetimes | None = None) -> Ledger:
        """Make a ledger from a backup. What was erased since must be erased again: see `erase_again`.

        Parameters
        ----------
        path
            What `backup` wrote. It is read only.
        url
            Where to make the ledger; there must be none, or an empty one.

        Raises
        ------
        LedgerError
            If the backup cannot be read or does not verify, or there are entries at `url` already.
        """
        from consentier.consent.sqlite_store import SqliteStore

        backup = SqliteStore(Path(path), create=False, read_only=True)
        try:
            found = backup.verify()
            if not found.ok:
                raise LedgerError(f"backup {path}: {found.problem}; it was not restored")
            store = _store_at(url, create=True)
            try:
                store.load(backup.entries())
            except BaseException:
                store.close()
                raise
        finally:
            backup.close()
        return cls._over(store, lifetimes or Lifetimes.default())

    @classmethod
    def _over(cls, store: Store, lifetimes: Lifetimes, until: int | None = None) -> Ledger:
        ledger = cls.__new__(cls)
        ledger._store, ledger._lifetimes, ledger._until = store, lifetimes, until
        return ledger

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the file or the connections. Views made by `as_of` share them."""
        self._store.close()

    @property
    def position(self) -> int:
        """The position of the last entry: how many records, links and notes of erasure were ever appended."""
        return self._store.about(None, None, self._until).position

    @property
    def answers_within(self) -> float | None:
        """Seconds after which a look-up gives up by itself; None where a server is asked, which may hang."""
        return self._store.answers_within

    @property
    def head(self) -> str:
        """The chain's value at `position`. Noted elsewhere, both are an anchor for `verify`."""
        return head_text(self._store.last(self._until)[1])

    @property
    def lifetimes(self) -> Lifetimes:
        """How old grants may grow."""
        return self._lifetimes

    @property
    def conflicts(self) -> list[str]:
        """Record ids that arrived with more than one content, sorted. They count as denials."""
        return self._store.conflicts(self._until)

    def as_of(self, position: int) -> Ledger:
        """A read-only view of what the ledger held at a position. What was erased since is gone from it too.

        Raises
        ------
        ValueError
            If the ledger has not come to that position.
        """
        if not 0 <= position <= self.position:
            raise ValueError(f"the ledger stands at position {self.position}: there is no {position}")
        return self._over(self._store, self._lifetimes, position)

    def verify(self, *, anchor: tuple[int, str] | None = None) -> Verification:
        """Check that no entry was altered, removed, put in or re-ordered, or erased without a note of it.

        Parameters
        ----------
        anchor
            `position` and `head` as they were noted earlier, in another place. Only an anchor shows that
            entries were cut off at the end, or that somebody who may write computed the chain anew.

        Raises
        ------
        LedgerError
            If the ledger cannot be read at all.
        ValueError
            If the anchor's head is none.

        Notes
        -----
        Two SHA-256 for each entry: about half a minute for a million.
        """
        self._require_whole("verified")
        return self._store.verify(anchor)

    def backup(self, path: str | Path) -> None:
        """Copy the ledger, as of one moment and while it is written to, into one new SQLite file.

        Cost: all entries are copied and indexed, much as they were appended.

        Raises
        ------
        LedgerError
            If the file exists or cannot be written; then there is no half of it.
        """
        from consentier.consent.sqlite_store import write_backup

        self._require_whole("backed up")
        write_backup(self._store.entries(), Path(path))

    # ---- Taking in ---------------------------------------------------------------------------------------

    def append(self, records: Iterable[ConsentRecord]) -> int:
        """Take in records, all or (if one is malformed) none; return how many were new.

        On return they are durable, as far as the place can make them so.
        """
        self._require_whole("appended to")
        return self._store.append(_all_of(ConsentRecord, records), ())

    def append_links(self, links: Iterable[Link]) -> int:
        """Take in identity links, all or (if one is malformed) none; return how many were new."""
        self._require_whole("appended to")
        return self._store.append((), _all_of(Link, links))

    def login(
        self, visitor_id: str, customer_id: str, *, at: dt.datetime, evidence: str | None = None
    ) -> bool:
        """Note that a visitor logged in as a customer, but only if the two may be joined at that instant.

        Without both permissions, under an objection, for a minor without parental consent, and where either
        refuses the other's permission or joining, nothing is written.

        Returns
        -------
        bool
            Whether the link is on record. A device on which another login was noted before joins nobody all
            the same: ask `resolve`.
        """
        link = Link(visitor_id, customer_id, at, evidence)
        found = self.resolve(visitor_id=visitor_id, customer_id=customer_id, at=at)
        if found.permission.level < 3 or "fusion" in found.denied_purposes:
            return False
        self.append_links([link])
        return True

    # ---- Forgetting --------------------------------------------------------------------------------------

    def erase(self, subject_id: str, *, kind: SubjectKind) -> int:
        """Delete what the ledger holds of a subject: its records and its links, content and salt.

        The subject is a stranger afterwards. No answer about anybody else changes: a record id that stood for
        several contents stays a denial for the others who bear it, and a device on which an erased customer
        was seen links to nobody else, now or later. The chain still verifies.

        Returns
        -------
        int
            How many entries were erased.
        """
        self._require_whole("erased from")
        facts = self._facts_about(kind, subject_id)
        versions = facts.visitor if kind == "visitor" else facts.customer
        entries, remnants = _without(versions, (kind, subject_id))
        links = facts.links if kind == "visitor" else self._store.links_of_customer(subject_id)
        if kind == "customer":
            remnants += _remnants_of(links)
        return self._erase([*entries, *(link.entry for link in links)], remnants)

    def dissolve_links(self, *, visitor_id: str | None = None, customer_id: str | None = None) -> int:
        """Delete the links of a visitor, of a customer, or between the two; return how many there were.

        The devices link to nobody afterwards, the same customer included: a trace without a name says that
        somebody was seen there, so that the next customer to log in is not joined with what this one browsed.
        """
        self._require_whole("erased from")
        if visitor_id is not None:
            links = self._store.about(visitor_id, None).links
        elif customer_id is not None:
            links = self._store.links_of_customer(customer_id)
        else:
            raise ValueError("say whose links to dissolve: visitor_id, customer_id or both")
        doomed = [
            link for link in links if link.customer_id is not None and customer_id in (None, link.customer_id)
        ]
        return self._erase([link.entry for link in doomed], _remnants_of(doomed))

    def erased(self) -> list[str]:
        """The commitments of all erased entries, in order. They hold nothing about anybody.

        Kept beside the backups, they say what must be erased again from a ledger that was restored. Cost: all
        entries are walked along.
        """
        return [
            head_text(entry.commitment) for entry in self._store.entries(0, self._until) if entry.row is None
        ]

    def erase_again(self, commitments: Iterable[str]) -> int:
        """Erase entries that `erased` told of another copy of this ledger; return how many there were.

        An entry is known by its commitment, so that none is mistaken for another whatever was appended since.
        Cost: all entries are walked along, and those that are found looked up.

        Raises
        ------
        ValueError
            If a commitment is none; then nothing is erased.
        """
        self._require_whole("erased from")
        doomed = {head_bytes(commitment) for commitment in commitments}
        found = [entry for entry in self._store.entries() if entry.row and entry.commitment in doomed]
        positions = {entry.position for entry in found}
        remnants: list[Remnant] = []
        for entry in found:
            row = entry.row or ()
            if entry.kind == "ConsentRecord":
                facts = self._facts_about(row[2], row[1])
                others = (
                    version
                    for version in (*facts.visitor, *facts.customer)
                    if version.record_id == row[0] and version.subject_kind and version.entry not in positions
                )
                if any(others):
                    remnants.append(ErasedVersion(row[0], row[7], entry.position))
            elif entry.kind == "Link":
                remnants += _remnants_of([LinkRow._make((*row[:3], entry.position, entry.position))])
        return self._erase(list(positions), remnants)

    def _erase(self, entries: Sequence[int], remnants: Sequence[Remnant]) -> int:
        return self._store.erase(sorted(entries), remnants, microseconds(dt.datetime.now(dt.UTC)))

    def _facts_about(self, kind: SubjectKind, subject_id: str) -> Facts:
        _require_kind(kind)
        if kind == "visitor":
            return self._store.about(subject_id, None, self._until)
        return self._store.about(None, subject_id, self._until)

    def _require_whole(self, what: str) -> None:
        if self._until is not None:
            raise LedgerError(f"a view of a ledger as of position {self._until} cannot be {what}")

    # ---- Telling what is held ----------------------------------------------------------------------------

    def records_of(self, subject_id: str, *, kind: SubjectKind) -> list[ConsentRecord]:
        """All stored records of a subject, all versions, in order of position."""
        _require_kind(kind)
        return [record_of(row) for row in self._store.rows_about(kind, subject_id, self._until)]

    def links_of(self, subject_id: str, *, kind: SubjectKind) -> list[Link]:
        """All stored links of a subject, in order of position."""
        _require_kind(kind)
        return [link_of(row) for row in self._store.link_rows_about(kind, subject_id, self._until)]

    def entries(self, after: int = 0) -> Iterator[tuple[int, ConsentRecord | Link]]:
        """All records and links after a position, in order; erased ones are left out."""
        for entry in self._store.entries(after, self._until):
            if entry.row is None:
                continue
            if entry.kind == "ConsentRecord":
                yield entry.position, record_of(entry.row)
            elif entry.kind == "Link":
                yield entry.position, link_of(entry.row)

    def columns(self, table: Literal["records", "links"]) -> dict[str, list[Any]]:
        """All records or links as columns of the data contract, for readers of many at once.

        Times are microseconds since the Unix epoch. Records have two columns more: `conflicting` (bool),
        whether their id stands for more than one content, and `first_recorded`, when any version of it was
        recorded first. A link whose `customer_id` is None says that the device was seen with a customer who
        was erased: such a device links to nobody.
        """
        if table not in ("records", "links"):
            raise ValueError(f"a ledger has the tables 'records' and 'links', not {table!r}")
        return self._store.columns(table, self._until)

    # ---- Resolving ---------------------------------------------------------------------------------------

    def permission(
        self,
        subject_id: str,
        *,
        kind: SubjectKind,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
        since: dt.datetime | None = None,
    ) -> Permission:
        """The permission that a subject's own records give at an instant.

        A visitor's records can give ONLINE, a customer's CRM; neither ever gives the other's.

        Parameters
        ----------
        subject_id, kind
            Whom to ask about.
        at
            The instant whose state is wanted.
        known_at
            Use only what had been recorded by then (default: all that is known).
        since
            Only what has been permitted without interruption since then (default: what is at the instant).

        Raises
        ------
        ValueError
            If `kind` is neither visitor nor customer.
        """
        instant, claims = microseconds(at), self._claims((kind, subject_id), _known(known_at))
        first = instant if since is None else microseconds(since)
        if kind == "visitor":
            held = _visitor_timeline(claims, instant).held_since(instant)
            return Permission.ONLINE if held is not None and held <= first else Permission.NONE
        held = _customer_timeline(claims, instant).held_since(instant)
        return Permission.CRM if held is not None and held <= first else Permission.NONE

    def resolve(
        self,
        *,
        visitor_id: str | None = None,
        customer_id: str | None = None,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
    ) -> Resolution:
        """Resolve visitor and customer of one request at one instant.

        An id that is missing or unknown denies its source. The link counts only while both permissions hold.
        A permission has been held since the last instant at which these two would have been denied it, be it
        by a refusal, an objection or the minority of the other.
        """
        instant, known = microseconds(at), _known(known_at)
        position, visitor, customer, links = self._facts(visitor_id, customer_id, known)
        of_visitor, of_customer = _visitor_timeline(visitor, instant), _customer_timeline(customer, instant)
        online, crm = of_visitor.at(instant), of_customer.at(instant)
        online_held = online.held and not refusals(customer, "online").at(instant).held
        crm_held = crm.held and not refusals(visitor, "crm").at(instant).held
        objected = _objected(visitor).at(instant).held or _objected(customer).at(instant).held
        minor = any(minority(claims, instant).at(instant).held for claims in (visitor, customer))
        granted, denied = _purposes((visitor, customer), instant)
        login = _sole_login(links, instant, known)
        linked = (
            login is not None
            and login.customer_id == customer_id
            and online_held
            and crm_held
            and not (objected or minor)
            and _held_since_login((of_visitor, of_customer, _joinable(visitor, customer)), login, instant)
        )
        reasons = (
            f"online: {online.reason}" if online.held == online_held else "online: refused by the customer",
            f"crm: {crm.reason}" if crm.held == crm_held else "crm: refused by the visitor",
        )
        return Resolution(
            online=online_held,
            crm=crm_held,
            linked=linked,
            objected=objected,
            minor=minor,
            contact=_contact(customer, instant),
            granted_purposes=granted,
            denied_purposes=denied,
            reasons=reasons,
            ledger_position=position,
            lifetimes_version=self._lifetimes.version,
            online_since=held_together_since((of_visitor, *_unopposed(customer, "online", instant)), instant),
            crm_since=held_together_since((of_customer, *_unopposed(visitor, "crm", instant)), instant),
        )

    def standing(
        self,
        source: Source,
        subject_id: str,
        *,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
        model_purpose: bool = False,
    ) -> Standing:
        """How one subject stands at an instant with the permission that lets a source be learnt from.

        Since when it has been held without interruption (the third law: only rows from then on may be used),
        or the reason why it is not.

        Parameters
        ----------
        model_purpose
            Whether the shop's notice asks separately for contributing to models.
        """
        claims, instant = self._claims((_owner_of(source), subject_id), _known(known_at)), microseconds(at)
        return _standing(_trainable(source, claims, model_purpose, instant), instant)

    def subjects(self, source: Source) -> Iterator[str]:
        """Ids of all subjects with records that could bear on a source."""
        return self._store.subjects(_owner_of(source), self._until)

    def lawful_links(
        self,
        *,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
        model_purpose: bool = False,
        fusion_purpose: bool = False,
    ) -> dict[str, LinkStanding]:
        """The links that hold at an instant and may be learnt from, by visitor (the seventh law).

        A link holds if both permissions have held without interruption since it was made, nobody refused, and
        no second customer was seen on the same device: a shared device links to nobody, whatever its other
        users permit, for else one user's withdrawal would let the device's data join another's.

        Parameters
        ----------
        model_purpose, fusion_purpose
            Whether the shop's notice asks separately for these purposes.

        Notes
        -----
        Up to three look-ups for each device that was ever linked. For all of them at once, and for training,
        `features.consent_intervals` is quicker.
        """
        instant, known = microseconds(at), _known(known_at)
        standings = {}
        for visitor_id in self._store.linked_devices(self._until):
            customer_id = self._linked_customer(visitor_id, instant, known)
            if customer_id is None:
                continue
            _, visitor, customer, _ = self._facts(visitor_id, customer_id, known)
            since = held_together_since(
                (
                    _trainable(Source.ONLINE, visitor, model_purpose, instant),
                    _trainable(Source.CRM, customer, model_purpose, instant),
                    _joinable(visitor, customer),
                    _fusion(visitor, customer, required=fusion_purpose),
                ),
                instant,
            )
            if since is not None:
                standings[visitor_id] = LinkStanding(customer_id, since)
        return standings

    def linked_visitors(
        self,
        customer_id: str,
        *,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
        fusion_purpose: bool = False,
    ) -> list[str]:
        """Devices whose data may be joined to a customer's, sorted. A refusal on one removes that one only.

        Parameters
        ----------
        fusion_purpose
            Whether the shop's notice asks separately for joining. A recorded refusal counts in either case.
        """
        return list(self.linked_since(customer_id, at=at, known_at=known_at, fusion_purpose=fusion_purpose))

    def linked_since(
        self,
        customer_id: str,
        *,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
        fusion_purpose: bool = False,
    ) -> dict[str, int]:
        """Since when the online permission of each of the `linked_visitors` has been held, in their order.

        In microseconds since the Unix epoch, and as `resolve` says it of visitor and customer.

        Parameters
        ----------
        fusion_purpose
            As for `linked_visitors`.
        """
        instant, known = microseconds(at), _known(known_at)
        customer = self._claims(("customer", customer_id), known)
        unopposed = _unopposed(customer, "online", instant)
        visitors = {link.visitor_id for link in self._store.links_of_customer(customer_id, self._until)}
        found = {}
        for visitor_id in sorted(visitors):
            if self._linked_customer(visitor_id, instant, known) != customer_id:
                continue
            visitor = self._claims(("visitor", visitor_id), known)
            since = held_together_since((_visitor_timeline(visitor, instant), *unopposed), instant)
            if since is not None and _fusion(visitor, customer, required=fusion_purpose).at(instant).held:
                found[visitor_id] = since
        return found

    def _linked_customer(self, visitor_id: str, instant: int, known: int | None) -> str | None:
        """The customer with whom a visitor's link has been lawful from the day that it was made, if any."""
        _, visitor, _, links = self._facts(visitor_id, None, known)
        login = _sole_login(links, instant, known)
        if login is None or login.customer_id is None:
            return None
        customer = self._claims(("customer", login.customer_id), known)
        needed = (
            _visitor_timeline(visitor, instant),
            _customer_timeline(customer, instant),
            _joinable(visitor, customer),
        )
        return login.customer_id if _held_since_login(needed, login, instant) else None

    def _facts(self, visitor_id: str | None, customer_id: str | None, known: int | None) -> _Facts:
        position, visitor, customer, links = self._store.about(visitor_id, customer_id, self._until)
        return _Facts(
            position,
            {} if visitor_id is None else claims_of(visitor, ("visitor", visitor_id), known, self._lifetimes),
            {}
            if customer_id is None
            else claims_of(customer, ("customer", customer_id), known, self._lifetimes),
            links,
        )

    def _claims(self, subject: Subject, known: int | None) -> Claims:
        kind, subject_id = subject
        facts = self._facts_about(kind, subject_id)
        versions = facts.visitor if kind == "visitor" else facts.customer
        return claims_of(versions, subject, known, self._lifetimes)


def _store_at(url: str, *, create: bool) -> Store:
    scheme, separator, place = url.partition("://")
    if scheme == "sqlite" and separator:
        from consentier.consent.sqlite_store import SqliteStore

        if not place.startswith("/") or place == "/":
            raise ValueError(
                f"the ledger's URL {url!r} names no file: write sqlite:///relative.db or "
                "sqlite:////absolute/path.db (a ledger in memory is Ledger())"
            )
        return SqliteStore(Path(place[1:]), create=create)
    if scheme.partition("+")[0] in ("postgresql", "postgres") and separator:
        from consentier.consent.sqlalchemy_store import SqlAlchemyStore

        return SqlAlchemyStore(url, create=create)
    hint = f"; for this file write sqlite:///{url}" if not separator and Path(url).is_file() else ""
    raise ValueError(
        "a ledger is kept at sqlite:///PATH or postgresql://USER@HOST/DATABASE, not at "
        f"{shown_url(url)!r}{hint}"
    )


def _without(versions: Iterable[Version], subject: Subject) -> tuple[list[int], list[Remnant]]:
    """The entries to erase of a subject's records, and what must be left of them.

    Where others bear a record id too, it stays contradicted for them. Where nobody does any more, what was
    left of earlier erasures goes too.
    """
    by_id: dict[str, list[Version]] = {}
    for version in versions:
        by_id.setdefault(version.record_id, []).append(version)
    entries: list[int] = []
    remnants: list[Remnant] = []
    for record_id, copies in by_id.items():
        own = [version for version in copies if (version.subject_kind, version.subject_id) == subject]
        entries += [version.entry for version in own]
        if any(version.subject_kind is not None for version in copies if version not in own):
            remnants += [ErasedVersion(record_id, version.recorded, version.position) for version in own]
        else:
            entries += [version.entry for version in copies if version not in own]
    return entries, remnants


def _remnants_of(links: Iterable[LinkRow]) -> list[Remnant]:
    """What must be left of links: that there was a login on the device, but not whose."""
    return [
        ErasedLogin(link.visitor_id, link.linked_at, link.position)
        for link in links
        if link.linked_at is not None
    ]


def _require_kind(kind: SubjectKind) -> None:
    if kind not in get_args(SubjectKind):
        raise ValueError(f"kind must be 'visitor' or 'customer', not {kind!r}")


def _owner_of(source: Source) -> SubjectKind:
    """Whose permission lets a source be learnt from."""
    if source not in OWNER:
        raise ValueError(f"source must be online or crm, not {source!r}: nobody is recorded on anything else")
    return OWNER[source]


def _all_of(kind: type[_Entry], entries: Iterable[_Entry]) -> list[_Entry]:
    taken = list(entries)
    for entry in taken:
        if not isinstance(entry, kind):
            raise TypeError(f"the ledger expected a {kind.__name__}, got {type(entry).__name__}")
    return taken


def _known(known_at: dt.datetime | None) -> int | None:
    return None if known_at is None else microseconds(known_at)


def _sole_login(links: Iterable[LinkRow], instant: int, known: int | None) -> LinkRow | None:
    """The latest login on a device that was seen with one customer only; of an erased one the id is None."""
    horizon = instant if known is None else min(instant, known)
    logins = [link for link in links if link.linked_at is not None and link.linked_at <= horizon]
    if len({login.customer_id for login in logins}) != 1:
        return None
    return max(logins, key=lambda login: login.linked_at or 0)


def _held_since_login(needed: Iterable[Timeline], login: LinkRow, instant: int) -> bool:
    """Whether all that a link needs has held without interruption from the login on."""
    since = held_together_since(needed, instant)
    return since is not None and login.linked_at is not None and since <= login.linked_at


def _objected(claims: Claims) -> Timeline:
    """Held while the subject objects to either source; an objection to a channel stays with the channel."""
    raised = [objections(claims[permission]) for permission in ("online", "crm") if permission in claims]
    if all(timeline is NO_OBJECTION for timeline in raised):
        return NO_OBJECTION
    return either(raised, "none")


def _unhindered(claims: Claims, permission: str, instant: int) -> Timeline:
    """A permission in force, with no objection and no minority, seen from an instant."""
    stated = timeline_of(claims, permission)
    if PARENTAL not in claims and _objected(claims) is NO_OBJECTION:
        return stated
    return combine(
        (
            stated,
            inverted(minority(claims, instant), "minor without parental consent"),
            inverted(_objected(claims), "objected"),
        ),
        "granted",
    )


def _visitor_timeline(claims: Claims, instant: int) -> Timeline:
    return _unhindered(claims, "online", instant)


def _customer_timeline(claims: Claims, instant: int) -> Timeline:
    return _unhindered(claims, "crm", instant)


def _unopposed(other: Claims, permission: str, instant: int) -> tuple[Timeline, ...]:
    """Held while the other side of a request lets a permission count that it cannot give."""
    if permission not in other and PARENTAL not in other and _objected(other) is NO_OBJECTION:
        return ()
    return (
        inverted(refusals(other, permission), "refused by the other"),
        inverted(minority(other, instant), "minor without parental consent"),
        inverted(_objected(other), "objected"),
    )


def _trainable(source: Source, claims: Claims, model_purpose: bool, instant: int) -> Timeline:
    """A source's permission in force, and contributing to models not refused."""
    held = _unhindered(claims, str(source), instant)
    return combine((held, covered(claims, "model", required=model_purpose)), "granted")


def _joinable(visitor: Claims, customer: Claims) -> Timeline:
    """Neither refuses, under its own id, what the other granted under its own."""
    if "crm" not in visitor and "online" not in customer:
        return ALWAYS
    return combine(
        (
            inverted(refusals(visitor, "crm"), "refused by the visitor"),
            inverted(refusals(customer, "online"), "refused by the customer"),
        ),
        "granted",
    )


def _fusion(visitor: Claims, customer: Claims, *, required: bool) -> Timeline:
    """Joining was refused by neither and, where the notice separates it, granted by one of them."""
    unrefused = [covered(claims, "fusion", required=False) for claims in (visitor, customer)]
    if required:
        granted = [timeline_of(claims, "fusion") for claims in (visitor, customer)]
        unrefused.append(either(granted, "fusion purpose unknown"))
    return combine(unrefused, "granted")


def _standing(timeline: Timeline, instant: int) -> Standing:
    since = timeline.held_since(instant)
    return Standing(since, timeline.at(instant).reason)


def _contact(customer: Claims, instant: int) -> frozenset[str]:
    return frozenset(
        _CHANNEL_OF[permission]
        for permission in _CHANNEL_OF.keys() & customer.keys()
        if timeline_of(customer, permission).at(instant).held
    )


def _purposes(subjects: Iterable[Claims], instant: int) -> tuple[frozenset[str], frozenset[str]]:
    """Purposes that somebody granted and nobody refused, and purposes with records but no grant in force."""
    granted, denied = set(), set()
    for claims in subjects:
        for purpose in PURPOSES.intersection(claims):
            segment = timeline_of(claims, purpose).at(instant)
            if segment.held:
                granted.add(purpose)
            elif segment.reason != "unknown":
                denied.add(purpose)
    return frozenset(granted - denied), frozenset(denied)
