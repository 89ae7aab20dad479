"""Files and directories appear whole, by one rename, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from consentier.writing import put_directory, remove_directory, sibling, whole_file, write_new


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
def test_a_directory_that_cannot_be_put_in_place_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool, fails: str
) -> None:
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


def test_a_directory_is_removed_whole(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "file").touch()
    remove_directory(target)
    assert list(tmp_path.iterdir()) == []


def test_names_beside_a_path_are_hidden_and_its_own(tmp_path: Path) -> None:
    one, two = sibling(tmp_path / "a"), sibling(tmp_path / "a", ".x")
    assert one != two
    assert one.parent == two.parent == tmp_path
    assert one.name.startswith(".a.")
    assert two.name.endswith(".x")
