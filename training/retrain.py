"""Training on schedule: bundles of a later cut-off, from what the earlier fit counted where that is exact.

Every row passes the gate at the new cut-off, as in training. Fingerprints then tell whose rows are still
those that the earlier fit counted. For all others, be they changed, new, withdrawn or lapsed, the old rows
are found again through the gate of that fit and subtracted whole, and the new ones are added; what they bear
on is solved again. The bundle is, byte for byte, the one that `training.train` would make. Where that cannot
be had by an exchange of rows, or by one that is less work than a fit (`training.retrain_work`), the tier is
fitted from scratch, and the result says why.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from consentier.consent import Ledger, Policy, Tier
from consentier.consent.records import SubjectKind
from consentier.errors import BundleError, BundleMissing, NothingPermitted, TrainingError
from consentier.features.attributes import fit_attributes
from consentier.features.consent_intervals import ConsentTables
from consentier.features.gate import ConsentGate, Funnel, PermittedRows, ledger_of
from consentier.features.tables import ShopTables
from consentier.models.attribute_encoding import (
    AttributeEncoder,
    AttributeValue,
    CategoryColumn,
    NumberColumn,
)
from consentier.models.bundle import Bundle, open_bundle, read_run
from consentier.models.item_index import ItemIndex
from consentier.models.local_ridge import LocalRidge
from consentier.models.statistics import (
    Fingerprints,
    KeptStatistics,
    Statistics,
    StatisticsError,
    among,
    read_statistics,
)
from consentier.progress import progress
from consentier.serving.factor_scorer import FACTOR_ALGORITHMS
from consentier.training.bundles import (
    RETIRED,
    TRAINED_TIERS,
    Fit,
    TrainingResult,
    fit_one,
    parameters_of,
    put,
    retire,
)
from consentier.training.cold_items import Borrowing, borrowing
from consentier.training.config import Config, TierConfig, TrackingConfig
from consentier.training.counted import (
    COLUMNS,
    Subject,
    around,
    circumstances_of,
    of_persons,
    one_at_a_time,
    permitted_rows,
    person_names,
    rows_of,
    statistics_of,
)
from consentier.training.decrement import (
    CHANGED,
    Exchange,
    NotExactError,
    Renewed,
    attribute_places,
    config_of,
    encoder_of,
    exchanged,
    exchanged_counts,
    min_persons_of,
    with_items,
)
from consentier.training.fingerprints import named_fingerprints, text_hashes
from consentier.training.fit import PERSONS, FittedTier, GateSettings, attribute_counts, estimator, fit_tier
from consentier.training.record import record_run, unrecorded
from consentier.training.restricted import Restricted
from consentier.training.retired_versions import stop_versions
from consentier.training.retrain_work import Estimate, Extent, estimated
from consentier.training.run_facts import run_facts
from consentier.writing import remove_remnants_in

__all__ = [
    "COUNTED_ANEW",
    "MOST_EXCHANGED",
    "Course",
    "How",
    "RetrainResult",
    "RetrainedTier",
    "UnchangedError",
    "brought_up",
    "ledger_at_fit",
    "require_exchangeable",
    "require_less_work",
    "require_same_parameters",
    "result_of",
    "retrain",
]

MOST_EXCHANGED = 0.5
"""Share of persons whose rows changed above which a fit from scratch is taken to be the quicker way, where no
`Estimate` is made. A guess: above it, more rows would be exchanged than a fit counts."""

COUNTED_ANEW = "counting anew is as quick as exchanging counts"
"""Why a popular list is never trained on by an exchange."""

How = Literal["unchanged", "incremental", "refitted", "removed", "unsolved"]


_NOT_FITTED: tuple[How, ...] = ("removed", "unsolved")


@dataclasses.dataclass(frozen=True, slots=True)
class RetrainedTier:
    """What became of one bundle.

    Attributes
    ----------
    tier
        Which.
    how
        ``incremental``: rows were exchanged in the kept statistics. ``refitted``: it was fitted from scratch.
        ``unchanged``: it is already the one that training would make. ``removed``: nothing may be used any
        more. ``unsolved``: the fit has no stable solution; the bundle that stood there, if one did, stays.
    reason
        Why it was not incremental; None where it was.
    before, after
        Digest of the bundle; None where there was, or is, none.
    changed, new, gone
        Persons whose rows are others than those that were counted, who were not counted, and who were but
        have no permitted rows any more; None where that was not found out.
    solved
        How many of the items were solved again; None where that is not a matter of single items.
    items
        Items of the bundle that stands now.
    seconds
        How long it took.
    estimate
        By which it was chosen between an exchange and a fit; None where there was no choice.
    """

    tier: Tier
    how: How
    reason: str | None
    before: str | None
    after: str | None
    changed: int | None
    new: int | None
    gone: int | None
    solved: int | None
    items: int
    seconds: float
    estimate: Estimate | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RetrainResult:
    """What a run did.

    Attributes
    ----------
    tiers
        Bundle by bundle.
    training
        The bundles that were written, as `train` says it; and the runs and versions of all that were
        recorded, among which may be unchanged ones that had no record.
    """

    tiers: tuple[RetrainedTier, ...]
    training: TrainingResult


def retrain(
    shop: ShopTables,
    config: Config,
    out: Path,
    restricted: Restricted,
    *,
    tiers: Sequence[Tier] = TRAINED_TIERS,
    policy: Policy | None = None,
    ledger: Ledger | None = None,
    show_progress: bool = True,
    name: str = "shop",
) -> RetrainResult:
    """Bring bundles to a new cut-off: each becomes what `train` gives, byte for byte; and record the run.

    Safe to kill and to run again: bundles are renamed into place, and statistics that do not belong to the
    bundle beside them are not used. A tier that is already as it would be trained is left alone.

    Parameters
    ----------
    shop
        The shop's tables, as they are now.
    config
        Resolved configuration. A tier that was fitted with another one is fitted from scratch.
    out
        Directory of the bundles; tiers without one are fitted for the first time.
    restricted
        The trainer's restricted directory, in which the statistics are kept.
    tiers
        Which to train.
    policy
        Its switches decide which rows may be used; the default policy otherwise.
    ledger
        Consents and links; by default those of the shop's tables.
    show_progress
        Say on standard error what is being done.
    name
        What to call the data in the record.

    Raises
    ------
    TrainingError
        If no tier has anything to train on, or a fit with a stable solution.
    StatisticsError
        If new statistics cannot be written. The new bundle stands; a later run fits from scratch.

    Notes
    -----
    The gate reads all rows, as in training. Beyond that: linear in the rows (fingerprints) and in the size of
    the statistics, quadratic in the histories that changed, and what is solved again: items among whose
    strongest neighbours is one of such a history. One tier after the other, each written before the next.

    Recording measures the bundles that were written, which takes several fits more (`record_run`):
    ``tracking.enabled = false`` spares it. A bundle that is unchanged and has no version in the registry,
    because the run that wrote it was killed, is recorded too.
    """
    policy = Policy.default() if policy is None else policy
    cutoff = config.training.cutoff or dt.datetime.now(dt.UTC)
    with one_at_a_time(restricted):
        remove_remnants_in(out)
        ledger = ledger_of(shop) if ledger is None else ledger
        gate = ConsentGate(shop, ledger, cutoff, policy)
        run = _Run(shop, config, out, restricted, ledger, gate, show_progress)
        result = result_of([_retrained(tier, run) for tier in tiers], out, cutoff)
        if config.tracking.enabled:
            unchanged = [each for each in result.tiers if each.how == "unchanged"]
            recorded = _recorded(run, result.training, _digests(unchanged), name)
            result = dataclasses.replace(result, training=recorded)
    return result


def result_of(
    done: Sequence[tuple[RetrainedTier, tuple[Funnel, ...]]], out: Path, cutoff: dt.datetime
) -> RetrainResult:
    """What a run did, from what it did to each tier, and what the gate kept out of it.

    Raises
    ------
    TrainingError
        No tier has anything to train on, or a fit with a stable solution.
    """
    told = tuple(each for each, _ in done)
    if all(each.how in _NOT_FITTED for each in told):
        raise TrainingError("; ".join(each.reason or "" for each in told))
    written = [each for each in told if each.how in ("incremental", "refitted")]
    trained = TrainingResult(
        out,
        _digests(written),
        {str(each.tier): each.reason or "" for each in told if each.how in _NOT_FITTED},
        [dataclasses.asdict(funnel) for _, funnels in done for funnel in funnels],
        {str(each.tier): each.seconds for each in written},
        cutoff,
    )
    return RetrainResult(told, trained)


def _digests(tiers: Sequence[RetrainedTier]) -> dict[str, str]:
    return {str(each.tier): each.after for each in tiers if each.after is not None}


def _recorded(run: _Run, trained: TrainingResult, unchanged: Mapping[str, str], name: str) -> TrainingResult:
    """Record what was written, and what an earlier run wrote but was killed before it recorded it."""
    with progress(
        "looking for bundles without a record", None, enabled=run.show_progress and bool(unchanged)
    ):
        missing = unrecorded(run.config, run.out, unchanged) if unchanged else {}
    about = dataclasses.replace(trained, digests={**trained.digests, **missing})
    if not about.digests:
        return trained
    recorded = record_run(
        run.shop, run.config, about, policy=run.gate.policy, ledger=run.ledger, restricted=run.restricted,
        name=name, show_progress=run.show_progress,
    )  # fmt: skip
    return dataclasses.replace(trained, run_ids=recorded.run_ids, versions=recorded.versions)


@dataclasses.dataclass(frozen=True)
class _Run:
    """One call of `retrain`."""

    shop: ShopTables
    config: Config
    out: Path
    restricted: Restricted
    ledger: Ledger
    gate: ConsentGate
    show_progress: bool

    @functools.cached_property
    def names(self) -> Mapping[SubjectKind, pa.Array]:
        """The names of all persons who have rows, whether or not they may be used."""
        return {
            kind: person_names(kind, sorted({each for name in tables for each in self._ids(name, column)}))
            for kind, (column, tables) in COLUMNS.items()
        }

    def _ids(self, table: str, column: str) -> list[str]:
        ids: list[str] = pc.unique(getattr(self.shop, table)[column]).to_pylist()
        return ids


class UnchangedError(Exception):
    """There is nothing to do."""


@dataclasses.dataclass(slots=True)
class Course:
    """How a tier's fit goes, as it comes to light: the fields of `RetrainedTier`."""

    reason: str | None = None
    changed: int | None = None
    new: int | None = None
    gone: int | None = None
    solved: int | None = None
    estimate: Estimate | None = None


