"""Salesforce: a customer's rows of ``ContactPointTypeConsent``, all of them.

===================  ==================================================================================
crm                  a row in force whose ``DataUsePurposeId`` is one of the settings' `crm_purposes`
contact:email        the same for `contact_purposes` and the contact point type ``Email``
contact:print        … ``MailingAddress``
contact:call_center  … ``Phone``
===================  ==================================================================================

A row is in force if its ``PrivacyConsentStatus`` is ``OptIn`` and the time lies in the half-open interval
from ``EffectiveFrom`` to ``EffectiveTo``. Of several rows on one permission the latest governs alone, and a
tie refuses; an opt-out that names no purpose counts for every purpose. ``DoubleConsentCaptureDate`` is kept
in the record.

Hand over all rows of the customer (the result of a query, or a list; one row alone says that there is no
other): what they do not grant is refused.

Source: developer.salesforce.com, object reference, ContactPointTypeConsent.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from consentier.consent.signals.fields import among, instant, names, objects, refusals
from consentier.consent.signals.reading import (
    CLOCK_SKEW,
    Decision,
    Signal,
    SignalContext,
    SignalSettings,
)
from consentier.errors import SignalError

__all__ = ["SALESFORCE", "SalesforceSettings"]

_CHANNELS = {"Email": "contact:email", "MailingAddress": "contact:print", "Phone": "contact:call_center"}
_OTHER_TYPES = frozenset({"Social", "Web"})
_ALWAYS = dt.datetime.max.replace(tzinfo=dt.UTC)
_TIMES = ("CaptureDate", "EffectiveFrom", "EffectiveTo", "DoubleConsentCaptureDate")
_KEYS = (
    *_TIMES,
    "BusinessBrandId",
    "CaptureContactPointType",
    "CaptureSource",
    "ContactPointType",
    "DataUsePurposeId",
    "Id",
    "IsDeleted",
    "PartyId",
    "PrivacyConsentStatus",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SalesforceSettings(SignalSettings):
    """How rows of ContactPointTypeConsent are read.

    Attributes
    ----------
    crm_purposes
        Ids of the data use purposes that cover recommendations from CRM data. Without it, crm is not granted.
    contact_purposes
        Ids of the data use purposes that cover advertising by the contact point type of the row. Without it,
        rows decide nothing about contact.
    business_brand
        Id of the shop's brand. An opt-in that names a brand counts for that brand only.
    rely_on_capture_dates
        Whether a grant takes effect when Salesforce says that it was captured, confirmed and effective,
        instead of when it was received. For shops whose capture dates are evidence. A refusal counts from its
        dates and from its receipt in either case.
    """

    crm_purposes: Collection[str] = frozenset()
    contact_purposes: Collection[str] = frozenset()
    business_brand: str | None = None
    rely_on_capture_dates: bool = False

    def __post_init__(self) -> None:
        SignalSettings.__post_init__(self)
        for name in ("crm_purposes", "contact_purposes"):
            object.__setattr__(self, name, names(getattr(self, name), name))
        brand: object = self.business_brand
        if brand is not None and (not isinstance(brand, str) or not brand):
            raise TypeError(f"business_brand must be a non-empty string or None, not {brand!r}")
        rely: object = self.rely_on_capture_dates
        if not isinstance(rely, bool):
            raise TypeError(f"rely_on_capture_dates must be true or false, not {rely!r}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """One row, read.

    Where its two dates differ, a grant counts from the earlier and a refusal from the later: on doubt the
    refusal is the later of the two.
    """

    permissions: frozenset[str]
    refusal: str | None
    counts_from: dt.datetime
    at: dt.datetime | None
    until: dt.datetime | None
    double_opt_in_at: dt.datetime | None


def _relevant(payload: Any) -> list[dict[str, Any]]:
    """The rows, without what else Salesforce says of the person."""
    if isinstance(payload, dict) and "records" in payload:
        if payload.get("done", True) is not True:
            raise SignalError("the query's result is not complete: done is not true")
        payload = payload["records"]
    rows = objects([payload] if isinstance(payload, dict) else payload, "the payload")
    if not rows:
        raise SignalError("there is no row")
    return [{key: row[key] for key in _KEYS if key in row} for row in rows]


def _read(payload: Any, context: SignalContext[SalesforceSettings]) -> Iterable[Decision]:
    people = {row["PartyId"] for row in payload if isinstance(row.get("PartyId"), str)}
    if len(people) > 1:
        raise SignalError("the rows belong to more than one PartyId")
    rows = [row for row in (_row(fields, context) for fields in payload) if row is not None]
    for permission in sorted(_decides(context.settings)):
        concerned = [row for row in rows if permission in row.permissions]
        yield from _decision(permission, concerned, rely=context.settings.rely_on_capture_dates)


def _decision(permission: str, rows: Sequence[_Row], *, rely: bool) -> list[Decision]:
    """What the latest row says; a refusal if there is none, or on a tie."""
    if not rows:
        return refusals(permission, "no row grants it")
    governing = max(rows, key=lambda row: (row.counts_from, row.refusal is not None))
    if governing.refusal is not None:
        # At its receipt too, whatever is relied on: the row that granted may be gone, or bear new dates.
        return refusals(permission, governing.refusal, at=governing.at)
    return [
        Decision(
            permission=permission,
            state="granted",
            at=governing.at,
            at_is_proven=rely,
            until=governing.until,
            double_opt_in_at=governing.double_opt_in_at,
        )
    ]


def _row(fields: dict[str, Any], context: SignalContext[SalesforceSettings]) -> _Row | None:
    """Read one row. None if it concerns nothing, or grants nothing yet."""
    captured, start, end, confirmed = (instant(fields.get(name), name) for name in _TIMES)
    permissions = _permissions(fields, context.settings)
    refusal = _refusal(fields, captured, start, end, confirmed, context.received_at)
    known = [time for time in (captured, start) if time is not None]
    if refusal is not None:
        latest = max(known, default=_ALWAYS)
        return _Row(permissions, refusal, latest, min(known, default=None), None, None)
    brand = fields.get("BusinessBrandId")
    if brand is not None and brand != context.settings.business_brand:
        return None
    if start is not None and start > context.received_at:
        return None
    given = max(time for time in (captured, start, confirmed) if time is not None)
    if end is not None and end <= context.received_at:
        return _Row(permissions, f"ended at {end.isoformat()}", max(known), end, None, None)
    return _Row(permissions, None, min(known), given, end, confirmed)


def _refusal(
    fields: dict[str, Any],
    captured: dt.datetime | None,
    start: dt.datetime | None,
    end: dt.datetime | None,
    confirmed: dt.datetime | None,
    received_at: dt.datetime,
) -> str | None:
    """Why a row is no opt-in; None if it is one."""
    if fields.get("PrivacyConsentStatus") != "OptIn":
        return "PrivacyConsentStatus is not OptIn"
    if fields.get("IsDeleted") not in (None, False):
        return "the row is deleted"
    if captured is None:
        return "the row has no CaptureDate"
    if captured - received_at > CLOCK_SKEW or (
        confirmed is not None and confirmed - received_at > CLOCK_SKEW
    ):
        return "the row was captured or confirmed ahead of time"
    if end is not None and end <= (start or captured):
        return "EffectiveTo is not after EffectiveFrom"
    return None


def _permissions(fields: dict[str, Any], settings: SalesforceSettings) -> frozenset[str]:
    """What a row concerns. An opt-out that leaves open what it is about refuses all that it may mean."""
    purpose: Any = fields.get("DataUsePurposeId")
    kind: Any = fields.get("ContactPointType")
    refuses = fields.get("PrivacyConsentStatus") == "OptOut"
    unspecific = refuses and not isinstance(purpose, str)
    concerned: set[str] = set()
    if unspecific or among(purpose, settings.crm_purposes):
        concerned.add("crm")
    if unspecific or among(purpose, settings.contact_purposes):
        if among(kind, _CHANNELS):
            concerned.add(_CHANNELS[kind])
        elif refuses and not among(kind, _OTHER_TYPES):
            concerned.update(_CHANNELS.values())
    return frozenset(concerned)


def _decides(settings: SalesforceSettings) -> frozenset[str]:
    return frozenset({"crm"} | (set(_CHANNELS.values()) if settings.contact_purposes else set()))


SALESFORCE = Signal(
    kind="salesforce",
    settings=SalesforceSettings,
    decides=_decides,
    read=_read,
    structured=True,
    relevant=_relevant,
)
"""A customer's rows of ContactPointTypeConsent."""
