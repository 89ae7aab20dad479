"""Recommenders over small bundles that were written by hand, for tests of the router and the scorers."""

from __future__ import annotations

import datetime as dt
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from consentier.consent import Side, Tier
from consentier.models.attribute_encoding import AttributeEncoder, CategoryColumn, NumberColumn
from consentier.models.bundle import TIERS, write_bundle
from consentier.models.item_index import ItemIndex
from consentier.serving import Catalogue, Recommender
from consentier.serving.scorer import ScoringSettings

__all__ = ["CATALOGUE", "ITEMS", "LINEAR", "bundles", "engine", "write_linear", "write_popular"]

LINEAR = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED)

ITEMS = (*(f"item-{number:02}" for number in range(12)), "pills", "sold-out")
"""What the bundles know; the last two may not be shown."""

CATALOGUE = Catalogue(frozenset({*ITEMS[:12], "brand-new"}), frozenset({"pills"}))

_CUTOFF = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_WEIGHTS = {"session": 3.0, "online": 1.0, "crm": 2.0}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A directory for this process, removed at its end."""
    return tempfile.TemporaryDirectory(prefix="consentier-tests-")


def bundles(hide: tuple[str, ...] = ()) -> Path:
    """Bundles of all tiers, each with weights of its own. `hide`: sources whose items do not come again."""
    return _written(hide)


@functools.cache
def _written(hide: tuple[str, ...]) -> Path:
    folder = Path(_folder().name) / "-".join(("bundles", *hide))
    folder.mkdir()
    for seed, tier in enumerate(LINEAR):
        write_linear(folder / tier, tier, hide=hide, seed=seed)
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
) -> str:
    """Write one linear bundle: random weights, attributes region and age. Returns its digest."""
    index = ItemIndex.from_ids(items)
    encoder = AttributeEncoder(
        (
            CategoryColumn("region", ("north", "south"), ("east", "west"), len(index)),
            NumberColumn("age", (30.0, 50.0), len(index) + 3),
        )
    )
    settings = ScoringSettings(source_weights=_WEIGHTS, hide=tuple(hide), attribute_weight=1.0, max_history=6)
    if weights is None:
        rng = np.random.default_rng(seed)
        shape = (len(index) + encoder.input_count, len(index))
        kept = rng.random(shape) < 0.4
        weights = sp.csr_matrix(np.where(kept, rng.integers(1, 9, shape), 0).astype(np.float32))
    sources, permission = TIERS[slot or tier]
    return write_bundle(
        path,
        tier=slot or tier,
        sources=sources,
        permission=permission,
        algorithm="local_ridge",
        parameters={},
        scoring={**settings.to_json(), "attributes": encoder.to_json(), **(scoring or {})},
        item_count=len(index),
        cutoff=_CUTOFF,
        arrays={
            **index.arrays(),
            "indptr": weights.indptr.astype(np.int64),
            "indices": weights.indices.astype(np.int32),
            "data": weights.data.astype(np.float32),
        },
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


def engine(hide: tuple[str, ...] = (), catalogue: Catalogue | None = None) -> Recommender:
    """A recommender over all bundles, with a fixed key for its digests."""
    return _loaded(hide, catalogue)


@functools.cache
def _loaded(hide: tuple[str, ...], catalogue: Catalogue | None) -> Recommender:
    return Recommender.load(bundles(hide), catalogue=catalogue, audit_key=b"a key for tests only")