def _retrained(tier: Tier, run: _Run) -> tuple[RetrainedTier, tuple[Funnel, ...]]:
    def write(fit: Fit, how: How) -> str:
        facts = run_facts(run.config, run.ledger, fit.funnel, fit.rows_digest, fit.seconds)
        facts["data_summary"] = fit.summary
        facts["retrained"] = how
        return put(
            tier, fit, facts, run.out, gate=run.gate, ledger=run.ledger, restricted=run.restricted, force=True
        )

    def fit(before: Bundle | None, course: Course) -> Fit:
        return _fitted(tier, before, run, course)

    return brought_up(
        tier, run.out, run.restricted, run.config.tracking, fit, write, show_progress=run.show_progress
    )


def brought_up(
    tier: Tier,
    out: Path,
    restricted: Restricted,
    tracking: TrackingConfig,
    fit_tier_anew: Callable[[Bundle | None, Course], Fit],
    write: Callable[[Fit, How], str],
    *,
    show_progress: bool,
) -> tuple[RetrainedTier, tuple[Funnel, ...]]:
    """Fit a tier in the one way or the other, and put it in place; also say what the gate kept out of it.

    Parameters
    ----------
    tier, out, restricted
        Which, and where its bundle and statistics are.
    tracking
        Where its versions are registered: they stop if the tier loses its bundle.
    fit_tier_anew
        The model, given the bundle that stands, if one does. Raises `UnchangedError` where that is the one
        that would come out, and says in the course why it had to fit from scratch.
    write
        Puts the bundle and what is kept of persons in place; gives the digest.
    """
    started = time.perf_counter()
    course = Course()
    before, fit = None, None
    how: How = "incremental"
    try:
        before = open_bundle(out / tier)
    except BundleError as error:
        course.reason = "there is no bundle yet" if isinstance(error, BundleMissing) else str(error)
    try:
        with progress(f"retraining the {tier} tier", None, enabled=show_progress):
            fit = fit_tier_anew(before, course)
        how = "incremental" if course.reason is None else "refitted"
    except UnchangedError:
        how = "unchanged"
    except NothingPermitted as error:
        stop_versions(tracking, out, restricted, tier)
        how = "removed"
        course.reason = str(error) + (RETIRED if retire(tier, out, restricted) else "")
    except TrainingError as error:
        # As in training: that one tier has no solution keeps the others from nothing.
        how, course.reason = "unsolved", str(error)
    after = None if before is None or how == "removed" else before.digest
    items = 0 if before is None or how == "removed" else before.manifest.item_count
    if fit is not None:
        after = write(fit, how)
        items = fit.model.item_count
    seconds = round(time.perf_counter() - started, 3)
    told = RetrainedTier(
        tier, how, course.reason, None if before is None else before.digest, after,
        course.changed, course.new, course.gone, course.solved, items, seconds, course.estimate,
    )  # fmt: skip
    return told, () if fit is None else fit.funnel


