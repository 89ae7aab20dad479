"""What is asked for right now: items by how many permitted visitors came for them within the last hour.

A visitor counts once per item, however often they click. No id is kept: a bucket of some minutes holds keyed
digests, under a key that was drawn for it and goes with it. What readers get is an immutable list of items,
which is renewed every few seconds and says nothing of who is behind it.

A withdrawal takes all of a visitor's counts back: until a bucket ends its key can still find them. From then
on, and after the last bucket has ended, the counts are those that there would be without the visitor.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import heapq
import itertools
import json
import logging
import math
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from consentier.consent import ConsentRecord, Source, microseconds
from consentier.consent.records import PARENTAL
from consentier.serving.clock import utc_now
from consentier.serving.forking import tell_of_forks
from consentier.serving.guarded_ledger import LEDGER_FAULT
from consentier.serving.patience import Guard, StoreUnread

__all__ = ["Counting", "Trending", "TrendingSnapshot", "Trends"]

_log = logging.getLogger("consentier.serving")

_COVERING = {PARENTAL: ("lifted",)}
"""States that leave what was counted before: parents' consent does not carry what their child permitted."""

_WHOLE = 1 << 16
"""What a visitor of the running bucket counts: whole numbers are the same in any order of a sum."""


_LEDGER_SECONDS = 1.0
"""So long an event, or a reader, waits for each answer of the ledger when a snapshot is due."""

_ENTRIES_AT_ONCE = 500
"""How many of the ledger's entries are one answer."""


class _News(NamedTuple):
    """Who must not count any more by the ledger's next entries, and up to which; whether those are all."""

    gone: Sequence[str]
    position: int
    whole: bool


@dataclasses.dataclass(frozen=True, slots=True)
class TrendingSnapshot:
    """What is published, and all that an answer may rest on.

    Attributes
    ----------
    items
        Ids, the one that most is asked for first.
    share
        How much of what the popular list gives to an answer these items take at most.
    digest
        SHA-256 of both: an answer names it, and is replayed with a snapshot that has it.
    """

    items: tuple[str, ...] = ()
    share: float = 0.5
    digest: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        _check_share(self.share)
        for item in self.items:
            if not isinstance(item, str):
                raise TypeError(f"what is trending holds {item!r}; item ids are strings")
        text = json.dumps([self.share, self.items], ensure_ascii=True, separators=(",", ":"))
        object.__setattr__(self, "digest", hashlib.sha256(text.encode("ascii")).hexdigest())

    def current(self) -> TrendingSnapshot:
        """Itself: a snapshot can stand where something that changes does."""
        return self

    def slots(self, n: int) -> int:
        """How many of n items of the popular list trending ones may take: rounded up."""
        return math.ceil(self.share * n)


class Trends(Protocol):
    """What a recommender asks for what is trending."""

    def current(self) -> TrendingSnapshot:
        """The snapshot of this moment; never waits."""
        ...


class _Bucket:
    """Some minutes of events: who came for what, under digests that mean nothing outside of it."""

    __slots__ = ("_key", "counts", "entries", "visitors")

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self.visitors: dict[bytes, set[str]] = {}
        self.counts: Counter[str] = Counter()
        self.entries = 0

    def name(self, visitor_id: str) -> bytes:
        text = visitor_id.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._key, digest_size=16).digest()

    def items_of(self, visitor_id: str) -> set[str]:
        return self.visitors.get(self.name(visitor_id), set())

    def add(self, visitor_id: str, item_id: str) -> None:
        self.visitors.setdefault(self.name(visitor_id), set()).add(item_id)
        self.counts[item_id] += 1
        self.entries += 1

    def discard(self, visitor_id: str, items: set[str]) -> set[str]:
        """Take back some of a visitor's items; nothing stays of what is not counted any more."""
        name = self.name(visitor_id)
        known = self.visitors.get(name, set())
        gone = known & items
        for item in gone:
            self.counts[item] -= 1
            if not self.counts[item]:
                del self.counts[item]
        self.entries -= len(gone)
        if gone == known:
            self.visitors.pop(name, None)
        else:
            known -= gone
        return gone


