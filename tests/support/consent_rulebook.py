"""The rules of consent, told a second time and as plainly as can be: one instant, one question.

This is the reference that the ledger is compared with. It shares no code with it, knows no intervals, and
looks at every record for every question. Where the ledger builds step functions, this asks again at every
sampled instant.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, fields

from consent_cases import Case, instants_between

from consentier.consent import ConsentRecord
from consentier.consent.records import SubjectKind

__all__ = ["Rulebook", "Subject", "customer", "visitor"]

Subject = tuple[SubjectKind, str]

_SKEW = dt.timedelta(minutes=5)
_NO = ("denied", "withdrawn", "objected")


def visitor(visitor_id: str) -> Subject:
    """A cookie or device."""
    return "visitor", visitor_id


def customer(customer_id: str) -> Subject:
    """An account."""
    return "customer", customer_id


@dataclass(frozen=True)
class _Decision:
    """What one record comes to: granted, refused, objected, lifted or void; from when; until when."""

    what: str
    starts: tuple[dt.datetime, ...]
    end: dt.datetime | None


@dataclass(frozen=True)
class Rulebook:
    """Answers for one random case."""

    case: Case

    def verdict(self, subject: Subject, permission: str, now: dt.datetime) -> str:
        """The subject's own word on a permission: granted, refused, lifted, void, expired or unknown."""
        begun = [
            (start, decision)
            for decision in self._decisions(subject, permission)
            for start in decision.starts
            if start <= now
        ]
        if not begun:
            return "unknown"
        if self.objects(subject, permission, now):
            return "refused"
        latest = max(start for start, _ in begun)
        governing = [decision for start, decision in begun if start == latest]
        for sternest in ("refused", "objected", "void", "lifted"):
            if any(decision.what == sternest for decision in governing):
                return "refused" if sternest == "objected" else sternest
        if any(decision.end is not None and now >= decision.end for decision in governing):
            return "expired"
        return "granted"

    def objects(self, subject: Subject, permission: str, now: dt.datetime) -> bool:
        """Whether an objection stands: raised, and no lift since."""
        decisions = list(self._decisions(subject, permission))
        raised = [start for decision in decisions if decision.what == "objected" for start in decision.starts]
        lifted = [start for decision in decisions if decision.what == "lifted" for start in decision.starts]
        return any(
            objection <= now and not any(objection < lift <= now for lift in lifted) for objection in raised
        )

    def objected(self, subject: Subject, now: dt.datetime) -> bool:
        """An objection to one source is an objection to both."""
        return any(self.objects(subject, permission, now) for permission in ("online", "crm"))

    def minor(self, subject: Subject, now: dt.datetime) -> bool:
        """A minor without parental consent: there is a record on it, and it neither consents nor lifts.

        By the time of the question there may be a record that says that the subject was a child all along.
        """
        verdict = self.verdict(subject, "parental", now)
        if verdict == "unknown":
            return self.child_before_the_first_record(subject)
        return verdict not in ("granted", "lifted")

    def child_before_the_first_record(self, subject: Subject) -> bool:
        """Whether something was said on parents by the time of the question, and first no evidenced lift."""
        starts = {start for decision in self._decisions(subject, "parental") for start in decision.starts}
        begun = [start for start in starts if start <= self.case.at]
        return bool(begun) and self.verdict(subject, "parental", min(begun)) != "lifted"

    def permitted(self, subject: Subject, now: dt.datetime) -> bool:
        """A visitor permits online data, a customer CRM data: by its own grant only."""
        permission = "online" if subject[0] == "visitor" else "crm"
        return (
            self.verdict(subject, permission, now) == "granted"
            and not self.objected(subject, now)
            and not self.minor(subject, now)
        )

    def purpose(self, subject: Subject, purpose: str, now: dt.datetime, *, required: bool) -> bool:
        """A separated purpose needs a grant; another only no record to the contrary."""
        verdict = self.verdict(subject, purpose, now)
        return verdict == "granted" or (verdict == "unknown" and not required)

    def learnable(self, subject: Subject, now: dt.datetime, *, model_purpose: bool) -> bool:
        """Permitted, and contributing to models not ruled out."""
        return self.permitted(subject, now) and self.purpose(subject, "model", now, required=model_purpose)

    def joinable(self, visitor: Subject, customer: Subject, now: dt.datetime) -> bool:
        """Both permit their own, and neither refuses the other's."""
        return (
            self.permitted(visitor, now)
            and self.permitted(customer, now)
            and self.verdict(visitor, "crm", now) != "refused"
            and self.verdict(customer, "online", now) != "refused"
        )

    def fusible(self, visitor: Subject, customer: Subject, now: dt.datetime, *, required: bool) -> bool:
        """Joining is ruled out by neither and, where it must be asked for, granted by one of them."""
        verdicts = {self.verdict(subject, "fusion", now) for subject in (visitor, customer)}
        return verdicts <= {"unknown", "granted"} and (not required or "granted" in verdicts)

    def customer_of(self, visitor_id: str) -> str | None:
        """With whom a device's link holds: nobody else was seen on it, and all was permitted ever since."""
        at, known_at = self.case.at, self.case.known_at
        seen = [
            (link.customer_id, link.linked_at)
            for link in self.case.links
            if link.visitor_id == visitor_id
            and link.linked_at is not None
            and link.linked_at <= at
            and (known_at is None or link.linked_at <= known_at)
        ]
        for customer_id, linked_at in seen:
            alone = all(other == customer_id for other, _ in seen)
            lawful = all(
                self.joinable(visitor(visitor_id), customer(customer_id), instant)
                for instant in instants_between(linked_at, at)
            )
            if alone and lawful:
                return customer_id
        return None

    def conflicts(self) -> list[str]:
        """Record ids that stand for more than one content, whenever that was learnt."""
        return sorted(
            {
                one.record_id
                for one in self.case.records
                for other in self.case.records
                if one.record_id == other.record_id and _content(one) != _content(other)
            }
        )

    def _decisions(self, subject: Subject, permission: str) -> Iterator[_Decision]:
        known_at = self.case.known_at
        visible = [
            record for record in self.case.records if known_at is None or record.recorded_at <= known_at
        ]
        for record in visible:
            if (record.subject_kind, record.subject_id, record.permission) != (*subject, permission):
                continue
            namesakes = [other for other in visible if other.record_id == record.record_id]
            learnt = min(other.recorded_at for other in namesakes)
            conflicting = any(_content(other) != _content(record) for other in namesakes)
            what = _what(record, learnt, conflicting=conflicting)
            refusing = what in ("refused", "objected")
            starts = (record.valid_from, min(record.valid_from, learnt)) if refusing else (record.valid_from,)
            yield _Decision(what, starts, record.valid_to if what == "granted" else None)


def _what(record: ConsentRecord, learnt: dt.datetime, *, conflicting: bool) -> str:
    if record.state == "objected":
        return "objected"
    if conflicting or record.state in _NO:
        return "refused"
    if record.state == "lifted" and not (record.evidence or "").strip():
        return "void"
    if record.valid_from - learnt > _SKEW:
        return "void"
    return record.state


def _content(record: ConsentRecord) -> tuple[object, ...]:
    return tuple(
        getattr(record, field.name) for field in fields(ConsentRecord) if field.name != "recorded_at"
    )
