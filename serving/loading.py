"""Opening a directory of bundles: what can answer, and why the rest cannot."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from consentier.consent import Tier
from consentier.errors import BundleError, BundleMissing
from consentier.models.bundle import Bundle, open_bundle
from consentier.serving.catalogue import Catalogue
from consentier.serving.factor_scorer import FACTOR_ALGORITHMS, FactorScorer
from consentier.serving.revocation import Deadlines
from consentier.serving.scorer import ItemScorer, LinearScorer, PopularScorer

__all__ = ["OpenedBundles", "open_bundles"]

_log = logging.getLogger("consentier.serving")

_TIERS = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED, Tier.POPULAR)


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedBundles:
    """The models of a directory by tier, and why a tier has none."""

    scorers: Mapping[Tier, ItemScorer]
    popular: PopularScorer | None
    problems: Mapping[Tier, str]


def open_bundles(
    root: Path,
    catalogue: Catalogue | None,
    deadlines: Deadlines,
    at: dt.datetime,
    *,
    compiled: bool = True,
) -> OpenedBundles:
    """Open the bundle of each tier, as far as there is one that may be used.

    Parameters
    ----------
    root
        The directory: one bundle per tier, under the tier's name.
    catalogue
        What may be shown now; None: all items of the bundles.
    deadlines, at
        A bundle that is past its deadline at that instant is not loaded.
    compiled
        Use compiled loops where Numba is installed.

    Raises
    ------
    BundleMissing
        If no bundle can be used.
    """
    if not root.is_dir():
        raise BundleMissing(f"{root}: there is no such directory; 'consentier train' writes one")
    scorers: dict[Tier, ItemScorer] = {}
    problems: dict[Tier, str] = {}
    popular = None
    for tier in _TIERS:
        try:
            bundle = open_bundle(root / tier)
            if bundle.manifest.tier != tier:
                raise BundleError(f"the bundle in the {tier} slot declares tier {bundle.manifest.tier}")
            if problem := deadlines.problem_of(bundle.digest, at):
                raise BundleError(problem)
            if tier is Tier.POPULAR:
                popular = PopularScorer(bundle, catalogue)
            else:
                scorers[tier] = _scorer(bundle, catalogue, compiled=compiled)
        except Exception as error:  # noqa: BLE001 - a bundle's fault, whatever it is, lowers the tier
            known_fault = isinstance(error, BundleError | OSError)
            problems[tier] = str(error) if known_fault else f"{type(error).__name__}: {error}"
            _log.warning("the %s tier has no model: %s", tier, problems[tier])
    if not scorers and popular is None:
        details = "; ".join(f"{tier}: {problem}" for tier, problem in problems.items())
        raise BundleMissing(f"{root}: no bundle can be used: {details}")
    return OpenedBundles(MappingProxyType(scorers), popular, MappingProxyType(problems))


def _scorer(bundle: Bundle, catalogue: Catalogue | None, *, compiled: bool) -> ItemScorer:
    if bundle.manifest.algorithm in FACTOR_ALGORITHMS:
        return FactorScorer(bundle, catalogue)
    return LinearScorer(bundle, catalogue, compiled=compiled)
