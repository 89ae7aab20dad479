"""Tenth law, where answers hold what is trending or new: both are on record, and given again bit for bit.

And first, by the way: with the same snapshot and seed an answer depends on nothing that may not be read; what
is hidden or sensitive stands in no field of it; and at the first level the audit's line names neither.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from breaking import Break, assert_breaks, breaks
from engines import ITEMS, bundles
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import Channel, Permission
from consentier.consent.keyring import Keyring
from consentier.serving import Answer, Recommender, Request
from consentier.serving import replay as replaying
from consentier.serving.audit import JsonLinesAudit, audit_lines
from consentier.serving.exploration import new_seed
from consentier.serving.popular_scorer import PopularScorer
from consentier.serving.replay import Outcome, ReplayInputs, replay
from consentier.serving.rules import Rules
from consentier.serving.trending import TrendingSnapshot

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
FACTS: dict[str, dict[str, Any]] = {
    item: {"kind": "abc"[number % 3], "sensitive": item == "pills", "available": item != "sold-out"}
    for number, item in enumerate(ITEMS)
}
FACTS |= {f"new-{number}": {"kind": "abc"[number % 3]} for number in range(6)}
HIDDEN = {item for item, facts in FACTS.items() if facts["kind"] == "c"} | {"pills", "sold-out", "item-00"}
BOTH = Permission.ONLINE | Permission.CRM
KEYRING = Keyring.ephemeral()


@functools.cache
def engine(factors: bool, explore: bool = True) -> Recommender:
    document: dict[str, Any] = {"show": "kind != 'c'", "deny": ["item-00"], "caps": {"kind": 4}}
    if explore:
        document["explore"] = {"share": 0.35, "persons": 9}
    return Recommender.load(
        bundles(factors=factors),
        catalogue=FACTS,
        filter_by=["kind"],
        rules=Rules.from_document(document),
        keyring=KEYRING,
        clock=lambda: NOW,
    )


histories = st.lists(st.sampled_from([*ITEMS, "new-0", "?"]), max_size=4)
asked = st.fixed_dictionaries(
    {
        "session": histories,
        "online_history": histories,
        "crm_history": histories,
        "permission": st.sampled_from([Permission.NONE, Permission.ONLINE, Permission.CRM, BOTH]),
        "linked": st.booleans(),
        "channel": st.sampled_from([Channel.SHOP, Channel.EMAIL]),
        "n": st.integers(1, 14),
        "explain": st.booleans(),
        "where": st.none() | st.just("kind == 'a'"),
    }
)
seeds = st.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}")
snapshots = st.builds(
    TrendingSnapshot,
    st.lists(st.sampled_from([*FACTS, "unheard-of"]), max_size=6, unique=True).map(tuple),
    st.sampled_from([0.1, 0.5, 1.0]),
)
Case = tuple[dict[str, Any], str, TrendingSnapshot, bool]
cases = st.tuples(asked, seeds, snapshots, st.booleans())


def by_chance(case: Case) -> tuple[Recommender, Request]:
    fields, seed, snapshot, factors = case
    loaded = dataclasses.replace(engine(factors), exploration_seed=lambda: seed, trending=snapshot)
    return loaded, Request(**fields, at=NOW)


def said(answer: Answer) -> str:
    return json.dumps(answer.to_dict(), sort_keys=True)


def check_hidden_items_are_nowhere(case: Case) -> None:
    loaded, request = by_chance(case)
    answer = loaded.recommend(request)
    for item in HIDDEN:
        assert f'"{item}"' not in said(answer), item
    if request.where is not None:
        assert all(FACTS[item]["kind"] == "a" for item in answer.items)


@given(cases)
def test_a_hidden_item_is_neither_trending_nor_new(case: Case) -> None:
    check_hidden_items_are_nowhere(case)


@breaks(
    Break("what is hidden may be drawn", PopularScorer._few, "few & ~self._shelf.hidden", "few"),
    Break("what is hidden may be trending", PopularScorer.top, " and on_show[number]", ""),
    Break(
        "a page's filter does not bind what is drawn",
        PopularScorer._pool,
        "if query.where is not None:",
        "if False:",
    ),
)
def test_a_hidden_item_that_shows_would_be_noticed(broken: Break) -> None:
    engine.cache_clear()
    assert_breaks(check_hidden_items_are_nowhere, cases, broken)
    engine.cache_clear()


@given(cases, histories, histories)
def test_with_one_seed_and_snapshot_the_unpermitted_change_nothing(
    case: Case, some: list[str], others: list[str]
) -> None:
    fields, *rest = case
    fields = {**fields, "permission": Permission.NONE}
    answers = []
    for online, crm, name in ((some, others, "ann"), (others, some, "ben")):
        ids = {"online_history": online, "crm_history": crm, "visitor_id": name, "customer_id": name}
        loaded, request = by_chance(({**fields, **ids}, *rest))  # type: ignore[arg-type]
        answers.append(said(loaded.recommend(request)))
    assert answers[0] == answers[1]


def check_what_was_drawn_and_trending_is_given_again(case: Case) -> None:
    loaded, request = by_chance(case)
    with tempfile.TemporaryDirectory() as folder:
        answer = dataclasses.replace(loaded, audit=JsonLinesAudit(folder, KEYRING)).recommend(request)
        (line,) = audit_lines(folder)
        (text,) = [path.read_text() for path in Path(folder).iterdir()]
    drawn = answer.basis.exploration
    if line.trace is None:
        assert drawn is None or drawn.seed not in text
        assert answer.basis.trending_digest is None or answer.basis.trending_digest not in text
        return
    # The inputs as a caller would send them again: the seed stands in the line, the snapshot is given.
    fresh = dataclasses.replace(engine(case[3]), exploration_seed=new_seed, trending=None)
    inputs = ReplayInputs(request, trending=case[2])
    found = replay(line, inputs, fresh, KEYRING)
    assert found.outcome is Outcome.REPRODUCED, found.detail
    assert found.answer is not None
    assert found.answer.items == answer.items
    assert found.answer.basis.exploration == drawn
    if answer.basis.trending_digest is not None:
        for other in (None, TrendingSnapshot((*case[2].items, "another"), case[2].share)):
            found = replay(line, ReplayInputs(request, trending=other), fresh, KEYRING)
            assert found.outcome is Outcome.INPUTS_DIFFER


@settings(max_examples=150)
@given(cases)
def test_what_was_drawn_and_trending_is_given_again(case: Case) -> None:
    check_what_was_drawn_and_trending_is_given_again(case)


@breaks(
    Break(
        "the seed is not that of the line",
        replaying._by_chance,
        "lambda: seed",
        "lambda: '0123456789abcdef'",
    ),
    Break(
        "a snapshot is taken for another",
        replaying.replay,
        "if trace.trending is not None and (",
        "if False and (",
    ),
    Break(
        "the draw has no record",
        JsonLinesAudit._trace,
        "answer.basis.exploration.seed",
        "None",
    ),
)
def test_what_cannot_be_given_again_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_what_was_drawn_and_trending_is_given_again, cases, broken)
