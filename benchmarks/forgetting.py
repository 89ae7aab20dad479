"""How long does forgetting take, beside a fit without the same people, and are the bundles equal?

    python benchmarks/forgetting.py --simulate 20000
    consentier import online_retail downloads/online_retail shop
    python benchmarks/forgetting.py shop --tier crm

Trains the tiers, forgets 1, 10 and 1,000 subjects (customers where the tier reads their rows, else visitors),
and fits once more without them. Both sides begin with the tables in memory and end with the bundle and its
statistics on disk. Each count is repeated with other subjects, from a fresh copy of the trained bundles.
Prints one Markdown row per tier and count: medians, and the least and the largest ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from consentier.consent import Policy, Tier
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.models.bundle import open_bundle
from consentier.training.config import Config, TrackingConfig, load_config
from consentier.training.forget import ForgottenTier, Subject, forget
from consentier.training.restricted import Restricted
from consentier.training.train import TRAINED_TIERS, train

Result = TypeVar("Result")


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="A shop's directory.")
    parser.add_argument("--simulate", type=int, metavar="CUSTOMERS", help="Simulate a shop of this size.")
    parser.add_argument("--items", type=int, default=3000, help="Items of the simulated shop.")
    parser.add_argument("--tier", type=Tier, action="append", help="Only these; by default all five.")
    parser.add_argument("--subjects", type=int, action="append", help="Only these counts.")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data
        if data is None:
            data = Path(folder) / "shop"
            config = SimulationConfig(customers=arguments.simulate or 4000, items=arguments.items)
            write_shop(simulate(config), data)
        shop = read_shop(data)
        settings = load_config(data=data).model_copy(update={"tracking": TrackingConfig(enabled=False)})
        if settings.training.cutoff is None:
            parser.error("the shop's consentier.toml names no cut-off")
        tiers = arguments.tier or list(TRAINED_TIERS)
        measure(shop, settings, tiers, arguments.subjects or [1, 10, 1000], arguments.repeats, Path(folder))


def measure(
    shop: ShopTables, config: Config, tiers: Sequence[Tier], counts: Sequence[int], repeats: int, folder: Path
) -> None:
    """Print the table."""
    print("| tier | items | subjects | how | items solved | forget | fit without them | ratio | equal |")
    print("|---|---:|---:|---|---:|---:|---:|---:|---|")
    for tier in tiers:
        out = folder / f"trained-{tier}"
        # Once to compile the loops, once to be measured against.
        for _ in range(2):
            train(
                shop, config, out, tiers=[tier], restricted=Restricted.beside(out), force=True,
                show_progress=False,
            )  # fmt: skip
        everybody = members(shop, config, tier)
        for count in counts:
            if count > len(everybody):
                continue
            runs = [
                one_run(
                    shop, config, tier, random.Random(f"{tier} {count} {n}").sample(everybody, count), out
                )
                for n in range(repeats)
            ]
            print(row(tier, count, runs), flush=True)


Run = tuple[ForgottenTier, float, float, bool]


def one_run(shop: ShopTables, config: Config, tier: Tier, gone: list[Subject], trained: Path) -> Run:
    """Forget and fit anew; return what was done, both times, and whether the bundles are equal."""
    with tempfile.TemporaryDirectory(dir=trained.parent) as folder:
        out, anew = Path(folder) / "out", Path(folder) / "anew"
        shutil.copytree(trained, out)
        shutil.copytree(Restricted.beside(trained).path, Restricted.beside(out).path)
        forgetting, done = timed(
            lambda: forget(shop, gone, out, Restricted.beside(out), tiers=[tier], show_progress=False)
        )
        less = shop_without(shop, gone)
        fitting, _ = timed(
            lambda: train(
                less, config, anew, tiers=[tier], restricted=Restricted.beside(anew), show_progress=False
            )
        )
        equal = open_bundle(out / tier).digest == open_bundle(anew / tier).digest
        return done.tiers[0], forgetting, fitting, equal


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds that some work takes, and what it gives."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def members(shop: ShopTables, config: Config, tier: Tier) -> list[Subject]:
    """The subjects whose rows a tier is fitted on, in a fixed order."""
    cutoff = config.training.cutoff
    if cutoff is None:
        raise ValueError("the configuration names no cut-off")
    gate = ConsentGate(shop, ledger_of(shop), cutoff, Policy.default())
    read = {Tier.POPULAR: Tier.CRM if shop.orders.num_rows else Tier.ONLINE}.get(tier, tier)
    persons = pc.unique(gate.permitted(read).rows["person"]).to_pylist()
    named = sorted(person.partition(":") for person in persons)
    return [("customer" if kind == "customer" else "visitor", name) for kind, _, name in named]


def shop_without(shop: ShopTables, gone: Sequence[Subject]) -> ShopTables:
    """The shop's tables without all rows of some customers or visitors.

    What would permit more of others stays: a login that shows a device to be shared, and a record whose id
    somebody else used too.
    """
    leaving = set(gone)
    tables = {}
    for kind, names in (("visitor", ("events",)), ("customer", ("orders", "product_usage", "customers"))):
        for name in names:
            table = getattr(shop, name)
            owners = table[f"{kind}_id"].to_pylist()
            tables[name] = table.filter(
                pa.array([(kind, each) not in leaving for each in owners], pa.bool_())
            )
    devices, customers = (shop.identities[f"{kind}_id"].to_pylist() for kind in ("visitor", "customer"))
    others = {
        device
        for device, customer in zip(devices, customers, strict=True)
        if ("customer", customer) not in leaving
    }
    logins = [
        ("visitor", device) not in leaving and (("customer", customer) not in leaving or device in others)
        for device, customer in zip(devices, customers, strict=True)
    ]
    record_ids, kinds, subjects = (
        shop.consents[name].to_pylist() for name in ("record_id", "subject_kind", "subject_id")
    )
    stays = [subject not in leaving for subject in zip(kinds, subjects, strict=True)]
    used = {record_id for record_id, kept in zip(record_ids, stays, strict=True) if kept}
    records = [kept or record_id in used for record_id, kept in zip(record_ids, stays, strict=True)]
    return dataclasses.replace(
        shop,
        **tables,
        identities=shop.identities.filter(pa.array(logins, pa.bool_())),
        consents=shop.consents.filter(pa.array(records, pa.bool_())),
    )


def row(tier: Tier, count: int, runs: Sequence[Run]) -> str:
    """One row of the table."""
    done = [each for each, _, _, _ in runs]
    how = "/".join(sorted({each.how for each in done}))
    solved = "-" if done[0].solved is None else f"{statistics.median(each.solved or 0 for each in done):,.0f}"
    forgetting = statistics.median(run[1] for run in runs)
    fitting = statistics.median(run[2] for run in runs)
    ratios = [run[2] / run[1] for run in runs]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    equal = "yes" if all(run[3] for run in runs) else "NO"
    return (
        f"| {tier} | {done[0].items:,} | {count:,} | {how} | {solved} | {forgetting:.2f} s | {fitting:.2f} s "
        f"| {ratio} | {equal} |"
    )


if __name__ == "__main__":
    main()
