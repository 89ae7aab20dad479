"""The documentation is true: its code runs, its commands exist, its tables are the code's, links resolve."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import re
import shlex
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from consentier.cli.app import app
from consentier.consent import Policy, Side, State, Switches, Tier

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

# Pages with Python examples, which use the bundles of the README's session.
EXAMPLES = (
    "consent",
    "ledger",
    "accountability",
    "tuning",
    "profiles",
    "operations",
    "experiments",
    "cold-start",
    "service",
    "mlflow",
    "index",
)

_CODE = re.compile(r"```.*?```", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PYTHON_WITH_OUTPUT = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_of_code_say_what_both_kinds_of_page_understand(page: Path) -> None:
    """A word that the site's Markdown does not know makes a paragraph of a block."""
    fences = [
        line.strip() for line in page.read_text("utf-8").splitlines() if line.lstrip().startswith("```")
    ]
    assert [line for line in fences if not re.fullmatch(r'```+(\w+( title="[^"]+")?)?', line)] == []
    assert len(fences) % 2 == 0


# ---- Code and commands -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of a session in the README, and the lines that its output is said to hold."""

    command: str
    expected: tuple[str, ...]


def session() -> list[Step]:
    blocks = re.findall(r"```console\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    steps: list[Step] = []
    for line in "".join(blocks).splitlines():
        if line.startswith("$ "):
            steps.append(Step(line.removeprefix("$ "), ()))
        else:
            steps[-1] = dataclasses.replace(steps[-1], expected=(*steps[-1].expected, line))
    return steps


def type_in(step: Step) -> None:
    """Run one command of the session here, and find in its output what the page shows of it."""
    program, *arguments = shlex.split(step.command)
    assert program == "consentier"
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, f"{step.command}: {result.output}"
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for expected in step.expected:
        assert " ".join(expected.split()) in lines, f"{step.command}: {result.stdout}"


def run_examples(page: Path) -> None:
    """Run the Python examples of a page here; each is followed by what it prints."""
    text = page.read_text("utf-8")
    examples = _PYTHON_WITH_OUTPUT.findall(text)
    assert len(examples) == text.count("```python") > 0
    for code, output in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), {})
        assert printed.getvalue() == output


def test_the_session_of_the_readme_runs_and_so_do_the_python_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One test, because the examples use the bundles of the session.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where those of their directories go that stay
    with contextlib.chdir(tmp_path):
        for step in session():
            type_in(step)
        for page in (
            README,
            *(ROOT / "docs" / f"{name}.md" for name in EXAMPLES),
        ):
            run_examples(page)
    assert (tmp_path / "evaluation.json").is_file()


# ---- Pages that repeat what code says ----------------------------------------------------------------------


def cli_docs() -> ModuleType:
    return script("write_cli_docs")


def script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_page_of_commands_is_up_to_date() -> None:
    written = (ROOT / "docs" / "cli.md").read_text("utf-8")

    assert written == cli_docs().page(), "run: python scripts/write_cli_docs.py"


def test_the_page_of_the_data_contract_is_up_to_date() -> None:
    written = (ROOT / "docs" / "data-contract.md").read_text("utf-8")

    assert written == script("write_data_contract").page(written), (
        "run: python scripts/write_data_contract.py"
    )


def test_every_command_and_option_has_a_help_text() -> None:
    rows = [line for line in cli_docs().page().splitlines() if line.startswith("| `")]

    assert len(rows) > 50
    assert not [row for row in rows if row.endswith("|  |")]


def commands() -> list[str]:
    """All commands, those of groups with the group's name before them."""
    names = [info.name or info.callback.__name__ for info in app.registered_commands]
    for group in app.registered_groups:
        within = group.typer_instance.registered_commands
        prefix = group.typer_instance.info.name
        names += [f"{prefix} {info.name or info.callback.__name__}" for info in within]
    return names


@pytest.mark.parametrize("command", commands())
def test_the_page_of_commands_names_all_that_help_names(command: str) -> None:
    arguments = [*command.split(), "--help"]
    help_text = CliRunner().invoke(app, arguments, env={"COLUMNS": "300", "TERM": "dumb"}).stdout
    section = (ROOT / "docs" / "cli.md").read_text("utf-8").split(f"\n## {command}\n")[1].split("\n## ")[0]

    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", help_text))

    assert "--help" in options
    assert options - {"--help"} <= set(re.findall(r"--[a-z][a-z-]*", section))


def test_the_routing_matrix_of_the_readme_is_the_default_policy() -> None:
    rows = {
        "none": State.NONE,
        "online only": State.ONLINE,
        "CRM only": State.CRM,
        "both, linked": State.BOTH_LINKED,
        "both, not linked": State.BOTH_UNLINKED,
        "objection, or a minor without parental consent": State.OBJECTED,
    }
    text = README.read_text("utf-8")
    stated = {}
    for title, state in rows.items():
        (cells,) = re.findall(rf"^\| {title} \| ([^|]*) \| ([^|]*) \|$", text, re.MULTILINE)
        for side, cell in zip((Side.ONLINE, Side.CRM), cells, strict=True):
            names = () if cell == "nobody" else cell.split(", ")
            stated[state, side] = tuple(Tier(name) for name in names)

    assert stated == dict(Policy.default().matrix)


@pytest.mark.parametrize("switch", [field.name for field in dataclasses.fields(Switches)])
def test_every_switch_of_the_policy_has_its_section(switch: str) -> None:
    text = (ROOT / "docs" / "consent.md").read_text("utf-8")
    section = text.split(f"\n### `{switch}`\n")[1].split("\n#")[0]

    assert "Check:" in section


# ---- Links -------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings have where Markdown is shown."""
    headings = re.findall(r"^#+ (.*)$", _CODE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_resolve(page: Path) -> None:
    broken = []
    for target in _LINK.findall(_CODE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        exists = linked.exists() and linked.is_relative_to(ROOT)
        if not exists or (fragment and fragment not in anchors(linked)):
            broken.append(target)

    assert not broken


def test_the_index_of_decisions_is_complete() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text("utf-8")
    decisions = sorted(path.name for path in folder.glob("[0-9]*.md"))

    assert re.findall(r"\]\(([^)]*)\)", index) == decisions
    for number, name in enumerate(decisions, start=1):
        assert name.startswith(f"{number:04}-")
        title = (folder / name).read_text("utf-8").splitlines()[0]
        assert title.startswith(f"# {number}. ")
