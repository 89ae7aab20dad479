"""What each tier is worth, and what each permission adds: on held-out time, on the same customers.

Three populations, the first that the data can show:

* *permissions*: customers with both permissions and a lawful link. One request per customer, at the cut-off,
  with the last visit before it as the running session; the target is what they order within the horizon.
  Only such customers can be asked as each level in turn.
* *orders*: customers with the CRM permission, where too few are linked. Popular list against CRM tier.
* *next item*: sessions after the cut-off, where there are no orders. Every prefix of a session predicts its
  next item.

Every row used, for fitting as for judging, has passed the consent gate at the *end* of the test period.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from consentier.consent import Channel, Ledger, Permission, Policy, Tier, microseconds
from consentier.errors import TrainingError
from consentier.features.gate import ConsentGate, PermittedRows, ledger_of
from consentier.features.interactions import person_counts
from consentier.features.tables import ShopTables
from consentier.models.attribute_encoding import AttributeValue
from consentier.progress import Advance, progress
from consentier.serving import Event, Recommender, Request
from consentier.training import metrics
from consentier.training.bootstrap import bootstrap_mean, paired_difference
from consentier.training.config import Config, EvaluationConfig
from consentier.training.evaluation_result import (
    HISTORY_BUCKETS,
    MINIMUM_GROUP,
    Contrast,
    ContrastRow,
    EvaluationResult,
    HistoryBucket,
    HistoryRow,
    IntervalFigures,
    Population,
    TierFigures,
)
from consentier.training.train import TRAINED_TIERS, TrainingResult, train

__all__ = ["evaluate"]

Lists = NDArray[np.int64]
_T = TypeVar("_T")

_PAIRS = (
    (Tier.SESSION, Tier.POPULAR),
    (Tier.ONLINE, Tier.SESSION),
    (Tier.CRM, Tier.POPULAR),
    (Tier.FUSED, Tier.ONLINE),
    (Tier.FUSED, Tier.CRM),
)
_LEVEL_3 = Permission.ONLINE | Permission.CRM


@dataclasses.dataclass(frozen=True, slots=True)
class _Case:
    """One test customer at the cut-off: what the shop holds, and what it should have recommended."""

    session: tuple[Event, ...]
    device_history: tuple[Event, ...]
    all_history: tuple[Event, ...]
    crm_history: tuple[Event, ...]
    attributes: Mapping[str, AttributeValue]
    target: tuple[str, ...]

    def history_length(self) -> int:
        """Distinct items that both sources together know of the customer."""
        return len({event.item_id for event in (*self.session, *self.all_history, *self.crm_history)})


@dataclasses.dataclass(frozen=True, slots=True)
class _World:
    """What every judgement needs: the items, their popularity and category, and the settings."""

    items: Mapping[str, int]
    popularity: NDArray[np.int64]
    categories: NDArray[np.int64]
    settings: EvaluationConfig

    @property
    def width(self) -> int:
        return max(self.settings.cutoffs)

    def numbers(self, lists: Sequence[Sequence[str]]) -> Lists:
        """Lists of item ids as a padded array of item numbers."""
        array = np.full((len(lists), self.width), metrics.PADDING, dtype=np.int64)
        for row, found in enumerate(lists):
            numbers = [self.items[item] for item in found[: self.width]]
            array[row, : len(numbers)] = numbers
        return array


def evaluate(
    shop: ShopTables,
    config: Config,
    *,
    policy: Policy | None = None,
    name: str,
    show_progress: bool = True,
) -> EvaluationResult:
    """Train on the time before the cut-off, judge on the horizon after it.

    Parameters
    ----------
    shop
        The shop's tables.
    config
        The configuration; ``training.cutoff`` is the start of the test period and must be given.
    policy
        The routing policy; the default one otherwise.
    name
        What to call the data in the report.
    show_progress
        Say on standard error what is being done.

    Raises
    ------
    TrainingError
        If there is no cut-off, or nothing after it to judge on.

    Notes
    -----
    One training run, then some 300 µs per test request and tier.
    """
    if config.training.cutoff is None:
        raise TrainingError(
            "evaluation needs a cut-off before the end of the data: set training.cutoff in the "
            "configuration, or pass --cutoff"
        )
    policy = Policy.default() if policy is None else policy
    start = config.training.cutoff
    end = start + dt.timedelta(days=config.evaluation.horizon_days)
    ledger = ledger_of(shop)
    gate = ConsentGate(shop, ledger, end, policy)
    with progress("gate for the test period", None, enabled=show_progress):
        online, crm = gate.permitted(Tier.ONLINE), gate.permitted(Tier.CRM)
        cases = _cases(online, crm, _links(ledger, start, end, policy), start)
    untracked = config.tracking.model_copy(update={"enabled": False})
    config = config.with_cutoff(end).model_copy(update={"tracking": untracked})
    with tempfile.TemporaryDirectory(prefix="consentier-evaluate-") as folder:
        trained = train(
            shop,
            config,
            Path(folder),
            tiers=TRAINED_TIERS,
            policy=policy,
            show_progress=show_progress,
            until=start,
        )
        recommender = Recommender.load(folder, policy=policy)
        world = _world(shop, online, crm, start, config.evaluation)
        header = _Header(name, start, config.evaluation, trained)
        linked = [case for case in cases if case.all_history or case.session]
        if len(linked) >= MINIMUM_GROUP:
            return _permissions(recommender, world, _sample(linked, world), header, show_progress)
        alone = _crm_cases(crm, start)
        if len(alone) >= MINIMUM_GROUP:
            return _orders(recommender, world, _sample(alone, world), header, show_progress)
        return _next_item(recommender, world, gate, start, header, show_progress)


# ---- The three populations ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Header:
    """What every result begins and ends with."""

    name: str
    cutoff: dt.datetime
    settings: EvaluationConfig
    trained: TrainingResult

    def result(
        self,
        population: Population,
        customers: int,
        requests: int,
        tiers: list[TierFigures],
        contrasts: list[Contrast],
        by_history: list[HistoryRow],
        notes: list[str],
    ) -> EvaluationResult:
        skipped = [f"The {tier} tier was not trained: {why}" for tier, why in self.trained.skipped.items()]
        return {
            "data": {
                "name": self.name,
                "cutoff": self.cutoff.isoformat(),
                "horizon_days": float(self.settings.horizon_days),
            },
            "population": population,
            "cutoffs": list(self.settings.cutoffs),
            "customers": customers,
            "requests": requests,
            "tiers": tiers,
            "contrasts": contrasts,
            "by_history_length": by_history,
            "consent_funnel": self.trained.funnel,  # type: ignore[typeddict-item]
            "notes": [*notes, *skipped],
        }


def _permissions(
    recommender: Recommender, world: _World, cases: Sequence[_Case], header: _Header, show_progress: bool
) -> EvaluationResult:
    """Customers of level 3, asked as each level in turn."""
    targets = metrics.Relevant.from_lists([_numbers(world, case.target) for case in cases])
    tiers = [Tier.POPULAR, Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED]
    tiers = [tier for tier in tiers if tier is Tier.POPULAR or tier in recommender.scorers]
    with progress("asking the test customers", 2 * len(tiers) * len(cases), enabled=show_progress) as advance:
        own = {str(tier): _ask_all(recommender, tier, cases, world, advance) for tier in tiers}
        restricted = dict(own)
        if Tier.FUSED in recommender.scorers:
            restricted = _restricted(recommender, tiers, cases, world, advance)
    own = {"random": _random(cases, world), **own}
    judged = {tier: _judge(lists, targets, world) for tier, lists in own.items()}
    figures = [_figures(tier, own[tier], judged[tier], world) for tier in own]
    contrasts = [
        _contrast(
            "one cohort, inputs restricted",
            "One model, fitted on the customers with both permissions; each request shows it only what the "
            "permission covers. What the data of a permission add to one answer.",
            restricted,
            {tier: _judge(lists, targets, world) for tier, lists in restricted.items()},
            world,
        ),
        _contrast(
            "each tier's own training rows",
            "Each tier's own model, fitted on all rows that it may read. What a permission adds as the "
            "product is run.",
            {tier: own[tier] for tier in own if tier != "random"},
            judged,
            world,
        ),
    ]
    notes = [
        "The target is every item that the customer orders within the horizon, also one ordered before.",
        "The running session of a test customer is the last visit before the cut-off.",
    ]
    by_history = _by_history(cases, judged, world)
    return header.result("permissions", len(cases), len(cases), figures, contrasts, by_history, notes)


def _orders(
    recommender: Recommender, world: _World, cases: Sequence[_Case], header: _Header, show_progress: bool
) -> EvaluationResult:
    """Customers with the CRM permission alone."""
    targets = metrics.Relevant.from_lists([_numbers(world, case.target) for case in cases])
    tiers = [tier for tier in (Tier.POPULAR, Tier.CRM) if tier is Tier.POPULAR or tier in recommender.scorers]
    with progress("asking the test customers", len(tiers) * len(cases), enabled=show_progress) as advance:
        lists = {str(tier): _ask_all(recommender, tier, cases, world, advance) for tier in tiers}
    lists = {"random": _random(cases, world), **lists}
    judged = {tier: _judge(found, targets, world) for tier, found in lists.items()}
    contrast = _contrast(
        "each tier's own training rows",
        "The CRM tier against the popular list, on customers with the CRM permission.",
        {tier: lists[tier] for tier in lists if tier != "random"},
        judged,
        world,
    )
    notes = [
        "Too few customers are linked with both permissions, so what each permission adds cannot be shown: "
        "these are customers with the CRM permission, asked once, at the cut-off.",
        "The target is every item that the customer orders within the horizon, also one ordered before.",
    ]
    figures = [_figures(tier, lists[tier], judged[tier], world) for tier in lists]
    by_history = _by_history(cases, judged, world)
    return header.result("orders", len(cases), len(cases), figures, [contrast], by_history, notes)


def _next_item(
    recommender: Recommender,
    world: _World,
    gate: ConsentGate,
    start: dt.datetime,
    header: _Header,
    show_progress: bool,
) -> EvaluationResult:
    """Sessions after the cut-off: every prefix predicts the next item."""
    sessions = _sample(_sessions_from(gate.permitted(Tier.SESSION).rows, start), world)
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
    targets = metrics.Relevant.from_lists([_numbers(world, (target,)) for _, _, target in prefixes])
    lists: dict[str, Lists] = {}
    with progress("asking the test sessions", 2 * len(prefixes), enabled=show_progress) as advance:
        for tier in (Tier.POPULAR, Tier.SESSION):
            found = []
            for _, prefix, _ in prefixes:
                session = prefix if tier is Tier.SESSION else ()
                found.append(recommender.recommend(Request(session=session, n=world.width)).items)
                advance()
            lists[str(tier)] = world.numbers(found)
    judged = {tier: _judge(each, targets, world) for tier, each in lists.items()}
    contrast = _contrast(
        "each tier's own training rows",
        "The session tier against the popular list, on sessions after the cut-off.",
        lists,
        judged,
        world,
        clusters=owners,
    )
    notes = [
        "There are no orders of permitted customers to judge on: every prefix of every test session predicts "
        "its next item; items of the session may come again. Intervals resample sessions."
    ]
    figures = [_figures(tier, lists[tier], judged[tier], world, clusters=owners) for tier in lists]
    return header.result("next_item", len(sessions), len(prefixes), figures, [contrast], [], notes)


# ---- Test cases --------------------------------------------------------------------------------------------


def _links(ledger: Ledger, start: dt.datetime, end: dt.datetime, policy: Policy) -> dict[str, str]:
    """Visitor to customer, for links that hold from the start of the test period to its end."""
    switches = policy.switches
    before, after = (
        ledger.lawful_links(
            at=at, model_purpose=switches.model_purpose, fusion_purpose=switches.fusion_purpose
        )
        for at in (start, end)
    )
    return {
        visitor: link.customer_id
        for visitor, link in after.items()
        if visitor in before and before[visitor].customer_id == link.customer_id
    }


def _cases(
    online: PermittedRows, crm: PermittedRows, links: Mapping[str, str], start: dt.datetime
) -> list[_Case]:
    """Linked customers with an order in the test period, in order of their ids."""
    instant = microseconds(start)
    visits = _by_person(online.rows, {f"visitor:{visitor}" for visitor in links})
    devices: dict[str, list[str]] = {}
    for visitor, customer in sorted(links.items()):
        devices.setdefault(f"customer:{customer}", []).append(f"visitor:{visitor}")
    cases = []
    for crm_case, person in _crm_cases_of(crm, start, set(devices)):
        rows = sorted(
            (row["ts"], device, row["session_id"], row["item_id"], row["event_type"])
            for device in devices[person]
            for row in visits.get(device, ())
            if row["ts"] < instant
        )
        cases.append(_with_visits(crm_case, rows))
    return cases


_Visit = tuple[int, str, str | None, str, str]


def _with_visits(case: _Case, rows: Sequence[_Visit]) -> _Case:
    """Add the online side: the last visit is the running session, the rest is history."""
    if not rows:
        return case
    _, device, session, _, _ = rows[-1]
    running = [row for row in rows if row[1:3] == (device, session)]
    earlier = [row for row in rows if row[1:3] != (device, session)]
    return dataclasses.replace(
        case,
        session=tuple(Event(item, event_type=kind) for *_, item, kind in running),
        device_history=tuple(Event(row[3], event_type=row[4]) for row in earlier if row[1] == device),
        all_history=tuple(Event(row[3], event_type=row[4]) for row in earlier),
    )


def _crm_cases(crm: PermittedRows, start: dt.datetime) -> list[_Case]:
    return [case for case, _ in _crm_cases_of(crm, start, None)]


def _crm_cases_of(
    crm: PermittedRows, start: dt.datetime, wanted: set[str] | None
) -> Iterable[tuple[_Case, str]]:
    instant = microseconds(start)
    attributes = _attributes_of(crm.attributes)
    for person, rows in sorted(_by_person(crm.rows, wanted).items()):
        before = [row for row in rows if row["ts"] < instant]
        target = {row["item_id"] for row in rows if row["ts"] >= instant and row["event_type"] == "order"}
        if target:
            history = tuple(Event(row["item_id"], event_type=row["event_type"]) for row in before)
            yield _Case((), (), (), history, attributes.get(person, {}), tuple(sorted(target))), person


def _by_person(rows: pa.Table, wanted: set[str] | None) -> dict[str, list[dict[str, Any]]]:
    """Rows by person, in canonical order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        if wanted is None or row["person"] in wanted:
            found.setdefault(row["person"], []).append(row)
    return found


