"""First law: what a request may not read cannot change its answer, not by a single byte.

Two persons who differ only in data that the permission does not cover get the same answer, whatever the
channel, the options, the shop's settings and the models that happen to be missing. And an answer that was
given without permission holds nothing by which a person or a session could be recognised.

What may be read stands in the two tables below; the engine's own policy is not asked.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping

from breaking import Break, assert_breaks, breaks
from engines import CATALOGUE, ITEMS, LINEAR, engine
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from consentier.consent import (
    Channel,
    ConsentRecord,
    Ledger,
    Link,
    Permission,
    Policy,
    Switches,
    Tier,
    policy,
)
from consentier.consent.records import SubjectKind
from consentier.serving import Answer, Event, Profiles, Recommender, Request, recommender, view
from consentier.serving.scorer import LinearScorer

AT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
EARLIER = AT - dt.timedelta(days=30)

# Who may answer, best first: by what was permitted, and by the side of the shop on which the answer is shown.
ROUTES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("nothing", "online"): ("session",),
    ("nothing", "crm"): (),
    ("online", "online"): ("online", "session"),
    ("online", "crm"): (),
    ("crm", "online"): ("session",),
    ("crm", "crm"): ("crm",),
    ("both, joined", "online"): ("fused", "online", "crm", "session"),
    ("both, joined", "crm"): ("fused", "crm"),
    ("both, apart", "online"): ("online", "session"),
    ("both, apart", "crm"): ("crm",),
    ("objection", "online"): ("session",),
    ("objection", "crm"): (),
}

# What each of them reads of the person. The running session exists on the online side only.
READS: Mapping[str, frozenset[str]] = {
    "session": frozenset({"session"}),
    "online": frozenset({"session", "online"}),
    "crm": frozenset({"crm"}),
    "fused": frozenset({"session", "online", "crm"}),
}


@dataclasses.dataclass(frozen=True)
class Person:
    """All that a shop may hold about one person."""

    session: tuple[Event, ...] = ()
    online: tuple[Event, ...] = ()
    second_device: tuple[Event, ...] = ()
    refusing_device: tuple[Event, ...] = ()
    crm: tuple[Event, ...] = ()
    attributes: Mapping[str, str | float] = dataclasses.field(default_factory=dict)
    strangers: tuple[Event, ...] = ()
    """What the same stores hold about everybody else."""


@dataclasses.dataclass(frozen=True)
class Situation:
    """All that decides what may be read, and every option of a request."""

    channel: Channel = Channel.SHOP
    online: bool = False
    crm: bool = False
    linked: bool = False
    logged_in: bool = False
    objected: bool = False
    minor: bool = False
    ads: str | None = None  # what the person said on advertising: granted, denied, nothing
    fusion: str | None = None
    fusion_said_by: str = "customer"
    ledger: bool = True  # whether there is one, or the shop's word is all there is
    declared: Permission | None = None  # what the request says beside a ledger
    switches: Switches = dataclasses.field(default_factory=Switches)
    missing: frozenset[Tier] = frozenset()
    stored: bool = False  # histories stand in the shop's stores, not in the request
    hide: tuple[str, ...] = ()
    factors: bool = False  # whether the models of persons are factor models
    catalogue: bool = False
    n: int = 5
    exclude: frozenset[str] = frozenset()
    allow: frozenset[str] | None = None
    placement: str | None = None
    explain: bool = False

    @property
    def side(self) -> str:
        """The side of the shop, told by the channel."""
        return "online" if self.channel in ("shop", "app", "ads") else "crm"

    def permitted(self) -> str:
        """What was permitted, in the words of the table."""
        if self.ledger and (self.objected or self.minor):
            return "objection"
        online, crm = self.online, self.crm
        if self.ledger and self.declared is not None:
            online, crm = (
                online and Permission.ONLINE in self.declared,
                crm and Permission.CRM in self.declared,
            )
        if self.channel == "ads" and not self._covered(self.ads, required=self.switches.ads_purpose):
            return "nothing"
        if online and crm:
            return "both, joined" if self._may_join() else "both, apart"
        return "online" if online else "crm" if crm else "nothing"

    def _may_join(self) -> bool:
        here = self.logged_in or self.side == "crm" or not self.switches.shared_device_login
        linked = self.linked if self.ledger else self.logged_in
        return linked and here and self._covered(self.fusion, required=self.switches.fusion_purpose)

    def _covered(self, said: str | None, *, required: bool) -> bool:
        said = said if self.ledger else None
        return said == "granted" or (said is None and not required)

    def route(self) -> tuple[str, ...]:
        """The models that may answer."""
        permitted = self.permitted()
        route = ROUTES[permitted, self.side]
        if self.switches.crm_on_site and self.side == "online" and permitted in ("crm", "both, apart"):
            route = (*route, "crm")
        return route

    def answering(self) -> tuple[str, ...]:
        """Those of them that are there."""
        return tuple(tier for tier in self.route() if tier not in self.missing)

    def readable(self) -> frozenset[str]:
        """The sources that may be read. On the online side the running session always may."""
        read = frozenset[str]().union(*(READS[tier] for tier in self.answering()))
        return read | {"session"} if self.side == "online" else read - {"session"}

    def second_device_readable(self) -> bool:
        """Linked devices are read together only where joining is lawful, and only from the shop's stores."""
        joined = "fused" in self.answering() and self.ledger and self.stored
        for_it_too = self.fusion_said_by == "customer" or not self.switches.fusion_purpose
        return joined and for_it_too


