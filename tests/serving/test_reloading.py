"""Hot reload: good bundles take over while requests run, bad ones never do."""

from __future__ import annotations

import datetime as dt
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from engines import ITEMS, LINEAR, bundles, write_linear, write_popular

from consentier.consent import Permission, Tier
from consentier.errors import BundleMissing
from consentier.models.bundle import open_bundle
from consentier.serving import Answer, Recommender, Request
from consentier.serving.loading import OpenedTier, open_tier
from consentier.serving.reloading import Outcome, ReloadingRecommender
from consentier.serving.revocation import PAST_DEADLINE, revoke
from consentier.writing import put_directory, remove_directory

BOTH = Permission.ONLINE | Permission.CRM
NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
EARLIER = dt.datetime(2025, 12, 1, tzinfo=dt.UTC)
LATER = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)

QUESTION = Request(session=ITEMS[:2], permission=Permission.NONE, n=5)
FUSED = Request(
    session=ITEMS[:2], online_history=ITEMS[2:4], crm_history=ITEMS[4:6], linked=True, permission=BOTH, n=5
)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with bundles of all tiers."""
    return shutil.copytree(bundles(), tmp_path / "bundles")


def publish(shop: Path, tier: Tier, seed: int, cutoff: dt.datetime = LATER) -> str:
    """Replace a tier's bundle by another, as a trainer does; say its digest."""
    beside = shop.parent / f"new-{tier}-{seed}"
    digest = write_linear(beside, tier, seed=seed, cutoff=cutoff)
    put(beside, shop / tier)
    return digest


def put(beside: Path, target: Path) -> None:
    former = put_directory(beside, target)
    if former is not None:
        shutil.rmtree(former)


def alter(beside: Path, name: str = "data.npy") -> None:
    """Change the last byte of an array."""
    payload = bytearray((beside / name).read_bytes())
    payload[-1] ^= 1
    (beside / name).write_bytes(payload)


def replace_by_altered(shop: Path, tier: Tier) -> None:
    beside = shop.parent / "altered"
    write_linear(beside, tier, seed=77, cutoff=LATER)
    alter(beside)
    put(beside, shop / tier)


def replace_by_stale(shop: Path, tier: Tier) -> None:
    publish(shop, tier, seed=78, cutoff=EARLIER)


def replace_by_another_tier(shop: Path, tier: Tier) -> None:
    beside = shop.parent / "crm-again"
    shutil.copytree(shop / Tier.CRM, beside)
    put(beside, shop / tier)


def replace_by_half(shop: Path, tier: Tier) -> None:
    beside = shop.parent / "half"
    write_linear(beside, tier, seed=79, cutoff=LATER)
    (beside / "indices.npy").unlink()
    put(beside, shop / tier)


def replace_by_revoked(shop: Path, tier: Tier) -> None:
    digest = publish(shop, tier, seed=80)
    revoke(shop, [digest], NOW, "withdrawal")


def leave_half_replaced(shop: Path, tier: Tier) -> None:
    """As a writer that was killed between its two renames."""
    (shop / tier).rename(shop / f".{tier}.0123456789abcdef.replaced")


BAD: Mapping[str, tuple[Callable[[Path, Tier], None], str]] = {
    "altered": (replace_by_altered, "SHA-256"),
    "stale": (replace_by_stale, "training cut-off"),
    "of another tier": (replace_by_another_tier, "declares tier crm"),
    "half": (replace_by_half, "indices.npy is missing"),
    "past its deadline": (replace_by_revoked, PAST_DEADLINE),
    "half replaced": (leave_half_replaced, "rename it back"),
}


def test_new_bundles_take_over_all_at_once_and_the_rest_stays(shop: Path) -> None:
    asked = ReloadingRecommender(shop)
    before = asked.current
    assert {tier.outcome for tier in asked.check().values()} == {Outcome.UNCHANGED}
    session, fused = publish(shop, Tier.SESSION, 50), publish(shop, Tier.FUSED, 51)
    told = asked.check()
    assert {tier for tier, each in told.items() if each.outcome is Outcome.REPLACED} == {
        Tier.SESSION,
        Tier.FUSED,
    }
    assert told[Tier.SESSION].digest == session == asked.recommend(QUESTION).basis.bundle_digest
    assert asked.recommend(FUSED).basis.bundle_digest == fused
    assert asked.problems == {}
    # Whoever holds the old one goes on with it, although its files are gone.
    assert before.recommend(QUESTION).basis.bundle_digest == open_bundle(bundles() / "session").digest
    assert before.recommend(QUESTION).items == Recommender.load(bundles()).recommend(QUESTION).items


