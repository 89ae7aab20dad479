"""A batch answers everybody as the recommender answers each: tier, items, scores, bundles and devices.

The recommender is asked one person after the other, with the ledger and the histories that a shop's service
would have. Everything that a list may depend on is drawn: permissions, links, channel, switches, histories of
several devices, attributes, rules, repeats, kinds of models, missing models, length and loops.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from breaking import Break, assert_breaks, breaks
from consent_cases import LAST_TICK, Case, at_tick
from engines import ITEMS, LINEAR, write_factors, write_linear, write_popular
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import shop
from towns import Town, town_of, towns

from consentier.consent import (
    Channel,
    ConsentRecord,
    Ledger,
    Link,
    Policy,
    Side,
    Source,
    Switches,
    Tier,
    microseconds,
)
from consentier.serving import (
    Catalogue,
    Event,
    Recommender,
    Request,
    batch,
    batch_answers,
    batch_scorers,
    batch_views,
)
from consentier.serving.batch import profiles_of, score_customers
from consentier.serving.reach import EXISTING_CUSTOMER, reach
from consentier.serving.rules import Rules

Row = dict[str, Any]

CATALOGUE = Catalogue(
    frozenset({*ITEMS[:12], "brand-new"}),
    frozenset({"pills"}),
    {item: {"brand": f"b{number % 3}", "price": float(number)} for number, item in enumerate(ITEMS[:12])},
)

RULES: Mapping[str, Rules | None] = {
    "none": None,
    "shown": Rules.from_document({"show": "price < 9", "deny": ["item-02"]}),
    "capped": Rules.from_document({"caps": {"brand": 1}}),
    "boosted": Rules.from_document({"boost": [{"where": "price > 6", "factor": 5.0}]}),
    "mixed": Rules.from_document({"diversity": {"weight": 0.5, "columns": ["brand"]}, "caps": {"brand": 2}}),
    "bought again": Rules.from_document(
        {"rebuy": {"column": "brand", "days": {"b0": 0.01, "b1": 90.0}, "otherwise": 0.005}}
    ),
}

SCORING: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "fading": {"recency_half_life": 0.004, "event_weights": {"cart": 2.5, "usage": 0.0}},
    "short": {"max_history": 2, "attribute_weight": 0.0},
    "one source": {"source_weights": {"crm": 1.0}, "second_hop_weight": 0.5},
}


CATEGORIES = {item: None if item == "pills" else f"k{number % 3}" for number, item in enumerate(ITEMS)}
CATEGORIES["brand-new"] = "k1"


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="consentier-tests-")


@functools.cache
def bundles(hide: tuple[str, ...], scoring: str, factors: bool) -> Path:
    """Bundles of all tiers."""
    folder = Path(_folder().name) / "-".join(("bundles", *hide, scoring, str(factors)))
    folder.mkdir()
    for seed, tier in enumerate(LINEAR):
        write = write_factors if factors and tier is not Tier.SESSION else write_linear
        write(folder / tier, tier, hide=hide, seed=seed, scoring=SCORING[scoring])
    write_popular(folder / "popular")
    return folder


@functools.cache
def engine(
    hide: tuple[str, ...], scoring: str, factors: bool, rules: str, catalogue: bool, compiled: bool
) -> Recommender:
    """A recommender over them."""
    known = CATALOGUE if catalogue or RULES[rules] is not None else None
    folder = bundles(hide, scoring, factors)
    return Recommender.load(
        folder,
        catalogue=known,
        rules=RULES[rules],
        audit_key=b"k",
        compiled=compiled,
        clock=lambda: at_tick(0),
    )


@dataclasses.dataclass(frozen=True)
class Shop:
    """A shop, what it asks for, and with which models."""

    town: Town
    events: tuple[tuple[str, str, int, str], ...]
    orders: tuple[tuple[str, str, int, str], ...]
    usage: tuple[tuple[str, str, int], ...]
    customers: tuple[tuple[str, str | None, float | None], ...]
    channel: Channel = Channel.EMAIL
    switches: Switches = dataclasses.field(default_factory=Switches)
    hide: tuple[str, ...] = ()
    scoring: str = "plain"
    factors: bool = False
    rules: str = "none"
    catalogue: bool = False
    compiled: bool = True
    missing: frozenset[Tier] = frozenset()
    n: int = 4
    part: int = 50_000
    sale: bool = False  # some contact permissions rest on a sale, and not on consent

    def ledger(self) -> Ledger:
        """Its ledger."""
        records = self.town.records
        if self.sale:
            records = [
                dataclasses.replace(record, basis=EXISTING_CUSTOMER)
                if record.permission.startswith("contact:") and len(record.record_id) % 2 == 0
                else record
                for record in records
            ]
        return Ledger(records, self.town.links)

    def tables(self) -> Any:
        """Its tables."""
        return shop(
            events=[
                {"visitor_id": who, "session_id": "s", "ts": at_tick(tick), "item_id": item,
                 "event_type": kind}
                for who, item, tick, kind in self.events
            ],
            orders=[
                {"customer_id": who, "order_id": f"o{number}", "line_id": "1", "ts": at_tick(tick),
                 "item_id": item, "quantity": 1, "price": None, "status": status}
                for number, (who, item, tick, status) in enumerate(self.orders)
            ],
            product_usage=[
                {"customer_id": who, "ts": at_tick(tick), "item_id": item, "usage_type": "x", "quantity": 1.0}
                for who, item, tick in self.usage
            ],
            customers=pa.table(
                {
                    "customer_id": pa.array([who for who, *_ in self.customers], pa.string()),
                    "region": pa.array([region for _, region, _ in self.customers], pa.string()),
                    "age": pa.array([age for *_, age in self.customers], pa.float64()),
                    "vip": pa.array([age == 40.0 for *_, age in self.customers], pa.bool_()),
                }
            ),
            items=pa.table(
                {
                    "item_id": list(CATEGORIES),
                    "available": [True] * len(CATEGORIES),
                    "sensitive": [item == "pills" for item in CATEGORIES],
                    "category": list(CATEGORIES.values()),
                }
            ),
        )  # fmt: skip

    def recommender(self) -> Recommender:
        """The recommender, without models that are missing."""
        whole = engine(self.hide, self.scoring, self.factors, self.rules, self.catalogue, self.compiled)
        return dataclasses.replace(
            whole,
            policy=Policy("test", Policy.default().matrix, self.switches),
            scorers={tier: one for tier, one in whole.scorers.items() if tier not in self.missing},
            popular=None if Tier.POPULAR in self.missing else whole.popular,
        )


_ticks = st.integers(0, LAST_TICK)
_houses = ("0", "1", "2", "9")
_subjects = st.sampled_from([f"{house}/{name}" for house in _houses for name in "ab"])
_items = st.sampled_from([*ITEMS, "unheard-of"])


def _some(*parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(st.tuples(*parts), max_size=25).map(tuple)


shops: st.SearchStrategy[Shop] = st.builds(
    Shop,
    town=towns(3),
    events=_some(_subjects, _items, _ticks, st.sampled_from(("view", "cart", "remove", "order"))),
    orders=_some(_subjects, _items, _ticks, st.sampled_from(("ordered", "ordered", "returned"))),
    usage=_some(_subjects, _items, _ticks),
    customers=st.lists(
        st.tuples(
            _subjects,
            st.sampled_from(("north", "west", "nowhere", None)),
            st.sampled_from((20.0, 40.0, float("nan"), None)),
        ),
        max_size=6,
        unique_by=lambda row: row[0],
    ).map(tuple),
    channel=st.sampled_from((*(Channel.EMAIL, Channel.SHOP) * 3, Channel.ADS)),
    switches=st.builds(
        Switches,
        crm_on_site=st.booleans(),
        shared_device_login=st.sampled_from((False, False, True)),
        ads_purpose=st.booleans(),
        fusion_purpose=st.booleans(),
    ),
    hide=st.sampled_from(((), ("online",), ("crm",), ("online", "crm"))),
    scoring=st.sampled_from(sorted(SCORING)),
    factors=st.booleans(),
    rules=st.sampled_from(("none", "none", *sorted(RULES))),
    catalogue=st.booleans(),
    compiled=st.sampled_from((True, True, True, False)),
    missing=st.frozensets(st.sampled_from(list(Tier)), max_size=1),
    n=st.integers(1, 8),
    part=st.sampled_from((1, 3, 50_000)),
    sale=st.booleans(),
)


def similar_to(history: Sequence[Event]) -> list[str]:
    """All items of the categories in which somebody bought something."""
    bought = {CATEGORIES.get(event.item_id) for event in history if event.event_type == "order"} - {None}
    return [item for item, category in CATEGORIES.items() if category in bought]


def one_by_one(case: Shop) -> list[Row]:
    """The rows that the recommender's answers would make."""
    tables, ledger, at = case.tables(), case.ledger(), case.town.at
    profiles = profiles_of(tables, at).within(60.0)  # a store that is slow lowers a tier
    recommender = dataclasses.replace(case.recommender(), ledger=ledger, profiles=profiles)
    crm = case.channel.side is Side.CRM
    names = ("orders", "product_usage", "customers") if crm else ("events",)
    key = "customer_id" if crm else "visitor_id"
    persons = {*ledger.subjects(Source.CRM if crm else Source.ONLINE)}
    persons |= {row[key] for name in names for row in getattr(tables, name).to_pylist()}
    rows: list[Row] = []
    for person in sorted(persons):
        found = reach(ledger, recommender.policy, person, case.channel, at)
        if found.barrier:
            continue
        bought = [
            event
            for event in profiles.crm.get(person, ())
            if event.ts is not None and microseconds(event.ts) >= (found.resolution.crm_since or 0)
        ]
        allowed = similar_to(bought) if found.similar_only else None
        answer = recommender.recommend(
            Request(
                visitor_id=found.visitor_id,
                customer_id=found.customer_id,
                channel=case.channel,
                at=at,
                n=case.n,
                allow=allowed,
            )
        )
        if allowed is not None and answer.tier is Tier.POPULAR:
            continue  # it reads no purchases: nothing can be shown to be like them
        scored = 0 if answer.tier is Tier.POPULAR else len(answer.items) - answer.basis.filled
        for rank, (item, score) in enumerate(zip(answer.items, answer.scores, strict=True), start=1):
            basis = answer.basis
            rows.append(
                {
                    key: person, "rank": rank, "item_id": item, "score": score, "tier": str(answer.tier),
                    "bundle_digest": basis.bundle_digest if rank <= scored else basis.fill_digest,
                    "devices": len(found.devices) if answer.tier is Tier.FUSED else None,
                }
            )  # fmt: skip
    return rows


