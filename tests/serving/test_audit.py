"""The audit log: what a line holds, how it is written, read and thrown away."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from engines import ITEMS, bundles

from consentier.consent import Channel, Permission, Side, State, Tier
from consentier.consent.keyring import Keyring
from consentier.errors import AuditError
from consentier.serving import Event, Recommender, Request, audit, line_files
from consentier.serving.audit import AuditLine, JsonLinesAudit, audit_lines, expire, nameable

AT = dt.datetime(2026, 3, 1, 12, 34, 56, tzinfo=dt.UTC)
BOTH = Permission.ONLINE | Permission.CRM


@pytest.fixture
def keyring() -> Keyring:
    """Keys for one test."""
    return Keyring.ephemeral()


def asked(path: Path, keyring: Keyring, **facts: Any) -> AuditLine:
    """The line of one request, answered by a recommender that writes its audit to `path`."""
    audit = JsonLinesAudit(path, keyring)
    engine = Recommender.load(bundles(), keyring=keyring, audit=audit, clock=lambda: AT)
    request: dict[str, Any] = {
        "session": (ITEMS[1],), "online_history": (ITEMS[2],), "crm_history": (Event(ITEMS[3]),),
        "visitor_id": "v-1", "customer_id": "c-1", "linked": True, "permission": BOTH, "at": AT,
    }  # fmt: skip
    engine.recommend(Request(**{**request, **facts}))
    *_, line = audit_lines(path)
    return line


def test_a_line_says_what_the_answer_rests_on(tmp_path: Path, keyring: Keyring) -> None:
    line = asked(tmp_path, keyring, exclude=(ITEMS[4],), allow=ITEMS, placement="product", n=3)
    assert (line.at, line.tier, line.state, line.side) == (AT, Tier.FUSED, State.BOTH_LINKED, Side.ONLINE)
    assert (line.channel, line.sources) == (Channel.SHOP, ("crm", "online", "session"))
    assert line.reason == "both permissions and a lawful link: answered from online and CRM data together"
    assert line.bundle_digest is not None
    trace = line.trace
    assert trace is not None
    assert trace.subjects == {
        "visitor": keyring.digest("subject", "visitor:v-1"),
        "customer": keyring.digest("subject", "customer:c-1"),
    }
    assert set(trace.inputs) == {"session", "online", "crm", "attributes"}
    named = [trace.answer, trace.exclude, trace.allow, trace.page, *trace.inputs.values()]
    assert all(digest and digest.startswith(keyring.current_id + ":") for digest in named)
    assert (trace.n, trace.product_page, trace.vouched, trace.contact) == (3, True, True, None)


def test_a_line_without_permission_carries_nothing_of_anybody(tmp_path: Path, keyring: Keyring) -> None:
    line = asked(tmp_path, keyring, permission=Permission.NONE, exclude=(ITEMS[4],), placement="product", n=7)
    assert line.trace is None
    assert line.at == AT.replace(minute=0, second=0)
    assert (line.tier, line.sources) == (Tier.SESSION, ("session",))
    (segment,) = tmp_path.iterdir()
    assert segment.name.endswith("_anonymous.jsonl")
    assert keyring.current_id not in segment.read_text()


def test_questions_about_items_are_about_nobody(tmp_path: Path, keyring: Keyring) -> None:
    engine = Recommender.load(bundles(), keyring=keyring, audit=JsonLinesAudit(tmp_path, keyring))
    engine.similar(ITEMS[1])
    engine.basket(ITEMS[:3])
    assert [line.trace for line in audit_lines(tmp_path)] == [None, None]


@pytest.mark.parametrize(
    ("state", "side", "sources", "named"),
    [
        (State.NONE, Side.ONLINE, {"session"}, set()),
        (State.NONE, Side.CRM, set(), set()),
        (State.OBJECTED, Side.ONLINE, {"session"}, set()),
        (State.ONLINE, Side.ONLINE, {"session", "online"}, {"visitor"}),
        (State.ONLINE, Side.ONLINE, {"session"}, {"visitor"}),
        (State.ONLINE, Side.ONLINE, set(), {"visitor"}),
        (State.ONLINE, Side.CRM, set(), set()),
        (State.CRM, Side.ONLINE, {"session"}, set()),
        (State.CRM, Side.ONLINE, {"crm"}, {"customer"}),
        (State.CRM, Side.CRM, {"crm"}, {"customer"}),
        (State.CRM, Side.CRM, set(), {"customer"}),
        (State.BOTH_UNLINKED, Side.ONLINE, {"session", "online"}, {"visitor"}),
        (State.BOTH_UNLINKED, Side.ONLINE, {"crm"}, {"customer"}),
        (State.BOTH_UNLINKED, Side.CRM, {"crm"}, {"customer"}),
        (State.BOTH_LINKED, Side.ONLINE, {"session", "online", "crm"}, {"visitor", "customer"}),
        (State.BOTH_LINKED, Side.CRM, {"online", "crm"}, {"visitor", "customer"}),
        (State.BOTH_LINKED, Side.CRM, set(), {"customer"}),
    ],
)
def test_a_line_names_whose_permission_covers_it(
    state: State, side: Side, sources: set[str], named: set[str]
) -> None:
    assert nameable(state, side, sources) == named


def test_a_line_reads_back_as_it_was_written(tmp_path: Path, keyring: Keyring) -> None:
    for permission in (BOTH, Permission.NONE):
        line = asked(tmp_path, keyring, permission=permission)
        assert AuditLine.from_json(line.to_json()) == line
        assert AuditLine.from_json(line.to_json()).to_json() == line.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"tier": "best"},
        {"state": ["none"]},
        {"at": "2026-03-01"},
        {"at": 5},
        {"reasons": "x"},
        {"sources": [1]},
        {"ledger_position": True},
        {"bundle_digest": 1},
        {"trace": {}},
        {"trace": []},
        {"extra": 1},
    ],
)
def test_a_line_that_says_something_else_is_refused(
    tmp_path: Path, keyring: Keyring, change: dict[str, Any]
) -> None:
    fields = json.loads(asked(tmp_path, keyring).to_json())
    with pytest.raises(AuditError, match="line 7: cannot be read as an audit line"):
        AuditLine.from_json(json.dumps({**fields, **change}), "line 7")


@pytest.mark.parametrize("name", ["subjects", "inputs", "answer", "exclude", "n", "vouched", "contact"])
def test_a_trace_of_wrong_types_is_refused(tmp_path: Path, keyring: Keyring, name: str) -> None:
    fields = json.loads(asked(tmp_path, keyring).to_json())
    fields["trace"][name] = 1.5
    with pytest.raises(AuditError):
        AuditLine.from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", "[" * 100_000, b"\xff"])
def test_what_is_no_line_is_refused(text: str | bytes) -> None:
    with pytest.raises(AuditError):
        AuditLine.from_json(text)


def test_a_torn_line_is_an_error_or_is_reported(tmp_path: Path, keyring: Keyring) -> None:
    line = asked(tmp_path, keyring)
    (segment,) = tmp_path.iterdir()
    with segment.open("a") as file:
        file.write(line.to_json()[:50] + "\n" + line.to_json() + "\n")
    with pytest.raises(AuditError, match=r":2: cannot be read"):
        list(audit_lines(tmp_path))
    unreadable: list[str] = []
    assert list(audit_lines(tmp_path, unreadable=unreadable)) == [line, line]
    assert len(unreadable) == 1
    assert f"{segment}:2" in unreadable[0]
    with pytest.raises(AuditError, match="there is none"):
        list(audit_lines(tmp_path / "absent"))


def test_a_full_disk_fails_the_line_and_spares_the_next(
    tmp_path: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, write = asked(tmp_path, keyring), os.write
    (segment,) = tmp_path.iterdir()
    text = line.to_json().encode() + b"\n"
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, data: write(file, data[: min(len(data), 40)]))
        with pytest.raises(OSError, match="only 40 of"):
            audit._append(segment, text, durable=False)
    audit._append(segment, text, durable=True)
    unreadable: list[str] = []
    assert len(list(audit_lines(tmp_path, unreadable=unreadable))) == 2
    assert len(unreadable) == 1


def test_files_and_directory_are_for_their_owner_only(tmp_path: Path, keyring: Keyring) -> None:
    asked(tmp_path / "log", keyring)
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in (tmp_path / "log").iterdir())


def test_a_file_goes_when_its_retention_is_over_and_not_before(
    tmp_path: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (1, 2):
        monkeypatch.setattr(audit, "_now", lambda day=day: AT + dt.timedelta(days=day))
        asked(tmp_path, keyring)
        asked(tmp_path, keyring, permission=Permission.NONE)
    (tmp_path / "notes.txt").write_text("not ours")
    lines = list(audit_lines(tmp_path))
    assert len(lines) == 4
    first, last = min(line.erase_after for line in lines), max(line.erase_after for line in lines)
    assert first == dt.datetime(2026, 3, 2, tzinfo=dt.UTC) + dt.timedelta(days=181)
    assert expire(tmp_path, first - dt.timedelta(microseconds=1)) == 0
    assert expire(tmp_path, first) == 2
    assert expire(tmp_path, first) == 0
    assert expire(tmp_path, last) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(AuditError, match="no such directory"):
        expire(tmp_path / "absent", last)


def test_a_large_file_is_counted_without_being_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "2026-01-01_until_2026-02-28.jsonl").open("wb") as file:
        for _ in range(32):
            file.write((b" " * 1023 + b"\n") * 1024)
    tracemalloc.start()
    try:
        assert expire(tmp_path, dt.datetime(2026, 3, 1, tzinfo=dt.UTC)) == 32 * 1024
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert list(tmp_path.iterdir()) == []


def test_two_may_expire_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(file: Path) -> int:
        file.unlink()
        return 1

    (tmp_path / "2026-01-01_until_2026-02-28.jsonl").write_text("{}\n")
    monkeypatch.setattr(line_files, "_lines_in", gone)
    assert expire(tmp_path, dt.datetime(2026, 3, 1, tzinfo=dt.UTC)) == 0, "the other one says so"


def test_a_file_whose_name_holds_no_day_does_not_keep_the_others(tmp_path: Path) -> None:
    (tmp_path / "2026-01-01_until_2026-02-30.jsonl").write_text("{}\n")
    (tmp_path / "2026-01-01_until_2026-02-28.jsonl").write_text("{}\n")
    assert expire(tmp_path, dt.datetime(2026, 3, 1, tzinfo=dt.UTC)) == 1


@pytest.mark.parametrize(("days", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_retention_that_is_none_is_refused(
    tmp_path: Path, keyring: Keyring, days: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        JsonLinesAudit(tmp_path, keyring, retention_days=days)


_WRITER = """
import sys
from pathlib import Path
from consentier.serving import audit
for _ in range(100):
    audit._append(Path(sys.argv[1]), sys.argv[2].encode() + b"\\n", durable=False)
"""


def test_processes_and_threads_write_whole_lines_at_once(tmp_path: Path, keyring: Keyring) -> None:
    line = asked(tmp_path, keyring)
    (segment,) = tmp_path.iterdir()
    # Longer than a page, so that a write in two parts would show.
    long = dataclasses.replace(line, reasons=tuple("x" * 500 for _ in range(20))).to_json()
    processes = [subprocess.Popen([sys.executable, "-c", _WRITER, segment, long]) for _ in range(3)]

    def write_many() -> None:
        for _ in range(100):
            audit._append(segment, long.encode() + b"\n", durable=False)

    threads = [threading.Thread(target=write_many) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert sum(1 for _ in audit_lines(tmp_path)) == 501


def test_a_sink_that_fails_fails_no_request(tmp_path: Path, keyring: Keyring, caplog: Any) -> None:
    sink = JsonLinesAudit(tmp_path / "log", keyring)
    (tmp_path / "log").rmdir()
    answer = Recommender.load(bundles(), audit=sink).recommend(Request(session=(ITEMS[1],)))
    assert answer.items
    assert "FileNotFoundError" in caplog.text