def _attributes_of(table: pa.Table | None) -> dict[str, dict[str, AttributeValue]]:
    if table is None:
        return {}
    rows = table.to_pylist()
    usable = (str, int, float, bool, type(None))
    return {
        row["person"]: {
            key: value for key, value in row.items() if key != "person" and isinstance(value, usable)
        }
        for row in rows
    }


def _sessions_from(rows: pa.Table, start: dt.datetime) -> list[tuple[str, ...]]:
    """Sessions that begin in the test period, with at least two events, in order of their keys."""
    instant = microseconds(start)
    sessions: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for row in rows.select(["person", "session_id", "ts", "item_id"]).to_pylist():
        sessions.setdefault((row["person"], row["session_id"]), []).append((row["ts"], row["item_id"]))
    return [
        tuple(item for _, item in events)
        for _, events in sorted(sessions.items())
        if len(events) > 1 and events[0][0] >= instant
    ]


def _sample(cases: Sequence[_T], world: _World) -> Sequence[_T]:
    limit = world.settings.max_customers
    if limit is None or len(cases) <= limit:
        return cases
    chosen = np.random.default_rng(world.settings.seed).choice(len(cases), limit, replace=False)
    return [cases[number] for number in sorted(chosen.tolist())]


# ---- Asking ------------------------------------------------------------------------------------------------


