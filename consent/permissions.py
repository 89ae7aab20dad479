"""Permissions, channels, tiers and sources: the words that everything else is said in."""

from __future__ import annotations

import enum

__all__ = ["CONTACT_CHANNELS", "Channel", "Permission", "Side", "Source", "Tier"]


class Permission(enum.Flag):
    """What a customer permitted: online usage data (cookie), CRM data, both, or neither."""

    NONE = 0
    ONLINE = enum.auto()
    CRM = enum.auto()

    @property
    def level(self) -> int:
        """1 for neither permission, 2 for exactly one, 3 for both."""
        return 1 + (Permission.ONLINE in self) + (Permission.CRM in self)


class Side(enum.StrEnum):
    """The two sides of a shop's marketing. Each channel belongs to one."""

    ONLINE = "online"
    CRM = "crm"


class Channel(enum.StrEnum):
    """Where an answer is shown or sent."""

    SHOP = "shop"
    APP = "app"
    ADS = "ads"
    EMAIL = "email"
    PRINT = "print"
    CALL_CENTER = "call_center"
    PUSH = "push"

    @property
    def side(self) -> Side:
        """The side whose permissions govern the channel."""
        return Side.ONLINE if self in _ONLINE_CHANNELS else Side.CRM


_ONLINE_CHANNELS = frozenset({Channel.SHOP, Channel.APP, Channel.ADS})

CONTACT_CHANNELS = frozenset({Channel.EMAIL, Channel.PRINT, Channel.CALL_CENTER, Channel.PUSH})
"""Channels in which a person is contacted: each needs a contact permission of its own."""


class Source(enum.StrEnum):
    """A kind of data about the person of a request."""

    SESSION = "session"
    ONLINE = "online"
    CRM = "crm"


class Tier(enum.StrEnum):
    """Who answers: one of the four models, the non-personal list, or nobody."""

    SESSION = "session"
    ONLINE = "online"
    CRM = "crm"
    FUSED = "fused"
    POPULAR = "popular"
    NONE = "none"