class Trending:
    """Counts permitted visitors by item, and publishes what is trending. Safe to use from any thread.

    Counts are this process's own: one that is forked begins with none. They reach a recommender
    (`Recommender.load(trending=…)`), whose `observe` fills them with what was permitted.

    Parameters
    ----------
    window
        So long an event counts.
    bucket
        The window's parts, whole ones: an event counts less with each, and a part is forgotten at once.
    half_life
        After which a visitor counts half as much.
    min_visitors
        Items that fewer distinct visitors came for within the window are not published.
    share
        How much of what the popular list gives to an answer is trending, at most: above 0 and up to 1.
    most_items
        How many items are published at most.
    items_per_visitor
        How many items of one visitor count in a bucket.
    entries_per_bucket
        How many pairs of visitor and item a bucket holds at most; see Notes.
    every
        Seconds that a snapshot lasts before the next event renews it.
    ledger
        A ledger that other processes write to: before each snapshot, whoever has withdrawn there is taken
        out. If it cannot be read, nothing is trending.
    published
        Called with each snapshot that differs from the one before, for whoever wants to replay answers.
    clock
        Says what time it is.

    Raises
    ------
    TypeError, ValueError
        If a setting is out of range.

    Notes
    -----
    Counting costs two keyed digests for each living bucket; renewing the snapshot, a pass over the items, in
    the thread of the event that finds it due; once a bucket, a pass over the items of all buckets. Readers
    take what is there; only if no event has come for as long as a bucket lasts, a reader renews it, unless
    another thread is at it. Memory is bounded
    by `entries_per_bucket` times the buckets. When a bucket is full, further visitors and items are left out
    of it and counted in `left_out`. Then, and only then, what others left out stays out after a withdrawal.
    """

    def __init__(
        self,
        *,
        window: dt.timedelta = dt.timedelta(hours=1),
        bucket: dt.timedelta = dt.timedelta(minutes=5),
        half_life: dt.timedelta = dt.timedelta(minutes=20),
        min_visitors: int = 5,
        share: float = 0.5,
        most_items: int = 200,
        items_per_visitor: int = 100,
        entries_per_bucket: int = 100_000,
        every: float = 5.0,
        ledger: Any = None,
        published: Callable[[TrendingSnapshot], object] | None = None,
        clock: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        if not dt.timedelta(0) < bucket <= window or window % bucket:
            raise ValueError(f"Trending: window must be a multiple of bucket, not {window} of {bucket}")
        if not half_life > dt.timedelta(0):
            raise ValueError(f"Trending: half_life must be positive, not {half_life}")
        if not 0 <= every < math.inf:
            raise ValueError(f"Trending: every must be a number of seconds, not {every}")
        for name, number in (
            ("min_visitors", min_visitors),
            ("most_items", most_items),
            ("items_per_visitor", items_per_visitor),
            ("entries_per_bucket", entries_per_bucket),
        ):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"Trending: {name} must be a whole number, not {number!r}")
            if number < 1:
                raise ValueError(f"Trending: {name} must be at least 1, not {number}")
        self._length = bucket // dt.timedelta(microseconds=1)
        self._weights = [
            round(_WHOLE * 2 ** (-age * (bucket / half_life))) for age in range(window // bucket)
        ]
        self._min_visitors, self._most_items = min_visitors, most_items
        self._items_per_visitor, self._entries = items_per_visitor, entries_per_bucket
        self._every = dt.timedelta(seconds=every)
        self._ledger = ledger
        self._guard = Guard(LEDGER_FAULT, ledger)
        self._position = 0 if ledger is None else ledger.position
        self._tell = published
        self._clock = clock
        self._empty = TrendingSnapshot((), share)
        now = clock()
        self._published = self._empty, now, now
        """The snapshot, when it was made, and until when readers take it as it is."""
        self._begin()
        tell_of_forks(self)

    def _begin(self) -> None:
        """Begin with no counts."""
        self._lock = threading.Lock()
        self._buckets: dict[int, _Bucket] = {}
        self._newest = 0
        self._visitors: Counter[str] = Counter()
        self._scores: Counter[str] = Counter()
        """Over all buckets, by item: how many visitors, and what they count while `_newest` runs."""
        self._left_out = 0

    def after_fork(self) -> None:
        """For forked processes: whoever held the lock, perhaps amid a change, is not here to end it."""
        self._begin()
        made = self._published[1]
        self._published = self._empty, made, made

    @property
    def window(self) -> dt.timedelta:
        """So long an event counts."""
        return dt.timedelta(microseconds=self._length * len(self._weights))

    @property
    def left_out(self) -> int:
        """How many events found their bucket, or their visitor's part of it, full."""
        return self._left_out

    def current(self) -> TrendingSnapshot:
        """The snapshot of this moment. Never waits for a lock."""
        snapshot, _, until = self._published
        now = self._clock()
        if now < until or not self._lock.acquire(blocking=False):
            return snapshot
        try:
            return self._renewed(now)
        finally:
            self._lock.release()

    def ends(self, at: dt.datetime) -> dt.datetime:
        """Until when an event of some instant counts at most."""
        return at + self.window

    def count(self, visitor_id: str, item_id: str, at: dt.datetime) -> bool:
        """Count a visitor who came for an item, once however often it is told. Say whether they count.

        Ask for the permission first: this asks nobody.

        Parameters
        ----------
        visitor_id
            Who; only digests of it are kept.
        item_id
            For what.
        at
            When. What is older than the window does not count.
        """
        now = self._clock()
        with self._lock:
            due = now - self._published[1] >= self._every
            readable = not due or self._looked(now)  # first: an event after a new grant is not of before it
            counted = self._counted(visitor_id, item_id, microseconds(at) // self._length, now)
            if due:
                self._publish(self._snapshot(now) if readable else self._empty, now)
        return counted

    def purge(self, visitor_id: str) -> int:
        """Take back all that a visitor counts, and publish at once; say how many items it was.

        It has the form of a profile store's: give this to `withdraw` among the stores of online profiles.
        """
        now = self._clock()
        with self._lock:
            gone = self._without(visitor_id)
            if gone:
                self._renewed(now)
        return gone

    def _counted(self, visitor_id: str, item_id: str, own: int, now: dt.datetime) -> bool:
        """Count in one bucket, unless a later one knows of the pair, and in no earlier one any more."""
        self._turn_to(now)
        if own < self._oldest():
            return False
        if any(number >= own and item_id in bucket.items_of(visitor_id) for number, bucket in self._living()):
            return True
        bucket = self._buckets.get(own) or _Bucket()
        if bucket.entries >= self._entries or len(bucket.items_of(visitor_id)) >= self._items_per_visitor:
            self._left_out += 1
            return False
        for number, other in self._living():
            self._discard(number, other, visitor_id, {item_id})
        bucket.add(visitor_id, item_id)
        self._buckets[own] = bucket
        self._visitors[item_id] += 1
        self._scores[item_id] += self._weight(own)
        return True

    def _without(self, visitor_id: str) -> int:
        return sum(
            self._discard(number, bucket, visitor_id, bucket.items_of(visitor_id))
            for number, bucket in self._living()
        )

    def _discard(self, number: int, bucket: _Bucket, visitor_id: str, items: set[str]) -> int:
        gone = bucket.discard(visitor_id, items)
        for item in gone:
            self._visitors[item] -= 1
            self._scores[item] -= self._weight(number)
            if not self._visitors[item]:
                del self._visitors[item], self._scores[item]
        return len(gone)

    def _weight(self, number: int) -> int:
        """What a visitor of a bucket counts; one of a clock that is ahead is of the newest."""
        return self._weights[max(self._newest - number, 0)]

    def _living(self) -> Iterator[tuple[int, _Bucket]]:
        return iter(self._buckets.items())

    def _oldest(self) -> int:
        return self._newest - len(self._weights) + 1

    def _turn_to(self, now: dt.datetime) -> None:
        """Where another bucket runs than before, forget those that have ended and weigh the others anew."""
        newest = microseconds(now) // self._length
        if newest == self._newest:
            return
        self._newest = newest
        self._buckets = {number: each for number, each in self._living() if number >= self._oldest()}
        self._visitors, self._scores = Counter(), Counter()
        for number, bucket in self._living():
            weight = self._weight(number)
            self._visitors.update(bucket.counts)
            self._scores.update({item: weight * count for item, count in bucket.counts.items()})

    def _renewed(self, now: dt.datetime) -> TrendingSnapshot:
        """Make a snapshot and publish it; the lock is held."""
        return self._publish(self._snapshot(now) if self._looked(now) else self._empty, now)

    def _publish(self, snapshot: TrendingSnapshot, now: dt.datetime) -> TrendingSnapshot:
        before = self._published[0]
        self._published = snapshot, now, now + dt.timedelta(microseconds=self._length)
        if self._tell is not None and snapshot.digest != before.digest:
            try:
                self._tell(snapshot)
            except Exception as error:  # noqa: BLE001 - whoever is told fails no event
                _log.error("trending: telling of a snapshot failed: %s", type(error).__name__)
        return snapshot

    def _snapshot(self, now: dt.datetime) -> TrendingSnapshot:
        self._turn_to(now)
        enough = (item for item, count in self._visitors.items() if count >= self._min_visitors)
        best = heapq.nsmallest(self._most_items, enough, key=lambda item: (-self._scores[item], item))
        return dataclasses.replace(self._empty, items=tuple(best))

    def _looked(self, now: dt.datetime) -> bool:
        """Whether the ledger could be asked who has withdrawn, where there is one to ask."""
        try:
            self._take_withdrawals(now)
        except StoreUnread as unread:  # whatever the ledger's fault is
            _log.warning("trending: the consent %s", unread)
            return False
        return True

    def _take_withdrawals(self, now: dt.datetime) -> None:
        """Take out whom the ledger, by what is new in it, does not let count any more."""
        if self._ledger is None:
            return
        news = _News((), self._position, whole=False)
        while not news.whole:
            news = self._guard.ask(lambda: self._news(now), _LEDGER_SECONDS)
            for visitor_id in news.gone:
                self._without(visitor_id)
            self._position = news.position

    def _news(self, now: dt.datetime) -> _News:
        """Ask the ledger for its next entries. It changes nothing: nobody may be waiting for it any more."""
        entries = list(itertools.islice(self._ledger.entries(after=self._position), _ENTRIES_AT_ONCE))
        about: dict[str, bool] = {}
        for _, entry in entries:
            if isinstance(entry, ConsentRecord) and entry.subject_kind == "visitor":
                refuses = entry.state not in _COVERING.get(entry.permission, ("granted", "lifted"))
                about[entry.subject_id] = about.get(entry.subject_id, False) or refuses
        gone = [
            visitor_id
            for visitor_id, refused in about.items()
            # Whoever refused and agreed again has counts that the new grant does not cover: all of them go.
            if refused or self._ledger.standing(Source.ONLINE, visitor_id, at=now).since is None
        ]
        position = entries[-1][0] if entries else self._position
        return _News(gone, position, whole=len(entries) < _ENTRIES_AT_ONCE)


@dataclasses.dataclass(frozen=True, slots=True)
class Counting:
    """Where events are counted, and under which conditions.

    Attributes
    ----------
    trending
        The counts.
    shows
        Whether an item may be shown at all. Others do not count: sensitive ones, and what the shop does not
        sell.
    model_purpose
        Whether the shop's notice asks separately for contributing to models: counts are a contribution.
    """

    trending: Trending
    shows: Callable[[str], bool]
    model_purpose: bool = False


def _check_share(share: object) -> None:
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise TypeError(f"the share of what is trending must be a number, not {share!r}")
    if not 0 < share <= 1:
        raise ValueError(f"the share of what is trending must be above 0 and at most 1, not {share}")
