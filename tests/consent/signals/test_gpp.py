"""GPP strings: what each section refuses; and that no GPP string ever grants."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tcf_encoder import ALPHABET, RECEIVED_AT, Description, descriptions, encode, encode_bits, expected

from consentier.consent import ConsentRecord
from consentier.consent.signals import gpp, read_signal
from consentier.errors import SignalError

SALE, SHARING, TARGETED = "SaleOptOut", "SharingOptOut", "TargetedAdvertisingOptOut"
CHILD, FURTHER = "KnownChild", "Further"

REFUSES = {
    SALE: {"ads", "fusion"},
    SHARING: {"ads", "fusion"},
    TARGETED: {"ads"},
    CHILD: {"parental"},
    FURTHER: {"fusion", "model"},
}
"""What each field refuses where it is 1: opted out, or no consent."""


def fields(
    notices: int, choices: Sequence[str], sensitive: int, children: int, *, further: bool
) -> list[str]:
    """The two-bit fields of a section's core after its version, in order."""
    return [
        *["Notice"] * notices,
        *choices,
        *["Sensitive"] * sensitive,
        *[CHILD] * children,
        *[FURTHER] * further,
        *["Mspa"] * 3,
    ]


USUAL = (SALE, TARGETED)

US_FIELDS = {
    7: fields(6, (SALE, SHARING, TARGETED), 16, 3, further=True),
    8: fields(3, (SALE, SHARING), 9, 2, further=True),
    9: fields(3, USUAL, 8, 1, further=False),
    10: fields(3, USUAL, 7, 1, further=False),
    11: fields(4, USUAL, 8, 1, further=False),
    12: fields(3, USUAL, 8, 3, further=False),
    13: fields(3, USUAL, 8, 3, further=True),
    14: fields(3, USUAL, 8, 3, further=True),
    15: fields(3, USUAL, 11, 3, further=True),
    16: fields(3, USUAL, 8, 1, further=True),
    17: fields(3, USUAL, 9, 5, further=True),
    18: fields(4, USUAL, 8, 1, further=False),
    19: fields(3, USUAL, 8, 1, further=True),
    20: fields(3, USUAL, 8, 3, further=True),
    21: fields(3, USUAL, 10, 5, further=True),
    22: fields(3, USUAL, 8, 1, further=True),
    23: fields(3, USUAL, 8, 1, further=True),
}
OLD_NATIONAL = fields(6, (SALE, SHARING, TARGETED), 12, 2, further=True)


@dataclass(frozen=True)
class Section:
    """A section, and the permissions that it refuses."""

    number: int
    text: str
    refuses: frozenset[str]


@dataclass(frozen=True)
class Case:
    sections: tuple[Section, ...]
    ranges: bool = field(default=False)

    def text(self) -> str:
        numbers = [section.number for section in self.sections]
        return "~".join((header(numbers, ranges=self.ranges), *(section.text for section in self.sections)))


def us_section(number: int, values: Sequence[int], names: Sequence[str], gpc: bool | None) -> Section:
    core = encode_bits(f"{1:06b}" + "".join(f"{value:02b}" for value in values))
    refuses = {
        permission
        for name, value in zip(names, values, strict=True)
        if value == 1
        for permission in REFUSES.get(name, ())
    }
    if gpc is None:
        return Section(number, core, frozenset(refuses))
    refuses |= {"online", "ads", "fusion"} if gpc else set()
    return Section(number, f"{core}.{encode_bits(f'01{gpc:b}')}", frozenset(refuses))


@st.composite
def us_sections(draw: st.DrawFn) -> Section:
    number = draw(st.sampled_from(sorted(US_FIELDS)))
    names = OLD_NATIONAL if number == 7 and draw(st.booleans()) else US_FIELDS[number]
    # Mostly nothing is refused, so that the one refusal shows.
    value = st.sampled_from((2, 2, 2, 2, 2, 2, 2, 0, 0, 1))
    values = draw(st.lists(value, min_size=len(names), max_size=len(names)))
    return us_section(number, values, names, draw(st.sampled_from((None, False, True))))


def tcf_section(said: Description) -> Section:
    given = expected(said, RECEIVED_AT, vendor_id=None, model_purpose=10, exempt=False)
    return Section(2, encode(said), frozenset({"online", "ads", "model"}) - given)


def us_privacy_section(text: str) -> Section:
    return Section(6, text, frozenset({"ads", "fusion"} if text[2] == "Y" else ()))


readable = descriptions().filter(
    lambda said: (
        expected(
            dataclasses.replace(said, publisher=frozenset(range(1, 12)), purpose_one_treatment=False),
            RECEIVED_AT,
            vendor_id=None,
            model_purpose=10,
            exempt=False,
        )
        != set()
        and said.publisher is not None
    )
)


