"""The exposure report: what rested on a state of consent that turned out wrong.

Records arrive late: a withdrawal in a letter holds from the day that it was written. What was decided in
between was decided on what the ledger held, and is listed here: audit lines and bundles that rest on more
than the ledger permits for their instant, now that it holds more.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from consentier.consent import ConsentRecord, Ledger, Link, Policy, Resolution, Side, Source, Tier
from consentier.consent.keyring import Keyring
from consentier.consent.records import OWNER, SubjectKind
from consentier.errors import BundleError, BundleMissing
from consentier.models.bundle import Bundle, open_bundle, read_run
from consentier.serving.audit import AuditLine, Trace, audit_lines, subject_text
from consentier.serving.main_parameters import LEARNT_FROM, SOURCE_WORDS
from consentier.serving.recommender import input_text

__all__ = ["Cause", "ExposedAnswer", "ExposedBundle", "ExposureReport", "LineageLookup", "exposure"]

Subject = tuple[SubjectKind, str]

LineageLookup = Callable[[SubjectKind, str], Iterable[str]]
"""Says, for kind and id of a subject, the digests of the bundles that hold its data."""

_SOURCE_OF = {kind: source for source, kind in OWNER.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Cause:
    """A late entry of the ledger that concerns the subject.

    Attributes
    ----------
    position
        Where it stands in the ledger.
    subject
        Whom it is about, under a key.
    permission, state
        What it says; both ``link`` for an identity link.
    effective_from, recorded_at
        From when on it counts, and when it was recorded (None for a link).
    """

    position: int
    subject: str
    permission: str
    state: str
    effective_from: dt.datetime
    recorded_at: dt.datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class ExposedAnswer:
    """An answer that would not have been given.

    Attributes
    ----------
    where
        File and line of the audit log.
    at, tier, channel, policy_version, bundle_digest
        From the line.
    subjects
        Who it was about, by kind: under a key, or in clear if that was asked for.
    reason
        What stands in its way now.
    certain
        Whether what the ledger held then allowed it, so that the late entries alone are the cause. False
        where that has been erased since, or was decided under another policy; and where older events may have
        been read than the permission goes back, as a line does not say how old the events were.
    causes
        The late entries.
    """

    where: str
    at: dt.datetime
    tier: Tier
    channel: str
    policy_version: str
    bundle_digest: str | None
    subjects: Mapping[str, str]
    reason: str
    certain: bool
    causes: tuple[Cause, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ExposedBundle:
    """A bundle that was fitted on rows which may not be used.

    Attributes
    ----------
    path, tier, digest
        Which bundle.
    cutoff, ledger_position
        Its training cut-off, and the ledger's position when it was fitted.
    subjects
        Whose rows: under a key, or in clear if that was asked for.
    certain
        Whether the lineage says that it holds them. False: there was no lineage to ask.
    causes
        The late entries.
    """

    path: str
    tier: Tier
    digest: str
    cutoff: dt.datetime
    ledger_position: int
    subjects: tuple[str, ...]
    certain: bool
    causes: tuple[Cause, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ExposureReport:
    """What was found.

    Attributes
    ----------
    ledger_position
        The ledger's position when it was looked at.
    lines
        Audit lines that were looked at. Those that name nobody rest on nothing about anybody.
    answers, bundles
        What rests on a wrong state.
    unreadable
        Lines and bundles that could not be looked at, and why.
    """

    ledger_position: int
    lines: int
    answers: tuple[ExposedAnswer, ...]
    bundles: tuple[ExposedBundle, ...]
    unreadable: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def exposure(
    ledger: Ledger,
    *,
    keyring: Keyring,
    policy: Policy,
    audit: Path | None = None,
    bundles: Iterable[Path] = (),
    lineage: LineageLookup | None = None,
    show_subjects: bool = False,
) -> ExposureReport:
    """Find what rests on a state of consent that late entries have changed.

    Parameters
    ----------
    ledger
        The ledger as it is now.
    keyring
        The keys under which the audit lines name subjects.
    policy
        What was allowed in which state.
    audit
        An audit directory, or one of its files.
    bundles
        Directories of bundles.
    lineage
        Says which bundles hold a subject. Without it a bundle counts as holding everybody.
    show_subjects
        Name subjects in clear. By default their keyed digests stand in the report.

    Raises
    ------
    AuditError
        If there is no audit log at `audit`.

    Notes
    -----
    Reads the audit log twice and the ledger's entries after the earliest line or bundle once; resolves twice
    for each line about a subject with late entries. A line names only those whose permission covered it, so
    a late entry about somebody else in the same request, such as the objection of a customer whose device was
    not linked, is not seen.
    """
    unreadable: list[str] = []
    opened = [each for directory in bundles for each in _fitted(directory, unreadable)]
    positions = [position for _, position in opened]
    lines = 0
    for line in () if audit is None else audit_lines(audit, unreadable=unreadable):
        lines += 1
        if _judgeable(line) and line.ledger_position is not None:
            positions.append(line.ledger_position)
    late = _Late(ledger, keyring, after=min(positions, default=ledger.position), in_clear=show_subjects)
    judge = _Judge(ledger, keyring, policy, late)
    answers = (judge.answer(line) for line in (() if audit is None else audit_lines(audit, unreadable=[])))
    exposed = (judge.bundle(bundle, position, lineage) for bundle, position in opened)
    return ExposureReport(
        ledger_position=ledger.position,
        lines=lines,
        answers=tuple(answer for answer in answers if answer is not None),
        bundles=tuple(bundle for bundle in exposed if bundle is not None),
        unreadable=tuple(unreadable),
    )


class _Late:
    """The entries after a position, by the subjects whose standing they can change."""

    def __init__(self, ledger: Ledger, keyring: Keyring, *, after: int, in_clear: bool) -> None:
        self._keyring, self._in_clear = keyring, in_clear
        self._of: dict[Subject, list[tuple[int, ConsentRecord | Link]]] = {}
        for position, entry in ledger.entries(after=after):
            for subject in _concerned(entry, ledger):
                self._of.setdefault(subject, []).append((position, entry))
        self.named = {
            digest: subject
            for subject in self._of
            for digest in keyring.digests("subject", subject_text(*subject))
        }

    def subjects(self) -> Iterator[Subject]:
        """All whose standing late entries can change."""
        return iter(self._of)

    def shown(self, subject: Subject) -> str:
        """A subject as the report names it."""
        text = subject_text(*subject)
        return text if self._in_clear else self._keyring.digest("subject", text)

    def causes(self, subjects: Iterable[Subject], after: int, at: dt.datetime) -> tuple[Cause, ...]:
        """What came after a position and counts at an instant, in order of position."""
        found: dict[int, Cause] = {}
        for subject in subjects:
            for position, entry in self._of.get(subject, ()):
                start = _start(entry)
                if position > after and start is not None and start <= at:
                    found[position] = self._cause(position, entry, start)
        return tuple(found[position] for position in sorted(found))

    def _cause(self, position: int, entry: ConsentRecord | Link, start: dt.datetime) -> Cause:
        if isinstance(entry, Link):
            return Cause(position, self.shown(("visitor", entry.visitor_id)), "link", "link", start, None)
        subject = self.shown((entry.subject_kind, entry.subject_id))
        return Cause(position, subject, entry.permission, entry.state, start, entry.recorded_at)


class _Judge:
    """Compares what the ledger held at a position with what it holds now."""

    def __init__(self, ledger: Ledger, keyring: Keyring, policy: Policy, late: _Late) -> None:
        self._ledger, self._keyring, self._policy, self._late = ledger, keyring, policy, late

    def answer(self, line: AuditLine) -> ExposedAnswer | None:
        """What is wrong with an answer, if anything."""
        trace, position = line.trace, line.ledger_position
        if trace is None or position is None or not _judgeable(line):
            return None
        subjects = self._identified(trace)
        causes = self._late.causes(subjects, position, line.at)
        if not causes:
            return None
        ids = dict(subjects)
        reason, certain = self._wrong(line, trace, ids, self._ledger.as_of(position))
        if not reason:
            return None
        return ExposedAnswer(
            where=line.where,
            at=line.at,
            tier=line.tier,
            channel=str(line.channel),
            policy_version=line.policy_version,
            bundle_digest=line.bundle_digest,
            subjects={kind: self._late.shown((kind, subject_id)) for kind, subject_id in subjects},
            reason=reason,
            certain=certain,
            causes=causes,
        )

    def bundle(self, bundle: Bundle, position: int, lineage: LineageLookup | None) -> ExposedBundle | None:
        """What is wrong with a bundle, if anything."""
        tier, cutoff = Tier(bundle.manifest.tier), dt.datetime.fromisoformat(bundle.manifest.cutoff)
        candidates = [
            subject for subject in self._late.subjects() if self._late.causes((subject,), position, cutoff)
        ]
        if not candidates:
            return None
        before = self._ledger.as_of(position)
        narrowed = {subject for subject in candidates if self._learnt_less(subject, tier, before, cutoff)}
        if tier is Tier.FUSED:
            narrowed |= self._unlinked(before, cutoff)
        held = [
            subject
            for subject in sorted(narrowed)
            if lineage is None or bundle.digest in set(lineage(*subject))
        ]
        if not held:
            return None
        return ExposedBundle(
            path=str(bundle.path),
            tier=tier,
            digest=bundle.digest,
            cutoff=cutoff,
            ledger_position=position,
            subjects=tuple(self._late.shown(subject) for subject in held),
            certain=lineage is not None,
            causes=self._late.causes(held, position, cutoff),
        )

    def _identified(self, trace: Trace) -> list[Subject]:
        """The subjects of a line, as far as late entries or their links tell who they are."""
        found = [self._late.named[digest] for digest in trace.subjects.values() if digest in self._late.named]
        if len(found) != 1 or len(trace.subjects) == 1:
            return found
        (known,) = found
        for link in self._ledger.links_of(known[1], kind=known[0]):
            other: Subject = (
                ("visitor", link.visitor_id) if known[0] == "customer" else ("customer", link.customer_id)
            )
            if trace.subjects[other[0]] in self._keyring.digests("subject", subject_text(*other)):
                return [known, other]
        return found

    def _wrong(
        self, line: AuditLine, trace: Trace, ids: Mapping[SubjectKind, str], before: Ledger
    ) -> tuple[str, bool]:
        """Why an answer would not be given now, and whether it rightly was before."""
        visitor, customer = ids.get("visitor"), ids.get("customer")

        def resolved(ledger: Ledger) -> Resolution:
            return ledger.resolve(visitor_id=visitor, customer_id=customer, at=line.at)

        then, now = resolved(before), resolved(self._ledger)
        route = self._policy.route(now, line.channel, vouched=trace.vouched)
        if line.tier not in route.tiers:
            allowed = self._policy.route(then, line.channel, vouched=trace.vouched).tiers
            return f"{'; '.join(route.reasons)}: no answer of the {line.tier} tier", line.tier in allowed
        contacted = line.side is Side.CRM and line.channel in (trace.contact or ())
        if contacted and line.channel not in (now.contact or ()):
            return f"no contact permission for {line.channel}", line.channel in (then.contact or ())
        later = {
            source
            for source, since, still in (
                (Source.ONLINE, then.online_since, now.online_since),
                (Source.CRM, then.crm_since, now.crm_since),
            )
            if _later(since, still)
        }
        if line.tier is Tier.FUSED and customer is not None:
            joined = self._devices(before, customer, line.at)
            still_joined = self._devices(self._ledger, customer, line.at)
            if joined.keys() - still_joined.keys():
                return "data of a device were joined that may not be", True
            if any(_later(since, still_joined[device]) for device, since in joined.items()):
                later.add(Source.ONLINE)
        read = [SOURCE_WORDS[source] for source in sorted(later) if self._read(trace, source)]
        if read:
            return f"{' and '.join(read)} may have been read from before the permission", False
        return "", True

    def _read(self, trace: Trace, source: Source) -> bool:
        """Whether an answer read any event of a source."""
        nothing = self._keyring.digests(f"input:{source}", input_text(source, "[]"))
        return source in trace.inputs and trace.inputs[source] not in nothing

    def _devices(self, ledger: Ledger, customer_id: str, at: dt.datetime) -> Mapping[str, int]:
        separate = self._policy.switches.fusion_purpose
        return ledger.linked_since(customer_id, at=at, fusion_purpose=separate)

    def _learnt_less(self, subject: Subject, tier: Tier, before: Ledger, cutoff: dt.datetime) -> bool:
        kind, subject_id = subject
        source = _SOURCE_OF[kind]
        if source not in LEARNT_FROM[tier]:
            return False
        separate = self._policy.switches.model_purpose
        then, now = (
            ledger.standing(source, subject_id, at=cutoff, model_purpose=separate).since
            for ledger in (before, self._ledger)
        )
        return then is not None and (now is None or now > then)

    def _unlinked(self, before: Ledger, cutoff: dt.datetime) -> set[Subject]:
        """Visitors and customers whose link may not be learnt from, or not from as early on as it was."""
        switches = self._policy.switches
        then, now = (
            ledger.lawful_links(
                at=cutoff, model_purpose=switches.model_purpose, fusion_purpose=switches.fusion_purpose
            )
            for ledger in (before, self._ledger)
        )
        found: set[Subject] = set()
        for visitor_id, link in then.items():
            still = now.get(visitor_id)
            if still is None or still.customer_id != link.customer_id or still.since > link.since:
                found |= {("visitor", visitor_id), ("customer", link.customer_id)}
        return found


def _later(then: int | None, now: int | None) -> bool:
    """Whether a permission goes less far back than it did. What it did is unknown where it was erased."""
    return then is not None and now is not None and now > then


def _judgeable(line: AuditLine) -> bool:
    return line.trace is not None and bool(line.trace.subjects) and line.tier is not Tier.NONE


def _concerned(entry: ConsentRecord | Link, ledger: Ledger) -> set[Subject]:
    """Whose standing an entry can change: its own subjects, and the customers who used the device."""
    if isinstance(entry, ConsentRecord):
        own: Subject = (entry.subject_kind, entry.subject_id)
        if entry.subject_kind == "customer":
            return {own}
        visitor_id, concerned = entry.subject_id, {own}
    else:
        visitor_id = entry.visitor_id
        concerned = {("visitor", visitor_id), ("customer", entry.customer_id)}
    return concerned | {
        ("customer", link.customer_id) for link in ledger.links_of(visitor_id, kind="visitor")
    }


def _start(entry: ConsentRecord | Link) -> dt.datetime | None:
    """From when on an entry counts, at the earliest: a refusal counts as soon as it is known."""
    if isinstance(entry, Link):
        return entry.linked_at
    return min(entry.valid_from, entry.recorded_at)


def _fitted(directory: Path, unreadable: list[str]) -> Iterator[tuple[Bundle, int]]:
    """The bundles of a directory, with the ledger's position when each was fitted."""
    for tier in LEARNT_FROM:
        try:
            bundle = open_bundle(directory / tier, verify=False)
            position = read_run(directory / tier).get("ledger_position")
        except BundleMissing as error:
            if (directory / tier).exists():
                unreadable.append(str(error))
            continue
        except BundleError as error:
            unreadable.append(str(error))
            continue
        if isinstance(position, int):
            yield bundle, position
        else:
            unreadable.append(f"bundle {directory / tier}: its run.json names no ledger position")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.isoformat() if isinstance(value, dt.datetime) else value
