"""A clock for the circuit breaker, which stands still unless it is told to go on."""

from __future__ import annotations


class Clock:
    """What `consentier.serving.patience` takes for the time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now
