"""The simulator: one shop for one configuration, every situation present, signals as strong as asked."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import Source, microseconds
from consentier.consent.ledger import Ledger
from consentier.consent.records import ConsentRecord, Link
from consentier.errors import DataError
from consentier.features import simulator
from consentier.features.schemas import SCHEMAS
from consentier.features.simulator import SimulatedShop, SimulationConfig, simulate, write_shop
from consentier.features.simulator_ledger import STORIES
from consentier.features.tables import read_shop
from consentier.features.validation import validate_table

SMALL = SimulationConfig(customers=200, items=120, days=60, horizon_days=14)


@functools.cache
def shop(config: SimulationConfig) -> SimulatedShop:
    return simulate(config)


def digest(simulated: SimulatedShop) -> str:
    tables = {**simulated.tables, **{f"true {name}": table for name, table in simulated.truth.items()}}
    contents = {name: table.to_pydict() for name, table in tables.items()} | simulated.truth_facts
    return hashlib.sha256(json.dumps(contents, sort_keys=True, default=str).encode()).hexdigest()


def frame(table: pa.Table) -> pd.DataFrame:
    rows: pd.DataFrame = table.to_pandas()
    return rows


# --- one configuration, one shop ----------------------------------------------------------------------------


def test_the_same_configuration_gives_the_same_shop_bit_for_bit() -> None:
    assert digest(simulate(SMALL)) == digest(simulate(SMALL))


def test_a_shop_is_the_same_on_every_platform() -> None:
    """Written down once: only a change of the model may change it, no other NumPy or processor."""
    tiny = SimulationConfig(customers=20, items=40, days=28, horizon_days=14)
    assert digest(simulate(tiny)) == "5edd4de13dbd28130214245588d425fb4f3e2d3b44ed88a7828baa35ea23b158"


def test_another_seed_gives_another_shop() -> None:
    assert digest(shop(SMALL)) != digest(shop(dataclasses.replace(SMALL, seed=8)))


def test_simulate_refuses_anything_but_a_configuration() -> None:
    with pytest.raises(TypeError, match="SimulationConfig"):
        simulate({"customers": 100})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("customers", 19), ("customers", 100.0), ("customers", True), ("items", 39), ("days", 27),
        ("days", 731), ("seed", -1), ("horizon_days", 0), ("session_signal", 1.1), ("online_signal", -0.1),
        ("crm_signal", float("nan")), ("attribute_signal", "1"), ("device_share", 0.95), ("link_share", 2),
        ("consent_selection", True), ("start", dt.datetime(2026, 1, 5)), ("start", dt.date(2026, 1, 5)),
        ("start", dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC)),
        ("start", dt.datetime(2026, 1, 5, tzinfo=dt.timezone(dt.timedelta(hours=1)))),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    fields: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=field):
        SimulationConfig(**fields)


signals = st.sampled_from([0.0, 0.5, 1.0])


@settings(max_examples=25, deadline=None)
@given(
    config=st.builds(
        SimulationConfig,
        customers=st.integers(20, 60),
        items=st.integers(40, 90),
        days=st.integers(28, 45),
        horizon_days=st.just(14),
        seed=st.integers(0, 2**32),
        session_signal=signals,
        online_signal=signals,
        crm_signal=signals,
        attribute_signal=signals,
        device_share=st.sampled_from([0.0, 0.2, 0.9]),
        link_share=signals,
        consent_selection=signals,
        late_parents=signals,
    )
)
def test_every_configuration_gives_a_shop_that_keeps_the_contract(config: SimulationConfig) -> None:
    simulated = simulate(config)
    assert set(simulated.tables) == set(SCHEMAS)
    for name, table in simulated.tables.items():
        checked, report = validate_table(table, SCHEMAS[name], "error")
        assert report.ok
        assert checked.cast(table.schema).equals(table.select(checked.column_names))
    start, end = pa.scalar(config.start), pa.scalar(config.end)
    for name in ("events", "orders", "product_usage"):
        ts = simulated.tables[name]["ts"]
        assert pc.all(pc.and_(pc.greater_equal(ts, start), pc.less(ts, end))).as_py() is not False
        assert ts.to_pylist() == sorted(ts.to_pylist())
    assert_references_hold(simulated)


def assert_references_hold(simulated: SimulatedShop) -> None:
    tables = {name: frame(table) for name, table in simulated.tables.items()}
    items, customers = set(tables["items"].item_id), set(tables["customers"].customer_id)
    visitors = set(simulated.truth["visitors"]["visitor_id"].to_pylist())
    assert set(tables["events"].visitor_id) == visitors
    assert set(tables["identities"].visitor_id) <= visitors
    for name in ("events", "orders", "product_usage"):
        assert set(tables[name].item_id) <= items
    for name in ("orders", "product_usage", "identities"):
        assert set(tables[name].customer_id) <= customers
    subjects = tables["consents"].groupby("subject_kind").subject_id.agg(set)
    assert subjects.get("visitor", set()) <= visitors
    assert subjects.get("customer", set()) <= customers


# --- a plausible shop ---------------------------------------------------------------------------------------


def test_every_session_belongs_to_one_visitor() -> None:
    events = frame(shop(SMALL).tables["events"])
    assert events.groupby("session_id").visitor_id.nunique().max() == 1


def test_items_appear_only_while_they_are_on_sale() -> None:
    simulated = shop(SMALL)
    items = frame(simulated.truth["items"]).set_index("item_id")
    for name in ("events", "orders"):
        seen = frame(simulated.tables[name]).groupby("item_id").ts.agg(["min", "max"]).join(items)
        assert (seen["min"] >= seen.launched_at).all()
        gone = seen[seen.discontinued_at.notna()]
        assert len(gone) > 0
        assert (gone["max"] < gone.discontinued_at).all()
    available = frame(simulated.tables["items"]).set_index("item_id").available
    assert (available == items.discontinued_at.isna()).all()
    assert 0 < (items.launched_at > SMALL.start).mean() < 0.3


def test_a_few_items_are_sensitive_and_all_of_those_are_health_products() -> None:
    items = frame(shop(SimulationConfig()).tables["items"])
    assert 0 < items.sensitive.mean() < 0.05
    assert set(items[items.sensitive].category) == {"health"}


def test_popularity_is_skewed_and_days_and_hours_differ() -> None:
    events = frame(shop(SimulationConfig()).tables["events"])
    counts = events.item_id.value_counts()
    assert counts.head(len(counts) // 10).sum() > 0.3 * len(events)
    by_hour, by_day = events.ts.dt.hour.value_counts(), events.ts.dt.day_of_week.value_counts()
    assert by_hour[20] > 5 * by_hour[3]
    assert by_day[6] > 1.2 * by_day[1]


def test_about_a_third_of_the_sessions_is_anonymous_and_some_customers_use_several_devices() -> None:
    sessions = frame(shop(SimulationConfig()).truth["sessions"])
    assert 0.2 < sessions.customer_id.isna().mean() < 0.4
    visitors = frame(shop(SimulationConfig()).truth["visitors"])
    secondary = set(visitors[visitors.secondary].visitor_id)
    known = sessions[sessions.customer_id.notna()]
    assert 0.1 < known.visitor_id.isin(secondary).mean() < 0.2
    assert not frame(shop(dataclasses.replace(SMALL, device_share=0.0)).truth["visitors"]).secondary.any()


def test_on_site_orders_are_of_items_viewed_before_and_confirmed_online() -> None:
    simulated = shop(SMALL)
    events, orders = frame(simulated.tables["events"]), frame(simulated.tables["orders"])
    owner = frame(simulated.truth["sessions"]).set_index("session_id").customer_id
    events["customer_id"] = events.session_id.map(owner)
    channel = frame(simulated.truth["orders"]).set_index("order_id").channel
    on_site = orders[orders.order_id.map(channel) == "on-site"]
    first_view = events[events.event_type == "view"].groupby(["customer_id", "item_id"]).ts.min()
    viewed = first_view.reindex(pd.MultiIndex.from_frame(on_site[["customer_id", "item_id"]]))
    assert (viewed.to_numpy() < on_site.ts.to_numpy()).all()
    confirmed = events[events.event_type == "order"]
    key = ["customer_id", "item_id", "ts"]
    assert sorted(map(tuple, confirmed[key].to_numpy())) == sorted(map(tuple, on_site[key].to_numpy()))
    assert set(orders.status) == {"ordered", "cancelled", "returned"}
    assert orders.price.isna().any()
    assert orders.groupby("order_id").size().max() > 1


# --- the ledger ---------------------------------------------------------------------------------------------


def test_every_consent_story_happens() -> None:
    stories = shop(SimulationConfig()).truth_facts["stories"]
    told = {story for side in ("online", "crm") for story, count in stories[side].items() if count}
    assert told == set(STORIES) - {"of age later"}
    parental = frame(shop(SimulationConfig()).tables["consents"]).query("permission == 'parental'")
    assert set(parental.state) >= {"denied", "granted", "lifted"}


def test_parents_can_consent_after_the_child_which_then_permitted_nothing_before() -> None:
    simulated = shop(dataclasses.replace(SMALL, customers=600, late_parents=1.0))
    consents = frame(simulated.tables["consents"]).query("subject_kind == 'customer'")
    first = consents.groupby(["permission", "subject_id"]).valid_from.min()
    ledger = Ledger(
        ConsentRecord(**row)
        for row in simulated.tables["consents"].to_pylist()
        if row["subject_id"] in first["parental"].index
    )
    held = 0
    for minor, parents in first["parental"].items():
        if minor in first["crm"].index:
            assert first["crm"][minor] < parents
        since = ledger.standing(Source.CRM, minor, at=simulated.config.cutoff).since
        if since is not None:
            assert since >= microseconds(parents.to_pydatetime())
            held += 1
    assert held


def test_the_ledger_has_the_faults_of_real_ones() -> None:
    simulated = shop(SimulationConfig())
    consents, events = frame(simulated.tables["consents"]), frame(simulated.tables["events"])
    content = [column for column in consents.columns if column != "recorded_at"]
    same_id = consents[consents.duplicated("record_id", keep=False)]
    exact = same_id[same_id.duplicated(keep=False)]
    assert 0 < len(exact) < len(same_id)
    assert (same_id.drop_duplicates(content).groupby("record_id").size() > 1).sum() >= 2
    assert (consents.recorded_at - consents.valid_from > pd.Timedelta(days=1)).any()
    assert consents.valid_to.dropna().between(SMALL.start, SimulationConfig().end).all()
    assert consents[consents.state == "lifted"].evidence.str.startswith("sha256:").all()
    confirmed = consents[consents.double_opt_in_at.notna()]
    assert set(confirmed.permission) == {"contact:email"}
    online = consents[(consents.permission == "online") & (consents.state == "granted")]
    granted = online.groupby("subject_id").valid_from.min()
    first_event = events.groupby("visitor_id").ts.min()[granted.index]
    assert 0.01 < (granted > first_event).mean() < 0.3


def test_linkage_is_partial_with_shared_devices_and_unknown_instants() -> None:
    identities = frame(shop(SimulationConfig()).tables["identities"])
    assert identities.linked_at.isna().any()
    assert (identities.groupby("visitor_id").customer_id.nunique() > 1).any()
    assert (identities.groupby("customer_id").visitor_id.nunique() > 1).any()
    assert shop(dataclasses.replace(SMALL, link_share=0.0)).tables["identities"].num_rows == 0


def test_nearly_half_of_the_customers_are_lawfully_linked_at_the_cutoff() -> None:
    simulated = shop(SimulationConfig())
    ledger = Ledger(
        [ConsentRecord(**row) for row in simulated.tables["consents"].to_pylist()],
        [Link(**row) for row in simulated.tables["identities"].to_pylist()],
    )
    visitors = frame(simulated.truth["visitors"]).set_index("visitor_id").customer_id
    linked = visitors[list(ledger.lawful_links(at=simulated.config.cutoff))].nunique()
    assert 0.38 < linked / simulated.config.customers < 0.52


@pytest.mark.parametrize(("selection", "low", "high"), [(0.0, -0.06, 0.06), (1.0, 0.3, 1.0)])
def test_consent_depends_on_taste_only_as_configured(selection: float, low: float, high: float) -> None:
    config = SimulationConfig(customers=2000, items=60, days=28, horizon_days=14, consent_selection=selection)
    visitors = frame(simulate(config).truth["visitors"])
    willing = visitors.online_story.isin(["granted", "granted late"])
    anonymous = visitors.customer_id.isna()
    even = visitors.archetype % 2 == 0
    difference = willing[anonymous & even].mean() - willing[anonymous & ~even].mean()
    assert low <= difference <= high


# --- the planted signals ------------------------------------------------------------------------------------


def share_in_taste(tastes: np.ndarray, styles: np.ndarray) -> float:
    """Share of rows whose style is among the person's favourites."""
    return float((tastes == styles[:, None]).any(axis=1).mean())


