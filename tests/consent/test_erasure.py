"""Erasure: what is erased is gone, and nobody else's answers change by it.

The strict part of the promise is the second. What an erased record or login *prevented* must go on being
prevented: a record id that stood for two contents stays a denial for whoever still bears it, and a device on
which the erased customer was seen links to nobody else, whatever arrives later.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, LAST_TICK, Case, at_tick, cases, said
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import ConsentRecord, Ledger, Link, Permission, Source, ledger
from consentier.consent.memory_store import MemoryStore
from consentier.consent.records import SubjectKind
from consentier.consent.sqlite_store import SqliteStore
from consentier.errors import LedgerError

STRANGER = "nobody ever heard of"

NOTHING = Case((), (), at_tick(LAST_TICK))

Subject = tuple[SubjectKind, str]


@dataclasses.dataclass(frozen=True)
class Erased:
    """A ledger's entries, the subject that is erased after them, and what arrives about others later."""

    case: Case
    subject: Subject
    later: Case = NOTHING

    @property
    def others(self) -> list[tuple[str | None, str | None]]:
        """Visitor and customer of requests in which the subject does not appear."""
        names = (None, *IDS, STRANGER)
        return [
            (visitor, customer)
            for visitor, customer in itertools.product(names, names)
            if self.subject not in (("visitor", visitor), ("customer", customer))
        ]

    def ledgers(self) -> tuple[Ledger, Ledger]:
        """The ledger without the subject, and the one from which nothing was erased."""
        kind, name = self.subject
        whole, erased = self.case.ledger(), self.case.ledger()
        erased.erase(name, kind=kind)
        for each in (whole, erased):
            each.append(self.later.records)
            each.append_links(self.later.links)
        return erased, whole


@st.composite
def erasures(draw: st.DrawFn) -> Erased:
    """Any ledger and subject. What comes later is about others, and bears no id of the subject's own."""
    case, later = draw(cases()), draw(cases())
    subject: Subject = draw(st.sampled_from(("visitor", "customer"))), draw(st.sampled_from(IDS))
    own = {record.record_id for record in case.records if of(record) == subject}
    records = [record for record in later.records if of(record) != subject and record.record_id not in own]
    links = [
        link
        for link in later.links
        if subject not in (("visitor", link.visitor_id), ("customer", link.customer_id))
    ]
    later = dataclasses.replace(later, records=tuple(records), links=tuple(links))
    return Erased(case, subject, draw(st.sampled_from((later, NOTHING))))


def of(record: ConsentRecord) -> Subject:
    """The subject of a record."""
    return record.subject_kind, record.subject_id


def answers_about_others(asked: Ledger, erased: Erased) -> list[object]:
    """All that is answered where the subject does not come in."""
    when = erased.case.when
    resolved = [
        asked.resolve(visitor_id=visitor, customer_id=customer, **when) for visitor, customer in erased.others
    ]
    links = asked.lawful_links(**when)
    return [
        [dataclasses.replace(found, ledger_position=None) for found in resolved],
        [
            asked.standing(source, name, **when)
            for source, of_kind in ((Source.ONLINE, "visitor"), (Source.CRM, "customer"))
            for name in IDS
            if (of_kind, name) != erased.subject
        ],
        {
            visitor: link
            for visitor, link in links.items()
            if erased.subject not in (("visitor", visitor), ("customer", link.customer_id))
        },
        [
            [each for each in asked.linked_visitors(name, **when) if ("visitor", each) != erased.subject]
            for name in IDS
            if ("customer", name) != erased.subject
        ],
    ]


def check_others_are_not_touched(erased: Erased) -> None:
    """Erasing changes no answer about anybody else: now, later, and in looking back at any position."""
    without, whole = erased.ledgers()
    assert answers_about_others(without, erased) == answers_about_others(whole, erased)
    for position in range(erased.case.ledger().position + 1):
        then, so = without.as_of(position), whole.as_of(position)
        assert answers_about_others(then, erased) == answers_about_others(so, erased)


@settings(max_examples=100, deadline=None)
@given(erasures())
def test_erasing_changes_no_answer_about_anybody_else(erased: Erased) -> None:
    check_others_are_not_touched(erased)


CONSENTS = (
    said("online", "granted", 0),
    said("crm a", "granted", 0, permission="crm", kind="customer"),
    said("crm b", "granted", 0, permission="crm", kind="customer", subject="b"),
)
A_CONTRADICTED_ID = Erased(
    Case(
        (*CONSENTS, said("one id", "granted", 2), said("one id", "granted", 2, subject="b")),
        (),
        at_tick(LAST_TICK),
    ),
    ("visitor", "b"),
)
A_SHARED_DEVICE = Erased(
    Case(CONSENTS, (Link("a", "a", at_tick(1)), Link("a", "b", at_tick(2))), at_tick(LAST_TICK)),
    ("customer", "b"),
)
THE_NEXT_ONE_TO_LOG_IN = Erased(
    Case(CONSENTS, (Link("a", "b", at_tick(1)),), at_tick(LAST_TICK)),
    ("customer", "b"),
    Case((), (Link("a", "a", at_tick(2)),), at_tick(LAST_TICK)),
)


