"""kill -9 at random moments: a campaign against every command that writes.

Each command runs in a forked process on a small simulated shop, over what an earlier run left. Half of the
kills come after a random time, half before a random step that changes files. After each kill it is checked
that readers see the old state or the new one, whole, and that nothing acknowledged is lost. Then the command
runs once more, undisturbed: it must end in the state that a run without any kill ends in, and leave no
remnant, neither beside what it writes nor in the directory for temporary files.

Prints a Markdown table, writes JSON, and ends with status 1 if anything did not survive. Needs the extra
``train``.

Run: ``python -m benchmarks.reliability.kill_campaign [--tries 1000] [--minutes M] [--seed 1]
[--only NAME] [--out FILE]``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import gc
import importlib
import json
import math
import os
import platform
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability.killing import Acknowledge, Outcome, run
from benchmarks.reliability.scenarios import SCENARIOS, Scenario, World
from consentier.models.compiled import compiled

RESULTS = Path(__file__).parents[1] / "results" / "reliability" / "kills.json"

_HIDDEN = re.compile(r"\..+\.[0-9a-f]{16}(\..*)?|.*\.partial|.*-journal")


_LEFT_BEHIND_WELL = frozenset({"jemalloc_bg_thd"})
"""Threads that a forked process does without: the allocator does its work itself then."""


@dataclasses.dataclass(slots=True)
class Result:
    """What became of the tries of one scenario."""

    name: str
    steps: int
    run_seconds: float
    tries: int = 0
    kills: int = 0
    survived: int = 0
    seconds: float = 0.0
    problems: list[str] = dataclasses.field(default_factory=list)


class Campaign:
    """Tries of one scenario after the other.

    Parameters
    ----------
    world
        The shop.
    seed
        Of the moments.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._seed = world, seed
        self._temporary = world.folder / "tmp"
        self._temporary.mkdir()
        tempfile.tempdir = str(self._temporary)
        os.environ["TMPDIR"] = str(self._temporary)

    def judge(self, scenario: Scenario, tries: int, seconds: float) -> Result:
        """Kill a scenario so many times, or as often as fits into so many seconds."""
        chance = random.Random(f"{self._seed} {scenario.name}")
        began = time.perf_counter()
        place, template = self._world.place, self._world.folder / "template"
        for path in (place, template):
            shutil.rmtree(path, ignore_errors=True)
        place.mkdir()
        _whole(run(lambda _: scenario.build(place)))
        place.rename(template)
        self._set_up(template)
        _load_as_does(lambda: scenario.work(place, lambda _: None))
        self._set_up(template)
        undisturbed = run(lambda acknowledge: scenario.work(place, acknowledge))
        _whole(undisturbed)
        wanted = _asked(lambda: scenario.state(place))
        result = Result(scenario.name, undisturbed.steps, round(undisturbed.seconds, 3))
        while (
            result.kills < tries and result.tries < 2 * tries + 20 and time.perf_counter() < began + seconds
        ):
            self._set_up(template)
            moment: dict[str, Any] = {"before_step": chance.randrange(undisturbed.steps)}
            if chance.random() < 0.5:
                moment = {"after_seconds": chance.uniform(0, undisturbed.seconds)}
            outcome = run(lambda acknowledge: scenario.work(place, acknowledge), **moment)
            result.tries += 1
            result.kills += outcome.killed
            problems = self._judged(scenario, outcome, wanted)
            result.survived += outcome.killed and not problems
            result.problems += [f"{moment}: {problem}" for problem in problems]
        result.seconds = round(time.perf_counter() - began, 1)
        return result

    def _set_up(self, template: Path) -> None:
        for path in (self._world.place, self._temporary):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(template, self._world.place)
        self._temporary.mkdir()

    def _judged(self, scenario: Scenario, outcome: Outcome, wanted: Any) -> list[str]:
        """What is wrong after a kill, and after the command was run again."""
        place = self._world.place
        if outcome.error:
            return [f"raised {outcome.error.splitlines()[-1]}"]

        def second(acknowledge: Acknowledge) -> None:
            acknowledge(repr(list(scenario.problems(place, outcome.acknowledged))))
            scenario.work(place, lambda _: None)
            acknowledge(repr(scenario.state(place)))

        again = run(second)
        told = again.acknowledged
        problems = ast.literal_eval(told[0]) if told else []
        if again.error or again.killed:
            step = ("a reader", "the second run, or a reader of its result,")[len(told)]
            return [*problems, f"{step} raised {again.error.splitlines()[-1]}"]
        found = ast.literal_eval(told[1])
        if found != wanted:
            problems.append(f"the second run ended otherwise: {_difference(found, wanted)}")
        left = [path for path in place.rglob("*") if _HIDDEN.fullmatch(path.name)]
        left += list(self._temporary.iterdir())
        return problems + [f"left behind: {path.relative_to(self._world.folder)}" for path in left]


