"""A withdrawal from end to end: recorded first, then all that was kept under the permission goes."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from engines import bundles as written_bundles

from consentier.consent import Channel, ConsentRecord, Ledger, Link, Source
from consentier.consent.keyring import Keyring
from consentier.errors import DataError, LedgerError
from consentier.models.bundle import open_bundle
from consentier.serving import Event, Profiles, Recommender, Request
from consentier.serving.profile_store import SqliteProfiles
from consentier.serving.revocation import Revocations
from consentier.training.lineage import Lineage
from consentier.training.withdrawal import ProfileStore, Withdrawal, withdraw, withdraw_contact

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
NOW = START + 10 * DAY
DEADLINE = dt.timedelta(days=30)


def granted(subject: str, permission: str) -> ConsentRecord:
    kind = "visitor" if subject.startswith("v") else "customer"
    return ConsentRecord(
        f"{subject} {permission}", subject, kind, permission, "granted", valid_from=START, recorded_at=START
    )


@pytest.fixture
def ledger() -> Ledger:
    """Customer c1 with the devices v1 and v2, and c2 with none."""
    people = [("v1", "online"), ("v2", "online"), ("v3", "online"), ("c1", "crm"), ("c2", "crm")]
    links = [Link("v1", "c1", START + DAY, "login"), Link("v2", "c1", START + DAY, "login")]
    return Ledger([granted(*each) for each in people], links)


@pytest.fixture
def stores(tmp_path: Path) -> dict[Source, SqliteProfiles]:
    """Profiles of everybody."""
    online, crm = SqliteProfiles(tmp_path / "online.db"), SqliteProfiles(tmp_path / "crm.db")
    for visitor in ("v1", "v2", "v3"):
        online.append(visitor, [Event("item-01", ts=START + DAY)])
    for customer in ("c1", "c2"):
        crm.append(customer, [Event("item-02", ts=START + DAY, event_type="order")])
    return {Source.ONLINE: online, Source.CRM: crm}


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """Bundles of all tiers, in a directory of their own."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    for bundle in written_bundles().iterdir():
        (folder / bundle.name).symlink_to(bundle)
    return folder


def digests(bundles: Path) -> dict[str, str]:
    return {path.name: open_bundle(path).digest for path in bundles.iterdir() if path.is_dir()}


def lineage_of(bundles: Path, members: dict[str, list[tuple[str, str]]]) -> Lineage:
    lineage = Lineage(bundles.parent / "lineage.db", Keyring.open(bundles.parent / "keys.json"))
    for tier, digest in digests(bundles).items():
        lineage.record(digest, tier, members.get(tier, []), cutoff=NOW, ledger_position=5)  # type: ignore[arg-type]
    return lineage


def test_the_next_request_drops_tier_and_profile_and_link_are_gone(
    ledger: Ledger, stores: dict[Source, SqliteProfiles], bundles: Path
) -> None:
    profiles = Profiles(online=stores[Source.ONLINE], crm=stores[Source.CRM], deadline=30)
    recommender = Recommender.load(bundles, ledger=ledger, profiles=profiles)
    request = Request(visitor_id="v1", customer_id="c1", linked=True, session=["item-03"], at=NOW)
    assert recommender.recommend(request).tier == "fused"

    done = withdraw(
        ledger, "c1", kind="customer", source=Source.CRM, at=NOW,
        profiles={source: [store] for source, store in stores.items()},
    )  # fmt: skip

    assert recommender.recommend(request).tier == "online"
    assert (done.recorded, done.links_dissolved, done.profile_rows_purged) == (1, 2, 1)
    assert not ledger.links_of("c1", kind="customer")
    assert not stores[Source.CRM].export("c1")
    assert stores[Source.CRM].export("c2")
    assert stores[Source.ONLINE].export("v1"), "the other source's profile stays"


def test_a_customer_withdraws_online_for_the_linked_devices_too(
    ledger: Ledger, stores: dict[Source, SqliteProfiles]
) -> None:
    done = withdraw(
        ledger, "c1", kind="customer", source=Source.ONLINE, at=NOW,
        profiles={Source.ONLINE: [stores[Source.ONLINE]]},
    )  # fmt: skip
    assert set(done.subjects) == {("customer", "c1"), ("visitor", "v1"), ("visitor", "v2")}
    assert done.profile_rows_purged == 2
    for visitor, held in (("v1", False), ("v2", False), ("v3", True)):
        assert ledger.resolve(visitor_id=visitor, at=NOW).online == held
    assert ledger.resolve(customer_id="c1", at=NOW).crm


def test_a_device_never_withdraws_for_a_customer(ledger: Ledger) -> None:
    done = withdraw(ledger, "v1", kind="visitor", source=Source.CRM, at=NOW)
    assert done.subjects == (("visitor", "v1"),)
    assert ledger.resolve(customer_id="c1", at=NOW).crm
    assert not ledger.resolve(visitor_id="v1", customer_id="c1", at=NOW).linked


@pytest.mark.parametrize(
    ("subject", "kind", "source", "stopped"),
    [
        ("c1", "customer", Source.CRM, {"crm", "fused", "popular"}),
        ("v1", "visitor", Source.ONLINE, {"session", "online", "fused", "popular"}),
        ("c1", "customer", Source.ONLINE, {"session", "online", "fused", "popular"}),
        ("c2", "customer", Source.CRM, set()),
    ],
)
def test_bundles_that_hold_the_subject_get_a_deadline_and_no_others(
    ledger: Ledger, bundles: Path, subject: str, kind: str, source: Source, stopped: set[str]
) -> None:
    everywhere = {tier: [("customer", "c1"), ("visitor", "v1")] for tier in digests(bundles)}
    lineage = lineage_of(bundles, everywhere)
    done = withdraw(
        ledger,
        subject,
        kind=kind,
        source=source,
        at=NOW,
        bundles=[(bundles, lineage)],  # type: ignore[arg-type]
    )
    assert {bundle.tier for bundle in done.bundles} == stopped
    revocations = Revocations.open(bundles)
    for tier, digest in digests(bundles).items():
        expected = NOW + DEADLINE if tier in stopped else None
        assert revocations.deadline_of(digest) == expected
    assert done.deadline == (NOW + DEADLINE if stopped else None)


