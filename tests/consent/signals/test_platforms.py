"""Signals of consent platforms: nothing but the exact granting shape grants, and nothing at all raises."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import given, settings
from hypothesis import strategies as st
from platform_oracle import may_grant
from platform_signals import GRANTING, RECEIVED, Case, Place, altered, granted, paths, read, value_at

from consentier.consent import Ledger, Permission
from consentier.consent.signals import (
    SIGNALS,
    category_events,
    consent_mode,
    onetrust,
    read_signal,
    rudderstack,
    salesforce,
    segment,
    shopify,
    snowplow,
    usercentrics,
    xdm,
)
from consentier.consent.signals.reading import UNEXPECTED

CASES = list(GRANTING.values())

NESTED: Any = "granted"
for _ in range(50):
    NESTED = [NESTED]

# What may stand in a field instead of what belongs there. None of it grants anything anywhere.
JUNK = (
    None,
    False,
    0,
    1,
    -1,
    10**30,
    1.5,
    "",
    " ",
    "true",
    "no",
    "Granted",
    "GRANTED ",
    "denied",
    "2026-06-01",
    "2026-06-01T11:00:00",
    "9999-12-31T23:59:59Z",
    [],
    {},
    [True],
    {"val": None},
    ["granted", "granted"],
    NESTED,
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
)


def words_of(case: Case) -> list[str]:
    """Keys and texts of a granting payload: what random payloads are made of, so that they come near."""
    found = {step for path in paths(case.payload) for step in path if isinstance(step, str)}
    values = (value_at(case.payload, path) for path in paths(case.payload))
    return sorted(found | {value for value in values if isinstance(value, str)})


WORDS = {case.kind: words_of(case) for case in CASES}


def documents_of(case: Case) -> st.SearchStrategy[tuple[Case, Any]]:
    """Random JSON made of the words of a kind."""
    word = st.sampled_from(WORDS[case.kind])
    leaves = st.one_of(word, SCALARS, st.integers(min_value=1_779_000_000_000, max_value=1_781_000_000_000))
    payloads = st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(word, inner, max_size=5)),
        max_leaves=12,
    )
    return st.tuples(st.just(case), payloads)


DOCUMENTS = st.one_of([documents_of(case) for case in CASES])


@st.composite
def near_misses(draw: st.DrawFn) -> tuple[Case, Any]:
    """A granting payload with up to four places replaced, removed or repeated."""
    case = draw(st.sampled_from(CASES))
    payload = case.payload
    word = st.sampled_from(WORDS[case.kind])
    for _ in range(draw(st.integers(min_value=0, max_value=4))):
        path = draw(st.sampled_from(list(paths(payload))))
        how = draw(st.sampled_from(["replace", "remove", "repeat", "transplant"]))
        if how == "replace":
            payload = altered(payload, path, draw(st.one_of(st.sampled_from(JUNK), word, SCALARS)))
        elif how == "remove":
            payload = altered(payload, path)
        elif how == "transplant":
            payload = altered(payload, path, value_at(payload, draw(st.sampled_from(list(paths(payload))))))
        elif path and isinstance(path[-1], int):
            parent = value_at(payload, path[:-1])
            payload = altered(payload, path[:-1], [*parent, value_at(payload, path)])
    return case, payload


def check_grants(example: tuple[Case, Any]) -> None:
    """What a payload grants, the platform's documentation lets it grant; and no reader fails unforeseen."""
    case, payload = example
    assert granted(case, payload) <= may_grant(case.kind, payload)
    for record in read(case, payload):
        assert UNEXPECTED not in (record.evidence or "")
        assert record.collected_by == case.kind
        if record.state == "granted":
            assert record.valid_from == RECEIVED
            assert record.valid_to is None or record.valid_to > RECEIVED
        else:
            assert record.valid_from <= RECEIVED
            assert record.valid_to is None


# Every kind


