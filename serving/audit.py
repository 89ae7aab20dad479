"""The audit log: one line per decision, in files that can be thrown away whole.

A line says who answered and why, by which policy and model, as of which state of the ledger, and what was
read. Persons, inputs and answers stand in it as keyed digests only: who holds the key and the inputs can
compare, nobody else learns anything.

A line names only those whose permission covers being named: the visitor where online data may be used, the
customer where CRM data was read (or an answer on the CRM side was chosen by CRM permission), and both only
where they are lawfully linked, for else the line would be the link that may not be kept. Where this leaves
nobody, as at the first level, the line carries no identifier of a person or session at all: no digest of any
kind, the hour instead of the instant, the ledger's position in full thousands. Such lines stand in files of
their own, so that their neighbours do not tell the instant either.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from consentier.consent import Channel, Side, Source, State, Tier
from consentier.consent.keyring import Keyring
from consentier.consent.records import SubjectKind
from consentier.errors import AuditError
from consentier.serving.answer import Answer
from consentier.serving.line_files import expire_segments, line_of, retention_of, segments_of
from consentier.serving.request import Request

__all__ = [
    "AuditLine",
    "JsonLinesAudit",
    "Trace",
    "answer_text",
    "audit_lines",
    "expire",
    "filter_text",
    "nameable",
    "subject_text",
]

_FORMAT = 1
_COARSE_POSITIONS = 1000
_SEGMENT = re.compile(r"\d{4}-\d\d-\d\d_until_(\d{4}-\d\d-\d\d)(?:_anonymous)?\.jsonl")

_ONLINE_STATES = frozenset({State.ONLINE, State.BOTH_UNLINKED, State.BOTH_LINKED})
_CRM_STATES = frozenset({State.CRM, State.BOTH_UNLINKED, State.BOTH_LINKED})


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """What a line holds of a person who may be named, all of it under a key.

    Attributes
    ----------
    subjects
        Keyed digests of the ids, by kind of subject; empty where the request named nobody.
    inputs
        Keyed digests of what was read, by source.
    answer
        Keyed digest of the answer's tier, items and scores.
    exclude, allow, filter, page
        Keyed digests of what the request filtered by, and of the item that the page showed; None without.
    n, product_page, vouched
        The request's number of items, whether it came from a product page, and whether the shop vouched for a
        login.
    contact
        Channels in which the person might be contacted; None where no ledger said.
    trending, explored
        Digest of the snapshot of what was trending, and the seed of what was drawn by chance; None without.
    """

    subjects: Mapping[str, str]
    inputs: Mapping[str, str]
    answer: str
    exclude: str | None
    allow: str | None
    filter: str | None
    page: str | None
    n: int
    product_page: bool
    vouched: bool
    contact: tuple[str, ...] | None
    trending: str | None
    explored: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class AuditLine:
    """One decision.

    Attributes
    ----------
    at
        The instant that was decided for; the full hour where there is no trace.
    tier, reason, reasons, state, side, channel
        Who answered, and why; the cell of the routing matrix.
    policy_version, lifetimes_version, bundle_digest, fill_digest
        What it was decided by, and what scored and filled up.
    ledger_position
        The ledger's position; in full thousands where there is no trace; None without a ledger.
    sources
        What was read about the person.
    erase_after
        The line's file is deleted by the first `expire` from then on.
    trace
        What is held of the person; None where nobody may be named.
    where
        File and line, for messages; not part of the line.
    """

    at: dt.datetime
    tier: Tier
    reason: str
    reasons: tuple[str, ...]
    state: State
    side: Side
    channel: Channel
    policy_version: str
    lifetimes_version: str | None
    bundle_digest: str | None
    fill_digest: str | None
    ledger_position: int | None
    sources: tuple[str, ...]
    erase_after: dt.datetime
    trace: Trace | None
    where: str = dataclasses.field(default="", compare=False)

    def to_json(self) -> str:
        """The line, without its end."""
        fields: dict[str, Any] = {"format": _FORMAT}
        for name in _LINE_FIELDS:
            fields[name] = getattr(self, name)
        fields["at"], fields["erase_after"] = self.at.isoformat(), self.erase_after.isoformat()
        if self.trace is not None:
            fields["trace"] = {name: getattr(self.trace, name) for name in _TRACE_FIELDS}
        return json.dumps(fields, ensure_ascii=True, separators=(",", ":"), default=dict)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "audit line") -> AuditLine:
        """Read a line.

        Raises
        ------
        AuditError
            If it is none, or of a format that this release does not read.
        """
        return line_of(text, _FORMAT, lambda fields: cls._made(fields, where), where, "an audit line")

    @classmethod
    def _made(cls, fields: dict[str, Any], where: str) -> AuditLine:
        if set(fields) != set(_LINE_FIELDS):
            raise ValueError(f"its fields are not {', '.join(_LINE_FIELDS)}")
        return cls(**_checked_line(fields), where=where)


_LINE_FIELDS = tuple(field.name for field in dataclasses.fields(AuditLine) if field.name != "where")
_TRACE_FIELDS = tuple(field.name for field in dataclasses.fields(Trace))


class JsonLinesAudit:
    """Writes audit lines, as JSON, into one file a day. Fits `Recommender.audit`.

    Safe to use from any number of threads and processes at once: a line is one write to a file that is only
    ever appended to (on local file systems; NFS promises no such thing), and nothing is kept open.

    Parameters
    ----------
    path
        A directory; made if it is missing. Its files are readable by their owner only.
    keyring
        Keys of the digests. Give the recommender the same, for its digests of inputs.
    retention_days
        For how many days a line is kept, to the end of the last one: whole files are deleted (`expire`).
    durable
        Wait for the disk after each line. Otherwise a power failure loses the last seconds.

    Raises
    ------
    TypeError, ValueError
        If `retention_days` is not a whole number of at least 1.

    Notes
    -----
    Below 0.1 ms and 1.5 kB a line on a local disk; an ``fsync`` (here 4 ms) more with `durable`.
    """

    def __init__(
        self, path: str | Path, keyring: Keyring, *, retention_days: int = 180, durable: bool = False
    ) -> None:
        self._retention = retention_of(retention_days)
        self._path = Path(path)
        self._keyring = keyring
        self._durable = durable
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, request: Request, answer: Answer) -> None:
        """Write the line of one answer.

        Raises
        ------
        OSError
            If it cannot be written as a whole.
        """
        now = _now()
        line = self._line(request, answer, now)
        anonymous = "" if line.trace is not None else "_anonymous"
        segment = self._path / f"{now.date()}_until_{line.erase_after.date()}{anonymous}.jsonl"
        _append(segment, line.to_json().encode("ascii") + b"\n", durable=self._durable)

    def _line(self, request: Request, answer: Answer, now: dt.datetime) -> AuditLine:
        basis = answer.basis
        state, side = State(basis.state), Side(basis.side)
        named = nameable(state, side, basis.sources)
        at = now if basis.at is None else dt.datetime.fromisoformat(basis.at)
        position = basis.ledger_position
        if not named:
            at = at.replace(minute=0, second=0, microsecond=0)
            position = None if position is None else position - position % _COARSE_POSITIONS
        return AuditLine(
            at=at,
            tier=answer.tier,
            reason=basis.reason,
            reasons=basis.reasons,
            state=state,
            side=side,
            channel=Channel(request.channel),
            policy_version=basis.policy_version,
            lifetimes_version=basis.lifetimes_version,
            bundle_digest=basis.bundle_digest,
            fill_digest=basis.fill_digest,
            ledger_position=position,
            sources=basis.sources,
            erase_after=dt.datetime.combine((now + self._retention).date(), dt.time(), dt.UTC),
            trace=self._trace(request, answer, state, named) if named else None,
        )

    def _trace(self, request: Request, answer: Answer, state: State, named: frozenset[SubjectKind]) -> Trace:
        ids: dict[SubjectKind, str | None] = {"visitor": request.visitor_id, "customer": request.customer_id}
        digest = self._keyring.digest
        page = _page(request) if state in _ONLINE_STATES else None
        return Trace(
            subjects={
                kind: digest("subject", subject_text(kind, subject_id))
                for kind, subject_id in ids.items()
                if kind in named and subject_id is not None
            },
            inputs=dict(answer.basis.input_digests),
            answer=digest("answer", answer_text(answer)),
            exclude=digest("exclude", filter_text(request.exclude)) if request.exclude else None,
            allow=None if request.allow is None else digest("allow", filter_text(request.allow)),
            filter=None if request.where is None else digest("filter", str(request.where)),
            page=None if page is None else digest("page", page),
            n=request.n,
            product_page=request.placement == "product",
            vouched=request.linked,
            contact=answer.basis.contact,
            trending=answer.basis.trending_digest,
            explored=None if answer.basis.exploration is None else answer.basis.exploration.seed,
        )


def nameable(state: State, side: Side, sources: Iterable[str]) -> frozenset[SubjectKind]:
    """Whom a line may name: owners of what was read by their permission, or else of the side's own data.

    Never both but where they are lawfully linked.
    """
    read = set(sources)
    named: set[SubjectKind] = set()
    if state in _ONLINE_STATES and read & {Source.SESSION, Source.ONLINE}:
        named.add("visitor")
    if state in _CRM_STATES and Source.CRM in read:
        named.add("customer")
    if not named and side is Side.ONLINE and state in _ONLINE_STATES:
        named.add("visitor")
    if not named and side is Side.CRM and state in _CRM_STATES:
        named.add("customer")
    return frozenset(named)


def subject_text(kind: SubjectKind, subject_id: str) -> str:
    """What is digested, in the domain ``subject``, to name a subject."""
    return f"{kind}:{subject_id}"


def answer_text(answer: Answer) -> str:
    """What is digested, in the domain ``answer``: tier, items and scores to the last bit."""
    return json.dumps([answer.tier, answer.items, answer.scores], ensure_ascii=True, separators=(",", ":"))


def filter_text(items: Iterable[str]) -> str:
    """What is digested of a filter, in the domains ``exclude`` and ``allow``."""
    return json.dumps(sorted(items), ensure_ascii=True, separators=(",", ":"))


def audit_lines(path: str | Path, *, unreadable: list[str] | None = None) -> Iterator[AuditLine]:
    """All lines of an audit directory, or of one of its files, oldest file first.

    Parameters
    ----------
    path
        The directory, or one file.
    unreadable
        Gets a message for each line that cannot be read, which is then left out (a disk that was full leaves
        half a line behind). Without it such a line is an error.

    Raises
    ------
    AuditError
        If there is nothing at `path`, or (without `unreadable`) a line cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise AuditError(f"audit log {path}: there is none")
    for segment in sorted(segments_of(path, _SEGMENT)) if path.is_dir() else [path]:
        with segment.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                try:
                    yield AuditLine.from_json(text, f"{segment}:{number}")
                except AuditError as error:
                    if unreadable is None:
                        raise
                    unreadable.append(str(error))


