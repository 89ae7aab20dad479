"""What the report on consent's worth says, and what it must not say."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import given
from hypothesis import strategies as st
from shops import day
from typer.testing import CliRunner
from unreadable_rows import CUTOFF, START, shop_with

from consentier.cli.app import app
from consentier.consent import Policy, Tier
from consentier.consent.permissions import Channel
from consentier.errors import TrainingError
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.simulator import SimulatedShop, SimulationConfig, simulate
from consentier.features.tables import ShopTables, write_tables
from consentier.features.validation import ValidationReport
from consentier.serving import Recommender
from consentier.serving.reach import reach
from consentier.training import consent_worth as module
from consentier.training.bundles import train_bundles
from consentier.training.config import Config, EvaluationConfig, TrackingConfig
from consentier.training.consent_levels import counts_over_time, reach_by_level
from consentier.training.consent_worth import LEVEL_TIERS, Worth, bounds_of, consent_worth
from consentier.training.consent_worth_report import render_worth
from consentier.training.evaluate_cases import Case, linked_cases, links_of
from consentier.training.evaluate_judge import World, judge, targets_of
from consentier.training.evaluate_requests import ask_all

SIMULATION = SimulationConfig(customers=1200, items=200, days=84, horizon_days=28, seed=5)
SELECTED = dataclasses.replace(SIMULATION, link_share=1.0, seed=11)


def shop_of(simulation: SimulationConfig) -> ShopTables:
    return ShopTables(**simulate(simulation).tables, report=ValidationReport())


def config_of(simulation: SimulationConfig) -> Config:
    settings = EvaluationConfig(horizon_days=simulation.horizon_days, cutoffs=(10,), bootstrap_samples=500)
    config = Config(evaluation=settings, tracking=TrackingConfig(enabled=False))
    return config.with_cutoff(simulation.cutoff)


@pytest.fixture(scope="module")
def shop() -> ShopTables:
    return shop_of(SIMULATION)


@pytest.fixture(scope="module")
def found(shop: ShopTables) -> Worth:
    return consent_worth(shop, config_of(SIMULATION), name="<shop>", periods=3, show_progress=False)


def test_each_permission_adds_what_was_planted(found: Worth) -> None:
    assert found["customers"] is not None
    for design in found["designs"]:
        added = {
            (row["baseline"], row["better"]): row["difference"]["low"]
            for row in design["rows"]
            if row["metric"] == "ndcg@10"
        }
        assert added["session", "online"] > 0
        assert added["session", "fused"] > 0
        assert len(added) == 5
    assert [row["level"] for row in found["coverage"]] == list(LEVEL_TIERS)


def test_the_page_says_what_is_not_identified_and_loads_nothing(found: Worth) -> None:
    page = render_worth(found)
    assert "<h1>What is consent worth? &lt;shop&gt;</h1>" in page
    for text in ("The estimand:", "Not identified:", "bounds, not estimates", "withheld"):
        assert text in page
    for text in ("<script", "http:", "src=", "@import", "url(h"):
        assert text not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    json.dumps(found, allow_nan=False)


def test_nobody_is_named(shop: ShopTables, found: Worth) -> None:
    everything = render_worth(found) + json.dumps(found)
    names = {*shop.orders["customer_id"].to_pylist(), *shop.events["visitor_id"].to_pylist()}
    assert not [name for name in names if name in everything]


def test_levels_and_reach_are_those_of_the_single_questions(shop: ShopTables) -> None:
    """Everybody counted at once, against the ledger asked person by person."""
    policy, ledger, end = Policy.default(), ledger_of(shop), SIMULATION.end
    now, rows = reach_by_level(ledger, policy, end, threshold=1)
    kinds, names = (shop.consents[name].to_pylist() for name in ("subject_kind", "subject_id"))
    known = sorted({name for kind, name in zip(kinds, names, strict=True) if kind == "customer"})
    level = {}
    for name in known:
        resolution = reach(ledger, policy, name, Channel.EMAIL, end).resolution
        blocked = resolution.objected or resolution.minor or not resolution.crm
        level[name] = "none" if blocked else "both" if resolution.linked else "crm"
    expected = {each: sum(one == each for one in level.values()) for each in ("none", "crm", "both")}
    assert now["levels"] == expected
    assert now["known"] == len(known)
    reached = [
        not reach(ledger, policy, name, Channel.EMAIL, end).barrier for name in known if level[name] == "crm"
    ]
    (row,) = (row for row in rows if (row["level"], row["channel"]) == ("crm", "email"))
    assert row["value"] == pytest.approx(sum(reached) / len(reached))


def test_counts_are_of_their_instant(shop: ShopTables) -> None:
    lately = pc.greater(shop.consents["valid_from"], SIMULATION.end - dt.timedelta(weeks=10))
    ledger = ledger_of(dataclasses.replace(shop, consents=shop.consents.filter(lately)))
    series = counts_over_time(
        ledger, Policy.default(), SIMULATION.end, every="week", periods=400, threshold=1
    )
    for rows in series.values():
        instants = [dt.datetime.fromisoformat(row["at"]) for row in rows]
        assert instants == sorted(instants)
        assert instants[-1] == SIMULATION.end
        assert 8 < len(rows) < 12  # none from before the first record
        known = [row["known"] or 0 for row in rows]
        assert known == sorted(known)
        assert len({json.dumps(row["levels"]) for row in rows}) > 5


def test_small_groups_are_withheld(shop: ShopTables) -> None:
    result = consent_worth(
        shop, config_of(SIMULATION), name="shop", minimum_group=900, periods=2, show_progress=False
    )
    assert result["customers"] is None
    assert not result["designs"]
    assert not result["coverage"]
    assert not result["bounds"]
    assert "Fewer than 900 customers" in result["notes"][0]
    assert all(count is None for count in result["now"]["levels"].values())
    assert all(row["says"] == "nothing" for row in result["reach"])
    render_worth(result)


def test_fewer_that_are_drawn_than_may_be_shown_are_not_shown(shop: ShopTables) -> None:
    config = config_of(SIMULATION)
    drawn = config.evaluation.model_copy(update={"max_customers": 30})
    config = config.model_copy(update={"evaluation": drawn})
    result = consent_worth(shop, config, name="shop", minimum_group=50, periods=1, show_progress=False)
    assert result["customers"] is None
    assert not result["designs"]
    assert result["notes"][0].startswith(
        "Fewer than 50 customers are asked, by max_customers of [evaluation]"
    )
    render_worth(result)


def test_a_threshold_below_the_least_and_a_missing_cutoff_are_refused(shop: ShopTables) -> None:
    with pytest.raises(ValueError, match="fewer than 20"):
        consent_worth(shop, config_of(SIMULATION), name="shop", minimum_group=19)
    with pytest.raises(TrainingError, match="cut-off"):
        consent_worth(shop, Config(), name="shop")


def test_the_command_writes_page_and_figures(tmp_path: Path) -> None:
    tables = shop_with([])
    named = {field.name: getattr(tables, field.name) for field in dataclasses.fields(tables)}
    write_tables({name: table for name, table in named.items() if name != "report"}, tmp_path / "shop")
    (tmp_path / "shop" / "consentier.toml").write_text(
        f"[evaluation]\nhorizon_days = {CUTOFF - START}\nbootstrap_samples = 100\n"
    )
    page, figures = tmp_path / "worth.html", tmp_path / "worth.json"
    run = CliRunner().invoke(
        app,
        [
            "worth", str(tmp_path / "shop"), "--cutoff", day(START).isoformat(), "--out", str(page),
            "--figures", str(figures), "--min-group", "20", "--periods", "1",
        ],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    result = json.loads(figures.read_text("utf-8"))
    assert page.read_text("utf-8") == render_worth(result)
    assert result["customers"] == 24
    assert "24 customers with both permissions" in run.output


# ---- Where consent depends on taste ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the others would show, which no shop could see: the same models, everybody's data."""

    worth: Worth
    others: float
    everybody: float
    metric: str = "ndcg@10"


