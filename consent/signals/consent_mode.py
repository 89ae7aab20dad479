"""Google Consent Mode v2: the object of a ``gtag('consent', 'update', {…})``, with all its keys.

========  =============================================================================================
online    ``personalization_storage`` (on-site recommendations are Google's own example of it) and, while
          history is collected through analytics, ``analytics_storage``
ads       ``ad_storage``, ``ad_user_data`` and ``ad_personalization``
========  =============================================================================================

Only the value ``granted`` grants, and a missing key is not granted. There is no CRM permission in it:
``ad_user_data`` is about sending data to Google. Hand over the whole state, not a partial update: what a
payload leaves out is refused.

Source: support.google.com/analytics/answer/13802165.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from consentier.consent.signals.fields import answers
from consentier.consent.signals.reading import Decision, Signal, SignalContext, SignalSettings
from consentier.errors import SignalError

__all__ = ["CONSENT_MODE", "ConsentModeSettings"]

_ADS = ("ad_storage", "ad_user_data", "ad_personalization")
_KEYS = (*_ADS, "analytics_storage", "functionality_storage", "personalization_storage", "security_storage")
_OF_A_DEFAULT = ("region", "wait_for_update")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConsentModeSettings(SignalSettings):
    """How Consent Mode is read.

    Attributes
    ----------
    history_through_analytics
        Whether the usage data that recommendations rest on is collected through analytics, so that
        ``analytics_storage`` is needed too.
    """

    history_through_analytics: bool = True

    def __post_init__(self) -> None:
        SignalSettings.__post_init__(self)
        through_analytics: object = self.history_through_analytics
        if not isinstance(through_analytics, bool):
            raise TypeError(f"history_through_analytics must be true or false, not {through_analytics!r}")


def _relevant(payload: Any) -> dict[str, Any]:
    if not isinstance(payload, dict):
        raise SignalError("the payload is no object")
    return {key: payload[key] for key in (*_KEYS, *_OF_A_DEFAULT) if key in payload}


def _read(payload: Any, context: SignalContext[ConsentModeSettings]) -> Iterable[Decision]:
    if any(key in payload for key in _OF_A_DEFAULT):
        raise SignalError("region and wait_for_update belong to a default, which is nobody's choice")
    online = ["personalization_storage"]
    if context.settings.history_through_analytics:
        online.append("analytics_storage")
    for permission, keys in (("online", online), ("ads", _ADS)):
        yield from answers(
            permission, [f"{key} is not granted" for key in keys if payload.get(key) != "granted"]
        )


def _decides(_: ConsentModeSettings) -> frozenset[str]:
    return frozenset({"online", "ads"})


CONSENT_MODE = Signal(
    kind="consent_mode",
    settings=ConsentModeSettings,
    decides=_decides,
    read=_read,
    structured=True,
    relevant=_relevant,
)
"""A state of Google Consent Mode v2."""
