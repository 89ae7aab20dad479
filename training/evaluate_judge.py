"""What lists are worth: metrics with intervals, differences with tests, and whether fusion pays."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from consentier.consent import Tier, microseconds
from consentier.features.gate import PermittedRows
from consentier.features.interactions import person_counts
from consentier.features.tables import ShopTables
from consentier.models.bundle import Bundle
from consentier.models.item_index import ItemIndex
from consentier.training import metrics
from consentier.training.bootstrap import bootstrap_mean, paired_difference
from consentier.training.config import EvaluationConfig
from consentier.training.evaluation_result import (
    PROMOTION_RULE,
    Contrast,
    ContrastRow,
    FusionVerdict,
    IntervalFigures,
    TierFigures,
    mean_with_bounds,
)
from consentier.training.significance import holm, randomisation_test

__all__ = [
    "Judged",
    "Lists",
    "World",
    "contrast",
    "figures",
    "fusion_notes",
    "fusion_verdicts",
    "interval",
    "items_of",
    "judge",
    "popular_notes",
    "targets_of",
    "with_holm",
    "world_of",
]

Lists = NDArray[np.int64]
Judged = Mapping[str, NDArray[np.float64]]
"""Each metric's values, one a request."""

_PAIRS = (
    (Tier.SESSION, Tier.POPULAR),
    (Tier.ONLINE, Tier.SESSION),
    (Tier.CRM, Tier.POPULAR),
    (Tier.FUSED, Tier.ONLINE),
    (Tier.FUSED, Tier.CRM),
)
_WITH_LESS_PERMISSION = (Tier.POPULAR, Tier.SESSION, Tier.ONLINE, Tier.CRM)


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """What every judgement needs: the items, their popularity and category, and the settings.

    Attributes
    ----------
    items
        Number of each item, ascending by its id (UTF-8).
    popularity
        int64 (items,): distinct persons behind each item before the cut-off, online and CRM added.
    categories
        int64 (items,): number of each item's category, -1 where unknown.
    settings
        Cutoffs, resamples, seed.
    """

    items: Mapping[str, int]
    popularity: NDArray[np.int64]
    categories: NDArray[np.int64]
    settings: EvaluationConfig

    @property
    def width(self) -> int:
        """Length of the longest list that is judged."""
        return max(self.settings.cutoffs)

    def numbers(self, lists: Sequence[Sequence[str]]) -> Lists:
        """Lists of item ids as a padded array of item numbers."""
        array = np.full((len(lists), self.width), metrics.PADDING, dtype=np.int64)
        for row, found in enumerate(lists):
            numbers = [self.items[item] for item in found[: self.width]]
            array[row, : len(numbers)] = numbers
        return array


def world_of(
    shop: ShopTables,
    online: PermittedRows,
    crm: PermittedRows,
    start: dt.datetime,
    settings: EvaluationConfig,
    known: Iterable[str] = (),
) -> World:
    """All permitted items and those that a model knows, and how popular they were before the cut-off."""
    instant = microseconds(start)
    counts: dict[str, int] = {}
    for permitted in (online, crm):
        rows = permitted.rows.filter(pa.compute.less(permitted.rows["ts"], instant))
        for item, count in person_counts(dataclasses.replace(permitted, rows=rows)).items():
            counts[item] = counts.get(item, 0) + count
        for item in permitted.rows["item_id"].unique().to_pylist():
            counts.setdefault(item, 0)
    counts = {**dict.fromkeys(known, 0), **counts}
    items = {item: number for number, item in enumerate(sorted(counts, key=str.encode))}
    categories = np.full(len(items), -1, dtype=np.int64)
    if "category" in shop.items.column_names:
        names: dict[str, int] = {}
        for row in shop.items.select(["item_id", "category"]).to_pylist():
            if row["item_id"] in items and row["category"] is not None:
                categories[items[row["item_id"]]] = names.setdefault(row["category"], len(names))
    popularity = np.array([counts[item] for item in items], dtype=np.int64)
    return World(MappingProxyType(items), popularity, categories, settings)


