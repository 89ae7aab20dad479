"""Eighth law, training on: a bundle brought to a later cut-off is, to the last byte, one trained anew.

In between people act, come, are linked, withdraw and lapse, rows arrive late, are corrected or are deleted.
Whether rows were exchanged in the kept statistics or the tier was fitted from scratch, the bundle that stands
has the digest of a training run on the tables as they are now: nobody's old rows linger in it.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

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
from consentier.models import local_ridge
from consentier.models.bundle import open_bundle
from consentier.models.statistics import read_statistics
from consentier.serving.factor_scorer import FACTOR_ALGORITHMS
from consentier.training import counted as found_again
from consentier.training import retrain as retraining
from consentier.training.config import Config, TierConfig, TrackingConfig, TrainingConfig
from consentier.training.restricted import Restricted
from consentier.training.retrain import retrain
from consentier.training.train import TRAINED_TIERS, train

FIRST = 100
VISITORS = ("v1", "v2", "v3", "v4", "v5", "late", "lapsing", "coming")
CUSTOMERS = ("c1", "c2", "c3", "c4", "c5", "c6")
ITEMS = tuple("abcdefghijkl")
CATALOGUE = (*ITEMS, "new 1", "new 2")


@dataclasses.dataclass(frozen=True)
class Step:
    """What happens until the next training run."""

    cutoff: int = 110
    events: tuple[Row, ...] = ()
    orders: tuple[Row, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    withdrawn: tuple[str, ...] = ()
    purged: int | None = None  # rows before this day are deleted
    ages: tuple[int, ...] | None = None  # the customers' attributes are others now
    regularisation: float = 1.0
    recategorised: bool = False  # an item's metadata are others now


@dataclasses.dataclass(frozen=True)
class Case:
    """A shop, how a tier is fitted in it, and what happens to it."""

    tier: Tier
    events: tuple[Row, ...] = ()
    orders: tuple[Row, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    ages: tuple[int, ...] = (20,) * 6
    steps: tuple[Step, ...] = ()
    algorithm: str = "local_ridge"
    neighbours: int = 2
    min_persons: int = 1
    metadata_persons: int = 0
    session_half_life: float = 0.0
    alone_too: bool = False
    killed: bool = False  # after the first step the statistics of before it are found


def tables(case: Case, steps: int) -> ShopTables:
    """The shop after so many steps."""
    done = case.steps[:steps]
    purged = max((step.purged for step in done if step.purged is not None), default=0)
    ages = next((step.ages for step in reversed(done) if step.ages is not None), case.ages)
    events = [*case.events, *(row for step in done for row in step.events)]
    orders = [*case.orders, *(row for step in done for row in step.orders)]
    links = [*case.links, *(pair for step in done for pair in step.links)]
    decisions = [
        consent(
            subject,
            "online",
            at={"late": 50, "coming": 102}.get(subject, 3),
            until=105 if subject == "lapsing" else None,
        )
        | {"subject_kind": "visitor"}
        for subject in VISITORS
    ] + [consent(subject, "crm", at=102 if subject == "c6" else 3) for subject in CUSTOMERS]
    decisions += [
        consent(subject, "crm" if subject in CUSTOMERS else "online", "withdrawn", step.cutoff - 1)
        | {"subject_kind": "customer" if subject in CUSTOMERS else "visitor"}
        for step in done
        for subject in dict.fromkeys(step.withdrawn)
    ]
    people = [
        {"customer_id": customer, "age": float(age), "region": "north" if age < 35 else "south"}
        for customer, age in zip(CUSTOMERS, ages, strict=True)
    ]
    columns = {"customer_id": pa.string(), "age": pa.float64(), "region": pa.string()}
    moved = any(step.recategorised for step in done)
    orders = [row for row in orders if row["ts"] >= day(purged)]
    return shop(
        events=[row for row in events if row["ts"] >= day(purged)],
        orders=list({(row["customer_id"], row["order_id"], row["line_id"]): row for row in orders}.values()),
        customers=pa.Table.from_pylist(people, schema=pa.schema(columns)),
        identities=[
            link(visitor, customer, 60 if visitor == "late" else 103 if visitor == "coming" else 5)
            for visitor, customer in dict.fromkeys(links)
        ],
        consents=list({row["record_id"]: row for row in decisions}.values()),
        items=[
            {"item_id": item, "category": "one other"[(place + moved * (item == "a")) % 3 :]}
            for place, item in enumerate(CATALOGUE)
        ],
    )


def configuration(case: Case, steps: int) -> Config:
    """How the tier is fitted after so many steps."""
    how = TierConfig(
        algorithm=case.algorithm,  # type: ignore[arg-type]
        neighbours=case.neighbours,
        regularisation=case.steps[steps - 1].regularisation if steps else 1.0,
        repeat_weight=0.5,
        attribute_weight=1.0,
        attribute_min_persons=1,
        metadata_persons=case.metadata_persons,
        metadata_neighbours=4,
        session_half_life=case.session_half_life,
        factors=3,
        iterations=2,
    )
    tiers = dict.fromkeys(("online", "crm", "fused"), how)
    if case.algorithm not in FACTOR_ALGORITHMS:
        tiers["session"] = how
    cutoff = day(case.steps[steps - 1].cutoff if steps else FIRST)
    return Config(
        training=TrainingConfig(cutoff=cutoff, threads=1, min_persons=case.min_persons, seed=7),
        tracking=TrackingConfig(enabled=False),
        **tiers,
    )


def policy(case: Case) -> Policy:
    """The policy that the tier is fitted under."""
    switches = Switches(include_single_source_in_fused=case.alone_too)
    return dataclasses.replace(Policy.default(), switches=switches)


def trained(case: Case, steps: int, out: Path) -> None:
    """Train one tier from scratch; nothing stands at `out` where it has nothing to be trained on."""
    arguments: dict[str, Any] = {"tiers": [case.tier], "policy": policy(case), "show_progress": False}
    try:
        train(
            tables(case, steps),
            configuration(case, steps),
            out,
            restricted=Restricted.beside(out),
            **arguments,
        )
    except TrainingError:
        assert not (out / case.tier).exists()


def trained_on(case: Case, steps: int, out: Path) -> str:
    """Bring the tier to the cut-off of a step; say how it went."""
    # In so small a shop a fit is always the quicker way.
    with mock.patch.object(retraining, "require_less_work"):
        try:
            (done,) = retrain(
                tables(case, steps), configuration(case, steps), out, Restricted.beside(out),
                tiers=[case.tier], policy=policy(case), show_progress=False,
            ).tiers  # fmt: skip
        except TrainingError:
            return "removed"
    assert done.after == digest(out, case.tier)
    return done.how


def digest(out: Path, tier: Tier) -> str | None:
    """What stands at a tier's place; None for nothing."""
    return open_bundle(out / tier).digest if (out / tier).exists() else None