def excess_of_direct_orders(simulated: SimulatedShop) -> tuple[float, float]:
    """How much more often direct orders fall into the own CRM taste than into another's; and 1 / sqrt n."""
    style = frame(simulated.truth["items"]).set_index("item_id")["style"]
    channel = frame(simulated.truth["orders"]).set_index("order_id").channel
    taste = np.stack(simulated.truth["customers"]["crm_taste"].to_pylist())
    orders = frame(simulated.tables["orders"])
    orders = orders[orders.order_id.map(channel) == "direct"]
    who = orders.customer_id.str[1:].astype(int).to_numpy()
    styles = orders.item_id.map(style).to_numpy()
    other = (who + 1 + np.arange(len(who)) % (len(taste) - 1)) % len(taste)
    excess = share_in_taste(taste[who], styles) - share_in_taste(taste[other], styles)
    return excess, len(who) ** -0.5


def test_direct_orders_follow_the_crm_taste_only_where_it_is_planted() -> None:
    excess, _ = excess_of_direct_orders(shop(SimulationConfig()))
    assert excess > 0.8
    excess, error = excess_of_direct_orders(shop(SimulationConfig(crm_signal=0.0)))
    assert abs(excess) < 2 * error


def views_of(simulated: SimulatedShop) -> pd.DataFrame:
    events = frame(simulated.tables["events"])
    views = events[events.event_type == "view"].copy()
    views["style"] = views.item_id.map(frame(simulated.truth["items"]).set_index("item_id")["style"])
    views["focus"] = views.session_id.map(
        frame(simulated.truth["sessions"]).set_index("session_id").focus_style
    )
    return views


