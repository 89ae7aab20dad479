"""Lifetimes: how old a grant may grow, by who collected it, where, and for what."""

from __future__ import annotations

import dataclasses
import datetime as dt
import tomllib
from pathlib import Path
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from consent_cases import Case, at_tick, cases, said
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_conformance import everything

from consentier.consent import ConsentRecord, Ledger, Lifetimes, microseconds, timeline
from consentier.consent.entries import datetime_of
from consentier.consent.lifetimes import DAY, Lifetime
from consentier.consent.records import PERMISSIONS
from consentier.errors import ConfigError

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def days(permission: str, *, collected_by: str | None = None, jurisdiction: str | None = None) -> int | None:
    """The default lifetime of a grant, in days."""
    age = Lifetimes.default().max_age(permission, collected_by=collected_by, jurisdiction=jurisdiction)
    return None if age is None else age // DAY


@pytest.mark.parametrize(
    ("permission", "collected_by", "jurisdiction", "expected"),
    [
        ("online", "tcf", None, 393),
        ("online", "tcf", "DE", 393),
        ("online", None, None, 393),
        ("online", "tcf", "FR", 181),
        ("online", None, "fr", 181),
        ("fusion", "segment", "FR", 181),
        ("model", None, None, 393),
        ("crm", "salesforce", "FR", None),
        ("contact:email", "salesforce", None, 1460),
        ("contact:print", None, None, None),
        ("parental", "tcf", "FR", None),
        ("online", "benchmark", "FR", None),
        ("contact:email", "simulated", None, None),
        ("no such permission", None, None, 0),
    ],
)
def test_the_default_lifetimes(
    permission: str, collected_by: str | None, jurisdiction: str | None, expected: int | None
) -> None:
    assert days(permission, collected_by=collected_by, jurisdiction=jurisdiction) == expected


