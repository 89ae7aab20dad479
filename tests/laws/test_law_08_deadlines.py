"""Eighth law, of bundles: however a permission ends, the bundles that hold its subject stop in time.

A withdrawal by the command finds its bundles itself. A signal, an objection, a lapse, an import or a record
that came late does not: the ledger is asked about all whom each bundle holds. A bundle gets a deadline
exactly where the rulebook, which looks at one instant at a time, finds a member who did not permit
throughout, from the rows that were learnt from to now.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, LAST_TICK, Case, at_tick, cases, instants_between, said
from consent_rulebook import Rulebook, Subject, customer, visitor
from engines import bundles
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import ConsentRecord, Ledger, Policy, Tier
from consentier.consent.keyring import Keyring
from consentier.models.bundle import open_bundle
from consentier.serving.revocation import Revocations
from consentier.training.consent_now import ConsentNow
from consentier.training.ended_permissions import set_deadlines
from consentier.training.lineage import Lineage

WEEK = dt.timedelta(days=7)
KINDS = {Tier.ONLINE: visitor, Tier.CRM: customer}


@dataclasses.dataclass(frozen=True)
class Held:
    """A ledger, of which the first records were known when bundles were fitted with an earlier cut-off."""

    case: Case
    fitted_at: int
    known: int

    @property
    def cutoff(self) -> dt.datetime:
        """The training cut-off; not after the question."""
        return min(at_tick(self.fitted_at), self.case.at)

    @functools.cached_property
    def then(self) -> Rulebook:
        """What was known at the cut-off."""
        known = self.case.records[: self.known]
        return Rulebook(dataclasses.replace(self.case, records=known, at=self.cutoff, known_at=None))

    @functools.cached_property
    def now(self) -> Rulebook:
        """What is known now."""
        return Rulebook(dataclasses.replace(self.case, known_at=None))


held_cases: st.SearchStrategy[Held] = st.builds(Held, cases(), st.integers(0, LAST_TICK), st.integers(0, 8))


@functools.cache
def digests() -> dict[Tier, str]:
    """The bundles of two sources."""
    return {tier: open_bundle(bundles() / tier).digest for tier in KINDS}


def learnt_from(held: Held, subject: Subject) -> list[dt.datetime]:
    """The instants whose rows were learnt from, back from the cut-off."""
    back = reversed(instants_between(at_tick(-1), held.cutoff))
    return list(
        itertools.takewhile(lambda when: held.then.learnable(subject, when, model_purpose=False), back)
    )


def permitted_throughout(held: Held, subject: Subject) -> bool:
    """Whether all that was learnt from is permitted to this day."""
    since = learnt_from(held, subject)[-1]
    moments = instants_between(since, held.case.at)
    return all(held.now.learnable(subject, when, model_purpose=False) for when in moments)


def check_deadlines(held: Held) -> None:
    """A deadline exactly where somebody's permission has ended."""
    ledger = Ledger(held.case.records[: held.known], held.case.links)
    position = ledger.position
    members = {
        tier: [subject for who in IDS if learnt_from(held, subject := kind(who))]
        for tier, kind in KINDS.items()
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bundles"
        folder.mkdir()
        lineage = Lineage(Path(place) / "lineage.db", Keyring.ephemeral())
        for tier, digest in digests().items():
            (folder / tier).symlink_to(bundles() / tier)
            lineage.record(digest, tier, members[tier], cutoff=held.cutoff, ledger_position=position)
        ledger.append(held.case.records[held.known :])
        judged = set_deadlines(
            ledger, bundles=[(folder, lineage)], policy=Policy.default(), at=held.case.at, deadline=WEEK
        )
        deadlines = Revocations.open(folder).current()
    assert not deadlines.fault
    for tier, digest in digests().items():
        ended = [subject for subject in members[tier] if not permitted_throughout(held, subject)]
        assert deadlines.by_digest.get(digest) == (held.case.at + WEEK if ended else None), tier
        (told,) = (each for each in judged if each.digest == digest)
        assert (told.members, told.ended, told.problem) == (len(members[tier]), len(ended), "")


@settings(max_examples=25, deadline=None)
@given(held_cases)
def test_a_bundle_stops_exactly_where_a_permission_that_it_rests_on_has_ended(held: Held) -> None:
    check_deadlines(held)


def later(*records: ConsentRecord) -> Held:
    """Visitor a permitted at first, which was learnt from at tick 2; then came these."""
    return Held(Case((said("first", "granted", 0), *records), (), at_tick(6)), 2, 1)


WAYS: dict[str, tuple[ConsentRecord, ...]] = {
    "withdrawn": (said("then", "withdrawn", 4),),
    "denied by a signal": (said("then", "denied", 4),),
    "objected": (said("then", "objected", 4),),
    "no longer to contribute to models": (said("then", "denied", 4, permission="model"),),
    "parents heard of": (said("then", "granted", 4, permission="parental", evidence="letter"),),
    "withdrawn and given again": (said("then", "withdrawn", 4), said("again", "granted", 5)),
    "recorded late, for before the cut-off": (said("then", "withdrawn", 1, learnt=4),),
    "a gap before the cut-off, recorded late": (
        said("then", "withdrawn", 0, learnt=4),
        said("again", "granted", 1, learnt=4),
    ),
    "contradicted": (said("first", "denied", 0, learnt=4),),
}


@pytest.mark.parametrize("way", WAYS)
def test_however_a_permission_ends_the_bundle_stops(way: str) -> None:
    held = later(*WAYS[way])
    assert not permitted_throughout(held, visitor("a"))
    check_deadlines(held)


def test_a_grant_that_lapses_stops_the_bundle_without_a_record() -> None:
    held = Held(Case((said("first", "granted", 0, until=4),), (), at_tick(6)), 2, 1)
    assert not permitted_throughout(held, visitor("a"))
    check_deadlines(held)


@pytest.mark.parametrize(
    "harmless",
    [
        (),
        (said("again", "granted", 4),),
        (said("then", "denied", 4, permission="crm"),),
        (said("other", "withdrawn", 4, subject="b"),),
        (said("then", "withdrawn", 7),),
    ],
    ids=["nothing", "again", "the other source", "somebody else", "not yet"],
)
def test_what_ends_no_permission_stops_no_bundle(harmless: tuple[ConsentRecord, ...]) -> None:
    held = later(*harmless)
    assert permitted_throughout(held, visitor("a"))
    check_deadlines(held)


def _breaks() -> Iterator[Break]:
    yield Break(
        "what came after the cut-off is not asked",
        ConsentNow.standing,
        "self._gate(None, at)",
        "self._gate(None, fitted.cutoff)",
        later(*WAYS["withdrawn"]),
    )
    yield Break(
        "what is known now is not asked",
        ConsentNow.standing,
        "self._gate(None, at)",
        "self._gate(fitted.ledger_position, at)",
        later(*WAYS["denied by a signal"]),
    )
    yield Break(
        "a gap is no end",
        ConsentNow.standing,
        "and since <= before[subject]",
        "",
        later(*WAYS["withdrawn and given again"]),
    )
    yield Break(
        "somebody's permission has ended, and the bundle goes on",
        set_deadlines,
        "if not standing.clean",
        "if standing.problem",
        later(*WAYS["objected"]),
    )
    yield Break("every bundle stops", set_deadlines, "if not standing.clean", "", later())


@breaks(*_breaks())
def test_a_bundle_that_goes_on_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_deadlines, held_cases, broken)
