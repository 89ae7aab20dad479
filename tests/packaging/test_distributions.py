"""What is in the wheel and the sdist, and that what is tested is what is built."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {
    "consentier": ROOT / "src" / "consentier",
    **{
        f"consentier/{name}": ROOT / name for name in ("consent", "features", "models", "serving", "training")
    },
}


def contents(wheel: Path) -> dict[str, str]:
    """SHA-256 of every file in a wheel, apart from RECORD, which lists the same."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
            if not name.endswith(("/", "/RECORD"))
        }


def modules_of_the_tree() -> set[str]:
    """Where each module of the tree belongs in the wheel."""
    return {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in FOLDERS.items()
        for path in folder.rglob("*.py")
    }


def test_nothing_but_consentier_is_installed(wheel: Path) -> None:
    """A shop's site-packages get no `models`, no `training`."""
    tops = {name.partition("/")[0] for name in contents(wheel)}
    assert tops == {"consentier", f"consentier-{importlib.metadata.version('consentier')}.dist-info"}


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    package = {name for name in contents(wheel) if name.startswith("consentier/")}
    assert package == modules_of_the_tree() | {
        "consentier/py.typed",
        "consentier/consent/default_policy.toml",
        "consentier/consent/default_lifetimes.toml",
    }


def test_the_wheel_carries_licence_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if name.endswith("/METADATA")).removesuffix(
            "METADATA"
        )
        assert archive.read(info + "licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert b"consentier = consentier.__main__:main" in archive.read(info + "entry_points.txt")
        assert b"License-Expression: Apache-2.0" in archive.read(info + "METADATA")


def test_only_numpy_is_needed_without_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA")))
    needed = [
        Requirement(line)
        for line in re.findall(r"^Requires-Dist: (.*)$", metadata.decode(), flags=re.MULTILINE)
    ]
    assert [each.name for each in needed if each.marker is None] == ["numpy"]


def test_sdist_and_tree_give_the_same_wheel(wheel: Path, direct_wheel: Path) -> None:
    assert contents(wheel) == contents(direct_wheel)


def test_the_sdist_holds_no_stray_files(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    written_by_setuptools = {"PKG-INFO", "setup.cfg"}
    texts = {"pyproject.toml", "README.md", "LICENSE"}
    others = {
        name
        for name in names - written_by_setuptools - texts
        if not name.startswith("src/consentier.egg-info/") and not name.startswith("consentier.egg-info/")
    }
    tree = {
        path.relative_to(ROOT).as_posix() for folder in FOLDERS.values() for path in folder.rglob("*.py")
    } | {"src/consentier/py.typed", "consent/default_policy.toml", "consent/default_lifetimes.toml"}
    assert others == tree
    assert texts <= names


@pytest.mark.skipif(
    os.environ.get("CONSENTIER_TESTED") != "wheel", reason="only `make test` promises to test the wheel"
)
def test_the_tested_installation_is_this_wheel(wheel: Path) -> None:
    distribution = importlib.metadata.distribution("consentier")
    installed = {
        str(file): hashlib.sha256(file.locate().read_bytes()).hexdigest()
        for file in distribution.files or ()
        if str(file).startswith("consentier/") and file.suffix != ".pyc" and "__pycache__" not in str(file)
    }
    built = {name: digest for name, digest in contents(wheel).items() if name.startswith("consentier/")}
    assert installed == built


# --- the lock ---------------------------------------------------------------------------------------------


def pins(name: str) -> dict[str, list[Requirement]]:
    """The pinned requirements of a file, by package."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(canonical(requirement.name), []).append(requirement)
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> list[Requirement]:
    """All requirements but those of the extras that the lock leaves out."""
    project = PROJECT["project"]
    extras = {
        name: texts
        for name, texts in project["optional-dependencies"].items()
        if name not in {"spark", "fuzz", "bench"}
    }
    texts = [*project["dependencies"], *(text for each in extras.values() for text in each)]
    return [each for each in map(Requirement, texts) if each.name != "consentier"]


def version_of(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", f"{pin} is not pinned"
    return Version(specifier.version)


@pytest.mark.parametrize("name", ["lock.txt", "lower-bounds.txt"])
def test_every_declared_requirement_is_pinned_within_its_bounds(name: str) -> None:
    locked = pins(name)
    for requirement in declared():
        for pin in locked[canonical(requirement.name)]:
            assert requirement.specifier.contains(version_of(pin)), (
                f"{pin} is not {requirement}: run make lock"
            )


@pytest.mark.parametrize("name", ["lock.txt", "lower-bounds.txt"])
def test_the_lock_names_versions_and_no_places(name: str) -> None:
    for group in pins(name).values():
        for pin in group:
            version_of(pin)
            assert pin.url is None
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    assert not re.search(r"://|^-|^/", text, flags=re.MULTILINE)


def test_the_lower_bounds_are_the_declared_ones() -> None:
    """Where a bound is not the version tested, it is because that release cannot be installed any more."""
    tested = pins("lower-bounds.txt")
    untested = {}
    for requirement in declared():
        bounds = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
        (pin,) = tested[canonical(requirement.name)]
        if bounds and version_of(pin) != max(bounds):
            untested[requirement.name] = str(version_of(pin))
    assert untested == {}, f"raise these bounds to what is tested: {json.dumps(untested)}"
