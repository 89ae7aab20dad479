"""What a model registry has decided about the tiers of a directory of bundles: ``routing.json`` beside them.

Two decisions travel from the registry to whatever answers, and outlive a restart while the registry is away:

* *level 3 by one source*: no fused model is worth more than the best tier of a single source, so linked
  customers are answered by that one. It takes the place of fused in the routing policy, and reads what its
  own view holds; nothing is read that fused did not read.
* *rolled back*: a bundle with an earlier training cut-off than the last one may answer again. It is named by
  its digest; without that an earlier cut-off never takes over (`serving.reloading`).

A list that cannot be understood lowers the tier: fused does not answer, and nothing goes back.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from consentier.consent import Policy, Tier
from consentier.reading import read_regular
from consentier.writing import whole_file, write_new

__all__ = ["Routing", "read_routing", "write_routing"]

_NAME = "routing.json"
_FORMAT = 1
_MAX_BYTES = 1 << 16
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SINGLE = ("online", "crm")


@dataclasses.dataclass(frozen=True, slots=True)
class Routing:
    """The decisions of a registry.

    Attributes
    ----------
    level_3
        The tier that answers linked customers in the place of fused; None: fused may.
    rolled_back
        By tier: digest of the bundle that may take over although its cut-off is earlier.
    fault
        Why the decisions cannot be known; empty if they can.
    """

    level_3: Tier | None = None
    rolled_back: Mapping[Tier, str] = dataclasses.field(default_factory=dict)
    fault: str = ""

    def applied_to(self, policy: Policy) -> Policy:
        """The policy as it is routed by: the same, or without fused."""
        if not self.fault and self.level_3 is None:
            return policy
        return policy.without_fused(None if self.fault else self.level_3)

    def may_go_back(self, tier: Tier, digest: str) -> bool:
        """Whether a bundle may take the place of one with a later training cut-off."""
        return not self.fault and self.rolled_back.get(tier) == digest


def read_routing(bundles: str | Path) -> Routing:
    """The decisions beside some bundles; a directory without the file has none. Never raises."""
    path = Path(bundles) / _NAME
    try:
        payload = read_regular(path, _MAX_BYTES)
    except FileNotFoundError:
        return Routing()
    except OSError as error:
        return Routing(fault=f"{_NAME} cannot be read: {error.strerror or type(error).__name__}")
    try:
        return _parsed(payload)
    except (ValueError, RecursionError):
        return Routing(fault=f"{_NAME} is not what the registry source writes")


def write_routing(bundles: str | Path, routing: Routing) -> None:
    """Write the decisions down, beside first and renamed into place.

    Raises
    ------
    ValueError
        If they are at fault.
    OSError
        If they cannot be written; the old ones stay.
    """
    if routing.fault:
        raise ValueError("what is at fault is not written down as a decision")
    document = {
        "format": _FORMAT,
        "level_3": None if routing.level_3 is None else str(routing.level_3),
        "rolled_back": {str(tier): digest for tier, digest in sorted(routing.rolled_back.items())},
    }
    with whole_file(Path(bundles) / _NAME) as beside:
        write_new(beside, (json.dumps(document, indent=2) + "\n").encode("ascii"))


def _parsed(payload: bytes) -> Routing:
    document: Any = json.loads(payload.decode("ascii"))
    if not isinstance(document, dict) or set(document) != {"format", "level_3", "rolled_back"}:
        raise ValueError("keys")
    level_3, rolled_back = document["level_3"], document["rolled_back"]
    if document["format"] != _FORMAT or isinstance(document["format"], bool):
        raise ValueError("format")
    if level_3 is not None and level_3 not in _SINGLE:
        raise ValueError("level_3")
    if not isinstance(rolled_back, dict):
        raise ValueError("rolled_back")
    if not all(isinstance(each, str) and _DIGEST.fullmatch(each) for each in rolled_back.values()):
        raise ValueError("rolled_back")
    return Routing(
        None if level_3 is None else Tier(level_3),
        MappingProxyType({Tier(tier): digest for tier, digest in rolled_back.items()}),
    )
