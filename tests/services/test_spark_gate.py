"""The consent gate on Apache Spark: the same expressions let the same rows pass as on DuckDB."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import ibis
import pyarrow as pa
import pytest
from shops import Row, consent, day, event, link, order, shop, usage
from spark_sessions import spark_session

from consentier.consent import Policy, Switches, Tier
from consentier.consent.lifetimes import Lifetimes
from consentier.features.consent_intervals import MISSING, ConsentTables
from consentier.features.gate import ConsentGate, PermittedRows
from consentier.features.tables import ShopTables

pytestmark = pytest.mark.service("spark")

CUTOFF = 60
SUBJECTS = 100

_STATES = {
    "online": ["granted", "granted", "denied", "withdrawn", "withdrawn", "objected", "lifted"],
    "crm": ["granted", "granted", "denied", "withdrawn", "withdrawn", "objected", "lifted"],
    "parental": ["granted", "denied", "lifted"],
    "model": ["granted", "granted", "denied"],
    "fusion": ["granted", "granted", "withdrawn"],
    "contact:email": ["granted"],
}


@pytest.fixture(scope="module")
def spark() -> Iterator[ibis.BaseBackend]:
    """A Spark in this process."""
    with spark_session() as session:
        yield ibis.pyspark.connect(session)


@pytest.fixture(scope="module")
def tables() -> ShopTables:
    """Some thousand rows, and records of all kinds: late, early, ending, repeated, contradicted."""
    chance = random.Random(5)
    visitors = [f"v{number}" for number in range(SUBJECTS)]
    customers = [f"c{number}" for number in range(SUBJECTS)]
    consents = [consent(who, "online", at=chance.randint(1, 20)) for who in visitors[:-9]]
    consents += [consent(who, "crm", at=chance.randint(1, 20)) for who in customers[:-9]]
    consents += [_decision(chance, chance.choice(visitors + customers), number) for number in range(250)]
    consents += [{**row, "recorded_at": day(chance.randint(0, 70))} for row in chance.sample(consents, 30)]
    consents += [{**row, "jurisdiction": "FR"} for row in chance.sample(consents, 15)]
    strangers = ["v-new", "c-new"]
    return shop(
        events=[
            event(
                chance.choice([*visitors, strangers[0]]),
                chance.choice(["a", "b", "pills", "ä", "\U0001f600"]),
                chance.uniform(0, 70),
                kind=chance.choice(["view", "cart", "remove"]),
                session=f"s{number % 7}",
            )
            for number in range(2_000)
        ],
        orders=[
            {
                **order(chance.choice([*customers, strangers[1]]), "x", chance.uniform(0, 70)),
                "line_id": str(number),
                "status": chance.choice(["ordered", "ordered", "returned"]),
            }
            for number in range(800)
        ],
        product_usage=[usage(chance.choice(customers), "y", chance.uniform(0, 70)) for _ in range(200)],
        customers=pa.table({"customer_id": customers, "age": [*[None] * 3, *map(float, range(3, SUBJECTS))]}),
        items=[{"item_id": "pills", "sensitive": True}, {"item_id": "a", "sensitive": None}],
        identities=[
            link(visitors[number], customers[number], chance.choice([None, 21, 30, 40, 65]))
            for number in range(SUBJECTS - 20)
        ]
        + [link(chance.choice(visitors), chance.choice(customers), 50) for _ in range(10)],
        consents=consents,
    )


def _decision(chance: random.Random, who: str, number: int) -> Row:
    permission = chance.choice(list(_STATES))
    at = chance.randint(1, 70)
    return {
        **consent(who, permission, chance.choice(_STATES[permission]), at, record_id=f"decision {number}"),
        "valid_to": chance.choice([None, None, day(at + chance.randint(0, 40))]),
        "recorded_at": day(at + chance.choice([0, 0, 0, -3, 5])),
        "evidence": chance.choice(["form", "form", " \t", None]),
        "collected_by": chance.choice(["banner", None]),
    }


def gates(tables: ShopTables, spark: ibis.BaseBackend, **switches: bool) -> tuple[ConsentGate, ConsentGate]:
    """The same gate on DuckDB and on Spark."""
    policy = Policy("test", Policy.default().matrix, Switches(**switches))
    embedded = ConsentGate(tables, ConsentTables.of_shop(tables, Lifetimes.default()), day(CUTOFF), policy)
    return embedded, dataclasses.replace(embedded, engine=spark)


def assert_same(one: PermittedRows, other: PermittedRows) -> None:
    """Row by row, in one order, and count by count."""
    assert one.funnel == other.funnel
    assert one.rows.equals(other.rows)
    assert one.attributes == other.attributes


def test_every_tier_gets_the_same_rows(tables: ShopTables, spark: ibis.BaseBackend) -> None:
    embedded, spread = gates(tables, spark)
    reasons: set[str] = set()
    for tier in (Tier.ONLINE, Tier.CRM, Tier.FUSED):
        permitted = embedded.permitted(tier)
        assert_same(permitted, spread.permitted(tier))
        assert permitted.rows.num_rows > 50
        reasons |= {reason for funnel in permitted.funnel for reason in funnel.excluded}
    assert reasons >= {
        "no consent record", "unknown", "denied", "withdrawn", "expired", "objected", "conflicting",
        "minor without parental consent", "model purpose denied", "unlinked", "after the cut-off",
        "no permission then", "sensitive item", "no sign of interest",
    }  # fmt: skip


def test_every_switch_means_the_same(tables: ShopTables, spark: ibis.BaseBackend) -> None:
    switches = ("model_purpose", "fusion_purpose", "include_single_source_in_fused", "anonymous_statistics")
    embedded, spread = gates(tables, spark, **dict.fromkeys(switches, True))
    assert_same(embedded.permitted(Tier.FUSED), spread.permitted(Tier.FUSED))
    strangers = embedded.anonymous_rows()
    assert_same(strangers, spread.anonymous_rows())
    assert strangers.rows.num_rows


def test_a_text_that_is_missing_is_missing_there_too(spark: ibis.BaseBackend) -> None:
    """A shared device is marked by a login without a customer, a record may come without evidence."""
    tables = shop(
        events=[event("v1", "a", 5), event("v2", "a", 5)],
        identities=[link("v1", "c1"), link("v2", "c2")],
        consents=[consent(who, permission) for who, permission in _BOTH]
        + [{**consent("v2", "online", "objected", 3), "evidence": None}]
        + [{**consent("v2", "online", "lifted", 4), "evidence": None}],
    )
    taken = ConsentTables.of_shop(tables, Lifetimes.default())
    shared = {"visitor_id": ["v1"], "customer_id": [MISSING], "linked_at": [0], "evidence": [MISSING]}
    marked = pa.concat_tables([taken.links, pa.table(shared, schema=taken.links.schema)])
    consents = dataclasses.replace(taken, links=marked)
    embedded = ConsentGate(tables, consents, day(CUTOFF), Policy.default())
    there = dataclasses.replace(embedded, engine=spark).permitted(Tier.FUSED)
    assert_same(embedded.permitted(Tier.FUSED), there)
    assert there.funnel[0].excluded == {"unlinked": 1, "objected": 1}


_BOTH = (("v1", "online"), ("v2", "online"), ("c1", "crm"), ("c2", "crm"))
