from __future__ import annotations

import importlib.util
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score

from consentier.training import metrics

ITEMS = 12
NEXT_ITEM_SCORER = Path(__file__).parents[3] / "shared" / "bench" / "score_next_item.py"

Case = tuple[list[list[int]], list[list[int]]]


@st.composite
def cases(draw: st.DrawFn, width: int = 6) -> Case:
    """Lists of distinct items (at most ``width``) and non-empty relevant sets, one each per request."""
    items = st.integers(0, ITEMS - 1)
    requests = draw(st.integers(1, 6))
    lists = [draw(st.lists(items, unique=True, max_size=width)) for _ in range(requests)]
    relevant = [draw(st.lists(items, unique=True, min_size=1)) for _ in range(requests)]
    return lists, relevant


def padded(lists: list[list[int]], width: int = 6) -> NDArray[np.int64]:
    return np.array([row + [-1] * (width - len(row)) for row in lists], dtype=np.int64)


def reference(shown: list[int], wanted: set[int], cutoff: int) -> dict[str, float]:
    """The textbook definitions, one place at a time."""
    gain = ideal = precision_sum = reciprocal = 0.0
    hits = 0
    for rank, item in enumerate(shown[:cutoff], start=1):
        if item in wanted:
            hits += 1
            gain += 1 / math.log2(rank + 1)
            precision_sum += hits / rank
            reciprocal = reciprocal or 1 / rank
    for rank in range(1, min(cutoff, len(wanted)) + 1):
        ideal += 1 / math.log2(rank + 1)
    best = min(cutoff, len(wanted))
    return {
        "hit_rate": float(hits > 0),
        "recall": hits / len(wanted),
        "capped_recall": hits / best,
        "ndcg": gain / ideal,
        "mrr": reciprocal,
        "map": precision_sum / best,
    }


@given(cases())
def test_every_metric_equals_its_textbook_definition(case: Case) -> None:
    lists, relevant = case
    cutoffs = (1, 3, 6)
    result = metrics.rank_metrics(padded(lists), relevant, cutoffs)
    for request, (shown, wanted) in enumerate(zip(lists, relevant, strict=True)):
        for cutoff in cutoffs:
            for name, expected in reference(shown, set(wanted), cutoff).items():
                assert result[f"{name}@{cutoff}"][request] == pytest.approx(expected, abs=1e-12)


@given(cases())
def test_single_functions_equal_the_table(case: Case) -> None:
    lists, relevant = padded(case[0]), metrics.Relevant.from_lists(case[1])
    table = metrics.rank_metrics(lists, relevant, [4])
    single = {
        "hit_rate": metrics.hit_rate,
        "recall": metrics.recall,
        "capped_recall": metrics.capped_recall,
        "ndcg": metrics.ndcg,
        "mrr": metrics.mrr,
        "map": metrics.average_precision,
    }
    assert set(table) == {f"{name}@4" for name in single}
    for name, function in single.items():
        values = function(lists, relevant, 4)
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, table[f"{name}@4"])


@given(st.lists(st.integers(0, 500), unique=True, min_size=1, max_size=40), st.integers(1, 20))
def test_the_best_list_scores_exactly_one(wanted: list[int], cutoff: int) -> None:
    shown = np.full((1, cutoff), -1)
    shown[0, : len(wanted)] = wanted[:cutoff]
    result = metrics.rank_metrics(shown, [wanted], [cutoff])
    for name in ("hit_rate", "capped_recall", "ndcg", "mrr", "map"):
        assert result[f"{name}@{cutoff}"][0] == 1.0
    assert result[f"recall@{cutoff}"][0] == min(cutoff, len(wanted)) / len(wanted)


@given(cases())
def test_hits_beyond_the_cutoff_change_nothing(case: Case) -> None:
    lists = padded(case[0])
    whole = metrics.rank_metrics(lists, case[1], [2])
    cut = metrics.rank_metrics(lists[:, :2], case[1], [2])
    for name in whole:
        np.testing.assert_array_equal(whole[name], cut[name])