def items_of(bundle: Bundle) -> list[str]:
    """The items that a model knows."""
    index = ItemIndex(bundle.arrays["item_ids"], bundle.arrays["item_offsets"], verify=False)
    return index.ids(np.arange(len(index)))


def targets_of(targets: Iterable[Sequence[str]], world: World) -> metrics.Relevant:
    """The relevant items of each request, by number."""
    return metrics.Relevant.from_lists(
        [np.array([world.items[item] for item in target], dtype=np.int64) for target in targets]
    )


def judge(lists: Lists, targets: metrics.Relevant, world: World) -> dict[str, NDArray[np.float64]]:
    """All ranking metrics of some lists, one value a request."""
    return metrics.rank_metrics(lists, targets, world.settings.cutoffs)


def interval(
    values: NDArray[np.float64], world: World, clusters: NDArray[np.int64] | None = None
) -> IntervalFigures:
    """Mean with its bootstrap interval, with the evaluation's seed."""
    settings = world.settings
    return bootstrap_mean(
        values,
        clusters,
        samples=settings.bootstrap_samples,
        rng=settings.seed,
    ).to_dict()


def figures(
    tier: str,
    lists: Lists,
    judged: Judged,
    world: World,
    *,
    clusters: NDArray[np.int64] | None = None,
) -> TierFigures:
    """All figures of one tier."""
    return {
        "tier": tier,
        "metrics": {name: interval(values, world, clusters) for name, values in judged.items()},
        "coverage": metrics.coverage(lists, len(world.items)),
        "novelty": metrics.novelty(lists, world.popularity),
        "diversity": metrics.intra_list_diversity(lists, world.categories),
        "popularity_bias": metrics.popularity_bias(lists, world.popularity),
        "exposure_gini": metrics.exposure_gini(lists, len(world.items)),
    }


def contrast(
    name: str,
    explanation: str,
    lists: Mapping[str, Lists],
    judged: Mapping[str, Judged],
    world: World,
    *,
    clusters: NDArray[np.int64] | None = None,
    pairs: Sequence[tuple[Tier, Tier]] = _PAIRS,
) -> Contrast:
    """Tiers against each other on the same requests; each row is tested by itself (see `with_holm`)."""
    gains = [f"ndcg@{cutoff}" for cutoff in world.settings.cutoffs]
    compared = [
        (str(better), str(baseline), metric)
        for better, baseline in pairs
        if str(better) in lists and str(baseline) in lists
        for metric in (*gains, f"hit_rate@{world.width}", f"mrr@{world.width}")
    ]
    rows = [
        _contrast_row(better, baseline, metric, judged, world, clusters)
        for better, baseline, metric in compared
    ]
    if rows:
        differences = [
            judged[better][metric] - judged[baseline][metric] for better, baseline, metric in compared
        ]
        p_values = randomisation_test(np.stack(differences, axis=1), clusters, rng=world.settings.seed)
        for row, p_value in zip(rows, p_values.tolist(), strict=True):
            row["p_value"] = row["p_holm"] = p_value
    tiers = [figures(tier, lists[tier], judged[tier], world, clusters=clusters) for tier in lists]
    return {"name": name, "explanation": explanation, "rows": rows, "tiers": tiers}


def _contrast_row(
    better: str,
    baseline: str,
    metric: str,
    judged: Mapping[str, Judged],
    world: World,
    clusters: NDArray[np.int64] | None,
) -> ContrastRow:
    first, second = judged[better][metric], judged[baseline][metric]
    difference = _difference(first, second, world, clusters)
    reference = float(second.mean())
    return {
        "better": better,
        "baseline": baseline,
        "metric": metric,
        "difference": difference,
        "relative": difference["mean"] / reference if reference else None,
        "p_value": 1.0,
        "p_holm": 1.0,
    }


