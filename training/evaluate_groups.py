"""Results by length of history, by popularity of the target, and by the customers' state of permission.

Groups of fewer than ``MINIMUM_GROUP`` customers get no figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Tier
from consentier.progress import progress
from consentier.serving import Recommender
from consentier.training import metrics
from consentier.training.evaluate_cases import Case, sample
from consentier.training.evaluate_judge import Judged, Lists, World, interval, judge, targets_of
from consentier.training.evaluate_requests import ask_all
from consentier.training.evaluation_result import (
    HISTORY_BUCKETS,
    MINIMUM_GROUP,
    POPULARITY_BANDS,
    GroupRow,
    HistoryRow,
    IntervalFigures,
    PermissionGroup,
    PopularityRow,
    TargetSide,
)

__all__ = ["GROUP_TIERS", "by_history", "by_permission_group", "by_popularity", "popularity_bands"]

GROUP_TIERS: Mapping[tuple[PermissionGroup, TargetSide], tuple[Tier, ...]] = {
    ("crm_only", "crm"): (Tier.POPULAR, Tier.CRM),
    ("both_unlinked", "crm"): (Tier.POPULAR, Tier.CRM),
    ("both_linked", "crm"): (Tier.POPULAR, Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED),
    ("online_only", "online"): (Tier.POPULAR, Tier.SESSION, Tier.ONLINE),
    ("both_unlinked", "online"): (Tier.POPULAR, Tier.SESSION, Tier.ONLINE),
    ("both_linked", "online"): (Tier.POPULAR, Tier.SESSION, Tier.ONLINE, Tier.FUSED),
}
"""Which tiers may answer for whom, in the default policy's matrix; for linked customers all that a target of
that side can be judged by."""

_BUCKET_ENDS: Sequence[float] = (0, 2, 5, 10, 20, float("inf"))


def by_history(
    lengths: Sequence[int],
    judged: Mapping[str, Judged],
    world: World,
    *,
    clusters: NDArray[np.int64] | None = None,
) -> list[HistoryRow]:
    """Each tier's scores for the customers with one length of history; small groups without figures.

    `lengths` says how many distinct items the history of each request holds.
    """
    buckets = np.searchsorted(np.array(_BUCKET_ENDS), lengths)
    rows: list[HistoryRow] = []
    for number, bucket in enumerate(HISTORY_BUCKETS):
        members = buckets == number
        owners = None if clusters is None else clusters[members]
        count = int(members.sum()) if owners is None else len(np.unique(owners))
        for tier, values in judged.items():
            if count:
                chosen = {metric: each[members] for metric, each in values.items()}
                found = _intervals(chosen, count, world, owners)
                rows.append({"tier": tier, "bucket": bucket, "customers": count, "metrics": found})
    return rows


def popularity_bands(popularity: NDArray[np.int64]) -> NDArray[np.int64]:
    """The band of each item, as a position in ``POPULARITY_BANDS``.

    Items stand in descending order of popularity, ties by ascending number. The head is the items before
    which less than a third of all training interactions lie, the middle those before which less than two
    thirds do, the tail the rest; items without any are new. So each of the first three holds about a third
    of the interactions (the head is the short head of Cremonesi, Koren and Turrin 2010, "Performance of
    recommender algorithms on top-N recommendation tasks").

    Parameters
    ----------
    popularity
        Training interactions of each item, (items,), none negative.

    Returns
    -------
    numpy.ndarray
        int64 (items,).
    """
    order = np.lexsort((np.arange(len(popularity)), -popularity))
    counts = popularity[order]
    before = np.cumsum(counts) - counts
    total = int(counts.sum())
    bands = np.empty(len(popularity), dtype=np.int64)
    # Whole numbers: 3 × before < total says "less than a third" without rounding.
    bands[order] = np.where(
        counts == 0, 3, (3 * before >= total).astype(np.int64) + (3 * before >= 2 * total)
    )
    return bands


def by_popularity(
    lists: Mapping[str, Lists],
    targets: metrics.Relevant,
    world: World,
    *,
    clusters: NDArray[np.int64] | None = None,
) -> list[PopularityRow]:
    """Recall and NDCG of each tier for the targets of one band, on the customers who have such a target.

    The lists stay whole: an item of another band takes a place, but is no hit.
    """
    bands = popularity_bands(world.popularity)
    owner = np.repeat(np.arange(len(targets)), targets.counts)
    rows: list[PopularityRow] = []
    for number, band in enumerate(POPULARITY_BANDS):
        inside = bands[targets.items] == number
        requests, counts = np.unique(owner[inside], return_counts=True)
        owners = None if clusters is None else clusters[requests]
        customers = len(requests) if owners is None else len(np.unique(owners))
        if not customers:
            continue
        within = metrics.Relevant(np.concatenate([[0], np.cumsum(counts)]), targets.items[inside])
        for tier, found in lists.items():
            values = {} if customers < MINIMUM_GROUP else judge(found[requests], within, world)
            kept = {name: each for name, each in values.items() if name.startswith(("recall@", "ndcg@"))}
            rows.append(
                {
                    "tier": tier,
                    "band": band,
                    "items": int(np.sum(bands == number)),
                    "targets": int(inside.sum()),
                    "customers": customers,
                    "metrics": _intervals(kept, customers, world, owners),
                }
            )
    return rows


def by_permission_group(
    recommender: Recommender,
    groups: Mapping[tuple[PermissionGroup, TargetSide], Sequence[Case]],
    world: World,
    known: Mapping[tuple[PermissionGroup, TargetSide], Mapping[str, Judged]],
    show_progress: bool,
) -> list[GroupRow]:
    """What the tiers that may answer for a group are worth to it.

    Consent selects customers: a tier that is asked for by one group can look better or worse than one asked
    for by another, with no difference between the tiers. So each stands on each group that it may answer.

    Parameters
    ----------
    recommender, world
        As trained, and what it is judged by.
    groups
        The cases of each group and side.
    known
        Metrics that were already found, for the groups where they were.
    show_progress
        Say on standard error what is being done.
    """
    drawn = {key: sample(cases, world.settings) for key, cases in groups.items()}
    tiers = {
        key: [tier for tier in GROUP_TIERS[key] if tier is Tier.POPULAR or tier in recommender.scorers]
        for key in drawn
    }
    asked = [key for key, cases in drawn.items() if len(cases) >= MINIMUM_GROUP and key not in known]
    total = sum(len(drawn[key]) * len(tiers[key]) for key in asked)
    judged: dict[tuple[PermissionGroup, TargetSide], Mapping[str, Judged]] = dict(known)
    with progress("asking by state of permission", total, enabled=show_progress) as advance:
        for key in asked:
            cases, side = drawn[key], key[1]
            targets = targets_of((case.target for case in cases), world)
            judged[key] = {
                str(tier): judge(ask_all(recommender, tier, cases, world, advance, side=side), targets, world)
                for tier in tiers[key]
            }
    return [
        {
            "group": key[0],
            "side": key[1],
            "tier": str(tier),
            "customers": len(cases),
            "metrics": _intervals(judged.get(key, {}).get(str(tier), {}), len(cases), world, None),
        }
        for key, cases in drawn.items()
        if len(cases)
        for tier in tiers[key]
    ]


def _intervals(
    values: Judged, customers: int, world: World, clusters: NDArray[np.int64] | None
) -> dict[str, IntervalFigures]:
    if customers < MINIMUM_GROUP:
        return {}
    return {metric: interval(each, world, clusters) for metric, each in values.items()}
