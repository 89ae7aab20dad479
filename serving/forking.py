"""What a forked process must have anew: threads stay in the process that forked it, and so do their locks."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["Forked", "tell_of_forks"]


class Forked(Protocol):
    """Something that has threads, or locks that a thread may hold."""

    def after_fork(self) -> None:
        """Called in the forked process, before anything else runs there."""


_told: weakref.WeakSet[Forked] = weakref.WeakSet()


def tell_of_forks(each: Forked) -> None:
    """Have `after_fork` called in every process that is forked while the object lives."""
    _told.add(each)


def _after_fork() -> None:
    for each in list(_told):
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork)
