"""ALS by `pyspark.ml`: its factors, served by the ordinary paths."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray
from shops import event

from consentier import Channel, Permission, Recommender, Request
from consentier.consent import Policy, Tier
from consentier.errors import ConfigError, TrainingError
from consentier.features.gate import ConsentGate, PermittedRows, ledger_of
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.models.als import ALS
from consentier.models.attribute_encoding import AttributeEncoder
from consentier.models.bundle import open_bundle, read_run
from consentier.models.factor_scoring import contributions, exact_scores, fold_in
from consentier.models.factor_solver import fold_in_rows, gram_diagonal, principal_axes
from consentier.models.item_index import ItemIndex
from consentier.serving.factor_scorer import take_folding
from consentier.training.config import Config, TierConfig, TrackingConfig, load_config
from consentier.training.factor_validation import batch_scorer
from consentier.training.fit import FittedTier, TierRows, estimator, fit_tier, matrix_settings
from consentier.training.forget import Subject, forget
from consentier.training.metrics import ndcg
from consentier.training.restricted import Restricted
from consentier.training.train import train
from consentier.training.validation import ValidationSet, validation_set

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.service("spark")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    write_shop(simulate(SimulationConfig(customers=300, items=80, days=60, horizon_days=7)), folder)
    return folder


@pytest.fixture(scope="module")
def shop(data: Path) -> ShopTables:
    return read_shop(data)


@pytest.fixture(scope="module")
def config(data: Path) -> Config:
    """Weights that differ, attributes, and what is rare among them left out."""
    base = load_config(data=data)
    settings = {
        "algorithm": "als", "factors": 12, "iterations": 6, "recency_half_life": 20.0,
        "attribute_min_persons": 2,
    }  # fmt: skip
    return base.model_copy(
        update={
            "tracking": TrackingConfig(enabled=False),
            "training": base.training.model_copy(update={"seed": 3, "min_persons": 2}),
            "fused": Config.model_validate({"fused": settings}).fused,
        }
    )


@pytest.fixture(scope="module")
def permitted(shop: ShopTables, config: Config) -> PermittedRows:
    return ConsentGate(shop, ledger_of(shop), cutoff_of(config), Policy.default()).permitted(Tier.FUSED)


@pytest.fixture(scope="module")
def trained(
    session: SparkSession, shop: ShopTables, config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The fused tier's bundle, of a shop with other rows of those who may not be read; a popular list."""
    from consentier.features.spark_tables import SparkTables
    from consentier.training.spark_training import train_on_spark

    out = tmp_path_factory.mktemp("trained") / "bundles"
    tables = dataclasses.asdict(with_other_strangers(shop, config))
    frames = {
        name: session.createDataFrame(table)
        for name, table in tables.items()
        if isinstance(table, pa.Table) and table.num_rows
    }
    spread = SparkTables.of(session, **frames)
    train_on_spark(session, spread, config, out, tiers=[Tier.FUSED], show_progress=False)
    train(shop, config, out, tiers=[Tier.POPULAR], show_progress=False)
    return out


def cutoff_of(config: Config) -> dt.datetime:
    assert config.training.cutoff is not None
    return config.training.cutoff


def with_other_strangers(shop: ShopTables, config: Config) -> ShopTables:
    """Rows of visitors whom no tier may read are exchanged for rows of others, on an item of their own."""
    gate = ConsentGate(shop, ledger_of(shop), cutoff_of(config), Policy.default())
    allowed = pa.concat_tables([gate.permitted(tier).subjects for tier in (Tier.ONLINE, Tier.FUSED)])
    kept = shop.events.filter(pc.is_in(shop.events["visitor_id"], value_set=allowed["subject_id"]))
    assert kept.num_rows < shop.events.num_rows
    before = cutoff_of(config) - dt.timedelta(days=1)
    strangers = [event(f"v-unknown-{n}", "an item of strangers", 1) | {"ts": before} for n in range(40)]
    more = pa.Table.from_pylist(strangers, kept.schema)
    return dataclasses.replace(shop, events=pa.concat_tables([more, kept]))


def on_spark(
    session: SparkSession, permitted: PermittedRows, config: Config, **changes: Any
) -> tuple[FittedTier, TierRows]:
    """What `pyspark.ml` makes of rows that the embedded gate let through, and what was fitted."""
    from pyspark.sql import DataFrame

    from consentier.training.spark_als import fitted_als

    rows = TierRows(Tier.FUSED, permitted, config.training.min_persons)
    tier_config = config.fused.model_copy(update=changes)
    encoder, _ = rows._data(tier_config)
    index = ItemIndex.from_ids(rows.coded.item_ids)
    model = estimator(Tier.FUSED, tier_config, len(index), config.training.min_persons, 1, 3)
    assert isinstance(model, ALS)
    frame = rows_with_inputs(session, rows, encoder)
    until = permitted.until
    fitted = fitted_als(Tier.FUSED, tier_config, frame, until, index, encoder, model, DataFrame.persist)
    return fitted, rows


