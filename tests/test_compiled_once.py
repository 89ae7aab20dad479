"""What `compiled_once` remembers is what Ibis would have compiled."""

from __future__ import annotations

from typing import Any

import ibis
import pyarrow as pa
import pytest
from compiled_once import form_of
from shops import consent, day, shop

from consentier.consent import microseconds
from consentier.consent.lifetimes import Lifetimes
from consentier.features.consent_intervals import ConsentTables, lawful_links, standings


def question(names: str, at: int, *, purpose: bool = False) -> ibis.Table:
    """A question about some people's consents; the tables are other ones each time."""
    people = shop(consents=[consent(name, "online") for name in names])
    tables = ConsentTables.of_shop(people, Lifetimes.default())
    subjects = standings(
        ibis.memtable(tables.records),
        ibis.memtable(tables.lifetimes),
        at=microseconds(day(at)),
        model_purpose=purpose,
    )
    return lawful_links(subjects, ibis.memtable(tables.links), at=microseconds(day(at)))


def test_questions_of_one_form_are_one_query_under_the_names_of_their_tables() -> None:
    engine = ibis.duckdb.connect()
    first, second = question("ab", 9), question("c", 9)
    assert form_of(first.op())[0] == form_of(second.op())[0]
    genuine = type(engine).compile.__wrapped__
    for each in (first, second):
        assert type(engine).compile(engine, each) == genuine(engine, each)
    assert genuine(engine, first) != genuine(engine, second)


@pytest.mark.parametrize("other", [{"at": 8}, {"purpose": True}])
def test_another_constant_or_another_step_is_another_form(other: dict[str, Any]) -> None:
    changed = question("ab", **{"at": 9, **other})
    assert form_of(changed.op())[0] != form_of(question("ab", 9).op())[0]


def test_one_table_twice_is_not_two_tables() -> None:
    rows = pa.table({"a": [1, 2]})
    table, again = ibis.memtable(rows), ibis.memtable(rows)
    assert form_of(table.union(table).op())[0] != form_of(table.union(again).op())[0]


def test_truth_is_not_one() -> None:
    table = ibis.memtable(pa.table({"a": [1]}))
    forms = {form_of(table.mutate(b=ibis.literal(value)).op())[0] for value in (1, 1.0, True, "1")}
    assert len(forms) == 4
