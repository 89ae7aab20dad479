"""What is killed: each command that writes, on a small simulated shop, and what must hold afterwards."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import datetime as dt
import functools
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq

from benchmarks.reliability.killing import Acknowledge, run
from consentier import Recommender, Request
from consentier.cli.config import init
from consentier.consent import Channel, ConsentRecord, Ledger, Permission, Policy, Source, Tier
from consentier.consent.keyring import Keyring
from consentier.errors import ConsentierError
from consentier.features.gate import ledger_of
from consentier.features.ledger_tables import import_tables
from consentier.features.simulator import SimulationConfig, simulate, write_shop
from consentier.features.tables import ShopTables, read_shop
from consentier.models.bundle import open_bundle, read_run
from consentier.models.statistics import read_statistics
from consentier.serving import Event, batch
from consentier.serving.audit import JsonLinesAudit, audit_lines
from consentier.serving.batch import score_customers
from consentier.serving.batch_table import BatchTable
from consentier.serving.deliver import deliver
from consentier.serving.experiment import Experiment
from consentier.serving.outcomes import OutcomeLog, outcome_lines
from consentier.serving.profile_store import SqliteProfiles
from consentier.serving.registry import RegistrySource
from consentier.serving.revocation import Revocations, revoke
from consentier.training.bundles import TRAINED_TIERS
from consentier.training.config import Config, TrackingConfig, load_config
from consentier.training.ended_permissions import purge_ended, set_deadlines
from consentier.training.forget import forget
from consentier.training.lineage import Lineage
from consentier.training.model_registry import CHALLENGER, ModelRegistry
from consentier.training.promote import promote, rollback
from consentier.training.restricted import Restricted
from consentier.training.retrain import retrain
from consentier.training.track import store_client
from consentier.training.train import train
from consentier.training.withdrawal import withdraw

__all__ = ["SCENARIOS", "Scenario", "World"]

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SIZE = SimulationConfig(customers=80, items=40, days=40, horizon_days=7)
PERSONS_PER_PART = 16
TIERS = [str(tier) for tier in TRAINED_TIERS]


class World:
    """The simulated shop, and bundles of it at two cut-offs, made once for all scenarios.

    Parameters
    ----------
    folder
        Where to keep them, and where the scenarios take place.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_shop(simulate(SIZE), self.shop_path)
        batch._PERSONS_PER_PART = PERSONS_PER_PART  # so that a batch of this shop has parts

    @property
    def shop_path(self) -> Path:
        """The shop's files."""
        return self.folder / "shop"

    @property
    def place(self) -> Path:
        """Where each try takes place: MLflow notes absolute paths."""
        return self.folder / "place"

    @functools.cached_property
    def shop(self) -> ShopTables:
        """The shop's tables."""
        return read_shop(str(self.shop_path))

    @property
    def cutoff(self) -> dt.datetime:
        """The later training cut-off."""
        found = load_config(data=self.shop_path).training.cutoff
        assert found is not None
        return found

    def config(self, *, later: bool = True, tracking: bool = False, min_persons: int = 1) -> Config:
        """The configuration at one of the cut-offs."""
        plain = load_config(data=self.shop_path)
        at = self.cutoff if later else self.cutoff - dt.timedelta(days=5)
        training = plain.training.model_copy(update={"min_persons": min_persons, "threads": 1})
        changed = {"tracking": TrackingConfig(enabled=tracking), "training": training}
        return plain.model_copy(update=changed).with_cutoff(at)

    def train(self, out: Path, config: Config, *tiers: Tier) -> None:
        """Train as the command does."""
        train(
            self.shop, config, out, tiers=tiers or TRAINED_TIERS, force=True, show_progress=False,
            restricted=Restricted.beside(out),
        )  # fmt: skip

    @functools.cached_property
    def earlier(self) -> Path:
        """A directory with ``bundles`` of the earlier cut-off and what is kept of them."""
        return self._trained("earlier", later=False)

    @functools.cached_property
    def later(self) -> Path:
        """The same of the later cut-off."""
        return self._trained("later", later=True)

    @functools.cached_property
    def recommender(self) -> Recommender:
        """One over the later bundles, for all forked processes."""
        return Recommender.load(self.later / "bundles", compiled=False)

    def digests(self, folder: Path) -> dict[str, str]:
        """Digests of the bundles in such a directory, by tier."""
        return {str(tier): open_bundle(folder / "bundles" / tier).digest for tier in TRAINED_TIERS}

    def customer(self) -> str:
        """Somebody whom all personal bundles hold."""
        lineage = Restricted.beside(self.later / "bundles").lineage()
        names = self.customers()
        held = {name: {each.tier for each in lineage.bundles_of("customer", name)} for name in names}
        return max(names, key=lambda name: (len(held[name]), name))

    def customers(self) -> list[str]:
        """All who ordered something."""
        names: list[str] = sorted(set(self.shop.orders["customer_id"].to_pylist()))
        return names

    def _trained(self, name: str, *, later: bool) -> Path:
        folder = self.folder / name
        # In a process of its own: no thread of an engine may live in the one that is forked.
        made = run(lambda _: self.train(folder / "bundles", self.config(later=later)))
        if made.error:
            raise RuntimeError(made.error)
        return folder


