"""``consentier config``: begin a configuration, check it, see what holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from consentier.cli.options import AsJson, ConfigPath, ReplaceFile
from consentier.cli.output import note, print_json, say, written_beside

_SCHEMA_FILE = "consentier.schema.json"


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("consentier.toml"),
    force: ReplaceFile = False,
) -> None:
    """Write a configuration to begin with, every field with its meaning; and a schema for editors."""
    from consentier.training.config_file import config_schema, config_template

    schema = path.with_name(_SCHEMA_FILE)
    if path.exists() and not force:
        raise FileExistsError(f"{path}: there is a file already; use --force to replace it")
    with written_beside(schema) as beside:
        beside.write_text(json.dumps(config_schema(), indent=2) + "\n", "utf-8")
    with written_beside(path) as beside:
        beside.write_text(config_template(f"./{_SCHEMA_FILE}"), "utf-8")
    say(f"written to {path}, and {schema} for editors that complete and check TOML")
    note(f"next: edit it, then: consentier config check {path}")


def check(
    path: Annotated[Path, typer.Argument(help="The file to check.")] = Path("consentier.toml"),
) -> None:
    """Check a configuration, and what the environment overrides in it; exit with 2 if it is wrong."""
    from consentier.training.config import config_hash, load_config

    config = load_config(path, environ=os.environ)
    say(f"{path}: fine; hash of what holds: {config_hash(config)}")


def show(
    data: Annotated[
        Path | None, typer.Argument(help="The shop's data, whose consentier.toml counts if there is one.")
    ] = None,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Show what holds: defaults, file and environment together."""
    from consentier.training.config import config_hash, load_config
    from consentier.training.config_file import resolved_toml

    settings = load_config(config, data=data, environ=os.environ)
    if as_json:
        print_json({"config": settings.recorded(), "hash": config_hash(settings)})
        return
    typer.echo(resolved_toml(settings))
    if settings.shown() != settings:
        note("tracking.uri is shown without user, password and options")
    note(f"hash: {config_hash(settings)}")


def schema() -> None:
    """Print the JSON schema of the file, for editors."""
    from consentier.training.config_file import config_schema

    print_json(config_schema())
