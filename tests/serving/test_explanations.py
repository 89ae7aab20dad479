"""Explanations: shares of what speaks for an item, from data that the request may read, and no other."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from engines import CATALOGUE, ITEMS, bundles, engine
from hypothesis import given
from hypothesis import strategies as st

from consentier.consent import Channel, Permission, Side, Source, Tier
from consentier.models.bundle import open_bundle
from consentier.models.scoring import best_items, contributions
from consentier.serving import Catalogue, Event, PermittedView, Recommender, Request
from consentier.serving.query import Query

BOTH = Permission.ONLINE | Permission.CRM
SHOWN = CATALOGUE.available

histories = st.lists(st.sampled_from([*ITEMS, "?"]), max_size=4)
asked = st.fixed_dictionaries(
    {
        "session": histories,
        "online_history": histories,
        "crm_history": histories,
        "attributes": st.sampled_from([{}, {"region": "north", "age": 31}]),
        "permission": st.sampled_from([Permission.NONE, Permission.ONLINE, Permission.CRM, BOTH]),
        "linked": st.booleans(),
        "channel": st.sampled_from([Channel.SHOP, Channel.EMAIL]),
        "n": st.integers(1, 20),
    }
)


@given(asked, st.booleans())
def test_causes_come_from_what_was_read_and_may_be_shown(fields: dict[str, Any], factors: bool) -> None:
    recommender = engine(catalogue=CATALOGUE, factors=factors)
    answer = recommender.recommend(Request(**fields, explain=True))
    plain = recommender.recommend(Request(**fields))
    assert (plain.explanations, plain.main_parameters) == (None, None)
    assert dataclasses.replace(answer, explanations=None, main_parameters=None) == plain
    assert answer.explanations is not None
    assert answer.main_parameters
    assert len(answer.explanations) == len(answer.items)
    read = {"session": fields["session"], "online": fields["online_history"], "crm": fields["crm_history"]}
    for item, score, explanation in zip(answer.items, answer.scores, answer.explanations, strict=True):
        shares = [cause.share for cause in explanation.causes]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1 + 1e-9
        assert all(share > 0 for share in shares)
        assert explanation.text
        if score == 0:
            assert not explanation.causes, item
        for cause in explanation.causes:
            if cause.source == "attribute":
                assert "crm" in answer.basis.sources
                assert cause.name in fields["attributes"]
            else:
                assert cause.source in answer.basis.sources
                assert cause.name in read[cause.source]
                assert cause.name in SHOWN


@given(st.integers(0, 99), st.sampled_from([0.0, 0.5]), st.integers(1, 4))
def test_contributions_of_a_linear_model_sum_to_its_scores(seed: int, hop: float, hop_items: int) -> None:
    arrays = open_bundle(bundles() / "fused").arrays
    matrix = arrays["indptr"], arrays["indices"], arrays["data"]
    rng = np.random.default_rng(seed)
    size, inputs = len(ITEMS), arrays["indptr"].size - 1
    rows = np.sort(rng.choice(inputs, rng.integers(1, 6), replace=False)).astype(np.int64)
    weights = rng.random(rows.size).astype(np.float32) + np.float32(0.1)
    silent, nothing = rng.random(size) < 0.2, np.zeros(0, np.int64)
    ids, scores = best_items(
        *matrix, np.zeros(size, np.bool_), silent, hop, hop_items, rows, weights,
        nothing, np.zeros(0), nothing, None, size,
    )  # fmt: skip
    parts = contributions(*matrix, silent, hop, hop_items, rows, weights, ids)
    assert parts.shape == (rows.size, ids.size)
    np.testing.assert_allclose(parts.sum(axis=0), scores, rtol=1e-6)


def test_contributions_of_a_factor_model_sum_to_its_scores() -> None:
    """Repeats included, and attributes, of which the engine's factor models know two."""
    scorer = engine(factors=True).scorers[Tier.FUSED]
    view = PermittedView(
        frozenset(Source),
        session=(Event("item-01"),),
        crm_history=(Event("item-05"), Event("item-01")),
        attributes={"region": "north"},
    )
    found = scorer.answer(view, Query(20, Side.ONLINE))
    assert found is not None
    numbers = {item: number for number, item in enumerate(ITEMS)}
    inputs = np.array([1, 5, len(ITEMS)], dtype=np.int64)
    weights = np.array([5.0, 2.0, 1 / (1 + 2 / 5)], np.float32)  # session 3, CRM 2; attributes fade
    parts = scorer._contributions(inputs, weights, np.array([numbers[item] for item in found.items]))
    np.testing.assert_allclose(parts.sum(axis=0), found.scores, rtol=1e-6)


def test_sentences_name_items_as_the_catalogue_does() -> None:
    facts = {item: {"name": f"The {item}"} for item in ITEMS}
    recommender = Recommender.load(bundles(), catalogue=Catalogue.of(facts))
    request = Request(crm_history=["item-03"], permission=Permission.CRM, channel=Channel.EMAIL, explain=True)
    answer = recommender.recommend(request)
    assert answer.tier is Tier.CRM
    assert answer.explanations is not None
    assert answer.explanations[0].text == "Because you bought or use The item-03"
    assert answer.explanations[0].causes[0].share == pytest.approx(1.0)
    popular = recommender.recommend(Request(channel=Channel.EMAIL, n=2, explain=True))
    assert popular.explanations is not None
    assert {each.text for each in popular.explanations} == {"Popular in this shop"}
    assert popular.main_parameters


def test_to_explain_or_not_is_a_truth_value() -> None:
    with pytest.raises(TypeError, match="explain must be True or False"):
        Request(explain=1)  # type: ignore[arg-type]
