"""The validation period: who is asked what, and answers in a batch that are those of the served scorer."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from engines import ITEMS, write_factors, write_linear
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import Row, consent, day, event, link, order, shop

from consentier.consent import Policy, Side, Source, Tier
from consentier.errors import TrainingError
from consentier.features.gate import ConsentGate, PermittedRows, ledger_of
from consentier.features.simulator import SimulationConfig, simulate
from consentier.features.tables import ShopTables
from consentier.features.validation import ValidationReport
from consentier.models.bundle import TIERS, Bundle, open_bundle, write_bundle
from consentier.models.factor_scoring import FoldIn
from consentier.serving import Event, PermittedView
from consentier.serving.factor_scorer import FactorScorer
from consentier.serving.query import Query
from consentier.serving.scorer import ItemScorer, LinearScorer
from consentier.serving.scoring_settings import NO_INTEREST, ScoringSettings
from consentier.training import factor_validation, linear_validation
from consentier.training.bundles import train_bundles
from consentier.training.config import Config, TrackingConfig
from consentier.training.factor_validation import FactorBatchScorer, batch_scorer
from consentier.training.fit import TierRows
from consentier.training.linear_validation import BatchScorer, Requests
from consentier.training.tune import TUNED_TIERS
from consentier.training.validation import ValidationSet, validation_set

ALL = frozenset(Source)

# ---- The batch gives the lists of the served scorer --------------------------------------------------------


def answers(scorer: ItemScorer, views: Sequence[PermittedView], n: int) -> list[list[tuple[str, float]]]:
    """What the shop's service would say, one request after the other."""
    found = [scorer.answer(view, Query(n, Side.ONLINE)) for view in views]
    return [[] if each is None else list(zip(each.items, each.scores, strict=True)) for each in found]


def batch_of(bundle: Bundle) -> BatchScorer:
    return batch_scorer(bundle.arrays, bundle.manifest.scoring)


def batch_answers(
    scorer: BatchScorer, requests: Requests, n: int, **options: Any
) -> list[list[tuple[str, float]]]:
    lists, scores = scorer.lists(requests, n, **options)
    return [
        [(scorer.index.id(int(item)), float(score)) for item, score in zip(*both, strict=True) if item != -1]
        for both in zip(lists, scores, strict=True)
    ]


_events = st.lists(
    st.builds(
        Event,
        st.sampled_from((*ITEMS, "never-seen")),
        st.none() | st.integers(0, 90).map(day),
        st.none() | st.sampled_from(("view", "cart", "order", *sorted(NO_INTEREST))),
    ),
    max_size=9,
).map(tuple)
_views = st.builds(
    PermittedView,
    st.just(ALL),
    _events,
    _events,
    _events,
    st.fixed_dictionaries(
        {}, optional={"region": st.sampled_from(("north", "west", "nowhere")), "age": st.integers(18, 80)}
    ),
)
_weights = st.sampled_from((0.0, 0.3, 1.0, 2.7))
_settings = st.builds(
    ScoringSettings,
    source_weights=st.fixed_dictionaries({}, optional={str(source): _weights for source in Source}),
    event_weights=st.fixed_dictionaries({}, optional={"cart": _weights, "order": _weights}),
    session_decay=st.floats(0.3, 30),
    hide=st.sampled_from(((), ("session",), ("crm", "online"))),
    max_history=st.integers(1, 10),
    recency_half_life=st.none() | st.floats(0.5, 100),
    second_hop_weight=_weights,
    second_hop_items=st.integers(1, 12),
    repeat_weight=_weights,
    attribute_weight=_weights,
    attribute_fade=st.floats(0.5, 20),
)