def in_a_batch(case: Shop) -> list[Row]:
    """The rows of the batch."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_PERSONS_PER_PART", case.part)
        out = Path(folder) / "out.parquet"
        score_customers(
            case.tables(), case.recommender(), case.ledger(), channel=case.channel, at=case.town.at,
            n=case.n, out=out, workers=2, show_progress=False,
        )  # fmt: skip
        rows: list[Row] = pq.read_table(out).drop_columns(["at", "policy_version"]).to_pylist()
        return rows


def check_same(case: Shop) -> None:
    """Every row, to the last bit of a score."""
    assert in_a_batch(case) == one_by_one(case)


@settings(max_examples=25, deadline=None)
@given(shops)
def test_a_batch_answers_everybody_as_the_recommender_answers_each(case: Shop) -> None:
    check_same(case)


def everything_granted() -> Town:
    """Customer 0/a with two linked devices; all permitted."""
    told = [("a", "customer", "crm"), ("a", "customer", "contact:email")]
    told += [(device, "visitor", "online") for device in "ab"]
    records = [
        ConsentRecord(f"{who}: {what}", who, kind, what, "granted", at_tick(0), at_tick(0))  # type: ignore[arg-type]
        for who, kind, what in told
    ]
    links = [Link(device, "a", at_tick(0), "login") for device in "ab"]
    return town_of(Case(tuple(records), tuple(links), at_tick(LAST_TICK)))


LINKED = Shop(
    town=everything_granted(),
    events=(
        ("0/a", ITEMS[0], 1, "view"), ("0/b", ITEMS[1], 2, "cart"), ("0/a", ITEMS[2], 3, "view"),
        ("0/b", ITEMS[3], 4, "view"), ("0/a", ITEMS[4], 5, "view"), ("0/b", ITEMS[5], 6, "view"),
    ),
    orders=(("0/a", ITEMS[6], 1, "ordered"), ("0/a", ITEMS[7], 4, "ordered")),
    usage=(("0/a", ITEMS[8], 5),),
    customers=(("0/a", "west", 40.0),),
    switches=Switches(shared_device_login=False),
)  # fmt: skip


def renewed() -> Town:
    """The same, who all withdrew, permitted anew, and logged in after that."""
    (house,) = everything_granted().houses
    again = [
        dataclasses.replace(
            record,
            record_id=f"{record.record_id}, {state}",
            state=state,
            valid_from=at_tick(tick),
            recorded_at=at_tick(tick),
        )
        for record in house.records
        for state, tick in (("withdrawn", 3), ("granted", 4))
    ]
    links = tuple(dataclasses.replace(link, linked_at=at_tick(5)) for link in house.links)
    return Town((dataclasses.replace(house, records=(*house.records, *again), links=links),))


RENEWED = dataclasses.replace(LINKED, town=renewed(), n=8)


@breaks(
    Break(
        "the devices are read whole",
        batch_views._of_devices,
        "events.spans_since(reach.devices.take(pa.array(places)), reach.devices_since[places])",
        "events.spans(reach.devices.take(pa.array(places)))",
        witness=RENEWED,
    ),
    Break(
        "the CRM history is read whole",
        batch_views.views_of,
        "events.spans_since(customers, reach.crm_since[chosen])",
        "events.spans(customers)",
        witness=dataclasses.replace(RENEWED, missing=frozenset({Tier.FUSED})),
    ),
    Break(
        "the online history is read whole",
        batch_views.views_of,
        "events.spans_since(visitors, reach.online_since[chosen])",
        "events.spans(visitors)",
        witness=dataclasses.replace(RENEWED, missing=frozenset({Tier.FUSED}), channel=Channel.SHOP),
    ),
    Break(
        "what happened at the instant of the grant is left out",
        batch_views._Events.spans_since,
        "self.times[middle] < since[left]",
        "self.times[middle] <= since[left]",
        witness=RENEWED,
    ),
    Break(
        "a tier reads more than it may",
        batch_views.views_of,
        "if source not in sources:",
        "if False:",
        witness=dataclasses.replace(LINKED, channel=Channel.SHOP, missing=frozenset({Tier.FUSED}), n=8),
    ),
    Break(
        "the devices of a customer are put in no order",
        batch_views._of_devices,
        "if (per_person > 1).any():",
        "if False:",
        witness=dataclasses.replace(LINKED, scoring="short", n=8),
    ),
    Break(
        "what somebody has may come again",
        batch_scorers.TierScorer._prepare,
        "int(source in settings.hide)",
        "0",
        witness=dataclasses.replace(LINKED, hide=("online", "crm"), n=8),
    ),
    Break(
        "a list is filled with what somebody has",
        batch_scorers.Filler.fill,
        "*_spans(weighed.hidden_starts, weighed.hidden, chosen)",
        "*(0 * weighed.hidden_starts[: chosen.size + 1], weighed.hidden)",
        witness=dataclasses.replace(LINKED, hide=("online", "crm"), n=8),
    ),
    Break(
        "an existing customer is sent anything",
        batch_scorers.TierScorer.lists,
        "limits = _Limits(limited,",
        "limits = _Limits(0 * limited > 0,",
        witness=dataclasses.replace(LINKED, sale=True),
    ),
    Break(
        "a list for an existing customer is filled with anything",
        batch_scorers.Filler.fill,
        "limits.limited[chosen]",
        "limits.limited[chosen] & False",
        witness=dataclasses.replace(LINKED, sale=True, n=8, orders=LINKED.orders[:1]),
    ),
    Break(
        "an existing customer is sent what is popular",
        batch_answers.BatchAnswers._answer,
        "chosen = chosen[~self.reach.similar_only[chosen + start]]",
        "pass",
        witness=dataclasses.replace(LINKED, sale=True, missing=frozenset({Tier.FUSED, Tier.CRM})),
    ),
    Break(
        "a barrier is passed",
        batch_answers.BatchAnswers.lists,
        "pending = ~barred\n",
        "pending = barred | True\n",
        witness=dataclasses.replace(LINKED, channel=Channel.PRINT),
    ),
    Break(
        "age does not matter",
        batch_scorers.TierScorer._prepare,
        "self._half_life = 0 if days is None",
        "self._half_life = 0 if True",
        witness=dataclasses.replace(LINKED, scoring="fading", n=8),
    ),
)
def test_a_broken_rule_shows(broken: Break) -> None:
    assert_breaks(check_same, shops, broken)
