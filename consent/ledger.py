"""The consent ledger in memory: append-only, idempotent, independent of the order of arrival."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator
from typing import TypeVar

from consentier.consent.permissions import CONTACT_CHANNELS, Permission, Source
from consentier.consent.records import PURPOSES, ConsentRecord, Link, SubjectKind, microseconds
from consentier.consent.resolution import Resolution
from consentier.consent.timeline import (
    Claim,
    Subject,
    Timeline,
    claims_of,
    combine,
    content_of,
    covered,
    either,
    inverted,
    minority,
    objections,
    refusals,
    timeline_of,
)

__all__ = ["Ledger", "LinkStanding", "Standing"]

_Entry = TypeVar("_Entry", ConsentRecord, Link)

_KIND_OF: dict[Source, SubjectKind] = {Source.ONLINE: "visitor", Source.CRM: "customer"}


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


class Ledger:
    """Consent records and identity links, and the only code that resolves them.

    Append-only. `append` is idempotent by `record_id`; the resolved state depends on the set of records, not
    on order, repetition or lateness. Memory: the records themselves and one dictionary entry per record and
    per subject. Resolving costs n log n in the records of the subjects asked for.

    Parameters
    ----------
    records, links
        What to begin with.
    """

    def __init__(self, records: Iterable[ConsentRecord] = (), links: Iterable[Link] = ()) -> None:
        self._versions: dict[str, list[ConsentRecord]] = {}
        self._ids_of: dict[Subject, dict[str, None]] = {}
        self._links_of_customer: dict[str, list[Link]] = {}
        self._links_of_visitor: dict[str, list[Link]] = {}
        self._position = 0
        self.append(records)
        self.append_links(links)

    @property
    def position(self) -> int:
        """How many records and links, duplicates aside, the ledger holds."""
        return self._position

    @property
    def conflicts(self) -> list[str]:
        """Record ids that arrived with more than one content, sorted. They count as denials."""
        return sorted(
            record_id
            for record_id, versions in self._versions.items()
            if len({content_of(version) for version in versions}) > 1
        )

    def append(self, records: Iterable[ConsentRecord]) -> int:
        """Take in records, all or (if one is malformed) none; return how many were new."""
        before = self._position
        for record in _all_of(ConsentRecord, records):
            versions = self._versions.setdefault(record.record_id, [])
            if record in versions:
                continue
            versions.append(record)
            self._ids_of.setdefault((record.subject_kind, record.subject_id), {})[record.record_id] = None
            self._position += 1
        return self._position - before

    def append_links(self, links: Iterable[Link]) -> int:
        """Take in identity links, all or (if one is malformed) none; return how many were new."""
        before = self._position
        for link in _all_of(Link, links):
            of_customer = self._links_of_customer.setdefault(link.customer_id, [])
            if link in of_customer:
                continue
            of_customer.append(link)
            self._links_of_visitor.setdefault(link.visitor_id, []).append(link)
            self._position += 1
        return self._position - before

    def permission(
        self, subject_id: str, *, kind: SubjectKind, at: dt.datetime, known_at: dt.datetime | None = None
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

        Raises
        ------
        ValueError
            If `kind` is neither visitor nor customer.
        """
        instant, claims = microseconds(at), self._claims((kind, subject_id), _known(known_at))
        if kind == "visitor":
            return Permission.ONLINE if _visitor_timeline(claims).at(instant).held else Permission.NONE
        if kind == "customer":
            return Permission.CRM if _customer_timeline(claims).at(instant).held else Permission.NONE
        raise ValueError(f"kind must be 'visitor' or 'customer', not {kind!r}")

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
        """
        instant, known = microseconds(at), _known(known_at)
        visitor = self._claims(("visitor", visitor_id), known) if visitor_id is not None else []
        customer = self._claims(("customer", customer_id), known) if customer_id is not None else []
        online = _visitor_timeline(visitor).at(instant)
        crm = _customer_timeline(customer).at(instant)
        online_held = online.held and not refusals(customer, "online").at(instant).held
        crm_held = crm.held and not refusals(visitor, "crm").at(instant).held
        objected = _objected(visitor).at(instant).held or _objected(customer).at(instant).held
        minor = minority(visitor).at(instant).held or minority(customer).at(instant).held
        granted, denied = _purposes((visitor, customer), instant)
        linked = (
            visitor_id is not None
            and customer_id is not None
            and online_held
            and crm_held
            and not (objected or minor)
            and self._linked_customer(visitor_id, instant, known) == customer_id
        )
        reasons = [
            f"online: {online.reason}" if online.held == online_held else "online: refused by the customer",
            f"crm: {crm.reason}" if crm.held == crm_held else "crm: refused by the visitor",
        ]
        return Resolution(
            online=online_held,
            crm=crm_held,
            linked=linked,
            objected=objected,
            minor=minor,
            contact=_contact(customer, instant),
            granted_purposes=granted,
            denied_purposes=denied,
            reasons=tuple(reasons),
            ledger_position=self._position,
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
        claims = self._claims((_KIND_OF[source], subject_id), _known(known_at))
        return _standing(_trainable(source, claims, model_purpose), microseconds(at))

    def subjects(self, source: Source) -> Iterator[str]:
        """Ids of all subjects with records that could bear on a source."""
        kind = _KIND_OF[source]
        return (subject_id for subject_kind, subject_id in self._ids_of if subject_kind == kind)

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
        """
        instant, known = microseconds(at), _known(known_at)
        standings = {}
        for visitor_id in self._links_of_visitor:
            customer_id = self._linked_customer(visitor_id, instant, known)
            if customer_id is None:
                continue
            visitor = self._claims(("visitor", visitor_id), known)
            customer = self._claims(("customer", customer_id), known)
            since = combine(
                (
                    _trainable(Source.ONLINE, visitor, model_purpose),
                    _trainable(Source.CRM, customer, model_purpose),
                    _joinable(visitor, customer),
                    _fusion(visitor, customer, required=fusion_purpose),
                ),
                "granted",
            ).held_since(instant)
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
        instant, known = microseconds(at), _known(known_at)
        customer = self._claims(("customer", customer_id), known)
        visitors = {link.visitor_id for link in self._links_of_customer.get(customer_id, ())}
        return sorted(
            visitor_id
            for visitor_id in visitors
            if self._linked_customer(visitor_id, instant, known) == customer_id
            and _fusion(self._claims(("visitor", visitor_id), known), customer, required=fusion_purpose)
            .at(instant)
            .held
        )

    def _linked_customer(self, visitor_id: str, instant: int, known: int | None) -> str | None:
        """The customer with whom a visitor's link has been lawful from the day that it was made, if any."""
        horizon = instant if known is None else min(instant, known)
        logins = [
            (linked_at, link.customer_id)
            for link in self._links_of_visitor.get(visitor_id, ())
            if link.linked_at is not None and (linked_at := microseconds(link.linked_at)) <= horizon
        ]
        if len({customer_id for _, customer_id in logins}) != 1:
            return None
        linked_at, customer_id = max(logins)
        visitor = self._claims(("visitor", visitor_id), known)
        customer = self._claims(("customer", customer_id), known)
        since = combine(
            (_visitor_timeline(visitor), _customer_timeline(customer), _joinable(visitor, customer)),
            "granted",
        ).held_since(instant)
        return customer_id if since is not None and since <= linked_at else None

    def _claims(self, subject: Subject, known: int | None) -> list[Claim]:
        ids = self._ids_of.get(subject, ())
        if known is None:
            return claims_of((self._versions[record_id] for record_id in ids), subject)
        visible = (
            [version for version in self._versions[record_id] if microseconds(version.recorded_at) <= known]
            for record_id in ids
        )
        return claims_of((versions for versions in visible if versions), subject)


