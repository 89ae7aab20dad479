"""Replaying a decision from its line, and what stands in the way of it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from engines import CATALOGUE, ITEMS, bundles, write_linear, write_popular

from consentier.consent import Channel, ConsentRecord, Ledger, Link, Permission, Policy, Tier
from consentier.consent.keyring import Keyring
from consentier.errors import AuditError, DataError
from consentier.serving import Answer, Catalogue, Event, Profiles, Recommender, Request
from consentier.serving.audit import AuditLine, JsonLinesAudit, audit_lines
from consentier.serving.profile_store import SqliteProfiles
from consentier.serving.replay import Outcome, Replay, ReplayInputs, replay
from consentier.serving.revocation import PAST_DEADLINE, revoke

AT = dt.datetime(2026, 3, 1, 12, 34, 56, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
BOTH = Permission.ONLINE | Permission.CRM

REQUEST = Request(
    session=(Event(ITEMS[1], event_type="cart"),),
    online_history=(Event(ITEMS[2], ts=AT - DAY),),
    crm_history=(Event(ITEMS[3], ts=AT - 2 * DAY, event_type="order", quantity=2),),
    attributes={"region": "north", "age": 40},
    visitor_id="v-1",
    customer_id="c-1",
    linked=True,
    permission=BOTH,
    at=AT,
    n=5,
)


@pytest.fixture
def keyring() -> Keyring:
    """Keys for one test."""
    return Keyring.ephemeral()


class Audited:
    """A recommender whose answers leave lines. Its clock stands before what requests name."""

    def __init__(self, path: Path, keyring: Keyring, **options: Any) -> None:
        self.path, self.keyring = path, keyring
        known = {"clock": lambda: AT - 99 * DAY, **options}
        self.engine = Recommender.load(
            bundles(), keyring=keyring, audit=JsonLinesAudit(path, keyring), **known
        )

    def ask(self, request: Request) -> tuple[Answer, AuditLine]:
        """The answer, and its line."""
        answer = self.engine.recommend(request)
        *_, line = audit_lines(self.path)
        return answer, line

    def replay(self, line: AuditLine, request: Request, **options: Any) -> Replay:
        """The line given again by bundles opened anew."""
        fresh = Recommender.load(bundles(), **options)
        return replay(line, ReplayInputs(request), fresh, self.keyring)


@pytest.fixture
def audited(tmp_path: Path, keyring: Keyring) -> Audited:
    """A recommender with an audit of its own."""
    return Audited(tmp_path / "audit", keyring)


@pytest.mark.parametrize("permission", [Permission.ONLINE, Permission.CRM, BOTH])
@pytest.mark.parametrize("channel", [Channel.SHOP, Channel.ADS, Channel.EMAIL])
@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("n", [2, 14])
def test_an_answer_is_given_again_bit_for_bit(
    audited: Audited, permission: Permission, channel: Channel, linked: bool, n: int
) -> None:
    request = dataclasses.replace(REQUEST, permission=permission, channel=channel, linked=linked, n=n)
    answer, line = audited.ask(request)
    again = audited.replay(line, request)
    if line.trace is None:
        assert again.outcome is Outcome.NOTHING_KEPT
        return
    assert again.outcome is Outcome.REPRODUCED, again.detail
    assert again.answer is not None
    assert (again.answer.tier, again.answer.items, again.answer.scores) == (
        answer.tier,
        answer.items,
        answer.scores,
    )


def test_a_store_that_cannot_be_read_is_not_taken_for_an_empty_one(audited: Audited) -> None:
    class Broken(dict[str, Any]):
        def __getitem__(self, subject: str) -> Any:
            raise OSError(f"no row of {subject}")

    _, line = audited.ask(REQUEST)
    asked = dataclasses.replace(REQUEST, online_history=None)
    with pytest.raises(DataError, match="online profiles: failed with OSError; try again") as failure:
        replay(
            line,
            ReplayInputs(asked),
            Recommender.load(bundles()),
            audited.keyring,
            profiles=Profiles(online=Broken()),
        )
    assert "v-1" not in str(failure.value)


def test_filters_and_the_product_page_are_given_again(audited: Audited) -> None:
    request = dataclasses.replace(REQUEST, exclude=ITEMS[4:6], allow=ITEMS[:9], placement="product")
    _, line = audited.ask(request)
    assert audited.replay(line, request).outcome is Outcome.REPRODUCED
    for change, what in (
        ({"exclude": ITEMS[4:7]}, "exclude"),
        ({"exclude": ()}, "exclude"),
        ({"allow": None}, "allow"),
    ):
        found = audited.replay(line, dataclasses.replace(request, **change))
        assert (found.outcome, found.detail) == (Outcome.INPUTS_DIFFER, f"not what was read then: {what}")


def test_the_item_of_a_product_page_is_checked_where_no_session_was_read(
    audited: Audited, tmp_path: Path
) -> None:
    only = tmp_path / "only-popular"
    write_popular_only(only)
    audited.engine = dataclasses.replace(
        Recommender.load(only), keyring=audited.keyring, audit=audited.engine.audit
    )
    request = dataclasses.replace(REQUEST, placement="product", permission=Permission.ONLINE)
    _, line = audited.ask(request)
    assert (line.tier, line.sources) == (Tier.POPULAR, ())
    fresh = Recommender.load(only)
    assert replay(line, ReplayInputs(request), fresh, audited.keyring).outcome is Outcome.REPRODUCED
    other = dataclasses.replace(request, session=(ITEMS[5],))
    found = replay(line, ReplayInputs(other), fresh, audited.keyring)
    assert found.outcome is Outcome.INPUTS_DIFFER
    assert "product page" in found.detail


def write_popular_only(path: Path) -> None:
    """A directory with the popular list alone."""
    path.mkdir()
    write_popular(path / "popular")


@pytest.mark.parametrize(
    ("change", "outcome", "words"),
    [
        ({"session": ()}, Outcome.INPUTS_ERASED, "session"),
        ({"online_history": None}, Outcome.INPUTS_ERASED, "online"),
        ({"crm_history": None, "attributes": None}, Outcome.INPUTS_ERASED, "crm, attributes"),
        ({"online_history": (ITEMS[2],)}, Outcome.INPUTS_DIFFER, "online"),
        ({"attributes": {"region": "south", "age": 40}}, Outcome.INPUTS_DIFFER, "attributes"),
        ({"visitor_id": "v-2"}, Outcome.INPUTS_DIFFER, "visitor_id"),
        ({"customer_id": "c-2"}, Outcome.INPUTS_DIFFER, "customer_id"),
    ],
)
def test_inputs_that_are_gone_or_others_are_named(
    audited: Audited, change: dict[str, Any], outcome: Outcome, words: str
) -> None:
    _, line = audited.ask(REQUEST)
    found = audited.replay(line, dataclasses.replace(REQUEST, **change))
    assert (found.outcome, found.answer) == (outcome, None)
    assert found.detail.endswith(words)


def test_ids_need_not_be_given(audited: Audited) -> None:
    _, line = audited.ask(REQUEST)
    anonymous = dataclasses.replace(REQUEST, visitor_id=None, customer_id=None)
    assert audited.replay(line, anonymous).outcome is Outcome.REPRODUCED


def test_without_permission_nothing_was_kept_to_compare_with(audited: Audited) -> None:
    _, line = audited.ask(dataclasses.replace(REQUEST, permission=Permission.NONE))
    assert audited.replay(line, REQUEST).outcome is Outcome.NOTHING_KEPT


def test_a_rotated_key_still_checks_and_a_pruned_one_is_named(audited: Audited) -> None:
    _, line = audited.ask(REQUEST)
    old = audited.keyring.current_id
    now = dt.datetime.now(dt.UTC)
    audited.keyring.rotate(now)
    assert audited.replay(line, REQUEST).outcome is Outcome.REPRODUCED
    assert audited.keyring.prune(now + DAY) == [old]
    found = audited.replay(line, REQUEST)
    assert found.outcome is Outcome.KEY_GONE
    assert old in found.detail


def test_another_policy_is_named(audited: Audited) -> None:
    _, line = audited.ask(REQUEST)
    default = Policy.default()
    other = dataclasses.replace(default, version="shop-2")
    found = audited.replay(line, REQUEST, policy=other)
    assert (found.outcome, found.detail) == (
        Outcome.POLICY_CHANGED,
        "the line was written under policy 'consentier-default-1'; this is 'shop-2'",
    )
    cell = (line.state, line.side)
    for tiers, words in (
        ((Tier.ONLINE, Tier.FUSED), "asks the online tier first"),
        ((Tier.ONLINE,), "does not let the fused tier answer"),
    ):
        secretly = dataclasses.replace(default, matrix={**default.matrix, cell: tiers})
        found = audited.replay(line, REQUEST, policy=secretly)
        assert found.outcome is Outcome.POLICY_CHANGED
        assert words in found.detail


def test_another_bundle_is_named(tmp_path: Path, keyring: Keyring) -> None:
    audited = Audited(tmp_path / "audit", keyring, catalogue=CATALOGUE)
    _, line = audited.ask(dataclasses.replace(REQUEST, n=14))
    assert line.fill_digest is not None
    for tier in ("fused", "popular"):
        changed = tmp_path / f"changed-{tier}"
        shutil.copytree(bundles(), changed)
        shutil.rmtree(changed / tier)
        for there in (False, True):
            if there and tier == "fused":
                write_linear(changed / tier, Tier.FUSED, seed=99)
            if there and tier == "popular":
                write_popular(changed / tier, ITEMS[:5])
            found = replay(line, ReplayInputs(REQUEST), Recommender.load(changed), audited.keyring)
            assert found.outcome is Outcome.BUNDLE_CHANGED
            assert f"the {tier} bundle was sha256:" in found.detail
            assert ("here is no such" in found.detail) != there


@pytest.mark.parametrize("tier", [Tier.FUSED, Tier.POPULAR])
def test_a_bundle_that_stopped_after_it_was_loaded_gives_no_answer_again(
    tmp_path: Path, keyring: Keyring, tier: Tier
) -> None:
    """It still holds somebody who withdrew."""
    audited = Audited(tmp_path / "audit", keyring, catalogue=CATALOGUE)
    _, line = audited.ask(dataclasses.replace(REQUEST, n=14))
    shutil.copytree(bundles(), tmp_path / "bundles")
    loaded = Recommender.load(tmp_path / "bundles", catalogue=CATALOGUE)
    assert replay(line, ReplayInputs(REQUEST), loaded, audited.keyring).outcome is Outcome.REPRODUCED
    digest = line.bundle_digest if tier is Tier.FUSED else line.fill_digest
    revoke(tmp_path / "bundles", [str(digest)], loaded.clock() - DAY, "withdrawal")
    found = replay(line, ReplayInputs(REQUEST), loaded, audited.keyring)
    assert found.outcome is Outcome.BUNDLE_CHANGED
    assert f"the {tier} bundle: {PAST_DEADLINE}" in found.detail


def test_another_catalogue_shows_as_another_answer(audited: Audited) -> None:
    answer, line = audited.ask(REQUEST)
    without = Catalogue(frozenset(ITEMS) - {answer.items[0]})
    found = audited.replay(line, REQUEST, catalogue=without)
    assert found.outcome is Outcome.ANSWER_DIFFERS
    assert "catalogue" in found.detail


def test_a_tier_that_answered_for_want_of_a_better_one_answers_again(
    audited: Audited, tmp_path: Path
) -> None:
    lowered = tmp_path / "lowered"
    shutil.copytree(bundles(), lowered)
    shutil.rmtree(lowered / "fused")
    engine = Recommender.load(lowered, keyring=audited.keyring, audit=audited.engine.audit)
    engine.recommend(REQUEST)
    *_, line = audit_lines(audited.path)
    assert line.tier is Tier.ONLINE
    assert audited.replay(line, REQUEST).outcome is Outcome.REPRODUCED


# ---- The shop's profile stores, as the place where inputs can be erased ------------------------------------


@pytest.fixture
def stores(tmp_path: Path) -> tuple[SqliteProfiles, SqliteProfiles]:
    """Stores of one customer with two devices."""
    online, crm = SqliteProfiles(tmp_path / "online.db"), SqliteProfiles(tmp_path / "crm.db")
    for days, (device, item) in enumerate((("v-1", ITEMS[2]), ("v-2", ITEMS[5]), ("v-1", ITEMS[7])), 1):
        online.append(device, [Event(item, AT - days * DAY, "view")])
    crm.append("c-1", [Event(ITEMS[3], AT - 9 * DAY, "order", 1)])
    crm.set_attributes("c-1", {"region": "north"}, at=AT - 9 * DAY)
    return online, crm


@pytest.fixture
def ledger() -> Ledger:
    """Both devices belong to the customer."""
    before = AT - 30 * DAY
    records = [
        *(ConsentRecord(v, v, "visitor", "online", "granted", before, before) for v in ("v-1", "v-2")),
        ConsentRecord("c-1", "c-1", "customer", "crm", "granted", before, before),
    ]
    return Ledger(records, [Link(device, "c-1", before) for device in ("v-1", "v-2")])


def test_inputs_come_from_the_stores_until_they_are_purged(
    tmp_path: Path, keyring: Keyring, ledger: Ledger, stores: tuple[SqliteProfiles, SqliteProfiles]
) -> None:
    online, crm = stores
    profiles = Profiles(online, crm, crm.attributes, deadline=30)
    audited = Audited(tmp_path / "audit", keyring, ledger=ledger, profiles=profiles)
    request = Request(
        session=(ITEMS[1],), visitor_id="v-1", customer_id="c-1", linked=True, at=AT
    )  # fmt: skip
    _, line = audited.ask(request)
    assert (line.tier, line.ledger_position) == (Tier.FUSED, 5)
    # What came later was not read then.
    online.append("v-1", [Event(ITEMS[9], AT + DAY)])
    crm.append("c-1", [Event(ITEMS[9], AT + DAY)])
    fresh = Recommender.load(bundles())

    def again(*devices: str) -> Replay:
        return replay(line, ReplayInputs(request, devices), fresh, keyring, profiles=profiles)

    assert again("v-2", "v-1").outcome is Outcome.REPRODUCED
    assert again().outcome is Outcome.INPUTS_DIFFER
    crm.purge("c-1")
    found = again("v-1", "v-2")
    assert (found.outcome, found.detail) == (
        Outcome.INPUTS_ERASED,
        "inputs erased: there is nothing left of crm, attributes",
    )


def test_what_was_older_than_the_permission_is_left_out_again(
    tmp_path: Path, keyring: Keyring, ledger: Ledger, stores: tuple[SqliteProfiles, SqliteProfiles]
) -> None:
    online, crm = stores
    for store, subjects in ((online, ("v-1", "v-2")), (crm, ("c-1",))):
        for subject in subjects:
            store.append(subject, [Event(ITEMS[4], AT - 31 * DAY)])
    profiles = Profiles(online, crm, crm.attributes, deadline=30)
    audited = Audited(tmp_path / "audit", keyring, ledger=ledger, profiles=profiles)
    request = Request(session=(ITEMS[1],), visitor_id="v-1", customer_id="c-1", linked=True, at=AT)
    brought = dataclasses.replace(
        request, online_history=online["v-1"], crm_history=crm["c-1"], attributes={}
    )
    fresh = Recommender.load(bundles())
    lines = [audited.ask(each)[1] for each in (request, brought)]
    ledger.append([ConsentRecord("no", "v-1", "visitor", "online", "withdrawn", AT + DAY, AT + DAY)])
    for line, asked, devices in zip(lines, (request, brought), (("v-1", "v-2"), ()), strict=True):
        assert line.tier is Tier.FUSED

        again = functools.partial(
            replay, line, ReplayInputs(asked, devices), fresh, keyring, profiles=profiles
        )
        found = again(ledger=ledger)
        assert found.outcome is Outcome.REPRODUCED, found.detail
        assert again().outcome is Outcome.INPUTS_DIFFER
        with pytest.raises(DataError, match="another ledger"):
            again(ledger=Ledger())


# ---- Inputs from a file ------------------------------------------------------------------------------------


def test_inputs_are_read_from_a_file(tmp_path: Path, audited: Audited) -> None:
    answer, line = audited.ask(REQUEST)
    file = tmp_path / "inputs.json"
    file.write_text(
        json.dumps(
            {
                "session": [{"item_id": ITEMS[1], "event_type": "cart"}],
                "online_history": [{"item_id": ITEMS[2], "ts": (AT - DAY).isoformat()}],
                "crm_history": [
                    {"item_id": ITEMS[3], "ts": "2026-02-27T12:34:56Z", "event_type": "order", "quantity": 2}
                ],
                "attributes": {"age": 40, "region": "north"},
                "visitor_id": "v-1",
            }
        )
    )
    found = replay(line, ReplayInputs.load(file), Recommender.load(bundles()), audited.keyring)
    assert found.answer is not None
    assert found.answer.items == answer.items


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "no JSON object"),
        ("{", "not what a replay takes"),
        ('{"sesion": []}', "unknown field 'sesion'"),
        ('{"session": "a"}', "session must be a list"),
        ('{"session": [1]}', "neither an item id nor an event"),
        ('{"session": [{"ts": null}]}', "neither an item id nor an event"),
        ('{"session": [{"item_id": "a", "price": 1}]}', "neither an item id nor an event"),
        ('{"session": [{"item_id": "a", "ts": "today"}]}', "not what a replay takes"),
        ('{"devices": "v"}', "devices must be a list"),
        ('{"exclude": "a"}', "exclude must be a collection"),
    ],
)
def test_inputs_that_are_none_are_refused(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "inputs.json"
    file.write_text(content)
    with pytest.raises(AuditError, match=words):
        ReplayInputs.load(file)
    with pytest.raises(AuditError, match="cannot be read"):
        ReplayInputs.load(tmp_path / "absent.json")