def rows_with_inputs(session: SparkSession, rows: TierRows, encoder: AttributeEncoder) -> DataFrame:
    from pyspark.sql import functions

    attributes = rows.published.attributes
    assert attributes is not None
    names = [name for name in attributes.column_names if name != "person"]
    inputs = [
        {"person": row["person"], "inputs": list(encoder.inputs({name: row[name] for name in names}))}
        for row in attributes.to_pylist()
    ]
    frame = session.createDataFrame(rows.published.rows)
    known = session.createDataFrame(inputs, "person string, inputs array<int>")
    return frame.withColumn("inputs", functions.lit(None).cast("array<int>")).unionByName(
        known, allowMissingColumns=True
    )


def test_the_weights_are_those_of_one_machine(
    session: SparkSession, permitted: PermittedRows, config: Config
) -> None:
    from consentier.training.spark_als import weighted_persons
    from consentier.training.spark_tasks import Coding

    rows = TierRows(Tier.FUSED, permitted, 2)
    encoder, expected = rows._data(config.fused)
    assert encoder.input_count
    coding = Coding(
        rows.coded.item_ids, encoder.input_count, permitted.until, by_session=False,
        matrix=matrix_settings(Tier.FUSED, config.fused), block_rows=100,
    )  # fmt: skip
    frame = rows_with_inputs(session, rows, encoder)
    found = weighted_persons(frame, coding, 3, lambda kept: kept.persist()).toArrow()
    persons = found["person"].to_numpy()
    shape = (persons.max() + 1, expected.matrix.shape[1])
    matrix = sp.csr_matrix((found["weight"].to_numpy(), (persons, found["input"].to_numpy())), shape=shape)
    assert sorted(map(bytes, matrix.toarray())) == sorted(map(bytes, expected.matrix.toarray()))
    assert len(np.unique(matrix.data)) > 5


def test_folding_in_gives_the_factors_that_spark_has_for_a_person(session: SparkSession) -> None:
    """Scores are compared, because axes are not those of Spark; the exported factors are turned."""
    from consentier.training.spark_als import Objective, factors_freed, fit_als, item_factors, totals_of

    rng = np.random.default_rng(0)
    matrix = sp.random_array((60, 40), density=0.2, rng=rng, format="csr", dtype=np.float32)
    matrix.data[:] = rng.choice([0.05, 0.25, 1, 3], matrix.nnz)
    persons = np.repeat(np.arange(60), np.diff(matrix.indptr))
    entries = pa.table(
        {"person": pa.array(persons, pa.int32()), "input": matrix.indices, "weight": matrix.data}
    )
    weighted = session.createDataFrame(entries)
    config = TierConfig(algorithm="als", factors=7, iterations=4)
    totals, counts = totals_of(weighted, 41)
    assert counts.tolist() == [*np.bincount(matrix.indices, minlength=40).tolist(), 0]
    assert totals.weight == pytest.approx(matrix.sum(), rel=1e-4)
    objective = Objective.of(config, totals)
    penalty = 0.01 * (totals.weight + 0.1 * 60 * 41)
    assert penalty == pytest.approx(objective.folding.entry_regularisation * matrix.nnz)
    with factors_freed(session):  # what is kept is looked for by another test
        model = fit_als(weighted, objective, config, blocks=2, seed=1)
        factors = item_factors(model, 41)
        users = model.userFactors.orderBy("id").toArrow().combine_chunks()
    assert not factors[40].any()
    turned = principal_axes(factors)
    histories = sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(60, 41))
    folded = fold_in_rows(histories, turned, gram_diagonal(turned), objective.folding)
    known = users["id"].to_numpy()
    own = users["features"].combine_chunks().flatten().to_numpy().reshape(-1, 7)
    expected = own.astype(np.float64) @ factors.T
    np.testing.assert_allclose(folded[known] @ turned.T, expected, atol=2e-5)
    assert np.abs(expected).max() > 0.5


def test_the_bundle_answers_and_explains_as_any_other(
    trained: Path, permitted: PermittedRows, session: SparkSession
) -> None:
    bundle = open_bundle(trained / "fused")
    assert bundle.manifest.algorithm == "als"
    assert bundle.manifest.scoring["fold_in"]["observed_weight"] == 0.1
    solver = read_run(trained / "fused")["solver"]
    assert (solver["library"], solver["alpha"], solver["reproducible"]) == ("pyspark.ml", 10.0, False)
    of_first = pc.equal(permitted.rows["person"], permitted.rows["person"][0])
    history = permitted.rows.filter(of_first)["item_id"].unique().to_pylist()[:4]
    answer = Recommender.load(trained).recommend(
        Request(
            crm_history=history, permission=Permission.ONLINE | Permission.CRM, linked=True,
            channel=Channel.SHOP, n=10, explain=True,
        )
    )  # fmt: skip
    assert (answer.tier, answer.scored) == (Tier.FUSED, 10)
    assert answer.explanations is not None
    for explanation in answer.explanations:
        assert {cause.name for cause in explanation.causes} <= set(history)
        assert sum(cause.share for cause in explanation.causes) == pytest.approx(1)
    folding = take_folding(dict(bundle.manifest.scoring))
    factors, gram = bundle.arrays["factors"], bundle.arrays["factor_gram"]
    inputs, weights = np.array([0, 3, 4, 17]), np.array([0.5, 4, 0, 1], np.float32)
    items = np.arange(bundle.manifest.item_count)
    scores = exact_scores(factors, items, fold_in(factors, gram, inputs, weights, folding))
    parts = contributions(factors, gram, inputs, weights, folding, None, items)
    np.testing.assert_allclose(parts.sum(axis=0), scores, atol=1e-9)
    assert np.abs(parts).sum(axis=1).astype(bool).tolist() == [True, True, False, True]
    left = session.sparkContext._jsc.getPersistentRDDs()
    assert not [kept.name() for kept in dict(left).values() if "Factors" in str(kept.name())]


