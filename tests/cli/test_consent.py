"""The commands of the ledger, in the order in which a shop comes to need them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from engines import bundles as written_bundles
from shops import consent, day, event, link, order, shop
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.cli.output import USER_ERROR
from consentier.cli.withdrawal import Withdrawable
from consentier.consent import Ledger
from consentier.consent.records import PERMISSIONS
from consentier.features.tables import write_tables
from consentier.models.bundle import open_bundle
from consentier.serving import Event
from consentier.serving.profile_store import SqliteProfiles
from consentier.training.restricted import Restricted


def run(*arguments: object) -> Result:
    """One command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def done(*arguments: object) -> Any:
    """The JSON result of a command that ends well."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    """The URL of a ledger with one customer, imported from a shop's tables."""
    tables = shop(
        events=[event("v1", "a", 2)],
        orders=[order("c1", "a", 2)],
        consents=[consent("v1", "online"), consent("c1", "crm"), consent("c1", "contact:email")],
        identities=[link("v1", "c1")],
    )
    named = {name: getattr(tables, name) for name in ("events", "orders", "consents", "identities")}
    write_tables(named, tmp_path / "shop")
    url = f"sqlite:///{tmp_path / 'consents.db'}"
    assert done("consent", "import", tmp_path / "shop", "--ledger", url)["records_new"] == 3
    assert done("consent", "import", tmp_path / "shop", "--ledger", url)["records_new"] == 0
    return url


AT = ("--at", day(10).isoformat())


def test_a_subject_is_shown_with_the_records_that_say_so(ledger: str) -> None:
    shown = done("consent", "show", "c1", "--ledger", ledger, *AT)
    assert shown["resolution"]["crm"] is True
    assert shown["resolution"]["contact"] == ["email"]
    assert len(shown["records"]) == 2
    assert len(shown["links"]) == 1
    earlier = done("consent", "show", "c1", "--ledger", ledger, *AT, "--known-at", day(-1).isoformat())
    assert earlier["resolution"]["crm"] is False
    assert "granted" in run("consent", "show", "v1", "--kind", "visitor", "--ledger", ledger, *AT).stdout


def test_an_id_that_the_ledger_does_not_know_is_told_of(ledger: str) -> None:
    """A withdrawal with a mistyped id would look as if it had been carried out."""
    said = "The ledger had no record of this subject: check the id, and --kind"
    assert said in run("consent", "show", "v1", "--ledger", ledger, *AT).stdout
    assert said not in run("consent", "show", "v1", "--kind", "visitor", "--ledger", ledger, *AT).stdout
    withdrawal = ("--source", "crm", "--ledger", ledger, *AT)
    assert said in run("consent", "withdraw", "C1", *withdrawal).stdout
    assert said not in run("consent", "withdraw", "c1", *withdrawal).stdout


def test_an_import_says_what_becomes_of_a_record_id_with_two_decisions(ledger: str, tmp_path: Path) -> None:
    said = "give every decision an id of its own"
    assert said not in run("consent", "import", tmp_path / "shop", "--ledger", ledger).stdout
    granted = consent("v1", "online")
    write_tables(
        {"consents": shop(consents=[granted, granted | {"state": "withdrawn"}]).consents}, tmp_path / "log"
    )
    assert said in run("consent", "import", tmp_path / "log", "--ledger", ledger).stdout


def test_a_signal_is_recorded_and_one_that_cannot_be_read_denies(ledger: str, tmp_path: Path) -> None:
    signal = ("consent", "signal", "shopify")
    subject = ("--subject", "v1", "--ledger", ledger)
    payload = tmp_path / "payload.json"
    payload.write_text('{"analytics": "yes", "preferences": "yes", "marketing": "no", "sale_of_data": "no"}')
    assert done(*signal, f"@{payload}", *subject, *AT)["new"] > 0
    assert done(*signal, f"@{payload}", *subject, *AT)["new"] == 0
    unreadable = done(*signal, '{"broken', *subject, "--at", day(11).isoformat())
    assert {record["state"] for record in unreadable["records"]} == {"denied"}
    shown = done(
        "consent", "show", "v1", "--kind", "visitor", "--ledger", ledger, "--at", day(12).isoformat()
    )
    assert shown["resolution"]["online"] is False
    assert "did you mean 'shopify'" in run("consent", "signal", "shopfy", "x", *subject).output


