"""Figures of the evaluation report, as SVG texts.

Text and axes are drawn in ``currentColor``, so that they follow the page into dark mode; standing alone they
are black. The series colours have a contrast of at least 3 to 1 against white and against ``DARK_GROUND``
(WCAG 2.2, 1.4.11) and differ for colour-blind readers (after Okabe and Ito); marker, line style, hatching or
a label says the same again. The same input gives the same bytes.
"""

from __future__ import annotations

import datetime as dt
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from consentier.training.evaluation_result import (
    HISTORY_BUCKETS,
    MINIMUM_GROUP,
    POPULARITY_BANDS,
    Contrast,
    FunnelRow,
    GroupRow,
    HistoryRow,
    IntervalFigures,
    PermissionGroup,
    PopularityRow,
    TargetSide,
    TierFigures,
)

if TYPE_CHECKING:
    from consentier.training.consent_levels import LevelCounts

__all__ = [
    "DARK_GROUND",
    "GROUP_NAMES",
    "LIGHT_GROUND",
    "SERIES_COLOURS",
    "SIDE_NAMES",
    "coverage_figure",
    "difference_figure",
    "funnel_figure",
    "group_figure",
    "history_figure",
    "learning_figure",
    "levels_figure",
    "lift_figure",
    "popularity_figure",
    "to_svg",
    "worth_figure",
]

LIGHT_GROUND = "#ffffff"
DARK_GROUND = "#15181c"
SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c46a9b", "#a87c00", "#808080")

GROUP_NAMES: Mapping[PermissionGroup, str] = {
    "crm_only": "CRM only",
    "online_only": "online only",
    "both_unlinked": "both, not linked",
    "both_linked": "both, linked",
}
"""How a page calls the states of permission; in the order in which they are shown."""

SIDE_NAMES: Mapping[TargetSide, str] = {"crm": "orders", "online": "items looked at"}
"""What the persons on a side are judged by."""

_INK = "#010203"
"""Stands for currentColor, which matplotlib does not know, until the SVG text is written."""

_TIER_ORDER = ("fused", "crm", "online", "session", "popular", "random")
_MARKERS = ("o", "s", "^", "D", "v", "X")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_HATCHES = ("", "///", "|||", "\\\\\\", "xx", "---")

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "grid.alpha": 0.25,
    "grid.color": _INK,
    "hatch.color": _INK,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "consentier",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def lift_figure(tiers: Sequence[TierFigures], contrasts: Sequence[Contrast], metric: str) -> Figure:
    """Score of each tier, and paired difference of each contrast row, with their intervals.

    Parameters
    ----------
    tiers
        Tiers that have ``metric``, top row first; others are left out.
    contrasts
        Their rows on ``metric`` are drawn; the right half stays away where there are none.
    metric
        Such as ``"ndcg@10"``.
    """
    scored = [row for row in tiers if metric in row["metrics"]]
    differences = [
        (number, row)
        for number, contrast in enumerate(contrasts)
        for row in contrast["rows"]
        if row["metric"] == metric
    ]
    return _scores_and_differences(
        [(tier["tier"], tier["tier"], tier["metrics"][metric]) for tier in scored],
        [(f"{row['better']} − {row['baseline']}", number, row["difference"]) for number, row in differences],
        contrasts,
        metric,
    )


def worth_figure(designs: Sequence[Contrast], names: Mapping[str, str], metric: str) -> Figure:
    """Score at each level of permission in the first design, and what permissions add in each of them.

    Parameters
    ----------
    designs
        Comparisons that have ``metric``.
    names
        What to call each tier: the level that it answers for.
    metric
        Such as ``"ndcg@10"``.
    """
    rows = [row for row in designs[0]["rows"] if row["metric"] == metric]
    found = {
        (row["better"], row["baseline"], number): row["difference"]
        for number, design in enumerate(designs)
        for row in design["rows"]
        if row["metric"] == metric
    }
    # The same addition in all designs beside each other: that is what is compared.
    differences = [
        (
            f"{names[row['baseline']]} → {names[row['better']]}" if number == 0 else "",
            number,
            found[row["better"], row["baseline"], number],
        )
        for row in rows
        for number in range(len(designs))
    ]
    scores = [(names[tier["tier"]], tier["tier"], tier["metrics"][metric]) for tier in designs[0]["tiers"]]
    return _scores_and_differences(scores, differences, designs, metric)


