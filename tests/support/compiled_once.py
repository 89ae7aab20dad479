"""Ibis's expressions of one form become SQL once in each process.

The gate asks the same questions of each of the thousands of small shops in these tests: only the tables and
some constants differ. Nearly all of the time of such a question is Ibis's compiler. Two expressions have one
form if they are the same node by node, constants included; the tables in memory may hold other rows, and have
other names, which are put into the text. Code that a test breaks makes another form.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["compile_once", "form_of"]

_NAME = re.compile(r"ibis_\w*memtable_\w{20,}")
"""What Ibis calls a table in memory: chance, so that it stands nowhere else in a query."""


def compile_once() -> None:
    """Make DuckDB's backend remember what it has compiled in this process."""
    from ibis.backends.duckdb import Backend

    if not hasattr(Backend.compile, "__wrapped__"):
        Backend.compile = _remembering(Backend.compile)


def _remembering(compile_: Callable[..., str]) -> Callable[..., str]:
    known: dict[Hashable, str] = {}

    @functools.wraps(compile_)
    def compiled(self: Any, expr: Any, /, **options: Any) -> str:
        form, names = form_of(expr.op())
        if any(value is not None for value in options.values()) or not all(map(_NAME.fullmatch, names)):
            return compile_(self, expr, **options)
        if form not in known:
            text = compile_(self, expr, **options)
            for place, name in enumerate(names):
                text = text.replace(name, f"\0{place}\0")
            known[form] = text
        return re.sub("\0([0-9]+)\0", lambda found: names[int(found[1])], known[form])

    return compiled


def form_of(root: Any) -> tuple[Hashable, list[str]]:
    """All that an expression says but the rows and names of tables in memory; and these names."""
    from ibis.common.graph import Node
    from ibis.expr.operations import InMemoryTable

    numbers: dict[Any, int] = {}
    names: list[str] = []

    def said(value: Any) -> Hashable:
        if isinstance(value, Node):
            return "node", numbers[value]
        if isinstance(value, tuple | list):
            return "several", *map(said, value)
        if isinstance(value, dict):
            return "named", *((said(key), said(each)) for key, each in value.items())
        return type(value), value

    form = []
    nodes: list[Any] = []
    root.map(lambda node, *_, **__: nodes.append(node))  # what a node rests on comes before it
    for node in nodes:
        if isinstance(node, InMemoryTable):
            form.append((InMemoryTable, said(node.schema)))
            names.append(node.name)
        else:
            form.append((type(node), *map(said, node.__args__)))
        numbers[node] = len(numbers)
    return tuple(form), names