@settings(max_examples=60)
@given(st.lists(_views, max_size=5), _settings, st.integers(1, 16), st.integers(0, 5))
def test_a_batch_is_answered_as_the_served_scorer_answers_each_request(
    views: list[PermittedView], scoring: ScoringSettings, n: int, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # Small whole weights: many items have equal scores.
        write_linear(Path(folder) / "fused", Tier.FUSED, scoring=scoring.to_json(), seed=seed)
        bundle = open_bundle(Path(folder) / "fused")
        batch = batch_answers(batch_of(bundle), Requests.from_views(views), n, threads=1)
        for compiled in (False, True):
            assert answers(LinearScorer(bundle, None, compiled=compiled), views, n) == batch


_foldings = st.builds(
    FoldIn,
    unobserved_weight=st.floats(1e-3, 2),
    regularisation=st.floats(1e-4, 20),
    frequency_exponent=st.floats(0, 1),
)


@settings(max_examples=60)
@given(st.lists(_views, max_size=5), _settings, _foldings, st.integers(1, 16), st.integers(0, 5))
def test_a_batch_is_answered_as_the_scorer_of_a_factor_model_answers_each_request(
    views: list[PermittedView], scoring: ScoringSettings, folding: FoldIn, n: int, seed: int
) -> None:
    given_settings = {**scoring.to_json(), "fold_in": dataclasses.asdict(folding)}
    with tempfile.TemporaryDirectory() as folder:
        write_factors(Path(folder) / "fused", Tier.FUSED, scoring=given_settings, seed=seed)
        bundle = open_bundle(Path(folder) / "fused")
        expected = answers(FactorScorer(bundle, None), views, n)
        assert batch_answers(batch_of(bundle), Requests.from_views(views), n, threads=1) == expected


def simulated(seed: int = 5) -> tuple[ShopTables, dt.datetime]:
    found = simulate(SimulationConfig(customers=200, items=60, days=60, horizon_days=7, seed=seed))
    return ShopTables(**found.tables, report=ValidationReport()), found.config.cutoff


@pytest.fixture(scope="module")
def sets() -> dict[Tier, ValidationSet]:
    tables, end = simulated()
    gate = ConsentGate(tables, ledger_of(tables), end, Policy.default())
    start = end - dt.timedelta(days=14)
    return {
        tier: validation_set(tier, gate.permitted(tier), start, end, max_persons=100, seed=1)
        for tier in TUNED_TIERS
    }


def test_what_is_tuned_is_what_a_training_at_the_beginning_of_the_period_fits(
    sets: dict[Tier, ValidationSet], tmp_path: Path
) -> None:
    """Above all: sessions are as old as they are there, not as old as they are at the period's end."""
    tables, end = simulated()
    halved = Config().session.model_copy(update={"session_half_life": 5.0})
    config = Config(tracking=TrackingConfig(enabled=False)).model_copy(update={"session": halved})
    data = sets[Tier.SESSION]
    train_bundles(
        tables, config.with_cutoff(end), tmp_path, tiers=[Tier.SESSION], until=data.start,
        show_progress=False,
    )  # fmt: skip
    fitted, _ = TierRows(Tier.SESSION, data.rows, 1).fit(halved, threads=1)
    for name, array in open_bundle(tmp_path / "session").arrays.items():
        np.testing.assert_array_equal(fitted.arrays[name], array)


@pytest.mark.parametrize(
    ("tier", "algorithm"),
    [
        *((tier, "local_ridge") for tier in TUNED_TIERS),
        *((tier, name) for name in ("als", "spectral") for tier in TUNED_TIERS if tier is not Tier.SESSION),
    ],
)
def test_what_is_tuned_is_what_a_bundle_of_the_same_rows_serves(
    sets: dict[Tier, ValidationSet],
    tier: Tier,
    algorithm: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_validation, "_REQUESTS_AT_ONCE", 7)
    monkeypatch.setattr(factor_validation, "_SCORES_AT_ONCE", 400)
    data = sets[tier]
    changes = {
        "algorithm": algorithm, "recency_half_life": 20.0, "neighbours": 20, "factors": 10,
        "attribute_weight": 0.3,
    }  # fmt: skip
    config = getattr(Config(), tier).model_copy(update=changes)
    fitted, _ = TierRows(tier, data.rows, 1).fit(config, threads=1)
    sources, permission = TIERS[tier]
    write_bundle(
        tmp_path / "bundle",
        tier=tier,
        sources=sources,
        permission=permission,
        algorithm=algorithm,
        parameters={},
        scoring=fitted.scoring,
        item_count=fitted.item_count,
        cutoff=data.start,
        arrays=fitted.arrays,
    )
    kind = LinearScorer if algorithm == "local_ridge" else FactorScorer
    served = answers(kind(open_bundle(tmp_path / "bundle"), None), data.views, 20)
    scorer = batch_scorer(fitted.arrays, fitted.scoring)
    assert isinstance(scorer, FactorBatchScorer) == (kind is FactorScorer)
    for threads in (1, 2):
        assert batch_answers(scorer, data.requests, 20, threads=threads) == served
    assert batch_answers(scorer, data.requests, 20, first=5, last=23) == served[5:23]
    lists = data.lists_of(scorer, 20, first=0, last=len(served), threads=1)
    named = [[data.item_ids[item] for item in row if item != -1] for row in lists]
    assert named == [[item for item, _ in each] for each in served]


# ---- Who is asked what -------------------------------------------------------------------------------------

START, END = 50, 60


def told() -> ShopTables:
    """Twenty linked customers alike: visits before and in the period, orders in both, one attribute."""
    names = [f"{number:02}" for number in range(20)]
    events: list[Row] = []
    orders: list[Row] = []
    for name in names:
        events += [event(f"v{name}", "a", 10, session=f"s1-{name}")]
        events += [
            event(f"v{name}", item, at, session=f"s2-{name}", kind=kind)
            for item, at, kind in (("b", 20, "view"), ("c", 21, "cart"))
        ]
        events += [event(f"v{name}", item, at, session=f"s3-{name}") for item, at in (("d", 52), ("b", 53))]
        events += [event(f"v{name}", "e", 49.5, session=f"s4-{name}")] * (name == "00")
        orders += [order(f"c{name}", "f", 30), order(f"c{name}", "c", 55), order(f"c{name}", "f", 57)]
    consents = [consent(f"v{name}", "online") for name in names] + [
        consent(f"c{name}", "crm") for name in names
    ]
    return shop(
        events=events,
        orders=orders,
        consents=consents,
        identities=[link(f"v{name}", f"c{name}") for name in names],
        customers=_attributes(names),
    )


def _attributes(names: Sequence[str]) -> pa.Table:
    return pa.table({"customer_id": [f"c{name}" for name in names], "region": ["north"] * len(names)})


@functools.cache
def permitted(tier: Tier) -> PermittedRows:
    tables = told()
    return ConsentGate(tables, ledger_of(tables), day(END), Policy.default()).permitted(tier)


def told_set(tier: Tier, **options: Any) -> ValidationSet:
    options = {"max_persons": None, "seed": 0, **options}
    return validation_set(tier, permitted(tier), day(START), day(END), **options)


def items(events: Sequence[Event]) -> str:
    return "".join(event.item_id for event in events)


def asked(data: ValidationSet) -> set[tuple[str, str, str, str]]:
    """Of each request: session, online history, CRM history, and target."""
    return {
        (
            items(view.session),
            items(view.online_history),
            items(view.crm_history),
            "".join(
                data.item_ids[item]
                for item in data.targets.items[data.targets.indptr[k] : data.targets.indptr[k + 1]]
            ),
        )
        for k, view in enumerate(data.views)
    }


def test_sessions_that_begin_in_the_period_predict_their_next_items() -> None:
    data = told_set(Tier.SESSION)
    assert asked(data) == {("d", "", "", "b")}
    assert len(data.requests) == 20


def test_a_visitors_last_visit_is_the_running_session_and_later_events_are_the_target() -> None:
    assert asked(told_set(Tier.ONLINE)) == {("bc", "a", "", "bd"), ("e", "abc", "", "bd")}


def test_customers_are_asked_for_their_orders_each_tier_by_its_own_rows() -> None:
    crm, fused = told_set(Tier.CRM), told_set(Tier.FUSED)
    assert asked(crm) == {("", "", "f", "cf")}
    assert asked(fused) == {("bc", "a", "f", "cf"), ("e", "abc", "f", "cf")}
    for data in (crm, fused):
        assert {view.attributes["region"] for view in data.views} == {"north"}
        assert {view.sources for view in data.views} == {frozenset(map(Source, TIERS[data.tier][0]))}


@pytest.mark.parametrize("tier", TUNED_TIERS)
def test_nothing_of_the_period_is_fitted_on(tier: Tier) -> None:
    rows = told_set(tier).rows.rows
    assert rows.num_rows
    assert max(rows["ts"].to_pylist()) < dt.datetime.timestamp(day(START)) * 1e6


def test_persons_are_drawn_in_an_order_that_the_seed_decides() -> None:
    few = told_set(Tier.CRM, max_persons=20, seed=3)
    assert few.persons.tolist() == list(range(20))
    assert few.requests_of(0.1) == 2
    assert few.requests_of(1.0) == 20
    assert few.requests_of(0.0001) == 1
    online = [told_set(Tier.ONLINE, seed=seed) for seed in (0, 0, 1)]
    first, again, other = ([items(view.session) for view in each.views] for each in online)
    assert first == again
    assert sorted(first) == sorted(other)


def test_too_few_persons_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(TrainingError, match=r"crm tier has 19 persons .* needs 20: make the validation"):
        told_set(Tier.CRM, max_persons=19)


def test_the_popular_list_counts_persons_and_breaks_ties_by_item() -> None:
    data = told_set(Tier.FUSED)
    (row,) = {tuple(row) for row in data.popular_lists(3).tolist()}
    assert data.item_ids[row[0]] == "f"  # the only item that was ordered before the period
    online = told_set(Tier.ONLINE)
    assert [online.item_ids[item] for item in online.popular_lists(4)[0]] == ["a", "b", "c", "e"]


@pytest.mark.parametrize(
    ("arrays", "own"),
    [
        (
            {
                "indptr": np.array([0, 0], np.int64),
                "indices": np.empty(0, np.int32),
                "data": np.empty(0, np.float32),
            },
            {},
        ),
        (
            {"factors": np.ones((1, 1), np.float32), "factor_gram": np.ones(1)},
            {
                "fold_in": dataclasses.asdict(
                    FoldIn(unobserved_weight=0.1, regularisation=1, frequency_exponent=0)
                )
            },
        ),
    ],
    ids=["linear", "factors"],
)
def test_no_requests_have_no_answers(arrays: dict[str, Any], own: dict[str, Any]) -> None:
    item = {"item_ids": np.frombuffer(b"a", np.uint8), "item_offsets": np.array([0, 1], np.int64)}
    scorer = batch_scorer({**item, **arrays}, {**ScoringSettings().to_json(), **own})
    lists, scores = scorer.lists(Requests.from_views([]), 5)
    assert lists.shape == scores.shape == (0, 5)