def test_the_popular_list_is_replaced_too(shop: Path) -> None:
    asked = ReloadingRecommender(shop)
    beside = shop.parent / "new"
    digest = write_popular(beside, ITEMS[:6])
    put(beside, shop / "popular")
    assert asked.check()[Tier.POPULAR].outcome is Outcome.REPLACED
    answer = asked.recommend(Request(permission=Permission.NONE, n=6))
    assert (answer.tier, answer.basis.fill_digest) == (Tier.POPULAR, digest)
    assert set(answer.items) == set(ITEMS[:6])


def test_similar_and_basket_follow(shop: Path) -> None:
    asked = ReloadingRecommender(shop)
    digest = publish(shop, Tier.SESSION, 50)
    asked.check()
    assert asked.similar(ITEMS[0]).basis.bundle_digest == digest
    assert asked.basket(ITEMS[:2]).basis.bundle_digest == digest


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_bundle_never_takes_over_and_the_answer_says_why(shop: Path, bad: str) -> None:
    spoil, why = BAD[bad]
    asked = ReloadingRecommender(shop, clock=lambda: NOW)
    before = asked.recommend(FUSED)
    spoil(shop, Tier.FUSED)
    told = asked.check()
    assert told[Tier.FUSED].outcome is Outcome.KEPT
    assert why in told[Tier.FUSED].problem
    assert {told[tier].outcome for tier in told if tier is not Tier.FUSED} == {Outcome.UNCHANGED}
    after = asked.recommend(FUSED)
    assert (after.items, after.scores, after.tier) == (before.items, before.scores, Tier.FUSED)
    assert after.basis.bundle_digest == before.basis.bundle_digest == told[Tier.FUSED].digest
    assert [reason for reason in after.basis.reasons if reason.startswith("fused: ") and why in reason]
    # It is looked at again each time, and as soon as a good one comes, that is used.
    assert asked.check()[Tier.FUSED].outcome is Outcome.KEPT
    good = publish(shop, Tier.FUSED, 90)
    assert asked.check()[Tier.FUSED].outcome is Outcome.REPLACED
    assert asked.recommend(FUSED).basis.bundle_digest == good
    assert asked.problems == {}


@pytest.mark.parametrize("bad", BAD)
def test_the_old_one_stops_at_its_own_deadline_whatever_stands_there(shop: Path, bad: str) -> None:
    clock = [NOW]
    asked = ReloadingRecommender(shop, clock=lambda: clock[0])
    old = open_bundle(shop / "fused").digest
    BAD[bad][0](shop, Tier.FUSED)
    asked.check()
    revoke(shop, [old], NOW + dt.timedelta(days=1), "withdrawal")
    assert asked.recommend(FUSED).tier is Tier.FUSED
    clock[0] = NOW + dt.timedelta(days=1)
    for _ in range(2):
        answer = asked.recommend(FUSED)
        assert answer.tier is Tier.ONLINE
        assert f"fused: {PAST_DEADLINE}" in answer.basis.reasons
        asked.check()


def test_a_revocation_list_that_is_lost_stops_all_also_after_a_reload(shop: Path) -> None:
    revoke(shop, ["sha256:" + "0" * 64], NOW, "withdrawal")
    asked = ReloadingRecommender(shop)
    (shop / "revocations.json").unlink()
    publish(shop, Tier.SESSION, 50)
    asked.check()
    assert asked.recommend(FUSED).tier is Tier.NONE


def test_a_tier_whose_bundle_is_removed_stops_and_comes_back_with_a_new_one(shop: Path) -> None:
    asked = ReloadingRecommender(shop)
    remove_directory(shop / "fused")
    assert asked.check()[Tier.FUSED].outcome is Outcome.STOPPED
    answer = asked.recommend(FUSED)
    assert answer.tier is Tier.ONLINE
    assert "fused: the bundle was removed" in answer.basis.reasons
    assert asked.check()[Tier.FUSED].outcome is Outcome.MISSING
    publish(shop, Tier.FUSED, 50, cutoff=EARLIER)
    assert asked.check()[Tier.FUSED].outcome is Outcome.MISSING, "it went back behind what was in use"
    digest = publish(shop, Tier.FUSED, 51)
    assert asked.check()[Tier.FUSED].outcome is Outcome.OPENED
    assert asked.recommend(FUSED).basis.bundle_digest == digest


