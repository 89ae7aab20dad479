"""Engines that are connections to one DuckDB are as apart as if each had its own."""

from __future__ import annotations

import duckdb
import ibis
import pyarrow as pa
import pytest

from consentier.features.embedded_engine import embedded_engine


def test_an_engine_sees_no_table_of_another_and_outlives_it() -> None:
    table = ibis.memtable(pa.table({"a": [1, 2]}))
    with embedded_engine() as one:
        with embedded_engine() as other:
            assert other.to_pyarrow(table.count()).as_py() == 2
            other.raw_sql("CREATE TEMP TABLE kept AS SELECT 1 AS a")
            for name in (table.get_name(), "kept"):
                with pytest.raises(duckdb.CatalogException):
                    one.raw_sql(f"SELECT * FROM {name}")
        assert one.to_pyarrow(table.count()).as_py() == 2


def test_an_engine_has_the_settings_that_ibis_gives_it() -> None:
    with embedded_engine() as one:
        one.raw_sql("SET timezone = 'Asia/Tokyo'")
        with embedded_engine() as other:
            assert other.raw_sql("SELECT current_setting('timezone')").fetchone() == ("UTC",)
