"""Training on schedule on Apache Spark: the tables of the earlier fit, in which rows are exchanged.

What `training.retrain` does on one machine, where the rows lie. Whose rows changed is found by a join of
fingerprints; the counts of their old rows are subtracted from the kept ones, and those of their new rows
added, by one union and one sum over pairs. All items are solved again. No row and no name of a person comes
to the driver.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession

from consentier.consent import Ledger, Policy, Tier
from consentier.consent.records import SubjectKind
from consentier.features.consent_intervals import ConsentTables
from consentier.features.gate import Funnel
from consentier.features.spark_gate import SparkGate
from consentier.features.spark_session import errors_of_tasks
from consentier.features.spark_tables import SparkTables
from consentier.models.attribute_encoding import AttributeEncoder
from consentier.models.bundle import Bundle
from consentier.models.item_index import ItemIndex
from consentier.training.bundles import TRAINED_TIERS, Fit
from consentier.training.cold_items import borrowing
from consentier.training.config import Config
from consentier.training.counted import Circumstances, circumstances_of, one_at_a_time
from consentier.training.decrement import (
    CHANGED,
    NotExactError,
    attribute_places,
    encoder_of,
    spanned,
)
from consentier.training.fit import FittedTier
from consentier.training.restricted import Restricted
from consentier.training.retrain import (
    COUNTED_ANEW,
    Course,
    How,
    RetrainedTier,
    RetrainResult,
    brought_up,
    ledger_at_fit,
    require_exchangeable,
    require_same_parameters,
    result_of,
)
from consentier.training.spark_statistics import Draft, HashedRows, TablesOnSpark, tables_of
from consentier.training.spark_tasks import COUNTED, ENTRY, INPUT
from consentier.training.spark_training import (
    TierOnSpark,
    distinct_behind,
    fit_on_spark,
    put_on_spark,
    require_counted,
    run_facts_on_spark,
    summed,
)
from consentier.writing import remove_remnants_in

__all__ = ["Comparison", "EarlierGates", "exchanged_on_spark", "retrain_on_spark"]


def retrain_on_spark(
    session: SparkSession,
    shop: SparkTables,
    config: Config,
    out: Path,
    restricted: Restricted,
    *,
    tiers: Sequence[Tier] = TRAINED_TIERS,
    policy: Policy | None = None,
    ledger: Ledger | None = None,
    show_progress: bool = True,
) -> RetrainResult:
    """Bring bundles to a new cut-off on Spark: each becomes what `train` gives, byte for byte.

    Safe to kill and to run again, as `retrain` is.

    Parameters
    ----------
    session, shop
        As for `train_on_spark`.
    config, out, tiers, policy, ledger, show_progress
        As for `retrain`. Each tier's algorithm must be ``local_ridge`` or ``cosine``.
    restricted
        The trainer's restricted directory, which driver and executors see under one name. Statistics that
        were kept on one machine are not used: the tier is fitted from scratch.

    Raises
    ------
    ConfigError
        A tier asks for an algorithm that is not fitted on Spark.
    DataError
        A row breaks the data contract.
    TrainingError
        If no tier has anything to train on.
    StatisticsError
        If new tables cannot be put in place. The new bundle stands; a later run fits from scratch.

    Notes
    -----
    All rows pass the gate, and those of whoever changed that of the earlier fit, which reads all tables once
    more. Counting is of the histories that changed; the kept tables are read and written whole. All items are
    solved again, on the executors. The memory of the driver is that of `train_on_spark`. A run on Spark is
    not recorded.
    """
    policy = Policy.default() if policy is None else policy
    cutoff = config.training.cutoff or dt.datetime.now(dt.UTC)
    require_counted(config, tiers)
    consents = None if ledger is None else ConsentTables.of(ledger)
    with (
        one_at_a_time(restricted),
        errors_of_tasks(),
        EarlierGates.open(session, shop) as earlier,
        SparkGate(session, shop, cutoff, policy, consents=consents) as gate,
    ):
        remove_remnants_in(out)
        entries = shop.entries() if ledger is None else ledger.position
        run = _Run(gate, config, out, restricted, ledger, entries, earlier, show_progress)
        return result_of([_retrained(tier, run) for tier in tiers], out, cutoff)


@dataclasses.dataclass(frozen=True, slots=True)
class _Run:
    """One call of `retrain_on_spark`."""

    gate: SparkGate
    config: Config
    out: Path
    restricted: Restricted
    ledger: Ledger | None
    entries: int
    earlier: EarlierGates
    show_progress: bool


def _retrained(tier: Tier, run: _Run) -> tuple[RetrainedTier, tuple[Funnel, ...]]:
    with Draft.open(run.gate.session, run.restricted, tier) as draft:

        def write(fit: Fit, how: How) -> str:
            facts = run_facts_on_spark(run.config, run.ledger, run.entries, fit)
            facts["retrained"] = how
            return put_on_spark(tier, fit, facts, run.out, gate=run.gate, draft=draft, force=True)

        def fit(before: Bundle | None, course: Course) -> Fit:
            def fit_model(one: TierOnSpark) -> FittedTier:
                if before is not None:
                    try:
                        return _exchanged(one, before, run, course)
                    except NotExactError as error:
                        course.reason = str(error)
                return one.fitted()

            if tier is Tier.POPULAR and before is not None:
                course.reason = COUNTED_ANEW
            return fit_on_spark(tier, run.gate, run.config, draft, show_progress=False, fit_model=fit_model)

        return brought_up(
            tier, run.out, run.restricted, run.config.tracking, fit, write, show_progress=run.show_progress
        )


def _exchanged(one: TierOnSpark, bundle: Bundle, run: _Run, course: Course) -> FittedTier:
    """The tier's model by an exchange of rows.

    Raises `NotExactError` where that would not give what a fit gives, and `UnchangedError` where there is
    nothing to exchange.
    """
    tables = tables_of(one.session, one.tier, bundle, run.restricted)
    require_same_parameters(one.tier, bundle, run.config)
    compared = Comparison.of(one, tables)
    course.changed, course.new, course.gone = compared.changed, compared.new, compared.gone
    persons = compared.same + compared.changed + max(compared.new, compared.gone)
    borrow = borrowing(one.config, one.permitted.items)
    require_exchangeable(
        one.tier, bundle, one.config, tables.facts, run.gate, course, borrow=borrow, persons=persons
    )
    then = circumstances_of(tables.facts, None)
    ledger = None if run.ledger is None else ledger_at_fit(run.out / one.tier, run.ledger)
    fitted, course.solved = exchanged_on_spark(
        one, bundle, tables, compared, functools.partial(run.earlier.gate, then, ledger)
    )
    return fitted


class EarlierGates:
    """The gates of earlier fits, each made when it is first asked for. Make it with `open`."""

    def __init__(
        self,
        session: SparkSession,
        shop: SparkTables,
        without: Mapping[SubjectKind, Sequence[str]],
        opened: contextlib.ExitStack,
    ) -> None:
        self._session = session
        self._shop = shop
        self._without = without
        self._opened = opened
        self._gates: dict[tuple[object, ...], SparkGate] = {}

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        session: SparkSession,
        shop: SparkTables,
        without: Mapping[SubjectKind, Sequence[str]] | None = None,
    ) -> Iterator[Self]:
        """Gates over the rows of a shop, less those of some subjects; freed at the end of the block."""
        with contextlib.ExitStack() as opened:
            yield cls(session, shop, without or {}, opened)

    def gate(self, then: Circumstances, ledger: Ledger | None) -> SparkGate:
        """The gate of a fit.

        Parameters
        ----------
        then
            Under what it was fitted.
        ledger
            What the ledger held; None for the shop's own consents.
        """
        position = None if ledger is None else ledger.position
        key = (then.cutoff, then.until, then.policy.switches, position)
        if key not in self._gates:
            consents = None if ledger is None else ConsentTables.of(ledger)
            gate = SparkGate(
                self._session, self._shop, then.cutoff, then.policy,
                until=then.until, consents=consents, without=self._without,
            )  # fmt: skip
            self._gates[key] = self._opened.enter_context(gate)
        return self._gates[key]


# ---- An exchange of rows -----------------------------------------------------------------------------------

_SAME, _CHANGED, _NEW, _GONE = "same", "changed", "new", "gone"


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Whose rows are those that were counted.

    Attributes
    ----------
    rows
        The permitted rows, with the hashes of the kept tables' key.
    fingerprints
        Of all persons who have some.
    told
        Columns person_hash, how (same, changed, new or gone) and before: the fingerprint that was kept.
    same, changed, new, gone
        How many persons.
    """

    rows: HashedRows
    fingerprints: DataFrame
    told: DataFrame
    same: int
    changed: int
    new: int
    gone: int

    @classmethod
    def of(cls, one: TierOnSpark, tables: TablesOnSpark) -> Self:
        """Compare what may be counted with what was."""
        keep = one.gate.keep
        hashed = HashedRows.of(one.permitted.rows, one.attributes, tables.key)
        hashed = dataclasses.replace(hashed, rows=keep(hashed.rows))
        now = keep(hashed.fingerprints())
        before = tables.fingerprints.withColumnRenamed("fingerprint", "before")
        told = now.join(before, "person_hash", "full_outer").selectExpr(
            "person_hash",
            f"CASE WHEN before IS NULL THEN '{_NEW}' WHEN fingerprint IS NULL THEN '{_GONE}' "
            f"WHEN fingerprint = before THEN '{_SAME}' ELSE '{_CHANGED}' END AS how",
            "before",
        )
        told = keep(told)
        counted = told.groupBy("how").count().toArrow()
        counts = dict(zip(counted["how"].to_pylist(), counted["count"].to_pylist(), strict=True))
        return cls(hashed, now, told, *(counts.get(how, 0) for how in (_SAME, _CHANGED, _NEW, _GONE)))

    def persons(self, *how: str) -> DataFrame:
        """Those of whom that is told."""
        return self.told.filter(self.told["how"].isin(*how)).select("person_hash", "before")


