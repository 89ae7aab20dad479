"""What is odd about tables of which every row keeps the data contract.

Ids that are written in two ways, or one record id for all decisions of a person, break no row. They show only
as a model of nobody. Nothing here decides anything: the gate judges each row by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from consentier.features.tables import ShopTables

__all__ = ["doubts"]

_ALIKE = "Are the ids written alike in both, with leading zeros and capitals?"


def doubts(shop: ShopTables) -> list[str]:
    """Say what is odd about valid tables, a sentence or two each, with what to look at. No id is quoted.

    Linear in the rows.
    """
    return [
        *_unread(shop),
        *_without_records(shop),
        *_without_common_ids(shop),
        *_repeated_record_ids(shop),
        *_void_grants(shop),
    ]


def _unread(shop: ShopTables) -> Iterator[str]:
    for other, name in shop.report.unread:
        yield f"{other!r}, which is not read: is it meant for the table {name}? Then call it so"


def _without_records(shop: ShopTables) -> Iterator[str]:
    consents = shop.consents
    for name, column, kind in (
        ("events", "visitor_id", "visitor"),
        ("orders", "customer_id", "customer"),
        ("product_usage", "customer_id", "customer"),
    ):
        persons = pc.unique(getattr(shop, name)[column])
        known = consents.filter(pc.equal(consents["subject_kind"], kind))["subject_id"]
        if len(persons) and not _overlap(persons, known):
            yield (
                f"table {name}: none of its {len(persons):,} {kind}s has a record in consents with the "
                f"subject_kind {kind}, so no row of it may be used. {_ALIKE}"
            )


def _without_common_ids(shop: ShopTables) -> Iterator[str]:
    for column, left, right in (
        ("visitor_id", "identities", "events"),
        ("customer_id", "identities", "orders"),
        ("customer_id", "customers", "orders"),
        ("item_id", "events", "orders"),
        ("item_id", "items", "events"),
        ("item_id", "items", "orders"),
    ):
        ours, others = (pc.unique(getattr(shop, name)[column]) for name in (left, right))
        if len(ours) and len(others) and not _overlap(ours, others):
            yield f"tables {left} and {right}: no {column} stands in both. {_ALIKE}"


def _repeated_record_ids(shop: ShopTables) -> Iterator[str]:
    # Equal rows are one record that came twice, which is no contradiction.
    versions = shop.consents.group_by(shop.consents.column_names).aggregate([])
    counts = versions.group_by("record_id").aggregate([([], "count_all")])["count_all"]
    repeated = pc.sum(pc.greater(counts, 1)).as_py() or 0
    if repeated:
        yield (
            f"table consents: {repeated:,} record_ids stand for more than one decision. Each of these "
            "decisions counts as a denial: give every decision an id of its own, such as subject, permission "
            "and time"
        )


def _void_grants(shop: ShopTables) -> Iterator[str]:
    granted = shop.consents.filter(pc.equal(shop.consents["state"], "granted"))
    for kind, other, pattern in (
        ("visitor", "customer", "^(crm|contact:.*)$"),
        ("customer", "visitor", "^online$"),
    ):
        found = granted.filter(pc.equal(granted["subject_kind"], kind))
        void = pc.sum(pc.match_substring_regex(found["permission"], pattern)).as_py() or 0
        if void:
            yield (
                f"table consents: {void:,} grants by {kind}s are of permissions that only a {other} can "
                f"give, and permit nothing. Write them with the subject_kind {other} and that one's id"
            )


def _overlap(ids: pa.Array | pa.ChunkedArray, others: pa.Array | pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.is_in(ids, value_set=pc.unique(others))).as_py())
