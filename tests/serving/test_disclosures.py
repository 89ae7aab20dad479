"""Disclosures follow the policy, the bundles and the schedules, and leave nothing of them out."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from engines import bundles, write_factors, write_linear
from hypothesis import given
from policy_cases import PolicyCase, policy_cases

from consentier.consent import Policy, Side, Source, State, Switches, Tier, sources_of
from consentier.consent.lifetimes import Lifetimes
from consentier.errors import BundleError, BundleMissing
from consentier.models.bundle import open_bundle
from consentier.serving.disclosures import Kept, disclosures, to_markdown
from consentier.serving.main_parameters import SOURCE_WORDS, main_parameters, rule_parameters
from consentier.serving.rules import Rules

DEFAULT = Policy.default()


def text(policy: Policy, **options: Any) -> str:
    """The disclosures of a policy, as Markdown."""
    return to_markdown(disclosures(policy, **options))


def changed(cell: tuple[State, Side], tiers: tuple[Tier, ...]) -> Policy:
    """The default policy with another cell."""
    return dataclasses.replace(DEFAULT, matrix={**DEFAULT.matrix, cell: tiers})


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Switches)])
def test_every_switch_is_told_and_changes_the_text(name: str) -> None:
    flipped = dataclasses.replace(
        DEFAULT,
        switches=dataclasses.replace(DEFAULT.switches, **{name: not getattr(DEFAULT.switches, name)}),
    )
    texts = [text(policy) for policy in (DEFAULT, flipped)]
    rows = [next(line for line in each.splitlines() if line.startswith(f"| `{name}` |")) for each in texts]
    assert rows[0] != rows[1]
    assert {row.split(" | ")[1] for row in rows} == {"on", "off"}
    assert len({row.split(" | ")[2] for row in rows}) == 2


@given(policy_cases)
def test_every_cell_is_told_as_the_policy_routes_it(case: PolicyCase) -> None:
    policy = case.policy()
    if policy is None:
        return
    document = disclosures(policy)
    assert document == json.loads(json.dumps(document))
    told = {(cell["state"], cell["side"]): cell for cell in document["matrix"]}
    assert set(told) == {(state, side) for state in State for side in Side}
    for (state, side), cell in told.items():
        state, side = State(state), Side(side)
        assert cell["tiers"] == list(policy.tiers(state, side))
        assert cell["reads"] == [
            SOURCE_WORDS[source] for source in Source if source in policy.readable(state, side)
        ]
    for tier in document["tiers"]:
        sides = {side["side"]: side for side in tier["sides"]}
        for side in Side:
            states = [state for state in State if tier["tier"] in policy.tiers(state, side)]
            assert (side in sides) == bool(states)
            if states:
                reads = sources_of(Tier(tier["tier"]), side)
                assert sides[side]["reads"] == [SOURCE_WORDS[each] for each in Source if each in reads]
                for needed, states_with in (
                    ("online permission", {State.ONLINE, State.BOTH_LINKED, State.BOTH_UNLINKED}),
                    ("CRM permission", {State.CRM, State.BOTH_LINKED, State.BOTH_UNLINKED}),
                    ("lawful link", {State.BOTH_LINKED}),
                ):
                    assert (needed in sides[side]["needs"]) == (set(states) <= states_with)
                assert sides[side]["ends_by_objection"] == (State.OBJECTED not in states)
    assert to_markdown(document).count("\n## The ") == len(Tier) - 1


@pytest.mark.parametrize(
    ("cell", "tiers"),
    [(cell, tiers[:-1]) for cell, tiers in DEFAULT.matrix.items() if tiers]
    + [((State.BOTH_LINKED, Side.ONLINE), (Tier.SESSION, Tier.FUSED))],
)
def test_another_cell_is_another_text(cell: tuple[State, Side], tiers: tuple[Tier, ...]) -> None:
    assert text(changed(cell, tiers)) != text(DEFAULT)


def test_a_tier_that_answers_nowhere_is_said_to() -> None:
    policy = dataclasses.replace(
        DEFAULT,
        matrix={
            cell: tuple(tier for tier in tiers if tier is not Tier.FUSED)
            for cell, tiers in DEFAULT.matrix.items()
        },
    )
    section = text(policy).split("## The fused tier")[1].split("\n## ")[0]
    assert "answers nowhere" in section


def test_conditions_of_a_link_follow_the_switches() -> None:
    def needs(**switches: bool) -> dict[str, list[str]]:
        policy = dataclasses.replace(DEFAULT, switches=dataclasses.replace(DEFAULT.switches, **switches))
        (fused,) = (tier for tier in disclosures(policy)["tiers"] if tier["tier"] == "fused")
        return {side["side"]: side["needs"] for side in fused["sides"]}

    both = ["CRM permission", "lawful link", "online permission"]
    assert needs() == {"online": [*both, "login in the running session"], "crm": both}
    assert needs(shared_device_login=False) == {"online": both, "crm": both}
    assert needs(fusion_purpose=True)["crm"] == [*both, "separate consent to joining"]
    assert needs(ads_purpose=True)["online"][-1] == "for advertising channels, separate consent to it"


@pytest.mark.parametrize(
    ("tier", "switch", "words"),
    [
        ("fused", "include_single_source_in_fused", "online permission or CRM permission,"),
        ("popular", "anonymous_statistics", "never asked"),
        ("crm", "model_purpose", "separate consent to contributing"),
    ],
)
def test_what_a_model_was_trained_on_follows_the_switches(tier: str, switch: str, words: str) -> None:
    for value in (False, True):
        policy = dataclasses.replace(
            DEFAULT, switches=dataclasses.replace(DEFAULT.switches, **{switch: value})
        )
        document = disclosures(policy, bundles=bundles())
        (found,) = (each["trained_on"] for each in document["tiers"] if each["tier"] == tier)
        assert (words in found) == value


def numbers(value: object) -> list[float]:
    """All numbers in a plain value."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list | tuple):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_the_main_parameters_tell_every_setting_of_the_manifest(tmp_path: Path) -> None:
    scoring = {
        "source_weights": {"session": 3.125, "online": 1.25, "crm": 2.375},
        "event_weights": {"cart": 7.5, "view": 0.625},
        "session_decay": 4.0,
        "hide": ["crm", "online"],
        "max_history": 77,
        "recency_half_life": 33.5,
        "second_hop_weight": 0.375,
        "second_hop_items": 41,
        "repeat_weight": 1.375,
        "attribute_weight": 0.875,
        "attribute_fade": 6.5,
    }
    write_linear(tmp_path / "fused", Tier.FUSED, scoring=scoring)
    manifest = open_bundle(tmp_path / "fused").manifest
    manifest = dataclasses.replace(
        manifest, parameters={"neighbours": 211, "half_life_days": 45.5, "on": True}
    )
    sentences = "\n".join(main_parameters(manifest))
    told = {**scoring, **manifest.parameters, "session_decay": "2.8"}
    for number in numbers(told):
        assert f"{number:g}" in sentences
    for words in ("2.8 items before it", "half_life_days: 45.5", "on: True", "region, age", "cart 7.5"):
        assert words in sentences
    assert f"stand in {SOURCE_WORDS[Source.CRM]} and {SOURCE_WORDS[Source.ONLINE]} are not" in sentences


