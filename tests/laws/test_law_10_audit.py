"""Tenth law, in what is written down: a line accounts for an answer and tells nobody's secrets.

Persons, inputs and answers stand in an audit line under a key only. Nobody is named whose permission does not
cover it, and two persons are named together only where they are lawfully linked. An answer that was given
without permission leaves a line that carries no identifier of person or session at all: it would be the same
line for anybody else. From its line and the inputs an answer can be given again, bit for bit, and from
nothing but those inputs.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from breaking import Break, assert_breaks, breaks
from engines import ITEMS, engine
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import Channel, Permission, Policy, Resolution, Side, State
from consentier.consent.keyring import Keyring
from consentier.serving import Catalogue, Event, Recommender, Request, audit
from consentier.serving import replay as replay_module
from consentier.serving.audit import AuditLine, JsonLinesAudit, audit_lines
from consentier.serving.replay import Outcome, Replay, ReplayInputs, replay

AT = dt.datetime(2026, 3, 1, 12, 34, 56, 789, tzinfo=dt.UTC)
KEYRING = Keyring.ephemeral()
BOTH = Permission.ONLINE | Permission.CRM
DEFAULT = Policy.default()
CRM_ON_SITE = dataclasses.replace(
    DEFAULT, switches=dataclasses.replace(DEFAULT.switches, crm_on_site=True, shared_device_login=False)
)


@dataclasses.dataclass(frozen=True)
class Says:
    """A ledger that says one thing of everybody."""

    resolution: Resolution
    answers_within: float = 0.0

    def resolve(self, **_asked: Any) -> Resolution:
        """That one thing."""
        return self.resolution

    def linked_since(self, _customer_id: str, **_asked: Any) -> Mapping[str, int]:
        """One other device."""
        return {"another device": 0}


@dataclasses.dataclass(frozen=True)
class Decision:
    """One request of a person whose every datum bears a mark, and how that person stands."""

    resolution: Resolution
    channel: Channel
    vouched: bool = False
    crm_on_site: bool = False
    marks: str = "marked"
    known: tuple[str, ...] = ITEMS[:3]
    """Items that lead to answers; the marked ones are unknown to all models."""

    def request(self) -> Request:
        """The request."""
        marked = [Event(f"{self.marks}-{name}", ts=AT) for name in ("session", "online", "crm")]
        session, online, crm = ([Event(item), event] for item, event in zip(self.known, marked, strict=True))
        return Request(
            session=session,
            online_history=online,
            crm_history=crm,
            attributes={f"{self.marks}-name": f"{self.marks}-value", "region": "north"},
            visitor_id=f"{self.marks}-visitor",
            customer_id=f"{self.marks}-customer",
            exclude=(f"{self.marks}-excluded",),
            allow=(*ITEMS, f"{self.marks}-allowed"),
            placement="product",
            linked=self.vouched,
            channel=self.channel,
            at=AT,
        )

    def marks_in_clear(self) -> Iterator[str]:
        """Every mark."""
        for name in (
            "session",
            "online",
            "crm",
            "name",
            "value",
            "visitor",
            "customer",
            "excluded",
            "allowed",
        ):
            yield f"{self.marks}-{name}"


def written(decision: Decision) -> tuple[AuditLine, str, str]:
    """The line that a decision leaves; its text and the name of its file."""
    with tempfile.TemporaryDirectory() as folder:
        asked = dataclasses.replace(
            engine(),
            ledger=Says(decision.resolution),
            policy=CRM_ON_SITE if decision.crm_on_site else DEFAULT,
            keyring=KEYRING,
            audit=JsonLinesAudit(folder, KEYRING),
        )
        asked.recommend(decision.request())
        (file,) = Path(folder).iterdir()
        (line,) = audit_lines(file)
        return line, file.read_text("ascii"), file.name


def hashes_of(text: str) -> Iterator[str]:
    """The text as it is, and what would be as good as the text to anybody who can guess."""
    yield text
    for encoded in (text.encode(), f"visitor:{text}".encode(), f"customer:{text}".encode()):
        for name in ("md5", "sha1", "sha256", "blake2b"):
            yield hashlib.new(name, encoded).hexdigest()
        yield base64.b64encode(encoded).decode().rstrip("=")


def check_lines_tell_no_secret(decision: Decision) -> None:
    """No mark and no plain hash of one; and under a key only what the permissions cover."""
    line, text, file = written(decision)
    for mark in decision.marks_in_clear():
        for secret in hashes_of(mark):
            assert secret not in text
    found = decision.resolution
    objects = found.objected or found.minor
    barred = objects or (decision.channel is Channel.ADS and "ads" in found.denied_purposes)
    online, crm = (held and not barred for held in (found.online, found.crm))
    named = {
        kind
        for kind in ("visitor", "customer")
        if KEYRING.digest("subject", f"{kind}:{decision.marks}-{kind}") in text
    }
    assert named <= {kind for kind, held in (("visitor", online), ("customer", crm)) if held}
    assert len(named) < 2 or found.linked
    # That a customer visits the shop is online data, what a visitor does is none of the CRM side's.
    assert "customer" not in named or line.side is Side.CRM or "crm" in line.sources
    assert "visitor" not in named or line.side is Side.ONLINE or "online" in line.sources
    digests = set() if line.trace is None else {*line.trace.inputs}
    if not online:
        assert not digests & {"session", "online"}
        page = [each.item_id for each in decision.request().session if isinstance(each, Event)][-1]
        assert KEYRING.digest("page", page) not in text
    if not crm:
        assert not digests & {"crm", "attributes"}
    if not online and not crm:
        assert line.trace is None
    assert (line.trace is None) == (not named)
    if line.trace is None:
        assert f"{KEYRING.current_id}:" not in text
        assert "_anonymous" in file
        assert (line.at.minute, line.at.second, line.at.microsecond) == (0, 0, 0)
        assert (line.ledger_position or 0) % 1000 == 0


_purposes = st.frozensets(st.sampled_from(("ads", "fusion", "model")))
resolutions: st.SearchStrategy[Resolution] = st.builds(
    Resolution,
    online=st.booleans(),
    crm=st.booleans(),
    linked=st.booleans(),
    objected=st.sampled_from((False, False, True)),
    minor=st.sampled_from((False, False, True)),
    contact=st.none() | st.just(frozenset({"email"})),
    granted_purposes=_purposes,
    denied_purposes=_purposes,
    ledger_position=st.none() | st.integers(0, 10**7),
)
decisions: st.SearchStrategy[Decision] = st.builds(
    Decision, resolutions, st.sampled_from(Channel), st.booleans(), st.booleans()
)


@settings(max_examples=150, deadline=None)
@given(decisions)
def test_a_line_tells_no_secret(decision: Decision) -> None:
    check_lines_tell_no_secret(decision)


def standing(state: State) -> Resolution:
    """A person in a state."""
    return Resolution(
        online=state in (State.ONLINE, State.BOTH_LINKED, State.BOTH_UNLINKED),
        crm=state in (State.CRM, State.BOTH_LINKED, State.BOTH_UNLINKED),
        linked=state is State.BOTH_LINKED,
        objected=state is State.OBJECTED,
        contact=frozenset({"email"}),
        ledger_position=123_456,
    )


def test_every_cell_of_the_matrix_leaves_a_line_and_no_secret() -> None:
    seen = set()
    for state in State:
        for channel in Channel:
            for crm_on_site in (False, True):
                decision = Decision(standing(state), channel, vouched=True, crm_on_site=crm_on_site)
                check_lines_tell_no_secret(decision)
                line, _, _ = written(decision)
                seen.add((line.state, line.side))
    assert seen == {(state, side) for state in State for side in Side}


# ---- Without permission: the same line for anybody ---------------------------------------------------------

_WHO_ANSWERED = ("tier", "reason", "reasons", "sources", "bundle_digest", "fill_digest")
"""What may differ between two sessions without permission: which list they were shown, never for whom."""


def check_first_level_lines_are_alike(pair: tuple[Decision, Decision]) -> None:
    """Two persons without permission, with nothing in common, leave the same line."""
    lines = []
    for decision in pair:
        line, text, _ = written(decision)
        assert line.trace is None
        lines.append({name: value for name, value in json.loads(text).items() if name not in _WHO_ANSWERED})
    assert lines[0] == lines[1]


_sessions = st.lists(st.sampled_from(ITEMS), min_size=3, max_size=3, unique=True).map(tuple)
_nobodies: st.SearchStrategy[Resolution] = st.builds(
    Resolution, objected=st.booleans(), minor=st.booleans(), ledger_position=st.integers(7000, 7999)
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Decision, Decision]:
    """Two persons who stand alike, without permission, asked about in one channel at positions near by."""
    who, channel = draw(_nobodies), draw(st.sampled_from(Channel))
    other = dataclasses.replace(who, ledger_position=draw(st.integers(7000, 7999)))
    return (
        Decision(who, channel, draw(st.booleans()), marks="one", known=draw(_sessions)),
        Decision(other, channel, draw(st.booleans()), marks="other", known=draw(_sessions)),
    )


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_lines_without_permission_are_alike_for_all(pair: tuple[Decision, Decision]) -> None:
    check_first_level_lines_are_alike(pair)


NOBODY = Decision(standing(State.NONE), Channel.SHOP)
UNLINKED = Decision(standing(State.BOTH_UNLINKED), Channel.SHOP)
CRM_HERE = Decision(standing(State.CRM), Channel.SHOP, crm_on_site=True)


@breaks(
    Break(
        "the first level is not looked at",
        JsonLinesAudit._line,
        "nameable(state, side, basis.sources)",
        'frozenset({"visitor", "customer"})',
        NOBODY,
    ),
    Break(
        "whoever is in the request is named",
        JsonLinesAudit._trace,
        "kind in named and ",
        "",
        UNLINKED,
    ),
    Break(
        "subjects stand in the line in clear",
        JsonLinesAudit._trace,
        'digest("subject", subject_text(kind, subject_id))',
        "subject_text(kind, subject_id)",
        UNLINKED,
    ),
    Break(
        "filters stand in the line in clear",
        JsonLinesAudit._trace,
        'digest("exclude", filter_text(request.exclude))',
        "filter_text(request.exclude)",
        UNLINKED,
    ),
    Break(
        "the page of a visit without permission leaves a trace",
        JsonLinesAudit._trace,
        "if state in _ONLINE_STATES else None",
        "",
        CRM_HERE,
    ),
    Break(
        "the customer of a visit without permission is named",
        audit.nameable,
        "side is Side.CRM and state in _CRM_STATES",
        "state in _CRM_STATES",
        Decision(standing(State.CRM), Channel.SHOP),
    ),
    Break(
        "both are named, linked or not",
        audit.nameable,
        "if not named and side is Side.CRM",
        "if side is Side.CRM or True",
        UNLINKED,
    ),
    Break(
        "a line without permission tells the second",
        JsonLinesAudit._line,
        "at.replace(minute=0, second=0, microsecond=0)",
        "at",
        NOBODY,
    ),
    Break(
        "a line without permission tells after which record it came",
        JsonLinesAudit._line,
        "position - position % _COARSE_POSITIONS",
        "position",
        NOBODY,
    ),
    Break(
        "lines without permission stand among the others, and so tell the second",
        JsonLinesAudit.write,
        '"_anonymous"',
        '""',
        NOBODY,
    ),
)
def test_a_line_that_told_more_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_lines_tell_no_secret, decisions, broken)


# ---- Replaying ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A request that leaves a trace, and an input of it that is lost or mistaken for another later."""

    request: Request
    name: str
    value: Any
    factors: bool = False


