"""The command line: results, JSON, exit codes, errors in one line, and no debris."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlglot
import typer
from typer.testing import CliRunner

import consentier
import consentier.consent
from consentier.cli import output
from consentier.cli.app import app
from consentier.consent import Channel
from consentier.features.gate import ledger_of
from consentier.features.tables import read_shop
from consentier.serving.revocation import revoke

COMMANDS = (
    "demo",
    "simulate",
    "validate",
    "train",
    "tune",
    "evaluate",
    "report",
    "recommend",
    "score",
    "inspect",
    "doctor",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run of the command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(*arguments: object) -> Outcome:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})
    return Outcome(result.exit_code, result.stdout, result.stderr)


@dataclasses.dataclass(frozen=True)
class Workshop:
    """A small simulated shop with bundles trained on it."""

    shop: Path
    bundles: Path
    config: Path
    cutoff: dt.datetime
    trained: dict[str, Any]
    logged: str
    """What the training run said on standard error, in detail."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    shop, bundles, config = folder / "shop", folder / "bundles", folder / "settings.toml"
    size = ("--customers", 400, "--items", 80, "--days", 40, "--seed", 3)
    simulated = run("simulate", shop, *size, "--json").json
    cutoff = dt.datetime.fromisoformat(simulated["cutoff"])
    tiers = "".join(f"[{tier}]\nneighbours = 20\n" for tier in ("session", "online", "crm", "fused"))
    config.write_text(
        f"[training]\ncutoff = {simulated['cutoff']}\n[tracking]\nenabled = false\n"
        f"[evaluation]\nbootstrap_samples = 100\n{tiers}"
    )
    trained = run("-vv", "train", shop, "--out", bundles, "--config", config, "--json")
    assert trained.code == 0, trained.err
    return Workshop(shop, bundles, config, cutoff, trained.json, trained.err)


# --- the whole ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.code == 0
    assert f"Example: consentier {command}" in outcome.out
    assert "--json" in outcome.out


def test_help_lists_the_commands_and_version_is_the_package_version() -> None:
    listed = run("--help").out
    assert all(command in listed for command in COMMANDS)
    assert run("--version").out.strip() == f"consentier {consentier.__version__}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trian",), "train"),
        (("recommend",), "--bundles"),
        (("recommend", "--bundles", "b", "--at", "noon"), "ISO 8601"),
        (("recommend", "--bundles", "b", "--attribute", "age"), "NAME=VALUE"),
        (("recommend", "--bundles", "b", "--permission", "all"), "permission"),
        (("train", "shop", "--out", "b", "--tier", "hybrid"), "tier"),
        (
            ("score", "shop", "--bundles", "b", "--channel", "email", "--out", "recs.CSV"),
            "end the name in .parquet",
        ),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], said: str) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.out == ""


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def test_errors_are_one_line_and_debug_shows_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run("validate", tmp_path / "nowhere")
    assert (plain.code, plain.out) == (2, "")
    assert re.fullmatch(r"error: .*nowhere: no such directory.*\n", plain.err)
    assert "Traceback" in run("--debug", "validate", tmp_path / "nowhere").err
    monkeypatch.setattr("consentier.features.simulator.simulate", raising(RuntimeError("a fault of ours")))
    unexpected = run("simulate", tmp_path / "shop")
    assert unexpected.code == 2
    assert unexpected.err.startswith("error: unexpected RuntimeError (--debug shows what")
    assert "Traceback" not in unexpected.err
    assert "Traceback" in run("--debug", "simulate", tmp_path / "shop").err


