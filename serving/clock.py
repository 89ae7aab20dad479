"""What time it is."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable

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
    latest = dt.datetime.min.replace(tzinfo=dt.UTC)
    told = False
    lock = threading.Lock()

    def now() -> dt.datetime:
        nonlocal latest, told
        instant = clock()
        with lock:
            if instant >= latest:
                latest, told = instant, False
            elif not told and latest - instant >= _TOLD_FROM:
                told = True
                _log.warning(
                    "the clock went back by %s: time stands still until it has caught up", latest - instant
                )
            return latest

    return now


def _system() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


utc_now = forward_only(_system)
"""The time by this machine's clock, in UTC; within a process it never goes back."""
