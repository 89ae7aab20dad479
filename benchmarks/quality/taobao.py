"""The next order of customers with carts and orders, on Taobao: quality with intervals, and cost.

Carts are the online source, orders the CRM source; one order a user is held out. All users are learned
from, those with both sources are judged. Without prefix: new items only (what is in the cart or was bought is
hidden, and users whose held-out item is in their cart are left out); ``carted too/…``: only what was bought
is hidden. Parameters are chosen on one more order of each user.
"""

from __future__ import annotations

from benchmarks.quality import splits
from benchmarks.quality.benchmark import run
from benchmarks.quality.matrix import MatrixBenchmark, data_of
from benchmarks.quality.measure import Task


class TaobaoBenchmark(MatrixBenchmark):
    """See the module."""

    name = "taobao"
    sets = ("taobao",)
    objective = "ndcg@20"
    metrics = (("recall", 20), ("ndcg", 20))

    def files(self, dataset: str) -> tuple[str, ...]:
        """See the base class."""
        return tuple(
            f"twosource/{dataset}/{part}.parquet" for part in ("carts", "orders_train", "orders_test")
        )

    def cases(self, task: Task) -> dict[str, splits.MatrixSplit]:
        """See the base class."""
        return {
            prefix: splits.read_taobao(data_of(task), task.part, new_items_only, both_sources_only=True)
            for prefix, new_items_only in (("", True), ("carted too/", False))
        }


BENCHMARK = TaobaoBenchmark()

if __name__ == "__main__":
    run(BENCHMARK)