def test_ndcg_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    lists = np.array([rng.permutation(50) for _ in range(40)])
    relevant = [rng.choice(50, size=rng.integers(1, 9), replace=False) for _ in range(40)]
    for row, (shown, wanted) in enumerate(zip(lists, relevant, strict=True)):
        truth, score = np.zeros((1, 50)), np.zeros((1, 50))
        truth[0, wanted] = 1
        score[0, shown] = -np.arange(50.0)
        for cutoff in (5, 20):
            expected = ndcg_score(truth, score, k=cutoff)
            assert metrics.ndcg(lists, relevant, cutoff)[row] == pytest.approx(expected, abs=1e-12)


@pytest.mark.real_data
@pytest.mark.skipif(not NEXT_ITEM_SCORER.exists(), reason="the next-item scorer is not beside the repository")
def test_next_item_scores_agree_with_the_published_protocol() -> None:
    pytest.importorskip("polars")
    spec = importlib.util.spec_from_file_location("score_next_item", NEXT_ITEM_SCORER)
    assert spec is not None
    assert spec.loader is not None
    scorer: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    rng = np.random.default_rng(11)
    sessions = [(number, rng.integers(0, 40, size=6).tolist(), list(range(6))) for number in range(60)]
    lists = {item: rng.permutation(40)[:20].tolist() for item in range(40)}
    expected = scorer.score(lambda prefix, k: lists[prefix[-1]][:k], sessions, k=20)

    requests = [(items[place - 1], items[place]) for _, items, _ in sessions for place in range(1, 6)]
    shown, targets = np.array([lists[last] for last, _ in requests]), [[target] for _, target in requests]
    result = {
        name: round(float(v.mean()), 4) for name, v in metrics.rank_metrics(shown, targets, [20]).items()
    }
    assert result["hit_rate@20"] == expected["HR@20"] == result["recall@20"]
    assert result["mrr@20"] == expected["MRR@20"] == result["map@20"]
    assert result["ndcg@20"] == expected["NDCG@20"]
    assert 0.3 < result["hit_rate@20"] < 0.7


def test_csr_and_lists_are_the_same_relevant_sets() -> None:
    lists = [[3, 1], [2], [0, 5, 4]]
    relevant = metrics.Relevant(np.array([0, 2, 3, 6]), np.array([3, 1, 2, 0, 5, 4]))
    shown = np.array([[1, 2], [1, 2], [9, 8]])
    np.testing.assert_array_equal(metrics.mrr(shown, relevant, 2), [1.0, 0.5, 0.0])
    np.testing.assert_array_equal(metrics.mrr(shown, lists, 2), [1.0, 0.5, 0.0])
    np.testing.assert_array_equal(relevant.counts, [2, 1, 3])


def test_the_last_item_of_a_set_may_open_the_next_set() -> None:
    relevant = metrics.Relevant.from_lists([[1, 4], [4], [4, 5]])
    np.testing.assert_array_equal(metrics.recall([[4, 1], [4, 0], [5, 0]], relevant, 2), [1.0, 1.0, 0.5])


def test_padding_is_never_a_hit() -> None:
    np.testing.assert_array_equal(metrics.hit_rate([[-1, -1], [0, -1]], [[0], [0]], 2), [0.0, 1.0])


def test_no_requests_give_empty_results() -> None:
    assert metrics.ndcg(np.zeros((0, 3), dtype=np.int64), [], 3).shape == (0,)


