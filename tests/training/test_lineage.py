"""Which bundles hold whom: found by key, named nowhere, erased without a trace."""

from __future__ import annotations

import datetime as dt
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentier.consent.keyring import Keyring
from consentier.training.lineage import Lineage, LineageError
from consentier.training.restricted import Restricted

CUTOFF = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
SUBJECTS = st.sets(st.tuples(st.sampled_from(["visitor", "customer"]), st.sampled_from("abcdef")))


def noted(lineage: Lineage, digest: str, subjects: set[tuple[str, str]], tier: str = "crm") -> None:
    lineage.record(digest, tier, subjects, cutoff=CUTOFF, ledger_position=7)  # type: ignore[arg-type]


def digests(lineage: Lineage, kind: str, subject_id: str) -> list[str]:
    return [bundle.digest for bundle in lineage.bundles_of(kind, subject_id)]  # type: ignore[arg-type]


@given(st.dictionaries(st.sampled_from(["d1", "d2", "d3"]), SUBJECTS))
def test_a_bundle_is_found_for_those_whom_it_holds_and_nobody_else(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, set[tuple[str, str]]]
) -> None:
    lineage = Lineage(tmp_path_factory.mktemp("lineage") / "lineage.db", Keyring.ephemeral())
    for digest, subjects in members.items():
        noted(lineage, digest, subjects)
    for kind in ("visitor", "customer"):
        for name in "abcdefg":
            expected = sorted(digest for digest, subjects in members.items() if (kind, name) in subjects)
            assert digests(lineage, kind, name) == expected


def test_noting_a_bundle_again_takes_the_place_of_the_first_note(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "lineage.db", Keyring.ephemeral())
    noted(lineage, "d1", {("customer", "a"), ("customer", "b")})
    noted(lineage, "d1", {("customer", "b")})
    assert digests(lineage, "customer", "a") == []
    assert digests(lineage, "customer", "b") == ["d1"]


def test_a_bundle_says_what_is_known_of_it(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "lineage.db", Keyring.ephemeral())
    noted(lineage, "d1", {("visitor", "v")}, tier="fused")
    (held,) = lineage.bundles_of("visitor", "v")
    assert (held.digest, held.tier, held.cutoff, held.ledger_position) == ("d1", "fused", CUTOFF, 7)


def test_a_successor_holds_all_but_the_forgotten(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "lineage.db", Keyring.ephemeral())
    noted(lineage, "old", {("customer", "a"), ("customer", "b")})
    lineage.replaced("old", "new", without=[("customer", "a")])
    assert digests(lineage, "customer", "a") == []
    assert digests(lineage, "customer", "b") == ["new"]
    assert lineage.digests() == ["new"]


def test_subjects_are_found_after_a_rotation_of_keys(tmp_path: Path) -> None:
    keyring = Keyring.ephemeral()
    lineage = Lineage(tmp_path / "lineage.db", keyring)
    noted(lineage, "d1", {("customer", "a")})
    keyring.rotate(keyring.newest_at + dt.timedelta(days=1))
    noted(lineage, "d2", {("customer", "a")})
    assert digests(lineage, "customer", "a") == ["d1", "d2"]
    assert lineage.erase("customer", "a") == 2
    assert digests(lineage, "customer", "a") == []


def test_a_bundle_whose_members_have_no_key_any_more_may_hold_anybody(tmp_path: Path) -> None:
    keyring = Keyring.ephemeral()
    lineage = Lineage(tmp_path / "lineage.db", keyring)
    made = keyring.newest_at
    noted(lineage, "old", {("customer", "a")})
    noted(lineage, "mixed", {("customer", name) for name in "abcd"})
    noted(lineage, "of nobody", set())
    keyring.rotate(made + dt.timedelta(days=1))
    new_names = {keyring.digest("lineage", f"customer:{name}") for name in "efg"}
    old_names = lineage.members("mixed")
    lineage.record_names("mixed", "crm", old_names | new_names, cutoff=CUTOFF, ledger_position=7)
    noted(lineage, "new", {("customer", "a")})
    assert lineage.legible() == {"old", "mixed", "new", "of nobody"}
    keyring.prune(made + dt.timedelta(days=2))
    assert lineage.legible() == {"new", "of nobody"}
    assert lineage.bundle("new").digest == "new"
    for digest in ("old", "mixed"):
        with pytest.raises(LineageError, match="a key that names them was thrown away"):
            lineage.bundle(digest)


def test_the_file_names_nobody_and_keeps_nothing_erased(tmp_path: Path) -> None:
    keyring = Keyring.ephemeral()
    lineage = Lineage(tmp_path / "lineage.db", keyring)
    noted(lineage, "d1", {("customer", "marker-in-the-clear"), ("customer", "b")})
    keyed = keyring.digest("lineage", "customer:marker-in-the-clear").encode()

    def content() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert b"marker-in-the-clear" not in content()
    assert keyed in content()
    lineage.erase("customer", "marker-in-the-clear")
    assert keyed not in content()
    assert digests(lineage, "customer", "b") == ["d1"]


def test_dropping_a_bundle_drops_its_members(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "lineage.db", Keyring.ephemeral())
    noted(lineage, "d1", {("customer", "a")})
    assert lineage.drop(["d1", "never there"]) == 1
    with sqlite3.connect(tmp_path / "lineage.db") as connection:
        assert connection.execute("SELECT count(*) FROM members").fetchone() == (0,)


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, however long it may be " * 100)
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE something (else_ TEXT)")
    for name in ("text", "other.db"):
        with pytest.raises(LineageError, match=name):
            Lineage(tmp_path / name, Keyring.ephemeral())


def test_the_restricted_directory_is_its_owners_alone(tmp_path: Path) -> None:
    restricted = Restricted.beside(tmp_path / "bundles")
    assert restricted.path == tmp_path / "bundles-restricted"
    assert not restricted.path.exists()
    noted(restricted.lineage(), "d1", {("customer", "a")})
    assert restricted.path.stat().st_mode & 0o777 == 0o700
    assert digests(restricted.lineage(), "customer", "a") == ["d1"]
