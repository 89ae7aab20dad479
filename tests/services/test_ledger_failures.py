"""A ledger in PostgreSQL when the server fails or hangs, and in the hands of roles that may do little."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import ledger_writer
import psycopg
import pytest
from consent_cases import at_tick, said
from engines import ITEMS, engine
from ledger_writer import AT, batch
from postgresql_schemas import new_schema, with_options

from consentier.consent import Ledger, Link, Tier, sqlalchemy_store
from consentier.errors import LedgerError, LedgerTimeout
from consentier.serving import Event, Request, patience
from consentier.serving.patience import LATE_IN_A_ROW, NOT_ASKED

pytestmark = pytest.mark.service("postgresql")

DOCS = Path(__file__).resolve().parents[2] / "docs" / "ledger-postgresql.md"


class Cluster(Protocol):
    """A PostgreSQL server of our own (see `conftest`)."""

    url: str

    def url_for(self, role: str) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    with new_schema(cluster.url) as url:
        yield url


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger.open(url) as ledger:
        yield ledger


@pytest.fixture
def direct(url: str) -> Iterator[psycopg.Connection]:
    """A connection past the ledger, of somebody who may do everything."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def online(ledger: Ledger, visitor_id: str) -> bool:
    return ledger.resolve(visitor_id=visitor_id, at=AT).online


# ---- A server that fails -----------------------------------------------------------------------------------


def test_a_restart_is_survived_and_while_it_is_down_requests_fail_at_once(
    cluster: Cluster, ledger: Ledger
) -> None:
    ledger.append(batch("before", 0, 10))
    readers = [threading.Thread(target=online, args=(ledger, "before/0/0")) for _ in range(4)]
    for reader in readers:  # so that several connections stand ready
        reader.start()
    for reader in readers:
        reader.join()
    cluster.stop()
    try:
        started = time.monotonic()
        with pytest.raises(LedgerError, match="consentier-pg"):
            online(ledger, "before/0/0")
        with pytest.raises(LedgerError):
            ledger.append(batch("during", 0, 1))
        assert time.monotonic() - started < 30, "refused, not timed out"
    finally:
        cluster.start()
    assert online(ledger, "before/0/0")
    assert ledger.append(batch("after", 0, 10)) == 10
    assert ledger.verify().ok
    assert ledger.position == 20


@pytest.mark.parametrize(
    "use",
    [
        lambda ledger: ledger.append(batch("after", 0, 1)),
        lambda ledger: list(ledger.entries()),
        lambda ledger: ledger.verify(),
        lambda ledger: ledger.erase("before/0/0", kind="visitor"),
    ],
    ids=["append", "entries", "verify", "erase"],
)
def test_a_connection_that_went_stale_is_replaced_unasked(
    ledger: Ledger, direct: psycopg.Connection, use: Callable[[Ledger], object]
) -> None:
    ledger.append(batch("before", 0, 1))
    direct.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    assert use(ledger)


def test_what_was_acknowledged_before_a_crash_is_there_after_it(cluster: Cluster, url: str) -> None:
    size = 20
    command = [sys.executable, ledger_writer.__file__, url, "w", "100000", str(size)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(5)]
    cluster.stop()
    try:
        rest, errors = writer.communicate(timeout=60)
    finally:
        cluster.start()
    acknowledged += [int(line) for line in rest.split()]
    assert "LedgerError" in errors
    with Ledger.open(url, create=False) as ledger:
        assert ledger.verify().ok
        assert ledger.position % size == 0, "half a batch"
        assert acknowledged[-1] + 1 <= ledger.position // size <= acknowledged[-1] + 2
        for number in acknowledged:
            assert ledger.append(batch("w", number, size)) == 0


def test_an_append_that_fails_leaves_nothing_and_quotes_nobody(
    ledger: Ledger, direct: psycopg.Connection
) -> None:
    ledger.append(batch("good", 0, 1))
    direct.execute("ALTER TABLE consentier_records ADD CHECK (subject_id <> 'alice')")
    with pytest.raises(LedgerError, match="check constraint") as failure:
        ledger.append([*batch("good", 1, 3), said("r", "granted", 0, subject="alice")])
    assert "alice" not in str(failure.value)
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__
    assert ledger.position == 1
    assert ledger.verify().ok
    assert direct.execute("SELECT count(*) FROM consentier_records").fetchall() == [(1,)]


