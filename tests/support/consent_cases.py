"""Random consent ledgers for property tests.

Time runs in ticks of five minutes, which is also the clock skew that the ledger tolerates, so that few ticks
suffice to meet every order of events. Visitors and customers go by the same ids, so that consent which leaks
from one kind of subject to the other shows.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import TypedDict

from hypothesis import strategies as st

from consentier.consent import ConsentRecord, Ledger, Link
from consentier.consent.records import SubjectKind

__all__ = [
    "IDS",
    "LAST_TICK",
    "TICK",
    "Case",
    "at_tick",
    "cases",
    "instants_between",
    "refused_cases",
    "said",
]

IDS = ("a", "b")
TICK = dt.timedelta(minutes=5)
LAST_TICK = 8

_START = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)
_PERMISSIONS = (
    *("online", "crm") * 5,
    *("parental", "fusion", "model") * 2,
    *("ads", "contact:email"),
)
_STATES = (*("granted",) * 5, "denied", "withdrawn", "objected", "lifted", "lifted")

_ticks = st.integers(0, LAST_TICK)


def at_tick(tick: int) -> dt.datetime:
    """The instant of a tick, in UTC."""
    return _START + tick * TICK


def instants_between(first: dt.datetime, last: dt.datetime) -> list[dt.datetime]:
    """Both ends, every tick between them and the middle between every two ticks."""
    halves = [_START + half * (TICK / 2) for half in range(-1, 2 * LAST_TICK + 3)]
    return [instant for instant in halves if first <= instant <= last]


class When(TypedDict):
    """The two times of a question to the ledger, as its keyword arguments."""

    at: dt.datetime
    known_at: dt.datetime | None


@dataclasses.dataclass(frozen=True)
class Case:
    """A ledger's entries in order of arrival, and when it is asked."""

    records: tuple[ConsentRecord, ...]
    links: tuple[Link, ...]
    at: dt.datetime
    known_at: dt.datetime | None = None

    @property
    def when(self) -> When:
        """When it is asked."""
        return {"at": self.at, "known_at": self.known_at}

    def ledger(self) -> Ledger:
        """The ledger under test."""
        return Ledger(self.records, self.links)


def said(
    record_id: str,
    state: str,
    tick: int,
    *,
    permission: str = "online",
    kind: SubjectKind = "visitor",
    subject: str = "a",
    learnt: int | None = None,
    until: int | None = None,
    evidence: str | None = None,
) -> ConsentRecord:
    """A record told in ticks; learnt of at once if nothing else is said."""
    return ConsentRecord(
        record_id=record_id,
        subject_id=subject,
        subject_kind=kind,
        permission=permission,
        state=state,
        valid_from=at_tick(tick),
        recorded_at=at_tick(tick if learnt is None else learnt),
        valid_to=None if until is None else at_tick(until),
        evidence=evidence,
    )


@dataclasses.dataclass(frozen=True)
class _Scope:
    """What one ledger is about. A narrow scope makes ties, conflicts and long histories likely."""

    ids: tuple[str, ...]
    permissions: tuple[str, ...]
    last_tick: int

    @property
    def ticks(self) -> st.SearchStrategy[dt.datetime]:
        """Instants at which something may happen."""
        return st.integers(0, self.last_tick).map(at_tick)


_scopes = st.builds(
    _Scope,
    st.sampled_from((("a",), ("a",), IDS)),
    st.sampled_from((_PERMISSIONS, _PERMISSIONS, ("online",), ("parental",), ("online", "crm", "fusion"))),
    st.sampled_from((2, 4, LAST_TICK)),
)


@st.composite
def _records(draw: st.DrawFn, record_id: str, scope: _Scope) -> ConsentRecord:
    """Any record: late or future-dated, ending or not, with and without evidence."""
    kind: SubjectKind = draw(st.sampled_from(("visitor", "customer")))
    permission = draw(st.sampled_from(scope.permissions))
    if permission in ("online", "crm") and draw(st.booleans()):
        permission = "online" if kind == "visitor" else "crm"
    start = draw(scope.ticks)
    return ConsentRecord(
        record_id=record_id,
        subject_id=draw(st.sampled_from(scope.ids)),
        subject_kind=kind,
        permission=permission,
        state=draw(st.sampled_from(_STATES)),
        valid_from=start,
        recorded_at=draw(st.one_of(st.just(start), scope.ticks)),
        valid_to=draw(st.one_of(st.none(), st.none(), _ticks.map(at_tick))),
        evidence=draw(st.sampled_from((None, " ", "letter", "letter"))),
    )


