"""Replaying a decision: from its audit line and the inputs, the same answer, bit for bit.

The line holds no input. Inputs come from whoever still has them: a caller, or the shop's profile stores, out
of which a subject's data go when they are purged. What comes is compared with the line's keyed digests first;
an answer is only given again from exactly what was read then.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consentier.consent import Ledger, Resolution, Source, State, Tier
from consentier.consent.keyring import Keyring
from consentier.consent.records import SubjectKind
from consentier.errors import AuditError, DataError
from consentier.serving.answer import Answer
from consentier.serving.audit import AuditLine, Trace, answer_text, filter_text, subject_text
from consentier.serving.patience import StoreUnread
from consentier.serving.recommender import Recommender
from consentier.serving.request import Event, Request, events_from_json
from consentier.serving.trending import TrendingSnapshot
from consentier.serving.view import PermittedView, Profiles, view_of

__all__ = ["Outcome", "Replay", "ReplayInputs", "replay"]


class Outcome(enum.StrEnum):
    """How a replay ended."""

    REPRODUCED = "reproduced"
    NOTHING_KEPT = "nothing kept"
    KEY_GONE = "key gone"
    POLICY_CHANGED = "policy changed"
    BUNDLE_CHANGED = "bundle changed"
    INPUTS_ERASED = "inputs erased"
    INPUTS_DIFFER = "inputs differ"
    ANSWER_DIFFERS = "answer differs"


@dataclasses.dataclass(frozen=True, slots=True)
class Replay:
    """What came of it.

    Attributes
    ----------
    outcome
        How it ended.
    detail
        What that is about, in one sentence.
    answer
        The answer, where it was reproduced.
    """

    outcome: Outcome
    detail: str
    answer: Answer | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ReplayInputs:
    """What was asked, as far as a line does not say it.

    Attributes
    ----------
    request
        Session, histories, attributes, ids and filters. All else in it is ignored: the line says it.
    devices
        The visitors whose data a fused answer read together; the request's own visitor where it is empty.
    trending
        What was trending, where the line names a snapshot.
    """

    request: Request
    devices: tuple[str, ...] = ()
    trending: TrendingSnapshot | None = None

    @classmethod
    def load(cls, path: str | Path) -> ReplayInputs:
        """Read inputs from a JSON file.

        An object with any of ``session``, ``online_history``, ``crm_history`` (lists of item ids, or of
        objects with ``item_id``, ``ts``, ``event_type``, ``quantity``), ``attributes``, ``visitor_id``,
        ``customer_id``, ``exclude``, ``allow``, ``where``, ``devices`` and ``trending`` (an object with the
        ``items`` and the ``share`` of a snapshot).

        Raises
        ------
        AuditError
            If the file cannot be read, or holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text("utf-8"))
            return cls._from_fields(fields)
        except OSError as error:
            raise AuditError(f"inputs {path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise AuditError(f"inputs {path}: are not what a replay takes: {error}") from error

    @classmethod
    def _from_fields(cls, fields: object) -> ReplayInputs:
        if not isinstance(fields, dict):
            raise TypeError("they are no JSON object")
        known = (*_INPUTS, "devices", "trending")
        if unknown := set(fields) - {*known}:
            raise ValueError(f"unknown field {min(unknown)!r}; known are {', '.join(known)}")
        trending = _snapshot(fields.pop("trending", None))
        devices = fields.pop("devices", [])
        if not isinstance(devices, list) or not all(isinstance(device, str) for device in devices):
            raise TypeError("devices must be a list of visitor ids")
        for name in _HISTORIES:
            if fields.get(name) is not None:
                fields[name] = events_from_json(name, fields[name])
        return cls(Request(**fields), tuple(devices), trending)


_HISTORIES = ("session", "online_history", "crm_history")
_INPUTS = (*_HISTORIES, "attributes", "visitor_id", "customer_id", "exclude", "allow", "where")


def replay(
    line: AuditLine,
    inputs: ReplayInputs,
    recommender: Recommender,
    keyring: Keyring,
    *,
    profiles: Profiles | None = None,
    ledger: Ledger | None = None,
) -> Replay:
    """Give a line's answer again, and compare.

    Parameters
    ----------
    line
        What was recorded.
    inputs
        What was asked then.
    recommender
        The bundles, policy, catalogue and business rules of then. Its ledger is not asked: the line says how
        the person stood.
    keyring
        The keys under which the line was written.
    profiles
        Stores that may still hold histories which `inputs` does not bring; what they got after the line's
        instant is left out.
    ledger
        The ledger that was asked then. As of the line's position it says since when the permissions of the
        ids in `inputs` had been held: what is older was not read, and is left out. Without a ledger nothing
        is: give what was read.

    Returns
    -------
    Replay
        `Outcome.REPRODUCED` with the answer, or what stands in the way.

    Raises
    ------
    DataError
        If a store of `profiles` cannot be read, so that nothing is known of what it still holds; or if the
        ledger has not come to the line's position.

    Notes
    -----
    One answer. Catalogue and business rules are no part of a line: where everything that is part of it agrees
    and the answer does not, these (or the release of this program) are others.
    """
    trace = line.trace
    if trace is None:
        return Replay(
            Outcome.NOTHING_KEPT,
            "nobody's permission covered a trace of this decision: the line holds nothing to compare with",
        )
    key_id = trace.answer.partition(":")[0]
    if keyring.digest_with(key_id, "answer", "") is None:
        return Replay(Outcome.KEY_GONE, f"the keyring does not hold key {key_id}: nothing can be compared")
    keys = _OneKey(keyring, key_id)
    engine = dataclasses.replace(recommender, keyring=keys, audit=None, profiles=None)
    if problem := _policy_problem(line, engine):
        return Replay(Outcome.POLICY_CHANGED, problem)
    if problem := _bundle_problem(line, engine):
        return Replay(Outcome.BUNDLE_CHANGED, problem)
    request = _request(line, trace, inputs.request)
    then = _as_then(ledger, line)
    since = _since(then, line, request)
    devices = _devices(then, line, request, inputs.devices, since)
    stores = None if profiles is None else _as_of(profiles, line.at)
    sources = frozenset(Source(source) for source in line.sources)
    try:
        view = view_of(
            request, sources, stores, devices, online_since=since.online_since, crm_since=since.crm_since
        )
    except StoreUnread as unread:
        raise DataError(f"the inputs cannot be looked up: {unread}; try again, or give them") from unread
    if found := _input_problem(line, trace, request, view, engine, keys):
        return found
    if trace.trending is not None and (inputs.trending is None or inputs.trending.digest != trace.trending):
        return Replay(
            Outcome.INPUTS_DIFFER, f"what was trending then (snapshot {trace.trending}) is not what is given"
        )
    answer = _answered(line, _by_chance(engine, trace, inputs), request, view)
    if keys.digest("answer", answer_text(answer)) != trace.answer:
        return Replay(
            Outcome.ANSWER_DIFFERS,
            "policy, bundle and inputs are those of the line, the answer is not: the catalogue, or the "
            "release of this program, is another one",
        )
    return Replay(Outcome.REPRODUCED, "the same answer, bit for bit", answer)


def _as_then(ledger: Ledger | None, line: AuditLine) -> Ledger | None:
    """The ledger as it was when the line was written; None where none is given, or none was asked."""
    if ledger is None or line.ledger_position is None:
        return None
    try:
        return ledger.as_of(line.ledger_position)
    except ValueError as error:
        raise DataError(f"the line was written with another ledger: {error}") from error


def _since(then: Ledger | None, line: AuditLine, request: Request) -> Resolution:
    """What the ledger said then of the ids of the request, as far as it tells how old data might be."""
    if then is None:
        return Resolution()
    return then.resolve(visitor_id=request.visitor_id, customer_id=request.customer_id, at=line.at)


def _devices(
    then: Ledger | None, line: AuditLine, request: Request, given: Sequence[str], since: Resolution
) -> dict[str, int | None]:
    """The visitors whose data were read together, each with the time since when."""
    devices: dict[str, int | None] = dict.fromkeys(sorted(given))
    if not devices:
        return {} if request.visitor_id is None else {request.visitor_id: since.online_since}
    if then is not None:
        for device in devices:
            told = then.resolve(visitor_id=device, customer_id=request.customer_id, at=line.at)
            devices[device] = told.online_since
    return devices


class _OneKey:
    """A keyring's digests under the one key that a line was written with."""

    def __init__(self, keyring: Keyring, key_id: str) -> None:
        self._keyring, self._key_id = keyring, key_id

    def digest(self, domain: str, value: str) -> str:
        digest = self._keyring.digest_with(self._key_id, domain, value)
        if digest is None:
            raise AuditError(f"the keyring does not hold key {self._key_id} any more")
        return digest


class _Recorded:
    """A ledger that says of everybody what routes to a recorded state."""

    answers_within = 0.0

    def __init__(self, state: State) -> None:
        self._resolution = Resolution(
            online=state in (State.ONLINE, State.BOTH_UNLINKED, State.BOTH_LINKED),
            crm=state in (State.CRM, State.BOTH_UNLINKED, State.BOTH_LINKED),
            linked=state is State.BOTH_LINKED,
            objected=state is State.OBJECTED,
            granted_purposes=frozenset({"ads", "fusion"}),
        )

    def resolve(
        self,
        *,
        visitor_id: str | None = None,
        customer_id: str | None = None,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
    ) -> Resolution:
        return self._resolution

    def linked_since(
        self,
        customer_id: str,
        *,
        at: dt.datetime,
        known_at: dt.datetime | None = None,
        fusion_purpose: bool = False,
    ) -> Mapping[str, int]:
        return {}


class _Until(Mapping[str, Sequence[Event]]):
    """A store's histories as they were at an instant."""

    def __init__(self, histories: Mapping[str, Sequence[Event]], at: dt.datetime) -> None:
        self._histories, self._at = histories, at

    def __getitem__(self, subject: str) -> tuple[Event, ...]:
        return tuple(event for event in self._histories[subject] if event.ts is None or event.ts <= self._at)

    def __iter__(self) -> Iterator[str]:
        return iter(self._histories)

    def __len__(self) -> int:
        return len(self._histories)


def _as_of(profiles: Profiles, at: dt.datetime) -> Profiles:
    return dataclasses.replace(profiles, online=_Until(profiles.online, at), crm=_Until(profiles.crm, at))


def _by_chance(engine: Recommender, trace: Trace, inputs: ReplayInputs) -> Recommender:
    """The recommender with what was trending then, and with the seed of what was drawn by chance."""
    seed = trace.explored
    return dataclasses.replace(
        engine,
        trending=None if trace.trending is None else inputs.trending,
        exploration_seed=None if seed is None else lambda: seed,
    )


def _policy_problem(line: AuditLine, engine: Recommender) -> str:
    version = engine.policy.version
    if version != line.policy_version:
        return f"the line was written under policy {line.policy_version!r}; this is {version!r}"
    tiers = engine.policy.tiers(line.state, line.side)
    if line.tier is not Tier.NONE and line.tier not in tiers:
        return f"policy {version!r} does not let the {line.tier} tier answer there: its matrix was changed"
    passed_over = tiers[: tiers.index(line.tier)] if line.tier is not Tier.NONE else tiers
    for tier in passed_over:
        if not any(reason.startswith(f"{tier}: ") for reason in line.reasons):
            return f"policy {version!r} asks the {tier} tier first, the line did not: its matrix was changed"
    return ""


def _bundle_problem(line: AuditLine, engine: Recommender) -> str:
    scorer = engine.scorers.get(line.tier)
    here = None if scorer is None else scorer.digest
    if line.bundle_digest != here:
        missing = engine.problems.get(line.tier, "there is none")
        return f"the {line.tier} bundle was {line.bundle_digest}; here is {here or f'no such: {missing}'}"
    fill = None if engine.popular is None else engine.popular.digest
    if line.fill_digest is not None and line.fill_digest != fill:
        missing = engine.problems.get(Tier.POPULAR, "there is none")
        return f"the popular bundle was {line.fill_digest}; here is {fill or f'no such: {missing}'}"
    stopped = engine.stopped_bundles(line.at)
    asked = {line.tier: line.bundle_digest, Tier.POPULAR: line.fill_digest}
    told = [(tier, stopped.get(digest)) for tier, digest in asked.items() if digest is not None]
    return "; ".join(f"the {tier} bundle: {why}" for tier, why in told if why)


def _request(line: AuditLine, trace: Trace, given: Request) -> Request:
    """The request of then: what the line says, and the inputs that are given."""
    return dataclasses.replace(
        given,
        permission=None,
        linked=trace.vouched,
        channel=line.channel,
        placement="product" if trace.product_page else None,
        at=line.at,
        n=trace.n,
    )


def _input_problem(
    line: AuditLine,
    trace: Trace,
    request: Request,
    view: PermittedView,
    engine: Recommender,
    keys: _OneKey,
) -> Replay | None:
    """What is not as it was, if anything: erased, where there is nothing left of it."""
    digests = engine.input_digests(view, line.state)
    wrong = [name for name, digest in trace.inputs.items() if digests.get(name) != digest]
    erased = [name for name in wrong if not _part(view, name)]
    if erased:
        return Replay(Outcome.INPUTS_ERASED, f"inputs erased: there is nothing left of {', '.join(erased)}")
    wrong += _wrong_ids(trace, request, keys)
    wrong += [
        name
        for name, recorded, now in (
            ("exclude", trace.exclude, filter_text(request.exclude) if request.exclude else None),
            ("allow", trace.allow, None if request.allow is None else filter_text(request.allow)),
            ("filter", trace.filter, None if request.where is None else str(request.where)),
        )
        if recorded != (None if now is None else keys.digest(name, now))
    ]
    page = [event for event in request.session if isinstance(event, Event)][-1:]
    if trace.page is not None and [trace.page] != [keys.digest("page", event.item_id) for event in page]:
        wrong.append("the item of the product page (the session's last)")
    if wrong:
        return Replay(Outcome.INPUTS_DIFFER, f"not what was read then: {', '.join(wrong)}")
    return None


def _wrong_ids(trace: Trace, request: Request, keys: _OneKey) -> list[str]:
    """Ids that are given, and are not those of the line."""
    ids: dict[SubjectKind, str | None] = {"visitor": request.visitor_id, "customer": request.customer_id}
    return [
        f"{kind}_id"
        for kind, subject_id in ids.items()
        if subject_id is not None
        and kind in trace.subjects
        and keys.digest("subject", subject_text(kind, subject_id)) != trace.subjects[kind]
    ]


def _part(view: PermittedView, name: str) -> object:
    parts = {"session": view.session, "online": view.online_history, "crm": view.crm_history}
    return view.attributes if name == "attributes" else parts.get(name)


def _answered(line: AuditLine, engine: Recommender, request: Request, view: PermittedView) -> Answer:
    """The recommender's own answer, with the tier of then alone: those before it were passed over."""
    scorer = engine.scorers.get(line.tier)
    alone = dataclasses.replace(
        engine,
        ledger=_Recorded(line.state),
        scorers={} if scorer is None else {line.tier: scorer},
        popular=engine.popular if line.tier is Tier.POPULAR or line.fill_digest is not None else None,
        clock=lambda: line.at,
    )
    return alone.recommend(
        dataclasses.replace(
            request,
            session=request.session if Source.SESSION in view.sources or request.placement else (),
            online_history=view.online_history,
            crm_history=view.crm_history,
            attributes=view.attributes,
        )
    )


def _listed(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name} must be a list")
    return value


def _snapshot(fields: object) -> TrendingSnapshot | None:
    if fields is None:
        return None
    if not isinstance(fields, dict) or set(fields) != {"items", "share"}:
        raise TypeError("trending must be an object with items and share")
    return TrendingSnapshot(tuple(_listed("trending: items", fields["items"])), fields["share"])
