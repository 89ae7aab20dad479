"""Second law: rows that a model may not learn from leave it as it is, to the last byte.

Two shops that differ only in what a tier may not read, such as the clicks of visitors who refused or whose
consent ran out, the orders of customers who objected, whatever happened before a permission or after the
cut-off, give that tier's model the same digest. And they get the same evaluation, since judging is a use too.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import event as seen
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shops import Row, consent, day, event, link, order, shop, usage

from consentier.consent import Permission, Tier
from consentier.features import consent_intervals, gate
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.simulator import SimulationConfig, simulate
from consentier.features.tables import ShopTables
from consentier.features.validation import ValidationReport
from consentier.models.bundle import open_bundle
from consentier.training.config import Config, EvaluationConfig, TierConfig, TrackingConfig, TrainingConfig
from consentier.training.evaluate import evaluate, evaluate_bundles
from consentier.training.evaluate_cases import links_of
from consentier.training.train import TRAINED_TIERS, train

CUTOFF = 100

# ---- A shop: who is in it, and what each of them decided ---------------------------------------------------

LINKED = ("1", "2", "3", "4")
"""Visitor v1 is customer c1, and so on; both permitted."""

ALONE = ("5", "6", "7")
"""Visitors and customers who permitted, and whom nothing links."""

REFUSALS: dict[str, list[tuple[str, float, dict[str, Any]]]] = {
    "denied": [("denied", 1, {})],
    "withdrawn": [("granted", 1, {}), ("withdrawn", 60, {})],
    "objected": [("granted", 1, {}), ("objected", 60, {})],
    "expired": [("granted", 1, {"until": 60})],
    "ahead": [("granted", 50, {"learnt": 1})],
    "contradicted": [("granted", 1, {"record_id": "twice"}), ("granted", 2, {"record_id": "twice"})],
    "too-late": [("granted", CUTOFF + 1, {})],
    "unknown": [],
}
"""Why somebody may not be learnt from at all: what they decided, when, and how."""

AGAIN = 60
"""Visitor and customer ``again`` withdrew on day 50 and granted anew on this one."""

ITEMS = tuple("abcdefgh")
SENSITIVE = "pills"


def consents() -> list[Row]:
    """Everybody's decisions: the same in all the shops that are compared."""
    rows = []
    for kind, permission in (("v", "online"), ("c", "crm")):
        rows += [consent(kind + name, permission, at=1) for name in (*LINKED, *ALONE, "again", "minor")]
        rows += [
            consent(f"{kind}again", permission, "withdrawn", 50),
            consent(f"{kind}again", permission, at=AGAIN),
        ]
        rows += [consent(f"{kind}minor", "parental", "denied", 30)]
        for name, decisions in REFUSALS.items():
            for state, at, how in decisions:
                how = {**how, "record_id": f"{kind} {how['record_id']}"} if "record_id" in how else how
                rows.append(consent(kind + name, permission, state, at, **how))
    return rows


UNREADABLE = (*REFUSALS, "minor")
"""People of whom nothing may be learnt, each as a visitor and as a customer."""

EVENTS = [
    event(
        f"v{name}", ITEMS[(3 * number + step * step) % 8], 10 + 9 * step, session=f"s{step // 3}", kind=kind
    )
    for number, name in enumerate((*LINKED, *ALONE))
    for step, kind in enumerate(("view", "cart", "view", "view", "favourite", "click"))
] + [event("vagain", item, 70 + number) for number, item in enumerate("ace")]
ORDERS = [
    order(f"c{name}", ITEMS[(number + 2 * step) % 8], 20 + 8 * step)
    for number, name in enumerate((*LINKED, *ALONE))
    for step in range(4)
] + [order("cagain", "h", 75)]
IDENTITIES = [link(f"v{name}", f"c{name}", 5) for name in LINKED]
ATTRIBUTES: list[Row] = [
    {"customer_id": f"c{name}", "region": "north" if number % 2 else "south", "age": 20 + 7 * number}
    for number, name in enumerate((*LINKED, *ALONE))
]
CATALOGUE = [{"item_id": item} for item in ITEMS] + [{"item_id": SENSITIVE, "sensitive": True}]

