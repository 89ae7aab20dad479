"""The ninth law: a bundle holds no data of any one person.

We promise: in no byte of a bundle stands who somebody is, what somebody did, or whom it was fitted on; a shop
with the same histories under other names gives the same bundle, to the byte. Histories are inputs of each
request.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from breaking import Break, assert_breaks, breaks
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import consent, day, event, link, order, shop

from consentier.features.tables import ShopTables
from consentier.models.bundle import open_bundle
from consentier.training import fit as fit_module
from consentier.training.bundles import TRAINED_TIERS, train_bundles
from consentier.training.config import Config
from consentier.training.restricted import Restricted
from consentier.training.train import train

CONFIG = Config.model_validate(
    {
        "tracking": {"enabled": False},
        "training": {"threads": 1, "cutoff": day(30)},
        # Of both families of models.
        "online": {"algorithm": "als", "factors": 3, "iterations": 2},
    }
)

History = tuple[tuple[int, ...], tuple[int, ...]]

histories = st.lists(
    st.tuples(
        st.lists(st.integers(0, 5), min_size=2, max_size=4).map(tuple),
        st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
    ),
    min_size=2,
    max_size=4,
)
"""Per person: what was viewed, and what was ordered."""


def named(people: list[History], name: str) -> ShopTables:
    """The shop of these people, whose names all hold a word that is found again wherever it gets to."""
    visitors = [f"v-{name}-{number}" for number in range(len(people))]
    customers = [f"c-{name}-{number}" for number in range(len(people))]
    return shop(
        events=[
            event(visitor, f"item-{item}", 2 + place / 100, session=f"s-{visitor}")
            for visitor, (viewed, _) in zip(visitors, people, strict=True)
            for place, item in enumerate(viewed)
        ],
        orders=[
            order(customer, f"item-{item}", 3 + place / 100)
            for customer, (_, ordered) in zip(customers, people, strict=True)
            for place, item in enumerate(ordered)
        ],
        consents=[consent(visitor, "online") for visitor in visitors]
        + [consent(customer, "crm") for customer in customers],
        identities=[link(visitor, customer) for visitor, customer in zip(visitors, customers, strict=True)],
    )


def fitted(people: list[History], name: str, folder: Path) -> dict[str, str]:
    """Train all tiers with lineage and statistics beside them; the digests of the bundles."""
    out = folder / name
    restricted = Restricted.beside(out)
    train(named(people, name), CONFIG, out, tiers=TRAINED_TIERS, restricted=restricted, show_progress=False)
    return {tier.value: open_bundle(out / tier).digest for tier in TRAINED_TIERS}


def check(people: list[History]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert fitted(people, "marker", folder) == fitted(people, "anybody", folder), "names change a bundle"
        for path in (folder / "marker").rglob("*"):
            assert not path.is_file() or b"marker" not in path.read_bytes(), f"{path.name} names a person"


@settings(max_examples=4)
@given(histories)
def test_names_are_in_no_bundle_and_change_none(people: list[History]) -> None:
    check(people)


PEOPLE: list[History] = [((0, 1, 2), (1,)), ((1, 2), (0, 3)), ((0, 2), (2, 3))]


@breaks(
    Break(
        "the side-car lists whom the bundle was fitted on",
        train_bundles,
        "run_facts(config, ledger, fit.funnel, fit.rows_digest, fit.seconds)",
        '{"who": fit.subjects["subject_id"].to_pylist()}',
        PEOPLE,
    ),
    Break(
        "the scoring settings hold a list of members",
        fit_module.TierRows.fit,
        "factor_tier(self.tier, config, index, model, model.folding, encoder)",
        "FittedTier(len(index), factor_arrays(index, model), {**_scoring(self.tier, config, encoder), "
        '"fold_in": model.folding.to_json(), "who": sorted(self.published.rows["person"].to_pylist())})',
        PEOPLE,
    ),
)
def test_the_guard_would_notice(broken: Break) -> None:
    assert_breaks(check, histories, broken)
