"""Builds the distributions from a copy of exactly the files that pyproject.toml declares.

A build inside the tree would pick up what earlier builds left in ``build/`` and ``*.egg-info``. Needs the
packages ``build`` and ``setuptools`` in the interpreter that runs it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def copy_sources(destination: Path) -> None:
    """Copy the project file, the texts that it names, and the folders that it packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    files = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    for name in files:
        shutil.copy2(ROOT / name, destination / name)
    for folder in project["tool"]["setuptools"]["package-dir"].values():
        shutil.copytree(ROOT / folder, destination / folder, ignore=shutil.ignore_patterns("__pycache__"))


def build(out: Path, *, without_sdist: bool) -> None:
    """Build into `out`: an sdist and, from that, the wheel; or the wheel straight from the sources."""
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("*.whl"), *out.glob("*.tar.gz")):
        old.unlink()
    with tempfile.TemporaryDirectory(prefix="consentier-build-") as folder:
        sources = Path(folder)
        copy_sources(sources)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out.resolve())]
        if without_sdist:
            command.append("--wheel")
        done = subprocess.run([*command, str(sources)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace"))
        raise SystemExit("the build failed: see above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="directory for the distributions; older ones are removed")
    parser.add_argument(
        "--without-sdist", action="store_true", help="build the wheel straight from the sources"
    )
    arguments = parser.parse_args()
    build(arguments.out, without_sdist=arguments.without_sdist)


if __name__ == "__main__":
    main()
