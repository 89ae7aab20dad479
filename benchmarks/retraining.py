"""What does training on save beside training from scratch, and are the bundles equal?

    python benchmarks/retraining.py --simulate 20000
    consentier import taobao downloads/taobao shop
    python benchmarks/retraining.py shop --tier online

Trains a tier at the shop's cut-off. Then a day passes, in which a share of its persons do something (items of
somebody else's history, in a session or an order of the new day) and one in twenty of those withdraws. Both
ways go to the cut-off a day later, each in a process of its own that has compiled its loops before: from
tables in memory to bundle and statistics on disk. Prints one Markdown row per tier and share: wall and CPU
seconds, and the largest resident memory of the process; medians of the repeats.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from consentier.consent import Ledger, Policy, Tier
from consentier.errors import NothingPermitted
from consentier.features.consent_intervals import ConsentTables
from consentier.features.gate import ConsentGate, ledger_of
from consentier.features.schemas import SCHEMAS
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop, write_tables
from consentier.models.attribute_encoding import AttributeEncoder
from consentier.models.gram_arithmetic import add, subtract
from consentier.models.item_index import ItemIndex
from consentier.models.local_ridge import LocalRidge, touched_targets
from consentier.training import retrain as retraining
from consentier.training.config import Config, TrackingConfig, load_config
from consentier.training.counted import Subject, around, of_persons
from consentier.training.fit import counts_of, estimator, tier_interactions
from consentier.training.restricted import Restricted
from consentier.training.retrain import retrain
from consentier.training.retrain_work import counting_steps, solving_terms
from consentier.training.train import TRAINED_TIERS, train

DAY = dt.timedelta(days=1)

Result = TypeVar("Result")


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="A shop's directory.")
    parser.add_argument("--simulate", type=int, metavar="CUSTOMERS", help="Simulate a shop of this size.")
    parser.add_argument("--items", type=int, default=3000, help="Items of the simulated shop.")
    parser.add_argument("--tier", type=Tier, action="append", help="Only these; by default all but popular.")
    parser.add_argument("--share", type=float, action="append", help="Only these shares of changed persons.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--always", action="store_true", help="Exchange rows even where a fit is less work.")
    parser.add_argument("--constants", action="store_true", help="Measure the parts of either way.")
    parser.add_argument("--one", choices=("retrain", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run = one_run(
            arguments.one, arguments.data, arguments.tier[0], arguments.out, always=arguments.always
        )
        print(json.dumps(run))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data
        if data is None:
            data = Path(folder) / "shop"
            config = SimulationConfig(customers=arguments.simulate or 4000, items=arguments.items)
            write_shop(simulate(config), data)
        tiers = arguments.tier or [tier for tier in TRAINED_TIERS if tier is not Tier.POPULAR]
        if arguments.constants:
            print_constants(data, tiers)
            return
        shares = arguments.share or [0.01, 0.05, 0.2]
        measure(data, tiers, shares, arguments.repeats, Path(folder), always=arguments.always)


def configuration(data: Path, days: int = 0) -> Config:
    """The shop's configuration, some days after its cut-off."""
    config = load_config(data=data)
    cutoff = config.training.cutoff
    if cutoff is None:
        raise SystemExit("the shop's consentier.toml names no cut-off")
    # Otherwise every session counts differently a day later, and there is nothing to compare.
    session = config.session.model_copy(update={"session_half_life": 0.0})
    config = config.model_copy(update={"tracking": TrackingConfig(enabled=False), "session": session})
    return config.with_cutoff(cutoff + days * DAY)


def measure(
    data: Path, tiers: Sequence[Tier], shares: Sequence[float], repeats: int, folder: Path, *, always: bool
) -> None:
    """Print the table."""
    shop = read_shop(data)
    print(
        "| tier | rows | items | changed | estimate | how | items solved | retrain | from scratch | memory "
        "| equal |"
    )
    print("|---|---:|---:|---:|---:|---|---:|---:|---:|---:|---|")
    for tier in tiers:
        before = folder / f"before-{tier}"
        train(
            shop, configuration(data), before, tiers=[tier], restricted=Restricted.beside(before),
            show_progress=False,
        )  # fmt: skip
        for share in shares:
            later = folder / "later"
            later_shop(shop, configuration(data), tier, share, later)
            shutil.copy(data / "consentier.toml", later)
            runs = [pair(later, tier, before, always=always) for _ in range(repeats)]
            print(row(tier, share, runs), flush=True)


