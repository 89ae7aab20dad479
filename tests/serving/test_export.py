"""Data-subject access: what an export holds, and of whom."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from engines import ITEMS, bundles
from shops import consent, day, event, link, order, shop, usage

from consentier.consent import Ledger
from consentier.consent.keyring import Keyring
from consentier.errors import AuditError
from consentier.features.gate import ledger_of
from consentier.features.tables import ShopTables
from consentier.serving import Event, Recommender, Request
from consentier.serving.audit import JsonLinesAudit
from consentier.serving.data_subject_export import AuditLog, export_subject
from consentier.serving.profile_store import SqliteProfiles
from consentier.training.lineage import Lineage

AT = day(20)


@pytest.fixture
def tables() -> ShopTables:
    """c-1 uses v-1 and v-2; v-3 is shared by c-1 and c-2; v-4 never permitted anything."""
    return shop(
        events=[event(visitor, f"seen-on-{visitor}", 5) for visitor in ("v-1", "v-2", "v-3", "v-4")],
        orders=[order("c-1", "bought-by-c-1", 5), order("c-2", "bought-by-c-2", 5)],
        product_usage=[usage("c-1", "used-by-c-1", 6)],
        identities=[*(link(f"v-{number}", "c-1") for number in (1, 2, 3, 4)), link("v-3", "c-2")],
        consents=[
            *(consent(visitor, "online") for visitor in ("v-1", "v-2", "v-3")),
            *(consent(customer, "crm") for customer in ("c-1", "c-2")),
            consent("c-1", "contact:email"),
        ],
    )


@pytest.fixture
def ledger(tables: ShopTables) -> Ledger:
    """The shop's ledger."""
    return ledger_of(tables)


def export(ledger: Ledger, subject: str, at: dt.datetime = AT, **places: Any) -> dict[str, Any]:
    """An export, by the subject's id, after a trip through JSON."""
    kind: Any = "visitor" if subject.startswith("v") else "customer"
    document: dict[str, Any] = json.loads(
        json.dumps(export_subject(subject, kind=kind, ledger=ledger, at=at, **places))
    )
    return document


def test_an_export_holds_records_links_rows_and_devices(ledger: Ledger, tables: ShopTables) -> None:
    found = export(ledger, "c-1", shop=tables)
    own = found["subject"]
    assert (own["id"], own["kind"], found["ledger_position"]) == ("c-1", "customer", ledger.position)
    assert own["permission"] == {"crm": True, "objected": False, "minor": False, "contact": ["email"]}
    assert {record["permission"] for record in own["records"]} == {"crm", "contact:email"}
    assert {row["visitor_id"] for row in own["links"]} == {"v-1", "v-2"}
    assert [row["item_id"] for row in own["tables"]["orders"]] == ["bought-by-c-1"]
    assert [row["item_id"] for row in own["tables"]["product_usage"]] == ["used-by-c-1"]
    assert len(own["tables"]["consents"]) == 2
    assert [device["id"] for device in found["linked_devices"]] == ["v-1", "v-2"]
    assert [device["tables"]["events"][0]["item_id"] for device in found["linked_devices"]] == [
        "seen-on-v-1",
        "seen-on-v-2",
    ]
    text = json.dumps(found)
    for stranger in ("v-3", "v-4", "c-2"):
        assert stranger not in text


def test_a_device_gets_its_own_data_and_no_customers(ledger: Ledger, tables: ShopTables) -> None:
    found = export(ledger, "v-1", shop=tables)
    assert found["linked_devices"] == []
    assert set(found["subject"]["tables"]) == {"events", "consents"}
    assert "bought-by" not in json.dumps(found)
    shared = json.dumps(export(ledger, "v-3", shop=tables))
    assert "seen-on-v-3" in shared
    assert "c-1" not in shared
    assert "c-2" not in shared


def test_a_link_that_ended_is_not_crossed(ledger: Ledger, tables: ShopTables) -> None:
    ended = ledger_of(shop(consents=[consent("v-1", "online", "withdrawn", 10)]))
    ledger.append(ended.records_of("v-1", kind="visitor"))
    assert [device["id"] for device in export(ledger, "c-1", shop=tables)["linked_devices"]] == ["v-2"]
    before = export(ledger, "c-1", day(9), shop=tables)
    assert [device["id"] for device in before["linked_devices"]] == ["v-1", "v-2"]


