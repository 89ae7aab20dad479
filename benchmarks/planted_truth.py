"""Does the evaluation find what the simulator planted, seed after seed, and nothing where nothing is planted?

    python benchmarks/planted_truth.py --seeds 10 --first-seed 1000

Prints one Markdown row per seed and shop: paired differences in NDCG@20 in units of their standard error, and
whether the interval says what it should.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import read_shop
from consentier.training.config import load_config
from consentier.training.evaluate import evaluate

METRIC = "ndcg@20"


def main() -> None:
    """Run the shops and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="Also write the figures here.")
    arguments = parser.parse_args()
    print("| seed | CRM signal | contrast | pair | difference | 95 % interval | as planted |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for signal in (SimulationConfig().crm_signal, 0.0):
            for row in judged(seed, signal):
                rows.append(row)
                print(
                    f"| {seed} | {signal:g} | {row['contrast']} | {row['pair']} | {row['mean']:+.4f} | "
                    f"[{row['low']:+.4f}, {row['high']:+.4f}] | {'yes' if row['as_planted'] else 'NO'} |",
                    flush=True,
                )
    found = sum(row["as_planted"] for row in rows)
    print(f"\n{found} of {len(rows)} intervals say what was planted.")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def judged(seed: int, signal: float) -> list[dict[str, Any]]:
    """Evaluate one shop; without CRM signal, only the lift of fusion over online is judged."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "shop"
        write_shop(simulate(SimulationConfig(seed=seed, crm_signal=signal)), data)
        result = evaluate(read_shop(data), load_config(data=data), name="simulated", show_progress=False)
    rows = []
    for contrast in result["contrasts"]:
        for row in contrast["rows"]:
            pair = f"{row['better']} over {row['baseline']}"
            if row["metric"] != METRIC or (not signal and pair != "fused over online"):
                continue
            lift = row["difference"]["low"] > 0
            rows.append(
                {
                    "seed": seed,
                    "crm_signal": signal,
                    "contrast": contrast["name"],
                    "pair": pair,
                    **row["difference"],
                    "as_planted": lift if signal else not lift,
                }
            )
    return rows


if __name__ == "__main__":
    main()
