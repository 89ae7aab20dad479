"""Breaks one rule of the engine on purpose, to show that the test which guards it would notice.

A law's test file states a promise as a checking function, tests it on many random cases, and then breaks the
code, one rule at a time: the same checking function must fail. A guard that cannot fail guards nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

__all__ = ["Break", "assert_breaks", "breaks"]


@dataclass(frozen=True)
class Break:
    """One rule broken: in `function`, the code `rule` is replaced by `broken`.

    `witness` is a case in which that must show; without one, random cases are searched for it.
    """

    name: str
    function: Callable[..., Any]
    rule: str
    broken: str
    witness: Any = None

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Run with the broken code, wherever the function was imported to; restored at the end.

        Raises
        ------
        LookupError
            If the rule is not found exactly once: the code has changed, and this break with it must.
        """
        function = self.function
        if not isinstance(function, FunctionType):
            raise TypeError(f"{self.name}: can only break a plain function")
        source = textwrap.dedent(inspect.getsource(function))
        source = source[source.index("def ") :]  # without decorators
        if source.count(self.rule) != 1:
            raise LookupError(f"{self.name}: {function.__qualname__} holds no single {self.rule!r}")
        definition = "from __future__ import annotations\n" + source.replace(self.rule, self.broken)
        namespace: dict[str, Any] = {}
        exec(compile(definition, f"<{self.name}>", "exec"), function.__globals__, namespace)
        whole = function.__code__
        function.__code__ = namespace[function.__name__].__code__
        try:
            yield
        finally:
            function.__code__ = whole


def assert_breaks(
    check: Callable[[Any], None], cases: SearchStrategy[Any], broken: Break, *, examples: int = 1000
) -> None:
    """Assert that a checking function fails on the witness, or on some case, while a rule is broken.

    The search is repeatable: it draws the same cases each time.
    """
    if broken.witness is not None:
        _passes(check, broken.witness)
        with broken.applied(), pytest.raises(AssertionError):
            check(broken.witness)
        return

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def search(case: Any) -> None:
        check(case)

    with broken.applied(), pytest.raises(AssertionError):
        search()


_PASSED: list[tuple[Callable[[Any], None], Any]] = []


def _passes(check: Callable[[Any], None], witness: Any) -> None:
    """Check a witness with the code as it is; once in a process, however many breaks it witnesses."""
    if not any(known is check and case == witness for known, case in _PASSED):
        check(witness)
        _PASSED.append((check, witness))


def breaks(*rules: Break) -> pytest.MarkDecorator:
    """Parametrise a test with broken rules, each under its own name."""
    return pytest.mark.parametrize("broken", [pytest.param(rule, id=rule.name) for rule in rules])