SECRET = ("visitor-5ab1c0de", "customer-77e0beef")
TWIN = ("visitor-0ddba115", "customer-deadf00d")


def check_unreadable_data_changes_nothing(case: tuple[Situation, Person, Person]) -> None:
    """The answer stays as it is when all that may not be read is replaced by another person's."""
    situation, person, other = case
    assert said(answer(situation, person)) == said(
        answer(situation, replaced(situation, person, other), ids=replaced_ids(situation))
    )


def replaced(situation: Situation, person: Person, other: Person) -> Person:
    """Another person in all that may not be read."""
    read = situation.readable()
    return Person(
        session=(person if "session" in read else other).session,
        online=(person if "online" in read else other).online,
        second_device=(person if situation.second_device_readable() else other).second_device,
        refusing_device=other.refusing_device,
        crm=(person if "crm" in read else other).crm,
        attributes=(person if "crm" in read else other).attributes,
        strangers=other.strangers,
    )


def replaced_ids(situation: Situation) -> tuple[str, str]:
    """Other ids where they may not be used; before a ledger, those of a twin who decided likewise."""
    read = situation.readable()
    if situation.ledger:
        return SECRET if read & {"online", "crm"} else TWIN
    return TWIN[0] if "online" not in read else SECRET[0], TWIN[1] if "crm" not in read else SECRET[1]


def answer(situation: Situation, person: Person, ids: tuple[str, str] = SECRET) -> Answer:
    """What the recommender says to this person in this situation."""
    full = engine(situation.hide, CATALOGUE if situation.catalogue else None, situation.factors)
    tiers = {tier: scorer for tier, scorer in full.scorers.items() if tier not in situation.missing}
    asked = dataclasses.replace(
        full,
        scorers=tiers,
        popular=None if Tier.POPULAR in situation.missing else full.popular,
        policy=_policy(situation.switches),
        ledger=_ledger(situation, person_ids=(SECRET, TWIN)) if situation.ledger else None,
        profiles=_profiles(situation, person, ids),
        problems=dict.fromkeys(situation.missing, "there is none"),
    )
    declared = Permission.NONE
    declared |= Permission.ONLINE if situation.online else Permission.NONE
    declared |= Permission.CRM if situation.crm else Permission.NONE
    return asked.recommend(
        Request(
            session=person.session,
            permission=situation.declared if situation.ledger else declared,
            linked=situation.logged_in,
            channel=situation.channel,
            visitor_id=ids[0],
            customer_id=ids[1],
            online_history=None if situation.stored else person.online,
            crm_history=None if situation.stored else person.crm,
            attributes=None if situation.stored else person.attributes,
            placement=situation.placement,
            at=AT,
            n=situation.n,
            exclude=situation.exclude,
            allow=situation.allow,
            explain=situation.explain,
        )
    )


def said(given: Answer) -> str:
    """An answer to the last byte."""
    return json.dumps(given.to_dict(), sort_keys=True)


@functools.cache
def _policy(switches: Switches) -> Policy:
    default = Policy.default()
    return Policy(default.version, default.matrix, switches)


def _profiles(situation: Situation, person: Person, ids: tuple[str, str]) -> Profiles:
    visitor_id, customer_id = ids
    online = {f"second {visitor_id}": person.second_device, f"refusing {visitor_id}": person.refusing_device}
    crm = {"stranger": person.strangers}
    attributes: dict[str, Mapping[str, str | float]] = {"stranger": {"region": "south"}}
    if situation.stored:
        online[visitor_id], crm[customer_id] = person.online, person.crm
        attributes[customer_id] = person.attributes
    return Profiles({**online, "stranger": person.strangers}, crm, attributes)


