"""The consent gate as SQL of a warehouse: the expressions of `features.gate`, compiled and not run.

A shop whose tables lie in BigQuery, Snowflake or Databricks can filter them there, by the definition that
training goes by, before anything leaves the warehouse. Here are only the tables as the warehouse has them:
their names, and what makes them into what the gate reads. The rules stand in `features.gate` and
`features.consent_intervals`, and nowhere else.

In the warehouse nobody has validated the tables. Rows of usage that break the data contract are left out. A
decision that cannot be read might be a withdrawal of anybody's, so that while there is one nobody permits
anything; a login without a visitor might be on anybody's device, so that while there is one nobody is joined.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
from collections.abc import Callable, Collection, Mapping
from typing import get_args

import ibis
import ibis.expr.datatypes as types
from ibis.backends.sql import compilers

from consentier.consent import Policy, Tier, microseconds
from consentier.consent.lifetimes import DAY, Lifetime, Lifetimes
from consentier.consent.records import PERMISSIONS, STATES, SubjectKind
from consentier.errors import ConfigError, suggestion
from consentier.features.consent_intervals import (
    FOREVER,
    KIND_OF_GRANT,
    MISSING,
    lawful_links,
    standings,
)
from consentier.features.gate import (
    HOLDERS,
    GateTables,
    holders_of,
    judged_rows,
    passed_rows,
    purchase_rows,
    require_persons,
)
from consentier.features.schemas import SCHEMAS, ColumnType

__all__ = ["MALFORMED", "Dialect", "Shown", "gate_sql"]

MALFORMED = "malformed consent records"
"""Why nobody permits anything where a decision cannot be read."""


class Dialect(enum.StrEnum):
    """Whose SQL."""

    BIGQUERY = "bigquery"
    DATABRICKS = "databricks"
    DUCKDB = "duckdb"
    SNOWFLAKE = "snowflake"


class Shown(enum.StrEnum):
    """What the query gives."""

    ROWS = "rows"
    VERDICTS = "verdicts"
    HOLDERS = "holders"


_TYPES = {
    ColumnType.TEXT: types.string,
    ColumnType.TIME: types.Timestamp("UTC"),
    ColumnType.NUMBER: types.float64,
    ColumnType.WHOLE: types.int64,
    ColumnType.FLAG: types.boolean,
}

_READ: Mapping[str, tuple[str, ...]] = {
    "events": ("visitor_id", "session_id", "item_id", "ts", "event_type"),
    "orders": ("customer_id", "item_id", "ts", "status"),
    "product_usage": ("customer_id", "item_id", "ts"),
    "items": ("item_id", "sensitive"),
    "identities": SCHEMAS["identities"].column_names,
    "consents": SCHEMAS["consents"].column_names,
}
"""Tables and columns that a gate can read. Attributes of customers it does not read."""

_OPTIONAL = frozenset({name for name in _READ if SCHEMAS[name].optional}) | {
    f"{name}.{column.name}"
    for name, columns in _READ.items()
    for column in SCHEMAS[name].columns
    if column.name in columns and not column.required
}
"""What a shop may do without."""


def gate_sql(
    tier: Tier,
    *,
    cutoff: dt.datetime,
    policy: Policy,
    lifetimes: Lifetimes,
    dialect: Dialect,
    shown: Shown = Shown.ROWS,
    names: Mapping[str, str] | None = None,
    without: Collection[str] = (),
) -> str:
    """Compile the consent gate of one tier for a warehouse.

    Parameters
    ----------
    tier
        Session, online, CRM or fused.
    cutoff
        The instant whose permissions count; rows from here on stay out.
    policy
        Its switches say which purposes are asked for, and who takes part in the fused tier.
    lifetimes
        After how long a grant expires.
    dialect
        Whose SQL.
    shown
        The rows that pass, with the columns of `PermittedRows.rows`; or how many rows got which verdict,
        by source; or all whose data the tier may use: kind, subject_id and since.
    names
        By table of the data contract, what the warehouse calls it, up to three names with points between. By
        default the name of the contract.
    without
        Optional tables and columns that the shop does not have, such as ``product_usage`` and
        ``consents.jurisdiction``. Without ``identities`` nobody is joined.

    Returns
    -------
    str
        One SELECT, without a semicolon. It reads the tables of the tier's sources, ``consents`` and
        ``items``, and no other; of the fused tier also ``identities``.

    Raises
    ------
    ValueError
        The tier is not trained on rows of persons.
    ConfigError
        A table is not one that a gate reads, or something cannot be left out.

    Notes
    -----
    Tables and columns are named as in the data contract, times are timestamps in UTC, ids are texts. In
    Snowflake they are taken to have been made without quotation marks, so that their names are upper-case.
    Times in the answer are microseconds since the epoch.

    The cost in the warehouse is that of one sort of the consents and two joins of each table of usage.
    """
    require_persons(tier)
    warehouse = _Warehouse(dialect, _names(names or {}), _left_out(without))
    at = microseconds(cutoff)
    tables = warehouse.gate_tables(policy, lifetimes, at)
    if shown is Shown.HOLDERS:
        found = ibis.union(
            *(holders_of(tables.subjects, tables.links, tier, kind, policy) for kind in HOLDERS[tier])
        )
    else:
        judged = judged_rows(tables, tier, policy, at)
        if shown is Shown.ROWS:
            found = passed_rows(judged)
        else:
            counted = (
                rows.group_by("verdict")
                .aggregate(row_count=rows.count())
                .mutate(source=ibis.literal(str(source)))
                for source, rows in judged.items()
            )
            found = ibis.union(*counted).select("source", "verdict", "row_count")
    return warehouse.compiled(found)


def _names(given: Mapping[str, str]) -> Mapping[str, str]:
    for name, place in given.items():
        if name not in _READ:
            raise ConfigError(
                f"there is no table {name!r} that the gate reads{suggestion(name, sorted(_READ))}"
            )
        parts = place.split(".")
        if len(parts) > 3 or not all(parts):
            raise ConfigError(f"table {name}: {place!r} is no name: one to three names with points between")
    return given


def _left_out(names: Collection[str]) -> frozenset[str]:
    for name in names:
        if name not in _OPTIONAL:
            raise ConfigError(
                f"{name} cannot be left out; {', '.join(sorted(_OPTIONAL))} can"
                f"{suggestion(name, sorted(_OPTIONAL))}"
            )
    return frozenset(names)


@dataclasses.dataclass(frozen=True, slots=True)
class _Warehouse:
    """A shop's tables in a warehouse, as expressions."""

    dialect: Dialect
    names: Mapping[str, str]
    without: frozenset[str]

    def gate_tables(self, policy: Policy, lifetimes: Lifetimes, at: int) -> GateTables:
        """What the gate reads."""
        consents = self._with_microseconds("consents")
        sound = consents.filter(_malformed(consents)).count().as_scalar() == 0
        subjects, links = self._standings(consents, policy, lifetimes, at)
        held = subjects.held & sound
        return GateTables(
            events=self._sound_usage("events"),
            purchases=purchase_rows(self._sound_usage("orders"), self._sound_usage("product_usage")),
            sensitive=self._sensitive(),
            subjects=subjects.mutate(held=held, reason=sound.ifelse(subjects.reason, MALFORMED)),
            links=links.filter(sound),
        )

    def compiled(self, expression: ibis.Table) -> str:
        """As SQL."""
        compiler = _COMPILERS[self.dialect]()
        text: str = compiler.to_sqlglot(expression).sql(dialect=compiler.dialect, pretty=True)
        return text

    def _table(self, name: str) -> ibis.Table:
        """What the gate reads of a table of the contract, under its names."""
        columns = {c.name: _TYPES[c.type] for c in SCHEMAS[name].columns if c.name in _READ[name]}
        if name in self.without:  # no row of a table that every shop has
            nothing = {column: ibis.null(kind) for column, kind in columns.items()}
            return self._table("consents").limit(0).select(**nothing)
        there = [column for column in columns if f"{name}.{column}" not in self.without]
        *where, place = self.names.get(name, self._cased(name)).split(".")
        database, catalog = (*reversed(where), None, None)[:2]
        schema = {self._cased(column): columns[column] for column in there}
        table = ibis.table(schema, name=place, database=database, catalog=catalog)
        return table.select(
            **{
                column: ibis.null(kind)
                if column not in there
                # An empty text is a missing value, as in the data contract.
                else table[self._cased(column)].nullif("")
                if kind == types.string
                else table[self._cased(column)]
                for column, kind in columns.items()
            }
        )

    def _cased(self, name: str) -> str:
        return name.upper() if self.dialect is Dialect.SNOWFLAKE else name

    def _with_microseconds(self, name: str) -> ibis.Table:
        table = self._table(name)
        to_whole = _MICROSECONDS[self.dialect]
        times = [
            c.name for c in SCHEMAS[name].columns if c.type is ColumnType.TIME and c.name in table.columns
        ]
        return table.mutate(**{column: to_whole(table[column]) for column in times})

    def _sound_usage(self, name: str) -> ibis.Table:
        """Rows that keep the contract, as far as the gate reads them. It needs all that it reads."""
        table = self._with_microseconds(name)
        return table.filter(table.ts >= 0, *(table[column].notnull() for column in table.columns))

    def _sensitive(self) -> ibis.Table:
        items = self._table("items")
        return items.filter(items.sensitive.fill_null(False), items.item_id.notnull()).select("item_id")

    def _standings(
        self, consents: ibis.Table, policy: Policy, lifetimes: Lifetimes, at: int
    ) -> tuple[ibis.Table, ibis.Table]:
        records = _without_nulls(consents, "consents")
        records = records.mutate(first_recorded=records.recorded_at, conflicting=ibis.literal(False))
        subjects = standings(
            records,
            _lifetime_expression(records, lifetimes),
            at=at,
            model_purpose=policy.switches.model_purpose,
            fusion_purpose=policy.switches.fusion_purpose,
        )
        logins = self._with_microseconds("identities")
        links = lawful_links(subjects, _without_nulls(logins, "identities"), at=at)
        # A login on an unknown device might be the second customer of any: then no device is one customer's.
        known = logins.filter(logins.visitor_id.isnull()).count().as_scalar() == 0
        return subjects, links.filter(known)