@dataclasses.dataclass(frozen=True, slots=True)
class _Side:
    """The published items and the attributes behind them, before an exchange or after it."""

    index: ItemIndex
    encoder: AttributeEncoder


def exchanged_on_spark(
    one: TierOnSpark,
    bundle: Bundle,
    tables: TablesOnSpark,
    compared: Comparison,
    earlier_gate: functools.partial[SparkGate],
) -> tuple[FittedTier, int]:
    """The tier's model from kept tables in which rows were exchanged, and how many items were solved.

    The draft gets the new tables.

    Parameters
    ----------
    one
        The tier, with what it is to be fitted on.
    bundle, tables
        As it stands, and what it was computed from.
    compared
        Who differs.
    earlier_gate
        Gives the gate of the earlier fit.

    Raises
    ------
    NotExactError
        The rows that were counted cannot be found again, or no item is left with enough persons.

    Notes
    -----
    The tables are read and written once. Shuffles the rows of who changed, or has an item that came to be
    published or ceased to be, or another input for an attribute.
    """
    removed, until = _counted_rows(one, tables, compared, earlier_gate)
    added = compared.rows.of_persons(compared.persons(_CHANGED, _NEW).select("person_hash"))
    behind = _exchanged_counts(tables.behind, removed.rows, added.rows)
    index = ItemIndex.from_ids(item for item, count in behind.items() if count >= one.min_persons)
    if not len(index):
        raise NotExactError("no item is left with enough persons")
    old = _Side(tables.published(one.min_persons), encoder_of(bundle))
    new = _Side(index, one.encoder(len(index)))
    before, after = spanned(old.index, old.encoder, new.index, new.encoder)
    others = _others(one, compared, old, new)
    if others is not None:
        removed, added = removed.together_with(others), added.together_with(others)
    first = old.encoder.moved_to(len(old.index))
    less = one.counted(removed.plain(), removed.attributes, old.index, first, until)
    more = one.counted(added.plain(), added.attributes, new.index, new.encoder, one.permitted.until)
    parts = (
        (tables.counts, before.places, 1), (less, before.places, -1), (more, after.places, 1),
    )  # fmt: skip
    sums = None
    for counts, places, sign in parts:
        part = _renumbered(counts, places, sign)
        sums = part if sums is None else sums.unionAll(part)
    back = np.full(after.size, -1, dtype=np.int64)
    back[after.places] = np.arange(after.places.size)
    kept = summed(sums).filter("value IS NULL OR value <> 0")
    counted = one.gate.keep(_renumbered(kept, back, 1))
    # Less than nothing was counted, or somebody has an input that nobody should have.
    if not counted.filter("value < 0 OR persons < 0 OR i < 0 OR j < 0").isEmpty():
        raise NotExactError(CHANGED)
    fitted = one.solved(counted, new.index, new.encoder)
    if one.draft is not None:
        one.draft.key = tables.key
        one.draft.write_tables(counted, compared.fingerprints, behind)
    return fitted, len(new.index)


