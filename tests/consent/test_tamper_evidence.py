"""Tamper evidence: whatever is done to a ledger's file behind its back, `verify` names the first entry hit.

The attacks are SQL on a copy of the file. Whoever can also compute the chain anew from some entry on, or cuts
entries off its end, leaves a ledger that agrees with itself: that shows by an anchor noted elsewhere.
"""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from breaking import Break, breaks
from consent_cases import Case, at_tick, said
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ledger_conformance import Step, steps, take

from consentier.consent import Ledger, Link, chain, sqlite_queries
from consentier.consent.entries import ENTRY_COLUMNS, Row, StoredEntry

Statement = Callable[[str, tuple[object, ...]], list[Row]]
Attack = Callable[[Statement, int], int | None]
"""Does something to the entry at a position; returns which entry must be named, None: it cannot be done."""

TABLES = {
    "ConsentRecord": "records",
    "Link": "links",
    "Erasure": "erasures",
    "ErasedVersion": "erased_versions",
    "ErasedLogin": "erased_logins",
}


def content_of(execute: Statement, position: int) -> tuple[str, Row] | None:
    """The table and the row that hold an entry's content."""
    for table in TABLES.values():
        for row in execute(f"SELECT * FROM {table} WHERE position = ?", (position,)):
            return table, row
    return None


def last(execute: Statement) -> int:
    """The position of the last entry."""
    position: int = execute("SELECT coalesce(max(position), 0) FROM entries", ())[0][0]
    return position


# ---- Attacks -----------------------------------------------------------------------------------------------


def alter(column: int) -> Attack:
    """Change one field of an entry."""

    def attack(execute: Statement, position: int) -> int | None:
        found = content_of(execute, position)
        if found is None:
            return None
        table, row = found
        names = ENTRY_COLUMNS[next(kind for kind, name in TABLES.items() if name == table)]
        name, value = names[column % len(names)], row[1 + column % len(names)]
        changed = value + 1 if isinstance(value, int) else f"{value}'"
        if value is None:
            changed = 7 if name in ("valid_to", "linked_at", "double_opt_in_at") else "something"
        execute(f"UPDATE {table} SET {name} = ? WHERE position = ?", (changed, position))
        return position

    return attack


def alter_and_commit_to_it(execute: Statement, position: int) -> int | None:
    """Change an entry and its commitment. The chain's link at the entry does not follow any more."""
    found = content_of(execute, position)
    if found is None or found[0] != "records":
        return None
    execute("UPDATE records SET state = state || 'x' WHERE position = ?", (position,))
    salt = execute("SELECT salt FROM entries WHERE position = ?", (position,))[0][0]
    row = execute("SELECT * FROM records WHERE position = ?", (position,))[0][1:]
    committed = chain.commitment(salt, chain.canonical_row("ConsentRecord", row))
    execute("UPDATE entries SET commitment = ? WHERE position = ?", (committed, position))
    return position


def alter_and_chain_it(execute: Statement, position: int) -> int | None:
    """Change an entry, its commitment and its link: the next one does not follow."""
    if position == last(execute) or alter_and_commit_to_it(execute, position) is None:
        return None
    _rechain(execute, position, position)
    return position + 1


def _rechain(execute: Statement, first: int, until: int) -> None:
    before = execute("SELECT chain FROM entries WHERE position = ?", (first - 1,))
    head = before[0][0] if before else chain.GENESIS
    for position in range(first, until + 1):
        committed = execute("SELECT commitment FROM entries WHERE position = ?", (position,))[0][0]
        head = chain.chained(head, position, committed)
        execute("UPDATE entries SET chain = ? WHERE position = ?", (head, position))


def salt_anew(execute: Statement, position: int) -> int | None:
    """Give an entry another salt."""
    if content_of(execute, position) is None:
        return None
    execute("UPDATE entries SET salt = randomblob(32) WHERE position = ?", (position,))
    return position


def take_the_salt(execute: Statement, position: int) -> int | None:
    """Leave an entry without its salt."""
    if content_of(execute, position) is None:
        return None
    execute("UPDATE entries SET salt = NULL WHERE position = ?", (position,))
    return position