def _malformed(consents: ibis.Table) -> ibis.expr.types.BooleanValue:
    """Whether a decision cannot be read."""
    allowed = {"subject_kind": get_args(SubjectKind), "permission": PERMISSIONS, "state": STATES}
    broken = [~consents[name].isin(sorted(values)).fill_null(False) for name, values in allowed.items()]
    broken += [consents[name].isnull() for name in ("record_id", "subject_id")]
    broken += [~(consents[name] >= 0).fill_null(False) for name in ("valid_from", "recorded_at")]
    return functools.reduce(lambda one, other: one | other, broken)


def _without_nulls(table: ibis.Table, name: str) -> ibis.Table:
    """Fill in as `ConsentTables` does."""
    return table.select(
        **{
            column.name: table[column.name].fill_null(
                ibis.literal(FOREVER, "int64") if column.type is ColumnType.TIME else MISSING
            )
            for column in SCHEMAS[name].columns
        }
    )


def _lifetime_expression(records: ibis.Table, lifetimes: Lifetimes) -> ibis.Table:
    """After how long each kind of grant expires, as `consent_intervals.lifetime_table` says it."""
    kinds = records.select(*KIND_OF_GRANT).distinct()
    ages = (
        (_fits(kinds, rule), ibis.literal(FOREVER if rule.days is None else rule.days * DAY, "int64"))
        for rule in lifetimes.rules
    )
    return kinds.mutate(lifetime=ibis.cases(*ages, else_=ibis.literal(0, "int64")))


