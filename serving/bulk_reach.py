"""Whom a channel reaches, and as whom, asked about everybody at once.

`reach` asks the ledger about one person. Here `features.consent_intervals`, the same rules as operations on
whole tables, answers for all, and `Policy.route` is asked once for each state in which anybody stands: what
comes out is what `reach` and the policy say of each person by itself.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Channel, Policy, Resolution, Route, Side, Source, microseconds
from consentier.consent.records import PARENTAL
from consentier.serving.reach import EXISTING_CUSTOMER, barrier_of
from consentier.serving.shop_rows import hash_values

if TYPE_CHECKING:
    import ibis
    import pyarrow as pa

    from consentier.features.consent_intervals import ConsentTables

__all__ = [
    "STANDING",
    "BulkReach",
    "Cell",
    "bulk_reach",
    "cell_of",
    "cells_of",
    "links_now",
    "sold_to",
    "standing_now",
    "state_codes",
    "unknown_standing",
]

_UNKNOWN, _GRANTED, _REFUSED = 0, 1, 2
"""What somebody said on a purpose that the notice may separate."""

STANDING = ("held", "objected", "minor", "contact", "ads", "since", "opposed_until")
"""What is known of how a subject stands: true or false; of `ads` one of the three above; of the last two an
instant in microseconds, see `standing_now`."""

_INSTANTS = ("since", "opposed_until")

_STATE = ("ads", "contact", "crm", "linked", "minor", "objected", "online")
"""What the state of a person consists of."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """What is the same for all persons in one state: why the channel does not reach them, and who answers."""

    barrier: str
    route: Route


@dataclasses.dataclass(frozen=True, slots=True)
class BulkReach:
    """All persons of a batch, at one instant.

    Attributes
    ----------
    persons
        Arrow strings, ascending: customers on the CRM side, visitors on the online side.
    cells
        int64, shape (persons,): position of each one's state in `states`.
    states
        The states that there are.
    visitors
        Arrow strings, shape (persons,): who each one is online; null where that is told by `devices` alone.
    customers
        Arrow strings, shape (persons,): whose CRM data belong to the person; null where nobody's may.
    device_starts
        int64, shape (persons + 1,): where each person's devices begin in `devices`.
    devices
        Arrow strings: the visitors whose online data may be joined to each customer's, ascending.
    similar_only
        bool, shape (persons,): to whom only goods like those they bought may be advertised.
    online_since, crm_since
        int64, shape (persons,): since when (microseconds since the Unix epoch) the permissions have been held
        without interruption: of `visitors` and of `customers`. Older events may not be read.
    devices_since
        int64, shape (devices,): the same of the online permission of each device.
    """

    persons: pa.Array
    cells: NDArray[np.int64]
    states: tuple[Cell, ...]
    visitors: pa.Array
    customers: pa.Array
    device_starts: NDArray[np.int64]
    devices: pa.Array
    similar_only: NDArray[np.bool_]
    online_since: NDArray[np.int64]
    crm_since: NDArray[np.int64]
    devices_since: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.persons)

    def digest_into(self, digest: Any) -> None:
        """Feed all that is said here to a hash."""
        for array in (self.persons, self.visitors, self.customers, self.devices):
            hash_values(digest, array)
        digest.update(self.cells)
        for numbers in (
            self.similar_only,
            self.device_starts,
            self.online_since,
            self.crm_since,
            self.devices_since,
        ):
            digest.update(numbers)
        digest.update(repr(self.states).encode())


def bulk_reach(
    consents: ConsentTables, policy: Policy, persons: pa.Array, channel: Channel, at: dt.datetime
) -> BulkReach:
    """Ask about all persons of a batch.

    Parameters
    ----------
    consents
        The ledger's entries.
    policy
        The routing matrix.
    persons
        Arrow strings, ascending, each once: customers on the CRM side, visitors on the online side.
    channel
        Where the answers will go.
    at
        The instant.

    Notes
    -----
    n log n in the ledger's entries, on a DuckDB in this process. Memory: some hundred bytes a subject.
    """
    from consentier.features.embedded_engine import embedded_engine

    with embedded_engine() as engine:
        standing = _Standing(engine, consents, channel, at)
        links = _links(engine, consents, policy, channel, at)
        if channel.side is Side.CRM:
            similar_only = _similar_goods_only(engine, consents, persons, channel, at)
            return _customers(standing, links, policy, persons, channel, similar_only)
        return _visitors(standing, links, policy, persons, channel)


def unknown_standing(name: str) -> int:
    """What a column of `STANDING` holds for whom nothing is known."""
    from consentier.features.consent_intervals import BEGINNING

    return BEGINNING if name in _INSTANTS else 0


class _Standing:
    """How all subjects stand at the instant, each by its own records."""

    def __init__(
        self, engine: ibis.BaseBackend, consents: ConsentTables, channel: Channel, at: dt.datetime
    ) -> None:
        import ibis
        import pyarrow.compute as pc

        records, self._subjects = _with_numbers(consents.records)
        numbered = dataclasses.replace(consents, records=records)
        told = standing_now(ibis.memtable(numbered.records), ibis.memtable(numbered.lifetimes), channel, at)
        found = engine.to_pyarrow(told)
        self._of = {}
        for kind in ("visitor", "customer"):
            self._of[kind] = found.filter(pc.equal(found["subject_kind"], kind)).combine_chunks()

    def of(self, kind: str, subjects: pa.Array | pa.ChunkedArray) -> dict[str, NDArray[np.int64]]:
        """The state of some subjects; who is not known, or null, has said nothing."""
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self._of[kind]
        known = self._subjects.take(table["subject_id"].combine_chunks())
        place = pc.index_in(subjects, value_set=known, skip_nulls=True)
        values = {}
        for name in STANDING:
            column = table[name].combine_chunks().cast(pa.int64())
            values[name] = pc.fill_null(column.take(place), unknown_standing(name)).to_numpy(
                zero_copy_only=False
            )
        return values


def _with_numbers(records: pa.Table) -> tuple[pa.Table, pa.Array]:
    """Records with numbers in place of the ids of subjects and records, which are quicker to compare.

    Also returns what the numbers of subjects stand for.
    """
    names = {}
    for column in ("record_id", "subject_id"):
        encoded = records[column].combine_chunks().dictionary_encode()
        names[column] = encoded.dictionary
        records = records.set_column(records.column_names.index(column), column, encoded.indices)
    return records, names["subject_id"]


def standing_now(records: ibis.Table, lifetimes: ibis.Table, channel: Channel, at: dt.datetime) -> ibis.Table:
    """How all subjects stand at an instant, each by its own records.

    Parameters
    ----------
    records, lifetimes
        As for `consent_intervals.hindrances`.
    channel
        Where the answers will go.
    at
        The instant.

    Returns
    -------
    ibis.Table
        One row per subject: subject_kind, subject_id, and the columns of `STANDING`. `since`: when the last
        hindrance of the subject's own permission ended, or `FOREVER`. `opposed_until`: when what the subject
        says last stopped standing in the way of the other's.
    """
    import ibis

    from consentier.features.consent_intervals import BEGINNING, FOREVER, REFUSING, hindrances

    asked = ["ads", *([f"contact:{channel}"] if channel.side is Side.CRM else [])]
    found = hindrances(
        records,
        lifetimes,
        at=microseconds(at),
        silence_hinders=asked,
    )
    now = found.end == FOREVER
    own_source = (found.subject_kind == "visitor").ifelse(str(Source.ONLINE), str(Source.CRM))
    own = found.permission == own_source
    source = found.permission.isin((str(Source.ONLINE), str(Source.CRM)))
    objection = source & (found.reason == "objected")
    minority = (found.permission == PARENTAL) & (found.reason != "lifted")
    ads = found.permission == "ads"

    def any_of(part: ibis.expr.types.BooleanValue) -> ibis.expr.types.BooleanValue:
        return (part & now).any().fill_null(False)

    silent_on_ads = any_of(ads & (found.reason == "unknown"))
    opposing = objection | minority | (source & ~own & found.reason.isin(REFUSING))
    by_subject = found.group_by("subject_kind", "subject_id").aggregate(
        hindered=any_of(own | objection | minority),
        since=found.end.max(where=own | objection | minority).fill_null(BEGINNING),
        opposed_until=found.end.max(where=opposing).fill_null(BEGINNING),
        objected=any_of(objection),
        minor=any_of(minority),
        uncontactable=any_of(found.permission == f"contact:{channel}"),
        ads=ibis.cases((silent_on_ads, _UNKNOWN), (any_of(ads), _REFUSED), else_=_GRANTED),
    )
    return by_subject.select(
        "subject_kind",
        "subject_id",
        "objected",
        "minor",
        "ads",
        "since",
        "opposed_until",
        held=~by_subject.hindered,
        contact=~by_subject.uncontactable,
    )


def links_now(
    records: ibis.Table,
    lifetimes: ibis.Table,
    links: ibis.Table,
    policy: Policy,
    channel: Channel,
    at: dt.datetime,
) -> ibis.Table:
    """The links that count for answers at an instant.

    Parameters
    ----------
    records, lifetimes, links
        As for `consent_intervals.standings` and `lawful_links`.
    policy
        The routing matrix.
    channel
        Where the answers will go.
    at
        The instant.

    Returns
    -------
    ibis.Table
        Columns visitor_id and customer_id, one row per visitor.
    """
    from consentier.features.consent_intervals import lawful_links, standings

    # No file can vouch for who will sit before the screen: without that, a policy that asks for a login lets
    # no link count on the online side, and none is looked up.
    if policy.switches.shared_device_login and channel.side is Side.ONLINE:
        links = links.limit(0)
    # Whether somebody lets models be learnt decides on training, and not on who may be joined in an answer.
    # The records stay, under another name: a record id that stands for several contents is a denial.
    permission = (records.permission == "model").ifelse("model, which is not asked", records.permission)
    subjects = standings(
        records.mutate(permission=permission),
        lifetimes,
        at=microseconds(at),
        fusion_purpose=policy.switches.fusion_purpose,
    )
    return lawful_links(subjects, links, at=microseconds(at)).select("visitor_id", "customer_id")


def _links(
    engine: ibis.BaseBackend, consents: ConsentTables, policy: Policy, channel: Channel, at: dt.datetime
) -> tuple[pa.Array, pa.Array]:
    """Visitor and customer of each link that counts, ordered by customer and visitor."""
    import ibis
    import pyarrow as pa

    if not consents.links.num_rows:
        return pa.array([], pa.string()), pa.array([], pa.string())
    records, lifetimes, links = (
        ibis.memtable(table) for table in (consents.records, consents.lifetimes, consents.links)
    )
    found = links_now(records, lifetimes, links, policy, channel, at)
    table = engine.to_pyarrow(found).sort_by([("customer_id", "ascending"), ("visitor_id", "ascending")])
    return table["visitor_id"].combine_chunks(), table["customer_id"].combine_chunks()


def _customers(
    standing: _Standing,
    links: tuple[pa.Array, pa.Array],
    policy: Policy,
    persons: pa.Array,
    channel: Channel,
    similar_only: NDArray[np.bool_],
) -> BulkReach:
    import pyarrow as pa

    from consentier.features.consent_intervals import BEGINNING

    starts, devices = _devices_of(persons, links)
    linked = (np.diff(starts) > 0).astype(np.int64)
    own = standing.of("customer", persons)
    cells, states = cells_of(policy, channel, state_codes(channel, own, own, linked))
    nobody = pa.nulls(len(persons), pa.string())
    theirs = standing.of("visitor", devices)
    return BulkReach(
        persons=persons,
        cells=cells,
        states=states,
        visitors=nobody,
        customers=persons,
        device_starts=starts,
        devices=devices,
        similar_only=similar_only,
        online_since=np.full(len(persons), BEGINNING),
        crm_since=crm_since_of(own, theirs, starts),
        devices_since=devices_since_of(own, theirs, starts),
    )


def crm_since_of(
    customers: Mapping[str, NDArray[np.int64]],
    visitors: Mapping[str, NDArray[np.int64]],
    device_starts: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Since when the CRM permission of each customer has been held, the first device being the visitor."""
    linked = np.diff(device_starts) > 0
    since = customers["since"].copy()
    first = visitors["opposed_until"][device_starts[:-1][linked]]
    since[linked] = np.maximum(since[linked], first)
    return since