@breaks(
    Break(
        "a contradicted record id is believed once the other who bore it is erased",
        ledger._without,
        "if any(",
        "if False and any(",
        A_CONTRADICTED_ID,
    ),
    Break(
        "what is left of an erased record counts as learnt later than it was",
        ledger._without,
        "version.recorded, version.position",
        "version.recorded + 10**15, version.position",
    ),
    Break(
        "a device becomes its other customer's when one is erased",
        Ledger.erase,
        "remnants += _remnants_of(links)",
        "pass",
        A_SHARED_DEVICE,
    ),
    Break(
        "a device becomes the next customer's when the one before is erased",
        Ledger.erase,
        "_remnants_of(links)",
        "_remnants_of(link for link in links if len(self._store.about(link.visitor_id, None).links) > 1)",
        THE_NEXT_ONE_TO_LOG_IN,
    ),
    Break(
        "in looking back, a device counts as shared before it was",
        MemoryStore._append_remnant,
        "remnant.linked_at, remnant.of, entry",
        "remnant.linked_at, 0, entry",
        A_SHARED_DEVICE,
    ),
    Break(
        "an erased record of somebody else goes on refusing",
        MemoryStore._forget,
        "_drop(self._versions, row[0], entry)",
        "pass",
    ),
)
def test_an_erasure_that_widens_would_be_noticed(broken: Break) -> None:
    def check(erased: Erased) -> None:
        try:
            check_others_are_not_touched(erased)
        except LedgerError as error:  # a mutant may also leave the ledger's memory at odds with itself
            raise AssertionError from error

    assert_breaks(check, erasures(), broken)


def check_the_subject_is_a_stranger(erased: Erased) -> None:
    """Of an erased subject nothing is held, and nothing is answered that a stranger would not be told."""
    without, _ = erased.ledgers()
    kind, name = erased.subject
    assert without.records_of(name, kind=kind) == []
    assert without.links_of(name, kind=kind) == []
    assert without.permission(name, kind=kind, **erased.case.when) is Permission.NONE
    for other in (None, *IDS, STRANGER):
        found, unknown = (
            without.resolve(visitor_id=each, customer_id=other, **erased.case.when)
            if kind == "visitor"
            else without.resolve(visitor_id=other, customer_id=each, **erased.case.when)
            for each in (name, STRANGER)
        )
        assert found == unknown
    assert without.verify().ok


@settings(max_examples=60, deadline=None)
@given(erasures())
def test_an_erased_subject_is_a_stranger(erased: Erased) -> None:
    check_the_subject_is_a_stranger(erased)


@breaks(
    Break("a link outlives its customer", Ledger.erase, ", *(link.entry for link in links)", ""),
    Break("an erased record is still found", MemoryStore._forget, "_drop(self._about,", "(lambda *_: None)("),
    Break(
        "nothing says that something was erased",
        MemoryStore.erase,
        'self._push("Erasure", row_of(Erasure(tuple(sorted(erased)), erased_at)))',
        "pass",
    ),
)
def test_an_incomplete_erasure_would_be_noticed(broken: Break) -> None:
    def check(erased: Erased) -> None:
        try:
            check_the_subject_is_a_stranger(erased)
        except LedgerError as error:
            raise AssertionError from error

    assert_breaks(check, erasures(), broken)


# ---- Links -------------------------------------------------------------------------------------------------


def test_dissolving_takes_the_links_and_nothing_else() -> None:
    held = Ledger(CONSENTS, [Link("a", "a", at_tick(1)), Link("b", "a", at_tick(1)), Link("b", "b", None)])
    assert held.dissolve_links(customer_id="a") == 2
    assert held.links_of("a", kind="customer") == []
    assert held.links_of("b", kind="visitor") == [Link("b", "b", None)]
    assert len(held.records_of("a", kind="customer")) == 1
    assert held.dissolve_links(visitor_id="a") == 0
    assert held.verify().ok
    with pytest.raises(ValueError, match="visitor_id, customer_id or both"):
        held.dissolve_links()


def test_one_pair_is_dissolved_alone() -> None:
    links = [Link(visitor, customer, at_tick(1)) for visitor in IDS for customer in IDS]
    held = Ledger((), links)
    assert held.dissolve_links(visitor_id="a", customer_id="b") == 1
    assert held.links_of("a", kind="visitor") == [links[0]]
    assert held.links_of("b", kind="visitor") == links[2:]


def linked(held: Ledger, visitor: str, customer: str) -> bool:
    return held.resolve(visitor_id=visitor, customer_id=customer, at=at_tick(LAST_TICK)).linked


def test_a_shared_device_stays_unlinkable_when_a_link_is_dissolved() -> None:
    held = A_SHARED_DEVICE.case.ledger()
    assert not linked(held, "a", "a")
    held.dissolve_links(customer_id="b")
    assert not linked(held, "a", "a")
    held.dissolve_links(visitor_id="a")
    held.append_links([Link("a", "a", at_tick(3))])
    assert not linked(held, "a", "a")