@pytest.mark.parametrize(("signal", "low", "high"), [(0.0, -0.02, 0.02), (1.0, 0.5, 1.0)])
def test_views_follow_the_online_taste_only_where_it_is_planted(
    signal: float, low: float, high: float
) -> None:
    simulated = shop(dataclasses.replace(SMALL, customers=400, online_signal=signal))
    visitors = simulated.truth["visitors"]
    taste = np.stack(visitors["online_taste"].to_pylist())
    position = {visitor: row for row, visitor in enumerate(visitors["visitor_id"].to_pylist())}
    views = views_of(simulated)
    who = views.visitor_id.map(position).to_numpy()
    other = (who + 1 + np.arange(len(who)) % (len(taste) - 1)) % len(taste)
    styles = views["style"].to_numpy()
    assert low <= share_in_taste(taste[who], styles) - share_in_taste(taste[other], styles) <= high


def test_sessions_keep_to_their_focus_only_where_it_is_planted() -> None:
    def excess(signal: float) -> float:
        """How much more alike successive views are than views of the same visitor in other sessions."""
        views = views_of(shop(dataclasses.replace(SMALL, customers=400, session_signal=signal)))
        views = views.sort_values(["visitor_id", "ts"], kind="stable")
        following = views.shift(-1)
        same_visitor = views.visitor_id == following.visitor_id
        within = same_visitor & (views.session_id == following.session_id)
        across = same_visitor & ~within
        alike = views["style"] == following["style"]
        return float(alike[within].mean() - alike[across].mean())

    assert abs(excess(0.0)) < 0.03
    assert excess(1.0) > 0.3


