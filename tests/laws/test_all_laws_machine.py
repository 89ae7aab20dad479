"""All laws at once, in a shop where everything happens in any order.

Visitors browse, customers order, log in, grant, refuse, object, withdraw and are forgotten; models are
trained in between; time passes. Whatever the order: after every step, every promise that can be checked is
checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import itertools
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from breaking import Break, breaks
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from shops import shop

from consentier.consent import Channel, ConsentRecord, Ledger, Permission, Policy, Source, Tier, sources_of
from consentier.errors import TrainingError
from consentier.features.tables import ShopTables
from consentier.models.bundle import open_bundle
from consentier.serving import Answer, Event, Profiles, Recommender, Request
from consentier.serving.observing import Observed, observe
from consentier.serving.profile_store import SqliteProfiles
from consentier.serving.revocation import Revocations
from consentier.training import forget as forget_module
from consentier.training import withdrawal
from consentier.training.config import Config
from consentier.training.ended_permissions import purge_ended, set_deadlines
from consentier.training.forget import ForgetResult, forget
from consentier.training.restricted import Restricted
from consentier.training.train import TRAINED_TIERS, train
from consentier.training.withdrawal import withdraw

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
VISITORS = ("visitor-marker-0", "visitor-marker-1", "visitor-marker-2")
CUSTOMERS = ("customer-marker-0", "customer-marker-1")
SUBJECTS = [("visitor", name) for name in VISITORS] + [("customer", name) for name in CUSTOMERS]
ITEMS = [f"item-{number}" for number in range(6)]
PAIRS = [*itertools.product(VISITORS, CUSTOMERS), (None, CUSTOMERS[0]), (VISITORS[0], None), (None, None)]
CHANNELS = (Channel.SHOP, Channel.EMAIL)
CONFIG = Config.model_validate({"tracking": {"enabled": False}, "training": {"threads": 1}})
DEADLINE = dt.timedelta(days=2)
NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)

permissions = st.sampled_from(["online", "crm", "fusion", "model", "parental"])
states = st.sampled_from(["granted", "granted", "granted", "denied", "withdrawn", "objected", "lifted"])
subjects = st.sampled_from(SUBJECTS)
items = st.sampled_from(ITEMS)


class LedgerWithout:
    """A ledger as it would be had it never heard of somebody; a device known to be shared stays so."""

    def __init__(self, ledger: Ledger, kind: str, name: str) -> None:
        self._ledger, self._kind, self._name = ledger, kind, name
        self.lifetimes, self.conflicts = ledger.lifetimes, ledger.conflicts
        self.position, self.head = ledger.position, ledger.head

    def columns(self, table: str) -> dict[str, list[Any]]:
        """The columns of the ledger, without the rows of the one whom it never heard of."""
        told = self._ledger.columns(table)  # type: ignore[arg-type]
        if table == "records":
            about = zip(told["subject_kind"], told["subject_id"], strict=True)
            kept = [subject != (self._kind, self._name) for subject in about]
        elif self._kind == "visitor":
            kept = [visitor != self._name for visitor in told["visitor_id"]]
        else:
            links = list(zip(told["visitor_id"], told["customer_id"], strict=True))
            shared = {visitor for visitor, customer in links if customer != self._name}
            kept = [customer != self._name or visitor in shared for visitor, customer in links]
        return {name: list(itertools.compress(values, kept)) for name, values in told.items()}


class Shop(RuleBasedStateMachine):
    """One shop, its ledger, its stores, its bundles."""

    @initialize()
    def open(self) -> None:
        """A shop where each gave a permission, and each customer has logged in once."""
        self.folder = tempfile.TemporaryDirectory(prefix="consentier-laws-")
        root = Path(self.folder.name)
        self.now = START
        self.ledger = Ledger.open(f"sqlite:///{root / 'consents.db'}")
        self.records: list[ConsentRecord] = []
        self.trained_at = -1
        self.events: list[dict[str, Any]] = []
        self.orders: list[dict[str, Any]] = []
        self.bundles = root / "bundles"
        self.restricted = Restricted.beside(self.bundles)
        self.stores = {
            Source.ONLINE: SqliteProfiles(root / "online.db"),
            Source.CRM: SqliteProfiles(root / "crm.db"),
        }
        for kind, name in SUBJECTS:
            self._record(kind, name, "online" if kind == "visitor" else "crm", "granted")
        self._pass_time()
        for visitor, customer in zip(VISITORS, CUSTOMERS, strict=False):
            self.ledger.login(visitor, customer, at=self.now, evidence="login")
        for visitor, item in itertools.product(VISITORS, ITEMS[:3]):
            self.browse(visitor, item)
        for customer, item in itertools.product(CUSTOMERS, ITEMS[2:5]):
            self.order(customer, item)

    def teardown(self) -> None:
        """Close what is open."""
        if hasattr(self, "ledger"):
            self.ledger.close()
            for store in self.stores.values():
                store.close()
            self.folder.cleanup()

    # ---- what happens --------------------------------------------------------------------------------------

    @rule(subject=subjects, permission=permissions, state=states, evidence=st.sampled_from([None, "letter"]))
    def decide(self, subject: tuple[str, str], permission: str, state: str, evidence: str | None) -> None:
        """Somebody decides something."""
        self._record(*subject, permission, state, evidence)
        self._pass_time()

    @rule(visitor=st.sampled_from(VISITORS), customer=st.sampled_from(CUSTOMERS))
    def log_in(self, visitor: str, customer: str) -> None:
        """A login writes a link if both permissions hold, and nothing otherwise."""
        before = self.ledger.resolve(visitor_id=visitor, customer_id=customer, at=self.now)
        written = self.ledger.login(visitor, customer, at=self.now, evidence="login")
        joinable = before.permission.level == 3 and "fusion" not in before.denied_purposes
        assert written == joinable, "the seventh law: a link needs both permissions"
        self._pass_time()

    @rule(visitor=st.sampled_from(VISITORS), item=items)
    def browse(self, visitor: str, item: str) -> None:
        """A visitor looks at something. The log has it; the profile only where that is permitted."""
        self.events.append(
            {"visitor_id": visitor, "session_id": f"{visitor} {self.now.date()}", "ts": self.now,
             "item_id": item, "event_type": "view"}
        )  # fmt: skip
        held = self.ledger.resolve(visitor_id=visitor, at=self.now).permission
        seen = self._observe(Event(item), visitor_id=visitor)
        assert seen.stored == (Permission.ONLINE in held), seen.reason
        self._pass_time()

    @rule(customer=st.sampled_from(CUSTOMERS), item=items)
    def order(self, customer: str, item: str) -> None:
        """A customer orders something."""
        self.orders.append(
            {"customer_id": customer, "order_id": f"{len(self.orders)}", "line_id": "1", "ts": self.now,
             "item_id": item, "quantity": 1, "price": None, "status": "ordered"}
        )  # fmt: skip
        held = self.ledger.resolve(customer_id=customer, at=self.now).permission
        seen = self._observe(Event(item, event_type="order"), customer_id=customer)
        assert seen.stored == (Permission.CRM in held), seen.reason
        self._pass_time()

    @rule(days=st.sampled_from([1, 3]))
    def wait(self, days: int) -> None:
        """Time passes."""
        self.now += dt.timedelta(days=days)

    @rule()
    def train(self) -> None:
        """All models are trained anew, from the tables and the ledger as they are."""
        with contextlib.suppress(TrainingError):  # where nobody permits anything
            train(
                self._tables(), CONFIG.with_cutoff(self.now), self.bundles, tiers=TRAINED_TIERS, force=True,
                ledger=self.ledger, restricted=self.restricted, show_progress=False,
            )  # fmt: skip
        self.trained_at = self.ledger.position
        self._pass_time()

    @rule(subject=subjects, source=st.sampled_from([Source.ONLINE, Source.CRM]))
    def withdraw(self, subject: tuple[str, str], source: Source) -> None:
        """Somebody withdraws: the next request reads nothing of the source (the eighth law)."""
        kind, name = subject
        lineage = self.restricted.lineage() if self.restricted.path.is_dir() else None
        places = [(self.bundles, lineage)] if self.bundles.is_dir() else []
        done = withdraw(
            self.ledger, name, kind=kind, source=source, at=self.now,  # type: ignore[arg-type]
            profiles={each: [store] for each, store in self.stores.items()},
            bundles=places, deadline=DEADLINE,
        )  # fmt: skip
        for owner, each in done.subjects:
            if owner == ("visitor" if source is Source.ONLINE else "customer"):
                assert not self.stores[source].export(each), "the profile of the source is still there"
        self._check_withdrawn(kind, name, source)
        self._pass_time()

    @rule()
    def enforce(self) -> None:
        """However a permission ended: a deadline for its bundles, and its profiles go (the eighth law)."""
        lineage = self.restricted.lineage() if self.restricted.path.is_dir() else None
        places = [(self.bundles, lineage)] if self.bundles.is_dir() else []
        set_deadlines(self.ledger, bundles=places, policy=Policy.default(), at=self.now, deadline=DEADLINE)
        for source, store in self.stores.items():
            purge_ended(self.ledger, store, source=source, at=self.now)
        for kind, name in SUBJECTS:
            source = Source.ONLINE if kind == "visitor" else Source.CRM
            if self.ledger.permission(name, kind=kind, at=self.now):  # type: ignore[arg-type]
                continue
            assert not self.stores[source].export(name), "a profile is kept without permission"
            held = [] if lineage is None else lineage.bundles_of(kind, name)  # type: ignore[arg-type]
            deadlines = Revocations.open(self.bundles).current().by_digest if held else {}
            late = [bundle for bundle in held if deadlines.get(bundle.digest, NEVER) > self.now + DEADLINE]
            assert not late, "a bundle goes on with somebody who permits it no more"
        self._pass_time()

    @precondition(lambda self: self.bundles.is_dir())
    @rule(subject=subjects)
    def forget(self, subject: tuple[str, str]) -> None:
        """A bundle that forgot somebody is, byte for byte, one that never knew (the eighth law)."""
        kind, name = subject
        result = forget(
            self._tables(), [subject], self.bundles, self.restricted,  # type: ignore[list-item]
            ledger=self.ledger, show_progress=False,
        )  # fmt: skip
        if self.trained_at == self.ledger.position:  # or else the bundles rest on another state of the ledger
            self._check_never_known(kind, name, result)
        self.trained_at = -1
        # Copies of earlier bundles may exist elsewhere: of these the index still knows.
        present = {each.after for each in result.tiers}
        held = self.restricted.lineage().bundles_of(kind, name)  # type: ignore[arg-type]
        assert not present & {bundle.digest for bundle in held}, "the index still knows the forgotten"

    # ---- what must hold ------------------------------------------------------------------------------------

    @invariant()
    def every_answer_reads_only_what_is_permitted(self) -> None:
        """Laws 1, 4, 5, 7 and 10: tier, sources and digests of each answer follow from the ledger."""
        if not hasattr(self, "ledger"):
            return
        for (visitor, customer), channel, recommender in self._asked():
            request = self._request(visitor, customer, channel)
            answer = recommender.recommend(request)
            held = self.ledger.resolve(visitor_id=visitor, customer_id=customer, at=self.now)
            readable = {str(source) for source in sources_of(answer.tier, channel.side)}
            assert set(answer.basis.sources) <= readable
            if "online" in answer.basis.sources:
                assert held.online
            if "crm" in answer.basis.sources:
                assert held.crm
            if answer.tier is Tier.FUSED:
                assert held.linked
                assert held.online
                assert held.crm
            if not held.permission:
                assert answer.tier in (Tier.SESSION, Tier.POPULAR, Tier.NONE)
                assert not answer.basis.input_digests
            assert answer.basis.policy_version
            assert answer.basis.ledger_position == self.ledger.position
            assert recommender.recommend(request) == answer, "the same inputs, another answer"
            self._check_noninterference(recommender, request, answer)
            self._check_monotone(recommender, request, answer)

    @invariant()
    def the_order_of_records_does_not_matter(self) -> None:
        """Law 6."""
        if not hasattr(self, "ledger"):
            return
        entries = [entry for _, entry in self.ledger.entries()]
        shuffled = [*entries, *entries[:3]]
        random.Random(len(entries)).shuffle(shuffled)
        other = Ledger(
            [entry for entry in shuffled if isinstance(entry, ConsentRecord)],
            [entry for entry in shuffled if not isinstance(entry, ConsentRecord)],
        )
        for visitor, customer in PAIRS:
            mine, others = (
                dataclasses.replace(
                    each.resolve(visitor_id=visitor, customer_id=customer, at=self.now), ledger_position=None
                )
                for each in (self.ledger, other)
            )
            # Without the marks of erased links, the other ledger may hold a link that this one must not.
            assert dataclasses.replace(mine, linked=False) == dataclasses.replace(others, linked=False)
            assert others.linked or not mine.linked

    @invariant()
    def the_chain_holds(self) -> None:
        """Nothing was altered, whatever was erased."""
        if hasattr(self, "ledger"):
            assert self.ledger.verify().ok

    @invariant()
    def bundles_name_nobody(self) -> None:
        """Law 9: no file of a bundle holds an id of a person, or anything by which one could be found."""
        if hasattr(self, "bundles") and self.bundles.is_dir():
            for path in self.bundles.rglob("*"):
                if path.is_file():
                    assert b"marker" not in path.read_bytes(), f"{path.name} names a person"

    # ---- how it is checked ---------------------------------------------------------------------------------

    def _asked(self) -> Iterator[tuple[tuple[str | None, str | None], Channel, Recommender]]:
        if not self.bundles.is_dir():
            return
        recommender = self._recommender()
        for pair, channel in itertools.product(PAIRS, CHANNELS):
            yield pair, channel, recommender

    def _recommender(self) -> Recommender:
        return Recommender.load(
            self.bundles, ledger=self.ledger, profiles=self._profiles(), clock=lambda: self.now
        )

    def _profiles(self) -> Profiles:
        return Profiles(online=self.stores[Source.ONLINE], crm=self.stores[Source.CRM], deadline=30)

    def _observe(self, event: Event, **whose: str) -> Observed:
        return observe(event, ledger=self.ledger, profiles=self._profiles(), clock=lambda: self.now, **whose)

    def _request(self, visitor: str | None, customer: str | None, channel: Channel) -> Request:
        return Request(
            session=[ITEMS[0]], visitor_id=visitor, customer_id=customer, linked=True, channel=channel,
            at=self.now, n=3,
        )  # fmt: skip

    def _check_noninterference(self, recommender: Recommender, request: Request, answer: Answer) -> None:
        """Other data in what was not read: the same answer, to the byte."""
        held = self.ledger.resolve(
            visitor_id=request.visitor_id, customer_id=request.customer_id, at=self.now
        )
        other = [Event(ITEMS[5], ts=self.now), Event(ITEMS[1], ts=self.now)]
        changed = dataclasses.replace(
            request,
            online_history=None if held.online and request.channel is Channel.SHOP else other,
            crm_history=None if held.crm else other,
            attributes=None if held.crm else {"city": "elsewhere"},
        )
        if held.linked and held.permission.level == 3:
            changed = dataclasses.replace(changed, online_history=None)
        again = recommender.recommend(changed)
        assert (again.items, again.scores, again.tier) == (answer.items, answer.scores, answer.tier)

    def _check_monotone(self, recommender: Recommender, request: Request, answer: Answer) -> None:
        """Without the ids there is no permission: nothing more is read."""
        less = recommender.recommend(dataclasses.replace(request, visitor_id=None, customer_id=None))
        assert set(less.basis.sources) <= {*answer.basis.sources, "session"}

    def _check_withdrawn(self, kind: str, name: str, source: Source) -> None:
        for visitor, customer in PAIRS:
            if name in (visitor, customer):
                held = self.ledger.resolve(visitor_id=visitor, customer_id=customer, at=self.now)
                assert not (held.online if source is Source.ONLINE else held.crm)
        if not self.bundles.is_dir():
            return
        recommender = self._recommender()
        for visitor, customer in PAIRS:
            if name in (visitor, customer):
                for channel in CHANNELS:
                    answer = recommender.recommend(self._request(visitor, customer, channel))
                    assert str(source) not in answer.basis.sources
        after = dataclasses.replace(recommender, clock=lambda: self.now + DEADLINE)
        held = self.restricted.lineage().bundles_of(kind, name)  # type: ignore[arg-type]
        # By digest: a version that was replaced may hold somebody whom the one in service does not.
        stopped = {bundle.digest for bundle in held if self._reads(bundle.tier, source)}
        for (visitor, customer), channel in itertools.product(PAIRS, CHANNELS):
            answer = after.recommend(self._request(visitor, customer, channel))
            assert answer.basis.bundle_digest not in stopped, "a bundle past its deadline answers"

    @staticmethod
    def _reads(tier: str, source: Source) -> bool:
        of_source = {Source.ONLINE: ("session", "online", "fused"), Source.CRM: ("crm", "fused")}
        return tier in of_source[source]

    def _check_never_known(self, kind: str, name: str, result: ForgetResult) -> None:
        present = [tier for tier in TRAINED_TIERS if (self.bundles / tier / "manifest.json").is_file()]
        assert {each.tier for each in result.tiers if each.after is not None} == set(present)
        with tempfile.TemporaryDirectory() as elsewhere:
            for tier in present:
                bundle = open_bundle(self.bundles / tier)
                cutoff = dt.datetime.fromisoformat(bundle.manifest.cutoff)
                anew = train(
                    self._tables(without=(kind, name)), CONFIG.with_cutoff(cutoff), Path(elsewhere),
                    tiers=[tier], ledger=LedgerWithout(self.ledger, kind, name),  # type: ignore[arg-type]
                    show_progress=False,
                )  # fmt: skip
                assert bundle.digest == anew.digests[str(tier)], f"{tier}: {result}"

    def _tables(self, without: tuple[str, str] | None = None) -> ShopTables:
        return shop(
            events=[row for row in self.events if ("visitor", row["visitor_id"]) != without],
            orders=[row for row in self.orders if ("customer", row["customer_id"]) != without],
        )

    def _record(self, kind: str, name: str, permission: str, state: str, evidence: str | None = None) -> None:
        record = ConsentRecord(
            f"r{len(self.records)}", name, kind, permission, state,  # type: ignore[arg-type]
            valid_from=self.now, recorded_at=self.now, evidence=evidence,
        )  # fmt: skip
        self.records.append(record)
        self.ledger.append([record])

    def _pass_time(self) -> None:
        self.now += HOUR


RUN = settings(
    max_examples=3,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a course of events is short enough to be read
)


def test_all_laws_hold_whatever_happens() -> None:
    run_state_machine_as_test(Shop, settings=RUN)


@breaks(
    Break("a login always links", Ledger.login, "found.permission.level < 3", "False"),
    Break("a withdrawal leaves the profiles", withdrawal._purge, "store.purge(owner)", "0"),
    Break("a withdrawal is not recorded", withdraw, "ledger.append(", "len("),
    Break(
        "what a signal ended, bundles go on with",
        set_deadlines,
        "if not standing.clean",
        "if standing.problem",
    ),
    Break("what a signal ended leaves the profiles", purge_ended, "store.purge(subject)", "0"),
    Break(
        "the forgotten stay in the index",
        forget_module._replace,
        "lineage().replaced(bundle.digest, digest, without=gone)",
        "lineage().replaced(bundle.digest, digest, without=[])",
    ),
)
def test_the_machine_would_notice(broken: Break) -> None:
    told()
    with broken.applied(), pytest.raises(AssertionError):
        told()


def told() -> None:
    """One course of events, with the checks of the machine after each."""
    world = Shop()
    try:
        world.open()
        for happens in (
            world.train,
            lambda: world.forget(("visitor", VISITORS[1])),
            lambda: world.withdraw(("customer", CUSTOMERS[0]), Source.CRM),
            lambda: world.log_in(VISITORS[0], CUSTOMERS[0]),
            lambda: world.decide(("visitor", VISITORS[0]), "online", "denied", None),
            world.enforce,
        ):
            happens()
            world.every_answer_reads_only_what_is_permitted()
            world.the_order_of_records_does_not_matter()
            world.the_chain_holds()
            world.bundles_name_nobody()
    finally:
        world.teardown()
