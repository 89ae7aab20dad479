"""The judge of the soak: that every tier answers which is asked first for somebody."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.soak import Found, Worker, never_answered, never_stored

from consentier import Ledger
from consentier.consent import Tier

ITEMS = [f"i{number}" for number in range(20)]
ASKED_FIRST = {str(tier) for tier in Tier if tier is not Tier.NONE}


class OneTier:
    """Answers everything by the popular list, which everybody may get."""

    @property
    def current(self) -> OneTier:
        return self

    def observe(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(stored=False)

    def recommend(self, _: object) -> Any:
        basis = SimpleNamespace(sources=(), bundle_digest=None, fill_digest=None)
        return SimpleNamespace(tier=Tier.POPULAR, items=(), basis=basis)


def test_a_tier_that_never_answers_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "revoked.txt").touch()
    worker = Worker(0, OneTier(), Ledger(), tmp_path, ITEMS)  # type: ignore[arg-type]
    worker.run(200)
    assert worker.found.faults == {}, "no single answer is wrong"
    assert set(worker.found.expected) == ASKED_FIRST
    told = never_answered([worker.found])
    assert {fault.partition(" ")[0] for fault in told} == ASKED_FIRST - {"popular"}
    assert sum(told.values()) == 200 - worker.found.expected["popular"]


@pytest.mark.parametrize("silent", [None, "fused"])
def test_the_threads_are_judged_together(silent: str | None) -> None:
    found = [Found(Counter([tier] * (tier != silent)), Counter([*ASKED_FIRST])) for tier in ASKED_FIRST]
    told = never_answered(found)
    assert told == ({} if silent is None else {"fused never answered, though asked first": len(ASKED_FIRST)})


def test_that_no_event_is_stored_is_a_fault(tmp_path: Path) -> None:
    """So a ledger fails to which `observe` puts a question that it does not know."""
    (tmp_path / "revoked.txt").touch()
    worker = Worker(0, OneTier(), Ledger(), tmp_path, ITEMS)  # type: ignore[arg-type]
    worker.run(200)
    assert worker.found.observed
    assert never_stored([worker.found]) == {"no event was stored": worker.found.observed}
    worker.found.stored = 1
    assert never_stored([worker.found]) == {}
    assert never_stored([Found()]) == {}
