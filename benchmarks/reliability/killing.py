"""Work in a forked process that is killed at a chosen moment: after some seconds, or before some step.

A step is what changes files: opening one for writing, a rename, a removal, a new directory, a lock, and in
SQLite the beginning and the end of a transaction. Forking costs milliseconds where a new interpreter with all
its imports would cost seconds.
"""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["Acknowledge", "Outcome", "Work", "run"]

Acknowledge: TypeAlias = Callable[[str], None]
"""Tells that something is done and may be relied on from now on."""

Work: TypeAlias = Callable[[Acknowledge], None]

_CHANGES = frozenset(
    {
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.mkdir",
        "os.link",
        "os.truncate",
        "fcntl.flock",
        "ctypes.dlsym",
    }
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_STATEMENTS = ("BEGIN", "COMMIT", "UPDATE", "DELETE", "CREATE")
_PATIENCE = 300.0
_connect = sqlite3.connect


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a process ended.

    Attributes
    ----------
    killed
        Whether it was killed before it came to its end.
    acknowledged
        What it had acknowledged by then.
    error
        The traceback of what it raised; empty without.
    steps
        How many steps it made, if it came to its end.
    seconds
        How long it lived.
    """

    killed: bool
    acknowledged: tuple[str, ...]
    error: str
    steps: int
    seconds: float


class _Steps:
    """Counts steps, and ends the process by force before one of them."""

    def __init__(self, last: int | None) -> None:
        self.made, self._last = 0, last

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and (arguments[2] or 0) & _WRITING):
            self._step()

    def connected(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        """A connection to SQLite whose statements are steps."""
        connection: sqlite3.Connection = _connect(*arguments, **options)
        connection.set_trace_callback(self._statement)
        return connection

    def _statement(self, text: str) -> None:
        if text.lstrip().upper().startswith(_STATEMENTS):
            self._step()

    def _step(self) -> None:
        if self.made == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.made += 1


def run(work: Work, *, before_step: int | None = None, after_seconds: float | None = None) -> Outcome:
    """Run work in a forked process, and kill that before a step (from 0), or some seconds after it began.

    Raises
    ------
    RuntimeError
        If it neither ends nor is to be killed within minutes.
    """
    reading, writing = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _live(work, writing, before_step)
    os.close(writing)
    patience = _PATIENCE if after_seconds is None else after_seconds
    told, late = b"", False
    ears = select.poll()
    ears.register(reading, select.POLLIN)
    while True:
        left = started + patience - time.perf_counter()
        if not late and not ears.poll(max(left, 0) * 1000):
            os.kill(child, signal.SIGKILL)
            late = True
            continue
        piece = os.read(reading, 1 << 16)
        if not piece:
            break
        told += piece
    os.close(reading)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - started
    if late and after_seconds is None:
        raise RuntimeError(f"the process did not end within {_PATIENCE:.0f} s")
    # What stands after the last end of a line was not told to the end.
    lines = [line.decode("utf-8") for line in told.split(b"\n")[:-1]]
    of = {kind: [line[1:] for line in lines if line[0] == kind] for kind in "AES"}
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return Outcome(killed, tuple(of["A"]), "\n".join(of["E"]), int(of["S"][0]) if of["S"] else 0, seconds)


def _live(work: Work, pipe: int, last: int | None) -> None:
    """The life of the forked process, which never comes back."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        steps = _Steps(last)
        sys.addaudithook(steps.hook)
        sqlite3.connect = sqlite3.dbapi2.connect = steps.connected  # type: ignore[assignment]
        work(lambda text: _tell(pipe, "A", text))
        _tell(pipe, "S", str(steps.made))
    except BaseException:  # noqa: BLE001 - whatever it is, the parent judges it
        for line in traceback.format_exc().splitlines():
            _tell(pipe, "E", line)
    finally:
        os._exit(0)


def _tell(pipe: int, kind: str, text: str) -> None:
    os.write(pipe, f"{kind}{text}\n".encode())
