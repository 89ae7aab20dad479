"""What a fit counted, found again: the kept statistics, and the rows that they were computed from.

Statistics are exchanged row by row only where it is certain which rows were counted. They are cut out of the
tables once more, through the gate of that fit, and compared with the fingerprints that were kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import fcntl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consentier.consent import Policy, Switches, Tier
from consentier.consent.records import SubjectKind
from consentier.features.consent_intervals import MISSING, ConsentTables
from consentier.features.gate import ConsentGate, PermittedRows
from consentier.features.tables import ShopTables
from consentier.models.bundle import Bundle
from consentier.models.statistics import (
    Fingerprints,
    KeptStatistics,
    StatisticsError,
    read_statistics,
)
from consentier.training.decrement import NotExactError
from consentier.training.fingerprints import text_hashes
from consentier.training.restricted import Restricted
from consentier.writing import remove_remnants_in

__all__ = [
    "COLUMNS",
    "OF_PYSPARK",
    "OTHER_BUNDLE",
    "Circumstances",
    "Subject",
    "Tables",
    "around",
    "circumstances_of",
    "distinct",
    "fingerprints_of",
    "ids_of",
    "of_persons",
    "one_at_a_time",
    "permitted_rows",
    "person_names",
    "rows_of",
    "statistics_of",
]

Subject = tuple[SubjectKind, str]
"""A visitor or a customer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Circumstances:
    """Under what a bundle was fitted."""

    cutoff: dt.datetime
    until: dt.datetime | None
    policy: Policy


Tables = tuple[ShopTables, ConsentTables]
"""A shop's tables, and its consents and links."""

COLUMNS: Mapping[SubjectKind, tuple[str, tuple[str, ...]]] = {
    "visitor": ("visitor_id", ("events",)),
    "customer": ("customer_id", ("orders", "product_usage", "customers")),
}
"""Where a subject's rows stand."""


OTHER_BUNDLE = "the kept statistics belong to another bundle"

OF_PYSPARK = (
    "pyspark.ml fitted it, of which no counts are kept: the ALS of one machine takes its place, with the "
    "same configuration and other weights (for those of Spark, 'consentier train --engine spark')"
)
"""Why a bundle of ALS that was fitted on Spark is fitted anew."""


def statistics_of(tier: Tier, bundle: Bundle, restricted: Restricted) -> KeptStatistics:
    """What a bundle was computed from.

    Raises
    ------
    NotExactError
        There are no statistics, they were altered, or they belong to another bundle.
    """
    folding = bundle.manifest.scoring.get("fold_in")
    if isinstance(folding, Mapping) and folding.get("observed_weight"):  # only Spark's objective has one
        raise NotExactError(OF_PYSPARK)
    try:
        kept = read_statistics(restricted.statistics(tier))
    except StatisticsError as error:
        raise NotExactError(str(error)) from error
    if kept.bundle_digest != bundle.digest:
        raise NotExactError(OTHER_BUNDLE)
    return kept


def circumstances_of(facts: Mapping[str, Any], policy: Policy | None) -> Circumstances:
    """Under what statistics were computed, by the facts that were kept with them.

    `policy` says which of its switches must be the same.

    Raises
    ------
    NotExactError
        They are not.
    """
    switches = Switches(**facts["switches"])
    if policy is not None and policy.switches != switches:
        raise NotExactError("the policy's switches are not those of the fit")
    until = facts["until"]
    return Circumstances(
        dt.datetime.fromisoformat(facts["cutoff"]),
        None if until is None else dt.datetime.fromisoformat(until),
        dataclasses.replace(Policy.default() if policy is None else policy, switches=switches),
    )