def _fitted(tier: Tier, before: Bundle | None, run: _Run, course: Course) -> Fit:
    """The tier's model at the new cut-off.

    Raises `UnchangedError` where the bundle that stands is the one that would come out.
    """
    if tier is Tier.POPULAR:
        fit = fit_one(tier, run.gate, run.config, show_progress=False, keep=True)
        if before is not None:
            _unless_counted(before, fit, run)
            course.reason = COUNTED_ANEW
        return fit

    def fit_model(tier: Tier, permitted: PermittedRows, config: TierConfig, /, **options: Any) -> FittedTier:
        if before is not None:
            try:
                return _exchanged(tier, before, permitted, run, course)
            except NotExactError as error:
                course.reason = str(error)
        return fit_tier(tier, permitted, config, **options)

    return fit_one(tier, run.gate, run.config, show_progress=False, keep=True, fit_model=fit_model)


def _unless_counted(bundle: Bundle, fit: Fit, run: _Run) -> None:
    """Raise `UnchangedError` where a popular list, counted from the same rows, stands already."""
    try:
        kept = read_statistics(run.restricted.statistics(Tier.POPULAR))
        rows = read_run(bundle.path).get("rows_digest")
    except (StatisticsError, BundleError):
        return
    if (
        kept.bundle_digest == bundle.digest
        and rows == fit.rows_digest
        and _same_circumstances(bundle, kept.facts, run.gate)
        and bundle.manifest.parameters == fit.parameters
        and all(np.array_equal(bundle.arrays[name], array) for name, array in fit.model.arrays.items())
    ):
        raise UnchangedError


