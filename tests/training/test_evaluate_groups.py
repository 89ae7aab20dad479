"""Small cases whose right answer is known by hand: bands of popularity, and the state of permission."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from shops import Row, consent, day, event, link, order, shop

from consentier.consent import Policy, Tier
from consentier.features.gate import ConsentGate, ledger_of
from consentier.serving import Event
from consentier.training.config import EvaluationConfig
from consentier.training.evaluate_cases import Case, group_cases, links_of
from consentier.training.evaluate_groups import by_history, by_popularity, popularity_bands
from consentier.training.evaluate_judge import World, fusion_notes, fusion_verdicts, targets_of
from consentier.training.evaluation_result import POPULARITY_BANDS, PROMOTION_RULE

# ---- Bands of popularity -----------------------------------------------------------------------------------


def names_of(bands: NDArray[np.int64]) -> list[str]:
    return [POPULARITY_BANDS[band] for band in bands]


def test_bands_hold_a_third_of_the_interactions_each() -> None:
    # 60 interactions: the item of 20 is a third; the two of 10 another; four of 5 the last.
    popularity = np.array([5, 10, 0, 20, 5, 10, 5, 5])
    assert names_of(popularity_bands(popularity)) == [
        "tail", "middle", "new", "head", "tail", "middle", "tail", "tail",
    ]  # fmt: skip


def test_an_item_belongs_to_the_band_in_which_it_begins_and_ties_go_to_the_lower_number() -> None:
    assert names_of(popularity_bands(np.array([100, 1]))) == ["head", "tail"]
    assert names_of(popularity_bands(np.array([1, 1, 1]))) == ["head", "middle", "tail"]
    assert names_of(popularity_bands(np.array([0, 0]))) == ["new", "new"]
    assert names_of(popularity_bands(np.array([], dtype=np.int64))) == []


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_a_more_popular_item_is_never_in_a_lower_band(counts: list[int]) -> None:
    popularity = np.array(counts)
    bands = popularity_bands(popularity)
    order = np.argsort(-popularity, kind="stable")
    assert np.all(np.diff(bands[order]) >= 0)
    assert np.array_equal(bands == 3, popularity == 0)
    # The head reaches a third, and would not without its last item.
    head = popularity[bands == 0]
    if popularity.sum():
        assert 3 * head.sum() >= popularity.sum()
        assert 3 * (head.sum() - head.min()) < popularity.sum()


def world(popularity: list[int], *cutoffs: int) -> World:
    items = MappingProxyType({f"i{number}": number for number in range(len(popularity))})
    settings = EvaluationConfig(cutoffs=cutoffs or (2,), bootstrap_samples=100)
    return World(items, np.array(popularity), np.full(len(popularity), -1), settings)


# Items 0 (head), 1 (middle), 2 (tail), 3 (new).
BANDED = world([4, 4, 4, 0])


def test_each_band_is_judged_by_its_own_targets_on_its_own_customers() -> None:
    # 30 customers want the head and the tail; 25 others want the middle. The tier knows the tail second.
    targets = targets_of([("i0", "i2")] * 30 + [("i1",)] * 25, BANDED)
    lists = {"crm": np.array([[1, 2]] * 30 + [[1, 3]] * 25), "popular": np.array([[0, 1]] * 55)}
    found = {(row["tier"], row["band"]): row for row in by_popularity(lists, targets, BANDED)}
    assert set(found) == {(tier, band) for tier in lists for band in ("head", "middle", "tail")}
    assert {(row["band"], row["items"], row["targets"], row["customers"]) for row in found.values()} == {
        ("head", 1, 30, 30), ("middle", 1, 25, 25), ("tail", 1, 30, 30),
    }  # fmt: skip
    recall = {key: row["metrics"]["recall@2"]["mean"] for key, row in found.items()}
    assert recall == {
        ("crm", "head"): 0.0, ("crm", "middle"): 1.0, ("crm", "tail"): 1.0,
        ("popular", "head"): 1.0, ("popular", "middle"): 1.0, ("popular", "tail"): 0.0,
    }  # fmt: skip
    # A hit at the second place of a list of which one item is wanted.
    assert found["crm", "tail"]["metrics"]["ndcg@2"]["mean"] == pytest.approx(1 / np.log2(3))
    assert set(found["crm", "tail"]["metrics"]) == {"recall@2", "ndcg@2"}


def test_small_bands_are_counted_and_not_judged() -> None:
    targets = targets_of([("i0",)] * 20 + [("i3",)] * 19, BANDED)
    rows = by_popularity({"crm": np.array([[0, 3]] * 39)}, targets, BANDED)
    assert [(row["band"], row["customers"], bool(row["metrics"])) for row in rows] == [
        ("head", 20, True), ("new", 19, False),
    ]  # fmt: skip


def test_sessions_with_many_requests_count_once() -> None:
    targets = targets_of([("i0",)] * 60, BANDED)
    few = by_popularity({"session": np.array([[0, 1]] * 60)}, targets, BANDED, clusters=np.arange(60) // 4)
    assert [(row["customers"], row["targets"], row["metrics"]) for row in few] == [(15, 60, {})]


# ---- Length of history -------------------------------------------------------------------------------------


def test_each_length_of_history_has_one_cohort_for_all_tiers_and_intervals() -> None:
    cases = [Case(crm_history=(Event("i0"),)) for _ in range(30)] + [Case() for _ in range(19)]
    judged = {tier: {"ndcg@2": np.linspace(0, top, 49)} for tier, top in (("crm", 1.0), ("fused", 0.5))}
    rows = by_history([case.history_length() for case in cases], judged, BANDED)
    assert [(row["tier"], row["bucket"], row["customers"], bool(row["metrics"])) for row in rows] == [
        ("crm", "0", 19, False),
        ("fused", "0", 19, False),
        ("crm", "1-2", 30, True),
        ("fused", "1-2", 30, True),
    ]
    shown = rows[2]["metrics"]["ndcg@2"]
    assert shown["low"] < shown["mean"] < shown["high"]
    assert shown["mean"] == pytest.approx(judged["crm"]["ndcg@2"][:30].mean())


# ---- Whether fusion pays -----------------------------------------------------------------------------------


def judged_with(**means: float) -> dict[str, dict[str, NDArray[np.float64]]]:
    noise = np.tile([-0.01, 0.01], 50)
    return {tier: {"ndcg@2": mean + noise * (1 + (tier == "fused"))} for tier, mean in means.items()}


def test_fused_is_held_against_the_best_other_tier() -> None:
    (verdict,) = fusion_verdicts(
        judged_with(popular=0.1, session=0.2, online=0.3, crm=0.5, fused=0.4), BANDED
    )
    assert (verdict["best_other"], verdict["beats"]) == ("crm", False)
    assert "fused is worse than crm" in verdict["text"]
    assert "difference in ndcg@2 -0.1000 [-0.10" in verdict["text"]
    assert "Serve level 3 by crm" in verdict["text"]


def test_a_difference_that_may_be_none_is_no_gain() -> None:
    (verdict,) = fusion_verdicts(judged_with(online=0.4, crm=0.2, fused=0.4001), BANDED)
    assert verdict["difference"]["low"] < 0 < verdict["difference"]["mean"]
    assert (verdict["best_other"], verdict["beats"]) == ("online", False)
    assert "fused does not beat online" in verdict["text"]
    assert fusion_notes([verdict]) == [verdict["text"], PROMOTION_RULE]


def test_a_gain_is_called_one() -> None:
    (verdict,) = fusion_verdicts(judged_with(online=0.4, crm=0.2, fused=0.5), BANDED)
    assert (verdict["best_other"], verdict["beats"]) == ("online", True)
    assert "fused beats online" in verdict["text"]
    assert "Serve" not in verdict["text"]
    assert fusion_notes([verdict]) == [verdict["text"]], "promotion passes it too"


def test_without_a_fused_tier_nothing_is_said() -> None:
    assert fusion_verdicts(judged_with(online=0.4, crm=0.2), BANDED) == []
    assert fusion_verdicts(judged_with(fused=0.4), BANDED) == []


# ---- The state of permission -------------------------------------------------------------------------------

START, END = 100, 114


def everybody() -> dict[str, list[Row]]:
    """One person in each state, with an order and a visit before the cut-off and after it."""
    consents, identities = [], []

    def permits(name: str, *, crm: float | None = 1, online: float | None = 1) -> None:
        consents.extend([] if crm is None else [consent(f"c-{name}", "crm", at=crm)])
        consents.extend([] if online is None else [consent(f"v-{name}", "online", at=online)])

    for name in ("linked", "later", "strangers", "left", "lapsed-link", "untold"):
        permits(name)
    permits("crm", online=None)
    permits("online", crm=None)
    permits("late-crm", crm=START + 2, online=None)
    permits("late-both", crm=START + 2)
    identities += [link("v-linked", "c-linked", 5), link("v-left", "c-left", 5)]
    identities += [link("v-later", "c-later", START + 3), link("v-late-both", "c-late-both", START + 3)]
    # To a visitor who permits nothing; made before both permitted; without a time.
    identities += [link("v-crm", "c-crm", 5), link("v-lapsed-link", "c-lapsed-link", 0)]
    identities += [link("v-untold", "c-untold", None)]
    consents += [consent("v-left", "online", "withdrawn", END - 1)]
    names = sorted({row["subject_id"][2:] for row in consents})
    days = (10, 50, START + 5)
    return {
        "consents": consents,
        "identities": identities,
        "orders": [order(f"c-{name}", f"order-{name}", at) for name in names for at in days],
        "events": [
            event(f"v-{name}", f"view-{name}-{at}", at, session=f"s{at}") for name in names for at in days
        ],
    }


def test_everybody_is_in_the_group_of_the_cut_off_and_nobody_without_permission_is_in_any() -> None:
    tables = shop(**everybody())
    ledger, policy = ledger_of(tables), Policy.default()
    gate = ConsentGate(tables, ledger, day(END), policy)
    links = links_of(ledger, day(START), day(END), policy)
    found = group_cases(gate.permitted(Tier.ONLINE), gate.permitted(Tier.CRM), links, ledger, day(START))
    who = {
        key: sorted(case.target[0].removeprefix("order-").removeprefix("view-") for case in cases)
        for key, cases in found.items()
    }
    after = START + 5
    assert who == {
        ("both_linked", "crm"): ["linked"],
        ("both_linked", "online"): [f"linked-{after}"],
        ("both_unlinked", "crm"): ["later"],
        ("both_unlinked", "online"): [f"later-{after}"],
        # Where no link may be read, nobody knows that there is another side.
        ("crm_only", "crm"): ["crm", "lapsed-link", "left", "strangers", "untold"],
        ("online_only", "online"): [
            f"{name}-{after}" for name in ("lapsed-link", "late-both", "online", "strangers", "untold")
        ],
    }
    (linked,), (online,) = found["both_linked", "online"], found["online_only", "online"][:1]
    assert [each.item_id for each in linked.session] == ["view-linked-50"]
    assert [each.item_id for each in linked.all_history] == ["view-linked-10"]
    assert len(linked.crm_history) == 2
    assert online.crm_history == ()
    for key in (("crm_only", "crm"), ("both_unlinked", "crm")):
        assert all(not case.session and not case.all_history for case in found[key])
    for key in (("online_only", "online"), ("both_unlinked", "online")):
        assert all(not case.crm_history and not case.attributes for case in found[key])
