"""Taking in what happens: an event is stored under the permission of that moment, or not at all.

The permission is asked for before the event is stored and once more after it. A withdrawal is recorded first
and purges then, so whichever of the two comes first, nothing is left of an event that crossed it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
from collections.abc import Callable
from typing import Any, Protocol

from consentier.consent import Permission, Resolution, Source, microseconds
from consentier.serving.patience import StoreUnread
from consentier.serving.profile_base import ProfileStore
from consentier.serving.profiles import Profiles
from consentier.serving.protocols import ConsentLedger
from consentier.serving.request import Event
from consentier.serving.scoring_settings import NO_INTEREST
from consentier.serving.trending import Counting

__all__ = ["OBSERVE_SECONDS", "Observed", "observe"]

OBSERVE_SECONDS = 1.0
"""So long an event waits for a store that does not give up by itself."""

_log = logging.getLogger("consentier.serving")

_NEEDED = {Source.ONLINE: Permission.ONLINE, Source.CRM: Permission.CRM}


class _TakesEvents(Protocol):
    def append(self, subject: str, events: list[Event]) -> object: ...

    def purge(self, subject: str) -> object: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Observed:
    """What became of an event.

    Attributes
    ----------
    stored
        Whether it is in the store.
    source
        Whose permission it needed: online or crm.
    reason
        Why it is stored, or why not. Quotes nothing of the event.
    ledger_position
        The position of the ledger's last entry when it was asked; None where it was not, or could not answer.
    counted
        Whether it counts for what is trending (`consentier.serving.trending`).
    """

    stored: bool
    source: Source
    reason: str
    ledger_position: int | None = None
    counted: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Arrival:
    """An event on its way into a store, and whom to ask about it."""

    event: Event
    at: dt.datetime
    arrived: dt.datetime
    source: Source
    subject: str
    declared: Permission | None
    ledger: ConsentLedger | None
    clock: Callable[[], dt.datetime]

    def outcome(
        self,
        reason: str,
        *,
        stored: bool = False,
        counted: bool = False,
        resolution: Resolution | None = None,
    ) -> Observed:
        position = None if resolution is None else resolution.ledger_position
        return Observed(stored, self.source, reason, position, counted)

    def resolve(self, at: dt.datetime) -> Resolution:
        """What the subject permits at an instant; whatever is in doubt is denied."""
        if self.ledger is None:
            if self.declared is None:
                return Resolution(reasons=("no permission declared and no ledger",))
            return Resolution.declared(self.declared)
        online = self.source is Source.ONLINE
        found = self.ledger.resolve(
            visitor_id=self.subject if online else None,
            customer_id=None if online else self.subject,
            at=at,
        )
        if not isinstance(found, Resolution):
            raise TypeError(f"the ledger returned {type(found).__name__}")
        return found if self.declared is None else found.intersected(self.declared)

    def refusal(self, resolution: Resolution) -> str:
        """Why the event may not be stored; empty if it may."""
        if _NEEDED[self.source] not in resolution.permission:
            if resolution.objected or resolution.minor:
                return "an objection stands" if resolution.objected else "a minor without parental consent"
            return "; ".join(("not permitted", *resolution.reasons))
        since = resolution.online_since if self.source is Source.ONLINE else resolution.crm_since
        if since is None:  # without a ledger, whoever declares a permission answers for it
            late = self.ledger is not None and self.at < self.arrived
            return "the ledger does not say since when that is permitted" if late else ""
        if microseconds(self.at) < since:  # a later grant legalises nothing
            return "not permitted from the event until now"
        return ""

    def count(self, counting: Counting | None) -> bool:
        """Count the event for what is trending, if that is permitted for as long as it counts."""
        if counting is None or self.event.event_type in NO_INTEREST:
            return False
        try:
            if not (counting.shows(self.event.item_id) and self.contributes(counting)):
                return False
        except Exception as error:  # noqa: BLE001 - a fault, whatever it is, lets nothing count and is reported
            why = str(error) if isinstance(error, StoreUnread) else type(error).__name__
            _log.warning("observe: whether the event counts could not be told: %s", why)
            return False
        return counting.trending.count(self.subject, self.event.item_id, self.at)

    def contributes(self, counting: Counting) -> bool:
        """Whether statistics may rest on the event, until it counts no more, by all that is known now.

        A grant that ends before that lets nothing count: nobody would come and take it out then.
        """
        if self.ledger is None:
            return not counting.model_purpose
        ledger: Any = self.ledger  # one that cannot tell denies
        standing = ledger.standing(
            self.source,
            self.subject,
            at=counting.trending.ends(self.at),
            model_purpose=counting.model_purpose,
        )
        return standing.since is not None and standing.since <= microseconds(self.at)


def observe(
    event: Event,
    *,
    ledger: ConsentLedger | None,
    profiles: Profiles | None,
    clock: Callable[[], dt.datetime],
    visitor_id: str | None = None,
    customer_id: str | None = None,
    permission: Permission | None = None,
    at: dt.datetime | None = None,
    counting: Counting | None = None,
) -> Observed:
    """Store an event in the store of its source, and count it, if the subject permits it.

    Parameters
    ----------
    event
        What happened.
    ledger
        Whom to ask about the permission. Without one, `permission` is what counts.
    profiles
        The stores. Those of `ProfileStore` take events; so does any with ``append`` and ``purge``.
    clock
        Says what time it is.
    visitor_id, customer_id
        Whose event it is: one of the two. A visitor's (usage of shop and app) goes to the online store and
        needs the online permission, a customer's (orders, product usage) to the CRM store and needs the CRM
        permission.
    permission
        What the shop itself declares; with a ledger, what counts is the intersection.
    at
        When it happened, for an event that brings no time; now by default.
    counting
        Where a visitor's event counts for what is trending, with a store or without one; None: nowhere.

    Returns
    -------
    Observed
        Whether the event is stored, and why not. An event that lies in the future is not; nor is one at whose
        time, or after which, the permission did not hold. A ledger that does not say since when it has
        (`Resolution.online_since`, ``crm_since``) lets only what happens now be stored.

    Raises
    ------
    TypeError, ValueError
        For wrong arguments. Faults of ledger and stores are told in the result, and logged.
    """
    now = clock()
    arrival = _arrival(event, visitor_id, customer_id, permission, at, now, ledger, clock)
    if arrival.source is not Source.ONLINE:
        counting = None  # one person's orders and visits would count twice, or need a link not to
    store: Any = None if profiles is None else profiles.store_of(arrival.source)
    no_store = f"there is no store of {arrival.source} profiles that takes events"
    if not (hasattr(store, "append") and hasattr(store, "purge")):
        profiles = None
    if profiles is None and counting is None:
        return arrival.outcome(no_store)
    if arrival.at > now:
        return arrival.outcome("the event lies in the future")
    try:
        resolution = arrival.resolve(now)
        refusal = arrival.refusal(resolution)
    except Exception as error:  # noqa: BLE001 - a ledger's fault, whatever it is, denies and is reported
        fault = _fault(error)
        _log.warning("observe: the consent %s", fault)
        return arrival.outcome(fault)
    if refusal:
        if _NEEDED[arrival.source] not in resolution.permission:
            _take_back(arrival, counting)
        return arrival.outcome(refusal, resolution=resolution)
    if profiles is None:
        found = _taken_in(arrival, None, counting, resolution)
        return dataclasses.replace(found, reason=no_store) if found.reason == "permitted" else found
    if isinstance(store, ProfileStore) and not store.keeps(arrival.event):
        return arrival.outcome("older than the store keeps anything", resolution=resolution)
    try:
        return profiles.change(
            arrival.source, lambda: _taken_in(arrival, store, counting, resolution), OBSERVE_SECONDS
        )
    except StoreUnread as unread:
        _log.warning("observe: %s", unread)
        return arrival.outcome(str(unread), resolution=resolution)


def _fault(error: Exception) -> str:
    """What went wrong at the ledger, without a word of its own message, which may name somebody."""
    return str(error) if isinstance(error, StoreUnread) else f"ledger: failed with {type(error).__name__}"


def _taken_in(
    arrival: _Arrival, store: _TakesEvents | None, counting: Counting | None, resolution: Resolution
) -> Observed:
    """Store and count an event, and take all of the subject away again if it has just withdrawn."""
    stored = store is not None
    if store is not None:
        store.append(arrival.subject, [arrival.event])
    counted = arrival.count(counting)
    try:
        again = arrival.resolve(arrival.clock())
        refusal = arrival.refusal(again)
    except Exception as error:  # noqa: BLE001 - it was permitted a moment ago; a fault is no withdrawal
        _log.warning("observe: the permission could not be confirmed: %s", _fault(error))
        return arrival.outcome("permitted", stored=stored, counted=counted, resolution=resolution)
    if refusal:
        if store is not None:
            store.purge(arrival.subject)
        _take_back(arrival, counting)
        return arrival.outcome(f"{refusal}; purged", resolution=again)
    return arrival.outcome("permitted", stored=stored, counted=counted, resolution=again)


def _take_back(arrival: _Arrival, counting: Counting | None) -> None:
    """Take out of what is trending all that a visitor counts there who permits nothing any more."""
    if counting is not None:
        counting.trending.purge(arrival.subject)


def _arrival(
    event: Event,
    visitor_id: str | None,
    customer_id: str | None,
    permission: Permission | None,
    at: dt.datetime | None,
    now: dt.datetime,
    ledger: ConsentLedger | None,
    clock: Callable[[], dt.datetime],
) -> _Arrival:
    """The arguments, checked."""
    if not isinstance(event, Event):
        raise TypeError(f"observe takes a consentier.Event, not {type(event).__name__}")
    if (visitor_id is None) == (customer_id is None):
        raise ValueError("observe: say whose event it is: either visitor_id or customer_id")
    if permission is not None and not isinstance(permission, Permission):
        raise TypeError(f"observe: permission must be a consentier.Permission or None, not {permission!r}")
    source = Source.ONLINE if visitor_id is not None else Source.CRM
    subject = visitor_id if visitor_id is not None else customer_id
    if not isinstance(subject, str):
        raise TypeError(f"observe: an id must be a string, not {type(subject).__name__}")
    if at is not None:
        microseconds(at)
        if event.ts is not None and event.ts != at:
            raise ValueError("observe: the event brings a time of its own; leave `at` out")
    instant = event.ts or at or now  # without a time it happens now, however the clock goes on
    event = dataclasses.replace(event, ts=instant)
    return _Arrival(event, instant, now, source, subject, permission, ledger, clock)
