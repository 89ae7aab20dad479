"""Files and directories appear whole, by one rename, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from consentier import writing
from consentier.writing import (
    put_directory,
    remove_directory,
    remove_remnants,
    remove_remnants_in,
    scratch,
    sibling,
    whole_file,
    workplace,
    write_new,
)


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "list.json"
    target.write_text("old")
    with whole_file(target) as beside:
        write_new(beside, b"new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("fault", [OSError("disk on fire"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, fault: BaseException) -> None:
    target = tmp_path / "list.json"
    target.write_text("old")

    def interrupted() -> None:
        with whole_file(target) as beside:
            write_new(beside, b"half")
            raise fault

    with pytest.raises(type(fault)):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_takes_no_other_place_and_keeps_its_mode(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "keys", tmp_path / "elsewhere"
    write_new(path, b"secret", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_new(path, b"other")
    (tmp_path / "link").symlink_to(elsewhere)
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "link", b"other")
    assert path.read_bytes() == b"secret"
    assert not elsewhere.exists()


@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.parametrize("fails", ["rename", "flush"])
@pytest.mark.parametrize("exchanges", [True, False])
def test_a_directory_that_cannot_be_put_in_place_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool, fails: str, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(writing, "_exchanged", lambda *_: False)
    target, partial = tmp_path / "bundle", tmp_path / "partial"
    partial.mkdir()
    if replaces:
        target.mkdir()
        (target / "old").touch()
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    rename = Path.rename

    def burning(self: Path, place: Path) -> Path:
        if self == partial:
            raise OSError("disk on fire")
        return rename(self, place)

    def full(_: int) -> None:
        raise OSError("disk on fire")

    with monkeypatch.context() as patch:
        if fails == "rename":
            patch.setattr(Path, "rename", burning)
        else:
            patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="disk on fire"):
            put_directory(partial, target)
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before


def test_a_replaced_directory_is_left_to_the_caller(tmp_path: Path) -> None:
    target, partial = tmp_path / "bundle", tmp_path / "partial"
    partial.mkdir()
    assert put_directory(partial, target) is None
    (target / "old").touch()
    partial.mkdir()
    replaced = put_directory(partial, target)
    assert replaced is not None
    assert (replaced / "old").is_file()
    assert list(target.iterdir()) == []


def test_two_directories_change_places_in_one_step(tmp_path: Path) -> None:
    target, partial = tmp_path / "bundle", tmp_path / "partial"
    for place in (target, partial):
        place.mkdir()
        (place / place.name).touch()
    assert writing._exchanged(partial, target)
    assert [[path.name for path in place.iterdir()] for place in (target, partial)] == [
        ["partial"],
        ["bundle"],
    ]
    with pytest.raises(FileNotFoundError):
        writing._exchanged(tmp_path / "nothing", target)


HIDDEN = ["", ".tmp", ".partial", ".replaced", ".removed", ".download", ".run.partial"]


@pytest.mark.parametrize("suffix", HIDDEN)
@pytest.mark.parametrize("directory", [True, False])
def test_what_killed_writers_left_goes_with_the_next_one(
    tmp_path: Path, suffix: str, directory: bool
) -> None:
    def leave(path: Path) -> Path:
        remnant = sibling(path, suffix)
        remnant.mkdir() if directory else remnant.touch()
        if directory:
            (remnant / "half").write_text("half")
        return remnant

    target = tmp_path / "list.json"
    leave(target)
    of_another = leave(tmp_path / "other")
    with whole_file(target) as beside:
        beside.write_text("new")
    assert sorted(tmp_path.iterdir()) == sorted([target, of_another])
    remove_remnants_in(tmp_path)
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_being_written_is_no_remnant(tmp_path: Path) -> None:
    target = tmp_path / "list.json"
    with whole_file(target) as first:
        first.write_text("first")
        with whole_file(target) as second:
            second.write_text("second")
        remove_remnants(target)
        remove_remnants_in(tmp_path)
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_neither_links_nor_names_that_only_look_alike_are_remnants(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "folder"
    folder.mkdir()
    sibling(folder / "a", ".tmp").symlink_to(outside)
    for name in (
        ".a.0123456789abcde",
        ".a.0123456789abcdef.TMP",
        "a.0123456789abcdef",
        ".b.0123456789abcdef",
    ):
        (folder / name).touch()
    before = sorted(folder.iterdir())
    remove_remnants(folder / "a")
    assert sorted(folder.iterdir()) == before
    assert outside.is_dir()


def test_remnants_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remnant = sibling(tmp_path / "a")
    remnant.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        remove_remnants(tmp_path / "a")
    assert remnant.is_dir()
    remove_remnants(tmp_path / "a")
    assert not remnant.exists()


def test_a_place_that_was_taken_for_a_remnant_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    sweeps = iter([True, False])
    lock = writing._lock

    def late(descriptor: int) -> bool:
        if next(sweeps):
            made[-1].rmdir()
        return lock(descriptor)

    def named(path: Path, suffix: str = "") -> Path:
        made.append(sibling(path, suffix))
        return made[-1]

    monkeypatch.setattr(writing, "_lock", late)
    monkeypatch.setattr(writing, "sibling", named)
    with workplace(tmp_path / "a") as place:
        assert place == made[1]
        assert place.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_scratch_directories_are_ones_own_and_go_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = sibling(tmp_path / "consentier-fit")
    left.mkdir()
    with scratch("fit") as one, scratch("fit") as two, scratch("other"):
        assert one != two
        assert one.stat().st_mode & 0o777 == 0o700
        (one / "file").touch()
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_removed_whole(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "file").touch()
    sibling(target, ".replaced").mkdir()
    remove_directory(target)
    assert list(tmp_path.iterdir()) == []


def test_names_beside_a_path_are_hidden_and_its_own(tmp_path: Path) -> None:
    one, two = sibling(tmp_path / "a"), sibling(tmp_path / "a", ".x")
    assert one != two
    assert one.parent == two.parent == tmp_path
    assert one.name.startswith(".a.")
    assert two.name.endswith(".x")
