"""Identity links and the consent ledger of a simulated shop, with all that goes wrong in real ones."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Final, NamedTuple

import numpy as np

from consentier.features.simulator_activity import Devices, Sessions
from consentier.features.simulator_world import (
    DAY,
    NEVER,
    SECOND,
    Draws,
    Flags,
    Floats,
    Integers,
    People,
    SimulationConfig,
    thresholds,
)

__all__ = [
    "JURISDICTIONS",
    "PERMISSIONS",
    "STATES",
    "STORIES",
    "Identities",
    "Records",
    "Situations",
    "draw_identities",
    "draw_records",
    "draw_situations",
    "evidence_digest",
    "first_starts",
]

STATES: Final = ("granted", "denied", "withdrawn", "objected", "lifted")
PERMISSIONS: Final = ("online", "crm", "contact:email", "contact:push", "contact:print", "parental")
JURISDICTIONS: Final = ("DE", "AT", "CH", "FR")

_ONLINE, _CRM, _EMAIL, _PUSH, _PRINT, _PARENTAL = range(len(PERMISSIONS))
_GRANTED, _LIFTED = STATES.index("granted"), STATES.index("lifted")


class Step(NamedTuple):
    """One record of a story, at a moment drawn between two fractions of the subject's time."""

    state: str
    earliest: float = 0.0
    latest: float = 0.0
    until: tuple[float, float] | None = None


STORIES: Final[dict[str, tuple[Step, ...]]] = {
    "unknown": (),
    "granted": (Step("granted"),),
    "granted late": (Step("granted", 0.1, 0.4),),
    "denied": (Step("denied"),),
    "denied, then granted": (Step("denied"), Step("granted", 0.1, 0.4)),
    "withdrawn": (Step("granted"), Step("withdrawn", 0.3, 0.95)),
    "withdrawn, granted again": (Step("granted"), Step("withdrawn", 0.1, 0.3), Step("granted", 0.35, 0.5)),
    "expired": (Step("granted", until=(0.3, 0.95)),),
    "expired, renewed": (Step("granted", until=(0.1, 0.3)), Step("granted", 0.35, 0.5)),
    "objected": (Step("granted"), Step("objected", 0.3, 0.9)),
    "objected, lifted": (
        Step("granted"),
        Step("objected", 0.1, 0.2),
        Step("lifted", 0.25, 0.35),
        Step("granted", 0.36, 0.5),
    ),
    "of age later": (Step("denied"), Step("lifted", 0.2, 0.5)),
}
"""What can happen to a permission. Fractions run from the first to the last day of the subject's time."""

_HELD_IN_THE_END: Final = {
    "granted": 0.86,
    "granted late": 0.04,
    "denied, then granted": 0.03,
    "withdrawn, granted again": 0.03,
    "expired, renewed": 0.03,
    "objected, lifted": 0.01,
}
_LOST_AGAIN: Final = {"withdrawn": 0.5, "expired": 0.3, "objected": 0.2}
_LOST_SHARE: Final = 0.05
_NEVER_HELD: Final = {"unknown": 0.45, "denied": 0.4, "withdrawn": 0.1, "expired": 0.05}
_CONTACT: Final = {"granted": 0.85, "denied": 0.06, "withdrawn": 0.07, "objected": 0.02}
_PARENTAL_STORIES: Final = {"denied": 0.4, "granted": 0.3, "of age later": 0.3}

_NAMES: Final = tuple(STORIES)


@dataclasses.dataclass(frozen=True)
class Identities:
    """Links between devices and customers. Arrays int64 (links,); `linked_at` is NEVER where unknown."""

    device: Integers
    customer: Integers
    linked_at: Integers


@dataclasses.dataclass(frozen=True)
class Situations:
    """The story of each subject, as positions in STORIES: int64 (customers,) and int64 (devices,)."""

    crm: Integers
    online: Integers


@dataclasses.dataclass(frozen=True)
class Records:
    """Consent records. Arrays (records,); instants are microseconds, NEVER where there is none.

    `record` numbers record ids: exact duplicates share it, and so do the few reused ids with other content.
    """

    record: Integers
    customer: Flags
    subject: Integers
    permission: Integers
    state: Integers
    valid_from: Integers
    valid_to: Integers
    recorded_at: Integers
    double_opt_in_at: Integers
    jurisdiction: Integers
    imported: Flags

    def take(self, positions: Integers) -> Records:
        """Records at positions."""
        return Records(**{f.name: getattr(self, f.name)[positions] for f in dataclasses.fields(self)})


