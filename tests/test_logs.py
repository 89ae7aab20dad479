"""What is logged, in which form, and how much of it."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest

from consentier.logs import bound, configured
from consentier.progress import progress

LOG, SERVING = logging.getLogger("consentier.training"), logging.getLogger("consentier.serving")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        (-1, ["error"]),
        (0, ["warning", "error"]),
        (1, ["info", "warning", "error"]),
        (2, ["debug", "info", "warning", "error"]),
        (7, ["debug", "info", "warning", "error"]),
    ],
)
def test_the_verbosity_decides(verbosity: int, expected: list[str]) -> None:
    stream = io.StringIO()
    with configured(verbosity, stream=stream):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            LOG.log(level, "%d rows", 3)
    assert [line["level"] for line in said(stream)] == expected
    assert {line["message"] for line in said(stream)} == {"3 rows"}


def test_off_a_terminal_each_line_is_json_with_run_and_tier() -> None:
    stream = io.StringIO()
    with configured(stream=stream), bound(run="r1", tier="crm"):
        LOG.warning("something\nof two lines")
    (line,) = said(stream)
    assert (line["run"], line["tier"], line["logger"]) == ("r1", "crm", "consentier.training")
    assert line["message"] == "something\nof two lines"


def test_on_a_terminal_it_is_text() -> None:
    stream = Terminal()
    with configured(stream=stream), bound(tier="crm"):
        LOG.warning("something")
    assert stream.getvalue() == "warning: tier=crm something\n"


def test_what_serving_says_of_each_request_is_for_those_who_ask() -> None:
    for verbosity, expected in ((0, 0), (1, 1)):
        stream = io.StringIO()
        with configured(verbosity, stream=stream):
            SERVING.warning("the tier has no model")
        assert len(said(stream)) == expected


def test_quiet_is_without_progress_and_only_for_a_while() -> None:
    stream = io.StringIO()
    with configured(-1), progress("fitting", 1, stream=stream):
        pass
    assert stream.getvalue() == ""
    with progress("fitting", 1, stream=stream):
        pass
    assert len(said(stream)) == 2


def test_afterwards_logging_is_as_it_was() -> None:
    def state() -> tuple[object, ...]:
        return logging.getLogger("consentier").handlers[:], LOG.getEffectiveLevel()

    before = state()
    with configured(2):
        assert state() != before
    assert state() == before


def test_a_closed_stream_fails_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    stream = io.StringIO()
    stream.close()
    with configured(stream=stream):
        LOG.error("something")
