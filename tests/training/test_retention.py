"""Deleting on schedule: what is past its time goes, what is not stays, and a wrong schedule says how."""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engines import bundles as written_bundles
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.consent import Tier
from consentier.consent.keyring import Keyring
from consentier.errors import AuditError, BundleError, ConfigError, DataError
from consentier.models.bundle import open_bundle
from consentier.serving import Event, Recommender, Request
from consentier.serving.audit import JsonLinesAudit
from consentier.serving.experiment import Experiment
from consentier.serving.mlflow_store import mlflow_client
from consentier.serving.outcomes import OutcomeLog
from consentier.serving.profile_store import SqliteProfiles
from consentier.serving.revocation import revoke
from consentier.training import retention
from consentier.training.restricted import Restricted
from consentier.training.retention import apply_retention
from consentier.training.retention_schedule import FilesRule, RetentionSchedule, load_schedule

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def schedule(folder: Path, text: str) -> RetentionSchedule:
    path = folder / "retention.toml"
    path.write_text(text)
    return load_schedule(path)


def file_of_age(folder: Path, name: str, age: dt.timedelta) -> Path:
    path = folder / name
    path.write_text("content")
    written = (NOW - age).timestamp()
    os.utime(path, (written, written))
    return path


FILES = '[[keep]]\nwhat = "files"\npath = "batches"\npattern = "*.parquet"\ndays = 14\n'


@given(ages=st.lists(st.floats(0, 30), max_size=6))
def test_files_go_when_their_days_are_over(
    tmp_path_factory: pytest.TempPathFactory, ages: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("batches")
    made = {file_of_age(folder, f"{number}.parquet", age * DAY): age for number, age in enumerate(ages)}
    rule = FilesRule(what="files", path=folder, pattern="*.parquet", days=14)
    (outcome,) = apply_retention(RetentionSchedule(keep=(rule,)), now=NOW)
    assert {path for path in made if path.exists()} == {path for path, age in made.items() if age <= 14}
    assert outcome.deleted == sum(age > 14 for age in ages)


def test_other_names_directories_and_links_are_left_alone(tmp_path: Path) -> None:
    batches = tmp_path / "batches"
    (batches / "below.parquet").mkdir(parents=True)
    elsewhere = file_of_age(tmp_path, "elsewhere.parquet", 100 * DAY)
    (batches / "link.parquet").symlink_to(elsewhere)
    file_of_age(batches, "notes.txt", 100 * DAY)
    file_of_age(batches / "below.parquet", "deep.parquet", 100 * DAY)
    (outcome,) = apply_retention(schedule(tmp_path, FILES), now=NOW)
    assert outcome.deleted == 0
    assert elsewhere.exists()
    assert (batches / "below.parquet" / "deep.parquet").exists()


def test_a_rehearsal_deletes_nothing(tmp_path: Path) -> None:
    batches = tmp_path / "batches"
    batches.mkdir()
    old = file_of_age(batches, "old.parquet", 100 * DAY)
    table = pa.table({"ts": pa.array([NOW - 100 * DAY, NOW], pa.timestamp("us", "UTC"))})
    pq.write_table(table, tmp_path / "events.parquet")
    keyring = Keyring.open(tmp_path / "keys.json")
    keyring.rotate(NOW - 50 * DAY)
    text = (
        FILES + '[[keep]]\nwhat = "table"\npath = "events.parquet"\ndays = 30\n'
        '[[keep]]\nwhat = "keys"\npath = "keys.json"\nrotate_days = 10\nkeep_days = 20\n'
    )
    told = apply_retention(schedule(tmp_path, text), now=NOW, dry_run=True)
    assert old.exists()
    assert pq.read_table(tmp_path / "events.parquet").equals(table)
    assert Keyring.open(tmp_path / "keys.json").ids == keyring.ids
    done = apply_retention(schedule(tmp_path, text), now=NOW)
    assert [outcome.deleted for outcome in told] == [outcome.deleted for outcome in done] == [1, 1, 1]


@given(
    days=st.lists(st.one_of(st.none(), st.floats(0, 60)), max_size=8),
    unit=st.sampled_from(["ms", "us", "ns"]),
)
def test_rows_go_when_their_days_are_over(
    tmp_path_factory: pytest.TempPathFactory, days: list[float | None], unit: str
) -> None:
    folder = tmp_path_factory.mktemp("table")
    moments = [None if age is None else (NOW - age * DAY).replace(microsecond=0) for age in days]
    times = pa.array(moments, pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, "UTC"))
    pq.write_table(
        pa.table({"item_id": [str(i) for i in range(len(days))], "ts": times}), folder / "t.parquet"
    )
    text = '[[keep]]\nwhat = "table"\npath = "t.parquet"\ndays = 30\n'
    (outcome,) = apply_retention(schedule(folder, text), now=NOW)
    expected = [str(i) for i, at in enumerate(moments) if at is not None and at >= NOW - 30 * DAY]
    kept = pq.read_table(folder / "t.parquet")
    assert kept["item_id"].to_pylist() == expected
    assert kept["ts"].type == times.type
    assert outcome.deleted == len(days) - len(expected)
    assert sorted(path.name for path in folder.iterdir()) == ["retention.toml", "t.parquet"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_text("no parquet"), "cannot be read as Parquet"),
        (lambda path: pq.write_table(pa.table({"time": [1]}), path), "there is no column 'ts'"),
        (lambda path: pq.write_table(pa.table({"ts": [1]}), path), "not times with a time zone"),
    ],
)
def test_a_table_that_cannot_be_judged_is_refused(tmp_path: Path, make: object, said: str) -> None:
    make(tmp_path / "t.parquet")  # type: ignore[operator]
    before = (tmp_path / "t.parquet").read_bytes()
    with pytest.raises(DataError, match=said):
        apply_retention(
            schedule(tmp_path, '[[keep]]\nwhat = "table"\npath = "t.parquet"\ndays = 30\n'), now=NOW
        )
    assert (tmp_path / "t.parquet").read_bytes() == before


