"""A shop's tables on Apache Spark, for the commands that have ``--engine spark``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from consentier.cli.options import BadRows

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from consentier.features.spark_tables import SparkTables

__all__ = ["require_no_master", "spark_shop"]


def require_no_master(master: str | None) -> None:
    """Refuse a master where Spark is not asked for."""
    if master is not None:
        raise typer.BadParameter("--master is for --engine spark")


def spark_shop(data: str, master: str | None, on_bad_rows: BadRows) -> tuple[SparkSession, SparkTables]:
    """Open Spark, and have it read a shop's tables."""
    if on_bad_rows is not BadRows.ERROR:
        raise typer.BadParameter("--on-bad-rows is for the embedded engine: on Spark a bad row ends the run")
    from consentier.features.spark_session import open_session

    session = open_session(master)
    from consentier.features.spark_tables import read_spark_tables

    return session, read_spark_tables(session, data)
