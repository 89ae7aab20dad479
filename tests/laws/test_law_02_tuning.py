"""Second law, for tuning: rows that a tier may not read, or that are later than the cut-off, choose nothing.

Two shops that differ only in such rows give the same trials with the same values, and the same file, to the
last byte. What may not be read is what training may not read, and everything from the cut-off on: there
`evaluate` tests what was chosen here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import event as seen
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import Row, consent, day, event, link, order, shop

from consentier.consent import Tier
from consentier.features import consent_intervals, gate
from consentier.features.tables import ShopTables
from consentier.training import tune as tuning
from consentier.training.config import Config, TierConfig, TrackingConfig, TuningConfig
from consentier.training.tune import TUNED_TIERS, tune, tuned_toml

START, CUTOFF = 60, 80
"""The validation period is between them."""

ITEMS = tuple("abcdefghijkl")
LINKED = [f"{number:02}" for number in range(24)]
ALONE = [f"{number:02}" for number in range(24, 30)]
PERMITTED = [*LINKED, *ALONE]

REFUSED: dict[str, list[tuple[str, float]]] = {
    "denied": [("denied", 1)],
    "withdrawn": [("granted", 1), ("withdrawn", 50)],
    "withdrawn-on-the-last-day": [("granted", 1), ("withdrawn", CUTOFF - 0.5)],
    "too-late": [("granted", CUTOFF + 1)],
    "unknown": [],
}
"""Why somebody may not be learnt from, nor be judged by: what they decided, and when."""


def _base() -> dict[str, list[Row]]:
    tables: dict[str, list[Row]] = {"events": [], "orders": [], "consents": [], "identities": []}
    for number, name in enumerate(PERMITTED):
        for step in range(9):
            item, at = ITEMS[(number + step * step) % 12], 8 + 7 * step + number / 50
            kind = ("view", "cart", "view")[step % 3]
            tables["events"].append(event(f"v{name}", item, at, session=f"s{step // 2}-{name}", kind=kind))
            after = ITEMS[(number + 2 * step) % 12]
            tables["events"].append(event(f"v{name}", after, at + 0.1, session=f"s{step // 2}-{name}"))
            tables["orders"].append(order(f"c{name}", ITEMS[(2 * number + step) % 12], at + 3))
        tables["consents"] += [consent(f"v{name}", "online"), consent(f"c{name}", "crm")]
    for name, decisions in REFUSED.items():
        for state, at in decisions:
            tables["consents"] += [
                consent(f"v{name}", "online", state, at),
                consent(f"c{name}", "crm", state, at),
            ]
    tables["identities"] = [link(f"v{name}", f"c{name}") for name in LINKED]
    return tables


Noise = tuple[str, Row]
"""A table and a row of it."""

_items = st.sampled_from((*ITEMS, "only-here"))


def rows_of(
    names: Sequence[str], first: float, last: float, *, tables: str = "events orders"
) -> st.SearchStrategy[Noise]:
    """What some people did and bought."""
    people, days = st.sampled_from(names), st.integers(int(first * 4), int(last * 4)).map(lambda at: at / 4)
    events = st.builds(
        lambda name, item, at, kind: event(f"v{name}", item, at, kind=kind, session=f"x-{name}"),
        people, _items, days, st.sampled_from(("view", "cart")),
    )  # fmt: skip
    orders = st.builds(lambda name, item, at: order(f"c{name}", item, at), people, _items, days)
    offered = {"events": events, "orders": orders}
    return st.one_of(*(offered[table].map(lambda row, table=table: (table, row)) for table in tables.split()))


NOBODY_MAY_READ = rows_of(list(REFUSED), 2, CUTOFF + 9) | rows_of(PERMITTED, CUTOFF, CUTOFF + 9)
MAY_NOT_READ: dict[Tier, st.SearchStrategy[Noise]] = {
    Tier.SESSION: NOBODY_MAY_READ | rows_of(PERMITTED, 2, CUTOFF - 1, tables="orders"),
    Tier.ONLINE: NOBODY_MAY_READ | rows_of(PERMITTED, 2, CUTOFF - 1, tables="orders"),
    Tier.CRM: NOBODY_MAY_READ | rows_of(PERMITTED, 2, CUTOFF - 1, tables="events"),
    Tier.FUSED: NOBODY_MAY_READ | rows_of(ALONE, 2, CUTOFF - 1),
}
Case = tuple[Tier, list[Noise]]
cases: st.SearchStrategy[Case] = st.sampled_from(TUNED_TIERS).flatmap(
    lambda tier: st.tuples(st.just(tier), st.lists(MAY_NOT_READ[tier], min_size=5, max_size=40))
)

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


def shop_with(noise: Sequence[Noise]) -> ShopTables:
    tables = _base()
    for table, row in noise:
        tables[table].append(row)
    orders = {
        (row["customer_id"], row["order_id"], row["line_id"]): row for row in reversed(tables["orders"])
    }
    return shop(**{**tables, "orders": list(orders.values())})


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


def _many(table: str, names: Sequence[str], at: float) -> list[Noise]:
    if table == "events":
        return [
            ("events", event(f"v{name}", item, at, session=f"x-{name}")) for name in names for item in "alz"
        ]
    return [("orders", order(f"c{name}", item, at)) for name in names for item in "alz"]


@breaks(
    Break(
        "the test period is looked at",
        tuning.tune,
        "end, policy or Policy.default()",
        "end + (end - start), policy or Policy.default()",
        (Tier.CRM, _many("orders", LINKED, CUTOFF + 1)),
    ),
    Break(
        "the row at the cut-off is looked at",
        gate.gate_expression,
        "joined.ts >= until",
        "joined.ts > until",
        (Tier.ONLINE, _many("events", LINKED, CUTOFF)),
    ),
    Break(
        "permission at the beginning of the validation period is enough",
        tuning.tune,
        "end, policy or Policy.default()",
        "start, policy or Policy.default(), until=end",
        (Tier.SESSION, _many("events", ["withdrawn-on-the-last-day"], START + 1)),
    ),
    Break(
        "it does not matter whether permission holds",
        consent_intervals.standings,
        "held=(by_subject.since < FOREVER).fill_null(False)",
        "held=True, since=0",
        (Tier.SESSION, _many("events", ["denied"], START + 1)),
    ),
    Break(
        "a tier is tuned on the rows of a higher one",
        tuning._validation,
        "gate.permitted(tier)",
        "gate.permitted(type(tier)('fused'))",
        (Tier.CRM, _many("events", LINKED, START - 1) + _many("events", LINKED, START + 1)),
    ),
)
def test_choosing_by_too_much_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_unreadable_rows_choose_nothing, cases, broken)
