"""Writes the tables of ``docs/data-contract.md`` from the schemas themselves.

Run: ``python scripts/write_data_contract.py`` where consentier is installed with the extra ``train``. A test
fails while the page differs from the schemas.
"""

from __future__ import annotations

import sys
from pathlib import Path

from consentier.features.schemas import SCHEMAS, Column, TableSchema

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data-contract.md"
BEGIN = "<!-- Written by scripts/write_data_contract.py from the schemas: change those, and run it again. -->"
END = "<!-- End of what is written. -->"

_ONE_ROW = {
    "events": "One row is one thing that a visitor did on the online side.",
    "orders": "One row is one line of one order of a customer.",
    "product_usage": "One row is one use of a bought product by a customer.",
    "customers": "One row is one customer. All further columns are attributes.",
    "items": "One row is one item. All further columns are attributes, for filters, business rules and items "
    "that few persons had.",
    "identities": "One row says that a visitor (cookie, device) was seen to be a customer: a login.",
    "consents": "One row is one decision of a visitor or customer on one permission.",
}


def page(text: str) -> str:
    """The page with its tables written anew."""
    head, rest = text.split(BEGIN)
    sections = "\n".join("\n".join(_section(schema)) for schema in SCHEMAS.values())
    return f"{head}{BEGIN}\n\n{sections}\n{END}{rest.split(END)[1]}"


def _section(schema: TableSchema) -> list[str]:
    key = f" No two rows may have the same {', '.join(schema.key)}." if schema.key else ""
    optional = " The table is optional." if schema.optional else ""
    rows = [f"| `{column.name}` | {_type(column)} | {column.doc} |" for column in schema.columns]
    return [
        f"## {schema.name}", "", f"{_ONE_ROW[schema.name]}{key}{optional}", "",
        "| column | type | meaning |", "|---|---|---|", *rows, "",
    ]  # fmt: skip


def _type(column: Column) -> str:
    parts = [str(column.type)]
    if column.minimum is not None:
        parts.append(f"from {column.minimum:g}")
    if column.nullable:
        parts.append("may be empty" if column.required else "optional")
    if column.allowed is not None:
        parts.append(", ".join(f"`{value}`" for value in sorted(column.allowed)))
    return "; ".join(parts)


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text("utf-8")), encoding="utf-8")
    sys.stderr.write(f"written to {PAGE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
