"""The configuration of training and evaluation: typed, documented, read from TOML.

A file names only what differs from the defaults, which are chosen per tier. Keys that no field has are
refused, with the name that was probably meant::

    [training]
    min_persons = 3

    [crm]
    neighbours = 200
    event_weights = { usage = 0.5 }    # the other event types keep their defaults
"""

from __future__ import annotations

import datetime as dt
import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from consentier.addresses import shown_url
from consentier.consent import Source
from consentier.consent.toml_files import read_toml
from consentier.errors import ConfigError, suggestion
from consentier.features.schemas import EVENT_TYPES
from consentier.serving.factor_scorer import FACTOR_ALGORITHMS
from consentier.serving.request import MAX_N
from consentier.training.config_environment import with_environment

__all__ = [
    "CONFIG_FILE",
    "Algorithm",
    "Config",
    "DriftConfig",
    "EvaluationConfig",
    "TierConfig",
    "TrackingConfig",
    "TrainingConfig",
    "TuningConfig",
    "config_hash",
    "load_config",
]

CONFIG_FILE = "consentier.toml"
"""The file that is read from a data directory where no other is named."""

Algorithm = Literal["local_ridge", "cosine", "tfidf", "bm25", "als", "bpr", "spectral"]
SourceName = Literal["session", "online", "crm"]

# What a model can be asked to weigh: sources, and the events of the contract that show interest.
_WEIGHED: Mapping[str, Sequence[str]] = {
    "source_weights": [source.value for source in Source],
    "event_weights": sorted((EVENT_TYPES - {"remove", "unfavourite"}) | {"usage"}),
}

_METRICS = ("hit_rate", "recall", "capped_recall", "ndcg", "mrr", "map")
"""What `tune` can maximise, at any length of list: what `training.metrics.rank_metrics` gives."""

_FACTOR_REPEATS: Mapping[str, float] = {"online": 0.02, "crm": 0.1, "fused": 0.02}
"""Defaults of `repeat_weight` with factor models, by tier; docs/tuning.md says how they were chosen."""


class _Section(BaseModel):
    """One table of the file: no unknown keys, no silent conversion of types, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TrainingConfig(_Section):
    """What holds for every tier."""

    cutoff: dt.datetime | None = Field(
        default=None,
        description="Training cut-off: rows at or after it stay out, and permissions must hold until then. "
        "Times without a zone are read as UTC. Absent: the moment at which the training begins.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of everything that is drawn at random.")
    threads: int | None = Field(
        default=None, ge=1, description="Threads; absent: all cores. Never changes a result."
    )
    min_persons: int = Field(
        default=1,
        ge=1,
        description="Distinct persons that must stand behind any published weight or count.",
    )

    @field_validator("cutoff", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return dt.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("it should be a date and time such as 2026-01-31T00:00:00Z") from None

    @field_validator("cutoff")
    @classmethod
    def _in_utc(cls, value: dt.datetime | None) -> dt.datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


class TrackingConfig(_Section):
    """Where runs are recorded (MLflow)."""

    enabled: bool = Field(default=True, description="Record each run with its configuration and metrics.")
    uri: str = Field(
        default="",
        repr=False,  # it may hold a password
        description="MLflow tracking URI; empty: the SQLite file mlflow.db beside the bundles.",
    )
    experiment: str = Field(default="consentier", min_length=1, description="Name of the MLflow experiment.")


class EvaluationConfig(_Section):
    """How the tiers are compared on held-out orders."""

    horizon_days: int = Field(
        default=14, ge=1, le=3650, description="Days after the cut-off whose orders are the targets."
    )
    cutoffs: tuple[int, ...] = Field(
        default=(10, 20), min_length=1, strict=False, description="Lengths of list that metrics are taken at."
    )
    bootstrap_samples: int = Field(
        default=2000, ge=100, le=1_000_000, description="Resamples behind each confidence interval."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the resampling.")
    max_customers: int | None = Field(
        default=None, ge=1, description="Test customers at most, drawn at random; absent: all."
    )

    @field_validator("cutoffs")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= length <= MAX_N for length in value) or len(set(value)) != len(value):
            raise ValueError(f"lengths of list must be distinct, at least 1 and at most {MAX_N}")
        return tuple(sorted(value))


class TuningConfig(_Section):
    """How `tune` searches for a tier's parameters, on a validation period before the cut-off."""

    metric: str = Field(
        default="ndcg@20",
        description="What is maximised: a ranking metric and the length of the list.",
        json_schema_extra={"pattern": rf"^({'|'.join(_METRICS)})@[1-9][0-9]{{0,2}}$"},
    )
    horizon_days: int | None = Field(
        default=None,
        ge=1,
        le=3650,
        description="Days of the validation period, which ends at the cut-off; absent: those of evaluation.",
    )
    trials: int = Field(
        default=40, ge=1, le=10_000, description="Configurations tried per tier, the current one included."
    )
    patience: int = Field(
        default=20, ge=1, description="The search of a tier ends after so many trials without a better one."
    )
    max_persons: int = Field(default=5000, ge=1, description="Persons at most to judge by, drawn at random.")
    algorithms: tuple[Algorithm, ...] = Field(
        default=("local_ridge", "cosine", "tfidf", "bm25"),
        min_length=1,
        strict=False,
        description="Algorithms tried besides the current one. als, bpr and spectral are tried where they "
        "are named, in the session tier never.",
    )

    @field_validator("metric")
    @classmethod
    def _metric_at_a_length(cls, value: str) -> str:
        name, _, length = value.partition("@")
        if name not in _METRICS:
            near = difflib.get_close_matches(name.strip().casefold(), _METRICS, n=1)
            meant = f"; did you mean '{near[0]}@{length if _is_length(length) else 20}'?" if near else ""
            raise ValueError(
                "it should be a ranking metric and the length of the list, such as ndcg@20; the metrics are "
                f"{', '.join(_METRICS)}{meant}"
            )
        if not _is_length(length):
            raise ValueError(f"behind the @ it should have the length of the list, 1 to 999: {name}@20 say")
        return value


