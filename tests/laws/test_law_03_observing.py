"""Third law, where events are taken in: one is stored only if permission held from it until now.

And fifth, by the way: a refusal more never lets anything be stored that was not stored without it.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable
from typing import Any

from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, LAST_TICK, Case, at_tick, cases, instants_between, refused_cases, said
from consent_rulebook import Rulebook, customer, visitor
from hypothesis import given, settings

from consentier.consent import Ledger, Permission, Resolution, Source
from consentier.serving import Event, Profiles, observing
from consentier.serving.observing import Observed, observe

SUBJECT_OF = {Source.ONLINE: visitor, Source.CRM: customer}


class Memory(dict[str, list[Event]]):
    """A store of profiles that lies in memory."""

    def append(self, subject: str, events: list[Event]) -> None:
        self.setdefault(subject, []).extend(events)

    def purge(self, subject: str) -> int:
        return len(self.pop(subject, ()))


def ticking(now: dt.datetime) -> Callable[[], dt.datetime]:
    """A clock that goes on whenever somebody looks at it, as clocks do."""
    looks = itertools.count()
    return lambda: now + dt.timedelta(microseconds=next(looks))


def seen(
    ledger: Any,
    source: Source,
    subject: str,
    now: dt.datetime,
    happened: dt.datetime,
    declared: Permission | None = None,
    before: Callable[[], object] = lambda: None,
) -> tuple[Observed, list[Event]]:
    """What becomes of one event, and what then stands in the store of its source and in no other."""

    class Store(Memory):
        def append(self, subject: str, events: list[Event]) -> None:
            super().append(subject, events)
            before()

    stores = {Source.ONLINE: Store(), Source.CRM: Store()}
    outcome = observe(
        Event("item-01", happened),
        visitor_id=subject if source is Source.ONLINE else None,
        customer_id=subject if source is Source.CRM else None,
        permission=declared,
        ledger=ledger,
        profiles=Profiles(online=stores[Source.ONLINE], crm=stores[Source.CRM], deadline=30),
        clock=ticking(now),
    )
    own = stores.pop(source)
    assert all(not store for store in stores.values()), "an event went into the other source's store"
    assert set(own) <= {subject}
    return outcome, own.get(subject, [])


def check_stored_only_if_permitted_ever_since(case: Case) -> None:
    """Of every visitor and customer, for every time of the event."""
    book, ledger = Rulebook(case), case.ledger()
    for source, subject_of in SUBJECT_OF.items():
        for subject_id in IDS:
            subject = subject_of(subject_id)
            lawful = True
            for happened in reversed(instants_between(at_tick(-1), case.at)):
                # Contributing to models is another matter: a profile is what answers may read.
                lawful = lawful and book.permitted(subject, happened)
                outcome, stored = seen(ledger, source, subject_id, case.at, happened)
                assert outcome.stored == lawful == bool(stored), outcome.reason
                undeclared, stored = seen(ledger, source, subject_id, case.at, happened, Permission.NONE)
                assert not undeclared.stored
                assert not stored
            ahead, stored = seen(ledger, source, subject_id, case.at, case.at + dt.timedelta(seconds=1))
            assert not ahead.stored
            assert not stored


asked_now = cases().map(lambda case: Case(case.records, case.links, case.at))


@settings(max_examples=60)
@given(asked_now)
def test_nothing_is_stored_that_was_not_permitted_from_the_event_until_now(case: Case) -> None:
    check_stored_only_if_permitted_ever_since(case)


@settings(max_examples=60)
@given(refused_cases())
def test_a_refusal_more_lets_nothing_more_be_stored(pair: tuple[Case, Case]) -> None:
    case, refused = pair
    for source in SUBJECT_OF:
        for subject in IDS:
            for happened in (case.at, case.at - dt.timedelta(minutes=12)):
                after, _ = seen(refused.ledger(), source, subject, case.at, happened)
                before, _ = seen(case.ledger(), source, subject, case.at, happened)
                assert before.stored >= after.stored


def check_nothing_is_left_of_what_a_withdrawal_crossed(case: Case) -> None:
    """The ledger learns of more, and the store is purged, while an event is being stored."""
    start, *more = case.records
    for source in SUBJECT_OF:
        for subject in IDS:
            ledger = Ledger([start])
            outcome, stored = seen(
                ledger, source, subject, case.at, case.at, before=lambda ledger=ledger: ledger.append(more)
            )
            permitted = Rulebook(case).permitted(SUBJECT_OF[source](subject), case.at)
            assert outcome.stored == bool(stored)
            assert not stored or permitted


crossed = asked_now.filter(lambda case: len(case.records) > 1)


@settings(max_examples=60)
@given(crossed)
def test_nothing_is_left_of_an_event_that_a_withdrawal_crossed(case: Case) -> None:
    check_nothing_is_left_of_what_a_withdrawal_crossed(case)


WITHDRAWN = Case((said("first", "granted", 0), said("stop", "withdrawn", 2)), (), at_tick(LAST_TICK))
AGAIN = Case((*WITHDRAWN.records, said("again", "granted", 4)), (), at_tick(LAST_TICK))


@breaks(
    Break(
        "the permission is not looked at",
        observing._Arrival.refusal,
        "if _NEEDED[self.source] not in resolution.permission:",
        "if False:",
        WITHDRAWN,
    ),
    Break(
        "either permission will do",
        observing._Arrival.refusal,
        "_NEEDED[self.source] not in resolution.permission",
        "not resolution.permission",
        Resolution(crm=True, online_since=0),
    ),
    Break(
        "an objection is not looked at",
        observing._Arrival.refusal,
        "_NEEDED[self.source] not in resolution.permission",
        "not (resolution.online if self.source is Source.ONLINE else resolution.crm)",
        Resolution(online=True, objected=True, online_since=0),
    ),
    Break(
        "a later grant legalises earlier events",
        observing._Arrival.refusal,
        "if microseconds(self.at) < since:",
        "if False:",
        AGAIN,
    ),
    Break(
        "a ledger that does not say since when is taken to say always",
        observing._Arrival.refusal,
        "late = self.ledger is not None and self.at < self.arrived",
        "late = False",
        Resolution(online=True),
    ),
    Break(
        "an event may lie in the future",
        observing.observe,
        "if arrival.at > now:",
        "if False:",
        Case((said("on", "granted", 0),), (), at_tick(4)),
    ),
    Break(
        "the ledger's word is replaced by the caller's",
        observing._Arrival.resolve,
        "found.intersected(self.declared)",
        "Resolution.declared(self.declared)",
        None,
    ),
)
def test_an_event_stored_without_permission_would_be_noticed(broken: Break) -> None:
    if broken.witness is None:
        declared_on_top(broken)
    elif isinstance(broken.witness, Resolution):
        resolved_so(broken, broken.witness)
    else:
        assert_breaks(check_stored_only_if_permitted_ever_since, asked_now, broken)


def declared_on_top(broken: Break) -> None:
    """With the rule broken, a declared permission outranks the ledger."""
    now = WITHDRAWN.at

    def stored() -> bool:
        return seen(WITHDRAWN.ledger(), Source.ONLINE, "a", now, now, Permission.ONLINE)[0].stored

    assert not stored()
    with broken.applied():
        assert stored()


def resolved_so(broken: Break, resolution: Resolution) -> None:
    """With the rule broken, what a ledger says does not keep an earlier event out of the online store."""

    class Says:
        def resolve(self, **question: Any) -> Resolution:
            return resolution

    def stored() -> bool:
        return seen(Says(), Source.ONLINE, "a", at_tick(1), at_tick(0))[0].stored

    assert not stored()
    with broken.applied():
        assert stored()


@breaks(
    Break(
        "the permission is not asked for again",
        observing._taken_in,
        "if refusal:",
        "if False:",
        WITHDRAWN,
    ),
    Break(
        "what crossed a withdrawal is not purged",
        observing._taken_in,
        "store.purge(arrival.subject)",
        "pass",
        WITHDRAWN,
    ),
)
def test_an_event_that_outlives_a_withdrawal_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_nothing_is_left_of_what_a_withdrawal_crossed, crossed, broken)
