"""What a ledger in PostgreSQL is asked, and how the answers are read.

Look-ups stand as SQL, as the driver sends and the server prepares it; what reads many rows is built from the
tables. ``until`` limits what is seen to what counts up to that position.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from consentier.consent.entries import ENTRY_COLUMNS, LINK_COLUMNS, RECORD_COLUMNS, Row, StoredEntry
from consentier.consent.migrations.tables import ENTRIES, ERASED_LOGINS, ERASED_VERSIONS, LINKS, RECORDS, ROWS
from consentier.consent.records import SubjectKind
from consentier.consent.store import Facts, LinkRow, Version

__all__ = [
    "ABOUT",
    "ALL_ENTRIES",
    "CUSTOMERS_LINKS",
    "END_OF_TIME",
    "LAST",
    "LINK_ROWS",
    "RECORD_ROWS",
    "conflicts",
    "devices",
    "entry_of",
    "facts_of",
    "first_stray",
    "records_and_more",
    "stored_links",
    "subjects",
]

END_OF_TIME = 2**63 - 1
"""As ``until``: no limit."""

_RECORDED_AT = RECORD_COLUMNS.index("recorded_at")
_RECORD = ", ".join(RECORD_COLUMNS)
_LINK = ", ".join(LINK_COLUMNS)


def _nulls(types: str) -> str:
    return ", ".join(f"NULL::{each}" for each in types.split())


_NO_RECORD = _nulls("text text text text text bigint bigint bigint text text bigint text text text")


def _versions_about(kind: SubjectKind) -> str:
    """All versions of each record id that a subject bears, and what is left of erased ones.

    OFFSET 0 keeps the planner from another plan than one look-up per id. Without statistics, as after a large
    import, it takes subjects to have thousands of records, and would read the whole table.
    """
    return f"""
    SELECT '{kind}', version.* FROM (
        SELECT DISTINCT record_id FROM consentier_records
        WHERE subject_id = %({kind})s AND subject_kind = '{kind}' AND position <= %(until)s
    ) AS borne CROSS JOIN LATERAL (
        SELECT position, position, {_RECORD}
        FROM consentier_records WHERE record_id = borne.record_id AND position <= %(until)s
        UNION ALL
        SELECT "of", position, record_id, {_nulls("text text text text bigint bigint")}, recorded_at,
            {_nulls("text text bigint text text text")}
        FROM consentier_erased_versions WHERE record_id = borne.record_id AND "of" <= %(until)s
        OFFSET 0
    ) AS version
    """


_LINKS_OF_VISITOR = f"""
    SELECT 'link', position, position, visitor_id, customer_id, {_nulls("text text text")}, linked_at,
        {_nulls("bigint bigint text text bigint text text text")}
    FROM consentier_links WHERE visitor_id = %(visitor)s AND position <= %(until)s
    UNION ALL
    SELECT 'link', "of", position, visitor_id, {_nulls("text text text text")}, linked_at,
        {_nulls("bigint bigint text text bigint text text text")}
    FROM consentier_erased_logins WHERE visitor_id = %(visitor)s AND "of" <= %(until)s
"""

_LAST_POSITION = "(SELECT max(position) FROM consentier_entries WHERE position <= %(until)s)"

ABOUT = f"""
    SELECT 'last', {_LAST_POSITION}, 0::bigint, {_NO_RECORD}
    UNION ALL {_versions_about("visitor")}
    UNION ALL {_versions_about("customer")}
    UNION ALL {_LINKS_OF_VISITOR}
"""
"""All on one visitor and one customer, in one statement: as of one moment, and in one round trip."""

LAST = """
    SELECT position, chain FROM consentier_entries WHERE position <= %(until)s
    ORDER BY position DESC LIMIT 1
"""

CUSTOMERS_LINKS = """
    SELECT visitor_id, customer_id, linked_at, position, position
    FROM consentier_links WHERE customer_id = %(subject)s AND position <= %(until)s ORDER BY position
"""

RECORD_ROWS = f"""
    SELECT {_RECORD} FROM consentier_records
    WHERE subject_id = %(subject)s AND subject_kind = %(kind)s AND position <= %(until)s ORDER BY position
