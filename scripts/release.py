"""Makes a release: version, changelog, distributions that were checked, checksums and provenance, a tag.

Everything happens in a clone beside the repository. Only what passed every check comes back: one commit, one
annotated tag, and the files in the directory that is named. Nothing is uploaded and nothing is pushed. Needs
git, and the packages ``build``, ``packaging`` and ``setuptools`` in the interpreter that runs it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import email.parser
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

from packaging.metadata import Metadata
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
UNRELEASED = "(unreleased)"


class Refused(SystemExit):
    """Why there is no release; nothing has changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no release: {reason}")


def run(*command: str | Path, cwd: Path, environ: dict[str, str] | None = None) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environ, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise Refused(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout.strip()


# --- what is asked for --------------------------------------------------------------------------------------


def checked_version(text: str, tags: Sequence[str]) -> Version:
    """A version that comes after all that were released."""
    try:
        version = Version(text)
    except InvalidVersion:
        raise Refused(f"{text!r} is no version; give one such as 0.2.0 or 0.2.0rc1") from None
    if str(version) != text or version.local or version.is_devrelease:
        raise Refused(f"{text!r} is not written as it will stand in the index: {version.public}")
    released = [Version(tag.removeprefix("v")) for tag in tags if re.fullmatch(r"v\d[\w.]*", tag)]
    if released and version <= max(released):
        raise Refused(f"{version} does not come after {max(released)}, the latest release")
    return version


def dated_changelog(text: str, version: Version, day: dt.date) -> tuple[str, str]:
    """The changelog with the release's date, and what it says of the release.

    The section of the final version may stand for its release candidates.
    """
    heading = f"## {version.base_version} {UNRELEASED}"
    if text.count(f"{heading}\n") != 1:
        raise Refused(f"CHANGELOG.md has no heading {heading!r}: write what users will notice under it")
    section = text.split(f"{heading}\n", 1)[1].split("\n## ", 1)[0].strip()
    if not section.lstrip().startswith(("-", "Previously")):
        raise Refused(f"CHANGELOG.md says nothing under {heading!r}")
    if version.is_prerelease:
        return text, section
    return text.replace(heading, f"## {version} ({day.isoformat()})"), section


def with_version(project: str, version: Version) -> str:
    """pyproject.toml with the version."""
    changed, count = re.subn(r'^version = "[^"]*"$', f'version = "{version}"', project, flags=re.MULTILINE)
    if count != 1:
        raise Refused(f"pyproject.toml states {count} versions, and must state one")
    return changed


# --- what is built ------------------------------------------------------------------------------------------


def built(clone: Path, out: Path, epoch: int) -> list[Path]:
    """Wheel and sdist of a clone, with the time of its commit in them."""
    environ = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    run(sys.executable, clone / "scripts" / "build_distributions.py", out, cwd=clone, environ=environ)
    return sorted(path for path in out.iterdir() if path.name.endswith((".whl", ".tar.gz")))


def check_distributions(files: Sequence[Path], version: Version) -> None:
    """Names, metadata and contents are what an index and an installer expect."""
    names = [f"consentier-{version}-py3-none-any.whl", f"consentier-{version}.tar.gz"]
    if [file.name for file in files] != names:
        raise Refused(f"built were {', '.join(file.name for file in files)}, not {', '.join(names)}")
    wheel, sdist = files
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
        metadata = archive.read(f"consentier-{version}.dist-info/METADATA")
    Metadata.from_email(metadata, validate=True)
    if email.parser.BytesParser().parsebytes(metadata)["Version"] != str(version):
        raise Refused(f"{wheel.name} states another version in its metadata")
    stray = [
        name for name in inside if not name.startswith(("consentier/", f"consentier-{version}.dist-info/"))
    ]
    if stray or "consentier/py.typed" not in inside:
        raise Refused(f"{wheel.name} holds {', '.join(stray) or 'no py.typed'}")
    with tarfile.open(sdist) as archive:
        strange = [
            member.name
            for member in archive.getmembers()
            if not (member.isfile() or member.isdir()) or not member.name.startswith(f"consentier-{version}")
        ]
    if strange:
        raise Refused(f"{sdist.name} holds {', '.join(strange)}")


def check_installed(wheel: Path, version: Version, folder: Path) -> None:
    """The wheel installs into an empty environment, with its dependencies, and names its version."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", wheel, cwd=folder)
    said = run(python, "-W", "error", "-c", "import consentier; print(consentier.__version__)", cwd=folder)
    if said != str(version):
        raise Refused(f"the installed wheel calls itself {said}")


def content(files: Sequence[Path]) -> dict[str, str]:
    """The bytes of the wheel, and the files of the sdist, in which setuptools dates its own by the clock."""
    wheel, sdist = files
    found = {wheel.name: sha256(wheel)}
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member) if member.isfile() else None
            found[member.name] = "" if file is None else hashlib.sha256(file.read()).hexdigest()
    return found


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def provenance(clone: Path, files: Sequence[Path], version: Version, commit: str) -> dict[str, object]:
    """What was built from what, by what: an in-toto statement with SLSA's predicate, version 1."""
    lock = clone / "requirements" / "lock.txt"
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": file.name, "digest": {"sha256": sha256(file)}} for file in files],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://peps.python.org/pep-0517/",
                "externalParameters": {"version": str(version)},
                "internalParameters": {"python": platform.python_version(), "platform": sys.platform},
                "resolvedDependencies": [
                    {"uri": "git:consentier", "digest": {"gitCommit": commit}},
                    {"uri": "requirements/lock.txt", "digest": {"sha256": sha256(lock)}},
                ],
            },
            "runDetails": {"builder": {"id": "scripts/release.py"}},
        },
    }


