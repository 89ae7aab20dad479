"""Second law, for the report on what consent is worth: what may not be read changes no byte of it.

Rows that nobody may read leave page and figures as they are. Rows that one level may not read, but others
may, leave the scores of that level as they are.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import event as seen
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import day
from unreadable_rows import (
    CUTOFF,
    LINKED,
    NOBODY_MAY_READ,
    PERMITTED,
    REFUSED,
    START,
    Noise,
    many,
    rows_of,
    shop_with,
)

from consentier.consent import Tier
from consentier.training import consent_worth as worth
from consentier.training import evaluate_requests
from consentier.training.config import Config, EvaluationConfig, TierConfig, TrackingConfig
from consentier.training.consent_worth_report import render_worth

_TIER = TierConfig(neighbours=5, regularisation=1.0, repeat_weight=0.2)
CONFIG = Config(
    evaluation=EvaluationConfig(horizon_days=CUTOFF - START, cutoffs=(8,), bootstrap_samples=100),
    tracking=TrackingConfig(enabled=False),
    session=_TIER,
    online=_TIER,
    crm=_TIER,
    fused=_TIER,
).with_cutoff(day(START))
CONFIG = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"threads": 1})})


def found(noise: Sequence[Noise]) -> worth.Worth:
    return worth.consent_worth(
        shop_with(noise), CONFIG, name="shop", minimum_group=20, periods=1, show_progress=False
    )


@functools.cache
def undisturbed() -> worth.Worth:
    result = found([])
    assert result["customers"] == len(LINKED)
    return result


def published(result: worth.Worth) -> str:
    return render_worth(result) + json.dumps(result)


def check_unreadable_rows_change_no_byte(noise: Sequence[Noise]) -> None:
    """With and without rows that nobody may read: the same page and the same figures."""
    assert published(found(noise)) == published(undisturbed())


@settings(max_examples=3)
@given(st.lists(NOBODY_MAY_READ, min_size=5, max_size=40))
def test_rows_that_nobody_may_read_change_no_byte(noise: list[Noise]) -> None:
    check_unreadable_rows_change_no_byte(noise)


def test_readable_rows_do_change_it() -> None:
    """So that equal pages say something."""
    for at in (START - 1, START + 1):
        assert published(found(many("orders", LINKED, at))) != published(undisturbed())


@breaks(
    Break(
        "permission at the cut-off is enough to be judged by",
        worth._Asked.of.__func__,  # type: ignore[attr-defined]
        "ConsentGate(shop, ledger, end, policy)",
        "ConsentGate(shop, ledger, start, policy, until=end)",
        many("orders", ["withdrawn-on-the-last-day"], START + 1),
    ),
    Break(
        "permission at the cut-off is enough to be learnt from",
        worth.consent_worth,
        "config.with_cutoff(end)",
        "config.with_cutoff(start)",
        many("events", ["withdrawn-on-the-last-day"], START - 2),
    ),
)
def test_reporting_by_too_much_would_be_noticed(broken: Break) -> None:
    assert_breaks(
        check_unreadable_rows_change_no_byte, st.lists(NOBODY_MAY_READ, min_size=5, max_size=40), broken
    )


# ---- Each level under its own permission -------------------------------------------------------------------

Case = tuple[Tier, list[Noise]]


# All from before the test period: what is ordered within it is the target, of every level.
_NOBODYS = rows_of(list(REFUSED), 2, START - 1)
_ORDERS = _NOBODYS | rows_of(PERMITTED, 2, START - 1, tables="orders")
_EVENTS = _NOBODYS | rows_of(PERMITTED, 2, START - 1, tables="events")
cases: st.SearchStrategy[Case] = st.sampled_from(
    ((Tier.SESSION, _ORDERS), (Tier.ONLINE, _ORDERS), (Tier.CRM, _EVENTS))
).flatmap(lambda case: st.tuples(st.just(case[0]), st.lists(case[1], min_size=5, max_size=40)))


def scores(result: worth.Worth, tier: Tier) -> dict[str, Any]:
    own = result["designs"][0]["tiers"]
    return next(dict(figures["metrics"]) for figures in own if figures["tier"] == tier)


def check_a_level_does_not_read_what_others_may(case: Case) -> None:
    tier, noise = case
    assert scores(found(noise), tier) == scores(undisturbed(), tier)


@settings(max_examples=3)
@given(cases)
def test_a_level_does_not_read_what_others_may(case: Case) -> None:
    seen(str(case[0]))
    check_a_level_does_not_read_what_others_may(case)


@pytest.mark.parametrize(("tier", "table"), [(Tier.ONLINE, "events"), (Tier.CRM, "orders")])
def test_a_level_reads_what_it_may(tier: Tier, table: str) -> None:
    more = many(table, LINKED, START - 1)
    assert scores(found(more), tier) != scores(undisturbed(), tier)


@breaks(
    Break(
        "online is asked with the orders too",
        evaluate_requests._online_request,
        "permission=Permission.ONLINE",
        "crm_history=case.crm_history, linked=True, permission=_LEVEL_3",
        (Tier.ONLINE, many("orders", LINKED, START - 1)),
    ),
    Break(
        "CRM is asked with the visits too",
        evaluate_requests._crm_request,
        "permission=Permission.CRM",
        "session=case.session, online_history=case.all_history, linked=True, permission=_LEVEL_3",
        (Tier.CRM, many("events", LINKED, START - 1)),
    ),
)
def test_a_level_that_reads_more_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_a_level_does_not_read_what_others_may, cases, broken)
