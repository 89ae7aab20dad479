"""Exact forgetting: a bundle that held a person becomes, byte for byte, one that was fitted without.

The statistics of the fit were kept. The person's rows are read once more, through the gate of that fit, and
compared with the fingerprint of what was counted. They are subtracted, the items that they bear on are solved
again, and the bundle is written anew. Where that cannot be exact (the rows are gone or were changed, the
person's attributes moved the limits of a group, a model is no function of counts) the tier is fitted again
from what remains, and the result says so. Where that has no solution the bundle goes: it holds the person.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from consentier.consent import ConsentRecord, Ledger, Policy, Source, Tier
from consentier.consent.lifetimes import Lifetimes
from consentier.consent.records import PARENTAL
from consentier.errors import BundleMissing, NothingPermitted, TrainingError
from consentier.features.consent_intervals import ConsentTables
from consentier.features.gate import HOLDERS, ConsentGate, PermittedRows, ledger_of
from consentier.features.tables import ShopTables
from consentier.models.bundle import Bundle, open_bundle, read_run, write_bundle, write_run
from consentier.models.statistics import (
    Statistics,
    among,
    write_statistics,
)
from consentier.progress import progress
from consentier.serving.revocation import Revocations, revoke
from consentier.training.bundles import TRAINED_TIERS
from consentier.training.counted import (
    COLUMNS,
    Circumstances,
    Subject,
    Tables,
    around,
    circumstances_of,
    distinct,
    fingerprints_of,
    ids_of,
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
    config_of,
    decremented,
    min_persons_of,
    seed_of,
)
from consentier.training.fingerprints import rows_by_person, text_hashes
from consentier.training.fit import (
    FittedTier,
    fit_facts,
    fit_popular,
    fit_tier,
    keep_statistics,
    linked_devices,
)
from consentier.training.lineage import LineageError
from consentier.training.restricted import Restricted
from consentier.training.run_facts import rows_digest
from consentier.training.withdrawal import READERS
from consentier.writing import remove_directory, remove_remnants_in

__all__ = [
    "INTERRUPTED",
    "NOT_IN_IT",
    "ForgetResult",
    "ForgottenTier",
    "How",
    "Outcome",
    "Subject",
    "checked",
    "forget",
    "forgotten_in",
    "holds_others",
    "present_tiers",
    "replaced",
    "without_a_fit",
    "without_subjects",
]

How = Literal["decremented", "refitted", "unchanged", "removed", "unsolved"]


@dataclasses.dataclass(frozen=True, slots=True)
class ForgottenTier:
    """What became of one bundle.

    Attributes
    ----------
    tier
        Which.
    how
        ``decremented``: the subjects were subtracted. ``refitted``: it was fitted again without them.
        ``unchanged``: it did not hold them. ``removed``: nothing is left to fit it on. ``unsolved``: a fit
        without them has no stable solution; the bundle was removed too, because it holds them.
    reason
        Why it was not decremented; None where it was.
    before, after
        Digest of the bundle; `after` is None where there is none any more.
    solved
        How many of the items were solved again; None where that is not a matter of single items.
    items
        Items of the bundle that stands now.
    seconds
        How long it took.
    """

    tier: Tier
    how: How
    reason: str | None
    before: str
    after: str | None
    solved: int | None
    items: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class ForgetResult:
    """What forgetting did, bundle by bundle."""

    tiers: tuple[ForgottenTier, ...]


def forget(
    shop: ShopTables,
    subjects: Iterable[Subject],
    out: Path,
    restricted: Restricted,
    *,
    ledger: Ledger | None = None,
    tiers: Sequence[Tier] = TRAINED_TIERS,
    policy: Policy | None = None,
    threads: int | None = None,
    show_progress: bool = True,
) -> ForgetResult:
    """Take subjects out of bundles: each becomes what a fit without them gives, byte for byte.

    Safe to run again, also after it was killed: a bundle and statistics that do not belong together are not
    used together.

    Parameters
    ----------
    shop
        The shop's tables, with the subjects' rows: forgetting comes before they are purged. Without them the
        tier is fitted again.
    subjects
        Whom to forget: ``("customer", id)`` or ``("visitor", id)``. A customer's linked devices are subjects
        of their own; the joint model loses their rows with the customer, the online models do not.
    out
        The directory of the bundles.
    restricted
        The trainer's restricted directory, in which the statistics are kept.
    ledger
        The ledger under which the bundles were fitted; by default the shop's own tables.
    tiers
        Which bundles. Those that do not exist are passed over.
    policy
        For a tier without statistics: the policy that it was fitted under. By default that of the statistics,
        or else the default policy.
    threads
        Threads of the solver; the result does not depend on it. None: all cores.
    show_progress
        Say on standard error what is being done.

    Raises
    ------
    BundleMissing
        There is none of these bundles.
    BundleError
        A bundle cannot be read, or another release fitted it.
    ConfigError
        A bundle borrows by a column that the items table has no more.
    StatisticsError
        The new statistics cannot be written. The new bundle stands; a later run fits again.
    ValueError
        There are no subjects, or one of them is malformed.

    Notes
    -----
    Reading, checking and writing the statistics is linear in their size. What is solved again grows with the
    items whose strongest neighbours include one of the subjects'; where items borrow by their metadata, all
    are solved again.
    """
    chosen = checked(subjects)
    present = present_tiers(out, tiers)
    with one_at_a_time(restricted):
        remove_remnants_in(out)  # of a run that was killed: a former bundle holds whom it was to forget
        request = _Request(shop, ledger, chosen, out, restricted, policy, threads, show_progress)
        return ForgetResult(tuple(_forget_in(tier, request) for tier in present))


def present_tiers(out: Path, tiers: Sequence[Tier]) -> list[Tier]:
    """The tiers that have a bundle.

    Raises
    ------
    BundleMissing
        None of them has.
    """
    present = [tier for tier in tiers if (out / tier / "manifest.json").is_file()]
    if not present:
        raise BundleMissing(f"{out}: there is no bundle to forget anybody in; train first")
    return present


def without_subjects(
    shop: ShopTables, consents: ConsentTables, subjects: Iterable[Subject]
) -> tuple[ShopTables, ConsentTables]:
    """The tables without some subjects: what a fit without them sees.

    All their rows go. Two things stay known of the ledger, since forgetting one must not permit more of
    others: a record id that somebody else used too stays contradicted, and a device on which a forgotten and
    another customer were seen stays shared.
    """
    gone = {kind: pa.array(ids_of(subjects, kind), pa.string()) for kind in COLUMNS}
    kept = {
        table: rows_of(getattr(shop, table), column, gone[kind], keep=False)
        for kind, (column, tables) in COLUMNS.items()
        for table in tables
    }
    records, links = consents.records, consents.links
    forgotten = pc.or_kleene(
        *(
            pc.and_(pc.equal(records["subject_kind"], kind), pc.is_in(records["subject_id"], ids))
            for kind, ids in gone.items()
        )
    )
    others_ids = records.filter(pc.invert(forgotten))["record_id"]
    records = records.filter(
        pc.or_(pc.invert(forgotten), pc.is_in(records["record_id"], distinct(others_ids)))
    )
    links = rows_of(links, "visitor_id", gone["visitor"], keep=False)
    leaving = pc.is_in(links["customer_id"], gone["customer"])
    shared = links.filter(pc.invert(leaving))["visitor_id"]
    links = links.filter(pc.or_(pc.invert(leaving), pc.is_in(links["visitor_id"], distinct(shared))))
    return dataclasses.replace(shop, **kept), dataclasses.replace(consents, records=records, links=links)


@dataclasses.dataclass(frozen=True)
class _Request:
    """One call of `forget`, with the tables and gates that its tiers share."""

    shop: ShopTables
    ledger: Ledger | None
    subjects: tuple[Subject, ...]
    out: Path
    restricted: Restricted
    policy: Policy | None
    threads: int | None
    show_progress: bool
    _gates: dict[tuple[object, ...], ConsentGate] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def consents(self) -> ConsentTables:
        """All consents and links."""
        if self.ledger is not None:
            return ConsentTables.of(self.ledger)
        return ConsentTables.of_shop(self.shop, Lifetimes.default())

    @functools.cached_property
    def around(self) -> Tables:
        """The part of the tables that can bear on the subjects."""
        return around(self.shop, self.consents, self.subjects)

    @functools.cached_property
    def around_without(self) -> Tables:
        """The same part without the subjects."""
        return without_subjects(*self.around, self.subjects)

    @functools.cached_property
    def without(self) -> Tables:
        """All tables without the subjects."""
        return without_subjects(self.shop, self.consents, self.subjects)

    def gate(self, part: str, circumstances: Circumstances) -> ConsentGate:
        """The gate over ``around``, ``around_without`` or ``without``."""
        key = (part, circumstances.cutoff, circumstances.until, circumstances.policy.switches)
        if key not in self._gates:
            shop, consents = getattr(self, part)
            self._gates[key] = ConsentGate(
                shop, consents, circumstances.cutoff, circumstances.policy, until=circumstances.until
            )
        return self._gates[key]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What is to become of a bundle, before anything is written.

    Attributes
    ----------
    how, reason, solved
        As in `ForgottenTier`.
    circumstances
        Under what it was, and is to be, fitted.
    fitted
        The new model; None where there is none, or the old one stays.
    run
        What is true of the new fit, for ``run.json``.
    """

    how: How
    reason: str | None
    circumstances: Circumstances
    fitted: FittedTier | None = None
    solved: int | None = None
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)


