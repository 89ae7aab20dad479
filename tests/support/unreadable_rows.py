"""Shops that differ only in rows that a tier may not be trained on, tuned on, or measured by."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from shops import Row, consent, event, link, order, shop

from consentier.consent import Tier
from consentier.features.tables import ShopTables

__all__ = [
    "CUTOFF",
    "LINKED",
    "MAY_NOT_READ",
    "NOBODY_MAY_READ",
    "PERMITTED",
    "REFUSED",
    "START",
    "Case",
    "Noise",
    "cases",
    "many",
    "rows_of",
    "shop_with",
]

START, CUTOFF = 60, 80
"""Of the last period before the cut-off, and its end."""

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
cases: st.SearchStrategy[Case] = st.sampled_from(list(MAY_NOT_READ)).flatmap(
    lambda tier: st.tuples(st.just(tier), st.lists(MAY_NOT_READ[tier], min_size=5, max_size=40))
)
"""A tier, and rows that it may not read."""


def shop_with(noise: Sequence[Noise]) -> ShopTables:
    """The shop, with more rows."""
    tables = _base()
    for table, row in noise:
        tables[table].append(row)
    orders = {
        (row["customer_id"], row["order_id"], row["line_id"]): row for row in reversed(tables["orders"])
    }
    return shop(**{**tables, "orders": list(orders.values())})


def many(table: str, names: Sequence[str], at: float) -> list[Noise]:
    """Three rows of each of some people, at one time."""
    if table == "events":
        return [
            ("events", event(f"v{name}", item, at, session=f"x-{name}")) for name in names for item in "alz"
        ]
    return [("orders", order(f"c{name}", item, at)) for name in names for item in "alz"]
