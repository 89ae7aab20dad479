"""A ledger's entries in PostgreSQL (15 or later): for services that run in several places.

Look-ups take one round trip. Appends come one after the other, under a lock of the database that ends with
the transaction, so that positions appear in their order and a reader never misses one.

A database that does not answer must not hold up a request: a look-up fails after `LOOKUP_SECONDS`, in the
server, and if the server itself is stuck after `PATIENCE_SECONDS`, here. Whatever fails is a `LedgerError`.

What is erased is deleted. Dead rows, the write-ahead log and the database's own backups keep its bytes for as
long as the database is set up to keep them: see ``docs/ledger-postgresql.md``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

from consentier.addresses import shown_url
from consentier.consent.chain import GENESIS, stored, verify_chain
from consentier.consent.entries import (
    ENTRY_COLUMNS,
    LINK_COLUMNS,
    RECORD_COLUMNS,
    Erasure,
    Remnant,
    Row,
    StoredEntry,
    row_of,
)
from consentier.consent.records import ConsentRecord, Link, SubjectKind
from consentier.consent.store import Facts, LinkRow, Verification
from consentier.errors import LedgerError, LedgerTimeout

try:
    import psycopg
    import sqlalchemy as sa
    from sqlalchemy.dialects.postgresql import BIGINT, TEXT
except ImportError as missing:
    raise LedgerError(
        f"a ledger in PostgreSQL needs packages that are not installed ({missing}): "
        "pip install 'consentier[postgresql]'"
    ) from missing

from consentier.consent import sqlalchemy_queries as queries
from consentier.consent.migrations import REVISIONS, revision_of, upgrade
from consentier.consent.migrations.tables import ENTRIES, ERASED_LOGINS, ERASED_VERSIONS, LINKS, RECORDS, ROWS
from consentier.consent.sqlalchemy_connections import (
    DURABLE,
    PATIENCE_SECONDS,
    NoAnswer,
    PatientConnection,
    keep_to_own_process,
)

__all__ = ["LOOKUP_SECONDS", "PATIENCE_SECONDS", "SqlAlchemyStore"]

LOOKUP_SECONDS = 2
"""After so long the server gives a look-up up. A ``statement_timeout`` in the URL's options replaces it."""

_OPTIONS = f"-c statement_timeout={LOOKUP_SECONDS}s -c jit=off -c max_parallel_workers_per_gather=0"
"""Of every connection. Look-ups are short: compiling them, or starting workers, takes longer than they do."""

_LOCK_SECONDS = 30
_WRITING_SECONDS = 600
_READING_SECONDS = 3600

_CONNECTIONS = 5
_MORE_CONNECTIONS = 15

_CHUNK = 5_000

_LOCKS = 0x636E7372
"""Half of the number under which PostgreSQL knows our locks; the other half says which ledger's."""

_REMEDIES = {
    "25006": "name a server that takes writes (is it a standby?)",
    "42501": "grant the role what docs/ledger-postgresql.md lists for its task",
    "55P03": f"another writer has held the ledger for {_LOCK_SECONDS} s: look for a stuck one, and try again",
    "57014": "the database is too slow or overloaded",
}
"""What to do, by SQLSTATE."""


_LATE = (sa.exc.TimeoutError, NoAnswer, psycopg.errors.ConnectionTimeout)
_LATE_STATES = frozenset({"55P03", "57014"})
"""A lock that was not to be had, and a statement that took too long."""


