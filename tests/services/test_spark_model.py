"""The packaged model as a function of Apache Spark: each row under its own permission, as outside of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from engines import ITEMS
from packaged import KEY, loaded, model_directory

from consentier.serving.pyfunc import INPUT_KEY

pytestmark = pytest.mark.service("spark")

SCHEMA = (
    "permission string, channel string, linked boolean, session string, online_history string, "
    "crm_history string, attributes string, n int"
)
COLUMNS = [part.split()[0] for part in SCHEMA.split(", ")]
HISTORIES = (json.dumps(ITEMS[:1]), json.dumps(ITEMS[1:3]), json.dumps(ITEMS[3:5]))
ATTRIBUTES = '{"region": "north"}'

ROWS: list[tuple[Any, ...]] = [
    ("both", "shop", True, *HISTORIES, ATTRIBUTES, 4),
    ("both", "shop", None, *HISTORIES, ATTRIBUTES, 4),
    ("both", "email", True, *HISTORIES, ATTRIBUTES, None),
    ("online", "shop", False, *HISTORIES, None, 4),
    ("crm", "email", None, *HISTORIES, ATTRIBUTES, 4),
    ("none", "shop", True, *HISTORIES, ATTRIBUTES, 4),
    (None, "shop", True, *HISTORIES, ATTRIBUTES, 4),
    ("all", "email", True, *HISTORIES, ATTRIBUTES, 4),
    ("online", "shop", False, HISTORIES[0], "[", "[", "[", 4),
    ("both", "radio", True, *HISTORIES, ATTRIBUTES, 4),
    ("both", "shop", True, *HISTORIES, ATTRIBUTES, 0),
    (None, "email", None, None, None, None, None, None),
]
TIERS = [
    "fused", "online", "fused", "online", "crm", "session", "session", "popular", "session", "none", "none",
    "popular",
]  # fmt: skip


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """A Spark in this process, whose workers run this Python."""
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        pytest.fail("PySpark is not here: pip install 'consentier[spark]' (and a Java 17 runtime)")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    settings = {
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.executorEnv.MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        f"spark.executorEnv.{INPUT_KEY}": KEY,
    }
    session = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def answers(spark: Any) -> list[dict[str, Any]]:
    """What the model says to the rows, in Spark."""
    from mlflow.pyfunc import spark_udf
    from pyspark.sql.functions import struct

    function = spark_udf(spark, str(model_directory()), env_manager="local")
    table = spark.createDataFrame(ROWS, SCHEMA).withColumn("answer", function(struct(*COLUMNS)))
    return [row.answer.asDict() for row in table.collect()]


def test_each_row_is_answered_under_its_own_permission(answers: list[dict[str, Any]]) -> None:
    assert [answer["tier"] for answer in answers] == TIERS
    assert [len(answer["items"]) for answer in answers] == [4, 4, 10, 4, 4, 4, 4, 4, 4, 0, 0, 10]


def test_spark_gets_what_pandas_gets(answers: list[dict[str, Any]]) -> None:
    import pandas as pd

    here = loaded().predict(pd.DataFrame(ROWS, columns=COLUMNS).astype(object)).to_dict("records")
    assert answers == here


def test_no_text_of_the_output_is_missing(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        assert "nan" not in (answer["reason"], answer["bundle_digest"], answer["basis"])
        assert isinstance(json.loads(answer["basis"]), dict)
        assert answer["bundle_digest"].startswith("sha256:") is (answer["tier"] != "none")
