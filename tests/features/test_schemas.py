"""The data contract as data."""

from __future__ import annotations

import pyarrow as pa
import pytest

from consentier.consent.records import ConsentRecord
from consentier.features.schemas import SCHEMAS, ColumnType, arrow_schema


def test_contract_has_the_seven_tables() -> None:
    assert set(SCHEMAS) == {
        "events", "orders", "product_usage", "customers", "items", "identities", "consents",
    }  # fmt: skip
    assert {name for name, schema in SCHEMAS.items() if not schema.optional} == {
        "events",
        "orders",
        "consents",
    }
    assert {name for name, schema in SCHEMAS.items() if schema.open_columns} == {"customers", "items"}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_consistent(name: str) -> None:
    schema = SCHEMAS[name]
    assert schema.name == name
    assert len(set(schema.column_names)) == len(schema.columns)
    assert set(schema.key) <= set(schema.column_names)
    for column in schema.columns:
        assert column.required or column.nullable, "an absent column reads as null"
        assert column.allowed is None or column.type is ColumnType.TEXT
        assert column.minimum is None or column.type in (ColumnType.NUMBER, ColumnType.WHOLE)


def test_arrow_schema_names_the_types_of_the_contract() -> None:
    assert arrow_schema("orders") == pa.schema(
        {
            "customer_id": pa.string(),
            "order_id": pa.string(),
            "line_id": pa.string(),
            "ts": pa.timestamp("us", tz="UTC"),
            "item_id": pa.string(),
            "quantity": pa.int64(),
            "price": pa.float64(),
            "status": pa.string(),
        }
    )


def test_arrow_schema_refuses_unknown_table() -> None:
    with pytest.raises(ValueError, match="no table 'order'"):
        arrow_schema("order")


def test_consents_have_the_fields_of_a_consent_record() -> None:
    assert set(SCHEMAS["consents"].column_names) == set(ConsentRecord.__dataclass_fields__)


def test_ids_of_people_are_personal() -> None:
    people = {"visitor_id", "customer_id", "subject_id", "session_id"}
    for schema in SCHEMAS.values():
        for column in schema.columns:
            assert column.personal or column.name not in people