def around(shop: ShopTables, consents: ConsentTables, subjects: Sequence[Subject]) -> Tables:
    """The part of the tables that can bear on the subjects' rows, and on histories joined with them.

    These are the subjects, the customers of devices among them, the devices of all these customers; of all of
    them every row, every record (with all that share a record's id) and every login.
    """
    records, links = consents.records, consents.links
    visitors, customers = (ids_of(subjects, kind) for kind in ("visitor", "customer"))
    of_devices = rows_of(links, "visitor_id", pa.array(visitors, pa.string()))["customer_id"]
    customers = distinct(of_devices.filter(pc.not_equal(of_devices, MISSING)), customers)
    visitors = distinct(rows_of(links, "customer_id", customers)["visitor_id"], visitors)
    near: dict[str, pa.Array] = {"visitor": visitors, "customer": customers}
    tables = {
        table: rows_of(getattr(shop, table), column, near[kind])
        for kind, (column, names) in COLUMNS.items()
        for table in names
    }
    theirs = pc.or_kleene(
        *(
            pc.and_(pc.equal(records["subject_kind"], kind), pc.is_in(records["subject_id"], ids))
            for kind, ids in near.items()
        )
    )
    ids = distinct(records.filter(theirs)["record_id"])
    near_consents = dataclasses.replace(
        consents,
        records=rows_of(records, "record_id", ids),
        links=links.filter(
            pc.or_kleene(pc.is_in(links["visitor_id"], visitors), pc.is_in(links["customer_id"], customers))
        ),
    )
    return dataclasses.replace(shop, **tables), near_consents


def permitted_rows(gate: ConsentGate, tier: Tier, *, attributes: bool) -> PermittedRows:
    """What the gate lets through, of what carries a person's key."""
    if tier is Tier.POPULAR:
        online, crm = gate.permitted(Tier.ONLINE), gate.permitted(Tier.CRM)
        return dataclasses.replace(online, rows=pa.concat_tables([online.rows, crm.rows]))
    permitted = gate.permitted(tier)
    return permitted if attributes else dataclasses.replace(permitted, attributes=None)


def of_persons(permitted: PermittedRows, persons: pa.Array, *, keep: bool = True) -> PermittedRows:
    """The rows of some persons, or of all others."""
    attributes = permitted.attributes
    return dataclasses.replace(
        permitted,
        rows=rows_of(permitted.rows, "person", persons, keep=keep),
        attributes=None if attributes is None else rows_of(attributes, "person", persons, keep=keep),
    )


def fingerprints_of(rows: Mapping[str, int], persons: Sequence[str], key: bytes) -> Fingerprints:
    """The fingerprints of some persons, by the names and rows that `rows_by_person` says."""
    hashes = text_hashes(pa.array(persons, pa.string()), key)
    order = np.argsort(hashes, kind="stable")
    of_rows = np.array([rows[person] for person in persons], dtype=np.uint64)
    return Fingerprints(key, hashes[order], of_rows[order])


@contextlib.contextmanager
def one_at_a_time(restricted: Restricted) -> Iterator[None]:
    """Hold the lock of a restricted directory: of two runs at once, each would undo what the other did.

    What a run left that was killed goes: it is about persons too.
    """
    restricted.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (restricted.path / "forget.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for folder in (restricted.path, restricted.path / "statistics"):
            remove_remnants_in(folder)
        yield


def ids_of(subjects: Iterable[Subject], kind: SubjectKind) -> list[str]:
    """The ids of the subjects of one kind."""
    return [subject_id for each, subject_id in subjects if each == kind]


def person_names(kind: SubjectKind, ids: Iterable[str]) -> pa.Array:
    """The gate's names of persons."""
    return pa.array([f"{kind}:{subject_id}" for subject_id in ids], pa.string())


def rows_of(table: pa.Table, column: str, values: pa.Array, *, keep: bool = True) -> pa.Table:
    """The rows whose value is (or is not) among some."""
    among = pc.is_in(table[column], value_set=values)
    return table.filter(among if keep else pc.invert(among))


def distinct(column: pa.ChunkedArray, more: Sequence[str] = ()) -> pa.Array:
    """The values of a column and more, each once, without nulls."""
    return pc.unique(pa.chunked_array([*column.chunks, pa.array(more, pa.string())], pa.string())).drop_null()
