"""How the records of one subject become states over time.

The rules (the sixth law of the engine), each independent of the order in which records arrived:

* the record with the latest start governs alone; its expiry revives nothing that came before it;
* a tie of starts goes to denial;
* a denial takes effect when it was made known, if that is earlier than the start it names, and governs from
  that start too; a grant that was recorded before its start (beyond the clock skew) is refused when its time
  comes;
* an objection outranks every grant until an explicit, evidenced lift that starts after it;
* a `record_id` that comes again with other content counts as a denial wherever it claims anything.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from consentier.consent.records import ConsentRecord, SubjectKind, microseconds

__all__ = [
    "CLOCK_SKEW",
    "Claim",
    "Segment",
    "Subject",
    "Timeline",
    "claims_of",
    "combine",
    "content_of",
    "covered",
    "either",
    "inverted",
    "minority",
    "objections",
    "refusals",
    "timeline_of",
]

CLOCK_SKEW = 5 * 60 * 1_000_000
"""Microseconds by which a grant's start may lie ahead of its recording: clocks differ, minds do not."""

_BEGINNING = -(2**63)
_REFUSING = frozenset({"denied", "withdrawn", "objected", "conflicting"})

Subject = tuple[SubjectKind, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """What one record says, in microseconds, after duplicates were merged and conflicts found."""

    permission: str
    state: str
    start: int
    end: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """From `start` until the next segment's start: held or not, and why."""

    start: int
    held: bool
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Timeline:
    """A step function of time. The first segment starts at the beginning of time."""

    segments: tuple[Segment, ...]

    def at(self, instant: int) -> Segment:
        """Return the segment that holds at an instant (binary search)."""
        return self.segments[self._position(instant)]

    def held_since(self, instant: int) -> int | None:
        """Return the start of the uninterrupted time of being held that includes `instant`, or None."""
        position = self._position(instant)
        if not self.segments[position].held:
            return None
        while position > 0 and self.segments[position - 1].held:
            position -= 1
        return self.segments[position].start

    def _position(self, instant: int) -> int:
        return bisect.bisect_right(self.segments, instant, key=lambda segment: segment.start) - 1


_UNKNOWN = Timeline((Segment(_BEGINNING, held=False, reason="unknown"),))
_NO_OBJECTION = Timeline((Segment(_BEGINNING, held=False, reason="none"),))


def claims_of(versions_by_id: Iterable[Sequence[ConsentRecord]], subject: Subject) -> list[Claim]:
    """Merge duplicates, turn conflicts into denials, and convert to microseconds.

    Parameters
    ----------
    versions_by_id
        For each record id that concerns the subject, all that arrived under it (for other subjects too: one
        id for two subjects is a conflict).
    subject
        Kind and id of the subject whose claims are wanted.

    The same record may arrive several times, at different `recorded_at`: the earliest counts. A record id
    that stands for two contents proves neither, so each content that it claims becomes a denial.
    """
    claims: list[Claim] = []
    for versions in versions_by_id:
        recorded = min(microseconds(version.recorded_at) for version in versions)
        contents = {content_of(version): version for version in versions}
        for version in contents.values():
            if (version.subject_kind, version.subject_id) == subject:
                claims.extend(_claims_in(version, recorded, conflicting=len(contents) > 1))
    return claims


def content_of(record: ConsentRecord) -> tuple[object, ...]:
    """All that a record states, without when the ledger learnt of it."""
    return tuple(
        getattr(record, field.name) for field in dataclasses.fields(record) if field.name != "recorded_at"
    )


def _claims_in(record: ConsentRecord, recorded: int, *, conflicting: bool) -> Iterator[Claim]:
    start = microseconds(record.valid_from)
    end = None if record.valid_to is None else microseconds(record.valid_to)
    state = record.state
    if conflicting:
        state, end = ("objected" if state == "objected" else "conflicting"), None
    elif state == "lifted" and not (record.evidence and record.evidence.strip()):
        state = "lifted without evidence"
    elif state in {"granted", "lifted"} and start > recorded + CLOCK_SKEW:
        state = "future-dated"
    yield Claim(record.permission, state, start, end)
    if state in _REFUSING and recorded < start:
        # Heeded at once; and a grant given meanwhile does not outlive the start that the refusal names.
        yield Claim(record.permission, state, recorded, end)


def timeline_of(claims: Iterable[Claim], permission: str) -> Timeline:
    """Build the timeline of one permission of one subject. Cost: n log n in the subject's records."""
    own = [claim for claim in claims if claim.permission == permission]
    if not own:
        return _UNKNOWN
    stated = _stated(own)
    objected = objections(own)
    if len(objected.segments) == 1:
        return stated
    return combine((stated, inverted(objected, "objected")), "granted")


def _stated(claims: Sequence[Claim]) -> Timeline:
    """The timeline by starts, ends and ties, objections' persistence left aside."""
    by_start: dict[int, list[Claim]] = {}
    for claim in claims:
        by_start.setdefault(claim.start, []).append(claim)
    segments = list(_UNKNOWN.segments)
    starts = sorted(by_start)
    for start, following in itertools.zip_longest(starts, starts[1:]):
        group = by_start[start]
        others = [claim.state for claim in group if claim.state != "granted"]
        if others:
            segments.append(Segment(start, held=False, reason=min(others, key=_mildness)))
            continue
        ends = [claim.end for claim in group if claim.end is not None]
        end = min(ends, default=None)
        if end is None or end > start:
            segments.append(Segment(start, held=True, reason="granted"))
        if end is not None and (following is None or end < following):
            segments.append(Segment(max(end, start), held=False, reason="expired"))
    return Timeline(tuple(segments))


def _mildness(state: str) -> tuple[bool, bool, str]:
    """Sorts a refusal before what is merely void, and a lift last: among ties the sternest speaks."""
    return state not in _REFUSING, state == "lifted", state


def objections(claims: Iterable[Claim]) -> Timeline:
    """The timeline that is held while an objection stands."""
    own = list(claims)
    raised = {claim.start for claim in own if claim.state == "objected"}
    lifted = {claim.start for claim in own if claim.state == "lifted"} - raised
    if not raised:
        return _NO_OBJECTION
    segments = list(_NO_OBJECTION.segments)
    for start in sorted(raised | lifted):
        standing = start in raised
        if standing != segments[-1].held:
            segments.append(Segment(start, held=standing, reason="objected" if standing else "lifted"))
    return Timeline(tuple(segments))


def refusals(claims: Iterable[Claim], permission: str) -> Timeline:
    """The timeline that is held while the subject's own word on a permission is no.

    Silence and expiry are no refusals: they grant nothing either, but they do not speak about others.
    """
    timeline = timeline_of(claims, permission)
    return Timeline(
        tuple(
            Segment(segment.start, held=segment.reason in _REFUSING, reason=segment.reason)
            for segment in timeline.segments
        )
    )


def minority(claims: Iterable[Claim]) -> Timeline:
    """The timeline that is held while the subject is a minor without parental consent.

    Any record on the matter that is neither a consent in force nor a lift leaves the subject a minor.
    """
    timeline = timeline_of(claims, "parental")
    return Timeline(
        tuple(
            Segment(
                segment.start,
                held=not segment.held and segment.reason not in {"unknown", "lifted"},
                reason="minor without parental consent",
            )
            for segment in timeline.segments
        )
    )


def covered(claims: Iterable[Claim], purpose: str, *, required: bool) -> Timeline:
    """The timeline that is held while a separated purpose stands in the way of nothing.

    Where the notice separates the purpose (`required`) only a grant will do. Where it does not, silence will
    do too, but a record that is no grant in force still stands in the way.
    """
    timeline = timeline_of(claims, purpose)
    return Timeline(
        tuple(
            Segment(
                segment.start,
                held=segment.held or (segment.reason == "unknown" and not required),
                reason=f"{purpose} purpose {segment.reason}",
            )
            for segment in timeline.segments
        )
    )


def either(timelines: Sequence[Timeline], reason: str) -> Timeline:
    """Held wherever one of them is held."""
    return inverted(combine([inverted(timeline, reason) for timeline in timelines], reason), reason)


def inverted(timeline: Timeline, reason: str) -> Timeline:
    """Held where the other is not, with one reason for where it is not."""
    return Timeline(
        tuple(
            Segment(segment.start, held=not segment.held, reason=reason if segment.held else segment.reason)
            for segment in timeline.segments
        )
    )


def combine(timelines: Sequence[Timeline], reason: str) -> Timeline:
    """Held only where all are held; elsewhere the reason of the last one that is not (the strongest)."""
    starts = sorted({segment.start for timeline in timelines for segment in timeline.segments})
    segments = []
    for start in starts:
        missing = [found for timeline in timelines if not (found := timeline.at(start)).held]
        segments.append(Segment(start, held=not missing, reason=missing[-1].reason if missing else reason))
    return Timeline(tuple(segments))