def test_attributes_tell_the_segment_only_where_that_is_planted() -> None:
    def spread(config: SimulationConfig) -> float:
        """Largest distance between a segment's age distribution and that of all customers."""
        simulated = shop(config)
        segment = simulated.truth["customers"]["segment"].to_pandas()
        ages = pd.crosstab(segment, simulated.tables["customers"]["age_band"].to_pandas(), normalize="index")
        return float((ages - ages.mean()).abs().to_numpy().max())

    assert spread(SimulationConfig()) > 0.4
    assert spread(SimulationConfig(crm_signal=0.0)) < 0.1
    assert simulate(SMALL).tables["customers"]["region"].null_count > 0


def test_which_view_is_ordered_tells_nothing_about_taste() -> None:
    simulated = shop(SimulationConfig())
    views = views_of(simulated)
    views["in_focus"] = views["style"] == views.focus
    events = frame(simulated.tables["events"])
    ordered = events[events.event_type == "order"]
    ordering = views[views.session_id.isin(ordered.session_id)]
    share = ordering.groupby("session_id").in_focus.mean()
    style = frame(simulated.truth["items"]).set_index("item_id")["style"]
    focus = views.drop_duplicates("session_id").set_index("session_id").focus
    viewed_here = pd.MultiIndex.from_frame(ordering[["session_id", "item_id"]])
    own = ordered[pd.MultiIndex.from_frame(ordered[["session_id", "item_id"]]).isin(viewed_here)]
    hit = own.item_id.map(style) == own.session_id.map(focus)
    assert abs(hit.mean() - own.session_id.map(share).mean()) < 0.02