_DIGEST_OF = {
    "session": "session",
    "online_history": "online",
    "crm_history": "crm",
    "attributes": "attributes",
}


def check_replays(case: Recorded) -> None:
    """An answer is given again from its inputs and by its engine, and in no other way."""
    asked = engine(factors=case.factors)
    with tempfile.TemporaryDirectory() as folder:
        sink = JsonLinesAudit(folder, KEYRING)
        answer = dataclasses.replace(asked, keyring=KEYRING, audit=sink).recommend(case.request)
        (line,) = audit_lines(folder)

    def again(by: Recommender | None = None, **changes: Any) -> Replay:
        # What the line says itself is not taken from the inputs.
        given = dataclasses.replace(
            case.request, n=1, linked=False, channel=Channel.PRINT, permission=None, at=None, **changes
        )
        return replay(line, ReplayInputs(given), asked if by is None else by, KEYRING)

    if line.trace is None:
        assert again().outcome is Outcome.NOTHING_KEPT
        return
    found = again()
    assert found.outcome is Outcome.REPRODUCED, found.detail
    assert found.answer is not None
    for name in ("tier", "items", "scores"):
        assert getattr(found.answer, name) == getattr(answer, name)
    assert again(exclude=("something else",)).outcome is Outcome.INPUTS_DIFFER
    changed = again(**{case.name: case.value}).outcome
    if _DIGEST_OF[case.name] not in line.trace.inputs:
        assert changed is Outcome.REPRODUCED
    else:
        assert changed is (Outcome.INPUTS_DIFFER if case.value else Outcome.INPUTS_ERASED)
    renamed = dataclasses.replace(asked, policy=dataclasses.replace(DEFAULT, version="another"))
    assert again(renamed).outcome is Outcome.POLICY_CHANGED
    if line.bundle_digest is not None:
        assert again(engine(("crm",), factors=case.factors)).outcome is Outcome.BUNDLE_CHANGED
    if answer.items:
        sold_out = Catalogue(frozenset(ITEMS) - {answer.items[0]})
        assert again(engine(catalogue=sold_out, factors=case.factors)).outcome is Outcome.ANSWER_DIFFERS


