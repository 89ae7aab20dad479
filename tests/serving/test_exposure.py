"""The exposure report: answers and bundles that late records show to rest on too much."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
from engines import ITEMS, bundles, write_linear

from consentier.consent import Channel, ConsentRecord, Ledger, Link, Policy, Tier
from consentier.consent.keyring import Keyring
from consentier.consent.records import SubjectKind
from consentier.errors import AuditError
from consentier.models.bundle import write_run
from consentier.serving import Event, Profiles, Recommender, Request
from consentier.serving.audit import JsonLinesAudit, subject_text
from consentier.serving.exposure import ExposureReport, exposure

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def day(number: float) -> dt.datetime:
    """An instant, in days."""
    return START + dt.timedelta(days=number)


def said(
    subject: str,
    state: Literal["granted", "denied", "withdrawn", "objected", "lifted"],
    at: float,
    *,
    recorded: float | None = None,
    permission: str | None = None,
) -> ConsentRecord:
    """A decision of a visitor (an id that begins with v) or customer on its own source."""
    kind: SubjectKind = "visitor" if subject.startswith("v") else "customer"
    permission = permission or {"visitor": "online", "customer": "crm"}[kind]
    learnt = day(at if recorded is None else recorded)
    name = f"{subject} {permission} {state} {at}"
    return ConsentRecord(name, subject, kind, permission, state, day(at), learnt, evidence="letter")


HOUSEHOLD = (said("v-1", "granted", 0), said("v-2", "granted", 0), said("c-1", "granted", 0))
LOGINS = (Link("v-1", "c-1", day(1)), Link("v-2", "c-1", day(1)))


class Shop:
    """A recommender with a ledger and an audit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keyring = Keyring.ephemeral()
        self.ledger = Ledger(HOUSEHOLD, LOGINS)
        profiles = Profiles(
            online={"v-1": (Event(ITEMS[2], day(2)),), "v-2": (Event(ITEMS[5], day(2)),)},
            crm={"c-1": (Event(ITEMS[3], day(2)),)},
        )
        self.engine = Recommender.load(
            bundles(),
            ledger=self.ledger,
            profiles=profiles,
            keyring=self.keyring,
            audit=JsonLinesAudit(path, self.keyring),
            clock=lambda: START,
        )

    def ask(self, at: float = 10, **facts: Any) -> Tier:
        """Ask about the household; the tier that answered."""
        request: dict[str, Any] = {"visitor_id": "v-1", "customer_id": "c-1", "linked": True}
        return self.engine.recommend(Request(**{"at": day(at), **request, **facts})).tier

    def report(self, **options: Any) -> ExposureReport:
        """The exposure report."""
        return exposure(
            self.ledger, keyring=self.keyring, policy=Policy.default(), audit=self.path, **options
        )


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A shop with one household."""
    return Shop(tmp_path / "audit")


def test_what_was_on_the_ledger_in_time_exposes_nothing(shop: Shop) -> None:
    shop.ask()
    shop.ledger.append([said("c-2", "withdrawn", 5, recorded=20)])
    assert shop.report() == ExposureReport(ledger_position=6, lines=1, answers=(), bundles=(), unreadable=())


@pytest.mark.parametrize(
    ("late", "reason"),
    [
        (said("c-1", "withdrawn", 5, recorded=20), "online permission only: no answer of the fused tier"),
        (said("v-1", "denied", 9, recorded=20), "CRM permission only: no answer of the fused tier"),
        (said("c-1", "objected", 5, recorded=20), "an objection stands: no answer of the fused tier"),
        (
            said("c-1", "denied", 5, recorded=20, permission="parental"),
            "a minor without parental consent: no answer of the fused tier",
        ),
        (
            said("v-1", "denied", 5, recorded=20, permission="fusion"),
            "both permissions, but joining them is not permitted: no answer of the fused tier",
        ),
        # A withdrawal and a new grant: permitted again at the instant, but the link is not.
        (
            (said("v-1", "withdrawn", 3, recorded=20), said("v-1", "granted", 4, recorded=20)),
            "both permissions, but no lawful link: no answer of the fused tier",
        ),
        # Parents consented, who had not when the child logged in.
        (
            said("c-1", "granted", 5, recorded=20, permission="parental"),
            "both permissions, but no lawful link: no answer of the fused tier",
        ),
        (said("v-2", "withdrawn", 5, recorded=20), "data of a device were joined that may not be"),
    ],
)
def test_a_late_record_exposes_what_rested_on_more(
    shop: Shop, late: ConsentRecord | tuple[ConsentRecord, ...], reason: str
) -> None:
    assert shop.ask() is Tier.FUSED
    shop.ledger.append(late if isinstance(late, tuple) else (late,))
    (found,) = shop.report(show_subjects=True).answers
    assert (found.tier, found.at, found.channel) == (Tier.FUSED, day(10), "shop")
    assert (found.reason, found.certain) == (reason, True)
    assert found.subjects == {"visitor": "visitor:v-1", "customer": "customer:c-1"}
    assert [cause.position for cause in found.causes] == list(range(6, 7 + isinstance(late, tuple)))
    assert found.causes[0].recorded_at == day(20)
    assert found.where.endswith(".jsonl:1")


@pytest.mark.parametrize(
    "harmless",
    [
        said("c-1", "withdrawn", 11, recorded=20),  # takes effect after the answer
        said("c-1", "granted", 11, recorded=20, permission="parental"),  # nobody knew of a child
        said("c-1", "granted", 0, recorded=20, permission="parental"),  # the parents had consented
        said("c-1", "lifted", 5, recorded=20, permission="parental"),  # no child
        said("c-1", "granted", 5, recorded=20),  # changes nothing
        said("v-1", "denied", 5, recorded=20, permission="model"),  # answering needs no such consent
        said("c-1", "withdrawn", 5, recorded=20, permission="contact:email"),  # nothing was sent
    ],
)
def test_a_late_record_that_takes_nothing_away_exposes_nothing(shop: Shop, harmless: ConsentRecord) -> None:
    shop.ask()
    shop.ledger.append([harmless])
    assert shop.report().answers == ()


def test_what_was_decided_after_the_record_came_is_not_exposed(shop: Shop) -> None:
    shop.ask(10)
    shop.ledger.append([said("c-1", "withdrawn", 5, recorded=20)])
    assert shop.ask(12) is Tier.ONLINE
    assert [found.at for found in shop.report().answers] == [day(10)]


def test_a_second_customer_on_the_device_exposes_what_was_joined(shop: Shop) -> None:
    shop.ask()
    shop.ledger.append_links([Link("v-1", "c-9", day(4))])
    (found,) = shop.report(show_subjects=True).answers
    assert found.reason == "both permissions, but no lawful link: no answer of the fused tier"
    assert [(cause.permission, cause.subject) for cause in found.causes] == [("link", "visitor:v-1")]


def test_a_late_end_of_contact_exposes_what_was_written_to_be_sent(shop: Shop) -> None:
    shop.ledger.append([said("c-1", "granted", 0, permission="contact:email")])
    for channel in (Channel.EMAIL, Channel.PRINT):
        shop.ask(channel=channel)
    shop.ledger.append([said("c-1", "withdrawn", 5, recorded=20, permission="contact:email")])
    (found,) = shop.report().answers
    assert (found.channel, found.reason) == ("email", "no contact permission for email")


def test_a_single_source_answer_is_exposed_by_its_own_subject_only(shop: Shop) -> None:
    shop.ask(customer_id=None)
    shop.ask(channel=Channel.EMAIL, visitor_id=None)
    shop.ledger.append([said("v-1", "withdrawn", 5, recorded=20)])
    assert [found.tier for found in shop.report().answers] == [Tier.ONLINE]
    shop.ledger.append([said("c-1", "withdrawn", 5, recorded=20)])
    assert [found.tier for found in shop.report().answers] == [Tier.ONLINE, Tier.CRM]


GAP = {
    subject: (said(subject, "withdrawn", 3, recorded=20), said(subject, "granted", 4, recorded=20))
    for subject in ("v-1", "v-2", "c-1")
}


@pytest.mark.parametrize(
    ("facts", "late", "read"),
    [
        ({"customer_id": None}, GAP["v-1"], "the online history"),
        (
            {"visitor_id": None, "channel": Channel.EMAIL},
            GAP["c-1"],
            "CRM data (orders, product usage, master data)",
        ),
        # The customer's refusal of cookies, taken back: it denies the device's data, too.
        (
            {"channel": Channel.SHOP},
            (
                said("c-1", "denied", 0.5, recorded=20, permission="online"),
                said("c-1", "granted", 0.75, recorded=20, permission="online"),
            ),
            "the online history",
        ),
    ],
)
def test_a_gap_that_turned_up_exposes_what_may_have_been_read_from_before_it(
    shop: Shop, facts: dict[str, Any], late: tuple[ConsentRecord, ...], read: str
) -> None:
    tier = shop.ask(**facts)
    shop.ledger.append(late)
    (found,) = shop.report().answers
    assert (found.tier, found.reason) == (tier, f"{read} may have been read from before the permission")
    assert not found.certain
    assert [cause.state for cause in found.causes] == [record.state for record in late]


@pytest.mark.parametrize(
    ("facts", "late"),
    [
        # Nothing was stored of them: what is older than the permission cannot have been read.
        ({"visitor_id": "v-3", "customer_id": None}, ("v-3", 3)),
        # Another source than the one that was read.
        ({"visitor_id": None, "channel": Channel.EMAIL}, ("v-1", 3)),
        # After the answer.
        ({"customer_id": None}, ("v-1", 12)),
    ],
)
def test_a_gap_beside_what_was_read_exposes_nothing(
    shop: Shop, facts: dict[str, Any], late: tuple[str, float]
) -> None:
    shop.ledger.append([said("v-3", "granted", 0)])
    shop.ask(**facts)
    subject, start = late
    shop.ledger.append(
        [said(subject, "withdrawn", start, recorded=20), said(subject, "granted", start + 1, recorded=20)]
    )
    assert shop.report().answers == ()


def test_a_gap_of_another_device_exposes_what_was_joined_from_before_it(shop: Shop) -> None:
    """The device was linked after its gap, so that it stays joined, and its older events do not."""
    late = (said("v-2", "withdrawn", 0.25, recorded=20), said("v-2", "granted", 0.5, recorded=20))
    assert shop.ask() is Tier.FUSED
    shop.ledger.append(late)
    (found,) = shop.report().answers
    assert found.reason == "the online history may have been read from before the permission"


def test_lines_that_name_nobody_rest_on_nobody(shop: Shop) -> None:
    shop.ask(visitor_id="v-8", customer_id="c-8", session=(ITEMS[1],))
    shop.ledger.append([said("v-8", "denied", 5, recorded=20), said("c-8", "objected", 5, recorded=20)])
    report = shop.report()
    assert (report.lines, report.answers) == (1, ())


def test_subjects_are_named_by_digests_unless_asked_for(shop: Shop) -> None:
    shop.ask()
    shop.ledger.append([said("c-1", "withdrawn", 5, recorded=20)])
    plain = json.dumps(shop.report().to_dict())
    assert "c-1" not in plain
    assert "v-1" not in plain
    assert shop.keyring.digest("subject", subject_text("customer", "c-1")) in plain
    assert "customer:c-1" in json.dumps(shop.report(show_subjects=True).to_dict())


def test_a_rotated_key_still_finds_the_subject_and_a_pruned_one_does_not(shop: Shop) -> None:
    shop.ask()
    shop.ledger.append([said("c-1", "withdrawn", 5, recorded=20)])
    now = dt.datetime.now(dt.UTC)
    shop.keyring.rotate(now)
    assert len(shop.report().answers) == 1
    shop.keyring.prune(now + dt.timedelta(days=1))
    assert shop.report().answers == ()


def test_an_answer_whose_link_was_erased_since_is_listed_as_uncertain(shop: Shop) -> None:
    shop.ask()
    shop.ledger.append([said("c-1", "withdrawn", 5, recorded=20)])
    shop.ledger.dissolve_links(customer_id="c-1")
    (found,) = shop.report().answers
    assert not found.certain


def test_torn_lines_are_reported_and_the_rest_is_judged(shop: Shop) -> None:
    shop.ask()
    (segment,) = shop.path.iterdir()
    segment.write_bytes(b'{"format":1,"at":"20\n' + segment.read_bytes())
    shop.ledger.append([said("c-1", "withdrawn", 5, recorded=20)])
    report = shop.report()
    assert len(report.answers) == 1
    assert len(report.unreadable) == 1
    with pytest.raises(AuditError):
        exposure(shop.ledger, keyring=shop.keyring, policy=Policy.default(), audit=shop.path / "absent")


# ---- Bundles -----------------------------------------------------------------------------------------------


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    """Bundles of three tiers, fitted at position 5 of the ledger; their cut-off is day 0."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    for tier in (Tier.ONLINE, Tier.CRM, Tier.FUSED):
        write_linear(folder / tier, tier)
        write_run(folder / tier, {"ledger_position": 5})
    return folder