def later_shop(shop: ShopTables, config: Config, tier: Tier, share: float, out: Path) -> None:
    """Write the shop's tables as they are a day later."""
    cutoff = config.training.cutoff
    if cutoff is None:
        raise ValueError("the configuration names no cut-off")
    rows = ConsentGate(shop, ledger_of(shop), cutoff, Policy.default()).permitted(tier).rows
    draw = random.Random(f"{tier} {share}")
    persons = sorted(pc.unique(rows["person"]).to_pylist())
    chosen = draw.sample(persons, max(1, round(share * len(persons))))
    items = rows["item_id"]
    events, orders, decisions = [], [], []
    for number, person in enumerate(chosen):
        kind, _, subject = person.partition(":")
        for place in range(draw.randint(1, 3)):
            at = cutoff + DAY * draw.random() * 0.9
            item = items[draw.randrange(len(items))].as_py()
            if kind == "visitor":
                events.append(
                    {"visitor_id": subject, "session_id": f"later {number}", "ts": at, "item_id": item,
                     "event_type": "view"}
                )  # fmt: skip
            else:
                orders.append(
                    {"customer_id": subject, "order_id": f"later {number}", "line_id": str(place), "ts": at,
                     "item_id": item, "quantity": 1, "price": None, "status": "ordered"}
                )  # fmt: skip
        if number % 20 == 0:
            at = cutoff + DAY / 2
            decisions.append(
                {"record_id": f"later {number}", "subject_id": subject, "subject_kind": kind,
                 "permission": "online" if kind == "visitor" else "crm", "state": "withdrawn",
                 "valid_from": at, "recorded_at": at, "evidence": "benchmark"}
            )  # fmt: skip
    tables = {name: getattr(shop, name) for name in SCHEMAS}
    for name, more in (("events", events), ("orders", orders), ("consents", decisions)):
        schema = tables[name].schema
        tables[name] = pa.concat_tables([tables[name], pa.Table.from_pylist(more, schema=schema)])
    write_tables({name: table for name, table in tables.items() if table.num_rows}, out, force=True)


Run = dict[str, Any]


def pair(later: Path, tier: Tier, before: Path, *, always: bool) -> tuple[Run, Run]:
    """Go both ways, each in a process of its own."""
    runs = []
    for way in ("retrain", "train"):
        with tempfile.TemporaryDirectory(dir=before.parent) as folder:
            out = Path(folder) / "bundles"
            if way == "retrain":
                shutil.copytree(before, out)
                shutil.copytree(Restricted.beside(before).path, Restricted.beside(out).path)
            command = [sys.executable, __file__, str(later), "--tier", tier, "--one", way, "--out", str(out)]
            command += ["--always"] if always else []
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout))
    return runs[0], runs[1]


def one_run(way: str, data: Path, tier: Tier, out: Path, *, always: bool) -> Run:
    """Go one way; say what it took."""
    choice = mock.patch.object(retraining, "require_less_work") if always else contextlib.nullcontext()
    with choice:
        return timed_run(way, data, tier, out)


