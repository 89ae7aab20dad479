"""ALS on Apache Spark: weighted interactions are made there, `pyspark.ml` fits, item factors come back.

Its objective is not that of `models.als`; `objective` says how the two differ, and how histories are folded
into its factors. Persons are numbers here, and their factors stay on the executors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import __version__ as spark_version
from pyspark.ml import recommendation
from pyspark.sql import DataFrame, SparkSession, functions

from consentier.consent import Tier
from consentier.errors import ConfigError, TrainingError
from consentier.features.spark_workspace import rows_before
from consentier.models.als import ALS
from consentier.models.attribute_encoding import AttributeEncoder
from consentier.models.factor_scoring import FoldIn
from consentier.models.factor_solver import principal_axes
from consentier.models.item_index import ItemIndex
from consentier.training.config import TierConfig
from consentier.training.fit import FittedTier, factor_tier, matrix_settings
from consentier.training.spark_tasks import Coding, interactions_of, whole_persons

__all__ = [
    "Objective",
    "Totals",
    "factors_freed",
    "fit_als",
    "fitted_als",
    "item_factors",
    "require_frequency_penalty",
    "totals_of",
    "weigh_batches",
    "weighted_persons",
]

WEIGHTED = "part int, person int, input int, weight float"
"""Columns of what `weigh_batches` gives."""

_WEIGHTED = pa.schema(
    [("part", pa.int32()), ("person", pa.int32()), ("input", pa.int32()), ("weight", pa.float32())]
)
_PARTS_PER_CORE = 4
_FETCHED_AT_ONCE = 5_000_000  # numbers; Spark refuses results of more than 1 GB by default
_STEPS = 2**16  # of a weight, so that sums do not depend on their order
_EMPTY_HISTORY = 1e-6
_FACTORS_OF_SPARK = ("userFactors", "itemFactors")

Keep = Callable[[DataFrame], DataFrame]
"""Keeps a table on the executors, and gives it back."""


def require_frequency_penalty(tier: Tier, config: TierConfig) -> None:
    """Check that Spark can fit the penalty that a tier's ALS asks for.

    Raises
    ------
    ConfigError
        If it cannot.
    """
    if config.frequency_exponent != 1:
        raise ConfigError(
            f"{tier}.frequency_exponent is {config.frequency_exponent:g}: the penalty of pyspark.ml always "
            "grows in proportion to the events of a row. Set it to 1, or train this tier on one machine"
        )


# ---- Weighted interactions ---------------------------------------------------------------------------------


def weigh_batches(batches: Iterator[pa.RecordBatch], coding: Coding) -> Iterator[pa.RecordBatch]:
    """Weigh the inputs of whole persons, and number those who have any from 0 on.

    Parameters
    ----------
    batches
        As for `spark_tasks.count_batches`, and part: the number of these rows' partition.
    coding
        How.
    """
    numbered = 0
    for rows in whole_persons(batches, coding.block_rows):
        data = interactions_of(rows.drop_columns(["part"]), coding)
        if data is None:
            continue
        lengths = np.diff(data.matrix.indptr)
        persons = numbered + np.repeat(np.cumsum(lengths > 0) - 1, lengths)
        numbered += int(np.count_nonzero(lengths))
        parts = np.full(persons.size, rows["part"][0].as_py(), dtype=np.int32)
        columns = (
            parts,
            persons.astype(np.int32),
            data.matrix.indices.astype(np.int32),
            data.matrix.data.astype(np.float32),
        )
        yield pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=_WEIGHTED)


def weighted_persons(rows: DataFrame, coding: Coding, parts: int, keep: Keep) -> DataFrame:
    """What every person is interested in: columns person, input and weight, kept on the executors.

    Persons are numbered on the executors; the driver learns how many there are in each part. Which number
    somebody has depends on who is permitted and on `parts` only.

    Parameters
    ----------
    rows
        The columns of `SparkRows.rows`, and inputs, as for `spark_tasks.count_batches`.
    coding
        How.
    parts
        Partitions to spread persons over.
    keep
        Keeps a table on the executors.
    """
    spread = rows.repartition(parts, "person").sortWithinPartitions("person")
    weigh = functools.partial(weigh_batches, coding=coding)
    weighted = keep(spread.withColumn("part", functions.spark_partition_id()).mapInArrow(weigh, WEIGHTED))
    sizes = weighted.groupBy("part").agg((functions.max("person") + 1).alias("persons")).toArrow()
    before = rows_before(
        dict(zip(sizes["part"].to_pylist(), sizes["persons"].to_pylist(), strict=True)),
        functions.col("part"),
    )
    number = (before + functions.col("person")).cast("int").alias("person")
    return weighted.select(number, "input", "weight")


@dataclasses.dataclass(frozen=True, slots=True)
class Totals:
    """What the penalty depends on.

    Attributes
    ----------
    persons, inputs
        How many there are of each.
    entries
        Pairs of a person and an input with a weight above 0.
    weight
        The sum of these weights.
    """

    persons: int
    inputs: int
    entries: int
    weight: float


def totals_of(weighted: DataFrame, inputs: int) -> tuple[Totals, NDArray[np.int64]]:
    """Count and add up; also how many persons have each input: int64, shape (inputs,)."""
    steps = functions.round(functions.col("weight").cast("double") * _STEPS).cast("long")
    found = (
        weighted.groupBy("input")
        .agg(functions.count("*").alias("persons"), functions.sum(steps).alias("steps"))
        .toArrow()
    )
    counts = np.zeros(inputs, dtype=np.int64)
    counts[found["input"].to_numpy()] = found["persons"].to_numpy()
    weight = sum(found["steps"].to_pylist()) / _STEPS
    persons = weighted.select("person").distinct().count()
    return Totals(persons, inputs, int(counts.sum()), weight), counts


# ---- The fit -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Objective:
    """What `pyspark.ml` is asked to minimise, and how a history is folded into the factors that it finds.

    With ``c_ui`` the weight of an entry, ``n_u`` and ``n_i`` the entries of a row and a column, and ``α``,
    ``λ`` the arguments of `pyspark.ml.recommendation.ALS`, it minimises ``Σ_entries (1 + α c_ui)
    (w_u · h_i - 1)² + Σ_others (w_u · h_i)² + λ (Σ_u n_u |w_u|² + Σ_i n_i |h_i|²)``.

    Divided by the unobserved weight ``a``, the objective of `models.als.ALS` is the same but for two things:
    there an entry is pulled to 0 with weight 1, too, and counts ``c_ui / a`` for 1; and a row is penalised
    by its total weight plus ``a`` for each column of the matrix (an item likewise) instead of by its entries.

    Attributes
    ----------
    alpha
        ``1 / a``.
    regularisation
        ``λ``: of such a size that the penalties of all rows together, each for factors of length 1, are those
        of `models.als.ALS`, and so are those of all columns.
    folding
        The step of this objective for one person, the factors of inputs being given.
    """

    alpha: float
    regularisation: float
    folding: FoldIn

    @classmethod
    def of(cls, config: TierConfig, totals: Totals) -> Self:
        """The objective for a tier's configuration on interactions of some total weight."""
        unobserved = config.unobserved_weight
        whole = totals.weight + unobserved * totals.persons * totals.inputs
        penalty = config.factor_regularisation * whole / totals.entries
        folding = FoldIn(
            unobserved_weight=unobserved,
            # Negligible; but a history without entries must have one solution, too.
            regularisation=penalty * _EMPTY_HISTORY,
            frequency_exponent=0.0,
            entry_regularisation=penalty,
            observed_weight=unobserved,
        )
        return cls(1 / unobserved, penalty / unobserved, folding)