@pytest.mark.parametrize("known", [False, True])
def test_a_bundle_of_which_nothing_is_known_may_hold_anybody(
    ledger: Ledger, bundles: Path, known: bool
) -> None:
    lineage = Lineage(bundles.parent / "l.db", Keyring.ephemeral()) if known else None
    done = withdraw(ledger, "c2", kind="customer", source=Source.CRM, at=NOW, bundles=[(bundles, lineage)])
    assert {bundle.tier for bundle in done.bundles} == {"crm", "fused", "popular"}


def test_a_bundle_whose_members_nobody_can_name_any_more_gets_the_deadline(
    ledger: Ledger, bundles: Path
) -> None:
    lineage_of(bundles, {tier: [("customer", "c1")] for tier in digests(bundles)})
    keyring = Keyring.open(bundles.parent / "keys.json")
    keyring.rotate(keyring.newest_at + DAY)
    keyring.prune(keyring.newest_at + DAY)
    lineage = Lineage(bundles.parent / "lineage.db", Keyring.open(bundles.parent / "keys.json"))
    done = withdraw(ledger, "c1", kind="customer", source=Source.CRM, at=NOW, bundles=[(bundles, lineage)])
    assert {bundle.tier for bundle in done.bundles} == {"crm", "fused", "popular"}


def test_running_it_again_changes_nothing(ledger: Ledger, bundles: Path) -> None:
    for attempt in range(2):
        done = withdraw(ledger, "c1", kind="customer", source=Source.CRM, at=NOW, bundles=[(bundles, None)])
        assert done.recorded == (1 if attempt == 0 else 0)
    later = withdraw(
        ledger, "c1", kind="customer", source=Source.CRM, at=NOW + DAY, bundles=[(bundles, None)]
    )
    assert later.recorded == 1
    digest = digests(bundles)["crm"]
    assert Revocations.open(bundles).deadline_of(digest) == NOW + DEADLINE, "the first deadline stands"


def test_nothing_else_is_done_if_the_ledger_cannot_record_it(
    ledger: Ledger, stores: dict[Source, SqliteProfiles], bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_records: object) -> int:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(ledger, "append", full)
    with pytest.raises(LedgerError, match="full"):
        withdraw(
            ledger, "c1", kind="customer", source=Source.CRM, at=NOW,
            profiles={Source.CRM: [stores[Source.CRM]]}, bundles=[(bundles, None)],
        )  # fmt: skip
    assert stores[Source.CRM].export("c1")
    assert ledger.links_of("c1", kind="customer")
    assert not (bundles / "revocations.json").exists()


def test_a_store_that_is_down_keeps_nothing_else_and_is_purged_the_next_time(
    ledger: Ledger, stores: dict[Source, SqliteProfiles], bundles: Path
) -> None:
    class Down:
        def purge(self, _subject: str) -> int:
            raise DataError("profile store redis://elsewhere: no answer in time")

    def run(*online: ProfileStore) -> Withdrawal:
        return withdraw(
            ledger, "c1", kind="customer", source=Source.ONLINE, at=NOW,
            profiles={Source.ONLINE: online}, bundles=[(bundles, None)],
        )  # fmt: skip

    for attempt in range(2):
        with pytest.raises(DataError, match=r"elsewhere: no answer in time; run it again, at 2"):
            run(Down(), stores[Source.ONLINE])
        assert list(stores[Source.ONLINE]) == ["v3"]
        assert not ledger.resolve(visitor_id="v1", at=NOW).online
        assert not ledger.resolve(visitor_id="v1", customer_id="c1", at=NOW).linked
        assert Revocations.open(bundles).deadline_of(digests(bundles)["online"]) == NOW + DEADLINE
        if attempt == 0:
            stores[Source.ONLINE].append("v2", [Event("item-01", ts=START + DAY)])
    stores[Source.ONLINE].append("v2", [Event("item-01", ts=START + DAY)])
    done = run(stores[Source.ONLINE])
    assert (done.recorded, done.profile_rows_purged, done.links_dissolved) == (0, 1, 2)


def test_what_is_no_withdrawal_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="online or crm"):
        withdraw(ledger, "c1", kind="customer", source=Source.SESSION, at=NOW)
    with pytest.raises(ValueError, match="before"):
        withdraw(ledger, "c1", kind="customer", source=Source.CRM, at=NOW, deadline=-DAY)


def test_a_grant_of_contact_that_lies_ahead_is_withdrawn_too(ledger: Ledger) -> None:
    """A clock that is ahead of the trainer's recorded it."""
    ahead = dt.datetime.now(dt.UTC) + 2 * DAY
    ledger.append([
        granted("c1", "contact:email"),
        ConsentRecord(
            "later", "c1", "customer", "contact:email", "granted", valid_from=ahead, recorded_at=ahead
        ),
    ])  # fmt: skip
    assert withdraw_contact(ledger, "c1", Channel.EMAIL, at=NOW).recorded == 2
    assert not ledger.resolve(customer_id="c1", at=ahead + DAY).contact
    with pytest.raises(ValueError, match="nobody is contacted in"):
        withdraw_contact(ledger, "c1", Channel.SHOP, at=NOW)
