"""``consentier doctor``: what is installed, what is missing, and the line that mends it."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import typer

from consentier.cli.options import AsJson
from consentier.cli.output import CHECK_FAILED, print_json, print_table, say

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[(?P<extras>[^\]]*)\])?\s*(?P<version>[^;]*?)\s*"
    r"(?:;\s*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"])?"
)
_MINIMUM = re.compile(r">=\s*([0-9.]+)")
_OLDEST_PYTHON = (3, 11)


def doctor(as_json: AsJson = False) -> None:
    """Show what is installed and what is missing; exit with 1 if not even answers can be given."""
    from consentier import __version__

    core, extras = _installation()
    findings = [f"{package['name']} is {package['status']}" for package in core if package["status"] != "ok"]
    if sys.version_info < _OLDEST_PYTHON:
        findings.append(f"Python is {platform.python_version()}; 3.11 or later is needed")
    if not core:
        findings.append("consentier is not installed, only lying about: pip install consentier")
    if as_json:
        print_json(
            {
                "consentier": __version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "core": core,
                "extras": extras,
                "findings": findings,
            }
        )
    else:
        _print(__version__, core, extras, findings)
    if findings:
        raise typer.Exit(CHECK_FAILED)


def _print(
    version: str, core: Sequence[dict[str, Any]], extras: Sequence[dict[str, Any]], findings: Sequence[str]
) -> None:
    say(f"consentier {version}, Python {platform.python_version()}, {platform.platform()}\n")
    rows = [["core", *_row(package)] for package in core]
    rows += [[extra["name"], *_row(package)] for extra in extras for package in extra["packages"]]
    print_table(["for", "package", "installed", "needed", "status"], rows)
    say()
    for finding in findings:
        say(f"broken: {finding}", style="red")
    for extra in extras:
        if extra["mend"]:
            say(f"{extra['name']} is incomplete: {extra['mend']}", style="yellow")
    if not findings and not any(extra["mend"] for extra in extras):
        say("everything is installed", style="green")


def _row(package: dict[str, Any]) -> list[object]:
    return [package["name"], package["installed"], package["needed"], package["status"]]


def _installation() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What consentier itself needs, and each extra's packages, as its own metadata state them."""
    try:
        requirements = metadata.requires("consentier") or []
        names = metadata.metadata("consentier").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return [], []
    core: list[dict[str, Any]] = []
    by_extra: dict[str, list[dict[str, Any]]] = {name: [] for name in names if name != "all"}
    for text in requirements:
        match = _REQUIREMENT.fullmatch(text.strip())
        if match is None or match["name"] == "consentier":
            continue
        package = _package(match["name"], match["version"])
        if match["extra"] is None:
            core.append(package)
        elif match["extra"] in by_extra:
            by_extra[match["extra"]].append(package)
    return core, [
        {
            "name": name,
            "packages": packages,
            "mend": f"pip install 'consentier[{name}]'"
            if any(package["status"] != "ok" for package in packages)
            else None,
        }
        for name, packages in by_extra.items()
    ]


def _package(name: str, needed: str) -> dict[str, Any]:
    try:
        installed: str | None = metadata.version(name)
    except metadata.PackageNotFoundError:
        installed = None
    minimum = _MINIMUM.search(needed)
    if installed is None:
        status = "missing"
    elif minimum is not None and _release(installed) < _release(minimum[1]):
        status = "too old"
    else:
        status = "ok"
    return {"name": name, "installed": installed, "needed": needed or "any", "status": status}


def _release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with."""
    leading = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [] if leading is None else [int(part) for part in leading[0].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