def test_a_tier_whose_mapped_files_are_changed_in_place_stops(shop: Path) -> None:
    asked = ReloadingRecommender(shop)
    asked.check()
    alter(shop / "fused")
    told = asked.check()[Tier.FUSED]
    assert told.outcome is Outcome.STOPPED
    assert "changed in place" in told.problem
    assert asked.recommend(FUSED).tier is Tier.ONLINE


def test_a_directory_that_is_lost_changes_nothing(shop: Path) -> None:
    asked = ReloadingRecommender(shop)
    before = asked.recommend(FUSED)
    shutil.rmtree(shop)
    told = asked.check()
    assert {each.outcome for each in told.values()} == {Outcome.KEPT}
    after = asked.recommend(FUSED)
    assert (after.items, after.tier) == (before.items, Tier.FUSED)
    assert set(asked.problems) == set(told)


def test_a_tier_that_had_no_model_gets_one(shop: Path) -> None:
    shutil.rmtree(shop / "fused")
    asked = ReloadingRecommender(shop)
    assert "there is no such directory" in asked.problems[Tier.FUSED]
    publish(shop, Tier.FUSED, 50)
    assert asked.check()[Tier.FUSED].outcome is Outcome.OPENED
    assert asked.recommend(FUSED).tier is Tier.FUSED


def test_an_equal_bundle_in_new_files_is_no_change_and_a_restored_one_clears_the_problem(shop: Path) -> None:
    asked = ReloadingRecommender(shop)
    replace_by_altered(shop, Tier.FUSED)
    assert asked.check()[Tier.FUSED].outcome is Outcome.KEPT
    put(shutil.copytree(bundles() / "fused", shop.parent / "again"), shop / "fused")
    assert asked.check()[Tier.FUSED].outcome is Outcome.UNCHANGED
    assert asked.problems == {}
    # What is mapped now are the new files: they are watched, and not the former ones.
    alter(shop / "fused")
    assert asked.check()[Tier.FUSED].outcome is Outcome.STOPPED


