"""Fourth and eighth law, while bundles are exchanged: what is wrong with a bundle never takes over.

Bundles come and go in any order while a service runs: newer ones, ones that were altered, of another tier,
of an earlier state of the shop; some are revoked, some removed, some changed where they lie. We promise: an
answer rests on a bundle that is as it was written, is not past its deadline, and is not older than one that
answered before it, unless the registry went back to that very one; the tier goes down when there is none,
never up.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import shutil
import tempfile
from pathlib import Path

from breaking import Break, assert_breaks, breaks
from engines import ITEMS, bundles, write_linear
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import Permission, Tier
from consentier.models.bundle import open_bundle
from consentier.serving import Recommender, Request, loading, reloading
from consentier.serving.reloading import ReloadingRecommender
from consentier.serving.revocation import revoke
from consentier.serving.routing import Routing, write_routing
from consentier.writing import put_directory, remove_directory

FIRST = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
OFFERS = 4
"""Bundles that may be published, of ever later states of the shop."""

ALL = Request(
    session=ITEMS[:2], online_history=ITEMS[2:4], crm_history=ITEMS[4:6], linked=True, n=5,
    permission=Permission.ONLINE | Permission.CRM,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Step:
    """Something that happens; `which` names a bundle, where that matters."""

    what: str
    which: int = 0


WHAT = (
    "publish", "publish", "roll back", "alter and publish", "other tier", "in place", "revoke", "remove",
    "hour",
)  # fmt: skip
cases = st.lists(st.builds(Step, st.sampled_from(WHAT), st.integers(0, OFFERS - 1)), min_size=1, max_size=6)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="consentier-laws-")


@functools.cache
def offer(which: int) -> Path:
    path = Path(_folder().name) / str(which)
    write_linear(path, Tier.FUSED, seed=100 + which, cutoff=FIRST + which * HOUR)
    return path


@functools.cache
def digests() -> tuple[str, ...]:
    return tuple(open_bundle(offer(which)).digest for which in range(OFFERS))


class Service:
    """A service on a directory of bundles, and what is known of each."""

    def __init__(self, folder: Path) -> None:
        self.shop = shutil.copytree(bundles(), folder / "bundles")
        self.target = self.shop / Tier.FUSED
        self.spare = folder / "spare"
        self.now = FIRST
        self.deadlines: dict[str, dt.datetime] = {}
        self.newest = -1
        self.meant: int | None = None
        """The offer that was rolled back to on purpose."""
        self.asked = ReloadingRecommender(self.shop, clock=lambda: self.now)

    def happens(self, step: Step) -> None:
        if step.what == "hour":
            self.now += HOUR
        elif step.what == "revoke":
            digest = digests()[step.which]
            self.deadlines.setdefault(digest, self.now + HOUR)
            revoke(self.shop, [digest], self.now + HOUR, "withdrawal")
        elif step.what == "remove" and self.target.exists():
            remove_directory(self.target)
        elif step.what == "in place" and self.target.exists():
            spoil(self.target)
        elif step.what in ("publish", "roll back", "alter and publish", "other tier"):
            if step.what == "roll back":
                self.meant = step.which
                write_routing(self.shop, Routing(rolled_back={Tier.FUSED: digests()[step.which]}))
            shutil.copytree(self.shop / "crm" if step.what == "other tier" else offer(step.which), self.spare)
            if step.what == "alter and publish":
                spoil(self.spare)
            former = put_directory(self.spare, self.target)
            if former is not None:
                shutil.rmtree(former)

    def check_answer(self) -> None:
        answer = self.asked.recommend(ALL)
        assert answer.tier in (Tier.FUSED, Tier.ONLINE)
        if answer.tier is Tier.ONLINE:
            assert any(reason.startswith("fused: ") for reason in answer.basis.reasons)
            return
        digest = answer.basis.bundle_digest
        deadline = self.deadlines.get(str(digest))
        assert deadline is None or self.now < deadline
        number = digests().index(digest) if digest in digests() else -1
        assert number >= self.newest or number == self.meant, "an older state of the shop took over"
        self.newest = number
        assert answer.items == genuine(number), "what answers is not what was written"


@functools.cache
def genuine(number: int) -> tuple[str, ...]:
    """What the first bundle, or one of the offers, answers when it is opened by itself."""
    if number < 0:
        return Recommender.load(bundles()).recommend(ALL).items
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / Tier.FUSED).symlink_to(offer(number))
        return Recommender.load(name).recommend(ALL).items


def spoil(bundle: Path) -> None:
    """Exchange the weights for others of the same size: only the digest can tell."""
    path = bundle / "data.npy"
    payload = path.read_bytes()
    header = 128
    path.write_bytes(payload[:header] + payload[header:][::-1])


def check(steps: list[Step]) -> None:
    """After each step and each look, every promise holds."""
    digests()
    with tempfile.TemporaryDirectory() as name:
        service = Service(Path(name))
        for step in steps:
            service.happens(step)
            service.asked.check()
            service.check_answer()


@settings(max_examples=60, deadline=None)
@given(cases)
def test_whatever_happens_to_bundles_an_answer_rests_on_a_good_one(steps: list[Step]) -> None:
    check(steps)


def test_good_bundles_do_take_over() -> None:
    """Else the law would hold of a service that never reloads."""
    with tempfile.TemporaryDirectory() as name:
        service = Service(Path(name))
        for which in range(OFFERS):
            service.happens(Step("publish", which))
            service.asked.check()
            assert service.asked.recommend(ALL).basis.bundle_digest == digests()[which]


@breaks(
    Break(
        "bytes are not verified",
        loading.open_tier,
        "open_bundle(path, expected_digest=expected_digest, threads=threads)",
        "open_bundle(path, expected_digest=expected_digest, threads=threads, verify=False)",
        [Step("alter and publish", 1)],
    ),
    Break(
        "the tier is not compared",
        loading.open_tier,
        "if bundle.manifest.tier != tier:",
        "if False:",
        [Step("other tier")],
    ),
    Break(
        "an older state takes over",
        ReloadingRecommender._after_look,
        "back = new.cutoff < slot.cutoff",
        "back = False",
        [Step("publish", 2), Step("publish", 1)],
    ),
    Break(
        "once one was rolled back to, any older state takes over",
        Routing.may_go_back,
        "self.rolled_back.get(tier) == digest",
        "tier in self.rolled_back",
        [Step("publish", 2), Step("roll back", 0), Step("publish", 3), Step("publish", 1)],
    ),
    Break(
        "a tier that stopped goes back",
        reloading._Slot.stopped,
        "cutoff=self.cutoff",
        "cutoff=''",
        [Step("publish", 2), Step("remove"), Step("publish", 1)],
    ),
    Break(
        "a mapping that was changed goes on",
        ReloadingRecommender._after_look,
        "if old is not None and _changed_in_place(slot.look, before) and _still(path, before):",
        "if False:",
        [Step("publish", 1), Step("in place")],
    ),
    Break(
        "deadlines are not looked up",
        Recommender._try,
        "if problem := asked.stopped(scorer.digest):",
        "if problem := '':",
        [Step("publish", 1), Step("revoke", 1), Step("alter and publish", 2), Step("hour")],
    ),
)
def test_a_reload_that_checks_less_would_be_noticed(broken: Break) -> None:
    assert_breaks(check, cases, broken)