def timed_run(way: str, data: Path, tier: Tier, out: Path) -> Run:
    """Go one way, once the loops are compiled."""
    warm_up(tier)
    shop, config = read_shop(data), configuration(data, days=1)
    started, cpu = time.perf_counter(), time.process_time()
    if way == "retrain":
        (told,) = retrain(shop, config, out, Restricted.beside(out), tiers=[tier], show_progress=False).tiers
        share = None if told.estimate is None else told.estimate.exchange / told.estimate.fit
        found = {
            "how": told.how, "solved": told.solved, "items": told.items, "digest": told.after,
            "estimated": share,
        }  # fmt: skip
    else:
        result = train(
            shop, config, out, tiers=[tier], restricted=Restricted.beside(out), show_progress=False
        )
        found = {"digest": result.digests[str(tier)], "rows": sum(row["rows_kept"] for row in result.funnel)}
    return {
        **found,
        "wall": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def warm_up(tier: Tier) -> None:
    """Compile the loops of both ways on a small shop."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "shop", Path(folder) / "bundles"
        write_shop(simulate(SimulationConfig(customers=100, items=50, days=30, horizon_days=7)), data)
        shop, restricted = read_shop(data), Restricted.beside(out)
        train(shop, configuration(data), out, tiers=[tier], restricted=restricted, show_progress=False)
        with mock.patch.object(retraining, "require_less_work"):
            retrain(shop, configuration(data, days=1), out, restricted, tiers=[tier], show_progress=False)


def row(tier: Tier, share: float, runs: Sequence[tuple[Run, Run]]) -> str:
    """One row of the table."""
    on, scratch = ([pair[place] for pair in runs] for place in (0, 1))
    how = "/".join(sorted({each["how"] for each in on}))
    solved = "-" if on[0]["solved"] is None else f"{on[0]['solved']:,}"
    changed = f"{share:.1%}"
    estimate = "-" if on[0]["estimated"] is None else f"{on[0]['estimated']:.0%}"
    equal = all(one["digest"] == other["digest"] for one, other in runs)
    if not equal:
        raise SystemExit(f"{tier} at {share:.0%}: the bundles differ")
    (seconds, cpu, memory), (seconds_from, cpu_from, memory_from) = (
        [float(np.median([each[name] for each in way])) for name in ("wall", "cpu", "memory")]
        for way in (on, scratch)
    )
    return (
        f"| {tier} | {scratch[0]['rows']:,} | {on[0]['items']:,} | {changed} | {estimate} "
        f"| {how} | {solved} "
        f"| {seconds:.1f} s ({cpu:.1f} CPU) | {seconds_from:.1f} s ({cpu_from:.1f} CPU) "
        f"| {memory / 1e6:,.0f} of {memory_from / 1e6:,.0f} MB | yes |"
    )


# ---- What the parts take -----------------------------------------------------------------------------------


def print_constants(data: Path, tiers: Sequence[Tier]) -> None:
    """Print what a step of counting, a multiplication, an entry exchanged and a record read take."""
    shop, config = read_shop(data), configuration(data)
    ledger = ledger_of(shop)
    print("| tier | step counted | multiplication | entry exchanged | record read |")
    print("|---|---:|---:|---:|---:|")
    for tier in tiers:
        warm_up(tier)
        try:
            print(constants(tier, shop, ledger, config), flush=True)
        except NothingPermitted:
            continue


def constants(tier: Tier, shop: ShopTables, ledger: Ledger, config: Config) -> str:
    """One row: what the parts of the two ways take in one tier."""
    cutoff, how = config.training.cutoff, getattr(config, tier)
    assert cutoff is not None
    permitted = dataclasses.replace(
        ConsentGate(shop, ledger, cutoff, Policy.default()).permitted(tier), attributes=None
    )
    if not permitted.rows.num_rows:
        raise NothingPermitted(f"the {tier} tier has no rows")
    data = tier_interactions(tier, permitted, how, AttributeEncoder(()))
    items = len(data.item_ids)
    model = estimator(tier, how, items, 1, 1)
    if not isinstance(model, LocalRidge):
        raise SystemExit(f"{tier}: only local_ridge solves items one by one, not {how.algorithm}")
    counting, gram = cpu_of(lambda: counts_of(model, data))
    solving, _ = cpu_of(lambda: model.solve(gram))
    steps = counting_steps(permitted.rows, by_session=tier is Tier.SESSION)
    terms = float(solving_terms(gram, items, model.neighbours).sum())

    few = pc.unique(permitted.rows["person"])[:20]
    some = tier_interactions(tier, of_persons(permitted, few), how, AttributeEncoder(()))
    places = ItemIndex.from_ids(data.item_ids).indices(some.item_ids)
    part = some.matrix
    matrix = sparse.csr_matrix(
        (part.data, places[part.indices], part.indptr), shape=(part.shape[0], data.matrix.shape[1])
    )
    order = None if gram.forward is None else some.order

    def exchange() -> None:
        less = subtract(gram, matrix, persons=some.persons, order=order)
        more = add(less, matrix, persons=some.persons, order=order)
        touched_targets(
            gram, more, places, targets=items, neighbours=model.neighbours,
            item_exponent=model.item_exponent, reverse_weight=model.reverse_weight,
        )  # fmt: skip

    exchanging, _ = cpu_of(exchange)

    def read() -> None:
        subjects: list[Subject] = [("visitor", "nobody")]
        part = around(shop, ConsentTables.of(ledger.as_of(ledger.position)), subjects)
        ConsentGate(*part, cutoff, Policy.default()).permitted(tier)

    reading, _ = cpu_of(read)
    return (
        f"| {tier} | {counting / steps * 1e9:.1f} ns ({counting:.2f} s) | {solving / terms * 1e9:.2f} ns "
        f"({solving:.2f} s) | {exchanging / gram.gram.nnz * 1e9:.0f} ns ({exchanging:.2f} s) "
        f"| {reading / ledger.position * 1e6:.1f} µs ({reading:.2f} s) |"
    )


def cpu_of(work: Callable[[], Result]) -> tuple[float, Result]:
    """Processor seconds that some work takes (the median of three), and what it gives."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        result = work()
        taken.append(time.process_time() - started)
    return sorted(taken)[1], result


if __name__ == "__main__":
    main()
