"""The evaluation report: one self-contained HTML page, and the same figures as Markdown and plain rows.

The page needs no network and runs no script; its bytes depend on the evaluation (and the version of
matplotlib) only. Figures of fewer than ``MINIMUM_GROUP`` customers are not shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from consentier.training.drift_result import DRIFT_COLUMNS, DriftResult, drift_rows
from consentier.training.evaluation_result import (
    HISTORY_BUCKETS,
    MINIMUM_GROUP,
    POPULARITY_BANDS,
    PROMOTION_RULE,
    Contrast,
    ContrastRow,
    DataFigures,
    EvaluationResult,
    FunnelRow,
    FusionVerdict,
    GroupRow,
    HistoryRow,
    ModelFigures,
    PopularityBand,
    PopularityRow,
    Population,
    TargetSide,
    TierFigures,
    check_evaluation,
)
from consentier.training.pages import (
    NOTHING,
    TOO_FEW,
    figure_of,
    interval_text,
    number,
    p_value,
    page,
    section,
    share,
    table,
    write_page,
)
from consentier.training.plots import (
    GROUP_NAMES,
    SIDE_NAMES,
    coverage_figure,
    funnel_figure,
    group_figure,
    history_figure,
    lift_figure,
    popularity_figure,
)

__all__ = ["markdown_table", "print_rows", "render_report", "write_report"]

_ASCENDING = ("popular", "session", "online", "crm", "fused")
"""Tiers, the one with the least permission first."""

ASKED: Mapping[Population, str] = {
    "permissions": "linked customers with both permissions (level 3)",
    "orders": "customers with the CRM permission",
    "next_item": "sessions of visitors with the online permission",
}
TARGET: Mapping[Population, str] = {
    "permissions": "items ordered within {days:g} days of the request",
    "orders": "items ordered within {days:g} days of the request",
    "next_item": "the next item of the session, within {days:g} days of the cut-off",
}
_COMPARED: Mapping[Population, str] = {
    "permissions": "All tiers answer the same requests of the same customers: linked level-3 customers, "
    "who have given both permissions, at the same instant. The target is the same too: the items that the "
    "customer ordered within the next {days:g} days. What differs is only what a tier may read: in its "
    "training, in the request, or in both, as each comparison below says.",
    "orders": "Customers with the CRM permission are asked once, at the cut-off. The target: the items that "
    "the customer ordered within the next {days:g} days. Too few customers are linked with both permissions "
    "to show what each permission adds.",
    "next_item": "Every prefix of every session that began within {days:g} days of the cut-off is a request; "
    "the target is the session's next item. There are no orders to show what each permission adds.",
}


def render_report(evaluation: Mapping[str, Any], drift: DriftResult | None = None) -> str:
    """The evaluation as one HTML page, with its style and figures inline.

    Parameters
    ----------
    evaluation
        An :class:`~consentier.training.evaluation_result.EvaluationResult`.
    drift
        In the report of a training run: how its data differ from those of the models in use.

    Raises
    ------
    ValueError
        If the dictionary is not an evaluation result; the message names the field.
    """
    result = check_evaluation(evaluation)
    metric = _headline_metric(result)
    title = f"Evaluation by permission level: {result['data']['name']}"
    sections = [
        _summary(result, metric),
        _fusion(result["fusion"]),
        _estimand(result["population"], result["data"]),
        _tests(result),
        _scores(result, metric),
        *(_contrast(contrast) for contrast in result["contrasts"]),
        _groups(result["by_permission_group"], metric),
        _history(result["by_history_length"], metric),
        _popularity(result["by_popularity"], result["cutoffs"][0]),
        _lists(result["tiers"], metric),
        _models(result["models"]),
        _funnel(result["consent_funnel"]),
        "" if drift is None else _drift(drift),
        _notes(result["notes"]),
    ]
    return page(title, sections)


def write_report(path: str | Path, evaluation: Mapping[str, Any]) -> None:
    """Write :func:`render_report`'s page to ``path``: beside it first, then renamed into place.

    Raises
    ------
    ValueError
        If the dictionary is not an evaluation result; nothing is written then.
    OSError
        If the folder is missing or cannot be written; an earlier report stays as it was.
    """
    write_page(path, render_report(evaluation))


def markdown_table(evaluation: Mapping[str, Any]) -> str:
    """The tiers' headline scores, with intervals, as a Markdown table for the docs.

    Raises
    ------
    ValueError
        If the dictionary is not an evaluation result.
    """
    rows = print_rows(evaluation)
    columns = list(rows[0])
    lines = [
        columns,
        ["---", *["---:"] * (len(columns) - 1)],
        *([row[name] for name in columns] for row in rows),
    ]
    return "".join("| " + " | ".join(_markdown(cell) for cell in line) + " |\n" for line in lines)


def print_rows(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row of texts for each tier: its metrics at the first cutoff, with intervals, and its coverage.

    Raises
    ------
    ValueError
        If the dictionary is not an evaluation result.
    """
    result = check_evaluation(evaluation)
    suffix = f"@{result['cutoffs'][0]}"
    names = [name for name in _metric_names(result["tiers"]) if name.endswith(suffix)]
    return [
        {
            "tier": tier["tier"],
            **{name: interval_text(tier["metrics"].get(name)) for name in names},
            "coverage": share(tier["coverage"]),
        }
        for tier in result["tiers"]
    ]