# ---- What a tier may not read ------------------------------------------------------------------------------

Noise = tuple[str, Row]
"""A table and a row of it."""

_items = st.sampled_from((*ITEMS, "only-here", SENSITIVE))
_days = st.integers(2, CUTOFF - 1)
_kinds = st.sampled_from(("view", "cart", "order", "remove"))


def events_of(visitors: Sequence[str], days: st.SearchStrategy[int] = _days) -> st.SearchStrategy[Noise]:
    """What some visitors did."""
    rows = st.builds(
        event, st.sampled_from(visitors), _items, days, kind=_kinds, session=st.sampled_from("st")
    )
    return rows.map(lambda row: ("events", row))


def purchases_of(customers: Sequence[str], days: st.SearchStrategy[int] = _days) -> st.SearchStrategy[Noise]:
    """What some customers ordered, and which products they used."""
    orders = st.builds(order, st.sampled_from(customers), _items, days).map(lambda row: ("orders", row))
    return orders | st.builds(usage, st.sampled_from(customers), _items, days).map(
        lambda row: ("product_usage", row)
    )


def facts_about(customers: Sequence[str]) -> st.SearchStrategy[Noise]:
    """Master data of some customers; of two rows of one customer the first stays."""
    return st.fixed_dictionaries(
        {
            "customer_id": st.sampled_from(customers),
            "region": st.sampled_from(("north", "west")),
            "age": st.integers(1, 99),
        }
    ).map(lambda row: ("customers", row))


def ids(kind: str, names: Sequence[str]) -> list[str]:
    """Ids of visitors (v) or customers (c)."""
    return [kind + name for name in names]


_after = st.integers(CUTOFF, CUTOFF + 9)
_before_again = st.integers(2, AGAIN - 1)
PERMITTED = (*LINKED, *ALONE, "again")

NOBODY_MAY_READ = st.one_of(
    events_of(ids("v", UNREADABLE)),
    purchases_of(ids("c", UNREADABLE)),
    facts_about(ids("c", UNREADABLE)),
    st.builds(
        link, st.sampled_from(ids("v", UNREADABLE)), st.sampled_from(ids("c", (*PERMITTED, *UNREADABLE)))
    ).map(lambda row: ("identities", row)),
    events_of(["vagain"], _before_again),
    purchases_of(["cagain"], _before_again),
    events_of(ids("v", PERMITTED), _after),
    purchases_of(ids("c", PERMITTED), _after),
    st.builds(event, st.sampled_from(ids("v", PERMITTED)), st.just(SENSITIVE), _days).map(
        lambda row: ("events", row)
    ),
    st.builds(order, st.sampled_from(ids("c", PERMITTED)), st.just(SENSITIVE), _days).map(
        lambda row: ("orders", row)
    ),
)
_online_rows = events_of(ids("v", PERMITTED))
_crm_rows = purchases_of(ids("c", PERMITTED)) | facts_about(ids("c", PERMITTED))
_links = st.builds(link, st.sampled_from(ids("v", ALONE)), st.sampled_from(ids("c", ALONE))).map(
    lambda row: ("identities", row)
)

MAY_NOT_READ: dict[Tier, st.SearchStrategy[Noise]] = {
    Tier.SESSION: NOBODY_MAY_READ | _crm_rows | _links,
    Tier.ONLINE: NOBODY_MAY_READ | _crm_rows | _links,
    Tier.CRM: NOBODY_MAY_READ | _online_rows | _links,
    Tier.FUSED: NOBODY_MAY_READ
    | events_of(ids("v", (*ALONE, "again")))
    | purchases_of(ids("c", (*ALONE, "again")))
    | facts_about(ids("c", (*ALONE, "again")))
    | st.builds(link, st.just("vagain"), st.sampled_from(ids("c", PERMITTED)), _before_again).map(
        lambda row: ("identities", row)
    ),
    Tier.POPULAR: NOBODY_MAY_READ | facts_about(ids("c", PERMITTED)) | _links,
}
Case = tuple[Tier, list[Noise], list[Noise]]
cases: st.SearchStrategy[Case] = st.sampled_from(TRAINED_TIERS).flatmap(
    lambda tier: st.tuples(
        st.just(tier),
        st.lists(MAY_NOT_READ[tier], min_size=3, max_size=25),
        st.lists(MAY_NOT_READ[tier], max_size=25),
    )
)


