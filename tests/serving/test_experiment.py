"""Experiments: shares, stability, what an answer says, and what is refused."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from engines import ITEMS, bundles, engine, write_linear
from hypothesis import given, settings
from hypothesis import strategies as st

from consentier.consent import Ledger, Permission, Policy, Tier
from consentier.errors import ConfigError
from consentier.serving import Recommender, Request
from consentier.serving.experiment import BUCKETS, Experiment, ExperimentRecommender
from consentier.serving.reloading import ReloadingRecommender
from consentier.serving.revocation import revoke

SALT = "a salt for tests only"
HALVES = Experiment("halves", SALT, {"current": 0.5, "new": 0.5})
ONLINE = Request(session=ITEMS[:2], online_history=ITEMS[2:4], permission=Permission.ONLINE, n=4)

shares = st.lists(st.integers(1, 10), min_size=2, max_size=5).map(
    lambda weights: {f"arm-{number}": weight / sum(weights) for number, weight in enumerate(weights)}
)


# ---- Assignment --------------------------------------------------------------------------------------------


def within(count: int, total: int, share: float) -> bool:
    """Whether a count is as a share lets expect, to five standard deviations."""
    return abs(count - total * share) <= 5 * math.sqrt(total * share * (1 - share)) + 1


@settings(max_examples=20, deadline=None)
@given(shares, st.integers(0, 10**6))
def test_each_arm_gets_its_share_of_persons_and_of_draws(arms: dict[str, float], seed: int) -> None:
    experiment = Experiment("shares", f"{SALT} {seed}", arms)
    people = Counter(experiment.assigned("visitor", f"v-{number}") for number in range(2000))
    drawn = random.Random(seed)
    draws = Counter(experiment.drawn(drawn.random) for _ in range(2000))
    for arm, share in arms.items():
        assert within(people[arm], 2000, share)
        assert within(draws[arm], 2000, share)


def test_names_salts_and_kinds_assign_independently() -> None:
    """No two of them agree more often than chance lets them."""
    one = [HALVES.assigned("visitor", str(number)) for number in range(2000)]
    others = {
        "name": dataclasses.replace(HALVES, name="again"),
        "salt": dataclasses.replace(HALVES, salt=SALT + "!"),
    }
    for other in others.values():
        agreed = sum(other.assigned("visitor", str(number)) == one[number] for number in range(2000))
        assert within(agreed, 2000, 0.5)
    as_customer = sum(HALVES.assigned("customer", str(number)) == one[number] for number in range(2000))
    assert within(as_customer, 2000, 0.5)
    new = [number for number in range(20000) if HALVES.assigned("visitor", str(number)) == "new"]
    filled = Counter(HALVES.bucket("visitor", str(number)) for number in new)
    assert set(filled) == set(range(BUCKETS))
    assert all(within(count, len(new), 1 / BUCKETS) for count in filled.values())


@settings(max_examples=20, deadline=None)
@given(shares, st.integers(2, 9))
def test_an_arm_that_grows_takes_from_the_others_and_nobody_else_moves(
    arms: dict[str, float], factor: int
) -> None:
    grown = {name: share * (factor if name == "arm-0" else 1) for name, share in arms.items()}
    after = {name: share / sum(grown.values()) for name, share in grown.items()}
    one, other = Experiment("growth", SALT, arms), Experiment("growth", SALT, after)
    for number in range(200):
        before, now = (each.assigned("visitor", str(number)) for each in (one, other))
        assert now in (before, "arm-0")


def test_the_order_in_which_arms_are_named_assigns_nobody_otherwise() -> None:
    reversed_arms = Experiment("halves", SALT, dict(reversed(HALVES.arms.items())))
    for number in range(200):
        assert HALVES.assigned("visitor", str(number)) == reversed_arms.assigned("visitor", str(number))


CODE = f"""
from consentier import Experiment
experiment = Experiment("halves", {SALT!r}, {{"current": 0.5, "new": 0.5}})
print("".join(experiment.assigned("visitor", str(number))[0] for number in range(200)))
"""


def test_every_process_assigns_alike() -> None:
    here = "".join(HALVES.assigned("visitor", str(number))[0] for number in range(200))
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here


def test_the_assignment_is_this_one() -> None:
    """Pinned: another assignment in a new release would mix the arms of running experiments."""
    assert [HALVES.assigned("visitor", f"v-{number}") for number in range(8)] == PINNED
    assert HALVES.bucket("customer", "c-1") == PINNED_BUCKET


PINNED = ["current", "new", "current", "current", "current", "current", "current", "current"]
PINNED_BUCKET = 94

# ---- Answer ids --------------------------------------------------------------------------------------------


@given(st.sampled_from(Tier), st.booleans(), st.none() | st.integers(0, BUCKETS - 1))
def test_an_answer_id_reads_back_and_is_never_the_same(tier: Tier, named: bool, bucket: int | None) -> None:
    first, second = (HALVES.answer_id("new", tier, named=named, bucket=bucket) for _ in range(2))
    assert first != second
    told = HALVES.read(first)
    assert told is not None
    assert (told.experiment, told.arm, told.tier) == ("halves", "new", tier)
    assert told.bucket == (bucket if named else None)
    assert (told.key is not None) is named


@given(st.data())
def test_an_answer_id_that_was_changed_or_made_up_is_none(data: st.DataObject) -> None:
    genuine = HALVES.answer_id("new", Tier.ONLINE, named=True, bucket=3)
    place = data.draw(st.integers(0, len(genuine) - 1))
    letter = data.draw(st.characters())
    changed = genuine[:place] + letter + genuine[place + 1 :]
    assert changed == genuine or HALVES.read(changed) is None
    assert HALVES.read(data.draw(st.none() | st.text())) is None


def test_another_experiment_does_not_read_it() -> None:
    genuine = HALVES.answer_id("new", Tier.ONLINE, named=True, bucket=3)
    assert dataclasses.replace(HALVES, name="another").read(genuine) is None
    assert dataclasses.replace(HALVES, salt=SALT + "!").read(genuine) is None


# ---- Answers -----------------------------------------------------------------------------------------------


def test_the_arm_that_is_named_is_the_one_that_answered(tmp_path: Path) -> None:
    shutil.copytree(bundles(), tmp_path / "new")
    shutil.rmtree(tmp_path / "new" / "online")
    digest = write_linear(tmp_path / "new" / "online", Tier.ONLINE, seed=50)
    new = Recommender.load(tmp_path / "new")
    asked = ExperimentRecommender(HALVES, {"current": engine(), "new": new})
    seen = set()
    for number in range(20):
        answer = asked.recommend(dataclasses.replace(ONLINE, visitor_id=f"v-{number}"))
        assert answer.basis.experiment == "halves"
        assert answer.basis.arm == HALVES.assigned("visitor", f"v-{number}")
        assert (answer.basis.bundle_digest == digest) is (answer.basis.arm == "new")
        own = (new if answer.basis.arm == "new" else engine()).recommend(ONLINE)
        assert (answer.items, answer.scores, answer.tier) == (own.items, own.scores, own.tier)
        seen.add(answer.basis.arm)
    assert seen == {"current", "new"}


def test_an_arm_stops_at_its_own_deadline(tmp_path: Path) -> None:
    shutil.copytree(bundles(), tmp_path / "new")
    new = Recommender.load(tmp_path / "new")
    asked = ExperimentRecommender(HALVES, {"current": engine(), "new": new})
    revoke(tmp_path / "new", [new.scorers[Tier.ONLINE].digest], dt.datetime(2019, 1, 1, tzinfo=dt.UTC), "x")
    tiers = {
        answer.basis.arm: answer.tier
        for number in range(20)
        if (answer := asked.recommend(dataclasses.replace(ONLINE, visitor_id=f"v-{number}")))
    }
    assert tiers == {"current": Tier.ONLINE, "new": Tier.SESSION}


def test_an_arm_may_reload(tmp_path: Path) -> None:
    shutil.copytree(bundles(), tmp_path / "new")
    reloading = ReloadingRecommender(tmp_path / "new")
    asked = ExperimentRecommender(
        HALVES, {"current": dataclasses.replace(reloading.current), "new": reloading}, random=lambda: 0.9
    )
    shutil.rmtree(tmp_path / "new" / "session")
    digest = write_linear(tmp_path / "new" / "session", Tier.SESSION, seed=50)
    reloading.check()
    answer = asked.recommend(Request(session=ITEMS[:2], permission=Permission.NONE))
    assert (answer.basis.arm, answer.basis.bundle_digest) == ("new", digest)


def test_without_an_experiment_an_answer_names_none() -> None:
    answer = engine().recommend(ONLINE)
    assert (answer.basis.experiment, answer.basis.arm, answer.answer_id) == (None, None, None)


def test_wrong_arguments_raise_as_everywhere() -> None:
    asked = ExperimentRecommender(HALVES, {"current": engine(), "new": engine()})
    with pytest.raises(TypeError, match=r"recommend takes a consentier\.Request"):
        asked.recommend("session")  # type: ignore[arg-type]


def test_arms_that_differ_in_what_is_permitted_are_refused() -> None:
    strict = Policy.default()
    other = dataclasses.replace(strict, switches=dataclasses.replace(strict.switches, crm_on_site=True))
    for change in ({"policy": other}, {"ledger": Ledger()}):
        arm = dataclasses.replace(engine(), **change)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="one policy and one ledger"):
            ExperimentRecommender(HALVES, {"current": engine(), "new": arm})
    with pytest.raises(ValueError, match="the arms of 'halves' are current, new"):
        ExperimentRecommender(HALVES, {"current": engine()})


# ---- What an experiment may say ----------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one arm": ({"arms": {"a": 1.0}}, ValueError, "at least two arms"),
    "too much": ({"arms": {"a": 0.6, "b": 0.5}}, ValueError, "add up to 1.1"),
    "nothing": ({"arms": {"a": 0.0, "b": 0.5, "c": 0.5}}, ValueError, "above 0"),
    "no number": ({"arms": {"a": "half", "b": 0.5}}, TypeError, "must be a number"),
    "a truth value": ({"arms": {"a": True, "b": 0.5}}, TypeError, "must be a number"),
    "not a number": ({"arms": {"a": float("nan"), "b": 0.5}}, ValueError, "above 0"),
    "a list": ({"arms": ["a", "b"]}, TypeError, "must be a mapping"),
    "a dot": ({"arms": {"a.b": 0.5, "b": 0.5}}, ValueError, "lower-case letter"),
    "no name": ({"name": ""}, ValueError, "name is ''"),
    "a number as name": ({"name": 3}, TypeError, "name must be a string"),
    "a short salt": ({"salt": "pepper"}, ValueError, "at least 16 characters"),
    "no salt": ({"salt": None}, TypeError, "salt must be a string"),
}


@pytest.mark.parametrize("bad", BAD)
def test_an_experiment_is_checked_when_it_is_made(bad: str) -> None:
    change, error, message = BAD[bad]
    fields = {"name": "x", "salt": SALT, "arms": {"a": 0.5, "b": 0.5}, **change}
    with pytest.raises(error, match=message):
        Experiment(**fields)


def test_the_salt_stays_out_of_sight() -> None:
    assert SALT not in repr(HALVES)


TOML = f"""
name = "ranking"
salt = "{SALT}"

[arms]
current = 0.9
new = 0.1
"""


def test_an_experiment_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(TOML, "utf-8")
    assert Experiment.load(path) == Experiment("ranking", SALT, {"current": 0.9, "new": 0.1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 1 1", "is not valid TOML"),
        (TOML.replace("salt", "slat"), "unknown key 'slat'; did you mean 'salt'"),
        ('name = "x"', "salt, arms is missing"),
        (TOML.replace("0.9", "0.8"), "the shares add up to 0.9"),
        (TOML.replace("0.9", '"most"'), "must be a number"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=message) as raised:
        Experiment.load(path)
    assert str(path) in str(raised.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        Experiment.load(tmp_path / "none.toml")
