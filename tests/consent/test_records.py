"""Consent records and identity links: what they accept, and what they say when they do not."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from consent_cases import at_tick, said
from hypothesis import given
from hypothesis import strategies as st

from consentier.consent import ConsentRecord, Link, microseconds
from consentier.errors import LedgerError

ZONES = st.sampled_from(("UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia")).map(ZoneInfo)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@given(st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1), timezones=ZONES))
def test_microseconds_count_from_the_epoch_in_any_time_zone(instant: dt.datetime) -> None:
    assert EPOCH + dt.timedelta(microseconds=microseconds(instant)) == instant.astimezone(dt.UTC)


def test_microseconds_need_a_datetime_with_a_time_zone() -> None:
    with pytest.raises(TypeError, match="datetime with a time zone, got str"):
        microseconds("2025-03-01")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2025-03-01T00:00:00 has no time zone"):
        microseconds(dt.datetime(2025, 3, 1))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("record_id", "", "record_id must be a non-empty string"),
        ("subject_id", 5, "subject_id must be a non-empty string"),
        ("subject_kind", "person", "subject_kind is none of customer, visitor"),
        ("permission", "contact:fax", "permission is none of"),
        (
            "state",
            "yes",
            "state is none of denied, granted, lifted, objected, withdrawn",
        ),
        ("valid_from", dt.datetime(2025, 3, 1), "valid_from: .* has no time zone"),
        ("recorded_at", None, "recorded_at: expected a datetime"),
        ("valid_to", "2026-03-01", "valid_to: expected a datetime"),
        ("double_opt_in_at", dt.datetime(2025, 3, 1), "double_opt_in_at: .* has no time zone"),
        ("basis", 6, "basis must be a string or None, not int"),
        ("evidence", {"form": "letter"}, "evidence must be a string or None, not dict"),
    ],
)
def test_a_malformed_record_is_refused_by_its_field_and_names_nobody(
    field: str, value: Any, message: str
) -> None:
    record = said("r1", "granted", 0)
    with pytest.raises(LedgerError, match=f"^consent record: {message}") as caught:
        dataclasses.replace(record, **{field: value})
    assert "r1" not in str(caught.value)
    assert repr(record.subject_id) not in str(caught.value)


def test_the_two_readings_of_the_hour_when_summer_time_ends_are_two_instants() -> None:
    berlin = dt.datetime(2025, 10, 26, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    first, second = (
        dataclasses.replace(said("r1", "granted", 0), valid_from=berlin.replace(fold=fold)) for fold in (0, 1)
    )
    assert first != second
    assert first == dataclasses.replace(first, valid_from=dt.datetime(2025, 10, 26, 0, 30, tzinfo=dt.UTC))
    assert Link("v", "c", berlin) != Link("v", "c", berlin.replace(fold=1))


def test_the_least_record_states_nothing_beyond_its_decision() -> None:
    record = ConsentRecord("r1", "a", "visitor", "online", "granted", at_tick(0), at_tick(0))
    assert record.valid_to is None
    assert record.evidence is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("", "c", None), "visitor_id must be a non-empty string"),
        (("v", None, None), "customer_id must be a non-empty string"),
        (("v", "c", dt.datetime(2025, 3, 1)), "linked_at: .* has no time zone"),
        (("v", "c", "yesterday"), "linked_at: expected a datetime"),
        (("v", "c", None, 1), "evidence must be a string or None, not int"),
    ],
)
def test_a_malformed_link_is_refused(fields: tuple[Any, ...], message: str) -> None:
    with pytest.raises(LedgerError, match=f"^identity link: {message}"):
        Link(*fields)