@functools.cache
def accuracy(config: SimulationConfig) -> dict[str, float]:
    """NDCG@20 on the orders of the test period, by what is known: a ridge regression on the histories."""
    simulated = shop(config)
    owner = frame(simulated.truth["sessions"]).set_index("session_id").customer_id
    events, orders = frame(simulated.tables["events"]), frame(simulated.tables["orders"])
    events["customer_id"] = events.session_id.map(owner)
    events = events[events.customer_id.notna() & (events.ts < config.cutoff)]
    past, future = orders[orders.ts < config.cutoff], orders[orders.ts >= config.cutoff]
    last = events.groupby("customer_id").session_id.last()
    known = {
        "session": counts(events[events.session_id.isin(set(last))], config),
        "online": counts(events, config),
        "crm": counts(past, config),
    }
    test = counts(future, config) > 0
    chosen = test.any(axis=1) & (known["online"].sum(axis=1) > 0) & (known["crm"].sum(axis=1) > 0)
    unit = {name: directions(matrix) for name, matrix in known.items()}
    popularity = known["crm"].sum(axis=0)
    scores = {
        "popular": np.tile(popularity, (len(test), 1)),
        "session": unit["session"] @ item_weights(unit["online"]),
        "online": unit["online"] @ item_weights(unit["online"]),
        "crm": unit["crm"] @ item_weights(unit["crm"]),
        "fused": (joint := unit["online"] + 2 * unit["crm"]) @ item_weights(joint),
    }
    return {tier: ndcg(score[chosen] + 1e-9 * popularity, test[chosen]) for tier, score in scores.items()}