def with_holm(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The contrasts, with p-values corrected over all rows of all of them: one evaluation, one family."""
    adjusted = iter(holm([row["p_value"] for each in contrasts for row in each["rows"]]).tolist())
    return [
        {**each, "rows": [{**row, "p_holm": next(adjusted)} for row in each["rows"]]} for each in contrasts
    ]


def fusion_verdicts(judged: Mapping[str, Judged], world: World) -> list[FusionVerdict]:
    """Whether the fused tier beats the best tier with less permission, on the same customers, at each cutoff.

    The best one is chosen by its mean on these very customers, which flatters it, never the fused tier; of
    equally good ones it is that with the least permission.

    Returns
    -------
    list of FusionVerdict
        Empty where there is no fused tier.
    """
    others = [str(tier) for tier in _WITH_LESS_PERMISSION if str(tier) in judged]
    if str(Tier.FUSED) not in judged or not others:
        return []
    return [_fusion_verdict(judged, others, cutoff, world) for cutoff in world.settings.cutoffs]


def fusion_notes(verdicts: Sequence[FusionVerdict]) -> list[str]:
    """The verdicts in words, and, where one advises against fused, that promotion has another rule."""
    texts = [verdict["text"] for verdict in verdicts]
    return texts if all(verdict["beats"] for verdict in verdicts) else [*texts, PROMOTION_RULE]


def popular_notes(
    judged: Mapping[str, Judged], world: World, clusters: NDArray[np.int64] | None = None
) -> list[str]:
    """What is to be said of tiers that are not better than the popular list on the same requests."""
    metric = f"ndcg@{world.settings.cutoffs[0]}"
    popular = judged[Tier.POPULAR][metric]
    notes = []
    for tier in (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED):
        if tier not in judged:
            continue
        difference = _difference(judged[tier][metric], popular, world, clusters)
        if difference["mean"] > 0:
            continue
        verb = "is worse than" if difference["high"] < 0 else "is not better than"
        notes.append(
            f"The {tier} tier {verb} the popular list on the same requests: difference in {metric} "
            f"{mean_with_bounds(difference, sign='+')}. Look in the consent funnel at how much it is trained "
            "on, and search for better parameters (consentier tune). 'consentier promote' lets no model "
            "serve that is not shown to be better than the popular list."
        )
    return notes


def _fusion_verdict(
    judged: Mapping[str, Judged], others: Sequence[str], cutoff: int, world: World
) -> FusionVerdict:
    metric = f"ndcg@{cutoff}"
    best = max(others, key=lambda tier: float(judged[tier][metric].mean()))
    difference = _difference(judged[str(Tier.FUSED)][metric], judged[best][metric], world, None)
    return {
        "metric": metric,
        "best_other": best,
        "difference": difference,
        "beats": difference["low"] > 0,
        "text": _verdict_text(best, cutoff, difference),
    }


def _verdict_text(best: str, cutoff: int, difference: IntervalFigures) -> str:
    mean, low, high = difference["mean"], difference["low"], difference["high"]
    verb = "beats" if low > 0 else "is worse than" if high < 0 else "does not beat"
    advice = (
        "Joining the sources pays."
        if low > 0
        else f"No gain is shown. Serve level 3 by {best}: put it before fused in [matrix.both_linked] of the "
        "routing policy."
    )
    return (
        f"In lists of {cutoff}, fused {verb} {best}, the best tier with less permission, on the same "
        f"customers: difference in ndcg@{cutoff} {mean:+.4f} [{low:+.4f}, {high:+.4f}]. {advice}"
    )


def _difference(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    world: World,
    clusters: NDArray[np.int64] | None,
) -> IntervalFigures:
    settings = world.settings
    return paired_difference(
        first, second, clusters, samples=settings.bootstrap_samples, rng=settings.seed
    ).to_dict()
