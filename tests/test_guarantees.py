"""The page of guarantees: each sentence that promises something names its tests, and these exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
HEAD, _, TESTS = PAGE.partition("## The tests\n")
PROMISES = HEAD[HEAD.index("## The ten laws") : HEAD.index("## What no test can show")]

_NOTE = re.compile(r"^\[\^(\w+)\]: (.+(?:\n    .+)*)$", re.MULTILINE)
_NAMED = re.compile(r"`([\w/.]*)::(\w+)`")


def promises(text: str) -> list[str]:
    """The items of the page's lists, each as one line."""
    items = re.findall(r"^- (.+(?:\n  .+)*)", text, re.MULTILINE)
    return [" ".join(item.split()) for item in items]


def unheld(promise: str) -> list[str]:
    """The sentences of a promise without a mark that leads to tests."""
    sentences = re.split(r"(?<=\])\s|(?<=\.)\s", promise)
    return [sentence for sentence in sentences if not re.search(r"[.;,:]?(\[\^\w+\])+$", sentence)]


def notes(text: str) -> dict[str, list[tuple[str, str]]]:
    """By mark, its tests by file and name; a name without a file is of the file before."""
    found: dict[str, list[tuple[str, str]]] = {}
    for mark, listed in _NOTE.findall(text):
        file, tests = "", []
        for named, test in _NAMED.findall(listed):
            file = named or file
            tests.append((file, test))
        found[mark] = tests
    return found


@functools.cache
def names_in(file: str) -> frozenset[str]:
    """The names of a file's tests, read and not run."""
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def test_every_sentence_of_every_promise_names_its_tests() -> None:
    assert len(promises(PROMISES)) > 50
    assert [sentence for promise in promises(PROMISES) for sentence in unheld(promise)] == []


def test_nothing_is_promised_outside_of_the_lists() -> None:
    lines = [line for line in PROMISES.splitlines() if line and not line.startswith(("#", "- ", "  "))]
    assert lines == ["Who could attack what stands in the [threat model](security.md)."]


def test_every_mark_leads_to_tests_and_every_test_is_led_to() -> None:
    marks = re.findall(r"\[\^(\w+)\]", HEAD)
    assert sorted(set(marks)) == sorted(notes(TESTS))
    assert len(_NOTE.findall(TESTS)) == len(notes(TESTS)), "a mark stands twice"


@pytest.mark.parametrize(("mark", "tests"), notes(TESTS).items())
def test_the_tests_that_a_sentence_names_exist(mark: str, tests: list[tuple[str, str]]) -> None:
    assert tests, mark
    assert [f"{file}::{test}" for file, test in tests if test not in names_in(file)] == []


@pytest.mark.parametrize("law", range(1, 11))
def test_each_law_has_promises_tests_and_mutants_of_its_own(law: int) -> None:
    chapter = PROMISES.split("\n### ")[law]
    assert chapter.startswith(f"{law}. ")
    files = sorted((ROOT / "tests" / "laws").glob(f"test_law_{law:02}_*.py"))
    assert any("@breaks(" in path.read_text("utf-8") for path in files)
    own = {file for mark, tests in notes(TESTS).items() if mark[:-1] == str(law) for file, _ in tests}
    named = {path.name for path in files}
    assert named & {Path(file).name for file in own}


def test_every_file_of_laws_stands_on_the_page() -> None:
    files = {path.name for path in (ROOT / "tests" / "laws").glob("test_law_*.py")}
    assert files - set(re.findall(r"test_law_\w+\.py", TESTS)) == set()


def test_a_sentence_without_a_test_would_be_found() -> None:
    assert promises("- One.[^a]\n  Two\n  lines.\n") == ["One.[^a] Two lines."]
    assert unheld("One.[^a] Two lines.") == ["Two lines."]
    assert unheld("One, of a kind;[^a] two.[^b]") == []
    assert unheld("One. Two.[^a]") == ["One."]
