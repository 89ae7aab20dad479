"""Permissions, the consent ledger and the routing policy.

Here lives all that decides what a request or a training run may read. It knows no recommender, and needs the
standard library only. No shop table is read here, and no permission is decided anywhere else.
"""

from consentier.consent.ledger import Ledger, LinkStanding, Standing
from consentier.consent.permissions import CONTACT_CHANNELS, Channel, Permission, Side, Source, Tier
from consentier.consent.policy import Policy, Route, State, Switches, sources_of
from consentier.consent.records import ConsentRecord, Link, microseconds
from consentier.consent.resolution import Resolution

__all__ = [
    "CONTACT_CHANNELS",
    "Channel",
    "ConsentRecord",
    "Ledger",
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
    "microseconds",
    "sources_of",
]