def test_bundles_that_stay_are_not_read_again(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ReloadingRecommender(shop)
    time.sleep(2.1)  # until their times of change are settled
    asked.check()
    opened: list[Path] = []
    monkeypatch.setattr("consentier.serving.reloading.open_tier", lambda path, *_, **__: opened.append(path))
    assert {each.outcome for each in asked.check().values()} == {Outcome.UNCHANGED}
    assert opened == []


def test_without_any_bundle_there_is_no_recommender(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match="no bundle can be used: it holds none of"):
        ReloadingRecommender(tmp_path)
    with pytest.raises(BundleMissing, match="there is no such directory; 'consentier train' writes one"):
        ReloadingRecommender(tmp_path / "elsewhere")


@pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf")])
def test_the_time_between_two_looks_is_checked(shop: Path, every: float) -> None:
    with pytest.raises(ValueError, match="every must be a positive number"):
        ReloadingRecommender(shop, every=every)


def test_the_options_stay_across_reloads(shop: Path) -> None:
    asked = ReloadingRecommender(shop, catalogue=ITEMS[:6], audit_key=b"a key")
    before = asked.recommend(FUSED)
    publish(shop, Tier.FUSED, 50)
    asked.check()
    after = asked.recommend(FUSED)
    assert set(after.items) <= set(ITEMS[:6])
    assert after.basis.input_digests == before.basis.input_digests


def test_a_replacement_that_begins_during_a_look_does_not_stop_the_tier(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ReloadingRecommender(shop)
    replace_by_altered(shop, Tier.FUSED)
    listed = list(shop.iterdir())

    def listing(_: Path) -> list[Path]:
        leave_half_replaced(shop, Tier.FUSED)
        return listed

    monkeypatch.setattr(Path, "iterdir", listing)
    assert asked.check()[Tier.FUSED].outcome is Outcome.KEPT
    assert asked.recommend(FUSED).tier is Tier.FUSED


def test_a_bad_bundle_that_comes_during_a_look_is_not_taken_for_a_change_in_place(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ReloadingRecommender(shop)
    publish(shop, Tier.FUSED, 50)
    asked.check()  # its files are so fresh that their times tell nothing
    genuine = open_tier

    def late(path: Path, tier: Tier, *rest: Any, **options: Any) -> OpenedTier:
        if tier is Tier.FUSED:
            replace_by_altered(shop, Tier.FUSED)
        return genuine(path, tier, *rest, **options)

    monkeypatch.setattr("consentier.serving.reloading.open_tier", late)
    assert asked.check()[Tier.FUSED].outcome is Outcome.KEPT
    assert asked.recommend(FUSED).tier is Tier.FUSED


# ---- While requests run ------------------------------------------------------------------------------------


def test_requests_during_reloads_are_all_answered_by_one_of_the_two_bundles(shop: Path) -> None:
    first = open_bundle(shop / "fused").digest
    asked = ReloadingRecommender(shop, every=0.01)
    expected: dict[str, tuple[str, ...]] = {first: asked.recommend(FUSED).items}
    ends, faults, answers = threading.Event(), [], []

    def hammer() -> None:
        try:
            while not ends.is_set():
                answers.append(asked.recommend(FUSED))
        except BaseException as error:
            faults.append(error)
            raise

    with asked:
        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        for seed in (50, 51, 52):
            digest = publish(shop, Tier.FUSED, seed)
            wait_until(lambda digest=digest: asked.recommend(FUSED).basis.bundle_digest == digest)
            expected[digest] = Recommender.load(shop).recommend(FUSED).items
            replace_by_altered(shop, Tier.FUSED)
            wait_until(lambda: Tier.FUSED in asked.problems)
        ends.set()
        for thread in threads:
            thread.join()
    assert faults == []
    assert {answer.basis.bundle_digest for answer in answers} == set(expected)
    assert all(answer.items == expected[digest_of(answer)] for answer in answers)
    assert {answer.tier for answer in answers} == {Tier.FUSED}


def digest_of(answer: Answer) -> str:
    assert answer.basis.bundle_digest is not None
    return answer.basis.bundle_digest


def wait_until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < limit, "it did not happen within 30 seconds"
        time.sleep(0.005)


def test_the_thread_ends_with_the_block_and_starts_once(shop: Path) -> None:
    asked = ReloadingRecommender(shop, every=0.01)
    with asked:
        [thread] = [each for each in threading.enumerate() if each.name == "consentier-reload"]
        assert thread.daemon
        with pytest.raises(RuntimeError, match="running already"):
            asked.start()
    assert not thread.is_alive()
    asked.stop()  # is allowed twice
    with asked:
        publish(shop, Tier.SESSION, 50)
        wait_until(lambda: asked.recommend(QUESTION).basis.bundle_digest != digest_of_first())


def digest_of_first() -> str:
    return open_bundle(bundles() / "session").digest


def test_a_source_that_fails_ends_neither_thread_nor_answers(shop: Path) -> None:
    class Source:
        directory = shop
        fails = False

        def fetch(self) -> Mapping[Tier, str]:
            if self.fails:
                raise ConnectionError("the registry is gone")
            return {}

    source = Source()
    asked = ReloadingRecommender(source, every=0.01)
    source.fails = True
    with asked:
        time.sleep(0.05)
        source.fails = False
        digest = publish(shop, Tier.SESSION, 50)
        wait_until(lambda: asked.recommend(QUESTION).basis.bundle_digest == digest)


def test_what_a_source_could_not_fetch_is_said(shop: Path) -> None:
    class Source:
        directory = shop

        def fetch(self) -> Mapping[Tier, str]:
            return {Tier.FUSED: "models:/x@champion: ConnectionError"}

    asked = ReloadingRecommender(Source())
    told = asked.check()[Tier.FUSED]
    assert told.outcome is Outcome.KEPT
    assert "ConnectionError" in asked.problems[Tier.FUSED]
    assert len(told.problem) < 100, "the problem grows from look to look"
    assert asked.recommend(FUSED).tier is Tier.FUSED


def test_all_tiers_are_watched() -> None:
    assert set(ReloadingRecommender(bundles()).check()) == {*LINEAR, Tier.POPULAR}


def test_new_bundles_are_verified_in_one_thread_beside_the_requests(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several workers look at the same time: with a thread a core each they would hold up the requests."""
    threads: list[int | None] = []

    def opened(*arguments: Any, **options: Any) -> OpenedTier:
        threads.append(options["threads"])
        return open_tier(*arguments, **options)

    monkeypatch.setattr("consentier.serving.reloading.open_tier", opened)
    asked = ReloadingRecommender(shop)
    assert threads == [None] * 5
    publish(shop, Tier.SESSION, 50)
    asked.check()
    assert set(threads[5:]) == {1}
