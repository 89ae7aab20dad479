"""Places that users check in at, on Gowalla: quality with intervals, and cost.

LightGCN's published split; every user is learned from and judged, full ranking, items of train excluded.
Recall@20 divides by the user's test items. Parameters are chosen on a random fifth of each user's train
items.
"""

from __future__ import annotations

from benchmarks.quality import splits
from benchmarks.quality.benchmark import run
from benchmarks.quality.matrix import MatrixBenchmark, data_of
from benchmarks.quality.measure import Task


class GowallaBenchmark(MatrixBenchmark):
    """See the module."""

    name = "gowalla"
    sets = ("gowalla",)
    objective = "ndcg@20"
    metrics = (("recall", 20), ("ndcg", 20))

    def files(self, dataset: str) -> tuple[str, ...]:
        """See the base class."""
        return tuple(f"cf/{dataset}/{part}.parquet" for part in ("train", "test"))

    def cases(self, task: Task) -> dict[str, splits.MatrixSplit]:
        """See the base class."""
        return {"": splits.read_gowalla(data_of(task), task.part)}


BENCHMARK = GowallaBenchmark()

if __name__ == "__main__":
    run(BENCHMARK)
