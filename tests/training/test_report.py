from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from consentier.training import plots, report
from consentier.training.evaluation_result import HISTORY_BUCKETS, check_evaluation

BASE = {"random": 0.002, "popular": 0.031, "session": 0.062, "online": 0.081, "crm": 0.093, "fused": 0.127}
VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = '<script>alert("1")</script> & $x_1$ | 100 %'


def interval(mean: float, half: float = 0.006) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def tiers() -> list[dict[str, Any]]:
    return [
        {
            "tier": tier,
            "metrics": {f"{name}@{k}": interval(score) for k in (10, 20) for name in ("ndcg", "recall")},
            "coverage": 0.5,
            "novelty": 9.5,
            "diversity": None,
            "popularity_bias": 4.0,
        }
        for tier, score in BASE.items()
    ]


@pytest.fixture
def evaluation() -> dict[str, Any]:
    lift = BASE["fused"] - BASE["online"]
    row = {"better": "fused", "baseline": "online", "metric": "ndcg@10", "difference": interval(lift)}
    flat = {"better": "crm", "baseline": "online", "metric": "ndcg@10", "difference": interval(0.001)}
    row |= {"p_value": 0.0001, "p_holm": 0.0002}
    flat |= {"p_value": 0.41, "p_holm": 0.82}
    return {
        "version": 2,
        "data": {"name": "simulated shop", "cutoff": "2025-06-01T00:00:00Z", "horizon_days": 14},
        "population": "permissions",
        "cutoffs": [10, 20],
        "customers": 1162,
        "requests": 1874,
        "tiers": tiers(),
        "models": [
            {
                "tier": tier,
                "algorithm": algorithm,
                "source_weights": sources,
                "event_weights": {"view": 1.0, "cart": 2.5} if sources else {},
                "recency_half_life": half_life,
                "attribute_weight": 0.5 if tier == "crm" else 0.0,
                "parameters": [f"Method of {tier}.", "Of each source, the latest 200 events count."],
            }
            for tier, algorithm, sources, half_life in (
                ("crm", "local_ridge", {"crm": 1.0}, 30.0),
                ("fused", "local_ridge", {"session": 5.0, "online": 1.0, "crm": 4.0}, None),
                ("popular", "popularity", {}, None),
            )
        ],
        "randomisations": 10_000,
        "fusion": [
            {
                "metric": "ndcg@10",
                "best_other": "crm",
                "difference": interval(0.034),
                "beats": True,
                "text": "In lists of 10, fused beats crm.",
            },
            {
                "metric": "ndcg@20",
                "best_other": "crm",
                "difference": interval(0.001),
                "beats": False,
                "text": "In lists of 20, fused does not beat crm. Serve level 3 by crm.",
            },
        ],
        "contrasts": [
            {
                "name": "one cohort, inputs restricted",
                "explanation": "Only the inputs differ.",
                "rows": [row | {"relative": lift / BASE["online"]}, flat | {"relative": None}],
                "tiers": tiers(),
            }
        ],
        "by_history_length": [
            {"tier": tier, "bucket": bucket, "customers": size, "metrics": {"ndcg@10": interval(score)}}
            for tier, score in (("online", 0.0811), ("fused", 0.1271))
            for bucket, size in zip(HISTORY_BUCKETS, (150, 90, 40, 20, 19, 1), strict=True)
        ],
        "by_popularity": [
            {
                "tier": tier,
                "band": band,
                "items": items,
                "targets": size + 5,
                "customers": size,
                "metrics": {"ndcg@10": interval(score)} if size >= 20 else {},
            }
            for band, items, size in (("head", 9, 140), ("middle", 31, 110), ("tail", 160, 90), ("new", 4, 7))
            for tier, score in (("popular", 0.0312), ("fused", 0.1272))
        ],
        "by_permission_group": [
            {"group": group, "side": side, "tier": tier, "customers": size, "metrics": figures}
            for group, side, size, figures in (
                ("crm_only", "crm", 211, {"ndcg@10": interval(0.0613)}),
                ("both_unlinked", "crm", 11, {}),
                ("both_linked", "crm", 1162, {"ndcg@10": interval(0.0713)}),
                ("online_only", "online", 344, {"ndcg@10": interval(0.0813)}),
            )
            for tier in ("popular", "online" if side == "online" else "crm")
        ],
        "consent_funnel": [
            {
                "tier": "fused",
                "source": "crm",
                "rows_in": 1000,
                "rows_kept": 620,
                "excluded": {"no permission then": 300, "withdrawn since": 60, "unlinked": 20},
            },
            {"tier": "online", "source": "online", "rows_in": 0, "rows_kept": 0, "excluded": {}},
        ],
        "notes": ["Seed 7."],
    }