def _summary(result: EvaluationResult, metric: str) -> str:
    data = result["data"]
    facts = {
        "Data": data["name"],
        "Training cut-off": data["cutoff"],
        "Target": TARGET[result["population"]].format(days=data["horizon_days"]),
        "Asked": f"{result['customers']:,} {ASKED[result['population']]}",
        "Requests": f"{result['requests']:,}",
    }
    if "fingerprint" in data:
        facts["Fingerprint of the data"] = data["fingerprint"]
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    findings = [
        _finding(contrast["name"], row)
        for contrast in result["contrasts"]
        for row in contrast["rows"]
        if row["metric"] == metric
    ]
    return f"<dl>{pairs}</dl>" + (f"<ul>{''.join(findings)}</ul>" if findings else "")


def _finding(contrast: str, row: ContrastRow) -> str:
    better, baseline, difference = row["better"], row["baseline"], row["difference"]
    if difference["low"] > 0:
        verdict = f"{better} is better than {baseline}"
    elif difference["high"] < 0:
        verdict = f"{better} is worse than {baseline}"
    else:
        verdict = f"no difference between {better} and {baseline} is shown"
    relative = "" if row["relative"] is None else f", {row['relative']:+.1%} of {baseline}"
    text = (
        f"{verdict}: {interval_text(difference, sign='+')} {row['metric']}{relative} "
        f"({contrast}; p = {p_value(row['p_holm'])} after Holm)"
    )
    return f"<li>{escape(text)}</li>"


def _drift(drift: DriftResult) -> str:
    not_judged = "".join(f"<li>{escape(text)}</li>" for text in drift["not_judged"].values())
    rows = drift_rows(drift["checks"])
    breaches = sum(check["breached"] for check in drift["checks"])
    return section(
        "drift",
        "Drift since the models in use",
        "<p>What each tier might read up to the cut-off of this run, against what the champion of that tier "
        f"was fitted on. {breaches:,} of {len(rows):,} checks are beyond their threshold.</p>"
        if rows
        else "",
        table("Checks of each tier's permitted data", DRIFT_COLUMNS, rows) if rows else "",
        f"<ul>{not_judged}</ul>" if not_judged else "",
    )


def _estimand(population: Population, data: DataFigures) -> str:
    return section(
        "estimand",
        "What is compared",
        f"<p>{escape(_COMPARED[population].format(days=data['horizon_days']))} All items are ranked; there "
        "are no sampled candidates.</p>",
        "<p>Brackets hold 95 % intervals. They come from a bootstrap over customers (or sessions), who are "
        "drawn with all their requests. Differences are paired: both tiers are scored on the same draws. To "
        "compare two tiers, read the interval of their difference, not the overlap of their two "
        "intervals.</p>",
        "<p>The figures hold for customers who consent. The quality of the answers that level-1 customers "
        "receive cannot be observed, because nothing about these customers is kept; consenting customers may "
        "differ from them.</p>",
    )