def devices_since_of(
    customers: Mapping[str, NDArray[np.int64]],
    visitors: Mapping[str, NDArray[np.int64]],
    device_starts: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Since when the online permission of each device of each customer has been held."""
    return np.maximum(visitors["since"], np.repeat(customers["opposed_until"], np.diff(device_starts)))


def _visitors(
    standing: _Standing,
    links: tuple[pa.Array, pa.Array],
    policy: Policy,
    persons: pa.Array,
    channel: Channel,
) -> BulkReach:
    import pyarrow as pa
    import pyarrow.compute as pc

    own = standing.of("visitor", persons)
    visitors, customers = links
    owners = customers.take(pc.index_in(persons, value_set=visitors))
    linked = pc.is_valid(owners).to_numpy(zero_copy_only=False).astype(np.int64)
    theirs = standing.of("customer", owners)
    cells, states = cells_of(policy, channel, state_codes(channel, own, theirs, linked))
    starts, devices = _devices_of(owners, links) if linked.any() else _no_devices(len(persons))
    return BulkReach(
        persons=persons,
        cells=cells,
        states=states,
        visitors=persons,
        customers=owners.cast(pa.string()),
        device_starts=starts,
        devices=devices,
        similar_only=np.zeros(len(persons), dtype=np.bool_),
        online_since=np.maximum(own["since"], theirs["opposed_until"]),
        crm_since=np.maximum(theirs["since"], own["opposed_until"]),
        devices_since=devices_since_of(theirs, standing.of("visitor", devices), starts),
    )


def sold_to(records: ibis.Table, channel: Channel, at: dt.datetime) -> ibis.Table:
    """To whom only goods like those they bought may be advertised: `reach.similar_goods_only` of everybody.

    Parameters
    ----------
    records
        As for `standing_now`.
    channel
        One of the CRM side.
    at
        The instant.

    Returns
    -------
    ibis.Table
        Column subject_id: the customers of whom that is so.
    """
    grants = records.filter(
        records.subject_kind == "customer",
        records.permission == f"contact:{channel}",
        records.state == "granted",
        records.valid_from <= microseconds(at),
    )
    by_customer = grants.group_by("subject_id").aggregate(
        latest=grants.valid_from.max(),
        by_sale=grants.valid_from.max(where=grants.basis == EXISTING_CUSTOMER),
    )
    return by_customer.filter(by_customer.by_sale == by_customer.latest).select("subject_id")


def _similar_goods_only(
    engine: ibis.BaseBackend,
    consents: ConsentTables,
    persons: pa.Array,
    channel: Channel,
    at: dt.datetime,
) -> NDArray[np.bool_]:
    """Of which customers `sold_to` speaks."""
    import ibis
    import pyarrow.compute as pc

    found = engine.to_pyarrow(sold_to(ibis.memtable(consents.records), channel, at))["subject_id"]
    told: NDArray[np.bool_] = pc.is_in(persons, value_set=found.combine_chunks()).to_numpy(
        zero_copy_only=False
    )
    return told


def _no_devices(count: int) -> tuple[NDArray[np.int64], pa.Array]:
    import pyarrow as pa

    return np.zeros(count + 1, dtype=np.int64), pa.array([], pa.string())


def _devices_of(customers: pa.Array, links: tuple[pa.Array, pa.Array]) -> tuple[NDArray[np.int64], pa.Array]:
    """Where the devices of each customer (null: of nobody) begin, and the devices, in the given order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    visitors, linked = links
    if not len(linked):
        return _no_devices(len(customers))
    names, lengths = pc.value_counts(linked).flatten()  # in order of their first link, which is ascending
    ends = np.cumsum(lengths.to_numpy())
    place = pc.fill_null(pc.index_in(customers, value_set=names, skip_nulls=True), -1).to_numpy()
    first = np.append(ends - lengths.to_numpy(), 0)[place]
    count = np.append(lengths.to_numpy(), 0)[place]
    starts = np.zeros(len(customers) + 1, dtype=np.int64)
    np.cumsum(count, out=starts[1:])
    chosen = np.arange(starts[-1]) + np.repeat(first - starts[:-1], count)
    return starts, visitors.take(pa.array(chosen))


def state_codes(
    channel: Channel,
    own: Mapping[str, NDArray[np.int64]],
    theirs: Mapping[str, NDArray[np.int64]],
    linked: NDArray[np.int64],
) -> NDArray[np.int64]:
    """A number for the state in which each person stands; persons with the same one are routed alike.

    Parameters
    ----------
    channel
        Where the answers will go.
    own
        int64, shape (persons,), by name of `STANDING`: what the records of each person say.
    theirs
        On the online side, what those of the customer say to whom the visitor is linked; else not asked.
    linked
        int64, shape (persons,): 1 where a link counts.
    """
    columns = {"linked": linked, **{name: own[name] for name in ("objected", "minor", "contact", "ads")}}
    if channel.side is Side.CRM:
        columns |= {"online": linked, "crm": own["held"]}
    else:
        columns |= {"online": own["held"], "crm": linked}
        # A refusal by either counts, then a grant by either, then silence.
        columns["ads"] = np.maximum(own["ads"], theirs["ads"])
    code = np.zeros(len(linked), dtype=np.int64)
    for name in _STATE:
        code = 3 * code + columns[name]
    return code


def cell_of(code: int, policy: Policy, channel: Channel) -> Cell:
    """What the policy says of a state, given its number."""
    state = {}
    for name in reversed(_STATE):
        code, state[name] = divmod(code, 3)
    resolution = _resolution(channel, state)
    return Cell(barrier_of(resolution, channel), policy.route(resolution, channel))


def cells_of(
    policy: Policy, channel: Channel, codes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], tuple[Cell, ...]]:
    """Where each state stands among those that there are, and what the policy says of these."""
    kinds, cells = np.unique(codes, return_inverse=True)
    return cells.astype(np.int64), tuple(cell_of(code, policy, channel) for code in kinds.tolist())


def _resolution(channel: Channel, state: Mapping[str, int]) -> Resolution:
    """A state in the ledger's words.

    A link that holds shows that joining is refused by nobody and, where the notice asks for that, granted.
    """
    said: Sequence[tuple[int, str]] = ((state["ads"], "ads"), (_GRANTED if state["linked"] else 0, "fusion"))
    return Resolution(
        online=bool(state["online"]),
        crm=bool(state["crm"]),
        linked=bool(state["linked"]),
        objected=bool(state["objected"]),
        minor=bool(state["minor"]),
        contact=frozenset([str(channel)] if state["contact"] and channel.side is Side.CRM else []),
        granted_purposes=frozenset(purpose for word, purpose in said if word == _GRANTED),
        denied_purposes=frozenset(purpose for word, purpose in said if word == _REFUSED),
    )
