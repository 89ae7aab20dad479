"""The stores of what a shop holds about its customers, as the recommender asks them."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from consentier.consent import Source
from consentier.models.attribute_encoding import AttributeValue
from consentier.serving.patience import Guard
from consentier.serving.profile_base import READ_SECONDS, ProfileStore, StoredAttributes
from consentier.serving.request import Event

__all__ = ["Profiles"]

_NO_ATTRIBUTES: Mapping[str, AttributeValue] = {}

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Profiles:
    """Stores of what the shop holds about its customers: one per source, with no key from one to another.

    Attributes
    ----------
    online
        Events by visitor id, oldest first.
    crm
        Orders and product usage by customer id, oldest first.
    attributes
        Master data by customer id (CRM data).
    deadline
        For how many seconds a request waits for an answer of a store, and how often in vain: see
        `consentier.serving.patience`.

    Raises
    ------
    ValueError
        If one store is given for both sources, or `deadline` is no positive number of seconds.
    """

    online: Mapping[str, Sequence[Event]] = dataclasses.field(default_factory=dict)
    crm: Mapping[str, Sequence[Event]] = dataclasses.field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, AttributeValue]] = dataclasses.field(default_factory=dict)
    deadline: float = READ_SECONDS
    _guards: Mapping[str, Guard] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_deadline(self.deadline)
        _require_apart(self.online, self.crm, self.attributes)
        crm = Guard("CRM profiles", self.crm)
        beside = isinstance(self.attributes, StoredAttributes) and self.attributes.store is self.crm
        guards = {
            "online": Guard("online profiles", self.online),
            "crm": crm,
            "attributes": crm if beside else Guard("attributes", self.attributes),
        }
        object.__setattr__(self, "_guards", guards)

    def within(self, deadline: float) -> Profiles:
        """The same stores, asked with another deadline.

        Raises
        ------
        ValueError
            If the deadline is no positive number of seconds.
        """
        _require_deadline(deadline)
        changed = copy.copy(self)  # with its guards: what is known of the stores stays known
        object.__setattr__(changed, "deadline", deadline)
        return changed

    def online_of(self, visitors: Sequence[str]) -> list[Sequence[Event]]:
        """The online histories of some visitors, all within one deadline.

        Raises
        ------
        StoreUnread
            If the store cannot be read in time.
        """
        ends = time.monotonic() + self.deadline

        def look_up() -> list[Sequence[Event]]:
            found: list[Sequence[Event]] = []
            for visitor in visitors:
                if found and time.monotonic() > ends:
                    raise TimeoutError
                found.append(self.online.get(visitor, ()))
            return found

        return self._guards["online"].ask(look_up, self.deadline) if visitors else []

    def crm_of(self, customer: str) -> Sequence[Event]:
        """The CRM history of a customer.

        Raises
        ------
        StoreUnread
            If the store cannot be read in time.
        """
        return self._guards["crm"].ask(lambda: self.crm.get(customer, ()), self.deadline)

    def attributes_of(self, customer: str) -> Mapping[str, AttributeValue]:
        """The attributes of a customer.

        Raises
        ------
        StoreUnread
            If the store cannot be read in time.
        """
        ask = self._guards["attributes"].ask
        return ask(lambda: self.attributes.get(customer, _NO_ATTRIBUTES), self.deadline)

    def store_of(self, source: Source) -> object:
        """The store of a source's events."""
        return self.online if source is Source.ONLINE else self.crm

    def change(self, source: Source, change: Callable[[], _T], deadline: float) -> _T:
        """Do something to the store of a source, and leave off as from a look-up if it does not answer.

        Raises
        ------
        StoreUnread
            If the store fails or does not answer in time. In a store that answers late the change may still
            be made.
        """
        return self._guards["online" if source is Source.ONLINE else "crm"].ask(change, deadline)


def _require_deadline(deadline: float) -> None:
    if not 0 < deadline < math.inf:
        raise ValueError(
            f"a deadline for stores of profiles must be a positive number of seconds, not {deadline!r}"
        )


def _require_apart(online: object, crm: object, attributes: object) -> None:
    """No store for two sources: its ids would lead from one to the other."""
    if not isinstance(online, ProfileStore):
        return
    for other in (crm, attributes.store if isinstance(attributes, StoredAttributes) else None):
        if isinstance(other, ProfileStore) and other.place == online.place:
            raise ValueError(
                f"{online.place}: one store cannot hold online and CRM profiles; give each its own"
            )
