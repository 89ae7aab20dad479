"""What is told of an address holds no user, no password and no option that may be one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from consentier.addresses import shown_url
from consentier.cli.output import name_of
from consentier.consent import Ledger
from consentier.errors import ConfigError, DataError
from consentier.features.tables import read_shop
from consentier.serving.batch_table import BatchTable
from consentier.training.config import Config, TrackingConfig
from consentier.training.retention_schedule import RetentionSchedule, load_schedule

SECRET = "s3cret"
URL = f"postgresql://shop:{SECRET}@127.0.0.1:1/shop"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://shop:s3cret@db.example:5433/consent", "postgresql://db.example:5433/consent"),
        ("postgresql://shop@/consent?host=/run/pg&port=5433&password=s3cret",
         "postgresql:///consent?host=/run/pg&port=5433"),
        ("postgresql://db.example/consent?options=-c%20search_path=consent", "postgresql://db.example/consent"),
        ("redis://:s3cret@cache:6379/2?prefix=shop", "redis://cache:6379/2"),
        ("unix:///run/redis.sock?db=2&password=s3cret", "unix:///run/redis.sock?db=2"),
        ("https://token:s3cret@mlflow.example", "https://mlflow.example"),
        ("shop:s3cret@db.example/consent", "…@db.example/consent"),
        ("postgresql:/shop:s3cret@db.example/consent", "…@db.example/consent"),
        ("sqlite:////home/a@b/consents.db", "sqlite:////home/a@b/consents.db"),
        ("file:///data/mlruns", "file:///data/mlruns"),
        ("mlruns", "mlruns"),
        ("runs@home/mlruns", "runs@home/mlruns"),
        ("", ""),
    ],
)  # fmt: skip
def test_an_address_is_told_without_what_opens_it(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), st.sampled_from("/?#:%&= ü"))
def test_no_password_is_told_whatever_stands_in_it(text: str, between: str) -> None:
    password = f"5ab1c0de{between}{text}"
    for url in (f"postgresql://shop:{password}@db/consent", f"redis://cache/0?password={password}"):
        assert "5ab1c0de" not in shown_url(url)


@pytest.mark.parametrize(
    "held",
    [
        BatchTable(URL),
        Config(tracking=TrackingConfig(uri=URL)),
        TypeAdapter(RetentionSchedule).validate_python(
            {"keep": [{"what": "profiles", "url": URL, "days": 3}, {"what": "mlflow", "uri": URL, "days": 3}]}
        ),
    ],
    ids=lambda held: type(held).__name__,
)
def test_what_holds_an_address_does_not_show_it(held: object) -> None:
    assert SECRET not in f"{held!r} {held}"


@pytest.mark.parametrize("url", [f"mysql://shop:{SECRET}@db/consent", f"postgresql:shop:{SECRET}@db"])
def test_an_address_of_no_ledger_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="a ledger is kept at") as refused:
        Ledger.open(url)
    assert SECRET not in str(refused.value)
    assert "db" in str(refused.value)


@pytest.mark.parametrize(
    "address", ["postgresql://{}@db:port/shop", "mysql://{}@db/shop", "postgresql:/{}@db"]
)
def test_an_address_of_no_tables_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(DataError, match=r"the database URL|no such directory") as refused:
        read_shop(address.format(f"shop:{SECRET}"))
    assert SECRET not in str(refused.value)


def test_a_schedule_that_cannot_be_read_quotes_no_address(tmp_path: Path) -> None:
    schedule = tmp_path / "schedule.toml"
    schedule.write_text(f'[[keep]]\nwhat = "mlflow"\nuri = "{URL}"\n')
    with pytest.raises(ConfigError, match="days") as refused:
        load_schedule(schedule)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (URL, "shop"),
        (f"postgresql://shop:{SECRET}@db.example", "db.example"),  # the database of the user's name
        (f"postgresql://shop:{SECRET}@db.example/?password={SECRET}", "db.example"),
        ("sqlite:///data/shop.db", "shop.db"),
        ("data/shop", "shop"),
    ],
)
def test_a_shop_is_never_called_by_the_password_of_its_database(data: str, name: str) -> None:
    assert name_of(data) == name
