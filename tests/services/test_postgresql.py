"""A shop's tables in PostgreSQL are the same shop as in Parquet files."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy

from consentier.errors import DataError
from consentier.features.schemas import SCHEMAS
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop

pytestmark = pytest.mark.service("postgresql")

TYPES: list[tuple[Callable[[pa.DataType], bool], sqlalchemy.types.TypeEngine[object]]] = [
    (pa.types.is_string, sqlalchemy.Text()),
    (pa.types.is_timestamp, sqlalchemy.DateTime(timezone=True)),
    (pa.types.is_floating, sqlalchemy.Double()),
    (pa.types.is_integer, sqlalchemy.BigInteger()),
    (pa.types.is_boolean, sqlalchemy.Boolean()),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated shop as Parquet files."""
    folder = tmp_path_factory.mktemp("shop") / "parquet"
    write_shop(simulate(SimulationConfig(customers=300, seed=11)), folder)
    return folder


@pytest.fixture(scope="module")
def in_files(directory: Path) -> ShopTables:
    return read_shop(directory)


@pytest.fixture(scope="module")
def filled(postgresql: str, in_files: ShopTables) -> Iterator[tuple[sqlalchemy.Engine, str]]:
    """A PostgreSQL schema that holds the same shop."""
    engine = sqlalchemy.create_engine(sqlalchemy.make_url(postgresql).set(drivername="postgresql+psycopg"))
    with schema_of_its_own(engine) as schema:
        with engine.begin() as connection:
            for name in SCHEMAS:
                fill(connection, schema, name, getattr(in_files, name))
        yield engine, schema
    engine.dispose()


@pytest.fixture
def database(filled: tuple[sqlalchemy.Engine, str]) -> Iterator[str]:
    """A copy of the shop for one test; the URL names its schema."""
    engine, original = filled
    with schema_of_its_own(engine) as schema:
        with engine.begin() as connection:
            for name in SCHEMAS:
                copy = f"CREATE TABLE {schema}.{name} AS SELECT * FROM {original}.{name}"
                connection.exec_driver_sql(copy)
        url = engine.url.update_query_dict({"options": f"-c search_path={schema}"})
        yield url.render_as_string(hide_password=False)


@contextlib.contextmanager
def schema_of_its_own(engine: sqlalchemy.Engine) -> Iterator[str]:
    schema = f"shop_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        connection.execute(sqlalchemy.schema.CreateSchema(schema))
    try:
        yield schema
    finally:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.schema.DropSchema(schema, cascade=True))


def fill(connection: sqlalchemy.Connection, schema: str, name: str, table: pa.Table) -> None:
    columns = [
        sqlalchemy.Column(field.name, next(kind for fits, kind in TYPES if fits(field.type)))
        for field in table.schema
    ]
    target = sqlalchemy.Table(name, sqlalchemy.MetaData(schema=schema), *columns)
    target.create(connection)
    if table.num_rows:
        connection.execute(target.insert(), table.to_pylist())


def change(url: str, *statements: str) -> None:
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def rows(table: pa.Table) -> pa.Table:
    """The rows in an order of their own: PostgreSQL promises none."""
    return table.sort_by([(name, "ascending") for name in table.column_names])


def assert_same_shop(found: ShopTables, expected: ShopTables) -> None:
    for name in SCHEMAS:
        assert rows(getattr(found, name)).equals(rows(getattr(expected, name))), name
    assert found.report.rows_in == expected.report.rows_in


def plain(url: str) -> str:
    """The URL as a shop would write it, without naming the driver."""
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def test_the_same_tables_as_from_parquet(database: str, in_files: ShopTables) -> None:
    assert in_files.events.num_rows > 10_000, "more than one chunk is read"
    assert_same_shop(read_shop(plain(database)), in_files)


def test_the_session_time_zone_does_not_move_an_instant(database: str, in_files: ShopTables) -> None:
    elsewhere = sqlalchemy.make_url(plain(database))
    options = f"{elsewhere.query['options']} -c timezone=America/St_Johns"
    url = elsewhere.update_query_dict({"options": options}).render_as_string(hide_password=False)
    assert_same_shop(read_shop(url), in_files)


def test_a_view_and_exact_numbers_serve_as_a_table(database: str, in_files: ShopTables) -> None:
    change(
        database,
        "ALTER TABLE orders RENAME TO order_lines",
        "ALTER TABLE order_lines ALTER COLUMN price TYPE numeric(12, 2) USING round(price::numeric, 2)",
        "CREATE VIEW orders AS SELECT * FROM order_lines",
    )
    found, expected = (rows(shop.orders) for shop in (read_shop(plain(database)), in_files))
    assert found.drop_columns("price").equals(expected.drop_columns("price"))
    assert found["price"].to_pylist() == pytest.approx(expected["price"].to_pylist(), abs=0.005)


def test_a_bad_row_is_named_by_table_column_and_row(database: str, in_files: ShopTables) -> None:
    change(
        database,
        "ALTER TABLE orders RENAME TO order_lines",
        "INSERT INTO order_lines (customer_id, order_id, line_id, ts, item_id, quantity, status) "
        "VALUES ('c1', 'o1', 'l1', '2026-01-01', 'i1', 0, 'ordered')",
        "CREATE VIEW orders AS SELECT * FROM order_lines ORDER BY quantity DESC",
    )
    last = in_files.orders.num_rows + 1
    with pytest.raises(DataError, match=rf"table orders, column quantity, row {last}: below minimum"):
        read_shop(plain(database))


def test_a_missing_column_and_a_missing_table_are_named(database: str) -> None:
    change(database, "ALTER TABLE events DROP COLUMN ts")
    with pytest.raises(DataError, match="table events: missing column ts"):
        read_shop(plain(database))
    change(database, "DROP TABLE consents")
    with pytest.raises(DataError, match="table consents: missing table"):
        read_shop(plain(database))


def test_reading_changes_nothing(database: str, in_files: ShopTables) -> None:
    """Readers get a read-only transaction: a user that may not write suffices."""
    url = sqlalchemy.make_url(plain(database))
    options = f"{url.query['options']} -c default_transaction_read_only=on"
    read_only = url.update_query_dict({"options": options}).render_as_string(hide_password=False)
    assert_same_shop(read_shop(read_only), in_files)


def test_a_password_stays_out_of_messages(database: str) -> None:
    url = sqlalchemy.make_url(plain(database)).set(username="nobody_here", password="hunter2")
    nowhere = url.update_query_dict({"host": "/nonexistent"}).render_as_string(hide_password=False)
    with pytest.raises(DataError, match="cannot be read") as failure:
        read_shop(nowhere)
    assert "hunter2" not in str(failure.value)


def test_a_number_that_is_none_is_refused(database: str) -> None:
    """PostgreSQL's exact numbers know NaN, which has no counterpart among prices."""
    change(
        database,
        "ALTER TABLE items ALTER COLUMN price TYPE numeric USING price::numeric",
        "UPDATE items SET price = 'NaN' WHERE item_id = (SELECT min(item_id) FROM items)",
    )
    with pytest.raises(DataError, match=r"table items, column price, row \d+: not finite"):
        read_shop(plain(database))
