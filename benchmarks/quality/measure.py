"""What is measured, and how: ranking quality per request with intervals, seconds, memory, latency.

Every model is fitted and judged in a fresh process with one thread, after it has been fitted once to tiny
data, so that compilation and imports are not timed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from consentier.training.bootstrap import bootstrap_mean, paired_difference
from consentier.training.evaluation_result import IntervalFigures

__all__ = [
    "ROOT",
    "CPUInfo",
    "Clock",
    "Measured",
    "Task",
    "Values",
    "differences",
    "drawn",
    "in_a_fresh_process",
    "intervals",
    "latency",
    "machine",
    "one_thread",
    "read_values",
    "rows_of",
    "versions",
    "write_values",
]

ROOT = Path(__file__).resolve().parents[2]
_SEED = 7
Asked = TypeVar("Asked")
_PACKAGES = ("consentier", "numpy", "scipy", "numba", "implicit", "irspack", "pyarrow")

Values = dict[str, NDArray[np.float64]]
"""Metrics by name, a value per request; ``clusters`` (or ``PREFIX/clusters``): the customer of each."""

CPUInfo = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One model on one set, as given to a fresh process.

    Attributes
    ----------
    benchmark
        Module that measures, ``"session"`` say.
    dataset
        Which split.
    model
        Name of the class of contender.
    parameters
        Its parameters.
    data
        Directory of all sets.
    part
        ``"test"`` or ``"validation"``.
    limit
        Judge at most so many sessions or users.
    latency_requests
        Requests that are timed one by one.
    grid
        Values per parameter to search on validation; nothing else is measured then.
    """

    benchmark: str
    dataset: str
    model: str
    parameters: dict[str, Any]
    data: str
    part: str = "test"
    limit: int | None = None
    latency_requests: int = 2000
    grid: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a process found: facts that are JSON, and values per request."""

    facts: dict[str, Any]
    values: Values


# --- processes --------------------------------------------------------------------------------------------


def one_thread() -> dict[str, str]:
    """The environment of a process in which no library starts threads of its own."""
    names = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "IRSPACK_NUM_THREADS_DEFAULT",
    )
    environment = os.environ | dict.fromkeys(names, "1")
    environment["PYTHONPATH"] = str(ROOT)
    environment.pop("PYTHONSAFEPATH", None)
    return environment


def in_a_fresh_process(task: Task) -> Measured:
    """Measure a task in a process of its own.

    Raises
    ------
    RuntimeError
        If the process failed; what it said is on standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = Path(folder) / "values.npz"
        facts = Path(folder) / "facts.json"
        command = [sys.executable, "-m", "benchmarks.quality.child", str(facts), str(values)]
        done = subprocess.run(
            command, input=json.dumps(asdict(task)), text=True, env=one_thread(), cwd=ROOT, check=False
        )
        if done.returncode:
            raise RuntimeError(f"measuring {task.model} on {task.dataset} failed: its messages are above")
        return Measured(json.loads(facts.read_text(encoding="utf-8")), read_values(values))


def write_values(path: Path, values: Values) -> None:
    """Write values per request to a file ``*.npz``."""
    # allow_pickle=False is said by the reader alone: here NumPy before 2.2 takes it for one more array.
    arrays: Mapping[str, Any] = values
    np.savez_compressed(path, **arrays)


def read_values(path: Path) -> Values:
    """Values per request, as `write_values` wrote them."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


class Clock:
    """Seconds, processor seconds and peak memory of a block of work in this process."""

    def __init__(self) -> None:
        self.wall_seconds = 0.0
        self.cpu_seconds = 0.0
        self.memory_before_mb = 0.0
        self.peak_memory_mb = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Measure what is done within."""
        _forget_peak()
        self.memory_before_mb = _memory_mb("VmRSS")
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall_seconds = time.perf_counter() - wall
        self.cpu_seconds = time.process_time() - cpu
        self.peak_memory_mb = _memory_mb("VmHWM")

    def rates(self, requests: int) -> dict[str, float]:
        """Requests per second and per processor second; the latter hold on a busy machine too."""
        return {
            "requests_per_second": round(requests / self.wall_seconds, 1),
            "requests_per_cpu_second": round(requests / max(self.cpu_seconds, 1e-9), 1),
        }

    def facts(self) -> dict[str, float]:
        """The figures, for the results."""
        return {
            "wall_seconds": round(self.wall_seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "memory_before_mb": round(self.memory_before_mb, 1),
            "peak_memory_mb": round(self.peak_memory_mb, 1),
        }


def _forget_peak() -> None:
    """Let the kernel's record of this process's peak memory begin anew, where it lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _memory_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no line {name}: memory is measured on Linux only")


def drawn(requests: int, timed: int) -> list[int]:
    """Numbers of the requests to time one by one, with a fixed seed."""
    return [int(k) for k in np.random.default_rng(_SEED).permutation(requests)[:timed]]


def latency(answer: Callable[[Asked], object], requests: Sequence[Asked]) -> dict[str, float]:
    """Microseconds of single requests, one after the other: medians and 99th percentiles.

    The first fifty are answered once before, untimed.
    """
    for request in requests[:50]:
        answer(request)
    wall, cpu = np.empty(len(requests)), np.empty(len(requests))
    for k, request in enumerate(requests):
        cpu_before, wall_before = time.thread_time_ns(), time.perf_counter_ns()
        answer(request)
        wall_after, cpu_after = time.perf_counter_ns(), time.thread_time_ns()
        wall[k], cpu[k] = wall_after - wall_before, cpu_after - cpu_before
    return {
        f"{name}_us_p{percentile}": round(float(np.percentile(times, percentile)) / 1000, 1)
        for name, times in (("wall", wall), ("cpu", cpu))
        for percentile in (50, 99)
    }


# --- quality ----------------------------------------------------------------------------------------------


def intervals(values: Values) -> dict[str, IntervalFigures]:
    """Mean and 95 % interval of each metric, over customers."""
    return {
        name: bootstrap_mean(values[name], _clusters(values, name), rng=_SEED).to_dict()
        for name in _metrics(values)
    }


def differences(values: Values, others: Values) -> dict[str, IntervalFigures]:
    """Mean and 95 % interval of each metric's difference, over the same customers in the same resamples."""
    return {
        name: paired_difference(values[name], others[name], _clusters(values, name), rng=_SEED).to_dict()
        for name in _metrics(values)
        if name in others and len(values[name]) == len(others[name])
    }


def _metrics(values: Mapping[str, object]) -> list[str]:
    return [name for name in values if not name.endswith("clusters")]


def _clusters(values: Values, name: str) -> NDArray[np.float64] | None:
    prefix, slash, _ = name.rpartition("/")
    return values.get(f"{prefix}{slash}clusters")


# --- where ------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of Python and of what was compared; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> CPUInfo:
    """The processor's model, its number of cores and the memory."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1)}


def rows_of(lists: Sequence[NDArray[np.int64]], width: int) -> NDArray[np.int64]:
    """Ragged lists as one array, padded with -1: int64 (requests × width)."""
    padded = np.full((len(lists), width), -1, dtype=np.int64)
    for row, items in zip(padded, lists, strict=True):
        row[: len(items)] = items[:width]
    return padded
