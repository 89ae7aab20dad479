"""The compiled session neighbours against the same written naively."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from benchmarks.quality.session_knn import VMIS, VSKNN, VSTAN
from benchmarks.quality.splits import Sessions
from hypothesis import given
from hypothesis import strategies as st

ITEMS = 8

Past = list[list[int]]
Scores = dict[int, float]


def ragged(past: Past) -> Sessions:
    """The sessions, one a day."""
    lengths = [len(items) for items in past]
    times = np.repeat(np.arange(len(past)) * 86_400.0, lengths)
    return Sessions(np.cumsum([0, *lengths]), np.array([i for each in past for i in each]), times)


def idf(past: Past, item: int) -> float:
    return math.log(len(past) / sum(item in each for each in past))


def last_place(prefix: list[int]) -> dict[int, int]:
    return {item: place for place, item in enumerate(prefix, 1)}


def nearest(similarity: dict[int, float], neighbours: int) -> list[tuple[int, float]]:
    return sorted(similarity.items(), key=lambda pair: (-round(pair[1], 12), -pair[0]))[:neighbours]


def recent_sharing(past: Past, prefix: list[int], sample_size: int) -> list[int]:
    return [s for s, items in enumerate(past) if set(items) & set(prefix)][-sample_size:]


def naive_vsknn(past: Past, prefix: list[int], neighbours: int, sample_size: int) -> Scores:
    place = last_place(prefix)
    similarity = {
        s: sum(place[i] / len(prefix) for i in set(past[s]) & set(prefix)) / len(place)
        for s in recent_sharing(past, prefix, sample_size)
    }
    scores: Scores = {}
    for s, value in nearest(similarity, neighbours):
        distance = 1 + len(prefix) - max(place.get(i, 0) for i in past[s])
        for item in set(past[s]):
            scores[item] = scores.get(item, 0) + value / distance * (1 + idf(past, item))
    return scores


def naive_vmis(past: Past, prefix: list[int], neighbours: int, sample_size: int) -> Scores:
    place = last_place(prefix)
    similarity: dict[int, float] = {}
    for item in sorted(place, key=lambda each: -place[each]):
        for s in [s for s, items in enumerate(past) if item in items][-sample_size:][::-1]:
            if s in similarity:
                similarity[s] += place[item] / len(prefix)
            elif len(similarity) < sample_size:
                similarity[s] = place[item] / len(prefix)
            elif s > min(similarity):
                del similarity[min(similarity)]
                similarity[s] = place[item] / len(prefix)
            else:
                break
    scores: Scores = {}
    for s, value in nearest(similarity, neighbours):
        distance = 1 + len(prefix) - max(place.get(i, 0) for i in past[s])
        for item in set(past[s]):
            weight = value * max(0.0, 1 - 0.1 * distance)
            scores[item] = scores.get(item, 0) + weight * (1 + idf(past, item))
    return scores


def naive_vstan(past: Past, prefix: list[int], neighbours: int, sample_size: int) -> Scores:
    place, now = last_place(prefix), len(past) * 86_400.0
    weight = {item: math.exp((place[item] - len(prefix)) / 1.5) for item in place}
    norm = math.sqrt(sum(each**2 for each in weight.values()))
    similarity = {
        s: sum(weight[i] for i in set(past[s]) & set(prefix))
        / (norm * math.sqrt(len(set(past[s]))))
        * math.exp(-(now - s * 86_400) / (10 * 86_400))
        for s in recent_sharing(past, prefix, sample_size)
    }
    scores: Scores = {}
    for s, value in nearest(similarity, neighbours):
        matched = max(k for k, item in enumerate(past[s]) if item in place)
        fade = math.exp(-(len(prefix) - max(place.get(i, 0) for i in past[s])) / 3.0)
        for item, k in {item: k for k, item in enumerate(past[s])}.items():
            near = math.exp(-abs(k - matched) / 2.0)
            scores[item] = scores.get(item, 0) + value * fade * near * (1 + idf(past, item))
    return scores


NAIVE = {VSKNN: naive_vsknn, VMIS: naive_vmis, VSTAN: naive_vstan}
sessions = st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=5), min_size=1, max_size=12)
prefixes = st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=6), min_size=1, max_size=3)


@pytest.mark.parametrize("model", NAIVE, ids=lambda model: model.__name__)
@given(past=sessions, asked=prefixes, neighbours=st.integers(1, 6), sample_size=st.integers(1, 8))
def test_compiled_and_naive_neighbours_agree(
    model: type, past: Past, asked: Past, neighbours: int, sample_size: int
) -> None:
    decays = {"position_decay": 1.5, "age_decay_days": 10.0, "neighbour_decay": 2.0, "match_decay": 3.0}
    fitted = model(
        item_count=ITEMS,
        neighbours=neighbours,
        sample_size=sample_size,
        **(decays if model is VSTAN else {}),
    )
    fitted.fit(ragged(past))
    naive: Callable[[Past, list[int], int, int], Scores] = NAIVE[model]
    for prefix in asked:
        found = fitted.recommend(np.array(prefix), len(past) * 86_400.0, 5).tolist()
        scores = {i: s for i, s in naive(past, prefix, neighbours, sample_size).items() if s > 0}
        assert len(found) == min(5, len([s for s in scores.values() if s > 0]))
        expected = sorted(scores.values(), reverse=True)[: len(found)]
        assert [scores[item] for item in found] == pytest.approx(expected)
