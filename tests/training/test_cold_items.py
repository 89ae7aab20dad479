"""Items with little evidence borrow by their metadata, from training to answers and back to forgetting."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import Row, consent, day, event, order, shop

from consentier.consent import Policy, Side, Tier
from consentier.errors import ConfigError
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.tables import ShopTables
from consentier.models.bundle import Bundle, open_bundle
from consentier.models.item_index import ItemIndex
from consentier.serving.main_parameters import main_parameters
from consentier.serving.query import Query
from consentier.serving.request import Event
from consentier.serving.scorer import LinearScorer
from consentier.serving.view import PermittedView
from consentier.training.config import Config, TierConfig, TrackingConfig, TrainingConfig, load_config
from consentier.training.fit import TierRows
from consentier.training.forget import forget
from consentier.training.linear_validation import BatchScorer
from consentier.training.metrics import ndcg
from consentier.training.restricted import Restricted
from consentier.training.search_space import facts_of, space_of
from consentier.training.train import train
from consentier.training.validation import validation_set

CUTOFF = 50
TIERS = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED)

# Who buys one shoe buys others, and the same with hats. Nobody had the new ones yet.
SHOES, HATS = ("shoe 1", "shoe 2", "shoe 3"), ("hat 1", "hat 2", "hat 3")
PEOPLE = {f"{number}": (SHOES, HATS)[number % 2] for number in range(12)}
ITEMS = [
    *({"item_id": item, "category": "shoes", "price": 50.0} for item in SHOES),
    *({"item_id": item, "category": "hats", "price": 20.0} for item in HATS),
    {"item_id": "new shoe", "category": "shoes", "price": 50.0},
    {"item_id": "new hat", "category": "hats", "price": 20.0},
    {"item_id": "new thing", "category": "things", "price": None},
]


def town(items: Sequence[Row] | pa.Table, *more: Row, without: str = "") -> ShopTables:
    """A shop in which everybody had two of three items of a kind, on site and by orders."""
    events, orders, decisions = [], [], []
    for person, kind in PEOPLE.items():
        if person == without:
            continue
        had = [item for number, item in enumerate(kind) if (number + int(person) // 2) % 3]
        for number, item in enumerate(had):
            events.append(event(f"v{person}", item, 10 + number))
            orders.append(order(f"c{person}", item, 20 + number))
        decisions += [consent(f"v{person}", "online", at=1), consent(f"c{person}", "crm", at=1)]
    if isinstance(items, list):
        items = [{"available": True, "sensitive": False, **item} for item in items]
    return shop(
        events=[*events, *(row for row in more if "session_id" in row)],
        orders=[*orders, *(row for row in more if "order_id" in row)],
        consents=decisions,
        items=items,
    )


def fitted_how(enough: int = 4, **changes: Any) -> TierConfig:
    return TierConfig(
        **{
            "neighbours": 10, "regularisation": 1.0, "repeat_weight": 0.5, "metadata_persons": enough,
            "metadata_columns": ("category",), **changes,
        }
    )  # fmt: skip


def trained(tables: ShopTables, out: Path, tier: Tier, how: TierConfig, *, min_persons: int = 1) -> Bundle:
    config = Config(
        training=TrainingConfig(cutoff=day(CUTOFF), threads=1, min_persons=min_persons),
        tracking=TrackingConfig(enabled=False),
        **{str(tier): how},
    )
    policy = Policy.default()
    if tier is Tier.FUSED:
        switches = dataclasses.replace(policy.switches, include_single_source_in_fused=True)
        policy = dataclasses.replace(policy, switches=switches)
    train(
        tables, config, out, tiers=[tier], policy=policy, force=True, show_progress=False,
        restricted=Restricted.beside(out),
    )  # fmt: skip
    return open_bundle(out / tier)


def ids(bundle: Bundle) -> list[str]:
    index = ItemIndex(bundle.arrays["item_ids"], bundle.arrays["item_offsets"])
    return index.ids(np.arange(len(index)))


def answer(bundle: Bundle, *history: str) -> list[str]:
    events = tuple(Event(item, day(CUTOFF), "view") for item in history)
    tier = Tier(bundle.manifest.tier)
    view = PermittedView(
        sources=frozenset(),
        session=events if tier is not Tier.CRM else (),
        crm_history=events if tier is Tier.CRM else (),
    )
    found = LinearScorer(bundle, None).answer(view, Query(n=20, side=Side.ONLINE))
    return [] if found is None else list(found.items)


@pytest.mark.parametrize("algorithm", ["local_ridge", "cosine", "tfidf", "bm25"])
@pytest.mark.parametrize("tier", TIERS)
def test_a_new_item_is_recommended_and_recommends(tier: Tier, algorithm: str, tmp_path: Path) -> None:
    bundle = trained(town(ITEMS), tmp_path, tier, fitted_how(algorithm=algorithm))
    shoes = {*SHOES, "new shoe"}
    assert "new shoe" in answer(bundle, "shoe 1")
    assert "new shoe" not in answer(bundle, "hat 1")
    assert set(SHOES) <= set(answer(bundle, "new shoe")) <= shoes
    assert "new thing" not in ids(bundle), "it has nothing in common with an item that anybody had"


@pytest.mark.parametrize("tier", TIERS)
def test_off_or_without_metadata_a_bundle_holds_what_it_held(tier: Tier, tmp_path: Path) -> None:
    nothing_known = [{"item_id": row["item_id"]} for row in ITEMS]
    found = [
        trained(town(ITEMS), tmp_path / "off", tier, fitted_how(0)),
        trained(town([]), tmp_path / "no table", tier, fitted_how(metadata_columns=())),
        trained(town(nothing_known), tmp_path / "no metadata", tier, fitted_how()),
    ]
    for bundle in found[1:]:
        assert bundle.arrays.keys() == found[0].arrays.keys()
        for name, array in bundle.arrays.items():
            assert array.tobytes() == found[0].arrays[name].tobytes()
        assert "item_metadata" not in bundle.manifest.parameters
    assert not any("new" in item for item in ids(found[0]))


def test_items_with_enough_persons_keep_their_weights(tmp_path: Path) -> None:
    off = trained(town(ITEMS), tmp_path / "off", Tier.CRM, fitted_how(0))
    bundle = trained(town(ITEMS), tmp_path / "on", Tier.CRM, fitted_how(2))
    place = [ids(bundle).index(item) for item in ids(off)]
    new, old = (_weights(each) for each in (bundle, off))
    assert (new[np.ix_(place, place)] == old).all()
    assert np.diagonal(new).tolist() == [0.5] * len(new), "each item speaks for itself, new ones too"


def _weights(bundle: Bundle) -> np.ndarray[Any, np.dtype[np.float32]]:
    starts, indices, data = (bundle.arrays[name] for name in ("indptr", "indices", "data"))
    dense = np.zeros((starts.size - 1, bundle.manifest.item_count), np.float32)
    for row in range(starts.size - 1):
        dense[row, indices[starts[row] : starts[row + 1]]] = data[starts[row] : starts[row + 1]]
    return dense


def test_items_with_fewer_than_min_persons_are_as_if_nobody_had_them(tmp_path: Path) -> None:
    """Neither are their weights borrowed, nor does a bundle say whether one or nobody had an item."""
    how = fitted_how(9)
    rare = [event("v0", "new shoe", 12), order("c2", "new hat", 24)]
    for tier in TIERS:
        quiet = trained(town(ITEMS), tmp_path / f"quiet {tier}", tier, how, min_persons=2)
        told = trained(town(ITEMS, *rare), tmp_path / f"told {tier}", tier, how, min_persons=2)
        assert quiet.digest == told.digest
        assert "new hat" in answer(quiet, "hat 1"), "so that the equality says something"


@settings(max_examples=12, deadline=None)
@given(
    flagged=st.sets(st.sampled_from([row["item_id"] for row in ITEMS]), min_size=1, max_size=4),
    tier=st.sampled_from(TIERS),
    category=st.sampled_from(("shoes", "hats", "things", "secret")),
)
def test_sensitive_items_neither_lend_nor_borrow(
    tmp_path_factory: pytest.TempPathFactory, flagged: set[str], tier: Tier, category: str
) -> None:
    """A model with them in the table is one that never heard of them, whatever the table says of them."""
    folder = tmp_path_factory.mktemp("sensitive")
    flags = [
        {**row, "sensitive": True, "category": category} if row["item_id"] in flagged else row
        for row in ITEMS
    ]
    bundle = trained(town(flags), folder / "flagged", tier, fitted_how(9))
    assert not flagged & set(ids(bundle))

    absent = town([row for row in ITEMS if row["item_id"] not in flagged])
    rows = {
        name: getattr(absent, name).filter(
            pa.array([item not in flagged for item in getattr(absent, name)["item_id"].to_pylist()])
        )
        for name in ("events", "orders")
    }
    never = trained(dataclasses.replace(absent, **rows), folder / "never", tier, fitted_how(9))
    assert bundle.digest == never.digest


def test_the_gate_lets_metadata_through_without_sensitive_items_and_flags() -> None:
    tables = town([{**ITEMS[0], "sensitive": True}, *ITEMS[1:]])
    gate = ConsentGate(tables, ledger_of(tables), day(CUTOFF), Policy.default())
    for tier in TIERS:
        found = gate.permitted(tier).items
        assert found is not None
        assert found.column_names == ["item_id", "category", "price"]
        assert found["item_id"].to_pylist() == [row["item_id"] for row in ITEMS[1:]]
    empty = town([])
    assert (
        ConsentGate(empty, ledger_of(empty), day(CUTOFF), Policy.default()).permitted(Tier.CRM).items is None
    )


def test_the_manifest_says_which_columns_were_used(tmp_path: Path) -> None:
    bundle = trained(town(ITEMS), tmp_path, Tier.CRM, fitted_how(metadata_columns=()))
    facts = bundle.manifest.parameters["item_metadata"]
    assert facts["columns"] == ["category", "price"]
    sentence = next(line for line in main_parameters(bundle.manifest) if "items are like" in line.lower())
    assert "category, price" in sentence
    assert facts["digest"] in sentence
    plain = main_parameters(trained(town(ITEMS), tmp_path, Tier.CRM, fitted_how(0)).manifest)
    assert "What items are like does not count." in plain


# ---- Forgetting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", TIERS)
def test_who_is_forgotten_is_gone_from_what_is_borrowed(tier: Tier, tmp_path: Path) -> None:
    """Also where an item is left that nobody else had: it is new again."""
    own = [event("v0", "new shoe", 12), order("c0", "new shoe", 22)]
    tables, how = town(ITEMS, *own), fitted_how(9)
    before = trained(tables, tmp_path / "out", tier, how)
    gone = [("visitor", "v0"), ("customer", "c0")]

    (done,) = forget(tables, gone, tmp_path / "out", Restricted.beside(tmp_path / "out"),
                     tiers=[tier], show_progress=False).tiers  # fmt: skip

    assert done.how == "decremented"
    never = trained(town(ITEMS, without="0"), tmp_path / "never", tier, how)
    assert done.before == before.digest != done.after == never.digest
    assert "new shoe" in answer(never, "shoe 1")


def test_with_other_metadata_than_those_of_the_fit_it_is_fitted_again(tmp_path: Path) -> None:
    trained(town(ITEMS), tmp_path / "out", Tier.CRM, fitted_how(9))
    moved = [{**row, "category": "shoes"} if row["item_id"] == "new hat" else row for row in ITEMS]

    (done,) = forget(town(moved), [("customer", "c0")], tmp_path / "out",
                     Restricted.beside(tmp_path / "out"), show_progress=False).tiers  # fmt: skip

    assert (done.how, done.reason) == ("refitted", "the items' metadata are not those of the fit")
    never = trained(town(moved, without="0"), tmp_path / "never", Tier.CRM, fitted_how(9))
    assert done.after == never.digest


# ---- Configuration -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metadata_person = 5", "unknown key crm.metadata_person; did you mean 'metadata_persons'?"),
        ("metadata_persons = -1", "crm.metadata_persons is -1: it should be greater than or equal to 0"),
        ("metadata_persons = 2.5", "crm.metadata_persons is 2.5: it should be a valid integer"),
        ("metadata_neighbours = 0", "crm.metadata_neighbours is 0"),
        ("metadata_columns = ['sensitive']", "sensitive does not say what an item is like"),
        ("metadata_columns = ['a', 'a']", "a column is named twice"),
    ],
)
def test_wrong_settings_are_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "consentier.toml"
    path.write_text(f"[crm]\n{text}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert message in str(error.value)


def test_a_column_that_is_not_there_ends_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"names 'categroy'.*did you mean 'category'"):
        trained(town(ITEMS), tmp_path, Tier.CRM, fitted_how(metadata_columns=("categroy",)))
    assert not (tmp_path / "crm").exists()


def test_what_is_searched_depends_on_whether_there_are_metadata() -> None:
    for items, expected in ((ITEMS, {"metadata_persons", "metadata_neighbours"}), ([], set())):
        tables = town(items)
        permitted = ConsentGate(tables, ledger_of(tables), day(CUTOFF), Policy.default()).permitted(Tier.CRM)
        names = {line.name for line in space_of(facts_of(Tier.CRM, permitted), Config().crm)}
        assert {name for name in names if name.startswith("metadata")} == expected


def test_tuning_counts_new_items_as_places_of_a_list() -> None:
    """They are no targets of the validation period, and neither padding nor an error."""
    later = [order(f"c{person}", PEOPLE[person][0], 60) for person in PEOPLE]
    orders = [order(f"c{number}", SHOES[number % 3], 20 + number % 5) for number in range(20, 45)]
    orders += [order(f"c{number}", SHOES[(number + 1) % 3], 60) for number in range(20, 45)]
    tables = town(ITEMS, *later, *orders)
    more = [consent(f"c{number}", "crm", at=1) for number in range(20, 45)]
    records = pa.concat_tables([tables.consents, pa.Table.from_pylist(more, schema=tables.consents.schema)])
    tables = dataclasses.replace(tables, consents=records)
    permitted = ConsentGate(tables, ledger_of(tables), day(70), Policy.default()).permitted(Tier.CRM)
    data = validation_set(Tier.CRM, permitted, day(50), day(70), max_persons=None, seed=0)
    fitted, _ = TierRows(Tier.CRM, data.rows, 1).fit(fitted_how(9), threads=1)
    lists = data.lists_of(BatchScorer(fitted.arrays, fitted.scoring), 6, first=0, last=20, threads=1)
    assert (lists >= len(data.item_ids)).any(axis=1).all()
    assert ndcg(lists, [[0]] * 20, 6).max() <= 1


def test_one_configuration_after_the_other_borrows_as_it_says() -> None:
    tables = town(ITEMS)
    permitted = ConsentGate(tables, ledger_of(tables), day(CUTOFF), Policy.default()).permitted(Tier.CRM)
    rows = TierRows(Tier.CRM, permitted, 1)
    for how in (fitted_how(9), fitted_how(0), fitted_how(5), fitted_how(9)):
        again, _ = rows.fit(how, threads=1)
        anew, _ = TierRows(Tier.CRM, permitted, 1).fit(how, threads=1)
        assert again.facts == anew.facts
        assert all(again.arrays[name].tobytes() == array.tobytes() for name, array in anew.arrays.items())