def expire(path: str | Path, before: dt.datetime) -> int:
    """Delete the files of an audit directory whose lines are past their retention; say how many lines.

    Safe while lines are written: they go to files of the day, whose retention is yet to come.

    Raises
    ------
    AuditError
        If there is no such directory.
    """
    return expire_segments(path, _SEGMENT, before, "audit log")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _page(request: Request) -> str | None:
    """The item that a product page showed."""
    *_, last = (None, *request.session)
    return getattr(last, "item_id", None) if request.placement == "product" else None


def _append(path: Path, line: bytes, *, durable: bool) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        # Half a line, of a process that was killed or a disk that was full, must not swallow this one. If it
        # is the line of another that is just being written, an empty one follows it, which nobody reads.
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            line = b"\n" + line
        written = os.write(descriptor, line)
        if written < len(line):
            raise OSError(f"{path}: only {written} of {len(line)} bytes of an audit line were written")
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked_line(fields: dict[str, Any]) -> dict[str, Any]:
    for name in ("reason", "policy_version"):
        _expect(name, fields[name], str)
    for name in ("lifetimes_version", "bundle_digest", "fill_digest"):
        _expect(name, fields[name], str, optional=True)
    _expect("ledger_position", fields["ledger_position"], int, optional=True)
    trace = fields["trace"]
    return {
        **fields,
        "at": _moment(fields, "at"),
        "erase_after": _moment(fields, "erase_after"),
        "tier": Tier(fields["tier"]),
        "state": State(fields["state"]),
        "side": Side(fields["side"]),
        "channel": Channel(fields["channel"]),
        "reasons": _texts("reasons", fields["reasons"]),
        "sources": _texts("sources", fields["sources"]),
        "trace": None if trace is None else _checked_trace(trace),
    }


