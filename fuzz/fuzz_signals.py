"""Coverage-guided fuzzing of a reader of consent signals, with Atheris.

    python fuzz/fuzz_signals.py TARGET [libFuzzer options]
    python fuzz/fuzz_signals.py --list

TARGET is a kind of signal, or ``tcf_vendor`` (TC strings as a vendor reads them), ``tcf_decode`` or
``gpp_sections`` (the decoders alone). The corpus grows in ``.build/fuzz``; with a file in place of options,
that payload alone is tried again. For each payload:

* nothing is raised, except `SignalError` by the decoders, and no reader fails in a way it did not foresee;
* nothing is granted that an oracle, written apart from the readers, does not let it grant;
* a well-formed payload grants nothing more when it is cut off;
* the same payload gives the same records.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

with atheris.instrument_imports(include=["consentier"]):
    from consentier.consent.signals import SIGNALS, read_signal
    from consentier.consent.signals.gpp import sections_of
    from consentier.consent.signals.reading import UNEXPECTED
    from consentier.consent.signals.tcf import decode
    from consentier.errors import SignalError

from mutations import mutate_json, texts_in  # noqa: E402
from oracles import VENDOR_ID, may_grant  # noqa: E402
from platform_signals import GRANTING, RECEIVED  # noqa: E402
from running import chosen_target, run  # noqa: E402
from seeds import ALPHABET, seeds_of  # noqa: E402

DECODERS = {"tcf_decode": decode, "gpp_sections": sections_of}
TARGETS = (*SIGNALS, "tcf_vendor", *DECODERS)
CUTS = 3


def settings_of(target: str) -> dict[str, object]:
    if target in GRANTING:
        return dict(GRANTING[target].settings)
    return {"vendor_id": VENDOR_ID} if target == "tcf_vendor" else {}


def granted(target: str, payload: bytes) -> frozenset[str]:
    """Read a payload, and return what it grants. Raises AssertionError if a reader broke its promise."""
    kind = target.removesuffix("_vendor")
    settings = settings_of(target)
    records = read_signal(kind, payload, subject_id="s-1", received_at=RECEIVED, **settings)
    if records != read_signal(kind, payload, subject_id="s-1", received_at=RECEIVED, **settings):
        raise AssertionError("the same payload gave other records")
    for record in records:
        reason = json.loads(record.evidence or "{}").get("reason", "")
        if UNEXPECTED in reason:
            raise AssertionError(reason)
    return frozenset(record.permission for record in records if record.state == "granted")


def well_formed(target: str, payload: bytes) -> bool:
    """Whether a payload is whole, so that cutting it off takes something away."""
    try:
        if target in GRANTING:
            json.loads(payload)
        else:
            decode(payload.decode())
    except (ValueError, RecursionError, SignalError):
        return False
    return True


def check_reader(target: str, payload: bytes) -> None:
    whole = granted(target, payload)
    if not whole <= may_grant(target, payload):
        raise AssertionError(f"grants {sorted(whole)}, may grant {sorted(may_grant(target, payload))}")
    if not well_formed(target, payload):
        return
    places = random.Random(payload)
    for _ in range(CUTS):
        end = places.randrange(len(payload))
        more = granted(target, payload[:end]) - whole
        if more:
            raise AssertionError(f"cut off after {end} bytes it grants {sorted(more)} as well")


def check_decoder(target: str, payload: bytes) -> None:
    with contextlib.suppress(SignalError):
        DECODERS[target](payload.decode("utf-8", "replace"))


# Mutations that keep the form, so that the fuzzer does not spend its time on what is no JSON


def mutate_bits(data: bytes, random_: random.Random) -> bytes | None:
    """Flip up to three bits of a base64url text."""
    text = list(data.decode("latin-1"))
    places = [place for place, letter in enumerate(text) if letter in ALPHABET]
    if not places:
        return None
    for _ in range(random_.randint(1, 3)):
        place = random_.choice(places)
        text[place] = ALPHABET[ALPHABET.index(text[place]) ^ (1 << random_.randrange(6))]
    return "".join(text).encode("latin-1")


def main() -> None:
    target = chosen_target(TARGETS)
    if target is None:
        return
    seeds = seeds_of({"gpp_sections": "gpp"}.get(target, target))
    words = sorted({step for seed in seeds for step in texts_in(seed)}) or [""]

    if target in (*GRANTING, "tcf", "tcf_vendor") and not any(granted(target, seed) for seed in seeds):
        raise SystemExit(f"no seed of {target} grants anything: nothing could be found")

    def check(payload: bytes) -> None:
        if target in DECODERS:
            check_decoder(target, payload)
        else:
            check_reader(target, payload)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random_ = random.Random(seed)
        if random_.random() < 0.7:
            changed = mutate_json(data, random_, words) if target in GRANTING else mutate_bits(data, random_)
            if changed is not None and len(changed) <= max_size:
                return changed
        mutated: bytes = atheris.Mutate(data, max_size)
        return mutated

    run(target, seeds, check, mutate)


if __name__ == "__main__":
    main()