def _same_circumstances(bundle: Bundle, facts: Mapping[str, Any], gate: GateSettings) -> bool:
    """Whether the gate of the fit lets the same rows through as that of this run."""
    then = circumstances_of(facts, None)
    return (
        dt.datetime.fromisoformat(bundle.manifest.cutoff) == then.cutoff == gate.cutoff
        and then.until is None
        and then.policy.switches == gate.policy.switches
    )


# ---- An exchange of rows -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Comparison:
    """Whose rows are those that were counted.

    Attributes
    ----------
    names
        The persons who have permitted rows now.
    now
        Their fingerprints, in this order.
    known, same
        Mark those who were counted, and those who were with the very same rows.
    gone
        uint64: fingerprints of the names of those who were counted and have no permitted rows any more.
    """

    names: pa.Array
    now: Fingerprints
    known: NDArray[np.bool_]
    same: NDArray[np.bool_]
    gone: NDArray[np.uint64]

    @classmethod
    def of(cls, permitted: PermittedRows, counted: Fingerprints) -> _Comparison:
        names, now = named_fingerprints(permitted, counted.key)
        known = counted.holds(now.persons)
        same = known.copy()
        places = np.searchsorted(counted.persons, now.persons[known])
        same[known] = counted.rows[places] == now.rows[known]
        return cls(names, now, known, same, counted.persons[~among(counted.persons, now.persons)])

    def named(self, marked: NDArray[np.bool_]) -> pa.Array:
        """Names of marked persons."""
        return self.names.filter(pa.array(marked))


