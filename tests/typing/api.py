"""What a service writes, as a type checker sees it: `make types` checks it against the installed wheel."""

import datetime as dt
from collections.abc import Mapping
from typing import assert_type

from prometheus_client import CollectorRegistry

import consentier
from consentier import (
    Answer,
    AsyncRecommender,
    Basis,
    Catalogue,
    Channel,
    ConsentRecord,
    Event,
    Ledger,
    Permission,
    Policy,
    Profiles,
    Recommender,
    ReloadingRecommender,
    Request,
    Resolution,
)
from consentier.consent import Tier
from consentier.consent.signals import read_signal
from consentier.serving.explanations import Explanation
from consentier.serving.metrics import MeasuredRecommender, prometheus_observer
from consentier.serving.observing import Observed
from consentier.serving.profile_base import ProfileStore
from consentier.serving.profile_opening import open_profiles
from consentier.serving.profile_store import SqliteProfiles
from consentier.serving.registry import RegistrySource
from consentier.serving.reloading import Outcome, TierReload

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def asks(recommender: Recommender) -> None:
    """Questions and what comes back."""
    both = assert_type(Permission.ONLINE | Permission.CRM, Permission)
    request = Request(
        session=["a", Event("b", NOW)],
        online_history=("a",),
        crm_history=[Event("c", event_type="order", quantity=2)],
        attributes={"region": "north", "orders": 3, "newsletter": None},
        permission=both,
        linked=True,
        channel="email",
        where='category == "shoes"',
        n=5,
    )
    Request(channel=Channel.CALL_CENTER, exclude={"a"}, allow=["b"], at=NOW, explain=True)
    Request(channel="letter")  # type: ignore[arg-type] # a word that is no channel is seen in the editor
    answer = assert_type(recommender.recommend(request), Answer)
    assert_type(answer.tier, Tier)
    assert_type(answer.items, tuple[str, ...])
    assert_type(answer.scores, tuple[float, ...])
    assert_type(answer.explanations, tuple[Explanation, ...] | None)
    assert_type(answer.main_parameters, tuple[str, ...] | None)
    basis = assert_type(answer.basis, Basis)
    assert_type(basis.reason, str)
    assert_type(basis.reasons, tuple[str, ...])
    assert_type(basis.sources, tuple[str, ...])
    assert_type(recommender.similar("a", n=3), Answer)
    assert_type(recommender.basket(["a"], exclude=["b"]), Answer)
    assert_type(recommender.problems, Mapping[Tier, str])
    assert_type(recommender.observe(Event("a"), visitor_id="v"), Observed)


def keeps(ledger: Ledger) -> None:
    """What is recorded and looked up."""
    record = ConsentRecord("r", "v", "visitor", "online", "granted", NOW, NOW)
    assert_type(ledger.append([record]), int)
    assert_type(ledger.append(read_signal("gpc", "1", subject_id="v", received_at=NOW)), int)
    assert_type(ledger.login("v", "c", at=NOW), bool)
    assert_type(ledger.resolve(visitor_id="v", customer_id=None, at=NOW), Resolution)
    online = SqliteProfiles("online.db", ttl=dt.timedelta(days=90))
    assert_type(online["v"], tuple[Event, ...])
    crm = assert_type(open_profiles("crm.db"), ProfileStore)
    Profiles(online=online, crm=crm, attributes=crm.attributes)
    Profiles(online={"v": [Event("a")]}, attributes={"c": {"region": "north"}})


async def serves() -> Answer:
    """A recommender that follows its bundles, with metrics, for asyncio."""
    with Ledger.open("sqlite:///consents.db") as ledger:
        assert_type(ledger, Ledger)
        source = RegistrySource({"fused": "models:/fused@champion"}, "bundles")
        with ReloadingRecommender(source, every=60, ledger=ledger, filter_by=["brand"]) as reloading:
            assert_type(reloading.current, Recommender)
            told = assert_type(reloading.check(), Mapping[Tier, TierReload])
            assert_type(told[Tier.FUSED].outcome, Outcome)
            measured = MeasuredRecommender(reloading, prometheus_observer(CollectorRegistry()))
            async with AsyncRecommender(measured, threads=4) as answering:
                return assert_type(await answering.recommend(Request()), Answer)


def opens() -> Recommender:
    """The options of `load`."""
    assert_type(consentier.__version__, str)
    return Recommender.load(
        "bundles",
        policy=assert_type(Policy.default(), Policy),
        catalogue=assert_type(Catalogue.of(["a", "b"]), Catalogue),
        profiles=Profiles(online={}),
        profile_deadline=0.05,
        ledger_deadline=0.5,
        rules="rules.toml",
        audit_key=b"secret",
    )
