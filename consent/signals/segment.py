"""Twilio Segment: ``context.consent.categoryPreferences`` of an event, category ids with true or false.

Which categories a permission needs is a setting: see `CategorySettings`. An event without the object is a
refusal here, although Segment lets it through. Segment advises against using it for communication
preferences, so no contact permission can be mapped, and no CRM permission.

Source: twilio.com/docs/segment/privacy/consent-management/consent-in-segment-connections.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from consentier.consent.signals.category_events import CategorySettings, decides, decisions, relevant
from consentier.consent.signals.fields import member
from consentier.consent.signals.reading import Decision, Signal, SignalContext
from consentier.errors import SignalError

__all__ = ["SEGMENT"]


def _read(payload: Any, context: SignalContext[CategorySettings]) -> Iterable[Decision]:
    preferences = member(payload, "context", "consent", "categoryPreferences")
    if preferences is None:
        raise SignalError("the event carries no context.consent.categoryPreferences")
    if not isinstance(preferences, dict):
        raise SignalError("categoryPreferences is no object")
    return decisions(payload, {category for category, value in preferences.items() if value is True}, context)


def _relevant(payload: Any) -> dict[str, Any]:
    return relevant(payload, "consent")


SEGMENT = Signal(
    kind="segment",
    settings=CategorySettings,
    decides=decides,
    read=_read,
    structured=True,
    relevant=_relevant,
)
"""An event of Segment's."""