def _exchanged(tier: Tier, bundle: Bundle, permitted: PermittedRows, run: _Run, course: Course) -> FittedTier:
    """The tier's model by an exchange of rows.

    Raises `NotExactError` where that would not give what a fit gives, and `UnchangedError` where there is
    nothing to exchange.
    """
    kept = statistics_of(tier, bundle, run.restricted)
    require_same_parameters(tier, bundle, run.config)
    config: TierConfig = getattr(run.config, tier)
    if not config.attribute_weight:
        permitted = dataclasses.replace(permitted, attributes=None)
    compared = _Comparison.of(permitted, kept.statistics.fingerprints)
    course.changed = int((compared.known & ~compared.same).sum())
    course.new = int((~compared.known).sum())
    course.gone = int(compared.gone.size)
    borrow = None if config.algorithm in FACTOR_ALGORITHMS else borrowing(config, permitted.items)
    require_exchangeable(tier, bundle, config, kept.facts, run.gate, course, borrow=borrow)
    if kept.statistics.gram is None:
        raise NotExactError(f"{bundle.manifest.algorithm} is no function of counts")
    if kept.statistics.gram.truncated:
        raise NotExactError("the co-occurrences were cut to max_gram_entries, and cannot be exchanged")
    if not permitted.rows.num_rows:
        raise NotExactError("no row is left")
    counted, same = kept.statistics.fingerprints, compared.named(compared.same)
    added = of_persons(permitted, compared.named(~compared.same))
    course.estimate = _estimated(tier, bundle, kept.statistics, permitted, added, borrow, run)
    require_less_work(course.estimate)
    exchange = Exchange(
        _counted_rows(tier, kept, permitted, compared, run),
        added,
        _marked(counted, ~among(counted.persons, compared.now.persons[compared.same])),
        _marked(compared.now, ~compared.same),
        kept.statistics.devices,
    )
    statistics = with_items(kept.statistics, pc.unique(added.rows["item_id"]).to_pylist())
    persons = exchanged_counts(statistics, PERSONS, exchange)
    min_persons = min_persons_of(bundle)
    published = persons >= min_persons
    if not published.any():
        raise NotExactError("no item is left with enough persons")
    encoder = _encoder(permitted, config, min_persons, int(published.sum()))
    # The rows of these persons are the same; what is made of them is not.
    crossing = np.flatnonzero(published != (statistics.counts[PERSONS] >= min_persons))
    others = pa.concat_arrays(
        [
            _persons_with(permitted, statistics.items.ids(crossing)),
            _persons_moved(permitted, encoder_of(bundle), encoder),
        ]
    )
    theirs = of_persons(permitted, pc.unique(others.filter(pc.is_in(others, value_set=same))))
    exchange = dataclasses.replace(
        exchange, removed=_together(exchange.removed, theirs), added=_together(added, theirs)
    )
    after = Renewed(
        ItemIndex.from_ids(statistics.items.ids(np.flatnonzero(persons > 0))),
        persons[persons > 0],
        encoder,
        {} if permitted.attributes is None else attribute_counts(permitted.attributes),
        borrow,
    )
    fitted, course.solved = exchanged(tier, bundle, statistics, exchange, after, run.config.training.threads)
    return fitted