def rename(execute: Statement, position: int) -> int | None:
    """Say that an entry is of another kind."""
    if content_of(execute, position) is None:
        return None
    execute("UPDATE entries SET kind = 'Note' WHERE position = ?", (position,))
    return position


def remove(execute: Statement, position: int) -> int | None:
    """Delete an entry, and leave the gap."""
    if position == last(execute):
        return None
    _delete(execute, position)
    return position


def _delete(execute: Statement, position: int) -> None:
    execute("DELETE FROM entries WHERE position = ?", (position,))
    for table in TABLES.values():
        execute(f"DELETE FROM {table} WHERE position = ?", (position,))


def remove_and_close_up(execute: Statement, position: int) -> int | None:
    """Delete an entry and move up those that follow."""
    if remove(execute, position) is None:
        return None
    for following in range(position + 1, last(execute) + 1):
        _move(execute, following, following - 1)
    return position


def _move(execute: Statement, position: int, to: int) -> None:
    for table in ("entries", *TABLES.values()):
        execute(f"UPDATE {table} SET position = ? WHERE position = ?", (to, position))


def swap(execute: Statement, position: int) -> int | None:
    """Exchange an entry with the next."""
    if position == last(execute):
        return None
    _move(execute, position, -1)
    _move(execute, position + 1, position)
    _move(execute, -1, position + 1)
    return position


def swap_contents(execute: Statement, position: int) -> int | None:
    """Exchange what two entries of one kind say."""
    found = content_of(execute, position)
    if found is None:
        return None
    table = found[0]
    others = execute(f"SELECT position FROM {table} WHERE position > ? LIMIT 1", (position,))
    if not others:
        return None
    for source, target in ((position, -1), (others[0][0], position), (-1, others[0][0])):
        execute(f"UPDATE {table} SET position = ? WHERE position = ?", (target, source))
    return position


def put_in(execute: Statement, position: int) -> int | None:
    """Put a copy of an entry before it, and move the rest down."""
    if content_of(execute, position) is None:
        return None
    for following in range(last(execute), position - 1, -1):
        _move(execute, following, following + 1)
    execute(
        "INSERT INTO entries SELECT ?, kind, salt, commitment, chain FROM entries WHERE position = ?",
        (position, position + 1),
    )
    for kind, table in TABLES.items():
        execute(
            f"INSERT INTO {table} SELECT ?, {', '.join(ENTRY_COLUMNS[kind])} FROM {table} WHERE position = ?",
            (position, position + 1),
        )
    return position + 1  # the copy is what was there; what follows it is not


def empty(execute: Statement, position: int) -> int | None:
    """Delete content and salt as an erasure does, without a note of it."""
    if content_of(execute, position) is None:
        return None
    for table in TABLES.values():
        execute(f"DELETE FROM {table} WHERE position = ?", (position,))
    execute("UPDATE entries SET salt = NULL WHERE position = ?", (position,))
    return position


def slip_in_a_row(execute: Statement, position: int) -> int | None:
    """Add a row for which there is no entry, where look-ups would find it."""
    end = last(execute)
    execute(
        "INSERT INTO records (position, record_id, subject_id, subject_kind, permission, state, valid_from, "
        "recorded_at) VALUES (?, 'r', 'x', 'visitor', 'online', 'granted', 0, 0)",
        (end + position,),
    )
    return end + position


ATTACKS: dict[str, Attack] = {
    **{f"alter column {column}": alter(column) for column in range(14)},
    **{
        attack.__name__.replace("_", " "): attack
        for attack in (
            alter_and_commit_to_it,
            alter_and_chain_it,
            salt_anew,
            take_the_salt,
            rename,
            remove,
            remove_and_close_up,
            swap,
            swap_contents,
            put_in,
            empty,
            slip_in_a_row,
        )
    },
}


