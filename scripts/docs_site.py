"""Hooks of the documentation's site (``mkdocs.yml``): what the pages in ``docs/`` need to stand there alone.

* Notebooks become pages. They are executed, each in a folder of its own; one that fails, or leaves files
  there, fails the build.
* The changelog and its neighbours in the repository's root become pages.
* Links from ``docs/`` to these lead to their pages; those to other files of the repository become text.
* The reference is read from the folders of the repository, laid out as the package that they install as.
* Formulas, written as GitHub and GitLab show them too, become MathML: no script has to draw them.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import tomllib
from pathlib import Path
from posixpath import relpath
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
SECONDS_PER_CELL = 300

# Files outside docs/ and notebooks/ that have a page.
_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
_SOURCES = {page: source for source, page in _PAGES.items()}

_FENCED = re.compile(r"^(```+)(\w*)[^\n]*\n(.*?)^\1[ \t]*$\n?", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_INLINE_MATH = re.compile(r"\$`([^`]+)`\$")
_LINK = re.compile(r"(?<!\!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay the package out: the reader of docstrings does not find the pieces of an editable install."""
    laid_out = ROOT / ".build" / "docs-package"
    shutil.rmtree(laid_out, ignore_errors=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for package, folder in sorted(project["tool"]["setuptools"]["package-dir"].items()):
        shutil.copytree(
            ROOT / folder,
            laid_out / package.replace(".", "/"),
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(laid_out)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere in the repository."""
    for page, source in _SOURCES.items():
        if page != "index.md":
            files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for name, content in notebook_files(path).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn formulas into MathML, and links into those of the site."""
    pieces, end = [], 0
    for block in _FENCED.finditer(markdown):
        pieces.append(_prose(markdown[end : block.start()], page.file.src_uri))
        pieces.append(f"<div>{_mathml(block[3], 'block')}</div>\n" if block[2] == "math" else block[0])
        end = block.end()
    return "".join([*pieces, _prose(markdown[end:], page.file.src_uri)])


def notebook_files(path: Path) -> dict[str, str | bytes]:
    """A notebook as Markdown, and the figures that it drew."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, Path(folder))
        left = sorted(each.name for each in Path(folder).iterdir())
    if left:
        raise PluginError(f"{path.name} leaves files in the working folder: {', '.join(left)}")
    for cell in [
        each for each in notebook.cells if each.cell_type == "code"
    ]:  # what libraries warn of depends on what else is installed
        cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    # In a folder per notebook, or figures of two would bear one name.
    resources: dict[str, Any] = {"output_files_dir": path.stem}
    body, found = MarkdownExporter().from_notebook_node(notebook, resources)
    return {f"{path.stem}.md": _without_styles(body)} | found.get("outputs", {})


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute all cells, with `folder` as their working folder."""
    # The kernel draws into the notebook, whatever the environment of this process says.
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)


def _without_styles(body: str) -> str:
    return re.sub(r"<style scoped>.*?</style>\s*", "", body, flags=re.DOTALL)


def _prose(text: str, page: str) -> str:
    text = _INLINE_MATH.sub(lambda found: _mathml(found[1], "inline"), text)
    # What stands in code is no link. It is put aside and back; link texts may hold it.
    codes: list[str] = []

    def aside(found: re.Match[str]) -> str:
        codes.append(found[0])
        return f"\x00{len(codes) - 1}\x00"

    text = _LINK.sub(lambda found: _link(found[1], found[2], page), _CODE.sub(aside, text))
    return re.sub("\x00([0-9]+)\x00", lambda found: codes[int(found[1])], text)


def _mathml(formula: str, display: str) -> str:
    return convert(" ".join(formula.split()), display=display)


def _link(text: str, target: str, page: str) -> str:
    path, _, fragment = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
        return f"[{text}]({target})"
    linked = _page_of(os.path.normpath((ROOT / _source_of(page)).parent / path))
    if linked is None:
        return text
    return f"[{text}]({relpath(linked, Path(page).parent.as_posix())}{'#' if fragment else ''}{fragment})"


def _source_of(page: str) -> str:
    """Where in the repository a page of the site comes from."""
    if page.startswith("notebooks/"):
        return page
    return f"docs/{page}" if page == "index.md" else _SOURCES.get(page, f"docs/{page}")


def _page_of(path: str) -> str | None:
    """The page that shows a file of the repository, if one does."""
    name = Path(path).relative_to(ROOT).as_posix()
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if name.startswith("notebooks/"):
        return f"{name.removesuffix('.ipynb')}.md"
    return _PAGES.get(name)
