"""Eighth law, first half: a model that forgot somebody is, to the last byte, one that never knew them.

Whoever is forgotten, alone or with others, at once or one after another: the bundle that stands afterwards
has the digest of a bundle that was fitted on the same shop without them. It does not matter whether their
rows were still complete, whether the trainer had kept its statistics, or whether a run was killed halfway.
(`test_law_08_serving` has the second half: what answers in the meantime.)
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from breaking import Break, assert_breaks, breaks
from hypothesis import Phase, given, settings
from hypothesis import event as seen
from hypothesis import strategies as st
from shops import Row, consent, day, event, link, order, shop

from consentier.consent import Policy, Tier
from consentier.consent.policy import Switches
from consentier.errors import TrainingError
from consentier.features.tables import ShopTables
from consentier.models import gram_arithmetic, local_ridge
from consentier.models.bundle import open_bundle
from consentier.models.statistics import read_statistics
from consentier.serving.factor_scorer import FACTOR_ALGORITHMS
from consentier.training import counted as found_again
from consentier.training import decrement
from consentier.training import forget as forgetting
from consentier.training.config import Config, TierConfig, TrackingConfig, TrainingConfig
from consentier.training.forget import Subject, forget
from consentier.training.restricted import Restricted
from consentier.training.train import TRAINED_TIERS, train

CUTOFF = 100
VISITORS = ("v1", "v2", "v3", "v4", "v5", "late")
CUSTOMERS = ("c1", "c2", "c3", "c4")
ITEMS = tuple("abcdefghijkl")
CATALOGUE = (*ITEMS, "new 1", "new 2")


@dataclasses.dataclass(frozen=True)
class Case:
    """A shop, how a tier is fitted in it, whom it is to forget, and what goes wrong meanwhile."""

    tier: Tier
    events: tuple[Row, ...] = ()
    orders: tuple[Row, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    ages: tuple[int, ...] = (20, 30, 40, 50)
    steps: tuple[tuple[Subject, ...], ...] = ()
    algorithm: str = "local_ridge"
    min_persons: int = 1
    metadata_persons: int = 0
    alone_too: bool = False
    reused_id: str | None = None  # a customer of whom a record bears the id of one of c1's
    purged: bool = False  # some rows of those to forget are deleted before they are forgotten
    lost: bool = False  # the statistics of the fit are gone
    killed: bool = False  # after the first step the statistics of before it are found


def tables(case: Case, without: frozenset[Subject] = frozenset(), *, purged: bool = False) -> ShopTables:
    """The shop, without all that is about some subjects."""

    def stays(kind: str, subject_id: str) -> bool:
        return (kind, subject_id) not in without

    events = [row for row in case.events if stays("visitor", row["visitor_id"])]
    orders = [row for row in case.orders if stays("customer", row["customer_id"])]
    if purged:
        named = {subject_id for step in case.steps for _, subject_id in step}
        events = [row for row in events if row["visitor_id"] not in named or row["ts"] > day(45)]
        orders = [row for row in orders if row["customer_id"] not in named or row["ts"] > day(45)]
    shared = {
        visitor
        for visitor, customer in case.links
        if any(other != customer for device, other in case.links if device == visitor)
    }
    links = [
        link(visitor, customer, 60 if visitor == "late" else 5)
        for visitor, customer in dict.fromkeys(case.links)
        # A device that is known to be shared does not become one person's when the other is forgotten.
        if stays("visitor", visitor) and (stays("customer", customer) or visitor in shared)
    ]
    decisions = [
        consent(subject, "online", at=3 if subject != "late" else 50)
        | {"subject_kind": "visitor", "record_id": f"of {subject}"}
        for subject in VISITORS
        if stays("visitor", subject)
    ] + [
        consent(subject, "crm", at=3)
        | {"record_id": "of c1" if subject == case.reused_id else f"of {subject}"}
        for subject in CUSTOMERS
        # Nor is a record believed that was known to be contradicted.
        if stays("customer", subject) or (case.reused_id and subject in (case.reused_id, "c1"))
    ]
    people = [
        {"customer_id": customer, "age": float(age), "region": "north" if age < 35 else "south"}
        for customer, age in zip(CUSTOMERS, case.ages, strict=True)
        if stays("customer", customer)
    ]
    columns = {"customer_id": pa.string(), "age": pa.float64(), "region": pa.string()}
    return shop(
        events=events,
        orders=list({(row["customer_id"], row["order_id"], row["line_id"]): row for row in orders}.values()),
        customers=pa.Table.from_pylist(people, schema=pa.schema(columns)),
        identities=links,
        consents=decisions,
        items=[
            {"item_id": item, "category": "one other"[place % 3 :]} for place, item in enumerate(CATALOGUE)
        ],
    )


def trained(case: Case, shop_tables: ShopTables, out: Path) -> None:
    """Train one tier; nothing stands at `out` where it has nothing to be trained on."""
    fitted_how = TierConfig(
        algorithm=case.algorithm,  # type: ignore[arg-type]
        neighbours=2,
        regularisation=1.0,
        repeat_weight=0.5,
        attribute_weight=1.0,
        attribute_min_persons=1,
        metadata_persons=case.metadata_persons,
        metadata_neighbours=4,
        factors=3,
        iterations=2,
    )
    tiers = dict.fromkeys(("online", "crm", "fused"), fitted_how)
    if case.algorithm not in FACTOR_ALGORITHMS:
        tiers["session"] = fitted_how
    config = Config(
        training=TrainingConfig(cutoff=day(CUTOFF), threads=1, min_persons=case.min_persons, seed=7),
        tracking=TrackingConfig(enabled=False),
        **tiers,
    )
    arguments: dict[str, Any] = {"tiers": [case.tier], "policy": policy(case), "show_progress": False}
    try:
        train(shop_tables, config, out, restricted=Restricted.beside(out), **arguments)
    except TrainingError:
        assert not (out / case.tier).exists()


def policy(case: Case) -> Policy:
    """The policy that the tier is fitted under."""
    switches = Switches(include_single_source_in_fused=case.alone_too)
    return dataclasses.replace(Policy.default(), switches=switches)


def digest(out: Path, tier: Tier) -> str | None:
    """What stands at a tier's place; None for nothing."""
    return open_bundle(out / tier).digest if (out / tier).exists() else None


