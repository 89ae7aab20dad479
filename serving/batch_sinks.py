"""Where a batch is written to: one file, or a directory of parts that can be resumed."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from consentier.consent import Channel
from consentier.errors import DataError
from consentier.serving.batch_file import (
    JOB_FILE,
    SCORED,
    part_facts,
    part_file,
    part_metadata,
    written_table,
)
from consentier.serving.batch_job import BatchJob, PartCounts
from consentier.writing import flush, remove_remnants_in, whole_file

if TYPE_CHECKING:
    import pyarrow as pa

    from consentier.serving.batch_table import BatchTable

__all__ = ["BatchSink", "sink_for", "write_part"]


class BatchSink(Protocol):
    """A place for the parts of a batch. `write` is called by several threads, for parts in rising order."""

    def begun(self, at: dt.datetime | None) -> BatchJob | None:
        """The job that is to be resumed; None where one begins."""
        ...

    def start(self, job: BatchJob) -> None:
        """Make ready for the parts of a job.

        Raises
        ------
        DataError
            If another one is there.
        """
        ...

    def written(self) -> dict[int, PartCounts]:
        """The parts that are there already."""
        ...

    def write(self, part: int, rows: pa.Table, counts: PartCounts) -> None:
        """Write a part, whole or not at all."""
        ...

    def abandon(self, error: BaseException) -> None:
        """A part will not come: nobody is to wait for it."""
        ...

    def finish(self) -> None:
        """All parts are written."""
        ...


@contextlib.contextmanager
def sink_for(out: Path | BatchTable, channel: Channel, *, resume: bool) -> Iterator[BatchSink]:
    """Open the place that a path or a table of a database names."""
    if not isinstance(out, Path):
        from consentier.serving.batch_table import TableSink

        with TableSink.opened(out, channel, resume=resume) as table:
            yield table
    elif out.suffix == ".parquet":
        if resume:
            raise DataError(
                f"{out}: a single file cannot be resumed, as it appears only when it is whole; name a "
                "directory (a name without .parquet) for a batch that can"
            )
        with contextlib.ExitStack() as stack:
            yield _FileSink(out, stack)
    else:
        with contextlib.ExitStack() as stack:
            yield _DirectorySink(out, stack, resume=resume)


class _FileSink:
    """One Parquet file, of which nothing is seen before it is whole.

    Parts are written in their order: whoever has scored a later one waits. As they are begun in order, the
    one that all wait for is always being scored, and no more of them are in memory than there are workers.
    """

    def __init__(self, out: Path, stack: contextlib.ExitStack) -> None:
        self._out, self._stack = out, stack
        self._file: Any = None
        self._next = 0
        self._error: BaseException | None = None
        self._turn = threading.Condition()

    def begun(self, at: dt.datetime | None) -> BatchJob | None:
        return None

    def start(self, job: BatchJob) -> None:
        self._file = self._stack.enter_context(written_table(self._out, job.facts.schema(SCORED)))

    def written(self) -> dict[int, PartCounts]:
        return {}

    def write(self, part: int, rows: pa.Table, counts: PartCounts) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._next == part or self._error is not None)
            if self._error is not None:
                raise self._error
            if rows.num_rows:
                self._file.write_table(rows)
            self._next = part + 1
            self._turn.notify_all()

    def abandon(self, error: BaseException) -> None:
        with self._turn:
            self._error = self._error or error
            self._turn.notify_all()

    def finish(self) -> None:
        """The file takes its name when the context ends."""


class _DirectorySink:
    """A directory with a file for each part, and one that says what the batch is.

    A part is written beside its place and renamed: what has its name is whole. The directory is locked while
    a process works, so that no two do.
    """

    def __init__(self, out: Path, stack: contextlib.ExitStack, *, resume: bool) -> None:
        self._out, self._stack, self._resume = out, stack, resume
        self._job: BatchJob | None = None

    def begun(self, at: dt.datetime | None) -> BatchJob | None:
        path = self._out / JOB_FILE
        if self._out.exists() and not self._out.is_dir():
            raise DataError(f"{self._out}: is a file; name a directory, or a file that ends in .parquet")
        if not path.is_file():
            if self._out.is_dir() and any(self._out.glob("[!.]*")):
                raise DataError(f"{self._out}: holds something else than a batch; name another directory")
            return None
        if not self._resume:
            raise DataError(f"{self._out}: holds a batch already; resume it, or name another directory")
        job = BatchJob.from_text(path.read_text("utf-8"), str(path))
        if at is not None and at != job.at:
            raise DataError(
                f"{self._out}: was begun for {job.at.isoformat()}, not {at.isoformat()}; leave the instant "
                "out to resume it"
            )
        return job

    def start(self, job: BatchJob) -> None:
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.mkdir(exist_ok=True, mode=0o700)  # parts name persons; who made it before decided otherwise
        self._lock()
        path = self._out / JOB_FILE
        if path.is_file():
            job.require_same(BatchJob.from_text(path.read_text("utf-8"), str(path)), str(self._out))
        remove_remnants_in(self._out)
        if not path.is_file():
            with whole_file(path, sweep=False) as beside:
                beside.write_text(job.to_text(), "utf-8")
        self._job = job

    def _lock(self) -> None:
        descriptor = os.open(self._out, os.O_RDONLY)
        self._stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{self._out}: another process is scoring into it") from None

    def written(self) -> dict[int, PartCounts]:
        assert self._job is not None
        paths = {part: part_file(self._out, part) for part in range(self._job.parts)}
        return {part: part_facts(path, self._job.name, part) for part, path in paths.items() if path.exists()}

    def write(self, part: int, rows: pa.Table, counts: PartCounts) -> None:
        assert self._job is not None
        write_part(self._out, self._job.name, part, rows, counts)

    def abandon(self, error: BaseException) -> None:
        """Nobody waits."""

    def finish(self) -> None:
        remove_remnants_in(self._out)
        flush(self._out)


def write_part(out: Path, job: str, part: int, rows: pa.Table, counts: PartCounts) -> None:
    """Write a part of a directory, whole or not at all, over the one that is there.

    Parameters
    ----------
    out
        The directory.
    job
        The name of the job.
    part, rows, counts
        Its number, its rows, and what became of its persons.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    import pyarrow.parquet as pq

    marked = part_metadata(rows.schema, job, part, counts)
    with whole_file(part_file(out, part), sweep=False) as beside, pq.ParquetWriter(beside, marked) as file:
        file.write_table(rows.cast(marked))