def counted(out: Path, tier: Tier) -> list[Any]:
    """All that the trainer kept, but for the fingerprints, whose key differs."""
    kept = read_statistics(Restricted.beside(out).statistics(tier))
    statistics = kept.statistics
    return [
        kept.bundle_digest,
        kept.facts,
        statistics.items.ids(np.arange(len(statistics.items))),
        {name: counts.tolist() for name, counts in statistics.counts.items()},
        None if statistics.gram is None else statistics.gram.digest(),
        statistics.attributes,
        len(statistics.fingerprints),
        statistics.devices.size,
        None if statistics.repeats is None else statistics.repeats.events.tolist(),
        None if statistics.repeats is None else statistics.repeats.persons.tolist(),
    ]


def check_training_on_equals_training_from_scratch(case: Case) -> list[str]:
    """Train on, step by step; compare bundle and statistics with those of a run from scratch."""
    how = []
    with tempfile.TemporaryDirectory() as folder:
        out, before = Path(folder) / "bundles", Path(folder) / "before"
        trained(case, 0, out)
        kept = Restricted.beside(out).statistics(case.tier)
        for steps in range(1, len(case.steps) + 1):
            if case.killed and steps == 1 and kept.exists():
                shutil.copytree(kept, before)
            how.append(f"{case.tier}: {trained_on(case, steps, out)}")
            anew = Path(folder) / f"anew-{steps}"
            trained(case, steps, anew)
            assert digest(out, case.tier) == digest(anew, case.tier)
            if digest(out, case.tier) is None:
                continue
            assert counted(out, case.tier) == counted(anew, case.tier)
            if steps == len(case.steps):
                assert trained_on(case, steps, out) == "unchanged"
            if before.exists():
                shutil.rmtree(kept)
                shutil.copytree(before, kept)
                shutil.rmtree(before)
    return how


_visitors, _customers = st.sampled_from(VISITORS), st.sampled_from(CUSTOMERS)
_ages = st.tuples(*[st.integers(20, 50)] * 6)
_pairs = st.tuples(_visitors, _customers)


def _events(least: int, most: int, days: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[Row, ...]]:
    kinds = st.sampled_from(("view", "cart"))
    rows = st.builds(
        event, _visitors, st.sampled_from(ITEMS), days, kind=kinds, session=st.sampled_from("st")
    )
    return st.lists(rows, min_size=least, max_size=most).map(tuple)


def _orders(least: int, most: int, days: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[Row, ...]]:
    rows = st.builds(order, _customers, st.sampled_from(ITEMS), days)
    return st.lists(rows, min_size=least, max_size=most).map(tuple)


