"""Handing a batch over: what is refused as no scored file, what is counted, and what is written."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import Row, consent, day, event, link, order, shop
from typer.testing import CliRunner

from consentier.cli.deliver import deliver as deliver_command
from consentier.cli.output import guarded
from consentier.consent import Channel, ConsentRecord, Ledger, Policy, Tier
from consentier.errors import DataError
from consentier.features.gate import ledger_of
from consentier.serving.answer import Answer, Basis
from consentier.serving.batch_file import SCORED, BatchFacts, opened_batch, written_table
from consentier.serving.deliver import DeliverySummary, deliver
from consentier.serving.revocation import Revocations, revoke

AT, NOW = day(10), day(20)
POLICY = Policy.default()
FACTS = BatchFacts(Channel.EMAIL, POLICY.version, AT)
CRM, POPULAR = (f"sha256:{letter * 64}" for letter in "ab")


def answer(tier: Tier, items: int, filled: int = 0) -> Answer:
    basis = Basis(
        reason="", reasons=(), state="crm", side="crm", policy_version=POLICY.version, bundle_digest=CRM,
        fill_digest=POPULAR, sources=(), input_digests={}, ledger_position=None, contact=None,
        unknown_items=0, filled=filled, at=None,
    )  # fmt: skip
    names = tuple(f"item-{number}" for number in range(items))
    return Answer(names, tuple(1.0 / (1 + number) for number in range(items)), tier, basis)


def scored_items(found: Answer) -> int:
    return 0 if found.tier is Tier.POPULAR else len(found.items) - found.basis.filled


def write(
    path: Path, lists: dict[str, Answer], facts: BatchFacts = FACTS, rows_per_group: int | None = None
) -> Path:
    rows = [
        {
            facts.key: person, "rank": rank, "item_id": item, "score": score, "tier": str(found.tier),
            "at": facts.at, "policy_version": found.basis.policy_version,
            "bundle_digest": CRM if rank <= scored_items(found) else POPULAR,
            "devices": 1 if found.tier is Tier.FUSED else None,
        }
        for person, found in lists.items()
        for rank, (item, score) in enumerate(zip(found.items, found.scores, strict=True), start=1)
    ]  # fmt: skip
    schema = facts.schema(SCORED)
    with written_table(path, schema) as file:
        file.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=rows_per_group)
    return path


def permitting(*customers: str, **more: Any) -> Ledger:
    """Customers who permit CRM use and e-mail, from the beginning; and records that are not usual."""
    rows = [consent(who, what) for who in customers for what in ("crm", "contact:email")]
    return ledger_of(shop(consents=[*rows, *more.pop("said", [])], **more))


def hand_over(path: Path, ledger: Ledger, **options: Any) -> tuple[DeliverySummary, list[Row]]:
    out = path.with_name("out.parquet")
    given_options = {
        "policy": POLICY, "revocations": Revocations.open(path.parent), "clock": lambda: NOW,
        "show_progress": False, **options,
    }  # fmt: skip
    summary = deliver(path, ledger, out=out, **given_options)
    return summary, pq.read_table(out).to_pylist()


def test_what_is_held_back_is_counted_by_reason_and_the_rest_stays_as_it_was(tmp_path: Path) -> None:
    people = ("c1", "c2", "c3", "c4", "c5", "c6")
    path = write(tmp_path / "scored.parquet", {who: answer(Tier.CRM, 3) for who in people})
    ledger = permitting(
        *people,
        said=[
            consent("c2", "contact:email", "withdrawn", 15),
            consent("c3", "crm", "withdrawn", 15),
            consent("c4", "crm", "objected", 15),
            consent("c5", "crm", "withdrawn", 12),
            consent("c5", "crm", "granted", 13),
        ],
    )
    summary, rows = hand_over(path, ledger)
    assert summary == DeliverySummary(
        rows=6,
        persons=2,
        dropped_rows=12,
        dropped={
            "no contact permission for email": 1,
            "the crm tier may not answer any more": 2,
            "what the list rests on may not be used any more": 1,
        },
    )
    expected = [row for row in pq.read_table(path).to_pylist() if row["customer_id"] in ("c1", "c6")]
    assert rows == [{name: row[name] for name in row if name != "devices"} for row in expected]


def test_a_list_with_a_stopped_bundle_behind_any_row_is_held_back_whole(tmp_path: Path) -> None:
    path = write(
        tmp_path / "scored.parquet", {"c1": answer(Tier.CRM, 3), "c2": answer(Tier.CRM, 3, filled=1)}
    )
    ledger = permitting("c1", "c2")
    revoke(tmp_path, [POPULAR], NOW, "withdrawal")
    summary, rows = hand_over(path, ledger)
    assert {row["customer_id"] for row in rows} == {"c1"}
    assert summary.dropped == {"a bundle is past its withdrawal deadline": 1}
    (tmp_path / "revocations.json").write_text("{")
    summary, rows = hand_over(path, ledger)
    assert (rows, summary.persons) == ([], 0)
    assert "revocations.json" in next(iter(summary.dropped))


def test_popular_lists_need_contact_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.parquet", {who: answer(Tier.POPULAR, 2) for who in ("c1", "c2", "c3")})
    said = [consent("c1", "contact:email"), consent("c2", "crm"), *(consent("c3", "contact:email"),)]
    summary, rows = hand_over(path, permitting(said=[*said, consent("c3", "crm", "objected", 15)]))
    assert {row["customer_id"] for row in rows} == {"c1"}
    assert {row["bundle_digest"] for row in rows} == {POPULAR}
    assert summary.dropped == {
        "no contact permission for email": 1, "the popular tier may not answer any more": 1,
    }  # fmt: skip


def test_the_time_of_sending_is_never_in_the_past(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.parquet", {"c1": answer(Tier.CRM, 1)})
    ledger = permitting("c1", said=[consent("c1", "contact:email", "withdrawn", 15)])
    assert hand_over(path, ledger, at=day(11))[1] == []
    assert hand_over(path, permitting("c1"), at=day(11))[0].rows == 1
    ends = permitting("c2", said=[consent("c1", what, until=25) for what in ("crm", "contact:email")])
    assert hand_over(path, ends)[0].rows == 1
    assert hand_over(path, ends, at=day(26))[0].rows == 0
    with pytest.raises(ValueError, match="no time zone"):
        hand_over(path, ledger, at=dt.datetime(2026, 1, 1))


def test_a_withdrawal_during_the_hand_over_counts_from_then_on(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.parquet", {who: answer(Tier.CRM, 1) for who in ("c1", "c2", "c3")})
    times = iter([day(14), day(14), day(14), day(16)])
    ledger = permitting(
        "c1", "c2", "c3", said=[consent(who, "crm", "withdrawn", 15) for who in ("c1", "c2", "c3")]
    )
    _, rows = hand_over(path, ledger, clock=lambda: next(times))
    assert [row["customer_id"] for row in rows] == ["c1", "c2"]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), max_size=9), pieces=st.integers(1, 6), groups=st.integers(1, 6),
    held=st.sets(st.integers(0, 8)),
)  # fmt: skip
def test_persons_are_whole_however_the_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], pieces: int, groups: int, held: set[int]
) -> None:
    path = tmp_path_factory.mktemp("batch") / "scored.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consentier.serving.batch_file._ROWS_PER_READ", pieces)
        lists = {f"c{number}": answer(Tier.CRM, size) for number, size in enumerate(sizes)}
        write(path, lists, rows_per_group=groups)
        allowed = [f"c{number}" for number in range(len(sizes)) if number not in held]
        summary, rows = hand_over(path, permitting(*allowed))
    scored = pq.read_table(path).drop_columns(["devices"]).to_pylist()
    assert rows == [row for row in scored if row["customer_id"] in allowed]
    assert (summary.rows, summary.persons) == (len(rows), len(allowed))
    assert summary.dropped_rows == len(scored) - len(rows)


def test_a_failure_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.parquet", {"c1": answer(Tier.CRM, 2)})
    (tmp_path / "out.parquet").write_bytes(b"old")

    class Fails(Ledger):
        def resolve(self, **question: Any) -> Any:
            raise OSError("the connection is gone")

    with pytest.raises(OSError, match="connection is gone"):
        hand_over(path, Fails())
    assert (tmp_path / "out.parquet").read_bytes() == b"old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.parquet", "scored.parquet"]


# --- files that are refused ---------------------------------------------------------------------------------


def refused(path: Path, match: str, **options: Any) -> None:
    before = {each: each.read_bytes() for each in path.parent.iterdir() if each.is_file()}
    with pytest.raises(DataError, match=match) as raised:
        hand_over(path, permitting("c1", "c2"), **options)
    assert str(path) in str(raised.value) or "out.parquet" in str(raised.value)
    assert {each: each.read_bytes() for each in path.parent.iterdir() if each.is_file()} == before


def test_what_is_no_scored_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    refused(tmp_path / "missing.parquet", "no such file; 'consentier score' writes one")
    refused(tmp_path, "has no batch.json")
    (tmp_path / "text.parquet").write_text("PAR1 and nothing more")
    refused(tmp_path / "text.parquet", "is no Parquet file")
    table = pa.table({"customer_id": ["c1"], "item_id": ["a"]})
    pq.write_table(table, tmp_path / "foreign.parquet")
    refused(tmp_path / "foreign.parquet", "does not say for which channel")
    path = write(tmp_path / "scored.parquet", {"c1": answer(Tier.CRM, 2)})
    hand_over(path, permitting("c1"))
    refused(tmp_path / "out.parquet", "is the scored file itself")
    (tmp_path / "out.parquet").rename(tmp_path / "sent.parquet")
    refused(tmp_path / "sent.parquet", "was delivered already")


def test_a_broken_page_is_a_data_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.parquet", {f"c{number}": answer(Tier.CRM, 9) for number in range(9)})
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    refused(path, "cannot be read to its end")


def test_another_policy_or_a_time_to_come_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.parquet", {"c1": answer(Tier.CRM, 2)})
    refused(path, "'mine' is in force", policy=Policy("mine", POLICY.matrix))
    refused(path, "is yet to come", clock=lambda: day(9))


def altered(path: Path, change: Any) -> Path:
    """A scored file with other metadata, or none."""
    table = pq.read_table(path)
    values = json.loads(table.schema.metadata[b"consentier"])
    changed = change(values)
    changed = values if changed is None else changed
    pq.write_table(
        table.replace_schema_metadata({b"consentier": json.dumps(changed)}), path.with_name("altered.parquet")
    )
    return path.with_name("altered.parquet")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda values: values.update(channel="print", policy_version=7), "contradict each other"),
        (lambda values: values.update(channel="shop"), "contradict each other|column visitor_id"),
        (lambda values: values.update(channel="shop", side="online", key="visitor_id"), "visitor_id is"),
        (lambda values: values.update(channel="fax"), "metadata were altered"),
        (lambda values: values.update(kind="draft"), "contradict each other"),
        (lambda values: values.update(format=2), "has format 2"),
        (lambda values: values.update(at="2026-01-11"), "metadata were altered"),
        (lambda values: values.update(at="0001-01-01T00:00:00+14:00"), "metadata were altered"),
        (lambda values: values.update(at=day(9).isoformat()), "row 0, column at: is not what"),
        (lambda values: values.pop("key"), "metadata were altered"),
        (lambda values: [values], "metadata were altered"),
    ],
)  # fmt: skip
def test_altered_metadata_are_refused(tmp_path: Path, change: Any, match: str) -> None:
    path = write(tmp_path / "scored.parquet", {"c1": answer(Tier.CRM, 2)})

    def returned(values: Row) -> Any:
        result = change(values)
        return result if isinstance(result, list) else None

    refused(altered(path, returned), match)


def with_column(name: str, values: list[Any] | None) -> pa.Table:
    """Four rows of two customers, with one column replaced or left out."""
    columns: dict[str, Any] = {
        "customer_id": ["c1", "c1", "c2", "c2"], "rank": [1, 2, 1, 2], "item_id": list("abab"),
        "score": [1.0, 0.5] * 2, "tier": ["crm"] * 4, "at": [AT] * 4, "bundle_digest": [CRM] * 4,
        "policy_version": [POLICY.version] * 4, "devices": [None] * 4,
    }  # fmt: skip
    schema = FACTS.schema("recommendations")
    if values is None:
        position = schema.get_field_index(name)
        return pa.table(columns, schema=schema).remove_column(position)
    columns[name] = values
    return pa.table(columns, schema=schema)


@pytest.mark.parametrize(
    ("name", "values", "match"),
    [
        ("tier", None, "column tier is missing"),
        ("customer_id", ["c1", "c1", "c2", None], "row 3, column customer_id: has no value"),
        ("customer_id", ["c1", "c2", "c1", "c2"], "row 1, column rank: is not 1"),
        ("customer_id", ["c2", "c2", "c1", "c1"], "row 2, column customer_id: is not in ascending order"),
        ("rank", [1, 2, 1, 3], "row 3, column rank: is not 2"),
        ("rank", [0, 1, 1, 2], "row 0, column rank: is not 1"),
        ("item_id", ["a", None, "a", "b"], "row 1, column item_id: has no value"),
        ("tier", ["crm", "crm", "best", "best"], "row 2, column tier: is 'best', which is no tier"),
        ("tier", ["crm", "crm", "none", "none"], "row 2, column tier: is 'none'"),
        ("tier", ["crm", "popular", "crm", "crm"], "row 1, column tier: changes within a person"),
        ("tier", ["fused", "fused", "crm", "crm"], "row 0, column devices: must have a value"),
        ("devices", [None, None, 1, 1], "row 2, column devices: must have a value for the fused tier"),
        ("at", [AT, AT, AT, NOW], "row 3, column at: is not what the file's metadata say"),
        ("at", [AT, AT, AT, None], "row 3, column at: has no value"),
        ("bundle_digest", [CRM, CRM, CRM, None], "row 3, column bundle_digest: has no value"),
        ("policy_version", [POLICY.version] * 3 + ["x"], "row 3, column policy_version: is not what"),
    ],
)
def test_rows_that_score_would_not_write_are_refused_by_row_and_column(
    tmp_path: Path, name: str, values: list[Any] | None, match: str
) -> None:
    pq.write_table(with_column(name, values), tmp_path / "scored.parquet")
    refused(tmp_path / "scored.parquet", match)


def test_rows_are_numbered_through_all_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consentier.serving.batch_file._ROWS_PER_READ", 1)
    pq.write_table(with_column("rank", [1, 2, 1, 3]), tmp_path / "scored.parquet")
    refused(tmp_path / "scored.parquet", "row 3, column rank: is not 2")
    pq.write_table(with_column("customer_id", ["c1", "c2", "c2", "c1"]), tmp_path / "scored.parquet")
    refused(tmp_path / "scored.parquet", "row 1, column rank")


def test_wrong_types_and_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scored.parquet"
    plain = with_column("tier", ["crm"] * 4)
    position = plain.schema.get_field_index("rank")
    pq.write_table(plain.set_column(position, "rank", plain["rank"].cast(pa.int64())), path)
    refused(path, "column rank holds int64, not int32")
    pq.write_table(plain.append_column("email", pa.array(["x"] * 4)), path)
    refused(path, "columns must be customer_id, rank")


def test_metadata_come_back_as_they_were_written(tmp_path: Path) -> None:
    facts = BatchFacts(Channel.SHOP, "é", AT)
    with opened_batch(write(tmp_path / "scored.parquet", {"v1": answer(Tier.ONLINE, 2)}, facts)) as batch:
        assert (batch.facts, batch.rows, batch.facts.key) == (facts, 2, "visitor_id")


# --- the command --------------------------------------------------------------------------------------------

app = typer.Typer()
app.command()(guarded(deliver_command))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A shop's tables: c1 and c2 permit e-mail and CRM, c2 withdrew."""
    folder = tmp_path / "shop"
    folder.mkdir()
    tables = shop(
        events=[event("v1", "a", 1)],
        orders=[order("c1", "a", 1)],
        identities=[link("v1", "c1")],
        consents=[
            *(consent(who, what) for who in ("c1", "c2") for what in ("crm", "contact:email")),
            consent("c2", "contact:email", "withdrawn", 15),
        ],
    )
    for name in ("events", "orders", "consents", "identities"):
        pq.write_table(getattr(tables, name), folder / f"{name}.parquet")
    return folder


