"""Permissions, the consent ledger and the routing policy.

Here lives all that decides what a request or a training run may read. It knows no recommender and no shop
table, and needs the standard library only (a ledger in PostgreSQL: an extra). For all subjects at once,
`features.consent_intervals` states the same rules as expressions of tables; tests hold the two together.
"""

from typing import TYPE_CHECKING, Any

from consentier.consent.ledger import Ledger, LinkStanding, Standing
from consentier.consent.lifetimes import Lifetimes
from consentier.consent.permissions import CONTACT_CHANNELS, Channel, Permission, Side, Source, Tier
from consentier.consent.policy import Policy, Route, State, Switches, sources_of
from consentier.consent.records import ConsentRecord, Link, microseconds
from consentier.consent.resolution import Resolution
from consentier.consent.store import Verification

if TYPE_CHECKING:
    from consentier.consent.signals import read_signal

__all__ = [
    "CONTACT_CHANNELS",
    "Channel",
    "ConsentRecord",
    "Ledger",
    "Lifetimes",
    "Link",
    "LinkStanding",
    "Permission",
    "Policy",
    "Resolution",
    "Route",
    "Side",
    "Source",
    "Standing",
    "State",
    "Switches",
    "Tier",
    "Verification",
    "microseconds",
    "read_signal",
    "sources_of",
]


def __getattr__(name: str) -> Any:
    """Import the parsers of signals when they are asked for: what answers requests needs none of them."""
    if name == "read_signal":
        from consentier.consent.signals import read_signal

        return read_signal
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