def _is_length(text: str) -> bool:
    return text.isascii() and text.isdigit() and not text.startswith("0") and len(text) <= 3


class DriftConfig(_Section):
    """When today's permitted data differ too much from those that a bundle was fitted on."""

    window_days: int = Field(
        default=28,
        ge=1,
        le=3650,
        description="Days up to the cut-off that are compared: the last ones of the training data, and of "
        "today's.",
    )
    volume_ratio: float = Field(
        default=2.0, gt=1, description="Rows per day may be so many times more, or fewer, than in training."
    )
    new_item_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of today's rows that may be on items unknown to the bundle.",
    )
    event_mix_distance: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="Largest total variation distance between the shares of event types: half the sum of "
        "their absolute differences.",
    )
    permission_mix_distance: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="The same for the shares of persons by how their permission stands.",
    )


class TierConfig(_Section):
    """How one tier's model is fitted, and how a history becomes its input."""

    algorithm: Algorithm = Field(
        default="local_ridge",
        description="local_ridge: a small ridge regression per item; cosine, tfidf, bm25: item-to-item "
        "nearest neighbours; als, bpr, spectral: factor models (online, crm and fused tier only).",
    )
    neighbours: int = Field(
        default=200, ge=1, le=10_000, description="Strongest co-occurring items that predict each item."
    )
    bm25_k1: float = Field(
        default=1.2,
        ge=0,
        le=1000,
        description="How slowly the weight of an event saturates: near 0, all events of an item count alike "
        "(bm25 only).",
    )
    bm25_b: float = Field(
        default=0.75,
        ge=0,
        le=1,
        description="How much events of popular items count less (bm25 only).",
    )
    regularisation: float = Field(
        default=10.0, ge=0, description="Ridge penalty, in interactions of weight 1 (local_ridge only)."
    )
    popularity_regularisation: float = Field(
        default=0.0,
        ge=0,
        description="Further ridge penalty of each input, a multiple of its own strength: items left out "
        "of the histories at random do the same (local_ridge only).",
    )
    row_exponent: float = Field(
        default=0.25, ge=0, le=2, description="Histories of n items count n to the power of minus twice this."
    )
    item_exponent: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Popularity is divided out to this power before the fit, and put back after it.",
    )
    repeat_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of an item of the history for itself: above 0, items can come again. In the "
        "session tier, weight of the learnt probability that a session returns to it. The tiers' defaults "
        "were chosen for local_ridge; with als, bpr and spectral, whose scores mostly lie between 0 and 1, "
        "they are 0.1 (crm) and 0.02 (online, fused): choose it anew with the algorithm.",
    )
    second_hop_weight: float = Field(
        default=0.0,
        ge=0,
        description="How much the best items of a first score pass on to those that go with them, as a "
        "multiple of their score (local_ridge, cosine, tfidf, bm25 only).",
    )
    second_hop_items: int = Field(
        default=50, ge=1, le=1000, description="How many of the best items pass on."
    )
    distance_decay: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="In training, two items of a session with d others between them count "
        "exp(-d / distance_decay); 0: all alike (session tier, local_ridge only).",
    )
    reverse_weight: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="In training, what a pair of a session counts for predicting the item that came first "
        "(session tier, local_ridge only).",
    )
    session_half_life: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="In training, days before the cut-off after which a session counts half as much; 0: all "
        "alike (session tier, local_ridge only).",
    )
    session_decay: float = Field(
        default=3.0,
        gt=0,
        description="An item that came d distinct items before the last one of the session counts "
        "exp(-d / session_decay).",
    )
    factors: int = Field(
        default=64, ge=1, le=2048, description="Number of factors (als, bpr and spectral only)."
    )
    iterations: int = Field(
        default=15, ge=1, le=10_000, description="Passes over the histories (als and bpr only)."
    )
    factor_regularisation: float = Field(
        default=0.01,
        gt=0,
        le=1e8,
        description="Ridge penalty of a row's factors, for als in the fit and for both when a history is "
        "folded in (als and bpr only; for bpr try 10, with unobserved_weight 0.01 and frequency_exponent 0).",
    )
    unobserved_weight: float = Field(
        default=0.1,
        gt=0,
        le=1e8,
        description="What an item counts that a history does not hold, where an event counts its own weight "
        "(als, bpr and spectral only; for spectral try 0.03).",
    )
    frequency_exponent: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="The ridge penalty grows with the weight of a row to this power; 0: the same for all "
        "(als and bpr only).",
    )
    spectral_exponent: float = Field(
        default=1.5,
        gt=0,
        le=10,
        description="How fast directions are shrunk that explain less of what items have in common "
        "(spectral only).",
    )
    unit_rank: int = Field(
        default=20,
        ge=1,
        le=2048,
        description="Directions that explain more than the one of this rank are shrunk less than "
        "unobserved_weight says, those that explain less more (spectral only).",
    )
    history_exponent: float = Field(
        default=0.5,
        ge=0,
        le=2,
        description="The weights of a history are divided by (their sum + history_offset) to this power "
        "(spectral only).",
    )
    history_offset: float = Field(
        default=12.0, ge=0, le=1e6, description="See history_exponent (spectral only)."
    )
    learning_rate: float = Field(default=0.05, gt=0, le=10, description="Size of a step (bpr only).")
    step_regularisation: float = Field(
        default=0.01, ge=0, le=10, description="Penalty of factors in each step (bpr only)."
    )
    max_gram_entries: int = Field(
        default=300_000_000,
        ge=1_000_000,
        description="Pairs of items that are counted at most; with more, the weakest are dropped with a "
        "warning, and forgetting fits again. Each takes 12 bytes, 20 with min_persons above 1 "
        "(local_ridge only).",
    )
    max_history: int = Field(
        default=200, ge=1, description="Latest events of each source that are read of one history."
    )
    recency_half_life: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Days after which an event counts half as much as the newest one of the same history; "
        "absent: age does not matter. Sessions know no age.",
    )
    source_weights: dict[str, float] = Field(
        default_factory=lambda: {"session": 1.0, "online": 1.0, "crm": 1.0},
        description="How much an event of each source counts.",
    )
    event_weights: dict[str, float] = Field(
        default_factory=lambda: {
            "view": 1.0, "click": 1.0, "cart": 2.0, "favourite": 2.0, "order": 3.0, "usage": 1.0,
        },
        description="How much each type of event counts.",
    )  # fmt: skip
    hide: tuple[SourceName, ...] = Field(
        default=(), strict=False, description="Sources whose items are not recommended again."
    )
    attribute_weight: float = Field(
        default=0.0, ge=0, description="What a customer's attributes together count without any history."
    )
    attribute_fade: float = Field(
        default=5.0, gt=0, description="Items of history that halve the weight of the attributes."
    )
    attribute_min_persons: int = Field(
        default=10,
        ge=1,
        description="Persons that an attribute's value needs for an input of its own; rarer ones share one.",
    )

    metadata_persons: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Persons with which an item stands on its own: with fewer, the weights of items with the "
        "same metadata count for it too, the more so the fewer there are, and items that nobody had yet can "
        "be recommended; 0: off (local_ridge, cosine, tfidf, bm25 only).",
    )
    metadata_neighbours: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Items most alike in their metadata from which an item borrows; with fewer, new items "
        "come further up.",
    )
    metadata_columns: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Columns of the items table to compare items by; empty: all of texts, truth values and "
        "numbers, and lists of texts.",
    )

    @field_validator("metadata_columns")
    @classmethod
    def _no_flags(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in ("item_id", "available", "sensitive"):
            if name in value:
                raise ValueError(f"{name} does not say what an item is like; leave it out")
        if len(set(value)) != len(value):
            raise ValueError("a column is named twice")
        return tuple(sorted(value))

    @field_validator("source_weights", "event_weights")
    @classmethod
    def _known_names(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        known = _WEIGHED[str(info.field_name)]
        for name, weight in value.items():
            if name not in known:
                raise PydanticCustomError(
                    "unknown_name",
                    "{name}{suggestion}",
                    {"name": name, "suggestion": suggestion(name, known)},
                )
            if weight < 0:
                raise ValueError(f"the weight of {name!r} is {weight}; weights are at least 0")
        return value

    @field_validator("hide")
    @classmethod
    def _distinct(cls, value: tuple[SourceName, ...]) -> tuple[SourceName, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a source is named twice")
        return tuple(sorted(value))


class Config(_Section):
    """The whole configuration; each tier has defaults of its own."""

    training: TrainingConfig = TrainingConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tuning: TuningConfig = TuningConfig()
    drift: DriftConfig = DriftConfig()
    session: TierConfig = TierConfig(
        neighbours=200,
        regularisation=40.0,
        row_exponent=0.1,
        item_exponent=0.3,
        repeat_weight=0.3,
        second_hop_weight=3.0,
        distance_decay=5.0,
        reverse_weight=0.8,
        session_half_life=90.0,
        session_decay=1.75,
        max_history=50,
    )
    online: TierConfig = TierConfig(
        regularisation=10.0, repeat_weight=0.1, source_weights={"session": 3.0, "online": 1.0, "crm": 0.0}
    )
    crm: TierConfig = TierConfig(regularisation=30.0, repeat_weight=0.3, attribute_weight=0.5)
    fused: TierConfig = TierConfig(
        regularisation=50.0,
        repeat_weight=0.6,
        source_weights={"session": 5.0, "online": 1.0, "crm": 4.0},
        event_weights={"view": 1.0, "click": 1.0, "cart": 1.0, "favourite": 1.0, "order": 1.0, "usage": 1.0},
        attribute_weight=0.5,
    )

    @classmethod
    def defaults_of(cls, tier: str, algorithm: object = None) -> TierConfig:
        """What a tier's fields are where a file does not name them.

        Parameters
        ----------
        tier
            Name of the section.
        algorithm
            What the file names as its algorithm. Where that is a factor model, an item of the history counts
            less for itself: the tiers' weights for it were chosen for local ridge, and would put whole
            histories first.
        """
        defaults: TierConfig = cls.model_fields[tier].default
        if isinstance(algorithm, str) and algorithm in FACTOR_ALGORITHMS and tier in _FACTOR_REPEATS:
            return defaults.model_copy(update={"repeat_weight": _FACTOR_REPEATS[tier]})
        return defaults

    @field_validator("session", "online", "crm", "fused", mode="before")
    @classmethod
    def _over_the_defaults(cls, value: object, info: ValidationInfo) -> object:
        """A file's table changes the fields that it names; the others keep the tier's defaults."""
        if not isinstance(value, Mapping):
            return value
        defaults = cls.defaults_of(str(info.field_name), value.get("algorithm")).model_dump()
        weights = {
            name: {**defaults[name], **value[name]}
            for name in ("source_weights", "event_weights")
            if isinstance(value.get(name), Mapping)
        }
        return {**defaults, **value, **weights}

    @field_validator("session")
    @classmethod
    def _no_factors(cls, value: TierConfig) -> TierConfig:
        if value.algorithm in FACTOR_ALGORITHMS:
            raise ValueError(
                f"{value.algorithm} reads whole histories of persons, which the session tier has not; choose "
                "local_ridge, cosine, tfidf or bm25 as session.algorithm"
            )
        return value

    def with_cutoff(self, cutoff: dt.datetime) -> Config:
        """The same configuration with another training cut-off.

        Raises
        ------
        ValueError
            If `cutoff` has no time zone.
        """
        if cutoff.tzinfo is None:
            raise ValueError(f"the cut-off {cutoff.isoformat()} has no time zone: give it one")
        training = self.training.model_copy(update={"cutoff": cutoff.astimezone(dt.UTC)})
        return self.model_copy(update={"training": training})

    def resolved(self) -> dict[str, Any]:
        """All fields with their values, defaults included, as plain values for JSON."""
        return self.model_dump(mode="json")

    def shown(self) -> Config:
        """The same for others to read: the address of its store without user and password."""
        tracking = self.tracking.model_copy(update={"uri": shown_url(self.tracking.uri)})
        return self.model_copy(update={"tracking": tracking})

    def recorded(self) -> dict[str, Any]:
        """As `resolved`, for a record that others read: see `shown`."""
        return self.shown().resolved()


def load_config(
    path: str | Path | None = None,
    *,
    data: str | Path | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Config:
    """Read the configuration.

    Parameters
    ----------
    path
        The TOML file to read.
    data
        Where no file is named: the shop's data. ``consentier.toml`` is read from it where it is a directory
        that holds one; otherwise the defaults hold.
    environ
        Variables that override what the file says, ``CONSENTIER__CRM__NEIGHBOURS`` say: see
        `training.config_environment`. The command line gives its own environment.

    Raises
    ------
    ConfigError
        If the file cannot be read, is no TOML, or a key or value in it is wrong; the message names the file
        or variable and the key, and the name that was probably meant.
    """
    if path is None and data is not None and (Path(data) / CONFIG_FILE).is_file():
        path = Path(data) / CONFIG_FILE
    document, variables = with_environment(
        {} if path is None else read_toml(path, str(path), ConfigError), environ
    )
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        lines = [
            f"{_origin(failure['loc'], variables) or path}: "
            f"{_message(failure['type'], failure['loc'], failure)}"
            for failure in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from error


def _origin(location: Sequence[int | str], variables: Mapping[tuple[str, ...], str]) -> str:
    """The variable of the environment that a failure is about; empty where it is about the file."""
    place = tuple(str(part) for part in location)
    about = [
        name for each, name in variables.items() if each[: len(place)] == place or place[: len(each)] == each
    ]
    return f"the environment's {', '.join(about)}" if about else ""


def config_hash(config: Config) -> str:
    """SHA-256, in hexadecimal, of the resolved configuration: equal settings, equal hash."""
    text = json.dumps(config.recorded(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _message(kind: str, location: Sequence[int | str], failure: Mapping[str, Any]) -> str:
    """One line about one failure, in the words of the file."""
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return f"unknown key {key}{suggestion(str(location[-1]), _keys_at(location[:-1]))}"
    if kind == "unknown_name":
        return f"unknown key {key}.{failure['msg']}"
    reason = str(failure["msg"]).removeprefix("Value error, ").replace("Input should", "it should")
    if kind == "literal_error":
        allowed = re.findall("'([^']*)'", failure["ctx"]["expected"])
        near = difflib.get_close_matches(str(failure["input"]).casefold(), allowed, n=1)
        reason += f"; did you mean {near[0]!r}?" if near else ""
    return f"{key} is {_shown(failure['input'])}: {reason}"


def _keys_at(location: Sequence[int | str]) -> list[str]:
    section: Any = Config
    for part in location:
        section = section.model_fields[str(part)].annotation
    return list(section.model_fields)


def _shown(value: object) -> str:
    value = _without_passwords(value)
    text = value.isoformat() if isinstance(value, dt.date) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _without_passwords(value: Any) -> Any:
    """A value of a file with the addresses in it as messages may tell them."""
    if isinstance(value, str):
        return shown_url(value) if "://" in value else value
    if isinstance(value, Mapping):
        return {key: _without_passwords(each) for key, each in value.items()}
    return [_without_passwords(each) for each in value] if isinstance(value, list) else value