def test_keys_rotate_and_go(tmp_path: Path) -> None:
    keyring = Keyring.open(tmp_path / "keys.json")
    start, first = keyring.newest_at, keyring.current_id
    rule = '[[keep]]\nwhat = "keys"\npath = "keys.json"\nrotate_days = 30\nkeep_days = 60\n'

    def ids_after(days: float) -> tuple[str, ...]:
        apply_retention(schedule(tmp_path, rule), now=start + days * DAY)
        return Keyring.open(tmp_path / "keys.json").ids

    assert ids_after(29) == (first,)
    _, second = ids_after(31)
    assert ids_after(60) == (first, second)
    assert first not in ids_after(92)
    (tmp_path / "keys.json").unlink()
    with pytest.raises(AuditError, match="there is none"):
        ids_after(100)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Field required"),
        ("keep = []", "at least 1"),
        ('[[keep]]\nwhat = "filez"\n', "filez"),
        (FILES.replace("pattern", "patern"), "did you mean 'pattern'"),
        (FILES + "[other]\n", "unknown key"),
        (FILES.replace("14", "0"), "greater than 0"),
        (FILES.replace("14", "nan"), "keep.0"),
        (
            FILES.replace("*.parquet", "../*"),
            r"pattern: '\.\./\*' is no pattern .* such as \*\.parquet, without a",
        ),
        ("[[keep", "not valid TOML"),
    ],
)
def test_a_wrong_schedule_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        schedule(tmp_path, text)


def test_a_missing_schedule_and_a_missing_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_schedule(tmp_path / "nowhere.toml")
    with pytest.raises(DataError, match="batches"):
        apply_retention(schedule(tmp_path, FILES), now=NOW)