def _load_as_does(work: Callable[[], None]) -> None:
    """Import here what some work imports, so that no forked process does so again: it takes most of its time.

    Only that: an engine's threads and an open database must not live on in what is forked.
    """

    def names(acknowledge: Acknowledge) -> None:
        work()
        for name in list(sys.modules):
            acknowledge(name)

    outcome = run(names)
    _whole(outcome)
    for name in outcome.acknowledged:
        with contextlib.suppress(ImportError):  # a few modules are made by others, under names of their own
            importlib.import_module(name)
    compiled(lambda: None)()  # sets up the compiler
    for thread in Path("/proc/self/task").iterdir():
        name = (thread / "comm").read_text().strip()
        if int(thread.name) != os.getpid() and name not in _LEFT_BEHIND_WELL:
            raise RuntimeError(f"a thread {name} runs, which a forked process would not have")
    gc.freeze()


def _asked(question: Callable[[], Any]) -> Any:
    """What a forked process finds out: a file that is open, or a connection, must not live on in the next."""
    outcome = run(lambda acknowledge: acknowledge(repr(question())))
    _whole(outcome)
    return ast.literal_eval(outcome.acknowledged[0])


def _whole(outcome: Outcome) -> None:
    """Raise what a forked process raised."""
    if outcome.error or outcome.killed:
        raise RuntimeError(outcome.error or "the process was killed")


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in sorted({*found, *wanted}, key=str) if found.get(key) != wanted.get(key)]
        return "; ".join(f"{key}: {_difference(found.get(key), wanted.get(key))}" for key in keys)
    return f"{str(found)[:120]} and not {str(wanted)[:120]}"


def main() -> int:
    """Run the campaign; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tries", type=int, default=1000, help="kills in all, divided among the commands")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for each command, at most")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--only", action="append", help="a command; may be given several times")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the figures")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kill-campaign-"))
    try:
        results = _results(folder, asked)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(result.survived == result.kills and not result.problems for result in results) else 1


def _results(folder: Path, asked: argparse.Namespace) -> list[Result]:
    world = World(folder)
    _ = world.earlier, world.recommender  # made once, before processes are forked
    gc.freeze()  # so that forked processes do not copy what they only look through
    chosen = [made(world) for made in SCENARIOS]
    if asked.only:
        chosen = [scenario for scenario in chosen if scenario.name in asked.only]
    shares = sum(scenario.share for scenario in chosen)
    campaign = Campaign(world, asked.seed)
    print("| command | steps | kills | survived | seconds |\n|---|--:|--:|--:|--:|", flush=True)
    results = []
    for scenario in chosen:
        tries = max(1, round(asked.tries * scenario.share / shares))
        result = campaign.judge(scenario, tries, asked.minutes * 60)
        results.append(result)
        _write(results, asked)
        row = (result.name, result.steps, result.kills, result.survived, result.seconds)
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
        for problem in result.problems[:10]:
            print(f"  {problem}", file=sys.stderr, flush=True)
    kills, survived = sum(each.kills for each in results), sum(each.survived for each in results)
    print(f"| all | | {kills} | {survived} | {sum(each.seconds for each in results):.0f} |")
    return results


def _write(results: list[Result], asked: argparse.Namespace) -> None:
    """The figures so far."""
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    document = {
        "tries": asked.tries,
        "seed": asked.seed,
        "machine": machine,
        "kills": sum(result.kills for result in results),
        "survived": sum(result.survived for result in results),
        "commands": [dataclasses.asdict(result) for result in results],
    }
    asked.out.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
