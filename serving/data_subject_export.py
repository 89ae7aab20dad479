"""Data-subject access (GDPR 15 and 20): all that is held under one id, as JSON.

The seventh law holds here too. A customer's export brings in the data of a device only while the link between
them is lawful; a device's export never brings in a customer's data, for whoever holds a device need not be
the customer; and neither brings in anybody who used the same device.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from consentier.consent import Ledger, Link
from consentier.consent.keyring import Keyring
from consentier.consent.records import SubjectKind
from consentier.serving.audit import AuditLine, audit_lines, subject_text

if TYPE_CHECKING:
    import pyarrow as pa

    from consentier.features.tables import ShopTables

__all__ = ["AuditLog", "Lineage", "ProfileStore", "export_subject"]

_FORMAT = 1

_KEYED_BY: Mapping[SubjectKind, tuple[tuple[str, str], ...]] = {
    "visitor": (("events", "visitor_id"),),
    "customer": (
        ("orders", "customer_id"),
        ("product_usage", "customer_id"),
        ("customers", "customer_id"),
    ),
}
"""The tables of the data contract that hold a kind's data, and the column that says whose."""

Lineage = Callable[[SubjectKind, str], Iterable[object]]
"""Says which bundles hold a subject's data, as dataclasses."""


class ProfileStore(Protocol):
    """What an export asks of a store of profiles."""

    def export(self, subject: str) -> list[dict[str, Any]]:
        """All that is stored of a subject, as values for JSON."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class AuditLog:
    """An audit directory, and the keys under which its lines name subjects."""

    path: Path
    keyring: Keyring


def export_subject(
    subject_id: str,
    *,
    kind: SubjectKind,
    ledger: Ledger,
    at: dt.datetime,
    profiles: Mapping[SubjectKind, ProfileStore] | None = None,
    shop: ShopTables | None = None,
    audit: AuditLog | None = None,
    lineage: Lineage | None = None,
) -> dict[str, Any]:
    """Collect all that is held of one subject, and of the devices that are lawfully linked to it.

    Parameters
    ----------
    subject_id, kind
        Whose data.
    ledger
        Records and links, and the only judge of which links hold.
    at
        The instant that links are judged at.
    profiles
        Profile stores: online under ``visitor``, CRM under ``customer``.
    shop
        The shop's tables.
    audit
        The audit log, for the decisions that were made. Lines that name nobody cannot be found, by design.
    lineage
        Says which bundles were fitted on the subject's data.

    Returns
    -------
    dict
        Plain values for JSON: ``format``, ``exported_at``, ``ledger_position``, ``subject`` with its
        ``permission``, ``records``, ``links``, ``profile``, ``tables``, ``decisions`` and ``bundles`` (what
        was not given is absent), and ``linked_devices``: the same of each.

    Raises
    ------
    ValueError
        If `kind` is neither visitor nor customer.

    Notes
    -----
    Reads the audit log once. What the shop keeps elsewhere, under other keys, is not in it.
    """
    if kind not in _KEYED_BY:
        raise ValueError(f"kind must be 'visitor' or 'customer', not {kind!r}")
    devices = _devices_of(ledger, kind, subject_id, at)
    subjects: list[tuple[SubjectKind, str]] = [(kind, subject_id), *(("visitor", each) for each in devices)]
    decisions, unreadable = _decisions(audit, subjects)

    def section(subject: tuple[SubjectKind, str]) -> dict[str, Any]:
        own_kind, own_id = subject
        found: dict[str, Any] = {"id": own_id, "kind": own_kind}
        found["permission"] = _permission(ledger, own_kind, own_id, at)
        found["records"] = [_fields(each) for each in ledger.records_of(own_id, kind=own_kind)]
        found["links"] = [_fields(each) for each in _links(ledger, own_kind, own_id, at)]
        if profiles is not None and own_kind in profiles:
            found["profile"] = profiles[own_kind].export(own_id)
        if shop is not None:
            found["tables"] = _tables(shop, own_kind, own_id)
        if audit is not None:
            found["decisions"] = decisions[subject]
        if lineage is not None:
            found["bundles"] = [_fields(each) for each in lineage(own_kind, own_id)]
        return found

    first, *linked = (section(subject) for subject in subjects)
    return {
        "format": _FORMAT,
        "exported_at": at.isoformat(),
        "ledger_position": ledger.position,
        "subject": first,
        "linked_devices": linked,
        **({} if audit is None else {"unreadable_audit_lines": unreadable}),
    }


def _devices_of(ledger: Ledger, kind: SubjectKind, subject_id: str, at: dt.datetime) -> list[str]:
    """The devices whose data belong into a customer's export."""
    return list(ledger.linked_visitors(subject_id, at=at)) if kind == "customer" else []


