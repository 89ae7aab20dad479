"""Third law, in serving: an answer reads nothing older than the permission under which it is read.

Every visitor and customer of a random ledger did something at every instant, as the stores or as the request
tell. What each tier is handed is compared with a rulebook that looks at one instant at a time. And first law,
by the way: what is older changes no byte of an answer.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import json
from collections.abc import Callable, Iterator, Mapping

import pytest
from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, LAST_TICK, Case, at_tick, cases, instants_between, said
from consent_rulebook import Rulebook, customer, visitor
from engines import ITEMS, engine
from hypothesis import given, settings

from consentier.consent import Channel, Ledger, Link, Permission, Policy, Switches, Tier
from consentier.serving import Event, Profiles, Recommender, Request, view
from consentier.serving.query import Query
from consentier.serving.view import PermittedView

POLICY = Policy("test", Policy.default().matrix, Switches(crm_on_site=True))
SIDES = (Channel.SHOP, Channel.EMAIL)

Read = frozenset[tuple[str, dt.datetime]]
"""Of whom, and when, the events are that were read."""


class Recorder:
    """A model that answers nothing, and keeps what it was handed."""

    digest = "sha256:none"

    def __init__(self) -> None:
        self.views: list[PermittedView] = []

    def answer(self, view: PermittedView, query: Query) -> None:
        self.views.append(view)


def happened(who: str, case: Case) -> tuple[Event, ...]:
    """What somebody did: something at every instant; and what nobody knows the time of."""
    dated = [Event(who, when) for when in instants_between(at_tick(-1), case.at)]
    return (Event(f"{who}, some time"), *dated)


def profiles_in(case: Case) -> Profiles:
    """Stores of what everybody did."""
    return Profiles(
        {f"{who}": happened(f"visitor {who}", case) for who in IDS},
        {f"{who}": happened(f"customer {who}", case) for who in IDS},
        deadline=30,
    )


def views_in(case: Case, request: Request, profiles: Profiles | None) -> Iterator[tuple[Tier, PermittedView]]:
    """What each tier is handed that is asked."""
    recorders = {tier: Recorder() for tier in (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED)}
    recommender = Recommender(
        recorders,  # type: ignore[arg-type]
        None,
        POLICY,
        ledger=case.ledger(),
        ledger_deadline=30,
        profiles=profiles,
        clock=lambda: case.at,
    )
    recommender.recommend(request)
    for tier, recorder in recorders.items():
        yield from ((tier, seen) for seen in recorder.views)


def read_in(events: tuple[Event, ...]) -> Read:
    """The events that have a time."""
    return frozenset((event.item_id, event.ts) for event in events if event.ts is not None)


def lawful_in(case: Case, who: str, permitted: Callable[[dt.datetime], bool]) -> Read:
    """Back from now, the instants from which on something was permitted throughout."""
    back = reversed(instants_between(at_tick(-1), case.at))
    return frozenset((who, when) for when in itertools.takewhile(permitted, back))


def online_lawful(case: Case, visitor_id: str, customer_id: str | None) -> Read:
    """What a visitor did, as far as neither side of a request stood in the way since."""
    book = Rulebook(case)

    def permitted(when: dt.datetime) -> bool:
        own = book.permitted(visitor(visitor_id), when)
        return own and (customer_id is None or unopposed(book, customer(customer_id), "online", when))

    return lawful_in(case, f"visitor {visitor_id}", permitted)


def crm_lawful(case: Case, visitor_id: str | None, customer_id: str) -> Read:
    """What a customer did, in the same way."""
    book = Rulebook(case)

    def permitted(when: dt.datetime) -> bool:
        own = book.permitted(customer(customer_id), when)
        return own and (visitor_id is None or unopposed(book, visitor(visitor_id), "crm", when))

    return lawful_in(case, f"customer {customer_id}", permitted)


def unopposed(book: Rulebook, other: tuple[str, str], permission: str, when: dt.datetime) -> bool:
    """Whether somebody let the other's permission count."""
    return not (
        book.verdict(other, permission, when) == "refused"  # type: ignore[arg-type]
        or book.objected(other, when)  # type: ignore[arg-type]
        or book.minor(other, when)  # type: ignore[arg-type]
    )