class SqlAlchemyStore:
    """Keeps entries in tables of a PostgreSQL database.

    Parameters
    ----------
    url
        ``postgresql://USER@HOST/DATABASE``, with any options of libpq. The tables stand in the first schema
        of the search path.
    create
        Make the tables if there are none, and bring those of an earlier release up to date.

    Raises
    ------
    LedgerError
        If the database cannot be reached, holds no ledger, or one of a newer release.
    ValueError
        If the URL cannot be read.
    """

    answers_within: float | None = None  # seconds; a request has less time than that

    def __init__(self, url: str, *, create: bool) -> None:
        self._engine = _engine(url)
        self._shown = shown_url(url)
        try:
            self._prepare(create=create)
        except BaseException:
            self.close()
            raise

    # ---- Taking in ---------------------------------------------------------------------------------------

    def append(self, records: Sequence[ConsentRecord], links: Sequence[Link]) -> int:
        """Append what is new, in one transaction."""
        told = [("ConsentRecord", row_of(record)) for record in records]
        told += [("Link", row_of(link)) for link in links]
        _require_storable(told)
        new = dict.fromkeys(told)
        if not new:
            return 0
        with self._writing() as connection:
            for known in _known(connection, told):
                new.pop(known, None)
            _extend(connection, new)
        return len(new)

    def erase(self, entries: Sequence[int], remnants: Sequence[Remnant], erased_at: int) -> int:
        """Delete rows and salts of entries, and append that this was done."""
        with self._writing() as connection:
            there = sa.select(ENTRIES.c.position).where(_at(ENTRIES, entries), ENTRIES.c.salt.is_not(None))
            erased = sorted(connection.scalars(there))
            if not erased:
                return 0
            for table in (RECORDS, LINKS, ERASED_VERSIONS, ERASED_LOGINS):
                connection.execute(table.delete().where(_at(table, erased)))
            connection.execute(ENTRIES.update().where(_at(ENTRIES, erased)).values(salt=None))
            gone = set(erased)
            left = [(type(remnant).__name__, row_of(remnant)) for remnant in remnants if remnant.of in gone]
            _extend(connection, [*left, ("Erasure", row_of(Erasure(tuple(erased), erased_at)))])
        return len(erased)

    def load(self, entries: Iterable[StoredEntry]) -> None:
        """Take over all entries of another store, in one transaction."""
        with self._writing() as connection:
            if _end(connection)[0]:
                raise LedgerError(
                    f"{self._shown}: a ledger is restored into an empty one only; this one has entries"
                )
            remaining = iter(entries)
            while chunk := list(islice(remaining, _CHUNK)):
                _require_storable((entry.kind, entry.row) for entry in chunk if entry.row is not None)
                _write(connection, chunk)

    # ---- Looking up --------------------------------------------------------------------------------------

    def last(self, until: int | None = None) -> tuple[int, bytes]:
        """Position of the last entry, and the chain's value there."""
        found = self._look_up(queries.LAST, {"until": _limit(until)})
        return found[0] if found else (0, GENESIS)

    def about(self, visitor_id: str | None, customer_id: str | None, until: int | None = None) -> Facts:
        """All that concerns a visitor and a customer, in one statement."""
        asked = {
            "visitor": _askable(visitor_id),
            "customer": _askable(customer_id),
            "until": _limit(until),
        }
        return queries.facts_of(self._look_up(queries.ABOUT, asked))

    def links_of_customer(self, customer_id: str, until: int | None = None) -> Sequence[LinkRow]:
        """All links of a customer."""
        asked = {"subject": _askable(customer_id), "until": _limit(until)}
        return [LinkRow._make(row) for row in self._look_up(queries.CUSTOMERS_LINKS, asked)]

    def rows_about(self, kind: SubjectKind, subject_id: str, until: int | None = None) -> list[Row]:
        """The rows of all records of a subject."""
        asked = {"kind": kind, "subject": _askable(subject_id), "until": _limit(until)}
        return self._look_up(queries.RECORD_ROWS, asked)

    def link_rows_about(self, kind: SubjectKind, subject_id: str, until: int | None = None) -> list[Row]:
        """The rows of all links of a subject."""
        asked = {"subject": _askable(subject_id), "until": _limit(until)}
        return self._look_up(queries.LINK_ROWS[kind], asked)

    # ---- Reading much ------------------------------------------------------------------------------------

    def subjects(self, kind: SubjectKind, until: int | None = None) -> Iterator[str]:
        """Ids of all subjects of a kind that have records."""
        return (row[0] for row in self._stream(queries.subjects(kind, _limit(until))))

    def linked_devices(self, until: int | None = None) -> Iterator[str]:
        """Ids of all visitors that have links."""
        return (row[0] for row in self._stream(queries.devices(_limit(until))))

    def conflicts(self, until: int | None = None) -> list[str]:
        """Record ids that stand for more than one content."""
        return sorted(row[0] for row in self._stream(queries.conflicts(_limit(until))))

    def entries(self, after: int = 0, until: int | None = None) -> Iterator[StoredEntry]:
        """All entries after a position."""
        between = ENTRIES.c.position > after, ENTRIES.c.position <= _limit(until)
        return map(queries.entry_of, self._stream(queries.ALL_ENTRIES.where(*between)))

    def columns(self, table: str, until: int | None = None) -> dict[str, list[Any]]:
        """All records or links as columns of the data contract."""
        columns: dict[str, list[Any]]
        if table == "records":
            columns = {name: [] for name in (*RECORD_COLUMNS, "conflicting", "first_recorded")}
            rows = self._stream(queries.records_and_more(_limit(until)))
        else:
            columns = {name: [] for name in LINK_COLUMNS}
            rows = self._stream(queries.stored_links(_limit(until)))
        while chunk := list(islice(rows, _CHUNK)):
            for column, values in zip(columns.values(), zip(*chunk, strict=True), strict=True):
                column.extend(values)
        return columns

    def verify(self, anchor: tuple[int, str] | None = None) -> Verification:
        """Check the chain, and that look-ups read nothing that does not stand in it."""
        with self._reading() as connection:
            found = verify_chain(map(queries.entry_of, _streamed(connection, queries.ALL_ENTRIES)), anchor)
            stray = connection.execute(queries.first_stray()).scalar_one()
        if stray is None or not found.ok:
            return found
        return Verification(
            ok=False,
            position=found.position,
            head=found.head,
            entries=found.entries,
            erased=found.erased,
            problem=f"entry {stray} has a row beside it that the chain knows nothing of",
        )

    def close(self) -> None:
        """Close the connections that stand ready."""
        self._engine.dispose()

    # ---- Connections -------------------------------------------------------------------------------------

    def _prepare(self, *, create: bool) -> None:
        with self._failures_told():
            with self._engine.connect() as connection:
                found = revision_of(connection)
            if found == REVISIONS[-1]:
                return
            if found is not None and found not in REVISIONS:
                raise LedgerError(
                    f"{self._shown}: the tables of the ledger have the form {found!r}, which a newer release "
                    "made: upgrade consentier"
                )
            if not create:
                what = "there is no ledger" if found is None else f"the ledger has the older form {found!r}"
                raise LedgerError(f"{self._shown}: {what}: have it made by Ledger.open(…, create=True)")
            with _transaction(self._engine, _WRITING_SECONDS) as connection:
                connection.execute(_LOCK_SCHEMA)
                upgrade(connection)

    def _look_up(self, query: str, asked: Mapping[str, object]) -> list[Row]:
        """All rows of a query, in one round trip on a connection that stands ready."""
        with self._failures_told():
            try:
                return self._asked_once(query, asked)
            except _Stale:  # the server was restarted: the other connections are as stale as this one
                self._engine.dispose()
                return self._asked_once(query, asked)

    def _asked_once(self, query: str, asked: Mapping[str, object]) -> list[Row]:
        pooled = self._engine.raw_connection()
        try:
            connection = cast("PatientConnection", pooled.driver_connection)
            connection.patience = PATIENCE_SECONDS
            try:
                return connection.execute(query, asked, prepare=True).fetchall()
            except NoAnswer:
                pooled.invalidate()
                raise
            except psycopg.OperationalError as error:
                if not connection.closed:
                    raise
                pooled.invalidate()
                raise _Stale(str(error)) from error
        finally:
            pooled.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that nobody else writes beside; durable when the block ends."""
        with self._begun(_GUARDS, _LOCK, seconds=_WRITING_SECONDS) as connection:
            yield connection

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees the ledger as of one moment, for reading much of it."""
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._begun(seconds=_READING_SECONDS, **options) as connection:
            yield connection

    @contextlib.contextmanager
    def _begun(self, *first: sa.Executable, seconds: int, **options: object) -> Iterator[sa.Connection]:
        with self._failures_told(), contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(_transaction(self._engine, seconds, *first, **options))
            except sa.exc.DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # The server was restarted in the meantime; nothing was written yet.
                connection = stack.enter_context(_transaction(self._engine, seconds, *first, **options))
            yield connection

    def _stream(self, query: sa.Executable) -> Iterator[Row]:
        with self._reading() as connection:
            yield from _streamed(connection, query)

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Tell what the database says, without the values that it quotes: they are about persons."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, psycopg.Error) as error:
            kind = LedgerTimeout if _is_late(error) else LedgerError
            raise kind(f"{self._shown}: {_reason(error)}") from None


