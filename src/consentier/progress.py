"""Progress of long work: a bar on a terminal, structured lines elsewhere.

Nothing that is reported here may name a subject: descriptions are fixed texts, figures are counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from consentier.logs import log_line, shows_progress

__all__ = ["Advance", "Report", "progress"]


class Advance(Protocol):
    """Called with the number of units that were finished since the last call."""

    def __call__(self, steps: int = 1, /) -> None: ...


class Report(Advance, Protocol):
    """The same; it may say with a few figures how the work stands."""

    def __call__(self, steps: int = 1, /, *, note: str = "") -> None: ...


@contextmanager
def progress(
    description: str, total: int | None, *, stream: TextIO | None = None, enabled: bool = True
) -> Iterator[Report]:
    """Report the progress of one piece of work.

    Parameters
    ----------
    description
        What is being done, as a fixed text (no identifiers of people).
    total
        Units of work, or None where that is unknown.
    stream
        Where to write; standard error by default. A terminal gets a bar (with ``rich``, where that is
        installed); anything else gets one JSON line at the start, one at the end, and one for each new note,
        with what `logs.bound` says of the run.
    enabled
        Switch all output off.

    Yields
    ------
    Report
        ``advance(steps, note=…)``; safe to call from the thread that opened the context. A note holds figures
        about the work and no identifiers of people.
    """
    out = stream if stream is not None else sys.stderr
    if not enabled or not shows_progress():
        yield _ignore
        return
    if out.isatty():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            pass
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=Console(file=out)) as bar:
                task = bar.add_task(description, total=total, note="")

                def show(steps: int = 1, /, *, note: str = "") -> None:
                    bar.advance(task, steps)
                    if note:
                        bar.update(task, note=note)

                yield show
            return
    done, said = 0, ""

    def count(steps: int = 1, /, *, note: str = "") -> None:
        nonlocal done, said
        done += steps
        if note and note != said:
            said = note
            log_line(out, event="running", work=description, done=done, total=total, note=note)

    started = time.monotonic()
    log_line(out, event="started", work=description, total=total)
    finished = False
    try:
        yield count
        finished = True
    finally:
        log_line(
            out, event="finished" if finished else "stopped", work=description, done=done, total=total,
            seconds=round(time.monotonic() - started, 2),
        )  # fmt: skip


def _ignore(steps: int = 1, /, *, note: str = "") -> None:
    """Take a step that nobody watches."""
