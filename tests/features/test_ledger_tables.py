"""Importing consents and identities into a ledger."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from breaking import Break, assert_breaks, breaks
from consent_cases import IDS, Case, at_tick, cases, said
from hypothesis import given, settings

from consentier.consent import ConsentRecord, Ledger, Link, Source
from consentier.errors import DataError, LedgerError
from consentier.features import ledger_tables
from consentier.features.ledger_tables import Imported, import_tables
from consentier.features.schemas import arrow_schema
from consentier.features.tables import write_tables

HEADER = "record_id,subject_id,subject_kind,permission,state,valid_from,valid_to,recorded_at\n"


def tables(records: Iterable[ConsentRecord], links: Iterable[Link] = ()) -> dict[str, pa.Table]:
    rows: dict[str, list[Any]] = {"consents": list(records), "identities": list(links)}
    return {
        name: pa.Table.from_pylist([dataclasses.asdict(row) for row in of], schema=arrow_schema(name))
        for name, of in rows.items()
        if of
    }


def write(folder: Path, records: Iterable[ConsentRecord], links: Iterable[Link] = ()) -> Path:
    write_tables(tables(records, links), folder, force=True)
    return folder


def imported(ledger: Ledger, data: Path) -> Imported:
    return import_tables(ledger, data, show_progress=False)


GRANT, REFUSAL = said("r1", "granted", 0), said("r2", "withdrawn", 3)
LOGIN = Link("a", "a", at_tick(1), "login")


@pytest.mark.parametrize("format", ["parquet", "csv"])
@pytest.mark.parametrize("whole", [True, False], ids=["directory", "files"])
def test_rows_become_entries(tmp_path: Path, format: Any, whole: bool) -> None:
    folder = tmp_path / "shop"
    write_tables(tables([GRANT, REFUSAL], [LOGIN]), folder, format=format)
    ledger, places = Ledger(), [folder]
    if not whole:
        places = [folder / f"{name}.{format}" for name in ("consents", "identities")]
    found = [imported(ledger, place) for place in places]
    assert sum(each.records_new for each in found) == 2
    assert sum(each.links_new for each in found) == 1
    assert sorted(ledger.records_of("a", kind="visitor"), key=lambda record: record.record_id) == [
        GRANT,
        REFUSAL,
    ]
    assert ledger.links_of("a", kind="customer") == [LOGIN]


def test_other_tables_of_the_directory_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "shop", [GRANT])
    (tmp_path / "shop" / "events.csv").write_text("no table")
    assert imported(Ledger(), tmp_path / "shop").records_new == 1


def test_what_is_known_is_counted_and_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", [GRANT, GRANT, REFUSAL], [LOGIN])
    ledger = Ledger([GRANT])
    assert imported(ledger, folder) == Imported(1, 2, 1, 0, 0)
    assert imported(ledger, folder) == Imported(0, 3, 0, 1, 0)
    assert ledger.position == 3


def test_conflicts_are_counted_within_the_table_and_with_the_ledger(tmp_path: Path) -> None:
    other = [said("elsewhere", "granted", 0), said("elsewhere", "denied", 0)]
    ledger = Ledger([dataclasses.replace(GRANT, state="denied"), *other])
    rows = [GRANT, said("r3", "granted", 0), said("r3", "granted", 0, subject="b"), REFUSAL]
    assert imported(ledger, write(tmp_path / "shop", rows)) == Imported(4, 0, 0, 0, 2)


def test_a_bad_row_leaves_the_ledger_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_tables, "_CHUNK_ROWS", 1)
    folder = write(tmp_path / "shop", [GRANT, REFUSAL])
    (folder / "identities.csv").write_text(
        "visitor_id,customer_id,linked_at\na,b,2026-01-01T00:00:00Z\na,,\n"
    )
    ledger = Ledger()
    with pytest.raises(DataError, match="table identities, column customer_id, row 3"):
        imported(ledger, folder)
    assert ledger.position == 0


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "people.csv").write_text(HEADER)
    (tmp_path / "consents.csv").write_text(HEADER)
    for name, message in (
        ("empty", "neither consents nor identities"),
        ("people.csv", "must be called consents or identities"),
        ("consents.csv", "empty table"),
        ("nowhere", "no such directory"),
    ):
        with pytest.raises(DataError, match=message):
            imported(Ledger(), tmp_path / name)


def test_chunks_are_no_longer_than_they_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_tables, "_CHUNK_ROWS", 3)
    sizes = [4, 1, 1, 2, 5, 1]
    rows = [
        said(f"{number}/{each}", "granted", each, subject=str(number))
        for number, size in enumerate(sizes)
        for each in range(size)
    ]
    chunks = list(ledger_tables._consent_chunks(tables(reversed(rows))["consents"]))
    assert [chunk.num_rows for chunk in chunks] == [4, 4, 5, 1]


# ---- An import that is interrupted -------------------------------------------------------------------------


class Interrupted(Ledger):
    """A ledger that fails after so many appends."""

    def __init__(self, appends: int) -> None:
        self.left = appends + 2  # the constructor's own
        super().__init__()

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise LedgerError("the disk is full")

    def append(self, records: Iterable[ConsentRecord]) -> int:
        self._step()
        return super().append(records)

    def append_links(self, links: Iterable[Link]) -> int:
        self._step()
        return super().append_links(links)


def assert_permits_no_more(part: Ledger, whole: Ledger, at: dt.datetime) -> None:
    for visitor, customer in itertools.product((None, *IDS), repeat=2):
        some = part.resolve(visitor_id=visitor, customer_id=customer, at=at)
        all_ = whole.resolve(visitor_id=visitor, customer_id=customer, at=at)
        assert all_.permission | some.permission == all_.permission
        assert all_.linked or not some.linked
        assert (some.contact or frozenset()) <= (all_.contact or frozenset())
        if some.permission:
            assert some.denied_purposes >= all_.denied_purposes
    for source, name in itertools.product((Source.ONLINE, Source.CRM), IDS):
        since = part.standing(source, name, at=at).since
        if since is not None:
            since_in_whole = whole.standing(source, name, at=at).since
            assert since_in_whole is not None
            assert since_in_whole <= since
    links = whole.lawful_links(at=at)
    for visitor, standing in part.lawful_links(at=at).items():
        assert visitor in links
        assert links[visitor].customer_id == standing.customer_id
        assert links[visitor].since <= standing.since


def permits_no_more_when_interrupted(case: Case, folder: Path) -> None:
    """Interrupt the import after each chunk in turn, and let it be run again at last."""
    if not case.records and not case.links:
        return
    write(folder, case.records, dict.fromkeys(case.links))
    whole = Ledger(case.records, case.links)
    for appends in itertools.count():
        ledger = Interrupted(appends)
        try:
            imported(ledger, folder)
        except LedgerError:
            assert_permits_no_more(ledger, whole, case.at)
            ledger.left = 1000
            imported(ledger, folder)
            assert ledger.position == whole.position
            assert_permits_no_more(ledger, whole, case.at)
            assert_permits_no_more(whole, ledger, case.at)
        else:
            return


@pytest.fixture
def row_by_row(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    monkeypatch.setattr(ledger_tables, "_CHUNK_ROWS", 1)
    return tmp_path_factory.mktemp("import") / "shop"


def test_an_interrupted_import_permits_no_more_than_the_whole(row_by_row: Path) -> None:
    @settings(max_examples=40)
    @given(cases())
    def search(case: Case) -> None:
        permits_no_more_when_interrupted(case, row_by_row)

    search()


def crm(record_id: str, state: str, tick: int, **more: Any) -> ConsentRecord:
    return said(record_id, state, tick, permission="crm", kind="customer", **more)


EXPIRED = Case((said("r1", "granted", 0), said("r2", "granted", 1, until=2)), (), at_tick(4))
REFUSED_BY_CUSTOMER = Case(
    (said("r1", "granted", 0), said("r2", "denied", 1, permission="online", kind="customer", subject="b")),
    (),
    at_tick(4),
)
CONTRADICTED = Case((said("r", "granted", 0), said("r", "granted", 0, subject="b")), (), at_tick(4))
SHARED = Case(
    (said("r1", "granted", 0), crm("r2", "granted", 0), crm("r3", "granted", 0, subject="b")),
    (Link("a", "a", at_tick(1)), Link("a", "b", at_tick(2))),
    at_tick(4),
)


@breaks(
    Break(
        "a chunk ends within a subject",
        ledger_tables._whole_chunks,
        "_ends(table, keys)",
        "range(1, table.num_rows + 1)",
        EXPIRED,
    ),
    Break(
        "a chunk ends within a device",
        ledger_tables._whole_chunks,
        "_ends(table, keys)",
        "range(1, table.num_rows + 1)",
        SHARED,
    ),
    Break(
        "grants come before refusals",
        ledger_tables._consent_chunks,
        "pc.and_not(others, plain)",
        "pc.and_(others, plain)",
        REFUSED_BY_CUSTOMER,
    ),
    Break(
        "contradicted record ids are like others",
        ledger_tables._contradicted_ids,
        "_ids_with_several(rows.group_by",
        "_ids_with_several(rows.slice(0, 0).group_by",
        CONTRADICTED,
    ),
)
def test_the_promise_on_interruptions_would_notice(row_by_row: Path, broken: Break) -> None:
    def check(case: Case) -> None:
        permits_no_more_when_interrupted(case, row_by_row)

    assert_breaks(check, cases(), broken)