def test_an_export_holds_stored_profiles(ledger: Ledger, tmp_path: Path) -> None:
    online, crm = SqliteProfiles(tmp_path / "online.db"), SqliteProfiles(tmp_path / "crm.db")
    online.append("v-2", [Event("stored-online", day(5), "view")])
    online.append("v-4", [Event("stored-elsewhere", day(5), "view")])
    crm.append("c-1", [Event("stored-crm", day(5), "order", 2)])
    crm.set_attributes("c-1", {"region": "north"}, at=day(5))
    found = export(ledger, "c-1", profiles={"visitor": online, "customer": crm})
    assert found["subject"]["profile"] == crm.export("c-1")
    assert [device["profile"] for device in found["linked_devices"]] == [[], online.export("v-2")]
    assert "stored-elsewhere" not in json.dumps(found)
    assert "tables" not in found["subject"]


def test_an_export_holds_decisions_under_every_key(ledger: Ledger, tmp_path: Path) -> None:
    keyring = Keyring.ephemeral()
    engine = Recommender.load(
        bundles(),
        ledger=ledger,
        keyring=keyring,
        audit=JsonLinesAudit(tmp_path, keyring),
        clock=lambda: day(11),
    )
    asked: dict[str, Any] = {"online_history": (ITEMS[1],), "crm_history": (ITEMS[2],), "linked": True}
    engine.recommend(Request(visitor_id="v-1", customer_id="c-1", at=day(11), **asked))
    keyring.rotate(dt.datetime.now(dt.UTC))
    engine.recommend(Request(customer_id="c-1", channel="email", at=day(12), **asked))  # type: ignore[arg-type]
    engine.recommend(Request(customer_id="c-2", channel="email", at=day(13), **asked))  # type: ignore[arg-type]
    engine.recommend(Request(visitor_id="v-2", at=day(14), **asked))
    engine.recommend(Request(visitor_id="v-4", session=(ITEMS[1],), at=day(15)))
    log = AuditLog(tmp_path, keyring)
    found = export(ledger, "c-1", audit=log)
    assert [
        (each["at"], each["tier"], each["channel"], each["sources"]) for each in found["subject"]["decisions"]
    ] == [
        (day(11).isoformat(), "fused", "shop", ["crm", "online", "session"]),
        (day(12).isoformat(), "crm", "email", ["crm"]),
    ]
    assert found["subject"]["decisions"][0]["reason"] == (
        "both permissions and a lawful link: answered from online and CRM data together"
    )
    by_device = {device["id"]: device["decisions"] for device in found["linked_devices"]}
    assert {device: [each["tier"] for each in made] for device, made in by_device.items()} == {
        "v-1": ["fused"],
        "v-2": ["online"],
    }
    assert found["unreadable_audit_lines"] == 0
    assert keyring.current_id not in json.dumps(found)
    assert export(ledger, "v-4", audit=log)["subject"]["decisions"] == []
    with pytest.raises(AuditError, match="there is none"):
        export(ledger, "c-1", audit=AuditLog(tmp_path / "absent", keyring))


def test_an_export_names_the_bundles_that_hold_the_subject(ledger: Ledger, tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "lineage.db", Keyring.ephemeral())
    lineage.record("sha256:a", "crm", [("customer", "c-1")], cutoff=day(3), ledger_position=4)
    lineage.record("sha256:b", "online", [("visitor", "v-2")], cutoff=day(3), ledger_position=4)
    found = export(ledger, "c-1", lineage=lineage.bundles_of)
    assert found["subject"]["bundles"] == [
        {"digest": "sha256:a", "tier": "crm", "cutoff": day(3).isoformat(), "ledger_position": 4}
    ]
    assert [[each["tier"] for each in device["bundles"]] for device in found["linked_devices"]] == [
        [],
        ["online"],
    ]


def test_a_stranger_has_an_empty_export(ledger: Ledger, tables: ShopTables) -> None:
    found = export(ledger, "c-9", shop=tables)
    assert found["subject"]["records"] == []
    assert not any(found["subject"]["tables"].values())
    assert found["linked_devices"] == []
    with pytest.raises(ValueError, match="kind must be"):
        export_subject("c-1", kind="cookie", ledger=ledger, at=AT)  # type: ignore[arg-type]
