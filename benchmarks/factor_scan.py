"""The best 20 items of a factor model: by its factors, by one byte a number, and by an approximate index.

Factors are those of ALS, fitted to Gowalla (``--data``) or to simulated users of a large catalogue
(``--items``): random ones have no neighbours to find. Lists leave out what the user has, and all candidates
are scored exactly. faiss's inverted file (IVF) is measured where faiss-cpu is installed. Processor time::

    python -m benchmarks.factor_scan --items 1000000 --requests 200
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from benchmarks.quality.measure import machine, versions
from benchmarks.quality.simulation import simulated
from benchmarks.quality.splits import read_gowalla
from consentier.models.als import ALS
from consentier.models.factor_scoring import exact_scores, largest_norm, positive_items
from consentier.models.factor_solver import fold_in_rows
from consentier.models.quantised_factors import QuantisedFactors
from consentier.models.scoring import top_items

N = 20

List = tuple[NDArray[np.int64], NDArray[np.float64]]
Asked = tuple[NDArray[np.float64], NDArray[np.int64]]
"""A history's factors, and the items that its list leaves out."""


def fitted(arguments: argparse.Namespace) -> tuple[NDArray[np.float32], list[Asked]]:
    """Factors of a fit, and requests of some of its users."""
    if arguments.items:
        matrix = simulated(arguments.items, 10 * arguments.items, groups=arguments.groups)
    else:
        matrix = read_gowalla(arguments.data).train.items.tocsr()
    model = ALS(
        item_count=matrix.shape[1],
        factors=128,
        iterations=arguments.iterations,
        regularisation=0.003,
        unobserved_weight=0.01,
        threads=1,
    ).fit(matrix, show_progress=False)
    chosen = np.random.default_rng(0).choice(matrix.shape[0], arguments.requests, replace=False)
    rows = sparse.csr_matrix(matrix[chosen], dtype=np.float32)
    vectors = fold_in_rows(rows, model.item_factors, model.factor_gram, model.folding, threads=1)
    own = np.split(rows.indices.astype(np.int64), rows.indptr[1:-1])
    return model.item_factors, list(zip(vectors, own, strict=True))


def timed(answer: Callable[[Asked], List], requests: list[Asked]) -> tuple[list[List], str]:
    """All lists, and the median and 99th percentile of their times in microseconds."""
    answer(requests[0])  # loops are compiled, pages are mapped
    lists, times = [], []
    for asked in requests:
        started = time.thread_time_ns()
        lists.append(answer(asked))
        times.append((time.thread_time_ns() - started) / 1000)
    return lists, f"{np.percentile(times, 50):,.0f}/{np.percentile(times, 99):,.0f}"


def recall(lists: list[List], exact: list[List]) -> float:
    """The mean share of the exact list that was found."""
    shares = [np.isin(best, found).mean() for (found, _), (best, _) in zip(lists, exact, strict=True)]
    return float(np.mean(shares))


def inverted_files(
    factors: NDArray[np.float32], lists: int, probed: list[int], requests: list[Asked], exact: list[List]
) -> None:
    """Print a line for each number of lists that are looked at."""
    import faiss  # type: ignore[import-not-found, unused-ignore]

    faiss.omp_set_num_threads(1)
    started = time.process_time()
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(factors.shape[1]), factors.shape[1], lists, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = 1
    index.train(factors[np.random.default_rng(0).permutation(len(factors))[: 64 * lists]])
    index.add(factors)
    seconds = time.process_time() - started

    def answer(asked: Asked) -> List:
        vector, own = asked
        _, near = index.search(vector.astype(np.float32)[None], N + 20 + own.size)
        candidates = np.setdiff1d(near[0][near[0] >= 0], own)
        scores = exact_scores(factors, candidates, vector)
        return top_items(candidates[scores > 0], scores[scores > 0], N)

    for count in probed:
        index.nprobe = count
        found, times = timed(answer, requests)
        row(f"IVF, {count} of {lists} lists", times, f"{recall(found, exact):.3f}", seconds, factors.nbytes)


def row(name: str, times: str, found: str, seconds: float, size: int) -> None:
    """Print a line of the table."""
    print(f"| {name} | {times} | {found} | {seconds:.1f} | {size / 2**20:,.0f} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="directory of the published splits, for Gowalla")
    parser.add_argument("--items", type=int, help="items of a simulated catalogue instead")
    parser.add_argument("--groups", type=int, default=200, help="groups of related items there")
    parser.add_argument("--iterations", type=int, default=3, help="of ALS")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--lists", type=int, default=1024, help="of the inverted file")
    arguments = parser.parse_args()
    if (arguments.data is None) == (arguments.items is None):
        parser.error("name either --data or --items")
    with threadpool_limits(limits=1):
        factors, requests = fitted(arguments)
        norm, items = largest_norm(factors), len(factors)

        def scanned(quantised: QuantisedFactors | None) -> Callable[[Asked], List]:
            def answer(asked: Asked) -> List:
                visible = np.ones(items, np.bool_)
                visible[asked[1]] = False
                return positive_items(factors, norm, asked[0], visible, N, quantised=quantised)

            return answer

        print(
            f"{items:,} items, {factors.shape[1]} factors; {machine()['cpu']}; numpy {versions()['numpy']}\n"
        )
        print("| best 20 items | p50/p99, CPU µs | of the exact list | build, CPU s | further memory, MB |")
        print("|---|---:|---:|---:|---:|")
        exact, times = timed(scanned(None), requests)
        row("all factors", times, "all", 0.0, 0)
        QuantisedFactors(factors[:1])  # compiles
        started = time.process_time()
        quantised = QuantisedFactors(factors)
        seconds = time.process_time() - started
        found, times = timed(scanned(quantised), requests)
        same = all(
            a.tobytes() == b.tobytes()
            for one, two in zip(found, exact, strict=True)
            for a, b in zip(one, two, strict=True)
        )
        row(
            "one byte a number",
            times,
            "all, same bits" if same else "DIFFERENT",
            seconds,
            factors.size + 8 * items,
        )
        if importlib.util.find_spec("faiss") is not None:
            probed = [arguments.lists // part for part in (64, 16, 4)]
            inverted_files(factors, arguments.lists, probed, requests, exact)


if __name__ == "__main__":
    main()
