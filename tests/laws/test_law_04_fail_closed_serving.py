"""Fourth law, when a request is answered: whatever fails lowers the answer and never raises it.

A model that is missing, altered or failing, a store that returns nonsense, a ledger that cannot be reached:
the customer gets an answer of a lower tier, or none, and the answer says why. No fault of data or stores
reaches the shop's own code. Wrong arguments do: they are mistakes of the programmer.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from breaking import Break, assert_breaks, breaks
from engines import CATALOGUE, ITEMS, LINEAR, bundles, engine, write_factors, write_linear, write_popular
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import (
    Channel,
    ConsentRecord,
    Ledger,
    Link,
    Permission,
    Policy,
    Resolution,
    Source,
    Tier,
    sources_of,
)
from consentier.errors import BundleMissing, StoreTimeout
from consentier.serving import Answer, Event, Profiles, Recommender, Request
from consentier.serving.guarded_ledger import GuardedLedger
from consentier.serving.patience import Guard

AT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
LONG_AGO = AT - dt.timedelta(days=99)
BOTH = Permission.ONLINE | Permission.CRM

VISITORS = ("agreed", "refused", "unknown")
CUSTOMERS = ("agreed", "refused", "unknown")


def records() -> Ledger:
    """Who agreed and who refused; visitor and customer ``agreed`` are one person."""
    ledger = Ledger(
        ConsentRecord(f"{kind} {state}", subject, kind, permission, state, LONG_AGO, LONG_AGO)  # type: ignore[arg-type]
        for kind, permission in (("visitor", "online"), ("customer", "crm"))
        for subject, state in (("agreed", "granted"), ("refused", "denied"))
    )
    ledger.append_links([Link("agreed", "agreed", LONG_AGO)])
    return ledger


HISTORY = tuple(Event(item, ts=LONG_AGO) for item in ITEMS[:4])
STORES = Profiles(
    dict.fromkeys(VISITORS, HISTORY),
    dict.fromkeys(CUSTOMERS, HISTORY),
    {name: {"region": "north", "age": 33} for name in CUSTOMERS},
)


class Raises:
    """Fails whatever it is asked."""

    def __init__(self, error: type[Exception] = ConnectionError) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._fail

    def _fail(self, *args: Any, **options: Any) -> Any:
        raise self.error("visitor agreed bought pills")


class Late(Raises):
    """Gives a look-up up by itself, in time."""

    answers_within = 0.01

    def __init__(self) -> None:
        super().__init__(StoreTimeout)


class Slow:
    """Answers rightly, but later than anybody waits."""

    def get(self, key: str, default: object = None) -> object:
        time.sleep(0.06)
        return HISTORY


class Returns:
    """Answers every look-up with the same thing, whatever that is."""

    def __init__(self, value: object) -> None:
        self.value = value

    def get(self, key: str, default: object = None) -> object:
        return self.value

    def resolve(self, **question: Any) -> object:
        return self.value

    def linked_since(self, *question: Any, **when: Any) -> object:
        return self.value


class LinkFails(Ledger):
    """Resolves, and then cannot say which devices are linked."""

    def linked_since(self, *question: Any, **when: Any) -> dict[str, int]:
        raise TimeoutError("the link store is busy")


SOURCE_OF = {"online": Source.ONLINE, "crm": Source.CRM, "attributes": Source.CRM}

NONSENSE: tuple[object, ...] = (
    None, 7, "item-01", {"item-01": 1}, [None], [7], object(), float("nan"), [b"item-01"],
    {"age": object()}, {"age": [1]}, {1: "north"}, {"age": np.int64(3)}, {"age": 10**5000}, {"region": b"x"},
)  # fmt: skip


def agreed_in_full() -> Ledger:
    """As `records`, but the links cannot be read."""
    whole, ledger = records(), LinkFails()
    ledger.__dict__.update(whole.__dict__)
    return ledger


LEDGER_FAULTS: dict[str, Callable[[], object]] = {
    "is gone": lambda: Raises(ConnectionError),
    "has a bug": lambda: Raises(KeyError),
    "says nothing": lambda: Returns(None),
    "says yes to everything": lambda: Returns(True),
    "speaks another language": lambda: Returns({"online": True, "crm": True, "linked": True}),
    "cannot read links": agreed_in_full,
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A request, what is broken when it comes, and how often it comes: the last answer is looked at."""

    channel: Channel = Channel.SHOP
    visitor: str | None = "agreed"
    customer: str | None = "agreed"
    logged_in: bool = True
    ledger: str | None = None
    stores: Mapping[str, object] = dataclasses.field(default_factory=dict)
    failing: frozenset[Tier] = frozenset()
    missing: frozenset[Tier] = frozenset()
    session: tuple[str, ...] = ITEMS[2:4]
    declared: Permission | None = None
    times: int = 1


