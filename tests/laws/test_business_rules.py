"""Rules hold on every path: what they hide stands in no field of any answer, whoever asks and however."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
from collections import Counter
from typing import Any

import pytest
from engines import ITEMS, bundles
from hypothesis import given
from hypothesis import strategies as st

from consentier.consent import Channel, Permission, Tier
from consentier.errors import ConfigError
from consentier.serving import Answer, Catalogue, Event, Recommender, Request
from consentier.serving.item_columns import Expression
from consentier.serving.rules import Rules

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
KINDS = ("shoes", "hats", "coats")
FACTS: dict[str, dict[str, Any]] = {
    item: {"category": KINDS[number % 3], "price": float(number), "sensitive": item == "pills"}
    for number, item in enumerate(ITEMS)
}
FACTS |= {"brand-new": {"category": "hats", "price": 3.0}, "unknown-price": {"category": "shoes"}}
CATALOGUE = Catalogue.of(FACTS)
BOTH = Permission.ONLINE | Permission.CRM


@functools.cache
def engine(rules: str = "{}", factors: bool = False) -> Recommender:
    return Recommender.load(
        bundles(factors=factors),
        catalogue=CATALOGUE,
        rules=Rules.from_document(json.loads(rules)),
        audit_key=b"key",
        clock=lambda: NOW,
    )


def shown(answer: Answer) -> str:
    """Everything that an answer says."""
    return json.dumps(answer.to_dict())


histories = st.lists(st.sampled_from([*ITEMS, "brand-new", "?"]), max_size=4)
asked = st.fixed_dictionaries(
    {
        "session": histories,
        "online_history": histories,
        "crm_history": histories,
        "permission": st.sampled_from([Permission.NONE, Permission.ONLINE, Permission.CRM, BOTH]),
        "linked": st.booleans(),
        "channel": st.sampled_from([Channel.SHOP, Channel.EMAIL]),
        "n": st.integers(1, 20),
        "explain": st.booleans(),
        "where": st.none() | st.sampled_from(["price < 6", "category != 'hats'", "price is None"]),
    }
)


def answers(recommender: Recommender, fields: dict[str, Any]) -> list[Answer]:
    """Of every question that can be asked with these fields."""
    found = [recommender.recommend(Request(**fields, attributes={"region": "north"}, at=NOW))]
    items = [item for item in fields["session"] if item != "?"]
    if items:
        found += [recommender.similar(items[0], n=fields["n"]), recommender.basket(items, n=fields["n"])]
    return found


def check_hidden_items_are_nowhere(fields: dict[str, Any], factors: bool = False) -> None:
    recommender = engine('{"show": "category != \'coats\' and price > 1", "deny": ["item-07"]}', factors)
    for number, answer in enumerate(answers(recommender, fields)):
        said = shown(answer)
        for item, facts in FACTS.items():
            price = facts.get("price")
            allowed = price is not None and price > 1 and facts["category"] != "coats"
            allowed = allowed and item not in ("item-07", "pills")
            assert allowed or f'"{item}"' not in said, item
            if number == 0:  # what the page asks for narrows the list, but its items may be reasons
                fits = {
                    None: True,
                    "price < 6": price is not None and price < 6,
                    "category != 'hats'": facts["category"] != "hats",
                    "price is None": price is None,
                }[fields["where"]]
                assert fits or item not in answer.items, item


@given(asked, st.booleans())
def test_a_hidden_item_stands_in_no_field_of_any_answer(fields: dict[str, Any], factors: bool) -> None:
    check_hidden_items_are_nowhere(fields, factors)


@given(asked, st.booleans())
def test_caps_hold_over_scored_and_filled_items(fields: dict[str, Any], factors: bool) -> None:
    for answer in answers(engine('{"caps": {"category": 2}}', factors), fields):
        counts = Counter(FACTS[item]["category"] for item in answer.items)
        assert max(counts.values(), default=0) <= 2
        assert len(set(answer.items)) == len(answer.items)


@given(asked)
def test_lists_are_as_long_as_rules_and_catalogue_allow(fields: dict[str, Any]) -> None:
    """The popular list fills up with whatever may be shown; only what the page excludes is missing."""
    answer = engine('{"show": "price < 9"}').recommend(Request(**{**fields, "where": None}, at=NOW))
    possible = sum(facts.get("price", 99) < 9 and item != "pills" for item, facts in FACTS.items())
    assert len(answer.items) == min(fields["n"], possible)


@given(asked)
def test_rules_that_do_nothing_change_nothing(fields: dict[str, Any]) -> None:
    plain = Recommender.load(bundles(), catalogue=CATALOGUE, audit_key=b"key", clock=lambda: NOW)
    everything = '{"boost": [{"where": "price >= 0", "factor": 1}], "caps": {"category": 99}}'
    for mine, theirs in zip(answers(plain, fields), answers(engine(everything), fields), strict=True):
        # They are told among the main parameters all the same.
        mine, theirs = (dataclasses.replace(each, main_parameters=None) for each in (mine, theirs))
        assert shown(mine) == shown(theirs)


@given(asked, histories, histories)
def test_what_was_bought_hides_nothing_where_crm_data_may_not_be_read(
    fields: dict[str, Any], some: list[str], others: list[str]
) -> None:
    rules = '{"rebuy": {"column": "category", "days": {"hats": 9}}}'
    fields = {**fields, "permission": fields["permission"] & Permission.ONLINE}
    first, second = (
        shown(engine(rules).recommend(Request(**{**fields, "crm_history": bought}, at=NOW)))
        for bought in (some, others)
    )
    assert first == second


def test_what_was_bought_comes_again_after_its_days() -> None:
    rules = '{"rebuy": {"column": "category", "days": {"shoes": 30, "hats": 2}}}'

    def bought(item: str, days: float | None, kind: str | None = "order") -> bool:
        at = None if days is None else NOW - dt.timedelta(days=days)
        request = Request(
            crm_history=[Event(item, at, kind), Event("item-05", NOW - dt.timedelta(days=99), "usage")],
            permission=Permission.CRM,
            channel=Channel.EMAIL,
            at=NOW,
            n=20,
        )
        answer = engine(rules).recommend(request)
        assert answer.tier is Tier.CRM
        return item in answer.items

    assert FACTS["item-03"]["category"] == "shoes"
    assert [bought("item-03", days) for days in (1, 29.9, 30, 31, None)] == [False, False, True, True, False]
    assert [bought("item-04", days) for days in (1, 2)] == [False, True]  # a hat
    assert [bought("item-02", days) for days in (1, 5000)] == [False, False]  # a coat: never
    assert bought("item-03", 1, "usage")


def test_a_wrong_filter_is_the_callers_fault() -> None:
    with pytest.raises(ValueError, match="did you mean 'price'"):
        engine().recommend(Request(session=["item-01"], where="prize < 3"))
    with pytest.raises(ValueError, match="cannot be read"):
        Request(where="price <")
    with pytest.raises(TypeError, match="must be a string"):
        Request(where=3)  # type: ignore[arg-type]
    assert engine().recommend(Request(session=["item-01"], where=Expression("price < 3"), n=9)).items
    without = Recommender.load(bundles())
    with pytest.raises(ValueError, match="holds no attributes"):
        without.recommend(Request(where="price < 3"))


def test_rules_that_do_not_fit_the_catalogue_stop_the_start() -> None:
    rules = Rules.from_document({"caps": {"colour": 2}})
    with pytest.raises(ConfigError, match="colour"):
        Recommender.load(bundles(), catalogue=CATALOGUE, rules=rules)
    with pytest.raises(ConfigError, match="holds no attributes"):
        Recommender.load(bundles(), rules=rules)
