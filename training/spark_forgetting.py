"""Exact forgetting on Apache Spark: bundles become those of a fit without some subjects.

What `training.forget` does on one machine. There the rows around the subjects are subtracted; here the tables
without the subjects pass the gate of the fit, and whoever has other rows than were counted is exchanged: the
subjects, and those whom only a link to them let in. So the bundle is what a fit of the tables as they are
now gives, without the subjects, at the cut-off and under the switches of the bundle.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession

from consentier.consent import Ledger, Policy, Tier
from consentier.consent.records import SubjectKind
from consentier.errors import TrainingError
from consentier.features.gate import HOLDERS
from consentier.features.spark_gate import SparkGate
from consentier.features.spark_session import errors_of_tasks
from consentier.features.spark_tables import SparkTables, rows_where, values_in
from consentier.models.bundle import Bundle, open_bundle
from consentier.training.bundles import TRAINED_TIERS
from consentier.training.config import Config, TrainingConfig
from consentier.training.counted import (
    COLUMNS,
    Circumstances,
    Subject,
    circumstances_of,
    ids_of,
    one_at_a_time,
    person_names,
)
from consentier.training.decrement import NotExactError, config_of, min_persons_of
from consentier.training.fingerprints import text_hashes
from consentier.training.fit import FittedTier
from consentier.training.forget import (
    INTERRUPTED,
    NOT_IN_IT,
    ForgetResult,
    ForgottenTier,
    Outcome,
    checked,
    forgotten_in,
    holds_others,
    present_tiers,
    replaced,
    without_a_fit,
)
from consentier.training.restricted import Restricted
from consentier.training.retrain import COUNTED_ANEW, UnchangedError, ledger_at_fit
from consentier.training.spark_retraining import Comparison, EarlierGates, exchanged_on_spark
from consentier.training.spark_statistics import Draft, TablesOnSpark, facts_of, tables_of
from consentier.training.spark_training import (
    TierOnSpark,
    fit_on_spark,
    keep_on_spark,
    require_counted,
    run_facts_on_spark,
)
from consentier.writing import remove_remnants_in

__all__ = ["forget_on_spark"]


def forget_on_spark(
    session: SparkSession,
    shop: SparkTables,
    subjects: Iterable[Subject],
    out: Path,
    restricted: Restricted,
    *,
    ledger: Ledger | None = None,
    tiers: Sequence[Tier] = TRAINED_TIERS,
    policy: Policy | None = None,
    show_progress: bool = True,
) -> ForgetResult:
    """Take subjects out of bundles on Spark: each becomes what a fit without them gives, byte for byte.

    Safe to run again, also after it was killed, as `forget` is.

    Parameters
    ----------
    session, shop
        As for `train_on_spark`; with the subjects' rows, or else the tier is fitted from scratch.
    subjects, out, ledger, tiers, policy, show_progress
        As for `forget`. Rows of others that were changed since the fit are counted as they are now.
    restricted
        The trainer's restricted directory, which driver and executors see under one name.

    Raises
    ------
    BundleMissing
        There is none of these bundles.
    BundleError
        A bundle cannot be read, or another release fitted it.
    ConfigError
        A bundle's model is no function of counts; then nobody was forgotten in any of them.
    DataError
        A row breaks the data contract.
    StatisticsError
        The new tables cannot be put in place. The new bundle stands; a later run fits again.
    ValueError
        There are no subjects, or one of them is malformed.

    Notes
    -----
    A tier that may hold one of the subjects costs what `retrain_on_spark` does: all rows pass two gates, and
    all items are solved again. The popular list is counted anew.
    """
    chosen = checked(subjects)
    present = present_tiers(out, tiers)
    for tier in present:  # before one of them forgets
        if any(kind in HOLDERS[tier] for kind, _ in chosen):
            require_counted(_config_of(tier, open_bundle(out / tier, verify=False)), [tier])
    with (
        one_at_a_time(restricted),
        errors_of_tasks(),
        EarlierGates.open(session, shop) as earlier,
        EarlierGates.open(session, shop, without=_by_kind(chosen)) as remaining,
    ):
        remove_remnants_in(out)  # of a run that was killed: a former bundle holds whom it was to forget
        entries = shop.entries() if ledger is None else ledger.position
        request = _Request(
            session, ledger, entries, chosen, out, restricted, policy, earlier, remaining, show_progress
        )
        return ForgetResult(tuple(_forget_in(tier, request) for tier in present))


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    """One call of `forget_on_spark`, with the gates that its tiers share: with the subjects and without."""

    session: SparkSession
    ledger: Ledger | None
    entries: int
    subjects: tuple[Subject, ...]
    out: Path
    restricted: Restricted
    policy: Policy | None
    earlier: EarlierGates
    remaining: EarlierGates
    show_progress: bool


def _by_kind(subjects: Iterable[Subject]) -> dict[SubjectKind, list[str]]:
    subjects = tuple(subjects)
    return {kind: ids_of(subjects, kind) for kind in COLUMNS}


def _forget_in(tier: Tier, request: _Request) -> ForgottenTier:
    def work(bundle: Bundle, circumstances: Circumstances, interrupted: bool) -> tuple[Outcome, str | None]:
        with Draft.open(request.session, request.restricted, tier) as draft:
            outcome = _without_subjects(tier, bundle, circumstances, request, draft, interrupted=interrupted)
            after = None
            if outcome.fitted is not None:
                after = _replace(tier, bundle, outcome, outcome.fitted, request, draft)
            return outcome, after

    return forgotten_in(
        tier, request.out, request.restricted, request.subjects, request.policy, work,
        show_progress=request.show_progress,
    )  # fmt: skip


def _without_subjects(
    tier: Tier,
    bundle: Bundle,
    circumstances: Circumstances,
    request: _Request,
    draft: Draft,
    *,
    interrupted: bool,
) -> Outcome:
    """The model without the subjects: by an exchange of rows if that is exact, from scratch if not."""
    reason: str | None = None
    solved: int | None = None
    tables: TablesOnSpark | None = None
    try:
        if interrupted:
            raise NotExactError(INTERRUPTED)
        facts = facts_of(tier, bundle, request.restricted)
        circumstances = circumstances_of(facts, request.policy)
        if tier is Tier.POPULAR:
            raise NotExactError(COUNTED_ANEW)
        tables = tables_of(request.session, tier, bundle, request.restricted)
        if not _may_hold(tier, tables, request.subjects):
            return Outcome("unchanged", NOT_IN_IT, circumstances)
    except NotExactError as error:
        tables, reason = None, str(error)

    def fit_model(one: TierOnSpark) -> FittedTier:
        nonlocal reason, solved
        if tables is not None:
            try:
                compared = Comparison.of(one, tables)
                if not compared.changed + compared.new + compared.gone:
                    raise UnchangedError
                then = None if request.ledger is None else ledger_at_fit(bundle.path, request.ledger)
                gate = functools.partial(request.earlier.gate, circumstances, then)
                fitted, solved = exchanged_on_spark(one, bundle, tables, compared, gate)
            except NotExactError as error:
                reason = str(error)
            else:
                return fitted
        return one.fitted()

    config = _config_of(tier, bundle)
    gate = request.remaining.gate(circumstances, request.ledger)
    try:
        fit = fit_on_spark(tier, gate, config, draft, show_progress=False, fit_model=fit_model)
    except UnchangedError:
        return Outcome("unchanged", NOT_IN_IT, circumstances)
    except TrainingError as error:
        return without_a_fit(error, circumstances)
    run = run_facts_on_spark(config, request.ledger, request.entries, fit)
    names = ("ledger_position", "ledger_head", "ledger_conflicts", "lifetimes", "rows_digest", "funnel")
    run = {name: run[name] for name in names}
    if reason is not None:
        return Outcome("refitted", reason, circumstances, fit.model, run=run)
    return Outcome("decremented", None, circumstances, fit.model, solved, run)


def _may_hold(tier: Tier, tables: TablesOnSpark, subjects: Sequence[Subject]) -> bool:
    """Whether one of the subjects may have been counted; a device goes by its customer in the joint model."""
    if tier is Tier.FUSED and any(kind == "visitor" for kind, _ in subjects):
        return True
    hashes = [
        text_hashes(person_names(kind, ids), tables.key)
        for kind, ids in _by_kind(subjects).items()
        if kind in HOLDERS[tier]
    ]
    wanted = np.concatenate(hashes).view(np.int64).tolist()
    is_wanted = functools.partial(values_in, column="person_hash", values=wanted)
    return not rows_where(tables.fingerprints, is_wanted).isEmpty()


def _config_of(tier: Tier, bundle: Bundle) -> Config:
    """The configuration that a bundle was fitted with, in the part that decides about it."""
    training = TrainingConfig(min_persons=min_persons_of(bundle))
    of_tier: Mapping[str, Any] = {} if tier is Tier.POPULAR else {str(tier): config_of(bundle)}
    return Config().model_copy(update={"training": training, **of_tier})


def _replace(
    tier: Tier,
    bundle: Bundle,
    outcome: Outcome,
    fitted: FittedTier,
    request: _Request,
    draft: Draft,
) -> str:
    gate: SparkGate = request.remaining.gate(outcome.circumstances, request.ledger)
    lineage = request.restricted.lineage()

    def keep(digest: str) -> None:
        keep_on_spark(tier, digest, gate, draft, facts=outcome.run)
        if digest != bundle.digest:
            lineage.drop([bundle.digest])

    def holds() -> bool:
        if request.ledger is None:
            return True  # nobody can tell who refused since
        return holds_others(tier, bundle.digest, request.subjects, request.restricted, request.ledger)

    draft.clear_unless_tables()
    return replaced(
        tier, bundle, outcome, fitted, request.out,
        subjects=len(request.subjects), holds_others=holds, keep=keep,
    )  # fmt: skip
