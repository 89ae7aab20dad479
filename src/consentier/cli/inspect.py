"""``consentier inspect``: what is in a bundle, and is it whole?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from consentier.cli.options import AsJson
from consentier.cli.output import CHECK_FAILED, print_json, print_table, say
from consentier.consent import Tier
from consentier.errors import BundleError, BundleMissing


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A bundle, or a directory of bundles.")],
    as_json: AsJson = False,
) -> None:
    """Show the manifest of bundles, check every byte, and exit with 1 if one is damaged."""
    entries = [_entry(bundle) for bundle in _bundles(path)]
    if as_json:
        print_json(entries)
    else:
        for entry in entries:
            _print_entry(entry)
    if any(entry["findings"] for entry in entries):
        raise typer.Exit(CHECK_FAILED)


def _bundles(path: Path) -> list[Path]:
    """The bundle at a path, or those in it: whatever has a manifest or is named like a tier."""
    if (path / "manifest.json").exists():
        return [path]
    if not path.is_dir():
        raise BundleMissing(f"{path}: there is no such directory")
    tiers = {tier.value for tier in Tier}
    found = sorted(
        child
        for child in path.iterdir()
        if child.is_dir() and (child.name in tiers or (child / "manifest.json").exists())
    )
    if not found:
        raise BundleMissing(
            f"{path}: neither a bundle nor a directory of bundles; 'consentier train' writes them"
        )
    return found


def _entry(path: Path) -> dict[str, Any]:
    from consentier.models.bundle import open_bundle, read_run, verify_bundle

    try:
        findings = verify_bundle(path)
        bundle = open_bundle(path, verify=False)
    except BundleError as error:
        return {"path": str(path), "intact": False, "findings": [str(error)]}
    try:
        run = read_run(path)
    except BundleMissing:
        run = None  # a bundle is whole without its side-car
    except BundleError as error:
        run = None
        findings = [*findings, str(error)]
    manifest = bundle.manifest
    return {
        "path": str(path),
        "intact": not findings,
        "findings": findings,
        "tier": manifest.tier,
        "digest": bundle.digest,
        "sources": list(manifest.sources),
        "permission": list(manifest.permission),
        "algorithm": manifest.algorithm,
        "parameters": dict(manifest.parameters),
        "items": manifest.item_count,
        "cutoff": manifest.cutoff,
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "run": run,
    }


def _print_entry(entry: dict[str, Any]) -> None:
    say(entry["path"], style="bold")
    rows = [
        [name, _text(entry[name])]
        for name in ("tier", "digest", "sources", "permission", "algorithm", "items", "cutoff", "bytes")
        if name in entry
    ]
    if rows:
        print_table(["", ""], rows)
    if entry["intact"]:
        say("intact", style="green")
    for finding in entry["findings"]:
        say(f"damaged: {finding}", style="red")
    say()


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