def _scores_and_differences(
    scores: Sequence[tuple[str, str, IntervalFigures]],
    differences: Sequence[tuple[str, int, IntervalFigures]],
    contrasts: Sequence[Contrast],
    metric: str,
) -> Figure:
    """Scores by label and tier on the left, differences by label and number of the contrast on the right."""
    with mpl.rc_context(_STYLE):
        height = 1.4 + 0.36 * max(len(scores), len(differences) + len(contrasts), 3)
        figure = Figure(figsize=(9.2, height), layout="constrained")
        axes = figure.subplots(1, 2 if differences else 1, squeeze=False)[0]
        for place, (_, tier, interval) in enumerate(scores):
            _interval(axes[0], place, interval, *_look(tier))
        _rows(axes[0], [label for label, _, _ in scores])
        axes[0].set_xlim(left=0.0)
        axes[0].set_xlabel(metric)
        if differences:
            for place, (_, number, interval) in enumerate(differences):
                colour, marker = SERIES_COLOURS[number % 6], _MARKERS[number % 6]
                _interval(axes[1], place, interval, colour, marker)
            _rows(axes[1], [label for label, _, _ in differences])
            axes[1].axvline(0.0, color=_INK, linewidth=1.0)
            axes[1].set_xlabel(f"difference in {metric}, same requests")
            _legend_of_contrasts(figure, contrasts)
    return figure


def levels_figure(panels: Mapping[str, Sequence[LevelCounts]], names: Mapping[str, str]) -> Figure | None:
    """How many stood at each level of permission over time, a panel for each kind of subject.

    Parameters
    ----------
    panels
        Counts in order of time, by the panel's title. A withheld count leaves a gap.
    names
        What to call each level; its place there decides colour and marker.

    Returns
    -------
    Figure or None
        None where no count may be shown.
    """
    shown = {
        title: rows
        for title, rows in panels.items()
        if any(count is not None for row in rows for count in row["levels"].values())
    }
    if not shown:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        drawn = figure.subplots(1, len(shown), squeeze=False)[0]
        handles: dict[str, Line2D] = {}
        for axes, (title, rows) in zip(drawn, shown.items(), strict=True):
            instants = [dt.datetime.fromisoformat(row["at"]) for row in rows]
            for number, (level, name) in enumerate(names.items()):
                counts = [row["levels"].get(level) for row in rows]
                if any(count is not None for count in counts):
                    (handles[name],) = axes.plot(
                        instants,
                        [float("nan") if count is None else count for count in counts],
                        color=SERIES_COLOURS[number % 6],
                        marker=_MARKERS[number % 6],
                        markersize=4.0,
                        linestyle=_LINES[number % 6],
                        label=name,
                    )
            axes.set_title(title, loc="left", fontsize=10.0)
            axes.set_ylim(bottom=0)
            locator = AutoDateLocator(maxticks=6)  # type: ignore[no-untyped-call]
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.grid(axis="y")
        ordered = [handles[name] for name in names.values() if name in handles]
        figure.legend(handles=ordered, loc="outside upper center", ncols=len(ordered))
    return figure


def history_figure(rows: Sequence[HistoryRow], metric: str) -> Figure | None:
    """Score of each tier by the length of the customer's history, with intervals.

    Groups of fewer than ``MINIMUM_GROUP`` customers are left out.

    Returns
    -------
    Figure or None
        None where no group is large enough.
    """
    classes = [(row["bucket"], row) for row in rows]
    return _by_class(classes, HISTORY_BUCKETS, "items in the customer's permitted history", metric)


def popularity_figure(rows: Sequence[PopularityRow], metric: str) -> Figure | None:
    """Score of each tier for the targets of each band of popularity, with intervals.

    Bands with fewer than ``MINIMUM_GROUP`` customers are left out.

    Returns
    -------
    Figure or None
        None where no band has enough customers.
    """
    classes = [(row["band"], row) for row in rows]
    return _by_class(classes, POPULARITY_BANDS, "popularity of the wanted item in training", metric)


def _by_class(
    rows: Sequence[tuple[str, HistoryRow | PopularityRow]], classes: Sequence[str], label: str, metric: str
) -> Figure | None:
    """A line for each tier over ordered classes, from rows with their class; None without any large one."""
    points: dict[str, dict[str, IntervalFigures]] = {}
    for name, row in rows:
        if row["customers"] >= MINIMUM_GROUP and metric in row["metrics"]:
            points.setdefault(row["tier"], {})[name] = row["metrics"][metric]
    if not points:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 4.0), layout="constrained")
        axes = figure.subplots()
        for number, (tier, scores) in enumerate(points.items()):
            # Side by side, so that the intervals of one class do not hide each other.
            shift = 0.09 * (number - (len(points) - 1) / 2)
            places = [place for place, name in enumerate(classes) if name in scores]
            found = [scores[classes[place]] for place in places]
            colour, marker = _look(tier)
            axes.errorbar(
                [place + shift for place in places],
                [point["mean"] for point in found],
                yerr=_arms(found),
                color=colour,
                marker=marker,
                linestyle=_LINES[_rank(tier)],
                capsize=2.0,
                label=tier,
            )
        axes.set_xticks(range(len(classes)), classes)
        axes.set_xlim(-0.5, len(classes) - 0.5)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel(label)
        axes.set_ylabel(metric)
        axes.grid(axis="y")
        figure.legend(loc="outside upper center", ncols=min(len(points), 6))
    return figure


