"""A ledger in PostgreSQL is a ledger: what holds of all of them holds of it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from ledger_conformance import KeptLedgerConformance, MakeLedger
from postgresql_schemas import new_schema

from consentier.consent import Ledger
from consentier.consent.migrations.tables import METADATA

pytestmark = pytest.mark.service("postgresql")

_EMPTY = f"TRUNCATE {', '.join(METADATA.tables)}"


@pytest.fixture(scope="module")
def emptied(postgresql: str) -> Iterator[MakeLedger]:
    with (
        new_schema(postgresql) as url,
        psycopg.connect(url, autocommit=True) as connection,
        Ledger.open(url) as ledger,
    ):

        def make_ledger() -> Ledger:
            connection.execute(_EMPTY)
            return ledger

        yield make_ledger


class TestPostgresqlLedger(KeptLedgerConformance):
    @pytest.fixture
    def make_ledger(self, emptied: MakeLedger) -> MakeLedger:
        return emptied

    @pytest.fixture
    def url(self, postgresql: str) -> Iterator[str]:
        with new_schema(postgresql) as url:
            yield url
