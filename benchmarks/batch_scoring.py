"""Batch scoring beside implicit: customers a second of the whole job, of its steps, and of its peers.

    python -m benchmarks.batch_scoring
    python -m benchmarks.batch_scoring --data DIR --set gowalla

One matrix of customers and items. implicit fits its BM25 item-item model (K neighbours) and its alternating
least squares; our CRM tier gets that very item-item matrix, so that both sides do the same sums. implicit's
rate is that of ``recommend`` for all users at once, from a matrix that is in memory, to arrays. Ours is that
of the whole of `score_customers`: asking the ledger about everybody, numbering the histories, weighing them,
scoring, filling up, and writing Parquet. Where all customers permit everything the lists are compared.

Without ``--data`` the matrix is drawn: items by a power law, histories of 5 to 60 items.

The contenders are measured in turns. Rates are of the wall clock, and per second of the process's processor
time; the median of the rounds, and least to largest.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import logging
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from consentier.consent import Channel, Source, Tier
from consentier.consent.lifetimes import Lifetimes
from consentier.features.schemas import SCHEMAS, arrow_schema
from consentier.features.tables import ShopTables
from consentier.features.validation import ValidationReport
from consentier.models.bundle import TIERS, write_bundle
from consentier.models.item_index import ItemIndex
from consentier.serving import Recommender, batch
from consentier.serving.scoring_settings import ScoringSettings

NEIGHBOURS = 100
FACTORS = 128
N = 10
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
FILES = {
    "gowalla": ("cf/gowalla/train.parquet",),
    "taobao": ("twosource/taobao/orders_train.parquet", "twosource/taobao/carts.parquet"),
}


def drawn(customers: int, items: int) -> sparse.csr_matrix:
    """Customers by items: popular items more often, histories of 5 to 60."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 61, customers)
    owners = np.repeat(np.arange(customers), lengths)
    chosen = np.minimum((items * rng.random(owners.size) ** 3).astype(np.int64), items - 1)
    return matrix_of(owners, chosen, (customers, items))


def read(data: Path, name: str) -> sparse.csr_matrix:
    """Customers by items of a data set."""
    tables = [pq.read_table(data / file, columns=["user_id", "item_id"]) for file in FILES[name]]
    table = pa.concat_tables(tables)
    users, owners = np.unique(table["user_id"].to_numpy(), return_inverse=True)
    items, chosen = np.unique(table["item_id"].to_numpy(), return_inverse=True)
    return matrix_of(owners, chosen, (users.size, items.size))


def matrix_of(
    owners: NDArray[np.int64], items: NDArray[np.int64], shape: tuple[int, int]
) -> sparse.csr_matrix:
    """Ones wherever somebody has something."""
    matrix = sparse.csr_matrix((np.ones(owners.size, np.float32), (owners, items)), shape=shape)
    matrix.data[:] = 1.0
    matrix.sort_indices()
    return matrix


def names(prefix: str, count: int) -> pa.Array:
    """Ids whose order is that of their numbers."""
    return pa.array([f"{prefix}{number:08}" for number in range(count)], pa.string())


def shop_of(matrix: sparse.csr_matrix, *, permitting: float) -> ShopTables:
    """A shop whose customers ordered what the matrix says.

    A share of them permits both CRM use and e-mail; of the others each third permits e-mail alone, CRM alone,
    or nothing.
    """
    customers, items = names("c", matrix.shape[0]), names("i", matrix.shape[1])
    owners = pa.array(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)))
    orders = pa.table(
        {
            "customer_id": customers.take(owners),
            "order_id": pa.array([f"o{number}" for number in range(matrix.nnz)]),
            "line_id": pa.repeat("1", matrix.nnz),
            "ts": pa.repeat(pa.scalar(NOW - dt.timedelta(days=30), pa.timestamp("us", "UTC")), matrix.nnz),
            "item_id": items.take(pa.array(matrix.indices)),
            "quantity": pa.repeat(1.0, matrix.nnz),
            "price": pa.nulls(matrix.nnz, pa.float64()),
            "status": pa.repeat("ordered", matrix.nnz),
        }
    )
    draw = np.random.default_rng(2).random(matrix.shape[0])
    part = np.where(draw < permitting, 3, (3 * (draw - permitting) / max(1 - permitting, 1e-9)).astype(int))
    consents = pa.concat_tables(
        [
            said(customers.filter(pa.array(np.isin(part, parts))), permission)
            for permission, parts in (("crm", (3, 1)), ("contact:email", (3, 0)))
        ]
    )
    tables = {name: arrow_schema(name).empty_table() for name in SCHEMAS}
    for name, table in (("orders", orders), ("consents", consents)):
        schema = arrow_schema(name)
        tables[name] = table.select(schema.names).cast(schema)
    tables["items"] = pa.table(
        {
            "item_id": items,
            "available": pa.repeat(True, len(items)),
            "sensitive": pa.repeat(False, len(items)),
        }
    )
    return ShopTables(**tables, report=ValidationReport())


