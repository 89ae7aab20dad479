"""How many stand at each level of permission, and whom each channel may contact: counts out of the ledger.

No row of anybody is read for it, only what people decided. Counts that are too small stay out, and with them
what would give them away (`suppression`).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consentier.consent import Channel, Ledger, Policy, microseconds
from consentier.consent.permissions import CONTACT_CHANNELS
from consentier.consent.policy import State
from consentier.consent.records import SubjectKind
from consentier.features.consent_intervals import ConsentTables
from consentier.serving.bulk_reach import BulkReach, bulk_reach
from consentier.training.suppression import published_counts, published_share

__all__ = ["LEVELS", "Interval", "LevelCounts", "ReachRow", "counts_over_time", "reach_by_level"]

Interval = Literal["week", "month"]

_DAYS: Mapping[Interval, int] = {"week": 7, "month": 30}

LEVELS: Mapping[SubjectKind, Mapping[str, frozenset[State]]] = {
    "customer": {
        "none": frozenset({State.NONE, State.OBJECTED}),
        "crm": frozenset({State.CRM, State.BOTH_UNLINKED}),
        "both": frozenset({State.BOTH_LINKED}),
    },
    "visitor": {
        "none": frozenset({State.NONE, State.OBJECTED}),
        "online": frozenset({State.ONLINE, State.BOTH_UNLINKED}),
        "both": frozenset({State.BOTH_LINKED}),
    },
}
"""The levels of each kind of subject; an objection, or minority without parental consent, leaves nothing.
Whether a customer without a lawful link also permits online usage on some device may not be looked up: such a
customer counts by the CRM permission alone, and a visitor likewise."""


class LevelCounts(TypedDict):
    """How many of one kind stood where at one instant."""

    at: str
    known: int | None
    """Subjects with a record by then; None: too few to publish."""
    levels: dict[str, int | None]
    """None: withheld, because the count or one beside it is too small."""


class ReachRow(TypedDict):
    """Which share of the customers of one level a channel may contact."""

    level: str
    channel: str
    value: float | None
    says: str
    """As in `suppression.PublishedShare`."""


def counts_over_time(
    ledger: Ledger, policy: Policy, end: dt.datetime, *, every: Interval, periods: int, threshold: int
) -> dict[SubjectKind, list[LevelCounts]]:
    """The levels of customers and visitors at instants up to `end`, as the ledger knows them now.

    Parameters
    ----------
    ledger
        The ledger. What it learnt late counts from when it holds.
    policy
        Says whether joining needs a purpose of its own.
    end
        The last instant.
    every, periods
        The distance between instants (a week, or 30 days), and how many there are at the most. There is none
        from before the first record.
    threshold
        Smaller counts stay out.

    Notes
    -----
    At each instant n log n in the ledger's entries.
    """
    consents = ConsentTables.of(ledger)
    step = dt.timedelta(days=_DAYS[every])
    instants = [end - number * step for number in range(periods)]
    found: dict[SubjectKind, list[LevelCounts]] = {}
    for kind in LEVELS:
        first_seen = _first_records(consents, kind)
        beginning = pc.min(first_seen["since"]).as_py()
        found[kind] = [
            _counts(consents, policy, kind, first_seen, at, threshold)
            for at in reversed(instants)
            if beginning is not None and microseconds(at) >= beginning
        ]
    return found


def reach_by_level(
    ledger: Ledger, policy: Policy, at: dt.datetime, *, threshold: int
) -> tuple[LevelCounts, list[ReachRow]]:
    """Whom each contact channel may reach at an instant, by level; and the levels' counts then.

    A level whose count is withheld gets no share either.
    """
    consents = ConsentTables.of(ledger)
    first_seen = _first_records(consents, "customer")
    counts = _counts(consents, policy, "customer", first_seen, at, threshold)
    customers = _known(first_seen, at)
    rows: list[ReachRow] = []
    for channel in sorted(CONTACT_CHANNELS):
        found = bulk_reach(consents, policy, customers, channel, at)
        reached = np.array([not cell.barrier for cell in found.states], dtype=np.bool_)[found.cells]
        for level, members in _members(found, "customer").items():
            share = published_share(int((members & reached).sum()), counts["levels"][level], threshold)
            rows.append({"level": level, "channel": str(channel), "value": share.value, "says": share.says})
    return counts, rows


def _first_records(consents: ConsentTables, kind: SubjectKind) -> pa.Table:
    """Since when each subject is known, in ascending order of ids."""
    records = consents.records.filter(pc.equal(consents.records["subject_kind"], kind))
    since = records.group_by("subject_id").aggregate([("valid_from", "min")])
    return since.rename_columns({"valid_from_min": "since"}).sort_by("subject_id")


def _known(first_seen: pa.Table, at: dt.datetime) -> pa.Array:
    known = first_seen.filter(pc.less_equal(first_seen["since"], microseconds(at)))
    return known["subject_id"].combine_chunks()


def _counts(
    consents: ConsentTables,
    policy: Policy,
    kind: SubjectKind,
    first_seen: pa.Table,
    at: dt.datetime,
    threshold: int,
) -> LevelCounts:
    persons = _known(first_seen, at)
    channel = Channel.EMAIL
    if kind == "visitor":
        # A device stands where its permissions put it, whether or not somebody is logged in just now.
        switches = dataclasses.replace(policy.switches, shared_device_login=False)
        policy, channel = dataclasses.replace(policy, switches=switches), Channel.SHOP
    members = _members(bulk_reach(consents, policy, persons, channel, at), kind)
    counts = [int(each.sum()) for each in members.values()]
    if sum(counts) != len(persons):
        raise RuntimeError(f"{len(persons)} {kind}s stand at {sum(counts)} levels")
    known, published = published_counts(counts, threshold)
    return {"at": at.isoformat(), "known": known, "levels": dict(zip(members, published, strict=True))}


def _members(found: BulkReach, kind: SubjectKind) -> dict[str, np.ndarray]:
    """Who stands at each level, bool (persons,)."""
    states: Sequence[State] = [cell.route.state for cell in found.states]
    return {
        level: np.array([state in those for state in states], dtype=np.bool_)[found.cells]
        for level, those in LEVELS[kind].items()
    }
