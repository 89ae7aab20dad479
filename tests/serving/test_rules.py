"""Business rules over the items of a bundle."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import given
from hypothesis import strategies as st

from consentier.errors import ConfigError
from consentier.serving.item_columns import ItemColumns
from consentier.serving.rules import Mixture, Rules, ShelfRules

ITEMS = tuple("abcdefgh")
ROWS: dict[str, dict[str, Any]] = {
    item: {"category": category, "price": 10.0 * number, "brand": "north" if number % 2 else "south"}
    for number, (item, category) in enumerate(
        zip(ITEMS, ("shoes", "shoes", "shoes", "hats", "hats", "coats", None, "shoes"), strict=True)
    )
}


def shelf(**document: Any) -> ShelfRules:
    return ShelfRules(Rules.from_document(document), ItemColumns(ROWS, ITEMS), ITEMS)


def listed(rules: ShelfRules, n: int, scores: dict[str, float] | None = None, **kept: Mixture) -> str:
    """The items of a list out of all that are not hidden, by default the first letters first."""
    given_scores = scores or {item: 8.0 - number for number, item in enumerate(ITEMS)}
    numbers = [ITEMS.index(item) for item in given_scores if not rules.hidden[ITEMS.index(item)]]
    numbers.sort(key=lambda number: (-given_scores[ITEMS[number]], number))
    values = np.array([given_scores[ITEMS[number]] for number in numbers])
    ids, _ = rules.chosen(np.array(numbers, dtype=np.int64), values, n, kept.get("mixture", Mixture()))
    return "".join(ITEMS[number] for number in ids)


def test_only_what_is_known_to_fit_is_shown() -> None:
    assert listed(shelf(show="category != 'hats' and price < 70"), 8) == "abcf"
    assert listed(shelf(deny=["a", "x"]), 3) == "bcd"
    assert listed(shelf(), 3) == "abc"


def test_boosts_multiply() -> None:
    boosted = shelf(
        boost=[{"where": "category == 'hats'", "factor": 2}, {"where": "price > 35", "factor": 3}]
    )
    ids, scores = boosted.chosen(np.array([2, 3, 4]), np.array([6.0, 5.0, 4.0]), 3, Mixture())
    assert ids.tolist() == [4, 3, 2]
    assert scores.tolist() == [24.0, 10.0, 6.0]


def test_caps_count_over_all_parts_of_a_list() -> None:
    capped, mixture = shelf(caps={"category": 2, "brand": 3}), Mixture()
    assert listed(capped, 4, mixture=mixture) == "abde"
    assert not capped.offer(ITEMS.index("c"), mixture)
    assert capped.offer(ITEMS.index("f"), mixture)
    assert not capped.offer(ITEMS.index("h"), mixture)
    assert capped.offer(ITEMS.index("g"), mixture), "an item without a category is not counted there"


def test_diversity_puts_the_unlike_first() -> None:
    diverse = shelf(diversity={"weight": 0.5, "columns": ["category"]})
    assert listed(diverse, 4) == "adfg"
    assert listed(shelf(diversity={"weight": 0.01, "columns": ["category"]}), 4) == "abcd"
    capped = shelf(diversity={"weight": 0.5, "columns": ["category"]}, caps={"category": 1})
    assert listed(capped, 8) == "adfg"


def test_what_was_bought_comes_again_after_its_time() -> None:
    rules = shelf(rebuy={"column": "category", "days": {"shoes": 30, "hats": 0.5}, "otherwise": 365})
    day = 86_400_000_000
    assert [rules.rebuy_interval(number) for number in (0, 3, 5, 6, -1)] == [
        30 * day, day // 2, 365 * day, 365 * day, 365 * day,
    ]  # fmt: skip
    assert shelf(rebuy={"column": "category"}).rebuy_interval(0) is None
    assert shelf().rebuy_interval(0) == 0


@given(
    st.dictionaries(st.sampled_from(ITEMS), st.integers(1, 9).map(float), min_size=1),
    st.integers(1, 8),
    st.none() | st.integers(1, 3),
    st.none() | st.sampled_from([0.1, 0.5, 1.0]),
    st.booleans(),
)
def test_a_list_keeps_to_all_rules_and_is_as_long_as_it_can_be(
    scores: dict[str, float], n: int, cap: int | None, weight: float | None, boosted: bool
) -> None:
    document: dict[str, Any] = {"show": "price < 70"}
    document |= {} if cap is None else {"caps": {"category": cap}}
    document |= {} if weight is None else {"diversity": {"weight": weight, "columns": ["category", "brand"]}}
    document |= {"boost": [{"where": "brand == 'north'", "factor": 1.5}]} if boosted else {}
    found = listed(shelf(**document), n, scores)
    shown = [item for item in scores if ROWS[item]["price"] < 70]
    assert set(found) <= set(shown)
    assert len(set(found)) == len(found)
    limit = 9 if cap is None else cap
    sizes = Counter(ROWS[item]["category"] for item in shown)
    free = sizes.pop(None, 0)
    assert len(found) == min(n, free + sum(min(size, limit) for size in sizes.values()))
    taken = Counter(ROWS[item]["category"] for item in found)
    taken.pop(None, None)
    assert max(taken.values(), default=0) <= limit


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"shows": "price < 3"}, "did you mean 'show'"),
        ({"show": 3}, "show: a filter must be a string"),
        ({"show": "price <"}, "show: the filter .* cannot be read"),
        ({"deny": "a"}, "deny must be a list of texts"),
        ({"boost": {"where": "sale"}}, "boost must be a list"),
        ({"boost": [{"where": "sale", "factor": 0}]}, "boost 1: factor must be a number above 0"),
        ({"boost": [{"where": "sale", "factor": True}]}, "boost 1: factor must be a number above 0"),
        ({"boost": [{"where": "sale", "by": 2}]}, "boost 1: unknown key 'by'"),
        ({"caps": {"category": 0}}, "caps.category must be a whole number of at least 1"),
        ({"caps": 3}, "caps must be a table"),
        ({"rebuy": {"days": {}}}, "rebuy.column must name an attribute"),
        ({"rebuy": {"column": "category", "days": {"hats": -1}}}, "rebuy.days.hats must be a number above 0"),
        ({"diversity": {"weight": 2, "columns": ["x"]}}, "diversity.weight must be .* at most 1"),
        ({"diversity": {"weight": 0.5, "columns": []}}, "at least one attribute"),
    ],
)
def test_a_wrong_rule_is_named(document: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Rules.from_document(document)


def test_rules_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        'show = "price < 70"\n[caps]\ncategory = 2\n[rebuy]\ncolumn = "category"\ndays = {hats = 9}\n'
    )
    rules = Rules.load(path)
    assert (rules.caps, rules.rebuy is not None and rules.rebuy.days) == ({"category": 2}, {"hats": 9.0})
    path.write_text("show = 3\n")
    with pytest.raises(ConfigError, match=r"rules\.toml: show"):
        Rules.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Rules.load(tmp_path / "none.toml")


def test_a_rule_about_an_attribute_that_is_not_there_is_an_error() -> None:
    for document in ({"show": "prize < 3"}, {"caps": {"prize": 1}}, {"rebuy": {"column": "prize"}}):
        with pytest.raises(ValueError, match="did you mean 'price'"):
            shelf(**document)


# ---- No more candidates than it takes ----------------------------------------------------------------------

MANY = tuple(f"{number:04}" for number in range(2000))


@functools.cache
def many(rules: str) -> ShelfRules:
    """Rules over many items, most of which are alike in what caps and diversity look at."""
    rows: dict[str, dict[str, Any]] = {
        item: {
            "kind": "common" if number < 1500 else f"kind {number % 7}",
            "brand": f"brand {number % 3}",
            "own": number % 11 == 0,
            "rare": number % 90 == 7,
        }
        for number, item in enumerate(MANY)
    }
    return ShelfRules(Rules.from_document(json.loads(rules)), ItemColumns(rows, MANY), MANY)


documents = st.fixed_dictionaries(
    {},
    optional={
        "boost": st.lists(
            st.fixed_dictionaries(
                {
                    "where": st.sampled_from(["own", "rare", "kind == 'common'", "brand == 'brand 1'"]),
                    "factor": st.sampled_from([0.25, 1.0, 1.5, 2.0, 7.0]),
                }
            ),
            max_size=2,
        ),
        "caps": st.fixed_dictionaries({"kind": st.integers(1, 3)}),
        "diversity": st.fixed_dictionaries(
            {"weight": st.sampled_from([0.1, 0.5, 1.0]), "columns": st.just(["kind", "brand"])}
        ),
    },
)
DIVERSE = {"weight": 0.5, "columns": ["kind", "brand"]}
mixing = st.tuples(
    documents, st.integers(1, 12), st.sampled_from([3, 115, 2000]), st.integers(1, 60), st.integers(0, 9)
)
Mixing = tuple[dict[str, Any], int, int, int, int]


def check_a_prefix_gives_the_list_of_all(case: Mixing) -> None:
    """Scores that fall slowly, with ties, so that the first look rarely decides."""
    document, n, scored, levels, seed = case
    rules = many(json.dumps(document))
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(len(MANY), scored, replace=False)).astype(np.int64)
    steps = rng.integers(0, levels, scored)
    scores = 2.0 ** (steps == 0) if seed < 4 else 1.0 + steps / 40
    order = np.lexsort((ids, -scores))
    ids, scores = ids[order], scores[order]
    mixture = Mixture()
    all_ids, all_scores = rules.chosen(ids, scores, n, mixture)
    found, found_scores, found_mixture = rules.list_of(lambda most: (ids[:most], scores[:most]), n, len(MANY))
    assert found.tolist() == all_ids.tolist()
    assert found_scores.tobytes() == all_scores.tobytes()
    assert found_mixture.counts == mixture.counts


@given(mixing)
def test_a_list_of_few_candidates_is_that_of_all(case: Mixing) -> None:
    check_a_prefix_gives_the_list_of_all(case)


def test_no_more_candidates_are_asked_for_than_it_takes() -> None:
    def asked(n: int, **document: Any) -> list[int]:
        numbers: list[int] = []
        ids, scores = np.arange(2000, dtype=np.int64), np.linspace(2.0, 1.0, 2000)

        def ranking(most: int) -> tuple[Any, Any]:
            numbers.append(most)
            return ids[:most], scores[:most]

        many(json.dumps(document)).list_of(ranking, n, len(MANY))
        return numbers

    assert asked(1, caps={"kind": 1}) == [110]
    assert asked(2, caps={"kind": 1}) == [120, 960, 2000], (
        "what is common fills the first look, and the cap is 1"
    )
    assert asked(2, boost=[{"where": "own", "factor": 1.1}]) == [120]
    assert asked(2, boost=[{"where": "kind == 'kind 1'", "factor": 3.0}]) == [120, 960, 2000]
    assert asked(2, diversity={"weight": 0.5, "columns": ["kind"]}) == [120]
    boosted = {"boost": [{"where": "own", "factor": 1.1}], "diversity": DIVERSE}
    assert asked(2, **boosted) == [960], "the first look could not settle as many as diversity needs"


@breaks(
    Break("boosts are not allowed for", ShelfRules._boosted, " * self._largest_factor", ""),
    Break("what is boosted counts as settled", ShelfRules._boosted, "if not whole:", "if False:"),
    Break(
        "ties count as settled",
        ShelfRules._boosted,
        "> scores[-1]",
        ">= scores[-1]",
        ({"boost": [{"where": "rare", "factor": 2.0}]}, 7, 2000, 60, 0),
    ),
    Break("a short list is good enough", ShelfRules.list_of, "if whole or ids.size == n:", "if True:"),
    Break(
        "diversity chooses among fewer",
        ShelfRules.list_of,
        "if whole or ids.size >= needed:",
        "if True:",
        ({"boost": [{"where": "rare", "factor": 7.0}], "diversity": DIVERSE}, 7, 2000, 60, 4),
    ),
    Break(
        "what an attempt counted stays",
        ShelfRules.list_of,
        "mixture = Mixture()",
        "mixture = locals().get('mixture', Mixture())",
    ),
)
def test_a_list_that_more_candidates_would_change_would_be_noticed(broken: Break) -> None:
    many.cache_clear()
    assert_breaks(check_a_prefix_gives_the_list_of_all, mixing, broken)
    many.cache_clear()
