"""What is odd about valid tables is said, and nothing that is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from consentier.features.doubts import doubts
from consentier.features.tables import read_shop

HEADERS = {
    "events": "visitor_id,session_id,ts,item_id,event_type",
    "orders": "customer_id,order_id,line_id,ts,item_id,quantity,status",
    "product_usage": "customer_id,ts,item_id,usage_type,quantity",
    "customers": "customer_id,country",
    "items": "item_id,category",
    "identities": "visitor_id,customer_id,linked_at",
    "consents": "record_id,subject_id,subject_kind,permission,state,valid_from,valid_to,recorded_at",
}
ROWS: dict[str, tuple[str, ...]] = {
    "events": ("v1,s1,2026-02-01T00:00:00Z,i1,view", "v2,s2,2026-02-01T00:00:00Z,i2,view"),
    "orders": ("0017,o1,1,2026-02-01T00:00:00Z,i1,1,ordered",),
    "product_usage": ("0017,2026-02-01T00:00:00Z,i1,run,1",),
    "customers": ("0017,AT", "0018,DE"),
    "items": ("i1,tea", "i3,tea"),
    "identities": ("v1,0017,2026-02-01T00:00:00Z", "v9,0099,2026-02-01T00:00:00Z"),
    "consents": (
        "r1,v1,visitor,online,granted,2026-01-01T00:00:00Z,,2026-01-01T00:00:00Z",
        "r1,v1,visitor,online,granted,2026-01-01T00:00:00Z,,2026-01-01T00:00:00Z",
        "r2,0017,customer,crm,granted,2026-01-01T00:00:00Z,,2026-01-01T00:00:00Z",
        "r3,0017,customer,contact:email,granted,2026-01-01T00:00:00Z,,2026-01-01T00:00:00Z",
        "r4,v1,visitor,crm,denied,2026-01-01T00:00:00Z,,2026-01-01T00:00:00Z",
        "r5,0017,customer,online,withdrawn,2026-01-01T00:00:00Z,,2026-01-01T00:00:00Z",
    ),
}


def found(folder: Path, changed: Mapping[str, Sequence[str]]) -> list[str]:
    """The doubts about the shop of this page, with some tables changed."""
    for name, rows in (ROWS | dict(changed)).items():
        if rows:
            (folder / f"{name}.csv").write_text("\n".join([HEADERS[name], *rows, ""]), encoding="utf-8")
    return doubts(read_shop(folder))


def test_tables_that_fit_leave_no_doubt(tmp_path: Path) -> None:
    """One id in common is enough; so are a row that comes twice, and refusals by the other side."""
    assert found(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"orders": ["17,o1,1,2026-02-01T00:00:00Z,i1,1,ordered"]},
            [
                "table orders: none of its 1 customers",
                "tables customers and orders: no customer_id",
                "tables identities and orders: no customer_id",
            ],
        ),
        (
            {"events": ["V1,s1,2026-02-01T00:00:00Z,i1,view", "V2,s2,2026-02-01T00:00:00Z,i1,view"]},
            ["table events: none of its 2 visitors", "tables identities and events: no visitor_id"],
        ),
        ({"product_usage": ["17,2026-02-01T00:00:00Z,i1,run,1"]}, ["table product_usage: none of its 1"]),
        ({"customers": ["17,AT"]}, ["tables customers and orders: no customer_id"]),
        (
            {"items": ["I1,tea"]},
            ["tables items and events: no item_id", "tables items and orders: no item_id"],
        ),
        (
            {"events": ["v1,s1,2026-02-01T00:00:00Z,1,view"]},
            ["tables events and orders: no item_id", "tables items and events: no item_id"],
        ),
        (
            {"consents": [*ROWS["consents"], ROWS["consents"][0].replace("granted", "withdrawn")]},
            ["table consents: 1 record_ids stand for more than one decision"],
        ),
        (
            {
                "consents": [
                    *ROWS["consents"],
                    "r6,v1,visitor,crm,granted,2026-02-01T00:00:00Z,,2026-02-01T00:00:00Z",
                ]
            },
            ["table consents: 1 grants by visitors are of permissions that only a customer can give"],
        ),
        (
            {
                "consents": [
                    *ROWS["consents"],
                    "r6,0017,customer,online,granted,2026-02-01T00:00:00Z,,2026-02-01T00:00:00Z",
                ]
            },
            ["table consents: 1 grants by customers are of permissions that only a visitor can give"],
        ),
    ],
)
def test_an_oddity_is_said_and_names_nobody(
    tmp_path: Path, changed: dict[str, Sequence[str]], said: list[str]
) -> None:
    told = found(tmp_path, changed)

    assert len(told) == len(said)
    for sentence, beginning in zip(sorted(told), sorted(said), strict=True):
        assert sentence.startswith(beginning)
        assert not any(secret in sentence for secret in ("v1", "V1", "0017", " 17", "r1"))


def test_what_is_missing_is_no_oddity(tmp_path: Path) -> None:
    """A shop of one source, without the optional tables."""
    without = dict.fromkeys(("orders", "product_usage", "customers", "items", "identities"), ())

    assert found(tmp_path, without) == []


def test_a_file_that_is_nearly_called_like_a_table_is_told(tmp_path: Path) -> None:
    """Its flags of sensitive items are not read."""
    (tmp_path / "item.csv").write_text("item_id,sensitive\ni1,true\n")
    told = found(tmp_path, {"items": ()})
    assert "'item', which is not read: is it meant for the table items? Then call it so" in told