EARLIER = dt.timedelta(days=100)


def moved(ledger_of: Iterable[ConsentRecord], by: dt.timedelta = EARLIER) -> list[ConsentRecord]:
    """Records moved back in time, to before the bundles' cut-off."""
    return [
        dataclasses.replace(each, valid_from=each.valid_from - by, recorded_at=each.recorded_at - by)
        for each in ledger_of
    ]


def household() -> Ledger:
    """The household, long before the cut-off."""
    links = [dataclasses.replace(each, linked_at=day(1) - EARLIER) for each in LOGINS]
    return Ledger(moved(HOUSEHOLD), links)


def exposed(ledger: Ledger, fitted: Path, **options: Any) -> dict[str, tuple[str, ...]]:
    """Exposed bundles by tier, with the subjects."""
    report = exposure(
        ledger,
        keyring=Keyring.ephemeral(),
        policy=Policy.default(),
        bundles=[fitted],
        show_subjects=True,
        **options,
    )
    return {str(bundle.tier): bundle.subjects for bundle in report.bundles}


@pytest.mark.parametrize(
    ("late", "tiers"),
    [
        (said("c-1", "withdrawn", 50, recorded=120), {"crm": {"customer:c-1"}, "fused": {"customer:c-1"}}),
        (said("v-1", "withdrawn", 50, recorded=120), {"online": {"visitor:v-1"}, "fused": {"visitor:v-1"}}),
        (said("v-1", "denied", 50, recorded=120, permission="fusion"), {"fused": {"visitor:v-1"}}),
        (
            said("v-1", "denied", 50, recorded=120, permission="model"),
            {"online": {"visitor:v-1"}, "fused": {"visitor:v-1"}},
        ),
        (said("v-1", "withdrawn", 110, recorded=120), {}),
        (said("v-1", "granted", 50, recorded=120), {}),
    ],
)
def test_a_bundle_is_exposed_where_rows_in_it_may_not_be_used(
    fitted: Path, late: ConsentRecord, tiers: dict[str, set[str]]
) -> None:
    ledger = household()
    assert exposed(ledger, fitted) == {}
    ledger.append(moved([late]))
    found = exposed(ledger, fitted)
    assert set(found) == set(tiers)
    assert all(tiers[tier] <= set(subjects) for tier, subjects in found.items())
    assert all(set(subjects) <= {"visitor:v-1", "visitor:v-2", "customer:c-1"} for subjects in found.values())


