"""Pages that are worked through: their files are written, their commands and their Python run, in order."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from consentier.cli.app import app

_BLOCK = re.compile(
    r"^(?P<fence>```+)(?P<head>[^\n]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL
)
_TITLE = re.compile(r'python title="([^"]+)"')
_FAILURES = ("error: ", "not valid: ")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: what stands after the fence and in it, and whether it directly follows another."""

    head: str
    body: str
    follows: bool


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of a session, and the lines that its output is said to hold."""

    command: str
    expected: tuple[str, ...]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, end = [], -1
    for match in _BLOCK.finditer(text):
        found.append(Block(match["head"], match["body"], end >= 0 and not text[end : match.start()].strip()))
        end = match.end()
    return found


def steps(session: str) -> Iterator[Step]:
    """The commands of a block of a console."""
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield Step(command, tuple(line for line in shown if line.strip()))


def work_through(page: Path) -> int:
    """Do here what a page says, and compare what comes of it with what it shows.

    ``console``
        Commands. Each line that is shown must be one of the output; ``…`` stands for any text. A command that
        shows an error must fail, all others must not.
    ``python``
        Run in one namespace for the page. What it prints is the block of ``text`` that follows directly.
    ``python title="FILE"``
        A file, to be written here.

    Other blocks are left alone. Returns how many were done.
    """
    namespace: dict[str, Any] = {"__name__": page.stem}
    page_blocks, done = blocks(page.read_text("utf-8")), 0
    for block, after in zip(page_blocks, [*page_blocks[1:], None], strict=True):
        if title := _TITLE.fullmatch(block.head):
            Path(title[1]).write_text(block.body, encoding="utf-8")
        elif block.head == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.body, str(page), "exec", dont_inherit=True), namespace)
            shown = after.body if after is not None and after.follows and after.head == "text" else ""
            assert printed.getvalue() == shown, f"{block.body}\nprints\n{printed.getvalue()}"
        elif block.head == "console":
            for step in steps(block.body):
                type_in(step)
        else:
            continue
        done += 1
    return done


def type_in(step: Step) -> None:
    """Run one command here, and find in its output what the page shows of it."""
    program, *arguments = shlex.split(step.command)
    if program == "consentier":
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "400"})
        code, output = result.exit_code, result.output
    else:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        ended = subprocess.run(
            step.command,
            shell=True,
            env=os.environ | {"PATH": path},
            text=True,
            capture_output=True,
            check=False,
        )
        code, output = ended.returncode, ended.stdout + ended.stderr
    fails = any(line.startswith(_FAILURES) for line in step.expected)
    assert (code != 0) == fails, f"{step.command}: {code}: {output}"
    lines = [" ".join(line.split()) for line in output.splitlines()]
    for expected in step.expected:
        pattern = re.escape(" ".join(expected.split())).replace("…", ".*")
        assert any(re.fullmatch(pattern, line) for line in lines), f"{step.command}: {expected}: {output}"
