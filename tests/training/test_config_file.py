"""A configuration and the file that says it are the same."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path

import pytest
from config_strategies import configs
from hypothesis import given

from consentier.errors import ConfigError
from consentier.training import config_file
from consentier.training.config import Config, TierConfig, load_config
from consentier.training.config_file import config_toml


@given(configs())
def test_reading_what_was_written_gives_the_configuration(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tuned.toml"
        path.write_text(config_toml(config), "utf-8", newline="")
        assert load_config(path) == config


def test_only_what_differs_is_written() -> None:
    assert config_toml(Config()) == ""
    crm = Config().crm
    weights = {**crm.event_weights, "usage": 0.5}
    config = Config().model_copy(update={"crm": crm.model_copy(update={"event_weights": weights})})
    assert tomllib.loads(config_toml(config)) == {"crm": {"event_weights": {"usage": 0.5}}}


def test_a_value_that_a_file_cannot_take_away_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shorter(Config):
        crm: TierConfig = TierConfig(recency_half_life=30.0)

    monkeypatch.setattr(config_file, "Config", Shorter)
    with pytest.raises(ConfigError, match=r"crm.recency_half_life has the default 30.0"):
        config_toml(Config())