def require_exchangeable(
    tier: Tier,
    bundle: Bundle,
    config: TierConfig,
    facts: Mapping[str, Any],
    gate: GateSettings,
    course: Course,
    *,
    borrow: Borrowing | None,
    persons: int | None = None,
) -> None:
    """Check, once it is known who changed, that an exchange of rows is to be made.

    Parameters
    ----------
    tier, bundle, config
        Which, as it stands, and how it is to be fitted.
    facts
        What was kept with the statistics.
    gate
        What the rows pass now.
    course
        With the persons who changed.
    borrow
        How items are to borrow.
    persons
        How many there were or are, whichever is more: by them it is judged whether a fit is as quick. None
        where that is estimated otherwise.

    Raises
    ------
    UnchangedError
        There is nothing to exchange.
    NotExactError
        It would not give what a fit gives, or take longer.
    """
    metadata = None if borrow is None else borrow.facts()
    if (
        not (course.changed or course.new or course.gone)
        and _same_circumstances(bundle, facts, gate)
        and metadata == bundle.manifest.parameters.get("item_metadata")
    ):
        raise UnchangedError
    if persons is not None:
        _require_worth(course, persons)
    then = circumstances_of(facts, None)
    if tier is Tier.SESSION and config.session_half_life and (then.until or then.cutoff) != gate.cutoff:
        raise NotExactError("sessions count by their age at the cut-off (session_half_life): all change")


def require_same_parameters(tier: Tier, bundle: Bundle, config: Config) -> None:
    """Raise `NotExactError` where a bundle was fitted with another configuration."""
    now = parameters_of(tier, config)
    then = {name: value for name, value in bundle.manifest.parameters.items() if name != "item_metadata"}
    others = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    if others:
        raise NotExactError(f"the configuration has changed since ({', '.join(others)})")


def _require_worth(course: Course, persons: int) -> None:
    """Raise `NotExactError` where an exchange would take longer than a fit."""
    exchanged = (course.changed or 0) + (course.new or 0) + (course.gone or 0)
    most = max(persons, 1)
    if exchanged > MOST_EXCHANGED * most:
        raise NotExactError(
            f"{exchanged:,} persons changed, came or went, where there are {most:,}: a fit is as quick"
        )


def _estimated(
    tier: Tier,
    bundle: Bundle,
    statistics: Statistics,
    permitted: PermittedRows,
    added: PermittedRows,
    borrow: Borrowing | None,
    run: _Run,
) -> Estimate:
    """What an exchange would take, and what a fit."""
    config, min_persons = config_of(bundle), min_persons_of(bundle)
    model = estimator(tier, config, bundle.manifest.item_count, min_persons, run.config.training.threads)
    return estimated(
        statistics,
        model if isinstance(model, LocalRidge) else None,
        Extent(
            permitted,
            added,
            by_session=tier is Tier.SESSION,
            all_again=borrow is not None or bundle.manifest.parameters.get("item_metadata") is not None,
            records=run.ledger.position,
        ),
    )


def require_less_work(estimate: Estimate) -> None:
    """Raise `NotExactError` where an exchange would take longer than a fit."""
    if not estimate.exchange_is_less:
        raise NotExactError(f"a fit is as quick: {estimate}")


def _counted_rows(
    tier: Tier, kept: KeptStatistics, permitted: PermittedRows, compared: _Comparison, run: _Run
) -> PermittedRows:
    """The rows that were counted of those whose rows are others now, or who have none.

    Raises `NotExactError` where they are not there any more.
    """
    counted = kept.statistics.fingerprints
    gone = [
        names.filter(pa.array(among(text_hashes(names, counted.key), compared.gone)))
        for names in (run.names.values() if compared.gone.size else ())
    ]
    persons = pa.concat_arrays([compared.named(compared.known & ~compared.same), *gone])
    if not len(persons):
        return of_persons(permitted, persons)
    then = circumstances_of(kept.facts, None)
    subjects = [_subject(name) for name in persons.to_pylist()]
    part = around(run.shop, _consents_of(tier, run), subjects)
    gate = ConsentGate(*part, then.cutoff, then.policy, until=then.until)
    attributes = permitted.attributes is not None
    rows = of_persons(permitted_rows(gate, tier, attributes=attributes), persons)
    _, found = named_fingerprints(rows, counted.key)
    if len(found) != len(persons) or not counted.matches(found):
        raise NotExactError(CHANGED)
    return rows


