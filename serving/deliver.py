"""Handing a batch over: every row of a scored file is checked again at the time of sending.

Between scoring and sending people withdraw, object, or let a permission lapse. A list goes out only if the
channel may still reach the person, the tier that answered may still answer there, what it had read may still
be read without a break since, and no bundle behind it is past its withdrawal deadline.

A person's list goes out whole or not at all. What would be left of it without some of its rows is another
list than the one that was scored, and no lower tier is put in its place: score again for that.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from consentier.consent import Policy, Source, Tier, microseconds, sources_of
from consentier.consent.records import SubjectKind
from consentier.errors import DataError
from consentier.progress import progress
from consentier.serving.batch_file import DELIVERED, BatchFacts, PersonRows, opened_batch, written_table
from consentier.serving.reach import (
    HistoryLedger,
    Reach,
    held_throughout,
    linked_throughout,
    reach,
    similar_goods_only,
)
from consentier.serving.recommender import utc_now
from consentier.serving.revocation import PAST_DEADLINE, Deadlines, Revocations

if TYPE_CHECKING:
    import pyarrow as pa

    from consentier.serving.batch_table import BatchTable

__all__ = ["DeliverySummary", "deliver"]


@dataclasses.dataclass(frozen=True, slots=True)
class DeliverySummary:
    """What a hand-over let through, in counts.

    Attributes
    ----------
    rows, persons
        Handed over.
    dropped_rows
        Held back.
    dropped
        Persons whose list was held back, by reason.
    """

    rows: int
    persons: int
    dropped_rows: int
    dropped: dict[str, int]


def deliver(
    recommendations: Path | BatchTable,
    ledger: HistoryLedger,
    *,
    out: Path,
    policy: Policy,
    revocations: Revocations,
    at: dt.datetime | None = None,
    clock: Callable[[], dt.datetime] = utc_now,
    show_progress: bool = True,
) -> DeliverySummary:
    """Write the part of a scored file that may be sent now.

    Parameters
    ----------
    recommendations
        What `score_customers` wrote: a file, a directory of parts, or a table, of which the batch with the
        latest instant counts.
    ledger
        Who is asked about permissions, contact and links, person by person.
    out
        The file to hand over: the columns of the scored file without ``devices``, rows in the same order. It
        is written beside its place and renamed: there is the old one, or the whole new one.
    policy
        The policy in force; it must be the one that the file was scored under.
    revocations
        The withdrawal deadlines of the bundles.
    at
        When it will be sent, if that is later than now. An instant in the past counts as now: it could bring
        back what was withdrawn since.
    clock
        Says what time it is.
    show_progress
        Report progress on standard error.

    Raises
    ------
    TypeError, ValueError
        If `at` is no datetime, or has no time zone.
    DataError
        If the file is not one that `score_customers` wrote, or was scored under another policy, or for an
        instant that is yet to come.
    OSError
        If `out` cannot be written; an earlier file stays as it was.

    Notes
    -----
    Each person costs some look-ups in the ledger; memory is one piece of the file, whatever its length.

    A fused answer names no device that it read, and no file may. It goes out only if its devices are
    certain (as many as it read were lawfully linked when it was scored, and nothing that the ledger learnt
    later says otherwise) and all of them were linked until now.
    """
    if at is not None:
        microseconds(at)
    scored = recommendations if isinstance(recommendations, Path) else None
    if scored is not None and out.exists() and scored.exists() and out.samefile(scored):
        raise DataError(f"{out}: is the scored file itself; name another one to hand over")
    dropped: Counter[str] = Counter()
    rows = persons = dropped_rows = 0
    with opened_batch(recommendations) as batch:
        check = _Check(ledger, policy, batch.facts)
        now = _later(clock(), at)
        _check_policy_and_time(recommendations, batch.facts, policy, now)
        with (
            written_table(out, batch.facts.schema(DELIVERED)) as file,
            progress(f"checking for {batch.facts.channel}", batch.rows, enabled=show_progress) as advance,
        ):
            for table, found in batch.tables():
                deadlines = revocations.current()
                kept = []
                for person in found:
                    problem = check.problem(person, deadlines, _later(clock(), at))
                    if problem:
                        dropped[problem] += 1
                        dropped_rows += person.stop - person.start
                    else:
                        kept.append(person)
                file.write_table(_rows_of(table.drop_columns(["devices"]), kept, batch.facts))
                persons += len(kept)
                rows += sum(person.stop - person.start for person in kept)
                advance(table.num_rows)
    return DeliverySummary(rows, persons, dropped_rows, dict(sorted(dropped.items())))


@dataclasses.dataclass(frozen=True, slots=True)
class _Check:
    """Whether a person's list may be sent."""

    ledger: HistoryLedger
    policy: Policy
    facts: BatchFacts

    def problem(self, person: PersonRows, deadlines: Deadlines, now: dt.datetime) -> str:
        """Why a list must not be sent; empty if it may."""
        channel = self.facts.channel
        reached = reach(self.ledger, self.policy, person.person, channel, now)
        if reached.barrier:
            return reached.barrier
        if reached.similar_only and not self._similar_only_then(reached):
            return "only goods like those bought may be advertised now"
        if person.tier not in self.policy.route(reached.resolution, channel).tiers:
            return f"the {person.tier} tier may not answer any more"
        if not self._readable_since(person, reached, now):
            return "what the list rests on may not be used any more"
        for digest in sorted(person.digests):
            if problem := deadlines.problem_of(digest, now):
                return f"a bundle is {problem}" if problem == PAST_DEADLINE else problem
        return ""

    def _similar_only_then(self, reached: Reach) -> bool:
        """Whether the list was scored for somebody to whom only such goods could be advertised."""
        if reached.customer_id is None:
            return False
        records = self.ledger.records_of(reached.customer_id, kind="customer")
        return similar_goods_only(records, self.facts.channel, self.facts.at)

    def _readable_since(self, person: PersonRows, reached: Reach, now: dt.datetime) -> bool:
        """Whether all that the tier had read was permitted from the scoring until now, without a break."""
        sources = sources_of(person.tier, self.facts.channel.side)
        if person.tier is Tier.FUSED:
            return self._devices_since(person, reached, now)
        return (Source.ONLINE not in sources or self._held_since(reached.visitor_id, "visitor", now)) and (
            Source.CRM not in sources or self._held_since(reached.customer_id, "customer", now)
        )

    def _held_since(self, subject_id: str | None, kind: SubjectKind, now: dt.datetime) -> bool:
        return subject_id is not None and held_throughout(
            self.ledger, subject_id, kind=kind, first=self.facts.at, last=now
        )

    def _devices_since(self, person: PersonRows, reached: Reach, now: dt.datetime) -> bool:
        """Whether the devices that a fused answer read are certain, and all were linked until now."""
        customer, separate = reached.customer_id, self.policy.switches.fusion_purpose
        if customer is None:
            return False
        ask = functools.partial(
            self.ledger.linked_visitors, customer, at=self.facts.at, fusion_purpose=separate
        )
        devices = ask()
        return (
            len(devices) == person.devices
            and devices == ask(known_at=self.facts.at)
            and linked_throughout(
                self.ledger, customer, devices, first=self.facts.at, last=now, fusion_purpose=separate
            )
        )


def _check_policy_and_time(path: object, facts: BatchFacts, policy: Policy, now: dt.datetime) -> None:
    if facts.policy_version != policy.version:
        raise DataError(
            f"{path}: was scored under policy {facts.policy_version!r}, and {policy.version!r} is in force: "
            "score again, or name the file's policy"
        )
    if facts.at > now:
        raise DataError(
            f"{path}: was scored for {facts.at.isoformat()}, which is yet to come: hand it over then, or say "
            "when it will be sent"
        )


def _later(now: dt.datetime, at: dt.datetime | None) -> dt.datetime:
    return now if at is None else max(now, at)


def _rows_of(table: pa.Table, persons: list[PersonRows], facts: BatchFacts) -> pa.Table:
    """The rows of some persons."""
    import numpy as np
    import pyarrow as pa

    kept = np.zeros(table.num_rows, dtype=np.bool_)
    for person in persons:
        kept[person.start : person.stop] = True
    return table.filter(pa.array(kept)).cast(facts.schema(DELIVERED))