def with_consents(tables: ShopTables, customers: Sequence[str], visitors: Sequence[str]) -> ShopTables:
    """The shop in which just these have granted, before it began."""
    at = SELECTED.start - dt.timedelta(days=1)
    records = [
        {
            **dict.fromkeys(tables.consents.column_names),
            "record_id": f"{kind} {name}",
            "subject_id": name,
            "subject_kind": kind,
            "permission": permission,
            "state": "granted" if name in granted else "denied",
            "valid_from": at,
            "recorded_at": at,
            "basis": "consent",
            "jurisdiction": "DE",
            "collected_by": "test",
            "policy_version": "1",
            "evidence": "planted",
        }
        for kind, permission, names, granted in (
            ("visitor", "online", tables.events["visitor_id"].unique().to_pylist(), set(visitors)),
            ("customer", "crm", tables.customers["customer_id"].to_pylist(), set(customers)),
        )
        for name in names
    ]
    consents = pa.Table.from_pylist(records, schema=tables.consents.schema)
    return dataclasses.replace(tables, consents=consents)


def by_taste(simulated: SimulatedShop, tables: ShopTables) -> ShopTables:
    """Customers with orders that follow a taste beside that of their visits consent, the others do not.

    So it is of the others that CRM data tell nothing about the orders to come.
    """
    customers, visitors = (simulated.truth[name].to_pylist() for name in ("customers", "visitors"))
    willing = {row["customer_id"] for row in customers if row["direct_orders"]}
    theirs = [row["visitor_id"] for row in visitors if row["customer_id"] in willing]
    return with_consents(tables, sorted(willing), theirs)