def recommender(fault: Fault) -> Recommender:
    """The recommender with its faults."""
    whole = engine((), CATALOGUE)
    scorers: dict[Tier, Any] = {
        tier: Raises(ZeroDivisionError) if tier in fault.failing else scorer
        for tier, scorer in whole.scorers.items()
        if tier not in fault.missing
    }
    popular: Any = Raises(ZeroDivisionError) if Tier.POPULAR in fault.failing else whole.popular
    healthy = {"online": STORES.online, "crm": STORES.crm, "attributes": STORES.attributes}
    spoilt: dict[str, Any] = {**healthy, **fault.stores}
    ledger: Any = records() if fault.ledger is None else LEDGER_FAULTS[fault.ledger]()
    return dataclasses.replace(
        whole,
        scorers=scorers,
        popular=None if Tier.POPULAR in fault.missing else popular,
        problems=dict.fromkeys(fault.missing, "the file is gone"),
        ledger=ledger,
        profiles=Profiles(**spoilt),
    )


def ask(fault: Fault, asked: Recommender) -> Answer:
    """The request."""
    return asked.recommend(
        Request(
            session=fault.session, linked=fault.logged_in, channel=fault.channel, permission=fault.declared,
            visitor_id=fault.visitor, customer_id=fault.customer, at=AT, n=4,
        )
    )  # fmt: skip


def check_faults_only_lower(fault: Fault) -> None:
    """No fault escapes, none widens what is read, and each that mattered is named."""
    whole = dataclasses.replace(fault, ledger=None, stores={}, failing=frozenset(), missing=frozenset())
    sound = ask(whole, recommender(whole))
    try:
        asked = recommender(fault)
        *_, found = (ask(fault, asked) for _ in range(fault.times))
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} escaped: {error}") from error
    allowed = permitted_sources(fault)
    assert set(found.basis.sources) <= allowed
    if found.tier is not Tier.NONE and found.tier is not Tier.POPULAR:
        assert sources_of(found.tier, fault.channel.side) <= allowed
    if found.tier is not sound.tier:
        named = " ".join(found.basis.reasons)
        told = ("failed", "gone", "holds nothing", "no answer within", "not asked")
        assert any(words in named for words in told), named
    unread = {SOURCE_OF[name] for name, store in fault.stores.items() if isinstance(store, Raises | Slow)}
    assert not unread & set(found.basis.sources), "a store that gave nothing is said to have been read"
    assert "pills" not in json.dumps(found.to_dict()), "a message quoted data"
    assert len(set(found.items)) == len(found.items) <= 4
    assert set(found.items) <= CATALOGUE.available


def permitted_sources(fault: Fault) -> set[Source]:
    """What may be read, told afresh. A ledger that cannot be asked permits nothing."""
    told = fault.ledger in (None, "cannot read links")
    declared = BOTH if fault.declared is None else fault.declared
    online = told and fault.visitor == "agreed" and Permission.ONLINE in declared
    crm = told and fault.customer == "agreed" and Permission.CRM in declared
    joined = online and crm and (fault.logged_in or fault.channel.side == "crm")
    if fault.channel.side == "online":
        return {Source.SESSION} | ({Source.ONLINE} if online else set()) | ({Source.CRM} if joined else set())
    return ({Source.CRM} if crm else set()) | ({Source.ONLINE} if joined else set())


_tiers = st.frozensets(st.sampled_from((*LINEAR, Tier.POPULAR)))
_stores = st.dictionaries(
    st.sampled_from(("online", "crm", "attributes")),
    st.sampled_from(
        [Raises(KeyError), Raises(TimeoutError), Late(), Slow(), *(Returns(value) for value in NONSENSE)]
    ),
)
faults = st.builds(
    Fault,
    channel=st.sampled_from(Channel),
    visitor=st.sampled_from((*VISITORS[:1] * 3, *VISITORS, None)),
    customer=st.sampled_from((*CUSTOMERS[:1] * 3, *CUSTOMERS, None)),
    logged_in=st.booleans(),
    ledger=st.none() | st.sampled_from(sorted(LEDGER_FAULTS)),
    stores=_stores,
    failing=_tiers,
    missing=_tiers,
    session=st.sampled_from(((), ITEMS[2:4], ("unheard-of",))),
    declared=st.none() | st.sampled_from((Permission.NONE, BOTH)),
    times=st.integers(1, 2),
)


