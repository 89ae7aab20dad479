"""What tests of slow stores and of slow ledgers have in common."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from standing_clock import Clock

from consentier.serving import patience


@pytest.fixture
def hung() -> Iterator[threading.Event]:
    """What a hanging store or ledger waits for; set in the end, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of the circuit breaker's own, which stands still unless it is told to go on."""
    found = Clock()
    monkeypatch.setattr(patience, "time", found)
    return found