def recorded(ledger: str, kind: str, payload: object, *options: object) -> list[dict[str, Any]]:
    """The records that a signal of v9 becomes."""
    subject = ("--subject", "v9", "--ledger", ledger, "--at", "2026-06-15T12:30:00Z")
    records: list[dict[str, Any]] = done("consent", "signal", kind, payload, *subject, *options)["records"]
    return records


@pytest.mark.parametrize("how", ["as it is", "in a file", "on standard input"])
def test_a_signal_that_names_a_key_twice_grants_nothing(ledger: str, tmp_path: Path, how: str) -> None:
    """The last of the two is not what the browser said: it said both."""
    text = (
        '{"analytics_storage": "granted", '
        '"personalization_storage": "denied", "personalization_storage": "granted"}'
    )
    payload, given = text, None
    if how == "in a file":
        (tmp_path / "payload.json").write_text(text)
        payload = f"@{tmp_path / 'payload.json'}"
    elif how == "on standard input":
        payload, given = "-", text
    arguments = (
        "consent",
        "signal",
        "consent_mode",
        payload,
        "--subject",
        "v9",
        "--ledger",
        ledger,
        "--json",
    )
    result = CliRunner().invoke(app, arguments, input=given)
    assert result.exit_code == 0, result.output
    assert {record["state"] for record in json.loads(result.stdout)["records"]} == {"denied"}


def test_headers_come_as_json_too(ledger: str) -> None:
    (first, *_) = recorded(ledger, "gpc", '{"Sec-GPC": "1", "Accept": "text/html"}')
    assert json.loads(first["evidence"])["raw"] == "1"
    assert recorded(ledger, "gpc", '{"Sec-GPC": "0"}') == []
    assert {each["state"] for each in recorded(ledger, "gpc", '{"Sec-GPC": "1", "Sec-GPC": "0"}')} == {
        "denied"
    }


def test_bytes_that_are_no_text_are_recorded_as_a_denial(ledger: str, tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b'{"analytics": "\xff"}')
    for kind in ("shopify", "tcf"):
        assert {each["state"] for each in recorded(ledger, kind, f"@{tmp_path / 'payload'}")} == {"denied"}


def test_settings_of_a_signal_are_texts_json_and_seconds(ledger: str) -> None:
    event = {
        "timestamp": "2026-06-15T12:28:00Z",
        "context": {"consent": {"categoryPreferences": {"Functional": True}}},
    }
    mapped = ("--set", 'categories={"online": ["Functional"]}', "--set", "jurisdiction=DE")
    (granted,) = recorded(ledger, "segment", json.dumps(event), *mapped)
    assert (granted["state"], granted["jurisdiction"]) == ("granted", "DE")
    assert recorded(ledger, "segment", json.dumps(event), *mapped, "--set", "longest_delay=60") == []
    signal = ("consent", "signal", "tcf", "x", "--subject", "v9", "--ledger", ledger)
    for setting, told in (
        ("policy_version=2026", "policy_version must be a non-empty string"),
        ("vendor_id=abc", "vendor_id must be an integer"),
        ("longest_delay=1e999", "no such length of time"),
        ("jurisdiction", "write NAME=VALUE"),
    ):
        result = run(*signal, "--set", setting)
        assert result.exit_code == 2
        assert told in result.output
        assert "unexpected" not in result.output
    assert recorded(ledger, "gpc", "1", "--set", 'policy_version="2026"')[0]["policy_version"] == "2026"


