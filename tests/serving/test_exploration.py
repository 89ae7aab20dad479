"""Slots for what is new: how many, which, and what an answer says of them."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter
from typing import Any

import pytest
from engines import CATALOGUE, ITEMS, bundles
from hypothesis import given
from hypothesis import strategies as st

from consentier.consent import Channel, Permission, Tier
from consentier.errors import ConfigError
from consentier.serving import Recommender, Request
from consentier.serving.exploration import draws, new_seed, slots_of, with_explored
from consentier.serving.popular_scorer import PopularScorer
from consentier.serving.rules import Rules

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
FEW = 10
"""Persons that the last five of the fourteen items, of which two are hidden, and the uncounted one miss."""


def engine(explore: dict[str, Any] | None, seed: str | None = "5eed", **options: Any) -> Recommender:
    further = {"catalogue": CATALOGUE, **options.pop("further", {})}
    document = {**options, **({} if explore is None else {"explore": explore})}
    loaded = Recommender.load(
        bundles(), rules=Rules.from_document(document), audit_key=b"key", clock=lambda: NOW, **further
    )
    if seed is None:
        return loaded
    return dataclasses.replace(loaded, exploration_seed=lambda: seed)


@given(st.text("0123456789abcdef", min_size=1, max_size=16), st.integers(0, 300))
def test_a_draw_is_a_permutation(seed: str, size: int) -> None:
    assert sorted(draws(seed, size)) == list(range(size))
    assert list(draws(seed, size)) == list(draws(seed, size))


def test_draws_and_slots_are_as_likely_as_they_say() -> None:
    firsts: Counter[int] = Counter()
    slots: Counter[int] = Counter()
    for number in range(6000):
        found = draws(str(number), 6)
        firsts.update([next(found), next(found)])
        slots.update([slots_of(0.25, 6, str(number))])
    assert all(abs(count - 2000) < 5 * 37 for count in firsts.values()), firsts
    assert set(slots) == {1, 2}
    assert abs(slots[1] - 3000) < 5 * 39
    assert {slots_of(0.5, 4, str(number)) for number in range(99)} == {2}


def test_a_draw_is_the_same_for_good() -> None:
    """Pinned: an answer of today must be given again by the releases to come."""
    assert list(draws("0123456789abcdef", 8)) == [1, 2, 3, 0, 4, 5, 6, 7]
    assert slots_of(0.1, 5, "0123456789abcdef") == 0


def test_new_items_take_the_last_slots_and_say_so() -> None:
    before = engine(None).recommend(Request(session=["item-03"], n=6, explain=True))
    answer = engine({"share": 0.5, "persons": FEW}).recommend(Request(session=["item-03"], n=6, explain=True))
    drawn = answer.basis.exploration
    assert drawn is not None
    assert len(answer.items) == 6 == len(set(answer.items))
    assert answer.items[:3] == before.items[:3]
    assert answer.items[3:] == drawn.items
    assert answer.scores[:3] == before.scores[:3]
    assert answer.scores[3:] == (0.0,) * 3
    assert set(drawn.items) <= {*ITEMS[5:12], "brand-new"}
    assert (drawn.seed, drawn.slots) == ("5eed", 3)
    assert drawn.propensity == 3 / drawn.pool
    assert answer.scored == 3
    assert answer.basis.filled == 0
    assert answer.basis.fill_digest is not None
    assert answer.explanations is not None
    assert [why.text for why in answer.explanations[3:]] == ["New in this shop"] * 3
    assert answer.explanations[:3] == before.explanations[:3]  # type: ignore[index]


def test_nothing_is_explored_without_a_rule_or_off_the_site() -> None:
    assert engine(None).recommend(Request(n=9)).basis.exploration is None
    exploring = engine({"share": 1.0, "persons": FEW})
    letter = Request(channel=Channel.EMAIL, permission=Permission.CRM, crm_history=["item-01"], n=5)
    assert exploring.recommend(letter).basis.exploration is None
    assert exploring.similar("item-01").basis.exploration is None
    assert exploring.recommend(Request(n=5)).basis.exploration is not None


def test_each_request_draws_anew_and_from_nothing_that_it_says() -> None:
    exploring = engine({"share": 0.4, "persons": FEW}, None)
    request = Request(session=["item-03"], visitor_id="v-1", customer_id="c-1", n=5)
    found = [exploring.recommend(request).basis.exploration for _ in range(30)]
    assert len({drawn.seed for drawn in found if drawn is not None}) == 30
    assert len({drawn.items for drawn in found if drawn is not None}) > 5
    assert len(new_seed()) == 16


def test_what_is_new_is_what_few_had_lately_added() -> None:
    ages = {item: (NOW - dt.timedelta(days=number)) for number, item in enumerate(ITEMS)}
    facts: dict[str, dict[str, Any]] = {
        item: {"added": added.date().isoformat()} for item, added in ages.items()
    }
    facts["brand-new"] = {"added": (NOW + dt.timedelta(days=1)).isoformat()}  # not yet
    facts["undated"] = {"added": None}
    facts["today"] = {"added": NOW.isoformat()}

    def pool(**explore: Any) -> set[str]:
        loaded = engine({"share": 1.0, **explore}, further={"catalogue": facts})
        answer = loaded.recommend(Request(n=30, at=NOW))
        return set() if answer.basis.exploration is None else set(answer.basis.exploration.items)

    assert pool() == {"brand-new", "undated", "today"}
    assert pool(column="added", days=30) == {"today"}
    assert pool(persons=99, column="added", days=3) == {*ITEMS[:4], "today"}
    assert pool(persons=FEW) == {*ITEMS[5:], "brand-new", "undated", "today"}


def test_caps_and_pages_narrow_what_is_drawn() -> None:
    facts: dict[str, dict[str, Any]] = {
        item: {"kind": "a" if number % 2 else "b", "price": float(number)}
        for number, item in enumerate(ITEMS)
    }
    exploring = engine(
        {"share": 0.5, "persons": 99}, caps={"kind": 2}, further={"catalogue": facts, "filter_by": ["price"]}
    )
    for n in range(1, 9):
        answer = exploring.recommend(Request(n=n))
        assert max(Counter(facts[item]["kind"] for item in answer.items).values()) <= 2
        assert len(answer.items) == min(n, 4)
    narrow = exploring.recommend(
        Request(
            n=4, where="price < 6", exclude=["item-01"], allow=["item-00", "item-01", "item-03", "item-09"]
        )
    )
    assert set(narrow.items) == {"item-00", "item-03"}


def test_what_was_bought_does_not_come_again_as_new() -> None:
    owned = engine({"share": 1.0, "persons": FEW}, rebuy={"column": "kind"}, further={
        "catalogue": {item: {"kind": "a"} for item in ITEMS},
    })  # fmt: skip
    both = Permission.ONLINE | Permission.CRM
    request = Request(crm_history=["item-08"], online_history=["item-01"], permission=both, linked=True, n=20)
    answer = owned.recommend(request)
    assert answer.tier is Tier.FUSED
    assert answer.basis.exploration is not None
    assert "item-08" not in answer.items


listed = st.lists(st.integers(0, 20).map(str), max_size=8, unique=True)


@given(listed, st.integers(1, 9), st.integers(0, 9), st.permutations(range(20)), st.sets(st.integers(0, 20)))
def test_a_list_never_gets_shorter_nor_longer_than_it_may(
    items: list[str], n: int, slots: int, pool: list[int], refused: set[int]
) -> None:
    items, slots = items[:n], min(slots, n)
    drawn = [str(item) for item in pool if str(item) not in items[: n - slots]]
    kept, new = with_explored(items, n, slots, drawn, lambda item: int(item) not in refused)
    together = [*kept, *new]
    assert len(set(together)) == len(together)
    assert len(items) <= len(together) <= n
    assert len(new) <= slots
    assert not new or kept[: n - slots] == tuple(items[: n - slots])
    assert not {int(item) for item in new} & refused


def test_a_fault_leaves_the_answer_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    exploring = engine({"share": 0.5, "persons": FEW})

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("no such page")

    monkeypatch.setattr(PopularScorer, "explored", fail)
    answer = exploring.recommend(Request(session=["item-03"], n=6))
    assert answer.items == engine(None).recommend(Request(session=["item-03"], n=6)).items
    assert answer.basis.reasons[-1] == "exploration: failed with OSError"


@pytest.mark.parametrize(
    ("explore", "message"),
    [
        ({"share": 0}, "explore.share must be a number above 0 and at most 1"),
        ({"share": 1.5}, "explore.share must be"),
        ({}, "explore.share must be"),
        ({"share": 0.1, "persons": 0}, "explore.persons must be a whole number of at least 1"),
        ({"share": 0.1, "column": "added"}, "both column and days"),
        ({"share": 0.1, "column": 3, "days": 3}, "explore.column must name"),
        ({"share": 0.1, "column": "added", "days": 0}, "explore.days must be a number above 0"),
        ({"share": 0.1, "shares": 1}, "unknown key 'shares'"),
    ],
)
def test_a_wrong_rule_is_named(explore: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rules.from_document({"explore": explore})


def test_a_column_that_holds_no_dates_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="added must hold dates, as in 2026-03-31, not 'soon'"):
        engine(
            {"share": 0.1, "column": "added", "days": 9},
            further={"catalogue": {"item-01": {"added": "soon"}}},
        )
