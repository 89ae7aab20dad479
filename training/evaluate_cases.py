"""Whom an evaluation asks, and what it holds of them: test cases out of rows that have passed the gate.

Permissions and links are those of two instants: the start of the test period, at which requests are put, and
its end, up to which permission must hold for anything to be read at all.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from consentier.consent import Ledger, Permission, Policy, microseconds
from consentier.features.gate import PermittedRows
from consentier.models.attribute_encoding import AttributeValue
from consentier.serving import Event
from consentier.training.config import EvaluationConfig
from consentier.training.evaluation_result import PermissionGroup, TargetSide

__all__ = [
    "Case",
    "Links",
    "crm_cases",
    "group_cases",
    "linked_cases",
    "links_of",
    "sample",
    "sessions_from",
]

_T = TypeVar("_T")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One test customer (or visitor) at the cut-off: what the shop holds, and what it should recommend.

    Events carry their times, as they do in serving: recency counts in the judgement as it does in answers.
    """

    session: tuple[Event, ...] = ()
    device_history: tuple[Event, ...] = ()
    all_history: tuple[Event, ...] = ()
    crm_history: tuple[Event, ...] = ()
    attributes: Mapping[str, AttributeValue] = dataclasses.field(default_factory=dict)
    target: tuple[str, ...] = ()

    def history_length(self) -> int:
        """Distinct items that both sources together know of the customer."""
        return len({event.item_id for event in (*self.session, *self.all_history, *self.crm_history)})


@dataclasses.dataclass(frozen=True, slots=True)
class Links:
    """Lawful links of the end of the test period, visitor to customer, by how they stood at its start.

    A link that does not hold at the end is not read: its visitor and its customer are two unlinked persons.

    Attributes
    ----------
    held
        Links that held at the start too: both permissions, linked.
    made_later
        Links that were made within the test period, although both permissions held at its start: at the
        cut-off these persons were in the state "both permissions, not linked".
    """

    held: Mapping[str, str]
    made_later: Mapping[str, str]


def links_of(ledger: Ledger, start: dt.datetime, end: dt.datetime, policy: Policy) -> Links:
    """The links that may be read after the test period, from the ledger."""
    switches = policy.switches
    before, after = (
        ledger.lawful_links(
            at=at, model_purpose=switches.model_purpose, fusion_purpose=switches.fusion_purpose
        )
        for at in (start, end)
    )
    held, made_later = {}, {}
    for visitor, link in after.items():
        if visitor not in before:
            if link.since <= microseconds(start):
                made_later[visitor] = link.customer_id
        elif before[visitor].customer_id == link.customer_id:
            held[visitor] = link.customer_id
    return Links(held, made_later)


def linked_cases(
    online: PermittedRows, crm: PermittedRows, links: Mapping[str, str], start: dt.datetime
) -> list[Case]:
    """Linked customers with an order in the test period, in order of their ids."""
    instant = microseconds(start)
    visits = _by_person(online.rows, {f"visitor:{visitor}" for visitor in links})
    devices = _devices(links)
    cases = []
    for person, crm_case in _crm_cases_of(crm, start, set(devices)):
        rows = _visits_of(devices[person], visits, instant)
        cases.append(_with_visits(crm_case, rows))
    return cases


def crm_cases(crm: PermittedRows, start: dt.datetime) -> list[Case]:
    """Customers with the CRM permission and an order in the test period, in order of their ids."""
    return [case for _, case in _crm_cases_of(crm, start, None)]


def group_cases(
    online: PermittedRows, crm: PermittedRows, links: Links, ledger: Ledger, start: dt.datetime
) -> dict[tuple[PermissionGroup, TargetSide], list[Case]]:
    """Test cases by the state of permission at the cut-off and by the side whose events are the target.

    On the CRM side the cases are customers and the targets their orders; on the online side they are visitors
    that were seen before the cut-off, and the targets the items that they show interest in on the same device
    after it. The two sides of a case are joined only where a link held at the cut-off.
    """
    linked = [
        case for case in linked_cases(online, crm, links.held, start) if case.all_history or case.session
    ]
    found: dict[tuple[PermissionGroup, TargetSide], list[Case]] = {
        ("crm_only", "crm"): [],
        ("both_unlinked", "crm"): [],
        ("both_linked", "crm"): linked,
        ("online_only", "online"): [],
        ("both_unlinked", "online"): [],
        ("both_linked", "online"): _linked_visitors(online, crm, links.held, start),
    }
    held = {f"customer:{customer}" for customer in links.held.values()}
    made_later = {f"customer:{customer}" for customer in links.made_later.values()} - held
    for person, case in _crm_cases_of(crm, start, None):
        if person in made_later:
            found["both_unlinked", "crm"].append(case)
        elif person not in held and _permitted_at(ledger, person, start):
            found["crm_only", "crm"].append(case)
    for person, case in _online_cases_of(online, start):
        visitor = person.removeprefix("visitor:")
        if visitor in links.made_later:
            found["both_unlinked", "online"].append(case)
        elif visitor not in links.held and _permitted_at(ledger, person, start):
            found["online_only", "online"].append(case)
    return found


def sessions_from(rows: pa.Table, start: dt.datetime) -> list[tuple[str, ...]]:
    """Sessions that begin in the test period, with at least two events, in order of their keys."""
    instant = microseconds(start)
    sessions: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for row in rows.select(["person", "session_id", "ts", "item_id"]).to_pylist():
        sessions.setdefault((row["person"], row["session_id"]), []).append((row["ts"], row["item_id"]))
    return [
        tuple(item for _, item in events)
        for _, events in sorted(sessions.items())
        if len(events) > 1 and events[0][0] >= instant
    ]


