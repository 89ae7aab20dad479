"""How a target is run: its corpus, its seeds, and what is told on the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

__all__ = ["CORPORA", "chosen_target", "run"]

CORPORA = Path(__file__).resolve().parents[1] / ".build" / "fuzz"


def chosen_target(targets: Sequence[str]) -> str | None:
    """The target that the command line names; None where it asks for the list, which is printed."""
    target = sys.argv[1] if len(sys.argv) > 1 else ""
    if target == "--list":
        sys.stdout.write("\n".join(targets) + "\n")
        return None
    if target not in targets:
        raise SystemExit(f"usage: {sys.argv[0]} TARGET [libFuzzer options]; targets: {', '.join(targets)}")
    return target


def run(
    target: str,
    seeds: Sequence[bytes],
    check: Callable[[bytes], object],
    mutate: Callable[[bytes, int, int], bytes],
) -> None:
    """Fuzz until the options on the command line say stop, or a payload fails; or try one payload again."""
    corpus = CORPORA / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-artifact_prefix={CORPORA}/{target}-", *sys.argv[2:]]
    if not any(Path(option).is_file() for option in sys.argv[2:]):
        options.append(str(corpus))
    atheris.Setup([sys.argv[0], *options], check, custom_mutator=mutate)
    atheris.Fuzz()
