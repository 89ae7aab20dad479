"""What a tier's model is worth on a validation period: whom it is judged by, and what they may read.

The validation period lies before the training cut-off, and nothing at or after that is read. Every row, to
fit on and to judge by, has passed the consent gate of the tier itself at the cut-off, the *end* of the
period; a tier is judged by no other rows than its own. `training.linear_validation` answers the requests.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from consentier.consent import Source, Tier, microseconds
from consentier.errors import TrainingError
from consentier.features.gate import PermittedRows
from consentier.features.interactions import person_counts
from consentier.models.attribute_encoding import AttributeValue
from consentier.models.bundle import TIERS
from consentier.serving.request import Event
from consentier.serving.view import PermittedView
from consentier.training.evaluation_result import MINIMUM_GROUP
from consentier.training.linear_validation import BatchScorer, Requests, utf8
from consentier.training.metrics import PADDING, Relevant

__all__ = ["ValidationSet", "validation_set"]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class ValidationSet:
    """What one tier's models are fitted on and judged by.

    Attributes
    ----------
    tier
        Whose.
    start, end
        The validation period, [start, end).
    rows
        What to fit on: the permitted rows from before it, as a fit at its beginning sees them.
    views
        What each request may read.
    requests
        The same as numbers.
    targets
        The relevant items of each request, as positions in `item_ids`.
    item_ids
        Every item of the permitted rows, ascending.
    persons
        int64, shape (requests,), ascending: number of the person behind each request, in an order drawn at
        random.
    """

    tier: Tier
    start: dt.datetime
    end: dt.datetime
    rows: PermittedRows
    views: tuple[PermittedView, ...]
    requests: Requests
    targets: Relevant
    item_ids: tuple[str, ...]
    persons: NDArray[np.int64]

    def requests_of(self, share: float) -> int:
        """How many requests the first persons make, who are this share of all (and one at least)."""
        persons = int(self.persons[-1]) + 1
        return int(np.searchsorted(self.persons, max(1, round(share * persons))))

    def lists_of(self, scorer: BatchScorer, n: int, *, first: int, last: int, threads: int | None) -> Any:
        """A model's lists for some of the requests, as positions in `item_ids`; int64 (requests, n).

        Items that are not in `item_ids` have numbers above it.
        """
        numbers, _ = scorer.lists(self.requests, n, first=first, last=last, threads=threads)
        # Items that the metadata alone know are no targets, but take a place.
        position = np.append(len(self.item_ids) + np.arange(len(scorer.index)), PADDING)
        of_model = scorer.numbers(self.item_ids)
        position[of_model[of_model >= 0]] = np.flatnonzero(of_model >= 0)
        return position[numbers]  # padding, -1, is the last entry

    def popular_lists(self, n: int) -> NDArray[np.int64]:
        """The same list for everybody: items by the number of distinct persons, int64 (requests, n).

        Where the targets are orders, orders are counted.
        """
        rows = self.rows.rows
        source = "crm" if self.tier in (Tier.CRM, Tier.FUSED) else "online"
        counted = person_counts(
            dataclasses.replace(self.rows, rows=rows.filter(pc.equal(rows["source"], source)))
        )
        counts = np.array([counted.get(item, 0) for item in self.item_ids])
        best = np.argsort(-counts, kind="stable")[:n]
        listed = np.full(n, PADDING, dtype=np.int64)
        listed[: best.size] = best
        return np.tile(listed, (len(self.requests), 1))


def validation_set(
    tier: Tier,
    permitted: PermittedRows,
    start: dt.datetime,
    end: dt.datetime,
    *,
    max_persons: int | None,
    seed: int,
) -> ValidationSet:
    """Split what a tier may read into what to fit on and what to judge by.

    * *session*: every prefix of every session that begins in the period predicts its next item.
    * *online*: one request per visitor at `start`, with the last visit before it as the running session; the
      target is every item of the visitor's events in the period.
    * *crm*, *fused*: one request per customer at `start`; the target is every item ordered in the period.
      Fused requests have the last visit before it as the running session.

    Requests that would read nothing are left out.

    Parameters
    ----------
    tier
        Which.
    permitted
        What the gate lets through for it at `end`.
    start, end
        The validation period.
    max_persons
        Persons at most; None: all.
    seed
        Of the order in which persons are drawn.

    Raises
    ------
    TrainingError
        If there are too few persons to judge by, or nothing to fit on.

    Notes
    -----
    O(rows) in Python for the persons drawn, some ten microseconds each.
    """
    instant = microseconds(start)
    rows = permitted.rows
    # Ages of sessions count from the beginning of the period, as they will from the cut-off of a training.
    before = dataclasses.replace(permitted, rows=rows.filter(pc.less(rows["ts"], instant)), until=instant)
    histories = _Histories(rows, permitted.attributes)
    by_person: list[list[_Case]] = []
    for person in _in_random_order(_judged_persons(tier, rows, instant), seed):
        if max_persons is not None and len(by_person) == max_persons:
            break
        found = list(_cases(tier, histories, person, instant))
        if found:
            by_person.append(found)
    if len(by_person) < MINIMUM_GROUP:
        raise TrainingError(
            f"the {tier} tier has {len(by_person)} persons to judge by between {start.isoformat()} and "
            f"{end.isoformat()}, and needs {MINIMUM_GROUP}: "
            + (
                "make the validation period longer (--horizon), or its end earlier (--cutoff)"
                if before.rows.num_rows < rows.num_rows
                else "no permitted row of it is from then; let the period end (--cutoff) where the data do"
            )
        )
    if not before.rows.num_rows:
        raise TrainingError(
            f"the {tier} tier has no permitted rows to fit on from before the validation period, which "
            f"begins at {start.isoformat()}: make it shorter (--horizon)"
        )
    views = tuple(view for found in by_person for view, _ in found)
    item_ids = tuple(sorted(pc.unique(rows["item_id"]).to_pylist(), key=utf8))
    position = {item: number for number, item in enumerate(item_ids)}
    targets = [
        np.array([position[item] for item in target], dtype=np.int64)
        for found in by_person
        for _, target in found
    ]
    persons = np.repeat(np.arange(len(by_person)), [len(found) for found in by_person])
    return ValidationSet(
        tier, start, end, before, views, Requests.from_views(views), Relevant.from_lists(targets), item_ids,
        persons,
    )  # fmt: skip


_Case = tuple[PermittedView, tuple[str, ...]]
"""What one request may read, and what it should have found."""

_Row = dict[str, Any]


class _Histories:
    """Rows and attributes of one person at a time."""

    def __init__(self, rows: pa.Table, attributes: pa.Table | None) -> None:
        self._rows = rows
        self._attributes = attributes
        # The gate's rows stand person by person, so that these codes ascend.
        names = pc.unique(rows["person"])
        codes = pc.index_in(rows["person"], value_set=names).to_numpy()
        ends = np.searchsorted(codes, np.arange(len(names)), side="right").tolist()
        self._span = dict(zip(names.to_pylist(), pairwise([0, *ends]), strict=True))
        known = [] if attributes is None else attributes["person"].to_pylist()
        self._position = {person: number for number, person in enumerate(known)}

    def rows(self, person: str) -> list[_Row]:
        """In canonical order: by time, first of all."""
        first, end = self._span[person]
        found: list[_Row] = self._rows.slice(first, end - first).to_pylist()
        return found

    def attributes(self, person: str) -> dict[str, AttributeValue]:
        """Those that have a value."""
        number = self._position.get(person)
        if number is None or self._attributes is None:
            return {}
        (row,) = self._attributes.slice(number, 1).to_pylist()
        return {name: value for name, value in row.items() if name != "person" and value is not None}


def _judged_persons(tier: Tier, rows: pa.Table, instant: int) -> list[str]:
    """Persons with something in the period to be judged by, ascending."""
    wanted = pc.greater_equal(rows["ts"], instant)
    if tier in (Tier.CRM, Tier.FUSED):
        wanted = pc.and_(
            wanted, pc.and_(pc.equal(rows["source"], "crm"), pc.equal(rows["event_type"], "order"))
        )
    return sorted(pc.unique(rows.filter(wanted)["person"]).to_pylist(), key=utf8)


def _in_random_order(persons: Sequence[str], seed: int) -> Iterator[str]:
    for number in np.random.default_rng(seed).permutation(len(persons)).tolist():
        yield persons[number]


def _cases(tier: Tier, histories: _Histories, person: str, instant: int) -> Iterator[_Case]:
    rows = histories.rows(person)
    if tier is Tier.SESSION:
        yield from _prefixes(rows, instant)
        return
    before, after = (
        [row for row in rows if row["ts"] < instant],
        [row for row in rows if row["ts"] >= instant],
    )
    online = [row for row in before if row["source"] == "online"]
    crm = [row for row in before if row["source"] == "crm"]
    if tier is not Tier.ONLINE:
        after = [row for row in after if row["source"] == "crm" and row["event_type"] == "order"]
    running = online[-1]["session_id"] if online else None
    view = PermittedView(
        sources=_sources(tier),
        session=_events(row for row in online if row["session_id"] == running),
        online_history=_events(row for row in online if row["session_id"] != running),
        crm_history=_events(crm),
        attributes={} if tier is Tier.ONLINE else histories.attributes(person),
    )
    if after and (view.session or view.crm_history or view.attributes):
        yield view, tuple(sorted({row["item_id"] for row in after}, key=utf8))


def _prefixes(rows: Sequence[_Row], instant: int) -> Iterator[_Case]:
    """Every prefix of every session that begins in the period, with its next item."""
    sessions: dict[str, list[_Row]] = {}
    for row in rows:
        sessions.setdefault(row["session_id"], []).append(row)
    for session in sessions.values():
        if session[0]["ts"] >= instant:
            events = _events(session)
            for end in range(1, len(events)):
                view = PermittedView(sources=_sources(Tier.SESSION), session=events[:end])
                yield view, (events[end].item_id,)


def _sources(tier: Tier) -> frozenset[Source]:
    return frozenset(Source(name) for name in TIERS[tier][0])


def _events(rows: Iterable[_Row]) -> tuple[Event, ...]:
    return tuple(
        Event(row["item_id"], _EPOCH + dt.timedelta(microseconds=row["ts"]), row["event_type"])
        for row in rows
    )
