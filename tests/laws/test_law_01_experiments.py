"""First and fifth law, in an experiment: the arm follows from nothing that the request may not use.

We promise: which arm answers depends on an id only where the permission of the request covers it, and then on
nothing but that id: the same in every request. Everywhere else the arm is drawn anew for each request,
whatever ids the request brings, so that nobody can be recognised by it; and the answer id says nothing of
anybody. Taking a permission away never makes an arm stick.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

from breaking import Break, assert_breaks, breaks
from engines import ITEMS, bundles
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import Channel, Policy, Resolution, Side, Tier
from consentier.serving import Answer, Recommender, Request, experiment
from consentier.serving.experiment import Experiment, ExperimentRecommender

EXPERIMENT = Experiment("tests", "a salt for tests only", {"current": 0.5, "new": 0.3, "other": 0.2})
STRICT = Policy.default()
ON_SITE = dataclasses.replace(STRICT, switches=dataclasses.replace(STRICT.switches, crm_on_site=True))
POLICIES = {"strict": STRICT, "crm on site": ON_SITE}

_ids = st.none() | st.sampled_from([f"id-{number}" for number in range(30)])


@dataclasses.dataclass(frozen=True)
class Case:
    """One request, other ids that it might have brought, and what the ledger says."""

    online: bool = False
    crm: bool = False
    linked: bool = False
    objected: bool = False
    login: bool = True
    channel: Channel = Channel.SHOP
    policy: str = "strict"
    visitor: str | None = "id-1"
    customer: str | None = "id-2"
    other_visitor: str | None = "id-3"
    other_customer: str | None = "id-4"
    missing: frozenset[Tier] = frozenset()
    """Tiers that have no model: who answers in the end changes no arm."""

    def usable(self) -> tuple[str, str] | None:
        """The id that chooses the arm; None where none may, or none is there."""
        site = self.channel in ("shop", "app", "ads")
        if self.objected:
            return None
        together = self.online and self.crm and self.linked and (self.login or not site)
        visitor = ("visitor", self.visitor) if together or (self.online and site) else None
        on_site = self.policy == "crm on site"
        customer = ("customer", self.customer) if together or (self.crm and (not site or on_site)) else None
        for found in (customer, visitor) if together else (visitor, customer):
            if found is not None and found[1] is not None:
                return found[0], found[1]
        return None


cases: st.SearchStrategy[Case] = st.builds(
    Case,
    online=st.booleans(),
    crm=st.booleans(),
    linked=st.booleans(),
    objected=st.sampled_from((False, False, False, True)),
    login=st.booleans(),
    channel=st.sampled_from(Channel),
    policy=st.sampled_from(sorted(POLICIES)),
    visitor=_ids,
    customer=_ids,
    other_visitor=_ids,
    other_customer=_ids,
    missing=st.frozensets(st.sampled_from((Tier.FUSED, Tier.ONLINE, Tier.CRM, Tier.SESSION))),
)


@dataclasses.dataclass(frozen=True)
class Says:
    """A ledger that says one thing of everybody."""

    resolution: Resolution
    answers_within: float = 0.0

    def resolve(self, **question: object) -> Resolution:
        return self.resolution

    def linked_since(self, *question: object, **when: object) -> dict[str, int]:
        return {}


@functools.cache
def loaded() -> Recommender:
    return Recommender.load(bundles(), audit_key=b"for tests")


def asked(case: Case, chance: float) -> ExperimentRecommender:
    """The experiment, when chance draws one and the same number each time."""
    says = Says(
        Resolution(
            online=case.online, crm=case.crm, linked=case.linked and case.online and case.crm,
            objected=case.objected,
        )
    )  # fmt: skip
    scorers = {tier: scorer for tier, scorer in loaded().scorers.items() if tier not in case.missing}
    arm = dataclasses.replace(loaded(), ledger=says, policy=POLICIES[case.policy], scorers=scorers)  # type: ignore[arg-type]
    return ExperimentRecommender(EXPERIMENT, dict.fromkeys(EXPERIMENT.arms, arm), random=lambda: chance)


def answer(case: Case, chance: float) -> Answer:
    return asked(case, chance).recommend(
        Request(
            session=ITEMS[:2], online_history=ITEMS[2:4], crm_history=ITEMS[4:6], linked=case.login,
            channel=case.channel, visitor_id=case.visitor, customer_id=case.customer, n=3,
        )
    )  # fmt: skip


def arms(case: Case) -> tuple[str | None, ...]:
    """The arms that chance can lead to: one where an id decides, all three where none may."""
    return tuple(answer(case, chance).basis.arm for chance in (0.0, 0.6, 0.99))


def check(case: Case) -> None:
    """An id decides where it may, alone; elsewhere chance does, alone. The answer id says no more."""
    usable = case.usable()
    found = arms(case)
    if usable is not None:
        assert found == (EXPERIMENT.assigned(*usable),) * 3  # type: ignore[arg-type]
    else:
        assert found == tuple(EXPERIMENT.arms), "something else than chance decided"
    for other in variants(case):
        if other.usable() == usable:
            assert arms(other) == found, "an id that may not be used changed the arm"
    given_answer = answer(case, 0.0)
    told = EXPERIMENT.read(given_answer.answer_id)
    assert told is not None
    assert (told.arm, told.tier) == (given_answer.basis.arm, given_answer.tier)
    if not named(case, given_answer):
        assert (told.key, told.bucket) == (None, None)
    elif usable is not None:
        assert told.bucket == EXPERIMENT.bucket(*usable)  # type: ignore[arg-type]
    if usable is None:
        assert told.bucket is None


def named(case: Case, given_answer: Answer) -> bool:
    """Whether anybody may be named at all, in words of its own: whose data the side may use."""
    read = set(given_answer.basis.sources)
    site = case.channel.side is Side.ONLINE
    if case.objected:
        return False
    return (case.online and (site or "online" in read)) or (case.crm and (not site or "crm" in read))


def variants(case: Case) -> Iterator[Case]:
    for visitor, customer in itertools.product(
        (case.visitor, case.other_visitor), (case.customer, case.other_customer)
    ):
        yield dataclasses.replace(case, visitor=visitor, customer=customer)


@settings(max_examples=300, deadline=None)
@given(cases)
def test_the_arm_follows_from_permitted_ids_or_from_chance(case: Case) -> None:
    check(case)


def less(case: Case) -> Iterator[Case]:
    for name in ("online", "crm", "linked", "login"):
        if getattr(case, name):
            yield dataclasses.replace(case, **{name: False})
    yield dataclasses.replace(case, objected=True)


@settings(max_examples=100, deadline=None)
@given(cases)
def test_taking_a_permission_away_never_makes_the_arm_stick(case: Case) -> None:
    if len(set(arms(case))) == 1:
        return
    for withdrawn in less(case):
        assert arms(withdrawn) == tuple(EXPERIMENT.arms)


@settings(max_examples=100, deadline=None)
@given(cases, st.sampled_from(("similar", "basket")))
def test_a_question_about_items_is_drawn_and_counted(case: Case, question: str) -> None:
    for chance, arm in zip((0.0, 0.6, 0.99), EXPERIMENT.arms, strict=True):
        both = asked(case, chance)
        found = both.similar(ITEMS[0]) if question == "similar" else both.basket(ITEMS[:2])
        told = EXPERIMENT.read(found.answer_id)
        assert found.basis.arm == arm
        assert told is not None
        assert (told.arm, told.key, told.bucket) == (arm, None, None)


@breaks(
    Break(
        "a visitor's id is used whatever is permitted",
        experiment.assignable,
        '("visitor",) if visitor else ()',
        '("visitor",)',
        Case(),
    ),
    Break(
        "a customer's id is used whatever is permitted",
        experiment.assignable,
        '("customer",) if customer else ()',
        '("customer",)',
        Case(channel=Channel.EMAIL),
    ),
    Break(
        "a customer is followed to the site by CRM permission alone",
        experiment.assignable,
        "Source.CRM in readable and ",
        "",
        Case(crm=True),
    ),
    Break(
        "a visitor is followed into e-mails by online permission alone",
        experiment.assignable,
        "Source.ONLINE in readable and ",
        "",
        Case(online=True, channel=Channel.EMAIL),
    ),
    Break(
        "who may not be recognised on all devices is",
        experiment.assignable,
        "if route.state is State.BOTH_LINKED",
        "if route.state in (State.BOTH_LINKED, State.BOTH_UNLINKED)",
    ),
    Break(
        "an id without permission sticks as a salt of the draw",
        ExperimentRecommender._place,
        "return self._experiment.drawn(self._random), None",
        'return self._experiment.assigned("visitor", str(request.visitor_id)), None',
        Case(),
    ),
    Break(
        "answers that nobody may be named for are recorded by answer",
        ExperimentRecommender._told,
        "named = bool(nameable(State(basis.state), Side(basis.side), basis.sources))",
        "named = True",
        Case(),
    ),
)
def test_the_guard_would_notice(broken: Break) -> None:
    assert_breaks(check, cases, broken)
