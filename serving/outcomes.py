"""The log of outcomes: which answers were shown, clicked and bought from, by the arms of an experiment.

No line names a person, a session or an item. An outcome names its answer where somebody may be named at all
(as in the audit log: `consentier.serving.audit.nameable`); there the random part of the answer id tells which
click belongs to which impression, and a bucket, which answers may be of one person. Where nobody may be
named, as at the first level, outcomes are counted: so many clicks in an arm on a day, no trace of any one.

Outcomes are collected in memory and written as whole files, each of which can be thrown away.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from consentier.consent import Tier
from consentier.errors import AuditError
from consentier.serving.experiment import BUCKETS, Attribution, Experiment
from consentier.serving.forking import tell_of_forks
from consentier.serving.line_files import expire_segments, line_of, retention_of, segments_of
from consentier.serving.recommender import utc_now
from consentier.writing import remove_remnants_in, whole_file, write_new

__all__ = ["OutcomeKind", "OutcomeLine", "OutcomeLog", "expire_outcomes", "outcome_lines"]

_log = logging.getLogger("consentier.serving")

_FORMAT = 1
_MOST_WAITING = 1_000_000
"""Outcomes that wait to be written at most: a disk that is full must not fill the memory too."""

_SEGMENT = re.compile(r"\d{4}-\d\d-\d\d_until_(\d{4}-\d\d-\d\d)_[0-9a-f]{16}\.jsonl")
_KEY = re.compile(r"[0-9a-f]{32}")


class OutcomeKind(enum.StrEnum):
    """What became of an answer."""

    IMPRESSION = "impression"
    """It was shown."""
    CLICK = "click"
    """One of its items was clicked."""
    PURCHASE = "purchase"
    """One of its items was bought."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class OutcomeLine:
    """One outcome of one answer, or how often there was one of a kind.

    Attributes
    ----------
    day
        When, in UTC.
    experiment, arm, tier
        Who answered.
    kind
        What became of it.
    count
        How many; 1 where the answer is named.
    key
        The random part of the answer id; empty where outcomes are only counted.
    bucket
        The group of persons that it came from; -1 where none is told.
    """

    day: dt.date
    experiment: str
    arm: str
    tier: Tier
    kind: OutcomeKind
    count: int = 1
    key: str = ""
    bucket: int = -1

    def to_json(self) -> str:
        """The line, without its end."""
        fields: dict[str, Any] = {"format": _FORMAT, **dataclasses.asdict(self), "day": self.day.isoformat()}
        if not self.key:
            del fields["key"], fields["bucket"]
        return json.dumps(fields, ensure_ascii=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "outcome") -> OutcomeLine:
        """Read a line.

        Raises
        ------
        AuditError
            If it is none, or of a format that this release does not read.
        """
        return line_of(text, _FORMAT, lambda fields: cls(**_checked(fields)), where, "an outcome")