# --- the release --------------------------------------------------------------------------------------------


def release(text: str, out: Path, *, dry_run: bool) -> None:
    """Make the release, or refuse it and change nothing."""
    if dirty := run("git", "status", "--porcelain", cwd=ROOT):
        raise Refused(f"there are changes that no commit holds:\n{dirty}")
    if out.exists() and any(out.iterdir()):
        raise Refused(f"{out} is not empty")
    version = checked_version(text, run("git", "tag", cwd=ROOT).split())
    branch = run("git", "symbolic-ref", "--short", "HEAD", cwd=ROOT)
    with tempfile.TemporaryDirectory(prefix="consentier-release-") as folder:
        clone = Path(folder) / "consentier"
        run("git", "clone", "--quiet", "--no-local", "--branch", branch, ROOT, clone, cwd=ROOT)
        changelog, notes = dated_changelog(
            (clone / "CHANGELOG.md").read_text("utf-8"), version, dt.date.today()
        )
        (clone / "CHANGELOG.md").write_text(changelog, "utf-8")
        project = with_version((clone / "pyproject.toml").read_text("utf-8"), version)
        (clone / "pyproject.toml").write_text(project, "utf-8")
        _commit(clone, version, notes)
        commit = run("git", "rev-parse", "HEAD", cwd=clone)
        epoch = int(run("git", "show", "--no-patch", "--format=%ct", "HEAD", cwd=clone))
        files = built(clone, Path(folder) / "first", epoch)
        again = built(clone, Path(folder) / "second", epoch)
        if content(files) != content(again):
            raise Refused("two builds of one commit differ")
        check_distributions(files, version)
        check_installed(files[0], version, Path(folder) / "installed")
        statement = provenance(clone, files, version, commit)
        print(f"consentier {version}: built twice alike, installed, checked; commit {commit}")
        if dry_run:
            return
        out.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy2(file, out)
        sums = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
        (out / "SHA256SUMS").write_text(sums, "utf-8")
        (out / "provenance.json").write_text(json.dumps(statement, indent=2) + "\n", "utf-8")
        run("git", "pull", "--quiet", "--ff-only", "--tags", clone, branch, cwd=ROOT)
    print(f"tag v{version} and its commit stand on {branch}; the files are in {out}")
    print(f"next: git push --follow-tags, and upload {out}/*.whl and {out}/*.tar.gz")


def _commit(clone: Path, version: Version, notes: str) -> None:
    for key in ("user.name", "user.email"):
        run("git", "config", key, run("git", "config", key, cwd=ROOT), cwd=clone)
    run("git", "commit", "--quiet", "--allow-empty", "--all", "--message", f"Release {version}", cwd=clone)
    run("git", "tag", "--annotate", f"v{version}", "--cleanup=verbatim", "--message",
        f"Consentier {version}\n\n{notes}\n", cwd=clone)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", help="such as 0.2.0, or 0.2.0rc1")
    parser.add_argument(
        "--out", type=Path, default=ROOT / ".build" / "release", help="directory for the files"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, and change nothing")
    arguments = parser.parse_args()
    release(arguments.version, arguments.out, dry_run=arguments.dry_run)


if __name__ == "__main__":
    main()
