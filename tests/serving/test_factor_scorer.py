"""The scorer of factor models answers what the model answers, to the last bit, compiled or not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import ITEMS, write_factors
from numpy.typing import NDArray
from scipy import sparse

from consentier.consent import Side, Source, Tier
from consentier.models.als import ALS
from consentier.models.bundle import open_bundle
from consentier.models.factor_solver import principal_axes
from consentier.serving import Catalogue, Event, PermittedView
from consentier.serving.factor_scorer import FactorScorer
from consentier.serving.query import Query

ALL = frozenset(Source)
INPUTS = len(ITEMS) + 6


@pytest.fixture(scope="module")
def factors() -> NDArray[np.float32]:
    return principal_axes(np.random.default_rng(4).standard_normal((INPUTS, 5)))


@pytest.fixture(scope="module")
def model(factors: NDArray[np.float32]) -> ALS:
    own = ALS(unobserved_weight=0.1, regularisation=0.02, item_count=len(ITEMS))
    return own.set_fitted(factors, np.ones(len(ITEMS), np.int64))


def scorer(
    path: Path,
    factors: NDArray[np.float32],
    catalogue: Catalogue | None = None,
    compiled: bool = True,
    **scoring: Any,
) -> FactorScorer:
    scoring = {"repeat_weight": 0.0, **scoring}
    write_factors(path / "fused", Tier.FUSED, factors=factors, scoring=scoring)
    return FactorScorer(open_bundle(path / "fused"), catalogue, compiled=compiled)


def query(n: int = 20, **options: Any) -> Query:
    return Query(n, Side.ONLINE, **options)


def expected(model: ALS, weights: dict[int, float], n: int = 20) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """What the model itself says for these inputs: its items of positive score."""
    row = np.zeros((1, INPUTS), np.float32)
    for number, weight in weights.items():
        row[0, number] = weight
    ids, scores = model.recommend(0, sparse.csr_matrix(row), N=n, filter_already_liked_items=False)
    kept = scores > 0
    return tuple(ITEMS[number] for number in ids[kept]), tuple(scores[kept].tolist())


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("repeat_weight", [0.0, 0.3])
def test_answers_are_those_of_the_model_bit_for_bit(
    tmp_path: Path, factors: NDArray[np.float32], model: ALS, repeat_weight: float, compiled: bool
) -> None:
    own = scorer(tmp_path, factors, compiled=compiled, repeat_weight=repeat_weight)
    model = dataclasses.replace(model, repeat_weight=repeat_weight).set_fitted(
        factors, np.ones(len(ITEMS), np.int64)
    )
    # Session 3, online 1, CRM 2; and of the attributes, region north is the first input behind the items.
    seen = (Event(ITEMS[4]), Event("?"))
    cases: list[tuple[PermittedView, dict[int, float]]] = [
        (PermittedView(ALL, (Event(ITEMS[1]),), seen, (Event(ITEMS[1]),)), {1: 5.0, 4: 1.0}),
        (PermittedView(ALL, crm_history=tuple(map(Event, ITEMS[2:8]))), dict.fromkeys(range(2, 8), 2.0)),
        (PermittedView(ALL, attributes={"region": "north"}), {len(ITEMS): 1.0}),
    ]
    for view, weights in cases:
        for n in (1, 3, 20):
            found = own.answer(view, query(n))
            assert found is not None
            assert (found.items, found.scores) == expected(model, weights, n)
    assert own.answer(PermittedView(ALL, session=(Event("?"),)), query()) is None


def test_what_may_not_be_shown_is_replaced_by_the_next_best(
    tmp_path: Path, factors: NDArray[np.float32], model: ALS
) -> None:
    view = PermittedView(ALL, crm_history=(Event(ITEMS[0]), Event(ITEMS[3])))
    items, _ = expected(model, {0: 2.0, 3: 2.0})
    assert len(items) >= 5
    catalogue = Catalogue(frozenset(ITEMS) - {items[0]}, frozenset())
    own = scorer(tmp_path, factors, catalogue, hide=["crm"])
    kept = [item for item in items[2:] if item not in (ITEMS[0], ITEMS[3])]
    found = own.answer(view, query(3, exclude=frozenset({items[1]})))
    assert found is not None
    assert list(found.items) == kept[:3]
    found = own.answer(view, query(3, allow=frozenset(kept[1:3])))
    assert found is not None
    assert list(found.items) == kept[1:3]


def test_items_that_come_again_are_those_of_sources_that_are_not_hidden(
    tmp_path: Path, factors: NDArray[np.float32]
) -> None:
    view = PermittedView(
        ALL, online_history=(Event(ITEMS[0]), Event(ITEMS[3])), crm_history=(Event(ITEMS[3]),)
    )
    found = scorer(tmp_path, factors, repeat_weight=1e3, hide=["crm"]).answer(view, query(3))
    assert found is not None
    assert found.items[0] == ITEMS[0]
    assert ITEMS[3] not in found.items
    assert found.scores[0] > 1e3 > found.scores[1]


def test_related_items_go_with_the_items_of_a_history_of_these(
    tmp_path: Path, factors: NDArray[np.float32], model: ALS
) -> None:
    own = scorer(tmp_path, factors)
    found = own.related([ITEMS[2]], query())
    similar, scores = model.similar_items(2, N=20)
    assert found is not None
    assert found.items == tuple(ITEMS[number] for number in similar)
    assert found.scores == tuple(scores.tolist())
    assert own.related(["?"], query()) is None