steps = st.builds(
    Step,
    cutoff=st.sampled_from((100, 104, 110, 110, 130)),
    events=_events(0, 5, st.integers(95, 125)),
    orders=_orders(0, 4, st.integers(95, 125)),
    links=st.lists(_pairs, max_size=2).map(tuple),
    withdrawn=st.lists(_visitors | _customers, max_size=2).map(tuple),
    purged=st.sampled_from((*[None] * 9, 30)),
    ages=st.none() | st.none() | _ages,
    regularisation=st.sampled_from((*[1.0] * 9, 2.0)),
    recategorised=st.sampled_from((False, False, True)),
)
cases = st.builds(
    Case,
    tier=st.sampled_from(TRAINED_TIERS),
    events=_events(25, 50, st.integers(6, FIRST)),
    orders=_orders(15, 30, st.integers(6, FIRST)),
    links=st.lists(_pairs, min_size=2, max_size=6).map(tuple),
    ages=st.just((20,) * 6) | _ages,
    steps=st.lists(steps, min_size=1, max_size=3).map(tuple),
    algorithm=st.sampled_from((*["local_ridge"] * 6, "cosine", "cosine", "tfidf", "als")),
    neighbours=st.sampled_from((2, 2, 4, 12)),
    min_persons=st.sampled_from((1, 1, 2, 3)),
    metadata_persons=st.sampled_from((0, 0, 3)),
    session_half_life=st.sampled_from((0.0, 0.0, 0.0, 20.0)),
    alone_too=st.booleans(),
    killed=st.sampled_from((*[False] * 5, True)),
)