def _fits(kinds: ibis.Table, rule: Lifetime) -> ibis.expr.types.BooleanValue:
    fits = kinds.permission.isin(sorted(rule.permissions))
    if rule.collected_by is not None:
        fits &= kinds.collected_by.isin(sorted(rule.collected_by))
    if rule.jurisdictions is not None:
        fits &= kinds.jurisdiction.upper().isin(sorted(rule.jurisdictions))
    return fits


def _unix_time(time: ibis.Value) -> ibis.Value:
    """Only its signature counts: the warehouse has the function."""
    raise NotImplementedError


def _part_of_time(part: ibis.Value, time: ibis.Value) -> ibis.Value:
    """Likewise."""
    raise NotImplementedError


_TO_MICROSECONDS = ((types.Timestamp("UTC"),), types.int64)
_UNIX_MICROS = ibis.udf.scalar.builtin(_unix_time, name="unix_micros", signature=_TO_MICROSECONDS)
_EPOCH_US = ibis.udf.scalar.builtin(_unix_time, name="epoch_us", signature=_TO_MICROSECONDS)
_DATE_PART = ibis.udf.scalar.builtin(
    _part_of_time, name="date_part", signature=((types.string, types.Timestamp("UTC")), types.int64)
)

_MICROSECONDS: Mapping[Dialect, Callable[[ibis.Value], ibis.Value]] = {
    Dialect.BIGQUERY: _UNIX_MICROS,
    Dialect.DATABRICKS: _UNIX_MICROS,
    Dialect.DUCKDB: _EPOCH_US,
    Dialect.SNOWFLAKE: functools.partial(_DATE_PART, "epoch_microsecond"),
}

_COMPILERS = {
    Dialect.BIGQUERY: compilers.BigQueryCompiler,
    Dialect.DATABRICKS: compilers.DatabricksCompiler,
    Dialect.DUCKDB: compilers.DuckDBCompiler,
    Dialect.SNOWFLAKE: compilers.SnowflakeCompiler,
}