def shop_with(noise: Sequence[Noise], *, tier: Tier) -> ShopTables:
    """The shop, and these rows besides; customers whom the tier reads keep their master data."""
    extra = {name: [row for table, row in noise if table == name] for name in {table for table, _ in noise}}
    readable = {Tier.CRM: PERMITTED, Tier.FUSED: LINKED}.get(tier, ())
    kept = [row for row in ATTRIBUTES if row["customer_id"][1:] in readable]
    customers = {row["customer_id"]: row for row in [*extra.get("customers", []), *ATTRIBUTES, *kept]}
    return shop(
        events=[*extra.get("events", []), *EVENTS],
        orders=_distinct([*ORDERS, *extra.get("orders", [])], "customer_id", "order_id", "line_id"),
        product_usage=extra.get("product_usage", []),
        identities=_distinct([*IDENTITIES, *extra.get("identities", [])], "visitor_id", "customer_id"),
        customers=pa.Table.from_pylist(
            list(customers.values()),
            schema=pa.schema({"customer_id": pa.string(), "region": pa.string(), "age": pa.float64()}),
        ),
        items=CATALOGUE,
        consents=consents(),
    )


def _distinct(rows: Sequence[Row], *key: str) -> list[Row]:
    return list({tuple(row[name] for name in key): row for row in reversed(rows)}.values())


_TIER = TierConfig(neighbours=5, regularisation=1.0, attribute_weight=1.0, attribute_min_persons=1)
CONFIG = Config(
    training=TrainingConfig(cutoff=day(CUTOFF), threads=1),
    tracking=TrackingConfig(enabled=False),
    session=_TIER,
    online=_TIER,
    crm=_TIER,
    fused=_TIER,
)
_ALS = _TIER.model_copy(update={"algorithm": "als", "factors": 3, "iterations": 2})
_SPECTRAL = _TIER.model_copy(update={"algorithm": "spectral", "factors": 3})
FACTOR_CONFIG = CONFIG.model_copy(update={"online": _ALS, "crm": _SPECTRAL, "fused": _SPECTRAL})


def digest(tables: ShopTables, tier: Tier) -> str:
    """Train one tier, where it has factor models too in both families; the digests of its bundles."""
    has_factors = tier not in (Tier.SESSION, Tier.POPULAR)
    digests = []
    for config in (CONFIG, FACTOR_CONFIG) if has_factors else (CONFIG,):
        with tempfile.TemporaryDirectory() as folder:
            result = train(tables, config, Path(folder), tiers=[tier], show_progress=False)
            assert open_bundle(Path(folder) / tier).digest == result.digests[tier]
            digests.append(result.digests[tier])
    return " ".join(digests)


def check_unreadable_rows_change_no_model(case: Case) -> None:
    """One tier, two shops that differ in what it may not read: one digest."""
    tier, some, others = case
    assert digest(shop_with(some, tier=tier), tier) == digest(shop_with(others, tier=tier), tier)


@settings(max_examples=16)
@given(cases)
@example((Tier.SESSION, [], []))
def test_rows_that_may_not_be_read_leave_the_digest_as_it_is(case: Case) -> None:
    seen(str(case[0]))
    check_unreadable_rows_change_no_model(case)


@pytest.mark.parametrize("tier", TRAINED_TIERS)
def test_each_reason_by_itself_leaves_the_digest_as_it_is(tier: Tier) -> None:
    """Every kind of unreadable person at once, with many rows: more than a random case would hold."""
    some = [("events", event(f"v{name}", item, 31, kind="cart")) for name in UNREADABLE for item in "abz"]
    some += [("orders", order(f"c{name}", item, 31)) for name in UNREADABLE for item in "abz"]
    some += [("customers", {"customer_id": f"c{name}", "region": "west", "age": 99}) for name in UNREADABLE]
    some += [("identities", link(f"v{name}", f"c{name}")) for name in UNREADABLE]
    check_unreadable_rows_change_no_model((tier, some, []))


