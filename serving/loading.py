"""Opening a directory of bundles: what can answer, and why the rest cannot."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from consentier.consent import Tier
from consentier.errors import BundleError, BundleMissing, ConfigError, suggestion
from consentier.models.bundle import Bundle, open_bundle
from consentier.models.bundle_manifest import MANIFEST_FILE
from consentier.serving.catalogue import Catalogue
from consentier.serving.explanations import TITLES
from consentier.serving.factor_scorer import FACTOR_ALGORITHMS, FactorScorer
from consentier.serving.popular_scorer import PopularScorer
from consentier.serving.revocation import Deadlines
from consentier.serving.rules import Rules
from consentier.serving.scorer import ItemScorer, LinearScorer

__all__ = [
    "TIERS",
    "CatalogueSource",
    "OpenedBundles",
    "OpenedTier",
    "none_usable",
    "open_bundles",
    "open_tier",
    "problem_of",
    "read_shop_rules",
]

_log = logging.getLogger("consentier.serving")

CatalogueSource = Catalogue | Mapping[str, Mapping[str, Any]] | Iterable[str] | str | Path
"""What a catalogue can be made of: see `Catalogue.of`."""

TIERS = (Tier.SESSION, Tier.ONLINE, Tier.CRM, Tier.FUSED, Tier.POPULAR)
"""The tiers that have a bundle."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedTier:
    """The model of one tier.

    Attributes
    ----------
    model
        What answers.
    bundle
        What it was made of. As long as it is held, all of its arrays are mapped, also those that the model
        copied: no other file can have the identity of one of theirs.
    """

    model: ItemScorer | PopularScorer
    bundle: Bundle

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self.bundle.digest

    @property
    def cutoff(self) -> str:
        """The training cut-off as the manifest writes it: texts compare as their instants do."""
        return self.bundle.manifest.cutoff


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedBundles:
    """The models of a directory by tier, and why a tier has none."""

    tiers: Mapping[Tier, OpenedTier]
    problems: Mapping[Tier, str]

    @property
    def scorers(self) -> Mapping[Tier, ItemScorer]:
        """The models that score, by tier."""
        models = {tier: opened.model for tier, opened in self.tiers.items()}
        return MappingProxyType(
            {tier: model for tier, model in models.items() if not isinstance(model, PopularScorer)}
        )

    @property
    def popular(self) -> PopularScorer | None:
        """The non-personal list; None where its bundle cannot be used."""
        opened = self.tiers.get(Tier.POPULAR)
        return opened.model if opened is not None and isinstance(opened.model, PopularScorer) else None


def read_shop_rules(
    catalogue: CatalogueSource | None, rules: Rules | str | Path | None, filter_by: Iterable[str]
) -> tuple[Catalogue | None, Rules | None]:
    """Read what may be shown and the business rules, with the attributes of items that anybody asks for.

    Parameters
    ----------
    catalogue, rules, filter_by
        As in `Recommender.load`.

    Raises
    ------
    DataError, ConfigError
        If either cannot be read, or rules or `filter_by` name attributes that items do not have.
    TypeError
        If `filter_by` is a text.
    """
    if isinstance(filter_by, str | bytes):
        raise TypeError(f"filter_by must be a collection of names, not {filter_by!r}")
    chosen = Rules.load(rules) if isinstance(rules, str | Path) else rules
    filters = frozenset(filter_by)
    asked = filters | frozenset(TITLES) | (frozenset() if chosen is None else chosen.columns)
    known = None if catalogue is None else Catalogue.of(catalogue, asked)
    there = Catalogue(frozenset()) if known is None else known
    if chosen is not None:
        chosen.check(there.attributes, there.unread)
    names = {name for row in there.attributes.values() for name in row}
    if missing := filters - names:
        hint = suggestion(min(missing), sorted(names | there.unread))
        raise ConfigError(f"filter_by: items have no attribute {min(missing)!r}{hint}")
    return known, chosen


def open_tier(
    path: Path,
    tier: Tier,
    catalogue: Catalogue | None,
    deadlines: Deadlines,
    at: dt.datetime,
    *,
    rules: Rules | None = None,
    compiled: bool = True,
    expected_digest: str | None = None,
    threads: int | None = None,
) -> OpenedTier:
    """Open and verify one bundle, if it may be used as the model of a tier.

    Parameters
    ----------
    path
        The bundle.
    tier
        What it must be the model of.
    catalogue, deadlines, at, rules, compiled
        As in `open_bundles`.
    expected_digest
        The digest that a registry pinned.
    threads
        How many verify it at once; see `open_bundle`.

    Raises
    ------
    BundleError
        If it is missing, altered, of another tier, or past its deadline; or whatever reading it raises.
    """
    bundle = open_bundle(path, expected_digest=expected_digest, threads=threads)
    if bundle.manifest.tier != tier:
        raise BundleError(f"the bundle in the {tier} slot declares tier {bundle.manifest.tier}")
    if problem := deadlines.problem_of(bundle.digest, at):
        raise BundleError(problem)
    return OpenedTier(_model(bundle, tier, catalogue, rules, compiled=compiled), bundle)


def open_bundles(
    root: Path,
    catalogue: Catalogue | None,
    rules: Rules | None,
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
    rules
        The shop's business rules, which fit the catalogue; None: there are none.
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
        raise none_usable(root, {})
    opened: dict[Tier, OpenedTier] = {}
    problems: dict[Tier, str] = {}
    for tier in TIERS:
        try:
            opened[tier] = open_tier(
                root / tier, tier, catalogue, deadlines, at, rules=rules, compiled=compiled
            )
        except Exception as error:  # noqa: BLE001 - a bundle's fault, whatever it is, lowers the tier
            problems[tier] = problem_of(error)
            _log.warning("the %s tier has no model: %s", tier, problems[tier])
    if not opened:
        raise none_usable(root, problems)
    return OpenedBundles(MappingProxyType(opened), MappingProxyType(problems))


def none_usable(root: Path, problems: Mapping[Tier, str], *, named: bool = True) -> BundleMissing:
    """What to raise where no tier has a bundle: what is wrong with each, or that another directory is meant.

    The latter only of a directory that somebody `named`, not of one into which bundles of a registry come.
    """
    if named and not root.is_dir():
        return BundleMissing(f"{root}: there is no such directory; 'consentier train' writes one")
    start = f"{root}: no bundle can be used:"
    if named and (root / MANIFEST_FILE).is_file():
        return BundleMissing(
            f"{start} this is one itself; name the directory above it, which holds all tiers"
        )
    if named and not any((root / tier).exists() for tier in TIERS):
        return BundleMissing(
            f"{start} it holds none of {', '.join(TIERS)}; name the directory that 'consentier train' wrote"
        )
    return BundleMissing("\n".join([start, *(f"- {tier}: {problem}" for tier, problem in problems.items())]))


def problem_of(error: Exception) -> str:
    """Why a bundle cannot be used, in words."""
    return str(error) if isinstance(error, BundleError | OSError) else f"{type(error).__name__}: {error}"


def _model(
    bundle: Bundle, tier: Tier, catalogue: Catalogue | None, rules: Rules | None, *, compiled: bool
) -> ItemScorer | PopularScorer:
    if tier is Tier.POPULAR:
        return PopularScorer(bundle, catalogue, rules, compiled=compiled)
    if bundle.manifest.algorithm in FACTOR_ALGORITHMS:
        return FactorScorer(bundle, catalogue, rules, compiled=compiled)
    return LinearScorer(bundle, catalogue, rules, compiled=compiled)