def _links(ledger: Ledger, kind: SubjectKind, subject_id: str, at: dt.datetime) -> list[Link]:
    """The stored links of a subject that hold at an instant."""
    return [
        link
        for link in ledger.links_of(subject_id, kind=kind)
        if link.visitor_id in ledger.linked_visitors(link.customer_id, at=at)
    ]


def _permission(ledger: Ledger, kind: SubjectKind, subject_id: str, at: dt.datetime) -> dict[str, Any]:
    """How the subject stands by its own records."""
    found = (
        ledger.resolve(visitor_id=subject_id, at=at)
        if kind == "visitor"
        else ledger.resolve(customer_id=subject_id, at=at)
    )
    return {
        "online" if kind == "visitor" else "crm": found.online if kind == "visitor" else found.crm,
        "objected": found.objected,
        "minor": found.minor,
        "contact": sorted(found.contact or ()),
    }


def _tables(shop: ShopTables, kind: SubjectKind, subject_id: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of the shop's tables that are keyed by the subject."""
    import pyarrow.compute as pc

    found = {
        name: _rows(table.filter(pc.equal(table[column], subject_id)))
        for name, column in _KEYED_BY[kind]
        for table in (getattr(shop, name),)
    }
    consents = shop.consents
    own = pc.and_(pc.equal(consents["subject_kind"], kind), pc.equal(consents["subject_id"], subject_id))
    return {**found, "consents": _rows(consents.filter(own))}


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _decisions(
    audit: AuditLog | None, subjects: Iterable[tuple[SubjectKind, str]]
) -> tuple[dict[tuple[SubjectKind, str], list[dict[str, Any]]], int]:
    """The decisions about each subject, oldest first; and how many lines could not be read."""
    decisions: dict[tuple[SubjectKind, str], list[dict[str, Any]]] = {subject: [] for subject in subjects}
    if audit is None:
        return decisions, 0
    named = {
        digest: subject
        for subject in decisions
        for digest in audit.keyring.digests("subject", subject_text(*subject))
    }
    unreadable: list[str] = []
    for line in audit_lines(audit.path, unreadable=unreadable):
        if line.trace is None:
            continue
        for subject in {named[digest] for digest in line.trace.subjects.values() if digest in named}:
            decisions[subject].append(_decision(line))
    return decisions, len(unreadable)


def _decision(line: AuditLine) -> dict[str, Any]:
    """What a line says to the person whom it is about: nothing that names the other side of a link."""
    return {
        "at": line.at.isoformat(),
        "channel": str(line.channel),
        "tier": str(line.tier),
        "reason": line.reason,
        "sources": list(line.sources),
        "policy_version": line.policy_version,
        "bundle_digest": line.bundle_digest,
        "erase_after": line.erase_after.isoformat(),
    }


def _fields(value: object) -> dict[str, Any]:
    fields = dataclasses.asdict(value)  # type: ignore[call-overload]
    return {name: _plain(each) for name, each in fields.items()}


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, dt.datetime | dt.date) else value