def _ask_all(
    recommender: Recommender, tier: Tier, cases: Sequence[_Case], world: _World, advance: Advance
) -> Lists:
    """The lists of one tier, by a request that has just the permission for it."""
    found = []
    for case in cases:
        found.append(recommender.recommend(_REQUESTS[tier](case, world.width)).items)
        advance()
    return world.numbers(found)


def _restricted(
    recommender: Recommender, tiers: Sequence[Tier], cases: Sequence[_Case], world: _World, advance: Advance
) -> dict[str, Lists]:
    """The fused model in every slot: the router decides which inputs it sees, and nothing else differs."""
    fused = recommender.scorers[Tier.FUSED]
    one_model = dataclasses.replace(
        recommender, scorers=MappingProxyType({tier: fused for tier in tiers if tier is not Tier.POPULAR})
    )
    return {str(tier): _ask_all(one_model, tier, cases, world, advance) for tier in tiers}


def _popular_request(_: _Case, n: int) -> Request:
    # On the CRM side the list counts orders, which are the target: the harder baseline of the two.
    return Request(channel=Channel.EMAIL, permission=Permission.NONE, n=n)


def _session_request(case: _Case, n: int) -> Request:
    return Request(session=case.session, permission=Permission.NONE, n=n)


def _online_request(case: _Case, n: int) -> Request:
    return Request(
        session=case.session,
        online_history=case.device_history,
        permission=Permission.ONLINE,
        n=n,
    )