class Page(HTMLParser):
    """Checks that elements nest, and keeps what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.started: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.started.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.started.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def elements(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.started if name == tag]


def test_the_page_is_well_formed_and_accessible(evaluation: dict[str, Any]) -> None:
    page = Page(report.render_report(evaluation))
    assert page.elements("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.started if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    figures = [attributes for attributes in page.elements("svg") if attributes.get("role") == "img"]
    assert len(figures) == len(page.elements("svg")) == len(page.elements("figcaption")) == 6
    assert all(attributes["aria-label"] for attributes in figures)
    assert len(page.elements("caption")) == len(page.elements("table")) == 11
    assert all(attributes["scope"] in ("col", "row") for attributes in page.elements("th"))
    identifiers = [attributes["id"] for _, attributes in page.started if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_references_inside_figures_lead_somewhere(evaluation: dict[str, Any]) -> None:
    text = report.render_report(evaluation)
    identifiers = set(re.findall(r'\bid="([^"]+)"', text))
    references = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    assert references
    assert references <= identifiers


def test_the_page_needs_no_network_and_runs_no_script(evaluation: dict[str, Any]) -> None:
    page = Page(report.render_report(evaluation))
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.started}
    for _, attributes in page.started:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if not name.startswith("xmlns"):
                assert "//" not in (value or "")


def test_the_page_says_what_is_compared_and_what_was_found(evaluation: dict[str, Any]) -> None:
    text = " ".join(Page(report.render_report(evaluation)).text)
    for words in (
        "same requests",
        "level-3 customers",
        "ordered within the next 14 days",
        "cannot be observed",
        "fused is better than online: +0.0460 [+0.0400, +0.0520] ndcg@10, +56.8% of online",
        "no difference between crm and online is shown",
        "1,162",
        "620 of 1,000 kept",
    ):
        assert words in text


def rows_of(text: str, caption: str) -> list[list[str]]:
    """The cells of one table of the page, row by row."""
    (table,) = re.findall(rf"<caption>{re.escape(caption)}</caption>(.*?)</table>", text, re.DOTALL)
    return [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    ]


def test_the_page_says_whether_joining_pays_before_all_tables(evaluation: dict[str, Any]) -> None:
    text = report.render_report(evaluation)
    for verdict in evaluation["fusion"]:
        assert 0 < text.index(verdict["text"]) < text.index("<table")
    assert "&#x27;consentier promote&#x27; has a rule of its own" in text


def test_differences_are_shown_with_both_p_values(evaluation: dict[str, Any]) -> None:
    text = report.render_report(evaluation)
    table = rows_of(text, "Paired differences: one cohort, inputs restricted")
    assert table[0][-2:] == ["p", "p after Holm"]
    assert [row[-2:] for row in table[1:]] == [["0.0001", "0.0002"], ["0.4100", "0.8200"]]
    assert "p = 0.0002 after Holm" in text
    assert "10,000 random assignments" in text


def test_one_tier_stands_below_itself_for_each_state_of_permission(evaluation: dict[str, Any]) -> None:
    text = report.render_report(evaluation)
    assert rows_of(text, "ndcg@10 by state of permission, judged by orders") == [
        ["permissions", "customers", "popular", "crm"],
        ["CRM only", "211", "0.0613 [0.0553, 0.0673]", "0.0613 [0.0553, 0.0673]"],
        ["both, not linked", "too few to show", "–", "–"],
        ["both, linked", "1,162", "0.0713 [0.0653, 0.0773]", "0.0713 [0.0653, 0.0773]"],
    ]
    other = rows_of(text, "ndcg@10 by state of permission, judged by items looked at")
    assert [row[:2] for row in other] == [["permissions", "customers"], ["online only", "344"]]


def test_bands_of_popularity_stand_side_by_side(evaluation: dict[str, Any]) -> None:
    table = rows_of(report.render_report(evaluation), "ndcg@10 by popularity of the wanted item")
    assert table[0] == [
        "tier",
        "head (9 items, 140 customers)",
        "middle (31 items, 110 customers)",
        "tail (160 items, 90 customers)",
        "new (4 items)",
    ]
    assert table[2] == ["fused", *["0.1272 [0.1212, 0.1332]"] * 3, "too few to show"]


def test_the_weights_of_each_tier_are_listed(evaluation: dict[str, Any]) -> None:
    text = report.render_report(evaluation)
    assert rows_of(text, "Weights of each tier")[1:] == [
        ["crm", "local_ridge", "crm 1", "cart 2.5, view 1", "30 days", "0.5"],
        ["fused", "local_ridge", "crm 4, online 1, session 5", "cart 2.5, view 1", "–", "–"],
        ["popular", "popularity", "–", "–", "–", "–"],
    ]
    assert "Method of fused." in text


def test_a_tier_that_loses_is_called_worse(evaluation: dict[str, Any]) -> None:
    evaluation["contrasts"][0]["rows"][0]["difference"] = interval(-0.02)
    assert "fused is worse than online: -0.0200 [-0.0260, -0.0140]" in report.render_report(evaluation)


def drawn_points(figure: Figure) -> list[int]:
    bars = [each for each in figure.axes[0].containers if isinstance(each, ErrorbarContainer)]
    return [len(np.asarray(each.lines[0].get_xdata())) for each in bars]


def test_small_groups_are_not_shown(evaluation: dict[str, Any]) -> None:
    for row in evaluation["by_history_length"]:
        if row["customers"] < 20:
            row["metrics"] = {"ndcg@10": interval(0.7654)}
    text = report.render_report(evaluation)
    assert "0.7654" not in text
    for row in evaluation["by_popularity"]:
        row["metrics"] = row["metrics"] or {"ndcg@10": interval(0.7654)}
    for row in evaluation["by_permission_group"]:
        row["metrics"] = row["metrics"] or {"ndcg@10": interval(0.7654)}
    assert "0.7654" not in report.render_report(evaluation)
    # Two tiers in two lengths of history, in the new items of two tables, and one state of permission.
    assert text.count("too few to show") == 2 * 2 + 2 * 2 + 1
    assert "19 customers" not in text
    assert "20 customers" in text

    figure = plots.history_figure(evaluation["by_history_length"], "ndcg@10")
    assert figure is not None
    assert drawn_points(figure) == [4, 4]
    bands = plots.popularity_figure(evaluation["by_popularity"], "ndcg@10")
    assert bands is not None
    assert drawn_points(bands) == [3, 3]
    groups = plots.group_figure(evaluation["by_permission_group"], "ndcg@10")
    assert groups is not None
    assert [[label.get_text() for label in axes.get_yticklabels()] for axes in groups.axes] == [
        ["crm: CRM only", "crm: both, linked", "popular: CRM only", "popular: both, linked"],
        ["online: online only", "popular: online only"],
    ]
    assert plots.group_figure([], "ndcg@10") is None
    assert plots.popularity_figure(evaluation["by_popularity"][-2:], "ndcg@10") is None
    small = [row for row in evaluation["by_history_length"] if row["customers"] < 20]
    assert plots.history_figure(small, "ndcg@10") is None


def test_hostile_texts_stay_texts(evaluation: dict[str, Any]) -> None:
    evaluation["data"]["name"] = evaluation["notes"][0] = HOSTILE
    for tier in evaluation["tiers"]:
        tier["tier"] += HOSTILE
    evaluation["contrasts"][0]["name"] = evaluation["contrasts"][0]["explanation"] = HOSTILE
    evaluation["contrasts"][0]["rows"][0]["better"] = HOSTILE
    evaluation["by_history_length"][0]["tier"] = HOSTILE
    evaluation["consent_funnel"][0]["excluded"] = {HOSTILE: 380}
    page = Page(report.render_report(evaluation))
    assert not page.elements("script")
    assert HOSTILE in page.text
    assert any(HOSTILE in text for text in report.print_rows(evaluation)[0].values())
    table = report.markdown_table(evaluation)
    assert "<script" not in table
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_same_evaluation_gives_the_same_bytes(evaluation: dict[str, Any]) -> None:
    first = report.render_report(evaluation)
    assert report.render_report(json.loads(json.dumps(evaluation))) == first
    assert "<dc:date>" not in first


def test_an_evaluation_without_optional_parts_is_reported(evaluation: dict[str, Any]) -> None:
    parts = ("contrasts", "models", "fusion", "by_history_length", "by_popularity", "by_permission_group")
    for part in (*parts, "consent_funnel", "notes"):
        evaluation[part] = []
    for tier in evaluation["tiers"]:
        tier["coverage"] = None
    evaluation["tiers"][0]["exposure_gini"] = 0.25
    page = Page(report.render_report(evaluation))
    assert len(page.elements("figure")) == 1
    assert "0.250" in page.text


def test_a_report_is_written_whole_or_not_at_all(
    evaluation: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    report.write_report(path, evaluation)
    written = path.read_bytes()
    assert written == report.render_report(evaluation).encode("utf-8")

    with pytest.raises(ValueError, match=r"evaluation\.tiers is missing"):
        report.write_report(path, {key: value for key, value in evaluation.items() if key != "tiers"})

    def full(_descriptor: int) -> None:
        raise OSError("no space left on device")

    evaluation["notes"] = ["another"]
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        report.write_report(path, evaluation)
    assert path.read_bytes() == written
    assert list(tmp_path.iterdir()) == [path]


def test_rows_and_markdown_hold_the_headline_figures(evaluation: dict[str, Any]) -> None:
    rows = report.print_rows(evaluation)
    assert [row["tier"] for row in rows] == list(BASE)
    assert rows[-1] == {
        "tier": "fused",
        "ndcg@10": "0.1270 [0.1210, 0.1330]",
        "recall@10": "0.1270 [0.1210, 0.1330]",
        "coverage": "50.0%",
    }
    lines = report.markdown_table(evaluation).splitlines()
    assert lines[0] == "| tier | ndcg@10 | recall@10 | coverage |"
    assert lines[-1] == "| fused | 0.1270 [0.1210, 0.1330] | 0.1270 [0.1210, 0.1330] | 50.0% |"
    assert len(lines) == 2 + len(BASE)


def test_each_consent_bar_adds_up_to_the_rows_that_came_in(evaluation: dict[str, Any]) -> None:
    figure = plots.funnel_figure(evaluation["consent_funnel"])
    assert figure is not None
    widths = [bars[0].get_width() for bars in figure.axes[0].containers]
    assert widths == pytest.approx([0.62, 0.30, 0.06, 0.02])
    assert plots.funnel_figure(evaluation["consent_funnel"][1:]) is None


def test_parts_of_the_consent_bars_differ_from_each_other() -> None:
    excluded = {f"reason {number}": 1 for number in range(20)}
    row = {"tier": "crm", "source": "crm", "rows_in": 30, "rows_kept": 10, "excluded": excluded}
    figure = plots.funnel_figure([row])  # type: ignore[list-item]
    assert figure is not None
    looks = [(bars[0].get_facecolor(), bars[0].get_hatch()) for bars in figure.axes[0].containers]
    assert len(set(looks)) == 21


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("ground", [plots.LIGHT_GROUND, plots.DARK_GROUND])
@pytest.mark.parametrize("colour", plots.SERIES_COLOURS)
def test_colours_stand_out_in_light_and_dark(colour: str, ground: str) -> None:
    darker, lighter = sorted([luminance(colour), luminance(ground)])
    assert (lighter + 0.05) / (darker + 0.05) >= 3.0


def change(*path: Any, to: Any) -> Any:
    def apply(evaluation: Any) -> None:
        for step in path[:-1]:
            evaluation = evaluation[step]
        evaluation[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("version", to=1), "is of version 1, and this release reads version 2"),
        (
            change("contrasts", 0, "rows", 0, "p_holm", to=0.00001),
            r"contrasts\[0\].rows\[0\]: p_value must be above 0, p_holm no smaller",
        ),
        (change("customers", to="many"), "evaluation.customers must be a whole number"),
        (change("requests", to=True), "evaluation.requests must be a whole number"),
        (change("surprise", to=1), "evaluation.surprise is not a known field"),
        (change("data", "name", to=3), "evaluation.data.name must be of type str"),
        (change("tiers", to=[]), "evaluation.tiers is empty"),
        (change("cutoffs", to=[]), "evaluation.cutoffs is empty"),
        (change("tiers", 1, "metrics", to={}), r"evaluation.tiers\[1\].metrics is empty"),
        (change("tiers", to={}), "evaluation.tiers must be a list"),
        (change("tiers", 2, "metrics", to=[]), r"evaluation.tiers\[2\].metrics must be a dictionary"),
        (change("tiers", 2, "coverage", to=float("nan")), r"tiers\[2\].coverage must be a finite number"),
        (
            change("tiers", 0, "metrics", "ndcg@10", "low", to=1.0),
            r"tiers\[0\].metrics\['ndcg@10'\]: low is above high",
        ),
        (change("by_history_length", 0, "bucket", to="7"), r"\[0\].bucket is '7', not one of 0, 1-2"),
        (change("consent_funnel", 0, "rows_kept", to=621), "add up to 1001, not to rows_in, 1000"),
    ],
)
def test_what_is_not_an_evaluation_is_refused_by_field(
    evaluation: dict[str, Any], damage: Any, message: str
) -> None:
    assert check_evaluation(copy.deepcopy(evaluation)) == evaluation
    damage(evaluation)
    with pytest.raises(ValueError, match=message):
        check_evaluation(evaluation)
