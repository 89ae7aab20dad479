"""A shop in which visitors come, agree, withdraw and click, and what should be trending in it."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter

from engines import ITEMS, bundles
from hypothesis import strategies as st

from consentier.consent import ConsentRecord, Ledger
from consentier.serving import Catalogue, Event, Recommender
from consentier.serving.observing import Observed
from consentier.serving.trending import Trending

__all__ = [
    "BUCKET",
    "BUCKETS",
    "START",
    "VISITORS",
    "Step",
    "World",
    "expected_counts",
    "expected_items",
    "steps",
]

START = dt.datetime(2026, 3, 1, 9, 58, tzinfo=dt.UTC)
VISITORS = ("ann", "ben", "cem")
SEEN = (ITEMS[0], ITEMS[1], ITEMS[2], "brand-new", "pills", "sold-out", "unheard-of")
SHOWN = frozenset(SEEN[:4])
LATE = dt.timedelta(minutes=7)
BUCKET = dt.timedelta(minutes=5)
BUCKETS = 4


@dataclasses.dataclass(frozen=True)
class Step:
    """What one visitor does, so many minutes after the step before."""

    visitor: str
    does: str
    item: str = ITEMS[0]
    minutes: int = 1


_steps = st.builds(
    Step,
    st.sampled_from(VISITORS),
    st.sampled_from([*["click"] * 6, *["late click"] * 2, "remove", "agree", "agree", "withdraw", "refuse"]),
    st.sampled_from(SEEN),
    st.integers(1, 6),
)
steps: st.SearchStrategy[list[Step]] = st.tuples(
    st.lists(st.sampled_from(VISITORS).map(lambda visitor: Step(visitor, "agree")), max_size=3),
    st.lists(_steps, max_size=14),
).map(lambda parts: [*parts[0], *parts[1]])


class World:
    """The shop: a ledger, counts, and a recommender that is told of what happens.

    Parameters
    ----------
    follows
        Whether the counts learn of a withdrawal from the ledger alone, as if another process took it in.
    """

    def __init__(self, *, follows: bool = False, min_visitors: int = 1) -> None:
        self.now = START
        self.ledger = Ledger([])
        self.trending = Trending(
            window=BUCKET * BUCKETS,
            bucket=BUCKET,
            min_visitors=min_visitors,
            every=0,
            ledger=self.ledger if follows else None,
            clock=lambda: self.now,
        )
        self._follows = follows
        self.recommender = Recommender.load(
            bundles(),
            ledger=self.ledger,
            catalogue=Catalogue(frozenset({*ITEMS[:12], "brand-new"}), frozenset({"pills"})),
            trending=self.trending,
            audit_key=b"key",
            clock=lambda: self.now,
            compiled=False,
        )

    def run(self, steps: list[Step]) -> list[Observed | None]:
        """Let it all happen; what became of each click."""
        return [self.step(step) for step in steps]

    def step(self, step: Step) -> Observed | None:
        """Let one thing happen."""
        self.now += dt.timedelta(minutes=step.minutes)
        if step.does == "rest":
            return None
        if step.does in ("agree", "withdraw", "refuse"):
            self._record(step)
            return None
        happened = self.now - (LATE if step.does == "late click" else dt.timedelta(0))
        kind = "remove" if step.does == "remove" else "view"
        return self.recommender.observe(Event(step.item, happened, kind), visitor_id=step.visitor)

    def renew(self) -> None:
        """Publish what is trending now."""
        with self.trending._lock:
            self.trending._renewed(self.now)

    def counts(self) -> dict[int, dict[str, int]]:
        """The counts by bucket."""
        self.renew()
        return {
            number: dict(bucket.counts) for number, bucket in self.trending._buckets.items() if bucket.counts
        }

    def _record(self, step: Step) -> None:
        permission = "model" if step.does == "refuse" else "online"
        state = {"agree": "granted", "withdraw": "withdrawn", "refuse": "denied"}[step.does]
        name = f"{step.visitor} {step.does} {self.now.isoformat()}"
        self.ledger.append(
            [ConsentRecord(name, step.visitor, "visitor", permission, state, self.now, self.now)]
        )
        if step.does != "agree" and not self._follows:
            self.trending.purge(step.visitor)


def expected_counts(steps: list[Step]) -> tuple[list[bool], dict[int, dict[str, int]]]:
    """Which clicks count, and what the counts are in the end: read off the steps, slowly."""
    now, since, refused = START, dict[str, dt.datetime](), set[str]()
    latest: dict[tuple[str, str], dt.datetime] = {}
    told = []
    for step in steps:
        now += dt.timedelta(minutes=step.minutes)
        if step.does == "agree":
            since.setdefault(step.visitor, now)
        elif step.does in ("withdraw", "refuse"):
            latest = {pair: at for pair, at in latest.items() if pair[0] != step.visitor}
            if step.does == "withdraw":
                since.pop(step.visitor, None)
            else:
                refused.add(step.visitor)
        else:
            happened = now - (LATE if step.does == "late click" else dt.timedelta(0))
            lawful = step.visitor in since and since[step.visitor] <= happened
            fits = step.item in SHOWN and step.does != "remove"
            counts = lawful and fits and step.visitor not in refused
            told.append(counts)
            if counts:
                pair = step.visitor, step.item
                latest[pair] = max(happened, latest.get(pair, happened))
    oldest = _bucket(now) - BUCKETS + 1
    counts: dict[int, Counter[str]] = {}
    for (_, item), at in latest.items():
        if _bucket(at) >= oldest:
            counts.setdefault(_bucket(at), Counter())[item] += 1
    return told, {number: dict(items) for number, items in counts.items()}


def expected_items(counts: dict[int, dict[str, int]], now: dt.datetime) -> tuple[str, ...]:
    """What is published of some counts: a visitor counts half as much after four buckets of five minutes."""
    scores: Counter[str] = Counter()
    for number, items in counts.items():
        for item, visitors in items.items():
            scores[item] += visitors * round(65536 * 0.5 ** ((_bucket(now) - number) / 4))
    return tuple(sorted(scores, key=lambda item: (-scores[item], item)))


def _bucket(at: dt.datetime) -> int:
    return int(at.timestamp()) // int(BUCKET.total_seconds())