def test_a_gap_that_turned_up_exposes_the_rows_before_it(fitted: Path) -> None:
    ledger = household()
    late = (said("c-1", "withdrawn", 50, recorded=120), said("c-1", "granted", 60, recorded=120))
    ledger.append(moved(late))
    assert set(exposed(ledger, fitted)) == {"crm", "fused"}


def test_the_lineage_says_which_bundles_are_concerned(fitted: Path) -> None:
    ledger = household()
    ledger.append(moved([said("c-1", "withdrawn", 50, recorded=120)]))
    assert exposed(ledger, fitted, lineage=lambda _kind, _subject: []) == {}
    asked: list[tuple[str, str]] = []

    def lineage(kind: SubjectKind, subject: str) -> list[str]:
        asked.append((kind, subject))
        return []

    exposed(ledger, fitted, lineage=lineage)
    assert ("customer", "c-1") in asked


def test_a_bundle_fitted_after_the_record_came_is_not_exposed(fitted: Path) -> None:
    ledger = household()
    ledger.append(moved([said("c-1", "withdrawn", 50, recorded=120)]))
    for tier in ("online", "crm", "fused"):
        write_run(fitted / tier, {"ledger_position": 6})
    assert exposed(ledger, fitted) == {}


def test_bundles_that_cannot_be_judged_are_named(fitted: Path) -> None:
    (fitted / "crm" / "run.json").unlink()
    write_run(fitted / "online", {})
    (fitted / "fused" / "manifest.json").write_text("{")
    report = exposure(household(), keyring=Keyring.ephemeral(), policy=Policy.default(), bundles=[fitted])
    assert [problem.split(":")[0].rpartition("/")[2] for problem in report.unreadable] == [
        "online",
        "crm",
        "fused",
    ]
