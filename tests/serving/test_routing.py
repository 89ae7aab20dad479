"""What a registry decided about level 3: whoever answers obeys, reads no more, and says so."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from breaking import Break, assert_breaks, breaks
from engines import ITEMS, bundles
from hypothesis import example, given, settings
from hypothesis import strategies as st
from policy_cases import PolicyCase, ShopPolicy, policy_cases

from consentier.consent import Channel, Permission, Policy, Resolution, Side, State, Switches, Tier
from consentier.consent import policy as policy_module
from consentier.errors import PolicyError
from consentier.serving import Recommender, Request
from consentier.serving.disclosures import disclosures
from consentier.serving.reloading import ReloadingRecommender
from consentier.serving.routing import Routing, read_routing, write_routing

BOTH = Request(
    session=ITEMS[:2], online_history=ITEMS[2:4], crm_history=ITEMS[4:6], linked=True, n=5,
    permission=Permission.ONLINE | Permission.CRM,
)  # fmt: skip
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(bundles(), tmp_path / "bundles")


# ---- The policy --------------------------------------------------------------------------------------------


def check_without_fused(pair: tuple[PolicyCase, Tier | None]) -> None:
    """Without fused, every cell reads no more than before, and what remains is a lawful policy."""
    case, first = pair
    policy = case.policy()
    if policy is None:
        return
    try:
        changed = policy.without_fused(first)
    except PolicyError as error:
        raise AssertionError("it is no lawful policy") from error
    for cell, tiers in policy.matrix.items():
        assert Tier.FUSED not in changed.matrix[cell]
        assert changed.readable(*cell) <= policy.readable(*cell)
        if Tier.FUSED not in tiers:
            assert changed.matrix[cell] == tiers
    assert changed.switches == policy.switches


CASES = st.tuples(policy_cases, st.sampled_from([None, Tier.ONLINE, Tier.CRM]))
FUSED_ALONE = ShopPolicy(
    {**Policy.default().matrix, (State.BOTH_LINKED, Side.ONLINE): (Tier.FUSED,)}, Switches()
)


@settings(max_examples=200, deadline=None)
@given(CASES)
@example((PolicyCase(FUSED_ALONE, Resolution(), Channel.SHOP, vouched=False), Tier.CRM))
def test_without_fused_nothing_more_is_read_and_nothing_less_than_lawful(
    pair: tuple[PolicyCase, Tier | None],
) -> None:
    check_without_fused(pair)


@breaks(
    Break(
        "the single sources stand also where they are not lawful",
        policy_module._replaced,
        "if tier in _LAWFUL[cell]",
        "",
    ),
    Break(
        "fused stays behind the single sources",
        policy_module._replaced,
        "for each in (lawful if tier is old else (tier,))",
        "for each in ((*lawful, tier) if tier is old else (tier,))",
    ),
    Break(
        "fused is taken away and nothing put in its place",
        policy_module._replaced,
        "for each in (lawful if tier is old else (tier,))",
        "for each in (() if tier is old else (tier,))",
        (PolicyCase(FUSED_ALONE, Resolution(), Channel.SHOP, vouched=False), Tier.CRM),
    ),
)
def test_a_policy_that_reads_more_without_fused_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_without_fused, CASES, broken, examples=3000)


def test_the_better_source_comes_first_and_the_version_says_so() -> None:
    by_crm = Policy.default().without_fused(Tier.CRM)
    assert by_crm.matrix[State.BOTH_LINKED, Side.ONLINE] == (
        Tier.CRM, Tier.ONLINE, Tier.SESSION, Tier.POPULAR,
    )  # fmt: skip
    assert by_crm.matrix[State.BOTH_LINKED, Side.CRM] == (Tier.CRM, Tier.POPULAR)
    assert by_crm.version == "consentier-default-1; level 3 by crm"
    with pytest.raises(ValueError, match="online or crm"):
        Policy.default().without_fused(Tier.SESSION)


# ---- What answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level_3", "sources"), [(Tier.ONLINE, ("online", "session")), (Tier.CRM, ("crm",))])
def test_level_3_is_answered_by_one_source_through_its_own_view(
    folder: Path, level_3: Tier, sources: tuple[str, ...]
) -> None:
    assert Recommender.load(folder).recommend(BOTH).tier is Tier.FUSED
    write_routing(folder, Routing(level_3))
    engine = Recommender.load(folder)
    answer = engine.recommend(BOTH)
    assert (answer.tier, answer.basis.sources) == (level_3, sources)
    assert answer.basis.policy_version == f"consentier-default-1; level 3 by {level_3}"
    unread = {"crm_history": ITEMS[8:10]} if level_3 is Tier.ONLINE else {"online_history": ITEMS[8:10]}
    other = engine.recommend(dataclasses.replace(BOTH, **unread))  # type: ignore[arg-type]
    assert (other.items, other.scores) == (answer.items, answer.scores)


def test_the_record_of_processing_says_who_answers_level_3(folder: Path) -> None:
    write_routing(folder, Routing(Tier.CRM))
    document = disclosures(Policy.default(), bundles=folder)
    assert document["policy_version"] == "consentier-default-1; level 3 by crm"
    linked = [cell["tiers"] for cell in document["matrix"] if cell["state"] == "both_linked"]
    assert [tiers[0] for tiers in linked] == ["crm", "crm"]


def test_a_running_service_follows_and_comes_back(folder: Path) -> None:
    asked = ReloadingRecommender(folder)
    assert asked.recommend(BOTH).tier is Tier.FUSED
    write_routing(folder, Routing(Tier.CRM))
    asked.check()
    assert asked.recommend(BOTH).tier is Tier.CRM
    write_routing(folder, Routing())
    asked.check()
    answer = asked.recommend(BOTH)
    assert (answer.tier, answer.basis.policy_version) == (Tier.FUSED, "consentier-default-1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"format": 2, "level_3": null, "rolled_back": {}}',
        '{"format": 1, "level_3": "fused", "rolled_back": {}}',
        '{"format": 1, "level_3": 1, "rolled_back": {}}',
        '{"format": 1, "level_3": null, "rolled_back": {"fused": "sha256:00"}}',
        '{"format": 1, "level_3": null, "rolled_back": {"fusde": "' + DIGEST + '"}}',
        '{"format": 1, "level_3": null, "rolled_back": []}',
        '{"format": 1, "level_3": null, "rolled_back": {}, "more": 1}',
        "[" * 50_000,
    ],
)
def test_a_decision_that_cannot_be_understood_lowers_the_tier(folder: Path, text: str) -> None:
    (folder / "routing.json").write_text(text)
    routing = read_routing(folder)
    assert routing.fault
    assert not routing.may_go_back(Tier.FUSED, DIGEST)
    answer = Recommender.load(folder).recommend(BOTH)
    assert answer.tier is Tier.ONLINE
    assert answer.basis.policy_version == "consentier-default-1; level 3 without fused"


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    routing = Routing(Tier.ONLINE, {Tier.FUSED: DIGEST})
    write_routing(tmp_path, routing)
    assert read_routing(tmp_path) == routing
    assert read_routing(tmp_path / "elsewhere") == Routing()
    assert json.loads((tmp_path / "routing.json").read_text())["level_3"] == "online"
    with pytest.raises(ValueError, match="at fault"):
        write_routing(tmp_path, Routing(fault="broken"))


def test_a_pipe_in_the_place_of_the_decisions_is_a_fault_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "routing.json")
    assert "no regular file" in read_routing(tmp_path).fault
