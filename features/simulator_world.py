"""The simulated world before anybody acts: configuration, random draws, catalogue and people."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CATEGORIES",
    "DAY",
    "NEVER",
    "SECOND",
    "Catalogue",
    "Draws",
    "Flags",
    "Floats",
    "Integers",
    "People",
    "SimulationConfig",
    "thresholds",
    "wanted_styles",
]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SECOND: Final = 1_000_000
HOUR: Final = 3_600 * SECOND
DAY: Final = 24 * HOUR
NEVER: Final = np.iinfo(np.int64).max

_ONLINE_FAVOURITES: Final = 6
_CRM_FAVOURITES: Final = 3
_ARCHETYPES: Final = 12
_ARCHETYPE_STYLES: Final = 8
_SEGMENTS: Final = 9
_SEGMENT_STYLES: Final = 6
_STYLES_PER_CATEGORY: Final = 3

CATEGORIES: Final = (
    "shoes", "shirts", "trousers", "jackets", "bags", "watches", "jewellery", "phones", "audio", "cameras",
    "kitchen", "lighting", "furniture", "garden", "tools", "sports", "camping", "bicycles", "toys", "books",
    "stationery", "pets", "groceries", "health",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
    """What to simulate.

    Attributes
    ----------
    customers, items, days
        Size of the shop: accounts (at least 20), items (at least 40), days of activity. About 1.5 sessions
        of anonymous visitors come with every 3.5 sessions of customers.
    seed
        The whole shop is a function of this configuration.
    start
        First instant, a midnight in UTC.
    horizon_days
        Length of the test period at the end; at most half of `days`.
    session_signal
        In [0, 1]: how far a session keeps to one style (0: each view is drawn afresh from the taste).
    online_signal
        In [0, 1]: how far browsing follows the person's online taste (0: the popularity of items only).
    crm_signal
        In [0, 1]: how far orders by phone, in the store or in the app follow the person's CRM taste, which is
        independent of the online taste (0: popularity only; attributes are noise then, too).
    attribute_signal
        In [0, 1]: how well attributes tell the customer's segment, as a fraction of `crm_signal`.
    device_share
        Share of customers' sessions that happen on a secondary device, in [0, 0.9]. A person's devices share
        one taste, so with more than one device a fused history holds more *online* data than a visitor's
        own; set it to 0 to isolate what CRM data add.
    link_share
        Share of the customers with online presence whose devices are linked to the account.
    consent_selection
        In [0, 1]: how far consent depends on taste (0: not at all).
    late_parents
        Share of the minors whose parents consent some time after the child itself did, in [0, 1]. By default
        every parental record begins with the account.

    Raises
    ------
    ValueError
        If a field is out of its range.
    """

    customers: int = 4000
    items: int = 600
    days: int = 112
    seed: int = 7
    start: dt.datetime = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
    horizon_days: int = 28
    session_signal: float = 0.8
    online_signal: float = 0.95
    crm_signal: float = 0.95
    attribute_signal: float = 0.7
    device_share: float = 0.15
    link_share: float = 0.9
    consent_selection: float = 0.0
    late_parents: float = 0.0

    def __post_init__(self) -> None:
        self._require_whole("customers", 20, 50_000_000)
        self._require_whole("items", 40, 10_000_000)
        self._require_whole("horizon_days", 1, 365)
        self._require_whole("days", 2 * self.horizon_days, 730)
        self._require_whole("seed", 0, 2**63 - 1)
        for name in ("session_signal", "online_signal", "crm_signal", "attribute_signal"):
            self._require_share(name, 1.0)
        self._require_share("device_share", 0.9)
        self._require_share("link_share", 1.0)
        self._require_share("consent_selection", 1.0)
        self._require_share("late_parents", 1.0)
        start: object = self.start
        if not isinstance(start, dt.datetime) or start.utcoffset() != dt.timedelta(0):
            raise ValueError(f"start must be a datetime in UTC, got {start!r}")
        if start.time() != dt.time() or start.year < 1972:
            raise ValueError(f"start must be a midnight, 1972 or later, got {start.isoformat()}")

    def _require_whole(self, name: str, low: int, high: int) -> None:
        value: object = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")

    def _require_share(self, name: str, high: float) -> None:
        value: object = getattr(self, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= high:
            raise ValueError(f"{name} must be a number from 0 to {high:g}, got {value!r}")

    @property
    def end(self) -> dt.datetime:
        """The instant at which the simulated period ends (exclusive)."""
        return self.start + dt.timedelta(days=self.days)

    @property
    def cutoff(self) -> dt.datetime:
        """End of the training data and start of the test period."""
        return self.end - dt.timedelta(days=self.horizon_days)

    @property
    def start_microseconds(self) -> int:
        """`start` in microseconds since the Unix epoch."""
        return int(self.start.timestamp()) * SECOND

    @property
    def end_microseconds(self) -> int:
        """`end` in microseconds since the Unix epoch."""
        return self.start_microseconds + self.days * DAY


class Draws:
    """Random draws for one part of the simulation.

    Everything is derived from uniform doubles, and weights are whole numbers, so that neither NumPy's
    distribution algorithms nor the platform's order of summation can change a shop.
    """

    def __init__(self, seed: np.random.SeedSequence) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def uniform(self, *shape: int) -> Floats:
        """Uniform in [0, 1), float64."""
        return self._generator.random(shape)

    def chance(self, probability: float | Floats, count: int) -> Flags:
        """Independent coin flips."""
        return self.uniform(count) < probability

    def below(self, limit: int | Integers, count: int) -> Integers:
        """Whole numbers in [0, limit)."""
        return (self.uniform(count) * limit).astype(np.int64)

    def weighted(self, cumulative: Integers, count: int) -> Integers:
        """Positions with probability in proportion to whole-number weights, given cumulatively."""
        return np.searchsorted(cumulative, self.below(int(cumulative[-1]), count), side="right")

    def exponential(self, mean: float, count: int) -> Floats:
        """Exponential waiting times."""
        return -mean * np.log1p(-self.uniform(count))

    def normal(self, count: int) -> Floats:
        """Approximately standard normal: a sum of twelve uniforms."""
        total = -6.0 * np.ones(count)
        for _ in range(12):
            total += self.uniform(count)
        return total

    def poisson(self, mean: Floats) -> Integers:
        """Poisson counts, by inversion. Cost: number of means times the largest count."""
        remaining = self.uniform(mean.size)
        probability = np.exp(-mean)
        counts = np.zeros(mean.size, np.int64)
        for step in range(1, 1 + int(10 + 10 * mean.max(initial=0.0))):
            above = remaining >= probability
            if not above.any():
                break
            remaining = np.where(above, remaining - probability, -1.0)
            counts += above
            probability = probability * mean / step
        return counts

    def subset(self, population: int, size: int) -> Integers:
        """Distinct whole numbers in [0, population), in random order."""
        return np.argsort(self.uniform(population), kind="stable")[:size]


def thresholds(*weights: float) -> Integers:
    """Cumulative whole-number weights for `Draws.weighted`, from weights in any unit."""
    return np.cumsum(np.rint(np.array(weights) * 2**20).astype(np.int64))


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The items. All arrays have one entry per item; instants are microseconds since the epoch.

    `style` is latent: a group of alike items in one category. `by_style` lists items in order of style, and
    `cumulative` the running sum of their popularity in that order, so that one binary search draws an item
    of a given style.
    """

    style: Integers
    category: Integers
    popularity: Integers
    price: Floats
    sensitive: Flags
    launched: Integers
    discontinued: Integers
    by_style: Integers
    cumulative: Integers
    style_from: Integers
    style_to: Integers

    @classmethod
    def drawn(cls, config: SimulationConfig, draws: Draws) -> Catalogue:
        """Draw a catalogue. Cost: n log n in the items."""
        count = config.items
        categories = min(len(CATEGORIES), max(3, count // 25))
        styles = categories * _STYLES_PER_CATEGORY
        style = draws.subset(count, count) % styles
        category = len(CATEGORIES) - categories + style // _STYLES_PER_CATEGORY
        rank = draws.subset(count, count)
        popularity = np.rint(2**30 / (rank + 5.0)).astype(np.int64)
        level = 12.0 * np.exp(0.9 * draws.normal(len(CATEGORIES)))
        price = np.maximum(0.5, np.round(level[category] * np.exp(0.45 * draws.normal(count)), 2))
        launched = np.full(count, config.start_microseconds - 30 * DAY)
        new = draws.chance(0.2, count)
        launched[new] = config.start_microseconds + draws.below(int(0.9 * config.days) * DAY, int(new.sum()))
        ending = draws.chance(0.06, count) & ~new
        discontinued = np.full(count, NEVER)
        discontinued[ending] = config.start_microseconds + (
            (0.3 + 0.65 * draws.uniform(int(ending.sum()))) * config.days * DAY
        ).astype(np.int64)
        by_style = np.argsort(style, kind="stable")
        cumulative = np.cumsum(popularity[by_style])
        style_to = cumulative[np.cumsum(np.bincount(style, minlength=styles)) - 1]
        return cls(
            style=style,
            category=category,
            popularity=popularity,
            price=price,
            sensitive=(category == len(CATEGORIES) - 1) & (style % _STYLES_PER_CATEGORY == 0),
            launched=launched,
            discontinued=discontinued,
            by_style=by_style,
            cumulative=cumulative,
            style_from=np.concatenate(([0], style_to[:-1])),
            style_to=style_to,
        )

    @property
    def style_count(self) -> int:
        """How many styles there are."""
        return self.style_to.size

    def draw(self, draws: Draws, styles: Integers, instants: Integers) -> Integers:
        """Draw one item for each wanted style (-1: any style, by popularity) that is on sale at the instant.

        Returns -1 where six attempts found no such item.
        """
        low = np.where(styles >= 0, self.style_from[styles], 0)
        width = np.where(styles >= 0, self.style_to[styles], self.cumulative[-1]) - low
        found = np.full(styles.size, -1, np.int64)
        for _ in range(6):
            open_ = np.flatnonzero(found < 0)
            if open_.size == 0:
                break
            points = low[open_] + draws.below(width[open_], open_.size)
            items = self.by_style[np.searchsorted(self.cumulative, points, side="right")]
            found[open_] = np.where(self.on_sale(items, instants[open_]), items, -1)
        return found

    def on_sale(self, items: Integers, instants: Integers) -> Flags:
        """Whether each item is on sale from its instant on for at least another hour."""
        on_sale: Flags = (self.launched[items] <= instants) & (instants + HOUR < self.discontinued[items])
        return on_sale


@dataclasses.dataclass(frozen=True)
class People:
    """Customers, followed by the people who never open an account.

    Attributes
    ----------
    customers
        How many of the people are customers (the first ones).
    archetype, online_taste
        For all people: the latent group, int64 (people,), and favourite styles in falling order of weight,
        int64 (people, favourites).
    segment, crm_taste
        For customers: the same on the CRM side, independent of the online side.
    active_from
        First instant of activity within the period; for customers after `account_opened`.
    account_opened
        For customers: when the account was created (for many of them before the period).
    online, direct
        For all people: whether they browse; for customers: whether they also order off the site.
    pace
        For all people: personal factor of all rates.
    """

    customers: int
    archetype: Integers
    online_taste: Integers
    segment: Integers
    crm_taste: Integers
    active_from: Integers
    account_opened: Integers
    online: Flags
    direct: Flags
    pace: Floats

    @classmethod
    def drawn(cls, config: SimulationConfig, catalogue: Catalogue, anonymous: int, draws: Draws) -> People:
        """Draw the people. Cost: linear in them."""
        customers, everybody = config.customers, config.customers + anonymous
        archetype = draws.below(_ARCHETYPES, everybody)
        segment = draws.below(_SEGMENTS, customers)
        start, period = config.start_microseconds, config.days * DAY
        established = draws.chance(0.75, customers)
        account_opened = np.where(
            established,
            start - DAY - draws.below(400 * DAY, customers),
            start + (0.6 * period * draws.uniform(customers)).astype(np.int64),
        )
        active_from = np.concatenate(
            (
                np.maximum(account_opened + 60 * SECOND, start),
                start + (0.98 * period * draws.uniform(anonymous)).astype(np.int64),
            )
        )
        presence = draws.weighted(thresholds(0.75, 0.10, 0.15), customers)
        return cls(
            customers=customers,
            archetype=archetype,
            online_taste=_taste(
                draws, archetype, _ARCHETYPES, _ARCHETYPE_STYLES, _ONLINE_FAVOURITES, catalogue.style_count
            ),
            segment=segment,
            crm_taste=_taste(
                draws, segment, _SEGMENTS, _SEGMENT_STYLES, _CRM_FAVOURITES, catalogue.style_count
            ),
            active_from=active_from,
            account_opened=account_opened,
            online=np.concatenate((presence != 2, np.ones(anonymous, np.bool_))),
            direct=presence != 1,
            pace=np.minimum(0.4 + draws.exponential(0.6, everybody), 5.0),
        )


def _taste(
    draws: Draws, group: Integers, groups: int, size: int, favourites_each: int, styles: int
) -> Integers:
    """Favourite styles: mostly from the `size` styles of one's group, else any."""
    of_group = np.stack([draws.subset(styles, min(size, styles)) for _ in range(groups)])
    favourites = np.empty((group.size, favourites_each), np.int64)
    for position in range(favourites_each):
        typical = of_group[group, draws.below(of_group.shape[1], group.size)]
        own = draws.below(styles, group.size)
        favourites[:, position] = np.where(draws.chance(0.7, group.size), typical, own)
    return favourites


def wanted_styles(draws: Draws, taste: Integers, signal: float) -> Integers:
    """Draw one style from each row of favourites, or -1 (anything popular) with probability 1 - signal.

    The weights of n favourites are in proportion to n, n - 1, …, 1.
    """
    count, favourites = taste.shape
    position = draws.weighted(np.cumsum(np.arange(favourites, 0, -1)), count)
    follows = draws.chance(signal, count)
    return np.where(follows, taste[np.arange(count), position], -1)