def _crm_request(case: _Case, n: int) -> Request:
    return Request(
        crm_history=case.crm_history,
        attributes=case.attributes,
        permission=Permission.CRM,
        channel=Channel.EMAIL,
        n=n,
    )


def _fused_request(case: _Case, n: int) -> Request:
    return Request(
        session=case.session,
        online_history=case.all_history,
        crm_history=case.crm_history,
        attributes=case.attributes,
        permission=_LEVEL_3,
        linked=True,
        n=n,
    )


_REQUESTS: Mapping[Tier, Callable[[_Case, int], Request]] = {
    Tier.POPULAR: _popular_request,
    Tier.SESSION: _session_request,
    Tier.ONLINE: _online_request,
    Tier.CRM: _crm_request,
    Tier.FUSED: _fused_request,
}


def _random(cases: Sequence[_Case], world: _World) -> Lists:
    """Items drawn at random: what chance alone gives."""
    rng = np.random.default_rng(world.settings.seed)
    names = list(world.items)
    return world.numbers(
        [[names[number] for number in rng.permutation(len(names))[: world.width]] for _ in cases]
    )


# ---- Judging -----------------------------------------------------------------------------------------------


def _world(
    shop: ShopTables,
    online: PermittedRows,
    crm: PermittedRows,
    start: dt.datetime,
    settings: EvaluationConfig,
) -> _World:
    instant = microseconds(start)
    counts: dict[str, int] = {}
    for permitted in (online, crm):
        rows = permitted.rows.filter(pa.compute.less(permitted.rows["ts"], instant))
        for item, count in person_counts(dataclasses.replace(permitted, rows=rows)).items():
            counts[item] = counts.get(item, 0) + count
        for item in permitted.rows["item_id"].unique().to_pylist():
            counts.setdefault(item, 0)
    items = {item: number for number, item in enumerate(sorted(counts, key=str.encode))}
    categories = np.full(len(items), -1, dtype=np.int64)
    if "category" in shop.items.column_names:
        names: dict[str, int] = {}
        for row in shop.items.select(["item_id", "category"]).to_pylist():
            if row["item_id"] in items and row["category"] is not None:
                categories[items[row["item_id"]]] = names.setdefault(row["category"], len(names))
    popularity = np.array([counts[item] for item in items], dtype=np.int64)
    return _World(MappingProxyType(items), popularity, categories, settings)