@pytest.mark.parametrize(
    ("recommended", "relevant", "cutoff", "error", "message"),
    [
        ([[1, 2]], [[1], [2]], 1, ValueError, "1 lists .* 2 requests"),
        ([[1, 2]], [[1]], 3, ValueError, "cutoff 3 is not within 1 to 2"),
        ([[1, 2]], [[1]], 0, ValueError, "cutoff 0"),
        ([[1, 2]], [[1]], 1.0, TypeError, "cutoff"),
        ([[1, 1]], [[1]], 1, ValueError, r"recommended\[0\] names an item twice"),
        ([[1, 2], [-1, 2]], [[1], [1]], 1, ValueError, r"recommended\[1\] has padding before an item"),
        ([[-2, 2]], [[1]], 1, ValueError, "padding"),
        ([[1.0, 2.0]], [[1]], 1, TypeError, "float64"),
        ([1, 2], [[1]], 1, ValueError, "dimension"),
        ([[1, 2], [1, 2]], [[1], []], 1, ValueError, "request 1 has no relevant item"),
        ([[1, 2]], [[3, 3]], 1, ValueError, "item 3 stands twice"),
        ([[1, 2]], [[-1]], 1, ValueError, "relevant items"),
    ],
)
def test_what_is_not_a_ranking_is_refused(
    recommended: Any, relevant: Any, cutoff: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        metrics.ndcg(recommended, relevant, cutoff)


@pytest.mark.parametrize("indptr", [[], [1, 2], [0, 1], [0, 3, 2]])
def test_row_pointers_that_do_not_fit_are_refused(indptr: list[int]) -> None:
    with pytest.raises(ValueError, match="indptr"):
        metrics.Relevant(np.array(indptr, dtype=np.int64), np.array([1, 2]))


@given(cases())
def test_list_statistics_equal_their_definitions(case: Case) -> None:
    lists = case[0]
    popularity = np.arange(ITEMS)[::-1] ** 2
    categories = np.array([0, 0, 1, 1, 2, -1, 0, 3, 3, 1, -1, 2])
    shown = padded(lists)
    filled = [row for row in lists if row]
    flat = [item for row in lists for item in row]

    assert metrics.coverage(shown, ITEMS) == len(set(flat)) / ITEMS
    if not filled:
        assert metrics.novelty(shown, popularity) is None
        assert metrics.popularity_bias(shown, popularity) is None
        assert metrics.exposure_gini(shown, ITEMS) is None
    else:
        share = (popularity + 1) / (popularity.sum() + ITEMS)
        novelty = np.mean([np.mean([-math.log2(share[item]) for item in row]) for row in filled])
        bias = np.mean([np.mean([popularity[item] for item in row]) for row in filled]) / popularity.mean()
        exposure = [flat.count(item) for item in range(ITEMS)]
        gaps = sum(abs(a - b) for a in exposure for b in exposure)
        assert metrics.novelty(shown, popularity) == pytest.approx(novelty)
        assert metrics.popularity_bias(shown, popularity) == pytest.approx(bias)
        assert metrics.exposure_gini(shown, ITEMS) == pytest.approx(gaps / (2 * ITEMS * len(flat)))

    shares = []
    for row in lists:
        known = [categories[item] for item in row if categories[item] >= 0]
        pairs = list(combinations(known, 2))
        if pairs:
            shares.append(np.mean([a != b for a, b in pairs]))
    expected = pytest.approx(np.mean(shares)) if shares else None
    assert metrics.intra_list_diversity(shown, categories) == expected


def test_list_statistics_of_known_cases() -> None:
    everything = np.arange(8).reshape(2, 4)
    assert metrics.coverage(everything, 8) == 1.0
    assert metrics.exposure_gini(everything, 8) == 0.0
    assert metrics.popularity_bias(everything, np.arange(8)) == 1.0
    assert metrics.novelty(everything, np.zeros(8)) == 3.0
    assert metrics.popularity_bias(everything, np.zeros(8)) is None
    one_item = np.array([[5], [5]])
    assert metrics.exposure_gini(one_item, 8) == pytest.approx(1 - 1 / 8)
    assert metrics.intra_list_diversity(everything, np.zeros(8, dtype=np.int64)) == 0.0
    assert metrics.intra_list_diversity(everything, np.arange(8)) == 1.0
    assert metrics.intra_list_diversity(one_item, np.arange(8)) is None


def test_list_statistics_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="names item 5, but there are only 3"):
        metrics.coverage([[5]], 3)
    with pytest.raises(ValueError, match="at least one item"):
        metrics.coverage(np.zeros((0, 1), dtype=np.int64), 0)
    with pytest.raises(ValueError, match="popularity"):
        metrics.novelty([[0]], [-1.0])
    with pytest.raises(ValueError, match="categories"):
        metrics.intra_list_diversity([[0]], [-2])
