"""What a payload of a consent platform may grant at most, said a second time and as plainly as possible.

Written against the documentation of the platforms, not against the readers, for the settings that
`platform_signals` reads them under. It states what a grant requires; a reader may be stricter.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

from platform_signals import RECEIVED

__all__ = ["may_grant", "may_grant_of_text"]


def may_grant_of_text(kind: str, text: str | bytes) -> frozenset[str]:
    """The permissions that a payload given as text may grant."""
    try:
        return may_grant(kind, json.loads(text))
    except (ValueError, RecursionError):
        return frozenset()


def may_grant(kind: str, payload: Any) -> frozenset[str]:
    """The permissions that a payload may grant under the settings of `platform_signals`."""
    conditions = _CONDITIONS[kind](payload)
    return frozenset(permission for permission, holds in conditions.items() if holds)


def _at(value: Any, *path: str) -> Any:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _rows(value: Any) -> list[Any]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _moment(value: Any) -> dt.datetime | None:
    try:
        moment = dt.datetime.fromisoformat(value)
        return None if moment.tzinfo is None else moment.astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def _past(value: Any) -> bool:
    """Whether it is a time up to now, give or take what clocks differ."""
    moment = _moment(value)
    return moment is not None and moment <= RECEIVED + dt.timedelta(minutes=5)


def _fresh(value: Any) -> bool:
    """Whether an event that may say its time came within an hour of it."""
    return value is None or (
        _past(value) and RECEIVED - (_moment(value) or RECEIVED) <= dt.timedelta(hours=1)
    )


def _consent_mode(payload: Any) -> dict[str, bool]:
    def all_granted(*keys: str) -> bool:
        return all(_at(payload, key) == "granted" for key in keys)

    return {
        "online": all_granted("personalization_storage", "analytics_storage"),
        "ads": all_granted("ad_storage", "ad_user_data", "ad_personalization"),
    }


def _shopify(payload: Any) -> dict[str, bool]:
    consent = _at(payload, "visitorConsent") or payload

    def yes(key: str) -> bool:
        return _at(consent, key) is True or _at(consent, key) == "yes"

    def no(key: str) -> bool:
        return _at(consent, key) is False or _at(consent, key) == "no"

    return {
        "online": yes("preferences") and yes("analytics"),
        "ads": yes("marketing") and not no("sale_of_data") and not no("saleOfData"),
    }


def _segment(payload: Any) -> dict[str, bool]:
    def consented(category: str) -> bool:
        preferences = _at(payload, "context", "consent", "categoryPreferences")
        return _at(preferences, category) is True and _fresh(_at(payload, "timestamp"))

    return {
        "online": consented("Functional") and consented("Analytics"),
        "ads": consented("Advertising"),
    }


def _rudderstack(payload: Any) -> dict[str, bool]:
    consent = _at(payload, "context", "consentManagement")

    def consented(category: str) -> bool:
        allowed, denied = _at(consent, "allowedConsentIds"), _at(consent, "deniedConsentIds")
        listed = isinstance(allowed, list) and category in allowed
        return (
            listed
            and not (isinstance(denied, list) and category in denied)
            and _fresh(_at(payload, "timestamp"))
        )

    return {"online": consented("C0001") and consented("C0003"), "ads": consented("C0004")}


def _snowplow(payload: Any) -> dict[str, bool]:
    data = (
        payload["data"]
        if isinstance(payload, dict) and "schema" in payload and "data" in payload
        else payload
    )

    def consented(scope: str) -> bool:
        scopes, domains = _at(data, "consentScopes"), _at(data, "domainsApplied")
        return (
            _at(data, "eventType") in ("allow_all", "allow_selected")
            and _at(data, "basisForProcessing") == "consent"
            and isinstance(scopes, list)
            and scope in scopes
            and isinstance(domains, list)
            and "https://shop.example/" in domains
        )

    return {"online": consented("preferences"), "ads": consented("marketing")}


def _salesforce(payload: Any) -> dict[str, bool]:
    if isinstance(payload, dict) and "records" in payload:
        payload = payload["records"]
    rows = _rows([payload] if isinstance(payload, dict) else payload)

    def in_force(row: dict[str, Any]) -> bool:
        start, end = row.get("EffectiveFrom"), row.get("EffectiveTo")
        started = start is None or ((_moment(start) or RECEIVED) <= RECEIVED)
        ended = end is not None and (_moment(end) or RECEIVED) <= RECEIVED
        return (
            row.get("PrivacyConsentStatus") == "OptIn"
            and _past(row.get("CaptureDate"))
            and started
            and not ended
        )

    def granted(purpose: str, kind: str | None) -> bool:
        def concerns(row: dict[str, Any]) -> bool:
            return kind is None or row.get("ContactPointType") == kind

        grants = [
            row for row in rows if row.get("DataUsePurposeId") == purpose and concerns(row) and in_force(row)
        ]
        latest = max((_moment(row.get("CaptureDate")) or RECEIVED for row in grants), default=None)
        refused_since = any(
            row.get("PrivacyConsentStatus") == "OptOut"
            and row.get("DataUsePurposeId") in (purpose, None)
            and concerns(row)
            and latest is not None
            and (_moment(row.get("CaptureDate")) or RECEIVED) >= latest
            for row in rows
        )
        return bool(grants) and not refused_since

    return {
        "crm": granted("purpose-crm", None),
        "contact:email": granted("purpose-ads", "Email"),
        "contact:print": granted("purpose-ads", "MailingAddress"),
        "contact:call_center": granted("purpose-ads", "Phone"),
    }


def _xdm(payload: Any) -> dict[str, bool]:
    plain = json.loads(json.dumps(payload).replace('"xdm:', '"'))
    consents = _at(plain, "consents")
    identities = _at(consents, "idSpecific")
    specific = [
        statement
        for group in (identities.values() if isinstance(identities, dict) else ())
        for statement in (group.values() if isinstance(group, dict) else ())
    ]

    def yes(*path: str) -> bool:
        return _at(consents, *path, "val") == "y" and all(
            _at(statement, *path, "val") in ("y", None) for statement in specific
        )

    marketing = _at(consents, "marketing", "any", "val") not in ("n", "dn")
    return {
        "online": yes("collect") and yes("personalize", "content"),
        "ads": yes("collect") and yes("share") and yes("adID"),
        "contact:email": yes("marketing", "email") and marketing,
        "contact:push": yes("marketing", "push") and marketing,
    }


def _onetrust(payload: Any) -> dict[str, bool]:
    receipts = _rows([payload] if isinstance(payload, dict) else payload)
    dates = ("interactionDate", "consentDate")

    def states(receipt: dict[str, Any], purpose: str) -> list[Any]:
        return [
            row.get("TransactionType") for row in _rows(receipt.get("purposes")) if row.get("Id") == purpose
        ]

    def confirmed(receipt: dict[str, Any], purpose: str) -> bool:
        silent = ("EXTEND", "CHANGE_PREFERENCES")
        found = [state for state in states(receipt, purpose) if state not in silent]
        timely = all(receipt.get(name) is None or _past(receipt.get(name)) for name in dates)
        return (
            bool(found)
            and all(state == "CONFIRMED" for state in found)
            and timely
            and not receipt.get("test")
        )

    return {
        permission: any(confirmed(receipt, purpose) for receipt in receipts)
        for permission, purpose in (("online", "purpose-online"), ("crm", "purpose-crm"))
    }


def _usercentrics(payload: Any) -> dict[str, bool]:
    services = _rows(_at(payload, "services") if isinstance(payload, dict) else payload)

    def decided(entry: dict[str, Any]) -> bool:
        own = entry.get("action") in ("onAcceptAllServices", "onUpdateServices")
        return own and entry.get("type") in ("explicit", "EXPLICIT") and entry.get("status") is True

    def consented(identifier: str) -> bool:
        named = [row for row in services if identifier in (row.get("id"), row.get("templateId"))]
        parts = [row.get("consent", row) for row in named]
        entries = [entry for part in parts for entry in _rows(_at(part, "history"))]
        times = [
            entry["timestamp"]
            for entry in entries
            if decided(entry) and isinstance(entry.get("timestamp"), int)
        ]
        later_no = any(
            entry.get("status") is not True
            and isinstance(entry.get("timestamp"), int)
            and entry["timestamp"] >= max(times)
            for entry in entries
            if times
        )
        limit = (RECEIVED + dt.timedelta(minutes=5)).timestamp() * 1000
        statuses = bool(parts) and all(_at(part, "status") is True for part in parts)
        return statuses and bool(times) and max(times) <= limit and not later_no

    return {"online": consented("recommender"), "ads": consented("advertiser")}


_CONDITIONS: dict[str, Callable[[Any], dict[str, bool]]] = {
    "consent_mode": _consent_mode,
    "shopify": _shopify,
    "segment": _segment,
    "rudderstack": _rudderstack,
    "snowplow": _snowplow,
    "salesforce": _salesforce,
    "xdm": _xdm,
    "onetrust": _onetrust,
    "usercentrics": _usercentrics,
}