def _checked_trace(fields: object) -> Trace:
    if not isinstance(fields, dict) or set(fields) != set(_TRACE_FIELDS):
        raise ValueError(f"its trace's fields are not {', '.join(_TRACE_FIELDS)}")
    for name in ("subjects", "inputs"):
        _expect(name, fields[name], dict)
        _texts(name, list(fields[name].values()))
    for name in ("exclude", "allow", "filter", "page", "trending", "explored"):
        _expect(name, fields[name], str, optional=True)
    _expect("answer", fields["answer"], str)
    _expect("n", fields["n"], int)
    for name in ("product_page", "vouched"):
        _expect(name, fields[name], bool)
    contact = fields["contact"]
    return Trace(
        **{
            **fields,
            "subjects": MappingProxyType(fields["subjects"]),
            "inputs": MappingProxyType(fields["inputs"]),
            "contact": None if contact is None else _texts("contact", contact),
        }
    )


def _expect(name: str, value: object, kind: type, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{name} is {type(value).__name__}, not {kind.__name__}")


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{name} does not hold texts")
    return tuple(value)


def _moment(fields: Mapping[str, Any], name: str) -> dt.datetime:
    _expect(name, fields[name], str)
    moment = dt.datetime.fromisoformat(fields[name])
    if moment.tzinfo is None:
        raise ValueError(f"{name} has no time zone")
    return moment
