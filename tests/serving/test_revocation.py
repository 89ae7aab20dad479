"""The revocation list: what it says, when it is read again, and that whatever is wrong with it stops all."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.errors import BundleError, BundleMalformed
from consentier.serving.revocation import PAST_DEADLINE, Revocations, revoke

AT = dt.datetime(2026, 12, 24, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def test_a_bundle_stops_at_its_deadline_and_others_do_not(tmp_path: Path) -> None:
    assert revoke(tmp_path, [digest(1), digest(2)], AT, "withdrawal") == 2
    revocations = Revocations.open(tmp_path)
    assert revocations.deadline_of(digest(1)) == AT
    assert revocations.deadline_of(digest(3)) is None
    assert not revocations.stopped(digest(1), AT - dt.timedelta(microseconds=1))
    assert revocations.stopped(digest(1), AT)
    assert revocations.current().problem_of(digest(2), AT + HOUR) == PAST_DEADLINE
    assert not revocations.stopped(digest(3), AT + HOUR)


def test_the_file_is_what_its_format_says_and_names_nobody(tmp_path: Path) -> None:
    revoke(tmp_path, [digest(1)], AT.astimezone(dt.timezone(HOUR)), "withdrawal")
    assert json.loads((tmp_path / "revocations.json").read_text()) == {
        "format": 1,
        "revocations": [
            {"bundle_digest": digest(1), "deadline": "2026-12-24T00:00:00+00:00", "reason": "withdrawal"}
        ],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["revocations.json"]


_revocations = st.lists(
    st.tuples(st.lists(st.integers(0, 3), max_size=3), st.integers(0, 5), st.sampled_from(("a", "b"))),
    max_size=6,
)


@given(calls=_revocations, again=st.randoms(use_true_random=False))
def test_the_earliest_deadline_wins_in_any_order_and_however_often(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[list[int], int, str]], again: Any
) -> None:
    folder = tmp_path_factory.mktemp("bundles")
    shuffled = [*calls, *calls]
    again.shuffle(shuffled)
    known: dict[int, int] = {}
    for numbers, hour, reason in shuffled:
        changed = {number for number in numbers if hour < known.get(number, 99)}
        assert revoke(folder, map(digest, numbers), AT + hour * HOUR, reason) == len(changed)
        known.update(dict.fromkeys(changed, hour))
    revocations = Revocations.open(folder)
    for number in range(4):
        expected = AT + known[number] * HOUR if number in known else None
        assert revocations.deadline_of(digest(number)) == expected


def test_nothing_to_revoke_makes_no_list(tmp_path: Path) -> None:
    assert revoke(tmp_path, [], AT, "withdrawal") == 0
    assert list(tmp_path.iterdir()) == []
    assert not Revocations.open(tmp_path).stopped(digest(1), AT)


def test_a_change_is_seen_at_the_next_look_also_one_that_is_as_long_and_as_old(tmp_path: Path) -> None:
    revocations = Revocations.open(tmp_path)
    assert not revocations.stopped(digest(1), AT)
    for number in range(1, 30):  # many changes within one tick of the file system's clock
        revoke(tmp_path, [digest(number)], AT, "withdrawal")
        assert revocations.stopped(digest(number), AT)
    path = tmp_path / "revocations.json"
    text = path.read_text()
    for hour in (3, 1, 2):
        # Overwritten in place, at the same length, with its old time put back.
        before = path.stat().st_mtime_ns
        path.write_text(text.replace("T00:00:00", f"T0{hour}:00:00"))
        os.utime(path, ns=(before, before))
        assert revocations.deadline_of(digest(7)) == AT + hour * HOUR


def test_an_unchanged_list_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revoke(tmp_path, [digest(1)], AT, "withdrawal")
    monkeypatch.setattr("consentier.serving.revocation._SETTLED", -(10**12))
    revocations = Revocations.open(tmp_path)
    monkeypatch.setattr("consentier.serving.revocation._read", None)
    assert revocations.stopped(digest(1), AT)


MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"format": 1, "revocations": [',
    "another": b"[]",
    "another format": b'{"format": 2, "revocations": []}',
    "a truth value": b'{"format": true, "revocations": []}',
    "more": b'{"format": 1, "revocations": [], "subjects": []}',
    "twice": b'{"format": 1, "revocations": [], "revocations": []}',
    "not utf-8": b'{"format": 1, "revocations": ["\xff"]}',
    "deep": b"[" * 100_000,
    "no list": b'{"format": 1, "revocations": {}}',
    "long": b'{"format": 1, "revocations": [' + b" " * (17 << 20) + b"]}",
}
ENTRY = {"bundle_digest": digest(5), "deadline": AT.isoformat(), "reason": "withdrawal"}
ENTRIES: tuple[Any, ...] = (
    [None], [{}], [ENTRY, ENTRY], [{**ENTRY, "bundle_digest": "sha256:5"}], [{**ENTRY, "bundle_digest": 5}],
    [{**ENTRY, "deadline": "soon"}], [{**ENTRY, "deadline": "2026-12-24T00:00:00"}],
    [{**ENTRY, "deadline": 5}], [{**ENTRY, "deadline": "0001-01-01T00:00:00+14:00"}],
    [{**ENTRY, "reason": None}], [{**ENTRY, "subject": "c-42"}],
)  # fmt: skip
MALFORMED |= {
    f"entries {number}": json.dumps({"format": 1, "revocations": entries}).encode()
    for number, entries in enumerate(ENTRIES)
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_list_stops_every_bundle_and_is_not_written_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "revocations.json").write_bytes(content)
    revocations = Revocations.open(tmp_path)
    assert revocations.stopped(digest(1), AT)
    assert "revocations.json" in revocations.current().problem_of(digest(1), AT)
    with pytest.raises(BundleError, match=r"revocations\.json"):
        revocations.deadline_of(digest(1))
    with pytest.raises(BundleMalformed, match="until it is restored"):
        revoke(tmp_path, [digest(1)], AT, "withdrawal")
    assert (tmp_path / "revocations.json").read_bytes() == content


def test_a_list_that_is_gone_after_it_was_seen_stops_every_bundle_until_it_is_back(tmp_path: Path) -> None:
    revoke(tmp_path, [digest(1)], AT, "withdrawal")
    revocations = Revocations.open(tmp_path)
    (tmp_path / "revocations.json").rename(tmp_path / "elsewhere")
    assert revocations.stopped(digest(2), AT)
    assert revocations.current().fault == "the revocation list revocations.json is gone"
    (tmp_path / "elsewhere").rename(tmp_path / "revocations.json")
    assert not revocations.stopped(digest(2), AT)


def test_a_list_that_cannot_be_read_stops_every_bundle(tmp_path: Path) -> None:
    (tmp_path / "revocations.json").mkdir()
    assert Revocations.open(tmp_path).stopped(digest(1), AT)
    (tmp_path / "file").write_text("")
    assert Revocations.open(tmp_path / "file").stopped(digest(1), AT)  # its directory is none


@pytest.mark.parametrize(
    ("digests", "deadline", "reason", "error"),
    [
        (["sha256:1"], AT, "withdrawal", ValueError),
        ([digest(1).upper()], AT, "withdrawal", ValueError),
        (digest(1), AT, "withdrawal", ValueError),
        ([1], AT, "withdrawal", TypeError),
        ([digest(1)], dt.datetime(2026, 1, 1), "withdrawal", ValueError),
        ([digest(1)], "2026-01-01", "withdrawal", TypeError),
        ([digest(1)], AT, "", ValueError),
        ([digest(1)], AT, "a\nb", ValueError),
        ([digest(1)], AT, "x" * 101, ValueError),
    ],
)
def test_wrong_arguments_write_nothing(
    tmp_path: Path, digests: Any, deadline: Any, reason: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        revoke(tmp_path, digests, deadline, reason)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revoke(tmp_path, [digest(1)], AT, "withdrawal")
    before = (tmp_path / "revocations.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        revoke(tmp_path, [digest(2)], AT, "withdrawal")
    assert (tmp_path / "revocations.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["revocations.json"]


def _revoke_some(folder: Path, first: int) -> None:
    for number in range(first, first + 10):
        revoke(folder, [digest(number)], AT, "withdrawal")


def test_writers_in_several_processes_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_revoke_some, args=(tmp_path, first)) for first in (0, 10, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    revocations = Revocations.open(tmp_path)
    assert all(revocations.deadline_of(digest(number)) == AT for number in range(30))


def test_a_pipe_in_the_place_of_the_list_stops_all_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "revocations.json")
    assert "no regular file" in Revocations.open(tmp_path).current().problem_of(digest(1), AT)


def test_what_a_list_says_of_its_format_is_not_repeated_in_every_answer(tmp_path: Path) -> None:
    document = {"format": "x" * 1_000_000, "revocations": []}
    (tmp_path / "revocations.json").write_text(json.dumps(document))
    assert 0 < len(Revocations.open(tmp_path).current().fault) < 1000


def test_a_list_of_any_length_is_read_up_to_its_limit_only(tmp_path: Path) -> None:
    with (tmp_path / "revocations.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "longer than any list" in Revocations.open(tmp_path).current().fault
