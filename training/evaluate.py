"""What each tier is worth, and what each permission adds: on held-out time, on the same customers.

Three populations, the first that the data can show:

* *permissions*: customers with both permissions and a lawful link. One request per customer, at the cut-off,
  with the last visit before it as the running session; the target is what they order within the horizon.
  Only such customers can be asked as each level in turn.
* *orders*: customers with the CRM permission, where too few are linked. Popular list against CRM tier.
* *next item*: sessions after the cut-off, where there are no orders. Every prefix of a session predicts its
  next item.

Beside the population, each group of persons in one state of permission is asked as that state allows.

Every row used, for fitting as for judging, has passed the consent gate at the *end* of the test period.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from consentier.consent import Ledger, Policy, Side, Tier, sources_of
from consentier.errors import TrainingError
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.tables import ShopTables
from consentier.models.bundle import Manifest, open_bundle
from consentier.progress import progress
from consentier.serving import Recommender, Request
from consentier.serving.main_parameters import main_parameters
from consentier.training.bundles import TRAINED_TIERS, TrainingResult, train_bundles
from consentier.training.config import Config, EvaluationConfig
from consentier.training.evaluate_cases import Case, crm_cases, group_cases, links_of, sample, sessions_from
from consentier.training.evaluate_groups import by_history, by_permission_group, by_popularity
from consentier.training.evaluate_judge import (
    Judged,
    Lists,
    World,
    contrast,
    figures,
    fusion_notes,
    fusion_verdicts,
    items_of,
    judge,
    popular_notes,
    targets_of,
    with_holm,
    world_of,
)
from consentier.training.evaluate_requests import ask_all, ask_restricted, random_lists
from consentier.training.evaluation_result import (
    EVALUATION_VERSION,
    MINIMUM_GROUP,
    Contrast,
    EvaluationResult,
    FusionVerdict,
    GroupRow,
    HistoryRow,
    ModelFigures,
    PermissionGroup,
    PopularityRow,
    Population,
    TargetSide,
    TierFigures,
)
from consentier.training.significance import RANDOMISATIONS
from consentier.writing import scratch

__all__ = ["evaluate", "evaluate_bundles"]


def evaluate(
    shop: ShopTables,
    config: Config,
    *,
    policy: Policy | None = None,
    ledger: Ledger | None = None,
    name: str,
    show_progress: bool = True,
) -> EvaluationResult:
    """Train on the time before the cut-off, judge on the horizon after it.

    Parameters
    ----------
    shop
        The shop's tables.
    config
        The configuration; ``training.cutoff`` is the start of the test period. Without one it ends now.
    policy
        The routing policy; the default one otherwise.
    ledger
        Consents and links; by default those of the shop's tables.
    name
        What to call the data in the report.
    show_progress
        Say on standard error what is being done.

    Raises
    ------
    TrainingError
        If there is nothing to judge on.

    Notes
    -----
    One training run, then some 300 µs per test request and tier.
    """
    policy = Policy.default() if policy is None else policy
    horizon = dt.timedelta(days=config.evaluation.horizon_days)
    start = config.training.cutoff or dt.datetime.now(dt.UTC) - horizon
    end = start + horizon
    ledger = ledger_of(shop) if ledger is None else ledger
    with scratch("evaluate") as folder:
        trained = train_bundles(
            shop,
            config.with_cutoff(end),
            folder,
            tiers=TRAINED_TIERS,
            policy=policy,
            show_progress=show_progress,
            until=start,
            ledger=ledger,
        )
        return evaluate_bundles(
            shop,
            config.evaluation,
            trained,
            start=start,
            end=end,
            policy=policy,
            ledger=ledger,
            name=name,
            show_progress=show_progress,
        )


def evaluate_bundles(
    shop: ShopTables,
    settings: EvaluationConfig,
    trained: TrainingResult,
    *,
    start: dt.datetime,
    end: dt.datetime,
    policy: Policy,
    ledger: Ledger,
    name: str,
    show_progress: bool,
) -> EvaluationResult:
    """Judge bundles that were trained on the time before a test period, under the gate of its end.

    Parameters
    ----------
    shop, policy, name, show_progress
        As in `evaluate`.
    settings
        How to judge.
    trained
        The bundles; fitted on nothing at or after `start`.
    start, end
        The test period, [start, end).
    ledger
        The ledger under which they were trained.

    Raises
    ------
    TrainingError
        If there is nothing to judge on.

    Notes
    -----
    The gate over all rows, then some 300 µs per test request and tier.
    """
    gate = ConsentGate(shop, ledger, end, policy)
    with progress("gate for the test period", None, enabled=show_progress):
        online, crm = gate.permitted(Tier.ONLINE), gate.permitted(Tier.CRM)
        groups = group_cases(online, crm, links_of(ledger, start, end, policy), ledger, start)
    recommender = Recommender.load(trained.out, policy=policy)
    bundles = [open_bundle(trained.out / tier) for tier in trained.digests]
    items = (item for bundle in bundles for item in items_of(bundle))
    world = world_of(shop, online, crm, start, settings, items)
    linked = sample(groups[_LINKED], settings)
    if len(linked) >= MINIMUM_GROUP:
        found = _permissions(recommender, world, linked, show_progress)
    else:
        alone = sample(crm_cases(crm, start), settings)
        if len(alone) >= MINIMUM_GROUP:
            found = _orders(recommender, world, alone, show_progress)
        else:
            found = _next_item(recommender, world, gate, start, show_progress)
    known: dict[_Group, Mapping[str, Judged]] = {_LINKED: found.judged} if found.linked else {}
    by_group = by_permission_group(recommender, groups, world, known, show_progress)
    models = [_model(bundle.manifest) for bundle in bundles]
    return _result(name, start, settings, trained, found, by_group, models)


_Group = tuple[PermissionGroup, TargetSide]
_LINKED: _Group = ("both_linked", "crm")


@dataclasses.dataclass(frozen=True, slots=True)
class _Findings:
    """What one population showed.

    Attributes
    ----------
    judged
        Each tier's metrics, one value a request.
    """

    population: Population
    customers: int
    requests: int
    tiers: list[TierFigures]
    contrasts: list[Contrast]
    judged: Mapping[str, Judged]
    by_popularity: list[PopularityRow]
    by_history: list[HistoryRow] = dataclasses.field(default_factory=list)
    fusion: list[FusionVerdict] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def linked(self) -> bool:
        """Whether these are the linked customers, so that they need not be asked again as a group."""
        return self.population == "permissions"


def _result(
    name: str,
    start: dt.datetime,
    settings: EvaluationConfig,
    trained: TrainingResult,
    found: _Findings,
    by_group: list[GroupRow],
    models: list[ModelFigures],
) -> EvaluationResult:
    skipped = [f"The {tier} tier was not trained: {why}" for tier, why in trained.skipped.items()]
    return {
        "version": EVALUATION_VERSION,
        "data": {
            "name": name,
            "cutoff": start.isoformat(),
            "horizon_days": float(settings.horizon_days),
        },
        "population": found.population,
        "cutoffs": list(settings.cutoffs),
        "customers": found.customers,
        "requests": found.requests,
        "tiers": found.tiers,
        "models": models,
        "contrasts": with_holm(found.contrasts),
        "randomisations": RANDOMISATIONS,
        "fusion": found.fusion,
        "by_history_length": found.by_history,
        "by_popularity": found.by_popularity,
        "by_permission_group": by_group,
        "consent_funnel": trained.funnel,  # type: ignore[typeddict-item]
        "notes": [*fusion_notes(found.fusion), *found.notes, *skipped],
    }


def _model(manifest: Manifest) -> ModelFigures:
    """The weights that a model answers with, as its manifest says them."""
    scoring: Mapping[str, Any] = manifest.scoring
    read = sources_of(Tier(manifest.tier), Side.ONLINE)
    weights = scoring.get("source_weights", {})
    # Without attributes in the bundle the weight has nothing to weigh.
    attributes = scoring.get("attribute_weight", 0.0) if scoring.get("attributes") else 0.0
    return {
        "tier": manifest.tier,
        "algorithm": manifest.algorithm,
        "source_weights": {source: weight for source, weight in weights.items() if source in read},
        "event_weights": dict(scoring.get("event_weights", {})),
        "recency_half_life": scoring.get("recency_half_life"),
        "attribute_weight": attributes,
        "parameters": main_parameters(manifest),
    }


# ---- The three populations ---------------------------------------------------------------------------------


def _permissions(
    recommender: Recommender, world: World, cases: Sequence[Case], show_progress: bool
) -> _Findings:
    """Customers of level 3, asked as each level in turn."""
    targets = targets_of((case.target for case in cases), world)
    tiers = [Tier.POPULAR, Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED]
    tiers = [tier for tier in tiers if tier is Tier.POPULAR or tier in recommender.scorers]
    with progress("asking the test customers", 2 * len(tiers) * len(cases), enabled=show_progress) as advance:
        own = {str(tier): ask_all(recommender, tier, cases, world, advance) for tier in tiers}
        restricted = {}
        if Tier.FUSED in recommender.scorers:
            restricted = ask_restricted(recommender, tiers, cases, world, advance)
    own = {"random": random_lists(cases, world), **own}
    judged = {tier: judge(lists, targets, world) for tier, lists in own.items()}
    contrasts = [
        contrast(
            "each tier's own training rows",
            "Each tier's own model, fitted on all rows that it may read. What a permission adds as the "
            "product is run.",
            {tier: own[tier] for tier in own if tier != "random"},
            judged,
            world,
        )
    ]
    if restricted:
        one_cohort = contrast(
            "one cohort, inputs restricted",
            "One model, fitted on the customers with both permissions; each request shows it only what the "
            "permission covers. What the data of a permission add to one answer.",
            restricted,
            {tier: judge(lists, targets, world) for tier, lists in restricted.items()},
            world,
        )
        contrasts.insert(0, one_cohort)
    return _Findings(
        population="permissions",
        customers=len(cases),
        requests=len(cases),
        tiers=[figures(tier, own[tier], judged[tier], world) for tier in own],
        contrasts=contrasts,
        judged=judged,
        by_popularity=by_popularity(own, targets, world),
        by_history=by_history([case.history_length() for case in cases], judged, world),
        fusion=fusion_verdicts(judged, world),
        notes=[
            *popular_notes(judged, world),
            "The target is every item that the customer orders within the horizon, also one ordered before.",
            "The running session of a test customer is the last visit before the cut-off.",
        ],
    )


def _orders(recommender: Recommender, world: World, cases: Sequence[Case], show_progress: bool) -> _Findings:
    """Customers with the CRM permission alone."""
    targets = targets_of((case.target for case in cases), world)
    tiers = [tier for tier in (Tier.POPULAR, Tier.CRM) if tier is Tier.POPULAR or tier in recommender.scorers]
    with progress("asking the test customers", len(tiers) * len(cases), enabled=show_progress) as advance:
        lists = {str(tier): ask_all(recommender, tier, cases, world, advance) for tier in tiers}
    lists = {"random": random_lists(cases, world), **lists}
    judged = {tier: judge(found, targets, world) for tier, found in lists.items()}
    only = contrast(
        "each tier's own training rows",
        "The CRM tier against the popular list, on customers with the CRM permission.",
        {tier: lists[tier] for tier in lists if tier != "random"},
        judged,
        world,
    )
    return _Findings(
        population="orders",
        customers=len(cases),
        requests=len(cases),
        tiers=[figures(tier, lists[tier], judged[tier], world) for tier in lists],
        contrasts=[only],
        judged=judged,
        by_popularity=by_popularity(lists, targets, world),
        by_history=by_history([case.history_length() for case in cases], judged, world),
        notes=[
            *popular_notes(judged, world),
            "Too few customers are linked with both permissions, so what each permission adds cannot be "
            "shown: these are customers with the CRM permission, asked once, at the cut-off.",
            "The target is every item that the customer orders within the horizon, also one ordered before.",
        ],
    )


def _next_item(
    recommender: Recommender, world: World, gate: ConsentGate, start: dt.datetime, show_progress: bool
) -> _Findings:
    """Sessions after the cut-off: every prefix predicts the next item."""
    sessions = sample(sessions_from(gate.permitted(Tier.SESSION).rows, start), world.settings)
    if not sessions:
        raise TrainingError(
            "there is nothing after the cut-off to judge on: no orders of permitted customers, and no "
            "session with two events; set training.cutoff earlier or check the consents"
        )
    prefixes = [
        (owner, items[:end], items[end])
        for owner, items in enumerate(sessions)
        for end in range(1, len(items))
    ]
    owners = np.array([owner for owner, _, _ in prefixes])
    targets = targets_of(((target,) for _, _, target in prefixes), world)
    lists: dict[str, Lists] = {}
    with progress("asking the test sessions", 2 * len(prefixes), enabled=show_progress) as advance:
        for tier in (Tier.POPULAR, Tier.SESSION):
            found = []
            for _, prefix, _ in prefixes:
                session = prefix if tier is Tier.SESSION else ()
                found.append(recommender.recommend(Request(session=session, n=world.width)).items)
                advance()
            lists[str(tier)] = world.numbers(found)
    judged = {tier: judge(each, targets, world) for tier, each in lists.items()}
    only = contrast(
        "each tier's own training rows",
        "The session tier against the popular list, on sessions after the cut-off.",
        lists,
        judged,
        world,
        clusters=owners,
    )
    return _Findings(
        population="next_item",
        customers=len(sessions),
        requests=len(prefixes),
        tiers=[figures(tier, lists[tier], judged[tier], world, clusters=owners) for tier in lists],
        contrasts=[only],
        judged=judged,
        by_popularity=by_popularity(lists, targets, world, clusters=owners),
        notes=[
            *popular_notes(judged, world, owners),
            "There are no orders of permitted customers to judge on: every prefix of every test session "
            "predicts its next item; items of the session may come again. Intervals resample sessions.",
        ],
    )
