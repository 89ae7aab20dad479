"""What Spark says and keeps of a training run names nobody: its log, its event log, and a row that fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from marked_shops import MARKER, MOTTO, marked_shop, naming
from spark_sessions import SETTINGS

pytestmark = pytest.mark.service("spark")


def trained(shop: Path, out: Path, events: Path, tier: str) -> tuple[int, str]:
    """Train a tier on a Spark of its own, which writes down what it does; the exit code and what is said."""
    events.mkdir(parents=True)
    settings = SETTINGS | {
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": events.as_uri(),
        "spark.eventLog.compress": "false",
    }
    submit = " ".join(f"--conf {name}={value}" for name, value in settings.items())
    asked = [
        "train",
        str(shop),
        "--out",
        str(out),
        "--tier",
        tier,
        "--engine",
        "spark",
        "--master",
        "local[2]",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "consentier", "-vv", *asked],
        env=os.environ
        | {"PYSPARK_SUBMIT_ARGS": f"{submit} pyspark-shell", "CONSENTIER__TRACKING__ENABLED": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_run_on_spark_and_its_event_log_name_nobody(tmp_path: Path) -> None:
    shop, events = marked_shop(tmp_path), tmp_path / "out" / "events"
    code, said = trained(shop, tmp_path / "out" / "bundles", events, "fused")
    assert code == 0, said
    assert MARKER not in said
    assert MOTTO not in said
    assert naming(tmp_path / "out") == []
    log = "".join(path.read_text("utf-8") for path in events.rglob("*") if path.is_file())
    assert "SparkListenerSQLExecutionStart" in log


def test_a_row_that_fails_on_spark_is_not_quoted(tmp_path: Path) -> None:
    shop, events = marked_shop(tmp_path), tmp_path / "out" / "events"
    rows = pq.read_table(shop / "events.parquet")
    place = rows.column_names.index("event_type")
    types = pc.if_else(pc.equal(rows["event_type"], "view"), rows["visitor_id"], rows["event_type"])
    pq.write_table(rows.set_column(place, "event_type", pa.chunked_array(types)), shop / "events.parquet")
    code, said = trained(shop, tmp_path / "out" / "bundles", events, "online")
    assert code == 2
    assert "column event_type" in said
    assert MARKER not in said
    assert naming(tmp_path / "out") == []