@pytest.mark.parametrize("damaged", ["profiles", "index", "keys"])
def test_a_withdrawal_is_on_record_whatever_becomes_of_the_rest(
    ledger: str, tmp_path: Path, damaged: str
) -> None:
    bundles = tmp_path / "bundles"
    shutil.copytree(written_bundles(), bundles)
    restricted = Restricted.beside(bundles)
    restricted.lineage()
    SqliteProfiles(tmp_path / "crm.db").close()
    place = {
        "profiles": tmp_path / "crm.db",
        "index": restricted.path / "lineage.db",
        "keys": restricted.path / "keys.json",
    }[damaged]
    place.write_bytes(b"no such thing" * 100)
    result = run(
        "consent", "withdraw", "c1", "--source", "crm", "--ledger", ledger, "--bundles", bundles,
        "--crm-profiles", tmp_path / "crm.db", *AT,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "the withdrawal is recorded, but" in result.output
    assert day(10).isoformat() in result.output, "at which instant to run it again"
    assert done("consent", "show", "c1", "--ledger", ledger, *AT)["resolution"]["crm"] is False


def test_a_bundle_of_which_nobody_can_tell_whom_it_holds_is_named(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    shutil.copytree(written_bundles(), bundles)
    index = Restricted.beside(bundles).lineage()
    for tier in ("session", "online", "crm", "fused"):
        index.record(
            open_bundle(bundles / tier).digest, tier, [("customer", "c2")], cutoff=day(5), ledger_position=4
        )
    shown = run("consent", "lineage", "c1", "--bundles", bundles)
    assert shown.exit_code == 0
    assert "popular: may hold anybody" in shown.stdout
    assert "crm: may hold" not in shown.stdout
    assert "no other bundle holds the subject" in shown.stdout


def test_a_withdrawal_of_which_the_registry_cannot_be_told_is_on_record(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    bundles, config = tmp_path / "bundles", tmp_path / "consentier.toml"
    bundles.mkdir()
    config.write_text('[tracking]\nuri = "http://shop:s3cret@127.0.0.1:9"\n')
    found = run(
        "consent", "withdraw", "c1", "--source", "crm", "--ledger", ledger, "--bundles", bundles,
        "--registry", "--config", config, *AT,
    )  # fmt: skip
    assert found.exit_code == USER_ERROR, found.output
    assert "the withdrawal is recorded, but the registry could not be told of the deadlines" in found.stderr
    assert "MLflow store http://127.0.0.1:9 cannot be used" in found.stderr
    assert "s3cret" not in found.output
    assert done("consent", "show", "c1", "--ledger", ledger, *AT)["resolution"]["crm"] is False


def test_a_withdrawal_reaches_profiles_links_and_bundles(ledger: str, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    shutil.copytree(written_bundles(), bundles)
    index = Restricted.beside(bundles).lineage()
    for tier in ("session", "online", "crm", "fused", "popular"):
        digest = open_bundle(bundles / tier).digest
        index.record(digest, tier, [("customer", "c1")], cutoff=day(5), ledger_position=4)
    store = SqliteProfiles(tmp_path / "crm.db")
    store.append("c1", [Event("a", ts=day(2))])
    held = done("consent", "lineage", "c1", "--bundles", bundles)
    assert len(held) == 5
    withdrawal = ("consent", "withdraw", "c1", "--source", "crm", "--ledger", ledger, "--bundles", bundles)
    first = done(*withdrawal, "--crm-profiles", tmp_path / "crm.db", *AT)
    assert (first["recorded"], first["links_dissolved"], first["profile_rows_purged"]) == (1, 1, 1)
    assert {bundle["tier"] for bundle in first["bundles"]} == {"crm", "fused", "popular"}
    assert first["deadline"] == day(40).isoformat()
    assert done(*withdrawal, *AT)["recorded"] == 0
    shown = done("consent", "show", "c1", "--ledger", ledger, *AT)
    assert shown["resolution"]["crm"] is False
    missing = run(*withdrawal, "--crm-profiles", tmp_path / "none.db")
    assert (missing.exit_code, "no such profile store" in missing.output) == (2, True)
    for place in ("unix:///nowhere/at/all", "http://localhost/"):
        down = run("consent", "withdraw", "v1", "--kind", "visitor", "--source", "online", "--ledger", ledger,
                   "--online-profiles", place, *AT)  # fmt: skip
        assert (down.exit_code, "the withdrawal is recorded, but" in down.output) == (2, True)
    shown = done("consent", "show", "v1", "--kind", "visitor", "--ledger", ledger, *AT)
    assert shown["resolution"]["online"] is False


def held_bundles(tmp_path: Path) -> Path:
    """Bundles of all tiers, two of them fitted on visitor v1."""
    bundles = tmp_path / "bundles"
    shutil.copytree(written_bundles(), bundles)
    index = Restricted.beside(bundles).lineage()
    for tier in ("session", "online", "crm", "fused", "popular"):
        members: list[tuple[Any, str]] = [("visitor", "v1")] if tier in ("online", "popular") else []
        digest = open_bundle(bundles / tier).digest
        index.record(digest, tier, members, cutoff=day(5), ledger_position=4)
    return bundles


def test_what_came_by_a_signal_reaches_the_bundles_when_consent_is_enforced(
    ledger: str, tmp_path: Path
) -> None:
    bundles = held_bundles(tmp_path)
    enforce = ("consent", "enforce", "--ledger", ledger, "--bundles", bundles, *AT)
    assert {(each["tier"], each["ended"], each["deadline"]) for each in done(*enforce)["bundles"]} == {
        (tier, 0, None) for tier in ("session", "online", "crm", "fused", "popular")
    }
    assert "next:" not in run(*enforce).stderr
    signal = ("consent", "signal", "shopify", '{"broken', "--subject", "v1", "--ledger", ledger)
    done(*signal, "--at", day(9).isoformat())
    found = {each["tier"]: each for each in done(*enforce, "--deadline-days", "7")["bundles"]}
    assert {tier for tier, each in found.items() if each["ended"] == 1} == {"online", "popular"}
    assert {each["deadline"] for each in found.values()} == {None, day(17).isoformat()}
    shown = run(*enforce)
    assert (shown.exit_code, "next: consentier retrain" in shown.stderr) == (0, True)
    assert day(17).isoformat() in shown.stdout
    assert "v1" not in shown.output


def test_profiles_of_whose_permission_has_ended_are_purged_when_consent_is_enforced(
    ledger: str, tmp_path: Path
) -> None:
    store = SqliteProfiles(tmp_path / "online.db")
    for visitor in ("v1", "v8"):
        store.append(visitor, [Event("a", ts=day(2))])
    enforce = ("consent", "enforce", "--ledger", ledger, "--online-profiles", tmp_path / "online.db", *AT)
    unknown = "1 subjects are unknown to the ledger and were kept"
    assert unknown in run(*enforce).stderr
    assert set(store) == {"v1", "v8"}
    signal = ("consent", "signal", "shopify", '{"broken', "--subject", "v1", "--ledger", ledger)
    done(*signal, "--at", day(9).isoformat())
    (told,) = done(*enforce)["profiles"]
    assert (told["subjects"], told["rows"], told["unknown"]) == (1, 1, 1)
    assert set(store) == {"v8"}
    nothing = run("consent", "enforce", "--ledger", ledger)
    assert (nothing.exit_code, "name what to look through" in nothing.output) == (USER_ERROR, True)


def test_what_cannot_be_enforced_is_told(ledger: str, tmp_path: Path) -> None:
    bundles = held_bundles(tmp_path)
    enforce = ("consent", "enforce", *AT, "--ledger", ledger, "--bundles")
    missing = run(*enforce, tmp_path / "nowhere")
    assert (missing.exit_code, "no such directory of bundles" in missing.output) == (USER_ERROR, True)
    (tmp_path / "empty").mkdir()
    assert "empty: holds no bundle that can be opened" in run(*enforce, tmp_path / "empty").stderr
    elsewhere = run("consent", "enforce", "--ledger", f"sqlite:///{tmp_path}/none.db", "--bundles", bundles)
    assert (elsewhere.exit_code, (tmp_path / "none.db").exists()) == (USER_ERROR, False)
    assert not (bundles / "revocations.json").exists(), "a mistyped ledger stops nothing"
    untold = run(*enforce, bundles, "--restricted", tmp_path / "none")
    assert untold.exit_code == 0
    assert "bundles/crm: may hold anybody: there is no index of whom it holds" in untold.stderr
    assert len(json.loads((bundles / "revocations.json").read_text())["revocations"]) == 5


def test_somebody_unsubscribes_and_nothing_else_changes(ledger: str) -> None:
    unsubscribe = ("consent", "withdraw", "c1", "--permission", "contact:email", "--ledger", ledger, *AT)
    assert done(*unsubscribe)["recorded"] == 1
    assert done(*unsubscribe)["recorded"] == 0, "it can be run again"
    shown = done("consent", "show", "c1", "--ledger", ledger, *AT)
    assert shown["resolution"]["contact"] == []
    assert shown["resolution"]["crm"] is True
    assert len(shown["links"]) == 1
    before = done("consent", "show", "c1", "--ledger", ledger, "--at", day(9).isoformat())
    assert before["resolution"]["contact"] == ["email"]
    said = "The ledger had no record of this subject: check the id"
    assert said in run(*unsubscribe[:2], "C1", *unsubscribe[3:]).stdout
    assert said not in run(*unsubscribe).stdout
    a_device = run(*unsubscribe, "--kind", "visitor")
    assert (a_device.exit_code, "is a customer's permission" in a_device.output) == (2, True)


def test_a_signal_that_cannot_be_read_says_why_it_denies(ledger: str) -> None:
    """A mistyped value would look like a visitor who refused."""
    for kind, payload in (("gpc", "2"), ("tcf", "garbage")):
        said = run("consent", "signal", kind, payload, "--subject", "v9", "--ledger", ledger)
        assert said.exit_code == 0
        assert "recorded as denied: " in said.stdout
    read = run("consent", "signal", "gpc", "1", "--subject", "v9", "--ledger", ledger)
    assert "recorded as denied: " not in read.stdout


def test_a_withdrawal_tells_of_a_directory_that_holds_no_bundle(ledger: str, tmp_path: Path) -> None:
    """Those that serve would go on answering with what the person withdrew."""
    good = tmp_path / "bundles"
    shutil.copytree(written_bundles(), good)
    for wrong in (tmp_path / "shop", good / "crm"):
        said = run("consent", "withdraw", "c1", "--permission", "crm", "--ledger", ledger, "--bundles", wrong)
        assert said.exit_code == 0
        assert f"{wrong}: holds no bundle that can be opened" in said.stderr
    said = run("consent", "withdraw", "c1", "--permission", "crm", "--ledger", ledger, "--bundles", good)
    assert "holds no bundle" not in said.stderr


def test_a_withdrawal_that_is_dated_ahead_says_that_the_permission_goes_on(ledger: str) -> None:
    """A mistyped year would leave it in force, and look as if it had been withdrawn."""
    for permission in ("crm", "contact:email"):
        withdraw = ("consent", "withdraw", "c1", "--permission", permission, "--ledger", ledger)
        ahead = run(*withdraw, "--at", "2126-01-01T00:00:00Z")
        assert ahead.exit_code == 0
        assert "the permission goes on until 2126-01-01T00:00:00+00:00" in ahead.stderr
        assert ("is purged by" in ahead.stderr) == (permission == "crm"), "no profile rests on a contact"
        assert "goes on" not in run(*withdraw).stderr


def test_every_contact_permission_can_be_withdrawn(ledger: str) -> None:
    contact = {permission for permission in PERMISSIONS if permission.startswith("contact:")}
    assert contact == {each.value for each in Withdrawable} - {"online", "crm"}
    for permission in sorted(contact):
        place = ("--permission", permission, "--ledger", ledger, *AT)
        assert done("consent", "withdraw", "c1", *place)["recorded"] == 1


def test_the_chain_is_verified_also_after_an_erasure(ledger: str) -> None:
    before = done("consent", "verify", "--ledger", ledger)
    anchor = f"{before['position']}:{before['head']}"
    assert run("consent", "erase", "c1", "--ledger", ledger).exit_code != 0, "it asks first"
    assert done("consent", "erase", "c1", "--ledger", ledger, "--yes")["erased"] == 3
    after = done("consent", "verify", "--ledger", ledger, "--anchor", anchor)
    assert (after["ok"], after["erased"]) == (True, 3)
    assert run("consent", "verify", "--ledger", ledger, "--anchor", "7").exit_code == 2
    wrong = run("consent", "verify", "--ledger", ledger, "--anchor", f"3:sha256:{'0' * 64}")
    assert wrong.exit_code == 1
    assert "altered" in wrong.stdout


def test_a_backup_is_restored_without_what_was_erased_since(ledger: str, tmp_path: Path) -> None:
    copy, names, restored = tmp_path / "copy.db", tmp_path / "erased.txt", f"sqlite:///{tmp_path / 'new.db'}"
    assert run("consent", "backup", copy, "--ledger", ledger).exit_code == 0
    done("consent", "erase", "c1", "--ledger", ledger, "--yes")
    assert run("consent", "erased", names, "--ledger", ledger).exit_code == 0
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", line) for line in names.read_text().splitlines())
    result = run("consent", "restore", copy, "--ledger", restored, "--erased", names)
    assert result.exit_code == 0, result.output
    with Ledger.open(restored, create=False) as opened:
        assert not opened.records_of("c1", kind="customer")
        assert opened.records_of("v1", kind="visitor")
        assert opened.verify().ok


def test_nothing_is_restored_by_a_list_that_is_none(ledger: str, tmp_path: Path) -> None:
    """Else those who were erased would be back, with nothing to take them out again."""
    copy, names = tmp_path / "copy.db", tmp_path / "erased.txt"
    assert run("consent", "backup", copy, "--ledger", ledger).exit_code == 0
    names.write_text(f"sha256:{'0' * 64}\nsha256:no-commitment\n")
    restored = tmp_path / "new.db"
    result = run("consent", "restore", copy, "--ledger", f"sqlite:///{restored}", "--erased", names)
    assert result.exit_code == 2
    assert "entry 2" in result.output
    assert not restored.exists()


def test_the_shops_own_lifetimes_count(ledger: str, tmp_path: Path) -> None:
    rules = tmp_path / "lifetimes.toml"
    rules.write_text(
        f'version = "short"\n[[lifetime]]\npermissions = {json.dumps(sorted(PERMISSIONS))}\n'
        'days = 5\nsource = "our notice"\n'
    )
    asked = ("consent", "show", "c1", "--ledger", ledger, *AT)
    assert done(*asked)["resolution"]["crm"] is True
    shown = done(*asked, "--lifetimes", rules)["resolution"]
    assert (shown["crm"], shown["lifetimes_version"]) == (False, "short")


def test_a_missing_ledger_is_named_and_not_made(tmp_path: Path) -> None:
    result = run("consent", "verify", "--ledger", f"sqlite:///{tmp_path / 'none.db'}")
    assert result.exit_code == 2
    assert "none.db" in result.output
    assert not list(tmp_path.iterdir())
