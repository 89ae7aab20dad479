"""Which ledger a command asks, and under which rules on how old grants may grow."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from engines import bundles
from shops import consent, day, event, link, order, shop
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.cli.ledgers import ledger_from, opened_ledger, shop_and_ledger
from consentier.cli.options import BadRows
from consentier.consent import Ledger
from consentier.consent.records import PERMISSIONS
from consentier.features.ledger_tables import import_tables
from consentier.features.tables import write_tables

ASK_NOBODY = {
    "consent import", "consent signal", "consent erase", "consent verify", "consent backup", "consent erased",
    "consent restore",
}  # fmt: skip
"""Commands with a ledger that do not ask it what anybody permits."""

WITHOUT_LEDGER = {"evaluate", "worth", "disclose", "features sql"}
"""Commands whose work rests on lifetimes, and that have no option to name a ledger."""


def commands(group: Any, typed: str = "") -> Iterator[tuple[str, Any]]:
    """All commands as they are typed."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} ")
        else:
            yield f"{typed}{name}", command


def test_whatever_rests_on_permissions_takes_the_shops_own_lifetimes() -> None:
    """A command that does not would use what has lapsed by the shop's own notice."""
    found = commands(typer.main.get_command(app))
    options = {typed: {each.name for each in command.params} for typed, command in found}
    assert {*ASK_NOBODY, *WITHOUT_LEDGER} <= options.keys()
    asking = {typed for typed, names in options.items() if "ledger" in names} - ASK_NOBODY | WITHOUT_LEDGER
    assert {typed for typed in asking if "lifetimes" not in options[typed]} == set()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A shop's tables, a ledger of them, and lifetimes of five days."""
    tables = shop(
        events=[event("v1", "a", 2)],
        orders=[order("c1", "a", 2)],
        consents=[consent("v1", "online"), consent("c1", "crm")],
        identities=[link("v1", "c1")],
    )
    named = {name: getattr(tables, name) for name in ("items", "events", "orders", "consents", "identities")}
    write_tables({name: table for name, table in named.items() if table is not None}, tmp_path / "shop")
    with Ledger.open(f"sqlite:///{tmp_path / 'consents.db'}") as ledger:
        import_tables(ledger, tmp_path / "shop")
    (tmp_path / "lifetimes.toml").write_text(
        f'version = "short"\n[[lifetime]]\npermissions = {json.dumps(sorted(PERMISSIONS))}\n'
        'days = 5\nsource = "our notice"\n'
    )
    return tmp_path


def test_each_ledger_is_opened_under_the_rules_of_the_file(place: Path) -> None:
    rules, url = place / "lifetimes.toml", f"sqlite:///{place / 'consents.db'}"
    for asked in (
        ledger_from(url, None, rules),
        ledger_from(None, str(place / "shop"), rules),
        opened_ledger(url, rules),
        shop_and_ledger(str(place / "shop"), BadRows.ERROR, url, rules),
        shop_and_ledger(str(place / "shop"), BadRows.ERROR, None, rules),
    ):
        with asked as found:
            ledger = found[1] if isinstance(found, tuple) else found
            assert ledger is not None
            assert ledger.lifetimes.version == "short"
            assert ledger.resolve(visitor_id="v1", customer_id="c1", at=day(3)).permission.level == 3
            assert ledger.resolve(visitor_id="v1", customer_id="c1", at=day(9)).permission.level == 1
    with pytest.raises(typer.BadParameter, match="--lifetimes needs --ledger"):
        opened_ledger(None, rules)
    with opened_ledger(None, None) as nobody:
        assert nobody is None


@pytest.mark.parametrize(
    "typed",
    [
        "train SHOP --out OUT",
        "retrain SHOP --bundles OUT",
        "forget c1 --data SHOP --bundles OUT --ledger LEDGER",
        "drift SHOP --bundles OUT",
        "tune SHOP --out OUT/tuned.toml",
        "evaluate SHOP --out OUT/e.json",
        "worth SHOP --out OUT/w.html --cutoff 2026-01-05",
        "score SHOP --bundles BUNDLES --channel email --out OUT/x.parquet",
        "score SHOP --bundles BUNDLES --channel email --out OUT/x.parquet --ledger LEDGER",
        "deliver OUT/x.parquet --bundles BUNDLES --out OUT/y.parquet --data SHOP",
        "recommend --bundles BUNDLES --ledger LEDGER",
        "export c1 --ledger LEDGER",
        "exposure --ledger LEDGER --bundles BUNDLES",
        "consent show c1 --ledger LEDGER",
        "consent withdraw c1 --source crm --ledger LEDGER",
    ],
)
def test_no_command_passes_the_file_over(place: Path, typed: str) -> None:
    """One that does not look into it does not heed it either."""
    names = {"SHOP": place / "shop", "OUT": place / "out", "BUNDLES": bundles()}
    names["LEDGER"] = f"sqlite:///{place / 'consents.db'}"  # type: ignore[assignment]
    for name, meant in names.items():
        typed = typed.replace(name, str(meant))
    result = CliRunner().invoke(app, [*typed.split(), "--lifetimes", str(place / "none.toml")])
    assert result.exit_code == 2
    assert "none.toml: cannot be read" in result.output


@pytest.mark.parametrize(
    "typed",
    [
        "train SHOP --out OUT",
        "train SHOP --out OUT --engine spark",
        "retrain SHOP --bundles OUT",
        "forget c1 --data SHOP --bundles OUT",
        "drift SHOP --bundles OUT",
        "tune SHOP --out OUT/tuned.toml --cutoff 2026-01-05",
        "evaluate SHOP --out OUT/e.json",
        "worth SHOP --out OUT/w.html --cutoff 2026-01-05",
        "score SHOP --bundles BUNDLES --channel email --out OUT/x.parquet",
    ],
)
@pytest.mark.parametrize("ledger", ["none.db", "text.db", "other.db"])
def test_a_wrong_ledger_is_told_before_a_table_is_read(place: Path, typed: str, ledger: str) -> None:
    """Reading the tables of a shop can take minutes."""
    (place / "text.db").write_text("record_id,subject_id\n" * 99)
    other = sqlite3.connect(place / "other.db")
    other.execute("CREATE TABLE orders (id)")
    other.close()
    (place / "shop" / "orders.parquet").write_text("no table")
    names = {"SHOP": place / "shop", "OUT": place / "out", "BUNDLES": bundles()}
    for name, meant in names.items():
        typed = typed.replace(name, str(meant))
    result = CliRunner().invoke(app, [*typed.split(), "--ledger", f"sqlite:///{place / ledger}"])
    assert result.exit_code == 2
    assert f"{ledger}: " in result.output
    assert "table orders" not in result.output


def test_a_ledger_named_by_its_file_alone_is_told_its_address(place: Path) -> None:
    for file in (place / "consents.db", Path("consents.db")):
        with contextlib.chdir(place):
            said = CliRunner().invoke(app, ["consent", "show", "c1", "--ledger", str(file)]).output
        assert f"for this file write sqlite:///{file}" in said
    assert (
        "for this file" not in CliRunner().invoke(app, ["consent", "show", "c1", "--ledger", "x.db"]).output
    )
