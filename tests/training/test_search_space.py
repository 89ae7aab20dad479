"""The search space: parameters that exist, in ranges that the configuration takes, where they can matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution

from consentier.consent import Tier
from consentier.serving.factor_scorer import FACTOR_ALGORITHMS
from consentier.training.config import Algorithm, Config, TierConfig, TuningConfig
from consentier.training.search_space import SPACE, Facts, configured, space_of, values_of
from consentier.training.tune import TUNED_TIERS

EVERYTHING = Facts(
    Tier.FUSED, ("view", "order", "cart"), frozenset({"online", "crm"}), attributes=True, aged=True
)


FITTED = {
    "local_ridge": {
        "neighbours", "regularisation", "popularity_regularisation", "row_exponent", "item_exponent",
        "repeat_weight",
    },
    **{name: {"neighbours", "repeat_weight"} for name in ("cosine", "tfidf")},
    "bm25": {"neighbours", "repeat_weight", "bm25_k1", "bm25_b"},
    "als": {"factors", "factor_regularisation", "unobserved_weight", "frequency_exponent", "repeat_weight"},
    "bpr": {
        "factors", "factor_regularisation", "unobserved_weight", "frequency_exponent", "learning_rate",
        "step_regularisation", "repeat_weight",
    },
    "spectral": {
        "factors", "row_exponent", "item_exponent", "spectral_exponent", "unit_rank", "unobserved_weight",
        "history_exponent", "history_offset", "repeat_weight",
    },
}  # fmt: skip
"""What a fit reads, by algorithm."""


def names(facts: Facts) -> set[str]:
    return {line.name for line in space_of(facts, Config().fused)}


def drawn(
    seed: int, facts: Facts, base: TierConfig, algorithms: Sequence[str] = get_args(Algorithm)
) -> TierConfig:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return configured(space_of(facts, base, algorithms), base, study.ask())


def tried(facts: Facts, base: TierConfig, *algorithms: str) -> tuple[str, ...]:
    kind = space_of(facts, base, algorithms)[0].distribution
    assert isinstance(kind, CategoricalDistribution)
    return tuple(map(str, kind.choices))


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_every_line_names_a_parameter_of_a_tier_once() -> None:
    fields = [line.name.partition(".")[0] for line in SPACE]
    assert set(fields) <= set(TierConfig.model_fields)
    assert len({line.key for line in SPACE}) == len(SPACE)
    assert SPACE[0].name == "algorithm"  # it decides which others a trial has


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from(TUNED_TIERS))
def test_every_draw_is_a_configuration(seed: int, tier: Tier) -> None:
    base: TierConfig = getattr(Config(), tier)
    facts = dataclasses.replace(EVERYTHING, tier=tier)
    config = drawn(seed, facts, base)
    changed = {name for name in TierConfig.model_fields if getattr(config, name) != getattr(base, name)}
    space = space_of(facts, base, get_args(Algorithm))
    assert changed <= {line.name.partition(".")[0] for line in space}
    assert changed & set().union(*FITTED.values()) <= FITTED[config.algorithm]
    if tier is Tier.SESSION:
        assert config.algorithm not in FACTOR_ALGORITHMS
    if config.attribute_weight == 0:
        assert config.attribute_fade == base.attribute_fade
    for name in ("regularisation", "row_exponent", "session_decay", "repeat_weight"):
        assert float(f"{getattr(config, name):.3g}") == getattr(config, name)


def test_every_algorithm_that_is_asked_for_is_drawn_and_the_current_one_with_it() -> None:
    base = Config().crm.model_copy(update={"algorithm": "cosine"})
    facts = dataclasses.replace(EVERYTHING, tier=Tier.CRM)
    assert {drawn(seed, facts, base, ("als", "bpr")).algorithm for seed in range(40)} == {
        "cosine", "als", "bpr",
    }  # fmt: skip
    assert tried(facts, base, "als", "als", "local_ridge") == ("local_ridge", "cosine", "als")
    session = dataclasses.replace(EVERYTHING, tier=Tier.SESSION)
    assert tried(session, Config().session, "als", "bm25") == ("local_ridge", "bm25")
    assert tried(session, Config().session, "als") == ("local_ridge",)
    assert not FACTOR_ALGORITHMS.intersection(TuningConfig().algorithms)


@pytest.mark.parametrize("algorithm", FITTED)
def test_an_algorithm_has_the_parameters_of_its_fit_and_only_those_of_what_is_tried(algorithm: str) -> None:
    base = Config().fused.model_copy(update={"algorithm": algorithm})
    space = {line.name for line in space_of(EVERYTHING, base, [algorithm])}
    assert space & set().union(*FITTED.values()) == FITTED[algorithm]


def test_one_field_is_sought_where_it_suits_each_algorithm() -> None:
    facts = dataclasses.replace(EVERYTHING, tier=Tier.CRM)
    penalties: dict[str, list[float]] = {"als": [], "bpr": []}
    for seed in range(40):
        config = drawn(seed, facts, Config().crm, ("als", "bpr"))
        if config.algorithm in penalties:
            penalties[config.algorithm].append(config.factor_regularisation)
    assert max(penalties["als"]) <= 0.3
    assert min(penalties["bpr"]) >= 0.1
    assert max(penalties["bpr"]) > 0.3


def test_repeats_are_sought_on_the_scale_of_the_scores() -> None:
    largest = {"bm25": 0.0, "als": 0.0, "cosine": 0.0}
    for seed in range(60):
        config = drawn(seed, EVERYTHING, Config().fused, tuple(largest))
        if config.algorithm in largest:
            largest[config.algorithm] = max(largest[config.algorithm], config.repeat_weight)
    assert 100 < largest["bm25"] <= 10_000
    assert 0 < largest["als"] <= 1
    assert 1 < largest["cosine"] <= 2


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


def point_of(base: TierConfig) -> tuple[dict[str, Any], TierConfig]:
    """Where a configuration stands in its space, and what a study draws that is told to begin there."""
    space = space_of(EVERYTHING, base)
    point = values_of(space, base)
    study = optuna.create_study()
    study.enqueue_trial(point)
    return point, configured(space, base, study.ask())


def test_the_current_configuration_is_a_point_of_the_space() -> None:
    far = Config().fused.model_copy(
        update={"regularisation": 5e4, "neighbours": 7, "recency_half_life": None, "attribute_weight": 0.0}
    )
    lines = {line.name: line for line in space_of(EVERYTHING, far)}
    widened = lines["regularisation"].distribution
    assert isinstance(widened, FloatDistribution)
    assert (widened.low, widened.high) == (0.3, 5e4)
    point, again = point_of(far)
    assert point[lines["regularisation"].key] == 5e4
    assert point[lines["neighbours"].key] == 7
    assert point["recency_half_life?"] is False
    assert point["attribute_weight?"] is False
    assert again.model_copy(update={"attribute_fade": far.attribute_fade}) == far


@pytest.mark.parametrize("algorithm", sorted(FACTOR_ALGORITHMS))
def test_a_factor_model_is_a_point_of_the_space(algorithm: str) -> None:
    far = Config().fused.model_copy(
        update={"algorithm": algorithm, "factors": 100, "factor_regularisation": 2000.0, "unit_rank": 300}
    )
    assert point_of(far)[1] == far