@dataclasses.dataclass(slots=True)
class Scenario(abc.ABC):
    """A command, what stands before it, and what must hold after it was killed, and run again."""

    world: World
    name: ClassVar[str]
    share: ClassVar[float]
    """Of all tries, relative to the other scenarios."""

    def build(self, place: Path) -> None:
        """Make what stands before: nothing, by default. Called in a forked process."""
        del place

    @abc.abstractmethod
    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        """The command."""

    @abc.abstractmethod
    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        """What a reader finds wrong after a kill."""

    @abc.abstractmethod
    def state(self, place: Path) -> Any:
        """What must be the same after a kill and another run as after a run that nobody disturbed."""


# ---- Training ----------------------------------------------------------------------------------------------


class _OfBundles(Scenario):
    """Scenarios that change a directory of bundles, and what the trainer keeps of them."""

    def allowed(self) -> dict[str, set[str]]:
        """By tier, the digests of the bundles that may be seen."""
        raise NotImplementedError

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        out = place / "bundles"
        for tier, digests in self.allowed().items():
            try:
                found = open_bundle(out / tier).digest
            except ConsentierError as error:
                yield f"{tier}: {error}"
                continue
            if digests and found not in digests:
                yield f"{tier}: neither the old nor the new bundle"
        recommender = Recommender.load(out, compiled=False)
        answer = recommender.recommend(Request(session=["i00012"], permission=Permission.NONE, n=3))
        if not answer.items:
            yield "no answer"

    def state(self, place: Path) -> Any:
        out, restricted = place / "bundles", Restricted.beside(place / "bundles")
        lineage = restricted.lineage()
        kept = {tier: read_statistics(restricted.statistics(Tier(tier))).bundle_digest for tier in TIERS}
        return {
            "bundles": {tier: open_bundle(out / tier).digest for tier in TIERS},
            "facts": {tier: "data_summary" in read_run(out / tier) for tier in TIERS},
            "statistics": kept,
            "lineage": {digest: sorted(lineage.members(digest)) for digest in lineage.digests()},
            "files": sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()),
        }


class Train(_OfBundles):
    """Training over the bundles of an earlier cut-off."""

    name, share = "train", 0.4

    def build(self, place: Path) -> None:
        shutil.copytree(self.world.earlier, place, dirs_exist_ok=True)

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        self.world.train(place / "bundles", self.world.config())

    def allowed(self) -> dict[str, set[str]]:
        old, new = (self.world.digests(folder) for folder in (self.world.earlier, self.world.later))
        return {tier: {old[tier], new[tier]} for tier in old}


class Retrain(Train):
    """The same by an exchange of rows."""

    name, share = "retrain", 0.4

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        out = place / "bundles"
        retrain(self.world.shop, self.world.config(), out, Restricted.beside(out), show_progress=False)


class Forget(_OfBundles):
    """Taking somebody out of all bundles."""

    name, share = "forget", 0.5

    def build(self, place: Path) -> None:
        shutil.copytree(self.world.later, place, dirs_exist_ok=True)

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        out = place / "bundles"
        forget(
            self.world.shop, [("customer", self.world.customer())], out, Restricted.beside(out),
            threads=1, show_progress=False,
        )  # fmt: skip

    def allowed(self) -> dict[str, set[str]]:
        return {str(tier): set() for tier in TRAINED_TIERS}


