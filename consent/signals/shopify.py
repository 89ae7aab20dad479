"""Shopify's Customer Privacy API: the visitor's consent, as ``currentVisitorConsent()`` gives it.

========  =============================================================================================
online    ``preferences`` and ``analytics``
ads       ``marketing``, unless ``sale_of_data`` is declined
========  =============================================================================================

``yes`` and true grant, ``no`` and false decline, an empty text, null or a missing key states no preference,
which grants nothing. Checkout extensions put the same under ``visitorConsent`` and write ``saleOfData``: both
are read. The ``…Allowed`` flags are not: they are true as well where a region needs no consent. Consent to
e-mail marketing is another object of Shopify's, and CRM data is not covered.

Source: shopify.dev/docs/api/customer-privacy, …/storefront/latest/input-objects/VisitorConsent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from consentier.consent.signals.fields import answers
from consentier.consent.signals.reading import Decision, Signal, SignalContext, SignalSettings
from consentier.errors import SignalError

__all__ = ["SHOPIFY"]

_SALE = ("sale_of_data", "saleOfData")
_KEYS = ("preferences", "analytics", "marketing", *_SALE)
_ANSWERS = {"yes": True, "no": False, "": None}


def _relevant(payload: Any) -> dict[str, Any]:
    if isinstance(payload, dict) and "visitorConsent" in payload:
        payload = payload["visitorConsent"]
    if not isinstance(payload, dict):
        raise SignalError("the payload is no object")
    return {key: payload[key] for key in _KEYS if key in payload}


def _answer(payload: dict[str, Any], key: str) -> bool | None:
    """True or false as the visitor answered; None where they did not."""
    value = payload.get(key)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _ANSWERS:
        return _ANSWERS[value]
    raise SignalError(f"{key} is neither yes nor no")


def _read(payload: Any, context: SignalContext[SignalSettings]) -> Iterable[Decision]:  # noqa: ARG001
    answer = {key: _answer(payload, key) for key in _KEYS}
    unmet = {key: f"{key} is {'declined' if answer[key] is False else 'not stated'}" for key in _KEYS}
    online = [unmet[key] for key in ("preferences", "analytics") if not answer[key]]
    ads = [unmet[key] for key in ("marketing",) if not answer[key]]
    ads += [unmet[key] for key in _SALE if answer[key] is False]
    yield from answers("online", online)
    yield from answers("ads", ads)


def _decides(_: SignalSettings) -> frozenset[str]:
    return frozenset({"online", "ads"})


SHOPIFY = Signal(
    kind="shopify",
    settings=SignalSettings,
    decides=_decides,
    read=_read,
    structured=True,
    relevant=_relevant,
)
"""A visitor's consent in Shopify."""