def cases() -> st.SearchStrategy[Case]:
    section = st.one_of(
        us_sections(),
        us_sections(),
        readable.map(tcf_section),
        st.from_regex(r"1[YN-]{3}", fullmatch=True).map(us_privacy_section),
    )
    several = st.lists(section, max_size=5, unique_by=lambda found: found.number)
    ordered = several.map(lambda found: tuple(sorted(found, key=lambda section: section.number)))
    return st.builds(Case, sections=ordered, ranges=st.booleans())


def header(numbers: Sequence[int], *, ranges: bool = False) -> str:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    bits, last = f"{3:06b}{1:06b}{len(runs):012b}", 0
    for start, end in runs:
        bits += f"{end > start:b}" + fibonacci(start - last)
        bits += fibonacci(end - start) if end > start else ""
        last = end
    return encode_bits(bits)


def fibonacci(number: int) -> str:
    terms = [1, 2]
    while terms[-1] <= number:
        terms.append(terms[-1] + terms[-2])
    code = ""
    for term in reversed(terms):
        taken = term <= number
        number -= term * taken
        if taken or code:
            code = f"{taken:b}" + code
    return code + "1"


def read(text: object, **settings: Any) -> list[ConsentRecord]:
    return read_signal("gpp", text, subject_id="v-9", received_at=RECEIVED_AT, **settings)


def check_refuses_what_it_says(case: Case) -> None:
    """A GPP string refuses what any of its sections refuses, and grants nothing."""
    records = read(case.text())
    assert {record.state for record in records} <= {"denied"}
    wanted = {permission for section in case.sections for permission in section.refuses}
    assert sorted(record.permission for record in records) == sorted(wanted)
    for record in records:
        assert record.valid_from == RECEIVED_AT
        assert not json.loads(record.evidence or "")["reason"].startswith("refused:")


def national(**choice: int) -> Case:
    values = [choice.get(name, 2) for name in US_FIELDS[7]]
    return Case((us_section(7, values, US_FIELDS[7], None),))


TCF_REFUSED = Case((tcf_section(Description(publisher=frozenset({2}))),))


@settings(max_examples=300, deadline=None)
@given(cases())
@example(Case(()))
@example(TCF_REFUSED)
@example(Case((tcf_section(Description()),)))
@example(Case((us_privacy_section("1YNN"), us_section(7, [2] * 32, US_FIELDS[7], True)), ranges=True))
def test_a_string_refuses_what_its_sections_refuse(case: Case) -> None:
    check_refuses_what_it_says(case)


@breaks(
    Break(
        "an objection to sale is taken for none",
        gpp._us_core,
        'if _OPTED_OUT in _choices(bits, 1, "SaleOptOut")',
        'if 2 in _choices(bits, 1, "SaleOptOut")',
        national(SaleOptOut=1),
    ),
    Break(
        "an objection to sharing is passed over",
        gpp._us_core,
        'if _OPTED_OUT in _choices(bits, layout.sharing, "SharingOptOut")',
        'if 9 in _choices(bits, layout.sharing, "SharingOptOut")',
        national(SharingOptOut=1),
    ),
    Break(
        "an objection to targeted advertising is passed over",
        gpp._us_core,
        'if _OPTED_OUT in _choices(bits, layout.targeted, "TargetedAdvertisingOptOut")',
        'if 9 in _choices(bits, layout.targeted, "TargetedAdvertisingOptOut")',
        national(TargetedAdvertisingOptOut=1),
    ),
    Break(
        "a child without consent is passed over",
        gpp._us_core,
        "if _NO_CONSENT in _choices(bits, layout.children",
        "if 9 in _choices(bits, layout.children",
        national(KnownChild=1),
    ),
    Break(
        "an objection in the US Privacy string is passed over",
        gpp._us_privacy,
        'if section[2] == "Y"',
        'if section[1:3] == "NY"',
        Case((us_privacy_section("1YYN"),)),
    ),
    Break(
        "Global Privacy Control within a section is passed over",
        gpp._us_subsection,
        'if bits.flag("Gpc"):',
        'if not bits.flag("Gpc"):',
        Case((us_section(9, [2] * 17, US_FIELDS[9], True),)),
    ),
    Break(
        "what the European section refuses is passed over",
        gpp._refusals,
        'if decision.state != "granted"',
        "if False",
        TCF_REFUSED,
    ),
    Break(
        "only the first section is read",
        gpp._read,
        "in sections_of(text):",
        "in sections_of(text)[:1]:",
        Case((us_privacy_section("1YNN"), us_section(7, [1] * 32, US_FIELDS[7], None))),
    ),
    Break(
        "the European section grants",
        gpp._read,
        'state="denied"',
        'state="granted"',
        TCF_REFUSED,
    ),
)
def test_a_refusal_that_is_lost_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_refuses_what_it_says, cases(), broken)