# ---- The registry ------------------------------------------------------------------------------------------


class _OfRegistry(Scenario):
    """Two registered versions of the popular list, the first of which serves."""

    @property
    def out(self) -> Path:
        return self.world.place / "bundles"

    def registry(self) -> ModelRegistry:
        tracking = self.world.config(tracking=True).tracking
        return ModelRegistry(store_client(tracking, self.out), tracking.experiment)

    def build(self, place: Path) -> None:
        for min_persons in (1, 2):
            config = self.world.config(tracking=True, min_persons=min_persons)
            self.world.train(self.out, config, Tier.POPULAR)
            if min_persons == 1:
                self.promote()

    def promote(self) -> None:
        found = promote(
            self.registry(), Tier.POPULAR, bundles=self.out, ledger=ledger_of(self.world.shop),
            lineage=Restricted.beside(self.out).lineage(), policy=Policy.default(),
            at=self.world.cutoff, latency_budget=10_000,
        )  # fmt: skip
        if not found.promoted:
            raise RuntimeError(str(found))

    def aliases(self) -> dict[str, str]:
        """The aliases as they stand in the store's file."""
        with sqlite3.connect(self.out / "mlflow.db") as connection:
            found = connection.execute("SELECT alias, version FROM registered_model_aliases").fetchall()
        connection.close()
        return {alias: str(version) for alias, version in found}

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        champion = self.aliases().get("champion")
        if champion not in ("1", "2"):
            yield f"the champion is {champion}"
        if acknowledged and champion != acknowledged[-1]:
            yield f"{acknowledged[-1]} was acknowledged as champion, {champion} is"

    def state(self, place: Path) -> Any:
        with sqlite3.connect(self.out / "mlflow.db") as connection:
            tags = connection.execute(
                "SELECT version, key FROM model_version_tags WHERE value != '' ORDER BY version, key"
            ).fetchall()
            running = connection.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone()[0]
        connection.close()
        return {"aliases": self.aliases(), "tags": tags, "running": running}


class Promote(_OfRegistry):
    """Making the second version the one that serves."""

    name, share = "promote", 0.17

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        self.promote()
        acknowledge("2")


class Rollback(_OfRegistry):
    """Going back to the first."""

    name, share = "rollback", 0.17

    def build(self, place: Path) -> None:
        super().build(place)
        self.promote()

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        registry = self.registry()
        champion = registry.aliased(Tier.POPULAR, "champion")
        if champion is not None and champion.number == "1":
            return  # whoever sees that it is done does not do it again
        if not rollback(registry, Tier.POPULAR, bundles=self.out, at=self.world.cutoff).done:
            raise RuntimeError("not rolled back")
        acknowledge("1")


class Record(_OfRegistry):
    """A training of one tier with its record in MLflow."""

    name, share = "train, recorded", 0.08

    def build(self, place: Path) -> None:
        self.world.train(self.out, self.world.config(tracking=True), Tier.POPULAR)

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        self.world.train(self.out, self.world.config(tracking=True, min_persons=2), Tier.POPULAR)

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        open_bundle(self.out / Tier.POPULAR)
        newest = self.registry().aliased(Tier.POPULAR, CHALLENGER)
        if newest is None:
            yield "there is no challenger any more"
            return
        folder = self.world.folder / "download"
        shutil.rmtree(folder, ignore_errors=True)
        found = open_bundle(self.registry().download(newest, folder))
        if found.digest != newest.digest:
            yield "the challenger's bundle is not the one that was registered"

    def state(self, place: Path) -> Any:
        with sqlite3.connect(self.out / "mlflow.db") as connection:
            running = connection.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone()[0]
        connection.close()
        newest = self.registry().aliased(Tier.POPULAR, CHALLENGER)
        return {
            "bundle": open_bundle(self.out / Tier.POPULAR).digest,
            "challenger": None if newest is None else newest.digest,
            "running": running,
        }