def _fusion(verdicts: Sequence[FusionVerdict]) -> str:
    if not verdicts:
        return ""
    items = "".join(f"<li>{escape(verdict['text'])}</li>" for verdict in verdicts)
    return section(
        "fusion",
        "Does joining both sources pay?",
        f'<ul class="verdict">{items}</ul>',
        "<p>The fused tier is held against whichever tier with less permission is best on these very "
        "customers. That choice flatters the other tier, so a gain that is left is one.</p>",
        f"<p>{escape(PROMOTION_RULE)}</p>",
    )


def _tests(result: EvaluationResult) -> str:
    rows = sum(len(contrast["rows"]) for contrast in result["contrasts"])
    if not rows:
        return ""
    return section(
        "tests",
        "How differences are tested",
        f"<p>Each of the {rows:,} differences below has a p-value of the paired randomisation test: if two "
        "tiers were equally good, each customer's difference could as well have the other sign "
        f"({result['randomisations']:,} random assignments of signs; Smucker, Allan and Carterette 2007). "
        f"With {rows:,} tests some would look real by chance; the column after Holm (1979) corrects for all "
        "of them together, so that reading each value below 0.05 as a difference errs even once in at most "
        "5 % of such evaluations.</p>",
    )


def _scores(result: EvaluationResult, metric: str) -> str:
    figure = lift_figure(result["tiers"], result["contrasts"], metric)
    return section(
        "scores",
        "Score of each permission level",
        figure_of(
            figure,
            "lift",
            f"{metric} of each tier, and differences between tiers, with intervals",
            "On the left the score of each tier: further right is better. On the right, where tiers were "
            "compared, the paired difference: a bar that stays right of the line at 0 shows a lift, one that "
            "crosses it shows none.",
        ),
        _tier_table(result["tiers"], "All metrics of each tier, with 95 % intervals"),
    )


def _contrast(contrast: Contrast) -> str:
    rows = [
        [
            row["better"],
            row["baseline"],
            row["metric"],
            interval_text(row["difference"], sign="+"),
            NOTHING if row["relative"] is None else f"{row['relative']:+.1%}",
            p_value(row["p_value"]),
            p_value(row["p_holm"]),
        ]
        for row in contrast["rows"]
    ]
    header = ["tier", "against", "metric", "difference", "relative", "p", "p after Holm"]
    name = contrast["name"]
    parts = [f"<p>{escape(contrast['explanation'])}</p>"]
    if rows:
        parts.append(table(f"Paired differences: {name}", header, rows))
    if contrast["tiers"]:
        parts.append(_tier_table(contrast["tiers"], f"All metrics of each tier: {name}"))
    return section("", f"Comparison: {name}", *parts)


def _history(rows: Sequence[HistoryRow], metric: str) -> str:
    if not rows:
        return ""
    figure = history_figure(rows, metric)
    tiers = list(dict.fromkeys(row["tier"] for row in rows))
    cells = {(row["tier"], row["bucket"]): _history_cell(row, metric) for row in rows}
    body = [[tier, *(cells.get((tier, bucket), NOTHING) for bucket in HISTORY_BUCKETS)] for tier in tiers]
    return section(
        "history",
        "Score by length of history",
        f"<p>Groups of fewer than {MINIMUM_GROUP} customers are not shown.</p>",
        figure_of(
            figure,
            "history-figure",
            f"{metric} of each tier by the number of items in the customer's history, with intervals",
            "Each line is a tier. Look at where the lines part: there a longer permitted history pays.",
        ),
        table(
            f"{metric} by number of items in the permitted history, with the number of customers",
            ["tier", *HISTORY_BUCKETS],
            body,
        ),
    )


def _history_cell(row: HistoryRow, metric: str) -> str:
    if row["customers"] < MINIMUM_GROUP:
        return TOO_FEW
    return f"{interval_text(row['metrics'].get(metric))}; {row['customers']:,} customers"


