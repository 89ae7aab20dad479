"""Whom a channel reaches, and as whom, asked about everybody at once.

`reach` asks the ledger about one person. Here `features.consent_intervals`, the same rules as operations on
whole tables, answers for all, and `Policy.route` is asked once for each state in which anybody stands: what
comes out is what `reach` and the policy say of each person by itself.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consentier.consent import Channel, Policy, Resolution, Route, Side, Source, microseconds
from consentier.serving.reach import EXISTING_CUSTOMER, barrier_of
from consentier.serving.shop_rows import hash_values

if TYPE_CHECKING:
    import ibis
    import pyarrow as pa

    from consentier.features.consent_intervals import ConsentTables

__all__ = ["BulkReach", "Cell", "bulk_reach"]

_UNKNOWN, _GRANTED, _REFUSED = 0, 1, 2
"""What somebody said on a purpose that the notice may separate."""


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
    """

    persons: pa.Array
    cells: NDArray[np.int64]
    states: tuple[Cell, ...]
    visitors: pa.Array
    customers: pa.Array
    device_starts: NDArray[np.int64]
    devices: pa.Array
    similar_only: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.persons)

    def digest_into(self, digest: Any) -> None:
        """Feed all that is said here to a hash."""
        for array in (self.persons, self.visitors, self.customers, self.devices):
            hash_values(digest, array)
        digest.update(self.cells)
        digest.update(self.similar_only)
        digest.update(self.device_starts)
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
    import ibis

    engine = ibis.duckdb.connect()
    try:
        standing = _Standing(engine, consents, channel, at)
        links = _links(engine, consents, policy, at)
    finally:
        engine.disconnect()
    if channel.side is Side.CRM:
        similar_only = _similar_goods_only(consents.records, persons, channel, at)
        return _customers(standing, links, policy, persons, channel, similar_only)
    return _visitors(standing, links, policy, persons, channel)


class _Standing:
    """How all subjects stand at the instant, each by its own records."""

    def __init__(
        self, engine: ibis.BaseBackend, consents: ConsentTables, channel: Channel, at: dt.datetime
    ) -> None:
        import pyarrow.compute as pc

        records, self._subjects = _with_numbers(consents.records)
        numbered = dataclasses.replace(consents, records=records)
        found = engine.to_pyarrow(_standing_now(numbered, channel, at))
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
        for name in ("held", "objected", "minor", "contact", "ads"):
            column = table[name].combine_chunks().cast(pa.int64())
            values[name] = pc.fill_null(column.take(place), 0).to_numpy(zero_copy_only=False)
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


def _standing_now(consents: ConsentTables, channel: Channel, at: dt.datetime) -> ibis.Table:
    """One row per subject: what is granted or stands in the way at the instant."""
    import ibis

    from consentier.features.consent_intervals import FOREVER, hindrances

    asked = ["ads", *([f"contact:{channel}"] if channel.side is Side.CRM else [])]
    found = hindrances(
        ibis.memtable(consents.records),
        ibis.memtable(consents.lifetimes),
        at=microseconds(at),
        silence_hinders=asked,
    )
    now = found.end == FOREVER
    own_source = (found.subject_kind == "visitor").ifelse(str(Source.ONLINE), str(Source.CRM))
    own = found.permission == own_source
    objection = found.permission.isin((str(Source.ONLINE), str(Source.CRM))) & (found.reason == "objected")
    minority = (found.permission == "parental") & (found.reason != "lifted")
    ads = found.permission == "ads"

    def any_of(part: ibis.expr.types.BooleanValue) -> ibis.expr.types.BooleanValue:
        return (part & now).any().fill_null(False)

    silent_on_ads = any_of(ads & (found.reason == "unknown"))
    by_subject = found.group_by("subject_kind", "subject_id").aggregate(
        hindered=any_of(own | objection | minority),
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
        held=~by_subject.hindered,
        contact=~by_subject.uncontactable,
    )


