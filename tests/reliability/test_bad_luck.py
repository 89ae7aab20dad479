"""Full disks, missing rights, clocks that jump, two at once, torn files: nothing is half done."""

from __future__ import annotations

import datetime as dt
import logging
import os
import resource
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from benchmarks.reliability.killing import Acknowledge, run
from writers import WRITERS, Writer

from consentier.consent import ConsentRecord, Ledger, Source
from consentier.consent.keyring import Keyring
from consentier.errors import ConsentierError, LedgerError
from consentier.serving import Event, audit
from consentier.serving.clock import forward_only
from consentier.serving.profile_store import SqliteProfiles
from consentier.training.withdrawal import withdraw

AT = dt.datetime(2026, 1, 1, 10, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)

BRIEF = ("page", "shop")
"""What these write has room in a few bytes."""

WRITES_FILES = [writer for writer in WRITERS if writer.name != "removal"]


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that users without rights can reach."""
    with tempfile.TemporaryDirectory(prefix="consentier-tests-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def failed(work: Callable[[], object]) -> None:
    """Run in a process of its own what must fail with one of our errors, or one of the operating system."""

    def told(acknowledge: Acknowledge) -> None:
        try:
            work()
        except (OSError, ConsentierError) as error:
            acknowledge(str(error))

    outcome = run(told)
    assert not outcome.killed
    assert not outcome.error, outcome.error
    assert outcome.acknowledged, "it did not fail"


def content(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


# ---- The disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("writer", "room"),
    [(writer, room) for writer in WRITES_FILES for room in (0, 20) if not (room and writer.name in BRIEF)],
    ids=lambda each: getattr(each, "name", each),
)
def test_without_room_on_the_disk_the_old_state_stays_and_nothing_else(
    tmp_path: Path, writer: Writer, room: int
) -> None:
    writer.write(tmp_path, 0)
    before = content(tmp_path)

    def without_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        writer.write(tmp_path, 1)

    failed(without_room)
    assert writer.read(tmp_path) == 0
    assert content(tmp_path) == before


@pytest.mark.parametrize("writer", WRITES_FILES, ids=lambda writer: writer.name)
def test_without_the_right_to_write_the_old_state_stays(open_place: Path, writer: Writer) -> None:
    writer.write(open_place, 0)
    before = content(open_place)

    def without_rights() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)
        writer.write(open_place, 1)

    open_place.chmod(0o555)
    failed(without_rights)
    open_place.chmod(0o755)
    assert content(open_place) == before


def test_a_ledger_without_room_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'consents.db'}"

    def filling(acknowledge: Acknowledge) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Ledger.open(url) as ledger:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            try:
                for number in range(1000):
                    ledger.append([granted(f"v{number}", AT)])
                    acknowledge(f"v{number}")
            except LedgerError as error:
                acknowledge(f"failed: {error}")
            else:
                raise AssertionError("there was room for all")

    outcome = run(filling)
    assert not outcome.error, outcome.error
    *acknowledged, failure = outcome.acknowledged
    assert "what was acknowledged before is kept" in failure
    with Ledger.open(url) as ledger:
        assert ledger.verify().ok
        assert len(acknowledged) > 3
        assert all(ledger.records_of(name, kind="visitor") for name in acknowledged)
        ledger.append([granted("later", AT)])  # there is room again


def test_profiles_without_room_keep_what_they_acknowledged(tmp_path: Path) -> None:
    def filling(acknowledge: Acknowledge) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = SqliteProfiles(tmp_path / "online.db")
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
        try:
            for number in range(1000):
                store.append(f"v{number}", [Event("i1", AT)])
                acknowledge(f"v{number}")
        except ConsentierError:
            return
        raise AssertionError("there was room for all")

    outcome = run(filling)
    assert not outcome.error, outcome.error
    assert len(outcome.acknowledged) > 3
    store = SqliteProfiles(tmp_path / "online.db")
    assert set(outcome.acknowledged) <= set(store)
    store.close()


# ---- The clock ---------------------------------------------------------------------------------------------


def granted(visitor: str, at: dt.datetime) -> ConsentRecord:
    return ConsentRecord(f"{visitor} {at}", visitor, "visitor", "online", "granted", at, at)


def test_time_stands_still_where_the_clock_goes_back(caplog: pytest.LogCaptureFixture) -> None:
    told = iter([AT, AT + HOUR, AT, AT + HOUR / 2, AT + HOUR, AT + 2 * HOUR, AT])
    clock = forward_only(lambda: next(told))
    with caplog.at_level(logging.WARNING, "consentier.serving"):
        seen = [clock() for _ in range(7)]
    assert seen == [AT, *[AT + HOUR] * 4, *[AT + 2 * HOUR] * 2]
    assert [record.getMessage() for record in caplog.records] == [
        f"the clock went back by {back}: time stands still until it has caught up"
        for back in (HOUR, 2 * HOUR)
    ]


def test_a_withdrawal_is_not_undone_by_a_clock_that_is_put_back() -> None:
    ledger = Ledger([granted("v1", AT)])
    told = iter([AT + HOUR, AT + 2 * HOUR, AT + HOUR])
    clock = forward_only(lambda: next(told))
    assert ledger.resolve(visitor_id="v1", at=clock()).online
    withdraw(ledger, "v1", kind="visitor", source=Source.ONLINE, at=AT + 2 * HOUR)
    assert [ledger.resolve(visitor_id="v1", at=clock()).online for _ in range(2)] == [False, False]


def test_a_withdrawal_ends_grants_that_a_clock_ahead_of_this_one_recorded() -> None:
    now = dt.datetime.now(dt.UTC)
    ledger = Ledger([granted("v1", now - HOUR), granted("v1", now + HOUR), granted("v1", now + 3 * HOUR)])
    told = withdraw(ledger, "v1", kind="visitor", source=Source.ONLINE, at=now)
    assert told.recorded == 3
    assert withdraw(ledger, "v1", kind="visitor", source=Source.ONLINE, at=now).recorded == 0
    for hours in (0, 0.5, 1, 2, 3, 100):
        assert not ledger.resolve(visitor_id="v1", at=now + hours * HOUR).online


def test_a_withdrawal_dated_back_does_not_end_what_was_granted_since() -> None:
    ledger = Ledger([granted("v1", AT), granted("v1", AT + 2 * HOUR)])
    assert withdraw(ledger, "v1", kind="visitor", source=Source.ONLINE, at=AT + HOUR).recorded == 1
    assert ledger.resolve(visitor_id="v1", at=AT + 3 * HOUR).online


# ---- Torn files --------------------------------------------------------------------------------------------


def test_half_a_line_of_the_audit_log_swallows_no_other(tmp_path: Path) -> None:
    segment = tmp_path / "2026-01-01_until_2026-07-01.jsonl"
    line = b'{"format": 1}\n'
    audit._append(segment, line, durable=False)
    with segment.open("ab") as file:
        file.write(line[:5])
    audit._append(segment, line, durable=False)
    audit._append(segment, line, durable=False)
    assert segment.read_bytes() == line + line[:5] + b"\n" + line + line


@pytest.mark.parametrize("damage", ["garbage", "half", "of another file", "gone"])
def test_a_log_that_a_dead_process_left_beside_a_ledger_is_read_as_far_as_it_is_whole(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "consents.db"
    log = path.with_name("consents.db-wal")
    kept = tmp_path / "kept"
    kept.mkdir()
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.append([granted("v1", AT)])
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.append([granted(f"v{number}", AT) for number in range(2, 9)])
        for file in tmp_path.glob("consents.db*"):  # as a machine that lost its power leaves them
            shutil.copy(file, kept)
    path, log = kept / path.name, kept / log.name
    if damage == "garbage":
        log.write_bytes(os.urandom(log.stat().st_size))
    elif damage == "half":
        os.truncate(log, log.stat().st_size // 2)
    elif damage == "of another file":
        with sqlite3.connect(tmp_path / "other.db") as other:
            other.execute("PRAGMA journal_mode = WAL")
            other.execute("CREATE TABLE t (x)")
            other.commit()
            shutil.copy(tmp_path / "other.db-wal", log)
        other.close()
    else:
        log.unlink()
    (kept / "consents.db-shm").unlink()
    try:
        ledger = Ledger.open(f"sqlite:///{path}", create=False)
    except LedgerError:
        return  # refused as a whole: nobody is permitted anything
    with ledger:
        found = ledger.verify()
        there = {name for number in range(1, 9) if ledger.records_of(name := f"v{number}", kind="visitor")}
    assert not found.ok or there in ({"v1"}, {f"v{number}" for number in range(1, 9)})


def test_a_ledger_that_was_cut_off_is_refused_or_found_damaged(tmp_path: Path) -> None:
    path = tmp_path / "consents.db"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.append([granted(f"v{number}", AT) for number in range(200)])
    whole = path.read_bytes()
    for size in (0, 100, 4096, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        try:
            with Ledger.open(f"sqlite:///{path}", create=False) as ledger:
                found = ledger.verify()
                assert not found.ok or found.position == 200  # the last byte was of no use
        except LedgerError:
            continue


def test_a_key_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    Keyring.open(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ConsentierError, match=r"keys\.json"):
        Keyring.open(path)
