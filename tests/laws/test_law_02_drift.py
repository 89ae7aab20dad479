"""Second law, for drift checks: what a tier may not read leaves its summary and its checks as they are."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from breaking import Break, assert_breaks, breaks
from hypothesis import event as seen
from hypothesis import given, settings
from shops import day
from unreadable_rows import CUTOFF, Case, cases, many, shop_with

from consentier.consent import Tier
from consentier.features import gate
from consentier.models.bundle import read_run
from consentier.training import drift as drifting
from consentier.training.bundles import permitted_to, train_bundles
from consentier.training.config import Config, TierConfig, TrackingConfig

_TIER = TierConfig(neighbours=5, regularisation=1.0)
CONFIG = Config(
    tracking=TrackingConfig(enabled=False), session=_TIER, online=_TIER, crm=_TIER, fused=_TIER
).with_cutoff(day(CUTOFF))


@functools.cache
def bundles(tier: Tier) -> tempfile.TemporaryDirectory[str]:
    """The tier's bundle, fitted on the shop without more rows."""
    folder = tempfile.TemporaryDirectory()
    train_bundles(shop_with([]), CONFIG, Path(folder.name), tiers=[tier], show_progress=False)
    return folder


def outcome(case: Case) -> str:
    tier, noise = case
    tables = shop_with(noise)
    checks = drifting.drift(tables, Path(bundles(tier).name), CONFIG.drift, at=day(CUTOFF))
    with tempfile.TemporaryDirectory() as folder:
        train_bundles(tables, CONFIG, Path(folder), tiers=[tier], show_progress=False)
        summary = read_run(Path(folder) / tier)["data_summary"]
    assert checks["checks"]
    return json.dumps([checks, summary])


@functools.cache
def undisturbed(tier: Tier) -> str:
    return outcome((tier, []))


def check_unreadable_rows_change_no_check(case: Case) -> None:
    """One tier, with and without rows that it may not read: the same summary and the same checks."""
    assert outcome(case) == undisturbed(case[0])


@settings(max_examples=6)
@given(cases)
def test_rows_that_may_not_be_read_change_no_check(case: Case) -> None:
    seen(str(case[0]))
    check_unreadable_rows_change_no_check(case)


@breaks(
    Break(
        "permission at any time is enough to be compared",
        drifting.drift,
        "ConsentGate(shop, ledger, at, policy)",
        "ConsentGate(shop, ledger, at.replace(day=at.day - 1), policy, until=at)",
        (Tier.SESSION, many("events", ["withdrawn-on-the-last-day"], CUTOFF - 5)),
    ),
    Break(
        "what comes after the cut-off is compared",
        drifting.drift,
        "ConsentGate(shop, ledger, at, policy)",
        "ConsentGate(shop, ledger, at, policy, until=type(at).max.replace(tzinfo=at.tzinfo))",
        (Tier.ONLINE, many("events", ["00", "01"], CUTOFF + 2)),
    ),
    Break(
        "a tier is compared by the rows of a higher one",
        permitted_to,
        "(gate.permitted(tier),)",
        "(gate.permitted(Tier.FUSED),)",
        (Tier.CRM, many("events", ["00", "01"], CUTOFF - 5)),
    ),
    Break(
        "orders feed the summary of the online model",
        gate.judged_rows,
        "if tier in (Tier.CRM, Tier.FUSED):",
        "if True:",
        (Tier.ONLINE, many("orders", ["00", "01"], CUTOFF - 5)),
    ),
)
def test_comparing_by_too_much_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_unreadable_rows_change_no_check, cases, broken)