def check_only_what_was_permitted_ever_since_is_read(case: Case) -> None:
    """By every tier, for all pairs of ids, from stores and from requests."""
    book, stores = Rulebook(case), profiles_in(case)
    for visitor_id, customer_id, channel in itertools.product((None, *IDS), (None, *IDS), SIDES):
        asked = Request(
            visitor_id=visitor_id, customer_id=customer_id, linked=True, channel=channel, at=case.at
        )
        for tier, seen in views_in(case, asked, stores):
            online, crm = Read(), Read()
            if "online" in seen.sources:
                assert visitor_id is not None
                online = online_lawful(case, visitor_id, customer_id)
            if tier is Tier.FUSED:
                assert customer_id is not None
                devices = [each for each in IDS if book.customer_of(each) == customer_id]
                pairs = [(visitor(each), customer(customer_id)) for each in devices]
                joined = [
                    each
                    for each, pair in zip(devices, pairs, strict=True)
                    if book.fusible(*pair, case.at, required=False)
                ]
                online = Read().union(*(online_lawful(case, each, customer_id) for each in joined))
            if "crm" in seen.sources:
                assert customer_id is not None
                crm = crm_lawful(case, visitor_id, customer_id)
            assert read_in(seen.online_history) == online
            assert read_in(seen.crm_history) == crm
            assert all(event.ts is not None for event in (*seen.online_history, *seen.crm_history))
        check_what_a_request_brings(case, asked)


def check_what_a_request_brings(case: Case, asked: Request) -> None:
    """The same of histories that a request brings; what has no time there is the shop's word, and stays."""
    told = dataclasses.replace(
        asked,
        online_history=happened(f"visitor {asked.visitor_id}", case),
        crm_history=happened(f"customer {asked.customer_id}", case),
    )
    for _, seen in views_in(case, told, None):
        if "online" in seen.sources:
            assert asked.visitor_id is not None
            assert read_in(seen.online_history) == online_lawful(case, asked.visitor_id, asked.customer_id)
            assert seen.online_history[0].ts is None
        if "crm" in seen.sources:
            assert asked.customer_id is not None
            assert read_in(seen.crm_history) == crm_lawful(case, asked.visitor_id, asked.customer_id)
            assert seen.crm_history[0].ts is None


asked_now = cases().map(lambda case: Case(case.records, case.links, case.at))


@settings(max_examples=40, deadline=None)
@given(asked_now)
def test_nothing_is_read_that_was_not_permitted_from_the_event_until_now(case: Case) -> None:
    check_only_what_was_permitted_ever_since_is_read(case)


def both(*records: object, **options: object) -> Case:
    """Visitor a logged in as customer a, and b too; both permit; and then these records."""
    consents = [said(f"online {who}", "granted", 0, subject=who) for who in IDS]
    consents.append(said("crm", "granted", 0, permission="crm", kind="customer"))
    links = tuple(Link(who, "a", at_tick(int(str(options.get("login", 7))))) for who in IDS)
    return Case((*consents, *records), links, at_tick(LAST_TICK))  # type: ignore[arg-type]


AGAIN = both(said("stop", "withdrawn", 2), said("again", "granted", 4))
CUSTOMER_AGAIN = both(
    said("stop", "withdrawn", 2, permission="crm", kind="customer"),
    said("again", "granted", 4, permission="crm", kind="customer"),
)
REFUSED_BY_THE_CUSTOMER = both(
    said("no", "denied", 2, permission="online", kind="customer"),
    said("yes", "granted", 4, permission="online", kind="customer"),
)
CHILD = both(said("parents", "granted", 4, permission="parental", kind="customer"))
REFUSED_BY_THE_VISITOR = both(
    said("no", "denied", 2, permission="crm"), said("yes", "granted", 4, permission="crm")
)


@pytest.mark.parametrize(
    "case", [AGAIN, CUSTOMER_AGAIN, REFUSED_BY_THE_CUSTOMER, REFUSED_BY_THE_VISITOR, CHILD]
)
def test_a_later_grant_makes_nothing_earlier_readable(case: Case) -> None:
    check_only_what_was_permitted_ever_since_is_read(case)
    asked = Request(visitor_id="a", customer_id="a", linked=True, at=case.at)
    (fused,) = (seen for tier, seen in views_in(case, asked, profiles_in(case)) if tier is Tier.FUSED)
    assert 0 < len(fused.online_history) + len(fused.crm_history) < 3 * len(happened("a", case)) - 3