def test_the_command_writes_the_file_and_says_what_was_held_back(tmp_path: Path, data: Path) -> None:
    path = write(tmp_path / "scored.parquet", {who: answer(Tier.CRM, 2) for who in ("c1", "c2")})
    (tmp_path / "bundles").mkdir()
    options = ["--bundles", str(tmp_path / "bundles"), "--out", str(tmp_path / "out.parquet")]
    ran = CliRunner().invoke(app, [str(path), "--data", str(data), *options, "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout) == {
        "out": str(tmp_path / "out.parquet"), "rows": 2, "persons": 1, "dropped_rows": 2,
        "dropped": {"no contact permission for email": 1},
    }  # fmt: skip
    assert pq.read_table(tmp_path / "out.parquet")["customer_id"].to_pylist() == ["c1", "c1"]
    told = CliRunner().invoke(app, [str(path), "--data", str(data), *options])
    assert "held back: no contact permission for email" in told.stdout
    assert "2 rows written to" in told.stdout


def test_the_command_asks_the_ledger_at_a_url_as_it_stands_now(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.parquet", {who: answer(Tier.CRM, 2) for who in ("c1", "c2")})
    url = f"sqlite:///{tmp_path / 'consents.db'}"
    options = [str(path), "--ledger", url, "--bundles", str(tmp_path), "--out", str(tmp_path / "out.parquet")]
    refused_first = CliRunner().invoke(app, options)
    assert refused_first.exit_code == 2  # there is no such ledger, and none is made
    assert not (tmp_path / "consents.db").exists()
    with Ledger.open(url) as ledger:
        ledger.append(
            ConsentRecord(**consent(who, what)) for who in ("c1", "c2") for what in ("crm", "contact:email")
        )
        assert CliRunner().invoke(app, options).exit_code == 0
        assert pq.read_table(tmp_path / "out.parquet").num_rows == 4
        ledger.append([ConsentRecord(**consent("c1", "crm", "withdrawn", 15))])
    assert CliRunner().invoke(app, options).exit_code == 0
    assert pq.read_table(tmp_path / "out.parquet")["customer_id"].to_pylist() == ["c2", "c2"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--ledger"),
        (("--data", "shop", "--ledger", "sqlite:///x.db"), "--ledger"),
        (("--data", "missing"), "missing"),
    ],
)
def test_the_command_refuses_wrong_input(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    path = write(tmp_path / "scored.parquet", {"c1": answer(Tier.CRM, 2)})
    ran = CliRunner().invoke(
        app, [str(path), *options, "--bundles", str(tmp_path), "--out", str(tmp_path / "out.parquet")]
    )
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert not (tmp_path / "out.parquet").exists()


def test_the_command_needs_the_bundles_that_the_deadlines_are_of(tmp_path: Path, data: Path) -> None:
    path = write(tmp_path / "scored.parquet", {"c1": answer(Tier.CRM, 2)})
    common = [str(path), "--data", str(data), "--out", str(tmp_path / "out.parquet")]
    assert "--bundles" in CliRunner().invoke(app, common).stderr
    wrong = CliRunner().invoke(app, [*common, "--bundles", "nowhere"], env={"COLUMNS": "200"})
    assert wrong.exit_code == 2
    assert "is no directory" in wrong.stderr