def check_a_dissolved_link_hands_the_device_to_nobody() -> None:
    """Nobody is joined with what another browsed, and whether it is the same one, nothing says any more."""
    for next_one in IDS:
        grants = [
            said(
                f"customer {next_one} may", "granted", 0, permission="crm", kind="customer", subject=next_one
            ),
            *(said(f"{device} may", "granted", 0, subject=device) for device in IDS),
        ]
        held = Ledger(grants, [Link("a", "a", at_tick(1))])
        assert held.dissolve_links(customer_id="a") == 1
        assert held.login("a", next_one, at=at_tick(4))
        assert not linked(held, "a", next_one)
        assert held.login("b", next_one, at=at_tick(4))
        assert linked(held, "b", next_one)


def test_a_dissolved_link_hands_the_device_to_nobody() -> None:
    check_a_dissolved_link_hands_the_device_to_nobody()


@breaks(Break("no trace of a dissolved link", Ledger.dissolve_links, "_remnants_of(doomed)", "[]"))
def test_a_device_that_is_handed_on_would_be_noticed(broken: Break) -> None:
    with broken.applied(), pytest.raises(AssertionError):
        check_a_dissolved_link_hands_the_device_to_nobody()


# ---- Files -------------------------------------------------------------------------------------------------


def check_no_bytes_are_left(directory: Path) -> None:
    """After an erasure no file of the ledger holds a byte of what was erased, while it is open."""
    names = [f"person-{number:05}-of-the-test" for number in range(300)]
    with Ledger.open(f"sqlite:///{directory}/ledger.db") as held:
        for start in range(0, 300, 20):  # woven into each other, so that pages are shared and split
            held.append(
                said(f"{name}/{turn}", "granted", 1, subject=name, evidence=f"evidence of {name} " * turn)
                for turn in range(3)
                for name in names[start : start + 20]
            )
            held.append_links(
                Link(name, f"{name}'s account", at_tick(1)) for name in names[start : start + 20]
            )
        for name in names[::7]:
            held.erase(name, kind="visitor")
        assert held.verify().ok
        told = b"".join(path.read_bytes() for path in directory.iterdir())
        assert all(name.encode() in told for name in names[1:7])
        assert not any(name.encode() in told for name in names[::7])


def test_no_byte_of_what_was_erased_is_left_in_the_files(tmp_path: Path) -> None:
    check_no_bytes_are_left(tmp_path)


@breaks(
    Break("deleted rows stay in the file", SqliteStore._connect, "secure_delete = ON", "secure_delete = OFF"),
    Break("deleted rows stay in the log", SqliteStore._cut_log, "wal_checkpoint(TRUNCATE)", "user_version"),
)
def test_bytes_that_are_left_would_be_noticed(broken: Break, tmp_path: Path) -> None:
    with broken.applied(), pytest.raises(AssertionError):
        check_no_bytes_are_left(tmp_path)


# ---- Backups -----------------------------------------------------------------------------------------------


def test_what_was_erased_since_the_backup_is_erased_from_the_restored_ledger_again(tmp_path: Path) -> None:
    erased = A_SHARED_DEVICE
    with Ledger.open(f"sqlite:///{tmp_path}/lost.db") as lost:
        lost.append([*erased.case.records, *A_CONTRADICTED_ID.case.records])
        lost.append_links(erased.case.links)
        lost.backup(tmp_path / "backup.db")
        lost.append([said("later", "granted", 5, subject="c")])
        lost.erase("b", kind="customer")
        lost.erase("b", kind="visitor")
        lost.erase("c", kind="visitor")
        noted = json.loads(json.dumps(lost.erased()))
        told = answers_about_others(lost, erased)
    with Ledger.restore(tmp_path / "backup.db", f"sqlite:///{tmp_path}/restored.db") as restored:
        assert restored.records_of("b", kind="customer")
        restored.append([said("since then", "granted", 6, subject="d")])  # takes the place of `later`
        assert restored.erase_again(noted) == 3
        assert restored.erase_again(noted) == 0
        for kind in ("visitor", "customer"):
            assert not restored.records_of("b", kind=kind)
            assert not restored.links_of("b", kind=kind)
        assert restored.records_of("d", kind="visitor")
        assert restored.conflicts == ["one id"]
        assert answers_about_others(restored, erased) == told
        assert restored.verify().ok


def test_a_view_of_the_past_takes_no_erasure() -> None:
    view = Ledger(CONSENTS).as_of(1)
    asks: list[Any] = [
        lambda: view.erase("a", kind="visitor"),
        lambda: view.dissolve_links(visitor_id="a"),
        lambda: view.append([]),
        lambda: view.append_links([]),
        lambda: view.erase_again([]),
    ]
    for ask in asks:
        with pytest.raises(LedgerError, match="as of position 1"):
            ask()
    assert view.records_of("a", kind="visitor") == [CONSENTS[0]]
