"""Time of ``import consentier`` and of a first answer, beside ``import numpy`` in the same run.

Each measurement is one fresh interpreter; the cases take turns, so that a busy machine slows all of them.
Prints a Markdown table, then one line of JSON.

Run: ``make benchmark-import``, or ``python benchmarks/import_time.py`` where consentier is installed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import consentier
from consentier.models.bundle import write_bundle
from consentier.models.item_index import ItemIndex
from consentier.serving.scoring_settings import ScoringSettings

CASES = {
    "import numpy": "import numpy",
    "import consentier": "import consentier",
    "from consentier import Recommender, Request, Permission": (
        "from consentier import Recommender, Request, Permission"
    ),
    "… and load a bundle and answer": (
        "from consentier import Recommender, Request, Permission\n"
        "answer = Recommender.load({bundles!r}, compiled=False).recommend(\n"
        "    Request(session=['i00001'], permission=Permission.NONE))\n"
        "assert str(answer.tier) == 'session' and len(answer.items) == 10, answer"
    ),
}
BASELINE = "import numpy"


def write_session_bundle(path: Path, *, items: int = 10_000, neighbours: int = 100) -> None:
    """A session model with random weights, of the size of a middling shop."""
    rng = np.random.default_rng(1)
    index = ItemIndex.from_ids(f"i{number:05d}" for number in range(items))
    indices = np.sort(
        np.stack([rng.choice(items, neighbours, replace=False) for _ in range(items)]).astype(np.int32),
        axis=1,
    )
    write_bundle(
        path,
        tier="session",
        sources=["session"],
        permission=[],
        algorithm="random-weights",
        parameters={},
        scoring={**ScoringSettings(source_weights={"session": 1.0}).to_json(), "attributes": []},
        item_count=items,
        cutoff=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        arrays={
            **index.arrays(),
            "indptr": np.arange(0, items * neighbours + 1, neighbours, dtype=np.int64),
            "indices": indices.reshape(-1),
            "data": rng.random(items * neighbours, dtype=np.float32) + np.float32(0.01),
        },
    )


def milliseconds(code: str) -> float:
    """Run code in a fresh interpreter and return how long it took there, without the interpreter's start."""
    timed = f"import time\nstart = time.perf_counter()\n{code}\nprint((time.perf_counter() - start) * 1e3)"
    done = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure(repetitions: int) -> dict[str, list[float]]:
    """Milliseconds of each case, by repetition; a first round warms the file cache and is left out."""
    with tempfile.TemporaryDirectory() as folder:
        write_session_bundle(Path(folder) / "session")
        codes = {name: code.format(bundles=folder) for name, code in CASES.items()}
        rounds = [{name: milliseconds(code) for name, code in codes.items()} for _ in range(repetitions + 1)]
    return {name: [each[name] for each in rounds[1:]] for name in CASES}


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, quartiles and the median of the ratios to NumPy within a round, for each case."""
    table = {}
    for name, values in times.items():
        lower, median, upper = statistics.quantiles(values, n=4)
        ratios = [value / base for value, base in zip(values, times[BASELINE], strict=True)]
        table[name] = {
            "median_ms": round(median, 2),
            "lower_quartile_ms": round(lower, 2),
            "upper_quartile_ms": round(upper, 2),
            "times_numpy": round(statistics.median(ratios), 3),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=30, help="rounds, at least 2 (default: 30)")
    repetitions = parser.parse_args().repetitions
    if repetitions < 2:
        parser.error("--repetitions must be at least 2")
    table = summary(measure(repetitions))
    print("| in a fresh interpreter | median, ms | quartiles, ms | × import numpy |")
    print("|---|---:|---:|---:|")
    for name, row in table.items():
        quartiles = f"{row['lower_quartile_ms']:.1f} to {row['upper_quartile_ms']:.1f}"
        print(f"| `{name}` | {row['median_ms']:.1f} | {quartiles} | {row['times_numpy']:.2f} |")
    facts = {
        "benchmark": "import_time",
        "repetitions": repetitions,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "consentier": consentier.__version__,
        "cases": table,
    }
    print(f"\n{json.dumps(facts, ensure_ascii=False)}")


if __name__ == "__main__":
    main()
