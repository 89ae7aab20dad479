"""What is particular to a ledger in PostgreSQL: its tables, and what is done to them past it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from breaking import Break, assert_breaks, breaks
from consent_cases import Case, at_tick, said
from hypothesis import strategies as st
from ledger_conformance import Append, Erase, Step, everything, take
from ledger_writer import batch
from postgresql_schemas import new_schema

from consentier.consent import Ledger, Link, migrations, sqlalchemy_queries
from consentier.consent.migrations.tables import METADATA, VERSION_TABLE
from consentier.consent.sqlalchemy_store import SqlAlchemyStore
from consentier.errors import LedgerError

pytestmark = pytest.mark.service("postgresql")


@pytest.fixture
def url(postgresql: str) -> Iterator[str]:
    with new_schema(postgresql) as url:
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


# ---- Tables ------------------------------------------------------------------------------------------------

_DESCRIPTIONS = (
    "SELECT table_name, column_name, ordinal_position, data_type, is_nullable, column_default "
    "FROM information_schema.columns WHERE table_schema = current_schema() ORDER BY 1, 2",
    "SELECT tablename, replace(indexdef, schemaname || '.', '') FROM pg_indexes "
    "WHERE schemaname = current_schema() ORDER BY 1, 2",
    "SELECT conrelid::regclass::text, contype, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE connamespace = current_schema()::regnamespace ORDER BY 1, 3",
)


def described(url: str) -> list[tuple[Any, ...]]:
    """Columns, indexes and constraints of a schema's tables, but for Alembic's own."""
    with psycopg.connect(url) as connection:
        rows = [row for query in _DESCRIPTIONS for row in connection.execute(query).fetchall()]
    return [row for row in rows if row[0] != VERSION_TABLE]


def test_the_revisions_lead_to_the_tables_that_the_code_knows(url: str, postgresql: str) -> None:
    Ledger.open(url).close()
    with new_schema(postgresql) as other:
        engine = sa.create_engine(other.replace("postgresql:", "postgresql+psycopg:", 1))
        METADATA.create_all(engine)
        engine.dispose()
        assert described(url) == described(other)
    assert len(described(url)) > 40


def test_the_revisions_known_are_those_there_are_in_one_line() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(found)) == migrations.REVISIONS


def test_many_open_a_new_ledger_at_once(url: str) -> None:
    ready = threading.Barrier(6)

    def open_and_append(number: int) -> int:
        ready.wait(60)
        with Ledger.open(url) as ledger:
            return ledger.append(batch(str(number), 0, 2))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(open_and_append, range(6))) == [2] * 6
    with Ledger.open(url, create=False) as ledger:
        assert ledger.position == 12
        assert ledger.verify().ok


def test_tables_of_a_newer_release_are_refused(ledger: Ledger, url: str, direct: psycopg.Connection) -> None:
    ledger.append([said("r", "granted", 0)])
    direct.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    for create in (False, True):
        with pytest.raises(LedgerError, match=r"'9999'.*upgrade consentier"):
            Ledger.open(url, create=create)
    assert direct.execute("SELECT count(*) FROM consentier_entries").fetchall() == [(1,)]


def test_a_url_that_is_none_and_one_of_nowhere() -> None:
    with pytest.raises(ValueError, match="postgresql://USER@HOST/DATABASE"):
        Ledger.open("postgresql://user@host:port/db")
    with pytest.raises(LedgerError, match="nonexistent") as failure:
        Ledger.open("postgresql://user:hunter2@/db?host=/nonexistent")
    assert "hunter2" not in str(failure.value)


def test_without_the_packages_it_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['psycopg'] = None\n"
        "from consentier.consent import Ledger\n"
        "Ledger.open('postgresql://user@host/db')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "LedgerError" in done.stderr
    assert "pip install 'consentier[postgresql]'" in done.stderr


# ---- Tampering ---------------------------------------------------------------------------------------------

SALT = "'\\x" + "00" * 32 + "'"

TAMPERINGS = {
    "alter": ("UPDATE consentier_records SET state = 'granted' WHERE position = 3", 3),
    "alter a time": ("UPDATE consentier_records SET valid_to = valid_from WHERE position = 2", 2),
    "alter a link": ("UPDATE consentier_links SET customer_id = 'b' WHERE position = 5", 5),
    "alter an erasure": ("UPDATE consentier_erasures SET positions = '{1,3}' WHERE position = 8", 8),
    "alter a kind": ("UPDATE consentier_entries SET kind = 'Link' WHERE position = 2", 2),
    "alter into no kind": ("UPDATE consentier_entries SET kind = 'None' WHERE position = 2", 2),
    "remove a row": ("DELETE FROM consentier_records WHERE position = 3", 3),
    "remove an entry": ("DELETE FROM consentier_entries WHERE position = 3", 3),
    "empty without a note": (
        "WITH gone AS (DELETE FROM consentier_records WHERE position = 3) "
        "UPDATE consentier_entries SET salt = NULL WHERE position = 3",
        3,
    ),
    "empty in the index only": ("UPDATE consentier_entries SET salt = NULL WHERE position = 3", 3),
    "swap": (
        "UPDATE consentier_records SET position = CASE position WHEN 2 THEN -3 ELSE -2 END "
        "WHERE position IN (2, 3);"
        "UPDATE consentier_records SET position = -position WHERE position < 0",
        2,
    ),
    "salt anew": (f"UPDATE consentier_entries SET salt = {SALT} WHERE position = 2", 2),
    "commit anew": (f"UPDATE consentier_entries SET commitment = {SALT} WHERE position = 2", 2),
    "chain anew": (f"UPDATE consentier_entries SET chain = {SALT} WHERE position = 2", 2),
    "bring the erased back": (
        "INSERT INTO consentier_records SELECT 1, 'r0', 'z', 'visitor', 'online', 'granted', 0, NULL, 0",
        1,
    ),
    "slip a row in": (
        "INSERT INTO consentier_records SELECT 99, 'new', 'a', 'visitor', 'online', 'granted', 0, NULL, 0",
        99,
    ),
    "slip a row under an entry of another kind": (
        "INSERT INTO consentier_records SELECT 5, 'new', 'a', 'visitor', 'online', 'granted', 0, NULL, 0",
        5,
    ),
    "forget that a device was shared": ("DELETE FROM consentier_erased_logins WHERE position = 7", 7),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_whatever_is_changed_past_the_ledger_is_found(
    ledger: Ledger, direct: psycopg.Connection, tampering: str
) -> None:
    ledger.append([said("r0", "granted", 0, subject="z"), said("r1", "granted", 0), said("r2", "denied", 1)])
    ledger.append([said("r3", "granted", 0, kind="customer", permission="crm")])
    ledger.append_links([Link("a", "a", at_tick(0)), Link("a", "b", at_tick(1))])
    assert ledger.erase("b", kind="customer") == 1  # leaves entry 7, says so in entry 8
    assert ledger.erase("z", kind="visitor") == 1
    anchor = ledger.position, ledger.head
    assert ledger.verify(anchor=anchor).ok
    statements, first = TAMPERINGS[tampering]
    direct.execute(statements.encode())
    for found in (ledger.verify(), ledger.verify(anchor=anchor)):
        assert not found.ok
        assert found.problem is not None
        assert re.match(rf"entry {first}\b", found.problem), found.problem


def test_an_end_that_was_cut_off_is_missed_by_whoever_noted_it(
    ledger: Ledger, direct: psycopg.Connection
) -> None:
    ledger.append(batch("r", 0, 3))
    anchor = ledger.position, ledger.head
    direct.execute("DELETE FROM consentier_entries WHERE position = 3")
    direct.execute("DELETE FROM consentier_records WHERE position = 3")
    assert ledger.verify().ok
    found = ledger.verify(anchor=anchor)
    assert not found.ok
    assert found.problem is not None
    assert found.problem.startswith("entry 3 is missing")


# ---- What look-ups must not lose ---------------------------------------------------------------------------

WITNESS_SHARED: list[Step] = [
    Append(
        (
            said("v", "granted", 0),
            said("c", "granted", 0, permission="crm", kind="customer"),
        ),
        (Link("a", "a", at_tick(1)), Link("a", "b", at_tick(2))),
    ),
    Erase("customer", "b"),
]
WITNESS_CONFLICT: list[Step] = [
    Append((said("r", "granted", 0), said("r", "granted", 0, subject="b")), ()),
    Erase("visitor", "b"),
]


@breaks(
    Break(
        "nothing is left of erased entries",
        SqlAlchemyStore.erase,
        "if remnant.of in gone",
        "if not gone",
        WITNESS_SHARED,
    ),
    Break(
        "what is left of an erased version states nothing else",
        sqlalchemy_queries._version,
        '("erased", position) if erased else',
        "0 if True else",
        WITNESS_CONFLICT,
    ),
    Break(
        "what is left of an erased login is not told",
        sqlalchemy_queries.facts_of,
        'elif part == "link":',
        'elif part == "link" and row[1] is None: pass\n        elif part == "link":',
        WITNESS_SHARED,
    ),
    Break(
        "repetitions are appended again",
        SqlAlchemyStore.append,
        "new.pop(known, None)",
        "pass",
        [WITNESS_CONFLICT[0], WITNESS_CONFLICT[0]],
    ),
)
def test_the_comparison_with_the_ledger_in_memory_would_notice(
    ledger: Ledger, direct: psycopg.Connection, broken: Break
) -> None:
    def answers_as_one_in_memory_does(history: list[Step]) -> None:
        direct.execute(f"TRUNCATE {', '.join(METADATA.tables)}")
        reference, asked = Ledger(), Case((), (), at_tick(4))
        for step in history:
            assert take(ledger, step) == take(reference, step)
        assert everything(ledger, asked) == everything(reference, asked)

    assert_breaks(answers_as_one_in_memory_does, st.nothing(), broken)


def test_a_look_up_finds_its_rows_by_index_even_without_statistics(
    ledger: Ledger, direct: psycopg.Connection
) -> None:
    """After a large import the planner knows nothing of the tables until they are analysed."""
    for table in METADATA.tables:
        direct.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)".encode())
    ledger.append([record for number in range(20) for record in batch("r", number, 1000)])
    ledger.append_links([Link(f"v{number}", f"c{number}", at_tick(0)) for number in range(20_000)])
    direct.execute("SET max_parallel_workers_per_gather = 0")
    asked = {"visitor": "r/1/1", "customer": "c1", "until": sqlalchemy_queries.END_OF_TIME}
    plan = "\n".join(row[0] for row in direct.execute(f"EXPLAIN {sqlalchemy_queries.ABOUT}".encode(), asked))
    assert "consentier_records" in plan
    assert "Seq Scan on consentier_records" not in plan
    assert "Seq Scan on consentier_links" not in plan
