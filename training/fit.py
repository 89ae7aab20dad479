"""Fitting one tier: from permitted rows to the weights and settings that a bundle holds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from numpy.typing import NDArray

from consentier.consent import Side, Tier
from consentier.errors import TrainingError
from consentier.features.attributes import fit_attributes
from consentier.features.gate import PermittedRows
from consentier.features.interactions import interactions, person_counts
from consentier.models.attribute_encoding import AttributeEncoder
from consentier.models.base import ItemModel
from consentier.models.item_index import ItemIndex
from consentier.models.item_knn import ItemKNN
from consentier.models.local_ridge import LocalRidge
from consentier.serving.scorer import ScoringSettings
from consentier.training.config import TierConfig

__all__ = ["FittedTier", "fit_popular", "fit_tier"]


@dataclasses.dataclass(frozen=True, slots=True)
class FittedTier:
    """What a bundle is written from.

    Attributes
    ----------
    item_count
        Items that the model knows.
    arrays
        The bundle's arrays.
    scoring
        The bundle's scoring settings, as plain values.
    """

    item_count: int
    arrays: dict[str, NDArray[Any]]
    scoring: dict[str, Any]


def fit_tier(
    tier: Tier,
    permitted: PermittedRows,
    config: TierConfig,
    *,
    min_persons: int,
    threads: int | None,
    show_progress: bool = False,
) -> FittedTier:
    """Fit one of the four linear models.

    Parameters
    ----------
    tier
        Which.
    permitted
        What the gate let through for it.
    config
        Algorithm and its parameters.
    min_persons
        Distinct persons that must stand behind each published item and pair.
    threads
        Threads of the solver; the result does not depend on it. None: all cores.
    show_progress
        Report progress on standard error.

    Raises
    ------
    TrainingError
        If nothing is left to train on.

    Notes
    -----
    See `models.gram` and `models.local_ridge` for the costs.
    """
    permitted = _without_rare_items(permitted, min_persons)
    if not permitted.rows.num_rows:
        reasons = "; ".join(
            f"{funnel.source}: {funnel.rows_in} rows came in, kept out: {dict(funnel.excluded) or 'none'}"
            for funnel in permitted.funnel
        )
        raise TrainingError(f"the {tier} tier has no permitted rows to train on ({reasons})")
    encoder = _encoder(permitted, config, min_persons)
    data = interactions(
        permitted,
        by_session=tier is Tier.SESSION,
        source_weights={"online": 1.0} if tier is Tier.SESSION else config.source_weights,
        event_weights=config.event_weights,
        encoder=encoder,
    )
    model = _estimator(config, len(data.item_ids), min_persons, threads)
    model.fit(data.matrix, show_progress, persons=data.persons)
    weights = _weights(model, config.repeat_weight)
    index = ItemIndex.from_ids(data.item_ids)
    settings = ScoringSettings(
        source_weights=dict(config.source_weights),
        event_weights=dict(config.event_weights),
        session_decay=config.session_decay,
        hide=tuple(config.hide),
        max_history=config.max_history,
        attribute_weight=config.attribute_weight,
        attribute_fade=config.attribute_fade,
    )
    arrays = {
        **index.arrays(),
        "indptr": weights.indptr.astype(np.int64),
        "indices": weights.indices.astype(np.int32),
        "data": weights.data.astype(np.float32),
    }
    return FittedTier(len(index), arrays, {**settings.to_json(), "attributes": encoder.to_json()})


def fit_popular(
    online: PermittedRows, crm: PermittedRows, anonymous: PermittedRows, *, min_persons: int
) -> FittedTier:
    """Count the distinct permitted persons behind each item, per side."""
    counts = {Side.ONLINE: person_counts(online), Side.CRM: person_counts(crm)}
    for item, count in person_counts(anonymous, by_session=True).items():
        counts[Side.ONLINE][item] = counts[Side.ONLINE].get(item, 0) + count
    published = {
        side: {item: count for item, count in of_side.items() if count >= min_persons}
        for side, of_side in counts.items()
    }
    index = ItemIndex.from_ids(set().union(*published.values()))
    if not len(index):
        raise TrainingError("no item has enough permitted persons behind it for the popular list")
    items = index.ids(np.arange(len(index)))
    arrays = {
        **index.arrays(),
        **{
            f"{side}_counts": np.array([of_side.get(item, 0) for item in items], dtype=np.int64)
            for side, of_side in published.items()
        },
    }
    return FittedTier(len(index), arrays, {})


def _without_rare_items(permitted: PermittedRows, min_persons: int) -> PermittedRows:
    """Leave out items with too few persons behind them; their ids must not be published either."""
    if min_persons == 1:
        return permitted
    counts = person_counts(permitted)
    kept = [item for item, count in counts.items() if count >= min_persons]
    rows = permitted.rows
    return dataclasses.replace(
        permitted, rows=rows.filter(pc.is_in(rows["item_id"], pa.array(kept, pa.string())))
    )


def _encoder(permitted: PermittedRows, config: TierConfig, min_persons: int) -> AttributeEncoder:
    if permitted.attributes is None or not config.attribute_weight:
        return AttributeEncoder(())
    item_count = len(permitted.rows["item_id"].unique())
    return fit_attributes(
        permitted.attributes,
        first_input=item_count,
        min_persons=max(min_persons, config.attribute_min_persons),
    )


def _estimator(config: TierConfig, item_count: int, min_persons: int, threads: int | None) -> ItemModel:
    if config.algorithm == "local_ridge":
        return LocalRidge(
            neighbours=config.neighbours,
            regularisation=config.regularisation,
            row_exponent=config.row_exponent,
            item_exponent=config.item_exponent,
            repeat_weight=config.repeat_weight,
            item_count=item_count,
            min_persons=min_persons,
            threads=threads,
        )
    return ItemKNN(
        similarity=config.algorithm,
        neighbours=config.neighbours,
        item_count=item_count,
        min_persons=min_persons,
        threads=threads,
    )


def _weights(model: ItemModel, repeat_weight: float) -> sp.csr_matrix:
    """A fitted model's item weights, inputs × items, with each item's weight for itself."""
    weights = model.weights
    if isinstance(model, ItemKNN) and repeat_weight:
        repeats = np.full(weights.shape[1], repeat_weight, np.float32)
        weights = sp.csr_matrix(weights + sp.diags_array(repeats, shape=weights.shape))
    weights.sort_indices()
    return weights