@st.composite
def _links(draw: st.DrawFn) -> Link:
    """A login, or an entry without a time, of any visitor as any customer."""
    linked_at = draw(st.one_of(_ticks.map(at_tick), _ticks.map(at_tick), st.none()))
    return Link(draw(st.sampled_from(IDS)), draw(st.sampled_from(IDS)), linked_at)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A ledger, mostly of persons who consented early on, with repetitions and conflicts of record ids."""
    scope = draw(_scopes)
    entries = _early_grants(draw)
    entries += _late_words_on_parents(draw, entries)
    entries += [draw(_records(f"record {number}", scope)) for number in range(draw(st.integers(0, 6)))]
    entries += _echoes(draw, entries, scope)
    return Case(
        records=tuple(draw(st.permutations(entries))),
        links=tuple(_logins(draw)),
        at=at_tick(draw(st.integers(scope.last_tick // 2, LAST_TICK))),
        known_at=draw(st.one_of(st.none(), st.none(), _ticks.map(at_tick))),
    )


@st.composite
def refused_cases(draw: st.DrawFn) -> tuple[Case, Case]:
    """A case, and the same with one refusal more or one record id contradicted."""
    case, scope = draw(cases()), draw(_scopes)
    contradict = draw(st.booleans())
    if case.records and contradict:
        case = dataclasses.replace(case, known_at=None)  # who has not seen both sees no contradiction
        extra = draw(_records(draw(st.sampled_from(case.records)).record_id, scope))
    else:
        state = draw(st.sampled_from(("denied", "withdrawn", "objected")))
        extra = dataclasses.replace(draw(_records("one more", scope)), state=state)
    return case, dataclasses.replace(case, records=(*case.records, extra))


def _early_grants(draw: st.DrawFn) -> list[ConsentRecord]:
    subjects = draw(st.sampled_from([(), ("a",), ("a",), ("a",), IDS]))
    return [
        said(f"{kind} {subject}", "granted", 0, permission=permission, kind=kind, subject=subject)
        for subject in subjects
        for kind, permission in _GRANTS
    ]


def _late_words_on_parents(draw: st.DrawFn, grants: Sequence[ConsentRecord]) -> list[ConsentRecord]:
    """Parents who are heard of after their child permitted something, or a proof that it is no child."""
    if not grants or draw(st.integers(0, 3)):
        return []
    tick = draw(st.integers(1, 4))
    return [
        dataclasses.replace(
            draw(st.sampled_from(list(grants))),
            record_id="parents",
            permission="parental",
            state=draw(st.sampled_from(("granted", "granted", "denied", "lifted"))),
            valid_from=at_tick(tick),
            recorded_at=draw(st.one_of(st.just(at_tick(tick)), _ticks.map(at_tick))),
            evidence="letter",
        )
    ]


_GRANTS: tuple[tuple[SubjectKind, str], ...] = (("visitor", "online"), ("customer", "crm"))


def _echoes(draw: st.DrawFn, entries: Sequence[ConsentRecord], scope: _Scope) -> list[ConsentRecord]:
    """Some records again: as they were, learnt of at another time, or with other content."""
    if not entries:
        return []
    echoes = []
    for entry in draw(st.lists(st.sampled_from(list(entries)), max_size=2)):
        change = draw(st.sampled_from(("none", "time", "content")))
        if change == "content":
            echoes.append(draw(_records(entry.record_id, scope)))
        elif change == "time":
            echoes.append(dataclasses.replace(entry, recorded_at=draw(scope.ticks)))
        else:
            echoes.append(entry)
    return echoes


def _logins(draw: st.DrawFn) -> list[Link]:
    usual = [Link("a", "a", at_tick(draw(st.integers(0, 3))))] if draw(st.integers(0, 3)) else []
    return [*usual, *draw(st.lists(_links(), max_size=2))]
