"""Whom a channel reaches, and as whom: the questions that scoring a file and handing it over have in common.

Only the ledger says who is permitted what. Here stands how it is asked about the persons of a file: about
customers with their linked devices on the CRM side, about visitors on the online side.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Protocol

from consentier.consent import Channel, ConsentRecord, Link, Permission, Policy, Resolution, Side
from consentier.consent.records import SubjectKind
from consentier.serving.protocols import ConsentLedger

__all__ = [
    "EXISTING_CUSTOMER",
    "HistoryLedger",
    "LinkLedger",
    "Reach",
    "barrier_of",
    "held_throughout",
    "linked_throughout",
    "reach",
    "similar_goods_only",
]

EXISTING_CUSTOMER = "existing_customer"
"""The basis of a contact permission that rests on a sale: only goods like those bought may be advertised."""

_MOMENT = dt.timedelta(microseconds=1)


class LinkLedger(ConsentLedger, Protocol):
    """A ledger that also knows the links of a subject."""

    def linked_visitors(
        self,
        customer_id: str,
        *,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
        fusion_purpose: bool = False,
    ) -> Sequence[str]:
        """The visitors whose data may be joined to a customer's at an instant."""
        ...

    def links_of(self, subject_id: str, *, kind: SubjectKind) -> Sequence[Link]:
        """All links of a visitor or customer, lawful or not."""
        ...


