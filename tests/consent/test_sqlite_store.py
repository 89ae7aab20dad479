"""A ledger in an SQLite file: what it does when file, disk or another process are not as they should be."""

from __future__ import annotations

import itertools
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from breaking import Break
from consent_cases import at_tick, said
from forks import in_forked_process
from ledger_writer import AT, batch

from consentier.consent import Ledger, Link, sqlite_queries, sqlite_store
from consentier.consent.sqlite_store import LOOKUP_SECONDS, SqliteStore
from consentier.errors import LedgerError, LedgerTimeout


def opened(path: Path, *, create: bool = True) -> Ledger:
    return Ledger.open(f"sqlite:///{path}", create=create)


def pragma(path: Path, name: str) -> object:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


# ---- URLs and files ----------------------------------------------------------------------------------------


def test_a_relative_path_is_relative_to_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger.open("sqlite:///here.db") as ledger:
        monkeypatch.chdir("/")
        assert ledger.append(batch("a", 0, 1)) == 1
    assert (tmp_path / "here.db").exists()


@pytest.mark.parametrize(
    "url", ["", "consents.db", "sqlite://", "sqlite:///", "mysql://x/y", "sqlite://x.db"]
)
def test_a_url_of_nothing_that_a_ledger_is_kept_in_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"sqlite:///"):
        Ledger.open(url)


def test_a_ledger_is_readable_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with opened(path) as ledger:
        ledger.append(batch("a", 0, 1))
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_what_is_acknowledged_is_on_the_disk(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger.db") as ledger:
        store = ledger._store
        assert isinstance(store, SqliteStore)
        settings = {
            name: store._connection().execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "journal_mode", "secure_delete")
        }
    assert settings == {"synchronous": 2, "journal_mode": "wal", "secure_delete": 1}


def test_whoever_writes_waits_longer_for_others_than_whoever_looks_up(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger.db") as ledger:
        store = ledger._store
        assert isinstance(store, SqliteStore)
        waits = [store._connection().execute("PRAGMA busy_timeout").fetchone()[0]]
        with store._writing() as connection:
            waits.append(connection.execute("PRAGMA busy_timeout").fetchone()[0])
        waits.append(store._connection().execute("PRAGMA busy_timeout").fetchone()[0])
        assert ledger.answers_within == LOOKUP_SECONDS
    assert waits == [1000 * LOOKUP_SECONDS, 30_000, 1000 * LOOKUP_SECONDS]


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    opened(tmp_path / "ledger.db").close()
    assert pragma(tmp_path / "ledger.db", "application_id") == int.from_bytes(b"Cnsr", "big")
    assert pragma(tmp_path / "ledger.db", "user_version") == 1


def test_nobody_elses_file_is_touched(tmp_path: Path) -> None:
    foreign, text = tmp_path / "shop.db", tmp_path / "notes.txt"
    with closing(sqlite3.connect(foreign)) as connection, connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
    text.write_text("no database at all, but long enough to have a header\n" * 10)
    for path, message in ((foreign, "no ledger"), (text, "not a database.*choose another")):
        before = path.read_bytes()
        with pytest.raises(LedgerError, match=message):
            opened(path)
        assert path.read_bytes() == before


def test_a_ledger_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "ledger.db").close()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match=r"newer release \(schema 99.*update Consentier"):
        opened(tmp_path / "ledger.db")


def test_an_older_schema_is_brought_forward_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    with opened(path) as ledger:
        ledger.append(batch("a", 0, 2))
        told = ledger.head
    newer = (*sqlite_queries.MIGRATIONS, "CREATE TABLE notes (text TEXT) STRICT;\n")
    monkeypatch.setattr(sqlite_queries, "MIGRATIONS", newer)
    sqlite_queries.expected_schema.cache_clear()
    with pytest.raises(LedgerError, match="older release; open it with create=True"):
        opened(path, create=False)
    with opened(path) as ledger:
        assert ledger.head == told
        assert ledger.verify().ok
    assert pragma(path, "user_version") == 2
    sqlite_queries.expected_schema.cache_clear()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/proc/ledger.db", "cannot be made"),
        ("/nowhere/at/all/ledger.db", "cannot be made: No such file or directory"),
        ("/proc", "could not be opened.*its directory"),
    ],
)
def test_a_place_that_takes_no_file_is_told(path: str, message: str) -> None:
    with pytest.raises((LedgerError, ValueError), match=message):
        Ledger.open(f"sqlite:///{path}")


