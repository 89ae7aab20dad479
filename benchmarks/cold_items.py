"""What item metadata are worth for items that few persons had, or nobody yet.

    consentier import movielens1m downloads/movielens1m shop
    python -m benchmarks.cold_items shop --tier crm --split genres --columns genres --hide 0.1 --new
    python -m benchmarks.cold_items --simulate 4000

Fits a tier with several settings (persons × neighbours, 0 is off) on what comes before a period, and judges
by the period: the validation period before the cut-off, or with `--part test` the test period after it. Items
that fewer than 5 persons had before the period are cold. `--hide` takes the rows of a random share of items
out of what is fitted on, up to `--keep` persons each; histories still hold them. `--new` keeps items of the
history out of the lists. Prints NDCG@20, mean over requests and 95 % interval over persons, of four kinds:

* all: all targets, lists of all items
* cold: requests with a cold target, which alone counts, lists of all items
* shelf: the same requests, lists of cold items only
* warm: requests with a target that is not cold, which alone counts, lists of all other items

Lists are those of the served scorer. "category" orders cold items by the mean number of persons of the items
with which they share levels, and the others by their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from consentier.consent import Policy, Side, Tier
from consentier.features.gate import ConsentGate, PermittedRows, ledger_of
from consentier.features.interactions import person_counts
from consentier.features.item_metadata import item_levels
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.models.bundle import TIERS, open_bundle, write_bundle
from consentier.serving.catalogue import Catalogue
from consentier.serving.query import Query
from consentier.serving.scorer import LinearScorer
from consentier.training.bootstrap import bootstrap_mean, paired_difference
from consentier.training.config import Config, TierConfig, load_config
from consentier.training.fit import TierRows
from consentier.training.metrics import PADDING, Relevant, ndcg
from consentier.training.validation import ValidationSet, validation_set

WIDTH = 20
COLD = 5
"""Persons below which an item is cold."""

SETTINGS = ("0x100", "5x100", "20x100", "100x100", "20x30", "20x300")

Lists = NDArray[np.int64]
Answerer = Callable[[Sequence[str] | None], Lists]
"""Lists for all requests, of some items or of all."""


def main() -> None:
    """Run the benchmark, print the table and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="A shop's directory.")
    parser.add_argument("--simulate", type=int, metavar="CUSTOMERS", help="Simulate a shop of this size.")
    parser.add_argument("--items", type=int, default=600, help="Items of the simulated shop.")
    parser.add_argument("--tier", type=Tier, action="append", help="By default all four.")
    parser.add_argument("--part", choices=["validation", "test"], default="validation")
    parser.add_argument("--settings", nargs="*", default=SETTINGS, metavar="PERSONSxNEIGHBOURS")
    parser.add_argument("--columns", nargs="*", default=[], help="Columns of the items table; default: all.")
    parser.add_argument("--split", action="append", default=[], help="A column of texts joined with '/'.")
    parser.add_argument("--hide", type=float, default=0.0, help="Share of the items to hide.")
    parser.add_argument("--keep", type=int, default=0, help="Persons that a hidden item keeps.")
    parser.add_argument("--new", action="store_true", help="Nothing of the history is recommended again.")
    parser.add_argument("--max-persons", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="Add the results to this file.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data
        if data is None:
            data = Path(folder) / "shop"
            write_shop(
                simulate(SimulationConfig(customers=arguments.simulate or 4000, items=arguments.items)), data
            )
        shop, config = _split(read_shop(data), arguments.split), load_config(data=data)
        name = arguments.data.name if arguments.data is not None else "simulated"
        found = [
            row
            for tier in arguments.tier or (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED)
            for row in _tier_rows(name, tier, shop, config, arguments, Path(folder))
        ]
    if arguments.json is not None:
        before = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
        arguments.json.write_text(json.dumps(before + found, indent=1) + "\n")


def _split(shop: ShopTables, columns: Sequence[str]) -> ShopTables:
    items = shop.items
    for name in columns:
        items = items.set_column(items.column_names.index(name), name, pc.split_pattern(items[name], "/"))
    return dataclasses.replace(shop, items=items)


def _tier_rows(
    name: str, tier: Tier, shop: ShopTables, config: Config, arguments: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    cutoff = config.training.cutoff
    if cutoff is None:
        raise SystemExit("the data have no cut-off")
    horizon = dt.timedelta(days=config.evaluation.horizon_days)
    start = cutoff if arguments.part == "test" else cutoff - horizon
    gate = ConsentGate(shop, ledger_of(shop), start + horizon, Policy.default())
    data = validation_set(
        tier, gate.permitted(tier), start, start + horizon, max_persons=arguments.max_persons, seed=0
    )
    rows = _hidden(data.rows, arguments.hide, arguments.keep)
    persons = person_counts(rows)
    judge = _Judge(data, persons)
    fitting = TierRows(tier, rows, 1)
    found: list[dict[str, Any]] = []
    base: TierConfig = getattr(config, tier)
    base = base.model_copy(update={"metadata_columns": tuple(sorted(arguments.columns))})
    if arguments.new:
        base = base.model_copy(update={"repeat_weight": 0.0, "hide": ("crm", "online", "session")})
    values = {"category": judge.values(_by_category(data, rows, persons, arguments.columns))}
    facts = {
        "data": name, "tier": str(tier), "part": arguments.part, "hidden": arguments.hide,
        "kept": arguments.keep, "new_only": arguments.new, "requests": len(data.requests),
        "cold_requests": judge.cold_requests,
    }  # fmt: skip
    print(
        f"\n{facts}\n| setting | all | cold | shelf | warm | fit s |\n|---|---|---|---|---|---|", flush=True
    )
    for setting in ("category", *arguments.settings):
        seconds = 0.0
        if setting != "category":
            values[setting], seconds = _fitted_values(setting, base, fitting, judge, data, folder)
        row = {**facts, "setting": setting, "fit_seconds": round(seconds, 2)}
        for kind, (of_requests, owners) in values[setting].items():
            mean = bootstrap_mean(of_requests, owners, samples=500, rng=0)
            row[kind] = [mean.mean, mean.low, mean.high]
            if "0x100" in values and setting not in ("category", "0x100"):
                gain = paired_difference(of_requests, values["0x100"][kind][0], owners, samples=500, rng=0)
                row[f"{kind} gain"] = [gain.mean, gain.low, gain.high]
        found.append(row)
        print(_line(row), flush=True)
    return found


def _fitted_values(
    setting: str, base: TierConfig, fitting: TierRows, judge: _Judge, data: ValidationSet, folder: Path
) -> tuple[dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]], float]:
    enough, _, neighbours = setting.partition("x")
    config = base.model_copy(update={"metadata_persons": int(enough), "metadata_neighbours": int(neighbours)})
    started = time.process_time()
    fitted, _ = fitting.fit(config, threads=1)
    seconds = time.process_time() - started
    sources, permission = TIERS[data.tier]
    write_bundle(
        folder / "bundle", tier=data.tier, sources=sources, permission=permission, algorithm=config.algorithm,
        parameters={}, scoring=fitted.scoring, item_count=fitted.item_count, cutoff=data.start,
        arrays=fitted.arrays, overwrite=True,
    )  # fmt: skip
    bundle = open_bundle(folder / "bundle")

    def answer(items: Sequence[str] | None) -> Lists:
        scorer = LinearScorer(bundle, None if items is None else Catalogue(frozenset(items)))
        asked = Query(WIDTH, Side.ONLINE)
        return judge.numbered(
            [() if found is None else found.items for found in (scorer.answer(v, asked) for v in data.views)]
        )

    return judge.values(answer), seconds


