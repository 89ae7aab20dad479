"""Hostile requests to the reference service: refused in words, and never a fault of the server."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from engines import CATALOGUE, bundles
from examples.service.app import MAX_BODY_BYTES, create_app, opened
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutate_bytes, mutate_json, texts_in

SEEDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "recommendations": [
        ("POST", {"session": ["item-01"], "visitor_id": "v", "customer_id": "c", "n": 3, "channel": "shop"}),
        ("POST", {"permission": "both", "logged_in": True, "exclude": ["item-02"], "placement": "product"}),
    ],
    "events": [
        ("POST", {"visitor_id": "v", "item_id": "item-01", "ts": "2026-06-01T12:00:00Z"}),
        ("POST", {"visitor_id": "v", "item_id": "item-01", "event_type": "view"}),
        ("POST", {"customer_id": "c", "item_id": "item-01", "quantity": 2.5}),
    ],
    "permissions": [("PUT", {"visitor_id": "v", "state": "granted", "evidence": "banner"})],
    "links": [("POST", {"visitor_id": "v", "customer_id": "c"})],
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service with permissions of a visitor and a customer; what it raises is a 500, as it is outside."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copytree(bundles(), folder / "bundles")
    with (
        opened(folder / "bundles", folder / "state", CATALOGUE) as parts,
        TestClient(create_app(parts), raise_server_exceptions=False) as found,
    ):
        for who in ({"visitor_id": "v"}, {"customer_id": "c"}):
            assert found.put("/permissions", json={**who, "state": "granted"}).status_code == 200
        yield found


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(sorted(SEEDS)), random_=st.randoms(use_true_random=False))
def test_no_body_makes_the_service_fail(client: TestClient, path: str, random_: random.Random) -> None:
    method, body = random_.choice(SEEDS[path])
    seed = json.dumps(body).encode()
    changed = mutate_json(seed, random_, sorted(texts_in(seed)))
    payload = mutate_bytes(seed, random_) if changed is None or random_.random() < 0.3 else changed
    response = client.request(
        method, f"/{path}", content=payload, headers={"Content-Type": "application/json"}
    )
    assert response.status_code in (200, 400, 413, 422), response.text


@pytest.mark.parametrize(
    "item", ["\x00", "\x1b[2J", "item-01\nitem-02", "\u202e", "<script>", "'; DROP TABLE x --"]
)
def test_ids_of_all_sorts_are_ids_and_nothing_else(client: TestClient, item: str) -> None:
    answer = client.post("/recommendations", json={"session": [item], "visitor_id": item})
    assert answer.status_code == 200
    for seen in ("item-01", item):
        assert client.post("/events", json={"visitor_id": "v", "item_id": seen}).json()["stored"]
    assert client.post("/recommendations", json={"visitor_id": "v"}).json()["tier"] == "online"


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("recommendations", {"session": ["item-01"] * 1_000_000}, "body"),
        ("recommendations", {"session": ["item-01"] * 201}, "session"),
        ("recommendations", {"session": ["x" * 201]}, "session"),
        ("recommendations", {"n": 10**9}, "n"),
        ("recommendations", {"visitor_id": "v" * 2_000_000}, "body"),
        ("events", {"visitor_id": "v", "item_id": "x" * 201}, "item_id"),
        ("events", {"visitor_id": "v", "item_id": "x", "quantity": 10**400}, "quantity"),
    ],
)
def test_more_than_the_limits_allow_is_refused(
    client: TestClient, path: str, body: dict[str, Any], names: str
) -> None:
    response = client.post(f"/{path}", json=body)
    assert response.status_code == (413 if names == "body" else 422)
    assert names in response.text
    assert len(response.content) < MAX_BODY_BYTES


def test_a_body_that_does_not_say_how_long_it_is_is_not_read_to_its_end(client: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'{"session":["'
        while sent < 100 * MAX_BODY_BYTES:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    response = client.post("/recommendations", content=endless())
    assert response.status_code == 413
