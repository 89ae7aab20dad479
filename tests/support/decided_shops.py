"""Shops whose people have decided this and that: late, early, ending, repeated, contradicted."""

from __future__ import annotations

import random

import pyarrow as pa
from shops import Row, consent, day, event, link, order, shop, usage

from consentier.features.tables import ShopTables

__all__ = ["decided_shop"]

_STATES = {
    "online": ["granted", "granted", "denied", "withdrawn", "withdrawn", "objected", "lifted"],
    "crm": ["granted", "granted", "denied", "withdrawn", "withdrawn", "objected", "lifted"],
    "parental": ["granted", "denied", "lifted"],
    "model": ["granted", "granted", "denied"],
    "fusion": ["granted", "granted", "withdrawn"],
    "contact:email": ["granted"],
}


def decided_shop(chance: random.Random, people: int, events: int) -> ShopTables:
    """A shop at random.

    Parameters
    ----------
    chance
        Decides.
    people
        Visitors, and as many customers; at least 12. A tenth decides little.
    events
        Rows of events; there are less than half as many orders, and some product usage.
    """
    visitors = [f"v{number}" for number in range(people)]
    customers = [f"c{number}" for number in range(people)]
    silent = people // 10
    consents = [consent(who, "online", at=chance.randint(1, 20)) for who in visitors[:-silent]]
    consents += [consent(who, "crm", at=chance.randint(1, 20)) for who in customers[:-silent]]
    consents += [
        _decision(chance, chance.choice(visitors + customers), number) for number in range(5 * people // 2)
    ]
    consents += [
        {**row, "recorded_at": day(chance.randint(0, 70))} for row in chance.sample(consents, people // 3)
    ]
    consents += [
        {**row, "jurisdiction": chance.choice(["FR", "fr", "DE"])}
        for row in chance.sample(consents, people // 6)
    ]
    items = ["a", "b", "pills", "ä", "\U0001f600"]
    return shop(
        events=[
            event(
                chance.choice([*visitors, "v-new"]),
                chance.choice(items),
                chance.uniform(0, 70),
                kind=chance.choice(["view", "cart", "remove"]),
                session=f"s{number % 7}",
            )
            for number in range(events)
        ],
        orders=[
            {
                **order(chance.choice([*customers, "c-new"]), chance.choice(items), chance.uniform(0, 70)),
                "line_id": str(number),
                "status": chance.choice(["ordered", "ordered", "returned"]),
            }
            for number in range(2 * events // 5)
        ],
        product_usage=[
            usage(chance.choice(customers), "y", chance.uniform(0, 70)) for _ in range(events // 10)
        ],
        customers=pa.table({"customer_id": customers, "age": [*[None] * 3, *map(float, range(3, people))]}),
        items=[{"item_id": "pills", "sensitive": True}, {"item_id": "a", "sensitive": None}],
        identities=[
            *(
                link(f"v{n}", f"c{n}", chance.choice([None, 21, 30, 40, 65]))
                for n in range(people - people // 5)
            ),
            *(link(chance.choice(visitors), chance.choice(customers), 50) for _ in range(people // 10)),
        ],
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
