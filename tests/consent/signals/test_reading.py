"""What holds for signals of every kind: no payload raises, none that cannot be read grants, time is kept."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consentier.consent import ConsentRecord
from consentier.consent.signals import SIGNALS, read_signal, reading
from consentier.consent.signals.reading import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_EVIDENCE,
    UNEXPECTED,
    Decision,
    Signal,
    SignalContext,
    SignalSettings,
    records_from,
)
from consentier.errors import SignalError

NOW = dt.datetime(2026, 6, 15, 12, 30, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
SKEW = dt.timedelta(minutes=5)

KINDS = sorted(SIGNALS)


def read(kind: str, payload: object, **others: Any) -> list[ConsentRecord]:
    return read_signal(kind, payload, subject_id="v-9", received_at=NOW, **others)


def reasons(records: Iterable[ConsentRecord]) -> list[str]:
    return [json.loads(record.evidence or "").get("reason", "") for record in records]


# Payloads of every kind

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.sampled_from(
        ("granted", "1", "OptIn", "y", "allow_all", "2999-01-01T00:00:00Z", "2026-06-15T12:00:00")
    ),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=10), st.integers()), inner, max_size=4),
        st.tuples(inner, inner),
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(payload=anything)
def test_no_payload_raises_and_nonsense_grants_nothing(kind: str, payload: object) -> None:
    for given_payload in (payload, json.dumps(payload, default=str, skipkeys=True)):
        records = read(kind, given_payload)
        assert {record.state for record in records} <= {"denied", "withdrawn"}
        assert not any(UNEXPECTED in reason for reason in reasons(records))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["consent"] = value
    return value


HOSTILE = {
    "over-long text": "A" * (MAX_CHARACTERS + 1),
    "over-long list": [0] * MAX_CHARACTERS,
    "deep text": "[" * 100_000,
    "deep object": nested(100_000),
    "a little too deep": nested(MAX_DEPTH + 1),
    "cycle": cyclic(),
    "not a number": {"ad_storage": float("nan")},
    "NaN": '{"ad_storage": NaN}',
    "infinite": '{"ad_storage": 1e999}',
    "a number of many digits": '{"ad_storage": ' + "9" * 10_000 + "}",
    "a key twice": '{"ad_storage": "denied", "ad_storage": "granted"}',
    "keys that fall together": {"1": "denied", 1: "granted"},
    "lone surrogate": '"\ud800"',
    "no UTF-8": b"\xff\xfe",
    "byte order mark": "\ufeff{}",
    "an object": object(),
    "a class": dict,
    "a set": {"granted"},
    "naive time": dt.datetime(2026, 1, 1),
    "NUL": "\0",
}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"gpc", "dnt"}))
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_payload_denies_with_a_reason(kind: str, name: str) -> None:
    records = read(kind, HOSTILE[name])
    assert {record.permission for record in records} >= SIGNALS[kind].decides(SIGNALS[kind].settings())
    assert {record.state for record in records} == {"denied"}
    for record, reason in zip(records, reasons(records), strict=True):
        assert reason.startswith("refused: ")
        assert UNEXPECTED not in reason
        assert record.valid_from == record.recorded_at == NOW
        assert len(record.evidence or "") < 8 * MAX_EVIDENCE


def test_a_mapping_is_read_as_the_object_it_holds() -> None:
    payload = {"personalization_storage": "granted", "analytics_storage": "granted"}
    assert read("consent_mode", collections.OrderedDict(payload)) == read("consent_mode", payload)
    assert read("consent_mode", collections.ChainMap(payload)) == read("consent_mode", payload)


# A kind of the tests' own, which says what it is told to say


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToySettings(SignalSettings):
    decisions: tuple[Decision, ...] = ()
    failure: Exception | None = None


def say(payload: Any, context: SignalContext[ToySettings]) -> Iterable[Decision]:  # noqa: ARG001
    yield from context.settings.decisions
    if context.settings.failure is not None:
        raise context.settings.failure


TOY = Signal(
    kind="toy",
    settings=ToySettings,
    decides=lambda settings: frozenset({"online", "ads"}),
    read=say,
    structured=True,
)


def toy(
    *decisions: Decision, payload: object = None, signal: Signal[ToySettings] = TOY, **others: Any
) -> list[ConsentRecord]:
    context = SignalContext("v-9", "visitor", NOW, ToySettings(decisions=decisions, **others))
    return records_from(signal, payload, context)


def states(records: Iterable[ConsentRecord]) -> set[tuple[str, str]]:
    return {(record.permission, record.state) for record in records}


DENIED = {("online", "denied"), ("ads", "denied")}
GRANT = Decision(permission="online", state="granted")


@pytest.mark.parametrize(
    "failure",
    [SignalError("no"), KeyError("no"), RecursionError(), MemoryError(), OverflowError(), UnicodeError()],
)
def test_a_reader_that_fails_halfway_grants_nothing(failure: Exception) -> None:
    records = toy(GRANT, failure=failure)
    assert states(records) == DENIED
    unexpected = [UNEXPECTED in reason for reason in reasons(records)]
    assert all(unexpected) != isinstance(failure, SignalError)


@pytest.mark.parametrize(
    "decision",
    [
        Decision(permission="crm", state="granted"),
        Decision(permission="online", state="lifted"),
        Decision(permission="online", state="allowed"),
        Decision(permission="onlin", state="denied"),
        Decision(permission="online", state="granted", at=dt.datetime(2026, 1, 1)),
        Decision(permission="online", state="granted", until=dt.datetime(2027, 1, 1)),
    ],
)
def test_a_reader_that_says_what_it_may_not_is_not_heard(decision: Decision) -> None:
    assert states(toy(GRANT, decision)) == DENIED


def test_a_kind_that_only_lowers_grants_nothing() -> None:
    lowering = dataclasses.replace(TOY, only_lowers=True)
    refusal = Decision(permission="online", state="denied")
    assert states(toy(GRANT, signal=lowering)) == DENIED
    assert states(toy(refusal, signal=lowering)) == {("online", "denied")}


# Time


@dataclasses.dataclass(frozen=True)
class Timed:
    """One decision, and when it was stated and ends, in seconds from its receipt."""

    state: str
    at: int | None
    until: int | None
    proven: bool

    def record(self) -> ConsentRecord:
        decision = Decision(
            permission="online",
            state=self.state,
            at=None if self.at is None else NOW + self.at * SECOND,
            until=None if self.until is None else NOW + self.until * SECOND,
            at_is_proven=self.proven,
        )
        (record,) = toy(decision)
        return record


seconds = st.one_of(st.sampled_from((-86_400, -1, 0, 1, 299, 300, 301, 86_400)), st.integers(-(10**8), 10**8))
timed = st.builds(
    Timed,
    state=st.sampled_from(("granted", "denied", "withdrawn", "objected")),
    at=st.none() | seconds,
    until=st.none() | seconds,
    proven=st.booleans(),
)


def check_time_is_kept(case: Timed) -> None:
    """A grant starts at its receipt, or before it if that is proven; a refusal no later than its receipt."""
    record = case.record()
    stated = 0 if case.at is None else case.at
    if case.state != "granted":
        assert record.state == case.state
        assert record.valid_from == NOW + min(stated, 0) * SECOND
        assert record.valid_to is None
    elif stated > SKEW / SECOND or (case.until is not None and case.until <= 0):
        assert record.state == "denied"
        assert record.valid_from == NOW
        assert record.valid_to is None
    else:
        assert record.state == "granted"
        assert record.valid_from == (NOW + min(stated, 0) * SECOND if case.proven else NOW)
        assert record.valid_to == (None if case.until is None else NOW + case.until * SECOND)
    assert record.recorded_at == NOW


@given(timed)
@example(Timed("granted", -60, 60, proven=False))
@example(Timed("granted", -60, 60, proven=True))
def test_time_is_kept(case: Timed) -> None:
    check_time_is_kept(case)


@breaks(
    Break(
        "a grant takes effect when it says, not when it was received",
        reading._in_time,
        "not decision.at_is_proven or at > received_at",
        "False",
        Timed("granted", -60, None, proven=False),
    ),
    Break(
        "a grant may be dated ahead",
        reading._in_time,
        "at - received_at > CLOCK_SKEW",
        "False",
        Timed("granted", 301, None, proven=False),
    ),
    Break(
        "a grant that has ended counts",
        reading._in_time,
        "until <= received_at",
        "until < received_at",
        Timed("granted", None, 0, proven=False),
    ),
    Break(
        "a refusal waits for the time that it names",
        reading._in_time,
        "at=min(at, received_at)",
        "at=at",
        Timed("withdrawn", 60, None, proven=False),
    ),
    Break(
        "a refusal is dated to its receipt",
        reading._in_time,
        "at=min(at, received_at)",
        "at=received_at",
        Timed("withdrawn", -60, None, proven=False),
    ),
)
def test_time_that_is_not_kept_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_time_is_kept, timed, broken)


def check_unreadable_denies(payload: object) -> None:
    """What is no JSON denies all that the kind decides, whatever its reader would say."""
    assert states(toy(GRANT, payload=payload)) == DENIED


unreadable = st.sampled_from([name for name in HOSTILE if name not in ("naive time", "lone surrogate")]).map(
    HOSTILE.__getitem__
)


@breaks(
    Break(
        "what cannot be read says nothing",
        records_from,
        "for permission in sorted(signal.decides(context.settings))",
        "for permission in ()",
        "no JSON",
    ),
    Break(
        "what cannot be read is granted",
        records_from,
        'state="denied"',
        'state="granted"',
        "no JSON",
    ),
    Break(
        "JSON may name a key twice",
        reading._object,
        "len(value) != len(pairs)",
        "False",
        HOSTILE["a key twice"],
    ),
    Break(
        "a payload may be of any length",
        reading._text,
        "len(payload) > MAX_CHARACTERS",
        "False",
        json.dumps("A" * MAX_CHARACTERS),
    ),
    Break(
        "a payload may be nested to any depth",
        reading._parsed,
        'raise SignalError(f"the payload is nested deeper than {MAX_DEPTH} levels")',
        "return value",
        HOSTILE["a little too deep"],
    ),
)
def test_an_unreadable_payload_that_does_not_deny_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_unreadable_denies, unreadable, broken)


def test_json_just_deep_enough_is_read() -> None:
    assert states(toy(GRANT, payload=nested(MAX_DEPTH - 1))) == {("online", "granted")}


# Identity and evidence


@pytest.mark.parametrize("kind", KINDS)
@given(payload=anything)
@settings(max_examples=20, deadline=None)
def test_the_same_signal_gives_the_same_records(kind: str, payload: object) -> None:
    assert read(kind, payload) == read(kind, payload)


def test_what_differs_in_a_signal_differs_in_its_ids() -> None:
    def ids(
        payload: str = "", subject: str = "v-9", kind: Any = "visitor", at: dt.datetime = NOW
    ) -> set[str]:
        records = read_signal("tcf", payload, subject_id=subject, subject_kind=kind, received_at=at)
        return {record.record_id for record in records}

    variants = [
        ids(),
        ids("x"),
        ids(subject="v-8"),
        ids(kind="customer"),
        ids(at=NOW + dt.timedelta.resolution),
    ]
    assert len(set.union(*variants)) == 3 * len(variants)
    elsewhere = NOW.astimezone(dt.timezone(dt.timedelta(hours=2)))
    assert ids(at=elsewhere) == ids()


def test_two_decisions_on_one_permission_are_two_records() -> None:
    withdrawal = Decision(permission="online", state="withdrawn", at=NOW - SECOND)
    first, second = toy(withdrawal, GRANT)
    assert first.record_id != second.record_id


def test_equal_objects_are_one_signal_whatever_the_order_of_their_keys() -> None:
    assert toy(GRANT, payload={"a": 1, "b": [True]}) == toy(GRANT, payload={"b": [True], "a": 1})
    assert toy(GRANT, payload={"a": 1, "b": [True]}) == toy(GRANT, payload=b'{"b": [true], "a":1}')


def test_the_evidence_keeps_a_long_payload_in_part_and_its_digest_whole() -> None:
    text = "é" * (MAX_EVIDENCE + 1)
    evidence = json.loads(read("tcf", text)[0].evidence or "")
    assert evidence["raw"] == text[:MAX_EVIDENCE]
    assert evidence["raw_characters"] == len(text)
    assert evidence["raw_sha256"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "event",
    [
        '{"context": {"traits": {"email": "person@example.com"}}',
        '{"email": "person@example.com", "context": {}, "context": {}}',
        '{"email": "person@example.com", "context": "none"}',
        b'{"email": "person@example.com", "name": "\xff"}',
        '["person@example.com"]',
    ],
    ids=["cut off", "a key twice", "no object within", "no UTF-8", "no object"],
)
def test_of_json_that_cannot_be_read_no_text_is_kept(event: str | bytes) -> None:
    """Nobody can tell which part of it is the consent, and the rest is about the person."""
    records = read("segment", event, categories={"online": ["Functional"]})
    assert states(records) == {("online", "denied")}
    for record in records:
        evidence = json.loads(record.evidence or "")
        assert evidence["raw"] == ""
        assert evidence["raw_characters"] > 0
        assert len(evidence["raw_sha256"]) == 64
        assert "example.com" not in (record.evidence or "")


def test_the_records_say_by_whom_and_under_which_notice() -> None:
    (record,) = toy(GRANT, jurisdiction="DE", policy_version="2026-05")
    assert (record.collected_by, record.jurisdiction, record.policy_version) == ("toy", "DE", "2026-05")
    assert (record.basis, record.subject_kind, record.subject_id) == ("consent", "visitor", "v-9")


# Arguments


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"kind": "tfc"}, ValueError, "did you mean 'tcf'"),
        ({"subject_id": ""}, ValueError, "subject_id is empty"),
        ({"subject_id": 9}, TypeError, "must be a string"),
        ({"subject_kind": "device"}, ValueError, "'visitor' or 'customer'"),
        ({"received_at": dt.datetime(2026, 1, 1)}, ValueError, "no time zone"),
        ({"received_at": "2026-01-01"}, TypeError, "expected a datetime"),
        (
            {"received_at": dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-14)))},
            ValueError,
            "beyond what UTC can say",
        ),
        ({"vendor": 3}, ValueError, "did you mean 'vendor_id'"),
        ({"jurisdiction": ""}, TypeError, "jurisdiction must be"),
        ({"policy_version": 3}, TypeError, "policy_version must be"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"kind": "tcf", "payload": "", "subject_id": "v-9", "received_at": NOW}
    with pytest.raises(error, match=message):
        read_signal(**{**arguments, **wrong})
