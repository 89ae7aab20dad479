"""What the pages have in common: one self-contained HTML file, without scripts and without a network.

Sections, figures and tables look alike on all of them, in light and dark; what is wider than the window
scrolls by itself, also by keyboard. A page's bytes depend on what is put in (and the version of matplotlib)
only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from consentier.training.evaluation_result import IntervalFigures, mean_with_bounds
from consentier.training.plots import DARK_GROUND, LIGHT_GROUND, to_svg
from consentier.writing import whole_file, write_new

__all__ = [
    "NOTHING",
    "TOO_FEW",
    "figure_of",
    "interval_text",
    "number",
    "p_value",
    "page",
    "section",
    "share",
    "table",
    "write_page",
]

NOTHING = "–"
TOO_FEW = "too few to show"
_UNBROKEN = re.compile(rf"\[[-+.0-9]+, [-+.0-9]+\];?|[0-9,]+ customers|{TOO_FEW}")
"""What stands on one line where a cell of a table takes several."""

_STYLESHEET = f"""
:root {{ color-scheme: light dark;
  --ground: {LIGHT_GROUND}; --ink: #1b1f24; --line: #c4cad1; --soft: #f1f3f5; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ground: {DARK_GROUND}; --ink: #e4e7eb; --line: #444c56; --soft: #20252b; }}
}}
body {{ background: var(--ground); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; margin: 0 auto;
  max-width: 66rem; padding: 1.5rem; }}
h1, h2, h3 {{ line-height: 1.25; }}
h2 {{ border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1.25rem; }}
p, ul, dl, figcaption {{ max-width: 46rem; }}
dl {{ display: grid; gap: .2rem 1.2rem; grid-template-columns: max-content auto; }}
dt {{ font-weight: 600; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
figure {{ margin: 1.5rem 0; }}
figure svg {{ height: auto; min-width: 38rem; width: 100%; max-width: 56rem; }}
.verdict {{ border-left: .3rem solid var(--line); font-weight: 600; list-style: none; padding-left: 1rem; }}
.verdict li + li {{ margin-top: .6rem; }}
summary {{ cursor: pointer; }}
figcaption, caption {{ font-size: .93rem; }}
.scroll {{ margin: 1rem 0; overflow-x: auto; }}
.scroll:focus-visible {{ outline: 2px solid currentColor; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
caption {{ padding-bottom: .4rem; text-align: left; }}
th, td {{ border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: right;
  vertical-align: top; }}
th[scope=row], th:first-child {{ text-align: left; white-space: nowrap; }}
.unbroken {{ white-space: nowrap; }}
thead th {{ background: var(--soft); }}
@media print {{ body {{ max-width: none; }} .scroll {{ overflow: visible; }} }}
"""


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page: heading and sections, its style inline. Empty sections are left out."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLESHEET}</style>",
            "</head>",
            "<body>",
            "<main>",
            f"<h1>{escape(title)}</h1>",
            *(each for each in sections if each),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def write_page(path: str | Path, text: str) -> None:
    """Write a page to ``path``: beside it first, then renamed into place.

    Raises
    ------
    OSError
        If the folder is missing or cannot be written; an earlier page stays as it was.
    """
    with whole_file(Path(path)) as beside:
        write_new(beside, text.encode("utf-8"))


def section(identifier: str, heading: str, *parts: str) -> str:
    """A section with its heading and, unless empty, its identifier; empty parts are left out."""
    mark = f' id="{identifier}"' if identifier else ""
    return "\n".join(
        [f"<section>\n<h2{mark}>{escape(heading)}</h2>", *(part for part in parts if part), "</section>"]
    )


def figure_of(figure: Figure | None, identifier: str, label: str, caption: str) -> str:
    """A figure with its label, which screen readers say, and how to read it."""
    if figure is None:
        return "<p>There is nothing to draw: every group is too small or empty.</p>"
    opening = f'<svg role="img" aria-label="{escape(label)}"'
    svg = to_svg(figure, identifier).replace("<svg", opening, 1)
    # A name apart from the picture's own, so that a screen reader does not say the same twice.
    region = f'<div class="scroll" role="region" aria-label="figure {escape(identifier)}" tabindex="0">'
    says = f"<figcaption>{escape(label)}. {escape(caption)}</figcaption>"
    return f"<figure>\n{region}\n{svg}\n</div>\n{says}\n</figure>"


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names the row; it scrolls by itself, also by keyboard."""
    head = "".join(f'<th scope="col">{_cell(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )  # fmt: skip
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">\n'
        f"<table>\n<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _cell(text: str) -> str:
    return _UNBROKEN.sub(r'<span class="unbroken">\g<0></span>', escape(text))


def interval_text(figures: IntervalFigures | None, sign: str = "") -> str:
    """A mean with its interval; a dash for None. ``sign`` is ``+`` for differences."""
    return NOTHING if figures is None else mean_with_bounds(figures, sign)


def number(value: float | None) -> str:
    """Three decimals; a dash for None."""
    return NOTHING if value is None else f"{value:.3f}"


def p_value(value: float) -> str:
    """Four decimals, never 0."""
    return "below 0.0001" if value < 0.00005 else f"{value:.4f}"


def share(value: float | None) -> str:
    """A share in per cent; a dash for None."""
    return NOTHING if value is None else f"{value:.1%}"
