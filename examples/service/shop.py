"""The shop behind the page: simulated once, trained once, and what its goods are called."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from consentier import Catalogue, Event
from consentier.features.gate import ledger_of
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.models.attribute_encoding import AttributeValue
from consentier.serving.batch import catalogue_of, profiles_of
from consentier.training.config import TrackingConfig, load_config
from consentier.training.restricted import Restricted
from consentier.training.train import TRAINED_TIERS, train

if TYPE_CHECKING:
    from consentier import Ledger, Profiles

__all__ = ["SIMULATION", "Product", "Regular", "Shop", "prepare"]

SIMULATION = SimulationConfig(customers=1500, items=240, days=84)

# What a page recommends is new to whom it is shown to, as far as the tier may know.
_HIDDEN = {
    "session": ("session",),
    "online": ("online", "session"),
    "crm": ("crm",),
    "fused": ("crm", "online", "session"),
}

_MAKERS = ("Alder", "Birch", "Cedar", "Dune", "Ember", "Fjord")
_GOODS: Mapping[str, Sequence[str]] = {
    "bicycles": ("bell", "saddle", "lock", "pump", "lamp", "helmet", "pannier", "chain", "pedals"),
    "books": ("novel", "atlas", "cookbook", "poems", "diary", "mystery", "guide", "comic", "essays"),
    "camping": ("tent", "stove", "lantern", "hammock", "rucksack", "flask", "mat", "cooler", "tarp"),
    "groceries": ("coffee", "honey", "pasta", "olive oil", "tea", "chocolate", "rice", "jam", "almonds"),
    "health": ("soap", "towel", "brush", "balm", "sponge", "comb", "salts", "lotion", "candle"),
    "pets": ("bowl", "lead", "basket", "ball", "brush", "collar", "blanket", "treats", "scratcher"),
    "sports": ("football", "racket", "rope", "gloves", "skates", "weights", "goggles", "whistle", "net"),
    "stationery": ("notebook", "pen", "ruler", "folder", "ink", "tape", "stapler", "cards", "crayons"),
    "toys": ("blocks", "puzzle", "kite", "train", "doll", "robot", "drum", "marbles", "yo-yo"),
}

_SHORTEST = 6
"""Distinct items that a regular customer has seen, and has bought, at least."""
_REGULARS = 12


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """One of the shop's goods."""

    item_id: str
    title: str
    category: str
    price: float


@dataclasses.dataclass(frozen=True, slots=True)
class Regular:
    """What a regular customer with both permissions has done, told without who it was. Times as simulated."""

    viewed: tuple[Event, ...]
    bought: tuple[Event, ...]
    attributes: Mapping[str, AttributeValue]

    def moved(self, now: dt.datetime) -> Regular:
        """The same history, moved in time so that it ends an hour before now."""
        last = max(event.ts for event in (*self.viewed, *self.bought) if event.ts is not None)
        shift = now - dt.timedelta(hours=1) - last

        def later(events: Sequence[Event]) -> tuple[Event, ...]:
            return tuple(dataclasses.replace(event, ts=event.ts + shift) for event in events if event.ts)

        return Regular(later(self.viewed), later(self.bought), self.attributes)

    @property
    def begins(self) -> dt.datetime:
        """When the first thing happened."""
        return min(event.ts for event in (*self.viewed, *self.bought) if event.ts is not None)


@dataclasses.dataclass(frozen=True)
class Shop:
    """A directory with a shop's tables and the bundles that were trained on them."""

    bundles: Path
    products: Mapping[str, Product]
    regulars: Sequence[Regular]

    @property
    def catalogue(self) -> Catalogue:
        """What may be shown, with titles for explanations."""
        return Catalogue.of(
            {
                item: {"title": product.title, "category": product.category, "price": product.price}
                for item, product in self.products.items()
            }
        )

    @classmethod
    def open(cls, directory: Path) -> Shop:
        """Open what `prepare` made."""
        tables = read_shop(directory / "shop")
        profiles = profiles_of(tables, SIMULATION.cutoff)
        products = dict(_products(tables))
        regulars = itertools.islice(_regulars(ledger_of(tables), profiles, products), _REGULARS)
        return cls(directory / "bundles", products, tuple(regulars))


def prepare(directory: Path) -> None:
    """Simulate the shop and train its models, unless that was done before. Takes half a minute.

    The directory appears when all of it is there.
    """
    if directory.exists():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as name:
        made = Path(name) / "made"
        made.mkdir()
        write_shop(simulate(SIMULATION, show_progress=True), made / "shop")
        config = load_config(data=made / "shop")
        config = config.model_copy(
            update={
                "tracking": TrackingConfig(enabled=False),
                **{
                    tier: getattr(config, tier).model_copy(update={"hide": hidden})
                    for tier, hidden in _HIDDEN.items()
                },
            }
        )
        bundles = made / "bundles"
        # With the index of whom the bundles hold: a withdrawal stops the bundles that hold the person only.
        train(
            read_shop(made / "shop"),
            config,
            bundles,
            tiers=TRAINED_TIERS,
            restricted=Restricted.beside(bundles),
        )
        shutil.move(made, directory)


def _products(tables: ShopTables) -> Iterator[tuple[str, Product]]:
    """The goods that may be shown, under names of their own."""
    catalogue = catalogue_of(tables)
    shown = frozenset[str]() if catalogue is None else catalogue.available
    seen = dict.fromkeys(_GOODS, 0)
    for row in tables.items.to_pylist():
        item, category = row["item_id"], row["category"]
        if item not in shown or category not in seen:
            continue
        number, goods = seen[category], _GOODS[category]
        seen[category] += 1
        title = f"{_MAKERS[number // len(goods) % len(_MAKERS)]} {goods[number % len(goods)]}"
        yield item, Product(item, title, category, row["price"])


def _regulars(ledger: Ledger, profiles: Profiles, products: Mapping[str, Product]) -> Iterator[Regular]:
    """Customers with both permissions and a lawful link, of whom both sides know enough, by id."""
    links = ledger.lawful_links(at=SIMULATION.cutoff)
    for visitor, link in sorted(links.items(), key=lambda entry: (entry[1].customer_id, entry[0])):
        viewed = _of(profiles.online.get(visitor, ()), products)
        bought = _of(profiles.crm.get(link.customer_id, ()), products)
        if min(len({event.item_id for event in events}) for events in (viewed, bought)) >= _SHORTEST:
            yield Regular(viewed, bought, profiles.attributes.get(link.customer_id, {}))


def _of(events: Sequence[Event], products: Mapping[str, Product]) -> tuple[Event, ...]:
    return tuple(event for event in events if event.item_id in products)
