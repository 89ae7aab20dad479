"""Recommenders over small bundles that were written by hand, for tests of the router and the scorers."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from consentier.consent import Side, Tier
from consentier.models.attribute_encoding import AttributeEncoder, CategoryColumn, NumberColumn
from consentier.models.bundle import TIERS, write_bundle
from consentier.models.factor_scoring import FoldIn
from consentier.models.factor_solver import gram_diagonal, principal_axes
from consentier.models.item_index import ItemIndex
from consentier.serving import Catalogue, Recommender
from consentier.serving.scoring_settings import ScoringSettings

__all__ = [
    "CATALOGUE",
    "ITEMS",
    "LINEAR",
    "bundles",
    "engine",
    "write_factors",
    "write_linear",
    "write_popular",
]

LINEAR = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED)

ITEMS = (*(f"item-{number:02}" for number in range(12)), "pills", "sold-out")
"""What the bundles know; the last two may not be shown."""

CATALOGUE = Catalogue(frozenset({*ITEMS[:12], "brand-new"}), frozenset({"pills"}))

_CUTOFF = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_BEFORE = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_WEIGHTS = {"session": 3.0, "online": 1.0, "crm": 2.0}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A directory for this process, removed at its end."""
    return tempfile.TemporaryDirectory(prefix="consentier-tests-")


def bundles(hide: tuple[str, ...] = (), factors: bool = False) -> Path:
    """Bundles of all tiers, each with weights of its own. `hide`: sources whose items do not come again.

    With `factors`, the tiers that know a person have factor models.
    """
    return _written(hide, factors)


@functools.cache
def _written(hide: tuple[str, ...], factors: bool) -> Path:
    folder = Path(_folder().name) / "-".join(("bundles", *hide, *(["factors"] if factors else [])))
    folder.mkdir()
    for seed, tier in enumerate(LINEAR):
        write = write_factors if factors and tier is not Tier.SESSION else write_linear
        write(folder / tier, tier, hide=hide, seed=seed)
    write_popular(folder / "popular")
    return folder


def write_linear(
    path: Path,
    tier: Tier,
    *,
    slot: str | None = None,
    hide: Sequence[str] = (),
    seed: int = 0,
    items: Sequence[str] = ITEMS,
    weights: sp.csr_matrix | None = None,
    scoring: Mapping[str, Any] | None = None,
    cutoff: dt.datetime = _CUTOFF,
) -> str:
    """Write one linear bundle: random weights, attributes region and age. Returns its digest."""
    index = ItemIndex.from_ids(items)
    encoder = _encoder(len(index))
    if weights is None:
        rng = np.random.default_rng(seed)
        shape = (len(index) + encoder.input_count, len(index))
        kept = rng.random(shape) < 0.4
        weights = sp.csr_matrix(np.where(kept, rng.integers(1, 9, shape), 0).astype(np.float32))
    arrays = {
        "indptr": weights.indptr.astype(np.int64),
        "indices": weights.indices.astype(np.int32),
        "data": weights.data.astype(np.float32),
    }
    settings = {**_settings(hide, encoder), **(scoring or {})}
    if tier is Tier.FUSED:
        settings = {**settings, "second_hop_weight": 0.25, "second_hop_items": 3, **(scoring or {})}
    if tier is Tier.SESSION or tier is Tier.FUSED:
        arrays["repeats"] = np.tril(np.linspace(0.5, 0.1, 16, dtype=np.float32).reshape(4, 4))
    return _write(path, slot or tier, "local_ridge", index, settings, arrays, cutoff)


def write_factors(
    path: Path,
    tier: Tier,
    *,
    hide: Sequence[str] = (),
    seed: int = 0,
    items: Sequence[str] = ITEMS,
    factors: NDArray[np.float32] | None = None,
    scoring: Mapping[str, Any] | None = None,
) -> str:
    """Write one bundle of a factor model: random factors, attributes region and age. Returns its digest."""
    index = ItemIndex.from_ids(items)
    encoder = _encoder(len(index))
    if factors is None:
        shape = (len(index) + encoder.input_count, 5)
        factors = principal_axes(np.random.default_rng(seed).standard_normal(shape))
    arrays = {"factors": factors, "factor_gram": gram_diagonal(factors)}
    folding = FoldIn(unobserved_weight=0.1, regularisation=0.02, frequency_exponent=1.0)
    settings = {
        **_settings(hide, encoder),
        "fold_in": dataclasses.asdict(folding),
        **(scoring or {}),
    }
    return _write(path, tier, "als", index, settings, arrays)


def _encoder(items: int) -> AttributeEncoder:
    return AttributeEncoder(
        (
            CategoryColumn("region", ("north", "south"), True, items),
            NumberColumn("age", (30.0, 50.0), items + 3),
        )
    )


def _settings(hide: Sequence[str], encoder: AttributeEncoder) -> dict[str, Any]:
    settings = ScoringSettings(
        source_weights=_WEIGHTS,
        hide=tuple(hide),
        attribute_weight=1.0,
        max_history=6,
        repeat_weight=2.0,
    )
    return {**settings.to_json(), "attributes": encoder.to_json()}


def _write(
    path: Path,
    tier: str,
    algorithm: str,
    index: ItemIndex,
    scoring: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    cutoff: dt.datetime = _CUTOFF,
) -> str:
    sources, permission = TIERS[tier]
    return write_bundle(
        path,
        tier=tier,
        sources=sources,
        permission=permission,
        algorithm=algorithm,
        parameters={},
        scoring=scoring,
        item_count=len(index),
        cutoff=cutoff,
        arrays={**index.arrays(), **arrays},
    )


def write_popular(path: Path, items: Sequence[str] = ITEMS) -> str:
    """Write a popular list: on the online side the first items lead, on the CRM side the last."""
    index = ItemIndex.from_ids(items)
    rising = np.arange(1, len(index) + 1, dtype=np.int64)
    sources, permission = TIERS["popular"]
    return write_bundle(
        path,
        tier="popular",
        sources=sources,
        permission=permission,
        algorithm="popularity",
        parameters={},
        scoring={},
        item_count=len(index),
        cutoff=_CUTOFF,
        arrays={
            **index.arrays(),
            f"{Side.ONLINE}_counts": rising[::-1].copy(),
            f"{Side.CRM}_counts": rising,
        },
    )


def engine(
    hide: tuple[str, ...] = (), catalogue: Catalogue | None = None, factors: bool = False
) -> Recommender:
    """A recommender over all bundles, with a fixed key for its digests.

    Its clock stands before all that tests tell of: a request counts at the instant that it names.
    """
    return _loaded(hide, catalogue, factors)


@functools.cache
def _loaded(hide: tuple[str, ...], catalogue: Catalogue | None, factors: bool) -> Recommender:
    return Recommender.load(
        bundles(hide, factors), catalogue=catalogue, audit_key=b"a key for tests only", clock=lambda: _BEFORE
    )
