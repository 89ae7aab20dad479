"""What time it is."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable

from consentier.serving.forking import tell_of_forks

__all__ = ["forward_only", "utc_now"]

_log = logging.getLogger("consentier.serving")

_TOLD_FROM = dt.timedelta(seconds=1)
"""Smaller steps back are those of any clock that is being set right, and are not worth a line in the log."""


def forward_only(clock: Callable[[], dt.datetime]) -> Callable[[], dt.datetime]:
    """A clock that stands still where another goes back, until that has caught up.

    What was withdrawn at ten must not be permitted again because the machine's clock is put back to nine. A
    clock that was ahead by mistake stays there until the process is started anew: permissions end too early
    then, never too late.
    """
    latest = _Latest()
    tell_of_forks(latest)
    return lambda: latest.after(clock())


class _Latest:
    """The latest instant that a clock has told."""

    def __init__(self) -> None:
        self._instant = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._told = False
        self._lock = threading.Lock()

    def after(self, instant: dt.datetime) -> dt.datetime:
        """The latest instant, now that the clock has told another."""
        with self._lock:
            if instant >= self._instant:
                self._instant, self._told = instant, False
            elif not self._told and self._instant - instant >= _TOLD_FROM:
                self._told = True
                _log.warning(
                    "the clock went back by %s: time stands still until it has caught up",
                    self._instant - instant,
                )
            return self._instant

    def after_fork(self) -> None:
        """For forked processes: whoever held the lock is not here, and no request may wait for it."""
        self._lock = threading.Lock()


def _system() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


utc_now = forward_only(_system)
"""The time by this machine's clock, in UTC; within a process it never goes back."""
