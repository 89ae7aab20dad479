"""The gate: what the rows look like that it lets through, and how it accounts for the others."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
import zoneinfo
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import Row, consent, day, event, link, order, shop, usage

from consentier.consent import Policy, Source, Switches, Tier
from consentier.consent.lifetimes import Lifetimes
from consentier.errors import LedgerError
from consentier.features import gate
from consentier.features.consent_intervals import ConsentTables
from consentier.features.gate import ConsentGate, Funnel, PermittedRows, ledger_of
from consentier.features.tables import ShopTables

CUTOFF = 50
AGREED = [
    *(consent(f"v{number}", "online") for number in "123"),
    *(consent(f"c{number}", "crm") for number in "123"),
]


def permitted(tables: ShopTables, tier: Tier, **switches: bool) -> PermittedRows:
    policy = Policy("test", Policy.default().matrix, Switches(**switches))
    return ConsentGate(tables, ledger_of(tables), day(CUTOFF), policy).permitted(tier)


def seen(rows: PermittedRows, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in columns) for row in rows.rows.to_pylist()]


def test_each_tier_gets_its_own_tables_under_pseudonyms_of_its_own() -> None:
    tables = shop(
        events=[event("v1", "a", 5), event("v2", "b", 6)],
        orders=[order("c1", "x", 7), order("c2", "y", 8)],
        product_usage=[usage("c1", "z", 9)],
        identities=[link("v1", "c1"), link("v3", "c1")],
        consents=AGREED,
    )
    columns = ("person", "item_id", "event_type", "source")
    online = [("visitor:v1", "a", "view", "online"), ("visitor:v2", "b", "view", "online")]
    assert seen(permitted(tables, Tier.SESSION), *columns) == online
    assert seen(permitted(tables, Tier.ONLINE), *columns) == online
    crm = [
        ("customer:c1", "x", "order", "crm"),
        ("customer:c1", "z", "usage", "crm"),
        ("customer:c2", "y", "order", "crm"),
    ]
    assert seen(permitted(tables, Tier.CRM), *columns) == crm
    assert seen(permitted(tables, Tier.FUSED), *columns) == [("customer:c1", "a", "view", "online"), *crm[:2]]
    included = seen(permitted(tables, Tier.FUSED, include_single_source_in_fused=True), *columns)
    assert set(included) == {("customer:c1", "a", "view", "online"), *crm, online[1]}
    with pytest.raises(ValueError, match="not trained on rows of persons"):
        permitted(tables, Tier.POPULAR)


def test_one_id_for_a_visitor_and_a_customer_joins_nothing() -> None:
    said = [{**consent("same", "online"), "subject_kind": "visitor"}, consent("same", "crm")]
    tables = shop(events=[event("same", "a", 5)], orders=[order("same", "x", 7)], consents=said)
    assert seen(permitted(tables, Tier.ONLINE), "person") == [("visitor:same",)]
    assert seen(permitted(tables, Tier.CRM), "person") == [("customer:same",)]
    assert seen(permitted(tables, Tier.FUSED), "person") == []


def test_each_row_that_stays_out_is_counted_with_its_first_reason() -> None:
    tables = shop(
        events=[
            event("v1", "a", 5), event("v1", "pills", 5), event("v1", "a", 6, kind="remove"),
            event("v1", "a", 7, kind="unfavourite"), event("v1", "a", CUTOFF),
            event("v1", "a", 60, kind="remove"),
            event("v2", "a", 5), event("v3", "a", 5), event("nobody", "pills", 60), event("v4", "a", 1),
        ],
        items=[{"item_id": "pills", "sensitive": True}, {"item_id": "a", "sensitive": None}],
        consents=[
            consent("v1", "online"), consent("v2", "online", "denied"), consent("v3", "online", until=20),
            consent("v4", "online", at=2),
        ],
    )  # fmt: skip
    (funnel,) = permitted(tables, Tier.ONLINE).funnel
    assert (funnel.tier, funnel.source, funnel.rows_in, funnel.rows_kept) == ("online", "online", 10, 1)
    assert funnel.excluded == {
        "after the cut-off": 2, "denied": 1, "expired": 1, "no consent record": 1,
        "no permission then": 1, "no sign of interest": 2, "sensitive item": 1,
    }  # fmt: skip
    assert funnel.rows_in == funnel.rows_kept + sum(funnel.excluded.values())


def test_the_counts_name_nobody_whose_rows_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[pa.Table] = []
    funnel_of = gate.verdicts_of

    def told(tier: Tier, source: Source, counted: pa.Table) -> Funnel:
        counts.append(counted)
        return funnel_of(tier, source, counted)

    monkeypatch.setattr(gate, "verdicts_of", told)
    tables = shop(events=[event("v1", "a", 5), event("refuser", "a", 5)], consents=AGREED)
    (funnel,) = permitted(tables, Tier.ONLINE).funnel
    assert funnel.excluded == {"no consent record": 1}
    assert "visitor:v1" in str(counts[0].to_pylist())
    assert "refuser" not in str(counts[0].to_pylist())


def test_orders_that_were_cancelled_or_returned_show_no_interest() -> None:
    orders = [order("c1", status, 5, status=status) for status in ("ordered", "cancelled", "returned")]
    found = permitted(shop(orders=orders, consents=AGREED), Tier.CRM)
    assert seen(found, "item_id", "event_type", "session_id") == [("ordered", "order", None)]


def test_attributes_are_those_of_customers_who_permit_it_at_the_cutoff() -> None:
    customers = pa.table(
        {"customer_id": ["c3", "c1", "c9"], "age": [3.0, 1.0, 9.0], "vip": [True, None, False]}
    )
    tables = shop(
        customers=customers,
        consents=[*AGREED, consent("c3", "crm", "withdrawn", 20), consent("c9", "crm", "denied")],
    )
    attributes = permitted(tables, Tier.CRM).attributes
    assert attributes is not None
    assert attributes.to_pylist() == [{"person": "customer:c1", "age": 1.0, "vip": None}]
    assert permitted(tables, Tier.ONLINE).attributes is None
    linked = dataclasses.replace(tables, identities=shop(identities=[link("v1", "c1")]).identities)
    joined = permitted(linked, Tier.FUSED).attributes
    assert joined is not None
    assert joined.to_pylist() == attributes.to_pylist()


def test_it_says_whose_rows_and_attributes_they_are() -> None:
    """Who only lends attributes is in the model too; whose rows all stay out is not."""
    tables = shop(
        events=[
            event("v1", "a", 5),
            event("v1", "b", 5),
            event("v2", "a", 5, kind="remove"),
            event("v9", "a", 5),
        ],
        orders=[order("c1", "x", 7), order("c9", "x", 7)],
        customers=pa.table({"customer_id": ["c1", "c2", "c9"], "age": [1.0, 2.0, 9.0]}),
        identities=[link("v1", "c1"), link("v2", "c2")],
        consents=AGREED,
    )
    customers = [("customer", "c1"), ("customer", "c2")]
    for tier, expected in {
        Tier.ONLINE: [("visitor", "v1")],
        Tier.CRM: customers,
        Tier.FUSED: [*customers, ("visitor", "v1")],
    }.items():
        subjects = permitted(tables, tier).subjects.to_pylist()
        assert [(row["kind"], row["subject_id"]) for row in subjects] == expected


def test_two_devices_and_one_customer_are_one_person() -> None:
    tables = shop(
        events=[event("v1", "a", 5), event("v2", "b", 6), event("v3", "c", 7)],
        orders=[order("c1", "x", 7)],
        identities=[link("v1", "c1"), link("v2", "c1"), link("v3", "c1"), link("v3", "c2")],
        consents=AGREED,
    )
    found = permitted(tables, Tier.FUSED)
    assert {person for (person,) in seen(found, "person")} == {"customer:c1"}
    assert {item for (item,) in seen(found, "item_id")} == {"a", "b", "x"}  # on v3 two customers were seen
    assert found.funnel[0].excluded == {"unlinked": 1}


def test_rows_of_visitors_who_were_never_asked_are_counted_only_where_the_shop_chose_so() -> None:
    tables = shop(
        events=[
            event("v1", "a", 5),
            event("v2", "b", 5),
            event("v8", "c", 5),
            event("v9", "d", 5, kind="remove"),
        ],
        consents=[consent("v1", "online"), consent("v2", "online", "denied")],
    )
    strict, lenient = (
        ConsentGate(
            tables,
            ledger_of(tables),
            day(CUTOFF),
            Policy("test", Policy.default().matrix, Switches(anonymous_statistics=on)),
        ).anonymous_rows()
        for on in (False, True)
    )
    assert strict.rows.num_rows == 0
    assert seen(lenient, "person", "item_id") == [("anonymous", "c")]
    assert lenient.subjects.num_rows == 0


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    """Summer time ends: half past two comes twice in Berlin, and consent was given between the two."""
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    half_past_two = [dt.datetime(2025, 10, 26, 2, 30, tzinfo=berlin, fold=fold) for fold in (0, 1)]
    events = [{**event("v1", f"item {fold}", 0), "ts": when} for fold, when in enumerate(half_past_two)]
    granted = dt.datetime(2025, 10, 26, 2, 0, tzinfo=berlin, fold=1)
    agreed = {**consent("v1", "online"), "valid_from": granted, "recorded_at": granted}
    tables = shop(events=events, consents=[agreed])
    assert seen(permitted(tables, Tier.ONLINE), "item_id") == [("item 1",)]
    for name in ("events", "consents"):
        table = getattr(tables, name)
        moved = pa.table(
            {
                field.name: table[field.name].cast(pa.timestamp("ns", "America/St_Johns"))
                if pa.types.is_timestamp(field.type)
                else table[field.name]
                for field in table.schema
            }
        )
        tables = dataclasses.replace(tables, **{name: moved})
    moved_gate = ConsentGate(
        tables, ConsentTables.of_shop(tables, Lifetimes.default()), day(CUTOFF), Policy.default()
    )
    assert seen(moved_gate.permitted(Tier.ONLINE), "item_id") == [("item 1",)]


rows = st.lists(
    st.builds(event, st.sampled_from(("v1", "v2", "v9")), st.sampled_from("ab"), st.integers(1, 60)),
    max_size=20,
)


@settings(max_examples=6)
@given(rows=rows, seed=st.integers(0, 99))
def test_the_same_rows_come_out_in_the_same_order_whatever_order_they_came_in(
    rows: list[Row], seed: int
) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    one, other = (permitted(shop(events=each, consents=AGREED), Tier.ONLINE) for each in (rows, shuffled))
    assert one.rows.equals(other.rows)
    assert one.funnel == other.funnel
    assert one.rows.num_rows == sum(row["visitor_id"] != "v9" and row["ts"] < day(CUTOFF) for row in rows)


@pytest.mark.parametrize("at_once", [1, 4])
def test_rows_that_are_sorted_in_parts_come_out_as_if_sorted_at_once(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Many rows are sorted some persons at a time: memory stays bounded, the order stays what it is."""
    events = [event(f"v{1 + at % 3}", "ab"[at % 2], at) for at in range(1, 12)]
    orders = [order(f"c{1 + at % 3}", "x", at) for at in range(1, 8)]
    tables = shop(events=events, orders=orders, identities=[link("v1", "c1")], consents=AGREED)
    for tier in (Tier.ONLINE, Tier.FUSED):
        whole = permitted(tables, tier, include_single_source_in_fused=True)
        monkeypatch.setattr(gate, "_SORTED_AT_ONCE", at_once)
        parts = permitted(tables, tier, include_single_source_in_fused=True)
        assert parts.rows.equals(whole.rows)
        assert parts.funnel == whole.funnel
        monkeypatch.undo()
    order_by = [(name, "ascending") for name in ("person", "ts", "item_id", "event_type", "source")]
    assert whole.rows.num_rows == 18
    assert whole.rows.equals(whole.rows.sort_by(order_by))


def test_a_ledger_is_made_of_all_consents_and_identities() -> None:
    tables = shop(identities=[link("v1", "c1"), link("v2", "c1", None)], consents=[*AGREED, AGREED[0]])
    assert ledger_of(tables).position == len(AGREED) + 2
    with pytest.raises(LedgerError):
        ledger_of(shop(consents=[{**AGREED[0], "state": "maybe"}]))
