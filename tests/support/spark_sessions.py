"""Apache Spark in this process, for tests."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["SETTINGS", "spark_session"]

SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.adaptive.enabled": "false",
    # Compiling each query to Java takes longer than to run it on some hundred rows.
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
}


@contextlib.contextmanager
def spark_session() -> Iterator[SparkSession]:
    """Two threads, in which a task that fails may be tried four times."""
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        pytest.fail("PySpark is not here: pip install 'consentier[spark]' (and a Java 17 runtime)")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = SparkSession.builder.master("local[2,4]").config(map=SETTINGS).getOrCreate()
    try:
        yield session
    finally:
        session.stop()