def _ledger(situation: Situation, person_ids: tuple[tuple[str, str], ...]) -> Ledger:
    """Whom the shop asked and what they said. A second device agreed too, a third one refused."""
    ledger = Ledger()
    for visitor_id, customer_id in person_ids:
        devices = {
            visitor_id: "granted",
            f"second {visitor_id}": "granted",
            f"refusing {visitor_id}": "denied",
        }
        decisions: list[tuple[str, SubjectKind, str, str]] = [
            (device, "visitor", "online", state) for device, state in devices.items() if situation.online
        ]
        decisions += [(customer_id, "customer", "crm", "granted")] if situation.crm else []
        decisions += [(customer_id, "customer", "crm", "objected")] if situation.objected else []
        decisions += [(customer_id, "customer", "parental", "denied")] if situation.minor else []
        decisions += [(customer_id, "customer", "ads", situation.ads)] if situation.ads else []
        if situation.fusion:
            by_customer = situation.fusion_said_by == "customer"
            kind: SubjectKind = "customer" if by_customer else "visitor"
            decisions.append((customer_id if by_customer else visitor_id, kind, "fusion", situation.fusion))
        ledger.append(
            ConsentRecord(f"{who} {what} {state}", who, kind, what, state, EARLIER, EARLIER)
            for who, kind, what, state in decisions
        )
        if situation.linked:
            ledger.append_links(Link(device, customer_id, EARLIER) for device in devices)
    return ledger


# ---- Random situations and persons -------------------------------------------------------------------------

_events = st.lists(
    st.builds(
        Event,
        st.sampled_from((*ITEMS, "unheard-of")),
        ts=st.none() | st.integers(0, 20).map(lambda number: EARLIER + dt.timedelta(days=number)),
        event_type=st.sampled_from((None, "view", "cart", "order")),
    ),
    max_size=8,
).map(tuple)
_persons = st.builds(
    Person,
    session=_events,
    online=_events,
    second_device=_events,
    refusing_device=_events,
    crm=_events,
    attributes=st.fixed_dictionaries(
        {}, optional={"region": st.sampled_from(("north", "east", "mars")), "age": st.integers(18, 90)}
    ),
    strangers=_events,
)
_rarely = st.sampled_from((False,) * 5 + (True,))
_mostly = _rarely.map(lambda rare: not rare)
_purpose = st.sampled_from((None, None, "granted", "denied"))
_situations = st.builds(
    Situation,
    channel=st.sampled_from(Channel),
    online=st.booleans(),
    crm=st.booleans(),
    linked=_mostly,
    logged_in=_mostly,
    objected=_rarely,
    minor=_rarely,
    ads=_purpose,
    fusion=_purpose,
    fusion_said_by=st.sampled_from(("customer", "visitor")),
    ledger=st.booleans(),
    declared=st.none()
    | st.sampled_from([Permission.NONE, Permission.ONLINE, Permission.ONLINE | Permission.CRM]),
    switches=st.builds(
        Switches,
        crm_on_site=st.booleans(),
        shared_device_login=st.booleans(),
        ads_purpose=_rarely,
        fusion_purpose=_rarely,
    ),
    missing=st.frozensets(st.sampled_from((*LINEAR, Tier.POPULAR)), max_size=3) | st.just(frozenset()),
    stored=st.booleans(),
    hide=st.sampled_from(((), ("crm", "online", "session"))),
    factors=st.booleans(),
    catalogue=st.booleans(),
    n=st.sampled_from((1, 5, 30)),
    exclude=st.frozensets(st.sampled_from(ITEMS), max_size=3),
    allow=st.none() | st.frozensets(st.sampled_from(ITEMS)),
    placement=st.sampled_from((None, "product", "cart")),
    explain=st.booleans(),
)
cases = st.tuples(_situations, _persons, _persons)

SEEN, BOUGHT = (
    tuple(Event(item, EARLIER + dt.timedelta(days=day)) for day, item in enumerate(items))
    for items in (ITEMS[:3], ITEMS[3:6])
)
SOMEBODY = Person(SEEN, SEEN, SEEN, SEEN, SEEN, {"region": "north", "age": 25}, SEEN)
ANYBODY = Person(BOUGHT, BOUGHT, BOUGHT, BOUGHT, BOUGHT, {"region": "south", "age": 60}, BOUGHT)