def test_without_a_ledger_the_caller_answers_for_how_old_a_history_is() -> None:
    history = (Event("long ago", at_tick(0)), Event("some time"))
    request = Request(permission=Permission.ONLINE, online_history=history, at=at_tick(LAST_TICK))
    recorder = Recorder()
    Recommender({Tier.ONLINE: recorder}, None, POLICY).recommend(request)  # type: ignore[dict-item]
    assert [seen.online_history for seen in recorder.views] == [history]


OF_STORES = (
    Break("a history in a store is read whole", view._stored, "event.ts >= begun", "True", AGAIN),
    Break(
        "events of a store that have no time are read",
        view._stored,
        "event.ts is not None and",
        "event.ts is None or",
        AGAIN,
    ),
)


@breaks(
    Break(
        "a history in a request is read whole",
        view._stated,
        "event.ts >= begun",
        "True",
        AGAIN,
    ),
    *OF_STORES,
    Break(
        "the devices of a customer are read whole",
        view._online,
        "_stored(found, begun,",
        "_stored(found, begun if len(devices) < 2 else None,",
        AGAIN,
    ),
    Break(
        "the CRM history is read whole",
        Recommender._try,
        "crm_since=asked.resolution.crm_since",
        "crm_since=None",
        CUSTOMER_AGAIN,
    ),
    Break(
        "the online history is read whole",
        Recommender._try,
        "online_since=asked.resolution.online_since",
        "online_since=None",
        AGAIN,
    ),
    Break(
        "what the customer refused is read once the refusal is taken back",
        Ledger.resolve,
        '(of_visitor, *_unopposed(customer, "online", instant))',
        "(of_visitor,)",
        REFUSED_BY_THE_CUSTOMER,
    ),
    Break(
        "what the visitor refused is read once the refusal is taken back",
        Ledger.resolve,
        '(of_customer, *_unopposed(visitor, "crm", instant))',
        "(of_customer,)",
        REFUSED_BY_THE_VISITOR,
    ),
    Break(
        "of the devices, what the customer refused is read",
        Ledger.linked_since,
        "(_visitor_timeline(visitor, instant), *unopposed)",
        "(_visitor_timeline(visitor, instant),)",
        REFUSED_BY_THE_CUSTOMER,
    ),
    Break(
        "what a child did is read once the parents consent",
        Ledger.linked_since,
        "(_visitor_timeline(visitor, instant), *unopposed)",
        "(_visitor_timeline(visitor, instant),)",
        CHILD,
    ),
)
def test_reading_what_is_older_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_only_what_was_permitted_ever_since_is_read, asked_now, broken)


# ---- The first law ---------------------------------------------------------------------------------------


def check_what_is_older_changes_nothing(case: Case) -> None:
    """Two shops whose stores differ in what may not be read, and in nothing else, answer alike."""
    for visitor_id, customer_id, channel in itertools.product(IDS, (None, *IDS), SIDES):
        asked = Request(
            visitor_id=visitor_id, customer_id=customer_id, linked=True, channel=channel, at=case.at, n=12
        )
        answers = {
            json.dumps(
                dataclasses.replace(
                    engine(), policy=POLICY, ledger=case.ledger(), ledger_deadline=30, profiles=stores
                )
                .recommend(asked)
                .to_dict()
            )
            for stores in (differing(case, visitor_id, customer_id, older) for older in (None, *ITEMS[6:8]))
        }
        assert len(answers) == 1


def differing(case: Case, visitor_id: str, customer_id: str | None, older: str | None) -> Profiles:
    """Stores in which everything that may not be read is of one item, or is not there at all."""

    def history(lawful: Read) -> list[Event]:
        may = {when for _, when in lawful}
        moments = instants_between(at_tick(-1), case.at)
        events = [Event(ITEMS[0] if when in may else older or "", when) for when in moments]
        undated = [Event(older)] if older else []
        return [*undated, *(event for event in events if event.item_id)]

    online = {each: history(online_lawful(case, each, customer_id)) for each in IDS}
    crm: Mapping[str, list[Event]] = (
        {} if customer_id is None else {customer_id: history(crm_lawful(case, visitor_id, customer_id))}
    )
    return Profiles(online, crm, deadline=30)


@settings(max_examples=25, deadline=None)
@given(asked_now)
def test_what_is_older_than_the_permission_changes_no_byte_of_an_answer(case: Case) -> None:
    check_what_is_older_changes_nothing(case)


@breaks(
    *OF_STORES,
)
def test_that_what_is_older_changes_an_answer_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_what_is_older_changes_nothing, asked_now, broken)
