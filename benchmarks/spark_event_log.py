"""What Spark's own event log says of a job: how much its tasks worked, and how long none of them ran.

With the log switched on (`LOGGED`), each task's end is a JSON line with its times and what it shuffled. From
these follows what more executors can shorten (the tasks) and what they cannot (the driver alone).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["LOGGED", "Tasks", "read_event_logs"]

LOGGED = (
    "--conf spark.eventLog.enabled=true --conf spark.eventLog.compress=false "
    "--conf spark.eventLog.rolling.enabled=false --conf spark.eventLog.dir=file://{folder}"
)
"""Words for PYSPARK_SUBMIT_ARGS."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tasks:
    """All tasks of an application.

    Attributes
    ----------
    count
        How many there were.
    task_seconds
        The sum of their durations.
    longest_seconds
        The longest of them: no number of executors makes a run shorter than that.
    busy_seconds
        Wall time in which at least one task ran.
    span_seconds
        Wall time from the application's start to its end.
    shuffled_megabytes, spilled_megabytes
        What tasks wrote for others to fetch, and what did not fit their memory.
    """

    count: int
    task_seconds: float
    longest_seconds: float
    busy_seconds: float
    span_seconds: float
    shuffled_megabytes: float
    spilled_megabytes: float


def read_event_logs(folder: Path) -> Tasks:
    """Read the log of the one application that wrote into a folder.

    Raises
    ------
    ValueError
        If the folder does not hold one log.
    """
    logs = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    if len(logs) != 1:
        raise ValueError(f"{folder}: holds {len(logs)} event logs, not one")
    with logs[0].open(encoding="utf-8") as lines:
        return _tasks([json.loads(line) for line in lines])


def _tasks(events: list[dict[str, Any]]) -> Tasks:
    ends = [event for event in events if event["Event"] == "SparkListenerTaskEnd"]
    times = [(event["Task Info"]["Launch Time"], event["Task Info"]["Finish Time"]) for event in ends]
    metrics = [event["Task Metrics"] for event in ends if event.get("Task Metrics")]
    begun = next(event for event in events if event["Event"] == "SparkListenerApplicationStart")
    done = next(event for event in events if event["Event"] == "SparkListenerApplicationEnd")
    durations = [(finish - launch) / 1000 for launch, finish in times]
    return Tasks(
        count=len(ends),
        task_seconds=round(sum(durations), 2),
        longest_seconds=max(durations, default=0.0),
        busy_seconds=round(_covered(times) / 1000, 2),
        span_seconds=round((done["Timestamp"] - begun["Timestamp"]) / 1000, 2),
        shuffled_megabytes=_megabytes(
            each["Shuffle Write Metrics"]["Shuffle Bytes Written"] for each in metrics
        ),
        spilled_megabytes=_megabytes(each["Disk Bytes Spilled"] for each in metrics),
    )


def _covered(intervals: Iterable[tuple[int, int]]) -> int:
    """How much of a line intervals cover together."""
    covered, reached = 0, 0
    for start, end in sorted(intervals):
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def _megabytes(counts: Iterable[int]) -> float:
    return round(sum(counts) / 2**20, 2)
