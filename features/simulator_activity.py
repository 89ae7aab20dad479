"""What simulated people do: sessions, events, orders and the use of products."""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np

from consentier.features.simulator_world import (
    DAY,
    SECOND,
    Catalogue,
    Draws,
    Flags,
    Floats,
    Integers,
    People,
    SimulationConfig,
    thresholds,
    wanted_styles,
)

__all__ = [
    "ANONYMOUS_VISITS",
    "EVENT_TYPES",
    "ORDER_STATES",
    "SESSIONS_PER_DAY",
    "USAGE_TYPES",
    "Devices",
    "Events",
    "Orders",
    "Sessions",
    "Usage",
    "direct_orders",
    "draw_devices",
    "draw_sessions",
    "draw_usage",
    "draw_views",
    "merge_events",
    "merge_orders",
    "on_site_orders",
    "other_events",
]

SESSIONS_PER_DAY: Final = 0.16
ANONYMOUS_VISITS: Final = 1.5
"""Mean number of sessions of a person without an account."""

EVENT_TYPES: Final = ("view", "click", "cart", "remove", "favourite", "unfavourite", "order")
ORDER_STATES: Final = ("ordered", "cancelled", "returned")
USAGE_TYPES: Final = ("use", "service", "refill")

_VIEW, _CLICK, _CART, _REMOVE, _FAVOURITE, _UNFAVOURITE, _ORDER = range(len(EVENT_TYPES))
_DIRECT_ORDERS_PER_DAY: Final = 0.034
_CONVERSION: Final = 0.37
_PERSISTENCE: Final = 0.15
_LOOKS_BACK: Final = 0.1

_WEEKDAYS: Final = (95, 92, 96, 100, 98, 118, 131)
_HOURS: Final = (9, 5, 3, 2, 2, 4, 10, 20, 30, 36, 40, 42, 45, 42, 40, 41, 44, 50, 58, 68, 74, 66, 44, 22)


@dataclasses.dataclass(frozen=True)
class Devices:
    """Browsers and apps. `owner` int64 (devices,): the person; a person's devices stand together.

    `first`, `count` int64 (people,): where a person's devices begin and how many there are. `borrowed`
    int64 (people,): the device of somebody else that a person uses in place of an own second one, or -1.
    `number` int64 (devices,): a random numbering, so that ids tell nothing about owners.
    """

    owner: Integers
    first: Integers
    count: Integers
    borrowed: Integers
    number: Integers


@dataclasses.dataclass(frozen=True)
class Sessions:
    """Sessions by start. Arrays int64 (sessions,); `previous` is the same person's session before, or -1."""

    person: Integers
    device: Integers
    start: Integers
    focus: Integers
    previous: Integers


@dataclasses.dataclass(frozen=True)
class Events:
    """Events of sessions. Arrays int64 (events,); `type_` is a position in EVENT_TYPES."""

    session: Integers
    ts: Integers
    item: Integers
    type_: Integers


@dataclasses.dataclass(frozen=True)
class Orders:
    """Order lines. Arrays (lines,); `order` numbers orders, `on_site` says whether browsing preceded."""

    customer: Integers
    order: Integers
    line: Integers
    ts: Integers
    item: Integers
    quantity: Integers
    price: Floats
    status: Integers
    on_site: Flags


@dataclasses.dataclass(frozen=True)
class Usage:
    """Reported use of bought products. Arrays int64 (rows,)."""

    customer: Integers
    ts: Integers
    item: Integers
    type_: Integers
    quantity: Integers


