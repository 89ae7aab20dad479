"""What all readers of consent signals share: from a payload that nobody vouches for to consent records.

A reader is a pure function from one payload to decisions. It raises `SignalError` on what it cannot read.
Around it stands what no reader may get wrong: a payload that cannot be read denies whatever signals of its
kind decide, a grant takes effect when it was received, a grant that is dated ahead or has ended is none, and
what was received is kept as evidence.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from consentier.consent.records import ConsentRecord, SubjectKind, microseconds
from consentier.errors import SignalError

__all__ = [
    "CLOCK_SKEW",
    "MAX_CHARACTERS",
    "MAX_DEPTH",
    "MAX_EVIDENCE",
    "UNEXPECTED",
    "Decision",
    "Signal",
    "SignalContext",
    "SignalSettings",
    "records_from",
]

CLOCK_SKEW = dt.timedelta(minutes=5)
"""How far a sender's clock may run ahead of ours. The ledger allows the same."""

MAX_CHARACTERS = 262_144
"""A longer payload is not read."""

MAX_DEPTH = 32
"""JSON that is nested deeper is not read."""

MAX_EVIDENCE = 16_384
"""Characters of the payload that each record keeps; of JSON that cannot be read, none.

The digest in the evidence is always of the whole.
"""

UNEXPECTED = "the reader failed with"
"""How the reason begins when a reader failed otherwise than by `SignalError`: a defect, if a harmless one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SignalSettings:
    """What the shop says about signals of any kind.

    Attributes
    ----------
    jurisdiction
        Whose law the signals were collected under, such as ``DE``. It goes into the records, where it selects
        how long a grant lasts.
    policy_version
        Version of the notice that was shown. It goes into the records.
    """

    jurisdiction: str | None = None
    policy_version: str | None = None

    def __post_init__(self) -> None:
        for name in ("jurisdiction", "policy_version"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise TypeError(f"{name} must be a non-empty string or None, not {value!r}")


_Settings = TypeVar("_Settings", bound=SignalSettings)


@dataclasses.dataclass(frozen=True, slots=True)
class SignalContext(Generic[_Settings]):
    """What a reader is told besides the payload."""

    subject_id: str
    subject_kind: SubjectKind
    received_at: dt.datetime
    settings: _Settings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a signal says on one permission.

    Attributes
    ----------
    permission, state
        As in `ConsentRecord`.
    reason
        Why, in words, where the payload does not speak for itself. It stands in the evidence.
    at
        The instant that the signal states for the decision, if it states one *to the second or better*. A
        date without a time is none: a refusal that is dated to the start of its day would lose against a
        grant given earlier that day.
    at_is_proven
        Whether a grant may take effect at `at` although that lies before its receipt. True only where the
        source keeps evidence of the instant and the shop's settings say that it may be relied on; otherwise
        the grant takes effect when it is received. (A refusal always takes effect at `at`.)
    until
        When the signal says that the decision ends (exclusive). None: it says nothing.
    double_opt_in_at, basis
        As in `ConsentRecord`.
    """

    permission: str
    state: str
    reason: str | None = None
    at: dt.datetime | None = None
    at_is_proven: bool = False
    until: dt.datetime | None = None
    double_opt_in_at: dt.datetime | None = None
    basis: str | None = None


