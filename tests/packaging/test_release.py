"""The release command: it refuses what is not ready, and then nothing has changed."""

from __future__ import annotations

import datetime as dt
import importlib.util
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
DAY = dt.date(2026, 11, 1)
CHANGELOG = """# Changelog

## 0.2.0 (unreleased)

- Something new.

## 0.1.0 (2026-01-01)

- Everything.
"""


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("text", ["0.2.0", "0.1.1", "1.0.0rc1", "0.1.0.post1"])
def test_a_later_version_is_accepted(release: ModuleType, text: str) -> None:
    assert release.checked_version(text, ["v0.1.0", "v0.0.9", "nightly"]) == Version(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0.1.0", "does not come after 0.1.0"),
        ("0.0.5", "does not come after"),
        ("v0.2.0", "not written as"),
        ("0.2.0-rc1", "not written as"),
        ("0.2.0+here", "not written as"),
        ("0.2.0.dev3", "not written as"),
        ("new", "is no version"),
    ],
)
def test_other_versions_are_refused(release: ModuleType, text: str, told: str) -> None:
    with pytest.raises(SystemExit, match=told):
        release.checked_version(text, ["v0.1.0"])


def test_the_changelog_is_dated_and_its_section_becomes_the_notes(release: ModuleType) -> None:
    text, notes = release.dated_changelog(CHANGELOG, Version("0.2.0"), DAY)
    assert text == CHANGELOG.replace("(unreleased)", "(2026-11-01)")
    assert notes == "- Something new."
    assert release.dated_changelog(CHANGELOG, Version("0.2.0rc1"), DAY) == (CHANGELOG, notes)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (CHANGELOG, "0.3.0"),
        (CHANGELOG.replace("- Something new.\n", ""), "0.2.0"),
        (CHANGELOG + "\n## 0.2.0 (unreleased)\n", "0.2.0"),
    ],
)
def test_without_a_section_there_is_no_release(release: ModuleType, text: str, version: str) -> None:
    with pytest.raises(SystemExit, match="CHANGELOG"):
        release.dated_changelog(text, Version(version), DAY)


def test_this_trees_changelog_and_project_can_be_released(release: ModuleType) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (line,) = (line for line in project.splitlines() if line.startswith("version = "))
    version = Version(line.split('"')[1])
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    _, notes = release.dated_changelog(changelog, version, DAY)
    assert notes
    assert '\nversion = "9.9.9"\n' in release.with_version(project, Version("9.9.9"))


def test_stray_files_in_a_distribution_are_refused(release: ModuleType, tmp_path: Path) -> None:
    wheel, sdist = tmp_path / "consentier-0.2.0-py3-none-any.whl", tmp_path / "consentier-0.2.0.tar.gz"
    metadata = "Metadata-Version: 2.4\nName: consentier\nVersion: 0.2.0\n"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(ROOT / "LICENSE", "consentier-0.2.0/LICENSE")

    def write(*names: str) -> list[Path]:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("consentier-0.2.0.dist-info/METADATA", metadata)
            for name in names:
                archive.writestr(name, "")
        return [wheel, sdist]

    release.check_distributions(write("consentier/__init__.py", "consentier/py.typed"), Version("0.2.0"))
    with pytest.raises(SystemExit, match=r"holds models/__init__\.py"):
        release.check_distributions(write("consentier/py.typed", "models/__init__.py"), Version("0.2.0"))
    with pytest.raises(SystemExit, match=r"no py\.typed"):
        release.check_distributions(write("consentier/__init__.py"), Version("0.2.0"))
    metadata = metadata.replace("0.2.0", "0.1.0")
    with pytest.raises(SystemExit, match="another version"):
        release.check_distributions(write("consentier/py.typed"), Version("0.2.0"))
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(ROOT / "LICENSE", "../LICENSE")
    metadata = metadata.replace("0.1.0", "0.2.0")
    with pytest.raises(SystemExit, match=r"holds \.\./LICENSE"):
        release.check_distributions(write("consentier/py.typed"), Version("0.2.0"))
