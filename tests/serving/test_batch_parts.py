"""Batches in parts and in a database: killed at any moment and resumed, the rows are the same, each once."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from engines import CATALOGUE, ITEMS, bundles
from shops import consent, day, link, order, shop
from shops import event as seen

from consentier.consent import Channel, ConsentRecord, Ledger, Policy
from consentier.errors import BundleError, DataError
from consentier.features.gate import ledger_of
from consentier.features.tables import ShopTables
from consentier.serving import Recommender, batch
from consentier.serving.batch import BatchSummary, score_customers
from consentier.serving.batch_file import JOB_FILE, BatchFacts, opened_batch, part_file
from consentier.serving.batch_job import BatchJob
from consentier.serving.batch_sinks import sink_for
from consentier.serving.batch_table import BatchTable
from consentier.serving.deliver import deliver
from consentier.serving.revocation import Revocations, revoke

AT = day(30)
CUSTOMERS = 60


def tables() -> ShopTables:
    """Customers at all levels of permission."""
    rng = random.Random(5)
    names = [f"c{number:02}" for number in range(CUSTOMERS)]
    devices = [f"v{name}" for name in names]
    return shop(
        events=[seen(rng.choice(devices), rng.choice(ITEMS), rng.random() * 9) for _ in range(300)],
        orders=[order(rng.choice(names), rng.choice(ITEMS), 1 + number / 100) for number in range(200)],
        identities=[link(device, name) for device, name in zip(devices, names, strict=True)],
        consents=[
            *(consent(device, "online") for device in devices if rng.random() < 0.7),
            *(consent(name, "crm") for name in names if rng.random() < 0.7),
            *(consent(name, "contact:email") for name in names if rng.random() < 0.8),
        ],
    )


TABLES = tables()


def recommender() -> Recommender:
    return Recommender.load(bundles(("crm",)), catalogue=CATALOGUE)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_PERSONS_PER_PART", 7)


def score(out: Path | BatchTable, **options: Any) -> BatchSummary:
    arguments: dict[str, Any] = {"channel": Channel.EMAIL, "at": AT, "n": 4, "workers": 2, **options}
    data, engine, ledger = (
        arguments.pop(name, default)
        for name, default in (("data", TABLES), ("engine", None), ("ledger", None))
    )
    return score_customers(data, engine or recommender(), ledger, out=out, show_progress=False, **arguments)


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_parts_hold_what_one_file_holds(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts"
    assert score(whole) == score(parts)
    names = [JOB_FILE, *(part_file(parts, part).name for part in range(-(-CUSTOMERS // 7)))]
    assert sorted(content(parts)) == sorted(names)
    with opened_batch(whole) as one, opened_batch(parts) as many:
        assert (one.facts, one.rows) == (many.facts, many.rows)
        rows = [pa.concat_tables([table for table, _ in reader.tables()]) for reader in (one, many)]
    assert rows[0].equals(rows[1])
    assert rows[0].num_rows > 100


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    for workers in (1, 2, 5):
        score(tmp_path / f"parts-{workers}", workers=workers)
        score(tmp_path / f"whole-{workers}.parquet", workers=workers)
    assert content(tmp_path / "parts-1") == content(tmp_path / "parts-2") == content(tmp_path / "parts-5")
    files = [(tmp_path / f"whole-{workers}.parquet").read_bytes() for workers in (1, 2, 5)]
    assert files[0] == files[1] == files[2]


def test_only_their_owner_may_read_who_gets_what(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        score(tmp_path / "whole.parquet")
        score(tmp_path / "parts")
        score(BatchTable(f"sqlite:///{tmp_path / 'batch.db'}"))
        deliver(
            tmp_path / "whole.parquet",
            ledger_of(TABLES),
            out=tmp_path / "sent.parquet",
            policy=Policy.default(),
            revocations=Revocations.open(tmp_path),
        )
    finally:
        os.umask(before)
    files = sorted(path for path in tmp_path.iterdir())
    assert {path.name for path in files} >= {"whole.parquet", "parts", "batch.db", "sent.parquet"}
    assert [path.name for path in files if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("missing", [(0,), (3, 8), tuple(range(9))])
def test_a_batch_goes_on_where_parts_are_missing(tmp_path: Path, missing: tuple[int, ...]) -> None:
    summary = score(tmp_path / "parts")
    before = content(tmp_path / "parts")
    for part in missing:
        part_file(tmp_path / "parts", part).unlink()
    with (
        pytest.raises(DataError, match=f"{len(missing)} of 9 parts are missing"),
        opened_batch(tmp_path / "parts"),
    ):
        pass
    assert score(tmp_path / "parts", at=None, resume=True) == summary
    assert content(tmp_path / "parts") == before


def test_a_resumed_batch_keeps_its_instant_and_what_the_ledger_knew_then(tmp_path: Path) -> None:
    ledger = ledger_of(TABLES)
    score(tmp_path / "parts", ledger=ledger)
    before = content(tmp_path / "parts")
    part_file(tmp_path / "parts", 2).unlink()
    ledger.append(  # told late, of the time before: deliver will hear of it
        [ConsentRecord("late", "c14", "customer", "contact:email", "withdrawn", day(2), day(40))]
    )
    ledger.append([ConsentRecord("new", "c99", "customer", "contact:email", "granted", day(2), day(2))])
    score(tmp_path / "parts", ledger=ledger, at=None, resume=True)
    assert content(tmp_path / "parts") == before
    out = tmp_path / "out.parquet"
    deliver(
        tmp_path / "parts", ledger, out=out, policy=Policy.default(),
        revocations=Revocations.open(tmp_path), at=day(41), show_progress=False,
    )  # fmt: skip
    assert "c14" in pq.read_table(part_file(tmp_path / "parts", 2))["customer_id"].to_pylist()
    delivered = set(pq.read_table(out)["customer_id"].to_pylist())
    assert delivered
    assert "c14" not in delivered


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"n": 5}, "n was 4, and is 5"),
        ({"at": day(31)}, "was begun for"),
        ({"channel": Channel.PRINT}, "channel was email, and is print"),
        ({"engine": "other bundles"}, "bundles was"),
        ({"engine": "other policy"}, "policy_version was"),
        ({"data": "another order"}, "histories or the items on show have changed"),
        ({"engine": "other catalogue"}, "the items on show have changed"),
        ({"ledger": Ledger()}, "ledger_position was None"),
    ],
)
def test_another_batch_is_not_resumed(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    score(tmp_path / "parts")
    before = content(tmp_path / "parts")
    part_file(tmp_path / "parts", 1).unlink()
    engines = {
        "other bundles": lambda: Recommender.load(bundles(()), catalogue=CATALOGUE),
        "other catalogue": lambda: Recommender.load(bundles(("crm",)), catalogue=ITEMS[1:4]),
        "other policy": lambda: dataclasses.replace(
            recommender(), policy=Policy("another", Policy.default().matrix)
        ),
    }
    options = dict(changed)
    if isinstance(options.get("engine"), str):
        options["engine"] = engines[options["engine"]]()
    if "data" in options:
        options["data"] = dataclasses.replace(
            TABLES, orders=pa.concat_tables([TABLES.orders, shop(orders=[order("c01", ITEMS[3], 7)]).orders])
        )
    with pytest.raises(DataError, match=told):
        score(tmp_path / "parts", **{"at": None, **options}, resume=True)
    left = content(tmp_path / "parts")
    assert left == {name: before[name] for name in left}
    assert len(left) == len(before) - 1


def test_a_batch_of_the_other_engine_is_not_resumed(tmp_path: Path) -> None:
    """The other way round: tests/services/test_spark_batch.py."""
    score(tmp_path / "parts")
    path = tmp_path / "parts" / JOB_FILE
    begun = json.loads(path.read_text())
    path.write_text(json.dumps({**begun, "inputs": f"spark {begun['inputs']}"}))
    part_file(tmp_path / "parts", 1).unlink()
    before = content(tmp_path / "parts")
    with pytest.raises(DataError, match="it was begun on the other engine"):
        score(tmp_path / "parts", at=None, resume=True)
    assert content(tmp_path / "parts") == before


def test_a_directory_in_use_is_not_written_over(tmp_path: Path) -> None:
    score(tmp_path / "parts")
    with pytest.raises(DataError, match="holds a batch already"):
        score(tmp_path / "parts")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="something else than a batch"):
        score(tmp_path / "mine")
    (tmp_path / "file").write_text("text")
    with pytest.raises(DataError, match="is a file"):
        score(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be resumed"):
        score(tmp_path / "one.parquet", resume=True)


def test_what_a_killed_batch_left_behind_is_removed(tmp_path: Path) -> None:
    score(tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    remnants = [f".{JOB_FILE}.0123456789abcdef.tmp", ".part-00001.parquet.0123456789abcdef.tmp"]
    for name in remnants:
        (tmp_path / "parts" / name).write_bytes(b"{")
    score(tmp_path / "parts", resume=True)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_no_two_batches_write_into_a_directory_at_once(tmp_path: Path) -> None:
    out = tmp_path / "parts"
    with (
        sink_for(out, Channel.EMAIL, resume=False) as first,
        sink_for(out, Channel.EMAIL, resume=False) as other,
    ):
        assert first.begun(AT) is None
        assert other.begun(AT) is None
        job = BatchJob(BatchFacts(Channel.EMAIL, "1", AT), 4, 10, 7, None, {}, "")
        first.start(job)
        before = content(out)
        with pytest.raises(DataError, match="another process is scoring into it"):
            other.start(dataclasses.replace(job, n=5))
    assert content(out) == before


def test_parts_of_another_batch_are_refused(tmp_path: Path) -> None:
    score(tmp_path / "a")
    score(tmp_path / "b", n=2)
    part_file(tmp_path / "b", 1).replace(part_file(tmp_path / "a", 1))
    with pytest.raises(DataError, match="is of another batch"):
        score(tmp_path / "a", at=None, resume=True)
    with pytest.raises(DataError, match="is of another batch"), opened_batch(tmp_path / "a"):
        pass


def test_a_bundle_past_its_deadline_stops_the_batch(tmp_path: Path) -> None:
    """Its rows must not be sent; nothing is put in their place unasked."""
    clock = iter([day(30)] * 3 + [day(50)] * 99)
    revocations = Revocations.open(tmp_path)
    revoke(tmp_path, [recommender().scorers["crm"].digest], day(40), "withdrawal")  # type: ignore[index]
    engine = dataclasses.replace(recommender(), revocations=revocations, clock=lambda: next(clock))
    with pytest.raises(BundleError, match="withdrawal deadline"):
        score(tmp_path / "parts", engine=engine, workers=1)


# --- a database ---------------------------------------------------------------------------------------------


def rows_in(place: BatchTable) -> list[tuple[Any, ...]]:
    engine = sa.create_engine(place.url)
    with engine.connect() as connection:
        found = connection.execute(
            sa.text(
                f"SELECT person, rank, item_id, score, tier, bundle_digest, devices FROM {place.name} "
                "ORDER BY person, rank"
            )
        ).all()
    engine.dispose()
    return [tuple(row) for row in found]


def rows_of(path: Path) -> list[tuple[Any, ...]]:
    table = pq.read_table(path).drop_columns(["at", "policy_version"])
    return [tuple(row.values()) for row in table.to_pylist()]


def test_a_table_holds_what_a_file_holds_and_is_delivered_alike(tmp_path: Path) -> None:
    place = BatchTable(f"sqlite:///{tmp_path / 'recs.db'}", "lists")
    summary = score(place)
    assert summary == score(tmp_path / "whole.parquet")
    assert rows_in(place) == rows_of(tmp_path / "whole.parquet")
    with pytest.raises(DataError, match="holds this batch already"):
        score(place)
    with opened_batch(place) as one, opened_batch(tmp_path / "whole.parquet") as other:
        assert (one.facts, one.rows) == (other.facts, other.rows)
    ledger = ledger_of(TABLES)
    ledger.append([ConsentRecord("w", "c14", "customer", "contact:email", "withdrawn", day(31), day(31))])
    sent = []
    for scored in (place, tmp_path / "whole.parquet"):
        out = tmp_path / "out.parquet"
        told = deliver(
            scored, ledger, out=out, policy=Policy.default(), revocations=Revocations.open(tmp_path),
            at=day(32), show_progress=False,
        )  # fmt: skip
        assert told.dropped == {"no contact permission for email": 1}
        sent.append(out.read_bytes())
    assert sent[0] == sent[1]


def test_a_database_that_breaks_off_loses_no_row_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = BatchTable(f"sqlite:///{tmp_path / 'recs.db'}")
    monkeypatch.setattr("consentier.serving.batch_table._ROWS_AT_ONCE", 3)
    real = sa.engine.Connection.execute
    calls = 0

    def execute(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 40:  # amid the rows of a part
            raise sa.exc.OperationalError("insert", {}, Exception("the line is cut"))
        return real(self, *arguments, **options)

    monkeypatch.setattr(sa.engine.Connection, "execute", execute)
    with pytest.raises(DataError, match="the database failed: OperationalError"):
        score(place, workers=1)
    kept = rows_in(place)
    with pytest.raises(DataError, match="not finished"), opened_batch(place):
        pass
    score(place, at=None, resume=True)
    score(tmp_path / "whole.parquet")
    with pytest.raises(DataError, match="no batch for email is unfinished"):
        score(place, at=None, resume=True)
    assert 0 < len(kept) < len(rows_in(place))
    assert rows_in(place) == rows_of(tmp_path / "whole.parquet")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("recs.db", "cannot be read: write sqlite:///FILE"),
        ("nosuch://u:secret@h/d", "cannot be read"),
        ("postgresql://u:secret/x@h:p/d", "cannot be read"),
        ("mysql+pymysql://u:secret@h/d", "a package that is not installed"),
    ],
)
def test_a_database_that_cannot_be_opened_is_refused_without_its_password(url: str, message: str) -> None:
    place = BatchTable(url)
    with pytest.raises(DataError, match=message) as failure, opened_batch(place):
        pass
    with pytest.raises(DataError, match=message), sink_for(place, Channel.EMAIL, resume=False):
        pass
    assert "secret" not in str(failure.value)


def test_a_name_that_is_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="names no table"):
        BatchTable("sqlite://", "recs; drop table x")


# --- kill -9 ------------------------------------------------------------------------------------------------

SCORING = """
    import itertools, os, sys, tempfile, threading, traceback
    sys.path[:0] = {paths!r}
    import ibis.backends.duckdb
    import test_batch_parts as t
    from pathlib import Path
    from consentier.serving import batch
    from consentier.serving.batch_table import BatchTable

    batch._PERSONS_PER_PART = 1
    whole = batch._Batch.part

    def score(where, how, parts):
        begun = itertools.count()
        def part(self, number):
            if next(begun) >= int(parts):
                os.write(1, b"waiting\\n")  # as one, also where two threads say it
                threading.Event().wait()
            return whole(self, number)
        batch._Batch.part = part
        print("ready", os.getpid(), flush=True)
        out = BatchTable(where) if "://" in where else Path(where)
        t.score(out, at=t.AT if how == "new" else None, resume=True)

    for line in sys.stdin:
        tempfile.tempdir, *arguments = line.split()
        child = os.fork()
        if child == 0:
            try:
                score(*arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Scores once for each line that it reads, in a process of its own: what that needs is imported once.

A process begins no more than so many parts, and then waits to be killed: before it is done, however busy the
machine is.
"""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What starts processes that score, and kills them."""

    process: subprocess.Popen[str]

    def run(self, where: str, how: str, parts: int, kill_after: float | None) -> int:
        """Score so many parts at the most; kill it then, or so long after it began. Says how it ended."""
        # What it puts into temporary files it cannot remove once it is killed.
        with tempfile.TemporaryDirectory(prefix="consentier-tests-") as folder:
            assert self.process.stdin is not None
            print(folder, where, how, parts, file=self.process.stdin, flush=True)
            child = int(self._read("ready"))
            if parts < CUSTOMERS:
                if kill_after is None:
                    self._read("waiting")
                else:
                    time.sleep(kill_after)
                os.kill(child, signal.SIGKILL)
            return int(self._read("ended"))

    def _read(self, event: str) -> str:
        """What is told of the next such event."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told, _, rest = line.strip().partition(" ")
            assert told in (event, "waiting"), line
            if told == event:
                return rest
        raise AssertionError("the process that starts others has ended")


@pytest.fixture(scope="module")
def scoring() -> Iterator[Scoring]:
    here = Path(__file__).parent
    program = textwrap.dedent(SCORING).format(paths=[str(here), str(here.parent / "support")])
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Scoring(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # what waits, too, after a test that failed


def kill_and_resume(scoring: Scoring, where: str, written: Callable[[], int]) -> None:
    """Kill the batch again and again, each time a little after it made progress; then let it end."""
    chance = random.Random(3)
    ends = []
    for parts, wait in ((0, chance.uniform(0, 0.3)), *((chance.randint(8, 16), None) for _ in range(3))):
        ends.append(scoring.run(where, "old" if written() else "new", parts, wait))
    assert ends == [-signal.SIGKILL] * 4
    assert written()
    assert scoring.run(where, "old", CUSTOMERS, None) == 0


def test_killed_at_any_moment_and_resumed_a_directory_holds_the_same_bytes(
    scoring: Scoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_PERSONS_PER_PART", 1)
    score(tmp_path / "whole")
    out = tmp_path / "parts"
    kill_and_resume(scoring, str(out), lambda: len(list(out.glob("*.json"))))
    assert content(out) == content(tmp_path / "whole")


def test_killed_at_any_moment_and_resumed_a_table_holds_the_same_rows(
    scoring: Scoring, tmp_path: Path
) -> None:
    score(tmp_path / "whole.parquet")
    place = BatchTable(f"sqlite:///{tmp_path / 'recs.db'}")

    def jobs() -> int:
        if not (tmp_path / "recs.db").exists():
            return 0
        engine = sa.create_engine(place.url)
        try:
            with engine.connect() as connection:
                if not sa.inspect(engine).has_table("recommendations_jobs"):
                    return 0
                return int(connection.scalar(sa.text("SELECT count(*) FROM recommendations_jobs")) or 0)
        finally:
            engine.dispose()

    kill_and_resume(scoring, place.url, jobs)
    assert rows_in(place) == rows_of(tmp_path / "whole.parquet")