class HistoryLedger(LinkLedger, Protocol):
    """A ledger that also tells how a subject's permission came to be."""

    def permission(
        self, subject_id: str, *, kind: SubjectKind, at: dt.datetime, since: dt.datetime
    ) -> Permission:
        """What a subject's own records permit at an instant, and have permitted without interruption."""
        ...

    def records_of(self, subject_id: str, *, kind: SubjectKind) -> Sequence[ConsentRecord]:
        """All records of a subject."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Reach:
    """One person of a file, at one instant.

    Attributes
    ----------
    visitor_id, customer_id
        As whom the person is known; both only where they are lawfully linked.
    devices
        All visitors whose data may be joined to the customer's.
    resolution
        What is permitted.
    barrier
        Why the channel does not reach the person, whatever there would be to say; empty if it does.
    similar_only
        Whether only goods like those that the person bought may be advertised.
    """

    visitor_id: str | None
    customer_id: str | None
    devices: tuple[str, ...]
    resolution: Resolution
    barrier: str
    similar_only: bool = False


def reach(ledger: HistoryLedger, policy: Policy, person: str, channel: Channel, at: dt.datetime) -> Reach:
    """Ask the ledger about one person: a customer on the CRM side, a visitor on the online side.

    On the CRM side contact needs the channel's contact permission. On the online side a file names only
    visitors with an online permission: all others are answered when they ask, from their session.
    """
    if channel.side is Side.CRM:
        return _customer(ledger, policy, person, channel, at)
    return _visitor(ledger, policy, person, channel, at)


def similar_goods_only(records: Iterable[ConsentRecord], channel: Channel, at: dt.datetime) -> bool:
    """Whether the contact permission that a customer's records give at an instant rests on a sale.

    Of several grants that begin together, one that does so decides. Where contact is not permitted the answer
    means nothing.
    """
    grants = [
        record
        for record in records
        if record.permission == f"contact:{channel}" and record.state == "granted" and record.valid_from <= at
    ]
    latest = max((record.valid_from for record in grants), default=None)
    return any(record.basis == EXISTING_CUSTOMER for record in grants if record.valid_from == latest)


def barrier_of(resolution: Resolution, channel: Channel) -> str:
    """Why a channel does not reach somebody of whom this is known; empty if it does."""
    if channel.side is Side.CRM:
        permitted = resolution.contact is not None and channel in resolution.contact
        return "" if permitted else f"no contact permission for {channel}"
    return "" if Permission.ONLINE in resolution.permission else "no online permission"


def _customer(ledger: HistoryLedger, policy: Policy, person: str, channel: Channel, at: dt.datetime) -> Reach:
    separate = policy.switches.fusion_purpose
    devices = tuple(ledger.linked_visitors(person, at=at, fusion_purpose=separate))
    # Any one of the linked devices shows that the link is lawful; the recommender reads all of them.
    visitor = devices[0] if devices else None
    resolution = ledger.resolve(visitor_id=visitor, customer_id=person, at=at)
    similar_only = similar_goods_only(ledger.records_of(person, kind="customer"), channel, at)
    return Reach(visitor, person, devices, resolution, barrier_of(resolution, channel), similar_only)


def _visitor(ledger: LinkLedger, policy: Policy, person: str, channel: Channel, at: dt.datetime) -> Reach:
    owner, devices = None, tuple[str, ...]()
    # No file can vouch for who will sit before the screen: without that, a policy that asks for a login lets
    # no link count, and none is looked up.
    if not policy.switches.shared_device_login:
        owner, devices = _owner(ledger, policy, person, at)
    resolution = ledger.resolve(visitor_id=person, customer_id=owner, at=at)
    return Reach(person, owner, devices, resolution, barrier_of(resolution, channel))


def _owner(
    ledger: LinkLedger, policy: Policy, visitor: str, at: dt.datetime
) -> tuple[str | None, tuple[str, ...]]:
    """The customer to whom a visitor is lawfully linked, and all devices of that customer; or nobody."""
    for customer in sorted({link.customer_id for link in ledger.links_of(visitor, kind="visitor")}):
        devices = ledger.linked_visitors(customer, at=at, fusion_purpose=policy.switches.fusion_purpose)
        if visitor in devices:
            return customer, tuple(devices)
    return None, ()


def held_throughout(
    ledger: HistoryLedger, subject_id: str, *, kind: SubjectKind, first: dt.datetime, last: dt.datetime
) -> bool:
    """Whether a subject's permission held at every instant from `first` to `last`, both included.

    Seen from `last`: nothing held of a child before its parents consented, if it is known for one then.
    """
    permission = Permission.ONLINE if kind == "visitor" else Permission.CRM
    return permission in ledger.permission(subject_id, kind=kind, at=last, since=first)


def linked_throughout(
    ledger: HistoryLedger,
    customer_id: str,
    devices: Iterable[str],
    *,
    first: dt.datetime,
    last: dt.datetime,
    fusion_purpose: bool,
) -> bool:
    """Whether all these devices were lawfully linked to a customer at every instant of a span."""
    wanted = set(devices)
    subjects: list[tuple[SubjectKind, str]] = [("customer", customer_id)]
    subjects += [("visitor", device) for device in wanted]
    held = (held_throughout(ledger, name, kind=kind, first=first, last=last) for kind, name in subjects)
    return all(held) and all(
        wanted <= set(ledger.linked_visitors(customer_id, at=instant, fusion_purpose=fusion_purpose))
        for instant in _instants(ledger, subjects, first, last)
    )


def _instants(
    ledger: HistoryLedger,
    subjects: Iterable[tuple[SubjectKind, str]],
    first: dt.datetime,
    last: dt.datetime,
) -> list[dt.datetime]:
    """Instants of a span at which to look, so that no gap in a link is missed.

    Both ends, and each moment at which one of the subjects' entries begins, ends or was learnt of, with the
    instant before it. What was lost, be it by age, comes back only at such a moment, and the instant before
    finds it lost.
    """
    moments: set[dt.datetime] = set()
    for kind, subject_id in subjects:
        for record in ledger.records_of(subject_id, kind=kind):
            ends = () if record.valid_to is None else (record.valid_to,)
            moments.update((record.valid_from, record.recorded_at, *ends))
        for link in ledger.links_of(subject_id, kind=kind):
            moments.update(() if link.linked_at is None else (link.linked_at,))
    inside = {moment for moment in moments if first < moment <= last}
    return sorted({first, last, *inside, *(moment - _MOMENT for moment in inside)})