def _all_of(kind: type[_Entry], entries: Iterable[_Entry]) -> list[_Entry]:
    taken = list(entries)
    for entry in taken:
        if not isinstance(entry, kind):
            raise TypeError(f"the ledger expected a {kind.__name__}, got {type(entry).__name__}")
    return taken


def _known(known_at: dt.datetime | None) -> int | None:
    return None if known_at is None else microseconds(known_at)


def _objected(claims: list[Claim]) -> Timeline:
    """Held while the subject objects to either source; an objection to a channel stays with the channel."""
    either = (inverted(objections(_on(claims, permission)), "objected") for permission in ("online", "crm"))
    return inverted(combine(tuple(either), "none"), "none")


def _on(claims: list[Claim], permission: str) -> list[Claim]:
    return [claim for claim in claims if claim.permission == permission]


def _unhindered(claims: list[Claim], permission: str) -> Timeline:
    """A permission in force, with no objection and no minority."""
    stated = timeline_of(claims, permission)
    if all(claim.permission == permission and claim.state != "objected" for claim in claims):
        return stated  # the common case: nothing else is on record
    return combine(
        (
            stated,
            inverted(minority(claims), "minor without parental consent"),
            inverted(_objected(claims), "objected"),
        ),
        "granted",
    )


def _visitor_timeline(claims: list[Claim]) -> Timeline:
    return _unhindered(claims, "online")


def _customer_timeline(claims: list[Claim]) -> Timeline:
    return _unhindered(claims, "crm")


def _trainable(source: Source, claims: list[Claim], model_purpose: bool) -> Timeline:
    """A source's permission in force, and contributing to models not refused."""
    held = _visitor_timeline(claims) if source is Source.ONLINE else _customer_timeline(claims)
    return combine((held, covered(claims, "model", required=model_purpose)), "granted")


def _joinable(visitor: list[Claim], customer: list[Claim]) -> Timeline:
    """Neither refuses, under its own id, what the other granted under its own."""
    return combine(
        (
            inverted(refusals(visitor, "crm"), "refused by the visitor"),
            inverted(refusals(customer, "online"), "refused by the customer"),
        ),
        "granted",
    )


def _fusion(visitor: list[Claim], customer: list[Claim], *, required: bool) -> Timeline:
    """Joining was refused by neither and, where the notice separates it, granted by one of them."""
    unrefused = [covered(claims, "fusion", required=False) for claims in (visitor, customer)]
    if required:
        granted = [timeline_of(claims, "fusion") for claims in (visitor, customer)]
        unrefused.append(either(granted, "fusion purpose unknown"))
    return combine(unrefused, "granted")


def _standing(timeline: Timeline, instant: int) -> Standing:
    since = timeline.held_since(instant)
    return Standing(since, timeline.at(instant).reason)


def _contact(customer: list[Claim], instant: int) -> frozenset[str]:
    return frozenset(
        str(channel)
        for channel in CONTACT_CHANNELS
        if timeline_of(customer, f"contact:{channel}").at(instant).held
    )


def _purposes(subjects: Iterable[list[Claim]], instant: int) -> tuple[frozenset[str], frozenset[str]]:
    """Purposes that somebody granted and nobody refused, and purposes with records but no grant in force."""
    granted, denied = set(), set()
    for claims in subjects:
        for purpose in PURPOSES.intersection(claim.permission for claim in claims):
            segment = timeline_of(claims, purpose).at(instant)
            if segment.held:
                granted.add(purpose)
            elif segment.reason != "unknown":
                denied.add(purpose)
    return frozenset(granted - denied), frozenset(denied)
