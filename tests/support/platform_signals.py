"""Payloads of consent platforms that grant all they can, with what each of their fields is needed for."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

from consentier.consent.records import ConsentRecord
from consentier.consent.signals import read_signal

__all__ = ["GRANTING", "RECEIVED", "Case", "Place", "altered", "granted", "paths", "read", "value_at"]

RECEIVED = dt.datetime(2026, 6, 1, 12, 0, tzinfo=dt.UTC)

Place = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A payload that grants.

    Attributes
    ----------
    kind, settings
        How it is read.
    payload
        JSON values.
    grants
        The permissions that it grants: all that the kind decides under the settings.
    needed
        For each field that a grant needs, the permissions that it is needed for.
    dates
        Fields that hold times.
    """

    kind: str
    payload: Any
    grants: frozenset[str]
    needed: Mapping[Place, frozenset[str]]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dates: tuple[Place, ...] = ()

    def __repr__(self) -> str:
        return self.kind


def read(case: Case, payload: Any, *, received_at: dt.datetime = RECEIVED) -> list[ConsentRecord]:
    """Read a payload under the settings of a case."""
    return read_signal(case.kind, payload, subject_id="s-1", received_at=received_at, **case.settings)


def granted(case: Case, payload: Any) -> frozenset[str]:
    """The permissions that a payload grants and does not refuse as well."""
    records = read(case, payload)
    refused = {record.permission for record in records if record.state != "granted"}
    return frozenset(record.permission for record in records if record.state == "granted") - refused