def between(**facts: object) -> tuple[Situation, Person, Person]:
    """A situation, and two persons who differ in everything."""
    return dataclasses.replace(Situation(), **facts), SOMEBODY, ANYBODY  # type: ignore[arg-type]


@settings(max_examples=300)
@given(cases)
@example(between(crm=True))
@example(between(online=True, channel=Channel.EMAIL))
@example(between(online=True, crm=True, linked=True, stored=True))
def test_data_that_may_not_be_read_change_no_byte_of_the_answer(
    case: tuple[Situation, Person, Person],
) -> None:
    event(f"{case[0].permitted()} / {case[0].side}")
    check_unreadable_data_changes_nothing(case)


def test_every_cell_of_the_matrix_with_every_model_missing_in_turn() -> None:
    facts = {
        "nothing": {}, "online": {"online": True}, "crm": {"crm": True}, "objection": {"objected": True},
        "both, joined": {"online": True, "crm": True, "linked": True, "logged_in": True},
        "both, apart": {"online": True, "crm": True},
    }  # fmt: skip
    for permitted, channel in ((permitted, channel) for permitted in facts for channel in Channel):
        for missing in (frozenset[Tier](), *(frozenset({tier}) for tier in (*LINEAR, Tier.POPULAR))):
            for stored in (False, True):
                case = between(channel=channel, missing=missing, stored=stored, **facts[permitted])
                assert case[0].permitted() == permitted
                check_unreadable_data_changes_nothing(case)


def test_the_tables_above_are_what_the_engine_does() -> None:
    """Readable data do change the answer: the comparison above is not of answers that read nothing at all."""
    joined = between(online=True, crm=True, linked=True, logged_in=True)[0]
    for part in ("session", "online", "crm"):
        changed = dataclasses.replace(SOMEBODY, **{part: BOUGHT})  # type: ignore[arg-type]
        assert said(answer(joined, SOMEBODY)) != said(answer(joined, changed)), part
    stored = dataclasses.replace(joined, stored=True)
    changed = dataclasses.replace(SOMEBODY, second_device=BOUGHT)
    assert said(answer(stored, SOMEBODY)) != said(answer(stored, changed))


@breaks(
    Break(
        "the session is read on the CRM side",
        policy.sources_of,
        "sources - {Source.SESSION}",
        "sources",
        between(online=True, crm=True, linked=True, channel=Channel.EMAIL),
    ),
    Break(
        "every tier reads every source",
        policy.sources_of,
        "_SOURCES[tier]",
        "_SOURCES[Tier.FUSED]",
        between(),
    ),
    Break(
        "the online history is in every view",
        view.view_of,
        "if Source.ONLINE in sources else ()",
        "",
        between(),
    ),
    Break(
        "the CRM history is in every view",
        view.view_of,
        "_crm(request, profiles, crm_since) if Source.CRM in sources else ()",
        "_crm(request, profiles, crm_since)",
        between(online=True),
    ),
    Break(
        "attributes are in every view",
        view.view_of,
        "_attributes(request, profiles) if Source.CRM in sources else _NO_ATTRIBUTES",
        "_attributes(request, profiles)",
        between(online=True),
    ),
    Break(
        "what was bought is filtered out, whether or not that may be known",
        recommender._excluded,
        "frozenset(request.exclude)",
        "frozenset(request.exclude) | frozenset(event.item_id for event in request.crm_history or ())",
        between(online=True, n=30),
    ),
    Break(
        "what was bought fills up no list, whether or not that may be known",
        Recommender._try,
        "_Found(tier, view, scored, digests)",
        "_Found(tier, view, dataclasses.replace(scored, not_again=scored.not_again | frozenset("
        "event.item_id for event in request.crm_history or ())), digests)",
        between(online=True, n=30),
    ),
    Break(
        "the linked devices are read without a joint answer",
        Recommender._devices,
        "tier is not Tier.FUSED or",
        "",
        between(online=True, crm=True, linked=True, stored=True),
    ),
    Break(
        "joining devices needs no purpose",
        Recommender._devices,
        "self.policy.switches.fusion_purpose",
        "False",
        between(
            online=True, crm=True, linked=True, logged_in=True, stored=True,
            fusion="granted", fusion_said_by="visitor", switches=Switches(fusion_purpose=True),
        ),
    ),
    Break(
        "a device that refused is read with the others",
        Ledger.linked_since,
        "            continue\n",
        "            found[visitor_id] = 0\n",
        between(online=True, crm=True, linked=True, logged_in=True, stored=True),
    ),
    Break(
        "CRM data show on the site although the switch is off",
        Policy.tiers,
        "not self.switches.crm_on_site or",
        "",
        between(crm=True),
    ),
    Break(
        "the caller's permission is put above the ledger's",
        Recommender._resolve,
        "resolution.intersected(permission), ()",
        "Resolution.declared(permission, linked=request.linked), ()",
        between(declared=Permission.ONLINE),
    ),
    Break(
        "an objection is not looked at",
        Policy._state,
        "if resolution.objected:",
        "if False:",
        between(online=True, crm=True, objected=True),
    ),
    Break(
        "the answer counts what it did not read",
        Recommender._basis,
        "unknown_items=found.scored.unknown_items",
        "unknown_items=len(request.crm_history or ())",
        (Situation(online=True), SOMEBODY, Person()),
    ),
)  # fmt: skip
def test_reading_too_much_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_unreadable_data_changes_nothing, cases, broken)


