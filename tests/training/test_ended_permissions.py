"""What follows where a permission has ended: deadlines for bundles, and profiles that are purged."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from engines import bundles as written_bundles

from consentier.consent import ConsentRecord, Ledger, Link, Policy, Source
from consentier.consent.keyring import Keyring
from consentier.errors import BundleError
from consentier.models.bundle import open_bundle
from consentier.serving import Event
from consentier.serving.profile_store import SqliteProfiles
from consentier.serving.revocation import Revocations, revoke
from consentier.training.ended_permissions import (
    JudgedBundle,
    PurgedProfiles,
    purge_ended,
    set_deadlines,
)
from consentier.training.lineage import Lineage

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
CUTOFF = START + 5 * DAY
NOW = START + 10 * DAY
TIERS = ("session", "online", "crm", "fused", "popular")
PAIR = [("visitor", "v1"), ("customer", "c1")]
OWN = {"session": PAIR[:1], "online": PAIR[:1], "crm": PAIR[1:], "fused": PAIR, "popular": PAIR}


def said(subject: str, state: str, on: float) -> ConsentRecord:
    """A decision on the subject's own source."""
    kind, permission = ("visitor", "online") if subject.startswith("v") else ("customer", "crm")
    at = START + on * DAY
    return ConsentRecord(
        f"{subject} {state} {on}",
        subject,
        kind,
        permission,
        state,
        valid_from=at,
        recorded_at=at,  # type: ignore[arg-type]
    )


