"""Every loader of files, lines and rows: payloads that it takes, and what it may raise for any other.

`tests/test_hostile_files.py` tries each on mutations by Hypothesis, `fuzz/fuzz_loaders.py` on those that
Atheris finds. What a loader does not refuse is used as the product uses it, so that nothing breaks later.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import functools
import hashlib
import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from engines import CATALOGUE, bundles, engine

import consentier.consent
from consentier.consent import Channel, ConsentRecord, Ledger, Lifetimes, Permission, Policy, Tier
from consentier.consent.keyring import Keyring
from consentier.errors import (
    AuditError,
    BundleError,
    ConfigError,
    DataError,
    LedgerError,
    PolicyError,
)
from consentier.features.ledger_tables import import_tables
from consentier.features.schemas import SCHEMAS
from consentier.features.tables import reader_of
from consentier.features.validation import TableValidator
from consentier.models.bundle import open_bundle, read_run
from consentier.serving import Catalogue, Event, Request
from consentier.serving.audit import AuditLine
from consentier.serving.batch_file import SCORED, BatchFacts, opened_batch
from consentier.serving.batch_job import BatchJob, PartCounts
from consentier.serving.experiment import Experiment
from consentier.serving.item_columns import Expression, ItemColumns
from consentier.serving.outcomes import OutcomeKind, OutcomeLine
from consentier.serving.popular_scorer import PopularScorer
from consentier.serving.profile_store import SqliteProfiles
from consentier.serving.pyfunc import OUTPUTS, answer_row
from consentier.serving.replay import ReplayInputs
from consentier.serving.request import events_from_json
from consentier.serving.revocation import Revocations, revoke
from consentier.serving.routing import Routing, read_routing, write_routing
from consentier.serving.rules import Rules
from consentier.serving.scorer import LinearScorer
from consentier.training.config import load_config

__all__ = ["LOADERS", "Loader"]

AT = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
BOTH = Permission.ONLINE | Permission.CRM


@dataclasses.dataclass(frozen=True)
class Loader:
    """A loader.

    Attributes
    ----------
    seeds
        Payloads that it takes.
    load
        Has it read a payload, and uses what comes of it.
    refuses
        What it may raise.
    is_json
        Whether payloads are JSON, and are changed in place.
    """

    seeds: Callable[[], list[bytes]]
    load: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...] = ()
    is_json: bool = False

    def check(self, payload: bytes) -> bool:
        """Whether it takes a payload. Whatever it must not raise escapes."""
        try:
            self.load(payload)
        except self.refuses:
            return False
        return True


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="consentier-hostile-")


def _file(name: str, payload: bytes) -> Path:
    path = Path(_folder().name) / name
    path.unlink(missing_ok=True)
    path.write_bytes(payload)
    return path


# ---- Bundles -------------------------------------------------------------------------------------------


@functools.cache
def _bundle(tier: str) -> Path:
    path = Path(_folder().name) / tier
    shutil.copytree(bundles() / tier, path)
    return path


def _forged(tier: str, manifest: bytes) -> Path:
    """A bundle whose manifest is the payload, in canonical form where it is JSON."""
    try:
        document = json.loads(manifest)
        manifest = json.dumps(
            document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except (ValueError, RecursionError, TypeError):
        pass
    path = _bundle(tier)
    (path / "manifest.json").write_bytes(manifest)
    return path


def _answering(tier: str, manifest: bytes) -> None:
    """What opens and makes a model must also answer, whatever its settings say."""
    bundle = open_bundle(_forged(tier, manifest))
    if tier == "popular":
        _recommend(popular=PopularScorer(bundle, CATALOGUE))
    else:
        _recommend(scorers={Tier(tier): LinearScorer(bundle, CATALOGUE, compiled=False)})


def _recommend(**models: Any) -> None:
    recommender = dataclasses.replace(engine((), CATALOGUE), **{"scorers": {}, "popular": None, **models})
    events = [Event("item-01", AT, "view"), Event("item-02", None, "cart"), "item-03"]
    for n in (1, 100):
        answer = recommender.recommend(
            Request(
                session=events,
                online_history=events,
                crm_history=events,
                attributes={"age": 40, "region": "north"},
                permission=BOTH,
                linked=True,
                explain=True,
                n=n,
            )
        )
        assert len(set(answer.items)) == len(answer.items) <= n
        assert set(answer.items) <= CATALOGUE.available
    for tier, scorer in recommender.scorers.items():
        assert not [reason for reason in answer.basis.reasons if "failed" in reason], (tier, scorer)


def _array(name: str) -> Loader:
    """What stands in one array of a bundle, under a header and a manifest that agree with it.

    Headers need no fuzzing: they are compared, byte for byte, and never parsed.
    """

    def seeds() -> list[bytes]:
        return [np.load(bundles() / "fused" / f"{name}.npy").tobytes()]

    def load(payload: bytes) -> None:
        manifest = json.loads((bundles() / "fused" / "manifest.json").read_bytes())
        entry = manifest["files"][name]
        dtype = np.dtype(entry["dtype"])
        count = len(payload) // dtype.itemsize
        entry["shape"] = [math.isqrt(count)] * 2 if name == "repeats" else [count]
        out = io.BytesIO()
        np.save(out, np.frombuffer(payload, dtype, math.prod(entry["shape"])).reshape(entry["shape"]))
        entry["bytes"] = len(out.getvalue())
        entry["sha256"] = hashlib.sha256(out.getvalue()).hexdigest()
        path = _forged("fused", json.dumps(manifest).encode())
        original = (path / f"{name}.npy").read_bytes()
        try:
            (path / f"{name}.npy").write_bytes(out.getvalue())
            _recommend(scorers={Tier.FUSED: LinearScorer(open_bundle(path), CATALOGUE, compiled=False)})
        finally:
            (path / f"{name}.npy").write_bytes(original)

    return Loader(seeds, load, (BundleError,))


def _manifest(tier: str) -> Loader:
    return Loader(
        lambda: [(bundles() / tier / "manifest.json").read_bytes()],
        lambda payload: _answering(tier, payload),
        (BundleError,),
        is_json=True,
    )


def _run(payload: bytes) -> None:
    (_bundle("session") / "run.json").write_bytes(payload)
    read_run(_bundle("session"))


# ---- Beside bundles ------------------------------------------------------------------------------------


def _revocations(payload: bytes) -> None:
    """Whatever stands there, no bundle answers for want of understanding it."""
    path = _file("revocations.json", payload)
    deadlines = Revocations.open(path.parent).current()
    assert deadlines.fault or json.loads(payload)["revocations"] == [] or deadlines.by_digest
    assert len(deadlines.problem_of("sha256:" + "0" * 64, AT)) < 1000


def _revocation_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        revoke(folder, ["sha256:" + "0" * 64, "sha256:" + "1" * 64], AT, "withdrawal")
        return [(Path(folder) / "revocations.json").read_bytes()]


def _routing(payload: bytes) -> None:
    found = read_routing(_file("routing.json", payload).parent)
    found.applied_to(Policy.default())
    assert not (found.fault and found.may_go_back(Tier.FUSED, "sha256:" + "0" * 64))


def _routing_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_routing(folder, Routing(Tier.CRM, {Tier.FUSED: "sha256:" + "0" * 64}))
        return [(Path(folder) / "routing.json").read_bytes()]


# ---- Settings ------------------------------------------------------------------------------------------

POLICY, LIFETIMES = (
    Path(consentier.consent.__file__).with_name(f"default_{name}.toml").read_bytes()
    for name in ("policy", "lifetimes")
)
RULES = b"""show = "price < 100 and not clearance"
deny = ["item-01"]
[caps]
category = 2
[[boost]]
where = "category == 'shoes' or brand is not None"
factor = 1.5
[rebuy]
column = "category"
days = { shoes = 30.0 }
[diversity]
weight = 0.3
columns = ["category"]
[explore]
share = 0.1
persons = 2
"""
EXPERIMENT = b"""name = "ranking"
salt = "0123456789abcdef"
[arms]
old = 0.5
new = 0.5
"""
CONFIG = b"""[crm]
neighbours = 50
event_weights = { order = 2.0 }
[evaluation]
cutoffs = [5, 10]
"""
ROWS: Mapping[str, Mapping[str, Any]] = {
    f"item-{number:02}": {
        "category": "shoes" if number % 2 else "hats",
        "price": 10.0 * number,
        "clearance": number == 3,
        "brand": None if number % 3 else "north",
    }
    for number in range(12)
}


def _rules(payload: bytes) -> None:
    Rules.load(_file("rules.toml", payload)).check(ROWS)


def _filter(payload: bytes) -> None:
    columns = ItemColumns(ROWS, list(ROWS))
    assert Expression(payload.decode("utf-8", "surrogatepass")).true_for(columns).shape == (12,)


# ---- Lines and documents -------------------------------------------------------------------------------


def _audit_seeds() -> list[bytes]:
    from consentier.serving.audit import JsonLinesAudit

    with tempfile.TemporaryDirectory() as folder:
        audit = JsonLinesAudit(Path(folder) / "audit", Keyring.ephemeral())
        audited = dataclasses.replace(engine((), CATALOGUE), audit=audit)
        for permission in (Permission.NONE, BOTH):
            audited.recommend(
                Request(session=["item-01"], visitor_id="v", permission=permission, linked=True)
            )
        return [file.read_bytes().strip() for file in sorted((Path(folder) / "audit").iterdir())]


def _outcome_seeds() -> list[bytes]:
    day = dt.date(2026, 6, 1)
    named = OutcomeLine(day, "e", "a", Tier.FUSED, OutcomeKind.CLICK, 1, "0" * 32, 7)
    counted = OutcomeLine(day, "e", "a", Tier.SESSION, OutcomeKind.IMPRESSION, 12)
    return [named.to_json().encode(), counted.to_json().encode()]


def _replay(payload: bytes) -> None:
    ReplayInputs.load(_file("inputs.json", payload))


REPLAY = {
    "session": ["item-01", {"item_id": "item-02", "ts": "2026-06-01T12:00:00+00:00", "event_type": "cart"}],
    "online_history": [],
    "crm_history": [{"item_id": "item-03", "quantity": 2}],
    "attributes": {"age": 4, "region": "north"},
    "visitor_id": "v",
    "exclude": ["item-04"],
    "allow": None,
    "where": "price < 10",
    "devices": ["v"],
    "trending": {"items": ["item-05"], "share": 0.5},
}


def _job() -> BatchJob:
    return BatchJob(
        facts=BatchFacts(Channel.EMAIL, "p-1", AT),
        n=10,
        persons=0,
        persons_per_part=2,
        ledger_position=7,
        bundles={"crm": "sha256:" + "0" * 64},
        inputs="0" * 32,
    )


def _batch_job(payload: bytes) -> None:
    """A directory that says that it is a batch, and holds nothing else."""
    path = Path(_folder().name) / "batch"
    path.mkdir(exist_ok=True)
    (path / "batch.json").write_bytes(payload)
    with opened_batch(path) as reader:
        assert not reader.rows


def _batch_metadata(payload: bytes) -> None:
    schema = BatchFacts(Channel.EMAIL, "p-1", AT).schema(SCORED)
    metadata = dict.fromkeys(schema.metadata, payload)
    path = Path(_folder().name) / "batch.parquet"
    pq.write_table(schema.with_metadata(metadata).empty_table(), path)
    with opened_batch(path) as reader:
        assert isinstance(reader.facts, BatchFacts)


def _part_counts(payload: bytes) -> None:
    PartCounts.from_text(payload.decode("utf-8", "replace"), "part 1")


def _keyring(payload: bytes) -> None:
    path = _file("keys.json", payload)
    path.chmod(0o600)
    Keyring.open(path).digest("subject", "v")


def _keyring_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        Keyring.open(Path(folder) / "keys.json")
        return [(Path(folder) / "keys.json").read_bytes()]


# ---- Rows and requests ---------------------------------------------------------------------------------

ROW = {
    "permission": "both",
    "channel": "shop",
    "linked": True,
    "n": 5,
    "session": '["item-01"]',
    "online_history": '[{"item_id":"item-02","ts":"2026-06-01T12:00:00Z"}]',
    "crm_history": '[{"item_id":"item-03","event_type":"order","quantity":1}]',
    "attributes": '{"age":40,"region":"north"}',
}


def _pyfunc(payload: bytes) -> None:
    """No row fails the others, and what comes out has the types that the signature says."""
    row = json.loads(payload)
    if not isinstance(row, dict):
        raise ValueError("no row")
    output = answer_row(engine((), CATALOGUE), row)
    assert list(output) == list(OUTPUTS)
    assert set(output["items"]) <= CATALOGUE.available
    json.dumps(output).encode()


def _pyfunc_text(payload: bytes) -> None:
    """The same, where the payload is what one cell of the row says."""
    text = payload.decode("utf-8", "surrogatepass")
    for column in ("session", "online_history", "crm_history", "attributes"):
        _pyfunc(json.dumps({**ROW, column: text}).encode())


def _events(payload: bytes) -> None:
    events = events_from_json("session", json.loads(payload))
    answer = engine((), CATALOGUE).recommend(
        Request(session=events, crm_history=events, permission=BOTH, linked=True, explain=True)
    )
    assert not [reason for reason in answer.basis.reasons if "failed" in reason]


# ---- Databases -----------------------------------------------------------------------------------------


def _profile_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteProfiles(Path(folder) / "profiles.db")
        store.append("s", [Event("item-01", AT, "view", 1.0)])
        store.set_attributes("s", {"age": 4}, at=AT)
        store.close()
        return [(Path(folder) / "profiles.db").read_bytes()]


def _profiles(payload: bytes) -> None:
    for suffix in ("", "-wal", "-shm"):
        (Path(_folder().name) / f"profiles.db{suffix}").unlink(missing_ok=True)
    store = SqliteProfiles(_file("profiles.db", payload))
    try:
        for subject in {*store, "s", "t"}:
            store.get(subject)
            store.attributes.get(subject)
            store.export(subject)
    finally:
        store.close()


def _ledger_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
            ledger.append(
                [
                    ConsentRecord("r-1", "v", "visitor", "online", "granted", AT, AT),
                    ConsentRecord("r-2", "c", "customer", "crm", "granted", AT, AT),
                ]
            )
            ledger.login("v", "c", at=AT, evidence="login")
            ledger.append([ConsentRecord("r-3", "w", "visitor", "online", "granted", AT, AT)])
            ledger.erase("w", kind="visitor")
        return [(Path(folder) / "ledger.db").read_bytes()]


def _ledger(payload: bytes) -> None:
    for suffix in ("", "-wal", "-shm"):
        (Path(_folder().name) / f"ledger.db{suffix}").unlink(missing_ok=True)
    with Ledger.open(f"sqlite:///{_file('ledger.db', payload)}") as ledger:
        for visitor, customer in (("v", "c"), ("w", None), (None, "c")):
            ledger.resolve(visitor_id=visitor, customer_id=customer, at=AT + dt.timedelta(days=1))
        ledger.verify()


# ---- Tables --------------------------------------------------------------------------------------------

TABLES: Mapping[str, str] = {
    "events": "visitor_id,session_id,ts,item_id,event_type\nv1,s1,2026-01-01T00:00:00Z,i1,view\n"
    'v2,"s,2",2026-01-01 10:00:00.25+01:00,i2,cart\n',
    "orders": "customer_id,order_id,line_id,ts,item_id,quantity,price,status\n"
    "c1,o1,1,2026-01-01T00:00:00Z,i1,2,9.5,ordered\n",
    "items": 'item_id,category,price,available,sensitive,colour\ni1,a,1,true,false,"re""d"\ni2,b,,0,1,\n',
    "consents": "record_id,subject_id,subject_kind,permission,state,valid_from,valid_to,recorded_at,basis,"
    "jurisdiction,double_opt_in_at,collected_by,policy_version,evidence\n"
    "r1,v1,visitor,online,granted,2026-01-01T00:00:00Z,,2026-01-01T00:00:00Z,consent,DE,,cmp,1,\n",
    "identities": "visitor_id,customer_id,linked_at,evidence\nv1,c1,2026-01-01T00:00:00Z,login\n",
}


def _validated(path: Path, table: str, on_bad_rows: Any) -> None:
    validator = TableValidator(SCHEMAS[table], on_bad_rows)
    for chunk in reader_of(path)(SCHEMAS[table]):
        validator.add(chunk)
    found, _ = validator.finish()
    found.validate(full=True)
    found.to_pylist()


def _csv_table(table: str) -> Loader:
    def load(payload: bytes) -> None:
        path = _file(f"{table}.csv", payload)
        _validated(path, table, "drop")
        _validated(path, table, "error")

    return Loader(lambda: [TABLES[table].encode()], load, (DataError,))


def _parquet(table: str) -> Loader:
    def seeds() -> list[bytes]:
        rows = list(csv.DictReader(io.StringIO(TABLES[table])))
        found = []
        for compression in ("none", "zstd"):
            out = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows), out, compression=compression)
            found.append(out.getvalue())
        return found

    return Loader(
        seeds, lambda payload: _validated(_file(f"{table}.parquet", payload), table, "drop"), (DataError,)
    )


def _import(payload: bytes) -> None:
    path = _file("consents.csv", payload)
    for suffix in ("", "-wal", "-shm"):
        (path.parent / f"imported.db{suffix}").unlink(missing_ok=True)
    with Ledger.open(f"sqlite:///{path.parent / 'imported.db'}") as ledger:
        import_tables(ledger, path, show_progress=False)
        ledger.resolve(visitor_id="v1", customer_id=None, at=AT)


def _catalogue(payload: bytes) -> None:
    found = Catalogue.of(_file("items.csv", payload))
    assert not found.available & found.sensitive


LOADERS: Mapping[str, Loader] = {
    **{f"manifest_{tier}": _manifest(tier) for tier in ("session", "fused", "popular")},
    **{
        f"array_{name}": _array(name) for name in ("item_ids", "item_offsets", "indptr", "indices", "repeats")
    },
    "run": Loader(lambda: [b'{"created_at":"2026","metrics":{"a":[1,2.5]}}'], _run, (BundleError,), True),
    "revocations": Loader(_revocation_seeds, _revocations, is_json=True),
    "routing": Loader(_routing_seeds, _routing, is_json=True),
    "policy": Loader(lambda: [POLICY], lambda text: Policy.load(_file("a.toml", text)), (PolicyError,)),
    "lifetimes": Loader(
        lambda: [LIFETIMES], lambda text: Lifetimes.load(_file("a.toml", text)), (ConfigError,)
    ),
    "rules": Loader(lambda: [RULES], _rules, (ConfigError,)),
    "experiment": Loader(
        lambda: [EXPERIMENT], lambda text: Experiment.load(_file("a.toml", text)), (ConfigError,)
    ),
    "config": Loader(
        lambda: [CONFIG], lambda text: load_config(_file("a.toml", text), environ={}), (ConfigError,)
    ),
    "filter": Loader(
        lambda: [
            b'category == "shoes" and (price < 100 or not clearance)',
            b'brand in ("a", "b") or 1 <= price < 20',
        ],
        _filter,
        (ValueError,),
    ),
    "audit_line": Loader(_audit_seeds, AuditLine.from_json, (AuditError,), True),
    "outcome_line": Loader(_outcome_seeds, OutcomeLine.from_json, (AuditError,), True),
    "replay_inputs": Loader(lambda: [json.dumps(REPLAY).encode()], _replay, (AuditError,), True),
    "batch_job": Loader(lambda: [_job().to_text().encode()], _batch_job, (DataError,), True),
    "batch_metadata": Loader(
        lambda: list(BatchFacts(Channel.EMAIL, "p-1", AT).schema(SCORED).metadata.values()),
        _batch_metadata,
        (DataError,),
        True,
    ),
    "part_counts": Loader(
        lambda: [PartCounts(3, 2, {"crm": 2}, {"contact": 1}).to_text().encode()],
        _part_counts,
        (DataError,),
        True,
    ),
    "keyring": Loader(_keyring_seeds, _keyring, (AuditError,), True),
    "model_row": Loader(lambda: [json.dumps(ROW).encode()], _pyfunc, (ValueError, RecursionError), True),
    "model_cell": Loader(
        lambda: [ROW["online_history"].encode(), ROW["attributes"].encode()],  # type: ignore[attr-defined]
        _pyfunc_text,
        (UnicodeDecodeError,),
        True,
    ),
    "events": Loader(
        lambda: [json.dumps(REPLAY["session"]).encode()],
        _events,
        (ValueError, TypeError, RecursionError),
        True,
    ),
    "profile_store": Loader(_profile_seeds, _profiles, (DataError,)),
    "ledger_store": Loader(_ledger_seeds, _ledger, (LedgerError,)),
    **{f"{table}_csv": _csv_table(table) for table in TABLES},
    **{f"{table}_parquet": _parquet(table) for table in ("events", "items", "consents")},
    "ledger_import": Loader(lambda: [TABLES["consents"].encode()], _import, (DataError,)),
    "catalogue": Loader(lambda: [TABLES["items"].encode()], _catalogue, (DataError,)),
}
"""By name."""
