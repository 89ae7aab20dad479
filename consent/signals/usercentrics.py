"""Usercentrics: the services with their consent histories, as the browser SDK keeps them (``uc_settings``).

Which services (data processing services, by template id) a permission needs is a setting. A service is
consented to if its ``status`` is true and the latest decision of its history is the person's own yes:
``status`` true, ``type`` explicit, by ``onAcceptAllServices`` or ``onUpdateServices``. Entries that set true
otherwise (on the first page load, outside the EU, when a session is restored) are nobody's decision and
change nothing; entries that set false always count. Two decisions at one instant refuse.

Also read are the services alone, as a list, and the form of ``getServicesBaseInfo``, with ``consent`` around
status and history. There is no CRM permission in it.

Source: docs.usercentrics.com/cmp_browser_sdk, ConsentHistory, CONSENT_ACTION, CONSENT_TYPE.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from consentier.consent.signals.fields import (
    among,
    answers,
    instant_of_milliseconds,
    member,
    needed,
    objects,
    refusals,
)
from consentier.consent.signals.reading import Decision, Signal, SignalContext, SignalSettings
from consentier.errors import SignalError

__all__ = ["USERCENTRICS", "UsercentricsSettings"]

_DECIDABLE = frozenset({"online", "ads", "fusion", "model"})
_OWN_DECISIONS = frozenset({"onAcceptAllServices", "onUpdateServices"})
_EXPLICIT = frozenset({"explicit", "EXPLICIT"})
_ENTRY_KEYS = ("action", "status", "timestamp", "type", "versions")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UsercentricsSettings(SignalSettings):
    """How consent histories are read.

    Attributes
    ----------
    services
        For each permission (``online``, ``ads``, ``fusion``, ``model``) the template ids of the services that
        it needs, all of them. Without it nothing is granted.
    """

    services: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        SignalSettings.__post_init__(self)
        object.__setattr__(self, "services", needed(self.services, _DECIDABLE, "services"))


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    """The state of one service: consented to, or why not, and since when."""

    unmet: str | None
    at: dt.datetime | None


def _relevant(payload: Any) -> dict[str, Any]:
    controller = None
    if isinstance(payload, dict):
        controller, payload = payload.get("controllerId"), payload.get("services")
    return {
        "controllerId": controller,
        "services": [
            {
                "id": _identifier(service),
                "status": _of_consent(service, "status"),
                "history": [
                    {key: entry[key] for key in _ENTRY_KEYS if key in entry}
                    for entry in objects(_of_consent(service, "history"), "history")
                ],
            }
            for service in objects(payload, "services")
        ],
    }


def _of_consent(service: dict[str, Any], name: str) -> Any:
    return member(service, "consent", name) if "consent" in service else service.get(name)


def _identifier(service: dict[str, Any]) -> str:
    identifiers = {service[key] for key in ("id", "templateId") if isinstance(service.get(key), str)}
    if len(identifiers) != 1:
        raise SignalError("a service has no single template id")
    return str(identifiers.pop())


def _read(payload: Any, context: SignalContext[UsercentricsSettings]) -> Iterable[Decision]:
    for permission in sorted(_decides(context.settings)):
        services = context.settings.services.get(permission)
        if services is None:
            yield from refusals(permission, "the settings map no service to it")
            continue
        found = [_answer(payload["services"], service) for service in sorted(services)]
        refusing = [answer for answer in found if answer.unmet is not None]
        times = [answer.at for answer in refusing or found if answer.at is not None]
        at = min(times, default=None) if refusing else max(times, default=None)
        yield from answers(permission, [answer.unmet or "" for answer in refusing], at=at)


def _answer(services: Sequence[dict[str, Any]], identifier: str) -> _Answer:
    """What the person decided on one service. Listed twice, it is one service with both histories."""
    named = [service for service in services if service["id"] == identifier]
    decisions = [
        (instant_of_milliseconds(entry.get("timestamp"), "timestamp"), entry.get("status") is not True)
        for service in named
        for entry in service["history"]
        if entry.get("status") is not True or _is_own_decision(entry)
    ]
    if not decisions:
        return _Answer(f"no decision on service {identifier!r}", None)
    at, refuses = max(decisions)
    if refuses or not all(service["status"] is True for service in named):
        return _Answer(f"no consent to service {identifier!r}", at if refuses else None)
    return _Answer(None, at)


def _is_own_decision(entry: dict[str, Any]) -> bool:
    return among(entry.get("action"), _OWN_DECISIONS) and among(entry.get("type"), _EXPLICIT)


def _decides(settings: UsercentricsSettings) -> frozenset[str]:
    return frozenset(settings.services) | {"online"}


USERCENTRICS = Signal(
    kind="usercentrics",
    settings=UsercentricsSettings,
    decides=_decides,
    read=_read,
    structured=True,
    relevant=_relevant,
)
"""Consent histories of Usercentrics'."""