def counted(out: Path, tier: Tier) -> list[Any]:
    """All that the trainer kept, but for the fingerprints, which are keyed anew in each fit."""
    kept = read_statistics(Restricted.beside(out).statistics(tier))
    statistics = kept.statistics
    return [
        kept.bundle_digest,
        statistics.items.ids(np.arange(len(statistics.items))),
        {name: counts.tolist() for name, counts in statistics.counts.items()},
        None if statistics.gram is None else statistics.gram.digest(),
        statistics.attributes,
        len(statistics.fingerprints),
        statistics.devices.size,
    ]


def check_forgetting_equals_never_having_known(case: Case) -> list[str]:
    """Forget step by step; compare bundle and statistics with those of a fit without all of them."""
    how = []
    with tempfile.TemporaryDirectory() as folder:
        out, anew = Path(folder) / "bundles", Path(folder) / "anew"
        trained(case, tables(case), out)
        kept, before = Restricted.beside(out).statistics(case.tier), Path(folder) / "before"
        if kept.exists():
            shutil.copytree(kept, before)
        if case.lost:
            shutil.rmtree(kept, ignore_errors=True)
        gone: frozenset[Subject] = frozenset()
        for step in case.steps:
            if digest(out, case.tier) is None:
                break
            now = tables(case, gone, purged=case.purged)
            (done,) = forget(
                now, step, out, Restricted.beside(out), policy=policy(case), show_progress=False
            ).tiers
            how.append(f"{done.tier}: {done.how}")
            gone |= frozenset(step)
            if case.killed and kept.exists() and before.exists():
                shutil.rmtree(kept)
                shutil.copytree(before, kept)
                shutil.rmtree(before)
            assert done.after == digest(out, case.tier)
        # Where nothing was left after a step, later ones name persons whose rows may be gone already.
        trained(case, tables(case, gone, purged=case.purged), anew)
        assert digest(out, case.tier) == digest(anew, case.tier)
        if digest(out, case.tier) is not None and not case.lost and not case.killed:
            assert counted(out, case.tier) == counted(anew, case.tier)
    return how