@settings(max_examples=8, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking takes minutes
@given(cases)
def test_training_on_equals_training_from_scratch(case: Case) -> None:
    for how in check_training_on_equals_training_from_scratch(case):
        seen(how)


# ---- One shop in which everybody shares items with others --------------------------------------------------

EVENTS = tuple(
    event(visitor, ITEMS[(5 * number + step * step) % 9], 10 + 8 * step, session="st"[step % 2])
    for number, visitor in enumerate(VISITORS[:7])
    for step in range(7)
)
ORDERS = tuple(
    order(customer, ITEMS[(number + 3 * step) % 10], 20 + 9 * step)
    for number, customer in enumerate(CUSTOMERS[:5])
    for step in range(6)
)
USUAL = Case(
    Tier.FUSED,
    EVENTS,
    ORDERS,
    links=(("v1", "c1"), ("late", "c1"), ("v2", "c2"), ("v3", "c3"), ("v4", "c4"), ("v5", "c5")),
    ages=(20, 21, 45, 46, 22, 30),
)
LATER = Step(
    110,
    events=(
        event("v1", "k", 104, session="u"),
        event("v1", "a", 105, session="u"),
        event("v2", "l", 104, session="u"),
        event("coming", "b", 103),
        event("coming", "k", 104),
    ),
    orders=(order("c3", "k", 106), order("c1", "l", 107), order("c1", "b", 108)),
)

SHARED = tuple(
    event(visitor, item, 9) for visitor in VISITORS[:5] for item in ITEMS if (visitor, item) != ("v2", "l")
)
"""What everybody did, but for one who did one thing less."""
CHAIN = tuple(
    event(visitor, item, 10 + number)
    for number, (visitor, items) in enumerate([("v1", "ab"), ("v2", "bc"), ("v3", "cd"), ("v4", "de")])
    for item in items
)
"""Few items, of which not all go together."""


def usual(tier: Tier, *later: Step, **changes: Any) -> Case:
    """That shop, and what happens to it."""
    return dataclasses.replace(USUAL, tier=tier, steps=later or (LATER,), **changes)


@pytest.mark.parametrize(
    ("tier", "changes"),
    [
        *((tier, {}) for tier in TRAINED_TIERS if tier is not Tier.POPULAR),
        *((tier, {"algorithm": "cosine"}) for tier in (Tier.SESSION, Tier.FUSED)),
        *((tier, {"min_persons": 3}) for tier in (Tier.SESSION, Tier.ONLINE, Tier.CRM)),
        *((tier, {"metadata_persons": 3}) for tier in (Tier.ONLINE, Tier.CRM)),
        (Tier.ONLINE, {"neighbours": 12}),
    ],
)
def test_rows_are_exchanged_where_nothing_stands_against_it(tier: Tier, changes: dict[str, Any]) -> None:
    """So that equal digests are not those of one fit and the same fit once more."""
    case = usual(tier, **changes)
    assert check_training_on_equals_training_from_scratch(case) == [f"{tier}: incremental"]


@pytest.mark.parametrize(
    ("tier", "later"),
    [
        (Tier.ONLINE, Step(110, withdrawn=("v2",))),
        (Tier.SESSION, Step(110)),  # one visitor's permission lapsed
        (Tier.CRM, Step(110, withdrawn=("c5",), ages=None)),
        (Tier.FUSED, Step(110, withdrawn=("v3",))),
        (Tier.FUSED, Step(110, LATER.events, LATER.orders, links=(("coming", "c2"),))),
        (Tier.ONLINE, Step(90)),
        (Tier.ONLINE, Step(104, LATER.events, recategorised=True)),
    ],
)
def test_whoever_left_or_came_is_exchanged_too(tier: Tier, later: Step) -> None:
    case = usual(tier, later)
    assert check_training_on_equals_training_from_scratch(case) == [f"{tier}: incremental"]


@pytest.mark.parametrize(
    ("tier", "changes", "later"),
    [
        (Tier.ONLINE, {}, dataclasses.replace(LATER, regularisation=2.0)),
        (Tier.ONLINE, {}, dataclasses.replace(LATER, purged=30)),
        (Tier.ONLINE, {}, Step(110, (event("v2", "l", 90),))),  # it came in late
        (Tier.CRM, {}, dataclasses.replace(LATER, ages=(20, 21, 45, 46, 50, 30))),
        (Tier.SESSION, {"session_half_life": 20.0}, LATER),
        (Tier.CRM, {"algorithm": "als"}, LATER),
        (Tier.CRM, {"algorithm": "tfidf"}, LATER),
        (Tier.POPULAR, {}, LATER),
    ],
)
def test_where_it_would_not_be_exact_the_tier_is_fitted(
    tier: Tier, changes: dict[str, Any], later: Step
) -> None:
    case = usual(tier, later, **changes)
    assert check_training_on_equals_training_from_scratch(case) == [f"{tier}: refitted"]


@breaks(
    Break(
        "who withdrew stays counted",
        retraining._counted_rows,
        "[compared.named(compared.known & ~compared.same), *gone]",
        "[compared.named(compared.known & ~compared.same)]",
        usual(Tier.ONLINE, Step(110, withdrawn=("v2",))),
    ),
    Break(
        "rows are subtracted although they are not those that were counted",
        retraining._counted_rows,
        "not counted.matches(found)",
        "False",
        usual(Tier.ONLINE, Step(110, (event("v2", "l", 90),)), events=SHARED),
    ),
    Break(
        "whose rows changed is not looked at",
        retraining._Comparison.of.__func__,
        "counted.rows[places] == now.rows[known]",
        "True",
        usual(Tier.ONLINE),
    ),
    Break(
        "the histories of others stay as they were when an item comes to be published",
        retraining._persons_with,
        "pa.array(items, pa.string())",
        "pa.array([], pa.string())",
        usual(
            Tier.ONLINE,
            Step(104, (event("coming", "c", 103), event("coming", "a", 103))),
            min_persons=3,
        ),
    ),
    Break(
        "attributes keep their inputs when limits move",
        retraining._persons_moved,
        "if attributes is None or old == new:",
        "if True:",
        usual(Tier.CRM, Step(110, withdrawn=("c5",)), ages=(20, 20, 30, 40, 10, 60)),
    ),
    Break(
        "items whose neighbours changed are not solved again",
        local_ridge.touched_targets,
        "touched[open_ones] = choosing_targets",
        "touched[open_ones] | choosing_targets",
        usual(Tier.ONLINE),
    ),
    Break(
        "weights of before are kept although all inputs were taken then",
        local_ridge.touched_targets,
        "fewest = min(np.count_nonzero(statistics.counts) for statistics in (before, after))",
        "fewest = np.count_nonzero(after.counts)",
        usual(
            Tier.ONLINE,
            Step(110, (event("coming", "k", 104), event("coming", "l", 105))),
            events=CHAIN,
            neighbours=4,
        ),
    ),
    Break(
        "what borrows keeps the metadata of before",
        retraining.require_exchangeable,
        'and metadata == bundle.manifest.parameters.get("item_metadata")',
        "",
        usual(Tier.ONLINE, Step(100, recategorised=True), metadata_persons=3),
    ),
    Break(
        "another configuration goes unnoticed",
        retraining.require_same_parameters,
        "if others:",
        "if False:",
        usual(Tier.ONLINE, dataclasses.replace(LATER, regularisation=2.0)),
    ),
    Break(
        "sessions keep the age that they had",
        retraining.require_exchangeable,
        "config.session_half_life and",
        "False and",
        usual(Tier.SESSION, session_half_life=20.0),
    ),
    Break(
        "statistics are used that belong to another bundle",
        found_again.statistics_of,
        "if kept.bundle_digest != bundle.digest:",
        "if False:",
        usual(Tier.ONLINE, Step(110, (event("v1", "c", 104),)), Step(100), killed=True),
    ),
)
def test_training_on_carelessly_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_training_on_equals_training_from_scratch, cases, broken)
