"""What holds of every ledger, wherever its entries are kept.

A test module inherits these tests and says in a fixture where its ledgers are kept. The ledger in memory is
the reference for what is answered; what is asked of a ledger that is kept is that nothing is lost, nothing is
half done, and nothing is answered otherwise.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime as dt
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ledger_writer
import pytest
from consent_cases import IDS, Case, at_tick, cases, said
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consentier.consent import ConsentRecord, Ledger, Link, Source
from consentier.consent.records import PERMISSIONS, STATES, SubjectKind
from consentier.errors import LedgerError

__all__ = ["KeptLedgerConformance", "LedgerConformance", "MakeLedger", "everything", "steps", "take"]

MakeLedger = Callable[[], Ledger]
"""Gives an empty ledger, each time it is called. Those that it gave before need not work any longer."""

SOURCES = (Source.ONLINE, Source.CRM)
SUBJECTS: list[tuple[SubjectKind, str]] = [(kind, name) for kind in ("visitor", "customer") for name in IDS]

on_random_ledgers = settings(
    max_examples=30,
    # The tests are inherited by several classes, and a fixture of a test serves all of its cases.
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
)


# ---- Random histories --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Append:
    """Some entries arrive."""

    records: tuple[ConsentRecord, ...]
    links: tuple[Link, ...]


@dataclasses.dataclass(frozen=True)
class Erase:
    """A subject is erased."""

    kind: SubjectKind
    subject_id: str


@dataclasses.dataclass(frozen=True)
class Dissolve:
    """The links of a visitor, of a customer, or between both are dissolved."""

    visitor_id: str | None
    customer_id: str | None


Step = Append | Erase | Dissolve


@st.composite
def steps(draw: st.DrawFn) -> tuple[Case, list[Step]]:
    """A random case, what arrives in it in some batches, and erasures between and after them."""
    case = draw(cases())
    taken: list[Step] = []
    records, links = list(case.records), list(case.links)
    while records or links:
        count, linked = draw(st.integers(0, len(records))), draw(st.integers(0, len(links)))
        if not count and not linked:
            count, linked = len(records), len(links)
        taken.append(Append(tuple(records[:count]), tuple(links[:linked])))
        del records[:count], links[:linked]
        taken += draw(st.lists(_erasures, max_size=1))
    return case, taken


_ids = st.sampled_from(IDS)
_erasures = st.one_of(
    st.builds(Erase, st.sampled_from(("visitor", "customer")), _ids),
    st.builds(Dissolve, _ids, st.none()),
    st.builds(Dissolve, st.none() | _ids, _ids),
)


def take(ledger: Ledger, step: Step) -> int:
    """Take one step; say how many entries were new, or were erased."""
    if isinstance(step, Append):
        return ledger.append(step.records) + ledger.append_links(step.links)
    if isinstance(step, Erase):
        return ledger.erase(step.subject_id, kind=step.kind)
    return ledger.dissolve_links(visitor_id=step.visitor_id, customer_id=step.customer_id)


# ---- All that a ledger says --------------------------------------------------------------------------------


def everything(ledger: Ledger, case: Case) -> dict[str, Any]:
    """All that a ledger says of the subjects of a case. Order counts only where it is promised."""
    when = case.when
    return {
        "resolve": [
            ledger.resolve(visitor_id=visitor, customer_id=customer, **when)
            for visitor in (None, *IDS, "nobody")
            for customer in (None, *IDS, "nobody")
        ],
        "permission": [ledger.permission(name, kind=kind, **when) for kind, name in SUBJECTS],
        "standing": [
            ledger.standing(source, name, model_purpose=asked, **when)
            for source in SOURCES
            for name in IDS
            for asked in (False, True)
        ],
        "lawful links": [
            ledger.lawful_links(model_purpose=model, fusion_purpose=fusion, **when)
            for model in (False, True)
            for fusion in (False, True)
        ],
        "linked visitors": [ledger.linked_since(name, **when) for name in (*IDS, "nobody")],
        "subjects": [sorted(ledger.subjects(source)) for source in SOURCES],
        "conflicts": ledger.conflicts,
        "records": [ledger.records_of(name, kind=kind) for kind, name in SUBJECTS],
        "links": [ledger.links_of(name, kind=kind) for kind, name in SUBJECTS],
        "columns": [_rows(ledger.columns("records")), _rows(ledger.columns("links"))],
        "position": ledger.position,
    }


def _rows(columns: dict[str, list[Any]]) -> collections.Counter[tuple[Any, ...]]:
    names = sorted(columns)
    return collections.Counter(zip(*(columns[name] for name in names), strict=True))


_plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_some_text = _plain_text.filter(bool)
_instants = st.datetimes(timezones=st.just(dt.UTC))

any_records = st.builds(
    ConsentRecord,
    record_id=_some_text,
    subject_id=_some_text,
    subject_kind=st.sampled_from(("visitor", "customer")),
    permission=st.sampled_from(sorted(PERMISSIONS)),
    state=st.sampled_from(sorted(STATES)),
    valid_from=_instants,
    recorded_at=_instants,
    valid_to=st.none() | _instants,
    basis=st.none() | _plain_text,
    jurisdiction=st.none() | _plain_text,
    double_opt_in_at=st.none() | _instants,
    collected_by=st.none() | _plain_text,
    policy_version=st.none() | _plain_text,
    evidence=st.none() | _plain_text,
)
any_links = st.builds(Link, _some_text, _some_text, st.none() | _instants, st.none() | _plain_text)

AWKWARD = (
    "\\N",
    "a\tb",
    "a\nb\r",
    '"',
    "'",
    "\\",
    "{}",
    "\\.",
    "%s",
    ":x",
    " ",
    "\u2028",
    "\U0001f36a",
    "a" * 20_000,
)
"""Texts that a place which keeps them might take for something else."""


class LedgerConformance:
    """Holds of every ledger. The test class brings a fixture `make_ledger` (see `MakeLedger`)."""

    @on_random_ledgers
    @given(history=steps())
    def test_it_answers_as_one_in_memory_does(
        self, make_ledger: MakeLedger, history: tuple[Case, list[Step]]
    ) -> None:
        case, taken = history
        ledger, reference = make_ledger(), Ledger()
        for step in taken:
            assert take(ledger, step) == take(reference, step), step
            assert everything(ledger, case) == everything(reference, case), step
        assert ledger.verify().ok
        for position in {0, ledger.position // 3, ledger.position * 2 // 3, ledger.position}:
            then, so = ledger.as_of(position), reference.as_of(position)
            assert everything(then, case) == everything(so, case), position

    @on_random_ledgers
    @given(records=st.lists(any_records, max_size=5), links=st.lists(any_links, max_size=3))
    def test_what_was_appended_is_told_as_it_was(
        self, make_ledger: MakeLedger, records: list[ConsentRecord], links: list[Link]
    ) -> None:
        ledger = make_ledger()
        entries = list(dict.fromkeys(records)), list(dict.fromkeys(links))
        assert ledger.append(records) == len(entries[0])
        assert ledger.append_links(links) == len(entries[1])
        assert [entry for _, entry in ledger.entries()] == [*entries[0], *entries[1]]
        for record in records:
            assert record in ledger.records_of(record.subject_id, kind=record.subject_kind)
        for link in links:
            assert link in ledger.links_of(link.visitor_id, kind="visitor")
            assert link in ledger.links_of(link.customer_id, kind="customer")

    @pytest.mark.parametrize("text", AWKWARD, ids=lambda text: ascii(text[:9]))
    def test_awkward_texts_are_texts(self, make_ledger: MakeLedger, text: str) -> None:
        ledger = make_ledger()
        record = dataclasses.replace(said(text, "granted", 0, subject=text, evidence=text), basis=text)
        link = Link(text, text, at_tick(0), text)
        ledger.append([record])
        ledger.append_links([link])
        assert ledger.append([record]) == ledger.append_links([link]) == 0
        assert [entry for _, entry in ledger.entries()] == [record, link]
        assert ledger.resolve(visitor_id=text, at=at_tick(1)).online
        assert ledger.verify().ok

    @pytest.mark.parametrize("text", ["a\0b", "\ud800"], ids=ascii)
    def test_a_text_that_cannot_be_kept_is_refused_whole_and_permits_nothing(
        self, make_ledger: MakeLedger, text: str
    ) -> None:
        ledger = make_ledger()
        good, odd = said("good", "granted", 0), said("odd", "granted", 0, subject=text)
        try:
            new = ledger.append([good, odd])
        except LedgerError:
            new = 0
        else:
            assert ledger.records_of(text, kind="visitor") == [odd], "it was kept after all"
        assert ledger.position == new
        assert new in (0, 2)
        with contextlib.suppress(LedgerError):
            assert ledger.resolve(visitor_id=text, at=at_tick(1)).online == (new == 2)

    def test_an_empty_ledger_denies_and_verifies(self, make_ledger: MakeLedger) -> None:
        ledger = make_ledger()
        assert (ledger.position, ledger.head) == (0, f"sha256:{'0' * 64}")
        assert ledger.append([]) == ledger.append_links([]) == 0
        assert ledger.verify(anchor=(0, ledger.head)).ok
        assert not ledger.resolve(visitor_id="a", customer_id="a", at=at_tick(0)).online
        assert ledger.columns("records").keys() >= {"record_id", "conflicting", "first_recorded"}

    def test_a_batch_with_something_else_in_it_leaves_nothing(self, make_ledger: MakeLedger) -> None:
        ledger = make_ledger()
        odd: list[Any] = [said("r", "granted", 0), "no record"]
        with pytest.raises(TypeError):
            ledger.append(odd)
        assert ledger.position == 0

    def test_repetitions_in_one_batch_and_in_several_are_one(self, make_ledger: MakeLedger) -> None:
        ledger = make_ledger()
        record, link = said("r", "granted", 0), Link("a", "a", at_tick(0))
        assert ledger.append([record, record]) == 1
        assert ledger.append([record, said("s", "granted", 0)]) == 1
        assert ledger.append_links([link, link]) == 1
        assert ledger.append_links([link]) == 0
        assert [position for position, _ in ledger.entries()] == [1, 2, 3] == [1, 2, ledger.position]
        assert [position for position, _ in ledger.entries(after=1)] == [2, 3]

    def test_an_anchor_holds_while_the_ledger_grows(self, make_ledger: MakeLedger) -> None:
        ledger = make_ledger()
        ledger.append([said("r", "granted", 0)])
        anchor = ledger.position, ledger.head
        ledger.append([said("s", "withdrawn", 1)])
        ledger.erase("a", kind="visitor")
        found = ledger.verify(anchor=anchor)
        assert found.ok
        assert (found.position, found.head) == (ledger.position, ledger.head)
        assert (found.entries, found.erased) == (ledger.position, 2)
        assert not ledger.verify(anchor=(1, f"sha256:{'1' * 64}")).ok
        assert not ledger.verify(anchor=(ledger.position + 1, ledger.head)).ok

    def test_the_chain_of_another_time_is_told(self, make_ledger: MakeLedger) -> None:
        ledger = make_ledger()
        heads = [ledger.head]
        for number in range(3):
            ledger.append([said(f"r{number}", "granted", number)])
            heads.append(ledger.head)
        assert [ledger.as_of(position).head for position in range(4)] == heads
        assert len(set(heads)) == 4

    def test_an_erased_subject_may_come_again_as_a_stranger(self, make_ledger: MakeLedger) -> None:
        ledger = make_ledger()
        record = said("r", "granted", 0)
        ledger.append([record])
        assert ledger.erase("a", kind="visitor") == 1
        assert ledger.erase("a", kind="visitor") == 0
        assert ledger.records_of("a", kind="visitor") == []
        assert not ledger.resolve(visitor_id="a", at=at_tick(1)).online
        assert ledger.append([record]) == 1
        assert ledger.resolve(visitor_id="a", at=at_tick(1)).online
        assert ledger.verify().ok

    def test_threads_append_and_resolve_at_once(self, make_ledger: MakeLedger) -> None:
        ledger = make_ledger()
        threads, batches, size = 4, 5, 3
        ready = threading.Barrier(threads)

        def work(number: int) -> None:
            ready.wait(60)
            for each in range(batches):
                ledger.append(ledger_writer.batch(str(number), each, size))
                ledger.append(ledger_writer.batch("shared", each, size))
                assert ledger.resolve(visitor_id=f"{number}/{each}/0", at=ledger_writer.AT).online

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        assert ledger.position == (threads + 1) * batches * size
        assert ledger.verify().ok


class KeptLedgerConformance(LedgerConformance):
    """Holds of every ledger that outlives the process. The test class brings two fixtures.

    `make_ledger` as before; and `url`, of a place in which there is no ledger yet.
    """

    def test_it_is_there_again(self, url: str) -> None:
        with Ledger.open(url) as ledger:
            ledger.append(
                [said("r", "granted", 0), said("c", "granted", 0, permission="crm", kind="customer")]
            )
            assert ledger.login("a", "a", at=at_tick(1))
            told = list(ledger.entries()), ledger.position, ledger.head
        with Ledger.open(url, create=False) as again:
            assert (list(again.entries()), again.position, again.head) == told
            assert again.resolve(visitor_id="a", customer_id="a", at=at_tick(2)).linked

    def test_none_is_made_unasked(self, url: str) -> None:
        with pytest.raises(LedgerError, match="create=True"):
            Ledger.open(url, create=False)
        with pytest.raises(LedgerError):
            Ledger.open(url, create=False)
        Ledger.open(url).close()
        Ledger.open(url, create=False).close()

    def test_what_one_appended_the_other_sees_at_once(self, url: str) -> None:
        with Ledger.open(url) as one, Ledger.open(url) as other:
            one.append([said("r", "granted", 0)])
            assert other.resolve(visitor_id="a", at=at_tick(1)).online
            other.append([said("s", "withdrawn", 1)])
            assert not one.resolve(visitor_id="a", at=at_tick(1)).online
            assert one.head == other.head
            other.erase("a", kind="visitor")
            assert one.records_of("a", kind="visitor") == []

    def test_processes_append_at_once(self, url: str) -> None:
        names, batches, size = ("one", "two", "shared", "shared"), 6, 20
        writers = [_writer(url, name, batches, size) for name in names]
        for writer in writers:
            _, errors = writer.communicate(timeout=120)
            assert writer.returncode == 0, errors
        with Ledger.open(url, create=False) as ledger:
            assert ledger.position == len(set(names)) * batches * size
            found = {entry.record_id for _, entry in ledger.entries() if isinstance(entry, ConsentRecord)}
            assert found == {
                record.record_id
                for name in set(names)
                for number in range(batches)
                for record in ledger_writer.batch(name, number, size)
            }
            assert ledger.verify().ok

    def test_a_writer_that_is_killed_loses_nothing_acknowledged_and_leaves_no_half(self, url: str) -> None:
        size = 50
        writer = _writer(url, "w", 100_000, size)
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(5)]
        os.kill(writer.pid, signal.SIGKILL)  # in the middle of some later batch
        acknowledged += [int(line) for line in writer.communicate(timeout=60)[0].split()]
        assert writer.returncode == -signal.SIGKILL
        with Ledger.open(url, create=False) as ledger:
            assert ledger.verify().ok
            written = len(list(ledger.entries()))
            assert written == ledger.position
            assert written % size == 0, "half a batch"
            assert acknowledged[-1] + 1 <= written // size <= acknowledged[-1] + 2
            for number in acknowledged:
                assert ledger.append(ledger_writer.batch("w", number, size)) == 0
            assert ledger.append(ledger_writer.batch("v", 0, size)) == size, "nobody holds the lock any more"

    def test_a_forked_process_uses_connections_of_its_own(self, url: str) -> None:
        with Ledger.open(url) as ledger:
            ledger.append(ledger_writer.batch("parent", 0, 1))
            child = os.fork()
            if child == 0:  # no test runner in here: whatever happens, leave at once
                status = 1
                with contextlib.suppress(BaseException):
                    ledger.append(ledger_writer.batch("child", 0, 1))
                    status = 0
                os._exit(status)
            for number in range(1, 20):
                ledger.append(ledger_writer.batch("parent", number, 1))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert ledger.position == 21
            assert ledger.verify().ok

    def test_a_backup_becomes_the_same_ledger(
        self, url: str, make_ledger: MakeLedger, tmp_path: Path
    ) -> None:
        original = make_ledger()
        original.append([said("r", "granted", 0), said("s", "granted", 0, subject="b")])
        original.append([said("r", "denied", 0, subject="b")])
        original.append_links([Link("a", "a", at_tick(0)), Link("a", "b", at_tick(1))])
        original.erase("b", kind="customer")
        case = Case((), (), at_tick(3))
        told = everything(original, case), original.head
        original.backup(tmp_path / "backup")
        with Ledger.restore(tmp_path / "backup", url) as restored:
            assert (everything(restored, case), restored.head) == told
            assert restored.verify().ok
            assert restored.append([said("t", "withdrawn", 2)]) == 1
            assert restored.verify(anchor=(told[0]["position"], told[1])).ok
        with pytest.raises(LedgerError, match="empty"):
            Ledger.restore(tmp_path / "backup", url)


def _writer(url: str, name: str, batches: int, size: int) -> subprocess.Popen[str]:
    command = [sys.executable, ledger_writer.__file__, url, name, str(batches), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
