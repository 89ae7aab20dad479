"""Scorers: the arithmetic by hand, and what may not be shown."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from engines import write_linear, write_popular
from hypothesis import given
from hypothesis import strategies as st

from consentier.consent import Side, Source, Tier
from consentier.errors import BundleMalformed
from consentier.models import row_scorer
from consentier.models.bundle import open_bundle
from consentier.serving import Catalogue, Event, PermittedView
from consentier.serving import shelf as shelf_module
from consentier.serving.item_columns import Expression
from consentier.serving.popular_scorer import PopularScorer
from consentier.serving.query import Query
from consentier.serving.scorer import LinearScorer
from consentier.serving.scoring_settings import ScoringSettings

FRUIT = ("apple", "banana", "cherry", "date")
ALL = frozenset(Source)


@pytest.fixture(scope="module", params=["compiled", "numpy"])
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """What adds up and chooses: all below holds with either."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(row_scorer, "compiled_kernel", lambda: None)
        yield request.param


@pytest.fixture(scope="module")
def folder(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(f"scorers-{kernel}")


def scorer(folder: Path, catalogue: Catalogue | None = None, **scoring: Any) -> LinearScorer:
    """A fused model: apple says banana (1) and cherry (2), date says banana (4), north says date (8)."""
    weights = np.zeros((4 + 6, 4), np.float32)
    weights[0, 1], weights[0, 2], weights[3, 1], weights[4, 3] = 1, 2, 4, 8
    path = folder / f"bundle {len(list(folder.iterdir()))}"
    settings = {"second_hop_weight": 0.0, "repeat_weight": 0.0, **scoring}
    write_linear(path, Tier.FUSED, items=FRUIT, weights=sp.csr_matrix(weights), scoring=settings)
    return LinearScorer(open_bundle(path), catalogue)


def asked(n: int = 4, **options: Any) -> Query:
    return Query(n, Side.ONLINE, **options)


def test_scores_are_the_weighted_sum_over_the_sources(folder: Path) -> None:
    view = PermittedView(ALL, (Event("apple"),), (Event("date"),), (Event("apple"), Event("date")))
    found = scorer(folder).answer(view, asked())
    assert found is not None
    # Session 3, online 1, CRM 2: apple weighs 3 + 2, date 1 + 2.
    assert dict(zip(found.items, found.scores, strict=True)) == {"banana": 5 * 1 + 3 * 4, "cherry": 5 * 2}
    assert found.items == ("banana", "cherry")


def test_of_one_item_in_one_source_the_largest_weight_counts(folder: Path) -> None:
    view = PermittedView(ALL, crm_history=(Event("apple", event_type="cart"), Event("apple"), Event("apple")))
    found = scorer(folder, event_weights={"cart": 2.5}).answer(view, asked())
    assert found is not None
    assert found.scores == (2 * 2.5 * 2, 2 * 2.5 * 1)


@pytest.mark.parametrize("kind", ["remove", "unfavourite", "cancelled", "returned"])
def test_what_ends_an_interest_shows_none(folder: Path, kind: str) -> None:
    ended = PermittedView(ALL, online_history=(Event("date"), Event("apple", event_type=kind)))
    alone = PermittedView(ALL, online_history=(Event("date"),))
    assert scorer(folder).answer(ended, asked()) == scorer(folder).answer(alone, asked())


def test_older_events_of_a_session_weigh_less_and_others_do_not(folder: Path) -> None:
    model = scorer(folder, session_decay=2.0)
    found = model.answer(PermittedView(ALL, session=(Event("date"), Event("apple"))), asked())
    assert found is not None
    decayed = np.float32(3 * math.exp(-1 / 2.0))
    assert dict(zip(found.items, found.scores, strict=True)) == {
        "banana": 3 + 4 * float(decayed),
        "cherry": 6,
    }
    found = model.answer(PermittedView(ALL, online_history=(Event("date"), Event("apple"))), asked())
    assert found is not None
    assert found.scores == (5, 2)


def test_in_a_session_distinct_known_items_count_as_places(folder: Path) -> None:
    model = scorer(folder, session_decay=2.0)
    seen = ("date", "apple", "mango", "apple", "apple")
    found = model.answer(PermittedView(ALL, session=tuple(map(Event, seen))), asked())
    assert found == dataclasses.replace(
        model.answer(PermittedView(ALL, session=(Event("date"), Event("apple"))), asked()) or found,
        unknown_items=1,
    )


def test_the_best_items_pass_on_to_what_goes_with_them(folder: Path) -> None:
    view = PermittedView(ALL, crm_history=(Event("apple"),), attributes={"region": "north"})
    once = scorer(folder, attribute_weight=1.2).answer(view, asked())
    assert once is not None
    # Apple weighs 2: banana 2, cherry 4; north fades to 1.2 / 1.2 = 1: date 8.
    assert dict(zip(once.items, once.scores, strict=True)) == {"date": 8, "cherry": 4, "banana": 2}
    passed = {"attribute_weight": 1.2, "second_hop_weight": 0.5}
    both = scorer(folder, **passed, second_hop_items=1).answer(view, asked())
    assert both is not None
    # Date passes on: .5 * 8 to banana with weight 4. Apple would, if it were not of the history.
    assert dict(zip(both.items, both.scores, strict=True)) == {"banana": 2 + 16, "date": 8, "cherry": 4}


def test_nothing_passes_through_sensitive_items(folder: Path) -> None:
    catalogue = Catalogue(frozenset(FRUIT), frozenset({"date"}))
    view = PermittedView(ALL, crm_history=(Event("apple"),), attributes={"region": "north"})
    settings = {"attribute_weight": 1.2, "second_hop_weight": 0.5}
    found = scorer(folder, catalogue, **settings).answer(view, asked())
    assert found is not None
    assert dict(zip(found.items, found.scores, strict=True))["banana"] == 2


def test_what_cannot_be_shown_may_still_pass_on(folder: Path) -> None:
    catalogue = Catalogue(frozenset({"banana"}), frozenset())
    view = PermittedView(ALL, crm_history=(Event("apple"),), attributes={"region": "north"})
    settings = {"attribute_weight": 1.2, "second_hop_weight": 0.5}
    found = scorer(folder, catalogue, **settings).answer(view, asked())
    assert found is not None
    assert (found.items, found.scores) == (("banana",), (18,))


def test_sessions_return_to_what_they_saw_as_often_as_was_learnt(folder: Path) -> None:
    model = scorer(folder, repeat_weight=2.0, session_decay=2.0)
    # The table of the test bundles: rows by distinct items seen, columns by distinct items since.
    table = np.tril(np.linspace(0.5, 0.1, 16, dtype=np.float32).reshape(4, 4))
    found = model.answer(PermittedView(ALL, session=tuple(map(Event, ("date", "mango", "apple")))), asked())
    assert found is not None
    scores = dict(zip(found.items, found.scores, strict=True))
    assert scores["apple"] == 2 * float(table[1, 0])
    assert scores["date"] == 2 * float(table[1, 1])
    assert scores["cherry"] == 6
    hidden = scorer(folder, repeat_weight=2.0, hide=["session"])
    answer = hidden.answer(PermittedView(ALL, session=(Event("date"),)), asked())
    assert answer is not None
    assert answer.items == ("banana",)
    # Other sources have no such table.
    answer = model.answer(PermittedView(ALL, online_history=(Event("date"),)), asked())
    assert answer is not None
    assert answer.items == ("banana",)


@pytest.mark.parametrize(
    "table",
    [np.ones((2, 3), np.float32), np.full((2, 2), 1.5, np.float32), np.full((2, 2), np.nan, np.float32),
     np.ones((2, 2), np.float64), np.ones(4, np.float32), np.zeros((0, 0), np.float32)],
)  # fmt: skip
def test_a_table_of_repeats_holds_probabilities(folder: Path, table: Any) -> None:
    path = folder / f"bundle {len(list(folder.iterdir()))}"
    write_linear(path, Tier.SESSION)
    bundle = open_bundle(path)
    with pytest.raises(BundleMalformed, match="repeats"):
        LinearScorer(dataclasses.replace(bundle, arrays={**bundle.arrays, "repeats": table}), None)


def test_an_event_counts_less_the_older_it_is_than_the_newest_of_all_sources(folder: Path) -> None:
    model = scorer(folder, recency_half_life=10.0)
    newest = dt.datetime(2026, 3, 31, tzinfo=dt.UTC)
    view = PermittedView(
        ALL,
        online_history=(Event("date", newest - dt.timedelta(days=10)), Event("apple", newest)),
        crm_history=(Event("apple", newest - dt.timedelta(days=20)), Event("apple", None)),
    )
    found = model.answer(view, asked())
    assert found is not None
    # Apple: online 1, CRM 2 (that without a time counts as new); date: half of online's 1.
    assert dict(zip(found.items, found.scores, strict=True)) == {"banana": 3 * 1 + 0.5 * 4, "cherry": 3 * 2}
    later = Event("date", newest + dt.timedelta(days=10), "remove")
    again = model.answer(dataclasses.replace(view, online_history=(*view.online_history, later)), asked())
    assert again == found  # what shows no interest makes nothing older


def test_only_the_latest_events_of_each_source_are_read(folder: Path) -> None:
    view = PermittedView(ALL, online_history=(Event("date"), Event("mango"), Event("apple")))
    found = scorer(folder, max_history=2).answer(view, asked())
    assert found is not None
    assert (found.items, found.unknown_items) == (("cherry", "banana"), 1)


def test_attributes_fade_as_the_history_grows(folder: Path) -> None:
    north = {"region": "north", "shoe": "42"}
    model = scorer(folder, attribute_weight=3.0, attribute_fade=1.0)
    alone = model.answer(PermittedView(ALL, attributes=north), asked())
    assert alone is not None
    assert (alone.items, alone.scores) == (("date",), (3 * 8,))
    known = model.answer(PermittedView(ALL, online_history=(Event("apple"),), attributes=north), asked())
    assert known is not None
    assert dict(zip(known.items, known.scores, strict=True))["date"] == 3 * 8 / 2
    both = model.answer(PermittedView(ALL, attributes={**north, "age": 31}), asked())
    assert both is not None
    assert both.scores == (3 * 8 / 2,)  # together they count attribute_weight


def test_nothing_known_is_no_answer_and_no_score_is_an_empty_one(folder: Path) -> None:
    model = scorer(folder)
    assert model.answer(PermittedView(ALL), asked()) is None
    assert model.answer(PermittedView(ALL, session=(Event("mango"),)), asked()) is None
    found = model.answer(PermittedView(ALL, session=(Event("banana"),)), asked())
    assert found is not None
    assert found.items == ()


def test_a_source_without_weight_is_not_read(folder: Path) -> None:
    model = scorer(folder, source_weights={"crm": 1.0})
    assert model.answer(PermittedView(ALL, online_history=(Event("apple"),)), asked()) is None


def test_sensitive_items_count_as_unknown_and_are_not_shown(folder: Path) -> None:
    model = scorer(folder, Catalogue(frozenset(FRUIT), frozenset({"apple", "banana"})))
    view = PermittedView(ALL, online_history=(Event("apple"), Event("date")))
    found = model.answer(view, asked())
    assert found is not None
    assert (found.items, found.unknown_items) == ((), 1)
    assert model.related(["apple"], asked()) is None


def test_hidden_sources_do_not_come_again(folder: Path) -> None:
    view = PermittedView(ALL, (Event("apple"),), (Event("banana"),), (Event("cherry"),))
    found = scorer(folder, hide=["online", "crm"]).answer(view, asked())
    assert found is not None
    assert found.not_again == {"banana", "cherry"}
    found = scorer(folder, hide=["online"]).answer(view, asked())
    assert found is not None
    assert found.items == ("cherry",)


def test_related_items_are_not_the_items_themselves(folder: Path) -> None:
    found = scorer(folder).related(["apple", "banana", "apple", "mango"], asked())
    assert found is not None
    assert (found.items, found.scores) == (("cherry",), (2,))


_MODELS: dict[Path, LinearScorer] = {}


@given(order=st.permutations(["apple", "date", "apple", "mango"]), source=st.sampled_from(["online", "crm"]))
def test_the_order_in_which_a_store_returns_a_history_does_not_matter(
    folder: Path, order: list[str], source: str
) -> None:
    if folder not in _MODELS:
        _MODELS[folder] = scorer(folder)
    model = _MODELS[folder]
    history = tuple(Event(item) for item in order)
    view = PermittedView(ALL, **{f"{source}_history": history})  # type: ignore[arg-type]
    straight = PermittedView(ALL, **{f"{source}_history": tuple(sorted(history, key=lambda e: e.item_id))})  # type: ignore[arg-type]
    assert model.answer(view, asked()) == model.answer(straight, asked())


def popular(folder: Path, catalogue: Catalogue | None = None) -> PopularScorer:
    path = folder / f"bundle {len(list(folder.iterdir()))}"
    write_popular(path, FRUIT)
    return PopularScorer(open_bundle(path), catalogue)


def test_each_side_has_a_popular_list_of_its_own(folder: Path) -> None:
    model = popular(folder)
    assert model.top(Query(9, Side.ONLINE)) == list(FRUIT)
    assert model.top(Query(2, Side.CRM)) == ["date", "cherry"]


def test_items_that_nobody_counted_come_last_by_id(folder: Path) -> None:
    model = popular(folder, Catalogue(frozenset({"zucchini", "elder", "banana"})))
    assert model.top(Query(9, Side.ONLINE)) == ["banana", "elder", "zucchini"]
    barred = Query(
        9, Side.ONLINE, exclude=frozenset({"elder"}), allow=frozenset({"elder", "zucchini", "date"})
    )
    assert model.top(barred, without=frozenset({"banana"})) == ["zucchini"]


def test_what_a_filter_keeps_out_is_not_looked_at_item_by_item(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short list of allowed items costs no pass over all others in Python."""
    items = [f"item-{number:05}" for number in range(5000)]
    write_popular(folder / "many", items)
    catalogue = Catalogue(frozenset(items), attributes={item: {"rare": item == items[-1]} for item in items})
    model = PopularScorer(open_bundle(folder / "many"), catalogue)
    looked_at: list[int] = []
    name = model._item
    monkeypatch.setattr(model, "_item", lambda number: looked_at.append(number) or name(number))
    last = [items[-1]]
    assert model.top(Query(5, Side.ONLINE, where=Expression("rare"))) == last
    assert model.top(Query(5, Side.ONLINE, allow=frozenset(last))) == last
    assert model.top(Query(5, Side.ONLINE, where=Expression("rare"), allow=frozenset(items[:9]))) == []
    assert len(looked_at) == 2
    allowed = frozenset(items[1000:])
    assert (
        model.top(Query(5, Side.ONLINE, allow=allowed))
        == [item for item in model.top(Query(5000, Side.ONLINE)) if item in allowed][:5]
    )


def test_counts_of_another_length_are_refused(folder: Path) -> None:
    path = folder / "short"
    write_popular(path, FRUIT)
    bundle = open_bundle(path)
    object.__setattr__(bundle, "arrays", {**bundle.arrays, "crm_counts": np.zeros(3, np.int64)})
    with pytest.raises(BundleMalformed, match=r"crm_counts\.npy has shape"):
        PopularScorer(bundle, None)


def test_settings_read_back_as_they_were_written() -> None:
    settings = ScoringSettings({"crm": 2.0}, {"cart": 3.0}, 1.5, ("crm",), 7, 0.5, 2.0)
    assert ScoringSettings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize("wrong", [np.bool_, np.float32, np.float64])
def test_counts_that_are_none_are_refused(folder: Path, wrong: Any) -> None:
    write_popular(folder / f"counts-{wrong.__name__}", FRUIT)
    bundle = open_bundle(folder / f"counts-{wrong.__name__}")
    arrays = {**bundle.arrays, "crm_counts": bundle.arrays["crm_counts"].astype(wrong)}
    with pytest.raises(BundleMalformed, match=r"crm_counts\.npy has shape .* and type"):
        PopularScorer(dataclasses.replace(bundle, arrays=arrays), None)


@pytest.mark.parametrize("kind", [np.uint64, np.int32, np.uint32])
def test_a_matrix_may_count_its_entries_in_any_whole_numbers(folder: Path, kind: Any) -> None:
    name = f"indptr-{kind.__name__}"
    write_linear(folder / name, Tier.FUSED, items=FRUIT)
    bundle = open_bundle(folder / name)
    arrays = {**bundle.arrays, "indptr": bundle.arrays["indptr"].astype(kind)}
    view = PermittedView(ALL, session=(Event("apple"),))
    query = Query(3, Side.ONLINE, explain=True)
    expected = LinearScorer(bundle, None).answer(view, query)
    assert LinearScorer(dataclasses.replace(bundle, arrays=arrays), None).answer(view, query) == expected


def test_filters_of_requests_are_kept_within_their_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(frozenset(FRUIT), attributes={item: {"price": 1.0} for item in FRUIT})
    shelf = scorer(folder, catalogue)._shelf
    expressions = [Expression(f"price < {number}") for number in range(2, 9)]
    for expression in expressions:
        size = sum(part.nbytes for part in shelf.fitting(expression))
    monkeypatch.setattr(shelf_module, "_FILTER_BYTES", 3 * size)
    shelf._filtered, shelf._filter_bytes = {}, 0
    for expression in (*expressions, *expressions):
        shelf.fitting(expression)
        assert 1 <= len(shelf._filtered) <= 3
