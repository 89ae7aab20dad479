"""What the recommender asks of a ledger, a keyring and an audit, and what services ask of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Protocol

from consentier.consent import Resolution
from consentier.serving.answer import Answer
from consentier.serving.request import Request

__all__ = ["Answering", "AuditSink", "ConsentLedger", "InputKeys"]


class ConsentLedger(Protocol):
    """What the recommender asks of a ledger.

    A late event is stored only if the resolution says since when the permission has held
    (`Resolution.online_since`, ``crm_since``). An event counts for what is trending only if the ledger has
    ``standing``, as `Ledger` does: it says whether statistics may rest on what a visitor does.
    """

    def resolve(
        self,
        *,
        visitor_id: str | None = None,
        customer_id: str | None = None,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
    ) -> Resolution:
        """Resolve visitor and customer at an instant."""
        ...

    def linked_since(
        self,
        customer_id: str,
        *,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
        fusion_purpose: bool = False,
    ) -> Mapping[str, int]:
        """The visitors whose data may be joined to a customer's at an instant, in a fixed order.

        With each the time, in microseconds since the Unix epoch, since when its online data may be read.
        """
        ...


class AuditSink(Protocol):
    """Where each answer is accounted for."""

    def write(self, request: Request, answer: Answer) -> object:
        """Take down one answer. Whatever this raises is logged, and fails no request."""
        ...


class InputKeys(Protocol):
    """A keyring, as far as naming inputs needs one."""

    def digest(self, domain: str, value: str) -> str:
        """Name a value, in one domain of uses, by a keyed digest that says under which key: ``KEYID:hex``."""
        ...


class Answering(Protocol):
    """What answers requests: one recommender, or something that stands before several."""

    def recommend(self, request: Request) -> Answer:
        """Answer a request from the best tier that its permission allows."""
        ...

    def similar(self, item_id: str, *, n: int = 10, exclude: Iterable[str] = ()) -> Answer:
        """Items like one item."""
        ...

    def basket(self, items: Iterable[str], *, n: int = 10, exclude: Iterable[str] = ()) -> Answer:
        """Items that go with a basket."""
        ...