def _whole(payload: Any) -> Any:
    return payload


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Signal(Generic[_Settings]):
    """One kind of signal: how to read it.

    Attributes
    ----------
    kind
        Its name in `read_signal`, and `collected_by` of its records.
    settings
        Class of its settings. It validates them: ValueError or TypeError.
    decides
        Under given settings, the permissions that signals of the kind decide. Each is denied when the payload
        cannot be read, and no other may be granted.
    read
        The reader. A structured payload comes to it as plain JSON values (dict, list, str, int, float, bool,
        None) of limited size and depth, without duplicate keys; any other as str. It raises `SignalError` on
        what it cannot read, and nothing else.
    structured
        Whether the payload is JSON (as text, or as the object that it was parsed to).
    relevant
        Picks what the signal consists of from a payload that also holds other things, such as all headers of
        a request. Only this is read, and kept as evidence. It gets the parsed value if the payload is
        structured, else the payload as it came. It may raise `SignalError`.
    only_lowers
        Whether signals of the kind can only refuse. They then grant nothing, whatever the reader says.
    """

    kind: str
    settings: type[_Settings]
    decides: Callable[[_Settings], frozenset[str]]
    read: Callable[[Any, SignalContext[_Settings]], Iterable[Decision]]
    structured: bool
    relevant: Callable[[Any], Any] = _whole
    only_lowers: bool = False


def records_from(
    signal: Signal[_Settings], payload: object, context: SignalContext[_Settings]
) -> list[ConsentRecord]:
    """Read a payload. One that cannot be read denies all that its kind decides. Never raises for a payload.

    Cost: linear in the payload, which is cut off at `MAX_CHARACTERS`.
    """
    raw = _rough_text(payload)
    kept = 0 if signal.structured else MAX_EVIDENCE  # which part of an event is the consent, nobody knows yet
    try:
        content, raw = _content(payload, signal)
        kept = MAX_EVIDENCE
        decisions = [_in_time(decision, context.received_at) for decision in signal.read(content, context)]
        may_grant = frozenset[str]() if signal.only_lowers else signal.decides(context.settings)
        _require_permitted(decisions, may_grant)
        return _records(signal, context, raw, kept, decisions)
    except SignalError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - whatever a payload does to a reader, it must end in a denial
        reason = f"{UNEXPECTED} {type(error).__name__}"
    denials = [
        Decision(permission=permission, state="denied", reason=f"refused: {reason}")
        for permission in sorted(signal.decides(context.settings))
    ]
    return _records(signal, context, raw, kept, denials)


def _require_permitted(decisions: Sequence[Decision], may_grant: frozenset[str]) -> None:
    """No signal grants what signals of its kind may not, and none lifts an objection."""
    for decision in decisions:
        if decision.state == "lifted" or (
            decision.state == "granted" and decision.permission not in may_grant
        ):
            raise SignalError(f"a signal of this kind may not say {decision.permission} {decision.state}")


# Time


def _in_time(decision: Decision, received_at: dt.datetime) -> Decision:
    """Date a decision: grants not before their receipt (unless proven), refusals not after it."""
    at = received_at if decision.at is None else _in_utc(decision.at)
    if decision.state != "granted":
        # An end that a refusal names is not kept: whether it ends is for a grant to say.
        return dataclasses.replace(decision, at=min(at, received_at), until=None)
    if at - received_at > CLOCK_SKEW:
        return _refused(decision, received_at, f"dated ahead, to {at.isoformat()}")
    if not decision.at_is_proven or at > received_at:
        at = received_at
    until = None if decision.until is None else _in_utc(decision.until)
    if until is not None and until <= received_at:
        return _refused(decision, received_at, f"ended at {until.isoformat()}")
    return dataclasses.replace(decision, at=at, until=until)


def _in_utc(instant: dt.datetime) -> dt.datetime:
    try:
        microseconds(instant)
        return instant.astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise SignalError(f"a time that cannot be used: {error}") from error


def _refused(grant: Decision, received_at: dt.datetime, reason: str) -> Decision:
    return Decision(permission=grant.permission, state="denied", reason=reason, at=received_at)


# Records


