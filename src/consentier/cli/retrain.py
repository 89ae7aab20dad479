"""``consentier retrain``: bundles brought to a later cut-off, from what the earlier fit counted."""

from __future__ import annotations

import dataclasses

from consentier.cli.ledgers import TrainingLedgerUrl, ledger_for
from consentier.cli.options import (
    AsJson,
    BadRows,
    BundlesPath,
    ConfigPath,
    Cutoff,
    OnBadRowsOption,
    PolicyPath,
    RestrictedPath,
    ShopData,
    TiersToTrain,
    chosen_tiers,
)
from consentier.cli.output import name_of, print_json, print_table, say, short
from consentier.cli.settings import settings_of
from consentier.consent import Policy


def retrain(
    data: ShopData,
    bundles: BundlesPath,
    tier: TiersToTrain = None,
    config: ConfigPath = None,
    cutoff: Cutoff = None,
    policy: PolicyPath = None,
    ledger: TrainingLedgerUrl = None,
    restricted: RestrictedPath = None,
    on_bad_rows: OnBadRowsOption = BadRows.ERROR,
    as_json: AsJson = False,
) -> None:
    """Bring the bundles to a new cut-off: each becomes, byte for byte, what 'consentier train' would make.

    Rows that changed are exchanged in the statistics of the earlier fit, where that is exact; else the tier
    is fitted from scratch, and it says why. May be killed at any moment, and run again.
    """
    from consentier.features.tables import read_shop
    from consentier.training.restricted import Restricted
    from consentier.training.retrain import retrain as retrain_bundles

    settings = settings_of(config, data, cutoff)
    shop = read_shop(data, on_bad_rows=on_bad_rows.value)
    with ledger_for(shop, ledger) as opened:
        result = retrain_bundles(
            shop,
            settings,
            bundles,
            Restricted.beside(bundles) if restricted is None else Restricted(restricted),
            tiers=chosen_tiers(tier or []),
            policy=None if policy is None else Policy.load(policy),
            ledger=opened,
            name=name_of(data),
        )
    if as_json:
        told = dataclasses.asdict(result)
        print_json({**told, "training": {**told["training"], "out": str(bundles)}})
        return
    print_table(
        ["tier", "how", "bundle", "changed", "new", "gone", "items solved", "seconds"],
        [
            [
                each.tier, each.how, None if each.after is None else short(each.after),
                each.changed, each.new, each.gone, each.solved, each.seconds,
            ]
            for each in result.tiers
        ],
    )  # fmt: skip
    for each in result.tiers:
        if each.reason is not None:
            say(f"\n{each.tier} was {each.how}: {each.reason}", style="yellow")
    versions = result.training.versions
    if versions:
        say(f"\nregistered as challengers, by version: {', '.join(f'{t} {v}' for t, v in versions.items())}")
    late = ", ".join(tier for tier in versions if tier not in result.training.digests)
    if late:
        say(f"an earlier run was killed before it recorded these: {late}")