@settings(max_examples=300)
@given(faults)
def test_no_fault_escapes_and_none_raises_the_tier(fault: Fault) -> None:
    check_faults_only_lower(fault)


@pytest.mark.parametrize("value", NONSENSE, ids=range(len(NONSENSE)))
@pytest.mark.parametrize("store", ["online", "crm", "attributes"])
def test_nonsense_in_a_store_escapes_on_no_channel(store: str, value: object) -> None:
    for channel in (Channel.SHOP, Channel.EMAIL):
        check_faults_only_lower(Fault(channel=channel, stores={store: Returns(value)}))


@pytest.mark.parametrize("fault", [Raises(), Late(), Slow()], ids=["fails", "gives up", "is slow"])
@pytest.mark.parametrize("store", ["online", "crm", "attributes"])
def test_a_store_that_cannot_be_read_escapes_on_no_channel(store: str, fault: object) -> None:
    for channel in (Channel.SHOP, Channel.EMAIL):
        check_faults_only_lower(Fault(channel=channel, stores={store: fault}))


@breaks(
    Break(
        "a store that gives a look-up up is taken to hold nothing",
        Guard.ask,
        """raise StoreUnread(f"{self._name}: no answer within the store's own deadline") from None""",
        "return [()]",
        Fault(stores={"online": Late()}),
    ),
    Break(
        "a store that gives no answer is taken to hold nothing",
        Guard.ask,
        'raise StoreUnread(f"{self._name}: no answer within {1000 * deadline:g} ms") from None',
        "return [()]",
        Fault(stores={"online": Slow()}),
    ),
    Break(
        "a store that is left alone is taken to hold nothing",
        Guard.ask,
        'raise StoreUnread(f"{self._name}: {NOT_ASKED}")',
        "return [()]",
        Fault(stores={"online": Late()}, times=2),
    ),
    Break(
        "a store that fails is taken to hold nothing",
        Guard.ask,
        'raise StoreUnread(f"{self._name}: failed with {type(error).__name__}") from error',
        "return {}",
        Fault(stores={"attributes": Raises()}),
    ),
    Break(
        "where the ledger fails the caller is believed",
        Recommender._resolve,
        'return Resolution(reasons=("the consent ledger failed",)), (str(unread),)',
        "return Resolution.declared(permission or request.permission, linked=True), ()",
        Fault(ledger="is gone", declared=BOTH),
    ),
    Break(
        "whatever the ledger returns is believed",
        GuardedLedger.resolve,
        "if not isinstance(found, Resolution):",
        "if not found:",
        Fault(ledger="says yes to everything"),
    ),
    Break(
        "a failing model is not caught",
        Recommender._try,
        "except Exception as error:",
        "except KeyError as error:",
        Fault(failing=frozenset({Tier.FUSED})),
    ),
    Break(
        "a failing popular list is not caught",
        Recommender._fill,
        "except Exception as error:",
        "except KeyError as error:",
        Fault(failing=frozenset(Tier) - {Tier.NONE}),
    ),
    Break(
        "a fault is told in its own words",
        Recommender._try,
        "_fault(tier, error)",
        "str(error)",
        Fault(failing=frozenset({Tier.FUSED})),
    ),
    Break(
        "a missing model is replaced by the fullest",
        Recommender._try,
        "scorer = self.scorers.get(tier)",
        "scorer = self.scorers.get(tier); tier = Tier.FUSED if scorer is None else tier;"
        " scorer = scorer or self.scorers[tier]",
        Fault(missing=frozenset({Tier.ONLINE}), customer=None),
    ),
)
def test_a_fault_that_escapes_or_raises_would_be_noticed(broken: Break) -> None:
    assert_breaks(check_faults_only_lower, faults, broken)


# ---- Bundles -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of good bundles, to be spoilt."""
    shutil.copytree(bundles(), tmp_path / "bundles")
    return tmp_path / "bundles"


def spoil_missing(bundle: Path) -> None:
    shutil.rmtree(bundle)


def spoil_one_bit(bundle: Path) -> None:
    file = bundle / "item_ids.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def spoil_truncated(bundle: Path) -> None:
    file = bundle / "item_offsets.npy"
    file.write_bytes(file.read_bytes()[:-8])


