"""TC strings: what they grant, to whom, from when to when; and that no cut or altered one grants more."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tcf_encoder import ALPHABET, RECEIVED_AT, Description, descriptions, encode, encode_bits, expected

from consentier.consent import Ledger, Permission
from consentier.consent.records import ConsentRecord
from consentier.consent.signals import bits, read_signal, tcf
from consentier.errors import SignalError

DAY = dt.timedelta(days=1)

DATA = Path(os.environ.get("CONSENTIER_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
VECTORS = DATA / "tcf" / "tc_vectors.json"


@dataclasses.dataclass(frozen=True)
class Case:
    """A string as it is described, and how it is read."""

    said: Description = dataclasses.field(default_factory=Description)
    vendor_id: int | None = None
    model_purpose: int = 10
    exempt: bool = False
    received_at: dt.datetime = RECEIVED_AT

    def read(self, text: str) -> list[ConsentRecord]:
        return read_signal(
            "tcf",
            text,
            subject_id="v-9",
            received_at=self.received_at,
            vendor_id=self.vendor_id,
            model_purpose=self.model_purpose,
            purpose_one_exempt_in={"DE", "FR"} if self.exempt else (),
        )


def cases() -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        said=descriptions(),
        vendor_id=st.sampled_from((None, 3, 3, 4)),
        model_purpose=st.sampled_from((10, 8)),
        exempt=st.booleans(),
    )


def granted(records: list[ConsentRecord]) -> set[str]:
    return {record.permission for record in records if record.state == "granted"}


def check_grants_what_it_says(case: Case) -> None:
    """A string grants exactly what it says, from its receipt until 13 months after its last update."""
    records = case.read(encode(case.said))
    assert {record.permission for record in records} == {"online", "ads", "model"}
    assert len(records) == 3
    assert granted(records) == expected(
        case.said,
        case.received_at,
        vendor_id=case.vendor_id,
        model_purpose=case.model_purpose,
        exempt=case.exempt,
    )
    for record in records:
        assert record.valid_from == record.recorded_at == case.received_at
        assert record.valid_to == (
            case.said.updated.replace(
                year=case.said.updated.year + 1 + case.said.updated.month // 12,
                month=case.said.updated.month % 12 + 1,
            )
            if record.state == "granted"
            else None
        )


@settings(max_examples=300, deadline=None)
@given(cases())
@example(Case())
@example(Case(vendor_id=3))
def test_a_string_grants_what_it_says(case: Case) -> None:
    check_grants_what_it_says(case)


@breaks(
    Break(
        "a string may be of any age",
        tcf._months_later,
        "instant.month - 1 + months",
        "instant.month - 1 + 12 * months",
        Case(Description(updated=RECEIVED_AT - 400 * DAY)),
    ),
    Break(
        "a string may be dated ahead",
        tcf._require_reliable,
        "string.last_updated - received_at > CLOCK_SKEW",
        "False",
        Case(Description(updated=RECEIVED_AT + DAY)),
    ),
    Break(
        "a string of global scope counts",
        tcf._require_reliable,
        "not string.service_specific",
        "False",
        Case(Description(service_specific=False)),
    ),
    Break(
        "a string under unknown policies counts",
        tcf._require_reliable,
        "string.policy_version not in POLICIES",
        "False",
        Case(Description(policy=6)),
    ),
    Break(
        "a grant takes effect at LastUpdated",
        tcf.tcf_decisions,
        'state="granted", until=until',
        'state="granted", until=until, at=string.last_updated, at_is_proven=True',
        Case(),
    ),
    Break(
        "a grant does not end",
        tcf.tcf_decisions,
        'state="granted", until=until',
        'state="granted"',
        Case(),
    ),
    Break(
        "the purposes of the vendors count for the publisher",
        tcf._consented,
        "string.publisher.consents",
        "string.purpose_consents",
        Case(Description(publisher=frozenset({6}))),
    ),
    Break(
        "a profile may be used where it may not be made",
        tcf.tcf_decisions,
        '("online", _ONLINE)',
        '("online", frozenset({1, 6}))',
        Case(Description(publisher=frozenset({1, 6}))),
    ),
    Break(
        "what was not disclosed was permitted",
        tcf._with_purpose_one,
        "return consents - {1}",
        "return consents",
        Case(Description(purpose_one_treatment=True)),
    ),
    Break(
        "a restriction by the publisher is passed over",
        tcf._forbidden,
        "vendor_id in restriction.vendors",
        "False",
        Case(Description(restrictions=((5, 0, frozenset({3})),)), vendor_id=3),
    ),
    Break(
        "legitimate interest takes the place of consent",
        tcf._forbidden,
        "restriction.kind != _REQUIRE_CONSENT",
        "restriction.kind == 0",
        Case(Description(restrictions=((5, 2, frozenset({3})),)), vendor_id=3),
    ),
    Break(
        "a vendor without consent counts",
        tcf._require_vendor,
        "vendor_id not in string.vendor_consents",
        "False",
        Case(Description(vendors=frozenset({8})), vendor_id=3),
    ),
    Break(
        "a vendor that was not disclosed counts",
        tcf._require_vendor,
        "string.policy_version >= 5",
        "string.policy_version >= 6",
        Case(Description(disclosed=None), vendor_id=3),
    ),
)
def test_a_string_that_grants_otherwise_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_grants_what_it_says, cases(), broken)


def check_no_prefix_grants_more(case: Case) -> None:
    """Wherever a string is cut, it grants nothing that the whole does not."""
    text = encode(case.said)
    whole = granted(case.read(text))
    for length in range(len(text)):
        assert granted(case.read(text[:length])) <= whole


PUBLISHER_REFUSED = Case(Description(publisher=frozenset({2}), disclosed=None))
RESTRICTED_AT_THE_END = Case(
    Description(policy=4, publisher=None, disclosed=None, restrictions=((5, 0, frozenset({3, 4})),)),
    vendor_id=3,
)


@settings(max_examples=30, deadline=None)
@given(cases())
@example(Case())
@example(Case(vendor_id=3))
@example(PUBLISHER_REFUSED)
@example(RESTRICTED_AT_THE_END)
@example(Case(Description(policy=4, disclosed=frozenset({7})), vendor_id=3))
def test_no_prefix_grants_more(case: Case) -> None:
    check_no_prefix_grants_more(case)


@breaks(
    Break(
        "purposes that are missing count as permitted",
        bits.BitReader.bits,
        'raise SignalError(f"{self._name} ends within {field}")',
        'return ("1" if field == "PubPurposesConsent" else "0") * count',
        PUBLISHER_REFUSED,
    ),
    Break(
        "bits that are missing count as zeros",
        bits.BitReader.bits,
        'raise SignalError(f"{self._name} ends within {field}")',
        'return self._bits[self._position :].ljust(count, "0")',
        RESTRICTED_AT_THE_END,
    ),
)
def test_a_prefix_that_grants_more_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_no_prefix_grants_more, cases(), broken)


def bits_of(segment: str) -> str:
    return "".join(f"{ALPHABET.index(letter):06b}" for letter in segment)


@settings(max_examples=300, deadline=None)
@given(cases(), st.data())
def test_an_altered_string_grants_only_what_its_bits_say(case: Case, data: st.DataObject) -> None:
    text = encode(case.said)
    place = data.draw(st.integers(0, len(text) - 1))
    altered = text[:place] + data.draw(st.sampled_from(ALPHABET + "=. +/é")) + text[place + 1 :]
    found = granted(case.read(altered))
    if not found:
        return
    core, *others = (bits_of(segment) for segment in altered.rstrip("=").split("."))
    assert int(core[:6], 2) == 2
    assert core[138] == "1"
    assert 2 <= int(core[132:138], 2) <= 5
    updated = dt.datetime.fromtimestamp(int(core[42:78], 2) / 10, dt.UTC)
    assert RECEIVED_AT - 400 * DAY < updated < RECEIVED_AT + DAY
    purposes = core[152:176]
    if case.vendor_id is None:
        purposes = next(other for other in others if other[:3] == "011")[3:27]
    given_ones = {number for number, bit in enumerate(purposes, start=1) if bit == "1"}
    exempted = {1} if core[200] == "1" and case.exempt else set()
    assert "online" not in found or {1, 5, 6} <= given_ones | exempted
    assert "ads" not in found or {3, 4} <= given_ones
    assert "model" not in found or case.model_purpose in given_ones


@settings(max_examples=100, deadline=None)
@given(descriptions())
def test_decoding_reads_what_was_encoded(said: Description) -> None:
    string = tcf.decode(encode(said))
    assert (string.created, string.last_updated) == (said.created or said.updated, said.updated)
    assert (string.cmp_id, string.cmp_version, string.consent_screen) == (31, 2, 1)
    assert (string.consent_language, string.publisher_country) == ("EN", said.country)
    assert (string.vendor_list_version, string.policy_version) == (141, said.policy)
    assert string.service_specific == said.service_specific
    assert string.purpose_consents == said.purposes
    abolished = {3, 4, 5, 6} if said.policy >= 4 else set()
    assert string.purpose_legitimate_interests == said.legitimate_interests - abolished
    assert set(string.vendor_consents) == said.vendors
    assert set(string.vendor_legitimate_interests) == set()
    restrictions = [(found.purpose, found.kind, set(found.vendors)) for found in string.restrictions]
    assert restrictions == [(purpose, kind, set(ids)) for purpose, kind, ids in said.restrictions]
    disclosed = string.disclosed_vendors
    assert (None if disclosed is None else set(disclosed)) == said.disclosed
    assert (None if string.publisher is None else string.publisher.consents) == said.publisher
    if string.publisher is not None:
        custom = frozenset(range(1, said.custom + 1))
        assert string.publisher.custom_consents == string.publisher.custom_legitimate_interests == custom


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "ends within Version"),
        ("CA==", "ends within Created"),
        ("B" + encode(Description())[1:], "version 1"),
        (encode(Description()) + ".", "ends within SegmentType"),
        (encode(Description()).replace(".", "..", 1), "ends within SegmentType"),
        (" " + encode(Description()), "base64url"),
        (encode(Description(publisher=None, disclosed=None)) + "AAB", "goes on where it should end"),
        (encode(Description(publisher=None)) + ".IAAA", "second one of its type"),
        (encode(Description()) + "." + encode(Description()), "second core segment"),
        (
            encode(Description(publisher=None))
            + "."
            + encode_bits("001" + f"{9:016b}1{1:012b}1{5:016b}{10:016b}"),
            None,
        ),
    ],
)
def test_a_malformed_string_is_refused_by_name(text: str, reason: str | None) -> None:
    with pytest.raises(SignalError, match=reason):
        tcf.decode(text)
    for vendor_id in (None, 3):
        assert granted(Case(vendor_id=vendor_id).read(text)) == set()


def test_padding_is_no_part_of_a_string() -> None:
    text = encode(Description())
    padded = ".".join(segment + "A==" for segment in text.split("."))
    assert tcf.decode(padded) == tcf.decode(text)


def test_overlapping_ranges_are_joined() -> None:
    many = "".join(f"1{1:016b}{65_535:016b}" for _ in range(4_095))
    segment = encode_bits("001" + f"{65_535:016b}1{4_095:012b}" + many)
    string = tcf.decode(encode(Description(disclosed=None, publisher=None)) + "." + segment)
    assert string.disclosed_vendors == tcf.VendorIds(((1, 65_535),))


def test_a_string_lasts_thirteen_months_and_no_instant_longer() -> None:
    said = Description(updated=dt.datetime(2025, 1, 31, tzinfo=dt.UTC))
    end = dt.datetime(2026, 2, 28, tzinfo=dt.UTC)
    before = Case(received_at=end - dt.timedelta(microseconds=1)).read(encode(said))
    assert granted(before) == {"online", "ads", "model"}
    assert {record.valid_to for record in before} == {end}
    assert granted(Case(received_at=end).read(encode(said))) == set()


def test_a_clock_may_run_five_minutes_ahead() -> None:
    said = Description(updated=RECEIVED_AT + dt.timedelta(minutes=5))
    assert granted(Case().read(encode(said))) == {"online", "ads", "model"}
    late = dataclasses.replace(said, updated=said.updated + dt.timedelta(milliseconds=100))
    assert granted(Case().read(encode(late))) == set()


def test_a_refusal_on_the_day_of_a_grant_holds_from_its_receipt() -> None:
    consent, refusal = encode(Description()), encode(Description(publisher=frozenset()))
    ledger = Ledger()
    first, second = RECEIVED_AT, RECEIVED_AT + dt.timedelta(hours=1)
    ledger.append(Case(received_at=first).read(consent))
    ledger.append(Case(received_at=second).read(refusal))

    def permission(at: dt.datetime) -> Permission:
        return ledger.permission("v-9", kind="visitor", at=at)

    instant = dt.timedelta(microseconds=1)
    assert permission(first - instant) is Permission.NONE
    assert permission(first) is permission(second - instant) is Permission.ONLINE
    assert permission(second) is Permission.NONE


def test_the_evidence_holds_the_string_and_the_reason() -> None:
    text = encode(Description(publisher=frozenset({1, 5, 6})))
    evidence = {record.permission: json.loads(record.evidence or "") for record in Case().read(text)}
    assert {found["raw"] for found in evidence.values()} == {text}
    assert "reason" not in evidence["online"]
    assert evidence["ads"]["reason"] == "no consent to purposes 3, 4"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"vendor_id": "3"}, TypeError),
        ({"vendor_id": True}, TypeError),
        ({"vendor_id": 0}, ValueError),
        ({"vendor_id": 65_536}, ValueError),
        ({"model_purpose": 9}, ValueError),
        ({"purpose_one_exempt_in": "DE"}, TypeError),
        ({"purpose_one_exempt_in": {"Germany"}}, ValueError),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        read_signal("tcf", encode(Description()), subject_id="v-9", received_at=RECEIVED_AT, **wrong)


# The public reference vectors


def vectors(group: str) -> list[dict[str, Any]]:
    if not VECTORS.exists():
        return []
    found: list[dict[str, Any]] = json.loads(VECTORS.read_text())[group]
    return found


def named(group: str) -> list[Any]:
    found = [pytest.param(vector, id=vector["name"]) for vector in vectors(group)]
    absent = pytest.param(None, marks=pytest.mark.skip(reason=f"no vectors at {VECTORS}"), id="absent")
    return found or [absent]


@pytest.mark.real_data
@pytest.mark.parametrize("vector", named("valid"))
def test_a_reference_string_reads_as_expected(vector: dict[str, Any]) -> None:
    string, expect = tcf.decode(vector["tc"]), vector["expect"]
    policy = string.policy_version
    assert policy == expect["policy"]
    for found, wanted in (
        (string.created, dt.datetime.fromisoformat(expect["created"])),
        (string.last_updated, dt.datetime.fromisoformat(expect["updated"])),
        (string.cmp_id, expect["cmp"]),
        (string.consent_language, expect["lang"]),
        (string.vendor_list_version, expect["vl"]),
        (string.service_specific, bool(expect["svc"])),
        (string.purpose_one_treatment, bool(expect["p1t"])),
        (string.publisher_country, expect["cc"]),
        (sorted(string.special_feature_opt_ins), expect["sf"]),
        (sorted(string.purpose_consents), expect["pc"]),
        (len(list(string.vendor_consents)), expect["n_vendor_consents"]),
    ):
        assert found == wanted
    abolished = {3, 4, 5, 6} if policy >= 4 else set()
    assert string.purpose_legitimate_interests == set(expect["li"]) - abolished
    if expect["vendor_consents"] is not None:
        assert list(string.vendor_consents) == expect["vendor_consents"]
    wanted = [(purpose, kind, ids) for purpose, kind, ids in expect["restrictions"]]
    restrictions = [(found.purpose, found.kind, list(found.vendors)) for found in string.restrictions]
    assert restrictions == wanted
    for name, found in (("disclosed", string.disclosed_vendors), ("allowed", string.allowed_vendors)):
        assert (None if found is None else list(found)) == expect.get(name)
    assert (string.publisher is None) == ("pub_c" not in expect)
    if string.publisher is not None:
        assert sorted(string.publisher.consents) == expect["pub_c"]
        assert string.publisher.legitimate_interests == set(expect["pub_li"]) - abolished
        assert sorted(string.publisher.custom_consents) == expect["cust_c"]
        assert sorted(string.publisher.custom_legitimate_interests) == expect["cust_li"]


@pytest.mark.real_data
@pytest.mark.parametrize("vector", named("invalid"))
def test_an_invalid_reference_string_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(SignalError):
        tcf.decode(vector["tc"])
    assert granted(Case().read(vector["tc"])) == set()


@pytest.mark.real_data
@pytest.mark.parametrize("vector", named("valid"))
def test_no_prefix_of_a_reference_string_grants_more(vector: dict[str, Any]) -> None:
    text = vector["tc"]
    received_at = tcf.decode(text).last_updated + dt.timedelta(hours=1)
    vendor_ids = [None, *list(tcf.decode(text).vendor_consents)[:2]]
    for vendor_id in vendor_ids:
        case = Case(vendor_id=vendor_id, received_at=received_at)
        whole = granted(case.read(text))
        for length in range(len(text)):
            assert granted(case.read(text[:length])) <= whole


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "vendor_id", "grants"),
    [
        ("es_v23_debug", None, {"online", "ads"}),
        ("es_v23_debug", 11, {"online", "ads"}),
        ("es_v23_debug", 12, set()),
        ("es_v23_core_vs_pub", None, set()),
        ("es_v23_core_vs_pub", 12, set()),
        ("third_purposes_1_10", None, set()),
        ("third_purposes_1_10", 12, {"online", "ads", "model"}),
    ],
)
def test_what_reference_strings_grant(name: str, vendor_id: int | None, grants: set[str]) -> None:
    text = next((vector["tc"] for vector in vectors("valid") if vector["name"] == name), None)
    if text is None:
        pytest.skip(f"no vectors at {VECTORS}")
    received_at = tcf.decode(text).last_updated + dt.timedelta(hours=1)
    assert granted(Case(vendor_id=vendor_id, received_at=received_at).read(text)) == grants
