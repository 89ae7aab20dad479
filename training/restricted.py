"""The restricted directory of a trainer: what is about persons, and so may not stand in a bundle.

It lies beside the bundles, is readable by its owner only, and never leaves the training side: keys, the index
of which bundles hold whom, and the statistics from which a person can be subtracted again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from consentier.consent import Tier
from consentier.consent.keyring import Keyring
from consentier.training.lineage import Lineage

__all__ = ["Restricted"]


@dataclasses.dataclass(frozen=True, slots=True)
class Restricted:
    """Where things lie in a restricted directory. Nothing is made before it is asked for.

    Attributes
    ----------
    path
        The directory.
    """

    path: Path

    @classmethod
    def beside(cls, bundles: Path) -> Restricted:
        """The restricted directory that belongs to a directory of bundles: ``BUNDLES-restricted``."""
        absolute = bundles.absolute()
        return cls(absolute.with_name(f"{absolute.name}-restricted"))

    def keyring(self) -> Keyring:
        """The keys, made on first use."""
        return Keyring.open(self._made() / "keys.json")

    def lineage(self) -> Lineage:
        """The index of which bundles hold whom, made on first use."""
        return Lineage(self._made() / "lineage.db", self.keyring())

    def statistics(self, tier: Tier) -> Path:
        """The directory of a tier's statistics."""
        return self.path / "statistics" / str(tier)

    def _made(self) -> Path:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.path
