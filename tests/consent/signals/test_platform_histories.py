"""Where a platform sends several decisions at once: the latest governs alone, and a tie refuses."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import given, settings
from hypothesis import strategies as st
from platform_signals import GRANTING, RECEIVED, altered, granted, read

from consentier.consent import ConsentRecord, Ledger
from consentier.consent.signals import onetrust, read_signal, salesforce, usercentrics

BEFORE = RECEIVED - dt.timedelta(minutes=50)
HOUR = dt.timedelta(hours=1)

# Decisions: minutes after a start, and whether the person said yes. Few instants, so that ties are common.
DECISIONS = st.lists(st.tuples(st.integers(min_value=0, max_value=5), st.booleans()), min_size=1, max_size=6)

Decisions = list[tuple[int, bool]]


def governs(decisions: Decisions) -> bool:
    """The rule, in one line: at the latest instant at which anything was said, nothing but yes was said."""
    latest = max(minute for minute, _ in decisions)
    return all(yes for minute, yes in decisions if minute == latest)


def instant(minute: int) -> str:
    return (BEFORE + dt.timedelta(minutes=minute)).isoformat()


def usercentrics_payload(decisions: Decisions) -> Any:
    history = [
        {
            "action": "onUpdateServices",
            "status": yes,
            "timestamp": int((BEFORE + dt.timedelta(minutes=minute)).timestamp() * 1000),
            "type": "explicit",
        }
        for minute, yes in decisions
    ]
    payload = altered(GRANTING["usercentrics"].payload, ("services", 0, "history"), history)
    return altered(payload, ("services", 0, "status"), True)


def onetrust_payload(decisions: Decisions) -> Any:
    return [
        {
            "interactionDate": instant(minute),
            "purposes": [{"Id": "purpose-online", "TransactionType": "CONFIRMED" if yes else "WITHDRAWN"}],
        }
        for minute, yes in decisions
    ]


def salesforce_payload(decisions: Decisions) -> Any:
    return [
        {
            "CaptureDate": instant(minute),
            "ContactPointType": "Email",
            "DataUsePurposeId": "purpose-crm",
            "PrivacyConsentStatus": "OptIn" if yes else "OptOut",
        }
        for minute, yes in decisions
    ]


HISTORIES = {
    "usercentrics": ("online", usercentrics_payload),
    "onetrust": ("online", onetrust_payload),
    "salesforce": ("crm", salesforce_payload),
}


def check_history(decisions: Decisions) -> None:
    """Of every platform that sends histories, the latest decision governs, and a tie refuses."""
    for kind, (permission, payload) in HISTORIES.items():
        found = permission in granted(GRANTING[kind], payload(decisions))
        assert found == governs(decisions), kind


@settings(max_examples=200)
@given(DECISIONS)
def test_the_latest_decision_governs_and_a_tie_refuses(decisions: Decisions) -> None:
    check_history(decisions)


@given(DECISIONS, st.randoms(use_true_random=False))
def test_order_and_repetition_mean_nothing(decisions: Decisions, random: Any) -> None:
    shuffled = [*decisions, *random.choices(decisions, k=2)]
    random.shuffle(shuffled)
    for kind, (_, payload) in HISTORIES.items():
        case = GRANTING[kind]
        assert granted(case, payload(shuffled)) == granted(case, payload(decisions))


HISTORY_RULES = (
    Break(
        "a tie in a Usercentrics history grants",
        usercentrics._answer,
        "max(decisions)",
        "max(decisions, key=lambda each: (each[0], not each[1]))",
        [(1, True), (1, False)],
    ),
    Break(
        "the first transaction on a OneTrust purpose governs",
        onetrust._read,
        "max(\n",
        "min(\n",
        [(1, True), (2, False)],
    ),
    Break(
        "a tie of Salesforce rows grants",
        salesforce._decision,
        "row.refusal is not None)",
        "row.refusal is None)",
        [(1, True), (1, False)],
    ),
)


@breaks(*HISTORY_RULES)
def test_a_broken_rule_of_histories_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_history, DECISIONS, broken)


# Times


def test_salesforce_keeps_double_opt_in_and_the_end() -> None:
    case = GRANTING["salesforce"]
    crm = next(record for record in read(case, case.payload) if record.permission == "crm")
    assert crm.valid_from == RECEIVED
    assert crm.valid_to == dt.datetime(2027, 3, 1, 10, tzinfo=dt.UTC)
    assert crm.double_opt_in_at == dt.datetime(2026, 3, 1, 10, 5, tzinfo=dt.UTC)


def test_salesforce_dates_count_where_the_shop_relies_on_them() -> None:
    case = GRANTING["salesforce"]
    records = read_signal(
        "salesforce",
        case.payload,
        subject_id="c-1",
        subject_kind="customer",
        received_at=RECEIVED,
        rely_on_capture_dates=True,
        **case.settings,
    )
    confirmed = dt.datetime(2026, 3, 1, 10, 5, tzinfo=dt.UTC)
    assert {(record.state, record.valid_from) for record in records} == {("granted", confirmed)}


def permitted(records: list[ConsentRecord]) -> bool:
    """Whether a ledger of some records holds the CRM permission after the last of them was received."""
    asked_at = max(each.recorded_at for each in records) + HOUR
    return Ledger(records).resolve(customer_id="c-1", at=asked_at).crm


@pytest.mark.parametrize(
    "change",
    [
        {"PrivacyConsentStatus": "OptOut"},
        {"PrivacyConsentStatus": "OptOut", "CaptureDate": "2026-03-01T10:04:00Z"},
        {"PrivacyConsentStatus": "OptOut", "CaptureDate": None, "DoubleConsentCaptureDate": None},
        {"EffectiveTo": "2026-03-01T10:01:00Z"},
        {"DataUsePurposeId": "another"},
    ],
    ids=["same dates", "captured before it was confirmed", "no dates", "ended before", "another purpose"],
)
@pytest.mark.parametrize("gone", [False, True])
def test_an_opt_out_of_a_relied_on_salesforce_row_is_heard(change: dict[str, Any], gone: bool) -> None:
    """The grant was dated by the row, to when it was confirmed. The opt-out counts, whatever its dates."""
    row = GRANTING["salesforce"].payload["records"][0]
    old = {**row, "PrivacyConsentStatus": "OptOut", "CaptureDate": "2026-01-01T10:00:00Z",
           "EffectiveFrom": None, "DoubleConsentCaptureDate": None}  # fmt: skip
    told = [[old, row], [old] if gone else [old, {**row, **change}]]
    records: list[ConsentRecord] = []
    for number, (rows, expected) in enumerate(zip(told, (True, False), strict=True)):
        records += read_signal(
            "salesforce",
            rows,
            subject_id="c-1",
            subject_kind="customer",
            received_at=RECEIVED + number * HOUR,
            rely_on_capture_dates=True,
            **GRANTING["salesforce"].settings,
        )
        assert permitted(records) == expected


@pytest.mark.parametrize(
    ("start", "end", "in_force"),
    [
        ("2026-06-01T12:00:00Z", "2026-06-01T12:00:01Z", True),
        ("2026-06-01T12:00:00.000001Z", None, False),
        ("2026-05-01T00:00:00Z", "2026-06-01T12:00:00Z", False),
        ("2026-06-01T14:00:00+02:00", None, True),
        (None, None, True),
    ],
)
def test_a_salesforce_row_is_in_force_in_a_half_open_interval(start: Any, end: Any, in_force: bool) -> None:
    case = GRANTING["salesforce"]
    row = {**case.payload["records"][0], "EffectiveFrom": start, "EffectiveTo": end}
    assert ("crm" in granted(case, row)) == in_force


def test_an_expired_salesforce_row_revives_nothing_before_it() -> None:
    case = GRANTING["salesforce"]
    row = case.payload["records"][0]
    expired = {**row, "CaptureDate": instant(0), "EffectiveFrom": instant(0), "EffectiveTo": instant(1)}
    assert granted(case, [row, expired]) == frozenset()


@pytest.mark.parametrize(
    "change",
    [{"PartyId": "0PK2"}, {"IsDeleted": True}, {"BusinessBrandId": "sister"}],
    ids=["another person", "deleted", "another brand"],
)
def test_a_salesforce_row_of_something_else_grants_nothing(change: dict[str, Any]) -> None:
    case = GRANTING["salesforce"]
    row = case.payload["records"][0]
    rows = [row, {**row, **change}] if "PartyId" in change else {**row, **change}
    assert granted(case, rows) == frozenset()


def test_a_salesforce_row_of_the_shops_brand_grants() -> None:
    case = GRANTING["salesforce"]
    row = {**case.payload["records"][0], "BusinessBrandId": "ours"}
    records = read_signal(
        "salesforce",
        row,
        subject_id="c-1",
        received_at=RECEIVED,
        business_brand="ours",
        crm_purposes={"purpose-crm"},
    )
    assert [(record.permission, record.state) for record in records] == [("crm", "granted")]


def test_an_incomplete_salesforce_result_grants_nothing() -> None:
    case = GRANTING["salesforce"]
    assert granted(case, altered(case.payload, ("done",), False)) == frozenset()


def _onetrust(payload: Any, **changes: Any) -> list[ConsentRecord]:
    settings_of_case = {**GRANTING["onetrust"].settings, **changes}
    return read_signal("onetrust", payload, subject_id="c-1", received_at=RECEIVED, **settings_of_case)


@pytest.mark.parametrize(
    "transaction",
    [
        "PENDING",
        "WITHDRAWN",
        "EXPIRED",
        "NOTGIVEN",
        "OPT_OUT",
        "HARD_OPT_OUT",
        "NO_CHOICE",
        "CANCEL",
        "IMPLICIT",
    ],
)
def test_only_a_confirmed_onetrust_purpose_grants(transaction: str) -> None:
    payload = altered(GRANTING["onetrust"].payload, ("purposes", 0, "TransactionType"), transaction)
    states = {record.state for record in _onetrust(payload) if record.permission == "online"}
    assert states == {"withdrawn" if transaction in onetrust._WITHDRAWING else "denied"}


@pytest.mark.parametrize("transaction", ["EXTEND", "CHANGE_PREFERENCES"])
def test_onetrust_transactions_that_say_nothing_on_consent_change_nothing(transaction: str) -> None:
    payload = altered(GRANTING["onetrust"].payload, ("purposes", 0, "TransactionType"), transaction)
    assert {record.permission for record in _onetrust(payload)} == {"crm"}


def test_withdrawing_an_unknown_onetrust_purpose_withdraws_all_unless_it_is_unrelated() -> None:
    for purpose, states in (("unknown", {"withdrawn"}), ("sms", {"granted"})):
        withdrawal = {"Id": purpose, "TransactionType": "WITHDRAWN"}
        case = GRANTING["onetrust"]
        payload = altered(case.payload, ("purposes",), [*case.payload["purposes"], withdrawal])
        assert {record.state for record in _onetrust(payload)} == states


def test_a_withdrawn_date_withdraws_what_the_receipt_lists() -> None:
    payload = altered(GRANTING["onetrust"].payload, ("withdrawnDate",), "2026-06-01T11:56:00Z")
    records = _onetrust(payload)
    assert {record.state for record in records} == {"withdrawn"}
    stated = dt.datetime(2026, 6, 1, 11, 56, tzinfo=dt.UTC)
    assert {record.valid_from for record in records} == {stated, RECEIVED}


def test_an_old_onetrust_receipt_grants_only_where_its_date_is_relied_on() -> None:
    old = dt.datetime(2025, 6, 1, 9, 30, tzinfo=dt.UTC)
    payload = GRANTING["onetrust"].payload
    for name in ("interactionDate", "consentDate"):
        payload = altered(payload, (name,), old.isoformat())
    assert _onetrust(payload) == []
    records = _onetrust(payload, rely_on_interaction_dates=True)
    assert {(record.state, record.valid_from) for record in records} == {("granted", old)}


def receipt(interaction: str | None, consent: str | None, /, **transactions: str) -> dict[str, Any]:
    """A receipt with its two dates, as times of the day, and what it says on purposes a, b, c."""
    dates = {
        name: f"2026-06-01T{time}:00Z"
        for name, time in (("interactionDate", interaction), ("consentDate", consent))
        if time is not None
    }
    purposes = [{"Id": name, "TransactionType": kind} for name, kind in transactions.items()]
    return {**dates, "purposes": purposes}


CONFIRMED, WITHDRAWN = "CONFIRMED", "WITHDRAWN"
GIVEN = receipt("10:05", "10:00", a=CONFIRMED, b=CONFIRMED)


@pytest.mark.parametrize(
    ("granting", "refusing"),
    [
        # The receipt of the withdrawal repeats the day of the consent, to which the grant was not dated.
        (
            GIVEN,
            receipt("11:00", "10:00", a=WITHDRAWN, b=CONFIRMED),
        ),
        # It has no other date.
        (
            GIVEN,
            receipt(None, "10:00", a=WITHDRAWN, b=CONFIRMED),
        ),
        # It was withdrawn before another purpose was confirmed, which is when the grant began.
        (
            [receipt("10:00", None, a=CONFIRMED), receipt("11:00", None, b=CONFIRMED)],
            [receipt("10:30", None, a=WITHDRAWN), receipt("11:00", None, b=CONFIRMED)],
        ),
        # The same, where the receipt does not list the other.
        (
            [receipt("10:00", None, a=CONFIRMED), receipt("11:00", None, b=CONFIRMED)],
            receipt("10:30", None, a=WITHDRAWN),
        ),
        # What governs is dated before what it outdates.
        (
            receipt("11:00", "10:00", a=CONFIRMED, b=CONFIRMED),
            [
                receipt("11:00", "10:00", a=CONFIRMED, b=CONFIRMED),
                receipt("10:30", None, a=WITHDRAWN),
            ],
        ),
        # Withdrawn by its date, earlier than the interaction.
        (
            GIVEN,
            {**GIVEN, "withdrawnDate": "2026-06-01T10:02:00Z"},
        ),
        # A purpose that the settings do not know.
        (GIVEN, receipt("11:00", "10:00", c=WITHDRAWN)),
    ],
)
def test_a_withdrawal_of_relied_on_onetrust_receipts_is_heard(granting: Any, refusing: Any) -> None:
    """The grant was dated by its receipts; whatever dates the withdrawal bears, it outdates the grant."""
    records: list[ConsentRecord] = []
    for number, (payload, expected) in enumerate(((granting, True), (refusing, False))):
        records += read_signal(
            "onetrust",
            payload,
            subject_id="c-1",
            subject_kind="customer",
            received_at=RECEIVED + number * HOUR,
            rely_on_interaction_dates=True,
            purposes={"crm": ["a", "b"]},
        )
        assert permitted(records) == expected


def test_what_is_confirmed_after_a_withdrawal_counts_whenever_it_is_read() -> None:
    """Dates are relied on to read a history late: a withdrawal reaches no further than its receipts do."""
    told = (
        receipt("10:00", None, a=CONFIRMED, b=CONFIRMED),
        receipt("10:30", None, a=WITHDRAWN, b=CONFIRMED),
        receipt("11:00", None, a=CONFIRMED, b=CONFIRMED),
    )
    for order in itertools.permutations(told):
        records = [
            record
            for payload in order
            for record in read_signal(
                "onetrust",
                payload,
                subject_id="c-1",
                subject_kind="customer",
                received_at=RECEIVED,
                rely_on_interaction_dates=True,
                purposes={"crm": ["a", "b"]},
            )
        ]
        assert permitted(records)


def test_a_onetrust_history_without_dates_grants_nothing() -> None:
    undated = altered(GRANTING["onetrust"].payload, ("interactionDate",))
    undated = altered(undated, ("consentDate",))
    assert {record.state for record in _onetrust(undated)} == {"granted"}
    assert {record.state for record in _onetrust([undated, undated])} == {"denied"}


def test_a_onetrust_grant_ends_when_its_purpose_expires() -> None:
    ends = {record.permission: record.valid_to for record in _onetrust(GRANTING["onetrust"].payload)}
    assert ends == {"online": dt.datetime(2027, 6, 1, tzinfo=dt.UTC), "crm": None}


@pytest.mark.parametrize(
    "action", ["onInitialPageLoad", "onNonEURegion", "onSessionRestored", "onTcfStringChange"]
)
def test_entries_that_nobody_decided_leave_a_usercentrics_decision_standing(action: str) -> None:
    """Set to true by the software, they neither grant nor hide what the person said before."""
    case = GRANTING["usercentrics"]
    history = case.payload["services"][0]["history"]
    by_software = {**history[1], "action": action, "timestamp": history[1]["timestamp"] + 1000}
    for said, expected in ((True, True), (False, False)):
        payload = altered(
            case.payload,
            ("services", 0, "history"),
            [history[0], {**history[1], "status": said}, by_software],
        )
        assert ("online" in granted(case, payload)) == expected


def test_usercentrics_services_are_read_in_each_form() -> None:
    case = GRANTING["usercentrics"]
    services = case.payload["services"]
    base_info = [
        {"id": service["id"], "consent": {"history": service["history"], "status": service["status"]}}
        for service in services
    ]
    templates = [
        {"templateId": service["id"], "history": service["history"], "status": service["status"]}
        for service in services
    ]
    assert [granted(case, form) for form in (services, base_info, templates)] == [case.grants] * 3


def test_snowplow_events_refuse_in_the_words_of_the_event() -> None:
    case = GRANTING["snowplow"]
    states = {
        event: {record.state for record in read(case, altered(case.payload, ("data", "eventType"), event))}
        for event in ("deny_all", "pending", "implicit_consent", "withdrawn", "expired", "allow_all")
    }
    assert states == {
        "deny_all": {"denied"},
        "pending": {"denied"},
        "implicit_consent": {"denied"},
        "withdrawn": {"withdrawn"},
        "expired": {"denied"},
        "allow_all": {"granted"},
    }


def test_consent_mode_defaults_are_nobodys_choice() -> None:
    case = GRANTING["consent_mode"]
    for extra in ({"region": ["DE"]}, {"wait_for_update": 500}):
        assert granted(case, {**case.payload, **extra}) == frozenset()


def test_consent_mode_needs_no_analytics_where_history_is_collected_without() -> None:
    payload = altered(GRANTING["consent_mode"].payload, ("analytics_storage",), "denied")
    records = read_signal(
        "consent_mode", payload, subject_id="v-1", received_at=RECEIVED, history_through_analytics=False
    )
    assert {record.permission for record in records if record.state == "granted"} == {"online", "ads"}


@pytest.mark.parametrize(("yes", "no"), [("yes", "no"), (True, False)])
def test_shopify_reads_both_forms_of_an_answer(yes: Any, no: Any) -> None:
    case = GRANTING["shopify"]
    for preferences, analytics, sale in itertools.product((yes, no, None), repeat=3):
        consent = {"preferences": preferences, "analytics": analytics, "marketing": yes, "saleOfData": sale}
        expected = {"online"} if preferences == analytics == yes else set()
        expected |= {"ads"} if sale != no else set()
        assert granted(case, {"visitorConsent": consent, "shouldShowBanner": False}) == expected


def test_xdm_is_read_with_its_prefix_and_not_in_both_ways_at_once() -> None:
    case = GRANTING["xdm"]

    def prefixed(value: Any) -> Any:
        return (
            {f"xdm:{key}": prefixed(child) for key, child in value.items()}
            if isinstance(value, dict)
            else value
        )

    whole = prefixed(case.payload)
    whole["xdm:consents"]["xdm:idSpecific"] = case.payload["consents"]["idSpecific"]
    assert granted(case, whole) == case.grants
    assert granted(case, {**case.payload, **whole}) == frozenset()


@pytest.mark.parametrize("value", ["n", "p", "u", "dy", "dn", "LI", "CT", "CP", "VI", "PI"])
def test_no_other_value_of_xdm_grants(value: str) -> None:
    case = GRANTING["xdm"]
    assert granted(case, altered(case.payload, ("consents", "collect", "val"), value)) == {
        "contact:email",
        "contact:push",
    }
