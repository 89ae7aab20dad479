"""The page on signals is true: its example runs, and it names every kind with all its settings."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from pathlib import Path

import pytest

from consentier.consent.signals import SIGNALS
from consentier.consent.signals.reading import SignalSettings

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "signals.md").read_text("utf-8")


def test_the_examples_print_what_the_page_says() -> None:
    names: dict[str, object] = {}
    examples = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", PAGE, re.DOTALL)
    assert len(examples) == 2
    for code, output in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/signals.md", "exec"), names)
        in_comments = "".join(line[2:] for line in code.splitlines(keepends=True) if line.startswith("# "))
        assert printed.getvalue() == output + in_comments


@pytest.mark.parametrize("kind", sorted(SIGNALS))
def test_every_kind_has_its_row_with_all_settings(kind: str) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{kind}` |")]
    common = {field.name for field in dataclasses.fields(SignalSettings)}
    own = {field.name for field in dataclasses.fields(SIGNALS[kind].settings)} - common
    if kind == "gpp":
        assert "those of `tcf`" in row
        return
    missing = {name for name in own if f"`{name}`" not in row}
    assert not missing