class _Judge:
    """Judges lists by all targets, by the cold ones and by the others."""

    def __init__(self, data: ValidationSet, persons: dict[str, int]) -> None:
        self._data = data
        self._numbers = {item: number for number, item in enumerate(data.item_ids)}
        cold = np.array([persons.get(item, 0) < COLD for item in data.item_ids])
        self.cold_items = {item for item in data.item_ids if persons.get(item, 0) < COLD}
        if data.rows.items is not None:
            in_table = data.rows.items["item_id"].to_pylist()
            self.cold_items |= {item for item in in_table if persons.get(item, 0) < COLD}
        self._warm_items = sorted(set(data.item_ids) - self.cold_items)
        self._cold, self._warm = self._targets(cold), self._targets(~cold)
        self.cold_requests = len(self._cold[0])

    def numbered(self, lists: Sequence[Sequence[str]]) -> Lists:
        """Lists of ids as numbers; items that are no targets get others."""
        found = np.full((len(lists), WIDTH), PADDING, dtype=np.int64)
        for row, items in enumerate(lists):
            for place, item in enumerate(items):
                found[row, place] = self._numbers.setdefault(item, len(self._numbers))
        return found

    def values(self, answer: Answerer) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """NDCG of each request that has such a target, and whose request it is."""
        everything, shelf, others = answer(None), answer(sorted(self.cold_items)), answer(self._warm_items)
        persons = self._data.persons
        judged = {
            "all": (np.arange(len(persons)), self._data.targets, everything),
            "cold": (*self._cold, everything),
            "shelf": (*self._cold, shelf),
            "warm": (*self._warm, others),
        }
        return {
            kind: (ndcg(lists[requests], targets, WIDTH), persons[requests])
            for kind, (requests, targets, lists) in judged.items()
        }

    def _targets(self, among: NDArray[np.bool_]) -> tuple[NDArray[np.int64], Relevant]:
        targets = self._data.targets
        owner = np.repeat(np.arange(len(targets)), targets.counts)
        inside = among[targets.items]
        requests, counts = np.unique(owner[inside], return_counts=True)
        return requests, Relevant(np.concatenate([[0], np.cumsum(counts)]), targets.items[inside])


