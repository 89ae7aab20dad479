"""The page "What is consent worth?": what each permission adds, for whom, and how many stand where."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from consentier.consent.records import SubjectKind
from consentier.training.consent_levels import LevelCounts, ReachRow
from consentier.training.consent_worth import LEVEL_TIERS, Bounds, Coverage, Worth
from consentier.training.evaluation_result import Contrast, ContrastRow
from consentier.training.pages import (
    NOTHING,
    figure_of,
    interval_text,
    p_value,
    page,
    section,
    share,
    table,
)
from consentier.training.plots import levels_figure, worth_figure

__all__ = ["LEVEL_NAMES", "finding", "render_worth", "share_text"]

LEVEL_NAMES: Mapping[str, str] = {
    "none": "nothing",
    "online": "online",
    "crm": "CRM",
    "both": "both",
}
"""What a page calls the levels: by what is permitted."""

_TIER_NAMES = {str(tier): LEVEL_NAMES[level] for level, tier in LEVEL_TIERS.items()}

_PANELS: Mapping[SubjectKind, str] = {
    "customer": "customers (accounts)",
    "visitor": "visitors (browsers and devices)",
}
_WITHHELD = "withheld"


def render_worth(worth: Worth) -> str:
    """The report as one HTML page, with its style and figures inline."""
    title = f"What is consent worth? {worth['data']['name']}"
    return page(
        title,
        [
            _summary(worth),
            _additions(worth),
            _estimand(worth),
            _coverage(worth["coverage"], worth["minimum_group"]),
            _levels(worth),
            _reach(worth),
            _bounds(worth["bounds"], worth["metric"]),
            _withheld(worth["minimum_group"]),
        ],
    )


def finding(row: ContrastRow) -> str:
    """One sentence about what a permission adds."""
    less, more = _TIER_NAMES[row["baseline"]], _TIER_NAMES[row["better"]]
    difference = row["difference"]
    relative = "" if row["relative"] is None else f" ({row['relative']:+.0%})"
    if difference["low"] > 0:
        says = f"adds{relative}"
    elif difference["high"] < 0:
        says = f"costs{relative}"
    else:
        says = "shows no difference"
    return f"From {less} to {more}: {says}. {interval_text(difference, sign='+')} {row['metric']}."


def share_text(value: Mapping[str, Any]) -> str:
    """A share as it may be published: exactly, as a bound, or withheld."""
    bound = {"exactly": "", "above": "over ", "below": "under "}
    return _WITHHELD if value["says"] == "nothing" else f"{bound[value['says']]}{value['value']:.1%}"


def _summary(worth: Worth) -> str:
    data = worth["data"]
    customers = "too few" if worth["customers"] is None else f"{worth['customers']:,}"
    facts = {
        "Asked": f"{customers} customers with both permissions and a lawful link",
        "When": f"once each, at {_moment(data['cutoff'])}",
        "Judged by": f"what they ordered within {data['horizon_days']:g} days",
        "Score": f"{worth['metric']}: 1 if the list holds all that was ordered, in front; 0 if none of it",
    }
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    rows = _rows_of(worth["designs"][0], worth["metric"]) if worth["designs"] else []
    findings = "".join(f"<li>{escape(finding(row))}</li>" for row in rows)
    words = _in_words(worth["designs"][0], worth["metric"].partition("@")[2]) if worth["designs"] else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in worth["notes"])
    return (
        f"<dl>{pairs}</dl>{words}"
        + (f'<ul class="verdict">{findings}</ul>' if findings else "")
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _moment(text: str) -> str:
    return f"{dt.datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"


def _in_words(design: Contrast, cutoff: str) -> str:
    """The scores as a share of customers, which needs no explanation."""
    hits = {
        _TIER_NAMES[tier["tier"]]: tier["metrics"][f"hit_rate@{cutoff}"]["mean"] for tier in design["tiers"]
    }
    first, *others = (f"{mean:.0%} if {name} is permitted" for name, mean in hits.items())
    return (
        f"<p>In a list of {cutoff} items, the share of these customers who find something that they go on to "
        f"order is {first}, {', '.join(others)}.</p>"
    )


def _rows_of(design: Contrast, metric: str) -> list[ContrastRow]:
    return [row for row in design["rows"] if row["metric"] == metric]


def _additions(worth: Worth) -> str:
    if not worth["designs"]:
        return ""
    metric = worth["metric"]
    cutoff = metric.partition("@")[2]
    hits = f"hit_rate@{cutoff}"
    scores = [
        [
            _TIER_NAMES[tier["tier"]],
            tier["tier"],
            interval_text(tier["metrics"][metric]),
            interval_text(tier["metrics"][hits]),
        ]
        for tier in worth["designs"][0]["tiers"]
    ]
    return section(
        "adds",
        "What each permission adds",
        "<p>The same customers are asked four times: as if they permitted nothing (the running visit is all "
        "there is), online usage only, CRM data only, or both.</p>",
        figure_of(
            worth_figure(worth["designs"], _TIER_NAMES, metric),
            "worth",
            f"{metric} by what is permitted, and what each step adds, with 95 % intervals",
            "On the left, further right is better. On the right, a bar right of the line at 0 shows that the "
            "step adds something; one that crosses it shows no difference.",
        ),
        table(
            "Scores by what is permitted, each level by its own model; hit rate: customers with at least one "
            f"ordered item among the {cutoff}",
            ["permitted", "tier", metric, hits],
            scores,
        ),
        *(_design(design, metric) for design in worth["designs"]),
        "<p>Intervals are 95 % bootstrap intervals over customers, of paired differences. p-values are of "
        "the paired randomisation test, corrected after Holm for all differences in both designs and all "
        "metrics of the JSON file.</p>",
    )


def _design(design: Contrast, metric: str) -> str:
    rows = [
        [
            f"{_TIER_NAMES[row['baseline']]} → {_TIER_NAMES[row['better']]}",
            interval_text(row["difference"], sign="+"),
            NOTHING if row["relative"] is None else f"{row['relative']:+.1%}",
            p_value(row["p_holm"]),
        ]
        for row in _rows_of(design, metric)
    ]
    header = ["from → to", f"difference in {metric}", "relative", "p after Holm"]
    return f"<p>{escape(design['explanation'])}</p>" + table(f"What is added: {design['name']}", header, rows)


def _estimand(worth: Worth) -> str:
    days = worth["data"]["horizon_days"]
    return section(
        "estimand",
        "Of whom this is true",
        "<p><strong>The estimand:</strong> for customers with <em>both</em> permissions and a lawful link, "
        f"who had visited before and who ordered within {days:g} days: how well a list covers what they "
        "ordered, if the same customer is asked as each level of permission in turn. All items are ranked. "
        "Everybody here still permitted it at the end of the test period.</p>",
        "<p><strong>Not identified:</strong> what other customers would gain by consenting. Who consents "
        "differs from who does not, and of those who do not nothing may be read. Neither is it known what a "
        "recommendation <em>causes</em>: orders were made under what the shop showed then. Only an "
        "experiment tells that. Do not multiply these figures by the number of customers without consent."
        "</p>",
    )


def _coverage(rows: Sequence[Coverage], minimum_group: int) -> str:
    if not rows:
        return ""
    body = [
        [
            LEVEL_NAMES[row["level"]],
            share_text(row["own_tier"]),
            share(row["own_places"]),
            share(row["catalogue"]),
        ]
        for row in rows
    ]
    return section(
        "coverage",
        "Who gets an answer of their own, and of how many items",
        "<p>At “nothing” the running visit is answered; at the other levels the customer's permitted "
        "history. Where a tier has nothing to say, another stands in, and the popular list fills up.</p>",
        table(
            "Coverage by what is permitted, on the test customers",
            ["permitted", "customers answered by the level's tier", "places it filled", "items shown"],
            body,
        ),
        f"<p>“Over” stands where those left over are fewer than {minimum_group}.</p>",
    )


def _levels(worth: Worth) -> str:
    panels = {_PANELS[kind]: rows for kind, rows in worth["levels"].items()}
    distance = {"week": "a week", "month": "30 days"}[worth["every"]]
    return section(
        "levels",
        "How many stand at each level",
        f"<p>Counts out of the ledger, {distance} apart: who held which permission at that very instant, as "
        "it is known now. Who objected, or is a minor without parental consent, permits nothing. Known are "
        "those with at least one record by then. A customer without a lawful link "
        "counts by the CRM permission alone, a visitor by the online permission alone: whether they are the "
        "same person may not be looked up.</p>",
        figure_of(
            levels_figure(panels, LEVEL_NAMES),
            "levels-figure",
            "Customers and visitors by what they permit, over time",
            "Gaps are counts that are withheld because a group is too small.",
        ),
        *(_level_table(title, rows) for title, rows in panels.items()),
    )


def _level_table(title: str, rows: Sequence[LevelCounts]) -> str:
    if not rows:
        return ""
    levels = list(rows[0]["levels"])
    body = [
        [row["at"][:10], _count(row["known"]), *(_count(row["levels"][level]) for level in levels)]
        for row in reversed(rows)
    ]
    header = ["at", "known", *(LEVEL_NAMES[level] for level in levels)]
    return table(f"Levels of {title}, the latest first", header, body)


def _count(value: int | None) -> str:
    return _WITHHELD if value is None else f"{value:,}"


def _reach(worth: Worth) -> str:
    cells = {(row["level"], row["channel"]): row for row in worth["reach"]}
    channels = list(dict.fromkeys(row["channel"] for row in worth["reach"]))
    body = [
        [
            LEVEL_NAMES[level],
            _count(count),
            *(share_text(_cell(cells[level, channel])) for channel in channels),
        ]
        for level, count in worth["now"]["levels"].items()
    ]
    header = ["permitted", "customers", *(channel.replace("_", " ") for channel in channels)]
    return section(
        "reach",
        "Who may be contacted",
        "<p>Contact permission is a third question: it decides whether somebody may be written to, never "
        f"what is read. Shares of the customers of each level at {_moment(worth['now']['at'])}.</p>",
        table("Customers whom a channel may contact, by what they permit to be read", header, body),
    )


def _cell(row: ReachRow) -> Mapping[str, Any]:
    return {"value": row["value"], "says": row["says"]}


def _bounds(rows: Sequence[Bounds], metric: str) -> str:
    shown = [row for row in rows if row["metric"] == metric]
    if not shown:
        return ""
    body = [
        [
            f"{_TIER_NAMES[row['baseline']]} → {_TIER_NAMES[row['better']]}",
            interval_text(row["asked"], sign="+"),
            f"{row['low']:+.4f} to {row['high']:+.4f}",
        ]
        for row in shown
    ]
    return section(
        "bounds",
        "If others consented: bounds, not estimates",
        "<p>These are worst-case bounds (Manski 1990). About the customers without both permissions they "
        "suppose nothing but that a score lies between 0 and 1, and that all of them would have ordered: "
        f"those asked would then be {shown[0]['least_share']:.0%} of all. Whatever the others are like, the "
        "average over everybody lies between the bounds, but for the chance that the intervals leave. That "
        "they are wide is the finding: data of those who consented cannot say more.</p>",
        "<details><summary>Show the bounds</summary>",
        table(
            f"Difference in {metric} with the models of today",
            ["from → to", "of those asked", "over everybody: worst to best case"],
            body,
        ),
        "</details>",
    )


def _withheld(minimum_group: int) -> str:
    return section(
        "withheld",
        "What is withheld",
        f"<p>No group of fewer than {minimum_group} persons is shown, and none of nobody. Where one count of "
        "a row is withheld, others are too, until nobody can subtract it from the total. Shares are given as "
        f"“over” or “under” where the rest would count out fewer than {minimum_group}. Two dates compared "
        "show how a large group changed, which can be by one person. This limits what is told about few; it "
        "proves no anonymity.</p>",
    )