class Fetch(_OfRegistry):
    """A service brings the version that serves into its directory, in the place of an earlier one."""

    name, share = "reload from the registry", 0.2

    def source(self) -> RegistrySource:
        models = {"popular": "models:/consentier-popular@champion"}
        uri = f"sqlite:///{self.out / 'mlflow.db'}"
        return RegistrySource(models, self.world.place / "served", tracking_uri=uri)

    def fetch(self) -> None:
        if problems := self.source().fetch():
            raise RuntimeError(str(problems))

    def build(self, place: Path) -> None:
        super().build(place)
        self.fetch()
        self.promote()

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        self.fetch()

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        try:
            open_bundle(place / "served" / "popular")
        except ConsentierError as error:
            yield str(error)

    def state(self, place: Path) -> Any:
        return open_bundle(place / "served" / "popular").digest, sorted(
            path.name for path in (place / "served").iterdir()
        )


# ---- Batches -----------------------------------------------------------------------------------------------


class _OfBatches(Scenario):
    """Scenarios that score the shop's customers for e-mail."""

    def score(self, out: Path | BatchTable, *, resume: bool = False) -> None:
        score_customers(
            self.world.shop, self.world.recommender, None, channel=Channel.EMAIL, at=self.world.cutoff, n=5,
            out=out, workers=2, resume=resume, show_progress=False,
        )  # fmt: skip

    def expected(self) -> Path:
        """The batch as a run that nobody disturbed wrote it."""
        path = self.world.folder / "expected.parquet"
        if not path.exists() and (made := run(lambda _: self.score(path))).error:
            raise RuntimeError(made.error)
        return path


class ScoreFile(_OfBatches):
    """Into one file, over an earlier one."""

    name, share = "score, file", 0.6

    def build(self, place: Path) -> None:
        (place / "scored.parquet").write_bytes(b"the old one")

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        self.score(place / "scored.parquet")

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        if (place / "scored.parquet").read_bytes() not in (b"the old one", self.expected().read_bytes()):
            yield "neither the old file nor the new one"

    def state(self, place: Path) -> Any:
        return _contents(place)


class ScoreParts(_OfBatches):
    """Into a directory of parts, resumed."""

    name, share = "score, parts", 0.6

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        self.score(place / "scored", resume=True)

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        whole = pq.read_table(self.expected(), use_threads=False)
        for part in (place / "scored").glob("part-*"):
            rows = pq.read_table(part, use_threads=False)
            persons = set(rows["customer_id"].to_pylist())
            wanted = [row for row in whole.to_pylist() if row["customer_id"] in persons]
            if rows.to_pylist() != wanted:
                yield f"{part.name} is not whole"

    def state(self, place: Path) -> Any:
        return _contents(place)


class ScoreTable(_OfBatches):
    """Into a table of SQLite, resumed."""

    name, share = "score, table", 0.6

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        self.score(BatchTable(f"sqlite:///{place / 'recs.db'}"), resume=True)

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        found = self.tables(place)
        persons: dict[str, int] = {}
        for row in pq.read_table(self.expected(), use_threads=False).to_pylist():
            persons[row["customer_id"]] = persons.get(row["customer_id"], 0) + 1
        seen: dict[str, int] = {}
        for row in found.get("recommendations", []):
            seen[row[1]] = seen.get(row[1], 0) + 1
        if any(persons.get(name) != count for name, count in seen.items()):
            yield "somebody has a part of a list"
        if seen and not found.get("recommendations_parts"):
            yield "rows without a part"

    def state(self, place: Path) -> Any:
        return self.tables(place)

    def tables(self, place: Path) -> dict[str, list[Any]]:
        """All rows of all tables."""
        if not (place / "recs.db").exists():
            return {}
        connection = sqlite3.connect(place / "recs.db")
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        rows = {
            name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=str) for name in names
        }
        connection.close()
        return rows


class Deliver(_OfBatches):
    """Handing a batch over, over an earlier one."""

    name, share = "deliver", 1.5

    def build(self, place: Path) -> None:
        (place / "out.parquet").write_bytes(b"the old one")

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        later = self.world.cutoff + dt.timedelta(hours=1)
        deliver(
            self.expected(), ledger_of(self.world.shop), out=place / "out.parquet", policy=Policy.default(),
            revocations=Revocations.open(self.world.later / "bundles"), clock=lambda: later,
            show_progress=False,
        )  # fmt: skip

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        try:
            if (place / "out.parquet").read_bytes() != b"the old one":
                pq.read_table(place / "out.parquet", use_threads=False)
        except (OSError, ValueError) as error:
            yield f"the file cannot be read: {error}"

    def state(self, place: Path) -> Any:
        return _contents(place)


