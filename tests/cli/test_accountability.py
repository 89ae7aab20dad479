"""The commands that account for answers: replay, exposure, export, disclose."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from engines import ITEMS, bundles, write_linear
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.consent import ConsentRecord, Ledger, Link, Policy
from consentier.consent.keyring import Keyring
from consentier.models.bundle import write_run
from consentier.serving import Event, Profiles, Recommender, Request
from consentier.serving.audit import JsonLinesAudit
from consentier.serving.profile_store import SqliteProfiles
from consentier.training.restricted import Restricted

START = dt.datetime(2025, 12, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
AT = START + 10 * DAY


def run(*arguments: object) -> Result:
    """One command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


class Shop:
    """A ledger, profile stores and an audit log with one fused decision, all in one directory."""

    def __init__(self, folder: Path) -> None:
        self.ledger, self.audit = f"sqlite:///{folder / 'consents.db'}", folder / "audit"
        self.online, self.crm = folder / "online.db", folder / "crm.db"
        SqliteProfiles(self.online).append("v-1", [Event(ITEMS[2], START, "view")])
        SqliteProfiles(self.crm).append("c-1", [Event(ITEMS[3], START, "order", 1)])
        keyring = Keyring.open(self.audit / "keys.json")
        with Ledger.open(self.ledger) as ledger:
            ledger.append(
                [
                    ConsentRecord("1", "v-1", "visitor", "online", "granted", START, START),
                    ConsentRecord("2", "c-1", "customer", "crm", "granted", START, START),
                ]
            )
            ledger.append_links([Link("v-1", "c-1", START)])
            crm = SqliteProfiles(self.crm)
            engine = Recommender.load(
                bundles(),
                ledger=ledger,
                profiles=Profiles(SqliteProfiles(self.online), crm, crm.attributes),
                keyring=keyring,
                audit=JsonLinesAudit(self.audit, keyring),
            )
            self.answer = engine.recommend(
                Request(session=(ITEMS[1],), visitor_id="v-1", customer_id="c-1", linked=True, at=AT)
            )
        (self.lines,) = self.audit.glob("*.jsonl")

    def late(self) -> None:
        """A withdrawal that came too late for the decision."""
        late = ConsentRecord("3", "c-1", "customer", "crm", "withdrawn", START + 5 * DAY, AT + DAY)
        with Ledger.open(self.ledger) as ledger:
            ledger.append([late])


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A shop with one decision."""
    return Shop(tmp_path)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """What the decision was asked, apart from what the stores hold."""
    file = tmp_path / "inputs.json"
    file.write_text(json.dumps({"session": [ITEMS[1]], "visitor_id": "v-1", "customer_id": "c-1"}))
    return file


def replayed(shop: Shop, inputs: Path, line: object, *more: object) -> Result:
    """A replay with the shop's stores."""
    stores = ("--online-profiles", shop.online, "--crm-profiles", shop.crm)
    return run("replay", line, "--bundles", bundles(), "--inputs", inputs, *stores, *more)


def test_replay_gives_the_answer_again(shop: Shop, inputs: Path) -> None:
    text = shop.lines.read_text().strip()
    for line, more in (
        (f"{shop.lines}:1", ()),
        (shop.lines, ()),
        (text, ("--keys", shop.audit / "keys.json")),
    ):
        found = replayed(shop, inputs, line, "--json", *more)
        assert found.exit_code == 0, found.output
        document = json.loads(found.stdout)
        assert document["outcome"] == "reproduced"
        assert document["answer"]["items"] == list(shop.answer.items)
    plain = replayed(shop, inputs, shop.lines)
    assert "the same answer, bit for bit" in plain.stdout
    assert shop.answer.items[0] in plain.stdout


def test_replay_asks_the_ledger_how_old_the_inputs_might_be(shop: Shop, inputs: Path) -> None:
    SqliteProfiles(shop.online).append("v-1", [Event(ITEMS[4], START - DAY)])
    shop.late()
    assert "not what was read then: online" in replayed(shop, inputs, shop.lines).stdout
    found = replayed(shop, inputs, shop.lines, "--ledger", shop.ledger)
    assert (found.exit_code, "the same answer, bit for bit" in found.stdout) == (0, True)