def _numbers(world: _World, items: Iterable[str]) -> NDArray[np.int64]:
    return np.array([world.items[item] for item in items], dtype=np.int64)


def _judge(lists: Lists, targets: metrics.Relevant, world: _World) -> dict[str, NDArray[np.float64]]:
    return metrics.rank_metrics(lists, targets, world.settings.cutoffs)


def _figures(
    tier: str,
    lists: Lists,
    judged: Mapping[str, NDArray[np.float64]],
    world: _World,
    *,
    clusters: NDArray[np.int64] | None = None,
) -> TierFigures:
    return {
        "tier": tier,
        "metrics": {name: _interval(values, world, clusters) for name, values in judged.items()},
        "coverage": metrics.coverage(lists, len(world.items)),
        "novelty": metrics.novelty(lists, world.popularity),
        "diversity": metrics.intra_list_diversity(lists, world.categories),
        "popularity_bias": metrics.popularity_bias(lists, world.popularity),
        "exposure_gini": metrics.exposure_gini(lists, len(world.items)),
    }


def _interval(
    values: NDArray[np.float64], world: _World, clusters: NDArray[np.int64] | None
) -> IntervalFigures:
    settings = world.settings
    return bootstrap_mean(
        values,
        clusters,
        samples=settings.bootstrap_samples,
        rng=settings.seed,
    ).to_dict()


