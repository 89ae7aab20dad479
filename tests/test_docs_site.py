"""The documentation builds as a site; its links lead somewhere; a browser loads nothing from elsewhere."""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
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
    """The site's pages, with notebooks that were not executed: other tests execute them."""
    folder = tmp_path_factory.mktemp("site").resolve()
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"CONSENTIER_DOCS_NOTEBOOKS": "plain", "NO_MKDOCS_2_WARNING": "1"},
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