# ---- Random ledgers ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tampered:
    """A ledger's file, and a way to open it after something was done to it."""

    path: Path

    def attacked(self, attack: Attack, position: int) -> int | None:
        """Do something to the file; returns which entry must be named."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            named = attack(lambda sql, asked: connection.execute(sql, asked).fetchall(), position)
            connection.execute("COMMIT")
        return named

    def problem(self, anchor: tuple[int, str] | None = None) -> str | None:
        """What `verify` says."""
        with Ledger.open(f"sqlite:///{self.path}", create=False) as ledger:
            found = ledger.verify(anchor=anchor)
        assert found.ok == (found.problem is None)
        return found.problem


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=steps(), name=st.sampled_from(sorted(ATTACKS)), at=st.integers(1, 30))
def test_every_attack_on_any_ledger_is_found(
    tmp_path_factory: pytest.TempPathFactory, history: tuple[Case, list[Step]], name: str, at: int
) -> None:
    file = Tampered(tmp_path_factory.mktemp("ledger") / "ledger.db")
    with Ledger.open(f"sqlite:///{file.path}") as ledger:
        for step in history[1]:
            take(ledger, step)
        assume(ledger.position)
        position = 1 + at % ledger.position
    named = file.attacked(ATTACKS[name], position)
    problem = file.problem()
    if named is None:
        assert problem is None
    else:
        assert problem is not None
        assert problem.startswith(f"entry {named} ")


# ---- One ledger with all kinds of entries ------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with records, links, erasures and what they left."""
    path = tmp_path_factory.mktemp("ledgers") / "whole.db"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        ledger.append([said("r1", "granted", 0), said("r2", "granted", 0, subject="b")])
        ledger.append([said("one id", "granted", 1), said("one id", "granted", 1, subject="b")])
        ledger.append_links([Link("a", "a", at_tick(1)), Link("a", "b", at_tick(2))])
        ledger.erase("b", kind="visitor")
        ledger.erase("b", kind="customer")
        ledger.append([said("one id too", "granted", 1), said("one id too", "denied", 1)])
        ledger.append([said("r3", "denied", 3), said("r4", "lifted", 4, evidence="letter")])
        ledger.append_links([Link("a", "a", at_tick(4))])
        assert ledger.verify().ok
        assert {entry.kind for entry in ledger._store.entries()} == set(TABLES)
    return path


@pytest.fixture
def file(whole: Path, tmp_path: Path) -> Tampered:
    shutil.copyfile(whole, tmp_path / "ledger.db")
    return Tampered(tmp_path / "ledger.db")


def check_attack(file: Tampered, attack: Attack) -> None:
    """An attack, at every position where it can be done, is found, and names the entry."""
    original = file.path.read_bytes()
    hits = 0
    for position in range(1, 15):
        file.path.write_bytes(original)
        named = file.attacked(attack, position)
        if named is not None:
            hits += 1
            problem = file.problem()
            assert problem is not None
            assert problem.startswith(f"entry {named} ")
    file.path.write_bytes(original)
    assert hits or attack.__name__ == "attack"


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_names_the_first_entry_that_it_hits(file: Tampered, name: str) -> None:
    check_attack(file, ATTACKS[name])


def test_what_was_erased_cannot_be_put_back(tmp_path: Path) -> None:
    before = Tampered(tmp_path / "before.db")
    with Ledger.open(f"sqlite:///{before.path}") as ledger:
        ledger.append([said("r1", "granted", 0), said("r2", "granted", 0, subject="b")])
        ledger.backup(tmp_path / "old.db")
        ledger.erase("b", kind="visitor")
        ledger.append([said("r3", "granted", 0)])

    def put_back(execute: Statement, position: int) -> int:
        execute("INSERT INTO records SELECT * FROM old.records WHERE position = ?", (position,))
        execute(
            "UPDATE entries SET salt = (SELECT salt FROM old.entries AS o WHERE o.position = ?1) "
            "WHERE position = ?1",
            (position,),
        )
        return position

    with closing(sqlite3.connect(before.path, isolation_level=None)) as connection:
        connection.execute("ATTACH ? AS old", (str(tmp_path / "old.db"),))
        put_back(lambda sql, asked: connection.execute(sql, asked).fetchall(), 2)
    problem = before.problem()
    assert problem == "entry 2 was erased, says entry 3, and is there again"