def test_appends_are_durable_whatever_the_session_says(url: str, direct: psycopg.Connection) -> None:
    """What the transaction that appends had set is noted by a trigger."""
    Ledger.open(url).close()
    direct.execute("CREATE TABLE noted (setting text)")
    direct.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN INSERT INTO noted SELECT current_setting('synchronous_commit'); RETURN NEW; END$$"
    )
    direct.execute(
        "CREATE TRIGGER note BEFORE INSERT ON consentier_entries FOR EACH ROW EXECUTE FUNCTION note()"
    )
    for number, setting in enumerate(("off", "local", "remote_apply")):
        with Ledger.open(with_options(url, f"-c synchronous_commit={setting}")) as ledger:
            ledger.append(batch("r", number, 1))
    assert [row[0] for row in direct.execute("SELECT setting FROM noted")] == ["on", "local", "remote_apply"]


# ---- A server that hangs -----------------------------------------------------------------------------------


def test_a_look_up_that_must_wait_is_given_up_by_the_server(url: str, direct: psycopg.Connection) -> None:
    with Ledger.open(with_options(url, "-c statement_timeout=200ms")) as ledger:
        ledger.append(batch("r", 0, 1))
        with direct.transaction():
            direct.execute("LOCK TABLE consentier_records IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(LedgerTimeout, match="too slow or overloaded"):
                online(ledger, "r/0/0")
        assert online(ledger, "r/0/0"), "and once it can answer it does"


def test_without_another_setting_look_ups_have_two_seconds(
    ledger: Ledger, direct: psycopg.Connection
) -> None:
    ledger.append(batch("r", 0, 1))
    with direct.transaction():
        direct.execute("LOCK TABLE consentier_records IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(LedgerError):
            online(ledger, "r/0/0")


def test_a_server_that_is_stuck_is_given_up_by_the_client(
    ledger: Ledger, direct: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.append(batch("r", 0, 1))
    monkeypatch.setattr(sqlalchemy_store, "PATIENCE_SECONDS", 0.3)
    found = direct.execute(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COMMIT%' OR query LIKE '%consentier%'"
    )
    stuck = [pid for (pid,) in found.fetchall() if pid != direct.info.backend_pid]
    assert stuck
    for pid in stuck:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(LedgerTimeout, match=r"no answer within 0\.3 s"):
            online(ledger, "r/0/0")
        monkeypatch.undo()
        assert online(ledger, "r/0/0"), "on a new connection"
    finally:
        for pid in stuck:
            os.kill(pid, signal.SIGCONT)


def test_requests_stop_asking_one_that_hangs_and_ask_again_when_it_answers(
    ledger: Ledger, direct: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.append(batch("r", 0, 1))
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 3600.0)
    shop = dataclasses.replace(engine(), ledger=ledger, ledger_deadline=0.05)
    request = Request(visitor_id="r/0/0", session=ITEMS[:1], online_history=[Event(ITEMS[2])], at=AT)
    with direct.transaction():
        direct.execute("LOCK TABLE consentier_records IN ACCESS EXCLUSIVE MODE")
        answers = [shop.recommend(request) for _ in range(LATE_IN_A_ROW + 5)]
    assert {answer.tier for answer in answers} == {Tier.SESSION}
    reasons = [answer.basis.reasons[-1] for answer in answers]
    assert reasons[:LATE_IN_A_ROW] == ["ledger: no answer within 50 ms"] * LATE_IN_A_ROW
    assert set(reasons[LATE_IN_A_ROW:]) == {f"ledger: {NOT_ASKED}"}
    patient = dataclasses.replace(shop, ledger_deadline=30.0)
    while (answer := patient.recommend(request)).tier is not Tier.ONLINE:
        assert answer.basis.reasons[-1] == f"ledger: {NOT_ASKED}"
        time.sleep(0.01)  # until the late answer is there


def test_a_writer_that_holds_the_ledger_for_too_long_is_complained_of(
    ledger: Ledger, direct: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlalchemy_store, "_GUARDS", sqlalchemy_store._settings(lock_timeout="200ms"))
    lock = str(sqlalchemy_store._LOCK.compile(compile_kwargs={"literal_binds": True}))
    with direct.transaction():
        direct.execute(lock.encode())
        with pytest.raises(LedgerError, match="look for a stuck one"):
            ledger.append(batch("r", 0, 1))
    assert ledger.append(batch("r", 0, 1)) == 1


def test_a_writer_that_is_stopped_half_way_does_not_stop_the_others_for_ever(
    url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sqlalchemy_store, "_GUARDS", sqlalchemy_store._settings(idle_in_transaction_session_timeout="200ms")
    )
    store: Any = ledger._store
    with Ledger.open(url) as other, pytest.raises(LedgerError), store._writing():
        assert other.append(batch("r", 0, 1)) == 1, "it waits until the server has thrown the first out"
    assert ledger.append(batch("r", 1, 1)) == 1
    assert ledger.verify().ok


# ---- Roles -------------------------------------------------------------------------------------------------

TABLES = (
    "consentier_schema",
    "consentier_entries",
    "consentier_records",
    "consentier_links",
    "consentier_erasures",
    "consentier_erased_versions",
    "consentier_erased_logins",
)


@pytest.fixture(scope="module")
def granted(cluster: Cluster) -> Iterator[Callable[[str], Ledger]]:
    """Opens, for a role, a ledger whose owner did what the documentation says."""
    (statements,) = re.findall(r"```sql\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    opened: list[Ledger] = []
    with new_schema(cluster.url) as url:
        with Ledger.open(url) as ledger:
            ledger.append([said("r", "granted", 0)])
            ledger.append_links([Link("a", "a", at_tick(0)), Link("a", "b", at_tick(0))])
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(statements)
            owner.execute(
                "DO $$ BEGIN EXECUTE 'GRANT USAGE ON SCHEMA ' || current_schema() || ' TO PUBLIC'; END $$"
            )

        def open_as(role: str) -> Ledger:
            opened.append(Ledger.open(url.replace("consentier@", f"{role}@", 1), create=False))
            return opened[-1]

        yield open_as
        for each in opened:
            each.close()
    with psycopg.connect(cluster.url, autocommit=True) as owner:
        for role in ("reader", "writer", "eraser"):
            owner.execute(f"DROP ROLE ledger_{role}".encode())


def denied(act: Callable[[], object]) -> None:
    with pytest.raises(LedgerError, match=r"permission denied.*docs/ledger-postgresql\.md"):
        act()


def test_a_reader_reads_everything_and_writes_nothing(granted: Callable[[str], Ledger]) -> None:
    ledger = granted("ledger_reader")
    before = ledger.position
    assert ledger.resolve(visitor_id="a", customer_id="a", at=at_tick(1)).online
    assert len(list(ledger.entries())) == len(ledger.columns("links")["evidence"]) + 1
    assert ledger.verify().ok
    assert ledger.conflicts == []
    denied(lambda: ledger.append([said("s", "granted", 0)]))
    denied(lambda: ledger.append_links([Link("b", "b", at_tick(0))]))
    denied(lambda: ledger.erase("a", kind="visitor"))
    assert ledger.position == before


def test_a_writer_appends_and_erases_nothing(granted: Callable[[str], Ledger]) -> None:
    ledger = granted("ledger_writer")
    assert ledger.append([said("w", "granted", 0), said("w", "denied", 0), said("r", "denied", 0)]) == 3
    assert ledger.append_links([Link("w", "w", at_tick(0))]) == 1
    denied(lambda: ledger.erase("a", kind="visitor"))
    denied(lambda: ledger.dissolve_links(customer_id="a"))
    assert ledger.verify().ok


def test_an_eraser_erases_and_appends_no_consent(granted: Callable[[str], Ledger]) -> None:
    ledger = granted("ledger_eraser")
    assert ledger.dissolve_links(customer_id="b") == 1
    assert ledger.erase("a", kind="visitor") > 0
    denied(lambda: ledger.append([said("again", "granted", 0)]))
    denied(lambda: ledger.append_links([Link("again", "a", at_tick(0))]))
    assert ledger.verify().ok


ALLOWED = {
    "ledger_reader": {},
    "ledger_writer": {"INSERT": {"consentier_entries", "consentier_records", "consentier_links"}},
    "ledger_eraser": {
        "INSERT": {
            "consentier_entries",
            "consentier_erasures",
            "consentier_erased_versions",
            "consentier_erased_logins",
        },
        "DELETE": {
            "consentier_records",
            "consentier_links",
            "consentier_erased_versions",
            "consentier_erased_logins",
        },
    },
}


@pytest.mark.parametrize("role", ALLOWED)
def test_past_the_ledger_a_role_may_do_no_more(
    granted: Callable[[str], Ledger], cluster: Cluster, role: str
) -> None:
    schema = str(granted(role)._store._engine.url.query["options"]).rpartition("=")[2]  # type: ignore[attr-defined]
    with psycopg.connect(cluster.url) as owner:
        asked = "SELECT has_table_privilege(%s, %s, %s)"
        may = {
            (action, table)
            for action in ("INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRIGGER", "REFERENCES")
            for table in TABLES
            if owner.execute(asked, (role, f"{schema}.{table}", action)).fetchall() == [(True,)]
        }
        columns = owner.execute(
            "SELECT table_name, column_name FROM information_schema.column_privileges "
            "WHERE grantee = %s AND privilege_type = 'UPDATE'",
            (role,),
        ).fetchall()
        creates = owner.execute("SELECT has_schema_privilege(%s, %s, 'CREATE')", (role, schema)).fetchall()
    assert may == {(action, table) for action, tables in ALLOWED[role].items() for table in tables}
    assert columns == ([("consentier_entries", "salt")] if role == "ledger_eraser" else [])
    assert creates == [(False,)]