def _links(
    engine: ibis.BaseBackend, consents: ConsentTables, policy: Policy, at: dt.datetime
) -> tuple[pa.Array, pa.Array]:
    """Visitor and customer of each link that holds, ordered by customer and visitor."""
    import ibis
    import pyarrow as pa
    import pyarrow.compute as pc

    from consentier.features.consent_intervals import lawful_links, standings

    if not consents.links.num_rows:
        return pa.array([], pa.string()), pa.array([], pa.string())
    # Whether somebody lets models be learnt decides on training, and not on who may be joined in an answer.
    # The records stay, under another name: a record id that stands for several contents is a denial.
    records = consents.records
    permissions = pc.replace_substring_regex(records["permission"], "^model$", "model, which is not asked")
    records = records.set_column(records.column_names.index("permission"), "permission", permissions)
    subjects = standings(
        ibis.memtable(records),
        ibis.memtable(consents.lifetimes),
        at=microseconds(at),
        fusion_purpose=policy.switches.fusion_purpose,
    )
    found = lawful_links(subjects, ibis.memtable(consents.links), at=microseconds(at))
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

    starts, devices = _devices_of(persons, links)
    linked = (np.diff(starts) > 0).astype(np.int64)
    own = standing.of("customer", persons)
    cells, states = _cells(
        policy, channel, {"online": linked, "crm": own["held"], "linked": linked, **_personal(own)}
    )
    nobody = pa.nulls(len(persons), pa.string())
    return BulkReach(persons, cells, states, nobody, persons, starts, devices, similar_only)


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
    # No file can vouch for who will sit before the screen: without that, a policy that asks for a login lets
    # no link count, and none is looked up.
    if policy.switches.shared_device_login:
        visitors, customers = visitors.slice(0, 0), customers.slice(0, 0)
    owners = customers.take(pc.index_in(persons, value_set=visitors))
    linked = pc.is_valid(owners).to_numpy(zero_copy_only=False).astype(np.int64)
    theirs = standing.of("customer", owners)
    ads = np.maximum(own["ads"], theirs["ads"])  # a refusal by either, then a grant by either, then silence
    cells, states = _cells(
        policy,
        channel,
        {"online": own["held"], "crm": linked, "linked": linked, **_personal(own), "ads": ads},
    )
    starts, devices = _devices_of(owners, links) if linked.any() else _no_devices(len(persons))
    freely = np.zeros(len(persons), dtype=np.bool_)
    return BulkReach(persons, cells, states, persons, owners.cast(pa.string()), starts, devices, freely)


def _similar_goods_only(
    records: pa.Table, persons: pa.Array, channel: Channel, at: dt.datetime
) -> NDArray[np.bool_]:
    """What `reach.similar_goods_only` says of each customer."""
    import pyarrow.compute as pc

    told = (("subject_kind", "customer"), ("permission", f"contact:{channel}"), ("state", "granted"))
    grants = records.filter(pc.less_equal(records["valid_from"], microseconds(at)))
    for column, value in told:
        grants = grants.filter(pc.equal(grants[column], value))
    place = pc.fill_null(pc.index_in(grants["subject_id"], value_set=persons), -1).to_numpy()
    since = grants["valid_from"].to_numpy()
    latest = np.full(len(persons) + 1, np.iinfo(np.int64).min)  # the last one is of nobody
    np.maximum.at(latest, place, since)
    by_sale = pc.equal(grants["basis"], EXISTING_CUSTOMER).to_numpy()
    found = np.zeros(len(persons) + 1, dtype=np.bool_)
    found[place[by_sale & (since == latest[place])]] = True
    return found[:-1]


def _personal(own: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    return {name: own[name] for name in ("objected", "minor", "contact", "ads")}


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


def _cells(
    policy: Policy, channel: Channel, columns: dict[str, NDArray[np.integer]]
) -> tuple[NDArray[np.int64], tuple[Cell, ...]]:
    """Number the states that there are, and ask the policy about each."""
    names = sorted(columns)
    code = np.zeros(len(columns[names[0]]), dtype=np.int64)
    for name in names:
        code = 3 * code + columns[name]
    kinds, first, cells = np.unique(code, return_index=True, return_inverse=True)
    states = []
    for place in first.tolist():
        resolution = _resolution(channel, {name: int(columns[name][place]) for name in names})
        states.append(Cell(barrier_of(resolution, channel), policy.route(resolution, channel)))
    assert len(states) == len(kinds)
    return cells.astype(np.int64), tuple(states)


def _resolution(channel: Channel, state: dict[str, int]) -> Resolution:
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