def draw_devices(config: SimulationConfig, people: People, draws: Draws) -> Devices:
    """Give each person who browses a device, and some customers a second or third one."""
    everybody = people.online.size
    owning = _owning_secondary(config)
    further = draws.chance(owning, people.customers) & people.online[: people.customers]
    third = further & draws.chance(0.2, people.customers)
    count = people.online.astype(np.int64)
    count[: people.customers] += further.astype(np.int64) + third
    first = np.cumsum(count) - count
    borrowed = np.full(everybody, -1, np.int64)
    sharing = np.flatnonzero(further & ~third)
    sharing = sharing[: 2 * max(1, sharing.size // 60)]
    pairs = sharing[: sharing.size // 2 * 2].reshape(-1, 2)
    borrowed[pairs[:, 1]] = first[pairs[:, 0]]
    total = int(count.sum())
    return Devices(
        owner=np.repeat(np.arange(everybody), count),
        first=first,
        count=count,
        borrowed=borrowed,
        number=draws.subset(total, total),
    )


def _owning_secondary(config: SimulationConfig) -> float:
    """Share of the customers who own more than one device."""
    return min(1.0, 2.5 * config.device_share)


def draw_sessions(config: SimulationConfig, people: People, devices: Devices, draws: Draws) -> Sessions:
    """Draw the sessions of all people: Poisson counts, times by the season, a focus style for each."""
    span = _remaining_days(config, people.active_from)
    mean = np.where(people.online, SESSIONS_PER_DAY * people.pace * span, 0.0)
    mean[people.customers :] = ANONYMOUS_VISITS - 1
    counts = draws.poisson(mean)
    counts[people.customers :] += 1
    person = np.repeat(np.arange(counts.size), counts)
    until = np.full(counts.size, config.end_microseconds)
    until[people.customers :] = np.minimum(people.active_from[people.customers :] + 21 * DAY, until[0])
    start = _season_times(config, people.active_from[person], until[person], draws)
    order = np.lexsort((start, person))
    person, start = person[order], start[order]
    focus = _focus_styles(config, people, person, draws)
    by_start = np.lexsort((person, start))
    position = np.empty(by_start.size, np.int64)
    position[by_start] = np.arange(by_start.size)
    previous = np.full(person.size, -1, np.int64)
    same = np.flatnonzero(person[1:] == person[:-1]) + 1
    previous[same] = position[same - 1]
    device = _devices_of(config, devices, person, draws)
    return Sessions(person[by_start], device[by_start], start[by_start], focus[by_start], previous[by_start])


def _remaining_days(config: SimulationConfig, instants: Integers) -> Floats:
    remaining: Floats = (config.end_microseconds - instants) / DAY
    return remaining


def _season_times(config: SimulationConfig, low: Integers, high: Integers, draws: Draws) -> Integers:
    """One instant for each interval [low, high), more of them on busy days and at busy hours."""
    days = np.arange(config.days)
    yearly = 1.0 + 0.15 * np.sin((days + config.start.timetuple().tm_yday) * (2 * np.pi / 365))
    weekly = np.array(_WEEKDAYS)[(days + config.start.weekday()) % 7]
    cumulative = np.concatenate(([0], np.cumsum(np.rint(yearly * weekly * 1024).astype(np.int64))))
    # The first day counts whole; what falls before `low` is moved to just after it.
    first = (low - config.start_microseconds) // DAY
    last = np.minimum((high - config.start_microseconds - 1) // DAY + 1, config.days)
    points = cumulative[first] + draws.below(cumulative[last] - cumulative[first], low.size)
    day = np.searchsorted(cumulative, points, side="right") - 1
    hour = draws.weighted(np.cumsum(_HOURS), low.size)
    within = draws.below(DAY // 24, low.size)
    instants = config.start_microseconds + day * DAY + hour * (DAY // 24) + within
    outside = (instants < low) | (instants >= high)
    return np.where(outside, low + (within * 0.5).astype(np.int64) + 30 * SECOND, instants)


def _focus_styles(config: SimulationConfig, people: People, person: Integers, draws: Draws) -> Integers:
    """Styles that sessions are about: from the online taste, often the same as in the session before."""
    fresh = wanted_styles(draws, people.online_taste[person], config.online_signal)
    begins = ~draws.chance(_PERSISTENCE * config.session_signal, person.size)
    begins[0:1] = True
    begins[1:] |= person[1:] != person[:-1]
    source = np.maximum.accumulate(np.where(begins, np.arange(person.size), 0))
    return fresh[source]


def _devices_of(config: SimulationConfig, devices: Devices, person: Integers, draws: Draws) -> Integers:
    """The device of each session."""
    owning = _owning_secondary(config)
    count = devices.count[person]
    elsewhere = draws.chance(config.device_share / owning if owning else 0.0, person.size) & (count > 1)
    which = np.where(elsewhere, 1 + draws.below(np.maximum(count - 1, 1), person.size), 0)
    borrowed = devices.borrowed[person]
    return np.where(elsewhere & (borrowed >= 0), borrowed, devices.first[person] + which)


def draw_views(
    config: SimulationConfig, people: People, catalogue: Catalogue, sessions: Sessions, draws: Draws
) -> Events:
    """Draw what is viewed, in order of session and time."""
    lengths = 1 + np.minimum(draws.exponential(4.2, sessions.start.size).astype(np.int64), 40)
    session = np.repeat(np.arange(lengths.size), lengths)
    gaps = (10 + draws.exponential(40.0, session.size)) * SECOND
    elapsed = np.cumsum(gaps.astype(np.int64))
    first = np.cumsum(lengths) - lengths
    ts = sessions.start[session] + elapsed - elapsed[first][session]
    fresh = wanted_styles(draws, people.online_taste[sessions.person[session]], config.online_signal)
    # A focus on nothing in particular (-1) keeps to nothing: its views are drawn afresh, too.
    stays = draws.chance(0.9 * config.session_signal, session.size) & (sessions.focus[session] >= 0)
    item = catalogue.draw(draws, np.where(stays, sessions.focus[session], fresh), ts)
    kept = (item >= 0) & (ts < config.end_microseconds - 120 * SECOND)
    return Events(session[kept], ts[kept], item[kept], np.full(int(kept.sum()), _VIEW))


def other_events(views: Events, draws: Draws) -> list[Events]:
    """Clicks, carts, removals and favourites that follow some of the views within seconds."""
    count = views.ts.size
    cart = draws.chance(0.15, count)
    favourite = draws.chance(0.05, count)
    follow_ups = (
        (_CLICK, draws.chance(0.2, count), 2),
        (_CART, cart, 4),
        (_FAVOURITE, favourite, 5),
        (_REMOVE, cart & draws.chance(0.2, count), 6),
        (_UNFAVOURITE, favourite & draws.chance(0.15, count), 7),
    )
    jitter = draws.below(SECOND, count)
    return [
        Events(
            views.session[which],
            views.ts[which] + seconds * SECOND + jitter[which],
            views.item[which],
            np.full(int(which.sum()), type_),
        )
        for type_, which, seconds in follow_ups
    ]


def on_site_orders(
    people: People,
    catalogue: Catalogue,
    sessions: Sessions,
    views: Events,
    draws: Draws,
) -> tuple[Orders, list[Events]]:
    """Orders of viewed items, with their carts and confirmations as events.

    Which view of this session or the one before is converted is pure chance, so an order tells nothing about
    taste beyond what the views told.
    """
    count = sessions.start.size
    viewed = np.bincount(views.session, minlength=count)
    first = np.cumsum(viewed) - viewed
    converts = draws.chance(_CONVERSION, count) & (sessions.person < people.customers) & (viewed > 0)
    session = np.flatnonzero(converts)
    order = np.repeat(np.arange(session.size), 1 + draws.weighted(thresholds(0.65, 0.25, 0.10), session.size))
    session = session[order]
    previous = sessions.previous[session]
    looks_back = draws.chance(_LOOKS_BACK, session.size) & (previous >= 0)
    looks_back &= viewed[previous] > 0
    source = np.where(looks_back, previous, session)
    item = views.item[first[source] + draws.below(viewed[source], source.size)]
    ts = views.ts[first[session] + viewed[session] - 1] + 60 * SECOND
    kept = catalogue.on_sale(item, ts)
    lines = _lines(catalogue, sessions.person[session], order, ts, item, draws, on_site=True, kept=kept)
    chosen = _distinct(order, item, kept)
    events = [
        Events(session[chosen], ts[chosen] - seconds * SECOND, item[chosen], np.full(chosen.size, type_))
        for type_, seconds in ((_CART, 40), (_ORDER, 0))
    ]
    return lines, events


def direct_orders(config: SimulationConfig, people: People, catalogue: Catalogue, draws: Draws) -> Orders:
    """Orders off the site (store, phone, app), drawn from the CRM taste; no browsing precedes them."""
    active_from = people.active_from[: people.customers]
    pace = people.pace[: people.customers]
    mean = _DIRECT_ORDERS_PER_DAY * pace * _remaining_days(config, active_from)
    counts = draws.poisson(np.where(people.direct, mean, 0.0))
    customer = np.repeat(np.arange(counts.size), counts)
    until = np.full(customer.size, config.end_microseconds)
    ts = _season_times(config, active_from[customer], until, draws)
    order = np.repeat(
        np.arange(customer.size), 1 + draws.weighted(thresholds(0.6, 0.25, 0.1, 0.05), customer.size)
    )
    styles = wanted_styles(draws, people.crm_taste[customer[order]], config.crm_signal)
    item = catalogue.draw(draws, styles, ts[order])
    kept = (item >= 0) & (ts[order] < config.end_microseconds)
    return _lines(catalogue, customer[order], order, ts[order], item, draws, on_site=False, kept=kept)


def _distinct(order: Integers, item: Integers, kept: Flags) -> Integers:
    """Positions of the kept lines, without repetitions of an item within an order, by order and item."""
    positions = np.flatnonzero(kept)
    positions = positions[np.lexsort((item[positions], order[positions]))]
    distinct: Integers = positions[_begins(order[positions], item[positions])]
    return distinct


def _begins(*keys: Integers) -> Flags:
    """Whether each row of sorted keys differs from the row before."""
    begins = np.ones(keys[0].size, np.bool_)
    if begins.size:
        begins[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return begins


def _lines(
    catalogue: Catalogue,
    customer: Integers,
    order: Integers,
    ts: Integers,
    item: Integers,
    draws: Draws,
    *,
    on_site: bool,
    kept: Flags,
) -> Orders:
    chosen = _distinct(order, item, kept)
    count = chosen.size
    order = order[chosen]
    begins = np.flatnonzero(_begins(order))
    line = 1 + np.arange(count) - np.repeat(begins, np.diff(np.append(begins, count)))
    discount = np.where(draws.chance(0.2, count), 0.9, 1.0)
    price = np.round(catalogue.price[item[chosen]] * discount, 2)
    price[draws.chance(0.01, count)] = np.nan
    return Orders(
        customer=customer[chosen],
        order=order,
        line=line,
        ts=ts[chosen],
        item=item[chosen],
        quantity=1 + draws.weighted(thresholds(0.85, 0.12, 0.03), count),
        price=price,
        status=draws.weighted(thresholds(0.92, 0.04, 0.04), count),
        on_site=np.full(count, on_site),
    )


def merge_orders(on_site: Orders, direct: Orders) -> Orders:
    """Put orders of both kinds in order of time and number them."""
    shift = int(on_site.order.max(initial=-1)) + 1
    direct = dataclasses.replace(direct, order=direct.order + shift)
    merged = {
        field.name: np.concatenate((getattr(on_site, field.name), getattr(direct, field.name)))
        for field in dataclasses.fields(Orders)
    }
    by_time = np.lexsort((merged["line"], merged["order"], merged["customer"], merged["ts"]))
    merged = {name: values[by_time] for name, values in merged.items()}
    merged["order"] = np.cumsum(_begins(merged["order"])) - 1
    return Orders(**merged)


def draw_usage(config: SimulationConfig, catalogue: Catalogue, orders: Orders, draws: Draws) -> Usage:
    """Use of some of the bought products in the month after: it tells what the order told."""
    kept = (orders.status == 0) & (catalogue.category[orders.item] % 3 == 0)
    line = np.flatnonzero(kept & draws.chance(0.6, kept.size))
    line = np.repeat(line, 1 + draws.below(4, line.size))
    ts = orders.ts[line] + DAY + draws.below(30 * DAY, line.size)
    type_ = draws.weighted(thresholds(0.8, 0.1, 0.1), line.size)
    quantity = 1 + draws.below(5, line.size)
    within = ts < config.end_microseconds
    customer, item = orders.customer[line], orders.item[line]
    order = np.lexsort((item, customer, ts))
    order = order[within[order]]
    return Usage(customer[order], ts[order], item[order], type_[order], quantity[order])


def merge_events(parts: list[Events], devices: Devices, sessions: Sessions) -> Events:
    """Put events in their canonical order: time, visitor, item, type."""
    session, ts, item, type_ = (
        np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(Events)
    )
    order = np.lexsort((type_, item, devices.number[sessions.device[session]], ts))
    return Events(session[order], ts[order], item[order], type_[order])
