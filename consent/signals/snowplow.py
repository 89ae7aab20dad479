"""Snowplow: the event ``consent_preferences`` of the Enhanced Consent plugin.

========================  ==============================================================================
allow_all, allow_selected  grant what the settings say that the ``consentScopes`` of the event cover, if
                           ``basisForProcessing`` is ``consent``
deny_all, expired          deny all
withdrawn                  withdraws all
pending, implicit_consent  are no consent: deny all
========================  ==============================================================================

Also where all was allowed, only scopes that are listed count. The event itself holds no time: hand over the
collector's as `received_at` where events are loaded in batches, and read them in its order.

Source: docs.snowplow.io/docs/events/ootb-data/consent-events.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from consentier.consent.signals.fields import among, answers, listed, member, names, needed, refusals
from consentier.consent.signals.reading import Decision, Signal, SignalContext, SignalSettings
from consentier.errors import SignalError

__all__ = ["SNOWPLOW", "SnowplowSettings"]

_DECIDABLE = frozenset({"online", "ads", "fusion", "model"})
_SCHEMA = re.compile(
    r"iglu:com\.snowplowanalytics\.snowplow/consent_preferences/jsonschema/1-\d+-\d+", re.ASCII
)
_GRANTING = frozenset({"allow_all", "allow_selected"})
_REFUSING = {
    "deny_all": "denied",
    "expired": "denied",
    "pending": "denied",
    "implicit_consent": "denied",
    "withdrawn": "withdrawn",
}
_KEYS = (
    "eventType",
    "basisForProcessing",
    "consentScopes",
    "consentVersion",
    "consentUrl",
    "domainsApplied",
    "gdprApplies",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SnowplowSettings(SignalSettings):
    """How consent events are read.

    Attributes
    ----------
    scopes
        For each permission (``online``, ``ads``, ``fusion``, ``model``) the consent scopes that it needs, all
        of them. Without it nothing is granted.
    domains
        The shop's domains, as ``domainsApplied`` writes them. Where they are given, a consent that names none
        of them grants nothing.
    """

    scopes: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    domains: Collection[str] = frozenset()

    def __post_init__(self) -> None:
        SignalSettings.__post_init__(self)
        object.__setattr__(self, "scopes", needed(self.scopes, _DECIDABLE, "scopes"))
        object.__setattr__(self, "domains", names(self.domains, "domains"))


def _relevant(payload: Any) -> dict[str, Any]:
    """The event's own data, out of the self-describing JSON around it."""
    if isinstance(payload, dict) and "schema" in payload:
        schema = payload["schema"]
        if not isinstance(schema, str) or not _SCHEMA.fullmatch(schema):
            raise SignalError("the schema is not consent_preferences, version 1")
        payload = payload.get("data")
    if not isinstance(payload, dict):
        raise SignalError("the payload is no object")
    return {key: payload[key] for key in _KEYS if key in payload}


def _read(payload: Any, context: SignalContext[SnowplowSettings]) -> Iterable[Decision]:
    event_type = member(payload, "eventType")
    if not among(event_type, _GRANTING | _REFUSING.keys()):
        raise SignalError("eventType is none that consent_preferences has")
    scopes = _texts(payload, "consentScopes")
    common = list(_unmet_by_all(payload, context.settings))
    for permission in sorted(_decides(context.settings)):
        if event_type in _REFUSING:
            yield from refusals(permission, f"eventType is {event_type}", state=_REFUSING[event_type])
        else:
            yield from answers(permission, [*common, *_unmet(permission, scopes, context.settings)])


def _unmet_by_all(payload: Any, settings: SnowplowSettings) -> Iterable[str]:
    """What every grant needs of the event."""
    if payload.get("basisForProcessing") != "consent":
        yield "basisForProcessing is not consent"
    if settings.domains and not _texts(payload, "domainsApplied").intersection(settings.domains):
        yield "domainsApplied names no domain of the shop"


def _unmet(permission: str, scopes: Collection[str], settings: SnowplowSettings) -> Iterable[str]:
    if permission not in settings.scopes:
        yield "the settings map no scope to it"
    for scope in sorted(settings.scopes.get(permission, ())):
        if scope not in scopes:
            yield f"no consent to {scope!r}"


def _texts(payload: Any, name: str) -> frozenset[str]:
    texts = listed(payload.get(name), name)
    if not all(isinstance(text, str) for text in texts):
        raise SignalError(f"{name} holds what is no text")
    return frozenset(texts)


def _decides(settings: SnowplowSettings) -> frozenset[str]:
    return frozenset(settings.scopes) | {"online"}


SNOWPLOW = Signal(
    kind="snowplow",
    settings=SnowplowSettings,
    decides=_decides,
    read=_read,
    structured=True,
    relevant=_relevant,
)
"""An event ``consent_preferences`` of Snowplow's."""
