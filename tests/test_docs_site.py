"""The documentation builds as a site, notebooks executed; links lead somewhere; all is loaded from there."""

from __future__ import annotations

import html.parser
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_LOADING = {("script", "src"), ("img", "src"), ("iframe", "src"), ("link", "href")}


class Found(html.parser.HTMLParser):
    """The anchors of a page, where it links to, and what a browser loads with it."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if tag == "a" and name == "href" and value:
                self.links.append(value)
            if (tag, name) in _LOADING and value:
                self.loaded.append(value)


def read(page: Path) -> Found:
    found = Found()
    found.feed(page.read_text("utf-8"))
    return found


def broken(pages: dict[Path, Found], root: Path) -> Iterator[str]:
    """Links within a site that lead nowhere."""
    for path, found in pages.items():
        for target in [*found.links, *found.loaded]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            linked = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = linked.is_file() and linked.is_relative_to(root)
            if not there or (
                parts.fragment and linked in pages and unquote(parts.fragment) not in pages[linked].anchors
            ):
                yield f"{path.relative_to(root)}: {target}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Found]:
    """The site's pages. A notebook that fails fails the build: nothing else executes them."""
    folder = tmp_path_factory.mktemp("site").resolve()
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return {path: read(path) for path in sorted(folder.rglob("*.html")) if path.name != "404.html"}


def root_of(site: dict[Path, Found]) -> Path:
    return min(site, key=lambda path: len(path.parts)).parent


def test_links_and_anchors_of_the_site_lead_somewhere(site: dict[Path, Found]) -> None:
    assert len(site) > 60
    assert not list(broken(site, root_of(site)))


def test_the_check_of_links_finds_what_is_broken(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<h1 id="there">x</h1><a href="#there">1</a><a href="#gone">2</a><a href="gone.html">3</a>'
    )

    assert list(broken({page: read(page)}, tmp_path)) == ["page.html: #gone", "page.html: gone.html"]


def test_a_browser_loads_nothing_from_elsewhere(site: dict[Path, Found]) -> None:
    assert not {target for found in site.values() for target in found.loaded if urlsplit(target).netloc}
    styles = [path.read_text("utf-8") for path in root_of(site).rglob("*.css")]
    assert styles
    assert not [url for style in styles for url in re.findall(r"url\([\"']?(?:https?:)?//[^)]*", style)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_and_draws(notebook: Path, site: dict[Path, Found]) -> None:
    folder = root_of(site) / "notebooks"
    drawn = {(folder / target).resolve() for target in site[folder / f"{notebook.stem}.html"].loaded}
    assert [path for path in (folder / notebook.stem).glob("*.png") if path in drawn]


@pytest.mark.parametrize(
    ("cell", "said"),
    [("1 / 0", "ZeroDivisionError"), ("open('left.csv', 'w').close()", "leaves files.*left.csv")],
)
def test_a_notebook_that_fails_or_leaves_files_fails_the_build(cell: str, said: str, tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("docs_site", ROOT / "scripts" / "docs_site.py")
    assert specification is not None
    assert specification.loader is not None
    hooks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hooks)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    nbformat.write(notebook, tmp_path / "bad.ipynb")
    with pytest.raises(Exception, match=said):
        hooks.notebook_files(tmp_path / "bad.ipynb")


def test_formulas_are_drawn_without_a_script(site: dict[Path, Found]) -> None:
    text = (root_of(site) / "models.html").read_text("utf-8")

    assert text.count("<math ") > 20
    assert "$`" not in text
    assert "\\frac" not in text


def test_every_page_has_its_place_in_the_navigation() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]

    def named(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for each in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from named(each)

    shown = set(named(navigation))
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {page for page in pages if not page.startswith("decisions/0")} | notebooks <= shown