class OutcomeLog:
    """Writes outcomes. Safe to use from any number of threads, and after a fork.

    Several processes may share the directory.

    Parameters
    ----------
    path
        A directory; made if it is missing. Its files are readable by their owner only.
    experiment
        Whose answer ids are recorded.
    every
        Seconds after which what was collected is written, by the next outcome that comes. A process that is
        killed loses that much.
    retention_days
        For how many days an outcome is kept, to the end of the last one (`expire_outcomes`).
    clock
        Says what time it is.

    Raises
    ------
    TypeError, ValueError
        If `every` is negative, or `retention_days` not a whole number of at least 1.
    """

    def __init__(
        self,
        path: str | Path,
        experiment: Experiment,
        *,
        every: float = 60.0,
        retention_days: int = 180,
        clock: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        if not 0 <= every < float("inf"):
            raise ValueError(f"every must be a number of seconds, not {every}")
        self._retention = retention_of(retention_days)
        self._path = Path(path)
        self._experiment = experiment
        self._every = every
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: collections.Counter[OutcomeLine] = collections.Counter()
        self._due = time.monotonic() + every
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_remnants_in(self._path)
        tell_of_forks(self)

    def impression(self, answer_id: str | None, *, anonymous: bool = False) -> bool:
        """The answer was shown. For the arguments see `record`."""
        return self.record(OutcomeKind.IMPRESSION, answer_id, anonymous=anonymous)

    def click(self, answer_id: str | None, *, anonymous: bool = False) -> bool:
        """An item of the answer was clicked. For the arguments see `record`."""
        return self.record(OutcomeKind.CLICK, answer_id, anonymous=anonymous)

    def purchase(self, answer_id: str | None, *, anonymous: bool = False) -> bool:
        """An item of the answer was bought. For the arguments see `record`."""
        return self.record(OutcomeKind.PURCHASE, answer_id, anonymous=anonymous)

    def record(self, kind: OutcomeKind, answer_id: str | None, *, anonymous: bool = False) -> bool:
        """Take down one outcome. A fault of the disk is logged and costs the shop no page.

        Parameters
        ----------
        kind
            What became of the answer.
        answer_id
            As the answer said it; it may have been in the hands of a browser.
        anonymous
            Count it only, whatever the permission was when the answer was given: it has been withdrawn.

        Returns
        -------
        bool
            Whether it was taken down: not if the id is none of the experiment's, nor if a million others wait
            for a disk.
        """
        told = self._experiment.read(answer_id)
        if told is None:
            return False
        line = _line(self._clock().astimezone(dt.UTC).date(), kind, told, anonymous=anonymous)
        with self._lock:
            if len(self._waiting) >= _MOST_WAITING and line not in self._waiting:
                return False
            self._waiting[line] += 1
            due = time.monotonic() >= self._due
            if due:  # for this thread only
                self._due = time.monotonic() + self._every
        if due:
            try:
                self.flush()
            except OSError as error:
                _log.error("outcomes could not be written and wait: %s", error.strerror)
        return True

    def flush(self) -> None:
        """Write what was collected.

        Raises
        ------
        OSError
            If it cannot be written; then it is still there for the next time.
        """
        with self._lock:
            waiting, self._waiting = self._waiting, collections.Counter()
        try:
            for day in sorted({line.day for line in waiting}):
                written = [line for line in waiting if line.day == day]
                self._write(day, {line: waiting[line] for line in written})
                for line in written:
                    del waiting[line]
        except BaseException:
            with self._lock:
                self._waiting.update(waiting)
            raise

    def close(self) -> None:
        """As `flush`."""
        self.flush()

    def after_fork(self) -> None:
        """For forked processes: whoever held the lock is not here, and writes itself what it collected."""
        self._lock = threading.Lock()
        self._waiting = collections.Counter()

    def __enter__(self) -> OutcomeLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, day: dt.date, counts: Mapping[OutcomeLine, int]) -> None:
        """Write the outcomes of a day as one file, sorted: its order tells nothing of theirs."""
        lines = sorted(
            line if line.key else dataclasses.replace(line, count=count) for line, count in counts.items()
        )
        payload = "".join(f"{line.to_json()}\n" for line in lines).encode("ascii")
        until = (dt.datetime.combine(day, dt.time(), dt.UTC) + self._retention).date()
        segment = self._path / f"{day}_until_{until}_{secrets.token_hex(8)}.jsonl"
        with whole_file(segment, sweep=False) as beside:
            write_new(beside, payload, mode=0o600)


def outcome_lines(path: str | Path) -> Iterator[OutcomeLine]:
    """All outcomes of a directory, or of one of its files.

    Raises
    ------
    AuditError
        If there is nothing at `path`, or a line cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise AuditError(
            f"outcomes {path}: there are none; name the directory of the outcome log, or a file of it"
        )
    for segment in sorted(segments_of(path, _SEGMENT)) if path.is_dir() else [path]:
        with segment.open("rb") as file:
            for number, text in enumerate(file, start=1):
                yield OutcomeLine.from_json(text, f"{segment}:{number}")


def expire_outcomes(path: str | Path, before: dt.datetime) -> int:
    """Delete the files whose outcomes are past their retention; say how many lines.

    Raises
    ------
    AuditError
        If there is no such directory.
    """
    over = expire_segments(path, _SEGMENT, before, "outcomes")
    remove_remnants_in(Path(path))  # no name of a hidden file says how long it may be kept
    return over


def _line(day: dt.date, kind: OutcomeKind, told: Attribution, *, anonymous: bool) -> OutcomeLine:
    line = OutcomeLine(day, told.experiment, told.arm, told.tier, kind)
    if told.key is None or anonymous:
        return line
    return dataclasses.replace(line, key=told.key, bucket=-1 if told.bucket is None else told.bucket)


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    counted = {"day", "experiment", "arm", "tier", "kind", "count"}
    if set(fields) not in (counted, counted | {"key", "bucket"}):
        raise ValueError(f"its fields are {', '.join(sorted(fields))}")
    for name in ("day", "experiment", "arm"):
        if not isinstance(fields[name], str):
            raise TypeError(f"{name} is {type(fields[name]).__name__}, not str")
    for name, least, most in (("count", 1, float("inf")), ("bucket", -1, BUCKETS - 1)):
        value = fields.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is {type(value).__name__}, not int")
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}")
    if "key" in fields and not (isinstance(fields["key"], str) and _KEY.fullmatch(fields["key"])):
        raise ValueError("its key is none")
    return {
        **fields,
        "day": dt.date.fromisoformat(fields["day"]),
        "tier": Tier(fields["tier"]),
        "kind": OutcomeKind(fields["kind"]),
    }
