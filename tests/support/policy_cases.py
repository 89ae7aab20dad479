"""Random routing policies and resolutions for property tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hypothesis import strategies as st

from consentier.consent import CONTACT_CHANNELS, Channel, Policy, Resolution, Side, State, Switches, Tier
from consentier.consent.records import PURPOSES
from consentier.errors import PolicyError

__all__ = ["PolicyCase", "ShopPolicy", "policy_cases"]

Cell = tuple[State, Side]

_DEFAULT: Mapping[Cell, tuple[Tier, ...]] = Policy.default().matrix
_TIERS = tuple(tier for tier in Tier if tier is not Tier.NONE)

_resolutions: st.SearchStrategy[Resolution] = st.builds(
    Resolution,
    online=st.booleans(),
    crm=st.booleans(),
    linked=st.booleans(),
    objected=st.sampled_from((False, False, False, True)),
    minor=st.sampled_from((False, False, False, True)),
    contact=st.frozensets(st.sampled_from(sorted(map(str, CONTACT_CHANNELS)))),
    granted_purposes=st.frozensets(st.sampled_from(sorted(PURPOSES))),
    denied_purposes=st.sampled_from((frozenset[str](), frozenset({"ads"}), frozenset({"fusion"}))),
)


@dataclasses.dataclass(frozen=True)
class ShopPolicy:
    """What a shop wrote into its policy: perhaps unlawful, then `accepted` is None."""

    matrix: Mapping[Cell, tuple[Tier, ...]]
    switches: Switches

    def accepted(self) -> Policy:
        """The policy that this makes.

        Raises
        ------
        PolicyError
            If it is refused.
        """
        return Policy("shop", self.matrix, self.switches)


@st.composite
def _shop_policies(draw: st.DrawFn) -> ShopPolicy:
    """The default matrix with cells shortened and reordered, and perhaps one tier put where it may not be."""
    matrix = dict(_DEFAULT)
    cells = st.sampled_from(sorted(matrix))
    for cell in draw(st.lists(cells, max_size=2)):
        kept = draw(st.lists(st.sampled_from((*matrix[cell], None)), unique=True))
        matrix[cell] = tuple(tier for tier in kept if tier is not None)
    if draw(st.booleans()):
        cell, tier = draw(cells), draw(st.sampled_from(_TIERS))
        matrix[cell] = (tier, *(other for other in matrix[cell] if other is not tier))
    switches = draw(st.builds(Switches, *[st.booleans() for _ in dataclasses.fields(Switches)]))
    return ShopPolicy(matrix, switches)


@dataclasses.dataclass(frozen=True)
class PolicyCase:
    """One request against one shop's policy."""

    shop: ShopPolicy
    resolution: Resolution
    channel: Channel
    vouched: bool

    def policy(self) -> Policy | None:
        """The policy in force; None where the shop's was refused, so that nothing is answered by it."""
        try:
            return self.shop.accepted()
        except PolicyError:
            return None


policy_cases: st.SearchStrategy[PolicyCase] = st.builds(
    PolicyCase, _shop_policies(), _resolutions, st.sampled_from(Channel), st.booleans()
)