def fit_als(
    weighted: DataFrame, objective: Objective, config: TierConfig, *, blocks: int, seed: int
) -> recommendation.ALSModel:
    """Fit on the executors.

    Parameters
    ----------
    weighted
        Columns person, input and weight.
    objective, config
        What is minimised; number of factors and of iterations.
    blocks
        Into how many blocks persons and inputs are cut.
    seed
        Of the starting values.
    """
    estimator = recommendation.ALS(
        rank=config.factors,
        maxIter=config.iterations,
        regParam=objective.regularisation,
        alpha=objective.alpha,
        implicitPrefs=True,
        nonnegative=False,
        numUserBlocks=blocks,
        numItemBlocks=blocks,
        userCol="person",
        itemCol="input",
        ratingCol="weight",
        seed=seed,
    )
    return estimator.fit(weighted)


def item_factors(model: recommendation.ALSModel, inputs: int) -> NDArray[np.float32]:
    """Fetch the factors of the inputs: float32, shape (inputs, factors), zero for those without entries."""
    factors = np.zeros((inputs, model.rank), dtype=np.float32)
    size = max(1, _FETCHED_AT_ONCE // model.rank)
    for start in range(0, inputs, size):
        id_ = functions.col("id")
        part = model.itemFactors.filter((id_ >= start) & (id_ < start + size)).toArrow().combine_chunks()
        rows = part["id"].to_numpy()
        factors[rows] = part["features"].combine_chunks().flatten().to_numpy().reshape(-1, model.rank)
    return factors


def fitted_als(
    tier: Tier,
    config: TierConfig,
    rows: DataFrame,
    until: int,
    index: ItemIndex,
    encoder: AttributeEncoder,
    model: ALS,
    keep: Keep,
) -> FittedTier:
    """Fit a tier's ALS with `pyspark.ml`, and export it into the form of any factor model.

    Parameters
    ----------
    tier, config
        Which, and its configuration.
    rows, until
        As for `weighted_persons` and `Coding`.
    index, encoder
        The items, and the encoder of the attributes behind them.
    model
        The estimator of one machine, not fitted: takes over the factors.
    keep
        Keeps a table on the executors, until its caller lets it go.

    Raises
    ------
    TrainingError
        No row weighs anything.

    Notes
    -----
    Memory of this process: 4 bytes for each factor of each input, a few times over.
    """
    cores = rows.sparkSession.sparkContext.defaultParallelism
    inputs = len(index) + encoder.input_count
    coding = Coding(
        item_ids=tuple(index.ids(np.arange(len(index)))),
        attribute_inputs=encoder.input_count,
        until=until,
        by_session=False,
        matrix=matrix_settings(tier, config),
    )
    weighted = weighted_persons(rows, coding, _PARTS_PER_CORE * cores, keep)
    totals, counts = totals_of(weighted, inputs)
    rare = np.flatnonzero((counts > 0) & (counts < model.min_persons))
    if rare.size:
        weighted = weighted.filter(~functions.col("input").isin(rare.tolist()))
        totals, counts = totals_of(weighted, inputs)
    if not totals.entries:
        raise TrainingError(f"the {tier} tier has permitted rows, but all of them weigh 0: see event_weights")
    objective = Objective.of(config, totals)
    with factors_freed(rows.sparkSession):
        found = fit_als(weighted, objective, config, blocks=cores, seed=model.seed)
        factors = item_factors(found, inputs)
    model.set_fitted(principal_axes(factors), counts[: len(index)])
    solver = {
        "library": "pyspark.ml",
        "version": spark_version,
        "alpha": objective.alpha,
        "regularisation": objective.regularisation,
        "blocks": cores,
        "reproducible": False,
    }
    fitted = factor_tier(tier, config, index, model, objective.folding, encoder)
    return dataclasses.replace(fitted, run={"solver": solver})


@contextlib.contextmanager
def factors_freed(session: SparkSession) -> Iterator[None]:
    """Let go, at the end of the block, of what `pyspark.ml` keeps: factors of persons are among it."""
    context = session.sparkContext._jsc
    before = set(context.getPersistentRDDs())
    try:
        yield
    finally:
        for number, kept in dict(context.getPersistentRDDs()).items():
            if number not in before and kept.name() in _FACTORS_OF_SPARK:
                kept.unpersist()
