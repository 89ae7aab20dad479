"""Consentier: recommendations that follow each customer's permission level.

The public names are loaded when they are first used, so that ``import consentier`` costs little more than
NumPy does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consentier.consent import Channel, ConsentRecord, Ledger, Link, Permission, Policy, Resolution
    from consentier.errors import ConsentierError
    from consentier.serving import Answer, Basis, Catalogue, Event, Profiles, Recommender, Request
    from consentier.serving.asynchronous import AsyncRecommender
    from consentier.serving.experiment import Experiment, ExperimentRecommender
    from consentier.serving.outcomes import OutcomeLog
    from consentier.serving.reloading import ReloadingRecommender

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AsyncRecommender",
    "Basis",
    "Catalogue",
    "Channel",
    "ConsentRecord",
    "ConsentierError",
    "Event",
    "Experiment",
    "ExperimentRecommender",
    "Ledger",
    "Link",
    "OutcomeLog",
    "Permission",
    "Policy",
    "Profiles",
    "Recommender",
    "ReloadingRecommender",
    "Request",
    "Resolution",
    "__version__",
]

_HOMES = {
    "consentier.consent": (
        "Channel", "ConsentRecord", "Ledger", "Link", "Permission", "Policy", "Resolution",
    ),
    "consentier.errors": ("ConsentierError",),
    "consentier.serving": (
        "Answer", "Basis", "Catalogue", "Event", "Profiles", "Recommender", "Request",
    ),
    "consentier.serving.asynchronous": ("AsyncRecommender",),
    "consentier.serving.experiment": ("Experiment", "ExperimentRecommender"),
    "consentier.serving.outcomes": ("OutcomeLog",),
    "consentier.serving.reloading": ("ReloadingRecommender",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'consentier' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
