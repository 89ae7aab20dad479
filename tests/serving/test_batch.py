"""Batch scoring: who gets rows, what is read for them, and what the file holds."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.consent import Channel, ConsentRecord, Policy, Tier
from consentier.features.gate import ledger_of
from consentier.features.schemas import SCHEMAS, arrow_schema
from consentier.features.tables import ShopTables
from consentier.features.validation import ValidationReport
from consentier.serving import PermittedView, Recommender
from consentier.serving.batch import catalogue_of, profiles_of, score_customers
from consentier.serving.batch_file import BatchFacts, opened_batch
from consentier.serving.query import Query, Scored

AT = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
Row = dict[str, Any]


def day(number: int) -> dt.datetime:
    return dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=number)


def shop(**tables: Sequence[Row] | pa.Table) -> ShopTables:
    built = {}
    for name in SCHEMAS:
        rows = tables.get(name, [])
        built[name] = (
            rows
            if isinstance(rows, pa.Table)
            else pa.Table.from_pylist(list(rows), schema=arrow_schema(name))
        )
    return ShopTables(**built, report=ValidationReport())


def event(visitor: str, item: str, number: int, event_type: str = "view") -> Row:
    return {
        "visitor_id": visitor, "session_id": "s", "ts": day(number),
        "item_id": item, "event_type": event_type,
    }  # fmt: skip


def order(customer: str, item: str, number: int, status: str = "ordered") -> Row:
    return {
        "customer_id": customer, "order_id": f"o{number}", "line_id": item, "ts": day(number),
        "item_id": item, "quantity": 2, "status": status,
    }  # fmt: skip


def use(customer: str, item: str, number: int) -> Row:
    return {
        "customer_id": customer,
        "ts": day(number),
        "item_id": item,
        "usage_type": "play",
        "quantity": 1.5,
    }


def consent(subject: str, permission: str, state: str = "granted", number: int = 0) -> Row:
    return {
        "record_id": f"{subject} {permission} {state} {number}",
        "subject_id": subject, "permission": permission,
        "subject_kind": "visitor" if subject.startswith("v") else "customer", "state": state,
        "valid_from": day(number), "recorded_at": day(number), "evidence": "form",
    }  # fmt: skip


def link(visitor: str, customer: str, number: int = 1) -> Row:
    return {"visitor_id": visitor, "customer_id": customer, "linked_at": day(number), "evidence": "login"}


class Reader:
    """A scorer that recommends, one by one, what it was allowed to read; it is what a test looks at."""

    item_ids = (
        "seen", "seen-elsewhere", "stranger", "bought", "owned", "secret", "mine", "other", "x", "y", "z",
    )  # fmt: skip

    def __init__(self, tier: Tier) -> None:
        self.digest = f"sha256:{tier}"

    def digest_into(self, digest: Any) -> None:
        """What it shows depends on nothing else."""

    def answer(self, view: PermittedView, query: Query) -> Scored | None:
        read = [f"{e.item_id}" for e in (*view.session, *view.online_history, *view.crm_history)]
        read += [f"{name}={value}" for name, value in view.attributes.items() if value is not None]
        items = tuple(dict.fromkeys(read))[: query.n]
        return Scored(items, tuple(1.0 / rank for rank in range(1, len(items) + 1))) if items else None


class Shelf:
    """A popular list of one item."""

    digest = "sha256:popular"
    explores = False
    item_ids = ("bestseller",)

    def digest_into(self, digest: Any) -> None:
        """What it shows depends on nothing else."""

    def shown(self, side: object) -> None:
        """It must be asked one by one."""

    def top(
        self,
        query: Query,
        *,
        without: frozenset[str] = frozenset(),
        mixture: object = None,
        trending: object = None,
    ) -> list[str]:
        return [item for item in ("bestseller",) if item not in without][: query.n]


def recommender(policy: Policy | None = None, popular: bool = True) -> Recommender:
    tiers = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED)
    scorers: Mapping[Tier, Any] = {tier: Reader(tier) for tier in tiers}
    shelf: Any = Shelf() if popular else None
    return Recommender(scorers=scorers, popular=shelf, policy=Policy.default() if policy is None else policy)


FULL = shop(
    events=[event("v1", "seen", 5), event("v2", "seen-elsewhere", 6), event("v3", "stranger", 6)],
    orders=[
        order("c1", "bought", 5),
        order("c2", "owned", 5),
        order("c3", "secret", 5),
        order("c4", "mine", 5),
    ],
    identities=[link("v1", "c1"), link("v2", "c1")],
    consents=[
        *(consent(subject, "online") for subject in ("v1", "v2")),
        *(consent(subject, "crm") for subject in ("c1", "c2", "c4", "c5")),
        *(consent(subject, "contact:email") for subject in ("c1", "c3", "c4", "c5")),
        consent("v3", "online", "denied"),
        consent("c4", "crm", "objected", 20),
    ],
)


def scored(tables: ShopTables, out: Path, channel: Channel, **options: Any) -> tuple[Any, list[Row]]:
    engine = options.pop("engine", None) or recommender()
    summary = score_customers(
        tables, engine, options.pop("ledger", None) or ledger_of(tables),
        channel=channel, at=options.pop("at", AT), n=options.pop("n", 3), out=out, show_progress=False,
        **options,
    )  # fmt: skip
    return summary, pq.read_table(out).to_pylist()


def test_only_customers_who_may_be_contacted_get_rows_and_each_from_what_is_permitted(tmp_path: Path) -> None:
    summary, rows = scored(FULL, tmp_path / "out.parquet", Channel.EMAIL, engine=recommender(popular=False))
    found = {(row["customer_id"], row["rank"]): (row["item_id"], row["tier"]) for row in rows}
    assert found == {
        ("c1", 1): ("seen", "fused"),
        ("c1", 2): ("seen-elsewhere", "fused"),
        ("c1", 3): ("bought", "fused"),
    }
    assert summary.customers == 1
    assert summary.rows == 3
    assert summary.by_tier == {"fused": 1}
    assert summary.skipped["no contact permission for email"] == 1  # c2
    assert sum(summary.skipped.values()) == 4


def test_contact_without_crm_permission_gets_the_popular_list_and_an_objector_nothing(tmp_path: Path) -> None:
    summary, rows = scored(FULL, tmp_path / "out.parquet", Channel.EMAIL)
    by_customer = {row["customer_id"]: row for row in rows if row["rank"] == 1}
    assert by_customer["c3"]["item_id"] == "bestseller"
    assert by_customer["c3"]["tier"] == "popular"
    assert by_customer["c3"]["bundle_digest"] == "sha256:popular"
    assert "c4" not in by_customer
    assert summary.skipped["an objection stands: not answered"] == 1


def test_online_rows_name_only_visitors_with_permission_and_never_read_crm(tmp_path: Path) -> None:
    summary, rows = scored(FULL, tmp_path / "out.parquet", Channel.SHOP)
    assert {row["visitor_id"] for row in rows} == {"v1", "v2"}
    assert [row["item_id"] for row in rows if row["visitor_id"] == "v1"] == ["seen", "bestseller"]
    assert summary.by_tier == {"online": 2}
    assert summary.skipped == {"no online permission": 1}


def test_without_required_login_linked_visitors_get_the_fused_answer(tmp_path: Path) -> None:
    policy = Policy.default()
    trusting = Policy("trusting", policy.matrix, type(policy.switches)(shared_device_login=False))
    _, rows = scored(FULL, tmp_path / "out.parquet", Channel.SHOP, engine=recommender(trusting), n=10)
    assert {row["tier"] for row in rows} == {"fused"}
    assert {row["policy_version"] for row in rows} == {"trusting"}
    assert {row["item_id"] for row in rows if row["visitor_id"] == "v1"} >= {
        "seen",
        "seen-elsewhere",
        "bought",
    }


def test_a_customer_without_a_lawful_link_is_read_from_crm_alone(tmp_path: Path) -> None:
    refused = ledger_of(FULL)
    refused.append(
        ConsentRecord(f"w {visitor}", visitor, "visitor", "online", "withdrawn", day(30), day(30))
        for visitor in ("v1", "v2")
    )
    _, rows = scored(FULL, tmp_path / "out.parquet", Channel.EMAIL, ledger=refused)
    mine = [(row["item_id"], row["tier"]) for row in rows if row["customer_id"] == "c1"]
    assert mine == [("bought", "crm"), ("bestseller", "crm")]


def test_changing_what_may_not_be_read_changes_no_byte(tmp_path: Path) -> None:
    changed = shop(
        events=[event("v1", "seen", 5), event("v2", "seen-elsewhere", 6), event("v3", "other", 6)],
        orders=[order("c1", "bought", 5), order("c2", "x", 5), order("c3", "y", 5), order("c4", "z", 5)],
        identities=FULL.identities,
        consents=FULL.consents,
    )
    for channel in (Channel.EMAIL, Channel.SHOP):
        scored(FULL, tmp_path / "before.parquet", channel)
        scored(changed, tmp_path / "after.parquet", channel)
        assert (tmp_path / "before.parquet").read_bytes() == (tmp_path / "after.parquet").read_bytes()


def test_columns_order_and_determinism(tmp_path: Path) -> None:
    _, rows = scored(FULL, tmp_path / "a.parquet", Channel.EMAIL)
    scored(FULL, tmp_path / "b.parquet", Channel.EMAIL)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.names == [
        "customer_id", "rank", "item_id", "score", "tier", "at", "bundle_digest", "policy_version", "devices",
    ]  # fmt: skip
    assert [(row["customer_id"], row["rank"]) for row in rows] == sorted(
        (row["customer_id"], row["rank"]) for row in rows
    )
    assert {row["at"] for row in rows} == {AT}
    assert {row["bundle_digest"] for row in rows if row["item_id"] == "bought"} == {"sha256:fused"}


def test_filled_items_name_the_popular_bundle(tmp_path: Path) -> None:
    _, rows = scored(FULL, tmp_path / "out.parquet", Channel.EMAIL, n=4)
    filled = [row for row in rows if row["customer_id"] == "c1" and row["item_id"] == "bestseller"]
    assert [(row["rank"], row["score"], row["tier"], row["bundle_digest"]) for row in filled] == [
        (4, 0.0, "fused", "sha256:popular")
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_neither_parts_nor_workers_change_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    for channel in (Channel.EMAIL, Channel.SHOP):
        _, whole = scored(FULL, tmp_path / "a.parquet", channel)
        with monkeypatch.context() as patch:
            patch.setattr("consentier.serving.batch._PERSONS_PER_PART", 1)
            summary, pieces = scored(FULL, tmp_path / "b.parquet", channel, workers=workers)
        assert pieces == whole
        assert summary.rows == len(whole)


def test_nobody_to_score_gives_an_empty_file_with_all_columns(tmp_path: Path) -> None:
    summary, rows = scored(shop(), tmp_path / "out.parquet", Channel.PRINT)
    assert rows == []
    assert (summary.rows, summary.customers, summary.by_tier, summary.skipped) == (0, 0, {}, {})
    assert pq.read_schema(tmp_path / "out.parquet").names[0] == "customer_id"


def test_the_file_says_what_it_was_scored_for(tmp_path: Path) -> None:
    later = AT.astimezone(dt.timezone(dt.timedelta(hours=2)))
    _, rows = scored(FULL, tmp_path / "out.parquet", Channel.EMAIL, at=later)
    with opened_batch(tmp_path / "out.parquet") as batch:
        assert batch.facts == BatchFacts(Channel.EMAIL, Policy.default().version, AT)
        assert batch.rows == len(rows)
    assert {(row["tier"], row["devices"]) for row in rows} == {("fused", 2), ("popular", None)}


class FailingReader(Reader):
    """Breaks off half-way."""

    def answer(self, view: PermittedView, query: Query) -> Scored | None:
        if any(event.item_id == "mine" for event in view.crm_history):
            raise OSError("the disk is gone")
        return super().answer(view, query)


def test_a_failure_leaves_the_old_file_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.parquet"
    out.write_bytes(b"old")
    scorers: Any = {tier: FailingReader(tier) for tier in (Tier.CRM, Tier.FUSED)}
    engine = Recommender(scorers=scorers, popular=None, policy=Policy.default())
    tables = dataclasses.replace(
        FULL, consents=FULL.consents.filter(pc.not_equal(FULL.consents["state"], "objected"))
    )
    monkeypatch.setattr("consentier.serving.batch._PERSONS_PER_PART", 1)
    for workers in (1, 3):
        with pytest.raises(OSError, match="disk is gone"):
            scored(tables, out, Channel.EMAIL, engine=engine, workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"channel": "email"}, TypeError),
        ({"at": dt.datetime(2026, 1, 1)}, ValueError),
        ({"n": 0}, ValueError),
    ],
)
def test_wrong_arguments_write_nothing(tmp_path: Path, wrong: Row, error: type[Exception]) -> None:
    options: Row = {"channel": Channel.EMAIL, "at": AT, "n": 3, **wrong}
    with pytest.raises(error):
        score_customers(
            FULL, recommender(), ledger_of(FULL), out=tmp_path / "o.parquet", show_progress=False, **options
        )
    assert list(tmp_path.iterdir()) == []


# --- profiles ----------------------------------------------------------------------------------------------


def test_histories_are_ordered_cut_off_and_hold_what_shows_interest() -> None:
    tables = shop(
        events=[
            event("v1", "late", 9),
            event("v1", "early", 1, "cart"),
            event("v1", "gone", 3, "remove"),
            event("v1", "off", 3, "unfavourite"),
            event("v1", "after", 200),
            event("v2", "other", 2),
        ],
        orders=[
            order("c1", "kept", 4),
            order("c1", "back", 5, "returned"),
            order("c1", "no", 6, "cancelled"),
        ],
        product_usage=[use("c1", "used", 2)],
    )
    profiles = profiles_of(tables, AT)
    assert [(e.item_id, e.event_type, e.ts) for e in profiles.online["v1"]] == [
        ("early", "cart", day(1)),
        ("late", "view", day(9)),
    ]
    assert [(e.item_id, e.event_type, e.quantity) for e in profiles.crm["c1"]] == [
        ("used", "usage", 1.5),
        ("kept", "order", 2.0),
    ]
    assert set(profiles.online) == {"v1", "v2"}
    assert len(profiles.online) == 2
    assert "c1" not in profiles.online
    assert profiles.online.get("nobody", ()) == ()


def test_a_row_at_the_instant_itself_is_not_before_it() -> None:
    tables = shop(events=[event("v1", "now", 5), event("v1", "before", 4)])
    assert [e.item_id for e in profiles_of(tables, day(5)).online["v1"]] == ["before"]


def test_sensitive_items_enter_no_history_and_unavailable_ones_no_answer() -> None:
    items = [
        {"item_id": "plain"},
        {"item_id": "pills", "sensitive": True},
        {"item_id": "sold-out", "available": False, "sensitive": False},
    ]
    tables = shop(
        items=items,
        events=[event("v1", "pills", 1), event("v1", "plain", 2)],
        orders=[order("c1", "pills", 1), order("c1", "sold-out", 2)],
    )
    profiles = profiles_of(tables, AT)
    assert [e.item_id for e in profiles.online["v1"]] == ["plain"]
    assert [e.item_id for e in profiles.crm["c1"]] == ["sold-out"]
    catalogue = catalogue_of(tables)
    assert catalogue is not None
    assert catalogue.available == {"plain"}
    assert catalogue.sensitive == {"pills"}
    assert catalogue_of(shop()) is None


def test_attributes_are_plain_values() -> None:
    customers = pa.table(
        {
            "customer_id": ["c1", "c2"],
            "age_band": ["18-24", None],
            "score": [float("nan"), 2.5],
            "member": [True, None],
            "visits": pa.array([None, 3], pa.int64()),
            "joined": pa.array([day(1), day(2)], pa.timestamp("us", "UTC")),
        }
    )
    attributes = profiles_of(shop(customers=customers), AT).attributes
    assert attributes["c1"] == {"age_band": "18-24", "score": None, "member": True, "visits": None}
    assert attributes["c2"] == {"age_band": None, "score": 2.5, "member": None, "visits": 3}
    assert len(attributes) == len(list(attributes)) == 2
    assert attributes.get("c3") is None


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["v1", "v2", "é", "z"]), st.sampled_from("abc"), st.integers(0, 3)),
        max_size=30,
    ),
    seed=st.integers(0, 1_000),
)
def test_profiles_do_not_depend_on_the_order_of_rows(rows: list[tuple[str, str, int]], seed: int) -> None:
    events = [event(*row) for row in rows]
    shuffled = random.Random(seed).sample(events, len(events))
    one, other = profiles_of(shop(events=events), AT), profiles_of(shop(events=shuffled), AT)
    assert {v: one.online[v] for v in one.online} == {v: other.online[v] for v in other.online}
    assert sum(len(one.online[visitor]) for visitor in one.online) == len(rows)
    for visitor in one.online:
        assert {e.item_id for e in one.online[visitor]} == {
            item for owner, item, _ in rows if owner == visitor
        }


def test_an_instant_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        profiles_of(shop(), dt.datetime(2026, 1, 1))
