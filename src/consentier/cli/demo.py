"""``consentier demo``: the whole way, on a simulated shop."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consentier.cli.evaluate import print_evaluation
from consentier.cli.options import AsJson, ReplaceOut
from consentier.cli.output import note, print_json, print_table, say, write_json
from consentier.cli.train import print_training
from consentier.consent import Channel, Permission, Tier
from consentier.errors import DataError

if TYPE_CHECKING:
    from consentier.consent import Ledger
    from consentier.serving import Answer, Event, Profiles, Recommender

_ITEMS_SHOWN = 6
_SESSION_ITEMS = 3
_SHORTEST_HISTORY = 5


@dataclasses.dataclass(frozen=True, slots=True)
class _Customer:
    """A customer with both permissions, and the visitor that is lawfully linked."""

    customer_id: str
    visitor_id: str


def demo(
    out: Annotated[Path, typer.Option("--out", help="The directory to create.")] = Path("demo-output"),
    customers: Annotated[int, typer.Option(min=200, help="Customers of the simulated shop.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same shop.")] = 7,
    force: ReplaceOut = False,
    as_json: AsJson = False,
) -> None:
    """Simulate a shop, train all tiers, compare them, and ask for one customer at each permission level."""
    from consentier.features.gate import ledger_of
    from consentier.features.simulator import SimulationConfig, write_shop
    from consentier.features.simulator import simulate as simulate_shop
    from consentier.features.tables import read_shop
    from consentier.serving import Recommender
    from consentier.serving.batch import catalogue_of, profiles_of
    from consentier.training.config import load_config
    from consentier.training.evaluate import evaluate
    from consentier.training.report import write_report
    from consentier.training.train import train

    data, bundles = out / "shop", out / "bundles"
    with _new_directory(out, force):
        note(f"1/6 simulating a shop of {customers:,} customers")
        simulation = SimulationConfig(customers=customers, seed=seed)
        write_shop(simulate_shop(simulation, show_progress=True), data)

        note("2/6 reading it back, as any shop's tables are read, and training each tier on what it may read")
        shop = read_shop(data)
        config = load_config(data=data, environ=os.environ)
        tiers = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED, Tier.POPULAR)
        result = train(shop, config, bundles, tiers=tiers)

        note("3/6 comparing the tiers on the orders of the last days, which no model has seen")
        evaluation = evaluate(shop, config, name="simulated shop")
        write_json(out / "evaluation.json", evaluation)

        note("4/6 asking for one customer in four states of permission")
        recommender = Recommender.load(bundles, catalogue=catalogue_of(shop, ()))
        profiles = profiles_of(shop, simulation.cutoff)
        customer = _customer(ledger_of(shop), profiles, simulation.cutoff)
        answers = _answers(recommender, profiles, customer, simulation.cutoff)

        note("5/6 writing the report")
        write_report(out / "report.html", evaluation)
    note("6/6 done\n")
    if as_json:
        print_json(
            {
                "out": str(out),
                "digests": result.digests,
                "evaluation": evaluation,
                "answers": {name: answer.to_dict() for name, answer in answers.items()},
            }
        )
        return
    print_training(result)
    say()
    print_evaluation(evaluation)
    _print_answers(answers, profiles, customer)
    _print_what_next(out)


@contextlib.contextmanager
def _new_directory(out: Path, force: bool) -> Iterator[None]:
    """A directory of our own, which disappears again if what fills it fails."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose another directory")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise DataError(f"{out}: is not empty: choose another directory, or use --force to replace it")
        if not (out / "shop" / "truth").is_dir():
            raise DataError(f"{out}: was not made by 'consentier demo', and is not replaced")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _customer(ledger: Ledger, profiles: Profiles, at: dt.datetime) -> _Customer:
    """The first customer of level 3, by id, of whom both sides of the shop know enough to show something."""
    links = ledger.lawful_links(at=at)
    for visitor, link in sorted(links.items(), key=lambda entry: (entry[1].customer_id, entry[0])):
        online = profiles.online.get(visitor, ())
        crm = profiles.crm.get(link.customer_id, ())
        if min(len(_items(online)), len(_items(crm))) >= _SHORTEST_HISTORY:
            return _Customer(link.customer_id, visitor)
    raise DataError(
        "no customer of the simulated shop has both permissions and enough history: raise --customers"
    )


def _items(events: Sequence[Event]) -> list[str]:
    """Distinct items of a history, the latest last."""
    return list(dict.fromkeys(event.item_id for event in reversed(events)))[::-1]


def _answers(
    recommender: Recommender, profiles: Profiles, customer: _Customer, at: dt.datetime
) -> dict[str, Answer]:
    """The same request four times: only the permission differs, and the channel that goes with it."""
    from consentier.serving import Request

    history = profiles.online[customer.visitor_id]
    then = dataclasses.replace(recommender, clock=lambda: at)
    both = Permission.ONLINE | Permission.CRM
    states = {
        "no permission, in the shop": (Permission.NONE, Channel.SHOP),
        "online only, in the shop": (Permission.ONLINE, Channel.SHOP),
        "CRM only, by e-mail": (Permission.CRM, Channel.EMAIL),
        "both, logged in to the shop": (both, Channel.SHOP),
    }
    return {
        name: then.recommend(
            Request(
                session=_items(history)[-_SESSION_ITEMS:],
                permission=permission,
                linked=permission == both,
                channel=channel,
                online_history=history,
                crm_history=profiles.crm[customer.customer_id],
                attributes=profiles.attributes.get(customer.customer_id, {}),
                n=_ITEMS_SHOWN,
            )
        )
        for name, (permission, channel) in states.items()
    }


def _print_answers(answers: dict[str, Answer], profiles: Profiles, customer: _Customer) -> None:
    viewed = _items(profiles.online[customer.visitor_id])
    ordered = _items(profiles.crm[customer.customer_id])
    say(f"\nWhat each permission gets one customer, {customer.customer_id}, at the cut-off", style="bold")
    say(f"running session: {', '.join(viewed[-_SESSION_ITEMS:])}")
    say(f"online history:  {len(viewed)} items, last {', '.join(viewed[-_ITEMS_SHOWN:])}")
    say(f"CRM history:     {len(ordered)} items, last {', '.join(ordered[-_ITEMS_SHOWN:])}\n")
    print_table(
        ["permission", "tier", "read", "items"],
        [
            [name, str(answer.tier), ", ".join(answer.basis.sources) or "-", " ".join(answer.items)]
            for name, answer in answers.items()
        ],
    )


def _print_what_next(out: Path) -> None:
    say("\nWhere to look next", style="bold")
    rows: list[list[Any]] = [
        [str(out / "report.html"), "the comparison as a page, with intervals and the consent funnel"],
        [str(out / "shop"), "the tables of the data contract; consents.parquet decides what is read"],
        [f"consentier inspect {out / 'bundles'}", "what is in a bundle"],
        [
            f"consentier score {out / 'shop'} --bundles {out / 'bundles'} --channel email --out recs.parquet",
            "a file for a mailing",
        ],
        [f"mlflow ui --backend-store-uri sqlite:///{out / 'bundles' / 'mlflow.db'}", "the recorded runs"],
    ]
    for what, why in rows:
        say(f"  {what}")
        say(f"      {why}", style="dim")
