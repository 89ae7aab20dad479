"""The configuration: what a file changes, what it may not say, and how a mistake is reported."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from consentier.errors import ConfigError
from consentier.training.config import Config, TierConfig, TrackingConfig, config_hash, load_config


def written(folder: Path, text: str, name: str = "settings.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_no_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config() == load_config(data=tmp_path) == Config()
    assert load_config(data="sqlite:///shop.db") == Config()


def test_the_data_directory_may_hold_one_and_an_explicit_one_wins(tmp_path: Path) -> None:
    written(tmp_path, "[training]\nmin_persons = 3\n", "consentier.toml")
    other = written(tmp_path, "[training]\nmin_persons = 5\n")
    assert load_config(data=tmp_path).training.min_persons == 3
    assert load_config(other, data=tmp_path).training.min_persons == 5


def test_a_file_changes_what_it_names_and_the_rest_keeps_the_tiers_own_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "[crm]\nneighbours = 7\nevent_weights = { usage = 0.5 }\nhide = []\n")
    crm, default = load_config(path).crm, Config().crm
    assert crm.neighbours == 7
    assert crm.hide == ()
    assert crm.event_weights == {**default.event_weights, "usage": 0.5}
    assert crm.regularisation == default.regularisation
    assert crm.attribute_weight == default.attribute_weight != TierConfig().attribute_weight


@pytest.mark.parametrize("algorithm", ["als", "bpr", "spectral"])
@pytest.mark.parametrize("tier", ["online", "crm", "fused"])
def test_with_a_factor_model_items_of_the_history_count_less_unless_a_file_says_so(
    tmp_path: Path, tier: str, algorithm: str
) -> None:
    text, default = f'[{tier}]\nalgorithm = "{algorithm}"\n', getattr(Config(), tier)
    found = getattr(load_config(written(tmp_path, text)), tier)
    assert found.repeat_weight == {"online": 0.02, "crm": 0.1, "fused": 0.02}[tier] < default.repeat_weight
    assert found == default.model_copy(update={"algorithm": algorithm, "repeat_weight": found.repeat_weight})
    named = getattr(load_config(written(tmp_path, f"{text}repeat_weight = 0.25\n")), tier)
    assert named.repeat_weight == 0.25
    linear = getattr(load_config(written(tmp_path, f'[{tier}]\nalgorithm = "cosine"\n')), tier)
    assert linear.repeat_weight == default.repeat_weight


@pytest.mark.parametrize(
    "text",
    ["2026-03-01T00:00:00", '"2026-03-01T00:00:00"', "2026-03-01T01:00:00+01:00", '"2026-03-01T00:00:00Z"'],
)
def test_the_cutoff_is_an_instant_in_utc(tmp_path: Path, text: str) -> None:
    cutoff = load_config(written(tmp_path, f"[training]\ncutoff = {text}\n")).training.cutoff
    assert cutoff == dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    assert cutoff is not None
    assert cutoff.utcoffset() == dt.timedelta(0)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[session]\nneigbours = 3", ["unknown key session.neigbours", "did you mean 'neighbours'?"]),
        ("[sesion]\nneighbours = 3", ["unknown key sesion", "did you mean 'session'?"]),
        ("[crm]\nevent_weights = { carrt = 1 }", ["unknown key crm.event_weights.carrt", "'cart'"]),
        ("[crm]\nsource_weights = { onlin = 1 }", ["unknown key crm.source_weights.onlin", "'online'"]),
        ("[crm]\nevent_weights = { cart = -1 }", ["crm.event_weights", "'cart' is -1"]),
        ("[crm]\nneighbours = 0", ["crm.neighbours is 0", "greater than or equal to 1"]),
        ('[crm]\nneighbours = "200"', ['crm.neighbours is "200"', "valid integer"]),
        ("[crm]\nneighbours = true", ["crm.neighbours is true", "valid integer"]),
        ("[crm]\nregularisation = inf", ["crm.regularisation", "finite"]),
        ("[crm]\nsession_decay = 0", ["crm.session_decay is 0", "greater than 0"]),
        ('[crm]\nalgorithm = "svd"', ["crm.algorithm is", "'bm25'", "'als'"]),
        ('[session]\nalgorithm = "als"', ["session is", "als", "session.algorithm"]),
        ("[crm]\nunobserved_weight = 0", ["crm.unobserved_weight is 0", "greater than 0"]),
        ('[crm]\nhide = ["crm", "crm"]', ["crm.hide", "twice"]),
        ('[crm]\nhide = ["mail"]', ["crm.hide.0", "'session', 'online' or 'crm'"]),
        ("[evaluation]\ncutoffs = [10, 10]", ["evaluation.cutoffs", "distinct"]),
        ("[evaluation]\ncutoffs = []", ["evaluation.cutoffs"]),
        (
            '[tuning]\nmetric = "nDCG@10"',
            ['tuning.metric is "nDCG@10"', "such as ndcg@20", "mean 'ndcg@10'?"],
        ),
        (
            '[tuning]\nmetric = "hitrate"',
            ["the metrics are hit_rate, recall,", "did you mean 'hit_rate@20'?"],
        ),
        ('[tuning]\nmetric = "auc@5"', ["such as ndcg@20; the metrics are hit_rate, recall"]),
        (
            '[tuning]\nmetric = "map@0"',
            ["behind the @ it should have the length of the list, 1 to 999: map@20"],
        ),
        ('[tuning]\nmetric = "map@1000"', ["1 to 999"]),
        ('[crm]\nalgorithm = "BM-25"', ["'tfidf'", "did you mean 'bm25'?"]),
        ("[training]\ncutoff = 5", ["training.cutoff is 5", "datetime"]),
        ('[training]\ncutoff = "soon"', ["training.cutoff", "such as 2026-01-31T00:00:00Z"]),
        ("training = 3", ["training is 3"]),
        ("[training", ["not valid TOML"]),
    ],
)
def test_a_mistake_is_reported_with_file_key_and_remedy(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert str(raised.value).startswith(f"{path}: ")
    for part in parts:
        assert part in str(raised.value)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(written(tmp_path, "[crm]\nneighbours = 0\nrow_exponent = -1\n"))
    assert len(str(raised.value).splitlines()) == 2


def test_a_missing_or_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        load_config(tmp_path / "absent.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML in UTF-8"):
        load_config(binary)


def test_the_hash_follows_the_settings_and_not_the_spelling(tmp_path: Path) -> None:
    spelt_out = load_config(written(tmp_path, f"[crm]\nneighbours = {Config().crm.neighbours}\n"))
    other = load_config(written(tmp_path, f"[crm]\nneighbours = {Config().crm.neighbours + 1}\n"))
    assert config_hash(spelt_out) == config_hash(Config())
    assert config_hash(other) != config_hash(Config())


instants = st.datetimes(
    min_value=dt.datetime(1972, 1, 1), max_value=dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC)
)


@given(cutoff=instants, neighbours=st.integers(1, 10_000), penalty=st.floats(0, 1e9))
def test_the_resolved_configuration_says_everything(
    cutoff: dt.datetime, neighbours: int, penalty: float
) -> None:
    config = Config.model_validate(
        {"training": {"cutoff": cutoff}, "online": {"neighbours": neighbours, "regularisation": penalty}}
    )
    again = Config.model_validate(json.loads(json.dumps(config.resolved())))
    assert again == config
    assert config_hash(again) == config_hash(config)


def test_another_cutoff_leaves_the_rest_alone() -> None:
    cutoff = dt.datetime(2026, 5, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    moved = Config().with_cutoff(cutoff)
    assert moved.training.cutoff == cutoff
    assert moved.with_cutoff(cutoff).model_copy(update={"training": Config().training}) == Config()
    with pytest.raises(ValueError, match="no time zone"):
        Config().with_cutoff(dt.datetime(2026, 5, 1))


def test_every_field_is_documented() -> None:
    for name, section in Config.model_fields.items():
        assert isinstance(section.annotation, type)
        assert issubclass(section.annotation, BaseModel)
        for field_name, field in section.annotation.model_fields.items():
            assert field.description, f"{name}.{field_name} has no description"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://mlflow:hunter2@db:5432/runs?sslmode=require", "postgresql://db:5432/runs"),
        ("https://me:hun?ter/2@mlflow.example/", "https://mlflow.example/"),
        ("http://mlflow.example", "http://mlflow.example"),
        ("sqlite:////srv/shop@home/mlflow.db", "sqlite:////srv/shop@home/mlflow.db"),
        ("", ""),
    ],
)
def test_a_record_that_others_read_names_its_store_without_user_and_password(uri: str, shown: str) -> None:
    config = Config(tracking=TrackingConfig(uri=uri))
    assert config.recorded() == {
        **config.resolved(), "tracking": {**config.resolved()["tracking"], "uri": shown},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        'tracking = "postgresql://mlflow:hunter2@db/runs"',
        'tracking = ["postgresql://mlflow:hunter2@db/runs"]',
        '[tracking]\nuri = { postgres = "postgresql://mlflow:hunter2@db/runs" }',
        '[tracking]\nenabled = "https://me:hunter2@mlflow.example"',
    ],
)
def test_a_mistake_with_an_address_is_told_without_its_password(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="tracking") as raised:
        load_config(written(tmp_path, text))
    assert "hunter2" not in str(raised.value)