def _subject(person: str) -> Subject:
    """Whom the gate's name of a person stands for."""
    kind, _, subject_id = person.partition(":")
    return ("customer" if kind == "customer" else "visitor", subject_id)


def _consents_of(tier: Tier, run: _Run) -> ConsentTables:
    return ConsentTables.of(ledger_at_fit(run.out / tier, run.ledger))


def ledger_at_fit(bundle: Path, ledger: Ledger) -> Ledger:
    """What the ledger held when a bundle was fitted, where it is the same ledger; else what it holds now."""
    try:
        facts = read_run(bundle)
    except BundleError:
        facts = {}
    position, head = facts.get("ledger_position"), facts.get("ledger_head")
    if isinstance(position, int) and 0 <= position <= ledger.position:
        then = ledger.as_of(position)
        if then.head == head:
            return then
    return ledger


def _encoder(permitted: PermittedRows, config: TierConfig, min_persons: int, items: int) -> AttributeEncoder:
    """The encoder that a fit would learn."""
    if permitted.attributes is None:
        return AttributeEncoder(())
    least = max(min_persons, config.attribute_min_persons)
    return fit_attributes(permitted.attributes, first_input=items, min_persons=least)


def _persons_with(permitted: PermittedRows, items: Sequence[str]) -> pa.Array:
    """Who has one of some items."""
    return pc.unique(rows_of(permitted.rows, "item_id", pa.array(items, pa.string()))["person"])


def _persons_moved(permitted: PermittedRows, old: AttributeEncoder, new: AttributeEncoder) -> pa.Array:
    """Whose attributes have another input by one encoder than by the other."""
    attributes = permitted.attributes
    old, new = old.moved_to(0), new.moved_to(0)
    persons = [pa.array([], pa.string())]
    if attributes is None or old == new:
        return persons[0]
    places = attribute_places(old, new)
    sides = [
        ({column.name: column for column in encoder.columns}, of_side)
        for encoder, of_side in ((old, places.old), (new, places.new))
    ]
    for name in sides[0][0].keys() | sides[1][0].keys():
        if name not in attributes.column_names:
            continue
        column = attributes[name]
        if pt.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        values = pc.unique(column).drop_null()
        before, after = (
            [_place(columns.get(name), value, of_side) for value in values.to_pylist()]
            for columns, of_side in sides
        )
        moved = values.filter(pa.array([one != other for one, other in zip(before, after, strict=True)]))
        persons.append(pc.unique(attributes["person"].filter(pc.is_in(column, value_set=moved))))
    return pa.concat_arrays(persons)


def _place(
    column: CategoryColumn | NumberColumn | None, value: AttributeValue, places: NDArray[np.int64]
) -> int | None:
    found = None if column is None else column.input_of(value)
    return None if found is None else int(places[found])


def _marked(fingerprints: Fingerprints, marked: NDArray[np.bool_]) -> Fingerprints:
    return Fingerprints(fingerprints.key, fingerprints.persons[marked], fingerprints.rows[marked])


def _together(some: PermittedRows, others: PermittedRows) -> PermittedRows:
    """The rows and attributes of different persons."""
    attributes = None
    if some.attributes is not None and others.attributes is not None:
        attributes = pa.concat_tables([some.attributes, others.attributes])
    rows = pa.concat_tables([some.rows, others.rows])
    return dataclasses.replace(some, rows=rows, attributes=attributes)