def test_every_platform_has_a_granting_case() -> None:
    assert set(GRANTING) == set(SIGNALS) - {"tcf", "gpp", "gpc", "dnt"}


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_granting_shape_grants(case: Case) -> None:
    signal = SIGNALS[case.kind]
    assert granted(case, case.payload) == case.grants == signal.decides(signal.settings(**case.settings))
    assert may_grant(case.kind, case.payload) == case.grants
    assert read(case, json.dumps(case.payload)) == read(case, case.payload)
    assert {record.basis for record in read(case, case.payload)} == {"consent"}


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_without_a_mapping_nothing_is_granted(case: Case) -> None:
    records = read_signal(case.kind, case.payload, subject_id="s-1", received_at=RECEIVED)
    if case.settings:
        assert [record for record in records if record.state == "granted"] == []


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_no_field_can_be_replaced_or_removed_so_that_more_is_granted(case: Case) -> None:
    for path in paths(case.payload):
        for junk in JUNK:
            check_grants((case, altered(case.payload, path, junk)))
        check_grants((case, altered(case.payload, path)))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_every_needed_field_is_needed(case: Case) -> None:
    for path, permissions in case.needed.items():
        assert not granted(case, altered(case.payload, path)) & permissions, path
        for junk in JUNK:
            assert not granted(case, altered(case.payload, path, junk)) & permissions, (path, junk)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_renamed_fields_grant_nothing(case: Case) -> None:
    for path, permissions in case.needed.items():
        if isinstance(path[-1], str):
            parent = value_at(case.payload, path[:-1])
            for name in (path[-1].upper(), path[-1].title() + "_", f" {path[-1]}"):
                renamed = {name if key == path[-1] else key: value for key, value in parent.items()}
                assert not granted(case, altered(case.payload, path[:-1], renamed)) & permissions, (
                    path,
                    name,
                )


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize(
    "date",
    ["2026-06-01T12:06:00Z", "2027-01-01T00:00:00+00:00", "2026-06-01T11:59:59", "2026-06-01", "soon", 1],
)
def test_a_date_that_is_ahead_naive_or_none_never_grants(case: Case, date: Any) -> None:
    for path in case.dates:
        lost = case.grants - granted(case, altered(case.payload, path, date))
        concerned = [permissions for needed, permissions in case.needed.items() if needed[:-1] == path[:-1]]
        assert lost >= frozenset[str]().union(*concerned), path


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_cut_off_text_grants_nothing(case: Case) -> None:
    text = json.dumps(case.payload)
    for end in range(len(text)):
        assert granted(case, text[:end]) == frozenset()


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize(
    "payload",
    [
        "",
        "null",
        "[]",
        "{}",
        "NaN",
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        b"\xff",
        "[" * 5000,
        None,
        7,
        object(),
        float("nan"),
    ],
    ids=lambda payload: repr(payload)[:20],
)
def test_what_is_no_such_signal_denies_all_that_it_decides(case: Case, payload: Any) -> None:
    records = read(case, payload)
    assert {record.permission for record in records} >= {"crm"} if case.kind == "salesforce" else {"online"}
    assert {record.state for record in records} == {"denied"}
    assert all(json.loads(record.evidence or "")["reason"] for record in records)
    assert all(UNEXPECTED not in (record.evidence or "") for record in records)


@settings(max_examples=400)
@given(near_misses())
def test_near_misses_grant_only_what_the_documentation_lets_them(example: tuple[Case, Any]) -> None:
    check_grants(example)


@settings(max_examples=300)
@given(DOCUMENTS)
def test_any_json_grants_only_what_the_documentation_lets_it(example: tuple[Case, Any]) -> None:
    check_grants(example)


@settings(max_examples=100)
@given(st.sampled_from(CASES), st.one_of(st.text(), st.binary()))
def test_any_text_is_read(case: Case, payload: str | bytes) -> None:
    assert granted(case, payload) == frozenset()


# The ledger


@pytest.mark.parametrize("kind", ["segment", "rudderstack", "onetrust"])
def test_a_withdrawal_said_before_the_grant_arrived_outranks_it(kind: str) -> None:
    """The grant was five seconds on its way, and the withdrawal was said in between."""
    case = GRANTING[kind]
    said = {"segment": ("timestamp",), "rudderstack": ("timestamp",), "onetrust": ("interactionDate",)}[kind]
    grant = altered(case.payload, said, "2026-06-01T12:00:00Z")
    refusing = {
        "segment": (("context", "consent", "categoryPreferences", "Functional"), False),
        "rudderstack": (("context", "consentManagement", "deniedConsentIds"), ["C0001"]),
        "onetrust": (("purposes", 0, "TransactionType"), "WITHDRAWN"),
    }[kind]
    refusal = altered(altered(case.payload, *refusing), said, "2026-06-01T12:00:03Z")
    records = [
        *read(case, grant, received_at=RECEIVED + dt.timedelta(seconds=5)),
        *read(case, refusal, received_at=RECEIVED + dt.timedelta(seconds=8)),
    ]
    ledger = Ledger(records)
    asked = {"kind": "visitor"}
    before = ledger.permission("s-1", at=RECEIVED + dt.timedelta(seconds=7), **asked)  # type: ignore[arg-type]
    after = ledger.permission("s-1", at=RECEIVED + dt.timedelta(seconds=9), **asked)  # type: ignore[arg-type]
    assert (Permission.ONLINE in before, Permission.ONLINE in after) == (True, False)


# Evidence