NOT_IN_IT = "none of the subjects is in it"
INTERRUPTED = "a run before was killed, and whom it had taken out was not noted"


def _forget_in(tier: Tier, request: _Request) -> ForgottenTier:
    def work(bundle: Bundle, circumstances: Circumstances, interrupted: bool) -> tuple[Outcome, str | None]:
        outcome = _without_subjects(tier, bundle, circumstances, request, interrupted=interrupted)
        fitted = outcome.fitted
        return outcome, None if fitted is None else _replace(tier, bundle, outcome, fitted, request)

    return forgotten_in(
        tier, request.out, request.restricted, request.subjects, request.policy, work,
        show_progress=request.show_progress,
    )  # fmt: skip


def forgotten_in(
    tier: Tier,
    out: Path,
    restricted: Restricted,
    subjects: Iterable[Subject],
    policy: Policy | None,
    work: Callable[[Bundle, Circumstances, bool], tuple[Outcome, str | None]],
    *,
    show_progress: bool,
) -> ForgottenTier:
    """Take subjects out of one bundle in the one way or the other, and say what became of it.

    Parameters
    ----------
    tier, out, restricted
        Which, and where its bundle and statistics are.
    subjects, policy
        As for `forget`.
    work
        Given the bundle, under what it was fitted (as far as it says so itself), and whether a run before was
        killed: what is to become of it, and the digest of the bundle that took its place, if one did. It is
        not called where the tier reads nothing of such subjects.
    """
    started = time.perf_counter()
    bundle = open_bundle(out / tier)
    cutoff = dt.datetime.fromisoformat(bundle.manifest.cutoff)
    circumstances = Circumstances(cutoff, None, policy or Policy.default())
    interrupted = _carried_over(tier, bundle, out, restricted)
    outcome = Outcome("unchanged", NOT_IN_IT, circumstances)
    after: str | None = None
    # What a tier reads of one kind of subjects does not depend on the other kind.
    if any(kind in HOLDERS[tier] for kind, _ in subjects):
        with progress(f"forgetting in the {tier} tier", None, enabled=show_progress):
            outcome, after = work(bundle, circumstances, interrupted)
    items = bundle.manifest.item_count
    if outcome.fitted is not None:
        items = outcome.fitted.item_count
    elif outcome.how == "unchanged":
        after = bundle.digest
    else:
        _remove(tier, bundle.digest, out, restricted)
        items = 0
    seconds = round(time.perf_counter() - started, 3)
    return ForgottenTier(
        tier, outcome.how, outcome.reason, bundle.digest, after, outcome.solved, items, seconds
    )


