"""Asking about everybody at once gives what asking about one after the other gives."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from breaking import Break, assert_breaks, breaks
from consent_cases import Case
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import consent, day, link, shop
from towns import Town, towns

from consentier.consent import Channel, ConsentRecord, Ledger, Link, Policy, Side, Source, Switches, Tier
from consentier.consent.lifetimes import Lifetimes
from consentier.features import consent_intervals
from consentier.features.consent_intervals import ConsentTables
from consentier.features.gate import ledger_of
from consentier.serving import bulk_reach as module
from consentier.serving.bulk_reach import bulk_reach
from consentier.serving.reach import EXISTING_CUSTOMER, reach

Told = tuple[str, tuple[str, ...], str, tuple[str, ...], str | None, tuple[str, ...], bool]
Question = tuple[Town, Channel, Switches]

switches = st.builds(
    Switches,
    crm_on_site=st.booleans(),
    shared_device_login=st.booleans(),
    ads_purpose=st.booleans(),
    fusion_purpose=st.booleans(),
)
questions: st.SearchStrategy[Question] = st.tuples(
    towns(),
    st.sampled_from((Channel.EMAIL, Channel.EMAIL, Channel.SHOP, Channel.SHOP, Channel.ADS)),
    switches,
)


def policy_with(chosen: Switches) -> Policy:
    return Policy("test", Policy.default().matrix, chosen)


def one_by_one(ledger: Ledger, policy: Policy, persons: list[str], channel: Channel, at: dt.datetime) -> Any:
    found: dict[str, Told] = {}
    for person in persons:
        one = reach(ledger, policy, person, channel, at)
        route = policy.route(one.resolution, channel)
        found[person] = (
            one.barrier, tuple(route.tiers), str(route.state), route.reasons, one.customer_id,
            one.devices if one.customer_id is not None else (), one.similar_only,
        )  # fmt: skip
    return found


def at_once(ledger: Ledger, policy: Policy, persons: list[str], channel: Channel, at: dt.datetime) -> Any:
    array = pa.array(persons, pa.string())
    told = bulk_reach(ConsentTables.of(ledger), policy, array, channel, at)
    found: dict[str, Told] = {}
    for place, person in enumerate(told.persons.to_pylist()):
        cell = told.states[told.cells[place]]
        devices = told.devices[told.device_starts[place] : told.device_starts[place + 1]].to_pylist()
        found[person] = (
            cell.barrier, tuple(cell.route.tiers), str(cell.route.state), cell.route.reasons,
            told.customers[place].as_py(), tuple(devices), bool(told.similar_only[place]),
        )  # fmt: skip
    return found


def check_same(question: Question) -> None:
    """Whom the channel reaches, who answers, and which devices and customer are behind each person."""
    town, channel, chosen = question
    records = [  # some rest on a sale
        dataclasses.replace(record, basis=EXISTING_CUSTOMER) if len(record.record_id) % 2 else record
        for record in town.records
    ]
    ledger, policy = Ledger(records, town.links), policy_with(chosen)
    source = Source.CRM if channel.side is Side.CRM else Source.ONLINE
    persons = sorted({*ledger.subjects(source), "a stranger"})
    assert at_once(ledger, policy, persons, channel, town.at) == one_by_one(
        ledger, policy, persons, channel, town.at
    )
    check_since(ledger, policy, persons, channel, town.at)


def check_since(
    ledger: Ledger, policy: Policy, persons: list[str], channel: Channel, at: dt.datetime
) -> None:
    """Since when each permission has been held that is held."""
    told = bulk_reach(ConsentTables.of(ledger), policy, pa.array(persons, pa.string()), channel, at)
    for place, person in enumerate(persons):
        one = reach(ledger, policy, person, channel, at)
        if channel.side is Side.ONLINE and one.resolution.online:
            assert told.online_since[place] == one.resolution.online_since
        if one.customer_id is None or not one.resolution.crm:
            continue
        assert told.crm_since[place] == one.resolution.crm_since
        own = slice(told.device_starts[place], told.device_starts[place + 1])
        assert dict(
            zip(told.devices[own].to_pylist(), told.devices_since[own].tolist(), strict=True)
        ) == ledger.linked_since(one.customer_id, at=at, fusion_purpose=policy.switches.fusion_purpose)


@settings(max_examples=15, deadline=None)
@given(questions)
def test_everybody_at_once_is_what_one_after_the_other_is(question: Question) -> None:
    check_same(question)


WHILE = (("denied", 5), ("granted", 9))


def plain(*extra: dict[str, Any], identities: Sequence[dict[str, Any]] = ()) -> Town:
    """A town of one house: c1 with two linked devices, and what a test adds."""
    tables = shop(
        consents=[
            *(consent(who, "online") for who in ("v1", "v2")),
            *(consent("c1", what) for what in ("crm", "contact:email")),
            *extra,
        ],
        identities=[*(identities or (link("v1", "c1"), link("v2", "c1")))],
    )
    records = tuple(ConsentRecord(**row) for row in tables.consents.to_pylist())
    links = tuple(Link(**row) for row in tables.identities.to_pylist())
    return Town((Case(records=records, links=links, at=day(30)),))


def test_a_record_id_that_says_two_things_is_a_denial_also_without_a_ledger() -> None:
    """One of the two is about models, which decides nothing here; the shop's tables hold both."""
    tables = shop(
        consents=[
            *(consent(who, "online") for who in ("v1", "v2")),
            consent("c1", "crm", record_id="twice"),
            consent("c1", "model", record_id="twice"),
            consent("c1", "contact:email"),
        ],
        identities=[link("v1", "c1")],
    )
    told = bulk_reach(
        ConsentTables.of_shop(tables, Lifetimes.default()), Policy.default(), pa.array(["c1"]),
        Channel.EMAIL, day(30),
    )  # fmt: skip
    assert told.states[told.cells[0]].route.tiers == (Tier.POPULAR,)
    assert len(told.devices) == 0
    assert one_by_one(ledger_of(tables), Policy.default(), ["c1"], Channel.EMAIL, day(30))["c1"][1] == (
        Tier.POPULAR,
    )


