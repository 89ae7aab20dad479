"""``consentier evaluate``: what does each permission level get, on orders that no model has seen?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from consentier.cli.ledgers import TrainingLedgerUrl, shop_and_ledger
from consentier.cli.options import (
    AsJson,
    BadRows,
    ConfigPath,
    Cutoff,
    LifetimesPath,
    OnBadRowsOption,
    PolicyPath,
    ShopData,
)
from consentier.cli.output import name_of, note, print_json, print_table, require_file, say, write_json
from consentier.cli.settings import settings_of
from consentier.consent import Policy


def evaluate(
    data: ShopData,
    out: Annotated[Path, typer.Option("--out", help="The file of results.")] = Path("evaluation.json"),
    config: ConfigPath = None,
    cutoff: Cutoff = None,
    policy: PolicyPath = None,
    ledger: TrainingLedgerUrl = None,
    lifetimes: LifetimesPath = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    as_json: AsJson = False,
) -> None:
    """Train on what was before the cut-off, and compare the tiers on the orders after it."""
    from consentier.training.evaluate import evaluate as evaluate_tiers

    require_file(out)
    settings = settings_of(config, data, cutoff)
    routing = None if policy is None else Policy.load(policy)
    with shop_and_ledger(data, on_bad_rows, ledger, lifetimes) as (shop, opened):
        evaluation = evaluate_tiers(shop, settings, policy=routing, ledger=opened, name=name_of(data))
    write_json(out, evaluation)
    if as_json:
        print_json(evaluation)
        return
    print_evaluation(evaluation)
    say(f"\nwritten to {out}")
    note(f"next: consentier report {out} --out report.html")


def print_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Print the scores of the tiers, and the paired differences between them."""
    from consentier.training.report import ASKED, TARGET, print_rows

    data = evaluation["data"]
    target = TARGET[evaluation["population"]].format(days=data["horizon_days"])
    say(
        f"{data['name']}: {evaluation['customers']:,} {ASKED[evaluation['population']]}, "
        f"{evaluation['requests']:,} requests\n"
        f"cut-off {data['cutoff']}; target: {target}\n"
    )
    rows = print_rows(evaluation)
    print_table(
        [name.partition("@")[0] for name in rows[0]],
        # Means alone: a terminal has no room for the intervals, which the report shows.
        [[text.partition(" [")[0] for text in row.values()] for row in rows],
        title=f"lists of {evaluation['cutoffs'][0]} items",
    )
    for contrast in evaluation["contrasts"]:
        say()
        print_table(
            ["tier", "against", "metric", "difference", "interval", "relative", "p (Holm)"],
            [
                [
                    row["better"],
                    row["baseline"],
                    row["metric"],
                    f"{row['difference']['mean']:+.4f}",
                    f"{row['difference']['low']:+.4f} to {row['difference']['high']:+.4f}",
                    "-" if row["relative"] is None else f"{row['relative']:+.1%}",
                    f"{row['p_holm']:.4f}",
                ]
                for row in contrast["rows"]
            ],
            title=contrast["name"],
        )
    for text in evaluation["notes"]:
        say(f"\nnote: {text}")
