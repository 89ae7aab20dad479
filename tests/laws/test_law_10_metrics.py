"""Tenth law, in what a service measures: no metric names a person, a session or an item.

Whatever was asked and whoever asked, what Prometheus collects is counts and times under words of three short
lists. So its size is bounded too, however many persons, items and bundles there are.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from engines import ITEMS, bundles, engine
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from consentier.consent import Channel, Ledger, Permission, Resolution, Side, Tier
from consentier.serving import Answer, Profiles, Recommender, Request, metrics
from consentier.serving.metrics import MeasuredRecommender, Observation, ReasonClass, reason_of
from consentier.serving.popular_scorer import PopularScorer
from consentier.serving.rules import Rules

AT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
BOTH = Permission.ONLINE | Permission.CRM

_LINE = re.compile(r"consentier_answer_seconds(?:_bucket|_count|_sum|_created)\{(?P<labels>[^}]*)\} \S+")
_WORDS = {
    "tier": {str(tier) for tier in Tier},
    "reason": {str(reason) for reason in ReasonClass},
    "side": {str(side) for side in Side},
}


class Failing:
    """A ledger or store that quotes whom it was asked about when it fails, as databases do."""

    answers_within = 0.0

    def resolve(self, **asked: Any) -> Resolution:
        raise OSError(f"no connection while looking up {asked}")

    def get(self, subject: str, _: object = None) -> Any:
        raise OSError(f"no row of {subject}")


MARK = "5ab1c0de"
"""Stands in every id of every case."""

_ids = st.integers(0, 99).map(lambda number: f"{MARK}-{number}")
_items = st.sampled_from(ITEMS) | _ids


def _requests() -> st.SearchStrategy[Request]:
    history = st.none() | st.lists(_items, max_size=3)
    return st.builds(
        Request,
        session=st.lists(_items, max_size=3),
        permission=st.none() | st.sampled_from([Permission.NONE, Permission.ONLINE, Permission.CRM, BOTH]),
        linked=st.booleans(),
        channel=st.sampled_from(Channel),
        customer_id=st.none() | _ids,
        visitor_id=st.none() | _ids,
        online_history=history,
        crm_history=history,
        attributes=st.none() | st.dictionaries(_ids, _ids, max_size=2),
        placement=st.none() | st.just("product") | _ids,
        exclude=st.lists(_ids, max_size=2),
        allow=st.none() | st.lists(_ids, max_size=2),
        explain=st.booleans(),
        at=st.just(AT),
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """Some questions to one service, some of whose parts fail."""

    requests: list[Request]
    ledger_fails: bool
    stores_fail: bool


cases = st.builds(
    Case, requests=st.lists(_requests(), min_size=1, max_size=4), ledger_fails=st.booleans(),
    stores_fail=st.booleans(),
)  # fmt: skip


def exposition(case: Case) -> str:
    """What Prometheus collects after these questions."""
    failing: Any = Failing()
    asked = dataclasses.replace(
        engine(),
        ledger=failing if case.ledger_fails else None,
        profiles=Profiles(online=failing, crm=failing, attributes=failing) if case.stores_fail else None,
    )
    registry = CollectorRegistry()
    measured = MeasuredRecommender(asked, metrics.prometheus_observer(registry))
    for request in case.requests:
        measured.recommend(request)
    return generate_latest(registry).decode()


def check_no_metric_names_anybody(case: Case) -> None:
    """No id is in it; every label is one of the fixed words; nothing is missing."""
    text = exposition(case)
    assert MARK not in text
    assert not [item for item in ITEMS if item in text]
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    counted = 0.0
    for line in lines:
        match = _LINE.fullmatch(line)
        assert match
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"]))
        labels.pop("le", None)
        assert set(labels) == set(_WORDS)
        assert all(value in _WORDS[name] for name, value in labels.items())
        counted += float(line.rpartition(" ")[2]) if "_count{" in line else 0
    assert counted == len(case.requests)


@given(cases)
@settings(max_examples=100)
def test_no_metric_names_a_person_a_session_or_an_item(case: Case) -> None:
    check_no_metric_names_anybody(case)


@breaks(
    Break(
        "the reason is the text of the answer's basis",
        metrics.MeasuredRecommender._tell,
        "reason_of(answer)",
        "answer.basis.reasons[-1]",
    ),
    Break(
        "the tier is told with the items",
        metrics.MeasuredRecommender._tell,
        "Observation(answer.tier,",
        "Observation(' '.join(answer.items),",
    ),
    Break(
        "answers of nobody are not counted",
        metrics.MeasuredRecommender.recommend,
        "self._tell(answer",
        "answer.items and self._tell(answer",
    ),
)
def test_the_check_notices(broken: Break) -> None:
    assert_breaks(check_no_metric_names_anybody, cases, broken)


# ---- The four reasons --------------------------------------------------------------------------------------


def ask(request: Request, **parts: Any) -> Answer:
    return dataclasses.replace(engine(), **parts).recommend(request)


def without(*tiers: Tier) -> dict[str, Any]:
    """An engine that lacks some models."""
    whole = engine()
    return {
        "scorers": {tier: scorer for tier, scorer in whole.scorers.items() if tier not in tiers},
        "popular": None if Tier.POPULAR in tiers else whole.popular,
        "problems": dict.fromkeys(tiers, "there is no such directory"),
    }


FUSED = Request(
    session=ITEMS[:1], online_history=ITEMS[:2], crm_history=ITEMS[2:4], permission=BOTH, linked=True, n=3
)
STRANGER = dataclasses.replace(FUSED, session=("x",), online_history=("x",), crm_history=("x",))
FAILING: Any = Failing()


@pytest.mark.parametrize(
    ("request_", "parts", "tier", "reason"),
    [
        (FUSED, {}, Tier.FUSED, ReasonClass.PERMITTED),
        (Request(session=ITEMS[:1]), {}, Tier.SESSION, ReasonClass.PERMITTED),
        (Request(channel="email"), {}, Tier.POPULAR, ReasonClass.PERMITTED),
        (Request(session=("x",)), {}, Tier.POPULAR, ReasonClass.NOTHING_KNOWN),
        (STRANGER, {}, Tier.POPULAR, ReasonClass.NOTHING_KNOWN),
        (dataclasses.replace(FUSED, allow=("x",)), {}, Tier.NONE, ReasonClass.NOTHING_KNOWN),
        (FUSED, without(Tier.FUSED), Tier.ONLINE, ReasonClass.FAULT),
        (FUSED, without(*Tier), Tier.NONE, ReasonClass.FAULT),
        (STRANGER, without(Tier.CRM), Tier.POPULAR, ReasonClass.FAULT),
        (dataclasses.replace(FUSED, n=99), without(Tier.POPULAR), Tier.FUSED, ReasonClass.FAULT),
        (FUSED, {"ledger": FAILING}, Tier.SESSION, ReasonClass.LEDGER_FAULT),
        (
            dataclasses.replace(FUSED, online_history=None, visitor_id="v"),
            {"profiles": Profiles(online=FAILING)},
            Tier.CRM,
            ReasonClass.FAULT,
        ),
        (FUSED, {"ledger": Ledger()}, Tier.SESSION, ReasonClass.PERMITTED),
        (FUSED, {"problems": {Tier.FUSED: "the bundle in use stays: x"}}, Tier.FUSED, ReasonClass.PERMITTED),
    ],
)
def test_the_reason_is_one_of_five_words(
    request_: Request, parts: dict[str, Any], tier: Tier, reason: ReasonClass
) -> None:
    answer = ask(request_, **parts)
    assert (answer.tier, reason_of(answer)) == (tier, reason)


def test_a_fault_in_drawing_what_is_new_is_one_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(MARK)

    monkeypatch.setattr(PopularScorer, "explored", fail)
    explore = Rules.from_document({"explore": {"share": 0.5, "persons": 10}})
    exploring = Recommender.load(bundles(), rules=explore)
    assert reason_of(exploring.recommend(FUSED)) is ReasonClass.FAULT
    alone = dataclasses.replace(exploring, ledger=Failing())
    assert reason_of(alone.recommend(FUSED)) is ReasonClass.LEDGER_FAULT


def test_where_nothing_fails_no_request_is_called_a_fault() -> None:
    """Against the policy: the best tier of the route answered, or it knew nothing."""
    histories: list[tuple[str, ...]] = [(), ("x",), ITEMS[:2]]
    permissions = (Permission.NONE, Permission.ONLINE, Permission.CRM, BOTH)
    for session, history, permission, channel in itertools.product(
        histories, histories, permissions, Channel
    ):
        answer = ask(
            Request(
                session=session, online_history=history, crm_history=history, permission=permission,
                linked=True, channel=channel, n=2,
            )
        )  # fmt: skip
        state, side = answer.basis.state, answer.basis.side
        best = engine().policy.matrix[state, side][0]  # type: ignore[index]
        expected = ReasonClass.PERMITTED if answer.tier is best else ReasonClass.NOTHING_KNOWN
        assert reason_of(answer) is expected


def test_answers_are_the_same_as_without_being_measured() -> None:
    seen: list[Observation] = []
    measured = MeasuredRecommender(engine(), seen.append)
    assert measured.recommend(FUSED) == engine().recommend(FUSED)
    assert measured.similar(ITEMS[0], n=2) == engine().similar(ITEMS[0], n=2)
    assert measured.basket(ITEMS[:2], n=2) == engine().basket(ITEMS[:2], n=2)
    (only,) = seen
    assert (only.tier, only.reason, only.side) == (Tier.FUSED, ReasonClass.PERMITTED, Side.ONLINE)
    assert 0 < only.seconds < 60


def test_an_observer_that_fails_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Observation) -> None:
        raise RuntimeError("disk full at 5ab1c0de")

    observe: Callable[[Observation], None] = broken
    assert MeasuredRecommender(engine(), observe).recommend(FUSED).tier is Tier.FUSED
    assert "RuntimeError" in caplog.text
    assert MARK not in caplog.text


def test_loading_a_bundle_anew_adds_no_series() -> None:
    registry = CollectorRegistry()
    observe = metrics.prometheus_observer(registry)
    for _ in range(2):
        MeasuredRecommender(Recommender.load(bundles()), observe).recommend(FUSED)
    text = generate_latest(registry).decode()
    assert text.count("consentier_answer_seconds_count{") == 1


def test_a_registry_takes_the_histogram_once() -> None:
    registry = CollectorRegistry()
    metrics.prometheus_observer(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.prometheus_observer(registry)