# ---- Connecting --------------------------------------------------------------------------------------------


class _Stale(psycopg.OperationalError):
    """A connection that stood ready had been closed in the meantime."""


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
    except (sa.exc.ArgumentError, ValueError):
        raise ValueError("the ledger's URL cannot be read: write postgresql://USER@HOST/DATABASE") from None
    engine = sa.create_engine(
        parsed,
        isolation_level="AUTOCOMMIT",  # a look-up needs no transaction, which would be two more round trips
        hide_parameters=True,
        pool_size=_CONNECTIONS,
        max_overflow=_MORE_CONNECTIONS,
        pool_timeout=PATIENCE_SECONDS,
        pool_use_lifo=True,
    )

    @sa.event.listens_for(engine, "do_connect")
    def connect(
        _dialect: Any, _record: Any, arguments: Sequence[Any], options: dict[str, Any]
    ) -> PatientConnection:
        options["options"] = f"{_OPTIONS} {options.get('options', '')}"
        options.setdefault("connect_timeout", PATIENCE_SECONDS)
        return PatientConnection.connect(*arguments, **options)

    keep_to_own_process(engine)
    return engine


@contextlib.contextmanager
def _transaction(
    engine: sa.Engine, seconds: int, *first: sa.Executable, **options: object
) -> Iterator[sa.Connection]:
    """A transaction in which a statement may take so many seconds; it begins with the statements given."""
    with engine.connect() as connection:
        connection.execution_options(**{"isolation_level": "READ COMMITTED", **options})
        driver = cast("PatientConnection", connection.connection.driver_connection)
        driver.patience = seconds + PATIENCE_SECONDS
        with connection.begin():
            for statement in (_settings(statement_timeout=f"{seconds}s"), *first):
                connection.execute(statement)
            yield connection


