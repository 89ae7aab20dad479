"""What Segment and RudderStack have in common: the consent to categories that travels on every event.

A permission is granted when the person consented to all categories that the shop's settings say it needs, and
refused otherwise: also where the event carries no consent at all. (Both platforms let such events through.)

Events may arrive late, and old ones be replayed. A grant takes effect when it is received, so one that is
older than `CategorySettings.longest_delay` is not taken: it could outrank a refusal given since. A refusal
always is.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from consentier.consent.signals.fields import answers, instant, member, needed, require_delay
from consentier.consent.signals.reading import Decision, SignalContext, SignalSettings
from consentier.errors import SignalError

__all__ = ["CategorySettings", "decides", "decisions", "relevant"]

_DECIDABLE = frozenset({"online", "ads", "fusion", "model"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CategorySettings(SignalSettings):
    """How consent to categories is read.

    Attributes
    ----------
    categories
        For each permission (``online``, ``ads``, ``fusion``, ``model``) the ids of the categories that it
        needs, all of them. Without it nothing is granted.
    longest_delay
        An event that was older when it arrived grants nothing.
    """

    categories: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    longest_delay: dt.timedelta = dt.timedelta(hours=1)

    def __post_init__(self) -> None:
        SignalSettings.__post_init__(self)
        object.__setattr__(self, "categories", needed(self.categories, _DECIDABLE, "categories"))
        require_delay(self.longest_delay)


def decides(settings: CategorySettings) -> frozenset[str]:
    """All that is mapped, and the online permission in any case: unmapped, it is refused."""
    return frozenset(settings.categories) | {"online"}


def relevant(payload: Any, name: str) -> dict[str, Any]:
    """The consent object of an event and its time: no evidence needs what else the event holds."""
    if not isinstance(payload, dict):
        raise SignalError("the payload is no object")
    return {"context": {name: member(payload, "context", name)}, "timestamp": payload.get("timestamp")}


def decisions(
    payload: Any, consented: Collection[str], context: SignalContext[CategorySettings]
) -> Iterable[Decision]:
    """What consent to some categories grants and refuses."""
    settings = context.settings
    at = instant(payload["timestamp"], "timestamp")
    late = at is not None and context.received_at - at > settings.longest_delay
    for permission in sorted(decides(settings)):
        categories = settings.categories.get(permission, ())
        unmet = [
            f"no consent to {category!r}" for category in sorted(categories) if category not in consented
        ]
        if not categories:
            unmet = ["the settings map no category to it"]
        if unmet or not late:
            yield from answers(permission, unmet, at=at)