@pytest.fixture(scope="module")
def truth() -> Truth:
    simulated = simulate(SELECTED)
    everything = ShopTables(**simulated.tables, report=ValidationReport())
    tables, config = by_taste(simulated, everything), config_of(SELECTED)
    result = consent_worth(tables, config, name="shop", periods=1, show_progress=False)
    policy, start, end = Policy.default(), SELECTED.cutoff, SELECTED.end
    ledger = ledger_of(tables)
    consenting = {link.customer_id for link in ledger.lawful_links(at=end).values()}
    whole = with_consents(
        everything,
        everything.customers["customer_id"].to_pylist(),
        everything.events["visitor_id"].to_pylist(),
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        trained = train_bundles(
            tables,
            config.with_cutoff(end),
            out,
            tiers=[*LEVEL_TIERS.values(), Tier.POPULAR],
            until=start,
            show_progress=False,
        )
        assert not trained.skipped
        asked = module._Asked.of(tables, config.evaluation, out, ledger, policy, (start, end))
        of_all = ledger_of(whole)
        gate = ConsentGate(whole, of_all, end, policy)
        online, crm = gate.permitted(Tier.ONLINE), gate.permitted(Tier.CRM)
        links = links_of(of_all, start, end, policy).held
        theirs = {visitor: name for visitor, name in links.items() if name not in consenting}
        cases = [
            case for case in linked_cases(online, crm, theirs, start) if case.all_history or case.session
        ]
        known = [item for case in cases for item in case.target]
        world = dataclasses.replace(
            asked.world,
            items={**asked.world.items, **_numbered(known, asked.world.items)},
        )
        recommender = Recommender.load(out, policy=policy)
        gain = _gain(recommender, cases, world)
        own = _gain(recommender, asked.cases, asked.world)
    total = (len(cases) * gain + len(asked.cases) * own) / (len(cases) + len(asked.cases))
    return Truth(result, gain, total)


def _numbered(items: list[str], known: Mapping[str, int]) -> dict[str, int]:
    new = sorted({item for item in items if item not in known})
    return {item: len(known) + number for number, item in enumerate(new)}


def _gain(recommender: Recommender, cases: Sequence[Case], world: World) -> float:
    """Mean score of the CRM tier less that of the session tier."""
    targets = targets_of((case.target for case in cases), world)
    crm, session = (
        judge(ask_all(recommender, tier, cases, world, lambda *_: None), targets, world)["ndcg@10"].mean()
        for tier in (Tier.CRM, Tier.SESSION)
    )
    return float(crm - session)


def test_the_interval_of_those_who_consented_does_not_cover_the_others(truth: Truth) -> None:
    (row,) = (
        row
        for row in truth.worth["designs"][0]["rows"]
        if (row["better"], row["baseline"], row["metric"]) == ("crm", "session", truth.metric)
    )
    interval = row["difference"]
    assert interval["low"] > 0 > truth.others
    assert not interval["low"] <= truth.others <= interval["high"]


def test_the_bounds_cover_everybody(truth: Truth) -> None:
    (row,) = (
        row
        for row in truth.worth["bounds"]
        if (row["better"], row["baseline"], row["metric"]) == ("crm", "session", truth.metric)
    )
    assert row["low"] <= truth.everybody <= row["high"]


Outcomes = tuple[list[float], list[float], int]
outcomes: st.SearchStrategy[Outcomes] = st.tuples(
    st.lists(st.floats(-1, 1), min_size=2, max_size=20),
    st.lists(st.floats(-1, 1), max_size=20),
    st.integers(0, 20),
)
"""The differences of those asked, of others who would have ordered, and how many more there are."""


def check_bounds_hold_whatever_the_others_are_like(case: Outcomes) -> None:
    asked, others, silent = case
    mean = sum(asked) / len(asked)
    row = {"better": "fused", "baseline": "online", "metric": "ndcg@10", "relative": None, "p_value": 1.0,
           "p_holm": 1.0, "difference": {"mean": mean, "low": mean, "high": mean}}  # fmt: skip
    design = {"name": "", "explanation": "", "rows": [row], "tiers": []}
    found = bounds_of([design], len(asked), len(others) + silent)  # type: ignore[list-item]
    everybody = sum([*asked, *others]) / len([*asked, *others])
    for bounds in found:
        assert bounds["low"] - 1e-9 <= everybody <= bounds["high"] + 1e-9
    assert bool(found) == bool(others or silent)


@given(outcomes)
def test_bounds_hold_whatever_the_others_are_like(case: Outcomes) -> None:
    check_bounds_hold_whatever_the_others_are_like(case)


@breaks(
    Break(
        "the others are taken to be like those asked",
        bounds_of,
        "- (1 - share),",
        "+ (1 - share) * row['difference']['low'],",
        ([1.0, 1.0], [-1.0], 0),
    ),
    Break(
        "nobody else is counted", bounds_of, "eligible / (eligible + others)", "1.0", ([1.0, 1.0], [-1.0], 0)
    ),
)
def test_bounds_that_are_too_narrow_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_bounds_hold_whatever_the_others_are_like, outcomes, broken)
