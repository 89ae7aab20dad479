"""Next item of a session: quality with intervals, and cost, on Diginetica and RetailRocket.

Every prefix of every test session asks for the item that comes next, among all items; lists of 20. Items of
the session may come again. ``new/…``: only requests whose next item is not in the session yet, and lists
without the session's items. Intervals are over sessions. Parameters are chosen on the last days of train.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import ours, session_baselines, session_knn, splits
from benchmarks.quality.benchmark import Benchmark, Contender, Parameters, run
from benchmarks.quality.measure import Clock, Measured, Task, Values, drawn, latency, rows_of
from consentier.training.metrics import Relevant, hit_rate, mrr, ndcg

CUTOFF = 20


class SessionModel(Protocol):
    """What the benchmark asks of a model."""

    def fit(self, sessions: splits.Sessions) -> None:
        """Learn from past sessions."""

    def recommend(self, prefix: NDArray[np.int64], now: float, count: int) -> NDArray[np.int64]:
        """At most `count` items, best first, after the clicks of `prefix`, the last at `now` seconds."""


class Request(NamedTuple):
    """The clicks so far, and what came next."""

    session: int
    prefix: NDArray[np.int64]
    now: float
    target: int


class SessionBenchmark(Benchmark):
    """See the module."""

    name = "session"
    sets = ("diginetica", "retailrocket")
    unit = "sessions"
    objective = "ndcg@20"
    contenders = {  # noqa: RUF012
        "popularity": Contender(session_baselines.Popularity),
        "session_popularity": Contender(session_baselines.SessionPopularity),
        "sequential_rules": Contender(session_baselines.SequentialRules),
        "item_neighbours": Contender(session_baselines.ItemNeighbours),
        "vsknn": Contender(session_knn.VSKNN),
        "vmis": Contender(session_knn.VMIS),
        "vstan": Contender(session_knn.VSTAN),
        "local_ridge": Contender(ours.LocalRidgeSessions, ours=True),
    }

    def files(self, dataset: str) -> tuple[str, ...]:
        """See the base class."""
        return tuple(f"session/{dataset}/{part}.parquet" for part in ("train", "test"))

    def split(self, task: Task) -> splits.SessionSplit:
        """See the base class."""
        return splits.read_sessions(Path(task.data), task.dataset, task.part, task.limit)

    def quality(self, task: Task, split: splits.SessionSplit, parameters: Parameters) -> Values:
        """See the base class."""
        model = self._model(task.model, split.item_count, parameters)
        model.fit(split.train)
        asked = list(requests(split.test))
        return judged(asked, [model.recommend(each.prefix, each.now, CUTOFF) for each in asked], None)

    def measure(self, task: Task) -> Measured:
        """See the base class."""
        self._warm_up(task)
        split = self.split(task)
        model = self._model(task.model, split.item_count, task.parameters)
        clock = Clock()
        with clock.running():
            model.fit(split.train)
        asked = list(requests(split.test))
        answering = Clock()
        with answering.running():
            lists = [model.recommend(each.prefix, each.now, CUTOFF) for each in asked]
        new = [without_seen(model, each) for each in asked if each.target not in each.prefix]
        one_by_one = latency(
            lambda each: model.recommend(each.prefix, each.now, CUTOFF),
            [asked[k] for k in drawn(len(asked), task.latency_requests)],
        )
        facts = {
            "split": split.facts(),
            "fit": clock.facts(),
            "batch": answering.rates(len(asked)),
            "single": one_by_one,
        }
        return Measured(facts, judged(asked, lists, new))

    def _warm_up(self, task: Task) -> None:
        model = self._model(task.model, 50, task.parameters)
        items = np.random.default_rng(1).integers(0, 50, 300).astype(np.int64)
        items[:50] = np.arange(50)
        model.fit(splits.Sessions(np.arange(0, 301, 3), items, np.arange(300.0)))
        model.recommend(items[:3], 300.0, CUTOFF)

    def _model(self, name: str, item_count: int, parameters: Parameters) -> SessionModel:
        return cast("SessionModel", self.contenders[name].make(item_count=item_count, **parameters))


def requests(sessions: splits.Sessions) -> Iterator[Request]:
    """Every prefix of every session, in order."""
    for session in range(len(sessions)):
        start, stop = int(sessions.starts[session]), int(sessions.starts[session + 1])
        for position in range(start + 1, stop):
            prefix = sessions.items[start:position]
            yield Request(session, prefix, float(sessions.times[position - 1]), int(sessions.items[position]))


def without_seen(model: SessionModel, request: Request) -> NDArray[np.int64]:
    """The best items that the session does not hold yet."""
    seen = np.unique(request.prefix)
    found = model.recommend(request.prefix, request.now, CUTOFF + len(seen))
    return found[~np.isin(found, seen)][:CUTOFF]


def judged(asked: list[Request], lists: list[Any], new: list[Any] | None) -> Values:
    """Metrics of each request, and of those with a new target from the lists `new`, where they are given."""
    values = _ranked(asked, lists, "")
    if new is not None:
        values |= _ranked([each for each in asked if each.target not in each.prefix], new, "new/")
    return values


def _ranked(asked: list[Request], lists: list[Any], prefix: str) -> Values:
    recommended = rows_of(lists, CUTOFF)
    targets = np.array([each.target for each in asked], dtype=np.int64)
    relevant = Relevant(np.arange(len(asked) + 1), targets)
    values = {
        f"{prefix}hit_rate@20": hit_rate(recommended, relevant, CUTOFF),
        f"{prefix}mrr@20": mrr(recommended, relevant, CUTOFF),
        f"{prefix}ndcg@20": ndcg(recommended, relevant, CUTOFF),
    }
    return values | {f"{prefix}clusters": np.array([each.session for each in asked], dtype=np.float64)}


BENCHMARK = SessionBenchmark()

if __name__ == "__main__":
    run(BENCHMARK)
