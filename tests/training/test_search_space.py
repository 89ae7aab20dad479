"""The search space: parameters that exist, in ranges that the configuration takes, where they can matter."""

from __future__ import annotations

import dataclasses

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from consentier.consent import Tier
from consentier.training.config import Config, TierConfig
from consentier.training.search_space import SPACE, Facts, configured, space_of, values_of
from consentier.training.tune import TUNED_TIERS

EVERYTHING = Facts(
    Tier.FUSED, ("view", "order", "cart"), frozenset({"online", "crm"}), attributes=True, aged=True
)


def names(facts: Facts) -> set[str]:
    return {line.name for line in space_of(facts, Config().fused)}


def drawn(seed: int, facts: Facts, base: TierConfig) -> TierConfig:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return configured(space_of(facts, base), base, study.ask())


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_every_line_names_a_parameter_of_a_tier_once() -> None:
    fields = [line.name.partition(".")[0] for line in SPACE]
    assert set(fields) <= set(TierConfig.model_fields)
    assert len({line.name for line in SPACE}) == len(SPACE)
    assert SPACE[0].name == "algorithm"  # it decides which others a trial has


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from(TUNED_TIERS))
def test_every_draw_is_a_configuration(seed: int, tier: Tier) -> None:
    base: TierConfig = getattr(Config(), tier)
    facts = dataclasses.replace(EVERYTHING, tier=tier)
    config = drawn(seed, facts, base)
    changed = {name for name in TierConfig.model_fields if getattr(config, name) != getattr(base, name)}
    assert changed <= {line.name.partition(".")[0] for line in space_of(facts, base)}
    if config.algorithm != "local_ridge":
        assert config.regularisation == base.regularisation
    if config.attribute_weight == 0:
        assert config.attribute_fade == base.attribute_fade
    for name in ("regularisation", "row_exponent", "session_decay", "repeat_weight"):
        assert float(f"{getattr(config, name):.3g}") == getattr(config, name)


def test_the_most_frequent_event_type_is_the_measure_of_the_others() -> None:
    weighed = {name for name in names(EVERYTHING) if name.startswith("event_weights.")}
    assert weighed == {"event_weights.order", "event_weights.cart"}


def test_what_cannot_matter_is_not_searched() -> None:
    alone = dataclasses.replace(EVERYTHING, sources=frozenset({"crm"}), attributes=False, aged=False)
    missing = names(EVERYTHING) - names(alone)
    assert missing == {
        "recency_half_life", "source_weights.session", "source_weights.crm", "attribute_weight",
        "attribute_fade",
    }  # fmt: skip
    crm = names(dataclasses.replace(EVERYTHING, tier=Tier.CRM))
    assert not {name for name in crm if name.startswith(("session", "source_weights"))}
    session = names(dataclasses.replace(EVERYTHING, tier=Tier.SESSION))
    assert not session & {"recency_half_life", "attribute_weight", "source_weights.session"}


def test_the_current_configuration_is_a_point_of_the_space() -> None:
    far = Config().fused.model_copy(
        update={"regularisation": 5e4, "neighbours": 7, "recency_half_life": None, "attribute_weight": 0.0}
    )
    lines = {line.name: line for line in space_of(EVERYTHING, far)}
    widened = lines["regularisation"].distribution
    assert isinstance(widened, FloatDistribution)
    assert (widened.low, widened.high) == (0.3, 5e4)
    point = values_of(list(lines.values()), far)
    assert point["regularisation"] == 5e4
    assert point["neighbours"] == 7
    assert point["recency_half_life?"] is False
    assert point["attribute_weight?"] is False
    study = optuna.create_study()
    study.enqueue_trial(point)
    again = configured(list(lines.values()), far, study.ask())
    assert again.model_copy(update={"attribute_fade": far.attribute_fade}) == far