@pytest.mark.parametrize("tier", TRAINED_TIERS)
def test_readable_rows_do_change_the_digest(tier: Tier) -> None:
    """So that equal digests say something."""
    more: list[Noise] = [("events", event("v1", "h", 41)), ("events", event("v1", "g", 41.5))]
    more += [("orders", order("c1", "h", 41)), ("orders", order("c1", "b", 41))]
    assert digest(shop_with(more, tier=tier), tier) != digest(shop_with([], tier=tier), tier)


def test_the_order_of_rows_changes_no_model() -> None:
    """Nor do threads. A shop's tables come in any order."""
    tables = shop_with([], tier=Tier.FUSED)
    turned = {
        field.name: getattr(tables, field.name).take(_backwards(getattr(tables, field.name)))
        for field in dataclasses.fields(tables)
        if field.name != "report"
    }
    for tier in TRAINED_TIERS:
        assert digest(tables, tier) == digest(ShopTables(**turned, report=ValidationReport()), tier)


def _backwards(table: pa.Table) -> pa.Array:
    return pa.array(range(table.num_rows - 1, -1, -1), pa.int64())


def rows(*noise: Noise) -> list[Noise]:
    """Some rows."""
    return list(noise)


REFUSED = rows(*(("events", event("vdenied", item, 20, session="x")) for item in "abz"))
BEFORE = rows(*(("events", event("vagain", item, 20, session="x")) for item in "abz"))
AFTER = rows(*(("events", event("v1", item, CUTOFF, session="x")) for item in "abz"))


@breaks(
    Break(
        "it does not matter whether permission holds at the cut-off",
        consent_intervals.standings,
        "held=(by_subject.since < FOREVER).fill_null(False)",
        "held=True, since=0",
        (Tier.ONLINE, REFUSED, []),
    ),
    Break(
        "rows from before a permission count",
        gate.gate_expression,
        '(joined.ts < joined.since, "no permission then"),',
        "",
        (Tier.SESSION, BEFORE, []),
    ),
    Break(
        "a row at the cut-off counts",
        gate.gate_expression,
        "joined.ts >= until",
        "joined.ts > until",
        (Tier.POPULAR, AFTER, []),
    ),
    Break(
        "sensitive items count",
        gate.gate_expression,
        '(joined.is_sensitive.notnull(), "sensitive item"),',
        "",
        (Tier.CRM, rows(("orders", order("c1", SENSITIVE, 20))), []),
    ),
    Break(
        "attributes of all customers are learnt from",
        ConsentGate._attributes,
        "standings.filter(standings.held)",
        "standings",
        (
            Tier.CRM,
            rows(
                *(
                    ("customers", {"customer_id": f"c{name}", "region": "west", "age": 99})
                    for name in REFUSALS
                )
            ),
            [],
        ),
    ),
    Break(
        "unlinked visitors and customers take part in the joint model",
        gate.joint_standings,
        "both.held & alone_too",
        "both.held",
        (Tier.FUSED, rows(("events", event("v5", "z", 20)), ("events", event("v5", "a", 21))), []),
    ),
    Break(
        "visitors who were never asked are counted",
        gate.judged_strangers,
        "if not policy.switches.anonymous_statistics:",
        "if False:",
        (Tier.POPULAR, rows(("events", event("vunknown", "z", 20))), []),
    ),
    Break(
        "a link holds although one side did not permit when it was made",
        consent_intervals.lawful_links,
        "pairs.linkable <= pairs.linked_at, ",
        "",
        (Tier.FUSED, rows(("identities", link("vagain", "c7", 55))), []),
    ),
    Break(
        "orders feed the online model",
        gate.judged_rows,
        "if tier in (Tier.CRM, Tier.FUSED):",
        "if True:",
        (Tier.ONLINE, rows(("orders", order("c1", "z", 20)), ("orders", order("c1", "a", 20))), []),
    ),
)
def test_learning_from_too_much_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_unreadable_rows_change_no_model, cases, broken)


# ---- Evaluation --------------------------------------------------------------------------------------------