def spoil_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text('{"format_version": 1')


def spoil_stranger(bundle: Path) -> None:
    (bundle / "model.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def spoil_file(bundle: Path) -> None:
    shutil.rmtree(bundle)
    bundle.write_text("not a directory")


SPOILT = (spoil_missing, spoil_one_bit, spoil_truncated, spoil_manifest, spoil_stranger, spoil_file)


def full_request(**more: Any) -> Request:
    """A request to which every tier could answer."""
    return Request(
        session=ITEMS[:2], online_history=ITEMS[2:4], crm_history=ITEMS[4:6], attributes={"region": "north"},
        permission=BOTH, linked=True, n=5, **more,
    )  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT)
def test_spoilt_bundles_lower_the_tier_one_after_the_other(
    folder: Path, spoil: Callable[[Path], None]
) -> None:
    expected = [Tier.FUSED, Tier.ONLINE, Tier.CRM, Tier.SESSION, Tier.POPULAR]
    for position, tier in enumerate(expected):
        asked = Recommender.load(folder)
        assert set(asked.problems) == set(expected[:position])
        found = asked.recommend(full_request())
        assert found.tier is tier
        for lost in expected[:position]:
            assert any(reason.startswith(f"{lost}: ") for reason in found.basis.reasons)
        spoil(folder / tier)
    with pytest.raises(BundleMissing, match="no bundle can be used"):
        Recommender.load(folder)


@pytest.mark.parametrize("slot", LINEAR)
@pytest.mark.parametrize("other", LINEAR)
def test_a_model_in_anothers_place_does_not_answer(tmp_path: Path, slot: Tier, other: Tier) -> None:
    write_popular(tmp_path / "popular")
    write_linear(tmp_path / slot, slot, slot=str(other))
    asked = Recommender.load(tmp_path)
    assert (slot in asked.scorers) == (slot is other)
    assert slot is other or f"declares tier {other}" in asked.problems[slot]


MALFORMED_SETTINGS: tuple[dict[str, Any], ...] = (
    {"hide": [["crm"]]}, {"hide": "crm"}, {"hide": ["elsewhere"]}, {"max_history": 0}, {"max_history": True},
    {"session_decay": 0}, {"session_decay": 10**400}, {"source_weights": {"crm": -1}}, {"event_weights": 1},
    {"recency_half_life": 0}, {"recency_half_life": "30"}, {"recency_half_life": 1e7},
    {"attribute_weight": "1"}, {"attributes": 3}, {"attributes": [{"name": "age"}]}, {"unheard_of": 1},
    {"attributes": [{"name": "age", "kind": "number", "edges": [3, 1], "first_input": 14}]},
    {"attributes": [{"name": "age", "kind": "number", "edges": [1], "first_input": 2}]},
    {"attributes": []},
)  # fmt: skip


@pytest.mark.parametrize("scoring", MALFORMED_SETTINGS, ids=range(len(MALFORMED_SETTINGS)))
def test_a_bundle_with_malformed_settings_does_not_answer(tmp_path: Path, scoring: dict[str, Any]) -> None:
    write_popular(tmp_path / "popular")
    try:
        write_linear(tmp_path / "crm", Tier.CRM, scoring=scoring)
    except (TypeError, ValueError):
        return  # cannot even be written
    asked = Recommender.load(tmp_path)
    assert asked.problems[Tier.CRM]
    found = asked.recommend(Request(crm_history=ITEMS[:2], permission=Permission.CRM, channel=Channel.EMAIL))
    assert found.tier is Tier.POPULAR
    assert f"crm: {asked.problems[Tier.CRM]}" in found.basis.reasons


FOLDING = {
    "unobserved_weight": 0.1, "regularisation": 0.1, "frequency_exponent": 1.0,
    "history_exponent": 0.0, "history_offset": 0.0,
}  # fmt: skip
MALFORMED_FOLDING: tuple[Any, ...] = (
    None, 3, {}, {"regularisation": 1.0}, {**FOLDING, "unheard_of": 1}, {**FOLDING, "regularisation": 0},
    {**FOLDING, "unobserved_weight": 0.0}, {**FOLDING, "frequency_exponent": -1},
    {**FOLDING, "regularisation": "1"}, {**FOLDING, "regularisation": True},
    {**FOLDING, "frequency_exponent": 1e300}, {**FOLDING, "observed_weight": -0.1},
    {**FOLDING, "entry_regularisation": None},
    {name: value for name, value in FOLDING.items() if name != "history_offset"} | {"observed_weight": 0.1},
)  # fmt: skip


