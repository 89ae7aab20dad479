"""A client of MLflow whose process is killed: deterministic, at a chosen step."""

from __future__ import annotations

import functools
from typing import Any


class Killed(BaseException):
    """What the process is killed by: nothing that comes after it is done."""


class Dying:
    """A client of MLflow in a process that is killed when it is about to take a step that writes.

    Whatever is asked to be written after that, by a ``finally`` say, is not written either.
    """

    def __init__(self, client: Any, after: int) -> None:
        self._client, self._left = client, after
        self.steps: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not name.startswith(("create_", "log_", "set_")):
            return found

        @functools.wraps(found)
        def step(*args: Any, **options: Any) -> Any:
            if not self._left:
                raise Killed
            self._left -= 1
            self.steps.append(name)
            return found(*args, **options)

        return step
