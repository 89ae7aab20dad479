"""Second law, for tuning: rows that a tier may not read, or that are later than the cut-off, choose nothing.

Two shops that differ only in such rows give the same trials with the same values, and the same file, to the
last byte. What may not be read is what training may not read, and everything from the cut-off on: there
`evaluate` tests what was chosen here.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import event as seen
from hypothesis import given, settings
from shops import day, event, order
from unreadable_rows import CUTOFF, LINKED, START, Case, Noise, cases, many, shop_with

from consentier.consent import Tier
from consentier.features import consent_intervals, gate
from consentier.features.tables import ShopTables
from consentier.training import tune as tuning
from consentier.training.config import Config, TierConfig, TrackingConfig, TuningConfig
from consentier.training.tune import TUNED_TIERS, tune, tuned_toml

_TIER = TierConfig(neighbours=5, regularisation=1.0, repeat_weight=0.2)
CONFIG = Config(
    tuning=TuningConfig(horizon_days=CUTOFF - START, trials=3),
    tracking=TrackingConfig(enabled=False),
    session=_TIER,
    online=_TIER,
    crm=_TIER,
    fused=_TIER,
).with_cutoff(day(CUTOFF))
SMALL = CONFIG.training.model_copy(update={"threads": 1})


def outcome(tables: ShopTables, tier: Tier) -> tuple[str, list[Any], Any]:
    """The file that is written, each trial with its value, and the figures."""
    config = CONFIG.model_copy(update={"training": SMALL})
    result = tune(tables, config, tiers=[tier], show_progress=False)
    (found,) = result.tiers
    trials = [(trial.parameters, trial.value, trial.state) for trial in found.trials]
    return tuned_toml(result, config, name="shop"), trials, found.figures


@functools.cache
def undisturbed(tier: Tier) -> tuple[str, list[Any], Any]:
    return outcome(shop_with([]), tier)


def check_unreadable_rows_choose_nothing(case: Case) -> None:
    """One tier, with and without rows that it may not read: the same outcome."""
    tier, noise = case
    assert outcome(shop_with(noise), tier) == undisturbed(tier)


@settings(max_examples=8)
@given(cases)
def test_rows_that_may_not_be_read_choose_nothing(case: Case) -> None:
    seen(str(case[0]))
    check_unreadable_rows_choose_nothing(case)


@pytest.mark.parametrize("tier", TUNED_TIERS)
@pytest.mark.parametrize("at", [START - 1, START + 1])
def test_readable_rows_do_matter_to_fit_on_and_to_judge_by(tier: Tier, at: float) -> None:
    """So that equal outcomes say something."""
    more: list[Noise] = []
    for name in LINKED[:9]:
        more += [("events", event(f"v{name}", item, at, session=f"x-{name}")) for item in "al"]
        more += [("orders", order(f"c{name}", item, at)) for item in "al"]
    assert outcome(shop_with(more), tier)[1:] != undisturbed(tier)[1:]


@breaks(
    Break(
        "the test period is looked at",
        tuning.tune,
        "end, policy or Policy.default()",
        "end + (end - start), policy or Policy.default()",
        (Tier.CRM, many("orders", LINKED, CUTOFF + 1)),
    ),
    Break(
        "the row at the cut-off is looked at",
        gate.gate_expression,
        "joined.ts >= until",
        "joined.ts > until",
        (Tier.ONLINE, many("events", LINKED, CUTOFF)),
    ),
    Break(
        "permission at the beginning of the validation period is enough",
        tuning.tune,
        "end, policy or Policy.default()",
        "start, policy or Policy.default(), until=end",
        (Tier.SESSION, many("events", ["withdrawn-on-the-last-day"], START + 1)),
    ),
    Break(
        "it does not matter whether permission holds",
        consent_intervals.standings,
        "held=(by_subject.since < FOREVER).fill_null(False)",
        "held=True, since=0",
        (Tier.SESSION, many("events", ["denied"], START + 1)),
    ),
    Break(
        "a tier is tuned on the rows of a higher one",
        tuning._validation,
        "gate.permitted(tier)",
        "gate.permitted(type(tier)('fused'))",
        (Tier.CRM, many("events", LINKED, START - 1) + many("events", LINKED, START + 1)),
    ),
)
def test_choosing_by_too_much_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_unreadable_rows_choose_nothing, cases, broken)