def _groups(rows: Sequence[GroupRow], metric: str) -> str:
    if not rows:
        return ""
    return section(
        "groups",
        "Score by state of permission",
        "<p>Consent selects customers. A tier that answers for one group can look better or worse than one "
        "that answers for another because the customers differ, not the tiers. So each tier stands on every "
        "group that it may answer. Compare tiers along a row: the same customers. Read down a column to see "
        "selection: the same tier, other customers.</p>",
        "<p>On the CRM side the target is what a customer orders; on the online side it is what a visitor "
        "shows interest in on the same device. Figures of the two sides do not compare. Without a link that "
        "may be read, nobody can tell whether a customer permits online usage too: CRM only and online only "
        "hold such people as well. Both, not linked, are those who were linked within the test period only. "
        f"Groups of fewer than {MINIMUM_GROUP} are not shown.</p>",
        figure_of(
            group_figure(rows, metric),
            "groups-figure",
            f"{metric} of each tier for each state of permission, with intervals",
            "Between two lines stands one tier. Where its marks lie apart, the customers differ: so much may "
            "be selection where tiers are compared on different customers.",
        ),
        *(_group_table(rows, side, metric) for side in SIDE_NAMES),
    )


def _group_table(rows: Sequence[GroupRow], side: TargetSide, metric: str) -> str:
    cells = {(row["group"], row["tier"]): row for row in rows if row["side"] == side}
    if not cells:
        return ""
    tiers = [tier for tier in _ASCENDING if any(tier == asked for _, asked in cells)]
    body = []
    for group, name in GROUP_NAMES.items():
        counts = [row["customers"] for (asked, _), row in cells.items() if asked == group]
        if counts:
            shown = TOO_FEW if counts[0] < MINIMUM_GROUP else f"{counts[0]:,}"
            scores = [_group_cell(cells.get((group, tier)), metric) for tier in tiers]
            body.append([name, shown, *scores])
    caption = f"{metric} by state of permission, judged by {SIDE_NAMES[side]}"
    return table(caption, ["permissions", "customers", *tiers], body)


def _group_cell(row: GroupRow | None, metric: str) -> str:
    if row is None or row["customers"] < MINIMUM_GROUP:
        return NOTHING
    return interval_text(row["metrics"].get(metric))


def _popularity(rows: Sequence[PopularityRow], cutoff: int) -> str:
    if not rows:
        return ""
    gain, recall = f"ndcg@{cutoff}", f"recall@{cutoff}"
    return section(
        "popularity",
        "Score by popularity of the wanted item",
        "<p>Items are ordered by the number of persons behind them before the cut-off. The head are the most "
        "popular ones, which hold a third of all interactions; the middle hold the next third, the tail the "
        "last; new items have none. A customer counts in each band that holds an item that the customer "
        f"wanted, and the target is what lies in that band. Bands with fewer than {MINIMUM_GROUP} customers "
        "are not shown.</p>",
        figure_of(
            popularity_figure(rows, gain),
            "popularity-figure",
            f"{gain} of each tier by the popularity of the wanted item, with intervals",
            "Each line is a tier. One that falls steeply to the right knows what everybody buys; what is "
            "left in the tail is what personal data find. Only a model that borrows by the metadata of items "
            "finds a new one.",
        ),
        _popularity_table(rows, gain),
        _popularity_table(rows, recall),
    )


def _popularity_table(rows: Sequence[PopularityRow], metric: str) -> str:
    bands = [band for band in POPULARITY_BANDS if any(row["band"] == band for row in rows)]
    header = [_band_header(next(row for row in rows if row["band"] == band)) for band in bands]
    cells: dict[tuple[str, PopularityBand], str] = {
        (row["tier"], row["band"]): TOO_FEW
        if row["customers"] < MINIMUM_GROUP
        else interval_text(row["metrics"].get(metric))
        for row in rows
    }
    tiers = list(dict.fromkeys(row["tier"] for row in rows))
    body = [[tier, *(cells.get((tier, band), NOTHING) for band in bands)] for tier in tiers]
    return table(f"{metric} by popularity of the wanted item", ["tier", *header], body)


def _band_header(row: PopularityRow) -> str:
    customers = "" if row["customers"] < MINIMUM_GROUP else f", {row['customers']:,} customers"
    return f"{row['band']} ({row['items']:,} items{customers})"