def _carried_over(tier: Tier, bundle: Bundle, out: Path, restricted: Restricted) -> bool:
    """Mend the index of who is in which bundle after a run that was killed before it wrote there.

    What is known of the bundle before is noted of this one, until this run knows better. Says whether it was
    so.
    """
    lineage = restricted.lineage()
    known = set(lineage.digests())
    try:
        formers = read_run(out / tier).get("forgot_from", ())
    except BundleMissing:
        return False
    former = next((digest for digest in reversed(formers) if digest in known), None)
    if bundle.digest in known or former is None:
        return False
    lineage.replaced(former, bundle.digest, without=())
    return True


def _without_subjects(
    tier: Tier,
    bundle: Bundle,
    circumstances: Circumstances,
    request: _Request,
    *,
    interrupted: bool,
) -> Outcome:
    """The model without the subjects: by subtraction if that is exact, by another fit if not."""
    try:
        if interrupted:
            raise NotExactError(INTERRUPTED)
        kept = statistics_of(tier, bundle, request.restricted)
        circumstances = circumstances_of(kept.facts, request.policy)
        exchange = _exchange(tier, bundle, kept.statistics, circumstances, request)
        if exchange is None:
            return Outcome("unchanged", NOT_IN_IT, circumstances)
        fitted, solved = decremented(tier, bundle, kept.statistics, exchange, request.threads)
        return Outcome("decremented", None, circumstances, fitted, solved)
    except NotExactError as error:
        reason = str(error)
    except TrainingError as error:
        return without_a_fit(error, circumstances)
    try:
        fitted, run = _refitted(tier, bundle, circumstances, request)
    except TrainingError as error:
        return without_a_fit(error, circumstances)
    return Outcome("refitted", reason, circumstances, fitted, run=run)


