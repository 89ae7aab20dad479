"""Consent records and identity links, as the data contract states them."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Literal, get_args

from consentier.consent.permissions import CONTACT_CHANNELS, Source
from consentier.errors import LedgerError

__all__ = [
    "OWNER",
    "PERMISSIONS",
    "PURPOSES",
    "STATES",
    "ConsentRecord",
    "Link",
    "SubjectKind",
    "microseconds",
]

SubjectKind = Literal["visitor", "customer"]

OWNER: Mapping[Source, SubjectKind] = {Source.ONLINE: "visitor", Source.CRM: "customer"}
"""Whose data a source's are, and so whose permission lets them be learnt from."""

PURPOSES = frozenset({"ads", "fusion", "model"})
"""Purposes that a shop's notice may separate from the two permissions."""

PARENTAL = "parental"
"""Says that the subject is a minor, and whether the holder of parental responsibility consented."""

PERMISSIONS = (
    frozenset({"online", "crm", PARENTAL}) | PURPOSES | {f"contact:{channel}" for channel in CONTACT_CHANNELS}
)

STATES = frozenset({"granted", "denied", "withdrawn", "objected", "lifted"})

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


def microseconds(instant: dt.datetime) -> int:
    """Microseconds from the Unix epoch to an instant.

    Raises
    ------
    TypeError
        If `instant` is not a datetime.
    ValueError
        If it has no time zone: a naive time would mean another instant on another machine.
    """
    if not isinstance(instant, dt.datetime):
        raise TypeError(f"expected a datetime with a time zone, got {type(instant).__name__}")
    if instant.tzinfo is None or instant.utcoffset() is None:
        raise ValueError(f"the time {instant.isoformat()} has no time zone: give it one")
    return (instant - _EPOCH) // _MICROSECOND


def _in_utc(instant: dt.datetime, where: str) -> dt.datetime:
    """The same instant in UTC: in a zone with summer time, equal readings may be different instants."""
    try:
        microseconds(instant)
        return instant.astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise LedgerError(f"{where}: {error}") from error


@dataclasses.dataclass(frozen=True, slots=True)
class ConsentRecord:
    """One decision of one subject on one permission. Times are kept in UTC.

    Attributes
    ----------
    record_id
        Idempotency key: the same record may arrive any number of times.
    subject_id, subject_kind
        A visitor (cookie, device) or a customer (account).
    permission
        ``online``, ``crm``, ``contact:CHANNEL``, a separated purpose (``ads``, ``fusion``, ``model``), or
        ``parental``: granted means that parental consent was given, denied or withdrawn that the subject is a
        minor without it, lifted that the subject is no minor (any more). Unless it is a lift, the first one
        also says that the subject was a minor without it before.
    state
        ``granted``, ``denied``, ``withdrawn``, ``objected`` or ``lifted`` (the end of an objection).
    valid_from, valid_to
        The half-open interval in which the decision holds; no end where `valid_to` is None.
    recorded_at
        When the ledger learnt of it.
    double_opt_in_at, basis, jurisdiction, collected_by, policy_version, evidence
        What proves the decision (GDPR 7(1)). A lift without evidence lifts nothing.

    Raises
    ------
    LedgerError
        If a field is not one of its allowed values.
    """

    record_id: str
    subject_id: str
    subject_kind: SubjectKind
    permission: str
    state: str
    valid_from: dt.datetime
    recorded_at: dt.datetime
    valid_to: dt.datetime | None = None
    basis: str | None = None
    jurisdiction: str | None = None
    double_opt_in_at: dt.datetime | None = None
    collected_by: str | None = None
    policy_version: str | None = None
    evidence: str | None = None

    def __post_init__(self) -> None:
        for name in ("record_id", "subject_id"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise LedgerError(f"consent record: {name} must be a non-empty string")
        for name in ("basis", "jurisdiction", "collected_by", "policy_version", "evidence"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise LedgerError(
                    f"consent record: {name} must be a string or None, not {type(value).__name__}"
                )
        self._require_one_of("subject_kind", frozenset(get_args(SubjectKind)))
        self._require_one_of("permission", PERMISSIONS)
        self._require_one_of("state", STATES)
        for name in ("valid_from", "recorded_at", "valid_to", "double_opt_in_at"):
            value = getattr(self, name)
            if value is None and name in ("valid_to", "double_opt_in_at"):
                continue
            object.__setattr__(self, name, _in_utc(value, f"consent record: {name}"))

    def _require_one_of(self, name: str, allowed: frozenset[str]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in allowed:
            raise LedgerError(f"consent record: {name} is none of {', '.join(sorted(allowed))}")


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """The event that one visitor was seen to be one customer, usually a login.

    `linked_at` None means that no such event is known: such a link never holds.

    Raises
    ------
    LedgerError
        If an id is no string or empty, or `linked_at` is no time with a time zone.
    """

    visitor_id: str
    customer_id: str
    linked_at: dt.datetime | None
    evidence: str | None = None

    def __post_init__(self) -> None:
        for name in ("visitor_id", "customer_id"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise LedgerError(f"identity link: {name} must be a non-empty string")
        if self.evidence is not None and not isinstance(self.evidence, str):
            raise LedgerError(
                f"identity link: evidence must be a string or None, not {type(self.evidence).__name__}"
            )
        if self.linked_at is None:
            return
        where = "identity link: linked_at"
        object.__setattr__(self, "linked_at", _in_utc(self.linked_at, where))
