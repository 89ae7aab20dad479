"""A training run on Apache Spark: the same tables, gate, counts and weights, and so the same bundles.

What is large stays on the executors: events, orders, the ledger, the rows that pass. Each partition holds
whole persons and counts them with the code of one machine; Spark adds the integers up. To the driver come the
items, the values of attributes, the summed co-occurrences (as files, `max_gram_entries` bounds them) and the
weights; the ridge systems are solved on the executors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import itertools
import math
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession, Window, functions, types

from consentier.consent import Ledger, Policy, Tier
from consentier.errors import ConfigError
from consentier.features.consent_intervals import ConsentTables
from consentier.features.gate import Funnel
from consentier.features.spark_gate import SparkGate, SparkRows
from consentier.features.spark_session import errors_of_tasks
from consentier.features.spark_tables import SparkTables
from consentier.models.als import ALS
from consentier.models.attribute_encoding import AttributeEncoder
from consentier.models.gram import (
    GramStatistics,
    GramTruncated,
    largest_rows,
    require_budget,
    require_sums_fit,
)
from consentier.models.item_index import ItemIndex
from consentier.models.item_knn import ItemKNN
from consentier.models.local_ridge import LocalRidge
from consentier.models.repeats import LONGEST_SESSION, RepeatCounts
from consentier.models.statistics import ValueCounts
from consentier.progress import progress
from consentier.training.bundles import (
    Fit,
    TrainingResult,
    fit_each,
    parameters_of,
    publish,
    require_free_slots,
    write_tier,
)
from consentier.training.cold_items import borrowing
from consentier.training.config import Config, TierConfig
from consentier.training.counted import one_at_a_time
from consentier.training.fit import (
    FittedTier,
    counted_tier,
    encoder_of_counts,
    estimator,
    fit_facts,
    matrix_settings,
    nothing_to_train_on,
    popular_arrays,
    popular_counts,
    published_counts,
    solves_counts,
)
from consentier.training.restricted import Restricted
from consentier.training.retired_versions import stop_versions
from consentier.training.run_facts import run_facts
from consentier.training.spark_als import fitted_als, require_frequency_penalty
from consentier.training.spark_statistics import Draft, HashedRows
from consentier.training.spark_tasks import (
    COUNTED,
    ENTRY,
    INPUT,
    REPEAT,
    SOLVED,
    Coding,
    Counting,
    GramFiles,
    Solving,
    count_batches,
    encode_batches,
    solve_batches,
)
from consentier.writing import scratch

__all__ = [
    "TierOnSpark",
    "distinct_behind",
    "fit_on_spark",
    "keep_on_spark",
    "put_on_spark",
    "require_counted",
    "run_facts_on_spark",
    "summed",
    "train_on_spark",
]

_FETCHED_AT_ONCE = 5_000_000
"""Entries that come to the driver at once; Spark refuses results of more than 1 GB by default."""

_CHUNKS_PER_CORE = 4

_TEXTS = (types.StringType, types.BooleanType)
_NUMBERS = (types.IntegralType, types.FloatType, types.DoubleType)
"""Types of attributes that a model can use."""


def train_on_spark(
    session: SparkSession,
    shop: SparkTables,
    config: Config,
    out: Path,
    *,
    tiers: Sequence[Tier],
    policy: Policy | None = None,
    force: bool = False,
    show_progress: bool = True,
    until: dt.datetime | None = None,
    ledger: Ledger | None = None,
    restricted: Restricted | None = None,
) -> TrainingResult:
    """Train tiers on Spark and write one bundle each: those of `train`, to the last byte, unless by ALS.

    Parameters
    ----------
    session
        Spark. Its session time zone is set to UTC. The executors must have `consentier[spark]` installed.
    shop
        The shop's tables, from `read_spark_tables` or `SparkTables.of`.
    config, out, tiers, policy, force, show_progress, until
        As for `train`. Each tier's algorithm must be ``local_ridge``, ``cosine`` or ``als``.
    ledger
        Consents and links; by default those of the shop's tables.
    restricted
        Where to keep whom each bundle holds, and the tables from which a person can be subtracted again: a
        directory that driver and executors see under one name. None keeps neither: forgetting then fits anew,
        and a withdrawal takes each bundle to hold everybody.

    Raises
    ------
    ConfigError
        A tier asks for an algorithm that is not fitted on Spark.
    DataError
        A row breaks the data contract.
    TrainingError
        If no tier has anything to train on.
    FileExistsError
        If a bundle is in the way and `force` is not set.

    Notes
    -----
    Memory of the driver: the items, the distinct values of attributes, the weights, 5,000,000 entries at a
    time, and the page cache for the co-occurrences (12 bytes an entry; 20 with `min_persons` above 1; 8 more
    in sessions), which stand in a temporary directory.
    """
    policy = Policy.default() if policy is None else policy
    cutoff = config.training.cutoff or dt.datetime.now(dt.UTC)
    require_fitted_here(config, tiers)
    require_free_slots(out, tiers, force=force)
    consents = None if ledger is None else ConsentTables.of(ledger)
    drafts: dict[Tier, Draft | None] = {}
    with (
        contextlib.nullcontext() if restricted is None else one_at_a_time(restricted),
        errors_of_tasks(),
        SparkGate(session, shop, cutoff, policy, until=until, consents=consents) as gate,
        contextlib.ExitStack() as opened,
    ):

        def fit(tier: Tier) -> Fit:
            draft = None
            if restricted is not None:
                draft = opened.enter_context(Draft.open(session, restricted, tier))
            drafts[tier] = draft
            return fit_on_spark(tier, gate, config, draft, show_progress=show_progress)

        def write(tier: Tier, fit: Fit) -> str:
            run = run_facts_on_spark(config, ledger, entries, fit)
            return put_on_spark(tier, fit, run, out, gate=gate, draft=drafts[tier], force=force)

        fitted, skipped = fit_each(tiers, fit)
        entries = shop.entries() if ledger is None else ledger.position
        retiring = None
        if restricted is not None:
            retiring = functools.partial(stop_versions, config.tracking, out, restricted)
        return publish(fitted, skipped, out, cutoff, write, restricted=restricted, retiring=retiring)


def run_facts_on_spark(config: Config, ledger: Ledger | None, entries: int, fit: Fit) -> dict[str, Any]:
    """What is true of a run on Spark but not of the model.

    Parameters
    ----------
    config, ledger, fit
        What it was made with. None where the consents are tables of Spark's.
    entries
        How many entries these, or the ledger, hold.
    """
    run = run_facts(config, ledger, fit.funnel, fit.rows_digest, fit.seconds)
    return {**run, **fit.model.run, "ledger_position": entries}


def put_on_spark(
    tier: Tier,
    fit: Fit,
    run: Mapping[str, Any],
    out: Path,
    *,
    gate: SparkGate,
    draft: Draft | None,
    force: bool,
) -> str:
    """Write a tier's bundle, and then what is kept of it on the training side; return its digest.

    As on one machine the tables come last: where they belong to the bundle, all else is in place.
    """
    if draft is not None:
        draft.clear_unless_tables()
    digest = write_tier(tier, fit, run, out, gate.cutoff, force=force)
    if draft is not None:
        keep_on_spark(tier, digest, gate, draft, facts=run)
    return digest


def keep_on_spark(
    tier: Tier, digest: str, gate: SparkGate, draft: Draft, *, facts: Mapping[str, Any]
) -> None:
    """Keep, on the training side, whom a bundle holds and what its weights were computed from.

    Parameters
    ----------
    tier, digest
        Which bundle.
    gate
        What the rows passed.
    draft
        What was written of it.
    facts
        What is true of the fit, with ``ledger_position`` and ``ledger_head``.
    """
    position = facts["ledger_position"]
    draft.restricted.lineage().record_names(
        digest, str(tier), draft.members(), cutoff=gate.cutoff, ledger_position=position
    )
    draft.keep(digest, {**fit_facts(gate), "ledger_position": position, "ledger_head": facts["ledger_head"]})


def require_counted(config: Config, tiers: Sequence[Tier]) -> None:
    """Check that the models of tiers are computed from counts, in which rows can be exchanged.

    Raises
    ------
    ConfigError
        If that of one is not.
    """
    for tier in tiers:
        algorithm = None if tier is Tier.POPULAR else getattr(config, tier).algorithm
        if algorithm not in (None, "local_ridge", "cosine"):
            raise ConfigError(
                f"{tier}.algorithm is {algorithm!r}: on Spark rows are exchanged for local_ridge and cosine "
                "only. Train this tier anew, or take one machine"
            )


def require_fitted_here(config: Config, tiers: Sequence[Tier]) -> None:
    """Check that Spark can fit the models of tiers.

    Raises
    ------
    ConfigError
        If it cannot fit one of them.
    """
    for tier in tiers:
        if tier is Tier.POPULAR:
            continue
        tier_config: TierConfig = getattr(config, tier)
        if tier_config.algorithm == "als":
            require_frequency_penalty(tier, tier_config)
        elif tier_config.algorithm not in ("local_ridge", "cosine"):
            raise ConfigError(
                f"{tier}.algorithm is {tier_config.algorithm!r}, which is not fitted on Spark: take "
                "local_ridge, cosine or als there, or train this tier on one machine"
            )


def fit_on_spark(
    tier: Tier,
    gate: SparkGate,
    config: Config,
    draft: Draft | None,
    *,
    show_progress: bool,
    fit_model: Callable[[TierOnSpark], FittedTier] | None = None,
) -> Fit:
    """Fit one tier on what the gate lets through, and draft what is to be kept of persons.

    Parameters
    ----------
    tier, gate, config, show_progress
        Which, on what and how.
    draft
        Where the members are written, and what they were counted by; None keeps nothing.
    fit_model
        How a model comes out of permitted rows; by default from scratch. The popular list is always counted.

    Raises
    ------
    TrainingError
        If nothing is left to train on.
    """
    started = time.perf_counter()
    min_persons = config.training.min_persons
    if tier is Tier.POPULAR:
        with progress("counting for the popular list", None, enabled=show_progress):
            model, funnel = _popular(gate, min_persons, draft)
        facts: Mapping[str, Any] = {}
    else:
        tier_config: TierConfig = getattr(config, tier)
        permitted = gate.permitted(tier)
        funnel = permitted.funnel
        with (
            progress(f"fitting the {tier} tier on Spark", None, enabled=show_progress),
            gate.freeing(),
            scratch("gram") as folder,
        ):
            seed = config.training.seed
            one = TierOnSpark(gate, tier, permitted, tier_config, min_persons, seed, folder, draft)
            model = one.fitted() if fit_model is None else fit_model(one)
            if draft is not None:
                draft.write_members(permitted.subjects)
        facts = model.facts
    funnel = tuple(dataclasses.replace(each, tier=str(tier)) for each in funnel)
    parameters = {**parameters_of(tier, config), **facts}
    return Fit(model, parameters, funnel, None, None, None, round(time.perf_counter() - started, 3))


# ---- The popular list --------------------------------------------------------------------------------------


def _popular(gate: SparkGate, min_persons: int, draft: Draft | None) -> tuple[FittedTier, tuple[Funnel, ...]]:
    online, crm = gate.permitted(Tier.ONLINE), gate.permitted(Tier.CRM)
    anonymous = gate.anonymous_rows()
    items, counts = popular_counts(
        distinct_behind(online.rows, "person"),
        distinct_behind(crm.rows, "person"),
        distinct_behind(anonymous.rows, "session_id"),
    )
    index, arrays = popular_arrays(items, counts, min_persons)
    if draft is not None:
        draft.write_members(online.subjects.unionAll(crm.subjects))
    return FittedTier(len(index), arrays, {}), (*online.funnel, *crm.funnel)


def distinct_behind(rows: DataFrame, key: str) -> dict[str, int]:
    """How many distinct persons, or sessions, stand behind each item."""
    pairs = rows.select("item_id", key).distinct().groupBy("item_id").count().toArrow()
    return dict(zip(pairs["item_id"].to_pylist(), pairs["count"].to_pylist(), strict=True))


# ---- A model -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class TierOnSpark:
    """One tier's fit.

    Attributes
    ----------
    gate, tier, permitted
        Which, and what it may be fitted on.
    config, min_persons
        How.
    folder
        For temporary files.
    draft
        Where to keep what is counted; None keeps nothing.
    """

    gate: SparkGate
    tier: Tier
    permitted: SparkRows
    config: TierConfig
    min_persons: int
    seed: int
    folder: Path
    draft: Draft | None

    @property
    def attributes(self) -> DataFrame | None:
        """The attributes that are inputs of the model."""
        return self.permitted.attributes if self.config.attribute_weight else None

    @property
    def session(self) -> SparkSession:
        """Spark."""
        return self.gate.session

    def fitted(self) -> FittedTier:
        """The model from scratch."""
        rows = self.gate.keep(self.permitted.rows)
        behind = distinct_behind(rows, "person")
        index = ItemIndex.from_ids(item for item, count in behind.items() if count >= self.min_persons)
        if not len(index):
            raise nothing_to_train_on(self.tier, self.permitted.funnel)
        encoder = self.encoder(len(index))
        model = estimator(self.tier, self.config, len(index), self.min_persons, 1, self.seed)
        if isinstance(model, ALS):
            given = self._with_inputs(self._published(rows, index), self.attributes, encoder)
            until, keep = self.permitted.until, self.gate.keep
            return fitted_als(self.tier, self.config, given, until, index, encoder, model, keep)
        counted = self.counted(rows, self.attributes, index, encoder, self.permitted.until)
        fitted = self.solved(counted, index, encoder)
        if self.draft is not None:
            hashed = HashedRows.of(rows, self.attributes, self.draft.key)
            self.draft.write_tables(counted, hashed.fingerprints(), behind)
        return fitted

    def solved(self, counted: DataFrame, index: ItemIndex, encoder: AttributeEncoder) -> FittedTier:
        """The model from its counts.

        Parameters
        ----------
        counted
            From `counted`.
        index, encoder
            The items that are published, and the attributes behind them.
        """
        model = self._model(len(index))
        inputs = len(index) + encoder.input_count
        counts, repeats = _small_counts(counted, inputs)
        statistics, files = self._statistics(counted, counts, model)
        weights = (
            self._solved(model, files, len(index))
            if isinstance(model, LocalRidge)
            else model.solve(statistics)
        )
        return counted_tier(
            self.tier,
            self.config,
            model,
            index,
            weights,
            published_counts(statistics, len(index)),
            encoder,
            borrowing(self.config, self.permitted.items),
            repeats if self.tier is Tier.SESSION else None,
        )

    def _model(self, items: int) -> LocalRidge | ItemKNN:
        model = estimator(self.tier, self.config, items, self.min_persons, 1)
        if not solves_counts(model):
            raise TypeError(f"{type(model).__name__} is not fitted from counts")
        return model

    def with_items(self, rows: DataFrame, ids: Iterable[str]) -> DataFrame:
        """The rows that have one of some items."""
        wanted = self.session.createDataFrame([(item,) for item in ids], "item_id string")
        return rows.join(functions.broadcast(wanted), "item_id", "left_semi")

    def _published(self, rows: DataFrame, index: ItemIndex) -> DataFrame:
        """The rows whose items are published: all of them, where one person is enough."""
        return rows if self.min_persons <= 1 else self.with_items(rows, index.ids(np.arange(len(index))))

    def encoder(self, items: int) -> AttributeEncoder:
        """Learnt from how many customers have each value of an attribute, counted on the executors."""
        attributes = self.attributes
        if attributes is None:
            return AttributeEncoder(())
        counts = _value_counts(attributes)
        return encoder_of_counts(counts, first_input=items, config=self.config, min_persons=self.min_persons)

    def _with_inputs(
        self, rows: DataFrame, attributes: DataFrame | None, encoder: AttributeEncoder
    ) -> DataFrame:
        """The rows, and one more for each customer with attributes: the numbers of their inputs."""
        rows = rows.withColumn("inputs", functions.lit(None).cast("array<int>"))
        if not encoder.input_count or attributes is None:
            return rows
        encode = functools.partial(encode_batches, encoder=encoder)
        encoded = attributes.mapInArrow(encode, "person string, inputs array<int>")
        return rows.unionByName(encoded, allowMissingColumns=True)

    def counted(
        self,
        rows: DataFrame,
        attributes: DataFrame | None,
        index: ItemIndex,
        encoder: AttributeEncoder,
        until: int,
    ) -> DataFrame:
        """All counts, summed: columns of `COUNTED`, kept on the executors.

        Parameters
        ----------
        rows, attributes
            The columns of `SparkRows.rows` and `SparkRows.attributes`, of whole persons.
        index, encoder
            The items that are counted, and the inputs of attributes behind them.
        until
            Microseconds since the epoch: all rows are from before it.
        """
        model = self._model(len(index))
        rows = self._published(rows, index)
        ridge = isinstance(model, LocalRidge)
        session = self.tier is Tier.SESSION
        coding = Coding(
            item_ids=tuple(index.ids(np.arange(len(index)))),
            attribute_inputs=encoder.input_count,
            until=until,
            by_session=session,
            matrix=matrix_settings(self.tier, self.config),
        )
        counting = Counting(
            coding=coding,
            row_exponent=model.row_exponent if isinstance(model, LocalRidge) else 0.0,
            min_persons=self.min_persons,
            distance_decay=model.distance_decay if isinstance(model, LocalRidge) else None,
            ordered=ridge and session,
        )
        rows = self._with_inputs(rows, attributes, encoder)
        counted = (
            rows.repartition("person")
            .sortWithinPartitions("person")
            .mapInArrow(functools.partial(count_batches, counting=counting), COUNTED)
        )
        return self.gate.keep(summed(counted))

    def _statistics(
        self, counted: DataFrame, counts: NDArray[np.int64], model: LocalRidge | ItemKNN
    ) -> tuple[GramStatistics, GramFiles]:
        """The Gram matrix in files of this process, and how executors find them."""
        inputs = counts.size
        budget = model.max_gram_entries if isinstance(model, LocalRidge) else None
        require_budget(budget, inputs)
        entries = _mirrored(counted.filter(functions.col("kind") == ENTRY))
        lengths = _lengths(entries, "i", inputs)
        total = int(lengths.sum())
        truncated = budget is not None and total > budget
        if budget is not None and truncated:
            entries = self.gate.keep(_strongest(entries, largest_rows(lengths, budget)))
            lengths = _lengths(entries, "i", inputs)
            left = int(lengths.sum())
            warnings.warn(GramTruncated.of(total=total, budget=budget, left=left), stacklevel=2)
        ordered = isinstance(model, LocalRidge) and self.tier is Tier.SESSION
        wanted = {"indices": ("j", np.int32), "data": ("value", np.int64)}
        if self.min_persons > 1:
            wanted["persons"] = ("persons", np.int64)
        if ordered:
            wanted["forward"] = ("forward", np.int64)
        arrays = {
            name: np.lib.format.open_memmap(
                self.folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(int(lengths.sum()),)
            )
            for name, (_, dtype) in wanted.items()
        }
        columns = {name: column for name, (column, _) in wanted.items()}
        starts = _fetch(self.gate, entries, "i", lengths, columns, arrays)
        small = starts[-1] <= np.iinfo(np.int32).max
        np.save(self.folder / "indptr.npy", starts.astype(np.int32) if small else starts)
        np.save(self.folder / "counts.npy", counts)
        for array in arrays.values():
            array.flush()
        files = GramFiles(
            names={name: f"{name}.npy" for name in (*wanted, "indptr", "counts")},
            row_exponent=model.row_exponent if isinstance(model, LocalRidge) else 0.0,
            min_persons=self.min_persons,
            truncated=truncated,
            distance_decay=model.distance_decay if isinstance(model, LocalRidge) else None,
        )
        return files.statistics(self.folder), files

    def _solved(self, model: LocalRidge, files: GramFiles, items: int) -> sp.csr_matrix:
        """Solve the items on the executors, each of which gets a copy of the statistics."""
        key = uuid.uuid4().hex
        names = {name: f"{key}-{file}" for name, file in files.names.items()}
        for name, file in files.names.items():
            placed = self.folder / names[name]
            (self.folder / file).rename(placed)
            self.session.sparkContext.addFile(str(placed))
        chunks = min(items, _CHUNKS_PER_CORE * self.session.sparkContext.defaultParallelism)
        solving = Solving(model, dataclasses.replace(files, names=names), items, chunks)
        chunk = self.session.range(0, chunks, 1, chunks).withColumnRenamed("id", "chunk")
        solved = self.gate.keep(chunk.mapInArrow(functools.partial(solve_batches, solving=solving), SOLVED))
        lengths = _lengths(solved, "item", items)
        inputs = np.empty(int(lengths.sum()), dtype=np.int32)
        data = np.empty(int(lengths.sum()), dtype=np.float32)
        columns = {"inputs": "input", "weights": "weight"}
        starts = _fetch(self.gate, solved, "item", lengths, columns, {"inputs": inputs, "weights": data})
        all_inputs = np.load(self.folder / names["counts"], mmap_mode="r").size
        return sp.csc_matrix((data, inputs, starts), shape=(all_inputs, items)).tocsr()


def summed(counts: DataFrame) -> DataFrame:
    """Counts added up; where a sum does not fit, it is null."""
    sums = [functions.try_sum(name).alias(name) for name in ("value", "forward", "persons")]
    return counts.groupBy("kind", "i", "j").agg(*sums)


def _value_counts(attributes: DataFrame) -> dict[str, ValueCounts]:
    """How many customers have each value of each attribute, as `attribute_counts` says it."""
    fields = [field for field in attributes.schema.fields if field.name != "person"]
    of_texts = [field.name for field in fields if isinstance(field.dataType, _TEXTS)]
    of_numbers = [field.name for field in fields if isinstance(field.dataType, _NUMBERS)]
    texts: dict[str, dict[str, int]] = {name: {} for name in of_texts}
    numbers: dict[str, dict[float, int]] = {name: {} for name in of_numbers}
    for column, value, count in _counted_values(attributes, of_texts, "string"):
        texts[column][value] = count
    for column, value, count in _counted_values(attributes, of_numbers, "double"):
        if math.isfinite(value):
            numbers[column][value] = count
    return {
        name: dict(sorted(texts[name].items())) if name in texts else dict(sorted(numbers[name].items()))
        for name in attributes.columns
        if name in texts or name in numbers
    }


def _counted_values(
    attributes: DataFrame, names: Sequence[str], type_name: str
) -> Iterator[tuple[str, Any, int]]:
    """Each value of each column, and how often it occurs; columns of one type at once."""
    if not names:
        return
    columns = attributes.select(*(functions.col(name).cast(type_name).alias(name) for name in names))
    values = columns.unpivot([], list(names), "column", "value").filter("value IS NOT NULL")
    found = values.groupBy("column", "value").count().toArrow()
    yield from zip(*(found[name].to_pylist() for name in ("column", "value", "count")), strict=True)


def _small_counts(counted: DataFrame, inputs: int) -> tuple[NDArray[np.int64], RepeatCounts]:
    """The persons behind each input and the table of repeats, once all sums are known to fit int64.

    `try_sum` makes a sum that does not fit null. No entry exceeds the largest of the diagonal, by Cauchy and
    Schwarz.
    """
    found = counted.filter((functions.col("kind") != ENTRY) | functions.expr("i = j")).toArrow()
    kinds, i, j = (found[name].to_numpy() for name in ("kind", "i", "j"))
    persons = found["persons"].to_numpy()
    diagonal = np.zeros(inputs)
    diagonal[i[kinds == ENTRY]] = (
        found["value"].cast(pa.float64()).fill_null(np.inf).to_numpy()[kinds == ENTRY]
    )
    require_sums_fit(diagonal)
    values = found["value"].to_numpy()
    counts = np.zeros(inputs, dtype=np.int64)
    counts[i[kinds == INPUT]] = values[kinds == INPUT]
    shape = (LONGEST_SESSION, LONGEST_SESSION + 1)
    repeats = RepeatCounts(np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64))
    cells = i[kinds == REPEAT], j[kinds == REPEAT]
    repeats.events[cells], repeats.persons[cells] = values[kinds == REPEAT], persons[kinds == REPEAT]
    return counts, repeats


def _mirrored(upper: DataFrame) -> DataFrame:
    """The whole of a symmetric matrix: what came forward in an entry came backward in its mirror image."""
    names = ("i", "j", "value", "forward", "persons")
    lower = upper.filter("i < j").selectExpr(
        "j AS i", "i AS j", "value", "value - forward AS forward", "persons"
    )
    return upper.select(*names).unionAll(lower)


def _strongest(entries: DataFrame, room: int) -> DataFrame:
    """Keep the strongest entries of each row, the diagonal among them, and their mirror images."""
    by_strength = Window.partitionBy("i").orderBy(
        (functions.col("i") == functions.col("j")).desc(),
        functions.col("value").desc(),
        functions.col("j").asc(),
    )
    kept = entries.withColumn("rank", functions.row_number().over(by_strength)).filter(
        functions.col("rank") <= room
    )
    pairs = kept.select("i", "j").unionAll(kept.selectExpr("j AS i", "i AS j")).distinct()
    return entries.join(pairs, ["i", "j"], "left_semi")


def _lengths(entries: DataFrame, row: str, rows: int) -> NDArray[np.int64]:
    """How many entries each row of a matrix has."""
    found = entries.groupBy(row).count().toArrow()
    lengths = np.zeros(rows, dtype=np.int64)
    lengths[found[row].to_numpy()] = found["count"].to_numpy()
    return lengths


def _fetch(
    gate: SparkGate,
    entries: DataFrame,
    row: str,
    lengths: NDArray[np.int64],
    columns: Mapping[str, str],
    arrays: Mapping[str, NDArray[Any]],
) -> NDArray[np.int64]:
    """Fill arrays with the entries of a matrix by row and column, some rows at a time; where each row starts.

    Parameters
    ----------
    gate
        Keeps the entries sorted by row where they come in several parts: Spark then skips what lies outside
        of a part, and would otherwise read all entries for each.
    entries, row
        The matrix on Spark, and its column of row numbers.
    lengths
        int64, shape (rows,): from `_lengths`.
    columns
        Array by array, which column of `entries` fills it. The first one is that of the column numbers.
    arrays
        The arrays, of as many entries as there are.
    """
    starts = np.concatenate(([0], np.cumsum(lengths)))
    parts = (starts[1:] - 1) // _FETCHED_AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), lengths.size]
    second = next(iter(columns.values()))
    if len(edges) > 2:
        entries = gate.keep(entries.repartitionByRange(len(edges) - 1, row).sortWithinPartitions(row))
    for start, stop in itertools.pairwise(edges):
        part = entries.filter((functions.col(row) >= start) & (functions.col(row) < stop)).select(
            row, *columns.values()
        )
        found = part.toArrow()
        order = np.lexsort((found[second].to_numpy(), found[row].to_numpy()))
        for name, column in columns.items():
            arrays[name][starts[start] : starts[stop]] = found[column].to_numpy()[order]
    return starts