ALL = {"online", "ads", "fusion", "model"}

NEW_NATIONAL = encode_bits(f"{2:06b}" + "".join(f"{value:02b}" for value in [2] * 24 + [0] * 8))
"""A national section in its second version, whose last fields say nothing."""


def test_the_national_section_is_read_in_its_second_version() -> None:
    assert read(header([7]) + "~" + NEW_NATIONAL) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "ends within Type"),
        ("D", "ends within Version"),
        (encode(Description(publisher=None, disclosed=None)), "no GPP string"),
        (header([7]), "more sections than there are"),
        (header([]) + "~1YNN", "names 0 sections, and there are 1"),
        (header([6, 7]) + "~1YNN", "more sections than there are"),
        (header([6]) + "~1YNN~1YNN", "names 1 sections, and there are 2"),
        (header([6]) + "~1YN", "no US Privacy string"),
        (header([6]) + "~2YNN", "no US Privacy string"),
        (header([6]) + "~1YXN", "no US Privacy string"),
        (header([5]) + "~CPXxRfAPXxRfAAfKABENB", "section 5 is none that can be read"),
        (header([24]) + "~BVVVVVVVVA", "section 24 is none that can be read"),
        (header([9]) + "~" + us_section(9, [2] * 17, US_FIELDS[9], None).text[:-1], "ends within"),
        (header([9]) + "~C" + us_section(9, [2] * 17, US_FIELDS[9], None).text[1:], "version 2"),
        # Of the national section's newer version, cut to where the older layout ends.
        (header([7]) + "~" + NEW_NATIONAL[:11], "version 2"),
        (header([7]) + "~" + NEW_NATIONAL[:10], "version 2"),
        (header([9]) + "~" + us_section(9, [3] * 17, US_FIELDS[9], None).text, "may not have"),
        (header([9]) + "~" + us_section(9, [2] * 17, US_FIELDS[9], None).text + "B", "goes on"),
        (
            header([9]) + "~" + us_section(9, [2] * 17, US_FIELDS[9], None).text + ".w",
            "a type that is not known",
        ),
        (header([2]) + "~" + encode(Description(service_specific=False)), "global scope"),
        (
            header([2]) + "~" + encode(Description(updated=dt.datetime(2024, 1, 1, tzinfo=dt.UTC))),
            "13 months",
        ),
        (encode_bits(f"{3:06b}{1:06b}{1:012b}0" + "0" * 60) + "~1YNN", "too large"),
        (17, "no text"),
    ],
)
def test_what_cannot_be_read_denies_everything(text: object, reason: str) -> None:
    records = read(text)
    assert {(record.permission, record.state) for record in records} == {(name, "denied") for name in ALL}
    assert all(reason in json.loads(record.evidence or "")["reason"] for record in records)


@settings(max_examples=200, deadline=None)
@given(cases(), st.data())
def test_no_altered_or_cut_string_grants(case: Case, data: st.DataObject) -> None:
    text = case.text()
    place = data.draw(st.integers(0, len(text) - 1))
    altered = text[:place] + data.draw(st.sampled_from(ALPHABET + "~.= ")) + text[place + 1 :]
    for payload in (altered, text[:place]):
        assert {record.state for record in read(payload)} <= {"denied"}


@given(st.lists(st.integers(1, 60), unique=True, max_size=12).map(sorted), st.booleans())
def test_the_header_reads_back(numbers: list[int], ranges: bool) -> None:
    text = "~".join([header(numbers, ranges=ranges), *(f"s{number}" for number in numbers)])
    assert gpp.sections_of(text) == [(number, f"s{number}") for number in numbers]


def test_the_examples_of_the_specification() -> None:
    assert header([2]) == "DBABM"
    assert header([2, 6]) == "DBACNY"
    assert header([5, 6], ranges=True) == "DBABjw"
    assert gpp.sections_of("DBABMA~x") == [(2, "x")]


def test_the_settings_are_those_of_the_european_section() -> None:
    text = Case((tcf_section(Description(publisher=None)),)).text()
    assert {record.permission for record in read(text)} == ALL
    assert read(text, vendor_id=3) == []


def test_a_header_that_is_no_text_is_refused() -> None:
    with pytest.raises(SignalError, match="base64url"):
        gpp.sections_of("DB\N{SNOWMAN}~1YNN")