@pytest.mark.parametrize("fold_in", MALFORMED_FOLDING, ids=range(len(MALFORMED_FOLDING)))
def test_a_factor_model_with_malformed_settings_does_not_answer(tmp_path: Path, fold_in: Any) -> None:
    write_popular(tmp_path / "popular")
    write_factors(tmp_path / "crm", Tier.CRM, scoring={"fold_in": fold_in})
    asked = Recommender.load(tmp_path)
    assert "fold_in" in asked.problems[Tier.CRM]
    found = asked.recommend(Request(crm_history=ITEMS[:2], permission=Permission.CRM, channel=Channel.EMAIL))
    assert found.tier is Tier.POPULAR


def test_a_factor_model_without_its_inputs_does_not_answer(tmp_path: Path) -> None:
    write_factors(tmp_path / "crm", Tier.CRM, factors=np.ones((len(ITEMS), 1), np.float32))
    write_popular(tmp_path / "popular")
    assert "factors must be float32 with 20 rows" in Recommender.load(tmp_path).problems[Tier.CRM]


def test_a_policy_that_leaves_the_popular_list_out_gets_none() -> None:
    policy = Policy.default()
    strict = Policy("strict", {cell: tuple(tier for tier in tiers if tier is not Tier.POPULAR)
                               for cell, tiers in policy.matrix.items()})  # fmt: skip
    asked = dataclasses.replace(engine(), policy=strict)
    assert asked.recommend(Request()).tier is Tier.NONE
    assert asked.recommend(Request()).items == ()
    filled = asked.recommend(Request(session=ITEMS[:1], n=14))
    assert filled.tier is Tier.SESSION
    assert filled.basis.filled == 0
    assert 0 < len(filled.items) < 14


def test_a_policy_that_puts_the_popular_list_first_gets_it_first() -> None:
    policy = Policy.default()
    matrix = {**policy.matrix, **{cell: (Tier.POPULAR, Tier.SESSION) for cell in policy.matrix
                                  if cell[1] == "online" and cell[0] in ("none", "objected")}}  # fmt: skip
    asked = dataclasses.replace(engine(), policy=Policy("popular first", matrix))
    assert asked.recommend(Request(session=ITEMS[:2])).tier is Tier.POPULAR
    without = dataclasses.replace(asked, popular=None)
    assert without.recommend(Request(session=ITEMS[:2])).tier is Tier.SESSION


def test_no_ledger_and_no_permission_is_no_permission() -> None:
    found = engine().recommend(dataclasses.replace(full_request(), permission=None))
    assert found.tier is Tier.SESSION
    assert found.basis.reasons[0] == "no permission declared and no ledger"


def test_a_resolution_without_anything_permits_nothing() -> None:
    asked = dataclasses.replace(engine(), ledger=Returns(Resolution()))  # type: ignore[arg-type]
    assert asked.recommend(full_request()).tier is Tier.SESSION
    assert asked.recommend(full_request(channel=Channel.EMAIL)).tier is Tier.POPULAR


@pytest.mark.parametrize("wrong", [None, "item-01", {"session": []}, 3])
def test_what_is_no_request_is_a_mistake(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"consentier\.Request"):
        engine().recommend(wrong)


def test_wrong_arguments_of_the_recommender_are_mistakes() -> None:
    with pytest.raises(TypeError, match="audit_key must be bytes"):
        Recommender.load(bundles(), audit_key="secret")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="audit_key is empty"):
        Recommender.load(bundles(), audit_key=b"")
    with pytest.raises(TypeError, match="item ids are strings"):
        Recommender.load(bundles(), catalogue=[1, 2])  # type: ignore[list-item]
    with pytest.raises(BundleMissing, match="no such directory"):
        Recommender.load(bundles() / "elsewhere")


def test_failing_models_fail_no_question_about_items() -> None:
    broken: Any = dict.fromkeys(LINEAR, Raises(ZeroDivisionError))
    asked = dataclasses.replace(engine(), scorers=broken)
    found = asked.similar("item-01", n=3)
    assert found.tier is Tier.POPULAR
    assert "session: failed with ZeroDivisionError" in found.basis.reasons
    nothing = dataclasses.replace(asked, popular=None, problems={Tier.POPULAR: "gone"}).similar("item-01")
    assert nothing.tier is Tier.NONE
    assert "popular: gone" in nothing.basis.reasons