def sample(cases: Sequence[_T], settings: EvaluationConfig) -> Sequence[_T]:
    """At most ``max_customers`` of the cases, drawn by the seed, in the order in which they stood."""
    limit = settings.max_customers
    if limit is None or len(cases) <= limit:
        return cases
    chosen = np.random.default_rng(settings.seed).choice(len(cases), limit, replace=False)
    return [cases[number] for number in sorted(chosen.tolist())]


_Visit = tuple[int, str, str | None, str, str]


def _devices(links: Mapping[str, str]) -> dict[str, list[str]]:
    """The linked visitors of each customer, as persons of the gate."""
    devices: dict[str, list[str]] = {}
    for visitor, customer in sorted(links.items()):
        devices.setdefault(f"customer:{customer}", []).append(f"visitor:{visitor}")
    return devices


def _visits_of(
    devices: Iterable[str], visits: Mapping[str, Sequence[Mapping[str, Any]]], instant: int
) -> list[_Visit]:
    """What some devices did before an instant, in order of time."""
    return sorted(
        (row["ts"], device, row["session_id"], row["item_id"], row["event_type"])
        for device in devices
        for row in visits.get(device, ())
        if row["ts"] < instant
    )


def _with_visits(case: Case, rows: Sequence[_Visit]) -> Case:
    """Add the online side: the last visit is the running session, the rest is history."""
    if not rows:
        return case
    _, device, session, _, _ = rows[-1]
    running = [row for row in rows if row[1:3] == (device, session)]
    earlier = [row for row in rows if row[1:3] != (device, session)]
    return dataclasses.replace(
        case,
        session=tuple(_event(row[3], row[0], row[4]) for row in running),
        device_history=tuple(_event(row[3], row[0], row[4]) for row in earlier if row[1] == device),
        all_history=tuple(_event(row[3], row[0], row[4]) for row in earlier),
    )


def _event(item: str, ts: int, kind: str) -> Event:
    return Event(item, ts=_EPOCH + dt.timedelta(microseconds=ts), event_type=kind)


def _crm_cases_of(
    crm: PermittedRows, start: dt.datetime, wanted: set[str] | None
) -> Iterator[tuple[str, Case]]:
    attributes = _attributes_of(crm.attributes)
    for person, rows in sorted(_by_person(crm.rows, wanted).items()):
        target = _target(rows, start, kinds={"order"})
        if target:
            yield person, _crm_case(rows, attributes.get(person, {}), start, target)


def _crm_case(
    rows: Iterable[Mapping[str, Any]],
    attributes: Mapping[str, AttributeValue],
    start: dt.datetime,
    target: tuple[str, ...],
) -> Case:
    instant = microseconds(start)
    history = tuple(
        _event(row["item_id"], row["ts"], row["event_type"]) for row in rows if row["ts"] < instant
    )
    return Case(crm_history=history, attributes=attributes, target=target)


def _online_cases_of(online: PermittedRows, start: dt.datetime) -> Iterator[tuple[str, Case]]:
    """Visitors with events both before the cut-off and in the test period, in order of their ids."""
    instant = microseconds(start)
    visits = _by_person(online.rows, None)
    for person in sorted(visits):
        earlier = _visits_of([person], visits, instant)
        target = _target(visits[person], start, kinds=None)
        if earlier and target:
            yield person, _with_visits(Case(target=target), earlier)


def _linked_visitors(
    online: PermittedRows, crm: PermittedRows, links: Mapping[str, str], start: dt.datetime
) -> list[Case]:
    """Linked customers with all that is known of them; the target is what they look at on the last one."""
    instant = microseconds(start)
    visits = _by_person(online.rows, {f"visitor:{visitor}" for visitor in links})
    devices = _devices(links)
    purchases = _by_person(crm.rows, set(devices))
    attributes = _attributes_of(crm.attributes)
    cases = []
    for person in sorted(devices):
        earlier = _visits_of(devices[person], visits, instant)
        target = _target(visits[earlier[-1][1]], start, kinds=None) if earlier else ()
        if target:
            known = _crm_case(purchases.get(person, ()), attributes.get(person, {}), start, target)
            cases.append(_with_visits(known, earlier))
    return cases


def _target(
    rows: Iterable[Mapping[str, Any]], start: dt.datetime, *, kinds: set[str] | None
) -> tuple[str, ...]:
    """The distinct items of the test period, in events of some kinds (None: of any)."""
    instant = microseconds(start)
    items = {
        row["item_id"]
        for row in rows
        if row["ts"] >= instant and (kinds is None or row["event_type"] in kinds)
    }
    return tuple(sorted(items))


def _permitted_at(ledger: Ledger, person: str, at: dt.datetime) -> bool:
    kind, _, subject = person.partition(":")
    if kind == "visitor":
        return ledger.permission(subject, kind="visitor", at=at) is Permission.ONLINE
    return ledger.permission(subject, kind="customer", at=at) is Permission.CRM


def _by_person(rows: pa.Table, wanted: set[str] | None) -> dict[str, list[dict[str, Any]]]:
    """Rows by person, in canonical order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        if wanted is None or row["person"] in wanted:
            found.setdefault(row["person"], []).append(row)
    return found


def _attributes_of(table: pa.Table | None) -> dict[str, dict[str, AttributeValue]]:
    if table is None:
        return {}
    rows = table.to_pylist()
    usable = (str, int, float, bool, type(None))
    return {
        row["person"]: {
            key: value for key, value in row.items() if key != "person" and isinstance(value, usable)
        }
        for row in rows
    }