def _records(
    signal: Signal[_Settings],
    context: SignalContext[_Settings],
    raw: str,
    kept: int,
    decisions: Sequence[Decision],
) -> list[ConsentRecord]:
    """The records of some decisions, with the first characters of the payload, so many, as evidence."""
    digest = hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()
    numbers: dict[str, int] = {}
    records = []
    for decision in decisions:
        number = numbers[decision.permission] = numbers.get(decision.permission, 0) + 1
        records.append(
            ConsentRecord(
                record_id=_record_id(signal.kind, context, decision.permission, number, digest),
                subject_id=context.subject_id,
                subject_kind=context.subject_kind,
                permission=decision.permission,
                state=decision.state,
                valid_from=decision.at or context.received_at,
                valid_to=decision.until,
                recorded_at=context.received_at,
                basis=decision.basis or ("consent" if decision.state == "granted" else None),
                jurisdiction=context.settings.jurisdiction,
                double_opt_in_at=decision.double_opt_in_at,
                collected_by=signal.kind,
                policy_version=context.settings.policy_version,
                evidence=_evidence(signal.kind, decision.reason, raw, kept, digest),
            )
        )
    return records


def _record_id(
    kind: str, context: SignalContext[_Settings], permission: str, number: int, digest: str
) -> str:
    """The same for the same signal of the same subject at the same instant, however often it arrives."""
    received = context.received_at.astimezone(dt.UTC).isoformat()
    named = [kind, context.subject_kind, context.subject_id, permission, number, received, digest]
    return f"{kind}:{hashlib.sha256(json.dumps(named).encode('ascii')).hexdigest()[:32]}"


def _evidence(kind: str, reason: str | None, raw: str, kept: int, digest: str) -> str:
    """The payload and what was made of it, as JSON."""
    evidence: dict[str, object] = {"signal": kind}
    if reason is not None:
        evidence["reason"] = reason
    evidence["raw"] = raw[:kept]
    if len(raw) > kept:
        evidence["raw_characters"] = len(raw)
    evidence["raw_sha256"] = digest
    return json.dumps(evidence, ensure_ascii=True)


# Payloads


def _content(payload: object, signal: Signal[_Settings]) -> tuple[Any, str]:
    """What the reader reads, and the same as text for the evidence."""
    if not signal.structured:
        text = _text(signal.relevant(payload))
        return text, text
    if isinstance(payload, str | bytes | bytearray):
        text = _text(payload)
    else:
        text = _text(_json(dict(payload) if isinstance(payload, Mapping) else payload))
    content = signal.relevant(_parsed(text))
    return content, _json(content)


def _text(payload: object) -> str:
    if isinstance(payload, bytes | bytearray):
        try:
            payload = payload.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SignalError("the payload is no UTF-8 text") from error
    if not isinstance(payload, str):
        raise SignalError(f"the payload is a {type(payload).__name__}, no text")
    if len(payload) > MAX_CHARACTERS:
        raise SignalError(f"{len(payload)} characters: longer than the {MAX_CHARACTERS} that are read")
    return payload


def _json(value: object) -> str:
    """JSON text of plain values; the same for equal ones."""
    try:
        return json.dumps(value, allow_nan=False, sort_keys=True, default=_plain)
    except RecursionError as error:
        raise SignalError("the payload is nested too deeply") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise SignalError("the payload holds what JSON cannot hold") from error


def _plain(value: object) -> str:
    """JSON for what database rows hold besides plain values."""
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON")


def _parsed(text: str) -> Any:
    """Parse strict JSON: no duplicate keys, no NaN or infinity, limited depth."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_constant)
    except RecursionError as error:
        raise SignalError("the payload is nested too deeply") from error
    except ValueError as error:
        raise SignalError("the payload is no JSON") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return value
    raise SignalError(f"the payload is nested deeper than {MAX_DEPTH} levels")


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise SignalError("the payload names a key twice in one object")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise SignalError(f"the payload holds the number {text[:40]}, which is too large")
    return value


def _no_constant(text: str) -> float:
    raise SignalError(f"the payload holds {text}")


def _rough_text(payload: object) -> str:
    """What evidence is kept of a payload of which no text could be made."""
    if isinstance(payload, str):
        return payload
    if isinstance(payload, bytes | bytearray):
        return payload.decode("utf-8", "backslashreplace")
    return f"<{type(payload).__name__}>"
