"""A session of Apache Spark for commands that are given a master and not a session."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from consentier.errors import ConfigError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["open_session"]


def open_session(master: str | None = None) -> SparkSession:
    """Open Spark, or take the session that is open already.

    Parameters
    ----------
    master
        Such as ``local[4]`` or ``spark://HOST:7077``; by default what Spark's own configuration names, as
        under ``spark-submit``.

    Raises
    ------
    ConfigError
        PySpark or Java is not there, or the session cannot be opened.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise ConfigError(
            "the engine spark needs PySpark: pip install 'consentier[spark]', and Java 17 or 21"
        ) from None
    # In local mode the tasks run here: in this environment, and not in whatever `python3` is.
    if master is not None and master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("consentier").config("spark.sql.session.timeZone", "UTC")
    try:
        return (builder if master is None else builder.master(master)).getOrCreate()
    except PySparkException as error:
        raise ConfigError(
            f"Spark cannot be opened: {error}. It needs Java 17 or 21 (JAVA_HOME), and a master that answers"
        ) from error
