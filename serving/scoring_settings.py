"""How a history becomes the inputs of a model: settings in a bundle's manifest, read and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from consentier.consent import Source
from consentier.errors import BundleMalformed
from consentier.models.attribute_encoding import AttributeEncoder

__all__ = ["NO_INTEREST", "ScoringSettings", "read_scoring"]

NO_INTEREST = frozenset({"remove", "unfavourite", "cancelled", "returned"})
"""Types of events that end an interest: training leaves them out, and so does the input of a model."""


@dataclasses.dataclass(frozen=True, slots=True)
class ScoringSettings:
    """How a history becomes the inputs of a model; stands in the bundle's manifest.

    Attributes
    ----------
    source_weights
        How much an event of a source counts.
    event_weights
        How much an event type counts; types not named count 1.
    session_decay
        An item of the session that came d distinct known items before the last one counts
        exp(-d / session_decay).
    hide
        Sources whose items are not recommended again.
    max_history
        The latest events of each source that are read.
    recency_half_life
        Days after which an event counts half as much as the newest one of the history; None: age does not
        matter. Events without a time count as new.
    second_hop_weight, second_hop_items
        The so many best items of a first score pass on so much of it; see `models.scoring.with_second_hop`.
    repeat_weight
        What the learnt probability that a session returns to an item adds to its score; in factor models,
        what an item of the history gains, times its weight there.
    attribute_weight, attribute_fade
        Attributes together count ``attribute_weight / (1 + known items of the history / attribute_fade)``.
    """

    source_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    event_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    session_decay: float = 3.0
    hide: tuple[str, ...] = ()
    max_history: int = 200
    recency_half_life: float | None = None
    second_hop_weight: float = 0.0
    second_hop_items: int = 50
    repeat_weight: float = 0.0
    attribute_weight: float = 0.0
    attribute_fade: float = 5.0

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values for a manifest."""
        values = dataclasses.asdict(self)
        values["hide"] = list(self.hide)
        return values

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ScoringSettings:
        """Read settings from a manifest.

        Raises
        ------
        BundleMalformed
            If a setting is unknown, missing or of the wrong type.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(value) - {"attributes"} != names:
            raise BundleMalformed(
                f"manifest: scoring must name exactly {', '.join(sorted(names))} (and attributes)"
            )
        for name in ("source_weights", "event_weights"):
            table = value[name]
            fine = isinstance(table, Mapping) and all(map(_is_weight, table.values()))
            _require(fine, f"{name} must map names to numbers of at least 0")
        for name in ("session_decay", "attribute_fade"):
            _require(_is_weight(value[name]) and value[name], f"{name} must be a number above 0")
        half_life = value["recency_half_life"]
        _require(
            half_life is None or (_is_weight(half_life) and 0 < half_life <= 1e6),
            "recency_half_life must be null, or days above 0 and up to a million",
        )
        for name in ("attribute_weight", "second_hop_weight", "repeat_weight"):
            _require(_is_weight(value[name]), f"{name} must be a number of at least 0")
        for name in ("max_history", "second_hop_items"):
            whole = isinstance(value[name], int) and not isinstance(value[name], bool)
            _require(whole, f"{name} must be a whole number")
            _require(value[name] >= 1, f"{name} must be at least 1")
        hide = value["hide"]
        _require(
            isinstance(hide, list) and set(hide) <= {source.value for source in Source},
            "hide must be a list of sources",
        )
        return cls(
            source_weights=dict(value["source_weights"]),
            event_weights=dict(value["event_weights"]),
            session_decay=float(value["session_decay"]),
            hide=tuple(hide),
            max_history=value["max_history"],
            recency_half_life=value["recency_half_life"],
            second_hop_weight=float(value["second_hop_weight"]),
            second_hop_items=value["second_hop_items"],
            repeat_weight=float(value["repeat_weight"]),
            attribute_weight=float(value["attribute_weight"]),
            attribute_fade=float(value["attribute_fade"]),
        )


def read_scoring(settings: Mapping[str, Any], item_count: int) -> tuple[ScoringSettings, AttributeEncoder]:
    """Read what all models of histories have in common out of a manifest's scoring settings.

    Parameters
    ----------
    settings
        Without those that only one kind of model has.
    item_count
        Items of the model; the inputs of attributes stand behind them.

    Raises
    ------
    BundleMalformed
        If a setting is unknown, missing or of the wrong type.
    """
    encoder = AttributeEncoder.from_json(settings.get("attributes", []), first_input=item_count)
    return ScoringSettings.from_json(settings), encoder


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise BundleMalformed(f"manifest: scoring.{rule}")


def _is_weight(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value < float("inf")