def without_a_fit(error: TrainingError, circumstances: Circumstances) -> Outcome:
    """What becomes of a bundle that cannot be fitted without the subjects: it holds them, and may not stay.

    Training leaves the earlier bundle where a fit has no stable solution; here that would be one with them.
    """
    if isinstance(error, NothingPermitted):
        return Outcome("removed", str(error), circumstances)
    told = f"{error}; the bundle was removed all the same, because it holds the subjects"
    return Outcome("unsolved", told, circumstances)


# ---- What was counted --------------------------------------------------------------------------------------


def _exchange(
    tier: Tier,
    bundle: Bundle,
    statistics: Statistics,
    circumstances: Circumstances,
    request: _Request,
) -> Exchange | None:
    """Find out what was counted of the subjects; None where nothing was.

    Raises `NotExactError` where the rows that there are now cannot be those that were counted.
    """
    counted = statistics.fingerprints
    own = {
        kind: person_names(kind, ids_of(request.subjects, kind) if kind in HOLDERS[tier] else ())
        for kind in COLUMNS
    }
    visitors, customers = (text_hashes(own[kind], counted.key) for kind in ("visitor", "customer"))
    keyless = tier is Tier.POPULAR and circumstances.policy.switches.anonymous_statistics
    if keyless and not counted.holds(visitors).all():
        raise NotExactError("sessions of visitors who were never asked are counted without a key")
    persons = np.concatenate([visitors, customers])
    persons = persons[counted.holds(persons)]
    devices = np.intersect1d(visitors, statistics.devices)
    if not persons.size and not devices.size:
        return None
    gate = request.gate("around", circumstances)
    attributes = bool(bundle.manifest.scoring.get("attribute_weight"))
    there = permitted_rows(gate, tier, attributes=attributes)
    links, links_after = {}, {}
    if tier is Tier.FUSED:
        gate_after = request.gate("around_without", circumstances)
        remaining = permitted_rows(gate_after, tier, attributes=attributes)
        links, links_after = linked_devices(gate), linked_devices(gate_after)
    else:
        # Nobody else's rows depend on the subjects where nothing is joined.
        remaining = of_persons(there, pa.concat_arrays(list(own.values())), keep=False)
    old, new = (rows_by_person(permitted, counted.key) for permitted in (there, remaining))
    leaving = [person for person, rows in old.items() if new.get(person) != rows]
    coming = [person for person, rows in new.items() if old.get(person) != rows]
    left, entered = (
        fingerprints_of(rows, names, counted.key) for rows, names in ((old, leaving), (new, coming))
    )
    owners = _owners(devices, links, counted.key)
    known = fingerprints_of(old, sorted(owners & old.keys()), counted.key)
    unknown = text_hashes(pa.array(sorted(owners - old.keys()), pa.string()), counted.key)
    if (
        not among(persons, left.persons).all()
        or not (counted.matches(left) and counted.matches(known))
        or counted.holds(unknown).any()
        or counted.holds(entered.persons[~among(entered.persons, left.persons)]).any()
    ):
        raise NotExactError(CHANGED)
    lost = text_hashes(person_names("visitor", sorted(links.keys() - links_after.keys())), counted.key)
    return Exchange(
        of_persons(there, pa.array(leaving, pa.string())),
        of_persons(remaining, pa.array(coming, pa.string())),
        left,
        entered,
        statistics.devices[~among(statistics.devices, lost)],
    )