def _settings(**values: str | sa.ColumnElement[str]) -> sa.Select[Any]:
    """Settings that hold until the transaction ends."""
    return sa.select(*(sa.func.set_config(name, value, True) for name, value in values.items()))


_GUARDS = _settings(
    lock_timeout=f"{_LOCK_SECONDS}s",
    # A writer that is stopped half-way must not keep the others waiting for ever.
    idle_in_transaction_session_timeout=f"{_LOCK_SECONDS}s",
    synchronous_commit=DURABLE,
)

_LOCK = sa.select(
    sa.func.pg_advisory_xact_lock(_LOCKS, sa.literal_column(f"'{ENTRIES.name}'::regclass::oid::int"))
)

_LOCK_SCHEMA = sa.select(sa.func.pg_advisory_xact_lock(_LOCKS, sa.func.hashtext(sa.func.current_schema())))


def _is_late(error: sa.exc.SQLAlchemyError | psycopg.Error) -> bool:
    """Whether nothing came in time, as opposed to a refusal or a fault."""
    cause = getattr(error, "orig", None) or error
    return isinstance(cause, _LATE) or getattr(cause, "sqlstate", None) in _LATE_STATES


def _reason(error: sa.exc.SQLAlchemyError | psycopg.Error) -> str:
    cause = getattr(error, "orig", None) or error
    if not isinstance(cause, psycopg.Error):
        return f"{type(cause).__name__}: {cause}"
    if cause.diag.message_primary is None:
        return str(cause).strip()
    remedy = _REMEDIES.get(cause.sqlstate or "")
    return cause.diag.message_primary + (f": {remedy}" if remedy else "")