"""

LINK_ROWS = {
    kind: f"""
    SELECT {_LINK} FROM consentier_links
    WHERE {kind}_id = %(subject)s AND position <= %(until)s ORDER BY position
    """
    for kind in ("visitor", "customer")
}
"""By kind of subject."""


def facts_of(rows: list[Row]) -> Facts:
    """What `ABOUT` answers."""
    position = 0
    versions: dict[str, list[Version]] = {"visitor": [], "customer": []}
    links: list[LinkRow] = []
    for part, counts_from, entry, *row in rows:
        if part == "last":
            position = counts_from or 0
        elif part == "link":
            links.append(LinkRow(row[0], row[1], row[5], counts_from, entry))
        else:
            versions[part].append(_version(counts_from, entry, row))
    return Facts(position, versions["visitor"], versions["customer"], links)


def _version(position: int, entry: int, row: list[Any]) -> Version:
    erased = row[2] is None
    return Version(
        record_id=row[0],
        subject_kind=row[2],
        subject_id=row[1],
        permission=row[3] or "",
        state=row[4] or "",
        start=row[5] or 0,
        end=row[6],
        recorded=row[_RECORDED_AT],
        evidence=row[13],
        collected_by=row[11],
        jurisdiction=row[9],
        content=("erased", position) if erased else (*row[:_RECORDED_AT], *row[_RECORDED_AT + 1 :]),
        position=position,
        entry=entry,
    )


# ---- Many rows ---------------------------------------------------------------------------------------------


def subjects(kind: SubjectKind, until: int) -> sa.Select[tuple[str]]:
    """Ids of the subjects of a kind, each once."""
    about = RECORDS.c.subject_kind == kind, RECORDS.c.position <= until
    return sa.select(RECORDS.c.subject_id).where(*about).distinct()


def devices(until: int) -> sa.CompoundSelect[tuple[str]]:
    """Ids of the visitors that have links, or had such as left something, each once."""
    linked = sa.select(LINKS.c.visitor_id).where(LINKS.c.position <= until)
    return linked.union(sa.select(ERASED_LOGINS.c.visitor_id).where(ERASED_LOGINS.c.of <= until))


def conflicts(until: int) -> sa.Select[tuple[str]]:
    """Record ids that stand for more than one content."""
    several = _several(until)
    return sa.select(several.c.record_id).where(several.c.conflicting)


def _several(until: int) -> sa.Subquery:
    """Record ids with several versions: when the first was recorded, and whether they differ."""
    own = RECORDS.c.position <= until
    left = ERASED_VERSIONS.c.of <= until
    ids = sa.union_all(
        sa.select(RECORDS.c.record_id).where(own), sa.select(ERASED_VERSIONS.c.record_id).where(left)
    ).subquery()
    repeated = sa.select(ids.c.record_id).group_by(ids.c.record_id).having(sa.func.count() > 1)
    stated = sa.func.row(*(RECORDS.c[name] for name in RECORD_COLUMNS if name != "recorded_at"))
    versions = sa.union_all(
        sa.select(RECORDS.c.record_id, RECORDS.c.recorded_at, stated.cast(sa.Text).label("content")).where(
            own, RECORDS.c.record_id.in_(repeated)
        ),
        sa.select(
            ERASED_VERSIONS.c.record_id, ERASED_VERSIONS.c.recorded_at, ERASED_VERSIONS.c.of.cast(sa.Text)
        ).where(left),
    ).subquery()
    return (
        sa.select(
            versions.c.record_id,
            sa.func.min(versions.c.recorded_at).label("first_recorded"),
            (sa.func.count(versions.c.content.distinct()) > 1).label("conflicting"),
        )
        .group_by(versions.c.record_id)
        .subquery()
    )


def records_and_more(until: int) -> sa.Select[Any]:
    """The columns of all records, whether their ids are contradicted, and when they were recorded first."""
    several = _several(until)
    return (
        sa.select(
            *(RECORDS.c[name] for name in RECORD_COLUMNS),
            sa.func.coalesce(several.c.conflicting, sa.false()).label("conflicting"),
            sa.func.coalesce(several.c.first_recorded, RECORDS.c.recorded_at).label("first_recorded"),
        )
        .outerjoin_from(RECORDS, several, RECORDS.c.record_id == several.c.record_id)
        .where(RECORDS.c.position <= until)
        .order_by(RECORDS.c.position)
    )


def stored_links(until: int) -> sa.Select[Any]:
    """The columns of all links, and after them what is left of erased ones."""
    whole = sa.select(
        *(LINKS.c[name] for name in LINK_COLUMNS), LINKS.c.position, sa.literal(0).label("left")
    )
    left = sa.select(
        ERASED_LOGINS.c.visitor_id,
        sa.null(),
        ERASED_LOGINS.c.linked_at,
        sa.null(),
        ERASED_LOGINS.c.position,
        sa.literal(1),
    )
    both = sa.union_all(
        whole.where(LINKS.c.position <= until), left.where(ERASED_LOGINS.c.of <= until)
    ).subquery()
    return sa.select(*(both.c[name] for name in LINK_COLUMNS)).order_by(both.c.left, both.c.position)


def _all_entries() -> sa.Select[Any]:
    joined: sa.FromClause = ENTRIES
    for table in ROWS.values():
        joined = joined.outerjoin(table, table.c.position == ENTRIES.c.position)
    rows = (column for table in ROWS.values() for column in table.columns)
    return sa.select(*ENTRIES.columns, *rows).select_from(joined).order_by(ENTRIES.c.position)


ALL_ENTRIES = _all_entries()
"""The chain with the rows of all kinds beside it, each led by its own position."""


def _places() -> dict[str, slice]:
    """Where the row of an entry of each kind stands in `ALL_ENTRIES`, with its position before it."""
    places, end = {}, len(ENTRIES.columns)
    for kind, names in ENTRY_COLUMNS.items():
        places[kind] = slice(end, end + 1 + len(names))
        end = places[kind].stop
    return places


_PLACE_OF = _places()


def entry_of(found: Row) -> StoredEntry:
    """An entry as `ALL_ENTRIES` finds it."""
    position, kind, salt, commitment, chain = found[: len(ENTRIES.columns)]
    row = None
    if kind in _PLACE_OF:
        of, *cells = found[_PLACE_OF[kind]]
        if of is not None:
            row = _erasure(cells) if kind == "Erasure" else tuple(cells)
    return StoredEntry(position, kind, salt, commitment, chain, row)


def _erasure(cells: list[Any]) -> Row:
    positions, erased_at = cells
    return tuple(positions), erased_at


def first_stray() -> sa.Select[Any]:
    """The first position under which a table holds a row that the chain knows nothing of."""
    strays = sa.union_all(
        *(
            sa.select(table.c.position)
            .outerjoin_from(table, ENTRIES, table.c.position == ENTRIES.c.position)
            .where(ENTRIES.c.kind.is_distinct_from(kind))
            for kind, table in ROWS.items()
        )
    ).subquery()
    return sa.select(sa.func.min(strays.c.position))
