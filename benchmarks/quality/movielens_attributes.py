"""Users with few films and known attributes, on MovieLens-1M: quality with intervals, and cost.

As the benchmark `movielens`, but of each judged user only 0, 1, 3 or 5 films are known, and age band, gender,
occupation and region; and once all films, to see whether attributes do harm there. Parameters are chosen by
the mean over the short histories on the published validation users.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import splits
from benchmarks.quality.benchmark import run
from benchmarks.quality.matrix import MatrixBenchmark, data_of
from benchmarks.quality.measure import Task, Values
from benchmarks.quality.movielens import FILES

HISTORIES = (0, 1, 3, 5)


class AttributesBenchmark(MatrixBenchmark):
    """See the module."""

    name = "movielens_attributes"
    sets = ("movielens1m_attributes",)
    objective = "mean/ndcg@100"
    metrics = (("ndcg", 100),)

    def files(self, dataset: str) -> tuple[str, ...]:
        """See the base class."""
        return tuple(f"cf/movielens1m/{part}.parquet" for part in (*FILES, "users"))

    def cases(self, task: Task) -> dict[str, splits.MatrixSplit]:
        """See the base class."""
        return {
            f"{'all' if history is None else history} films/": splits.read_movielens(
                data_of(task), task.part, history, attributes=True
            )
            for history in (*HISTORIES, None)
        }

    def judged(self, lists: Mapping[str, NDArray[np.int64]], cases: dict[str, splits.MatrixSplit]) -> Values:
        """See the base class; the mean of each user's figures over the short histories as well."""
        values = super().judged(lists, cases)
        short = [values[f"{history} films/ndcg@100"] for history in HISTORIES]
        return {**values, self.objective: np.mean(short, axis=0)}


BENCHMARK = AttributesBenchmark()

if __name__ == "__main__":
    run(BENCHMARK)