def said(customers: pa.Array, permission: str) -> pa.Table:
    """A grant of some customers."""
    count = len(customers)
    fields = {field.name: pa.nulls(count, field.type) for field in arrow_schema("consents")}
    since = pa.repeat(pa.scalar(NOW - dt.timedelta(days=100), pa.timestamp("us", "UTC")), count)
    ids = pa.array([f"{permission} {customer}" for customer in customers.to_pylist()], pa.string())
    told = {
        "record_id": ids, "subject_id": customers, "subject_kind": pa.repeat("customer", count),
        "permission": pa.repeat(permission, count), "state": pa.repeat("granted", count),
        "valid_from": since, "recorded_at": since,
    }  # fmt: skip
    return pa.table({**fields, **told})


def write_models(out: Path, similarity: sparse.csr_matrix, matrix: sparse.csr_matrix) -> None:
    """The CRM tier with a given item-item matrix, and the popular list."""
    out.mkdir()
    items = matrix.shape[1]
    index = ItemIndex.from_ids(names("i", items).to_pylist())
    settings = ScoringSettings(source_weights={"crm": 1.0}, hide=("crm",), max_history=matrix.shape[1])
    similarity.sort_indices()
    common: dict[str, Any] = {
        "parameters": {}, "item_count": items, "cutoff": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    }  # fmt: skip
    write_bundle(
        out / "crm",
        tier="crm",
        sources=["crm"],
        permission=["crm"],
        algorithm="item_knn",
        scoring={**settings.to_json(), "attributes": []},
        arrays={
            **index.arrays(),
            "indptr": similarity.indptr.astype(np.int64),
            "indices": similarity.indices.astype(np.int32),
            "data": similarity.data.astype(np.float32),
        },
        **common,
    )
    counts = np.asarray(matrix.sum(axis=0)).reshape(-1).astype(np.int64)
    sources, permission = TIERS["popular"]
    write_bundle(
        out / "popular",
        tier="popular",
        sources=sources,
        permission=permission,
        algorithm="popularity",
        scoring={},
        arrays={**index.arrays(), "online_counts": counts, "crm_counts": counts},
        **common,
    )


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the wall clock and of the processor."""
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def steps_of(shop: ShopTables, recommender: Recommender, out: Path) -> dict[str, float]:
    """Processor seconds of each step of a job, done once, in one thread but for the table engine."""
    found: dict[str, float] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        used = time.process_time()
        result = work()
        found[name] = found.get(name, 0.0) + time.process_time() - used
        return result

    from consentier.features.consent_intervals import ConsentTables
    from consentier.serving.batch_views import views_of
    from consentier.serving.bulk_reach import bulk_reach

    def prepared() -> batch._Batch:
        return batch._Batch.prepared(shop, recommender, None, channel=Channel.EMAIL, at=NOW, n=N)

    answers = prepared().answers  # and the pages of the memory that the steps use are there
    reach = answers.reach
    consents = ConsentTables.of_shop(shop, Lifetimes.default())
    step("permissions", lambda: bulk_reach(consents, recommender.policy, reach.persons, Channel.EMAIL, NOW))
    rest = "persons, histories as numbers, models, digest of all inputs"
    whole = step(rest, prepared)
    found[rest] -= found["permissions"]
    views = step(
        "views",
        lambda: views_of(
            answers.histories, reach, np.arange(len(reach)), frozenset({Source.CRM}), fused=False
        ),
    )
    nobody = np.zeros(len(reach), np.bool_)
    step("weights, kernel", lambda: answers.scorers[Tier.CRM].lists(views, answers.query, nobody, nobody))
    used = time.process_time()
    tables = [whole.part(part)[0] for part in range(whole.job.parts)]
    used = time.process_time() - used - found["views"] - found["weights, kernel"]
    found["lists as tables"] = max(0.0, used)

    def write() -> None:
        with pq.ParquetWriter(out, tables[0].schema) as file:
            for table in tables:
                file.write_table(table)

    step("Parquet", write)
    return found


def same_lists(out: Path, ids: NDArray[np.int32], scores: NDArray[np.float64]) -> float:
    """Share of the customers whose lists have the scores of implicit's, place by place.

    Items are not compared: implicit puts equal scores in no order. Its weights are float64, ours float32.
    """
    table = pq.read_table(out)
    owners = np.array([int(name[1:]) for name in table["customer_id"].to_pylist()])
    mine = np.zeros(ids.shape)
    mine[owners, table["rank"].to_numpy() - 1] = table["score"].to_numpy()
    theirs = np.where((ids < 0) | (scores <= 0), 0.0, scores)
    return float(np.isclose(mine, theirs, rtol=1e-5, atol=0).all(axis=1).mean())


def spread(values: list[float], digits: int = 0) -> str:
    """Median, and least to largest."""
    shown = [f"{each:,.{digits}f}" for each in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Customers a second of a batch")
    parser.add_argument("--data", type=Path, help="Directory of data sets; without it a matrix is drawn.")
    parser.add_argument("--set", choices=sorted(FILES), default="gowalla")
    parser.add_argument("--customers", type=int, default=100_000, help="Of the matrix that is drawn.")
    parser.add_argument("--items", type=int, default=50_000, help="Of the matrix that is drawn.")
    parser.add_argument("--times", type=int, default=1, help="Each customer so many times, under other ids.")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    drawn_or_read = (
        read(arguments.data, arguments.set) if arguments.data else drawn(arguments.customers, arguments.items)
    )
    matrix = sparse.csr_matrix(sparse.vstack([drawn_or_read] * arguments.times))
    with tempfile.TemporaryDirectory() as folder:
        report = compared(Path(folder), drawn_or_read, matrix, arguments.rounds)
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "numba", "implicit", "pyarrow")}
    about = {"python": platform.python_version(), "machine": platform.machine(), **versions}
    print("\n" + json.dumps({**about, **report}))


def compared(
    folder: Path, fitted_on: sparse.csr_matrix, matrix: sparse.csr_matrix, rounds: int
) -> dict[str, Any]:
    """All contenders in turns."""
    from implicit.als import AlternatingLeastSquares
    from implicit.nearest_neighbours import BM25Recommender
    from threadpoolctl import threadpool_limits

    customers = matrix.shape[0]
    print(f"{customers:,} customers, {matrix.shape[1]:,} items, {matrix.nnz / customers:.1f} items each\n")
    neighbours = BM25Recommender(K=NEIGHBOURS)
    neighbours.fit(fitted_on.tocsr(), show_progress=False)
    with threadpool_limits(limits=1, user_api="blas"):
        factors = AlternatingLeastSquares(factors=FACTORS, iterations=2, random_state=1)
        factors.fit(fitted_on, show_progress=False)
    factors.user_factors = np.tile(factors.user_factors, (customers // fitted_on.shape[0], 1))
    write_models(folder / "bundles", neighbours.similarity.tocsr(), matrix)
    users = np.arange(customers)
    shops = {"all permit": shop_of(matrix, permitting=1.0), "half permit": shop_of(matrix, permitting=0.5)}
    recommender = Recommender.load(folder / "bundles", catalogue=batch.catalogue_of(shops["all permit"]))
    lists: list[Any] = []

    def ours(name: str, workers: int) -> Callable[[], object]:
        return lambda: batch.score_customers(
            shops[name], recommender, None, channel=Channel.EMAIL, at=NOW, n=N,
            out=folder / f"{name}.parquet", workers=workers, show_progress=False,
        )  # fmt: skip

    def least_squares() -> None:
        with threadpool_limits(limits=1, user_api="blas"):
            factors.recommend(users, matrix, N=N)

    contenders: dict[str, Callable[[], object]] = {
        "whole job, all permit, 1 worker": ours("all permit", 1),
        "whole job, all permit, 2 workers": ours("all permit", 2),
        "whole job, half permit, 2 workers": ours("half permit", 2),
        "implicit, item-item": lambda: lists.append(neighbours.recommend(users, matrix, N=N)),
        "implicit, ALS": least_squares,
    }
    ours("all permit", 1)()  # compiles the loops, or reads them from Numba's cache
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            taken[name].append(measured(work))
    # Ratios are of processor time: on machines that others use, too, the wall clock says little.
    print("| contender | customers/s | customers per processor second | times item-item | times ALS |")
    print("|---|---:|---:|---:|---:|")
    for name, found in taken.items():
        ratios = [
            spread([other[1] / own[1] for own, other in zip(found, taken[peer], strict=True)], 1)
            for peer in ("implicit, item-item", "implicit, ALS")
        ]
        wall, used = ([customers / each[place] for each in found] for place in (0, 1))
        print(f"| {name} | {spread(wall)} | {spread(used)} | {' | '.join(ratios)} |")
    same = same_lists(folder / "all permit.parquet", *lists[-1])
    print(f"\nlists with implicit's scores: {same:.4f}")
    steps = steps_of(shops["all permit"], recommender, folder / "steps.parquet")
    print("\n| step | µs a customer | share |\n|---|---:|---:|")
    for name, seconds in steps.items():
        print(f"| {name} | {seconds / customers * 1e6:.2f} | {seconds / sum(steps.values()):.0%} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"customers": customers, "taken": taken, "steps": steps, "same": same, "peak_mb": peak}


if __name__ == "__main__":
    main()