def _counted_rows(
    one: TierOnSpark,
    tables: TablesOnSpark,
    compared: Comparison,
    earlier_gate: functools.partial[SparkGate],
) -> tuple[HashedRows, int]:
    """The rows that were counted of those whose rows are others now, or who have none; and their end.

    Raises `NotExactError` where they are not there any more.
    """
    leaving = compared.persons(_CHANGED, _GONE)
    if not compared.changed + compared.gone:
        return compared.rows.of_persons(leaving.select("person_hash")), one.permitted.until
    earlier = earlier_gate().permitted(one.tier)
    attributes = earlier.attributes if one.config.attribute_weight else None
    hashed = HashedRows.of(earlier.rows, attributes, tables.key).of_persons(leaving.select("person_hash"))
    hashed = dataclasses.replace(hashed, rows=one.gate.keep(hashed.rows))
    found = leaving.join(hashed.fingerprints(), "person_hash", "left")
    if not found.filter("fingerprint IS NULL OR fingerprint <> before").isEmpty():
        raise NotExactError(CHANGED)
    return hashed, earlier.until


def _exchanged_counts(behind: Mapping[str, int], removed: DataFrame, added: DataFrame) -> dict[str, int]:
    """Distinct persons by item after an exchange.

    Raises `NotExactError` where the rows to be removed were not counted.
    """
    counts = dict(behind)
    for rows, sign in ((removed, -1), (added, 1)):
        for item, persons in distinct_behind(rows, "person").items():
            counts[item] = counts.get(item, 0) + sign * persons
    if any(count < 0 for count in counts.values()):
        raise NotExactError(CHANGED)
    return {item: count for item, count in counts.items() if count}


