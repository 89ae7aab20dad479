"""All that writes files: how an old state becomes a new one, and how a reader sees which one is there."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from consentier.cli.config import init
from consentier.consent import Tier
from consentier.consent.keyring import Keyring
from consentier.features.directories import write_text, written_beside
from consentier.models.bundle import open_bundle, read_run, write_bundle
from consentier.models.gram import GramStatistics
from consentier.models.item_index import ItemIndex
from consentier.models.statistics import Fingerprints, Statistics, read_statistics, write_statistics
from consentier.serving.experiment import Experiment
from consentier.serving.outcomes import OutcomeLog, outcome_lines
from consentier.serving.revocation import Revocations, revoke
from consentier.serving.routing import Routing, read_routing, write_routing
from consentier.training.pages import write_page
from consentier.writing import remove_directory

__all__ = ["WRITERS", "Writer", "digest_of"]

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
EXPERIMENT = Experiment("halves", "a salt for tests only", {"a": 0.5, "b": 0.5})


@dataclasses.dataclass(frozen=True)
class Writer:
    """One of them.

    Attributes
    ----------
    name
        What it is called.
    write
        Brings a directory to the state 0 or 1; 1 only after 0.
    read
        The state as a reader sees it. Raises where it sees neither.
    names
        What there is in the directory in the end; None where names are random.
    """

    name: str
    write: Callable[[Path, int], object]
    read: Callable[[Path], int]
    names: Sequence[str] | None


def digest_of(number: int) -> str:
    """A bundle digest."""
    return f"sha256:{number:064x}"


def _write_bundle(place: Path, state: int) -> None:
    write_bundle(
        place / "crm", tier="crm", sources=["crm"], permission=["crm"], algorithm="test", parameters={},
        scoring={}, item_count=0, cutoff=AT, arrays={"data": np.full(3000, state, np.int64)},
        run={"state": state}, overwrite=True,
    )  # fmt: skip


def _read_bundle(place: Path) -> int:
    state = int(open_bundle(place / "crm").arrays["data"][0])
    assert read_run(place / "crm") == {"state": state}
    return state


def _write_statistics(place: Path, state: int) -> None:
    gram = GramStatistics(
        sparse.csr_matrix(np.eye(2, dtype=np.int64)), np.ones(2, np.int64), None, 0.5, 1, False
    )
    fingerprints = Fingerprints(bytes(32), np.zeros(0, np.uint64), np.zeros(0, np.uint64))
    statistics = Statistics(ItemIndex.from_ids(["a", "b"]), {}, gram, {}, fingerprints)
    write_statistics(place / "crm", statistics, bundle_digest=digest_of(state), facts={})


def _revoke(place: Path, state: int) -> None:
    revoke(place, [digest_of(state)], AT, "withdrawal")


def _deadlines(place: Path) -> int:
    deadlines = Revocations.open(place).current()
    assert not deadlines.fault
    assert set(deadlines.by_digest) <= {digest_of(0), digest_of(1)}
    return len(deadlines.by_digest) - 1


def _routing(place: Path) -> int:
    found = read_routing(place)
    assert not found.fault
    return int(found.level_3 is Tier.CRM)


def _keys(place: Path, state: int) -> None:
    keyring = Keyring.open(place / "keys.json", create=not state)
    if state:
        keyring.rotate(AT)


def _outcomes(place: Path, state: int) -> None:
    log = OutcomeLog(place, EXPERIMENT, every=3600, clock=lambda: AT)
    if not state or not _written(place):
        log.click(EXPERIMENT.answer_id("a", Tier.SESSION, named=False, bucket=None))
        log.flush()


def _written(place: Path) -> int:
    return sum(line.count for line in outcome_lines(place)) - 1


def _shop(place: Path, state: int) -> None:
    with written_beside(place / "shop", force=True) as beside:
        write_text(beside / "state", str(state))


def _config(place: Path, state: int) -> None:
    if state:
        init(place / "consentier.toml", force=True)
    else:
        (place / "consentier.schema.json").write_text("{}")
        (place / "consentier.toml").write_text("")


def _remove(place: Path, state: int) -> None:
    if not state:
        _write_bundle(place, 0)
    elif (place / "crm").exists():
        remove_directory(place / "crm")
    else:
        _write_bundle(place, 0)
        remove_directory(place / "crm")


WRITERS = (
    Writer("bundle", _write_bundle, _read_bundle, ["crm"]),
    Writer(
        "statistics",
        _write_statistics,
        lambda place: int(read_statistics(place / "crm").bundle_digest[-1]),
        ["crm"],
    ),
    Writer("revocation", _revoke, _deadlines, ["revocations.json"]),
    Writer(
        "routing",
        lambda place, state: write_routing(place, Routing(Tier.CRM if state else None)),
        _routing,
        ["routing.json"],
    ),
    Writer(
        "keyring", _keys, lambda place: int(len(Keyring.open(place / "keys.json").ids) > 1), ["keys.json"]
    ),
    Writer("outcomes", _outcomes, _written, None),
    Writer(
        "page",
        lambda place, state: write_page(place / "report.html", str(state)),
        lambda place: int((place / "report.html").read_text()),
        ["report.html"],
    ),
    Writer("shop", _shop, lambda place: int((place / "shop" / "state").read_text()), ["shop"]),
    Writer(
        "configuration",
        _config,
        lambda place: int((place / "consentier.toml").stat().st_size > 0),
        ["consentier.schema.json", "consentier.toml"],
    ),
    Writer("removal", _remove, lambda place: int(not (place / "crm" / "manifest.json").exists()), []),
)
