"""The outcome log: what it takes down, what it only counts, and what it survives."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import threading
from collections import Counter
from pathlib import Path

import pytest
from engines import ITEMS, engine
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import Permission, Tier
from consentier.errors import AuditError
from consentier.serving import Request
from consentier.serving.experiment import Experiment, ExperimentRecommender
from consentier.serving.outcomes import OutcomeKind, OutcomeLine, OutcomeLog, expire_outcomes, outcome_lines

EXPERIMENT = Experiment("halves", "a salt for tests only", {"current": 0.5, "new": 0.5})
NOW = dt.datetime(2026, 3, 1, 23, 30, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def log_in(path: Path, **options: object) -> OutcomeLog:
    return OutcomeLog(path, EXPERIMENT, **{"every": 3600, "clock": lambda: NOW, **options})  # type: ignore[arg-type]


def answer_id(
    arm: str = "new", tier: Tier = Tier.ONLINE, *, named: bool = True, bucket: int | None = 7
) -> str:
    return EXPERIMENT.answer_id(arm, tier, named=named, bucket=bucket)


def test_an_outcome_that_may_name_its_answer_does(tmp_path: Path) -> None:
    shown = answer_id()
    with log_in(tmp_path) as log:
        assert log.impression(shown)
        assert log.click(shown)
        assert log.purchase(shown)
    lines = list(outcome_lines(tmp_path))
    assert {line.kind for line in lines} == set(OutcomeKind)
    assert {(line.arm, line.tier, line.count, line.bucket) for line in lines} == {("new", Tier.ONLINE, 1, 7)}
    assert {line.key for line in lines} == {shown.split(".")[4]}
    assert {line.day for line in lines} == {NOW.date()}


def test_an_outcome_that_may_name_nobody_is_counted_only(tmp_path: Path) -> None:
    ids = [answer_id(named=False) for _ in range(5)]
    with log_in(tmp_path) as log:
        for shown in ids:
            log.impression(shown)
        log.click(ids[0])
        log.click(answer_id(), anonymous=True)
    counts = {line.kind: line.count for line in outcome_lines(tmp_path)}
    assert counts == {OutcomeKind.IMPRESSION: 5, OutcomeKind.CLICK: 2}
    [file] = tmp_path.iterdir()
    text = file.read_text("ascii")
    assert not any(shown.split(".")[4] in text for shown in ids)
    assert all(
        set(json.loads(line)) == {"format", "day", "experiment", "arm", "tier", "kind", "count"}
        for line in text.splitlines()
    )


@settings(max_examples=40, deadline=None)
@given(
    permission=st.sampled_from(
        [Permission.NONE, Permission.ONLINE, Permission.CRM, Permission.ONLINE | Permission.CRM]
    ),
    channel=st.sampled_from(("shop", "email")),
    linked=st.booleans(),
)
def test_no_line_holds_anything_of_a_request(
    tmp_path_factory: pytest.TempPathFactory, permission: Permission, channel: str, linked: bool
) -> None:
    path = tmp_path_factory.mktemp("outcomes")
    asked = ExperimentRecommender(EXPERIMENT, {"current": engine(), "new": engine()})
    answer = asked.recommend(
        Request(
            session=ITEMS[:2], online_history=ITEMS[2:4], crm_history=ITEMS[4:6],
            attributes={"region": "north"}, visitor_id="v-marker", customer_id="c-marker",
            permission=permission, linked=linked, channel=channel,  # type: ignore[arg-type]
        )
    )  # fmt: skip
    with log_in(path) as log:
        log.impression(answer.answer_id)
    [file] = path.iterdir()
    text = file.read_text("ascii")
    assert "marker" not in text
    assert "item" not in text
    assert "north" not in text
    if permission is Permission.NONE:
        assert '"key"' not in text
        assert '"bucket"' not in text


@pytest.mark.parametrize("made_up", [None, "", "x", "halves.new.online.a.00.00", "é", "a" * 1000])
def test_an_id_that_is_none_of_the_experiment_leaves_no_trace(tmp_path: Path, made_up: str | None) -> None:
    with log_in(tmp_path) as log:
        assert not log.click(made_up)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_before_its_time_and_then_as_one_file_a_day(tmp_path: Path) -> None:
    now = [NOW]
    log = log_in(tmp_path, clock=lambda: now[0])
    log.impression(answer_id())
    assert list(tmp_path.iterdir()) == []
    now[0] = NOW + DAY
    log.impression(answer_id())
    log.flush()
    log.flush()
    assert sorted(path.name[:28] for path in tmp_path.iterdir()) == [
        "2026-03-01_until_2026-08-29_",
        "2026-03-02_until_2026-08-30_",
    ]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    due = log_in(tmp_path / "due", every=0)
    due.impression(answer_id())
    assert len(list((tmp_path / "due").iterdir())) == 1


def test_a_full_disk_costs_no_outcome_and_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_in(tmp_path, every=0)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("consentier.serving.outcomes.write_new", full)
        for _ in range(3):
            assert log.impression(answer_id(named=False))
        with pytest.raises(OSError, match="No space"):
            log.flush()
    assert list(tmp_path.iterdir()) == []
    log.flush()
    assert [line.count for line in outcome_lines(tmp_path)] == [3]


def test_what_waits_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consentier.serving.outcomes._MOST_WAITING", 2)
    log = log_in(tmp_path)
    assert [log.impression(answer_id()) for _ in range(3)] == [True, True, False]


def test_threads_lose_nothing_of_each_other(tmp_path: Path) -> None:
    log = log_in(tmp_path, every=0.001)

    def work() -> None:
        for number in range(200):
            log.impression(answer_id(named=number % 2 == 0))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    total: Counter[bool] = Counter()
    for line in outcome_lines(tmp_path):
        total[bool(line.key)] += line.count
    assert total == {True: 400, False: 400}


def test_files_past_their_retention_are_deleted_whole(tmp_path: Path) -> None:
    for age in (0, 3):
        with log_in(tmp_path, retention_days=5, clock=lambda age=age: NOW - age * DAY) as log:
            log.impression(answer_id())
            log.click(answer_id())
    (tmp_path / "notes.txt").write_text("not ours")
    until = dt.datetime(2026, 3, 4, tzinfo=dt.UTC)  # 26 February, five days, and the rest of the last one
    assert expire_outcomes(tmp_path, until - dt.timedelta(seconds=1)) == 0
    assert expire_outcomes(tmp_path, until) == 2
    assert {line.day for line in outcome_lines(tmp_path)} == {NOW.date()}
    with pytest.raises(AuditError, match="no such directory"):
        expire_outcomes(tmp_path / "none", NOW)


lines = st.builds(
    OutcomeLine,
    day=st.dates(),
    experiment=st.just("halves"),
    arm=st.sampled_from(("current", "new")),
    tier=st.sampled_from(Tier),
    kind=st.sampled_from(OutcomeKind),
    count=st.integers(1, 9),
)


@given(lines, st.none() | st.integers(-1, 99))
def test_a_line_reads_back(line: OutcomeLine, bucket: int | None) -> None:
    if bucket is not None:
        line = dataclasses.replace(line, key="0" * 32, bucket=bucket)
    assert OutcomeLine.from_json(line.to_json()) == line


GOOD = {
    "format": 1, "day": "2026-03-01", "experiment": "x", "arm": "a", "tier": "crm", "kind": "click",
    "count": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format is not 1"),
        ({"day": "yesterday"}, "isoformat"),
        ({"tier": "gold"}, "gold"),
        ({"kind": "wish"}, "wish"),
        ({"count": 0}, "count is 0"),
        ({"count": True}, "count is bool"),
        ({"arm": 7}, "arm is int"),
        ({"key": "00", "bucket": 1}, "its key is none"),
        ({"key": "0" * 32, "bucket": 100}, "bucket is 100"),
        ({"key": "0" * 32}, "its fields are"),
        ({"visitor_id": "v"}, "its fields are"),
    ],
)
def test_what_is_no_outcome_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(AuditError, match=message):
        OutcomeLine.from_json(json.dumps({**GOOD, **change}))


def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{\n", "ascii")
    with pytest.raises(AuditError, match=r"outcomes\.jsonl:2: cannot be read as an outcome: it is no JSON"):
        list(outcome_lines(path))
    with pytest.raises(AuditError, match="there are none"):
        list(outcome_lines(tmp_path / "none"))


@pytest.mark.parametrize(
    ("options", "error"),
    [({"every": -1}, ValueError), ({"retention_days": 0}, ValueError), ({"retention_days": 1.5}, TypeError)],
)
def test_options_are_checked(tmp_path: Path, options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match="must be"):
        log_in(tmp_path, **options)
