"""A plausible shop with planted truth, for trying the engine and for testing whether it finds what is there.

How a shop comes about:

* *Items* belong to styles (a few alike items of one category); their popularity follows Zipf's law. Some are
  launched or discontinued within the period, a few are sensitive.
* *People* have an online taste and, independent of it, a CRM taste over styles. Attributes of customers tell
  part of the CRM taste.
* *Sessions* are about one style, drawn from the online taste; their views mostly keep to it.
* *Orders* are of two kinds. On-site orders convert a view of this session or the one before, picked by pure
  chance, so that they add nothing to what the views tell. Direct orders (store, phone, app) follow the CRM
  taste, and no browsing precedes them.
* *Consent* comes in stories: granted, late, denied, withdrawn, granted again, expired, renewed, objected,
  lifted; the ledger has late and duplicated records and reused record ids.

So the items of the next days are foretold in part by the session, better by the online history, in another
part by CRM data, and best by both. With ``crm_signal=0`` CRM data hold nothing that the online data do not
hold, and fusion must show no lift.

Cost: linear in the events, apart from sorting; one to two seconds for each million on one core. Everything is
held in memory at once: count 200 bytes for each event while the shop is built, and 60 afterwards. 20 million
events (130,000 customers, 120 days) need 4 GB.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from consentier.features import simulator_activity as activity
from consentier.features import simulator_ledger as ledger
from consentier.features.directories import write_text, written_beside
from consentier.features.simulator_world import (
    CATEGORIES,
    NEVER,
    Catalogue,
    Draws,
    Flags,
    Floats,
    Integers,
    People,
    SimulationConfig,
)
from consentier.features.tables import write_tables
from consentier.progress import progress

__all__ = ["SimulatedShop", "SimulationConfig", "simulate", "write_shop"]

_TIME = pa.timestamp("us", tz="UTC")
_PARTS = (
    "catalogue", "people", "devices", "sessions", "views", "follow-ups", "on-site orders", "direct orders",
    "usage", "attributes", "identities", "situations", "records",
)  # fmt: skip

_AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
_REGIONS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
_MEMBER_LEVELS = ("basic", "silver", "gold", "platinum")


@dataclasses.dataclass(frozen=True)
class SimulatedShop:
    """A simulated shop.

    Attributes
    ----------
    config
        What it was simulated from.
    tables
        The tables of the data contract, by name, in canonical order of rows.
    truth
        What is hidden from the models: tables ``items`` (style, popularity, times on sale), ``customers``
        (segment, tastes, consent story), ``visitors`` (owner, archetype, taste, consent story), ``sessions``
        (person, focus) and ``orders`` (on-site or direct).
    truth_facts
        Facts that serialise to JSON: configuration, instants, the ordering of tiers that was planted, and how
        many rows and consent stories there are.
    """

    config: SimulationConfig
    tables: dict[str, pa.Table]
    truth: dict[str, pa.Table]
    truth_facts: dict[str, Any]


def simulate(config: SimulationConfig, *, show_progress: bool = False) -> SimulatedShop:
    """Simulate a shop.

    Parameters
    ----------
    config
        What to simulate; the same configuration gives the same shop, bit for bit.
    show_progress
        Whether to report progress on standard error.

    Raises
    ------
    TypeError
        If `config` is not a `SimulationConfig`.
    """
    if not isinstance(config, SimulationConfig):
        raise TypeError(f"config must be a SimulationConfig, got {type(config).__name__}")
    seeds = np.random.SeedSequence(config.seed).spawn(len(_PARTS))
    draws = {part: Draws(seed) for part, seed in zip(_PARTS, seeds, strict=True)}
    with progress("simulating a shop", total=4, enabled=show_progress) as advance:
        catalogue = Catalogue.drawn(config, draws["catalogue"])
        people = People.drawn(config, catalogue, _anonymous_people(config), draws["people"])
        devices = activity.draw_devices(config, people, draws["devices"])
        sessions = activity.draw_sessions(config, people, devices, draws["sessions"])
        advance()
        views = activity.draw_views(config, people, catalogue, sessions, draws["views"])
        on_site, conversions = activity.on_site_orders(
            people, catalogue, sessions, views, draws["on-site orders"]
        )
        follow_ups = activity.other_events(views, draws["follow-ups"])
        events = activity.merge_events([views, *follow_ups, *conversions], devices, sessions)
        direct = activity.direct_orders(config, people, catalogue, draws["direct orders"])
        orders = activity.merge_orders(on_site, direct)
        usage = activity.draw_usage(config, catalogue, orders, draws["usage"])
        advance()
        held = np.bincount(events.session, minlength=sessions.start.size) > 0
        used = _only(sessions, held)
        identities = ledger.draw_identities(config, people, devices, used, draws["identities"])
        situations = ledger.draw_situations(config, people, devices, draws["situations"])
        first_seen = ledger.first_starts(devices, used)
        records = ledger.draw_records(config, people, situations, first_seen, draws["records"])
        advance()
        names = _Names.of(config, devices, sessions)
        tables = {
            "events": _events_table(events, sessions, names),
            "orders": _orders_table(orders, names),
            "product_usage": _usage_table(usage, names),
            "customers": _customers_table(config, people, names, draws["attributes"]),
            "items": _items_table(config, catalogue, names),
            "identities": _identities_table(identities, names),
            "consents": _consents_table(records, names),
        }
        truth = {
            "items": _true_items(catalogue, names),
            "customers": _true_customers(people, situations, names),
            "visitors": _true_visitors(people, devices, situations, first_seen, names),
            "sessions": _true_sessions(people, sessions, held, names),
            "orders": _true_orders(orders, names),
        }
        advance()
    return SimulatedShop(config, tables, truth, _facts(config, tables, situations, first_seen))


def _anonymous_people(config: SimulationConfig) -> int:
    """As many people without account as make 30 % of the sessions, roughly."""
    of_customers = 0.75 * config.customers * config.days * activity.SESSIONS_PER_DAY
    return max(1, round(0.43 * of_customers / activity.ANONYMOUS_VISITS))


def _only(sessions: activity.Sessions, held: Flags) -> activity.Sessions:
    """The sessions that had events (`previous` is not meaningful any more and cleared)."""
    return activity.Sessions(
        sessions.person[held],
        sessions.device[held],
        sessions.start[held],
        sessions.focus[held],
        np.full(int(held.sum()), -1),
    )


# --- names and tables ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Names:
    """The ids of all things, as string arrays to take from."""

    customers: pa.Array
    visitors: pa.Array
    sessions: pa.Array
    items: pa.Array

    @classmethod
    def of(cls, config: SimulationConfig, devices: activity.Devices, sessions: activity.Sessions) -> _Names:
        return cls(
            customers=_ids("c", np.arange(config.customers)),
            visitors=_ids("v", devices.number),
            sessions=_ids("s", np.arange(sessions.start.size)),
            items=_ids("i", np.arange(config.items)),
        )


def _ids(prefix: str, numbers: Integers) -> pa.Array:
    width = max(5, len(str(int(numbers.max(initial=0)))))
    return pa.array([f"{prefix}{number:0{width}d}" for number in numbers.tolist()], pa.string())


def _times(instants: Integers) -> pa.Array:
    return pa.array(instants, pa.int64(), mask=instants == NEVER).cast(_TIME)


def _words(words: Sequence[str], codes: Integers, missing: Flags | None = None) -> pa.Array:
    return pa.array(list(words), pa.string()).take(pa.array(codes, pa.int64(), mask=missing))


def _numbers(values: Floats) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def _events_table(events: activity.Events, sessions: activity.Sessions, names: _Names) -> pa.Table:
    return pa.table(
        {
            "visitor_id": names.visitors.take(pa.array(sessions.device[events.session])),
            "session_id": names.sessions.take(pa.array(events.session)),
            "ts": _times(events.ts),
            "item_id": names.items.take(pa.array(events.item)),
            "event_type": _words(activity.EVENT_TYPES, events.type_),
        }
    )


def _orders_table(orders: activity.Orders, names: _Names) -> pa.Table:
    return pa.table(
        {
            "customer_id": names.customers.take(pa.array(orders.customer)),
            "order_id": _ids("o", orders.order),
            "line_id": pa.array(orders.line).cast(pa.string()),
            "ts": _times(orders.ts),
            "item_id": names.items.take(pa.array(orders.item)),
            "quantity": pa.array(orders.quantity),
            "price": _numbers(orders.price),
            "status": _words(activity.ORDER_STATES, orders.status),
        }
    )


def _usage_table(usage: activity.Usage, names: _Names) -> pa.Table:
    return pa.table(
        {
            "customer_id": names.customers.take(pa.array(usage.customer)),
            "ts": _times(usage.ts),
            "item_id": names.items.take(pa.array(usage.item)),
            "usage_type": _words(activity.USAGE_TYPES, usage.type_),
            "quantity": pa.array(usage.quantity, pa.int64()).cast(pa.float64()),
        }
    )


def _customers_table(config: SimulationConfig, people: People, names: _Names, draws: Draws) -> pa.Table:
    """Attributes that tell the segment with the configured strength, else nothing; some are missing."""
    count, segment = people.customers, people.segment
    strength = config.attribute_signal * config.crm_signal

    def attribute(choices: int, typical: Integers) -> tuple[Integers, Flags]:
        tells = draws.chance(strength, count)
        return np.where(tells, typical, draws.below(choices, count)), draws.chance(0.05, count)

    household, unknown_household = attribute(6, segment % 5)
    newsletter, unknown_newsletter = attribute(2, segment // 2 % 2)
    return pa.table(
        {
            "customer_id": names.customers,
            "age_band": _words(_AGE_BANDS, *attribute(len(_AGE_BANDS), segment % len(_AGE_BANDS))),
            "region": _words(_REGIONS, *attribute(len(_REGIONS), 5 * segment % len(_REGIONS))),
            "member_level": _words(_MEMBER_LEVELS, *attribute(4, segment // 3)),
            "household_size": pa.array(1.0 + household, mask=unknown_household),
            "newsletter": pa.array(newsletter == 1, mask=unknown_newsletter),
        }
    )


def _items_table(config: SimulationConfig, catalogue: Catalogue, names: _Names) -> pa.Table:
    return pa.table(
        {
            "item_id": names.items,
            "category": _words(CATEGORIES, catalogue.category),
            "price": pa.array(catalogue.price),
            "available": pa.array(catalogue.discontinued >= config.end_microseconds),
            "sensitive": pa.array(catalogue.sensitive),
        }
    )


def _identities_table(identities: ledger.Identities, names: _Names) -> pa.Table:
    return pa.table(
        {
            "visitor_id": names.visitors.take(pa.array(identities.device)),
            "customer_id": names.customers.take(pa.array(identities.customer)),
            "linked_at": _times(identities.linked_at),
            "evidence": pa.array(["login"] * identities.device.size, pa.string()),
        }
    )


def _consents_table(records: ledger.Records, names: _Names) -> pa.Table:
    count = records.record.size
    ids = pa.concat_arrays([names.visitors, names.customers])
    digests = [
        ledger.evidence_digest(record, state)
        for record, state in zip(records.record.tolist(), records.state.tolist(), strict=True)
    ]
    collector = np.where(records.customer, 1 + records.imported, 0)
    version = np.where(records.valid_from < 1_767_225_600_000_000, 0, 1)  # 1 January 2026
    return pa.table(
        {
            "record_id": _ids("r", records.record),
            "subject_id": ids.take(pa.array(records.subject + records.customer * len(names.visitors))),
            "subject_kind": _words(("visitor", "customer"), records.customer.astype(np.int64)),
            "permission": _words(ledger.PERMISSIONS, records.permission),
            "state": _words(ledger.STATES, records.state),
            "valid_from": _times(records.valid_from),
            "valid_to": _times(records.valid_to),
            "recorded_at": _times(records.recorded_at),
            "basis": pa.array(["consent"] * count, pa.string()),
            "jurisdiction": _words(ledger.JURISDICTIONS, records.jurisdiction),
            "double_opt_in_at": _times(records.double_opt_in_at),
            "collected_by": _words(("cmp", "shop-account", "crm-import"), collector),
            "policy_version": _words(("2025-1", "2026-1"), version),
            "evidence": pa.array(digests, pa.string()),
        }
    )


# --- the planted truth --------------------------------------------------------------------------------------


def _lists(values: Integers) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _true_items(catalogue: Catalogue, names: _Names) -> pa.Table:
    return pa.table(
        {
            "item_id": names.items,
            "style": pa.array(catalogue.style),
            "popularity": pa.array(catalogue.popularity),
            "launched_at": _times(catalogue.launched),
            "discontinued_at": _times(catalogue.discontinued),
        }
    )


def _true_customers(people: People, situations: ledger.Situations, names: _Names) -> pa.Table:
    return pa.table(
        {
            "customer_id": names.customers,
            "segment": pa.array(people.segment),
            "crm_taste": _lists(people.crm_taste),
            "online_taste": _lists(people.online_taste[: people.customers]),
            "online": pa.array(people.online[: people.customers]),
            "direct_orders": pa.array(people.direct),
            "account_opened_at": _times(people.account_opened),
            "crm_story": _words(tuple(ledger.STORIES), situations.crm),
        }
    )


def _true_visitors(
    people: People,
    devices: activity.Devices,
    situations: ledger.Situations,
    first_seen: Integers,
    names: _Names,
) -> pa.Table:
    seen = np.flatnonzero(first_seen != NEVER)
    seen = seen[np.argsort(devices.number[seen], kind="stable")]
    owner = devices.owner[seen]
    anonymous = owner >= people.customers
    return pa.table(
        {
            "visitor_id": names.visitors.take(pa.array(seen)),
            "customer_id": names.customers.take(pa.array(owner, mask=anonymous)),
            "secondary": pa.array(seen != devices.first[owner]),
            "archetype": pa.array(people.archetype[owner]),
            "online_taste": _lists(people.online_taste[owner]),
            "online_story": _words(tuple(ledger.STORIES), situations.online[seen]),
        }
    )


def _true_sessions(people: People, sessions: activity.Sessions, held: Flags, names: _Names) -> pa.Table:
    which = np.flatnonzero(held)
    person, focus = sessions.person[which], sessions.focus[which]
    return pa.table(
        {
            "session_id": names.sessions.take(pa.array(which)),
            "visitor_id": names.visitors.take(pa.array(sessions.device[which])),
            "customer_id": names.customers.take(pa.array(person, mask=person >= people.customers)),
            "focus_style": pa.array(focus, mask=focus < 0),
        }
    )


def _true_orders(orders: activity.Orders, names: _Names) -> pa.Table:
    first = orders.line == 1
    return pa.table(
        {
            "order_id": _ids("o", orders.order[first]),
            "customer_id": names.customers.take(pa.array(orders.customer[first])),
            "channel": _words(("direct", "on-site"), orders.on_site[first].astype(np.int64)),
        }
    )


def _facts(
    config: SimulationConfig, tables: dict[str, pa.Table], situations: ledger.Situations, first_seen: Integers
) -> dict[str, Any]:
    settings = dataclasses.asdict(config) | {"start": config.start.isoformat()}
    if not config.late_parents:
        del settings["late_parents"]  # the same bytes as before there was such a setting
    return {
        "config": settings,
        "cutoff": config.cutoff.isoformat(),
        "test_start": config.cutoff.isoformat(),
        "test_end": config.end.isoformat(),
        "expected_ordering": _planted_ordering(config),
        "fusion_lift_from_crm": config.crm_signal > 0,
        "rows": {name: table.num_rows for name, table in tables.items()},
        "stories": {
            "online": _story_counts(situations.online[first_seen != NEVER]),
            "crm": _story_counts(situations.crm),
        },
    }


def _story_counts(codes: Integers) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(ledger.STORIES)).tolist()
    return {story: count for story, count in zip(ledger.STORIES, counts, strict=True) if count}


def _planted_ordering(config: SimulationConfig) -> list[list[str]]:
    """Pairs of tiers, the second of which knows more about the orders to come than the first."""
    pairs = []
    if config.online_signal > 0:
        pairs += [["popular", "session"], ["session", "online"], ["crm", "fused"]]
    if config.crm_signal > 0:
        pairs += [["popular", "crm"], ["online", "fused"]]
    return pairs


# --- writing ------------------------------------------------------------------------------------------------


def write_shop(shop: SimulatedShop, out: Path, *, force: bool = False) -> None:
    """Write a simulated shop as a directory: tables, ``truth/`` and a configuration for training on it.

    Everything is written beside `out` and appears by one rename, or not at all.

    Parameters
    ----------
    shop
        What `simulate` returned.
    out
        The directory to create; its parents are made where absent.
    force
        Replace `out` as a whole, whatever it holds. Otherwise it must be absent or empty.

    Raises
    ------
    DataError
        If `out` is a file, holds something and `force` is False, or cannot be written.
    """
    with written_beside(out, force=force) as beside:
        write_tables(shop.tables, beside)
        write_tables(shop.truth, beside / "truth")
        facts = json.dumps(shop.truth_facts, indent=2, sort_keys=True) + "\n"
        write_text(beside / "truth" / "truth.json", facts)
        write_text(
            beside / "consentier.toml",
            "# Configuration for training on this simulated shop.\n"
            f'[training]\ncutoff = "{shop.config.cutoff.isoformat()}"\n\n'
            f"[evaluation]\nhorizon_days = {shop.config.horizon_days}\n",
        )
