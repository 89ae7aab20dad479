"""ALS of one machine beside that of `pyspark.ml`: both bundles judged as `consentier evaluate` judges them.

A tier and the popular list are trained on each engine on what was before the test period, with the same
configuration, and serve the same requests. Processor time is that of the training run, gate and popular list
included, over all processes (Spark's are found in ``/proc``, so on Linux only)::

    python -m benchmarks.spark_als shop --config als.toml --tier crm
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from consentier.consent import Policy, Tier
from consentier.features.gate import ledger_of
from consentier.features.spark_session import open_session
from consentier.features.spark_tables import read_spark_tables
from consentier.features.tables import read_shop
from consentier.models.bundle import read_run
from consentier.training.bundles import TrainingResult, train_bundles
from consentier.training.config import load_config
from consentier.training.evaluate import evaluate_bundles
from consentier.training.spark_training import train_on_spark

METRICS = ("ndcg@20", "recall@20")


def processor_seconds() -> float:
    """Of this process and of all that descend from it, those included that have ended."""
    parents, used = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        parents[int(folder.name)] = int(fields[1])
        used[int(folder.name)] = sum(map(int, fields[11:15]))
    own = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(used[process] for process in own) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shop", type=Path, help="directory of the shop's tables, as Parquet")
    parser.add_argument("--config", type=Path, help="by default the shop's own consentier.toml")
    parser.add_argument("--tier", type=Tier, choices=[Tier.ONLINE, Tier.CRM, Tier.FUSED], default=Tier.CRM)
    parser.add_argument("--master", default="local[2]")
    arguments = parser.parse_args()
    tier, policy = arguments.tier, Policy.default()
    config = load_config(arguments.config, data=arguments.shop)
    start = config.training.cutoff
    if start is None or getattr(config, tier).algorithm != "als":
        parser.error(f"the configuration names no cut-off, or {tier}.algorithm is not als")
    end = start + dt.timedelta(days=config.evaluation.horizon_days)
    shop = read_shop(arguments.shop)
    ledger = ledger_of(shop)
    tiers = [tier, Tier.POPULAR]
    session = open_session(arguments.master)

    def embedded(out: Path) -> TrainingResult:
        return train_bundles(
            shop, config.with_cutoff(end), out, tiers=tiers, policy=policy, until=start, ledger=ledger,
            show_progress=False,
        )  # fmt: skip

    def on_spark(out: Path) -> TrainingResult:
        tables = read_spark_tables(session, str(arguments.shop))
        return train_on_spark(
            session, tables, config.with_cutoff(end), out, tiers=tiers, policy=policy, until=start,
            show_progress=False,
        )  # fmt: skip

    print(f"| engine | model | {' | '.join(METRICS)} | CPU seconds | digest |")
    print("|---|---|---:|---:|---:|---|")

    def row(engine: str, train: Callable[[Path], TrainingResult]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            used = processor_seconds()
            trained = train(Path(folder) / "bundles")
            used = processor_seconds() - used
            solver = read_run(trained.out / tier).get("solver", {})
            result = evaluate_bundles(
                shop, config.evaluation, trained, start=start, end=end, policy=policy, ledger=ledger,
                name=str(arguments.shop), show_progress=False,
            )  # fmt: skip
        for figures in result["tiers"]:
            if figures["tier"] in tiers:
                means = " | ".join(f"{figures['metrics'][name]['mean']:.4f}" for name in METRICS)
                digest = trained.digests[figures["tier"]][:15]
                print(f"| {engine} | {figures['tier']} | {means} | {used:.1f} | {digest} |", flush=True)
        print(f"<!-- {engine}: {solver} -->", flush=True)

    row("embedded", embedded)
    for _ in range(2):
        row("Spark", on_spark)
    session.stop()


if __name__ == "__main__":
    main()