class Shop:
    """Bundles of all tiers, fitted on visitor v1 and customer c1, who are one person."""

    def __init__(self, place: Path) -> None:
        self.folder = place / "bundles"
        self.folder.mkdir()
        for tier in TIERS:
            (self.folder / tier).symlink_to(written_bundles() / tier)
        self.digests = {tier: open_bundle(self.folder / tier).digest for tier in TIERS}
        people = [said("v1", "granted", 0), said("c1", "granted", 0), said("v2", "granted", 0)]
        self.ledger = Ledger(people, [Link("v1", "c1", START + DAY, "login")])
        self.keyring = Keyring.open(place / "keys.json")
        self.lineage = Lineage(place / "lineage.db", self.keyring)
        for tier, digest in self.digests.items():
            self.record(tier, digest)

    def record(self, tier: str, digest: str) -> None:
        """Note that a bundle holds the person."""
        self.lineage.record(digest, tier, OWN[tier], cutoff=CUTOFF, ledger_position=self.ledger.position)  # type: ignore[arg-type]

    def judge(self, *, at: dt.datetime = NOW, known: bool = True) -> dict[str, JudgedBundle]:
        """What is found of the bundles in the directory, by tier; `known`: with the index."""
        index = self.lineage if known else None
        found = set_deadlines(self.ledger, bundles=[(self.folder, index)], policy=Policy.default(), at=at)
        return {bundle.tier: bundle for bundle in found if bundle.served}

    def stopping(self) -> set[str]:
        """The tiers whose bundles have a deadline."""
        return {
            tier for tier, digest in self.digests.items() if Revocations.open(self.folder).deadline_of(digest)
        }


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A shop with one person who permits everything."""
    return Shop(tmp_path)


def test_while_everybody_permits_nothing_stops_and_nothing_is_written(shop: Shop) -> None:
    found = shop.judge()
    assert {tier: (each.members, each.ended) for tier, each in found.items()} == {
        tier: (len(OWN[tier]), 0) for tier in TIERS
    }
    assert not shop.stopping()
    assert not (shop.folder / "revocations.json").exists()


@pytest.mark.parametrize(
    ("subject", "stopping", "ended"),
    [
        (
            "v1",
            {"session", "online", "fused", "popular"},
            {"session": 1, "online": 1, "fused": 2, "popular": 1},
        ),
        ("c1", {"crm", "fused", "popular"}, {"crm": 1, "fused": 2, "popular": 1}),
        ("v2", set(), {}),
    ],
)
def test_the_bundles_of_the_source_stop_and_the_joined_one_by_its_link(
    shop: Shop, subject: str, stopping: set[str], ended: dict[str, int]
) -> None:
    """Of the joined bundle both have ended: it holds neither but as one person."""
    shop.ledger.append([said(subject, "withdrawn", 7)])
    found = shop.judge()
    assert shop.stopping() == stopping
    assert {tier: each.ended for tier, each in found.items() if each.ended} == ended
    assert {each.deadline for each in found.values()} - {None} == ({NOW + 30 * DAY} if stopping else set())


def test_a_deadline_that_stands_is_not_prolonged(shop: Shop) -> None:
    shop.ledger.append([said("c1", "withdrawn", 7)])
    first = shop.judge(at=NOW)
    again = shop.judge(at=NOW + 20 * DAY)
    assert {each.deadline for each in again.values()} == {each.deadline for each in first.values()}
    assert first["crm"].deadline == NOW + 30 * DAY


def test_a_deadline_for_another_reason_is_told_too(shop: Shop) -> None:
    revoke(shop.folder, [shop.digests["online"]], NOW + DAY, "withdrawal")
    found = shop.judge()
    assert (found["online"].ended, found["online"].deadline) == (0, NOW + DAY)


def test_whoever_was_erased_from_the_ledger_does_not_permit(shop: Shop) -> None:
    shop.ledger.erase("c1", kind="customer")
    assert shop.judge()["crm"].ended == 1
    assert {"crm", "fused", "popular"} <= shop.stopping()


def test_a_second_customer_on_the_device_ends_what_was_joined(shop: Shop) -> None:
    shop.ledger.append_links([Link("v1", "c9", START + 7 * DAY, "login")])
    assert shop.judge()["fused"].ended == 2
    assert shop.stopping() == {"fused"}


def test_without_an_index_bundles_may_hold_anybody(shop: Shop) -> None:
    found = shop.judge(known=False)
    assert {each.problem for each in found.values()} == {"there is no index of whom it holds"}
    assert shop.stopping() == set(TIERS)


def test_a_bundle_that_the_index_does_not_know_may_hold_anybody(shop: Shop) -> None:
    shop.lineage.drop([shop.digests["crm"]])
    found = shop.judge()
    assert f"does not know the bundle {shop.digests['crm']}" in found["crm"].problem
    assert shop.stopping() == {"crm"}


def test_a_bundle_whose_members_can_be_named_no_more_may_hold_anybody(shop: Shop) -> None:
    now = dt.datetime.now(dt.UTC)
    shop.keyring.rotate(now)
    shop.keyring.prune(now + DAY)
    found = shop.judge()
    assert all("a key that names them was thrown away" in each.problem for each in found.values())
    assert shop.stopping() == set(TIERS)


def test_another_ledger_says_nothing_about_the_bundles(shop: Shop) -> None:
    shop.ledger = Ledger([said("v1", "granted", 0)])
    assert all("it is another ledger" in each.problem for each in shop.judge().values())
    assert shop.stopping() == set(TIERS)


def test_bundles_that_were_replaced_get_their_deadline_too(shop: Shop) -> None:
    """Copies of them may lie in tracked runs and on other machines."""
    former = f"sha256:{'0' * 64}"
    shop.record("crm", former)
    shop.ledger.append([said("c1", "withdrawn", 7)])
    found = set_deadlines(shop.ledger, bundles=[(shop.folder, shop.lineage)], policy=Policy.default(), at=NOW)
    (replaced,) = (each for each in found if not each.served)
    assert (replaced.digest, replaced.tier, replaced.ended) == (former, "crm", 1)
    assert Revocations.open(shop.folder).deadline_of(former) == NOW + 30 * DAY


def test_a_trainer_whose_clock_is_ahead_loses_no_bundle(shop: Shop) -> None:
    assert {each.problem for each in shop.judge(at=CUTOFF - dt.timedelta(seconds=3)).values()} == {""}
    assert not shop.stopping()


def test_a_list_that_cannot_be_read_is_an_error(shop: Shop) -> None:
    (shop.folder / "revocations.json").write_text("{")
    with pytest.raises(BundleError, match="no bundle beside it answers"):
        shop.judge()


def test_a_deadline_in_the_past_is_refused(shop: Shop) -> None:
    with pytest.raises(ValueError, match="before the moment of the question"):
        set_deadlines(shop.ledger, bundles=[], policy=Policy.default(), at=NOW, deadline=-DAY)


# ---- Profiles ----------------------------------------------------------------------------------------------


@pytest.fixture
def profiles(tmp_path: Path) -> SqliteProfiles:
    """Two known visitors, one of whom the ledger knows nothing, and one with attributes alone."""
    store = SqliteProfiles(tmp_path / "online.db")
    for visitor in ("v1", "v2", "v9"):
        store.append(visitor, [Event("item-01", ts=START + DAY), Event("item-02", ts=START + DAY)])
    store.set_attributes("v3", {"device": "phone"}, at=START + DAY)
    return store


def held(store: SqliteProfiles) -> set[str]:
    """Who stands in a store."""
    return {*store, *store.attributes}


def test_whoever_permits_no_more_is_purged_and_all_others_stay(shop: Shop, profiles: SqliteProfiles) -> None:
    shop.ledger.append([said("v1", "denied", 7), said("v3", "granted", 0)])
    before = purge_ended(shop.ledger, profiles, source=Source.ONLINE, at=START + 6 * DAY)
    assert (before.subjects, held(profiles)) == (0, {"v1", "v2", "v3", "v9"})
    found = purge_ended(shop.ledger, profiles, source=Source.ONLINE, at=NOW)
    assert found == PurgedProfiles(profiles.place, subjects=1, rows=2, unknown=1)
    assert held(profiles) == {"v2", "v3", "v9"}
    shop.ledger.append([said("v3", "objected", 8)])
    assert purge_ended(shop.ledger, profiles, source=Source.ONLINE, at=NOW).subjects == 1
    assert held(profiles) == {"v2", "v9"}


def test_a_permission_for_one_source_keeps_no_profile_of_the_other(
    shop: Shop, profiles: SqliteProfiles
) -> None:
    """Visitors and customers go by other ids; who is no customer of the ledger is unknown to it as one."""
    found = purge_ended(shop.ledger, profiles, source=Source.CRM, at=NOW)
    assert (found.subjects, found.unknown) == (0, 4)


def test_a_permission_that_lapsed_is_purged_without_a_record(shop: Shop, profiles: SqliteProfiles) -> None:
    found = purge_ended(shop.ledger, profiles, source=Source.ONLINE, at=NOW + 3650 * DAY)
    assert (found.subjects, found.unknown) == (2, 2)


def test_nobody_has_profiles_of_the_session(shop: Shop, profiles: SqliteProfiles) -> None:
    with pytest.raises(ValueError, match="online or crm"):
        purge_ended(shop.ledger, profiles, source=Source.SESSION, at=NOW)