def _contrast(
    name: str,
    explanation: str,
    lists: Mapping[str, Lists],
    judged: Mapping[str, Mapping[str, NDArray[np.float64]]],
    world: _World,
    *,
    clusters: NDArray[np.int64] | None = None,
) -> Contrast:
    gains = [f"ndcg@{cutoff}" for cutoff in world.settings.cutoffs]
    compared = [*gains, f"hit_rate@{world.width}", f"mrr@{world.width}"]
    rows: list[ContrastRow] = []
    for better, baseline in _PAIRS:
        if str(better) not in lists or str(baseline) not in lists:
            continue
        for metric in compared:
            first, second = judged[str(better)][metric], judged[str(baseline)][metric]
            difference = paired_difference(
                first,
                second,
                clusters,
                samples=world.settings.bootstrap_samples,
                rng=world.settings.seed,
            )
            reference = float(second.mean())
            rows.append(
                {
                    "better": str(better),
                    "baseline": str(baseline),
                    "metric": metric,
                    "difference": difference.to_dict(),
                    "relative": difference.mean / reference if reference else None,
                }
            )
    tiers = [_figures(tier, lists[tier], judged[tier], world, clusters=clusters) for tier in lists]
    return {"name": name, "explanation": explanation, "rows": rows, "tiers": tiers}


_BUCKET_ENDS: Sequence[float] = (0, 2, 5, 10, 20, float("inf"))


def _by_history(
    cases: Sequence[_Case], judged: Mapping[str, Mapping[str, NDArray[np.float64]]], world: _World
) -> list[HistoryRow]:
    """Each tier's scores for customers with one length of history; small groups without figures."""
    ends = np.array(_BUCKET_ENDS)
    buckets = np.searchsorted(ends, [case.history_length() for case in cases])
    rows: list[HistoryRow] = []
    for number, bucket in enumerate(HISTORY_BUCKETS):
        members = buckets == number
        count = int(members.sum())
        for tier, values in judged.items():
            figures = (
                {metric: _interval(each[members], world, None) for metric, each in values.items()}
                if count >= MINIMUM_GROUP
                else {}
            )
            if count:
                rows.append(_history_row(tier, bucket, count, figures))
    return rows


def _history_row(
    tier: str, bucket: HistoryBucket, customers: int, figures: dict[str, IntervalFigures]
) -> HistoryRow:
    return {"tier": tier, "bucket": bucket, "customers": customers, "metrics": figures}
