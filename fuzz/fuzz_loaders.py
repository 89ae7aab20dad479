"""Coverage-guided fuzzing of the loaders of files, lines, rows and databases, with Atheris.

    python fuzz/fuzz_loaders.py TARGET [libFuzzer options]
    python fuzz/fuzz_loaders.py --list

TARGET is a loader of `tests/support/hostile_files.py`, which says what each may raise, and uses what it
takes. The corpus grows in ``.build/fuzz``; with a file in place of options, that payload is tried again.
"""

from __future__ import annotations

import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

with atheris.instrument_imports(include=["consentier"]):
    from hostile_files import LOADERS

from mutations import mutate_bytes, mutate_json, texts_in  # noqa: E402
from running import CORPORA, chosen_target, run  # noqa: E402


def main() -> None:
    target = chosen_target(tuple(LOADERS))
    if target is None:
        return
    # The fuzzer ends a process without its clean-up: what loaders are given lies where `make clean` finds it.
    files = CORPORA / f"{target}-files"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    tempfile.tempdir = str(files)
    logging.disable(logging.CRITICAL)  # a fault is logged, as it should be, some thousand times a second
    loader = LOADERS[target]
    seeds = loader.seeds()
    words = sorted({text for seed in seeds for text in texts_in(seed)}) or [""]
    if not all(map(loader.check, seeds)):
        raise SystemExit(f"{target} refuses one of its own seeds: nothing could be found behind them")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random_ = random.Random(seed)
        way = random_.random()
        changed = mutate_json(data, random_, words) if loader.is_json and way < 0.6 else None
        if changed is None and way < 0.8:
            changed = mutate_bytes(data, random_)
        if changed is not None and len(changed) <= max_size:
            return changed
        mutated: bytes = atheris.Mutate(data, max_size)
        return mutated

    run(target, seeds, loader.check, mutate)


if __name__ == "__main__":
    main()
