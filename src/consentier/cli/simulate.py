"""``consentier simulate``: a shop to try things on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from consentier.cli.options import AsJson, ReplaceOut
from consentier.cli.output import note, print_json, print_table, say
from consentier.features.simulator_world import SimulationConfig

_DEFAULTS = SimulationConfig()


def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to create.")],
    customers: Annotated[int, typer.Option(min=20, help="Customers with an account.")] = _DEFAULTS.customers,
    items: Annotated[int, typer.Option(min=40, help="Items.")] = _DEFAULTS.items,
    days: Annotated[int, typer.Option(min=2, help="Days of activity.")] = _DEFAULTS.days,
    horizon_days: Annotated[
        int | None,
        typer.Option(min=1, help="Days of the test period at the end; a quarter of --days by default."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same shop.")] = _DEFAULTS.seed,
    session_signal: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How far a session keeps to one kind of item.")
    ] = _DEFAULTS.session_signal,
    online_signal: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How far browsing follows a person's taste.")
    ] = _DEFAULTS.online_signal,
    crm_signal: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="How far direct orders follow a taste that browsing does not show."
        ),
    ] = _DEFAULTS.crm_signal,
    attribute_signal: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How well attributes tell that taste.")
    ] = _DEFAULTS.attribute_signal,
    device_share: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of customers' sessions on a second device.")
    ] = _DEFAULTS.device_share,
    link_share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of customers whose devices are linked to the account."),
    ] = _DEFAULTS.link_share,
    consent_selection: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How far consent depends on taste.")
    ] = _DEFAULTS.consent_selection,
    late_parents: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of minors whose parents consent later than the child."),
    ] = _DEFAULTS.late_parents,
    force: ReplaceOut = False,
    as_json: AsJson = False,
) -> None:
    """Simulate a shop with planted truth: tables of the data contract, consents included."""
    from consentier.features.simulator import simulate as simulate_shop
    from consentier.features.simulator import write_shop

    config = SimulationConfig(
        customers=customers,
        items=items,
        days=days,
        horizon_days=max(1, days // 4) if horizon_days is None else horizon_days,
        seed=seed,
        session_signal=session_signal,
        online_signal=online_signal,
        crm_signal=crm_signal,
        attribute_signal=attribute_signal,
        device_share=device_share,
        link_share=link_share,
        consent_selection=consent_selection,
        late_parents=late_parents,
    )
    shop = simulate_shop(config, show_progress=True)
    write_shop(shop, out, force=force)
    rows = {name: table.num_rows for name, table in shop.tables.items()}
    if as_json:
        settings = {**dataclasses.asdict(config), "start": config.start.isoformat()}
        print_json({"out": str(out), "rows": rows, "cutoff": config.cutoff.isoformat(), "config": settings})
        return
    print_table(["table", "rows"], [[name, count] for name, count in rows.items()])
    say(f"\nwritten to {out}, with the planted truth in {out / 'truth'}")
    note(f"next: consentier train {out} --out bundles")