def _owners(devices: NDArray[np.uint64], links: Mapping[str, str], key: bytes) -> set[str]:
    """The persons as part of whom some devices were counted."""
    linked = among(text_hashes(person_names("visitor", links), key), devices)
    if linked.sum() != devices.size:
        raise NotExactError("a device was counted with a customer to whom nothing links it any more")
    return {
        f"customer:{customer}"
        for customer, found in zip(links.values(), linked.tolist(), strict=True)
        if found
    }


# ---- Another fit -------------------------------------------------------------------------------------------


def _refitted(
    tier: Tier, bundle: Bundle, circumstances: Circumstances, request: _Request
) -> tuple[FittedTier, dict[str, Any]]:
    """The tier fitted on what remains, and on which rows and which state of the ledger it rests."""
    gate = request.gate("without", circumstances)
    parts: tuple[PermittedRows, ...]
    if tier is Tier.POPULAR:
        online, crm = gate.permitted(Tier.ONLINE), gate.permitted(Tier.CRM)
        fitted = fit_popular(
            online, crm, gate.anonymous_rows(), min_persons=min_persons_of(bundle), keep=True
        )
        parts = (online, dataclasses.replace(crm, attributes=None))
    else:
        parts = (gate.permitted(tier),)
        fitted = fit_tier(
            tier,
            parts[0],
            config_of(bundle),
            min_persons=min_persons_of(bundle),
            threads=request.threads,
            seed=seed_of(bundle),
            keep=True,
        )
    ledger = ledger_of(request.shop) if request.ledger is None else request.ledger
    return fitted, {
        "ledger_position": ledger.position,
        "ledger_head": ledger.head,
        "ledger_conflicts": len(ledger.conflicts),
        "lifetimes": ledger.lifetimes.version,
        "rows_digest": rows_digest(parts),
        "funnel": [
            {**dataclasses.asdict(funnel), "tier": str(tier)} for part in parts for funnel in part.funnel
        ],
    }


# ---- Writing -----------------------------------------------------------------------------------------------


def _replace(tier: Tier, bundle: Bundle, outcome: Outcome, fitted: FittedTier, request: _Request) -> str:
    circumstances = outcome.circumstances
    gone = _gone(tier, circumstances, request)

    def keep(digest: str) -> None:
        if outcome.how == "refitted":
            gate = request.gate("without", circumstances)
            keep_statistics(request.restricted, tier, fitted, bundle_digest=digest, gate=gate)
        elif fitted.statistics is not None:
            facts = fit_facts(request.gate("around", circumstances))
            place = request.restricted.statistics(tier)
            write_statistics(place, fitted.statistics, bundle_digest=digest, facts=facts)
        request.restricted.lineage().replaced(bundle.digest, digest, without=gone)

    def holds() -> bool:
        ledger = ledger_of(request.shop) if request.ledger is None else request.ledger
        return holds_others(tier, bundle.digest, gone, request.restricted, ledger)

    return replaced(
        tier, bundle, outcome, fitted, request.out,
        subjects=len(request.subjects), holds_others=holds, keep=keep,
    )  # fmt: skip