_events = st.lists(st.builds(Event, st.sampled_from((*ITEMS, "unheard-of"))), min_size=1, max_size=5).map(
    tuple
)
_changes = st.sampled_from(
    [
        *(
            (name, value)
            for name in ("session", "online_history", "crm_history")
            for value in ((), ("other",))
        ),
        ("attributes", {}),
        ("attributes", {"region": "south", "age": 1}),
    ]
)
recorded: st.SearchStrategy[Recorded] = st.builds(
    lambda request, change, factors: Recorded(request, *change, factors),
    st.builds(
        Request,
        session=_events,
        online_history=_events,
        crm_history=_events,
        attributes=st.just({"region": "north"}),
        permission=st.sampled_from((Permission.ONLINE, Permission.CRM, BOTH)),
        channel=st.sampled_from(Channel),
        linked=st.booleans(),
        n=st.integers(1, 14),
        exclude=st.sets(st.sampled_from(ITEMS), max_size=3),
        allow=st.none() | st.sets(st.sampled_from(ITEMS), min_size=6),
        at=st.just(AT),
    ),
    _changes,
    st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(recorded)
def test_an_answer_is_given_again_from_its_inputs_and_nothing_else(case: Recorded) -> None:
    check_replays(case)


FULL = Request(
    session=ITEMS[1:2], online_history=ITEMS[2:3], crm_history=ITEMS[3:4], attributes={"region": "north"},
    permission=BOTH, linked=True, at=AT, n=4,
)  # fmt: skip


@breaks(
    Break(
        "inputs are not compared",
        replay_module._input_problem,
        "digests.get(name) != digest",
        "False",
        Recorded(FULL, "online_history", ("other",)),
    ),
    Break(
        "erased inputs are taken for other ones",
        replay_module._input_problem,
        "if not _part(view, name)",
        "if False",
        Recorded(FULL, "crm_history", ()),
    ),
    Break(
        "filters are not compared",
        replay_module._input_problem,
        "if recorded != (",
        "if False and recorded != (",
        Recorded(FULL, "session", ()),
    ),
    Break(
        "the answer is not compared",
        replay_module.replay,
        "!= trace.answer",
        '== ""',
        Recorded(FULL, "session", ()),
    ),
    Break(
        "the policy is not compared",
        replay_module._policy_problem,
        "version != line.policy_version",
        "False",
        Recorded(FULL, "session", ()),
    ),
    Break(
        "the bundle is not compared",
        replay_module._bundle_problem,
        "line.bundle_digest != here",
        "False",
        Recorded(FULL, "session", ()),
    ),
    Break(
        "the line does not say how many items were asked for",
        replay_module._request,
        "n=trace.n",
        "n=given.n",
        Recorded(FULL, "session", ()),
    ),
)
def test_a_replay_that_checked_less_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_replays, recorded, broken)