_visitors, _customers = st.sampled_from(VISITORS), st.sampled_from(CUSTOMERS)
_items, _days = st.sampled_from(ITEMS), st.integers(6, CUTOFF)
_subjects = st.tuples(st.just("visitor"), _visitors) | st.tuples(st.just("customer"), _customers)
cases = st.builds(
    Case,
    tier=st.sampled_from(TRAINED_TIERS),
    events=st.lists(
        st.builds(
            event,
            _visitors,
            _items,
            _days,
            kind=st.sampled_from(("view", "cart")),
            session=st.sampled_from("st"),
        ),
        min_size=20,
        max_size=50,
    ).map(tuple),
    orders=st.lists(st.builds(order, _customers, _items, _days), min_size=12, max_size=30).map(tuple),
    links=st.lists(st.tuples(_visitors, _customers), max_size=6).map(tuple),
    ages=st.just((20, 20, 20, 20)) | st.tuples(*[st.integers(20, 50)] * 4),
    steps=st.lists(st.lists(_subjects, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple),
    algorithm=st.sampled_from(
        ("local_ridge", "local_ridge", "local_ridge", "cosine", "tfidf", "als", "spectral")
    ),
    min_persons=st.sampled_from((1, 1, 2, 3)),
    metadata_persons=st.sampled_from((0, 0, 3, 6)),
    alone_too=st.booleans(),
    reused_id=st.sampled_from((None, None, None, "c2")),
    purged=st.sampled_from((False, False, False, True)),
    lost=st.sampled_from((False, False, False, False, True)),
    killed=st.sampled_from((False, False, False, False, True)),
)


@settings(max_examples=8, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking takes minutes
@given(cases)
def test_a_model_that_forgot_somebody_is_one_that_never_knew_them(case: Case) -> None:
    for how in check_forgetting_equals_never_having_known(case):
        seen(how)


# ---- One shop in which everybody shares items with others --------------------------------------------------

EVENTS = tuple(
    event(visitor, ITEMS[(5 * number + step * step) % 9], 10 + 8 * step, session="st"[step % 2])
    for number, visitor in enumerate(VISITORS)
    for step in range(7)
)
ORDERS = tuple(
    order(customer, ITEMS[(number + 3 * step) % 10], 20 + 9 * step)
    for number, customer in enumerate(CUSTOMERS)
    for step in range(6)
)
USUAL = Case(
    Tier.FUSED,
    EVENTS,
    ORDERS,
    links=(("v1", "c1"), ("late", "c1"), ("v2", "c2"), ("v3", "c3"), ("v4", "c4")),
    ages=(20, 21, 45, 46),
)
SUBTRACTED: dict[Tier, Subject] = {
    Tier.SESSION: ("visitor", "v1"),
    Tier.ONLINE: ("visitor", "v2"),
    Tier.CRM: ("customer", "c3"),
    Tier.FUSED: ("visitor", "v1"),
    Tier.POPULAR: ("customer", "c1"),
}
"""Whose leaving no other history bears the marks of."""


@pytest.mark.parametrize(
    ("tier", "algorithm"),
    [*((tier, "local_ridge") for tier in TRAINED_TIERS), (Tier.SESSION, "cosine"), (Tier.FUSED, "cosine")],
)
def test_it_is_done_by_subtraction_where_nothing_stands_against_it(tier: Tier, algorithm: str) -> None:
    """So that equal digests are not those of one fit and the same fit once more."""
    steps = ((SUBTRACTED[tier],),)
    case = dataclasses.replace(USUAL, tier=tier, algorithm=algorithm, ages=(20, 20, 20, 20), steps=steps)
    assert check_forgetting_equals_never_having_known(case) == [f"{tier}: decremented"]


@pytest.mark.parametrize("tier", sorted(set(TRAINED_TIERS) - {Tier.POPULAR}))
def test_items_that_borrow_by_their_metadata_do_not_stand_against_it(tier: Tier) -> None:
    steps = ((SUBTRACTED[tier],),)
    case = dataclasses.replace(USUAL, tier=tier, metadata_persons=5, ages=(20, 20, 20, 20), steps=steps)
    assert check_forgetting_equals_never_having_known(case) == [f"{tier}: decremented"]


@pytest.mark.parametrize("algorithm", ["als", "bpr", "spectral"])
@pytest.mark.parametrize("tier", [Tier.ONLINE, Tier.CRM, Tier.FUSED])
def test_factor_models_are_fitted_again_with_the_seed_that_they_had(tier: Tier, algorithm: str) -> None:
    """In training it is not the default one."""
    case = dataclasses.replace(USUAL, tier=tier, algorithm=algorithm, steps=((SUBTRACTED[tier],),))
    assert check_forgetting_equals_never_having_known(case) == [f"{tier}: refitted"]


def usual(tier: Tier, *steps: tuple[Subject, ...], **changes: Any) -> Case:
    """That shop, and whom to forget."""
    return dataclasses.replace(USUAL, tier=tier, steps=steps, **changes)


V1: tuple[Subject, ...] = (("visitor", "v1"),)
C1: tuple[Subject, ...] = (("customer", "c1"),)
SHARED = EVENTS + tuple(event(visitor, item, 9) for visitor in VISITORS for item in ITEMS)
SPARSE = tuple(
    event(visitor, item, 10 + number, session="s")
    for number, (visitor, item) in enumerate(
        [
            ("v1", "a"),
            ("v1", "b"),
            ("v2", "b"),
            ("v2", "c"),
            ("v3", "c"),
            ("v3", "d"),
            ("v4", "d"),
            ("v4", "e"),
        ]
        + [("v5", item) for item in "fghijkl"]
    )
)


@breaks(
    Break(
        "one pair of items stays counted",
        gram_arithmetic.subtract,
        "data[positions] -= removed.gram.data",
        "data[positions[1:]] -= removed.gram.data[1:]",
        usual(Tier.ONLINE, V1),
    ),
    Break(
        "the persons behind a pair stay counted",
        gram_arithmetic.subtract,
        "_less(statistics.persons, positions, removed.persons)",
        "statistics.persons.copy()",
        usual(
            Tier.ONLINE,
            V1,
            min_persons=2,
            events=SHARED,
        ),
    ),
    Break(
        "items whose neighbours changed are not solved again",
        local_ridge.touched_targets,
        "touched[open_ones] = choosing_targets",
        "touched[open_ones] | choosing_targets",
        usual(Tier.ONLINE, V1, events=SPARSE),
    ),
    Break(
        "a customer's own history does not come back without the forgotten device",
        decrement._exchanged_gram,
        "in parts:",
        "in parts[:1]:",
        usual(Tier.FUSED, V1, ages=(20, 20, 20, 20)),
    ),
    Break(
        "items keep what they borrowed from counts of before",
        decrement.exchanged,
        "published_counts(gram, len(new.shown))",
        "published_counts(statistics.gram, len(new.shown))",
        usual(Tier.ONLINE, V1, events=SHARED, metadata_persons=9),
    ),
    Break(
        "how the sessions of who left went on stays counted",
        decrement._exchanged_repeats,
        "counted.without(removed)",
        "counted",
        usual(Tier.SESSION, V1),
    ),
    Break(
        "the direction of who left stays counted",
        gram_arithmetic.subtract,
        "_less(statistics.forward, positions, removed.forward)",
        "statistics.forward.copy()",
        usual(Tier.SESSION, V1),
    ),
    Break(
        "items that too few others have stay in their histories",
        gram_arithmetic.select_inputs,
        "if statistics.counts[~kept].any():",
        "if False:",
        usual(Tier.SESSION, V1, min_persons=2),
    ),
    Break(
        "groups of attributes stay as the forgotten person made them",
        decrement._remaining_attributes,
        "if learnt != encoder:",
        "if False:",
        usual(Tier.CRM, (("customer", "c4"),)),
    ),
    Break(
        "rows are subtracted although they are not those that were counted",
        forgetting._exchange,
        "not (counted.matches(left) and counted.matches(known))",
        "False",
        usual(Tier.ONLINE, V1, purged=True, events=SHARED),
    ),
    Break(
        "statistics are used that belong to another bundle",
        found_again.statistics_of,
        "if kept.bundle_digest != bundle.digest:",
        "if False:",
        usual(Tier.ONLINE, V1, (("visitor", "v2"),), killed=True),
    ),
    Break(
        "a shared device becomes one person's when the other is forgotten",
        forgetting.without_subjects,
        'pc.is_in(links["visitor_id"], distinct(shared))',
        "pc.invert(leaving)",
        usual(Tier.FUSED, C1, links=(("v1", "c1"), ("v1", "c2"), ("v2", "c2")), lost=True),
    ),
    Break(
        "a contradicted record is believed when the contradiction is forgotten",
        forgetting.without_subjects,
        'pc.is_in(records["record_id"], distinct(others_ids))',
        "pc.invert(forgotten)",
        usual(Tier.CRM, C1, reused_id="c2", lost=True),
    ),
)
def test_incomplete_forgetting_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_forgetting_equals_never_having_known, cases, broken)
