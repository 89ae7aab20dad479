"""Time of one answer where business rules mix: boosts, caps, diversity; factor and linear model.

Random models: of the linear one each item has 100 random neighbours, of the factor model the strength of the
factors falls as in fitted ones. Items have one of 100 categories and one of 1,000 brands at random. Times are
processor time, numba where it is installed.

Prints a Markdown table. Needs the extra ``train``.

Run: ``python benchmarks/mixing_rules.py [--items 100000]``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from consentier import Permission, Recommender, Request
from consentier.models.bundle import write_bundle
from consentier.models.factor_scoring import FoldIn
from consentier.models.factor_solver import gram_diagonal, principal_axes
from consentier.models.item_index import ItemIndex
from consentier.serving.rules import Rules
from consentier.serving.scoring_settings import ScoringSettings

NEIGHBOURS, FACTORS = 100, 128
N, LENGTH, REQUESTS = 10, 20, 200
RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "caps: 2 of a category": {"caps": {"category": 2}},
    "boost of a tenth by 1.2": {"boost": [{"where": "own", "factor": 1.2}]},
    "boost of a tenth by 3": {"boost": [{"where": "own", "factor": 3.0}]},
    "diversity .3": {"diversity": {"weight": 0.3, "columns": ["category", "brand"]}},
    "all three, boost by 1.2": {
        "caps": {"category": 2},
        "boost": [{"where": "own", "factor": 1.2}],
        "diversity": {"weight": 0.3, "columns": ["category", "brand"]},
    },
}


def write_models(root: Path, items: int) -> None:
    """A linear and a factor model of the online tier, each in a directory of its own."""
    rng = np.random.default_rng(1)
    index = ItemIndex.from_ids(f"item-{number:07d}" for number in range(items))
    edges = np.linspace(0, items, NEIGHBOURS + 1).astype(np.int64)
    strength = 1 / np.sqrt(np.arange(1, FACTORS + 1))
    factors = principal_axes(rng.standard_normal((items, FACTORS)) * strength)
    folding = FoldIn(unobserved_weight=0.01, regularisation=0.01, frequency_exponent=1.0)
    models: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "linear": (
            "random-weights",
            {
                "indptr": np.arange(items + 1, dtype=np.int64) * NEIGHBOURS,
                "indices": rng.integers(edges[:-1], edges[1:], (items, NEIGHBOURS))
                .astype(np.int32)
                .reshape(-1),
                "data": rng.random(items * NEIGHBOURS, dtype=np.float32),
            },
            {},
        ),
        "factors": (
            "als",
            {"factors": factors, "factor_gram": gram_diagonal(factors)},
            {"fold_in": dataclasses.asdict(folding)},
        ),
    }
    settings = ScoringSettings(source_weights={"online": 1.0}, hide=("online",))
    for name, (algorithm, arrays, further) in models.items():
        (root / name).mkdir()
        write_bundle(
            root / name / "online",
            tier="online",
            sources=["session", "online"],
            permission=["online"],
            algorithm=algorithm,
            parameters={},
            scoring={**settings.to_json(), "attributes": [], **further},
            item_count=items,
            cutoff=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            arrays={**index.arrays(), **arrays},
        )


def catalogue(items: int) -> dict[str, dict[str, Any]]:
    """Items with a category, a brand and whether they are the shop's own."""
    rng = np.random.default_rng(2)
    columns = zip(
        rng.integers(0, 100, items).tolist(),
        rng.integers(0, 1000, items).tolist(),
        (rng.random(items) < 0.1).tolist(),
        strict=True,
    )
    return {
        f"item-{number:07d}": {"category": f"c{category}", "brand": f"b{brand}", "own": own}
        for number, (category, brand, own) in enumerate(columns)
    }


def times(recommender: Recommender, items: int) -> tuple[float, float]:
    """Median and 99th percentile of an answer, in milliseconds."""
    rng = np.random.default_rng(3)
    taken = []
    for _ in range(REQUESTS):
        history = [f"item-{number:07d}" for number in rng.choice(items, LENGTH, replace=False).tolist()]
        request = Request(online_history=history, permission=Permission.ONLINE, n=N)
        started = time.thread_time_ns()
        answer = recommender.recommend(request)
        taken.append((time.thread_time_ns() - started) / 1e6)
        if len(answer.items) != N:
            raise SystemExit("an answer is too short: this measures something else")
    return float(np.percentile(taken, 50)), float(np.percentile(taken, 99))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    items = parser.parse_args().items
    logging.getLogger("consentier.serving").addHandler(logging.NullHandler())  # of the tiers without a model
    rows = catalogue(items)
    print("| rules | linear, ms (p50 / p99) | factors, ms (p50 / p99) |\n|---|---|---|")
    # One thread, whose time is measured: a second one's would be missing.
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(limits=1):
        write_models(Path(folder), items)
        for name, document in RULES.items():
            cells = []
            for model in ("linear", "factors"):
                recommender = Recommender.load(
                    Path(folder) / model, catalogue=rows, rules=Rules.from_document(document)
                )
                median, tail = times(recommender, items)
                cells.append(f"{median:.2f} / {tail:.2f}")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
