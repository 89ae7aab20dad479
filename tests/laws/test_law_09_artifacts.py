"""Beside the ninth law: what a shop's team reads, keeps and hands on names nobody.

We promise: logs at every level, results, reports, plots, model cards, records and artifacts of MLflow,
bundles, statistics, the index of who is in what, packaged models and temporary files hold no id of a visitor,
customer or session and no attribute value that only one person has. Ids stand in the shop's own tables, the
ledger and what is sent, and nowhere else.
"""

from __future__ import annotations

import datetime as dt
import gzip
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from marked_shops import MARKER, MOTTO, marked_shop, naming
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.features.tables import read_shop
from consentier.serving import Event
from consentier.serving.profile_store import SqliteProfiles

_ATTRIBUTES = [f"bundles-restricted/statistics/{tier}/manifest.json" for tier in ("crm", "fused")]
"""How many customers have which value: what a person is subtracted from. The trainer's own, never served."""


def told_with_names_at_hand(folder: Path, shop: Path, bundles: Path, customer: str) -> dict[str, str]:
    """What the commands say that write ledgers and lists: these hold names, as they must."""
    ledger, lists = ("--ledger", f"sqlite:///{folder / 'ledger.db'}"), folder / "lists.parquet"
    SqliteProfiles(folder / "crm.db").append(customer, [Event("item", ts=dt.datetime.now(dt.UTC))])
    of_email = ("--bundles", bundles, "--channel", "email")
    return {
        "import": said("consent", "import", shop, *ledger),
        "verify": said("consent", "verify", *ledger),
        "score": said("score", shop, *of_email, "--out", lists),
        "parts": said("score", shop, *of_email, "--out", folder / "parts"),
        "table": said("score", shop, *of_email, "--out", f"sqlite:///{folder / 'lists.db'}"),
        "deliver": said("deliver", lists, "--out", folder / "sent.parquet", "--bundles", bundles, *ledger),
        "withdraw": said("consent", "withdraw", customer, "--source", "crm", "--bundles", bundles, *ledger),
        "enforce": said(
            "consent", "enforce", "--bundles", bundles, "--crm-profiles", folder / "crm.db", *ledger
        ),
        "erase": said("consent", "erase", customer, "--yes", *ledger),
    }


def said(*arguments: object) -> str:
    """What a command says in all detail, on both streams; it must succeed, or fail a check."""
    result = CliRunner().invoke(app, ["-vv", *map(str, arguments)])
    assert result.exit_code in (0, 1, 4), result.output
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """What the commands of a shop's team leave, and what each has said."""
    folder = tmp_path_factory.mktemp("artifacts")
    shop, out, temporary = marked_shop(folder), folder / "out", folder / "temporary"
    out.mkdir()
    temporary.mkdir()
    bundles, evaluation = out / "bundles", out / "evaluation.json"
    customer = read_shop(shop).customers["customer_id"][0].as_py()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        patch.setenv("CONSENTIER__EVALUATION__BOOTSTRAP_SAMPLES", "100")
        patch.setattr(tempfile, "tempdir", None)
        told = {
            "validate": said("validate", shop),
            "train": said("train", shop, "--out", bundles),
            "promote": said("promote", "--bundles", bundles, "--data", shop, "--dry-run"),
            "evaluate": said("evaluate", shop, "--out", evaluation),
            "report": said("report", evaluation, "--out", out / "report.html"),
            "worth": said("worth", shop, "--out", out / "worth.html", "--figures", out / "worth.json"),
            "drift": said("drift", shop, "--bundles", bundles, "--out", out / "drift.json"),
            "inspect": said("inspect", bundles),
            "disclose": said("disclose", "--bundles", bundles, "--out", out / "records.md"),
            "package": said("package", bundles, "--out", out / "model"),
            # Before somebody is forgotten: trained anew with their rows, the bundles would answer no more.
            **told_with_names_at_hand(folder, shop, bundles, customer),
            "forget": said("forget", customer, "--data", shop, "--bundles", bundles),
            "retrain": said("retrain", shop, "--bundles", bundles),
            "tune": said("tune", shop, "--tier", "crm", "--trials", 2, "--out", out / "tuned.toml"),
        }
        assert pq.read_metadata(folder / "lists.parquet").num_rows
        yield out, told
        assert naming(temporary) == []
    assert not list(temporary.iterdir())


def test_no_command_says_who_anybody_is(outputs: tuple[Path, dict[str, str]]) -> None:
    _, told = outputs
    assert [name for name, text in told.items() if MARKER in text or MOTTO in text] == []
    assert all(told[name] for name in ("train", "promote", "evaluate", "drift", "forget", "retrain"))
    assert "persons" in told["deliver"]
    assert "the chain holds" in told["verify"]
    assert "subjects purged" in told["enforce"]


def test_nothing_that_they_leave_names_anybody(outputs: tuple[Path, dict[str, str]]) -> None:
    out, _ = outputs
    assert naming(out) == []
    assert naming(out, MOTTO) == _ATTRIBUTES
    suffixes = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert {".npy", ".json", ".html", ".md", ".svg", ".db"} <= suffixes


def test_a_name_would_be_found(tmp_path: Path) -> None:
    table = pa.table({"who": [f"{MARKER}-1"]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    (tmp_path / "b.gz").write_bytes(gzip.compress(MARKER.encode()))
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside", MARKER * 9)
    (tmp_path / "d.txt").write_text(f"x{MARKER}x")
    (tmp_path / MARKER).mkdir()
    (tmp_path / "e.txt").write_text("nobody")
    assert naming(tmp_path) == ["a.parquet", "b.gz", "c.zip", "d.txt", MARKER]