# ---- Reading and writing within a transaction --------------------------------------------------------------


def _streamed(connection: sa.Connection, query: sa.Executable) -> Iterator[Row]:
    """The rows of a query, through a cursor in the server."""
    result = connection.execution_options(yield_per=_CHUNK).execute(query)
    for rows in result.partitions():
        yield from (tuple(row) for row in rows)


def _end(connection: sa.Connection) -> tuple[int, bytes]:
    """Position of the last entry, and the chain's value there."""
    last = sa.select(ENTRIES.c.position, ENTRIES.c.chain).order_by(ENTRIES.c.position.desc()).limit(1)
    for position, chain in connection.execute(last):
        return position, chain
    return 0, GENESIS


def _known(connection: sa.Connection, told: Sequence[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """What is stored under the record ids, or on the visitors, of some entries."""
    for kind, found_by in (("ConsentRecord", RECORDS.c.record_id), ("Link", LINKS.c.visitor_id)):
        columns = [ROWS[kind].c[name] for name in ENTRY_COLUMNS[kind]]
        ids = iter({row[0]: None for of, row in told if of == kind})
        while some := list(islice(ids, _CHUNK)):
            # Joined, not compared with ANY: for that PostgreSQL may compare each row with each of the ids.
            wanted = sa.func.unnest(sa.literal(some, sa.ARRAY(TEXT))).column_valued("wanted")
            found = sa.select(*columns).where(found_by == wanted)
            for row in connection.execute(found):
                yield kind, tuple(row)


def _extend(connection: sa.Connection, told: Iterable[tuple[str, Row]]) -> None:
    """Write new entries after the last one."""
    position, head = _end(connection)
    entries = []
    for kind, row in told:
        position += 1
        entries.append(stored(head, position, kind, row))
        head = entries[-1].chain
    _write(connection, entries)


def _write(connection: sa.Connection, entries: Sequence[StoredEntry]) -> None:
    """Write entries as they are."""
    rows: dict[str, list[Row]] = {}
    for entry in entries:
        if entry.row is not None:
            rows.setdefault(entry.kind, []).append((entry.position, *entry.row))
    chain = ((entry.position, entry.kind, entry.salt, entry.commitment, entry.chain) for entry in entries)
    _copy(connection, ENTRIES, chain)
    for kind, of_kind in rows.items():
        _copy(connection, ROWS[kind], of_kind)


def _copy(connection: sa.Connection, table: sa.Table, rows: Iterable[Row]) -> None:
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    driver = cast("PatientConnection", connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row([list(value) if isinstance(value, tuple) else value for value in row])


def _at(table: sa.Table, positions: Sequence[int]) -> sa.ColumnElement[bool]:
    return table.c.position == sa.any_(sa.literal(list(positions), sa.ARRAY(BIGINT)))


# ---- Values ------------------------------------------------------------------------------------------------


def _limit(until: int | None) -> int:
    return queries.END_OF_TIME if until is None else until


def _askable(text: str | None) -> str | None:
    """An id as it can be asked for; None, which nobody has, for one that PostgreSQL could not keep."""
    return text if text is None or _is_storable(text) else None


def _is_storable(text: str) -> bool:
    if text.isascii():
        return "\0" not in text
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)


def _require_storable(told: Iterable[tuple[str, Row]]) -> None:
    for kind, row in told:
        for name, value in zip(ENTRY_COLUMNS[kind], row, strict=True):
            if isinstance(value, str) and not _is_storable(value):
                raise LedgerError(
                    f"{kind}, {name}: PostgreSQL keeps no text with a NUL character or half a surrogate "
                    "pair: mend it; nothing was appended"
                )