@pytest.mark.parametrize(
    ("kind", "private"),
    [
        ("segment", "192.0.2.1"),
        ("rudderstack", "person@example.com"),
        ("onetrust", "person@example.com"),
        ("onetrust", "token"),
        ("xdm", "1234"),
    ],
)
def test_evidence_of_a_consent_holds_no_more_of_the_person_than_the_consent(kind: str, private: str) -> None:
    case = GRANTING[kind]
    assert private in json.dumps(case.payload)
    assert all(private not in (record.evidence or "") for record in read(case, case.payload))


def test_the_example_of_the_page_prints_what_it_says() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "signals.md").read_text("utf-8")
    (code,) = (
        code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "categories=needed" in code
    )
    now = dt.datetime(2026, 6, 15, 12, 32, tzinfo=dt.UTC)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/signals.md", "exec"), {"read_signal": read_signal, "now": now})
    assert printed.getvalue().splitlines() == re.findall("^# (.*)$", code, re.MULTILINE)


# Settings


@pytest.mark.parametrize(
    ("kind", "setting", "value", "error", "message"),
    [
        ("segment", "categories", {"onlin": ["a"]}, ValueError, "did you mean 'online'"),
        ("segment", "categories", {"crm": ["a"]}, ValueError, "do not decide 'crm'"),
        ("segment", "categories", {"contact:email": ["a"]}, ValueError, "do not decide"),
        ("segment", "categories", {"online": []}, ValueError, "is empty"),
        ("segment", "categories", {"online": "abc"}, TypeError, "must be a collection"),
        ("segment", "categories", {"online": [1]}, TypeError, "must hold strings"),
        ("segment", "categories", {"online": [""]}, ValueError, "empty id"),
        ("segment", "categories", ["online"], TypeError, "must map permissions"),
        ("segment", "longest_delay", 60, TypeError, "must be a timedelta"),
        ("rudderstack", "longest_delay", dt.timedelta(seconds=-1), ValueError, "must not be negative"),
        ("rudderstack", "categorys", {}, ValueError, "did you mean 'categories'"),
        ("snowplow", "scopes", {"parental": ["a"]}, ValueError, "do not decide 'parental'"),
        ("snowplow", "domains", "https://shop.example/", TypeError, "must be a collection"),
        ("usercentrics", "services", {"crm": ["a"]}, ValueError, "do not decide 'crm'"),
        ("onetrust", "purposes", {"parental": ["a"]}, ValueError, "do not decide 'parental'"),
        ("onetrust", "rely_on_interaction_dates", "yes", TypeError, "true or false"),
        ("salesforce", "crm_purposes", "purpose", TypeError, "must be a collection"),
        ("salesforce", "business_brand", "", TypeError, "non-empty string"),
        ("salesforce", "rely_on_capture_dates", 1, TypeError, "true or false"),
        ("consent_mode", "history_through_analytics", 0, TypeError, "true or false"),
        ("xdm", "mapping", {}, ValueError, "have no setting 'mapping'"),
    ],
)
def test_a_wrong_setting_is_refused(
    kind: str, setting: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_signal(kind, {}, subject_id="s-1", received_at=RECEIVED, **{setting: value})


def test_a_purpose_cannot_be_needed_and_unrelated() -> None:
    with pytest.raises(ValueError, match="which online needs"):
        read_signal(
            "onetrust",
            {},
            subject_id="s-1",
            received_at=RECEIVED,
            purposes={"online": ["a"]},
            unrelated=["a"],
        )


# Rules broken on purpose


def changed(kind: str, path: Place, *replacement: Any) -> tuple[Case, Any]:
    return GRANTING[kind], altered(GRANTING[kind].payload, path, *replacement)


RULES = (
    Break(
        "a consent mode key that is missing counts as granted",
        consent_mode._read,
        'payload.get(key) != "granted"',
        'payload.get(key, "granted") != "granted"',
        changed("consent_mode", ("personalization_storage",)),
    ),
    Break(
        "consent mode needs no analytics",
        consent_mode._read,
        'online.append("analytics_storage")',
        "pass",
        changed("consent_mode", ("analytics_storage",), "denied"),
    ),
    Break(
        "a Shopify answer that was not given counts as yes",
        shopify._read,
        'for key in ("preferences", "analytics") if not answer[key]',
        'for key in ("preferences", "analytics") if answer[key] is False',
        changed("shopify", ("preferences",), ""),
    ),
    Break(
        "declining the sale of data does not concern advertising",
        shopify._read,
        "ads += [unmet[key] for key in _SALE if answer[key] is False]",
        "pass",
        changed("shopify", ("sale_of_data",), "no"),
    ),
    Break(
        "a Segment category counts that is not true",
        segment._read,
        "if value is True",
        "if value",
        changed("segment", ("context", "consent", "categoryPreferences", "Functional"), "false"),
    ),
    Break(
        "one category of a permission is enough",
        category_events.decisions,
        "if unmet or not late",
        "unmet = unmet if len(unmet) == len(categories) else []\n        if unmet or not late",
        changed("segment", ("context", "consent", "categoryPreferences", "Functional"), False),
    ),
    Break(
        "an old event grants",
        category_events.decisions,
        "context.received_at - at > settings.longest_delay",
        "False",
        changed("segment", ("timestamp",), "2026-05-30T12:00:00Z"),
    ),
    Break(
        "RudderStack's denied ids are not looked at",
        rudderstack._read,
        'allowed - _ids(consent, "deniedConsentIds")',
        "allowed",
        changed("rudderstack", ("context", "consentManagement", "deniedConsentIds"), ["C0001"]),
    ),
    Break(
        "an implicit consent event grants",
        snowplow._read,
        "if event_type in _REFUSING:",
        'if event_type in _REFUSING and event_type != "implicit_consent":',
        changed("snowplow", ("data", "eventType"), "implicit_consent"),
    ),
    Break(
        "any legal basis grants",
        snowplow._unmet_by_all,
        'payload.get("basisForProcessing") != "consent"',
        "False",
        changed("snowplow", ("data", "basisForProcessing"), "legitimate_interests"),
    ),
    Break(
        "a consent for another domain grants",
        snowplow._unmet_by_all,
        "if settings.domains and",
        "if False and",
        changed("snowplow", ("data", "domainsApplied"), ["https://other.example/"]),
    ),
    Break(
        "a Salesforce row grants whatever its status",
        salesforce._refusal,
        'fields.get("PrivacyConsentStatus") != "OptIn"',
        'fields.get("PrivacyConsentStatus") == "OptOut"',
        changed("salesforce", ("records", 0, "PrivacyConsentStatus"), "NotSeen"),
    ),
    Break(
        "a Salesforce row grants before it is effective",
        salesforce._row,
        "if start is not None and start > context.received_at:",
        "if False:",
        changed("salesforce", ("records", 0, "EffectiveFrom"), "2026-06-01T12:01:00Z"),
    ),
    Break(
        "any purpose covers CRM data",
        salesforce._permissions,
        "among(purpose, settings.crm_purposes)",
        "True",
        changed("salesforce", ("records", 0, "DataUsePurposeId"), "another"),
    ),
    Break(
        "an opt-out of everything is not heard",
        salesforce._permissions,
        'fields.get("PrivacyConsentStatus") == "OptOut"',
        "False",
        changed(
            "salesforce",
            ("records",),
            [
                *GRANTING["salesforce"].payload["records"],
                {
                    "PrivacyConsentStatus": "OptOut",
                    "ContactPointType": "Email",
                    "CaptureDate": "2026-05-01T00:00:00Z",
                },
            ],
        ),
    ),
    Break(
        "a default of yes is a yes",
        xdm._unmet,
        '"val") != "y"',
        '"val") not in ("y", "dy")',
        changed("xdm", ("consents", "collect", "val"), "dy"),
    ),
    Break(
        "an identity's own no is not heard",
        xdm._unmet,
        'for statement in payload["idSpecific"]:',
        "for statement in ():",
        changed("xdm", ("consents", "idSpecific", "ECID", "1234", "marketing", "email", "val"), "n"),
    ),
    Break(
        "a no to any marketing is not heard",
        xdm._unmet,
        "if lowering is not None and",
        "if False and",
        changed("xdm", ("consents", "marketing", "any", "val"), "n"),
    ),
    Break(
        "an implicit transaction confirms",
        onetrust._transactions,
        'kind == "CONFIRMED"',
        'kind in ("CONFIRMED", "IMPLICIT")',
        changed("onetrust", ("purposes", 0, "TransactionType"), "IMPLICIT"),
    ),
    Break(
        "a test receipt counts",
        onetrust._transactions,
        'receipt.get("test") not in (None, False)',
        "False",
        changed("onetrust", ("test",), True),
    ),
    Break(
        "an implicit entry of a history is the person's decision",
        usercentrics._is_own_decision,
        'and among(entry.get("type"), _EXPLICIT)',
        "",
        changed("usercentrics", ("services", 0, "history", 1, "type"), "implicit"),
    ),
    Break(
        "a service's present status is not looked at",
        usercentrics._answer,
        'not all(service["status"] is True for service in named)',
        "False",
        changed("usercentrics", ("services", 0, "status"), False),
    ),
)


@breaks(*RULES)
def test_a_broken_rule_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_grants, near_misses(), broken)


def test_every_parser_has_a_broken_rule() -> None:
    assert {case.kind for case, _ in (rule.witness for rule in RULES)} == set(GRANTING)
