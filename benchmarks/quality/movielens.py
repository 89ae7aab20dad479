"""Films that users like, on MovieLens-1M: quality with intervals, and cost.

Ratings of 4 and above; strong generalisation: judged users are not learned from and give four fifths of their
films as history. Recall@k divides by min(k, held-out films). Parameters are chosen on the published
validation users.
"""

from __future__ import annotations

from benchmarks.quality import splits
from benchmarks.quality.benchmark import run
from benchmarks.quality.matrix import MatrixBenchmark, data_of
from benchmarks.quality.measure import Task

FILES = ("train", "val_foldin", "val_heldout", "test_foldin", "test_heldout")


class MovieLensBenchmark(MatrixBenchmark):
    """See the module."""

    name = "movielens"
    sets = ("movielens1m",)
    objective = "ndcg@100"
    metrics = (("ndcg", 100), ("capped_recall", 20), ("capped_recall", 50))

    def files(self, dataset: str) -> tuple[str, ...]:
        """See the base class."""
        return tuple(f"cf/{dataset}/{part}.parquet" for part in FILES)

    def cases(self, task: Task) -> dict[str, splits.MatrixSplit]:
        """See the base class."""
        return {"": splits.read_movielens(data_of(task), task.part)}


BENCHMARK = MovieLensBenchmark()

if __name__ == "__main__":
    run(BENCHMARK)