def test_replay_says_when_inputs_were_erased(shop: Shop, inputs: Path) -> None:
    SqliteProfiles(shop.crm).purge("c-1")
    found = replayed(shop, inputs, shop.lines)
    assert found.exit_code == 1
    assert "inputs erased" in found.stdout
    assert replayed(shop, inputs, shop.lines, "--json").exit_code == 1


def test_replay_names_another_policy(shop: Shop, inputs: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    default = Path(Policy.load.__code__.co_filename).with_name("default_policy.toml").read_text()
    policy.write_text(default.replace("consentier-default-1", "ours-2"))
    found = replayed(shop, inputs, shop.lines, "--policy", policy)
    assert found.exit_code == 1
    assert "this is 'ours-2'" in found.stdout


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("absent.jsonl", "cannot be read"),
        ("TEXT", "--keys"),
        ("{}", "cannot be read as an audit line"),
        ("LINES:2", "there are 1 lines"),
        ("LINES:0", "there are 1 lines"),
    ],
)
def test_replay_refuses_what_is_no_line(shop: Shop, inputs: Path, line: str, words: str) -> None:
    text = shop.lines.read_text().strip()
    found = replayed(shop, inputs, line.replace("LINES", str(shop.lines)).replace("TEXT", text))
    assert found.exit_code == 2
    assert words in " ".join(found.stderr.split())


def test_exposure_lists_what_rested_on_too_much(shop: Shop) -> None:
    asked = ("exposure", "--ledger", shop.ledger, "--audit", shop.audit)
    assert "0 of 1 audit lines" in run(*asked).stdout
    shop.late()
    found = run(*asked)
    assert found.exit_code == 0, found.output
    assert "1 of 1 audit lines" in found.stdout
    assert "fused" in found.stdout
    assert "c-1" not in found.stdout
    (answer,) = json.loads(run(*asked, "--json", "--names").stdout)["answers"]
    assert answer["reason"] == "online permission only: no answer of the fused tier"
    assert answer["subjects"] == {"visitor": "visitor:v-1", "customer": "customer:c-1"}


