"""The tutorial and the how-to guides can be followed: what they say is done here, in order."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import guides
import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from consentier.cli.app import app

DOCS = Path(__file__).resolve().parents[1] / "docs"
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))

# Guides that need a server, or a scheduler, of their own; the others are worked through.
READ_ONLY = {"index", "schedulers", "postgresql", "redis"}

# A command within a line of a shell, of Python or of YAML; and one as a list in YAML.
_COMMAND = re.compile(r"(?:^|[\"' ])consentier ((?:consent |config )?[a-z]+(?: [^\n|&;]*)?)", re.MULTILINE)


def test_the_tutorial_leads_to_a_champion(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        done = guides.work_through(DOCS / "tutorial.md")

    assert done >= 20


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a shop and its bundles, as the guides expect them."""
    folder = tmp_path_factory.mktemp("shop")
    untracked = {"CONSENTIER__TRACKING__ENABLED": "false"}
    with contextlib.chdir(folder):
        for command in ("simulate shop --customers 300 --items 100 --days 40", "train shop --out bundles"):
            assert CliRunner().invoke(app, shlex.split(command), env=untracked).exit_code == 0
    return folder


@pytest.mark.parametrize(
    "page", [page for page in HOW_TO if page.stem not in READ_ONLY], ids=lambda page: page.stem
)
def test_a_guide_works(page: Path, shop: Path) -> None:
    with contextlib.chdir(shop):
        assert guides.work_through(page) > 1


@pytest.mark.parametrize("page", [DOCS / "tutorial.md", *HOW_TO], ids=lambda page: page.stem)
def test_commands_and_options_of_a_page_exist(page: Path) -> None:
    named = list(commands_of(page.read_text("utf-8")))

    for name, options in named:
        known = options_of(name)
        assert options <= known, f"consentier {name} has no {', '.join(sorted(options - known))}"


def test_commands_are_found_wherever_they_stand() -> None:
    text = (
        "```sh\nconsentier train shop --out=b --force || true\n```\n"
        '```python\nx = f"consentier consent show v --nope"\n```\n'
        "```yaml\ncommand: [consentier, validate, shop]\n```\n"
    )

    assert list(commands_of(text)) == [
        ("train", {"--out", "--force"}),
        ("consent show", {"--nope"}),
        ("validate", set()),
    ]
    assert options_of("train") >= {"--out", "--force"}
    assert "--nope" not in options_of("consent show")


def test_the_workflow_of_airflow_compiles_and_the_manifest_of_kubernetes_is_one() -> None:
    found = {
        block.head: block.body
        for block in guides.blocks((DOCS / "how-to" / "schedulers.md").read_text("utf-8"))
    }

    compile(found["python"], "dag.py", "exec", flags=ast.PyCF_ONLY_AST)
    manifest = yaml.safe_load(found["yaml"])
    assert manifest["kind"] == "CronJob"
    pod = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    mounted = {mount["name"] for each in pod["containers"] for mount in each.get("volumeMounts", ())}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def commands_of(text: str) -> Iterator[tuple[str, set[str]]]:
    """Each command of the command line in a page's blocks, with the options that it is given."""
    for block in guides.blocks(text):
        if block.head == "yaml":
            lists = [" ".join(map(str, words)) for words in lists_in(yaml.safe_load(block.body))]
            body = "\n".join(lists)
        else:
            body = block.body
        for found in _COMMAND.findall(body):
            words = found.split()
            name = " ".join(words[:2]) if words[0] in ("consent", "config") else words[0]
            yield name, set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", found))


def lists_in(value: object) -> Iterator[list[object]]:
    """All lists within a value of YAML."""
    if isinstance(value, list):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from lists_in(each)


def options_of(name: str) -> set[str]:
    """The options of a command; of no other can it be given any."""
    command = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts}