def test_whoever_keeps_models_from_learning_may_still_be_joined_in_an_answer() -> None:
    town = plain(consent("c1", "model", "denied", 2), consent("v1", "model", "denied", 2))
    check_same((town, Channel.EMAIL, Switches()))
    found = at_once(town.ledger(), policy_with(Switches()), ["c1"], Channel.EMAIL, town.at)
    assert found["c1"][-2] == ("v1", "v2")


@pytest.mark.parametrize("channel", list(Channel))
def test_every_channel_of_a_plain_shop(channel: Channel) -> None:
    for number in (0, 2, 4, 9, 15):
        chosen = Switches(
            crm_on_site=bool(number & 1), shared_device_login=bool(number & 2),
            ads_purpose=bool(number & 4), fusion_purpose=bool(number & 8),
        )  # fmt: skip
        check_same((plain(consent("v1", "ads"), consent("c1", "fusion")), channel, chosen))


def test_nobody_to_ask_about() -> None:
    ledger = ledger_of(shop())
    assert at_once(ledger, Policy.default(), [], Channel.EMAIL, day(1)) == {}
    assert at_once(ledger, Policy.default(), ["c"], Channel.EMAIL, day(1)) == one_by_one(
        ledger, Policy.default(), ["c"], Channel.EMAIL, day(1)
    )


OBJECTING = plain(consent("c1", "crm", "objected", 10))
APART_FOR_A_WHILE = plain(
    *(consent(who, "online", state, at) for who in ("v1", "c1") for state, at in WHILE),
    *(consent("v1", "crm", state, at) for state, at in WHILE),
    identities=[link("v1", "c1", 20), link("v2", "c1", 20)],
)
ASKING_FOR_A_LOGIN = Switches(shared_device_login=True)


@breaks(
    Break(
        "an objection is not seen",
        module.standing_now,
        "objected=any_of(objection)",
        "objected=any_of(minority)",
        witness=(OBJECTING, Channel.EMAIL, Switches()),
    ),
    Break(
        "contact is taken for granted",
        module.standing_now,
        'uncontactable=any_of(found.permission == f"contact:{channel}")',
        'uncontactable=any_of(found.permission == "nothing")',
        witness=(plain(consent("c1", "contact:email", "withdrawn", 9)), Channel.EMAIL, Switches()),
    ),
    Break(
        "no login is asked for",
        module.links_now,
        "if policy.switches.shared_device_login and",
        "if False and",
        witness=(plain(), Channel.SHOP, ASKING_FOR_A_LOGIN),
    ),
    Break(
        "a refusal of advertising is not heard",
        module._resolution,
        "if word == _REFUSED",
        "if word > _REFUSED",
        witness=(plain(consent("v1", "ads", "denied", 3)), Channel.ADS, Switches()),
    ),
    Break(
        "the time of a refusal by the customer is not left out of the devices'",
        module.devices_since_of,
        'np.maximum(visitors["since"], np.repeat(customers["opposed_until"], np.diff(device_starts)))',
        'visitors["since"]',
        witness=(APART_FOR_A_WHILE, Channel.EMAIL, Switches()),
    ),
    Break(
        "the time of a refusal by the visitor is not left out of the customer's",
        module.crm_since_of,
        "since[linked] = np.maximum(since[linked], first)",
        "pass",
        witness=(APART_FOR_A_WHILE, Channel.EMAIL, Switches()),
    ),
    Break(
        "a withdrawal that is over is forgotten",
        module.standing_now,
        "since=found.end.max(where=own | objection | minority).fill_null(BEGINNING)",
        "since=found.end.min(where=own | objection | minority).fill_null(BEGINNING)",
        witness=(APART_FOR_A_WHILE, Channel.SHOP, Switches()),
    ),
    Break(
        "a link that a child made holds once the parents consent",
        consent_intervals.hindrances,
        'childhood = ~silent | (spans.following != _rank("lifted"))',
        "childhood = ~silent",
        witness=(plain(consent("v1", "parental", at=5)), Channel.EMAIL, Switches()),
    ),
)
def test_a_broken_rule_shows(broken: Break) -> None:
    assert_breaks(check_same, questions, broken)


def test_what_begins_later_is_unknown_now() -> None:
    town = plain(consent("c2", "crm", at=40), consent("c2", "contact:email", at=40))
    check_same((town, Channel.EMAIL, Switches()))