@pytest.mark.parametrize("command", [("simulate", "out"), ("demo", "--out", "out")])
def test_an_interrupt_exits_with_130_and_leaves_nothing(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyarrow.parquet.write_table", raising(KeyboardInterrupt()))
    outcome = run(*command)
    assert outcome.code == 130
    assert "error: interrupted" in outcome.err
    assert list(tmp_path.iterdir()) == []


def without(packages: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a Python in which some packages cannot be imported."""
    program = (
        f"import sys\nfor name in {packages!r}: sys.modules[name] = None\n"
        "from consentier.__main__ import main\nmain()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_cli_extra_it_says_how_to_install_it(package: str) -> None:
    outcome = without((package,), "doctor")
    assert outcome.returncode == 3
    assert outcome.stderr == f"error: the command line needs {package}: pip install 'consentier[cli]'\n"


def test_without_the_train_extra_answers_still_come_and_training_says_what_is_missing(
    workshop: Workshop,
) -> None:
    heavy = ("scipy", "sklearn", "ibis", "duckdb", "pyarrow", "mlflow", "numba", "joblib", "sqlalchemy")
    asked = without(heavy, "recommend", "--bundles", workshop.bundles, "--session", "i00003", "--json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["tier"] == "session"
    assert without(heavy, "inspect", workshop.bundles).returncode == 0
    assert without(heavy, "doctor").returncode == 0
    trained = without(heavy, "train", workshop.shop, "--out", workshop.bundles, "--force")
    assert trained.returncode == 3
    assert trained.stderr.count("\n") == 1
    assert "pip install 'consentier[train]'" in trained.stderr


# --- data ---------------------------------------------------------------------------------------------------


def test_simulate_says_what_it_wrote_and_replaces_only_when_told(tmp_path: Path) -> None:
    out = tmp_path / "shop"
    first = run("simulate", out, "--customers", 50, "--days", 30, "--json")
    assert first.code == 0
    assert first.json["rows"] == {
        name: pq.read_metadata(out / f"{name}.parquet").num_rows for name in first.json["rows"]
    }
    again = run("simulate", out, "--customers", 60, "--days", 30)
    assert again.code == 2
    assert "--force" in again.err
    forced = run("simulate", out, "--customers", 60, "--days", 30, "--force", "--json")
    assert forced.json["rows"]["customers"] == 60
    too_short = run("simulate", tmp_path / "other", "--days", 10, "--horizon-days", 6)
    assert too_short.code == 2  # shorter than two horizons


def test_validate_counts_rows_and_fails_on_bad_ones(workshop: Workshop, tmp_path: Path) -> None:
    good = run("validate", workshop.shop, "--json")
    assert (good.code, good.json["ok"]) == (0, True)
    (doubt,) = good.json["doubts"]
    assert "record_ids stand for more than one decision" in doubt  # the simulator contradicts some
    assert "valid" in run("validate", workshop.shop).out
    consents = (
        "record_id,subject_id,subject_kind,permission,state,valid_from,valid_to,recorded_at\n"
        "r1,c1,customer,crm,granted,2026-01-01T00:00:00Z,,2026-01-01T00:00:00Z\n"
    )
    orders = (
        "customer_id,order_id,line_id,ts,item_id,quantity,status\n"
        "c1,o1,1,2026-02-01T00:00:00Z,a,1,ordered\nc1,o2,1,2026-02-01T00:00:00Z,a,0,ordered\n"
    )
    (tmp_path / "consents.csv").write_text(consents)
    (tmp_path / "orders.csv").write_text(orders.replace("c1,", "C1,").replace(",0,", ",1,"))
    doubtful = run("validate", tmp_path)
    assert doubtful.code == 0
    assert "but look at table orders: none of its 1 customers has a record" in doubtful.out
    a_file = run("validate", tmp_path / "orders.csv")
    assert (a_file.code, a_file.out) == (2, "")
    assert "orders.csv: is a file: give the directory" in a_file.err
    (tmp_path / "orders.csv").write_text(orders)
    stopped = run("validate", tmp_path)
    assert stopped.code == 1
    assert "not valid: table orders" in stopped.out
    told = run("validate", tmp_path, "--json").json
    assert (told["ok"], len(told["errors"])) == (False, 1)
    assert told["errors"] == [told["error"]]
    (tmp_path / "consents.csv").write_text(consents.replace("granted", "yes"))
    both = run("validate", tmp_path)
    assert both.code == 1
    assert [line.split(",")[0] for line in both.out.splitlines()] == [
        "not valid: table orders",
        "not valid: table consents",
    ]
    assert len(run("validate", tmp_path, "--json").json["errors"]) == 2
    (tmp_path / "consents.csv").write_text(consents)
    counted = run("validate", tmp_path, "--on-bad-rows", "drop", "--json")
    assert counted.code == 1
    assert [(entry["column"], entry["count"]) for entry in counted.json["failures"]] == [("quantity", 1)]
    assert counted.json["rows_kept"]["orders"] == 1
    assert "below minimum" in run("validate", tmp_path, "--on-bad-rows", "drop").out


@pytest.mark.parametrize(
    "typed",
    [
        "evaluate SHOP --out PLACE",
        "worth SHOP --out PLACE",
        "worth SHOP --out ELSEWHERE --figures PLACE",
        "drift SHOP --bundles BUNDLES --out PLACE",
        "tune SHOP --out PLACE",
        "export c1 --ledger sqlite:///NOWHERE --out PLACE",
    ],
)
@pytest.mark.parametrize("place", ["folder", "file/x.json", "closed/x.json"])
def test_a_place_that_takes_no_file_is_refused_before_the_work(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, place: str
) -> None:
    for name in ("folder", "closed"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr("consentier.features.tables.read_shop", raising(RuntimeError("the work began")))
    closed = tmp_path / "closed"
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != closed)  # root may write everywhere
    names = {"SHOP": workshop.shop, "BUNDLES": workshop.bundles, "ELSEWHERE": tmp_path / "other.html"}
    names |= {"NOWHERE": tmp_path / "none.db", "PLACE": tmp_path / place}
    for name, meant in names.items():
        typed = typed.replace(name, str(meant))
    outcome = run(*typed.split())
    assert outcome.code == 2
    said = outcome.err.replace("\n", "")
    assert (
        f"{tmp_path / place}: is a directory" in said or f"{tmp_path / place}: cannot be written, for" in said
    )
    assert "name " in said


def test_bundles_go_into_no_file(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consentier.features.tables.read_shop", raising(RuntimeError("the work began")))
    (tmp_path / "bundles").touch()
    refused = run("train", workshop.shop, "--out", tmp_path / "bundles")
    assert refused.code == 2
    assert "bundles: is a file; name a directory for the bundles" in refused.err


def test_what_the_system_refuses_is_told_of_the_file_that_was_to_be(
    workshop: Workshop, tmp_path: Path
) -> None:
    """Not of the hidden place beside it, which nobody knows."""
    recs, out = tmp_path / "recs.parquet", tmp_path / "folder"
    named = ("--bundles", workshop.bundles, "--data", workshop.shop)
    scored = ("score", workshop.shop, "--bundles", workshop.bundles, "--channel", "email", "--out", recs)
    assert run(*scored, "--at", workshop.cutoff.isoformat()).code == 0
    out.mkdir()
    refused = run("deliver", recs, *named, "--out", out)
    assert refused.code == 2
    assert refused.err.splitlines()[-1] == f"error: {out}: cannot be written: Is a directory"


def test_a_batch_that_is_odd_as_a_whole_says_so(workshop: Workshop, tmp_path: Path) -> None:
    """Nobody whom the channel may reach at that instant; and bundles of another shop."""
    scored = ("--bundles", workshop.bundles, "--channel", "email", "--out", tmp_path / "recs.parquet")
    nobody = run("score", workshop.shop, *scored, "--at", "2020-01-01T00:00:00Z")
    assert nobody.code == 0
    assert "nobody was given a list on the channel email" in nobody.err
    assert "another shop" not in nobody.err
    other = tmp_path / "other"
    shutil.copytree(workshop.shop, other)
    items = pq.read_table(other / "items.parquet")
    renamed = pa.array([f"sku-{item}" for item in items["item_id"].to_pylist()])
    pq.write_table(items.set_column(items.schema.get_field_index("item_id"), "item_id", renamed),
                   other / "items.parquet")  # fmt: skip
    strange = run("score", other, *scored, "--at", workshop.cutoff.isoformat())
    assert strange.code == 0
    told = re.findall(
        r"0 of the \d+ items of the session bundle stand in the table items: was it", strange.err
    )
    assert len(told) == strange.err.count("another shop") == 1


# --- bundles ------------------------------------------------------------------------------------------------


def test_train_reports_digests_that_inspect_confirms(workshop: Workshop) -> None:
    inspected = run("inspect", workshop.bundles, "--json")
    assert inspected.code == 0
    assert {entry["tier"]: entry["digest"] for entry in inspected.json} == workshop.trained["digests"]
    assert set(workshop.trained["digests"]) == {"session", "online", "crm", "fused", "popular"}
    for row in workshop.trained["funnel"]:
        assert row["rows_kept"] + sum(row["excluded"].values()) == row["rows_in"]
    one = run("inspect", workshop.bundles / "crm")
    assert one.code == 0
    assert workshop.trained["digests"]["crm"] in one.out
    assert "intact" in one.out


def test_all_that_a_run_says_is_json_and_names_nobody(workshop: Workshop) -> None:
    lines = [json.loads(line) for line in workshop.logged.splitlines()]
    assert len(lines) > 5
    assert {line["command"] for line in lines} == {"train"}
    assert len({line["run"] for line in lines}) == 1
    assert {line["tier"] for line in lines if "tier" in line} == set(workshop.trained["digests"])
    shop = read_shop(workshop.shop)
    subjects = {
        *shop.events["visitor_id"].to_pylist(),
        *shop.events["session_id"].to_pylist(),
        *shop.customers["customer_id"].to_pylist(),
        *shop.consents["subject_id"].to_pylist(),
        *shop.consents["record_id"].to_pylist(),
    }
    assert not subjects & set(re.findall(r"[\w-]+", workshop.logged))


def leaves(group: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """All commands with what is typed to call them."""
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from leaves(each, *path, name)
        else:
            yield " ".join((*path, name)), each


COMMAND_LINE = dict(leaves(typer.main.get_command(app)))


@pytest.mark.parametrize("typed", COMMAND_LINE)
def test_lines_of_json_name_each_command_as_it_is_typed(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def noted(**fields: str) -> None:
        said.append(fields["command"])
        raise typer.Exit  # before the command itself

    monkeypatch.setattr(output, "bound", noted)
    with pytest.raises(typer.Exit):
        COMMAND_LINE[typed].callback()
    assert said == [typed]


def test_there_are_nested_commands_with_names_that_no_function_has() -> None:
    assert {"import", "consent import", "consent signal", "config check", "ab report"} <= COMMAND_LINE.keys()


def test_quiet_leaves_only_results(workshop: Workshop, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "evaluation.json")
    outcome = run("--quiet", "evaluate", workshop.shop, "--config", workshop.config, "--json", *out)
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.json


def test_train_of_one_tier_gives_the_same_bundle_and_a_table(workshop: Workshop, tmp_path: Path) -> None:
    options = ("--config", workshop.config, "--tier", "crm", "--tier", "popular")
    outcome = run("train", workshop.shop, "--out", tmp_path / "b", *options)
    assert outcome.code == 0
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["crm", "popular"]
    assert workshop.trained["digests"]["crm"].removeprefix("sha256:")[:12] in outcome.out
    refused = run("train", workshop.shop, "--out", tmp_path / "b", *options)
    assert refused.code == 2
    assert "--force" in refused.err


def test_a_bundle_that_is_made_again_and_answers_no_more_is_told(workshop: Workshop, tmp_path: Path) -> None:
    """Somebody was forgotten, and the rows are still there: the same bundle comes again, and is stopped."""
    out, config = tmp_path / "b", ("--config", workshop.config)
    options = ("--out", out, *config, "--tier", "crm", "--force")
    customer = read_shop(workshop.shop).customers["customer_id"][0].as_py()
    assert "answers nobody" not in run("train", workshop.shop, *options).err
    assert run("forget", customer, "--data", workshop.shop, "--bundles", out, *config).code == 0
    revoke(out, [workshop.trained["digests"]["crm"]], dt.datetime.now(dt.UTC), "forgotten")
    for again in (
        run("retrain", workshop.shop, "--bundles", out, *config, "--tier", "crm"),
        run("train", workshop.shop, *options),
    ):
        assert again.code == 0
        assert "the crm bundle answers nobody: it is the same as one that holds somebody" in again.err
        assert workshop.trained["digests"]["crm"].removeprefix("sha256:")[:12] in again.out


def test_the_cutoff_option_overrides_the_configuration(workshop: Workshop, tmp_path: Path) -> None:
    earlier = workshop.cutoff - dt.timedelta(days=5)
    options = ("--config", workshop.config, "--tier", "crm", "--cutoff", earlier.isoformat())
    assert run("train", workshop.shop, "--out", tmp_path / "b", *options).code == 0
    entry = run("inspect", tmp_path / "b" / "crm", "--json").json[0]
    assert dt.datetime.fromisoformat(entry["cutoff"]) == earlier


def test_a_cutoff_in_the_future_is_told(workshop: Workshop, tmp_path: Path) -> None:
    options = ("--config", workshop.config, "--tier", "crm", "--out", tmp_path / "b", "--cutoff")
    told = run("train", workshop.shop, *options, "9000-01-01")
    assert "the cut-off 9000-01-01T00:00:00+00:00 (training.cutoff, --cutoff) lies in the future" in told.err
    passed = run("train", workshop.shop, *options, workshop.cutoff.isoformat(), "--force")
    assert passed.code == 0
    assert "lies in the future" not in passed.err


def test_a_wrong_configuration_key_is_named(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[session]\nneigbours = 3\n")
    outcome = run("train", workshop.shop, "--out", tmp_path / "b", "--config", tmp_path / "c.toml")
    assert outcome.code == 2
    assert "unknown key session.neigbours; did you mean 'neighbours'?" in outcome.err
    assert not (tmp_path / "b").exists()


def test_inspect_finds_a_changed_byte(workshop: Workshop, tmp_path: Path) -> None:
    copy = tmp_path / "bundles" / "crm"
    copy.mkdir(parents=True)
    for path in (workshop.bundles / "crm").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / "data.npy").read_bytes())
    data[-1] ^= 1
    (copy / "data.npy").write_bytes(data)
    outcome = run("inspect", tmp_path / "bundles", "--json")
    assert outcome.code == 1
    assert outcome.json[0]["intact"] is False
    assert "data.npy" in outcome.json[0]["findings"][0]
    (copy / "manifest.json").write_text("{}")
    assert run("inspect", tmp_path / "bundles").code == 1
    assert run("inspect", tmp_path).code == 2


# --- answers ------------------------------------------------------------------------------------------------

PERSON = (
    "--online-history", "i00004,i00007", "--crm-history", "i00009,i00011", "--attribute", "age_band=25-34",
    "--linked",
)  # fmt: skip


@pytest.mark.parametrize(
    ("permission", "channel", "tier"),
    [
        ("none", "shop", "session"),
        ("online", "shop", "online"),
        ("crm", "shop", "session"),
        ("crm", "email", "crm"),
        ("both", "shop", "fused"),
        ("online", "email", "popular"),
    ],
)
def test_the_permission_decides_the_tier(
    workshop: Workshop, permission: str, channel: str, tier: str
) -> None:
    question = ("recommend", "--bundles", workshop.bundles, "--session", "i00001,i00002", *PERSON)
    question = (*question, "--permission", permission, "--channel", channel, "--n", 4)
    answer = run(*question, "--json")
    assert answer.code == 0
    assert answer.json["tier"] == tier
    assert len(answer.json["items"]) == 4
    shown = run(*question).out
    assert answer.json["items"][0] in shown
    assert answer.json["basis"]["reason"] in re.sub(r"\s+", " ", shown)


def test_what_may_not_be_read_changes_no_byte_of_the_answer(workshop: Workshop) -> None:
    question = (
        "recommend",
        "--bundles",
        workshop.bundles,
        "--session",
        "i00001",
        "--permission",
        "none",
        "--json",
    )
    bare = run(*question)
    assert run(*question, *PERSON).out == bare.out
    named = run(*question, *PERSON, "--customer-id", "c1", "--visitor-id", "v1")
    assert named.out == bare.out
    assert "no ledger was asked" not in named.err


def test_ids_without_a_ledger_are_told_of(workshop: Workshop) -> None:
    question = ("recommend", "--bundles", workshop.bundles, "--session", "i00001", "--json")
    named = run(*question, "--customer-id", "c1")
    assert named.out == run(*question).out
    assert "no ledger was asked about these ids, so nothing is permitted: add --ledger URL" in named.err


def test_exclude_allow_and_items_with_a_comma(workshop: Workshop) -> None:
    question = ("recommend", "--bundles", workshop.bundles, "--session-item", "i00001", "--json")
    best = run(*question, "--n", 3).json["items"]
    assert best[0] not in run(*question, "--exclude", best[0]).json["items"]
    assert run(*question, "--allow", f"{best[1]}, {best[2]}").json["items"] == [best[1], best[2]]
    assert run(*question, "--session-item", "a,b").json["basis"]["unknown_items"] == 1


def test_the_ledger_answers_for_the_customer_and_a_request_cannot_widen_it(workshop: Workshop) -> None:
    links = ledger_of(read_shop(workshop.shop)).lawful_links(at=workshop.cutoff)
    visitor, link = min(links.items())
    question = (
        "recommend",
        "--bundles",
        workshop.bundles,
        "--data",
        workshop.shop,
        "--at",
        workshop.cutoff.isoformat(),
    )
    known = (*question, "--visitor-id", visitor, "--customer-id", link.customer_id, *PERSON, "--json")
    assert run(*known).json["tier"] == "fused"
    assert run(*known, "--permission", "online").json["tier"] == "online"
    unknown = (*question, "--visitor-id", "nobody", *PERSON, "--permission", "both", "--json")
    assert run(*unknown).json["basis"]["state"] == "none"


def test_a_missing_tier_lowers_the_answer_and_is_reported(workshop: Workshop, tmp_path: Path) -> None:
    for tier in ("session", "popular"):
        (tmp_path / tier).symlink_to(workshop.bundles / tier)
    outcome = run(
        "recommend", "--bundles", tmp_path, "--permission", "both", "--session", "i00001", *PERSON, "--json"
    )
    assert (outcome.code, outcome.json["tier"]) == (0, "session")
    assert "the fused tier has no model" in outcome.err
    assert run("recommend", "--bundles", tmp_path / "nowhere").code == 2


def test_score_writes_rows_only_for_those_who_may_be_contacted(workshop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "recs.parquet"
    question = (
        "score",
        workshop.shop,
        "--bundles",
        workshop.bundles,
        "--out",
        out,
        "--at",
        workshop.cutoff.isoformat(),
    )
    outcome = run(*question, "--channel", "email", "--n", 5, "--json")
    assert outcome.code == 0
    rows = pq.read_table(out).to_pylist()
    assert outcome.json["rows"] == len(rows) > 0
    assert sum(outcome.json["by_tier"].values()) == outcome.json["customers"]
    assert {"crm", "fused"} <= set(outcome.json["by_tier"])
    ledger = ledger_of(read_shop(workshop.shop))
    for customer in {row["customer_id"] for row in rows}:
        contact = ledger.resolve(customer_id=customer, at=workshop.cutoff).contact
        assert contact is not None
        assert Channel.EMAIL in contact
    assert f"{len(rows):,} rows" in run(*question, "--channel", "email", "--n", 5).out


def test_score_resumes_parts_and_writes_into_databases(workshop: Workshop, tmp_path: Path) -> None:
    parts, whole = tmp_path / "parts", tmp_path / "whole.parquet"
    question = ("score", workshop.shop, "--bundles", workshop.bundles, "--channel", "email", "--json")
    at = ("--at", workshop.cutoff.isoformat())
    first = run(*question, *at, "--out", parts)
    assert first.code == 0, first.err
    assert "holds a batch already" in run(*question, *at, "--out", parts).err
    before = (parts / "part-00000.parquet").read_bytes()
    (parts / "part-00000.parquet").unlink()
    resumed = run(*question, "--out", parts, "--resume", "--workers", 1)
    assert resumed.json == first.json
    assert (parts / "part-00000.parquet").read_bytes() == before
    place = f"sqlite:///{tmp_path / 'recs.db'}"
    stored = run(*question, *at, "--out", place, "--table", "lists")
    assert {**stored.json, "out": str(parts)} == {**first.json, "out": str(parts)}
    assert run(*question, *at, "--out", whole).code == 0
    sent = []
    for scored in ((parts,), (place, "--table", "lists"), (whole,)):
        out = tmp_path / "send.parquet"
        delivered = run(
            "deliver", *scored, "--data", workshop.shop, "--bundles", workshop.bundles, "--out", out, *at
        )
        assert delivered.code == 0, delivered.err
        sent.append(out.read_bytes())
    assert sent[0] == sent[1] == sent[2]
    assert run(*question, "--out", parts, "--table", "lists").code == 2


def test_score_says_what_it_does_not_do_on_spark(workshop: Workshop, tmp_path: Path) -> None:
    question = ("score", workshop.shop, "--bundles", workshop.bundles, "--channel", "email")
    options = ("--workers", 2, "--table", "lists", "--on-bad-rows", "drop")
    refused = run(*question, "--engine", "spark", *options, "--out", "sqlite:///recs.db")
    assert refused.code == 2
    for name in ("--workers", "--table", "--on-bad-rows drop", "--out sqlite:///recs.db"):
        assert name in " ".join(refused.err.split())
    assert run(*question, "--engine", "spark", "--out", tmp_path / "one.parquet").code == 2
    assert "--master is for --engine spark" in run(*question, "--master", "local", "--out", tmp_path).err


# --- evaluation ---------------------------------------------------------------------------------------------


def test_evaluate_and_report(workshop: Workshop, tmp_path: Path) -> None:
    results, page = tmp_path / "evaluation.json", tmp_path / "report.html"
    outcome = run("evaluate", workshop.shop, "--config", workshop.config, "--out", results)
    assert outcome.code == 0, outcome.err
    written = json.loads(results.read_text())
    assert written["data"]["name"] == "shop"
    for tier in ("session", "online", "crm", "fused"):
        assert tier in outcome.out
    assert len(written["fusion"]) == len(written["cutoffs"])
    said = " ".join(outcome.out.split())
    for verdict in written["fusion"]:
        assert f"note: {verdict['text']}" in said
    assert run("report", results, "--out", page, "--json").json == {"out": str(page)}
    assert page.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("content", ["no json", "[]", '{"data": {}}'])
def test_report_refuses_what_is_no_evaluation(tmp_path: Path, content: str) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    outcome = run("report", tmp_path / "evaluation.json", "--out", tmp_path / "report.html")
    assert outcome.code == 2
    assert "evaluation.json" in outcome.err
    assert not (tmp_path / "report.html").exists()
    assert run("report", tmp_path / "nowhere.json").code == 2


# --- doctor and demo ----------------------------------------------------------------------------------------


def test_doctor_names_what_is_missing_and_the_line_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def versions(**changed: str | None) -> None:
        def version(name: str) -> str:
            if name in changed and changed[name] is None:
                raise metadata.PackageNotFoundError(name)
            return changed.get(name) or real(name)

        monkeypatch.setattr(metadata, "version", version)

    def extra(outcome: Outcome, name: str) -> Any:
        return next(entry for entry in outcome.json["extras"] if entry["name"] == name)

    versions()
    assert run("doctor").code == 0
    assert [package["name"] for package in run("doctor", "--json").json["core"]] == ["numpy"]
    assert extra(run("doctor", "--json"), "cli")["mend"] is None
    versions(mlflow=None)
    assert run("doctor").code == 0
    assert extra(run("doctor", "--json"), "train")["mend"] == "pip install 'consentier[train]'"
    assert "pip install 'consentier[train]'" in run("doctor").out
    versions(numpy="1.26.4")
    old = run("doctor", "--json")
    assert (old.code, old.json["findings"]) == (1, ["numpy is too old"])
    versions(numpy=None)
    assert run("doctor").code == 1


def test_demo_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consentier.training.train.record_run", lambda _shop, _config, trained, **_: trained)
    out = tmp_path / "demo"
    outcome = run("demo", "--out", out, "--customers", 250)
    assert outcome.code == 0, outcome.err
    for part in ("shop/consents.parquet", "bundles/fused/manifest.json", "evaluation.json", "report.html"):
        assert (out / part).is_file()
    answers = re.findall(r"^(no permission|online only|CRM only|both).*?  (\w+)  ", outcome.out, re.MULTILINE)
    assert [tier for _, tier in answers] == ["session", "online", "crm", "fused"]
    refused = run("demo", "--out", out)
    assert refused.code == 2
    assert "--force" in refused.err
    (out / "shop" / "truth").rename(tmp_path / "elsewhere")
    assert run("demo", "--out", out, "--force").code == 2
    assert (out / "report.html").is_file()


def test_features_sql_prints_one_query_and_where_it_comes_from(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    shipped = Path(consentier.consent.__file__).with_name("default_policy.toml").read_text("utf-8")
    policy.write_text(
        re.sub(r"^version = .*$", r'version = "mine\\nDROP TABLE x"', shipped, count=1, flags=re.M), "utf-8"
    )
    asked = ("features", "sql", "--tier", "crm", "--dialect", "snowflake", "--cutoff", "2026-11-01T00:00Z")
    found = run(*asked, "--policy", policy, "--table", "orders=LAKE.SHOP.SALES", "--without", "product_usage")
    assert found.code == 0, found.err
    comments = [line for line in found.out.splitlines() if line.startswith("--")]
    assert comments[0] == "-- rows of the crm tier's gate, as permitted at 2026-11-01T00:00:00+00:00"
    assert comments[2] == "-- policy mine DROP TABLE x, lifetimes consentier-default-1"
    (query,) = filter(None, sqlglot.parse(found.out, read="snowflake"))
    assert "SALES" in {table.name for table in query.find_all(sqlglot.exp.Table)}
    assert "say TABLE=NAME" in run(*asked, "--table", "orders").err
    assert "did you mean 'items'" in run(*asked, "--without", "itms").err