def test_exposure_of_bundles_asks_the_lineage(shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    folder.mkdir()
    digest = write_linear(folder / "crm", "crm")  # type: ignore[arg-type]
    write_run(folder / "crm", {"ledger_position": 3})
    shop.late()
    asked = ("exposure", "--ledger", shop.ledger, "--bundles", folder)
    guessed = run(*asked)
    assert "up to 1" in guessed.stdout
    assert "no lineage index" in guessed.stderr
    lineage = Restricted.beside(folder).lineage()
    lineage.record(digest, "crm", [("customer", "c-2")], cutoff=AT, ledger_position=3)
    assert json.loads(run(*asked, "--json").stdout)["bundles"] == []
    lineage.record(digest, "crm", [("customer", "c-1")], cutoff=AT, ledger_position=3)
    (bundle,) = json.loads(run(*asked, "--json", "--names").stdout)["bundles"]
    assert (bundle["digest"], bundle["subjects"], bundle["certain"]) == (digest, ["customer:c-1"], True)


def test_exposure_needs_something_to_look_at(shop: Shop) -> None:
    found = run("exposure", "--ledger", shop.ledger)
    assert (found.exit_code, "--audit" in found.stderr) == (2, True)
    assert run("exposure", "--ledger", shop.ledger, "--bundles", shop.audit / "absent").exit_code == 2


def test_export_writes_all_that_is_held(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "export.json"
    stores = ("--online-profiles", shop.online, "--crm-profiles", shop.crm, "--audit", shop.audit)
    found = run("export", "c-1", "--ledger", shop.ledger, *stores, "--out", out, "--at", AT.isoformat())
    assert found.exit_code == 0, found.output
    document: dict[str, Any] = json.loads(out.read_text())
    assert document["subject"]["profile"][0]["item_id"] == ITEMS[3]
    assert document["subject"]["decisions"][0]["tier"] == "fused"
    (device,) = document["linked_devices"]
    assert device["profile"][0]["item_id"] == ITEMS[2]
    shop.late()
    printed = json.loads(run("export", "c-1", "--ledger", shop.ledger).stdout)
    assert printed["linked_devices"] == []
    assert "profile" not in printed["subject"]


def test_an_export_of_a_stranger_says_that_nobody_knows_the_id(shop: Shop) -> None:
    for subject in (("nobody",), ("c-1", "--kind", "visitor")):
        found = run("export", *subject, "--ledger", shop.ledger)
        assert found.exit_code == 0
        assert json.loads(found.stdout)["subject"]["records"] == []
        assert "the ledger has no record of this subject: check the id, and --kind" in found.stderr
    assert "no record" not in run("export", "c-1", "--ledger", shop.ledger).stderr


def test_an_export_is_written_for_its_owner_only(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "export.json"
    before = os.umask(0)
    try:
        assert run("export", "c-1", "--ledger", shop.ledger, "--out", out).exit_code == 0
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o600


def test_an_export_finds_the_index_where_the_trainer_keeps_it(shop: Shop, tmp_path: Path) -> None:
    restricted = tmp_path / "elsewhere"
    Restricted(restricted).lineage().record(
        "sha256:x", "crm", [("customer", "c-1")], cutoff=AT, ledger_position=3
    )
    asked = (
        "export",
        "c-1",
        "--ledger",
        shop.ledger,
        "--bundles",
        tmp_path / "bundles",
        "--at",
        AT.isoformat(),
    )
    missing = run(*asked)
    assert (missing.exit_code, "--restricted" in missing.output) == (2, True)
    found = run(*asked, "--restricted", restricted)
    assert found.exit_code == 0, found.output
    assert "sha256:x" in found.stdout


def test_export_refuses_stores_that_are_not_there(shop: Shop, tmp_path: Path) -> None:
    for option, value in (
        ("--crm-profiles", tmp_path / "absent.db"),
        ("--audit", tmp_path / "absent"),
        ("--bundles", tmp_path / "absent"),
        ("--data", tmp_path / "absent"),
    ):
        found = run("export", "c-1", "--ledger", shop.ledger, option, value)
        assert (found.exit_code, "absent" in found.stderr) == (2, True), option


def test_disclose_writes_markdown_or_json(tmp_path: Path) -> None:
    schedule = tmp_path / "retention.toml"
    schedule.write_text(
        '[[keep]]\nwhat = "audit"\npath = "audit"\n'
        '[[keep]]\nwhat = "keys"\npath = "audit/keys.json"\nrotate_days = 90\nkeep_days = 180\n'
        '[[keep]]\nwhat = "mlflow"\nuri = "postgresql://user:secret@host/tracked"\ndays = 365\n'
        '[[keep]]\nwhat = "mlflow"\nuri = "https://user:secret@tracking.example"\ndays = 365\n'
    )
    asked = ("disclose", "--bundles", bundles(), "--retention", schedule)
    found = run(*asked)
    assert found.exit_code == 0, found.output
    for words in (
        "# Records of processing",
        "as each line says",
        "180 days after",
        "tracked",
        "III ZR 196/17",
    ):
        assert words in found.stdout
    assert "secret" not in found.stdout
    assert str(tmp_path) not in found.stdout
    assert json.loads(run(*asked, "--json").stdout)["retention"][0] == {
        "what": "audit",
        "where": "audit",
        "how_long": "as each line says",
    }
    for more, name in (((), "records.md"), (("--json",), "records.json")):
        assert run(*asked, *more, "--out", tmp_path / name).exit_code == 0
    assert (tmp_path / "records.md").read_text() == found.stdout
    assert json.loads((tmp_path / "records.json").read_text())["policy_version"] == Policy.default().version
    assert run("disclose", "--bundles", tmp_path).exit_code == 2