def evidence_digest(record: int, state: int) -> str:
    """Stand-in for the digest of what a consent banner or form would have archived."""
    return (
        "sha256:" + hashlib.sha256(f"simulated decision {record}: {STATES[state]}".encode()).hexdigest()[:32]
    )


def first_starts(devices: Devices, sessions: Sessions) -> Integers:
    """First session start of each device, int64 (devices,); NEVER for a device that was not used."""
    first = np.full(devices.owner.size, NEVER)
    first[sessions.device[::-1]] = sessions.start[::-1]
    return first


def draw_identities(
    config: SimulationConfig, people: People, devices: Devices, sessions: Sessions, draws: Draws
) -> Identities:
    """Link devices to accounts by logins: mostly at the first session, some again or only later."""
    own = np.flatnonzero(sessions.person < people.customers)
    pairs = sessions.person[own] * devices.owner.size + sessions.device[own]
    _, first, which = np.unique(pairs, return_index=True, return_inverse=True)
    person, device = sessions.person[own[first]], sessions.device[own[first]]
    linked = draws.chance(config.link_share, people.customers)[person]
    primary = device == devices.first[person]
    linked &= primary | draws.chance(0.85, device.size)
    at_first = sessions.start[own[first]] + SECOND
    later = draws.below(np.bincount(which, minlength=device.size), device.size)
    by_pair = np.argsort(which, kind="stable")
    begins = np.cumsum(np.bincount(which, minlength=device.size)) - np.bincount(which, minlength=device.size)
    at_later = sessions.start[own[by_pair[begins + later]]] + SECOND
    at_once = draws.chance(0.9, device.size)
    linked_at = np.where(at_once, at_first, at_later)
    linked_at[draws.chance(0.01, device.size)] = NEVER
    again = linked & at_once & (at_later > at_first) & draws.chance(0.6, device.size)
    everything = Identities(
        np.concatenate((device[linked], device[again])),
        np.concatenate((person[linked], person[again])),
        np.concatenate((linked_at[linked], at_later[again])),
    )
    order = np.lexsort((everything.linked_at, everything.customer, devices.number[everything.device]))
    return Identities(everything.device[order], everything.customer[order], everything.linked_at[order])


def draw_situations(config: SimulationConfig, people: People, devices: Devices, draws: Draws) -> Situations:
    """Decide who permits what, and how their permissions fare.

    With `consent_selection` people of some archetypes and segments consent more often than others.
    """
    customers = people.customers
    leaning = np.where(people.archetype % 2 == 0, 1.0, -1.0)
    leaning[:customers] = (leaning[:customers] + np.where(people.segment % 2 == 0, 1.0, -1.0)) / 2
    shift = 0.3 * config.consent_selection * leaning
    both = np.clip(0.74 + shift[:customers], 0.0, 1.0)
    point = draws.uniform(customers)
    kind = draws.weighted(thresholds(0.10, 0.10, 0.10), customers)
    online = (point < both) | (kind == 0)
    crm = (point < both) | (kind == 1)
    absent = ~people.online[:customers]
    crm[absent] = draws.chance(0.6 + shift[:customers], customers)[absent]
    online = np.concatenate((online, draws.chance(0.5 + shift[customers:], people.online.size - customers)))
    of_devices = _outcome(online[devices.owner], draws)
    # A second device asks again: most people answer as before.
    secondary = np.arange(devices.owner.size) != devices.first[devices.owner]
    differs = secondary & draws.chance(0.15, devices.owner.size)
    of_devices[differs] = _stories(_NEVER_HELD, int(differs.sum()), draws)
    return Situations(crm=_outcome(crm, draws), online=of_devices)


def _stories(weights: dict[str, float], count: int, draws: Draws) -> Integers:
    codes = np.array([_NAMES.index(name) for name in weights])
    return codes[draws.weighted(thresholds(*weights.values()), count)]


def _outcome(willing: Flags, draws: Draws) -> Integers:
    count = willing.size
    held = _stories(_HELD_IN_THE_END, count, draws)
    lost = _stories(_LOST_AGAIN, count, draws)
    refused = _stories(_NEVER_HELD, count, draws)
    return np.where(willing, np.where(draws.chance(_LOST_SHARE, count), lost, held), refused)