def group_figure(rows: Sequence[GroupRow], metric: str) -> Figure | None:
    """Score of each tier for each state of permission that it may answer, with intervals; a half per side.

    Groups of fewer than ``MINIMUM_GROUP`` customers are left out.

    Returns
    -------
    Figure or None
        None where no group is large enough.
    """
    shown = [row for row in rows if row["customers"] >= MINIMUM_GROUP and metric in row["metrics"]]
    sides = [side for side in SIDE_NAMES if any(row["side"] == side for row in shown)]
    if not sides:
        return None
    groups = list(GROUP_NAMES)
    halves = [
        # One tier's groups beside each other: that is what the figure is for.
        sorted(
            (row for row in shown if row["side"] == side),
            key=lambda row: (_rank(row["tier"]), groups.index(row["group"])),
        )
        for side in sides
    ]
    with mpl.rc_context(_STYLE):
        height = 1.2 + 0.32 * max(len(half) for half in halves)
        figure = Figure(figsize=(9.2, height), layout="constrained")
        drawn = figure.subplots(1, len(sides), squeeze=False)[0]
        for axes, side, half in zip(drawn, sides, halves, strict=True):
            for place, row in enumerate(half):
                _interval(axes, place, row["metrics"][metric], *_look(row["tier"]))
            _rows(axes, [f"{row['tier']}: {GROUP_NAMES[row['group']]}" for row in half])
            for place in range(1, len(half)):
                if half[place]["tier"] != half[place - 1]["tier"]:
                    axes.axhline(place - 0.5, color=_INK, alpha=0.25, linewidth=0.8)
            axes.set_xlim(left=0.0)
            axes.set_xlabel(f"{metric}, by {SIDE_NAMES[side]}")
    return figure


