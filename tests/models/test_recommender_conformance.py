"""What every item model does. Models are discovered, so that a new one cannot dodge these tests."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

import consentier.models
from consentier.models.als import ALS
from consentier.models.base import ItemModel, LinearItemModel, MatrixConverted
from consentier.models.bpr import BPR
from consentier.models.factors import FactorModel
from consentier.models.item_knn import ItemKNN
from consentier.models.local_ridge import LocalRidge
from consentier.models.spectral import Spectral


def discovered() -> Iterator[type[ItemModel]]:
    for module in pkgutil.iter_modules(consentier.models.__path__):
        members = vars(importlib.import_module(f"consentier.models.{module.name}")).values()
        for member in members:
            if (
                inspect.isclass(member)
                and issubclass(member, ItemModel)
                and not inspect.isabstract(member)
                and member.__module__.endswith(f".{module.name}")
            ):
                yield member


MODELS = sorted(discovered(), key=lambda model: model.__name__)
VARIANTS: list[tuple[type[ItemModel], dict[str, Any]]] = [
    *((model, {}) for model in MODELS),
    (ItemKNN, {"similarity": "tfidf"}),
    (ItemKNN, {"similarity": "bm25", "neighbours": 30}),
    (ItemKNN, {"similarity": "bm25", "k1": 0.1, "b": 0.5}),
    (LocalRidge, {"neighbours": 30, "repeat_weight": 0.5}),
    (LocalRidge, {"second_hop_weight": 0.7, "second_hop_items": 5}),
    (LocalRidge, {"row_exponent": 0.0, "item_exponent": 0.0, "popularity_regularisation": 0.1}),
    (ALS, {"factors": 6, "regularisation": 1.0, "frequency_exponent": 0.0, "unobserved_weight": 1.0}),
    (BPR, {"factors": 70, "iterations": 40, "learning_rate": 0.1, "seed": 3}),
    (Spectral, {"factors": 6, "unobserved_weight": 0.3, "spectral_exponent": 2.5, "unit_rank": 2}),
    (ALS, {"factors": 6, "repeat_weight": 0.4}),
    (Spectral, {"factors": 5, "unobserved_weight": 0.3, "unit_rank": 2, "repeat_weight": 0.2}),
]


def variants_of(family: type[Any], *, personalised: bool = False) -> pytest.MarkDecorator:
    chosen = [
        (model, settings)
        for model, settings in VARIANTS
        if issubclass(model, family) and (model.personalised or not personalised)
    ]
    names = [f"{m.__name__}-{s}" if s else m.__name__ for m, s in chosen]
    return pytest.mark.parametrize(("model", "settings"), chosen, ids=names)


every_model = variants_of(ItemModel)
personal_models = variants_of(ItemModel, personalised=True)
linear_models = variants_of(LinearItemModel)
factor_models = variants_of(FactorModel)


def checkerboard(size: int = 50) -> sparse.csr_matrix:
    """Even users like all even items and odd users all odd ones, but for the item with the user's own number.

    So the best recommendation for a user is the item with the user's number.
    """
    board = (np.add.outer(np.arange(size), np.arange(size)) % 2 == 0).astype(np.float32)
    np.fill_diagonal(board, 0)
    return sparse.csr_matrix(board)


def shop(users: int = 120, items: int = 60, seed: int = 5) -> sparse.csr_matrix:
    """Random histories over items of falling popularity; the last item was never bought."""
    rng = np.random.default_rng(seed)
    chance = 0.3 * (1 - np.arange(items) / items) ** 2
    bought = rng.random((users, items)) < chance
    bought[:, -1] = False
    return sparse.csr_matrix(bought * rng.integers(1, 4, (users, items)).astype(np.float32) / 2)


def fitted(model: type[ItemModel], settings: dict[str, Any], histories: sparse.csr_matrix) -> ItemModel:
    return model(**settings).fit(histories, show_progress=False)


def empty(count: int, inputs: int) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.zeros((count, inputs), dtype=np.float32))


def test_models_are_discovered() -> None:
    assert {"ALS", "BPR", "ItemKNN", "LocalRidge", "Popularity"} <= {model.__name__ for model in MODELS}
    families = {LinearItemModel, FactorModel}
    assert all(len([family for family in families if issubclass(model, family)]) == 1 for model in MODELS)


@personal_models
def test_the_checkerboard_is_completed(model: type[ItemModel], settings: dict[str, Any]) -> None:
    board = checkerboard()
    recommender = fitted(model, settings, board)
    for user in range(50):
        ids, _ = recommender.recommend(user, board[user], N=1)
        assert ids.tolist() == [user]
        similar, scores = recommender.similar_items(user, N=10)
        assert similar.size > 0
        assert user not in similar
        assert (similar % 2 == user % 2).all()
        assert (np.diff(scores) <= 0).all()


@every_model
def test_exactly_n_items_and_none_of_them_seen(model: type[ItemModel], settings: dict[str, Any]) -> None:
    histories = shop()
    recommender = fitted(model, settings, histories)
    for user in range(120):
        seen = set(histories[user].indices.tolist())
        for count in (0, 1, 7, 60 - len(seen)):
            ids, scores = recommender.recommend(user, histories[user], N=count)
            assert ids.shape == scores.shape == (count,)
            assert len(set(ids.tolist())) == count
            assert not seen & set(ids.tolist())
            assert (np.diff(scores) <= 0).all()
        everything, _ = recommender.recommend(user, histories[user], N=1000)
        assert sorted(everything.tolist()) == sorted(set(range(60)) - seen)
        unfiltered, _ = recommender.recommend(user, histories[user], N=1000, filter_already_liked_items=False)
        assert sorted(unfiltered.tolist()) == list(range(60))


@every_model
def test_a_batch_equals_single_requests(model: type[ItemModel], settings: dict[str, Any]) -> None:
    histories = shop()
    recommender = fitted(model, settings, histories)
    users = np.array([3, 50, 3, 119])

    ids, scores = recommender.recommend(users, histories[users], N=55)

    assert ids.shape == scores.shape == (4, 55)
    assert ids.dtype == np.int64
    assert scores.dtype == np.float64
    for row, user in enumerate(users):
        single_ids, single_scores = recommender.recommend(user, histories[user], N=55)
        length = single_ids.size
        assert ids[row, :length].tobytes() == single_ids.tobytes()
        assert scores[row, :length].tobytes() == single_scores.tobytes()
        # padded only because the catalogue is exhausted
        assert length == min(55, 60 - histories[user].nnz)
        assert (ids[row, length:] == -1).all()
        assert (scores[row, length:] == -np.inf).all()
    no_ids, no_scores = recommender.recommend(np.zeros(0, dtype=int), histories[:0], N=4)
    assert no_ids.shape == no_scores.shape == (0, 4)

    similar, weights = recommender.similar_items(users % 60, N=20)
    for row, item in enumerate(users % 60):
        single_ids, single_scores = recommender.similar_items(item, N=20)
        assert similar[row, : single_ids.size].tobytes() == single_ids.tobytes()
        assert weights[row, : single_ids.size].tobytes() == single_scores.tobytes()
        assert (similar[row, single_ids.size :] == -1).all()


@every_model
def test_an_empty_history_gets_the_popular_items(model: type[ItemModel], settings: dict[str, Any]) -> None:
    histories = shop()
    recommender = fitted(model, settings, histories)
    popularity = (histories.toarray() > 0).sum(axis=0)

    ids, _ = recommender.recommend(0, empty(1, 60), N=60)

    assert ids.tolist() == np.lexsort((np.arange(60), -popularity)).tolist()
    assert recommender.popularity.tolist() == popularity.tolist()


@every_model
@pytest.mark.parametrize("users", [0, 3])
@pytest.mark.parametrize("attributes", [0, 2])
def test_a_fit_on_nothing_gives_a_model_that_answers(
    model: type[ItemModel], settings: dict[str, Any], users: int, attributes: int
) -> None:
    recommender = fitted(model, {**settings, "item_count": 4}, empty(users, 4 + attributes))
    history = sparse.csr_matrix(np.ones((1, 4 + attributes), dtype=np.float32))
    ids, scores = recommender.recommend(0, history, N=4, filter_already_liked_items=False)
    assert sorted(ids.tolist()) == [0, 1, 2, 3]
    assert np.isfinite(scores).all()
    assert recommender.similar_items(1)[0].size == 0
    assert recommender.popularity.tolist() == [0] * 4


@every_model
def test_filtered_items_are_never_returned(model: type[ItemModel], settings: dict[str, Any]) -> None:
    histories = shop()
    recommender = fitted(model, settings, histories)
    whole, _ = recommender.recommend(4, histories[4], N=60)
    hidden = whole[::2]

    ids, _ = recommender.recommend(4, histories[4], N=5, filter_items=hidden)
    assert ids.tolist() == whole[1::2][:5].tolist()
    similar, _ = recommender.similar_items(0, N=60)
    left, _ = recommender.similar_items(0, N=60, filter_items=similar[::2])
    assert left.tolist() == similar[1::2].tolist()


@every_model
def test_only_the_given_items_are_ranked(model: type[ItemModel], settings: dict[str, Any]) -> None:
    histories = shop()
    recommender = fitted(model, settings, histories)
    whole, _ = recommender.recommend(4, histories[4], N=60)
    chosen = np.sort(whole[3:9])

    ids, _ = recommender.recommend(4, histories[4], N=10, items=chosen)
    assert ids.tolist() == whole[3:9].tolist()
    assert recommender.recommend(4, histories[4], items=[])[0].size == 0
    similar, _ = recommender.similar_items(0, N=60)
    assert recommender.similar_items(0, items=similar[:2])[0].tolist() == similar[:2].tolist()


@every_model
def test_wrong_arguments_are_named(model: type[ItemModel], settings: dict[str, Any]) -> None:
    histories = shop()
    recommender = fitted(model, settings, histories)
    one = histories[0]
    for wrong in (-1, 60):
        with pytest.raises(IndexError, match="filter_items"):
            recommender.recommend(0, one, filter_items=[wrong])
        with pytest.raises(IndexError, match="items"):
            recommender.recommend(0, one, items=[3, wrong])
        with pytest.raises(IndexError, match="itemid"):
            recommender.similar_items(wrong)
        with pytest.raises(IndexError, match="itemid"):
            recommender.explain(0, one, wrong)
    with pytest.raises(ValueError, match="together"):
        recommender.recommend(0, one, items=[1], filter_items=[2])
    with pytest.raises(ValueError, match="N must"):
        recommender.recommend(0, one, N=-1)
    with pytest.raises(ValueError, match=r"user_items\[userid\]"):
        recommender.recommend(0, histories)
    with pytest.raises(ValueError, match="59"):
        recommender.recommend(0, empty(1, 59))
    with pytest.raises(ValueError, match="finite"):
        recommender.recommend(0, one * np.float32(np.nan))
    with pytest.raises(TypeError, match="items"):
        recommender.recommend(0, one, items=[1.5])
    with pytest.raises(TypeError, match="userid"):
        recommender.recommend("0", one)
    with pytest.raises(TypeError, match="ndarray"):
        recommender.recommend(0, one.toarray())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="not fitted"):
        model(**settings).recommend(0, one)


@every_model
def test_other_sparse_forms_are_converted_with_a_warning(
    model: type[ItemModel], settings: dict[str, Any]
) -> None:
    histories = shop()
    recommender = fitted(model, settings, histories)
    with pytest.warns(MatrixConverted, match="COO"):
        same = model(**settings).fit(histories.tocoo(), show_progress=False)  # type: ignore[arg-type]
    assert state(same) == state(recommender)
    with pytest.warns(MatrixConverted, match="CSC"):
        ids, _ = recommender.recommend(0, histories[0].tocsc())  # type: ignore[arg-type]
    assert ids.tolist() == recommender.recommend(0, histories[0])[0].tolist()


@every_model
def test_unsorted_and_repeated_entries_are_one_history(
    model: type[ItemModel], settings: dict[str, Any]
) -> None:
    histories = shop()
    recommender = fitted(model, settings, histories)
    row = histories[7]
    split = sparse.csr_matrix(
        (np.tile(row.data / 2, 2), np.tile(row.indices[::-1], 2), [0, 2 * row.nnz]), shape=row.shape
    )
    split.data = np.tile(row.data[::-1] / 2, 2)

    one, other = recommender.recommend(0, row, N=20), recommender.recommend(0, split, N=20)

    assert one[0].tobytes() == other[0].tobytes()
    assert one[1].tobytes() == other[1].tobytes()


def parameters_of(recommender: ItemModel) -> Any:
    """What `set_fitted` takes beside the popularity."""
    if isinstance(recommender, LinearItemModel):
        return recommender.weights
    assert isinstance(recommender, FactorModel)
    return recommender.item_factors


def state(recommender: ItemModel) -> tuple[bytes, ...]:
    found = parameters_of(recommender)
    arrays = [found] if isinstance(found, np.ndarray) else [found.indptr, found.indices, found.data]
    priors = getattr(recommender, "prior_factors", None)
    arrays += [] if priors is None else [priors]
    return tuple(array.tobytes() for array in [*arrays, recommender.popularity])


@every_model
def test_fits_are_the_same_whatever_the_threads_and_the_order_of_users(
    model: type[ItemModel], settings: dict[str, Any]
) -> None:
    histories = shop()
    one, again, two = (
        model(**settings, threads=threads).fit(histories, show_progress=False) for threads in (1, 1, 2)
    )
    assert state(one) == state(again) == state(two)
    if settings.get("similarity") is None:  # implicit adds floats up in the order of the users
        assert state(one) == state(fitted(model, settings, histories[::-1]))


@personal_models
def test_contributions_sum_to_the_score(model: type[ItemModel], settings: dict[str, Any]) -> None:
    histories = shop()
    recommender = fitted(model, settings, histories)
    for user in range(20):
        ids, scores = recommender.recommend(user, histories[user], N=60, filter_already_liked_items=False)
        seen = set(histories[user].indices.tolist())
        for item, listed in zip(ids.tolist(), scores.tolist(), strict=True):
            score, contributions = recommender.explain(user, histories[user], item)
            assert score == listed
            assert sum(part for _, part in contributions) == pytest.approx(score, abs=1e-9)
            assert {each for each, _ in contributions} <= seen
            parts = [part for _, part in contributions]
            assert parts == sorted(parts, reverse=True)


@every_model
def test_other_inputs_count_as_history_and_are_never_recommended(
    model: type[ItemModel], settings: dict[str, Any]
) -> None:
    histories = shop()
    recommender = fitted(model, {**settings, "item_count": 45}, histories)

    if isinstance(recommender, Spectral):
        assert recommender.prior_factors is not None
        assert recommender.prior_factors.shape == (16, recommender.item_factors.shape[1])
    else:
        assert parameters_of(recommender).shape[0] == 60
    if isinstance(recommender, LinearItemModel):
        assert recommender.weights.shape[1] == 45
    assert recommender.popularity.shape == (45,)
    ids, _ = recommender.recommend(0, histories[0], N=60)
    assert sorted(ids.tolist()) == sorted(set(range(45)) - set(histories[0].indices.tolist()))
    with pytest.raises(IndexError):
        recommender.similar_items(45)


@every_model
def test_min_persons_leaves_out_what_rests_on_few(model: type[ItemModel], settings: dict[str, Any]) -> None:
    histories = shop()
    counts = (histories.toarray() > 0).sum(axis=0)
    assert (counts[counts < 4] > 0).any()

    recommender = fitted(model, {**settings, "min_persons": 4}, histories)

    for user in range(20) if model.personalised else ():
        ids, scores = recommender.recommend(user, histories[user], N=60)
        assert not scores[counts[ids] < 4].any()
    for item in np.flatnonzero(counts < 4):
        assert not recommender.similar_items(int(item), N=60)[0].size
    assert recommender.popularity.tolist() == np.where(counts >= 4, counts, 0).tolist()


@every_model
def test_fit_checks_reports_and_calls_back(
    model: type[ItemModel], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    histories = shop()
    calls: list[tuple[int, float, float]] = []
    recommender = model(**settings)
    assert recommender.fit(histories, callback=lambda *values: calls.append(values)) is recommender
    assert [(epoch, share) for epoch, _, share in calls] == [(0, 1.0)]
    assert f'"Fitting {model.__name__}"' in capsys.readouterr().err
    with pytest.raises(ValueError, match="negative"):
        recommender.fit(-histories)
    with pytest.raises(ValueError, match="persons"):
        recommender.fit(histories, persons=np.arange(3))
    with pytest.raises(ValueError, match="item_count"):
        model(**settings, item_count=61).fit(histories)


@every_model
def test_parameters_make_an_equal_model(model: type[ItemModel], settings: dict[str, Any]) -> None:
    recommender = fitted(model, settings, shop())
    parameters = recommender.parameters()
    assert settings.items() <= parameters.items()
    assert "threads" not in parameters
    assert state(fitted(model, parameters, shop())) == state(recommender)


@every_model
def test_a_fitted_state_can_be_taken_over(model: type[ItemModel], settings: dict[str, Any]) -> None:
    histories = shop()
    recommender = fitted(model, settings, histories)
    copy = model(**settings).set_fitted(parameters_of(recommender), recommender.popularity)  # type: ignore[attr-defined]
    for one, other in zip(
        recommender.recommend(1, histories[1], N=60), copy.recommend(1, histories[1], N=60), strict=True
    ):
        assert one.tobytes() == other.tobytes()
    with pytest.raises(ValueError, match="popularity"):
        copy.set_fitted(parameters_of(recommender), recommender.popularity[1:, None])


@pytest.mark.parametrize(
    ("model", "parameter", "value"),
    [
        (ItemKNN, "similarity", "euclid"), (ItemKNN, "neighbours", 0),
        (LocalRidge, "neighbours", 0), (LocalRidge, "regularisation", -1.0),
        (LocalRidge, "row_exponent", -0.1), (LocalRidge, "item_exponent", float("nan")),
        (LocalRidge, "popularity_regularisation", -1.0), (LocalRidge, "repeat_weight", float("inf")),
        (LocalRidge, "top", 0), (ALS, "factors", 0), (ALS, "iterations", 0), (ALS, "regularisation", 0.0),
        (ALS, "unobserved_weight", 0.0), (ALS, "frequency_exponent", float("inf")), (ALS, "seed", -1),
        (BPR, "learning_rate", 0.0), (BPR, "step_regularisation", -1.0),
        *((model, "min_persons", 0) for model in MODELS), *((model, "threads", 0) for model in MODELS),
        *((model, "item_count", 0) for model in MODELS),
    ],
)  # fmt: skip
def test_hyper_parameters_are_checked_by_name(model: type[ItemModel], parameter: str, value: Any) -> None:
    with pytest.raises(ValueError, match=parameter):
        model(**{parameter: value})


@pytest.mark.parametrize("model", MODELS)
def test_hyper_parameters_are_keyword_only(model: type[ItemModel]) -> None:
    with pytest.raises(TypeError):
        model(10)  # type: ignore[call-arg]


# ---- Linear models -----------------------------------------------------------------------------------------


def linear(
    model: type[LinearItemModel], settings: dict[str, Any], histories: sparse.csr_matrix
) -> LinearItemModel:
    return model(**settings).fit(histories, show_progress=False)


def both_hops(
    history: NDArray[np.float64], weights: NDArray[np.float64], hop_weight: float, hop_items: int
) -> NDArray[np.float64]:
    """The history times the weights, and what the best items of that pass on."""
    first = history @ weights
    passing = np.where((first > 0) & (history == 0), first, 0)
    passing[np.lexsort((np.arange(first.size), -passing))[hop_items:]] = 0
    return np.asarray(first + (hop_weight * passing).astype(np.float32) @ weights)


@linear_models
def test_scores_are_the_history_times_the_weights(
    model: type[LinearItemModel], settings: dict[str, Any]
) -> None:
    histories = shop()
    recommender = linear(model, settings, histories)
    hop = settings.get("second_hop_weight", 0.0), settings.get("second_hop_items", 1)
    weights = recommender.weights.toarray().astype(np.float64)
    expected = np.array([both_hops(row, weights, *hop) for row in histories.toarray().astype(np.float64)])
    dense = expected if model.personalised else np.tile(recommender.popularity, (120, 1))

    ids, scores = recommender.recommend(np.arange(120), histories, N=60, filter_already_liked_items=False)

    np.testing.assert_allclose(scores, np.take_along_axis(dense, ids, axis=1), rtol=1e-12)
    by_rule = [np.lexsort((np.arange(60), -recommender.popularity * (row == 0), -row)) for row in dense]
    agreement = np.mean(np.array(by_rule) == ids)
    assert agreement > 0.99  # SciPy may add in another order, which may swap near-equal scores


@linear_models
def test_no_weight_rests_on_few_persons(model: type[LinearItemModel], settings: dict[str, Any]) -> None:
    histories = shop()
    present = (histories.toarray() > 0).astype(int)
    together = present.T @ present

    recommender = linear(model, {**settings, "min_persons": 4}, histories)

    assert (together[recommender.weights.toarray() != 0] >= 4).all()


@linear_models
def test_weights_are_canonical_float32(model: type[LinearItemModel], settings: dict[str, Any]) -> None:
    weights = linear(model, settings, shop()).weights
    assert weights.dtype == np.float32
    assert weights.has_canonical_format
    assert (weights.data != 0).all()
    assert np.isfinite(weights.data).all()


@linear_models
def test_weights_and_popularity_agree(model: type[LinearItemModel], settings: dict[str, Any]) -> None:
    recommender = linear(model, settings, shop())
    with pytest.raises(ValueError, match="popularity"):
        recommender.set_fitted(recommender.weights, recommender.popularity[1:])


# ---- Factor models -----------------------------------------------------------------------------------------


def factorised(
    model: type[FactorModel], settings: dict[str, Any], histories: sparse.csr_matrix
) -> FactorModel:
    return model(**settings).fit(histories, show_progress=False)


@factor_models
def test_scores_are_the_least_squares_solution(model: type[FactorModel], settings: dict[str, Any]) -> None:
    histories = shop()
    recommender = factorised(model, settings, histories)
    factors = recommender.item_factors.astype(np.float64)
    for user in range(20):
        weights = histories[user].toarray().ravel().astype(np.float64)
        folding = recommender.folding
        penalty = folding.regularisation * (weights.sum() + folding.unobserved_weight * 60) ** (
            folding.frequency_exponent
        )
        weights /= (weights.sum() + folding.history_offset) ** folding.history_exponent
        system = factors.T @ ((weights[:, None] + folding.unobserved_weight) * factors)
        vector = np.linalg.solve(system + penalty * np.eye(factors.shape[1]), factors.T @ weights)

        ids, scores = recommender.recommend(user, histories[user], N=60, filter_already_liked_items=False)

        expected = factors @ vector + recommender.repeat_weight * histories[user].toarray().ravel()
        np.testing.assert_allclose(scores, expected[ids], rtol=1e-5, atol=1e-6)


@factor_models
def test_inputs_of_few_persons_have_no_factors(model: type[FactorModel], settings: dict[str, Any]) -> None:
    histories = shop()
    counts = (histories.toarray() > 0).sum(axis=0)
    recommender = factorised(model, {**settings, "min_persons": 4, "item_count": 50}, histories)
    known = recommender.item_factors.shape[0]
    assert (recommender.item_factors.any(axis=1) == (counts[:known] >= 4)).all()
    without = histories.toarray() * (counts >= 4)
    again = factorised(model, {**settings, "item_count": 50}, sparse.csr_matrix(without))
    assert state(recommender) == state(again)


@factor_models
def test_nobody_is_kept(model: type[FactorModel], settings: dict[str, Any]) -> None:
    recommender = factorised(model, settings, shop(users=77))
    arrays = [value for value in vars(recommender).values() if isinstance(value, np.ndarray)]
    assert len(arrays) == 4  # factors, their Gram matrix, popularity and its order
    assert all(77 not in array.shape for array in arrays)


@factor_models
def test_factors_stand_in_principal_axes(model: type[FactorModel], settings: dict[str, Any]) -> None:
    recommender = factorised(model, settings, shop())
    factors = recommender.item_factors.astype(np.float64)
    np.testing.assert_allclose(factors.T @ factors, np.diag(recommender.factor_gram), atol=1e-4)
    with pytest.raises(ValueError, match="principal_axes"):
        recommender.set_fitted(factors + 1, recommender.popularity)
    with pytest.raises(ValueError, match="finite"):
        recommender.set_fitted(factors * np.nan, recommender.popularity)


@factor_models
def test_histories_have_no_negative_weights(model: type[FactorModel], settings: dict[str, Any]) -> None:
    histories = shop()
    recommender = factorised(model, settings, histories)
    for ask in (recommender.recommend, lambda *given: recommender.explain(*given, 3)):
        with pytest.raises(ValueError, match="negative"):
            ask(0, -histories[0])