def test_a_tail_that_is_cut_off_is_missed_by_the_anchor_alone(file: Tampered) -> None:
    with Ledger.open(f"sqlite:///{file.path}") as ledger:
        anchor = ledger.position, ledger.head
    for left in range(anchor[0] - 1, anchor[0] - 4, -1):
        file.attacked(lambda execute, position: _delete(execute, position), left + 1)
        assert file.problem() is None
        problem = file.problem(anchor)
        assert problem == f"entry {left + 1} is missing: the ledger once had {anchor[0]} entries"


def test_a_chain_that_was_computed_anew_shows_by_the_anchor_alone(file: Tampered) -> None:
    with Ledger.open(f"sqlite:///{file.path}") as ledger:
        anchor = ledger.position, ledger.head
        early = 1, ledger.as_of(1).head

    def forge(execute: Statement, position: int) -> int | None:
        named = alter_and_commit_to_it(execute, position)
        _rechain(execute, position, last(execute))
        return named

    file.attacked(forge, anchor[0] - 1)
    assert file.problem() is None
    assert file.problem(early) is None
    problem = file.problem(anchor)
    assert problem == f"entry {anchor[0]} is not, or what comes before it is not, what was noted of it"


def beside_the_entries() -> Iterator[tuple[str, str, str]]:
    """Changes that leave all entries as they were, and what they would do to look-ups."""
    yield (
        "a contradiction is hushed up",
        "DELETE FROM contested WHERE record_id = 'one id too'",
        "contradicted",
    )
    yield "a contradiction is made up", "INSERT INTO contested VALUES ('r1')", "contradicted"
    yield "an index is dropped", "DROP INDEX records_by_subject", "schema"
    yield (
        "a trigger grants",
        "CREATE TRIGGER t AFTER INSERT ON records BEGIN UPDATE records SET state = 'granted'; END",
        "schema",
    )
    yield "a view hides a table", "CREATE VIEW v AS SELECT 1", "schema"


@pytest.mark.parametrize(("name", "sql", "found"), list(beside_the_entries()))
def test_what_look_ups_rest_on_is_compared_too(file: Tampered, name: str, sql: str, found: str) -> None:
    file.attacked(lambda execute, _: bool(execute(sql, ())) or None, 1)
    problem = file.problem()
    assert problem is not None, name
    assert found in problem


def test_an_index_that_does_not_agree_with_its_table_is_found(file: Tampered) -> None:
    with closing(sqlite3.connect(file.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = sql || ' WHERE 0' WHERE name = 'records_by_subject'"
        )
        connection.execute("PRAGMA writable_schema = RESET")
        connection.execute("REINDEX records_by_subject")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ' WHERE 0', '') WHERE name = 'records_by_subject'"
        )
    problem = file.problem()
    assert problem is not None
    assert "damaged" in problem


def test_text_that_is_none_is_found_wrong_and_read_by_nobody(file: Tampered) -> None:
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("UPDATE records SET evidence = CAST(x'ff' AS TEXT) WHERE position = 1")
    problem = file.problem()
    assert problem == "entry 1 was altered: it is not what was committed to"


@pytest.mark.parametrize("field", ["salt", "commitment", "chain"])
@pytest.mark.parametrize("value", [None, 0, 7, 1.5, "", "text"])
def test_a_value_that_no_chain_holds_is_found_wrong(field: str, value: object) -> None:
    """The file's own types keep none of these in, but bytes that are written past them do."""
    row = ("v", "c", 1740787200000000, None)
    first = chain.stored(chain.GENESIS, 1, "Link", row)
    second = chain.stored(first.chain, 2, "Link", row)
    assert chain.verify_chain([first, second]).ok
    found = chain.verify_chain([first, second._replace(**{field: value})])
    assert found.problem is not None
    assert found.problem.startswith("entry 2 was altered")
    assert found.head == chain.head_text(second.chain if (field, value) == ("salt", None) else first.chain)


