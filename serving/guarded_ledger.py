"""The consent ledger as requests ask it: each waits only so long, and one that hangs is left alone.

While it is left alone nothing is permitted, and what it said before counts for nothing: see
`consentier.serving.patience` for when it is asked again.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from consentier.consent import Resolution, Source
from consentier.consent.ledger import Standing
from consentier.serving.patience import Guard, StoreUnread
from consentier.serving.protocols import ConsentLedger

__all__ = ["LEDGER_FAULT", "LEDGER_SECONDS", "GuardedLedger"]

LEDGER_SECONDS = 0.25
"""So long a request waits for the ledger before it is answered as if nothing were permitted."""

LEDGER_FAULT = "ledger"
"""What begins the reason of an answer for which the ledger could not be asked."""

NO_STANDING = "has no method 'standing', so it cannot say what statistics may rest on"
"""What is said of a ledger of a shop's own without it: no event counts for what is trending, then."""

_T = TypeVar("_T")


class GuardedLedger:
    """A ledger with a deadline and a circuit breaker.

    Safe to use from any number of threads, and after a fork. Every method raises `StoreUnread` if the ledger
    fails, gives no answer in time or no proper one, or is left alone because it gave none in time lately. The
    message quotes no data.

    Parameters
    ----------
    ledger
        Whom to ask. One whose ``answers_within`` is within the deadline is asked where the request runs, any
        other from a thread.
    deadline
        For how many seconds to wait for each answer.

    Raises
    ------
    ValueError
        If `deadline` is no positive number of seconds.

    Attributes
    ----------
    ledger
        The ledger that is asked.
    deadline
        As given.
    """

    def __init__(self, ledger: ConsentLedger, deadline: float = LEDGER_SECONDS) -> None:
        self.ledger = ledger
        self.deadline = _checked(deadline)
        self._guard = Guard(LEDGER_FAULT, ledger)

    def within(self, deadline: float) -> GuardedLedger:
        """The same ledger, asked with another deadline; what is known of it stays known.

        Raises
        ------
        ValueError
            If the deadline is no positive number of seconds.
        """
        other = GuardedLedger.__new__(GuardedLedger)
        other.ledger, other.deadline, other._guard = self.ledger, _checked(deadline), self._guard
        return other

    def resolve(
        self,
        *,
        visitor_id: str | None = None,
        customer_id: str | None = None,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
    ) -> Resolution:
        """As `Ledger.resolve`."""

        def question() -> Resolution:
            found = self.ledger.resolve(
                visitor_id=visitor_id, customer_id=customer_id, at=at, known_at=known_at
            )
            if not isinstance(found, Resolution):
                raise TypeError(f"the ledger returned {type(found).__name__}")
            return found

        return self._ask(question)

    def linked_since(
        self,
        customer_id: str,
        *,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
        fusion_purpose: bool = False,
    ) -> Mapping[str, int]:
        """As `Ledger.linked_since`."""
        return self._ask(
            lambda: self.ledger.linked_since(
                customer_id, at=at, known_at=known_at, fusion_purpose=fusion_purpose
            )
        )

    def standing(
        self, source: Source, subject_id: str, *, at: dt.datetime, model_purpose: bool = False
    ) -> Standing:
        """As `Ledger.standing`; a ledger that has no such method cannot tell."""
        ledger: Any = self.ledger
        if not hasattr(ledger, "standing"):
            raise StoreUnread(f"{LEDGER_FAULT}: {NO_STANDING}")

        def question() -> Standing:
            found: Standing = ledger.standing(source, subject_id, at=at, model_purpose=model_purpose)
            return found

        return self._ask(question)

    def _ask(self, question: Callable[[], _T]) -> _T:
        return self._guard.ask(question, self.deadline)


def _checked(deadline: float) -> float:
    if not 0 < deadline < math.inf:
        raise ValueError(f"a deadline for the ledger must be a positive number of seconds, not {deadline!r}")
    return deadline