def _models(models: Sequence[ModelFigures]) -> str:
    if not models:
        return ""
    rows = [
        [
            model["tier"],
            model["algorithm"],
            _weights(model["source_weights"]),
            _weights(model["event_weights"]),
            NOTHING if model["recency_half_life"] is None else f"{model['recency_half_life']:g} days",
            f"{model['attribute_weight']:g}" if model["attribute_weight"] else NOTHING,
        ]
        for model in models
    ]
    header = ["tier", "method", "weight by source", "weight by event", "half-life", "attributes"]
    parameters = [
        f"<h3>{escape(model['tier'])}</h3>\n<ul>"
        + "".join(f"<li>{escape(sentence)}</li>" for sentence in model["parameters"])
        + "</ul>"
        for model in models
    ]
    return section(
        "models",
        "What the tiers weigh",
        "<p>Out of the manifests of the models that were judged here: how much an event of each source and "
        "of each type counts, after how many days an event counts half as much, and what a customer's "
        "attributes count together without any history. A dash: the model knows no such thing.</p>",
        table("Weights of each tier", header, rows),
        "<details><summary>All parameters, in plain words</summary>",
        *parameters,
        "</details>",
    )


def _weights(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in sorted(weights.items())) or NOTHING


def _lists(tiers: Sequence[TierFigures], metric: str) -> str:
    header = ["tier", "coverage", "novelty (bits)", "diversity", "popularity bias"]
    has_gini = any("exposure_gini" in tier for tier in tiers)
    rows = [
        [
            tier["tier"],
            share(tier["coverage"]),
            number(tier["novelty"]),
            number(tier["diversity"]),
            number(tier["popularity_bias"]),
            *([number(tier.get("exposure_gini"))] if has_gini else []),
        ]
        for tier in tiers
    ]
    return section(
        "lists",
        "What the lists are made of",
        "<p>Coverage is the share of the catalogue that stands in at least one list. Novelty is the mean "
        "self-information of a recommended item: one bit more means half as popular. Diversity is the share "
        "of pairs within a list that are of different categories. Popularity bias says how many times as "
        "popular as the average item a recommended item is. A Gini coefficient of exposure of 0 shows all "
        "items equally often; near 1, a few items take every place.</p>",
        figure_of(
            coverage_figure(tiers, metric),
            "coverage-figure",
            f"{metric} of each tier against its coverage of the catalogue",
            "Up is more accurate, right is more of the catalogue. A tier towards the upper right is better "
            "on both.",
        ),
        table(
            "Composition of the recommended lists",
            [*header, "exposure (Gini)"] if has_gini else header,
            rows,
        ),
    )


def _funnel(rows: Sequence[FunnelRow]) -> str:
    if not rows:
        return ""
    reasons = list(dict.fromkeys(reason for row in rows for reason in row["excluded"]))
    body = [
        [
            f"{row['tier']} from {row['source']}",
            f"{row['rows_in']:,}",
            f"{row['rows_kept']:,}",
            *(f"{row['excluded'].get(reason, 0):,}" for reason in reasons),
        ]
        for row in rows
    ]
    return section(
        "funnel",
        "What consent let through",
        "<p>Each model is trained only on rows whose permission held from the event to the training cut-off. "
        "A row that is excluded counts under the first reason that applies.</p>",
        figure_of(
            funnel_figure(rows),
            "funnel-figure",
            "Share of the rows that were kept, and that each reason excluded, by tier and source",
            "The first part of each bar is what was kept; the other parts are the reasons why rows were not. "
            "A long part for one reason shows where data are lost.",
        ),
        table("Rows by tier and source", ["tier and source", "rows in", "kept", *reasons], body),
    )


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return section("notes", "Notes", f"<ul>{items}</ul>")


def _tier_table(tiers: Sequence[TierFigures], caption: str) -> str:
    """Metrics down, tiers across: there are more metrics than tiers."""
    rows = [
        [name, *(interval_text(tier["metrics"].get(name)) for tier in tiers)] for name in _metric_names(tiers)
    ]
    return table(caption, ["metric", *(tier["tier"] for tier in tiers)], rows)


def _headline_metric(result: EvaluationResult) -> str:
    """NDCG at the first cutoff, or else the first metric of the first tier."""
    names = _metric_names(result["tiers"])
    wanted = f"ndcg@{result['cutoffs'][0]}"
    return wanted if wanted in names else names[0]


def _metric_names(tiers: Sequence[TierFigures]) -> list[str]:
    return list(dict.fromkeys(name for tier in tiers for name in tier["metrics"]))


def _markdown(cell: str) -> str:
    return escape(cell, quote=False).replace("|", "\\|").replace("\n", " ")