def draw_records(
    config: SimulationConfig,
    people: People,
    situations: Situations,
    first_seen: Integers,
    draws: Draws,
) -> Records:
    """Write the ledger: the stories of all subjects, late and duplicated records and reused ids.

    `first_seen` int64 (devices,): start of a device's first session, NEVER for devices without events.
    """
    customers = np.arange(people.customers)
    seen = np.flatnonzero(first_seen != NEVER)
    opened = people.account_opened
    willing = np.isin(situations.crm, [_NAMES.index(name) for name in _HELD_IN_THE_END])
    parts = [
        _told(config, False, _ONLINE, seen, situations.online[seen], first_seen[seen] - 20 * SECOND, draws),
        _told(config, True, _CRM, customers, situations.crm, opened, draws),
    ]
    for permission, share in ((_EMAIL, 0.7), (_PUSH, 0.25), (_PRINT, 0.05)):
        asked = np.flatnonzero(willing & draws.chance(share, customers.size))
        stories = _stories(_CONTACT, asked.size, draws)
        parts.append(_told(config, True, permission, asked, stories, opened[asked] + 5 * SECOND, draws))
    minors = draws.subset(customers.size, max(3, customers.size // 200))
    stories = _stories(_PARENTAL_STORIES, minors.size, draws)
    stories[:3] = [_NAMES.index(name) for name in _PARENTAL_STORIES]
    if config.late_parents:  # else nothing is drawn, and shops stay as they were
        stories[draws.chance(config.late_parents, minors.size)] = _NAMES.index("granted late")
    parts.append(_told(config, True, _PARENTAL, minors, stories, opened[minors] + SECOND, draws))
    records = Records(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(Records)
        }
    )
    return _in_order(_with_faults(_numbered(records), draws))


def _told(
    config: SimulationConfig,
    customer: bool,
    permission: int,
    subjects: Integers,
    stories: Integers,
    first: Integers,
    draws: Draws,
) -> Records:
    """The records of one permission: each subject's story, from its first moment to the end of the period."""
    jurisdiction = draws.weighted(thresholds(0.7, 0.12, 0.1, 0.08), subjects.size)
    imported = draws.chance(0.25, subjects.size) & customer
    rows, states, starts, ends = [], [], [], []
    from_, end = np.maximum(first, config.start_microseconds), config.end_microseconds
    for code, steps in enumerate(STORIES.values()):
        who = np.flatnonzero(stories == code)
        for step in steps:
            fraction = step.earliest + (step.latest - step.earliest) * draws.uniform(who.size)
            start = first[who] if step.latest == 0.0 else _moment(from_[who], end, fraction)
            valid_to = np.full(who.size, NEVER)
            if step.until is not None:
                fraction = step.until[0] + (step.until[1] - step.until[0]) * draws.uniform(who.size)
                valid_to = _moment(from_[who], end, fraction)
            rows.append(who)
            states.append(np.full(who.size, STATES.index(step.state)))
            starts.append(start)
            ends.append(valid_to)
    row, state, valid_from, valid_to = (np.concatenate(parts) for parts in (rows, states, starts, ends))
    delay = (1 + draws.below(3, row.size)) * SECOND
    late = draws.chance(0.04, row.size)
    delay[late] += DAY + draws.below(9 * DAY, int(late.sum()))
    confirmed = (state == _GRANTED) & (permission == _EMAIL) & draws.chance(0.9, row.size)
    opt_in = valid_from + 60 * SECOND + draws.below(3_600 * SECOND, row.size)
    return Records(
        record=np.zeros(row.size, np.int64),
        customer=np.full(row.size, customer),
        subject=subjects[row],
        permission=np.full(row.size, permission),
        state=state,
        valid_from=valid_from,
        valid_to=valid_to,
        recorded_at=valid_from + delay,
        double_opt_in_at=np.where(confirmed, opt_in, NEVER),
        jurisdiction=jurisdiction[row],
        imported=imported[row],
    )


def _moment(first: Integers, end: int, fraction: Floats) -> Integers:
    return first + ((end - first) * fraction).astype(np.int64)


def _numbered(records: Records) -> Records:
    order = np.lexsort(
        (records.permission, records.subject, records.customer, records.valid_from, records.recorded_at)
    )
    return dataclasses.replace(records.take(order), record=np.arange(order.size))


def _with_faults(records: Records, draws: Draws) -> Records:
    """Add exact duplicates (3 %) and a few record ids that come again with another state."""
    count = records.record.size
    again = np.flatnonzero(draws.chance(0.03, count))
    reused = records.take(draws.subset(count, max(2, count // 2000)))
    reused = dataclasses.replace(reused, state=np.where(reused.state == _GRANTED, 1, _GRANTED))
    parts = (records, records.take(again), reused)
    return Records(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(Records)
        }
    )


def _in_order(records: Records) -> Records:
    """In the order in which they were recorded."""
    return records.take(np.lexsort((records.state, records.record, records.recorded_at)))