def test_a_closed_ledger_says_so(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger.db")
    view = ledger.as_of(0)
    ledger.close()
    ledger.close()
    asks: list[Callable[[], object]] = [
        lambda: ledger.append(batch("a", 0, 1)),
        lambda: view.resolve(visitor_id="a", at=at_tick(1)),
        lambda: list(ledger.entries()),
        ledger.verify,
    ]
    for ask in asks:
        with pytest.raises(LedgerError, match="closed"):
            ask()


# ---- Faults ------------------------------------------------------------------------------------------------

_UNTIL_FULL = """
import resource, signal, sys
from consentier.consent import Ledger
from consentier.errors import LedgerError
sys.path.insert(0, sys.argv[2])
from ledger_writer import batch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
for number in range(10_000):
    try:
        ledger.append(batch("w", number, 20))
    except LedgerError as error:
        print(error)
        break
    print(number, flush=True)
# No room is no reason to lose what there is, nor to stop answering.
assert ledger.position == 20 * number and ledger.verify().ok
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(ledger.append(batch("w", number, 20)))
"""


def test_a_full_disk_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    support = str(Path(__file__).parents[1] / "support")
    run = subprocess.run(
        [sys.executable, "-c", _UNTIL_FULL, f"sqlite:///{path}", support],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    *numbers, message, again = run.stdout.splitlines()
    assert again == "20", run.stderr
    assert numbers == [str(number) for number in range(len(numbers))]
    assert len(numbers) > 1
    assert "could not be written to" in message
    assert "what was acknowledged before is kept, this was not" in message
    with opened(path, create=False) as ledger:
        assert ledger.position == 20 * (len(numbers) + 1)
        assert ledger.verify().ok


def test_a_file_that_has_no_room_to_grow_loses_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger.db") as ledger:
        store = ledger._store
        assert isinstance(store, SqliteStore)
        ledger.append(batch("a", 0, 5))
        store._connection().execute("PRAGMA max_page_count = 1")  # at least what there is
        with pytest.raises(LedgerError, match=r"SQLITE_FULL\); the disk is full"):
            ledger.append(batch("a", 1, 2000))
        assert ledger.position == 5
        assert ledger.verify().ok


def test_a_damaged_file_denies_and_does_not_verify(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with opened(path) as ledger:
        ledger.append(said(f"r{number}", "granted", 0, subject=f"s{number}") for number in range(500))
    damaged = bytearray(path.read_bytes())
    for page in range(2, len(damaged) // 4096):
        damaged[page * 4096 : page * 4096 + 64] = bytes(64)
    path.write_bytes(damaged)
    with opened(path) as ledger:
        with pytest.raises(LedgerError, match="restore it from a backup"):
            ledger.resolve(visitor_id="s7", at=at_tick(1))
        with pytest.raises(LedgerError, match="could not be verified"):
            ledger.verify()


def test_a_writer_that_waits_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    monkeypatch.setattr(sqlite_store, "_BUSY_SECONDS", 0.05)
    with opened(path) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        ledger.append(batch("a", 0, 1))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerTimeout, match="another process held the ledger for too long"):
            ledger.append(batch("a", 1, 1))
        assert ledger.resolve(visitor_id="a/0/0", at=AT).online, "readers wait for nobody"
        other.execute("ROLLBACK")
        assert ledger.append(batch("a", 1, 1)) == 1


def test_what_an_interrupt_cuts_short_is_not_there(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger.db") as ledger:
        broken = Break("", sqlite_queries.Batch.write, "self._written += len", "raise KeyboardInterrupt; len")
        with broken.applied(), pytest.raises(KeyboardInterrupt):
            ledger.append(batch("a", 0, 3))
        assert ledger.position == 0
        assert ledger.append(batch("a", 0, 3)) == 3


# ---- Threads and processes ---------------------------------------------------------------------------------


def test_many_may_make_one_ledger_at_once(tmp_path: Path) -> None:
    ledgers: list[Ledger] = []
    ready = threading.Barrier(8)

    def make() -> None:
        ready.wait(60)
        ledgers.append(opened(tmp_path / "ledger.db"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledgers) == 8
    for number, ledger in enumerate(ledgers):
        ledger.append(batch("a", number, 1))
    assert all(ledger.position == 8 for ledger in ledgers)
    assert ledgers[0].verify().ok
    for ledger in ledgers:
        ledger.close()


def test_a_thread_that_ends_leaves_no_file_open(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger.db") as ledger:
        ledger.append(batch("a", 0, 1))
        files = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            thread = threading.Thread(target=lambda: ledger.resolve(visitor_id="a/0/0", at=at_tick(0)))
            thread.start()
            thread.join()
        assert len(list(Path("/proc/self/fd").iterdir())) <= files + 3


def test_one_may_append_while_reading_all(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger.db") as ledger, opened(tmp_path / "ledger.db") as other:
        ledger.append(batch("a", 0, 5))
        seen = 0
        for (position, _), number in zip(ledger.entries(), itertools.count(), strict=False):
            other.append(batch("b", number, 1))
            ledger.append(batch("c", number, 1))
            seen = position
        assert seen == 5, "what came since is not among them"
        assert ledger.position == 15


def check_one_moment(directory: Path) -> None:
    """A question never sees half of what another connection appended at once."""
    directory.mkdir()
    written: list[int] = []
    with opened(directory / "ledger.db") as ledger, opened(directory / "ledger.db") as other:

        def write() -> None:
            for number in range(40):
                state = "granted" if number % 2 else "withdrawn"
                crm = said(f"c{number}", state, number, permission="crm", kind="customer")
                other.append([said(f"v{number}", state, number), crm])
                written.append(number)

        writer = threading.Thread(target=write)
        writer.start()
        found = []
        while writer.is_alive():
            found.append(ledger.resolve(visitor_id="a", customer_id="a", at=at_tick(50)))
        writer.join()
    assert len(written) == 40
    assert all(each.online == each.crm for each in found)


def test_a_question_sees_one_moment(tmp_path: Path) -> None:
    check_one_moment(tmp_path / "whole")


def test_columns_are_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contents of one id, erased while they are read: neither may be read as uncontradicted."""
    path = tmp_path / "ledger.db"
    contested = sqlite_queries.conflicts
    # The log cannot be cut off while it is read here.
    monkeypatch.setattr(sqlite_store, "_PATIENCE_SECONDS", 0.001)
    with opened(path) as ledger, opened(path) as other:
        ledger.append([said("r", "granted", 0), said("r", "granted", 0, permission="ads")])

        def erased_meanwhile(*asked: object) -> list[str]:
            other.erase("a", kind="visitor")
            return contested(*asked)  # type: ignore[arg-type]

        monkeypatch.setattr(sqlite_queries, "conflicts", erased_meanwhile)
        assert ledger.columns("records")["conflicting"] == [True, True]
        assert ledger.columns("records")["conflicting"] == []


def test_a_forked_process_takes_no_lock_and_closes_nothing_of_its_parents(tmp_path: Path) -> None:
    """Also where it reads everything first, or closes the ledger at once."""
    with opened(tmp_path / "ledger.db") as ledger:
        ledger.append(batch("a", 0, 3))
        store = ledger._store
        assert isinstance(store, SqliteStore)

        def reads_all() -> None:
            assert len(list(ledger.entries())) == 3

        def closes() -> None:
            inherited = [each.sqlite for each in store._open]
            ledger.close()
            for connection in inherited:
                connection.execute("SELECT 1")  # closed, it would raise
            with pytest.raises(LedgerError, match="was closed"):
                ledger.records_of("a", kind="visitor")

        with store._lock:  # as a thread of the parent may, at that very moment
            in_forked_process(reads_all)
            in_forked_process(closes)
        assert ledger.position == 3


def test_what_is_no_matter_of_waiting_is_told_at_once() -> None:
    """Turning to the log waits for others who do the same, and for nothing else."""
    asked = []

    class Connection:
        def execute(self, statement: str) -> sqlite3.Cursor:
            asked.append(statement)
            error = sqlite3.OperationalError("attempt to write a readonly database")
            error.sqlite_errorname = "SQLITE_READONLY"
            raise error

    with pytest.raises(sqlite3.OperationalError):
        sqlite_store._use_log(Connection())  # type: ignore[arg-type]
    assert len(asked) == 1


def test_a_time_that_there_is_not_is_a_ledger_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with opened(path) as ledger:
        ledger.append([said("r", "granted", 0)])
        ledger.append_links([Link("a", "a", at_tick(0))])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET valid_from = ?", (2**62,))
        connection.execute("UPDATE links SET linked_at = ?", (2**62,))
    with opened(path) as ledger:
        for ask in (ledger.records_of, ledger.links_of):
            with pytest.raises(LedgerError, match="somebody changed it"):
                ask("a", kind="visitor")
        with pytest.raises(LedgerError, match="somebody changed it"):
            list(ledger.entries())


# ---- Backups -----------------------------------------------------------------------------------------------


def test_a_backup_is_one_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger.db") as ledger:
        ledger.append(batch("a", 0, 3000))
        ledger.backup(tmp_path / "backup.db")
        assert [path.name for path in tmp_path.glob("backup*")] == ["backup.db"]
        with pytest.raises(LedgerError, match="exists already"):
            ledger.backup(tmp_path / "backup.db")
        with pytest.raises(LedgerError, match="cannot be made"):
            ledger.backup(tmp_path / "nowhere" / "backup.db")
        with pytest.raises(LedgerError, match="cannot be backed up"):
            ledger.as_of(1).backup(tmp_path / "view.db")
        assert pragma(tmp_path / "backup.db", "journal_mode") == "delete"
    with opened(tmp_path / "backup.db") as copy:
        assert copy.position == 3000


def test_a_backup_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger.db") as ledger:
        ledger.append(batch("a", 0, 10))
        broken = Break("", SqliteStore.settle, '"PRAGMA journal_mode = DELETE"', '"no such statement"')
        with broken.applied(), pytest.raises(LedgerError):
            ledger.backup(tmp_path / "backup.db")
        assert not list(tmp_path.glob("backup*"))


def test_an_empty_file_is_no_backup(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with pytest.raises(LedgerError, match="the file is empty"):
        Ledger.restore(tmp_path / "empty.db", f"sqlite:///{tmp_path}/restored.db")
    assert not (tmp_path / "restored.db").exists()


def test_a_backup_that_was_altered_is_not_restored(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger.db") as ledger:
        ledger.append(batch("a", 0, 3))
        ledger.backup(tmp_path / "backup.db")
    with closing(sqlite3.connect(tmp_path / "backup.db")) as connection, connection:
        connection.execute("UPDATE records SET state = 'denied' WHERE position = 2")
    before = (tmp_path / "backup.db").read_bytes()
    with pytest.raises(LedgerError, match=r"entry 2 was altered.*not restored"):
        Ledger.restore(tmp_path / "backup.db", f"sqlite:///{tmp_path}/restored.db")
    assert not (tmp_path / "restored.db").exists()
    assert (tmp_path / "backup.db").read_bytes() == before
    with pytest.raises(LedgerError, match="there is none"):
        Ledger.restore(tmp_path / "missing.db", f"sqlite:///{tmp_path}/restored.db")


def test_a_ledger_in_memory_is_backed_up_too(tmp_path: Path) -> None:
    in_memory = Ledger(batch("a", 0, 3))
    in_memory.erase("a/0/1", kind="visitor")
    in_memory.backup(tmp_path / "backup.db")
    with Ledger.restore(tmp_path / "backup.db", f"sqlite:///{tmp_path}/restored.db") as restored:
        assert restored.head == in_memory.head
        assert [entry for _, entry in restored.entries()] == [entry for _, entry in in_memory.entries()]


# ---- Mutants -----------------------------------------------------------------------------------------------


def test_half_a_batch_would_be_noticed(tmp_path: Path) -> None:
    broken = Break(
        "a batch is not one transaction",
        SqliteStore.append,
        "self._writing() as connection",
        "contextlib.nullcontext(self._connection()) as connection",
    )
    with broken.applied(), pytest.raises(AssertionError):
        test_what_an_interrupt_cuts_short_is_not_there(tmp_path)


def test_two_moments_would_be_noticed(tmp_path: Path) -> None:
    broken = Break(
        "visitor and customer are looked up one after the other",
        SqliteStore.about,
        "self._connection().execute(queries.ABOUT, asked))\n    except",
        "[*self._connection().execute(queries.ABOUT, {**asked, 'customer': None}),"
        " *self._connection().execute(queries.ABOUT, {**asked, 'visitor': None})])\n    except",
    )

    def check() -> None:
        for number in range(20):
            check_one_moment(tmp_path / str(number))

    with broken.applied(), pytest.raises(AssertionError):
        check()
