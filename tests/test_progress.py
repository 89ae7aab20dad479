"""Progress off a terminal: one line of JSON for each thing that there is to say."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from consentier.logs import bound
from consentier.progress import progress


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_note_is_said_when_it_is_new() -> None:
    stream = io.StringIO()
    with progress("searching", 4, stream=stream) as advance:
        for note in ("best 1", "best 1", "", "best 2"):
            advance(note=note)
    told = [(line["event"], line.get("done"), line.get("note")) for line in lines(stream)]
    assert told == [
        ("started", None, None),
        ("running", 1, "best 1"),
        ("running", 4, "best 2"),
        ("finished", 4, None),
    ]


def test_work_that_fails_has_stopped() -> None:
    stream = io.StringIO()

    def fail() -> None:
        with progress("searching", 4, stream=stream) as advance:
            advance(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [(line["event"], line.get("done")) for line in lines(stream)] == [
        ("started", None),
        ("stopped", 3),
    ]


def test_switched_off_it_says_nothing() -> None:
    stream = io.StringIO()
    with progress("searching", 4, stream=stream, enabled=False) as advance:
        advance(note="best 1")
    assert stream.getvalue() == ""


def test_a_line_says_of_which_run_and_tier_it_is() -> None:
    stream = io.StringIO()
    with bound(run="r1"):
        with bound(tier="crm"), progress("fitting", 1, stream=stream):
            pass
        with progress("writing", 1, stream=stream):
            pass
    told = [(line["work"], line["run"], line.get("tier")) for line in lines(stream)]
    assert told == [("fitting", "r1", "crm")] * 2 + [("writing", "r1", None)] * 2
    assert all(line["time"].endswith("+00:00") for line in lines(stream))