def test_the_main_parameters_tell_what_items_of_a_history_gain_in_a_factor_model(tmp_path: Path) -> None:
    write_factors(tmp_path / "crm", Tier.CRM, scoring={"repeat_weight": 1.375})
    sentences = main_parameters(open_bundle(tmp_path / "crm").manifest)
    assert "Items of the history gain 1.375 times what they count there." in sentences


def test_a_tier_says_nothing_of_what_it_does_not_read() -> None:
    said = {
        tier: "\n".join(main_parameters(open_bundle(bundles() / tier).manifest))
        for tier in (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.POPULAR)
    }
    assert "session counts most" not in said[Tier.CRM]
    assert "crm 2" not in said[Tier.ONLINE]
    assert "Master data do not count" in said[Tier.SESSION]
    assert "number of persons behind" in said[Tier.POPULAR]


RULES = {
    "show": "price < 100",
    "deny": ["i1", "i2"],
    "boost": [{"where": "margin > 0.5", "factor": 1.5}],
    "caps": {"brand": 2},
    "rebuy": {"column": "category", "days": {"coffee": 30}},
    "diversity": {"weight": 0.3, "columns": ["brand", "category"]},
    "explore": {"share": 0.1, "persons": 5, "column": "added_at", "days": 30},
}
WORDS = {
    "show": "Only items with price < 100 are shown.",
    "deny": "The shop has taken 2 items out of all recommendations.",
    "boost": "Items with margin > 0.5 have their scores multiplied by 1.5.",
    "caps": "A list holds at most 2 items with the same brand.",
    "rebuy": "What was bought comes again by its category: coffee after 30 days, all else never.",
    "diversity": "Items that agree with those before them in brand and category come later "
    "(weight 0.3 of 1).",
    "explore": "On the online side 10 % of the places go to items that fewer than 5 persons had and that "
    "were added within 30 days (by their added_at), drawn by chance.",
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_told(name: str) -> None:
    alone = Rules.from_document({name: RULES[name]})
    assert rule_parameters(alone) == [WORDS[name]]
    assert f"- {WORDS[name]}\n" in text(DEFAULT, rules=Rules.from_document(RULES))
    assert "beside the models" not in text(DEFAULT)


def test_no_rule_is_left_out() -> None:
    names = {field.name for field in dataclasses.fields(Rules)}
    assert {name.removesuffix("s") for name in names} == {name.removesuffix("s") for name in RULES}
    assert len(rule_parameters(Rules.from_document(RULES))) == len(RULES)
    assert "up to 50 % are items that most permitted visitors asked for" in text(DEFAULT, trending_share=0.5)


def test_schedules_and_lifetimes_are_told() -> None:
    kept = [Kept("audit", "audit", "as each line says"), Kept("table", "a|b", "30 days")]
    lifetimes = Lifetimes.default()
    with_all = text(DEFAULT, retention=kept, lifetimes=lifetimes)
    assert "| table | a\\|b | 30 days |" in with_all
    for rule in lifetimes.rules:
        assert rule.source in with_all
        assert (f"{rule.days} days" if rule.days else "not limited by age") in with_all
    assert "time limits of erasure" not in with_all
    assert "time limits of erasure" in text(DEFAULT)
    assert "controller" in with_all


def test_bundles_that_are_not_there_or_in_the_wrong_slot_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match="holds no bundle"):
        disclosures(DEFAULT, bundles=tmp_path)
    write_linear(tmp_path / "crm", Tier.CRM, slot="online")
    with pytest.raises(BundleError, match="crm slot declares tier online"):
        disclosures(DEFAULT, bundles=tmp_path)


def test_the_text_names_the_cut_off_of_what_it_describes() -> None:
    cutoff = dt.datetime.fromisoformat(open_bundle(bundles() / "crm").manifest.cutoff)
    assert f"up to {cutoff.date()}" in text(DEFAULT, bundles=bundles())
