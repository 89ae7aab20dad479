"""Deleting on schedule: one typed file says what is kept for how long, one command carries it out.

Refusing to load an old bundle erases nothing. Copies lie in batch files, caches, tracked runs, statistics and
audit lines; each has its line here, and a line that cannot be carried out is an error, not a warning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consentier.addresses import shown_url, without_credentials
from consentier.consent import Tier
from consentier.consent.keyring import Keyring
from consentier.errors import BundleError, DataError, TrainingError, suggestion
from consentier.models.bundle import open_bundle
from consentier.serving.audit import expire as expire_audit
from consentier.serving.mlflow_store import mlflow_client
from consentier.serving.outcomes import expire_outcomes
from consentier.serving.profile_opening import open_profiles
from consentier.serving.registry import DIGEST_TAG
from consentier.serving.revocation import Revocations
from consentier.training.counted import one_at_a_time
from consentier.training.restricted import Restricted
from consentier.training.retention_schedule import (
    AuditRule,
    BundlesRule,
    FilesRule,
    KeysRule,
    OutcomesRule,
    ProfilesRule,
    RetentionSchedule,
    Rule,
    TableRule,
    TrackingRule,
)
from consentier.writing import remove_directory, whole_file

__all__ = ["Outcome", "apply_retention"]

_RUNS_AT_ONCE = 1000
"""Runs that one command deletes: Linux takes no argument of more than 128 kB, and an id has 32 characters."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What carrying out one rule did.

    Attributes
    ----------
    what, where
        The rule, and the path or URI that it is about.
    deleted
        How many files, rows, events, lines, bundles, runs or keys went (or would go, in a rehearsal). None
        where that cannot be told without doing it.
    kept
        What the rule would have deleted, but for a reason that each of these sentences tells.
    """

    what: str
    where: str
    deleted: int | None
    kept: tuple[str, ...] = ()


def apply_retention(schedule: RetentionSchedule, *, now: dt.datetime, dry_run: bool = False) -> list[Outcome]:
    """Delete what a schedule keeps no longer.

    Parameters
    ----------
    schedule
        The rules.
    now
        The instant from which days are counted back.
    dry_run
        Only say what would go.

    Raises
    ------
    DataError, AuditError, BundleError, TrainingError, OSError
        If a rule cannot be carried out. Rules before it have been; run again when the fault is mended.

    Notes
    -----
    What is deleted may live on in backups of the file system, which no program here can reach.
    """
    return [_carried_out(rule, now, dry_run) for rule in schedule.keep]


def _carried_out(rule: Rule, now: dt.datetime, dry_run: bool) -> Outcome:
    if isinstance(rule, TrackingRule):
        return Outcome(rule.what, _where(rule), *_tracking(rule, now, dry_run))
    return Outcome(rule.what, _where(rule), _CARRY_OUT[type(rule)](rule, now, dry_run))


def _where(rule: Rule) -> str:
    """What a rule is about; of a URL, host and database."""
    if isinstance(rule, ProfilesRule) and rule.url is not None:
        return shown_url(rule.url).rpartition("://")[2]
    return shown_url(rule.uri) if isinstance(rule, TrackingRule) else str(rule.path)


def _files(rule: FilesRule, now: dt.datetime, dry_run: bool) -> int:
    before = (now - dt.timedelta(days=rule.days)).timestamp()
    if not rule.path.is_dir():
        raise DataError(f"retention: {rule.path} is no directory")
    old = [
        file
        for file in sorted(rule.path.glob(rule.pattern))
        if file.is_file() and not file.is_symlink() and file.stat().st_mtime < before
    ]
    for file in old:
        if not dry_run:
            file.unlink()
    return len(old)


def _table(rule: TableRule, now: dt.datetime, dry_run: bool) -> int:
    try:
        table = pq.read_table(rule.path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"retention: table {rule.path} cannot be read as Parquet: {error}") from error
    if rule.time_column not in table.column_names:
        raise DataError(
            f"retention: table {rule.path}: there is no column {rule.time_column!r}"
            f"{suggestion(rule.time_column, table.column_names)}"
        )
    times = table[rule.time_column]
    if not pa.types.is_timestamp(times.type) or times.type.tz is None:
        raise DataError(
            f"retention: table {rule.path}, column {rule.time_column}: holds {times.type}, not times with a "
            "time zone"
        )
    before = pa.scalar(now - dt.timedelta(days=rule.days), pa.timestamp("us", "UTC"))
    # A row without a time has no age that would allow to keep it.
    kept = table.filter(pc.fill_null(pc.greater_equal(times.cast(before.type), before), False))
    if kept.num_rows < table.num_rows and not dry_run:
        with whole_file(rule.path) as beside:
            pq.write_table(kept, beside)
    return int(table.num_rows - kept.num_rows)


def _profiles(rule: ProfilesRule, now: dt.datetime, dry_run: bool) -> int | None:
    store = open_profiles(rule.url or rule.path or "", create=False)
    try:
        return None if dry_run else store.expire(now - dt.timedelta(days=rule.days))
    finally:
        store.close()


def _audit(rule: AuditRule, now: dt.datetime, dry_run: bool) -> int | None:
    return None if dry_run else expire_audit(rule.path, now)


def _outcomes(rule: OutcomesRule, now: dt.datetime, dry_run: bool) -> int | None:
    return None if dry_run else expire_outcomes(rule.path, now)


def _bundles(rule: BundlesRule, now: dt.datetime, dry_run: bool) -> int:
    restricted = Restricted.beside(rule.path) if rule.restricted is None else Restricted(rule.restricted)
    if dry_run:
        return len(_stopped(rule.path, now))
    # A training would put a new bundle in the place of the one that was looked at.
    with one_at_a_time(restricted) if restricted.path.is_dir() else contextlib.nullcontext():
        stopped = _stopped(rule.path, now)
        for tier, digest in stopped.items():
            # The bundle last, so that a run after a kill finds it again.
            shutil.rmtree(restricted.statistics(tier), ignore_errors=True)
            if restricted.path.is_dir():
                restricted.lineage().drop([digest])
            remove_directory(rule.path / tier)
    return len(stopped)


def _stopped(bundles: Path, now: dt.datetime) -> dict[Tier, str]:
    """Digests of the bundles past their deadline."""
    revocations = Revocations.open(bundles)
    standing = [tier for tier in Tier if (bundles / tier / "manifest.json").is_file()]
    digests = {tier: _digest_of(bundles / tier) for tier in standing}
    return {tier: digest for tier, digest in digests.items() if _past_deadline(revocations, digest, now)}


def _past_deadline(revocations: Revocations, digest: str, now: dt.datetime) -> bool:
    """Whether a deadline has passed. A list that cannot be read stops every answer, but deletes nothing."""
    deadline = revocations.deadline_of(digest)
    return deadline is not None and deadline <= now


def _digest_of(path: Path) -> str:
    try:
        return open_bundle(path).digest
    except BundleError as error:
        raise DataError(f"retention: {error}; remove the directory by hand if it is not needed") from error


def _tracking(rule: TrackingRule, now: dt.datetime, dry_run: bool) -> tuple[int, tuple[str, ...]]:
    """How many runs went; and which stayed in spite of their age, because their version bears an alias."""
    client = mlflow_client(rule.uri)
    experiment = client.get_experiment_by_name(rule.experiment)
    if experiment is None:
        raise DataError(
            f"retention: there is no experiment {rule.experiment!r} in {shown_url(rule.uri)}: write the name "
            "that [tracking] of the configuration has"
        )
    before = int((now - dt.timedelta(days=rule.days)).timestamp() * 1000)
    revocations = None if rule.bundles is None else Revocations.open(rule.bundles)
    aliased = _aliased(client)
    old, kept = [], []
    for run in _runs(client, experiment.experiment_id):
        digest = run.data.tags.get(DIGEST_TAG)
        ended = run.info.end_time if run.info.end_time is not None else run.info.start_time
        past = revocations is not None and digest is not None and _past_deadline(revocations, digest, now)
        if not past and ended >= before and run.info.lifecycle_stage != "deleted":
            continue
        # What is past its deadline answers nothing any more, whatever points to it.
        if run.info.run_id in aliased and not past:
            kept.append(f"run {run.info.run_id}: {aliased[run.info.run_id]}")
        else:
            old.append(run.info)
    if old and not dry_run:
        for info in old:
            if info.lifecycle_stage != "deleted":
                client.delete_run(info.run_id)
        _delete_for_good(rule.uri, [info.run_id for info in old])
    return len(old), tuple(kept)


def _runs(client: Any, experiment_id: str) -> Iterator[Any]:
    """All runs of an experiment, those that are marked as deleted too."""
    from mlflow.entities import ViewType

    token = None
    while True:
        page = client.search_runs(
            [experiment_id], run_view_type=ViewType.ALL, max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _aliased(client: Any) -> dict[str, str]:
    """By id of the run that holds it: which version of a registered model bears which alias."""
    found: dict[str, str] = {}
    token = None
    while True:
        page = client.search_registered_models(max_results=100, page_token=token)
        for model in page:
            for alias, number in sorted(model.aliases.items()):
                run_id = str(client.get_model_version(model.name, number).run_id)
                told = f"version {number} of {model.name} bears the alias {alias}"
                found[run_id] = f"{found[run_id]}; {told}" if run_id in found else told
        token = page.token
        if not token:
            return found


def _delete_for_good(uri: str, run_ids: list[str]) -> None:
    """MLflow marks runs as deleted; only its command line removes rows and artifacts."""
    # Not as an argument: every user of the machine sees those, and the address may hold a password.
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    for start in range(0, len(run_ids), _RUNS_AT_ONCE):
        chosen = ",".join(run_ids[start : start + _RUNS_AT_ONCE])
        command = [sys.executable, "-m", "mlflow", "gc", "--run-ids", chosen]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            said = without_credentials(done.stderr, uri).strip()
            raise TrainingError(f"retention: mlflow gc failed: {said[-500:]}")


def _keys(rule: KeysRule, now: dt.datetime, dry_run: bool) -> int:
    keyring = Keyring.open(rule.path, create=False)
    before = now - dt.timedelta(days=rule.keep_days)
    if dry_run:
        return len(keyring.superseded(before))
    if keyring.newest_at < now - dt.timedelta(days=rule.rotate_days):
        keyring.rotate(now)
    return len(keyring.prune(before))


_CARRY_OUT: Mapping[type[Rule], Callable[[Any, dt.datetime, bool], int | None]] = {
    FilesRule: _files,
    TableRule: _table,
    ProfilesRule: _profiles,
    AuditRule: _audit,
    OutcomesRule: _outcomes,
    BundlesRule: _bundles,
    KeysRule: _keys,
}