def replaced(
    tier: Tier,
    bundle: Bundle,
    outcome: Outcome,
    fitted: FittedTier,
    out: Path,
    *,
    subjects: int,
    holds_others: Callable[[], bool],
    keep: Callable[[str], None],
) -> str:
    """Put the new bundle in the place of the old one, then the statistics; return the digest.

    Killed in between, the new bundle stands beside statistics of another one, which are not used.

    Parameters
    ----------
    tier, bundle, outcome, fitted
        Which, as it was, and the new model.
    out
        The directory of the bundles.
    subjects
        How many were to be forgotten.
    holds_others
        Whether others who refused since the fit are in it: the deadline of the old bundle is theirs too.
    keep
        Keeps, given the digest, the statistics and who is in the bundle.
    """
    path, manifest, circumstances = out / tier, bundle.manifest, outcome.circumstances
    try:
        run = read_run(path)
    except BundleMissing:
        run = {}
    run.pop("rows_digest", None)  # of rows among which were those of the subjects
    run.pop("solver", None)  # of the fit before
    deadline = Revocations.open(out).deadline_of(bundle.digest)
    digest = write_bundle(
        path,
        tier=tier,
        sources=manifest.sources,
        permission=manifest.permission,
        algorithm=manifest.algorithm,
        parameters={**_without_facts(manifest.parameters), **fitted.facts},
        scoring=fitted.scoring,
        item_count=fitted.item_count,
        cutoff=circumstances.cutoff,
        arrays=fitted.arrays,
        # Who is killed before all is told leaves what was known, and which bundle was here.
        run={**run, "forgot_from": [*run.get("forgot_from", ()), bundle.digest]},
        overwrite=True,
    )
    if deadline is not None and digest != bundle.digest and holds_others():
        revoke(out, [digest], deadline, "withdrawal")
    origins = [origin for origin in run.get("forgot_from", ()) if origin != bundle.digest]
    write_run(
        path,
        {
            **run,
            **outcome.run,
            "forgot": run.get("forgot", 0) + subjects,
            "forgot_at": dt.datetime.now(dt.UTC).isoformat(),
            "forgot_by": outcome.how,
            # All that were fitted with somebody whom this one was made without: the registry may hold them.
            "forgot_from": [each for each in (*origins, bundle.digest) if each != digest],
        },
    )
    keep(digest)
    return digest


def _without_facts(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that do not come out of a fit."""
    return {name: value for name, value in parameters.items() if name != "item_metadata"}


def _gone(tier: Tier, circumstances: Circumstances, request: _Request) -> set[Subject]:
    """Who is not in a bundle any more: the subjects, and in the joint model whom only a link let in."""
    gone = set(request.subjects)
    if tier is Tier.FUSED and not circumstances.policy.switches.include_single_source_in_fused:
        links, links_after = (
            linked_devices(request.gate(part, circumstances)) for part in ("around", "around_without")
        )
        gone.update(("visitor", visitor) for visitor in links.keys() - links_after.keys())
        gone.update(("customer", customer) for customer in set(links.values()) - set(links_after.values()))
    return gone


def holds_others(
    tier: Tier, digest: str, gone: Iterable[Subject], restricted: Restricted, ledger: Ledger
) -> bool:
    """Whether a bundle without some holds others who refused since it was fitted: its deadline is theirs too.

    The same goes for children whose parents were heard of since. A later grant does not change that. What
    cannot be known counts as yes.
    """
    lineage = restricted.lineage()
    try:
        position = lineage.bundle(digest).ledger_position
        members = lineage.members(digest)
    except LineageError:
        return True
    if position > ledger.position:
        return True  # another ledger than that of the fit
    refused = {
        (record.subject_kind, record.subject_id)
        for _, record in ledger.entries(after=position)
        if isinstance(record, ConsentRecord) and _ends_something(record) and _bears_on(tier, record)
    }
    return any(not members.isdisjoint(lineage.names(*subject)) for subject in refused - set(gone))


def _ends_something(record: ConsentRecord) -> bool:
    """Whether a record can keep rows out: a word on parents those of a child from before it."""
    return record.state != "granted" or record.permission == PARENTAL


def _bears_on(tier: Tier, record: ConsentRecord) -> bool:
    """Whether a decision can be about what a tier reads. Contact is about what is sent."""
    if record.permission in (Source.ONLINE, Source.CRM):
        return tier in READERS[Source(record.permission)]
    return not record.permission.startswith("contact")


def _remove(tier: Tier, digest: str, out: Path, restricted: Restricted) -> None:
    """Take a bundle away in whose place there is none; last, so that a run after a kill finds it again."""
    shutil.rmtree(restricted.statistics(tier), ignore_errors=True)
    restricted.lineage().drop([digest])
    remove_directory(out / tier)


# ---- Small helpers -----------------------------------------------------------------------------------------


def checked(subjects: Iterable[Subject]) -> tuple[Subject, ...]:
    """The subjects, each once.

    Raises
    ------
    ValueError
        There are none, or one of them is malformed.
    """
    chosen = tuple(dict.fromkeys(subjects))
    if not chosen:
        raise ValueError("name somebody to forget")
    for kind, subject_id in chosen:
        if kind not in COLUMNS or not subject_id:
            raise ValueError("a subject is ('customer', ID) or ('visitor', ID), and the ID is not empty")
    return chosen