def without_unreadable_rows(tables: ShopTables, end: dt.datetime) -> ShopTables:
    """The shop without those who permit nothing at the end of the test period, and without later rows."""
    ledger = ledger_of(tables)

    def kept(table: pa.Table, column: str, kind: Any, permission: Permission) -> pa.Table:
        names = table[column].to_pylist()
        mask = [ledger.permission(name, kind=kind, at=end) is permission for name in names]
        if "ts" in table.column_names:
            mask = [keep and at < end for keep, at in zip(mask, table["ts"].to_pylist(), strict=True)]
        return table.filter(pa.array(mask))

    links = ledger.lawful_links(at=end)
    pairs = zip(*(tables.identities[name].to_pylist() for name in ("visitor_id", "customer_id")), strict=True)
    hold = [visitor in links and links[visitor].customer_id == customer for visitor, customer in pairs]
    return dataclasses.replace(
        tables,
        events=kept(tables.events, "visitor_id", "visitor", Permission.ONLINE),
        orders=kept(tables.orders, "customer_id", "customer", Permission.CRM),
        product_usage=kept(tables.product_usage, "customer_id", "customer", Permission.CRM),
        customers=kept(tables.customers, "customer_id", "customer", Permission.CRM),
        identities=tables.identities.filter(pa.array(hold, pa.bool_())),
    )


def with_withdrawals(tables: ShopTables, count: int, start: dt.datetime) -> ShopTables:
    """The shop, in which some linked visitors withdraw within the test period; the customers do not."""
    at = start + dt.timedelta(days=7)
    withdrawals = [
        {
            **consent(visitor, "online", "withdrawn"),
            "subject_kind": "visitor",
            "valid_from": at,
            "recorded_at": at,
        }
        for visitor in sorted(ledger_of(tables).lawful_links(at=start))[:count]
    ]
    more = pa.Table.from_pylist(withdrawals, schema=tables.consents.schema)
    return dataclasses.replace(tables, consents=pa.concat_tables([tables.consents, more]))


def check_evaluation_reads_what_it_may(simulation: SimulationConfig) -> None:
    """One shop, with and without what is not permitted at the end of the test period: the same figures."""
    simulated = simulate(simulation)
    tables = ShopTables(**simulated.tables, report=ValidationReport())
    start = pc.max(tables.events["ts"]).as_py() - dt.timedelta(days=20)
    tables = with_withdrawals(tables, 12, start)
    config = CONFIG.with_cutoff(start).model_copy(
        update={"evaluation": EvaluationConfig(bootstrap_samples=100, horizon_days=14)}
    )
    less = without_unreadable_rows(tables, start + dt.timedelta(days=14))
    assert less.events.num_rows < 0.9 * tables.events.num_rows
    assert less.orders.num_rows < 0.9 * tables.orders.num_rows
    assert less.identities.num_rows < tables.identities.num_rows
    results = [evaluate(each, config, name="shop", show_progress=False) for each in (tables, less)]
    funnels = [result.pop("consent_funnel") for result in results]  # type: ignore[misc]
    assert results[0] == results[1]
    assert [row["rows_kept"] for row in funnels[0]] == [row["rows_kept"] for row in funnels[1]]
    assert {figures["tier"] for figures in results[0]["tiers"]} >= {str(tier) for tier in TRAINED_TIERS}
    shown = {row["group"] for row in results[0]["by_permission_group"] if row["metrics"]}
    assert shown >= {"crm_only", "online_only", "both_linked"}


JUDGED = SimulationConfig(customers=200, items=40, days=60, seed=3)


def test_evaluation_gives_the_same_figures_without_the_rows_that_it_may_not_read() -> None:
    check_evaluation_reads_what_it_may(JUDGED)


@breaks(
    Break(
        "who withdrew within the test period is judged",
        evaluate_bundles,
        "ConsentGate(shop, ledger, end, policy)",
        "ConsentGate(shop, ledger, start, policy, end)",
        JUDGED,
    ),
    Break(
        "a link that does not hold any more makes a customer one with both permissions",
        links_of,
        "in after.items()",
        "in before.items()",
        JUDGED,
    ),
)
def test_judging_by_too_much_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_evaluation_reads_what_it_may, st.just(JUDGED), broken)