def _by_category(
    data: ValidationSet, rows: PermittedRows, persons: dict[str, int], columns: Sequence[str]
) -> Answerer:
    """The same list for everybody: by persons, and for cold items by those of their levels' items."""
    judge = _Judge(data, persons)
    worth = {item: float(persons.get(item, 0)) for item in data.item_ids}
    levels = item_levels(rows.items, columns)
    if levels is not None:
        matrix = levels.matrix.astype(np.float64)
        counts = np.array([persons.get(item, 0) for item in levels.item_ids], dtype=np.float64)
        of_level = (matrix.T @ counts) / np.asarray(matrix.sum(axis=0)).ravel()
        of_item = (matrix @ of_level) / np.asarray(matrix.sum(axis=1)).ravel()
        worth |= {
            item: value
            for item, value in zip(levels.item_ids, of_item.tolist(), strict=True)
            if item in judge.cold_items
        }
    order = sorted(worth, key=lambda item: (-worth[item], item))

    def answer(items: Sequence[str] | None) -> Lists:
        allowed = None if items is None else set(items)
        best = [item for item in order if allowed is None or item in allowed][:WIDTH]
        return np.tile(judge.numbered([best]), (len(data.requests), 1))

    return answer


def _hidden(rows: PermittedRows, share: float, keep: int) -> PermittedRows:
    """The rows without those of a random share of the items, of which so many persons keep theirs."""
    if not share:
        return rows
    draw = np.random.default_rng(0)
    items = sorted(pc.unique(rows.rows["item_id"]).to_pylist())
    chosen = pa.array(draw.choice(items, int(share * len(items)), replace=False).tolist(), pa.string())
    among = pc.is_in(rows.rows["item_id"], value_set=chosen)
    theirs = rows.rows.filter(among)
    grouped = theirs.group_by(["item_id", "person"]).aggregate([])
    # Threads group in any order, and what is drawn must not vary.
    pairs = grouped.sort_by([("item_id", "ascending"), ("person", "ascending")]).to_pylist()
    pairs = [pairs[number] for number in draw.permutation(len(pairs)).tolist()]
    left: dict[str, set[str]] = {}
    for pair in sorted(pairs, key=lambda pair: str(pair["item_id"])):
        persons = left.setdefault(pair["item_id"], set())
        if len(persons) < keep:
            persons.add(pair["person"])
    stays = [
        not hidden or person in left[item]
        for hidden, person, item in zip(
            among.to_pylist(), rows.rows["person"].to_pylist(), rows.rows["item_id"].to_pylist(), strict=True
        )
    ]
    return dataclasses.replace(rows, rows=rows.rows.filter(pa.array(stays)))


def _line(row: dict[str, Any]) -> str:
    cells = [
        f"{row[kind][0]:.4f} [{row[kind][1]:.4f}, {row[kind][2]:.4f}]"
        + (f" ({row[f'{kind} gain'][0]:+.4f})" if f"{kind} gain" in row else "")
        for kind in ("all", "cold", "shelf", "warm")
    ]
    return f"| {row['setting']} | " + " | ".join(cells) + f" | {row['fit_seconds']} |"


if __name__ == "__main__":
    main()