# ---- Ledger ------------------------------------------------------------------------------------------------


class _OfLedger(Scenario):
    """Scenarios on a ledger in SQLite."""

    def ledger(self, place: Path) -> Ledger:
        return Ledger.open(f"sqlite:///{place / 'consents.db'}")

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        with self.ledger(place) as ledger:
            found = ledger.verify()
            if not found.ok:
                yield f"the ledger does not verify: {found.problem}"
            yield from self.lost(ledger, place, acknowledged)

    def lost(self, ledger: Ledger, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        """What was acknowledged and is not so."""
        yield from ()

    def state(self, place: Path) -> Any:
        with self.ledger(place) as ledger:
            return ledger.position, ledger.columns("records")["record_id"], ledger.verify().ok


class Import(_OfLedger):
    """Importing the shop's consents and links."""

    name, share = "consent import", 1.0

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        with self.ledger(place) as ledger:
            import_tables(ledger, self.world.shop_path, show_progress=False)
            acknowledge(str(ledger.position))

    def lost(self, ledger: Ledger, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        if acknowledged and ledger.position != int(acknowledged[0]):
            yield "the import was acknowledged and is not there"


class Append(_OfLedger):
    """Single records, one after the other, each acknowledged."""

    name, share = "consent record", 4.0

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        with self.ledger(place) as ledger:
            for number in range(30):
                ledger.append([_record(number)])
                acknowledge(str(number))

    def lost(self, ledger: Ledger, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        there = set(ledger.columns("records")["record_id"])
        for name in acknowledged:
            if f"r{name}" not in there:
                yield f"record {name} was acknowledged and is lost"


class Erase(_OfLedger):
    """Erasing persons, one after the other."""

    name, share = "consent erase", 3.0

    def build(self, place: Path) -> None:
        with self.ledger(place) as ledger:
            ledger.append([_record(number) for number in range(30)])

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        with self.ledger(place) as ledger:
            for number in range(0, 30, 3):
                ledger.erase(f"subject-{number:03}", kind="visitor")
                acknowledge(str(number))

    def lost(self, ledger: Ledger, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        raw = b"".join(path.read_bytes() for path in place.glob("consents.db*"))
        for number in map(int, acknowledged):
            if ledger.records_of(f"subject-{number:03}", kind="visitor"):
                yield f"{number} was erased, and is there"
            if f"subject-{number:03}".encode() in raw:
                yield f"{number} was erased, and the files still hold the name"


class _OfEndedPermissions(_OfLedger):
    """Scenarios on a ledger, bundles and profiles: what follows when CRM permissions end."""

    @property
    def at(self) -> dt.datetime:
        """When they have ended."""
        return self.world.cutoff + dt.timedelta(days=1)

    def build(self, place: Path) -> None:
        shutil.copytree(self.world.later, place, dirs_exist_ok=True)
        with self.ledger(place) as ledger:
            import_tables(ledger, self.world.shop_path, show_progress=False)
        with contextlib.closing(self.profiles(place)) as store:
            for customer in self.world.customers():
                store.append(customer, [Event("i00001", AT)])

    def profiles(self, place: Path) -> SqliteProfiles:
        """The store of CRM profiles."""
        return SqliteProfiles(place / "crm.db")

    def bundles(self, place: Path) -> list[tuple[Path, Lineage]]:
        """The directory of bundles, with its index."""
        return [(place / "bundles", Restricted.beside(place / "bundles").lineage())]

    def unheeded(self, place: Path, customers: Iterable[str]) -> Iterator[str]:
        """What still rests on permissions that have ended."""
        [(directory, lineage)] = self.bundles(place)
        deadlines = Revocations.open(directory).current()
        if deadlines.fault:
            yield deadlines.fault
        with contextlib.closing(self.profiles(place)) as store:
            for customer in customers:
                held = {bundle.digest for bundle in lineage.bundles_of("customer", customer)}
                if not held <= deadlines.by_digest.keys():
                    yield f"{customer}: a bundle that holds them has no deadline"
                if store.get(customer):
                    yield f"{customer}: the profile is there"

    def state(self, place: Path) -> Any:
        deadlines = Revocations.open(place / "bundles").current()
        with self.ledger(place) as ledger, contextlib.closing(self.profiles(place)) as store:
            return {
                "ledger": super().state(place),
                "links": len(ledger.columns("links")["visitor_id"]),
                "deadlines": {digest: str(until) for digest, until in sorted(deadlines.by_digest.items())},
                "profiles": sorted(store),
            }


class Withdraw(_OfEndedPermissions):
    """A customer withdraws: the record, deadlines, profiles and links."""

    name, share = "consent withdraw", 2.0

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        customer = self.world.customer()
        with self.ledger(place) as ledger, contextlib.closing(self.profiles(place)) as store:
            withdraw(
                ledger, customer, kind="customer", source=Source.CRM, at=self.at,
                profiles={Source.CRM: [store]}, bundles=self.bundles(place),
            )  # fmt: skip
        acknowledge(customer)

    def lost(self, ledger: Ledger, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        for customer in acknowledged:
            if ledger.permission(customer, kind="customer", at=self.at):
                yield f"{customer} withdrew, and still permits"
        yield from self.unheeded(place, acknowledged)


class Enforce(_OfEndedPermissions):
    """Deadlines and purges for all whose permission has ended without that command."""

    name, share = "consent enforce", 2.0

    def gone(self) -> list[str]:
        """Who they are."""
        return self.world.customers()[::3]

    def build(self, place: Path) -> None:
        super().build(place)
        with self.ledger(place) as ledger:
            ledger.append(
                ConsentRecord(f"gone {name}", name, "customer", "crm", "withdrawn", self.at, self.at)
                for name in self.gone()
            )

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        with self.ledger(place) as ledger, contextlib.closing(self.profiles(place)) as store:
            set_deadlines(
                ledger, bundles=self.bundles(place), policy=Policy.default(), at=self.at,
                deadline=dt.timedelta(days=30),
            )  # fmt: skip
            purge_ended(ledger, store, source=Source.CRM, at=self.at)
        acknowledge("all")

    def lost(self, ledger: Ledger, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        if acknowledged:
            yield from self.unheeded(place, self.gone())


# ---- What a service writes ---------------------------------------------------------------------------------


class ProfileWrites(Scenario):
    """Events of visitors, and visitors who are purged, each acknowledged."""

    name, share = "profile writes", 3.0

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        store = SqliteProfiles(place / "online.db")
        for number in range(20):
            name = f"visitor-{number:03}"
            if not number % 4 and not store.get(name):
                store.append(name, [Event(f"i{each}", AT) for each in range(5)])
                acknowledge(f"+{name}")
            elif number % 4 == 1:
                store.append(name, [Event("i1", AT)])
                store.purge(name)
                acknowledge(f"-{name}")
        store.close()

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        if not (place / "online.db").exists():
            return
        store = SqliteProfiles(place / "online.db")
        raw = b"".join(path.read_bytes() for path in place.glob("online.db*"))
        for told in acknowledged:
            found = len(store.get(told[1:], ()))
            if found != (5 if told[0] == "+" else 0):
                yield f"{told} was acknowledged, and there are {found} events"
            if told[0] == "-" and told[1:].encode() in raw:
                yield f"{told} was purged, and the files still hold the name"
        if any(len(events) not in (1, 5) for events in store.values()):
            yield "an append is there in part"
        store.close()

    def state(self, place: Path) -> Any:
        store = SqliteProfiles(place / "online.db")
        found = {name: len(events) for name, events in store.items()}
        store.close()
        return found


class Audit(Scenario):
    """Lines of the audit log."""

    name, share = "audit lines", 2.5

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        keyring = Keyring.open(place / "keys.json")
        audit = JsonLinesAudit(place / "audit", keyring)
        asked: dict[str, Any] = {"session": ["i00012"], "permission": Permission.ONLINE, "n": 3, "at": AT}
        answer = self.world.recommender.recommend(Request(**asked))
        for number in range(20):
            audit.write(Request(**asked, visitor_id=f"v{number}"), answer)
            acknowledge(f"v{number}")

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        if not acknowledged:
            return
        keyring = Keyring.open(place / "keys.json")
        unreadable: list[str] = []
        lines = [line for line in audit_lines(place / "audit", unreadable=unreadable) if line.trace]
        named = {line.trace.subjects.get("visitor") for line in lines if line.trace is not None}
        for name in acknowledged:
            if keyring.digest("subject", f"visitor:{name}") not in named:
                yield f"the line of {name} was acknowledged and is lost"
        if len(unreadable) > 1:
            yield f"{len(unreadable)} lines cannot be read"

    def state(self, place: Path) -> Any:
        keyring = Keyring.open(place / "keys.json")
        lines = list(audit_lines(place / "audit", unreadable=[]))
        named = {line.trace.subjects.get("visitor") for line in lines if line.trace is not None}
        return all(keyring.digest("subject", f"visitor:v{number}") in named for number in range(20))


class Outcomes(Scenario):
    """Files of the log of outcomes."""

    name, share = "outcome files", 3.0
    experiment: ClassVar[Experiment] = Experiment("halves", "a salt for the campaign", {"a": 0.5, "b": 0.5})

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        log = OutcomeLog(place / "outcomes", self.experiment, every=3600, clock=lambda: AT)
        for number in range(10):
            for _ in range(3):
                log.click(self.experiment.answer_id("a", Tier.SESSION, named=False, bucket=None))
            log.flush()
            acknowledge(str(number))

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        if (place / "outcomes").exists():
            found = sum(line.count for line in outcome_lines(place / "outcomes"))
            if found < 3 * len(acknowledged) or found % 3:
                yield f"{found} clicks, {3 * len(acknowledged)} were acknowledged"

    def state(self, place: Path) -> Any:
        return sum(line.count for line in outcome_lines(place / "outcomes")) >= 30


class Revoke(Scenario):
    """Deadlines of bundles, each acknowledged."""

    name, share = "revocation", 4.0

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        for number in range(12):
            revoke(place, [_digest(number)], AT, "withdrawal")
            acknowledge(str(number))

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        deadlines = Revocations.open(place).current()
        if deadlines.fault:
            yield deadlines.fault
        for number in map(int, acknowledged):
            if _digest(number) not in deadlines.by_digest:
                yield f"the deadline of {number} was acknowledged and is lost"

    def state(self, place: Path) -> Any:
        return _contents(place)


class Keys(Scenario):
    """Rotating and pruning keys, each acknowledged."""

    name, share = "keyring", 2.0

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        keyring = Keyring.open(place / "keys.json")
        for number in range(5):
            keyring.rotate(AT + dt.timedelta(days=number))
            acknowledge(keyring.current_id)

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        if not acknowledged:
            return
        held = Keyring.open(place / "keys.json", create=False).ids
        for name in acknowledged:
            if name not in held:
                yield f"the key {name} was acknowledged and is lost"

    def state(self, place: Path) -> Any:
        return len(Keyring.open(place / "keys.json", create=False).ids) > 5, sorted(
            path.name for path in place.iterdir()
        )


class ConfigInit(Scenario):
    """Writing a configuration over another."""

    name, share = "config init", 3.0

    def build(self, place: Path) -> None:
        (place / "consentier.toml").write_text("# the old one\n")

    def work(self, place: Path, acknowledge: Acknowledge) -> None:
        init(place / "consentier.toml", force=True)

    def problems(self, place: Path, acknowledged: tuple[str, ...]) -> Iterator[str]:
        try:
            if (place / "consentier.toml").read_text() != "# the old one\n":
                load_config(place / "consentier.toml")
            schema = place / "consentier.schema.json"
            if schema.exists():
                json.loads(schema.read_text())
        except (OSError, ValueError, ConsentierError) as error:
            yield f"cannot be read: {error}"

    def state(self, place: Path) -> Any:
        return _contents(place)


SCENARIOS: tuple[Callable[[World], Scenario], ...] = (
    Import, Append, Erase, Withdraw, Enforce, ProfileWrites, Audit, Outcomes, Revoke, Keys, ConfigInit,
    Deliver, ScoreFile, ScoreParts, ScoreTable, Forget, Train, Retrain, Fetch, Promote, Rollback, Record,
)  # fmt: skip
"""All of them."""


def _contents(place: Path) -> dict[str, str]:
    """All files and their SHA-256."""
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _record(number: int) -> ConsentRecord:
    name = f"subject-{number:03}"
    return ConsentRecord(f"r{number}", name, "visitor", "online", "granted", AT, AT)


def _digest(number: int) -> str:
    return f"sha256:{number:064x}"
