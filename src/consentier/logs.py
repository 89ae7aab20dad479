"""Log lines of long work: text on a terminal, JSON elsewhere, bound to the run and the tier.

What is logged may never name a subject: messages are fixed texts, figures are counts. A test reads all lines
of a training run for the ids of its shop.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime as dt
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TextIO

__all__ = ["bound", "configured", "log_line", "shows_progress"]

_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}

_bound: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar(
    "consentier_bound", default=MappingProxyType({})
)


class _Settings:
    """What the command line has chosen for this process."""

    quiet = False


@contextlib.contextmanager
def bound(**fields: str) -> Iterator[None]:
    """Add fields, ``run`` or ``tier`` say, to every line that is written within, by this thread or task."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


@contextlib.contextmanager
def configured(verbosity: int = 0, *, stream: TextIO | None = None) -> Iterator[None]:
    """Write what this package logs, as a command of it does. A service configures `logging` itself instead.

    Parameters
    ----------
    verbosity
        -1: errors only, and no progress; 0: warnings; 1: what happens; 2 or more: details.
    stream
        Where to; standard error by default, as it is when a line is written.
    """
    handler = _Handler(stream)
    logger, serving = logging.getLogger("consentier"), logging.getLogger("consentier.serving")
    before = _Settings.quiet, logger.level, serving.level
    _Settings.quiet = verbosity < 0
    logger.addHandler(handler)
    logger.setLevel(_LEVELS[max(-1, min(verbosity, 2))])
    if verbosity < 1:  # commands say what is wrong with bundles themselves, once and not for each request
        serving.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        _Settings.quiet = before[0]
        logger.setLevel(before[1])
        serving.setLevel(before[2])


def shows_progress() -> bool:
    """Whether progress is shown at all in this process."""
    return not _Settings.quiet


def log_line(out: TextIO, **fields: object) -> None:
    """Write one JSON object on a line: the time, the bound fields, then these."""
    now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, **_bound.get(), **fields}, separators=(", ", ": "), default=str)
    out.write(line + "\n")
    out.flush()


class _Handler(logging.Handler):
    """Text on a terminal, JSON elsewhere."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        out = sys.stderr if self._stream is None else self._stream
        try:
            if out.isatty():
                about = "".join(f" {name}={value}" for name, value in _bound.get().items())
                out.write(f"{record.levelname.lower()}:{about} {record.getMessage()}\n")
            else:
                log_line(out, level=record.levelname.lower(), logger=record.name, message=record.getMessage())
        except (OSError, ValueError):
            self.handleError(record)  # a closed pipe fails no work
