"""Sec-GPC and DNT: they refuse, or they say nothing."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import given
from hypothesis import strategies as st

from consentier.consent import ConsentRecord
from consentier.consent.signals import browser, read_signal

NOW = dt.datetime(2026, 6, 15, 12, 30, tzinfo=dt.UTC)

HEADER = {"gpc": "Sec-GPC", "dnt": "DNT"}
SILENT = {"gpc": ("", "0"), "dnt": ("", "0", "null", "unspecified")}

kinds = st.sampled_from(("gpc", "dnt"))
values = st.one_of(
    st.sampled_from(("1", "0", "", " 1 ", "1, 0", "null", "unspecified", "true")), st.text(max_size=5)
)


def read(kind: str, payload: object, **settings: Any) -> list[ConsentRecord]:
    return read_signal(kind, payload, subject_id="v-9", received_at=NOW, **settings)


def denied(records: list[ConsentRecord]) -> set[str]:
    assert all(record.state == "denied" and record.valid_from == NOW for record in records)
    return {record.permission for record in records}


def check_denies_unless_silent(case: tuple[str, str]) -> None:
    """A header denies unless all that it says is known to say nothing; it never grants."""
    kind, value = case
    silent = all(part.strip() in SILENT[kind] for part in value.split(","))
    wanted = set() if silent else {"online", "ads", "fusion"}
    assert denied(read(kind, value)) == wanted
    assert denied(read(kind, {"Accept": "*/*", HEADER[kind]: value})) == wanted


@given(st.tuples(kinds, values))
def test_a_header_denies_or_says_nothing(case: tuple[str, str]) -> None:
    check_denies_unless_silent(case)


@breaks(
    Break(
        "a header that objects is passed over",
        browser._decisions,
        "if not values:",
        'if values == {"1"}:',
        ("gpc", "1"),
    ),
    Break(
        "an unknown value says nothing",
        browser._decisions,
        'raise SignalError(f"the header {name} has a value that it may not have")',
        "return []",
        ("dnt", "yes"),
    ),
    Break(
        "the header is sought by one spelling",
        browser._header_name,
        "key.lower()",
        "key",
        ("gpc", "1"),
    ),
)
def test_a_header_that_does_not_deny_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_denies_unless_silent, st.tuples(kinds, values), broken)


@pytest.mark.parametrize("kind", ["gpc", "dnt"])
def test_an_absent_header_says_nothing(kind: str) -> None:
    assert read(kind, None) == read(kind, {}) == read(kind, {"Cookie": "1"}) == []


@pytest.mark.parametrize("name", ["sec-gpc", "SEC-GPC", "HTTP_SEC_GPC", b"sec-gpc"])
def test_the_header_is_found_in_any_spelling(name: str | bytes) -> None:
    value = b"1" if isinstance(name, bytes) else "1"
    assert denied(read("gpc", {name: value})) == {"online", "ads", "fusion"}


@pytest.mark.parametrize("payload", [1, True, 1.0, ["1"], {"Sec-GPC": 1}, {7: "1"}, b"\xff"])
def test_a_header_of_the_wrong_type_denies(payload: object) -> None:
    assert denied(read("gpc", payload)) == {"online", "ads", "fusion"}


def test_contradicting_headers_deny() -> None:
    assert denied(read("gpc", {"Sec-GPC": "0", "sec-gpc": "1"})) == {"online", "ads", "fusion"}


def test_the_evidence_holds_no_other_header() -> None:
    records = read("gpc", {"Sec-GPC": "1", "Cookie": "session=secret", "Authorization": "secret"})
    assert {json.loads(record.evidence or "")["raw"] for record in records} == {"1"}
    assert all("secret" not in (record.evidence or "") for record in records)


def test_the_shop_says_what_the_header_lowers() -> None:
    assert denied(read("gpc", "1", lowers={"ads"})) == {"ads"}
    with pytest.raises(ValueError, match="unknown permissions: 'adds'"):
        read("gpc", "1", lowers={"adds"})
    with pytest.raises(TypeError, match="not one string"):
        read("gpc", "1", lowers="ads")
