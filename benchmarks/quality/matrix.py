"""What the benchmarks on user-item matrices share: Gowalla, MovieLens, Taobao."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.quality import ours, peers, splits
from benchmarks.quality.benchmark import Benchmark, Contender, Parameters
from benchmarks.quality.measure import Clock, Measured, Task, Values, drawn, latency
from consentier.training.metrics import capped_recall, ndcg, recall

__all__ = ["CONTENDERS", "MatrixBenchmark", "MatrixModel"]

_METRICS = {"recall": recall, "capped_recall": capped_recall, "ndcg": ndcg}


class MatrixModel(Protocol):
    """What the benchmarks ask of a model."""

    def fit(self, train: splits.Interactions) -> None:
        """Learn from users."""

    def recommend(
        self, histories: splits.Interactions, hidden: sparse.csr_matrix, count: int
    ) -> NDArray[np.int64]:
        """The best items of each user that are not hidden, padded with -1: int64 (users × count)."""


CONTENDERS: Mapping[str, Contender] = {
    "popularity": Contender(peers.Popularity),
    "segment_popularity": Contender(peers.SegmentPopularity),
    "implicit_als": Contender(peers.ImplicitALS, package="implicit"),
    "implicit_bpr": Contender(peers.ImplicitBPR, package="implicit"),
    "implicit_knn": Contender(peers.ImplicitKNN, package="implicit"),
    "ease": Contender(peers.EASE),
    "irspack_ials": Contender(peers.IrspackIALS, package="irspack"),
    "irspack_edlae": Contender(peers.IrspackEDLAE, package="irspack"),
    "irspack_slim": Contender(peers.IrspackSLIM, package="irspack"),
    "irspack_rp3beta": Contender(peers.IrspackRP3beta, package="irspack"),
    "local_ridge": Contender(ours.LocalRidgeUsers, ours=True),
    "neighbours": Contender(ours.NeighbourUsers, ours=True),
    "als": Contender(ours.FactorUsers, ours=True),
    "spectral": Contender(ours.SpectralUsers, ours=True),
}
"""All classes of models for user-item matrices."""


class MatrixBenchmark(Benchmark):
    """Fits to a matrix and judges one list per user, in one or several cases."""

    unit = "users"
    contenders = CONTENDERS
    metrics: ClassVar[tuple[tuple[str, int], ...]]
    """Names and cutoffs."""

    @abstractmethod
    def cases(self, task: Task) -> dict[str, splits.MatrixSplit]:
        """The splits to judge, with the prefix of their metrics' names; all learn from the same train.

        Costs are measured on the first.
        """

    def split(self, task: Task) -> dict[str, splits.MatrixSplit]:
        """See the base class."""
        return {prefix: split.users(task.limit) for prefix, split in self.cases(task).items()}

    def quality(self, task: Task, split: dict[str, splits.MatrixSplit], parameters: Parameters) -> Values:
        """See the base class."""
        first = next(iter(split.values()))
        model = self._model(task.model, first.item_count, parameters)
        model.fit(first.train)
        return self.judged({prefix: self._lists(model, case) for prefix, case in split.items()}, split)

    def measure(self, task: Task) -> Measured:
        """See the base class."""
        self._warm_up(task)
        split = self.split(task)
        name, first = next(iter(split.items()))
        model = self._model(task.model, first.item_count, task.parameters)
        clock = Clock()
        with clock.running():
            model.fit(first.train)
        answering = Clock()
        with answering.running():
            lists = {name: self._lists(model, first)}
        count = self._count()
        single = [
            (first.histories.rows(slice(k, k + 1)), first.hidden[k : k + 1])
            for k in drawn(len(first.histories), task.latency_requests)
        ]
        facts = {
            "split": first.facts(),
            "fit": clock.facts(),
            "batch": answering.rates(len(first.histories)),
            "single": latency(lambda asked: model.recommend(asked[0], asked[1], count), single),
        }
        lists |= {prefix: self._lists(model, case) for prefix, case in split.items() if prefix != name}
        return Measured(facts, self.judged(lists, split))

    def judged(self, lists: Mapping[str, NDArray[np.int64]], cases: dict[str, splits.MatrixSplit]) -> Values:
        """Metrics of each judged user in each case."""
        return {
            f"{prefix}{name}@{cutoff}": _METRICS[name](lists[prefix], case.held_out, cutoff)
            for prefix, case in cases.items()
            for name, cutoff in self.metrics
        }

    def _lists(self, model: MatrixModel, case: splits.MatrixSplit) -> NDArray[np.int64]:
        return model.recommend(case.histories, case.hidden, self._count())

    def _count(self) -> int:
        """Length of the lists that all metrics can be computed from."""
        return max(cutoff for _, cutoff in self.metrics)

    def _warm_up(self, task: Task) -> None:
        """Fit to 60 users with 40 items, and answer."""
        generator = np.random.default_rng(1)

        def drawn_matrix(columns: int) -> sparse.csr_matrix:
            return sparse.csr_matrix((generator.random((60, columns)) < 0.2).astype(np.float32))

        items = drawn_matrix(40)
        rows = splits.Interactions(items, drawn_matrix(40), drawn_matrix(8), np.arange(60))
        model = self._model(task.model, 40, _smaller(task.parameters))
        model.fit(rows)
        model.recommend(rows.rows(slice(0, 2)), sparse.csr_matrix(items[:2], dtype=np.bool_), 10)

    def _model(self, name: str, item_count: int, parameters: Parameters) -> MatrixModel:
        return cast("MatrixModel", self.contenders[name].make(item_count=item_count, **parameters))


def _smaller(parameters: Parameters) -> Parameters:
    """The same, with few factors and iterations."""
    few = {"factors": 8, "iterations": 1}
    return {name: min(value, few[name]) if name in few else value for name, value in parameters.items()}


def data_of(task: Task) -> Path:
    """The directory of all sets."""
    return Path(task.data)