# ---- The first level ---------------------------------------------------------------------------------------


def check_no_trace_of_the_person(case: tuple[Situation, Person, Person]) -> None:
    """Without permission, no id, no history, no attribute and no digest of any of them is in the answer."""
    situation, person, _ = case
    if any(READS[tier] & {"online", "crm"} for tier in situation.route()):
        return  # something was permitted
    found = answer(situation, person)
    plain = {**found.to_dict(), "scores": ()}
    for explanation in plain["explanations"] or ():
        for cause in explanation["causes"]:
            cause["share"] = 0  # its digits are no digest
    text = json.dumps(plain)
    for identifier in (*SECRET, *(f"second {visitor}" for visitor in SECRET[:1])):
        assert identifier not in text
    assert found.basis.input_digests == {}
    scorers = engine(situation.hide, factors=situation.factors).scorers
    known = {scorer.digest for scorer in scorers.values()}
    known |= {digest for digest in (found.basis.fill_digest,) if digest}
    assert set(re.findall(r"(?:sha256:)?[0-9a-f]{16,}", text)) <= known
    assert not set(fingerprints(person)) & set(re.findall(r"[0-9a-f]+", text))


def fingerprints(person: Person) -> list[str]:
    """Digests by which ids and the session could be found again."""
    texts = [*SECRET, json.dumps([item.item_id for item in person.session])]
    plain = [hashlib.new(name, text.encode()).hexdigest() for text in texts for name in ("sha256", "md5")]
    key = b"a key for tests only"
    return plain + [hmac.new(key, text.encode(), "sha256").hexdigest() for text in texts]


@settings(max_examples=200)
@given(cases)
def test_an_answer_without_permission_holds_no_trace_of_the_person(
    case: tuple[Situation, Person, Person],
) -> None:
    check_no_trace_of_the_person(case)


@breaks(
    Break(
        "the session leaves its digest",
        Recommender.input_digests,
        "and state in _ONLINE_STATES",
        "",
        between(),
    ),
    Break(
        "a CRM customer's anonymous visit leaves its digest",
        Recommender.input_digests,
        "state in _ONLINE_STATES",
        "state is not State.NONE",
        between(crm=True),
    ),
    Break(
        "the reason names the visitor",
        Recommender._basis,
        "reasons=(*resolution.reasons,",
        "reasons=(str(request.visitor_id), *resolution.reasons,",
        between(),
    ),
    Break(
        "the reason names the customer by a digest",
        Recommender._basis,
        "policy_version=self.policy.version",
        'policy_version=self._digest("customer", request.customer_id)',
        between(),
    ),
)
def test_a_trace_of_the_person_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_no_trace_of_the_person, cases, broken)


def test_questions_about_items_read_no_person() -> None:
    """Similar items and baskets: there is no person in the question, and stores and ledger are not asked."""

    class Untouchable:
        answers_within = 0.0

        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"{name} was asked for")

    full = engine((), CATALOGUE)
    untouchable = dataclasses.replace(full, ledger=Untouchable(), profiles=Untouchable())  # type: ignore[arg-type]
    questions: list[Callable[[Recommender], Answer]] = [
        lambda asked: asked.similar("item-01", n=4),
        lambda asked: asked.basket(["item-01", "item-04"], n=4),
    ]
    for question in questions:
        given_with, given_without = question(untouchable), question(full)
        assert said(given_with) == said(given_without)
        assert given_with.basis.sources == ()
        assert given_with.basis.input_digests == {}
        assert not {"item-01"} & set(given_with.items)


def test_a_scorer_gets_a_view_and_no_request() -> None:
    assert list(LinearScorer.answer.__annotations__) == ["view", "query", "return"]
