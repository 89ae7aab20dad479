"""What the environment overrides, and how its mistakes are named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from config_strategies import configs
from hypothesis import given

from consentier.errors import ConfigError
from consentier.training.config import Config, load_config
from consentier.training.config_environment import with_environment
from consentier.training.config_file import _toml, config_schema, config_template, config_toml, resolved_toml


@given(configs())
def test_all_that_a_file_can_say_the_environment_can_say(config: Config) -> None:
    document = tomllib.loads(config_toml(config))
    environ = {
        f"CONSENTIER__{section}__{key}".upper(): _toml(value)
        for section, table in document.items()
        for key, value in table.items()
    }
    assert load_config(environ=environ) == config


def test_the_environment_stands_above_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[crm]\nneighbours = 7\nregularisation = 3.0\nevent_weights = { view = 2.0 }\n")
    environ = {
        "CONSENTIER__CRM__NEIGHBOURS": "9",
        "CONSENTIER__CRM__ALGORITHM": "bm25",
        "CONSENTIER__CRM__EVENT_WEIGHTS__CART": "5.0",
        "CONSENTIER_CRM__NEIGHBOURS": "1",
        "PATH": "elsewhere",
    }
    found = load_config(path, environ=environ).crm
    assert (found.neighbours, found.regularisation, found.algorithm) == (9, 3.0, "bm25")
    assert (found.event_weights["view"], found.event_weights["cart"]) == (2.0, 5.0)
    assert load_config(path).crm.neighbours == 7


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("CONSENTIER__CRM__NEIGHBORS", "3", "unknown key crm.neighbors; did you mean 'neighbours'"),
        ("CONSENTIER__CMR__NEIGHBOURS", "3", "unknown key cmr; did you mean 'crm'"),
        ("CONSENTIER__CRM__NEIGHBOURS", "many", 'crm.neighbours is "many"'),
        ("CONSENTIER__CRM__NEIGHBOURS", "3\nregularisation = 1.0", "crm.neighbours is "),
        ("CONSENTIER__CRM__EVENT_WEIGHTS__BUY", "3.0", "unknown key crm.event_weights.buy"),
        ("CONSENTIER__CRM", "3", "crm is 3"),
        ("CONSENTIER__", "3", "unknown key "),
    ],
)
def test_a_mistake_names_its_variable(name: str, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(environ={name: text})
    assert str(raised.value).startswith(f"the environment's {name}: {reason}")


def test_a_value_of_the_file_where_a_table_belongs_is_the_files_mistake(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("crm = 3\n")
    with pytest.raises(ConfigError, match=r"own\.toml: crm is 3"):
        load_config(path, environ={"CONSENTIER__CRM__NEIGHBOURS": "9"})


def test_the_document_of_the_caller_stays_as_it_is() -> None:
    document: dict[str, Any] = {"crm": {"neighbours": 3}}
    merged, _ = with_environment(document, {"CONSENTIER__CRM__NEIGHBOURS": "4"})
    assert (document, merged) == ({"crm": {"neighbours": 3}}, {"crm": {"neighbours": 4}})


def test_a_template_says_nothing_until_it_is_edited_and_then_the_defaults() -> None:
    template = config_template("./schema.json")
    assert template.startswith("#:schema ./schema.json\n")
    assert Config.model_validate(tomllib.loads(template)) == Config()
    lines = [
        line.removeprefix("# ") if " = " in line and not line.endswith(" = ...") else line
        for line in template.splitlines()
        if not line.startswith("#:")
    ]
    switched_on = "\n".join(line for line in lines if not line.startswith("# "))
    document = tomllib.loads(switched_on)
    assert Config.model_validate(document) == Config()
    assert set(document["crm"]) == {
        name for name in type(Config().crm).model_fields if getattr(Config().crm, name) is not None
    }


@given(configs())
def test_a_resolved_file_gives_the_configuration_again(config: Config) -> None:
    assert Config.model_validate(tomllib.loads(resolved_toml(config))) == config


def test_a_schema_knows_every_key_and_the_defaults_of_each_tier() -> None:
    schema = config_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    tier = schema["$defs"]["TierConfig"]
    assert set(tier["properties"]) == set(type(Config().crm).model_fields)
    assert tier["additionalProperties"] is False
    assert all("description" in field for field in tier["properties"].values())
    assert schema["properties"]["session"]["default"]["neighbours"] == Config().session.neighbours