def test_a_default_never_outlives_the_months_that_its_source_names() -> None:
    for months, permission, jurisdiction in (
        (6, "online", "FR"),
        (13, "online", None),
        (48, "contact:email", None),
    ):
        for month in range(48):
            given_on = dt.date(2023 + month // 12, 1 + month % 12, 1)
            last = given_on.month - 1 + months
            until = dt.date(given_on.year + last // 12, 1 + last % 12, 1)
            assert (days(permission, jurisdiction=jurisdiction) or 0) <= (until - given_on).days


def test_a_grant_expires_by_age_at_that_very_instant() -> None:
    ledger = Ledger(
        [ConsentRecord("r", "v", "visitor", "online", "granted", START, START, collected_by="tcf")]
    )
    end = START + dt.timedelta(days=393)
    for at, held in ((end - dt.timedelta(microseconds=1), True), (end, False)):
        found = ledger.resolve(visitor_id="v", at=at)
        assert found.online is held
        assert found.reasons[0] == ("online: granted" if held else "online: expired")
        assert found.lifetimes_version == "consentier-default-1"


def test_an_end_that_the_grant_names_counts_if_it_is_earlier() -> None:
    rules = Lifetimes.default()
    age = 393 * DAY
    for named, end in ((None, age), (age - 1, age - 1), (age + 1, age)):
        assert (
            rules.end_of("online", collected_by=None, jurisdiction=None, valid_from=0, valid_to=named) == end
        )
    assert rules.end_of("crm", collected_by=None, jurisdiction=None, valid_from=0, valid_to=None) is None


def test_a_refusal_does_not_grow_old() -> None:
    ledger = Ledger([said("no", "denied", 0), said("objection", "objected", 0, permission="crm")])
    found = ledger.resolve(visitor_id="a", at=START + dt.timedelta(days=10_000))
    assert found.reasons[0] == "online: objected"
    assert found.objected


# ---- On any ledger -----------------------------------------------------------------------------------------

SHORT = Lifetimes(
    "short",
    (
        Lifetime(frozenset({"online", "crm"}), 2, "test", collected_by=frozenset({"cmp"})),
        Lifetime(frozenset({"online", "fusion"}), 3, "test", jurisdictions=frozenset({"FR"})),
        Lifetime(frozenset({"parental"}), 1, "test"),
        Lifetime(PERMISSIONS, None, "test"),
    ),
)
"""Rules that bite within the eight days of a stretched case."""

FOREVER = Lifetimes("forever", (Lifetime(PERMISSIONS, None, "test"),))


def stretched(instant: dt.datetime) -> dt.datetime:
    """A tick becomes a day."""
    return at_tick(0) + (instant - at_tick(0)) * 288


@st.composite
def stretched_cases(draw: st.DrawFn) -> Case:
    """Any ledger, over days, of grants that somebody collected somewhere."""
    case = draw(cases())
    records = [
        dataclasses.replace(
            record,
            valid_from=stretched(record.valid_from),
            recorded_at=stretched(record.recorded_at),
            valid_to=None if record.valid_to is None else stretched(record.valid_to),
            collected_by=draw(st.sampled_from((None, "cmp", "desk"))),
            jurisdiction=draw(st.sampled_from((None, "FR", "fr", "DE"))),
        )
        for record in case.records
    ]
    links = [
        dataclasses.replace(link, linked_at=None if link.linked_at is None else stretched(link.linked_at))
        for link in case.links
    ]
    known_at = None if case.known_at is None else stretched(case.known_at)
    return Case(tuple(records), tuple(links), stretched(case.at), known_at)


def capped(record: ConsentRecord) -> ConsentRecord:
    """The same with the end that its age gives it written down; the rules told a second time."""
    if record.state != "granted":
        return record
    longest = {
        ("online", True): 2,
        ("crm", True): 2,
        ("online", False): 3,
        ("fusion", False): 3,
        ("fusion", True): 3,
    }
    by_system = record.collected_by == "cmp"
    limit = longest.get((record.permission, by_system))
    if limit == 3 and record.jurisdiction not in ("FR", "fr"):
        limit = None
    if record.permission == "parental":
        limit = 1
    if limit is None:
        return record
    end = record.valid_from + dt.timedelta(days=limit)
    return dataclasses.replace(record, valid_to=end if record.valid_to is None else min(end, record.valid_to))


def check_ages(case: Case) -> None:
    """Growing old is the same as an end written into the grant."""
    aged = Ledger(case.records, case.links, lifetimes=SHORT)
    if aged.conflicts:
        return  # two grants that differ in their ends only are one once those are cut off
    written = Ledger(map(capped, case.records), case.links, lifetimes=FOREVER)
    found, expected = everything(aged, case), everything(written, case)
    for answers in (found, expected):
        del answers["records"], answers["columns"], answers["position"]
        answers["resolve"] = [
            dataclasses.replace(each, ledger_position=0, lifetimes_version="") for each in answers["resolve"]
        ]
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(stretched_cases())
def test_growing_old_is_an_end_like_any_other(case: Case) -> None:
    check_ages(case)


NAMES_A_LATE_END = Case(
    (
        dataclasses.replace(
            said("r", "granted", 0), valid_to=stretched(at_tick(7)), collected_by="cmp", jurisdiction="DE"
        ),
    ),
    (),
    stretched(at_tick(5)),
)


@breaks(
    Break("nothing grows old", timeline._claims_in, "and lifetimes is not None", "and False"),
    Break(
        "what names an end does not grow old",
        Lifetimes.end_of,
        "min(valid_to, valid_from + age)",
        "valid_to",
        NAMES_A_LATE_END,
    ),
    Break("the last rule governs", Lifetimes._first_fitting, "in self.rules", "in self.rules[::-1]"),
    Break("jurisdictions are all one", Lifetime.fits, "jurisdiction.upper() in self.jurisdictions", "True"),
    Break("case counts", Lifetime.fits, "jurisdiction.upper()", "jurisdiction"),
    Break("systems are all one", Lifetime.fits, "collected_by in self.collected_by", "True"),
)
def test_a_broken_lifetime_would_be_noticed(broken: Break) -> None:
    def check(case: Case) -> None:
        SHORT.__dict__.pop("_max_age", None)  # what it remembers was found by the rule that is broken
        check_ages(case)

    assert_breaks(check, stretched_cases(), broken)
    SHORT.__dict__.pop("_max_age", None)


# ---- Files -------------------------------------------------------------------------------------------------


def document() -> dict[str, Any]:
    """A lawful file, changed at will."""
    text = (Path(timeline.__file__).parent / "default_lifetimes.toml").read_text("utf-8")
    return tomllib.loads(text)


def changed(number: int, **fields: Any) -> dict[str, Any]:
    """The file with one rule changed."""
    told = document()
    told["lifetime"][number].update(fields)
    return told


def test_a_shop_may_bring_its_own(tmp_path: Path) -> None:
    path = tmp_path / "lifetimes.toml"
    path.write_text(
        'version = "shop-3"\n[[lifetime]]\n'
        f'permissions = {sorted(PERMISSIONS)}\ndays = 30\nsource = "our notice, § 4"\n'
    )
    rules = Lifetimes.load(path)
    grant = said("r", "granted", 0)
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db", lifetimes=rules) as ledger:
        ledger.append([grant])
        found = ledger.resolve(visitor_id="a", at=grant.valid_from + dt.timedelta(days=30))
        assert (found.online, found.lifetimes_version) == (False, "shop-3")
        assert ledger.as_of(1).lifetimes is ledger.lifetimes is rules


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (changed(1, day=3), r"lifetime 2: unknown key 'day'; did you mean 'days'\?"),
        ({**document(), "lifetimes": []}, r"unknown key 'lifetimes'; did you mean 'lifetime'\?"),
        (changed(1, permissions=["onlin"]), r"there is no permission 'onlin'; did you mean 'online'\?"),
        (changed(1, permissions=[]), "permissions must be a list of names"),
        (changed(1, permissions="online"), "permissions must be a list of names"),
        (changed(1, collected_by=[7]), "collected_by must be a list of names"),
        (changed(1, jurisdictions=[]), "jurisdictions must be a list of names"),
        (changed(1, days=0), "days must be a whole number from 1 to 36500, or 'unlimited', not 0"),
        (changed(1, days=True), "days must be a whole number"),
        (changed(1, days=1.5), "days must be a whole number"),
        (changed(1, days="forever"), "not 'forever'"),
        (changed(1, source=" "), "source must say"),
        ({**document(), "version": ""}, "version must be a non-empty string"),
        ({**document(), "lifetime": {}}, "must be a list of tables"),
        ({"version": "1"}, "no lifetime is given for ads, contact:call_center"),
        ({"version": "1", "lifetime": [{"permissions": ["online"], "days": 1}]}, "source is missing"),
        ({**document(), "lifetime": document()["lifetime"] * 2}, "lifetime 7 never applies"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(told: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Lifetimes.from_mapping(told)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_bytes(b"version = \xff")
    with pytest.raises(ConfigError, match="not valid TOML in UTF-8"):
        Lifetimes.load(tmp_path / "odd.toml")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Lifetimes.load(tmp_path / "missing.toml")


def test_times_come_back_as_they_went() -> None:
    assert datetime_of(microseconds(START)) == START
    assert datetime_of(None) is None


def test_jurisdictions_count_in_either_case_in_rules_made_in_python_too() -> None:
    rule = Lifetime(frozenset({"online"}), 181, "CNIL", jurisdictions=frozenset({"fr"}))
    assert rule.fits("online", None, "FR")
    assert rule.fits("online", None, "fr")
    assert not rule.fits("online", None, "DE")
