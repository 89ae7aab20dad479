"""Second law, for what a run is recorded with: rows that a tier may not read change none of its figures.

Two shops that differ only in such rows give a tier the same bundle and the same measurement, to the last bit,
and so the same promotion. (How much fused is worth more than a single source is a figure of two tiers, each
with its own rows: it is left out here.)
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import event as seen
from hypothesis import given, settings
from shops import day, event, order
from unreadable_rows import CUTOFF, LINKED, START, Case, Noise, cases, many, shop_with

from consentier.consent import Policy, Tier
from consentier.features.gate import ledger_of
from consentier.features.tables import ShopTables
from consentier.training import record as recording
from consentier.training.bundles import train_bundles
from consentier.training.config import Config, EvaluationConfig, TierConfig, TrackingConfig

_TIER = TierConfig(neighbours=5, regularisation=1.0, repeat_weight=0.2)
CONFIG = Config(
    evaluation=EvaluationConfig(horizon_days=CUTOFF - START, cutoffs=(3,), bootstrap_samples=100),
    tracking=TrackingConfig(enabled=False),
    session=_TIER,
    online=_TIER,
    crm=_TIER,
    fused=_TIER,
).with_cutoff(day(CUTOFF))
CONFIG = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"threads": 1})})


def outcome(tables: ShopTables, tier: Tier) -> tuple[str, dict[str, Any]]:
    """The bundle of a tier, and what it is measured to be worth."""
    ledger, policy = ledger_of(tables), Policy.default()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = train_bundles(
            tables, CONFIG, folder / "out", tiers=[tier], policy=policy, ledger=ledger, show_progress=False
        )
        run = recording._Run(tables, CONFIG, trained, policy, ledger, None, "shop", show_progress=False)
        found: dict[str, Any] = dict(recording._measured(run, {}, folder).tiers[tier])
    assert {period["name"] for period in found["periods"]} == {"validation", "test"}
    del found["single_source"]
    return trained.digests[tier], found


@functools.cache
def undisturbed(tier: Tier) -> tuple[str, dict[str, Any]]:
    return outcome(shop_with([]), tier)


def check_unreadable_rows_change_no_figure(case: Case) -> None:
    """One tier, with and without rows that it may not read: the same outcome."""
    tier, noise = case
    assert outcome(shop_with(noise), tier) == undisturbed(tier)


@settings(max_examples=6)
@given(cases)
def test_rows_that_may_not_be_read_change_no_figure(case: Case) -> None:
    seen(str(case[0]))
    check_unreadable_rows_change_no_figure(case)


@pytest.mark.parametrize("tier", [Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED])
@pytest.mark.parametrize("at", [START - 25, START - 1, START + 1])
def test_readable_rows_do_matter_to_fit_on_and_to_judge_by(tier: Tier, at: float) -> None:
    """So that equal outcomes say something."""
    more: list[Noise] = []
    for name in LINKED[:9]:
        more += [("events", event(f"v{name}", item, at, session=f"x-{name}")) for item in "al"]
        more += [("orders", order(f"c{name}", item, at)) for item in "al"]
    assert outcome(shop_with(more), tier)[1] != undisturbed(tier)[1]


@breaks(
    Break(
        "a tier is measured by the rows of a higher one",
        recording._measured,
        "gate.permitted(tier)",
        "gate.permitted(type(tier)('fused'))",
        (Tier.CRM, many("events", LINKED, START - 1) + many("events", LINKED, START + 1)),
    ),
    Break(
        "permission at the beginning of the test period is enough to be judged by",
        recording._measured,
        "ConsentGate(run.shop, run.ledger, run.trained.cutoff, run.policy)",
        "ConsentGate(run.shop, run.ledger, periods.test, run.policy, until=run.trained.cutoff)",
        (Tier.SESSION, many("events", ["withdrawn-on-the-last-day"], START + 1)),
    ),
    Break(
        "permission at the beginning of the test period is enough to be learnt from",
        recording._earlier,
        "run.config.with_cutoff(periods.end)",
        "run.config.with_cutoff(periods.test)",
        (Tier.SESSION, many("events", ["withdrawn-on-the-last-day"], START - 2)),
    ),
    Break(
        "what comes after the cut-off is judged by",
        recording._measured,
        "ConsentGate(run.shop, run.ledger, run.trained.cutoff, run.policy)",
        "ConsentGate(run.shop, run.ledger, run.trained.cutoff, run.policy,"
        " until=run.trained.cutoff + (periods.end - periods.test))",
        (Tier.CRM, many("orders", LINKED, CUTOFF + 1)),
    ),
)
def test_measuring_by_too_much_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_unreadable_rows_change_no_figure, cases, broken)
