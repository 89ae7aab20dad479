"""A session of Apache Spark for commands that are given a master and not a session."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from consentier.errors import BundleError, ConfigError, DataError, TrainingError
from consentier.models.statistics import StatisticsError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["errors_of_tasks", "open_session"]

_TOLD = {
    error.__name__: error for error in (BundleError, DataError, StatisticsError, TrainingError, OverflowError)
}
_IN_A_TASK = re.compile(rf"^(?:[\w.]+\.)?({'|'.join(_TOLD)}): (.+)$", re.MULTILINE)


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


@contextlib.contextmanager
def errors_of_tasks() -> Iterator[None]:
    """Raise what a task raised on purpose as what it was; Spark wraps it in stack traces."""
    from pyspark.errors import PySparkException

    try:
        yield
    except PySparkException as error:
        found = _IN_A_TASK.search(str(error))
        if found is None:
            raise
        raise _TOLD[found[1]](found[2]) from error