def test_strangers_change_nothing(
    session: SparkSession, trained: Path, permitted: PermittedRows, config: Config
) -> None:
    """Two blocks add up two parts in either order, so that these fits have equal bits."""
    bundle = open_bundle(trained / "fused")
    assert "an item of strangers" not in ItemIndex(bundle.arrays["item_ids"], bundle.arrays["item_offsets"])
    fitted, _ = on_spark(session, permitted, config)
    assert fitted.scoring == bundle.manifest.scoring
    for name, array in fitted.arrays.items():
        assert array.tobytes() == bundle.arrays[name].tobytes(), name


def test_nobody_is_forgotten_here_and_one_machine_says_whose_als_it_leaves(
    session: SparkSession, shop: ShopTables, data: Path, config: Config, trained: Path, tmp_path: Path
) -> None:
    from consentier.features.spark_tables import read_spark_tables
    from consentier.training.spark_forgetting import forget_on_spark

    out = tmp_path / "bundles"
    shutil.copytree(trained, out)
    kept = Restricted.beside(out)
    train(shop, config, out, tiers=[Tier.CRM], restricted=kept, show_progress=False)
    before = {tier: open_bundle(out / tier).digest for tier in ("crm", "fused", "popular")}
    gate = ConsentGate(shop, ledger_of(shop), cutoff_of(config), Policy.default())
    held = gate.permitted(Tier.FUSED).subjects.filter(pc.field("kind") == "customer")
    subjects: list[Subject] = [("customer", held["subject_id"][0].as_py())]
    with pytest.raises(ConfigError, match=r"fused\.algorithm is 'als'.*take one machine"):
        forget_on_spark(
            session, read_spark_tables(session, str(data)), subjects, out, kept, show_progress=False
        )
    assert {tier: open_bundle(out / tier).digest for tier in before} == before
    done = forget(shop, subjects, out, kept, tiers=[Tier.FUSED], show_progress=False)
    assert done.tiers[0].how == "refitted"
    assert "pyspark.ml fitted it" in str(done.tiers[0].reason)
    assert "observed_weight" not in open_bundle(out / "fused").manifest.scoring["fold_in"]
    assert "solver" not in read_run(out / "fused")


def test_it_is_as_good_as_that_of_one_machine(
    session: SparkSession, permitted: PermittedRows, config: Config
) -> None:
    end = cutoff_of(config)
    judged = validation_set(Tier.FUSED, permitted, end - dt.timedelta(days=14), end, max_persons=300, seed=0)
    embedded = fit_tier(Tier.FUSED, judged.rows, config.fused, min_persons=2, threads=1, seed=3)
    spread, _ = on_spark(session, judged.rows, config)
    popular = quality(judged, judged.popular_lists(20))
    one, many = (
        quality(judged, judged.lists_of(
            batch_scorer(fitted.arrays, fitted.scoring), 20, first=0, last=len(judged.requests), threads=1
        ))
        for fitted in (embedded, spread)
    )  # fmt: skip
    assert one > 1.1 * popular
    assert many > 1.1 * popular
    assert many > 0.9 * one


def quality(judged: ValidationSet, lists: NDArray[np.int64]) -> float:
    return float(ndcg(lists, judged.targets, 20).mean())


def test_what_weighs_nothing_is_not_fitted(
    session: SparkSession, permitted: PermittedRows, config: Config
) -> None:
    with pytest.raises(TrainingError, match="all of them weigh 0"):
        on_spark(session, permitted, config, source_weights={}, attribute_weight=0.0)


def test_other_algorithms_and_penalties_are_refused(
    session: SparkSession, data: Path, config: Config, tmp_path: Path
) -> None:
    from consentier.features.spark_tables import read_spark_tables
    from consentier.training.spark_training import train_on_spark

    tables = read_spark_tables(session, str(data))
    for changes, message in (
        *(({"algorithm": name}, f"'{name}', which is not") for name in ("bpr", "spectral", "tfidf", "bm25")),
        ({"frequency_exponent": 0.5}, r"fused\.frequency_exponent is 0\.5.*Set it to 1"),
    ):
        changed = config.model_copy(update={"fused": config.fused.model_copy(update=changes)})
        with pytest.raises(ConfigError, match=message):
            train_on_spark(session, tables, changed, tmp_path, tiers=[Tier.FUSED], show_progress=False)
