from __future__ import annotations

import numpy as np
from scipy import sparse

from consentier.models.popularity import Popularity

HISTORIES = sparse.csr_matrix([[1.0, 0, 3, 1], [0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0]])


def test_items_rank_by_distinct_persons_and_equal_ones_by_id() -> None:
    model = Popularity().fit(HISTORIES, show_progress=False)

    ids, scores = model.recommend(0, sparse.csr_matrix((1, 4)), N=4)

    assert ids.tolist() == [2, 3, 0, 1]
    assert scores.tolist() == [3.0, 2.0, 1.0, 1.0]


def test_a_person_with_several_rows_counts_once() -> None:
    model = Popularity().fit(HISTORIES, show_progress=False, persons=np.array([0, 0, 0, 1]))
    assert model.popularity.tolist() == [1, 1, 1, 1]


def test_counts_of_fewer_than_min_persons_are_not_told() -> None:
    model = Popularity(min_persons=2).fit(HISTORIES, show_progress=False)
    assert model.popularity.tolist() == [0, 0, 3, 2]


def test_only_items_are_counted_where_there_are_other_inputs() -> None:
    model = Popularity(item_count=3).fit(HISTORIES, show_progress=False)
    assert model.popularity.tolist() == [1, 1, 3]
    assert model.weights.shape == (4, 3)


def test_no_input_of_the_history_explains_a_count() -> None:
    model = Popularity().fit(HISTORIES, show_progress=False)
    assert model.explain(0, HISTORIES[0], 2) == (3.0, [])
    assert model.similar_items(2)[0].size == 0