def funnel_figure(rows: Sequence[FunnelRow]) -> Figure | None:
    """Share of the rows that the consent gate kept, and that each reason excluded, per tier and source.

    Returns
    -------
    Figure or None
        None where no row came in anywhere.
    """
    shown = [row for row in rows if row["rows_in"] > 0]
    if not shown:
        return None
    reasons = list(dict.fromkeys(reason for row in shown for reason in row["excluded"]))
    with mpl.rc_context(_STYLE):
        height = 1.5 + 0.42 * len(shown) + 0.22 * (len(reasons) // 4)
        figure = Figure(figsize=(9.2, height), layout="constrained")
        axes = figure.subplots()
        handles = []
        reached = [0.0] * len(shown)
        for number, part in enumerate(["kept", *reasons]):
            counts = [row["rows_kept"] if number == 0 else row["excluded"].get(part, 0) for row in shown]
            shares = [count / row["rows_in"] for count, row in zip(counts, shown, strict=True)]
            # One colour for what is kept; the reasons take the others, then the others with hatching.
            colour = SERIES_COLOURS[0 if number == 0 else 1 + (number - 1) % 5]
            hatch = "" if number == 0 else _HATCHES[(number - 1) % 6]
            axes.barh(range(len(shown)), shares, left=reached, color=colour, hatch=hatch, edgecolor=_INK,
                      linewidth=0.6, height=0.62)  # fmt: skip
            handles.append(Patch(facecolor=colour, hatch=hatch, edgecolor=_INK, label=part))
            reached = [start + share for start, share in zip(reached, shares, strict=True)]
        for place, row in enumerate(shown):
            axes.text(1.01, place, f"{row['rows_kept']:,} of {row['rows_in']:,} kept", va="center")
        _rows(axes, [f"{row['tier']} from {row['source']}" for row in shown])
        axes.set_xlim(0.0, 1.28)
        axes.spines["bottom"].set_bounds(0.0, 1.0)
        axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("share of the rows that came in")
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def coverage_figure(tiers: Sequence[TierFigures], metric: str) -> Figure | None:
    """Accuracy of each tier (with its interval) against the share of the catalogue it recommends.

    Returns
    -------
    Figure or None
        None where no tier has both.
    """
    shown = [tier for tier in tiers if metric in tier["metrics"] and tier["coverage"] is not None]
    if not shown:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        axes = figure.subplots()
        for tier in shown:
            point, colour_and_marker = tier["metrics"][metric], _look(tier["tier"])
            axes.errorbar(
                [tier["coverage"] or 0.0],
                [point["mean"]],
                yerr=_arms([point]),
                color=colour_and_marker[0],
                marker=colour_and_marker[1],
                markersize=8.0,
                linestyle="none",
                capsize=2.0,
                label=tier["tier"],
            )
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(bottom=0.0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("share of the catalogue that stands in at least one list")
        axes.set_ylabel(metric)
        axes.grid()
        figure.legend(loc="outside upper center", ncols=min(len(shown), 6))
    return figure


def difference_figure(
    scores: Mapping[str, IntervalFigures], differences: Mapping[str, IntervalFigures], metric: str
) -> Figure:
    """Scores of one tier's model and its baselines, and the paired lift of the model over each of them.

    Parameters
    ----------
    scores
        By what was scored, top row first.
    differences
        By baseline: the model less that.
    metric
        Such as ``"ndcg@10"``.
    """
    with mpl.rc_context(_STYLE):
        height = 1.2 + 0.36 * max(len(scores), len(differences), 3)
        figure = Figure(figsize=(9.2, height), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, found in ((left, scores), (right, differences)):
            for place, interval in enumerate(found.values()):
                _interval(axes, place, interval, SERIES_COLOURS[place % 6], _MARKERS[place % 6])
            _rows(axes, list(found))
        left.set_xlim(left=0.0)
        left.set_xlabel(metric)
        right.axvline(0.0, color=_INK, linewidth=1.0)
        right.set_xlabel(f"difference in {metric}, same requests")
    return figure


def learning_figure(points: Sequence[tuple[float, IntervalFigures]], baseline: float, metric: str) -> Figure:
    """Score of models against the share of the persons that each was fitted on, with intervals.

    A curve that still rises on the right says that more consenting persons would help.

    Parameters
    ----------
    points
        Share (0 to 1) and score, ascending.
    baseline
        Score of the popular list, drawn as a line.
    metric
        Such as ``"ndcg@10"``.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        axes = figure.subplots()
        found = [score for _, score in points]
        axes.errorbar(
            [share for share, _ in points],
            [score["mean"] for score in found],
            yerr=_arms(found),
            color=SERIES_COLOURS[0],
            marker=_MARKERS[0],
            capsize=3.0,
            label="model",
        )
        axes.axhline(baseline, color=SERIES_COLOURS[1], linestyle=_LINES[1], label="popular")
        axes.set_xlim(0.0, 1.05)
        axes.set_ylim(bottom=0.0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("share of the training persons")
        axes.set_ylabel(metric)
        axes.grid()
        figure.legend(loc="outside upper center", ncols=2)
    return figure


def to_svg(figure: Figure, identifier: str) -> str:
    """Write a figure as an ``<svg>`` element without XML prolog, metadata or background.

    Parameters
    ----------
    figure
        One of this module's figures.
    identifier
        Prefix of every id in the element: distinct for each figure on a page.
    """
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip().replace(_INK, "currentColor")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{identifier}-", text)


def _look(tier: str) -> tuple[str, str]:
    """Colour and marker of a tier; the same in every figure."""
    return SERIES_COLOURS[_rank(tier)], _MARKERS[_rank(tier)]


def _rank(tier: str) -> int:
    """Place in the tier order; a further baseline looks like ``random``, and its label tells it apart."""
    return _TIER_ORDER.index(tier) if tier in _TIER_ORDER else len(_TIER_ORDER) - 1


def _interval(axes: Axes, place: int, figures: IntervalFigures, colour: str, marker: str) -> None:
    axes.errorbar(
        [figures["mean"]], [place], xerr=_arms([figures]), color=colour, marker=marker, markersize=7.0,
        elinewidth=2.0, capsize=3.0, linestyle="none",
    )  # fmt: skip


def _arms(figures: Sequence[IntervalFigures]) -> list[list[float]]:
    """Lengths below and above the mean, which rounding may put just outside a narrow interval."""
    return [
        [max(each["mean"] - each["low"], 0.0) for each in figures],
        [max(each["high"] - each["mean"], 0.0) for each in figures],
    ]


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    """Name the rows of a horizontal plot, first on top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _legend_of_contrasts(figure: Figure, contrasts: Sequence[Contrast]) -> None:
    handles = [
        Line2D(
            [], [], color=SERIES_COLOURS[number % 6], marker=_MARKERS[number % 6], linestyle="none",
            label=contrast["name"],
        )
        for number, contrast in enumerate(contrasts)
        if contrast["rows"]
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=1)
