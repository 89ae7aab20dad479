"""How the records of one subject become states over time.

The rules (the sixth law of the engine), each independent of the order in which records arrived:

* the record with the latest start governs alone; its expiry revives nothing that came before it;
* a tie of starts goes to denial;
* a denial takes effect when it was made known, if that is earlier than the start it names, and governs from
  that start too; a grant that was recorded before its start (beyond the clock skew) is refused when its time
  comes;
* a grant ends where it says, or when it has grown too old, whichever is earlier;
* an objection outranks every grant until an explicit, evidenced lift that starts after it;
* a `record_id` that comes again with other content counts as a denial wherever it claims anything;
* before the first record on parental consent the subject was a minor without it, unless that is a lift.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from consentier.consent.lifetimes import Lifetimes
from consentier.consent.records import PARENTAL, SubjectKind
from consentier.consent.store import Version

__all__ = [
    "ALWAYS",
    "CLOCK_SKEW",
    "NO_OBJECTION",
    "Claim",
    "Claims",
    "Segment",
    "Subject",
    "Timeline",
    "claims_of",
    "combine",
    "covered",
    "either",
    "held_together_since",
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


class Claim(NamedTuple):
    """What one record says, in microseconds, after duplicates were merged and conflicts found."""

    state: str
    start: int
    end: int | None


Claims = Mapping[str, Sequence[Claim]]
"""All that one subject claims, by permission."""


class Segment(NamedTuple):
    """From `start` until the next segment's start: held or not, and why."""

    start: int
    held: bool
    reason: str


class Timeline(NamedTuple):
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
        # Whatever the last segment that starts by then says, this is greater.
        return bisect.bisect_right(self.segments, (instant, 2, "")) - 1


_UNKNOWN = Timeline((Segment(_BEGINNING, held=False, reason="unknown"),))
_NEVER = Timeline((Segment(_BEGINNING, held=False, reason="none"),))
ALWAYS = Timeline((Segment(_BEGINNING, held=True, reason="granted"),))
NO_OBJECTION = _NEVER
"""The timeline of who never objected: this very object, so that it can be told without looking at it."""


def claims_of(
    versions: Iterable[Version],
    subject: Subject,
    known: int | None = None,
    lifetimes: Lifetimes | None = None,
) -> Claims:
    """Merge duplicates, turn conflicts into denials, end grants that have grown old.

    Parameters
    ----------
    versions
        All versions of the records that concern the subject and, of an id that stands for several contents,
        those that concern others too: one id for two subjects is a conflict.
    subject
        Kind and id of the subject whose claims are wanted.
    known
        Use only what had been recorded by then (microseconds; None: all).
    lifetimes
        How long grants last at the most (None: as long as they say).

    The same record may arrive several times, at different `recorded_at`: the earliest counts. A record id
    that stands for two contents proves neither, so each content that it claims becomes a denial.
    """
    by_id: dict[str, list[Version]] = {}
    for version in versions:
        if known is None or version.recorded <= known:
            by_id.setdefault(version.record_id, []).append(version)
    claims: dict[str, list[Claim]] = {}
    for copies in by_id.values():
        recorded = min(version.recorded for version in copies) if len(copies) > 1 else copies[0].recorded
        contents = {version.content: version for version in copies}
        for version in contents.values():
            if (version.subject_kind, version.subject_id) == subject:
                own = claims.setdefault(version.permission, [])
                own += _claims_in(version, recorded, lifetimes, conflicting=len(contents) > 1)
    return claims


def _claims_in(
    version: Version, recorded: int, lifetimes: Lifetimes | None, *, conflicting: bool
) -> list[Claim]:
    state, start, end = version.state, version.start, version.end
    if conflicting:
        state, end = ("objected" if state == "objected" else "conflicting"), None
    elif state == "lifted" and not (version.evidence and version.evidence.strip()):
        state = "lifted without evidence"
    elif state in {"granted", "lifted"} and start > recorded + CLOCK_SKEW:
        state = "future-dated"
    elif state == "granted" and lifetimes is not None:
        end = lifetimes.end_of(
            version.permission,
            collected_by=version.collected_by,
            jurisdiction=version.jurisdiction,
            valid_from=start,
            valid_to=end,
        )
    claims = [Claim(state, start, end)]
    if state in _REFUSING and recorded < start:
        # Heeded at once; and a grant given meanwhile does not outlive the start that the refusal names.
        claims.append(Claim(state, recorded, end))
    return claims


def timeline_of(claims: Claims, permission: str) -> Timeline:
    """Build the timeline of one permission of one subject. Cost: n log n in the subject's records."""
    own = claims.get(permission)
    if not own:
        return _UNKNOWN
    stated = _stated(own)
    objected = objections(own)
    if objected is NO_OBJECTION:
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


def objections(own: Sequence[Claim]) -> Timeline:
    """The timeline that is held while an objection stands. Only claims on one permission are expected."""
    raised = {claim.start for claim in own if claim.state == "objected"}
    if not raised:
        return NO_OBJECTION
    lifted = {claim.start for claim in own if claim.state == "lifted"} - raised
    segments = list(NO_OBJECTION.segments)
    for start in sorted(raised | lifted):
        standing = start in raised
        if standing != segments[-1].held:
            segments.append(Segment(start, held=standing, reason="objected" if standing else "lifted"))
    return Timeline(tuple(segments))


def refusals(claims: Claims, permission: str) -> Timeline:
    """The timeline that is held while the subject's own word on a permission is no.

    Silence and expiry are no refusals: they grant nothing either, but they do not speak about others.
    """
    if permission not in claims:
        return _NEVER
    timeline = timeline_of(claims, permission)
    return Timeline(
        tuple(
            Segment(segment.start, held=segment.reason in _REFUSING, reason=segment.reason)
            for segment in timeline.segments
        )
    )


def minority(claims: Claims, instant: int) -> Timeline:
    """The timeline that is held while the subject is a minor without parental consent, seen from an instant.

    Any record on the matter that is neither a consent in force nor a lift leaves the subject a minor. Of
    whoever is known for one, the time before the first record counts as well: a child's own consent carries
    nothing (GDPR 8). It does not where the first record is a lift, or starts after the instant: until then
    nobody knew.
    """
    if PARENTAL not in claims:
        return _NEVER
    silence, *told = timeline_of(claims, PARENTAL).segments
    child = told[0].start <= instant and told[0].reason != "lifted"
    return Timeline(
        tuple(
            Segment(
                segment.start,
                held=child if segment is silence else not segment.held and segment.reason != "lifted",
                reason="minor without parental consent",
            )
            for segment in (silence, *told)
        )
    )


def covered(claims: Claims, purpose: str, *, required: bool) -> Timeline:
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


def held_together_since(timelines: Iterable[Timeline], instant: int) -> int | None:
    """Since when all have been held without interruption (the latest since); None if one is not held."""
    latest = _BEGINNING
    for timeline in timelines:
        since = timeline.held_since(instant)
        if since is None:
            return None
        latest = max(latest, since)
    return latest


def combine(timelines: Sequence[Timeline], reason: str) -> Timeline:
    """Held only where all are held; elsewhere the reason of the last one that is not (the strongest)."""
    starts = sorted({segment.start for timeline in timelines for segment in timeline.segments})
    segments = []
    for start in starts:
        missing = [found for timeline in timelines if not (found := timeline.at(start)).held]
        segments.append(Segment(start, held=not missing, reason=missing[-1].reason if missing else reason))
    return Timeline(tuple(segments))