def test_the_schedule_of_the_manual_is_one(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "retention.md"
    text = page.read_text("utf-8").split("```toml\n")[1].split("```")[0]
    kinds = {rule.what for rule in schedule(tmp_path, text).keep}
    assert kinds == {"table", "profiles", "audit", "outcomes", "files", "bundles", "mlflow", "keys"}


# ---- What the engine itself keeps --------------------------------------------------------------------------


def revoked(bundles: Path, tier: str, deadline: dt.datetime) -> str:
    """Give the bundle of a tier a deadline; its digest."""
    digest = open_bundle(bundles / tier).digest
    revoke(bundles, [digest], deadline, "withdrawal")
    return digest


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """Bundles of all tiers, with a restricted directory beside them."""
    folder = tmp_path / "bundles"
    shutil.copytree(written_bundles(), folder)
    lineage = Restricted.beside(folder).lineage()
    for tier in ("crm", "fused"):
        digest = open_bundle(folder / tier).digest
        lineage.record(digest, tier, [("customer", "c1")], cutoff=NOW, ledger_position=1)
        statistics = Restricted.beside(folder).statistics(Tier(tier))
        statistics.mkdir(parents=True)
        (statistics / "manifest.json").write_text("{}")
    return folder


BUNDLES = '[[keep]]\nwhat = "bundles"\npath = "bundles"\n'


def test_bundles_past_their_deadline_go_with_what_was_kept_of_them(tmp_path: Path, bundles: Path) -> None:
    revoked(bundles, "crm", NOW - DAY)
    revoked(bundles, "fused", NOW + DAY)
    rules = schedule(tmp_path, BUNDLES)
    assert [outcome.deleted for outcome in apply_retention(rules, now=NOW, dry_run=True)] == [1]
    assert (bundles / "crm").is_dir()
    assert [outcome.deleted for outcome in apply_retention(rules, now=NOW)] == [1]
    restricted = Restricted.beside(bundles)
    assert not (bundles / "crm").exists()
    assert not restricted.statistics(Tier.CRM).exists()
    assert restricted.statistics(Tier.FUSED).is_dir()
    assert [held.tier for held in restricted.lineage().bundles_of("customer", "c1")] == ["fused"]
    assert {path.name for path in bundles.iterdir() if path.is_dir()} == {
        "session",
        "online",
        "fused",
        "popular",
    }


def test_no_training_puts_a_new_bundle_in_place_between_the_look_and_the_deletion(
    tmp_path: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoked(bundles, "crm", NOW - DAY)
    looked = []

    def look(path: Path) -> None:
        with (Restricted.beside(bundles).path / "forget.lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        looked.append(path.name)

    monkeypatch.setattr(retention, "remove_directory", look)
    apply_retention(schedule(tmp_path, BUNDLES), now=NOW)
    assert looked == ["crm"]


def test_runs_are_deleted_in_commands_that_the_system_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    deleted: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert max(map(len, command)) < 128 << 10  # Linux refuses a longer argument
        assert not any("hunter2" in argument for argument in command)  # which every user sees
        deleted.extend(command[-1].split(","))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(retention.subprocess, "run", run)
    runs = [f"{number:032x}" for number in range(4500)]
    retention._delete_for_good("postgresql://mlflow:hunter2@db/mlflow", runs)
    assert deleted == runs


def test_a_list_of_deadlines_that_cannot_be_read_deletes_nothing(tmp_path: Path, bundles: Path) -> None:
    """It stops every answer; but what is deleted is gone."""
    (bundles / "revocations.json").write_text("no list")
    with pytest.raises(BundleError, match="revocations"):
        apply_retention(schedule(tmp_path, BUNDLES), now=NOW)
    assert len([path for path in bundles.iterdir() if path.is_dir()]) == 5


def test_profiles_and_audit_lines_go_when_their_time_is_over(tmp_path: Path, bundles: Path) -> None:
    store = SqliteProfiles(tmp_path / "online.db")
    store.append("v1", [Event("a", ts=NOW - 40 * DAY), Event("b", ts=NOW - 10 * DAY)])
    keyring = Keyring.open(tmp_path / "audit" / "keys.json")
    recommender = Recommender.load(
        bundles, audit=JsonLinesAudit(tmp_path / "audit", keyring, retention_days=5)
    )
    recommender.recommend(Request(session=["item-01"]))
    text = '[[keep]]\nwhat = "profiles"\npath = "online.db"\ndays = 30\n'
    text += '[[keep]]\nwhat = "audit"\npath = "audit"\n'
    rules = schedule(tmp_path, text)
    soon, later = (dt.datetime.now(dt.UTC) + days * DAY for days in (3, 9))
    assert [outcome.deleted for outcome in apply_retention(rules, now=NOW, dry_run=True)] == [None, None]
    assert apply_retention(rules, now=NOW)[0].deleted == 1
    assert [event.item_id for event in store["v1"]] == ["b"]
    assert apply_retention(rules, now=soon)[1].deleted == 0
    assert apply_retention(rules, now=later)[1].deleted == 1
    (tmp_path / "online.db").unlink()
    with pytest.raises(DataError, match=r"online\.db"):
        apply_retention(rules, now=NOW)


def test_a_rule_about_profiles_names_one_place(tmp_path: Path) -> None:
    for places in ("", 'path = "a.db"\nurl = "redis://localhost/0"\n'):
        with pytest.raises(ConfigError, match="either path or url"):
            schedule(tmp_path, f'[[keep]]\nwhat = "profiles"\ndays = 30\n{places}')
    text = '[[keep]]\nwhat = "profiles"\ndays = 30\nurl = "unix://:hunter2@/nowhere/at/all"\n'
    with pytest.raises(DataError, match="nowhere") as failure:
        apply_retention(schedule(tmp_path, text), now=NOW)
    assert "hunter2" not in str(failure.value)


def test_outcomes_of_experiments_go_when_their_time_is_over(tmp_path: Path) -> None:
    experiment = Experiment("x", "a salt for tests only", {"a": 0.5, "b": 0.5})
    with OutcomeLog(tmp_path / "outcomes", experiment, retention_days=5, clock=lambda: NOW) as log:
        log.impression(experiment.answer_id("a", Tier.CRM, named=True, bucket=None))
    rules = schedule(tmp_path, '[[keep]]\nwhat = "outcomes"\npath = "outcomes"\n')
    assert apply_retention(rules, now=NOW + 9 * DAY, dry_run=True)[0].deleted is None
    assert apply_retention(rules, now=NOW + 3 * DAY)[0].deleted == 0
    assert apply_retention(rules, now=NOW + 9 * DAY)[0].deleted == 1
    assert list((tmp_path / "outcomes").iterdir()) == []


def test_runs_go_for_good_with_their_artifacts(tmp_path: Path, bundles: Path) -> None:
    """Old ones, and those that logged a bundle past its deadline, trials included."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    digest = revoked(bundles, "crm", NOW - DAY)
    client = mlflow.MlflowClient(tracking_uri=uri)
    artifacts = tmp_path / "artifacts"
    experiment = client.create_experiment("consentier", artifact_location=artifacts.as_uri())
    now = int(NOW.timestamp() * 1000)
    runs = {}
    for name, days, tags in (("old", 100, {}), ("new", 1, {}), ("revoked", 1, {"bundle_digest": digest})):
        started = now - days * 86_400_000
        run = client.create_run(experiment, start_time=started, run_name=name, tags=tags).info.run_id
        client.log_text(run, "a copy", "bundle/manifest.json")
        client.set_terminated(run, end_time=started + 1000)
        runs[name] = run
    text = f'[[keep]]\nwhat = "mlflow"\nuri = "{uri}"\ndays = 30\nbundles = "bundles"\n'
    rules = schedule(tmp_path, text)
    assert apply_retention(rules, now=NOW, dry_run=True)[0].deleted == 2
    assert len(list(artifacts.rglob("manifest.json"))) == 3
    assert apply_retention(rules, now=NOW)[0].deleted == 2
    left = client.search_runs([experiment], run_view_type=mlflow.entities.ViewType.ALL)
    assert [run.info.run_id for run in left] == [runs["new"]]
    assert [path.parent.parent.parent.name for path in artifacts.rglob("manifest.json")] == [runs["new"]]
    with pytest.raises(DataError, match="nothing"):
        apply_retention(schedule(tmp_path, text + 'experiment = "nothing"\n'), now=NOW)


def test_the_run_of_a_version_with_an_alias_is_kept_unless_it_is_past_its_deadline(
    tmp_path: Path, bundles: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    digest = revoked(bundles, "crm", NOW - DAY)
    client = mlflow_client(uri)
    artifacts = tmp_path / "artifacts"
    experiment = client.create_experiment("consentier", artifact_location=artifacts.as_uri())
    ended = int((NOW - 100 * DAY).timestamp() * 1000)
    client.create_registered_model("consentier-crm")
    runs = {}
    for number, name in enumerate(("champion", "nobody", "challenger", "marked", "revoked"), 1):
        tags = {"bundle_digest": digest} if name == "revoked" else {}
        run = client.create_run(experiment, start_time=ended - 1000, tags=tags).info
        client.log_text(run.run_id, name, "bundle/manifest.json")
        client.set_terminated(run.run_id, end_time=ended)
        client.create_model_version("consentier-crm", f"{run.artifact_uri}/bundle", run_id=run.run_id)
        if name != "nobody":
            client.set_registered_model_alias("consentier-crm", name, str(number))
        runs[name] = run.run_id
    client.delete_run(runs["marked"])
    client.set_registered_model_alias("consentier-crm", "mine", "1")
    text = f'[[keep]]\nwhat = "mlflow"\nuri = "{uri}"\ndays = 30\nbundles = "bundles"\n'
    rehearsal = apply_retention(schedule(tmp_path, text), now=NOW, dry_run=True)
    (outcome,) = apply_retention(schedule(tmp_path, text), now=NOW)
    assert rehearsal == [outcome]
    assert outcome.deleted == 2
    assert set(outcome.kept) == {
        f"run {runs['champion']}: version 1 of consentier-crm bears the alias champion; "
        "version 1 of consentier-crm bears the alias mine",
        f"run {runs['challenger']}: version 3 of consentier-crm bears the alias challenger",
        f"run {runs['marked']}: version 4 of consentier-crm bears the alias marked",
    }
    left = {path.read_text() for path in artifacts.rglob("manifest.json")}
    assert left == {"champion", "challenger", "marked"}
    run = CliRunner().invoke(app, ["retention", str(tmp_path / "retention.toml"), "--at", NOW.isoformat()])
    assert run.exit_code == 0, run.stderr
    assert f"kept: run {runs['challenger']}: version 3 of consentier-crm bears the alias" in run.stdout
    # Once nothing points to it, its age decides.
    client.delete_registered_model_alias("consentier-crm", "challenger")
    assert apply_retention(schedule(tmp_path, text), now=NOW, dry_run=True)[0].deleted == 1
