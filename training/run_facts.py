"""What is true of a training run but not of its models: stands beside each bundle, outside its digest."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import hashlib
import io
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import pyarrow as pa

from consentier.consent import Ledger
from consentier.consent.lifetimes import Lifetimes
from consentier.features.gate import Funnel, PermittedRows
from consentier.training.config import Config, config_hash

__all__ = ["git_commit", "rows_digest", "run_facts"]

_PACKAGES = (
    "consentier", "numpy", "scipy", "numba", "scikit-learn", "implicit", "duckdb", "ibis-framework",
    "pyarrow", "mlflow",
)  # fmt: skip


def run_facts(
    config: Config, ledger: Ledger | None, funnel: Iterable[Funnel], digest: str | None, seconds: float
) -> dict[str, Any]:
    """What is true of the run but not of the model.

    Parameters
    ----------
    config, ledger
        What it was made with. None where the consents were tables of an engine's and no ledger was opened:
        its position is not known then.
    funnel
        What the gate kept out.
    digest
        The `rows_digest` of what it let through; None where no one process saw the rows.
    seconds
        How long fitting took.
    """
    lifetimes = Lifetimes.default() if ledger is None else ledger.lifetimes
    return {
        "created_at": dt.datetime.now(dt.UTC).isoformat(),
        "config_hash": config_hash(config),
        "ledger_position": None if ledger is None else ledger.position,
        "ledger_head": None if ledger is None else ledger.head,
        "lifetimes": lifetimes.version,
        "rows_digest": digest,
        "ledger_conflicts": None if ledger is None else len(ledger.conflicts),
        "funnel": [dataclasses.asdict(each) for each in funnel],
        "seconds": seconds,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


class _Hash(io.RawIOBase):
    """A file that keeps nothing of what is written to it but its SHA-256."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.sha256.update(data)
        return len(data)


def rows_digest(permitted: Iterable[PermittedRows]) -> str:
    """One SHA-256 of all rows and attributes that a model was fitted on. O(bytes), one table at a time."""
    file = _Hash()
    tables = [table for part in permitted for table in (part.rows, part.attributes) if table is not None]
    with pa.PythonFile(file, "w") as sink:
        for table in tables:
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks(), max_chunksize=65_536)
    return f"sha256:{file.sha256.hexdigest()}"


def git_commit() -> str | None:
    """The commit of the working folder, where the configuration and the jobs of a shop are kept; ``-dirty``
    stands behind it where files that git knows were changed. None outside of a repository, or without git.
    """
    try:
        head, changes = (
            subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True).stdout
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("-dirty" if changes.strip() else "")


@functools.cache
def _versions() -> Mapping[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
