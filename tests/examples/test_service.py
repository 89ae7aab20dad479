"""The reference service over HTTP, in this process: what each permission gets, and what a fault does."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import CATALOGUE, ITEMS, bundles, write_linear
from examples.service.app import Parts, create_app, opened
from examples.service.demo import add_demo
from examples.service.shop import Product, Regular, Shop
from fastapi.testclient import TestClient

from consentier import Event
from consentier.consent import Tier
from consentier.errors import LedgerError, LedgerTimeout
from consentier.models.bundle import open_bundle
from consentier.serving.loading import TIERS

VISITOR, CUSTOMER = "v-5ab1c0de", "c-77e0beef"
IDS = {"visitor_id": VISITOR, "customer_id": CUSTOMER}


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    """The parts over a copy of the small bundles, with a ledger and stores on disk."""
    shutil.copytree(bundles(), tmp_path / "bundles")
    with opened(tmp_path / "bundles", tmp_path / "state", CATALOGUE) as found:
        yield found


@pytest.fixture
def client(parts: Parts) -> Iterator[TestClient]:
    """Somebody who calls the service."""
    with TestClient(create_app(parts)) as found:
        yield found


def done(response: Any) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def ask(client: TestClient, **question: Any) -> Any:
    return done(client.post("/recommendations", json={**IDS, "session": ITEMS[:1], "n": 4, **question}))


def decide(client: TestClient, source: str, state: str) -> Any:
    who = {"visitor_id": VISITOR} if source == "online" else {"customer_id": CUSTOMER}
    return done(client.put("/permissions", json={**who, "state": state}))


def happen(client: TestClient, source: str, *items: str) -> list[bool]:
    who = {"visitor_id": VISITOR} if source == "online" else {"customer_id": CUSTOMER}
    return [done(client.post("/events", json={**who, "item_id": item}))["stored"] for item in items]


def test_each_permission_gets_its_tier_and_a_withdrawal_takes_it_at_the_next_request(
    client: TestClient,
) -> None:
    assert happen(client, "online", ITEMS[1]) == [False]
    assert ask(client)["tier"] == "session"
    assert ask(client)["basis"]["input_digests"] == {}
    assert decide(client, "online", "granted")["recorded"] == 1
    assert happen(client, "online", ITEMS[2], ITEMS[3]) == [True, True]
    assert ask(client)["tier"] == "online"
    assert ask(client, channel="email")["tier"] == "popular"
    assert happen(client, "crm", ITEMS[4]) == [False]
    decide(client, "crm", "granted")
    assert happen(client, "crm", ITEMS[4]) == [True]
    assert ask(client, channel="email")["tier"] == "crm"
    assert ask(client, logged_in=True)["tier"] == "online"
    assert done(client.post("/links", json=IDS)) == {"linked": True}
    assert ask(client)["tier"] == "online"  # joined on the shop's page only while logged in
    assert ask(client, logged_in=True)["tier"] == "fused"
    assert ask(client, channel="email")["tier"] == "fused"
    withdrawn = decide(client, "crm", "withdrawn")
    assert (withdrawn["profile_rows_purged"], withdrawn["links_dissolved"]) == (1, 1)
    assert ask(client, logged_in=True)["tier"] == "online"
    assert ask(client, channel="email")["tier"] == "popular"
    assert decide(client, "online", "withdrawn")["profile_rows_purged"] == 2
    assert ask(client, logged_in=True)["tier"] == "session"


def test_a_permission_granted_anew_brings_back_nothing(client: TestClient) -> None:
    for state in ("granted", "withdrawn", "granted"):
        decide(client, "crm", state)
        if state == "granted":
            assert ask(client, channel="email")["tier"] == "popular"
            happen(client, "crm", ITEMS[4])
    assert ask(client, channel="email")["tier"] == "crm"


def test_a_login_without_both_permissions_is_not_noted(client: TestClient, parts: Parts) -> None:
    decide(client, "online", "granted")
    assert done(client.post("/links", json=IDS)) == {"linked": False}
    assert parts.ledger.links_of(VISITOR, kind="visitor") == []


@pytest.mark.parametrize(
    ("said", "tier"), [("none", "session"), ("crm", "session"), ("online", "online"), ("both", "online")]
)
def test_a_permission_in_the_question_narrows_and_never_widens(
    client: TestClient, said: str, tier: str
) -> None:
    assert ask(client, permission=said)["tier"] == "session"
    decide(client, "online", "granted")
    happen(client, "online", ITEMS[2])
    assert ask(client, permission=said)["tier"] == tier


def test_the_answer_says_why_and_what_it_rests_on(client: TestClient) -> None:
    answer = ask(client)
    assert len(answer["items"]) == 4
    assert answer["items"][0]["why"].startswith("Because you are looking at ")
    assert answer["basis"]["reason"] == "no permission: answered from the running session"
    assert answer["basis"]["bundle_digest"] == open_bundle(bundles() / "session").digest
    assert answer["main_parameters"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/recommendations", {"n": 0}),
        ("/recommendations", {"n": 101}),
        ("/recommendations", {"channel": "radio"}),
        ("/recommendations", {"permission": "all"}),
        ("/recommendations", {"sesion": ["x"]}),
        ("/recommendations", {"session": ["x"] * 201}),
        ("/recommendations", {"logged_in": "maybe"}),
        ("/events", {"item_id": "x"}),
        ("/events", {**IDS, "item_id": "x"}),
        ("/events", {"visitor_id": VISITOR, "item_id": ""}),
        ("/events", {"visitor_id": VISITOR, "item_id": "x", "ts": "2026-01-01T00:00:00"}),
        ("/events", {"visitor_id": VISITOR, "item_id": "x", "quantity": -1}),
        ("/links", {"visitor_id": VISITOR}),
    ],
)
def test_what_is_no_question_is_refused(client: TestClient, path: str, body: dict[str, Any]) -> None:
    assert client.post(path, json=body).status_code == 422


@pytest.mark.parametrize("body", [{"state": "granted"}, {**IDS, "state": "granted"}, {"state": "maybe"}])
def test_what_is_no_decision_is_refused(client: TestClient, parts: Parts, body: dict[str, Any]) -> None:
    assert client.put("/permissions", json=body).status_code == 422
    assert parts.ledger.position == 0


def test_an_event_of_tomorrow_is_not_kept(client: TestClient) -> None:
    decide(client, "online", "granted")
    tomorrow = (dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).isoformat()
    told = done(client.post("/events", json={"visitor_id": VISITOR, "item_id": ITEMS[0], "ts": tomorrow}))
    assert (told["stored"], told["reason"]) == (False, "the event lies in the future")


class Down:
    """A ledger that cannot be reached, and quotes whom it was asked about."""

    answers_within = 0.0

    def __getattr__(self, name: str) -> Any:
        raise LedgerError(f"no connection while asked about {VISITOR}")


def test_without_its_ledger_the_service_answers_as_without_permission(
    client: TestClient, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    decide(client, "online", "granted")
    down: Any = Down()
    current = dataclasses.replace(parts.recommender.current, ledger=down)
    parts.recommender._current = current
    with TestClient(create_app(dataclasses.replace(parts, ledger=down, registry=fresh()))) as broken:
        answer = ask(broken)
        assert answer["tier"] == "session"
        assert "ledger: failed with LedgerError" in answer["basis"]["reasons"]
        refused = broken.put("/permissions", json={"visitor_id": VISITOR, "state": "withdrawn"})
        assert refused.status_code == 503
        assert refused.json() == {"detail": "not done: LedgerError; try again"}
        assert VISITOR not in refused.text
        assert done(broken.get("/ready"))["ledger"] == "failing"
        text = broken.get("/metrics").text
    assert 'reason="ledger_fault",side="online",tier="session"} 1.0' in text
    assert VISITOR not in caplog.text


def test_a_scrape_asks_no_ledger_and_a_probe_waits_as_long_as_a_request(parts: Parts) -> None:
    class Late:
        answers_within = 0.0
        asked = 0

        def resolve(self, **question: Any) -> Any:
            self.asked += 1
            raise LedgerTimeout

    ledger: Any = Late()
    parts.recommender._current = dataclasses.replace(parts.recommender.current, ledger=ledger)
    with TestClient(create_app(dataclasses.replace(parts, registry=fresh()))) as served:
        assert 'consentier_tier_loaded{tier="fused"} 1.0' in served.get("/metrics").text
        assert ledger.asked == 0
        ready = done(served.get("/ready"))
        assert (ready["ready"], ready["ledger"]) == (True, "failing")
        assert ledger.asked == 1


def fresh() -> Any:
    from prometheus_client import CollectorRegistry

    return CollectorRegistry()


def test_metrics_name_nobody_and_count_every_answer(client: TestClient) -> None:
    decide(client, "online", "granted")
    happen(client, "online", ITEMS[2])
    for channel in ("shop", "email", "email"):
        ask(client, channel=channel, logged_in=True)
    text = client.get("/metrics").text
    for name in (VISITOR, CUSTOMER, *ITEMS):
        assert name not in text
    assert 'consentier_answer_seconds_count{reason="permitted",side="online",tier="online"} 1.0' in text
    assert 'consentier_answer_seconds_count{reason="permitted",side="crm",tier="popular"} 2.0' in text
    for tier in TIERS:
        assert f'consentier_tier_loaded{{tier="{tier}"}} 1.0' in text


def test_a_new_bundle_is_used_and_a_removed_one_is_told(client: TestClient, parts: Parts) -> None:
    assert done(client.get("/health")) == {"status": "ok"}
    before = done(client.get("/ready"))
    assert set(before["tiers"]) == {str(tier) for tier in TIERS}
    shutil.rmtree(parts.bundles / "session")
    digest = write_linear(parts.bundles / "session", Tier.SESSION, seed=70)
    shutil.rmtree(parts.bundles / "crm")
    parts.recommender.check()
    after = done(client.get("/ready"))
    assert after["tiers"]["session"] == digest == ask(client)["basis"]["bundle_digest"]
    assert "crm" in after["problems"]
    assert 'consentier_tier_loaded{tier="crm"} 0.0' in client.get("/metrics").text


def test_a_service_whose_bundles_are_gone_is_not_ready_but_lives(client: TestClient, parts: Parts) -> None:
    for tier in TIERS:
        shutil.rmtree(parts.bundles / tier)
    parts.recommender.check()
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    assert ask(client)["tier"] == "none"


def test_answers_are_not_kept_by_caches_and_no_path_holds_an_id(client: TestClient) -> None:
    assert client.post("/recommendations", json={}).headers["cache-control"] == "no-store"
    paths = done(client.get("/openapi.json"))["paths"]
    assert set(paths) == {
        "/recommendations", "/events", "/permissions", "/links", "/health", "/ready", "/metrics"
    }  # fmt: skip
    operations = [operation for path in paths.values() for operation in path.values()]
    assert not [operation for operation in operations if operation.get("parameters")]
    assert all(operation["summary"] for operation in operations)


# ---- The demonstration -------------------------------------------------------------------------------------


@pytest.fixture
def demo(parts: Parts) -> Iterator[TestClient]:
    """The service with the shop page."""
    then = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
    viewed = tuple(Event(item, ts=then + dt.timedelta(days=day)) for day, item in enumerate(ITEMS[:3]))
    regular = Regular(viewed, (Event(ITEMS[4], ts=then, event_type="order"),), {"region": "north"})
    products = {item: Product(item, f"the {item}", "books", 1.0) for item in ITEMS[:12]}
    app = create_app(parts)
    add_demo(app, parts, Shop(parts.bundles, products, [regular]))
    with TestClient(app) as found:
        yield found


def test_a_regular_customer_is_known_and_a_new_one_is_not(demo: TestClient, parts: Parts) -> None:
    new = done(demo.post("/demo/persons", json={"kind": "new"}))
    regular = done(demo.post("/demo/persons", json={"kind": "regular"}))
    again = done(demo.post("/demo/persons", json={"kind": "regular"}))
    assert len({person["visitor_id"] for person in (new, regular, again)}) == 3
    assert (regular["viewed"], regular["bought"]) == (3, 1)
    tiers = []
    for person in (new, regular):
        ids = {"visitor_id": person["visitor_id"], "customer_id": person["customer_id"]}
        question = {**ids, "session": ITEMS[:1], "logged_in": person["logged_in"]}
        tiers.append(done(demo.post("/recommendations", json=question))["tier"])
    assert tiers == ["session", "fused"]
    stored = parts.online[regular["visitor_id"]]
    newest = max(event.ts for event in stored if event.ts is not None)
    assert dt.timedelta(0) < dt.datetime.now(dt.UTC) - newest < dt.timedelta(hours=2)


def test_the_page_loads_nothing_from_elsewhere(demo: TestClient) -> None:
    page = demo.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in ("style.css", "shop.js", "pictures.js", "icon.svg"):
        text = demo.get(f"/page/{name}").text
        assert "https://" not in text
        assert text.count("http://") == text.count("http://www.w3.org/2000/svg")
    assert "http" not in page.text
    assert len(done(demo.get("/demo/products"))) == 12
