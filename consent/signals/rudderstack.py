"""RudderStack: ``context.consentManagement`` of an event, the category ids allowed and denied.

Which categories a permission needs is a setting: see `CategorySettings`. All of them must be allowed,
whatever ``resolutionStrategy`` says: that is about destinations. An id that is both allowed and denied is
denied, and an event without the object is a refusal.

Source: rudderstack.com/docs/data-governance/consent-management/passing-consent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from consentier.consent.signals.category_events import CategorySettings, decides, decisions, relevant
from consentier.consent.signals.fields import listed, member
from consentier.consent.signals.reading import Decision, Signal, SignalContext
from consentier.errors import SignalError

__all__ = ["RUDDERSTACK"]


def _read(payload: Any, context: SignalContext[CategorySettings]) -> Iterable[Decision]:
    consent = member(payload, "context", "consentManagement")
    if consent is None:
        raise SignalError("the event carries no context.consentManagement")
    allowed = _ids(consent, "allowedConsentIds")
    return decisions(payload, allowed - _ids(consent, "deniedConsentIds"), context)


def _ids(consent: Any, name: str) -> frozenset[str]:
    ids = listed(member(consent, name), name)
    if not all(isinstance(value, str) for value in ids):
        raise SignalError(f"{name} holds what is no id")
    return frozenset(ids)


def _relevant(payload: Any) -> dict[str, Any]:
    return relevant(payload, "consentManagement")


RUDDERSTACK = Signal(
    kind="rudderstack",
    settings=CategorySettings,
    decides=decides,
    read=_read,
    structured=True,
    relevant=_relevant,
)
"""An event of RudderStack's."""