def counts(rows: pd.DataFrame, config: SimulationConfig) -> np.ndarray:
    matrix = np.zeros((config.customers, config.items))
    who, item = (rows[column].str[1:].astype(int).to_numpy() for column in ("customer_id", "item_id"))
    np.add.at(matrix, (who, item), 1.0)
    return matrix


def directions(matrix: np.ndarray) -> np.ndarray:
    rows = np.log1p(matrix)
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def item_weights(rows: np.ndarray) -> np.ndarray:
    gram = rows.T @ rows
    gram[np.diag_indices_from(gram)] += 0.3 * np.diag(gram).mean()
    inverse = np.linalg.inv(gram)
    weights: np.ndarray = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0.3)
    return weights


def ndcg(scores: np.ndarray, relevant: np.ndarray, cutoff: int = 20) -> float:
    top = np.argsort(-scores, axis=1, kind="stable")[:, :cutoff]
    discount = 1 / np.log2(np.arange(2, cutoff + 2))
    gain = (np.take_along_axis(relevant, top, axis=1) * discount).sum(axis=1)
    ideal = np.cumsum(discount)[np.minimum(relevant.sum(axis=1), cutoff) - 1]
    return float((gain / ideal).mean())


def test_the_planted_ordering_of_the_tiers_can_be_recovered() -> None:
    config = SimulationConfig()
    found = accuracy(config)
    pairs = shop(config).truth_facts["expected_ordering"]
    assert ["online", "fused"] in pairs
    for weaker, stronger in pairs:
        assert found[stronger] > 1.05 * found[weaker], (weaker, stronger, found)


def test_without_the_crm_signal_fusion_shows_no_lift() -> None:
    config = SimulationConfig(crm_signal=0.0)
    found = accuracy(config)
    assert found["online"] > 1.1 * found["session"]
    assert found["fused"] < 1.01 * found["online"]
    facts = shop(config).truth_facts
    assert facts["fusion_lift_from_crm"] is False
    assert ["online", "fused"] not in facts["expected_ordering"]


# --- writing ------------------------------------------------------------------------------------------------


def test_a_written_shop_reads_back_with_truth_and_configuration(tmp_path: Path) -> None:
    simulated = shop(SMALL)
    out = tmp_path / "new" / "shop"
    write_shop(simulated, out)
    read = read_shop(out)
    for name, table in simulated.tables.items():
        assert getattr(read, name).num_rows == table.num_rows
    facts = json.loads((out / "truth" / "truth.json").read_text())
    assert facts == simulated.truth_facts
    written = tomllib.loads((out / "consentier.toml").read_text())
    assert written == {
        "training": {"cutoff": facts["cutoff"]},
        "evaluation": {"horizon_days": SMALL.horizon_days},
    }
    assert dt.datetime.fromisoformat(facts["cutoff"]) == SMALL.end - dt.timedelta(days=SMALL.horizon_days)
    assert {path.stem for path in (out / "truth").glob("*.parquet")} == set(simulated.truth)
    assert [path.name for path in out.parent.iterdir()] == ["shop"]


def test_a_directory_in_use_is_replaced_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write_shop(shop(SMALL), tmp_path / "shop")
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["mine.txt"]
    write_shop(shop(SMALL), tmp_path / "shop", force=True)
    assert not (tmp_path / "shop" / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]
    with pytest.raises(DataError, match="is a file"):
        write_shop(shop(SMALL), tmp_path / "shop" / "consentier.toml", force=True)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(simulator, "write_text", fail)
    with pytest.raises(DataError, match="No space left"):
        write_shop(shop(SMALL), tmp_path / "shop")
    assert list(tmp_path.iterdir()) == []
