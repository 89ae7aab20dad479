"""Whatever stands in a file, line or row: its loader takes it, or refuses it as it promises."""

from __future__ import annotations

import json
import random

import pytest
from engines import engine
from hostile_files import LOADERS
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutate_bytes, mutate_json, texts_in

from consentier.errors import DataError
from consentier.serving.pyfunc import answer_row


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_takes_what_the_product_writes(name: str) -> None:
    loader = LOADERS[name]
    assert loader.seeds()
    for seed in loader.seeds():
        assert loader.check(seed)


@pytest.mark.parametrize("name", LOADERS)
@settings(max_examples=40)
@given(random_=st.randoms(use_true_random=False))
def test_a_loader_refuses_only_as_it_promises(name: str, random_: random.Random) -> None:
    loader = LOADERS[name]
    seed = random_.choice(loader.seeds())
    changed = mutate_json(seed, random_, sorted(texts_in(seed)) or [""]) if loader.is_json else None
    loader.check(mutate_bytes(seed, random_) if changed is None or random_.random() < 0.3 else changed)


FOUND = [
    # by loader: payloads that once raised something else than the loader promises
    ("manifest_session", b'{"format_version":1,"cutoff":"0001-01-01T00:00:00+14:00"}'),
    ("policy", b"a = " + b"[" * 3000),
    ("config", b".".join([b"a"] * 3000) + b" = 1"),
    ("rules", b"a = " + b"9" * 5000),
    ("part_counts", b'{"persons":1e999,"rows":0,"by_tier":{},"skipped":{}}'),
    ("part_counts", b"[" * 100_000),
    ("batch_job", b'{"format":1,"at":"0001-01-01T00:00:00+14:00","channel":"email","policy_version":"1"}'),
    ("model_row", b'{"permission":"none","channel":"shop","n":1' + b"0" * 400 + b"}"),
    ("events", b'[{"item_id":"item-01","quantity":1' + b"0" * 400 + b"}]"),
    ("filter", b"price < " + b"9" * 400),
    ("catalogue", b"item_id,sensitive\n" + b"x" * 2_000_000),
    ("items_csv", b"item_id," + b"a," * 500_000),
]


@pytest.mark.parametrize(("name", "payload"), FOUND, ids=[name for name, _ in FOUND])
def test_what_was_found_stays_mended(name: str, payload: bytes) -> None:
    LOADERS[name].check(payload)


def test_a_batch_that_claims_more_parts_than_any_directory_holds_is_refused_at_once() -> None:
    loader = LOADERS["batch_job"]
    job = {**json.loads(loader.seeds()[0]), "persons": 10**18, "persons_per_part": 1}
    with pytest.raises(DataError, match="1000000000000000000 of 1000000000000000000 parts are missing"):
        loader.load(json.dumps(job).encode())


def test_a_session_of_a_row_that_is_too_long_fails_no_other_row() -> None:
    row = {"permission": "none", "channel": "shop", "session": json.dumps(["item-01"] * 100_001)}
    assert answer_row(engine(), row)["reason"].startswith("the row was not answered: session is no history")


@pytest.mark.parametrize("name", ["profile_store", "ledger_store"])
def test_a_database_whose_damage_is_no_text_is_refused_as_any_other(name: str) -> None:
    """SQLite quotes the damaged schema in its message, and Python cannot decode that."""
    damaged = LOADERS[name].seeds()[0].replace(b"CREATE TABLE ", b"CREATE TABLE\xa4")
    assert not LOADERS[name].check(damaged)