def paths(value: Any, prefix: Place = ()) -> Iterator[Place]:
    """All places in JSON values, the whole first."""
    yield prefix
    if isinstance(value, dict):
        for key, child in value.items():
            yield from paths(child, (*prefix, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from paths(child, (*prefix, index))


def value_at(value: Any, path: Place) -> Any:
    """What stands at a place."""
    for step in path:
        value = value[step]
    return value


def altered(payload: Any, path: Place, *replacement: Any) -> Any:
    """A copy with one place replaced, or without it if there is no replacement."""
    if not path:
        return copy.deepcopy(replacement[0]) if replacement else None
    changed = copy.deepcopy(payload)
    parent = value_at(changed, path[:-1])
    if replacement:
        parent[path[-1]] = copy.deepcopy(replacement[0])
    else:
        del parent[path[-1]]
    return changed


_ONLINE = frozenset({"online"})
_ADS = frozenset({"ads"})
_CONTACT = frozenset({"contact:email", "contact:print", "contact:call_center"})


def _row(kind: str, purpose: str) -> dict[str, Any]:
    return {
        "attributes": {"type": "ContactPointTypeConsent"},
        "PartyId": "0PK1",
        "ContactPointType": kind,
        "CaptureContactPointType": "Web",
        "CaptureDate": "2026-03-01T10:00:00.000+0000",
        "DataUsePurposeId": purpose,
        "DoubleConsentCaptureDate": "2026-03-01T10:05:00.000+0000",
        "EffectiveFrom": "2026-03-01T10:00:00.000+0000",
        "EffectiveTo": "2027-03-01T10:00:00.000+0000",
        "PrivacyConsentStatus": "OptIn",
    }


def _salesforce() -> Case:
    rows = [
        _row("Web", "purpose-crm"),
        _row("Email", "purpose-ads"),
        _row("MailingAddress", "purpose-ads"),
        _row("Phone", "purpose-ads"),
    ]
    concerned = [
        frozenset({name}) for name in ("crm", "contact:email", "contact:print", "contact:call_center")
    ]
    fields = ("CaptureDate", "DataUsePurposeId", "PrivacyConsentStatus")
    needed = {
        ("records", index, field): permissions
        for index, permissions in enumerate(concerned)
        for field in (*fields, *(["ContactPointType"] if index else []))
    }
    dates = tuple(
        ("records", index, field)
        for index in range(len(rows))
        for field in ("CaptureDate", "DoubleConsentCaptureDate", "EffectiveFrom")
    )
    return Case(
        kind="salesforce",
        payload={"totalSize": 4, "done": True, "records": rows},
        settings={"crm_purposes": {"purpose-crm"}, "contact_purposes": {"purpose-ads"}},
        grants=frozenset({"crm"}) | _CONTACT,
        needed=needed,
        dates=dates,
    )


def _usercentrics() -> Case:
    history = [
        {
            "action": "onInitialPageLoad",
            "language": "de",
            "status": False,
            "timestamp": 1_780_000_000_000,
            "type": "implicit",
            "versions": {"application": "4.41.0", "service": "3.0.1", "settings": "12.0.0"},
        },
        {
            "action": "onAcceptAllServices",
            "language": "de",
            "status": True,
            "timestamp": 1_780_000_060_000,
            "type": "explicit",
            "versions": {"application": "4.41.0", "service": "3.0.1", "settings": "12.0.0"},
        },
    ]
    services = [
        {"history": history, "id": identifier, "processorId": f"p-{identifier}", "status": True}
        for identifier in ("recommender", "advertiser")
    ]
    needed = {
        ("services", index, *field): permissions
        for index, permissions in enumerate((_ONLINE, _ADS))
        for field in (
            ("id",),
            ("status",),
            ("history",),
            ("history", 1, "action"),
            ("history", 1, "status"),
            ("history", 1, "timestamp"),
            ("history", 1, "type"),
        )
    }
    return Case(
        kind="usercentrics",
        payload={"controllerId": "c-1", "id": "settings", "language": "de", "services": services},
        settings={"services": {"online": ["recommender"], "ads": ["advertiser"]}},
        grants=_ONLINE | _ADS,
        needed=needed,
    )


GRANTING = {
    case.kind: case
    for case in (
        Case(
            kind="consent_mode",
            payload={
                "ad_storage": "granted",
                "ad_user_data": "granted",
                "ad_personalization": "granted",
                "analytics_storage": "granted",
                "functionality_storage": "granted",
                "personalization_storage": "granted",
                "security_storage": "granted",
            },
            grants=_ONLINE | _ADS,
            needed={
                ("personalization_storage",): _ONLINE,
                ("analytics_storage",): _ONLINE,
                ("ad_storage",): _ADS,
                ("ad_user_data",): _ADS,
                ("ad_personalization",): _ADS,
            },
        ),
        Case(
            kind="shopify",
            payload={"analytics": "yes", "marketing": "yes", "preferences": "yes", "sale_of_data": "yes"},
            grants=_ONLINE | _ADS,
            needed={("analytics",): _ONLINE, ("preferences",): _ONLINE, ("marketing",): _ADS},
        ),
        Case(
            kind="segment",
            payload={
                "type": "track",
                "event": "Product Viewed",
                "timestamp": "2026-06-01T11:59:58.123Z",
                "context": {
                    "ip": "192.0.2.1",
                    "consent": {
                        "categoryPreferences": {
                            "Functional": True,
                            "Analytics": True,
                            "Advertising": True,
                            "DataSharing": False,
                        }
                    },
                },
            },
            settings={"categories": {"online": ["Functional", "Analytics"], "ads": ["Advertising"]}},
            grants=_ONLINE | _ADS,
            needed={
                ("context", "consent", "categoryPreferences"): _ONLINE | _ADS,
                ("context", "consent", "categoryPreferences", "Functional"): _ONLINE,
                ("context", "consent", "categoryPreferences", "Analytics"): _ONLINE,
                ("context", "consent", "categoryPreferences", "Advertising"): _ADS,
            },
            dates=(("timestamp",),),
        ),
        Case(
            kind="rudderstack",
            payload={
                "type": "track",
                "timestamp": "2026-06-01T11:59:58.123Z",
                "context": {
                    "consentManagement": {
                        "allowedConsentIds": ["C0001", "C0003", "C0004"],
                        "deniedConsentIds": ["C0002"],
                        "provider": "oneTrust",
                        "resolutionStrategy": "or",
                    },
                    "traits": {"email": "person@example.com"},
                },
            },
            settings={"categories": {"online": ["C0001", "C0003"], "ads": ["C0004"]}},
            grants=_ONLINE | _ADS,
            needed={
                ("context", "consentManagement"): _ONLINE | _ADS,
                ("context", "consentManagement", "allowedConsentIds"): _ONLINE | _ADS,
                ("context", "consentManagement", "allowedConsentIds", 0): _ONLINE,
                ("context", "consentManagement", "allowedConsentIds", 1): _ONLINE,
                ("context", "consentManagement", "allowedConsentIds", 2): _ADS,
            },
            dates=(("timestamp",),),
        ),
        Case(
            kind="snowplow",
            payload={
                "schema": "iglu:com.snowplowanalytics.snowplow/consent_preferences/jsonschema/1-0-0",
                "data": {
                    "basisForProcessing": "consent",
                    "consentVersion": "3",
                    "consentScopes": ["necessary", "preferences", "marketing"],
                    "domainsApplied": ["https://shop.example/"],
                    "consentUrl": "https://shop.example/privacy",
                    "eventType": "allow_selected",
                    "gdprApplies": True,
                },
            },
            settings={
                "scopes": {"online": ["preferences"], "ads": ["marketing"]},
                "domains": ["https://shop.example/"],
            },
            grants=_ONLINE | _ADS,
            needed={
                ("data",): _ONLINE | _ADS,
                ("data", "basisForProcessing"): _ONLINE | _ADS,
                ("data", "eventType"): _ONLINE | _ADS,
                ("data", "domainsApplied", 0): _ONLINE | _ADS,
                ("data", "consentScopes"): _ONLINE | _ADS,
                ("data", "consentScopes", 1): _ONLINE,
                ("data", "consentScopes", 2): _ADS,
            },
        ),
        _salesforce(),
        Case(
            kind="xdm",
            payload={
                "consents": {
                    "collect": {"val": "y"},
                    "adID": {"idType": "GAID", "val": "y"},
                    "share": {"val": "y"},
                    "personalize": {"content": {"val": "y"}},
                    "marketing": {
                        "preferred": "email",
                        "any": {"val": "u"},
                        "email": {"val": "y", "time": "2026-05-01T09:00:00+00:00"},
                        "push": {"val": "y"},
                    },
                    "metadata": {"time": "2026-05-01T08:00:00+02:00"},
                    "idSpecific": {"ECID": {"1234": {"marketing": {"email": {"val": "y"}}}}},
                }
            },
            grants=frozenset({"online", "ads", "contact:email", "contact:push"}),
            needed={
                ("consents", "collect", "val"): _ONLINE | _ADS,
                ("consents", "personalize", "content", "val"): _ONLINE,
                ("consents", "adID", "val"): _ADS,
                ("consents", "share", "val"): _ADS,
                ("consents", "marketing", "email", "val"): frozenset({"contact:email"}),
                ("consents", "marketing", "push", "val"): frozenset({"contact:push"}),
            },
            dates=(("consents", "marketing", "email", "time"), ("consents", "metadata", "time")),
        ),
        Case(
            kind="onetrust",
            payload={
                "requestInformation": "token",
                "identifier": "person@example.com",
                "identifierType": "Email",
                "interactionDate": "2026-06-01T11:55:00Z",
                "consentDate": "2026-06-01T11:55:00Z",
                "test": False,
                "purposes": [
                    {
                        "Id": "purpose-online",
                        "Version": 1,
                        "TransactionType": "CONFIRMED",
                        "ExpiryDate": "2027-06-01T00:00:00Z",
                    },
                    {"Id": "purpose-crm", "Version": 2, "TransactionType": "CONFIRMED"},
                ],
            },
            settings={
                "purposes": {"online": ["purpose-online"], "crm": ["purpose-crm"]},
                "unrelated": ["sms"],
            },
            grants=frozenset({"online", "crm"}),
            needed={
                ("purposes",): frozenset({"online", "crm"}),
                ("purposes", 0, "Id"): _ONLINE,
                ("purposes", 0, "TransactionType"): _ONLINE,
                ("purposes", 1, "Id"): frozenset({"crm"}),
                ("purposes", 1, "TransactionType"): frozenset({"crm"}),
            },
            dates=(("interactionDate",), ("consentDate",)),
        ),
        _usercentrics(),
    )
}
"""Of each kind one payload that grants all that signals of the kind decide under its settings."""