def _others(one: TierOnSpark, compared: Comparison, old: _Side, new: _Side) -> HashedRows | None:
    """The rows of those who have the same as before, of which something else is made now."""
    known = [set(side.index.ids(np.arange(len(side.index)))) for side in (old, new)]
    crossing = known[0] ^ known[1]
    theirs = []
    if crossing:
        theirs.append(one.with_items(compared.rows.rows, sorted(crossing)).select("person_hash"))
    first, second = (side.encoder.moved_to(0) for side in (old, new))
    attributes, hashes = compared.rows.attributes, compared.rows.hashes
    if attributes is not None and hashes is not None and first != second:
        places = attribute_places(first, second)
        moved = functools.partial(_moved, encoders=(first, second), places=(places.old, places.new))
        names = attributes.mapInArrow(moved, "person string")
        theirs.append(hashes.join(names, "person", "left_semi").select("person_hash"))
    if not theirs:
        return None
    persons = functools.reduce(DataFrame.unionAll, theirs).distinct()
    same = compared.persons(_SAME).select("person_hash")
    return compared.rows.of_persons(one.gate.keep(persons.join(same, "person_hash", "left_semi")))


def _moved(
    batches: Iterator[pa.RecordBatch],
    encoders: tuple[AttributeEncoder, AttributeEncoder],
    places: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> Iterator[pa.RecordBatch]:
    """The customers whose attributes have other inputs by one encoder than by the other."""
    for batch in batches:
        persons = []
        for row in batch.to_pylist():
            person = row.pop("person")
            before, after = (
                [int(of_side[n]) for n in encoder.inputs(row)]
                for encoder, of_side in zip(encoders, places, strict=True)
            )
            if before != after:
                persons.append(person)
        yield pa.RecordBatch.from_arrays([pa.array(persons, pa.string())], names=["person"])


def _renumbered(counts: DataFrame, places: NDArray[np.int64], sign: int) -> DataFrame:
    """Counts by other numbers of the inputs: `places` by the number; with `sign` -1 to be subtracted."""
    return counts.select("kind", "i", "j", "value", "forward", "persons").mapInArrow(
        functools.partial(_renumber, places=places, sign=sign), COUNTED
    )


def _renumber(
    batches: Iterator[pa.RecordBatch], places: NDArray[np.int64], sign: int
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        kind, i, j = (batch.column(name).to_numpy() for name in ("kind", "i", "j"))
        of_input, of_pair = np.isin(kind, (ENTRY, INPUT)), kind == ENTRY
        i, j = i.copy(), j.copy()
        i[of_input], j[of_pair] = places[i[of_input]], places[j[of_pair]]
        values = [batch.column(name) for name in ("value", "forward", "persons")]
        if sign < 0:
            values = [pc.negate(column) for column in values]
        yield pa.RecordBatch.from_arrays(
            [batch.column("kind"), pa.array(i, pa.int32()), pa.array(j, pa.int32()), *values],
            schema=batch.schema,
        )