@pytest.mark.parametrize("positions", [5, "1", [["1"]], [None], {"1": 1}, "[" * 100_000])
def test_an_erasure_that_names_no_positions_is_found_wrong(positions: object) -> None:
    """Whoever can compute the chain anew can commit to anything."""
    erasure = chain.stored(chain.GENESIS, 1, "Erasure", (positions, 1740787200000000))
    found = chain.verify_chain([erasure])
    assert found.problem == "entry 1 was altered: it names no positions"


def test_an_erasure_without_end_is_found_wrong(file: Tampered) -> None:
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("UPDATE erasures SET positions = ?", ("[" * 100_000,))
    problem = file.problem()
    assert problem is not None
    assert "was altered" in problem


# ---- Mutants -----------------------------------------------------------------------------------------------


@breaks(
    Break("altered content", chain._holds, "== entry.commitment", "!= b''", alter(4)),
    Break("moved entries", chain._Walk.pass_by, "!= entry.chain", "is None", swap),
    Break("a gap", chain._Walk.pass_by, "if entry.position != expected:", "if False:", remove),
    Break(
        "emptied without a note", chain._Walk.result, "self._missing - self._erased.keys()", "set()", empty
    ),
    Break("rows without entry", sqlite_queries.stray, "if found is not None:", "if False:", slip_in_a_row),
    Break("the first", chain._Walk.result, "first = min(", "first = max(", swap),
)
def test_a_walk_that_overlooks_something_would_be_noticed(broken: Break, file: Tampered) -> None:
    check_attack(file, broken.witness)
    with broken.applied(), pytest.raises(AssertionError):
        check_attack(file, broken.witness)


@breaks(
    Break("put back", chain._Walk._erase, "if position in self._missing:", "if True:"),
    Break("cut off", chain._Walk.result, "if position > self._position:", "if False:"),
    Break("computed anew", chain._Walk.result, "elif not self._problems:", "elif False:"),
    Break("hushed up", sqlite_queries.disagreement, "noted != connection", "False and noted != connection"),
)
def test_a_verification_that_overlooks_something_would_be_noticed(
    broken: Break, file: Tampered, tmp_path: Path
) -> None:
    tests: dict[str, Callable[[], None]] = {
        "put back": lambda: test_what_was_erased_cannot_be_put_back(tmp_path),
        "cut off": lambda: test_a_tail_that_is_cut_off_is_missed_by_the_anchor_alone(file),
        "computed anew": lambda: test_a_chain_that_was_computed_anew_shows_by_the_anchor_alone(file),
        "hushed up": lambda: test_what_look_ups_rest_on_is_compared_too(file, *next(beside_the_entries())),
    }
    with broken.applied(), pytest.raises(AssertionError):
        tests[broken.name]()


# ---- What stays of an erased entry -------------------------------------------------------------------------


def test_a_commitment_tells_nothing_without_its_salt() -> None:
    record = said("r1", "granted", 0)
    content = chain.canonical(record)
    salts = {chain.new_salt() for _ in range(100)}
    assert len(salts) == len({chain.commitment(salt, content) for salt in salts}) == 100


def test_the_canonical_form_is_pinned() -> None:
    assert chain.canonical(Link("v", "c", at_tick(0), "ü")) == (
        b'{"customer_id":"c","evidence":"\\u00fc","kind":"Link","linked_at":1740787200000000,"visitor_id":"v"}'
    )
    entry = StoredEntry(1, "Link", bytes(32), b"", b"", ("v", "c", 1740787200000000, "ü"))
    assert chain.canonical_row(entry.kind, entry.row or ()) == chain.canonical(
        Link("v", "c", at_tick(0), "ü")
    )
    committed = chain.commitment(bytes(32), chain.canonical(Link("v", "c", None)))
    assert chain.head_text(chain.chained(chain.GENESIS, 1, committed)) == (
        "sha256:75f9cdca92ed57e2c31763b8dcf5c012a39de39b11971b35d1b1281198b800dc"
    )


@pytest.mark.parametrize(
    "head",
    [
        "",
        "sha256:",
        "md5:" + "0" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "0" * 63,
        "sha256:" + "0 " * 32,
        "sha256:" + "0" * 64 + "\n",
    ],
)
def test_an_anchor_that_is_none_is_refused(head: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        Ledger().verify(anchor=(0, head))
