"""Ledgers in memory and in SQLite files: what holds of every ledger holds of both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_conformance import KeptLedgerConformance, LedgerConformance, MakeLedger

from consentier.consent import Ledger


class TestMemoryLedger(LedgerConformance):
    @pytest.fixture
    def make_ledger(self) -> MakeLedger:
        return Ledger


class TestSqliteLedger(KeptLedgerConformance):
    @pytest.fixture
    def make_ledger(self, tmp_path: Path) -> Iterator[MakeLedger]:
        opened: list[Ledger] = []
        numbers = itertools.count()

        def make_ledger() -> Ledger:
            for ledger in opened:
                ledger.close()
            opened[:] = [Ledger.open(f"sqlite:///{tmp_path}/made-{next(numbers)}.db")]
            return opened[0]

        yield make_ledger
        for ledger in opened:
            ledger.close()

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/ledger.db"
